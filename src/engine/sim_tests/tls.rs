//! Transports as with TLS: reads of a handshake are costly, and bytes that the socket refuses are pending.

use std::time::Duration;

use super::streams::Scene;
use super::wire::{Frame, UPGRADE, client_frame, client_text, text};
use super::world::{Setup, World, echo};
use crate::limits::{Limits, SlowConsumer};
use crate::ping::Heartbeat;

const KIB: usize = 1 << 10;

#[test]
fn costly_reads_of_a_turn_are_bounded_and_delay_nobody() {
    let mut world = World::echoing(Limits::default());
    let other = world.join();
    // Each shard affords work for 2 in a turn, or one read that costs more; and 64 reads of requests without TLS.
    for (cost, reads_per_turn, count) in [(1, 2, 20), (4, 1, 20), (0, 64, 200)] {
        let clients: Vec<usize> = (0..count).map(|_| world.connect()).collect();
        world.settle();
        for &client in &clients {
            world.pipe(client).read_cost = cost;
            world.pipe(client).client_sends(UPGRADE);
        }
        let reads = |world: &World| -> usize {
            let of = |&client: &usize| world.pipe(client).reads;
            clients.iter().map(of).sum()
        };
        let (before, mut turns) = (reads(&world), 0);
        while clients
            .iter()
            .any(|&client| world.pipe(client).unread() > 0)
        {
            let (reads_before, others_before) = (reads(&world), world.pipe(other).reads);
            world.pipe(other).client_sends(&client_text("hello"));
            world.turn();
            turns += 1;
            assert!(reads(&world) - reads_before <= reads_per_turn);
            assert!(
                world.pipe(other).reads > others_before,
                "others are read in each turn"
            );
        }
        assert_eq!(
            turns,
            count / reads_per_turn + usize::from(count % reads_per_turn > 0)
        );
        assert!(reads(&world) - before >= count);
        for &client in &clients {
            world.pipe(client).read_cost = 0;
        }
        world.settle();
        world.run_handlers();
        for client in clients {
            assert!(world.head(client).starts_with("HTTP/1.1 101 "));
        }
    }
}

/// Connects this many clients, which send their requests, and returns them.
fn requesting(world: &mut World, count: usize) -> Vec<usize> {
    let clients: Vec<usize> = (0..count).map(|_| world.connect()).collect();
    world.settle();
    for &client in &clients {
        world.pipe(client).client_sends(UPGRADE);
    }
    clients
}

/// Removes the clients whose requests were read. Returns how many these are.
fn take_read(world: &World, unread: &mut Vec<usize>) -> u32 {
    let before = unread.len();
    unread.retain(|&client| world.pipe(client).unread() > 0);
    (before - unread.len()) as u32
}

#[test]
fn turn_after_a_long_one_admits_more_clients() {
    let cases = [
        (0, 64, 32),
        (31, 64, 32),
        (32, 128, 64),
        (60, 192, 96),
        (10_000, 256, 128),
    ];
    for (took_ms, reads, accepts) in cases {
        let mut world = World::echoing(Limits::default());
        let mut unread: Vec<usize> = (0..300).map(|_| world.connect()).collect();
        world.settle();
        // Of a handler on the shard's thread, for example.
        world.turn_of(Duration::from_millis(took_ms));
        for &client in &unread {
            world.pipe(client).client_sends(UPGRADE);
        }
        world.begin_turn();
        assert_eq!(*world.core().accepts_left(), accepts, "{took_ms} ms");
        world.end_turn();
        assert_eq!(take_read(&world, &mut unread), reads, "{took_ms} ms");
    }
}

#[test]
fn storm_of_costly_clients_does_not_make_turns_longer_and_longer() {
    for (micros_per_client, reads_max) in [(24, 64), (100, 64), (200, 64), (2_000, 256)] {
        let mut world = World::echoing(Limits::default());
        let mut unread = requesting(&mut world, 1_000);
        let others = Duration::from_millis(4);
        let mut took = others;
        while !unread.is_empty() {
            world.turn_of(took);
            let read = take_read(&world, &mut unread);
            assert!(read <= reads_max, "{read} of {micros_per_client} µs each");
            took = others + Duration::from_micros(micros_per_client) * read;
        }
    }
}

#[test]
fn requests_that_arrived_in_time_are_answered_although_they_wait_for_their_turn() {
    let timeout = Duration::from_secs(10);
    let mut world = World::echoing(Limits::default().handshake_timeout(timeout));
    let clients: Vec<usize> = (0..200).map(|_| world.connect()).collect();
    world.settle();
    world.advance(timeout - Duration::from_millis(20));
    for &client in &clients {
        world.pipe(client).client_sends(UPGRADE);
    }
    // The time of all of them is over before the turn after this one.
    world.turn();
    world.skip_ms(40);
    world.turn();
    world.run_handlers();
    for client in clients {
        assert!(world.head(client).starts_with("HTTP/1.1 101 "));
    }
    assert_eq!(world.metrics().handshake_failures.timeout, 0);
}

#[test]
fn pending_bytes_are_sent_before_the_connection_ends() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.pipe(client).pending_max = KIB;
    world.stall(client, 5);
    world.sends(client, "accepted as a whole");
    world.settle();
    assert_eq!(world.waiting_bytes(client), 0);
    world.closes(client, 1000, "bye");
    world.settle();
    assert!(!world.is_finished(client));
    world.client_reads(client, KIB);
    let frames = world.all_frames(client);
    assert_eq!(frames[0], text("accepted as a whole"));
    assert!(matches!(&frames[1], Frame::Close(..)), "{frames:?}");
}

#[test]
fn close_frame_that_is_pending_is_sent_before_the_end() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.pipe(client).pending_max = KIB;
    world.stall(client, 1);
    // The reply to the client's close frame ends the connection.
    world.client_sends(client, client_frame(0x88, &[3, 232]));
    world.run_handlers();
    assert!(!world.is_closed(client), "the reply is pending");
    world.client_reads(client, KIB);
    let frames = world.all_frames(client);
    assert!(matches!(&frames[..], [Frame::Close(..)]), "{frames:?}");
    assert!(world.is_finished(client) || world.is_closed(client));
}

#[test]
fn pending_bytes_count_against_the_send_budget() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(10);
    for &client in &clients {
        world.pipe(client).pending_max = 16 * KIB;
        world.stall(client, 0);
        world.client_says(client, &"x".repeat(15 * KIB));
        world.run_handlers();
        let own = world.core().cx.fanout.unshared_bytes();
        assert!(own <= 64 * KIB, "{own}");
    }
    let left = clients.iter().filter(|&&client| !world.is_closed(client));
    assert_eq!(left.count(), 4);
}

#[test]
fn pending_share_of_a_broadcast_counts_until_it_is_sent() {
    let mut world = World::echoing(Limits::default());
    let clients = world.joined(5);
    for &client in &clients {
        world.pipe(client).pending_max = 16 * KIB;
        world.stall(client, 0);
    }
    world.broadcasts("x".repeat(KIB));
    world.settle();
    let pending = world.core().cx.fanout.unshared_bytes();
    assert!(pending >= 5 * KIB, "{pending}");
    for client in clients {
        world.unstall(client);
        assert_eq!(world.all_frames(client), [text("x".repeat(KIB))]);
    }
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
}

#[test]
fn broadcast_that_sends_pending_bytes_ends_their_count() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.pipe(client).pending_max = KIB;
    world.stall(client, 0);
    world.broadcasts("first");
    world.settle();
    assert!(world.core().cx.fanout.unshared_bytes() > 0);
    // The socket has room again, but the poll has not reported it.
    world.pipe(client).add_room_unreported(KIB);
    world.broadcasts("second");
    world.settle();
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
    assert_eq!(world.all_frames(client), [text("first"), text("second")]);
}

#[test]
fn part_of_a_record_is_a_sign_of_life() {
    let mut world = World::new(Setup {
        heartbeat: Some(Heartbeat::new(
            Duration::from_secs(1),
            Duration::from_secs(3),
        )),
        handler: Box::new(echo),
        ..Setup::default()
    });
    let client = world.join();
    let message = client_text(&"x".repeat(100));
    world.pipe(client).record_bytes = message.len();
    // The heartbeat would find the client silent many times over.
    for &byte in &message[..message.len() - 1] {
        world.client_sends(client, [byte]);
        world.advance_ms(900);
        assert!(!world.is_closed(client));
    }
    assert_eq!(world.all_frames(client), []);
    world.client_sends(client, &message[message.len() - 1..]);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("x".repeat(100))]);
    // Silence is found as ever.
    world.advance_ms(3_100);
    assert!(world.is_closed(client));
    assert_eq!(world.metrics().heartbeat_timeouts, 1);
}

#[test]
fn complete_record_without_a_message_has_no_timeout() {
    let mut world = World::new(Setup {
        limits: Limits::default().message_timeout(Duration::from_secs(2)),
        handler: Box::new(echo),
        ..Setup::default()
    });
    let [complete, incomplete] = [world.join(), world.join()];
    for client in [complete, incomplete] {
        let mut pipe = world.pipe(client);
        pipe.record_bytes = 20;
        pipe.records_are_internal = true;
    }
    world.client_sends(complete, [0; 10]);
    world.client_sends(incomplete, [0; 10]);
    world.client_sends(complete, [0; 10]);
    world.advance_ms(5_000);
    assert!(!world.is_finished(complete));
    assert_eq!(world.metrics().unfinished_messages, 1);
    world.pipe(complete).record_bytes = 0;
    world.client_says(complete, "hello");
    world.run_handlers();
    assert_eq!(world.all_frames(complete), [text("hello")]);
    let frames = world.all_frames(incomplete);
    assert!(
        matches!(frames[..], [Frame::Close(Some(1008), _)]),
        "{frames:?}"
    );
}

#[test]
fn event_stream_survives_a_record_in_two_parts() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let client = scene.join();
    scene.world.pipe(client).record_bytes = 20;
    scene.world.client_sends(client, [b'x'; 10]);
    scene.world.client_sends(client, [b'x'; 10]);
    scene.world.advance(2 * Limits::default().message_timeout);
    assert!(!scene.world.is_finished(client));
    assert_eq!(scene.world.metrics().unfinished_messages, 0);
}
