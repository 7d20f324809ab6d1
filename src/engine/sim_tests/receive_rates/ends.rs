//! Heartbeat, other deadlines, and the ends of connections whose clients are delayed.

use std::time::Duration;

use super::{beating, bytes, echoed, messages, numbered};
use crate::engine::sim_tests::wire::{Frame, client_close, client_frame, client_text, text};
use crate::engine::sim_tests::world::{Told, World};
use crate::limits::Limits;

#[test]
fn heartbeat_does_not_disconnect_a_delayed_client() {
    let mut world = beating(messages(1), 2);
    let client = world.join();
    world.client_sends(client, numbered(0..60));
    let (mut echoes, mut pings) = (0, 0);
    for _ in 0..100 {
        world.advance_ms(500);
        world.run_handlers();
        for frame in world.all_frames(client) {
            match frame {
                Frame::Ping(_) => {
                    // The answer waits behind what the client has sent before.
                    pings += 1;
                    world.client_sends(client, client_frame(0x8A, b""));
                }
                frame => {
                    assert_eq!(frame, text(echoes.to_string()));
                    echoes += 1;
                }
            }
        }
    }
    assert!((50..=51).contains(&echoes), "{echoes}");
    assert!((20..=25).contains(&pings), "{pings} pings in 50 s");
    // The pongs do not count: the ten messages that are left take ten seconds.
    world.advance_ms(10_000);
    assert_eq!(world.metrics().messages_in, 60);
    assert_eq!(world.metrics().heartbeat_timeouts, 0);
    // Without further input, the client is silent.
    world.advance_ms(8_000);
    assert_eq!(world.metrics().heartbeat_timeouts, 1);
}

#[test]
fn message_deadline_is_extended_while_bytes_arrive_at_the_rate() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(2),
        ..bytes(1_000)
    });
    let client = world.join();
    let payload = "x".repeat(10_000);
    world.client_says(client, &payload);
    world.advance_ms(10_000);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text(payload)]);
    // A client that pauses itself has no more time than before.
    world.client_sends(client, &client_text("half a message")[..8]);
    world.advance_ms(4_100);
    world.run_handlers();
    let reason = "the message took too long";
    assert_eq!(
        world.all_frames(client),
        [Frame::Close(Some(1008), reason.into())]
    );
}

#[test]
fn message_that_hardly_grows_is_closed_although_delayed() {
    let cases = [(messages(10), 20), (bytes(1_000), 300)];
    for (limits, fragments_per_second) in cases {
        let mut world = World::echoing(Limits {
            message_timeout: Duration::from_secs(2),
            ..limits
        });
        let client = world.join();
        world.client_sends(client, client_frame(0x01, b"begun"));
        let mut frames = Vec::new();
        for _ in 0..55 {
            let empty = client_frame(0x00, b"");
            world.client_sends(client, empty.repeat(fragments_per_second / 10));
            world.advance_ms(100);
            world.run_handlers();
            frames.extend(world.all_frames(client));
        }
        let reason = "the message took too long";
        assert_eq!(frames, [Frame::Close(Some(1008), reason.into())]);
        assert_eq!(world.metrics().unfinished_messages, 1);
    }
}

#[test]
fn message_deadline_is_paused_while_the_handler_is_slow() {
    let mut world = World::echoing(Limits {
        message_timeout: Duration::from_secs(2),
        pending_bytes_max: 1,
        ..messages(10)
    });
    let client = world.join();
    let begun = client_text("half a message");
    world.client_says(client, "0");
    // The handler has the first message, and the second fills the inbox.
    world.client_sends(client, [client_text("1"), begun[..8].to_vec()].concat());
    world.advance_ms(7_000);
    world.client_sends(client, &begun[8..]);
    world.run_handlers();
    assert_eq!(
        world.all_frames(client),
        [text("0"), text("1"), text("half a message")]
    );
}

// -------------------------------------------------------------------------------------------------- ends of connections

#[test]
fn stop_while_delayed_answers_the_close_frame() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, numbered(0..1_000));
    assert_eq!(echoed(&mut world, client).len(), 10);
    world.client_sends(client, client_close(1001));
    world.stop(Duration::from_secs(5));
    world.run_handlers();
    let frames = world.all_frames(client);
    assert!(
        matches!(frames[..], [Frame::Close(Some(1001), _)]),
        "{frames:?}"
    );
    // What was sent too early is dropped, and the client's close frame behind it ends the connection at once.
    assert!(world.is_closed(client));
    world.turn();
    assert!(world.has_stopped());
    world.finish();
}

#[test]
fn close_by_the_program_ends_a_delay() {
    let mut world = World::echoing(messages(1));
    let client = world.join();
    world.client_sends(client, [numbered(0..100), client_close(1000)].concat());
    assert_eq!(echoed(&mut world, client), [0]);
    world.closes(client, 4000, "enough");
    world.run_handlers();
    assert_eq!(
        world.all_frames(client),
        [Frame::Close(Some(4000), "enough".into())]
    );
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn backlog_of_a_client_that_has_gone_is_bounded() {
    let mut world = World::echoing(Limits {
        close_timeout: Duration::from_secs(5),
        ..messages(10)
    });
    let clients = world.joined(2);
    for (&client, sent) in clients.iter().zip([40, 10_000]) {
        world.client_sends(client, numbered(0..sent));
        world.client_ends(client);
    }
    // The first is done within the time. The second has ten messages at once, and then ten per second.
    world.advance_ms(3_300);
    world.run_handlers();
    assert_eq!(world.all_frames(clients[0]).len(), 40);
    assert!(world.is_closed(clients[0]));
    world.advance_ms(3_000);
    world.run_handlers();
    let frames = world.all_frames(clients[1]);
    assert!((55..=66).contains(&frames.len()), "{}", frames.len());
    let reason = "sent too much before its end";
    assert_eq!(
        frames.last(),
        Some(&Frame::Close(Some(1008), reason.into()))
    );
    assert!(world.is_closed(clients[1]));
    // With unread input, the connection would be reset, and the client might lose the last replies.
    assert!(!world.pipe(clients[1]).was_dropped_unread);
    assert_eq!(world.metrics().closed_over_rate, 1);
    assert_eq!(world.handled(clients[1]).last(), Some(&Told::Close));
    world.assert_empty();
}

#[test]
fn slow_handler_does_not_count_against_a_client_that_has_gone() {
    let mut world = World::echoing(Limits {
        close_timeout: Duration::from_secs(2),
        pending_bytes_max: 1,
        ..messages(10)
    });
    let client = world.join();
    world.client_sends(client, numbered(0..25));
    world.client_ends(client);
    let mut all = Vec::new();
    for _ in 0..10 {
        // Each batch of the handler takes three seconds.
        world.advance_ms(3_000);
        all.extend(echoed(&mut world, client));
    }
    assert!(all.into_iter().eq(0..25));
    assert_eq!(world.metrics().closed_over_rate, 0);
    world.assert_empty();
}

#[test]
fn reset_while_delayed_leaks_nothing() {
    for limits in [messages(10), bytes(100)] {
        let mut world = World::echoing(limits);
        let clients = world.joined(2);
        for &client in &clients {
            world.client_sends(client, numbered(0..1_000));
        }
        world.client_resets(clients[0]);
        // A write notices the reset at once, a read only when there is one.
        world.sends(clients[0], "?");
        world.run_handlers();
        assert!(world.is_closed(clients[0]));
        world.client_resets(clients[1]);
        world.advance_ms(60_000);
        world.assert_empty();
    }
}
