//! State that a WebSocket needs only at times. Most connections are idle, and own no memory for it.

use std::time::Duration;

use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::parts::write_progress::WriteProgress;
#[cfg(feature = "deflate")]
use crate::engine::reactor::websocket::inflating::Parked;
use crate::engine::reactor::websocket::rate_account::RateAccount;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::protocol::event_stream::JoinedIds;

/// Allocated when a field is first set, and freed when all fields are unset.
#[derive(Default)]
pub(super) struct Cold {
    /// The unfinished message: since when, and the bytes held for it.
    pub(super) unfinished: Option<Unfinished>,
    /// A compressed message that waits to be inflated. Nothing is read meanwhile.
    #[cfg(feature = "deflate")]
    pub(super) parked: Option<Box<Parked>>,
    /// The deadline of the closing handshake.
    pub(super) deadline: Option<WriteProgress>,
    /// The client's time for bytes that the socket did not take at once.
    pub(super) drain: Option<WriteProgress>,
    /// Whether the socket took nothing at the last write, and has not reported room since.
    pub(super) blocked: bool,
    /// The bytes of this connection in the usage indexes: see `ReceiveBudget` and `Fanout`.
    pub(super) held_back_bytes: usize,
    pub(super) blocked_bytes: usize,
    pub(super) pace: Option<Box<Pace>>,
    /// The close frame that replies to the peer's end, once the handlers are done.
    pub(super) close_reply: Option<Box<[u8]>>,
    /// `None` for a WebSocket, and for an event stream whose response has yet to begin.
    pub(super) stream: Option<Stream>,
    /// What the client may send. `None` without rate limits. Otherwise it is allocated when the client sends something, and
    /// freed when its next input or timer finds that the client may send a full burst again.
    pub(super) rate: Option<Box<RateAccount>>,
}

/// State of an event stream, in addition to a WebSocket's.
pub(crate) struct Stream {
    pub(crate) keep_alive: Duration,
    /// When the next comment is due.
    pub(crate) comment_at: Tick,
    /// The positions that the ids of events name, if they name several.
    pub(crate) joined_ids: Option<Box<JoinedIds>>,
}

pub(super) struct Unfinished {
    pub(super) since: Tick,
    /// Whether its time limit was extended once, while there was more to read.
    pub(super) late: bool,
    pub(super) bytes: usize,
    /// The length of the message when its time limit was last renewed.
    pub(super) len_before: usize,
}

impl Cold {
    /// Until when the connection is not read, since its client has sent too fast.
    pub(super) fn delayed_until(&self) -> Option<Tick> {
        self.rate.as_ref()?.delayed_until
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self {
            unfinished,
            #[cfg(feature = "deflate")]
            parked,
            deadline,
            drain,
            blocked,
            held_back_bytes,
            blocked_bytes,
            pace,
            close_reply,
            stream,
            rate,
        } = self;
        #[cfg(feature = "deflate")]
        if parked.is_some() {
            return false;
        }
        unfinished.is_none()
            && deadline.is_none()
            && drain.is_none()
            && !blocked
            && (*held_back_bytes, *blocked_bytes) == (0, 0)
            && pace.is_none()
            && close_reply.is_none()
            && stream.is_none()
            && rate.is_none()
    }
}

impl WebSocket {
    /// Sets a field, allocating if necessary.
    #[cold] // Keeps it from being inlined into the path of each delivery.
    pub(super) fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Takes a field's value, if anything is allocated.
    pub(super) fn clear<V>(&mut self, of: impl FnOnce(&mut Cold) -> &mut Option<V>) -> Option<V> {
        let cold = self.cold.as_mut()?;
        let value = of(cold).take();
        if cold.is_empty() {
            self.cold = None;
        }
        value
    }

    /// Whether nothing may be read: a message waits to be inflated, or the client has sent too fast.
    #[inline]
    pub(super) fn is_input_held(&self) -> bool {
        #[cfg(feature = "deflate")]
        if self.cold.as_ref().is_some_and(|cold| cold.parked.is_some()) {
            return true;
        }
        self.is_delayed()
    }

    /// Whether nothing may be read, since the client has sent too fast.
    #[inline]
    pub(super) fn is_delayed(&self) -> bool {
        let Some(cold) = &self.cold else {
            return false;
        };
        // After our close frame, messages are dropped, however many there are.
        self.receiving == Receiving::Open && cold.delayed_until().is_some()
    }

    /// Sets the bytes of this connection in the index of blocked ones. Returns the bytes before.
    pub(crate) fn set_blocked_bytes(&mut self, bytes: usize) -> usize {
        self.set_indexed(|cold| &mut cold.blocked_bytes, bytes)
    }

    /// Sets the bytes of this connection in the index of held-back messages. Returns the bytes before.
    pub(super) fn set_held_back_indexed(&mut self, bytes: usize) -> usize {
        self.set_indexed(|cold| &mut cold.held_back_bytes, bytes)
    }

    fn set_indexed(&mut self, of: impl FnOnce(&mut Cold) -> &mut usize, bytes: usize) -> usize {
        let cold = self.cold.get_or_insert_default();
        let before = std::mem::replace(of(cold), bytes);
        if cold.is_empty() {
            self.cold = None;
        }
        before
    }

    #[inline]
    pub(crate) fn blocked_bytes(&self) -> usize {
        self.cold.as_ref().map_or(0, |cold| cold.blocked_bytes)
    }

    #[inline]
    pub(crate) fn held_back_indexed(&self) -> usize {
        self.cold.as_ref().map_or(0, |cold| cold.held_back_bytes)
    }

    /// Whether anything is allocated. It must not be if no field is set.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn owns_memory(&self) -> bool {
        if let Some(cold) = &self.cold {
            assert!(!cold.is_empty());
        }
        self.cold.is_some()
            || self.protocol.held_bytes() > 0
            || !self.outbox.is_empty()
            || self.inbox.capacity() > 0
    }

    pub(super) fn unfinished(&self) -> Option<&Unfinished> {
        self.cold.as_ref()?.unfinished.as_ref()
    }

    pub(super) fn closing_deadline(&self) -> Option<Tick> {
        Some(self.cold.as_ref()?.deadline?.deadline)
    }

    /// The deadline for the bytes that wait for the client.
    pub(super) fn drain_deadline(&self) -> Option<Tick> {
        Some(self.cold.as_ref()?.drain?.deadline)
    }

    /// Since when the socket has taken none of the bytes that wait.
    pub(super) fn quiet_since(&self) -> Option<Tick> {
        Some(self.cold.as_ref()?.drain?.quiet_since)
    }

    pub(crate) fn pace(&mut self) -> Option<&mut Pace> {
        self.cold.as_mut()?.pace.as_deref_mut()
    }

    pub(crate) fn stream(&mut self) -> Option<&mut Stream> {
        self.cold.as_mut()?.stream.as_mut()
    }

    /// Makes it an event stream whose response begins.
    pub(crate) fn set_stream(&mut self, stream: Stream) {
        self.cold().stream = Some(stream);
    }
}
