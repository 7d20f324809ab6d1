//! Renders results as Markdown: the complete report, the table of peers in the README, the internal targets.

use std::fmt::Write as _;

use super::results::{Results, ScenarioResult, ServerResult, Unit, Verdict, spread};

/// Inserts a table between the marks `NAME: begin` and `NAME: end` of a page; `None` if one of them is missing.
pub(super) fn into_page(page: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{table}{end}{after}"))
}

/// The scenarios of the README's table, with short titles, which the text above the table explains.
const README_SCENARIOS: [(&str, &str); 4] = [
    ("fan-out-1000-w1", "fan-out, µs"),
    ("fan-out-1000-w16", "batched, µs"),
    ("echo-100-w1", "echo, µs"),
    ("idle-5000", "idle, bytes"),
];

/// The README's table: humphrey_ws, the floor and all peers in a few scenarios.
pub(super) fn peers(results: &Results) -> String {
    let columns: Vec<(&ScenarioResult, &str)> = README_SCENARIOS
        .iter()
        .filter_map(|(id, title)| {
            let outcome = results.outcomes.iter().find(|outcome| outcome.id == *id)?;
            Some((outcome, *title))
        })
        .collect();
    let mut text = String::new();
    if !columns.is_empty() {
        let titles: Vec<&str> = columns.iter().map(|(_, title)| *title).collect();
        put(
            &mut text,
            format_args!("\n| server | {} |", titles.join(" | ")),
        );
        put(
            &mut text,
            format_args!("|---|{}", "---|".repeat(titles.len())),
        );
        for name in readme_servers(&columns) {
            let cells: Vec<String> = columns
                .iter()
                .map(|(outcome, _)| cell(outcome, name))
                .collect();
            put(
                &mut text,
                format_args!("| {name} | {} |", cells.join(" | ")),
            );
        }
        text.push('\n');
    }
    text.push_str(&notes(results));
    text
}

/// The servers of the README's table, in order: variants of the floor and of humphrey_ws are left to the complete report.
fn readme_servers<'a>(columns: &[(&'a ScenarioResult, &str)]) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for served in columns.iter().flat_map(|(outcome, _)| &outcome.servers) {
        let is_shown = served.is_peer || ["floor", "humphrey_ws"].contains(&served.server.as_str());
        if is_shown && !names.contains(&served.server.as_str()) {
            names.push(&served.server);
        }
    }
    names
}

/// The internal targets, met or missed, and all scenarios with peers.
pub(super) fn targets_page(results: &Results) -> String {
    let mut text = targets(&results.verdicts, number);
    text.push_str(&side_by_side(results));
    text
}

/// The complete report.
pub(super) fn long(results: &Results) -> String {
    let mut text = notes(results);
    text.push_str(&targets(&results.verdicts, number));
    text.push_str(&side_by_side(results));
    text.push_str(&figures(&results.outcomes));
    text.push_str(&latencies(&results.outcomes));
    text.push_str(&memory(&results.outcomes));
    text
}

pub(super) fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

fn notes(results: &Results) -> String {
    let mut text = String::new();
    for line in &results.head {
        put(&mut text, format_args!("{line}"));
    }
    if !results.peers.is_empty() {
        put(
            &mut text,
            format_args!("Peers: {}.", results.peers.join(", ")),
        );
    }
    for peer in &results.left_out {
        put(&mut text, format_args!("Left out: {peer}."));
    }
    text
}

/// The table of the targets, whose figures `number` renders.
pub(super) fn targets(verdicts: &[Verdict], number: fn(f64) -> String) -> String {
    let mut text = String::new();
    if verdicts.is_empty() {
        return text;
    }
    text.push_str("\n| scenario | target | median (min–max) | met |\n|---|---|---|---|\n");
    for verdict in verdicts {
        let Verdict {
            what,
            target,
            figure,
            least,
            most,
            met,
        } = verdict;
        let range = match least == most {
            true => String::new(),
            false => format!(" ({}–{})", number(*least), number(*most)),
        };
        let met = if *met { "yes" } else { "no" };
        put(
            &mut text,
            format_args!(
                "| {what} | {target} | **{}**{range} | {met} |",
                number(*figure)
            ),
        );
    }
    text
}

/// The scenarios that peers took part in, one column for each server.
fn side_by_side(results: &Results) -> String {
    let with_peers =
        |outcome: &&ScenarioResult| outcome.servers.iter().any(|served| served.is_peer);
    let outcomes: Vec<&ScenarioResult> = results.outcomes.iter().filter(with_peers).collect();
    let mut names: Vec<&str> = Vec::new();
    for served in outcomes.iter().flat_map(|outcome| &outcome.servers) {
        if !names.contains(&served.server.as_str()) {
            names.push(&served.server);
        }
    }
    let mut text = String::new();
    if outcomes.is_empty() {
        return text;
    }
    // One line per server, since a page is too narrow for one column each.
    let titles: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome.unit {
            Unit::CpuPerDelivery => outcome.title.clone(),
            unit => format!("{}: {}", outcome.title, unit.text()),
        })
        .collect();
    text.push_str("\nMicroseconds of the server's CPU time per delivery, unless a unit is given, and the ratio to the first server.\n");
    put(&mut text, format_args!("\n| | {} |", titles.join(" | ")));
    put(
        &mut text,
        format_args!("|---|{}", "---|".repeat(titles.len())),
    );
    for name in names {
        let cells: Vec<String> = outcomes.iter().map(|outcome| cell(outcome, name)).collect();
        put(
            &mut text,
            format_args!("| {name} | {} |", cells.join(" | ")),
        );
    }
    text
}

/// A server's median, and its ratio to the first server's.
fn cell(outcome: &ScenarioResult, name: &str) -> String {
    let Some(served) = outcome.served(name) else {
        return "–".into();
    };
    if served.failure.is_some() {
        return "failed".into();
    }
    let Some(sample) = served.median() else {
        return "–".into();
    };
    let value = match outcome.unit {
        Unit::Percentile99 | Unit::Percentile999 | Unit::Median => short_time(sample.value),
        _ => number(sample.value),
    };
    let is_cost = matches!(outcome.unit, Unit::CpuPerDelivery | Unit::CpuPerConnection);
    match outcome.servers.first() {
        Some(first) if first.server != name && is_cost => {
            let ratio = spread(&served.ratios(first, |sample| sample.value));
            format!("{value} ({} ×)", number(ratio.map_or(f64::NAN, |r| r.1)))
        }
        _ => value,
    }
}

fn figures(outcomes: &[ScenarioResult]) -> String {
    let mut text = String::from(
        "\n| scenario | server | figure | user + system | ratio to the first (min–max) | deliveries expected = received |\n\
         |---|---|---|---|---|---|\n",
    );
    for (outcome, served) in each(outcomes) {
        let Some(sample) = served.median() else {
            let failure = served.failure.as_deref().unwrap_or("not measured");
            put(
                &mut text,
                format_args!(
                    "| {} | {} | {failure} | | | |",
                    outcome.title, served.server
                ),
            );
            continue;
        };
        let parts = match sample.user + sample.system > 0.0 {
            true => format!("{:.3} + {:.3}", sample.user, sample.system),
            false => String::new(),
        };
        let ratio = match outcome.servers.first() {
            Some(first) if first.server != served.server => {
                let ratios = served.ratios(first, |sample| sample.value);
                let (least, middle, most) = spread(&ratios).unwrap_or_default();
                format!("**{middle:.3}** ({least:.3}–{most:.3})")
            }
            _ => String::new(),
        };
        let mut notes = counts(served);
        if let Some(visits) = sample.visits {
            let _ = write!(notes, ", {visits:.0} visits each second");
        }
        if let Some(failure) = &served.failure {
            let _ = write!(notes, ", then: {failure}");
        }
        put(
            &mut text,
            format_args!(
                "| {} | {} | {} {} | {parts} | {ratio} | {notes} |",
                outcome.title,
                served.server,
                number(sample.value),
                outcome.unit.text(),
            ),
        );
    }
    text
}

fn latencies(outcomes: &[ScenarioResult]) -> String {
    let mut text = String::from(
        "\n| latency | server | p50 | p99 | max | p99, unhindered |\n|---|---|---|---|---|---|\n",
    );
    let mut any = false;
    for (outcome, served) in each(outcomes) {
        let max = served.rounds.iter().map(|s| s.max).fold(0.0, f64::max);
        if max == 0.0 {
            continue;
        }
        any = true;
        let unhindered = match served.rounds.iter().any(|s| s.unhindered_p99.is_some()) {
            true => short_time(served.middle(|s| s.unhindered_p99.unwrap_or(0.0))),
            false => String::new(),
        };
        put(
            &mut text,
            format_args!(
                "| {} | {} | {} | {} | {} | {unhindered} |",
                outcome.title,
                served.server,
                short_time(served.middle(|s| s.p50)),
                short_time(served.middle(|s| s.p99)),
                short_time(max),
            ),
        );
    }
    if any { text } else { String::new() }
}

fn memory(outcomes: &[ScenarioResult]) -> String {
    let mut text = String::new();
    for (outcome, served) in each(outcomes) {
        let Some(Some(resident)) = served.median().map(|sample| sample.resident) else {
            continue;
        };
        if text.is_empty() {
            text.push_str("\n| memory | server | resident at the end | wake-ups per second |\n|---|---|---|---|\n");
        }
        let wake_ups = match served.rounds.iter().any(|s| s.wake_ups.is_some()) {
            true => format!("{:.1}", served.middle(|s| s.wake_ups.unwrap_or(0.0))),
            false => String::new(),
        };
        put(
            &mut text,
            format_args!(
                "| {} | {} | {:.1} MiB | {wake_ups} |",
                outcome.title,
                served.server,
                resident as f64 / 1_048_576.0
            ),
        );
    }
    text
}

fn each(outcomes: &[ScenarioResult]) -> impl Iterator<Item = (&ScenarioResult, &ServerResult)> {
    outcomes
        .iter()
        .flat_map(|outcome| outcome.servers.iter().map(move |served| (outcome, served)))
}

/// Formats a number with three significant digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => thousands(value.round() as u64),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn short_time(micros: f64) -> String {
    match micros < 1_000.0 {
        true => format!("{micros:.0} µs"),
        false => format!("{:.1} ms", micros / 1_000.0),
    }
}

/// The sums of expected and received deliveries. A run in which they differ fails before it is reported.
fn counts(served: &ServerResult) -> String {
    let sum = |of: fn(&super::Sample) -> u64| served.rounds.iter().map(of).sum::<u64>();
    let (expected, received) = (sum(|s| s.expected), sum(|s| s.received));
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

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::*;

    #[test]
    fn numbers_are_rounded_to_three_digits() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(number(0.0649), "0.065");
        assert_eq!(number(2_958.6), "2,959");
        assert_eq!(short_time(250.0), "250 µs");
        assert_eq!(short_time(2_500.0), "2.5 ms");
    }

    #[test]
    fn table_shows_every_server_and_failure() {
        let text = long(&example());
        assert!(
            text.contains("| echo | ≤ 1.05 × the floor | **1.10** (1.00–1.10) | no |"),
            "{text}"
        );
        assert!(text.contains("| humphrey_ws | 2.20 (1.10 ×) |"), "{text}");
        assert!(text.contains("| Bun | failed |"), "{text}");
        assert!(text.contains("then: a message was lost"), "{text}");
        assert!(
            text.contains("Left out: ws (Node.js): npm: not found."),
            "{text}"
        );
        assert!(text.contains("3,000 = 3,000"), "{text}");
    }

    #[test]
    fn readme_table_shows_peers_without_targets() {
        let mut results = example();
        results.outcomes[0].id = "echo-100-w1".into();
        let text = peers(&results);
        assert!(text.contains("| server | echo, µs |"), "{text}");
        assert!(text.contains("| humphrey_ws | 2.20 (1.10 ×) |"), "{text}");
        assert!(text.contains("| Bun | failed |"), "{text}");
        assert!(!text.contains("target"), "{text}");
    }

    #[test]
    fn targets_page_shows_missed_targets() {
        let text = targets_page(&example());
        assert!(
            text.contains("| echo | ≤ 1.05 × the floor | **1.10** (1.00–1.10) | no |"),
            "{text}"
        );
    }

    #[test]
    fn table_rows_have_as_many_cells_as_the_header() {
        let text = long(&example());
        let mut cells = None;
        for line in text.lines() {
            let count = line.starts_with('|').then(|| line.matches('|').count());
            if let (Some(before), Some(now)) = (cells, count) {
                assert_eq!(before, now, "{line}");
            }
            cells = count;
        }
    }

    #[test]
    fn page_changes_only_between_its_marks() {
        let page =
            |text| format!("before\n<!-- table: begin -->\n{text}\n<!-- table: end -->\nafter\n");
        let again = into_page(&page("old"), "table", "new\n").unwrap();
        assert_eq!(again, page("new"));
        assert_eq!(into_page(&page("old"), "other", "new"), None);
    }
}
