//! Models of the queue between shards and handler threads, and of the watchdog.

use std::sync::Arc;
use std::time::Instant;

use loom::thread;

use super::{Byte, ModelShard, check};
use crate::engine::parts::job_queue::JobQueue;
use crate::engine::parts::mailbox::When;
use crate::engine::parts::sync::{AtomicBool, Condvar, Mutex, Ordering, lock, wait};

/// The jobs of a model, and their outcomes.
#[derive(Default)]
struct Ledger {
    taken: Mutex<Vec<u8>>,
    more: Condvar,
}

impl Ledger {
    fn note(&self, job: u8) {
        lock(&self.taken).push(job);
        self.more.notify_all();
    }

    /// Waits until this many jobs have been taken.
    fn wait_for(&self, jobs: usize) {
        let mut taken = lock(&self.taken);
        while taken.len() < jobs {
            taken = wait(&self.more, taken);
        }
    }

    fn sorted(&self) -> Vec<u8> {
        let mut taken = lock(&self.taken).clone();
        taken.sort_unstable();
        taken
    }
}

struct Model {
    handover: JobQueue<u8>,
    ledger: Ledger,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    eager: bool,
    now: Instant,
}

impl Model {
    fn new(threads_max: usize, eager: bool) -> Arc<Self> {
        Arc::new(Self {
            handover: JobQueue::new(threads_max),
            ledger: Ledger::default(),
            threads: Mutex::new(Vec::new()),
            eager,
            now: Instant::now(),
        })
    }

    /// The first thread is started beforehand, as the engine does.
    fn start_first(self: &Arc<Self>) {
        self.handover.starting_first();
        self.start(1);
    }

    fn start(self: &Arc<Self>, n: usize) {
        for _ in 0..n {
            let model = self.clone();
            let thread = thread::spawn(move || model.work());
            lock(&self.threads).push(thread);
        }
    }

    /// The main loop of a handler thread, as in `handlers::pool`.
    fn work(self: &Arc<Self>) {
        self.handover.started();
        while let Some((job, start)) = self
            .handover
            .take(self.now, self.eager)
            .or_else(|| self.handover.take_or_wait(|| self.now, self.eager))
        {
            self.start(start);
            self.ledger.note(job);
        }
    }

    fn push(self: &Arc<Self>, jobs: impl IntoIterator<Item = u8>) {
        let start = self.handover.push(jobs, self.now, self.eager);
        self.start(start);
    }

    /// Closes the queue, and waits until every thread has ended.
    fn end(&self) {
        self.handover.close();
        assert!(self.handover.join(self.now));
        while let Some(thread) = { lock(&self.threads).pop() } {
            thread.join().unwrap();
        }
    }
}

#[test]
fn loom_jobs_are_taken_once_and_close_ends_all_threads() {
    // Without a watchdog, a thread that is working or being woken must find every job by itself.
    check(Some(3), || {
        let model = Model::new(2, false);
        model.start_first();
        model.push([1, 2]);
        model.push([3]);
        model.ledger.wait_for(3);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2, 3]);
    });
}

#[test]
fn loom_eager_threads_wake_each_other_and_take_jobs_once() {
    check(Some(2), || {
        let model = Model::new(2, true);
        model.start_first();
        model.push([1, 2]);
        model.push([3]);
        model.ledger.wait_for(3);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2, 3]);
    });
}

#[test]
fn loom_job_pushed_during_close_is_taken_or_returned() {
    check(Some(3), || {
        let model = Model::new(1, false);
        model.start_first();
        let offers = model.clone();
        let offering =
            thread::spawn(
                move || match offers.handover.try_push(1, offers.now, offers.eager) {
                    Ok(start) => {
                        assert_eq!(start, 0, "the only thread exists already");
                        true
                    }
                    Err(job) => {
                        assert_eq!(job, 1);
                        false
                    }
                },
            );
        model.end();
        let was_taken = offering.join().unwrap();
        let expected: &[u8] = if was_taken { &[1] } else { &[] };
        assert_eq!(model.ledger.sorted(), expected);
    });
}

#[test]
fn loom_jobs_of_two_shards_are_taken_once() {
    check(Some(3), || {
        let model = Model::new(1, false);
        model.start_first();
        let other = {
            let model = model.clone();
            thread::spawn(move || model.push([1]))
        };
        model.push([2]);
        model.ledger.wait_for(2);
        other.join().unwrap();
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2]);
    });
}

#[test]
fn loom_blocked_handler_delays_no_job_with_a_called_thread() {
    // Job 1 blocks until job 2 is done, which must happen if a thread is woken for every job.
    check(Some(3), || {
        let model = Model::new(2, false);
        model.handover.starting_first();
        start_blocking(&model, 1);
        start_blocking(&model, model.handover.push([1, 2], model.now, false));
        start_blocking(&model, model.handover.wake_for_all());
        model.ledger.wait_for(2);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2]);
    });
}

fn start_blocking(model: &Arc<Model>, n: usize) {
    for _ in 0..n {
        let own = model.clone();
        let thread = thread::spawn(move || blocking(&own));
        lock(&model.threads).push(thread);
    }
}

/// A handler thread on which job 1 waits for job 2.
fn blocking(model: &Arc<Model>) {
    model.handover.started();
    while let Some((job, start)) = model.handover.take_or_wait(|| model.now, false) {
        start_blocking(model, start);
        if job == 1 {
            let mut taken = lock(&model.ledger.taken);
            while !taken.contains(&2) {
                taken = wait(&model.ledger.more, taken);
            }
        }
        model.ledger.note(job);
    }
}

#[test]
fn loom_jobs_pushed_before_close_are_taken() {
    check(Some(3), || {
        let model = Model::new(2, false);
        model.start_first();
        model.push([1, 2]);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2]);
    });
}

#[test]
fn loom_job_of_a_thread_that_fails_to_start_is_taken() {
    check(Some(3), || {
        let model = Model::new(2, false);
        model.start_first();
        for _ in 0..model.handover.push([1, 2], model.now, true) {
            model.handover.not_started();
        }
        model.push([3]);
        model.ledger.wait_for(3);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2, 3]);
    });
}

#[test]
fn loom_outcome_of_a_job_wakes_its_shard_after_its_messages() {
    // The whole cycle twice: shard, job queue, handler, mailbox, shard.
    check(Some(3), || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let mut shard = ModelShard::new(64);
        handover.starting_first();
        let handler = {
            let handover = handover.clone();
            let mailbox = shard.mailbox.clone();
            thread::spawn(move || {
                let now = Instant::now();
                handover.started();
                loop {
                    // As in `handlers::pool`, the outcome is held back while there are more jobs.
                    let taken = handover.take(now, false).or_else(|| {
                        mailbox.wake_deferred();
                        handover.take_or_wait(|| now, false)
                    });
                    let Some((job, _)) = taken else {
                        return;
                    };
                    mailbox.push(Byte(job), When::Deferred).unwrap();
                    mailbox.control('d', When::Deferred);
                }
            })
        };
        for job in 1..=2 {
            assert_eq!(handover.push([job], Instant::now(), false), 0);
            shard.run_until(0, usize::from(job));
            // Data precedes control messages.
            assert_eq!(shard.data.len(), usize::from(job));
        }
        handover.close();
        handler.join().unwrap();
    });
}

// ------------------------------------------------------------------------------------------------------- the watchdog

#[test]
fn loom_watchdog_is_not_parked_while_a_job_waits_or_runs() {
    // Each job blocks until the watchdog has ticked once.
    check(Some(3), || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let rounds = Arc::new(Ledger::default());
        let done = Arc::new(Ledger::default());
        handover.starting_first();
        let handler = {
            let (handover, rounds, done) = (handover.clone(), rounds.clone(), done.clone());
            thread::spawn(move || {
                handover.started();
                while let Some((job, _)) = handover.take_or_wait(Instant::now, false) {
                    rounds.wait_for(usize::from(job));
                    done.note(job);
                }
            })
        };
        let watch = {
            let (handover, rounds, done) = (handover.clone(), rounds.clone(), done.clone());
            thread::spawn(move || {
                let mut round = 0;
                while round < 2 {
                    assert!(handover.park_watchdog(|| false));
                    if handover.load().busy {
                        round += 1;
                        rounds.note(round);
                        // Between two ticks the watchdog sleeps: here, until the job is done.
                        done.wait_for(usize::from(round));
                    }
                }
            })
        };
        for job in 1..=2 {
            handover.push([job], Instant::now(), false);
            done.wait_for(usize::from(job));
        }
        watch.join().unwrap();
        handover.close();
        handler.join().unwrap();
    });
}

#[test]
fn loom_push_wakes_the_watchdog_and_close_ends_it() {
    check(None, || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let rounds = Arc::new(AtomicBool::new(false));
        let watch = {
            let handover = handover.clone();
            let rounds = rounds.clone();
            thread::spawn(move || {
                // No thread takes the job, so the watchdog has something to watch from the push on.
                if handover.park_watchdog(|| false) {
                    assert!(handover.load().busy);
                    assert_eq!(handover.load().waiting, 1);
                    rounds.store(true, Ordering::SeqCst);
                }
            })
        };
        handover.push([1], Instant::now(), false);
        watch.join().unwrap();
        assert!(rounds.load(Ordering::SeqCst));
    });
}

#[test]
fn loom_close_ends_a_watchdog_that_parks() {
    check(None, || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let watch = {
            let handover = handover.clone();
            thread::spawn(move || handover.park_watchdog(|| false))
        };
        handover.close();
        assert!(!watch.join().unwrap());
    });
}
