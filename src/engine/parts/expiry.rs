//! The expiry times of sessions.
//!
//! A session expires at a fixed time, like the token that it was opened with. The deadlines in `timers` are extended if
//! the process was suspended or the shard ran late. An expiry is not, so it is compared with the monotonic clock
//! directly.
//!
//! Expiries are stored outside the sessions, because most sessions have none and an idle session must stay small.
//! Setting a later expiry does not wake the shard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU32, fence};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crate::engine::parts::id::Key;
use crate::sync::lock;

/// The resolution. It is fine enough to close sessions within a second, and a `u32` of these steps lasts for 17 years.
const STEP: Duration = Duration::from_millis(125);

/// A time of the monotonic clock, as the number of steps of 125 ms since the first use in this process, rounded up. 0
/// is always in the past. [`NEVER`] is never used as a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expiry(u32);

const NEVER: u32 = u32::MAX;

impl Expiry {
    fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }

    /// Rounds `instant` up to a step. Returns `None` if it is too far in the future to be represented.
    pub(crate) fn at(instant: Instant) -> Option<Self> {
        let steps = instant
            .saturating_duration_since(Self::epoch())
            .as_nanos()
            .div_ceil(STEP.as_nanos());
        let steps = u32::try_from(steps).ok();
        steps.filter(|&steps| steps != NEVER).map(Self)
    }

    /// Returns the expiry at which the system clock will show `time` if nobody changes the clock. Returns `None` if
    /// that is too far in the future to be represented.
    pub(crate) fn at_time(time: SystemTime) -> Option<Self> {
        match time.duration_since(SystemTime::now()) {
            Ok(left) => Instant::now().checked_add(left).and_then(Self::at),
            Err(_) => Some(Self(0)),
        }
    }

    pub(crate) fn instant(self) -> Instant {
        Self::epoch() + STEP * self.0
    }

    fn has_come(self, now: Instant) -> bool {
        // The epoch may be later than `now`, which is the time at which the current turn began.
        self.0 == 0 || self.instant() <= now
    }
}

/// The expiries of a shard's sessions. Any thread may set one.
pub(crate) struct Expiries {
    queue: Mutex<ExpiryQueue>,
    /// The first expiry, or [`NEVER`]. The shard reads it without the lock, which it takes only if a session has
    /// expired.
    first: AtomicU32,
}

impl Default for Expiries {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            first: AtomicU32::new(NEVER),
        }
    }
}

#[derive(Default)]
struct ExpiryQueue {
    by_time: BTreeSet<(Expiry, Key)>,
    by_key: BTreeMap<Key, Expiry>,
    /// Whether the shard was notified of an earlier expiry, and has not read it yet.
    is_notified: bool,
}

impl ExpiryQueue {
    fn remove(&mut self, key: Key) {
        if let Some(before) = self.by_key.remove(&key) {
            self.by_time.remove(&(before, key));
        }
    }
}

impl Expiries {
    fn change<R>(&self, change: impl FnOnce(&mut ExpiryQueue) -> R) -> R {
        let mut queue = lock(&self.queue);
        let result = change(&mut queue);
        let first = queue.by_time.first();
        self.first
            .store(first.map_or(NEVER, |(expiry, _)| expiry.0), SeqCst);
        result
    }

    fn first(&self) -> Option<Expiry> {
        let first = self.first.load(SeqCst);
        (first != NEVER).then_some(Expiry(first))
    }

    /// Sets the expiry of a connection's session, or removes it (`None`). Returns whether the caller must notify the
    /// shard, which may otherwise sleep past the expiry.
    pub(crate) fn set(&self, key: Key, expiry: Option<Expiry>) -> bool {
        self.change(|queue| {
            let first = queue.by_time.first().map(|&(first, _)| first);
            queue.remove(key);
            let Some(expiry) = expiry else {
                return false;
            };
            queue.by_time.insert((expiry, key));
            queue.by_key.insert(key, expiry);
            let is_earlier = first.is_none_or(|first| expiry < first);
            is_earlier && !std::mem::replace(&mut queue.is_notified, true)
        })
    }

    /// The expiry of a connection's session, if it has one.
    pub(crate) fn of(&self, key: Key) -> Option<Expiry> {
        lock(&self.queue).by_key.get(&key).copied()
    }

    /// Records that the shard was notified. The shard calls this before it reads the first expiry.
    pub(crate) fn clear_notified(&self) {
        self.change(|queue| queue.is_notified = false);
    }

    /// Removes a connection that has ended.
    pub(crate) fn forget(&self, key: Key) {
        // The fence is between the change of the session's status and this read. See `Hub::set_expiry`.
        fence(SeqCst);
        if self.first().is_some() {
            self.change(|queue| queue.remove(key));
        }
    }

    /// Removes and returns a connection whose session has expired.
    pub(crate) fn take_due(&self, now: Instant) -> Option<Key> {
        if !self.first()?.has_come(now) {
            return None;
        }
        self.change(|queue| {
            let &(first, key) = queue.by_time.first()?;
            if !first.has_come(now) {
                return None;
            }
            queue.remove(key);
            Some(key)
        })
    }

    /// The time until the first session expires, if any does.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        Some(self.first()?.instant().saturating_duration_since(now))
    }

    /// The connections whose sessions expire.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn keys(&self) -> Vec<Key> {
        let queue = lock(&self.queue);
        assert_eq!(queue.by_time.len(), queue.by_key.len());
        let first = queue.by_time.first();
        assert_eq!(first.map(|&(first, _)| first), self.first());
        queue.by_key.keys().copied().collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_rounded_up_by_less_than_a_step() {
        let start = Expiry::epoch();
        for ms in [1, 124, 125, 126, 1_000, 86_400_000] {
            let instant = start + Duration::from_millis(ms);
            let expiry = Expiry::at(instant).unwrap();
            assert!(expiry.instant() >= instant, "{ms}");
            assert!(expiry.instant() < instant + STEP, "{ms}");
        }
    }

    #[test]
    fn expiry_in_the_past_is_due_and_in_the_far_future_never() {
        let hour = Duration::from_secs(3_600);
        let past = Expiry::at_time(SystemTime::now() - hour).unwrap();
        assert!(past.has_come(Instant::now() + STEP));
        let soon = Expiry::at_time(SystemTime::now() + hour).unwrap();
        assert!(!soon.has_come(Instant::now() + hour / 2));
        assert!(soon.has_come(Instant::now() + hour + STEP));
        assert_eq!(
            Expiry::at_time(SystemTime::now() + hour * 24 * 365 * 20),
            None
        );
    }

    fn key(slot: u32) -> Key {
        Key {
            slot,
            generation: 0,
        }
    }

    #[test]
    fn latest_expiry_of_a_connection_applies() {
        let start = Expiry::epoch();
        let at = |ms| Expiry::at(start + Duration::from_millis(ms));
        let expiries = Expiries::default();
        expiries.set(key(7), at(1_000));
        expiries.set(key(7), at(2_000));
        expiries.set(key(8), at(1_500));
        assert_eq!(expiries.keys(), [key(7), key(8)]);
        let now = start + Duration::from_millis(1_500);
        assert_eq!(expiries.wait(start), Some(Duration::from_millis(1_500)));
        assert_eq!(expiries.take_due(now), Some(key(8)));
        assert_eq!(expiries.take_due(now), None);
        expiries.set(key(7), None);
        assert_eq!((expiries.keys(), expiries.wait(now)), (Vec::new(), None));
    }

    #[test]
    fn shard_without_a_due_expiry_takes_no_lock() {
        let start = Expiry::epoch();
        let expiries = Expiries::default();
        expiries.set(key(1), Expiry::at(start + Duration::from_secs(100)));
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let expiries = &expiries;
            let held = lock(&expiries.queue);
            scope.spawn(move || sender.send((expiries.take_due(start), expiries.wait(start))));
            let seen = receiver.recv_timeout(Duration::from_secs(20));
            // Release the lock before the assertion, so that the thread ends even if it waits for the lock.
            drop(held);
            assert_eq!(seen, Ok((None, Some(Duration::from_secs(100)))));
        });
    }

    #[test]
    fn shard_is_notified_once_of_an_earlier_expiry() {
        let start = Expiry::epoch();
        let at = |s| Expiry::at(start + Duration::from_secs(s));
        let expiries = Expiries::default();
        assert!(expiries.set(key(1), at(100)));
        // The shard has not reacted to the first notification yet.
        assert!(!expiries.set(key(1), at(90)));
        expiries.clear_notified();
        assert!(!expiries.set(key(2), at(95)), "later than another");
        assert!(!expiries.set(key(1), at(120)), "a refresh");
        assert!(expiries.set(key(2), at(80)));
        // The expiries are removed and set again before the shard reacts.
        expiries.forget(key(1));
        expiries.set(key(2), None);
        expiries.clear_notified();
        assert!(expiries.set(key(2), at(80)));
    }
}
