//! The figures as JSON and as Markdown, and whether they meet the targets.

use std::io;

use serde::{Deserialize, Serialize};

use super::scenario::{Bound, Measurement, ServerVariant, Target};
use super::services::BrokerSetup;
use super::{Setup, Suite};
use crate::args::Options;
use crate::run::results::{Verdict, median_by};
use crate::run::{markdown, report};

/// The results of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::run) struct Report {
    /// The machine and the method.
    pub(in crate::run) head: Vec<String>,
    pub(in crate::run) peers: Vec<String>,
    pub(in crate::run) left_out: Vec<String>,
    pub(in crate::run) scenarios: Vec<ScenarioReport>,
    pub(in crate::run) verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::run) struct ScenarioReport {
    pub(in crate::run) id: String,
    pub(in crate::run) title: String,
    pub(in crate::run) measurement: Measurement,
    /// The servers. All others are compared with the first.
    pub(in crate::run) servers: Vec<ServerReport>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::run) struct ServerReport {
    pub(in crate::run) server: String,
    pub(in crate::run) rounds: Vec<Figures>,
    /// Why rounds are missing.
    pub(in crate::run) failure: Option<String>,
}

/// One server's figures in one round.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(in crate::run) struct Figures {
    /// Microseconds of the server's CPU time, user and system, per delivery, or per connection in a scenario that measures
    /// connecting; and per message sent.
    pub(in crate::run) cpu: f64,
    pub(in crate::run) cpu_per_broadcast: f64,
    /// WebSocket bytes per delivery: payloads and frame headers, without the headers of TCP and IP.
    pub(in crate::run) bytes: f64,
    /// Bytes per delivery that the sockets have received. Over TLS, they include its records.
    pub(in crate::run) wire_bytes: f64,
    /// Microseconds of CPU time per delivery of the broker, if the server is a node of a cluster.
    pub(in crate::run) broker_cpu: Option<f64>,
    /// How often the metrics were read.
    pub(in crate::run) scrapes: u64,
    /// The share of deliveries that were compressed.
    pub(in crate::run) compressed: f64,
    pub(in crate::run) deliveries: u64,
    pub(in crate::run) messages: u64,
    /// Number of received messages that were compared with those sent.
    pub(in crate::run) compared: u64,
    /// Number of connections, in scenarios that measure connecting.
    pub(in crate::run) connections: u64,
    /// Late joiners, or handshakes, per second.
    pub(in crate::run) joins_per_second: f64,
    /// Resident bytes per idle connection, in scenarios that measure memory.
    pub(in crate::run) resident_per_connection: Option<f64>,
    /// 99th percentile of latency in microseconds while others connect, and before.
    pub(in crate::run) p99: Option<f64>,
    pub(in crate::run) unhindered_p99: Option<f64>,
}

impl Figures {
    /// Returns the figures for the progress line of a round.
    pub(super) fn summary(&self) -> String {
        match (self.resident_per_connection, self.p99) {
            (Some(bytes), _) => format!("{bytes:.1} B"),
            (None, Some(p99)) => format!("p99 {p99:.0} µs"),
            (None, None) if self.connections > 0 => format!("{:.1} µs", self.cpu),
            (None, None) => format!("{:.3} µs {:.1} B", self.cpu, self.bytes),
        }
    }
}

impl ServerReport {
    pub(super) fn new(server: &str) -> Self {
        Self {
            server: server.into(),
            rounds: Vec::new(),
            failure: None,
        }
    }

    fn middle(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        median_by(self.rounds.iter().map(of), |value| *value).unwrap_or(f64::NAN)
    }

    /// The median of the ratios to another server in the same round.
    fn ratio(&self, other: &Self, of: impl Fn(&Figures) -> f64) -> String {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let ratios = pairs.map(|(ours, theirs)| of(ours) / of(theirs));
        let middle = median_by(ratios, |value| *value).unwrap_or(f64::NAN);
        format!("{middle:.3}")
    }

    fn sum(&self, of: impl Fn(&Figures) -> u64) -> String {
        self.rounds.iter().map(of).sum::<u64>().to_string()
    }
}

impl Target {
    /// Judges the result of a scenario; `None` if one of the two servers is missing.
    pub(super) fn verdict(&self, outcome: &ScenarioReport) -> Option<Verdict> {
        let served = |name| outcome.servers.iter().find(|s| s.server == name);
        let (ours, beside) = (served(self.server)?, served(self.beside)?);
        let rounds = || ours.rounds.iter().zip(&beside.rounds);
        let figures: Vec<f64> = match self.bound {
            Bound::Cpu(_) => rounds().map(|(a, b)| a.cpu / b.cpu).collect(),
            Bound::Bytes(_) | Bound::FewerBytes => {
                rounds().map(|(a, b)| a.bytes / b.bytes).collect()
            }
            Bound::ExcessMicros(_) => rounds()
                .map(|(a, b)| a.cpu_per_broadcast - b.cpu_per_broadcast)
                .collect(),
            Bound::ExcessResident(_) => rounds()
                .filter_map(|(a, b)| Some(a.resident_per_connection? - b.resident_per_connection?))
                .collect(),
            Bound::ExcessShare(_, plain) => {
                rounds().map(|(a, b)| (a.bytes - b.bytes) / plain).collect()
            }
            Bound::Resident(_) => rounds()
                .filter_map(|(a, _)| a.resident_per_connection)
                .collect(),
            Bound::Micros(_) => rounds().map(|(a, _)| a.cpu).collect(),
            Bound::Latency(..) => rounds()
                .filter_map(|(a, _)| Some(a.p99? / a.unhindered_p99?))
                .collect(),
        };
        let name = self.beside;
        let (target, limit) = match self.bound {
            Bound::Cpu(most) => (format!("CPU ≤ {most} × {name}"), most),
            Bound::Bytes(most) => (format!("bytes ≤ {most} × {name}"), most),
            Bound::FewerBytes => (format!("bytes < 1 × {name}"), 1.0),
            Bound::ExcessMicros(most) => (format!("≤ {most} µs a broadcast beyond {name}"), most),
            Bound::ExcessResident(most) => (format!("≤ {most} B beyond {name}"), most),
            Bound::ExcessShare(most, _) => (format!("bytes ≤ {most} of plain beyond {name}"), most),
            Bound::Resident(most) => (format!("≤ {most} B"), most),
            Bound::Micros(most) => (format!("≤ {most} µs of CPU"), most),
            Bound::Latency(most, least) => (
                format!("≤ {most} × unhindered, at {least} per second or more"),
                most,
            ),
        };
        Verdict::new(self.what, target, &figures, |figure| match self.bound {
            Bound::FewerBytes => figure < limit,
            Bound::Latency(_, least) => {
                figure <= limit && ours.middle(|f| f.joins_per_second) >= least
            }
            _ => figure <= limit,
        })
    }
}

/// Describes the machine and the method. Call it before servers are started.
pub(super) fn head(
    suite: &Suite,
    setup: &Setup,
    client_cpu: &usize,
    idle_share: f64,
) -> Vec<String> {
    let mut head = vec![
        report::machine_line(idle_share),
        format!(
            "Server on CPU {}, client on CPU {client_cpu}. Rounds: {}{}; server CPU per measurement: {} s in total.",
            setup.server_cpu,
            setup.rounds,
            match suite.scenarios.iter().any(|scenario| scenario.restarts > 1) {
                true => ", or five times as many shorter ones where the feature is unused",
                false => "",
            },
            setup.cpu_seconds
        ),
    ];
    if suite.has_feature && suite.has(ServerVariant::Plain) {
        head.push(format!(
            "The plain servers were built with the feature `{}`, too.",
            suite.feature
        ));
    }
    head.extend(setup.broker.as_ref().and_then(BrokerSetup::description));
    if setup.quick {
        head.push("A quick run: its times mean little.".into());
    }
    head
}

/// Writes `out.json` and `out.md`, inserts the targets between the marks of this name in a page, and prints the complete
/// report.
pub(super) fn write(marks: &str, results: &Report, options: &Options) -> io::Result<()> {
    let text = complete(results);
    if let Some(out) = options.text("out") {
        report::write_files(out, results, &[("md", &text)])?;
    }
    if let Some(path) = options.text("targets") {
        report::insert(path, marks, &targets(results))?;
    }
    print!("{text}");
    Ok(())
}

/// Renders the complete report.
fn complete(report: &Report) -> String {
    let mut text = report.head.join(" ");
    if !report.peers.is_empty() {
        text += &format!(" Peers: {}.", report.peers.join(", "));
    }
    for left_out in &report.left_out {
        text += &format!(" Left out: {left_out}.");
    }
    text += "\n";
    text += &targets(report);
    for scenario in &report.scenarios {
        text += &format!("\n**{}**\n", scenario.title);
        text += &figures(scenario);
    }
    text
}

fn targets(report: &Report) -> String {
    // Three decimals, since the limits of ratios have two.
    let table = markdown::targets(&report.verdicts, short);
    match table.is_empty() {
        true => table,
        false => table + "\n",
    }
}

fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.3}"),
    }
}

/// A column of a scenario's table.
struct Column {
    title: &'static str,
    /// Renders the cell of a server beside the first server.
    cell: fn(&ServerReport, &ServerReport) -> String,
}

const fn column(title: &'static str, cell: fn(&ServerReport, &ServerReport) -> String) -> Column {
    Column { title, cell }
}

fn columns(scenario: &ScenarioReport) -> Vec<Column> {
    match scenario.measurement {
        Measurement::Load => {
            let mut columns = vec![
                column("CPU per delivery, µs", |s, _| short(s.middle(|f| f.cpu))),
                column("×", |s, first| s.ratio(first, |f| f.cpu)),
                column("CPU per message, µs", |s, _| {
                    format!("{:.1}", s.middle(|f| f.cpu_per_broadcast))
                }),
                column("bytes per delivery", |s, _| {
                    format!("{:.1}", s.middle(|f| f.bytes))
                }),
                column("×", |s, first| s.ratio(first, |f| f.bytes)),
            ];
            let mut rounds = scenario.servers.iter().flat_map(|server| &server.rounds);
            if rounds.any(|figures| figures.compressed > 0.0) {
                columns.push(column("compressed", |s, _| {
                    format!("{:.0} %", s.middle(|f| f.compressed) * 100.0)
                }));
            }
            columns.push(column("compared", |s, _| s.sum(|f| f.compared)));
            columns
        }
        Measurement::Idle => vec![column("bytes per connection", |s, _| {
            let bytes = s.middle(|f| f.resident_per_connection.unwrap_or(f64::NAN));
            format!("{bytes:.1}")
        })],
        Measurement::Handshakes => vec![
            column("CPU per connection, µs", |s, _| short(s.middle(|f| f.cpu))),
            column("×", |s, first| s.ratio(first, |f| f.cpu)),
            column("beyond the first, µs", |s, first| {
                let pairs = s.rounds.iter().zip(&first.rounds);
                let excess = median_by(pairs.map(|(a, b)| a.cpu - b.cpu), |value| *value);
                short(excess.unwrap_or(f64::NAN))
            }),
            column("connections", |s, _| s.sum(|f| f.connections)),
        ],
        Measurement::Storm => vec![
            column("p99, µs", |s, _| {
                format!("{:.0}", s.middle(|f| f.p99.unwrap_or(f64::NAN)))
            }),
            column("unhindered p99, µs", |s, _| {
                let p99 = s.middle(|f| f.unhindered_p99.unwrap_or(f64::NAN));
                format!("{p99:.0}")
            }),
            column("×", |s, _| {
                let ratio = |f: &Figures| Some(f.p99? / f.unhindered_p99?);
                format!("{:.2}", s.middle(|f| ratio(f).unwrap_or(f64::NAN)))
            }),
        ],
    }
}

fn figures(scenario: &ScenarioReport) -> String {
    let columns = columns(scenario);
    let titles: String = columns
        .iter()
        .map(|column| format!(" {} |", column.title))
        .collect();
    let mut text = format!("\n| |{titles}\n|---|{}\n", "---|".repeat(columns.len()));
    let Some(first) = scenario.servers.first() else {
        return text;
    };
    for server in &scenario.servers {
        let name = &server.server;
        if let Some(failure) = &server.failure {
            text += &format!("| {name} | failed: {failure} |\n");
            continue;
        }
        let joins = server.middle(|f| f.joins_per_second);
        let joins = match joins > 0.0 {
            true => format!(" ({joins:.0} measured)"),
            false => String::new(),
        };
        let cells = columns.iter().map(|column| (column.cell)(server, first));
        let cells: String = cells.map(|cell| format!(" {cell} |")).collect();
        text += &format!("| {name}{joins} |{cells}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, rounds: &[(f64, f64)]) -> ServerReport {
        let figures = |&(cpu, bytes): &(f64, f64)| Figures {
            cpu,
            cpu_per_broadcast: 1_000.0 * cpu,
            bytes,
            ..Figures::default()
        };
        ServerReport {
            rounds: rounds.iter().map(figures).collect(),
            ..ServerReport::new(name)
        }
    }

    fn judge(bound: Bound) -> Verdict {
        let outcome = ScenarioReport {
            id: "ticks".into(),
            title: "ticks".into(),
            measurement: Measurement::Load,
            servers: vec![
                server("plain", &[(5.0, 106.0), (6.0, 106.0), (7.0, 106.0)]),
                server("ours", &[(5.0, 31.8), (6.3, 31.8), (7.7, 31.8)]),
            ],
        };
        let target = Target {
            what: "ticks",
            server: "ours",
            beside: "plain",
            bound,
        };
        target.verdict(&outcome).unwrap()
    }

    #[test]
    fn median_of_the_rounds_decides_the_verdict() {
        assert!(judge(Bound::Cpu(1.051)).met);
        assert!(!judge(Bound::Cpu(1.04)).met);
        assert!(judge(Bound::Bytes(0.301)).met);
        assert!(!judge(Bound::Bytes(0.299)).met);
        assert!(judge(Bound::FewerBytes).met);
        assert!(judge(Bound::ExcessMicros(301.0)).met);
        assert!(!judge(Bound::ExcessMicros(299.0)).met);
        assert!(judge(Bound::ExcessShare(0.0, 106.0)).met);
    }

    #[test]
    fn absolute_bounds_judge_the_server_alone() {
        let figures = |cpu, p99, resident| Figures {
            cpu,
            connections: 1_000,
            p99: Some(p99),
            unhindered_p99: Some(100.0),
            resident_per_connection: Some(resident),
            joins_per_second: 980.0,
            ..Figures::default()
        };
        let outcome = ScenarioReport {
            id: "tls".into(),
            title: "tls".into(),
            measurement: Measurement::Handshakes,
            servers: vec![ServerReport {
                rounds: vec![
                    figures(140.0, 200.0, 3_900.0),
                    figures(150.0, 300.0, 4_000.0),
                    figures(900.0, 900.0, 9_000.0),
                ],
                ..ServerReport::new("ours")
            }],
        };
        let is_met = |bound| {
            let target = Target {
                what: "tls",
                server: "ours",
                beside: "ours",
                bound,
            };
            target.verdict(&outcome).unwrap().met
        };
        assert!(is_met(Bound::Micros(150.0)) && !is_met(Bound::Micros(149.0)));
        assert!(is_met(Bound::Latency(3.0, 950.0)) && !is_met(Bound::Latency(2.9, 950.0)));
        assert!(!is_met(Bound::Latency(3.0, 990.0)));
        assert!(is_met(Bound::Resident(4_000.0)) && !is_met(Bound::Resident(3_999.0)));
    }

    #[test]
    fn table_rows_have_a_cell_for_each_column() {
        for measurement in [
            Measurement::Load,
            Measurement::Idle,
            Measurement::Handshakes,
            Measurement::Storm,
        ] {
            let outcome = ScenarioReport {
                id: "ticks".into(),
                title: "ticks".into(),
                measurement,
                servers: vec![
                    server("plain", &[(5.0, 106.0)]),
                    server("ours", &[(6.0, 53.0)]),
                ],
            };
            let table = figures(&outcome);
            let mut rows = table.lines().filter(|line| !line.is_empty());
            let cells = |row: &str| row.matches('|').count();
            let header = cells(rows.next().unwrap());
            assert!(rows.all(|row| cells(row) == header), "{table}");
        }
    }

    #[test]
    fn targets_are_shown_with_three_decimals() {
        let report = Report {
            verdicts: vec![judge(Bound::Cpu(1.1))],
            ..Report::default()
        };
        let table = targets(&report);
        assert!(table.contains("| ticks | CPU ≤ 1.1 × plain | **1.050** (1.000–1.100) | yes |"));
        assert!(targets(&Report::default()).is_empty());
    }
}
