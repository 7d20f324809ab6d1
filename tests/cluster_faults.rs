//! Faults of a real Redis under load, with exact accounts: what one node has sent, every other node has received once and
//! in order, or has counted as missed.

use crate::nodes::{Node, hear_each_other, stop};
use crate::redis_server::RedisServer;
use crate::support::{Client, eventually};

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
const ROOMS: [&str; 4] = ["a", "b", "c", "d"];
/// The time between two messages of a node to a room.
const LOAD_INTERVAL: Duration = Duration::from_millis(1);
/// If a message has not arrived everywhere after this time, another one follows, which tells what was missed.
const ARRIVAL_MAX: Duration = Duration::from_millis(500);

/// What one client has received of a sender in a room: the number of messages, and the last one's.
#[derive(Default)]
struct Account {
    received: u64,
    last: u64,
}

/// Whether a fault ends the connections of all nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Connections {
    Break,
    Last,
}

/// Sends numbered messages from each node to each room while a fault lasts, and checks the accounts.
fn check_accounts(
    redis: &mut RedisServer,
    connections: Connections,
    fault: impl FnOnce(&mut RedisServer, &[Node]),
) {
    let nodes = [0; NODES].map(|_| Node::joining(redis.url()));
    let all: Vec<&Node> = nodes.iter().collect();
    hear_each_other(&all);
    let clients: Vec<Client> = nodes
        .iter()
        .map(|node| node.join(&ROOMS.join("+")))
        .collect();
    // From its first message on, a node knows what it has missed of a sender.
    send_to_all(&nodes, 1);
    let expected = (ROOMS.len() * (NODES - 1)) as u64;
    eventually("the first messages arrive", || {
        nodes.iter().all(|node| node.metrics().received == expected)
    });
    let (end, is_over) = channel::<()>();
    let (sent, readers) = thread::scope(|scope| {
        let readers: Vec<_> = (clients.into_iter().enumerate())
            .map(|(node, client)| scope.spawn(move || read_all(client, node)))
            .collect();
        let nodes = &nodes;
        let senders = scope.spawn(move || {
            let mut number = 1;
            loop {
                number += 1;
                send_to_all(nodes, number);
                if is_over.recv_timeout(LOAD_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return number;
                }
            }
        });
        fault(redis, nodes);
        for node in nodes {
            node.wait_until_connected();
        }
        drop(end);
        let mut number = senders.join().unwrap();
        // Each further message tells what was missed before it. The last one has arrived everywhere.
        eventually("the accounts balance", || {
            number += 1;
            send_to_all(nodes, number);
            let until = Instant::now() + ARRIVAL_MAX;
            while !balances(nodes, number) && Instant::now() < until {
                thread::yield_now();
            }
            balances(nodes, number)
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
        let has_reconnected = metrics.connections > 1;
        assert_eq!(
            has_reconnected,
            connections == Connections::Break,
            "node {node}: {metrics:?}"
        );
        let rooms = (ROOMS.len() * (NODES - 1)) as u64;
        // The broadcasts of the end are not among the client's accounts.
        assert!(metrics.received >= received && metrics.received <= received + NODES as u64);
        assert_eq!(metrics.dropped_full + metrics.bad_envelopes, 0);
        assert_eq!(
            received + metrics.missed_remote,
            rooms * sent,
            "node {node}: {metrics:?}"
        );
        for ((from, room), account) in accounts {
            assert_eq!(account.last, sent, "node {node}, from {from} in {room}");
            if from == node {
                assert_eq!(account.received, sent, "its own members miss nothing");
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

/// Whether every node has received or missed all messages so far.
fn balances(nodes: &[Node], sent: u64) -> bool {
    let expected = (ROOMS.len() * (NODES - 1)) as u64 * sent;
    nodes.iter().all(|node| {
        let metrics = node.metrics();
        metrics.received + metrics.missed_remote == expected
    })
}

/// Waits until each node has received this many further messages.
fn receive_more(nodes: &[Node], messages: u64) {
    for node in nodes {
        let before = node.metrics().received;
        eventually("further messages arrive", || {
            node.metrics().received >= before + messages
        });
    }
}

/// Reads until each node has said that it has ended.
fn read_all(mut client: Client, node: usize) -> HashMap<(usize, String), Account> {
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

#[test]
fn restarts_of_redis_lose_nothing_that_is_not_counted() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Break, |redis, nodes| {
        for _ in 0..3 {
            redis.kill();
            nodes.iter().for_each(Node::wait_until_disconnected);
            redis.restart();
            nodes.iter().for_each(Node::wait_until_connected);
            receive_more(nodes, 100);
        }
    });
}

#[test]
fn frozen_redis_loses_nothing_that_is_not_counted() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Break, |redis, nodes| {
        // For less time than the nodes notice.
        redis.freeze();
        let published = nodes[0].metrics().published;
        eventually("messages are sent to the frozen server", || {
            nodes[0].metrics().published >= published + 100
        });
        redis.thaw();
        receive_more(nodes, 1_000);
        redis.freeze();
        for node in nodes {
            eventually("the silence is noticed", || node.metrics().silences > 0);
        }
        redis.thaw();
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
