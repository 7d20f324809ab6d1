//! A node of a cluster: which rooms it receives, which nodes it hears, and what it sends to the broker servers.
//!
//! A node is a state machine: events of the brokers, changes of interest and the time are arguments, and commands are
//! the result. So several nodes run in a simulation without sockets and threads.

mod appends;
mod deadlines;
mod histories;
mod subscriptions;
mod unanswered;
mod waiting_actions;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::appends::Appends;
use self::histories::Reads;
use self::unanswered::{Published, Unanswered};
use self::waiting_actions::WaitingAction;
use super::broker::{Channel, Command, Event, Incarnation, Kind, Refused};
use super::counters::ClusterCounters;
use super::counts::{Counts, NODES_MAX, SentCounts};
use super::interest::Interest;
use super::members::Members;
use super::outgoing::Queued;
use super::parked::{Arrived, Parked};
use super::peers::{Heard, Peers};
use super::queries::Queries;
use super::replica::Replica;
use super::servers::{ServerShared, server_of};
use super::wire::{self, Content, Envelope, Heartbeat};
use crate::history_id::HistoryId;
use crate::presence::NodeEvent;
use crate::report::{Limited, limited};

/// How often a node sends a heartbeat through each broker server.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a node stays subscribed to a room that it no longer needs, so that a room whose last member reloads a page
/// is not subscribed anew.
const LINGER: Duration = Duration::from_secs(5);
/// The most rooms that are subscribed to without need. Clients may join and leave rooms much faster than [`LINGER`].
const LINGERING_MAX: usize = 10_000;
/// If this node's own heartbeat did not return for so long, the silence of other nodes may be caused by its link.
const OWN_SILENCE_MAX: Duration = Duration::from_millis(1_500);
/// How long after a refused subscription the node tries again.
const RESUBSCRIBE_INTERVAL: Duration = Duration::from_secs(1);
/// The most unanswered messages of one connection: more wait in the queue, where they apply backpressure.
const UNANSWERED_MAX: usize = 8_192;
/// The most unanswered messages with which questions of other nodes are answered, which are not in the queue.
const UNANSWERED_REPLIES_MAX: usize = 2 * UNANSWERED_MAX;
/// Queued messages are not sent when they are older than this.
const QUEUED_MAX: Duration = Duration::from_secs(30);
/// The most channels of one command, so that a broker with many subscriptions serves others in between.
const SUBSCRIBED_AT_ONCE: usize = 1_000;

/// A change of the rooms that a node needs.
#[derive(Debug)]
pub(crate) enum InterestChange {
    /// The room has local members, or a local thread reads it.
    Needed {
        room: Arc<str>,
        interest: Arc<Interest>,
        /// If the room keeps a history, about the most bytes of it. This node's copy of it is empty.
        history_bytes_max: Option<usize>,
    },
    /// The room has no local members.
    Unneeded(Arc<str>),
}

/// What the link has to do for a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Execute a command on a broker server.
    Command(usize, Command),
    /// Close the connection to a broker server, and connect again.
    Reconnect(usize),
}

/// A broker server, as the node sees it.
struct Server {
    /// The number of connections so far.
    connections: u64,
    /// The server's life on the current connection; `None` while there is none.
    incarnation: Option<Incarnation>,
    heartbeat_due: Instant,
    /// When the last of this node's heartbeats came back.
    echoed: Instant,
    /// The number of different incarnations so far, and the last one.
    incarnations: u64,
    last_incarnation: Option<Incarnation>,
    /// The commands that were not answered, oldest first, except subscriptions.
    unanswered: VecDeque<Unanswered>,
    appends: Appends,
    reads: Reads,
    /// Since when it can't be reached.
    down_since: Instant,
    /// Whether the members of its rooms with a history were told so.
    silence_told: bool,
    /// When to subscribe again to what the server has refused.
    resubscribe_at: Option<Instant>,
}

/// A room that this node is subscribed to, or about to be.
struct RoomState {
    interest: Arc<Interest>,
    /// When to unsubscribe; `None` while the room is needed.
    unsubscribe_at: Option<Instant>,
    counts: Counts,
    /// `None` if the room keeps no history.
    replica: Option<Replica>,
}

/// A node of a cluster.
pub(crate) struct Node {
    id: u32,
    servers: Vec<Server>,
    /// What other threads see of the servers.
    shared: Vec<Arc<ServerShared>>,
    rooms: HashMap<Arc<str>, RoomState>,
    /// The unneeded rooms in the order of their `unsubscribe_at`, and some that are needed again.
    lingering: VecDeque<(Instant, Arc<str>)>,
    everyone: Counts,
    direct: Counts,
    peers: Peers,
    sent: SentCounts,
    parked: Parked,
    members: Arc<dyn Members>,
    queries: Arc<Queries>,
    counters: Arc<ClusterCounters>,
    /// Sent in heartbeats.
    heartbeats: u64,
    /// When time was last seen.
    now: Instant,
    is_stopping: bool,
    taken: Vec<Queued>,
    /// Rooms whose copies lack messages that did not fit into the mailboxes.
    behind: Vec<Arc<str>>,
    /// Actions that wait for the histories of rooms.
    waiting: Vec<WaitingAction>,
    /// When all histories were last read to keep them, and unused copies dropped.
    refreshed: Instant,
    copies_dropped: Instant,
}

impl Node {
    pub(crate) fn new(
        id: u32,
        servers: Vec<Arc<ServerShared>>,
        parked_bytes_max: usize,
        members: Arc<dyn Members>,
        (queries, counters): (Arc<Queries>, Arc<ClusterCounters>),
        now: Instant,
    ) -> Self {
        let server = |_: &Arc<ServerShared>| Server {
            connections: 0,
            incarnation: None,
            heartbeat_due: now,
            echoed: now,
            incarnations: 0,
            last_incarnation: None,
            unanswered: VecDeque::new(),
            appends: Appends::default(),
            reads: Reads::default(),
            down_since: now,
            silence_told: false,
            resubscribe_at: None,
        };
        Self {
            id,
            servers: servers.iter().map(server).collect(),
            shared: servers,
            rooms: HashMap::new(),
            lingering: VecDeque::new(),
            everyone: Counts::default(),
            direct: Counts::default(),
            peers: Peers::default(),
            sent: SentCounts::new(now),
            parked: Parked::new(parked_bytes_max),
            members,
            queries,
            counters,
            heartbeats: 0,
            now,
            is_stopping: false,
            taken: Vec::new(),
            behind: Vec::new(),
            waiting: Vec::new(),
            refreshed: now,
            copies_dropped: now,
        }
    }

    /// Handles an event of the current connection to a server.
    pub(crate) fn on_event(
        &mut self,
        server: usize,
        event: Event,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match event {
            Event::Ready(incarnation) => self.connected(server, incarnation, now, actions),
            Event::Subscribed(channel) => self.subscribed(server, &channel),
            Event::Message {
                channel: Channel::Room(name),
                id: Some(id),
                envelope,
            } => self.received_kept(server, name, id, envelope, now, actions),
            Event::Message {
                channel,
                id: _,
                envelope,
            } => self.received(server, channel, envelope, now, actions),
            Event::Published { receivers: _ } => {
                if let Some(Published::Message) = self.answered(server, now) {
                    self.counters.confirmed.add(1);
                }
            }
            Event::Refused(refused) => self.refused(server, &refused, now),
            Event::Appended(appended) => self.appended(server, appended, now, actions),
            Event::History(history) => match self.answered(server, now) {
                Some(Published::Read { bytes, .. }) => {
                    self.on_history(server, &history, bytes);
                }
                Some(Published::Find(in_flight)) => self.found(&in_flight, &history),
                _ => {}
            },
            Event::ReadPostponed => {
                if let Some(Published::Read { room, bytes }) = self.answered(server, now) {
                    self.read_postponed(server, room, bytes);
                }
            }
        }
    }

    fn connected(
        &mut self,
        at: usize,
        incarnation: Incarnation,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let server = &mut self.servers[at];
        let same_server = server.last_incarnation.as_ref() == Some(&incarnation);
        if !same_server {
            server.incarnations += 1;
            server.last_incarnation = Some(incarnation.clone());
        }
        server.incarnation = Some(incarnation);
        server.connections += 1;
        server.heartbeat_due = now;
        server.echoed = now;
        server.silence_told = false;
        server.resubscribe_at = None;
        // Subscribe first: so what is published from now on, also by this node's threads, finds the subscriptions.
        self.subscribe(at, |_| true, actions);
        self.append_again(at, same_server, now, actions);
        let shared = &self.shared[at];
        shared.status.set_connection(self.servers[at].connections);
        shared.outgoing.set_down_since(None);
        self.counters.connections.add(1);
        self.counters.servers_connected.fetch_add(1, Relaxed);
    }

    /// Handles the loss of a connection, or a failed attempt to connect.
    pub(crate) fn disconnected(&mut self, at: usize, now: Instant) {
        self.shared[at].status.set_connection(0);
        let server = &mut self.servers[at];
        if server.incarnation.take().is_none() {
            return;
        }
        server.down_since = now;
        self.shared[at].outgoing.set_down_since(Some(now));
        self.counters.servers_connected.fetch_sub(1, Relaxed);
        server.reads.disconnected();
        for unanswered in std::mem::take(&mut server.unanswered) {
            match unanswered.published {
                Published::Message => self.counters.unconfirmed.add(1),
                Published::Append(in_flight) => self.append_disconnected(at, in_flight),
                Published::Own | Published::Read { .. } | Published::Find(_) => {}
            }
        }
        if self.is_stopping {
            self.give_up_appends(at);
        }
        let rooms = self.rooms.values_mut();
        for room in rooms.filter(|room| room.interest.server == at) {
            if let Some(replica) = &mut room.replica {
                replica.disconnected();
            }
        }
    }

    fn refused(&mut self, at: usize, refused: &Refused, now: Instant) {
        /// A broker may refuse every message.
        static REFUSED: Limited = Limited::new();
        /// It repeats while the broker refuses.
        static UNSUBSCRIBED: Limited = Limited::new();
        match refused.command {
            Kind::Subscribe => {
                // The event does not say which channels it concerns.
                self.servers[at].resubscribe_at = Some(now + RESUBSCRIBE_INTERVAL);
                let rooms = self.rooms.values();
                for room in rooms.filter(|room| room.interest.server == at) {
                    self.shared[at].status.refused(&room.interest);
                }
                limited!(
                    UNSUBSCRIBED,
                    warning,
                    "the broker has refused a subscription of the cluster, so this node misses messages of other nodes; it \
                     tries again every second: {}",
                    refused.error
                );
            }
            _ => {
                match self.answered(at, now) {
                    Some(Published::Message) => self.counters.dropped_broker.add(1),
                    Some(Published::Append(in_flight)) => self.append_refused(at, &in_flight),
                    Some(Published::Read { room, bytes }) => {
                        self.read_refused(at, room, bytes, refused, now);
                        return;
                    }
                    _ => {}
                }
                limited!(
                    REFUSED,
                    warning,
                    "the broker has refused a message of the cluster, which is lost: {}",
                    refused.error
                );
            }
        }
    }

    /// Handles what another node has sent, or what this node has sent itself.
    fn received(
        &mut self,
        server: usize,
        channel: Channel,
        envelope: Bytes,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let decoded = match Envelope::decode(&envelope) {
            Ok(decoded) => decoded,
            Err(bad) => {
                self.is_bad(&bad);
                return;
            }
        };
        let (node, serial) = (decoded.node, decoded.serial);
        match (decoded.content, channel) {
            (Content::Heartbeat(heartbeat), Channel::Nodes) => {
                self.heartbeat(server, (node, serial), heartbeat, now);
            }
            // This node's own members have received it already.
            _ if node == self.id => {}
            (
                Content::Message {
                    payload, except, ..
                },
                channel @ (Channel::Everyone | Channel::Room(_)),
            ) => {
                if self.has_counted(&channel, node, serial) {
                    self.deliver(Arrived::Message {
                        channel,
                        message: payload.to_message(),
                        except,
                    });
                }
            }
            (Content::Direct(to, _), channel @ Channel::Node(_)) if to.node == self.id => {
                if !self.has_counted(&channel, node, serial) {
                } else if self.is_waiting(to) {
                    self.wait(envelope, now);
                } else {
                    self.deliver(Arrived::Action(envelope));
                    self.wait_later(now);
                }
            }
            // Parked like messages: it closes connections after what they were sent before.
            (Content::CloseUser { .. }, Channel::Nodes) => {
                self.counters.received.add(1);
                self.deliver(Arrived::Action(envelope));
            }
            (Content::Count { query, room }, Channel::Nodes) => {
                let members = self.members.count(room);
                let content = Content::Counted { query, members };
                self.reply(node, content, now, actions);
            }
            (Content::Counted { query, members }, Channel::Node(_)) => {
                self.queries.answer(query, node, members);
            }
            // Nothing is told about one room.
            (Content::Presence([]), Channel::Node(_)) => self.on_presence(NodeEvent::AskedForAll),
            (Content::Presence(update), Channel::Room(room)) => {
                self.on_presence(NodeEvent::Update {
                    room: &room,
                    node,
                    is_gone: !self.peers.is_present(node),
                    update,
                });
            }
            _ => self.is_bad(&"it is not for this channel"),
        }
    }

    /// Handles a message of a room with a history. This node's own members receive its own messages here, too, since the
    /// broker decides about their order.
    fn received_kept(
        &mut self,
        server: usize,
        room: Arc<str>,
        id: HistoryId,
        envelope: Bytes,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Ok(decoded) = Envelope::decode(&envelope)
            && decoded.node == self.id
        {
            let appends = &mut self.servers[server].appends;
            appends.has_returned(decoded.serial, id, now);
        }
        if !self.kept_message(&room, id, &envelope) {
            // It keeps none here, because this node has another configuration.
            self.received(server, Channel::Room(room), envelope, now, actions);
        }
    }

    fn is_bad(&self, reason: &dyn std::fmt::Display) {
        /// Any program that may publish to the broker can cause it.
        static BAD: Limited = Limited::new();
        self.counters.bad_envelopes.add(1);
        limited!(
            BAD,
            warning,
            "a message from the cluster can't be read and is skipped: {reason}; does another program use the same prefix \
             (?app=) on this broker, or does a node have a newer version?"
        );
    }

    /// Counts a message of another node, and those that were missed before it. Returns false if it is for a room that this
    /// node has unsubscribed from meanwhile: it may be subscribed again, but the messages in between are not missed.
    fn has_counted(&mut self, channel: &Channel, node: u32, serial: u64) -> bool {
        let counts = match channel {
            Channel::Everyone => &mut self.everyone,
            Channel::Node(_) => &mut self.direct,
            Channel::Room(name) => match self.rooms.get_mut(name) {
                Some(room) => {
                    let server = &self.shared[room.interest.server];
                    if !server.status.is_subscribed(&room.interest) {
                        return false;
                    }
                    &mut room.counts
                }
                None => return false,
            },
            Channel::Nodes => return false,
        };
        let missed = counts.missed_before(node, serial);
        self.counters.missed_remote.add(missed);
        self.counters.received.add(1);
        true
    }

    /// Reports what concerns the presence of rooms.
    pub(super) fn on_presence(&self, event: NodeEvent<'_>) {
        if let Err(bad) = self.members.on_presence(event) {
            self.is_bad(&bad);
        }
    }

    fn deliver(&mut self, arrived: Arrived) {
        if !self.parked.deliver(arrived, &*self.members) {
            self.counters.dropped_full.add(1);
        }
    }

    /// Sends content to another node at once. If its broker server can't be reached, the other node does not wait for it.
    fn reply(&mut self, node: u32, content: Content<'_>, now: Instant, actions: &mut Vec<Action>) {
        let channel = Channel::Node(node);
        let at = server_of(&channel, &self.shared);
        let server = &mut self.servers[at];
        if server.incarnation.is_some() && server.unanswered.len() < UNANSWERED_REPLIES_MAX {
            server.sent(Published::Own, now);
            let envelope = content.encode().envelope(self.id, 0);
            let command = Command::Publish { channel, envelope };
            actions.push(Action::Command(at, command));
        }
    }

    fn heartbeat(
        &mut self,
        server: usize,
        (node, serial): (u32, u64),
        heartbeat: Heartbeat,
        now: Instant,
    ) {
        /// It repeats with each heartbeat.
        static SAME_ID: Limited = Limited::new();
        /// As long as the versions stay as they are.
        static VERSIONS: Limited = Limited::new();
        /// As long as there are so many nodes.
        static TOO_MANY: Limited = Limited::new();
        if node == self.id {
            match serial <= self.heartbeats {
                true => self.servers[server].echoed = now,
                false => limited!(
                    SAME_ID,
                    error,
                    "another node of the cluster has the same random number as this one: restart one of them"
                ),
            }
            return;
        }
        if heartbeat.is_last {
            self.forget(node);
            return;
        }
        let (min, max) = heartbeat.versions;
        if !(min..=max).contains(&wire::VERSION) {
            limited!(
                VERSIONS,
                error,
                "a node of the cluster can't read the messages of this one: it reads the versions {min} to {max}, and \
                 this node writes {}; upgrade one version at a time",
                wire::VERSION
            );
        }
        match self.peers.heard(node, now) {
            Heard::Known => {}
            Heard::New => {
                self.on_presence(NodeEvent::New(node));
                // Introduce this node, which the new one may not have heard.
                for server in &mut self.servers {
                    server.heartbeat_due = now;
                }
                self.count_nodes();
            }
            Heard::TooMany => limited!(
                TOO_MANY,
                warning,
                "a further node of the cluster is ignored, because there are {NODES_MAX}: this node can't reach its \
                 connections by their ids"
            ),
        }
    }

    fn count_nodes(&self) {
        self.queries.set_peers(self.peers.present());
        let nodes = self.peers.present().count() as u64 + 1;
        self.counters.nodes.store(nodes, Relaxed);
    }

    /// Judges the silence of the other nodes.
    fn judge_peers(&mut self, now: Instant) {
        // While a link is down or silent, nobody is judged: the silence may be ours.
        let may_be_ours = |server: &Server| {
            server.incarnation.is_none()
                || now.saturating_duration_since(server.echoed) >= OWN_SILENCE_MAX
        };
        if self.servers.iter().any(may_be_ours) {
            self.peers.excuse_silence(now);
            return;
        }
        let (gone, forgotten) = self.peers.judge(now);
        if !gone.is_empty() || self.counters.nodes.load(Relaxed) == 0 {
            self.count_nodes();
        }
        for node in gone {
            self.on_presence(NodeEvent::Gone(node));
        }
        for node in forgotten {
            self.forget(node);
        }
    }

    fn forget(&mut self, node: u32) {
        if !self.peers.forget(node) {
            return;
        }
        self.count_nodes();
        self.on_presence(NodeEvent::Gone(node));
        self.everyone.forget(node);
        self.direct.forget(node);
        for room in self.rooms.values_mut() {
            room.counts.forget(node);
        }
    }

    /// Moves queued messages to a server that can take some: at most this many bytes, or one message.
    pub(crate) fn send_queued(
        &mut self,
        at: usize,
        bytes: usize,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if !self.takes(at) || bytes == 0 {
            return;
        }
        let mut taken = std::mem::take(&mut self.taken);
        self.shared[at].outgoing.take(bytes, &mut taken);
        for queued in taken.drain(..) {
            let (published, command) = self.publish(at, queued, now);
            self.servers[at].sent(published, now);
            actions.push(Action::Command(at, command));
        }
        self.taken = taken;
    }

    fn publish(&mut self, at: usize, queued: Queued, now: Instant) -> (Published, Command) {
        let (encoded, append) = queued.content.encode();
        if !encoded.is_message() {
            let envelope = encoded.envelope(self.id, 0);
            let channel = queued.channel;
            return (Published::Own, Command::Publish { channel, envelope });
        }
        self.counters.published.add(1);
        match (queued.channel, append) {
            (Channel::Room(room), Some(request)) => {
                self.append(at, room, (&encoded, *request), queued.at)
            }
            (channel, _) => {
                let serial = self.next_serial(&channel, now);
                let envelope = encoded.envelope(self.id, serial);
                (Published::Message, Command::Publish { channel, envelope })
            }
        }
    }

    /// The serial of the next message to a channel; 0 if its messages are not counted.
    fn next_serial(&mut self, channel: &Channel, now: Instant) -> u64 {
        if *channel == Channel::Nodes {
            return 0;
        }
        self.sent.next(channel, now)
    }

    /// Tells the other nodes that this one stops. Messages that are still queued were sent before.
    pub(crate) fn stop(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.is_stopping, true) {
            return;
        }
        for at in 0..self.servers.len() {
            if self.servers[at].incarnation.is_some() {
                self.servers[at].sent(Published::Own, now);
                let command = self.heartbeat_command(true);
                actions.push(Action::Command(at, command));
            }
        }
    }

    /// Whether a server takes further messages.
    pub(crate) fn takes(&self, server: usize) -> bool {
        let server = &self.servers[server];
        server.incarnation.is_some()
            && server.unanswered.len() < UNANSWERED_MAX
            && server.appends.takes_more()
    }

    /// The number of unanswered messages, on all servers.
    pub(crate) fn unanswered(&self) -> usize {
        self.servers
            .iter()
            .map(|server| server.unanswered.len())
            .sum()
    }
}
