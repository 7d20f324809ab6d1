//! Keyed messages for members that do not receive them at once: of each key only the newest waits, in the place where the first
//! one began to wait (conflation). The slow-consumer policy decides only about what exceeds their own bound.
//!
//! A keyed message that waits is not compressed with the history of its audience, since the message that it would refer to may be
//! replaced. So the connection leaves its epoch. Messages of at least `ALONE_FROM_BYTES` may wait as their sender has compressed
//! them.

use bytes::Bytes;

use crate::engine::model::command::KeyedSnapshot;
use crate::engine::model::room::SharedRoom;
use crate::engine::parts::batch::{KeyedFrame, Part, SealedBatch};
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::outbox::KeyedPush;
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::fanout::enqueue::Ownership;
use crate::engine::reactor::websocket::WebSocket;
use crate::transport::ShardTransport;

/// A part of a connection's share of all batches, for its outbox to keep.
enum KeyedShare {
    Messages(Vec<u8>, u32),
    Keyed(ConflationKey, Bytes),
}

impl Fanout {
    /// Whether a connection's share of all batches may contain keyed messages.
    #[inline]
    pub(super) fn has_keyed_share(&self, ws: &WebSocket) -> bool {
        self.keyed_batches > 0 && self.is_keyed_for(ws)
    }

    #[cold]
    fn is_keyed_for(&self, ws: &WebSocket) -> bool {
        let batches = self.batches_of(ws);
        batches
            .iter()
            .any(|&index| self.batches[index as usize].is_keyed())
    }

    /// Takes the messages of all batches that a connection has yet to be sent, in order.
    fn take_keyed_parts(&mut self, ws: &mut WebSocket) -> Vec<KeyedShare> {
        let seen = std::mem::replace(&mut ws.seen, self.broadcasts);
        let batches = self.batches_of(ws);
        #[cfg(feature = "deflate")]
        for &index in &batches {
            self.batches[index as usize].note_early(seen, ws.compression);
        }
        let mut frames: Vec<(u64, &[u8], Option<&KeyedFrame>)> = Vec::new();
        for &index in &batches {
            let batch = &self.batches[index as usize];
            let of_batch = batch.from(seen, ws.compression);
            frames.extend(of_batch.map(|(number, frame)| (number, frame, batch.key_of(number))));
        }
        frames.sort_unstable_by_key(|&(number, ..)| number);
        let mut parts = Vec::new();
        for (_, frame, keyed) in frames {
            match (keyed, parts.last_mut()) {
                (Some(keyed), _) => {
                    parts.push(KeyedShare::Keyed(keyed.key, keyed.plain().clone()));
                }
                (None, Some(KeyedShare::Messages(run, count))) => {
                    run.extend_from_slice(frame);
                    *count += 1;
                }
                (None, _) => parts.push(KeyedShare::Messages(frame.to_vec(), 1)),
            }
        }
        parts
    }
}

impl WebSocket {
    /// Moves the client's share of all batches into its outbox, where keyed messages may be replaced.
    #[cold]
    pub(super) fn take_keyed_share<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        #[cfg(feature = "deflate")]
        if cx.shard.fanout.compressed_share_len(self).is_some() {
            self.compression.leave_epoch();
        }
        for part in cx.shard.fanout.take_keyed_parts(self) {
            match part {
                KeyedShare::Messages(mut run, count) => {
                    run.shrink_to_fit();
                    let run = match self.encoding() {
                        Encoding::Frames => run.into(),
                        Encoding::Events => self.join_ids(run.into()),
                    };
                    self.enqueue(cx, run, count, Ownership::Unshared);
                }
                KeyedShare::Keyed(key, message) => self.enqueue_keyed(cx, key, message),
            }
        }
        self.note_fill(cx);
    }

    /// Queues the last `messages` messages of a batch, some of which have a key.
    pub(super) fn enqueue_parts<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
        messages: u32,
    ) {
        #[cfg(feature = "deflate")]
        if batch.epoch().is_some() {
            self.compression.leave_epoch();
        }
        for part in batch.last_parts(messages) {
            match part {
                Part::Messages(run, count, of) => {
                    self.enqueue(cx, run, count, Ownership::Shared { of });
                }
                Part::Keyed(keyed) => {
                    let message = keyed.for_later(self.compression, &self.outbox).clone();
                    self.enqueue_keyed(cx, keyed.key, message);
                }
            }
        }
        self.note_fill(cx);
    }

    /// Processes a partial write of `written` bytes of a batch with keyed messages: the frame in progress is queued, and the
    /// messages after it wait.
    pub(super) fn take_keyed_partial<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
        written: usize,
    ) {
        let frames = batch.frames_mut(self.compression);
        let (from, messages) = frames.share(self.seen);
        let (end, begun) = frames.end_of_message(from, written);
        let (bytes, unshared) = frames.keep(from..end);
        let left = self
            .outbox
            .push_rest(bytes, begun, written, unshared, cx.shard.tick);
        // Usually it has a key, and must not make producers wait or the client count as slow.
        self.outbox.exempt_rest();
        let counters = cx.shard.counters();
        counters.bytes_out.add_alone(written as u64);
        counters.wrote(left, 0);
        let write_timeout = cx.shard.limits().write_timeout;
        self.blocked(cx.shard.tick, write_timeout);
        self.enqueue_parts(cx, batch, messages - begun);
    }

    /// Queues a keyed message, or puts it in the place of the one of its key that waits.
    fn enqueue_keyed<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        key: ConflationKey,
        message: Bytes,
    ) {
        if !self.is_open() {
            cx.shard.counters().dropped_closed.add(1);
            return;
        }
        let weight_max = cx.shard.limits().keyed_bytes_max;
        match self
            .outbox
            .push_keyed(key, message, weight_max, cx.shard.tick)
        {
            KeyedPush::Queued => {}
            KeyedPush::Replaced => cx.shard.counters().conflated.add_alone(1),
            KeyedPush::Full(message) => {
                // As if it had no key. No older message of its key waits that it could overtake.
                let of = message.len();
                self.enqueue(cx, message, 1, Ownership::Shared { of });
                return;
            }
        }
        // Readiness will be reported: a write now would only copy what waits.
        if !self.is_blocked() {
            self.want_write(cx);
        }
    }

    /// Makes the kernel take little in advance for a client of a keyed room: what it has taken can't be replaced.
    pub(crate) fn limit_unsent_for<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        room: &SharedRoom,
    ) {
        if room.is_keyed()
            && let Some(transport) = &cx.socket.transport
        {
            transport.limit_unsent();
        }
    }

    /// Queues the newest message of each key for a client that has just joined. What waits of a key is replaced, so that nothing
    /// older follows. As for replays, the bound does not apply.
    pub(crate) fn queue_snapshot<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        snapshot: KeyedSnapshot,
    ) {
        if snapshot.is_empty() {
            return;
        }
        let messages = snapshot.len() as u64;
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            cx.shard.fanout.due += messages;
        }
        if !self.is_open() {
            cx.shard.counters().dropped_closed.add(messages);
            return;
        }
        let mut replaced = 0;
        for (key, message) in snapshot {
            let outcome = self
                .outbox
                .push_keyed(key, message, usize::MAX, cx.shard.tick);
            replaced += u64::from(outcome == KeyedPush::Replaced);
        }
        cx.shard.counters().conflated.add_alone(replaced);
        self.note_fill(cx);
        self.want_write(cx);
    }
}
