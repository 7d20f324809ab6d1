//! What is measured, beside what, and what is aimed at.

use super::server::{Kind, Variant};
use super::target::{Bound, Target};
use crate::args::Job;
use crate::floor::Mode;
use crate::load::{Plan, Rooms};
use crate::subject::Nap;

pub(super) struct Scenario {
    /// What `--only` picks by.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) test: Test,
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
pub(super) enum Test {
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
    pub(super) kind: Kind,
    pub(super) work: Work,
}

/// What a server, and the client that loads it, has to do.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) job: Job,
    pub(super) clients: usize,
    pub(super) window: usize,
    pub(super) size: usize,
    pub(super) rooms: Rooms,
    pub(super) stalled: usize,
    pub(super) blockers: usize,
    pub(super) nap: Option<Nap>,
}

impl Side {
    pub(super) fn name(&self) -> String {
        self.name.map_or_else(|| self.kind.name(), str::to_owned)
    }
}

pub(super) const SIZE: usize = 32;

/// Each broadcast may cost 5 µs, and 1 µs for each shard with members: the subject has one.
const EXCESS: f64 = 5.0 + 1.0;

impl Work {
    const NONE: Self = Self {
        job: Job::Echo,
        clients: 1,
        window: 1,
        size: SIZE,
        rooms: Rooms {
            count: 0,
            members: 0,
            together: false,
            visitors: 0,
        },
        stalled: 0,
        blockers: 0,
        nap: None,
    };

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
            size: self.size,
            stalled: self.stalled,
            blockers: self.blockers,
            sleep,
        }
    }

    /// Messages that are in flight at once.
    pub(super) fn in_flight(&self) -> u64 {
        let publishers = if self.job.is_echo() { self.clients } else { 1 };
        (publishers * self.window) as u64
    }
}

fn fan_out(clients: usize, size: usize, window: usize) -> Work {
    Work {
        job: Job::Fanout,
        clients,
        size,
        window,
        ..Work::NONE
    }
}

fn echo(clients: usize, window: usize) -> Work {
    Work {
        clients,
        window,
        ..Work::NONE
    }
}

fn rooms(clients: usize, count: usize, members: usize, window: usize) -> Work {
    Work {
        job: Job::Rooms,
        clients,
        window,
        rooms: Rooms {
            count,
            members,
            ..Work::NONE.rooms
        },
        ..Work::NONE
    }
}

/// One room of 1,000.
fn in_10_000(together: bool) -> Work {
    let mut work = rooms(10_000, 1, 1_000, 1);
    work.rooms.together = together;
    work
}

fn churn(job: Job, window: usize) -> Work {
    let mut work = rooms(1_000, 1, 1_000, window);
    work.job = job;
    work.rooms.visitors = 100;
    work
}

fn side(kind: Kind, work: Work) -> Side {
    Side {
        name: None,
        kind,
        work,
    }
}

fn named(name: &'static str, kind: Kind, work: Work) -> Side {
    Side {
        name: Some(name),
        ..side(kind, work)
    }
}

fn pair(work: Work) -> Vec<Side> {
    vec![side(Kind::FLOOR, work), side(Kind::SUBJECT, work)]
}

fn scenario(
    id: impl Into<String>,
    title: impl Into<String>,
    test: Test,
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
    fn beside(mut self, kind: Kind) -> Self {
        let work = self.sides[0].work;
        self.sides.insert(1, side(kind, work));
        self
    }

    /// The floor and humphrey_ws once more, each with its writes through a ring.
    fn rings(mut self, what: &'static str, bound: Bound) -> Self {
        self = self.beside(RING);
        let work = self.sides[0].work;
        self.sides.push(side(OUR_RING, work));
        self.target_of(what, OURS_WITH_RING, FLOOR, bound)
    }

    fn peers(mut self) -> Self {
        self.peers = true;
        self
    }

    /// Only where it is picked.
    fn picked(mut self) -> Self {
        self.usual = false;
        self
    }

    fn rounds(mut self, rounds: Rounds) -> Self {
        self.rounds = rounds;
        self
    }

    fn effort(mut self, effort: f64) -> Self {
        self.effort = effort;
        self
    }

    fn spread(mut self) -> Self {
        self.spread = true;
        self
    }

    /// Of humphrey_ws, beside the floor.
    fn target(self, what: &'static str, bound: Bound) -> Self {
        self.target_of(what, OURS, FLOOR, bound)
    }

    fn target_of(
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

const OURS: &str = "humphrey_ws";
const OURS_WITH_RING: &str = "humphrey_ws, io_uring";
const FLOOR: &str = "floor";
const JOINED: Kind = Kind::Floor(Mode::Joined);
const RING: Kind = Kind::Floor(Mode::Ring);
const POOL: Kind = Kind::Subject(Variant {
    pool: true,
    ..Variant::USUAL
});
const TWO: Kind = Kind::Subject(Variant {
    shards: 2,
    ..Variant::USUAL
});
const TWO_POOL: Kind = Kind::Subject(Variant {
    shards: 2,
    pool: true,
    ..Variant::USUAL
});
const OUR_RING: Kind = Kind::Subject(Variant {
    ring: true,
    ..Variant::USUAL
});

/// All of them, in the order in which they are measured and shown.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = fan_outs();
    all.extend(echoes());
    all.extend(in_rooms());
    all.extend(two_shards());
    all.extend(handlers());
    all.extend(others());
    all
}

fn fan_outs() -> Vec<Scenario> {
    let plain = |clients: usize, size: usize, window: usize| {
        let mut id = format!("fan-out-{clients}-w{window}");
        if size != SIZE {
            id = format!("fan-out-{clients}-{size}b-w{window}");
        }
        let title = format!("fan-out to {clients}, {size} B, W {window}");
        scenario(id, title, Test::Cost, pair(fan_out(clients, size, window)))
    };
    let outside = |window| {
        let lines = Work {
            job: Job::Lines,
            ..fan_out(1_000, SIZE, window)
        };
        scenario(
            format!("outside-1000-w{window}"),
            format!("fan-out to 1000, 32 B, W {window}, from a thread of the program"),
            Test::Cost,
            vec![
                side(Kind::FLOOR, fan_out(1_000, SIZE, window)),
                side(Kind::SUBJECT, lines),
            ],
        )
    };
    let lines = Work {
        job: Job::Lines,
        ..fan_out(1_000, SIZE, 16)
    };
    vec![
        plain(100, 32, 1),
        plain(100, 32, 16),
        plain(1_000, 32, 1)
            .target("fan-out, N 1,000, 32 B, W 1", Bound::Ratio(1.04))
            .rings("with io_uring: fan-out, N 1,000, W 1", Bound::Ratio(0.92))
            .peers(),
        plain(1_000, 32, 4),
        plain(1_000, 32, 16)
            .beside(JOINED)
            .peers()
            .target("the same, W 16", Bound::Ratio(0.065)),
        plain(1_000, 512, 1),
        plain(1_000, 512, 16),
        plain(1_000, 4_096, 1),
        plain(1_000, 4_096, 16)
            .beside(JOINED)
            .peers()
            .target("fan-out, 4,096 B, W 16", Bound::Ratio(0.19)),
        plain(5_000, 32, 1)
            .rings("with io_uring: fan-out, N 5,000, W 1", Bound::Ratio(0.92))
            .peers(),
        plain(5_000, 32, 16),
        plain(15_000, 32, 1).target(
            "cost per delivery at 15,000 connections",
            Bound::Ratio(1.05),
        ),
        outside(1),
        outside(16).target(
            "fan-out from a thread outside the engine, W 16",
            Bound::Ratio(0.07),
        ),
        scenario(
            "user-time",
            "user time, fan-out to 1000, 32 B, W 1",
            Test::Cost,
            pair(fan_out(1_000, SIZE, 1)),
        )
        .effort(4.0)
        .target("user time alone, fan-out W 1", Bound::User(1.5)),
        scenario(
            "pipe-1000-w16",
            "fan-out to 1000, lines of 32 B through a pipe, W 16",
            Test::Cost,
            vec![
                named("humphrey_ws, outside", Kind::SUBJECT, lines),
                side(Kind::Program, lines),
            ],
        )
        .target_of(
            "humphrey-broadcast fed by a pipe, fan-out for the same CPU",
            "humphrey-broadcast",
            "humphrey_ws, outside",
            Bound::Share(0.9),
        ),
    ]
}

fn echoes() -> Vec<Scenario> {
    let plain = |clients: usize, window: usize| {
        scenario(
            format!("echo-{clients}-w{window}"),
            format!("echo, {clients} clients, W {window}"),
            Test::Cost,
            pair(echo(clients, window)),
        )
    };
    vec![
        plain(1, 1),
        plain(1, 16),
        plain(100, 1)
            .target("echo, 100 clients, W 1", Bound::Ratio(1.0))
            .rings("with io_uring: echo, 100 clients, W 1", Bound::Ratio(0.93))
            .peers(),
        plain(100, 16)
            .peers()
            .target("echo, 100 clients, W 16", Bound::Ratio(1.15)),
        plain(1_000, 1),
        plain(1_000, 16),
    ]
}

fn in_rooms() -> Vec<Scenario> {
    let many = |window| {
        scenario(
            format!("rooms-w{window}"),
            format!("rooms, 1000 × 10, W {window}"),
            Test::Cost,
            pair(rooms(10_000, 1_000, 10, window)),
        )
        .target(
            "rooms of ten, each broadcast",
            Bound::RatioAndExcess(1.2, EXCESS, 10.0),
        )
    };
    let alone = fan_out(1_000, SIZE, 1);
    let one = |together, name| {
        let mut sides = pair(in_10_000(together));
        sides.push(named("humphrey_ws, 1000 alone", Kind::SUBJECT, alone));
        let title = format!("a room of 1000 among 10000, {name}");
        scenario(format!("room-in-10000-{name}"), title, Test::Cost, sides)
            .target("a room of 1,000 among 10,000", Bound::Ratio(1.15))
    };
    let churns = |window| {
        scenario(
            format!("churn-w{window}"),
            format!("a room of 1000 that others join and leave, W {window}"),
            Test::Cost,
            vec![
                named("without", Kind::SUBJECT, churn(Job::Rooms, window)),
                side(Kind::SUBJECT, churn(Job::Churn, window)),
            ],
        )
        .rounds(Rounds::AtLeast(5))
        .picked()
        .target_of(
            "joining and leaving, 1,000 a second",
            OURS,
            "without",
            Bound::Ratio(1.03),
        )
    };
    vec![
        many(1),
        many(16),
        one(true, "together"),
        one(false, "scattered"),
        churns(1),
        churns(16),
    ]
}

fn two_shards() -> Vec<Scenario> {
    let sides = |work| {
        vec![
            side(Kind::SUBJECT, work),
            side(TWO, work),
            side(TWO_POOL, work),
        ]
    };
    let echoes = |window| {
        scenario(
            format!("two-shards-echo-w{window}"),
            format!("two shards, echo, 100 clients, W {window}"),
            Test::Cost,
            sides(echo(100, window)),
        )
        .spread()
        .target_of(
            "two shards: CPU per echo, to one shard's",
            "humphrey_ws, 2 shards",
            OURS,
            Bound::Ratio(1.10),
        )
    };
    vec![
        echoes(1),
        echoes(16),
        scenario(
            "two-shards-fan-out-w1",
            "two shards, fan-out to 1000, W 1",
            Test::Cost,
            sides(fan_out(1_000, SIZE, 1)),
        )
        .spread(),
    ]
}

fn handlers() -> Vec<Scenario> {
    let lone = scenario(
        "lone",
        "a lone message each 10 ms",
        Test::Lone,
        vec![
            side(Kind::FLOOR, echo(1, 1)),
            side(Kind::SUBJECT, echo(1, 1)),
            side(POOL, echo(1, 1)),
        ],
    )
    .target("a lone message, p50, handler included", Bound::Ratio(2.0));
    let mut all = vec![lone];
    for (works, times) in [
        (false, &[100, 1_000, 5_000, 20_000][..]),
        (true, &[15, 50, 500]),
    ] {
        for &micros in times {
            for one_in in [1, 10, 100, 1_000] {
                let nap = Some(Nap {
                    micros,
                    one_in,
                    works,
                });
                let work = Work {
                    nap,
                    ..echo(100, 1)
                };
                let does = if works { "works" } else { "sleeps" };
                let rate = scenario(
                    format!("{does}-{micros}us-1-in-{one_in}"),
                    format!("1 handler in {one_in} {does} {micros} µs"),
                    Test::Rate,
                    vec![side(TWO_POOL, work), side(TWO, work)],
                )
                .spread();
                all.push(match works || one_in == 100 {
                    true => rate.picked(),
                    false => rate.target_of(
                        "handlers that sleep, messages per second, the worst of twelve",
                        "humphrey_ws, 2 shards",
                        "humphrey_ws, 2 shards, pool",
                        Bound::AtLeast(0.9),
                    ),
                });
            }
        }
    }
    all
}

fn others() -> Vec<Scenario> {
    let idle = |clients: usize| {
        scenario(
            format!("idle-{clients}"),
            format!("idle, {clients} connections"),
            Test::Idle,
            pair(echo(clients, 1)),
        )
    };
    let blocked = Work {
        job: Job::Blocked,
        blockers: 10,
        ..echo(1_000, 1)
    };
    let stalled = Work {
        stalled: 1,
        ..fan_out(1_000, 16 << 10, 1)
    };
    vec![
        idle(5_000).peers().rounds(Rounds::AtMost(2)).target(
            "idle, resident bytes per connection at 5,000",
            Bound::Value(400.0),
        ),
        idle(10_000),
        scenario(
            "memberships",
            "memberships, 10 in a room, 10 each",
            Test::Memberships,
            vec![side(Kind::SUBJECT, rooms(10_000, 1_000, 10, 1))],
        )
        .picked()
        .target_of(
            "memory of a membership, bytes",
            OURS,
            OURS,
            Bound::Value(64.0),
        ),
        scenario(
            "connect",
            "connecting, 10000",
            Test::Connect,
            pair(echo(10_000, 1)),
        )
        .peers()
        .rounds(Rounds::AtMost(2)),
        scenario(
            "blocked",
            "10 clients of 1000 in a handler that blocks 50 ms: the others",
            Test::Blocked,
            pair(blocked),
        )
        .peers()
        .rounds(Rounds::AtMost(2))
        .target(
            "blocked handlers: the others' p99, ms",
            Bound::Unhindered(3.0, 5_000.0),
        ),
        scenario(
            "stalled",
            "one reader in 1000 reads nothing, 16 KiB, W 1: the others",
            Test::Stalled,
            pair(stalled),
        )
        .peers()
        .rounds(Rounds::AtMost(1))
        .target(
            "a stalled reader: the others' p99, ms",
            Bound::Unhindered(3.0, 5_000.0),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_targets_of_its_own_sides() {
        let all = all();
        for (at, scenario) in all.iter().enumerate() {
            assert!(!scenario.id.contains(','), "{}", scenario.id);
            assert!(all[..at].iter().all(|other| other.id != scenario.id));
            let names: Vec<String> = scenario.sides.iter().map(Side::name).collect();
            for target in &scenario.targets {
                assert!(names.iter().any(|name| name == target.server), "{names:?}");
                assert!(names.iter().any(|name| name == target.beside), "{names:?}");
            }
        }
    }

    #[test]
    fn targets_of_one_name_have_one_bound() {
        let targets: Vec<Target> = all().into_iter().flat_map(|s| s.targets).collect();
        for one in &targets {
            for other in targets.iter().filter(|other| other.what == one.what) {
                assert_eq!(format!("{:?}", one.bound), format!("{:?}", other.bound));
            }
        }
    }
}
