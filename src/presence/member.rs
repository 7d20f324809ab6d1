//! A member of a room, and what is known about it.

use std::sync::Arc;

use bytes::Bytes;

/// A connection of some node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionKey {
    pub(crate) node: u32,
    pub(crate) shard: u16,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Whom a room counts as one: a user with all connections, or a connection without a user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Member {
    User(Arc<str>),
    Connection(ConnectionKey),
}

/// What is known about a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fact {
    /// 0 while the member may come back.
    pub(crate) connections: u32,
    pub(crate) state: Bytes,
    /// When the state was set, in microseconds since 1970; 0 if it was not.
    pub(crate) set_at: u64,
}

impl Fact {
    /// Whether the state was set after another one of that time. States of the same time have any order, as long as all nodes use it.
    pub(super) fn is_later_than(&self, set_at: u64, state: &Bytes) -> bool {
        (self.set_at, &self.state) > (set_at, state)
    }

    /// Adds what another node knows about the same member. The state that was set later wins.
    pub(super) fn merge(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        if other.is_later_than(self.set_at, &self.state) {
            self.set_at = other.set_at;
            self.state = other.state.clone();
        }
    }
}

/// About the memory that a member takes in a table, without the text of the user and the state.
pub(super) const MEMBER_BYTES: usize = 128;

impl Member {
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::User(user) => MEMBER_BYTES + user.len(),
            Self::Connection(_) => MEMBER_BYTES,
        }
    }
}
