//! A room, as any thread knows it: who is in it, and which shards it reaches.
//!
//! The engine knows rooms by number. Who is in a room is kept twice: a [`Room`] answers any thread at once; the shards of its
//! members each have a list of their own (`reactor::rooms`), which follows through the mailbox. So joining, leaving and what is
//! sent keep their order at each connection.

use std::ops::Index;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::engine::parts::id::{ConnectionId, Key};
use crate::engine::parts::small_set::Members;
use crate::sync::lock;

/// A room, as any thread knows it.
pub(crate) struct Room {
    number: u64,
    /// What it is called above the engine.
    pub(crate) name: Arc<str>,
    /// How many are in it; `RETIRED` when it is no more.
    len: AtomicU32,
    /// How many of them get its messages with their ids; `NO_HISTORY` if it keeps none, and goes when it is empty.
    pub(crate) members_with_ids: AtomicU32,
    shards: Shards,
    /// The event streams that follow it: a room of their own, since what they are sent has another form.
    streams: OnceLock<Arc<Room>>,
    /// Of such a room, the one that it follows, which counts its members, too.
    followed: Weak<Room>,
    /// Whoever gives rooms up has it in a queue.
    queued: AtomicBool,
}

const RETIRED: u32 = u32::MAX;

const NO_HISTORY: u32 = u32::MAX;

/// What there is of a room on each shard, by the shard's index. The first takes no memory of its own: rooms are many, and
/// small.
struct Shards {
    first: OnShard,
    others: Box<[OnShard]>,
}

impl Shards {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            first: OnShard::default(),
            others: (1..count).map(|_| OnShard::default()).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        1 + self.others.len()
    }

    pub(crate) fn get(&self, shard: usize) -> Option<&OnShard> {
        match shard.checked_sub(1) {
            None => Some(&self.first),
            Some(at) => self.others.get(at),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &OnShard> {
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
#[non_exhaustive]
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

impl Room {
    pub(crate) fn new(number: u64, name: Arc<str>, permanent: bool, shards: usize) -> Self {
        Self {
            number,
            name,
            len: AtomicU32::new(0),
            members_with_ids: AtomicU32::new(if permanent { 0 } else { NO_HISTORY }),
            shards: Shards::new(shards),
            streams: OnceLock::new(),
            followed: Weak::new(),
            queued: AtomicBool::new(false),
        }
    }

    /// The room of the event streams that follow it.
    pub(crate) fn room_of_streams(
        self: &Arc<Self>,
        next_number: impl FnOnce() -> u64,
    ) -> &Arc<Room> {
        self.streams.get_or_init(|| {
            let number = next_number();
            let mut streams = Self::new(number, self.name.clone(), true, self.shards.len());
            streams.followed = Arc::downgrade(self);
            Arc::new(streams)
        })
    }

    /// How many there are of them.
    pub(crate) fn streams_len(&self) -> usize {
        self.streams.get().map_or(0, |streams| streams.len())
    }

    /// The room of its event streams, if any follow it.
    pub(crate) fn streams(&self) -> Option<&Arc<Room>> {
        self.streams.get().filter(|streams| streams.len() > 0)
    }

    /// The number of those who get its messages as they are.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The number of those who get its messages with their ids, in a form of their own.
    pub(crate) fn channel_with_ids(&self) -> u64 {
        self.number + 1
    }

    /// The number of the members that a session is among, by whether it takes ids.
    pub(crate) fn channel_for(&self, takes_ids: bool) -> u64 {
        match self.sends_ids(takes_ids) {
            true => self.channel_with_ids(),
            false => self.number,
        }
    }

    /// Whether it sends its messages with their ids to a session, by whether that takes ids.
    pub(crate) fn sends_ids(&self, takes_ids: bool) -> bool {
        takes_ids && self.stays()
    }

    /// Whether it stays when nobody is in it.
    pub(crate) fn stays(&self) -> bool {
        self.members_with_ids.load(Relaxed) != NO_HISTORY
    }

    /// Whether anybody gets its messages with their ids. Who holds the lock of its history knows that it stays so.
    pub(crate) fn has_members_with_ids(&self) -> bool {
        !matches!(self.members_with_ids.load(SeqCst), 0 | NO_HISTORY)
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

    pub(crate) fn reaches(&self, shard: usize) -> bool {
        self.shards[shard].reached.load(SeqCst) > 0
    }

    /// Nothing more will come to the shard for one of its members.
    pub(crate) fn unreach(&self, shard: u16) {
        self.shards[usize::from(shard)].reached.fetch_sub(1, SeqCst);
    }

    /// Counts somebody in, unless the room is no more.
    pub(crate) fn enter(&self) -> bool {
        let count = |len| (len != RETIRED).then(|| len + 1);
        self.len.fetch_update(SeqCst, SeqCst, count).is_ok()
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.len.load(SeqCst) == RETIRED
    }

    /// Counts somebody out. Returns whether the room is empty now: then it is no more, unless it stays.
    pub(crate) fn exit(&self) -> bool {
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
    pub(crate) fn follow(self: &Arc<Self>, next_number: impl FnOnce() -> u64) -> Option<Arc<Room>> {
        let streams = self.room_of_streams(next_number);
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

    pub(crate) fn add(&self, id: ConnectionId) {
        let on = &self.shards[usize::from(id.shard)];
        lock(&on.members).insert(id.key());
        // Before the room's next message is left anywhere.
        on.reached.fetch_add(1, SeqCst);
    }

    pub(crate) fn remove(&self, id: ConnectionId, takes_ids: bool) {
        lock(&self.shards[usize::from(id.shard)].members).remove(id.key());
        if self.sends_ids(takes_ids) {
            self.members_with_ids.fetch_sub(1, SeqCst);
        }
    }
}
