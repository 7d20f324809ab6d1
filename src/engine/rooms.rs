//! Rooms: sets of connections. The engine knows them by number.
//!
//! Who is in a room is kept twice. A [`Room`] answers any thread at once; the shards of its members each have a list of
//! their own ([`LocalRooms`]), which follows through the mailbox. So joining, leaving and what is sent keep their order
//! at each connection, and what any thread reads is what it has done.

use std::collections::HashMap;
use std::ops::Index;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use bytes::Bytes;

use super::core::{Core, Role};
use super::events::{Session, Status};
use super::form::Form;
use super::hub::{Hub, Mail, Word};
use super::id::{ConnectionId, Key};
use super::mailbox::{Mailbox, Wake, Weigh, When};
use super::members::Members;
use super::memberships::{Membership, Memberships};
use super::pool::{self, Event};
use crate::transport::Transport;

/// A room, as any thread knows it.
pub(crate) struct Room {
    number: u64,
    /// What it is called above the engine.
    pub(crate) name: Arc<str>,
    /// How many are in it; `RETIRED` when it is no more.
    len: AtomicU32,
    /// How many of them get its messages with their ids; `NOTHING_KEPT` if it keeps none, and goes when it is empty.
    numbered: AtomicU32,
    shards: Shards,
    /// The event streams that follow it: a room of their own, since what they are sent has another form.
    streams: OnceLock<Arc<Room>>,
    /// Of such a room, the one that it follows, which counts its members, too.
    followed: Weak<Room>,
    /// Whoever gives rooms up has it in a queue.
    queued: AtomicBool,
}

const RETIRED: u32 = u32::MAX;
const NOTHING_KEPT: u32 = u32::MAX;

/// What there is of a room on each shard, by the shard's index. The first takes no memory of its own: rooms are many, and
/// small.
struct Shards {
    first: OnShard,
    others: Box<[OnShard]>,
}

impl Shards {
    fn new(count: usize) -> Self {
        Self {
            first: OnShard::default(),
            others: (1..count).map(|_| OnShard::default()).collect(),
        }
    }

    fn len(&self) -> usize {
        1 + self.others.len()
    }

    fn get(&self, shard: usize) -> Option<&OnShard> {
        match shard.checked_sub(1) {
            None => Some(&self.first),
            Some(at) => self.others.get(at),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &OnShard> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Index<usize> for Shards {
    type Output = OnShard;

    fn index(&self, shard: usize) -> &OnShard {
        match shard.checked_sub(1) {
            None => &self.first,
            Some(at) => &self.others[at],
        }
    }
}

#[derive(Default)]
struct OnShard {
    members: Mutex<Members<Key>>,
    /// Members that the shard knows of, or will learn of. Without any, nothing that is sent to the room goes there.
    reached: AtomicUsize,
}

/// How somebody's being in a room has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// The connection is in the room now.
    Joined,
    /// The connection is in the room no longer: it has left, or has ended.
    Left,
}

/// Why a connection did not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// It has gone, or the engine has stopped.
    Closed,
    /// It is in as many rooms as it may be.
    TooMany,
    /// The room is no more: another of the same name may take its place.
    Retired,
    /// What was reserved is less than the replay.
    Full,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Room {
    pub(super) fn new(number: u64, name: Arc<str>, permanent: bool, shards: usize) -> Self {
        Self {
            number,
            name,
            len: AtomicU32::new(0),
            numbered: AtomicU32::new(if permanent { 0 } else { NOTHING_KEPT }),
            shards: Shards::new(shards),
            streams: OnceLock::new(),
            followed: Weak::new(),
            queued: AtomicBool::new(false),
        }
    }

    /// The room of the event streams that follow it.
    pub(super) fn room_of_streams(self: &Arc<Self>, hub: &Hub) -> &Arc<Room> {
        self.streams.get_or_init(|| {
            let number = hub.next_room_number();
            let mut streams = Self::new(number, self.name.clone(), true, self.shards.len());
            streams.followed = Arc::downgrade(self);
            Arc::new(streams)
        })
    }

    /// How many there are of them.
    pub(crate) fn streams_len(&self) -> usize {
        self.streams.get().map_or(0, |streams| streams.len())
    }

    /// The same, if there are any.
    pub(crate) fn streams(&self) -> Option<&Arc<Room>> {
        self.streams.get().filter(|streams| streams.len() > 0)
    }

    /// The number of those who get its messages as they are.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The number of those who get its messages with their ids, in a form of their own.
    pub(super) fn number_of_numbered(&self) -> u64 {
        self.number + 1
    }

    /// Among whom somebody is.
    fn number_for(&self, session: &Session) -> u64 {
        match self.numbers(session) {
            true => self.number_of_numbered(),
            false => self.number,
        }
    }

    /// Whether it sends its messages with their ids to that session.
    fn numbers(&self, session: &Session) -> bool {
        self.stays() && session.is_numbered()
    }

    /// Whether it stays when nobody is in it.
    fn stays(&self) -> bool {
        self.numbered.load(Relaxed) != NOTHING_KEPT
    }

    /// Whether anybody gets its messages with their ids. Who holds the lock of its history knows that it stays so.
    pub(crate) fn has_numbered(&self) -> bool {
        !matches!(self.numbered.load(SeqCst), 0 | NOTHING_KEPT)
    }

    pub(crate) fn len(&self) -> usize {
        match self.len.load(SeqCst) {
            RETIRED => 0,
            // Counted out of the one before the other, so it may be one too few for a moment.
            len => (len as usize).saturating_sub(self.streams_len()),
        }
    }

    pub(crate) fn contains(&self, id: ConnectionId) -> bool {
        self.shards
            .get(usize::from(id.shard))
            .is_some_and(|on| lock(&on.members).contains(id.key()))
    }

    pub(crate) fn members(&self) -> Vec<ConnectionId> {
        (0..)
            .zip(self.shards.iter())
            .flat_map(|(shard, on)| {
                let keys: Vec<Key> = lock(&on.members).iter().collect();
                keys.into_iter().map(move |key| ConnectionId { shard, key })
            })
            .collect()
    }

    pub(super) fn reaches(&self, shard: usize) -> bool {
        self.shards[shard].reached.load(SeqCst) > 0
    }

    /// Nothing more will come to the shard for one of its members.
    pub(super) fn unreach(&self, shard: u16) {
        self.shards[usize::from(shard)].reached.fetch_sub(1, SeqCst);
    }

    /// Counts somebody in, unless the room is no more.
    pub(super) fn enter(&self) -> bool {
        let count = |len| (len != RETIRED).then(|| len + 1);
        self.len.fetch_update(SeqCst, SeqCst, count).is_ok()
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.len.load(SeqCst) == RETIRED
    }

    /// Counts somebody out. Returns whether the room is empty now: then it is no more, unless it stays.
    fn exit(&self) -> bool {
        self.len.fetch_sub(1, SeqCst) == 1 && (self.stays() || self.retire())
    }

    /// Marks it as being in the queue of rooms to be given up. Returns whether it was not.
    pub(crate) fn enqueue(&self) -> bool {
        !self.queued.swap(true, SeqCst)
    }

    /// It is in that queue no longer. Whoever empties it from here on enqueues it again.
    pub(crate) fn dequeue(&self) {
        self.queued.store(false, SeqCst);
    }

    /// Counts an event stream in, unless the room is no more. Returns the room of its event streams, which is to be parted
    /// from: by whoever has called this, or when the stream ends that has begun with it.
    pub(crate) fn follow(self: &Arc<Self>, hub: &Hub) -> Option<Arc<Room>> {
        let streams = self.room_of_streams(hub);
        streams.enter();
        if self.enter() {
            return Some(streams.clone());
        }
        streams.exit();
        None
    }

    /// Whether nobody is in it and nobody follows it.
    pub(crate) fn is_deserted(&self) -> bool {
        self.len.load(SeqCst) == 0
    }

    /// Counts somebody out. Returns the room that is empty now: of one of event streams, the one that it follows.
    pub(crate) fn part(self: &Arc<Self>) -> Option<Arc<Room>> {
        let is_empty = self.exit();
        match self.followed.upgrade() {
            Some(followed) => followed.exit().then_some(followed),
            None => is_empty.then(|| self.clone()),
        }
    }

    /// Ends the room if it is empty and need not stay. Nobody can join it after.
    pub(crate) fn retire(&self) -> bool {
        !self.stays() && self.give_up()
    }

    /// Ends the room if it is empty.
    pub(crate) fn give_up(&self) -> bool {
        self.len
            .compare_exchange(0, RETIRED, SeqCst, SeqCst)
            .is_ok()
    }

    pub(super) fn add(&self, id: ConnectionId) {
        let on = &self.shards[usize::from(id.shard)];
        lock(&on.members).insert(id.key());
        // Before the room's next message is left anywhere.
        on.reached.fetch_add(1, SeqCst);
    }

    fn remove(&self, session: &Session) {
        let id = session.id;
        lock(&self.shards[usize::from(id.shard)].members).remove(id.key());
        if self.numbers(session) {
            self.numbered.fetch_sub(1, SeqCst);
        }
    }
}

impl Hub {
    /// Each room has two.
    pub(super) fn next_room_number(&self) -> u64 {
        self.rooms_ever.fetch_add(2, Relaxed)
    }

    pub(crate) fn new_room(&self, name: Arc<str>, permanent: bool) -> Arc<Room> {
        let number = self.next_room_number();
        Arc::new(Room::new(number, name, permanent, self.shards.len()))
    }

    /// Keeps room in the mailbox of a connection's shard for its joining a room, with a replay of that many messages and
    /// bytes. Waits while it is full.
    pub(crate) fn reserve_join(
        &self,
        session: &Session,
        messages: usize,
        bytes: usize,
    ) -> Result<Reserved<'_>, NotJoined> {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        Reserved::new(mailbox, mail_weight(messages, bytes))
    }

    /// Has a connection join a room: from now on it gets what the room is sent, behind the `replay`. Returns whether it
    /// was not in it. Never waits, so it may be called with a lock held.
    pub(crate) fn join(
        &self,
        mut reserved: Reserved<'_>,
        room: &Arc<Room>,
        session: &Session,
        replay: Vec<Bytes>,
    ) -> Result<bool, NotJoined> {
        let mail = Mail::Join(Box::new(Joining {
            key: session.id.key(),
            room: room.clone(),
            replay,
        }));
        if !reserved.shrink(mail.weight()) {
            return Err(NotJoined::Full);
        }
        let mut rooms = lock(&session.rooms);
        let refused = if session.status() == Status::Closed {
            Some(Err(NotJoined::Closed))
        } else if rooms.wants(room) {
            Some(Ok(false))
        } else if rooms.wanted() >= self.settings.limits.connection_rooms_max {
            Some(Err(NotJoined::TooMany))
        } else if !room.enter() {
            Some(Err(NotJoined::Retired))
        } else {
            None
        };
        if let Some(refused) = refused {
            return refused;
        }
        if room.numbers(session) {
            room.numbered.fetch_add(1, SeqCst);
        }
        room.add(session.id);
        rooms.change(room);
        self.common.room_members.add(1);
        // Under the session's lock, so that its shard learns of changes in the order they were made.
        if reserved.push(mail, pool::when(self)).is_err() {
            // The engine stops, and with it goes everyone's being anywhere.
            return Err(NotJoined::Closed);
        }
        Ok(true)
    }

    /// Has a connection leave a room: it gets what the room was sent so far. Returns whether it was in it. The room may
    /// be no more after.
    pub(crate) fn leave(&self, room: &Arc<Room>, session: &Session) -> bool {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        let mail = Mail::Leave(session.id.key(), room.clone());
        let weight = mail.weight();
        // Nobody waits with a session's lock in his hands: the shard takes it, too.
        if mailbox.reserve(weight).is_err() {
            return false;
        }
        let reserved = Reserved { mailbox, weight };
        let mut rooms = lock(&session.rooms);
        if !rooms.wants(room) {
            return false;
        }
        rooms.change(room);
        room.remove(session);
        self.common.room_members.sub(1);
        // Refused only by an engine that stops, where everyone leaves everything.
        let _ = reserved.push(mail, pool::when(self));
        drop(rooms);
        room.exit();
        true
    }
}

/// Room in a mailbox, which is given back if it is not used.
pub(crate) struct Reserved<'a> {
    mailbox: &'a Mailbox<Mail, Word, Box<dyn Wake>>,
    weight: usize,
}

impl<'a> Reserved<'a> {
    /// Waits while the mailbox is full.
    pub(super) fn new(
        mailbox: &'a Mailbox<Mail, Word, Box<dyn Wake>>,
        weight: usize,
    ) -> Result<Self, NotJoined> {
        match mailbox.reserve(weight) {
            Ok(()) => Ok(Self { mailbox, weight }),
            Err(_) => Err(NotJoined::Closed),
        }
    }

    /// Gives back what is not needed. Returns whether there was as much.
    pub(super) fn shrink(&mut self, weight: usize) -> bool {
        let Some(rest) = self.weight.checked_sub(weight) else {
            return false;
        };
        self.mailbox.unreserve(rest);
        self.weight = weight;
        true
    }

    pub(super) fn push(mut self, mail: Mail, when: When) -> Result<(), Mail> {
        self.weight = 0;
        self.mailbox.push_reserved(mail, when)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.weight > 0 {
            self.mailbox.unreserve(self.weight);
        }
    }
}

/// What the mail of a joining weighs.
fn mail_weight(messages: usize, bytes: usize) -> usize {
    size_of::<Mail>() + size_of::<Joining>() + messages * size_of::<Bytes>() + bytes
}

impl Session {
    /// Its shard has come to see it join or leave. Returns whether it is still there to do so.
    pub(super) fn is_seen(&self, room: &Arc<Room>) -> bool {
        lock(&self.rooms).seen(room)
    }

    /// Rooms that are to be told of its leaving by whoever is at work for it: its shard has ended.
    fn leave_behind(&self, rooms: Vec<Arc<Room>>) {
        let left = |room| Membership {
            room,
            wanted: false,
            pending: 0,
        };
        *lock(&self.rooms) = rooms.into_iter().map(left).collect::<Memberships>();
    }

    /// Takes what was left behind.
    pub(super) fn rooms_left_behind(&self) -> Vec<Arc<Room>> {
        let rooms = std::mem::take(&mut *lock(&self.rooms)).into_vec();
        rooms.into_iter().map(|of| of.room).collect()
    }
}

/// A connection that joins a room.
pub(crate) struct Joining {
    key: Key,
    room: Arc<Room>,
    /// What it is sent first.
    replay: Vec<Bytes>,
}

impl Joining {
    /// Bytes of what it is sent first.
    pub(super) fn replay_bytes(&self) -> usize {
        self.replay.iter().map(Bytes::len).sum()
    }

    /// Messages that it is sent first.
    pub(super) fn replays(&self) -> usize {
        self.replay.len()
    }
}

impl Weigh for Joining {
    fn weight(&self) -> usize {
        mail_weight(self.replays(), self.replay_bytes()) - size_of::<Mail>()
    }
}

/// The rooms of a shard: those that any of its connections is in.
#[derive(Default)]
pub(super) struct LocalRooms(HashMap<u64, LocalRoom>);

#[derive(Default)]
pub(super) struct LocalRoom {
    /// Their slots: who ends leaves before another can have his.
    members: Members<u32>,
    /// Where its messages of this turn gather, if it has any.
    pub(super) run: Option<u32>,
}

impl LocalRooms {
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut LocalRoom> {
        self.0.get_mut(&number)
    }

    pub(super) fn contains(&self, number: u64, key: Key) -> bool {
        self.0
            .get(&number)
            .is_some_and(|room| room.members.contains(key.slot))
    }

    pub(super) fn len(&self, number: u64) -> usize {
        self.0.get(&number).map_or(0, |room| room.members.len())
    }

    /// The slots of those who are in it.
    pub(super) fn members(&self, number: u64) -> impl Iterator<Item = u32> {
        self.0
            .get(&number)
            .into_iter()
            .flat_map(|room| room.members.iter())
    }

    pub(super) fn insert(&mut self, number: u64, key: Key) {
        self.0.entry(number).or_default().members.insert(key.slot);
    }

    fn remove(&mut self, number: u64, key: Key) {
        if let Some(room) = self.0.get_mut(&number) {
            room.members.remove(key.slot);
            if room.members.is_empty() {
                self.0.remove(&number);
            }
        }
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to_fit();
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn memberships(&self) -> usize {
        self.0.values().map(|room| room.members.len()).sum()
    }
}

impl<T: Transport> Core<T> {
    /// Runs that a connection may have a share in: those of its rooms, by number.
    pub(super) fn rooms_with_runs(&self, session: &Session) -> Vec<u32> {
        lock(&session.rooms)
            .held()
            .filter_map(|room| self.delivery.rooms.0.get(&room.number_for(session))?.run)
            .collect()
    }

    pub(super) fn join_room(&mut self, joining: Joining) {
        let Joining { key, room, replay } = joining;
        let slot = self.conns.find(key);
        // What it is due to get so far does not include what this room has gathered.
        slot.into_iter().for_each(|slot| self.take_run(slot));
        let number = slot
            .and_then(|slot| self.open_ws(slot))
            .filter(|ws| ws.session.is_seen(&room))
            .map(|ws| room.number_for(&ws.session));
        let (Some(slot), Some(number)) = (slot, number) else {
            room.unreach(self.index);
            self.lose_replay(replay.len() as u64);
            return;
        };
        self.delivery.rooms.insert(number, key);
        // First, as what is replayed may cost it the connection, and it leaves by that.
        self.presence_changed(slot, Presence::Joined, room);
        self.replay(slot, replay);
    }

    pub(super) fn leave_room(&mut self, key: Key, room: Arc<Room>) {
        let Some(slot) = self.conns.find(key) else {
            return;
        };
        // While it is still in it.
        self.take_run(slot);
        let number = self
            .open_ws(slot)
            .filter(|ws| ws.session.is_seen(&room))
            .map(|ws| room.number_for(&ws.session));
        let Some(number) = number else {
            return;
        };
        self.delivery.rooms.remove(number, key);
        room.unreach(self.index);
        self.presence_changed(slot, Presence::Left, room);
    }

    fn presence_changed(&mut self, slot: u32, change: Presence, room: Arc<Room>) {
        if self.interests.room {
            self.keep_event(slot, Event::Room(change, room));
            self.advance(slot);
        }
    }

    /// A connection ends, and leaves all its rooms. What they have gathered for it has been seen to.
    pub(super) fn leave_rooms(&mut self, slot: u32) {
        let (Some(key), Some(conn)) = (self.conns.key(slot), self.conns.get(slot)) else {
            return;
        };
        let Role::WebSocket(ws) = &conn.role else {
            return;
        };
        let rooms = std::mem::take(&mut *lock(&ws.session.rooms)).into_vec();
        let session = ws.session.clone();
        let form = ws.form();
        for membership in rooms {
            let held = membership.is_held();
            let Membership { room, wanted, .. } = membership;
            if held {
                self.delivery.rooms.remove(room.number_for(&session), key);
                room.unreach(self.index);
            }
            if wanted {
                room.remove(&session);
                if form == Form::Frames {
                    self.hub.common.room_members.sub(1);
                }
                if let Some(empty) = room.part() {
                    self.events.emptied(&empty);
                }
            }
            // Who was never seen to join does not leave.
            if held && self.interests.room && form == Form::Frames {
                self.keep_event(slot, Event::Room(Presence::Left, room));
            }
        }
    }

    /// The shard ends while handlers are at work for a session: they tell its rooms.
    pub(super) fn leave_rooms_behind(&self, session: &Session, unhandled: &[Event]) {
        let mut rooms: Vec<Arc<Room>> = Vec::new();
        let mut joined: Vec<&Arc<Room>> = Vec::new();
        for event in unhandled {
            match event {
                Event::Room(Presence::Joined, room) => joined.push(room),
                Event::Room(Presence::Left, room) => {
                    // Changes that nobody was told of cancel each other out.
                    match joined.iter().position(|other| Arc::ptr_eq(other, room)) {
                        Some(at) => drop(joined.swap_remove(at)),
                        None => rooms.push(room.clone()),
                    }
                }
                _ => {}
            }
        }
        session.leave_behind(rooms);
    }
}
