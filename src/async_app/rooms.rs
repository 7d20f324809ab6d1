//! The directory of rooms, their histories, and the eviction of rooms that have no members.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
#[cfg(feature = "cluster")]
use std::time::{Duration, Instant};

use super::history::{History, HistoryBounds, HistoryPatterns};
use super::keyed::{KeyedBounds, KeyedPatterns};
use super::presence::PresenceHandle;
use super::room_entry::{KeyedRoom, RoomEntry, RoomHistory};
use super::room_names::RoomNames;
use crate::atomic::AtomicU64;
#[cfg(feature = "cluster")]
use crate::cluster::ClusterHandle;
use crate::engine::{self, ConflationKey, Hub};
use crate::error::JoinErrorReason;
use crate::sync::lock;

/// The maximum length of a room's name in bytes.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// The rooms by name. A room is here while it has members or keeps messages.
///
/// Locks are taken in this order: the deserted rooms, a history or the messages of a keyed room, the names.
#[derive(Default)]
pub(super) struct RoomDirectory {
    names: RoomNames,
    /// Rooms that count towards `rooms_max`: all but the pinned ones.
    counted: AtomicUsize,
    /// Set once, when the app starts.
    setup: OnceLock<RoomSettings>,
    /// The last stamp that was given, in all rooms, and the lock under which histories are stamped.
    last_stamp: AtomicU64,
    stamping: Mutex<()>,
    /// The last stamp of any evicted room that kept a history.
    evicted_stamp: AtomicU64,
    /// The number of keys that keyed rooms have ever had.
    keys_ever: AtomicU64,
    /// Rooms without members that may be evicted.
    deserted: Mutex<Deserted>,
}

/// Queues of rooms to evict. Every unpinned room that keeps messages and has no members is in one of them; the thread
/// that removes the last member enqueues it. A queue may also contain rooms that have members again, which are skipped
/// when they reach the front. So no eviction scans all rooms.
#[derive(Default)]
struct Deserted {
    /// Rooms without kept messages at the time of enqueuing. In a cluster, all.
    unused: VecDeque<DesertedRoom>,
    /// Rooms with kept messages.
    kept: VecDeque<Arc<str>>,
}

struct DesertedRoom {
    name: Arc<str>,
    #[cfg(feature = "cluster")]
    since: Instant,
}

impl DesertedRoom {
    fn now(name: &Arc<str>) -> Self {
        Self {
            name: name.clone(),
            #[cfg(feature = "cluster")]
            since: Instant::now(),
        }
    }
}

/// Why a room is needed when `rooms_max` is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// A client joins, so no room with kept messages is evicted.
    ToJoin,
    /// The room will keep a message, so the least recently used room is evicted.
    ToKeep,
}

/// The maximum number of rooms that one eviction compares. If there are more, the least recently used one is found only
/// approximately.
const LOOKED_AT_MAX: usize = 64;

pub(super) struct RoomSettings {
    pub(super) rooms_max: usize,
    pub(super) histories: HistoryPatterns,
    pub(super) keyed: KeyedPatterns,
    /// The node of a cluster that this app is. It is told which rooms exist here.
    #[cfg(feature = "cluster")]
    pub(super) cluster: Option<Arc<ClusterHandle>>,
    /// The presence of the rooms, if some have it. It is told which rooms exist here.
    pub(super) presence: Option<Arc<PresenceHandle>>,
}

/// What a room keeps of its messages.
#[derive(Debug, Clone, Copy)]
enum Keeping {
    Nothing,
    History(HistoryBounds),
    /// The newest message of each key.
    Keyed(KeyedBounds),
}

impl Keeping {
    fn is_pinned(self) -> bool {
        match self {
            Self::Nothing => false,
            Self::History(bounds) => bounds.pinned,
            Self::Keyed(bounds) => bounds.pinned,
        }
    }

    fn history(self) -> Option<HistoryBounds> {
        match self {
            Self::History(bounds) => Some(bounds),
            Self::Nothing | Self::Keyed(_) => None,
        }
    }
}

/// The right to stamp messages of histories.
pub(super) struct Stamps<'a> {
    last: &'a AtomicU64,
    _lock: MutexGuard<'a, ()>,
}

impl Stamps<'_> {
    /// Returns the next stamp, which is higher than all before.
    pub(super) fn next(&mut self) -> u64 {
        next(self.last)
    }
}

fn next(last: &AtomicU64) -> u64 {
    last.fetch_add(1, Relaxed) + 1
}

impl RoomSettings {
    /// What a room keeps. A keyed room keeps no history.
    fn keeping(&self, name: &str) -> Keeping {
        match self.keyed.find(name) {
            Some(bounds) => Keeping::Keyed(bounds),
            None => self
                .histories
                .find(name)
                .map_or(Keeping::Nothing, Keeping::History),
        }
    }
}

impl RoomDirectory {
    pub(super) fn set_up(&self, setup: RoomSettings) {
        let _ = self.setup.set(setup);
    }

    /// Returns whether rooms that keep a history get their messages. In a cluster, they need all broker servers; an app
    /// without such rooms does not.
    #[cfg(feature = "cluster")]
    pub(super) fn are_histories_served(&self) -> bool {
        let Some(setup) = self.setup.get() else {
            return false;
        };
        let cluster = setup.cluster.as_ref();
        setup.histories.is_empty() || cluster.is_none_or(|cluster| cluster.is_connected())
    }

    pub(super) fn find(&self, name: &str) -> Option<RoomEntry> {
        self.names.find(name)
    }

    /// Returns the room of that name, or creates it if its messages are to be kept.
    pub(super) fn find_to_send(
        &self,
        hub: &Hub,
        name: &str,
    ) -> Result<Option<RoomEntry>, JoinErrorReason> {
        if let Some(room) = self.find(name) {
            return Ok(Some(room));
        }
        if self.bounds(name).is_none() {
            return Ok(None);
        }
        self.find_or_make_for(hub, name, Wanted::ToKeep).map(Some)
    }

    /// Returns the bounds of the history of a room, whether it exists or not. `None` if it keeps none.
    pub(super) fn bounds(&self, name: &str) -> Option<HistoryBounds> {
        let setup = self.setup.get().filter(|_| name.len() <= NAME_BYTES_MAX)?;
        setup.keeping(name).history()
    }

    /// Returns the keyed room of that name, or creates it. `None` if a room of that name is not keyed.
    pub(super) fn find_keyed(
        &self,
        hub: &Hub,
        name: &str,
    ) -> Result<Option<RoomEntry>, JoinErrorReason> {
        let setup = self.setup.get().filter(|_| name.len() <= NAME_BYTES_MAX);
        if setup.is_none_or(|setup| setup.keyed.find(name).is_none()) {
            return Ok(None);
        }
        self.find_or_make_for(hub, name, Wanted::ToKeep).map(Some)
    }

    /// Returns the number of a new key.
    pub(super) fn next_key(&self) -> ConflationKey {
        ConflationKey::new(self.keys_ever.fetch_add(1, Relaxed))
    }

    /// Returns the room of that name, or creates it.
    pub(super) fn find_or_make(&self, hub: &Hub, name: &str) -> Result<RoomEntry, JoinErrorReason> {
        self.find_or_make_for(hub, name, Wanted::ToJoin)
    }

    fn find_or_make_for(
        &self,
        hub: &Hub,
        name: &str,
        wanted: Wanted,
    ) -> Result<RoomEntry, JoinErrorReason> {
        if name.len() > NAME_BYTES_MAX {
            return Err(JoinErrorReason::NameTooLong);
        }
        let is_there = |room: &RoomEntry| !room.members.is_retired();
        if let Some(room) = self.find(name).filter(is_there) {
            return Ok(room);
        }
        let setup = self.setup.get().ok_or(JoinErrorReason::Closed)?;
        let keeping = setup.keeping(name);
        // The number of pinned rooms is bounded by the patterns of the program.
        let is_pinned = keeping.is_pinned();
        let room = loop {
            let mut names = self.names.write(name);
            let former = names.get(name);
            if let Some(room) = former.filter(|former| is_there(former)) {
                return Ok(room.clone());
            }
            // The new room replaces a retired room of this name in the count.
            if is_pinned || former.is_some() || self.count_in(setup.rooms_max) {
                let room = self.new_room(hub, name, keeping);
                names.replace(room.clone());
                break room;
            }
            drop(names);
            if !self.evict_one(wanted) {
                return Err(JoinErrorReason::Rooms);
            }
        };
        // The caller may never join the room, so it is enqueued as deserted.
        if self.may_be_evicted(&room.members) && room.keeps_messages() && room.members.enqueue() {
            let deserted = DesertedRoom::now(&room.members.name);
            self.deserted().unused.push_back(deserted);
        }
        Ok(room)
    }

    fn new_room(&self, hub: &Hub, name: &str, keeping: Keeping) -> RoomEntry {
        // The messages of an earlier room of this name are lost.
        let evicted_stamp = self.evicted_stamp.load(Relaxed);
        let bounds = keeping.history();
        let kept = bounds.map(|bounds| {
            let history = History::new(bounds.messages_max, bounds.bytes_max);
            Arc::new(RoomHistory::new(history.since_stamp(evicted_stamp)))
        });
        let keyed = match keeping {
            Keeping::Keyed(bounds) => Some(Arc::new(KeyedRoom::new(bounds))),
            Keeping::Nothing | Keeping::History(_) => None,
        };
        let members = match keyed {
            Some(_) => hub.new_keyed_room(name.into()),
            None => hub.new_room(name.into(), kept.is_some()),
        };
        if let Some(presence) = self.presence() {
            presence.needed(&members.name);
        }
        RoomEntry {
            #[cfg(feature = "cluster")]
            interest: self.cluster().map(|cluster| {
                let bytes_max = bounds.map(|bounds| bounds.envelope_bytes_max());
                cluster.need(&members.name, bytes_max)
            }),
            members,
            kept,
            keyed,
        }
    }

    /// Counts a room that is about to be created. Returns whether the limit allowed it.
    fn count_in(&self, rooms_max: usize) -> bool {
        let more = |counted: usize| (counted < rooms_max).then_some(counted + 1);
        self.counted.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Locks the stamps of histories. Publishers of kept messages take them while they hold the room's history, so that stamps follow
    /// the order of sending. The holder must not wait.
    pub(super) fn stamps(&self) -> Stamps<'_> {
        Stamps {
            last: &self.last_stamp,
            _lock: lock(&self.stamping),
        }
    }

    /// Returns a stamp that says when a keyed room was used. It orders no messages, so it needs no lock.
    pub(super) fn next_use(&self) -> u64 {
        next(&self.last_stamp)
    }

    /// Handles the leave of a room's last member. If the room stays, it may be evicted from now on.
    pub(super) fn emptied(&self, room: &engine::SharedRoom) {
        if room.is_retired() {
            self.forget(room);
        } else if self.may_be_evicted(room) && room.enqueue() {
            // Whether the room keeps messages is checked when it reaches the front.
            let deserted = DesertedRoom::now(&room.name);
            self.deserted().unused.push_back(deserted);
        }
    }

    /// Whether a room may be evicted when it has no members. In a cluster that loses nothing, since the broker keeps the
    /// messages.
    fn may_be_evicted(&self, room: &engine::SharedRoom) -> bool {
        self.is_clustered() || !self.is_pinned(room)
    }

    /// Whether rooms may have members on other nodes. False before the app starts.
    #[cfg_attr(not(feature = "cluster"), allow(clippy::unused_self))]
    pub(super) fn is_clustered(&self) -> bool {
        #[cfg(feature = "cluster")]
        if self.cluster().is_some() {
            return true;
        }
        false
    }

    /// Evicts the rooms that have had no members for this time.
    #[cfg(feature = "cluster")]
    pub(super) fn evict_idle(&self, idle: Duration) {
        let Some(before) = Instant::now().checked_sub(idle) else {
            return;
        };
        let mut deserted = self.deserted();
        while let Some(first) = deserted.unused.pop_front() {
            if first.since > before {
                deserted.unused.push_front(first);
                return;
            }
            if let Some(room) = self.still_deserted(&first.name) {
                self.retire_if_empty(&room);
            }
        }
    }

    #[cfg(feature = "cluster")]
    fn cluster(&self) -> Option<&ClusterHandle> {
        self.setup.get()?.cluster.as_deref()
    }

    /// The presence of the rooms, if some have it. `None` before the app starts.
    pub(super) fn presence(&self) -> Option<&Arc<PresenceHandle>> {
        self.setup.get()?.presence.as_ref()
    }

    fn is_pinned(&self, room: &engine::SharedRoom) -> bool {
        let setup = self.setup.get();
        setup.is_some_and(|setup| setup.keeping(&room.name).is_pinned())
    }

    fn deserted(&self) -> MutexGuard<'_, Deserted> {
        lock(&self.deserted)
    }

    /// Removes a room that has ended, unless its name belongs to another by now.
    pub(super) fn forget(&self, room: &engine::SharedRoom) {
        let removed = || {
            if let Some(presence) = self.presence() {
                presence.unneeded(&room.name);
            }
            #[cfg(feature = "cluster")]
            if let Some(cluster) = self.cluster() {
                cluster.unneed(&room.name);
            }
        };
        if self.names.remove(room, removed) && !self.is_pinned(room) {
            self.counted.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Evicts one room without members, since `rooms_max` is reached. Rooms that have kept nothing are evicted first,
    /// so that made-up names displace no messages. If none is left and the new room is to keep a message, the least
    /// recently used room is evicted. The cost does not depend on the number of rooms.
    ///
    /// Returns whether a room was evicted.
    fn evict_one(&self, wanted: Wanted) -> bool {
        let mut deserted = self.deserted();
        for _ in 0..LOOKED_AT_MAX {
            let Some(DesertedRoom { name, .. }) = deserted.unused.pop_front() else {
                break;
            };
            let Some(room) = self.still_deserted(&name) else {
                continue;
            };
            if room.used() > 0 && !self.is_clustered() {
                deserted.kept.push_back(name);
            } else if self.retire_if_empty(&room) {
                return true;
            }
        }
        if wanted == Wanted::ToJoin {
            return false;
        }
        let mut least: Option<(Arc<str>, RoomEntry)> = None;
        for _ in 0..LOOKED_AT_MAX.min(deserted.kept.len()) {
            let Some(name) = deserted.kept.pop_front() else {
                break;
            };
            let Some(room) = self.still_deserted(&name) else {
                continue;
            };
            match &mut least {
                Some((least_name, least)) if room.used() < least.used() => {
                    deserted.kept.push_back(std::mem::replace(least_name, name));
                    *least = room;
                }
                Some(_) => deserted.kept.push_back(name),
                none => *none = Some((name, room)),
            }
        }
        least.is_some_and(|(_, room)| self.retire_if_empty(&room))
    }

    /// Returns whether the room was evicted. If not, it has a member, and whoever removes the last member enqueues it
    /// again.
    fn retire_if_empty(&self, room: &RoomEntry) -> bool {
        room.members.dequeue();
        // A thread that is about to publish to it either has done so or will find that it has ended.
        let locked = (room.history(), room.keyed_messages());
        let evicted = room.members.retire_if_empty();
        if evicted {
            // Of a keyed room, nothing is missing in a stream that resumes.
            if room.kept.is_some() {
                self.evicted_stamp.fetch_max(room.used(), Relaxed);
            }
            self.forget(&room.members);
        }
        drop(locked);
        evicted
    }

    /// Returns the room of that name if it has no members. If it has one, it is no longer in a queue.
    fn still_deserted(&self, name: &str) -> Option<RoomEntry> {
        let room = self.find(name)?;
        if !room.members.is_unused() {
            room.members.dequeue();
            // Its last member may have left just now and found it still marked as queued.
            if !(room.members.is_unused() && room.members.enqueue()) {
                return None;
            }
        }
        Some(room)
    }
}

#[cfg(test)]
#[path = "rooms_tests.rs"]
mod tests;
