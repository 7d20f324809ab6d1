//! Connections to a real server, which each test starts for itself. Without `redis-server`, they say so and pass.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::url::RedisUrl;
use super::{Redis, RedisSettings};
use crate::cluster::broker::{
    Append, Appended, Broker, BrokerError, Channel, Command, Event, History, Kind, Read,
};
use crate::history_id::HistoryId;

#[path = "../../../tests/support/brokers/mod.rs"]
mod brokers;

pub(super) use brokers::{PERSISTENT, RedisServer};

/// The maximum time to wait for events. It is ample even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);
const ROOM: &str = "a";
/// The epoch that a read begins if there is no history.
pub(super) const READ_EPOCH: u64 = 0xbe;

/// A connection with a socket.
pub(super) struct Client {
    stream: TcpStream,
    pub(super) redis: Redis,
    events: Vec<Event>,
}

impl Client {
    /// Connects with a URL that ends so, and returns the connection, or why it can't be used.
    pub(super) fn try_with(
        server: &RedisServer,
        settings: RedisSettings,
    ) -> Result<Self, BrokerError> {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self {
            stream,
            redis: Redis::new(settings),
            events: Vec::new(),
        };
        let mut out = Vec::new();
        client.redis.connect(&mut out);
        client.stream.write_all(&out).unwrap();
        client.receive(1)?;
        assert!(matches!(client.events[..], [Event::Ready(_)]));
        client.events.clear();
        Ok(client)
    }

    pub(super) fn try_connect(
        server: &RedisServer,
        credentials: &str,
        target: &str,
    ) -> Result<Self, BrokerError> {
        Self::try_with(server, settings(server, credentials, target))
    }

    pub(super) fn connect(server: &RedisServer) -> Self {
        Self::try_connect(server, "", "?app=app").unwrap()
    }

    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = Command>) {
        let mut out = Vec::new();
        for command in commands {
            self.redis.command(command, &mut out);
        }
        self.stream.write_all(&out).unwrap();
    }

    /// Receives until there are so many events.
    pub(super) fn receive(&mut self, count: usize) -> Result<(), BrokerError> {
        let until = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        while self.events.len() < count {
            assert!(Instant::now() < until, "only {:?}", self.events);
            let len = match self.stream.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("{error}; received {:?}", self.events),
            };
            assert!(len > 0, "the server has closed the connection");
            self.redis.received(&buffer[..len], &mut self.events)?;
        }
        Ok(())
    }

    /// Executes commands, and returns so many events.
    pub(super) fn execute<const N: usize>(
        &mut self,
        commands: impl IntoIterator<Item = Command>,
    ) -> [Event; N] {
        self.send(commands);
        self.take()
    }

    pub(super) fn take<const N: usize>(&mut self) -> [Event; N] {
        self.receive(N).unwrap();
        std::mem::take(&mut self.events).try_into().unwrap()
    }

    pub(super) fn append(&mut self, append: Append) -> Appended {
        let [Event::Appended(appended)] = self.execute([Command::Append(append)]) else {
            panic!("the append was refused");
        };
        appended
    }

    pub(super) fn read(&mut self, since: Option<HistoryId>) -> History {
        self.read_in(since, READ_EPOCH)
    }

    /// Reads the history, which begins in this epoch if there is none.
    pub(super) fn read_in(&mut self, since: Option<HistoryId>, new_epoch: u64) -> History {
        let [Event::History(history)] = self.execute([read_in(since, new_epoch)]) else {
            panic!("the read was refused");
        };
        history
    }

    /// Returns the sequences and texts of a read.
    pub(super) fn kept(&mut self, since: Option<HistoryId>) -> Vec<(u64, String)> {
        let History {
            first, messages, ..
        } = self.read(since);
        let texts = messages
            .iter()
            .map(|text| String::from_utf8_lossy(text).into_owned());
        (first..).zip(texts).collect()
    }
}

pub(super) fn settings(server: &RedisServer, credentials: &str, target: &str) -> RedisSettings {
    let port = server.port();
    let url = format!("redis://{credentials}127.0.0.1:{port}{target}");
    let url: RedisUrl = url.parse().unwrap();
    RedisSettings::new(url.login, url.tls, 1 << 20)
}

/// An append to [`ROOM`] with generous bounds.
pub(super) fn append(counter: u64, text: &str) -> Append {
    Append {
        room: ROOM.into(),
        envelope: Bytes::copy_from_slice(text.as_bytes()),
        node: 7,
        counter,
        needs_counter: false,
        expected: None,
        new_epoch: 0xfe,
        messages_max: 1000,
        bytes_max: 1 << 20,
    }
}

pub(super) fn read(since: Option<HistoryId>) -> Command {
    read_in(since, READ_EPOCH)
}

fn read_in(since: Option<HistoryId>, new_epoch: u64) -> Command {
    Command::Read(vec![Read {
        room: ROOM.into(),
        since,
        new_epoch,
        extends: true,
    }])
}

/// Asserts where a history is, and returns its messages.
pub(super) fn messages_at(history: &History, position: HistoryId, base: u64) -> Vec<&str> {
    assert_eq!((history.position, history.base), (position, base));
    let len = history.messages.len() as u64;
    assert_eq!(history.first + len, position.sequence() + 1);
    let messages = history.messages.iter();
    messages
        .map(|text| std::str::from_utf8(text).unwrap())
        .collect()
}

pub(super) fn room() -> Channel {
    Channel::Room(ROOM.into())
}

pub(super) fn id(sequence: u64) -> HistoryId {
    HistoryId::new(0xfe, sequence)
}

pub(super) fn texts(kept: &[(u64, &str)]) -> Vec<(u64, String)> {
    kept.iter()
        .map(|&(sequence, text)| (sequence, text.to_owned()))
        .collect()
}

pub(super) fn refused(event: &Event, kind: Kind, code: &str, passes: bool) {
    let Event::Refused(refused) = event else {
        panic!("{event:?} is no refusal");
    };
    assert_eq!((refused.command, refused.passes), (kind, passes));
    assert!(refused.error.starts_with(code), "{}", refused.error);
}

#[test]
fn messages_reach_all_subscribers_of_their_channel() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let channels = [
        Channel::Everyone,
        Channel::Nodes,
        Channel::Node(u32::MAX),
        Channel::Room("".into()),
        Channel::Room("} {:\"\\ü\r\n\0".into()),
        Channel::Room("x".repeat(255).into()),
    ];
    let mut subscribers = [Client::connect(&server), Client::connect(&server)];
    for subscriber in &mut subscribers {
        let subscribe = Command::Subscribe(channels.to_vec());
        let confirmed: [_; 6] = subscriber.execute([subscribe]);
        assert_eq!(confirmed, channels.clone().map(Event::Subscribed));
    }
    let envelope = Bytes::from_static(b"\0\n\r\n\xff");
    let publish = |channel: &Channel| Command::Publish {
        channel: channel.clone(),
        envelope: envelope.clone(),
    };
    let mut publisher = Client::connect(&server);
    let replies: [_; 6] = publisher.execute(channels.iter().map(publish));
    assert_eq!(replies, [const { Event::Published { receivers: 2 } }; 6]);
    let message = |channel| Event::Message {
        channel,
        id: None,
        envelope: envelope.clone(),
    };
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.take(), channels.clone().map(message));
    }
    let [first, _] = &mut subscribers;
    let unsubscribe = Command::Unsubscribe(vec![Channel::Nodes, room()]);
    let again = [publish(&Channel::Nodes), publish(&Channel::Everyone)];
    let mut events: [_; 3] = first.execute([unsubscribe].into_iter().chain(again));
    // Whether a message of its own precedes the reply depends on the version of the server.
    events.sort_by_key(|event| matches!(event, Event::Message { .. }));
    assert_eq!(events[0], Event::Published { receivers: 1 });
    assert_eq!(events[1], Event::Published { receivers: 2 });
    assert_eq!(events[2], message(Channel::Everyone));
}

#[test]
fn apps_with_different_prefixes_do_not_meet() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut one = Client::try_connect(&server, "", "?app=one").unwrap();
    let mut other = Client::try_connect(&server, "", "/3?app=other").unwrap();
    for client in [&mut one, &mut other] {
        let [_]: [_; 1] = client.execute([Command::Subscribe(vec![room()])]);
    }
    one.send([Command::Append(append(1, "x"))]);
    let [_, _]: [_; 2] = one.take();
    assert_eq!(other.read(None).position, HistoryId::new(READ_EPOCH, 0));
    assert_eq!(server.command(&["DBSIZE"]), ":3\r\n");
}

#[test]
fn user_with_the_documented_rights_can_do_everything() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let documented = include_str!("mod.rs")
        .lines()
        .filter(|line| line.starts_with("//!"))
        .flat_map(|line| line.split(['`', ' ']))
        .filter(|word| word.starts_with('+'));
    let mut user = vec!["ACL", "SETUSER", "me", "on", ">p@ss", "~app:*", "&app:*"];
    user.extend(documented);
    assert_eq!(server.command(&user), "+OK\r\n");
    let mut client = Client::try_connect(&server, "me:p%40ss@", "/1?app=app").unwrap();
    let [subscribed, published]: [_; 2] = client.execute([
        Command::Subscribe(vec![room()]),
        Command::Publish {
            channel: Channel::Nodes,
            envelope: Bytes::new(),
        },
    ]);
    assert_eq!(subscribed, Event::Subscribed(room()));
    assert_eq!(published, Event::Published { receivers: 0 });
    client.send([Command::Unsubscribe(vec![room()])]);
    assert_eq!(client.append(append(1, "x")), Appended::Id(id(1)));
    let mut over_bounds = append(2, "y");
    over_bounds.messages_max = 1;
    assert_eq!(client.append(over_bounds), Appended::Id(id(2)));
    assert_eq!(client.kept(None), texts(&[(2, "y")]));

    // The same prefix in the channels of another app is not allowed.
    let mut other = Client::try_connect(&server, "me:p%40ss@", "?app=other").unwrap();
    let [refusal]: [_; 1] = other.execute([Command::Subscribe(vec![room()])]);
    refused(&refusal, Kind::Subscribe, "NOPERM", false);
}

#[test]
fn wrong_user_or_password_is_an_authentication_error() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    server.command(&["CONFIG", "SET", "requirepass", "hunter2"]);
    for credentials in ["", ":hunter3@", "me:hunter2@", "me@"] {
        let error = Client::try_connect(&server, credentials, "").err();
        let error = error.expect("the server rejects it");
        assert!(matches!(error, BrokerError::Authentication(_)), "{error:?}");
        assert!(!error.to_string().contains("hunter"), "{error}");
    }
    for credentials in [":hunter2@", "default:hunter2@"] {
        assert!(Client::try_connect(&server, credentials, "").is_ok());
    }
}

#[test]
fn server_that_can_not_be_used_is_rejected() {
    let Some(primary) = RedisServer::start(&[]) else {
        return;
    };
    let port = primary.port().to_string();
    let replica = RedisServer::start(&["--replicaof", "127.0.0.1", &port]).unwrap();
    let cluster = RedisServer::start(&["--cluster-enabled", "yes"]).unwrap();
    for (server, target, says) in [
        (&replica, "", "replica"),
        (&cluster, "", "Redis Cluster"),
        (&primary, "/16", "DB index is out of range"),
    ] {
        match Client::try_connect(server, "", target).err() {
            Some(BrokerError::Unusable(why)) => assert!(why.contains(says), "{why}"),
            error => panic!("{error:?}"),
        }
    }
}

#[test]
fn server_that_becomes_a_replica_is_given_up() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    client.append(append(1, "x"));
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    client.send([Command::Append(append(2, "y"))]);
    let error = client.receive(1).unwrap_err();
    assert!(matches!(error, BrokerError::Unusable(_)), "{error:?}");
}
