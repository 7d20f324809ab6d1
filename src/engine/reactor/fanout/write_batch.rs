//! Writes to many connections. The shard's writer (`ShardTransport::Writer`) makes one system call for all of them, or
//! one for each.
//!
//! Outcomes are processed after all writes, and nothing else happens in between. So an outbox has not changed between
//! its write and the processing of the outcome.

use std::io;

#[cfg(feature = "deflate")]
use crate::engine::parts::batch::Followers;
use crate::engine::parts::batch::{Audience, Batch, SealedBatch, SealedFrames};
use crate::engine::parts::id::Key;
use crate::engine::reactor::fanout::enqueue::Ownership;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Conn, ConnCx, Core, Stage};
use crate::transport::{ShardTransport, Write, WriteMany};

/// The outcome of a write; `None` if none was made.
type Begun = Option<io::Result<usize>>;

/// The total of the members that were sent a batch in full, and the others.
#[derive(Default)]
struct BatchOutcome {
    bytes: u64,
    messages: u64,
    /// Members with other bytes that wait.
    behind: Vec<u32>,
    /// Members that were not sent the batch in full, with the outcome of the write.
    unfinished: Vec<(u32, io::Result<usize>)>,
    #[cfg(feature = "deflate")]
    followers: Followers,
}

impl<T: ShardTransport> Core<T> {
    /// Sends a batch to its audience: at once to members for whom nothing waits, and into the outbox of others.
    pub(super) fn deliver_batch(&mut self, batch: Batch) {
        let audience = batch.audience;
        let mut batch = batch.close();
        let BatchOutcome {
            bytes,
            messages,
            behind,
            unfinished,
            #[cfg(feature = "deflate")]
            followers,
        } = self.write_batch(audience, &batch);
        #[cfg(feature = "deflate")]
        {
            batch.followers = followers;
        }
        let counters = self.cx.counters();
        counters.bytes_out.add_alone(bytes);
        counters.wrote(messages, 0);
        for (slot, outcome) in unfinished {
            self.with_member(slot, |ws, cx| {
                ws.take_rest(cx, &mut batch, outcome);
                ws.note_depth(cx);
            });
        }
        for slot in behind {
            self.with_member(slot, |ws, cx| ws.enqueue_share(cx, &mut batch));
        }
        #[cfg(feature = "deflate")]
        self.note_followers(audience, &batch);
        self.cx.fanout.spare.reclaim(batch);
        self.enforce_send_budget();
    }

    /// Writes a batch to all members for whom nothing else waits.
    fn write_batch(&mut self, audience: Audience, batch: &SealedBatch) -> BatchOutcome {
        let fanout = &mut self.cx.fanout;
        let mut of_room = std::mem::take(&mut fanout.slots);
        let members = match audience {
            Audience::Everyone => fanout.members.as_slice(),
            Audience::Room(room) => {
                of_room.extend(fanout.rooms.members(room));
                // Sorted by slot, the order in memory, here and in the kernel.
                of_room.sort_unstable();
                &of_room
            }
        };
        let conns = &self.conns;
        let mut behind = Vec::new();
        let mut unfinished = Vec::new();
        let (mut bytes, mut messages) = (0, 0);
        #[cfg(feature = "deflate")]
        let mut followers: Followers = batch.followers;
        let share = |slot| {
            let Some((_, conn)) = conns.at(slot) else {
                debug_assert!(
                    false,
                    "the connection in slot {slot} ended without leaving its audience"
                );
                return None;
            };
            let Conn { socket, stage } = conn;
            let (Stage::WebSocket(ws), Some(transport)) = (stage, &socket.transport) else {
                debug_assert!(
                    false,
                    "the connection in slot {slot} broke without leaving its audience"
                );
                return None;
            };
            let frames = batch.frames(ws.compression);
            let (from, messages) = frames.share(ws.seen);
            if messages == 0 {
                return None;
            }
            // After pending bytes, the count of the client's memory changes, which `enqueue_share` takes care of.
            let is_behind = !ws.outbox.is_empty() || transport.has_pending();
            // A slow member of a keyed room neither follows an epoch nor waits for one: it would leave the epoch at once.
            #[cfg(feature = "deflate")]
            if !(is_behind && batch.is_keyed()) {
                batch.note_share(&mut followers, ws.seen, ws.compression);
            }
            if is_behind {
                behind.push(slot);
                return None;
            }
            Some(Write {
                tag: (slot, messages),
                transport,
                bytes: &frames.bytes[from..],
            })
        };
        self.cx
            .writer
            .write_many(
                members,
                share,
                |(slot, count), len, outcome, is_pending| match outcome {
                    Ok(n) if n == len && !is_pending => {
                        bytes += n as u64;
                        messages += u64::from(count);
                    }
                    outcome => unfinished.push((slot, outcome)),
                },
            );
        of_room.clear();
        self.cx.fanout.slots = of_room;
        BatchOutcome {
            bytes,
            messages,
            behind,
            unfinished,
            #[cfg(feature = "deflate")]
            followers,
        }
    }

    /// Writes the first piece of each connection's queued bytes. Outcomes are processed afterwards for all, without
    /// writes in between. Returns the outcome for each key by index; an empty list if there are only few keys.
    pub(crate) fn write_fronts(&mut self, keys: &[Key]) -> Vec<Begun> {
        if keys.len() < T::Writer::GATHER_MIN {
            return Vec::new();
        }
        let mut begun: Vec<Begun> = Vec::new();
        begun.resize_with(keys.len(), || None);
        let mut places = Vec::with_capacity(keys.len());
        for (place, &key) in keys.iter().enumerate() {
            // A key occurs twice if its connection was written to early, and has more to write.
            if let Some(conn) = self.conns.get_mut(key)
                && std::mem::take(&mut conn.socket.dirty)
            {
                places.push(place);
            }
        }
        let conns = &self.conns;
        let front = |place: usize| {
            let Conn { socket, stage } = conns.get(keys[place])?;
            let (Stage::WebSocket(ws), Some(transport)) = (stage, &socket.transport) else {
                return None;
            };
            Some(Write {
                tag: place,
                transport,
                bytes: ws.outbox.front()?,
            })
        };
        self.cx
            .writer
            .write_many(&places, front, |place, _, outcome, _| {
                begun[place] = Some(outcome)
            });
        begun
    }
}

impl WebSocket {
    /// Queues the rest of a batch that could not be written in full.
    pub(super) fn take_rest<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
        outcome: io::Result<usize>,
    ) {
        use io::ErrorKind::{Interrupted, WouldBlock};
        match outcome {
            Ok(n) => {
                let (from, messages) = batch.frames(self.compression).share(self.seen);
                if n < batch.frames(self.compression).bytes.len() - from {
                    self.take_partial(cx, batch, n);
                    return;
                }
                // All is accepted, and some of it pending in the transport.
                let counters = cx.shard.counters();
                counters.bytes_out.add_alone(n as u64);
                counters.wrote(messages.into(), 0);
                self.note_fill(cx);
            }
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {
                self.blocked(cx.shard.tick, cx.shard.limits().write_timeout);
                self.enqueue_share(cx, batch);
            }
            Err(_) => {
                let (_, messages) = batch.frames(self.compression).share(self.seen);
                let dropped = u64::from(messages);
                cx.shard.counters().dropped_closed.add(dropped);
                self.break_off(cx);
            }
        }
    }

    /// Processes a partial write of `written` bytes: the frame in progress is queued, and the slow-consumer policy
    /// applies to messages that do not fit behind it.
    fn take_partial<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
        written: usize,
    ) {
        if batch.is_keyed() {
            self.take_keyed_partial(cx, batch, written);
            return;
        }
        let frames = batch.frames_mut(self.compression);
        let (from, messages) = frames.share(self.seen);
        let (bytes_max, write_timeout) = {
            let limits = cx.shard.limits();
            (limits.outbox_bytes_max, limits.write_timeout)
        };
        let len = frames.bytes.len() - from;
        let (whole, kept) = self
            .encoding()
            .whole(&frames.bytes[from..], written.saturating_add(bytes_max));
        let (bytes, unshared) = frames.keep(from..from + whole);
        let tick = cx.shard.tick;
        let left = self.outbox.push_rest(bytes, kept, written, unshared, tick);
        let counters = cx.shard.counters();
        counters.bytes_out.add_alone(written as u64);
        counters.wrote(left, 0);
        self.blocked(tick, write_timeout);
        if whole == len {
            self.note_fill(cx);
            return;
        }
        let left = messages - kept;
        #[cfg(feature = "deflate")]
        if cx.shard.hub.settings.slow_consumer.drops() && batch.epoch().is_some() {
            // Its whole share does not fit.
            self.compression.leave_epoch();
            let frames = batch.frames_mut(self.compression);
            let from = frames.last(left);
            self.enqueue_from(cx, frames, from, left);
            return;
        }
        let frames = batch.frames_mut(self.compression);
        self.enqueue_from(cx, frames, from + whole, left);
    }

    /// Queues a member's share of a batch, or writes it if it would not wait as it is.
    fn enqueue_share<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        batch: &mut SealedBatch,
    ) {
        if batch.is_keyed() {
            if self.write_share(cx, batch) {
                return;
            }
            let (_, messages) = batch.frames(self.compression).share(self.seen);
            self.enqueue_parts(cx, batch, messages);
            return;
        }
        #[cfg(feature = "deflate")]
        {
            let frames = batch.frames(self.compression);
            let (from, _) = frames.share(self.seen);
            if batch
                .epoch()
                .is_some_and(|epoch| self.compression.follows(epoch))
            {
                self.make_sure_it_fits(cx, frames.bytes.len() - from);
            }
        }
        let frames = batch.frames_mut(self.compression);
        let (from, messages) = frames.share(self.seen);
        self.enqueue_from(cx, frames, from, messages);
    }

    /// Queues a member's share of a batch from this offset on.
    fn enqueue_from<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        frames: &mut SealedFrames,
        from: usize,
        messages: u32,
    ) {
        let (piece, of) = frames.piece(from);
        self.enqueue(cx, piece, messages, Ownership::Shared { of });
        self.note_fill(cx);
    }
}
