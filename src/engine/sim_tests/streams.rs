//! Server-sent events: connections that receive messages as events.

mod game;

use bytes::Bytes;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::wire::text;
use super::world::{Setup, Told, World};
use crate::engine::hub::event_streams::Beginning;
use crate::engine::hub::{Destination, Hub};
use crate::engine::model::replay::Replay;
use crate::engine::model::room::SharedRoom;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::event_stream::tests::Parser;
use crate::protocol::event_stream::{self, EventData};
use crate::request::Reject;

const OUTBOX: usize = 1_000;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
const PREAMBLE: &[u8] = b"retry: 1\n";
const KEEP_ALIVE_MS: u64 = 15_000;

/// A world with a room for event streams.
pub(super) struct Scene {
    pub(super) world: World,
    room: Arc<SharedRoom>,
}

pub(super) fn event(text: &str) -> Vec<u8> {
    event_stream::event(None, EventData::Text(text.as_bytes()))
}

/// Begins an event stream of the room with this replay.
fn begin(hub: &Hub, session: &crate::engine::Session, room: &Arc<SharedRoom>, replay: &[&str]) {
    // A stopping engine accepts nothing more.
    let Ok(reserved) = hub.reserve_stream(session, 1 << 20) else {
        return;
    };
    let rooms = [hub.follow(room).unwrap()];
    let beginning = Beginning {
        preface: [HEAD, PREAMBLE].concat(),
        rooms: &rooms,
        keep_alive: Duration::from_millis(KEEP_ALIVE_MS),
        replay: replay.iter().map(|text| Bytes::from(event(text))).collect(),
        snapshot: Vec::new(),
        broadcasts: true,
        joined_ids: None,
    };
    if hub.begin_stream(reserved, session, beginning).is_err() {
        rooms[0].leave();
    }
}

impl Scene {
    pub(super) fn new(policy: SlowConsumer) -> Self {
        Self::with_replay(policy, &[])
    }

    pub(super) fn with_replay(policy: SlowConsumer, replay: &'static [&'static str]) -> Self {
        let room = Arc::new(OnceLock::<Arc<SharedRoom>>::new());
        let of_program = room.clone();
        let world = World::new(Setup {
            slow_consumer: policy,
            limits: Limits {
                outbox_bytes_max: OUTBOX,
                ..Limits::default()
            },
            streamer: Box::new(move |hub, session| {
                begin(hub, session, of_program.get().unwrap(), replay);
            }),
            ..Setup::default()
        });
        let room = room
            .get_or_init(|| world.hub.new_room("r".into(), false))
            .clone();
        Self { world, room }
    }

    /// Requests a stream. The program has not decided yet.
    pub(super) fn ask(&mut self, target: &str) -> usize {
        let client = self.world.connect();
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.world.client_sends(client, request);
        client
    }

    /// Begins a stream and reads its head.
    pub(super) fn join(&mut self) -> usize {
        let client = self.ask("/events");
        self.world.run_handlers();
        let output = self.world.output(client);
        assert!(output.starts_with(&[HEAD, PREAMBLE].concat()));
        client
    }

    /// Publishes to the room, as a frame and as an event.
    pub(super) fn publish(&mut self, text: &str) {
        let event = event(text).into();
        let to = Destination {
            room: Some(&self.room),
            event: self.room.streams().map(|streams| (streams, &event)),
            ..Destination::default()
        };
        let message = Message::new(text);
        self.world.hub.try_broadcast(message.frame(), to).unwrap();
    }

    /// The data of the events that a client has received since the last call. All of them must be complete.
    fn events(&mut self, client: usize) -> Vec<String> {
        parse(&self.world.output(client))
    }
}

pub(super) fn parse(output: &[u8]) -> Vec<String> {
    let mut parser = Parser::default();
    parser.feed(output);
    assert!(parser.is_between_blocks(), "half an event");
    parser.events.into_iter().map(|event| event.data).collect()
}

/// The `n`th message, an event of 50 bytes.
fn nth(n: usize) -> String {
    format!("{n:042}")
}

const NTH_BYTES: usize = 50;
const FIT: usize = OUTBOX / NTH_BYTES;

fn numbers(events: &[String]) -> Vec<usize> {
    events.iter().map(|data| data.parse().unwrap()).collect()
}

#[test]
fn room_members_get_frames_and_event_streams_get_events() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    let (member, other) = (scene.world.join(), scene.world.join());
    let session = scene.world.session(member);
    let reserved = scene.world.hub.reserve_join(&session, 0, 0).unwrap();
    let room = scene.room.clone();
    scene
        .world
        .hub
        .join(reserved, &room, &session, Replay::default())
        .unwrap();
    scene.world.run_handlers();
    for n in 0..5 {
        scene.publish(&nth(n));
    }
    scene.world.settle();
    let frames = scene.world.all_frames(member);
    assert_eq!(frames, (0..5).map(|n| text(nth(n))).collect::<Vec<_>>());
    assert_eq!(scene.world.all_frames(other), []);
    assert_eq!(numbers(&scene.events(stream)), [0, 1, 2, 3, 4]);
    assert_eq!(room.len(), 1, "a stream is no member");
    assert_eq!(room.members(), [scene.world.id(member)]);
    // Joined messages leave in one write per client.
    let writes = scene.world.pipe(stream).writes;
    scene.publish("a");
    scene.publish("b");
    scene.world.settle();
    assert_eq!(scene.world.pipe(stream).writes, writes + 1);
    let metrics = scene.world.metrics();
    assert_eq!((metrics.connections, metrics.event_streams), (2, 1));
    assert_eq!(metrics.messages_out, 5 + 5 + 2 + 2);
}

#[test]
fn stream_runs_no_handler_and_its_room_ends_with_it() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    assert!(!scene.room.is_retired());
    assert_eq!(scene.room.streams().map(|streams| streams.len()), Some(1));
    scene.world.client_ends(stream);
    assert_eq!(scene.world.told(stream), Vec::<Told>::new());
    assert_eq!(scene.world.metrics().event_streams, 0);
    assert!(scene.room.is_retired(), "nobody is in it");
    scene.world.assert_empty();
}

#[test]
fn head_replay_and_live_events_leave_in_order() {
    let replay = &["one", "two\n\nlines", ""];
    for room in 0..120 {
        let mut scene = Scene::with_replay(SlowConsumer::Disconnect, replay);
        let client = scene.world.connect();
        scene.world.stall(client, room);
        let request = "GET /events HTTP/1.1\r\nHost: x\r\n\r\n";
        scene.world.client_sends(client, request);
        scene.world.run_handlers();
        scene.publish("new");
        scene.world.settle();
        scene.publish("newer");
        scene.world.settle();
        scene.world.unstall(client);
        let output = scene.world.output(client);
        let body = output.strip_prefix(HEAD).unwrap();
        assert_eq!(
            parse(body),
            ["one", "two\n\nlines", "", "new", "newer"],
            "{room}"
        );
        assert_eq!(scene.world.metrics().messages_out, 5, "{room}");
    }
}

#[test]
fn slow_stream_ends_after_the_event_in_progress() {
    for one_turn in [true, false] {
        for room in 0..2 * NTH_BYTES {
            let mut scene = Scene::new(SlowConsumer::Disconnect);
            let (slow, quick) = (scene.join(), scene.join());
            scene.world.stall(slow, room);
            let sent = FIT + 5;
            for n in 0..sent {
                scene.publish(&nth(n));
                if !one_turn {
                    scene.world.settle();
                }
            }
            scene.world.settle();
            assert_eq!(scene.events(quick).len(), sent);
            scene.world.unstall(slow);
            let expected = room.div_ceil(NTH_BYTES);
            let got = numbers(&scene.events(slow));
            assert_eq!(got, (0..expected).collect::<Vec<_>>(), "{room}");
            assert!(scene.world.is_finished(slow), "the response ends");
            let metrics = scene.world.metrics();
            assert_eq!((metrics.slow_consumers, metrics.event_streams), (1, 1));
            let meant = if one_turn {
                sent
            } else {
                (OUTBOX + room) / NTH_BYTES + 1
            };
            assert_eq!(metrics.dropped.slow_consumer as usize, meant - expected);
            assert_eq!(metrics.messages_out as usize, sent + expected);
            scene.world.client_ends(slow);
            assert!(scene.world.is_closed(slow));
        }
    }
}

#[test]
fn only_whole_events_are_dropped_and_counted() {
    for policy in [
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
    ] {
        for room in 0..2 * NTH_BYTES {
            let mut scene = Scene::new(policy);
            let slow = scene.join();
            scene.world.stall(slow, room);
            let sent = FIT + 10;
            for n in 0..sent {
                scene.publish(&nth(n));
                scene.world.settle();
            }
            scene.world.unstall(slow);
            let got = numbers(&scene.events(slow));
            assert!(got.windows(2).all(|two| two[0] < two[1]), "in order");
            let is_last_there = got.last() == Some(&(sent - 1));
            assert_eq!(is_last_there, policy != SlowConsumer::DropNewest, "{room}");
            let metrics = scene.world.metrics();
            assert_eq!(metrics.messages_out as usize, got.len(), "{room}");
            assert_eq!(metrics.dropped.slow_consumer as usize, sent - got.len());
            assert!(metrics.dropped.slow_consumer > 0);
            scene.world.client_ends(slow);
            scene.world.assert_empty();
        }
    }
}

#[test]
fn skipping_stream_continues_with_the_newest_event() {
    for room in 0..2 * NTH_BYTES {
        let mut scene = Scene::new(SlowConsumer::SkipAhead);
        let slow = scene.join();
        scene.world.stall(slow, room);
        // One more than the socket and the outbox take.
        let sent = (OUTBOX + room) / NTH_BYTES + 1;
        for n in 0..sent {
            scene.publish(&nth(n));
            scene.world.settle();
        }
        // The silence is not broken by a comment while events wait.
        scene.world.advance_ms(KEEP_ALIVE_MS + 100);
        scene.world.unstall(slow);
        let begun = room.div_ceil(NTH_BYTES);
        let expected: Vec<_> = (0..begun).chain([sent - 1]).collect();
        assert_eq!(numbers(&scene.events(slow)), expected, "{room}");
        let metrics = scene.world.metrics();
        assert_eq!(metrics.dropped.slow_consumer as usize, sent - 1 - begun);
        assert_eq!(metrics.slow_consumers, 0);
    }
}

#[test]
fn paced_producers_wait_for_a_slow_stream() {
    let mut scene = Scene::new(SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1_000),
    });
    let slow = scene.join();
    scene.world.stall(slow, 10);
    let sent = 3 * FIT;
    for n in 0..sent {
        scene.publish(&nth(n));
        scene.world.settle();
    }
    for _ in 0..sent {
        scene.world.client_reads(slow, NTH_BYTES);
    }
    let got = numbers(&scene.events(slow));
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
    let metrics = scene.world.metrics();
    assert_eq!(metrics.dropped.total(), 0);
    let peak = metrics.outbox_bytes_peak as usize;
    assert!(
        peak > OUTBOX / 2 && peak <= OUTBOX,
        "the rest has waited: {peak}"
    );
}

#[test]
fn long_event_waits_for_room_in_the_outboxes() {
    let mut scene = Scene::new(SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1_000),
    });
    let slow = scene.join();
    scene.world.stall(slow, 10);
    let long = "l".repeat(OUTBOX - 100);
    for text in ["short", &nth(1), &nth(2), &nth(3), &long, "end"] {
        scene.publish(text);
        scene.world.settle();
    }
    for _ in 0..2 * OUTBOX {
        scene.world.client_reads(slow, 1);
    }
    let events = scene.events(slow);
    assert_eq!(events.len(), 6);
    assert_eq!(events[4], long);
    assert!(scene.world.metrics().outbox_bytes_peak as usize <= OUTBOX);
}

#[test]
fn stream_below_the_minimum_rate_is_ended() {
    let mut scene = Scene::new(SlowConsumer::Pace {
        bytes_per_second_min: 1_000,
        patience: Duration::from_secs(1),
    });
    let slow = scene.join();
    scene.world.stall(slow, 0);
    for n in 0..3 * FIT {
        scene.publish(&nth(n));
    }
    scene.world.settle();
    scene.world.advance_ms(1_100);
    assert_eq!(scene.world.metrics().slow_consumers, 1);
    assert!(
        scene.world.core().cx.fanout.commands.is_empty(),
        "nobody waits"
    );
    scene.world.advance_ms(10_000);
    assert!(scene.world.is_closed(slow));
    scene.world.assert_empty();
}

#[test]
fn keep_alive_comment_is_sent_only_to_idle_streams() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    scene.world.advance_ms(KEEP_ALIVE_MS - 100);
    assert_eq!(scene.world.output(stream), b"");
    scene.world.advance_ms(200);
    assert_eq!(scene.world.output(stream), event_stream::KEEP_ALIVE);
    scene.world.advance_ms(KEEP_ALIVE_MS);
    assert_eq!(scene.world.output(stream), event_stream::KEEP_ALIVE);
    scene.world.stall(stream, 0);
    scene.publish("waits");
    scene.world.settle();
    scene.world.advance_ms(KEEP_ALIVE_MS);
    scene.world.unstall(stream);
    assert_eq!(scene.world.output(stream), event("waits"));
    assert_eq!(
        scene.world.metrics().messages_out,
        1,
        "a comment is no message"
    );
}

#[test]
fn stream_reading_nothing_is_reset_at_write_timeout() {
    let mut scene = Scene::new(SlowConsumer::DropOldest);
    let stream = scene.join();
    scene.world.stall(stream, 0);
    scene.publish("waits");
    scene.world.settle();
    let write_timeout = Limits::default().write_timeout.as_millis() as u64;
    scene.world.advance_ms(write_timeout - 100);
    assert!(!scene.world.is_closed(stream));
    scene.world.advance_ms(300);
    assert!(scene.world.is_closed(stream));
    assert_eq!(scene.world.metrics().dropped.closed, 1);
    scene.world.assert_empty();
}

#[test]
fn bytes_after_a_stream_request_are_ignored() {
    let mut scene = Scene::new(SlowConsumer::Disconnect);
    let stream = scene.join();
    for _ in 0..10 {
        scene.world.client_sends(stream, [0xff; 100_000]);
    }
    scene.publish("on");
    scene.world.settle();
    assert_eq!(scene.events(stream), ["on"]);
    assert_eq!(scene.world.metrics().protocol_errors, 0);
    scene.world.client_resets(stream);
    assert!(scene.world.is_closed(stream));
    scene.world.assert_empty();
}

#[test]
fn client_leaving_before_its_stream_leaks_nothing() {
    // The number of handlers that have run. The first one decides, and the second one begins the stream.
    for handlers in 0..3 {
        for resets in [true, false] {
            let mut scene = Scene::with_replay(SlowConsumer::Disconnect, &["one", "two"]);
            let client = scene.ask("/events");
            for _ in 0..handlers {
                scene.world.run_jobs();
            }
            match resets {
                true => scene.world.client_resets(client),
                false => scene.world.client_ends(client),
            }
            scene.world.run_handlers();
            if !resets && handlers < 2 {
                // The client may have ended only its own side.
                let output = scene.world.output(client);
                assert!(output.starts_with(HEAD), "{handlers}");
            }
            scene.world.advance_ms(20_000);
            assert!(scene.world.is_closed(client), "{handlers} {resets}");
            assert_eq!(scene.world.metrics().event_streams, 0);
            scene.publish("to nobody");
            scene.world.settle();
            assert_eq!(scene.room.streams().map(|streams| streams.len()), None);
            scene.world.assert_empty();
        }
    }
}

#[test]
fn client_leaving_during_a_delayed_start_leaks_nothing() {
    let pace = SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1_000),
    };
    let mut scene = Scene::with_replay(pace, &["one", "two"]);
    let slow = scene.join();
    scene.world.stall(slow, 0);
    for n in 0..2 * FIT {
        scene.publish(&nth(n));
        scene.world.settle();
    }
    let gone = scene.ask("/events");
    scene.world.run_handlers();
    assert_eq!(scene.world.output(gone), b"", "it waits behind the mail");
    scene.world.client_resets(gone);
    assert!(scene.world.is_closed(gone));
    scene.world.unstall(slow);
    assert_eq!(scene.events(slow).len(), 2 * FIT);
    assert_eq!(scene.world.metrics().dropped.closed, 2, "the replay");
    assert_eq!(scene.room.streams_len(), 1);
    scene.world.client_ends(slow);
    scene.world.assert_empty();
    let streams = scene
        .room
        .room_of_streams(|| scene.world.hub.next_channel());
    assert!(!streams.reaches(0), "nothing goes there");
}

#[test]
fn stop_ends_streams_after_published_events() {
    for handlers in 0..3 {
        let mut scene = Scene::new(SlowConsumer::Disconnect);
        let stream = scene.join();
        let late = scene.ask("/events");
        for _ in 0..handlers {
            scene.world.run_jobs();
        }
        scene.publish("last");
        scene.world.stop(Duration::from_secs(10));
        assert_eq!(scene.events(stream), ["last"]);
        assert!(scene.world.is_finished(stream));
        scene.world.run_handlers();
        let output = scene.world.output(late);
        match handlers {
            2 => assert_eq!(parse(output.strip_prefix(HEAD).unwrap()), ["last"]),
            _ => assert!(output.starts_with(b"HTTP/1.1 503 "), "{handlers}"),
        }
        scene.world.client_ends(stream);
        scene.world.client_ends(late);
        scene.world.assert_empty();
        assert!(scene.world.has_stopped());
        scene.world.finish();
    }
}

#[test]
fn stream_request_is_refused_as_given_and_panic_is_500() {
    for (target, status) in [("/events?refused", 403), ("/events?panic", 500)] {
        let mut scene = Scene::new(SlowConsumer::Disconnect);
        let client = scene.ask(target);
        scene.world.run_handlers();
        let head = scene.world.head(client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(scene.world.is_finished(client));
        scene.world.client_ends(client);
        scene.world.assert_empty();
    }
}

#[test]
fn stream_that_cannot_begin_is_answered() {
    let mut world = World::new(Setup {
        streamer: Box::new(|hub, session| hub.refuse_stream(session, &Reject::new(503))),
        ..Setup::default()
    });
    let client = world.connect();
    world.client_sends(client, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    world.run_handlers();
    assert!(world.head(client).starts_with("HTTP/1.1 503 "));
    assert!(world.is_finished(client));
    assert_eq!(world.metrics().event_streams_opened, 0);
    world.client_ends(client);
    world.assert_empty();
}
