//! The app's side of a node: its local members, and its copies of histories.

use std::time::Duration;

use super::broker::Channel;
use super::wire::{DirectAction, RemoteConnection};
use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};
use crate::presence::{BadUpdate, NodeEvent};

/// The members of this node, on whom other nodes act. No method may wait.
pub(crate) trait Members: Send + Sync {
    /// Delivers a message to the local members of a channel.
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        except: Option<RemoteConnection>,
    ) -> Delivered;

    /// Begins this node's copy of a room's history, in place of what it contains.
    fn begin_copy(&self, room: &str, copy: &CopyBeginning) -> Delivered;

    /// Delivers a message to the local members of a room with a history, and keeps it in the copy, if its id follows the
    /// copy's position. A message of unknown time counts as sent now.
    fn keep(
        &self,
        room: &str,
        id: HistoryId,
        sent: &SentMessage,
        except: Option<RemoteConnection>,
    ) -> Delivered;

    /// Tells the members of a room with a history that it is silent, since its broker server can't be reached, or that it no
    /// longer is.
    fn tell_silence(&self, room: &str, is_silent: bool) -> Delivered;

    /// Drops the copies of histories whose rooms have had no members for this time.
    fn drop_idle_copies(&self, idle: Duration);

    /// Acts on a connection of this node, if it is still open.
    fn act(&self, to: RemoteConnection, action: DirectAction<'_>) -> Delivered;

    /// Closes the connections of a user.
    fn close_user(&self, user: &str, code: u16, reason: &str) -> Delivered;

    /// Handles what concerns the presence of rooms.
    fn on_presence(&self, event: NodeEvent<'_>) -> Result<(), BadUpdate>;

    /// Returns the number of members of a room, or of all clients.
    fn count(&self, room: Option<&str>) -> u64;
}

/// The beginning of a node's copy of a room's history.
#[derive(Debug, Clone)]
pub(crate) struct CopyBeginning {
    /// The id of the last message, or sequence 0 if there was none yet.
    pub(crate) position: HistoryId,
    /// The kept messages up to the position, oldest first and without gaps.
    pub(crate) messages: Vec<SentMessage>,
    /// The room's members may have missed messages before what follows.
    pub(crate) has_gap: bool,
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Done,
    /// A mailbox is full. Nobody has received the message, and nothing was done.
    Full,
    /// The action has to wait for a room's history.
    Later,
}
