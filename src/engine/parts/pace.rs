//! Limits how long producers wait for a slow client, with an account of the client's time, and how long they wait for
//! all clients that are disconnected in the end.
//!
//! While the client's outbox lacks space, its time decreases. Bytes that it reads add time at the minimum rate. So a
//! client that reads at that rate is never disconnected, a slower one runs out of time, and one that reads nothing has
//! exactly the patience. The account is kept until the client has caught up, so a client gains nothing by pausing just
//! short of the limit. Time in which the client read nothing before producers had to wait for it counts too.

use std::time::{Duration, Instant};

use crate::engine::parts::timers::Tick;

pub(crate) struct Pace {
    /// The time left when the account was last updated.
    left: Duration,
    /// How long producers have waited for the client.
    waited: Duration,
    /// The time without reading when the account was opened. Zero once the client reads.
    before: Duration,
    /// The tick since which the client's time decreases.
    since: Option<Tick>,
    /// When to try a write to its socket again.
    pub(crate) next_try: Tick,
    /// When the account was opened.
    opened: Tick,
    /// The tick since which its socket has accepted nothing.
    quiet_since: Tick,
    /// Whether its socket has accepted more than the kernel's buffers can hold.
    has_read: bool,
    patience: Duration,
    bytes_per_second_min: u64,
}

/// The maximum time that reading adds beyond the patience, as a multiple of the patience. TCP reports reading in steps,
/// of about 100 KB on loopback, so a slow reader seems to pause between two of them.
const CREDIT_PATIENCES: u32 = 2;

/// The number of attempts to write within the patience. They are needed because readiness is reported in even coarser
/// steps.
const TRIES_PER_PATIENCE: u32 = 8;

/// The number of those attempts in which even the socket of a client that reads nothing may accept bytes, because the
/// kernel's buffers grow.
const TRIES_OF_KERNEL: u32 = 3;

impl Pace {
    /// Opens the account of a client whose socket has taken nothing since `quiet_since`, if that is set.
    pub(crate) fn new(
        bytes_per_second_min: u64,
        patience: Duration,
        quiet_since: Option<Tick>,
        now: Tick,
    ) -> Self {
        let quiet_since = quiet_since.unwrap_or(now);
        Self {
            left: patience,
            waited: Duration::ZERO,
            before: now.since(quiet_since).min(patience),
            since: None,
            next_try: now,
            opened: now,
            quiet_since,
            has_read: false,
            patience,
            bytes_per_second_min: bytes_per_second_min.max(1),
        }
    }

    /// Starts the client's time, because its outbox lacks space. `allowance` limits the wait for a client that reads
    /// nothing. It decreases while producers have waited for clients that were disconnected.
    pub(crate) fn start(&mut self, allowance: Duration, now: Tick) {
        self.since.get_or_insert(now);
        self.tried(allowance, now);
    }

    /// Stops the client's time, because its outbox has space again.
    pub(crate) fn stop(&mut self, now: Tick) {
        self.run(now);
        self.since = None;
    }

    fn run(&mut self, now: Tick) {
        if let Some(since) = &mut self.since {
            let ran = now.since(*since);
            self.left = self.left.saturating_sub(ran);
            self.waited = self.waited.saturating_add(ran);
            *since = now;
        }
    }

    /// Credits bytes that its socket has taken.
    pub(crate) fn read(&mut self, bytes: usize, now: Tick) {
        self.run(now);
        self.before = Duration::ZERO;
        self.quiet_since = now;
        let age = now.since(self.opened);
        if age < self.patience / TRIES_PER_PATIENCE {
            // The kernel's buffers may have grown, so this does not show that the client reads.
            return;
        }
        self.has_read |= age > self.patience / TRIES_PER_PATIENCE * TRIES_OF_KERNEL;
        let seconds = bytes as f64 / self.bytes_per_second_min as f64;
        let credit = self.patience.saturating_mul(CREDIT_PATIENCES);
        let bought =
            Duration::try_from_secs_f64(seconds).map_or(credit, |bought| bought.min(credit));
        let most = self.patience.saturating_add(credit);
        self.left = self.left.saturating_add(bought).min(most);
    }

    /// Records that a write to its socket was tried.
    pub(crate) fn tried(&mut self, allowance: Duration, now: Tick) {
        self.run(now);
        // The deadline comes before the next try if the time ends earlier.
        let unread = self.patience.saturating_sub(self.waited);
        let left = if self.has_read {
            self.left
        } else {
            self.left.min(unread)
        };
        let wait = (self.patience / TRIES_PER_PATIENCE)
            .min(allowance)
            .min(left.saturating_sub(self.before));
        self.next_try = now.after(wait);
    }

    /// Returns when to check the client next, while its time decreases.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.since.map(|_| self.next_try)
    }

    /// Returns whether the client has no time left.
    pub(crate) fn is_used_up(&mut self, allowance: Duration, now: Tick) -> bool {
        self.run(now);
        let waited = self.waited.saturating_add(self.before);
        self.left <= self.before
            || (!self.has_read && waited >= self.patience)
            || (allowance < self.patience && now.since(self.quiet_since) >= allowance)
    }

    /// Returns the wasted wait of producers if the client is disconnected now. The client's reading reduces it.
    pub(crate) fn in_vain(&mut self, now: Tick) -> Duration {
        self.run(now);
        if self.has_read {
            self.patience.saturating_sub(self.left)
        } else {
            self.waited
        }
    }

    /// How long producers have waited for the client.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }
}

/// The time that producers have wasted by waiting for clients that were disconnected in the end. Each such wait
/// shortens the next one, so that a sequence of many such clients can't delay producers for long.
#[derive(Default)]
pub(crate) struct WastedWaits {
    waited: Duration,
    /// The time of the last update of `waited`, up to which waits have been counted.
    at: Option<Instant>,
}

/// Wasted waits decrease this many times slower than they accumulated.
const FORGOTTEN_IN: u32 = 8;

/// The shortest wait is the patience divided by this.
const SHORTEST: u32 = 16;

impl WastedWaits {
    fn waited(&self, now: Instant) -> Duration {
        let past = self.at.map_or(Duration::ZERO, |at| {
            now.saturating_duration_since(at) / FORGOTTEN_IN
        });
        self.waited.saturating_sub(past)
    }

    /// Returns how long producers wait now for a client that reads nothing: the patience minus half of the wasted
    /// waits. So consecutive waits add up to twice the patience, and each further client adds a sixteenth of it.
    pub(crate) fn allowance(&self, patience: Duration, now: Instant) -> Duration {
        let shorter = patience.saturating_sub(self.waited(now) / 2);
        shorter.max(patience / SHORTEST)
    }

    /// Counts producers' wait for a client that is now disconnected. Simultaneous waits count once.
    pub(crate) fn add(&mut self, waited: Duration, patience: Duration, now: Instant) {
        let uncounted = self
            .at
            .map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let sum = self.waited(now).saturating_add(waited.min(uncounted));
        self.waited = sum.min(patience.saturating_mul(2));
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::parts::timers::Timers;

    const PATIENCE: Duration = Duration::from_secs(1);

    /// Returns the time after which a client is disconnected that reads this many bytes at this interval, with a
    /// minimum rate of 1,000 bytes per second.
    fn lasts(bytes: usize, every: Duration) -> Option<Duration> {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let mut pace = Pace::new(1_000, PATIENCE, None, timers.now(epoch));
        pace.start(PATIENCE, timers.now(epoch));
        let mut next_read = every;
        for ms in (0..300_000).step_by(8) {
            let at = Duration::from_millis(ms);
            let now = timers.now(epoch + at);
            if at >= next_read {
                pace.read(bytes, now);
                next_read += every;
            }
            if pace.is_used_up(PATIENCE, now) {
                return Some(at);
            }
        }
        None
    }

    #[test]
    fn client_that_does_not_read_gets_its_patience_only() {
        assert_eq!(
            lasts(0, Duration::from_secs(1)),
            Some(Duration::from_secs(1))
        );
    }

    #[test]
    fn bytes_in_kernel_buffers_do_not_count_as_read() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, PATIENCE, None, at(0));
        pace.start(PATIENCE, at(0));
        pace.read(1_000_000, at(10));
        pace.read(1_000_000, at(96));
        assert!(!pace.is_used_up(PATIENCE, at(992)));
        assert!(pace.is_used_up(PATIENCE, at(1_000)));
    }

    #[test]
    fn client_below_the_minimum_rate_runs_out_of_time() {
        assert_eq!(lasts(100, Duration::from_millis(96)), None);
        let below = lasts(80, Duration::from_millis(96)).unwrap();
        assert!(
            below > Duration::from_secs(4) && below < Duration::from_secs(8),
            "{below:?}"
        );
    }

    #[test]
    fn client_reading_in_steps_longer_than_the_patience_goes_on() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, PATIENCE, None, at(0));
        pace.start(PATIENCE, at(0));
        pace.read(100_000, at(400));
        assert!(!pace.is_used_up(PATIENCE, at(2_400)));
        pace.read(100_000, at(2_400));
        assert!(!pace.is_used_up(PATIENCE, at(4_400)));
        // This is the maximum delay, however much the client has read before.
        assert!(!pace.is_used_up(PATIENCE, at(4_992)));
        assert!(pace.is_used_up(PATIENCE, at(5_000)));
    }

    #[test]
    fn client_time_runs_only_while_its_outbox_is_short_of_room() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, PATIENCE, None, at(0));
        for second in 0..10 {
            pace.start(PATIENCE, at(1_000 * second));
            assert!(!pace.is_used_up(PATIENCE, at(1_000 * second + 96)));
            pace.stop(at(1_000 * second + 96));
            assert_eq!(pace.deadline(), None);
        }
        pace.start(PATIENCE, at(10_000));
        assert!(pace.is_used_up(PATIENCE, at(10_080)));
    }

    #[test]
    fn late_growth_of_kernel_buffers_buys_no_time() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        for grown_at in [0, 8, 128, 248, 368] {
            let mut pace = Pace::new(1_000, PATIENCE, None, at(0));
            pace.start(PATIENCE, at(0));
            pace.read(300_000, at(grown_at));
            assert!(!pace.is_used_up(PATIENCE, at(992)), "{grown_at}");
            assert!(pace.is_used_up(PATIENCE, at(1_000)), "{grown_at}");
        }
    }

    #[test]
    fn time_without_reading_counts_from_before_producers_wait() {
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let at = |ms| timers.now(epoch + Duration::from_millis(ms));
        let mut pace = Pace::new(1_000, PATIENCE, Some(at(0)), at(600));
        pace.start(PATIENCE, at(600));
        assert!(!pace.is_used_up(PATIENCE, at(992)));
        assert!(pace.is_used_up(PATIENCE, at(1_000)));
        // A client that has not read for longer is checked at once, and stays if its socket accepts anything.
        let mut pace = Pace::new(1_000, PATIENCE, Some(at(0)), at(5_000));
        pace.start(PATIENCE, at(5_000));
        assert_eq!(pace.deadline(), Some(at(5_000)));
        pace.read(1, at(5_008));
        assert!(!pace.is_used_up(PATIENCE, at(5_992)));
        assert!(pace.is_used_up(PATIENCE, at(6_000)));
    }

    #[test]
    fn consecutive_waits_in_vain_are_bounded() {
        let mut in_vain = WastedWaits::default();
        let mut now = Instant::now();
        let start = now;
        for _ in 0..60 {
            let wait = in_vain.allowance(PATIENCE, now);
            now += wait;
            in_vain.add(wait, PATIENCE, now);
        }
        let sum = now - start;
        assert!(sum < PATIENCE * 2 + 60 * PATIENCE / SHORTEST, "{sum:?}");
        // Simultaneous waits count once.
        let mut in_vain = WastedWaits::default();
        for _ in 0..60 {
            in_vain.add(PATIENCE, PATIENCE, now);
        }
        assert_eq!(in_vain.allowance(PATIENCE, now), PATIENCE / 2);
        // Waits are forgotten in time.
        now += PATIENCE * FORGOTTEN_IN;
        assert_eq!(in_vain.allowance(PATIENCE, now), PATIENCE);
    }
}
