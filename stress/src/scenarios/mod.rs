//! The scenarios, and what they share.

mod churn;
mod descriptors;
mod eviction;
mod handlers;
mod memory;
mod readers;
mod restart;
mod senders;
mod shutdown;
mod slow_loris;

use crate::body::Book;
use crate::check::{Outcome, ensure};
use crate::random::Random;
use crate::server::Setup;

/// Something that happens to servers.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Context) -> Outcome<Report>,
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "slow-loris",
        what: "peers that send nothing, half of something, or a byte a second",
        run: slow_loris::run,
    },
    Scenario {
        name: "readers",
        what: "readers that stop, and readers at many rates, under each policy",
        run: readers::run,
    },
    Scenario {
        name: "churn",
        what: "100,000 connections that come, and go by every way there is",
        run: churn::run,
    },
    Scenario {
        name: "memory",
        what: "an attack on all bounds of memory at once",
        run: memory::run,
    },
    Scenario {
        name: "eviction",
        what: "thousands that are evicted, of many more, while others are answered",
        run: eviction::run,
    },
    Scenario {
        name: "descriptors",
        what: "descriptors that run out",
        run: descriptors::run,
    },
    Scenario {
        name: "handlers",
        what: "handlers that panic, block for ever, sleep, loop, or send too late",
        run: handlers::run,
    },
    Scenario {
        name: "senders",
        what: "16 threads that broadcast at full speed while clients come and go",
        run: senders::run,
    },
    Scenario {
        name: "shutdown",
        what: "a shutdown in the middle of everything",
        run: shutdown::run,
    },
    Scenario {
        name: "restart",
        what: "a server that is killed, and started again on the same port",
        run: restart::run,
    },
];

/// What a scenario has to go by.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) seed: u64,
    /// How many times the size of a short run.
    pub(crate) scale: u64,
    pub(crate) random: Random,
    /// Descriptors this process may have.
    pub(crate) descriptors: u64,
}

/// What a scenario came to, when everything held.
#[derive(Debug)]
pub(crate) struct Report {
    /// The load.
    pub(crate) held: String,
    pub(crate) faults: u64,
    pub(crate) figures: String,
    /// The most memory that the server had.
    pub(crate) peak: u64,
}

/// Descriptors that are not for connections.
const DESCRIPTORS_SPARE: u64 = 300;

impl Context {
    pub(crate) fn setup(&self) -> Setup {
        Setup::new(self.seed)
    }

    pub(crate) fn book(&self) -> Book {
        Book::new(self.seed)
    }

    /// How many connections at once may be had, of so many. Fewer than the short run's are none that prove anything
    /// where it counts.
    pub(crate) fn connections(&self, short_run: u64) -> Outcome<u64> {
        let wanted = short_run * self.scale;
        let room = self.descriptors.saturating_sub(DESCRIPTORS_SPARE);
        if wanted <= room {
            return Ok(wanted);
        }
        ensure!(
            room >= short_run || std::env::var_os("CI").is_none(),
            "{} descriptors are too few for {short_run} connections",
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
