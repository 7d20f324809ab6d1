//! Scenarios whose servers are loaded in turn, and their targets.

use serde::{Deserialize, Serialize};

use crate::args::Job;
use crate::corpus::Corpus;
use crate::load::tls::Certificate;

/// A server in a scenario, and how its clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) struct Side {
    pub(in crate::run) name: &'static str,
    pub(in crate::run) server: ServerVariant,
    /// Whether its clients offer compression.
    pub(in crate::run) offers: bool,
    /// Whether late joiners connect and leave during the measurement.
    pub(in crate::run) has_visitors: bool,
    pub(in crate::run) tls: Option<TlsSide>,
    pub(in crate::run) receives: Receives,
    /// Whether it is a node of a cluster, with a broker of its own.
    pub(in crate::run) is_node: bool,
    /// Whether its metrics are read once a second while it is loaded.
    pub(in crate::run) is_scraped: bool,
}

/// The form in which clients receive messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum Receives {
    /// As WebSocket messages.
    Messages,
    /// As WebSocket messages of the newer subprotocol of procedures, each with the room and the id.
    MessagesWithIds,
    /// As events, except the publisher.
    Events,
}

/// TLS between a server and its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) struct TlsSide {
    pub(in crate::run) certificate: &'static Certificate,
    /// Whether the clients of [`Measurement::Handshakes`] resume their sessions.
    pub(in crate::run) resumes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum ServerVariant {
    /// humphrey_ws without the feature that the command measures.
    Plain,
    /// humphrey_ws with the feature, and with these arguments of `bench subject`.
    Featured(&'static [&'static str]),
    /// A peer: its name in `--peers`, and its compression mode.
    Peer(&'static str, &'static str),
    /// nginx as TLS proxy in front of [`Plain`](Self::Plain).
    Proxied,
}

impl ServerVariant {
    /// Whether the server is started with this argument.
    pub(super) fn has_argument(self, name: &str) -> bool {
        matches!(self, Self::Featured(arguments) if arguments.contains(&name))
    }

    /// Whether a run continues without this server if it fails.
    pub(super) fn may_fail(self) -> bool {
        matches!(self, Self::Peer(..) | Self::Proxied)
    }
}

/// A server whose clients connect without TLS, and do not offer compression.
pub(in crate::run) const fn side(name: &'static str, server: ServerVariant) -> Side {
    Side {
        name,
        server,
        offers: false,
        has_visitors: false,
        tls: None,
        receives: Receives::Messages,
        is_node: false,
        is_scraped: false,
    }
}

/// humphrey_ws without the feature that the command measures.
pub(in crate::run) const PLAIN: Side = side("humphrey_ws", ServerVariant::Plain);
/// A second process of [`PLAIN`]. The deviation of its ratios from 1 is the error of measurement.
pub(in crate::run) const AGAIN: Side = side("humphrey_ws, again", ServerVariant::Plain);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::run) enum Measurement {
    /// CPU time and bytes per delivery.
    #[default]
    Load,
    /// Resident memory of idle connections.
    Idle,
    /// CPU time of connecting.
    Handshakes,
    /// Latency of echoes while other clients connect.
    Storm,
}

pub(in crate::run) struct Scenario {
    pub(in crate::run) id: &'static str,
    pub(in crate::run) title: &'static str,
    pub(in crate::run) measurement: Measurement,
    pub(in crate::run) job: Job,
    pub(in crate::run) clients: usize,
    pub(in crate::run) speakers: usize,
    pub(in crate::run) window: usize,
    pub(in crate::run) corpus: Corpus,
    /// The servers. All others are compared with the first.
    pub(in crate::run) sides: Vec<Side>,
    /// Number of rounds, as a multiple of `--rounds`. Each round then uses this fraction of `--cpu-seconds`.
    pub(in crate::run) restarts: usize,
    pub(in crate::run) targets: Vec<Target>,
}

pub(in crate::run) const BASE: Scenario = Scenario {
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
pub(in crate::run) const ECHO: usize = 100;

/// A target of a scenario.
#[derive(Clone, Copy)]
pub(in crate::run) struct Target {
    pub(in crate::run) what: &'static str,
    pub(in crate::run) server: &'static str,
    /// The server that it is compared with; itself if the bound is absolute.
    pub(in crate::run) beside: &'static str,
    pub(in crate::run) bound: Bound,
}

#[derive(Clone, Copy)]
pub(in crate::run) enum Bound {
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
    /// Maximum of resident bytes per connection.
    Resident(f64),
    /// Maximum of CPU time per connection, in microseconds.
    Micros(f64),
    /// Maximum ratio of the 99th percentile of latency to that of an unhindered server, at this minimum number of handshakes
    /// per second.
    Latency(f64, f64),
}

pub(in crate::run) fn target(what: &'static str, ours: Side, beside: Side, bound: Bound) -> Target {
    Target {
        what,
        server: ours.name,
        beside: beside.name,
        bound,
    }
}

/// Loads that do not use the feature of `unused`, compared with a build without it.
pub(in crate::run) fn unused(unused: Side, corpus: Corpus) -> [Scenario; 4] {
    [
        (
            "unused-fan-out-w1",
            "Unused: fan-out to 1,000, W 1",
            Job::Fanout,
            1,
        ),
        (
            "unused-fan-out-w16",
            "Unused: fan-out to 1,000, W 16",
            Job::Fanout,
            16,
        ),
        (
            "unused-echo-w1",
            "Unused: echo, 100 clients, W 1",
            Job::Echo,
            1,
        ),
        (
            "unused-echo-w16",
            "Unused: echo, 100 clients, W 16",
            Job::Echo,
            16,
        ),
    ]
    .map(|(id, title, job, window)| Scenario {
        id,
        title,
        job,
        window,
        corpus,
        clients: if job == Job::Echo { ECHO } else { BASE.clients },
        sides: vec![PLAIN, AGAIN, unused],
        restarts: 5,
        targets: vec![target(title, unused, PLAIN, Bound::Cpu(1.01))],
        ..BASE
    })
}

#[cfg(test)]
pub(in crate::run) mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Checks that ids and names are unique, and that targets name servers of their scenario.
    pub(in crate::run) fn check(all: &[Scenario]) {
        let mut ids = HashSet::new();
        for scenario in all {
            assert!(ids.insert(scenario.id), "{}", scenario.id);
            let names: HashSet<&str> = scenario.sides.iter().map(|side| side.name).collect();
            assert_eq!(names.len(), scenario.sides.len(), "{}", scenario.id);
            for target in &scenario.targets {
                assert!(names.contains(target.server) && names.contains(target.beside));
            }
        }
    }
}
