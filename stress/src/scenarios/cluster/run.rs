//! A cluster under load: Redis, its nodes, and their clients.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use super::account::{Ended, account};
use crate::check::{Failure, Outcome, ensure};
use crate::cluster::fleet::{Fleet, FleetPlan};
use crate::cluster::node::{NodeSetup, kept_room};
use crate::cluster::redis::Redis;
use crate::cluster::{NODES, SENDERS_MAX};
use crate::random::Random;
use crate::scenarios::{Context, Report};
use crate::server::{Figures, Server};

const CLIENTS: u64 = 10_000;
const ROOMS: u32 = 1_000;
const CLIENTS_QUICK: u64 = 300;
const ROOMS_QUICK: u32 = 50;
/// The load of all nodes, in messages per second; the seed chooses from this range.
const LOAD: (u64, u64) = (1_000, 3_000);
const LOAD_QUICK: (u64, u64) = (300, 600);
/// The time for a step of a scenario: some take as long as nodes need to notice a silence, or Redis to time out.
const STEP_MAX: Duration = Duration::from_secs(60);
/// The timeout of a graceful shutdown.
const SHUTDOWN_MS: u64 = 5_000;

/// What distinguishes the scenarios before their faults.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    /// Options of Redis.
    pub(super) redis: &'static [&'static str],
    pub(super) plain: Plain,
}

/// Rooms without a history beside those with one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Plain {
    #[default]
    None,
    /// Each client joins one; no messages are sent there.
    Joined,
    /// Half of the load goes there.
    Loaded,
}

/// A node process that runs, or has ended.
pub(super) struct Node {
    pub(super) setup: NodeSetup,
    pub(super) server: Server,
}

pub(super) struct Cluster {
    plan: Plan,
    pub(super) quick: bool,
    pub(super) scale: u64,
    pub(super) clients: u64,
    pub(super) rooms: u32,
    pub(super) load: u64,
    pub(super) random: Random,
    pub(super) redis: Redis,
    /// `None` while a node is down.
    pub(super) nodes: [Option<Node>; NODES],
    pub(super) fleet: Fleet,
    /// The node processes that have ended.
    pub(super) ended: Vec<Ended>,
    next_sender: u32,
    /// Descriptions of what was measured.
    pub(super) figures: Vec<String>,
    pub(super) faults: u64,
    peak: u64,
}

/// Runs a scenario: starts a cluster and its load, has `fault` happen, waits until all is delivered, and checks the accounts.
/// Without an installed Redis, it passes.
pub(super) fn run(
    context: &Context,
    plan: Plan,
    fault: impl FnOnce(&mut Cluster) -> Outcome,
    check: impl FnOnce(&super::account::Account) -> Outcome,
) -> Outcome<Report> {
    let Some(redis) = Redis::start(plan.name, plan.redis)? else {
        return Ok(Report {
            held: "NOTHING, since redis-server is not installed".into(),
            faults: 0,
            figures: "NOT TESTED".into(),
            peak: 0,
        });
    };
    let mut cluster = Cluster::start(context, plan, redis)?;
    let outcome = cluster
        .start_load()
        .and_then(|()| fault(&mut cluster))
        .and_then(|()| cluster.drain());
    cluster.finish(outcome, check)
}

impl Cluster {
    fn start(context: &Context, plan: Plan, redis: Redis) -> Outcome<Self> {
        let mut random = context.random.clone();
        let (clients, rooms, (least, most)) = match context.quick {
            true => (CLIENTS_QUICK, ROOMS_QUICK, LOAD_QUICK),
            false => (context.connections_of(CLIENTS, CLIENTS)?, ROOMS, LOAD),
        };
        let load = random.between(least, most);
        let mut nodes = [None, None, None];
        let mut addresses = Vec::new();
        for (sender, node) in (0..).zip(&mut nodes) {
            let mut setup = NodeSetup::new(context.seed, redis.url(), sender);
            setup.rooms = rooms;
            setup.plain = plan.plain == Plain::Loaded;
            let server = setup.start()?;
            setup.address = server.address;
            addresses.push(server.address);
            *node = Some(Node { setup, server });
        }
        let [first, second, third] = addresses[..] else {
            return Err(Failure::new("there are not three nodes"));
        };
        let fleet = FleetPlan {
            clients,
            rooms,
            joins_plain: plan.plain != Plain::None,
            plain_ends: plan.plain == Plain::Loaded,
            addresses: [first, second, third],
            codec: context.codec(),
        };
        Ok(Self {
            plan,
            quick: context.quick,
            scale: context.scale,
            clients,
            rooms,
            load,
            redis,
            nodes,
            fleet: Fleet::start(fleet, random.fork("clients", 0))?,
            random,
            ended: Vec::new(),
            next_sender: NODES as u32,
            figures: Vec::new(),
            faults: 0,
            peak: 0,
        })
    }

    /// Waits until all clients have joined. Publishes a message to every room, and then at a constant rate to random ones.
    fn start_load(&mut self) -> Outcome {
        self.wait_until_connected()?;
        self.wait_until_live()?;
        let per_node = self.load / NODES as u64;
        for node in self.nodes.iter_mut().flatten() {
            node.server.ask("sweep")?;
            node.server.ask(&format!("load {per_node}"))?;
        }
        self.wait_until_flowing()?;
        self.go_on(Duration::from_millis(if self.quick { 300 } else { 2_000 }))
    }

    /// Lets the load go on for a time.
    pub(super) fn go_on(&self, time: Duration) -> Outcome {
        let until = Instant::now() + time;
        while Instant::now() < until {
            ensure!(!self.fleet.has_failed(), "a client has found a violation");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until a condition holds, or a client has found a violation. Returns how long it took.
    pub(super) fn wait(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Outcome<bool>,
    ) -> Outcome<Duration> {
        let begun = Instant::now();
        while !holds(self)? {
            ensure!(!self.fleet.has_failed(), "a client found a violation");
            ensure!(
                begun.elapsed() < STEP_MAX,
                "timed out after {STEP_MAX:?} before {what}; {:?}",
                self.fleet.progress
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// Waits until all nodes that run are connected to Redis, and hear each other.
    pub(super) fn wait_until_connected(&mut self) -> Outcome<Duration> {
        self.wait("all nodes are connected", |cluster| {
            let running = cluster.nodes.iter().flatten().count() as u64;
            cluster.all_nodes(|figures| {
                figures.get("servers_connected") == 1 && figures.get("nodes") == running
            })
        })
    }

    pub(super) fn wait_until_disconnected(&mut self) -> Outcome<Duration> {
        self.wait("all nodes have noticed the outage", |cluster| {
            cluster.all_nodes(|figures| figures.get("servers_connected") == 0)
        })
    }

    /// Waits until all clients have joined.
    pub(super) fn wait_until_live(&mut self) -> Outcome<Duration> {
        self.wait("all clients have joined", |cluster| {
            Ok(cluster.fleet.progress.live.load(SeqCst) == cluster.clients)
        })
    }

    /// Waits until clients of each node have received a message of each node that was published from now on.
    pub(super) fn wait_until_flowing(&mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        let mut sent = Vec::new();
        for node in self.nodes.iter_mut().flatten() {
            let figures = node.server.ask("figures")?;
            sent.push((node.setup.sender, figures.get("kept_sent")));
        }
        self.wait("messages flow everywhere", |cluster| {
            Ok(cluster.nodes.iter().enumerate().all(|(at, node)| {
                // A node that was restarted may have no members yet.
                node.is_none()
                    || cluster.fleet.progress.members[at].load(SeqCst) == 0
                    || sent
                        .iter()
                        .all(|&(sender, number)| cluster.fleet.newest(at, sender) > number)
            }))
        })?;
        Ok(begun.elapsed())
    }

    pub(super) fn all_nodes(&mut self, holds: impl Fn(&Figures) -> bool) -> Outcome<bool> {
        for node in self.nodes.iter_mut().flatten() {
            if !holds(&node.server.ask("figures")?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn node(&mut self, at: usize) -> Outcome<&mut Node> {
        let node = self.nodes[at].as_mut();
        node.ok_or_else(|| Failure::new(format!("node {at} does not run")))
    }

    /// Kills a node with SIGKILL.
    pub(super) fn kill_node(&mut self, at: usize) -> Outcome {
        if let Some(node) = self.nodes[at].take() {
            self.peak = self.peak.max(node.server.peak()?);
            node.server.kill()?;
            self.ended.push(Ended {
                sender: node.setup.sender,
                figures: None,
            });
        }
        Ok(())
    }

    /// Shuts a node down while its load goes on, and ends its process.
    pub(super) fn stop_node(&mut self, at: usize) -> Outcome<NodeSetup> {
        let node = self.nodes[at].take();
        let mut node = node.ok_or_else(|| Failure::new(format!("node {at} does not run")))?;
        node.server.ask(&format!("shutdown {SHUTDOWN_MS}"))?;
        let figures = node.server.ask("quiet")?;
        self.peak = self.peak.max(node.server.peak()?);
        self.ended.push(Ended {
            sender: node.setup.sender,
            figures: Some(figures),
        });
        Ok(node.setup)
    }

    /// Starts a node anew on the address of an earlier one, with its load.
    pub(super) fn start_node(&mut self, at: usize, mut setup: NodeSetup) -> Outcome {
        ensure!(
            (self.next_sender as usize) < SENDERS_MAX,
            "too many nodes were started"
        );
        setup.sender = self.next_sender;
        self.next_sender += 1;
        let server = setup.start()?;
        self.nodes[at] = Some(Node { setup, server });
        self.wait_until_connected()?;
        let per_node = self.load / NODES as u64;
        self.node(at)?.server.ask(&format!("load {per_node}"))?;
        Ok(())
    }

    /// The members of a room on all nodes, if all have answered, and the number of nodes.
    pub(super) fn count(&mut self, room: u32) -> Outcome<Option<(u64, u64)>> {
        let asked = self.nodes.iter_mut().flatten().next();
        let asked = asked.ok_or_else(|| Failure::new("no node runs"))?;
        let count = asked.server.ask(&format!("count {}", kept_room(room)))?;
        let is_complete = count.get("complete") == 1;
        Ok(is_complete.then(|| (count.get("members"), count.get("nodes"))))
    }

    /// Stops the load.
    pub(super) fn quiet(&mut self) -> Outcome {
        for node in self.nodes.iter_mut().flatten() {
            node.server.ask("quiet")?;
        }
        Ok(())
    }

    pub(super) fn note(&mut self, figure: impl Into<String>) {
        self.figures.push(figure.into());
    }

    /// Checks the accounts after this outcome.
    fn finish(
        mut self,
        outcome: Outcome,
        check: impl FnOnce(&super::account::Account) -> Outcome,
    ) -> Outcome<Report> {
        let (members, accounts) = self.fleet.finish()?;
        // A violation that a client has found says more than that waiting for the client was in vain.
        outcome?;
        let mut nodes = self.ended;
        for node in self.nodes.iter_mut().flatten() {
            nodes.push(Ended {
                sender: node.setup.sender,
                figures: Some(node.server.ask("figures")?),
            });
            self.peak = self.peak.max(node.server.peak()?);
        }
        let account = account(
            &members,
            &accounts,
            nodes,
            self.rooms,
            self.plan.plain == Plain::Loaded,
        )?;
        check(&account).map_err(|failure| Failure::new(format!("{failure}; {account}")))?;
        self.figures.insert(0, account.to_string());
        Ok(Report {
            held: format!(
                "{} clients in {} rooms, {} messages/s from {NODES} nodes",
                self.clients,
                self.rooms,
                self.load / NODES as u64 * NODES as u64
            ),
            faults: self.faults,
            figures: self.figures.join("; "),
            peak: self.peak,
        })
    }

    /// Ends the load, and waits until each client has received each node's last message.
    fn drain(&mut self) -> Outcome {
        self.quiet()?;
        self.wait_until_connected()?;
        self.wait_until_live()?;
        let mut senders = 0;
        for node in self.nodes.iter_mut().flatten() {
            node.server.ask("end")?;
            senders |= 1 << node.setup.sender;
        }
        self.fleet.expect_ends(senders);
        self.wait("all clients have received the last messages", |cluster| {
            Ok(cluster.fleet.progress.ended.load(SeqCst) >= cluster.clients)
        })?;
        Ok(())
    }
}
