//! The worker pool: threads that run jobs from the hub's queue.
//!
//! A shard queues all jobs of a turn with one lock and at most one wake-up. A job contains all events that one
//! connection has to handle. After the job, a control message tells the shard, which may then queue the connection's
//! next job. One thread runs quick jobs one after the other, and wakes the shard once for many of them. Slow jobs use
//! further threads: while jobs have recently been slow, a thread that takes a job wakes the next thread, and the
//! watchdog does so for jobs that no thread takes.
//!
//! Both wake-ups cost more than a quick handler. So a shard whose handlers are quick (`parts::inline_policy`) runs them
//! on its own thread (`inline`).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[cfg(all(any(test, fuzzing), not(loom)))]
use super::run_job::outcome;
use super::run_job::run_queued;
use crate::engine::hub::Hub;
use crate::engine::hub::job_port::{HANDLER_OF, ThreadStats};
use crate::engine::model::job::{Job, Work};
use crate::engine::model::program::Program;
use crate::report::limited;

/// How long a handler thread, or a shard's own thread, may hold back the outcomes of finished jobs while it runs
/// further quick jobs.
pub(crate) const HOLD_BACK: Duration = Duration::from_micros(50);

/// Starts the first handler thread.
///
/// # Errors
/// The operating system can't start a thread.
pub(crate) fn start(hub: &Arc<Hub>) -> io::Result<()> {
    hub.jobs.queue.starting_first();
    spawn(hub)
}

fn spawn(hub: &Arc<Hub>) -> io::Result<()> {
    let Some(program) = hub.jobs.program() else {
        // All shards have ended: the existing threads run the remaining jobs.
        hub.jobs.queue.not_started();
        return Ok(());
    };
    if cfg!(loom) {
        // A loom model starts its threads itself.
        hub.jobs.queue.not_started();
        return Ok(());
    }
    let stats = Arc::<ThreadStats>::default();
    let of_thread = (hub.clone(), stats.clone());
    std::thread::Builder::new()
        .name("humphrey_ws handler".into())
        .spawn(move || {
            let (hub, stats) = of_thread;
            work(&hub, &stats, &*program);
        })
        .inspect_err(|_| hub.jobs.queue.not_started())?;
    hub.jobs.add_handler_thread(stats);
    Ok(())
}

fn spawn_more(hub: &Arc<Hub>, n: usize) {
    for _ in 0..n {
        if let Err(error) = spawn(hub) {
            limited!(
                hub.logged.no_thread,
                warning,
                "a handler thread could not be started ({error}): continuing with fewer"
            );
        }
    }
}

/// Queues the jobs of a turn.
pub(crate) fn push(hub: &Arc<Hub>, jobs: &mut VecDeque<Job>, now: Instant) {
    if !jobs.is_empty() {
        let is_slow = hub.jobs.is_slow();
        let start = hub.jobs.queue.push(jobs.drain(..), now, is_slow);
        spawn_more(hub, start);
    }
}

/// Queues work whose outcome no shard waits for.
///
/// # Errors
/// There are no handler threads any more: returns the work.
pub(crate) fn push_work(hub: &Arc<Hub>, work: Work) -> Result<(), Work> {
    let job = Job { to: None, work };
    let is_slow = hub.jobs.is_slow();
    let pushed = hub.jobs.queue.try_push(job, Instant::now(), is_slow);
    let start = pushed.map_err(|job| job.work)?;
    spawn_more(hub, start);
    Ok(())
}

/// Wakes or starts a thread for every job that waits.
pub(crate) fn wake_for_all(hub: &Arc<Hub>) {
    spawn_more(hub, hub.jobs.queue.wake_for_all());
}

/// The main loop of a handler thread.
fn work(hub: &Arc<Hub>, stats: &ThreadStats, program: &dyn Program) {
    HANDLER_OF.set(Arc::as_ptr(hub).addr());
    let port = &hub.jobs;
    port.queue.started();
    let mut held_back_since: Option<Instant> = None;
    let mut now = Instant::now();
    loop {
        let eager = port.is_slow();
        let taken = port.queue.take(now, eager).or_else(|| {
            if held_back_since.take().is_some() {
                hub.wake_deferred();
            }
            let clock = || {
                now = Instant::now();
                now
            };
            port.queue.take_or_wait(clock, eager)
        });
        let Some((job, start)) = taken else {
            return;
        };
        spawn_more(hub, start);

        stats.count.fetch_add(1, Relaxed);
        run_queued(hub, program, job);
        stats.count.fetch_add(1, Relaxed);

        let started = std::mem::replace(&mut now, Instant::now());
        let took = now.saturating_duration_since(started);
        stats.note_duration(took);
        port.note_duration(took);
        let held_back = *held_back_since.get_or_insert(started);
        if now.saturating_duration_since(held_back) >= HOLD_BACK || port.is_slow() {
            held_back_since = None;
            hub.wake_deferred();
        }
    }
}

/// The thread that a simulated job runs on.
#[cfg(all(any(test, fuzzing), not(loom)))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunOn {
    /// A thread of the pool.
    Pool,
    /// The shard's own thread.
    Shard,
}

/// Runs a job on the calling thread, for tests that run a whole shard in one thread. `RunOn::Shard` returns the
/// outcome; `RunOn::Pool` leaves it in the mailbox.
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) fn simulate(
    hub: &Arc<Hub>,
    job: Job,
    on: RunOn,
) -> Option<crate::engine::model::job::Done> {
    let before = HANDLER_OF.replace(Arc::as_ptr(hub).addr());
    let done = hub.jobs.program().and_then(|program| match on {
        RunOn::Shard => outcome(hub, &*program, job.work),
        RunOn::Pool => {
            run_queued(hub, &*program, job);
            None
        }
    });
    HANDLER_OF.set(before);
    done
}
