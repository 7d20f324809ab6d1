//! Models of shards that run handlers on their own threads: lending a shard out, handing it to the spare thread, and
//! the checks of the watchdog.

use std::sync::Arc;
use std::time::Instant;

use loom::thread;

use super::check;
use crate::engine::parts::job_queue::JobQueue;
use crate::engine::parts::lease::{Lease, Look, Next};
use crate::engine::parts::sync::{Condvar, Mutex, lock, wait};

/// A shard with jobs to run, and their outcomes.
#[derive(Debug, Default)]
struct ModelShard {
    jobs: Vec<u8>,
    done: Vec<u8>,
}

type Leases = Lease<Box<ModelShard>>;

/// The outcomes that late threads leave.
type Outcomes = Arc<Mutex<Vec<u8>>>;

/// The main loop of a shard's thread, as in `threads::shard` and `run_inline`. Returns the shard to the thread that it
/// ends on.
fn work(
    lease: &Leases,
    mailbox: &Outcomes,
    mut next: Option<Box<ModelShard>>,
    run: impl Fn(u8),
) -> Option<Box<ModelShard>> {
    while let Some(shard) = next {
        match work_until_late(lease, mailbox, shard, &run) {
            Some(shard) => {
                lease.close();
                return Some(shard);
            }
            None => {
                lease.is_spare_again();
                next = lease.wait();
            }
        }
    }
    None
}

fn work_until_late(
    lease: &Leases,
    mailbox: &Outcomes,
    mut shard: Box<ModelShard>,
    run: impl Fn(u8),
) -> Option<Box<ModelShard>> {
    loop {
        let mut job = match lease.lend(shard, |shard| shard.jobs.pop()) {
            Ok(job) => job,
            Err(mut back) => {
                // Jobs that can't run here go to the pool.
                let jobs = std::mem::take(&mut back.jobs);
                lock(mailbox).extend(jobs);
                return Some(back);
            }
        };
        loop {
            run(job);
            let step = |shard: &mut Box<ModelShard>, job| {
                shard.done.push(job);
                shard.jobs.pop()
            };
            match lease.next(job, step) {
                Next::Job(another) => job = another,
                Next::Back(back) => {
                    shard = back;
                    break;
                }
                Next::Late(job) => {
                    lock(mailbox).push(job);
                    return None;
                }
            }
        }
    }
}

fn shard(jobs: &[u8]) -> Box<ModelShard> {
    Box::new(ModelShard {
        jobs: jobs.to_vec(),
        done: Vec::new(),
    })
}

#[test]
fn loom_lent_shard_is_never_lost_and_its_jobs_end_once() {
    check(Some(4), || {
        let lease = Arc::new(Leases::new(true));
        let mailbox = Outcomes::default();
        let spare = {
            let (lease, mailbox) = (lease.clone(), mailbox.clone());
            thread::spawn(move || {
                let shard = lease.wait();
                work(&lease, &mailbox, shard, |_| {})
            })
        };
        let watch = {
            let lease = lease.clone();
            thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..3 {
                    lease.look(&mut seen);
                }
            })
        };
        let first = work(&lease, &mailbox, Some(shard(&[3, 2, 1])), |_| {});
        let second = spare.join().unwrap();
        watch.join().unwrap();
        lease.join();
        assert!(lease.join_late(Instant::now()));
        assert!(
            first.is_some() != second.is_some(),
            "one thread returns the shard"
        );
        let mut done = first.or(second).unwrap().done;
        done.append(&mut lock(&mailbox));
        done.sort_unstable();
        assert_eq!(done, [1, 2, 3]);
        assert!(!lease.is_busy());
    });
}

#[test]
fn loom_blocked_handler_lets_its_shard_go_on() {
    // The first handler blocks until the second runs, on the other thread.
    check(Some(4), || {
        let lease = Arc::new(Leases::new(true));
        let mailbox = Outcomes::default();
        let events = Arc::new((Mutex::new(0), Condvar::new()));
        let blocks = |events: &(Mutex<i32>, Condvar), job| match job {
            1 => {
                let mut ran = lock(&events.0);
                while *ran == 0 {
                    ran = wait(&events.1, ran);
                }
            }
            _ => {
                *lock(&events.0) += 1;
                events.1.notify_all();
            }
        };
        let spare = {
            let (lease, mailbox, events) = (lease.clone(), mailbox.clone(), events.clone());
            thread::spawn(move || {
                let taken = lease.wait().unwrap();
                assert_eq!(taken.jobs, [2]);
                assert!(taken.done.is_empty());
                // There is no spare thread now, so the lease refuses to lend it.
                let refused = lease.lend(taken, |shard| shard.jobs.pop());
                let taken = refused.expect_err("the other thread is late");
                taken.jobs.iter().for_each(|&job| blocks(&events, job));
                lease.close();
                drop(mailbox);
            })
        };
        let watch = {
            let lease = lease.clone();
            thread::spawn(move || {
                let mut seen = 0;
                while lease.look(&mut seen) != Look::Blocked {
                    thread::yield_now();
                }
            })
        };
        let back = work(&lease, &mailbox, Some(shard(&[2, 1])), |job| {
            blocks(&events, job);
        });
        assert!(back.is_none());
        spare.join().unwrap();
        watch.join().unwrap();
        assert_eq!(*lock(&mailbox), [1]);
    });
}

#[test]
fn loom_watchdog_is_not_parked_while_a_shard_is_lent_or_late() {
    // The handler blocks until the watchdog has handed the shard on, and ticked once more.
    check(Some(3), || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let lease = Arc::new(Leases::new(true));
        let rounds = Arc::new((Mutex::new(0), Condvar::new()));
        let watch = {
            let (handover, lease, rounds) = (handover.clone(), lease.clone(), rounds.clone());
            thread::spawn(move || {
                let mut seen = 0;
                for _ in 0..3 {
                    assert!(handover.park_watchdog(|| lease.is_busy()));
                    if lease.look(&mut seen) == Look::Blocked {
                        *lock(&rounds.0) += 1;
                        rounds.1.notify_all();
                    }
                }
            })
        };
        let job = {
            lease
                .lend(shard(&[1]), |shard| shard.jobs.pop())
                .expect("there is a spare thread")
        };
        handover.wake_watchdog();
        let mut round = lock(&rounds.0);
        while *round < 2 {
            round = wait(&rounds.1, round);
        }
        drop(round);
        assert!(matches!(lease.next(job, |_, _| None::<u8>), Next::Late(1)));
        watch.join().unwrap();
        // The late thread is the spare one now. It gets the shard, since no other thread has taken it.
        lease.is_spare_again();
        assert!(lease.wait().is_some());
        assert!(!lease.is_busy());
    });
}

#[test]
fn loom_parking_watchdog_is_woken_for_a_shard_lent_later() {
    check(None, || {
        let handover = Arc::new(JobQueue::<u8>::new(1));
        let lease = Arc::new(Leases::new(true));
        let watch = {
            let (handover, lease) = (handover.clone(), lease.clone());
            // Only the lease wakes it.
            thread::spawn(move || assert!(handover.park_watchdog(|| lease.is_busy())))
        };
        assert!(lease.lend(shard(&[1]), |shard| shard.jobs.pop()).is_ok());
        handover.wake_watchdog();
        watch.join().unwrap();
    });
}

#[test]
fn loom_shard_without_a_spare_thread_is_not_lent() {
    check(None, || {
        let lease = Arc::new(Leases::new(false));
        let spare = {
            let lease = lease.clone();
            thread::spawn(move || {
                lease.is_spare_again();
                lease.wait().is_none()
            })
        };
        // The job must not be lost, whether or not the spare thread waits already.
        match lease.lend(shard(&[1]), |shard| shard.jobs.pop()) {
            Ok(job) => assert!(matches!(lease.next(job, |_, _| None::<u8>), Next::Back(_))),
            Err(kept) => assert_eq!(kept.jobs, [1], "its job is still there"),
        }
        lease.close();
        assert!(spare.join().unwrap());
    });
}
