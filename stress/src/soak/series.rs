//! Samples of resident memory, and whether they are flat.

use crate::check::{Failure, Outcome, ensure};

/// Memory that a long run may gain in an hour.
pub(super) const SLOPE_MAX: f64 = 1.0;
/// How much larger memory may be at the end of a short run than two minutes after its beginning.
pub(super) const RATIO_MAX: f64 = 1.05;
/// When a long run's memory counts from, in seconds.
const SETTLED: f64 = 600.0;
/// From this length on, the slope decides; in a shorter run, the noise of single samples is larger than the limit.
const LONG: f64 = 1_800.0;
/// Length of the periods whose medians are compared.
const PERIOD: f64 = 30.0;
const MIDDLE: f64 = 120.0;

#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Seconds since the beginning.
    pub(super) at: f64,
    /// Resident memory in MiB.
    pub(super) resident: f64,
}

/// How memory has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trend {
    /// In MiB per hour, over the samples after the first ten minutes; `None` if there are too few.
    pub(super) slope: Option<f64>,
    /// The medians of the 30 s around the end of minute 2, and of the last 30 s.
    pub(super) early: f64,
    pub(super) late: f64,
}

impl Trend {
    /// Fails if a period has no samples.
    pub(super) fn of(samples: &[Sample]) -> Outcome<Self> {
        let end = samples.last().map_or(0.0, |sample| sample.at);
        let during = |from: f64, to: f64| {
            let within = samples.iter().filter(|s| (from..=to).contains(&s.at));
            let resident = within.map(|sample| sample.resident).collect();
            median(resident).ok_or_else(|| {
                Failure::new(format!(
                    "no memory was measured between {from:.0} and {to:.0} s"
                ))
            })
        };
        let settled: Vec<_> = samples
            .iter()
            .copied()
            .filter(|s| s.at >= SETTLED)
            .collect();
        Ok(Self {
            slope: slope(&settled).map(|per_second| per_second * 3_600.0),
            early: during(MIDDLE - PERIOD / 2.0, MIDDLE + PERIOD / 2.0)?,
            late: during(end - PERIOD, end)?,
        })
    }

    pub(super) fn ratio(&self) -> f64 {
        self.late / self.early
    }

    /// Fails unless memory is flat: by its slope in a run of at least half an hour, otherwise by the ratio.
    pub(super) fn check(&self, seconds: f64) -> Outcome {
        if let Some(slope) = self.slope.filter(|_| seconds >= LONG) {
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
            "resident memory was {:.2} MiB after two minutes and {:.2} MiB at the end, {:.3} times as much; at most \
             {RATIO_MAX} times is allowed",
            self.early,
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
    fn slope_of_an_hour_decides_and_begins_after_ten_minutes() {
        let hour = |per_hour: f64| {
            let memory = move |at: f64| {
                let warm_up = if at < 600.0 { at / 60.0 } else { 10.0 };
                20.0 + warm_up + at / 3_600.0 * per_hour
            };
            Trend::of(&samples(3_600, memory)).unwrap()
        };
        let flat = hour(0.9);
        assert!((flat.slope.unwrap() - 0.9).abs() < 1e-6);
        assert!(flat.check(3_600.0).is_ok());
        let failure = hour(1.1).check(3_600.0).unwrap_err().to_string();
        assert!(failure.contains("1.10 MiB per hour"), "{failure}");
    }

    #[test]
    fn ratio_to_minute_two_decides_a_short_run() {
        let five_minutes = |growth: f64| {
            let memory = move |at: f64| if at < 200.0 { 20.0 } else { 20.0 * growth };
            Trend::of(&samples(300, memory)).unwrap()
        };
        let flat = five_minutes(1.04);
        assert_eq!(flat.slope, None);
        assert!((flat.ratio() - 1.04).abs() < 1e-9);
        assert!(flat.check(300.0).is_ok());
        let failure = five_minutes(1.06).check(300.0).unwrap_err().to_string();
        assert!(failure.contains("1.060 times"), "{failure}");
    }

    #[test]
    fn run_without_samples_of_minute_two_has_no_trend() {
        assert!(Trend::of(&samples(60, |_| 20.0)).is_err());
        assert!(Trend::of(&[]).is_err());
    }
}
