//! Keyed rooms on a simulated shard: what waits for slow clients, in which order they receive it, and the snapshots of clients that
//! join. The program is simulated: it keeps the newest message of each key, as `async_app` does.

mod game;
mod joins;
mod quick;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::replays::POLICIES;
use super::streams;
use super::wire::{Frame, text};
use super::world::{Setup, Told, World, echo};
use crate::engine::hub::event_streams::Beginning;
use crate::engine::hub::{Destination, Hub};
use crate::engine::model::replay::Replay;
use crate::engine::model::room::{NotJoined, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::mailbox::PushError;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::transport::UnsentLimit;

const OUTBOX: usize = 1_000;

/// A keyed room, and what the program keeps of it.
pub(super) struct Board {
    room: Arc<SharedRoom>,
    newest: BTreeMap<ConflationKey, Message>,
}

impl Board {
    pub(super) fn new(hub: &Hub) -> Self {
        Self {
            room: hub.new_keyed_room("board".into()),
            newest: BTreeMap::new(),
        }
    }

    /// Publishes the newest message of a key.
    pub(super) fn publish(
        &mut self,
        hub: &Hub,
        key: ConflationKey,
        text: &str,
    ) -> Result<(), PushError> {
        let message = Message::new(text);
        self.push(hub, Some(key), &message)?;
        self.newest.insert(key, message);
        Ok(())
    }

    /// Sends a message without a key.
    pub(super) fn send(&self, hub: &Hub, text: &str) -> Result<(), PushError> {
        self.push(hub, None, &Message::new(text))
    }

    fn push(
        &self,
        hub: &Hub,
        key: Option<ConflationKey>,
        message: &Message,
    ) -> Result<(), PushError> {
        let event = streams::event(message.text().unwrap()).into();
        let to = Destination {
            room: Some(&self.room),
            key,
            event: self.room.streams().map(|streams| (streams, &event)),
            ..Destination::default()
        };
        hub.try_broadcast(message.frame(), to).map(drop)
    }

    fn update(&mut self, world: &World, key: u64, text: &str) {
        self.publish(&world.hub, ConflationKey::new(key), text)
            .unwrap();
    }

    /// Makes a client join, with a snapshot. Returns whether it was not a member before.
    pub(super) fn join(&self, hub: &Hub, session: &Session) -> Result<bool, NotJoined> {
        let messages = self.newest.iter();
        let snapshot: Vec<_> = messages
            .map(|(&key, message)| (key, message.frame().clone()))
            .collect();
        let reserved = hub.reserve_keyed_join(session, snapshot.len())?;
        hub.join_keyed(reserved, &self.room, session, snapshot)
    }

    fn joined(&self, world: &mut World, clients: usize) -> Vec<usize> {
        let clients = world.joined(clients);
        for &client in &clients {
            assert!(self.join(&world.hub, &world.session(client)).unwrap());
        }
        world.run_handlers();
        clients
    }
}

fn with_limits(slow_consumer: SlowConsumer, limits: Limits) -> World {
    World::new(Setup {
        slow_consumer,
        limits,
        handler: Box::new(echo),
        ..Setup::default()
    })
}

fn with_policy(policy: SlowConsumer) -> World {
    let limits = Limits {
        outbox_bytes_max: OUTBOX,
        ..Limits::default()
    };
    with_limits(policy, limits)
}

fn texts(frames: &[Frame]) -> Vec<&str> {
    fn text(frame: &Frame) -> &str {
        match frame {
            Frame::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }
    frames.iter().map(text).collect()
}

#[test]
fn stalled_client_gets_the_newest_of_each_key_in_order_of_first_wait() {
    for policy in POLICIES {
        for one_turn in [true, false] {
            let mut world = with_policy(policy);
            let mut board = Board::new(&world.hub);
            let [slow, quick] = board.joined(&mut world, 2)[..] else {
                unreachable!()
            };
            world.stall(slow, 0);
            let updates = [
                (3, "c1"),
                (1, "a1"),
                (3, "c2"),
                (2, "b1"),
                (1, "a2"),
                (3, "c3"),
            ];
            for (key, text) in updates {
                board.update(&world, key, text);
                if !one_turn {
                    world.settle();
                }
            }
            world.settle();
            let all = updates.map(|(_, text)| text);
            assert_eq!(texts(&world.all_frames(quick)), all);
            world.unstall(slow);
            assert_eq!(
                texts(&world.all_frames(slow)),
                ["c3", "a2", "b1"],
                "{policy:?}"
            );
            let metrics = world.metrics();
            assert_eq!(metrics.conflated, 3);
            assert_eq!(metrics.dropped.slow_consumer + metrics.slow_consumers, 0);
            // The connection goes on as before.
            board.update(&world, 1, "a3");
            world.settle();
            assert_eq!(texts(&world.all_frames(slow)), ["a3"]);
        }
    }
}

#[test]
fn partly_written_batch_completes_its_frame_and_conflates_the_rest() {
    let updates = [(1, "a1"), (2, "b1"), (1, "a2"), (2, "b2"), (1, "a3")];
    let frame = Message::new("a1").frame().len();
    for room in 0..=updates.len() * frame {
        let mut world = with_policy(SlowConsumer::Disconnect);
        let mut board = Board::new(&world.hub);
        let slow = board.joined(&mut world, 1)[0];
        world.stall(slow, room);
        for (key, text) in updates {
            board.update(&world, key, text);
        }
        world.settle();
        world.unstall(slow);
        // The frames that have begun are completed. Of the others, the newest of each key is left.
        let begun = room.div_ceil(frame);
        let mut expected: Vec<&str> = updates[..begun].iter().map(|(_, text)| *text).collect();
        let mut waiting: Vec<(u64, &str)> = Vec::new();
        for &(key, text) in &updates[begun..] {
            match waiting.iter_mut().find(|(waits, _)| *waits == key) {
                Some((_, former)) => *former = text,
                None => waiting.push((key, text)),
            }
        }
        expected.extend(waiting.iter().map(|(_, text)| *text));
        assert_eq!(texts(&world.all_frames(slow)), expected, "{room}");
        let conflated = world.metrics().conflated as usize;
        assert_eq!(conflated, updates.len() - expected.len(), "{room}");
    }
}

#[test]
fn message_without_a_key_follows_keyed_ones_sent_before_it() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let slow = board.joined(&mut world, 1)[0];
    world.stall(slow, 0);
    board.update(&world, 1, "a1");
    board.send(&world.hub, "first").unwrap();
    board.update(&world, 2, "b1");
    world.broadcasts("second");
    board.update(&world, 1, "a2");
    world.sends(slow, "third");
    board.update(&world, 3, "c1");
    world.settle();
    board.update(&world, 2, "b2");
    world.settle();
    world.unstall(slow);
    let expected = ["a2", "first", "b2", "second", "third", "c1"];
    assert_eq!(texts(&world.all_frames(slow)), expected);
}

/// Sends three messages without a key to a stalled client whose outbox has room for two, and keyed ones in between. Returns the
/// first letters of what the client receives, and the number of dropped messages.
fn overflow(policy: SlowConsumer) -> (Vec<String>, u64) {
    let mut world = with_policy(policy);
    let mut board = Board::new(&world.hub);
    let slow = board.joined(&mut world, 1)[0];
    world.stall(slow, 0);
    board.update(&world, 1, "a0");
    for n in 0..3 {
        let long = format!("{n}{}", "x".repeat(OUTBOX / 3));
        board.send(&world.hub, &long).unwrap();
        world.settle();
        board.update(&world, 2, &format!("b{n}"));
        world.settle();
    }
    world.unstall(slow);
    let frames = world.all_frames(slow);
    let shown = |frame: &Frame| match frame {
        Frame::Text(text) => text[..2].trim_end_matches('x').to_owned(),
        Frame::Close(code, _) => code.unwrap().to_string(),
        other => panic!("{other:?}"),
    };
    let got = frames.iter().map(shown).collect();
    (got, world.metrics().dropped.slow_consumer)
}

#[test]
fn messages_without_a_key_keep_their_policy() {
    // Two messages with a key and three without wait, of which one does not fit.
    let expected: [(&[&str], u64); POLICIES.len()] = [
        (&["1013"], 5),
        (&["a0", "0", "b2", "1"], 1),
        (&["a0", "b2", "1", "2"], 1),
        (&["a0", "b2", "2"], 2),
        // Producers wait, also those of the keyed messages that follow.
        (&["a0", "0", "b0", "1", "b1", "2", "b2"], 0),
    ];
    for (policy, (got, dropped)) in POLICIES.into_iter().zip(expected) {
        let got = got.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(overflow(policy), (got, dropped), "{policy:?}");
    }
}

#[test]
fn long_keyed_message_in_progress_counts_neither_as_backlog_nor_as_slowness() {
    for policy in POLICIES {
        let mut world = with_policy(policy);
        let mut board = Board::new(&world.hub);
        let [slow, quick] = board.joined(&mut world, 2)[..] else {
            unreachable!()
        };
        world.stall(slow, 10);
        let long = "x".repeat(3 * OUTBOX);
        board.update(&world, 1, &long);
        world.settle();
        world.broadcasts("without a key");
        board.update(&world, 1, "short");
        world.settle();
        assert_eq!(world.all_frames(quick).len(), 3, "{policy:?}");
        world.unstall(slow);
        let expected = [&long, "without a key", "short"];
        assert_eq!(texts(&world.all_frames(slow)), expected, "{policy:?}");
        assert_eq!(world.metrics().dropped.total(), 0);
    }
}

#[test]
fn keyed_messages_never_make_producers_wait() {
    let mut world = with_policy(SlowConsumer::pace());
    let mut board = Board::new(&world.hub);
    let [slow, quick] = board.joined(&mut world, 2)[..] else {
        unreachable!()
    };
    world.stall(slow, 0);
    // With it, the outbox has no room for a long message.
    board.send(&world.hub, "without a key").unwrap();
    world.settle();
    assert_eq!(world.all_frames(quick).len(), 1);
    let long = "x".repeat(3 * OUTBOX);
    for n in 0..20 {
        board.update(&world, n % 4, &format!("{n} {long}"));
        world.settle();
        assert_eq!(world.all_frames(quick).len(), 1);
    }
    assert_eq!(world.core().cx.fanout.congested, 0);
    world.advance_ms(5_000);
    world.unstall(slow);
    assert_eq!(world.all_frames(slow).len(), 1 + 4);
    assert_eq!(world.metrics().paced, Duration::ZERO);
}

#[test]
fn messages_of_a_slow_client_are_handled_while_keyed_ones_wait_for_it() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let slow = board.joined(&mut world, 1)[0];
    world.handled(slow);
    world.stall(slow, 0);
    board.update(&world, 1, &"x".repeat(5 * OUTBOX));
    world.settle();
    world.client_says(slow, "hello");
    world.run_handlers();
    assert_eq!(world.handled(slow), [Told::message("hello")]);
    world.unstall(slow);
    assert_eq!(world.all_frames(slow)[1], text("hello"));
}

#[test]
fn close_follows_what_waits() {
    for stops in [true, false] {
        let mut world = with_policy(SlowConsumer::Disconnect);
        let mut board = Board::new(&world.hub);
        let client = board.joined(&mut world, 1)[0];
        world.stall(client, 0);
        for (key, text) in [(1, "a1"), (2, "b1"), (1, "a2")] {
            board.update(&world, key, text);
        }
        match stops {
            true => world.stop(Duration::from_secs(5)),
            false => world.closes(client, 4000, "bye"),
        }
        world.settle();
        world.unstall(client);
        let code = if stops { 1001 } else { 4000 };
        let frames = world.all_frames(client);
        assert_eq!(frames[..2], [text("a2"), text("b1")]);
        assert!(matches!(frames[2..], [Frame::Close(Some(last), _)] if last == code));
        world.client_ends(client);
        world.run_handlers();
        assert_eq!(world.metrics().dropped.total(), 0);
    }
}

#[test]
fn lost_connection_counts_what_waited_and_frees_it() {
    let mut world = with_policy(SlowConsumer::DropOldest);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    world.stall(client, 1);
    for n in 0..10 {
        board.update(&world, n % 3, "x");
        world.settle();
    }
    world.client_resets(client);
    world.assert_empty();
    let metrics = world.metrics();
    // The first one is in progress, and three wait.
    assert_eq!((metrics.conflated, metrics.dropped.closed), (6, 4));
}

#[test]
fn stalled_client_is_disconnected_by_its_write_timeout_only() {
    let limits = Limits {
        write_timeout: Duration::from_secs(10),
        ..Limits::default()
    };
    let mut world = with_limits(SlowConsumer::Disconnect, limits);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    world.stall(client, 0);
    for n in 0..95 {
        board.update(&world, n % 7, &"x".repeat(1_000));
        world.advance_ms(100);
    }
    assert!(!world.is_closed(client));
    world.advance_ms(600);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn blocked_client_costs_no_socket_calls_until_it_reads() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    world.stall(client, 0);
    board.update(&world, 1, "a");
    world.settle();
    let tries = world.pipe(client).tries;
    for n in 0..100 {
        board.update(&world, n % 10, "x");
        world.settle();
    }
    assert_eq!(world.pipe(client).tries, tries);
    world.unstall(client);
    assert_eq!(world.all_frames(client).len(), 10);
}

#[test]
fn messages_that_wait_are_shared_and_count_by_their_entries() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let clients = board.joined(&mut world, 3);
    for &client in &clients {
        world.stall(client, 0);
    }
    let payload = "x".repeat(500);
    for n in 0..1_000 {
        board.update(&world, n % 50, &payload);
        world.settle();
    }
    let own = world.core().cx.fanout.unshared_bytes();
    assert!(own <= 3 * 50 * 260, "{own}");
    for &client in &clients {
        assert_eq!(world.unshared_bytes(client), 0);
        world.unstall(client);
        assert_eq!(world.all_frames(client).len(), 50);
    }
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
    for client in clients {
        world.client_resets(client);
    }
    world.assert_empty();
}

/// Publishes messages of ever new keys to a stalled client, as if the program removed the former ones, and lets the client read
/// again.
fn publish_new_keys(policy: SlowConsumer) -> (World, usize) {
    let limits = Limits {
        outbox_bytes_max: OUTBOX,
        keyed_bytes_max: 10 * OUTBOX,
        ..Limits::default()
    };
    let mut world = with_limits(policy, limits);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    world.stall(client, 0);
    for n in 0..1_000 {
        let key = ConflationKey::new(n);
        let _ = board.publish(&world.hub, key, &format!("{n:40}"));
        world.settle();
        let waiting = world.waiting_bytes(client);
        assert!(waiting <= 12 * OUTBOX, "{waiting}");
    }
    world.unstall(client);
    (world, client)
}

#[test]
fn keys_beyond_the_bound_of_a_client_are_left_to_the_policy() {
    for policy in POLICIES {
        let (mut world, client) = publish_new_keys(policy);
        let frames = world.all_frames(client);
        let metrics = world.metrics();
        let got = frames.len() as u64;
        match policy {
            SlowConsumer::Disconnect => {
                assert_eq!(metrics.slow_consumers, 1);
                assert!(matches!(frames[..], [Frame::Close(Some(1013), _)]));
            }
            SlowConsumer::Pace { .. } => assert_eq!(got, 1_000, "all have waited"),
            SlowConsumer::DropNewest | SlowConsumer::DropOldest | SlowConsumer::SkipAhead => {
                assert_eq!(metrics.dropped.slow_consumer, 1_000 - got, "{policy:?}");
                let has_last = texts(&frames).last().map(|text| text.trim()) == Some("999");
                assert_eq!(has_last, policy != SlowConsumer::DropNewest);
            }
        }
        assert_eq!(metrics.conflated, 0);
    }
}

/// A thousand keys are updated a hundred times a second. One client reads a hundredth of that, and another one everything.
#[test]
fn reader_at_a_hundredth_of_the_speed_has_every_last_value_within_a_second() {
    const KEYS: usize = 1_000;
    const SLICE_MS: u64 = 10;
    const SLICES: usize = 150;
    let payload = |key: usize, n: usize| format!("{key:04} {n:032}");
    let frame_bytes = Message::new(payload(0, 0)).frame().len();
    let mut world = with_limits(SlowConsumer::Disconnect, Limits::default());
    let mut board = Board::new(&world.hub);
    let [slow, quick] = board.joined(&mut world, 2)[..] else {
        unreachable!()
    };
    world.stall(slow, 0);
    let (mut got, mut last) = (0, vec![None; KEYS]);
    let mut read = |world: &mut World| {
        world.client_reads(slow, KEYS / 100 * frame_bytes);
        for text in texts(&world.frames(slow)) {
            let (key, n) = text.split_once(' ').unwrap();
            let (key, n): (usize, usize) = (key.parse().unwrap(), n.parse().unwrap());
            assert!(last[key] < Some(n), "{n} of {key} after {:?}", last[key]);
            last[key] = Some(n);
            got += 1;
        }
    };
    for n in 0..SLICES {
        for key in 0..KEYS {
            board.update(&world, key as u64, &payload(key, n));
        }
        world.settle();
        assert_eq!(world.frames(quick).len(), KEYS, "nobody else waits");
        let waiting = world.waiting_bytes(slow);
        assert!(waiting <= KEYS * frame_bytes, "{waiting}");
        read(&mut world);
        world.advance_ms(SLICE_MS);
    }
    // The source has stopped.
    for _ in 0..1_000 / SLICE_MS {
        read(&mut world);
        world.advance_ms(SLICE_MS);
    }
    assert_eq!(last, vec![Some(SLICES - 1); KEYS]);
    let metrics = world.metrics();
    assert_eq!(metrics.conflated as usize, KEYS * SLICES - got);
    assert_eq!(metrics.slow_consumers + metrics.dropped.total(), 0);
    assert_eq!(metrics.connections, 2);
}

#[test]
fn event_stream_gets_the_snapshot_and_of_each_key_the_newest() {
    let board = Arc::new(OnceLock::<Board>::new());
    let of_program = board.clone();
    let mut world = World::new(Setup {
        streamer: Box::new(move |hub, session| {
            let board = of_program.get().unwrap();
            let rooms = [hub.follow(&board.room).unwrap()];
            let messages = board.newest.iter();
            let snapshot = messages
                .map(|(&key, message)| (key, streams::event(message.text().unwrap()).into()))
                .collect();
            let beginning = Beginning {
                preface: b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
                rooms: &rooms,
                keep_alive: Duration::from_secs(15),
                replay: Replay::default(),
                snapshot,
                broadcasts: true,
                joined_ids: None,
            };
            let reserved = hub.reserve_stream(session, 1 << 20).unwrap();
            assert!(hub.begin_stream(reserved, session, beginning).is_ok());
        }),
        ..Setup::default()
    });
    let mut first = Board::new(&world.hub);
    first.update(&world, 1, "a1");
    first.update(&world, 2, "b1\nin two lines");
    let room = first.room.clone();
    let newest = first.newest.clone();
    assert!(board.set(first).is_ok());
    let client = world.connect();
    world.client_sends(client, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    world.run_handlers();
    world.head(client);
    assert_eq!(world.pipe(client).unsent_limit, Some(UnsentLimit::Keyed));
    assert_eq!(
        streams::parse(&world.output(client)),
        ["a1", "b1\nin two lines"]
    );
    world.stall(client, 0);
    let mut board = Board { room, newest };
    board.update(&world, 3, "c1");
    board.update(&world, 1, "a2");
    board.send(&world.hub, "without a key").unwrap();
    board.update(&world, 3, "c2");
    world.settle();
    board.update(&world, 1, "a3");
    world.settle();
    world.unstall(client);
    assert_eq!(
        streams::parse(&world.output(client)),
        ["c2", "a3", "without a key"]
    );
    assert_eq!(world.metrics().conflated, 2);
    world.client_resets(client);
    world.assert_empty();
}

#[test]
fn keyed_room_has_one_channel_and_stays_when_it_is_empty() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    let session = world.session(client);
    assert!(!board.room.has_members_with_ids());
    world.hub.leave(&board.room, &session).unwrap();
    world.settle();
    assert!(board.room.stays() && !board.room.is_retired());
    assert!(board.room.retire_if_empty());
}
