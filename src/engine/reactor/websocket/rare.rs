//! What a WebSocket has only while something is going on. Idle ones are many: they own no memory for it.

use crate::engine::parts::drain::Drain;
use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::event_streams::Stream;
use crate::engine::reactor::websocket::WebSocket;

/// Made when something of it is first set, and given back when nothing of it is.
#[derive(Default)]
pub(super) struct Rare {
    /// A message that has begun: since when, and what is held of it.
    pub(super) unfinished: Option<Unfinished>,
    /// Until when a closing handshake may last.
    pub(super) deadline: Option<Drain>,
    /// The time that the client has for what the socket did not take at once.
    pub(super) drain: Option<Drain>,
    /// The socket has taken nothing at the last write, and has not said since that it does.
    pub(super) blocked: bool,
    /// What the indexes of those that use most have of it: see `Intake` and `Delivery`.
    pub(super) held_back_bytes: usize,
    pub(super) blocked_bytes: usize,
    pub(super) pace: Option<Box<Pace>>,
    /// The close frame that answers the peer's end, when the handlers are done.
    pub(super) farewell: Option<Box<[u8]>>,
    /// None if it is no event stream, or its answer has yet to begin.
    pub(super) stream: Option<Stream>,
}

pub(super) struct Unfinished {
    pub(super) since: Tick,
    /// Its time was over once, while there was more to read.
    pub(super) late: bool,
    pub(super) bytes: usize,
}

impl Rare {
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            unfinished,
            deadline,
            drain,
            blocked,
            held_back_bytes,
            blocked_bytes,
            pace,
            farewell,
            stream,
        } = self;
        unfinished.is_none()
            && deadline.is_none()
            && drain.is_none()
            && !blocked
            && (*held_back_bytes, *blocked_bytes) == (0, 0)
            && pace.is_none()
            && farewell.is_none()
            && stream.is_none()
    }
}

impl WebSocket {
    /// Sets something that is rare.
    #[cold] // Also lest it be inlined into what is done for each delivery.
    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Takes back something of what is rare, if there is any.
    pub(super) fn clear<V>(&mut self, of: impl FnOnce(&mut Rare) -> &mut Option<V>) -> Option<V> {
        let rare = self.rare.as_mut()?;
        let value = of(rare).take();
        if rare.is_empty() {
            self.rare = None;
        }
        value
    }

    /// Sets what the indexes have of it. Returns what they had.
    pub(crate) fn set_blocked_bytes(&mut self, bytes: usize) -> usize {
        self.set_indexed(|rare| &mut rare.blocked_bytes, bytes)
    }

    /// The same for what is held back.
    pub(super) fn set_held_back_indexed(&mut self, bytes: usize) -> usize {
        self.set_indexed(|rare| &mut rare.held_back_bytes, bytes)
    }

    fn set_indexed(&mut self, of: impl FnOnce(&mut Rare) -> &mut usize, bytes: usize) -> usize {
        let rare = self.rare.get_or_insert_default();
        let before = std::mem::replace(of(rare), bytes);
        if rare.is_empty() {
            self.rare = None;
        }
        before
    }

    #[inline]
    pub(crate) fn blocked_bytes(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.blocked_bytes)
    }

    #[inline]
    pub(crate) fn held_back_indexed(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.held_back_bytes)
    }

    /// Something is going on. What is rare is not kept for nothing.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn owns_memory(&self) -> bool {
        if let Some(rare) = &self.rare {
            assert!(!rare.is_empty());
        }
        self.rare.is_some()
            || self.protocol.held_bytes() > 0
            || !self.outbox.is_empty()
            || self.inbox.capacity() > 0
    }

    pub(super) fn unfinished(&self) -> Option<&Unfinished> {
        self.rare.as_ref()?.unfinished.as_ref()
    }

    pub(super) fn closing_deadline(&self) -> Option<Tick> {
        Some(self.rare.as_ref()?.deadline?.deadline)
    }

    /// When its time for what waits for it is over.
    pub(super) fn drain_deadline(&self) -> Option<Tick> {
        Some(self.rare.as_ref()?.drain?.deadline)
    }

    /// Since when the socket has taken nothing of what waits for it.
    pub(super) fn quiet_since(&self) -> Option<Tick> {
        Some(self.rare.as_ref()?.drain?.quiet_since)
    }

    pub(crate) fn pace(&mut self) -> Option<&mut Pace> {
        self.rare.as_mut()?.pace.as_deref_mut()
    }

    pub(super) fn stream(&mut self) -> Option<&mut Stream> {
        self.rare.as_mut()?.stream.as_mut()
    }

    /// An event stream begins.
    pub(crate) fn begin_stream(&mut self, stream: Stream) {
        self.rare().stream = Some(stream);
    }
}
