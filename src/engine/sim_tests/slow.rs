//! Slow consumers under each policy. The file is long because it has a section for each.

use std::time::Duration;

use super::wire::{Frame, client_frame, client_ping, client_text, pong, text};
use super::world::{Setup, Told, World, echo};
use crate::engine::model::session::Status;
use crate::engine::parts::mailbox::PushError;
use crate::limits::{Limits, SlowConsumer};
use crate::protocol::fuzz::dice::{Dice, for_seeds};

const OUTBOX: usize = 1_000;

fn with_policy(slow_consumer: SlowConsumer) -> World {
    World::new(Setup {
        slow_consumer,
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    })
}

/// The `n`th message, a frame of 50 bytes.
fn nth(n: usize) -> String {
    format!("{n:048}")
}

const NTH_BYTES: usize = 50;
const FIT: usize = OUTBOX / NTH_BYTES;

fn numbers(frames: &[Frame]) -> Vec<usize> {
    let number = |frame: &Frame| match frame {
        Frame::Text(payload) => payload.parse().unwrap(),
        other => panic!("{other:?}"),
    };
    frames.iter().map(number).collect()
}

const TOO_SLOW: Frame = Frame::Close(Some(1013), String::new());

fn is_too_slow(frame: &Frame) -> bool {
    matches!((frame, &TOO_SLOW), (Frame::Close(a, _), Frame::Close(b, _)) if a == b)
}

#[test]
fn slow_client_is_closed_after_the_frame_in_progress() {
    for one_turn in [true, false] {
        for room in 0..2 * NTH_BYTES {
            let mut world = with_policy(SlowConsumer::Disconnect);
            let (slow, quick) = (world.join(), world.join());
            world.stall(slow, room);
            let sent = FIT + 5;
            for n in 0..sent {
                world.broadcasts(nth(n));
                if !one_turn {
                    world.settle();
                }
            }
            world.sends(slow, "nothing after it");
            world.settle();
            assert_eq!(world.session(slow).status(), Status::Closed);
            assert_eq!(world.all_frames(quick).len(), sent);
            world.unstall(slow);
            let frames = world.all_frames(slow);
            let (last, messages) = frames.split_last().unwrap();
            assert!(is_too_slow(last), "{last:?}");
            // The frame in progress is finished, and no other is begun.
            let expected = room.div_ceil(NTH_BYTES);
            assert_eq!(
                numbers(messages),
                (0..expected).collect::<Vec<_>>(),
                "{room}"
            );
            let metrics = world.metrics();
            assert_eq!(metrics.slow_consumers, 1);
            // Messages sent after the client was found slow are not meant for it.
            let meant = if one_turn {
                sent
            } else {
                (OUTBOX + room) / NTH_BYTES + 1
            };
            assert_eq!(metrics.dropped.slow_consumer as usize, meant - expected);
            assert_eq!(metrics.dropped.closed, 1, "the send after it");
            assert_eq!(metrics.messages_out as usize, sent + expected);
            world.client_ends(slow);
            world.run_handlers();
            assert_eq!(world.handled(slow), [Told::Open, Told::Close]);
        }
    }
}

#[test]
fn slow_client_not_reading_its_close_is_reset() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let slow = world.join();
    world.stall(slow, 10);
    for n in 0..FIT + 2 {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.advance_ms(4_990);
    assert!(!world.is_closed(slow));
    world.advance_ms(20);
    assert!(world.is_closed(slow));
    world.run_handlers();
    assert_eq!(world.handled(slow), [Told::Open, Told::Close]);
    let dropped = world.metrics().dropped;
    assert_eq!(dropped.slow_consumer + dropped.closed, FIT as u64 + 2);
    world.assert_empty();
}

#[test]
fn slow_client_is_counted_once_despite_a_write_timeout() {
    let mut world = World::new(Setup {
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            write_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_secs(5),
            ..Limits::default()
        },
        ..Setup::default()
    });
    let slow = world.join();
    world.stall(slow, 0);
    for n in 0..=FIT {
        world.broadcasts(nth(n));
    }
    world.settle();
    assert_eq!(world.metrics().slow_consumers, 1, "the verdict");
    world.advance_ms(2_000);
    assert!(world.is_closed(slow), "the write time-out");
    assert_eq!(world.metrics().slow_consumers, 1);
    world.assert_empty();
}

#[test]
fn socket_accepting_everything_is_not_slow() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let client = world.join();
    for n in 0..100 * FIT {
        world.sends(client, &nth(n));
    }
    world.settle();
    assert_eq!(
        numbers(&world.all_frames(client)),
        (0..100 * FIT).collect::<Vec<_>>()
    );
    assert_eq!(world.metrics().slow_consumers, 0);
}

#[test]
fn client_that_has_read_before_the_check_is_not_slow() {
    for sends in [true, false] {
        let mut world = with_policy(SlowConsumer::Disconnect);
        let client = world.join();
        world.stall(client, 0);
        for n in 0..FIT {
            world.broadcasts(nth(n));
        }
        world.settle();
        // The client reads everything. The shard sees that and the next message in the same turn.
        world.pipe(client).set_room(usize::MAX / 2);
        if sends {
            world.sends(client, &nth(FIT));
        } else {
            world.broadcasts(nth(FIT));
        }
        world.settle();
        assert_eq!(world.metrics().slow_consumers, 0);
        let got = numbers(&world.all_frames(client));
        assert_eq!(got, (0..=FIT).collect::<Vec<_>>());
    }
}

#[test]
fn empty_outbox_accepts_a_message_of_any_size() {
    for policy in [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        SlowConsumer::pace(),
    ] {
        let mut world = with_policy(policy);
        let client = world.join();
        world.stall(client, 0);
        let large = "x".repeat(100 * OUTBOX);
        world.broadcasts(&large);
        world.settle();
        world.unstall(client);
        assert_eq!(world.all_frames(client), [text(&large)], "{policy:?}");
    }
}

#[test]
fn drop_newest_keeps_the_oldest_and_counts_drops() {
    for one_turn in [true, false] {
        for room in 0..NTH_BYTES {
            let mut world = with_policy(SlowConsumer::DropNewest);
            let (slow, quick) = (world.join(), world.join());
            world.stall(slow, room);
            let sent = 3 * FIT;
            for n in 0..sent {
                world.broadcasts(nth(n));
                if !one_turn {
                    world.settle();
                }
            }
            world.settle();
            world.unstall(slow);
            world.broadcasts(nth(sent));
            world.settle();
            let got = numbers(&world.all_frames(slow));
            // The frame in progress counts with its remaining bytes.
            let fit = (OUTBOX + room) / NTH_BYTES;
            let mut expected: Vec<_> = (0..fit).collect();
            expected.push(sent);
            assert_eq!(got, expected, "{room} in one turn: {one_turn}");
            assert_eq!(world.all_frames(quick).len(), sent + 1);
            let metrics = world.metrics();
            assert_eq!(metrics.dropped.slow_consumer as usize, sent - fit);
            assert_eq!(metrics.messages_out as usize, sent + 1 + got.len());
            assert_eq!(metrics.slow_consumers, 0);
        }
    }
}

#[test]
fn messages_of_a_slow_client_are_counted_with_their_delay_and_depth() {
    // The last message is queued with the first, joined with others, or has a key.
    for client_reads in [1, 3, 1_000] {
        let mut world = with_policy(SlowConsumer::Disconnect);
        let (slow, quick) = (world.join(), world.join());
        world.stall(slow, 0);
        world.broadcasts("first");
        world.settle();
        world.advance_ms(2_000);
        world.broadcasts("other");
        world.settle();
        world.advance_ms(400);
        // The time is that of the turn in which the last byte of a message leaves.
        for _ in 0..14_usize.div_ceil(client_reads) {
            world.client_reads(slow, client_reads);
        }
        world.unstall(slow);
        assert_eq!(world.all_frames(slow).len(), 2);
        assert_eq!(world.all_frames(quick).len(), 2);
        let metrics = world.metrics();
        let delays: Vec<_> = metrics.delivery_delays.buckets().collect();
        let up_to = |seconds| {
            delays
                .iter()
                .find(|(bound, _)| *bound == seconds)
                .unwrap()
                .1
        };
        // 8 ms are one step of the clock.
        assert_eq!(
            [up_to(0.01), up_to(0.25), up_to(0.5), up_to(2.5)],
            [2, 2, 3, 4]
        );
        let sum = metrics.delivery_delays.sum().as_secs_f64();
        assert!((2.78..2.82).contains(&sum), "{sum}");
        // Nothing else waited: 7 bytes at first.
        let depths = metrics.outbox_depths;
        assert!(depths.count() >= 1 && depths.sum() >= 7, "{depths:?}");
        assert_eq!(depths.buckets().next().unwrap().1, depths.count());
    }
}

/// The messages of [`overflow`].
const OVERFLOW: usize = 3 * FIT + 3;

/// Broadcasts more than the outbox of a stalled client takes, in one turn of the shard or in one for each message, and lets the
/// client read again. Its socket takes `room` bytes of the first message before. Returns the stalled and the quick client.
fn overflow(policy: SlowConsumer, room: usize, one_turn: bool) -> (World, [usize; 2]) {
    let mut world = with_policy(policy);
    let (slow, quick) = (world.join(), world.join());
    world.stall(slow, room);
    for n in 0..OVERFLOW {
        world.broadcasts(nth(n));
        if !one_turn {
            world.settle();
        }
    }
    world.settle();
    world.unstall(slow);
    (world, [slow, quick])
}

#[test]
fn drop_oldest_keeps_the_newest_and_the_frame_in_progress() {
    for one_turn in [true, false] {
        for room in 0..NTH_BYTES {
            let (mut world, [slow, quick]) = overflow(SlowConsumer::DropOldest, room, one_turn);
            let got = numbers(&world.all_frames(slow));
            let in_progress = usize::from(room > 0);
            assert_eq!(got[..in_progress], [0][..in_progress]);
            let newest = &got[in_progress..];
            let expected: Vec<_> = (OVERFLOW - newest.len()..OVERFLOW).collect();
            assert_eq!(newest, expected, "{room} in one turn: {one_turn}");
            // The queue holds as many as fit beside the rest of the frame in progress.
            let rest = in_progress * (NTH_BYTES - room);
            assert_eq!(newest.len(), (OUTBOX - rest) / NTH_BYTES);
            assert_eq!(world.all_frames(quick).len(), OVERFLOW);
            let metrics = world.metrics();
            assert_eq!(metrics.dropped.slow_consumer as usize, OVERFLOW - got.len());
            assert_eq!(metrics.messages_out as usize, OVERFLOW + got.len());
        }
    }
}

#[test]
fn skip_ahead_drops_the_queue_whenever_it_is_full() {
    for one_turn in [true, false] {
        for room in 0..NTH_BYTES {
            let (mut world, [slow, quick]) = overflow(SlowConsumer::SkipAhead, room, one_turn);
            let in_progress = usize::from(room > 0);
            // As many messages as fit beside the rest of the frame in progress are queued, and the next one replaces
            // them. The first time, they include the frame in progress.
            let fit = (OUTBOX - in_progress * (NTH_BYTES - room)) / NTH_BYTES;
            let skipped = in_progress + (OVERFLOW - in_progress - 1) / fit * fit;
            let expected: Vec<_> = (0..in_progress).chain(skipped..OVERFLOW).collect();
            let got = numbers(&world.all_frames(slow));
            assert_eq!(got, expected, "{room} in one turn: {one_turn}");
            assert_eq!(world.all_frames(quick).len(), OVERFLOW);
            let metrics = world.metrics();
            assert_eq!(metrics.dropped.slow_consumer as usize, OVERFLOW - got.len());
            assert_eq!(metrics.messages_out as usize, OVERFLOW + got.len());
            assert_eq!(metrics.slow_consumers, 0);
            // The connection goes on.
            world.broadcasts(nth(OVERFLOW));
            world.settle();
            assert_eq!(numbers(&world.all_frames(slow)), [OVERFLOW]);
        }
    }
}

#[test]
fn skip_ahead_behind_a_long_frame_drops_the_newest() {
    let mut world = with_policy(SlowConsumer::SkipAhead);
    let slow = world.join();
    world.stall(slow, 1);
    // With its header of four bytes, it fills the outbox.
    let long = "x".repeat(OUTBOX - 4);
    world.broadcasts(&long);
    for n in 0..3 {
        world.broadcasts(nth(n));
        world.settle();
    }
    assert_eq!(world.metrics().dropped.slow_consumer, 3);
    // Once there is room behind the frame in progress, the next message is queued.
    world.client_reads(slow, NTH_BYTES);
    world.broadcasts(nth(3));
    world.settle();
    world.unstall(slow);
    assert_eq!(world.all_frames(slow), [text(&long), text(nth(3))]);
    assert_eq!(world.metrics().dropped.slow_consumer, 3);
}

#[test]
fn skip_ahead_offers_the_queue_to_the_socket_first() {
    let mut world = with_policy(SlowConsumer::SkipAhead);
    let slow = world.join();
    world.stall(slow, 0);
    for n in 0..FIT {
        world.broadcasts(nth(n));
    }
    world.settle();
    // The client has read, but the kernel does not report that the socket is writable.
    world.pipe(slow).add_room_unreported(OUTBOX);
    world.broadcasts(nth(FIT));
    world.settle();
    assert_eq!(world.metrics().dropped.slow_consumer, 0);
    world.unstall(slow);
    let got = numbers(&world.all_frames(slow));
    assert_eq!(got, (0..=FIT).collect::<Vec<_>>());
}

#[test]
fn skip_ahead_lets_the_client_be_handled_again() {
    let mut world = with_policy(SlowConsumer::SkipAhead);
    let slow = world.join();
    world.run_handlers();
    world.stall(slow, 0);
    for n in 0..FIT {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.client_says(slow, "waits");
    world.run_handlers();
    assert_eq!(world.handled(slow), [Told::Open], "its reply finds no room");
    world.broadcasts(nth(FIT));
    world.run_handlers();
    assert_eq!(world.handled(slow), [Told::message("waits")]);
    world.unstall(slow);
    assert_eq!(world.all_frames(slow), [text(nth(FIT)), text("waits")]);
}

/// A client's outbox under [`SlowConsumer::SkipAhead`] as the policy describes it, message by message.
struct SkipAheadModel {
    bytes_max: usize,
    /// The bytes that the socket takes.
    room: usize,
    /// The number and the rest of each message that waits, and whether it was begun.
    waiting: Vec<(usize, usize, bool)>,
    received: Vec<usize>,
    dropped: u64,
}

impl SkipAheadModel {
    fn bytes(&self) -> usize {
        self.waiting.iter().map(|(_, rest, _)| rest).sum()
    }

    fn has_room(&self, len: usize) -> bool {
        self.bytes() == 0 || self.bytes() + len <= self.bytes_max
    }

    fn send(&mut self, n: usize, len: usize) {
        if !self.has_room(len) {
            let in_progress = self.waiting.iter().filter(|(_, _, begun)| *begun);
            let in_progress: Vec<_> = in_progress.copied().collect();
            let all = std::mem::replace(&mut self.waiting, in_progress);
            if self.has_room(len) {
                self.dropped += (all.len() - self.waiting.len()) as u64;
            } else {
                self.waiting = all;
                self.dropped += 1;
                return;
            }
        }
        self.waiting.push((n, len, false));
        self.read(0);
    }

    fn read(&mut self, bytes: usize) {
        self.room += bytes;
        while let Some((n, rest, begun)) = self.waiting.first_mut() {
            let written = self.room.min(*rest);
            self.room -= written;
            *rest -= written;
            *begun |= written > 0;
            if *rest > 0 {
                return;
            }
            self.received.push(*n);
            self.waiting.remove(0);
        }
    }
}

#[test]
fn skip_ahead_matches_its_model() {
    const HEADER_BYTES: usize = 2;
    let mut skipped = 0;
    for_seeds(400, |seed| {
        let mut dice = Dice::from_seed(seed);
        let mut model = SkipAheadModel {
            bytes_max: 1 + dice.below(600),
            room: 0,
            waiting: Vec::new(),
            received: Vec::new(),
            dropped: 0,
        };
        let mut world = World::new(Setup {
            slow_consumer: SlowConsumer::SkipAhead,
            limits: Limits {
                outbox_bytes_max: model.bytes_max,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let slow = world.join();
        world.run_handlers();
        world.stall(slow, 0);
        for n in 0..100 {
            let payload = format!("{n:0len$}", len = 3 + dice.below(120));
            match dice.below(2) {
                0 => world.broadcasts(&payload),
                _ => world.sends(slow, &payload),
            }
            model.send(n, HEADER_BYTES + payload.len());
            if dice.one_in(3) {
                world.settle();
                let bytes = dice.below(400);
                world.client_reads(slow, bytes);
                model.read(bytes);
            }
        }
        world.settle();
        world.unstall(slow);
        model.read(usize::MAX / 4);
        assert_eq!(numbers(&world.all_frames(slow)), model.received);
        assert_eq!(world.metrics().dropped.slow_consumer, model.dropped);
        skipped += model.dropped;
    });
    assert!(skipped > 0 || std::env::var_os("SEED").is_some());
}

#[test]
fn dropping_messages_does_not_keep_a_nonreader() {
    for policy in [
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
    ] {
        let mut world = with_policy(policy);
        let slow = world.join();
        world.stall(slow, 0);
        let mut sent = 0;
        for n in 0..40 {
            sent += u64::from(world.try_broadcast(nth(n)).unwrap());
            world.advance_ms(1_000);
        }
        assert!(world.is_closed(slow));
        world.assert_empty();
        let metrics = world.metrics();
        assert_eq!(metrics.messages_out + metrics.dropped.total(), sent);
    }
}

#[test]
fn pongs_of_a_slow_client_are_not_dropped() {
    for policy in [SlowConsumer::DropOldest, SlowConsumer::SkipAhead] {
        let mut world = with_policy(policy);
        let slow = world.join();
        world.stall(slow, 10);
        for n in 0..FIT {
            world.sends(slow, &nth(n));
        }
        world.settle();
        world.client_sends(slow, client_ping(b"p"));
        for n in FIT..3 * FIT {
            world.sends(slow, &nth(n));
        }
        world.settle();
        world.unstall(slow);
        let frames = world.all_frames(slow);
        assert_eq!(frames[1], pong("p"), "{policy:?}");
    }
}

#[test]
fn client_not_reading_its_replies_slows_only_itself() {
    let mut world = World::new(Setup {
        limits: Limits {
            outbox_bytes_max: 200_000,
            pending_bytes_max: 10_000,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    });
    let (slow, quick) = (world.join(), world.join());
    world.stall(slow, 0);
    let burst: Vec<u8> = (0..100_000).flat_map(|n| client_text(&nth(n))).collect();
    world.client_sends(slow, burst);
    world.run_handlers();
    assert!(world.pipe(slow).unread() > 4_000_000, "it is not read");
    world.client_says(quick, "quick");
    world.run_handlers();
    assert_eq!(world.all_frames(quick), [text("quick")]);
    // The client reads again, and nothing is lost.
    world.unstall(slow);
    world.run_handlers();
    assert_eq!(
        numbers(&world.all_frames(slow)),
        (0..100_000).collect::<Vec<_>>()
    );
    assert_eq!(world.metrics().dropped.total(), 0);
}

// ------------------------------------------------------------------------------------------------------------ pacing

fn paced(bytes_per_second_min: u64, mailbox_bytes_max: usize) -> World {
    World::new(Setup {
        slow_consumer: SlowConsumer::Pace {
            bytes_per_second_min,
            patience: Duration::from_secs(1),
        },
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            mailbox_bytes_max,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    })
}

#[test]
fn pacing_holds_commands_back_instead_of_dropping_them() {
    let mut world = paced(1, 4_000);
    let clients = world.joined(3);
    world.stall(clients[1], 0);
    let mut sent = 0;
    let mut got = [Vec::new(), Vec::new(), Vec::new()];
    let mut refused = 0;
    while sent < 500 {
        match world.try_broadcast(nth(sent)) {
            Ok(_) => sent += 1,
            Err(PushError::Full) => {
                refused += 1;
                world.settle();
                // The client reads one message, and then the others progress, too.
                if world.try_broadcast(nth(sent)).is_ok() {
                    sent += 1;
                }
                world.client_reads(clients[1], 77);
            }
            Err(PushError::Closed) => panic!("closed"),
        }
    }
    assert!(refused > 100, "producers were held up {refused} times");
    world.unstall(clients[1]);
    for (&client, got) in clients.iter().zip(&mut got) {
        got.extend(numbers(&world.all_frames(client)));
        assert_eq!(*got, (0..500).collect::<Vec<_>>());
    }
    let metrics = world.metrics();
    assert_eq!(metrics.dropped.total(), 0);
    assert_eq!(metrics.messages_out, 1_500);
    assert_eq!(metrics.slow_consumers, 0);
}

#[test]
fn paced_clients_are_at_most_one_outbox_ahead() {
    let mut world = paced(1, 1 << 20);
    let (slow, quick) = (world.join(), world.join());
    world.stall(slow, 0);
    for n in 0..1_000 {
        world.broadcasts(nth(n));
    }
    world.settle();
    let ahead = world.all_frames(quick).len();
    assert!((FIT / 2..=FIT).contains(&ahead), "{ahead}");
    world.unstall(slow);
    assert_eq!(world.all_frames(slow).len(), 1_000);
    assert_eq!(world.all_frames(quick).len(), 1_000 - ahead);
}

#[test]
fn stuck_client_is_disconnected_when_patience_ends() {
    let mut world = paced(1_000, 1 << 20);
    let clients = world.joined(3);
    world.stall(clients[2], 60);
    for n in 0..100 {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.advance_ms(900);
    let early = world.all_frames(clients[0]).len();
    assert!(early < 100);
    world.advance_ms(300);
    assert_eq!(early + world.all_frames(clients[0]).len(), 100);
    assert_eq!(world.all_frames(clients[1]).len(), 100);
    world.unstall(clients[2]);
    let frames = world.all_frames(clients[2]);
    let (last, messages) = frames.split_last().unwrap();
    assert!(is_too_slow(last));
    assert_eq!(
        numbers(messages),
        [0, 1],
        "the frame in progress is finished"
    );
    let metrics = world.metrics();
    assert_eq!(metrics.slow_consumers, 1);
    assert_eq!(
        metrics.messages_out + metrics.dropped.total(),
        202 + metrics.dropped.total()
    );
}

#[test]
fn client_at_the_minimum_rate_stays_connected() {
    for step_ms in [10u64, 50, 125] {
        let mut world = paced(1_000, 1 << 20);
        let (slow, quick) = (world.join(), world.join());
        world.stall(slow, 0);
        for n in 0..300 {
            world.broadcasts(nth(n));
        }
        world.settle();
        // 300 messages of 50 bytes at 1,000 bytes a second: 15 seconds.
        for _ in 0..16_000 / step_ms {
            world.advance_ms(step_ms);
            world.client_reads(slow, step_ms as usize);
        }
        assert_eq!(world.all_frames(slow).len(), 300, "every {step_ms} ms");
        assert_eq!(world.all_frames(quick).len(), 300);
        assert_eq!(world.metrics().slow_consumers, 0);
    }
}

#[test]
fn client_below_the_minimum_rate_is_disconnected() {
    let mut world = paced(1_000, 1 << 20);
    let slow = world.join();
    world.stall(slow, 0);
    for n in 0..300 {
        world.broadcasts(nth(n));
    }
    world.settle();
    // Its reading earns four fifths of the time that passes, except for the first eighth of the patience. So it lasts for four
    // and a half seconds.
    for _ in 0..430 {
        world.advance_ms(10);
        world.client_reads(slow, 8);
    }
    assert_eq!(world.metrics().slow_consumers, 0);
    for _ in 0..50 {
        world.advance_ms(10);
        world.client_reads(slow, 8);
    }
    assert_eq!(world.metrics().slow_consumers, 1);
}

#[test]
fn client_without_readiness_events_is_tried_in_time() {
    // Kernels report room in coarse steps, so a socket may accept bytes long before it reports readiness.
    let mut world = paced(1_000, 1 << 20);
    let slow = world.join();
    world.stall(slow, 0);
    for n in 0..100 {
        world.broadcasts(nth(n));
    }
    world.settle();
    for _ in 0..60 {
        world.advance_ms(100);
        world.pipe(slow).add_room_unreported(110);
    }
    assert_eq!(world.metrics().slow_consumers, 0);
    world.unstall(slow);
    assert_eq!(world.all_frames(slow).len(), 100);
}

#[test]
fn reads_pings_closes_and_handshakes_continue_while_paced() {
    let mut world = paced(1, 1 << 20);
    let (stuck, other, leaves) = (world.join(), world.join(), world.join());
    world.stall(stuck, 0);
    for n in 0..100 {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.all_frames(other);
    world.all_frames(leaves);
    world.client_sends(other, client_ping(b"p"));
    assert_eq!(world.all_frames(other), [pong("p")]);
    world.client_says(other, "a");
    world.run_handlers();
    assert_eq!(world.handled(other), [Told::Open, Told::message("a")]);
    assert_eq!(world.all_frames(other), [], "its reply is mail, too");
    let new = world.join();
    world.client_sends(new, client_ping(b"q"));
    assert_eq!(world.all_frames(new), [pong("q")]);
    world.client_resets(leaves);
    world.run_handlers();
    assert_eq!(world.handled(leaves), [Told::Open, Told::Close]);
    // Then delivery continues in order.
    world.unstall(stuck);
    let frames = world.all_frames(other);
    assert_eq!(frames.last(), Some(&text("a")));
    assert!(world.all_frames(new).len() < 100);
    assert_eq!(world.all_frames(stuck).len(), 100);
}

#[test]
fn closing_client_gets_earlier_messages_while_paced() {
    let mut world = paced(1, 1 << 20);
    let (stuck, leaves) = (world.join(), world.join());
    world.stall(stuck, 0);
    for n in 0..50 {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.client_says(leaves, "bye");
    world.client_sends(leaves, client_frame(0x88, &[0x03, 0xE8]));
    world.run_handlers();
    assert!(!world.is_finished(leaves), "its reply waits");
    world.unstall(stuck);
    world.run_handlers();
    let frames = world.all_frames(leaves);
    assert_eq!(frames.len(), 52);
    assert_eq!(frames[50], text("bye"));
    assert_eq!(frames[51], Frame::Close(Some(1000), String::new()));
}

#[test]
fn congested_client_that_vanishes_delays_nobody() {
    let mut world = paced(1, 1 << 20);
    let (stuck, other) = (world.join(), world.join());
    world.stall(stuck, 0);
    for n in 0..100 {
        world.broadcasts(nth(n));
    }
    world.settle();
    world.client_resets(stuck);
    world.run_handlers();
    assert_eq!(world.all_frames(other).len(), 100);
    assert!(world.is_closed(stuck));
    assert_eq!(world.hub.members(), 1);
}

#[test]
fn long_message_waits_for_empty_outboxes() {
    let mut world = paced(1, 1 << 20);
    let (slow, quick) = (world.join(), world.join());
    world.stall(slow, 0);
    let long = "x".repeat(20 * OUTBOX);
    world.broadcasts(nth(0));
    world.broadcasts(&long);
    world.broadcasts(nth(2));
    world.settle();
    assert_eq!(world.all_frames(quick), [text(nth(0))]);
    world.client_reads(slow, NTH_BYTES + 100);
    assert_eq!(world.all_frames(quick), [text(&long)]);
    world.unstall(slow);
    let expected = [text(nth(0)), text(&long), text(nth(2))];
    assert_eq!(world.all_frames(slow), expected);
    assert_eq!(world.all_frames(quick), [text(nth(2))]);
}

#[test]
fn paced_shard_asleep_is_not_woken_by_data() {
    let mut world = paced(1, 1 << 20);
    let stuck = world.join();
    world.stall(stuck, 0);
    for n in 0..100 {
        world.broadcasts(nth(n));
    }
    world.settle();
    let turns = world.turns;
    for n in 100..200 {
        world.broadcasts(nth(n));
        assert!(!world.is_due());
    }
    world.settle();
    assert_eq!(world.turns, turns);
    world.unstall(stuck);
    assert_eq!(world.all_frames(stuck).len(), 200);
}

/// Returns the frames that a client received, and the metrics of the rest. Its replies are adjacent in the mailbox, where the
/// shard can join them, or have other commands between them.
fn got_of_replies(dice: &mut Dice, policy: SlowConsumer, joined: bool) -> (Vec<Frame>, [u64; 3]) {
    let mut world = World::new(Setup {
        slow_consumer: policy,
        limits: Limits {
            outbox_bytes_max: 1 + dice.below(400),
            ..Limits::default()
        },
        ..Setup::default()
    });
    let (slow, other) = (world.join(), world.join());
    world.run_handlers();
    world.frames(slow);
    world.stall(slow, dice.below(200));
    let mut n = 0;
    for _ in 0..1 + dice.below(5) {
        let replies = 1 + dice.below(12);
        for _ in 0..replies {
            let len = dice.below(60);
            world.sends(slow, &format!("{n:0len$}"));
            if !joined {
                world.sends(other, "between");
            }
            n += 1;
        }
        if joined {
            (0..replies).for_each(|_| world.sends(other, "behind"));
        }
        world.settle();
        world.client_reads(slow, dice.below(150));
    }
    world.unstall(slow);
    let metrics = world.metrics();
    let dropped = metrics.dropped.slow_consumer + metrics.dropped.closed;
    (
        world.all_frames(slow),
        [metrics.messages_out, dropped, metrics.slow_consumers],
    )
}

#[test]
fn joined_replies_meet_the_policy_like_single_ones() {
    let policies = [
        SlowConsumer::Disconnect,
        SlowConsumer::DropOldest,
        SlowConsumer::DropNewest,
        SlowConsumer::SkipAhead,
    ];
    for seed in 0..400 {
        for policy in policies {
            let [joined, one_by_one] = [true, false]
                .map(|joined| got_of_replies(&mut Dice::from_seed(seed), policy, joined));
            assert_eq!(joined, one_by_one, "{policy:?}, seed {seed}");
        }
    }
}
