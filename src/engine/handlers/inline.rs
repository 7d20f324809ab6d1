//! Runs a shard's jobs on the shard's own thread, as long as its handlers are quick.
//!
//! The shard is lent out while a handler runs (`parts::lease`), so that its spare thread can take over if the handler
//! takes long. At most one handler per shard runs in addition to those of the pool.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::pool::HOLD_BACK;
use super::run_job::outcome;
use crate::engine::hub::Hub;
use crate::engine::hub::job_port::{HANDLER_OF, ThreadStats};
use crate::engine::model::command::Control;
use crate::engine::model::job::{Done, Job};
use crate::engine::model::program::Program;
use crate::engine::parts::id::Key;
use crate::engine::parts::lease::{Lease, Next};
use crate::engine::parts::mailbox::When;
use crate::user_threads::while_nonblocking;

/// A shard's source of jobs.
pub(crate) trait JobSource {
    /// Takes the next job for the shard's own thread.
    fn next_job(&mut self) -> Option<Job>;

    /// Records a job that the shard's own thread has run: it took `took`, and ended at `now`.
    fn job_done(
        &mut self,
        to: Option<(u16, Key)>,
        done: Option<Done>,
        took: Duration,
        now: Instant,
    );

    /// Whether the shard's own thread should run jobs.
    fn runs_inline(&self) -> bool;

    /// Queues all jobs for the pool, since the shard's own thread can't run them at present.
    fn defer_all(&mut self);
}

/// Runs jobs of a shard on the shard's own thread, which is the calling one, for as long as their outcomes may be held
/// back.
///
/// Jobs that can't be run here go to the pool. `jobs` finds the shard's jobs. Returns `None` if a job took long, and
/// another thread has taken the shard over.
pub(crate) fn run_inline<S, J: JobSource>(
    hub: &Arc<Hub>,
    program: &dyn Program,
    lease: &Lease<S>,
    stats: &ThreadStats,
    shard: S,
    jobs: impl Fn(&mut S) -> &mut J,
    mut clock: impl FnMut() -> Instant,
) -> Option<S> {
    let mut job = match lease.lend(shard, |shard| jobs(shard).next_job()) {
        Ok(job) => job,
        Err(mut shard) => {
            jobs(&mut shard).defer_all();
            return Some(shard);
        }
    };
    hub.jobs.queue.wake_watchdog();
    HANDLER_OF.set(Arc::as_ptr(hub).addr());
    let mut started = clock();
    let mut spent = Duration::ZERO;
    loop {
        let to = job.to;
        let done = outcome(hub, program, job.work);
        let now = clock();
        let took = now.saturating_duration_since(started);
        stats.count.fetch_add(2, Relaxed);
        stats.note_duration(took);
        spent += took;
        let goes_on = spent < HOLD_BACK;
        let step = |shard: &mut S, done: Option<Done>| {
            let jobs = jobs(shard);
            while_nonblocking(|| jobs.job_done(to, done, took, now));
            if goes_on && jobs.runs_inline() {
                jobs.next_job()
            } else {
                None
            }
        };
        match lease.next(done, step) {
            Next::Job(next) => {
                job = next;
                started = now;
            }
            Next::Back(shard) => {
                HANDLER_OF.set(0);
                hub.wake_deferred();
                return Some(shard);
            }
            Next::Late(done) => {
                HANDLER_OF.set(0);
                if let (Some((shard, key)), Some(done)) = (to, done) {
                    hub.send_control(shard, Control::Done(key, done), When::Now);
                }
                hub.wake_deferred();
                lease.is_spare_again();
                return None;
            }
        }
    }
}
