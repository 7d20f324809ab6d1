//! `bench compression` measures the CPU time that compression costs and the bytes that it saves.

use std::io;

use super::alternating::scenario::{
    BASE, Bound, Measurement, PLAIN, Scenario, ServerVariant, Side, side, target, unused,
};
use super::alternating::turns::TurnOrder;
use super::alternating::{self, Suite};
use crate::args::{Job, Options};
use crate::corpus::Corpus;
use crate::wire::ROUND_ROBIN_ROOMS;

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let suite = Suite {
        name: "compression",
        feature: "deflate",
        has_feature: cfg!(feature = "deflate"),
        peers: "bun,ws",
        order: TurnOrder::Reversed,
        scenarios: all(),
    };
    alternating::command(suite, options)
}

/// A server whose clients offer compression.
const fn offering(name: &'static str, server: ServerVariant) -> Side {
    Side {
        offers: true,
        ..side(name, server)
    }
}

const COMPRESSING: ServerVariant = ServerVariant::Featured(&["--compress"]);
const UNUSED: Side = side("humphrey_ws with compression, not offered", COMPRESSING);
const OURS: Side = offering("humphrey_ws, compressing", COMPRESSING);
const JOINS: Side = Side {
    name: "humphrey_ws, compressing, 100 joins per second",
    has_visitors: true,
    ..OURS
};
const BUN: Side = side("Bun", ServerVariant::Peer("bun", "none"));
const BUN_DEDICATED: Side = offering(
    "Bun, dedicated compressors",
    ServerVariant::Peer("bun", "dedicated"),
);
const BUN_SHARED: Side = offering(
    "Bun, shared compressor",
    ServerVariant::Peer("bun", "shared"),
);
const WS: Side = side("ws (Node.js)", ServerVariant::Peer("ws", "none"));
const WS_DEFLATE: Side = offering(
    "ws (Node.js), compressing",
    ServerVariant::Peer("ws", "deflate"),
);

fn all() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = unused(UNUSED, Corpus::Ticks).into();
    all.push(idle());
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
    use super::*;

    #[test]
    fn compression_targets_name_servers_of_their_scenario() {
        alternating::scenario::tests::check(&all());
    }
}
