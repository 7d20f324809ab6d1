//! Procedures with slow and hostile clients: every call ends once, and no client gets messages of rooms it may not join.

use crate::frames;
use crate::support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use frames::{
    Frames, OLD, STOP, V1, app, connect, notification, request, reset, response, with_id,
};
use humphrey_ws::procedures::{CallError, CallErrorReason, Payload, Procedures, Reply};
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, HistoryLimits, Limits, Message, SendErrorReason, SlowConsumer,
};
use support::{Client, DEADLINE, eventually, start};

#[test]
fn error_with_too_long_text_still_ends_its_call() {
    let procedures = Procedures::new().on_call("repeat", |call| {
        Err::<(), _>(CallError::refused(call.text()?.repeat(2)))
    });
    let app = app(procedures).with_limits(Limits::default().message_bytes_max(1_000));
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    client.send_binary(request(1, "repeat", &[b'a'; 900]));
    client.send_binary(request(2, "repeat", b"a"));
    client.receive_error(1, 6);
    assert_eq!(client.receive_error(2, 6), "aa");
    running.shutdown(STOP);
}

#[test]
fn client_leaves_only_rooms_it_may_join() {
    let muted = |stream: AsyncStream, _| stream.join("muted");
    let with_rooms = app(Procedures::new()).with_join_handler(|_, room| room == "talk");
    for app in [with_rooms, app(Procedures::new())] {
        let (running, address) = start(app.with_connect_handler(muted));
        let mut client = connect(address, V1);
        client.send_binary(request(1, "$leave", b"muted"));
        client.receive_error(1, 6);
        assert_eq!(running.sender().room("muted").len(), 1);
        running.shutdown(STOP);
    }
}

#[test]
fn reply_dropped_by_on_cancel_ends_a_slow_clients_call() {
    let (streams, connected) = mpsc::channel();
    let (dropped, told) = mpsc::channel();
    let procedures = Procedures::new().on_call("later", move |call| {
        let (reply, dropped) = (call.defer(), dropped.clone());
        call.on_cancel(move || {
            drop(reply);
            dropped.send(()).unwrap();
        });
        call.stream().send(Message::new("begun"));
    });
    let app = app(procedures)
        .with_shards(1)
        .with_connect_handler(move |stream, _| streams.send(stream).unwrap())
        .with_limits(
            Limits::default()
                .outbox_bytes_max(256 << 10)
                // Less than the other half of the outbox, which must not overflow.
                .mailbox_bytes_max(64 << 10),
        );
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    let stream = connected.recv_timeout(DEADLINE).unwrap();
    client.send_binary(request(1, "later", b""));
    assert_eq!(client.receive_text(), "begun");
    // The client reads nothing more until its outbox is full.
    let much = Message::new_binary(vec![9; 8 << 10]);
    let mut other = connect(address, V1);
    let mut full = 0;
    eventually("its outbox stays full", || {
        match stream.try_send(much.clone()) {
            Ok(()) => full = 0,
            Err(error) => {
                assert_eq!(error.reason, SendErrorReason::Full);
                full += 1;
                // The shard has had a turn in the meantime, and has written as much as it could.
                other.send_binary(request(full, "$ping", b""));
                assert_eq!(other.receive_frame(), response(full, b""));
            }
        }
        full > 100
    });
    client.send_binary(reset(1));
    told.recv_timeout(DEADLINE).unwrap();
    client.send_binary(request(2, "$ping", b""));
    let mut ends = Vec::new();
    while ends.last() != Some(&response(2, b"")) {
        let frame = client.receive_frame();
        if frame[0] != 9 {
            ends.push(frame);
        }
    }
    assert!(ends[0].starts_with(&with_id(5, 1, &[3])), "{ends:?}");
    assert_eq!(ends.len(), 2, "{ends:?}");
    running.shutdown(STOP);
}

#[test]
fn each_call_to_a_client_is_answered_once() {
    const CALLS: usize = 300;
    let told: Arc<Mutex<HashMap<(usize, usize), usize>>> = Arc::default();
    let (ended, ends) = mpsc::channel();
    let (count, connections) = (told.clone(), AtomicUsize::new(0));
    let app = app(Procedures::new())
        .with_connect_handler(move |stream, _| {
            let connection = connections.fetch_add(1, Ordering::SeqCst);
            for call in 0..CALLS {
                let told = count.clone();
                let timeout = Duration::from_millis(call as u64 / 10);
                stream.call("ask", "", timeout, move |_| {
                    *told.lock().unwrap().entry((connection, call)).or_default() += 1;
                });
            }
        })
        .with_disconnect_handler(move |_, _| ended.send(()).unwrap());
    let (running, address) = start(app);
    const CONNECTIONS: usize = 30;
    for connection in 0..CONNECTIONS {
        let mut client = connect(address, V1);
        for _ in 0..connection * 10 {
            let frame = client.receive_frame();
            if frame[0] == 2 {
                let id = u32::from_be_bytes(frame[1..5].try_into().unwrap());
                client.send_binary(response(id, b""));
                client.send_binary(response(id, b""));
            }
        }
        match connection % 3 {
            0 => drop(client),
            1 => client.close(),
            _ => {
                client.send_binary(vec![]);
                drop(client);
            }
        }
        ends.recv_timeout(DEADLINE).unwrap();
    }
    running.shutdown(STOP);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), CONNECTIONS * CALLS);
    assert!(told.values().all(|&times| times == 1));
}

#[test]
fn callback_may_call_and_wait() {
    let (outcomes, told) = mpsc::channel();
    let app = app(Procedures::new()).with_connect_handler(move |stream, _| {
        let first = stream.call_wait("first", "", DEADLINE).unwrap();
        let outcomes = outcomes.clone();
        let stream = Arc::new(stream);
        let again = stream.clone();
        stream.call("second", first, DEADLINE, move |second| {
            let third = again.call_wait("third", second.unwrap(), DEADLINE);
            // A call that times out is reset as well.
            let timeout = Duration::from_millis(5);
            let once_more = again.clone();
            again.call("never", "", timeout, move |never| {
                let reason = never.unwrap_err().reason;
                assert_eq!(reason, CallErrorReason::TimedOut);
                outcomes
                    .send((third, once_more.call_wait("last", "", DEADLINE)))
                    .unwrap();
            });
        });
    });
    let (running, address) = start(app);
    let mut client = connect(address, V1);
    for (id, name, came, answer) in [
        (1, "first", &b""[..], &b"1"[..]),
        (2, "second", b"1", b"2"),
        (3, "third", b"2", b"3"),
    ] {
        assert_eq!(client.receive_frame(), request(id, name, came));
        client.send_binary(response(id, answer));
    }
    assert_eq!(client.receive_frame(), request(4, "never", b""));
    assert_eq!(client.receive_frame(), reset(4));
    assert_eq!(client.receive_frame(), request(5, "last", b""));
    client.send_binary(response(5, b"5"));
    let (third, last) = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(third.unwrap().bytes(), b"3");
    assert_eq!(last.unwrap().bytes(), b"5");
    running.shutdown(STOP);
}

fn join(room: &str, since: &str) -> Vec<u8> {
    [&[room.len() as u8], room.as_bytes(), since.as_bytes()].concat()
}

/// Returns the sequence and the text of a message of a room with a history.
fn of_room(frame: &[u8]) -> Option<(String, Vec<u8>)> {
    let rest = frame.strip_prefix(&[7])?;
    let rest = &rest[1 + usize::from(rest[0])..];
    let (id, rest) = rest[1..].split_at(usize::from(rest[0]));
    Some((String::from_utf8(id.to_vec()).unwrap(), rest[1..].to_vec()))
}

#[test]
fn joins_during_broadcasts_lose_and_repeat_nothing() {
    const MESSAGES: usize = 3_000;
    let (running, address) = start(
        AsyncWebsocketApp::<()>::new()
            .with_history("news", HistoryLimits::messages(MESSAGES).bytes(1 << 20))
            .with_join_handler(|_, _| true)
            .with_connect_handler(|stream, _| {
                if stream.subprotocol().is_none() {
                    stream.join("news");
                }
            }),
    );
    let mut plain = Client::connect(address);
    eventually("the client is in the room", || {
        running.sender().room("news").len() == 1
    });
    let clients: Vec<_> = (0..3)
        .map(|n| {
            thread::spawn(move || {
                let mut last = "all".to_owned();
                let mut texts = Vec::new();
                let mut id = 0;
                while texts.len() < MESSAGES {
                    // Joins again during the broadcasts, also on another connection.
                    let mut client = connect(address, V1);
                    for round in 0..5 {
                        id += 1;
                        client.send_binary(request(id, "$join", &join("news", &last)));
                        let mut is_joined = false;
                        let mut more = 20 * (n + 1);
                        while !is_joined || (more > 0 && texts.len() < MESSAGES) {
                            let frame = client.receive_frame();
                            if let Some((of, text)) = of_room(&frame) {
                                last = of;
                                texts.push(String::from_utf8(text).unwrap());
                                more -= usize::from(is_joined);
                            } else {
                                assert!(frame.starts_with(&response(id, b"")), "{frame:?}");
                                is_joined = true;
                            }
                        }
                        if round % 2 == 0 {
                            id += 1;
                            client.send_binary(request(id, "$leave", b"news"));
                            loop {
                                let frame = client.receive_frame();
                                let Some((of, text)) = of_room(&frame) else {
                                    assert_eq!(frame, response(id, b""));
                                    break;
                                };
                                last = of;
                                texts.push(String::from_utf8(text).unwrap());
                            }
                        } else {
                            // Messages that arrive in the meantime are replayed, because the client has not seen them.
                            break;
                        }
                    }
                }
                texts
            })
        })
        .collect();
    let expected: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
    // No faster than the clients, so that they join and leave during the broadcasts.
    for some in expected.chunks(10) {
        for n in some {
            running.sender().room("news").broadcast(Message::new(n));
        }
        for n in some {
            assert_eq!(&plain.receive_text(), n);
        }
    }
    for client in clients {
        assert_eq!(client.join().unwrap(), expected);
    }
    running.shutdown(STOP);
}

#[test]
fn join_during_a_close_leaves_no_member() {
    let (running, address) = start(
        AsyncWebsocketApp::<()>::new()
            .with_history("news", HistoryLimits::messages(10).bytes(1_000))
            .with_join_handler(|_, _| true),
    );
    running.sender().room("news").broadcast(Message::new("old"));
    for n in 0..200u32 {
        let mut client = connect(address, V1);
        client.send_at_once((0..4).map(|id| match (id + n) % 3 {
            0 => request(id, "$join", &join("talk", "new")),
            1 => request(id, "$join", &join("news", "all")),
            _ => request(id, "$leave", b"news"),
        }));
        match n % 3 {
            0 => drop(client),
            1 => client.close(),
            _ => {
                client.send_binary(vec![]);
                drop(client);
            }
        }
    }
    eventually("all clients have left", || {
        running.sender().connections() == 0
    });
    eventually("no member is left in a room", || {
        let sender = running.sender();
        sender.room("news").is_empty()
            && sender.room("talk").is_empty()
            && sender.metrics().room_members == 0
    });
    assert_eq!(running.sender().metrics().handler_panics, 0);
    running.shutdown(STOP);
}

struct Told(Arc<AtomicBool>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn reply_kept_beyond_its_app_is_harmless() {
    let (replies, waiting) = mpsc::channel();
    let is_dropped = Arc::new(AtomicBool::new(false));
    let told = Told(is_dropped.clone());
    let procedures = Procedures::new().on_call("later", move |call| {
        let _ = &told;
        replies.send(call.defer()).unwrap();
    });
    let (running, address) = start(app(procedures));
    let mut client = connect(address, V1);
    client.send_binary(request(1, "later", b""));
    client.send_binary(request(2, "later", b""));
    let reply = waiting.recv_timeout(DEADLINE).unwrap();
    let second = waiting.recv_timeout(DEADLINE).unwrap();
    let sender = running.sender();
    running.shutdown(STOP);
    assert!(reply.cancelled());
    assert_eq!(reply.item("").unwrap_err().reason, CallErrorReason::Closed);
    reply.ok("to nobody");
    eventually("the values of the app are dropped", || {
        is_dropped.load(Ordering::SeqCst)
    });
    drop(second);
    drop(sender);
}

/// A small pseudorandom generator with a fixed seed.
fn dice(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    }
}

#[test]
fn arbitrary_frames_harm_no_other_client() {
    let procedures = Procedures::new()
        .on_notification("event", |event| {
            event.stream().notify("event", event.data())
        })
        .on_call("echo", |call| Ok(call.data().clone()))
        .on_call("drop", |call| drop(call.defer()))
        .on_call("ask", |call| {
            let reply = call.defer();
            let done = move |outcome: Result<Payload, CallError>| match outcome {
                Ok(answer) => reply.ok(answer),
                Err(error) => reply.error(error),
            };
            call.stream()
                .call("back", "", Duration::from_millis(3), done);
        })
        .on_call("wait", |call| {
            let reply = call.defer();
            call.on_cancel(move || drop(reply));
        });
    let app = app(procedures)
        .with_history("news", HistoryLimits::messages(5).bytes(1_000))
        .with_join_handler(|_, room| room != "secret")
        .with_limits(Limits::default().connection_calls_max(5));
    let (running, address) = start(app);
    for seed in 1..150 {
        let mut dice = dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let subprotocol = [V1, OLD][dice(2)];
        let mut client = connect(address, subprotocol);
        let names = [
            "event", "echo", "drop", "ask", "wait", "$ping", "$join", "$leave", "x",
        ];
        for _ in 0..60 {
            let id = dice(6) as u32;
            let name = names[dice(names.len())];
            let payload = match dice(4) {
                0 => join(
                    ["news", "talk", "secret"][dice(3)],
                    ["new", "all", "12-3"][dice(3)],
                ),
                1 => b"news".to_vec(),
                len => vec![b'a'; len * 50],
            };
            let mut frame = match dice(8) {
                0 => notification(name, &payload),
                1..=4 => request(id + dice(1_000) as u32, name, &payload),
                5 => reset(id),
                6 => response(id, &payload),
                _ => with_id(5, id, b"\x02"),
            };
            if dice(200) == 0 {
                let at = dice(frame.len());
                frame[at] = dice(256) as u8;
            }
            let frame = tungstenite::Message::binary(frame);
            if client.0.send(frame).is_err() {
                break;
            }
        }
    }
    eventually("all clients have left", || {
        running.sender().connections() == 0
    });
    assert_eq!(running.sender().metrics().handler_panics, 0);
    let mut client = connect(address, V1);
    client.send_binary(request(1, "echo", b"!"));
    assert_eq!(client.receive_frame(), response(1, b"!"));
    running.shutdown(STOP);
}

#[test]
fn longest_message_reaches_clients_that_get_ids() {
    for slow_consumer in [
        SlowConsumer::Disconnect,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        SlowConsumer::Pace {
            bytes_per_second_min: 1,
            patience: DEADLINE,
        },
    ] {
        let app = AsyncWebsocketApp::<()>::new()
            .with_history("news", HistoryLimits::messages(2).bytes(1 << 20))
            .with_join_handler(|_, _| true)
            .with_slow_consumer(slow_consumer)
            .with_limits(
                Limits::default()
                    .message_bytes_max(100_000)
                    .mailbox_bytes_max(1_000)
                    .outbox_bytes_max(1_000)
                    // A replay waits here in full, since a busy client may take nothing of it at first. Each shard has a share.
                    .outboxes_bytes_max(4 << 20),
            );
        let (running, address) = start(app);
        let mut client = connect(address, V1);
        client.send_binary(request(1, "$join", &join("news", "new")));
        assert!(client.receive_frame().starts_with(&response(1, b"")));
        let long = Message::new_binary(vec![9; 100_000]);
        for _ in 0..2 {
            running.sender().room("news").broadcast(long.clone());
            let (_, message) = of_room(&client.receive_frame()).unwrap();
            assert_eq!(message.len(), 100_000);
        }
        let mut other = connect(address, V1);
        other.send_binary(request(1, "$join", &join("news", "all")));
        for _ in 0..2 {
            let (_, message) = of_room(&other.receive_frame()).unwrap();
            assert_eq!(message.len(), 100_000);
        }
        assert!(other.receive_frame().starts_with(&response(1, b"")));
        running.shutdown(STOP);
    }
}

#[test]
fn request_has_one_end_and_parts_only_before_it() {
    let (later, deferred) = mpsc::channel::<(u8, Reply)>();
    thread::spawn(move || {
        for (n, reply) in deferred {
            (0..n).for_each(|_| thread::yield_now());
            let _ = reply.item("half");
            match n % 3 {
                0 => reply.ok("whole"),
                1 => reply.error("broken"),
                _ => drop(reply),
            }
        }
    });
    let procedures = Procedures::new()
        .on_call("echo", |call| Ok(call.data().clone()))
        .on_call("later", move |call| {
            later.send((call.data()[0], call.defer())).unwrap();
        })
        .on_call("parts", |call| {
            for n in 0..call.data()[0] % 8 {
                call.item([n])?;
            }
            Ok("end")
        })
        .on_call("runs", |call| {
            call.wait_cancelled(Duration::from_millis(3));
            Err(call.abort_error())
        })
        .on_call("waits", |call| {
            let reply = call.defer();
            call.on_cancel(move || drop(reply));
        })
        .on_call("asks", |call| {
            let reply = call.defer();
            let done = move |outcome: Result<Payload, CallError>| match outcome {
                Ok(answer) => reply.ok(answer),
                Err(error) => reply.error(error),
            };
            let timeout = Duration::from_millis(2);
            call.stream().call("back", "", timeout, done);
        });
    let app = app(procedures)
        .with_history("news", HistoryLimits::messages(5).bytes(1_000))
        .with_join_handler(|_, room| room == "news")
        .with_limits(Limits::default().connection_calls_max(12));
    let (running, address) = start(app);
    let names = [
        "echo", "later", "parts", "runs", "waits", "asks", "$ping", "$join", "$leave", "nobody",
    ];
    for seed in 1..40 {
        let mut dice = dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut client = connect(address, V1);
        let mut in_flight: HashMap<u32, &str> = HashMap::new();
        for round in 0..30 {
            let mut frames = Vec::new();
            for _ in 0..dice(20) {
                let id = dice(30) as u32;
                if in_flight.contains_key(&id) {
                    frames.push(reset(id));
                    continue;
                }
                let name = names[dice(names.len())];
                let payload = match name {
                    "$join" => join(["news", "else"][dice(2)], ["new", "all", "1-1"][dice(3)]),
                    "$leave" => b"news".to_vec(),
                    _ => vec![dice(256) as u8],
                };
                frames.push(request(id, name, &payload));
                in_flight.insert(id, name);
            }
            let is_last = round == 29;
            let mut waiting: Vec<u32> = in_flight.keys().copied().collect();
            waiting.retain(|id| in_flight[id] == "waits" && (is_last || dice(2) == 0));
            frames.extend(waiting.into_iter().map(reset));
            client.send_at_once(frames);
            let stay = in_flight.values().filter(|name| **name == "waits").count();
            let stay = if is_last { 0 } else { stay + dice(5) };
            while in_flight.len() > stay {
                let frame = client.receive_frame();
                if frame[0] == 7 {
                    continue;
                }
                let id = u32::from_be_bytes(frame[1..5].try_into().unwrap());
                match frame[0] {
                    2 if dice(2) == 0 => client.send_binary(response(id, b"back")),
                    2 | 3 => {}
                    4 | 5 => {
                        let ended = in_flight.remove(&id);
                        assert!(ended.is_some(), "{frame:?} is of no call in flight");
                    }
                    _ => assert!(in_flight.contains_key(&id), "{frame:?}"),
                }
            }
        }
        // Nothing more arrives, except for replies to its own calls.
        client.send_binary(request(99, "$ping", b""));
        loop {
            let frame = client.receive_frame();
            if frame == response(99, b"") {
                break;
            }
            assert!([2, 3, 7].contains(&frame[0]), "{frame:?}");
        }
    }
    assert_eq!(running.sender().metrics().handler_panics, 0);
    assert_eq!(running.sender().metrics().protocol_errors, 0);
    running.shutdown(STOP);
}
