//! Rate limits for what clients send: exact token buckets within one read and over time, delays that end by timer, closes,
//! and what delayed connections may not do to others.

use std::time::Duration;

use super::wire::{Frame, client_close, client_frame, client_ping, client_text, pong, text};
use super::world::{Setup, Told, World, echo};
use crate::engine::model::command::{Received, Upgraded};
use crate::engine::reactor::Stage;
use crate::limits::{Limits, OverRate};
use crate::message::Message;
use crate::ping::Heartbeat;
use crate::protocol::connection::FrameReader;

const KIB: usize = 1 << 10;

/// The tolerance of a delay: the shard's clock has steps of 8 ms, and a timer never fires early.
const LATE_MS: u64 = 16;

fn messages(per_second: u32) -> Limits {
    Limits::default().messages_per_second_max(Some(per_second))
}

fn bytes(per_second: u64) -> Limits {
    Limits::default().bytes_per_second_max(Some(per_second))
}

/// The frames of numbered messages.
fn numbered(numbers: std::ops::Range<usize>) -> Vec<u8> {
    numbers.flat_map(|n| client_text(&n.to_string())).collect()
}

/// Returns the numbers that were echoed since the last call, and asserts that nothing else was.
fn echoed(world: &mut World, client: usize) -> Vec<usize> {
    world.run_handlers();
    let frames = world.all_frames(client);
    let number = |frame: &Frame| match frame {
        Frame::Text(payload) => payload.parse().unwrap(),
        other => panic!("{other:?}"),
    };
    frames.iter().map(number).collect()
}

/// Whether a client's connection owns heap memory beside its slot and its session.
fn owns_memory(world: &mut World, client: usize) -> bool {
    let key = world.key(client);
    match world.core().conns.get(key).map(|conn| &conn.stage) {
        Some(Stage::WebSocket(ws)) => ws.owns_memory(),
        _ => panic!("the connection is not a WebSocket"),
    }
}

// ----------------------------------------------------------------------------------------------------- exact buckets

#[test]
fn burst_in_one_read_is_handled_at_the_rate() {
    let mut world = World::echoing(messages(100));
    let client = world.join();
    world.client_sends(client, numbered(0..1_000));
    assert!(world.pipe(client).reads <= 3, "the burst is one read");
    let mut all = echoed(&mut world, client);
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    for ms in (0..9_100).step_by(50) {
        world.advance_ms(50);
        all.extend(echoed(&mut world, client));
        let at: u64 = ms + 50;
        let most = 1_000.min(100 + at as usize / 10);
        // A delayed connection goes on when a sixteenth of a second's worth is there.
        let least = 100 + (at.saturating_sub(63 + LATE_MS) as usize) / 10;
        assert!(
            (least.min(1_000)..=most).contains(&all.len()),
            "{at} ms: {}",
            all.len()
        );
    }
    assert!(all.into_iter().eq(0..1_000));
    assert_eq!(world.metrics().messages_in, 1_000);
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn bytes_are_handled_at_the_rate() {
    let mut world = World::echoing(bytes(2_000));
    let client = world.join();
    let message = client_frame(0x82, &[7; 94]);
    assert_eq!(message.len(), 100);
    world.client_sends(client, message.repeat(100));
    world.run_handlers();
    let mut all = world.all_frames(client).len();
    assert_eq!(all, 20);
    for ms in (0..4_500).step_by(50) {
        world.advance_ms(50);
        world.run_handlers();
        all += world.all_frames(client).len();
        let at: u64 = ms + 50;
        let most = 20 + at as usize * 2 / 100;
        let least = 20 + at.saturating_sub(63 + LATE_MS) as usize * 2 / 100;
        assert!(
            (least.min(100)..=most.min(100)).contains(&all),
            "{at} ms: {all}"
        );
    }
    assert_eq!(all, 100);
}

#[test]
fn message_longer_than_the_burst_arrives_in_parts() {
    let mut world = World::echoing(bytes(1_000));
    let client = world.join();
    let payload = "x".repeat(5_000 - 8);
    world.client_says(client, &payload);
    world.advance_ms(3_900);
    world.run_handlers();
    assert_eq!(world.all_frames(client), []);
    world.advance_ms(200);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text(payload)]);
    assert_eq!(world.metrics().unfinished_messages, 0);
}

#[test]
fn client_within_its_rate_is_never_delayed() {
    let limits = messages(10).bytes_per_second_max(Some(10 * 100));
    let mut world = World::echoing(limits);
    let client = world.join();
    for n in 0..200 {
        world.client_says(client, &format!("{n:094}"));
        assert_eq!(echoed(&mut world, client), [n]);
        world.advance_ms(100);
    }
    world.advance_ms(1_000);
    world.client_sends(client, numbered(0..10));
    assert_eq!(echoed(&mut world, client).len(), 10);
    let metrics = world.metrics();
    assert_eq!((metrics.reads_delayed, metrics.closed_over_rate), (0, 0));
}

#[test]
fn idle_time_fills_the_bucket_with_one_second_at_most() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, numbered(0..10));
    assert_eq!(echoed(&mut world, client).len(), 10);
    world.advance_ms(60_000);
    world.client_sends(client, numbered(0..50));
    assert_eq!(echoed(&mut world, client).len(), 10);
}

#[test]
fn connections_have_buckets_of_their_own() {
    let mut world = World::echoing(messages(5));
    let clients = world.joined(3);
    world.client_sends(clients[0], numbered(0..100));
    for &client in &clients[1..] {
        world.client_sends(client, numbered(0..5));
        assert_eq!(echoed(&mut world, client).len(), 5);
    }
    assert_eq!(echoed(&mut world, clients[0]).len(), 5);
}

// ------------------------------------------------------------------------------------------------------------ delays

#[test]
fn delay_ends_by_timer_and_causes_few_turns() {
    let mut world = World::echoing(messages(1_000));
    let client = world.join();
    // The client sends for ten seconds without a pause.
    let mut sent = 0;
    let before = (world.turns, world.pipe(client).reads);
    let mut all = Vec::new();
    for _ in 0..100 {
        world.client_sends(client, numbered(sent..sent + 400));
        sent += 400;
        world.advance_ms(100);
        all.extend(echoed(&mut world, client));
    }
    assert!((10_900..=11_000).contains(&all.len()), "{}", all.len());
    assert!(all.iter().copied().eq(0..all.len()));
    let delays = world.metrics().reads_delayed;
    assert!((100..=170).contains(&delays), "{delays}");
    // Each delay ends with a turn for the timer, one for the read, one for the replies, and one that finds nothing; each
    // arrival is one more.
    let turns = world.turns - before.0;
    assert!(turns < 1_000, "{turns} turns");
    let reads = world.pipe(client).reads - before.1;
    assert!(reads < 300, "{reads} reads");
}

#[test]
fn delayed_client_is_not_read() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, numbered(0..100_000));
    world.run_handlers();
    let unread = world.pipe(client).unread();
    let reads = world.pipe(client).reads;
    assert!(unread > 600_000, "{unread}");
    let held = world.core().cx.receive_budget.bytes();
    assert!((1..=4 * KIB + 100).contains(&held), "{held}");
    assert!(world.sleeps().is_some());
    world.advance_ms(1_000);
    assert_eq!(world.pipe(client).reads, reads, "there is held input");
    // Further bytes of the client change nothing.
    for n in 0..100 {
        world.client_says(client, &n.to_string());
    }
    assert_eq!(world.pipe(client).reads, reads);
    assert!((19..=20).contains(&echoed(&mut world, client).len()));
    world.client_resets(client);
    world.advance_ms(7_000);
    world.assert_empty();
}

#[test]
fn large_reads_are_cut_only_if_few_messages_are_allowed() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    let before = world.pipe(client).reads;
    let payload = "x".repeat(1 << 20);
    world.client_says(client, &payload);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text(payload)]);
    let reads = world.pipe(client).reads - before;
    assert!(reads <= 12, "{reads} reads");
}

#[test]
fn held_input_waits_for_its_handler() {
    let mut world = World::echoing(Limits {
        pending_bytes_max: 1,
        ..messages(10)
    });
    let client = world.join();
    world.client_sends(client, numbered(0..30));
    // The handler of the first messages still runs when the next would be allowed.
    world.advance_ms(5_000);
    assert_eq!(world.metrics().messages_in, 11, "one more message may wait");
    world.run_handlers();
    // Meanwhile a whole burst has become allowed.
    assert_eq!(world.metrics().messages_in, 21);
    world.advance_ms(1_000);
    assert_eq!(echoed(&mut world, client), (0..30).collect::<Vec<_>>());
}

#[test]
fn other_clients_are_served_while_one_is_delayed() {
    let mut world = World::echoing(messages(10));
    let (flooder, other) = (world.join(), world.join());
    world.client_sends(flooder, numbered(0..10_000));
    for n in 0..50 {
        world.client_says(other, &n.to_string());
        assert_eq!(echoed(&mut world, other), [n]);
        world.advance_ms(100);
    }
    let delayed = echoed(&mut world, flooder).len();
    assert!((55..=60).contains(&delayed), "{delayed}");
}

#[test]
fn delayed_client_still_receives() {
    let mut world = World::echoing(messages(1));
    let client = world.join();
    world.client_sends(client, numbered(0..10));
    assert_eq!(echoed(&mut world, client), [0]);
    world.sends(client, "sent");
    world.broadcasts("broadcast");
    world.settle();
    assert_eq!(world.all_frames(client).len(), 2);
}

// ------------------------------------------------------------------------------------------- frames that are no messages

#[test]
fn flood_of_pings_is_delayed() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, client_ping(b"p").repeat(1_000));
    world.run_handlers();
    assert_eq!(world.all_frames(client), vec![pong(b"p"); 10]);
    world.advance_ms(1_000 + LATE_MS);
    assert_eq!(world.all_frames(client), vec![pong(b"p"); 10]);
}

#[test]
fn flood_of_short_fragments_is_delayed() {
    for payload in [&b""[..], b"x", &[b'x'; 4_000]] {
        let mut world = World::echoing(messages(10));
        let client = world.join();
        let fragments = client_frame(0x00, payload).repeat(25);
        let message = [
            client_frame(0x01, payload),
            fragments,
            client_frame(0x80, b""),
        ];
        world.client_sends(client, message.concat());
        // Of 27 frames, 10 are allowed at once.
        world.advance_ms(1_690);
        world.run_handlers();
        assert_eq!(world.all_frames(client), []);
        world.advance_ms(10 + 2 * LATE_MS);
        world.run_handlers();
        let whole = String::from_utf8(payload.repeat(26)).unwrap();
        assert_eq!(world.all_frames(client), [text(whole)], "{}", payload.len());
    }
}

#[test]
fn long_fragments_count_with_their_message_only() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    let fragment = vec![b'x'; 4 * KIB];
    let mut message = client_frame(0x01, &fragment);
    message.extend(client_frame(0x00, &fragment).repeat(60));
    message.extend(client_frame(0x80, b""));
    for _ in 0..10 {
        world.client_sends(client, &message);
    }
    world.run_handlers();
    assert_eq!(world.all_frames(client).len(), 10);
    assert_eq!(world.metrics().reads_delayed, 0);
}

#[test]
fn flood_of_pongs_is_delayed() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    let pongs = client_frame(0x8A, b"").repeat(20);
    world.client_sends(client, [pongs, client_text("after")].concat());
    world.advance_ms(1_000);
    world.run_handlers();
    assert_eq!(world.all_frames(client), []);
    world.advance_ms(100 + LATE_MS);
    world.run_handlers();
    assert_eq!(world.all_frames(client), [text("after")]);
}

#[test]
fn close_frame_needs_no_token() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, [numbered(0..10), client_close(1000)].concat());
    world.run_handlers();
    let frames = world.all_frames(client);
    assert_eq!(frames.len(), 11);
    assert_eq!(
        frames.last(),
        Some(&Frame::Close(Some(1000), String::new()))
    );
    assert_eq!(world.metrics().reads_delayed, 0);
}

#[test]
fn delayed_close_frame_is_answered_after_its_messages() {
    let mut world = World::echoing(messages(10));
    let client = world.join();
    world.client_sends(client, [numbered(0..15), client_close(1000)].concat());
    assert_eq!(echoed(&mut world, client).len(), 10);
    world.advance_ms(450);
    assert_eq!(echoed(&mut world, client).len(), 4);
    world.advance_ms(50 + 2 * LATE_MS);
    world.run_handlers();
    let last = [text("14"), Frame::Close(Some(1000), String::new())];
    assert_eq!(world.all_frames(client), last);
    assert!(world.is_closed(client));
    world.assert_empty();
}

// ------------------------------------------------------------------------------------------------------------ closes

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
            let mut world = World::new(Setup {
                limits: limits.over_rate(over),
                heartbeat: Some(Heartbeat::new(
                    Duration::from_secs(5),
                    Duration::from_secs(5),
                )),
                handler: Box::new(echo),
                ..Setup::default()
            });
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

// ------------------------------------------------------------------------------------------- heartbeat and other deadlines

#[test]
fn heartbeat_does_not_disconnect_a_delayed_client() {
    let mut world = World::new(Setup {
        limits: messages(1),
        heartbeat: Some(Heartbeat::new(
            Duration::from_secs(2),
            Duration::from_secs(3),
        )),
        handler: Box::new(echo),
        ..Setup::default()
    });
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
fn message_deadline_is_paused_while_delayed() {
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

// ----------------------------------------------------------------------------------------------------- ends of connections

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
    assert!((55..=65).contains(&frames.len()), "{}", frames.len());
    assert!(world.is_closed(clients[1]));
    assert_eq!(world.handled(clients[1]).last(), Some(&Told::Close));
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

// ------------------------------------------------------------------------------------------------------------- memory

#[test]
fn held_input_of_many_does_not_pause_reading_others() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        received_bytes_max: 128 * KIB,
        ..messages(10)
    });
    world.come_from = [127, 0, 0, 2];
    let honest = world.join();
    world.come_from = [127, 0, 0, 1];
    let greedy = world.joined(40);
    for &client in &greedy {
        world.client_sends(client, numbered(0..2_000));
        world.run_handlers();
        let held = world.core().cx.receive_budget.bytes();
        assert!(held <= (64 + 8) * KIB, "{held}");
    }
    world.client_says(honest, "1");
    assert_eq!(echoed(&mut world, honest), [1]);
    let closed = world.metrics().closed_over_rate;
    assert!((20..40).contains(&closed), "{closed}");
    let reason = |frames: &[Frame]| matches!(frames.last(), Some(Frame::Close(Some(1008), reason)) if reason == "sent too fast");
    let told = greedy.iter().filter(|&&client| {
        let frames = world.all_frames(client);
        reason(&frames)
    });
    assert_eq!(told.count() as u64, closed);
    for client in greedy.into_iter().chain([honest]) {
        world.client_resets(client);
        world.sends(client, "");
    }
    world.run_handlers();
    world.advance_ms(6_000);
    world.assert_empty();
}

#[test]
fn account_is_freed_when_it_is_full_again() {
    let mut world = World::new(Setup {
        limits: messages(10),
        heartbeat: Some(Heartbeat::new(
            Duration::from_secs(5),
            Duration::from_secs(5),
        )),
        handler: Box::new(echo),
        ..Setup::default()
    });
    let client = world.join();
    assert!(!owns_memory(&mut world, client));
    world.client_says(client, "1");
    assert_eq!(echoed(&mut world, client), [1]);
    assert!(owns_memory(&mut world, client));
    world.advance_ms(5_100);
    assert_eq!(world.all_frames(client), [Frame::Ping(Vec::new())]);
    assert!(!owns_memory(&mut world, client));
    world.client_sends(client, client_frame(0x8A, b""));
    // The same for a client that was delayed.
    world.client_sends(client, numbered(0..15));
    world.advance_ms(700);
    assert_eq!(echoed(&mut world, client).len(), 15);
    world.advance_ms(5_100);
    assert!(!owns_memory(&mut world, client));
}

#[test]
fn connection_without_rate_limits_owns_no_account() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.client_sends(client, numbered(0..1_000));
    assert_eq!(echoed(&mut world, client).len(), 1_000);
    assert!(!owns_memory(&mut world, client));
}

// --------------------------------------------------------------------------------------------------- ways in, and TLS

#[test]
fn messages_behind_the_handshake_are_limited() {
    let mut world = World::echoing(messages(10));
    let client = world.connect();
    world.client_sends(client, [super::wire::UPGRADE, &numbered(0..30)].concat());
    world.run_handlers();
    world.head(client);
    assert_eq!(echoed(&mut world, client).len(), 10);
    world.advance_ms(2_100);
    assert_eq!(echoed(&mut world, client).len(), 20);
}

#[test]
fn messages_that_a_host_has_read_count() {
    let mut world = World::echoing(messages(10));
    let mut protocol = FrameReader::new(1_000);
    let cut = numbered(4..40);
    let mut begun = cut[..3].to_vec();
    assert!(protocol.receive(&mut &mut begun[..]).unwrap().is_none());
    let client = world.adopt(Upgraded {
        is_answered: true,
        received: Some(Received {
            messages: (0..4).map(|n| Message::new(n.to_string())).collect(),
            protocol,
        }),
        ..Upgraded::default()
    });
    world.client_sends(client, &cut[3..]);
    assert_eq!(echoed(&mut world, client), (0..10).collect::<Vec<_>>());
    world.advance_ms(3_100);
    assert_eq!(echoed(&mut world, client), (10..40).collect::<Vec<_>>());
}

#[test]
fn records_of_tls_are_limited() {
    for limits in [messages(10), bytes(70)] {
        let mut world = World::echoing(limits);
        let client = world.join();
        let sent = numbered(0..10).repeat(20);
        world.pipe(client).record_bytes = sent.len();
        world.client_sends(client, &sent);
        assert_eq!(echoed(&mut world, client).len(), 10);
        for second in 1..=18 {
            world.advance_ms(1_000);
            let echoed = echoed(&mut world, client).len();
            assert!((9..=11).contains(&echoed), "{second}: {echoed}");
        }
        world.advance_ms(1_200);
        assert_eq!(world.metrics().messages_in, 200);
    }
}

// -------------------------------------------------------------------------------------------------------- compression

#[cfg(feature = "deflate")]
mod compressed {
    use super::*;
    use crate::compression::Compression;

    const UPGRADE: &[u8] =
        b"GET / HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

    fn world(limits: Limits) -> (World, usize) {
        let mut world = World::new(Setup {
            limits,
            compression: Some(Compression::new()),
            ..Setup::default()
        });
        let client = world.connect();
        world.client_sends(client, UPGRADE);
        world.run_handlers();
        let head = world.head(client);
        assert!(head.contains("permessage-deflate"), "{head}");
        (world, client)
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        client_frame(0xC2, &miniz_oxide::deflate::compress_to_vec(payload, 9))
    }

    fn handled(world: &mut World, client: usize) -> Vec<Told> {
        world.run_handlers();
        let mut handled = world.handled(client);
        handled.retain(|told| *told != Told::Open);
        handled
    }

    #[test]
    fn compressed_messages_are_handled_at_the_rate() {
        let (mut world, client) = world(messages(10));
        let sent: Vec<u8> = (0..30).flat_map(|n| message(&[n; 1_000])).collect();
        world.client_sends(client, sent);
        let told = |n| Told::message([n; 1_000]);
        assert_eq!(
            handled(&mut world, client),
            (0..10).map(told).collect::<Vec<_>>()
        );
        world.advance_ms(2_100);
        assert_eq!(
            handled(&mut world, client),
            (10..30).map(told).collect::<Vec<_>>()
        );
    }

    #[test]
    fn parked_messages_keep_their_order_within_the_rate() {
        // Each inflates to more than a turn's allowance.
        const LONG: usize = 2 << 20;
        let (mut world, client) = world(messages(3));
        let sent: Vec<u8> = (0..8).flat_map(|n| message(&vec![n; LONG])).collect();
        world.client_sends(client, sent);
        let told = |n| Told::message(vec![n; LONG]);
        for range in [0..3, 3..6, 6..8] {
            let expected: Vec<Told> = range.map(told).collect();
            assert!(
                handled(&mut world, client) == expected,
                "{}",
                expected.len()
            );
            world.advance_ms(1_000 + LATE_MS);
        }
        world.client_ends(client);
        world.assert_empty();
    }

    #[test]
    fn compressed_bytes_count_as_they_arrive() {
        let short = message(&[7; 1_000]);
        let (mut world, client) = world(bytes(short.len() as u64 * 10));
        world.client_sends(client, short.repeat(30));
        assert_eq!(handled(&mut world, client).len(), 10);
        world.advance_ms(2_100);
        assert_eq!(handled(&mut world, client).len(), 20);
    }
}
