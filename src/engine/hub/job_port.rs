//! The hub's side of the handlers: the job queue, the average duration of jobs, and whether the calling thread is a
//! handler.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::atomic::AtomicU64;
use crate::cork;
use crate::engine::hub::Hub;
use crate::engine::model::job::{Job, Work};
use crate::engine::model::program::Program;
use crate::engine::model::session::Session;
use crate::engine::model::verdict::{Attachment, DropOnHandler};
use crate::engine::parts::job_queue::JobQueue;
use crate::engine::parts::mailbox::When;
use crate::engine::parts::unwind::catch_panic;
use crate::metrics::{Counter, DurationCounters, Metrics};

/// The average duration above which jobs count as slow. Each slow job gets its own thread as soon as there is one.
const SLOW_NANOS: u32 = 20_000;

/// The maximum duration that one job adds to the average, so that a single interrupted job does not decide it.
const NANOS_MAX: u32 = 500_000;

/// The average covers about this many jobs.
const MEAN_JOBS: u32 = 16;

pub(crate) struct JobPort {
    pub(crate) queue: JobQueue<Job>,
    /// The program, until the last shard has ended. Dropping it then breaks a cycle: it may hold senders, which hold
    /// the hub, which holds this.
    program: Mutex<Option<Arc<dyn Program>>>,
    /// A moving average of the duration of jobs.
    nanos_mean: AtomicU32,
    /// The statistics of the handler threads.
    handlers: Mutex<Vec<Arc<ThreadStats>>>,
    /// The statistics of the shards' own threads.
    shards: Mutex<Vec<Arc<ThreadStats>>>,
}

/// The statistics of a thread that runs handlers, for other threads to read.
#[derive(Default)]
#[repr(align(128))] // Like `Counters`: threads share no cache line.
pub(crate) struct ThreadStats {
    /// The number of jobs begun plus the number ended: odd while a job runs.
    pub(crate) count: AtomicU64,
    /// The total duration of its jobs.
    nanos: Counter,
    durations: DurationCounters<1>,
}

impl ThreadStats {
    pub(crate) fn note_duration(&self, took: Duration) {
        self.nanos.add_time(took);
        self.durations.add(took, 1);
    }
}

thread_local! {
    /// The address of the hub whose handlers this thread runs; 0 on all other threads.
    pub(crate) static HANDLER_OF: Cell<usize> = const { Cell::new(0) };
}

/// Whether the calling thread runs handlers of this hub.
pub(crate) fn is_handler_of(hub: &Hub) -> bool {
    HANDLER_OF.get() == std::ptr::from_ref(hub).addr()
}

/// Returns when the calling thread must wake a shard after pushing into its mailbox: at the end of the batch if it is a
/// handler of this hub or corked, and otherwise at once.
#[inline]
pub(crate) fn when(hub: &Hub) -> When {
    if is_handler_of(hub) || cork::is_corked(hub) {
        When::Deferred
    } else {
        When::Now
    }
}

/// The handlers of a hub, which may have been dropped.
pub(crate) struct HandlersOf(pub(crate) Weak<Hub>);

impl DropOnHandler for HandlersOf {
    fn drop_on_handler(&self, attachment: Attachment) -> Result<(), Attachment> {
        let Some(hub) = self.0.upgrade().filter(|hub| !is_handler_of(hub)) else {
            return Err(attachment);
        };
        let job = Job {
            to: None,
            work: Work::Drop(attachment),
        };
        match hub.jobs.queue.try_leave(job).map_err(|job| job.work) {
            Err(Work::Drop(attachment)) => Err(attachment),
            _ => Ok(()),
        }
    }
}

impl Hub {
    /// Corks the calling thread ([`cork::cork`]). A handler needs none: its commands wake shards when its batch ends.
    pub(crate) fn cork<R>(self: &Arc<Self>, code: impl FnOnce() -> R) -> R {
        if is_handler_of(self) {
            return code();
        }
        cork::cork(self, code)
    }

    /// Drops a session that has ended on a handler thread, since dropping its attachment runs user code.
    pub(crate) fn release_session(&self, session: Arc<Session>) {
        let job = Job {
            to: None,
            work: Work::Release(session, false),
        };
        if let Err(job) = self.jobs.queue.try_leave(job) {
            // The handler threads have ended.
            catch_panic(|| drop(job));
        }
    }

    /// Whether the last shard has ended, so that no connection is left.
    pub(crate) fn has_ended(&self) -> bool {
        self.jobs.program().is_none()
    }
}

impl JobPort {
    pub(crate) fn new(threads_max: usize, program: Arc<dyn Program>) -> Self {
        Self {
            queue: JobQueue::new(threads_max),
            program: Mutex::new(Some(program)),
            nanos_mean: AtomicU32::new(0),
            handlers: Mutex::default(),
            shards: Mutex::default(),
        }
    }

    /// The program; `None` once the last shard has ended.
    pub(crate) fn program(&self) -> Option<Arc<dyn Program>> {
        self.program.lock().ok().and_then(|program| program.clone())
    }

    /// Lets the handler threads end once the queue is empty, and drops the program.
    pub(crate) fn close(&self) {
        self.queue.close();
        let program = self.program.lock().ok().and_then(|mut held| held.take());
        // Dropping the program runs user code.
        catch_panic(|| drop(program));
    }

    /// Returns whether jobs take so long on average that each needs its own thread.
    pub(crate) fn is_slow(&self) -> bool {
        self.nanos_mean.load(Relaxed) > SLOW_NANOS
    }

    /// Adds the duration of a job to the average.
    pub(crate) fn note_duration(&self, took: Duration) {
        let nanos = u32::try_from(took.as_nanos()).map_or(NANOS_MAX, |nanos| nanos.min(NANOS_MAX));
        let mean = self.nanos_mean.load(Relaxed);
        // Threads may overwrite each other's update. An average tolerates that.
        self.nanos_mean
            .store(mean - mean / MEAN_JOBS + nanos / MEAN_JOBS, Relaxed);
    }

    pub(crate) fn add_handler_thread(&self, stats: Arc<ThreadStats>) {
        if let Ok(mut handlers) = self.handlers.lock() {
            handlers.push(stats);
        }
    }

    /// Registers the calling thread, which must be a shard's own. Returns the statistics to record its jobs in.
    pub(crate) fn add_shard_thread(&self) -> Arc<ThreadStats> {
        let stats = Arc::<ThreadStats>::default();
        if let Ok(mut shards) = self.shards.lock() {
            shards.push(stats.clone());
        }
        stats
    }

    /// The number of handler threads that still run the job that the last call stored in `seen`.
    pub(crate) fn blocked(&self, seen: &mut Vec<u64>) -> usize {
        let Ok(handlers) = self.handlers.lock() else {
            return 0;
        };
        seen.resize(handlers.len(), 0);
        let mut blocked = 0;
        for (stats, seen) in handlers.iter().zip(seen) {
            let now = stats.count.load(Relaxed);
            blocked += usize::from(now % 2 == 1 && now == *seen);
            *seen = now;
        }
        blocked
    }

    pub(crate) fn add_metrics(&self, sum: &mut Metrics) {
        for threads in [&self.handlers, &self.shards] {
            if let Ok(threads) = threads.lock() {
                for stats in threads.iter() {
                    sum.handler_runs += stats.count.load(Relaxed) / 2;
                    sum.handler_time += Duration::from_nanos(stats.nanos.get());
                    stats.durations.add_to(&mut sum.handler_durations);
                }
            }
        }
    }
}
