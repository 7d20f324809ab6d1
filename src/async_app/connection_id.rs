//! The identity of a connection, for programs.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use crate::engine::LocalId;

/// Identifies a connection of an app. Ids are unique in one run of the app, and never reused. In a cluster, they are unique
/// among all nodes.
///
/// Handlers get it from [`AsyncStream::id`](crate::AsyncStream::id); any thread can then reach the connection with
/// [`AsyncSender::send_to`](crate::AsyncSender::send_to) and [`AsyncSender::close`](crate::AsyncSender::close). Its text, such as
/// `0-12-3`, can be parsed back.
///
/// ```
/// use humphrey_ws::ConnectionId;
///
/// let id: ConnectionId = "0-12-3".parse().unwrap();
/// assert_eq!(id.to_string(), "0-12-3");
/// ```
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

/// The error of a text that is not a connection id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConnectionId(());

impl fmt::Display for InvalidConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a connection id, such as 0-12-3 or, in a cluster, 5eed1234-0-12-3")
    }
}

impl Error for InvalidConnectionId {}

impl FromStr for ConnectionId {
    type Err = InvalidConnectionId;

    /// Parses the text that `Display` writes, and no other form of it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.rsplitn(4, '-');
            let generation = parts.next()?.parse().ok()?;
            let slot = parts.next()?.parse().ok()?;
            let shard = parts.next()?.parse().ok()?;
            let node = match parts.next() {
                Some(number) => u32::from_str_radix(number, 16).ok()?,
                None => NodeId::NONE.as_number(),
            };
            Some(Self {
                node: NodeId::of_number(node),
                local: LocalId::new(shard, slot, generation),
            })
        };
        // Equal ids are equal texts. Without the feature `cluster`, an id with a node is none.
        let id = parse().filter(|id| id.to_string() == text);
        id.ok_or(InvalidConnectionId(()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_id_is_parsed_back() {
        let texts = ["0-0-0", "7-12-3", "65535-4294967295-4294967295"];
        #[cfg(feature = "cluster")]
        let texts = texts
            .into_iter()
            .chain(["0000beef-1-2-3", "ffffffff-0-0-0"]);
        for text in texts {
            let id: ConnectionId = text.parse().unwrap();
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn other_forms_of_an_id_are_refused() {
        for text in [
            "",
            "-",
            "1",
            "1-2",
            "1-2-",
            "-1-2",
            "01-2-3",
            "+1-2-3",
            "1-2-3 ",
            "1- 2-3",
            "65536-0-0",
            "0-4294967296-0",
            "a-1-2",
            // Zero names no node.
            "00000000-1-2-3",
            "beef-1-2-3",
            "0000BEEF-1-2-3",
            "1-0000beef-1-2-3",
            #[cfg(not(feature = "cluster"))]
            "0000beef-1-2-3",
        ] {
            let parsed: Result<ConnectionId, _> = text.parse();
            assert!(parsed.is_err(), "{text:?}");
        }
    }
}
