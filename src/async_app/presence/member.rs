//! The members of a room, as the program sees them.

use crate::async_app::connection_id::{ConnectionId, NodeId};
use crate::async_app::procedures::Payload;
use crate::engine::LocalId;
use crate::presence::{Fact, Member};

/// Who is in a room ([`Room::presence`](crate::Room::presence)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomPresence {
    /// The members: the users in the order of their names, then the connections without a user.
    pub members: Vec<PresentMember>,
    /// Whether all nodes that this one hears have had the time to answer, and all broker servers can be reached. If not, there may be
    /// more members. Always true without a cluster.
    pub is_complete: bool,
}

impl RoomPresence {
    /// The presence of a room without members.
    pub(in crate::async_app) fn nobody() -> Self {
        Self {
            members: Vec::new(),
            is_complete: true,
        }
    }
}

/// A member of a room: a user with all connections, or a connection without a user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresentMember {
    /// The user ([`Accept::user`](crate::Accept::user)); `None` for a connection without one.
    pub user: Option<String>,
    /// The connection, if it has no user.
    pub connection: Option<ConnectionId>,
    /// The state that was set last, on any connection and node
    /// ([`AsyncStream::set_presence`](crate::AsyncStream::set_presence)); empty if none was set.
    pub state: Payload,
    /// The number of connections in the room, on all nodes; 0 while the user may come back
    /// ([`PresenceRooms::grace`](crate::PresenceRooms::grace)).
    pub connections: usize,
}

impl PresentMember {
    pub(super) fn new(member: Member, fact: Fact) -> Self {
        let (user, connection) = match member {
            Member::User(user) => (Some(user.to_string()), None),
            Member::Connection(key) => {
                let id = ConnectionId {
                    node: NodeId::of_number(key.node),
                    local: LocalId::new(key.shard, key.slot, key.generation),
                };
                (None, Some(id))
            }
        };
        Self {
            user,
            connection,
            state: Payload::of_bytes(fact.state),
            connections: fact.connections as usize,
        }
    }
}
