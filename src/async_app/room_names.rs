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

pub(super) struct RoomNames {
    /// Makes it unknown to clients which names share a stripe.
    seed: u64,
    stripes: Stripes,
}

impl Default for RoomNames {
    fn default() -> Self {
        Self {
            seed: RandomState::new().hash_one(()),
            stripes: Stripes::default(),
        }
    }
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
        &self.stripes.0[stripe_of(self.seed, name)]
    }

    pub(super) fn find(&self, name: &str) -> Option<RoomEntry> {
        let names = ignore_poison(self.stripe(name).read());
        names.get(name).map(|ByName(room)| room.clone())
    }

    pub(super) fn write(&self, name: &str) -> Stripe<'_> {
        Stripe(ignore_poison(self.stripe(name).write()))
    }

    /// Removes a room, unless its name belongs to another by now. Returns whether it was here. If so, it calls `removed`
    /// before another room can have the name.
    pub(super) fn remove(&self, room: &engine::SharedRoom, removed: impl FnOnce()) -> bool {
        let Stripe(mut names) = self.write(&room.name);
        let is_here = names
            .get(&*room.name)
            .is_some_and(|ByName(other)| std::ptr::eq(&*other.members, room));
        if is_here {
            names.remove(&*room.name);
            removed();
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

/// Chooses the stripe of a name. The table of a stripe hashes the name again, and resists collisions; here they cost only
/// waiting for a lock, so a fast hash is enough.
fn stripe_of(seed: u64, name: &str) -> usize {
    // The golden ratio of 64 bits: odd, and without a pattern in its bits.
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let (chunks, rest) = name.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mix = |hash: u64, chunk: &[u8; 8]| {
        let mixed = (hash ^ u64::from_le_bytes(*chunk)).wrapping_mul(FACTOR);
        mixed ^ (mixed >> 32)
    };
    let hash = chunks.iter().chain([&last]).fold(seed, mix);
    // The highest bits depend on all bits of the name.
    (hash.wrapping_mul(FACTOR) >> (u64::BITS - STRIPES.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spread_over_all_stripes() {
        for seed in [0, 1, u64::MAX, 0x0123_4567_89AB_CDEF] {
            for pattern in [
                "{}",
                "room/{}",
                "a room with a rather long name, {}, and a suffix",
            ] {
                let mut counts = [0; STRIPES];
                for n in 0..64_000 {
                    let name = pattern.replace("{}", &n.to_string());
                    counts[stripe_of(seed, &name)] += 1;
                }
                let (least, most) = (counts.iter().min(), counts.iter().max());
                assert!(
                    least >= Some(&500) && most <= Some(&1_500),
                    "{pattern}: {counts:?}"
                );
            }
        }
    }

    #[test]
    fn stripe_depends_on_the_seed() {
        let stripes = |seed| (0..64).map(move |n: u32| stripe_of(seed, &n.to_string()));
        assert!(!stripes(1).eq(stripes(2)));
    }
}
