//! A slab: values in reusable entries, with keys that are never reused.

use crate::engine::parts::id::Key;
use crate::engine::parts::token::Layout;

/// A slab of values. Each entry counts its reuses (its generation), so a key may outlive its value: it then finds
/// nothing, also when the entry was reused.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    len: usize,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// The size of one entry, used or not.
    #[cfg(all(test, not(loom)))]
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry<T>>();

    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The key that [`Slab::insert`] will return next.
    pub(crate) fn next_key(&self) -> Key {
        match self.free.last() {
            Some(&slot) => Key {
                slot,
                generation: self.entries[slot as usize].generation,
            },
            None => Key {
                slot: u32::try_from(self.entries.len()).expect("connections_max fits into a u32"),
                generation: 0,
            },
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let key = self.next_key();
        if self.free.pop().is_some() {
            self.entries[key.slot as usize].value = Some(value);
        } else {
            self.entries.push(Entry {
                generation: key.generation,
                value: Some(value),
            });
        }
        self.len += 1;
        key
    }

    /// Removes and returns the value of a key, if it is still there.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        self.len -= 1;
        // An entry that has reached the last generation is never reused, so no key repeats.
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(key.slot);
        }
        Some(value)
    }

    /// The value of a key, if it is still there.
    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        let value = entry.value.as_ref();
        value.filter(|_| entry.generation == key.generation)
    }

    /// The value of a key, mutably, if it is still there.
    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        entry.value.as_mut()
    }

    /// The value in a slot, and its key. For lists that hold a slot only while its value is there.
    #[inline]
    pub(crate) fn at(&self, slot: u32) -> Option<(Key, &T)> {
        let entry = self.entries.get(slot as usize)?;
        let generation = entry.generation;
        Some((Key { slot, generation }, entry.value.as_ref()?))
    }

    /// The value in a slot, mutably, and its key. For lists that hold a slot only while its value is there.
    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<(Key, &mut T)> {
        let entry = self.entries.get_mut(slot as usize)?;
        let generation = entry.generation;
        Some((Key { slot, generation }, entry.value.as_mut()?))
    }

    /// The value whose key has this token, mutably.
    pub(crate) fn by_token_mut(&mut self, token: usize) -> Option<(Key, &mut T)> {
        self.by_packed_mut::<{ usize::BITS }>(token as u64)
    }

    /// The value whose key has this token of `WIDTH` bits: tests use the width of 32-bit systems.
    fn by_packed_mut<const WIDTH: u32>(&mut self, token: u64) -> Option<(Key, &mut T)> {
        self.at_mut(Layout::<WIDTH>::slot(token))
            .filter(|&(key, _)| Layout::<WIDTH>::pack(key) == Some(token))
    }

    /// The number of slots, occupied or not.
    pub(crate) fn slots_len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The values in at most `count` slots from one on, and their keys.
    pub(crate) fn slots(&self, first: u32, count: usize) -> impl Iterator<Item = (Key, &T)> {
        let entries = self.entries.iter().skip(first as usize).take(count);
        (first..).zip(entries).filter_map(|(slot, entry)| {
            let generation = entry.generation;
            Some((Key { slot, generation }, entry.value.as_ref()?))
        })
    }

    /// The keys of all values.
    pub(crate) fn keys(&self) -> Vec<Key> {
        (0u32..)
            .zip(&self.entries)
            .filter(|(_, entry)| entry.value.is_some())
            .map(|(slot, entry)| Key {
                slot,
                generation: entry.generation,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_a_removed_value_finds_nothing_in_a_reused_entry() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(first), None);
        let second = slab.insert('b');
        assert_eq!(second.slot, first.slot);
        assert_ne!(second, first);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.get(second), Some(&'b'));
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.keys(), [second]);
    }

    #[test]
    fn entry_at_the_last_generation_is_not_reused() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        slab.entries[0].generation = u32::MAX;
        slab.remove(first);
        assert_eq!(slab.insert('b').slot, 1);
    }

    #[test]
    fn slots_in_parts_yield_every_value_once() {
        let mut slab = Slab::new();
        let keys: Vec<Key> = (0..10).map(|n| slab.insert(n)).collect();
        for removed in [0, 3, 4, 9] {
            slab.remove(keys[removed]);
        }
        slab.insert(42);
        for part in [1, 3, 7, 100] {
            let starts = (0..slab.slots_len()).step_by(part);
            let all = starts.flat_map(|first| slab.slots(first, part));
            let all: Vec<(Key, i32)> = all.map(|(key, &value)| (key, value)).collect();
            let values: Vec<i32> = all.iter().map(|&(_, value)| value).collect();
            assert_eq!(values, [1, 2, 5, 6, 7, 8, 42]);
            assert!(
                all.iter()
                    .all(|&(key, value)| slab.get(key) == Some(&value))
            );
        }
    }

    fn tokens_find_the_current_owner_of_a_slot<const WIDTH: u32>() {
        let mut slab = Slab::new();
        slab.insert('z');
        let token = |key| Layout::<WIDTH>::pack(key).unwrap();
        let mut stale = Vec::new();
        for _ in 0..1000 {
            let key = slab.insert('a');
            assert_eq!(key.slot, 1);
            assert_eq!(
                slab.by_packed_mut::<WIDTH>(token(key)),
                Some((key, &mut 'a'))
            );
            for &stale in &stale {
                assert_eq!(slab.by_packed_mut::<WIDTH>(stale), None);
            }
            stale.push(token(key));
            slab.remove(key);
            assert_eq!(slab.by_packed_mut::<WIDTH>(token(key)), None);
        }
    }

    #[test]
    fn token_of_64_bits_finds_the_current_value_of_a_slot() {
        tokens_find_the_current_owner_of_a_slot::<64>();
    }

    #[test]
    fn token_of_32_bits_finds_the_current_value_of_a_slot() {
        tokens_find_the_current_owner_of_a_slot::<32>();
    }

    #[test]
    fn token_of_a_late_generation_finds_its_value() {
        let mut slab = Slab::new();
        slab.insert('a');
        slab.entries[0].generation = 3_000_000_000;
        let key = slab.keys()[0];
        assert_eq!(
            slab.by_token_mut(key.token().unwrap()),
            Some((key, &mut 'a'))
        );
        let token = Layout::<32>::pack(key).unwrap();
        assert_eq!(slab.by_packed_mut::<32>(token), Some((key, &mut 'a')));
    }

    #[test]
    fn token_of_a_missing_slot_finds_nothing() {
        let mut slab = Slab::new();
        slab.insert('a');
        for token in [1, 5 << 22, u64::from(u32::MAX), u64::from(u32::MAX) - 1] {
            assert_eq!(slab.by_packed_mut::<32>(token), None, "{token}");
        }
        assert_eq!(slab.by_token_mut(usize::MAX), None);
        assert_eq!(slab.by_token_mut(usize::MAX - 1), None);
    }
}
