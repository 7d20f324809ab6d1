//! The recipients of messages.

use std::sync::Arc;

use super::connection_id::ConnectionId;
use crate::engine::{self, LocalId, Session};

/// The recipients of a message.
pub(super) enum Recipients<'a> {
    Session(&'a Session),
    Connection(LocalId),
    /// No client has that address.
    Nobody,
    Everyone {
        except: Option<ConnectionId>,
    },
    /// The members of a room.
    Room {
        name: &'a str,
        except: Option<ConnectionId>,
    },
}

impl<'a> Recipients<'a> {
    /// All members of a room, or of the nameless room of all clients, but one if given.
    pub(super) fn of_room(name: Option<&'a str>, except: Option<ConnectionId>) -> Self {
        match name {
            Some(name) => Self::Room { name, except },
            None => Self::Everyone { except },
        }
    }
}

/// The recipients of a broadcast that is not kept.
pub(super) enum Unkept<'a> {
    Everyone,
    Room {
        /// Used if the app is a node of a cluster.
        #[cfg_attr(not(feature = "cluster"), allow(dead_code))]
        name: &'a str,
        /// `None` if the room has no members here.
        members: Option<&'a Arc<engine::SharedRoom>>,
    },
}

impl<'a> Unkept<'a> {
    /// The recipients on this node; `None` if there are none.
    pub(super) fn here(&self) -> Option<Here<'a>> {
        match *self {
            Self::Everyone => Some(Here::Everyone),
            Self::Room { members, .. } => members.map(Here::Room),
        }
    }
}

/// The recipients of a broadcast on this node.
#[derive(Clone, Copy)]
pub(super) enum Here<'a> {
    Everyone,
    Room(&'a Arc<engine::SharedRoom>),
}
