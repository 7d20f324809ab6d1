//! Chances: made up from a seed, or read from bytes.

/// Where chances come from.
enum Source {
    /// xorshift64*: as good as is needed here, and the same everywhere.
    Seed(u64),
    /// What is left of a fuzzer's input.
    Bytes(Vec<u8>),
}

pub(crate) struct Dice {
    source: Source,
    /// The chances taken so far, as bytes from which they come again.
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

    /// A number under `n`. Bytes that are used up give 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let n = n.max(1);
        // As few bytes as can tell all numbers apart.
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

    /// Up to so many bytes.
    pub(crate) fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max + 1);
        (0..len).map(|_| self.below(256) as u8).collect()
    }

    /// No further chances come.
    pub(crate) fn is_used_up(&self) -> bool {
        matches!(&self.source, Source::Bytes(bytes) if bytes.is_empty())
    }

    pub(crate) fn taken(self) -> Vec<u8> {
        self.taken
    }
}

/// Plays seeds, as many as usual; `SEED=<n>` plays that one alone, and `SEEDS=<n>` so many. A failure names its seed.
#[cfg(test)]
pub(crate) fn for_seeds(usual: u64, mut play: impl FnMut(u64)) {
    struct SeedOnPanic(u64);

    impl Drop for SeedOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                #[allow(clippy::print_stderr)] // A failure that can't be repeated is worth little.
                {
                    eprintln!("SEED={}", self.0);
                }
            }
        }
    }

    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|n| n.parse::<u64>().expect("a number"))
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
