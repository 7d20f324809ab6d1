//! The kept messages of a room, and the patterns that say which rooms keep any.
//!
//! This module knows neither locks nor connections: publishers hold the room's lock. A message's stamp orders it among
//! all kept messages of the process, so that the histories of several rooms can be merged.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use crate::history_id::{HistoryGone, HistoryId};
use crate::limits::HistoryLimits;
use crate::message::Message;

/// The last messages of one room.
pub(super) struct History {
    epoch: u64,
    /// The sequence of the last message, kept or not. The kept messages are the last ones, without gaps.
    last: u64,
    kept: VecDeque<KeptMessage>,
    /// Payload bytes of the kept messages.
    bytes: usize,
    /// The stamp of the last message that is no longer kept; 0 if none was dropped.
    dropped_stamp: u64,
    messages_max: usize,
    bytes_max: usize,
}

struct KeptMessage {
    message: Message,
    stamp: u64,
}

impl History {
    /// Creates a history of at most this many messages, with at most this many bytes of payload together.
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        // A new `RandomState` has random keys, so its hash serves as a random number.
        Self::with_epoch(RandomState::new().hash_one(()), messages_max, bytes_max)
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

    /// Treats all messages up to that stamp as no longer kept.
    pub(super) fn since_stamp(mut self, stamp: u64) -> Self {
        self.dropped_stamp = stamp;
        self
    }

    fn id(&self, sequence: u64) -> HistoryId {
        HistoryId::new(self.epoch, sequence)
    }

    /// The id that the next message gets.
    pub(super) fn next_id(&self) -> HistoryId {
        self.id(self.last + 1)
    }

    /// The id of the last message, whether it is kept or not; `None` if there never was one.
    pub(super) fn last_id(&self) -> Option<HistoryId> {
        (self.last > 0).then(|| self.id(self.last))
    }

    /// Where the history stands: the id of the last message, or sequence 0 before the first. Everything after it is
    /// what is still to come.
    pub(super) fn position(&self) -> HistoryId {
        self.id(self.last)
    }

    /// Whether the id is of this history.
    pub(super) fn is_of(&self, id: HistoryId) -> bool {
        id.epoch() == self.epoch
    }

    /// The sequence of the last message that is not kept any more; 0 if all are.
    fn dropped(&self) -> u64 {
        self.last - self.kept.len() as u64
    }

    /// Numbers a message and keeps it, in place of the oldest where there is no room. One that is too long by itself
    /// gets its number only, and nothing is kept of what was before it: there is no gap in what is kept.
    pub(super) fn push(&mut self, message: Message, stamp: u64) -> HistoryId {
        self.last += 1;
        self.bytes = self.bytes.saturating_add(message.bytes().len());
        self.kept.push_back(KeptMessage { message, stamp });
        while self.kept.len() > self.messages_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= oldest.message.bytes().len();
            self.dropped_stamp = oldest.stamp;
        }
        self.id(self.last)
    }

    /// How many of the kept messages are at or before the sequence; `None` if what follows it is not kept as a whole,
    /// or it has not been given yet.
    fn seen(&self, id: HistoryId) -> Option<usize> {
        let within = self.is_of(id) && id.sequence() <= self.last;
        let seen = id.sequence().checked_sub(self.dropped())?;
        within.then_some(seen as usize)
    }

    /// What is kept and came after that id, or all that is kept: oldest first, with ids and stamps.
    pub(super) fn since(
        &self,
        id: Option<HistoryId>,
    ) -> Result<impl ExactSizeIterator<Item = (HistoryId, &Message, u64)>, HistoryGone> {
        let seen = match id {
            None => 0,
            Some(id) => self
                .seen(id)
                .ok_or_else(|| HistoryGone::new(id, self.oldest_id()))?,
        };
        let first = self.dropped() + seen as u64 + 1;
        Ok(self
            .kept
            .iter()
            .skip(seen)
            .enumerate()
            .map(move |(index, kept)| (self.id(first + index as u64), &kept.message, kept.stamp)))
    }

    /// What is kept and has a later stamp: what another room's client has missed since.
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
            .map(move |(index, kept)| (self.id(first + index as u64), &kept.message, kept.stamp))
    }

    /// Whether all messages with a later stamp are kept.
    pub(super) fn reaches_stamp(&self, stamp: u64) -> bool {
        self.dropped_stamp <= stamp
    }

    fn oldest_id(&self) -> Option<HistoryId> {
        (!self.kept.is_empty()).then(|| self.id(self.dropped() + 1))
    }

    /// The stamp of the last message, kept or not; 0 if there never was one.
    pub(super) fn last_stamp(&self) -> u64 {
        self.kept
            .back()
            .map_or(self.dropped_stamp, |kept| kept.stamp)
    }

    /// The stamp of that message, if what follows it is kept; 0 for the place before the first.
    pub(super) fn stamp_of(&self, id: HistoryId) -> Option<u64> {
        Some(match self.seen(id)?.checked_sub(1) {
            None => self.dropped_stamp,
            Some(index) => self.kept.get(index)?.stamp,
        })
    }
}

/// Which rooms keep a history, and how much of it.
#[derive(Default)]
pub(super) struct HistoryPatterns {
    patterns: Vec<(Box<str>, HistoryBounds)>,
}

/// How much is kept of a room's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HistoryBounds {
    pub(super) messages_max: usize,
    pub(super) bytes_max: usize,
    /// The pattern is the room's name: the program has named it, and it never gives way.
    pub(super) pinned: bool,
}

impl HistoryPatterns {
    /// Rooms whose name matches, and no pattern before, keep that much; with 0 messages they keep nothing.
    pub(super) fn add(&mut self, pattern: &str, limits: HistoryLimits) {
        let bounds = HistoryBounds {
            messages_max: limits.messages_max,
            bytes_max: limits.bytes_max,
            pinned: !pattern.contains('*'),
        };
        self.patterns.push((pattern.into(), bounds));
    }

    /// How much a room of that name keeps; `None` if nothing.
    pub(super) fn find(&self, name: &str) -> Option<HistoryBounds> {
        self.patterns
            .iter()
            .find(|(pattern, _)| matches(pattern, name))
            .map(|&(_, bounds)| bounds)
            .filter(|bounds| bounds.messages_max > 0)
    }
}

/// Whether a name matches a pattern: `*` is any run of characters, also an empty one. Takes at most the product of the
/// lengths: only the last `*` is ever tried anew.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on if the run of the last `*` has to be longer.
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
