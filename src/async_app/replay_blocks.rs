//! A room's kept messages in one form, joined into blocks. Each is rendered once, and shared by the replays of all clients that
//! receive this form.
//!
//! The blocks of a list follow each other without a gap. The newest one grows, as long as it is small, by being replaced with a
//! longer one. This module knows neither locks nor how messages are rendered.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::history::{History, HistoryEntry};
use crate::engine::ReplayPiece;
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::{Message, SentMessage};

/// The length up to which messages are joined in one block. A longer message has a block of its own.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// A newest block that is shorter is replaced when it grows.
const GROWS_BELOW_BYTES: usize = BLOCK_BYTES / 2;
/// So few messages, with so few bytes, are rendered for each client: a new block would cost more.
const FEW_MESSAGES: u64 = 16;
const FEW_BYTES: usize = 4 << 10;
/// A message from this length on, in a block of its own, is not copied.
const NOT_COPIED_FROM_BYTES: usize = BLOCK_BYTES / 4;

/// Whole messages with consecutive ids, rendered.
pub(super) struct Block {
    first: u64,
    last: u64,
    /// The sequence of each message after the first, and where its bytes begin. Messages that the program could not render are missing.
    starts: Box<[(u32, u32)]>,
    bytes: Bytes,
}

impl Block {
    /// The messages from a sequence on. `None` if there are none.
    fn piece(&self, from: u64) -> Option<ReplayPiece> {
        let index = match from.checked_sub(self.first) {
            None | Some(0) => 0,
            Some(skipped) => {
                let is_skipped = |&(sequence, _): &(u32, u32)| u64::from(sequence) < skipped;
                self.starts.partition_point(is_skipped)
            }
        };
        let &(_, start) = self.starts.get(index)?;
        Some(ReplayPiece::Block {
            bytes: self.bytes.slice(start as usize..),
            messages: (self.starts.len() - index) as u32,
            of: self.bytes.len(),
        })
    }
}

/// Consecutive blocks, oldest first.
#[derive(Clone, Default)]
pub(super) struct BlockList {
    epoch: u64,
    blocks: VecDeque<Arc<Block>>,
}

impl BlockList {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The first and the last sequence, if the blocks belong to this history, and the next message is kept.
    fn range_in(&self, history: &History) -> Option<(u64, u64)> {
        let (first, last) = (self.blocks.front()?.first, self.blocks.back()?.last);
        let is_near = (history.oldest_kept() - 1..=history.last_sequence()).contains(&last);
        (is_near && self.epoch == history.epoch()).then_some((first, last))
    }

    /// The last sequence of the oldest block.
    pub(super) fn oldest_end(&self) -> Option<u64> {
        self.blocks.front().map(|oldest| oldest.last)
    }

    /// Appends the replay of the messages from a sequence on, as far as there are blocks. Returns the sequence after them.
    pub(super) fn replay(
        &self,
        history: &History,
        from: u64,
        pieces: &mut Vec<ReplayPiece>,
    ) -> u64 {
        match self.range_in(history) {
            Some((first, last)) if (first..=last).contains(&from) => {
                let skipped = self.blocks.partition_point(|block| block.last < from);
                pieces.extend(
                    self.blocks
                        .range(skipped..)
                        .filter_map(|one| one.piece(from)),
                );
                last + 1
            }
            _ => from,
        }
    }

    /// Returns the next block to render, until the blocks contain the messages after `since` up to the sequence `end`. `None` if
    /// they do, or if few are missing. `len` is the most bytes of a rendered message.
    pub(super) fn missing(
        &self,
        history: &History,
        since: Option<HistoryId>,
        end: u64,
        len: impl Fn(&Message) -> usize,
    ) -> Result<Option<BlockOrder>, HistoryGone> {
        let len = |entry: &HistoryEntry| len(&entry.sent.message);
        let from = history.first_after(since)?;
        let Some((first, last)) = self.range_in(history) else {
            return Ok(self.order(history, from, (from, end), None, len));
        };
        if from < first {
            // Whole blocks, so that clients that resume a little earlier one after the other don't get a block each.
            let mut bytes = 0;
            let start = history
                .entries_between(history.oldest_kept(), first - 1)
                .rev()
                .take_while(|(_, entry)| {
                    bytes += len(entry);
                    bytes <= BLOCK_BYTES
                })
                .last()
                .map_or(first - 1, |(id, _)| id.sequence());
            let mut order = BlockOrder::new(history, BlockPosition::Before, None);
            order.take(history, (start, first - 1), len);
            return Ok(Some(order));
        }
        let newest = self.blocks.back();
        let grown = newest.filter(|newest| newest.bytes.len() < GROWS_BELOW_BYTES);
        Ok(self.order(history, from, (last + 1, end), grown.cloned(), len))
    }

    fn order(
        &self,
        history: &History,
        needed_from: u64,
        (from, end): (u64, u64),
        grown: Option<Arc<Block>>,
        len: impl Fn(&HistoryEntry) -> usize,
    ) -> Option<BlockOrder> {
        // A list may be far behind what this client needs.
        let needed_from = needed_from.max(from);
        if needed_from > end {
            return None;
        }
        if end - needed_from < FEW_MESSAGES {
            let missing = history.entries_between(needed_from, end);
            let bytes = missing.map(|(_, entry)| len(entry));
            if bytes.sum::<usize>() <= FEW_BYTES {
                return None;
            }
        }
        let position = match self.range_in(history) {
            Some(_) => BlockPosition::After,
            None => BlockPosition::Only,
        };
        let mut order = BlockOrder::new(history, position, grown);
        order.take(history, (from, end), len);
        Some(order)
    }

    /// Whether the block that was made for an order fits, since the list has not changed meanwhile or only elsewhere.
    pub(super) fn fits(&self, order: &BlockOrder, block: &Block) -> bool {
        let is_same_epoch = self.epoch == order.epoch;
        match order.position {
            BlockPosition::Only => {
                let newest = self.blocks.back();
                !is_same_epoch || newest.is_none_or(|newest| newest.last < order.dropped)
            }
            BlockPosition::Before => {
                let oldest = self.blocks.front();
                is_same_epoch && oldest.is_some_and(|oldest| oldest.first == block.last + 1)
            }
            BlockPosition::After => {
                let newest = self.blocks.back();
                is_same_epoch
                    && newest.is_some_and(|newest| match &order.grown {
                        Some(grown) => Arc::ptr_eq(newest, grown),
                        None => newest.last + 1 == block.first,
                    })
            }
        }
    }

    /// Adds a block that [fits](Self::fits). Drops those whose messages the history no longer contained at the time of the order.
    pub(super) fn insert(&mut self, order: &BlockOrder, block: Block) {
        self.epoch = order.epoch;
        match order.position {
            BlockPosition::Only => self.blocks = VecDeque::from([Arc::new(block)]),
            BlockPosition::Before => self.blocks.push_front(Arc::new(block)),
            BlockPosition::After => {
                if order.grown.is_some() {
                    self.blocks.pop_back();
                }
                self.blocks.push_back(Arc::new(block));
            }
        }
        self.drop_until(order.dropped, usize::MAX);
    }

    /// Drops up to `most` blocks, all of whose messages come before or have this sequence.
    pub(super) fn drop_until(&mut self, sequence: u64, most: usize) {
        for _ in 0..most {
            match self.blocks.front() {
                Some(oldest) if oldest.last <= sequence => drop(self.blocks.pop_front()),
                _ => break,
            }
        }
        if self.blocks.is_empty() {
            self.blocks = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes.len()).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }
}

/// Where a new block belongs in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BlockPosition {
    /// The list is empty, or its blocks are of no use.
    Only,
    Before,
    After,
}

/// The messages of a block that is to be rendered.
pub(super) struct BlockOrder {
    epoch: u64,
    /// The last sequence that the history has dropped.
    dropped: u64,
    position: BlockPosition,
    /// The block that the new one begins with, and replaces.
    grown: Option<Arc<Block>>,
    messages: Vec<(HistoryId, SentMessage)>,
    bytes: usize,
}

impl BlockOrder {
    fn new(history: &History, position: BlockPosition, grown: Option<Arc<Block>>) -> Self {
        Self {
            epoch: history.epoch(),
            dropped: history.oldest_kept() - 1,
            position,
            bytes: grown.as_ref().map_or(0, |grown| grown.bytes.len()),
            grown,
            messages: Vec::new(),
        }
    }

    /// The most bytes of the block.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes as many messages as fit into the block, at least one.
    fn take(
        &mut self,
        history: &History,
        (from, to): (u64, u64),
        len: impl Fn(&HistoryEntry) -> usize,
    ) {
        for (id, entry) in history.entries_between(from, to) {
            let len = len(entry);
            if !self.messages.is_empty() && self.bytes + len > BLOCK_BYTES {
                break;
            }
            if self.messages.is_empty() && self.bytes + len > BLOCK_BYTES {
                // The newest block stays as it is.
                self.grown = None;
                self.bytes = 0;
            }
            self.bytes += len;
            self.messages.push((id, entry.sent.clone()));
        }
    }

    /// Renders the block, without holding a lock. `keep` takes its bytes, and the number of bytes that the block takes beside them.
    /// If `keep` refuses, there is no block.
    pub(super) fn render(
        &self,
        frame: impl Fn(HistoryId, &SentMessage) -> Option<Bytes>,
        keep: impl FnOnce(Bytes, usize) -> Option<Bytes>,
    ) -> Option<Block> {
        let (first_message, last_message) = (self.messages.first()?, self.messages.last()?);
        let (mut starts, mut joined) = (Vec::new(), Vec::with_capacity(self.bytes));
        let mut first = first_message.0.sequence();
        if let Some(grown) = &self.grown {
            first = grown.first;
            starts.extend_from_slice(&grown.starts);
            joined.extend_from_slice(&grown.bytes);
        }
        let is_single = self.messages.len() == 1 && self.grown.is_none();
        let mut uncopied = None;
        for (id, sent) in &self.messages {
            let Some(rendered) = frame(*id, sent) else {
                continue;
            };
            let sequence = u32::try_from(id.sequence() - first).ok()?;
            starts.push((sequence, u32::try_from(joined.len()).ok()?));
            match is_single && rendered.len() >= NOT_COPIED_FROM_BYTES {
                true => uncopied = Some(rendered),
                false => joined.extend_from_slice(&rendered),
            }
        }
        let starts = starts.into_boxed_slice();
        let bytes = uncopied.unwrap_or_else(|| joined.into_boxed_slice().into());
        let bytes = keep(bytes, size_of_val(&*starts))?;
        Some(Block {
            first,
            last: last_message.0.sequence(),
            starts,
            bytes,
        })
    }
}

#[cfg(all(test, not(loom)))]
#[path = "replay_blocks_tests.rs"]
mod tests;
