//! The history of a room, and the patterns that determine which rooms have one.
//!
//! This module knows neither locks nor connections. Publishers hold the room's lock. The stamps order the kept messages
//! of all rooms in the process, so that several histories can be merged.

use std::collections::VecDeque;

use crate::history_id::{HistoryGone, HistoryId, random_epoch};
use crate::limits::HistoryLimits;
use crate::message::{Message, SentMessage};

/// The last messages of one room.
pub(super) struct History {
    epoch: u64,
    /// The sequence of the last message, even if it was not kept. The kept messages are the last ones, without gaps.
    last: u64,
    kept: VecDeque<HistoryEntry>,
    /// The payload bytes of all kept messages.
    bytes: usize,
    /// The stamp of the last dropped message, or 0 if none was dropped.
    dropped_stamp: u64,
    messages_max: usize,
    bytes_max: usize,
}

/// A message that a history keeps.
pub(super) struct HistoryEntry {
    pub(super) sent: SentMessage,
    stamp: u64,
}

impl History {
    /// Creates a history of at most this many messages, with at most this many bytes of payload together.
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self::with_epoch(random_epoch(), messages_max, bytes_max)
    }

    fn with_epoch(epoch: u64, messages_max: usize, bytes_max: usize) -> Self {
        Self {
            epoch,
            last: 0,
            kept: VecDeque::new(),
            bytes: 0,
            dropped_stamp: 0,
            messages_max,
            bytes_max,
        }
    }

    /// Begins anew with the messages of another copy, which were assigned their ids elsewhere: the kept ones up to this
    /// position, oldest first and without gaps. `next_stamp` is called for each.
    #[cfg(feature = "cluster")]
    pub(super) fn begin_at(
        &mut self,
        position: HistoryId,
        messages: impl ExactSizeIterator<Item = SentMessage>,
        mut next_stamp: impl FnMut() -> u64,
    ) {
        *self = Self::with_epoch(position.epoch(), self.messages_max, self.bytes_max);
        // An event stream that resumes by an earlier stamp may have missed messages from before the first one of this copy.
        self.dropped_stamp = next_stamp();
        self.last = position.sequence().saturating_sub(messages.len() as u64);
        for message in messages {
            let stamp = next_stamp();
            self.push(message, stamp);
        }
    }

    /// Treats all messages up to this stamp as dropped.
    pub(super) fn since_stamp(mut self, stamp: u64) -> Self {
        self.dropped_stamp = stamp;
        self
    }

    fn id(&self, sequence: u64) -> HistoryId {
        HistoryId::new(self.epoch, sequence)
    }

    /// Returns the id of the next message.
    pub(super) fn next_id(&self) -> HistoryId {
        self.id(self.last + 1)
    }

    /// Returns the id of the last message, even if it was not kept. `None` if there was no message yet.
    pub(super) fn last_id(&self) -> Option<HistoryId> {
        (self.last > 0).then(|| self.id(self.last))
    }

    /// Returns the current position: the id of the last message, or sequence 0 before the first. A client at this
    /// position has seen every message so far.
    pub(super) fn position(&self) -> HistoryId {
        self.id(self.last)
    }

    /// Returns whether the id belongs to this history.
    pub(super) fn is_of(&self, id: HistoryId) -> bool {
        id.epoch() == self.epoch
    }

    /// Returns the sequence of the last dropped message, or 0 if none was dropped.
    fn dropped(&self) -> u64 {
        self.last - self.kept.len() as u64
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the sequence of the last message, even if it was not kept.
    pub(super) fn last_sequence(&self) -> u64 {
        self.last
    }

    /// Returns the sequence of the oldest kept message, or that of the next one if none is kept.
    pub(super) fn oldest_kept(&self) -> u64 {
        self.dropped() + 1
    }

    /// Returns the sequence of the first message after an id (`None`: of the oldest kept one). Fails if some of the messages after
    /// the id were dropped.
    pub(super) fn first_after(&self, id: Option<HistoryId>) -> Result<u64, HistoryGone> {
        let Some(id) = id else {
            return Ok(self.oldest_kept());
        };
        match self.seen(id) {
            Some(seen) => Ok(self.oldest_kept() + seen as u64),
            None => Err(HistoryGone::new(id, self.oldest_id())),
        }
    }

    /// Returns the kept messages whose sequences are in this range, with both ends, oldest first.
    pub(super) fn entries_between(
        &self,
        first: u64,
        last: u64,
    ) -> impl DoubleEndedIterator<Item = (HistoryId, &HistoryEntry)> {
        let oldest = self.oldest_kept();
        let first = first.max(oldest);
        let end = last.min(self.last).max(first - 1);
        let index = |sequence: u64| ((sequence - oldest) as usize).min(self.kept.len());
        let start = index(first);
        let entries = self.kept.range(start..index(end + 1)).enumerate();
        entries.map(move |(at, entry)| (self.id(first + at as u64), entry))
    }

    /// Assigns the next id to a message and keeps it. Drops the oldest messages if the history is full. A message that
    /// is longer than the whole history is not kept, and all earlier messages are dropped, so that the kept messages
    /// have no gap.
    pub(super) fn push(&mut self, sent: impl Into<SentMessage>, stamp: u64) -> HistoryId {
        let sent = sent.into();
        self.last += 1;
        self.bytes = self.bytes.saturating_add(sent.message.bytes().len());
        self.kept.push_back(HistoryEntry { sent, stamp });
        while self.kept.len() > self.messages_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= oldest.sent.message.bytes().len();
            self.dropped_stamp = oldest.stamp;
        }
        self.id(self.last)
    }

    /// Returns the number of kept messages up to this id. `None` if some of the later messages were dropped, or if the
    /// id has not been assigned yet.
    fn seen(&self, id: HistoryId) -> Option<usize> {
        let within = self.is_of(id) && id.sequence() <= self.last;
        let seen = id.sequence().checked_sub(self.dropped())?;
        within.then_some(seen as usize)
    }

    /// Returns the kept messages after an id (`None`: all of them) with their ids and stamps, oldest first. Fails if
    /// some of the messages after the id were dropped.
    #[cfg(test)]
    pub(super) fn since(
        &self,
        id: Option<HistoryId>,
    ) -> Result<impl ExactSizeIterator<Item = (HistoryId, &Message, u64)>, HistoryGone> {
        let entries = self.entries_since(id)?;
        Ok(entries.map(|(id, entry)| (id, &entry.sent.message, entry.stamp)))
    }

    /// Returns the entries of the kept messages after an id (`None`: of all of them) with their ids, oldest first. Fails if some of
    /// the messages after the id were dropped.
    pub(super) fn entries_since(
        &self,
        id: Option<HistoryId>,
    ) -> Result<impl ExactSizeIterator<Item = (HistoryId, &HistoryEntry)>, HistoryGone> {
        let first = self.first_after(id)?;
        let seen = (first - self.oldest_kept()) as usize;
        Ok(self
            .kept
            .iter()
            .skip(seen)
            .enumerate()
            .map(move |(index, entry)| (self.id(first + index as u64), entry)))
    }

    /// Returns the kept messages with a later stamp, with their ids and stamps, oldest first.
    pub(super) fn after_stamp(
        &self,
        stamp: u64,
    ) -> impl ExactSizeIterator<Item = (HistoryId, &Message, u64)> {
        let seen = self.kept.partition_point(|kept| kept.stamp <= stamp);
        let first = self.dropped() + seen as u64 + 1;
        self.kept
            .iter()
            .skip(seen)
            .enumerate()
            .map(move |(index, kept)| {
                (
                    self.id(first + index as u64),
                    &kept.sent.message,
                    kept.stamp,
                )
            })
    }

    /// Returns whether all messages with a later stamp are kept.
    pub(super) fn reaches_stamp(&self, stamp: u64) -> bool {
        self.dropped_stamp <= stamp
    }

    fn oldest_id(&self) -> Option<HistoryId> {
        (!self.kept.is_empty()).then(|| self.id(self.dropped() + 1))
    }

    /// Returns the stamp of the last message, even if it was not kept, or 0 if there was no message yet.
    pub(super) fn last_stamp(&self) -> u64 {
        self.kept
            .back()
            .map_or(self.dropped_stamp, |kept| kept.stamp)
    }

    /// Returns the stamp of the message with this id, or 0 for the position before the first. `None` if some of the
    /// later messages were dropped.
    pub(super) fn stamp_of(&self, id: HistoryId) -> Option<u64> {
        Some(match self.seen(id)?.checked_sub(1) {
            None => self.dropped_stamp,
            Some(index) => self.kept.get(index)?.stamp,
        })
    }
}

/// The patterns that determine which rooms keep a history, and its bounds.
#[derive(Default)]
pub(super) struct HistoryPatterns {
    patterns: Vec<(Box<str>, HistoryBounds)>,
}

/// The bounds of a room's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HistoryBounds {
    pub(super) messages_max: usize,
    pub(super) bytes_max: usize,
    /// Whether the pattern is exactly the room's name. Such a room is never evicted.
    pub(super) pinned: bool,
}

#[cfg(feature = "cluster")]
impl HistoryBounds {
    /// About the most bytes of the messages with what accompanies each between nodes.
    pub(super) fn envelope_bytes_max(self) -> usize {
        let more = self
            .messages_max
            .saturating_mul(crate::cluster::OVERHEAD_BYTES_MAX);
        self.bytes_max.saturating_add(more)
    }
}

impl HistoryPatterns {
    /// Sets the bounds of rooms whose name matches this pattern and no earlier one. With 0 messages, they keep no
    /// history.
    pub(super) fn add(&mut self, pattern: &str, limits: HistoryLimits) {
        let bounds = HistoryBounds {
            messages_max: limits.messages_max,
            bytes_max: limits.bytes_max,
            pinned: !pattern.contains('*'),
        };
        self.patterns.push((pattern.into(), bounds));
    }

    /// Whether no room keeps a history.
    #[cfg(feature = "cluster")]
    pub(super) fn is_empty(&self) -> bool {
        let mut bounds = self.patterns.iter().map(|(_, bounds)| bounds);
        !bounds.any(|bounds| bounds.messages_max > 0)
    }

    /// Returns the bounds of the history of a room. `None` if it keeps none.
    pub(super) fn find(&self, name: &str) -> Option<HistoryBounds> {
        self.patterns
            .iter()
            .find(|(pattern, _)| matches(pattern, name))
            .map(|&(_, bounds)| bounds)
            .filter(|bounds| bounds.messages_max > 0)
    }
}

/// Returns whether a name matches a pattern, in which `*` stands for any number of characters. It only ever backtracks
/// to the last `*`, so the time is at most the product of the lengths.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // The position from which to continue if the last `*` has to match more characters.
    let mut again = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                again = Some((p, n));
            }
            Some(byte) if *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut again {
                Some((after_star, run_end)) => {
                    *run_end += 1;
                    (p, n) = (*after_star, *run_end);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
