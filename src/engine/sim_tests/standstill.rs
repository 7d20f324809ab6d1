//! A stopped process or a suspended machine: time in which the shard did not run does not count against any peer.

use std::time::Duration;

use super::wire::{UPGRADE, client_close, client_frame, client_ping, client_text, status};
use super::world::{Setup, World, echo};
use crate::engine::hub::event_streams::Beginning;
use crate::engine::model::program::{HandshakeAccept, Subscriptions};
use crate::engine::model::replay::Replay;
use crate::engine::model::request::Response;
use crate::limits::{Limits, SlowConsumer};
use crate::ping::Heartbeat;
use crate::protocol::http::{self, BodyMode, Persistence};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The tolerance of deadlines: a few steps of the shard's clock.
const STEPS_MS: u64 = 32;
/// How long the shard's clock pauses after a standstill.
const REST_MS: u64 = 1_000;
const LIMIT_MS: u64 = 2_000;

/// A deadline, and the action with which a peer meets it.
struct Case {
    name: &'static str,
    /// Connects a client whose deadline expires after this many milliseconds.
    begin: fn(&mut World) -> usize,
    limit_ms: u64,
    /// The client's action during the standstill, which meets the deadline.
    saves_itself: fn(&mut World, usize),
}

fn world() -> World {
    let limits = Limits {
        outbox_bytes_max: 1_000,
        handshake_timeout: ms(LIMIT_MS),
        message_timeout: ms(LIMIT_MS),
        keep_alive_timeout: ms(LIMIT_MS),
        write_timeout: ms(LIMIT_MS),
        close_timeout: ms(LIMIT_MS),
        queue_timeout: ms(LIMIT_MS),
        ..Limits::default()
    };
    World::new(Setup {
        limits,
        subscriptions: Subscriptions {
            request: true,
            ..Setup::default().subscriptions
        },
        handler: Box::new(echo),
        route: Box::new(|_| Response {
            head: http::response(
                200,
                &[],
                &[b'x'; 1_000],
                Persistence::KeepAlive,
                BodyMode::Full,
            ),
            body: Vec::new(),
            keep_alive: true,
            rest: None,
            charge: None,
        }),
        streamer: Box::new(|hub, session| {
            let reserved = hub.reserve_stream(session, 1 << 20).unwrap();
            let beginning = Beginning {
                preface: b"HTTP/1.1 200 OK\r\n\r\nretry: 1\n\n".to_vec(),
                rooms: &[],
                keep_alive: Duration::from_secs(3_600),
                replay: Replay::default(),
                snapshot: Vec::new(),
                broadcasts: true,
                joined_ids: None,
            };
            assert!(hub.begin_stream(reserved, session, beginning).is_ok());
        }),
        ..Setup::default()
    })
}

fn with_heartbeat() -> World {
    World::new(Setup {
        heartbeat: Some(Heartbeat::new(ms(1_000), ms(1_000 + LIMIT_MS))),
        ..Setup::default()
    })
}

fn gated() -> World {
    World::new(Setup {
        limits: Limits {
            queue_timeout: ms(LIMIT_MS),
            ..Limits::default()
        },
        subscriptions: Subscriptions {
            handshake: true,
            ..Setup::default().subscriptions
        },
        gate: Box::new(|_| Ok(HandshakeAccept::default())),
        ..Setup::default()
    })
}

fn paced() -> World {
    World::new(Setup {
        slow_consumer: SlowConsumer::Pace {
            bytes_per_second_min: 1,
            patience: ms(LIMIT_MS),
        },
        limits: Limits {
            outbox_bytes_max: 1_000,
            ..Limits::default()
        },
        ..Setup::default()
    })
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: example\r\n\r\n";
const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: example\r\nContent-Length: 10\r\n\r\n12345";

const GET_EVENTS: &[u8] = b"GET /events HTTP/1.1\r\nHost: example\r\n\r\n";

/// Connects a client that sends a request, and receives only the beginning of the response.
fn leaves_unread(world: &mut World, request: &[u8]) -> usize {
    let client = world.connect();
    world.stall(client, 10);
    world.client_sends(client, request);
    world.run_handlers();
    client
}

/// Runs the first job on a handler thread, without waking the shard.
fn is_handled(world: &mut World, _: usize) {
    world.run_job(0);
    world.hub.wake_deferred();
}

/// Sends bytes without running the shard.
fn sends(world: &World, client: usize, bytes: &[u8]) {
    world.pipe(client).client_sends(bytes);
}

const WAITING_REQUEST: &str = "a request that waits for its handler";

const CASES: &[Case] = &[
    Case {
        name: "a handshake",
        begin: |world| {
            let client = world.connect();
            world.client_sends(client, &UPGRADE[..20]);
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| sends(world, client, &UPGRADE[20..]),
    },
    Case {
        name: "a request's body",
        begin: |world| {
            let client = world.connect();
            world.client_sends(client, POST);
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| sends(world, client, b"67890"),
    },
    Case {
        name: "a connection that is kept alive",
        begin: |world| {
            let client = world.connect();
            world.client_sends(client, GET);
            world.run_handlers();
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| sends(world, client, GET),
    },
    Case {
        name: "an answer that is not read",
        begin: |world| leaves_unread(world, GET),
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| world.pipe(client).add_room_unreported(2_000),
    },
    Case {
        name: WAITING_REQUEST,
        begin: |world| {
            let client = world.connect();
            world.client_sends(client, GET);
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: is_handled,
    },
    Case {
        name: "an event stream that is not read",
        begin: |world| leaves_unread(world, GET_EVENTS),
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| world.pipe(client).add_room_unreported(2_000),
    },
    Case {
        name: "a message",
        begin: |world| {
            let client = world.join();
            world.client_sends(client, &client_text("never whole")[..8]);
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| sends(world, client, &client_text("never whole")[8..]),
    },
    Case {
        name: "a socket that takes nothing",
        begin: |world| {
            let client = world.join();
            world.stall(client, 3);
            world.sends(client, "waits");
            world.settle();
            client
        },
        limit_ms: LIMIT_MS,
        saves_itself: |world, client| world.pipe(client).add_room_unreported(2_000),
    },
    Case {
        name: "a close frame that is not answered",
        begin: |world| {
            let client = world.join();
            world.closes(client, 1000, "");
            world.settle();
            client
        },
        limit_ms: LIMIT_MS,
        // Its connection ends by this: in good order.
        saves_itself: |world, client| sends(world, client, &client_close(1000)),
    },
];

const HEARTBEAT: Case = Case {
    name: "a heartbeat",
    begin: |world| {
        let client = world.join();
        world.advance_ms(1_000 + STEPS_MS / 2);
        client
    },
    limit_ms: LIMIT_MS,
    saves_itself: |world, client| sends(world, client, &client_frame(0x8A, b"")),
};

const VERDICT: Case = Case {
    name: "a handshake that waits for its verdict",
    begin: |world| {
        let client = world.connect();
        world.client_sends(client, UPGRADE);
        client
    },
    limit_ms: LIMIT_MS,
    saves_itself: is_handled,
};

const PACE: Case = Case {
    name: "producers that wait",
    begin: |world| {
        let client = world.join();
        world.stall(client, 0);
        for _ in 0..2 {
            world.broadcasts("x".repeat(900));
        }
        world.settle();
        client
    },
    limit_ms: LIMIT_MS,
    saves_itself: |world, client| world.pipe(client).add_room_unreported(usize::MAX / 4),
};

fn all() -> impl Iterator<Item = (&'static Case, World)> {
    let cases = CASES.iter().map(|case| (case, world()));
    cases.chain([
        (&HEARTBEAT, with_heartbeat()),
        (&VERDICT, gated()),
        (&PACE, paced()),
    ])
}

/// Whether the client's deadline has ended its connection or request. The shard may send an answer before it closes.
fn is_over(world: &mut World, client: usize) -> bool {
    let metrics = world.metrics();
    world.is_closed(client)
        || world.is_finished(client)
        || metrics.slow_consumers + metrics.unfinished_messages > 0
}

#[test]
fn standstill_does_not_count_against_any_peer() {
    for standstill_ms in [16_000, 3_600_000] {
        for passed_ms in [0, LIMIT_MS / 2, LIMIT_MS - 2 * STEPS_MS] {
            for (case, mut world) in all() {
                let client = (case.begin)(&mut world);
                world.advance_ms(passed_ms);
                for _ in 0..2 {
                    world.stand_still(ms(standstill_ms));
                    assert!(!is_over(&mut world, client), "{} on waking", case.name);
                }
                // The shard was stopped just before it would have woken, or earlier.
                world.advance_ms(REST_MS - STEPS_MS);
                assert!(!is_over(&mut world, client), "{} soon", case.name);
                // But no peer gains more time than the standstill took.
                world.advance_ms(case.limit_ms + 2 * STEPS_MS);
                assert!(is_over(&mut world, client), "{} never", case.name);
            }
        }
    }
}

#[test]
fn peer_that_acts_during_a_standstill_is_in_time() {
    for is_reported in [true, false] {
        for (case, mut world) in all() {
            let client = (case.begin)(&mut world);
            world.advance_ms(LIMIT_MS - 2 * STEPS_MS);
            (case.saves_itself)(&mut world, client);
            if !is_reported {
                // The poll was interrupted, or had more events than fit.
                world.pipe(client).take_edges();
            }
            world.stand_still(ms(16_000));
            // Input that was not reported is found when the deadline expires.
            let until = if is_reported { 0 } else { 4 * STEPS_MS };
            world.advance_ms(REST_MS + LIMIT_MS - 2 * STEPS_MS + until);
            world.run_handlers();
            let metrics = world.metrics();
            let judged = metrics.slow_consumers
                + metrics.unfinished_messages
                + metrics.heartbeat_timeouts
                + metrics.refused.unserved
                + metrics.handshake_failures.timeout;
            assert_eq!(judged, 0, "{} ({is_reported})", case.name);
            if case.name == WAITING_REQUEST {
                // It was answered, and then the connection could be idle for a while.
                let output = world.output(client);
                assert_eq!(status(&output), Some(200), "{}", case.name);
            } else {
                let was_to_end = case.name.starts_with("a close frame");
                assert_eq!(world.is_closed(client), was_to_end, "{}", case.name);
            }
        }
    }
}

#[test]
fn silent_peer_is_dropped_by_an_always_late_shard() {
    for (case, mut world) in all() {
        let client = (case.begin)(&mut world);
        // Each turn is two seconds late, and another client's message wakes the shard each time.
        let other = world.connect();
        let mut turns = 0;
        while !is_over(&mut world, client) {
            sends(&world, other, b"G");
            world.stand_still(ms(2_000));
            world.skip_ms(100);
            world.settle();
            turns += 1;
            assert!(turns < 200, "{} never ends", case.name);
        }
    }
}

#[test]
fn unreported_pong_counts_at_the_deadline() {
    // Input that has arrived by the deadline is not reported, so the shard reads the socket.
    let mut world = with_heartbeat();
    let client = world.join();
    world.advance_ms(1_000 + STEPS_MS / 2);
    sends(&world, client, &client_ping(b""));
    world.pipe(client).take_edges();
    world.advance_ms(LIMIT_MS + 2 * STEPS_MS);
    assert!(!world.is_closed(client));
    assert_eq!(world.metrics().heartbeat_timeouts, 0);
}
