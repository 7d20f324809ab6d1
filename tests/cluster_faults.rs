//! Faults of a real Redis under load, with exact accounts: what one node has sent, every other node has received once and
//! in order, or has counted as missed.

use crate::nodes::{Node, hear_each_other, stop};
use crate::redis_server::RedisServer;
use crate::support::{Client, eventually};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
const ROOMS: [&str; 4] = ["a", "b", "c", "d"];

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
    fault: impl FnOnce(&mut RedisServer),
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
    let is_over = AtomicBool::new(false);
    let (sent, readers) = thread::scope(|scope| {
        let readers: Vec<_> = (clients.into_iter().enumerate())
            .map(|(node, client)| scope.spawn(move || read_all(client, node)))
            .collect();
        let senders = scope.spawn(|| {
            let mut number = 1;
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                send_to_all(&nodes, number);
                thread::sleep(Duration::from_millis(1));
            }
            number
        });
        fault(redis);
        for node in &nodes {
            node.wait_until_connected();
        }
        is_over.store(true, Ordering::Relaxed);
        let mut number = senders.join().unwrap();
        // Each further message tells what was missed before it. The last one has arrived everywhere.
        let deadline = Instant::now() + crate::support::DEADLINE;
        loop {
            number += 1;
            send_to_all(&nodes, number);
            let is_settled = settled(&nodes, number);
            if is_settled {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "the accounts never balance: {}",
                show(&nodes)
            );
        }
        for node in &nodes {
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
fn settled(nodes: &[Node], sent: u64) -> bool {
    let expected = (ROOMS.len() * (NODES - 1)) as u64 * sent;
    let until = Instant::now() + Duration::from_millis(500);
    loop {
        let is_settled = nodes.iter().all(|node| {
            let metrics = node.metrics();
            metrics.received + metrics.missed_remote == expected
        });
        if is_settled || Instant::now() > until {
            return is_settled;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn show(nodes: &[Node]) -> String {
    let metrics: Vec<_> = nodes.iter().map(Node::metrics).collect();
    format!("{metrics:#?}")
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
    check_accounts(&mut redis, Connections::Break, |redis| {
        for _ in 0..20 {
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn restarts_of_redis_lose_nothing_that_is_not_counted() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Break, |redis| {
        for _ in 0..3 {
            redis.kill();
            thread::sleep(Duration::from_millis(300));
            redis.restart();
            thread::sleep(Duration::from_secs(1));
        }
    });
}

#[test]
fn frozen_redis_loses_nothing_that_is_not_counted() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Break, |redis| {
        // Less than the silence that is noticed, and more.
        for seconds in [1, 5] {
            redis.freeze();
            thread::sleep(Duration::from_secs(seconds));
            redis.thaw();
            thread::sleep(Duration::from_millis(500));
        }
    });
}

#[test]
fn flushed_and_full_redis_loses_no_message() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    check_accounts(&mut redis, Connections::Last, |redis| {
        redis.command(&["FLUSHALL"]);
        // Without a history, nothing is kept there.
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        thread::sleep(Duration::from_millis(500));
        redis.command(&["FLUSHALL"]);
    });
}
