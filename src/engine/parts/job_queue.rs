//! The queue between shards and handler threads. It has no threads and no clock of its own, so `loom` can check it.
//!
//! Every thread is working (or about to take a job), idle, or called: woken, but not running yet. Calls are counted, so
//! a wake-up for one thread is never lost to another. The watchdog parks while holding the lock that every push takes,
//! so it can't miss a push.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::engine::parts::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// If the last job was taken longer ago than this, a push calls a further thread: the working threads seem to be
/// blocked.
const STALE: Duration = Duration::from_micros(50);

pub(crate) struct JobQueue<J> {
    queue: Mutex<JobQueueState<J>>,
    /// Notified when a thread is called.
    work: Condvar,
    /// Notified when there is something to watch again.
    watchdog: Condvar,
    /// Notified when a thread ends.
    ended: Condvar,
    /// Whether the watchdog is parked, as in the queue's state, or about to park.
    watchdog_parked: AtomicBool,
    threads_max: usize,
}

struct JobQueueState<J> {
    jobs: VecDeque<J>,
    /// Threads that exist or are being started.
    threads: usize,
    /// Threads that are idle and not called.
    idle: usize,
    /// Threads that are idle and called.
    wakeups: usize,
    /// Threads that are being started.
    starting: usize,
    /// The number of jobs taken so far, and when the last one was.
    taken: u64,
    taken_at: Option<Instant>,
    watchdog_parked: bool,
    closed: bool,
}

/// The state of the queue, as the watchdog needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Jobs that wait for a thread.
    pub(crate) waiting: usize,
    /// Jobs taken so far.
    pub(crate) taken: u64,
    /// Whether any thread is working or should be.
    pub(crate) busy: bool,
}

impl<J> JobQueue<J> {
    pub(crate) fn new(threads_max: usize) -> Self {
        Self {
            queue: Mutex::new(JobQueueState {
                jobs: VecDeque::new(),
                threads: 0,
                idle: 0,
                wakeups: 0,
                starting: 0,
                taken: 0,
                taken_at: None,
                watchdog_parked: false,
                closed: false,
            }),
            work: Condvar::new(),
            watchdog: Condvar::new(),
            ended: Condvar::new(),
            watchdog_parked: AtomicBool::new(false),
            threads_max: threads_max.max(1),
        }
    }

    pub(crate) fn threads_max(&self) -> usize {
        self.threads_max
    }

    /// Pushes jobs. Calls a thread if none is working, or those that are seem to be blocked; with `eager`, one thread
    /// per job. Returns how many threads the caller must start.
    pub(crate) fn push(
        &self,
        jobs: impl IntoIterator<Item = J>,
        now: Instant,
        eager: bool,
    ) -> usize {
        let mut queue = lock(&self.queue);
        queue.jobs.extend(jobs);
        self.pushed(queue, now, eager)
    }

    /// Pushes one job as [`JobQueue::push`] does. Returns the job if the queue is closed, when no thread might take it.
    pub(crate) fn try_push(&self, job: J, now: Instant, eager: bool) -> Result<usize, J> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(job);
        }
        queue.jobs.push_back(job);
        Ok(self.pushed(queue, now, eager))
    }

    /// Pushes a job without calling a thread. If no thread takes it soon, the watchdog calls one. Returns the job if
    /// the queue is closed.
    pub(crate) fn try_leave(&self, job: J) -> Result<(), J> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(job);
        }
        queue.jobs.push_back(job);
        self.unpark_watchdog(&mut queue);
        Ok(())
    }

    fn pushed(
        &self,
        mut queue: MutexGuard<'_, JobQueueState<J>>,
        now: Instant,
        eager: bool,
    ) -> usize {
        self.unpark_watchdog(&mut queue);
        let none_at_work = queue.idle == queue.threads;
        let stale = queue
            .taken_at
            .is_some_and(|at| now.saturating_duration_since(at) > STALE);
        let threads = usize::from(none_at_work || stale || eager);
        let called = queue.call(threads, self.threads_max);
        drop(queue);
        self.notify(called)
    }

    /// Wakes the called threads. The caller has released the lock, which they need first. Returns how many threads must
    /// be started.
    fn notify(&self, called: Called) -> usize {
        for _ in 0..called.woken {
            self.work.notify_one();
        }
        called.started
    }

    /// Calls a thread for every waiting job. Returns how many threads must be started.
    pub(crate) fn wake_for_all(&self) -> usize {
        let mut queue = lock(&self.queue);
        let waiting = queue.jobs.len();
        let called = queue.call(waiting, self.threads_max);
        drop(queue);
        self.notify(called)
    }

    /// Counts the first thread as being started. Further ones are requested by `push`, `take` and `wake_for_all`.
    pub(crate) fn starting_first(&self) {
        let mut queue = lock(&self.queue);
        queue.threads += 1;
        queue.starting += 1;
    }

    /// Records that a thread that was being started runs.
    pub(crate) fn started(&self) {
        lock(&self.queue).starting -= 1;
    }

    /// Records that a thread could not be started.
    pub(crate) fn not_started(&self) {
        let mut queue = lock(&self.queue);
        queue.starting -= 1;
        queue.threads -= 1;
    }

    /// Takes a job, if there is one. With `eager`, calls a further thread if more jobs wait. The second value is how
    /// many threads the caller must start.
    pub(crate) fn take(&self, now: Instant, eager: bool) -> Option<(J, usize)> {
        self.pop(lock(&self.queue), now, eager)
    }

    fn pop(
        &self,
        mut queue: MutexGuard<'_, JobQueueState<J>>,
        now: Instant,
        eager: bool,
    ) -> Option<(J, usize)> {
        let job = queue.jobs.pop_front()?;
        queue.taken += 1;
        queue.taken_at = Some(now);
        let called = queue.call(usize::from(eager), self.threads_max);
        drop(queue);
        Some((job, self.notify(called)))
    }

    /// Takes a job. Blocks until there is one. `None`: the queue is closed and empty, and the thread must end.
    pub(crate) fn take_or_wait(
        &self,
        mut clock: impl FnMut() -> Instant,
        eager: bool,
    ) -> Option<(J, usize)> {
        let mut queue = lock(&self.queue);
        loop {
            if !queue.jobs.is_empty() {
                return self.pop(queue, clock(), eager);
            }
            if queue.closed {
                queue.threads -= 1;
                self.ended.notify_all();
                return None;
            }
            queue.idle += 1;
            while queue.wakeups == 0 && !queue.closed {
                queue = wait(&self.work, queue);
            }
            if queue.wakeups > 0 {
                queue.wakeups -= 1;
            } else {
                queue.idle -= 1;
            }
        }
    }

    pub(crate) fn load(&self) -> Load {
        let queue = lock(&self.queue);
        Load {
            waiting: queue.jobs.len(),
            taken: queue.taken,
            busy: queue.is_busy(),
        }
    }

    /// Parks the watchdog until there is something to watch: a job in this queue, or whatever `is_busy` reports
    /// elsewhere, whose owner calls `wake_watchdog`. Returns false once the queue is closed.
    pub(crate) fn park_watchdog(&self, is_busy: impl Fn() -> bool) -> bool {
        let mut queue = lock(&self.queue);
        if !queue.is_busy() {
            queue.watchdog_parked = true;
            // Set this before calling `is_busy`, so that work which begins after that call finds it set.
            self.watchdog_parked.store(true, Ordering::Relaxed);
            if is_busy() {
                queue.watchdog_parked = false;
            }
            while queue.watchdog_parked && !queue.closed {
                queue = wait(&self.watchdog, queue);
            }
            queue.watchdog_parked = false;
            self.watchdog_parked.store(false, Ordering::Relaxed);
        }
        !queue.closed
    }

    /// Wakes the watchdog for work outside this queue. The caller must have released the lock that `is_busy` takes.
    pub(crate) fn wake_watchdog(&self) {
        if self.watchdog_parked.load(Ordering::Relaxed) {
            self.unpark_watchdog(&mut lock(&self.queue));
        }
    }

    fn unpark_watchdog(&self, queue: &mut JobQueueState<J>) {
        if queue.watchdog_parked {
            queue.watchdog_parked = false;
            self.watchdog.notify_one();
        }
    }

    /// Closes the queue: threads end once it is empty.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        self.work.notify_all();
        self.watchdog.notify_all();
    }

    /// Waits until all threads have ended. Without a deadline, since time does not pass in loom models.
    #[cfg(loom)]
    pub(crate) fn join(&self, _: Instant) -> bool {
        let mut queue = lock(&self.queue);
        while queue.threads > 0 {
            queue = wait(&self.ended, queue);
        }
        true
    }

    /// Waits until all threads have ended, at most until the deadline. Returns whether none is working: idle ones end
    /// by themselves.
    #[cfg(not(loom))]
    pub(crate) fn join(&self, deadline: Instant) -> bool {
        let mut queue = lock(&self.queue);
        while queue.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return !queue.is_busy();
            }
            queue = crate::sync::ignore_poison(self.ended.wait_timeout(queue, left)).0;
        }
        true
    }
}

/// The number of threads to wake, and to start.
#[derive(Debug, Default)]
struct Called {
    woken: usize,
    started: usize,
}

impl<J> JobQueueState<J> {
    /// Calls up to `n` threads, but no more than there are jobs to take, and than may work at a time.
    fn call(&mut self, n: usize, threads_max: usize) -> Called {
        let on_their_way = self.wakeups + self.starting;
        let room = threads_max.saturating_sub(self.at_work());
        let wanted = n
            .min(self.jobs.len().saturating_sub(on_their_way))
            .min(room);
        let woken = wanted.min(self.idle);
        self.idle -= woken;
        self.wakeups += woken;
        let started = wanted - woken;
        self.threads += started;
        self.starting += started;
        Called { woken, started }
    }

    /// The number of threads that are working, or on their way to the queue.
    fn at_work(&self) -> usize {
        self.threads - self.idle
    }

    fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || self.idle < self.threads
    }
}
