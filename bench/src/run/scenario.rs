//! A scenario: what is measured, on which servers, and the targets that it is judged by.

use super::target::{Bound, Target};
use super::workload::{ServerKind, SubjectVariant, Workload};
use crate::floor::FloorMode;

pub(super) struct Scenario {
    /// What `--only` picks by.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) test: Measurement,
    /// The first is what the others are compared with.
    pub(super) sides: Vec<Side>,
    /// Whether peers take part, with the work of the first side.
    pub(super) peers: bool,
    /// Whether it is part of a run that picks nothing.
    pub(super) usual: bool,
    pub(super) rounds: Rounds,
    /// How many times the usual CPU time it is measured for.
    pub(super) effort: f64,
    /// Whether server and client share all CPUs, because the server has two shards.
    pub(super) spread: bool,
    pub(super) targets: Vec<Target>,
}

/// How often it is repeated, of those asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounds {
    AsAsked,
    AtLeast(usize),
    AtMost(usize),
}

/// How it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// CPU time per delivery, the servers in turn.
    Cost,
    /// Memory, and wake-ups.
    Idle,
    Memberships,
    Connect,
    Blocked,
    Stalled,
    Lone,
    Rate,
}

pub(super) struct Side {
    /// In the place of the server's own name.
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
    /// Another server with the first one's work.
    pub(super) fn beside(mut self, kind: ServerKind) -> Self {
        let work = self.sides[0].work;
        self.sides.insert(1, side(kind, work));
        self
    }

    /// The floor and humphrey_ws once more, each with its writes through a ring.
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

    /// Only where it is picked.
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

    /// Of humphrey_ws, beside the floor.
    pub(super) fn target(self, what: &'static str, bound: Bound) -> Self {
        self.target_of(what, OURS, FLOOR, bound)
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
