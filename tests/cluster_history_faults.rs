//! Faults under load in rooms with a history, with exact accounts: every client receives every message once and in one order,
//! or is told of a gap.

use crate::brokers::{PERSISTENT, RedisServer, Sentinels};
use crate::kept_rooms::{NumberedClient, Received, join_numbered, node, receive};
use crate::nodes::{Node, stop};
use crate::support::{eventually, holds_within};
use crate::tcp_proxy::{Direction, TcpProxy};

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use humphrey_ws::{ClusterMetrics, HistoryId};

const NODES: usize = 3;
const ROOMS: [&str; 3] = ["a", "b", "c"];
/// The time between two messages of a node to each room.
const LOAD_INTERVAL: Duration = Duration::from_millis(2);
const END: &str = "end";

/// What the members of a room on one node have received.
#[derive(Default)]
struct Account {
    /// The messages in order, and `None` for gaps and last messages.
    received: Vec<(HistoryId, Option<String>)>,
    gaps: usize,
}

impl Account {
    fn messages(&self) -> usize {
        let texts = self.received.iter().filter(|(_, text)| text.is_some());
        texts.count()
    }
}

/// What all nodes and their clients have counted.
struct Outcome {
    sent: usize,
    /// The different messages that some client has received.
    delivered: usize,
    accounts: Vec<Account>,
    metrics: Vec<ClusterMetrics>,
}

impl Outcome {
    fn sum(&self, of: fn(&ClusterMetrics) -> u64) -> usize {
        self.metrics.iter().map(of).sum::<u64>() as usize
    }

    fn gaps(&self) -> usize {
        self.accounts.iter().map(|account| account.gaps).sum()
    }

    /// Every client has received every message that was sent.
    fn is_whole(&self) {
        assert_eq!(self.gaps(), 0);
        let counted =
            self.sum(|metrics| metrics.unconfirmed + metrics.dropped_broker + metrics.dropped_full);
        assert_eq!((self.delivered, counted), (self.sent, 0));
        for account in &self.accounts {
            assert_eq!(account.messages(), self.sent / ROOMS.len());
        }
    }

    /// Each message was received by somebody, or counted, or lost with the broker, of which all were told.
    fn is_accounted(&self) {
        let unconfirmed = self.sum(|metrics| metrics.unconfirmed);
        let dropped = self.sum(|metrics| metrics.dropped_broker);
        assert!(
            self.delivered <= self.sent - dropped,
            "a dropped one has arrived"
        );
        if self.gaps() == 0 {
            assert!(self.delivered + unconfirmed + dropped >= self.sent);
        }
        for account in &self.accounts {
            if account.gaps == 0 {
                assert!(account.messages() + unconfirmed + dropped >= self.sent / ROOMS.len());
            }
        }
    }
}

/// Sends numbered messages from each node to each room while a fault lasts, and checks what every client receives.
fn run(urls: [String; NODES], fault: impl FnOnce(&[Node; NODES])) -> Outcome {
    let nodes = urls.map(node);
    let clients: Vec<(usize, NumberedClient)> = (0..NODES)
        .flat_map(|node| (0..ROOMS.len()).map(move |room| (node, room)))
        .map(|(node, room)| (room, join_numbered(&nodes[node], ROOMS[room])))
        .collect();
    // Senders stop when their other end is dropped, also if the test fails.
    let (ends, is_over): (Vec<_>, Vec<_>) = nodes.iter().map(|_| channel::<()>()).unzip();
    let (sent, accounts) = thread::scope(|scope| {
        let readers: Vec<_> = (clients.into_iter())
            .map(|(room, client)| (room, scope.spawn(|| read_all(client))))
            .collect();
        let senders: Vec<_> = (nodes.iter().enumerate().zip(is_over))
            .map(|((from, node), is_over)| scope.spawn(move || send_until(node, from, &is_over)))
            .collect();
        receive_more(&nodes, 20);
        fault(&nodes);
        nodes.iter().for_each(Node::wait_until_connected);
        receive_more(&nodes, 20);
        drop(ends);
        let sent = senders.into_iter().map(|sender| sender.join().unwrap());
        let sent: usize = sent.sum();
        for (from, node) in nodes.iter().enumerate() {
            for room in ROOMS {
                let end = format!("{END}{from}");
                eventually("the last message is confirmed", || {
                    node.sender
                        .room(room)
                        .broadcast_confirmed(end.as_str())
                        .is_ok()
                });
            }
        }
        let accounts: Vec<_> = readers
            .into_iter()
            .map(|(room, reader)| (room, reader.join().unwrap()))
            .collect();
        (sent, accounts)
    });
    let delivered = check(&accounts);
    let outcome = Outcome {
        sent,
        delivered,
        accounts: accounts.into_iter().map(|(_, account)| account).collect(),
        metrics: nodes.iter().map(Node::metrics).collect(),
    };
    stop(nodes);
    outcome
}

/// Sends until it is over. Returns the number of messages.
fn send_until(node: &Node, from: usize, is_over: &Receiver<()>) -> usize {
    let mut number = 0;
    loop {
        number += 1;
        for room in ROOMS {
            node.sender.room(room).broadcast(format!("{from}:{number}"));
        }
        if is_over.recv_timeout(LOAD_INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return number * ROOMS.len();
        }
    }
}

/// Waits until each node has received this many further messages.
fn receive_more(nodes: &[Node; NODES], messages: u64) {
    for node in nodes {
        let before = node.metrics().received;
        eventually("further messages arrive", || {
            node.metrics().received >= before + messages
        });
    }
}

/// Reads until the last message of each node.
fn read_all(mut client: NumberedClient) -> Account {
    let mut account = Account::default();
    let mut ends = HashSet::new();
    loop {
        match receive(&mut client) {
            Received::Message(id, text) if text.starts_with(END) => {
                account.received.push((id, None));
                ends.insert(text);
                if ends.len() == NODES {
                    return account;
                }
            }
            Received::Message(id, text) => account.received.push((id, Some(text))),
            Received::Gap(position) => {
                account.gaps += 1;
                account.received.push((position, None));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Checks the order of what was received, that nothing was repeated, and that an id has one meaning. Returns the number of
/// different messages.
fn check(accounts: &[(usize, Account)]) -> usize {
    let mut meanings: HashMap<(usize, String), &str> = HashMap::new();
    let mut all: HashSet<(usize, &str)> = HashSet::new();
    for (room, account) in accounts {
        let mut last: Option<HistoryId> = None;
        let mut seen: HashSet<&str> = HashSet::new();
        let mut numbers: HashMap<&str, u64> = HashMap::new();
        for (id, text) in &account.received {
            let before = last.replace(*id);
            let Some(text) = text else {
                continue;
            };
            if let Some(before) = before {
                assert_eq!(id.epoch(), before.epoch(), "no gap was told before {id}");
                assert_eq!(id.sequence(), before.sequence() + 1, "{text}");
            }
            assert!(seen.insert(text), "{text} is repeated");
            let (from, number) = text.split_once(':').unwrap();
            let number: u64 = number.parse().unwrap();
            let before = numbers.insert(from, number).unwrap_or(0);
            assert!(before < number, "{text} is out of order");
            let meaning = meanings.entry((*room, id.to_string())).or_insert(text);
            assert_eq!(meaning, text, "{id} has two meanings");
            all.insert((*room, text));
        }
    }
    all.len()
}

fn urls(redis: &RedisServer) -> [String; NODES] {
    [0; NODES].map(|_| redis.url())
}

#[test]
fn broken_connections_are_not_noticed_by_members() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let outcome = run(urls(&redis), |nodes| {
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
    outcome.is_whole();
}

#[test]
fn frozen_redis_is_not_noticed_by_members() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let outcome = run(urls(&redis), |nodes| {
        redis.freeze();
        for node in nodes {
            eventually("the silence is noticed", || node.metrics().silences > 0);
        }
        redis.thaw();
    });
    outcome.is_whole();
}

#[test]
fn one_way_partitions_are_not_noticed_by_members() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let proxy = TcpProxy::start(redis.address());
    let urls = [redis.url(), proxy.url(), proxy.url()];
    let outcome = run(urls, |nodes| {
        for (silences, direction) in [Direction::ToServer, Direction::ToClient]
            .into_iter()
            .enumerate()
        {
            proxy.stall(direction);
            for node in &nodes[1..] {
                eventually("the silence is noticed", || {
                    node.metrics().silences > silences as u64
                });
            }
            proxy.resume();
            nodes.iter().for_each(Node::wait_until_connected);
            receive_more(nodes, 20);
        }
    });
    outcome.is_whole();
}

/// Restarts a Redis with these options under load.
fn check_restart(options: &[&str]) {
    let Some(mut redis) = RedisServer::start(options) else {
        return;
    };
    let outcome = run(urls(&redis), |_| redis.restart());
    outcome.is_accounted();
    assert_eq!(outcome.gaps(), NODES * ROOMS.len());
    for metrics in &outcome.metrics {
        let gaps = (metrics.gaps, metrics.gaps_server_changed);
        assert_eq!(gaps, (0, ROOMS.len() as u64));
    }
}

#[test]
fn restart_without_persistence_is_one_gap_in_each_room_and_node() {
    check_restart(&[]);
}

#[test]
fn restart_with_persistence_is_one_gap_in_each_room_and_node() {
    check_restart(PERSISTENT);
}

#[test]
fn failover_to_a_replica_that_lacks_messages_is_a_gap_and_no_id_has_two_meanings() {
    let (Some(mut first), Some(second)) = (RedisServer::start(&[]), RedisServer::start(&[])) else {
        return;
    };
    let port = first.port().to_string();
    let replicate = ["REPLICAOF", "127.0.0.1", port.as_str()];
    let proxy = TcpProxy::start(first.address());
    let urls = [0; NODES].map(|_| proxy.url());
    let outcome = run(urls, |nodes| {
        second.command(&replicate);
        eventually("the replica is up to date", || {
            second
                .command(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        receive_more(nodes, 20);
        second.freeze();
        // Acknowledged, and unknown to the replica.
        receive_more(nodes, 100);
        first.kill();
        second.thaw();
        second.command(&["REPLICAOF", "NO", "ONE"]);
        proxy.switch(second.address());
    });
    outcome.is_accounted();
    assert_eq!(outcome.gaps(), NODES * ROOMS.len());
}

#[test]
fn deleted_histories_are_a_gap_for_everyone() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let outcome = run(urls(&redis), |nodes| {
        redis.command(&["FLUSHALL"]);
        receive_more(nodes, 100);
        // As a server does that evicts keys at its memory limit.
        redis.command(&["DEL", "humphrey_ws:{history:a}:position"]);
        receive_more(nodes, 100);
        redis.command(&["DEL", "humphrey_ws:{history:b}:messages"]);
        receive_more(nodes, 100);
    });
    outcome.is_accounted();
    let gaps = outcome.sum(|metrics| metrics.gaps);
    assert_eq!(outcome.gaps(), gaps);
    // All rooms once, and `a` again. Members of `b` have missed nothing.
    assert_eq!(gaps, NODES * (ROOMS.len() + 1));
    assert_eq!(outcome.delivered, outcome.sent);
}

#[test]
fn full_redis_refuses_messages_which_are_counted() {
    let Some(redis) = RedisServer::start(&["--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let outcome = run(urls(&redis), |nodes| {
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        for node in nodes {
            eventually("messages are refused", || {
                node.metrics().dropped_broker > 50
            });
        }
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    });
    assert_eq!(outcome.gaps(), 0);
    let dropped = outcome.sum(|metrics| metrics.dropped_broker);
    assert_eq!(outcome.delivered + dropped, outcome.sent);
}

#[test]
fn node_that_is_gone_leaves_its_messages_and_no_gap() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let urls = urls(&redis);
    let outcome = run(urls.clone(), |nodes| {
        for (url, number) in urls.into_iter().zip(1..) {
            let other = node(url);
            let id = other
                .sender
                .room("a")
                .broadcast_confirmed(format!("9:{number}"));
            assert!(id.is_ok_and(|id| id.is_some()));
            other.stop();
            receive_more(nodes, 20);
        }
    });
    assert_eq!(outcome.gaps(), 0);
    assert_eq!(outcome.delivered, outcome.sent + NODES);
}

/// The time in which the Sentinels fail over. On an overloaded machine they distrust their clocks, and do nothing for 30 s.
const FAILOVER_MAX: Duration = Duration::from_secs(90);

/// Changes the primary under load, as `fail_over` does, and waits until all nodes have followed.
fn check_failover(fail_over: impl FnOnce(&mut Sentinels)) -> Option<Outcome> {
    let mut sentinels = Sentinels::start()?;
    let urls = [0; NODES].map(|_| sentinels.url());
    let outcome = run(urls, |nodes| {
        fail_over(&mut sentinels);
        let has_failed_over = holds_within(FAILOVER_MAX, || sentinels.primary() == Some(1));
        assert!(
            has_failed_over,
            "the other server has not become the primary"
        );
        for node in nodes {
            eventually("the node is connected to it", || {
                node.metrics().connections > 1 && node.metrics().servers_connected == 1
            });
        }
    });
    outcome.is_accounted();
    // Another server: whether it lacks something is not known.
    assert_eq!(outcome.gaps(), NODES * ROOMS.len());
    for metrics in &outcome.metrics {
        assert_eq!(metrics.gaps, 0);
        assert_eq!(metrics.gaps_server_changed, ROOMS.len() as u64);
    }
    Some(outcome)
}

#[test]
fn sentinels_replace_a_primary_that_dies() {
    check_failover(|sentinels| sentinels.servers[0].kill());
}

#[test]
fn sentinels_replace_a_primary_that_is_frozen() {
    check_failover(|sentinels| {
        // One Sentinel does not matter, even the first of the list.
        sentinels.kill_sentinel(0);
        sentinels.servers[0].freeze();
    });
}

#[test]
fn nodes_follow_a_planned_failover() {
    let outcome = check_failover(|sentinels| sentinels.fail_over());
    if let Some(outcome) = outcome {
        assert_eq!(outcome.sum(|metrics| metrics.silences), 0);
    }
}
