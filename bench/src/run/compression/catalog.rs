//! The scenarios of the command `compression`, and their targets.

use crate::args::Job;
use crate::corpus::Corpus;
use crate::wire::ROUND_ROBIN_ROOMS;

/// A server in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) name: &'static str,
    pub(super) server: ServerVariant,
    /// Whether its clients offer compression.
    pub(super) offers: bool,
    /// Whether late joiners connect and leave during the measurement.
    pub(super) has_visitors: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerVariant {
    /// humphrey_ws without the feature `deflate`.
    Plain,
    /// humphrey_ws with the feature, and with `with_compression`.
    Compressing,
    /// A peer: its name in `--peers`, and its compression mode.
    Peer(&'static str, &'static str),
}

const fn side(name: &'static str, server: ServerVariant, offers: bool) -> Side {
    Side {
        name,
        server,
        offers,
        has_visitors: false,
    }
}

pub(super) const PLAIN: Side = side("humphrey_ws", ServerVariant::Plain, false);
/// A second process of [`PLAIN`]. The deviation of its ratios from 1 is the error of measurement.
const AGAIN: Side = side("humphrey_ws, again", ServerVariant::Plain, false);
const UNUSED: Side = side(
    "humphrey_ws with compression, not offered",
    ServerVariant::Compressing,
    false,
);
const OURS: Side = side("humphrey_ws, compressing", ServerVariant::Compressing, true);
const JOINS: Side = Side {
    name: "humphrey_ws, compressing, 100 joins per second",
    has_visitors: true,
    ..OURS
};
const BUN: Side = side("Bun", ServerVariant::Peer("bun", "none"), false);
const BUN_DEDICATED: Side = side(
    "Bun, dedicated compressors",
    ServerVariant::Peer("bun", "dedicated"),
    true,
);
const BUN_SHARED: Side = side(
    "Bun, shared compressor",
    ServerVariant::Peer("bun", "shared"),
    true,
);
const WS: Side = side("ws (Node.js)", ServerVariant::Peer("ws", "none"), false);
const WS_DEFLATE: Side = side(
    "ws (Node.js), compressing",
    ServerVariant::Peer("ws", "deflate"),
    true,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measurement {
    /// CPU time and bytes per delivery.
    Load,
    /// Resident memory of idle connections.
    Idle,
}

pub(super) struct Scenario {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) measurement: Measurement,
    pub(super) job: Job,
    pub(super) clients: usize,
    pub(super) speakers: usize,
    pub(super) window: usize,
    pub(super) corpus: Corpus,
    /// The servers. All others are compared with the first.
    pub(super) sides: Vec<Side>,
    /// Number of rounds, as a multiple of `--rounds`. Each round then uses this fraction of `--cpu-seconds`.
    pub(super) restarts: usize,
    pub(super) targets: Vec<Target>,
}

/// A target of a scenario.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) what: &'static str,
    pub(super) server: &'static str,
    pub(super) beside: &'static str,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy)]
pub(super) enum Bound {
    /// Maximum ratio of CPU time per delivery.
    Cpu(f64),
    /// Maximum ratio of bytes per delivery.
    Bytes(f64),
    /// A ratio of bytes per delivery below 1.
    FewerBytes,
    /// Maximum excess of CPU time per broadcast, in microseconds.
    ExcessMicros(f64),
    /// Maximum excess of resident bytes per connection.
    ExcessResident(f64),
    /// Maximum excess of bytes per delivery, as a share of the second number: the bytes of an uncompressed frame.
    ExcessShare(f64, f64),
}

fn target(what: &'static str, ours: Side, beside: Side, bound: Bound) -> Target {
    Target {
        what,
        server: ours.name,
        beside: beside.name,
        bound,
    }
}

const BASE: Scenario = Scenario {
    id: "",
    title: "",
    measurement: Measurement::Load,
    job: Job::Fanout,
    clients: 1_000,
    speakers: 0,
    window: 1,
    corpus: Corpus::Ticks,
    sides: Vec::new(),
    restarts: 1,
    targets: Vec::new(),
};

/// Number of clients in a scenario with an echo.
const ECHO: usize = 100;

pub(super) fn all() -> Vec<Scenario> {
    let mut all = vec![
        unused(
            "unused-fan-out-w1",
            "Not offered: fan-out to 1,000, W 1",
            Job::Fanout,
            1,
        ),
        unused(
            "unused-fan-out-w16",
            "Not offered: fan-out to 1,000, W 16",
            Job::Fanout,
            16,
        ),
        unused(
            "unused-echo-w1",
            "Not offered: echo, 100 clients, W 1",
            Job::Echo,
            1,
        ),
        unused(
            "unused-echo-w16",
            "Not offered: echo, 100 clients, W 16",
            Job::Echo,
            16,
        ),
        idle(),
    ];
    all.extend(broadcasts());
    all.extend([
        excepts(
            "chat-20",
            "20 of 1,000 members send in turn, to all others",
            1_000,
            20,
        ),
        excepts(
            "chat-1000",
            "1,000 members send in turn, to all others",
            1_000,
            1_000,
        ),
        excepts(
            "chat-20-of-20",
            "20 members send in turn, to all others",
            20,
            20,
        ),
        rooms(),
        documents(),
        joins(),
    ]);
    all
}

fn unused(id: &'static str, title: &'static str, job: Job, window: usize) -> Scenario {
    Scenario {
        id,
        title,
        job,
        window,
        clients: if job == Job::Echo { ECHO } else { BASE.clients },
        sides: vec![PLAIN, AGAIN, UNUSED],
        restarts: 5,
        targets: vec![target(title, UNUSED, PLAIN, Bound::Cpu(1.01))],
        ..BASE
    }
}

fn idle() -> Scenario {
    let (unused, agreed) = ("Idle, not offered", "Idle, negotiated");
    Scenario {
        id: "idle",
        title: "Idle: resident bytes per connection, at 5,000",
        measurement: Measurement::Idle,
        job: Job::Echo,
        clients: 5_000,
        sides: vec![PLAIN, UNUSED, OURS],
        targets: vec![
            target(unused, UNUSED, PLAIN, Bound::ExcessResident(8.0)),
            target(agreed, OURS, PLAIN, Bound::ExcessResident(16.0)),
        ],
        ..BASE
    }
}

/// The fan-outs of ticks and chat messages to 1,000 members, one by one and in batches.
fn broadcasts() -> [Scenario; 4] {
    let of = |id, title, corpus, window, share| {
        let mut sides = vec![PLAIN, OURS, BUN, BUN_DEDICATED, BUN_SHARED];
        if window == 1 {
            sides.extend([WS, WS_DEFLATE]);
        }
        Scenario {
            id,
            title,
            corpus,
            window,
            sides,
            targets: vec![
                target(title, OURS, PLAIN, Bound::Cpu(1.05)),
                target(title, OURS, PLAIN, Bound::Bytes(share)),
                target(title, OURS, BUN_DEDICATED, Bound::Cpu(0.5)),
                target(title, OURS, BUN_DEDICATED, Bound::Bytes(1.0)),
                target(title, OURS, BUN_SHARED, Bound::FewerBytes),
            ],
            ..BASE
        }
    };
    [
        of(
            "ticks-w1",
            "Ticks of 104 B to 1,000, W 1",
            Corpus::Ticks,
            1,
            0.35,
        ),
        of(
            "messages-w1",
            "Chat of 190 B to 1,000, W 1",
            Corpus::Chat,
            1,
            0.45,
        ),
        of(
            "ticks-w16",
            "Ticks of 104 B to 1,000, W 16",
            Corpus::Ticks,
            16,
            0.35,
        ),
        of(
            "messages-w16",
            "Chat of 190 B to 1,000, W 16",
            Corpus::Chat,
            16,
            0.45,
        ),
    ]
}

/// A chat in which each message goes to all members but its sender.
fn excepts(id: &'static str, title: &'static str, clients: usize, speakers: usize) -> Scenario {
    Scenario {
        id,
        title,
        job: Job::Chat,
        clients,
        speakers,
        corpus: Corpus::Chat,
        sides: vec![PLAIN, OURS, BUN, BUN_DEDICATED, BUN_SHARED],
        targets: vec![
            target(title, OURS, PLAIN, Bound::Cpu(1.10)),
            target(title, OURS, PLAIN, Bound::Bytes(1.0)),
        ],
        ..BASE
    }
}

/// Number of members of each room in [`Job::RoundRobin`].
const ROOM_MEMBERS: usize = 16;

fn rooms() -> Scenario {
    let title = "Ticks to 64 rooms of 16 members, round robin";
    Scenario {
        id: "rooms",
        title,
        job: Job::RoundRobin,
        // All members, and the publisher.
        clients: ROUND_ROBIN_ROOMS * ROOM_MEMBERS + 1,
        sides: vec![PLAIN, OURS, BUN, BUN_DEDICATED, BUN_SHARED],
        targets: vec![target(title, OURS, PLAIN, Bound::ExcessMicros(8.0))],
        ..BASE
    }
}

fn documents() -> Scenario {
    Scenario {
        id: "documents",
        title: "JSON of 16 KiB to 1,000, W 1",
        corpus: Corpus::Documents,
        sides: vec![PLAIN, OURS, BUN, BUN_DEDICATED, BUN_SHARED],
        ..BASE
    }
}

fn joins() -> Scenario {
    let title = "Ticks to 1,000, 100 joins per second";
    // The header of an uncompressed frame has two bytes.
    let plain = (Corpus::Ticks.size() + 2) as f64;
    Scenario {
        id: "joins",
        title,
        sides: vec![PLAIN, OURS, JOINS],
        targets: vec![target(title, JOINS, OURS, Bound::ExcessShare(0.10, plain))],
        ..BASE
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_target_names_servers_of_its_scenario() {
        let mut ids = HashSet::new();
        for scenario in all() {
            assert!(ids.insert(scenario.id), "{}", scenario.id);
            let names: HashSet<&str> = scenario.sides.iter().map(|side| side.name).collect();
            assert_eq!(names.len(), scenario.sides.len(), "{}", scenario.id);
            for target in &scenario.targets {
                assert!(names.contains(target.server) && names.contains(target.beside));
            }
        }
    }
}
