//! The queue of an outbox that is not empty.

mod keyed_chunks;

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::outbox::keyed::WaitingKeyed;
use crate::engine::parts::outbox::{Delays, GATHER_BYTES_MAX, Written};
use crate::engine::parts::slow_consumer::Fill;
use crate::engine::parts::timers::Tick;
use crate::transport::ShardTransport;

/// Most control frames that may wait for a client. At 127 bytes each they are the outbox's small allowance beside its
/// bound. A client that triggers more is not read until it has taken some.
pub(super) const CONTROLS_MAX: u16 = 16;

/// Chunks of this size or more are written from where they are; smaller ones are gathered first.
const GATHER_BELOW_BYTES: usize = 16 << 10;

/// Most pieces of one vectored write.
const PIECES_MAX: usize = 16;

/// From this number of chunks on, small ones are copied into chunks of up to `MERGE_BYTES_MAX` bytes.
const MERGE_FROM_CHUNKS: usize = 32;

const MERGE_BYTES_MAX: usize = 4 << 10;

/// The overhead of a chunk: its entry in the queue, and that of an allocation.
const CHUNK_BYTES: usize = size_of::<Chunk>() + 16;

/// The memory that a chunk holds with an allocation of this size to itself.
pub(super) fn held_by(allocated: usize) -> usize {
    allocated + CHUNK_BYTES
}

fn copy_to_merge(bytes: &[u8]) -> BytesMut {
    let mut copy = BytesMut::with_capacity(MERGE_BYTES_MAX);
    copy.extend_from_slice(bytes);
    copy
}

/// Copies as many pieces as one write takes.
fn gather<'a>(pieces: impl Iterator<Item = &'a Bytes>, scratch: &mut Vec<u8>) {
    for piece in pieces {
        if scratch.len() + piece.len() > GATHER_BYTES_MAX {
            break;
        }
        scratch.extend_from_slice(piece);
    }
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) chunks: VecDeque<Chunk>,
    bytes: usize,
    held: usize,
    /// The bytes that do not count against the bound: those of replays and of keyed messages.
    exempt_bytes: usize,
    in_progress: usize,
    controls: u16,
    pub(super) encoding: Encoding,
    /// The keyed messages that wait, for the chunks that stand for them.
    pub(super) keyed: Option<Box<WaitingKeyed>>,
}

pub(super) struct Chunk {
    /// Empty if the chunk stands for keyed messages, which are replaced while they wait.
    bytes: Bytes,
    /// Whole messages in the chunk, with the one in progress; zero for control frames.
    messages: u32,
    /// The memory that it holds and no other outbox shares, until its last byte was written. Zero if others share it,
    /// and for control frames, which are few and short.
    held: usize,
    origin: Origin,
}

/// When a chunk was queued, and whether it is exempt: it does not count against the bound, and no policy drops it. That is so for
/// replays and keyed messages, which do not show how quickly the client reads. Both are in 32 bits, so that the time takes no
/// memory: every chunk has it, and it is rarely asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origin(u32);

impl Origin {
    fn new(now: Tick, is_exempt: bool) -> Self {
        Self(now.low_bits() << 1 | u32::from(is_exempt))
    }

    /// The origin of a message without its chunk, of whose time the low bits are known ([`Tick::low_bits`]).
    fn since(low_bits: u32) -> Self {
        Self(low_bits << 1)
    }

    /// The same time, for a chunk that is exempt.
    fn exempt(self) -> Self {
        Self(self.0 | 1)
    }

    fn is_exempt(self) -> bool {
        self.0 & 1 == 1
    }

    fn age(self, now: Tick) -> Duration {
        now.since_low_bits(self.0 >> 1)
    }
}

impl Chunk {
    /// The number of keyed messages that the chunk stands for.
    fn keyed(&self) -> usize {
        match self.bytes.is_empty() {
            true => self.messages as usize,
            false => 0,
        }
    }
}

impl Queue {
    /// Whether the queue equals a new one, so that it can be reused.
    pub(super) fn is_pristine(&self) -> bool {
        self.chunks.is_empty()
            && self.keyed.is_none()
            && (self.bytes, self.held, self.exempt_bytes) == (0, 0, 0)
            && (self.in_progress, self.controls) == (0, 0)
    }

    /// All queued bytes, if they are one piece.
    pub(super) fn sole(&self) -> Option<&[u8]> {
        if self.chunks.len() != 1 {
            return None;
        }
        match self.chunks[0].keyed() {
            0 => Some(&self.chunks[0].bytes),
            1 => self.keyed.as_ref()?.front().map(|bytes| &bytes[..]),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory that is held for this client alone. An allocation counts until its last byte was written.
    pub(super) fn own_bytes(&self) -> usize {
        self.held
    }

    /// Bytes that count against the outbox's bound: all except those of replays and of keyed messages.
    pub(super) fn live_bytes(&self) -> usize {
        self.bytes - self.exempt_bytes
    }

    pub(super) fn fill(&self, bytes_max: usize) -> Fill {
        let is_exempt = self
            .chunks
            .front()
            .is_some_and(|front| front.origin.is_exempt());
        Fill {
            bytes: self.live_bytes(),
            in_progress: if is_exempt { 0 } else { self.in_progress },
            bytes_max,
        }
    }

    /// How long the oldest queued bytes have waited. Of messages that were joined, the oldest counts.
    pub(super) fn age(&self, now: Tick) -> Duration {
        // Control frames overtake messages, so the first message may be older than they are.
        let first_message = self.chunks.iter().find(|chunk| chunk.messages > 0);
        let oldest = self.chunks.front().into_iter().chain(first_message);
        let ages = oldest.map(|chunk| match (chunk.keyed(), &self.keyed) {
            (1.., Some(keyed)) => keyed.age(now),
            _ => chunk.origin.age(now),
        });
        ages.max().unwrap_or_default()
    }

    /// Whether the limit of queued control frames is reached.
    pub(super) fn controls_full(&self) -> bool {
        self.controls >= CONTROLS_MAX
    }

    /// The number of queued messages, with the one in progress.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn messages(&self) -> u64 {
        self.chunks
            .iter()
            .map(|chunk| u64::from(chunk.messages))
            .sum()
    }

    /// Bytes of messages that no other outbox shares.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn unshared_bytes(&self) -> usize {
        let unshared = |chunk: &&Chunk| chunk.messages > 0 && chunk.bytes.is_unique();
        self.chunks
            .iter()
            .filter(unshared)
            .map(|chunk| chunk.bytes.len())
            .sum()
    }

    /// Whether the counts match the chunks.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn held_by_chunks(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.held).sum()
    }

    /// The memory that is held for messages that no other outbox shares.
    #[cfg(all(test, not(loom)))]
    pub(super) fn kept_bytes(&mut self) -> usize {
        let chunks = self.chunks.iter_mut().filter(|chunk| chunk.held > 0);
        chunks
            .map(
                |chunk| match std::mem::take(&mut chunk.bytes).try_into_mut() {
                    Ok(bytes) => {
                        let kept = bytes.capacity();
                        chunk.bytes = bytes.freeze();
                        kept
                    }
                    Err(shared) => {
                        chunk.bytes = shared;
                        0
                    }
                },
            )
            .sum()
    }

    /// Queues whole messages. `own`: no other outbox shares them.
    pub(super) fn push(&mut self, bytes: Bytes, messages: u32, own: bool, now: Tick) {
        debug_assert!(messages > 0);
        self.bytes += bytes.len();
        if self.chunks.len() >= MERGE_FROM_CHUNKS
            && let Some(tail) = self.chunks.back_mut()
            && tail.messages > 0
            && !tail.origin.is_exempt()
            && tail.bytes.len() + bytes.len() <= MERGE_BYTES_MAX
        {
            // Many small messages wait. One chunk each would take far more memory than the bound counts.
            let held = held_by(MERGE_BYTES_MAX);
            self.held = self.held + held - tail.held;
            tail.held = held;
            let tail_bytes = std::mem::take(&mut tail.bytes);
            let mut merged = match tail_bytes.try_into_mut() {
                Ok(own)
                    if own.capacity() <= MERGE_BYTES_MAX
                        && own.capacity() - own.len() >= bytes.len() =>
                {
                    own
                }
                Ok(own) => copy_to_merge(&own),
                Err(shared) => copy_to_merge(&shared),
            };
            merged.extend_from_slice(&bytes);
            tail.bytes = merged.freeze();
            tail.messages += messages;
            return;
        }
        let held = if own { held_by(bytes.len()) } else { 0 };
        self.held += held;
        self.chunks.push_back(Chunk {
            bytes,
            messages,
            held,
            origin: Origin::new(now, false),
        });
    }

    /// Queues whole messages of a replay. The entry counts even if others share the bytes, since a client may wait for any number
    /// of replays.
    pub(super) fn push_replay(&mut self, bytes: Bytes, messages: u32, is_shared: bool, now: Tick) {
        debug_assert!(messages > 0);
        let held = held_by(if is_shared { 0 } else { bytes.len() });
        self.bytes += bytes.len();
        self.held += held;
        self.exempt_bytes += bytes.len();
        self.chunks.push_back(Chunk {
            bytes,
            messages,
            held,
            origin: Origin::new(now, true),
        });
    }

    /// Queues the response to a handshake, which is no frame, before all frames.
    pub(super) fn push_preface(&mut self, bytes: Bytes, now: Tick) {
        debug_assert!(self.is_empty());
        self.in_progress = bytes.len();
        self.bytes += bytes.len();
        self.controls += 1;
        // Unlike a control frame, the response may be long: an event stream's repeats parts of the request.
        let held = held_by(bytes.len());
        self.held += held;
        self.chunks.push_back(Chunk {
            bytes,
            messages: 0,
            held,
            origin: Origin::new(now, false),
        });
    }

    /// Queues messages whose first `written` bytes were written already. Returns how many messages those were.
    pub(super) fn push_rest(
        &mut self,
        bytes: Bytes,
        messages: u32,
        written: usize,
        own: bool,
        now: Tick,
    ) -> u64 {
        debug_assert!(self.is_empty());
        self.push(bytes, messages, own, now);
        self.consumed(written)
    }

    /// Stops counting the message in progress against the bound. It must be all that is queued.
    pub(super) fn exempt_rest(&mut self) {
        debug_assert_eq!((self.chunks.len(), self.exempt_bytes), (1, 0));
        if let Some(rest) = self.chunks.front_mut() {
            rest.origin = rest.origin.exempt();
            self.exempt_bytes = rest.bytes.len();
        }
    }

    /// Queues a control frame before all messages that are not in progress (RFC 6455 §5.4).
    pub(super) fn push_control(&mut self, frame: Bytes, now: Tick) {
        self.controls += 1;
        self.bytes += frame.len();
        let mut at = self.split_in_progress();
        while self.chunks.get(at).is_some_and(|chunk| chunk.messages == 0) {
            at += 1;
        }
        self.chunks.insert(
            at,
            Chunk {
                bytes: frame,
                messages: 0,
                held: 0,
                origin: Origin::new(now, false),
            },
        );
    }

    /// Queues a control frame, or replaces the latest one if there are too many. RFC 6455 §5.5.3 allows answering only
    /// the most recent ping.
    pub(super) fn push_control_or_replace(&mut self, frame: Bytes, now: Tick) {
        if self.controls_full() {
            let first = self.split_in_progress();
            let mut at = first;
            while self.chunks.get(at).is_some_and(|chunk| chunk.messages == 0) {
                at += 1;
            }
            if at > first
                && let Some(latest) = self.chunks.remove(at - 1)
            {
                self.bytes -= latest.bytes.len();
                self.controls -= 1;
            }
        }
        self.push_control(frame, now);
    }

    /// Queues a control frame behind everything: the close frame of a graceful shutdown.
    pub(super) fn push_last(&mut self, frame: Bytes, now: Tick) {
        self.controls += 1;
        self.bytes += frame.len();
        self.chunks.push_back(Chunk {
            bytes: frame,
            messages: 0,
            held: 0,
            origin: Origin::new(now, false),
        });
    }

    /// Makes the frame in progress a chunk of its own. Returns the index of the first chunk with whole frames.
    pub(super) fn split_in_progress(&mut self) -> usize {
        let Some(front) = self.chunks.front_mut() else {
            return 0;
        };
        if self.in_progress == 0 {
            return 0;
        }
        if front.bytes.len() > self.in_progress {
            let mut rest = Chunk {
                bytes: front.bytes.split_off(self.in_progress),
                messages: front.messages.saturating_sub(1),
                held: 0,
                origin: front.origin,
            };
            front.messages = front.messages.min(1);
            if front.held > 0 {
                // Either may outlive the other, so each needs an allocation of its own. The smaller one is copied.
                let smaller = if front.bytes.len() <= rest.bytes.len() {
                    std::mem::swap(&mut front.held, &mut rest.held);
                    &mut *front
                } else {
                    &mut rest
                };
                smaller.bytes = Bytes::copy_from_slice(&smaller.bytes);
                smaller.held = held_by(smaller.bytes.len());
                self.held += smaller.held;
            }
            self.chunks.insert(1, rest);
        }
        1
    }

    /// Drops the oldest whole messages, except replays and keyed ones, until `len` bytes fit. Returns their number.
    pub(super) fn drop_oldest(&mut self, len: usize, bytes_max: usize) -> u64 {
        let mut dropped = 0;
        let mut at = self.split_in_progress();
        #[cfg(feature = "deflate")]
        let mut compressed_dropped = false;
        while self.live_bytes() > 0 && self.live_bytes().saturating_add(len) > bytes_max {
            let Some(chunk) = self.chunks.get_mut(at) else {
                break;
            };
            if chunk.messages == 0 || chunk.origin.is_exempt() {
                at += 1;
                continue;
            }
            let frame = self.encoding.len_of_first(&chunk.bytes);
            #[cfg(feature = "deflate")]
            {
                compressed_dropped |= self.encoding.is_compressed(&chunk.bytes);
            }
            chunk.bytes.advance(frame);
            chunk.messages -= 1;
            self.bytes -= frame;
            dropped += 1;
            if chunk.bytes.is_empty() {
                self.held -= chunk.held;
                self.chunks.remove(at);
            } else if chunk.held > held_by(4 * chunk.bytes.len()) {
                // The memory of dropped messages must not be held by the last few of the same chunk.
                chunk.bytes = Bytes::copy_from_slice(&chunk.bytes);
                let held = held_by(chunk.bytes.len());
                self.held = self.held + held - chunk.held;
                chunk.held = held;
            }
        }
        #[cfg(feature = "deflate")]
        if compressed_dropped {
            dropped += self.drop_compressed(at);
        }
        dropped
    }

    /// Drops all compressed messages from a chunk on, since they may refer to one that was dropped. Returns their number.
    #[cfg(feature = "deflate")]
    fn drop_compressed(&mut self, from: usize) -> u64 {
        let mut dropped = 0;
        for chunk in self.chunks.iter_mut().skip(from) {
            // Keyed messages and replays refer to no other message.
            if chunk.messages == 0 || chunk.origin.is_exempt() {
                continue;
            }
            let mut kept = BytesMut::new();
            let mut messages = 0;
            let mut rest = &chunk.bytes[..];
            while !rest.is_empty() {
                let (frame, behind) = rest.split_at(self.encoding.len_of_first(rest));
                if !self.encoding.is_compressed(frame) {
                    kept.extend_from_slice(frame);
                    messages += 1;
                }
                rest = behind;
            }
            if messages == chunk.messages {
                continue;
            }
            dropped += u64::from(chunk.messages - messages);
            let less = chunk.bytes.len() - kept.len();
            self.bytes -= less;
            self.held -= chunk.held;
            chunk.messages = messages;
            // The copy has no spare capacity.
            chunk.bytes = Bytes::copy_from_slice(&kept);
            chunk.held = if messages > 0 { held_by(kept.len()) } else { 0 };
            self.held += chunk.held;
        }
        self.chunks
            .retain(|chunk| chunk.messages > 0 || !chunk.bytes.is_empty());
        dropped
    }

    /// Drops all whole messages, except replays and keyed ones. Returns their number.
    ///
    /// No message that stays refers to a dropped one: the frame in progress is older, replays are not compressed, and keyed
    /// messages refer to no other.
    pub(super) fn drop_messages(&mut self) -> u64 {
        let mut begun = self.split_in_progress();
        let mut dropped = 0;
        let (bytes, held) = (&mut self.bytes, &mut self.held);
        self.chunks.retain(|chunk| {
            if begun > 0 || chunk.messages == 0 || chunk.origin.is_exempt() {
                begun = begun.saturating_sub(1);
                return true;
            }
            *bytes -= chunk.bytes.len();
            *held -= chunk.held;
            dropped += u64::from(chunk.messages);
            false
        });
        dropped
    }

    /// Drops everything except the frame in progress. Returns the number of messages dropped.
    pub(super) fn drop_waiting(&mut self) -> u64 {
        let keep = self.split_in_progress();
        let dropped = self
            .chunks
            .drain(keep..)
            .map(|chunk| u64::from(chunk.messages))
            .sum();
        self.bytes = self.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        self.held = self.chunks.iter().map(|chunk| chunk.held).sum();
        let exempt = self.chunks.iter().filter(|chunk| chunk.origin.is_exempt());
        self.exempt_bytes = exempt.map(|chunk| chunk.bytes.len()).sum();
        self.keyed = None;
        self.controls = self
            .chunks
            .iter()
            .filter(|chunk| chunk.messages == 0)
            .count() as u16;
        dropped
    }

    /// Drops everything. Returns the number of messages dropped.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = self
            .chunks
            .iter()
            .map(|chunk| u64::from(chunk.messages))
            .sum();
        *self = Self {
            encoding: self.encoding,
            ..Self::default()
        };
        dropped
    }

    /// Removes bytes that were written from the front. Returns the number of messages that are written in full by it.
    pub(super) fn consumed(&mut self, n: usize) -> u64 {
        let mut messages = 0;
        self.remove_written(n, |count, _| messages += u64::from(count));
        messages
    }

    /// Removes bytes that were written from the front. Tells how many messages are written in full by it, and their origin.
    fn remove_written(&mut self, mut n: usize, mut tell: impl FnMut(u32, Origin)) {
        self.bytes -= n;
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else {
                debug_assert!(false, "more was written than was queued");
                break;
            };
            if front.keyed() > 0 {
                let (bytes, whole) = self.consumed_keyed(n);
                n -= bytes;
                if let Some(origin) = whole {
                    tell(1, origin);
                }
                continue;
            }
            if n >= front.bytes.len() {
                n -= front.bytes.len();
                self.held -= front.held;
                self.exempt_bytes -= if front.origin.is_exempt() {
                    front.bytes.len()
                } else {
                    0
                };
                match front.messages {
                    0 => self.controls = self.controls.saturating_sub(1),
                    messages => tell(messages, front.origin),
                }
                self.in_progress = 0;
                self.chunks.pop_front();
                continue;
            }
            // The write ended inside this chunk: find the frame in which it ended.
            let mut boundary = self.in_progress;
            let mut done = u32::from(boundary > 0 && boundary <= n);
            while boundary < n {
                boundary += self.encoding.len_of_first(&front.bytes[boundary..]);
                done += u32::from(boundary <= n);
            }
            let done = done.min(front.messages);
            front.messages -= done;
            tell(done, front.origin);
            self.in_progress = boundary - n;
            front.bytes.advance(n);
            self.exempt_bytes -= if front.origin.is_exempt() { n } else { 0 };
            n = 0;
        }
    }

    /// The first bytes that are written.
    fn first_piece(&self) -> Option<&Bytes> {
        let front = self.chunks.front()?;
        match front.keyed() {
            0 => Some(&front.bytes),
            _ => self.keyed.as_ref()?.front(),
        }
    }

    /// Writes the first chunks in one vectored write. Returns the outcome, and the number of bytes offered.
    #[inline(never)] // Rarely called: keeps the pieces off the stack of other paths.
    fn write_vectored<T: ShardTransport>(&self, transport: &mut T) -> (usize, io::Result<usize>) {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        for (piece, bytes) in pieces.iter_mut().zip(self.pieces()) {
            *piece = IoSlice::new(bytes);
            count += 1;
        }
        let wanted = pieces.iter().map(|piece| piece.len()).sum();
        (wanted, transport.write_vectored(&pieces[..count]))
    }

    /// Writes until the outbox is empty or the transport takes no more.
    pub(super) fn flush<T: ShardTransport>(
        &mut self,
        mut begun: Option<io::Result<usize>>,
        transport: &mut T,
        (scratch, delays): (&mut Vec<u8>, Delays<'_>),
    ) -> (Written, io::Result<()>) {
        let mut written = Written::default();
        while let Some(front) = self.first_piece() {
            let wanted;
            let result = if let Some(sole) = self.sole() {
                wanted = sole.len();
                let begun = begun.take();
                begun.unwrap_or_else(|| transport.write(sole))
            } else if front.len() >= GATHER_BELOW_BYTES {
                let result;
                (wanted, result) = self.write_vectored(transport);
                result
            } else {
                scratch.clear();
                match self.keyed {
                    None => gather(self.chunks.iter().map(|chunk| &chunk.bytes), scratch),
                    Some(_) => gather(self.pieces(), scratch),
                }
                wanted = scratch.len();
                transport.write(scratch)
            };
            match result {
                Ok(n) => {
                    written.bytes += n;
                    self.remove_written(n, |messages, origin| {
                        let messages = u64::from(messages);
                        let delay = origin.age(delays.now);
                        written.messages += messages;
                        if !delay.is_zero() {
                            delays.counters.add(delay, messages);
                            written.delayed += messages;
                        }
                    });
                    if T::SHORT_MEANS_NOT_READY && n < wanted {
                        // A short write means a full socket: its readiness will be reported.
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }
}
