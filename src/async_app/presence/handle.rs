//! The presence of the app's rooms, as its threads share it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::settings::{GRACE_MIN, PresencePatterns, PresenceRooms};
use crate::async_app::connection_id::NodeId;
#[cfg(feature = "cluster")]
use crate::cork;
use crate::engine::{LocalId, Session, SharedRoom, Status};
use crate::presence::{Announced, ConnectionKey, Fact, Flush, Member, PresenceTable};
#[cfg(feature = "cluster")]
use crate::presence::{BadUpdate, NodeEvent};
use crate::sync::{ignore_poison, lock};

/// A connection in the table.
#[derive(Clone)]
pub(in crate::async_app) struct PresentConnection(pub(in crate::async_app) Arc<Session>);

/// The most bytes of facts in one message to other nodes.
const UPDATE_BYTES_MAX: usize = 32 << 10;

/// How often the thread looks whether the engine has ended, once it stops.
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// The presence of all rooms.
///
/// Locks are taken in this order: the name of a room, the table; and `watchers`, the table. Nobody waits or runs code of
/// the program with one of them, since shards and the link take them, too.
pub(in crate::async_app) struct PresenceHandle {
    patterns: PresencePatterns,
    node: NodeId,
    state: Mutex<State>,
    /// Something has to be told before the time that the thread waits for, or the app stops.
    due: Condvar,
    /// The room handler has to be told something, or the app stops.
    announced: Condvar,
    /// Other nodes were asked, or have answered.
    answered: Condvar,
    pub(super) watchers: Mutex<Watchers>,
}

struct State {
    table: PresenceTable<PresentConnection>,
    /// The rooms of event streams that count as members.
    streams: HashMap<LocalId, Vec<Arc<str>>>,
    /// The engine stops, and then the threads.
    is_engine_stopping: bool,
    is_stopping: bool,
}

/// Why a state was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotSet {
    NoPresence,
    TooLong,
    NotJoined,
}

impl PresenceHandle {
    /// `announces`: there is a room handler. `node`: the number of this node, if the app is one of a cluster.
    pub(in crate::async_app) fn new(
        patterns: PresencePatterns,
        announces: bool,
        node: Option<NodeId>,
    ) -> Self {
        Self {
            patterns,
            node: node.unwrap_or(NodeId::NONE),
            state: Mutex::new(State {
                table: PresenceTable::new(announces, node.map(NodeId::as_number)),
                streams: HashMap::new(),
                is_engine_stopping: false,
                is_stopping: false,
            }),
            due: Condvar::new(),
            announced: Condvar::new(),
            answered: Condvar::new(),
            watchers: Mutex::default(),
        }
    }

    pub(in crate::async_app) fn covers(&self, room: &str) -> bool {
        self.patterns.find(room).is_some()
    }

    fn key(&self, id: LocalId) -> ConnectionKey {
        ConnectionKey {
            node: self.node.as_number(),
            shard: id.shard,
            slot: id.key().slot,
            generation: id.key().generation,
        }
    }

    fn member(&self, session: &Session) -> Member {
        match session.user() {
            Some(user) => Member::User(user.into()),
            None => Member::Connection(self.key(session.id)),
        }
    }

    /// Changes the table, and wakes the threads that have to know.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let before = state.table.next_due();
        let result = change(&mut state);
        let due = state.table.next_due();
        let is_earlier = due.is_some_and(|due| before.is_none_or(|before| due < before));
        let has_dropped = state.table.has_dropped();
        let has_announced = state.table.has_announced();
        drop(state);
        if is_earlier || has_dropped {
            self.due.notify_one();
        }
        if has_announced {
            self.announced.notify_one();
        }
        result
    }

    pub(in crate::async_app) fn needed(&self, room: &Arc<str>) {
        if self.covers(room) {
            self.change(|state| state.table.needed(room));
        }
    }

    pub(in crate::async_app) fn unneeded(&self, room: &str) {
        if self.covers(room) {
            self.change(|state| state.table.unneeded(room));
        }
    }

    /// Records whether a connection is in a room, after it has joined or left. `members` is the room as it is now, if it exists.
    pub(super) fn membership_changed(
        &self,
        name: &Arc<str>,
        members: Option<&SharedRoom>,
        session: &Arc<Session>,
    ) {
        let Some(settings) = self.patterns.find(name) else {
            return;
        };
        let (member, key) = (self.member(session), self.key(session.id));
        self.change(|state| {
            let (table, now) = (&mut state.table, Instant::now());
            // The connection may have left again, or have joined again.
            match members.is_some_and(|members| members.contains(session.id)) {
                true => table.joined(name, &member, key, &PresentConnection(session.clone()), now),
                false => table.left(name, &member, &key, grace_of(&member, settings), now),
            }
        });
    }

    /// Records that a connection that has ended has left a room. Never waits.
    pub(in crate::async_app) fn ended_in(&self, room: &SharedRoom, session: &Session) {
        let Some(settings) = self.patterns.find(&room.name) else {
            return;
        };
        let (member, key) = (self.member(session), self.key(session.id));
        self.change(|state| {
            let grace = grace_of(&member, settings);
            let now = Instant::now();
            state.table.left(&room.name, &member, &key, grace, now);
        });
    }

    /// Counts an event stream as a member of rooms, if they want it.
    pub(in crate::async_app) fn stream_began<'a>(
        &self,
        session: &Arc<Session>,
        rooms: impl Iterator<Item = &'a Arc<str>>,
    ) {
        let counts = |room: &&Arc<str>| {
            let settings = self.patterns.find(room);
            settings.is_some_and(|settings| settings.event_streams)
        };
        let rooms: Vec<_> = rooms.filter(counts).cloned().collect();
        if rooms.is_empty() {
            return;
        }
        let (member, key) = (self.member(session), self.key(session.id));
        self.change(|state| {
            // Otherwise its end may have been handled.
            if session.status() == Status::Closed {
                return;
            }
            let (now, connection) = (Instant::now(), PresentConnection(session.clone()));
            for room in &rooms {
                state.table.joined(room, &member, key, &connection, now);
            }
            state.streams.insert(session.id, rooms);
        });
    }

    /// Handles the end of an event stream. Never waits.
    pub(in crate::async_app) fn stream_ended(&self, session: &Session) {
        if !self.patterns.count_event_streams() {
            return;
        }
        let (member, key) = (self.member(session), self.key(session.id));
        self.change(|state| {
            let now = Instant::now();
            for room in state.streams.remove(&session.id).into_iter().flatten() {
                if let Some(settings) = self.patterns.find(&room) {
                    let grace = grace_of(&member, settings);
                    state.table.left(&room, &member, &key, grace, now);
                }
            }
        });
    }

    /// Sets the state of a connection's user, or of the connection.
    pub(super) fn set_state(
        &self,
        name: &str,
        members: Option<&SharedRoom>,
        session: &Arc<Session>,
        state: Bytes,
    ) -> Result<(), NotSet> {
        let settings = self.patterns.find(name).ok_or(NotSet::NoPresence)?;
        if state.len() > settings.state_bytes_max {
            return Err(NotSet::TooLong);
        }
        let members = members.ok_or(NotSet::NotJoined)?;
        let (member, key) = (self.member(session), self.key(session.id));
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.map_or(0, |time| time.as_micros() as u64);
        self.change(|shared| {
            if !members.contains(session.id) {
                return Err(NotSet::NotJoined);
            }
            let (now, connection) = (Instant::now(), PresentConnection(session.clone()));
            // Another thread may have joined the room for the connection, and not have recorded it yet.
            let table = &mut shared.table;
            table.joined(&members.name, &member, key, &connection, now);
            table.set_state(&members.name, &member, state, time, now);
            Ok(())
        })
    }

    /// Begins to report the changes of a room. Returns its members in their order, or `None` if this node does not need the room.
    pub(super) fn watch(&self, room: &str) -> Option<Vec<(Member, Fact)>> {
        let members = self.change(|state| {
            let table = &mut state.table;
            table.watch(room).then(|| table.members(room))
        });
        members.map(sorted)
    }

    pub(super) fn unwatch(&self, room: &str) {
        self.change(|state| state.table.unwatch(room));
    }

    /// Records that clients could not be told these changes.
    pub(super) fn not_told(&self, room: &Arc<str>, changes: Vec<(Member, Option<Fact>)>) {
        let members = changes.into_iter().map(|(member, _)| member);
        self.change(|state| state.table.not_told(room, members, Instant::now()));
    }

    /// Returns the members of a room in their order, as far as this node knows them, and whether it knows what the other nodes have
    /// answered.
    pub(super) fn members(&self, room: &str) -> (Vec<(Member, Fact)>, bool) {
        let state = lock(&self.state);
        let members = state.table.members(room);
        let is_answered = state.table.is_answered(room, Instant::now());
        drop(state);
        (sorted(members), is_answered)
    }

    /// Waits until the other nodes have answered, or have had the time to, but not longer than this.
    #[cfg(feature = "cluster")]
    pub(super) fn wait_for_answers(&self, room: &str, until: Instant) {
        cork::before_waiting();
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let answered = state.table.answered_at(room);
            if state.is_stopping || now >= until || answered.is_some_and(|at| at <= now) {
                return;
            }
            let wake = answered.map_or(until, |at| at.min(until));
            let left = wake.saturating_duration_since(now);
            state = ignore_poison(self.answered.wait_timeout(state, left)).0;
        }
    }

    /// Handles what this node hears of others. Never waits.
    #[cfg(feature = "cluster")]
    pub(in crate::async_app) fn on_node_event(
        &self,
        event: NodeEvent<'_>,
    ) -> Result<(), BadUpdate> {
        let Some(heard) = event.decode()? else {
            return Ok(());
        };
        let outcome = self.change(|state| state.table.on_heard(heard, Instant::now()));
        self.answered.notify_all();
        outcome
    }

    pub(super) fn not_published(&self, room: &Arc<str>) {
        self.change(|state| state.table.not_published(room, Instant::now()));
    }

    /// Waits until something has to be told, but at least until this time. Returns false once the app stops. Passes connections that
    /// are no longer needed to `release` meanwhile.
    pub(super) fn wait_until_due(
        &self,
        not_before: Option<Instant>,
        release: impl Fn(PresentConnection),
        has_engine_ended: impl Fn() -> bool,
    ) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.table.has_dropped() {
                let dropped = state.table.take_dropped();
                drop(state);
                dropped.into_iter().for_each(&release);
                state = lock(&self.state);
                continue;
            }
            if state.is_stopping {
                return false;
            }
            if state.is_engine_stopping && has_engine_ended() {
                drop(state);
                self.stop();
                return false;
            }
            let now = Instant::now();
            let due = state.table.next_due();
            let due = due.map(|due| not_before.map_or(due, |earliest| due.max(earliest)));
            if due.is_some_and(|due| due <= now) {
                return true;
            }
            let looks = state.is_engine_stopping.then(|| now + LOOKS_EVERY);
            state = match due.into_iter().chain(looks).min() {
                Some(until) => ignore_poison(self.due.wait_timeout(state, until - now)).0,
                None => ignore_poison(self.due.wait(state)),
            };
        }
    }

    /// Returns what has to be told now. `bytes_max`: the longest message to other nodes.
    pub(super) fn flush(&self, bytes_max: usize, reaches: impl Fn(&Arc<str>) -> bool) -> Flush {
        // An entry may exceed it by one state.
        let bytes_max = UPDATE_BYTES_MAX.min(bytes_max / 2);
        let flush = self.change(|state| state.table.flush(Instant::now(), bytes_max, reaches));
        self.answered.notify_all();
        flush
    }

    /// Waits for the next change for the room handler. `None` once the app has stopped, and all changes were returned.
    pub(super) fn wait_for_announced(&self) -> Option<Announced<PresentConnection>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(announced) = state.table.next_announced() {
                return Some(announced);
            }
            if state.is_stopping {
                return None;
            }
            state = ignore_poison(self.announced.wait(state));
        }
    }

    /// Notes that the engine stops. Once it has ended, the threads end by themselves.
    pub(in crate::async_app) fn engine_stops(&self) {
        lock(&self.state).is_engine_stopping = true;
        self.due.notify_one();
    }

    /// Ends the threads. All members have left.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.state);
        state.table.remove_all(Instant::now());
        state.is_stopping = true;
        drop(state);
        self.due.notify_all();
        self.announced.notify_all();
        self.answered.notify_all();
    }
}

fn grace_of(member: &Member, settings: &PresenceRooms) -> Duration {
    match member {
        Member::User(_) => settings.grace,
        // It can't come back.
        Member::Connection(_) => GRACE_MIN,
    }
}

fn sorted(members: HashMap<Member, Fact>) -> Vec<(Member, Fact)> {
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    members
}

/// The connections that are told the changes of rooms.
#[derive(Default)]
pub(super) struct Watchers {
    /// For each room with watchers, these as a room of their own.
    rooms: HashMap<Arc<str>, Arc<SharedRoom>>,
    /// Those that have left a room while their mailbox was full, so that they are told of it still.
    pub(super) leaving: HashMap<(Arc<str>, LocalId), Arc<Session>>,
}

/// Rooms whose watchers have gone are looked for whenever there are twice as many as before, and at least so many.
const SWEEP_AT_MIN: usize = 64;

impl Watchers {
    /// The watchers of a room, if it has any.
    pub(super) fn of(&mut self, room: &str) -> Option<Arc<SharedRoom>> {
        let of_room = self.rooms.get(room)?;
        if of_room.is_retired() {
            self.rooms.remove(room);
            return None;
        }
        Some(of_room.clone())
    }

    /// The watchers of a room, made by `make` if it has none.
    pub(super) fn of_or_make(
        &mut self,
        room: &Arc<str>,
        make: impl FnOnce() -> Arc<SharedRoom>,
    ) -> Arc<SharedRoom> {
        if let Some(of_room) = self.of(room) {
            return of_room;
        }
        if self.rooms.len() >= SWEEP_AT_MIN && self.rooms.len() == self.rooms.capacity() {
            self.rooms.retain(|_, of_room| !of_room.is_retired());
        }
        let made = make();
        self.rooms.insert(room.clone(), made.clone());
        made
    }
}
