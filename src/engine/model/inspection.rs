//! Inspections: what a thread asks the shards about their connections, and what they answer.
//!
//! Each shard gets a [`Question`] in its mailbox, and answers it over several turns. Dropping a question without an answer
//! releases the thread that waits, so a shard that ends never keeps it waiting.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::{Key, LocalId};
use crate::engine::parts::sync::{AtomicUsize, Ordering};
use crate::sync::{ignore_poison, lock};

/// The connections that an inspection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selection {
    /// The slowest ones, at most so many.
    Slowest(usize),
    One(Key),
}

/// A connection as its shard has seen it.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionReport {
    pub(crate) id: LocalId,
    pub(crate) encoding: Encoding,
    pub(crate) peer: SocketAddr,
    pub(crate) client_ip: IpAddr,
    pub(crate) path: Box<str>,
    pub(crate) user: Option<Arc<str>>,
    /// The names of its rooms, without those that are not reported.
    pub(crate) rooms: Vec<Arc<str>>,
    pub(crate) subprotocol: Option<Box<str>>,
    /// Bytes that the socket has not accepted.
    pub(crate) waiting_bytes: usize,
    /// How long the oldest of them have waited.
    pub(crate) lag: Duration,
    pub(crate) connected_for: Duration,
    pub(crate) is_closing: bool,
    pub(crate) is_tls: bool,
    pub(crate) is_compressed: bool,
}

/// The answers of those shards that have answered in time.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) reports: Vec<ConnectionReport>,
    /// The number of connections of these shards, reported or not.
    pub(crate) connections: usize,
    /// Whether all shards that were asked, or should have been, have answered.
    pub(crate) is_complete: bool,
}

/// The state that the asking thread shares with the shards.
#[derive(Default)]
struct Inquiry {
    state: Mutex<InquiryState>,
    answered: Condvar,
}

#[derive(Default)]
struct InquiryState {
    /// The number of questions that exist.
    open: usize,
    /// The reports of each shard that has answered.
    reports: Vec<Vec<ConnectionReport>>,
    connections: usize,
    /// Whether the thread has gone.
    is_abandoned: bool,
}

/// The question for one shard.
pub(crate) struct Question {
    pub(crate) selection: Selection,
    inquiry: Arc<Inquiry>,
    /// Counts the questions that the shard has yet to answer.
    unanswered: Arc<AtomicUsize>,
}

/// An inspection that the shards are about to answer.
pub(crate) struct PendingInspection {
    inquiry: Arc<Inquiry>,
    /// The number of shards whose answers make it complete.
    shards: usize,
}

impl PendingInspection {
    /// Begins an inspection of so many shards.
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            inquiry: Arc::default(),
            shards,
        }
    }

    /// Makes a question for a shard; `None` if `unanswered_max` of its questions are unanswered.
    pub(crate) fn question(
        &self,
        selection: Selection,
        unanswered: &Arc<AtomicUsize>,
        unanswered_max: usize,
    ) -> Option<Question> {
        if unanswered.fetch_add(1, Ordering::Relaxed) >= unanswered_max {
            unanswered.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        lock(&self.inquiry.state).open += 1;
        Some(Question {
            selection,
            inquiry: self.inquiry.clone(),
            unanswered: unanswered.clone(),
        })
    }

    /// Waits until all shards have answered or ended, at most until `deadline`. Returns the answers.
    pub(crate) fn wait(self, deadline: Instant) -> Answers {
        let mut state = lock(&self.inquiry.state);
        while state.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = ignore_poison(self.inquiry.answered.wait_timeout(state, left)).0;
        }
        let connections = state.connections;
        let reports = std::mem::take(&mut state.reports);
        drop(state);
        Answers {
            is_complete: reports.len() == self.shards,
            connections,
            reports: reports.into_iter().flatten().collect(),
        }
    }
}

impl Drop for PendingInspection {
    fn drop(&mut self) {
        lock(&self.inquiry.state).is_abandoned = true;
    }
}

impl Question {
    /// Whether the thread still waits.
    pub(crate) fn is_wanted(&self) -> bool {
        !lock(&self.inquiry.state).is_abandoned
    }

    /// Answers the question with the number of the shard's connections, and the selected ones.
    pub(crate) fn answer(self, connections: usize, reports: Vec<ConnectionReport>) {
        let mut state = lock(&self.inquiry.state);
        state.connections += connections;
        state.reports.push(reports);
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
        let mut state = lock(&self.inquiry.state);
        state.open -= 1;
        let is_last = state.open == 0;
        drop(state);
        if is_last {
            self.inquiry.answered.notify_one();
        }
    }
}
