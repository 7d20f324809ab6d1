//! The chunks of a queue that stand for keyed messages.
//!
//! Such a chunk has no bytes, and stands for messages in a row. The messages of all these chunks are in one queue of their own
//! ([`WaitingKeyed`](crate::engine::parts::outbox::keyed::WaitingKeyed)), and other messages stay between them. A message whose frame has
//! begun to be written is an ordinary chunk, which nothing replaces.

use bytes::{Buf, Bytes};

use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::outbox::keyed::{KEYED_ENTRY_BYTES, KeyedPush};
use crate::engine::parts::outbox::queue::{Chunk, Origin, Queue};
use crate::engine::parts::timers::Tick;

impl Queue {
    /// The number of keyed messages that wait, without the one in progress.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(in crate::engine::parts::outbox) fn keyed_messages(&self) -> usize {
        self.keyed.as_ref().map_or(0, |keyed| keyed.len())
    }

    /// The length of the keyed messages that wait, without the one in progress.
    pub(in crate::engine::parts::outbox) fn keyed_bytes(&self) -> usize {
        self.keyed.as_ref().map_or(0, |keyed| keyed.bytes())
    }

    /// Queues a keyed message, or puts it in the place of the one of its key that waits.
    pub(in crate::engine::parts::outbox) fn push_keyed(
        &mut self,
        key: ConflationKey,
        message: Bytes,
        weight_max: usize,
        now: Tick,
    ) -> KeyedPush {
        let len = message.len();
        let keyed = self.keyed.get_or_insert_default();
        let message = match keyed.replace(key, message) {
            Ok(before) => {
                // In this order, since the older one may be longer.
                self.bytes = self.bytes + len - before;
                self.exempt_bytes = self.exempt_bytes + len - before;
                return KeyedPush::Replaced;
            }
            Err(message) => message,
        };
        let weight = keyed.weight().saturating_add(len + KEYED_ENTRY_BYTES);
        if weight > weight_max && !keyed.is_empty() {
            return KeyedPush::Full(message);
        }
        keyed.push(key, message, now);
        self.bytes += len;
        self.exempt_bytes += len;
        self.held += KEYED_ENTRY_BYTES;
        match self.chunks.back_mut() {
            Some(tail) if tail.keyed() > 0 => {
                tail.messages += 1;
                tail.held += KEYED_ENTRY_BYTES;
            }
            _ => self.chunks.push_back(Chunk {
                bytes: Bytes::new(),
                messages: 1,
                held: KEYED_ENTRY_BYTES,
                origin: Origin::new(now, true),
            }),
        }
        KeyedPush::Queued
    }

    /// The bytes to be written, in order.
    pub(in crate::engine::parts::outbox) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        let keyed = self.keyed.as_deref();
        let mut next = 0;
        self.chunks.iter().flat_map(move |chunk| {
            let first = next;
            next += chunk.keyed();
            let messages = keyed.map(|keyed| keyed.range(first..next));
            let own = (chunk.keyed() == 0).then_some(&chunk.bytes);
            own.into_iter().chain(messages.into_iter().flatten())
        })
    }

    /// Removes up to `n` written bytes of the keyed message at the front. Returns the number of bytes, and the origin of the message
    /// if it is written in full.
    pub(super) fn consumed_keyed(&mut self, n: usize) -> (usize, Option<Origin>) {
        let message = self.keyed.as_mut().and_then(|keyed| keyed.pop());
        let (Some((mut message, since)), Some(front)) = (message, self.chunks.front_mut()) else {
            debug_assert!(false, "a chunk stands for keyed messages that do not wait");
            self.chunks.pop_front();
            return (0, None);
        };
        let written = n.min(message.len());
        self.exempt_bytes -= written;
        self.held -= KEYED_ENTRY_BYTES;
        front.held -= KEYED_ENTRY_BYTES;
        front.messages -= 1;
        if front.messages == 0 {
            self.chunks.pop_front();
        }
        if self.keyed.as_ref().is_some_and(|keyed| keyed.is_empty()) {
            self.keyed = None;
        }
        message.advance(written);
        self.in_progress = message.len();
        let origin = Origin::since(since).exempt();
        if message.is_empty() {
            return (written, Some(origin));
        }
        self.chunks.push_front(Chunk {
            bytes: message,
            messages: 1,
            held: 0,
            origin,
        });
        (written, None)
    }
}
