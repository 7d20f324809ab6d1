//! Model checks: every order in which threads can meet at the engine's hand-overs, within the bounds named.
//!
//! Run them with `RUSTFLAGS="--cfg loom" cargo test --release --lib loom`. A model fails if an assertion does, or if
//! all its threads wait for each other: so a wake-up that gets lost shows as a deadlock. Models need no time-outs and
//! no watch to come to their end, except where the watch is what they check.
//!
//! Bounds: at most four threads, two or three items each, and as many involuntary switches between threads as
//! [`check`] is told (`None`: all there can be). Loom knows neither spurious wake-ups of a `Condvar` nor time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use loom::thread;

use super::handover::Handover;
use super::mailbox::{Mailbox, Refused, Wake, Weigh, When};
use super::sync::{AtomicBool, Condvar, Mutex, Ordering, lock, wait};

/// Explores a model, with at most so many involuntary switches between threads.
fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

// ---------------------------------------------------------------------------------------------------- the mailbox

/// What a poll is to a shard: a wake-up ends the sleep that it finds, or the next one.
#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    /// How often it was rung.
    rings: AtomicUsize,
    bell: Condvar,
}

impl Alarm {
    fn sleep(&self) {
        let mut rung = lock(&self.rung);
        while !*rung {
            rung = wait(&self.bell, rung);
        }
        *rung = false;
    }
}

#[derive(Clone, Default)]
struct Waker(Arc<Alarm>);

impl Wake for Waker {
    fn wake(&self) {
        self.0.rings.fetch_add(1, Relaxed);
        *lock(&self.0.rung) = true;
        self.0.bell.notify_one();
    }
}

/// A message of one byte.
#[derive(Debug, PartialEq, Eq)]
struct Byte(u8);

impl Weigh for Byte {
    fn weight(&self) -> usize {
        1
    }
}

type Bytes = Mailbox<Byte, char, Waker>;

/// A shard, as far as its mailbox knows it.
struct Shard {
    mailbox: Arc<Bytes>,
    alarm: Arc<Alarm>,
    data: Vec<u8>,
    control: Vec<char>,
    pushed: u64,
}

impl Shard {
    fn new(bytes_max: usize) -> Self {
        let waker = Waker::default();
        Self {
            alarm: waker.0.clone(),
            mailbox: Arc::new(Mailbox::new(bytes_max, waker)),
            data: Vec::new(),
            control: Vec::new(),
            pushed: 0,
        }
    }

    fn take(&mut self, wants_data: bool) {
        let mut data = VecDeque::new();
        let mut control = Vec::new();
        self.pushed = self
            .mailbox
            .take(wants_data.then_some(&mut data), &mut control);
        self.data.extend(data.into_iter().map(|Byte(byte)| byte));
        self.control.extend(control);
    }

    /// Turns until there is so much of each, and sleeps whenever it may.
    fn run_until(&mut self, data: usize, control: usize) {
        loop {
            self.take(true);
            if self.data.len() >= data && self.control.len() >= control {
                return;
            }
            if self.mailbox.sleep(false) {
                self.alarm.sleep();
            }
        }
    }

    /// The same while it paces its producers: it takes control only.
    fn run_paced_until(&mut self, control: usize) {
        loop {
            self.take(false);
            if self.control.len() >= control {
                return;
            }
            if self.mailbox.sleep(true) {
                self.alarm.sleep();
            }
        }
    }
}

#[test]
fn loom_no_push_is_slept_through() {
    check(None, || {
        let mut shard = Shard::new(64);
        let producers: Vec<_> = (0..2)
            .map(|n| {
                let mailbox = shard.mailbox.clone();
                thread::spawn(move || {
                    mailbox.push(Byte(n), When::Now).unwrap();
                })
            })
            .collect();
        shard.run_until(2, 0);
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!(shard.pushed, 2);
    });
}

#[test]
fn loom_no_word_is_slept_through_and_words_keep_their_order() {
    check(None, || {
        let mut shard = Shard::new(64);
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || {
            mailbox.control('a', When::Now);
            mailbox.push(Byte(1), When::Now).unwrap();
            mailbox.control('b', When::Now);
        });
        shard.run_until(1, 2);
        producer.join().unwrap();
        assert_eq!(shard.control, ['a', 'b']);
        assert!(shard.mailbox.sleep(false), "nothing is left");
    });
}

#[test]
fn loom_what_a_batch_leaves_is_seen_when_it_ends() {
    // Two handlers of one shard: each sends, leaves word that it is done, and wakes the shard once.
    check(None, || {
        let mut shard = Shard::new(64);
        let handlers: Vec<_> = (0..2)
            .map(|n| {
                let mailbox = shard.mailbox.clone();
                thread::spawn(move || {
                    mailbox.push(Byte(n), When::Deferred).unwrap();
                    mailbox.wake_deferred();
                })
            })
            .collect();
        shard.run_until(2, 0);
        for handler in handlers {
            handler.join().unwrap();
        }
    });
}

#[test]
fn loom_messages_of_a_batch_are_taken_no_later_than_word_of_its_end() {
    check(None, || {
        let mut shard = Shard::new(64);
        let mailbox = shard.mailbox.clone();
        let handler = thread::spawn(move || {
            for n in 0..2 {
                mailbox.push(Byte(n), When::Deferred).unwrap();
                mailbox.control('d', When::Deferred);
            }
            mailbox.wake_deferred();
        });
        while shard.control.len() < 2 {
            shard.run_until(0, shard.control.len() + 1);
            assert!(shard.data.len() >= shard.control.len(), "{:?}", shard.data);
            assert!(shard.pushed >= shard.control.len() as u64);
        }
        assert_eq!(shard.data, [0, 1]);
        handler.join().unwrap();
    });
}

#[test]
fn loom_a_wake_up_by_another_does_not_take_away_that_of_a_batch() {
    // One handler's data is deferred, the other thread wakes at once; a third wakes for what was deferred (the watch).
    check(Some(3), || {
        let mut shard = Shard::new(64);
        let mailbox = shard.mailbox.clone();
        let handler = thread::spawn(move || {
            mailbox.push(Byte(1), When::Deferred).unwrap();
            mailbox.wake_deferred();
        });
        let mailbox = shard.mailbox.clone();
        let other = thread::spawn(move || mailbox.push(Byte(2), When::Now).unwrap());
        let mailbox = shard.mailbox.clone();
        let watch = thread::spawn(move || mailbox.wake_deferred());
        shard.run_until(2, 0);
        for thread in [handler, other, watch] {
            thread.join().unwrap();
        }
    });
}

#[test]
fn loom_a_producer_that_waits_for_room_is_let_go() {
    // Room for one: each further push waits for the shard, whether it wakes at once or not.
    for when in [When::Now, When::Deferred] {
        check(None, move || {
            let mut shard = Shard::new(1);
            let mailbox = shard.mailbox.clone();
            let producer = thread::spawn(move || {
                for n in 0..3 {
                    mailbox.push(Byte(n), when).unwrap();
                }
                mailbox.wake_deferred();
            });
            shard.run_until(3, 0);
            assert_eq!(shard.data, [0, 1, 2]);
            producer.join().unwrap();
        });
    }
}

#[test]
fn loom_all_producers_that_wait_for_room_are_let_go() {
    check(Some(2), || {
        let mut shard = Shard::new(1);
        let producers: Vec<_> = (0..3)
            .map(|n| {
                let mailbox = shard.mailbox.clone();
                thread::spawn(move || mailbox.push(Byte(n), When::Now).unwrap())
            })
            .collect();
        shard.run_until(3, 0);
        for producer in producers {
            producer.join().unwrap();
        }
    });
}

#[test]
fn loom_close_lets_producers_go_and_loses_nothing_that_was_taken() {
    check(Some(4), || {
        let mut shard = Shard::new(1);
        let producers: Vec<_> = (0..2)
            .map(|n| {
                let mailbox = shard.mailbox.clone();
                thread::spawn(move || mailbox.push(Byte(n), When::Now).is_ok())
            })
            .collect();
        shard.mailbox.close();
        let taken = producers
            .into_iter()
            .map(|producer| usize::from(producer.join().unwrap()))
            .sum::<usize>();
        assert_eq!(
            shard.mailbox.try_push(Byte(9), When::Now),
            Err((Byte(9), Refused::Closed))
        );
        shard.take(true);
        assert_eq!(shard.data.len(), taken);
    });
}

#[test]
fn loom_room_that_is_given_back_lets_a_waiting_producer_go() {
    // The shard sleeps meanwhile: it has nothing to do with it.
    check(None, || {
        let mut shard = Shard::new(1);
        shard.mailbox.try_reserve(1).unwrap();
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || mailbox.push(Byte(1), When::Now).unwrap());
        let mailbox = shard.mailbox.clone();
        let reserver = thread::spawn(move || mailbox.unreserve(1));
        shard.run_until(1, 0);
        producer.join().unwrap();
        reserver.join().unwrap();
    });
}

#[test]
fn loom_room_that_is_used_lets_a_waiting_producer_go_when_the_shard_has_taken() {
    check(None, || {
        let mut shard = Shard::new(1);
        shard.mailbox.try_reserve(1).unwrap();
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || mailbox.push(Byte(1), When::Now).unwrap());
        let mailbox = shard.mailbox.clone();
        let reserver = thread::spawn(move || mailbox.push_reserved(Byte(2), When::Now).unwrap());
        shard.run_until(2, 0);
        producer.join().unwrap();
        reserver.join().unwrap();
    });
}

#[test]
fn loom_a_paced_shard_wakes_for_word_and_takes_data_when_it_paces_no_longer() {
    for when in [When::Now, When::Deferred] {
        check(None, move || {
            let mut shard = Shard::new(1);
            let mailbox = shard.mailbox.clone();
            let producer = thread::spawn(move || {
                mailbox.push(Byte(1), when).unwrap();
                mailbox.control('d', when);
                mailbox.wake_deferred();
                // Waits while the shard is paced.
                mailbox.push(Byte(2), when).unwrap();
                mailbox.wake_deferred();
            });
            shard.run_paced_until(1);
            assert!(shard.data.is_empty());
            assert_eq!(shard.pushed, 1);
            shard.run_until(2, 1);
            assert_eq!(shard.data, [1, 2]);
            producer.join().unwrap();
        });
    }
}

#[test]
fn loom_a_sleep_is_ended_once_and_an_awake_shard_is_left_alone() {
    check(None, || {
        let mut shard = Shard::new(64);
        assert!(shard.mailbox.sleep(false));
        let producers: Vec<_> = (0..2)
            .map(|n| {
                let mailbox = shard.mailbox.clone();
                thread::spawn(move || {
                    mailbox.push(Byte(n), When::Deferred).unwrap();
                    mailbox.push(Byte(n), When::Now).unwrap();
                    mailbox.wake_deferred();
                })
            })
            .collect();
        for producer in producers {
            producer.join().unwrap();
        }
        assert_eq!(shard.alarm.rings.load(Relaxed), 1);
        assert!(!shard.mailbox.sleep(false), "it has something to take");
        shard.take(true);
        shard.mailbox.push(Byte(9), When::Now).unwrap();
        assert_eq!(shard.alarm.rings.load(Relaxed), 1, "it is awake");
    });
}

#[test]
fn loom_data_alone_does_not_wake_a_paced_shard() {
    check(None, || {
        let mut shard = Shard::new(64);
        assert!(shard.mailbox.sleep(true));
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || {
            mailbox.push(Byte(1), When::Now).unwrap();
            mailbox.push(Byte(2), When::Deferred).unwrap();
            mailbox.wake_deferred();
        });
        producer.join().unwrap();
        assert!(!*lock(&shard.alarm.rung));
        // It may sleep on, paced; and may not once it wants data.
        assert!(shard.mailbox.sleep(true));
        assert!(!shard.mailbox.sleep(false));
        shard.take(true);
        assert_eq!(shard.data, [1, 2]);
    });
}

// --------------------------------------------------------------------------------------------------- the hand-over

/// What came of the jobs of a model.
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

    /// Waits until so many jobs have been taken.
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
    handover: Handover<u8>,
    ledger: Ledger,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    eager: bool,
    now: Instant,
}

impl Model {
    fn new(threads_max: usize, eager: bool) -> Arc<Self> {
        Arc::new(Self {
            handover: Handover::new(threads_max),
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

    /// What a handler thread does, as in `Pool::work`.
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

    /// Closes, and waits until every thread has said that it ends, and has.
    fn end(&self) {
        self.handover.close();
        assert!(self.handover.join(self.now));
        while let Some(thread) = { lock(&self.threads).pop() } {
            thread.join().unwrap();
        }
    }
}

#[test]
fn loom_every_job_is_taken_exactly_once_and_close_ends_all_threads() {
    // No watch helps: where a thread is at work or on its way, it must come to every job by itself.
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
fn loom_eager_threads_call_each_other_and_take_every_job_exactly_once() {
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
fn loom_jobs_of_two_shards_are_taken_exactly_once() {
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
fn loom_a_blocked_handler_holds_up_no_job_that_a_thread_was_called_for() {
    // Job 1 blocks until job 2 is done: with a thread called for every job, that must come about.
    check(Some(3), || {
        let model = Model::new(2, false);
        model.handover.starting_first();
        start_blocking(&model, 1);
        start_blocking(&model, model.handover.push([1, 2], model.now, false));
        start_blocking(&model, model.handover.call_all());
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

/// A handler thread whose job 1 waits for job 2.
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
fn loom_jobs_left_before_the_close_are_still_taken() {
    check(Some(3), || {
        let model = Model::new(2, false);
        model.start_first();
        model.push([1, 2]);
        model.end();
        assert_eq!(model.ledger.sorted(), [1, 2]);
    });
}

#[test]
fn loom_a_job_comes_back_as_word_that_wakes_its_shard_behind_its_messages() {
    // The whole round: shard → hand-over → handler → mailbox → shard, twice.
    check(Some(3), || {
        let handover = Arc::new(Handover::<u8>::new(1));
        let mut shard = Shard::new(64);
        handover.starting_first();
        let handler = {
            let handover = handover.clone();
            let mailbox = shard.mailbox.clone();
            thread::spawn(move || {
                let now = Instant::now();
                handover.started();
                loop {
                    // As in `Pool::work`: word is held back while there is more to do.
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
            // Messages first.
            assert_eq!(shard.data.len(), usize::from(job));
        }
        handover.close();
        handler.join().unwrap();
    });
}

// ------------------------------------------------------------------------------------------------------- the watch

#[test]
fn loom_the_watch_is_never_parked_while_a_job_waits_or_runs() {
    // Each job blocks until the watch has come round for it.
    check(Some(3), || {
        let handover = Arc::new(Handover::<u8>::new(1));
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
                    assert!(handover.park_watch());
                    if handover.load().busy {
                        round += 1;
                        rounds.note(round);
                        // It sleeps for a while.
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
fn loom_a_push_lets_the_watch_go_and_close_ends_it() {
    check(None, || {
        let handover = Arc::new(Handover::<u8>::new(1));
        let rounds = Arc::new(AtomicBool::new(false));
        let watch = {
            let handover = handover.clone();
            let rounds = rounds.clone();
            thread::spawn(move || {
                // Nobody takes the job, so from the push on there is something to watch.
                if handover.park_watch() {
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
fn loom_close_ends_a_watch_that_is_parked_or_about_to() {
    check(None, || {
        let handover = Arc::new(Handover::<u8>::new(1));
        let watch = {
            let handover = handover.clone();
            thread::spawn(move || handover.park_watch())
        };
        handover.close();
        assert!(!watch.join().unwrap());
    });
}
