//! Replays of room history to joining clients. The length of a replay must not make a client count as slow.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::streams::{Scene, event, parse};
use super::wire::{Frame, text};
use super::world::{Setup, Told, World};
use crate::engine::hub::Destination;
use crate::engine::model::replay::{Replay, ReplayPiece};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;

const OUTBOX: usize = 1_000;
/// The length of a message's frame in bytes.
const NTH_BYTES: usize = 50;
/// The number of messages in a replay, which together are three times the outbox's bound.
const REPLAYED: usize = 3 * OUTBOX / NTH_BYTES;

/// Every policy.
pub(super) const POLICIES: [SlowConsumer; 5] = [
    SlowConsumer::Disconnect,
    SlowConsumer::DropNewest,
    SlowConsumer::DropOldest,
    SlowConsumer::SkipAhead,
    SlowConsumer::pace(),
];

fn nth(n: usize) -> String {
    format!("{n:048}")
}

fn texts(numbers: impl IntoIterator<Item = usize>) -> Vec<Frame> {
    numbers.into_iter().map(|n| text(nth(n))).collect()
}

/// A client, and rooms with history.
struct Scenario {
    world: World,
    client: usize,
    /// The number of messages so far. The client must receive all of them in this order.
    due: usize,
}

impl Scenario {
    fn new(slow_consumer: SlowConsumer) -> Self {
        let mut world = World::new(Setup {
            slow_consumer,
            limits: Limits {
                outbox_bytes_max: OUTBOX,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let client = world.join();
        world.stall(client, 0);
        Self {
            world,
            client,
            due: 0,
        }
    }

    /// Lets the client join another room, with `replayed` messages in its history.
    fn joins(&mut self, replayed: usize) -> Arc<SharedRoom> {
        let hub = &self.world.hub;
        let room = hub.new_room(format!("room {}", self.due).into(), false);
        let session = self.world.session(self.client);
        let frames: Vec<_> = (self.due..self.due + replayed)
            .map(|n| Message::new(nth(n)).frame().clone())
            .collect();
        let bytes = frames.iter().map(|frame| frame.len()).sum();
        let reserved = hub.reserve_join(&session, frames.len(), bytes).unwrap();
        hub.join(reserved, &room, &session, frames.into_iter().collect())
            .unwrap();
        self.due += replayed;
        room
    }

    fn broadcasts(&mut self, room: &Arc<SharedRoom>) {
        let to = Destination {
            room: Some(room),
            ..Destination::default()
        };
        let message = Message::new(nth(self.due));
        self.world.hub.try_broadcast(message.frame(), to).unwrap();
        self.due += 1;
    }

    fn sends(&mut self) {
        let message = nth(self.due);
        self.world.sends(self.client, &message);
        self.due += 1;
    }

    /// Asserts that the client received everything in order and was not counted as slow.
    fn assert_served(mut self, what: &str) {
        self.world.unstall(self.client);
        self.world.run_handlers();
        let got = self.world.all_frames(self.client);
        assert_eq!(got, texts(0..self.due), "{what}");
        let metrics = self.world.metrics();
        assert_eq!((metrics.slow_consumers, metrics.dropped.total()), (0, 0));
    }
}

/// An event that may happen during a replay.
#[derive(Debug, Clone, Copy)]
enum ReplayStep {
    /// The client reads a part of its socket buffer, without a readiness event for the shard.
    Read,
    /// The kernel reports that the socket is writable.
    Report,
    /// The shard runs one turn.
    Turn,
    /// A message is broadcast to the room.
    Broadcast,
    /// A message is sent to the client.
    Send,
}

const STEPS: [ReplayStep; 5] = [
    ReplayStep::Read,
    ReplayStep::Report,
    ReplayStep::Turn,
    ReplayStep::Broadcast,
    ReplayStep::Send,
];

/// Iterates over all sequences of `len` steps.
fn orders(len: u32) -> impl Iterator<Item = Vec<ReplayStep>> {
    let count = STEPS.len().pow(len);
    (0..count).map(move |index| {
        let digit = |place| index / STEPS.len().pow(place) % STEPS.len();
        (0..len).map(|place| STEPS[digit(place)]).collect()
    })
}

#[test]
fn replay_triggers_no_policy_in_any_order_of_events() {
    for policy in POLICIES {
        for order in orders(5) {
            let mut scenario = Scenario::new(policy);
            let room = scenario.joins(REPLAYED);
            for step in &order {
                let pipe = || scenario.world.pipe(scenario.client);
                match step {
                    ReplayStep::Read => pipe().add_room_unreported(NTH_BYTES + 7),
                    ReplayStep::Report => pipe().report_room(),
                    ReplayStep::Turn => scenario.world.turn(),
                    ReplayStep::Broadcast => scenario.broadcasts(&room),
                    ReplayStep::Send => scenario.sends(),
                }
            }
            scenario.assert_served(&format!("{policy:?}, {order:?}"));
        }
    }
}

#[test]
fn replays_of_several_rooms_trigger_no_policy() {
    for policy in POLICIES {
        for one_turn in [true, false] {
            for read_bytes in [0, 7, NTH_BYTES, OUTBOX] {
                let mut scenario = Scenario::new(policy);
                scenario.sends();
                for _ in 0..10 {
                    let room = scenario.joins(REPLAYED);
                    scenario.broadcasts(&room);
                    if !one_turn {
                        scenario.world.settle();
                        let client = scenario.client;
                        scenario.world.client_reads(client, read_bytes);
                    }
                }
                scenario.assert_served(&format!("{policy:?}, {one_turn}, {read_bytes}"));
            }
        }
    }
}

#[test]
fn event_stream_replay_triggers_no_policy_in_any_order() {
    static KEPT: [&str; 70] = ["an event that a room has kept"; 70];
    assert!(KEPT.map(|kept| event(kept).len()).iter().sum::<usize>() > 2 * OUTBOX);
    for policy in POLICIES {
        for order in orders(4) {
            let mut scene = Scene::with_replay(policy, &KEPT);
            let client = scene.ask("/events");
            scene.world.stall(client, 50);
            scene.world.run_handlers();
            let mut published = 0;
            for step in &order {
                match step {
                    ReplayStep::Read => scene.world.pipe(client).add_room_unreported(61),
                    ReplayStep::Report => scene.world.pipe(client).report_room(),
                    ReplayStep::Turn => scene.world.turn(),
                    ReplayStep::Broadcast | ReplayStep::Send => {
                        scene.publish("live");
                        published += 1;
                    }
                }
            }
            scene.world.unstall(client);
            scene.world.run_handlers();
            let output = scene.world.output(client);
            let body = output.windows(4).position(|four| four == b"\r\n\r\n");
            let got = parse(&output[body.unwrap() + 4..]);
            let live = std::iter::repeat_n("live", published);
            let due: Vec<&str> = KEPT.into_iter().chain(live).collect();
            assert_eq!(got, due, "{policy:?}, {order:?}");
            assert_eq!(scene.world.metrics().slow_consumers, 0);
        }
    }
}

#[test]
fn live_messages_after_a_replay_are_bounded() {
    const FIT: usize = OUTBOX / NTH_BYTES;
    const LIVE: usize = 2 * FIT + 3;
    for policy in POLICIES {
        let mut scenario = Scenario::new(policy);
        let room = scenario.joins(REPLAYED);
        for _ in 0..LIVE {
            scenario.broadcasts(&room);
            scenario.world.settle();
        }
        let client = scenario.client;
        let status = scenario.world.metrics();
        assert_eq!(
            status.slow_consumers,
            u64::from(policy == SlowConsumer::Disconnect)
        );
        scenario.world.unstall(client);
        scenario.world.settle();
        let frames = scenario.world.all_frames(client);
        let live = |numbers: std::ops::Range<usize>| texts((0..REPLAYED).chain(numbers));
        match policy {
            SlowConsumer::Disconnect => {
                assert!(matches!(frames[..], [Frame::Close(Some(1013), _)]));
            }
            SlowConsumer::DropNewest => assert_eq!(frames, live(REPLAYED..REPLAYED + FIT)),
            SlowConsumer::DropOldest => {
                assert_eq!(frames, live(REPLAYED + LIVE - FIT..REPLAYED + LIVE));
            }
            SlowConsumer::SkipAhead => {
                // The outbox was full twice. The replay stays nevertheless.
                assert_eq!(frames, live(REPLAYED + 2 * FIT..REPLAYED + LIVE));
            }
            SlowConsumer::Pace { .. } => assert_eq!(frames, texts(0..scenario.due)),
        }
    }
}

#[test]
fn skipping_client_gets_its_replay_and_then_the_newest() {
    let mut scenario = Scenario::new(SlowConsumer::SkipAhead);
    let room = scenario.joins(REPLAYED);
    let client = scenario.client;
    // The client reads half as fast as messages are sent, and has read its replay after a while.
    for _ in 0..4 * REPLAYED {
        scenario.broadcasts(&room);
        scenario.world.client_reads(client, NTH_BYTES / 2);
    }
    let frames = scenario.world.all_frames(client);
    assert_eq!(frames[..REPLAYED], texts(0..REPLAYED));
    assert!(frames.len() > REPLAYED + OUTBOX / NTH_BYTES);
    scenario.world.unstall(client);
    let rest = scenario.world.all_frames(client);
    assert!(rest.len() <= OUTBOX / NTH_BYTES + 1);
    assert_eq!(rest.last(), texts([scenario.due - 1]).first());
    let metrics = scenario.world.metrics();
    let missing = scenario.due - frames.len() - rest.len();
    assert_eq!(metrics.dropped.slow_consumer as usize, missing);
}

#[test]
fn client_reading_nothing_of_a_replay_is_disconnected() {
    for policy in POLICIES {
        let mut scenario = Scenario::new(policy);
        scenario.joins(REPLAYED);
        scenario.world.settle();
        let client = scenario.client;
        scenario.world.advance(Duration::from_secs(29));
        assert!(!scenario.world.is_closed(client), "{policy:?}");
        scenario.world.advance(Duration::from_secs(2));
        assert!(scenario.world.is_closed(client), "{policy:?}");
        scenario.world.assert_empty();
    }
}

#[test]
fn long_replay_delays_no_other_client_while_paced() {
    let mut scenario = Scenario::new(SlowConsumer::pace());
    let other = scenario.world.join();
    // Less than half of its bound is queued for another client, so that client does not count as congested.
    scenario.world.stall(other, 0);
    scenario.world.sends(other, "waits");
    scenario.world.settle();
    scenario.joins(REPLAYED);
    scenario.world.settle();
    let third = scenario.world.join();
    scenario.world.broadcasts("for all");
    scenario.world.settle();
    assert_eq!(scenario.world.all_frames(third), [text("for all")]);
}

/// Creates a scenario in which replays of several rooms together exceed the budget of all outboxes.
fn with_narrow_outboxes() -> Scenario {
    let mut scenario = Scenario::new(SlowConsumer::Disconnect);
    scenario.world = World::new(Setup {
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            message_bytes_max: OUTBOX,
            outboxes_bytes_max: 10 * OUTBOX,
            ..Limits::default()
        },
        ..Setup::default()
    });
    scenario.client = scenario.world.join();
    scenario.world.stall(scenario.client, 0);
    scenario
}

#[test]
fn client_evicted_by_a_replay_joins_before_it_leaves() {
    for busy in [true, false] {
        let mut scenario = with_narrow_outboxes();
        let client = scenario.client;
        if busy {
            scenario.world.client_says(client, "keeps a handler busy");
        } else {
            scenario.world.run_handlers();
        }
        for _ in 0..8 {
            scenario.joins(REPLAYED);
        }
        scenario.world.turn();
        scenario.world.run_handlers();
        assert_eq!(scenario.world.metrics().slow_consumers, 1);
        let mut inside = std::collections::HashSet::new();
        for told in scenario.world.told(client) {
            match told {
                Told::Room(name, Presence::Joined) => assert!(inside.insert(name)),
                Told::Room(name, Presence::Left) => assert!(inside.remove(&name), "{name}"),
                _ => {}
            }
        }
        assert!(inside.is_empty(), "{inside:?}");
    }
}

#[test]
fn client_trickling_many_replays_is_evicted() {
    for one_turn in [true, false] {
        for read_bytes in [1, NTH_BYTES] {
            let mut scenario = with_narrow_outboxes();
            let client = scenario.client;
            let other = scenario.world.join();
            for _ in 0..30 {
                scenario.joins(REPLAYED);
                scenario.world.pipe(client).add_room_unreported(read_bytes);
                if !one_turn {
                    scenario.world.pipe(client).report_room();
                    scenario.world.settle();
                }
                if scenario.world.is_closed(client) {
                    break;
                }
                let waiting = scenario.world.waiting_bytes(client);
                assert!(waiting <= 14 * OUTBOX, "{waiting}");
            }
            scenario.world.settle();
            assert!(scenario.world.is_closed(client), "{one_turn} {read_bytes}");
            scenario.world.sends(other, "still served");
            scenario.world.settle();
            assert_eq!(scenario.world.all_frames(other), [text("still served")]);
        }
    }
}

/// A replay of these messages that consists of one block.
fn in_a_block(numbers: std::ops::Range<usize>) -> Replay {
    let frames = numbers.map(|n| Message::new(nth(n)).frame().clone());
    let frames: Vec<_> = frames.collect();
    let bytes = Bytes::from(frames.concat());
    Replay::new(vec![ReplayPiece::Block {
        of: bytes.len(),
        bytes,
        messages: frames.len() as u32,
    }])
}

fn join_with(world: &World, client: usize, name: &str, replay: &Replay) {
    let hub = &world.hub;
    let room = hub.new_room(name.into(), false);
    let session = world.session(client);
    let reserved = hub.reserve_join(&session, 1, 0).unwrap();
    let replay = Replay::new(replay.pieces().to_vec());
    hub.join(reserved, &room, &session, replay).unwrap();
}

#[test]
fn replay_that_stalled_clients_share_disconnects_none() {
    let Scenario { mut world, .. } = with_narrow_outboxes();
    let replay = in_a_block(0..REPLAYED);
    let clients = world.joined(40);
    for &client in &clients {
        world.stall(client, 7);
        join_with(&world, client, "news", &replay);
        world.sends(client, &nth(REPLAYED));
        world.settle();
    }
    // Each client's own message, and entries.
    let own = world.core().cx.fanout.unshared_bytes();
    assert!(own <= clients.len() * (NTH_BYTES + 200), "{own}");
    for &client in &clients {
        assert!(world.waiting_bytes(client) > 2 * OUTBOX);
        world.unstall(client);
        world.settle();
        assert_eq!(world.all_frames(client), texts(0..=REPLAYED));
    }
    assert_eq!(world.metrics().slow_consumers, 0);
    assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
}

#[test]
fn client_with_countless_shared_replays_is_evicted() {
    let Scenario {
        mut world, client, ..
    } = with_narrow_outboxes();
    let replay = in_a_block(0..REPLAYED);
    for n in 0..10 * OUTBOX / 50 {
        join_with(&world, client, &format!("room {n}"), &replay);
        world.settle();
        if world.is_closed(client) {
            return;
        }
    }
    panic!("the entries of the replays do not count");
}
