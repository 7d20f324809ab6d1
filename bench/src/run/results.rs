//! The results as written to the JSON file, from which table and plot are made.

use serde::{Deserialize, Serialize};

/// The results of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    /// Notes on all figures: the machine and the method.
    pub(super) head: Vec<String>,
    /// The measured peers with their versions.
    pub(super) peers: Vec<String>,
    /// The peers that could not be measured, and why.
    pub(super) left_out: Vec<String>,
    pub(super) outcomes: Vec<ScenarioResult>,
    pub(super) verdicts: Vec<Verdict>,
}

/// The figures of one scenario.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ScenarioResult {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) unit: Unit,
    /// The others are compared with the first.
    pub(super) servers: Vec<ServerResult>,
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Unit {
    /// Microseconds of the server's CPU for each delivery.
    CpuPerDelivery,
    /// Microseconds of the server's CPU for each connection made.
    CpuPerConnection,
    /// Resident bytes for each connection.
    BytesPerConnection,
    /// Resident bytes for each membership.
    BytesPerMembership,
    /// Median latency in microseconds.
    Median,
    /// 99th percentile of latency in microseconds.
    Percentile99,
    /// 99.9th percentile of latency in microseconds.
    Percentile999,
    /// Messages per second.
    Rate,
}

impl Unit {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::CpuPerDelivery => "µs of CPU per delivery",
            Self::CpuPerConnection => "µs of CPU per connection",
            Self::BytesPerConnection => "bytes per connection",
            Self::BytesPerMembership => "bytes per membership",
            Self::Median => "p50, µs",
            Self::Percentile99 => "p99, µs",
            Self::Percentile999 => "p99.9, µs",
            Self::Rate => "messages per second",
        }
    }
}

/// The samples of one server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerResult {
    pub(super) server: String,
    pub(super) is_peer: bool,
    pub(super) rounds: Vec<Sample>,
    /// Why rounds are missing.
    pub(super) failure: Option<String>,
}

/// One server's figures in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// The figure, in the scenario's unit.
    pub(super) value: f64,
    /// For CPU costs: user and system time.
    pub(super) user: f64,
    pub(super) system: f64,
    /// Deliveries expected and received.
    pub(super) expected: u64,
    pub(super) received: u64,
    /// Latency in microseconds, from sending a message, or from when it was due, to receiving it.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    /// 99th percentile before the disturbance that the scenario measures.
    pub(super) unhindered_p99: Option<f64>,
    /// For idle connections: wake-ups of all server threads per second.
    pub(super) wake_ups: Option<f64>,
    /// Resident memory in bytes at the end.
    pub(super) resident: Option<u64>,
    /// Temporary joins of a room per second.
    pub(super) visits: Option<f64>,
    /// CPU time of the server during the measurement, in seconds.
    pub(super) cpu_seconds: f64,
    /// The share of all CPUs that other processes used meanwhile.
    pub(super) foreign: f64,
}

/// A target, and whether it was met.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Verdict {
    pub(super) what: String,
    pub(super) target: String,
    /// Median, minimum and maximum over the rounds.
    pub(super) figure: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) met: bool,
}

impl Verdict {
    /// Judges the median of the rounds' figures; `None` without figures.
    pub(super) fn new(
        what: &str,
        target: String,
        figures: &[f64],
        is_met: impl FnOnce(f64) -> bool,
    ) -> Option<Self> {
        let (least, figure, most) = spread(figures)?;
        Some(Self {
            what: what.into(),
            target,
            figure,
            least,
            most,
            met: is_met(figure),
        })
    }
}

impl ScenarioResult {
    pub(super) fn served(&self, server: &str) -> Option<&ServerResult> {
        self.servers.iter().find(|served| served.server == server)
    }
}

impl ServerResult {
    /// The round whose figure is the median.
    pub(super) fn median(&self) -> Option<Sample> {
        median_by(self.rounds.iter().copied(), |sample| sample.value)
    }

    pub(super) fn middle(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        median_by(self.rounds.iter().map(of), |value| *value).unwrap_or(f64::NAN)
    }

    /// The ratio of `of` here to `of` in `other`, for each round.
    pub(super) fn ratios(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        pairs.map(|(ours, theirs)| of(ours) / of(theirs)).collect()
    }
}

/// The median item; the lower one of two.
pub(super) fn median_by<T: Copy>(
    items: impl Iterator<Item = T>,
    key: impl Fn(&T) -> f64,
) -> Option<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_by(|a, b| key(a).total_cmp(&key(b)));
    items.get(items.len().saturating_sub(1) / 2).copied()
}

/// Minimum, median and maximum.
pub(super) fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    let middle = median_by(values.iter().copied(), |v| *v)?;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some((least, middle, most))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run in which one server failed half-way.
    pub(in crate::run) fn example() -> Results {
        let sample = |value: f64| Sample {
            value,
            user: value / 4.0,
            system: value * 0.75,
            expected: 1_000,
            received: 1_000,
            p50: 80.0,
            p99: 2_500.0,
            max: 4_000.0,
            ..Sample::default()
        };
        let served = |server: &str, values: &[f64], failure: Option<&str>| ServerResult {
            server: server.into(),
            is_peer: server == "Bun",
            rounds: values.iter().map(|value| sample(*value)).collect(),
            failure: failure.map(str::to_owned),
        };
        Results {
            head: vec!["A machine.".into()],
            peers: vec!["bun 1.0".into()],
            left_out: vec!["ws (Node.js): npm: not found".into()],
            outcomes: vec![ScenarioResult {
                id: "echo".into(),
                title: "echo <100>".into(),
                unit: Unit::CpuPerDelivery,
                servers: vec![
                    served("floor", &[2.0, 2.0, 4.0], None),
                    served("humphrey_ws", &[2.2, 2.0, 4.4], None),
                    served("Bun", &[2.5], Some("a message was lost")),
                ],
            }],
            verdicts: vec![Verdict {
                what: "echo".into(),
                target: "≤ 1.05 × the floor".into(),
                figure: 1.1,
                least: 1.0,
                most: 1.1,
                met: false,
            }],
        }
    }

    #[test]
    fn spread_yields_least_median_and_most() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(median_by([4.0, 1.0].into_iter(), |v| *v), Some(1.0));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_compare_the_same_round() {
        let results = example();
        let [floor, ours, bun] = &results.outcomes[0].servers[..] else {
            panic!("three servers");
        };
        let ratios = ours.ratios(floor, |sample| sample.value);
        assert_eq!(spread(&ratios), Some((1.0, 1.1, 1.1)));
        assert_eq!(bun.ratios(floor, |sample| sample.value), [1.25]);
    }

    #[test]
    fn results_survive_a_json_round_trip() {
        let json = serde_json::to_string_pretty(&example()).unwrap();
        let again: Results = serde_json::from_str(&json).unwrap();
        let table = crate::run::markdown::long;
        assert_eq!(table(&again), table(&example()));
        assert_eq!(again.outcomes[0].servers[1].rounds.len(), 3);
    }
}
