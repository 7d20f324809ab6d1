//! The earliest time at which the bytes that a shard reads may have arrived. A client that sends evenly must not be closed because
//! the shard has read many of its messages at once ([`OverRate::Close`](crate::OverRate::Close)).
//!
//! A shard is woken by the bytes that arrive while it sleeps. So bytes in a socket that was empty have arrived just now,
//! unless the shard has stood still: because a turn took long, its thread was not scheduled, or the process was stopped.
//! The shard notices if it sleeps longer than planned. While clients send, it therefore plans no long sleeps.

use std::time::{Duration, Instant};

/// A shard that begins a turn this much later than planned has stood still.
const STANDSTILL: Duration = Duration::from_millis(250);

/// For so long after a standstill, bytes may have arrived during it: one poll reports a bounded number of sockets, so the shard reads
/// the others later.
const READ_BEHIND: Duration = Duration::from_secs(1);

/// The longest sleep, if a client has sent something in the last minute. With `STANDSTILL`, what goes unnoticed is less
/// than the time of a burst.
const SLEEP_MAX: Duration = Duration::from_millis(500);
const WATCHED: Duration = Duration::from_secs(60);

pub(crate) struct Arrivals {
    /// When this turn began.
    turn: Instant,
    /// When the next turn should begin at the latest. `None` if the shard sleeps without end.
    next: Option<Instant>,
    /// The last standstill: when the shard last looked at its sockets before, and when it noticed.
    stood_still: Option<(Instant, Instant)>,
    /// When a client last sent something.
    received: Option<Instant>,
}

impl Arrivals {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            turn: now,
            next: None,
            stood_still: None,
            received: None,
        }
    }

    pub(crate) fn begin_turn(&mut self, now: Instant) {
        let last = std::mem::replace(&mut self.turn, now);
        // If no sleep was planned, the turn should begin at once.
        let planned = self.next.replace(now);
        if planned.is_some_and(|planned| now.saturating_duration_since(planned) >= STANDSTILL) {
            self.stood_still = Some((last, now));
        }
    }

    /// Notes that the shard is about to sleep for so long. Returns how long it should sleep.
    pub(crate) fn sleep(&mut self, wait: Option<Duration>, now: Instant) -> Option<Duration> {
        if now.saturating_duration_since(self.turn) >= STANDSTILL {
            self.stood_still = Some((self.turn, now));
        }
        let is_watched = self
            .received
            .is_some_and(|received| now.saturating_duration_since(received) < WATCHED);
        let wait = match is_watched {
            true => Some(wait.map_or(SLEEP_MAX, |wait| wait.min(SLEEP_MAX))),
            false => wait,
        };
        self.next = wait.and_then(|wait| now.checked_add(wait));
        wait
    }

    /// Notes that a client has sent something.
    pub(crate) fn received(&mut self) {
        self.received = Some(self.turn);
    }

    /// The earliest time at which bytes may have arrived in a socket that was empty when the shard last looked.
    pub(crate) fn since(&self) -> Instant {
        match self.stood_still {
            Some((since, noticed))
                if self.turn.saturating_duration_since(noticed) <= READ_BEHIND =>
            {
                since
            }
            _ => self.turn,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn bytes_arrive_just_now_after_a_planned_sleep() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(start);
        assert_eq!(arrivals.sleep(None, start), None);
        arrivals.begin_turn(start + ms(3_600_000));
        assert_eq!(arrivals.since(), start + ms(3_600_000));
        let now = start + ms(3_600_000);
        assert_eq!(arrivals.sleep(Some(ms(2_000)), now), Some(ms(2_000)));
        arrivals.begin_turn(now + ms(2_200));
        assert_eq!(arrivals.since(), now + ms(2_200));
    }

    #[test]
    fn bytes_may_have_arrived_during_a_late_sleep_or_a_long_turn() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(start);
        arrivals.received();
        assert_eq!(arrivals.sleep(None, start), Some(SLEEP_MAX));
        arrivals.begin_turn(start + ms(3_000));
        assert_eq!(arrivals.since(), start);
        arrivals.begin_turn(start + ms(4_001));
        // The turn before took more than a second.
        assert_eq!(arrivals.since(), start + ms(3_000));
        let now = start + ms(4_001);
        arrivals.sleep(Some(Duration::ZERO), now + ms(900));
        arrivals.begin_turn(now + ms(900));
        assert_eq!(arrivals.since(), now);
        arrivals.sleep(Some(ms(500)), now + ms(900));
        arrivals.begin_turn(now + ms(1_400));
        assert_eq!(arrivals.since(), now);
        arrivals.sleep(Some(ms(500)), now + ms(1_400));
        arrivals.begin_turn(now + ms(1_901));
        assert_eq!(arrivals.since(), now + ms(1_901));
    }

    #[test]
    fn shard_sleeps_long_once_no_client_sends() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(start);
        arrivals.received();
        assert_eq!(arrivals.sleep(None, start + WATCHED), None);
    }
}
