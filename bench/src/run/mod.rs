//! `bench run`: floor and subject in turn, one CPU for the server and one for the client.
//!
//! The yardstick is the server's CPU time per delivery, user and system apart, as the operating
//! system accounts for it. Each figure of the subject is a ratio to the floor's of the same round.

mod memory;
mod report;
mod scenario;
mod server;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::args::{self, Job, Known, Options};
use crate::histogram::Summary;
use crate::load::driven::{Client, State};
use crate::machine::{self, AllCpus, CpuTime};
use report::Report;
use scenario::{Beside, SCENARIOS, Scenario, Work};
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

/// How long a server is under load before it is the other's turn.
const TURN: Duration = Duration::from_millis(150);

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

    /// What stands there.
    fn name_of(&self, beside: &Beside) -> &'static str {
        match (&self.baseline, beside.kind) {
            (Some(_), Kind::Floor) => "baseline",
            _ => beside.name,
        }
    }
}

/// One server's work in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Microseconds of the server's CPU per delivery.
    user: f64,
    system: f64,
    cpu_seconds: f64,
    /// How long it was under load.
    seconds: f64,
    expected: u64,
    received: u64,
    /// How often visitors of a room have come.
    visits: u64,
    latency: Summary,
    /// The share of all CPUs that neither the server nor the client used.
    foreign: f64,
}

impl Measured {
    fn total(&self) -> f64 {
        self.user + self.system
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

/// One round of a scenario.
struct Round {
    subject: Measured,
    beside: Vec<Measured>,
}

impl Round {
    /// What a delivery costs on humphrey_ws, to what it costs beside.
    fn ratio(&self, index: usize) -> f64 {
        self.subject.total() / self.beside[index].total()
    }

    fn all(&self) -> impl Iterator<Item = &Measured> {
        self.beside.iter().chain([&self.subject])
    }
}

pub(crate) fn run(options: &Options) -> io::Result<()> {
    args::check_server_threads(options)?;
    let quick = options.flag("quick");
    let only = options.text("only").unwrap_or_default();
    let picked = |name: &str| only.split(',').any(|part| name.contains(part));
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|s| picked(s.name)).collect();
    let with_idle = picked(memory::IDLE);
    let with_memberships = picked(memory::MEMBERSHIPS);
    if scenarios.is_empty() && !with_idle && !with_memberships {
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
        cpu_seconds: options.number("cpu-seconds", if quick { 0.1 } else { 2.0 })?,
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
        let count = match (quick, options.text("rounds")) {
            (false, None) => setup.rounds.max(scenario.rounds_min),
            _ => setup.rounds,
        };
        let mut rounds = Vec::with_capacity(count);
        for round in 1..=count {
            let measured = measure(&setup, scenario)?;
            eprintln!(
                "{}, round {round} of {count}: {}",
                scenario.name,
                describe(&setup, scenario, &measured)
            );
            rounds.push(measured);
        }
        report.add(&setup, scenario, &rounds);
    }
    if with_idle {
        report.add_memory(&memory::idle(&setup)?);
    }
    if with_memberships {
        report.add_memory(&memory::memberships(&setup)?);
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

fn describe(setup: &Setup, scenario: &Scenario, round: &Round) -> String {
    let mut text = format!("humphrey_ws {:.3} µs", round.subject.total());
    for (index, (beside, measured)) in scenario.beside.iter().zip(&round.beside).enumerate() {
        text += &format!(
            ", {} {:.3} µs, ratio {:.3}",
            setup.name_of(beside),
            measured.total(),
            round.ratio(index)
        );
    }
    if round.subject.visits > 0 {
        text += &format!(
            ", {:.0} visits each second",
            round.subject.visits as f64 / round.subject.seconds
        );
    }
    text
}

/// All servers, warmed up and then loaded in turn, a fraction of a second each, until each has
/// used enough CPU time to be measured. The turns are short so that whatever else slows the machine
/// down for a second slows all. While one is at work the others have nothing to do.
fn measure(setup: &Setup, scenario: &Scenario) -> io::Result<Round> {
    let mut sides = Vec::with_capacity(scenario.beside.len() + 1);
    for beside in scenario.beside {
        sides.push(Side::start(setup, beside.kind, &beside.work)?);
    }
    sides.push(Side::start(setup, Kind::Subject, &scenario.work)?);
    let before = Accounts::read(&sides)?;
    let limit = setup.cpu_seconds * 15.0 * sides.len() as f64;
    let end = Instant::now() + Duration::from_secs_f64(limit);
    let after = loop {
        for side in &mut sides {
            let start = Instant::now();
            side.client.deliver(side.chunk)?;
            side.seconds += start.elapsed().as_secs_f64();
        }
        let now = Accounts::read(&sides)?;
        let enough =
            |(now, before): (&CpuTime, &CpuTime)| (*now - *before).total() >= setup.cpu_seconds;
        if now.servers.iter().zip(&before.servers).all(enough) || Instant::now() >= end {
            break now;
        }
    };
    let foreign = after.foreign_since(&before);
    let spent = after.servers.iter().zip(&before.servers);
    let mut beside = Vec::with_capacity(sides.len());
    for (side, (after, before)) in sides.into_iter().zip(spent) {
        beside.push(side.finish(*after - *before, foreign)?);
    }
    let subject = beside.pop().unwrap_or_default();
    Ok(Round { subject, beside })
}

/// A server under load.
struct Side {
    server: Server,
    client: Client,
    /// Messages of one turn.
    chunk: u64,
    /// Before the measurement.
    warm_up: State,
    /// Under load, since.
    seconds: f64,
}

impl Side {
    /// Connects, and warms up until a turn takes long enough.
    fn start(setup: &Setup, place: Kind, work: &Work) -> io::Result<Self> {
        let server = setup.start(place, work.job)?;
        let mut client = Client::connect(
            &setup.program,
            server.address,
            work.plan(setup.quick, setup.sleep),
            setup.client_cpu,
        )?;
        let mut chunk = work.in_flight();
        let turn = Duration::from_secs_f64(setup.cpu_seconds / 4.0).min(TURN);
        loop {
            let start = Instant::now();
            client.deliver(chunk)?;
            if start.elapsed() >= turn {
                break;
            }
            chunk *= 2;
        }
        client.clear_latencies()?;
        Ok(Self {
            server,
            warm_up: client.state,
            client,
            chunk,
            seconds: 0.0,
        })
    }

    fn finish(mut self, spent: CpuTime, foreign: f64) -> io::Result<Measured> {
        let State {
            expected,
            received,
            visits,
            latency,
        } = self.client.finish()?;
        let deliveries = (received - self.warm_up.received) as f64;
        Ok(Measured {
            user: spent.user * 1e6 / deliveries,
            system: spent.system * 1e6 / deliveries,
            cpu_seconds: spent.total(),
            seconds: self.seconds,
            expected,
            received,
            visits: visits - self.warm_up.visits,
            latency,
            foreign,
        })
    }
}

/// The accounts that a measurement reads at both of its ends.
struct Accounts {
    servers: Vec<CpuTime>,
    clients: Vec<CpuTime>,
    machine: AllCpus,
}

impl Accounts {
    fn read(sides: &[Side]) -> io::Result<Self> {
        let of = |pid: fn(&Side) -> u32| -> io::Result<Vec<CpuTime>> {
            sides
                .iter()
                .map(|side| machine::cpu_time(pid(side)))
                .collect()
        };
        Ok(Self {
            servers: of(|side| side.server.pid())?,
            clients: of(|side| side.client.pid())?,
            machine: machine::all_cpus()?,
        })
    }

    /// The share of all CPUs that others used.
    fn foreign_since(&self, before: &Self) -> f64 {
        let AllCpus { busy, all } = self.machine - before.machine;
        let sum = |accounts: &Self| -> f64 {
            let both = accounts.servers.iter().chain(&accounts.clients);
            both.map(|time| time.total()).sum()
        };
        let ours = sum(self) - sum(before);
        if all > 0.0 {
            ((busy - ours) / all).max(0.0)
        } else {
            0.0
        }
    }
}
