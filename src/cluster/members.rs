//! The app's side of a node: its local members.

use super::broker::Channel;
use super::wire::RemoteConnection;
use crate::message::Message;

/// The members of this node, to whom messages of other nodes are delivered.
pub(crate) trait Members: Send + Sync {
    /// Delivers a message to the local members of a channel. Must not wait.
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        except: Option<RemoteConnection>,
    ) -> Delivered;
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Done,
    /// A mailbox is full. Nobody has received the message.
    Full,
}
