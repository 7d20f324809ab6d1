//! Broadcasts, compressed once for many members with the history of their audience.
//!
//! A compressed message may refer to what its client was sent compressed before, and to nothing else: plain frames do not enter
//! a client's window (RFC 7692 §7.2.3). So all members that were sent the same compressed frames, beginning with one that
//! refers to nothing, can be sent the same next one. Such a series is an *epoch*, and these members *follow* it.
//!
//! An epoch begins with a message that is compressed by itself, from which on all members that can follow it. A member that
//! joins later, is excluded from a broadcast (`except`), or is sent another compressed frame does not follow, and is sent
//! plain frames. While such members wait, the next epoch begins some messages later. A member of several audiences
//! follows one of them, and is sent the messages of others plain.
//!
//! **Invariant:** the last bytes of a follower's window equal its history's `tail`, as far as that goes. The compressor
//! knows which audience it served last; a message to another audience restarts it with that audience's tail.

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

/// Shorter messages gain nothing.
const COMPRESSED_FROM_BYTES: usize = 64;

/// The bytes of an audience's messages that are kept, to restart the compressor after it has served another audience.
const TAIL_BYTES: usize = 4 << 10;

/// Most audiences of a shard whose history is kept. The least recently used ones are dropped.
const HISTORIES_MAX: usize = 1024;

/// Fewest messages in an epoch while members wait for the next one.
const EPOCH_MESSAGES_MIN: u32 = 16;

/// Fewest messages in an epoch while members follow another audience, which may be silent by now.
const EPOCH_MESSAGES_SHARED: u32 = 256;

/// Messages that are sent plain before an epoch is tried again, if no member follows. Doubled with each try, since an attempt
/// looks at every member.
const PAUSE_MESSAGES: u32 = 16;
const PAUSE_MESSAGES_MAX: u32 = 4096;

/// How many bytes compression must save for each message that it is tried on, and an epoch for each member that its begin looks
/// at. These are exchange rates: compressing a message that resembles those before it costs about 0.2 µs and saves some 75
/// bytes at a single recipient, which pays, so a byte is worth a few nanoseconds.
const MESSAGE_COST_BYTES: u64 = 16;
const MEMBER_COST_BYTES: u64 = 8;

/// Messages of an epoch between two looks at what it saves.
const REVIEW_MESSAGES: u32 = 64;

/// How much longer than plain the first message of an epoch may be, since later messages refer to it.
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
    /// The audience whose history the compressor has.
    served: Option<Audience>,
    histories: HashMap<Audience, AudienceHistory>,
    /// When each epoch that a connection may follow was last used, by its number.
    epochs: HashMap<u64, u64>,
    next_epoch: Epoch,
    /// The number of messages so far.
    clock: u64,
}

/// The compressed messages of one audience.
#[derive(Default)]
struct AudienceHistory {
    epoch: Option<Epoch>,
    /// The end of the messages that were compressed since the epoch began.
    tail: Vec<u8>,
    /// Messages since the epoch began.
    since: u32,
    /// When the epoch began, by `SharedCompression::clock`.
    begun: u64,
    used: u64,
    /// The members that received the last batch compressed.
    followers: usize,
    /// Whether members wait for the next epoch.
    is_awaited: bool,
    /// Whether members follow another audience.
    is_shared: bool,
    /// Messages that are sent plain before an epoch is tried again.
    pause: u32,
    /// The length of the last pause.
    last_pause: u32,
    /// The number of members that the begin of the epoch has looked at.
    members: u64,
    /// Bytes that the epoch has saved with its first `noted` messages: the others are not sent yet.
    saved: u64,
    noted: u32,
    /// What `noted` was at the last review.
    reviewed: u32,
    /// The last epoch has saved less than it cost.
    was_in_vain: bool,
}

/// The members that follow a new epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entrants {
    /// Those that can follow, and follow no other audience.
    Free,
    /// All that can follow and whose window holds a message of that many bytes, which was compressed with the largest window.
    Inflating(usize),
}

impl AudienceHistory {
    fn pause(&mut self) {
        self.last_pause = (2 * self.last_pause).clamp(PAUSE_MESSAGES, PAUSE_MESSAGES_MAX);
        self.pause = self.last_pause;
    }

    /// Has the next message begin an epoch, if there is none. After one that was in vain, some messages are sent plain first.
    fn resume(&mut self) {
        match self.was_in_vain {
            true => self.pause = self.pause.min(PAUSE_MESSAGES),
            false => (self.pause, self.last_pause) = (0, 0),
        }
    }

    /// Whether the epoch saves less than it costs, as far as that is known.
    fn is_in_vain(&self) -> bool {
        let messages = u64::from(self.noted) * MESSAGE_COST_BYTES;
        match self.wants_epoch() {
            // Another one like this would have to be begun, too.
            true => {
                self.noted >= self.since / 2
                    && self.saved < messages + self.members * MEMBER_COST_BYTES
            }
            false => self.saved < messages,
        }
    }

    /// Whether it is time to compare what the epoch saves with what it costs.
    fn is_due_for_review(&self) -> bool {
        self.wants_epoch() || self.noted - self.reviewed >= REVIEW_MESSAGES
    }

    /// Notes whether the epoch was worth its cost. If not, the next ones begin ever later.
    fn note_worth(&mut self, was_in_vain: bool) {
        self.was_in_vain = was_in_vain;
        if was_in_vain {
            self.pause();
        } else {
            self.last_pause = 0;
        }
    }

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

    /// What the compressor is told of the audience after it has served another.
    fn dictionary(&self) -> &[u8] {
        &self.tail[self.tail.len().saturating_sub(TAIL_BYTES)..]
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

    /// An audience has a new member.
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
            // No connection needs this state any more.
            self.compressor = None;
            self.served = None;
            self.histories = HashMap::new();
            self.epochs = HashMap::new();
        }
    }

    /// The kind and payload of a message, if it can be compressed for an audience.
    fn candidate<'a>(&self, frame: &'a [u8]) -> Option<(MessageKind, &'a [u8])> {
        let compression = self.compression.as_ref()?;
        if self.able == 0 {
            return None;
        }
        // Event streams are audiences too; their events do not begin like frames.
        let (kind, payload) = encode::data_payload(frame)?;
        let is_compressed = compression.compresses(kind)
            && (COMPRESSED_FROM_BYTES..ALONE_FROM_BYTES).contains(&payload.len());
        is_compressed.then_some((kind, payload))
    }

    /// The history of an audience. If there are too many, the least recently used ones are dropped.
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

    /// Removes epochs that no history has any more.
    fn forget_epochs(&mut self) {
        let live: HashSet<u64> = self
            .histories
            .values()
            .filter_map(|history| history.epoch.map(Epoch::number))
            .collect();
        self.epochs.retain(|epoch, _| live.contains(epoch));
    }

    /// Compresses a message for the followers of an audience's epoch. `None`: there is no epoch, or the message is sent
    /// plain.
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

    /// Compresses a message by itself, so that an epoch can begin with it.
    fn compress_first(
        &mut self,
        audience: Audience,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<Bytes> {
        // Those of the former epoch: who follows this one is known only once the message is worth compressing.
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
        let Some(history) = self.histories.get_mut(&audience) else {
            return;
        };
        if history.epoch != Some(epoch) {
            return;
        }
        history.followers = seen.following as usize;
        history.is_awaited = seen.waiting > 0;
        history.is_shared = seen.elsewhere > 0;
        history.saved += seen.plain_bytes.saturating_sub(seen.compressed_bytes);
        history.noted = history.since;
        if seen.following == 0 {
            // Without followers, compression ends.
            history.epoch = None;
            self.epochs.remove(&epoch.number());
            match seen.waiting {
                0 => history.pause(),
                // The next message may begin another.
                _ => history.note_worth(history.is_in_vain()),
            }
        }
    }

    /// Ends an audience's epoch if it saves less than it costs. Returns whether it has ended.
    fn give_up_in_vain(&mut self, audience: Audience) -> bool {
        let history = self.history_of(audience);
        let Some(epoch) = history.epoch else {
            return false;
        };
        if !history.is_due_for_review() {
            return false;
        }
        history.reviewed = history.noted;
        let is_in_vain = history.is_in_vain();
        history.note_worth(is_in_vain);
        if is_in_vain {
            history.epoch = None;
            self.epochs.remove(&epoch.number());
        }
        is_in_vain
    }

    /// The epoch of an audience, if it has one.
    pub(crate) fn epoch_of(&self, audience: Audience) -> Option<Epoch> {
        self.histories.get(&audience)?.epoch
    }
}

impl<T: ShardTransport> Core<T> {
    /// Compresses a broadcast, if any members can follow. May send the batches gathered before.
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
        if shared.give_up_in_vain(audience) {
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
            // The followers get it plain.
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
            // The longer this goes on, the rarer it is tried.
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

    /// Begins an epoch with a long message that its sender has compressed by itself: every member that can inflate it gets
    /// it compressed.
    pub(super) fn begin_epoch_with(
        &mut self,
        audience: Audience,
        plain: &Bytes,
        compressed: Bytes,
    ) -> Option<CompressedFrame> {
        let (_, payload) = encode::data_payload(plain)?;
        self.cx.fanout.shared_compression.clock += 1;
        let epoch = self.enter_epoch(audience, payload, Entrants::Inflating(plain.len()));
        // The compressor has not seen this message.
        self.cx.fanout.shared_compression.served = None;
        Some(CompressedFrame {
            // No connection follows this one.
            epoch: epoch.unwrap_or(Epoch::NONE),
            frame: compressed,
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
        // Frames that were compressed before are for the followers of the former epoch.
        self.flush_batches();
        let fanout = &mut self.cx.fanout;
        let shared = &mut fanout.shared_compression;
        let epoch = shared.next_epoch;
        shared.next_epoch = epoch.next();
        let clock = shared.clock;
        let history = shared.history_of(audience);
        let (former, begun) = (history.epoch, history.begun);
        let slots: Vec<u32> = match audience {
            Audience::Everyone => fanout.members.as_slice().to_vec(),
            Audience::Room(room) => fanout.rooms.members(room).collect(),
        };
        let members = slots.len() as u64;
        let (mut following, mut elsewhere, mut waiting) = (0, 0, 0);
        for slot in slots {
            let follows = self.with_member(slot, |ws, cx| {
                let shared = &cx.shard.fanout.shared_compression;
                let enters = match entrants {
                    Entrants::Inflating(len) => {
                        ws.compression.can_follow() && ws.compression.ability().can_inflate(len)
                    }
                    Entrants::Free => shared.is_free(ws.compression, former, begun),
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
        let shared = &mut self.cx.fanout.shared_compression;
        if let Some(former) = former {
            shared.epochs.remove(&former.number());
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
            is_awaited: waiting > 0,
            is_shared: elsewhere > 0,
            pause: 0,
            last_pause: history.last_pause,
            members,
            saved: 0,
            noted: 0,
            reviewed: 0,
            was_in_vain: history.was_in_vain,
        };
        history.keep_tail(payload);
        shared.epochs.insert(epoch.number(), clock);
        self.cx.counters().epochs.add_alone(1);
        Some(epoch)
    }

    /// Updates the counts after a compressed batch was sent.
    pub(super) fn note_followers(
        &mut self,
        audience: Audience,
        batch: &SealedBatch,
        seen: Followers,
    ) {
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
