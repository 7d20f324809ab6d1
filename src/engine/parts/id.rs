//! The identity of a connection.

use std::fmt;

/// Identifies a connection of an app. Ids are unique in one run of the app, and never reused. In a cluster, they are unique
/// among all nodes.
///
/// Handlers get it from [`AsyncStream::id`](crate::AsyncStream::id); any thread can then reach the connection with
/// [`AsyncSender::send_to`](crate::AsyncSender::send_to) and [`AsyncSender::close`](crate::AsyncSender::close).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(crate) shard: u16,
    pub(crate) key: Key,
    /// The last field, so that `NOBODY` is the last id in any order of nodes.
    pub(crate) node: NodeId,
}

impl ConnectionId {
    /// Names no connection.
    pub(crate) const NOBODY: Self = Self {
        node: NodeId::NONE,
        shard: u16::MAX,
        key: Key {
            slot: u32::MAX,
            generation: u32::MAX,
        },
    };

    /// A connection of a node, from the numbers that another node was told.
    #[cfg(feature = "cluster")]
    pub(crate) fn of_node(number: u32, shard: u16, (slot, generation): (u32, u32)) -> Self {
        Self {
            node: NodeId { number },
            shard,
            key: Key { slot, generation },
        }
    }

    pub(crate) fn key(self) -> Key {
        self.key
    }
}

/// The number of a node of a cluster, which it draws at its start; 0 if the app is alone. Without the feature `cluster`,
/// it takes no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct NodeId {
    #[cfg(feature = "cluster")]
    pub(crate) number: u32,
}

impl NodeId {
    pub(crate) const NONE: Self = Self {
        #[cfg(feature = "cluster")]
        number: 0,
    };
}

/// A slot on a shard, and the generation of the connection in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(feature = "cluster")]
        if self.node != NodeId::NONE {
            write!(f, "{:08x}-", self.node.number)?;
        }
        write!(
            f,
            "{}-{}-{}",
            self.shard, self.key.slot, self.key.generation
        )
    }
}
