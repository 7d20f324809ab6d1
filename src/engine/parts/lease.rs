//! Lends a shard out while its own thread runs handlers. It has no threads and no clock of its own, so `loom` can check
//! it.
//!
//! A shard has two threads: one that runs it, and a spare one. Before its thread runs a handler, it lends the shard
//! out, and it takes the shard back when the handler is done. If that takes long, the watchdog hands the shard to the
//! spare thread, which continues to run it. The first thread is then *late*. When its handler is done, it puts the
//! outcome into the mailbox as a handler thread does, and becomes the spare thread.
//!
//! A shard is lent only while it has a spare thread, so a thread can always continue to run it. A late thread is not a
//! spare one, so as long as there is one, the shard is not lent again, and the late thread can't take it by mistake.

use std::time::Instant;

use crate::engine::parts::sync::{Condvar, Mutex, lock, wait};

#[repr(align(128))] // Like `Counters`: shards share no cache line.
pub(crate) struct Lease<S> {
    state: Mutex<LeaseState<S>>,
    /// Notified when the spare thread must go on with the shard, or end.
    called: Condvar,
    /// Notified when the shard has ended, and when a late thread is done.
    ended: Condvar,
}

struct LeaseState<S> {
    /// Jobs begun so far.
    begun: u64,
    /// The shard, while its thread runs a handler. There is a spare thread then.
    lent: Option<S>,
    /// The shard, on its way to the spare thread.
    handed_on: Option<S>,
    /// Whether there is a spare thread, waiting or about to.
    spare: bool,
    /// Whether a handler still runs whose shard was handed on.
    late: bool,
    /// Whether the shard has ended.
    closed: bool,
}

/// The next step of a thread after a handler.
pub(crate) enum Next<S, J, D> {
    /// Run this job.
    Job(J),
    /// Take the shard back, and run it.
    Back(S),
    /// The shard was handed on: put the outcome into the mailbox.
    Late(D),
}

/// The state of a shard, as the watchdog sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// No handler has run since the last call.
    Quiet,
    /// Handlers have run, and have returned.
    Busy,
    /// A handler takes long.
    Blocked,
}

impl<S> Lease<S> {
    /// Makes a lease, with or without a spare thread that will call `wait`.
    pub(crate) fn new(spare: bool) -> Self {
        Self {
            state: Mutex::new(LeaseState {
                begun: 0,
                lent: None,
                handed_on: None,
                spare,
                late: false,
                closed: false,
            }),
            called: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// Lends the shard out for its first job. Returns the shard if it can't be lent or has no job.
    pub(crate) fn lend<J>(
        &self,
        mut shard: S,
        job: impl FnOnce(&mut S) -> Option<J>,
    ) -> Result<J, S> {
        let mut state = lock(&self.state);
        if !state.spare {
            return Err(shard);
        }
        let Some(job) = job(&mut shard) else {
            return Err(shard);
        };
        state.lent = Some(shard);
        state.begun += 1;
        Ok(job)
    }

    /// Ends a job: `step` processes the outcome, and may return the next job.
    pub(crate) fn next<J, D>(
        &self,
        done: D,
        step: impl FnOnce(&mut S, D) -> Option<J>,
    ) -> Next<S, J, D> {
        let mut state = lock(&self.state);
        // The shard stays here until it goes back. Its end waits for this lock, so it must not be dropped under the
        // lock.
        let Some(shard) = &mut state.lent else {
            return Next::Late(done);
        };
        if let Some(job) = step(shard, done) {
            state.begun += 1;
            return Next::Job(job);
        }
        let back = state.lent.take();
        // This was checked above while holding the same lock.
        Next::Back(back.expect("the shard is lent"))
    }

    /// Called by the watchdog from time to time. Hands the shard to the spare thread if the running handler is the one
    /// that was `seen` at the last call.
    pub(crate) fn look(&self, seen: &mut u64) -> Look {
        let mut state = lock(&self.state);
        let goes_on = std::mem::replace(seen, state.begun) != state.begun;
        if !goes_on && let Some(shard) = state.lent.take() {
            state.handed_on = Some(shard);
            state.spare = false;
            state.late = true;
            self.called.notify_one();
        }
        match () {
            () if state.late => Look::Blocked,
            () if goes_on || state.lent.is_some() => Look::Busy,
            () => Look::Quiet,
        }
    }

    /// Whether a handler runs.
    pub(crate) fn is_busy(&self) -> bool {
        let state = lock(&self.state);
        state.lent.is_some() || state.late
    }

    /// Ends the late thread's handler: the thread is the spare one from now on, and will call `wait`.
    pub(crate) fn is_spare_again(&self) {
        let mut state = lock(&self.state);
        state.spare = true;
        state.late = false;
        self.ended.notify_all();
    }

    /// Waits, as the spare thread, until the shard is handed on. `None`: the thread must end.
    pub(crate) fn wait(&self) -> Option<S> {
        let mut state = lock(&self.state);
        loop {
            if let Some(shard) = state.handed_on.take() {
                return Some(shard);
            }
            if state.closed {
                return None;
            }
            state = wait(&self.called, state);
        }
    }

    /// Records that the shard has ended.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        self.called.notify_one();
        self.ended.notify_all();
    }

    /// Waits until the shard has ended.
    pub(crate) fn join(&self) {
        let mut state = lock(&self.state);
        while !state.closed {
            state = wait(&self.ended, state);
        }
    }

    /// Waits until no handler of the shard runs on a late thread, at most until the deadline. Returns whether none
    /// does.
    #[cfg(not(loom))]
    pub(crate) fn join_late(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while state.late {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = crate::sync::ignore_poison(self.ended.wait_timeout(state, left)).0;
        }
        true
    }

    /// Waits until no handler of the shard runs on a late thread. Without a deadline, since time does not pass in loom
    /// models.
    #[cfg(loom)]
    pub(crate) fn join_late(&self, _: Instant) -> bool {
        let mut state = lock(&self.state);
        while state.late {
            state = wait(&self.ended, state);
        }
        true
    }
}
