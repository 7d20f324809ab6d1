//! Event streams over real sockets.

use crate::events;
use crate::support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use events::{EventSource, STOP, answer, app, request, serve, text};
use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::{
    AsyncWebsocketApp, HistoryLimits, Limits, Message, Origins, Reject, RunningApp, SlowConsumer,
    Subscription,
};
use support::{Client, DEADLINE, eventually, read_head, start, tcp, upgrade_request};

#[test]
fn text_and_binary_messages_arrive_as_events() {
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
fn subscribed_messages_alone_arrive_in_order() {
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
fn response_headers_forbid_buffering() {
    let (running, address) = serve(app());
    let source = EventSource::open(address, "/events?room=news");
    for line in [
        "Content-Type: text/event-stream\r\n",
        "Cache-Control: no-store, no-transform\r\n",
        "X-Accel-Buffering: no\r\n",
        "X-Content-Type-Options: nosniff\r\n",
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
fn head_gets_headers_and_other_methods_get_405() {
    let (running, address) = serve(app());
    let (head, body) = answer(address, &request("HEAD", "/events?room=news", ""));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/event-stream\r\n"),
        "{head}"
    );
    assert_eq!(body, "");
    // The response that a GET would get.
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
fn refused_head_gets_no_body() {
    let app = app().with_allowed_origins(Origins::Same);
    let (running, address) = serve(app);
    let headers = "Origin: https://elsewhere.example\r\n";
    let (head, body) = answer(address, &request("HEAD", "/events?room=news", headers));
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(
        !head.contains("Content-Length: 0"),
        "the length differs from that of GET: {head}"
    );
    assert_eq!(body, "");
    assert_eq!(running.sender().metrics().refused.origin, 1);
    running.shutdown(STOP);
}

#[test]
fn http_1_0_client_gets_the_same_stream() {
    let (running, address) = serve(app());
    let mut source = EventSource::ask(address, "GET /events?room=news HTTP/1.0\r\n\r\n");
    running.sender().room("news").broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    running.shutdown(STOP);
}

#[test]
fn routes_and_websockets_share_a_port_with_streams() {
    let routes =
        SubApp::new().with_stateless_route("/*", |_| Response::new(StatusCode::OK, "a route"));
    let (running, address) = serve(app().with_routes(routes));
    let mut source = EventSource::open(address, "/events?room=news");
    for target in ["/", "/events/", "/events/x", "/Events", "/event"] {
        let (_, body) = answer(address, &request("GET", target, "Connection: close\r\n"));
        assert_eq!(body, "a route", "{target}");
    }
    // Every path can be upgraded, including this one.
    let mut client = Client::connect_to(address, "/events");
    eventually("the client is connected", || {
        running.sender().connections() == 1
    });
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
    assert_eq!(rest, "retry: 2000\n");
}

#[test]
fn first_stream_whose_wildcard_path_matches_is_used() {
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
fn unreachable_event_stream_is_an_error_at_start() {
    let stream = |app: AsyncWebsocketApp<()>, path| {
        let app = app.with_event_stream(path, |_, _| Ok(Subscription::broadcasts()));
        app.start().map(drop).unwrap_err().to_string()
    };
    let error = stream(app(), "events");
    assert!(error.contains("\"events\" fits no request"), "{error}");
    let error = stream(AsyncWebsocketApp::new_unlinked(), "/events");
    assert!(error.contains("no port of its own"), "{error}");
}

#[test]
fn rejection_has_headers_and_body_and_a_panic_is_500() {
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
fn event_stream_calls_no_connection_handler() {
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
    assert_eq!(news.event_streams(), 1);
    assert_eq!(sender.everyone().event_streams(), 0);
    // The stream is still a recipient of broadcasts.
    news.broadcast(text("hi"));
    assert_eq!(source.text(), "hi");
    assert_eq!(sender.metrics().dropped.no_recipient, 0);
    eventually("the delivery is counted", || {
        sender.metrics().messages_out == 1
    });
    drop(source);
    eventually("the stream has ended", || {
        sender.metrics().event_streams == 0
    });
    assert_eq!(news.event_streams(), 0);
    assert_eq!(sender.metrics().rooms, 0, "the empty room was not freed");
    news.broadcast(text("nobody listens"));
    assert_eq!(sender.metrics().dropped.no_recipient, 1);
    running.shutdown(STOP);
    assert_eq!(called.load(Ordering::SeqCst), 0);
}

#[test]
fn allowed_origin_reads_the_stream_and_others_get_403() {
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
fn any_origin_reads_the_stream_without_credentials() {
    for app in [app(), app().with_allowed_origins(Origins::Any)] {
        let (running, address) = serve(app);
        let origin = "Origin: https://example.org\r\n";
        let head = EventSource::open_with(address, "/events?room=news", origin).head;
        assert!(
            head.contains("Access-Control-Allow-Origin: *\r\n"),
            "{head}"
        );
        assert!(!head.contains("Allow-Credentials"), "{head}");
        running.shutdown(STOP);
    }
}

#[test]
fn preflight_lists_the_headers_scripts_may_send() {
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
fn connection_limits_hold_for_event_streams() {
    let limits = Limits::default().connections_max(2);
    let (running, address) = serve(app().with_limits(limits));
    let _sources = [(); 2].map(|()| EventSource::open(address, "/events?room=news"));
    let (head, _) = answer(address, &request("GET", "/events?room=news", ""));
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    running.shutdown(STOP);
}

#[test]
fn room_limits_hold_for_event_streams() {
    let limits = Limits::default().connection_rooms_max(2).rooms_max(3);
    let (running, address) = start(app().with_limits(limits).with_event_stream(
        "/events",
        |request, _| {
            let mut rooms = request.query().split(',');
            let first = Subscription::room(rooms.next().unwrap_or_default());
            Ok(rooms.fold(first, Subscription::and_room))
        },
    ));
    let status = |rooms: &str| {
        let (head, _) = answer(address, &request("GET", &format!("/events?{rooms}"), ""));
        head.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&"x".repeat(256)), "400");
    assert_eq!(status("a,b,c"), "503", "too many rooms for one stream");
    assert_eq!(
        running.sender().metrics().rooms,
        0,
        "the refused stream left a room"
    );
    let _open = [
        EventSource::open(address, "/events?a,b"),
        EventSource::open(address, "/events?b,c"),
    ];
    assert_eq!(status("d"), "503", "too many rooms in total");
    assert_eq!(running.sender().metrics().rooms, 3);
    running.shutdown(STOP);
}

#[test]
fn client_gone_during_authorization_leaves_nothing() {
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
    // The next stream is served, and is the only one.
    let mut socket = tcp(address);
    socket
        .write_all(request("GET", "/events", "").as_bytes())
        .unwrap();
    arrivals.recv_timeout(DEADLINE).unwrap();
    release.send(()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 200 "));
    eventually("only one stream is left", || {
        sender.metrics().event_streams == 1
    });
    running.shutdown(STOP);
}

#[test]
fn shutdown_sends_published_events_and_ends_the_body() {
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
fn silent_stream_is_kept_alive_by_comments() {
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

/// Some clients report an event for each empty line, even without data.
#[test]
fn empty_lines_follow_events_only() {
    let (running, address) = start(
        app()
            .with_history("*", HistoryLimits::messages(10).bytes(10_000))
            .with_event_stream("/events", |request, _| {
                let subscription = Subscription::room("news")
                    .with_broadcasts()
                    .with_keep_alive(Duration::ZERO);
                Ok(match request.query() {
                    "history" => subscription.with_history(),
                    _ => subscription,
                })
            }),
    );
    let sender = running.sender();
    let room = sender.room("news");
    let position = EventSource::open(address, "/events").position();
    let no_event_but = |mut source: EventSource, text_sent: &str, id: &str| {
        while source.comments < 1 {
            assert_eq!(source.block(), Some(None), "a comment");
            assert_eq!(source.last_event_id, "");
        }
        assert_eq!(source.comments, 1, "something preceded the comment");
        sender.broadcast(text(text_sent));
        let event = loop {
            if let Some(event) = source.block().unwrap() {
                break event;
            }
        };
        assert_eq!((&*event.data, &*event.id), (text_sent, id));
    };
    // A new client of an empty history.
    let first = EventSource::open(address, "/events?history");
    no_event_but(first, "to the first", &position);
    // A reconnecting client that has missed nothing.
    let again = EventSource::resume(address, "/events", &position);
    no_event_but(again, "to the second", &position);
    room.broadcast(text("kept"));
    let last = room.last_id().unwrap().to_string();
    let again = EventSource::resume(address, "/events", &last);
    no_event_but(again, "to the third", &last);
    running.shutdown(STOP);
}

const EVENTS: u64 = 30_000;
const EVENT_BYTES: usize = 1_000;

fn numbered(n: u64) -> Message {
    text(format!("{n:08}{:.>1$}", "", EVENT_BYTES - 8))
}

fn number(data: &str) -> u64 {
    assert_eq!(data.len(), EVENT_BYTES, "an event was truncated");
    assert!(data[8..].bytes().all(|byte| byte == b'.'));
    data[..8].parse().unwrap()
}

/// Reads the numbers of the events up to the end of a stream, which may be a reset.
fn numbers(mut source: EventSource) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(event) = source.try_next() {
        numbers.push(number(&event.data));
    }
    numbers
}

fn serve_slow(policy: SlowConsumer) -> (RunningApp, SocketAddr) {
    let limits = Limits::default().outbox_bytes_max(200_000);
    serve(app().with_limits(limits).with_slow_consumer(policy))
}

/// Publishes until the policy takes effect, and returns the number of events.
fn publish_until(running: &RunningApp, strikes: impl Fn(&humphrey_ws::Metrics) -> bool) -> u64 {
    let sender = running.sender();
    let news = sender.room("news");
    let mut n = 0;
    while !strikes(&sender.metrics()) {
        news.broadcast(numbered(n));
        n += 1;
        assert!(n < EVENTS, "the policy never took effect");
    }
    n
}

#[test]
fn slow_client_is_cut_after_a_whole_event_and_counted() {
    let (running, address) = serve_slow(SlowConsumer::Disconnect);
    let slow = EventSource::open(address, "/events?room=news");
    let published = publish_until(&running, |metrics| metrics.slow_consumers == 1);
    let got = numbers(slow);
    assert!(
        got.iter().copied().eq(0..got.len() as u64),
        "an event is missing"
    );
    let sender = running.sender();
    eventually("the stream has ended", || {
        sender.metrics().event_streams == 0
    });
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
fn slow_client_misses_events_chosen_by_the_policy() {
    for policy in [
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
    ] {
        let (running, address) = serve_slow(policy);
        let slow = EventSource::open(address, "/events?room=news");
        let published = publish_until(&running, |metrics| metrics.dropped.slow_consumer > 1_000);
        // Each published event is in the outbox or dropped before the stream ends.
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
            SlowConsumer::DropNewest => assert_eq!(got[..100], (0..100).collect::<Vec<u64>>()),
            _ => assert_eq!(got.last(), Some(&(published - 1))),
        }
    }
}

#[test]
fn paced_app_waits_for_event_stream_readers() {
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
