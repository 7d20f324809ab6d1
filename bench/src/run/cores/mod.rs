//! `bench cores`: how the server's rate grows with the number of its CPUs, on a machine that has enough of them for the
//! clients, too. For `n` shards, `n` processes of clients each bring the load of one, so that the load grows with the server.

mod layout;
mod report;

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use self::layout::Layout;
use self::report::{CoresReport, ScaledSample, ScaledScenario, ScaledServer};
use super::cost::ForeignLoad;
use super::report::machine_line;
use super::server::{AddressOutput, Server};
use super::workload::{SIZE, ServerKind, SubjectVariant, Workload};
use crate::args::{self, Job, OptionSpec, Options};
use crate::load::connect;
use crate::load::driven::LoadProcess;
use crate::load::{Plan, Rooms};
use crate::machine;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::flag("share"),
    args::value("rounds"),
    args::value("seconds"),
    args::value("out"),
];

/// Number of descriptors for other files than the sockets of clients.
const DESCRIPTORS_LEFT: u64 = 100;
const ECHO_CLIENTS: usize = 100;
const ROOM_MEMBERS: usize = 1_000;
/// How long a process of clients works between two looks at the clock. Its messages in flight end with it, so it is many
/// times the duration of these.
const TURN: Duration = Duration::from_millis(100);

struct Setup {
    program: PathBuf,
    layout: Layout,
    rounds: usize,
    /// Duration of the load of each measurement.
    time: Duration,
    /// Members of a room.
    members: usize,
}

/// A load that each process of clients brings.
#[derive(Clone, Copy)]
struct Scenario {
    job: Job,
    window: usize,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario {
        job: Job::Echo,
        window: 1,
    },
    Scenario {
        job: Job::Echo,
        window: 16,
    },
    Scenario {
        job: Job::Rooms,
        window: 1,
    },
    Scenario {
        job: Job::Rooms,
        window: 16,
    },
];

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let cpus = layout::usable_cpus()?;
    let layout = match options.flag("share") {
        true => Some(Layout::shared(&cpus)),
        false => Layout::split(&cpus),
    };
    let Some(layout) = layout else {
        print!("{}", layout::refusal(&cpus));
        return Ok(());
    };
    let setup = setup(options, layout)?;
    let mut head = setup.head(machine_line(super::idle_share_now()?));
    if options.flag("quick") {
        head.push("A quick run: its times mean little.".into());
    }
    let foreign = ForeignLoad::begin()?;
    let mut report = CoresReport {
        head,
        meaningless: setup.layout.shared,
        scenarios: Vec::new(),
    };
    for scenario in SCENARIOS {
        report.scenarios.push(setup.measure(scenario)?);
    }
    report.head.push(foreign.line()?);
    report::write(&report, options)
}

fn setup(options: &Options, layout: Layout) -> io::Result<Setup> {
    let quick = options.flag("quick");
    let seconds: f64 = options.number("seconds", if quick { 0.2 } else { 2.0 })?;
    let rounds = options.number("rounds", if quick { 1 } else { 3 })?;
    if !(0.05..=60.0).contains(&seconds) {
        return Err(args::bad("seconds", &seconds.to_string()));
    }
    if !(1..=100).contains(&rounds) {
        return Err(args::bad("rounds", &rounds.to_string()));
    }
    let descriptors = machine::raise_descriptor_limit()?;
    let members = members(layout.server.len(), descriptors);
    let members = members.ok_or_else(|| {
        io::Error::other(format!(
            "a process may have only {descriptors} descriptors, which are too few for the clients of {} shards: raise the \
             limit (ulimit -n)",
            layout.server.len()
        ))
    })?;
    Ok(Setup {
        program: std::env::current_exe()?,
        layout,
        rounds,
        time: Duration::from_secs_f64(seconds),
        members: if quick { members.min(100) } else { members },
    })
}

/// The members of a room for each shard, as far as the server has descriptors; `None` if it has too few.
fn members(shards: usize, descriptors: u64) -> Option<usize> {
    let each = descriptors.saturating_sub(DESCRIPTORS_LEFT) / shards as u64;
    let most = usize::try_from(each).unwrap_or(usize::MAX);
    // The publisher needs one, too.
    (most > ECHO_CLIENTS).then(|| ROOM_MEMBERS.min(most - 1))
}

impl Setup {
    /// Describes the machine and the method.
    fn head(&self, machine: String) -> Vec<String> {
        let Layout {
            server,
            clients,
            shared,
        } = &self.layout;
        let mut head = Vec::new();
        if *shared {
            head.push("**All figures are meaningless: server and clients share CPUs.**".into());
        }
        head.push(machine);
        head.push(format!(
            "The server has the first n of the CPUs {} for n shards, and n processes of clients have the first n of the CPUs \
             {}. Rounds: {}, each of {} s.",
            machine::cpu_list(server),
            machine::cpu_list(clients),
            self.rounds,
            self.time.as_secs_f64()
        ));
        if self.members < ROOM_MEMBERS {
            head.push(format!(
                "Rooms have {} members instead of {ROOM_MEMBERS}.",
                self.members
            ));
        }
        let (ours, theirs) = self.layout.shared_cores(layout::siblings);
        if ours + theirs > 0 {
            head.push(format!(
                "Not all CPUs are cores: {ours} CPUs of the server share a core with another of the server, and {theirs} with \
                 one of the clients, which lowers the efficiency."
            ));
        }
        head
    }

    /// Measures all numbers of shards in turn, in each round.
    fn measure(&self, scenario: Scenario) -> io::Result<ScaledScenario> {
        let mut servers: Vec<ScaledServer> = self
            .layout
            .shard_counts()
            .into_iter()
            .map(|shards| ScaledServer {
                shards,
                rounds: Vec::new(),
            })
            .collect();
        let title = scenario.title(self.members);
        for round in 1..=self.rounds {
            for server in &mut servers {
                let shards = server.shards;
                let sample = self.sample(scenario, shards).map_err(|e| {
                    io::Error::new(e.kind(), format!("{title}, shards: {shards}: {e}"))
                })?;
                eprintln!(
                    "{title}, round {round} of {}, shards {shards}: {:.0} per second",
                    self.rounds, sample.rate
                );
                server.rounds.push(sample);
            }
        }
        Ok(ScaledScenario { title, servers })
    }

    fn sample(&self, scenario: Scenario, shards: usize) -> io::Result<ScaledSample> {
        let kind = ServerKind::Subject(SubjectVariant {
            shards,
            ..SubjectVariant::USUAL
        });
        let work = Workload {
            job: scenario.job,
            ..Workload::NONE
        };
        let cpus = machine::cpu_list(&self.layout.server[..shards]);
        let mut command = Command::new(&self.program);
        command.args(kind.arguments(&work));
        command.args(["--child", "--cpu", &cpus]);
        let output = AddressOutput::Stdout;
        let server = Server::launch(&mut command, None, output, false, &kind.name())?;
        let mut clients: Vec<LoadProcess> = (0..shards)
            .map(|at| {
                let plan = scenario.plan(at, self.members, self.layout.shared);
                let cpu = self.layout.clients[at].to_string();
                LoadProcess::connect(&self.program, server.address, &plan, &cpu, None)
            })
            .collect::<io::Result<_>>()?;
        self.load(&server, &mut clients, scenario)
    }

    /// Lets all processes of clients work at the same time, first to warm up.
    fn load(
        &self,
        server: &Server,
        clients: &mut [LoadProcess],
        scenario: Scenario,
    ) -> io::Result<ScaledSample> {
        let shards = clients.len() as f64;
        let turn = TURN.min(self.time / 4);
        let chunks = in_parallel(clients, |client| {
            // A batch that takes a turn, found by doubling: this warms the server up.
            let mut chunk = scenario.in_flight();
            loop {
                let begun = Instant::now();
                client.deliver(chunk)?;
                if begun.elapsed() >= turn {
                    return Ok(chunk);
                }
                chunk *= 2;
            }
        })?;
        // One batch for all: processes that found a longer one had been disturbed.
        let chunk = chunks.into_iter().min().unwrap_or(1);
        let (begun, before) = (Instant::now(), server.cpu_seconds()?);
        let runs = in_parallel(clients, |client| {
            let (begun, before) = (Instant::now(), client.state.received);
            while begun.elapsed() < self.time {
                client.deliver(chunk)?;
            }
            let received = client.state.received - before;
            Ok((received, received as f64 / begun.elapsed().as_secs_f64()))
        })?;
        let (took, used) = (
            begun.elapsed().as_secs_f64(),
            server.cpu_seconds()? - before,
        );
        in_parallel(clients, |client| client.finish().map(drop))?;
        let received: u64 = runs.iter().map(|(received, _)| received).sum();
        Ok(ScaledSample {
            rate: runs.iter().map(|(_, rate)| rate).sum(),
            cpu: used * 1e6 / received as f64,
            busy: used / (took * shards),
        })
    }
}

/// Does something with each process of clients, in a thread for each, which begin together.
fn in_parallel<T: Send>(
    clients: &mut [LoadProcess],
    run: impl Fn(&mut LoadProcess) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let barrier = Barrier::new(clients.len());
    thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(|| {
                    barrier.wait();
                    run(client)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => Err(io::Error::other("a thread panicked")),
            })
            .collect()
    })
}

impl Scenario {
    fn title(self, members: usize) -> String {
        match self.job {
            Job::Echo => format!("echo, {ECHO_CLIENTS} clients per shard, W {}", self.window),
            _ => format!("fan-out, a room of {members} per shard, W {}", self.window),
        }
    }

    /// The plan of the process of clients with this number.
    fn plan(self, at: usize, members: usize, sleep: bool) -> Plan {
        let (clients, rooms) = match self.job {
            Job::Echo => (ECHO_CLIENTS, Rooms::default()),
            _ => (
                members,
                Rooms {
                    count: 1,
                    first: at,
                    members,
                    ..Rooms::default()
                },
            ),
        };
        Plan {
            job: self.job,
            clients,
            rooms,
            earlier: at * connect::PER_SOURCE,
            window: self.window,
            size: SIZE,
            stalled: 0,
            blockers: 0,
            sleep,
        }
    }

    /// Messages in flight of one process of clients.
    fn in_flight(self) -> u64 {
        let senders = match self.job {
            Job::Echo => ECHO_CLIENTS,
            _ => 1,
        };
        (senders * self.window) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_clients_share_neither_rooms_nor_ports() {
        let [_, _, scenario, _] = SCENARIOS;
        let (one, two) = (
            scenario.plan(1, 1_000, false),
            scenario.plan(2, 1_000, false),
        );
        assert_eq!((one.rooms.first, two.rooms.first), (1, 2));
        assert_eq!(two.earlier - one.earlier, connect::PER_SOURCE);
        assert_eq!(one.clients, 1_000);
    }

    #[test]
    fn rooms_shrink_with_the_descriptors_of_the_server() {
        assert_eq!(members(1, 20_000), Some(1_000));
        assert_eq!(members(32, 20_000), Some(620));
        assert_eq!(members(32, 1_024), None);
    }
}
