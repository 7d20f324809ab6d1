//! What is measured, beside what, and what is aimed at.

use super::server::Kind;
use crate::args::Job;
use crate::load::{Plan, Rooms};

pub(super) const SIZE: usize = 32;

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) work: Work,
    /// What humphrey_ws is compared with; the first is the floor's place.
    pub(super) beside: &'static [Beside],
    /// Fewer rounds say too little.
    pub(super) rounds_min: usize,
}

/// What a server, and the client that loads it, has to do.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) job: Job,
    pub(super) clients: usize,
    pub(super) window: usize,
    pub(super) rooms: Rooms,
}

pub(super) struct Beside {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) work: Work,
    pub(super) target: Target,
}

/// What the median of the ratios is to be at most.
#[derive(Clone, Copy)]
pub(super) enum Target {
    None,
    Ratio(f64),
    /// So much, and this many microseconds for each broadcast besides.
    RatioAndExcess(f64, f64),
}

const FLOOR: &str = "floor";

/// Each broadcast may cost 5 µs, and 1 µs for each shard with members: the subject has one.
const EXCESS: f64 = 5.0 + 1.0;

const fn fan_out(clients: usize, window: usize) -> Work {
    Work {
        job: Job::Fanout,
        clients,
        window,
        rooms: NO_ROOMS,
    }
}

const fn echo(window: usize) -> Work {
    Work {
        job: Job::Echo,
        clients: 100,
        window,
        rooms: NO_ROOMS,
    }
}

const fn rooms(clients: usize, count: usize, members: usize, window: usize) -> Work {
    Work {
        job: Job::Rooms,
        clients,
        window,
        rooms: Rooms {
            count,
            members,
            together: false,
            visitors: 0,
        },
    }
}

/// One room of 1,000.
const fn in_10_000(together: bool) -> Work {
    let mut work = rooms(10_000, 1, 1_000, 1);
    work.rooms.together = together;
    work
}

const NO_ROOMS: Rooms = Rooms {
    count: 0,
    members: 0,
    together: false,
    visitors: 0,
};

const fn churn(job: Job, window: usize) -> Work {
    Work {
        job,
        clients: 1_000,
        window,
        rooms: Rooms {
            count: 1,
            members: 1_000,
            together: false,
            visitors: 100,
        },
    }
}

const fn floor(work: Work, target: Target) -> Beside {
    Beside {
        name: FLOOR,
        kind: Kind::Floor,
        work,
        target,
    }
}

/// What the floor's own fan-out costs, to tell what the rest of its sockets adds.
const fn floor_alone(work: Work) -> Beside {
    Beside {
        name: "floor, fan-out 1,000",
        kind: Kind::Floor,
        work,
        target: Target::None,
    }
}

const fn subject(name: &'static str, work: Work, target: Target) -> Beside {
    Beside {
        name,
        kind: Kind::Subject,
        work,
        target,
    }
}

macro_rules! scenario {
    ($name:literal, $work:expr, [$($beside:expr),+], rounds >= $rounds:literal) => {
        Scenario {
            name: $name,
            work: $work,
            beside: const { &[$($beside),+] },
            rounds_min: $rounds,
        }
    };
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario!(
        "fan-out 1,000 W 1",
        fan_out(1_000, 1),
        [floor(fan_out(1_000, 1), Target::Ratio(1.15))],
        rounds >= 1
    ),
    scenario!(
        "fan-out 1,000 W 16",
        fan_out(1_000, 16),
        [floor(fan_out(1_000, 16), Target::Ratio(0.15))],
        rounds >= 1
    ),
    scenario!(
        "echo 100 W 1",
        echo(1),
        [floor(echo(1), Target::Ratio(1.35))],
        rounds >= 1
    ),
    scenario!(
        "echo 100 W 16",
        echo(16),
        [floor(echo(16), Target::None)],
        rounds >= 1
    ),
    scenario!(
        "rooms 1,000 × 10 W 1",
        rooms(10_000, 1_000, 10, 1),
        [floor(
            rooms(10_000, 1_000, 10, 1),
            Target::RatioAndExcess(1.2, EXCESS)
        )],
        rounds >= 1
    ),
    scenario!(
        "rooms 1,000 × 10 W 16",
        rooms(10_000, 1_000, 10, 16),
        [floor(
            rooms(10_000, 1_000, 10, 16),
            Target::RatioAndExcess(1.2, EXCESS)
        )],
        rounds >= 1
    ),
    scenario!(
        "room-in-10000, together",
        in_10_000(true),
        [
            floor(in_10_000(true), Target::Ratio(1.15)),
            subject("fan-out 1,000", fan_out(1_000, 1), Target::Ratio(1.03))
        ],
        rounds >= 1
    ),
    // Here the floor, too, pays for sockets that lie far apart.
    scenario!(
        "room-in-10000, scattered",
        in_10_000(false),
        [
            floor(in_10_000(false), Target::Ratio(1.15)),
            floor_alone(fan_out(1_000, 1)),
            subject("fan-out 1,000", fan_out(1_000, 1), Target::None)
        ],
        rounds >= 1
    ),
    scenario!(
        "churn W 1",
        churn(Job::Churn, 1),
        [subject(
            "without",
            churn(Job::Rooms, 1),
            Target::Ratio(1.03)
        )],
        rounds >= 5
    ),
    scenario!(
        "churn W 16",
        churn(Job::Churn, 16),
        [subject(
            "without",
            churn(Job::Rooms, 16),
            Target::Ratio(1.03)
        )],
        rounds >= 5
    ),
];

impl Work {
    /// Quick, with a tenth of those who are in rooms, or beside them.
    pub(super) fn plan(&self, quick: bool, sleep: bool) -> Plan {
        let (mut clients, mut rooms) = (self.clients, self.rooms);
        if quick && rooms.count > 0 {
            clients /= 10;
            match rooms.count {
                1 => rooms.members /= 10,
                _ => rooms.count /= 10,
            }
        }
        Plan {
            job: self.job,
            clients,
            rooms,
            window: self.window,
            size: SIZE,
            sleep,
        }
    }

    /// Messages that are in flight at once.
    pub(super) fn in_flight(&self) -> u64 {
        let publishers = match self.job {
            Job::Echo => self.clients,
            Job::Fanout | Job::Rooms | Job::Churn => 1,
        };
        (publishers * self.window) as u64
    }

    /// Who gets each broadcast.
    pub(super) fn members(&self) -> f64 {
        self.rooms.members as f64
    }
}
