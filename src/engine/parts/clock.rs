//! A clock that leaves out the time in which nothing could run.
//!
//! While the process is stopped, its machine sleeps or is paused, or the thread is not scheduled, no peer is heard, so none
//! is to be judged for its silence. Deadlines are counted on a clock that such time does not count on: so all of them
//! move at once, however long it was.

use std::time::{Duration, Instant};

/// A thread that wakes so much later than it meant to, or takes so long for a turn, has stood still.
const STANDSTILL: Duration = Duration::from_millis(250);

/// After a standstill the clock rests for so long, in which what has come meanwhile is read. One that follows before the
/// clock has gone for as long is of the same row.
const REST: Duration = Duration::from_secs(1);

/// As when a laptop wakes for moments only. More of them in a row are a machine that is too slow: then what a sleep was
/// meant to last counts. A turn may take long because there is much to do, so of a row the first alone is left out. Were all
/// such time left out, peers could live for ever on a thread that is always late.
const IN_A_ROW_MAX: u32 = 8;

/// The time that a thread has lived through, which sleeps, and works in turns.
pub(crate) struct Clock {
    epoch: Instant,
    /// When it was last looked at.
    seen: Instant,
    /// What of the time since the epoch does not count.
    left_out: Duration,
    /// For how long the shard means to sleep, if it does.
    sleep: Option<Duration>,
    /// For how long the clock still rests.
    rest: Duration,
    /// For how long it has gone since the last standstill.
    gone: Duration,
    /// Standstills between which it has not gone for long.
    in_a_row: u32,
}

impl Clock {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            seen: epoch,
            left_out: Duration::ZERO,
            sleep: None,
            rest: Duration::ZERO,
            gone: REST,
            in_a_row: 0,
        }
    }

    /// How much time counts so far.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
            .saturating_sub(self.left_out)
    }

    /// How long until that much time has counted.
    pub(crate) fn left(&self, due: Duration, now: Instant) -> Duration {
        let left = due.saturating_sub(self.elapsed(now));
        left.saturating_add(self.rest)
    }

    /// The thread sleeps until it next calls [`Clock::go_on`], for so long or until it is woken. None: for ever.
    pub(crate) fn sleep(&mut self, wait: Option<Duration>) {
        self.sleep = Some(wait.unwrap_or(Duration::MAX));
    }

    /// Time has gone by: in a sleep, if one was announced, or else in a turn.
    pub(crate) fn go_on(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        let sleep = self.sleep.take().unwrap_or_default();
        let excess = passed.saturating_sub(sleep);
        if self.gone >= REST {
            self.in_a_row = 0;
        }
        let is_asleep = !sleep.is_zero();
        let in_a_row_max = if is_asleep { IN_A_ROW_MAX } else { 1 };
        let not_lived = if excess < STANDSTILL {
            Duration::ZERO
        } else if self.in_a_row < in_a_row_max {
            // When it stopped is not known. What it slept for is not to be due as it wakes.
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
        self.left_out = self.left_out.saturating_add(not_lived + rested);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Seconds that go by on a clock in so many turns of such a length, each behind a sleep of another.
    fn lived(turns: u32, turn: Duration, sleep: Duration, meant: Option<Duration>) -> Duration {
        let epoch = Instant::now();
        let mut clock = Clock::new(epoch);
        let mut now = epoch;
        for _ in 0..turns {
            now += turn;
            clock.go_on(now);
            clock.sleep(Some(meant.unwrap_or(sleep)));
            now += sleep;
            clock.go_on(now);
        }
        clock.elapsed(now)
    }

    #[test]
    fn clock_counts_turns_and_sleeps_as_meant() {
        let lived = lived(10, ms(100), ms(5_000), None);
        assert_eq!(lived, ms(51_000));
    }

    #[test]
    fn clock_leaves_out_sleeps_that_were_longer_than_meant() {
        let late = lived(1, ms(0), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(0));
        // Moments awake are not enough to be judged by.
        let late = lived(IN_A_ROW_MAX, ms(0), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(0));
        let late = lived(IN_A_ROW_MAX, ms(100), ms(16_000), Some(ms(2_000)));
        assert_eq!(late, ms(100));
        // Being woken early is no standstill.
        let early = lived(10, ms(0), ms(16_000), Some(Duration::MAX));
        assert_eq!(early, ms(160_000));
    }

    #[test]
    fn clock_of_a_shard_that_is_always_late_still_goes() {
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
