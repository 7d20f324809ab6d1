//! The entry of a room in the directory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

use super::history::History;
use super::id_turns::IdTurns;
use super::keyed::{KeyedBounds, KeyedMessages};
use super::replay_cache::ReplayCache;
use crate::atomic::AtomicU64;
#[cfg(feature = "cluster")]
use crate::cluster::Interest;
use crate::engine;
use crate::message::SentMessage;
use crate::sync::lock;

/// A room's members and what it keeps. Clones share both.
#[derive(Clone)]
pub(super) struct RoomEntry {
    pub(super) members: Arc<engine::SharedRoom>,
    pub(super) kept: Option<Arc<RoomHistory>>,
    /// `None` if the room is not keyed. A keyed room has no history.
    pub(super) keyed: Option<Arc<KeyedRoom>>,
    /// Whether messages of other nodes arrive; `None` if the app is not part of a cluster.
    #[cfg(feature = "cluster")]
    pub(super) interest: Option<Arc<Interest>>,
}

/// A room's history, and when it was last used.
pub(super) struct RoomHistory {
    history: Mutex<History>,
    pub(super) turns: IdTurns,
    /// The messages as joining clients receive them.
    pub(super) replays: Arc<ReplayCache>,
    /// The stamp of the room's last message; 0 if it had none.
    used: AtomicU64,
}

impl RoomHistory {
    pub(super) fn new(history: History) -> Self {
        Self {
            history: Mutex::new(history),
            turns: IdTurns::default(),
            replays: Arc::default(),
            used: AtomicU64::new(0),
        }
    }

    /// Locks the history. While the lock is held, the thread must not wait or call user code.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

/// The newest messages of a keyed room, and when it was last used.
pub(super) struct KeyedRoom {
    pub(super) bounds: KeyedBounds,
    messages: Mutex<KeyedMessages>,
    /// The stamp of the room's last keyed message; 0 if it keeps none.
    used: AtomicU64,
}

impl KeyedRoom {
    pub(super) fn new(bounds: KeyedBounds) -> Self {
        Self {
            bounds,
            messages: Mutex::new(KeyedMessages::new(bounds)),
            used: AtomicU64::new(0),
        }
    }

    /// Locks the messages. While the lock is held, the thread must not wait or call user code.
    pub(super) fn messages(&self) -> MutexGuard<'_, KeyedMessages> {
        lock(&self.messages)
    }

    /// Records that the room was used. Called with the messages locked.
    pub(super) fn set_used(&self, stamp: u64) {
        self.used.store(stamp, Relaxed);
    }
}

impl RoomEntry {
    /// Whether the room stays when it is empty.
    pub(super) fn keeps_messages(&self) -> bool {
        self.kept.is_some() || self.keyed.is_some()
    }

    /// Locks the room's newest messages, if it is keyed ([`KeyedRoom::messages`]).
    pub(super) fn keyed_messages(&self) -> Option<MutexGuard<'_, KeyedMessages>> {
        Some(self.keyed.as_ref()?.messages())
    }

    /// Locks the room's history, if it keeps one ([`RoomHistory::history`]).
    pub(super) fn history(&self) -> Option<MutexGuard<'_, History>> {
        Some(self.kept.as_ref()?.history())
    }

    /// Returns the stamp of the room's last kept message; 0 if it had none.
    pub(super) fn used(&self) -> u64 {
        let kept = self.kept.as_ref().map(|kept| &kept.used);
        let keyed = self.keyed.as_ref().map(|keyed| &keyed.used);
        kept.or(keyed).map_or(0, |used| used.load(Relaxed))
    }

    /// Keeps a message. Called with the history locked, so that ids follow the order of sending.
    pub(super) fn keep(&self, history: &mut History, sent: impl Into<SentMessage>, stamp: u64) {
        history.push(sent, stamp);
        if let Some(kept) = &self.kept {
            kept.used.store(stamp, Relaxed);
            let dropped = history.oldest_kept() - 1;
            kept.replays.pushed(history.last_sequence(), dropped);
        }
    }
}
