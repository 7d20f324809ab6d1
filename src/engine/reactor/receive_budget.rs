//! The receive budget: the bytes of received messages that a shard holds for all its connections. It keeps many
//! connections from using up the memory that each of them alone may have.
//!
//! Half of it is for unfinished messages. Over that, the connection that holds most is evicted. The other half is for
//! finished messages that are not handled yet. Over that, reading is paused until handlers have caught up. Messages of
//! clients that do not read their replies are not given to handlers, nor is what clients have sent too fast: if these take
//! more than half of the second half, the clients that hold most are disconnected, since waiting for handlers would not
//! help.
//!
//! The heaviest address is chosen first, and of that the heaviest connection: a client with many connections can't get
//! others evicted in its place.

use std::collections::VecDeque;

use crate::engine::model::job::SessionEvent;
use crate::engine::parts::id::Key;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::engine::reactor::{ConnCx, Core};
use crate::limits::Limits;
use crate::protocol::close::CloseCode;
use crate::transport::ShardTransport;

pub(crate) struct ReceiveBudget {
    /// Bytes of unfinished messages.
    pub(crate) unfinished: UsageIndex,
    /// Bytes of messages that wait for handlers or are being handled.
    unhandled: usize,
    /// Bytes of parked compressed messages, and of input that waits behind them or was sent too fast.
    parked: usize,
    /// Bytes of handshakes that the program authorises, and those behind them.
    authorizing: usize,
    /// The bound for each of the first two.
    half: usize,
    /// The unhandled bytes that are held back, since clients do not read the replies to earlier messages; and the input of
    /// clients that have sent too fast.
    pub(crate) held_back: UsageIndex,
    /// Connections whose reading is paused, longest first. They count as queued for reading.
    paused: VecDeque<Key>,
    /// Memory for queued events: most connections need some for a moment, again and again.
    spares: Vec<Vec<SessionEvent>>,
}

const SPARES_MAX: usize = 64;

/// The maximum capacity of a list that is kept for reuse.
const SPARE_EVENTS_MAX: usize = 64;

impl ReceiveBudget {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Self {
        Self {
            unfinished: UsageIndex::default(),
            unhandled: 0,
            parked: 0,
            authorizing: 0,
            // One message always fits.
            half: (limits.received_bytes_max / 2 / shards).max(limits.message_bytes_max),
            held_back: UsageIndex::default(),
            paused: VecDeque::new(),
            spares: Vec::new(),
        }
    }

    /// Returns an empty list for a connection's events.
    pub(crate) fn spare(&mut self) -> Vec<SessionEvent> {
        self.spares.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&mut self, spare: Vec<SessionEvent>) {
        debug_assert!(spare.is_empty());
        if (1..=SPARE_EVENTS_MAX).contains(&spare.capacity()) && self.spares.len() < SPARES_MAX {
            self.spares.push(spare);
        }
    }

    pub(crate) fn add_unhandled(&mut self, bytes: usize) {
        self.unhandled += bytes;
    }

    /// Stops counting bytes that are handled, or will not be.
    pub(crate) fn sub_unhandled(&mut self, bytes: usize) {
        debug_assert!(self.unhandled >= bytes);
        self.unhandled = self.unhandled.saturating_sub(bytes);
    }

    /// Counts a handshake until the program's verdict, if there is room. A client must wait for the response (RFC 6455
    /// §4.1): those that have sent something behind their handshake have half the room.
    pub(crate) fn add_authorizing(&mut self, bytes: usize, is_early: bool) -> bool {
        self.authorizing += bytes + REQUEST_BYTES;
        let fits = self.authorizing <= self.half / if is_early { 8 } else { 4 };
        if !fits {
            self.authorizing -= REQUEST_BYTES;
        }
        fits
    }

    /// Stops counting a job that a thread has taken. It counts until then, even if its client has gone.
    pub(crate) fn sub_job(&mut self) {
        self.sub_authorizing(REQUEST_BYTES);
    }

    /// Stops counting a handshake, after the program's verdict or without one.
    pub(crate) fn sub_authorizing(&mut self, bytes: usize) {
        debug_assert!(self.authorizing >= bytes);
        self.authorizing = self.authorizing.saturating_sub(bytes);
    }

    /// Whether reading must pause until handlers have caught up.
    pub(crate) fn is_full(&self) -> bool {
        self.unhandled + self.parked > self.half
    }

    /// Whether inflating must pause until handlers have caught up.
    #[cfg(feature = "deflate")]
    pub(crate) fn is_inflating_paused(&self) -> bool {
        self.unhandled > self.half
    }

    /// Updates the count after the bytes of a parked message, or of input that waits, have changed.
    pub(crate) fn change_parked(&mut self, before: usize, now: usize) {
        debug_assert!(self.parked >= before);
        self.parked = self.parked.saturating_sub(before) + now;
    }

    /// Takes the connection that was paused longest, once there is room. Connections that have just been read come
    /// after it.
    pub(crate) fn resume_reading(&mut self) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        self.paused.pop_front()
    }

    /// The number of paused connections.
    pub(crate) fn paused(&self) -> usize {
        self.paused.len()
    }

    fn has_too_much_unfinished(&self) -> bool {
        self.unfinished.sum() > self.half
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn bytes(&self) -> usize {
        self.unfinished.sum() + self.unhandled + self.authorizing + self.parked
    }
}

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Pauses reading from the connection until handlers have caught up.
    pub(crate) fn pause_reading(&mut self) {
        self.socket.queued = true;
        self.shard.receive_budget.paused.push_back(self.key);
    }
}

impl<T: ShardTransport> Core<T> {
    /// Removes paused connections that have ended, if they might be most of the queue.
    pub(super) fn sweep_paused(&mut self) {
        let paused = &mut self.cx.receive_budget.paused;
        if paused.len() > 2 * self.conns.len() + 64 {
            paused.retain(|&key| self.conns.get(key).is_some());
        }
    }

    /// Enforces the budget after an event that may have changed what connections hold.
    #[inline]
    pub(crate) fn enforce_receive_budget(&mut self) {
        let budget = &self.cx.receive_budget;
        if budget.has_too_much_unfinished() || budget.is_full() {
            self.evict_largest();
        }
    }

    /// Evicts the connections that hold most, until unfinished messages fit their half of the budget.
    #[cold]
    fn evict_largest(&mut self) {
        while self.cx.receive_budget.has_too_much_unfinished()
            && let Some((slot, _)) = self.cx.receive_budget.unfinished.largest()
        {
            let reason = "too many unfinished messages";
            let evicted = self.with_member(slot, |ws, cx| {
                ws.evict(cx, CloseCode::TRY_AGAIN_LATER, reason);
            });
            if evicted.is_none() {
                break;
            }
        }
        self.enforce_held_back_budget();
    }

    /// Disconnects the clients that hold most, if reading is paused because they do not read their replies, or send too
    /// fast. The rest of the budget is free as soon as handlers have caught up.
    #[inline]
    pub(crate) fn enforce_held_back_budget(&mut self) {
        while self.cx.receive_budget.is_full()
            && self.cx.receive_budget.held_back.sum() > self.cx.receive_budget.half / 2
            && let Some((slot, _)) = self.cx.receive_budget.held_back.largest()
        {
            let disconnected = self.with_member(slot, |ws, cx| match ws.has_held_input() {
                true => ws.evict_held_input(cx),
                false => ws.disconnect_slow(cx),
            });
            if disconnected.is_none() {
                break;
            }
        }
    }
}
