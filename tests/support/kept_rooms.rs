//! Nodes of a cluster whose rooms keep a history, and clients that receive the ids of messages.

#![allow(dead_code)] // Each test file uses some of it.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use humphrey_ws::{Accept, AsyncStream, AsyncWebsocketApp, Cluster, HistoryId, HistoryLimits};
use tungstenite::WebSocket;

use crate::brokers::RedisServer;
use crate::frames::{RoomFrame, V1, connect_at};
use crate::nodes::Node;

/// A client that receives the ids of messages.
pub(crate) type NumberedClient = WebSocket<TcpStream>;

/// A node whose rooms keep their last 50,000 messages. Clients join the room in their path after the id in their query.
pub(crate) fn keeping() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_history("*", HistoryLimits::messages(50_000).bytes(8 << 20))
        .with_handshake_handler(|request, _| {
            let offered = request.subprotocols().next();
            Ok(offered.map_or_else(Accept::new, |offered| {
                Accept::new().with_subprotocol(offered)
            }))
        })
        .with_connect_handler(join_since)
}

fn join_since(stream: AsyncStream, _: Arc<()>) {
    let room = &stream.path()[1..];
    let joined = match stream.query() {
        "" => stream.try_join(room).map(|()| 0),
        "all" => stream.join_since(room, None),
        id => stream.join_since(room, Some(id.parse().expect("an id"))),
    };
    let outcome = match joined {
        Ok(replayed) => format!("joined after {replayed}"),
        Err(error) => format!("{:?}", error.reason),
    };
    stream.send(outcome);
}

pub(crate) fn node(cluster: impl Into<Cluster>) -> Node {
    let node = Node::start(keeping().with_cluster(cluster));
    node.wait_until_connected();
    node
}

pub(crate) fn nodes<const N: usize>(redis: &RedisServer) -> [Node; N] {
    [0; N].map(|_| node(redis.url()))
}

/// The time in which a message arrives, also while Sentinels on an overloaded machine put off a failover.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Connects a client that receives the ids of messages.
pub(crate) fn connect_numbered(address: SocketAddr, target: &str) -> NumberedClient {
    let client = connect_at(address, &format!("/{target}"), V1).0;
    client
        .get_ref()
        .set_read_timeout(Some(SILENCE_MAX))
        .unwrap();
    client
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    Message(HistoryId, String),
    Gap(HistoryId),
    /// The room, and whether it is silent.
    Silence(String, bool),
    Text(String),
}

/// Receives the next message or gap.
pub(crate) fn receive(client: &mut NumberedClient) -> Received {
    loop {
        match receive_any(client) {
            // An outage may have lasted for long enough on a busy machine.
            Received::Silence(..) => {}
            received => return received,
        }
    }
}

pub(crate) fn receive_any(client: &mut NumberedClient) -> Received {
    let message = client.read().unwrap();
    if let tungstenite::Message::Text(text) = message {
        return Received::Text(text.to_string());
    }
    let frame = RoomFrame::parse(message);
    let id = || frame.id.parse().unwrap();
    match frame.kind {
        1 => Received::Message(id(), String::from_utf8(frame.content).unwrap()),
        3 => Received::Gap(id()),
        4 => Received::Silence(frame.room, frame.content == [1]),
        kind => panic!("kind {kind}"),
    }
}

pub(crate) fn join_numbered(node: &Node, target: &str) -> NumberedClient {
    let mut client = connect_numbered(node.address, target);
    loop {
        if let Received::Text(text) = receive(&mut client) {
            assert!(text.starts_with("joined"), "{text}");
            return client;
        }
    }
}
