//! The catalog of scenarios of `bench run`.

use super::scenario::{Measurement, OURS, Rounds, Scenario, named, pair, scenario, side};
use super::target::Bound;
use super::workload::{SIZE, ServerKind, SubjectVariant, Workload};
use crate::args::Job;
use crate::floor::FloorMode;
use crate::load::Rooms;
use crate::subject::HandlerDelay;

/// Each broadcast may cost 5 µs, and 1 µs for each shard with members: the subject has one.
const EXCESS: f64 = 5.0 + 1.0;

const JOINED: ServerKind = ServerKind::Floor(FloorMode::Joined);
const POOL: ServerKind = ServerKind::Subject(SubjectVariant {
    pool: true,
    ..SubjectVariant::USUAL
});
const BORROWING: ServerKind = ServerKind::Subject(SubjectVariant {
    borrowing: true,
    ..SubjectVariant::USUAL
});
const TWO_THREADS: ServerKind = ServerKind::Floor(FloorMode::TwoThreads);
const TWO_BORROWING: ServerKind = ServerKind::Subject(SubjectVariant {
    shards: 2,
    borrowing: true,
    ..SubjectVariant::USUAL
});
const TWO: ServerKind = ServerKind::Subject(SubjectVariant {
    shards: 2,
    ..SubjectVariant::USUAL
});
const TWO_POOL: ServerKind = ServerKind::Subject(SubjectVariant {
    shards: 2,
    pool: true,
    ..SubjectVariant::USUAL
});

fn fan_out(clients: usize, size: usize, window: usize) -> Workload {
    Workload {
        job: Job::Fanout,
        clients,
        size,
        window,
        ..Workload::NONE
    }
}

fn echo(clients: usize, window: usize) -> Workload {
    Workload {
        clients,
        window,
        ..Workload::NONE
    }
}

fn rooms(clients: usize, count: usize, members: usize, window: usize) -> Workload {
    Workload {
        job: Job::Rooms,
        clients,
        window,
        rooms: Rooms {
            count,
            members,
            ..Workload::NONE.rooms
        },
        ..Workload::NONE
    }
}

/// One room of 1,000.
fn in_10_000(together: bool) -> Workload {
    let mut work = rooms(10_000, 1, 1_000, 1);
    work.rooms.together = together;
    work
}

fn churn(job: Job, window: usize) -> Workload {
    let mut work = rooms(1_000, 1, 1_000, window);
    work.job = job;
    work.rooms.visitors = 100;
    work
}

/// All scenarios, in the order in which they are measured and shown.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = fan_outs();
    all.extend(echoes());
    all.extend(in_rooms());
    all.extend(two_shards());
    all.extend(handlers());
    all.extend(others());
    all
}

/// CPU time of a fan-out, on the floor and on humphrey_ws.
fn fan_out_cost(clients: usize, size: usize, window: usize) -> Scenario {
    let mut id = format!("fan-out-{clients}-w{window}");
    if size != SIZE {
        id = format!("fan-out-{clients}-{size}b-w{window}");
    }
    let title = format!("fan-out to {clients}, {size} B, W {window}");
    scenario(
        id,
        title,
        Measurement::Cost,
        pair(fan_out(clients, size, window)),
    )
}

/// CPU time of a fan-out to 1,000 clients, on humphrey_ws sent by a thread that is not one of the engine's.
fn fan_out_from_outside(window: usize) -> Scenario {
    let lines = Workload {
        job: Job::Lines,
        ..fan_out(1_000, SIZE, window)
    };
    scenario(
        format!("outside-1000-w{window}"),
        format!("fan-out to 1000, 32 B, W {window}, from a thread of the program"),
        Measurement::Cost,
        vec![
            side(ServerKind::FLOOR, fan_out(1_000, SIZE, window)),
            side(ServerKind::SUBJECT, lines),
        ],
    )
}

fn fan_outs() -> Vec<Scenario> {
    vec![
        fan_out_cost(100, 32, 1),
        fan_out_cost(100, 32, 16),
        fan_out_cost(1_000, 32, 1)
            .target("fan-out, N 1,000, 32 B, W 1", Bound::Ratio(1.04))
            .target_beside_uws(
                "fan-out, N 1,000, 32 B, W 1, beside uWebSockets",
                Bound::Ratio(0.97),
            )
            .rings("with io_uring: fan-out, N 1,000, W 1", Bound::Ratio(0.92))
            .peers(),
        fan_out_cost(1_000, 32, 4),
        fan_out_cost(1_000, 32, 16)
            .beside(JOINED)
            .peers()
            .target("fan-out, N 1,000, 32 B, W 16", Bound::Ratio(0.065))
            .target_beside_uws(
                "fan-out, N 1,000, 32 B, W 16, beside uWebSockets",
                Bound::Ratio(0.85),
            ),
        fan_out_cost(1_000, 512, 1),
        fan_out_cost(1_000, 512, 16),
        fan_out_cost(1_000, 4_096, 1),
        fan_out_cost(1_000, 4_096, 16)
            .beside(JOINED)
            .peers()
            .target("fan-out, 4,096 B, W 16", Bound::Ratio(0.19)),
        fan_out_cost(5_000, 32, 1)
            .rings("with io_uring: fan-out, N 5,000, W 1", Bound::Ratio(0.86))
            .peers(),
        fan_out_cost(5_000, 32, 16),
        fan_out_cost(15_000, 32, 1).target(
            "cost per delivery at 15,000 connections",
            Bound::Ratio(1.05),
        ),
        fan_out_from_outside(1),
        fan_out_from_outside(16).target(
            "fan-out from a thread outside the engine, W 16",
            Bound::Ratio(0.07),
        ),
        scenario(
            "user-time",
            "user time, fan-out to 1000, 32 B, W 1",
            Measurement::Cost,
            pair(fan_out(1_000, SIZE, 1)),
        )
        .effort(4.0)
        .target("user time alone, fan-out W 1", Bound::User(1.5)),
        through_pipe("pipe-1000-w16", false).target_of(
            "humphrey-broadcast fed by a pipe, fan-out for the same CPU",
            "humphrey-broadcast",
            "humphrey_ws, outside",
            Bound::Share(0.95),
        ),
        through_pipe("pipe-history-1000-w16", true).target_of(
            "the same with the default history",
            "humphrey-broadcast, default history",
            "humphrey_ws, outside",
            Bound::Share(0.85),
        ),
    ]
}

/// The program fed by a pipe, compared with the library fed in the same way, which keeps no history.
fn through_pipe(id: &str, keeps_history: bool) -> Scenario {
    let lines = Workload {
        job: Job::Lines,
        ..fan_out(1_000, SIZE, 16)
    };
    let history = match keeps_history {
        true => ", with a history",
        false => "",
    };
    scenario(
        id,
        format!("fan-out to 1000, lines of 32 B through a pipe{history}, W 16"),
        Measurement::Cost,
        vec![
            named("humphrey_ws, outside", ServerKind::SUBJECT, lines),
            side(ServerKind::Program { keeps_history }, lines),
        ],
    )
}

fn echoes() -> Vec<Scenario> {
    let plain = |clients: usize, window: usize| {
        scenario(
            format!("echo-{clients}-w{window}"),
            format!("echo, {clients} clients, W {window}"),
            Measurement::Cost,
            pair(echo(clients, window)),
        )
    };
    vec![
        plain(1, 1),
        plain(1, 16),
        plain(100, 1)
            .and(BORROWING)
            .target("echo, 100 clients, W 1", Bound::Ratio(1.0))
            .target_beside_uws(
                "echo, 100 clients, W 1, beside uWebSockets",
                Bound::Ratio(0.97),
            )
            .rings("with io_uring: echo, 100 clients, W 1", Bound::Ratio(0.93))
            .peers(),
        plain(100, 16)
            .and(BORROWING)
            .peers()
            .target("echo, 100 clients, W 16", Bound::Ratio(1.15))
            .target_beside_uws(
                "echo, 100 clients, W 16, beside uWebSockets",
                Bound::Ratio(1.0),
            ),
        plain(1_000, 1),
        plain(1_000, 16),
    ]
}

fn in_rooms() -> Vec<Scenario> {
    let many = |window, what, most| {
        scenario(
            format!("rooms-w{window}"),
            format!("rooms, 1000 × 10, W {window}"),
            Measurement::Cost,
            pair(rooms(10_000, 1_000, 10, window)),
        )
        .target(what, Bound::Ratio(most))
        .target(
            "rooms of ten, each broadcast",
            Bound::RatioAndExcess(1.2, EXCESS, 10.0),
        )
    };
    let alone = fan_out(1_000, SIZE, 1);
    let one = |together, name| {
        let mut sides = pair(in_10_000(together));
        sides.push(named("humphrey_ws, 1000 alone", ServerKind::SUBJECT, alone));
        let title = format!("a room of 1000 among 10000, {name}");
        scenario(
            format!("room-in-10000-{name}"),
            title,
            Measurement::Cost,
            sides,
        )
        .target("a room of 1,000 among 10,000", Bound::Ratio(1.15))
    };
    let churns = |window| {
        scenario(
            format!("churn-w{window}"),
            format!("a room of 1000 that others join and leave, W {window}"),
            Measurement::Cost,
            vec![
                named("without", ServerKind::SUBJECT, churn(Job::Rooms, window)),
                side(ServerKind::SUBJECT, churn(Job::Churn, window)),
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
        many(1, "rooms of ten, W 1", 1.15),
        many(16, "rooms of ten, W 16", 1.05),
        one(true, "together"),
        one(false, "scattered"),
        churns(1),
        churns(16),
    ]
}

fn two_shards() -> Vec<Scenario> {
    let echoes = |window, what, most| {
        let work = echo(100, window);
        let kinds = [
            TWO_THREADS,
            ServerKind::SUBJECT,
            TWO,
            TWO_BORROWING,
            TWO_POOL,
        ];
        scenario(
            format!("two-shards-echo-w{window}"),
            format!("two shards, echo, 100 clients, W {window}"),
            Measurement::Cost,
            kinds.map(|kind| side(kind, work)).into(),
        )
        .spread()
        .target_of(
            what,
            "humphrey_ws, 2 shards",
            "floor, 2 threads",
            Bound::Ratio(most),
        )
    };
    let all = fan_out(1_000, SIZE, 1);
    vec![
        echoes(1, "echo, two shards, W 1", 1.05),
        echoes(16, "echo, two shards, W 16", 1.15),
        scenario(
            "two-shards-fan-out-w1",
            "two shards, fan-out to 1000, W 1",
            Measurement::Cost,
            [ServerKind::SUBJECT, TWO, TWO_POOL]
                .map(|kind| side(kind, all))
                .into(),
        )
        .spread(),
    ]
}

fn handlers() -> Vec<Scenario> {
    let lone = scenario(
        "lone",
        "a lone message each 10 ms",
        Measurement::Lone,
        vec![
            side(ServerKind::FLOOR, echo(1, 1)),
            side(ServerKind::SUBJECT, echo(1, 1)),
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
                let delay = Some(HandlerDelay {
                    micros,
                    one_in,
                    works,
                });
                let work = Workload {
                    delay,
                    ..echo(100, 1)
                };
                let does = if works { "works" } else { "sleeps" };
                let rate = scenario(
                    format!("{does}-{micros}us-1-in-{one_in}"),
                    format!("1 handler in {one_in} {does} {micros} µs"),
                    Measurement::Rate,
                    vec![side(TWO_POOL, work), side(TWO, work)],
                )
                .spread();
                all.push(match works || one_in == 100 {
                    true => rate.picked(),
                    false => rate.target_of(
                        "handlers that sleep, messages per second, the worst of twelve",
                        "humphrey_ws, 2 shards",
                        "humphrey_ws, 2 shards, pool",
                        Bound::AtLeast(0.95),
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
            Measurement::Idle,
            pair(echo(clients, 1)),
        )
    };
    let blocked = Workload {
        job: Job::Blocked,
        blockers: 10,
        ..echo(1_000, 1)
    };
    let stalled = Workload {
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
            Measurement::Memberships,
            vec![side(ServerKind::SUBJECT, rooms(10_000, 1_000, 10, 1))],
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
            Measurement::Connect,
            pair(echo(10_000, 1)),
        )
        .peers()
        .rounds(Rounds::AtMost(2)),
        scenario(
            "loaded",
            "fan-out to 1000, 1024 B, at half of the possible rate",
            Measurement::Loaded,
            pair(fan_out(1_000, 1_024, 16)),
        )
        .peers()
        .target_beside_uws(
            "latency under load, p99.9, beside uWebSockets",
            Bound::Ratio(1.0),
        ),
        scenario(
            "blocked",
            "10 clients of 1000 in a handler that blocks 50 ms: the others",
            Measurement::Blocked,
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
            Measurement::Stalled,
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
    use super::super::scenario::{Side, UWS};
    use super::super::target::Target;
    use super::*;

    #[test]
    fn scenario_ids_are_unique_and_targets_name_their_sides() {
        let all = all();
        for (at, scenario) in all.iter().enumerate() {
            assert!(!scenario.id.contains(','), "{}", scenario.id);
            assert!(all[..at].iter().all(|other| other.id != scenario.id));
            let names: Vec<String> = scenario.sides.iter().map(Side::name).collect();
            for target in &scenario.targets {
                assert!(names.iter().any(|name| name == target.server), "{names:?}");
                let given = scenario.peers && target.beside == UWS;
                assert!(
                    given || names.iter().any(|name| name == target.beside),
                    "{names:?}"
                );
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
