//! Deadlines of a shard's connections.
//!
//! Time is an argument, and counts as far as the shard has lived through it (`clock`).
//!
//! A connection has at most one entry that counts; where its deadline moved on meanwhile, the
//! entry fires for nothing and is set anew, so that activity costs no timer work at all.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::engine::parts::clock::Clock;

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

    /// The time that bytes take at a rate, in whole steps, and the bytes that are left over.
    pub(crate) fn bought(bytes: u64, per_second: u64) -> (Duration, u64) {
        let steps =
            u128::from(bytes) * u128::from(TICKS_PER_SECOND) / u128::from(per_second.max(1));
        let used = (steps * u128::from(per_second)).div_ceil(u128::from(TICKS_PER_SECOND));
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        let time = Duration::from_millis(steps.saturating_mul(TICK.as_millis() as u64));
        let left = u128::from(bytes).saturating_sub(used);
        (time, u64::try_from(left).unwrap_or(0))
    }

    /// How long ago `earlier` was.
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        let steps = self.steps().saturating_sub(earlier.steps());
        Duration::from_millis(steps.saturating_mul(TICK.as_millis() as u64))
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
        self.clock.sleep(wait);
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
    pub(crate) fn is_scheduled(&self, at: Tick, slot: u32) -> bool {
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
        Some(self.clock.left(at, now))
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

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
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
}
