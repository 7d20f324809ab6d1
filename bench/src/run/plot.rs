//! Renders results as SVG: for each scenario with peers, one bar per server.

use std::fmt::Write as _;

use super::markdown::number;
use super::results::{Results, ScenarioResult};

const COLUMNS: usize = 2;
const PANEL: f64 = 460.0;
const GAP: f64 = 30.0;
const LINE: f64 = 19.0;
const NAMES: f64 = 180.0;
const FIGURES: f64 = 74.0;

const STYLE: &str = "\
  <style>\n\
  text { font: 12px system-ui, sans-serif; fill: #24292f }\n\
  .title { font-weight: 600 }\n\
  .floor { fill: #8c959f } .ours { fill: #1a7f37 } .peer { fill: #54aeff }\n\
  @media (prefers-color-scheme: dark) {\n\
    text { fill: #e6edf3 } .floor { fill: #6e7681 } .ours { fill: #3fb950 } .peer { fill: #1f6feb }\n\
  }\n\
  </style>\n";

pub(super) fn svg(results: &Results) -> String {
    let with_peers =
        |outcome: &&ScenarioResult| outcome.servers.iter().any(|served| served.is_peer);
    let mut outcomes: Vec<&ScenarioResult> = results.outcomes.iter().filter(with_peers).collect();
    if outcomes.is_empty() {
        outcomes = results.outcomes.iter().collect();
    }
    let mut body = String::new();
    let mut y = GAP;
    for row in outcomes.chunks(COLUMNS) {
        for (column, outcome) in row.iter().enumerate() {
            panel(&mut body, outcome, GAP + column as f64 * (PANEL + GAP), y);
        }
        let lines = row.iter().map(|outcome| outcome.servers.len()).max();
        y += (lines.unwrap_or_default() + 1) as f64 * LINE + GAP;
    }
    let width = GAP + COLUMNS as f64 * (PANEL + GAP);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {y}\" width=\"{width}\" height=\"{y}\" \
         role=\"img\" aria-label=\"The servers side by side; shorter bars are better\">\n{STYLE}{body}</svg>\n"
    )
}

fn panel(body: &mut String, outcome: &ScenarioResult, x: f64, y: f64) {
    // Writing to a string does not fail.
    let mut put = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(body, "  {line}");
    };
    put(format_args!(
        "<text class=\"title\" x=\"{x}\" y=\"{y}\">{}: {}</text>",
        escape(&outcome.title),
        outcome.unit.text()
    ));
    let values: Vec<Option<f64>> = outcome
        .servers
        .iter()
        .map(|served| match served.failure {
            Some(_) => None,
            None => served.median().map(|sample| sample.value.max(0.0)),
        })
        .collect();
    let most = values
        .iter()
        .flatten()
        .copied()
        .fold(f64::MIN_POSITIVE, f64::max);
    for (at, (served, value)) in outcome.servers.iter().zip(values).enumerate() {
        let base = y + (at + 1) as f64 * LINE;
        let bar_x = x + NAMES;
        put(format_args!(
            "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
            bar_x - 6.0,
            escape(&served.server)
        ));
        let (length, figure) = match value {
            Some(value) => ((PANEL - NAMES - FIGURES) * value / most, number(value)),
            None => (0.0, "failed".into()),
        };
        let class = match served.server.as_str() {
            _ if served.is_peer => "peer",
            name if name.starts_with("humphrey") => "ours",
            _ => "floor",
        };
        put(format_args!(
            "<rect class=\"{class}\" x=\"{bar_x:.1}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"13\"/>",
            base - 11.0
        ));
        put(format_args!(
            "<text x=\"{:.1}\" y=\"{base:.1}\">{figure}</text>",
            bar_x + length + 5.0
        ));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::*;

    #[test]
    fn bar_length_is_proportional_to_the_figure() {
        let text = svg(&example());
        let widths: Vec<f64> = text
            .lines()
            .filter(|line| line.contains("<rect"))
            .filter_map(|line| {
                line.split("width=\"")
                    .nth(1)?
                    .split('"')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect();
        let [floor, ours, failed] = widths[..] else {
            panic!("{text}");
        };
        assert!((floor / ours - 2.0 / 2.2).abs() < 0.01);
        assert_eq!(failed, 0.0);
        assert!(text.contains(">failed</text>"));
    }

    #[test]
    fn svg_is_well_formed() {
        let text = svg(&example());
        assert!(text.contains("echo &lt;100&gt;"));
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        // Every element is self-closing, or closed on its own line.
        let opened = text.matches("<text").count();
        assert_eq!(opened, text.matches("</text>").count());
        assert_eq!(text.matches("<rect").count(), text.matches("\"/>").count());
        assert_eq!(text.matches('"').count() % 2, 0);
    }
}
