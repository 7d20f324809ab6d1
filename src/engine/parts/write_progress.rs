//! How long a client may take to read what waits for it: a pure account of its time.
//!
//! A client begins with a fixed time. Bytes that it reads buy more at the minimum rate, up to the time that it began
//! with. So a client that reads nothing is disconnected when its time is over, one that reads a byte now and then not
//! much later, and one that reads at the minimum rate can go on for ever.

use std::time::Duration;

use crate::engine::parts::timers::Tick;
use crate::limits::Limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteProgress {
    /// When its time is over.
    pub(crate) deadline: Tick,
    /// Bytes that have not bought a whole tick yet.
    unpaid: u64,
    /// Since when the client has taken nothing.
    pub(crate) quiet_since: Tick,
}

impl WriteProgress {
    pub(crate) fn new(now: Tick, timeout: Duration) -> Self {
        Self {
            deadline: now.after(timeout),
            unpaid: 0,
            quiet_since: now,
        }
    }

    /// Excludes the time from `paused` to `now`, in which there was nothing to send.
    pub(crate) fn resume(&mut self, paused: Tick, now: Tick) {
        self.deadline = self.deadline.after(now.since(paused));
        self.quiet_since = now;
    }

    /// Credits bytes that the client has taken.
    pub(crate) fn took(&mut self, bytes: usize, now: Tick, timeout: Duration, limits: &Limits) {
        self.quiet_since = now;
        let most = now.after(timeout);
        let rate = limits.write_bytes_per_second_min;
        if rate == 0 {
            self.deadline = most;
            return;
        }
        let bytes = self.unpaid.saturating_add(bytes as u64);
        let (bought, unpaid) = Tick::bought(bytes, rate);
        self.unpaid = unpaid;
        let deadline = self.deadline.after(bought);
        if deadline >= most {
            *self = Self::new(now, timeout);
        } else {
            self.deadline = deadline;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::parts::timers::Timers;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// How long a client lasts that takes this many bytes at such intervals; `None`: an hour or more.
    fn lasts(bytes: usize, every: Duration, rate: u64) -> Option<Duration> {
        let limits = Limits {
            write_bytes_per_second_min: rate,
            ..Limits::default()
        };
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let mut drain = WriteProgress::new(timers.now(epoch), TIMEOUT);
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(3_600) {
            at += every;
            let now = timers.now(epoch + at);
            if drain.deadline <= now {
                return Some(at);
            }
            drain.took(bytes, now, TIMEOUT, &limits);
        }
        None
    }

    #[test]
    fn reader_below_the_minimum_rate_ends_soon_after_the_timeout() {
        let second = Duration::from_secs(1);
        for (bytes, every) in [
            (1, 29 * second),
            (1, second),
            (1, second / 100),
            (500, second),
        ] {
            let lasted = lasts(bytes, every, 1_024).unwrap();
            assert!(
                lasted >= TIMEOUT && lasted <= 2 * TIMEOUT,
                "{bytes}: {lasted:?}"
            );
        }
    }

    #[test]
    fn reader_in_steps_at_the_minimum_rate_goes_on() {
        let second = Duration::from_secs(1);
        for (bytes, every) in [
            (1_024, second),
            (20 * 1_024, 20 * second),
            (3, second / 400),
        ] {
            assert_eq!(lasts(bytes, every, 1_024), None, "{bytes}");
        }
    }

    #[test]
    fn any_byte_extends_the_deadline_without_a_minimum_rate() {
        assert_eq!(lasts(1, Duration::from_secs(29), 0), None);
    }

    #[test]
    fn early_reading_buys_no_time_beyond_the_timeout() {
        let limits = Limits::default();
        let epoch = Instant::now();
        let timers = Timers::new(epoch);
        let now = timers.now(epoch);
        let mut drain = WriteProgress::new(now, TIMEOUT);
        drain.took(usize::MAX, now, TIMEOUT, &limits);
        assert_eq!(drain, WriteProgress::new(now, TIMEOUT));
    }
}
