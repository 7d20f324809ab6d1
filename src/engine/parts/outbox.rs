//! A client's outbox: the bytes that its socket has not accepted yet.
//!
//! Invariants: every chunk holds whole frames, except that the first `in_progress` bytes of the first chunk are the
//! rest of a frame that was partly written; a chunk has either messages or control frames; `bytes` is the sum of the
//! chunks, and `own_bytes` the memory of those that no other outbox shares: a chunk's memory is held until all of it
//! was written. An empty outbox owns no memory.
//!
//! A replay counts as memory, but not against the outbox's bound: the length of a room's history does not show that a
//! client is slow. Messages after a replay count as usual. Keyed messages have a bound of their own, since a newer one
//! takes the place of one that waits ([`keyed`]): a chunk without bytes stands for those that wait in a row.
//!
//! Each chunk knows when it was queued (`now` of the methods that queue), which [`Outbox::age`] reports.
//!
//! For clients of event streams, a frame is an event, and a control frame is a comment.

mod keyed;
#[cfg(all(test, not(loom)))]
#[path = "outbox_keyed_tests.rs"]
mod keyed_tests;
mod queue;
#[cfg(all(test, not(loom)))]
#[path = "outbox_tests.rs"]
mod tests;

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::ConflationKey;
pub(crate) use crate::engine::parts::outbox::keyed::KeyedPush;
use crate::engine::parts::outbox::queue::Queue;
use crate::engine::parts::slow_consumer::Fill;
use crate::engine::parts::timers::Tick;
use crate::metrics::DelayCounters;
use crate::transport::ShardTransport;

/// The maximum number of bytes gathered for one write.
pub(crate) const GATHER_BYTES_MAX: usize = 128 << 10;

/// Empty queues that a thread keeps for reuse: most outboxes need one for a moment, again and again.
const SPARES_MAX: usize = 64;

/// The maximum capacity of a queue that is kept for reuse.
const SPARE_CHUNKS_MAX: usize = 64;

thread_local! {
    #[allow(clippy::vec_box)] // Boxes move between outboxes without a copy.
    static SPARES: RefCell<Vec<Box<Queue>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Option<Box<Queue>>,
    encoding: Encoding,
}

/// The outcome of a write.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes that the transport took.
    pub(crate) bytes: usize,
    /// Messages that were written in full.
    pub(crate) messages: u64,
    /// Of these, the ones whose [`Delays`] are counted.
    pub(crate) delayed: u64,
}

/// Where the time is counted for which messages have waited, unless it is too short to be measured.
#[derive(Clone, Copy)]
pub(crate) struct Delays<'a> {
    pub(crate) now: Tick,
    pub(crate) counters: &'a DelayCounters,
}

impl Outbox {
    pub(crate) fn new(encoding: Encoding) -> Self {
        Self {
            waiting: None,
            encoding,
        }
    }

    /// Changes the queue, which exists only while it is not empty.
    fn change<R>(&mut self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let encoding = self.encoding;
        let queue = self.waiting.get_or_insert_with(|| {
            let mut spare = SPARES.with_borrow_mut(Vec::pop).unwrap_or_default();
            spare.encoding = encoding;
            spare
        });
        let outcome = change(queue);
        if queue.is_empty()
            && let Some(spare) = self.waiting.take()
            && spare.chunks.capacity() <= SPARE_CHUNKS_MAX
        {
            debug_assert!(spare.is_pristine());
            SPARES.with_borrow_mut(|spares| {
                if spares.len() < SPARES_MAX {
                    spares.push(spare);
                }
            });
        }
        outcome
    }

    /// Changes the queue if there is one.
    fn change_any<R: Default>(&mut self, change: impl FnOnce(&mut Queue) -> R) -> R {
        match self.waiting {
            Some(_) => self.change(change),
            None => R::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_none()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |queue| queue.bytes())
    }

    /// How long the oldest queued bytes have waited; zero if nothing is queued.
    pub(crate) fn age(&self, now: Tick) -> Duration {
        self.waiting
            .as_ref()
            .map_or(Duration::ZERO, |queue| queue.age(now))
    }

    /// All queued bytes except those of keyed messages.
    pub(crate) fn unkeyed_bytes(&self) -> usize {
        let queue = self.waiting.as_ref();
        queue.map_or(0, |queue| queue.bytes() - queue.keyed_bytes())
    }

    /// The number of keyed messages that wait, and their bytes.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn keyed(&self) -> (usize, usize) {
        let queue = self.waiting.as_ref();
        queue.map_or((0, 0), |queue| {
            (queue.keyed_messages(), queue.keyed_bytes())
        })
    }

    /// Bytes that count against the outbox's bound: all except those of replays and of keyed messages.
    pub(crate) fn live_bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |queue| queue.live_bytes())
    }

    /// The memory that is held for this client alone. An allocation counts until its last byte was written.
    pub(crate) fn own_bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |queue| queue.own_bytes())
    }

    pub(crate) fn fill(&self, bytes_max: usize) -> Fill {
        match &self.waiting {
            Some(queue) => queue.fill(bytes_max),
            None => Fill {
                bytes: 0,
                in_progress: 0,
                bytes_max,
            },
        }
    }

    /// Whether the limit of queued control frames is reached, because the client triggers more of them than it reads.
    pub(crate) fn controls_full(&self) -> bool {
        self.waiting
            .as_ref()
            .is_some_and(|queue| queue.controls_full())
    }

    /// The number of queued messages, with the one in progress.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn messages(&self) -> u64 {
        self.waiting.as_ref().map_or(0, |queue| queue.messages())
    }

    /// Bytes of messages that no other outbox shares.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn unshared_bytes(&self) -> usize {
        self.waiting
            .as_ref()
            .map_or(0, |queue| queue.unshared_bytes())
    }

    /// Recomputes `own_bytes`, for tests.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn held_by_chunks(&self) -> usize {
        self.waiting
            .as_ref()
            .map_or(0, |queue| queue.held_by_chunks())
    }

    /// The memory that is held for messages that no other outbox shares.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn kept_bytes(&mut self) -> usize {
        self.change_any(Queue::kept_bytes)
    }

    /// Queues whole messages. `own`: no other outbox shares them, and they fill their allocation.
    pub(crate) fn push(&mut self, bytes: Bytes, messages: u32, own: bool, now: Tick) {
        self.change(|queue| queue.push(bytes, messages, own, now));
    }

    /// Queues whole messages of a replay. They do not count against the bound. Bytes that other outboxes may share count as
    /// an entry of the queue alone.
    pub(crate) fn push_replay(&mut self, bytes: Bytes, messages: u32, is_shared: bool, now: Tick) {
        self.change(|queue| queue.push_replay(bytes, messages, is_shared, now));
    }

    /// Queues a keyed message, which all outboxes share, or puts it in the place of the one of its key that waits. All keyed
    /// messages that wait count with at most `weight_max`, each with
    /// [`keyed::KEYED_ENTRY_BYTES`] more than its length.
    pub(crate) fn push_keyed(
        &mut self,
        key: ConflationKey,
        message: Bytes,
        weight_max: usize,
        now: Tick,
    ) -> KeyedPush {
        self.change(|queue| queue.push_keyed(key, message, weight_max, now))
    }

    /// Whether any keyed messages wait.
    pub(crate) fn has_keyed(&self) -> bool {
        let queue = self.waiting.as_ref();
        queue.is_some_and(|queue| queue.keyed.is_some())
    }

    /// Whether a message of this key waits, which a newer one would replace.
    pub(crate) fn waits(&self, key: ConflationKey) -> bool {
        let keyed = self.waiting.as_ref().and_then(|queue| queue.keyed.as_ref());
        keyed.is_some_and(|keyed| keyed.contains(key))
    }

    /// Whether an uncompressed message of this key waits.
    #[cfg(feature = "deflate")]
    pub(crate) fn waits_uncompressed(&self, key: ConflationKey) -> bool {
        let keyed = self.waiting.as_ref().and_then(|queue| queue.keyed.as_ref());
        let waiting = keyed.and_then(|keyed| keyed.get(key));
        waiting.is_some_and(|message| !self.encoding.is_compressed(message))
    }

    /// Queues the response to a handshake, which is no frame, before all frames.
    pub(crate) fn push_preface(&mut self, bytes: Bytes, now: Tick) {
        self.change(|queue| queue.push_preface(bytes, now));
    }

    /// Queues messages whose first `written` bytes were written already. Returns how many messages those were.
    pub(crate) fn push_rest(
        &mut self,
        bytes: Bytes,
        messages: u32,
        written: usize,
        own: bool,
        now: Tick,
    ) -> u64 {
        self.change(|queue| queue.push_rest(bytes, messages, written, own, now))
    }

    /// Stops counting the message in progress against the bound, after [`Outbox::push_rest`] has queued it.
    pub(crate) fn exempt_rest(&mut self) {
        self.change_any(Queue::exempt_rest);
    }

    /// Queues a control frame before all messages that are not in progress (RFC 6455 §5.4).
    pub(crate) fn push_control(&mut self, frame: Bytes, now: Tick) {
        self.change(|queue| queue.push_control(frame, now));
    }

    /// Queues a control frame, or replaces the latest one if there are too many. RFC 6455 §5.5.3 allows answering only
    /// the most recent ping.
    pub(crate) fn push_control_or_replace(&mut self, frame: Bytes, now: Tick) {
        self.change(|queue| queue.push_control_or_replace(frame, now));
    }

    /// Queues a control frame behind everything: the close frame of a graceful shutdown.
    pub(crate) fn push_last(&mut self, frame: Bytes, now: Tick) {
        self.change(|queue| queue.push_last(frame, now));
    }

    /// Drops the oldest whole messages, except replays and keyed ones, until `len` bytes fit. Returns their number.
    pub(crate) fn drop_oldest(&mut self, len: usize, bytes_max: usize) -> u64 {
        self.change_any(|queue| queue.drop_oldest(len, bytes_max))
    }

    /// Drops all whole messages, except replays and keyed ones. Control frames stay. Returns the number of messages dropped.
    pub(crate) fn drop_messages(&mut self) -> u64 {
        self.change_any(Queue::drop_messages)
    }

    /// Drops everything except the frame in progress. Returns the number of messages dropped.
    pub(crate) fn drop_waiting(&mut self) -> u64 {
        self.change_any(Queue::drop_waiting)
    }

    /// Drops everything. Returns the number of messages dropped.
    pub(crate) fn clear(&mut self) -> u64 {
        self.change_any(Queue::clear)
    }

    /// The bytes that a flush writes first, if they are one piece.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.waiting.as_ref().and_then(|queue| queue.sole())
    }

    /// Writes until the outbox is empty or the transport takes no more.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn flush<T: ShardTransport>(
        &mut self,
        transport: &mut T,
        scratch: &mut Vec<u8>,
    ) -> (Written, io::Result<()>) {
        let delays = Delays {
            now: Tick::FIRST,
            counters: &DelayCounters::default(),
        };
        self.flush_on(None, transport, (scratch, delays))
    }

    /// Writes the queued bytes. `begun` is the outcome of a write of [`Outbox::front`], if the caller has made one.
    pub(crate) fn flush_on<T: ShardTransport>(
        &mut self,
        begun: Option<io::Result<usize>>,
        transport: &mut T,
        (scratch, delays): (&mut Vec<u8>, Delays<'_>),
    ) -> (Written, io::Result<()>) {
        match self.waiting {
            Some(_) => self.change(|queue| queue.flush(begun, transport, (scratch, delays))),
            None => (Written::default(), Ok(())),
        }
    }
}
