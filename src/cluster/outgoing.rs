//! The queue of messages to one broker server, between the producers and the link.
//!
//! Producers apply backpressure to themselves here: they wait while the queue is full. An outage of the broker delays
//! them for a limited time only; from then on, messages that don't fit are refused until the broker is back.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::broker::Channel;
use super::wire::{Content, EncodedContent, OVERHEAD_BYTES_MAX, Payload, RemoteConnection};
use crate::cork;
use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};
use crate::sync::{ignore_poison, lock};

/// What a queued message takes in addition to its payload.
const MESSAGE_BYTES_MORE: usize = size_of::<Queued>() + OVERHEAD_BYTES_MAX;

/// Content on its way to the broker.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) channel: Channel,
    pub(crate) content: Outbound,
    /// When it was queued.
    pub(crate) at: Instant,
}

/// The content of an envelope that has not been sent.
#[derive(Debug)]
pub(crate) enum Outbound {
    /// A message for the members of a channel, which shares its bytes with the local recipients.
    Message(Message, Option<RemoteConnection>),
    /// A message for the members of a room, which its history keeps.
    Append(SentMessage, Option<RemoteConnection>, Box<AppendRequest>),
    Encoded(EncodedContent),
}

/// How a message is appended to the history of its room.
#[derive(Debug)]
pub(crate) struct AppendRequest {
    /// Of the history, once the message has been appended.
    pub(crate) messages_max: u32,
    /// Of the history in bytes, once the message has been appended. Envelopes count with their whole length.
    pub(crate) bytes_max: u64,
    /// Appends the message only at this position. `HistoryId::new(new_epoch, 0)` stands for no history.
    pub(crate) expected: Option<HistoryId>,
    /// The epoch of the history if there is none. It must be drawn for this message: an epoch that was given before may have
    /// been lost with the data of the broker, so its ids would stand for other messages.
    pub(crate) new_epoch: u64,
    /// The thread that waits for the outcome. If it is dropped without one, the message may have been appended or not.
    pub(crate) waiting: Option<Sender<AppendOutcome>>,
}

/// The outcome of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppendOutcome {
    Id(HistoryId),
    /// The history has another position than the expected one.
    Conflict {
        position: HistoryId,
    },
    /// The broker has refused the message, which nobody receives.
    Refused,
}

impl Outbound {
    /// Returns the content without the node and the serial, and how it is appended to a history.
    pub(crate) fn encode(self) -> (EncodedContent, Option<Box<AppendRequest>>) {
        match self {
            Self::Message(message, except) => {
                let content = Content::Message {
                    payload: Payload::of(&message),
                    except,
                    sent_at: 0,
                };
                (content.encode(), None)
            }
            Self::Append(sent, except, request) => {
                let content = Content::Message {
                    payload: Payload::of(&sent.message),
                    except,
                    sent_at: sent.sent_at,
                };
                (content.encode(), Some(request))
            }
            Self::Encoded(encoded) => (encoded, None),
        }
    }

    fn weight(&self) -> usize {
        let bytes = match self {
            Self::Message(message, _) => message.bytes().len(),
            Self::Append(sent, ..) => sent.message.bytes().len() + size_of::<AppendRequest>(),
            Self::Encoded(encoded) => encoded.len(),
        };
        bytes + MESSAGE_BYTES_MORE
    }
}

impl Queued {
    fn weight(&self) -> usize {
        self.content.weight()
    }
}

/// Wakes the link.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotQueued {
    /// The queue is full.
    Full,
    /// The queue is full, and the broker has been unreachable for longer than producers wait.
    Unreachable,
    /// The cluster has stopped.
    Stopped,
}

/// The queue of messages to one broker server.
pub(crate) struct Outgoing {
    state: Mutex<OutgoingState>,
    changed: Condvar,
    bytes_max: usize,
    /// How long producers wait during an outage.
    wait_max: Duration,
    waker: Arc<dyn Wake>,
}

#[derive(Default)]
struct OutgoingState {
    queue: VecDeque<Queued>,
    /// The weight of all queued messages.
    bytes: usize,
    /// Bytes of messages that will be queued, because their producers have reserved them.
    reserved: usize,
    /// Since when the broker has been unreachable.
    down_since: Option<Instant>,
    waiting: usize,
    stopped: bool,
}

impl OutgoingState {
    /// An empty queue takes one message of any size.
    fn has_room(&self, weight: usize, bytes_max: usize) -> bool {
        let held = self.bytes + self.reserved;
        held == 0 || held.saturating_add(weight) <= bytes_max
    }

    fn check(&self, weight: usize, now: Instant, queue: &Outgoing) -> Result<(), NotQueued> {
        if self.stopped {
            Err(NotQueued::Stopped)
        } else if self.has_room(weight, queue.bytes_max) {
            Ok(())
        } else if self
            .down_since
            .is_some_and(|since| now.saturating_duration_since(since) >= queue.wait_max)
        {
            Err(NotQueued::Unreachable)
        } else {
            Err(NotQueued::Full)
        }
    }
}

/// Space in the queue for one message.
#[must_use = "dropping it releases the space"]
pub(crate) struct Reservation<'a> {
    queue: &'a Outgoing,
    weight: usize,
}

impl Reservation<'_> {
    /// Queues the content that the space was reserved for.
    pub(crate) fn push(mut self, channel: Channel, content: Outbound, now: Instant) {
        let reserved = std::mem::take(&mut self.weight);
        let queue = self.queue;
        let mut state = lock(&queue.state);
        state.reserved -= reserved;
        state.bytes += content.weight();
        let was_empty = state.queue.is_empty();
        state.queue.push_back(Queued {
            channel,
            content,
            at: now,
        });
        drop(state);
        if was_empty {
            queue.waker.wake();
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.weight > 0 {
            let mut state = lock(&self.queue.state);
            state.reserved -= self.weight;
            self.queue.freed(state);
        }
    }
}

impl Outgoing {
    /// Creates the queue of a broker that is not yet reachable.
    pub(crate) fn new(
        bytes_max: usize,
        wait_max: Duration,
        now: Instant,
        waker: Arc<dyn Wake>,
    ) -> Self {
        Self {
            state: Mutex::new(OutgoingState {
                down_since: Some(now),
                ..OutgoingState::default()
            }),
            changed: Condvar::new(),
            bytes_max,
            wait_max,
            waker,
        }
    }

    /// Reserves space. Never waits.
    pub(crate) fn try_reserve(
        &self,
        content: &Outbound,
        now: Instant,
    ) -> Result<Reservation<'_>, NotQueued> {
        let weight = content.weight();
        let mut state = lock(&self.state);
        state.check(weight, now, self)?;
        state.reserved += weight;
        Ok(Reservation {
            queue: self,
            weight,
        })
    }

    /// Reserves space, and waits while the queue is full. If the broker is unreachable, it waits until the
    /// outage has lasted for `wait_max`, and then fails.
    pub(crate) fn reserve(&self, content: &Outbound) -> Result<Reservation<'_>, NotQueued> {
        let weight = content.weight();
        let mut state = lock(&self.state);
        let mut has_woken = false;
        loop {
            let now = Instant::now();
            match state.check(weight, now, self) {
                Ok(()) => break,
                Err(NotQueued::Full) => {}
                Err(refused) => return Err(refused),
            }
            if !has_woken {
                has_woken = true;
                drop(state);
                // Members on this node don't wait for the broker.
                cork::before_waiting();
                state = lock(&self.state);
                continue;
            }
            state.waiting += 1;
            // An endless wait has no end that time could express.
            let until = state
                .down_since
                .map(|since| since.checked_add(self.wait_max));
            state = match until.flatten() {
                Some(until) => {
                    let left = until.saturating_duration_since(now);
                    ignore_poison(self.changed.wait_timeout(state, left)).0
                }
                None => ignore_poison(self.changed.wait(state)),
            };
            state.waiting -= 1;
        }
        state.reserved += weight;
        Ok(Reservation {
            queue: self,
            weight,
        })
    }

    /// Takes queued messages for the broker: the first one, and more while they together weigh at most `bytes`.
    pub(crate) fn take(&self, bytes: usize, taken: &mut Vec<Queued>) {
        let mut state = lock(&self.state);
        let mut weight = 0;
        while let Some(queued) = state.queue.front() {
            weight += queued.weight();
            if !taken.is_empty() && weight > bytes {
                break;
            }
            let queued = state.queue.pop_front();
            taken.extend(queued);
        }
        let weight: usize = taken.iter().map(Queued::weight).sum();
        state.bytes -= weight;
        self.freed(state);
    }

    /// Removes the messages that were queued before this time. Returns their number.
    pub(crate) fn expire(&self, before: Instant) -> usize {
        let mut state = lock(&self.state);
        let mut expired = 0;
        while state.queue.front().is_some_and(|queued| queued.at < before) {
            if let Some(queued) = state.queue.pop_front() {
                state.bytes -= queued.weight();
                expired += 1;
            }
        }
        if expired > 0 {
            self.freed(state);
        }
        expired
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).queue.is_empty()
    }

    /// Records that the broker is reachable, or since when it is not.
    pub(crate) fn set_down_since(&self, down_since: Option<Instant>) {
        let mut state = lock(&self.state);
        state.down_since = down_since;
        self.freed(state);
    }

    /// Whether the link has ended.
    pub(crate) fn has_stopped(&self) -> bool {
        lock(&self.state).stopped
    }

    /// Refuses further messages. Returns the number of those that are left.
    pub(crate) fn stop(&self) -> usize {
        let mut state = lock(&self.state);
        state.stopped = true;
        let left = state.queue.len();
        state.queue.clear();
        state.bytes = 0;
        self.freed(state);
        left
    }

    fn freed(&self, state: MutexGuard<'_, OutgoingState>) {
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct NoWaker;

    impl Wake for NoWaker {
        fn wake(&self) {}
    }

    #[test]
    fn endless_outage_wait_ends_when_the_link_has_ended() {
        let queue = Outgoing::new(1, Duration::MAX, Instant::now(), Arc::new(NoWaker));
        let content = || Outbound::Message(Message::new_text("x"), None);
        let first = queue.reserve(&content());
        first.unwrap_or_else(|refused| panic!("{refused:?}")).push(
            Channel::Everyone,
            content(),
            Instant::now(),
        );
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.reserve(&content()).map(drop));
            while lock(&queue.state).waiting == 0 && !waiting.is_finished() {
                std::thread::yield_now();
            }
            assert_eq!(queue.stop(), 1);
            assert_eq!(waiting.join().expect("no panic"), Err(NotQueued::Stopped));
        });
    }
}
