//! What is aimed at, and whether a run has reached it.

use super::results::{Sample, ScenarioResult, ServerResult, Verdict, spread};

/// A target of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// How the table calls it. Targets of one name are one line, with the worst of them.
    pub(super) what: &'static str,
    pub(super) server: &'static str,
    pub(super) beside: &'static str,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// The figure's ratio, at most.
    Ratio(f64),
    /// The figure's ratio, at least.
    AtLeast(f64),
    /// The ratio of user time alone, over all rounds together: there is too little of it in one.
    User(f64),
    /// The figure itself, at most.
    Value(f64),
    /// So many times the other's, and this many microseconds for each broadcast, to so many members, besides.
    RatioAndExcess(f64, f64, f64),
    /// So many times what it is when nothing is in the way, or so many microseconds if that is more.
    Unhindered(f64, f64),
    /// The work that is done with the same CPU time, as a share of the other's, at least.
    Share(f64),
}

impl Target {
    /// What the outcome says to it; nothing where one of the two servers is missing.
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
        let (least, figure, most) = spread(&figures)?;
        Some(Verdict {
            what: self.what.into(),
            target,
            figure,
            least,
            most,
            met: self.bound.is_met(figure, served),
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

/// Adds a verdict; one of the same name keeps the worse of the two.
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
    fn a_median_decides() {
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
    fn what_others_notice_is_beside_what_they_did_before() {
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
    fn user_time_is_taken_over_all_rounds() {
        let verdict = judge(Bound::User(1.07));
        assert!((verdict.figure - 8.6 / 8.0).abs() < 1e-9);
        assert!(!verdict.met);
    }

    #[test]
    fn of_one_name_the_worst_counts() {
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
    fn who_is_missing_is_not_judged() {
        let target = Target {
            what: "echo",
            server: "humphrey_ws",
            beside: "nobody",
            bound: Bound::Ratio(1.0),
        };
        assert!(target.verdict(&example().outcomes[0]).is_none());
    }
}
