//! Rooms by their names, in stripes with a lock each.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{RwLock, RwLockWriteGuard};

use super::room_entry::RoomEntry;
use crate::engine;
use crate::sync::ignore_poison;

/// A shard that makes or ends a room waits for one stripe only, and for no longer than that stripe takes to grow: with
/// 1,000,000 rooms, to move some 16,000 entries.
const STRIPES: usize = 64;

#[derive(Default)]
pub(super) struct RoomNames {
    hasher: RandomState,
    stripes: Stripes,
}

struct Stripes([RwLock<HashSet<ByName>>; STRIPES]);

impl Default for Stripes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| RwLock::default()))
    }
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

/// The rooms whose names share a stripe with one, locked.
pub(super) struct Stripe<'a>(RwLockWriteGuard<'a, HashSet<ByName>>);

impl Stripe<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&RoomEntry> {
        self.0.get(name).map(|ByName(room)| room)
    }

    /// Puts a room in the place of one of the same name, if there is one.
    pub(super) fn replace(&mut self, room: RoomEntry) {
        self.0.replace(ByName(room));
    }
}

impl RoomNames {
    fn stripe(&self, name: &str) -> &RwLock<HashSet<ByName>> {
        &self.stripes.0[self.hasher.hash_one(name) as usize % STRIPES]
    }

    pub(super) fn find(&self, name: &str) -> Option<RoomEntry> {
        let names = ignore_poison(self.stripe(name).read());
        names.get(name).map(|ByName(room)| room.clone())
    }

    pub(super) fn write(&self, name: &str) -> Stripe<'_> {
        Stripe(ignore_poison(self.stripe(name).write()))
    }

    /// Removes a room, unless its name is another's. Returns whether it was here.
    pub(super) fn remove(&self, room: &engine::Room) -> bool {
        let Stripe(mut names) = self.write(&room.name);
        let is_here = names
            .get(&*room.name)
            .is_some_and(|ByName(other)| std::ptr::eq(&*other.members, room));
        if is_here {
            names.remove(&*room.name);
            // Gives back the memory of a rush.
            if names.capacity() > 64 && names.len() < names.capacity() / 8 {
                names.shrink_to_fit();
            }
        }
        is_here
    }

    #[cfg(test)]
    pub(super) fn shares_stripe(&self, name: &str, other: &str) -> bool {
        std::ptr::eq(self.stripe(name), self.stripe(other))
    }

    pub(super) fn len(&self) -> usize {
        let stripes = self.stripes.0.iter();
        stripes.map(|names| ignore_poison(names.read()).len()).sum()
    }
}
