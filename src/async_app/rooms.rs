//! Which rooms there are, by name, and what they keep.

use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::history::{History, HistoryBounds, HistoryPatterns};
use super::room_entry::{RoomEntry, RoomHistory};
use super::room_names::RoomNames;
use crate::atomic::AtomicU64;
use crate::engine::{self, Hub};
use crate::error::JoinErrorReason;
use crate::sync::lock;

/// Longest name of a room, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// From names to rooms. A room is here while anybody is in it, or while it keeps messages.
///
/// Locks are taken in this order: the deserted rooms, a history, the names.
#[derive(Default)]
pub(super) struct RoomDirectory {
    names: RoomNames,
    /// Rooms that count towards `rooms_max`: all but the pinned ones.
    counted: AtomicUsize,
    /// Told once, by the app that starts.
    setup: OnceLock<RoomSettings>,
    /// Messages that were ever kept, in all rooms.
    stamps: Mutex<u64>,
    /// The last stamp of any room that was given up, with what it kept.
    given_up: AtomicU64,
    /// Rooms that nobody is in, and that stay: those that may be given up.
    deserted: Mutex<Deserted>,
}

/// Each room that stays and has nobody in it is in one of these, as whoever empties it sees to; others may be, which is found
/// out when their turn comes. So nobody ever looks through all rooms.
#[derive(Default)]
struct Deserted {
    /// Those that have kept nothing yet, when they came.
    unused: VecDeque<Arc<str>>,
    /// Those that keep messages.
    kept: VecDeque<Arc<str>>,
}

/// What a room is wanted for, where there are as many as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Somebody comes in: no room that keeps messages gives way.
    ToJoin,
    /// It is to keep a message: those give way that were not used for longest.
    ToKeep,
}

/// As many are looked at for one that is given up: of so many, the least used one is found for sure; of more, about.
const LOOKED_AT_MAX: usize = 64;

struct RoomSettings {
    rooms_max: usize,
    histories: HistoryPatterns,
}

impl RoomDirectory {
    pub(super) fn set_up(&self, rooms_max: usize, histories: HistoryPatterns) {
        let setup = RoomSettings {
            rooms_max,
            histories,
        };
        let _ = self.setup.set(setup);
    }

    pub(super) fn find(&self, name: &str) -> Option<RoomEntry> {
        self.names.find(name)
    }

    /// The room of that name, if it is there, or else is to keep what it is sent.
    pub(super) fn find_to_send(
        &self,
        hub: &Hub,
        name: &str,
    ) -> Result<Option<RoomEntry>, JoinErrorReason> {
        if let Some(room) = self.find(name) {
            return Ok(Some(room));
        }
        let keeps = |setup: &RoomSettings| {
            name.len() <= NAME_BYTES_MAX && setup.histories.find(name).is_some()
        };
        if !self.setup.get().is_some_and(keeps) {
            return Ok(None);
        }
        self.find_or_make_for(hub, name, Wanted::ToKeep).map(Some)
    }

    /// The room of that name, which is made if there is none.
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
        let bounds = setup.histories.find(name);
        // Rooms with a pattern of their own are as many as the program has named.
        let is_pinned = bounds.is_some_and(|bounds| bounds.pinned);
        let room = loop {
            let mut names = self.names.write(name);
            let former = names.get(name);
            if let Some(room) = former.filter(|former| is_there(former)) {
                return Ok(room.clone());
            }
            // A retired room of this name gives its place to the new one.
            if is_pinned || former.is_some() || self.count_in(setup.rooms_max) {
                let room = self.new_room(hub, name, bounds);
                names.replace(room.clone());
                break room;
            }
            drop(names);
            if !self.give_one_up(wanted) {
                return Err(JoinErrorReason::Rooms);
            }
        };
        // Whoever has asked for it may never join.
        if !is_pinned && room.kept.is_some() && room.members.enqueue() {
            self.deserted().unused.push_back(room.members.name.clone());
        }
        Ok(room)
    }

    fn new_room(&self, hub: &Hub, name: &str, bounds: Option<HistoryBounds>) -> RoomEntry {
        // What a room of this name may have kept before is not kept any more.
        let given_up = self.given_up.load(Relaxed);
        let kept = bounds.map(|bounds| {
            let history = History::new(bounds.messages_max, bounds.bytes_max);
            Arc::new(RoomHistory::new(history.since_stamp(given_up)))
        });
        RoomEntry {
            members: hub.new_room(name.into(), kept.is_some()),
            kept,
        }
    }

    /// Counts a room that is about to be made. Returns whether there was a place for it.
    fn count_in(&self, rooms_max: usize) -> bool {
        let more = |counted: usize| (counted < rooms_max).then_some(counted + 1);
        self.counted.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// The last stamp that was given. Locked behind a room's history, by whoever publishes what is to be kept: so stamps are
    /// in the order of what is sent. Nobody may wait who holds it.
    pub(super) fn stamps(&self) -> MutexGuard<'_, u64> {
        lock(&self.stamps)
    }

    /// Nobody is in a room any more. If it stays, it may be given up from now on.
    pub(super) fn emptied(&self, room: &engine::Room) {
        if room.is_retired() {
            self.forget(room);
        } else if !self.is_pinned(room) && room.enqueue() {
            // It is found out later whether it keeps anything.
            self.deserted().unused.push_back(room.name.clone());
        }
    }

    fn is_pinned(&self, room: &engine::Room) -> bool {
        let setup = self.setup.get();
        let bounds = setup.and_then(|setup| setup.histories.find(&room.name));
        bounds.is_some_and(|bounds| bounds.pinned)
    }

    fn deserted(&self) -> MutexGuard<'_, Deserted> {
        lock(&self.deserted)
    }

    /// A room has ended: its name is free, unless another room has it already.
    pub(super) fn forget(&self, room: &engine::Room) {
        if self.names.remove(room) && !self.is_pinned(room) {
            self.counted.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// There are as many rooms as there may be: one that nobody is in, and that only keeps messages, is given up. First those
    /// that have nothing to keep: names that somebody has made up take no one's messages. Then, if another is to keep a
    /// message, the one that was not used for longest. Looks at few rooms, however many there are.
    ///
    /// Returns whether one was given up.
    fn give_one_up(&self, wanted: Wanted) -> bool {
        let mut deserted = self.deserted();
        for _ in 0..LOOKED_AT_MAX {
            let Some(name) = deserted.unused.pop_front() else {
                break;
            };
            let Some(room) = self.still_deserted(&name) else {
                continue;
            };
            if room.used() > 0 {
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

    /// Returns whether the room has ended. If not, it has a member, and whoever leaves it last enqueues it again.
    fn retire_if_empty(&self, room: &RoomEntry) -> bool {
        room.members.dequeue();
        // A thread that is about to publish to it has done so, or will find that it has ended.
        let history = room.history();
        let given_up = room.members.retire_if_empty();
        if given_up {
            self.given_up.fetch_max(room.used(), Relaxed);
            self.forget(&room.members);
        }
        drop(history);
        given_up
    }

    /// The room of that name, if it has no member. If it has one, it is in no queue any more.
    fn still_deserted(&self, name: &str) -> Option<RoomEntry> {
        let room = self.find(name)?;
        if !room.members.is_unused() {
            room.members.dequeue();
            // Its last member may have left at this moment, and have found it in the queue still.
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
