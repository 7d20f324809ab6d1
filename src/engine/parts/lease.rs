//! How a shard is lent out while its own thread runs handlers: no threads and no clock of its own, so `loom` can check it.
//!
//! A shard has two threads: one that turns it, and a spare one. Before its thread runs a handler, it leaves the shard
//! here; when the handler is done, it takes it back. Where that lasts, the watchdog hands the shard to the spare thread,
//! which goes on with it. The first is late then: it finds that the shard has gone, leaves the outcome in
//! the mailbox, as a handler thread does, and is the spare one from then on.
//!
//! Nothing is lent without a spare thread. So somebody can always go on with a shard that is lent; and while a thread is
//! late, which is no spare one, it finds nothing here that was lent out anew.

use std::time::Instant;

use crate::engine::parts::sync::{Condvar, Mutex, lock, wait};

#[repr(align(128))] // As `Counters`: shards do not share.
pub(crate) struct Lease<S> {
    state: Mutex<State<S>>,
    /// Told when the spare thread is to go on with the shard, or to end.
    called: Condvar,
    /// Told when the shard has ended, and when a late thread is done.
    ended: Condvar,
}

struct State<S> {
    /// Jobs begun so far.
    begun: u64,
    /// The shard, while its thread runs a handler; then there is a spare one.
    lent: Option<S>,
    /// The shard, on its way to the spare thread.
    handed_on: Option<S>,
    /// There is a spare thread, waiting or about to.
    spare: bool,
    /// A handler still runs whose shard goes on elsewhere.
    late: bool,
    /// The shard has ended.
    closed: bool,
}

/// What a thread does when a handler is done.
pub(crate) enum Next<S, J, D> {
    /// Run this.
    Job(J),
    /// Nothing more for now: go on with the shard.
    Back(S),
    /// The shard has gone on without it: the outcome goes to the mailbox.
    Late(D),
}

/// What the watchdog sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// No handler has run since it looked last.
    Quiet,
    /// Handlers have run, and were done.
    Busy,
    /// One takes long.
    Blocked,
}

impl<S> Lease<S> {
    /// With a spare thread that will come to `wait`, or without any.
    pub(crate) fn new(spare: bool) -> Self {
        Self {
            state: Mutex::new(State {
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

    /// Lends the shard out for the first job that it has. An error is the shard, which can't be lent.
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

    /// A handler is done: `step` takes that in, and may have the next job.
    pub(crate) fn next<J, D>(
        &self,
        done: D,
        step: impl FnOnce(&mut S, D) -> Option<J>,
    ) -> Next<S, J, D> {
        let mut state = lock(&self.state);
        // It stays where it is until it goes back: were it dropped under this lock, its end would wait for it.
        let Some(shard) = &mut state.lent else {
            return Next::Late(done);
        };
        if let Some(job) = step(shard, done) {
            state.begun += 1;
            return Next::Job(job);
        }
        let back = state.lent.take();
        // Seen above, under the same lock.
        Next::Back(back.expect("the shard is here"))
    }

    /// The watchdog comes by: hands the shard on where a handler is the one that it has `seen` the last time.
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

    /// The late thread is done, and the spare one from now on: it will come to `wait`.
    pub(crate) fn is_spare_again(&self) {
        let mut state = lock(&self.state);
        state.spare = true;
        state.late = false;
        self.ended.notify_all();
    }

    /// The spare thread waits for the shard to be handed to it. `None`: it must end.
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

    /// The shard has ended.
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

    /// Waits until no handler of the shard runs on a late thread, or the deadline. Returns whether none does.
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

    /// Waits until no handler of the shard runs on a late thread: models know no time.
    #[cfg(loom)]
    pub(crate) fn join_late(&self, _: Instant) -> bool {
        let mut state = lock(&self.state);
        while state.late {
            state = wait(&self.ended, state);
        }
        true
    }
}
