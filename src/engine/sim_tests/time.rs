//! Deadlines of handshakes, heartbeats, writes and closing, and the absence of timers on idle connections.

use std::time::Duration;

use super::wire::{Frame, UPGRADE, client_close, client_frame, client_ping, client_text, text};
use super::world::{Setup, Told, World, echo};
use crate::limits::{Limits, SlowConsumer};
use crate::ping::Heartbeat;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The tolerance of deadlines: one step of the shard's clock in each direction.
const STEP_MS: u64 = 8;

#[test]
fn idle_connections_have_no_timer_and_cost_no_turn() {
    let mut world = World::with_handler(echo);
    let clients = world.joined(50);
    // The handshakes' deadlines still expire, without effect.
    world.advance(Duration::from_secs(11));
    assert_eq!(world.sleeps(), None);
    let turns = world.turns;
    world.advance(Duration::from_secs(1_000_000));
    assert_eq!(world.turns, turns);
    // A message arms no timer either.
    world.client_says(clients[7], "a");
    world.broadcasts("b");
    world.run_handlers();
    assert_eq!(world.sleeps(), None);
    assert_eq!(world.all_frames(clients[7]), [text("b"), text("a")]);
}

#[test]
fn earlier_deadline_replaces_the_timer_entry() {
    let mut world = World::new(Setup {
        limits: Limits {
            message_timeout: ms(500),
            ..Limits::default()
        },
        heartbeat: Some(Heartbeat {
            interval: ms(60_000),
            timeout: ms(30_000),
        }),
        handler: Box::new(echo),
        ..Setup::default()
    });
    let clients = world.joined(3);
    let entries = |world: &mut World| world.core().cx.timers.len();
    assert_eq!(entries(&mut world), 3);
    for round in 0..50 {
        // The message's deadline is nearer than the heartbeat's, and is removed when the message is complete.
        world.client_sends(clients[0], client_frame(0x01, b"begun"));
        assert_eq!(entries(&mut world), 3, "{round}");
        world.client_sends(clients[0], client_frame(0x80, b"ended"));
        world.advance_ms(200);
        assert_eq!(entries(&mut world), 3, "{round}");
    }
    // A connection that ends leaves no timer behind.
    world.client_resets(clients[0]);
    world.client_resets(clients[1]);
    world.run_handlers();
    assert_eq!(entries(&mut world), 1);
}

#[test]
fn silent_client_is_dropped_at_the_handshake_deadline() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    world.advance_ms(10_000 - STEP_MS);
    assert!(!world.is_closed(client));
    world.advance_ms(2 * STEP_MS);
    assert!(world.is_closed(client));
    assert_eq!(world.output(client), b"");
    assert_eq!(world.metrics().handshake_failures.timeout, 1);
    assert_eq!(world.sleeps(), None);
    world.assert_empty();
}

#[test]
fn trickling_head_does_not_extend_the_deadline() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    for &byte in UPGRADE.iter().take(20) {
        world.client_sends(client, [byte]);
        world.advance_ms(499);
    }
    assert_eq!(world.output(client), b"");
    world.advance_ms(100);
    assert!(world.head(client).starts_with("HTTP/1.1 408 "));
    assert!(world.is_finished(client));
    // The shard waits for the head until the deadline.
    world.advance_ms(5_000 + STEP_MS);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn slow_handshake_does_not_delay_others() {
    let mut world = World::with_handler(echo);
    let slow = world.connect();
    world.client_sends(slow, &UPGRADE[..50]);
    world.joined(3);
    assert_eq!(world.output(slow), b"");
    world.client_sends(slow, &UPGRADE[50..]);
    assert!(world.head(slow).starts_with("HTTP/1.1 101 "));
}

fn with_heartbeat(interval: u64, timeout: u64) -> World {
    World::new(Setup {
        heartbeat: Some(Heartbeat::new(ms(interval), ms(timeout))),
        handler: Box::new(echo),
        ..Setup::default()
    })
}

const PING: Frame = Frame::Ping(Vec::new());

#[test]
fn silent_client_is_pinged_and_dropped() {
    let mut world = with_heartbeat(1_000, 3_000);
    let client = world.join();
    world.advance_ms(1_000 - STEP_MS);
    assert_eq!(world.all_frames(client), []);
    world.advance_ms(2 * STEP_MS);
    assert_eq!(world.all_frames(client), [PING]);
    world.advance_ms(2_000 - 2 * STEP_MS);
    assert!(!world.is_closed(client));
    assert_eq!(world.all_frames(client), [], "one ping only");
    world.advance_ms(2 * STEP_MS);
    assert!(world.is_closed(client));
    let frames = world.all_frames(client);
    assert!(
        matches!(frames[..], [Frame::Close(Some(1011), _)]),
        "{frames:?}"
    );
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    assert_eq!(world.metrics().heartbeat_timeouts, 1);
    world.assert_empty();
}

#[test]
fn client_is_never_dropped_before_a_ping() {
    // The timeout is shorter than the interval, so it counts from the ping.
    let mut world = with_heartbeat(1_000, 500);
    let client = world.join();
    world.advance_ms(1_000 + STEP_MS);
    assert_eq!(world.all_frames(client), [PING]);
    world.advance_ms(400);
    assert!(!world.is_closed(client));
    world.client_sends(client, client_frame(0x8A, b""));
    world.advance_ms(900);
    assert!(!world.is_closed(client));
    world.advance_ms(700);
    assert!(world.is_closed(client));
}

#[test]
fn any_input_counts_as_a_sign_of_life() {
    let mut world = with_heartbeat(1_000, 2_000);
    let client = world.join();
    let signs = [
        client_frame(0x8A, b""),
        client_ping(b"x"),
        client_text("a"),
        client_text("never whole")[..3].to_vec(),
    ];
    for sign in signs.iter().chain(&signs[..0]) {
        world.advance_ms(1_900);
        world.client_sends(client, sign);
        world.run_handlers();
    }
    world.advance_ms(1_900);
    assert!(!world.is_closed(client));
    world.advance_ms(200);
    assert!(world.is_closed(client));
}

#[test]
fn client_answering_pings_stays_connected() {
    let mut world = with_heartbeat(1_000, 2_000);
    let client = world.join();
    for _ in 0..1_000 {
        world.advance_ms(1_000);
        if world.frames(client) == [PING] {
            world.client_sends(client, client_frame(0x8A, b""));
        }
    }
    assert!(!world.is_closed(client));
    assert!(world.turns < 4_000, "{} turns", world.turns);
}

#[test]
fn heartbeat_is_paused_while_reading_is_paused() {
    let mut world = World::new(Setup {
        heartbeat: Some(Heartbeat::new(ms(1_000), ms(2_000))),
        limits: Limits {
            pending_bytes_max: 100,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    });
    let client = world.join();
    world.client_says(client, "its handler takes an hour");
    // This fills the queue of waiting messages, so that reading pauses.
    for _ in 0..10 {
        world.client_says(client, &"x".repeat(100));
    }
    assert!(world.pipe(client).unread() > 0);
    world.advance(Duration::from_secs(3_600));
    assert!(!world.is_closed(client));
    world.run_handlers();
    assert_eq!(world.frames(client).len(), 11);
    world.advance_ms(1_500);
    assert_eq!(world.frames(client), [PING]);
    assert!(!world.is_closed(client));
    world.advance_ms(1_000);
    assert!(world.is_closed(client));
}

#[test]
fn client_reading_nothing_is_dropped_at_write_timeout() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.advance_ms(20_000);
    assert_eq!(world.sleeps(), None);
    world.stall(client, 3);
    world.sends(client, "waits");
    world.advance_ms(29_000);
    // One byte is too little progress.
    world.client_reads(client, 1);
    assert!(!world.is_closed(client));
    world.advance_ms(1_000 + STEP_MS);
    assert!(world.is_closed(client));
    world.run_handlers();
    assert_eq!(world.handled(client), [Told::Open, Told::Close]);
    let metrics = world.metrics();
    assert_eq!((metrics.dropped.closed, metrics.slow_consumers), (1, 1));
    world.assert_empty();
}

#[test]
fn client_ignoring_the_close_is_dropped_at_close_timeout() {
    let mut world = World::with_handler(echo);
    let (mute, open) = (world.join(), world.join());
    world.closes(mute, 1000, "");
    world.closes(open, 1000, "");
    world.settle();
    // One client answers but never ends its stream. The answer is enough.
    world.client_sends(open, client_close(1000));
    world.run_handlers();
    assert!(world.is_closed(open));
    world.advance_ms(5_000 - STEP_MS);
    assert!(!world.is_closed(mute));
    world.advance_ms(2 * STEP_MS);
    assert!(world.is_closed(mute));
    world.assert_empty();
}

#[test]
fn reading_client_may_exceed_the_close_timeout() {
    let mut world = World::with_handler(echo);
    let client = world.join();
    world.stall(client, 0);
    for n in 0..10 {
        world.sends(client, &n.to_string().repeat(5_000));
    }
    world.closes(client, 1000, "");
    world.settle();
    for _ in 0..10 {
        world.advance_ms(4_000);
        world.client_reads(client, 5_000);
        assert!(!world.is_closed(client));
    }
    world.client_reads(client, 100);
    let frames = world.all_frames(client);
    assert_eq!(frames.len(), 11);
    assert!(matches!(frames[10], Frame::Close(Some(1000), _)));
}

/// Runs a client that reads nothing with a time limit of zero, and checks that the shard does not spin.
fn with_no_time(setup: Setup) {
    let mut world = World::new(Setup {
        handler: Box::new(echo),
        ..setup
    });
    let client = world.connect();
    world.client_sends(client, [UPGRADE, &client_text("a")].concat());
    world.stall(client, 0);
    for _ in 0..3 {
        world.client_says(client, "0123456789");
        let _ = world.try_broadcast("0123456789");
    }
    world.advance_ms(100);
    world.run_handlers();
    world.advance_ms(100);
    world.stop(ms(1_000));
    world.advance_ms(1_000);
    assert!(world.turns < 1_000, "{} turns", world.turns);
}

#[test]
fn zero_write_timeout_does_not_spin_the_shard() {
    with_no_time(Setup {
        limits: Limits {
            write_timeout: Duration::ZERO,
            ..Limits::default()
        },
        ..Setup::default()
    });
}

#[test]
fn zero_patience_does_not_spin_the_shard() {
    with_no_time(Setup {
        slow_consumer: SlowConsumer::Pace {
            bytes_per_second_min: 0,
            patience: Duration::ZERO,
        },
        limits: Limits {
            outbox_bytes_max: 10,
            ..Limits::default()
        },
        ..Setup::default()
    });
}

#[test]
fn zero_heartbeat_does_not_spin_the_shard() {
    with_no_time(Setup {
        heartbeat: Some(Heartbeat::new(Duration::ZERO, ms(10_000))),
        limits: Limits {
            pending_bytes_max: 0,
            ..Limits::default()
        },
        ..Setup::default()
    });
}

#[test]
fn zero_time_limits_do_not_spin_the_shard() {
    with_no_time(Setup {
        limits: Limits {
            handshake_timeout: Duration::ZERO,
            keep_alive_timeout: Duration::ZERO,
            close_timeout: Duration::ZERO,
            ..Limits::default()
        },
        ..Setup::default()
    });
}
