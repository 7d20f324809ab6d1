//! Histograms in fixed buckets.

use std::fmt;
use std::time::Duration;

use super::{COUNTS, Counter};

/// The most buckets of a histogram, the last one without an upper bound included.
const BUCKETS_MAX: usize = 17;

/// The upper bounds of the buckets of a [`DurationHistogram`], in microseconds.
const DURATION_BOUNDS_MICROS: [u64; BUCKETS_MAX - 1] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// The upper bounds of the buckets of a [`SizeHistogram`], in bytes.
const SIZE_BOUNDS: [u64; 9] = [
    256,
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
];

/// The number of observations in each bucket.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Observed([u64; BUCKETS_MAX]);

impl Observed {
    fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The upper bounds, the last one infinite, and the number of observations up to each.
    fn cumulated(self, bounds: &'static [u64], unit: f64) -> impl Iterator<Item = (f64, u64)> {
        let bounds = bounds.iter().map(move |&bound| bound as f64 / unit);
        let mut count = 0;
        bounds
            .chain([f64::INFINITY])
            .zip(self.0)
            .map(move |(bound, n)| {
                count += n;
                (bound, count)
            })
    }
}

/// How often durations were observed, in fixed buckets; part of [`Metrics`](crate::Metrics). The upper bounds are 100, 250 and 500
/// microseconds and so on, up to 10 seconds; longer durations are in a last bucket without a bound.
///
/// # Examples
///
/// ```
/// let app = humphrey_ws::AsyncWebsocketApp::<()>::new();
/// let durations = app.sender().metrics().handler_durations;
/// let (bound, count) = durations.buckets().next().unwrap();
/// assert_eq!((bound, count), (0.0001, 0));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct DurationHistogram {
    observed: Observed,
    sum: Duration,
}

impl DurationHistogram {
    /// Returns the upper bound of each bucket in seconds, and the number of durations up to it, as in a histogram of Prometheus. The
    /// last bound is infinite, so the last number is [`Self::count`].
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + use<> {
        self.observed.cumulated(&DURATION_BOUNDS_MICROS, 1e6)
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.observed.count()
    }

    /// Returns the sum of all durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

impl fmt::Debug for DurationHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.buckets()).finish()
    }
}

/// How often sizes were observed, in fixed buckets; part of [`Metrics`](crate::Metrics). The upper bounds are 256 bytes, 1 KiB and
/// so on, each four times the one before, up to 16 MiB; larger sizes are in a last bucket without a bound.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SizeHistogram {
    observed: Observed,
    sum: u64,
}

impl SizeHistogram {
    /// Returns the upper bound of each bucket in bytes, and the number of sizes up to it, as in a histogram of Prometheus. The last
    /// bound is infinite, so the last number is [`Self::count`].
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + use<> {
        self.observed.cumulated(&SIZE_BOUNDS, 1.0)
    }

    /// Returns the number of sizes.
    pub fn count(&self) -> u64 {
        self.observed.count()
    }

    /// Returns the sum of all sizes, in bytes.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

impl fmt::Debug for SizeHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.buckets()).finish()
    }
}

/// What one thread at a time counts of a histogram.
#[derive(Debug, Default)]
struct Counters {
    counts: [Counter; BUCKETS_MAX],
    sum: Counter,
}

impl Counters {
    /// Counts `times` equal observations. Small ones are found first.
    fn add(&self, bounds: impl IntoIterator<Item = u64>, observed: u64, times: u64) {
        let bucket = bounds.into_iter().take_while(|&bound| observed > bound);
        self.counts[bucket.count()].add_alone(times);
    }

    fn add_to(&self, to: &mut Observed) {
        for (to, count) in to.0.iter_mut().zip(&self.counts) {
            *to += count.get();
        }
    }
}

/// Counts durations. Only one thread at a time adds to it. The sum is in units of this many nanoseconds, which divide a second: with
/// nanoseconds, the sum of what many messages have waited would overflow within days.
#[derive(Debug, Default)]
pub(crate) struct DurationCounters<const UNIT_NANOS: u64>(Counters);

impl<const UNIT_NANOS: u64> DurationCounters<UNIT_NANOS> {
    const UNITS_PER_SECOND: u64 = 1_000_000_000 / UNIT_NANOS;

    /// Counts `times` equal durations.
    pub(crate) fn add(&self, took: Duration, times: u64) {
        if !COUNTS {
            return;
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bounds = DURATION_BOUNDS_MICROS.iter().map(|micros| micros * 1_000);
        self.0.add(bounds, nanos, times);
        let sum = (nanos / UNIT_NANOS).saturating_mul(times);
        self.0.sum.add_alone(sum);
    }

    /// Counts `times` durations that are too short to be measured.
    pub(crate) fn add_zeros(&self, times: u64) {
        self.0.counts[0].add_alone(times);
    }

    pub(crate) fn add_to(&self, to: &mut DurationHistogram) {
        self.0.add_to(&mut to.observed);
        let sum = self.0.sum.get();
        let nanos = sum % Self::UNITS_PER_SECOND * UNIT_NANOS;
        let sum = Duration::new(sum / Self::UNITS_PER_SECOND, nanos as u32);
        to.sum = to.sum.saturating_add(sum);
    }
}

/// Counts sizes. Only one thread at a time adds to it.
#[derive(Debug, Default)]
pub(crate) struct SizeCounters(Counters);

impl SizeCounters {
    pub(crate) fn add(&self, size: usize) {
        if !COUNTS {
            return;
        }
        self.0.add(SIZE_BOUNDS, size as u64, 1);
        self.0.sum.add_alone(size as u64);
    }

    pub(crate) fn add_to(&self, to: &mut SizeHistogram) {
        self.0.add_to(&mut to.observed);
        to.sum = to.sum.wrapping_add(self.0.sum.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_counted_up_to_its_bound() {
        let counters = DurationCounters::<1_000>::default();
        counters.add_zeros(2);
        counters.add(Duration::from_micros(100), 1);
        counters.add(Duration::from_micros(101), 3);
        counters.add(Duration::from_secs(10), 1);
        counters.add(Duration::from_secs(11), 1);
        let mut histogram = DurationHistogram::default();
        counters.add_to(&mut histogram);
        counters.add_to(&mut histogram);
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets.len(), 17);
        assert_eq!(buckets[..2], [(0.0001, 6), (0.00025, 12)]);
        assert_eq!(buckets[14..], [(5.0, 12), (10.0, 14), (f64::INFINITY, 16)]);
        assert_eq!(histogram.count(), 16);
        let once = Duration::from_micros(100 + 3 * 101) + Duration::from_secs(21);
        assert_eq!(histogram.sum(), 2 * once);
    }

    #[test]
    fn sum_of_many_long_durations_does_not_overflow() {
        let counters = DurationCounters::<1_000_000>::default();
        // Of a year in which a million messages are delivered each second, each a minute late.
        let messages = 365 * 24 * 60 * 60 * 1_000_000;
        let minute = Duration::from_secs(60);
        counters.add(minute, messages);
        let mut histogram = DurationHistogram::default();
        for _ in 0..100 {
            counters.add_to(&mut histogram);
        }
        assert_eq!(histogram.sum(), Duration::from_secs(60 * messages * 100));
    }

    #[test]
    fn size_is_counted_up_to_its_bound() {
        let counters = SizeCounters::default();
        for size in [0, 256, 257, 16 << 20, usize::MAX >> 1] {
            counters.add(size);
        }
        let mut histogram = SizeHistogram::default();
        counters.add_to(&mut histogram);
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets.len(), 10);
        assert_eq!(buckets[..2], [(256.0, 2), (1024.0, 3)]);
        assert_eq!(buckets[8..], [(f64::from(16 << 20), 4), (f64::INFINITY, 5)]);
        let sum = 256 + 257 + (16 << 20) + (usize::MAX >> 1) as u64;
        assert_eq!(histogram.sum(), sum);
    }
}
