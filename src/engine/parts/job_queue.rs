//! The queue between shards and handler threads: no threads and no clock of its own, so `loom` can check it.
//!
//! Every thread is in one of three states: at work (or on its way to the queue), idle, or called (idle until it gets
//! to run). A thread that is called holds a ticket, so a wake-up meant for one is never lost to another. The watchdog
//! parks under the same lock that every push takes, so it can't miss one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::engine::parts::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// A push that finds the last job taken longer ago than this calls a further thread: those at work seem to be blocked.
const STALE: Duration = Duration::from_micros(50);

pub(crate) struct JobQueue<J> {
    queue: Mutex<Queue<J>>,
    /// Told when a thread is called.
    work: Condvar,
    /// Told when there is something to watch again.
    watchdog: Condvar,
    /// Told when a thread ends.
    ended: Condvar,
    /// As in the queue, or about to be.
    watchdog_parked: AtomicBool,
    threads_max: usize,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    /// Threads that there are, or that are being started.
    threads: usize,
    /// Those that wait and are not called.
    idle: usize,
    /// Those that wait and are called.
    wakeups: usize,
    /// Those that are being started.
    starting: usize,
    /// How many jobs have been taken, and when the last one was.
    taken: u64,
    taken_at: Option<Instant>,
    watchdog_parked: bool,
    closed: bool,
}

/// What there is to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Jobs that wait for a thread.
    pub(crate) waiting: usize,
    /// Jobs that have been taken so far.
    pub(crate) taken: u64,
    /// Whether any thread is at work or should be.
    pub(crate) busy: bool,
}

impl<J> JobQueue<J> {
    pub(crate) fn new(threads_max: usize) -> Self {
        Self {
            queue: Mutex::new(Queue {
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

    /// Leaves jobs, and calls a thread if none is at work, those at work seem to be blocked, or each job is to have
    /// its own (`eager`). Returns how many threads the caller is to start.
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

    /// Leaves one job as [`JobQueue::push`] does, or hands it back once the queue is closed: no thread might come for it.
    pub(crate) fn try_push(&self, job: J, now: Instant, eager: bool) -> Result<usize, J> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(job);
        }
        queue.jobs.push_back(job);
        Ok(self.pushed(queue, now, eager))
    }

    /// Leaves a job for whichever thread takes one next; the watchdog wakes a thread if none comes. An error is the job,
    /// once the queue is closed.
    pub(crate) fn try_leave(&self, job: J) -> Result<(), J> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(job);
        }
        queue.jobs.push_back(job);
        self.unpark_watchdog(&mut queue);
        Ok(())
    }

    fn pushed(&self, mut queue: MutexGuard<'_, Queue<J>>, now: Instant, eager: bool) -> usize {
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

    /// Wakes who was called, after the lock was given up: it is the first thing that a thread wants when it wakes.
    /// Returns how many threads are to be started.
    fn notify(&self, called: Called) -> usize {
        for _ in 0..called.woken {
            self.work.notify_one();
        }
        called.started
    }

    /// Calls a thread for every job that waits. Returns how many are to be started.
    pub(crate) fn wake_for_all(&self) -> usize {
        let mut queue = lock(&self.queue);
        let waiting = queue.jobs.len();
        let called = queue.call(waiting, self.threads_max);
        drop(queue);
        self.notify(called)
    }

    /// Room for the first thread. Further ones are asked for by `push`, `take` and `wake_for_all`.
    pub(crate) fn starting_first(&self) {
        let mut queue = lock(&self.queue);
        queue.threads += 1;
        queue.starting += 1;
    }

    /// A thread that was to be started runs.
    pub(crate) fn started(&self) {
        lock(&self.queue).starting -= 1;
    }

    /// A thread that was to be started can't be had.
    pub(crate) fn not_started(&self) {
        let mut queue = lock(&self.queue);
        queue.starting -= 1;
        queue.threads -= 1;
    }

    /// Takes a job, if there is one. With `eager`, calls a further thread if more wait; the second value is how many
    /// the caller is to start.
    pub(crate) fn take(&self, now: Instant, eager: bool) -> Option<(J, usize)> {
        self.pop(lock(&self.queue), now, eager)
    }

    fn pop(
        &self,
        mut queue: MutexGuard<'_, Queue<J>>,
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

    /// Takes a job; waits for one. `None` once the queue is closed and empty: the thread must end.
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

    /// The watchdog waits until there is something to watch: a job, or whatever `is_busy` tells of elsewhere, which is said
    /// with `wake_watchdog`. False once the queue is closed.
    pub(crate) fn park_watchdog(&self, is_busy: impl Fn() -> bool) -> bool {
        let mut queue = lock(&self.queue);
        if !queue.is_busy() {
            queue.watchdog_parked = true;
            // Before it looks elsewhere: what begins there after the look finds it set.
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

    /// There is something to watch elsewhere. To be called after the lock under which `is_busy` looks for it.
    pub(crate) fn wake_watchdog(&self) {
        if self.watchdog_parked.load(Ordering::Relaxed) {
            self.unpark_watchdog(&mut lock(&self.queue));
        }
    }

    fn unpark_watchdog(&self, queue: &mut Queue<J>) {
        if queue.watchdog_parked {
            queue.watchdog_parked = false;
            self.watchdog.notify_one();
        }
    }

    /// Lets the threads end once the queue is empty.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.closed = true;
        self.work.notify_all();
        self.watchdog.notify_all();
    }

    /// Waits until all threads have ended: models know no time.
    #[cfg(loom)]
    pub(crate) fn join(&self, _: Instant) -> bool {
        let mut queue = lock(&self.queue);
        while queue.threads > 0 {
            queue = wait(&self.ended, queue);
        }
        true
    }

    /// Waits until all threads have ended, or the deadline. Returns whether none is at work: the others end by themselves.
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

/// Threads that were called: those to wake, and those to start.
#[derive(Debug, Default)]
struct Called {
    woken: usize,
    started: usize,
}

impl<J> Queue<J> {
    /// Calls up to `n` threads, but no more than there are jobs to take, and than may be at work.
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

    /// Those that are at work, or on their way to it.
    fn at_work(&self) -> usize {
        self.threads - self.idle
    }

    fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || self.idle < self.threads
    }
}
