//! The rooms by name, in stripes with a lock each.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{RwLock, RwLockWriteGuard};

use super::room_entry::RoomEntry;
use crate::engine;
use crate::sync::ignore_poison;

/// A shard that adds or removes a room waits for one stripe only, and at most while that stripe grows: with 1,000,000
/// rooms, while some 16,000 entries move.
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

/// A room that is hashed by its own name, so that the name is stored once.
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

/// One locked stripe.
pub(super) struct Stripe<'a>(RwLockWriteGuard<'a, HashSet<ByName>>);

impl Stripe<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&RoomEntry> {
        self.0.get(name).map(|ByName(room)| room)
    }

    /// Inserts a room in place of one of the same name, if there is one.
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

    /// Removes a room, unless its name belongs to another by now. Returns whether it was here.
    pub(super) fn remove(&self, room: &engine::SharedRoom) -> bool {
        let Stripe(mut names) = self.write(&room.name);
        let is_here = names
            .get(&*room.name)
            .is_some_and(|ByName(other)| std::ptr::eq(&*other.members, room));
        if is_here {
            names.remove(&*room.name);
            // Release the memory of a burst of rooms.
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
