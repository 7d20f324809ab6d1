//! A clock that excludes time in which the process could not run.
//!
//! While the process is stopped, its machine sleeps, or the thread is not scheduled, it reads nothing from its peers,
//! so their silence proves nothing. Deadlines use this clock, so such time postpones all of them.

use std::time::{Duration, Instant};

/// A thread that wakes this much later than planned, or needs this long for a turn, has stood still.
const STANDSTILL: Duration = Duration::from_millis(250);

/// After a standstill, the clock pauses for this long, so that data which arrived in the meantime is read first.
/// Another standstill belongs to the same series unless the clock has run for this long in between.
const REST: Duration = Duration::from_secs(1);

/// The maximum number of standstills in a series that are excluded in full, for example while a laptop wakes for
/// moments only. In a longer series, the machine is too slow, and the planned part of each sleep counts. A long turn
/// may be caused by much work, so only the first one of a series is excluded. Otherwise, no deadline would ever pass on
/// a thread that is always late.
const IN_A_ROW_MAX: u32 = 8;

/// Counts the time that a thread has run, which alternates between turns and sleeps.
pub(crate) struct Clock {
    epoch: Instant,
    /// When the clock was last read.
    seen: Instant,
    /// The excluded time since the epoch.
    excluded: Duration,
    /// How long the thread plans to sleep, if it sleeps.
    sleep: Option<Duration>,
    /// The remaining time of the current pause.
    rest: Duration,
    /// How long the clock has run since the last standstill.
    gone: Duration,
    /// The number of standstills in the current series.
    in_a_row: u32,
}

impl Clock {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            seen: epoch,
            excluded: Duration::ZERO,
            sleep: None,
            rest: Duration::ZERO,
            gone: REST,
            in_a_row: 0,
        }
    }

    /// The time that has counted so far.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
            .saturating_sub(self.excluded)
    }

    /// The time until `due` has counted.
    pub(crate) fn left(&self, due: Duration, now: Instant) -> Duration {
        let left = due.saturating_sub(self.elapsed(now));
        left.saturating_add(self.rest)
    }

    /// Announces a sleep until the next [`Clock::advance`], of the planned length at most. `None`: without end.
    pub(crate) fn sleep(&mut self, wait: Option<Duration>) {
        self.sleep = Some(wait.unwrap_or(Duration::MAX));
    }

    /// Counts the time that has passed: in a sleep if one was announced, or else in a turn.
    pub(crate) fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        let sleep = self.sleep.take();
        if passed < STANDSTILL && self.rest.is_zero() && self.gone >= REST {
            // The common case, twice in each turn: all of the time has counted.
            self.in_a_row = 0;
            return;
        }
        let sleep = sleep.unwrap_or_default();
        let excess = passed.saturating_sub(sleep);
        if self.gone >= REST {
            self.in_a_row = 0;
        }
        let is_asleep = !sleep.is_zero();
        let in_a_row_max = if is_asleep { IN_A_ROW_MAX } else { 1 };
        let not_lived = if excess < STANDSTILL {
            Duration::ZERO
        } else if self.in_a_row < in_a_row_max {
            // When the thread stopped is unknown. So the planned sleep does not count either: its deadline must not be
            // due as it wakes.
            if self.in_a_row == 0 {
                self.rest = REST;
            }
            self.in_a_row += 1;
            self.gone = Duration::ZERO;
            passed
        } else if is_asleep {
            excess
        } else {
            Duration::ZERO
        };
        let lived = passed - not_lived;
        let rested = self.rest.min(lived);
        self.rest -= rested;
        self.gone = self.gone.saturating_add(lived - rested);
        self.excluded = self.excluded.saturating_add(not_lived + rested);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Simulates turns of a given length, each after a sleep. Returns the seconds that the clock has counted.
    fn lived(turns: u32, turn: Duration, sleep: Duration, meant: Option<Duration>) -> Duration {
        let epoch = Instant::now();
        let mut clock = Clock::new(epoch);
        let mut now = epoch;
        for _ in 0..turns {
            now += turn;
            clock.advance(now);
            clock.sleep(Some(meant.unwrap_or(sleep)));
            now += sleep;
            clock.advance(now);
        }
        clock.elapsed(now)
    }

    #[test]
    fn clock_counts_turns_and_planned_sleeps() {
        let lived = lived(10, ms(100), ms(5_000), None);
        assert_eq!(lived, ms(51_000));
    }

    #[test]
    fn clock_excludes_sleeps_longer_than_planned() {
        let late = lived(1, ms(0), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(0));
        // The moments awake are too short to judge a peer by.
        let late = lived(IN_A_ROW_MAX, ms(0), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(0));
        let late = lived(IN_A_ROW_MAX, ms(100), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(100));
        // A sleep that ends early is no standstill.
        let early = lived(10, ms(0), ms(16_000), Some(Duration::MAX));
        assert_eq!(early, ms(160_000));
    }

    #[test]
    fn clock_of_a_shard_that_is_always_late_advances() {
        let turns = 1_000;
        for late in [250, 300, 1_000, 5_000, 60_000] {
            let sum = ms(late) * turns;
            let in_turns = lived(turns, ms(late), ms(0), None);
            assert!(in_turns * 4 >= sum, "{late}: {in_turns:?} of {sum:?}");
            let meant = ms(100);
            let in_sleeps = lived(turns, ms(0), meant + ms(late), Some(meant));
            assert!(in_sleeps * 4 >= meant * turns, "{late}: {in_sleeps:?}");
        }
    }
}
