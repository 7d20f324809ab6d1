//! `/events` over real sockets. The library tests the format itself.
#![cfg(unix)]

mod support;

use support::events::Events;
use support::{Program, http_get};

#[test]
fn event_stream_gets_the_messages_of_a_websocket_client() {
    let mut program = Program::start(&["--no-welcome", "--history=0", "--publish-token=s3cret"]);
    let mut inside = Events::open(&program, "/events/Z%C3%BCrich", "");
    let mut outside = Events::open(&program, "/events", "");
    let bearer = "Authorization: Bearer s3cret\r\n";
    assert_eq!(
        program.publish("/Z%C3%BCrich", bearer, b"to the room").0,
        200
    );
    assert_eq!(program.publish("", bearer, b"two\nlines").0, 200);
    assert_eq!(inside.next(), ("data: to the room".to_owned(), None));
    for events in [&mut inside, &mut outside] {
        assert_eq!(events.next().0, "data: two; data: lines");
    }
    program.write(b"\xff\xfe\x00\n");
    for events in [&mut inside, &mut outside] {
        assert_eq!(events.next().0, "event: binary; data: //4A");
    }
    for path in ["/events/%FF", "/events?since=yesterday"] {
        assert_eq!(http_get(program.address(), path).0, 400, "{path}");
    }
}

#[test]
fn silent_event_stream_gets_keep_alive_comments() {
    let program = Program::start(&["--events-keep-alive", "1", "--history", "9"]);
    let mut events = Events::open(&program, "/events", "");
    assert!(events.line().starts_with("id: "), "the position is missing");
    // Less than half of the default keep-alive, which would exceed the timeout of such a proxy.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut comments = std::iter::repeat_with(|| events.line()).filter(|line| !line.is_empty());
    for _ in 0..2 {
        assert_eq!(comments.next().as_deref(), Some(":"));
    }
    assert!(
        std::time::Instant::now() < deadline,
        "two keep-alive comments took longer than ten seconds"
    );
}

#[test]
fn event_stream_replays_the_history_and_resumes() {
    let arguments = [
        "--no-welcome",
        "--history",
        "3",
        "--publish-token",
        "s3cret",
    ];
    let mut program = Program::start(&arguments);
    let bearer = "Authorization: Bearer s3cret\r\n";
    let mut live = Events::open(&program, "/events/news", "");
    let mut say = |program: &mut Program, n: u32| {
        program.write(format!("line {n}\n").as_bytes());
        let line = live.next();
        assert_eq!(line.0, format!("data: line {n}"));
        let body = format!("news {n}");
        assert_eq!(program.publish("/news", bearer, body.as_bytes()).0, 200);
        let news = live.next();
        assert_eq!(news.0, format!("data: news {n}"));
        news.1.unwrap()
    };
    let seen = say(&mut program, 1);
    say(&mut program, 2);
    let texts = |events: &mut Events, n: usize| -> Vec<String> {
        let data = (0..n).map(|_| events.next().0);
        data.map(|data| data.replace("data: ", "")).collect()
    };
    let mut first = Events::open(&program, "/events/news?since=all", "");
    assert_eq!(
        texts(&mut first, 4),
        ["line 1", "news 1", "line 2", "news 2"]
    );
    let header = format!("Last-Event-ID: {seen}\r\n");
    let mut again = Events::open(&program, "/events/news", &header);
    assert_eq!(texts(&mut again, 2), ["line 2", "news 2"]);
    let mut now = Events::open(&program, "/events/news?since=now", "");
    for n in 3..6 {
        say(&mut program, n);
    }
    assert_eq!(texts(&mut now, 1), ["line 3"]);
    let mut late = Events::open(&program, "/events/news", &header);
    let (reset, _) = late.next();
    assert!(reset.starts_with("event: reset"), "{reset}");
    assert_eq!(texts(&mut late, 2), ["line 3", "news 3"]);
}

#[test]
fn new_clients_are_announced_on_event_streams() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let program = Program::start(history);
        let mut inside = Events::open(&program, "/events/news", "");
        let mut outside = Events::open(&program, "/events", "");
        let member = program.connect_to("/news");
        let welcome = |client: &support::Client| format!("data: Welcome, {}!", client.local_addr());
        assert_eq!(inside.next().0, welcome(&member));
        let other = program.connect();
        assert_eq!(inside.next().0, welcome(&other));
        assert_eq!(outside.next().0, welcome(&other));
    }
}
