//! The list of scenarios, and the types they share.

mod churn;
mod cluster;
mod compression;
mod descriptors;
mod eviction;
mod flood;
mod handlers;
mod held;
mod memory;
mod readers;
mod restart;
mod senders;
mod shutdown;
mod slow_loris;
mod tls_half_open;
mod tls_reloads;
mod tls_storm;

use crate::body::MessageCodec;
use crate::check::{Outcome, ensure};
use crate::random::Random;
use crate::server::Setup;

/// One kind of fault or attack, with its checks.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Context) -> Outcome<Report>,
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "slow-loris",
        what: "peers that send nothing, an incomplete handshake or frame, or a byte per second",
        run: slow_loris::run,
    },
    Scenario {
        name: "readers",
        what: "stopped readers and readers at various rates, under each slow-consumer policy",
        run: readers::run,
    },
    Scenario {
        name: "churn",
        what: "100,000 connections that open, and close in every possible way",
        run: churn::run,
    },
    Scenario {
        name: "memory",
        what: "an attack on all memory limits at once",
        run: memory::run,
    },
    Scenario {
        name: "inflation",
        what: "1,000 short messages that inflate to the maximum length, while handlers block",
        run: compression::inflation,
    },
    Scenario {
        name: "bombs",
        what: "1,000 short messages that inflate to more than the maximum length",
        run: compression::bombs,
    },
    Scenario {
        name: "eviction",
        what: "eviction of thousands of connections while others are answered",
        run: eviction::run,
    },
    Scenario {
        name: "flood",
        what: "100,000 messages per second from one client, under a rate limit",
        run: flood::run,
    },
    Scenario {
        name: "descriptors",
        what: "file descriptors that run out",
        run: descriptors::run,
    },
    Scenario {
        name: "handlers",
        what: "handlers that panic, block forever, sleep, loop, or send after the close",
        run: handlers::run,
    },
    Scenario {
        name: "senders",
        what: "16 threads that broadcast at full speed while clients connect and disconnect",
        run: senders::run,
    },
    Scenario {
        name: "shutdown",
        what: "a graceful shutdown under load",
        run: shutdown::run,
    },
    Scenario {
        name: "restart",
        what: "a server that is killed and restarted on the same port",
        run: restart::run,
    },
    Scenario {
        name: "tls-half-open",
        what: "clients that stop within a TLS handshake or a record, or send a byte of one per second",
        run: tls_half_open::run,
    },
    Scenario {
        name: "tls-storm",
        what: "10,000 TLS handshakes, full, resumed and aborted, while others are echoed to",
        run: tls_storm::run,
    },
    Scenario {
        name: "tls-readers",
        what: "the scenario `readers` over TLS",
        run: readers::run_tls,
    },
    Scenario {
        name: "tls-reloads",
        what: "50 certificate reloads while 1,000 clients receive broadcasts",
        run: tls_reloads::run,
    },
    Scenario {
        name: "cluster-kill-node",
        what: "a node of three that is killed",
        run: cluster::kill_node,
    },
    Scenario {
        name: "cluster-rolling-restart",
        what: "three nodes that are restarted one after the other",
        run: cluster::rolling_restart,
    },
    Scenario {
        name: "cluster-kill-redis",
        what: "Redis that is killed and restarted, without persistence",
        run: cluster::kill_redis,
    },
    Scenario {
        name: "cluster-kill-redis-aof",
        what: "Redis that is killed and restarted, with persistence",
        run: cluster::kill_redis_aof,
    },
    Scenario {
        name: "cluster-redis-loads",
        what: "Redis that is killed and restarted, and takes seconds to load its data",
        run: cluster::redis_loads,
    },
    Scenario {
        name: "cluster-plain",
        what: "rooms without a history beside others, while Redis is killed and restarted",
        run: cluster::plain_beside,
    },
    Scenario {
        name: "cluster-freeze-redis",
        what: "Redis that stands still for 5 seconds",
        run: cluster::freeze_redis,
    },
    Scenario {
        name: "cluster-freeze-node",
        what: "a node of three that stands still for 6 seconds",
        run: cluster::freeze_node,
    },
    Scenario {
        name: "cluster-client-kill",
        what: "connections between nodes and Redis that break 30 times",
        run: cluster::client_kill,
    },
    Scenario {
        name: "cluster-outage-joins",
        what: "10,000 clients that reconnect while Redis is down",
        run: cluster::outage_joins,
    },
    Scenario {
        name: "cluster-evict",
        what: "Redis that evicts histories at its memory limit",
        run: cluster::evict,
    },
];

/// Parameters of a run.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) seed: u64,
    /// Multiplier of the size of a short run.
    pub(crate) scale: u64,
    /// Whether the scenarios of a cluster run with fewer clients.
    pub(crate) quick: bool,
    pub(crate) random: Random,
    /// Limit of file descriptors of this process.
    pub(crate) descriptors: u64,
}

/// The result of a scenario whose checks all passed.
#[derive(Debug)]
pub(crate) struct Report {
    /// Description of the load.
    pub(crate) held: String,
    pub(crate) faults: u64,
    pub(crate) figures: String,
    /// The server's peak memory in bytes.
    pub(crate) peak: u64,
}

/// File descriptors reserved for other uses than connections.
const DESCRIPTORS_SPARE: u64 = 300;

impl Context {
    pub(crate) fn setup(&self) -> Setup {
        Setup::new(self.seed)
    }

    pub(crate) fn codec(&self) -> MessageCodec {
        MessageCodec::new(self.seed)
    }

    /// Scales the number of concurrent connections of a short run, within the available descriptors. Fails in CI if fewer
    /// than a short run's number are possible, which would prove nothing.
    pub(crate) fn connections(&self, short_run: u64) -> Outcome<u64> {
        self.connections_of(short_run * self.scale, short_run)
    }

    /// Limits a number of concurrent connections to the available descriptors, like [`connections`](Self::connections).
    pub(crate) fn connections_of(&self, wanted: u64, short_run: u64) -> Outcome<u64> {
        let room = self.descriptors.saturating_sub(DESCRIPTORS_SPARE);
        if wanted <= room {
            return Ok(wanted);
        }
        ensure!(
            room >= short_run || std::env::var_os("CI").is_none(),
            "{} file descriptors are too few for {short_run} connections: raise the limit (ulimit -Hn)",
            self.descriptors
        );
        println!(
            "             (scaled down: {} descriptors leave room for {room} connections instead of {wanted})",
            self.descriptors
        );
        Ok(room)
    }
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
