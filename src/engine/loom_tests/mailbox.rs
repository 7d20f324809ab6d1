//! Models of the mailbox: no item and no wake-up is lost, and every waiting producer is released.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread;

use super::{Byte, ModelShard, check};
use crate::engine::parts::mailbox::{PushError, When};
use crate::engine::parts::sync::lock;

#[test]
fn loom_push_always_wakes_the_shard() {
    check(None, || {
        let mut shard = ModelShard::new(64);
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
fn loom_control_wakes_the_shard_and_keeps_its_order() {
    check(None, || {
        let mut shard = ModelShard::new(64);
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || {
            mailbox.control('a', When::Now);
            mailbox.push(Byte(1), When::Now).unwrap();
            mailbox.control('b', When::Now);
        });
        shard.run_until(1, 2);
        producer.join().unwrap();
        assert_eq!(shard.control, ['a', 'b']);
        assert!(shard.mailbox.sleep(false), "the mailbox is not empty");
    });
}

#[test]
fn loom_deferred_data_is_seen_when_its_batch_ends() {
    // Two handlers of one shard: each sends data, then a control message that it is done, and wakes the shard once.
    check(None, || {
        let mut shard = ModelShard::new(64);
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
fn loom_data_of_a_batch_is_taken_with_its_outcome_or_before() {
    check(None, || {
        let mut shard = ModelShard::new(64);
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
fn loom_wake_up_by_one_thread_keeps_the_deferred_one() {
    // One handler defers its wake-up, another thread wakes at once, and a third (the watchdog) wakes for deferred data.
    check(Some(3), || {
        let mut shard = ModelShard::new(64);
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
fn loom_producer_waiting_for_space_is_released() {
    // With room for one item, each further push waits for the shard, whether it wakes the shard at once or not.
    for when in [When::Now, When::Deferred] {
        check(None, move || {
            let mut shard = ModelShard::new(1);
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
fn loom_all_producers_waiting_for_space_are_released() {
    check(Some(2), || {
        let mut shard = ModelShard::new(1);
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
fn loom_close_releases_producers_and_keeps_their_data() {
    check(Some(4), || {
        let mut shard = ModelShard::new(1);
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
            Err((Byte(9), PushError::Closed))
        );
        shard.take(true);
        assert_eq!(shard.data.len(), taken);
    });
}

#[test]
fn loom_released_reservation_releases_a_waiting_producer() {
    // The shard sleeps meanwhile: an exhausted reservation gives it nothing to do.
    check(None, || {
        let mut shard = ModelShard::new(1);
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
fn loom_used_reservation_releases_a_producer_once_taken() {
    check(None, || {
        let mut shard = ModelShard::new(1);
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
fn loom_pacing_shard_wakes_for_control_and_takes_data_after() {
    for when in [When::Now, When::Deferred] {
        check(None, move || {
            let mut shard = ModelShard::new(1);
            let mailbox = shard.mailbox.clone();
            let producer = thread::spawn(move || {
                mailbox.push(Byte(1), when).unwrap();
                mailbox.control('d', when);
                mailbox.wake_deferred();
                // This push waits while the shard paces its producers.
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
fn loom_shard_is_woken_once_and_only_while_asleep() {
    check(None, || {
        let mut shard = ModelShard::new(64);
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
        assert!(
            !shard.mailbox.sleep(false),
            "the shard must not sleep over data"
        );
        shard.take(true);
        shard.mailbox.push(Byte(9), When::Now).unwrap();
        assert_eq!(
            shard.alarm.rings.load(Relaxed),
            1,
            "an awake shard is not woken"
        );
    });
}

#[test]
fn loom_data_does_not_wake_a_pacing_shard() {
    check(None, || {
        let mut shard = ModelShard::new(64);
        assert!(shard.mailbox.sleep(true));
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || {
            mailbox.push(Byte(1), When::Now).unwrap();
            mailbox.push(Byte(2), When::Deferred).unwrap();
            mailbox.wake_deferred();
        });
        producer.join().unwrap();
        assert!(!*lock(&shard.alarm.rung));
        // While pacing, the shard may sleep on; once it wants data, it may not.
        assert!(shard.mailbox.sleep(true));
        assert!(!shard.mailbox.sleep(false));
        shard.take(true);
        assert_eq!(shard.data, [1, 2]);
    });
}

#[test]
fn loom_end_of_a_shard_takes_or_returns_all_data() {
    // One thread waits for space, one reserves space, one leaves a control message. None is kept after the shard has
    // ended.
    check(Some(3), || {
        let shard = ModelShard::new(1);
        let mailbox = shard.mailbox.clone();
        let producer = thread::spawn(move || {
            let first = mailbox.push(Byte(1), When::Now).is_ok();
            mailbox.control('a', When::Now);
            usize::from(first) + usize::from(mailbox.push(Byte(2), When::Now).is_ok())
        });
        let mailbox = shard.mailbox.clone();
        let other = thread::spawn(move || mailbox.try_push(Byte(3), When::Now).is_ok());
        let mut left = VecDeque::new();
        shard.mailbox.finish(&mut left);
        let kept = producer.join().unwrap() + usize::from(other.join().unwrap());
        assert_eq!(left.len(), kept);
        let (mut data, mut control) = (VecDeque::new(), Vec::new());
        shard.mailbox.take(Some(&mut data), &mut control);
        assert!(data.is_empty() && control.is_empty());
    });
}
