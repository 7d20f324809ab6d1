//! How long producers wait for one client: a pure account of its time.
//!
//! While its outbox is short of room, time runs; what it reads buys it time at the least rate. So one that reads at
//! that rate goes on for ever, one that stays below it runs out, and one that does not read at all has its patience
//! and no more. The account is kept until the client has caught up: being short of room a little less than always
//! gains nothing.

use std::time::Duration;

use super::timers::Tick;

pub(super) struct Pace {
    /// Time it had left when the clock was last looked at.
    left: Duration,
    /// Since when the clock runs.
    since: Option<Tick>,
    /// When its socket is to be tried again.
    pub(super) next_try: Tick,
    /// When the account was opened.
    opened: Tick,
    patience: Duration,
    bytes_per_second_min: u64,
}

/// What a client reads buys it no more than so many times the patience, beyond it. TCP tells of reading in steps, of
/// about 100 KB on loopback, so a slow reader seems to stand still between two of them.
const CREDIT_PATIENCES: u32 = 2;

/// A socket is tried this often within the patience: readiness alone comes in steps that are coarser still.
const TRIES_PER_PATIENCE: u32 = 8;

impl Pace {
    pub(super) fn new(bytes_per_second_min: u64, patience: Duration, now: Tick) -> Self {
        Self {
            left: patience,
            since: None,
            next_try: now.after(patience / TRIES_PER_PATIENCE),
            opened: now,
            patience,
            bytes_per_second_min: bytes_per_second_min.max(1),
        }
    }

    /// It has become short of room: its time runs.
    pub(super) fn start(&mut self, now: Tick) {
        self.since.get_or_insert(now);
        self.tried(now);
    }

    /// It has room again.
    pub(super) fn stop(&mut self, now: Tick) {
        self.run(now);
        self.since = None;
    }

    fn run(&mut self, now: Tick) {
        if let Some(since) = &mut self.since {
            self.left = self.left.saturating_sub(now.since(*since));
            *since = now;
        }
    }

    /// Its socket has taken so much.
    pub(super) fn read(&mut self, bytes: usize, now: Tick) {
        self.run(now);
        if now.since(self.opened) < self.patience / TRIES_PER_PATIENCE {
            // That is the kernel, whose buffers still grow; not the client.
            return;
        }
        let seconds = bytes as f64 / self.bytes_per_second_min as f64;
        let credit = self.patience.saturating_mul(CREDIT_PATIENCES);
        let bought =
            Duration::try_from_secs_f64(seconds).map_or(credit, |bought| bought.min(credit));
        let most = self.patience.saturating_add(credit);
        self.left = self.left.saturating_add(bought).min(most);
    }

    /// Its socket has been tried.
    pub(super) fn tried(&mut self, now: Tick) {
        self.next_try = now.after(self.patience / TRIES_PER_PATIENCE);
    }

    /// When to look at it next, while its time runs.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.since.map(|_| self.next_try)
    }

    /// Whether it has no time left.
    pub(super) fn is_used_up(&mut self, now: Tick) -> bool {
        self.run(now);
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::timers::Timers;
    use super::*;

    /// Time that a client gets that reads so many bytes at a time, at such intervals, of 1,000 per second asked for.
    fn lasts(bytes: usize, every: Duration) -> Option<Duration> {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let mut pace = Pace::new(1_000, Duration::from_secs(1), timers.now(epoch));
        pace.start(timers.now(epoch));
        let mut next_read = every;
        for ms in (0..300_000).step_by(8) {
            let at = Duration::from_millis(ms);
            let now = timers.now(epoch + at);
            if at >= next_read {
                pace.read(bytes, now);
                next_read += every;
            }
            if pace.is_used_up(now) {
                return Some(at);
            }
        }
        None
    }

    #[test]
    fn who_does_not_read_has_its_patience_and_no_more() {
        assert_eq!(
            lasts(0, Duration::from_secs(1)),
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn what_the_kernel_takes_at_first_is_not_taken_for_reading() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, Duration::from_secs(1), at(0));
        pace.start(at(0));
        pace.read(1_000_000, at(10));
        pace.read(1_000_000, at(96));
        assert!(!pace.is_used_up(at(992)));
        assert!(pace.is_used_up(at(1_000)));
    }

    #[test]
    fn who_reads_at_the_least_rate_goes_on_and_who_stays_below_it_runs_out() {
        assert_eq!(lasts(100, Duration::from_millis(96)), None);
        let below = lasts(80, Duration::from_millis(96)).unwrap();
        assert!(
            below > Duration::from_secs(4) && below < Duration::from_secs(8),
            "{below:?}"
        );
    }

    #[test]
    fn steps_of_reading_that_are_longer_apart_than_the_patience_are_no_standstill() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, Duration::from_secs(1), at(0));
        pace.start(at(0));
        pace.read(100_000, at(200));
        assert!(!pace.is_used_up(at(2_200)));
        pace.read(100_000, at(2_200));
        assert!(!pace.is_used_up(at(4_200)));
        // But however much it has read, it does not hold up the others for longer than this.
        assert!(!pace.is_used_up(at(4_992)));
        assert!(pace.is_used_up(at(5_000)));
    }

    #[test]
    fn time_runs_only_while_there_is_no_room_and_is_not_given_back_by_a_moment_of_it() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, Duration::from_secs(1), at(0));
        for second in 0..10 {
            pace.start(at(1_000 * second));
            assert!(!pace.is_used_up(at(1_000 * second + 96)));
            pace.stop(at(1_000 * second + 96));
            assert_eq!(pace.deadline(), None);
        }
        pace.start(at(10_000));
        assert!(pace.is_used_up(at(10_080)));
    }
}
