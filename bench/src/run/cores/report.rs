//! The figures of `bench cores` as JSON and as Markdown.

use std::io;

use serde::{Deserialize, Serialize};

use crate::args::Options;
use crate::run::figures::median_and_range;
use crate::run::markdown::{number, put};
use crate::run::report;

/// The results of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CoresReport {
    /// The machine and the method.
    pub(super) head: Vec<String>,
    /// Whether server and clients shared CPUs, so that the figures mean nothing.
    pub(super) meaningless: bool,
    pub(super) scenarios: Vec<ScaledScenario>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScaledScenario {
    pub(super) title: String,
    /// The first has one shard.
    pub(super) servers: Vec<ScaledServer>,
}

/// The rounds of a server with this number of shards, and as many CPUs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScaledServer {
    pub(super) shards: usize,
    pub(super) rounds: Vec<ScaledSample>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct ScaledSample {
    /// Deliveries per second, by the wall clock, of all clients together.
    pub(super) rate: f64,
    /// Microseconds of the server's CPU time per delivery.
    pub(super) cpu: f64,
    /// The share of its CPUs that the server used.
    pub(super) busy: f64,
}

/// The share of the ideal rate: `shards` times that of one shard.
pub(super) fn efficiency(rate: f64, shards: usize, rate_of_one: f64) -> f64 {
    rate / (shards as f64 * rate_of_one)
}

impl ScaledServer {
    /// The efficiency in each round, beside the server with one shard.
    fn efficiencies(&self, one: &Self) -> Vec<f64> {
        let pairs = self.rounds.iter().zip(&one.rounds);
        pairs
            .map(|(ours, one)| efficiency(ours.rate, self.shards, one.rate))
            .collect()
    }

    fn each(&self, of: fn(&ScaledSample) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }
}

/// Writes `out.json` and `out.md`, and prints the report.
pub(super) fn write(report: &CoresReport, options: &Options) -> io::Result<()> {
    let text = complete(report);
    if let Some(out) = options.text("out") {
        report::write_files(out, report, &[("md", &text)])?;
    }
    print!("{text}");
    Ok(())
}

fn complete(report: &CoresReport) -> String {
    let mut text = report.head.join(" ") + "\n";
    for scenario in &report.scenarios {
        put(&mut text, format_args!("\n**{}**\n", scenario.title));
        text += "| shards | deliveries per second | efficiency | server's CPU per delivery, µs | server's CPUs used, % |\n";
        text += "|---|---|---|---|---|\n";
        let Some(one) = scenario.servers.first() else {
            continue;
        };
        for server in &scenario.servers {
            // In each line, since lines are copied without the head.
            let mark = match report.meaningless {
                true => " (meaningless: shared CPUs)",
                false => "",
            };
            put(
                &mut text,
                format_args!(
                    "| {}{mark} | {} | {} | {} | {} |",
                    server.shards,
                    cell(&server.each(|sample| sample.rate)),
                    cell(&server.efficiencies(one)),
                    cell(&server.each(|sample| sample.cpu)),
                    cell(&server.each(|sample| sample.busy * 100.0)),
                ),
            );
        }
    }
    text
}

fn cell(rounds: &[f64]) -> String {
    median_and_range(rounds, number).unwrap_or("–".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(shards: usize, rates: &[f64]) -> ScaledServer {
        let sample = |&rate| ScaledSample {
            rate,
            cpu: 2.0,
            busy: 0.97,
        };
        ScaledServer {
            shards,
            rounds: rates.iter().map(sample).collect(),
        }
    }

    fn report(meaningless: bool) -> CoresReport {
        CoresReport {
            head: vec!["A machine.".into()],
            meaningless,
            scenarios: vec![ScaledScenario {
                title: "echo".into(),
                servers: vec![
                    server(1, &[100_000.0, 200_000.0, 100_000.0]),
                    server(4, &[300_000.0, 400_000.0, 400_000.0]),
                ],
            }],
        }
    }

    #[test]
    fn efficiency_is_one_if_each_shard_adds_as_much_as_the_first() {
        assert!((efficiency(800.0, 8, 100.0) - 1.0).abs() < 1e-9);
        assert!((efficiency(300.0, 4, 100.0) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn efficiency_compares_the_same_round() {
        let text = complete(&report(false));
        assert!(
            text.contains("| 4 | 400,000 (300,000–400,000) | 0.750 (0.500–1.00) | 2.00 | 97.0 |"),
            "{text}"
        );
        assert!(!text.contains("meaningless"), "{text}");
    }

    #[test]
    fn every_line_of_shared_cpus_is_marked_as_meaningless() {
        let text = complete(&report(true));
        let mut lines = text.lines().filter(|line| line.contains(",000"));
        assert!(lines.all(|line| line.contains("meaningless")), "{text}");
    }
}
