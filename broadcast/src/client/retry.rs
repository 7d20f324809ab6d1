//! When to connect again. Knows no socket, and no clock but by what it is told.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// What the first delay is at most.
const FIRST_DELAY_MAX: Duration = Duration::from_secs(1);

/// A connection that has lasted for so long was a good one, though nothing came.
const SETTLED: Duration = Duration::from_secs(10);

/// The delays between attempts: a random part of a time that doubles up to a cap ("full jitter"), so that the clients of a
/// server that restarts do not all come back at once.
#[derive(Debug)]
pub(super) struct Retry {
    delay_max: Duration,
    attempts: u32,
}

impl Retry {
    pub(super) fn new(delay_max: Duration) -> Self {
        Self {
            delay_max,
            attempts: 0,
        }
    }

    /// A connection has ended that lasted for so long; whether anything had come on it. Returns whether it was a good one: then
    /// the delays begin anew. One that opens and dies at once, again and again, is none.
    pub(super) fn had(&mut self, lasted: Duration, has_received: bool) -> bool {
        let was_good = has_received || lasted >= SETTLED;
        if was_good {
            self.attempts = 0;
        }
        was_good
    }

    /// How long to wait before the next attempt. `later`: the server has asked for time.
    pub(super) fn delay(&mut self, later: bool) -> Duration {
        self.delay_at(later, random())
    }

    /// The same, for a random number from 0 to 1.
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
    // Every `RandomState` hashes in a way of its own, drawn by chance.
    let bits = RandomState::new().hash_one(());
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_secs(30);

    fn seconds(retry: &mut Retry, later: bool, random: f64) -> f64 {
        retry.delay_at(later, random).as_secs_f64()
    }

    #[test]
    fn delays_are_a_random_part_of_what_doubles_up_to_the_cap() {
        let mut retry = Retry::new(CAP);
        let delays: Vec<f64> = (0..7).map(|_| seconds(&mut retry, false, 1.0)).collect();
        assert_eq!(delays, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(seconds(&mut retry, false, 0.5), 15.0);
        assert_eq!(seconds(&mut retry, false, 0.0), 0.0);
        for _ in 0..1_000 {
            assert!(retry.delay(false) <= CAP);
        }
    }

    #[test]
    fn a_server_that_asks_for_time_gets_half_the_cap_at_least() {
        let mut retry = Retry::new(CAP);
        assert_eq!(seconds(&mut retry, true, 0.0), 15.0);
        assert_eq!(seconds(&mut retry, true, 1.0), 30.0);
    }

    #[test]
    fn delays_begin_anew_after_a_connection_that_was_good() {
        let mut retry = Retry::new(CAP);
        for _ in 0..4 {
            retry.delay(false);
        }
        assert!(!retry.had(Duration::from_secs(1), false));
        assert_eq!(seconds(&mut retry, false, 1.0), 16.0);
        assert!(retry.had(SETTLED, false));
        assert_eq!(seconds(&mut retry, false, 1.0), 1.0);
        assert_eq!(seconds(&mut retry, false, 1.0), 2.0);
        assert!(retry.had(Duration::ZERO, true));
        assert_eq!(seconds(&mut retry, false, 1.0), 1.0);
    }

    #[test]
    fn chance_is_from_0_to_1_and_not_always_the_same() {
        let drawn: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(drawn.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(drawn.iter().any(|n| *n != drawn[0]));
    }
}
