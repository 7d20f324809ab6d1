//! Deadlines of a shard's connections.
//!
//! Time is an argument, and counts as far as the shard has lived through it: while the process is stopped, the virtual machine
//! paused or the thread not scheduled, no peer is heard, so none is judged for its silence. The shard's clock leaves such
//! time out, which moves all deadlines at once.
//!
//! A connection has at most one entry that counts; where its deadline moved on meanwhile, the
//! entry fires for nothing and is set anew, so that activity costs no timer work at all.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// A point in time, in steps of [`TICK`] since the shard started. Now is rounded down and waits are rounded up, so a
/// deadline is met to within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(
    /// One more than the steps, so that a connection's lack of a deadline takes no memory.
    NonZeroU64,
);

/// Coarse enough that thousands of connections share few entries, fine enough for a patience of a second.
const TICK: Duration = Duration::from_millis(8);
/// A whole number: so seconds and the rest are counted apart, which is quick.
const TICKS_PER_SECOND: u64 = 125;
const _: () = assert!(TICKS_PER_SECOND * TICK.subsec_nanos() as u64 == 1_000_000_000);

impl Tick {
    /// Beyond all time.
    pub(crate) const NEVER: Self = Self(NonZeroU64::MAX);

    fn of_steps(steps: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(steps))
    }

    fn steps(self) -> u64 {
        self.0.get() - 1
    }

    /// The tick that lies so much later, or none if that is beyond all time.
    pub(crate) fn after(self, wait: Duration) -> Tick {
        let steps = u64::from(wait.subsec_nanos().div_ceil(TICK.subsec_nanos()));
        let seconds = wait.as_secs().saturating_mul(TICKS_PER_SECOND);
        Tick(self.0.saturating_add(seconds.saturating_add(steps)))
    }

    /// How long ago `earlier` was.
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        let steps = self.steps().saturating_sub(earlier.steps());
        Duration::from_millis(steps.saturating_mul(TICK.as_millis() as u64))
    }
}

/// A shard that wakes so much later than it meant to, or takes so long for a turn, has stood still.
const STANDSTILL: Duration = Duration::from_millis(250);
/// After a standstill the clock rests for so long, in which what has come meanwhile is read. One that follows before the
/// clock has gone for as long is of the same row.
const REST: Duration = Duration::from_secs(1);
/// As when a laptop wakes for moments only. More of them in a row are a machine that is too slow: then what a sleep was
/// meant to last counts. A turn may take long because there is much to do, so of a row the first alone is left out. Were all
/// such time left out, peers could live for ever on a shard that is always late.
const IN_A_ROW_MAX: u32 = 8;

/// The time that a shard has lived through.
struct Clock {
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
    fn new(epoch: Instant) -> Self {
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

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
            .saturating_sub(self.left_out)
    }

    /// Time has gone by: in a sleep, if one was announced, or else in a turn.
    fn go_on(&mut self, now: Instant) {
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

/// The deadlines, and the clock that they are counted from.
pub(crate) struct Timers {
    clock: Clock,
    queue: BTreeMap<Tick, Vec<u32>>,
}

impl Timers {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            clock: Clock::new(epoch),
            queue: BTreeMap::new(),
        }
    }

    /// A turn begins or ends, or a sleep does: notices if it took longer than it should.
    pub(crate) fn go_on(&mut self, now: Instant) {
        self.clock.go_on(now);
    }

    /// The shard sleeps until the next [`Timers::go_on`], for so long or until it is woken.
    pub(crate) fn sleep(&mut self, wait: Option<Duration>) {
        self.clock.sleep = Some(wait.unwrap_or(Duration::MAX));
    }

    /// The tick that has been reached at an instant.
    pub(crate) fn now(&self, now: Instant) -> Tick {
        let elapsed = self.clock.elapsed(now);
        let steps = u64::from(elapsed.subsec_nanos() / TICK.subsec_nanos());
        Tick::of_steps(elapsed.as_secs() * TICKS_PER_SECOND + steps)
    }

    /// Has `slot` looked at when the time comes.
    pub(crate) fn schedule(&mut self, at: Tick, slot: u32) {
        if at != Tick::NEVER {
            self.queue.entry(at).or_default().push(slot);
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn is_scheduled(&self, at: Tick, slot: u32) -> bool {
        self.queue
            .get(&at)
            .is_some_and(|slots| slots.contains(&slot))
    }

    /// Takes the next entry that is due.
    pub(crate) fn expired(&mut self, now: Tick) -> Option<(Tick, u32)> {
        let mut first = self.queue.first_entry()?;
        let at = *first.key();
        if at > now {
            return None;
        }
        let slot = first.get_mut().pop();
        if first.get().is_empty() {
            first.remove();
        }
        slot.map(|slot| (at, slot))
    }

    /// How long until something is due.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let (at, _) = self.queue.first_key_value()?;
        let at = Duration::from_millis(at.steps().saturating_mul(TICK.as_millis() as u64));
        let left = at.saturating_sub(self.clock.elapsed(now));
        Some(left.saturating_add(self.clock.rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fire_in_order_when_their_time_has_come_and_not_before() {
        let epoch = Instant::now();
        let mut timers = Timers::new(epoch);
        let start = timers.now(epoch);
        timers.schedule(start.after(Duration::from_millis(100)), 1);
        timers.schedule(start.after(Duration::from_millis(50)), 2);
        timers.schedule(start.after(Duration::from_millis(50)), 3);
        assert_eq!(timers.wait(epoch), Some(Duration::from_millis(56)));
        assert_eq!(
            timers.expired(timers.now(epoch + Duration::from_millis(55))),
            None
        );
        let now = timers.now(epoch + Duration::from_millis(56));
        let mut due: Vec<u32> = std::iter::from_fn(|| timers.expired(now))
            .map(|(_, slot)| slot)
            .collect();
        due.sort_unstable();
        assert_eq!(due, [2, 3]);
        assert_eq!(
            timers
                .expired(timers.now(epoch + Duration::from_secs(1)))
                .map(|e| e.1),
            Some(1)
        );
        assert_eq!(timers.wait(epoch), None);
    }

    #[test]
    fn endless_waits_do_not_overflow() {
        let epoch = Instant::now();
        let mut timers = Timers::new(epoch);
        timers.schedule(timers.now(epoch).after(Duration::MAX), 1);
        assert_eq!(timers.wait(epoch), None);
    }

    /// Seconds that go by on a clock in so many turns of such a length, each behind a sleep of another.
    fn lived(turns: u32, turn: Duration, sleep: Duration, meant: Option<Duration>) -> Duration {
        let epoch = Instant::now();
        let mut clock = Clock::new(epoch);
        let mut now = epoch;
        for _ in 0..turns {
            now += turn;
            clock.go_on(now);
            clock.sleep = Some(meant.unwrap_or(sleep));
            now += sleep;
            clock.go_on(now);
        }
        clock.elapsed(now)
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
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
    fn clock_rests_after_a_standstill_and_then_goes_on() {
        let epoch = Instant::now();
        let mut timers = Timers::new(epoch);
        timers.schedule(timers.now(epoch).after(ms(2_000)), 1);
        timers.sleep(timers.wait(epoch));
        let woken = epoch + ms(18_000);
        timers.go_on(woken);
        assert_eq!(timers.wait(woken), Some(ms(3_000)));
        let mut timers = Timers::new(epoch);
        timers.schedule(timers.now(epoch).after(ms(2_000)), 1);
        // Stopped in a turn.
        timers.go_on(woken);
        assert_eq!(timers.wait(woken), Some(ms(3_000)));
        timers.sleep(Some(ms(500)));
        timers.go_on(woken + ms(500));
        assert_eq!(timers.wait(woken + ms(500)), Some(ms(2_500)));
        timers.go_on(woken + ms(700));
        timers.sleep(Some(ms(2_300)));
        timers.go_on(woken + ms(3_000));
        assert_eq!(timers.wait(woken + ms(3_000)), Some(ms(0)));
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
