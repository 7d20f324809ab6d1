//! The result as Markdown: medians of the rounds, and each round's ratio to its own floor.

use std::fmt::Write as _;
use std::time::Duration;

use super::memory::{Added, Line};
use super::scenario::{Beside, SIZE, Scenario, Target};
use super::server::Kind;
use super::{Measured, Round, Setup};
use crate::machine;

pub(super) struct Report {
    head: String,
    costs: String,
    latencies: String,
    memory: String,
    foreign: Vec<f64>,
    shortest: f64,
}

impl Report {
    /// To be made before anything is started: it records what the machine does by itself.
    pub(super) fn new(setup: &Setup, idle_share: f64) -> Self {
        let mut head = format!(
            "{}; {:.0} % of all CPUs idle beforehand.\n\
             Server on CPU {}, client on CPU {}, messages of {SIZE} bytes, rounds: {}, \
             server CPU per measurement: at least {} s.\n",
            machine::describe(),
            idle_share * 100.0,
            setup.server_cpu,
            setup.client_cpu,
            setup.rounds,
            setup.cpu_seconds
        );
        if setup.self_check {
            head.push_str(
                "A self-check: the floor stands in for humphrey_ws, so every ratio should be 1.\n",
            );
        }
        if let Some(baseline) = &setup.baseline {
            put(
                &mut head,
                format_args!(
                    "In the floor's place stands another build of humphrey_ws, {}; the targets do not apply.",
                    baseline.display()
                ),
            );
        }
        if setup.quick {
            head.push_str(
                "A quick run: the counts are exact, the times are too short to mean much, and there is a tenth of the rooms.\n",
            );
        }
        Self {
            head,
            costs: String::new(),
            latencies: String::new(),
            memory: String::new(),
            foreign: Vec::new(),
            shortest: f64::INFINITY,
        }
    }

    pub(super) fn add(&mut self, setup: &Setup, scenario: &Scenario, rounds: &[Round]) {
        let subject = median_by(rounds.iter().map(|r| r.subject), Measured::total);
        for (index, beside) in scenario.beside.iter().enumerate() {
            let other = median_by(rounds.iter().map(|r| r.beside[index]), Measured::total);
            let ratios: Vec<f64> = rounds.iter().map(|r| r.ratio(index)).collect();
            let (low, ratio, high) = spread(&ratios);
            let (target, met) = aim(setup, beside, rounds, index);
            put(
                &mut self.costs,
                format_args!(
                    "| {} | {} {} | {} | **{ratio:.3}** ({low:.3}–{high:.3}) | {target} | {met} | {} |",
                    scenario.name,
                    setup.name_of(beside),
                    cost(&other),
                    cost(&subject),
                    counts(
                        rounds
                            .iter()
                            .flat_map(|r| [r.beside[index], r.subject])
                            .map(|m| (m.expected, m.received))
                    ),
                ),
            );
            put(
                &mut self.latencies,
                format_args!(
                    "| {} | {} {} | {} |",
                    scenario.name,
                    setup.name_of(beside),
                    latency(rounds.iter().map(|r| &r.beside[index])),
                    latency(rounds.iter().map(|r| &r.subject)),
                ),
            );
        }
        for measured in rounds.iter().flat_map(Round::all) {
            self.foreign.push(measured.foreign);
            self.shortest = self.shortest.min(measured.cpu_seconds);
        }
    }

    pub(super) fn add_memory(&mut self, lines: &[Line]) {
        for Line {
            name,
            server,
            rounds,
            target,
        } in lines
        {
            let added = median_by(rounds.iter().copied(), Added::each);
            let (low, bytes, high) = spread(&rounds.iter().map(Added::each).collect::<Vec<_>>());
            let (target, met) = match target {
                Some(target) => (format!("≤ {target}"), yes_or_no(bytes <= *target)),
                None => ("–".into(), "–"),
            };
            put(
                &mut self.memory,
                format_args!(
                    "| {name} | {server} | {} KiB | {} KiB | **{bytes:.0}** ({low:.0}–{high:.0}) | {target} | {met} | {} |",
                    added.base / 1024,
                    added.full / 1024,
                    counts(rounds.iter().map(|added| (added.expected, added.received))),
                ),
            );
        }
    }

    pub(super) fn finish(mut self) -> String {
        let mut text = std::mem::take(&mut self.head);
        if !self.foreign.is_empty() {
            let (_, foreign, most) = spread(&self.foreign);
            put(
                &mut text,
                format_args!(
                    "Others used {:.1} % of all CPUs during the measurements (median; at most {:.1} %); the shortest \
                     took {:.2} s of the server's CPU.",
                    foreign * 100.0,
                    most * 100.0,
                    self.shortest
                ),
            );
        }
        for (title, rows) in [(COSTS, &self.costs), (LATENCIES, &self.latencies)] {
            if !rows.is_empty() {
                text.push_str(title);
                text.push_str(rows);
            }
        }
        if !self.memory.is_empty() {
            text.push_str(MEMORY);
            text.push_str(&self.memory);
        }
        text
    }
}

const COSTS: &str = "\n\
    | scenario | beside: µs/delivery (user + system) | humphrey_ws µs/delivery (user + system) \
    | ratio, median (min–max) | target | met | deliveries expected = received |\n\
    |---|---|---|---|---|---|---|\n";

const LATENCIES: &str = "\n\
    | latency p50 / p99 / max | beside | humphrey_ws |\n\
    |---|---|---|\n";

const MEMORY: &str = "\n\
    | scenario | server | resident before | after | bytes each \
    | target | met | echoes expected = received |\n\
    |---|---|---|---|---|---|---|---|\n";

/// What is aimed at, and whether it is reached.
fn aim(setup: &Setup, beside: &Beside, rounds: &[Round], index: usize) -> (String, &'static str) {
    let applies = setup.baseline.is_none() || beside.kind != Kind::Floor;
    match beside.target {
        Target::Ratio(target) if applies => {
            let ratios: Vec<f64> = rounds.iter().map(|r| r.ratio(index)).collect();
            let (_, ratio, _) = spread(&ratios);
            (format!("≤ {target}"), yes_or_no(ratio <= target))
        }
        Target::RatioAndExcess(ratio, micros) if applies => {
            // What a broadcast costs beyond the ratio, for all who get it.
            let members = beside.work.members();
            let over = |r: &Round| r.subject.total() - ratio * r.beside[index].total();
            let excess: Vec<f64> = rounds.iter().map(|r| over(r) * members).collect();
            let (low, excess, high) = spread(&excess);
            (
                format!(
                    "≤ {ratio} and {micros} µs a broadcast; it was {excess:.1} ({low:.1}–{high:.1})"
                ),
                yes_or_no(excess <= micros),
            )
        }
        _ => ("–".into(), "–"),
    }
}

fn yes_or_no(met: bool) -> &'static str {
    if met { "yes" } else { "no" }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn cost(measured: &Measured) -> String {
    format!(
        "{:.3} ({:.3} + {:.3})",
        measured.total(),
        measured.user,
        measured.system
    )
}

/// Medians of the rounds' medians and 99th percentiles, and the worst of all.
fn latency<'a>(rounds: impl Iterator<Item = &'a Measured>) -> String {
    let all: Vec<_> = rounds.map(|m| m.latency).collect();
    let middle = |of: fn(&crate::histogram::Summary) -> Duration| {
        median_by(all.iter().map(of), |d| d.as_secs_f64())
    };
    let max = all.iter().map(|s| s.max).max().unwrap_or_default();
    format!(
        "{} / {} / {}",
        short(middle(|s| s.p50)),
        short(middle(|s| s.p99)),
        short(max)
    )
}

fn short(duration: Duration) -> String {
    match duration.as_secs_f64() * 1e6 {
        micros if micros < 1_000.0 => format!("{micros:.0} µs"),
        micros => format!("{:.1} ms", micros / 1_000.0),
    }
}

/// The sums. A run in which they differ ends with an error before it comes to a report.
fn counts(all: impl Iterator<Item = (u64, u64)>) -> String {
    let (expected, received) = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let sign = if expected == received { "=" } else { "≠" };
    format!("{} {sign} {}", thousands(expected), thousands(received))
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The item in the middle; of an even number, the lower one of the two.
fn median_by<T: Copy + Default>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> f64) -> T {
    let mut items: Vec<T> = items.collect();
    items.sort_by(|a, b| key(a).total_cmp(&key(b)));
    items
        .get(items.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or_default()
}

/// Least, median, most.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (least, median_by(values.iter().copied(), |v| *v), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(median_by([4.0, 1.0].into_iter(), |v| *v), 1.0);
        assert_eq!(median_by(std::iter::empty::<f64>(), |v| *v), 0.0);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(short(Duration::from_micros(250)), "250 µs");
        assert_eq!(short(Duration::from_micros(2_500)), "2.5 ms");
        assert_eq!(counts([(1, 1), (2, 1)].into_iter()), "3 ≠ 2");
    }
}
