//! The bounds of received and queued messages: memory for unfinished and finished ones, the time to finish one, and memory for
//! all outboxes together.

use std::time::Duration;

use super::wire::{Frame, UPGRADE, client_close, client_frame, client_text, text};
use super::world::{Setup, Told, World, echo};
use crate::limits::{Limits, OverRate, SlowConsumer};

const KIB: usize = 1 << 10;

/// Limits with 64 KiB for unfinished messages and 64 KiB for finished ones.
fn narrow() -> Limits {
    Limits {
        message_bytes_max: 16 * KIB,
        received_bytes_max: 128 * KIB,
        outbox_bytes_max: 32 * KIB,
        ..Limits::default()
    }
}

#[test]
fn message_not_finished_in_time_ends_its_connection() {
    let fragment = |first| client_frame(first, b"x");
    for begun in [
        client_text("half a frame")[..9].to_vec(),
        vec![0x81],
        fragment(0x01),
    ] {
        let mut world = World::echoing(Limits {
            message_timeout: Duration::from_secs(10),
            ..Limits::default()
        });
        let client = world.join();
        world.client_says(client, "whole");
        world.client_sends(client, &begun);
        world.run_handlers();
        assert_eq!(world.all_frames(client), [text("whole")]);
        for _ in 0..9 {
            world.advance_ms(1_000);
            if begun[0] == 0x01 {
                world.client_sends(client, fragment(0x00));
            }
        }
        assert_eq!(world.all_frames(client), []);
        world.advance_ms(1_100);
        assert_eq!(
            world.all_frames(client),
            [Frame::Close(Some(1008), "the message took too long".into())]
        );
        world.run_handlers();
        assert_eq!(world.handled(client).last(), Some(&Told::Close));
        assert_eq!(world.metrics().unfinished_messages, 1);
        world.client_ends(client);
        world.assert_empty();
    }
}

#[test]
fn each_message_has_its_own_deadline() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(10),
        ..Limits::default()
    });
    let client = world.join();
    for n in 0..5 {
        let message = client_text(&format!("message {n}"));
        world.client_sends(client, &message[..5]);
        world.advance_ms(6_000);
        world.client_sends(client, &message[5..]);
        world.run_handlers();
        assert_eq!(world.all_frames(client), [text(format!("message {n}"))]);
        world.advance_ms(6_000);
    }
}

#[test]
fn message_deadline_is_paused_while_reading_is_paused() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(10),
        pending_bytes_max: 1,
        ..Limits::default()
    });
    let client = world.join();
    world.client_says(client, "keeps its handler busy");
    let cut = client_text("cut in two");
    let fills_what_may_wait = client_text("waits");
    world.client_sends(client, [&fills_what_may_wait, &cut[..5]].concat());
    world.client_sends(client, &cut[5..]);
    world.advance_ms(60_000);
    world.run_handlers();
    let replies = world.all_frames(client);
    assert_eq!(replies.last(), Some(&text("cut in two")));
    assert_eq!(world.metrics().unfinished_messages, 0);
}

#[test]
fn largest_unfinished_message_is_evicted_over_the_budget() {
    let mut world = World::echoing(narrow());
    let clients = world.joined(8);
    let message = |len: usize| client_text(&"x".repeat(len));
    let lens: Vec<usize> = (0..8).map(|n| (9 + n % 4) * KIB).collect();
    for (&client, &len) in clients.iter().zip(&lens) {
        world.client_sends(client, &message(len)[..len - 10]);
    }
    let gone: Vec<usize> = (0..8)
        .filter(|&n| !world.frames(clients[n]).is_empty())
        .collect();
    assert!(!gone.is_empty() && gone.len() < 4, "{gone:?}");
    assert!(gone.iter().all(|&n| lens[n] >= 11 * KIB), "{gone:?}");
    assert_eq!(world.metrics().unfinished_messages, gone.len() as u64);
    assert!(world.core().cx.receive_budget.bytes() <= 64 * KIB);
    for n in 0..8 {
        world.client_sends(clients[n], &message(lens[n])[lens[n] - 10..]);
        world.run_handlers();
        let expected = if gone.contains(&n) { 0 } else { 1 };
        assert_eq!(world.all_frames(clients[n]).len(), expected, "client {n}");
    }
    for client in clients {
        world.client_ends(client);
    }
    world.assert_empty();
}

#[test]
fn reading_pauses_until_handlers_have_caught_up() {
    let mut world = World::echoing(narrow());
    let clients = world.joined(16);
    let payload = "x".repeat(15 * KIB);
    for &client in &clients {
        world.client_says(client, &payload);
    }
    // No handler runs in the meantime.
    let held = world.core().cx.receive_budget.bytes();
    assert!((64 * KIB..96 * KIB).contains(&held), "{held}");
    let unread = clients
        .iter()
        .filter(|&&client| world.pipe(client).unread() > 0)
        .count();
    assert!(unread > 8, "{unread} are not read");
    world.run_handlers();
    for &client in &clients {
        assert_eq!(world.all_frames(client), [text(payload.clone())]);
    }
    for client in clients {
        world.client_sends(client, client_close(1000));
        world.run_handlers();
    }
    world.assert_empty();
}

#[test]
fn nonreaders_of_replies_do_not_block_reading_others() {
    let mut world = World::echoing(Limits {
        pending_bytes_max: 64 * KIB,
        ..narrow()
    });
    let greedy = world.joined(8);
    let payload = "x".repeat(15 * KIB);
    for &client in &greedy {
        world.stall(client, 0);
        // Two replies fill more than half of its outbox, so later messages wait until it reads.
        for _ in 0..2 {
            world.client_says(client, &payload);
            world.run_handlers();
        }
        world.client_says(client, &payload);
        world.run_handlers();
    }
    let honest = world.join();
    world.client_says(honest, "am I heard?");
    world.run_handlers();
    assert_eq!(world.all_frames(honest), [text("am I heard?")]);
    let cut_off = world.metrics().slow_consumers;
    assert!((1..8).contains(&cut_off), "{cut_off} of the greedy went");
    for client in greedy {
        world.client_resets(client);
    }
    world.client_ends(honest);
    world.assert_empty();
}

#[test]
fn connection_lost_mid_message_leaks_nothing() {
    let mut world = World::echoing(Limits::default());
    let begun = &client_frame(0x82, &[0; 10_000])[..9_000];
    let clients = world.joined(3);
    for &client in &clients {
        world.client_sends(client, begun);
    }
    assert!(world.core().cx.receive_budget.bytes() >= 3 * 9_000 - 100);
    world.client_ends(clients[0]);
    world.client_resets(clients[1]);
    world.closes(clients[2], 1000, "");
    world.settle();
    world.advance_ms(6_000);
    world.assert_empty();
}

#[test]
fn unread_replies_are_bounded_and_readers_unaffected() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let payload = "x".repeat(15 * KIB);
    let greedy = world.joined(10);
    let honest = world.join();
    let mut most = 0;
    for &client in &greedy {
        world.stall(client, 0);
        world.client_says(client, &payload);
        world.run_handlers();
        most = most.max(world.core().cx.fanout.unshared_bytes());
        world.client_says(honest, &payload);
        world.run_handlers();
        assert_eq!(world.all_frames(honest), [text(payload.clone())]);
    }
    assert!(most <= 64 * KIB, "{most}");
    assert_eq!(world.metrics().slow_consumers, 6);
    // Broadcasts are shared, so they are not counted.
    let before = world.core().cx.fanout.unshared_bytes();
    world.broadcasts(&payload);
    world.settle();
    assert_eq!(world.core().cx.fanout.unshared_bytes(), before);
    assert_eq!(world.metrics().slow_consumers, 6);
    for client in greedy.into_iter().chain([honest]) {
        world.client_resets(client);
    }
    world.assert_empty();
}

#[test]
fn burst_of_replies_to_readers_disconnects_nobody() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 32 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(20);
    let payload = "x".repeat(15 * KIB);
    // All of it happens in one turn.
    for &client in &clients {
        world.sends(client, &payload);
    }
    world.settle();
    for client in clients {
        assert_eq!(world.all_frames(client), [text(payload.clone())]);
    }
    assert_eq!(world.metrics().slow_consumers, 0);
}

#[test]
fn back_to_back_messages_have_their_own_deadlines() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(10),
        ..Limits::default()
    });
    let client = world.join();
    let mut sent = Vec::new();
    for n in 0..10 {
        // Each read ends inside the next message.
        let message = client_text(&format!("message {n}"));
        sent.extend_from_slice(&message[..5]);
        world.client_sends(client, std::mem::take(&mut sent));
        world.run_handlers();
        world.advance_ms(3_000);
        sent.extend_from_slice(&message[5..]);
    }
    world.client_sends(client, sent);
    world.run_handlers();
    assert_eq!(world.all_frames(client).len(), 10);
    assert_eq!(world.metrics().unfinished_messages, 0);
}

#[test]
fn pongs_do_not_pause_the_message_deadline() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(10),
        ..Limits::default()
    });
    let client = world.join();
    world.client_sends(client, client_frame(0x01, b"x"));
    let pongs = client_frame(0x8a, &[0; 100]).repeat(700);
    for _ in 0..210 {
        // More than one read takes, each time the shard runs.
        world.pipe(client).client_sends(&pongs.repeat(2));
        world.skip_ms(100);
        world.turn();
    }
    assert_eq!(world.metrics().unfinished_messages, 1);
}

#[test]
fn nonreaders_with_queued_input_do_not_block_others() {
    let mut world = World::echoing(Limits {
        pending_bytes_max: 64 * KIB,
        ..narrow()
    });
    let greedy = world.joined(3);
    for &client in &greedy {
        // The outbox is almost half full, and the next reply fills more than half.
        world.stall(client, 0);
        world.client_says(client, &"x".repeat(15 * KIB));
    }
    world.run_handlers();
    for &client in &greedy {
        world.client_says(client, &"x".repeat(2 * KIB));
    }
    for &client in &greedy {
        let waiting = client_text(&"x".repeat(15 * KIB)).repeat(3);
        world.client_sends(client, waiting);
    }
    world.run_handlers();
    let honest = world.join();
    world.client_says(honest, "am I heard?");
    world.run_handlers();
    assert_eq!(world.all_frames(honest), [text("am I heard?")]);
}

#[test]
fn slightly_slow_clients_survive_slow_handlers() {
    let mut world = World::echoing(Limits {
        pending_bytes_max: 64 * KIB,
        ..narrow()
    });
    let slow = world.join();
    world.stall(slow, 0);
    for _ in 0..2 {
        world.client_says(slow, &"x".repeat(15 * KIB));
        world.run_handlers();
    }
    world.client_says(slow, "waits until the replies are read");
    let greedy = world.joined(8);
    for &client in &greedy {
        world.client_sends(client, client_text(&"x".repeat(15 * KIB)).repeat(3));
    }
    world.unstall(slow);
    world.run_handlers();
    assert_eq!(world.all_frames(slow).len(), 3);
    assert_eq!(world.metrics().slow_consumers, 0);
}

#[test]
fn client_paused_longest_is_read_first() {
    let mut world = World::new(Setup {
        limits: narrow(),
        ..Setup::default()
    });
    let greedy = world.joined(16);
    let honest = world.join();
    world.handled(honest);
    let message = client_text(&"x".repeat(15 * KIB));
    for &client in &greedy {
        world.client_sends(client, message.repeat(200));
    }
    world.client_says(honest, "am I heard?");
    for _ in 0..100 {
        world.run_job(0);
        world.hub.wake_deferred();
        world.settle();
    }
    assert_eq!(world.handled(honest), [Told::message("am I heard?")]);
}

#[test]
fn unshared_broadcast_copies_are_counted() {
    let mut world = World::echoing(Limits {
        outboxes_bytes_max: 64 * KIB,
        message_bytes_max: 16 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(10);
    for &client in &clients {
        world.stall(client, 0);
    }
    for _ in 0..500 {
        world.broadcasts("x".repeat(100));
        world.settle();
    }
    let copies: usize = clients
        .iter()
        .map(|&client| world.unshared_bytes(client))
        .sum();
    assert!(copies <= 64 * KIB, "{copies}");
}

#[test]
fn messages_not_queued_are_not_counted() {
    let mut world = World::new(Setup {
        limits: Limits {
            message_bytes_max: 16 * KIB,
            outbox_bytes_max: 32 * KIB,
            ..Limits::default()
        },
        slow_consumer: SlowConsumer::DropNewest,
        ..Setup::default()
    });
    let client = world.join();
    world.stall(client, 0);
    for _ in 0..2 {
        world.broadcasts("x".repeat(16 * KIB - 14));
        world.settle();
    }
    world.sends(client, &"x".repeat(10 * KIB));
    world.settle();
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
}

#[test]
fn delivered_replies_before_broadcasts_are_not_counted() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outbox_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let client = world.join();
    world.stall(client, 0);
    world.sends(client, &"x".repeat(10 * KIB));
    world.settle();
    world.broadcasts("x".repeat(15 * KIB));
    world.settle();
    world.client_reads(client, 11 * KIB);
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
}

#[test]
fn reader_of_earlier_broadcasts_is_not_a_nonreader() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 32 * KIB,
        outbox_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(3);
    for &client in &clients {
        world.stall(client, 0);
    }
    world.broadcasts("x".repeat(16 * KIB - 14));
    world.settle();
    for (&client, len) in clients.iter().zip([15, 10, 9]) {
        // The socket has room for a part of the broadcasts, but no readiness was reported yet.
        world.pipe(clients[0]).add_room_unreported(KIB);
        world.sends(client, &"x".repeat(len * KIB));
        world.settle();
    }
    let gone: Vec<bool> = clients
        .iter()
        .map(|&client| world.is_closed(client))
        .collect();
    assert_eq!(gone, [false, true, false]);
}

#[test]
fn messages_right_after_a_handshake_are_bounded() {
    let mut world = World::echoing(narrow());
    let message = client_text(&"x".repeat(15 * KIB));
    let mut most = 0;
    for _ in 0..32 {
        let client = world.connect();
        let early = [UPGRADE, &message.repeat(3)].concat();
        world.client_sends(client, early);
        most = most.max(world.core().cx.receive_budget.bytes());
    }
    assert!(most <= (64 + 64) * KIB, "{most}");
    assert!(world.metrics().unfinished_messages > 20);
    world.run_handlers();
    for client in 0..32 {
        world.client_resets(client);
    }
    world.assert_empty();
}

fn extreme_limits(bytes: usize, time: Duration, over_rate: Option<OverRate>) -> Limits {
    Limits {
        messages_per_second_max: over_rate.map(|_| u32::try_from(bytes).unwrap_or(u32::MAX)),
        bytes_per_second_max: over_rate.map(|_| bytes as u64),
        over_rate: over_rate.unwrap_or_default(),
        connection_calls_max: bytes,
        message_bytes_max: bytes,
        outbox_bytes_max: bytes,
        keyed_bytes_max: bytes,
        outboxes_bytes_max: bytes,
        mailbox_bytes_max: bytes,
        pending_bytes_max: bytes,
        received_bytes_max: bytes,
        head_bytes_max: bytes.max(4 * KIB),
        body_bytes_max: bytes,
        bodies_bytes_max: bytes,
        connections_max: bytes.max(8),
        peer_connections_max: Some(bytes),
        peer_handshakes_per_second_max: Some(u32::MAX),
        user_connections_max: Some(bytes),
        connection_rooms_max: bytes,
        rooms_max: bytes,
        handshakes_max: bytes,
        handshake_timeout: time,
        message_timeout: time,
        keep_alive_timeout: time,
        write_timeout: time,
        write_bytes_per_second_min: bytes as u64,
        queue_timeout: time,
        close_timeout: time,
    }
}

/// Connects clients, lets them send and receive, and resets them.
fn exchange_with_extreme_limits(world: &mut World) {
    let clients: Vec<usize> = (0..3).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, UPGRADE);
        world.client_sends(client, &client_text("")[..5]);
        world.client_sends(client, &client_text("")[5..]);
        world.run_handlers();
        world.stall(client, 3);
        let _ = world.try_broadcast("a");
        let _ = world.try_send(client, "b");
        world.client_says(client, "c");
        world.run_handlers();
        world.client_sends(client, [0x89, 0x80, 1, 2, 3, 4]);
        let mut endless = vec![0x82, 0xff, 0x7f];
        endless.extend([0xff; 7 + 4 + 10]);
        world.client_sends(client, endless);
    }
    let before = world.turns;
    world.advance_ms(1_000);
    let turns = world.turns - before;
    assert!(turns < 500, "{turns} turns in a second");
    for client in clients {
        world.unstall(client);
        world.client_sends(client, [0x81]);
        world.client_resets(client);
    }
    world.assert_empty();
}

#[test]
fn extreme_limits_are_supported() {
    let policies = [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        SlowConsumer::Pace {
            bytes_per_second_min: 0,
            patience: Duration::ZERO,
        },
        SlowConsumer::Pace {
            bytes_per_second_min: u64::MAX,
            patience: Duration::MAX,
        },
    ];
    for bytes in [0, 1, 100, usize::MAX / 2, usize::MAX] {
        for time in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_millis(u64::MAX),
            Duration::MAX,
        ] {
            for slow_consumer in policies {
                for (interval, over_rate) in [
                    (Duration::ZERO, None),
                    (time, None),
                    (Duration::ZERO, Some(OverRate::Delay)),
                    (time, Some(OverRate::Close)),
                ] {
                    let mut world = World::new(Setup {
                        limits: extreme_limits(bytes, time, over_rate),
                        slow_consumer,
                        heartbeat: Some(crate::ping::Heartbeat::new(interval, time)),
                        handler: Box::new(echo),
                        ..Setup::default()
                    });
                    exchange_with_extreme_limits(&mut world);
                }
            }
        }
    }
}

#[test]
fn address_with_the_largest_sum_is_evicted_first() {
    let mut world = World::echoing(narrow());
    world.come_from = [127, 0, 0, 2];
    let honest = world.join();
    let upload = client_text(&"x".repeat(12 * KIB));
    world.client_sends(honest, &upload[..upload.len() - 10]);
    world.come_from = [127, 0, 0, 1];
    for client in world.joined(16) {
        let begun = client_text(&"x".repeat(12 * KIB));
        world.client_sends(client, &begun[..4 * KIB]);
    }
    assert!(world.metrics().unfinished_messages > 0, "it was too much");
    world.client_sends(honest, &upload[upload.len() - 10..]);
    world.run_handlers();
    assert_eq!(world.all_frames(honest).len(), 1, "it is finished");
}

#[test]
fn kept_reply_does_not_retain_dropped_joined_replies() {
    const OUTBOX: usize = 64 << 10;
    for policy in [
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
    ] {
        let mut world = World::new(Setup {
            slow_consumer: policy,
            limits: Limits {
                outbox_bytes_max: OUTBOX,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let client = world.join();
        world.stall(client, 0);
        // The outbox is nearly full with a frame in progress, which is not dropped.
        world.sends(client, &"x".repeat(OUTBOX - 1_000));
        world.settle();
        world.client_reads(client, 1);
        for _ in 0..100 {
            // The outbox has room for the first of these.
            world.sends(client, "x");
            for _ in 0..7 {
                world.sends(client, &"x".repeat(2_000));
            }
            world.settle();
        }
        let kept = world.kept_bytes(client);
        assert!(kept <= 2 * OUTBOX, "{policy:?}: {kept}");
    }
}
