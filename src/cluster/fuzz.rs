//! Fuzzing of what a broker sends: replies in any pieces, and envelopes.

use super::broker::{Append, Broker, BrokerError, Channel, Command, Event, Read};
use super::nats::Nats;
use super::redis::url::RedisUrl;
use super::redis::{Redis, RedisSettings};
use super::wire::Envelope;

/// What a server says first. Longer inputs begin with the replies to the commands.
const READY: &str = "%2\r\n+role\r\n+master\r\n+mode\r\n+standalone\r\n$11\r\nrun_id:abc\n\r\n\
                     $9\r\nloading:0\r\n";

/// A connection that waits for the replies to some of each command.
fn waiting() -> Redis {
    let url: RedisUrl = "redis://localhost?app=app".parse().expect("a valid URL");
    let mut redis = Redis::new(RedisSettings::new(url.login, url.tls, 1 << 20));
    let out = &mut Vec::new();
    redis.connect(out);
    let mut events = Vec::new();
    let ready = redis.received(READY.as_bytes(), &mut events);
    assert!(ready.is_ok() && events.len() == 1, "{ready:?} {events:?}");
    let append = Append {
        room: "a".into(),
        envelope: b"hello".to_vec().into(),
        node: 7,
        counter: 1,
        needs_counter: false,
        expected: None,
        new_epoch: 0xfe,
        messages_max: 100,
        bytes_max: 4096,
    };
    let read = |room: &str| Read {
        room: room.into(),
        since: None,
        new_epoch: 0xff,
        extends: false,
    };
    let publish = Command::Publish {
        channel: Channel::Everyone,
        envelope: b"x".to_vec().into(),
    };
    for command in [
        Command::Subscribe(vec![Channel::Everyone, Channel::Room("a".into())]),
        publish,
        Command::Append(append),
        Command::Read(vec![read("a"), read("b")]),
        Command::Unsubscribe(vec![Channel::Room("a".into())]),
    ] {
        redis.command(command, out);
    }
    redis
}

/// A connection to a NATS server that waits for its first words.
fn waiting_nats() -> Nats {
    let url = "nats://localhost?app=app".parse();
    let mut nats = Nats::new(url.expect("a valid URL"), 1 << 20);
    nats.connect(&mut Vec::new());
    nats
}

/// Checks that replies have the same outcome in one piece and in pieces, whose length the first byte is.
pub(crate) fn replies(data: &[u8]) {
    check_pieces(data, waiting);
}

/// The same with a NATS server: what it says first, and what it says once it has got commands.
pub(crate) fn nats_replies(data: &[u8]) {
    check_pieces(data, waiting_nats);
    check_pieces(data, || {
        let mut nats = waiting_nats();
        let mut events = Vec::new();
        let mut out = Vec::new();
        for reply in [
            &b"INFO {\"server_id\":\"N\",\"max_payload\":99}\r\n"[..],
            b"PONG\r\n",
        ] {
            let received = nats.received(reply, &mut events);
            assert!(received.is_ok(), "{received:?}");
            nats.flush(&mut out);
        }
        let room = || Channel::Room("a".into());
        for channel in [Channel::Everyone, Channel::Nodes, room()] {
            nats.command(Command::Subscribe(vec![channel.clone()]), &mut out);
            nats.command(
                Command::Publish {
                    channel,
                    envelope: b"x".to_vec().into(),
                },
                &mut out,
            );
        }
        nats.flush(&mut out);
        nats.command(Command::Unsubscribe(vec![room()]), &mut out);
        nats
    });
}

fn check_pieces<B: Broker>(data: &[u8], waiting: impl Fn() -> B) {
    let Some((&piece, bytes)) = data.split_first() else {
        return;
    };
    let received = |pieces: usize| -> (Vec<Event>, Result<(), BrokerError>) {
        let mut broker = waiting();
        let mut events = Vec::new();
        let outcome = bytes
            .chunks(pieces)
            .try_for_each(|piece| broker.received(piece, &mut events));
        broker.flush(&mut Vec::new());
        (events, outcome)
    };
    let whole = received(bytes.len().max(1));
    assert_eq!(received(usize::from(piece).max(1)), whole);
}

/// Checks that an envelope that can be decoded means the same after it was encoded again. The same bytes are also given to a node as
/// another node's message about presence.
pub(crate) fn envelope(data: &[u8]) {
    crate::presence::fuzz(data);
    if let Ok(decoded) = Envelope::decode(data) {
        let again = decoded
            .content
            .encode()
            .envelope(decoded.node, decoded.serial);
        assert_eq!(Envelope::decode(&again), Ok(decoded));
    }
}
