//! Broadcasts, packed (compressed) once for many members with the history of their audience.
//!
//! A packed message may refer to what its client was sent packed before, and to nothing else: plain frames do not enter
//! a client's window (RFC 7692 §7.2.3). So all members that were sent the same packed frames, beginning with one that
//! refers to nothing, can be sent the same next one. Such a series is an *epoch*, and these members *follow* it.
//!
//! An epoch begins with a message that is packed by itself, from which on all members that can follow it. A member that
//! joins later, is excluded from a broadcast (`except`), or is sent another packed frame does not follow, and is sent
//! plain frames. While such members wait, the next epoch begins some messages later. A member of several audiences
//! follows one of them, and is sent the messages of others plain.
//!
//! **Invariant:** the last bytes of a follower's window equal its stream's `tail`, as far as that goes. The compressor
//! knows which audience it served last; a message to another audience restarts it with that audience's tail.

use std::collections::HashMap;

use bytes::Bytes;

use crate::compression::Compression;
use crate::engine::parts::batch::{Audience, Followers, PackedFrame, SealedBatch};
use crate::engine::parts::compression::{ConnCompression, Epoch, SHARED_WINDOW_BITS};
use crate::engine::reactor::Core;
use crate::engine::reactor::fanout::JOIN_BELOW_BYTES;
use crate::protocol::deflate::pack::{Packer, PackerSize};
use crate::protocol::encode::{self, MessageKind};
use crate::transport::Transport;

/// Shorter messages gain nothing.
const PACKED_FROM_BYTES: usize = 64;

/// The bytes of an audience's messages that are kept, to restart the compressor after it has served another audience.
const TAIL_BYTES: usize = 4 << 10;

/// Most streams of a shard. The least recently used ones are dropped.
const STREAMS_MAX: usize = 1024;

/// Fewest messages in an epoch while members wait for the next one.
const EPOCH_MESSAGES_MIN: u32 = 16;

/// Fewest messages in an epoch while members follow another audience, which may be silent by now.
const EPOCH_MESSAGES_SHARED: u32 = 256;

/// Messages that are sent plain, if no member follows, before an epoch is tried again.
const PAUSE_MESSAGES: u32 = 16;

/// How much longer than plain the first message of an epoch may be, since later messages refer to it.
const FIRST_LONGER_BYTES: usize = 8;

/// The size of a compressor for all audiences of a shard.
const SHARED: PackerSize = PackerSize {
    window_bits: SHARED_WINDOW_BITS,
    memory_level: 6,
};

/// The compressor of a shard, and the state of its audiences.
pub(crate) struct Packing {
    compression: Option<Compression>,
    /// The number of connections that can follow an epoch.
    able: usize,
    packer: Option<Box<Packer>>,
    /// The audience whose history the compressor has.
    served: Option<Audience>,
    streams: HashMap<Audience, Stream>,
    /// When each epoch that a connection may follow was last used, by its number.
    epochs: HashMap<u64, u64>,
    next_epoch: Epoch,
    /// The number of messages so far.
    clock: u64,
}

/// The packed messages of one audience.
#[derive(Default)]
struct Stream {
    epoch: Option<Epoch>,
    /// The end of the messages that were packed since the epoch began.
    tail: Vec<u8>,
    /// Messages since the epoch began.
    since: u32,
    /// When the epoch began, by `Packing::clock`.
    begun: u64,
    used: u64,
    /// Whether members wait for the next epoch.
    is_awaited: bool,
    /// Whether members follow another audience.
    is_shared: bool,
    /// Messages that are sent plain before an epoch is tried again.
    pause: u32,
}

/// The members that follow a new epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrants {
    /// Those that can follow, and follow no other audience.
    Free,
    /// All that can follow and whose window holds a message of that many bytes, which was packed with the largest window.
    Inflating(usize),
}

impl Stream {
    fn wants_epoch(&self) -> bool {
        self.epoch.is_none()
            || self.is_awaited && self.since >= EPOCH_MESSAGES_MIN
            || self.is_shared && self.since >= EPOCH_MESSAGES_SHARED
    }

    fn keep_tail(&mut self, payload: &[u8]) {
        let payload = &payload[payload.len().saturating_sub(TAIL_BYTES)..];
        if self.tail.len() + payload.len() > 2 * TAIL_BYTES {
            let kept = TAIL_BYTES - payload.len();
            self.tail.drain(..self.tail.len().saturating_sub(kept));
        }
        self.tail.extend_from_slice(payload);
    }

    fn history(&self) -> &[u8] {
        &self.tail[self.tail.len().saturating_sub(TAIL_BYTES)..]
    }
}

impl Packing {
    pub(crate) fn new(compression: Option<&Compression>) -> Self {
        Self {
            compression: compression.cloned(),
            able: 0,
            packer: None,
            served: None,
            streams: HashMap::new(),
            epochs: HashMap::new(),
            next_epoch: Epoch::FIRST,
            clock: 0,
        }
    }

    /// Counts a new connection, which may be able to follow.
    pub(crate) fn entered(&mut self, compression: ConnCompression) {
        self.able += usize::from(compression.can_follow());
    }

    pub(crate) fn left(&mut self, compression: ConnCompression) {
        self.able -= usize::from(compression.can_follow());
        if self.able == 0 {
            // No connection needs this state any more.
            self.packer = None;
            self.served = None;
            self.streams = HashMap::new();
            self.epochs = HashMap::new();
        }
    }

    /// The kind and payload of a message, if it can be packed for an audience.
    fn candidate<'a>(&self, frame: &'a [u8]) -> Option<(MessageKind, &'a [u8])> {
        let compression = self.compression.as_ref()?;
        if self.able == 0 {
            return None;
        }
        // Event streams are audiences too; their events do not begin like frames.
        let (kind, payload) = encode::data_payload(frame)?;
        let is_packed = compression.packs(kind)
            && (PACKED_FROM_BYTES..JOIN_BELOW_BYTES).contains(&payload.len());
        is_packed.then_some((kind, payload))
    }

    /// The stream of an audience. If there are too many streams, the least recently used ones are dropped.
    fn stream(&mut self, audience: Audience) -> &mut Stream {
        if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&audience) {
            let mut used: Vec<u64> = self.streams.values().map(|stream| stream.used).collect();
            let (_, &mut limit, _) = used.select_nth_unstable(STREAMS_MAX / 8);
            self.streams.retain(|_, stream| stream.used > limit);
            self.forget_epochs();
        }
        self.streams.entry(audience).or_default()
    }

    /// Removes epochs that no stream has any more.
    fn forget_epochs(&mut self) {
        let live: std::collections::HashSet<u64> = self
            .streams
            .values()
            .filter_map(|stream| stream.epoch.map(Epoch::number))
            .collect();
        self.epochs.retain(|epoch, _| live.contains(epoch));
    }

    /// Packs a message for the followers of an audience's epoch. `None`: there is no epoch, or the message is sent
    /// plain.
    fn pack_next(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<Bytes> {
        let clock = self.clock;
        let level = self.compression.as_ref()?.level_for(payload.len());
        let stream = self.streams.get_mut(&audience)?;
        let epoch = stream.epoch?;
        stream.since += 1;
        stream.used = clock;
        let packer = self
            .packer
            .get_or_insert_with(|| Box::new(Packer::new(SHARED)));
        if self.served != Some(audience) {
            packer.restart(stream.history());
            self.served = Some(audience);
        }
        match packer.pack(kind, payload, level, 0) {
            Ok(frame) => {
                let frame = Bytes::copy_from_slice(frame);
                stream.keep_tail(payload);
                self.epochs.insert(epoch.number(), clock);
                Some(frame)
            }
            Err(_) => {
                self.served = None;
                None
            }
        }
    }

    /// Packs a message by itself, so that an epoch can begin with it.
    fn pack_first(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<Bytes> {
        let level = self.compression.as_ref()?.level_for(payload.len());
        let packer = self
            .packer
            .get_or_insert_with(|| Box::new(Packer::new(SHARED)));
        packer.restart(&[]);
        self.served = None;
        let frame = packer.pack(kind, payload, level, FIRST_LONGER_BYTES).ok()?;
        self.served = Some(audience);
        Some(Bytes::copy_from_slice(frame))
    }

    /// Whether a member takes part in a new epoch of an audience. One that follows another audience stays there, unless
    /// that audience was silent since this one's last epoch began.
    fn is_free(&self, compression: ConnCompression, former: Option<Epoch>, begun: u64) -> bool {
        compression.can_follow()
            && compression.epoch().is_none_or(|epoch| {
                Some(epoch) == former
                    || self
                        .epochs
                        .get(&epoch.number())
                        .is_none_or(|&used| used < begun)
            })
    }

    /// Records the followers of a batch, which were counted as it was sent.
    pub(crate) fn note_followers(&mut self, audience: Audience, epoch: Epoch, seen: Followers) {
        let Some(stream) = self.streams.get_mut(&audience) else {
            return;
        };
        if stream.epoch != Some(epoch) {
            return;
        }
        stream.is_awaited = seen.waiting > 0;
        stream.is_shared = seen.elsewhere > 0;
        if seen.following == 0 {
            // Without followers, packing ends.
            stream.epoch = None;
            self.epochs.remove(&epoch.number());
            stream.pause = if seen.waiting > 0 { 0 } else { PAUSE_MESSAGES };
        }
    }

    /// The epoch of an audience, if it has one.
    pub(crate) fn epoch_of(&self, audience: Audience) -> Option<Epoch> {
        self.streams.get(&audience)?.epoch
    }
}

impl<T: Transport> Core<T> {
    /// Packs a broadcast, if any members can follow. May send the batches gathered before.
    pub(super) fn pack(&mut self, audience: Audience, frame: &Bytes) -> Option<PackedFrame> {
        let packing = &mut self.cx.fanout.packing;
        let (kind, payload) = packing.candidate(frame)?;
        packing.clock += 1;
        let stream = packing.stream(audience);
        if stream.pause > 0 {
            stream.pause -= 1;
            return None;
        }
        if stream.wants_epoch() {
            return self.begin_epoch(audience, kind, payload);
        }
        let epoch = stream.epoch?;
        let frame = match packing.pack_next(audience, kind, payload) {
            Some(packed) => packed,
            // The followers get it plain.
            None => frame.clone(),
        };
        self.cx.counters().packed.add_alone(1);
        Some(PackedFrame {
            epoch,
            frame,
            alone: false,
        })
    }

    /// Begins an epoch with a message, if the message can be packed.
    fn begin_epoch(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<PackedFrame> {
        let packing = &mut self.cx.fanout.packing;
        let Some(frame) = packing.pack_first(audience, kind, payload) else {
            packing.stream(audience).pause = EPOCH_MESSAGES_MIN;
            return None;
        };
        let epoch = self.enter_epoch(audience, payload, Entrants::Free)?;
        self.cx.counters().packed.add_alone(1);
        Some(PackedFrame {
            epoch,
            frame,
            alone: false,
        })
    }

    /// Begins an epoch with a long message that its sender has packed by itself: every member that can inflate it gets
    /// it packed.
    pub(super) fn begin_epoch_with(
        &mut self,
        audience: Audience,
        plain: &Bytes,
        packed: Bytes,
    ) -> Option<PackedFrame> {
        let (_, payload) = encode::data_payload(plain)?;
        self.cx.fanout.packing.clock += 1;
        let epoch = self.enter_epoch(audience, payload, Entrants::Inflating(plain.len()));
        // The compressor has not seen this message.
        self.cx.fanout.packing.served = None;
        Some(PackedFrame {
            // No connection follows this one.
            epoch: epoch.unwrap_or(Epoch::NONE),
            frame: packed,
            alone: true,
        })
    }

    /// Begins an audience's next epoch, which members that can then follow. `None` if there are none.
    fn enter_epoch(
        &mut self,
        audience: Audience,
        payload: &[u8],
        entrants: Entrants,
    ) -> Option<Epoch> {
        // Frames that were packed before are for the followers of the former epoch.
        self.flush_batches();
        let fanout = &mut self.cx.fanout;
        let packing = &mut fanout.packing;
        let epoch = packing.next_epoch;
        packing.next_epoch = epoch.next();
        let clock = packing.clock;
        let stream = packing.stream(audience);
        let (former, begun) = (stream.epoch, stream.begun);
        let slots: Vec<u32> = match audience {
            Audience::Everyone => fanout.members.as_slice().to_vec(),
            Audience::Room(room) => fanout.rooms.members(room).collect(),
        };
        let (mut following, mut elsewhere, mut waiting) = (0, 0, 0);
        for slot in slots {
            let follows = self.with_member(slot, |ws, cx| {
                let packing = &cx.shard.fanout.packing;
                let enters = match entrants {
                    Entrants::Inflating(len) => {
                        ws.compression.can_follow() && ws.compression.ability().can_inflate(len)
                    }
                    Entrants::Free => packing.is_free(ws.compression, former, begun),
                };
                if enters {
                    ws.compression.follow(epoch);
                } else if former.is_some_and(|former| ws.compression.follows(former)) {
                    // That epoch is over.
                    ws.compression.leave_epoch();
                }
                ws.compression
            });
            match follows.map(|compression| (compression.epoch(), compression.can_follow())) {
                Some((Some(followed), _)) if followed == epoch => following += 1,
                Some((Some(_), _)) => elsewhere += 1,
                Some((None, true)) => waiting += 1,
                _ => {}
            }
        }
        let packing = &mut self.cx.fanout.packing;
        if let Some(former) = former {
            packing.epochs.remove(&former.number());
        }
        let stream = packing.stream(audience);
        if following == 0 {
            stream.epoch = None;
            stream.pause = PAUSE_MESSAGES;
            packing.served = None;
            return None;
        }
        *stream = Stream {
            epoch: Some(epoch),
            tail: Vec::new(),
            since: 0,
            begun: clock,
            used: clock,
            is_awaited: waiting > 0,
            is_shared: elsewhere > 0,
            pause: 0,
        };
        stream.keep_tail(payload);
        packing.epochs.insert(epoch.number(), clock);
        self.cx.counters().epochs.add_alone(1);
        Some(epoch)
    }

    /// Updates the counts after a packed batch was sent.
    pub(super) fn note_followers(
        &mut self,
        audience: Audience,
        batch: &SealedBatch,
        seen: Followers,
    ) {
        let Some(epoch) = batch.epoch() else {
            return;
        };
        self.cx.fanout.packing.note_followers(audience, epoch, seen);
        let counters = self.cx.counters();
        counters.packed_bytes_out.add_alone(seen.packed_bytes);
        counters.packed_plain_bytes.add_alone(seen.plain_bytes);
        counters.waiting_for_epoch.add_alone(seen.waiting);
    }
}
