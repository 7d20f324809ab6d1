//! `bench size`: how large a cluster fits on one machine. It connects many idle clients to many nodes, and measures their
//! memory, and broadcasts that every client has to receive once.

mod clients;
mod report;
mod site;

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use humphrey_ws::Limits;

use self::report::{Measured, SizeReport};
use self::site::Site;
use super::broker::{self, BrokerKind};
use super::cost::ForeignLoad;
use super::markdown;
use super::report::machine_line;
use crate::args::{self, OptionSpec, Options};
use crate::load::connect;
use crate::machine;

pub(crate) use clients::{OPTIONS as MEMBERS_OPTIONS, serve as serve_members};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::value("nodes"),
    args::value("clients"),
    args::value("broadcasts"),
    args::value("redis"),
    args::value("nats"),
    args::value("out"),
    args::value("page"),
];

/// Nodes are bounded by the source addresses of their clients.
const NODES_MAX: usize = 64;
const BROADCASTS_MAX: usize = 1_000;
/// Number of descriptors for other files than the sockets of clients.
const DESCRIPTORS_LEFT: u64 = 64;
/// Clients of each node, and messages to them, before the baseline of memory is read, so that code and stacks used for the
/// first time do not count as the cost of connections.
const FIRST_CLIENTS: usize = 64;
const FIRST_BROADCASTS: usize = 20;

struct Setup {
    quick: bool,
    nodes: usize,
    /// Clients of all nodes together.
    clients: usize,
    broadcasts: usize,
    /// This program, built with the feature `cluster`.
    program: PathBuf,
    broker: BrokerKind,
    /// The server to start.
    server: String,
    /// Those that all processes share.
    cpus: String,
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let setup = setup(options)?;
    let machine = machine_line(super::idle_share_now()?);
    let foreign = ForeignLoad::begin()?;
    let mut site = Site::start(&setup)?;
    let mut report = SizeReport {
        head: setup.head(machine, &site.broker.version()?),
        connections: setup.connections(),
        ..SizeReport::default()
    };
    let measured = measure(&setup, &mut site)?;
    report.received = site.finish()?;
    report.expected = site.expected;
    drop(site);
    if report.received != report.expected {
        return Err(io::Error::other(format!(
            "{} deliveries received where {} were expected",
            report.received, report.expected
        )));
    }
    report.head.push(format!(
        "Every client received each broadcast once: {} deliveries.",
        markdown::number(report.received as f64)
    ));
    report.head.push(foreign.line()?);
    report.figures = measured.figures();
    report::write(&report, options)
}

fn setup(options: &Options) -> io::Result<Setup> {
    let quick = options.flag("quick");
    let cpus = machine::allowed_cpus()?;
    let (broker, server) = broker::chosen(options);
    let setup = Setup {
        quick,
        nodes: options.number("nodes", if quick { 3 } else { 11 })?,
        clients: options.number("clients", if quick { 3_000 } else { 200_000 })?,
        broadcasts: options.number("broadcasts", if quick { 3 } else { 11 })?,
        program: PathBuf::new(),
        broker,
        server,
        cpus: machine::cpu_list(&cpus),
    };
    let Setup { nodes, clients, .. } = setup;
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(args::bad("nodes", &nodes.to_string()));
    }
    if clients <= FIRST_CLIENTS * nodes {
        return Err(args::invalid(format!(
            "--clients must be more than {FIRST_CLIENTS} for each node, which only warm it up"
        )));
    }
    if !(1..=BROADCASTS_MAX).contains(&setup.broadcasts) {
        return Err(args::bad("broadcasts", &setup.broadcasts.to_string()));
    }
    let descriptors = machine::raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_LEFT);
    let most = descriptors.min(connect::PER_SOURCE as u64);
    if clients.div_ceil(nodes) as u64 > most {
        return Err(args::invalid(format!(
            "a node can have at most {most} of the {clients} clients, because of its descriptors and their ports: raise \
             --nodes, or lower --clients"
        )));
    }
    // Building it takes minutes, so everything else is checked first.
    let program = super::cluster_program()?;
    Ok(Setup { program, ..setup })
}

impl Setup {
    /// The connections of each node, which differ by one at most.
    fn connections(&self) -> Vec<usize> {
        let (each, more) = (self.clients / self.nodes, self.clients % self.nodes);
        let nodes = 0..self.nodes;
        nodes.map(|node| each + usize::from(node < more)).collect()
    }

    /// Describes the machine and the method.
    fn head(&self, machine: String, broker: &str) -> Vec<String> {
        let mut head = vec![
            machine,
            format!(
                "{broker}. {} nodes with one shard each, and {} clients in {} processes, all on the CPUs {}. All clients are \
                 members of one room. Broadcasts: {}, of {} bytes, one at a time, each by the next node.",
                self.nodes,
                markdown::number(self.clients as f64),
                self.nodes,
                self.cpus,
                self.broadcasts,
                crate::node::MESSAGE_BYTES
            ),
        ];
        if self.quick {
            head.push("A quick run: its figures mean little.".into());
        }
        head
    }

    /// Waits until nothing is left to do.
    fn settle(&self) {
        thread::sleep(Duration::from_millis(if self.quick { 200 } else { 2_000 }));
    }

    /// Waits until connections that were made are idle. Until the timeout of its handshake, each may wake its shard once more.
    fn settle_connections(&self) {
        if !self.quick {
            thread::sleep(Limits::default().handshake_timeout);
        }
        self.settle();
    }
}

fn measure(setup: &Setup, site: &mut Site) -> io::Result<Measured> {
    let first_connections = vec![FIRST_CLIENTS; setup.nodes];
    site.connect(&first_connections)?;
    for _ in 0..FIRST_BROADCASTS {
        site.broadcast()?;
    }
    setup.settle();
    let base = site.memory_use()?;
    let (took, connecting) = site.connect(&setup.connections())?;
    let connecting_seconds = took.as_secs_f64();
    eprintln!(
        "{} clients connected in {connecting_seconds:.1} s",
        setup.clients
    );
    setup.settle_connections();
    let full = site.memory_use()?;
    let idle = site.idle(Duration::from_millis(if setup.quick {
        500
    } else {
        10_000
    }))?;
    let mut broadcasts = Vec::with_capacity(setup.broadcasts);
    for number in 1..=setup.broadcasts {
        let sample = site.broadcast()?;
        eprintln!(
            "broadcast {number} of {}: {:.0} ms until the last client",
            setup.broadcasts,
            sample.until_last.as_secs_f64() * 1e3
        );
        broadcasts.push(sample);
    }
    setup.settle();
    Ok(Measured {
        first_connections,
        connections: site.connections.clone(),
        connecting_seconds,
        connecting,
        base,
        full,
        later: site.memory_use()?,
        idle,
        broadcasts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_evenly() {
        let setup = Setup {
            quick: true,
            nodes: 3,
            clients: 1_001,
            broadcasts: 1,
            program: PathBuf::new(),
            broker: BrokerKind::Redis,
            server: String::new(),
            cpus: "0".into(),
        };
        assert_eq!(setup.connections(), [334, 334, 333]);
    }
}
