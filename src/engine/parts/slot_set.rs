//! A set of slots that is iterated often: its members are contiguous, and are removed without a search.

/// A set of slots: its members in a row, and the position of each.
#[derive(Default)]
pub(crate) struct SlotSet {
    slots: Vec<u32>,
    /// Positions by slot; meaningless for slots that are not members.
    positions: Vec<u32>,
}

impl SlotSet {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All members, in arbitrary order.
    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.slots
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.position(slot).is_some()
    }

    fn position(&self, slot: u32) -> Option<usize> {
        let position = *self.positions.get(slot as usize)? as usize;
        (self.slots.get(position) == Some(&slot)).then_some(position)
    }

    pub(crate) fn insert(&mut self, slot: u32) {
        if self.contains(slot) {
            return;
        }
        if self.positions.len() <= slot as usize {
            self.positions.resize(slot as usize + 1, 0);
        }
        self.positions[slot as usize] = self.slots.len() as u32;
        self.slots.push(slot);
    }

    /// Removes a slot. Returns whether it was a member.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        let Some(position) = self.position(slot) else {
            return false;
        };
        self.slots.swap_remove(position);
        if let Some(&moved) = self.slots.get(position) {
            self.positions[moved as usize] = position as u32;
        }
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn slot_set_after_any_changes_is_exact() {
        let mut set = SlotSet::default();
        let mut model = BTreeSet::new();
        for step in 0..5_000_u32 {
            let slot = step * 7_919 % 61;
            if step * 31 % 7 < 4 {
                set.insert(slot);
                model.insert(slot);
            } else {
                assert_eq!(set.remove(slot), model.remove(&slot));
            }
            let mut members = set.as_slice().to_vec();
            members.sort_unstable();
            assert!(members.iter().eq(&model));
            assert_eq!(set.len(), model.len());
            assert!((0..70).all(|slot| set.contains(slot) == model.contains(&slot)));
        }
    }
}
