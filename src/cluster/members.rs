//! The app's side of a node: its local members.

use super::broker::Channel;
use super::wire::{DirectAction, RemoteConnection};
use crate::message::Message;

/// The members of this node, on whom other nodes act. No method may wait.
pub(crate) trait Members: Send + Sync {
    /// Delivers a message to the local members of a channel.
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        except: Option<RemoteConnection>,
    ) -> Delivered;

    /// Acts on a connection of this node, if it is still open.
    fn act(&self, to: RemoteConnection, action: DirectAction<'_>) -> Delivered;

    /// Closes the connections of a user.
    fn close_user(&self, user: &str, code: u16, reason: &str) -> Delivered;

    /// Returns the number of members of a room, or of all clients.
    fn count(&self, room: Option<&str>) -> u64;
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Done,
    /// A mailbox is full. Nobody has received the message, and nothing was done.
    Full,
}
