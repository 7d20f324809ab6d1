//! The rows of the table. Their servers differ only in the features that are switched on.

use std::io;

use crate::args::{self, Job};
use crate::corpus::Corpus;
use crate::load::tls::P256;
use crate::run::alternating::scenario::{
    BASE, ECHO, Receives, Scenario, ServerVariant, Side, TlsSide, side,
};

/// What the clients of a row do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// One client publishes, and all receive.
    FanOut,
    /// Each client receives its own messages.
    Echo,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its name in `--only`.
    pub(super) id: &'static str,
    pub(super) load: Load,
    /// The server; its name is the first cell.
    pub(super) side: Side,
}

impl Row {
    /// Whether its server is a build without the features.
    pub(super) fn is_built_without(&self) -> bool {
        self.side.server == ServerVariant::Plain
    }
}

/// A server that was built with all features and is started with these arguments.
const fn on(name: &'static str, arguments: &'static [&'static str]) -> Side {
    side(name, ServerVariant::Featured(arguments))
}

const fn over_tls(name: &'static str) -> Side {
    Side {
        tls: Some(TlsSide {
            certificate: &P256,
            resumes: false,
        }),
        ..on(name, &[])
    }
}

const fn compressing(name: &'static str) -> Side {
    Side {
        offers: true,
        ..on(name, &["--compress"])
    }
}

const fn fan_out(id: &'static str, side: Side) -> Row {
    Row {
        id,
        load: Load::FanOut,
        side,
    }
}

const fn echo(id: &'static str, side: Side) -> Row {
    Row {
        id,
        load: Load::Echo,
        side,
    }
}

/// The rows in the order of the table. The first one of each load is the baseline of the others.
pub(super) const ALL: [Row; 19] = [
    fan_out("plain", on("fan-out to everyone, nothing switched on", &[])),
    fan_out(
        "plain-again",
        on("the same server again: the error of measurement", &[]),
    ),
    fan_out(
        "plain-without",
        side("the same, built without the features", ServerVariant::Plain),
    ),
    fan_out("room", on("to a room", &["--room"])),
    fan_out(
        "history",
        on(
            "to a room that keeps 1,000 messages",
            &["--room", "--history"],
        ),
    ),
    fan_out(
        "ids",
        Side {
            receives: Receives::MessagesWithIds,
            ..on(
                "to a room that keeps 1,000 messages, with room and id in each message",
                &["--room", "--history"],
            )
        },
    ),
    fan_out(
        "event-streams",
        Side {
            receives: Receives::Events,
            ..on("event streams instead of WebSockets", &["--events"])
        },
    ),
    fan_out("deflate", compressing("compression")),
    fan_out("tls", over_tls("TLS")),
    fan_out(
        "cluster",
        Side {
            is_node: true,
            ..on("to a room, in a cluster", &["--room"])
        },
    ),
    fan_out(
        "cluster-history",
        Side {
            is_node: true,
            ..on(
                "to a room that keeps 1,000 messages, in a cluster",
                &["--room", "--history"],
            )
        },
    ),
    fan_out(
        "metrics",
        Side {
            is_scraped: true,
            ..on("metrics, read once a second", &[])
        },
    ),
    fan_out("rate-limits", on("rate limits", &["--rate-limits"])),
    echo("echo", on("echo, nothing switched on", &[])),
    echo(
        "echo-again",
        on("echo, the same server again: the error of measurement", &[]),
    ),
    echo(
        "echo-without",
        side("echo, built without the features", ServerVariant::Plain),
    ),
    echo(
        "echo-borrowed",
        on("echo, handler that borrows its stream", &["--borrowing"]),
    ),
    echo(
        "echo-rate-limits",
        on("echo, rate limits", &["--rate-limits"]),
    ),
    echo("echo-tls", over_tls("echo, TLS")),
];

/// Returns the rows whose names contain one of the words, which commas separate, and the baselines of their loads.
pub(super) fn picked(only: &str) -> io::Result<Vec<Row>> {
    let is_picked = |row: &&Row| only.split(',').any(|part| row.id.contains(part));
    let picked: Vec<&Row> = ALL.iter().filter(is_picked).collect();
    if picked.is_empty() {
        return Err(args::bad("only", only));
    }
    let has = |row: &&Row| picked.iter().any(|other| other.id == row.id);
    let loads = |row: &&Row| picked.iter().any(|other| other.load == row.load);
    let rows = ALL.iter();
    let rows = rows.filter(|row| has(row) || is_baseline(row) && loads(row));
    Ok(rows.copied().collect())
}

fn is_baseline(row: &Row) -> bool {
    matches!(row.id, "plain" | "echo")
}

/// A load of the servers: the columns of the table.
pub(super) struct LoadSpec {
    /// The name of the scenario.
    pub(super) id: &'static str,
    pub(super) load: Load,
    pub(super) title: &'static str,
    pub(super) window: usize,
}

pub(super) const LOADS: [LoadSpec; 4] = [
    LoadSpec {
        id: "fan-out-w1",
        load: Load::FanOut,
        title: "Fan-out to 1,000, W 1",
        window: 1,
    },
    LoadSpec {
        id: "fan-out-w16",
        load: Load::FanOut,
        title: "Fan-out to 1,000, W 16",
        window: 16,
    },
    LoadSpec {
        id: "echo-w1",
        load: Load::Echo,
        title: "Echo, 100 clients, W 1",
        window: 1,
    },
    LoadSpec {
        id: "echo-w16",
        load: Load::Echo,
        title: "Echo, 100 clients, W 16",
        window: 16,
    },
];

/// Returns the scenarios that measure these rows.
pub(super) fn scenarios(rows: &[Row]) -> Vec<Scenario> {
    let scenarios = LOADS.iter().map(|spec| Scenario {
        id: spec.id,
        title: spec.title,
        job: match spec.load {
            Load::FanOut => Job::Fanout,
            Load::Echo => Job::Echo,
        },
        clients: match spec.load {
            Load::FanOut => BASE.clients,
            Load::Echo => ECHO,
        },
        window: spec.window,
        corpus: Corpus::Ticks,
        sides: rows
            .iter()
            .filter(|row| row.load == spec.load)
            .map(|row| row.side)
            .collect(),
        ..BASE
    });
    scenarios
        .filter(|scenario| !scenario.sides.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run::alternating::scenario::tests::check;

    fn page(name: &str) -> String {
        fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn rows_are_unique_except_the_repeated_baselines() {
        check(&scenarios(&ALL));
        let repeated = |row: &Row| matches!(row.id, "plain-again" | "echo-again");
        for (at, row) in ALL.iter().enumerate() {
            for other in &ALL[..at] {
                assert_ne!(row.id, other.id);
                let same = Side {
                    name: other.side.name,
                    ..row.side
                };
                let is_same = row.load == other.load && same == other.side;
                let is_repeated = repeated(row) && is_baseline(other) && row.load == other.load;
                assert_eq!(is_same, is_repeated, "{} and {}", row.id, other.id);
            }
        }
    }

    #[test]
    fn baseline_of_each_load_is_its_first_row() {
        for scenario in scenarios(&ALL) {
            let first = ALL
                .iter()
                .find(|row| row.side.name == scenario.sides[0].name);
            assert!(first.is_some_and(is_baseline), "{}", scenario.id);
            assert_eq!(scenario.sides[0].server, ServerVariant::Featured(&[]));
        }
    }

    #[test]
    fn only_keeps_the_baselines_of_the_picked_rows() {
        let ids =
            |only: &str| -> Vec<&str> { picked(only).unwrap().iter().map(|row| row.id).collect() };
        assert_eq!(ids("event-streams"), ["plain", "event-streams"]);
        assert_eq!(
            ids("echo-tls,metrics"),
            ["plain", "metrics", "echo", "echo-tls"]
        );
        assert_eq!(ids("").len(), ALL.len());
        assert!(picked("nothing").is_err());
    }

    #[test]
    fn readme_lists_the_names_of_all_rows() {
        let readme = page("README.md");
        let section = readme.split_once("\n## Costs\n").unwrap().1;
        let section = section.split("\n## ").next().unwrap();
        let listed: Vec<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('|').next())
            .flat_map(|cell| cell.split('`').step_by(2))
            .map(|name| name.trim_matches([' ', ',', '`']))
            .filter(|name| !name.is_empty())
            .collect();
        assert_eq!(listed, ALL.map(|row| row.id));
    }

    #[test]
    fn scaling_page_has_a_row_for_each_feature() {
        let scaling = page("../docs/scaling.md");
        let table = scaling.split_once("<!-- costs: begin -->").unwrap().1;
        let table = table.split_once("<!-- costs: end -->").unwrap().0;
        let rows = table.lines().filter(|line| line.starts_with("| "));
        let cells = rows.filter_map(|line| line.split('|').nth(1));
        let names: Vec<&str> = cells.skip(1).map(str::trim).collect();
        assert_eq!(names, ALL.map(|row| row.side.name));
    }
}
