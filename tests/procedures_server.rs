//! Procedures by the server: calls to clients, and the reserved calls to join and leave rooms.

use crate::frames;
use crate::support;

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use frames::{
    Frames, OLD, STOP, V1, app, connect, item, notification, request, reset, response, with_id,
};
use humphrey_ws::procedures::{CallError, CallErrorReason, Payload, Procedures};
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, HistoryLimits, Limits, Message, Presence, RunningApp,
};
use support::{Client, DEADLINE, eventually, start};

type Outcome = Result<Payload, CallError>;

/// Starts an app that sends each connected stream to the test.
fn streams(app: AsyncWebsocketApp<()>) -> (AsyncWebsocketApp<()>, mpsc::Receiver<AsyncStream>) {
    let (sender, streams) = mpsc::channel();
    let app = app.with_connect_handler(move |stream, _| sender.send(stream).unwrap());
    (app, streams)
}

fn reason(outcome: Outcome) -> CallErrorReason {
    outcome.expect_err("it has failed").reason
}

/// Returns a callback that sends the result of its call to the test.
fn into(outcomes: &Sender<Outcome>) -> impl FnOnce(Outcome) + Send + 'static {
    let outcomes = outcomes.clone();
    move |outcome| outcomes.send(outcome).unwrap()
}

#[test]
fn call_to_a_client_yields_its_reply_or_error() {
    let (app, streams) = streams(app(Procedures::new()));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    let (outcomes, told) = mpsc::channel();
    stream.call("name", "who?", DEADLINE, into(&outcomes));
    assert_eq!(client.receive_frame(), request(1, "name", b"who?"));
    client.send_binary(response(1, b"Ada"));
    let outcome = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(outcome.unwrap().text(), Ok("Ada"));
    stream.call("name", "", DEADLINE, into(&outcomes));
    assert_eq!(client.receive_frame(), request(2, "name", b""));
    client.send_binary(with_id(5, 2, b"\x06not yours"));
    let error = told.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert_eq!(error, CallError::refused("not yours"));
    // A response without a call.
    client.send_binary(response(2, b"again"));
    client.send_binary(response(77, b""));
    client.send_binary(with_id(5, 78, b"\x02"));
    // Several calls at once from another thread, answered in another order.
    let stream = Arc::new(stream);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let stream = stream.clone();
            let waiting = thread::spawn(move || stream.call_wait("wait", "", DEADLINE));
            let frame = client.receive_frame();
            (waiting, u32::from_be_bytes(frame[1..5].try_into().unwrap()))
        })
        .collect();
    for (_, id) in waiting.iter().rev() {
        client.send_binary(response(*id, &id.to_be_bytes()));
    }
    for (thread, id) in waiting {
        let outcome = thread.join().unwrap().unwrap();
        assert_eq!(outcome.bytes(), id.to_be_bytes());
    }
    assert!(told.try_recv().is_err(), "a callback was called twice");
    running.shutdown(STOP);
}

#[test]
fn handler_may_wait_for_a_reply_of_its_client() {
    let procedures = Procedures::new().on_call("greet", |call| {
        let name = call.stream().call_wait("name", "", DEADLINE)?;
        Ok(format!("Hello, {}!", name.text()?))
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    for id in 1..4 {
        client.send_binary(request(id, "greet", b""));
        assert_eq!(client.receive_frame(), request(id, "name", b""));
        client.send_binary(response(id, b"Ada"));
        assert_eq!(client.receive_frame(), response(id, b"Hello, Ada!"));
    }
    running.shutdown(STOP);
}

#[test]
fn replies_and_messages_are_handled_in_order() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let (of_events, of_answers) = (told.clone(), told.clone());
    let procedures = Procedures::new().on_notification("event", move |event| {
        of_events
            .lock()
            .unwrap()
            .push(event.text().unwrap().to_owned());
    });
    let app = app(procedures).with_connect_handler(move |stream, _| {
        for _ in 0..2 {
            let told = of_answers.clone();
            let done = move |outcome: Outcome| {
                let answer = outcome.unwrap();
                told.lock().unwrap().push(answer.text().unwrap().to_owned());
            };
            stream.call("ask", "", DEADLINE, done);
        }
    });
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    assert_eq!(client.receive_frame(), request(1, "ask", b""));
    assert_eq!(client.receive_frame(), request(2, "ask", b""));
    client.send_binary(notification("event", b"a"));
    client.send_binary(response(2, b"b"));
    client.send_binary(notification("event", b"c"));
    client.send_binary(response(1, b"d"));
    client.send_binary(notification("event", b"e"));
    eventually("all callbacks were called", || {
        told.lock().unwrap().len() == 5
    });
    assert_eq!(told.lock().unwrap().concat(), "abcde");
    running.shutdown(STOP);
}

#[test]
fn expired_call_fails_and_resets_at_the_client() {
    let (app, streams) = streams(app(Procedures::new()));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    let (outcomes, told) = mpsc::channel();
    stream.call("a", "", Duration::from_secs(3_600), into(&outcomes));
    assert_eq!(client.receive_frame(), request(1, "a", b""));
    let outcome = stream.call_wait("b", "", Duration::from_millis(20));
    assert_eq!(reason(outcome), CallErrorReason::TimedOut);
    assert_eq!(client.receive_frame(), request(2, "b", b""));
    assert_eq!(client.receive_frame(), reset(2));
    // The timer thread now waits for an hour, and must wake for an earlier expiry.
    stream.call("c", "", Duration::from_millis(20), into(&outcomes));
    assert_eq!(client.receive_frame(), request(3, "c", b""));
    let outcome = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(reason(outcome), CallErrorReason::TimedOut);
    assert_eq!(client.receive_frame(), reset(3));
    client.send_binary(response(3, b"too late"));
    client.send_binary(response(1, b"in time"));
    let outcome = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(outcome.unwrap().text(), Ok("in time"));
    assert!(told.try_recv().is_err(), "a callback was called twice");
    running.shutdown(STOP);
}

#[test]
fn disconnect_fails_calls_before_the_disconnect_handler() {
    let (events, told) = mpsc::channel();
    let (ended, called) = (events.clone(), events.clone());
    let app = app(
        Procedures::new().on_call("panic", |_| -> Result<(), CallError> {
            panic!("a panic on purpose")
        }),
    )
    .with_connect_handler(move |stream, _| {
        for name in ["first", "second"] {
            let events = called.clone();
            stream.call(name, "", DEADLINE, move |outcome| {
                events
                    .send(format!("{name} {:?}", reason(outcome)))
                    .unwrap();
                assert_eq!(name, "first", "a panic of one callback affected the other");
            });
        }
        let stream = Arc::new(stream);
        let events = called.clone();
        thread::spawn(move || {
            let outcome = stream.call_wait("third", "", DEADLINE);
            events.send(format!("third {:?}", reason(outcome))).unwrap();
        });
    })
    .with_disconnect_handler(move |_, _| ended.send("ended".to_owned()).unwrap());
    let (running, address) = start(app);
    for way in 0..3 {
        let mut client = connect(address, V1);
        for _ in 0..3 {
            client.receive_frame();
        }
        match way {
            0 => drop(client),
            1 => client.close(),
            _ => {
                client.send_binary(request(1, "panic", b""));
                client.receive_error(1, 4);
                assert_eq!(client.receive_close().0, 1011);
            }
        }
        let mut heard: Vec<String> = (0..4)
            .map(|_| told.recv_timeout(DEADLINE).unwrap())
            .collect();
        let last = heard.iter().rfind(|event| **event != "third Closed");
        assert_eq!(last.unwrap(), "ended");
        heard.sort();
        assert_eq!(
            heard,
            ["ended", "first Closed", "second Closed", "third Closed"]
        );
    }
    running.shutdown(STOP);
    assert!(told.try_recv().is_err(), "a callback was called twice");
}

#[test]
fn impossible_calls_fail_at_once() {
    let app = app(Procedures::new()).with_limits(
        Limits::default()
            .connection_calls_max(1)
            .message_bytes_max(1_000),
    );
    let (app, streams) = streams(app);
    let (running, address) = start(app);
    let now = |stream: &AsyncStream, data: &[u8]| {
        let (outcomes, told) = mpsc::channel();
        stream.call("name", data, DEADLINE, into(&outcomes));
        let by_closure = reason(told.try_recv().expect("the callback is called at once"));
        assert_eq!(reason(stream.call_wait("name", data, DEADLINE)), by_closure);
        by_closure
    };
    let plain = Client::connect(address);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    assert_eq!(now(&stream, b""), CallErrorReason::NotSpoken);
    drop(plain);
    let _old = connect(address, OLD);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    assert_eq!(now(&stream, b""), CallErrorReason::NotSpoken);
    let client = connect(address, V1);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    assert_eq!(now(&stream, &[0; 1_000]), CallErrorReason::TooLarge);
    let (outcomes, told) = mpsc::channel();
    stream.call("name", "", DEADLINE, into(&outcomes));
    assert_eq!(now(&stream, b""), CallErrorReason::TooMany);
    client.close();
    assert_eq!(
        reason(told.recv_timeout(DEADLINE).unwrap()),
        CallErrorReason::Closed
    );
    assert_eq!(now(&stream, b""), CallErrorReason::Closed);
    running.shutdown(STOP);
}

/// Counts the timer threads of this process.
#[cfg(target_os = "linux")]
fn timer_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // The kernel stores fifteen characters of a name, and a thread may end while this reads its files.
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == &"humphrey_ws timers"[..15])
        .count()
}

/// Returns the text of a room's message, with or without an id.
fn of_room(message: tungstenite::Message) -> Vec<u8> {
    match message {
        tungstenite::Message::Binary(frame) if frame.first() == Some(&7) => {
            let id_at = 2 + usize::from(frame[1]);
            frame[id_at + 2 + usize::from(frame[id_at])..].to_vec()
        }
        other => other.into_data().to_vec(),
    }
}

fn join(room: &str, since: &str) -> Vec<u8> {
    [&[room.len() as u8], room.as_bytes(), since.as_bytes()].concat()
}

/// Starts an app whose clients may join `news`, with a history of three messages, and `talk`.
fn rooms() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_history("news", HistoryLimits::messages(3).bytes(1_000))
        .with_join_handler(|stream, room| {
            assert_eq!(stream.path(), "/");
            ["news", "talk"].contains(&room)
        })
}

fn say(running: &RunningApp, room: &str, text: &str) {
    running.sender().room(room).broadcast(Message::new(text));
}

impl Joining for Client {}

trait Joining: Frames + Receive {
    /// Joins, and returns the messages before the reply, and the reply.
    fn join(&mut self, room: &str, since: &str) -> (Vec<Vec<u8>>, String) {
        self.send_request(9, "$join", &join(room, since));
        let mut before = Vec::new();
        loop {
            let message = of_room(self.receive_any());
            match message.strip_prefix(response(9, b"").as_slice()) {
                Some(id) => return (before, String::from_utf8(id.to_vec()).unwrap()),
                None => before.push(message),
            }
        }
    }

    fn receive_of_room(&mut self) -> Vec<u8> {
        of_room(self.receive_any())
    }
}

trait Receive {
    fn receive_any(&mut self) -> tungstenite::Message;
    fn send_request(&mut self, id: u32, name: &str, payload: &[u8]);
}

impl Receive for Client {
    fn receive_any(&mut self) -> tungstenite::Message {
        self.receive()
    }

    fn send_request(&mut self, id: u32, name: &str, payload: &[u8]) {
        self.send_binary(request(id, name, payload));
    }
}

#[test]
fn client_joins_and_leaves_the_rooms_it_may() {
    let (running, address) = start(rooms());
    let mut client = connect(address, V1);
    assert_eq!(client.join("talk", "new"), (vec![], String::new()));
    assert_eq!(running.sender().room("talk").len(), 1);
    say(&running, "talk", "hello");
    assert_eq!(client.receive_of_room(), b"hello");
    client.send_binary(request(1, "$leave", b"talk"));
    assert_eq!(client.receive_frame(), response(1, b""));
    assert_eq!(running.sender().room("talk").len(), 0);
    client.send_binary(request(2, "$join", &join("secret", "new")));
    client.receive_error(2, 6);
    for (payload, id) in [
        (&b""[..], 3),
        (b"\x05talk", 4),
        (&join("talk", "yesterday"), 5),
    ] {
        client.send_binary(request(id, "$join", payload));
        client.receive_error(id, 2);
    }
    client.send_binary(request(6, "$leave", b"\xff"));
    client.receive_error(6, 2);
    assert!(running.sender().room("talk").is_empty());
    running.shutdown(STOP);
    // Without a handler that permits it, no room may be joined.
    let (running, address) = start(app(Procedures::new()));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "$join", &join("talk", "new")));
    client.receive_error(1, 6);
    running.shutdown(STOP);
}

#[test]
fn join_replays_missed_messages_before_the_reply() {
    let (running, address) = start(rooms());
    let mut client = connect(address, V1);
    // An empty history has a position to resume from.
    let (before, start_id) = client.join("news", "new");
    assert_eq!(before, Vec::<Vec<u8>>::new());
    assert!(start_id.ends_with("-0"), "{start_id}");
    client.close();
    for text in ["one", "two"] {
        say(&running, "news", text);
    }
    let last = running.sender().room("news").last_id().unwrap().to_string();
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect::<Vec<_>>()
    };
    for (since, expected) in [
        ("new", &[][..]),
        ("all", &["one", "two"]),
        (&start_id, &["one", "two"]),
        (&last, &[]),
    ] {
        let mut client = connect(address, V1);
        assert_eq!(
            client.join("news", since),
            (texts(expected), last.clone()),
            "{since}"
        );
        client.close();
    }
    for text in ["three", "four"] {
        say(&running, "news", text);
    }
    // The history no longer contains the first message.
    let elsewhere = "123-1";
    for since in [start_id.as_str(), elsewhere] {
        let mut client = connect(address, V1);
        let (before, id) = client.join("news", since);
        let mut expected = vec![item(9, b"gap")];
        expected.extend(texts(&["two", "three", "four"]));
        assert_eq!(before, expected, "{since}");
        assert!(id.ends_with("-4"), "{id}");
        say(&running, "nobody", "");
        client.close();
    }
    running.shutdown(STOP);
}

#[test]
fn live_messages_continue_from_the_id_of_the_reply() {
    let (running, address) = start(rooms());
    say(&running, "news", "one");
    let mut client = connect(address, V1);
    let (_, id) = client.join("news", "new");
    say(&running, "news", "two");
    let last = running.sender().room("news").last_id().unwrap();
    assert_eq!(id, format!("{:x}-{}", last.epoch(), last.sequence() - 1));
    let head = [b"\x07\x04news", &[last.to_string().len() as u8][..]].concat();
    let expected = [&head, last.to_string().as_bytes(), b"\x01two"].concat();
    assert_eq!(client.receive_frame(), expected);
    // The older subprotocol has no ids.
    let mut old = connect(address, OLD);
    eventually("both clients are connected", || {
        running.sender().connections() == 2
    });
    let room = running.sender().room("news");
    let everyone = running.sender().everyone().members();
    let other = everyone.into_iter().find(|id| !room.contains(*id));
    room.join(other.unwrap());
    room.notify("tick", "7");
    assert_eq!(old.receive_frame(), notification("tick", b"7"));
    assert!(client.receive_frame().ends_with(b"\x02\x01\x04tick7"));
    running.shutdown(STOP);
}

#[test]
fn member_joining_since_an_id_gets_missed_messages() {
    let (running, address) = start(
        rooms()
            .with_connect_handler(|stream, _| stream.join("news"))
            .with_room_handler(|_, _, change, _| {
                assert!(matches!(change, Presence::Joined | Presence::Left))
            }),
    );
    say(&running, "news", "one");
    let first = running.sender().room("news").last_id().unwrap().to_string();
    say(&running, "news", "two");
    let mut client = connect(address, V1);
    assert_eq!(client.join("news", &first).0, [b"two".to_vec()]);
    assert_eq!(running.sender().room("news").len(), 1);
    running.shutdown(STOP);
}

#[test]
fn notifications_share_their_bytes_among_recipients() {
    let (running, address) =
        start(app(Procedures::new()).with_connect_handler(|stream, _| stream.join("main")));
    let mut clients = [
        connect(address, V1),
        connect(address, OLD),
        Client::connect(address),
    ];
    eventually("all clients are in the room", || {
        running.sender().room("main").len() == 3
    });
    running.sender().room("main").notify("tick", "7");
    for client in &mut clients {
        assert_eq!(client.receive_frame(), notification("tick", b"7"));
    }
    let first = running.sender().room("main").members()[0];
    running
        .sender()
        .room("main")
        .notify_except(first, "tock", [8]);
    running.sender().everyone().notify("end", "");
    let mut tocks = 0;
    for client in &mut clients {
        let mut frame = client.receive_frame();
        if frame == notification("tock", &[8]) {
            tocks += 1;
            frame = client.receive_frame();
        }
        assert_eq!(frame, notification("end", b""));
    }
    assert_eq!(tocks, 2);
    running.shutdown(STOP);
}

#[cfg(target_os = "linux")]
#[test]
fn timer_thread_runs_while_calls_wait() {
    // Runs in its own process, because the other tests of this file have timers too.
    if std::env::var_os("ALONE").is_none() {
        let name = "procedures_server::timer_thread_runs_while_calls_wait";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("ALONE", "yes")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        return assert!(status.success());
    }
    let (app, streams) = streams(app(Procedures::new()));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    let stream = streams.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        timer_threads(),
        0,
        "a timer thread runs before the first call"
    );
    let (outcomes, told) = mpsc::channel();
    stream.call("a", "", Duration::from_millis(10), into(&outcomes));
    client.receive_frame();
    assert_eq!(
        reason(told.recv_timeout(DEADLINE).unwrap()),
        CallErrorReason::TimedOut
    );
    eventually("the idle timer thread ends", || timer_threads() == 0);
    stream.call("b", "", Duration::from_secs(3_600), into(&outcomes));
    eventually("the timer thread runs", || timer_threads() == 1);
    drop(stream);
    running.shutdown(STOP);
    eventually("the timer thread ends with the app", || {
        timer_threads() == 0
    });
    assert_eq!(
        reason(told.recv_timeout(DEADLINE).unwrap()),
        CallErrorReason::Closed
    );
}
