//! Decides from measured durations whether a shard's handlers are quick enough for the shard's own thread.
//!
//! The time of long handlers accumulates as a debt, which decreases with time, so that a shard loses at most a
//! thirty-second of its time to them. If the debt is too large, or a handler takes so long that the spare thread takes
//! the shard over, handlers run in the pool for a while. If this happens again soon, that pause doubles, so repeated
//! attempts cost little under any load.

use std::time::{Duration, Instant};

/// A handler that takes longer delays its shard by more than a job in the pool would cost.
const LONG: Duration = match cfg!(humphrey_ws_patient) {
    true => Duration::from_secs(1),
    false => Duration::from_micros(20),
};

/// Long handlers may take one part in this many of a shard's time.
const SHARE: u32 = 32;

/// The largest debt.
const DEBT_MAX: Duration = Duration::from_millis(1);

/// The shortest and the longest pause in which handlers run in the pool.
const PAUSE_MIN: Duration = Duration::from_millis(100);

const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Handlers that were quick for this many times the last pause begin with the shortest pause again.
const PAUSES_QUICK: u32 = 4;

pub(crate) struct InlinePolicy {
    /// The debt at `debt_at`.
    debt: Duration,
    debt_at: Instant,
    quick_since: Instant,
    /// The end of the pause in which handlers run in the pool.
    paused_until: Option<Instant>,
    pause: Duration,
}

impl InlinePolicy {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            debt: Duration::ZERO,
            debt_at: now,
            quick_since: now,
            paused_until: None,
            pause: Duration::ZERO,
        }
    }

    /// Whether handlers should run on the shard's thread. A pause does not end while those in the pool are slow.
    pub(crate) fn is_quick(&mut self, now: Instant, pool_is_slow: impl FnOnce() -> bool) -> bool {
        if let Some(until) = self.paused_until {
            if now < until || pool_is_slow() {
                return false;
            }
            self.paused_until = None;
            self.quick_since = now;
        }
        true
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// Records a job that has run on the shard's thread.
    pub(crate) fn ran(&mut self, took: Duration, now: Instant) {
        if took <= LONG {
            return;
        }
        let paid = now.saturating_duration_since(self.debt_at) / SHARE;
        self.debt = self.debt.saturating_sub(paid) + took;
        self.debt_at = now;
        if self.debt > DEBT_MAX {
            self.begin_pause(now);
        }
    }

    /// Begins a pause, since handlers have taken too much time.
    pub(crate) fn begin_pause(&mut self, now: Instant) {
        let quick_for = now.saturating_duration_since(self.quick_since);
        self.pause = if quick_for > self.pause * PAUSES_QUICK {
            PAUSE_MIN
        } else {
            (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
        };
        self.debt = Duration::ZERO;
        self.paused_until = Some(now + self.pause);
    }

    /// Begins a short pause, since the shard can't be lent out at present.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.paused_until = Some(now + PAUSE_MIN);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Runs handlers of this duration one after the other, until the policy finds them slow or until `until`. Returns
    /// the time at the end.
    fn run(
        inline_policy: &mut InlinePolicy,
        mut now: Instant,
        took: Duration,
        until: Instant,
    ) -> Instant {
        while now < until && !inline_policy.is_paused() {
            now += took;
            inline_policy.ran(took, now);
        }
        now
    }

    #[test]
    fn handlers_are_quick_until_measured_slow() {
        let begin = Instant::now();
        let mut inline_policy = InlinePolicy::new(begin);
        let end = begin + ms(1_000);
        assert!(inline_policy.is_quick(begin, || true));
        assert_eq!(run(&mut inline_policy, begin, LONG, end), end);
        assert!(inline_policy.is_quick(end, || true));
        // A few handlers of a tenth of a millisecond exceed the debt.
        let now = run(&mut inline_policy, end, ms(1) / 10, end + ms(100));
        assert!(now - end <= ms(2), "{:?}", now - end);
        assert!(!inline_policy.is_quick(now, || false));
    }

    #[test]
    fn long_handlers_are_tolerated_up_to_their_share() {
        let begin = Instant::now();
        for (every, is_borne) in [(SHARE + 8, true), (SHARE - 8, false)] {
            let mut inline_policy = InlinePolicy::new(begin);
            let mut now = begin;
            for _ in 0..1_000 {
                now += ms(1) / 2 * every;
                inline_policy.ran(ms(1) / 2, now);
            }
            assert_eq!(!inline_policy.is_paused(), is_borne, "one part in {every}");
        }
    }

    #[test]
    fn repeated_slowness_doubles_the_pause_up_to_its_maximum() {
        let mut now = Instant::now();
        let mut inline_policy = InlinePolicy::new(now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert!(inline_policy.is_quick(now, || false));
            inline_policy.begin_pause(now);
            let begin = now;
            while !inline_policy.is_quick(now, || false) {
                now += ms(10);
            }
            pauses.push(now - begin);
        }
        assert_eq!(pauses[..3], [ms(100), ms(200), ms(400)]);
        assert_eq!(pauses[9], PAUSE_MAX);
        // After a long quick period, pauses begin with the shortest again.
        now += PAUSE_MAX * (PAUSES_QUICK + 1);
        inline_policy.begin_pause(now);
        assert!(inline_policy.is_quick(now + PAUSE_MIN, || false));
    }

    #[test]
    fn pause_does_not_end_while_the_pool_is_slow() {
        let now = Instant::now();
        let mut inline_policy = InlinePolicy::new(now);
        inline_policy.begin_pause(now);
        assert!(!inline_policy.is_quick(now + PAUSE_MAX, || true));
        assert!(inline_policy.is_quick(now + PAUSE_MAX, || false));
    }
}
