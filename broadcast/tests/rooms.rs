//! Rooms and histories of the program, over real sockets.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use support::{Client, DEADLINE, Program, eventually, http_get};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

const NO_WELCOME: &str = "--no-welcome";

/// Waits until the room has this number of members. A client joins shortly after its handshake.
fn expect_members(program: &Program, room: &str, members: usize) {
    let expected = format!("\"room\": {members}}}");
    eventually("the clients are in the room", || {
        let path = format!("/clients/{room}");
        http_get(program.address(), &path)
            .2
            .trim()
            .ends_with(&expected)
    });
}

/// Connects to a room, and returns once the client has joined.
fn connect_to(program: &Program, room: &str, members: usize) -> Client {
    let client = program.connect_to(&format!("/{room}"));
    expect_members(program, room, members);
    client
}

/// Connects to everyone, and returns once the client is served: its message is handled after the join.
fn connect(program: &Program) -> Client {
    let mut client = program.connect();
    client.send(Message::text("in?"));
    assert_eq!(client.text(), "in?");
    client
}

#[test]
fn room_option_sends_input_to_that_room_only() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let mut arguments = vec![NO_WELCOME, "--room", "Zürich & more"];
        arguments.extend(history);
        let mut program = Program::start(&arguments);
        let mut inside = connect_to(&program, "Z%C3%BCrich%20&%20more", 1);
        let mut elsewhere = connect_to(&program, "news", 1);
        let mut outside = program.connect();
        program.write(b"one\ntwo\n");
        assert_eq!((inside.text(), inside.text()), ("one".into(), "two".into()));
        for client in [&mut elsewhere, &mut outside] {
            client.send(Message::text("mine"));
            assert_eq!(client.text(), "mine", "a message of the room was skipped");
        }
    }
}

#[test]
fn message_to_everyone_reaches_members_of_rooms() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let mut arguments = vec![NO_WELCOME];
        arguments.extend(history);
        let mut program = Program::start(&arguments);
        let (mut inside, mut outside) = (connect_to(&program, "news", 1), connect(&program));
        for n in 0..100 {
            program.write(format!("{n}\n").as_bytes());
        }
        for n in 0..100 {
            assert_eq!(inside.text(), n.to_string());
            assert_eq!(outside.text(), n.to_string());
        }
    }
}

#[test]
fn on_message_broadcast_sends_to_the_senders_room() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let mut arguments = vec![NO_WELCOME, "--on-message", "broadcast"];
        arguments.extend(history);
        let program = Program::start(&arguments);
        let mut sender = connect_to(&program, "news", 1);
        let mut member = connect_to(&program, "news", 2);
        let mut elsewhere = connect_to(&program, "sport", 1);
        let mut outside = program.connect();
        sender.send(Message::text("to the room"));
        assert_eq!(sender.text(), "to the room");
        outside.send(Message::text("to everyone"));
        assert_eq!(elsewhere.text(), "to everyone");
        assert_eq!(outside.text(), "to everyone");
        assert_eq!(member.text(), "to the room");
        assert_eq!(member.text(), "to everyone");
    }
}

#[test]
fn announcement_goes_to_the_room_and_is_not_kept() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let program = Program::start(history);
        let welcome = |client: &Client| format!("Welcome, {}!", client.local_addr());
        let mut inside = program.connect_to("/news");
        assert_eq!(inside.text(), welcome(&inside));
        let mut elsewhere = program.connect_to("/sport");
        assert_eq!(elsewhere.text(), welcome(&elsewhere));
        let mut outside = program.connect();
        for client in [&mut inside, &mut elsewhere] {
            assert_eq!(
                client.text(),
                welcome(&outside),
                "not announced to everyone"
            );
        }
        assert_eq!(outside.text(), welcome(&outside));
        // Earlier announcements are not replayed.
        let mut second = program.connect_to("/news");
        assert_eq!(second.text(), welcome(&second));
        assert_eq!(inside.text(), welcome(&second));
    }
}

#[test]
fn invalid_room_name_is_a_clear_error() {
    let program = Program::start(&[NO_WELCOME]);
    let of_bytes = |n: usize| format!("/{}", "x".repeat(n));
    for path in [of_bytes(241), "/%".into(), "/%FF".into(), "/%2e%2E".into()] {
        let status = Client::connect(program.address(), &path).unwrap_err();
        assert_eq!(status, 400, "{path}");
        let (status, _, body) = http_get(program.address(), &format!("/clients{path}"));
        assert_eq!(status, 400, "{path}");
        let words = if path.contains("%2e") {
            "segment"
        } else {
            "room"
        };
        assert!(body.contains(words), "{body}");
    }
    program.connect_to(&of_bytes(240));
    let (code, out, err) = support::run(&["--room", &of_bytes(240)]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.contains("240 bytes") && err.lines().count() == 1,
        "{err}"
    );
}

#[test]
fn join_over_max_rooms_is_closed_with_1013_and_warned_once() {
    let mut program = Program::start(&[NO_WELCOME, "--max-rooms", "2"]);
    let first = connect_to(&program, "a", 1);
    let _second = connect_to(&program, "b", 1);
    for _ in 0..2 {
        program.connect_to("/c").expect_close(CloseCode::Again);
    }
    let _third = connect_to(&program, "a", 2);
    drop(first);
    program.expect_line("--max-rooms");
    program.signal(Signal::TERM);
    program.expect_exit(0);
    let rest = program.rest_of_stderr();
    assert!(!rest.contains("--max-rooms"), "{rest}");
}

#[test]
fn empty_rooms_with_history_are_evicted() {
    let program = Program::start(&[NO_WELCOME, "--history", "9", "--max-rooms", "3"]);
    for n in 0..20 {
        drop(connect_to(&program, &format!("room-{n}"), 1));
        expect_members(&program, &format!("room-{n}"), 0);
    }
}

#[test]
fn rooms_of_strangers_do_not_evict_the_input_room() {
    let arguments = [
        "--history=9",
        "--max-rooms=3",
        "--publish-token=x",
        "--room=input",
    ];
    let mut program = Program::start(&[&arguments[..], &[NO_WELCOME]].concat());
    let publish = |program: &Program, path: &str, text: &str| {
        let token = "Authorization: Bearer x\r\n";
        support::http(program.address(), "POST", path, token, text.as_bytes()).0
    };
    program.write(b"typed\n");
    assert_eq!(program.connect_to("/input?since=all").text(), "typed");
    assert_eq!(publish(&program, "/publish/other", "kept"), 200);
    assert_eq!(publish(&program, "/publish", "for all"), 200);
    // Neither the input room nor that of everyone counts.
    let held: Vec<_> = (0..2)
        .map(|n| connect_to(&program, &format!("stranger-{n}"), 1))
        .collect();
    for n in 2..50 {
        let stranger = program.connect_to(&format!("/stranger-{n}?since=now"));
        stranger.expect_close(CloseCode::Again);
    }
    let mut late = program.connect_to("/other?since=all");
    assert_eq!(
        (late.text(), late.text()),
        ("for all".into(), "kept".into())
    );
    assert_eq!(program.connect_to("/?since=").text(), "for all");
    // Rooms with patterns of their own keep their history.
    program.write(b"more\n");
    let mut input = program.connect_to("/input?since=all");
    assert_eq!(
        (input.text(), input.text()),
        ("for all".into(), "typed".into())
    );
    assert_eq!(input.text(), "more");
    assert_eq!(publish(&program, "/publish", "again"), 200);
    drop(held);
    for n in 0..50 {
        drop(connect_to(&program, &format!("gone-{n}"), 1));
        expect_members(&program, &format!("gone-{n}"), 0);
    }
    let mut late = program.connect_to("/other?since=all");
    assert_eq!(
        (late.text(), late.text()),
        ("for all".into(), "again".into())
    );
    assert_eq!(late.text(), "kept");
}

#[test]
fn publish_to_a_room_that_cannot_keep_it_is_503() {
    let program = Program::start(&[
        NO_WELCOME,
        "--history=9",
        "--max-rooms=1",
        "--publish-token=x",
    ]);
    let _held = connect_to(&program, "held", 1);
    let token = "Authorization: Bearer x\r\n";
    let (status, headers, body) =
        support::http(program.address(), "POST", "/publish/new", token, b"x");
    assert_eq!(status, 503, "{body}");
    assert!(
        headers.contains("retry-after") && body.contains("--max-rooms"),
        "{headers} {body}"
    );
    let everyone = support::http(program.address(), "POST", "/publish", token, b"x");
    assert_eq!(everyone.0, 200);
}

#[test]
fn new_client_gets_the_histories_of_everyone_and_its_room() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "3", "--on-message", "broadcast"]);
    let mut witness = connect_to(&program, "news", 1);
    for n in 0..5 {
        program.write(format!("line {n}\n").as_bytes());
        assert_eq!(witness.text(), format!("line {n}"));
        witness.send(Message::binary(vec![0xff, n]));
        assert_eq!(witness.message(), Message::binary(vec![0xff, n]));
    }
    let (mut inside, mut outside) = (
        program.connect_to("/news?since=all"),
        program.connect_to("/?since="),
    );
    for n in 2..5 {
        assert_eq!(inside.text(), format!("line {n}"));
        assert_eq!(outside.text(), format!("line {n}"));
    }
    for n in 2..5 {
        assert_eq!(inside.message(), Message::binary(vec![0xff, n]));
    }
    let mut late = ["/news", "/news?since=now"].map(|path| program.connect_to(path));
    program.write(b"live\n");
    for client in [&mut inside, &mut outside].into_iter().chain(&mut late) {
        assert_eq!(client.text(), "live");
    }
}

#[test]
fn message_between_handshake_and_join_is_replayed() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9"]);
    for n in 0..50 {
        // Concurrently: the line may be read before the client has joined.
        let mut client = program.connect_to(if n % 2 == 0 { "/" } else { "/?since=now" });
        program.write(format!("{n}\n").as_bytes());
        assert_eq!(client.text(), n.to_string());
    }
}

#[test]
fn history_is_bounded_in_bytes() {
    const LINE_BYTES: usize = 100 << 10;
    let mut program = Program::start(&[NO_WELCOME, "--history", "1000"]);
    let mut witness = program.connect();
    for n in 10..25 {
        let line = format!("{n} {}\n", "x".repeat(LINE_BYTES));
        program.write(line.as_bytes());
        assert!(witness.text().starts_with(&format!("{n} ")));
    }
    let mut late = program.connect_to("/?since=all");
    for n in 15..25 {
        assert!(late.text().starts_with(&format!("{n} ")));
    }
}

#[test]
fn json_message_has_room_id_and_time() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9", "--on-message", "broadcast"]);
    let mut client = program.connect_json("/Z%C3%BCrich");
    let live = client.json();
    assert_eq!(live["kind"], "live");
    assert_eq!(live["complete"], true);
    assert!(live["last"]["everyone"].is_null() && live["last"]["room"].is_null());
    assert!(!live["server"].as_str().unwrap().is_empty());
    program.write(b"\"to\" all\t\x01\xe2\x80\xa8\n\xff\xfe\x00\n");
    let line = client.json();
    assert_eq!(line["kind"], "message");
    assert!(line["room"].is_null());
    assert_eq!(line["text"], "\"to\" all\t\u{1}\u{2028}");
    assert!(line["at"].as_u64().unwrap() > 1_700_000_000_000);
    let sequence = |message: &serde_json::Value| {
        let id = message["id"].as_str().unwrap();
        id.rsplit('-').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(sequence(&line), 1);
    let bytes = client.json();
    assert_eq!(
        (bytes["base64"].as_str(), sequence(&bytes)),
        (Some("//4A"), 2)
    );
    client.send(Message::text("mine"));
    let own = client.json();
    assert_eq!(
        (own["room"].as_str(), own["text"].as_str()),
        (Some("Zürich"), Some("mine"))
    );
    assert_eq!(sequence(&own), 1);
}

#[test]
fn first_replay_is_complete_unless_history_was_evicted() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "3"]);
    let mut witness = connect(&program);
    for n in 1..=4 {
        program.write(format!("{n}\n").as_bytes());
        assert_eq!(witness.text(), n.to_string());
        let mut client = program.connect_json("/?since=");
        let kept = n.min(3);
        for _ in 0..kept {
            assert_eq!(client.json()["kind"], "message");
        }
        assert_eq!(client.json()["complete"], n <= 3, "{n}");
    }
}

#[test]
fn json_reply_has_no_id() {
    let program = Program::start(&[NO_WELCOME, "--history", "9"]);
    let mut client = program.connect_json("/");
    assert_eq!(client.json()["kind"], "live");
    client.send(Message::text("mine"));
    let reply = client.json();
    assert_eq!(
        (reply["kind"].as_str(), reply["text"].as_str()),
        (Some("reply"), Some("mine"))
    );
    assert!(reply["id"].is_null());
}

#[test]
fn json_line_over_the_limit_is_omitted() {
    const LINE_BYTES: usize = 9 << 20;
    let mut program = Program::start(&[NO_WELCOME, "--history", "9"]);
    let (mut plain, mut json) = (connect(&program), program.connect_json("/"));
    assert_eq!(json.json()["kind"], "live");
    // Each of these characters takes two bytes in JSON.
    let mut line = vec![b'"'; LINE_BYTES];
    line.push(b'\n');
    program.write(&line);
    assert_eq!(plain.text().len(), LINE_BYTES);
    let message = json.json();
    assert_eq!(message["omitted_bytes"].as_u64(), Some(LINE_BYTES as u64));
    assert!(message.get("text").is_none());
}

#[test]
fn reconnect_with_ids_replays_and_reports_gaps() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "3", "--on-message", "broadcast"]);
    let mut witness = connect_to(&program, "news", 1);
    let mut say = |program: &mut Program, n: u32| {
        program.write(format!("line {n}\n").as_bytes());
        assert_eq!(witness.text(), format!("line {n}"));
        witness.send(Message::text(format!("news {n}")));
        assert_eq!(witness.text(), format!("news {n}"));
    };
    say(&mut program, 0);
    let mut client = program.connect_json("/news");
    let ids: Vec<String> = (0..2)
        .map(|_| client.json()["id"].as_str().unwrap().to_owned())
        .collect();
    drop(client);
    let missed = |program: &Program| {
        let path = format!("/news?since={}&room_since={}", ids[0], ids[1]);
        let mut client = program.connect_json(&path);
        let mut texts = Vec::new();
        loop {
            let message = client.json();
            if message["kind"] == "live" {
                return (texts.join(", "), message["complete"].as_bool().unwrap());
            }
            texts.push(message["text"].as_str().unwrap().to_owned());
        }
    };
    assert_eq!(missed(&program), (String::new(), true));
    for n in 1..3 {
        say(&mut program, n);
    }
    let all = "line 1, line 2, news 1, news 2".to_owned();
    assert_eq!(missed(&program), (all, true));
    for n in 3..6 {
        say(&mut program, n);
    }
    let kept = "line 3, line 4, line 5, news 3, news 4, news 5".to_owned();
    assert_eq!(missed(&program), (kept, false));
    // A restart begins a new epoch.
    let program = Program::start(&[NO_WELCOME, "--history", "3"]);
    assert_eq!(missed(&program), (String::new(), false));
}

#[test]
fn invalid_id_and_json_without_history_are_refused() {
    let program = Program::start(&[NO_WELCOME, "--history", "3"]);
    for path in ["/?since=yesterday", "/news?room_since=1"] {
        let json = Some("json.humphrey-broadcast");
        let status = Client::connect_as(program.address(), path, json).unwrap_err();
        assert_eq!(status, 400, "{path}");
    }
    let program = Program::start(&[NO_WELCOME, "--history", "0"]);
    let connect = |subprotocol| Client::connect_as(program.address(), "/", Some(subprotocol));
    assert_eq!(connect("json.humphrey-broadcast").unwrap_err(), 400);
    let both = "json.humphrey-broadcast, plain.humphrey-broadcast";
    let mut plain = connect(both).unwrap();
    plain.send(Message::text("as it is"));
    assert_eq!(plain.text(), "as it is");
}

#[test]
fn library_subprotocol_needs_form_json_and_history() {
    let offered = "humphrey_ws.procedures.v1, websocket.io-rpc-v0.1";
    let mut program = Program::start(&[NO_WELCOME, "--history", "3"]);
    let mut client = Client::connect_as(program.address(), "/?form=json", Some(offered)).unwrap();
    assert_eq!(client.json()["kind"], "live");
    program.write(b"one\n");
    let frame = client.message().into_data();
    assert!(frame.starts_with(b"\x07\x06plain/"), "{frame:?}");
    let at = frame.iter().position(|byte| *byte == b'{').unwrap();
    let message: serde_json::Value = serde_json::from_slice(&frame[at..]).unwrap();
    assert_eq!(message["text"], "one");
    client.send(Message::binary(&b"\x02\0\0\0\x01\x05$pinghello"[..]));
    let pong = Message::binary(&b"\x04\0\0\0\x01hello"[..]);
    assert_eq!(client.message(), pong);
    // All other clients get plain messages without a subprotocol.
    assert!(!chooses_a_subprotocol(&program, "/", offered));
    let program = Program::start(&[NO_WELCOME, "--history", "0"]);
    assert!(!chooses_a_subprotocol(&program, "/?form=json", offered));
    assert!(!chooses_a_subprotocol(&program, "/", offered));
}

fn chooses_a_subprotocol(program: &Program, path: &str, offered: &str) -> bool {
    let mut stream = TcpStream::connect(program.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {offered}\r\n\r\n",
        program.address()
    )
    .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    answer.contains("sec-websocket-protocol")
}

#[test]
fn clients_route_counts_members_of_a_room() {
    for history in [&["--history", "0"][..], &["--history", "9"]] {
        let mut arguments = vec![NO_WELCOME];
        arguments.extend(history);
        let program = Program::start(&arguments);
        let _inside = connect_to(&program, "a/b", 1);
        let _outside = program.connect();
        let of = |path| http_get(program.address(), path).2;
        eventually("all clients are counted", || {
            of("/clients/a%2Fb").trim() == r#"{"clients": 2, "room": 1}"#
        });
        assert_eq!(of("/clients/").trim(), r#"{"clients": 2}"#);
        assert_eq!(of("/clients/c").trim(), r#"{"clients": 2, "room": 0}"#);
    }
}

#[test]
fn summary_with_history_reports_no_missing_recipients() {
    let mut program = Program::start(&[NO_WELCOME, "--history", "9", "--exit-on-eof"]);
    let mut client = program.connect();
    program.write(b"one\n");
    assert_eq!(client.text(), "one");
    program.close_input();
    client.expect_close(CloseCode::Away);
    let summary = program.expect_line("1 client");
    assert!(summary.ends_with("1 client, 1 message sent"), "{summary}");
    program.expect_exit(0);
}
