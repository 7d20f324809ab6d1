//! A slab whose keys are never used twice.

use crate::engine::parts::id::Key;
use crate::engine::parts::token::Layout;

/// Values in reusable places. A place counts its owners, so a key outlives its value without harm.
pub(crate) struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    len: usize,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// What one takes, whether it is used or not.
    #[cfg(all(test, not(loom)))]
    pub(crate) const PLACE_BYTES: usize = size_of::<Place<T>>();

    pub(crate) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The key that [`Slots::insert`] will give next.
    pub(crate) fn next_key(&self) -> Key {
        match self.free.last() {
            Some(&slot) => Key {
                slot,
                generation: self.places[slot as usize].generation,
            },
            None => Key {
                slot: u32::try_from(self.places.len()).expect("connections_max fits into a u32"),
                generation: 0,
            },
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        let key = self.next_key();
        if self.free.pop().is_some() {
            self.places[key.slot as usize].value = Some(value);
        } else {
            self.places.push(Place {
                generation: key.generation,
                value: Some(value),
            });
        }
        self.len += 1;
        key
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let place = self.places.get_mut(slot as usize)?;
        let value = place.value.take()?;
        self.len -= 1;
        // A place whose generations are used up is given up, so that no key repeats.
        if let Some(next) = place.generation.checked_add(1) {
            place.generation = next;
            self.free.push(slot);
        }
        Some(value)
    }

    pub(crate) fn key(&self, slot: u32) -> Option<Key> {
        let place = self.places.get(slot as usize)?;
        place.value.as_ref()?;
        Some(Key {
            slot,
            generation: place.generation,
        })
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.places.get(slot as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.places.get_mut(slot as usize)?.value.as_mut()
    }

    /// The slot of a key, if its value is still there.
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        let place = self.places.get(key.slot as usize)?;
        (place.generation == key.generation && place.value.is_some()).then_some(key.slot)
    }

    /// The slot of the value whose key has this token.
    pub(crate) fn find_token(&self, token: usize) -> Option<u32> {
        self.find_packed::<{ usize::BITS }>(token as u64)
    }

    /// The same, with tokens of any width.
    fn find_packed<const WIDTH: u32>(&self, token: u64) -> Option<u32> {
        let slot = Layout::<WIDTH>::slot(token);
        (Layout::<WIDTH>::pack(self.key(slot)?) == Some(token)).then_some(slot)
    }

    /// All slots in use.
    pub(crate) fn used(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.places)
            .filter_map(|(slot, place)| place.value.is_some().then_some(slot))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_value_finds_nothing_even_when_its_place_is_used_again() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first.slot), Some('a'));
        assert_eq!(slots.find(first), None);
        let second = slots.insert('b');
        assert_eq!(second.slot, first.slot);
        assert_ne!(second, first);
        assert_eq!(slots.find(first), None);
        assert_eq!(slots.find(second), Some(second.slot));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.used(), [second.slot]);
    }

    #[test]
    fn a_place_whose_generations_are_used_up_is_not_used_again() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        slots.places[0].generation = u32::MAX;
        slots.remove(first.slot);
        assert_eq!(slots.insert('b').slot, 1);
    }

    fn tokens_find_the_current_owner_of_a_slot<const WIDTH: u32>() {
        let mut slots = Slots::new();
        slots.insert('z');
        let token = |key| Layout::<WIDTH>::pack(key).unwrap();
        let mut stale = Vec::new();
        for _ in 0..1000 {
            let key = slots.insert('a');
            assert_eq!(key.slot, 1);
            assert_eq!(slots.find_packed::<WIDTH>(token(key)), Some(1));
            for &stale in &stale {
                assert_eq!(slots.find_packed::<WIDTH>(stale), None);
            }
            stale.push(token(key));
            slots.remove(1);
            assert_eq!(slots.find_packed::<WIDTH>(token(key)), None);
        }
    }

    #[test]
    fn tokens_of_64_bits_find_the_current_owner_of_a_slot() {
        tokens_find_the_current_owner_of_a_slot::<64>();
    }

    #[test]
    fn tokens_of_32_bits_find_the_current_owner_of_a_slot() {
        tokens_find_the_current_owner_of_a_slot::<32>();
    }

    #[test]
    fn tokens_find_an_owner_of_a_late_generation() {
        let mut slots = Slots::new();
        slots.insert('a');
        slots.places[0].generation = 3_000_000_000;
        let key = slots.key(0).unwrap();
        assert_eq!(slots.find_token(key.token().unwrap()), Some(0));
        let token = Layout::<32>::pack(key).unwrap();
        assert_eq!(slots.find_packed::<32>(token), Some(0));
    }

    #[test]
    fn tokens_of_slots_that_do_not_exist_find_nothing() {
        let mut slots = Slots::new();
        slots.insert('a');
        for token in [1, 5 << 22, u64::from(u32::MAX), u64::from(u32::MAX) - 1] {
            assert_eq!(slots.find_packed::<32>(token), None, "{token}");
        }
        assert_eq!(slots.find_token(usize::MAX), None);
        assert_eq!(slots.find_token(usize::MAX - 1), None);
    }
}
