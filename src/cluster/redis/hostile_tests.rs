//! Connections to servers that send anything: strangers' messages, violations of the protocol, and endless replies.

use super::tests::{
    append, command, conversation, encode, history, message, push, read, ready, ready_of, receive,
    room,
};
use super::url::RedisUrl;
use super::{Redis, RedisSettings};
use crate::cluster::broker::{Broker, BrokerError, Channel, Command, Event};
use crate::history_id::HistoryId;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

#[test]
fn foreign_channels_are_ignored() {
    let mut redis = ready();
    let mut bytes = Vec::new();
    for channel in ["app2:everyone", "other", "app:node:xyz", "", "app:unknown"] {
        bytes.extend(push(&["message", channel, "\nx"]).into_bytes());
    }
    bytes.extend(b">3\r\n$7\r\nmessage\r\n$10\r\napp:room:\xff\r\n$2\r\n\nx\r\n");
    bytes.extend(push(&["message", "app:nodes", "\nx"]).into_bytes());
    assert_eq!(
        receive(&mut redis, bytes).unwrap(),
        [message(Channel::Nodes, None, "x")]
    );
}

#[test]
fn payload_of_a_stranger_is_reported_without_id() {
    let mut redis = ready();
    let long = format!("{}\nx", "0".repeat(40));
    for payload in [
        "", "hello", "fe-1", "fe-01\nx", "FE-1\nx", "fe\nx", "é\nx", &long,
    ] {
        let received = receive(&mut redis, push(&["message", "app:room:a", payload]));
        assert_eq!(received.unwrap(), [message(room("a"), None, payload)]);
    }
    let id = HistoryId::new(u64::MAX, u64::MAX);
    let received = receive(
        &mut redis,
        push(&["message", "app:room:a", &format!("{id}\n\n")]),
    );
    assert_eq!(received.unwrap(), [message(room("a"), Some(id), "\n")]);
}

/// What violates the protocol on a ready connection with an unanswered append.
const VIOLATIONS: [&str; 41] = [
    "\r\n",
    "x",
    "HTTP/1.1 400 Bad Request\r\n",
    "$x\r\n",
    "$\r\n",
    "$-2\r\n",
    "$+1\r\n",
    "$ 1\r\n",
    "$1x",
    "$1\rx",
    "$99999999999999999999\r\n",
    "$9223372036854775807\r\n",
    "$536870913\r\n",
    "$00000000000000000000000",
    "$3\r\nabcdef",
    "$3\r\nabc\n\n",
    "$?\r\n",
    "=3\r\nabc\r\n",
    "=6\r\nabcdef\r\n",
    "*-2\r\n",
    "*x\r\n",
    "*9223372036854775807\r\n",
    "*4294967295\r\n",
    "%2147483648\r\n",
    "%4294967296\r\n",
    "~-1\r\n",
    ":\r\n",
    ":-\r\n",
    ":1.5\r\n",
    ":9223372036854775808\r\n",
    "+a\n",
    "+\n",
    "-a\n\r",
    "*1\r\n>1\r\n:1\r\n",
    "*1\r\n|1\r\n:1\r\n:1\r\n:1\r\n",
    "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    ">1\r\n$7\r\nmessage\r\n",
    ">2\r\n$7\r\nmessage\r\n$9\r\napp:nodes\r\n",
    ">3\r\n$7\r\nmessage\r\n$9\r\napp:nodes\r\n:1\r\n",
    ">3\r\n$9\r\nsubscribe\r\n$9\r\napp:nodes\r\n:1\r\n",
    ">3\r\n$11\r\nunsubscribe\r\n$9\r\napp:nodes\r\n:1\r\n",
];

/// Replies to an append and then a read that are legal in RESP3, and which no server gives.
const BAD_REPLIES: [(&str, &str); 26] = [
    ("*0\r\n", ""),
    ("$1\r\nx\r\n", ""),
    (":2\r\n", ""),
    ("_\r\n", ""),
    ("*2\r\n$4\r\nfe-1\r\n:1\r\n", ""),
    ("*1\r\n:1\r\n", ""),
    ("#t\r\n", ""),
    (":0\r\n", ":0\r\n"),
    (":0\r\n", "*0\r\n"),
    (
        ":0\r\n",
        "*2\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:2\r\n*0\r\n:0\r\n",
    ),
    (":0\r\n", "*1\r\n:1\r\n"),
    (":0\r\n", "*1\r\n*3\r\n$4\r\nfe-1\r\n:2\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n:1\r\n:0\r\n:1\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n+0\r\n:2\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n_\r\n:2\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:-1\r\n:2\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:2\r\n:2\r\n*0\r\n"),
    (
        ":0\r\n",
        "*1\r\n*4\r\n$4\r\nfe-1\r\n:9223372036854775807\r\n:2\r\n*0\r\n",
    ),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n+2\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:2\r\n:0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:0\r\n*0\r\n"),
    (":0\r\n", "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:-5\r\n*0\r\n"),
    (
        ":0\r\n",
        "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:1\r\n*2\r\n+a\r\n+b\r\n",
    ),
    (
        ":0\r\n",
        "*1\r\n*4\r\n$4\r\nfe-1\r\n:0\r\n:1\r\n*1\r\n:1\r\n",
    ),
    (
        ":0\r\n",
        "*1\r\n*4\r\n$23\r\nfe-18446744073709551615\r\n:0\r\n:1\r\n*0\r\n",
    ),
    // The first room of a command is not postponed.
    (":0\r\n", "*1\r\n_\r\n"),
];

/// A ready connection with an unanswered append and read.
fn waiting() -> Redis {
    let mut redis = ready();
    encode(&mut redis, append());
    encode(&mut redis, read());
    receive(&mut redis, "+x\r\n+x\r\n").unwrap();
    redis
}

#[test]
fn violations_of_the_protocol_end_the_connection() {
    let bad_replies = BAD_REPLIES.map(|(append, read)| append.to_owned() + read);
    let violations = VIOLATIONS.into_iter().map(str::to_owned).chain(bad_replies);
    for bytes in violations {
        let whole = receive(&mut waiting(), &bytes);
        assert!(
            matches!(whole, Err(BrokerError::Protocol(_))),
            "{bytes:?}: {whole:?}"
        );
        let mut redis = waiting();
        let in_pieces = bytes
            .bytes()
            .try_for_each(|byte| receive(&mut redis, [byte]).map(|_| ()));
        assert_eq!(in_pieces.unwrap_err(), whole.unwrap_err(), "{bytes:?}");
    }
}

#[test]
fn reply_to_no_command_ends_the_connection() {
    for bytes in ["+OK\r\n", ":1\r\n", "*0\r\n", "_\r\n"] {
        let error = receive(&mut ready(), bytes).unwrap_err();
        assert!(matches!(error, BrokerError::Protocol(_)), "{bytes}");
    }
    let mut redis = ready();
    encode(&mut redis, Command::Subscribe(vec![room("a")]));
    assert!(receive(&mut redis, "+OK\r\n").is_err());
}

#[test]
fn endless_values_end_the_connection_before_memory_grows() {
    for (start, repeated) in [
        ("+", "a"),
        ("-", "a"),
        (",", "1"),
        ("*1000000\r\n", ":1\r\n"),
        ("*1000000\r\n", "_\r\n"),
        ("*100000\r\n", "+aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        ("*100\r\n", &format!("$60000\r\n{}\r\n", "a".repeat(60_000))),
    ] {
        let url: RedisUrl = "redis://localhost".parse().unwrap();
        let mut settings = RedisSettings::new(url.login, url.tls, 1000);
        settings.history_read_bytes_max = 1 << 20;
        let mut redis = Redis::new(settings);
        redis.connect(&mut Vec::new());
        let mut outcome = receive(&mut redis, start);
        let mut sent = 0;
        while outcome.is_ok() && sent < 4 << 20 {
            let piece = repeated.repeat(1 + 1000 / repeated.len());
            outcome = receive(&mut redis, &piece);
            sent += piece.len();
        }
        let error = outcome.expect_err(start);
        assert!(matches!(error, BrokerError::Protocol(_)), "{start}");
        assert!(redis.decoder.capacity() < 6 << 20, "{start}");
    }
}

#[test]
fn too_long_message_is_reported_as_empty() {
    let limit = 100_000;
    let payload_of = |envelope_len| format!("fe-1\n{}", "x".repeat(envelope_len));
    for (len, is_received) in [
        (limit - 1, true),
        (limit, true),
        (limit + 100, false),
        (5 * limit, false),
    ] {
        let payload = payload_of(len);
        let bytes =
            push(&["message", "app:room:a", &payload]) + &push(&["message", "app:nodes", "\nx"]);
        let expected = match is_received {
            true => message(room("a"), Some(HistoryId::new(0xfe, 1)), &payload[5..]),
            false => message(room("a"), None, ""),
        };
        let expected = [expected, message(Channel::Nodes, None, "x")];
        let header_len = bytes.find("fe-1").unwrap();
        let splits = [
            0,
            1,
            header_len - 1,
            header_len,
            header_len + 1,
            bytes.len() - 40,
            bytes.len() - 1,
        ];
        for at in splits {
            let mut redis = ready_of(limit);
            let mut events = receive(&mut redis, &bytes[..at]).unwrap();
            events.extend(receive(&mut redis, &bytes[at..]).unwrap());
            assert!(events == expected, "{len} bytes, split at {at}");
        }
        let mut redis = ready_of(limit);
        let mut events = Vec::new();
        for piece in bytes.as_bytes().chunks(1000) {
            redis.received(piece, &mut events).unwrap();
            assert!(redis.decoder.capacity() <= 4 * limit);
        }
        assert!(events == expected, "{len} bytes in pieces");
    }
}

#[test]
fn too_long_message_in_a_history_keeps_its_place() {
    let mut redis = ready_of(1000);
    encode(&mut redis, read());
    let long = "x".repeat(70_000);
    let reply = "*1\r\n*4\r\n+fe-9\r\n:0\r\n:7\r\n".to_owned() + &command(&["a", &long, "c"]);
    let expected = [history(0, 7, 9, &["a", "", "c"])];
    assert_eq!(
        receive(&mut redis, "+x\r\n+x\r\n".to_owned() + &reply).unwrap(),
        expected
    );
}

#[test]
fn memory_of_a_long_reply_is_released() {
    let mut redis = ready_of(4 << 20);
    let messages: Vec<String> = (0..20_000)
        .map(|n| format!("message {n} {}", "x".repeat(100)))
        .collect();
    let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
    encode(&mut redis, read());
    let reply =
        "+x\r\n+x\r\n*1\r\n*4\r\n+fe-30000\r\n:0\r\n:10001\r\n".to_owned() + &command(&messages);
    let mut events = Vec::new();
    for piece in reply.as_bytes().chunks(64 << 10) {
        redis.received(piece, &mut events).unwrap();
    }
    let [Event::History(history)] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(history.messages == messages);
    let long = push(&["message", "app:nodes", &"x".repeat(3 << 20)]);
    for piece in long.as_bytes().chunks(64 << 10) {
        redis.received(piece, &mut events).unwrap();
    }
    assert!(
        redis.decoder.capacity() < 1 << 20,
        "{}",
        redis.decoder.capacity()
    );
}

/// Changes some bytes, as a hostile server or a defect could.
fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    const LIKELY: &[u8] = b"$*:+-_>%|~!=#,(0123456789\r\n";
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(bytes.len());
        let byte = match dice.one_in(4) {
            true => dice.below(256) as u8,
            false => LIKELY[dice.below(LIKELY.len())],
        };
        match dice.below(6) {
            0 => bytes.insert(at, byte),
            1 => bytes.truncate(at.max(1)),
            2 => {
                let end = (at + dice.below(30)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let end = (at + dice.below(60)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => bytes[at] = byte,
        }
        if bytes.is_empty() {
            bytes.push(byte);
        }
    }
}

#[test]
fn mutated_bytes_have_the_same_outcome_at_every_split() {
    for_seeds(4_000, |seed| {
        let mut dice = Dice::from_seed(seed);
        let (mut redis, bytes, _) = conversation();
        let mut bytes = bytes.into_bytes();
        mutate(&mut bytes, &mut dice);
        let mut events = Vec::new();
        let outcome = redis.received(&bytes, &mut events);
        let (mut split, ..) = conversation();
        let (mut split_events, mut split_outcome) = (Vec::new(), Ok(()));
        let mut rest = &bytes[..];
        let piece_max = 1 + dice.below(200);
        while !rest.is_empty() && split_outcome.is_ok() {
            let (piece, later) = rest.split_at(rest.len().min(1 + dice.below(piece_max)));
            split_outcome = split.received(piece, &mut split_events);
            rest = later;
        }
        assert_eq!(split_events, events);
        assert_eq!(split_outcome, outcome);
        assert_eq!(split.session.unanswered, redis.session.unanswered);
    });
}
