//! The state of a room that all threads share: its members, and the shards of its members.
//!
//! The engine knows rooms by number. Membership is stored twice. A [`SharedRoom`] answers any thread at once. Each
//! shard with members has its own list (`reactor::rooms`), which is updated through the mailbox. So joins, leaves and
//! messages keep their order at each connection.

use std::ops::Index;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::engine::parts::id::{Key, LocalId};
use crate::engine::parts::small_set::Members;
use crate::sync::lock;

/// The state of a room that all threads share.
pub(crate) struct SharedRoom {
    number: u64,
    /// The name of the room, which the engine does not use.
    pub(crate) name: Arc<str>,
    /// The number of members and event streams, and of those that are about to join; or `RETIRED`.
    holders: AtomicU32,
    /// The number of members. Each is counted when its join is in its shard's mailbox, and until its leave is. So what
    /// is sent by a thread that has seen this number reaches as many.
    len: AtomicU32,
    /// The number of members that receive its messages with ids and as they were sent. `NO_HISTORY` if it keeps no
    /// messages: such a room is retired when it is empty. `KEYED` if it keeps the newest message of each key.
    members_with_ids: AtomicU32,
    /// The numbers of members that receive rendered messages: without ids, and with ids.
    members_rendered: [AtomicU32; 2],
    shards: RoomShards,
    /// The room of the event streams that follow this one. It is separate, since its messages have another form.
    streams: OnceLock<Arc<SharedRoom>>,
    /// In a room of event streams: the room that they follow, which counts them as members too.
    followed: Weak<SharedRoom>,
    /// Whether the room is in the queue of rooms to be retired.
    queued: AtomicBool,
    /// Whether the program is told of its joins and leaves.
    is_reported: bool,
}

const RETIRED: u32 = u32::MAX;

const NO_HISTORY: u32 = u32::MAX;
const KEYED: u32 = u32::MAX - 1;

/// The counts of the room on each shard, by the shard's index. The first shard needs no allocation, because there may
/// be many rooms and most of them are small.
struct RoomShards {
    first: OnShard,
    others: Box<[OnShard]>,
}

impl RoomShards {
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

impl Index<usize> for RoomShards {
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
    /// The number of members that the shard knows, or has a command for. If it is 0, messages to the room are not sent
    /// to the shard.
    reached: AtomicUsize,
}

/// A membership change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Presence {
    /// The connection has joined the room.
    Joined,
    /// The connection has left the room, or has ended.
    Left,
}

/// The form in which a session receives the messages of rooms with a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HistoryForm {
    /// Each message is preceded by the room and the id.
    pub(crate) with_ids: bool,
    /// Each message is as the program's renderer makes it.
    pub(crate) rendered: bool,
}

impl HistoryForm {
    /// The number of forms, and of channels that a room has for them.
    pub(crate) const COUNT: u64 = 4;
    pub(crate) const ALL: [Self; Self::COUNT as usize] = [
        Self::new(false, false),
        Self::new(true, false),
        Self::new(false, true),
        Self::new(true, true),
    ];

    pub(crate) const fn new(with_ids: bool, rendered: bool) -> Self {
        Self { with_ids, rendered }
    }

    /// The difference between the form's channel and the room's number.
    fn channel(self) -> u64 {
        u64::from(self.with_ids) + 2 * u64::from(self.rendered)
    }
}

/// Why a connection could not join a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotJoined {
    /// The connection has ended, or the engine has stopped.
    Closed,
    /// The connection is in as many rooms as allowed.
    TooMany,
    /// The room is retired. Another room of that name may have taken its place.
    Retired,
    /// The replay takes more than was reserved in the mailbox.
    Full,
    /// The mailbox is full, and the thread must not wait for it.
    WouldBlock,
}

impl SharedRoom {
    pub(crate) fn new(number: u64, name: Arc<str>, permanent: bool, shards: usize) -> Self {
        Self {
            number,
            name,
            holders: AtomicU32::new(0),
            len: AtomicU32::new(0),
            members_with_ids: AtomicU32::new(if permanent { 0 } else { NO_HISTORY }),
            members_rendered: Default::default(),
            shards: RoomShards::new(shards),
            streams: OnceLock::new(),
            followed: Weak::new(),
            queued: AtomicBool::new(false),
            is_reported: true,
        }
    }

    /// Makes it a room that keeps the newest message of each key. All of its members receive messages in the same form.
    pub(crate) fn keyed(self) -> Self {
        self.members_with_ids.store(KEYED, Relaxed);
        self
    }

    /// Makes it a room of whose joins and leaves the program is not told.
    pub(crate) fn unreported(mut self) -> Self {
        self.is_reported = false;
        self
    }

    pub(crate) fn is_reported(&self) -> bool {
        self.is_reported
    }

    /// The room for this room's event streams, made if there is none yet.
    pub(crate) fn room_of_streams(
        self: &Arc<Self>,
        next_number: impl FnOnce() -> u64,
    ) -> &Arc<SharedRoom> {
        self.streams.get_or_init(|| {
            let number = next_number();
            let mut streams = Self::new(number, self.name.clone(), true, self.shards.len());
            if self.is_keyed() {
                streams = streams.keyed();
            }
            streams.followed = Arc::downgrade(self);
            Arc::new(streams)
        })
    }

    /// The number of event streams that follow the room.
    pub(crate) fn streams_len(&self) -> usize {
        self.streams.get().map_or(0, |streams| streams.len())
    }

    /// The room of the event streams that follow this one, if there are any.
    pub(crate) fn streams(&self) -> Option<&Arc<SharedRoom>> {
        self.streams.get().filter(|streams| streams.is_held())
    }

    /// The channel of the members that receive messages as they were sent. It is also the room's number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The channel of the members that receive messages in this form. A room without a history has one channel.
    pub(crate) fn channel_for(&self, form: HistoryForm) -> u64 {
        match self.has_history() {
            true => self.number + form.channel(),
            false => self.number,
        }
    }

    /// All channels of a room that keeps a history, each with its form.
    pub(crate) fn channels(&self) -> impl Iterator<Item = (HistoryForm, u64)> {
        let number = self.number;
        HistoryForm::ALL
            .into_iter()
            .map(move |form| (form, number + form.channel()))
    }

    /// The number of members that receive messages in this form. `None` if it is not counted.
    fn members_of(&self, form: HistoryForm) -> Option<&AtomicU32> {
        match (form.rendered, form.with_ids) {
            _ if !self.has_history() => None,
            (false, false) => None,
            (false, true) => Some(&self.members_with_ids),
            (true, with_ids) => Some(&self.members_rendered[usize::from(with_ids)]),
        }
    }

    /// Counts a member that receives messages in this form.
    pub(crate) fn count_form(&self, form: HistoryForm) {
        if let Some(members) = self.members_of(form) {
            members.fetch_add(1, SeqCst);
        }
    }

    /// Stops counting a member that receives messages in this form.
    pub(crate) fn uncount_form(&self, form: HistoryForm) {
        if let Some(members) = self.members_of(form) {
            members.fetch_sub(1, SeqCst);
        }
    }

    /// Whether the room stays when it is empty, since it keeps messages.
    pub(crate) fn stays(&self) -> bool {
        self.members_with_ids.load(Relaxed) != NO_HISTORY
    }

    /// Whether the room keeps the newest message of each key.
    pub(crate) fn is_keyed(&self) -> bool {
        self.members_with_ids.load(Relaxed) == KEYED
    }

    /// Whether the room keeps a history, whose messages have ids and several forms.
    fn has_history(&self) -> bool {
        !matches!(self.members_with_ids.load(Relaxed), NO_HISTORY | KEYED)
    }

    /// Whether any member receives messages with ids and as they were sent. The answer stays valid while the caller holds
    /// the lock of the room's history.
    pub(crate) fn has_members_with_ids(&self) -> bool {
        !matches!(self.members_with_ids.load(SeqCst), 0 | NO_HISTORY | KEYED)
    }

    /// Whether any members receive rendered messages: without ids, and with ids. While the caller holds the lock of the
    /// room's history, no member of another form joins.
    pub(crate) fn has_rendered_members(&self) -> [bool; 2] {
        self.members_rendered
            .each_ref()
            .map(|members| members.load(SeqCst) > 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(SeqCst) as usize
    }

    pub(crate) fn contains(&self, id: LocalId) -> bool {
        self.shards
            .get(usize::from(id.shard))
            .is_some_and(|on| lock(&on.members).contains(id.key()))
    }

    pub(crate) fn members(&self) -> Vec<LocalId> {
        (0..)
            .zip(self.shards.iter())
            .flat_map(|(shard, on)| {
                let keys: Vec<Key> = lock(&on.members).iter().collect();
                keys.into_iter().map(move |key| LocalId { shard, key })
            })
            .collect()
    }

    pub(crate) fn reaches(&self, shard: usize) -> bool {
        self.shards[shard].reached.load(SeqCst) > 0
    }

    /// Records that no further command will reach the shard for one of its members.
    pub(crate) fn unreach(&self, shard: u16) {
        self.shards[usize::from(shard)].reached.fetch_sub(1, SeqCst);
    }

    /// Holds the room for a member that is about to join, or for a thread that reads what other nodes tell about it. Returns false if the room is retired.
    pub(crate) fn enter(&self) -> bool {
        let count = |holders| (holders != RETIRED).then(|| holders + 1);
        self.holders.fetch_update(SeqCst, SeqCst, count).is_ok()
    }

    /// Whether the room has members or event streams, or some are about to join.
    pub(crate) fn is_held(&self) -> bool {
        !matches!(self.holders.load(SeqCst), 0 | RETIRED)
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.holders.load(SeqCst) == RETIRED
    }

    /// Releases the room for a member that has left, or for a reader. Returns whether nothing holds it now: it is retired then, unless it
    /// keeps messages.
    pub(crate) fn exit(&self) -> bool {
        self.holders.fetch_sub(1, SeqCst) == 1 && (self.stays() || self.retire())
    }

    /// Marks the room as queued for retirement. Returns whether it was not queued before.
    pub(crate) fn enqueue(&self) -> bool {
        !self.queued.swap(true, SeqCst)
    }

    /// Removes that mark. If the room becomes empty after this, it is queued again.
    pub(crate) fn dequeue(&self) {
        self.queued.store(false, SeqCst);
    }

    /// Holds the room for a new event stream, unless it is retired. Returns the room of its event streams. [`SharedRoom::leave`]
    /// must be called on it when the stream ends, or by the caller if no stream begins.
    pub(crate) fn follow(
        self: &Arc<Self>,
        next_number: impl FnOnce() -> u64,
    ) -> Option<Arc<SharedRoom>> {
        let streams = self.room_of_streams(next_number);
        streams.enter();
        if self.enter() {
            return Some(streams.clone());
        }
        streams.exit();
        None
    }

    /// Whether the room could be retired: nothing holds it, and it is not retired yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.holders.load(SeqCst) == 0
    }

    /// Releases the room for a member that has left. Returns the room that is empty now, if one is: for a room of event streams, the
    /// room that they follow.
    pub(crate) fn leave(self: &Arc<Self>) -> Option<Arc<SharedRoom>> {
        let is_empty = self.exit();
        match self.followed.upgrade() {
            Some(followed) => followed.exit().then_some(followed),
            None => is_empty.then(|| self.clone()),
        }
    }

    /// Retires the room if it is empty and keeps no messages. A retired room can't be joined.
    pub(crate) fn retire(&self) -> bool {
        !self.stays() && self.retire_if_empty()
    }

    /// Retires the room if it is empty, even if it keeps messages.
    pub(crate) fn retire_if_empty(&self) -> bool {
        self.holders
            .compare_exchange(0, RETIRED, SeqCst, SeqCst)
            .is_ok()
    }

    /// Records that a command for one of its members is about to be put into the shard's mailbox.
    pub(crate) fn reach(&self, shard: u16) {
        self.shards[usize::from(shard)].reached.fetch_add(1, SeqCst);
    }

    /// Shows a new member to all threads. Its join must be in its shard's mailbox, since whoever sees the member may send it
    /// a message.
    pub(crate) fn add(&self, id: LocalId) {
        lock(&self.shards[usize::from(id.shard)].members).insert(id.key());
        self.len.fetch_add(1, SeqCst);
    }

    /// Hides a member from all threads. Its leave must be in its shard's mailbox, since whoever does not see the member may
    /// send what it must not receive.
    pub(crate) fn remove(&self, id: LocalId, form: HistoryForm) {
        lock(&self.shards[usize::from(id.shard)].members).remove(id.key());
        self.len.fetch_sub(1, SeqCst);
        self.uncount_form(form);
    }
}
