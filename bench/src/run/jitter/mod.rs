//! `bench jitter`: clients whose connections are cut again and again, and which resume on another node. Every message is
//! accounted for, and the time of each replay is measured.

mod account;
mod client;
mod publisher;
mod swarm;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::account::Totals;
use self::publisher::Publisher;
use self::swarm::{CutPlan, Swarm};
use super::broker::{self, Broker, BrokerKind};
use super::markdown::number;
use super::node_process::{NodeProcess, NodeSpec};
use crate::args::{self, OptionSpec, Options};
use crate::histogram::Summary;
use crate::machine;
use crate::node::NodeCommand;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("clients"),
    args::value("rooms"),
    args::value("nodes"),
    args::value("interval"),
    args::value("offline"),
    args::value("seconds"),
    args::value("rate"),
    args::value("replay-p99-max"),
    args::value("redis"),
];

const ROOMS_MAX: usize = 1_000;
/// Number of descriptors for other files than the clients' sockets.
const DESCRIPTORS_LEFT: u64 = 64;

struct Setup {
    clients: usize,
    rooms: usize,
    nodes: usize,
    plan: CutPlan,
    time: Duration,
    /// Messages per second, to all rooms together.
    rate: f64,
    replay_p99_max: Option<Duration>,
    /// This program; with several nodes, built with the feature `cluster`.
    program: PathBuf,
    redis: String,
    cpus: String,
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let setup = setup(options)?;
    println!("{}", machine::describe());
    let redis = match setup.nodes {
        1 => None,
        _ => Some(Broker::start(
            BrokerKind::Redis,
            &setup.redis,
            &setup.program,
            &setup.cpus,
        )?),
    };
    let url = redis.as_ref().map(Broker::url);
    let mut nodes = Vec::with_capacity(setup.nodes);
    for _ in 0..setup.nodes {
        nodes.push(NodeProcess::start(NodeSpec {
            program: &setup.program,
            cpus: &setup.cpus,
            cluster: url.as_deref(),
            has_history: true,
        })?);
    }
    if redis.is_some() {
        let nodes_heard = NodeCommand::Hear {
            nodes: setup.nodes as u64,
        };
        for node in &mut nodes {
            node.ask(&nodes_heard)?;
        }
    }
    let outcome = run(&setup, &nodes)?;
    outcome.print(&setup);
    let cpu: io::Result<f64> = nodes.iter().map(NodeProcess::cpu_seconds).sum();
    println!("CPU time: {:.1} s of the nodes, all together", cpu?);
    if let Some(redis) = &redis {
        println!("CPU time: {:.1} s of Redis", redis.cpu_seconds()?);
    }
    outcome.print_row(&setup);
    outcome.check(&setup)
}

fn setup(options: &Options) -> io::Result<Setup> {
    let clients = options.number("clients", 10_000)?;
    let nodes = options.number("nodes", 2)?;
    let rooms = options.number("rooms", (clients / 10).clamp(1, ROOMS_MAX))?;
    let offline = seconds(options, "offline", 2.0)?;
    let default_rate = match offline.is_zero() {
        true => rooms as f64,
        false => rooms as f64 / offline.as_secs_f64(),
    };
    let cpus = machine::allowed_cpus()?;
    let setup = Setup {
        clients,
        rooms,
        nodes,
        plan: CutPlan {
            interval: seconds(options, "interval", 15.0)?,
            offline,
        },
        time: seconds(options, "seconds", 120.0)?,
        rate: options.number("rate", default_rate)?,
        replay_p99_max: match options.text("replay-p99-max") {
            None => None,
            Some(_) => Some(seconds(options, "replay-p99-max", 0.0)? / 1_000),
        },
        program: match nodes {
            1 => std::env::current_exe()?,
            _ => super::cluster_program()?,
        },
        redis: options.text("redis").unwrap_or(broker::REDIS).into(),
        cpus: machine::cpu_list(&cpus),
    };
    if setup.clients == 0 {
        return Err(args::bad("clients", "0"));
    }
    if !(1..=ROOMS_MAX.min(setup.clients)).contains(&setup.rooms) {
        return Err(args::bad("rooms", &setup.rooms.to_string()));
    }
    if !(1..=64).contains(&setup.nodes) {
        return Err(args::bad("nodes", &setup.nodes.to_string()));
    }
    if setup.plan.offline >= setup.plan.interval {
        let text = "--offline must be shorter than --interval, or clients would stay offline";
        return Err(args::invalid(text.into()));
    }
    if !(setup.rate > 0.0 && setup.rate <= 1e6) {
        return Err(args::bad("rate", &setup.rate.to_string()));
    }
    let descriptors = machine::raise_descriptor_limit()?;
    if setup.clients as u64 + DESCRIPTORS_LEFT > descriptors {
        return Err(args::invalid(format!(
            "{clients} clients need more than the {descriptors} descriptors that a process may have: lower --clients, or \
             raise the limit with ulimit -n"
        )));
    }
    Ok(setup)
}

/// A duration in seconds, of at most a day.
fn seconds(options: &Options, name: &str, default: f64) -> io::Result<Duration> {
    let seconds: f64 = options.number(name, default)?;
    match (0.0..=86_400.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(args::bad(name, &seconds.to_string())),
    }
}

/// The results of a run.
struct Outcome {
    swarm: Swarm,
    published: u64,
    totals: Totals,
    replays: Summary,
    /// How long the first joins took.
    joining: Duration,
}

fn run(setup: &Setup, nodes: &[NodeProcess]) -> io::Result<Outcome> {
    let addresses = nodes.iter().map(|node| node.address).collect();
    let mut swarm = Swarm::new(addresses, setup.clients, setup.rooms, setup.plan)?;
    let begun = Instant::now();
    swarm.join()?;
    let joining = begun.elapsed();
    eprintln!(
        "{} clients have joined in {:.1} s; running for {} s",
        setup.clients,
        joining.as_secs_f64(),
        setup.time.as_secs_f64()
    );
    // Every client is a member of its room by now, so all messages are due.
    let publisher = Publisher::start(nodes[0].command_pipe()?, setup.rooms, setup.rate);
    let outcome = swarm.run(setup.time);
    let published = publisher.finish()?;
    outcome?;
    let totals = swarm.finish(published)?;
    Ok(Outcome {
        published,
        totals,
        replays: swarm.replays.summary(),
        joining,
        swarm,
    })
}

impl Outcome {
    /// Prints one line per fact.
    fn print(&self, setup: &Setup) {
        let Totals {
            due,
            received,
            lost,
            twice,
            out_of_order,
            unknown,
        } = self.totals;
        let counts = &self.swarm.counts;
        let Summary { p50, p99, max, .. } = self.replays;
        println!("nodes: {}", setup.nodes);
        println!("clients: {}, in {} rooms", setup.clients, setup.rooms);
        println!("first joins: all, in {:.1} s", self.joining.as_secs_f64());
        println!(
            "schedule: for {} s, each connection is cut every {} s, and the client is offline for {} s",
            setup.time.as_secs_f64(),
            setup.plan.interval.as_secs_f64(),
            setup.plan.offline.as_secs_f64()
        );
        println!(
            "published: {} messages, {} per second",
            self.published,
            number(setup.rate)
        );
        println!(
            "cuts: {}, of which {} before the client had resumed",
            counts.cuts, counts.early_cuts
        );
        match &counts.first_failure {
            None => println!("connections that ended otherwise: 0"),
            Some(reason) => println!(
                "connections that ended otherwise: {}, the first with: {reason}",
                counts.failures
            ),
        }
        println!(
            "resumed: {}, of which {} had missed nothing",
            counts.resumed, counts.nothing_missed
        );
        println!("not resumed at the end: {}", self.swarm.absent());
        println!("replayed: {} messages", counts.replayed);
        println!("due: {due} messages");
        println!("received: {received}");
        println!("lost: {lost}");
        println!("received twice: {twice}");
        println!("out of order: {out_of_order}");
        println!("never sent, but received: {unknown}");
        println!("gaps told: {}", self.swarm.gaps());
        println!(
            "replay time: median {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            millis(p50),
            millis(p99),
            millis(max)
        );
    }

    /// Prints the summary as a table of one row.
    fn print_row(&self, setup: &Setup) {
        let Totals {
            due,
            received,
            lost,
            twice,
            out_of_order,
            ..
        } = self.totals;
        let Summary { p50, p99, max, .. } = self.replays;
        println!(
            "\n| nodes | clients | cuts | due | received | lost | twice | out of order | gaps | replay p50, ms | p99 | max |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
        println!(
            "| {} | {} | {} | {due} | {received} | {lost} | {twice} | {out_of_order} | {} | {:.2} | {:.2} | {:.2} |",
            setup.nodes,
            setup.clients,
            self.swarm.counts.cuts,
            self.swarm.gaps(),
            millis(p50),
            millis(p99),
            millis(max)
        );
    }

    /// Fails if a message was lost, or arrived twice or out of order, if connections ended otherwise than by a cut, if clients
    /// could not resume, or if replays took too long.
    fn check(&self, setup: &Setup) -> io::Result<()> {
        let counts = &self.swarm.counts;
        if counts.failures > 0 {
            let failures = counts.failures;
            let text = format!("{failures} connections ended otherwise than by a cut");
            return Err(io::Error::other(text));
        }
        if counts.resumed == 0 {
            return Err(io::Error::other("no client resumed"));
        }
        if !self.totals.is_exact() {
            let text = "messages were lost, or arrived twice or out of order";
            return Err(io::Error::other(text));
        }
        match self.swarm.absent() {
            0 => {}
            absent => {
                let text = format!("{absent} clients could not resume at the end");
                return Err(io::Error::other(text));
            }
        }
        match setup.replay_p99_max {
            Some(most) if self.replays.p99 > most => Err(io::Error::other(format!(
                "the 99th percentile of the replay time is {:.2} ms, more than {:.2} ms",
                millis(self.replays.p99),
                millis(most)
            ))),
            _ => Ok(()),
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
