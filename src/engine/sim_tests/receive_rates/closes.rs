//! Clients that are closed since they send too fast, and those that are not, since it was the server that paused.

use std::time::Duration;

use super::{KIB, beating, bytes, echoed, messages, numbered};
use crate::engine::sim_tests::wire::{Frame, client_close, client_frame, client_ping, pong, text};
use crate::engine::sim_tests::world::{Told, World};
use crate::limits::{Limits, OverRate};

fn closing(limits: Limits) -> Limits {
    limits.over_rate(OverRate::Close)
}

#[test]
fn close_follows_the_replies_to_earlier_messages() {
    let cases = [
        (messages(10), 10, "too many messages"),
        (bytes(70), 10, "too many bytes"),
    ];
    for (limits, handled, reason) in cases {
        let mut world = World::echoing(closing(limits));
        let client = world.join();
        world.client_sends(client, numbered(0..30).repeat(100));
        world.run_handlers();
        let frames = world.all_frames(client);
        assert_eq!(frames.len(), handled + 1);
        assert_eq!(frames[handled - 1], text((handled - 1).to_string()));
        assert_eq!(frames[handled], Frame::Close(Some(1008), reason.into()));
        assert_eq!(world.handled(client).last(), Some(&Told::Close));
        let metrics = world.metrics();
        assert_eq!((metrics.closed_over_rate, metrics.reads_delayed), (1, 0));
        assert_eq!(
            (metrics.protocol_errors, metrics.unfinished_messages),
            (0, 0)
        );
        world.client_ends(client);
        world.assert_empty();
    }
}

#[test]
fn client_within_its_rate_is_never_closed() {
    let mut world = World::echoing(closing(messages(10).bytes_per_second_max(Some(1_000))));
    let client = world.join();
    for n in 0..100 {
        world.client_says(client, &format!("{n:094}"));
        assert_eq!(echoed(&mut world, client), [n]);
        world.advance_ms(100);
    }
    world.client_sends(client, client_close(1000));
    world.run_handlers();
    let reply = Frame::Close(Some(1000), String::new());
    assert_eq!(world.all_frames(client), [reply]);
    assert_eq!(world.metrics().closed_over_rate, 0);
}

#[test]
fn rate_of_zero_closes_at_the_first_message() {
    for over in [OverRate::Delay, OverRate::Close] {
        for limits in [messages(0), bytes(0)] {
            let mut world = beating(limits.over_rate(over), 5);
            let client = world.join();
            for _ in 0..3 {
                // Answers to pings are no messages.
                world.advance_ms(5_100);
                assert_eq!(world.all_frames(client), [Frame::Ping(Vec::new())]);
                world.client_sends(client, client_frame(0x8A, b""));
            }
            world.broadcasts("news");
            world.settle();
            assert_eq!(world.all_frames(client), [text("news")]);
            world.client_says(client, "?");
            world.run_handlers();
            let frames = world.all_frames(client);
            assert!(
                matches!(frames[..], [Frame::Close(Some(1008), _)]),
                "{frames:?}"
            );
        }
    }
}

#[test]
fn rate_of_zero_allows_a_few_control_frames() {
    for limits in [messages(0), bytes(0)] {
        let mut world = World::echoing(limits);
        let client = world.join();
        // Client libraries keep connections open with pings, some with pongs.
        for _ in 0..10 {
            world.client_sends(client, client_ping(&[b'p'; 100]));
            world.client_sends(client, client_frame(0x8A, b""));
            assert_eq!(world.all_frames(client), [pong([b'p'; 100])]);
            world.advance_ms(2_000);
        }
        world.advance_ms(5_000);
        world.client_sends(client, client_ping(b"p").repeat(5));
        assert_eq!(world.all_frames(client), vec![pong(b"p"); 5]);
        assert_eq!(world.metrics().closed_over_rate, 0);
        world.client_sends(client, client_ping(b"p"));
        world.run_handlers();
        let frames = world.all_frames(client);
        assert!(
            matches!(frames[..], [Frame::Close(Some(1008), _)]),
            "{frames:?}"
        );
    }
}

// ----------------------------------------------------------------------------------------------- pauses of the server

/// Sends a message at once and then one every 100 ms, for so many seconds.
fn send_ten_per_second(world: &mut World, client: usize, sent: &mut usize, seconds: usize) {
    for _ in 0..10 * seconds {
        world.client_says(client, &sent.to_string());
        *sent += 1;
        world.advance_ms(100);
    }
}

/// Asserts that a client with ten messages per second was and is served, and is still limited.
fn assert_served(world: &mut World, client: usize, mut sent: usize) {
    let mut all = echoed(world, client);
    for _ in 0..3 {
        send_ten_per_second(world, client, &mut sent, 1);
        all.extend(echoed(world, client));
    }
    assert!(all.into_iter().eq(0..sent));
    assert_eq!(world.metrics().closed_over_rate, 0);
    world.client_sends(client, numbered(0..12));
    world.run_handlers();
    assert_eq!(world.metrics().closed_over_rate, 1);
}

#[test]
fn client_within_its_rate_survives_a_slow_handler() {
    let mut world = World::echoing(Limits {
        pending_bytes_max: 1,
        ..closing(messages(10))
    });
    let client = world.join();
    let mut sent = 0;
    send_ten_per_second(&mut world, client, &mut sent, 5);
    assert_eq!(world.metrics().messages_in, 2, "the inbox is full");
    assert_served(&mut world, client, sent);
}

#[test]
fn client_within_its_rate_survives_a_full_receive_budget() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        received_bytes_max: 32 * KIB,
        ..closing(messages(10))
    });
    let (client, other) = (world.join(), world.join());
    for _ in 0..2 {
        world.client_says(other, &"x".repeat(10 * KIB));
    }
    let mut sent = 0;
    send_ten_per_second(&mut world, client, &mut sent, 5);
    assert_eq!(world.metrics().messages_in, 2, "nothing is read");
    assert_served(&mut world, client, sent);
}

#[test]
fn client_within_its_rate_survives_a_standstill() {
    for idle_ms in [0, 400, 2_000] {
        let mut world = World::echoing(closing(messages(10)));
        let client = world.join();
        let mut sent = 0;
        send_ten_per_second(&mut world, client, &mut sent, 2);
        assert_eq!(echoed(&mut world, client).len(), sent);
        world.advance_ms(idle_ms);
        // The process is stopped while the client goes on.
        world.pipe(client).client_sends(&numbered(0..30));
        world.stand_still(Duration::from_secs(3));
        assert_eq!(echoed(&mut world, client).len(), 30);
        // At once, it may send what it might have sent since.
        for n in 0..20 {
            world.client_says(client, &n.to_string());
            world.advance_ms(100);
        }
        assert_eq!(echoed(&mut world, client).len(), 20);
        assert_eq!(world.metrics().closed_over_rate, 0);
    }
}

#[test]
fn flood_during_a_pause_of_the_server_is_closed() {
    let mut world = World::echoing(closing(messages(10)));
    let client = world.join();
    world.client_says(client, "0");
    assert_eq!(echoed(&mut world, client), [0]);
    world.pipe(client).client_sends(&numbered(0..100));
    world.stand_still(Duration::from_secs(3));
    world.run_handlers();
    let frames = world.all_frames(client);
    assert!((31..=41).contains(&frames.len()), "{}", frames.len());
    let reason = "too many messages";
    assert_eq!(
        frames.last(),
        Some(&Frame::Close(Some(1008), reason.into()))
    );
}

#[test]
fn flood_after_idle_time_is_closed() {
    for idle_ms in [2_000, 600_000] {
        let mut world = World::echoing(closing(messages(10)));
        let client = world.join();
        world.client_says(client, "0");
        assert_eq!(echoed(&mut world, client), [0]);
        let turns = world.turns;
        world.advance_ms(idle_ms);
        assert!(world.turns - turns < 130, "an idle shard sleeps");
        world.client_sends(client, numbered(0..11));
        world.run_handlers();
        assert_eq!(world.all_frames(client).len(), 11, "ten, and a close frame");
        assert_eq!(world.metrics().closed_over_rate, 1);
    }
}
