//! Keyed messages for members that do not receive them at once: of each key only the newest waits, in the place where the first
//! one began to wait (conflation). The slow-consumer policy decides only about what exceeds their own bound.
//!
//! Only what the socket has refused is replaced: where a message would take the place of another one, and the last write was not
//! refused, the socket is tried first.
//!
//! A keyed message that waits is not compressed with the history of its audience, since the message that it would refer to may be
//! replaced. So the connection leaves its epoch. Messages of at least `ALONE_FROM_BYTES` may wait as their sender has compressed
//! them.

use std::io;

use bytes::Bytes;

use crate::engine::model::command::KeyedSnapshot;
use crate::engine::parts::batch::{KeyedFrame, Part, SealedBatch};
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::outbox::{KeyedPush, Outbox};
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

/// A connection's share of all batches in one piece.
struct JoinedShare {
    bytes: Vec<u8>,
    /// The number of each message, and its end in the bytes.
    ends: Vec<(u64, usize)>,
}

/// A message of a connection's share: its number, its frame, and its key if it has one.
type ShareFrame<'a> = (u64, &'a [u8], Option<&'a KeyedFrame>);

/// Whether the outbox would drop a message in favour of one of these, since one of its key waits or comes twice.
fn would_replace(outbox: &Outbox, keys: impl Iterator<Item = ConflationKey>) -> bool {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_unstable();
    keys.windows(2).any(|two| two[0] == two[1])
        || outbox.has_keyed() && keys.iter().any(|&key| outbox.waits(key))
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

    /// The messages of all batches that a connection has yet to be sent, in order.
    fn share_frames(&self, ws: &WebSocket) -> Vec<ShareFrame<'_>> {
        let mut frames: Vec<ShareFrame<'_>> = Vec::new();
        for index in self.batches_of(ws) {
            let batch = &self.batches[index as usize];
            let of_batch = batch.from(ws.seen, ws.compression);
            frames.extend(of_batch.map(|(number, frame)| (number, frame, batch.key_of(number))));
        }
        frames.sort_unstable_by_key(|&(number, ..)| number);
        frames
    }

    /// Joins the connection's share, if it has to be written so that nothing of it is lost, and so that the connection can follow an
    /// epoch on.
    fn share_to_write(&self, ws: &WebSocket) -> Option<JoinedShare> {
        let frames = self.share_frames(ws);
        #[cfg(feature = "deflate")]
        let is_compressed = self.compressed_share_len(ws).is_some();
        #[cfg(not(feature = "deflate"))]
        let is_compressed = false;
        let keys = frames
            .iter()
            .filter_map(|(.., keyed)| Some(keyed.as_ref()?.key));
        if !is_compressed && !would_replace(&ws.outbox, keys) {
            return None;
        }
        let mut share = JoinedShare {
            bytes: Vec::with_capacity(frames.iter().map(|(_, frame, _)| frame.len()).sum()),
            ends: Vec::with_capacity(frames.len()),
        };
        for (number, frame, _) in frames {
            share.bytes.extend_from_slice(frame);
            share.ends.push((number, share.bytes.len()));
        }
        Some(share)
    }

    /// Records that a connection was sent its share of all batches.
    fn note_share_written(&mut self, ws: &mut WebSocket) {
        #[cfg(feature = "deflate")]
        for index in self.batches_of(ws) {
            self.batches[index as usize].note_early(ws.seen, ws.compression);
        }
        ws.seen = self.broadcasts;
    }

    /// Takes the messages of all batches that a connection has yet to be sent, in order, for its outbox.
    fn take_keyed_parts(&mut self, ws: &mut WebSocket) -> Vec<KeyedShare> {
        // A slow connection does not wait for an epoch of a keyed room: it would leave the epoch at once.
        #[cfg(feature = "deflate")]
        let is_slow = ws.is_blocked() || ws.outbox.has_keyed();
        #[cfg(feature = "deflate")]
        for index in self.batches_of(ws) {
            let batch = &mut self.batches[index as usize];
            if !(is_slow && batch.is_keyed()) {
                batch.note_early(ws.seen, ws.compression);
            }
        }
        let mut parts = Vec::new();
        for (_, frame, keyed) in self.share_frames(ws) {
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
        ws.seen = self.broadcasts;
        parts
    }
}

impl WebSocket {
    /// Sends the client its share of all batches. What its socket refuses is moved into its outbox, where keyed messages may be
    /// replaced.
    #[cold]
    pub(super) fn take_keyed_share<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if cx.shard.fanout.pending_messages(self) == 0 {
            self.seen = cx.shard.fanout.broadcasts;
            return;
        }
        if self.write_keyed_share(cx) {
            return;
        }
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
        if self.is_blocked() {
            self.note_depth(cx);
        }
    }

    /// Writes what the outbox must not replace of the client's share of all batches, if the socket takes anything. Returns whether
    /// nothing is left for the outbox.
    fn write_keyed_share<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        // A stream whose ids are rewritten gets bytes of its own.
        if self.is_blocked() || self.joins_ids() {
            return false;
        }
        let Some(share) = cx.shard.fanout.share_to_write(self) else {
            return false;
        };
        if !self.write_before(cx) {
            // A connection that broke has counted its share as lost.
            return !self.is_open();
        }
        let outcome = cx
            .socket
            .transport
            .as_ref()
            .map(|to| to.write(&share.bytes));
        let Some(outcome) = outcome else { return false };
        let now = cx.shard.tick;
        let write_timeout = cx.shard.limits().write_timeout;
        let written = match outcome {
            Ok(written) => written,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            Err(_) => {
                self.break_off(cx);
                return true;
            }
        };
        cx.shard.counters().bytes_out.add_alone(written as u64);
        if written == share.bytes.len() {
            cx.shard.fanout.note_share_written(self);
            cx.shard.counters().wrote(share.ends.len() as u64, 0);
            self.note_fill(cx);
            return true;
        }
        self.blocked(now, write_timeout);
        if written > 0 {
            // The frame in progress is queued, and the messages after it are the share that is left.
            let begun = share.ends.partition_point(|&(_, end)| end < written);
            let (number, end) = share.ends[begun];
            let start = begun
                .checked_sub(1)
                .map_or(0, |before| share.ends[before].1);
            let rest = Bytes::copy_from_slice(&share.bytes[start..end]);
            let completed = self.outbox.push_rest(rest, 1, written - start, true, now);
            // As after a partial write of a batch.
            self.outbox.exempt_rest();
            self.seen = number + 1;
            cx.shard.counters().wrote(begun as u64 + completed, 0);
        }
        false
    }

    /// Writes what waits, before anything else is written. Returns whether the socket takes more.
    fn write_before<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        if !self.outbox.is_empty() {
            self.write(cx);
        }
        self.is_open()
            && self.outbox.is_empty()
            && cx
                .socket
                .transport
                .as_ref()
                .is_some_and(|transport| !transport.has_pending())
    }

    /// Writes a member's share of a batch, if its outbox must not replace any of it and the socket takes anything. Returns whether
    /// this was tried: then nothing of the share is left.
    pub(super) fn write_share<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
    ) -> bool {
        if self.is_blocked() {
            return false;
        }
        // A member of which messages wait would leave its epoch.
        #[cfg(feature = "deflate")]
        let leaves_epoch = batch.epoch().is_some() && self.compression.epoch().is_some();
        #[cfg(not(feature = "deflate"))]
        let leaves_epoch = false;
        if !leaves_epoch && !would_replace(&self.outbox, batch.keys_from(self.seen))
            || !self.write_before(cx)
        {
            return false;
        }
        let frames = batch.frames(self.compression);
        let bytes = &frames.bytes[frames.share(self.seen).0..];
        let outcome = cx.socket.transport.as_ref().map(|to| to.write(bytes));
        let Some(outcome) = outcome else { return false };
        #[cfg(feature = "deflate")]
        let is_written = matches!(outcome, Ok(written) if written == bytes.len());
        #[cfg(feature = "deflate")]
        if is_written {
            let mut followers = batch.followers;
            batch.note_share(&mut followers, self.seen, self.compression);
            batch.followers = followers;
        }
        self.take_rest(cx, batch, outcome);
        self.note_depth(cx);
        true
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
        if !self.is_blocked() && self.outbox.waits(key) {
            // The socket may take what is queued: then nothing is replaced.
            self.write(cx);
            if !self.is_open() {
                cx.shard.counters().dropped_closed.add(1);
                return;
            }
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

    /// Queues the newest message of each key for a client that has just joined. What waits of a key is replaced, so that nothing
    /// older follows. No policy applies, as for replays: what exceeds the bound of keyed messages is queued as a replay, which later
    /// messages of its keys follow.
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
        if !self.is_blocked() && self.outbox.has_keyed() {
            self.write(cx);
            if !self.is_open() {
                cx.shard.counters().dropped_closed.add(messages);
                return;
            }
        }
        let weight_max = cx.shard.limits().keyed_bytes_max;
        let tick = cx.shard.tick;
        let mut replaced = 0;
        for (key, message) in snapshot {
            match self.outbox.push_keyed(key, message, weight_max, tick) {
                KeyedPush::Queued => {}
                KeyedPush::Replaced => replaced += 1,
                KeyedPush::Full(message) => self.outbox.push_replay(message, 1, false, tick),
            }
        }
        cx.shard.counters().conflated.add_alone(replaced);
        self.note_fill(cx);
        self.want_write(cx);
    }
}
