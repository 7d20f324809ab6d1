//! Figures of several rounds, as JSON and as a Markdown table.

use serde::{Deserialize, Serialize};

use super::markdown;
use super::results::spread;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FigureReport {
    pub(super) what: String,
    pub(super) unit: String,
    /// The target, as a table shows it.
    pub(super) target: Option<String>,
    /// The value of each round.
    pub(super) rounds: Vec<f64>,
}

/// Renders a figure, which may be negative.
pub(super) fn number(value: f64) -> String {
    match value < 0.0 {
        true => format!("-{}", markdown::number(-value)),
        false => markdown::number(value),
    }
}

/// Renders the figures that were measured; nothing if none was.
pub(super) fn table<'a>(figures: impl Iterator<Item = &'a FigureReport>) -> String {
    let rows: String = figures.filter_map(row).collect();
    match rows.is_empty() {
        true => rows,
        false => format!("\n| figure | median (min–max) | |\n|---|---|---|\n{rows}"),
    }
}

/// Renders a figure; `None` if it was not measured.
fn row(figure: &FigureReport) -> Option<String> {
    let (what, unit) = (&figure.what, &figure.unit);
    let value = median_and_range(&figure.rounds, number)?;
    Some(format!("| {what} | {value} | {unit} |\n"))
}

/// Renders the median of the rounds, and their range if they differ; `None` without rounds.
pub(super) fn median_and_range(rounds: &[f64], number: fn(f64) -> String) -> Option<String> {
    let (least, middle, most) = spread(rounds)?;
    Some(match least == most {
        true => number(middle),
        false => format!("{} ({}–{})", number(middle), number(least), number(most)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_figure_keeps_its_sign() {
        assert_eq!(number(-1_234.0), "-1,234");
    }

    #[test]
    fn only_measured_figures_have_a_row() {
        let figure = |rounds: &[f64]| FigureReport {
            what: "Time".into(),
            unit: "ms".into(),
            target: None,
            rounds: rounds.into(),
        };
        assert_eq!(table([figure(&[])].iter()), "");
        let text = table([figure(&[2.0, 1.0, 3.0]), figure(&[7.0])].iter());
        assert!(text.contains("| Time | 2.00 (1.00–3.00) | ms |"), "{text}");
        assert!(text.contains("| Time | 7.00 | ms |"), "{text}");
    }
}
