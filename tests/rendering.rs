//! Clients that are accepted with `Accept::rendered` receive the messages of rooms with a history as the app's renderer makes
//! them. All other clients receive them as they were sent.

use crate::events::EventSource;
use crate::frames::{RoomFrame, V1, connect_at};
use crate::support;

use std::cell::Cell;
use std::hint::black_box;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use humphrey_ws::{
    Accept, AsyncWebsocketApp, HistoryId, HistoryLimits, KeptMessage, Limits, Message,
    SlowConsumer, Subscription,
};
use support::{Client, eventually, start};
use tungstenite::WebSocket;

const STOP: Duration = Duration::from_millis(100);

/// An app whose clients join `r` after the id in their query, and `other`, which keeps nothing. Those at `/rendered` receive
/// rendered messages.
fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_history("r", HistoryLimits::messages(10_000).bytes(8 << 20))
        .with_handshake_handler(|request, _| {
            let mut accept = Accept::new();
            if request.path() == "/rendered" {
                accept = accept.rendered();
            }
            Ok(match request.subprotocols().next() {
                Some(offered) => accept.with_subprotocol(offered),
                None => accept,
            })
        })
        .with_connect_handler(|stream, _| {
            stream.join("other");
            let joined = match stream.query() {
                "new" => stream.try_join("r").map(|()| 0),
                id => stream.join_since("r", id.parse().ok()),
            };
            joined.expect("the history reaches back to the id");
        })
        .with_event_stream("/events", |_, _| Ok(Subscription::room("r")))
}

fn with_id(kept: &KeptMessage<'_>) -> Message {
    let text = kept.message().text().unwrap_or("(binary)");
    Message::new(format!("{} {} {text}", kept.room(), kept.id()))
}

/// Connects a client whose messages of `r` have ids.
fn connect_numbered(address: SocketAddr, target: &str) -> WebSocket<TcpStream> {
    connect_at(address, target, V1).0
}

/// Receives the next message of `r`, which must be a text with an id, and returns both.
fn numbered(client: &mut WebSocket<TcpStream>) -> (HistoryId, String) {
    let frame = RoomFrame::parse(client.read().unwrap());
    assert_eq!((frame.room.as_str(), frame.kind), ("r", 1));
    let text = String::from_utf8(frame.content).unwrap();
    (frame.id.parse().unwrap(), text)
}

#[test]
fn each_client_receives_live_and_replayed_messages_in_its_form() {
    let (running, address) = start(app().with_renderer(with_id));
    let sender = running.sender();
    let room = sender.room("r");
    let mut events = EventSource::open(address, "/events");
    let mut clients = ["/", "/rendered"].map(|path| Client::connect_to(address, path));
    let mut with_ids = ["/", "/rendered"].map(|path| connect_numbered(address, path));
    eventually("all clients are in the room", || room.len() == 4);

    room.broadcast("one");
    sender.room("other").broadcast("kept nowhere");
    room.broadcast_with(|id| Message::new(format!("I am {}", id.unwrap())));
    let second = room.last_id().unwrap();
    sender.broadcast("to everyone");
    let first = second.to_string().replace("-2", "-1").parse().unwrap();

    let texts = |client: &mut Client| [0; 4].map(|_| client.receive_text());
    let others = ["kept nowhere", "to everyone"].map(str::to_owned);
    let expected = |one: String, two: String| [one, others[0].clone(), two, others[1].clone()];
    let plain = ["one".to_owned(), format!("I am {second}")];
    let rendered = [
        format!("r {first} one"),
        format!("r {second} I am {second}"),
    ];
    let [of_plain, of_rendered] = clients.each_mut().map(texts);
    assert_eq!(of_plain, expected(plain[0].clone(), plain[1].clone()));
    assert_eq!(
        of_rendered,
        expected(rendered[0].clone(), rendered[1].clone())
    );
    for (client, texts) in with_ids.iter_mut().zip([&plain, &rendered]) {
        let other = |client: &mut WebSocket<TcpStream>| client.read().unwrap().into_text().unwrap();
        assert_eq!(numbered(client), (first, texts[0].clone()));
        assert_eq!(other(client), others[0].as_str());
        assert_eq!(numbered(client), (second, texts[1].clone()));
        assert_eq!(other(client), others[1].as_str());
    }
    assert_eq!(events.texts(2), plain);

    // The history keeps each message as it was sent, and a replay is in the client's form.
    let kept = room.since(None).unwrap().into_iter();
    let kept: Vec<_> = kept
        .map(|(_, message)| message.text().unwrap().to_owned())
        .collect();
    assert_eq!(kept, plain);
    let mut all = Client::connect_to(address, "/rendered");
    assert_eq!([0; 2].map(|_| all.receive_text()), rendered);
    let mut rest = connect_numbered(address, &format!("/rendered?{first}"));
    assert_eq!(numbered(&mut rest), (second, rendered[1].clone()));
    assert_eq!(sender.metrics().dropped.total(), 0);
    running.shutdown(STOP);
}

#[test]
fn rendered_client_of_an_app_without_a_renderer_receives_plain_messages() {
    let (running, address) = start(app());
    let room = running.sender().room("r");
    room.broadcast("one");
    let mut client = Client::connect_to(address, "/rendered");
    assert_eq!(client.receive_text(), "one");
    room.broadcast("two");
    assert_eq!(client.receive_text(), "two");
    running.shutdown(STOP);
}

#[test]
fn time_of_a_message_is_when_it_was_sent_live_and_replayed() {
    let app = app().with_renderer(|kept| {
        let at = kept.sent_at().duration_since(SystemTime::UNIX_EPOCH);
        Message::new(at.unwrap().as_millis().to_string())
    });
    let (running, address) = start(app);
    let room = running.sender().room("r");
    let mut client = Client::connect_to(address, "/rendered");
    eventually("the client is in the room", || room.len() == 1);
    let now = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
    };
    let before = now().as_millis();
    room.broadcast("one");
    let after = now().as_millis();
    let at = client.receive_text();
    assert!((before..=after).contains(&at.parse().unwrap()), "{at}");
    let mut late = Client::connect_to(address, "/rendered");
    assert_eq!(late.receive_text(), at);
    running.shutdown(STOP);
}

#[test]
fn messages_of_many_producers_are_rendered_once_with_their_final_ids() {
    const PRODUCERS: usize = 4;
    const MESSAGES: usize = 300;
    let rendered = Arc::new(AtomicUsize::new(0));
    let count = rendered.clone();
    let app = app().with_renderer(move |kept| {
        count.fetch_add(1, Ordering::SeqCst);
        with_id(kept)
    });
    let (running, address) = start(app);
    let room = running.sender().room("r");
    let clients = [0; 2].map(|_| Client::connect_to(address, "/rendered"));
    let mut with_ids = connect_numbered(address, "/rendered");
    eventually("all clients are in the room", || room.len() == 3);
    thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            scope.spawn(|| (0..MESSAGES).for_each(|_| room.broadcast("x")));
        }
    });
    let all = PRODUCERS * MESSAGES;
    let epoch = room.last_id().unwrap().epoch();
    let expected = |sequence: usize| format!("r {epoch:x}-{sequence} x");
    for mut client in clients {
        for sequence in 1..=all {
            assert_eq!(client.receive_text(), expected(sequence));
        }
    }
    for sequence in 1..=all {
        let (id, text) = numbered(&mut with_ids);
        assert_eq!(id.sequence(), sequence as u64);
        assert_eq!(text, expected(sequence));
    }
    assert_eq!(rendered.load(Ordering::SeqCst), all);
    running.shutdown(STOP);
}

/// Stops producers at its end, also if the test fails.
struct StopProducers<'a>(&'a AtomicBool);

impl Drop for StopProducers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

thread_local! {
    static IS_PRODUCER: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn join_during_fast_broadcasts_gets_each_message_once() {
    const CLIENTS: usize = 5;
    const MESSAGES_MAX: usize = 20;
    let replayed = Arc::new(AtomicUsize::new(0));
    let count = replayed.clone();
    let app = AsyncWebsocketApp::<()>::new()
        .with_slow_consumer(SlowConsumer::pace())
        .with_history("r", HistoryLimits::messages(MESSAGES_MAX).bytes(1 << 20))
        .with_handshake_handler(|_, _| Ok(Accept::new().rendered()))
        .with_connect_handler(|stream, _| {
            let _ = stream.join_since("r", None);
        })
        .with_renderer(move |kept| {
            if !IS_PRODUCER.get() {
                count.fetch_add(1, Ordering::SeqCst);
            }
            // Slower than the broadcasts, which are not rendered before the join.
            for n in 0..100_000 {
                black_box(n);
            }
            with_id(kept)
        });
    let (running, address) = start(app);
    let room = running.sender().room("r");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopProducers(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                IS_PRODUCER.set(true);
                while !over.load(Ordering::SeqCst) {
                    room.broadcast("x");
                }
            });
        }
        eventually("messages are kept", || room.last_id().is_some());
        for _ in 0..CLIENTS {
            let mut client = Client::connect(address);
            let mut last: Option<HistoryId> = None;
            for _ in 0..50 {
                let text = client.receive_text();
                let id: HistoryId = text.split(' ').nth(1).unwrap().parse().unwrap();
                assert!(last.is_none_or(|last| id.sequence() == last.sequence() + 1));
                last = Some(id);
            }
        }
    });
    // Producers waited for the replays, so that few messages had to be rendered again and again.
    assert!(replayed.load(Ordering::SeqCst) <= CLIENTS * 10 * MESSAGES_MAX);
    running.shutdown(STOP);
}

#[test]
fn panic_of_the_renderer_is_counted_and_loses_one_message_of_rendered_clients() {
    let app = app().with_renderer(|kept| {
        assert_ne!(kept.message().text(), Some("bad"), "as it should");
        with_id(kept)
    });
    let (running, address) = start(app);
    let room = running.sender().room("r");
    let mut rendered = Client::connect_to(address, "/rendered?new");
    let mut plain = Client::connect_to(address, "/?new");
    eventually("both clients are in the room", || room.len() == 2);
    for text in ["bad", "good"] {
        room.broadcast(text);
        assert_eq!(plain.receive_text(), text);
    }
    let last = room.last_id().unwrap();
    let expected = format!("r {last} good");
    assert_eq!(rendered.receive_text(), expected);
    assert_eq!(running.sender().metrics().handler_panics, 1);
    let mut late = Client::connect_to(address, "/rendered");
    assert_eq!(late.receive_text(), expected);
    assert_eq!(running.sender().metrics().handler_panics, 2);
    running.shutdown(STOP);
}

#[test]
fn rendered_message_over_the_limit_reaches_nobody_and_is_counted() {
    let app = app()
        .with_limits(Limits::default().message_bytes_max(1_000))
        .with_renderer(|kept| Message::new(kept.message().text().unwrap().repeat(10)));
    let (running, address) = start(app);
    let room = running.sender().room("r");
    let mut rendered = Client::connect_to(address, "/rendered?new");
    let mut plain = Client::connect_to(address, "/?new");
    eventually("both clients are in the room", || room.len() == 2);
    let long = "x".repeat(101);
    for text in [long.as_str(), "short"] {
        room.broadcast(text);
        assert_eq!(plain.receive_text(), text);
    }
    assert_eq!(rendered.receive_text(), "short".repeat(10));
    assert_eq!(running.sender().metrics().dropped.too_large, 1);
    running.shutdown(STOP);
}
