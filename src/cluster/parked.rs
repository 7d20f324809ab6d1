//! Messages of other nodes that wait for room in the mailboxes of this node's shards.
//!
//! The link never waits for a mailbox, so that the broker never takes this node for a slow consumer. Messages are parked
//! in the order in which they came. Beyond a limit, they are dropped.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::broker::Channel;
use super::members::{Delivered, Members};
use super::wire::{Content, Envelope, RemoteConnection};
use crate::message::Message;

/// How often delivery of parked messages is tried again.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// What a parked message takes in addition to its payload.
const MESSAGE_BYTES_MORE: usize = size_of::<Arrived>();

/// What another node has sent for local members.
pub(super) enum Arrived {
    Message {
        channel: Channel,
        message: Message,
        except: Option<RemoteConnection>,
    },
    /// The envelope of an action on one connection, or on those of a user.
    Action(Bytes),
}

impl Arrived {
    fn weight(&self) -> usize {
        let bytes = match self {
            Self::Message { message, .. } => message.bytes().len(),
            Self::Action(envelope) => envelope.len(),
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
            Self::Action(envelope) => match Envelope::decode(envelope).map(|it| it.content) {
                Ok(Content::Direct(to, action)) => members.act(to, action),
                Ok(Content::CloseUser { user, code, reason }) => {
                    members.close_user(user, code, reason)
                }
                // It was decoded when it arrived.
                _ => Delivered::Done,
            },
        }
    }
}

/// The parked messages.
pub(super) struct Parked {
    queue: VecDeque<Arrived>,
    bytes: usize,
    bytes_max: usize,
}

impl Parked {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Delivers a message, or parks it behind those that are parked already. Returns false if it had to be dropped.
    pub(super) fn deliver(&mut self, message: Arrived, members: &dyn Members) -> bool {
        if self.queue.is_empty() && message.deliver(members) == Delivered::Done {
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

    /// Delivers parked messages until one doesn't fit.
    pub(super) fn retry(&mut self, members: &dyn Members) {
        while let Some(first) = self.queue.front() {
            if first.deliver(members) == Delivered::Full {
                return;
            }
            self.bytes -= first.weight();
            self.queue.pop_front();
        }
        // Release the memory of a burst.
        if self.queue.capacity() > 1024 {
            self.queue = VecDeque::new();
        }
    }
}
