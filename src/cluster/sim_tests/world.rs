//! The nodes, their members and the broker servers, and chance.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::broker::Server;
use super::recorder::{Copy, PresenceHeard, Recorder, Seen};
use super::stored::{Deletion, Refusal, Restart, Stored};
use crate::cluster::broker::{Channel, Event};
use crate::cluster::counters::ClusterCounters;
use crate::cluster::interest::{Interest, ServerStatus, Waited};
use crate::cluster::node::{Action, InterestChange, Node};
use crate::cluster::outgoing::{AppendRequest, NotQueued, Outbound, Outgoing, Wake};
use crate::cluster::queries::Queries;
use crate::cluster::servers::{ServerShared, server_key, server_of};
use crate::cluster::wire::{Content, DirectAction, RemoteConnection};
use crate::message::Message;
use crate::sync::lock;

pub(super) fn room(name: &str) -> Channel {
    Channel::Room(name.into())
}

struct NoWaker;

impl Wake for NoWaker {
    fn wake(&self) {}
}

struct SimNode {
    node: Node,
    shared: Vec<Arc<ServerShared>>,
    members: Arc<Recorder>,
    queries: Arc<Queries>,
    counters: Arc<ClusterCounters>,
    /// Changes that the node has not seen.
    changes: Vec<InterestChange>,
    /// It stands still otherwise.
    runs: bool,
    reconnects: bool,
    stopped: bool,
    losses: usize,
}

pub(super) struct World {
    now: Instant,
    nodes: Vec<SimNode>,
    servers: Vec<Server>,
}

const STEP: Duration = Duration::from_millis(10);

impl World {
    pub(super) fn new(nodes: usize, servers: usize) -> Self {
        Self::with_parked_bytes(nodes, servers, 8 << 20)
    }

    /// Creates a world whose nodes park so many bytes of messages.
    pub(super) fn with_parked_bytes(nodes: usize, servers: usize, parked_bytes_max: usize) -> Self {
        let now = Instant::now();
        let node = |index: usize| {
            let share = |server: usize| {
                Arc::new(ServerShared {
                    key: server_key(&format!("broker {server}")),
                    outgoing: Outgoing::new(
                        8 << 20,
                        Duration::from_secs(5),
                        now,
                        Arc::new(NoWaker),
                    ),
                    status: ServerStatus::new(),
                    message_bytes_max: AtomicUsize::new(usize::MAX),
                })
            };
            let shared: Vec<_> = (0..servers).map(share).collect();
            let members = Arc::new(Recorder::default());
            let counters = Arc::new(ClusterCounters::default());
            let queries = Arc::new(Queries::default());
            SimNode {
                node: Node::new(
                    index as u32,
                    shared.clone(),
                    parked_bytes_max,
                    members.clone(),
                    (queries.clone(), counters.clone()),
                    now,
                ),
                shared,
                members,
                queries,
                counters,
                changes: Vec::new(),
                runs: true,
                reconnects: true,
                stopped: false,
                losses: 0,
            }
        };
        Self {
            now,
            nodes: (0..nodes).map(node).collect(),
            servers: (0..servers).map(|_| Server::new()).collect(),
        }
    }

    pub(super) fn need(&mut self, node: usize, name: &str) -> Arc<Interest> {
        let server = server_of(&room(name), &self.nodes[node].shared);
        let interest = Arc::new(Interest::new(server));
        let change = InterestChange::Needed {
            room: name.into(),
            interest: interest.clone(),
            history_bytes_max: None,
        };
        self.change(node, change);
        interest
    }

    pub(super) fn unneed(&mut self, node: usize, name: &str) {
        self.change(node, InterestChange::Unneeded(name.into()));
    }

    /// Records that a node needs a room with a history, as the app does: with an empty copy, which keeps so many messages. The
    /// node sees it in its next turn.
    pub(super) fn need_history(
        &mut self,
        node: usize,
        name: &str,
        messages_max: usize,
    ) -> Arc<Interest> {
        let node = &mut self.nodes[node];
        let server = server_of(&room(name), &node.shared);
        let interest = Arc::new(Interest::new(server));
        node.members.renew_copy(name, messages_max);
        node.changes.push(InterestChange::Needed {
            room: name.into(),
            interest: interest.clone(),
            history_bytes_max: Some(10_000),
        });
        interest
    }

    pub(super) fn unneed_history(&mut self, node: usize, name: &str) {
        let node = &mut self.nodes[node];
        node.members.drop_copy(name);
        node.changes.push(InterestChange::Unneeded(name.into()));
    }

    fn change(&mut self, node: usize, change: InterestChange) {
        let mut actions = Vec::new();
        let now = self.now;
        self.nodes[node].node.on_interest(change, now, &mut actions);
        self.act(node, actions);
    }

    /// Queues a message as a thread of the app does. Returns whether it was queued.
    pub(super) fn publish(&mut self, node: usize, channel: Channel, text: &str) -> bool {
        self.send(
            node,
            channel,
            Outbound::Message(Message::new_text(text), None),
        )
    }

    /// Queues a message for the history of a room as a thread of the app does.
    pub(super) fn append(
        &mut self,
        node: usize,
        name: &str,
        text: &str,
        request: AppendRequest,
    ) -> bool {
        let content = Outbound::Append(Message::new_text(text).into(), None, Box::new(request));
        self.send(node, room(name), content)
    }

    fn send(&mut self, node: usize, channel: Channel, content: Outbound) -> bool {
        let shared = &self.nodes[node].shared;
        let outgoing = &shared[server_of(&channel, shared)].outgoing;
        match outgoing.try_reserve(&content, self.now) {
            Ok(reserved) => {
                reserved.push(channel, content, self.now);
                true
            }
            Err(NotQueued::Full | NotQueued::Unreachable | NotQueued::Stopped) => false,
        }
    }

    /// Queues what a node tells about the presence of a room. Returns whether it was queued.
    pub(super) fn tell_presence(&mut self, node: usize, name: &str, update: &[u8]) -> bool {
        let content = Outbound::Encoded(Content::Presence(update).encode());
        self.send(node, room(name), content)
    }

    /// Queues the question to a node for the members of all its rooms.
    pub(super) fn ask_for_presence(&mut self, node: usize, of: u32) {
        let content = Outbound::Encoded(Content::Presence(&[]).encode());
        self.send(node, Channel::Node(of), content);
    }

    /// Takes what a node has reported of the presence of rooms.
    pub(super) fn take_presence(&self, node: usize) -> Vec<PresenceHeard> {
        std::mem::take(&mut *lock(&self.nodes[node].members.presence))
    }

    pub(super) fn is_up(&self, node: usize, name: &str) -> bool {
        let shared = &self.nodes[node].shared;
        shared[server_of(&room(name), shared)].status.is_up()
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Acts on a connection as a thread of the app does.
    pub(super) fn act_on(&mut self, node: usize, slot: u32, to: usize, action: DirectAction<'_>) {
        let connection = RemoteConnection {
            node: to as u32,
            shard: 0,
            slot,
            generation: 0,
        };
        let channel = Channel::Node(connection.node);
        self.queue(node, channel, &Content::Direct(connection, action));
    }

    /// Queues content as a thread of the app does.
    pub(super) fn queue(&mut self, node: usize, channel: Channel, content: &Content<'_>) {
        let shared = &self.nodes[node].shared;
        let outgoing = &shared[server_of(&channel, shared)].outgoing;
        let content = Outbound::Encoded(content.encode());
        let reserved = outgoing.try_reserve(&content, self.now);
        let reserved = reserved.unwrap_or_else(|refused| panic!("{refused:?}"));
        reserved.push(channel, content, self.now);
    }

    pub(super) fn queries(&self, node: usize) -> &Queries {
        &self.nodes[node].queries
    }

    fn act(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Command(server, command) => self.servers[server].command(node, command),
                Action::Reconnect(server) => self.cut(node, server),
            }
        }
    }

    /// Breaks the connection of a node to a server. Both have lost what was on the way.
    pub(super) fn cut(&mut self, node: usize, server: usize) {
        self.servers[server].disconnect(node);
        let now = self.now;
        let node = &mut self.nodes[node];
        node.node.disconnected(server, now);
        node.losses += 1;
    }

    /// Breaks the connection of a node to a server, which executes later what it has received.
    pub(super) fn cut_late(&mut self, node: usize, server: usize) {
        self.servers[server].abandon(node);
        self.cut(node, server);
    }

    pub(super) fn execute_abandoned(&mut self) {
        self.servers.iter_mut().for_each(Server::execute_abandoned);
    }

    /// How often a node has lost a connection, for whatever reason.
    pub(super) fn losses(&self, node: usize) -> usize {
        self.nodes[node].losses
    }

    pub(super) fn restart(&mut self, server: usize) {
        self.restart_with(server, Restart::KeepsData);
    }

    pub(super) fn restart_with(&mut self, server: usize, restart: Restart) {
        self.servers[server].restart(restart);
        for node in &mut self.nodes {
            node.node.disconnected(server, self.now);
            node.losses += 1;
        }
    }

    pub(super) fn freeze(&mut self, server: usize) {
        self.servers[server].freeze(true);
    }

    pub(super) fn thaw(&mut self, server: usize) {
        self.servers[server].freeze(false);
    }

    pub(super) fn refuse_subscriptions(&mut self, server: usize, refuses: bool) {
        self.servers[server].refuses = refuses;
    }

    /// Lets a server refuse appends and reads.
    pub(super) fn refuse_histories(&mut self, server: usize, refusal: Option<Refusal>) {
        self.servers[server].refusal = refusal;
    }

    /// Loses a message on its way to a node, which no server does.
    pub(super) fn lose_message(&mut self, node: usize, server: usize) {
        self.servers[server].lose_message(node);
    }

    pub(super) fn delete(&mut self, server: usize, name: &str, deletion: Deletion) {
        self.servers[server].delete(name, deletion);
    }

    /// Spoils the last message that the first server keeps of a room.
    pub(super) fn spoil_last(&mut self, name: &str) {
        self.servers[0].stored.spoil_last(name);
    }

    /// The histories of the server that a room belongs to.
    pub(super) fn stored(&self, name: &str) -> &Stored {
        let server = server_of(&room(name), &self.nodes[0].shared);
        &self.servers[server].stored
    }

    pub(super) fn all_stored(&self) -> impl Iterator<Item = &Stored> {
        self.servers.iter().map(|server| &server.stored)
    }

    pub(super) fn copy(&self, node: usize, name: &str) -> Option<Copy> {
        self.nodes[node].members.copy(name)
    }

    /// Records that members have joined a room.
    pub(super) fn joined(&self, node: usize, name: &str) {
        self.nodes[node].members.joined(name);
    }

    pub(super) fn seen(&self, node: usize, name: &str) -> Vec<Seen> {
        self.nodes[node].members.seen(name)
    }

    /// The bytes of the envelopes whose appends a node keeps to send them again.
    pub(super) fn unanswered_append_bytes(&self, node: usize) -> usize {
        self.nodes[node].node.unanswered_append_bytes()
    }

    /// The bytes of the messages that wait for a node's mailboxes.
    pub(super) fn parked_bytes(&self, node: usize) -> usize {
        self.nodes[node].node.parked_bytes()
    }

    /// The number of gaps that the members of a node were told of.
    pub(super) fn gaps_told(&self, node: usize) -> u64 {
        self.nodes[node].members.gaps()
    }

    /// An event that the broker has no reason to send.
    pub(super) fn event(&mut self, node: usize, event: Event) {
        let (now, mut actions) = (self.now, Vec::new());
        self.nodes[node].node.on_event(0, event, now, &mut actions);
        self.act(node, actions);
    }

    pub(super) fn stall_reconnects(&mut self, node: usize) {
        self.nodes[node].reconnects = false;
    }

    pub(super) fn allow_reconnects(&mut self, node: usize) {
        self.nodes[node].reconnects = true;
    }

    pub(super) fn stop_running(&mut self, node: usize) {
        self.nodes[node].runs = false;
    }

    pub(super) fn run_again(&mut self, node: usize) {
        self.nodes[node].runs = true;
    }

    pub(super) fn fill_mailbox(&mut self, node: usize, full: bool) {
        self.nodes[node].members.full.store(full, Relaxed);
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.begin_stop(node);
        self.nodes[node].stopped = true;
    }

    /// Stops a node, which waits for the answers to what it has sent.
    pub(super) fn begin_stop(&mut self, node: usize) {
        let mut actions = Vec::new();
        self.nodes[node].node.stop(self.now, &mut actions);
        self.act(node, actions);
    }

    /// Lets time pass without anything happening.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// The outcome of a subscription; `None` while it is on its way.
    pub(super) fn settled(&self, node: usize, interest: &Interest) -> Option<Waited> {
        let server = &self.nodes[node].shared[interest.server];
        server.status.state_of(interest)
    }

    /// The number of subscriptions to rooms, of all nodes.
    pub(super) fn subscriptions(&self) -> usize {
        self.servers.iter().map(Server::subscriptions).sum()
    }

    /// Reads what the servers have sent to a node: at most this many events of each.
    pub(super) fn receive(&mut self, node: usize, events_max: usize) -> bool {
        let mut actions = Vec::new();
        let mut any = false;
        for server in 0..self.servers.len() {
            for _ in 0..events_max {
                let Some(event) = self.servers[server].event(node) else {
                    break;
                };
                any = true;
                let now = self.now;
                self.nodes[node]
                    .node
                    .on_event(server, event, now, &mut actions);
            }
        }
        self.act(node, actions);
        any
    }

    pub(super) fn execute(&mut self, node: usize, commands_max: usize) -> bool {
        let mut any = false;
        for server in &mut self.servers {
            for _ in 0..commands_max {
                if !server.execute(node) {
                    break;
                }
                any = true;
            }
        }
        any
    }

    /// One turn of a node's link.
    pub(super) fn turn(&mut self, node: usize) {
        if !self.nodes[node].runs || self.nodes[node].stopped {
            return;
        }
        for change in std::mem::take(&mut self.nodes[node].changes) {
            self.change(node, change);
        }
        let (mut actions, now) = (Vec::new(), self.now);
        for server in 0..self.servers.len() {
            if !self.servers[server].is_connected(node) && self.nodes[node].reconnects {
                self.servers[server].connect(node);
            }
        }
        let node_state = &mut self.nodes[node].node;
        for server in 0..self.servers.len() {
            node_state.send_queued(server, 64 << 10, now, &mut actions);
        }
        self.act(node, actions);
        self.receive(node, usize::MAX);
        let mut actions = Vec::new();
        self.nodes[node].node.on_time(now, &mut actions);
        self.act(node, actions);
    }

    /// Goes on without a passing of time until nothing happens any longer.
    pub(super) fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut any = false;
            for node in 0..self.nodes.len() {
                self.turn(node);
                any |= self.execute(node, 1_000);
            }
            let queued = |node: &SimNode| {
                let mut shared = node.shared.iter();
                let reaches =
                    shared.any(|server| server.status.is_up() && !server.outgoing.is_empty());
                node.runs && !node.stopped && reaches
            };
            if !any && !self.nodes.iter().any(queued) {
                return;
            }
        }
        panic!("it never settles");
    }

    /// Lets time pass in steps.
    pub(super) fn run_for(&mut self, time: Duration) {
        self.run_in_steps(time, STEP);
    }

    /// Lets time pass in steps of this length.
    pub(super) fn run_in_steps(&mut self, time: Duration, step: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += step;
            for node in 0..self.nodes.len() {
                self.turn(node);
                self.execute(node, 1_000);
            }
            self.check_deadlines();
        }
    }

    /// A node that has something to do at some time says so.
    fn check_deadlines(&self) {
        for node in self.nodes.iter().filter(|node| node.runs && !node.stopped) {
            let due = node.node.next_due(self.now);
            assert!(
                due <= self.now + Duration::from_secs(1),
                "no deadline is armed"
            );
        }
    }

    pub(super) fn delivered(&self, node: usize) -> Vec<String> {
        lock(&self.nodes[node].members.delivered).clone()
    }

    pub(super) fn counters(&self, node: usize) -> &ClusterCounters {
        &self.nodes[node].counters
    }

    pub(super) fn nodes_heard(&self, node: usize) -> u64 {
        self.nodes[node].counters.nodes.load(Relaxed)
    }

    pub(super) fn waited(&self, node: usize, interest: &Interest) -> Waited {
        let server = &self.nodes[node].shared[interest.server];
        server.status.wait_for(interest, Duration::ZERO)
    }

    pub(super) fn subscribers(&self, name: &str) -> usize {
        let channel = room(name);
        let subscribers = |server: &Server| server.subscribers(&channel);
        self.servers.iter().map(subscribers).sum()
    }

    pub(super) fn published(&self, server: usize) -> usize {
        self.servers[server].published
    }
}

/// A generator of chance, with a seed.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66)
    }

    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }
}

/// Plays with chance: three nodes, one or two servers, four rooms that all nodes need.
pub(super) fn game(seed: u64) {
    let mut dice = Dice::new(seed);
    let servers = 1 + dice.roll(2);
    let mut world = World::new(3, servers);
    let rooms = ["a", "b", "c", "d"];
    for node in 0..3 {
        for name in rooms {
            world.need(node, name);
        }
    }
    world.settle();
    // From its first message on, a receiver knows what it has missed of a sender.
    let mut sent = publish_everywhere(&mut world, 0);
    let faulty = dice.roll(4) != 0;
    for _ in 0..200 + dice.roll(300) {
        let node = dice.roll(3);
        match dice.roll(if faulty { 14 } else { 9 }) {
            0..4 => {
                let channel = match dice.roll(5) {
                    0 => Channel::Everyone,
                    n => room(rooms[n - 1]),
                };
                sent += 1;
                assert!(world.publish(node, channel, &format!("{node}:{sent}")));
            }
            4 | 5 => world.turn(node),
            6 => drop(world.execute(node, 1 + dice.roll(3))),
            7 => drop(world.receive(node, 1 + dice.roll(3))),
            8 => world.run_for(Duration::from_millis(10 * (1 + dice.roll(30) as u64))),
            9 => world.cut(node, dice.roll(servers)),
            10 => world.restart(dice.roll(servers)),
            11 => world.fill_mailbox(node, dice.roll(2) == 0),
            12 if dice.roll(8) == 0 => {
                let server = dice.roll(servers);
                world.freeze(server);
                world.run_for(Duration::from_millis(100 * dice.roll(60) as u64));
                world.thaw(server);
            }
            _ => {
                if dice.roll(2) == 0 {
                    world.stop_running(node);
                } else {
                    world.run_again(node);
                }
            }
        }
    }
    for node in 0..3 {
        world.run_again(node);
        world.fill_mailbox(node, false);
    }
    // Queued messages leave, and parked ones are delivered.
    world.run_for(Duration::from_secs(8));
    world.settle();
    // One more message on each channel tells what was missed before it.
    sent = publish_everywhere(&mut world, sent);
    check(&world, sent, faulty, seed);
}

/// Publishes a message of each node on each channel. Returns the number of messages that were sent so far.
fn publish_everywhere(world: &mut World, mut sent: usize) -> usize {
    for channel in [
        Channel::Everyone,
        room("a"),
        room("b"),
        room("c"),
        room("d"),
    ] {
        for node in 0..3 {
            sent += 1;
            assert!(world.publish(node, channel.clone(), &format!("{node}:{sent}")));
        }
        world.settle();
    }
    sent
}

fn check(world: &World, sent: usize, faulty: bool, seed: u64) {
    let counters = |node: usize| world.counters(node);
    let mut received = 0;
    for node in 0..3 {
        let mut last: HashMap<(String, String), usize> = HashMap::new();
        let delivered = world.delivered(node);
        for line in &delivered {
            let (channel, text) = line.split_once(' ').unwrap();
            let (from, number) = text.split_once(':').unwrap();
            assert_ne!(from, node.to_string(), "seed {seed}: its own came back");
            let number: usize = number.parse().unwrap();
            let key = (channel.to_owned(), from.to_owned());
            let before = last.insert(key, number).unwrap_or(0);
            assert!(
                before < number,
                "seed {seed}: {line} is out of order or repeated"
            );
        }
        received += delivered.len() as u64;
        let counters = counters(node);
        assert_eq!(
            counters.received.get(),
            delivered.len() as u64 + counters.dropped_full.get(),
            "seed {seed}"
        );
        assert_eq!(counters.bad_envelopes.get(), 0, "seed {seed}");
        assert_eq!(
            counters.servers_connected.load(Relaxed) as usize,
            world.servers.len()
        );
        assert_eq!(world.nodes_heard(node), 3, "seed {seed}");
    }
    let sum = |of: fn(&ClusterCounters) -> u64| (0..3).map(|node| of(counters(node))).sum::<u64>();
    let dropped = sum(|counters| counters.dropped_broker.get());
    let published = sum(|counters| counters.published.get());
    assert_eq!(published + dropped, sent as u64, "seed {seed}");
    let confirmed = sum(|counters| counters.confirmed.get());
    assert_eq!(
        published,
        confirmed + sum(|counters| counters.unconfirmed.get()),
        "seed {seed}"
    );
    // Each published message reaches both other nodes, or is counted as missed there, or never reached the broker.
    let missed = sum(|counters| counters.missed_remote.get());
    let full = sum(|counters| counters.dropped_full.get());
    let unconfirmed = sum(|counters| counters.unconfirmed.get());
    let accounted = received + full + missed;
    assert_eq!(accounted, 2 * published, "seed {seed}");
    if !faulty {
        assert_eq!((dropped, missed, unconfirmed), (0, 0, 0), "seed {seed}");
    }
}
