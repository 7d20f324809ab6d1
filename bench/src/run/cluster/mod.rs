//! `bench cluster` measures the costs of a cluster: of the nodes, which are processes of their own, and of the broker server
//! between them.

mod rates;
mod remote;
mod report;
mod restart;
mod scenarios;
mod shares;
mod traffic;

use std::io;
use std::path::PathBuf;

use self::report::{ClusterReport, ScenarioReport};
use self::scenarios::Scenario;
use super::broker::{self, Broker, BrokerKind};
use super::cost::ForeignLoad;
use super::node_process::{NodeProcess, NodeSpec, StartError};
use super::report::machine_line;
use crate::args::{self, OptionSpec, Options};
use crate::machine;
use crate::node::NodeCommand;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::flag("list"),
    args::value("only"),
    args::value("redis"),
    args::value("nats"),
    args::value("rounds"),
    args::value("cpu-seconds"),
    args::value("out"),
    args::value("targets"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

struct Setup {
    quick: bool,
    /// This program, built with the feature `cluster`.
    program: PathBuf,
    broker: BrokerKind,
    /// The server to start.
    server: String,
    rounds: usize,
    /// Minimum CPU time of the receiving node per measurement, in seconds.
    cpu_seconds: f64,
    /// The CPU of nodes whose CPU time is measured.
    server_cpu: String,
    /// The CPU of the broker, the sending node and the clients meanwhile.
    client_cpu: String,
    all_cpus: String,
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let only = options.text("only").unwrap_or_default();
    let is_picked = |scenario: &&Scenario| only.split(',').any(|part| scenario.id.contains(part));
    let scenarios: Vec<&Scenario> = scenarios::ALL.iter().filter(is_picked).collect();
    if scenarios.is_empty() {
        return Err(args::bad("only", only));
    }
    if options.flag("list") {
        let scenarios = scenarios.iter();
        scenarios.for_each(|scenario| println!("{:20} {}", scenario.id, scenario.title));
        return Ok(());
    }
    let setup = setup(options)?;
    let mut report = ClusterReport {
        head: head(&setup)?,
        ..ClusterReport::default()
    };
    let foreign = ForeignLoad::begin()?;
    for scenario in scenarios {
        let outcome = measure(&setup, scenario)?;
        if !setup.quick {
            report.verdicts.extend(outcome.verdicts(scenario));
        }
        report.scenarios.push(outcome);
    }
    report.head.push(foreign.line()?);
    report::write(&report, options)
}

fn setup(options: &Options) -> io::Result<Setup> {
    let quick = options.flag("quick");
    let cpus = machine::allowed_cpus()?;
    let (broker, server) = broker::chosen(options);
    let setup = Setup {
        quick,
        program: super::cluster_program()?,
        broker,
        server,
        rounds: options.number("rounds", if quick { 1 } else { 3 })?,
        cpu_seconds: options.number("cpu-seconds", if quick { 0.02 } else { 1.0 })?,
        server_cpu: options.number("server-cpu", cpus[0])?.to_string(),
        client_cpu: options
            .number("client-cpu", *cpus.get(1).unwrap_or(&cpus[0]))?
            .to_string(),
        all_cpus: machine::cpu_list(&cpus),
    };
    if !(1..=100).contains(&setup.rounds) {
        return Err(args::bad("rounds", &setup.rounds.to_string()));
    }
    if !(0.01..=60.0).contains(&setup.cpu_seconds) {
        return Err(args::bad("cpu-seconds", &setup.cpu_seconds.to_string()));
    }
    machine::raise_descriptor_limit()?;
    Ok(setup)
}

/// Describes the machine and the method.
fn head(setup: &Setup) -> io::Result<Vec<String>> {
    let idle_share = super::idle_share_now()?;
    let version = setup.start_broker(&setup.all_cpus)?.version()?;
    let mut head = vec![
        machine_line(idle_share),
        format!(
            "{version}. Receiving nodes on CPU {}; the sending node, the broker and the clients on CPU {}; for messages per \
             second, all on all CPUs. Rounds: {}; CPU of the receiving node per measurement: {} s or more.",
            setup.server_cpu, setup.client_cpu, setup.rounds, setup.cpu_seconds
        ),
    ];
    if setup.quick {
        head.push("A quick run: its figures mean little.".into());
    }
    Ok(head)
}

/// Measures all rounds of a scenario. A scenario whose node refuses to start is skipped.
fn measure(setup: &Setup, scenario: &Scenario) -> io::Result<ScenarioReport> {
    let mut outcome = ScenarioReport::new(scenario);
    for round in 1..=setup.rounds {
        match (scenario.measure)(setup) {
            Ok(values) => {
                let line = outcome.add(&values);
                let (title, rounds) = (scenario.title, setup.rounds);
                eprintln!("{title}, round {round} of {rounds}:{line}");
            }
            Err(error @ StartError::Refused(_)) => {
                eprintln!("{}: {error}", scenario.title);
                outcome.failure = Some(error.to_string());
                break;
            }
            Err(StartError::Io(error)) => {
                let text = format!("{}: {error}", scenario.title);
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
    Ok(outcome)
}

impl Setup {
    /// Number of messages of a measurement, or fewer in a quick run.
    fn messages(&self, count: u64) -> u64 {
        if self.quick { count / 50 } else { count }
    }

    fn start_broker(&self, cpus: &str) -> io::Result<Broker> {
        Broker::start(self.broker, &self.server, &self.program, cpus)
    }

    /// Starts a node that is part of no cluster.
    fn lone_node(&self, cpus: &str) -> Result<NodeProcess, StartError> {
        NodeProcess::start(NodeSpec {
            program: &self.program,
            cpus,
            cluster: None,
            has_history: false,
        })
    }
}

/// A broker server, to which nodes can be added.
struct Site<'a> {
    setup: &'a Setup,
    broker: Broker,
    url: String,
}

impl<'a> Site<'a> {
    fn start(setup: &'a Setup, cpus: &str) -> io::Result<Self> {
        let broker = setup.start_broker(cpus)?;
        let url = broker.url();
        Ok(Self { setup, broker, url })
    }

    fn node(&self, cpus: &str, has_history: bool) -> Result<NodeProcess, StartError> {
        NodeProcess::start(NodeSpec {
            program: &self.setup.program,
            cpus,
            cluster: Some(&self.url),
            has_history,
        })
    }

    /// Waits until all nodes hear each other.
    fn connect<const N: usize>(&self, nodes: [&mut NodeProcess; N]) -> io::Result<()> {
        let all = NodeCommand::Hear { nodes: N as u64 };
        for node in nodes {
            node.ask(&all)?;
        }
        Ok(())
    }
}
