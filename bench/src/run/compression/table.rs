//! The figures of the command `compression` as JSON and as Markdown, and whether they meet the targets.

use std::io;

use serde::{Deserialize, Serialize};

use super::Setup;
use super::catalog::{Bound, Target};
use crate::args::Options;
use crate::run::results::{Verdict, median_by};
use crate::run::{markdown, report};

/// The name of the marks around the table of targets in a page.
const MARKS: &str = "compression";

/// The results of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// The machine and the method.
    pub(super) head: Vec<String>,
    pub(super) peers: Vec<String>,
    pub(super) left_out: Vec<String>,
    pub(super) scenarios: Vec<ScenarioReport>,
    pub(super) verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScenarioReport {
    pub(super) id: String,
    pub(super) title: String,
    /// The servers. All others are compared with the first.
    pub(super) servers: Vec<ServerReport>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerReport {
    pub(super) server: String,
    pub(super) rounds: Vec<Figures>,
    /// Why rounds are missing.
    pub(super) failure: Option<String>,
}

/// One server's figures in one round.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Microseconds of the server's CPU time, user and system, per delivery and per message sent.
    pub(super) cpu: f64,
    pub(super) cpu_per_broadcast: f64,
    /// WebSocket bytes per delivery: payloads and frame headers, without the headers of TCP and IP.
    pub(super) bytes: f64,
    /// The share of deliveries that were compressed.
    pub(super) compressed: f64,
    pub(super) deliveries: u64,
    pub(super) messages: u64,
    /// Number of received messages that were compared with those sent.
    pub(super) compared: u64,
    pub(super) joins_per_second: f64,
    /// Resident bytes per idle connection, in scenarios that measure memory.
    pub(super) resident_per_connection: Option<f64>,
}

impl Figures {
    /// Returns the figures for the progress line of a round.
    pub(super) fn summary(&self) -> String {
        match self.resident_per_connection {
            Some(bytes) => format!("{bytes:.1} B"),
            None => format!("{:.3} µs {:.1} B", self.cpu, self.bytes),
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
        };
        let name = self.beside;
        let (target, limit) = match self.bound {
            Bound::Cpu(most) => (format!("CPU ≤ {most} × {name}"), most),
            Bound::Bytes(most) => (format!("bytes ≤ {most} × {name}"), most),
            Bound::FewerBytes => (format!("bytes < 1 × {name}"), 1.0),
            Bound::ExcessMicros(most) => (format!("≤ {most} µs a broadcast beyond {name}"), most),
            Bound::ExcessResident(most) => (format!("≤ {most} B beyond {name}"), most),
            Bound::ExcessShare(most, _) => (format!("bytes ≤ {most} of plain beyond {name}"), most),
        };
        Verdict::new(self.what, target, &figures, |figure| match self.bound {
            Bound::FewerBytes => figure < limit,
            _ => figure <= limit,
        })
    }
}

/// Describes the machine and the method. Call it before servers are started.
pub(super) fn head(setup: &Setup, client_cpu: &usize, idle_share: f64) -> Vec<String> {
    let mut head = vec![
        report::machine_line(idle_share),
        format!(
            "Server on CPU {}, client on CPU {client_cpu}. Rounds: {}, or five times as many shorter ones if clients do not \
             offer compression; server CPU per measurement: {} s in total.",
            setup.server_cpu, setup.rounds, setup.cpu_seconds
        ),
    ];
    if cfg!(feature = "deflate") {
        head.push(
            "The servers without compression were built with the feature `deflate`, too.".into(),
        );
    }
    if setup.quick {
        head.push("A quick run: its times mean little.".into());
    }
    head
}

/// Writes `out.json` and `out.md`, inserts the targets into a page, and prints the complete report.
pub(super) fn write(results: &Report, options: &Options) -> io::Result<()> {
    let text = complete(results);
    if let Some(out) = options.text("out") {
        report::write_files(out, results, &[("md", &text)])?;
    }
    if let Some(path) = options.text("targets") {
        report::insert(path, MARKS, &targets(results))?;
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

fn figures(scenario: &ScenarioReport) -> String {
    let is_idle = scenario.servers.iter().flat_map(|s| &s.rounds);
    let is_idle = is_idle.clone().any(|f| f.resident_per_connection.is_some());
    let mut text = match is_idle {
        true => String::from("\n| | bytes per connection |\n|---|---|\n"),
        false => String::from(
            "\n| | CPU per delivery, µs | × | CPU per message, µs | bytes per delivery | × | compressed | compared |\n\
             |---|---|---|---|---|---|---|---|\n",
        ),
    };
    let Some(first) = scenario.servers.first() else {
        return text;
    };
    for server in &scenario.servers {
        let name = &server.server;
        if let Some(failure) = &server.failure {
            text += &format!("| {name} | failed: {failure} |\n");
            continue;
        }
        if is_idle {
            let bytes = server.middle(|f| f.resident_per_connection.unwrap_or(f64::NAN));
            text += &format!("| {name} | {bytes:.1} |\n");
            continue;
        }
        let ratio = |of: fn(&Figures) -> f64| {
            let pairs = server.rounds.iter().zip(&first.rounds);
            let ratios = pairs.map(|(a, b)| of(a) / of(b));
            median_by(ratios, |value| *value).unwrap_or(f64::NAN)
        };
        let joins = server.middle(|f| f.joins_per_second);
        let joins = match joins > 0.0 {
            true => format!(" ({joins:.0} measured)"),
            false => String::new(),
        };
        text += &format!(
            "| {name}{joins} | {} | {:.3} | {:.1} | {:.1} | {:.3} | {:.0} % | {} |\n",
            short(server.middle(|f| f.cpu)),
            ratio(|f| f.cpu),
            server.middle(|f| f.cpu_per_broadcast),
            server.middle(|f| f.bytes),
            ratio(|f| f.bytes),
            server.middle(|f| f.compressed) * 100.0,
            server.rounds.iter().map(|f| f.compared).sum::<u64>(),
        );
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
