//! Keyed rooms over real sockets: snapshots, conflation for slow clients, and what is refused.

use crate::events::EventSource;
use crate::frames::{Frames, V1, connect, request};
use crate::support;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use humphrey_ws::{
    AsyncWebsocketApp, HistoryLimits, JoinErrorReason, KeyedLimits, Limits, Room, RunningApp,
    SendErrorReason, SlowConsumer, Subscription,
};
use support::{Client, DEADLINE, eventually, start};

const STOP: Duration = Duration::from_millis(100);
const KEYS: usize = 50;

/// An app whose clients join the keyed room `board`.
fn board() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_keyed_rooms("board", KeyedLimits::keys(KEYS))
        .with_connect_handler(|stream, _| stream.join("board"))
}

fn start_board() -> (RunningApp, SocketAddr, Room) {
    let (running, address) = start(board());
    let room = running.sender().room("board");
    (running, address, room)
}

/// The version of each key that a client has received last.
#[derive(Default)]
struct Versions(HashMap<usize, usize>);

impl Versions {
    /// Records a message `KEY VERSION …`, which must not be older than the last one of its key.
    fn note(&mut self, text: &str) {
        let mut parts = text.split(' ').map(|part| part.parse().unwrap_or_default());
        let (key, version) = (parts.next().unwrap(), parts.next().unwrap());
        let former = self.0.insert(key, version);
        assert!(former <= Some(version), "{key}: {version} after {former:?}");
    }

    fn are_all(&self, version: usize) -> bool {
        self.0.len() == KEYS && self.0.values().all(|&last| last == version)
    }
}

/// Reads until the client has this version of each key, and returns the number of messages.
fn read_up_to(client: &mut Client, version: usize) -> usize {
    let mut versions = Versions::default();
    let mut messages = 0;
    while !versions.are_all(version) {
        versions.note(&client.receive_text());
        messages += 1;
    }
    messages
}

#[test]
fn client_gets_the_newest_of_each_key_and_then_all_changes() {
    let (running, address, room) = start_board();
    for text in ["b 1", "a 1", "b 2"] {
        room.broadcast_keyed(&text[..1], text);
    }
    let mut client = Client::connect(address);
    assert_eq!(client.receive_text(), "b 2");
    assert_eq!(client.receive_text(), "a 1");
    for text in ["a 2", "a 3", "c 1"] {
        room.broadcast_keyed(&text[..1], text);
        assert_eq!(client.receive_text(), text);
    }
    room.broadcast("without a key");
    assert_eq!(client.receive_text(), "without a key");
    assert!(room.remove_key("a") && !room.remove_key("a"));
    let kept = room.keyed_messages();
    let kept: Vec<_> = kept
        .iter()
        .map(|(key, message)| (&**key, message.text().unwrap()))
        .collect();
    assert_eq!(kept, [("b", "b 2"), ("c", "c 1")]);
    let mut late = Client::connect(address);
    assert_eq!(late.receive_text(), "b 2");
    assert_eq!(late.receive_text(), "c 1");
    room.broadcast("the snapshot is over");
    assert_eq!(late.receive_text(), "the snapshot is over");
    running.shutdown(STOP);
}

#[test]
fn clients_that_join_during_broadcasts_miss_no_key_and_see_nothing_older() {
    const LAST: usize = 1_000_000;
    const CLIENTS: usize = 40;
    let (running, address, room) = start_board();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each key has one producer, which makes its versions.
        for producer in 0..2 {
            let (room, over) = (&room, &over);
            scope.spawn(move || {
                let update = |version| {
                    for key in (producer..KEYS).step_by(2) {
                        room.broadcast_keyed(&key.to_string(), format!("{key} {version}"));
                    }
                };
                let mut versions = 0..LAST;
                while !over.load(Ordering::Relaxed) {
                    update(versions.next().unwrap());
                }
                update(LAST);
            });
        }
        eventually("there is something to join for", || {
            room.keyed_messages().len() == KEYS
        });
        let readers: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(move || read_up_to(&mut Client::connect(address), LAST)))
            .collect();
        eventually("all clients are connected", || room.len() == CLIENTS);
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let metrics = running.sender().metrics();
    assert_eq!(metrics.slow_consumers, 0);
    assert_eq!(metrics.dropped.slow_consumer, 0);
    running.shutdown(STOP);
}

/// A client joins again and again while each key is updated once. Each time, an update is in the snapshot or follows it.
#[test]
fn update_during_a_join_is_in_the_snapshot_or_follows_it() {
    const ROUNDS: usize = 2_000;
    let (connected, ids) = mpsc::channel();
    let app = AsyncWebsocketApp::<()>::new()
        .with_shards(1)
        .with_keyed_rooms("board", KeyedLimits::keys(KEYS))
        .with_connect_handler(move |stream, _| connected.send(stream.id()).unwrap());
    let (running, address) = start(app);
    let room = running.sender().room("board");
    let mut client = Client::connect(address);
    let id = ids.recv_timeout(DEADLINE).unwrap();
    for version in 0..ROUNDS {
        let updated = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for key in 0..KEYS {
                    room.broadcast_keyed(&key.to_string(), format!("{key} {version}"));
                    updated.store(key, Ordering::Release);
                }
            });
            // At another moment in each round.
            eventually("the updates have begun", || {
                updated.load(Ordering::Acquire) >= version % KEYS
            });
            room.join(id);
        });
        room.broadcast("end");
        let mut versions = Versions::default();
        loop {
            match client.receive_text() {
                text if text == "end" => break,
                text => versions.note(&text),
            }
        }
        assert!(versions.are_all(version), "{version}: {:?}", versions.0);
        room.leave(id);
    }
    running.shutdown(STOP);
}

/// A client that does not read, under the policy that is the least forgiving. Another one reads everything.
#[test]
fn client_that_stops_reading_gets_the_newest_of_each_key() {
    let app = board()
        .with_slow_consumer(SlowConsumer::Disconnect)
        .with_limits(Limits::default().outbox_bytes_max(10_000));
    let (running, address) = start(app);
    let sender = running.sender();
    let room = sender.room("board");
    let mut slow = Client::connect(address);
    let mut quick = Client::connect(address);
    eventually("both are members", || room.len() == 2);
    let padding = "x".repeat(2_000);
    let mut rounds = 0;
    while sender.metrics().conflated < 10 * KEYS as u64 {
        for key in 0..KEYS {
            room.broadcast_keyed(&key.to_string(), format!("{key} {rounds} {padding}"));
        }
        // It reads each message, as soon as it is sent.
        for key in 0..KEYS {
            let text = quick.receive_text();
            assert!(text.starts_with(&format!("{key} {rounds} ")));
        }
        rounds += 1;
    }
    let got = read_up_to(&mut slow, rounds - 1);
    let metrics = sender.metrics();
    assert_eq!(got as u64 + metrics.conflated, (rounds * KEYS) as u64);
    assert_eq!((metrics.slow_consumers, metrics.dropped.total()), (0, 0));
    assert_eq!(metrics.connections, 2);
    let text = sender.prometheus();
    assert!(text.contains("humphrey_ws_messages_conflated_total{shard=\"0\"}"));
    running.shutdown(STOP);
}

#[test]
fn message_that_a_room_can_not_keep_is_refused() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_keyed_rooms("none", KeyedLimits::NONE)
        .with_keyed_rooms("*", KeyedLimits::keys(2).bytes(2_000))
        .with_limits(Limits::default().message_bytes_max(5_000));
    let sender = app.sender();
    let early = sender.room("a").try_broadcast_keyed("k", "early");
    assert_eq!(early.unwrap_err().reason, SendErrorReason::Closed);
    let (running, _) = start(app);
    let refused = |room: &str, key: &str, text: &str| {
        let sent = sender.room(room).try_broadcast_keyed(key, text);
        sent.err().map(|error| error.reason)
    };
    assert_eq!(refused("a", "1", "x"), None);
    assert_eq!(refused("a", "2", "x"), None);
    assert_eq!(refused("a", "3", "x"), Some(SendErrorReason::Keys));
    assert_eq!(refused("b", "3", "x"), None);
    assert_eq!(
        refused("a", "2", &"x".repeat(2_000)),
        Some(SendErrorReason::Keys)
    );
    assert_eq!(
        refused("a", &"k".repeat(256), "x"),
        Some(SendErrorReason::Keys)
    );
    assert_eq!(refused("none", "1", "x"), Some(SendErrorReason::NotKeyed));
    assert_eq!(
        refused(&"r".repeat(256), "1", "x"),
        Some(SendErrorReason::NotKeyed)
    );
    assert_eq!(
        refused("a", "1", &"x".repeat(6_000)),
        Some(SendErrorReason::TooLarge)
    );
    let to_everyone = sender.everyone().try_broadcast_keyed("1", "x");
    let error = to_everyone.unwrap_err();
    assert_eq!(error.message.text(), Some("x"));
    assert!(error.to_string().contains("with_keyed_rooms"), "{error}");
    let dropped = sender.metrics().dropped;
    assert_eq!((dropped.keyed_refused, dropped.too_large), (6, 1));
    assert!(sender.room("a").remove_key("2"));
    assert_eq!(refused("a", "3", "x"), None);
    running.shutdown(STOP);
}

#[test]
fn keyed_room_keeps_no_history() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("*", HistoryLimits::messages(10))
        .with_keyed_rooms("board", KeyedLimits::keys(KEYS))
        .with_connect_handler(|stream, _| {
            let id = "5f3a9c0b12d4e678-42".parse().unwrap();
            let gone = stream.join_since("board", Some(id)).unwrap_err();
            assert_eq!(gone.reason, JoinErrorReason::HistoryGone);
            assert_eq!(stream.join_since("board", None), Ok(2));
            assert_eq!(stream.join_since("board", None), Ok(0));
            stream.send("joined");
        });
    let (running, address) = start(app);
    let room = running.sender().room("board");
    room.broadcast("not kept");
    room.broadcast_keyed("a", "a 1");
    room.broadcast_keyed("b", "b 1");
    let mut client = Client::connect(address);
    for text in ["a 1", "b 1", "joined"] {
        assert_eq!(client.receive_text(), text);
    }
    assert_eq!((room.last_id(), room.since(None).unwrap().len()), (None, 0));
    assert_eq!(room.broadcast_with(|id| format!("{id:?}").into()), None);
    assert_eq!(client.receive_text(), "None");
    running.shutdown(STOP);
}

#[test]
fn event_stream_gets_the_newest_of_each_key_whenever_it_connects() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_keyed_rooms("board", KeyedLimits::keys(KEYS))
        .with_history("news", HistoryLimits::messages(10))
        .with_event_stream("/events", |_, _| {
            Ok(Subscription::room("news").and_room("board"))
        });
    let (running, address) = start(app);
    let (room, news) = (
        running.sender().room("board"),
        running.sender().room("news"),
    );
    room.broadcast_keyed("a", "a 1");
    room.broadcast_keyed("b", "b 1\nin two lines");
    let mut source = EventSource::open(address, "/events");
    let expect = |source: &mut EventSource, expected: &[&str]| {
        for text in expected {
            let event = loop {
                if let Some(event) = source.block().expect("the stream goes on") {
                    break event;
                }
            };
            assert_eq!(event.data, *text);
        }
    };
    expect(&mut source, &["a 1", "b 1\nin two lines"]);
    news.broadcast("rain");
    room.broadcast_keyed("a", "a 2");
    expect(&mut source, &["rain", "a 2"]);
    let last = source.last_event_id.clone();
    drop(source);
    news.broadcast("sun");
    room.broadcast_keyed("c", "c 1");
    // The history is resumed, and the keyed room is sent as it is now.
    let mut source = EventSource::resume(address, "/events", &last);
    expect(&mut source, &["sun", "a 2", "b 1\nin two lines", "c 1"]);
    running.shutdown(STOP);
}

#[test]
fn client_of_procedures_joins_a_keyed_room_by_itself() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_keyed_rooms("board", KeyedLimits::keys(KEYS))
        .with_join_handler(|_, room| room == "board");
    let (running, address) = start(app);
    let room = running.sender().room("board");
    room.broadcast_keyed("a", "a 1");
    for since in ["new", "all"] {
        let mut client = connect(address, V1);
        let join = [b"\x05board", since.as_bytes()].concat();
        client.send_at_once([request(1, "$join", &join)]);
        assert_eq!(client.receive_text(), "a 1");
        // The answer has no position: there is nothing to resume after.
        assert_eq!(client.receive_frame(), crate::frames::response(1, b""));
        room.broadcast_keyed("a", "a 1");
        assert_eq!(client.receive_text(), "a 1");
        client.close();
    }
    running.shutdown(STOP);
}

#[test]
fn keyed_rooms_larger_than_what_may_wait_for_a_client_do_not_start() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_keyed_rooms("small/*", KeyedLimits::keys(1).bytes(10_000))
        .with_keyed_rooms("large/*", KeyedLimits::keys(1).bytes(10_001))
        .with_limits(Limits::default().keyed_bytes_max(10_000));
    let error = app.start().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text = error.to_string();
    assert!(
        text.contains("large/*") && text.contains("keyed_bytes_max"),
        "{text}"
    );
}

#[test]
fn keyed_rooms_with_more_keys_than_a_mailbox_takes_do_not_start() {
    let app = |keys| {
        AsyncWebsocketApp::<()>::new()
            .with_address("127.0.0.1:0")
            .with_keyed_rooms("board", KeyedLimits::keys(keys))
            .with_limits(
                Limits::default()
                    .keyed_bytes_max(1 << 30)
                    .mailbox_bytes_max(100_000),
            )
    };
    let error = app(10_000).start().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("mailbox_bytes_max"), "{error}");
    app(1_000).start().unwrap().shutdown(STOP);
}

#[test]
fn bytes_of_keyed_rooms_suffice_for_their_keys() {
    assert_eq!(KeyedLimits::keys(5).bytes_max, 1 << 20);
    assert_eq!(KeyedLimits::keys(5_000).bytes_max, 5_000 << 10);
    assert_eq!(KeyedLimits::keys(usize::MAX).bytes_max, usize::MAX);
    assert_eq!(KeyedLimits::keys(5_000).bytes(7).bytes_max, 7);
}

#[cfg(feature = "cluster")]
#[test]
fn keyed_rooms_in_a_cluster_do_not_start() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_cluster("redis://127.0.0.1:1")
        .with_keyed_rooms("board", KeyedLimits::keys(1));
    let error = app.start().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("with_keyed_rooms"), "{error}");
    // A pattern that makes no room keyed is no obstacle.
    let app = AsyncWebsocketApp::<()>::new()
        .with_address("127.0.0.1:0")
        .with_cluster("redis://127.0.0.1:1")
        .with_keyed_rooms("board", KeyedLimits::NONE);
    app.start().unwrap().shutdown(DEADLINE);
}
