//! The rooms that a connection is in. Most of the time its shard has applied all of the connection's changes: a room
//! then takes one pointer.

use std::sync::Arc;

use crate::engine::model::room::SharedRoom;
use crate::engine::parts::small_set::{push, remove};

/// A connection's membership in a room.
pub(crate) struct Membership {
    pub(crate) room: Arc<SharedRoom>,
    /// Whether the connection has joined the room, and not left it.
    pub(crate) wanted: bool,
    /// The number of joins and leaves that the shard has not applied yet.
    pub(crate) pending: u32,
}

impl Membership {
    /// Whether the connection is a member as far as the shard knows.
    pub(crate) fn is_held(&self) -> bool {
        self.wanted != (self.pending % 2 == 1)
    }

    /// Whether the connection is a member, and its shard has applied all of its changes.
    fn is_settled(&self) -> bool {
        self.wanted && self.pending == 0
    }

    fn settled(room: Arc<SharedRoom>) -> Self {
        Self {
            room,
            wanted: true,
            pending: 0,
        }
    }
}

/// All of a connection's memberships, each room once.
#[derive(Default)]
pub(crate) enum Memberships {
    #[default]
    None,
    /// One room, the most frequent number. It takes no memory of its own.
    One(Membership),
    More(Box<More>),
}

#[derive(Default)]
pub(crate) struct More {
    /// Memberships without pending changes. The slice has no spare capacity.
    settled: Box<[Arc<SharedRoom>]>,
    /// Memberships with pending changes.
    changing: Box<[Membership]>,
}

impl Memberships {
    fn parts(&self) -> (&[Arc<SharedRoom>], &[Membership]) {
        match self {
            Self::None => (&[], &[]),
            Self::One(of) if of.is_settled() => (std::slice::from_ref(&of.room), &[]),
            Self::One(of) => (&[], std::slice::from_ref(of)),
            Self::More(more) => (&more.settled, &more.changing),
        }
    }

    /// The number of rooms that the connection has joined, and not left, without those that are not reported.
    pub(crate) fn wanted(&self) -> usize {
        let (settled, changing) = self.parts();
        let settled = settled.iter().filter(|room| room.is_reported());
        let changing = changing
            .iter()
            .filter(|of| of.wanted && of.room.is_reported());
        settled.count() + changing.count()
    }

    pub(crate) fn wants(&self, room: &Arc<SharedRoom>) -> bool {
        let (settled, changing) = self.parts();
        let is_it = |other: &Arc<SharedRoom>| Arc::ptr_eq(other, room);
        settled.iter().any(is_it) || changing.iter().any(|of| of.wanted && is_it(&of.room))
    }

    /// The rooms that the connection is a member of, as far as its shard knows.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Arc<SharedRoom>> {
        let (settled, changing) = self.parts();
        let changing = changing.iter().filter(|of| of.is_held());
        settled.iter().chain(changing.map(|of| &of.room))
    }

    /// Joins the room, or leaves it if the connection was a member. The shard has yet to apply the change.
    pub(crate) fn change(&mut self, room: &Arc<SharedRoom>) {
        let changed = |of: Option<Membership>| Membership {
            wanted: of.as_ref().is_none_or(|of| !of.wanted),
            pending: of.map_or(0, |of| of.pending) + 1,
            room: room.clone(),
        };
        match self {
            Self::None => *self = Self::One(changed(None)),
            Self::One(of) if Arc::ptr_eq(&of.room, room) => {
                of.wanted = !of.wanted;
                of.pending += 1;
            }
            _ => self.with_more(|more| {
                let of = more.take(room);
                more.put(changed(of));
            }),
        }
    }

    /// Records that the shard has applied one change. Returns whether one was pending: when the connection ends, all
    /// are forgotten.
    pub(crate) fn seen(&mut self, room: &Arc<SharedRoom>) -> bool {
        match self {
            Self::None => false,
            Self::One(of) if Arc::ptr_eq(&of.room, room) => {
                of.pending = of.pending.saturating_sub(1);
                if of.pending == 0 && !of.wanted {
                    *self = Self::None;
                }
                true
            }
            Self::One(_) => false,
            Self::More(_) => self.with_more(|more| {
                let Some(mut of) = more.take(room) else {
                    return false;
                };
                of.pending = of.pending.saturating_sub(1);
                if of.pending > 0 || of.wanted {
                    more.put(of);
                }
                true
            }),
        }
    }

    pub(crate) fn into_vec(mut self) -> Vec<Membership> {
        self.with_more(|more| {
            let settled = std::mem::take(&mut more.settled).into_iter();
            let mut all: Vec<Membership> = settled.map(Membership::settled).collect();
            all.extend(std::mem::take(&mut more.changing));
            all
        })
    }

    fn with_more<R>(&mut self, change: impl FnOnce(&mut More) -> R) -> R {
        let mut more = match std::mem::take(self) {
            Self::None => Box::default(),
            Self::One(of) => {
                let mut more = Box::<More>::default();
                more.put(of);
                more
            }
            Self::More(more) => more,
        };
        let result = change(&mut more);
        *self = match (more.settled.len(), more.changing.len()) {
            (0, 0) => Self::None,
            (1, 0) => Self::One(Membership::settled(remove(&mut more.settled, 0))),
            (0, 1) => Self::One(remove(&mut more.changing, 0)),
            _ => Self::More(more),
        };
        result
    }
}

impl More {
    fn put(&mut self, of: Membership) {
        match of.is_settled() {
            true => push(&mut self.settled, of.room),
            false => push(&mut self.changing, of),
        }
    }

    fn take(&mut self, room: &Arc<SharedRoom>) -> Option<Membership> {
        let is_it = |other: &Arc<SharedRoom>| Arc::ptr_eq(other, room);
        if let Some(at) = self.changing.iter().position(|of| is_it(&of.room)) {
            return Some(remove(&mut self.changing, at));
        }
        let at = self.settled.iter().position(is_it)?;
        Some(Membership::settled(remove(&mut self.settled, at)))
    }
}

impl FromIterator<Membership> for Memberships {
    /// Collects memberships, which must be of distinct rooms.
    fn from_iter<I: IntoIterator<Item = Membership>>(all: I) -> Self {
        let mut memberships = Self::None;
        memberships.with_more(|more| more.changing = all.into_iter().collect());
        memberships
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn rooms(count: u64) -> Vec<Arc<SharedRoom>> {
        let room = |number| Arc::new(SharedRoom::new(number, "room".into(), false, 1));
        (0..count).map(room).collect()
    }

    fn numbers<'a>(rooms: impl Iterator<Item = &'a Arc<SharedRoom>>) -> Vec<u64> {
        let mut numbers: Vec<u64> = rooms.map(|room| room.number()).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn memberships_change_at_once_and_at_the_shard_when_applied() {
        let rooms = rooms(2);
        let mut of = Memberships::default();
        // Joined, left and joined again; the shard applies one change after the other.
        for wanted in [true, false, true] {
            of.change(&rooms[0]);
            assert_eq!(of.wants(&rooms[0]), wanted);
            assert_eq!(of.wanted(), usize::from(wanted));
        }
        assert_eq!(numbers(of.held()), [0_u64; 0]);
        for held in [&[0][..], &[], &[0]] {
            assert!(of.seen(&rooms[0]));
            assert_eq!(numbers(of.held()), held);
        }
        assert!(!of.seen(&rooms[1]));
        assert!(matches!(of, Memberships::One(_)));
    }

    #[test]
    fn memberships_after_any_joins_and_leaves_are_exact() {
        let rooms = rooms(5);
        let mut of = Memberships::default();
        for (count, room) in (1..).zip(&rooms) {
            of.change(room);
            assert!(of.seen(room));
            assert_eq!(of.wanted(), count);
            assert_eq!(numbers(of.held()), (0..count as u64).collect::<Vec<_>>());
        }
        for (gone, room) in (1..).zip(&rooms) {
            of.change(room);
            assert!(!of.wants(room));
            assert_eq!(of.wanted(), 5 - gone);
            assert_eq!(numbers(of.held()).len(), 6 - gone);
            assert!(of.seen(room));
            assert_eq!(numbers(of.held()), (gone as u64..5).collect::<Vec<_>>());
        }
        assert!(matches!(of, Memberships::None));
        for room in rooms {
            assert_eq!(Arc::strong_count(&room), 1);
        }
    }

    #[test]
    fn memberships_taken_at_the_end_are_complete() {
        let rooms = rooms(3);
        let mut of = Memberships::default();
        rooms.iter().for_each(|room| of.change(room));
        of.seen(&rooms[1]);
        of.seen(&rooms[2]);
        of.change(&rooms[2]);
        let mut all: Vec<_> = of
            .into_vec()
            .into_iter()
            .map(|of| (of.room.number(), of.wanted, of.is_held()))
            .collect();
        all.sort_unstable();
        assert_eq!(all, [(0, true, false), (1, true, true), (2, false, true)]);
    }

    #[test]
    fn membership_in_one_room_allocates_nothing() {
        assert_eq!(
            size_of::<Memberships>(),
            size_of::<u64>() + size_of::<usize>()
        );
    }
}
