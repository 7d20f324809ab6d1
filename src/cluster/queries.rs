//! Questions to the other nodes, and which nodes there are, for the app's threads.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::cork;
use crate::sync::{ignore_poison, lock};

/// The open questions, and the nodes that this node hears.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    peers: HashSet<u32>,
    open: HashMap<u64, Query>,
    last: u64,
}

#[derive(Debug, Default)]
struct Query {
    /// Nodes that have not answered.
    missing: HashSet<u32>,
    answers: Answers,
}

/// The answers to a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// The sum of all answers.
    pub(crate) members: u64,
    /// The number of nodes that have answered.
    pub(crate) nodes: usize,
    /// Whether all nodes that this node hears have answered.
    pub(crate) is_complete: bool,
}

impl Queries {
    /// Whether this node hears another one.
    pub(crate) fn hears(&self, node: u32) -> bool {
        lock(&self.state).peers.contains(&node)
    }

    pub(super) fn set_peers(&self, peers: impl Iterator<Item = u32>) {
        let mut state = lock(&self.state);
        state.peers.clear();
        state.peers.extend(peers);
        // Nobody waits for a node that is gone.
        let State { peers, open, .. } = &mut *state;
        for query in open.values_mut() {
            query.missing.retain(|node| peers.contains(node));
        }
        drop(state);
        self.answered.notify_all();
    }

    /// Begins a question to all nodes that this node hears. The caller must [`wait`](Self::wait) for the answers.
    pub(super) fn begin(&self) -> u64 {
        let mut state = lock(&self.state);
        state.last += 1;
        let query = Query {
            missing: state.peers.clone(),
            answers: Answers::default(),
        };
        let number = state.last;
        state.open.insert(number, query);
        number
    }

    /// Records an answer. A second one of the same node, or one that comes too late, does not count.
    pub(super) fn answer(&self, number: u64, node: u32, members: u64) {
        let mut state = lock(&self.state);
        let Some(query) = state.open.get_mut(&number) else {
            return;
        };
        if query.missing.remove(&node) {
            query.answers.members = query.answers.members.saturating_add(members);
            query.answers.nodes += 1;
            let is_last = query.missing.is_empty();
            drop(state);
            if is_last {
                self.answered.notify_all();
            }
        }
    }

    /// Waits until all nodes have answered, and ends the question.
    pub(super) fn wait(&self, number: u64, wait_max: Duration) -> Answers {
        cork::before_waiting();
        let until = Instant::now() + wait_max;
        let mut state = lock(&self.state);
        loop {
            let is_complete = match state.open.get(&number) {
                Some(query) => query.missing.is_empty(),
                None => return Answers::default(),
            };
            let left = until.saturating_duration_since(Instant::now());
            if is_complete || left.is_zero() {
                let query = state.open.remove(&number).unwrap_or_default();
                return Answers {
                    is_complete,
                    ..query.answers
                };
            }
            state = ignore_poison(self.answered.wait_timeout(state, left)).0;
        }
    }
}
