//! Performance targets, and whether a run meets them.

use super::results::{Sample, ScenarioResult, ServerResult, Verdict};

/// A target of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Its name in the table. Targets of one name share a line, which shows the worst.
    pub(super) what: &'static str,
    pub(super) server: &'static str,
    pub(super) beside: &'static str,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Maximum ratio of the figures.
    Ratio(f64),
    /// Minimum ratio of the figures.
    AtLeast(f64),
    /// Maximum ratio of user time, summed over all rounds, since one round has too little of it.
    User(f64),
    /// Maximum of the figure itself.
    Value(f64),
    /// Maximum ratio, plus a number of microseconds per broadcast to a number of members.
    RatioAndExcess(f64, f64, f64),
    /// Maximum ratio to the figure before the disturbance, or a number of microseconds if that is more.
    Unhindered(f64, f64),
    /// Minimum share of the other's work for the same CPU time.
    Share(f64),
}

impl Target {
    /// Judges the result of a scenario; `None` if one of the two servers is missing.
    pub(super) fn verdict(&self, outcome: &ScenarioResult) -> Option<Verdict> {
        let served = outcome.served(self.server)?;
        let beside = outcome.served(self.beside)?;
        let value = |sample: &Sample| sample.value;
        let ratios = || served.ratios(beside, value);
        let name = match self.beside {
            "floor" => "the floor's",
            other => other,
        };
        let (target, figures) = match self.bound {
            Bound::Ratio(most) => (format!("≤ {most} × {name}"), ratios()),
            Bound::AtLeast(least) => (format!("≥ {least} × {name}"), ratios()),
            Bound::Share(least) => (
                format!("≥ {least} × {name}"),
                ratios().iter().map(|ratio| 1.0 / ratio).collect(),
            ),
            Bound::User(most) => {
                let user = |all: &[Sample]| all.iter().map(|s| s.user).sum::<f64>();
                let ratio = user(&served.rounds) / user(&beside.rounds);
                (format!("≤ {most} × {name}"), vec![ratio])
            }
            Bound::Value(most) => (
                format!("≤ {most}"),
                served.rounds.iter().map(value).collect(),
            ),
            Bound::RatioAndExcess(ratio, micros, members) => {
                let pairs = served.rounds.iter().zip(&beside.rounds);
                let excess = |(ours, floor): (&Sample, &Sample)| {
                    (ours.value - ratio * floor.value) * members
                };
                (
                    format!("≤ {micros} µs a broadcast beyond {ratio} × {name}"),
                    pairs.map(excess).collect(),
                )
            }
            Bound::Unhindered(times, micros) => {
                let most = (times * served.middle(|s| s.unhindered_p99.unwrap_or(0.0))).max(micros);
                (
                    format!(
                        "≤ {:.1} ms: {times} × unhindered, {} ms at least",
                        most / 1e3,
                        micros / 1e3
                    ),
                    served.rounds.iter().map(|s| s.value / 1e3).collect(),
                )
            }
        };
        Verdict::new(self.what, target, &figures, |figure| {
            self.bound.is_met(figure, served)
        })
    }
}

impl Bound {
    fn is_met(self, figure: f64, served: &ServerResult) -> bool {
        match self {
            Self::Ratio(most) | Self::User(most) | Self::Value(most) => figure <= most,
            Self::RatioAndExcess(_, most, _) => figure <= most,
            Self::Unhindered(times, micros) => {
                let unhindered = served.middle(|s| s.unhindered_p99.unwrap_or(0.0));
                figure * 1e3 <= (times * unhindered).max(micros)
            }
            Self::AtLeast(least) | Self::Share(least) => figure >= least,
        }
    }

    fn wants_little(self) -> bool {
        !matches!(self, Self::AtLeast(_) | Self::Share(_))
    }
}

/// Adds a verdict; of two with the same name, the worse is kept.
pub(super) fn add(verdicts: &mut Vec<Verdict>, target: &Target, verdict: Verdict) {
    match verdicts.iter_mut().find(|old| old.what == verdict.what) {
        None => verdicts.push(verdict),
        Some(old) => {
            let is_worse = match target.bound.wants_little() {
                true => verdict.figure > old.figure,
                false => verdict.figure < old.figure,
            };
            if is_worse {
                *old = verdict;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::example;
    use super::*;

    fn judge(bound: Bound) -> Verdict {
        let target = Target {
            what: "echo",
            server: "humphrey_ws",
            beside: "floor",
            bound,
        };
        target.verdict(&example().outcomes[0]).unwrap()
    }

    #[test]
    fn median_decides_the_verdict() {
        let verdict = judge(Bound::Ratio(1.1));
        assert_eq!(
            (verdict.least, verdict.figure, verdict.most),
            (1.0, 1.1, 1.1)
        );
        assert!(verdict.met);
        assert!(!judge(Bound::Ratio(1.09)).met);
        assert!(judge(Bound::AtLeast(1.1)).met);
        assert!(!judge(Bound::AtLeast(1.2)).met);
        assert!(judge(Bound::Value(2.2)).met);
        assert!(judge(Bound::Share(0.9)).met);
        assert!(!judge(Bound::Share(0.95)).met);
    }

    #[test]
    fn unhindered_bound_compares_with_the_time_before() {
        let mut outcome = example().outcomes.remove(0);
        for sample in &mut outcome.servers[1].rounds {
            (sample.value, sample.unhindered_p99) = (6_000.0, Some(2_100.0));
        }
        let mut target = Target {
            what: "echo",
            server: "humphrey_ws",
            beside: "floor",
            bound: Bound::Unhindered(3.0, 5_000.0),
        };
        let verdict = target.verdict(&outcome).unwrap();
        assert_eq!((verdict.figure, verdict.met), (6.0, true));
        target.bound = Bound::Unhindered(2.0, 5_000.0);
        assert!(!target.verdict(&outcome).unwrap().met);
    }

    #[test]
    fn user_time_is_summed_over_all_rounds() {
        let verdict = judge(Bound::User(1.07));
        assert!((verdict.figure - 8.6 / 8.0).abs() < 1e-9);
        assert!(!verdict.met);
    }

    #[test]
    fn worst_verdict_of_one_name_is_kept() {
        let mut verdicts = Vec::new();
        let target = |bound| Target {
            what: "echo",
            server: "humphrey_ws",
            beside: "floor",
            bound,
        };
        for (bound, figure) in [(Bound::Ratio(1.0), 0.9), (Bound::Ratio(1.0), 1.2)] {
            let verdict = Verdict {
                figure,
                met: bound.is_met(figure, &example().outcomes[0].servers[1]),
                ..judge(bound)
            };
            add(&mut verdicts, &target(bound), verdict);
        }
        assert_eq!(verdicts.len(), 1);
        assert!(!verdicts[0].met);
    }

    #[test]
    fn missing_server_yields_no_verdict() {
        let target = Target {
            what: "echo",
            server: "humphrey_ws",
            beside: "nobody",
            bound: Bound::Ratio(1.0),
        };
        assert!(target.verdict(&example().outcomes[0]).is_none());
    }
}
