//! Reconnect delays. Has no clock and no socket.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Upper bound of the first delay.
const FIRST_DELAY_MAX: Duration = Duration::from_secs(1);

/// A connection of at least this duration counts as stable, even if no message arrived.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Exponential backoff with full jitter, so that the clients of a restarted server do not all reconnect at once.
#[derive(Debug)]
pub(super) struct Backoff {
    delay_max: Duration,
    attempts: u32,
}

impl Backoff {
    pub(super) fn new(delay_max: Duration) -> Self {
        Self {
            delay_max,
            attempts: 0,
        }
    }

    /// Records a connection that has ended. Returns whether it was stable, which resets the delays. Connections that
    /// open and fail at once are not.
    pub(super) fn connection_lasted(&mut self, lasted: Duration, has_received: bool) -> bool {
        let was_stable = has_received || lasted >= STABLE_AFTER;
        if was_stable {
            self.attempts = 0;
        }
        was_stable
    }

    /// The delay before the next attempt. `later`: the server has asked for time.
    pub(super) fn delay(&mut self, later: bool) -> Duration {
        self.delay_at(later, random())
    }

    /// [`delay`](Self::delay) for a given random number from 0 to 1.
    fn delay_at(&mut self, later: bool, random: f64) -> Duration {
        let doubled = FIRST_DELAY_MAX.saturating_mul(1 << self.attempts.min(20));
        self.attempts = self.attempts.saturating_add(1);
        if later {
            let half = self.delay_max / 2;
            return half + half.mul_f64(random);
        }
        doubled.min(self.delay_max).mul_f64(random)
    }
}

fn random() -> f64 {
    // Each `RandomState` has random keys.
    let bits = RandomState::new().hash_one(());
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_secs(30);

    fn seconds(backoff: &mut Backoff, later: bool, random: f64) -> f64 {
        backoff.delay_at(later, random).as_secs_f64()
    }

    #[test]
    fn delay_is_random_and_doubles_up_to_the_cap() {
        let mut backoff = Backoff::new(CAP);
        let delays: Vec<f64> = (0..7).map(|_| seconds(&mut backoff, false, 1.0)).collect();
        assert_eq!(delays, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(seconds(&mut backoff, false, 0.5), 15.0);
        assert_eq!(seconds(&mut backoff, false, 0.0), 0.0);
        for _ in 0..1_000 {
            assert!(backoff.delay(false) <= CAP);
        }
    }

    #[test]
    fn retry_later_waits_at_least_half_the_cap() {
        let mut backoff = Backoff::new(CAP);
        assert_eq!(seconds(&mut backoff, true, 0.0), 15.0);
        assert_eq!(seconds(&mut backoff, true, 1.0), 30.0);
    }

    #[test]
    fn delay_restarts_after_a_stable_connection() {
        let mut backoff = Backoff::new(CAP);
        for _ in 0..4 {
            backoff.delay(false);
        }
        assert!(!backoff.connection_lasted(Duration::from_secs(1), false));
        assert_eq!(seconds(&mut backoff, false, 1.0), 16.0);
        assert!(backoff.connection_lasted(STABLE_AFTER, false));
        assert_eq!(seconds(&mut backoff, false, 1.0), 1.0);
        assert_eq!(seconds(&mut backoff, false, 1.0), 2.0);
        assert!(backoff.connection_lasted(Duration::ZERO, true));
        assert_eq!(seconds(&mut backoff, false, 1.0), 1.0);
    }

    #[test]
    fn random_is_below_1_and_varies() {
        let drawn: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(drawn.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(drawn.iter().any(|n| *n != drawn[0]));
    }
}
