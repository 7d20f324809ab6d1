//! The figures of `bench costs` as JSON and as one Markdown table.

use std::io;

use super::rows::{LOADS, Load, LoadSpec};
use crate::args::Options;
use crate::run::alternating::table::{Figures, Report, ServerReport};
use crate::run::markdown;
use crate::run::report;
use crate::run::results::spread;

/// The name of the marks around the table in a page.
const MARKS: &str = "costs";

/// Writes `out.json` and `out.md`, inserts the table into a page, and prints it.
pub(super) fn write(results: &Report, options: &Options) -> io::Result<()> {
    let text = complete(results);
    if let Some(out) = options.text("out") {
        report::write_files(out, results, &[("md", &text)])?;
    }
    if let Some(path) = options.text("page") {
        report::insert(path, MARKS, &format!("\n{text}\n"))?;
    }
    print!("{text}");
    Ok(())
}

fn complete(results: &Report) -> String {
    let mut text = results.head.join(" ");
    for left_out in &results.left_out {
        text += &format!(" Left out: {left_out}.");
    }
    text + "\n\n" + &table(results)
}

/// The figures of one server under the two loads of its row, beside its baseline.
struct CostRow<'a> {
    server: &'a str,
    /// Under the load one by one, and in batches; the second of each pair is the baseline.
    loads: [Option<(&'a ServerReport, &'a ServerReport)>; 2],
}

/// A column of the table: its title, and the cell of a row.
type Column = (&'static str, fn(&CostRow<'_>) -> String);

fn table(results: &Report) -> String {
    let rows = rows(results);
    let broker = rows.iter().any(|row| row.each(|f| f.broker_cpu).is_some());
    let mut columns: Vec<Column> = vec![
        ("CPU-seconds, W 1", |row| row.seconds(0)),
        ("×", |row| row.ratio(0)),
        ("CPU-seconds, W 16", |row| row.seconds(1)),
        ("×", |row| row.ratio(1)),
        ("CPU-hours, W 1; W 16", |row| {
            row.pair(|f| Some(f.cpu / 3_600.0), significant)
        }),
        ("bytes of a delivery, W 1; W 16", |row| {
            row.pair(|f| Some(f.wire_bytes), |bytes| format!("{bytes:.0}"))
        }),
    ];
    if broker {
        columns.push(("CPU-seconds of the broker, W 1; W 16", |row| {
            row.pair(|f| f.broker_cpu, significant)
        }));
    }
    let titles: String = columns
        .iter()
        .map(|(title, _)| format!(" {title} |"))
        .collect();
    let mut text = format!(
        "| per million deliveries |{titles}\n|---|{}\n",
        "---|".repeat(columns.len())
    );
    for row in &rows {
        let cells: String = columns
            .iter()
            .map(|(_, cell)| format!(" {} |", cell(row)))
            .collect();
        text += &format!("| {} |{cells}\n", row.server);
    }
    text
}

/// Joins the two loads of each server.
fn rows(results: &Report) -> Vec<CostRow<'_>> {
    let mut rows = Vec::new();
    for load in [Load::FanOut, Load::Echo] {
        let specs = LOADS.iter().filter(|spec| spec.load == load);
        let servers: Vec<&[ServerReport]> = specs.map(|spec| servers(results, spec)).collect();
        let names = servers
            .first()
            .into_iter()
            .flat_map(|servers| servers.iter());
        for name in names.map(|served| &served.server[..]) {
            let of = |at: usize| {
                let servers = servers.get(at)?;
                let served = servers.iter().find(|served| served.server == name)?;
                Some((served, servers.first()?))
            };
            rows.push(CostRow {
                server: name,
                loads: [of(0), of(1)],
            });
        }
    }
    rows
}

/// Returns the servers under a load, of which the first is the baseline.
fn servers<'a>(results: &'a Report, spec: &LoadSpec) -> &'a [ServerReport] {
    let mut scenarios = results.scenarios.iter();
    let scenario = scenarios.find(|scenario| scenario.id == spec.id);
    scenario.map_or(&[], |scenario| &scenario.servers)
}

impl CostRow<'_> {
    /// The median and the range of CPU-seconds per million deliveries, which are microseconds per delivery.
    fn seconds(&self, load: usize) -> String {
        let rounds = self.loads[load].map(|(served, _)| &served.rounds[..]);
        let cpu: Vec<f64> = rounds.unwrap_or_default().iter().map(|f| f.cpu).collect();
        spread(&cpu).map_or("–".into(), |(least, middle, most)| {
            format!(
                "**{}** ({}–{})",
                markdown::number(middle),
                markdown::number(least),
                markdown::number(most)
            )
        })
    }

    /// The median and the range of the ratios to the baseline in the same round.
    fn ratio(&self, load: usize) -> String {
        let Some((served, first)) = self.loads[load].filter(|(a, b)| a.server != b.server) else {
            return "1".into();
        };
        let pairs = served.rounds.iter().zip(&first.rounds);
        let ratios: Vec<f64> = pairs.map(|(a, b)| a.cpu / b.cpu).collect();
        spread(&ratios).map_or("–".into(), |(least, middle, most)| {
            format!("{middle:.2} ({least:.2}–{most:.2})")
        })
    }

    /// The medians of a figure under both loads, if there are any.
    fn each(&self, of: fn(&Figures) -> Option<f64>) -> Option<[f64; 2]> {
        let median = |load: usize| {
            let (served, _) = self.loads[load]?;
            let values: Vec<f64> = served.rounds.iter().filter_map(of).collect();
            Some(spread(&values)?.1)
        };
        Some([median(0)?, median(1)?])
    }

    /// Renders the medians of a figure under both loads; once if they look the same.
    fn pair(&self, of: fn(&Figures) -> Option<f64>, render: fn(f64) -> String) -> String {
        match self.each(of).map(|both| both.map(render)) {
            None => String::new(),
            Some([first, second]) if first == second => first,
            Some([first, second]) => format!("{first}; {second}"),
        }
    }
}

/// Renders a number below 1,000 with three significant digits, however small.
fn significant(value: f64) -> String {
    if value <= 0.0 {
        return "0".into();
    }
    let digits = (2.0 - value.log10().floor()).clamp(0.0, 9.0);
    format!("{value:.*}", digits as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::alternating::table::ScenarioReport;

    fn server(name: &str, cpu: [f64; 3], broker_cpu: Option<f64>) -> ServerReport {
        let figures = |cpu| Figures {
            cpu,
            wire_bytes: 106.0,
            broker_cpu,
            ..Figures::default()
        };
        ServerReport {
            server: name.into(),
            rounds: cpu.map(figures).into(),
            failure: None,
        }
    }

    fn scenario(id: &str, servers: Vec<ServerReport>) -> ScenarioReport {
        ScenarioReport {
            id: id.into(),
            title: id.into(),
            measurement: Default::default(),
            servers,
        }
    }

    #[test]
    fn table_compares_each_server_with_its_baseline_of_the_round() {
        let results = Report {
            head: vec!["A machine.".into()],
            left_out: vec!["the cluster: no Redis".into()],
            scenarios: vec![
                scenario(
                    "fan-out-w1",
                    vec![
                        server("plain", [7.2, 3.6, 14.4], None),
                        server("room", [10.8, 3.6, 28.8], Some(0.5)),
                    ],
                ),
                scenario(
                    "fan-out-w16",
                    vec![
                        server("plain", [0.36; 3], None),
                        server("room", [0.72; 3], Some(0.25)),
                    ],
                ),
            ],
            ..Report::default()
        };
        let text = complete(&results);
        assert!(
            text.starts_with("A machine. Left out: the cluster: no Redis.\n\n| per"),
            "{text}"
        );
        let rows: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(
            rows,
            [
                "| plain | **7.20** (3.60–14.4) | 1 | **0.360** (0.360–0.360) | 1 | 0.00200; 0.000100 | 106 |  |",
                "| room | **10.8** (3.60–28.8) | 1.50 (1.00–2.00) | **0.720** (0.720–0.720) | 2.00 (2.00–2.00) | \
                 0.00300; 0.000200 | 106 | 0.500; 0.250 |",
            ]
        );
        let cells = |line: &str| line.matches('|').count();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(
            lines.iter().all(|line| cells(line) == cells(lines[0])),
            "{text}"
        );
    }

    #[test]
    fn small_numbers_keep_three_digits() {
        let numbers = [0.0, 0.000_112_4, 0.0125, 1.0, 123.4];
        let texts = numbers.map(significant);
        assert_eq!(texts, ["0", "0.000112", "0.0125", "1.00", "123"]);
    }
}
