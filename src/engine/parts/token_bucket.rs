//! A token bucket: how much a client may send, by a rate and a burst, usually of one second's worth.
//!
//! The arithmetic is exact: fractions of a token are kept, so no rounding adds up. Time is an argument.

use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The maximum burst, beyond any real one: its nanoseconds and a rate of 64 bits multiply to fewer than 128 bits.
const BURST_MAX: Duration = Duration::from_secs(u32::MAX as u64);

/// A bucket of tokens. The rate is an argument, since the connections of a shard share it; and so is the burst, as the time
/// whose tokens fill the bucket. A rate of 0 has no burst, and its bucket is never refilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    tokens: u64,
    /// Billionths of a token, fewer than one token.
    fraction: u32,
}

impl TokenBucket {
    /// Creates a bucket with this many tokens: full, if they are those of the burst.
    pub(crate) const fn with_tokens(tokens: u64) -> Self {
        Self {
            tokens,
            fraction: 0,
        }
    }

    /// The whole tokens in the bucket.
    pub(crate) fn tokens(self) -> u64 {
        self.tokens
    }

    /// Adds the tokens of a time that has passed, up to those of `burst`.
    pub(crate) fn refill(&mut self, per_second: u64, elapsed: Duration, burst: Duration) {
        let burst = burst.min(BURST_MAX);
        let full = burst.as_nanos() * u128::from(per_second) / NANOS_PER_SECOND;
        let full = u64::try_from(full).unwrap_or(u64::MAX);
        let elapsed = elapsed.min(burst);
        let added = elapsed.as_nanos() * u128::from(per_second) + u128::from(self.fraction);
        let tokens = u64::try_from(added / NANOS_PER_SECOND).unwrap_or(u64::MAX);
        self.tokens = self.tokens.saturating_add(tokens);
        self.fraction = (added % NANOS_PER_SECOND) as u32;
        if self.tokens >= full {
            *self = Self::with_tokens(full);
        }
    }

    /// Takes tokens, or all of them if there are fewer.
    pub(crate) fn take(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }

    /// The time until the bucket has this many tokens. A rate of 0 never has any.
    pub(crate) fn wait(self, per_second: u64, tokens: u64) -> Duration {
        let lacking = tokens.saturating_sub(self.tokens);
        if lacking == 0 {
            return Duration::ZERO;
        }
        let lacking = u128::from(lacking) * NANOS_PER_SECOND - u128::from(self.fraction);
        let nanos = match per_second {
            0 => u128::MAX,
            _ => lacking.div_ceil(u128::from(per_second)),
        };
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::fuzz::dice::Dice;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn bucket_holds_one_second_and_is_refilled_evenly() {
        let mut bucket = TokenBucket::with_tokens(100);
        bucket.take(100);
        assert_eq!((bucket.tokens(), bucket.wait(100, 1)), (0, ms(10)));
        bucket.refill(100, ms(9), SECOND);
        assert_eq!((bucket.tokens(), bucket.wait(100, 1)), (0, ms(1)));
        bucket.refill(100, ms(1), SECOND);
        assert_eq!((bucket.tokens(), bucket.wait(100, 1)), (1, Duration::ZERO));
        bucket.refill(100, ms(500), SECOND);
        assert_eq!(bucket.tokens(), 51);
        for elapsed in [ms(490), ms(1), Duration::MAX] {
            bucket.refill(100, elapsed, SECOND);
            assert_eq!(bucket, TokenBucket::with_tokens(100));
        }
    }

    #[test]
    fn fractions_of_tokens_add_up_exactly() {
        // Rates that do not divide a second, and refills at random intervals.
        let mut dice = Dice::from_seed(7);
        for per_second in [1, 3, 7, 999, 1_000_003, u64::from(u32::MAX), 1 << 40] {
            let mut bucket = TokenBucket::with_tokens(per_second);
            let (mut nanos, mut taken) = (0u128, 0u128);
            bucket.take(per_second);
            for _ in 0..10_000 {
                let elapsed = dice.below(900_000) as u64;
                nanos += u128::from(elapsed);
                bucket.refill(per_second, Duration::from_nanos(elapsed), SECOND);
                let tokens = bucket.tokens();
                taken += u128::from(tokens);
                bucket.take(tokens);
            }
            assert_eq!(taken, nanos * u128::from(per_second) / NANOS_PER_SECOND);
        }
    }

    #[test]
    fn wait_ends_exactly_when_the_tokens_are_there() {
        for per_second in [1, 3, 7, 999, 1_000_003, u64::from(u32::MAX)] {
            for tokens in [1, 2, per_second / 2 + 1] {
                let mut bucket = TokenBucket::with_tokens(per_second);
                bucket.take(per_second);
                bucket.refill(per_second, Duration::from_nanos(1), SECOND);
                let tokens = tokens.clamp(bucket.tokens() + 1, per_second);
                let wait = bucket.wait(per_second, tokens);
                let mut early = bucket;
                early.refill(per_second, wait - Duration::from_nanos(1), SECOND);
                assert!(early.tokens() < tokens, "{per_second}, {tokens}");
                bucket.refill(per_second, wait, SECOND);
                assert!(bucket.tokens() >= tokens, "{per_second}, {tokens}");
            }
        }
    }

    #[test]
    fn extreme_rates_do_not_overflow() {
        let mut never = TokenBucket::with_tokens(0);
        never.refill(0, Duration::MAX, SECOND);
        assert_eq!((never.tokens(), never.wait(0, 1)), (0, Duration::MAX));
        let mut bucket = TokenBucket::with_tokens(u64::MAX);
        bucket.take(u64::MAX);
        assert_eq!(bucket.wait(u64::MAX, u64::MAX), Duration::from_secs(1));
        assert_eq!(bucket.wait(1, u64::MAX), Duration::MAX);
        bucket.refill(u64::MAX, Duration::MAX, SECOND);
        assert_eq!(bucket.tokens(), u64::MAX);
        bucket.take(u64::MAX);
        bucket.take(1);
        assert_eq!(bucket.tokens(), 0);
        bucket.refill(u64::MAX, Duration::MAX, Duration::MAX);
        assert_eq!(bucket.tokens(), u64::MAX);
    }

    #[test]
    fn longer_burst_holds_more_tokens_until_it_shrinks() {
        let mut bucket = TokenBucket::with_tokens(0);
        bucket.refill(10, ms(3_000), ms(2_500));
        assert_eq!(bucket.tokens(), 25);
        bucket.take(5);
        bucket.refill(10, ms(100), ms(2_500));
        assert_eq!(bucket.tokens(), 21);
        bucket.refill(10, Duration::ZERO, SECOND);
        assert_eq!(bucket.tokens(), 10);
    }
}
