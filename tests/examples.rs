//! Runs each example as a user would, and checks with real clients the behaviour that its first lines describe.
//!
//! `cargo test` has built them next to this test. The file is long because it has a section for each example.

#[cfg(feature = "cluster")]
#[path = "support/brokers/mod.rs"]
mod brokers;
#[path = "support/procedures.rs"]
mod frames;
#[path = "support/presence_client.rs"]
mod presence_client;
mod support;

use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Instant;

use frames::{Frames, V1, connect_at, request, response};
use presence_client::PresenceView;
use serde_json::{Value, json};
use support::{Client, DEADLINE, eventually, free_address};
use tungstenite::Message;
use tungstenite::client::ClientRequestBuilder;

/// An example that runs until this value is dropped.
struct Example {
    process: Child,
    stdin: Option<ChildStdin>,
    address: SocketAddr,
}

impl Example {
    fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    fn start_with(name: &str, options: &[&str]) -> Self {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let address = free_address();
            let mut example = Self::spawn(name, address, options);
            while Instant::now() < deadline {
                if TcpStream::connect(address).is_ok() {
                    return example;
                }
                if example.has_ended() {
                    break;
                }
                thread::yield_now();
            }
            // Another process may have bound the port in the meantime.
            assert!(Instant::now() < deadline, "{name} does not listen");
        }
    }

    fn spawn(name: &str, address: SocketAddr, options: &[&str]) -> Self {
        let mut process = Command::new(binary(name))
            .arg(address.to_string())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`cargo build --examples` makes {name}: {error}"));
        let stdin = process.stdin.take();
        Self {
            process,
            stdin,
            address,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Connects a client and waits for its first echo, so that the server has registered it.
    fn echoed_client(&self) -> Client {
        let mut client = self.client();
        client.send("here I am");
        assert_eq!(client.receive_text(), "here I am");
        client
    }

    fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the input is open");
        writeln!(stdin, "{line}").expect("the example reads its input");
    }

    fn end_input(&mut self) {
        self.stdin = None;
    }

    fn has_ended(&mut self) -> bool {
        self.process
            .try_wait()
            .expect("the child is not reaped yet")
            .is_some()
    }
}

impl Drop for Example {
    #[allow(
        clippy::print_stderr,
        reason = "it is part of the report of a failed test"
    )]
    fn drop(&mut self) {
        // Ignore the error if the example has already exited.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking()
            && let Some(stderr) = &mut self.process.stderr
        {
            let mut said = String::new();
            let _ = stderr.read_to_string(&mut said);
            eprintln!("the example at {} printed: {said}", self.address);
        }
    }
}

/// Beside this test: `target/debug/deps/examples-HASH` and `target/debug/examples/NAME`.
fn binary(name: &str) -> PathBuf {
    let test = env::current_exe().expect("this test is a file");
    let profile = test.ancestors().nth(2).expect("it is in target/*/deps");
    profile.join("examples").join(name)
}

/// Sends an HTTP request, and returns the whole response.
fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> String {
    let mut socket = support::tcp(address);
    let len = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
    .expect("the request is sent");
    let mut response = String::new();
    socket
        .read_to_string(&mut response)
        .expect("the response ends with the connection");
    response
}

#[test]
fn echo_returns_every_message_unchanged() {
    let example = Example::start("echo");
    let mut client = example.client();
    for message in [
        Message::text(""),
        Message::text("Grüezi"),
        Message::binary("text, sent as binary"),
        Message::binary(vec![0xff; 70_000]),
    ] {
        client.0.send(message.clone()).unwrap();
        assert_eq!(client.receive(), message);
    }
    client.close();
}

#[test]
fn broadcast_welcomes_each_client_before_everyone() {
    let example = Example::start("broadcast");
    let mut first = example.client();
    assert_eq!(
        first.receive_text(),
        format!("Welcome, {}!", first.address())
    );

    let mut second = example.client();
    let welcome = format!("Welcome, {}!", second.address());
    assert_eq!(first.receive_text(), welcome);
    assert_eq!(second.receive_text(), welcome);
}

#[test]
fn broadcast_echoes_to_the_sender_and_lines_to_everyone() {
    let mut example = Example::start("broadcast");
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..3 {
        clients.push(example.client());
        for client in &mut clients {
            assert!(client.receive_text().starts_with("Welcome, "));
        }
    }

    clients[0].send("for me");
    assert_eq!(clients[0].receive_text(), "for me");
    example.type_line("for all");
    example.type_line("");
    example.type_line("and this");
    for client in &mut clients {
        assert_eq!(client.receive_text(), "for all");
        assert_eq!(client.receive_text(), "");
        assert_eq!(client.receive_text(), "and this");
    }
}

#[test]
fn broadcast_continues_after_the_end_of_input() {
    let mut example = Example::start("broadcast");
    let mut client = example.client();
    assert!(client.receive_text().starts_with("Welcome, "));
    example.type_line("the last line");
    example.end_input();
    assert_eq!(client.receive_text(), "the last line");

    client.send("still there?");
    assert_eq!(client.receive_text(), "still there?");
    assert!(example.client().receive_text().starts_with("Welcome, "));
}

#[test]
fn broadcast_blocking_echoes_and_sends_lines_to_everyone() {
    let mut example = Example::start("broadcast_blocking");
    let mut clients: Vec<Client> = (0..3).map(|_| example.echoed_client()).collect();

    for line in ["one", "two", "three"] {
        example.type_line(line);
    }
    for client in &mut clients {
        for line in ["one", "two", "three"] {
            assert_eq!(client.receive_text(), line);
        }
    }
    clients.remove(0).close();
    clients[0].send("for me");
    assert_eq!(clients[0].receive_text(), "for me");
}

#[test]
fn broadcast_blocking_continues_after_the_end_of_input() {
    let mut example = Example::start("broadcast_blocking");
    let mut client = example.echoed_client();
    example.type_line("the last line");
    example.end_input();
    assert_eq!(client.receive_text(), "the last line");

    client.send("still there?");
    assert_eq!(client.receive_text(), "still there?");
    example.echoed_client();
}

#[test]
fn broadcast_blocking_reports_missed_lines_to_slow_clients() {
    /// More lines than the buffers of the sockets and the bus can hold together.
    const LINES: usize = 96;
    const LINE_BYTES: usize = 1 << 20;

    let mut example = Example::start("broadcast_blocking");
    let mut lagging = example.echoed_client();
    let rest = "x".repeat(LINE_BYTES);
    for number in 0..LINES {
        example.type_line(&format!("{number} {rest}"));
    }

    let (mut next, mut missed) = (0, 0);
    while next < LINES {
        let text = lagging.receive_text();
        match text.strip_suffix(" lines missed)") {
            Some(count) => {
                let count: usize = count.trim_start_matches('(').parse().unwrap();
                missed += count;
                next += count;
            }
            None => {
                assert_eq!(text.split(' ').next(), Some(next.to_string().as_str()));
                next += 1;
            }
        }
    }
    assert!(missed > 0, "{LINES} lines fit into buffers");

    // After it has caught up, it gets every message again.
    example.type_line("nothing missed");
    assert_eq!(lagging.receive_text(), "nothing missed");
}

#[test]
fn linked_serves_its_page_and_broadcasts_what_clients_send() {
    let example = Example::start("linked");
    let page = http(example.address, "GET", "/", "");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains("new WebSocket("), "{page}");

    // The second client has joined once it receives its own message.
    let mut first = Client::connect_to(example.address, "/ws");
    first.send("one");
    assert_eq!(first.receive_text(), "one");
    let mut second = Client::connect_to(example.address, "/ws");
    second.send("two");
    assert_eq!(second.receive_text(), "two");
    assert_eq!(first.receive_text(), "two");
}

#[test]
fn linked_sends_posted_texts_to_every_client() {
    let example = Example::start("linked");
    let mut clients: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = Client::connect_to(example.address, "/ws");
            client.send("joined");
            assert_eq!(client.receive_text(), "joined");
            client
        })
        .collect();
    let response = http(example.address, "POST", "/notify", "Tea is ready.");
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert!(response.contains("\r\n\r\nTold 3 clients.\n"), "{response}");
    for client in &mut clients {
        while client.receive_text() != "Tea is ready." {}
    }

    let refusal = http(example.address, "GET", "/notify", "");
    assert!(refusal.starts_with("HTTP/1.1 405 "), "{refusal}");
}

#[test]
fn linked_serves_pages_with_more_clients_than_threads() {
    let example = Example::start("linked");
    let clients: Vec<Client> = (0..40)
        .map(|_| Client::connect_to(example.address, "/ws"))
        .collect();
    let page = http(example.address, "GET", "/", "");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    drop(clients);
}

#[test]
fn stateful_keeps_a_name_and_a_count_for_each_connection() {
    let example = Example::start("stateful");
    let mut ada = example.client();
    assert_eq!(ada.receive_text(), "What is your name?");
    ada.send("Ada");
    assert_eq!(ada.receive_text(), "Ada is here, guest 1.");
    let mut bob = example.client();
    assert_eq!(bob.receive_text(), "What is your name?");
    bob.send_binary([0xff]);
    assert_eq!(bob.receive_text(), "Only text, please.");
    bob.send("Bob");
    assert_eq!(bob.receive_text(), "Bob is here, guest 2.");
    assert_eq!(ada.receive_text(), "Bob is here, guest 2.");

    ada.send("hello");
    ada.send("all");
    for client in [&mut ada, &mut bob] {
        assert_eq!(client.receive_text(), "Ada (1): hello");
        assert_eq!(client.receive_text(), "Ada (2): all");
    }
    bob.send("hi");
    assert_eq!(ada.receive_text(), "Bob (1): hi");
    bob.close();
    assert_eq!(ada.receive_text(), "Bob has left, 1 remain.");
}

#[test]
fn stateful_notices_a_vanished_client() {
    let example = Example::start("stateful");
    let mut ada = example.client();
    ada.send("Ada");
    let mut bob = example.client();
    bob.send("Bob");

    // Bob's client stops reading, so it answers no ping. Ada's client answers by reading.
    let mut pinged = false;
    loop {
        match ada.0.read().expect("a message arrives in time") {
            Message::Ping(_) => pinged = true,
            Message::Text(text) if text == "Bob has left, 1 remain." => break,
            Message::Text(_) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(pinged, "the client was not pinged before its disconnect");
    ada.send("alone");
    assert_eq!(ada.receive_text(), "Ada (1): alone");
}

/// The variants of `notifications`: alone, and in a Humphrey app.
const NOTIFICATIONS: [&[&str]; 2] = [&[], &["--linked"]];

/// Connects a device that subscribes to one recipient, or to all.
fn subscribe(example: &Example, recipient: Option<&str>) -> Client {
    let query = recipient.map_or(String::new(), |name| format!("?recipient={name}"));
    let mut client = Client::connect_to(example.address, &format!("/notifications{query}"));
    assert!(client.receive_text().starts_with(r#"{"subscribed":"#));
    client
}

fn post(example: &Example, recipient: &str, text: &str) {
    let response = http(
        example.address,
        "POST",
        &format!("/paekli/{recipient}"),
        text,
    );
    assert!(response.starts_with("HTTP/1.1 201 "), "{response}");
}

#[test]
fn notifications_reach_all_devices_and_the_monitor() {
    for way in NOTIFICATIONS {
        let example = Example::start_with("notifications", way);
        let mut ada = [(); 3].map(|()| subscribe(&example, Some("ada")));
        let mut bob = subscribe(&example, Some("bob"));
        let mut all = subscribe(&example, None);

        post(&example, "ada", "Grüezi");
        post(&example, "bob", "\"quoted\"");
        let for_ada = r#"{"number":1,"recipient":"ada","text":"Grüezi"}"#;
        let for_bob = r#"{"number":1,"recipient":"bob","text":"\"quoted\""}"#;
        for device in &mut ada {
            assert_eq!(device.receive_text(), for_ada);
        }
        assert_eq!(bob.receive_text(), for_bob);
        assert_eq!(all.receive_text(), for_ada);
        assert_eq!(all.receive_text(), for_bob);

        // A disconnected device causes no error, and no message was sent that is not asserted above.
        let [first, mut second, third] = ada;
        first.close();
        drop(third);
        post(&example, "ada", "again");
        let again = r#"{"number":2,"recipient":"ada","text":"again"}"#;
        assert_eq!(second.receive_text(), again);
        assert_eq!(all.receive_text(), again);
    }
}

#[test]
fn notifications_without_a_listener_are_stored() {
    for way in NOTIFICATIONS {
        let example = Example::start_with("notifications", way);
        for number in 1..=102 {
            post(&example, "ada", &format!("parcel {number}"));
        }
        let list = http(example.address, "GET", "/paekli/ada", "");
        assert!(list.starts_with("HTTP/1.1 200 "), "{list}");
        let (_, list) = list.split_once("\r\n\r\n").unwrap();
        let list: Value = serde_json::from_str(list).unwrap();
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 100, "the list is not bounded to 100");
        assert_eq!(list[0]["number"], 3);
        assert_eq!(list[99]["text"], "parcel 102");
        let nothing = http(example.address, "GET", "/paekli/bob", "");
        assert!(nothing.trim_end().ends_with("\r\n\r\n[]"), "{nothing}");
    }
}

#[test]
fn notifications_refuses_invalid_parcels_and_recipients() {
    for way in NOTIFICATIONS {
        let example = Example::start_with("notifications", way);
        let heavy = "x".repeat(4097);
        for (method, path, body, status) in [
            ("POST", "/paekli/ada", "", "400"),
            ("POST", "/paekli/ada", &heavy, "413"),
            ("POST", "/paekli/a%20b", "text", "404"),
            ("POST", "/paekli/", "text", "404"),
            ("PUT", "/paekli/ada", "text", "405"),
        ] {
            let response = http(example.address, method, path, body);
            let expected = format!("HTTP/1.1 {status} ");
            assert!(
                response.starts_with(&expected),
                "{method} {path}: {response}"
            );
        }
        let mut socket = support::tcp(example.address);
        let request = support::upgrade_request("/notifications?recipient=a+b");
        socket.write_all(request.as_bytes()).unwrap();
        let head = support::read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    }
}

/// Connects a user of the example `chat`, and reads the welcome.
fn enter(example: &Example, query: &str) -> (Client, Value) {
    let mut client = Client::connect_to(example.address, &format!("/chat?{query}"));
    let welcome = hear(&mut client, "welcome");
    (client, welcome)
}

/// Receives the next message of this kind.
fn hear(client: &mut Client, kind: &str) -> Value {
    loop {
        let message: Value = serde_json::from_str(&client.receive_text()).unwrap();
        if message["type"] == kind {
            return message;
        }
    }
}

/// Connects Ada to the room `r` of the example `chat`, where she watches who is here.
fn enter_watching(example: &Example, query: &str) -> (Client, PresenceView) {
    let target = format!("/chat?room=r&name=Ada{query}");
    let mut ada = connect_at(example.address, &target, V1);
    hear(&mut ada, "welcome");
    ada.send_binary(request(1, "$watch", b"\x06here/rnew"));
    let mut view = PresenceView::default();
    see(&mut view, &mut ada, &["Ada"]);
    assert_eq!(ada.receive_frame(), response(1, b""));
    (ada, view)
}

/// Waits until the people with these names are in the room `r`.
fn see(view: &mut PresenceView, client: &mut Client, names: &[&str]) {
    view.receive_until_are(client, "here/r", |members| {
        let name = |member: &Value| {
            let state: Value = serde_json::from_str(member["state"].as_str()?).unwrap();
            Some(state["name"].as_str()?.to_owned())
        };
        let mut here: Vec<_> = members.filter_map(name).collect();
        here.sort();
        here == names
    });
}

#[test]
fn chat_reports_who_comes_and_who_leaves() {
    let example = Example::start("chat");
    let (mut ada, mut view) = enter_watching(&example, "");
    let (bob, welcome) = enter(&example, "room=r&name=++Bob+B.%0A");
    assert_eq!(welcome["you"], "Bob B.");
    assert_eq!(welcome["people"], json!(["Ada", "Bob B."]));
    see(&mut view, &mut ada, &["Ada", "Bob B."]);
    let (_other, welcome) = enter(&example, "room=elsewhere&name=Ada");
    assert_eq!(welcome["people"], json!(["Ada"]));
    let (_second, welcome) = enter(&example, "room=r&name=ada");
    assert_eq!(welcome["you"], "ada 2");
    see(&mut view, &mut ada, &["Ada", "Bob B.", "ada 2"]);
    drop(bob);
    see(&mut view, &mut ada, &["Ada", "ada 2"]);
    // Clients may not watch the other rooms of the chat.
    ada.send_binary(request(2, "$watch", b"\x06talk/rnew"));
    ada.receive_error(2, 6);
}

#[test]
fn chat_identifies_people_by_key_and_refuses_others() {
    let example = Example::start("chat");
    let (mut ada, mut view) = enter_watching(&example, "&person=4711");
    let (_window, welcome) = enter(&example, "room=r&name=Ada&person=4711");
    assert_eq!(welcome["people"], json!(["Ada"]));
    let (_bob, welcome) = enter(&example, "room=r&name=Bob&person=");
    assert_eq!(welcome["people"], json!(["Ada", "Bob"]));
    let (_second, welcome) = enter(&example, "room=r&name=Bob&person=");
    assert_eq!(welcome["people"], json!(["Ada", "Bob", "Bob 2"]));
    // Another name renames the person.
    let (_renamed, welcome) = enter(&example, "room=r&name=Ida&person=4711");
    assert_eq!(welcome["people"], json!(["Bob", "Bob 2", "Ida"]));
    see(&mut view, &mut ada, &["Bob", "Bob 2", "Ida"]);
}

#[test]
fn chat_client_with_the_public_id_of_a_person_is_someone_else() {
    let example = Example::start("chat");
    let (mut ada, mut view) = enter_watching(&example, "&person=4711");
    let (_bob, _) = enter(&example, "room=r&name=Bob");
    let mut id = String::new();
    view.receive_until_are(&mut ada, "here/r", |members| {
        let is_ada = |member: &&&Value| {
            member["state"]
                .as_str()
                .is_some_and(|of| of.contains("Ada"))
        };
        let members: Vec<_> = members.collect();
        let ada = members.iter().find(is_ada);
        id = ada
            .map_or("", |ada| ada["user"].as_str().unwrap())
            .to_owned();
        members.len() == 2 && !id.is_empty()
    });
    assert!(!id.contains("4711"), "{id}");
    let (_other, welcome) = enter(&example, &format!("room=r&name=Ada&person={id}"));
    assert_eq!(welcome["you"], "Ada 2");
}

#[test]
fn chat_replays_messages_after_the_clients_last_id() {
    let example = Example::start("chat");
    let (mut ada, _) = enter(&example, "room=r&name=Ada");
    let ids: Vec<String> = (0..5)
        .map(|n| {
            ada.send(&json!({"text": n.to_string()}).to_string());
            hear(&mut ada, "said")["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let query = format!("/chat?room=r&name=Bob&since={}", ids[2]);
    let mut bob = Client::connect_to(example.address, &query);
    assert_eq!(hear(&mut bob, "said")["id"], json!(ids[3]));
    assert_eq!(hear(&mut bob, "said")["text"], "4");
    hear(&mut bob, "welcome");

    let mut late = Client::connect_to(example.address, "/chat?room=r&name=Cy&since=abc-7");
    assert_eq!(hear(&mut late, "gap")["restarted"], true);
    assert_eq!(hear(&mut late, "said")["id"], json!(ids[0]));
}

#[cfg(feature = "cluster")]
#[test]
fn chat_over_two_nodes_shares_its_messages_and_resumes_on_either() {
    let Some(redis) = brokers::RedisServer::start(&[]) else {
        return;
    };
    let start = || Example::start_with("chat", &[&redis.url()]);
    let (one, other) = (start(), start());
    let (mut ada, _) = enter(&one, "room=r&name=Ada");
    let (mut bob, welcome) = enter(&other, "room=r&name=Bob");
    assert_eq!(welcome["people"], json!(["Ada", "Bob"]));
    let (_second, welcome) = enter(&other, "room=r&name=Ada");
    assert_eq!(welcome["you"], "Ada 2");
    let mut said = |speaker: &str, text: &str| {
        let from = if speaker == "Ada" { &mut ada } else { &mut bob };
        from.send(&json!({"text": text}).to_string());
        let heard = [&mut ada, &mut bob].map(|client| hear(client, "said"));
        assert_eq!(heard[0], heard[1]);
        assert_eq!(
            (&heard[0]["from"], &heard[0]["text"]),
            (&json!(speaker), &json!(text))
        );
        heard[0]["id"].as_str().unwrap().to_owned()
    };
    let first = said("Ada", "from one node");
    said("Bob", "from the other");
    said("Ada", "and again");
    for node in [&one, &other] {
        let query = format!("/chat?room=r&name=Cy&since={first}");
        let mut late = Client::connect_to(node.address, &query);
        assert_eq!(hear(&mut late, "said")["text"], "from the other");
        assert_eq!(hear(&mut late, "said")["text"], "and again");
    }
}

#[cfg(feature = "cluster")]
#[test]
fn chat_over_two_nodes_forgets_the_people_of_a_killed_node() {
    let Some(redis) = brokers::RedisServer::start(&[]) else {
        return;
    };
    let start = || Example::start_with("chat", &[&redis.url()]);
    let (one, other) = (start(), start());
    let (mut ada, mut view) = enter_watching(&one, "");
    let _bob = enter(&other, "room=r&name=Bob");
    see(&mut view, &mut ada, &["Ada", "Bob"]);
    drop(other);
    see(&mut view, &mut ada, &["Ada"]);
    let third = start();
    let _bob = enter(&third, "room=r&name=Bob");
    see(&mut view, &mut ada, &["Ada", "Bob"]);
}

#[test]
fn chat_refuses_long_fast_or_unaddressed_messages() {
    let example = Example::start("chat");
    let (mut ada, _) = enter(&example, "room=r&name=Ada");
    for (request, why) in [
        (json!({"text": " ", "key": "k"}), "The message is empty."),
        (
            json!({"text": "x".repeat(2001), "key": "k"}),
            "The message is longer than 2000 characters.",
        ),
        (
            json!({"text": "psst", "to": "Bob", "key": "k"}),
            "Bob is not here.",
        ),
    ] {
        ada.send(&request.to_string());
        assert_eq!(
            ada.receive_text(),
            json!({"type": "refused", "key": "k", "why": why}).to_string()
        );
    }
    ada.send("no JSON");
    assert_eq!(hear(&mut ada, "refused")["why"], "The message is empty.");
    for _ in 0..40 {
        ada.send(&json!({"text": "more"}).to_string());
    }
    assert_eq!(
        hear(&mut ada, "refused")["why"],
        "You are sending too fast."
    );

    for query in [
        "name=Ada",
        "room=r",
        "room=a%2Fb&name=Ada",
        "room=r&name=Ada&since=yesterday",
        "room=r&name=%E2%80%AE",
    ] {
        let mut socket = support::tcp(example.address);
        let request = support::upgrade_request(&format!("/chat?{query}"));
        socket.write_all(request.as_bytes()).unwrap();
        let head = support::read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 400 "), "{query}: {head}");
    }
}

#[test]
fn chat_closes_clients_of_a_full_room_with_1008() {
    let example = Example::start("chat");
    let mut people: Vec<Client> = (0..100)
        .map(|_| enter(&example, "room=r&name=Ada").0)
        .collect();
    let mut late = Client::connect_to(example.address, "/chat?room=r&name=Late");
    let (texts, close) = late.receive_to_close();
    assert!(texts.is_empty(), "{texts:?}");
    let close = close.expect("the close frame has a reason");
    assert_eq!(
        (u16::from(close.code), &*close.reason),
        (1008, "This room is full.")
    );
    people.pop().unwrap().close();
    // The person may come back for some seconds.
    eventually("the room takes another", || {
        let mut late = Client::connect_to(example.address, "/chat?room=r&name=Late");
        late.receive().is_text()
    });
}

#[test]
fn example_with_an_address_in_use_exits_with_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for name in [
        "broadcast",
        "broadcast_blocking",
        "chat",
        "echo",
        "linked",
        "notifications",
        "stateful",
        #[cfg(feature = "axum")]
        "axum_chat",
        #[cfg(feature = "axum")]
        "axum_notifications",
    ] {
        let mut example = Example::spawn(name, taken.local_addr().unwrap(), &[]);
        eventually("the example ends", || example.has_ended());
        let mut words = String::new();
        let mut stderr = example.process.stderr.take().unwrap();
        stderr.read_to_string(&mut words).unwrap();
        assert!(words.contains("in use"), "{name}: {words}");
        assert!(!example.process.wait().unwrap().success(), "{name}");
    }
}

#[cfg(feature = "axum")]
mod axum {
    use super::{Client, Example, Message, http, support};
    use std::io::Write;
    use tungstenite::protocol::frame::coding::CloseCode;

    #[test]
    fn axum_notifications_stores_posts_and_notifies_everyone() {
        let example = Example::start("axum_notifications");
        // The notice is stored even if nobody has subscribed.
        let created = http(example.address, "POST", "/notices", "Tea is ready.");
        assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
        let mut subscribers: Vec<Client> = (0..3)
            .map(|_| Client::connect_to(example.address, "/live"))
            .collect();
        // hyper has sent the responses, but the engine may still be taking the sockets over.
        for subscriber in &mut subscribers {
            subscriber.0.get_ref().set_nonblocking(true).unwrap();
            support::eventually("the post is delivered", || {
                http(example.address, "POST", "/notices", "Is anybody here?");
                subscriber.0.read().is_ok()
            });
            subscriber.0.get_ref().set_nonblocking(false).unwrap();
        }
        let created = http(example.address, "POST", "/notices", "The cake, too.");
        assert!(created.starts_with("HTTP/1.1 201 "), "{created}");
        for subscriber in &mut subscribers {
            while subscriber.receive_text() != "The cake, too." {}
        }
        let kept = http(example.address, "GET", "/notices", "");
        assert!(kept.contains("Tea is ready.\n"), "{kept}");
        assert!(kept.ends_with("The cake, too.\n"), "{kept}");
    }

    #[test]
    fn axum_chat_broadcasts_messages() {
        let example = Example::start("axum_chat");
        let page = http(example.address, "GET", "/", "");
        assert!(page.contains("new WebSocket("), "{page}");
        // The second client has joined once it receives its own message.
        let mut first = Client::connect_to(example.address, "/chat");
        first.send("one");
        assert_eq!(first.receive_text(), "one");
        let mut second = Client::connect_to(example.address, "/chat");
        second.send("two");
        assert_eq!(second.receive_text(), "two");
        assert_eq!(first.receive_text(), "two");
        second.send_binary([0xff]);
        let (_, frame) = second.receive_to_close();
        assert_eq!(frame.unwrap().code, CloseCode::Unsupported);
    }

    #[test]
    fn axum_chat_closes_slow_clients_alone_with_1013() {
        const MESSAGE_BYTES: usize = 60_000;
        let example = Example::start("axum_chat");
        let mut lagging = Client::connect_to(example.address, "/chat");
        lagging.send("here I am");
        assert_eq!(lagging.receive_text(), "here I am");
        let mut talking = Client::connect_to(example.address, "/chat");
        let text = "x".repeat(MESSAGE_BYTES);
        // These are more messages than the buffers of the sockets and an outbox can hold together.
        for n in 0..1_000 {
            talking.send(&format!("{n} {text}"));
            let heard = talking.receive_text();
            assert_eq!(heard.split(' ').next(), Some(n.to_string().as_str()));
        }
        let mut heard = 0;
        let closed = loop {
            match lagging.receive() {
                Message::Text(text) => {
                    assert!(text.starts_with(&format!("{heard} ")), "a gap");
                    heard += 1;
                }
                Message::Close(frame) => break frame.unwrap(),
                other => panic!("unexpected: {other:?}"),
            }
        };
        assert_eq!(closed.code, CloseCode::Again);
        assert!(heard < 1_000, "all messages fitted into buffers");
        // The client reconnects, and receives later messages.
        let mut again = Client::connect_to(example.address, "/chat");
        again.send("back");
        assert_eq!(again.receive_text(), "back");
        assert_eq!(talking.receive_text(), "back");
    }

    #[test]
    fn axum_chat_refuses_foreign_origins() {
        let example = Example::start("axum_chat");
        let request = support::upgrade_request("/chat").replacen(
            "\r\n\r\n",
            "\r\nOrigin: https://evil.example\r\n\r\n",
            1,
        );
        let mut socket = support::tcp(example.address);
        socket.write_all(request.as_bytes()).unwrap();
        let head = support::read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    }
}

#[test]
fn server_sent_events_serves_its_page_and_streams_lines() {
    let mut example = Example::start("server_sent_events");
    let page = http(example.address, "GET", "/", "");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.contains("new EventSource("), "{page}");
    example.type_line("first");
    let mut stream = TcpStream::connect(example.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut got = String::new();
    let mut read_to = |end: &str| {
        while !got.ends_with(end) {
            let mut bytes = [0; 1_000];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "{got}");
            got.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
    };
    read_to("\ndata: first\n\n");
    example.type_line("second");
    read_to("\ndata: second\n\n");
    assert!(got.contains("Content-Type: text/event-stream\r\n"), "{got}");
    assert!(got.contains("retry: 500\n"), "{got}");
}

/// Connects a client of the example `procedures` that encodes its frames itself.
fn enter_procedures(example: &Example) -> Client {
    let uri = format!("ws://{}", example.address).parse().unwrap();
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("humphrey_ws.procedures.v1");
    let (client, _) = tungstenite::client(request, support::tcp(example.address)).unwrap();
    Client(client)
}

/// Calls a procedure, and returns the payload of the reply.
fn call(client: &mut Client, id: u8, name: &str, payload: &str) -> String {
    client.send_binary(procedure(id, name, payload));
    loop {
        if let [4, 0, 0, 0, of, answer @ ..] = &*client.receive().into_data()
            && *of == id
        {
            return String::from_utf8(answer.to_vec()).unwrap();
        }
    }
}

fn procedure(id: u8, name: &str, payload: &str) -> Vec<u8> {
    let head = [2, 0, 0, 0, id, name.len() as u8];
    [&head, name.as_bytes(), payload.as_bytes()].concat()
}

#[test]
fn procedures_answers_and_cancels_calls_and_broadcasts() {
    let example = Example::start("procedures");
    let mut client = enter_procedures(&example);
    let mut other = enter_procedures(&example);
    let own = client.address().to_string();
    assert_eq!(call(&mut client, 1, "myip", ""), own);
    assert_eq!(call(&mut client, 2, "uppercase", "grüezi"), "GRÜEZI");
    client.send_binary(procedure(3, "report", "1000"));
    eventually("the report is running", || {
        call(&mut other, 1, "reports", "") == "1 0"
    });
    client.send_binary([3, 0, 0, 0, 3]);
    eventually("the report is cancelled", || {
        call(&mut other, 1, "reports", "") == "0 1"
    });
    client.send_binary(procedure(4, "report", "2"));
    let mut parts = Vec::new();
    while parts
        .last()
        .is_none_or(|last| last != b"\x04\0\0\0\x04A report of 2 pages.")
    {
        parts.push(client.receive().into_data().to_vec());
    }
    assert!(parts.contains(&b"\x06\0\0\0\x042".to_vec()));
    assert!(parts.contains(&b"\x06\0\0\0\x041".to_vec()));
    client.send_binary(*b"\x01\x04ping!");
    assert_eq!(&*client.receive().into_data(), b"\x01\x04pong!");
    call(&mut other, 2, "$join", "\x04mainnew");
    client.send_binary(*b"\x01\x09broadcasthello");
    // The message may have its id in front.
    let heard = other.receive().into_data();
    assert!(heard.ends_with(b"\x01\x07messagehello"), "{heard:?}");
}
