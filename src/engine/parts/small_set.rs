//! The set of a room's members. Most rooms are small, so a small set takes little memory.

use std::collections::HashSet;
use std::hash::Hash;

/// Largest set that is kept as a slice.
const FEW_MAX: usize = 16;

/// A set of keys, in arbitrary order.
pub(crate) struct Members<K>(MemberList<K>);

enum MemberList<K> {
    /// A slice without spare capacity.
    Few(Box<[K]>),
    #[expect(clippy::box_collection, reason = "so that few take two words")]
    Many(Box<HashSet<K>>),
}

impl<K> Default for Members<K> {
    fn default() -> Self {
        Self(MemberList::Few(Box::default()))
    }
}

impl<K: Copy + Eq + Hash> Members<K> {
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            MemberList::Few(few) => few.len(),
            MemberList::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn contains(&self, member: K) -> bool {
        match &self.0 {
            MemberList::Few(few) => few.contains(&member),
            MemberList::Many(many) => many.contains(&member),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = K> {
        let (few, many) = match &self.0 {
            MemberList::Few(few) => (Some(few), None),
            MemberList::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flat_map(|few| few.iter());
        few.chain(many.into_iter().flat_map(|many| many.iter()))
            .copied()
    }

    pub(crate) fn insert(&mut self, member: K) {
        match &mut self.0 {
            MemberList::Few(few) if few.contains(&member) => {}
            MemberList::Few(few) if few.len() < FEW_MAX => push(few, member),
            MemberList::Few(few) => {
                let all = few.iter().copied().chain([member]).collect();
                self.0 = MemberList::Many(Box::new(all));
            }
            MemberList::Many(many) => {
                many.insert(member);
            }
        }
    }

    pub(crate) fn remove(&mut self, member: K) {
        match &mut self.0 {
            MemberList::Few(few) => {
                if let Some(at) = few.iter().position(|one| *one == member) {
                    remove(few, at);
                }
            }
            MemberList::Many(many) => {
                many.remove(&member);
                // Gives back memory after a peak.
                if many.len() <= FEW_MAX / 2 {
                    self.0 = MemberList::Few(many.iter().copied().collect());
                } else if many.capacity() > 64 && many.len() < many.capacity() / 8 {
                    many.shrink_to_fit();
                }
            }
        }
    }
}

/// Appends to a slice that has no spare capacity.
pub(crate) fn push<T>(few: &mut Box<[T]>, new: T) {
    let mut list = std::mem::take(few).into_vec();
    list.reserve_exact(1);
    list.push(new);
    *few = list.into_boxed_slice();
}

pub(crate) fn remove<T>(few: &mut Box<[T]>, at: usize) -> T {
    let mut list = std::mem::take(few).into_vec();
    let removed = list.swap_remove(at);
    *few = list.into_boxed_slice();
    removed
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sorted(members: &Members<u32>) -> Vec<u32> {
        let mut all: Vec<u32> = members.iter().collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn members_after_any_changes_are_exact() {
        let mut members = Members::default();
        for count in 1..=100 {
            members.insert(count - 1);
            members.insert(count - 1);
            assert_eq!(sorted(&members), (0..count).collect::<Vec<_>>());
            assert_eq!(members.len(), count as usize);
        }
        for gone in 0..100 {
            assert!(members.contains(gone));
            members.remove(gone);
            members.remove(gone);
            assert!(!members.contains(gone));
            assert_eq!(sorted(&members), (gone + 1..100).collect::<Vec<_>>());
        }
        assert!(members.is_empty());
    }

    #[test]
    fn small_set_is_a_slice_again_after_a_peak() {
        let mut members: Members<u32> = Members::default();
        assert_eq!(size_of_val(&members), 2 * size_of::<usize>());
        (0..1_000).for_each(|member| members.insert(member));
        assert!(matches!(members.0, MemberList::Many(_)));
        (8..1_000).for_each(|member| members.remove(member));
        assert!(matches!(&members.0, MemberList::Few(few) if few.len() == 8));
    }
}
