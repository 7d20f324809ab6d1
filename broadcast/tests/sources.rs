//! Sources of lines with rooms of their own, and the routes that tell of rooms and of kept messages.
#![cfg(unix)]

mod support;

use serde_json::{Value, json};
use support::{Client, Program, http_get};
use tungstenite::Message;

const NO_WELCOME: &str = "--no-welcome";

fn get(program: &Program, path: &str) -> Value {
    let (status, _, body) = http_get(program.address(), path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// The room and the text of the next message.
fn line(client: &mut Client) -> (Value, String) {
    let line = client.json();
    assert_eq!(line["kind"], "message", "{line}");
    let text = line["text"].as_str().unwrap_or_default().to_owned();
    (line["room"].clone(), text)
}

fn texts(kept: &Value) -> Vec<&str> {
    let messages = kept["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| message["text"].as_str().unwrap())
        .collect()
}

#[test]
fn prefix_routes_a_line_to_its_room_and_everyone_sees_it() {
    for history in ["--history=0", "--history=9"] {
        let mut program = Program::start(&[NO_WELCOME, "--prefix-room", history]);
        let (mut web, mut all) = (program.connect_to("/web"), program.connect());
        for client in [&mut web, &mut all] {
            // It has joined before its first message is echoed.
            client.send(Message::text("hello"));
            assert_eq!(client.text(), "hello");
        }
        program.write(b"web: GET /: 1\nto all\ndb: SELECT\nweb: \xff\n");
        assert_eq!(web.text(), "GET /: 1");
        assert_eq!(web.text(), "to all");
        assert_eq!(web.message().into_data(), b"\xff"[..]);
        for expected in ["web: GET /: 1", "to all", "db: SELECT"] {
            assert_eq!(all.text(), expected);
        }
        assert_eq!(all.message().into_data(), b"web: \xff"[..]);
    }
}

#[test]
fn lines_of_sources_are_resumed_by_clients_in_no_room() {
    let mut program = Program::start(&[NO_WELCOME, "--prefix-room"]);
    let mut first = program.connect_json("/");
    assert_eq!(first.json()["kind"], "live");
    program.write(b"web: one\nplain\ndb: two: 2\n");
    let web = first.json();
    assert_eq!((&web["room"], &web["text"]), (&json!("web"), &json!("one")));
    let plain = first.json();
    assert_eq!(plain["room"], Value::Null);
    assert_eq!(line(&mut first), (json!("db"), "two: 2".into()));
    let path = format!(
        "/?since={}&room_since={}",
        plain["id"].as_str().unwrap(),
        web["id"].as_str().unwrap()
    );
    let mut resumed = program.connect_json(&path);
    assert_eq!(line(&mut resumed), (json!("db"), "two: 2".into()));
    let end = resumed.json();
    assert_eq!(end["complete"], true, "{end}");
    // In its own room the line has another id.
    let mut in_web = program.connect_json("/web");
    assert_eq!(line(&mut in_web), (Value::Null, "plain".into()));
    assert_eq!(line(&mut in_web), (json!("web"), "one".into()));
}

#[test]
fn rooms_route_lists_sources_and_rooms_that_are_asked_for() {
    let mut program = Program::start(&[NO_WELCOME, "--prefix-room", "--publish-token=x"]);
    assert_eq!(get(&program, "/rooms"), json!({"rooms": []}));
    let mut all = program.connect_json("/");
    assert_eq!(all.json()["kind"], "live");
    program.write(b"web: 1\ndb: 2\nweb: 3\n");
    for _ in 0..3 {
        line(&mut all);
    }
    let bearer = "Authorization: Bearer x\r\n";
    assert_eq!(program.publish("/a%20b", bearer, b"published").0, 200);
    let rooms = get(&program, "/rooms?room=a+b&room=none&room=..");
    let listed: Vec<_> = rooms["rooms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|room| {
            let last = room["last"]
                .as_str()
                .map(|id| id.rsplit('-').next().unwrap());
            (room["name"].as_str().unwrap(), room["source"] == true, last)
        })
        .collect();
    assert_eq!(
        listed,
        [
            ("web", true, Some("2")),
            ("db", true, Some("1")),
            ("a b", false, Some("1")),
            ("none", false, None),
        ]
    );
}

#[test]
fn history_route_returns_the_messages_between_two_ids() {
    let mut program = Program::start(&[NO_WELCOME, "--history=5", "--prefix-room"]);
    let mut client = program.connect_json("/web");
    assert_eq!(client.json()["kind"], "live");
    let mut ids = Vec::new();
    for n in 0..4 {
        program.write(format!("web: {n}\nplain {n}\n").as_bytes());
        for _ in 0..2 {
            ids.push(client.json()["id"].as_str().unwrap().to_owned());
        }
    }
    let between = |from: usize, to: usize| format!("?after={}&before={}", ids[from], ids[to]);
    let kept = get(&program, &format!("/history/web{}", between(0, 6)));
    assert_eq!(kept["complete"], true);
    assert_eq!(texts(&kept), ["1", "2"]);
    assert_eq!(kept["messages"][0]["id"], json!(ids[2]));
    assert!(kept["messages"][0]["at"].as_u64().unwrap() > 1_700_000_000_000);
    let kept = get(&program, &format!("/history{}", between(1, 7)));
    assert_eq!(texts(&kept), ["plain 1", "plain 2"]);
    let kept = get(&program, "/history?of=sources");
    assert_eq!(texts(&kept), ["0", "1", "2", "3"]);
    assert_eq!(kept["messages"][0]["room"], "web");
    for n in 4..9 {
        program.write(format!("web: {n}\n").as_bytes());
        client.json();
    }
    // Those after the id are no longer all kept.
    let kept = get(&program, &format!("/history/web?after={}", ids[0]));
    assert_eq!(kept["complete"], false);
    assert_eq!(texts(&kept), ["4", "5", "6", "7", "8"]);
    for (path, status) in [
        ("/history/web?after=yesterday", 400),
        ("/history/%ff", 400),
        ("/history?of=others", 400),
    ] {
        assert_eq!(http_get(program.address(), path).0, status, "{path}");
    }
    let without = Program::start(&["--history=0"]);
    let (status, _, why) = http_get(without.address(), "/history");
    assert_eq!(status, 404);
    assert!(why.contains("--history"), "{why}");
}
