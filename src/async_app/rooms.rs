//! Which rooms there are, by name, and what they keep.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use super::history::{History, HistoryPatterns};
use crate::atomic::AtomicU64;
use crate::engine::{self, Hub};
use crate::error::JoinErrorReason;
use crate::message::Message;

/// Longest name of a room, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// From names to rooms. A room is here while anybody is in it, or while it keeps messages.
#[derive(Default)]
pub(super) struct Rooms {
    named: RwLock<Named>,
    /// Told once, by the app that starts.
    setup: OnceLock<Setup>,
    /// Messages that were ever kept, in all rooms.
    stamps: Mutex<u64>,
    /// The last stamp of any room that was given up, with what it kept.
    given_up: AtomicU64,
    /// When rooms to give up are looked for.
    search: Mutex<Search>,
}

type Named = HashSet<ByName>;

struct Setup {
    rooms_max: usize,
    histories: HistoryPatterns,
}

/// A room, and what it keeps. Clones are of the same.
#[derive(Clone)]
pub(super) struct Room {
    pub(super) members: Arc<engine::Room>,
    kept: Option<Arc<Kept>>,
}

struct Kept {
    history: Mutex<History>,
    /// The stamp of the last message it was to keep; 0 if there never was one.
    used: AtomicU64,
}

/// Found by its name, which it has itself: many rooms have few members.
struct ByName(Room);

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

impl Room {
    /// What it keeps, if it keeps anything. Nobody may wait, or call user code, who holds it.
    pub(super) fn history(&self) -> Option<MutexGuard<'_, History>> {
        let history = &self.kept.as_ref()?.history;
        Some(history.lock().unwrap_or_else(PoisonError::into_inner))
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

impl Rooms {
    pub(super) fn set_up(&self, rooms_max: usize, histories: HistoryPatterns) {
        let setup = Setup {
            rooms_max,
            histories,
        };
        let _ = self.setup.set(setup);
    }

    pub(super) fn find(&self, name: &str) -> Option<Room> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.get(name).map(|found| found.0.clone())
    }

    /// The room of that name, if it is there, or else is to keep what it is sent.
    pub(super) fn find_to_send(&self, hub: &Hub, name: &str) -> Option<Room> {
        self.find(name).or_else(|| {
            let setup = self.setup.get()?;
            let keeps = name.len() <= NAME_BYTES_MAX && setup.histories.find(name).is_some();
            keeps.then(|| self.find_or_make(hub, name).ok())?
        })
    }

    /// The room of that name, which is made if there is none.
    pub(super) fn find_or_make(&self, hub: &Hub, name: &str) -> Result<Room, JoinErrorReason> {
        if name.len() > NAME_BYTES_MAX {
            return Err(JoinErrorReason::NameTooLong);
        }
        let is_there = |room: &Room| !room.members.is_retired();
        if let Some(room) = self.find(name).filter(is_there) {
            return Ok(room);
        }
        let mut named = self.write();
        if let Some(ByName(room)) = named.get(name).filter(|found| is_there(&found.0)) {
            return Ok(room.clone());
        }
        let setup = self.setup.get().ok_or(JoinErrorReason::Closed)?;
        if !named.contains(name) && named.len() >= setup.rooms_max {
            // Others don't keep anything, and are gone when they are empty.
            if setup.histories.any() {
                self.give_up_some(&mut named);
            }
            if named.len() >= setup.rooms_max {
                return Err(JoinErrorReason::Rooms);
            }
        }
        let name: Arc<str> = name.into();
        let bounds = setup.histories.find(&name);
        // What a room of this name may have kept before is not kept any more.
        let given_up = self.given_up.load(Relaxed);
        let history = bounds.map(|bounds| {
            History::new(bounds.messages_max, bounds.bytes_max).since_stamp(given_up)
        });
        let kept = history.map(|history| {
            Arc::new(Kept {
                history: Mutex::new(history),
                used: AtomicU64::new(0),
            })
        });
        let room = Room {
            members: hub.new_room(name, kept.is_some()),
            kept,
        };
        // One of the same name that is no more gives way.
        named.replace(ByName(room.clone()));
        Ok(room)
    }

    /// The last stamp that was given. Locked behind a room's history, by whoever publishes what is to be kept: so stamps are
    /// in the order of what is sent. Nobody may wait who holds it.
    pub(super) fn stamps(&self) -> MutexGuard<'_, u64> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
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
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.len()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Named> {
        self.named.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are as many rooms as there may be: of those that nobody is in, and that only keep messages, some that were
    /// not used for longest are given up, and before them those that have nothing to keep: names that somebody has made
    /// up take no one's messages. Several at once, so that it is not all there is to do.
    #[expect(
        clippy::mutable_key_type,
        reason = "the name, by which they are found, never changes"
    )]
    fn give_up_some(&self, named: &mut Named) {
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if !search.is_due(now) {
            return;
        }
        let wanted = named.len().div_ceil(SHARE);
        let mut empty: Vec<(u64, Arc<str>)> = named
            .iter()
            .filter(|named| named.0.members.is_deserted())
            .map(|named| (named.0.used(), named.0.members.name.clone()))
            .collect();
        let count = wanted.min(empty.len());
        search.has_found(count, named.len(), now);
        empty.sort_unstable_by_key(|&(used, _)| Reverse(used));
        for (_, name) in empty.split_off(empty.len() - count) {
            let Some(ByName(room)) = named.get(&*name) else {
                continue;
            };
            let room = room.clone();
            // Whoever is about to publish to it has done so, or will find that it is no more.
            let _history = room.history();
            if room.members.give_up() {
                self.given_up.fetch_max(room.used(), Relaxed);
                named.remove(&*name);
            }
        }
    }
}

/// So much of all rooms is given up at once, if there is as much.
const SHARE: usize = 16;

/// Fewer rooms are looked through in no time.
const FEW_ROOMS: usize = 4096;

const SEARCH_PAUSE: Duration = Duration::from_millis(100);

/// Everybody who sends to a room waits while all rooms are looked through. Where that has found little, it is not done
/// again for each client that would like to join another.
#[derive(Default)]
struct Search {
    not_before: Option<Instant>,
}

impl Search {
    fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|not_before| not_before <= now)
    }

    fn has_found(&mut self, count: usize, of: usize, now: Instant) {
        let pauses = of > FEW_ROOMS && count < of.div_ceil(SHARE);
        self.not_before = pauses.then(|| now + SEARCH_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rooms_are_not_looked_through_again_and_again_where_there_is_little_to_find() {
        let now = Instant::now();
        for (count, of, pauses) in [
            (0, FEW_ROOMS, false),
            (1, FEW_ROOMS, false),
            (0, FEW_ROOMS + 1, true),
            (1, 100_000, true),
            (6_249, 100_000, true),
            (6_250, 100_000, false),
        ] {
            let mut search = Search::default();
            assert!(search.is_due(now));
            search.has_found(count, of, now);
            assert_eq!(!search.is_due(now), pauses, "{count} of {of}");
            assert!(search.is_due(now + SEARCH_PAUSE));
        }
    }
}
