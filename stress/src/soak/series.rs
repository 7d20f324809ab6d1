//! The warm-up, the samples of resident memory after it, and whether they are flat.

use std::time::{Duration, Instant};

use crate::check::{Failure, Outcome, ensure};

/// The warm-up has at least so many steps, which have more echoes than later ones. After them, nearly all memory that the server
/// allocates once and then keeps is allocated.
pub(super) const WARM_UP_STEPS: u64 = 900;
/// The warm-up lasts at least so long. The baseline is measured in the 30 s after it, which are those around the end of minute 2
/// unless the machine is too slow.
pub(super) const WARM_UP_TIME: Duration = Duration::from_secs(105);
/// How often memory is measured.
const SAMPLE_EVERY: Duration = Duration::from_secs(3);

/// Memory that a long run may gain in an hour, in MiB.
const SLOPE_MAX: f64 = 1.0;
/// How much larger memory may be at the end of a short run than in its baseline.
const RATIO_MAX: f64 = 1.05;
/// Where the slope begins, in seconds after the warm-up: ten minutes after the beginning, unless the warm-up took longer than it must.
const SLOPE_FROM: f64 = 600.0 - WARM_UP_TIME.as_secs() as f64;
/// From this length after the warm-up on, the slope decides. In a shorter run, the noise of single samples is larger than the limit.
const LONG: f64 = 1_800.0 - WARM_UP_TIME.as_secs() as f64;
/// Length of the periods whose medians are compared.
const PERIOD: f64 = 30.0;

/// Whether a warm-up has ended. A slow machine needs more time for its steps, and a fast one waits.
pub(super) fn warm_up_is_over(steps: u64, elapsed: Duration) -> bool {
    steps >= WARM_UP_STEPS && elapsed >= WARM_UP_TIME
}

/// Samples of resident memory. Its clock begins at the end of the warm-up, so no sample is older.
#[derive(Debug)]
pub(super) struct Series {
    begun: Instant,
    next_sample: Duration,
    samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Seconds since the end of the warm-up.
    at: f64,
    /// Resident memory in MiB.
    resident: f64,
}

impl Series {
    /// Begins at the end of the warm-up.
    pub(super) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            next_sample: Duration::ZERO,
            samples: Vec::new(),
        }
    }

    /// The time since the end of the warm-up.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Takes a sample if it is time for one. `resident` measures memory in MiB.
    pub(super) fn sample(&mut self, resident: impl FnOnce() -> Outcome<f64>) -> Outcome {
        let elapsed = self.elapsed();
        if elapsed >= self.next_sample {
            self.samples.push(Sample {
                at: elapsed.as_secs_f64(),
                resident: resident()?,
            });
            self.next_sample = elapsed + SAMPLE_EVERY;
        }
        Ok(())
    }

    /// Fails if a period has no samples.
    pub(super) fn trend(&self) -> Outcome<Trend> {
        Trend::of(&self.samples)
    }
}

/// How memory has changed after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trend {
    /// In MiB per hour, over the samples from [`SLOPE_FROM`] on; `None` if there are too few.
    pub(super) slope: Option<f64>,
    /// The median of the first 30 s after the warm-up.
    pub(super) baseline: f64,
    /// The median of the last 30 s.
    pub(super) late: f64,
}

impl Trend {
    fn of(samples: &[Sample]) -> Outcome<Self> {
        let end = samples.last().map_or(0.0, |sample| sample.at);
        let median_of = |from: f64, to: f64| {
            let within = samples.iter().filter(|s| (from..=to).contains(&s.at));
            let resident = within.map(|sample| sample.resident).collect();
            median(resident).ok_or_else(|| {
                Failure::new(format!(
                    "no memory was measured between {from:.0} and {to:.0} s after the warm-up"
                ))
            })
        };
        let later: Vec<_> = samples
            .iter()
            .copied()
            .filter(|s| s.at >= SLOPE_FROM)
            .collect();
        Ok(Self {
            slope: slope(&later).map(|per_second| per_second * 3_600.0),
            baseline: median_of(0.0, PERIOD)?,
            late: median_of(end - PERIOD, end)?,
        })
    }

    pub(super) fn ratio(&self) -> f64 {
        self.late / self.baseline
    }

    /// Fails unless memory is flat: by its slope in a run of at least half an hour, otherwise by the ratio. `measured` is the time since
    /// the warm-up.
    pub(super) fn check(&self, measured: Duration) -> Outcome {
        let is_long = measured.as_secs_f64() >= LONG;
        if let Some(slope) = self.slope.filter(|_| is_long) {
            let is_flat = slope < SLOPE_MAX;
            ensure!(
                is_flat,
                "resident memory grew by {slope:.2} MiB per hour after the first ten minutes; less than {SLOPE_MAX} is allowed"
            );
            return Ok(());
        }
        let is_flat = self.ratio() <= RATIO_MAX;
        ensure!(
            is_flat,
            "resident memory was {:.2} MiB in the 30 s after the warm-up and {:.2} MiB at the end, {:.3} times as much; at \
             most {RATIO_MAX} times is allowed",
            self.baseline,
            self.late,
            self.ratio()
        );
        Ok(())
    }
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => None,
        1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The slope of the line with the least squares of distances, per second; `None` unless the samples are at two times.
fn slope(samples: &[Sample]) -> Option<f64> {
    let count = samples.len() as f64;
    let mean_at = samples.iter().map(|s| s.at).sum::<f64>() / count;
    let mean_resident = samples.iter().map(|s| s.resident).sum::<f64>() / count;
    let mut products = 0.0;
    let mut squares = 0.0;
    for sample in samples {
        products += (sample.at - mean_at) * (sample.resident - mean_resident);
        squares += (sample.at - mean_at).powi(2);
    }
    (squares > 0.0).then(|| products / squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: u32, resident: impl Fn(f64) -> f64) -> Vec<Sample> {
        let at = (0..=seconds).step_by(5).map(f64::from);
        at.map(|at| Sample {
            at,
            resident: resident(at),
        })
        .collect()
    }

    #[test]
    fn warm_up_needs_both_its_steps_and_its_time() {
        assert!(!warm_up_is_over(WARM_UP_STEPS - 1, WARM_UP_TIME * 10));
        assert!(!warm_up_is_over(WARM_UP_STEPS * 10, WARM_UP_TIME / 2));
        assert!(warm_up_is_over(WARM_UP_STEPS, WARM_UP_TIME));
    }

    #[test]
    fn series_takes_its_first_sample_at_once_and_the_next_later() {
        let mut series = Series::begin();
        series.sample(|| Ok(20.0)).unwrap();
        series.next_sample = Duration::MAX;
        series
            .sample(|| panic!("it is not time for a sample"))
            .unwrap();
        let trend = series.trend().unwrap();
        assert_eq!((trend.baseline, trend.late), (20.0, 20.0));
    }

    #[test]
    fn median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn slope_is_that_of_a_line_and_ignores_even_noise() {
        assert_eq!(slope(&[]), None);
        assert_eq!(slope(&samples(0, |_| 7.0)), None);
        let line = slope(&samples(100, |at| 20.0 + at / 4.0)).unwrap();
        assert!((line - 0.25).abs() < 1e-9, "{line}");
        let noisy = |at: f64| 20.0 + if at % 10.0 == 0.0 { 1.0 } else { 0.0 };
        assert!(slope(&samples(100, noisy)).unwrap().abs() < 1e-9);
    }

    #[test]
    fn slope_of_a_long_run_decides_and_begins_after_ten_minutes() {
        let hour = |per_hour: f64| {
            let memory = move |at: f64| {
                let settling = at.min(SLOPE_FROM) / 60.0;
                20.0 + settling + at / 3_600.0 * per_hour
            };
            Trend::of(&samples(3_600, memory)).unwrap()
        };
        let flat = hour(0.9);
        assert!((flat.slope.unwrap() - 0.9).abs() < 1e-6);
        let half_an_hour = Duration::from_secs(1_800) - WARM_UP_TIME;
        assert!(flat.check(half_an_hour).is_ok());
        let failure = hour(1.1).check(half_an_hour).unwrap_err().to_string();
        assert!(failure.contains("1.10 MiB per hour"), "{failure}");
    }

    #[test]
    fn ratio_to_the_baseline_decides_a_short_run() {
        let measured = Duration::from_secs(300) - WARM_UP_TIME;
        let five_minutes = |growth: f64| {
            let memory = move |at: f64| if at < 100.0 { 20.0 } else { 20.0 * growth };
            Trend::of(&samples(measured.as_secs() as u32, memory)).unwrap()
        };
        let flat = five_minutes(1.04);
        assert_eq!(flat.slope, None);
        assert!((flat.ratio() - 1.04).abs() < 1e-9);
        assert!(flat.check(measured).is_ok());
        let failure = five_minutes(1.06).check(measured).unwrap_err().to_string();
        assert!(failure.contains("1.060 times"), "{failure}");
    }

    #[test]
    fn baseline_is_that_of_the_first_half_minute() {
        let memory = |at: f64| if at <= PERIOD { 20.0 } else { 30.0 };
        let trend = Trend::of(&samples(75, memory)).unwrap();
        assert_eq!((trend.baseline, trend.late), (20.0, 30.0));
    }

    #[test]
    fn run_without_samples_of_its_baseline_has_no_trend() {
        assert!(Trend::of(&[]).is_err());
        let late = Sample {
            at: 31.0,
            resident: 20.0,
        };
        assert!(Trend::of(&[late]).is_err());
    }
}
