//! The connections of each user, and their limit.
//!
//! The program names the user in the verdict on a handshake. A connection counts from the verdict on, so simultaneous
//! handshakes can't exceed the limit, and is listed once it is open.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound::{Excluded, Included};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::{Key, LocalId};
use crate::protocol::close::CloseCode;
use crate::sync::lock;

/// Locks for disjoint sets of users, as in `async_app::directory`: a shard waits for one of them only.
const STRIPES: usize = 64;

/// Most connections that are copied at a time while a stripe is locked.
const COPIED_MAX: usize = 256;

/// The code and reason that a connection is closed with.
pub(crate) type CloseReason = (CloseCode, Box<str>);

pub(crate) struct Users {
    connections_max: usize,
    /// The users, by their hash.
    stripes: [Mutex<UserStripe>; STRIPES],
    hasher: RandomState,
}

#[derive(Default)]
struct UserStripe {
    users: HashMap<Arc<str>, User>,
    /// The open connections of the stripe's users. Those of one user are adjacent.
    open: BTreeMap<(Arc<str>, LocalId), Open>,
}

/// A user with connections or accepted handshakes.
#[derive(Default)]
struct User {
    connections: usize,
    /// How often all of the user's connections were closed.
    closings: u64,
    /// The code and reason of the last time.
    closed_with: Option<Box<CloseReason>>,
}

#[derive(Clone, Copy)]
struct Open {
    /// The user's `closings` when the handshake was accepted.
    closings: u64,
    is_stream: bool,
}

/// Counts a connection for a user until it is dropped.
pub(crate) struct UserSlot {
    users: Arc<Users>,
    user: Arc<str>,
    closings: u64,
    /// `None` until the connection is open.
    id: Option<LocalId>,
}

impl Users {
    pub(crate) fn new(connections_max: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            connections_max: connections_max.unwrap_or(usize::MAX),
            stripes: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        })
    }

    fn stripe(&self, user: &str) -> MutexGuard<'_, UserStripe> {
        lock(&self.stripes[self.hasher.hash_one(user) as usize % STRIPES])
    }

    /// Counts a connection for a user. `None` if the user has as many as allowed.
    pub(crate) fn enter(self: &Arc<Self>, user: &str) -> Option<UserSlot> {
        let mut stripe = self.stripe(user);
        let known = stripe.users.get_key_value(user);
        if known.map_or(0, |(_, user)| user.connections) >= self.connections_max {
            return None;
        }
        // All connections of a user share one copy of the name.
        let name = known.map_or_else(|| Arc::from(user), |(name, _)| name.clone());
        let known = stripe.users.entry(name.clone()).or_default();
        known.connections += 1;
        Some(UserSlot {
            users: self.clone(),
            user: name,
            closings: known.closings,
            id: None,
        })
    }

    /// The open WebSocket connections of a user.
    pub(crate) fn connections_of(&self, user: &str) -> Vec<LocalId> {
        self.ids(user, |open| !open.is_stream)
    }

    /// Records that all connections of a user are closed, and returns the open ones, event streams included.
    /// Connections that were accepted and are not open yet learn of it when they open ([`UserSlot::open`]).
    pub(crate) fn close(&self, user: &str, code: CloseCode, reason: &str) -> Vec<LocalId> {
        let mut stripe = self.stripe(user);
        let Some(known) = stripe.users.get_mut(user) else {
            return Vec::new();
        };
        known.closings += 1;
        known.closed_with = Some(Box::new((code, reason.into())));
        let closings = known.closings;
        drop(stripe);
        // Connections that were accepted since stay open.
        self.ids(user, |open| open.closings < closings)
    }

    fn ids(&self, user: &str, is_wanted: impl Fn(Open) -> bool) -> Vec<LocalId> {
        let first = LocalId {
            shard: 0,
            key: Key {
                slot: 0,
                generation: 0,
            },
        };
        let name: Arc<str> = user.into();
        let last = (name.clone(), LocalId::NOBODY);
        let mut from = Included((name, first));
        let mut ids = Vec::new();
        loop {
            let stripe = self.stripe(user);
            let mut copied = 0;
            let mut seen = None;
            let range = (from.as_ref(), Included(&last));
            for ((_, id), open) in stripe.open.range::<(Arc<str>, LocalId), _>(range) {
                if copied == COPIED_MAX {
                    break;
                }
                copied += 1;
                seen = Some(*id);
                ids.extend(is_wanted(*open).then_some(*id));
            }
            drop(stripe);
            match seen {
                Some(id) if copied == COPIED_MAX => from = Excluded((last.0.clone(), id)),
                _ => return ids,
            }
        }
    }

    /// The number of counted connections of all users, and of the open ones among them.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn counted(&self) -> (usize, usize) {
        let mut counted = (0, 0);
        for stripe in &self.stripes {
            let stripe = lock(stripe);
            assert!(stripe.users.values().all(|user| user.connections > 0));
            let connections: usize = stripe.users.values().map(|user| user.connections).sum();
            counted = (counted.0 + connections, counted.1 + stripe.open.len());
        }
        counted
    }
}

impl UserSlot {
    pub(crate) fn user(&self) -> Arc<str> {
        self.user.clone()
    }

    /// Lists the connection, which is open now. Returns a close reason if the user's connections were closed since its
    /// handshake was accepted.
    pub(crate) fn open(&mut self, id: LocalId, encoding: Encoding) -> Option<CloseReason> {
        self.id = Some(id);
        let open = Open {
            closings: self.closings,
            is_stream: encoding == Encoding::Events,
        };
        let mut stripe = self.users.stripe(&self.user);
        stripe.open.insert((self.user.clone(), id), open);
        let known = stripe.users.get(&self.user)?;
        let is_closed = known.closings != self.closings;
        known.closed_with.as_deref().filter(|_| is_closed).cloned()
    }
}

impl Drop for UserSlot {
    fn drop(&mut self) {
        let mut stripe = self.users.stripe(&self.user);
        if let Some(id) = self.id {
            stripe.open.remove(&(self.user.clone(), id));
        }
        if let Some(known) = stripe.users.get_mut(&self.user) {
            known.connections -= 1;
            if known.connections == 0 {
                stripe.users.remove(&self.user);
                let users = &mut stripe.users;
                // Gives back memory after a peak.
                if users.capacity() > 64 && users.len() < users.capacity() / 8 {
                    users.shrink_to_fit();
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn id(slot: u32) -> LocalId {
        let mut id = LocalId::NOBODY;
        id.shard = (slot % 3) as u16;
        (id.key.slot, id.key.generation) = (slot, 0);
        id
    }

    fn opened(users: &Arc<Users>, user: &str, slot: u32) -> UserSlot {
        let mut entered = users.enter(user).unwrap();
        assert_eq!(entered.open(id(slot), Encoding::Frames), None);
        entered
    }

    #[test]
    fn user_at_the_limit_is_refused_until_a_slot_is_dropped() {
        let users = Users::new(Some(2));
        let first = users.enter("ada").unwrap();
        let second = opened(&users, "ada", 1);
        assert!(users.enter("ada").is_none());
        assert!(users.enter("grace").is_some());
        drop(first);
        let third = users.enter("ada").unwrap();
        drop((second, third));
        assert_eq!(users.counted(), (0, 0));
        assert!(Users::new(Some(0)).enter("ada").is_none());
    }

    #[test]
    fn connections_of_a_user_lists_open_ones_only() {
        let users = Users::new(None);
        let slots: Vec<_> = (0..1_000).map(|n| opened(&users, "ada", n)).collect();
        let others: Vec<_> = ["ad", "adam", "ada "]
            .iter()
            .zip(2_000..)
            .map(|(user, n)| opened(&users, user, n))
            .collect();
        let mut stream = users.enter("ada").unwrap();
        stream.open(id(5_000), Encoding::Events);
        let _pending = users.enter("ada").unwrap();
        let mut ids = users.connections_of("ada");
        ids.sort_unstable_by_key(|id| id.key.slot);
        assert_eq!(ids, (0..1_000).map(id).collect::<Vec<_>>());
        assert_eq!(users.close("ada", CloseCode::NORMAL, "").len(), 1_001);
        drop(slots);
        assert_eq!(users.connections_of("ada"), []);
        assert_eq!(users.connections_of("adam"), [id(2_001)]);
        drop(others);
    }

    #[test]
    fn accepted_connection_is_closed_when_it_opens_after_a_close() {
        let users = Users::new(None);
        let mut pending = users.enter("ada").unwrap();
        assert_eq!(users.close("ada", CloseCode::POLICY_VIOLATION, "out"), []);
        let new = opened(&users, "ada", 2);
        let closed = pending.open(id(1), Encoding::Frames);
        assert_eq!(closed, Some((CloseCode::POLICY_VIOLATION, "out".into())));
        // The connection that opened since is closed only by the next call.
        assert_eq!(users.close("ada", CloseCode::NORMAL, "").len(), 2);
        drop((pending, new));
        assert_eq!(users.counted(), (0, 0));
    }
}
