//! The blocks of a room's replays in each form, and the memory that the blocks of all rooms may take.
//!
//! A block counts until no cache and no outbox holds it ([`ReplayMemory`]). So clients that read slowly, whose replays the room has
//! long dropped, can't hold more than the limit: beyond it, replays are rendered for each client, and count for it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::replay_blocks::{Block, BlockList, BlockOrder};
use crate::atomic::AtomicU64;
use crate::engine::HistoryForm;
use crate::history_id::HistoryId;
use crate::message::SentMessage;
use crate::sync::lock;

/// A room's blocks are dropped if no client has joined for this long.
const IDLE: Duration = Duration::from_secs(30);
/// How often idle rooms are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// How often they are looked for while there is no memory for blocks.
const FULL_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often a publisher looks whether its room is idle, in messages.
const IDLE_CHECK_MESSAGES: u64 = 256;
/// What a block counts beside its bytes: its entry in a list, and its allocations.
const BLOCK_OVERHEAD_BYTES: usize = 256;
/// Most blocks that a publisher drops for one message, since it holds the history's lock.
const DROPPED_AT_ONCE: usize = 64;

/// The form in which a client receives replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplayForm {
    Frames(HistoryForm),
    Events,
}

impl ReplayForm {
    const COUNT: usize = 1 + HistoryForm::COUNT as usize;

    fn index(self) -> usize {
        match self {
            Self::Frames(HistoryForm { with_ids, rendered }) => {
                usize::from(with_ids) + 2 * usize::from(rendered)
            }
            Self::Events => Self::COUNT - 1,
        }
    }
}

/// The blocks of one room.
#[derive(Default)]
pub(super) struct ReplayCache {
    /// `None` while there are no blocks.
    state: Mutex<Option<Box<CacheState>>>,
    /// The smallest last sequence of a block plus one; 0 if there are no blocks.
    oldest: AtomicU64,
    /// Whether the app knows the cache, to drop its blocks when it is idle.
    is_registered: AtomicBool,
}

struct CacheState {
    lists: [Arc<BlockList>; ReplayForm::COUNT],
    used: Instant,
}

impl ReplayCache {
    /// Returns the blocks of a form, for a client that joins now.
    pub(super) fn blocks(&self, form: ReplayForm) -> Arc<BlockList> {
        match &mut *lock(&self.state) {
            Some(state) => {
                state.used = Instant::now();
                state.lists[form.index()].clone()
            }
            None => Arc::default(),
        }
    }

    /// Adds the block that was made for an order, if it still fits.
    fn insert(&self, form: ReplayForm, order: &BlockOrder, block: Block) {
        let mut state = lock(&self.state);
        let state = state.get_or_insert_with(|| {
            Box::new(CacheState {
                lists: Default::default(),
                used: Instant::now(),
            })
        });
        let list = &mut state.lists[form.index()];
        if list.fits(order, &block) {
            Arc::make_mut(list).insert(order, block);
            self.note_oldest(state);
        }
    }

    fn note_oldest(&self, state: &CacheState) {
        let ends = state.lists.iter().filter_map(|list| list.oldest_end());
        let oldest = ends.min().map_or(0, |end| end.saturating_add(1));
        self.oldest.store(oldest, Relaxed);
    }

    /// Drops blocks that the room no longer needs, after a message was kept. Called with the history locked, which contains the
    /// messages after the sequence `dropped` up to `last`.
    pub(super) fn pushed(&self, last: u64, dropped: u64) {
        let oldest = self.oldest.load(Relaxed);
        if oldest > 0 && (dropped >= oldest - 1 || last.is_multiple_of(IDLE_CHECK_MESSAGES)) {
            self.drop_unneeded(dropped, Instant::now());
        }
    }

    #[cold]
    fn drop_unneeded(&self, dropped: u64, now: Instant) {
        let mut state = lock(&self.state);
        let Some(some) = &mut *state else {
            return;
        };
        let is_idle = now.saturating_duration_since(some.used) >= IDLE;
        let until = if is_idle { u64::MAX } else { dropped };
        for list in &mut some.lists {
            if list.oldest_end().is_some_and(|end| end <= until) {
                Arc::make_mut(list).drop_until(until, DROPPED_AT_ONCE);
            }
        }
        self.note_oldest(some);
        if some.lists.iter().all(|list| list.is_empty()) {
            *state = None;
        }
    }

    /// Drops all blocks.
    #[cfg(feature = "cluster")]
    pub(super) fn clear(&self) {
        let mut state = lock(&self.state);
        self.oldest.store(0, Relaxed);
        let blocks = state.take();
        drop((state, blocks));
    }

    /// Drops all blocks if no client has joined lately. Returns whether some are left.
    fn clear_if_idle(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let is_used = |state: &CacheState| now.saturating_duration_since(state.used) < IDLE;
        if state.as_deref().is_some_and(is_used) {
            return true;
        }
        self.oldest.store(0, Relaxed);
        self.is_registered.store(false, Relaxed);
        let idle = state.take();
        drop((state, idle));
        false
    }
}

/// Counts the memory of the blocks of all rooms.
#[derive(Default)]
pub(super) struct ReplayMemory {
    used: AtomicUsize,
    caches: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    caches: Vec<Weak<ReplayCache>>,
    swept: Option<Instant>,
}

/// The bytes of a block. They count until they are dropped.
struct BlockBytes {
    bytes: Bytes,
    counted: usize,
    memory: Arc<ReplayMemory>,
}

impl AsRef<[u8]> for BlockBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BlockBytes {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.counted, Relaxed);
    }
}

/// What the blocks of all rooms may take.
#[derive(Clone, Copy)]
pub(super) struct ReplayBudget<'a> {
    pub(super) memory: &'a Arc<ReplayMemory>,
    pub(super) bytes_max: usize,
}

impl ReplayBudget<'_> {
    /// Makes the block for an order, and adds it to a room's. Returns whether there was memory for it.
    pub(super) fn make(
        self,
        cache: &Arc<ReplayCache>,
        form: ReplayForm,
        order: &BlockOrder,
        frame: impl Fn(HistoryId, &SentMessage) -> Option<Bytes>,
    ) -> bool {
        // Before the program renders in vain.
        let is_full = || self.memory.used.load(Relaxed) + order.bytes() > self.bytes_max;
        if is_full() {
            self.memory.sweep(FULL_SWEEP_INTERVAL);
            if is_full() {
                return false;
            }
        }
        let Some(block) = order.render(frame, |bytes, more| self.keep(bytes, more)) else {
            return false;
        };
        cache.insert(form, order, block);
        self.memory.register(cache);
        true
    }

    /// Counts bytes, and `more` that are needed beside them, until they are dropped. `None` if that is too much.
    fn keep(self, bytes: Bytes, more: usize) -> Option<Bytes> {
        let counted = bytes.len() + more + BLOCK_OVERHEAD_BYTES;
        let used = &self.memory.used;
        let with = |used: usize| {
            let used = used.saturating_add(counted);
            (used <= self.bytes_max).then_some(used)
        };
        used.fetch_update(Relaxed, Relaxed, with).ok()?;
        Some(Bytes::from_owner(BlockBytes {
            bytes,
            counted,
            memory: self.memory.clone(),
        }))
    }
}

impl ReplayMemory {
    fn register(&self, cache: &Arc<ReplayCache>) {
        if !cache.is_registered.swap(true, Relaxed) {
            let caches = &mut lock(&self.caches).caches;
            if caches.len() == caches.capacity() {
                // Before the list grows: those of rooms that no longer exist.
                caches.retain(|cache| cache.strong_count() > 0);
            }
            caches.push(Arc::downgrade(cache));
        }
    }

    /// Drops the blocks of idle rooms now and then. Called when a client joins.
    pub(super) fn tidy(&self) {
        if self.used.load(Relaxed) > 0 {
            self.sweep(SWEEP_INTERVAL);
        }
    }

    /// Drops the blocks of idle rooms, if that was not done during this time.
    fn sweep(&self, interval: Duration) {
        let now = Instant::now();
        let caches = {
            let mut registry = lock(&self.caches);
            let swept = registry.swept.replace(now);
            if let Some(swept) = swept
                && now.saturating_duration_since(swept) < interval
            {
                registry.swept = Some(swept);
                return;
            }
            std::mem::take(&mut registry.caches)
        };
        let used: Vec<_> = caches
            .into_iter()
            .filter(|cache| cache.upgrade().is_some_and(|one| one.clear_if_idle(now)))
            .collect();
        lock(&self.caches).caches.extend(used);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "replay_cache_tests.rs"]
mod tests;
