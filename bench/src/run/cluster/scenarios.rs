//! The scenarios of `bench cluster`, their figures and their targets.

use super::{Setup, rates, remote, restart, shares};
use crate::run::node_process::StartError;

/// A figure of a scenario.
pub(super) struct FigureSpec {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) bound: Option<Bound>,
}

/// The target of a figure.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(super) fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }
}

pub(super) struct Scenario {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) figures: &'static [FigureSpec],
    /// Measures one round. Returns a value for each figure.
    pub(super) measure: fn(&Setup) -> Result<Vec<f64>, StartError>,
}

const fn figure(what: &'static str, unit: &'static str) -> FigureSpec {
    FigureSpec {
        what,
        unit,
        bound: None,
    }
}

const fn at_most(what: &'static str, unit: &'static str, most: f64) -> FigureSpec {
    FigureSpec {
        bound: Some(Bound::AtMost(most)),
        ..figure(what, unit)
    }
}

const fn at_least(what: &'static str, unit: &'static str, least: f64) -> FigureSpec {
    FigureSpec {
        bound: Some(Bound::AtLeast(least)),
        ..figure(what, unit)
    }
}

const CPU: &str = "µs of CPU";
const PER_SECOND: &str = "per second";

const REMOTE_BATCHED: &[FigureSpec] = &[
    at_most(
        "Remote message, batched, beyond a local broadcast",
        CPU,
        1.2,
    ),
    at_most(
        "Remote message, batched, beyond a local broadcast without a cluster",
        CPU,
        1.2,
    ),
    figure("Remote message, batched", CPU),
    figure("Remote message, batched: the link to the broker", CPU),
    figure("Local broadcast in a cluster, batched", CPU),
    figure("Local broadcast without a cluster, batched", CPU),
];

const REMOTE_ALONE: &[FigureSpec] = &[
    at_most("Remote message, alone, beyond a local broadcast", CPU, 15.0),
    at_most(
        "Remote message, alone, beyond a local broadcast without a cluster",
        CPU,
        15.0,
    ),
    figure("Remote message, alone", CPU),
    figure("Remote message, alone: the link to the broker", CPU),
    figure("Local broadcast in a cluster, alone", CPU),
    figure("Local broadcast without a cluster, alone", CPU),
];

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        id: "remote-batched",
        title: "Messages of another node, in bursts",
        figures: REMOTE_BATCHED,
        measure: remote::batched,
    },
    Scenario {
        id: "remote-alone",
        title: "Messages of another node, one at a time",
        figures: REMOTE_ALONE,
        measure: remote::alone,
    },
    Scenario {
        id: "publishes",
        title: "Publishes through one broker server",
        figures: &[
            at_least("Publishes", PER_SECOND, 150_000.0),
            figure("Broker, for a publish", CPU),
        ],
        measure: rates::publishes,
    },
    Scenario {
        id: "received-publishes",
        title: "Publishes through one broker server that another node receives",
        figures: &[
            figure("Publishes that a node receives", PER_SECOND),
            figure("Broker, for a publish that a node receives", CPU),
        ],
        measure: rates::received_publishes,
    },
    Scenario {
        id: "appends",
        title: "Appends to histories through one broker server",
        figures: &[
            at_least("Appends", PER_SECOND, 50_000.0),
            figure("Broker, for an append", CPU),
        ],
        measure: rates::appends,
    },
    Scenario {
        id: "shares",
        title: "A node with members in a tenth of 1,000 rooms",
        figures: &[
            at_most(
                "CPU of a node with a tenth of the rooms",
                "× one with all",
                0.13,
            ),
            figure("Node with all rooms, for a message", CPU),
            figure("Node with a tenth of the rooms, for a message", CPU),
        ],
        measure: shares::measure,
    },
    Scenario {
        id: "restart",
        title: "A restart of Redis under a node with 100,000 rooms that keep a history",
        figures: &[
            at_most(
                "From the server's first answer until all rooms are read",
                "seconds",
                1.0,
            ),
            figure("Node, for each room", CPU),
            figure("Broker, for each room", CPU),
        ],
        measure: restart::measure,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_scenarios_and_figures_are_unique() {
        let mut names: Vec<&str> = ALL.iter().map(|scenario| scenario.id).collect();
        let figures = ALL.iter().flat_map(|scenario| scenario.figures);
        names.extend(figures.map(|figure| figure.what));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
