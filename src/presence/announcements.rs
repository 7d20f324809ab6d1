//! The changes of this node's members that the program's room handler has not been told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::member::Member;

type Of = (Arc<str>, Member);

/// Members whose presence may differ from what the handler was told, in the order in which that began. A member is here once, and
/// only while it differs, so a handler that takes long makes this no longer than the number of members.
#[derive(Default)]
pub(super) struct Announcements {
    queue: BTreeMap<u64, Of>,
    numbers: HashMap<Of, u64>,
    last: u64,
}

impl Announcements {
    pub(super) fn insert(&mut self, room: &Arc<str>, member: &Member) {
        let of = (room.clone(), member.clone());
        self.numbers.entry(of).or_insert_with_key(|of| {
            self.last += 1;
            self.queue.insert(self.last, of.clone());
            self.last
        });
    }

    pub(super) fn remove(&mut self, room: &Arc<str>, member: &Member) {
        if let Some(number) = self.numbers.remove(&(room.clone(), member.clone())) {
            self.queue.remove(&number);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Of> {
        let (_, of) = self.queue.pop_first()?;
        self.numbers.remove(&of);
        Some(of)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
