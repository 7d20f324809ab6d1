//! Faults of a real broker under load, with exact accounts: what one node has sent, every other node has received once and
//! in order, or has counted as missed.

use crate::brokers::RedisServer;
use crate::brokers::{TestBroker, with_each_broker};
use crate::nodes::{Node, hear_each_other, stop};
use crate::support::{Client, eventually, holds_within};

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

const NODES: usize = 3;
const ROOMS: [&str; 4] = ["a", "b", "c", "d"];
/// The time between two messages of a node to a room.
const LOAD_INTERVAL: Duration = Duration::from_millis(1);
/// If a message has not arrived everywhere after this time, another one follows, which tells what was missed.
const ARRIVAL_MAX: Duration = Duration::from_millis(500);

/// The messages that a node receives in a round.
const PER_ROUND: u64 = (ROOMS.len() * (NODES - 1)) as u64;

/// The last round before the accounts begin, and what each node had received and missed until then.
#[derive(Default)]
struct Begun {
    number: u64,
    counts: Vec<(u64, u64)>,
}

/// What one client has received of a sender in a room: the number of messages, and the last one's.
#[derive(Default)]
struct Account {
    received: u64,
    last: u64,
}

/// Whether a fault ends the connections of all nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    Break,
    Last,
}

/// Sends numbered messages from each node to each room while a fault lasts, and checks the accounts.
fn check_accounts<B: TestBroker>(
    broker: &mut B,
    connections: Connections,
    fault: impl FnOnce(&mut B, &[Node]),
) {
    let nodes = [0; NODES].map(|_| Node::joining(broker.url()));
    check_accounts_of(nodes, broker, connections, fault);
}

/// The same with nodes that are connected already, and anything that a fault needs.
pub(crate) fn check_accounts_of<B>(
    nodes: [Node; NODES],
    broker: &mut B,
    connections: Connections,
    fault: impl FnOnce(&mut B, &[Node]),
) {
    let all: Vec<&Node> = nodes.iter().collect();
    hear_each_other(&all);
    let clients: Vec<Client> = nodes
        .iter()
        .map(|node| node.join(&ROOMS.join("+")))
        .collect();
    // From its first message on, a node knows what it has missed of a sender. In a NATS cluster, it takes a moment until the other
    // servers know of a subscription.
    let mut begun = Begun::default();
    eventually("messages arrive everywhere", || {
        begun = Begun {
            number: begun.number + 1,
            counts: nodes.iter().map(counts).collect(),
        };
        send_to_all(&nodes, begun.number);
        let received = |node: &Node| node.metrics().received;
        let arrived = |(node, before): (&Node, &(u64, u64))| received(node) == before.0 + PER_ROUND;
        holds_within(ARRIVAL_MAX, || nodes.iter().zip(&begun.counts).all(arrived))
    });
    begun.counts = nodes.iter().map(counts).collect();
    let begun = &begun;
    let (end, is_over) = channel::<()>();
    let (sent, readers) = thread::scope(|scope| {
        let readers: Vec<_> = (clients.into_iter().enumerate())
            .map(|(node, client)| scope.spawn(move || read_all(client, node, begun.number)))
            .collect();
        let nodes = &nodes;
        let senders = scope.spawn(move || {
            let mut number = begun.number;
            loop {
                number += 1;
                send_to_all(nodes, number);
                if is_over.recv_timeout(LOAD_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return number;
                }
            }
        });
        fault(broker, nodes);
        for node in nodes {
            node.wait_until_connected();
        }
        drop(end);
        let mut number = senders.join().unwrap();
        // Each further message tells what was missed before it. The last one has arrived everywhere.
        eventually("the accounts balance", || {
            number += 1;
            send_to_all(nodes, number);
            holds_within(ARRIVAL_MAX, || balances(nodes, begun, number))
        });
        for node in nodes {
            node.sender.broadcast("end");
        }
        let readers: Vec<_> = readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect();
        (number, readers)
    });
    for (node, accounts) in readers.into_iter().enumerate() {
        let received: u64 = accounts
            .iter()
            .filter(|((from, _), _)| *from != node)
            .map(|(_, account)| account.received)
            .sum();
        let metrics = nodes[node].metrics();
        let (received_before, missed_before) = begun.counts[node];
        let has_reconnected = metrics.connections > 1;
        assert_eq!(
            has_reconnected,
            connections == Connections::Break,
            "node {node}: {metrics:?}"
        );
        // The broadcasts of the end are not among the client's accounts.
        let counted = metrics.received - received_before;
        assert!(counted >= received && counted <= received + NODES as u64);
        assert_eq!(metrics.dropped_full + metrics.bad_envelopes, 0);
        assert_eq!(
            received + metrics.missed_remote - missed_before,
            PER_ROUND * (sent - begun.number),
            "node {node}: {metrics:?}"
        );
        for ((from, room), account) in accounts {
            assert_eq!(account.last, sent, "node {node}, from {from} in {room}");
            if from == node {
                let since = sent - begun.number;
                assert_eq!(account.received, since, "its own members miss nothing");
            }
        }
    }
    stop(nodes);
}

fn send_to_all(nodes: &[Node], number: u64) {
    for (from, node) in nodes.iter().enumerate() {
        for name in ROOMS {
            let text = format!("{from}:{name}:{number}");
            node.sender.room(name).broadcast(text);
        }
    }
}

/// How many messages a node has received, and missed.
fn counts(node: &Node) -> (u64, u64) {
    let metrics = node.metrics();
    (metrics.received, metrics.missed_remote)
}

/// Whether every node has received or missed all messages since the beginning.
fn balances(nodes: &[Node], begun: &Begun, sent: u64) -> bool {
    let expected = PER_ROUND * (sent - begun.number);
    let has_all = |(node, before): (&Node, &(u64, u64))| {
        let (received, missed) = counts(node);
        received + missed == before.0 + before.1 + expected
    };
    nodes.iter().zip(&begun.counts).all(has_all)
}

/// Waits until each node has received this many further messages.
pub(crate) fn receive_more(nodes: &[Node], messages: u64) {
    for node in nodes {
        let before = node.metrics().received;
        eventually("further messages arrive", || {
            node.metrics().received >= before + messages
        });
    }
}

/// Reads until each node has said that it has ended. Messages up to the number `begun` don't count.
fn read_all(mut client: Client, node: usize, begun: u64) -> HashMap<(usize, String), Account> {
    let mut accounts: HashMap<(usize, String), Account> = HashMap::new();
    let mut ends = 0;
    while ends < NODES {
        let text = client.receive_text();
        if text == "end" {
            ends += 1;
            continue;
        }
        let mut parts = text.split(':');
        let from: usize = parts.next().unwrap().parse().unwrap();
        let room = parts.next().unwrap().to_owned();
        let number: u64 = parts.next().unwrap().parse().unwrap();
        if number <= begun {
            continue;
        }
        let account = accounts.entry((from, room)).or_default();
        assert!(
            account.last < number,
            "node {node}: {text} is repeated or out of order, after {}",
            account.last
        );
        account.last = number;
        account.received += 1;
    }
    accounts
}

#[test]
fn broken_connections_lose_nothing_that_is_not_counted() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Break, |redis, nodes| {
        for kills in 1..=20 {
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            for node in nodes {
                eventually("the node has connected again", || {
                    node.metrics().connections > kills
                });
            }
            receive_more(nodes, 1);
        }
    });
}

fn restarts_of_the_broker_lose_nothing_that_is_not_counted<B: TestBroker>() {
    let Some(mut broker) = B::start() else {
        return;
    };
    check_accounts(&mut broker, Connections::Break, |broker, nodes| {
        for _ in 0..3 {
            broker.kill();
            nodes.iter().for_each(Node::wait_until_disconnected);
            broker.restart();
            nodes.iter().for_each(Node::wait_until_connected);
            receive_more(nodes, 100);
        }
    });
}

fn frozen_broker_loses_nothing_that_is_not_counted<B: TestBroker>() {
    let Some(mut broker) = B::start() else {
        return;
    };
    check_accounts(&mut broker, Connections::Break, |broker, nodes| {
        // For less time than the nodes notice.
        broker.freeze();
        let published = nodes[0].metrics().published;
        eventually("messages are sent to the frozen server", || {
            nodes[0].metrics().published >= published + 100
        });
        broker.thaw();
        receive_more(nodes, 1_000);
        broker.freeze();
        for node in nodes {
            eventually("the silence is noticed", || node.metrics().silences > 0);
        }
        broker.thaw();
        receive_more(nodes, 100);
    });
}

#[test]
fn flushed_and_full_redis_loses_no_message() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Last, |redis, nodes| {
        redis.command(&["FLUSHALL"]);
        // Without a history, nothing is kept there.
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        receive_more(nodes, 1_000);
        redis.command(&["FLUSHALL"]);
        receive_more(nodes, 100);
    });
}

with_each_broker! {
    restarts_of_the_broker_lose_nothing_that_is_not_counted,
    frozen_broker_loses_nothing_that_is_not_counted,
}
