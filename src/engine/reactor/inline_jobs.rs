//! Dispatches a shard's jobs: to its own thread, which lends the shard out (`lease`), or to the pool.

use std::time::{Duration, Instant};

use crate::engine::handlers::inline::JobSource;
use crate::engine::handlers::pool;
use crate::engine::model::job::{Done, Job};
use crate::engine::parts::id::Key;
use crate::engine::reactor::Core;
use crate::transport::ShardTransport;

impl<T: ShardTransport> Core<T> {
    /// Gives jobs to the pool, unless they run on the shard's own thread.
    pub(crate) fn hand_over(&mut self) {
        if !self.cx.runs_inline {
            pool::push(&self.cx.hub, &mut self.cx.jobs, self.cx.now);
        }
    }

    pub(crate) fn has_jobs(&self) -> bool {
        !self.cx.jobs.is_empty()
    }

    /// Records that another thread has taken the shard over, since a handler takes long.
    pub(crate) fn was_handed_on(&mut self, now: Instant) {
        self.cx.inline_policy.begin_pause(now);
        self.cx.runs_inline = false;
    }
}

impl<T: ShardTransport> JobSource for Core<T> {
    fn next_job(&mut self) -> Option<Job> {
        self.cx.jobs.pop_front()
    }

    /// The outcome is processed in the next turn, as control messages are: behind what its handlers have sent.
    fn job_done(
        &mut self,
        to: Option<(u16, Key)>,
        done: Option<Done>,
        took: Duration,
        now: Instant,
    ) {
        if let (Some((_, key)), Some(done)) = (to, done) {
            self.cx.inline_results.push((key, done));
        }
        self.cx.bursts.ran_handlers();
        self.cx.inline_policy.ran(took, now);
        self.cx.runs_inline &= !self.cx.inline_policy.is_paused();
    }

    fn runs_inline(&self) -> bool {
        self.cx.runs_inline
    }

    fn defer_all(&mut self) {
        self.cx.inline_policy.postpone(self.cx.now);
        self.cx.runs_inline = false;
        self.hand_over();
    }
}
