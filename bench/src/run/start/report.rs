//! The figures of `bench start` as JSON and as Markdown.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::args::Options;
use crate::run::figures::{median_and_range, number};
use crate::run::markdown::put;
use crate::run::report;

/// The results of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StartReport {
    /// The machine and the method.
    pub(super) head: Vec<String>,
    pub(super) servers: Vec<ServerFigures>,
}

/// The rounds of one server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerFigures {
    pub(super) server: String,
    pub(super) cold: Vec<ColdSample>,
    pub(super) storms: Vec<StormSample>,
    /// Why rounds are missing.
    pub(super) failure: Option<String>,
}

/// A cold start; times are in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct ColdSample {
    /// From the start of the process until the first client, and the last, had its response.
    pub(super) first: f64,
    pub(super) last: f64,
    /// CPU time of the server.
    pub(super) cpu: f64,
    /// How often the kernel dropped a connection because the server's queue was full.
    pub(super) dropped: u64,
}

/// A reconnect storm; times are in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StormSample {
    /// From its begin until the last client had its response.
    pub(super) took: f64,
    /// CPU time of the server, including the echoes.
    pub(super) cpu: f64,
    pub(super) dropped: u64,
    /// Number of echoes during the storm, and the latency of those before and during it.
    pub(super) echoes: u64,
    pub(super) p99_before: f64,
    pub(super) max_before: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl ServerFigures {
    pub(super) fn new(server: String) -> Self {
        Self {
            server,
            cold: Vec::new(),
            storms: Vec::new(),
            failure: None,
        }
    }
}

impl fmt::Display for ColdSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cold {:.1} ms, {:.1} ms", self.first, self.last)
    }
}

impl fmt::Display for StormSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            took,
            p99,
            p99_before,
            ..
        } = self;
        write!(
            f,
            "storm {took:.1} ms, p99 {p99:.2} ms, before {p99_before:.2} ms"
        )
    }
}

/// How a figure is read from the rounds of a server.
type Reading = fn(&ServerFigures) -> Vec<f64>;

const COLD: [(&str, Reading); 4] = [
    ("first client connected, ms", |s| each(&s.cold, |c| c.first)),
    ("last client connected, ms", |s| each(&s.cold, |c| c.last)),
    ("CPU time of the server, ms", |s| each(&s.cold, |c| c.cpu)),
    ("dropped since the queue was full", |s| {
        each(&s.cold, |c| c.dropped as f64)
    }),
];

const STORM: [(&str, Reading); 10] = [
    ("last client connected, ms", |s| each(&s.storms, |c| c.took)),
    ("CPU time of the server, ms", |s| each(&s.storms, |c| c.cpu)),
    ("dropped since the queue was full", |s| {
        each(&s.storms, |c| c.dropped as f64)
    }),
    ("echoes during the storm", |s| {
        each(&s.storms, |c| c.echoes as f64)
    }),
    ("p99 of an echo before, ms", |s| {
        each(&s.storms, |c| c.p99_before)
    }),
    ("longest echo before, ms", |s| {
        each(&s.storms, |c| c.max_before)
    }),
    ("p50 of an echo during the storm, ms", |s| {
        each(&s.storms, |c| c.p50)
    }),
    ("**p99 of an echo during the storm**, ms", |s| {
        each(&s.storms, |c| c.p99)
    }),
    ("longest echo during the storm, ms", |s| {
        each(&s.storms, |c| c.max)
    }),
    ("p99 during the storm ÷ before", |s| {
        each(&s.storms, |c| c.p99 / c.p99_before)
    }),
];

fn each<T>(samples: &[T], of: fn(&T) -> f64) -> Vec<f64> {
    samples.iter().map(of).collect()
}

/// Writes `out.json` and `out.md`, and prints the report.
pub(super) fn write(report: &StartReport, options: &Options) -> io::Result<()> {
    let text = complete(report);
    if let Some(out) = options.text("out") {
        report::write_files(out, report, &[("md", &text)])?;
    }
    print!("{text}");
    Ok(())
}

fn complete(report: &StartReport) -> String {
    let mut text = report.head.join(" ") + "\n";
    for server in &report.servers {
        if let Some(failure) = &server.failure {
            put(
                &mut text,
                format_args!("\n{} failed: {failure}", server.server),
            );
        }
    }
    text += &table(
        "cold start, from the start of the process",
        &COLD,
        &report.servers,
    );
    text += &table("storm", &STORM, &report.servers);
    text
}

/// A table with a row for each figure, and a column for each server: the median of the rounds, and their range.
fn table(title: &str, rows: &[(&str, Reading)], servers: &[ServerFigures]) -> String {
    let names: String = servers.iter().map(|s| format!(" {} |", s.server)).collect();
    let mut text = format!(
        "\n| {title} |{names}\n|---|{}\n",
        "---|".repeat(servers.len())
    );
    for (what, of) in rows {
        let cells = servers
            .iter()
            .map(|server| format!(" {} |", cell(&of(server))));
        let cells: String = cells.collect();
        put(&mut text, format_args!("| {what} |{cells}"));
    }
    text
}

fn cell(rounds: &[f64]) -> String {
    let figure = |value: f64| match value.fract() == 0.0 && value < 1_000.0 {
        true => format!("{value:.0}"),
        false => number(value),
    };
    median_and_range(rounds, figure).unwrap_or_else(|| "failed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_medians_and_a_failed_server() {
        let cold = |first| ColdSample {
            first,
            last: 300.0,
            cpu: 200.0,
            dropped: 0,
        };
        let mut ours = ServerFigures::new("humphrey_ws".into());
        ours.cold = vec![cold(3.5), cold(1.25), cold(2.5)];
        let mut other = ServerFigures::new("other".into());
        other.failure = Some("it ended".into());
        let report = StartReport {
            head: vec!["A machine.".into()],
            servers: vec![ours, other],
        };
        let text = complete(&report);
        for line in [
            "other failed: it ended",
            "| first client connected, ms | 2.50 (1.25–3.50) | failed |",
            "| dropped since the queue was full | 0 | failed |",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
