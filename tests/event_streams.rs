//! Event streams over real sockets: what a client of `text/event-stream` gets.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::{
    AsyncWebsocketApp, Limits, Message, Origins, Reject, RunningApp, SlowConsumer, Subscription,
};
use support::{Client, DEADLINE, eventually, read_head, start, tcp, upgrade_request};

const STOP: Duration = Duration::from_millis(100);

/// An event as a page gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    kind: String,
    data: String,
    id: String,
}

/// A client that parses as WHATWG HTML §9.2.6 says.
struct EventSource {
    head: String,
    socket: BufReader<TcpStream>,
    retry: Option<String>,
    comments: usize,
    /// What it would send as `Last-Event-ID`.
    last_event_id: String,
}

fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

impl EventSource {
    fn open(address: SocketAddr, target: &str) -> Self {
        Self::open_with(address, target, "")
    }

    fn resume(address: SocketAddr, target: &str, last: &str) -> Self {
        Self::open_with(address, target, &format!("Last-Event-ID: {last}\r\n"))
    }

    fn open_with(address: SocketAddr, target: &str, headers: &str) -> Self {
        Self::ask(address, &request("GET", target, headers))
    }

    /// The stream has begun when this returns: what is published from now on arrives.
    fn ask(address: SocketAddr, request: &str) -> Self {
        let mut socket = tcp(address);
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let mut source = Self {
            head,
            socket: BufReader::new(socket),
            retry: None,
            comments: 0,
            last_event_id: String::new(),
        };
        assert!(source.block().is_some_and(|event| event.is_none()));
        assert!(source.retry.is_some(), "the preamble comes first");
        source
    }

    /// Reads a block: an event, or none in it. None: the stream has ended, behind a whole block.
    fn block(&mut self) -> Option<Option<Event>> {
        let mut kind = String::new();
        let mut data: Option<String> = None;
        let mut begun = false;
        loop {
            let mut line = String::new();
            if self.socket.read_line(&mut line).expect("more, or the end") == 0 {
                assert!(!begun, "the stream ends behind a whole block");
                return None;
            }
            let line = line.strip_suffix('\n').expect("a whole line");
            begun = true;
            if line.is_empty() {
                let kind = if kind.is_empty() { "message" } else { &kind };
                return Some(data.map(|data| Event {
                    kind: kind.to_owned(),
                    data,
                    id: self.last_event_id.clone(),
                }));
            }
            match line.split_once(": ").unwrap_or((line, "")) {
                ("event", value) => kind = value.to_owned(),
                ("id", value) => self.last_event_id = value.to_owned(),
                ("retry", value) => self.retry = Some(value.to_owned()),
                ("data", value) => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                (":", "") => self.comments += 1,
                other => panic!("not a field: {other:?}"),
            }
        }
    }

    /// The next event. None: the stream has ended.
    fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.block()? {
                return Some(event);
            }
        }
    }

    fn next(&mut self) -> Event {
        self.try_next().expect("the stream goes on")
    }

    /// The data of the next event, which is a message.
    fn text(&mut self) -> String {
        let event = self.next();
        assert_eq!(event.kind, "message", "{event:?}");
        event.data
    }

    fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.text()).collect()
    }

    /// The texts up to the end of the stream.
    fn rest(mut self) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(event) = self.try_next() {
            assert_eq!(event.kind, "message", "{event:?}");
            texts.push(event.data);
        }
        texts
    }
}

/// The whole answer to a request, to the end of the connection.
fn answer(address: SocketAddr, request: &str) -> (String, String) {
    let mut socket = tcp(address);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    let mut body = String::new();
    socket.read_to_string(&mut body).unwrap();
    (head, body)
}

fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new().with_shards(2)
}

/// An app whose `/events` streams the room that the query names.
fn serve(app: AsyncWebsocketApp<()>) -> (RunningApp, SocketAddr) {
    start(app.with_event_stream("/events", |request, _| {
        let room = request.query_param("room");
        Ok(Subscription::room(
            room.ok_or(Reject::new(400).with_body("which room?\n"))?,
        ))
    }))
}

fn text(text: impl AsRef<str>) -> Message {
    Message::new(text.as_ref())
}

#[test]
fn texts_and_binaries_of_a_room_arrive_as_events_whatever_is_in_them() {
    let (running, address) = serve(app());
    let news = running.sender().room("news");
    let mut source = EventSource::open(address, "/events?room=news");
    assert_eq!(source.retry.as_deref(), Some("2000"));
    for (sent, arrived) in [
        ("hi", "hi"),
        ("", ""),
        ("Grüezi mitenand", "Grüezi mitenand"),
        ("one\ntwo\r\nthree\rfour", "one\ntwo\nthree\nfour"),
        ("\n", "\n"),
        ("ends with\n", "ends with\n"),
        (" spaces ", " spaces "),
        ("data: x\n\nevent: y", "data: x\n\nevent: y"),
        (": no comment", ": no comment"),
    ] {
        news.broadcast(text(sent));
        assert_eq!(source.text(), arrived);
    }
    news.broadcast(Message::new_binary([0xff, 0xfe, 0xfd, 0x0a]));
    let event = source.next();
    assert_eq!((&*event.kind, &*event.data), ("binary", "//79Cg=="));
    assert_eq!(event.id, "", "the room has no history, so there are no ids");
    running.shutdown(STOP);
}

#[test]
fn only_what_was_subscribed_to_arrives_and_in_order() {
    let (running, address) = start(app().with_event_stream("/events", |request, _| {
        Ok(match request.query() {
            "one" => Subscription::room("one"),
            "both" => Subscription::room("one").and_room("two"),
            "all" => Subscription::broadcasts(),
            _ => Subscription::room("one").with_broadcasts(),
        })
    }));
    let sender = running.sender();
    let mut sources = ["one", "both", "all", ""]
        .map(|query| EventSource::open(address, &format!("/events?{query}")));
    for n in 0..100 {
        sender.room("one").broadcast(text(format!("one {n}")));
        sender.room("two").broadcast(text(format!("two {n}")));
        sender.broadcast(text(format!("all {n}")));
    }
    for n in 0..100 {
        let [one, two, all] = ["one", "two", "all"].map(|of| format!("{of} {n}"));
        let [in_one, in_both, in_all, in_rest] = &mut sources;
        assert_eq!(in_one.text(), one);
        assert_eq!(in_both.texts(2), [one.clone(), two]);
        assert_eq!(in_all.text(), all);
        assert_eq!(in_rest.texts(2), [one, all]);
    }
    running.shutdown(STOP);
}

#[test]
fn the_answer_says_that_it_is_a_stream_and_is_to_be_handed_on_at_once() {
    let (running, address) = serve(app());
    let source = EventSource::open(address, "/events?room=news");
    for line in [
        "Content-Type: text/event-stream\r\n",
        "Cache-Control: no-store, no-transform\r\n",
        "X-Accel-Buffering: no\r\n",
        "Connection: close\r\n",
    ] {
        assert!(source.head.contains(line), "{line} in {}", source.head);
    }
    assert!(!source.head.contains("Content-Length"), "{}", source.head);
    assert!(
        !source.head.contains("Transfer-Encoding"),
        "{}",
        source.head
    );
    running.shutdown(STOP);
}

#[test]
fn head_gets_the_head_and_other_methods_are_not_allowed() {
    let (running, address) = serve(app());
    let (head, body) = answer(address, &request("HEAD", "/events?room=news", ""));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/event-stream\r\n"),
        "{head}"
    );
    assert_eq!(body, "");
    // What a GET would be answered.
    let (head, body) = answer(address, &request("HEAD", "/events", ""));
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(body, "");
    for method in ["POST", "PUT", "DELETE"] {
        let (head, _) = answer(
            address,
            &request(method, "/events?room=news", "Content-Length: 0\r\n"),
        );
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        assert!(head.contains("Allow: GET, HEAD, OPTIONS\r\n"), "{head}");
    }
    assert_eq!(running.sender().metrics().event_streams_opened, 0);
    running.shutdown(STOP);
}

#[test]
fn a_client_of_http_1_0_gets_the_same_stream() {
    let (running, address) = serve(app());
    let mut source = EventSource::ask(address, "GET /events?room=news HTTP/1.0\r\n\r\n");
    running.sender().room("news").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn routes_and_websockets_go_on_beside_a_stream_on_the_same_port() {
    let routes =
        SubApp::new().with_stateless_route("/*", |_| Response::new(StatusCode::OK, "a route"));
    let (running, address) = serve(app().with_routes(routes));
    let mut source = EventSource::open(address, "/events?room=news");
    for target in ["/", "/events/", "/events/x", "/Events", "/event"] {
        let (_, body) = answer(address, &request("GET", target, "Connection: close\r\n"));
        assert_eq!(body, "a route", "{target}");
    }
    // Every path can be upgraded, this one too.
    let mut client = Client::connect_to(address, "/events");
    eventually("it is connected", || running.sender().connections() == 1);
    running.sender().broadcast(text("to websockets"));
    running.sender().room("news").broadcast(text("to the room"));
    assert_eq!(client.receive_text(), "to websockets");
    assert_eq!(source.text(), "to the room");
    // A kept-alive connection may become a stream, and what is sent behind the request is ignored.
    let mut socket = tcp(address);
    socket
        .write_all(request("GET", "/", "").as_bytes())
        .unwrap();
    let head = read_head(&mut socket);
    assert!(head.contains("Content-Length: 7\r\n"), "{head}");
    socket.read_exact(&mut [0; 7]).unwrap();
    let twice = request("GET", "/events?room=news", "") + &upgrade_request("/");
    socket.write_all(twice.as_bytes()).unwrap();
    assert!(read_head(&mut socket).contains("text/event-stream"));
    running.shutdown(STOP);
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "retry: 2000\n\n");
}

#[test]
fn a_star_in_the_path_stands_for_any_characters_and_the_first_stream_that_fits_counts() {
    let (running, address) = start(
        app()
            .with_event_stream("/of/secret", |_, _| Err(Reject::new(403)))
            .with_event_stream("/of/*", |request, _| {
                Ok(Subscription::room(&request.path()["/of/".len()..]))
            }),
    );
    let mut source = EventSource::open(address, "/of/news/zurich?x=y");
    let sender = running.sender();
    sender.room("news/zurich").broadcast(text("It rains."));
    assert_eq!(source.text(), "It rains.");
    let (head, _) = answer(address, &request("GET", "/of/secret", ""));
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let (head, _) = answer(address, &request("GET", "/of", "Connection: close\r\n"));
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    running.shutdown(STOP);
}

#[test]
fn a_rejected_client_gets_status_headers_and_body_and_a_panic_is_500() {
    let (running, address) = start(app().with_event_stream("/events", |request, _| {
        assert_ne!(request.query(), "panic");
        Err(Reject::new(401)
            .with_header("WWW-Authenticate", "Bearer")
            .with_body("who are you?\n"))
    }));
    let (head, body) = answer(address, &request("GET", "/events", ""));
    assert!(head.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{head}");
    assert!(head.contains("WWW-Authenticate: Bearer\r\n"), "{head}");
    assert_eq!(body, "who are you?\n");
    let (head, _) = answer(address, &request("GET", "/events?panic", ""));
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    let metrics = running.sender().metrics();
    assert_eq!(metrics.handler_panics, 1);
    assert_eq!(metrics.event_streams_opened, 0);
    running.shutdown(STOP);
}

#[test]
fn a_stream_is_nobodys_connection_and_no_handler_hears_of_it() {
    let called = Arc::new(AtomicUsize::new(0));
    let counts = || {
        let called = called.clone();
        move || {
            called.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (open, close, room) = (counts(), counts(), counts());
    let (running, address) = serve(
        app()
            .with_connect_handler(move |_, _| open())
            .with_disconnect_handler(move |_, _| close())
            .with_room_handler(move |_, _, _, _| room()),
    );
    let sender = running.sender();
    let news = sender.room("news");
    let mut source = EventSource::open(address, "/events?room=news");
    assert_eq!(sender.metrics().event_streams, 1);
    assert_eq!(sender.metrics().event_streams_opened, 1);
    assert_eq!(sender.connections(), 0);
    assert_eq!(sender.metrics().connections, 0);
    assert_eq!(news.len(), 0);
    assert!(news.members().is_empty());
    // It is someone to deliver to all the same.
    news.broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    assert_eq!(sender.metrics().dropped.no_recipient, 0);
    eventually("it is counted", || sender.metrics().messages_out == 1);
    drop(source);
    eventually("it has ended", || sender.metrics().event_streams == 0);
    news.broadcast(text("nobody listens"));
    assert_eq!(sender.metrics().dropped.no_recipient, 1);
    running.shutdown(STOP);
    assert_eq!(called.load(Ordering::SeqCst), 0);
}

#[test]
fn who_comes_again_gets_what_he_has_missed_and_then_what_is_new() {
    let (running, address) = serve(app().with_history("news", 100, 10_000));
    let news = running.sender().room("news");
    news.broadcast(text("before anyone came"));
    let mut source = EventSource::open(address, "/events?room=news");
    let begin = source.last_event_id.clone();
    assert!(begin.ends_with("-1"), "it knows where it begins: {begin}");
    for n in 2..=4 {
        news.broadcast(text(format!("{n}")));
    }
    assert_eq!(source.texts(3), ["2", "3", "4"]);
    let last = source.last_event_id.clone();
    assert_eq!(
        Some(last.as_str()),
        news.last_id().map(|id| id.to_string()).as_deref()
    );
    drop(source);
    news.broadcast(text("5"));
    news.broadcast(text("6"));
    let targets = [
        ("/events?room=news".to_owned(), last.as_str()),
        (format!("/events?room=news&lastEventId={last}"), ""),
    ];
    for (target, header) in targets {
        let mut source = EventSource::resume(address, &target, header);
        assert_eq!(source.texts(2), ["5", "6"]);
    }
    let mut source = EventSource::resume(address, "/events?room=news", &begin);
    assert_eq!(source.texts(5), ["2", "3", "4", "5", "6"]);
    news.broadcast(text("7"));
    assert_eq!(source.text(), "7");
    running.shutdown(STOP);
}

#[test]
fn who_missed_more_than_is_kept_is_told_so_and_gets_what_is_kept() {
    let (running, address) = serve(app().with_history("*", 2, 10_000));
    let news = running.sender().room("news");
    let source = EventSource::open(address, "/events?room=news");
    let begin = source.last_event_id.clone();
    for n in 1..=5 {
        news.broadcast(text(format!("{n}")));
    }
    for asked in [begin.as_str(), "dead-1", "not an id"] {
        let mut source = EventSource::resume(address, "/events?room=news", asked);
        let event = source.next();
        assert_eq!((&*event.kind, &*event.data), ("reset", asked));
        assert_eq!(source.texts(2), ["4", "5"]);
    }
    // A room that has kept nothing says where it is, so that the next time there is no reset.
    let mut source = EventSource::resume(address, "/events?room=quiet", "dead-1");
    let event = source.next();
    assert_eq!(event.kind, "reset");
    let mut source = EventSource::resume(address, "/events?room=quiet", &event.id);
    running.sender().room("quiet").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn a_room_without_history_ignores_what_a_client_has_seen() {
    let (running, address) = serve(app());
    let mut source = EventSource::resume(address, "/events?room=news", "dead-1");
    running.sender().room("news").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn who_comes_for_the_first_time_gets_the_history_if_it_is_to() {
    let (running, address) = start(
        app()
            .with_history("*", 10, 10_000)
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("a").and_room("b").with_history())
            }),
    );
    let sender = running.sender();
    for n in 0..4 {
        sender.room("a").broadcast(text(format!("a{n}")));
        sender.room("b").broadcast(text(format!("b{n}")));
    }
    let mut source = EventSource::open(address, "/events");
    assert_eq!(
        source.texts(8),
        ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"],
        "as they were sent"
    );
    running.shutdown(STOP);
}

#[test]
fn a_stream_of_several_rooms_resumes_from_the_id_of_any_of_them() {
    let (running, address) = start(
        app()
            .with_history("*", 100, 10_000)
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("a").and_room("b").and_room("c"))
            }),
    );
    let sender = running.sender();
    let mut source = EventSource::open(address, "/events");
    let mut ids = vec![source.last_event_id.clone()];
    let rooms = ["a", "b", "b", "a", "c", "a"];
    for (n, room) in rooms.iter().enumerate() {
        sender.room(room).broadcast(text(format!("{n}")));
        ids.push(source.next().id);
    }
    for (seen, id) in ids.iter().enumerate() {
        let mut source = EventSource::resume(address, "/events", id);
        sender.room("a").broadcast(text("live"));
        let expected: Vec<String> = (seen..rooms.len()).map(|n| n.to_string()).collect();
        assert_eq!(source.texts(expected.len()), expected, "after {seen}");
        // Of the earlier rounds, and of this one.
        assert_eq!(source.texts(seen + 1), vec!["live"; seen + 1]);
    }
    running.shutdown(STOP);
}

#[test]
fn resuming_again_and_again_while_all_publish_loses_and_repeats_nothing() {
    const ROOMS: usize = 3;
    const ROUNDS: usize = 100;
    /// Little, so that the client is nearly always where the publishers are when it comes again.
    const AHEAD_MAX: usize = 200;
    let (running, address) = start(
        app()
            .with_history("*", 10_000, 10_000_000)
            .with_event_stream("/events", |_, _| {
                Ok((0..ROOMS).fold(Subscription::broadcasts(), |all, n| {
                    all.and_room(format!("{n}"))
                }))
            }),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let read = Arc::new([const { AtomicUsize::new(0) }; ROOMS]);
    let first = EventSource::open(address, "/events");
    let mut last = first.last_event_id.clone();
    drop(first);
    let publishers: Vec<_> = (0..ROOMS)
        .map(|n| {
            let room = running.sender().room(&n.to_string());
            let (stop, read) = (stop.clone(), read.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    if count < read[n].load(Ordering::SeqCst) + AHEAD_MAX {
                        room.broadcast(text(format!("{n} {count}")));
                        count += 1;
                    }
                    // The client is to keep up.
                    std::thread::sleep(Duration::from_micros(1));
                }
                count
            })
        })
        .collect();
    let mut expected = [0; ROOMS];
    let mut check = |data: &str| {
        let (room, count) = data.split_once(' ').unwrap();
        let room: usize = room.parse().unwrap();
        assert_eq!(count.parse(), Ok(expected[room]), "of room {room}");
        expected[room] += 1;
        read[room].store(expected[room], Ordering::SeqCst);
    };
    for round in 0..ROUNDS {
        let mut source = EventSource::resume(address, "/events", &last);
        for _ in 0..20 + round % 13 {
            let event = source.next();
            assert_eq!(event.kind, "message", "{event:?}");
            check(&event.data);
        }
        last = source.last_event_id.clone();
    }
    stop.store(true, Ordering::SeqCst);
    let sent: Vec<usize> = publishers
        .into_iter()
        .map(|publisher| publisher.join().unwrap())
        .collect();
    let source = EventSource::resume(address, "/events", &last);
    running.shutdown(DEADLINE);
    for data in source.rest() {
        check(&data);
    }
    assert_eq!(expected.to_vec(), sent);
}

#[test]
fn what_is_replayed_of_several_rooms_comes_in_the_order_in_which_it_came_live() {
    const ROOMS: usize = 4;
    const EACH: usize = 5_000;
    let (running, address) = start(
        app()
            .with_history("*", EACH, 10_000_000)
            .with_limits(Limits {
                outbox_bytes_max: 100_000_000,
                ..Limits::default()
            })
            .with_event_stream("/events", |_, _| {
                Ok((0..ROOMS).fold(Subscription::broadcasts(), |all, n| {
                    all.and_room(format!("{n}"))
                }))
            }),
    );
    let mut live = EventSource::open(address, "/events");
    let begin = live.last_event_id.clone();
    let publishers: Vec<_> = (0..ROOMS)
        .map(|n| {
            let room = running.sender().room(&n.to_string());
            std::thread::spawn(move || (0..EACH).for_each(|n| room.broadcast(text(format!("{n}")))))
        })
        .collect();
    let came: Vec<String> = (0..ROOMS * EACH).map(|_| live.next().id).collect();
    for publisher in publishers {
        publisher.join().unwrap();
    }
    live = EventSource::resume(address, "/events", &begin);
    let replayed: Vec<String> = (0..ROOMS * EACH).map(|_| live.next().id).collect();
    // So whatever id a client has seen last, what it has not seen is what comes behind.
    assert!(replayed == came);
    running.shutdown(STOP);
}

#[test]
fn a_page_of_an_allowed_origin_may_read_the_stream_and_others_are_turned_away() {
    let (running, address) =
        serve(app().with_allowed_origins(Origins::same_or_list(["https://example.com"])));
    let open = |origin: &str| {
        EventSource::open_with(
            address,
            "/events?room=news",
            &format!("Origin: {origin}\r\n"),
        )
        .head
    };
    let head = open("https://example.com");
    assert!(
        head.contains("Access-Control-Allow-Origin: https://example.com\r\n"),
        "{head}"
    );
    assert!(
        head.contains("Access-Control-Allow-Credentials: true\r\n"),
        "{head}"
    );
    assert!(head.contains("Vary: Origin\r\n"), "{head}");
    let (head, _) = answer(
        address,
        &request(
            "GET",
            "/events?room=news",
            "Origin: https://example.org\r\n",
        ),
    );
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(!head.contains("Access-Control-Allow-Origin"), "{head}");
    assert_eq!(running.sender().metrics().refused.origin, 1);
    let head = EventSource::open(address, "/events?room=news").head;
    assert!(!head.contains("Access-Control-Allow-Origin"), "{head}");
    assert!(head.contains("Vary: Origin\r\n"), "{head}");
    running.shutdown(STOP);
}

#[test]
fn where_any_page_may_come_it_may_read_but_not_with_its_visitors_cookies() {
    let (running, address) = serve(app());
    let source = EventSource::open_with(
        address,
        "/events?room=news",
        "Origin: https://example.org\r\n",
    );
    assert!(
        source.head.contains("Access-Control-Allow-Origin: *\r\n"),
        "{}",
        source.head
    );
    assert!(
        !source.head.contains("Allow-Credentials"),
        "{}",
        source.head
    );
    running.shutdown(STOP);
}

#[test]
fn the_reader_of_a_script_is_told_which_headers_it_may_send() {
    let (running, address) = serve(app());
    let (head, body) = answer(
        address,
        &request(
            "OPTIONS",
            "/events",
            "Origin: https://example.org\r\nAccess-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: authorization,last-event-id\r\n",
        ),
    );
    assert!(head.starts_with("HTTP/1.1 204 "), "{head}");
    assert!(
        head.contains("Access-Control-Allow-Origin: *\r\n"),
        "{head}"
    );
    assert!(
        head.contains("Access-Control-Allow-Headers: authorization,last-event-id\r\n"),
        "{head}"
    );
    assert_eq!(body, "");
    running.shutdown(STOP);
}

#[test]
fn limits_hold_for_streams_as_for_websockets() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let (running, address) = serve(app().with_limits(limits));
    let _sources = [(); 2].map(|()| EventSource::open(address, "/events?room=news"));
    let (head, _) = answer(address, &request("GET", "/events?room=news", ""));
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    running.shutdown(STOP);
}

#[test]
fn a_client_that_goes_while_its_request_is_decided_leaves_nothing_behind() {
    let (arrived, arrivals) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (running, address) = start(app().with_event_stream("/events", move |_, _| {
        arrived.send(()).unwrap();
        released.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        Ok(Subscription::room("news"))
    }));
    let mut socket = tcp(address);
    socket
        .write_all(request("GET", "/events", "").as_bytes())
        .unwrap();
    arrivals.recv_timeout(DEADLINE).unwrap();
    drop(socket);
    release.send(()).unwrap();
    let sender = running.sender();
    // The next one is served, and is the only one.
    let mut socket = tcp(address);
    socket
        .write_all(request("GET", "/events", "").as_bytes())
        .unwrap();
    arrivals.recv_timeout(DEADLINE).unwrap();
    release.send(()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 200 "));
    eventually("only one is left", || sender.metrics().event_streams == 1);
    running.shutdown(STOP);
}

#[test]
fn an_app_that_stops_sends_what_was_published_and_ends_the_response() {
    let (running, address) = serve(app());
    let sources = [(); 5].map(|()| EventSource::open(address, "/events?room=news"));
    let news = running.sender().room("news");
    for n in 0..1_000 {
        news.broadcast(text(format!("{n}")));
    }
    running.shutdown(DEADLINE);
    for source in sources {
        let expected: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        assert_eq!(source.rest(), expected);
    }
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    let (running, address) = start(app().with_event_stream("/events", |_, _| {
        Ok(Subscription::room("news")
            .with_keep_alive(Duration::ZERO)
            .with_retry(Duration::from_millis(1_234)))
    }));
    let mut source = EventSource::open(address, "/events");
    assert_eq!(source.retry.as_deref(), Some("1234"));
    while source.comments < 2 {
        assert_eq!(source.block(), Some(None), "no event");
    }
    running.shutdown(STOP);
}

const EVENTS: u64 = 30_000;
const EVENT_BYTES: usize = 1_000;

fn numbered(n: u64) -> Message {
    text(format!("{n:08}{:.>1$}", "", EVENT_BYTES - 8))
}

fn number(data: &str) -> u64 {
    assert_eq!(data.len(), EVENT_BYTES, "no event is ever cut");
    assert!(data[8..].bytes().all(|byte| byte == b'.'));
    data[..8].parse().unwrap()
}

/// The numbers of the events to the end of a stream, which may be a reset.
fn numbers(mut source: EventSource) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(event) = source.try_next() {
        numbers.push(number(&event.data));
    }
    numbers
}

fn serve_slow(policy: SlowConsumer) -> (RunningApp, SocketAddr) {
    let limits = Limits {
        outbox_bytes_max: 200_000,
        ..Limits::default()
    };
    serve(app().with_limits(limits).with_slow_consumer(policy))
}

/// Publishes until the policy strikes, and returns how many.
fn publish_until(running: &RunningApp, strikes: impl Fn(&humphrey_ws::Metrics) -> bool) -> u64 {
    let sender = running.sender();
    let news = sender.room("news");
    let mut n = 0;
    while !strikes(&sender.metrics()) {
        news.broadcast(numbered(n));
        n += 1;
        assert!(n < EVENTS, "it never struck");
    }
    n
}

#[test]
fn a_slow_client_is_cut_off_behind_a_whole_event_and_what_it_misses_is_counted() {
    let (running, address) = serve_slow(SlowConsumer::Disconnect);
    let slow = EventSource::open(address, "/events?room=news");
    let published = publish_until(&running, |metrics| metrics.slow_consumers == 1);
    let got = numbers(slow);
    assert!(got.iter().copied().eq(0..got.len() as u64), "no hole");
    let sender = running.sender();
    eventually("it has gone", || sender.metrics().event_streams == 0);
    let metrics = sender.metrics();
    let dropped = metrics.dropped.slow_consumer + metrics.dropped.no_recipient;
    assert_eq!(metrics.messages_out, got.len() as u64);
    assert_eq!(
        metrics.messages_out + dropped + metrics.dropped.closed,
        published
    );
    running.shutdown(STOP);
}

#[test]
fn a_slow_client_misses_the_newest_events_or_the_oldest_as_the_policy_says() {
    for policy in [SlowConsumer::DropNewest, SlowConsumer::DropOldest] {
        let (running, address) = serve_slow(policy);
        let slow = EventSource::open(address, "/events?room=news");
        let published = publish_until(&running, |metrics| metrics.dropped.slow_consumer > 1_000);
        // All that was published is in the outbox, or dropped, before the end comes.
        let sender = running.sender();
        let reader = std::thread::spawn(move || numbers(slow));
        running.shutdown(DEADLINE);
        let got = reader.join().unwrap();
        assert!(got.windows(2).all(|two| two[0] < two[1]), "in order");
        let metrics = sender.metrics();
        assert_eq!(got.len() as u64, metrics.messages_out, "{policy:?}");
        assert_eq!(
            metrics.messages_out + metrics.dropped.slow_consumer,
            published,
            "{policy:?}"
        );
        match policy {
            SlowConsumer::DropOldest => assert_eq!(got.last(), Some(&(published - 1))),
            _ => assert_eq!(got[..100], (0..100).collect::<Vec<u64>>()),
        }
    }
}

#[test]
fn a_paced_app_waits_for_a_reader_of_events_as_for_one_of_messages() {
    let (running, address) = serve_slow(SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: DEADLINE,
    });
    let mut source = EventSource::open(address, "/events?room=news");
    let sender = running.sender();
    let publisher = std::thread::spawn({
        let news = sender.room("news");
        move || (0..EVENTS).for_each(|n| news.broadcast(numbered(n)))
    });
    eventually("the producer waits", || {
        sender.metrics().paced > Duration::ZERO
    });
    for n in 0..EVENTS {
        assert_eq!(number(&source.text()), n);
    }
    publisher.join().unwrap();
    assert_eq!(sender.metrics().dropped.total(), 0);
    running.shutdown(STOP);
}
