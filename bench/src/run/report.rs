//! Output of the results: a JSON file, and the table and plot made from it.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::results::{Results, Sample, ScenarioResult, spread};
use super::{Setup, markdown, plot};
use crate::args::{self, OptionSpec, Options};
use crate::machine;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("out"),
    args::value("readme"),
    args::value("targets"),
];

/// The name of the marks around a table in a page.
const MARKS: &str = "bench";

/// `bench report FILE.json`: renders table and plot of an earlier run.
pub(crate) fn command(options: &Options) -> io::Result<()> {
    let Some(path) = options.word() else {
        return Err(args::invalid(
            "report needs a JSON file: bench report FILE.json".into(),
        ));
    };
    let results = serde_json::from_slice(&named(fs::read(path), path)?)?;
    write(&results, options)
}

/// Writes what the options name: `out.json`, `out.md` and `out.svg`, the table of peers in one page, the internal
/// targets in another. The complete report goes to standard output.
pub(super) fn write(results: &Results, options: &Options) -> io::Result<()> {
    let table = markdown::long(results);
    if let Some(out) = options.text("out") {
        let files = [("md", &table), ("svg", &plot::svg(results))];
        write_files(out, results, &files)?;
    }
    if let Some(path) = options.text("readme") {
        insert(path, MARKS, &markdown::peers(results))?;
    }
    if let Some(path) = options.text("targets") {
        insert(path, MARKS, &markdown::targets_page(results))?;
    }
    print!("{table}");
    Ok(())
}

/// Writes the results to `out.json`, and each text to the file with its extension. Creates the directory.
pub(super) fn write_files(
    out: &str,
    results: &impl Serialize,
    texts: &[(&str, &String)],
) -> io::Result<()> {
    if let Some(directory) = Path::new(out).parent() {
        fs::create_dir_all(directory)?;
    }
    let json = serde_json::to_string_pretty(results)? + "\n";
    for (extension, text) in texts.iter().chain([&("json", &json)]) {
        let path = format!("{out}.{extension}");
        named(fs::write(&path, text), &path)?;
    }
    Ok(())
}

/// Inserts a table between the marks of this name in a file.
pub(super) fn insert(path: &str, marks: &str, table: &str) -> io::Result<()> {
    let page = named(fs::read_to_string(path), path)?;
    let page = markdown::into_page(&page, marks, table).ok_or_else(|| {
        io::Error::other(format!(
            "{path} lacks `<!-- {marks}: begin -->` or `<!-- {marks}: end -->` around the table"
        ))
    })?;
    named(fs::write(path, page), path)
}

fn named<T>(result: io::Result<T>, path: &str) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// Describes the machine. Call it before servers are started, since it includes load averages.
pub(super) fn machine_line(idle_share: f64) -> String {
    format!(
        "{}; {:.0} % of all CPUs idle beforehand.",
        machine::describe(),
        idle_share * 100.0
    )
}

/// Describes the machine and the method. Call it before servers are started.
pub(super) fn head(setup: &Setup, idle_share: f64) -> Vec<String> {
    let mut head = vec![
        machine_line(idle_share),
        format!(
            "Server on CPU {}, client on CPU {}, but with two shards both on all. Rounds: {}; \
             server CPU per measurement: {} s or more.",
            setup.server_cpu, setup.client_cpu, setup.rounds, setup.cpu_seconds
        ),
    ];
    if setup.self_check {
        head.push(
            "A self-check: the floor replaces humphrey_ws, so every ratio should be 1.".into(),
        );
    }
    if let Some(baseline) = &setup.baseline {
        head.push(format!(
            "Another build of humphrey_ws, {}, replaces the floor.",
            baseline.display()
        ));
    }
    if setup.quick {
        head.push(
            "A quick run: the counts are exact, the times are too short to mean much, and there is a tenth of the \
             rooms."
                .into(),
        );
    }
    head
}

/// Describes how much CPU other processes used during the measurements.
pub(super) fn foreign(outcomes: &[ScenarioResult]) -> Option<String> {
    let samples = outcomes.iter().flat_map(|outcome| &outcome.servers);
    let samples: Vec<&Sample> = samples.flat_map(|served| &served.rounds).collect();
    let foreign: Vec<f64> = samples.iter().map(|sample| sample.foreign).collect();
    let (_, middle, most) = spread(&foreign)?;
    Some(format!(
        "Other processes used {:.1} % of all CPUs during the measurements (median; at most {:.1} %).",
        middle * 100.0,
        most * 100.0
    ))
}
