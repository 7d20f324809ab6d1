//! Connections to scripted servers: what is sent, and what any received bytes lead to.

use std::sync::Arc;

use bytes::Bytes;

use super::url::RedisUrl;
use super::{Redis, RedisSettings};
use crate::cluster::broker::{
    Append, Appended, Broker, BrokerError, Channel, Command, Event, History, Incarnation, Kind,
    Read, Refused,
};
use crate::history_id::HistoryId;

const HELLO: &str = "%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n\
                     $2\r\nid\r\n:7\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n\
                     *1\r\n%2\r\n$4\r\nname\r\n$1\r\nx\r\n$4\r\nargs\r\n*2\r\n$1\r\na\r\n_\r\n";
const INFO: &str = "=60\r\ntxt:# Server\r\nredis_version:7.0.15\r\nrun_id:0123456789abcde\r\n\r\n\
                    =30\r\ntxt:# Persistence\r\nloading:0\r\n\r\n";

pub(super) fn redis_of(url: &str, message_bytes_max: usize) -> Redis {
    let url: RedisUrl = url.parse().unwrap();
    Redis::new(RedisSettings::new(url.login, url.tls, message_bytes_max))
}

/// Returns a connection that has sent its first commands.
fn connecting(url: &str) -> Redis {
    let mut redis = redis_of(url, 1 << 20);
    redis.connect(&mut Vec::new());
    redis
}

/// Returns a connection that is ready.
pub(super) fn ready_of(message_bytes_max: usize) -> Redis {
    let mut redis = redis_of("redis://:hunter2@localhost?app=app", message_bytes_max);
    redis.connect(&mut Vec::new());
    let events = receive(&mut redis, [HELLO, INFO].concat()).unwrap();
    assert_eq!(events, [Event::Ready(incarnation())]);
    redis
}

pub(super) fn ready() -> Redis {
    ready_of(1 << 20)
}

fn incarnation() -> Incarnation {
    Incarnation("0123456789abcde".into())
}

pub(super) fn receive(
    redis: &mut Redis,
    bytes: impl AsRef<[u8]>,
) -> Result<Vec<Event>, BrokerError> {
    let mut events = Vec::new();
    redis.received(bytes.as_ref(), &mut events).map(|()| events)
}

/// Returns what a command is encoded to.
pub(super) fn encode(redis: &mut Redis, command: Command) -> String {
    let mut out = Vec::new();
    redis.command(command, &mut out);
    String::from_utf8(out).unwrap()
}

/// Encodes a command in the most obvious way.
pub(super) fn command(arguments: &[&str]) -> String {
    let bulk = |text: &&str| format!("${}\r\n{text}\r\n", text.len());
    let arguments_encoded: String = arguments.iter().map(bulk).collect();
    format!("*{}\r\n{arguments_encoded}", arguments.len())
}

/// Encodes a push in the most obvious way.
pub(super) fn push(values: &[&str]) -> String {
    command(values).replacen('*', ">", 1)
}

fn subscribed(channel: &str) -> String {
    format!(
        ">3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1\r\n",
        channel.len()
    )
}

pub(super) fn room(name: &str) -> Channel {
    Channel::Room(name.into())
}

fn publish(channel: Channel, envelope: &'static str) -> Command {
    let envelope = Bytes::from_static(envelope.as_bytes());
    Command::Publish { channel, envelope }
}

pub(super) fn append() -> Command {
    Command::Append(Append {
        room: "a".into(),
        envelope: Bytes::from_static(b"hello"),
        node: 0x00ab_cdef,
        counter: 12,
        needs_counter: false,
        expected: None,
        new_epoch: 0xfe,
        messages_max: 100,
        bytes_max: 4096,
    })
}

pub(super) fn read() -> Command {
    read_after(Some(HistoryId::new(0xfe, 7)))
}

fn read_after(since: Option<HistoryId>) -> Command {
    Command::Read(vec![Read {
        room: "a".into(),
        since,
        new_epoch: 0xff,
        extends: true,
    }])
}

pub(super) fn message(channel: Channel, id: Option<HistoryId>, envelope: &str) -> Event {
    let envelope = Bytes::copy_from_slice(envelope.as_bytes());
    Event::Message {
        channel,
        id,
        envelope,
    }
}

fn refused(command: Kind, error: &str, passes: bool) -> Event {
    let error = error.into();
    Event::Refused(Refused {
        command,
        error,
        passes,
    })
}

/// A history of the epoch `fe`, which began at the sequence `base`.
pub(super) fn history(base: u64, first: u64, last: u64, messages: &[&'static str]) -> Event {
    Event::History(History {
        room: "a".into(),
        position: HistoryId::new(0xfe, last),
        base,
        first,
        messages: messages
            .iter()
            .map(|text| Bytes::from_static(text.as_bytes()))
            .collect(),
    })
}

#[test]
fn connect_sends_all_first_commands_at_once() {
    let mut out = Vec::new();
    redis_of("redis://me:p%20w@localhost/12?app=x", 1).connect(&mut out);
    let expected = command(&["HELLO", "3", "AUTH", "me", "p w", "SETNAME", "x"])
        + &command(&["SELECT", "12"])
        + &command(&["INFO", "server"])
        + &command(&["INFO", "persistence"]);
    assert_eq!(String::from_utf8(out).unwrap(), expected);

    for (url, hello) in [
        (
            "redis://localhost",
            &["HELLO", "3", "SETNAME", "humphrey_ws"][..],
        ),
        (
            "redis://:pw@localhost?app=x",
            &["HELLO", "3", "AUTH", "default", "pw", "SETNAME", "x"],
        ),
        (
            "redis://me@localhost?app=x",
            &["HELLO", "3", "AUTH", "me", "", "SETNAME", "x"],
        ),
    ] {
        let mut out = Vec::new();
        redis_of(url, 1).connect(&mut out);
        let info = command(&["INFO", "server"]) + &command(&["INFO", "persistence"]);
        let expected = command(hello) + &info;
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{url}");
    }
}

#[test]
fn commands_are_encoded_with_the_prefix_of_the_app() {
    let mut redis = ready();
    let channels = vec![Channel::Everyone, Channel::Node(0x1f), room("é")];
    assert_eq!(
        encode(&mut redis, Command::Subscribe(channels.clone())),
        command(&[
            "SUBSCRIBE",
            "app:everyone",
            "app:node:0000001f",
            "app:room:é"
        ])
    );
    assert_eq!(
        encode(&mut redis, Command::Unsubscribe(channels)),
        command(&[
            "UNSUBSCRIBE",
            "app:everyone",
            "app:node:0000001f",
            "app:room:é"
        ])
    );
    assert_eq!(
        encode(&mut redis, publish(Channel::Nodes, "hi")),
        command(&["PUBLISH", "app:nodes", "\nhi"])
    );
    assert_eq!(encode(&mut redis, Command::Subscribe(Vec::new())), "");
    assert_eq!(encode(&mut redis, Command::Unsubscribe(Vec::new())), "");
}

#[test]
fn scripts_are_loaded_before_the_first_use_only() {
    let mut redis = ready();
    let (append_script, read_script) = (&redis.session.append, &redis.session.read);
    let digests = [append_script, read_script].map(|script| {
        let mut out = Vec::new();
        script.put_start(3, 11, &mut out);
        let digest = String::from_utf8(out)
            .unwrap()
            .split("\r\n")
            .nth(4)
            .unwrap()
            .to_owned();
        assert_eq!(digest.len(), 40);
        digest
    });
    let load =
        command(&["SCRIPT", "LOAD", super::APPEND]) + &command(&["SCRIPT", "LOAD", super::READ]);
    let appended = command(&[
        "EVALSHA",
        &digests[0],
        "3",
        "app:{history:a}:position",
        "app:{history:a}:messages",
        "app:counter:00abcdef",
        "00000000000000000012",
        "0123456789abcde",
        "fe",
        "",
        "100",
        "4096",
        "86400000",
        "3600000",
        "app:room:a",
        "hello",
        "0",
    ]);
    let read_from = |epoch, since| {
        command(&[
            "EVALSHA",
            &digests[1],
            "2",
            "app:{history:a}:position",
            "app:{history:a}:messages",
            "0123456789abcde",
            "16777216",
            "1048576",
            "16",
            "86400000",
            epoch,
            since,
            "ff",
            "1",
        ])
    };
    assert_eq!(encode(&mut redis, append()), load.clone() + &appended);
    assert_eq!(encode(&mut redis, append()), appended);
    assert_eq!(encode(&mut redis, read()), read_from("fe", "7"));
    let all = read_after(None);
    assert_eq!(encode(&mut redis, all), read_from("", "0"));
    // Somebody has removed the scripts.
    receive(
        &mut redis,
        "$1\r\nx\r\n$1\r\nx\r\n-NOSCRIPT No matching script.\r\n",
    )
    .unwrap();
    assert_eq!(encode(&mut redis, append()), load.clone() + &appended);
    // Another connection, perhaps to another server.
    redis.connect(&mut Vec::new());
    receive(&mut redis, [HELLO, INFO].concat()).unwrap();
    assert_eq!(encode(&mut redis, append()), load + &appended);
}

#[test]
fn conditional_append_names_the_expected_position() {
    let mut redis = ready();
    let Command::Append(mut conditional) = append() else {
        unreachable!()
    };
    conditional.expected = Some(HistoryId::new(u64::MAX, u64::MAX));
    conditional.counter = u64::MAX;
    conditional.new_epoch = 0;
    let sent = encode(&mut redis, Command::Append(conditional));
    assert!(sent.contains("\r\nffffffffffffffff-18446744073709551615\r\n"));
    assert!(sent.contains("\r\n18446744073709551615\r\n"));
    assert!(sent.contains("\r\n0\r\n"));
}

#[test]
fn many_channels_are_split_into_commands_of_1000() {
    let mut redis = ready();
    let channels: Vec<_> = (0..2500).map(|n| room(&n.to_string())).collect();
    let sent = encode(&mut redis, Command::Subscribe(channels.clone()));
    let counts: Vec<_> = sent
        .split("\r\n")
        .filter(|line| line.starts_with('*'))
        .collect();
    assert_eq!(counts, ["*1001", "*1001", "*501"]);
    let confirmed: String = (0..2500)
        .map(|n| subscribed(&format!("app:room:{n}")))
        .collect();
    let events = receive(&mut redis, confirmed).unwrap();
    let expected: Vec<_> = channels.into_iter().map(Event::Subscribed).collect();
    assert_eq!(events, expected);
    assert!(redis.session.unanswered.is_empty());
}

/// Everything that a server sends in good order, with the events of it.
pub(super) fn conversation() -> (Redis, String, Vec<Event>) {
    let mut redis = connecting("redis://localhost/1?app=app");
    let out = &mut Vec::new();
    redis.command(Command::Subscribe(vec![Channel::Everyone, room("a")]), out);
    redis.command(publish(Channel::Everyone, "x"), out);
    redis.command(append(), out);
    redis.command(Command::Unsubscribe(vec![room("a"), room("b")]), out);
    redis.command(append(), out);
    redis.command(append(), out);
    redis.command(append(), out);
    redis.command(read(), out);
    redis.command(read(), out);
    redis.command(publish(Channel::Everyone, "x"), out);
    let id = |sequence| HistoryId::new(0xfe, sequence);
    let mut expected = Vec::new();
    let mut bytes = String::new();
    let mut says = |text: &str, events: &[Event]| {
        bytes.push_str(text);
        expected.extend_from_slice(events);
    };
    says(HELLO, &[]);
    says("+OK\r\n", &[]);
    says(INFO, &[Event::Ready(incarnation())]);
    says(
        &subscribed("app:everyone"),
        &[Event::Subscribed(Channel::Everyone)],
    );
    says(
        &push(&["message", "app:everyone", "\nhi"]),
        &[message(Channel::Everyone, None, "hi")],
    );
    says(&subscribed("app:room:a"), &[Event::Subscribed(room("a"))]);
    says(":3\r\n", &[Event::Published { receivers: 3 }]);
    says(
        "$40\r\n0123456789012345678901234567890123456789\r\n+x\r\n",
        &[],
    );
    says(
        &push(&["message", "app:room:a", "fe-1\nhello"]),
        &[message(room("a"), Some(id(1)), "hello")],
    );
    says("$4\r\nfe-1\r\n", &[Event::Appended(Appended::Id(id(1)))]);
    says(
        &push(&["unsubscribe", "app:room:a", ""]).replace("$0\r\n\r\n", ":1\r\n"),
        &[],
    );
    says(
        &push(&["message", "app:room:a", "\n"]),
        &[message(room("a"), None, "")],
    );
    says(
        &push(&["unsubscribe", "app:room:b", ""]).replace("$0\r\n\r\n", ":1\r\n"),
        &[],
    );
    says(":0\r\n", &[Event::Appended(Appended::Before)]);
    for (reply, sequence) in [("*1\r\n$4\r\nfe-9\r\n", 9), ("*1\r\n$4\r\nfe-0\r\n", 0)] {
        let position = id(sequence);
        let conflict = Appended::Conflict { position };
        says(reply, &[Event::Appended(conflict)]);
    }
    says(
        "*1\r\n*4\r\n$4\r\nfe-9\r\n:7\r\n:8\r\n*2\r\n$2\r\n\r\n\r\n$0\r\n\r\n",
        &[history(7, 8, 9, &["\r\n", ""])],
    );
    says(&push(&["invalidate", "app:everyone"]), &[]);
    says("|1\r\n+ttl\r\n:5\r\n", &[]);
    // A history that the read has begun.
    says(
        "*1\r\n*4\r\n$4\r\nfe-0\r\n:0\r\n:1\r\n*0\r\n",
        &[history(0, 1, 0, &[])],
    );
    says(":0\r\n", &[Event::Published { receivers: 0 }]);
    (redis, bytes, expected)
}

#[test]
fn replies_and_messages_are_decoded_at_every_split() {
    let (mut redis, bytes, expected) = conversation();
    assert_eq!(receive(&mut redis, &bytes).unwrap(), expected);
    assert!(redis.session.unanswered.is_empty());
    for at in 1..bytes.len() {
        let (mut redis, bytes, _) = conversation();
        let (first, second) = bytes.as_bytes().split_at(at);
        let mut events = receive(&mut redis, first).unwrap();
        events.extend(receive(&mut redis, second).unwrap());
        assert_eq!(events, expected, "split at {at}");
    }
    let (mut redis, bytes, _) = conversation();
    let mut events = Vec::new();
    for byte in bytes.as_bytes().chunks(1) {
        redis.received(byte, &mut events).unwrap();
    }
    assert_eq!(events, expected);
}

#[test]
fn refused_commands_do_not_shift_the_order() {
    let mut redis = ready();
    let out = &mut Vec::new();
    for command in [
        publish(Channel::Nodes, "1"),
        Command::Subscribe(vec![room("a"), room("b")]),
        append(),
        Command::Unsubscribe(vec![room("a"), room("b")]),
        read(),
        publish(Channel::Nodes, "2"),
        append(),
        read(),
        Command::Subscribe(vec![room("c")]),
    ] {
        redis.command(command, out);
    }
    let events = receive(
        &mut redis,
        "-BUSY Redis is busy\r\n-NOPERM no channel\r\n$1\r\nx\r\n$1\r\nx\r\n-OOM no memory\r\n-NOPERM no\r\n\
         !12\r\nERR no\r\n    \r\n:1\r\n$4\r\nfe-1\r\n*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:2\r\n*0\r\n"
            .to_owned()
            + &subscribed("app:room:c"),
    );
    assert_eq!(
        events.unwrap(),
        [
            refused(Kind::Publish, "BUSY Redis is busy", true),
            refused(Kind::Subscribe, "NOPERM no channel", false),
            refused(Kind::Append, "OOM no memory", true),
            refused(Kind::Read, "ERR no      ", false),
            Event::Published { receivers: 1 },
            Event::Appended(Appended::Id(HistoryId::new(0xfe, 1))),
            history(0, 2, 1, &[]),
            Event::Subscribed(room("c")),
        ]
    );
    assert!(redis.session.unanswered.is_empty());
}

#[test]
fn refusal_says_whether_it_passes() {
    for (error, passes) in [
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            Some(true),
        ),
        ("BUSY Redis is busy running a script.", Some(true)),
        ("LOADING Redis is loading the dataset in memory", None),
        (
            "MISCONF Redis is configured to save RDB snapshots",
            Some(true),
        ),
        ("NOREPLICAS Not enough good replicas to write.", Some(true)),
        ("NOSCRIPT No matching script.", Some(true)),
        ("NOPERM User x has no permissions", Some(false)),
        ("WRONGTYPE Operation against a key", Some(false)),
        ("ERR something else", Some(false)),
        ("", Some(false)),
        ("é", Some(false)),
        (
            "READONLY You can't write against a read only replica.",
            None,
        ),
        ("MASTERDOWN Link with MASTER is down", None),
        ("MOVED 1 127.0.0.1:1", None),
        (
            "CROSSSLOT Keys in request don't hash to the same slot",
            None,
        ),
        ("NOAUTH Authentication required.", None),
    ] {
        // As version 6 reports what happens in a script.
        let wrapped = format!(
            "ERR Error running script (call to f_0123): @user_script:1: @user_script: 1: -{error}"
        );
        for text in [error, &wrapped] {
            if text == wrapped && error.len() < 5 {
                continue;
            }
            let mut redis = ready();
            encode(&mut redis, append());
            let received = receive(&mut redis, format!("+x\r\n+x\r\n-{text}\r\n"));
            match passes {
                Some(passes) => {
                    assert_eq!(received.unwrap(), [refused(Kind::Append, error, passes)])
                }
                None => match received.unwrap_err() {
                    BrokerError::Unusable(why) => assert!(why.contains(error), "{why}"),
                    BrokerError::Authentication(why) => assert!(why.starts_with("NOAUTH"), "{why}"),
                    error @ BrokerError::Protocol(_) => panic!("{text}: {error}"),
                },
            }
        }
    }
}

#[test]
fn rejected_script_is_reported_with_its_use() {
    let mut redis = ready();
    encode(&mut redis, append());
    encode(&mut redis, read());
    let noscript = "-NOSCRIPT No matching script.\r\n";
    let replies = "-NOPERM no script|load\r\n".repeat(2) + &noscript.repeat(2);
    assert_eq!(
        receive(&mut redis, replies).unwrap(),
        [Kind::Append, Kind::Read].map(|kind| refused(kind, "NOPERM no script|load", false))
    );
    // The right was granted meanwhile.
    assert!(encode(&mut redis, append()).contains("SCRIPT"));
    assert_eq!(
        receive(&mut redis, "+x\r\n+x\r\n:0\r\n").unwrap(),
        [Event::Appended(Appended::Before)]
    );
}

#[test]
fn setup_failure_says_what_to_do() {
    enum Fails {
        Login,
        Unusable,
    }
    use Fails::{Login, Unusable};

    let hello_of = |key: &str, value: &str| format!("%1\r\n+{key}\r\n+{value}\r\n");
    let hello = |rest: &str| format!("{HELLO}{rest}");
    for (received, fails, says) in [
        ("-NOAUTH HELLO must be called with the client already authenticated\r\n".into(), Login, "redis://:password@host"),
        ("-WRONGPASS invalid username-password pair or user is disabled.\r\n".into(), Login, "the password is wrong"),
        ("-NOPERM this user has no permissions to run the 'hello' command\r\n".into(), Unusable, "+hello"),
        ("-DENIED Redis is running in protected mode\r\n".into(), Unusable, "protected mode"),
        ("-ERR max number of clients reached\r\n".into(), Unusable, "maxclients"),
        ("-LOADING Redis is loading the dataset in memory\r\n".into(), Unusable, "loading"),
        ("-MASTERDOWN Link with MASTER is down\r\n".into(), Unusable, "replica"),
        ("-BUSY Redis is busy running a script.\r\n".into(), Unusable, "script"),
        ("-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `me`, `hunter2`\r\n".into(), Unusable, "Redis 6"),
        ("-ERR unknown command 'HELLO'\r\n".into(), Unusable, "Valkey 7.2"),
        ("-NOPROTO sorry, this protocol version is not supported.\r\n".into(), Unusable, "HELLO 3"),
        ("*2\r\n$6\r\nserver\r\n$5\r\nredis\r\n".into(), Unusable, "HELLO 3"),
        ("+OK\r\n".into(), Unusable, "HELLO 3"),
        (hello_of("role", "replica"), Unusable, "primary"),
        (hello_of("role", "slave"), Unusable, "primary"),
        (hello_of("mode", "cluster"), Unusable, "Redis Cluster"),
        (hello_of("mode", "sentinel"), Unusable, "Sentinel"),
        (hello("-ERR DB index is out of range\r\n"), Unusable, "number of the database"),
        (hello("-NOPERM no select\r\n"), Unusable, "+select"),
        (hello("+OK\r\n-NOPERM no info\r\n"), Unusable, "+info"),
        (hello("+OK\r\n-LOADING soon\r\n"), Unusable, "loading"),
        (hello("+OK\r\n-ERR hunter2\r\n"), Unusable, "INFO"),
        (hello("+OK\r\n$7\r\nrun_id:\r\n"), Unusable, "run_id"),
        (hello("+OK\r\n$3\r\na:b\r\n"), Unusable, "run_id"),
        (hello("+OK\r\n$8\r\nrun_id:x\r\n$9\r\nloading:1\r\n"), Unusable, "loading"),
        (hello("+OK\r\n$8\r\nrun_id:x\r\n-NOPERM no info\r\n"), Unusable, "+info"),
    ] {
        let mut redis = connecting("redis://me:hunter2@localhost/1");
        let error = receive(&mut redis, &received).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says) && !text.contains("hunter2"), "{received}: {text}");
        match (error, fails) {
            (BrokerError::Authentication(_), Login) | (BrokerError::Unusable(_), Unusable) => {}
            (error, _) => panic!("{received}: {error:?}"),
        }
    }
}

#[test]
fn secrets_appear_neither_in_debug_nor_in_errors() {
    let mut redis = ready();
    encode(&mut redis, publish(Channel::Nodes, "x"));
    let error = "-ERR unknown command, with args beginning with: hunter2\r\n";
    assert_eq!(
        receive(&mut redis, error).unwrap(),
        [refused(Kind::Publish, "ERR", false)]
    );
    assert!(!format!("{redis:?}").contains("hunter2"));
    let error = receive(&mut redis, "-ERR closing: hunter2\r\n").unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn long_errors_are_shortened_and_made_printable() {
    let mut redis = ready();
    encode(&mut redis, publish(Channel::Nodes, "x"));
    let error = format!("!1006\r\nERR \r\n{}\r\n", "é".repeat(500));
    let expected = format!("ERR   {}", "é".repeat(194));
    assert_eq!(
        receive(&mut redis, error).unwrap(),
        [refused(Kind::Publish, &expected, false)]
    );
}

#[test]
fn new_connection_forgets_the_old_one() {
    let (mut redis, bytes, _) = conversation();
    for at in [10, 200, bytes.len() / 2, bytes.len() - 1] {
        receive(&mut redis, &bytes[..at]).unwrap();
        redis.connect(&mut Vec::new());
        receive(&mut redis, [HELLO, "+OK\r\n", INFO].concat()).unwrap();
        assert!(redis.session.unanswered.is_empty());
        redis = conversation().0;
    }
    // In the middle of a too long string, too.
    let mut redis = ready_of(1);
    let start = ">3\r\n$7\r\nmessage\r\n$9\r\napp:nodes\r\n$1000000\r\nx";
    receive(&mut redis, start).unwrap();
    redis.connect(&mut Vec::new());
    let events = receive(&mut redis, [HELLO, INFO].concat());
    assert_eq!(events.unwrap(), [Event::Ready(incarnation())]);
}

#[test]
fn rooms_of_messages_share_one_name() {
    let mut redis = ready();
    let bytes = push(&["message", "app:room:a", "\nx"]).repeat(2);
    let events = receive(&mut redis, bytes).unwrap();
    let names: Vec<&Arc<str>> = events
        .iter()
        .map(|event| match event {
            Event::Message {
                channel: Channel::Room(name),
                ..
            } => name,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(Arc::ptr_eq(names[0], names[1]));
}
