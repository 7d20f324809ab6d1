//! `bench tls` measures the CPU time, memory and latency of TLS.

use std::io;

use super::alternating::scenario::{
    BASE, Bound, ECHO, Measurement, PLAIN, Scenario, ServerVariant, Side, TlsSide, side, target,
    unused,
};
use super::alternating::turns::TurnOrder;
use super::alternating::{self, Suite};
use crate::args::{Job, Options};
use crate::corpus::Corpus;
use crate::load::tls::{Certificate, P256, RSA2048};

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let suite = Suite {
        name: "tls",
        feature: "tls",
        has_feature: cfg!(feature = "tls"),
        peers: "bun,axum,nginx",
        order: TurnOrder::Reversed,
        scenarios: all(),
    };
    alternating::command(suite, options)
}

const FEATURED: ServerVariant = ServerVariant::Featured(&[]);
const BUN_SERVER: ServerVariant = ServerVariant::Peer("bun", "none");
const AXUM_SERVER: ServerVariant = ServerVariant::Peer("axum", "none");

/// A server that speaks TLS.
const fn secure(name: &'static str, server: ServerVariant, tls: TlsSide) -> Side {
    Side {
        tls: Some(tls),
        ..side(name, server)
    }
}

const fn full(certificate: &'static Certificate) -> TlsSide {
    TlsSide {
        certificate,
        resumes: false,
    }
}

const fn resumed(certificate: &'static Certificate) -> TlsSide {
    TlsSide {
        certificate,
        resumes: true,
    }
}

const UNUSED: Side = side("humphrey_ws with the feature, plain", FEATURED);
const OURS: Side = secure("humphrey_ws, TLS", FEATURED, full(&P256));
const BUN: Side = secure("Bun, TLS", BUN_SERVER, full(&P256));
const AXUM: Side = secure("axum, rustls", AXUM_SERVER, full(&P256));
const NGINX: Side = secure(
    "nginx in front of humphrey_ws",
    ServerVariant::Proxied,
    full(&P256),
);

/// The size of a page divided by the number of connections: memory is counted in pages.
const PAGE_PER_CONNECTION: f64 = 4_096.0 / IDLE as f64;
/// Number of idle connections.
const IDLE: usize = 5_000;

fn all() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = unused(UNUSED, SHORT).into();
    all.extend([
        fan_out("fan-out-w1", "Fan-out of 32 B to 1,000, W 1", 1),
        fan_out("fan-out-w16", "Fan-out of 32 B to 1,000, W 16", 16),
        Scenario {
            id: "fan-out-1k-w1",
            title: "Fan-out of 1 KiB to 1,000, W 1",
            corpus: Corpus::Numbered(1_024),
            sides: vec![PLAIN, OURS, BUN, AXUM, NGINX],
            ..BASE
        },
        idle(),
        handshakes(),
        storm(),
    ]);
    all
}

const SHORT: Corpus = Corpus::Numbered(32);

fn fan_out(id: &'static str, title: &'static str, window: usize) -> Scenario {
    Scenario {
        id,
        title,
        window,
        corpus: SHORT,
        sides: vec![PLAIN, OURS, BUN, AXUM, NGINX],
        targets: vec![
            target(title, OURS, PLAIN, Bound::Cpu(1.20)),
            target(title, OURS, BUN, Bound::Cpu(0.8)),
            target(title, OURS, AXUM, Bound::Cpu(0.6)),
            target(title, OURS, NGINX, Bound::Cpu(0.5)),
        ],
        ..BASE
    }
}

fn idle() -> Scenario {
    let (plain, secure) = ("Idle, plain", "Idle, TLS");
    Scenario {
        id: "idle",
        title: "Idle: resident bytes per connection, at 5,000",
        measurement: Measurement::Idle,
        job: Job::Echo,
        clients: IDLE,
        corpus: SHORT,
        sides: vec![PLAIN, UNUSED, OURS, BUN, AXUM],
        targets: vec![
            target(
                plain,
                UNUSED,
                PLAIN,
                Bound::ExcessResident(PAGE_PER_CONNECTION),
            ),
            target(secure, OURS, OURS, Bound::Resident(4_000.0)),
        ],
        ..BASE
    }
}

fn handshakes() -> Scenario {
    const FULL: Side = secure("humphrey_ws, P-256", FEATURED, full(&P256));
    Scenario {
        id: "handshakes",
        title: "Connecting: accept, TLS handshake, WebSocket handshake, close",
        measurement: Measurement::Handshakes,
        job: Job::Echo,
        corpus: SHORT,
        sides: vec![
            PLAIN,
            FULL,
            secure("humphrey_ws, P-256, resumed", FEATURED, resumed(&P256)),
            secure("humphrey_ws, RSA-2048", FEATURED, full(&RSA2048)),
            secure(
                "humphrey_ws, RSA-2048, resumed",
                FEATURED,
                resumed(&RSA2048),
            ),
            secure("Bun, P-256", BUN_SERVER, full(&P256)),
            secure("Bun, P-256, resumed", BUN_SERVER, resumed(&P256)),
            secure("Bun, RSA-2048", BUN_SERVER, full(&RSA2048)),
            secure("Bun, RSA-2048, resumed", BUN_SERVER, resumed(&RSA2048)),
            secure("axum, P-256", AXUM_SERVER, full(&P256)),
            secure("axum, P-256, resumed", AXUM_SERVER, resumed(&P256)),
            secure("axum, RSA-2048", AXUM_SERVER, full(&RSA2048)),
            secure("axum, RSA-2048, resumed", AXUM_SERVER, resumed(&RSA2048)),
        ],
        targets: vec![target(
            "Connecting, P-256",
            FULL,
            FULL,
            Bound::Micros(150.0),
        )],
        ..BASE
    }
}

fn storm() -> Scenario {
    Scenario {
        id: "storm",
        title: "Echoes of 100 clients while others make 1,000 handshakes per second",
        measurement: Measurement::Storm,
        job: Job::Echo,
        clients: ECHO,
        corpus: SHORT,
        sides: vec![OURS, BUN, AXUM],
        targets: vec![target(
            "1,000 handshakes per second: the others' p99",
            OURS,
            OURS,
            Bound::Latency(3.0, 950.0),
        )],
        ..BASE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_targets_name_servers_of_their_scenario() {
        alternating::scenario::tests::check(&all());
    }
}
