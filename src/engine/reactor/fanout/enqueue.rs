//! Enqueuing messages into an outbox, within its bound and the slow-consumer policy.

use bytes::Bytes;

use crate::engine::model::command::Command;
use crate::engine::model::replay::{Replay, ReplayPart};
use crate::engine::parts::batch::{ALONE_FROM_BYTES, keep_piece};
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::Key;
use crate::engine::parts::slow_consumer::{DeliveryVerdict, Fill, judge};
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::websocket::WebSocket;
use crate::limits::SlowConsumer;
use crate::transport::ShardTransport;

/// The owner of bytes that an outbox is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// No other outbox holds them, and they fill their allocation.
    Unshared,
    /// Other outboxes may hold them; their allocation has `of` bytes.
    Shared { of: usize },
}

/// Whole messages to be enqueued.
struct Messages {
    bytes: Bytes,
    count: u32,
    source: Ownership,
    /// Whether some messages were split off.
    is_cut: bool,
}

impl Messages {
    /// Splits off the first messages, as far as they fit into the outbox, at least one.
    fn split_whole(&mut self, ws: &WebSocket, fill: &Fill, bytes_max: usize) -> (Bytes, u32) {
        let (len, count) = match self.count {
            1 => (self.bytes.len(), 1),
            _ => ws
                .encoding()
                .whole(&self.bytes, bytes_max.saturating_sub(fill.bytes)),
        };
        let piece = self.bytes.split_to(len);
        self.is_cut |= !self.bytes.is_empty();
        self.count -= count;
        (piece, count)
    }

    /// A piece of the messages, as an outbox keeps it, and whether no other outbox shares it. Once some were dropped,
    /// the others must not keep their memory.
    fn kept(&self, piece: Bytes) -> (Bytes, bool) {
        match self.source {
            Ownership::Unshared if self.is_cut => (Bytes::copy_from_slice(&piece), true),
            Ownership::Unshared => (piece, true),
            Ownership::Shared { of } => keep_piece(piece, of),
        }
    }
}

impl Fanout {
    /// Merges a frame with the small frames to the same connection that follow it, such as a handler's replies to
    /// messages that came together.
    #[inline]
    pub(super) fn with_next_sends(&mut self, key: Key, frame: Bytes) -> (Bytes, u32) {
        let max = self.batches_bytes_max.min(ALONE_FROM_BYTES);
        // Paced producers wait for each message.
        if self.paces || frame.len() >= max {
            return (frame, 1);
        }
        let (mut len, mut count) = (frame.len(), 0);
        for command in &self.commands {
            match command {
                Command::Send(to, next) if *to == key && len + next.len() <= max => {
                    len += next.len();
                    count += 1;
                }
                _ => break,
            }
        }
        if count == 0 {
            return (frame, 1);
        }
        let mut joined = Vec::with_capacity(len);
        joined.extend_from_slice(&frame);
        for command in self.commands.drain(..count) {
            if let Command::Send(_, frame) = command {
                joined.extend_from_slice(&frame);
            }
        }
        self.delivered += count as u64;
        (joined.into(), 1 + count as u32)
    }
}

impl WebSocket {
    /// Sends frames to the client, behind its share of earlier broadcasts.
    pub(crate) fn send<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        frames: Bytes,
        messages: u32,
    ) {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            cx.shard.fanout.due += u64::from(messages);
        }
        if !self.is_open() {
            cx.shard.counters().dropped_closed.add(messages.into());
            return;
        }
        self.take_batches(cx);
        self.enqueue(cx, frames, messages, Ownership::Unshared);
        self.note_fill(cx);
    }

    /// Moves the client's share of all batches into its outbox.
    #[inline]
    pub(crate) fn take_batches<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if cx.shard.fanout.has_keyed_share(self) {
            self.take_keyed_share(cx);
            return;
        }
        #[cfg(feature = "deflate")]
        if self.compression.epoch().is_some()
            && cx.shard.hub.settings.slow_consumer.drops()
            && let Some(len) = cx.shard.fanout.compressed_share_len(self)
        {
            self.make_sure_it_fits(cx, len);
        }
        if let Some((frames, messages)) = cx.shard.fanout.take_share(self) {
            let frames = match self.encoding() {
                Encoding::Frames => frames,
                Encoding::Events => self.join_ids(frames),
            };
            self.enqueue(cx, frames, messages, Ownership::Unshared);
            let transport = cx.socket.transport.as_ref();
            cx.shard.fanout.note_unshared(self, transport);
        }
    }

    /// Checks that a share of compressed frames fits into the outbox as a whole. Compressed frames refer to earlier ones, so
    /// where the slow-consumer policy may drop some, the connection otherwise leaves its epoch and gets the share
    /// plain.
    #[cfg(feature = "deflate")]
    pub(super) fn make_sure_it_fits<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        len: usize,
    ) {
        let policy = cx.shard.hub.settings.slow_consumer;
        if !policy.drops() {
            return;
        }
        let bytes_max = cx.shard.limits().outbox_bytes_max;
        let fits =
            |ws: &Self| judge(policy, ws.outbox.fill(bytes_max), len) == DeliveryVerdict::Queue;
        if !fits(self) && !self.is_blocked() {
            self.write(cx);
        }
        if !fits(self) {
            self.compression.leave_epoch();
        }
    }

    /// Queues a room's history for a client that has just joined. The slow-consumer policy does not apply: neither the
    /// length of this replay nor the rest of earlier ones shows how the client reads. A client that reads none of it is
    /// disconnected by its write timeout, or by the send budget.
    pub(crate) fn replay<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, replay: Replay) {
        if replay.is_empty() {
            return;
        }
        let messages = replay.messages();
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            cx.shard.fanout.due += u64::from(messages);
        }
        if self.is_open() {
            let now = cx.shard.tick;
            if self.encoding() == Encoding::Events && self.joins_ids() {
                let events = self.join_ids(replay.concat());
                self.outbox.push_replay(events, messages, false, now);
            } else {
                for part in replay.parts() {
                    let ReplayPart {
                        bytes,
                        messages,
                        is_shared,
                    } = part;
                    self.outbox.push_replay(bytes, messages, is_shared, now);
                }
            }
        } else {
            let dropped = u64::from(messages);
            cx.shard.counters().dropped_closed.add(dropped);
        }
        self.note_fill(cx);
        self.want_write(cx);
    }

    /// Queues whole messages, as far as the slow-consumer policy allows.
    pub(super) fn enqueue<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        bytes: Bytes,
        count: u32,
        source: Ownership,
    ) {
        let bytes_max = cx.shard.limits().outbox_bytes_max;
        let policy = cx.shard.hub.settings.slow_consumer;
        let tick = cx.shard.tick;
        let mut has_written = false;
        let mut messages = Messages {
            bytes,
            count,
            source,
            is_cut: false,
        };
        while messages.count > 0 {
            if !self.is_open() {
                let dropped = u64::from(messages.count);
                cx.shard.counters().dropped_closed.add(dropped);
                return;
            }
            let fill = self.outbox.fill(bytes_max);
            if judge(policy, fill, messages.bytes.len()) == DeliveryVerdict::Queue {
                let rest = std::mem::take(&mut messages.bytes);
                let (piece, unshared) = messages.kept(rest);
                self.outbox.push(piece, messages.count, unshared, tick);
                break;
            }
            let costs_all = matches!(policy, SlowConsumer::Disconnect | SlowConsumer::SkipAhead);
            if !has_written && (!self.is_blocked() || costs_all) {
                // The socket may take what is queued, so a full outbox alone does not show a slow client. Even one that
                // was blocked is tried before a decision that costs it all its queued messages.
                has_written = true;
                self.write(cx);
                continue;
            }
            let (piece, count) = messages.split_whole(self, &fill, bytes_max);
            let len = piece.len();
            let verdict = judge(policy, fill, len);
            match verdict {
                // A paced shard has checked the headroom before, except for a keyed message beyond the bound of those: then
                // producers wait with their next message.
                DeliveryVerdict::Queue | DeliveryVerdict::Wait => {
                    let (piece, unshared) = messages.kept(piece);
                    self.outbox.push(piece, count, unshared, tick);
                }
                DeliveryVerdict::DropNewest => {
                    let dropped = u64::from(count);
                    cx.shard.counters().dropped_slow_consumer.add(dropped);
                }
                DeliveryVerdict::DropOldest | DeliveryVerdict::SkipAhead => {
                    let dropped = match verdict {
                        DeliveryVerdict::SkipAhead => self.outbox.drop_messages(),
                        _ => self.outbox.drop_oldest(len, bytes_max),
                    };
                    #[cfg(feature = "deflate")]
                    if dropped > 0 && self.compression.is_agreed() {
                        // Some of the dropped messages may have been compressed, and those that refer to them were dropped
                        // too.
                        self.compression.leave_epoch();
                    }
                    let (piece, unshared) = messages.kept(piece);
                    self.outbox.push(piece, count, unshared, tick);
                    cx.shard.counters().dropped_slow_consumer.add(dropped);
                }
                DeliveryVerdict::Disconnect => {
                    let dropped = u64::from(count + messages.count);
                    cx.shard.counters().dropped_slow_consumer.add(dropped);
                    self.disconnect_slow(cx);
                    return;
                }
            }
        }
        self.want_write(cx);
    }
}
