//! The presence of all rooms, and when something has to be told.

mod heard;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::announcements::Announcements;
use super::member::{ConnectionKey, Fact, Member};
use super::room::{COALESCE, Publishing, RETRY_AFTER, RoomPresence};
use super::update::{BadUpdate, Update};

/// How long the answers of other nodes take at most. Before, what a node knows may not be complete.
const ANSWERS_WAIT: Duration = Duration::from_millis(250);
/// How many rooms are told at once. Further ones follow after [`COALESCE`].
const FLUSHED_AT_ONCE: usize = 1_000;
/// When a node that has come back is asked for all its facts once more, in case the first question was lost.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A change of what a node hears.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NodeEvent<'a> {
    /// This node receives what others publish about a room from now on.
    Subscribed { room: &'a str },
    /// Another node tells something about a room.
    Update {
        room: &'a str,
        node: u32,
        /// It is not heard now. Its members would stay forever if what it has told before were believed.
        is_gone: bool,
        update: &'a [u8],
    },
    /// Another node asks for the facts about all rooms.
    AskedForAll,
    /// A node has stopped, or is silent.
    Gone(u32),
    /// A node is heard for the first time, or again.
    New(u32),
}

/// A [`NodeEvent`] whose bytes have been decoded.
pub(crate) struct HeardEvent<'a>(Heard<'a>);

enum Heard<'a> {
    Subscribed(&'a str),
    Update(&'a str, u32, Update),
    AskedForAll,
    Gone(u32),
    New(u32),
}

impl<'a> NodeEvent<'a> {
    /// Decodes the update, which takes a while. Returns `None` if there is nothing to handle.
    pub(crate) fn decode(self) -> Result<Option<HeardEvent<'a>>, BadUpdate> {
        let heard = match self {
            Self::Subscribed { room } => Heard::Subscribed(room),
            Self::Update {
                room,
                node,
                is_gone,
                update,
            } => {
                let update = Update::decode(update)?;
                if is_gone && !matches!(update, Update::Ask { .. }) {
                    return Ok(None);
                }
                Heard::Update(room, node, update)
            }
            Self::AskedForAll => Heard::AskedForAll,
            Self::Gone(node) => Heard::Gone(node),
            Self::New(node) => Heard::New(node),
        };
        Ok(Some(HeardEvent(heard)))
    }
}

/// What has to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flush {
    pub(crate) rooms: Vec<RoomFlush>,
    /// The nodes to ask for the facts about all rooms.
    pub(crate) nodes_to_ask: Vec<u32>,
    /// When to tell what else is due, so that the queue to the broker takes it.
    pub(crate) goes_on_at: Option<Instant>,
}

/// What has to be told about a room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RoomFlush {
    pub(crate) room: Arc<str>,
    /// Messages for the other nodes, in this order.
    pub(crate) updates: Vec<Vec<u8>>,
    /// What has changed, for the clients that watch the room: `None` for members that have left.
    pub(crate) changes: Vec<(Member, Option<Fact>)>,
}

/// A change of a member of this node, for the program's room handler.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announced<C> {
    pub(crate) room: Arc<str>,
    /// A connection that has joined, or the one that has left last.
    pub(crate) connection: C,
    pub(crate) has_joined: bool,
}

/// The presence of all rooms of a node. `C` is a connection.
pub(crate) struct PresenceTable<C> {
    rooms: HashMap<Arc<str>, RoomPresence<C>>,
    /// The rooms about which something has to be told, by time.
    due: BTreeSet<(Instant, Arc<str>)>,
    /// When members have left if they don't come back.
    leaving: BTreeSet<(Instant, Arc<str>, Member)>,
    announcements: Announcements,
    /// Whether there is a room handler.
    announces: bool,
    /// The number of this node; `None` if the app is alone.
    node: Option<u32>,
    /// The other nodes that are heard.
    nodes: HashSet<u32>,
    /// The rooms that other nodes have told something about.
    rooms_of_nodes: HashMap<u32, HashSet<Arc<str>>>,
    /// The nodes to ask for the facts about all rooms, when, and whether it is for the first time.
    nodes_to_ask: BTreeMap<u32, (Instant, bool)>,
    version: u64,
    /// When the last state was set.
    set_at: u64,
    remote_bytes: usize,
    /// Connections that are no longer needed. Dropping them runs code of the program, which must not be done here.
    dropped: Vec<C>,
}

/// Changes of this node's members.
impl<C: Clone> PresenceTable<C> {
    /// Creates the table of a node of a cluster, or of an app that is alone. `announces`: the room handler is told of changes.
    pub(crate) fn new(announces: bool, node: Option<u32>) -> Self {
        Self {
            rooms: HashMap::new(),
            due: BTreeSet::new(),
            leaving: BTreeSet::new(),
            announcements: Announcements::default(),
            announces,
            node,
            nodes: HashSet::new(),
            rooms_of_nodes: HashMap::new(),
            nodes_to_ask: BTreeMap::new(),
            version: 0,
            set_at: 0,
            remote_bytes: 0,
            dropped: Vec::new(),
        }
    }

    /// Takes the connections that are no longer needed.
    pub(crate) fn take_dropped(&mut self) -> Vec<C> {
        std::mem::take(&mut self.dropped)
    }

    pub(crate) fn has_dropped(&self) -> bool {
        !self.dropped.is_empty()
    }

    /// Records that a connection of this node is in a room. Does nothing if that is known.
    pub(crate) fn joined(
        &mut self,
        name: &Arc<str>,
        member: &Member,
        key: ConnectionKey,
        connection: &C,
        now: Instant,
    ) {
        let room = self.rooms.entry(name.clone()).or_default();
        let local = room.local.entry(member.clone()).or_default();
        if local.connections.contains(&key) {
            return;
        }
        local.connections.insert(key, connection.clone());
        if let Some((at, last)) = local.leaving.take() {
            self.dropped.push(last);
            self.leaving.remove(&(at, name.clone(), member.clone()));
        }
        room.adopt_state(member);
        self.changed_here(name, member, now);
    }

    /// Records that a connection of this node has left a room. A member without a connection has left after the grace period,
    /// unless one joins before. Does nothing if the connection was not in the room.
    pub(crate) fn left(
        &mut self,
        name: &Arc<str>,
        member: &Member,
        key: &ConnectionKey,
        grace: Duration,
        now: Instant,
    ) {
        let room = self.rooms.get_mut(name);
        let Some(local) = room.and_then(|room| room.local.get_mut(member)) else {
            return;
        };
        let Some(connection) = local.connections.remove(key) else {
            return;
        };
        match local.connections.is_empty() {
            true => {
                let at = now + grace;
                local.leaving = Some((at, connection));
                self.leaving.insert((at, name.clone(), member.clone()));
            }
            false => self.dropped.push(connection),
        }
        self.changed_here(name, member, now);
    }

    /// Sets the state of a member of this node. Returns false if the member is not in the room. `time` is in microseconds since
    /// 1970.
    pub(crate) fn set_state(
        &mut self,
        name: &Arc<str>,
        member: &Member,
        state: Bytes,
        time: u64,
        now: Instant,
    ) -> bool {
        let room = self.rooms.get_mut(name);
        let Some(local) = room.and_then(|room| room.local.get_mut(member)) else {
            return false;
        };
        if local.state == state && (local.set_at > 0 || state.is_empty()) {
            return true;
        }
        // Later than the last one of this member, whatever the clocks of the nodes say.
        let last = self.set_at.max(local.set_at);
        self.set_at = time.max(last.saturating_add(1));
        local.set_at = self.set_at;
        local.state = state;
        self.changed_here(name, member, now);
        true
    }

    fn changed_here(&mut self, name: &Arc<str>, member: &Member, now: Instant) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        room.changed_here(member);
        if self.announces {
            let is_here = room.local.contains_key(member);
            if is_here {
                self.dropped.extend(room.departed.remove(member));
            }
            match is_here == room.announced.contains(member) {
                true => self.announcements.remove(name, member),
                false => self.announcements.insert(name, member),
            }
        }
        schedule(&mut self.due, name, room, now);
    }

    /// Removes the members that have not come back.
    fn remove_left(&mut self, now: Instant) {
        while self.leaving.first().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, name, member)) = self.leaving.pop_first()
        {
            self.remove(&name, &member, now);
        }
    }

    fn remove(&mut self, name: &Arc<str>, member: &Member, now: Instant) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        let Some(mut local) = room.local.remove(member) else {
            return;
        };
        let mut connections = local.connections.take();
        if let Some((at, last)) = local.leaving {
            self.leaving.remove(&(at, name.clone(), member.clone()));
            connections.push(last);
        }
        if room.announced.contains(member)
            && let Some(last) = connections.pop()
        {
            self.dropped
                .extend(room.departed.insert(member.clone(), last));
        }
        self.dropped.extend(connections);
        self.changed_here(name, member, now);
    }

    /// Removes all members of this node.
    pub(crate) fn remove_all(&mut self, now: Instant) {
        let members = self.rooms.iter().flat_map(|(name, room)| {
            let members = room.local.keys();
            members.map(move |member| (name.clone(), member.clone()))
        });
        for (name, member) in members.collect::<Vec<_>>() {
            self.remove(&name, &member, now);
        }
    }

    /// Returns the next change for the room handler.
    pub(crate) fn next_announced(&mut self) -> Option<Announced<C>> {
        while let Some((name, member)) = self.announcements.pop() {
            let Some(room) = self.rooms.get_mut(&name) else {
                continue;
            };
            let announced = match room.local.get(&member) {
                Some(local) => {
                    let last = local.leaving.as_ref().map(|(_, last)| last);
                    let connection = local.connections.any().or(last).cloned();
                    room.announced.insert(member);
                    connection.map(|connection| (connection, true))
                }
                None => {
                    room.announced.remove(&member);
                    let connection = room.departed.remove(&member);
                    connection.map(|connection| (connection, false))
                }
            };
            self.remove_unused(&name);
            if let Some((connection, has_joined)) = announced {
                return Some(Announced {
                    room: name,
                    connection,
                    has_joined,
                });
            }
        }
        None
    }

    pub(crate) fn has_announced(&self) -> bool {
        !self.announcements.is_empty()
    }
}

/// Rooms, and what is known about them.
impl<C: Clone> PresenceTable<C> {
    /// Records that this node needs a room from now on.
    pub(crate) fn needed(&mut self, name: &Arc<str>) {
        self.rooms.entry(name.clone()).or_default().is_needed = true;
    }

    /// Records that this node no longer needs a room.
    pub(crate) fn unneeded(&mut self, name: &str) {
        let Some((name, _)) = self.rooms.get_key_value(name) else {
            return;
        };
        let name = name.clone();
        let Some(room) = self.rooms.get_mut(&name) else {
            return;
        };
        room.is_needed = false;
        room.end_watching();
        room.forget_answers();
        for node in room.remote.keys().copied().collect::<Vec<_>>() {
            self.forget_facts(&name, node);
        }
        self.remove_unused(&name);
    }

    fn remove_unused(&mut self, name: &Arc<str>) {
        if let Some(room) = self.rooms.get(name)
            && room.is_unused()
        {
            if let Some(at) = room.due {
                self.due.remove(&(at, name.clone()));
            }
            self.rooms.remove(name);
        }
    }

    /// The number of rooms in the table.
    #[cfg(all(test, feature = "cluster"))]
    pub(super) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Begins to report the changes of a room for clients, if this node needs it.
    pub(crate) fn watch(&mut self, name: &str) -> bool {
        match self.rooms.get_mut(name).filter(|room| room.is_needed) {
            Some(room) => {
                room.is_watched = true;
                true
            }
            None => false,
        }
    }

    /// Nobody watches the room any longer.
    pub(crate) fn unwatch(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name) {
            room.end_watching();
        }
    }

    /// Records that clients could not be told these changes, which are told later.
    pub(crate) fn not_told(
        &mut self,
        name: &Arc<str>,
        members: impl Iterator<Item = Member>,
        now: Instant,
    ) {
        if let Some(room) = self.rooms.get_mut(name) {
            members.for_each(|member| room.changed_elsewhere(member));
            schedule(&mut self.due, name, room, now);
        }
    }

    /// Returns the members of a room in no particular order, as far as this node knows them.
    pub(crate) fn members(&self, name: &str) -> HashMap<Member, Fact> {
        let room = self.rooms.get(name);
        room.map_or_else(HashMap::new, RoomPresence::members)
    }

    /// Returns when the answers of the other nodes have had the time to arrive; `None` if they were not asked yet.
    pub(crate) fn answered_at(&self, name: &str) -> Option<Instant> {
        let room = self.rooms.get(name)?;
        let asked = room.asked()?;
        Some(match self.nodes.is_subset(&room.answered) {
            true => asked,
            false => asked + ANSWERS_WAIT,
        })
    }

    /// Whether this node knows what the other nodes have answered.
    pub(crate) fn is_answered(&self, name: &str, now: Instant) -> bool {
        let is_refused = |room: &RoomPresence<C>| room.remote.values().any(|node| node.is_refused);
        self.node.is_none()
            || self.answered_at(name).is_some_and(|at| at <= now)
                && !self.rooms.get(name).is_some_and(is_refused)
    }
}

/// Telling others.
impl<C: Clone> PresenceTable<C> {
    /// When [`flush`](Self::flush) has something to do.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let leaving = self.leaving.first().map(|(at, ..)| *at);
        let nodes = self.nodes_to_ask.values().map(|&(at, _)| at).min();
        [due, leaving, nodes].into_iter().flatten().min()
    }

    /// Returns what has to be told by now, about some rooms if there are many. `reaches` returns whether the other nodes can be told
    /// about a room, in messages with at most `bytes_max` bytes of facts.
    pub(crate) fn flush(
        &mut self,
        now: Instant,
        bytes_max: usize,
        reaches: impl Fn(&Arc<str>) -> bool,
    ) -> Flush {
        self.remove_left(now);
        let mut flush = Flush {
            rooms: Vec::new(),
            nodes_to_ask: self.take_nodes_to_ask(now),
            goes_on_at: None,
        };
        while self.due.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, name)) = self.due.pop_first()
        {
            let reaches = self.node.is_some() && reaches(&name);
            self.flush_room(&name, (now, bytes_max, reaches), &mut flush.rooms);
            self.remove_unused(&name);
            if flush.rooms.len() >= FLUSHED_AT_ONCE {
                flush.goes_on_at = Some(now + COALESCE);
                break;
            }
        }
        flush
    }

    fn take_nodes_to_ask(&mut self, now: Instant) -> Vec<u32> {
        let due = self.nodes_to_ask.iter().filter(|(_, (at, _))| *at <= now);
        let due: Vec<_> = due
            .map(|(&node, &(_, is_first))| (node, is_first))
            .collect();
        for &(node, is_first) in &due {
            match is_first {
                true => self
                    .nodes_to_ask
                    .insert(node, (now + ASKED_AGAIN_AFTER, false)),
                false => self.nodes_to_ask.remove(&node),
            };
        }
        due.into_iter().map(|(node, _)| node).collect()
    }

    fn flush_room(
        &mut self,
        name: &Arc<str>,
        (now, bytes_max, reaches): (Instant, usize, bool),
        flushes: &mut Vec<RoomFlush>,
    ) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        room.due = None;
        let unconfirmed = match reaches {
            true => room.take_unconfirmed(now),
            false => {
                // The next subscription asks again.
                room.postpone_confirmation();
                HashSet::new()
            }
        };
        for node in unconfirmed {
            self.forget_facts(name, node);
        }
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        let changes = room.changes(now);
        let updates = match self.node {
            None => {
                room.publish_nothing();
                Vec::new()
            }
            Some(_) if !reaches => Vec::new(),
            Some(_) => {
                let version = &mut self.version;
                room.updates(now, Publishing { version, bytes_max })
            }
        };
        // What can't be told is tried again later.
        let earliest = match self.node.is_some() && !reaches {
            true => now + RETRY_AFTER,
            false => now,
        };
        if let Some(at) = room.next_due(now) {
            schedule_at(&mut self.due, name, room, at.max(earliest));
        }
        if !updates.is_empty() || !changes.is_empty() {
            flushes.push(RoomFlush {
                room: name.clone(),
                updates,
                changes,
            });
        }
    }

    /// Records that the other nodes could not be told about a room.
    pub(crate) fn not_published(&mut self, name: &Arc<str>, now: Instant) {
        let room = self.rooms.entry(name.clone()).or_default();
        room.not_published();
        schedule_at(&mut self.due, name, room, now + RETRY_AFTER);
    }
}

type Due = BTreeSet<(Instant, Arc<str>)>;

/// Notes when a room has something to tell.
fn schedule<C>(due: &mut Due, name: &Arc<str>, room: &mut RoomPresence<C>, now: Instant) {
    if let Some(at) = room.next_due(now) {
        schedule_at(due, name, room, at);
    }
}

/// Notes that a room is due at this time, or before.
fn schedule_at<C>(due: &mut Due, name: &Arc<str>, room: &mut RoomPresence<C>, at: Instant) {
    if let Some(before) = room.due {
        if before <= at {
            return;
        }
        due.remove(&(before, name.clone()));
    }
    room.due = Some(at);
    due.insert((at, name.clone()));
}
