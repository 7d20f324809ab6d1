//! A room, as a name leads to it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

use super::history::History;
use super::id_turns::IdTurns;
use crate::atomic::AtomicU64;
use crate::engine;
use crate::message::Message;
use crate::sync::lock;

/// A room's members, and what it keeps. Clones share both.
#[derive(Clone)]
pub(super) struct RoomEntry {
    pub(super) members: Arc<engine::Room>,
    pub(super) kept: Option<Arc<RoomHistory>>,
}

/// What a room keeps.
pub(super) struct RoomHistory {
    history: Mutex<History>,
    pub(super) turns: IdTurns,
    /// The stamp of the last message it was to keep; 0 if there never was one.
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

    /// No thread may wait, or call user code, while it holds this.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

impl RoomEntry {
    /// What the room keeps, if it keeps anything ([`RoomHistory::history`]).
    pub(super) fn history(&self) -> Option<MutexGuard<'_, History>> {
        Some(self.kept.as_ref()?.history())
    }

    /// The stamp of the last message it was to keep; 0 if there never was one.
    pub(super) fn used(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.used.load(Relaxed))
    }

    /// Keeps a message. Called with its history locked, so that ids are given in the order of what is sent.
    pub(super) fn keep(&self, history: &mut History, message: Message, stamp: u64) {
        if let Some(kept) = &self.kept {
            kept.used.store(stamp, Relaxed);
        }
        history.push(message, stamp);
    }
}
