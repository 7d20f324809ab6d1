//! Latencies, counted in buckets at most 1.6 % wide: nothing is allocated per sample.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;

pub(crate) struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    max: u64,
}

/// What a table shows of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    pub(crate) max: Duration,
}

impl Summary {
    /// The times in nanoseconds: p50, p99, p99.9 and the maximum.
    pub(crate) fn nanos(self) -> [u64; 4] {
        [self.p50, self.p99, self.p999, self.max].map(|time| time.as_nanos() as u64)
    }

    pub(crate) fn of_nanos(nanos: [u64; 4]) -> Self {
        let [p50, p99, p999, max] = nanos.map(Duration::from_nanos);
        Self {
            p50,
            p99,
            p999,
            max,
        }
    }
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let size = bucket(u64::MAX) + 1;
        Self {
            buckets: vec![0; size].into_boxed_slice(),
            count: 0,
            max: 0,
        }
    }

    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.buckets[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.max = self.max.max(nanoseconds);
    }

    pub(crate) fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
        self.max = 0;
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            p50: self.quantile(0.50),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: Duration::from_nanos(self.max),
        }
    }

    fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Duration::from_nanos(upper_end(index).min(self.max));
            }
        }
        Duration::ZERO
    }
}

/// Below 64 each value has its own bucket; above, each doubling has 64 of them.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    (u64::from(shift) * SUB + (value >> shift)) as usize
}

/// The largest value in a bucket.
fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB {
        return index;
    }
    let shift = index / SUB - 1;
    let top = index - shift * SUB;
    (top << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_width_is_at_most_a_64th_of_the_value() {
        for value in (0..2_000).chain([65_535, 1 << 30, (1 << 40) + 12_345, u64::MAX]) {
            let end = upper_end(bucket(value));
            assert!(
                end >= value && end - value <= value / SUB,
                "{value} in a bucket up to {end}"
            );
        }
    }

    #[test]
    fn quantiles_of_1000_values_are_within_a_bucket() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.summary(), Summary::default());
        (1..=1_000).for_each(|value| histogram.record(value * 1_000));
        let Summary {
            p50,
            p99,
            p999,
            max,
        } = histogram.summary();
        assert!((500..=508).contains(&p50.as_micros()), "{p50:?}");
        assert!((990..=1_000).contains(&p99.as_micros()), "{p99:?}");
        assert!((999..=1_000).contains(&p999.as_micros()), "{p999:?}");
        assert_eq!(max.as_micros(), 1_000);
        histogram.clear();
        assert_eq!(histogram.summary(), Summary::default());
    }
}
