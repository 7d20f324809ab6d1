//! Rate limits for what clients send: exact token buckets within one read and over time, delays that end by timer, closes,
//! and what delayed connections may not do to others.

mod closes;
#[cfg(feature = "deflate")]
mod compressed;
mod ends;
mod ways_in;

use std::time::Duration;

use super::wire::{Frame, client_close, client_frame, client_ping, client_text, pong, text};
use super::world::{Setup, World, echo};
use crate::engine::reactor::Stage;
use crate::limits::Limits;
use crate::ping::Heartbeat;

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

/// Creates a world with an echo and a heartbeat, whose interval and timeout are this many seconds.
fn beating(limits: Limits, seconds: u64) -> World {
    let seconds = Duration::from_secs(seconds);
    World::new(Setup {
        limits,
        heartbeat: Some(Heartbeat::new(seconds, seconds)),
        handler: Box::new(echo),
        ..Setup::default()
    })
}

// -------------------------------------------------------------------------------------------------------- exact buckets

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

#[test]
fn exact_burst_is_not_delayed() {
    for limits in [messages(10), bytes(70)] {
        let mut world = World::echoing(limits);
        let client = world.join();
        for _ in 0..3 {
            world.client_sends(client, numbered(0..10));
            assert_eq!(echoed(&mut world, client).len(), 10);
            world.advance_ms(1_000);
        }
        assert_eq!(world.metrics().reads_delayed, 0);
        world.client_sends(client, numbered(0..11));
        assert_eq!(world.metrics().reads_delayed, 1);
    }
}

// --------------------------------------------------------------------------------------------------------------- delays

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
fn client_that_never_pauses_is_delayed_16_times_a_second() {
    for per_second in [17, 20, 31] {
        let mut world = World::echoing(messages(per_second));
        let client = world.join();
        world.client_sends(client, numbered(0..1_000));
        for _ in 0..100 {
            world.advance_ms(100);
            world.run_handlers();
        }
        let delays = world.metrics().reads_delayed;
        assert!((80..=161).contains(&delays), "{per_second}: {delays}");
    }
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

// ------------------------------------------------------------------------------------------ frames that are no messages

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

// --------------------------------------------------------------------------------------------------------------- memory

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
    let mut world = beating(messages(10).bytes_per_second_max(Some(1_000)), 5);
    let client = world.join();
    assert!(!owns_memory(&mut world, client));
    world.client_says(client, "1");
    assert_eq!(echoed(&mut world, client), [1]);
    assert!(owns_memory(&mut world, client));
    world.advance_ms(5_100);
    assert_eq!(world.all_frames(client), [Frame::Ping(Vec::new())]);
    assert!(!owns_memory(&mut world, client));
    world.client_sends(client, client_frame(0x8A, b""));
    assert!(
        !owns_memory(&mut world, client),
        "pongs that are due do not count"
    );
    // The same for a client that was delayed.
    world.client_sends(client, numbered(0..15));
    world.advance_ms(700);
    assert_eq!(echoed(&mut world, client).len(), 15);
    world.advance_ms(5_100);
    assert!(!owns_memory(&mut world, client));
}

#[test]
fn one_pong_answers_all_pings_once_no_input_is_left() {
    let mut world = beating(messages(1), 2);
    let client = world.join();
    world.client_sends(client, numbered(0..10));
    world.advance_ms(9_000);
    world.run_handlers();
    let frames = world.all_frames(client);
    let pings = frames
        .iter()
        .filter(|frame| matches!(frame, Frame::Ping(_)));
    assert!(pings.count() > 1);
    // RFC 6455 §5.5.3: an answer to the last ping is enough.
    world.client_sends(client, client_frame(0x8A, b""));
    world.advance_ms(2_100);
    assert_eq!(world.metrics().messages_in, 10);
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
