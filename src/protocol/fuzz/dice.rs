//! A source of random choices, from a seed or from a fuzzer's bytes.

/// The origin of random choices.
enum Source {
    /// The state of xorshift64*, which gives the same numbers on every platform.
    Seed(u64),
    /// The rest of a fuzzer's input, in reverse order.
    Bytes(Vec<u8>),
}

pub(crate) struct Dice {
    source: Source,
    /// The choices made so far, as bytes from which [`Dice::from_bytes`] repeats them.
    taken: Vec<u8>,
}

impl Dice {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self {
            source: Source::Seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            taken: Vec::new(),
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            source: Source::Bytes(bytes.iter().rev().copied().collect()),
            taken: Vec::new(),
        }
    }

    /// Returns a number below `n`, or 0 once the bytes are used up.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let n = n.max(1);
        // The fewest bytes that can represent every number below `n`.
        let len = (usize::BITS - (n - 1).leading_zeros()).div_ceil(8);
        let number = match &mut self.source {
            Source::Bytes(bytes) => (0..len).fold(0, |sum, _| {
                sum << 8 | usize::from(bytes.pop().unwrap_or_default())
            }),
            Source::Seed(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) as usize
            }
        } % n;
        let bytes = number.to_be_bytes();
        self.taken
            .extend_from_slice(&bytes[bytes.len() - len as usize..]);
        number
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns up to `len_max` random bytes.
    pub(crate) fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max + 1);
        (0..len).map(|_| self.below(256) as u8).collect()
    }

    /// Whether all bytes are used up.
    pub(crate) fn is_used_up(&self) -> bool {
        matches!(&self.source, Source::Bytes(bytes) if bytes.is_empty())
    }

    pub(crate) fn taken(self) -> Vec<u8> {
        self.taken
    }
}

/// Runs `play` with the seeds 0 to `usual`. `SEED=<n>` runs that seed alone, and `SEEDS=<n>` sets the number of seeds. A
/// failure prints its seed.
#[cfg(test)]
pub(crate) fn for_seeds(usual: u64, mut play: impl FnMut(u64)) {
    struct SeedOnPanic(u64);

    impl Drop for SeedOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                #[allow(clippy::print_stderr)] // The seed is needed to repeat the failure.
                {
                    eprintln!("SEED={}", self.0);
                }
            }
        }
    }

    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|n| n.parse::<u64>().expect("SEED and SEEDS must be numbers"))
    };
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    };
    for seed in seeds {
        let _named = SeedOnPanic(seed);
        play(seed);
    }
}
