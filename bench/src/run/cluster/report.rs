//! The figures of `bench cluster` as JSON and as Markdown, and whether they meet the targets.

use std::io;

use serde::{Deserialize, Serialize};

use super::scenarios::{Bound, FigureSpec, Scenario};
use crate::args::Options;
use crate::run::figures::{self, FigureReport, number};
use crate::run::results::Verdict;
use crate::run::{markdown, report};

/// The results of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ClusterReport {
    /// The machine and the method.
    pub(super) head: Vec<String>,
    pub(super) scenarios: Vec<ScenarioReport>,
    pub(super) verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScenarioReport {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) figures: Vec<FigureReport>,
    /// Why the scenario could not be measured.
    pub(super) failure: Option<String>,
}

impl ScenarioReport {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let figures = scenario.figures.iter().map(|spec| FigureReport {
            what: spec.what.into(),
            unit: spec.unit.into(),
            target: spec.target(),
            rounds: Vec::new(),
        });
        Self {
            id: scenario.id.into(),
            title: scenario.title.into(),
            figures: figures.collect(),
            failure: None,
        }
    }

    /// Adds the values of a round, and returns them for the progress line.
    pub(super) fn add(&mut self, values: &[f64]) -> String {
        let mut line = String::new();
        for (figure, value) in self.figures.iter_mut().zip(values) {
            figure.rounds.push(*value);
            line += &format!(" {}: {} {};", figure.what, number(*value), figure.unit);
        }
        line.trim_end_matches(';').into()
    }

    pub(super) fn verdicts(&self, scenario: &Scenario) -> Vec<Verdict> {
        let pairs = self.figures.iter().zip(scenario.figures);
        let verdicts = pairs.filter_map(|(figure, spec)| {
            let target = figure.target.clone()?;
            Verdict::new(&figure.what, target, &figure.rounds, |value| {
                spec.bound.is_some_and(|bound| bound.is_met(value))
            })
        });
        verdicts.collect()
    }
}

impl FigureSpec {
    fn target(&self) -> Option<String> {
        let (sign, limit) = match self.bound? {
            Bound::AtMost(most) => ("≤", most),
            Bound::AtLeast(least) => ("≥", least),
        };
        let limit = match limit < 1_000.0 {
            true => limit.to_string(),
            false => markdown::number(limit),
        };
        Some(format!("{sign} {limit} {}", self.unit))
    }
}

/// Writes `out.json` and `out.md`, inserts the tables into a page, and prints the complete report.
pub(super) fn write(results: &ClusterReport, options: &Options) -> io::Result<()> {
    let tables = tables(results);
    let text = results.head.join(" ") + "\n" + &tables;
    if let Some(out) = options.text("out") {
        report::write_files(out, results, &[("md", &text)])?;
    }
    if let Some(path) = options.text("targets") {
        report::insert(path, "cluster", &tables)?;
    }
    print!("{text}");
    Ok(())
}

/// Renders the targets, the figures without a target, and what could not be measured.
fn tables(results: &ClusterReport) -> String {
    let mut text = markdown::targets(&results.verdicts, number);
    let scenarios = || results.scenarios.iter();
    let failures = scenarios().filter_map(|scenario| Some((scenario, scenario.failure.as_ref()?)));
    for (scenario, failure) in failures {
        text += &format!("\n{} could not be measured: {failure}.\n", scenario.title);
    }
    let figures = scenarios().flat_map(|scenario| &scenario.figures);
    text += &figures::table(figures.filter(|figure| figure.target.is_none()));
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::cluster::scenarios;

    fn report_of(id: &str, rounds: &[&[f64]]) -> ClusterReport {
        let scenario = scenarios::ALL.iter().find(|s| s.id == id).unwrap();
        let mut outcome = ScenarioReport::new(scenario);
        for values in rounds {
            outcome.add(values);
        }
        ClusterReport {
            verdicts: outcome.verdicts(scenario),
            scenarios: vec![outcome],
            ..ClusterReport::default()
        }
    }

    #[test]
    fn median_round_is_judged_and_shown() {
        let rounds: &[&[f64]] = &[&[149_999.0, 2.0], &[150_000.0, 1.0], &[200_000.0, 3.0]];
        let text = tables(&report_of("publishes", rounds));
        let target = "| Publishes | ≥ 150,000 per second | **150,000** (149,999–200,000) | yes |";
        assert!(text.contains(target), "{text}");
        assert!(text.contains("| Broker, for a publish | 2.00 (1.00–3.00) | µs of CPU |"));
        let text = tables(&report_of("shares", &[&[0.131, 5.0, 0.6]]));
        assert!(
            text.contains("| ≤ 0.13 × one with all | **0.131** | no |"),
            "{text}"
        );
    }

    #[test]
    fn unmeasured_scenario_is_named_with_its_reason() {
        let mut report = report_of("appends", &[]);
        report.scenarios[0].failure = Some("the node refused to start".into());
        let text = tables(&report);
        assert!(
            text.contains("could not be measured: the node refused"),
            "{text}"
        );
        assert!(report.verdicts.is_empty());
    }
}
