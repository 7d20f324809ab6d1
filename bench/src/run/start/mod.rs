//! `bench start`: the time that a new process takes until it has served thousands of handshakes, and the latency of echoes
//! of connected clients while thousands of others connect at once.

mod clients;
mod crowd;
mod report;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use self::clients::CrowdProcess;
use self::report::{ColdSample, ServerFigures, StartReport, StormSample};
use super::cost::ForeignLoad;
use super::peers::Peers;
use super::report::machine_line;
use super::server::{AddressOutput, Server, free_address};
use super::workload::{ServerKind, Workload};
use crate::args::{self, Job, OptionSpec, Options};
use crate::load::connect;
use crate::machine;

pub(crate) use clients::{OPTIONS as CROWD_OPTIONS, serve as serve_crowd};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::value("rounds"),
    args::value("connections"),
    args::value("rate"),
    args::value("peer"),
    args::value("out"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

/// Number of descriptors for other files than the sockets of clients.
const DESCRIPTORS_LEFT: usize = 100;

/// The numbers of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    /// Connections of a cold start.
    cold: usize,
    /// Connections before a storm. The first half of them exchanges echoes.
    live: usize,
    /// Connections that clients open in a storm.
    storm: usize,
}

struct Setup {
    program: PathBuf,
    counts: Counts,
    /// Echoes per second.
    rate: f64,
    rounds: usize,
    /// The time of the echoes before a storm, after half of it to warm up.
    before: Duration,
    server_cpu: usize,
    client_cpu: usize,
    peers: Peers,
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let (setup, head) = setup(options)?;
    let foreign = ForeignLoad::begin()?;
    let kinds = [ServerKind::FLOOR, ServerKind::SUBJECT];
    let peers = setup.peers.picked.iter().copied().map(ServerKind::Peer);
    let kinds: Vec<ServerKind> = kinds.into_iter().chain(peers).collect();
    let mut servers: Vec<ServerFigures> = kinds
        .iter()
        .map(|kind| ServerFigures::new(kind.name()))
        .collect();
    for round in 1..=setup.rounds {
        for (kind, figures) in kinds.iter().zip(&mut servers) {
            if figures.failure.is_some() {
                continue;
            }
            match measure(&setup, *kind) {
                Ok((cold, storm)) => {
                    eprintln!(
                        "round {round} of {}, {}: {cold}; {storm}",
                        setup.rounds, figures.server
                    );
                    figures.cold.push(cold);
                    figures.storms.push(storm);
                }
                Err(error) if matches!(kind, ServerKind::Peer(_)) => {
                    eprintln!("{}: {error}", figures.server);
                    figures.failure = Some(error.to_string());
                }
                Err(error) => {
                    let text = format!("{}: {error}", figures.server);
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
    }
    let mut report = StartReport { head, servers };
    report.head.push(foreign.line()?);
    report::write(&report, options)
}

fn setup(options: &Options) -> io::Result<(Setup, Vec<String>)> {
    let quick = options.flag("quick");
    let cpus = machine::allowed_cpus()?;
    let connections = options.number("connections", if quick { 500 } else { 10_000 })?;
    let limit = machine::raise_descriptor_limit()?;
    let counts = Counts::fitting(connections, limit)
        .ok_or_else(|| args::bad("connections", &connections.to_string()))?;
    let setup = Setup {
        program: std::env::current_exe()?,
        counts,
        rate: options.number("rate", if quick { 1_000.0 } else { 5_000.0 })?,
        rounds: options.number("rounds", if quick { 1 } else { 5 })?,
        before: Duration::from_millis(if quick { 200 } else { 2_000 }),
        server_cpu: options.number("server-cpu", cpus[0])?,
        client_cpu: options.number("client-cpu", *cpus.get(1).unwrap_or(&cpus[0]))?,
        // Only servers that are told their port can be awaited from their start.
        peers: Peers::get("none", options.texts("peer"), Path::new("target"))?,
    };
    if !(1..=100).contains(&setup.rounds) {
        return Err(args::bad("rounds", &setup.rounds.to_string()));
    }
    if !(1.0..=100_000.0).contains(&setup.rate) {
        return Err(args::bad("rate", &setup.rate.to_string()));
    }
    let mut head = vec![machine_line(super::idle_share_now()?)];
    head.push(setup.method());
    head.push(kernel_limits());
    if let Some(note) = counts.reduction(connections, limit) {
        head.push(note);
    }
    if quick {
        head.push("A quick run: its times mean little.".into());
    }
    // A server inherits it, so that it begins on its CPU, and not beside the client that probes for it.
    machine::pin(&[setup.server_cpu])?;
    Ok((setup, head))
}

impl Counts {
    /// The numbers for so many connections, or fewer if a process may have only `descriptors`; `None` if that is not
    /// possible.
    fn fitting(connections: usize, descriptors: u64) -> Option<Self> {
        let room = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let room = room.checked_sub(DESCRIPTORS_LEFT)?.min(connect::PER_SOURCE);
        let storm = connections.min(room * 3 / 5);
        let counts = Self {
            cold: connections.min(room),
            live: connections.min(room - storm),
            storm,
        };
        (counts.live >= 2).then_some(counts)
    }

    fn talkers(self) -> usize {
        self.live / 2
    }

    /// Says how the numbers were reduced; `None` if they were not.
    fn reduction(self, connections: usize, descriptors: u64) -> Option<String> {
        let Self { cold, live, storm } = self;
        let all = Self {
            cold: connections,
            live: connections,
            storm: connections,
        };
        (self != all).then(|| {
            format!(
                "Reduced: a process may have {descriptors} descriptors and {} ports, so {cold} clients take part in a cold \
                 start, and {live} are connected before a storm of {storm}, instead of {connections} each.",
                connect::PER_SOURCE
            )
        })
    }
}

impl Setup {
    fn method(&self) -> String {
        let Counts { cold, live, storm } = self.counts;
        format!(
            "Server on CPU {}, clients on CPU {}, in one process each. Rounds: {}, each with new processes. Cold start: {cold} \
             clients. Storm: {storm} clients connect at once to a server with {live}, of which {} exchange {} echoes per \
             second.",
            self.server_cpu,
            self.client_cpu,
            self.rounds,
            self.counts.talkers(),
            self.rate
        )
    }

    /// The command of a server that is to listen on this port.
    fn server(&self, kind: ServerKind, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        // All servers are started through the same program, so that it delays them alike.
        command.args(["exec", "--cpu", &self.server_cpu.to_string(), "--"]);
        match kind {
            ServerKind::Peer(peer) => {
                command.args(self.peers.command(peer, Job::Echo, port));
            }
            _ => {
                command.arg(&self.program);
                command.args(kind.arguments(&Workload::NONE));
                command.args(["--address", &format!("127.0.0.1:{port}")]);
            }
        }
        command
    }

    fn crowd(&self, address: std::net::SocketAddrV4) -> io::Result<CrowdProcess> {
        let cpu = self.client_cpu.to_string();
        CrowdProcess::start(&self.program, &cpu, address, self.rate)
    }
}

/// Measures one round of one server.
fn measure(setup: &Setup, kind: ServerKind) -> io::Result<(ColdSample, StormSample)> {
    Ok((cold(setup, kind)?, storm(setup, kind)?))
}

fn cold(setup: &Setup, kind: ServerKind) -> io::Result<ColdSample> {
    let address = free_address()?;
    let mut crowd = setup.crowd(address)?;
    let mut command = setup.server(kind, address.port());
    let dropped = machine::accept_queue_overflows()?;
    crowd.begin_cold(setup.counts.cold)?;
    let begun = machine::monotonic_nanos();
    let server = Server::spawn(&mut command, address)?;
    let (first, last) = crowd.end_cold()?;
    let sample = ColdSample {
        first: millis(Duration::from_nanos(first - begun)),
        last: millis(Duration::from_nanos(last - begun)),
        cpu: server.cpu_seconds()? * 1e3,
        dropped: machine::accept_queue_overflows()? - dropped,
    };
    check(&mut crowd, setup.counts.cold)?;
    Ok(sample)
}

fn storm(setup: &Setup, kind: ServerKind) -> io::Result<StormSample> {
    let Counts { live, storm, .. } = setup.counts;
    let address = free_address()?;
    let mut command = setup.server(kind, address.port());
    let output = AddressOutput::Given(address);
    let server = Server::launch(&mut command, None, output, false, &kind.name())?;
    let mut crowd = setup.crowd(address)?;
    crowd.hold(live, setup.counts.talkers())?;
    crowd.talk(setup.before / 2)?;
    let before = crowd.talk(setup.before)?;
    let (dropped, cpu) = (machine::accept_queue_overflows()?, server.cpu_seconds()?);
    let (took, during) = crowd.storm(storm)?;
    let sample = StormSample {
        took: millis(took),
        cpu: (server.cpu_seconds()? - cpu) * 1e3,
        dropped: machine::accept_queue_overflows()? - dropped,
        echoes: during.count,
        p99_before: millis(before.latency.p99),
        max_before: millis(before.latency.max),
        p50: millis(during.latency.p50),
        p99: millis(during.latency.p99),
        max: millis(during.latency.max),
    };
    check(&mut crowd, live + storm)?;
    Ok(sample)
}

/// Checks that all clients are connected: a server might drop a connection after its response.
fn check(crowd: &mut CrowdProcess, expected: usize) -> io::Result<()> {
    match crowd.check()? {
        checked if checked == expected => Ok(()),
        checked => Err(io::Error::other(format!(
            "{checked} connections of {expected} were checked"
        ))),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The kernel's bounds of a listener's queues.
fn kernel_limits() -> String {
    let of = |path: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/net").join(path));
        text.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
    };
    format!(
        "A listener's queue holds as many connections as the server asks for, at most net.core.somaxconn = {}, and \
         net.ipv4.tcp_max_syn_backlog = {}.",
        of("core/somaxconn"),
        of("ipv4/tcp_max_syn_backlog")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_reduced_to_the_descriptors_with_a_note() {
        let plenty = Counts::fitting(5_000, 20_000).unwrap();
        assert_eq!(
            (plenty.cold, plenty.live, plenty.storm),
            (5_000, 5_000, 5_000)
        );
        assert_eq!(plenty.reduction(5_000, 20_000), None);
        let short = Counts::fitting(10_000, 20_000).unwrap();
        assert_eq!(
            (short.cold, short.live, short.storm),
            (10_000, 9_900, 10_000)
        );
        let note = short.reduction(10_000, 20_000).unwrap();
        assert!(
            note.contains("20000 descriptors") && note.contains("9900"),
            "{note}"
        );
        let few = Counts::fitting(10_000, 1_024).unwrap();
        assert!(few.live + few.storm <= 924 && few.cold <= 924, "{few:?}");
        assert_eq!(Counts::fitting(10_000, 100), None);
        assert_eq!(Counts::fitting(1, 20_000), None);
        let ports = Counts::fitting(100_000, u64::MAX).unwrap();
        assert!(ports.live + ports.storm <= connect::PER_SOURCE, "{ports:?}");
    }
}
