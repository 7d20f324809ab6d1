//! Paces the lines of `send --rate`. Has no clock.

use std::str::FromStr;
use std::time::{Duration, Instant};

/// How far the pacer may be behind before it gives up catching up: the lines of this time, and one more, may be sent in a
/// burst. It has to exceed the resolution of the event loop's timer, so that high rates are reached.
const CATCH_UP_MAX: Duration = Duration::from_millis(20);

/// The lowest rate: somewhat less than one line in three hours.
const PER_SECOND_MIN: f64 = 0.0001;

/// A rate of lines, as its reciprocal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    interval: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix("/s").unwrap_or(text);
        match number.trim().parse::<f64>() {
            Ok(n) if n.is_finite() && n >= PER_SECOND_MIN => Ok(Self {
                interval: Duration::from_secs_f64(1.0 / n),
            }),
            _ => Err(format!(
                "must be a number of lines per second of at least {PER_SECOND_MIN}, such as 100 or 0.5"
            )),
        }
    }
}

impl Rate {
    /// The number of lines in a time, at least 1.
    pub(super) fn lines_in(self, time: Duration) -> usize {
        let lines = time.as_nanos() / self.interval.as_nanos().max(1);
        usize::try_from(lines).unwrap_or(usize::MAX).max(1)
    }
}

/// Decides when each line may be sent, so that they are evenly spaced.
#[derive(Debug)]
pub(super) struct Pacer {
    interval: Duration,
    /// When the next line is due. `None`: at once.
    next: Option<Instant>,
}

impl Pacer {
    pub(super) const fn new(rate: Rate) -> Self {
        Self {
            interval: rate.interval,
            next: None,
        }
    }

    /// When the next line may be sent; `None` if it may be sent now.
    pub(super) fn wait_until(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|next| *next > now)
    }

    /// Records that a line is sent.
    pub(super) fn on_sent(&mut self, now: Instant) {
        let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
        let due = self.next.map_or(now, |next| next.max(earliest));
        self.next = Some(due + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer(rate: &str) -> Pacer {
        Pacer::new(rate.parse().unwrap())
    }

    /// Sends all lines that are due at `now`, at most 1000. Returns their number.
    fn send_due(pacer: &mut Pacer, now: Instant) -> usize {
        let mut sent = 0;
        while sent < 1_000 && pacer.wait_until(now).is_none() {
            pacer.on_sent(now);
            sent += 1;
        }
        sent
    }

    #[test]
    fn rate_is_parsed_with_fractions_and_unit() {
        let interval = |text: &str| text.parse::<Rate>().map(|rate| rate.interval);
        assert_eq!(interval("50"), Ok(Duration::from_millis(20)));
        assert_eq!(interval("0.5"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("4/s"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("1e12"), Ok(Duration::ZERO));
        for text in [
            "", "0", "-1", "fast", "/s", "1/m", "inf", "nan", "0.00001", "1,5",
        ] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_are_evenly_spaced_whatever_the_delay_of_the_timer() {
        let start = Instant::now();
        let mut pacer = pacer("50");
        assert_eq!(send_due(&mut pacer, start), 1);
        let mut due = start;
        for n in 1..100 {
            // Each wake-up is up to 9 ms late, which does not add up.
            due = pacer.wait_until(due).unwrap();
            assert_eq!(due, start + Duration::from_millis(20 * n));
            due += Duration::from_millis(n % 10);
            assert_eq!(send_due(&mut pacer, due), 1);
        }
    }

    #[test]
    fn rate_above_the_resolution_of_the_timer_is_kept() {
        let start = Instant::now();
        let mut pacer = pacer("10000");
        let sent: usize = (0..=1_000)
            .map(|ms| send_due(&mut pacer, start + Duration::from_millis(ms)))
            .sum();
        assert_eq!(sent, 10_001);
    }

    #[test]
    fn idle_time_is_not_made_up_for() {
        let start = Instant::now();
        for (rate, burst_max) in [("50", 2), ("1000", 21), ("0.5", 1)] {
            let mut pacer = pacer(rate);
            send_due(&mut pacer, start);
            let later = start + Duration::from_secs(3_600);
            let burst = send_due(&mut pacer, later);
            assert!((1..=burst_max).contains(&burst), "{rate}: {burst}");
            assert!(pacer.wait_until(later).is_some());
        }
    }

    #[test]
    fn rate_without_interval_never_waits() {
        let now = Instant::now();
        let mut pacer = pacer("1e12");
        assert_eq!(send_due(&mut pacer, now), 1_000);
    }

    #[test]
    fn lines_in_a_time_are_at_least_one() {
        let lines = |rate: &str| {
            rate.parse::<Rate>()
                .unwrap()
                .lines_in(Duration::from_millis(100))
        };
        assert_eq!((lines("0.5"), lines("50"), lines("1000")), (1, 5, 100));
        assert_eq!(lines("1e12"), 100_000_000);
    }
}
