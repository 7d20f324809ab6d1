//! The deadlines of a shard's connections.
//!
//! Time is an argument, and excludes time in which the shard could not run (`clock`).
//!
//! A connection has at most one entry. If its deadline is postponed, the entry stays, fires early and is set again, so
//! that activity causes no timer work. If the deadline becomes earlier, the entry is moved.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::engine::parts::clock::Clock;

/// A point in time, in steps of [`TICK`] since the shard started. The current time is rounded down and waits are
/// rounded up, so a deadline is met to within one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(
    /// The number of steps plus one, so that `None` takes no memory.
    NonZeroU64,
);

/// Coarse enough that thousands of connections share few entries, fine enough for a timeout of a second.
const TICK: Duration = Duration::from_millis(8);

/// The number of steps in a second. It is a whole number, which makes conversions fast.
const TICKS_PER_SECOND: u64 = 125;

/// The bits of [`Tick::low_bits`].
const LOW_BITS: u32 = u32::MAX >> 1;

const _: () = assert!(TICKS_PER_SECOND * TICK.subsec_nanos() as u64 == 1_000_000_000);

impl Tick {
    /// Later than any time that can be reached.
    pub(crate) const NEVER: Self = Self(NonZeroU64::MAX);

    /// The earliest tick.
    #[cfg(all(test, not(loom)))]
    pub(crate) const FIRST: Self = Self(NonZeroU64::MIN);

    fn of_steps(steps: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(steps))
    }

    fn steps(self) -> u64 {
        self.0.get() - 1
    }

    /// The tick `wait` after this one, or [`Tick::NEVER`] if that can't be reached.
    pub(crate) fn after(self, wait: Duration) -> Tick {
        let steps = u64::from(wait.subsec_nanos().div_ceil(TICK.subsec_nanos()));
        let seconds = wait.as_secs().saturating_mul(TICKS_PER_SECOND);
        Tick(self.0.saturating_add(seconds.saturating_add(steps)))
    }

    /// The time that bytes take at a rate, in whole steps, and the bytes that remain.
    pub(crate) fn bought(bytes: u64, per_second: u64) -> (Duration, u64) {
        let steps =
            u128::from(bytes) * u128::from(TICKS_PER_SECOND) / u128::from(per_second.max(1));
        let used = (steps * u128::from(per_second)).div_ceil(u128::from(TICKS_PER_SECOND));
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        let time = Duration::from_millis(steps.saturating_mul(TICK.as_millis() as u64));
        let left = u128::from(bytes).saturating_sub(used);
        (time, u64::try_from(left).unwrap_or(0))
    }

    /// The time since an earlier tick.
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        let steps = self.steps().saturating_sub(earlier.steps());
        Duration::from_millis(steps.saturating_mul(TICK.as_millis() as u64))
    }

    /// The low 31 bits of the number of steps, for values of which there are many.
    pub(crate) fn low_bits(self) -> u32 {
        self.steps() as u32 & LOW_BITS
    }

    /// The time since an earlier tick of which only [`Tick::low_bits`] are known, up to 99 days.
    pub(crate) fn since_low_bits(self, earlier: u32) -> Duration {
        let steps = self.low_bits().wrapping_sub(earlier) & LOW_BITS;
        // More than half of the range: the other tick is later.
        let steps = if steps > LOW_BITS / 2 { 0 } else { steps };
        TICK * steps
    }
}

/// The deadlines of a shard, and its clock.
pub(crate) struct Timers {
    clock: Clock,
    /// The first slot of each tick that has entries. The others are linked to it.
    queue: BTreeMap<Tick, u32>,
    /// The neighbours of each slot in its tick's list; meaningless for a slot without an entry.
    links: Vec<Neighbours>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Neighbours {
    previous: u32,
    next: u32,
}

/// Marks the end of a list.
const NONE: u32 = u32::MAX;

impl Timers {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            clock: Clock::new(epoch),
            queue: BTreeMap::new(),
            links: Vec::new(),
            len: 0,
        }
    }

    /// The number of connections that have an entry.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Counts the time that has passed in a turn or a sleep, and notices a standstill.
    pub(crate) fn advance(&mut self, now: Instant) {
        self.clock.advance(now);
    }

    /// Announces a sleep until the next [`Timers::advance`], of the planned length at most.
    pub(crate) fn sleep(&mut self, wait: Option<Duration>) {
        self.clock.sleep(wait);
    }

    /// The tick at an instant.
    pub(crate) fn now(&self, now: Instant) -> Tick {
        let elapsed = self.clock.elapsed(now);
        let steps = u64::from(elapsed.subsec_nanos() / TICK.subsec_nanos());
        Tick::of_steps(elapsed.as_secs() * TICKS_PER_SECOND + steps)
    }

    /// Schedules a look at `slot`. `entry` is its current entry, which is moved.
    pub(crate) fn schedule(&mut self, slot: u32, entry: &mut Option<Tick>, at: Tick) {
        self.cancel(slot, entry);
        if at == Tick::NEVER {
            return;
        }
        if self.links.len() <= slot as usize {
            let unlinked = Neighbours {
                previous: NONE,
                next: NONE,
            };
            self.links.resize(slot as usize + 1, unlinked);
        }
        let next = self.queue.insert(at, slot).unwrap_or(NONE);
        self.links[slot as usize] = Neighbours {
            previous: NONE,
            next,
        };
        if next != NONE {
            self.links[next as usize].previous = slot;
        }
        self.len += 1;
        *entry = Some(at);
    }

    /// Removes the entry of `slot`, if it has one.
    pub(crate) fn cancel(&mut self, slot: u32, entry: &mut Option<Tick>) {
        let Some(at) = entry.take() else {
            return;
        };
        let Neighbours { previous, next } = self.links[slot as usize];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous != NONE {
            self.links[previous as usize].next = next;
        } else if next != NONE {
            self.queue.insert(at, next);
        } else {
            self.queue.remove(&at);
        }
        self.len -= 1;
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn is_scheduled(&self, at: Tick, slot: u32) -> bool {
        let mut next = self.queue.get(&at).copied().unwrap_or(NONE);
        while next != NONE && next != slot {
            next = self.links[next as usize].next;
        }
        next == slot
    }

    /// The next slot whose entry is due. The entry stays until it is cancelled.
    pub(crate) fn due(&self, now: Tick) -> Option<u32> {
        let (&at, &slot) = self.queue.first_key_value()?;
        (at <= now).then_some(slot)
    }

    /// The time until the next entry is due.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let (at, _) = self.queue.first_key_value()?;
        let at = Duration::from_millis(at.steps().saturating_mul(TICK.as_millis() as u64));
        Some(self.clock.left(at, now))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Timers, and the entry of each slot.
    struct TimersTest {
        timers: Timers,
        entries: Vec<Option<Tick>>,
    }

    impl TimersTest {
        fn new(epoch: Instant) -> Self {
            Self {
                timers: Timers::new(epoch),
                entries: vec![None; 16],
            }
        }

        fn schedule(&mut self, at: Tick, slot: u32) {
            self.timers
                .schedule(slot, &mut self.entries[slot as usize], at);
        }

        fn expired(&mut self, now: Tick) -> Option<u32> {
            let slot = self.timers.due(now)?;
            self.timers.cancel(slot, &mut self.entries[slot as usize]);
            Some(slot)
        }
    }

    #[test]
    fn slot_has_one_timer_entry_when_its_deadline_moves() {
        let epoch = Instant::now();
        let mut test = TimersTest::new(epoch);
        let start = test.timers.now(epoch);
        let at = |step: u64| start.after(Duration::from_millis(8 * step));
        let mut model = [None; 16];
        for step in 0..20_000_u64 {
            let slot = (step * 7_919 % 16) as u32;
            let tick = at(1 + step * 31 % 9);
            if step % 5 == 0 {
                let entry = &mut test.entries[slot as usize];
                test.timers.cancel(slot, entry);
                model[slot as usize] = None;
            } else {
                test.schedule(tick, slot);
                model[slot as usize] = Some(tick);
            }
            assert_eq!(test.entries, model);
            assert_eq!(test.timers.len(), model.iter().flatten().count());
            for (slot, entry) in (0..).zip(model) {
                for tick in (1..10).map(at) {
                    let expected = entry == Some(tick);
                    assert_eq!(test.timers.is_scheduled(tick, slot), expected);
                }
            }
        }
        let mut last = start;
        while let Some(slot) = test.expired(at(10)) {
            let due = model[slot as usize].take().unwrap();
            assert!(last <= due);
            last = due;
        }
        assert_eq!(model, [None; 16]);
        assert_eq!(test.timers.wait(epoch), None);
    }

    #[test]
    fn timer_entries_fire_in_order_and_never_early() {
        let epoch = Instant::now();
        let mut test = TimersTest::new(epoch);
        let start = test.timers.now(epoch);
        test.schedule(start.after(Duration::from_millis(100)), 1);
        test.schedule(start.after(Duration::from_millis(50)), 2);
        test.schedule(start.after(Duration::from_millis(50)), 3);
        assert_eq!(test.timers.wait(epoch), Some(Duration::from_millis(56)));
        assert_eq!(
            test.expired(test.timers.now(epoch + Duration::from_millis(55))),
            None
        );
        let now = test.timers.now(epoch + Duration::from_millis(56));
        let mut due: Vec<u32> = std::iter::from_fn(|| test.expired(now)).collect();
        due.sort_unstable();
        assert_eq!(due, [2, 3]);
        assert_eq!(
            test.expired(test.timers.now(epoch + Duration::from_secs(1))),
            Some(1)
        );
        assert_eq!(test.timers.wait(epoch), None);
    }

    #[test]
    fn timers_with_endless_waits_do_not_overflow() {
        let epoch = Instant::now();
        let mut test = TimersTest::new(epoch);
        test.schedule(test.timers.now(epoch).after(Duration::MAX), 1);
        assert_eq!(test.timers.wait(epoch), None);
    }

    #[test]
    fn age_from_low_bits_is_exact_up_to_99_days() {
        const DAY: Duration = Duration::from_secs(86_400);
        for start in [Duration::ZERO, DAY * 100, DAY * 198, DAY * 4_000] {
            let then = Tick::FIRST.after(start);
            for age in [Duration::ZERO, ms(8), ms(30_000), DAY * 99] {
                let now = then.after(age);
                assert_eq!(now.since_low_bits(then.low_bits()), age, "{start:?}");
            }
            // A clock never runs backwards; if it did, nothing would look old.
            assert_eq!(
                then.since_low_bits(then.after(ms(8)).low_bits()),
                Duration::ZERO
            );
        }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn clock_after_a_standstill_rests_and_then_advances() {
        let epoch = Instant::now();
        let mut test = TimersTest::new(epoch);
        test.schedule(test.timers.now(epoch).after(ms(2_000)), 1);
        test.timers.sleep(test.timers.wait(epoch));
        let woken = epoch + ms(18_000);
        test.timers.advance(woken);
        assert_eq!(test.timers.wait(woken), Some(ms(3_000)));
        let mut test = TimersTest::new(epoch);
        test.schedule(test.timers.now(epoch).after(ms(2_000)), 1);
        // Stopped inside a turn.
        test.timers.advance(woken);
        assert_eq!(test.timers.wait(woken), Some(ms(3_000)));
        test.timers.sleep(Some(ms(500)));
        test.timers.advance(woken + ms(500));
        assert_eq!(test.timers.wait(woken + ms(500)), Some(ms(2_500)));
        test.timers.advance(woken + ms(700));
        test.timers.sleep(Some(ms(2_300)));
        test.timers.advance(woken + ms(3_000));
        assert_eq!(test.timers.wait(woken + ms(3_000)), Some(ms(0)));
    }
}
