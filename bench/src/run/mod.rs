//! `bench run`: floor and subject in turn, one CPU for the server and one for the client.
//!
//! The yardstick is the server's CPU time per delivery, user and system apart, as the operating
//! system accounts for it. Each figure of the subject is a ratio to the floor's of the same round.

mod report;
mod server;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::args::{self, Job, Known, Options};
use crate::histogram::Summary;
use crate::load::{Load, Plan};
use crate::machine::{self, AllCpus, CpuTime};
use report::Report;
use server::{Kind, Server};

pub(crate) const OPTIONS: &[Known] = &[
    args::flag("quick"),
    args::flag("sleep"),
    args::flag("self-check"),
    args::value("baseline"),
    args::value("rounds"),
    args::value("cpu-seconds"),
    args::value("out"),
    args::value("only"),
    args::value("server-cpu"),
    args::value("client-cpu"),
    args::value("server-threads"),
];

/// What is measured, and what is aimed at as a ratio to the floor.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fan-out 1,000 W 1",
        job: Job::Fanout,
        clients: 1_000,
        window: 1,
        target: Some(1.15),
    },
    Scenario {
        name: "fan-out 1,000 W 16",
        job: Job::Fanout,
        clients: 1_000,
        window: 16,
        target: Some(0.15),
    },
    Scenario {
        name: "echo 100 W 1",
        job: Job::Echo,
        clients: 100,
        window: 1,
        target: Some(1.35),
    },
    Scenario {
        name: "echo 100 W 16",
        job: Job::Echo,
        clients: 100,
        window: 16,
        target: None,
    },
];

const SIZE: usize = 32;
/// How long a server is under load before it is the other's turn.
const TURN: Duration = Duration::from_millis(150);
const IDLE: &str = "idle 5,000";
const IDLE_CLIENTS: usize = 5_000;
/// Resident bytes per idle connection.
const IDLE_TARGET: f64 = 700.0;
/// Connections that have already echoed when the resident memory of "none" is read, so that code
/// and thread stacks used for the first time are not taken for the cost of connections.
const IDLE_BASE: usize = 64;

struct Scenario {
    name: &'static str,
    job: Job,
    clients: usize,
    window: usize,
    target: Option<f64>,
}

impl Scenario {
    fn plan(&self, setup: &Setup) -> Plan {
        Plan {
            job: self.job,
            clients: self.clients,
            window: self.window,
            size: SIZE,
            sleep: setup.sleep,
        }
    }
}

/// How long and where.
struct Setup {
    quick: bool,
    /// Whether the client sleeps while nothing arrives.
    sleep: bool,
    /// Whether the floor stands in for the subject: every ratio should be 1.
    self_check: bool,
    /// This program.
    program: PathBuf,
    /// Another build of this program, whose subject stands in for the floor.
    baseline: Option<PathBuf>,
    rounds: usize,
    /// The server's CPU time that a measurement takes at least; ticks are of 10 ms.
    cpu_seconds: f64,
    server_cpu: usize,
    client_cpu: usize,
}

impl Setup {
    /// Starts the server of a place.
    fn start(&self, place: Kind, job: Job) -> io::Result<Server> {
        let (program, kind) = match (&self.baseline, place) {
            (Some(baseline), Kind::Floor) => (baseline, Kind::Subject),
            _ if self.self_check => (&self.program, Kind::Floor),
            _ => (&self.program, place),
        };
        Server::start(program, kind, job, self.server_cpu)
    }
}

/// One server's work in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Microseconds of the server's CPU per delivery.
    user: f64,
    system: f64,
    cpu_seconds: f64,
    expected: u64,
    received: u64,
    latency: Summary,
    /// The share of all CPUs that neither the server nor the client used.
    foreign: f64,
}

impl Measured {
    fn total(&self) -> f64 {
        self.user + self.system
    }
}

/// One server with many connections that do nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Idle {
    base: u64,
    full: u64,
    expected: u64,
    received: u64,
}

impl Idle {
    fn per_connection(&self) -> f64 {
        (self.full as f64 - self.base as f64) / IDLE_CLIENTS as f64
    }
}

/// The same of both servers.
#[derive(Clone, Copy, Debug, Default)]
struct Pair<T> {
    floor: T,
    subject: T,
}

impl<T> Pair<T> {
    /// Runs `measure` on the floor, then on the subject.
    fn of(mut measure: impl FnMut(Kind) -> io::Result<T>) -> io::Result<Self> {
        Ok(Self {
            floor: measure(Kind::Floor)?,
            subject: measure(Kind::Subject)?,
        })
    }
}

impl Pair<Measured> {
    fn ratio(&self) -> f64 {
        self.subject.total() / self.floor.total()
    }
}

pub(crate) fn run(options: &Options) -> io::Result<()> {
    args::check_server_threads(options)?;
    let quick = options.flag("quick");
    let only = options.text("only").unwrap_or_default();
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|s| s.name.contains(only)).collect();
    let with_idle = IDLE.contains(only);
    if scenarios.is_empty() && !with_idle {
        return Err(args::bad("only", only));
    }
    let cpus = machine::allowed_cpus()?;
    let setup = Setup {
        quick,
        sleep: options.flag("sleep"),
        self_check: options.flag("self-check"),
        program: std::env::current_exe()?,
        baseline: options.text("baseline").map(PathBuf::from),
        rounds: options.number("rounds", if quick { 1 } else { 3 })?,
        cpu_seconds: options.number("cpu-seconds", if quick { 0.3 } else { 2.0 })?,
        server_cpu: options.number("server-cpu", cpus[0])?,
        client_cpu: options.number("client-cpu", *cpus.get(1).unwrap_or(&cpus[0]))?,
    };
    if !(1..=100).contains(&setup.rounds) {
        return Err(args::bad("rounds", &setup.rounds.to_string()));
    }
    if !(0.05..=60.0).contains(&setup.cpu_seconds) {
        return Err(args::bad("cpu-seconds", &setup.cpu_seconds.to_string()));
    }
    if setup.self_check && setup.baseline.is_some() {
        return Err(args::invalid(
            "--self-check and --baseline ask for two things in the floor's place".into(),
        ));
    }
    if setup.server_cpu == setup.client_cpu {
        eprintln!("note: one CPU for both the server and the client: the figures will mean little");
    }

    let mut report = Report::new(&setup, idle_share_now()?);
    machine::pin(setup.client_cpu)?;
    for scenario in scenarios {
        let mut rounds = Vec::with_capacity(setup.rounds);
        for round in 1..=setup.rounds {
            let pair = measure(&setup, scenario)?;
            eprintln!(
                "{}, round {round} of {}: {} {:.3} µs, humphrey_ws {:.3} µs, ratio {:.3}",
                scenario.name,
                setup.rounds,
                if setup.baseline.is_some() {
                    "baseline"
                } else {
                    "floor"
                },
                pair.floor.total(),
                pair.subject.total(),
                pair.ratio()
            );
            rounds.push(pair);
        }
        report.add(scenario, &rounds);
    }
    if with_idle {
        let mut rounds = Vec::with_capacity(setup.rounds);
        for round in 1..=setup.rounds {
            rounds.push(Pair::of(|kind| {
                let idle = hold(&setup, kind)?;
                let bytes = idle.per_connection();
                eprintln!(
                    "{IDLE}, round {round} of {}, {}: {bytes:.0} bytes each",
                    setup.rounds,
                    kind.name()
                );
                Ok(idle)
            })?);
        }
        report.add_idle(&rounds);
    }

    let text = report.finish();
    if let Some(path) = options.text("out") {
        fs::write(path, &text).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
    }
    print!("{text}");
    Ok(())
}

/// The share of all CPUs that nobody uses before the bench does.
fn idle_share_now() -> io::Result<f64> {
    let before = machine::all_cpus()?;
    std::thread::sleep(Duration::from_secs(1));
    let AllCpus { busy, all } = machine::all_cpus()? - before;
    Ok(if all > 0.0 { 1.0 - busy / all } else { 0.0 })
}

/// Both servers, warmed up and then loaded in turn, a fraction of a second each, until each has
/// used enough CPU time to be measured. The turns are short so that whatever else slows the machine
/// down for a second slows both. While one is at work the other has nothing to do.
fn measure(setup: &Setup, scenario: &Scenario) -> io::Result<Pair<Measured>> {
    let mut sides = Pair::of(|kind| Side::start(setup, scenario, kind))?;
    let before = Accounts::read(&sides)?;
    let end = Instant::now() + Duration::from_secs_f64(setup.cpu_seconds * 30.0);
    let after = loop {
        sides.floor.load.deliver(sides.floor.chunk)?;
        sides.subject.load.deliver(sides.subject.chunk)?;
        let now = Accounts::read(&sides)?;
        let spent = (now.floor - before.floor)
            .total()
            .min((now.subject - before.subject).total());
        if spent >= setup.cpu_seconds || Instant::now() >= end {
            break now;
        }
    };
    let foreign = after.foreign_since(&before);
    Ok(Pair {
        floor: sides.floor.finish(after.floor - before.floor, foreign)?,
        subject: sides
            .subject
            .finish(after.subject - before.subject, foreign)?,
    })
}

/// A server under load.
struct Side {
    server: Server,
    load: Load,
    /// Messages of one turn.
    chunk: u64,
    /// Deliveries before the measurement.
    warm_up: u64,
}

impl Side {
    /// Connects, and warms up until a turn takes long enough.
    fn start(setup: &Setup, scenario: &Scenario, kind: Kind) -> io::Result<Self> {
        let server = setup.start(kind, scenario.job)?;
        let mut load = Load::connect(server.address, scenario.plan(setup))?;
        let mut chunk = match scenario.job {
            Job::Echo => scenario.window * scenario.clients,
            Job::Fanout => scenario.window,
        } as u64;
        let turn = Duration::from_secs_f64(setup.cpu_seconds / 4.0).min(TURN);
        loop {
            let start = Instant::now();
            load.deliver(chunk)?;
            if start.elapsed() >= turn {
                break;
            }
            chunk *= 2;
        }
        load.latencies().clear();
        let (_, warm_up) = load.counts();
        Ok(Self {
            server,
            load,
            chunk,
            warm_up,
        })
    }

    fn finish(mut self, spent: CpuTime, foreign: f64) -> io::Result<Measured> {
        let latency = self.load.latencies().summary();
        self.load.expect_nothing_more(Duration::from_millis(50))?;
        let (expected, received) = self.load.counts();
        let deliveries = (received - self.warm_up) as f64;
        Ok(Measured {
            user: spent.user * 1e6 / deliveries,
            system: spent.system * 1e6 / deliveries,
            cpu_seconds: spent.total(),
            expected,
            received,
            latency,
            foreign,
        })
    }
}

/// The accounts that a measurement reads at both of its ends.
struct Accounts {
    floor: CpuTime,
    subject: CpuTime,
    client: CpuTime,
    machine: AllCpus,
}

impl Accounts {
    fn read(sides: &Pair<Side>) -> io::Result<Self> {
        Ok(Self {
            floor: machine::cpu_time(sides.floor.server.pid())?,
            subject: machine::cpu_time(sides.subject.server.pid())?,
            client: machine::cpu_time(std::process::id())?,
            machine: machine::all_cpus()?,
        })
    }

    /// The share of all CPUs that others used.
    fn foreign_since(&self, before: &Self) -> f64 {
        let AllCpus { busy, all } = self.machine - before.machine;
        let ours = [
            self.floor - before.floor,
            self.subject - before.subject,
            self.client - before.client,
        ];
        let ours: f64 = ours.into_iter().map(CpuTime::total).sum();
        if all > 0.0 {
            ((busy - ours) / all).max(0.0)
        } else {
            0.0
        }
    }
}

/// One server with many connections: its resident memory, and then one echo on each of them.
fn hold(setup: &Setup, kind: Kind) -> io::Result<Idle> {
    let server = setup.start(kind, Job::Echo)?;
    let plan = Plan {
        job: Job::Echo,
        clients: IDLE_BASE,
        window: 4,
        size: SIZE,
        sleep: true,
    };
    let mut base_load = Load::connect(server.address, plan)?;
    base_load.deliver(200 * IDLE_BASE as u64)?;
    let settle = Duration::from_millis(if setup.quick { 200 } else { 1_000 });
    base_load.expect_nothing_more(settle)?;
    let base = machine::resident(server.pid())?;

    let mut load = Load::connect(
        server.address,
        Plan {
            clients: IDLE_CLIENTS,
            window: 1,
            ..plan
        },
    )?;
    load.expect_nothing_more(settle)?;
    let full = machine::resident(server.pid())?;

    load.deliver(IDLE_CLIENTS as u64)?;
    load.expect_nothing_more(Duration::from_millis(50))?;
    let (expected, received) = load.counts();
    Ok(Idle {
        base,
        full,
        expected,
        received,
    })
}
