//! The identity of a connection in the engine.

use std::fmt;

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

impl fmt::Display for LocalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}-{}",
            self.shard, self.key.slot, self.key.generation
        )
    }
}
