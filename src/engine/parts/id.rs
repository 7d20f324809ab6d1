//! The identity of a connection.

use std::fmt;

/// Identifies a connection of an app. Ids are unique in one run of the app, and never reused.
///
/// Handlers get it from [`AsyncStream::id`](crate::AsyncStream::id); any thread can then reach the connection with
/// [`AsyncSender::send_to`](crate::AsyncSender::send_to) and [`AsyncSender::close`](crate::AsyncSender::close).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(crate) shard: u16,
    pub(crate) key: Key,
}

impl ConnectionId {
    /// Names no connection.
    pub(crate) const NOBODY: Self = Self {
        shard: u16::MAX,
        key: Key {
            slot: u32::MAX,
            generation: u32::MAX,
        },
    };

    pub(crate) fn key(self) -> Key {
        self.key
    }
}

/// A slot on a shard, and the generation of the connection in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}-{}",
            self.shard, self.key.slot, self.key.generation
        )
    }
}
