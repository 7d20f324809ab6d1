//! The entry of a room in the directory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

use super::history::History;
use super::id_turns::IdTurns;
use crate::atomic::AtomicU64;
#[cfg(feature = "cluster")]
use crate::cluster::Interest;
use crate::engine;
use crate::message::SentMessage;
use crate::sync::lock;

/// A room's members and history. Clones share both.
#[derive(Clone)]
pub(super) struct RoomEntry {
    pub(super) members: Arc<engine::SharedRoom>,
    pub(super) kept: Option<Arc<RoomHistory>>,
    /// Whether messages of other nodes arrive; `None` if the app is not part of a cluster.
    #[cfg(feature = "cluster")]
    pub(super) interest: Option<Arc<Interest>>,
}

/// A room's history, and when it was last used.
pub(super) struct RoomHistory {
    history: Mutex<History>,
    pub(super) turns: IdTurns,
    /// The stamp of the room's last message; 0 if it had none.
    used: AtomicU64,
}

impl RoomHistory {
    pub(super) fn new(history: History) -> Self {
        Self {
            history: Mutex::new(history),
            turns: IdTurns::default(),
            used: AtomicU64::new(0),
        }
    }

    /// Locks the history. While the lock is held, the thread must not wait or call user code.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

impl RoomEntry {
    /// Locks the room's history, if it keeps one ([`RoomHistory::history`]).
    pub(super) fn history(&self) -> Option<MutexGuard<'_, History>> {
        Some(self.kept.as_ref()?.history())
    }

    /// Returns the stamp of the room's last message; 0 if it had none.
    pub(super) fn used(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.used.load(Relaxed))
    }

    /// Keeps a message. Called with the history locked, so that ids follow the order of sending.
    pub(super) fn keep(&self, history: &mut History, sent: impl Into<SentMessage>, stamp: u64) {
        if let Some(kept) = &self.kept {
            kept.used.store(stamp, Relaxed);
        }
        history.push(sent, stamp);
    }
}
