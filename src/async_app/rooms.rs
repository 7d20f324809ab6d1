//! Which rooms there are, by name, and what they keep.

use std::borrow::Borrow;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockWriteGuard};

use super::history::{History, HistoryPatterns};
use super::id_turns::IdTurns;
use crate::atomic::AtomicU64;
use crate::engine::{self, Hub};
use crate::error::JoinErrorReason;
use crate::message::Message;
use crate::sync::{ignore_poison, lock};

/// Longest name of a room, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// From names to rooms. A room is here while anybody is in it, or while it keeps messages.
#[derive(Default)]
pub(super) struct RoomDirectory {
    named: RwLock<RoomSet>,
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
    /// Rooms with a pattern of their own, which never give way.
    pinned: usize,
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

type RoomSet = HashSet<ByName>;

struct RoomSettings {
    rooms_max: usize,
    histories: HistoryPatterns,
}

/// A room, and what it keeps. Clones are of the same.
#[derive(Clone)]
pub(super) struct RoomEntry {
    pub(super) members: Arc<engine::Room>,
    pub(super) kept: Option<Arc<RoomHistory>>,
}

/// What a room keeps.
pub(super) struct RoomHistory {
    history: Mutex<History>,
    pub(super) turns: IdTurns,
    /// The stamp of the last message it was to keep; 0 if there never was one.
    used: AtomicU64,
}

/// Found by its name, which it has itself: many rooms have few members.
struct ByName(RoomEntry);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.members.name
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.members.name.hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.members.name == other.0.members.name
    }
}

impl Eq for ByName {}

impl RoomHistory {
    /// No thread may wait, or call user code, while it holds this.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

impl RoomEntry {
    /// What the room keeps, if it keeps anything ([`RoomHistory::history`]).
    pub(super) fn history(&self) -> Option<MutexGuard<'_, History>> {
        Some(self.kept.as_ref()?.history())
    }

    fn used(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.used.load(Relaxed))
    }

    /// Keeps a message. Called with its history locked, so that ids are given in the order of what is sent.
    pub(super) fn keep(&self, history: &mut History, message: Message, stamp: u64) {
        if let Some(kept) = &self.kept {
            kept.used.store(stamp, Relaxed);
        }
        history.push(message, stamp);
    }
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
        let named = ignore_poison(self.named.read());
        named.get(name).map(|found| found.0.clone())
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
        let mut named = self.write();
        if let Some(ByName(room)) = named.get(name).filter(|found| is_there(&found.0)) {
            return Ok(room.clone());
        }
        let setup = self.setup.get().ok_or(JoinErrorReason::Closed)?;
        let mut deserted = self.deserted();
        let bounds = setup.histories.find(name);
        let is_pinned = bounds.is_some_and(|bounds| bounds.pinned);
        // Those that have a pattern of their own are as many as the program has named.
        let is_full =
            |named: &RoomSet, deserted: &Deserted| named.len() - deserted.pinned >= setup.rooms_max;
        if !is_pinned && !named.contains(name) && is_full(&named, &deserted) {
            self.give_one_up(&mut named, &mut deserted, wanted);
            if is_full(&named, &deserted) {
                return Err(JoinErrorReason::Rooms);
            }
        }
        let name: Arc<str> = name.into();
        // What a room of this name may have kept before is not kept any more.
        let given_up = self.given_up.load(Relaxed);
        let history = bounds.map(|bounds| {
            History::new(bounds.messages_max, bounds.bytes_max).since_stamp(given_up)
        });
        let kept = history.map(|history| {
            Arc::new(RoomHistory {
                history: Mutex::new(history),
                turns: IdTurns::default(),
                used: AtomicU64::new(0),
            })
        });
        let room = RoomEntry {
            members: hub.new_room(name, kept.is_some()),
            kept,
        };
        if is_pinned {
            deserted.pinned += 1;
        } else if room.kept.is_some() && room.members.enqueue() {
            // Whoever has asked for it may never come in.
            deserted.unused.push_back(room.members.name.clone());
        }
        // One of the same name that is no more gives way.
        named.replace(ByName(room.clone()));
        Ok(room)
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

    /// Locked behind the names. Nobody may wait who holds it.
    fn deserted(&self) -> MutexGuard<'_, Deserted> {
        lock(&self.deserted)
    }

    /// A room is no more: its name is free, unless another has it already.
    pub(super) fn forget(&self, room: &engine::Room) {
        let mut named = self.write();
        if named
            .get(&*room.name)
            .is_some_and(|other| std::ptr::eq(&*other.0.members, room))
        {
            named.remove(&*room.name);
            // After a rush, give back what it took.
            if named.capacity() > 1024 && named.len() < named.capacity() / 8 {
                named.shrink_to_fit();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        let named = ignore_poison(self.named.read());
        named.len()
    }

    fn write(&self) -> RwLockWriteGuard<'_, RoomSet> {
        ignore_poison(self.named.write())
    }

    /// There are as many rooms as there may be: one that nobody is in, and that only keeps messages, is given up. First those
    /// that have nothing to keep: names that somebody has made up take no one's messages. Then, if another is to keep a
    /// message, the one that was not used for longest. Looks at few rooms, however many there are.
    #[expect(
        clippy::mutable_key_type,
        reason = "the name, by which they are found, never changes"
    )]
    fn give_one_up(&self, named: &mut RoomSet, deserted: &mut Deserted, wanted: Wanted) {
        for _ in 0..LOOKED_AT_MAX {
            let Some(name) = deserted.unused.pop_front() else {
                break;
            };
            let Some(room) = still_deserted(named, &name) else {
                continue;
            };
            if room.used() > 0 {
                deserted.kept.push_back(name);
            } else if self.give_up(named, &room) {
                return;
            }
        }
        if wanted == Wanted::ToJoin {
            return;
        }
        let mut least: Option<(Arc<str>, RoomEntry)> = None;
        for _ in 0..LOOKED_AT_MAX.min(deserted.kept.len()) {
            let Some(name) = deserted.kept.pop_front() else {
                break;
            };
            let Some(room) = still_deserted(named, &name) else {
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
        if let Some((_, room)) = least {
            self.give_up(named, &room);
        }
    }

    /// Returns whether the room is no more. If not, somebody is in it, who enqueues it when it is empty.
    #[expect(
        clippy::mutable_key_type,
        reason = "the name, by which they are found, never changes"
    )]
    fn give_up(&self, named: &mut RoomSet, room: &RoomEntry) -> bool {
        room.members.dequeue();
        // Whoever is about to publish to it has done so, or will find that it is no more.
        let history = room.history();
        let given_up = room.members.give_up();
        if given_up {
            self.given_up.fetch_max(room.used(), Relaxed);
            named.remove(&*room.members.name);
        }
        drop(history);
        given_up
    }
}

/// The room of that name, if nobody is in it. If somebody is, it is in no queue any more.
#[expect(
    clippy::mutable_key_type,
    reason = "the name, by which they are found, never changes"
)]
fn still_deserted(named: &RoomSet, name: &str) -> Option<RoomEntry> {
    let ByName(room) = named.get(name)?;
    if !room.members.is_deserted() {
        room.members.dequeue();
        // Somebody may have left it at this moment, who has found it in the queue still.
        if !(room.members.is_deserted() && room.members.enqueue()) {
            return None;
        }
    }
    Some(room.clone())
}

#[cfg(test)]
#[path = "rooms_tests.rs"]
mod tests;
