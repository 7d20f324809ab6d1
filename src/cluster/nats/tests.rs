//! The connection's states, without a server.

use bytes::Bytes;

use super::subjects::put_subject;
use super::{NOT_REPORTED, Nats};
use crate::cluster::broker::{
    Broker, BrokerError, Channel, Command, Event, Incarnation, Kind, Refused,
};

const INFO: &str = "INFO {\"server_id\":\"N1\",\"max_payload\":100}\r\n";

fn nats_of(url: &str) -> Nats {
    let mut nats = Nats::new(url.parse().unwrap(), 1_000);
    let mut out = Vec::new();
    nats.connect(&mut out);
    assert!(out.is_empty(), "the server speaks first");
    nats
}

fn receive(nats: &mut Nats, bytes: &str) -> Result<Vec<Event>, BrokerError> {
    let mut events = Vec::new();
    nats.received(bytes.as_bytes(), &mut events)
        .map(|()| events)
}

/// The commands and what follows them.
fn send(nats: &mut Nats, commands: impl IntoIterator<Item = Command>) -> String {
    let mut out = Vec::new();
    for command in commands {
        nats.command(command, &mut out);
    }
    nats.flush(&mut out);
    String::from_utf8(out).unwrap()
}

fn ready() -> Nats {
    ready_of("nats://me:hunter2@localhost?app=app")
}

fn ready_of(url: &str) -> Nats {
    let mut nats = nats_of(url);
    assert_eq!(receive(&mut nats, INFO).unwrap(), []);
    assert!(send(&mut nats, []).starts_with("CONNECT "));
    let events = receive(&mut nats, "PONG\r\n").unwrap();
    assert_eq!(events, [Event::Ready(Incarnation("N1".into()))]);
    assert_eq!(nats.message_bytes_max(), 100);
    nats
}

fn room(name: &str) -> Channel {
    Channel::Room(name.into())
}

fn publish(channel: Channel, text: &'static str) -> Command {
    let envelope = Bytes::from_static(text.as_bytes());
    Command::Publish { channel, envelope }
}

fn published() -> Event {
    Event::Published { receivers: 0 }
}

fn message(channel: Channel, text: &'static str) -> Event {
    Event::Message {
        channel,
        id: None,
        envelope: Bytes::from_static(text.as_bytes()),
    }
}

fn refused(command: Kind, error: &str) -> Event {
    Event::Refused(Refused {
        command,
        error: error.into(),
        passes: command == Kind::Subscribe,
    })
}

#[test]
fn connect_sends_the_credentials_of_the_url() {
    for (url, expected) in [
        ("nats://h", &[][..]),
        (
            "nats://me:p%22w@h",
            &["\"user\":\"me\"", "\"pass\":\"p\\\"w\""],
        ),
        ("nats://t0ken@h", &["\"auth_token\":\"t0ken\""]),
    ] {
        let mut nats = nats_of(url);
        receive(&mut nats, INFO).unwrap();
        let sent = send(&mut nats, []);
        let options = sent.strip_prefix("CONNECT ").unwrap();
        let options = options.strip_suffix("\r\nPING\r\n").unwrap();
        let parsed: serde_json::Value = serde_json::from_str(options).unwrap();
        for (name, value) in [("echo", false), ("verbose", false), ("headers", false)] {
            assert_eq!(parsed[name], value);
        }
        let secrets = ["user", "pass", "auth_token"];
        let found = secrets.iter().filter(|name| !parsed[**name].is_null());
        assert_eq!(found.count(), expected.len(), "{options}");
        for part in expected {
            assert!(options.contains(part), "{options}");
        }
        assert_eq!(send(&mut nats, []), "", "it is sent once");
    }
}

#[test]
fn commands_are_confirmed_by_the_pong_of_their_turn() {
    let mut nats = ready();
    let sent = send(
        &mut nats,
        [
            Command::Subscribe(vec![Channel::Nodes, room("a")]),
            publish(room("a"), "x\r\ny"),
            publish(Channel::Node(0xfe), ""),
        ],
    );
    assert_eq!(
        sent,
        "SUB app.nodes 1\r\nSUB app.room.YQ 2\r\nPUB app.room.YQ 4\r\nx\r\ny\r\nPUB app.node.000000fe 0\r\n\r\nPING\r\n"
    );
    let sent = send(&mut nats, [publish(Channel::Nodes, "beat")]);
    assert_eq!(sent, "PUB app.nodes 4\r\nbeat\r\nPING\r\n");
    assert_eq!(
        receive(&mut nats, "PONG\r\nPONG\r\n").unwrap(),
        [
            Event::Subscribed(Channel::Nodes),
            Event::Subscribed(room("a")),
            published(),
            published(),
            published(),
            // It does not come back by itself.
            message(Channel::Nodes, "beat"),
        ]
    );
    assert!(receive(&mut nats, "PONG\r\n").is_err());
}

#[test]
fn heartbeat_is_not_reported_to_a_node_that_does_not_hear_others() {
    let mut nats = ready();
    let nodes = || Command::Subscribe(vec![Channel::Nodes]);
    send(&mut nats, [nodes(), publish(Channel::Nodes, "beat")]);
    let error = "Permissions Violation for Subscription to \"app.nodes\"";
    let received = format!("-ERR '{error}'\r\nPONG\r\n");
    let events = receive(&mut nats, &received).unwrap();
    assert_eq!(events, [refused(Kind::Subscribe, error), published()]);
}

#[test]
fn many_bytes_are_confirmed_in_parts() {
    let mut nats = Nats::new("nats://h".parse().unwrap(), 1 << 20);
    nats.connect(&mut Vec::new());
    receive(&mut nats, "INFO {\"server_id\":\"N1\"}\r\n").unwrap();
    send(&mut nats, []);
    receive(&mut nats, "PONG\r\n").unwrap();
    let envelope = Bytes::from("x".repeat(20 << 10));
    let channel = room("a");
    let command = || Command::Publish {
        channel: channel.clone(),
        envelope: envelope.clone(),
    };
    let sent = send(&mut nats, (0..9).map(|_| command()));
    assert_eq!(sent.matches("PING\r\n").count(), 3);
    for part in [4, 4, 1] {
        assert_eq!(receive(&mut nats, "PONG\r\n").unwrap().len(), part);
    }
}

#[test]
fn messages_are_reported_for_current_subscriptions_only() {
    let mut nats = ready();
    send(&mut nats, [Command::Subscribe(vec![room("a"), room("b")])]);
    receive(&mut nats, "PONG\r\n").unwrap();
    let sent = send(
        &mut nats,
        [Command::Unsubscribe(vec![room("a"), room("c")])],
    );
    assert_eq!(sent, "UNSUB 1\r\n");
    let sent = send(&mut nats, [Command::Subscribe(vec![room("a"), room("b")])]);
    assert_eq!(
        sent, "SUB app.room.YQ 3\r\nPING\r\n",
        "it has the other one"
    );
    let events = receive(
        &mut nats,
        "MSG app.room.YQ 1 1\r\nx\r\nMSG app.room.Yg 2 1\r\ny\r\nMSG app.room.YQ 3 1\r\nz\r\nPONG\r\nMSG a 9 1\r\nx\r\n",
    );
    assert_eq!(
        events.unwrap(),
        [
            message(room("b"), "y"),
            message(room("a"), "z"),
            Event::Subscribed(room("a")),
            Event::Subscribed(room("b")),
        ]
    );
}

#[test]
fn message_beyond_the_servers_limit_is_refused_without_being_sent() {
    let mut nats = ready();
    let long = Command::Publish {
        channel: room("a"),
        envelope: Bytes::from("x".repeat(101)),
    };
    let sent = send(&mut nats, [long, publish(room("a"), "x")]);
    assert_eq!(sent, "PUB app.room.YQ 1\r\nx\r\nPING\r\n");
    let why = "it takes messages of 100 bytes at most (its max_payload)";
    let events = receive(&mut nats, "PONG\r\n").unwrap();
    assert_eq!(events, [refused(Kind::Publish, why), published()]);
}

const NO_PUBLISH: &str = "Permissions Violation for Publish to";
const NO_SUBSCRIPTION: &str = "Permissions Violation for Subscription to";

#[test]
fn violated_permissions_refuse_the_commands_that_they_name() {
    let mut nats = ready();
    send(
        &mut nats,
        [
            publish(room("a"), "x"),
            publish(room("b"), "y"),
            publish(room("b"), "z"),
            Command::Subscribe(vec![room("a"), room("b")]),
        ],
    );
    let publishing = format!("{NO_PUBLISH} \"app.room.Yg\"");
    let subscribing = format!("{NO_SUBSCRIPTION} \"app.room.YQ\"");
    let received =
        format!("-ERR '{publishing}'\r\n-ERR '{subscribing}'\r\n-ERR '{publishing}'\r\nPONG\r\n");
    assert_eq!(
        receive(&mut nats, &received).unwrap(),
        [
            Event::Subscribed(room("b")),
            refused(Kind::Subscribe, &subscribing),
            published(),
            refused(Kind::Publish, &publishing),
            refused(Kind::Publish, &publishing),
        ]
    );
    // It is tried again.
    let sent = send(&mut nats, [Command::Subscribe(vec![room("a")])]);
    assert_eq!(sent, "SUB app.room.YQ 3\r\nPING\r\n");
}

#[test]
fn refused_commands_are_found_whatever_the_names_are() {
    let long = "x".repeat(255);
    for (url, name, subject) in [
        // The user is in the subject, and names may differ in the case of their encoding only.
        ("nats://app:pw@h?app=app", "aaG", "app.room.YWFH".to_owned()),
        (
            "nats://me:pw@h?app=app",
            &long,
            format!("app.room.{}", "eHh4".repeat(85)),
        ),
    ] {
        let mut nats = ready_of(url);
        let both = || vec![room("aaa"), room(name)];
        send(
            &mut nats,
            [
                Command::Subscribe(both()),
                publish(room("aaa"), "x"),
                publish(room(name), "y"),
            ],
        );
        let received = format!(
            "-ERR '{NO_SUBSCRIPTION} \"{subject}\"'\r\n-ERR '{NO_PUBLISH} \"{subject}\"'\r\nPONG\r\n"
        );
        let events = receive(&mut nats, &received).unwrap();
        let kinds: Vec<_> = events.iter().map(kind).collect();
        assert_eq!(events[0], Event::Subscribed(room("aaa")));
        assert_eq!(
            kinds,
            [None, Some(Kind::Subscribe), None, Some(Kind::Publish)]
        );
    }
}

/// The kind of a refused command.
fn kind(event: &Event) -> Option<Kind> {
    match event {
        Event::Refused(refused) => Some(refused.command),
        _ => None,
    }
}

#[test]
fn subscriptions_beyond_the_servers_limit_are_refused_once() {
    let mut nats = ready();
    send(&mut nats, [Command::Subscribe(vec![room("a")])]);
    receive(&mut nats, "PONG\r\n").unwrap();
    let all = ["b", "c", "d", "a"].map(room).to_vec();
    send(&mut nats, [Command::Subscribe(all)]);
    let error = "maximum subscriptions exceeded";
    let received = format!("-ERR '{error}'\r\n-ERR '{error}'\r\nPONG\r\n");
    assert_eq!(
        receive(&mut nats, &received).unwrap(),
        [
            Event::Subscribed(room("b")),
            Event::Subscribed(room("a")),
            refused(Kind::Subscribe, error),
        ]
    );
    let sent = send(&mut nats, [Command::Subscribe(vec![room("c"), room("b")])]);
    assert_eq!(sent, "SUB app.room.Yw 5\r\nPING\r\n");
}

#[test]
fn revoked_subscription_ends_the_connection() {
    let mut nats = ready();
    send(&mut nats, [Command::Subscribe(vec![room("a")])]);
    receive(&mut nats, "PONG\r\n").unwrap();
    let revoked = format!("-ERR '{NO_SUBSCRIPTION} \"app.room.YQ\" (sid \"1\")'\r\n");
    let error = receive(&mut nats, &revoked).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
}

#[test]
fn many_refused_commands_are_all_found() {
    const COMMANDS: usize = 20_000;
    let mut nats = ready();
    let name = |n: usize| format!("room {n}");
    let rooms: Vec<_> = (0..COMMANDS).map(|n| room(&name(n))).collect();
    let publishes = rooms.iter().cloned().map(|room| publish(room, ""));
    let commands: Vec<_> = publishes
        .chain([Command::Subscribe(rooms.clone())])
        .collect();
    send(&mut nats, commands);
    let mut received = String::new();
    for room in &rooms {
        let mut subject = Vec::new();
        put_subject(&mut subject, "app", room);
        let subject = String::from_utf8(subject).unwrap();
        received += &format!("-ERR '{NO_PUBLISH} \"{subject}\"'\r\n");
        received += &format!("-ERR '{NO_SUBSCRIPTION} \"{subject}\"'\r\n");
    }
    let events = receive(&mut nats, &(received + "PONG\r\n")).unwrap();
    let kinds = events.iter().filter_map(kind);
    assert_eq!(
        kinds.filter(|kind| *kind == Kind::Publish).count(),
        COMMANDS
    );
    assert_eq!(events.len(), COMMANDS + 1);
}

#[test]
fn errors_that_end_a_connection_say_why_without_secrets() {
    let authentication = |text: &str| BrokerError::Authentication(text.into());
    let unusable = |text: &str| BrokerError::Unusable(text.into());
    for (error, expected) in [
        (
            "Authorization Violation",
            authentication("Authorization Violation"),
        ),
        (
            "User Authentication Expired",
            authentication("User Authentication Expired"),
        ),
        ("Authentication Timeout", unusable("Authentication Timeout")),
        ("Slow Consumer", unusable("Slow Consumer")),
        ("it is hunter2", unusable(NOT_REPORTED)),
    ] {
        let lost = receive(&mut ready(), &format!("-ERR '{error}'\r\n"));
        assert_eq!(lost, Err(expected));
    }
    let mut anonymous = nats_of("nats://h");
    receive(&mut anonymous, INFO).unwrap();
    let error = receive(&mut anonymous, "-ERR 'Authorization Violation'\r\n").unwrap_err();
    assert!(
        error.to_string().contains("nats://user:password@host"),
        "{error}"
    );
    let mut token = ready_of("nats://t0ken@h");
    let error = receive(&mut token, "-ERR 'bad t0ken'\r\n");
    assert_eq!(error, Err(unusable(NOT_REPORTED)));
}

#[test]
fn ping_of_the_server_is_answered_once() {
    let mut nats = ready();
    receive(&mut nats, "PING\r\n").unwrap();
    assert_eq!(send(&mut nats, []), "PONG\r\n");
    receive(&mut nats, &"PING\r\n".repeat(1_000)).unwrap();
    assert_eq!(send(&mut nats, []), "PONG\r\n");
    assert_eq!(send(&mut nats, []), "");
}

#[test]
fn url_and_server_must_agree_about_tls() {
    for (url, info, why) in [
        ("nats://h", "\"tls_required\":true", "tls://"),
        ("tls://h", "\"tls_required\":false", "nats://"),
    ] {
        let mut nats = nats_of(url);
        let info = format!("INFO {{\"server_id\":\"N1\",{info}}}\r\n");
        let error = receive(&mut nats, &info).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn nothing_follows_the_greeting_before_tls() {
    let info = "INFO {\"server_id\":\"N1\",\"tls_required\":true}\r\n";
    let mut nats = nats_of("tls://h");
    assert!(!nats.begins_tls());
    receive(&mut nats, info).unwrap();
    assert!(nats.begins_tls());
    assert!(send(&mut nats, []).contains("\"tls_required\":true"));
    assert!(!nats.begins_tls());
    for more in ["PING\r\n", "P", "MSG a 1 1\r\n"] {
        let mut nats = nats_of("tls://h");
        assert!(
            receive(&mut nats, &format!("{info}{more}")).is_err(),
            "{more}"
        );
    }
}

#[test]
fn new_connection_forgets_the_last_one() {
    let mut nats = ready();
    send(
        &mut nats,
        [Command::Subscribe(vec![room("a")]), publish(room("a"), "x")],
    );
    receive(&mut nats, "PING\r\nMSG a 1 5\r\nab").unwrap();
    nats.connect(&mut Vec::new());
    receive(&mut nats, INFO).unwrap();
    assert!(send(&mut nats, []).starts_with("CONNECT "));
    receive(&mut nats, "PONG\r\n").unwrap();
    let sent = send(&mut nats, [Command::Subscribe(vec![room("a")])]);
    assert_eq!(sent, "SUB app.room.YQ 1\r\nPING\r\n");
    assert_eq!(
        receive(&mut nats, "PONG\r\n").unwrap(),
        [Event::Subscribed(room("a"))]
    );
}
