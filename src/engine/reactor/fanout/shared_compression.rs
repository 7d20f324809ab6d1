//! Compresses a broadcast once for many members of its audience, which share one compression history.
//!
//! A compressed message may refer only to earlier compressed messages to the same client, because uncompressed frames
//! do not enter the client's window (RFC 7692 §7.2.3). If the first message of a series refers to no other, all members
//! that have received the series can receive the same next message. Such a series is an *epoch*, and these members
//! *follow* it.
//!
//! An epoch begins with an independently compressed message, which all able members begin to follow. A member does not
//! follow, and receives uncompressed frames, if it joins later, is excluded from a broadcast (`except`), or receives
//! another compressed frame. If there are such members, the next epoch begins some messages later. A member of several
//! audiences follows one of them, and receives the messages of the others uncompressed.
//!
//! **Invariant:** a follower's window ends with the `tail` of its audience's history. The compressor contains the
//! history of the last audience. For a message to another audience, it is restarted with the tail of that audience.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::compression::Compression;
use crate::engine::parts::batch::{
    ALONE_FROM_BYTES, Audience, CompressedFrame, Followers, SealedBatch,
};
use crate::engine::parts::compression::{ConnCompression, Epoch, SHARED_WINDOW_BITS};
use crate::engine::reactor::Core;
use crate::protocol::deflate::compress::{Compressor, CompressorSize};
use crate::protocol::encode::{self, MessageKind};
use crate::transport::ShardTransport;

/// The minimum length of a payload that is compressed. Shorter ones gain nothing.
const COMPRESSED_FROM_BYTES: usize = 64;

/// The last bytes of an audience's messages that are kept to restart the compressor after a message to another
/// audience.
const TAIL_BYTES: usize = 4 << 10;

/// The same, for audiences with fewer than `FEW_FOLLOWERS` followers. Restarting with a quarter of the tail is faster
/// by about 2.5 µs and takes about 1.2 more bytes per recipient (measured with JSON of 104 bytes).
const SHORT_TAIL_BYTES: usize = 1 << 10;
const FEW_FOLLOWERS: usize = 256;

/// The maximum number of audiences of a shard whose history is kept. The least recently used ones are dropped.
const HISTORIES_MAX: usize = 1024;

/// The minimum and the maximum number of messages in an epoch while members wait for the next one.
const EPOCH_MESSAGES_MIN: u32 = 16;
const EPOCH_MESSAGES_MAX: u32 = 128;

/// The cost of a new epoch per follower: its first messages save less, altogether as much as this number of messages
/// save later. While members wait, the epoch continues until their uncompressed messages have cost as much.
const EPOCH_COST_MESSAGES: u64 = 4;

/// The minimum number of messages in an epoch while members follow another audience, which may have become silent.
const EPOCH_MESSAGES_SHARED: u32 = 256;

/// The number of uncompressed messages before the next attempt to begin an epoch, after one without followers. It
/// doubles with each attempt, because an attempt visits every member.
const PAUSE_MESSAGES: u32 = 16;
const PAUSE_MESSAGES_MAX: u32 = 4096;

/// The bytes that an epoch must save per compressed message, and per member that is visited when the epoch begins, to
/// be profitable. They convert time to bytes: compressing a message that resembles earlier ones takes about 0.2 µs and
/// saves about 75 bytes per recipient. That is worthwhile even for a single recipient, so a saved byte is worth a few
/// nanoseconds.
const MESSAGE_COST_BYTES: u64 = 16;
const MEMBER_COST_BYTES: u64 = 8;

/// The number of messages between two reviews of an epoch's savings.
const REVIEW_MESSAGES: u32 = 64;

/// The number of bytes by which the first message of an epoch may become longer. Later messages refer to it, and save
/// more.
const FIRST_LONGER_BYTES: usize = 8;

/// The size of a compressor for all audiences of a shard.
const SHARED: CompressorSize = CompressorSize {
    window_bits: SHARED_WINDOW_BITS,
    memory_level: 6,
};

/// The compressor of a shard, and the state of its audiences.
pub(crate) struct SharedCompression {
    compression: Option<Compression>,
    /// The number of connections that can follow an epoch.
    able: usize,
    compressor: Option<Box<Compressor>>,
    /// The audience whose history the compressor contains.
    served: Option<Audience>,
    histories: HashMap<Audience, AudienceHistory>,
    /// The `clock` at the last use of each epoch that a connection may follow, by the number of the epoch.
    epochs: HashMap<u64, u64>,
    next_epoch: Epoch,
    /// The number of broadcasts so far.
    clock: u64,
}

/// The compressed messages of one audience.
#[derive(Default)]
struct AudienceHistory {
    epoch: Option<Epoch>,
    /// The last bytes of the messages that were compressed since the epoch began.
    tail: Vec<u8>,
    /// The number of messages since the epoch began.
    since: u32,
    /// The `SharedCompression::clock` at the begin of the epoch.
    begun: u64,
    used: u64,
    /// The number of members that received the last batch compressed.
    followers: usize,
    /// Whether members wait for the next epoch.
    has_waiting_members: bool,
    /// The number of uncompressed deliveries of the epoch to waiting members.
    waited: u64,
    /// Whether members follow another audience.
    has_members_elsewhere: bool,
    /// The number of uncompressed messages before the next attempt to begin an epoch.
    pause: u32,
    /// The length of the last pause.
    last_pause: u32,
    /// The number of members that were visited when the epoch began.
    members: u64,
    /// The bytes saved by the first `sent` messages of the epoch. The others are still in a batch.
    saved: u64,
    sent: u32,
    /// The value of `sent` at the last review.
    reviewed: u32,
    /// Whether the last epoch was unprofitable.
    was_unprofitable: bool,
}

/// The members that follow a new epoch, if none of their keyed messages wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrants {
    /// The members that can follow, and follow no other audience.
    Free,
    /// The members that can follow and can inflate an independently compressed message of this length.
    Inflating(usize),
}

impl AudienceHistory {
    fn pause(&mut self) {
        self.last_pause = (2 * self.last_pause).clamp(PAUSE_MESSAGES, PAUSE_MESSAGES_MAX);
        self.pause = self.last_pause;
    }

    /// Lets the next message begin an epoch if there is none. After an unprofitable epoch, some messages are sent
    /// uncompressed first.
    fn resume(&mut self) {
        match self.was_unprofitable {
            true => self.pause = self.pause.min(PAUSE_MESSAGES),
            false => (self.pause, self.last_pause) = (0, 0),
        }
    }

    /// Returns whether the epoch has saved less than it has cost so far.
    fn is_unprofitable(&self) -> bool {
        let messages = u64::from(self.sent) * MESSAGE_COST_BYTES;
        match self.wants_epoch() {
            // The next epoch will have the cost of visiting the members again.
            true => {
                self.sent >= self.since / 2
                    && self.saved < messages + self.members * MEMBER_COST_BYTES
            }
            false => self.saved < messages,
        }
    }

    /// Returns whether the savings of the epoch are to be reviewed now.
    fn is_due_for_review(&self) -> bool {
        self.wants_epoch() || self.sent - self.reviewed >= REVIEW_MESSAGES
    }

    /// Records whether the epoch is unprofitable. After each unprofitable epoch in a row, the pause doubles.
    fn record_profit(&mut self, was_unprofitable: bool) {
        self.was_unprofitable = was_unprofitable;
        if was_unprofitable {
            self.pause();
        } else {
            self.last_pause = 0;
        }
    }

    fn wants_epoch(&self) -> bool {
        self.epoch.is_none()
            || self.has_waiting_members && self.since >= self.messages_while_waiting()
            || self.has_members_elsewhere && self.since >= EPOCH_MESSAGES_SHARED
    }

    /// Returns the number of messages after which the epoch ends for the sake of the waiting members.
    fn messages_while_waiting(&self) -> u32 {
        match self.waited < EPOCH_COST_MESSAGES * self.followers as u64 {
            true => EPOCH_MESSAGES_MAX,
            false => EPOCH_MESSAGES_MIN,
        }
    }

    fn keep_tail(&mut self, payload: &[u8]) {
        let payload = &payload[payload.len().saturating_sub(TAIL_BYTES)..];
        if self.tail.len() + payload.len() > 2 * TAIL_BYTES {
            let kept = TAIL_BYTES - payload.len();
            self.tail.drain(..self.tail.len().saturating_sub(kept));
        }
        self.tail.extend_from_slice(payload);
    }

    /// Returns the history with which the compressor is restarted for this audience.
    fn dictionary(&self) -> &[u8] {
        let bytes = match self.followers {
            ..FEW_FOLLOWERS => SHORT_TAIL_BYTES,
            _ => TAIL_BYTES,
        };
        &self.tail[self.tail.len().saturating_sub(bytes)..]
    }
}

impl SharedCompression {
    pub(crate) fn new(compression: Option<&Compression>) -> Self {
        Self {
            compression: compression.cloned(),
            able: 0,
            compressor: None,
            served: None,
            histories: HashMap::new(),
            epochs: HashMap::new(),
            next_epoch: Epoch::FIRST,
            clock: 0,
        }
    }

    /// Counts a new connection, which may be able to follow.
    pub(crate) fn entered(&mut self, compression: ConnCompression) {
        self.able += usize::from(compression.can_follow());
        self.joined(Audience::Everyone, compression);
    }

    /// Records a new member of an audience.
    pub(crate) fn joined(&mut self, audience: Audience, compression: ConnCompression) {
        if compression.can_follow()
            && let Some(history) = self.histories.get_mut(&audience)
        {
            history.resume();
        }
    }

    pub(crate) fn left(&mut self, compression: ConnCompression) {
        self.able -= usize::from(compression.can_follow());
        if self.able == 0 {
            // No connection needs this state now.
            self.compressor = None;
            self.served = None;
            self.histories = HashMap::new();
            self.epochs = HashMap::new();
        }
    }

    /// Drops the history of an audience without members. It may never have any again: the number of a room is not reused.
    pub(crate) fn emptied(&mut self, audience: Audience) {
        if let Some(epoch) = self
            .histories
            .remove(&audience)
            .and_then(|history| history.epoch)
        {
            self.epochs.remove(&epoch.number());
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn histories_len(&self) -> usize {
        self.histories.len()
    }

    /// Returns the kind and payload of a message, if it can be compressed for an audience.
    fn candidate<'a>(&self, frame: &'a [u8]) -> Option<(MessageKind, &'a [u8])> {
        let compression = self.compression.as_ref()?;
        if self.able == 0 {
            return None;
        }
        // Event streams are audiences too. Their events do not parse as frames.
        let (kind, payload) = encode::data_payload(frame)?;
        let is_compressed = compression.compresses(kind)
            && (COMPRESSED_FROM_BYTES..ALONE_FROM_BYTES).contains(&payload.len());
        is_compressed.then_some((kind, payload))
    }

    /// Returns the history of an audience. If there are too many histories, drops the least recently used ones.
    fn history_of(&mut self, audience: Audience) -> &mut AudienceHistory {
        if self.histories.len() >= HISTORIES_MAX && !self.histories.contains_key(&audience) {
            let mut used: Vec<u64> = self
                .histories
                .values()
                .map(|history| history.used)
                .collect();
            let (_, &mut limit, _) = used.select_nth_unstable(HISTORIES_MAX / 8);
            self.histories.retain(|_, history| history.used > limit);
            self.forget_epochs();
        }
        self.histories.entry(audience).or_default()
    }

    /// Removes epochs that no longer belong to a history.
    fn forget_epochs(&mut self) {
        let live: HashSet<u64> = self
            .histories
            .values()
            .filter_map(|history| history.epoch.map(Epoch::number))
            .collect();
        self.epochs.retain(|epoch, _| live.contains(epoch));
    }

    /// Compresses a message for the followers of an audience's epoch. Returns `None` if there is no epoch, or if the
    /// message is to be sent uncompressed.
    fn compress_next(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<Bytes> {
        let clock = self.clock;
        let history = self.histories.get_mut(&audience)?;
        let compression = self.compression.as_ref()?;
        let level = compression.level_for(payload.len(), history.followers);
        let epoch = history.epoch?;
        history.since += 1;
        history.used = clock;
        let compressor = self
            .compressor
            .get_or_insert_with(|| Box::new(Compressor::new(SHARED)));
        if self.served != Some(audience) {
            compressor.restart(history.dictionary());
            self.served = Some(audience);
        }
        match compressor.compress(kind, payload, level, 0) {
            Ok(frame) => {
                let frame = Bytes::copy_from_slice(frame);
                history.keep_tail(payload);
                self.epochs.insert(epoch.number(), clock);
                Some(frame)
            }
            Err(_) => {
                self.served = None;
                None
            }
        }
    }

    /// Compresses a message independently, so that an epoch can begin with it.
    fn compress_first(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<Bytes> {
        // This is the number for the previous epoch. The followers of the new one are determined only if the message
        // compresses well.
        let followers = self.histories.get(&audience).map_or(0, |h| h.followers);
        let compression = self.compression.as_ref()?;
        let level = compression.level_for(payload.len(), followers);
        let compressor = self
            .compressor
            .get_or_insert_with(|| Box::new(Compressor::new(SHARED)));
        compressor.restart(&[]);
        self.served = None;
        let frame = compressor
            .compress(kind, payload, level, FIRST_LONGER_BYTES)
            .ok()?;
        self.served = Some(audience);
        Some(Bytes::copy_from_slice(frame))
    }

    /// Returns whether a member can follow a new epoch of an audience. A member that follows another audience does so
    /// only if that audience has been silent since the previous epoch of this one began.
    fn is_free(&self, compression: ConnCompression, previous: Option<Epoch>, begun: u64) -> bool {
        compression.can_follow()
            && compression.epoch().is_none_or(|epoch| {
                Some(epoch) == previous
                    || self
                        .epochs
                        .get(&epoch.number())
                        .is_none_or(|&used| used < begun)
            })
    }

    /// Records the followers of a batch, which were counted when the batch was sent.
    pub(crate) fn note_followers(&mut self, audience: Audience, epoch: Epoch, seen: Followers) {
        let Some(history) = self.histories.get_mut(&audience) else {
            return;
        };
        if history.epoch != Some(epoch) {
            return;
        }
        history.followers = seen.following as usize;
        history.has_waiting_members = seen.waiting > 0;
        history.waited += seen.waiting;
        history.has_members_elsewhere = seen.elsewhere > 0;
        history.saved += seen.plain_bytes.saturating_sub(seen.compressed_bytes);
        history.sent = history.since;
        if seen.following == 0 {
            // Without followers, compression ends.
            history.epoch = None;
            self.epochs.remove(&epoch.number());
            match seen.waiting {
                0 => history.pause(),
                // The next message may begin another epoch.
                _ => history.record_profit(history.is_unprofitable()),
            }
        }
    }

    /// Ends an audience's epoch if a review finds it unprofitable. Returns whether it has ended.
    fn end_if_unprofitable(&mut self, audience: Audience) -> bool {
        let history = self.history_of(audience);
        let Some(epoch) = history.epoch else {
            return false;
        };
        if !history.is_due_for_review() {
            return false;
        }
        history.reviewed = history.sent;
        let is_unprofitable = history.is_unprofitable();
        history.record_profit(is_unprofitable);
        if is_unprofitable {
            history.epoch = None;
            self.epochs.remove(&epoch.number());
        }
        is_unprofitable
    }

    /// Returns the epoch of an audience, if it has one.
    pub(crate) fn epoch_of(&self, audience: Audience) -> Option<Epoch> {
        self.histories.get(&audience)?.epoch
    }
}

impl<T: ShardTransport> Core<T> {
    /// Compresses a broadcast, if any members can follow. This may send earlier batches.
    pub(super) fn compress(
        &mut self,
        audience: Audience,
        frame: &Bytes,
    ) -> Option<CompressedFrame> {
        let shared = &mut self.cx.fanout.shared_compression;
        let (kind, payload) = shared.candidate(frame)?;
        shared.clock += 1;
        let history = shared.history_of(audience);
        if history.pause > 0 {
            history.pause -= 1;
            return None;
        }
        if shared.end_if_unprofitable(audience) {
            return None;
        }
        if shared.history_of(audience).wants_epoch() {
            return self.begin_epoch(audience, kind, payload);
        }
        let epoch = shared.history_of(audience).epoch?;
        let frame = match shared.compress_next(audience, kind, payload) {
            Some(compressed) => {
                self.cx.counters().compressed.add_alone(1);
                compressed
            }
            // The followers receive it uncompressed.
            None => frame.clone(),
        };
        Some(CompressedFrame {
            epoch,
            frame,
            alone: false,
        })
    }

    /// Begins an epoch with a message, if the message can be compressed.
    fn begin_epoch(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<CompressedFrame> {
        let shared = &mut self.cx.fanout.shared_compression;
        let Some(frame) = shared.compress_first(audience, kind, payload) else {
            // Attempts become rarer while messages do not compress.
            shared.history_of(audience).pause();
            return None;
        };
        let epoch = self.enter_epoch(audience, payload, Entrants::Free)?;
        self.cx.counters().compressed.add_alone(1);
        Some(CompressedFrame {
            epoch,
            frame,
            alone: false,
        })
    }

    /// Begins an epoch with a long message that the sending thread has compressed independently. Every member that can
    /// inflate it receives it compressed.
    pub(super) fn begin_epoch_with(
        &mut self,
        audience: Audience,
        plain: &Bytes,
        compressed: Bytes,
    ) -> Option<CompressedFrame> {
        let (_, payload) = encode::data_payload(plain)?;
        self.cx.fanout.shared_compression.clock += 1;
        let epoch = self.enter_epoch(audience, payload, Entrants::Inflating(plain.len()));
        // The shard's compressor does not contain this message.
        self.cx.fanout.shared_compression.served = None;
        Some(CompressedFrame {
            // No connection follows the epoch `NONE`.
            epoch: epoch.unwrap_or(Epoch::NONE),
            frame: compressed,
            alone: true,
        })
    }

    /// Begins the next epoch of an audience, and makes members follow it. Returns `None` if no member can.
    fn enter_epoch(
        &mut self,
        audience: Audience,
        payload: &[u8],
        entrants: Entrants,
    ) -> Option<Epoch> {
        // Earlier frames are for the followers of the previous epoch.
        self.flush_batches();
        let fanout = &mut self.cx.fanout;
        let shared = &mut fanout.shared_compression;
        let epoch = shared.next_epoch;
        shared.next_epoch = epoch.next();
        let clock = shared.clock;
        let history = shared.history_of(audience);
        let (previous, begun) = (history.epoch, history.begun);
        let slots: Vec<u32> = match audience {
            Audience::Everyone => fanout.members.as_slice().to_vec(),
            Audience::Room(room) => fanout.rooms.members(room).collect(),
        };
        let members = slots.len() as u64;
        let (mut following, mut elsewhere, mut waiting) = (0, 0, 0);
        for slot in slots {
            let follows = self.with_member(slot, |ws, cx| {
                // What was queued in this turn was not refused yet.
                if ws.outbox.has_keyed() && !ws.is_blocked() {
                    ws.write(cx);
                }
                let shared = &cx.shard.fanout.shared_compression;
                // With the next keyed message that waits, the member would leave the epoch again. It must not make epochs shorter
                // for the others either, so it is not counted.
                let is_slow = !ws.is_open() || ws.outbox.has_keyed();
                let enters = !is_slow
                    && match entrants {
                        Entrants::Inflating(len) => {
                            ws.compression.can_follow() && ws.compression.ability().can_inflate(len)
                        }
                        Entrants::Free => shared.is_free(ws.compression, previous, begun),
                    };
                if enters {
                    ws.compression.follow(epoch);
                } else if previous.is_some_and(|previous| ws.compression.follows(previous)) {
                    // The previous epoch has ended.
                    ws.compression.leave_epoch();
                }
                (!is_slow).then_some(ws.compression)
            });
            match follows
                .flatten()
                .map(|compression| (compression.epoch(), compression.can_follow()))
            {
                Some((Some(followed), _)) if followed == epoch => following += 1,
                Some((Some(_), _)) => elsewhere += 1,
                Some((None, true)) => waiting += 1,
                _ => {}
            }
        }
        let shared = &mut self.cx.fanout.shared_compression;
        if let Some(previous) = previous {
            shared.epochs.remove(&previous.number());
        }
        let history = shared.history_of(audience);
        if following == 0 {
            history.epoch = None;
            history.pause();
            shared.served = None;
            return None;
        }
        *history = AudienceHistory {
            epoch: Some(epoch),
            tail: Vec::new(),
            since: 0,
            begun: clock,
            used: clock,
            followers: following,
            has_waiting_members: waiting > 0,
            waited: 0,
            has_members_elsewhere: elsewhere > 0,
            pause: 0,
            last_pause: history.last_pause,
            members,
            saved: 0,
            sent: 0,
            reviewed: 0,
            was_unprofitable: history.was_unprofitable,
        };
        history.keep_tail(payload);
        shared.epochs.insert(epoch.number(), clock);
        self.cx.counters().epochs.add_alone(1);
        Some(epoch)
    }

    /// Updates the counts after a compressed batch was sent.
    pub(super) fn note_followers(&mut self, audience: Audience, batch: &SealedBatch) {
        let seen = batch.followers;
        let Some(epoch) = batch.epoch() else {
            return;
        };
        self.cx
            .fanout
            .shared_compression
            .note_followers(audience, epoch, seen);
        let counters = self.cx.counters();
        counters
            .compressed_bytes_out
            .add_alone(seen.compressed_bytes);
        counters.compressed_plain_bytes.add_alone(seen.plain_bytes);
        counters.waiting_for_epoch.add_alone(seen.waiting);
    }
}
