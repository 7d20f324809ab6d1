//! A cluster with its clients: the broker server, the nodes, and a process of clients for each node.

use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::Setup;
use super::clients::{ClientCommand, ClientProcess};
use crate::machine;
use crate::node::NodeCommand;
use crate::run::broker::Broker;
use crate::run::members::Receipts;
use crate::run::node_process::{NodeProcess, NodeSpec};

/// How long clients prepare to receive before a broadcast.
const PREPARING: Duration = Duration::from_millis(100);

/// Its processes end in the order of the fields.
pub(super) struct Site {
    clients: Vec<ClientProcess>,
    nodes: Vec<NodeProcess>,
    pub(super) broker: Broker,
    /// Connections of each node.
    pub(super) connections: Vec<usize>,
    /// Broadcasts so far, and the deliveries that they make together.
    broadcasts: u64,
    pub(super) expected: u64,
}

/// CPU time in seconds that the processes have used.
pub(super) struct CpuUse {
    /// That of each node.
    pub(super) nodes: Vec<f64>,
    pub(super) broker: f64,
    /// That of all clients together.
    pub(super) clients: f64,
}

impl CpuUse {
    fn since(self, earlier: &Self) -> Self {
        let pairs = self.nodes.iter().zip(&earlier.nodes);
        Self {
            nodes: pairs.map(|(now, before)| now - before).collect(),
            broker: self.broker - earlier.broker,
            clients: self.clients - earlier.clients,
        }
    }

    pub(super) fn all_nodes(&self) -> f64 {
        self.nodes.iter().sum()
    }
}

/// How long a broadcast took, from its call, and what it cost.
pub(super) struct BroadcastSample {
    pub(super) until_first: Duration,
    pub(super) until_last: Duration,
    pub(super) cpu: CpuUse,
}

/// What a time without messages cost.
pub(super) struct IdleSample {
    pub(super) seconds: f64,
    pub(super) cpu: CpuUse,
    /// How often threads of each node were woken.
    pub(super) wake_ups: Vec<u64>,
}

/// Memory in bytes.
pub(super) struct MemoryUse {
    /// Resident memory of each node.
    pub(super) nodes: Vec<u64>,
    /// The kernel's, of the whole machine.
    pub(super) slab: u64,
}

impl Site {
    /// Starts all processes, and waits until the nodes hear each other. Nobody is connected yet.
    pub(super) fn start(setup: &Setup) -> io::Result<Self> {
        let broker = Broker::start(setup.broker, &setup.server, &setup.program, &setup.cpus)?;
        let url = broker.url();
        let mut nodes = Vec::with_capacity(setup.nodes);
        for _ in 0..setup.nodes {
            nodes.push(NodeProcess::start(NodeSpec {
                program: &setup.program,
                cpus: &setup.cpus,
                cluster: Some(&url),
                has_history: false,
            })?);
        }
        let all = NodeCommand::Hear {
            nodes: setup.nodes as u64,
        };
        for node in &mut nodes {
            node.ask(&all)?;
        }
        let clients = nodes.iter().zip(1..).map(|(node, number)| {
            let source = Ipv4Addr::new(127, 0, 1, number);
            ClientProcess::start(&setup.program, &setup.cpus, node.address, source)
        });
        Ok(Self {
            clients: clients.collect::<io::Result<_>>()?,
            connections: vec![0; nodes.len()],
            nodes,
            broker,
            broadcasts: 0,
            expected: 0,
        })
    }

    /// Connects clients to each node until it has this number, on all nodes at the same time. Returns how long it took, and the
    /// CPU time.
    pub(super) fn connect(&mut self, connections: &[usize]) -> io::Result<(Duration, CpuUse)> {
        let (begun, before) = (Instant::now(), self.cpu_use()?);
        for ((client, now), &then) in self
            .clients
            .iter_mut()
            .zip(&self.connections)
            .zip(connections)
        {
            client.send(ClientCommand::Join { count: then - now })?;
        }
        for (client, &then) in self.clients.iter_mut().zip(connections) {
            let joined = client.count()?;
            if joined != then as u64 {
                let text = format!("a node has {joined} members instead of {then}");
                return Err(io::Error::other(text));
            }
        }
        self.connections = connections.to_vec();
        Ok((begun.elapsed(), self.cpu_use()?.since(&before)))
    }

    /// Lets the next node broadcast a message to the room, and waits until every client has received it.
    pub(super) fn broadcast(&mut self) -> io::Result<BroadcastSample> {
        for client in &mut self.clients {
            client.send(ClientCommand::Receive)?;
        }
        thread::sleep(PREPARING);
        let before = self.cpu_use()?;
        let number = self.broadcasts;
        let at = number as usize % self.nodes.len();
        let called = self.nodes[at].ask(&NodeCommand::Broadcast { number })?;
        self.broadcasts += 1;
        self.expected += self.connections.iter().sum::<usize>() as u64;
        let (mut first, mut last) = (u64::MAX, 0);
        for client in &mut self.clients {
            let receipts: Receipts = client.receipts()?;
            first = first.min(receipts.first);
            last = last.max(receipts.last);
        }
        Ok(BroadcastSample {
            until_first: Duration::from_nanos(first.saturating_sub(called)),
            until_last: Duration::from_nanos(last.saturating_sub(called)),
            cpu: self.cpu_use()?.since(&before),
        })
    }

    /// Lets everything rest for this time.
    pub(super) fn idle(&self, time: Duration) -> io::Result<IdleSample> {
        let (begun, woken, before) = (Instant::now(), self.wake_ups()?, self.cpu_use()?);
        thread::sleep(time);
        let cpu = self.cpu_use()?.since(&before);
        let pairs = self.wake_ups()?.into_iter().zip(woken);
        Ok(IdleSample {
            seconds: begun.elapsed().as_secs_f64(),
            cpu,
            wake_ups: pairs.map(|(now, before)| now - before).collect(),
        })
    }

    /// Fails if a client receives more than one copy of the last broadcast. Returns the number of deliveries that all clients
    /// together have received.
    pub(super) fn finish(&mut self) -> io::Result<u64> {
        for client in &mut self.clients {
            client.send(ClientCommand::Finish)?;
        }
        self.clients.iter_mut().map(ClientProcess::count).sum()
    }

    pub(super) fn memory_use(&self) -> io::Result<MemoryUse> {
        let nodes = self.nodes.iter();
        let nodes: io::Result<_> = nodes.map(|node| machine::resident(node.pid())).collect();
        Ok(MemoryUse {
            nodes: nodes?,
            slab: machine::slab()?,
        })
    }

    fn cpu_use(&self) -> io::Result<CpuUse> {
        let nodes: io::Result<_> = self.nodes.iter().map(NodeProcess::cpu_seconds).collect();
        let clients = self.clients.iter();
        let clients: io::Result<_> = clients.map(|c| machine::cpu_seconds(c.pid())).sum();
        Ok(CpuUse {
            nodes: nodes?,
            broker: self.broker.cpu_seconds()?,
            clients: clients?,
        })
    }

    fn wake_ups(&self) -> io::Result<Vec<u64>> {
        let nodes = self.nodes.iter();
        nodes.map(|node| machine::wake_ups(node.pid())).collect()
    }
}
