//! A scenario: a measurement, the servers that it runs on, and its targets.

use super::target::{Bound, Target};
use super::workload::{ServerKind, SubjectVariant, Workload};
use crate::floor::FloorMode;

pub(super) struct Scenario {
    /// The name that `--only` matches.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) test: Measurement,
    /// The others are compared with the first.
    pub(super) sides: Vec<Side>,
    /// Whether peers take part, with the workload of the first side.
    pub(super) peers: bool,
    /// Whether it is part of a run without `--only`.
    pub(super) usual: bool,
    pub(super) rounds: Rounds,
    /// Multiplier of the CPU time per measurement.
    pub(super) effort: f64,
    /// Whether server and client share all CPUs, because the server has two shards.
    pub(super) spread: bool,
    pub(super) targets: Vec<Target>,
}

/// Number of rounds, relative to the requested number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounds {
    AsAsked,
    AtLeast(usize),
    AtMost(usize),
}

/// The quantity that a scenario measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// CPU time per delivery, with the servers in turn.
    Cost,
    /// Memory and wake-ups of idle connections.
    Idle,
    Memberships,
    Connect,
    Blocked,
    Stalled,
    Lone,
    /// Latency of a fan-out at half of the possible rate.
    Loaded,
    Rate,
}

pub(super) struct Side {
    /// Replaces the server's own name.
    pub(super) name: Option<&'static str>,
    pub(super) kind: ServerKind,
    pub(super) work: Workload,
}

impl Side {
    pub(super) fn name(&self) -> String {
        self.name.map_or_else(|| self.kind.name(), str::to_owned)
    }
}

pub(super) const OURS: &str = "humphrey_ws";
/// The name of the peer that `--peer` adds for a uWebSockets server.
pub(super) const UWS: &str = "uWebSockets";
const OURS_WITH_RING: &str = "humphrey_ws, io_uring";
const FLOOR: &str = "floor";
const RING: ServerKind = ServerKind::Floor(FloorMode::Ring);
const OUR_RING: ServerKind = ServerKind::Subject(SubjectVariant {
    ring: true,
    ..SubjectVariant::USUAL
});

pub(super) fn side(kind: ServerKind, work: Workload) -> Side {
    Side {
        name: None,
        kind,
        work,
    }
}

pub(super) fn named(name: &'static str, kind: ServerKind, work: Workload) -> Side {
    Side {
        name: Some(name),
        ..side(kind, work)
    }
}

pub(super) fn pair(work: Workload) -> Vec<Side> {
    vec![
        side(ServerKind::FLOOR, work),
        side(ServerKind::SUBJECT, work),
    ]
}

pub(super) fn scenario(
    id: impl Into<String>,
    title: impl Into<String>,
    test: Measurement,
    sides: Vec<Side>,
) -> Scenario {
    Scenario {
        id: id.into(),
        title: title.into(),
        test,
        sides,
        peers: false,
        usual: true,
        rounds: Rounds::AsAsked,
        effort: 1.0,
        spread: false,
        targets: Vec::new(),
    }
}

impl Scenario {
    /// Adds a server with the first one's workload.
    pub(super) fn beside(mut self, kind: ServerKind) -> Self {
        let work = self.sides[0].work;
        self.sides.insert(1, side(kind, work));
        self
    }

    /// Adds a server with the first one's workload, behind the others.
    pub(super) fn and(mut self, kind: ServerKind) -> Self {
        let work = self.sides[0].work;
        self.sides.push(side(kind, work));
        self
    }

    /// Adds the floor and humphrey_ws with writes through io_uring.
    pub(super) fn rings(mut self, what: &'static str, bound: Bound) -> Self {
        self = self.beside(RING);
        let work = self.sides[0].work;
        self.sides.push(side(OUR_RING, work));
        self.target_of(what, OURS_WITH_RING, FLOOR, bound)
    }

    pub(super) fn peers(mut self) -> Self {
        self.peers = true;
        self
    }

    /// Runs it only if `--only` selects it.
    pub(super) fn picked(mut self) -> Self {
        self.usual = false;
        self
    }

    pub(super) fn rounds(mut self, rounds: Rounds) -> Self {
        self.rounds = rounds;
        self
    }

    pub(super) fn effort(mut self, effort: f64) -> Self {
        self.effort = effort;
        self
    }

    pub(super) fn spread(mut self) -> Self {
        self.spread = true;
        self
    }

    /// Adds a target for humphrey_ws relative to the floor.
    pub(super) fn target(self, what: &'static str, bound: Bound) -> Self {
        self.target_of(what, OURS, FLOOR, bound)
    }

    /// Adds a target for humphrey_ws relative to uWebSockets. It is judged only if there is a peer of that name.
    pub(super) fn target_beside_uws(self, what: &'static str, bound: Bound) -> Self {
        self.target_of(what, OURS, UWS, bound)
    }

    pub(super) fn target_of(
        mut self,
        what: &'static str,
        server: &'static str,
        beside: &'static str,
        bound: Bound,
    ) -> Self {
        self.targets.push(Target {
            what,
            server,
            beside,
            bound,
        });
        self
    }
}
