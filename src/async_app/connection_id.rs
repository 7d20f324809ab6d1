//! The identity of a connection, for programs.

use std::fmt;

use crate::engine::LocalId;

/// Identifies a connection of an app. Ids are unique in one run of the app, and never reused. In a cluster, they are unique
/// among all nodes.
///
/// Handlers get it from [`AsyncStream::id`](crate::AsyncStream::id); any thread can then reach the connection with
/// [`AsyncSender::send_to`](crate::AsyncSender::send_to) and [`AsyncSender::close`](crate::AsyncSender::close).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(super) node: NodeId,
    pub(super) local: LocalId,
}

impl ConnectionId {
    /// Names no connection.
    pub(super) const NOBODY: Self = Self {
        node: NodeId::NONE,
        local: LocalId::NOBODY,
    };
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(feature = "cluster")]
        if self.node != NodeId::NONE {
            write!(f, "{:08x}-", self.node.number)?;
        }
        self.local.fmt(f)
    }
}

/// The number of a node of a cluster, which it draws at its start; 0 if the app is alone. Without the feature `cluster`,
/// it takes no space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NodeId {
    #[cfg(feature = "cluster")]
    pub(super) number: u32,
}

impl NodeId {
    pub(super) const NONE: Self = Self {
        #[cfg(feature = "cluster")]
        number: 0,
    };

    #[cfg_attr(not(feature = "cluster"), allow(unused_variables))]
    pub(super) fn of_number(number: u32) -> Self {
        Self {
            #[cfg(feature = "cluster")]
            number,
        }
    }

    #[cfg_attr(not(feature = "cluster"), allow(clippy::unused_self))]
    pub(super) fn as_number(self) -> u32 {
        #[cfg(feature = "cluster")]
        return self.number;
        #[cfg(not(feature = "cluster"))]
        0
    }
}
