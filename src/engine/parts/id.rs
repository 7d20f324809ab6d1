//! The identities of connections and of message keys in the engine.

use std::fmt;
use std::num::NonZeroU64;

/// Identifies a connection of this engine. Ids are unique in one run of it, and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LocalId {
    pub(crate) shard: u16,
    pub(crate) key: Key,
}

impl LocalId {
    /// Names no connection.
    pub(crate) const NOBODY: Self = Self {
        shard: u16::MAX,
        key: Key {
            slot: u32::MAX,
            generation: u32::MAX,
        },
    };

    pub(crate) fn new(shard: u16, slot: u32, generation: u32) -> Self {
        let key = Key { slot, generation };
        Self { shard, key }
    }

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

/// The number of a key of a keyed room: of its messages that wait for a client, only the newest is sent. Numbers are unique in the
/// process, so that the keys of several rooms differ, and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConflationKey(NonZeroU64);

impl ConflationKey {
    /// The number of the key before which so many have been given numbers.
    pub(crate) const fn new(before: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(before))
    }
}

impl fmt::Display for LocalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}-{}",
            self.shard, self.key.slot, self.key.generation
        )
    }
}
