//! Messages and actions of other nodes that wait until the mailboxes of local members have room.
//!
//! All wait in one queue, since members may receive messages of several rooms in the order in which they were sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::broker::Channel;
use super::interest::Interest;
use super::members::{CopyBeginning, Delivered, Members};
use super::servers::ServerShared;
use super::wire::{Content, Envelope, RemoteConnection};
use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};

/// After this time the delivery of parked messages is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// What a parked message takes in addition to its payload.
const MESSAGE_BYTES_MORE: usize = size_of::<Arrived>();

/// A message or an action for local members, or a change of this node's copy of a history.
pub(super) enum Arrived {
    Message {
        channel: Channel,
        message: Message,
        except: Option<RemoteConnection>,
    },
    /// The envelope of an action on one connection, or on those of a user.
    Action(Bytes),
    /// A message of a room with a history.
    Kept {
        room: Arc<str>,
        id: HistoryId,
        sent: SentMessage,
        except: Option<RemoteConnection>,
    },
    /// This node's copy of a room's history begins, or begins anew.
    Begun {
        room: Arc<str>,
        copy: Box<CopyBeginning>,
    },
    /// A room with a history is silent, or no longer is.
    Silence { room: Arc<str>, is_silent: bool },
    /// The copy of a room's history is complete on this connection to its server: clients may join.
    Live {
        interest: Arc<Interest>,
        server: Arc<ServerShared>,
        connection: u64,
    },
}

impl Arrived {
    fn weight(&self) -> usize {
        let bytes = match self {
            Self::Message { message, .. } => message.bytes().len(),
            Self::Kept { sent, .. } => sent.message.bytes().len(),
            Self::Action(envelope) => envelope.len(),
            Self::Begun { copy, .. } => {
                let messages = copy.messages.iter();
                let bytes =
                    messages.map(|sent| sent.message.bytes().len() + size_of::<SentMessage>());
                bytes.sum()
            }
            Self::Live { .. } | Self::Silence { .. } => 0,
        };
        bytes + MESSAGE_BYTES_MORE
    }

    fn deliver(&self, members: &dyn Members) -> Delivered {
        match self {
            Self::Message {
                channel,
                message,
                except,
            } => members.deliver(channel, message, *except),
            Self::Action(envelope) => act(envelope, members),
            Self::Kept {
                room,
                id,
                sent,
                except,
            } => members.keep(room, *id, sent, *except),
            Self::Begun { room, copy } => members.begin_copy(room, copy),
            Self::Silence { room, is_silent } => members.tell_silence(room, *is_silent),
            Self::Live {
                interest,
                server,
                connection,
            } => {
                server.status.subscribed_on(interest, *connection);
                Delivered::Done
            }
        }
    }
}

/// Executes the action of an envelope.
pub(super) fn act(envelope: &[u8], members: &dyn Members) -> Delivered {
    match Envelope::decode(envelope).map(|it| it.content) {
        Ok(Content::Direct(to, action)) => members.act(to, action),
        Ok(Content::CloseUser { user, code, reason }) => members.close_user(user, code, reason),
        // It was decoded when it arrived.
        _ => Delivered::Done,
    }
}

/// Whether two actions are on the same connection, which they must reach in their order.
fn have_one_target(one: &[u8], other: &[u8]) -> bool {
    let target = |envelope| match Envelope::decode(envelope).map(|it| it.content) {
        Ok(Content::Direct(to, _)) => Some(to),
        _ => None,
    };
    target(one).is_some() && target(one) == target(other)
}

/// The parked messages.
pub(super) struct Parked {
    queue: VecDeque<Arrived>,
    bytes: usize,
    bytes_max: usize,
    /// The envelopes of actions that have to wait for a room's history.
    pub(super) later: Vec<Bytes>,
}

impl Parked {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
            later: Vec::new(),
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn weight(&self) -> usize {
        self.queue.iter().map(Arrived::weight).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Delivers a message, or parks it behind those that are parked already. Returns false if it had to be dropped.
    pub(super) fn deliver(&mut self, message: Arrived, members: &dyn Members) -> bool {
        if self.queue.is_empty() && self.is_done(&message, members) {
            return true;
        }
        // One message of any size may be parked.
        let bytes = self.bytes.saturating_add(message.weight());
        if bytes > self.bytes_max && !self.queue.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.queue.push_back(message);
        true
    }

    fn is_done(&mut self, message: &Arrived, members: &dyn Members) -> bool {
        if let Arrived::Action(envelope) = message
            && self
                .later
                .iter()
                .any(|earlier| have_one_target(earlier, envelope))
        {
            self.later.push(envelope.clone());
            return true;
        }
        match message.deliver(members) {
            Delivered::Done => true,
            Delivered::Full => false,
            Delivered::Later => {
                if let Arrived::Action(envelope) = message {
                    self.later.push(envelope.clone());
                }
                true
            }
        }
    }

    /// Delivers parked messages until one doesn't fit.
    pub(super) fn retry(&mut self, members: &dyn Members) {
        while let Some(first) = self.queue.pop_front() {
            if !self.is_done(&first, members) {
                self.queue.push_front(first);
                return;
            }
            self.bytes -= first.weight();
        }
        // Release the memory of a burst.
        if self.queue.capacity() > 1024 {
            self.queue = VecDeque::new();
        }
    }
}
