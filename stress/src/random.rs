//! Reproducible random numbers: a seed determines all random choices of a run.

use std::time::{SystemTime, UNIX_EPOCH};

/// Chooses the seed of a run by the clock.
pub(crate) fn seed_from_clock() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    clock.map_or(0, |time| time.as_micros() as u64 % 1_000_000)
}

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Derives an independent generator for a part of the work.
    pub(crate) fn fork(&self, name: &str, number: u64) -> Self {
        let named = name
            .bytes()
            .fold(self.0, |mixed, byte| mix(mixed ^ u64::from(byte)));
        Self(mix(named ^ mix(number)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A random number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_depend_on_seed_name_and_number_only() {
        let numbers = |mut random: Random| [random.next(), random.next(), random.below(10)];
        let random = Random::new(7);
        assert_eq!(numbers(random.fork("a", 1)), numbers(random.fork("a", 1)));
        assert_ne!(numbers(random.fork("a", 1)), numbers(random.fork("a", 2)));
        assert_ne!(numbers(random.fork("a", 1)), numbers(random.fork("b", 1)));
    }
}
