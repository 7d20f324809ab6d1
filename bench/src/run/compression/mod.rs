//! `bench compression` measures the CPU time that compression costs and the bytes that it saves. In each round, it starts and
//! warms up all servers of a scenario, then loads them in turn and reverses the order after each pass. The figures are the
//! server's CPU time and the bytes per delivery. A ratio compares two servers in the same round.

mod catalog;
mod client;
mod stream;
mod table;
mod visitors;

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::catalog::{Measurement, Scenario, ServerVariant, Side};
use self::client::{Clients, TrafficPlan};
use self::stream::Totals;
use self::table::{Figures, Report, ScenarioReport, ServerReport};
use self::visitors::Visitors;
use super::peers::Peers;
use super::server::{AddressOutput, Server};
use super::{build, idle_share_now, profile_of};
use crate::args::{self, Job, OptionSpec, Options};
use crate::load::connect::{self, ConnectionSpec};
use crate::machine;
use crate::wire::ROUND_ROBIN_ROOMS;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::flag("list"),
    args::value("only"),
    args::value("peers"),
    args::value("rounds"),
    args::value("cpu-seconds"),
    args::value("out"),
    args::value("targets"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

/// Duration of the load on a server in one pass.
const TURN: Duration = Duration::from_millis(250);
/// Duration of the load before the measurement, in which the peers in JavaScript compile their code.
const WARM_UP: Duration = Duration::from_millis(300);
/// Minimum number of messages before the measurement. They fill a compressor's window of 8 KiB.
const WARM_UP_MESSAGES: u64 = 256;
/// Maximum duration of the warm-up with [`WARM_UP_MESSAGES`].
const WARM_UP_MAX: Duration = Duration::from_millis(1_500);
/// Maximum duration of a measurement, as a multiple of the requested CPU time.
const TIMES_MAX: f64 = 4.0;
/// Number of clients that send echoes before the memory of idle connections is measured.
const IDLE_BASE: usize = 64;
/// Maximum number of rounds of a measurement of memory, which varies little.
const IDLE_ROUNDS: usize = 3;

struct Setup {
    quick: bool,
    program: PathBuf,
    /// The bench, built with the feature `deflate`.
    compressing_program: PathBuf,
    peers: Peers,
    rounds: usize,
    cpu_seconds: f64,
    server_cpu: String,
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let only = options.text("only").unwrap_or_default();
    let is_picked = |scenario: &Scenario| only.split(',').any(|part| scenario.id.contains(part));
    let scenarios: Vec<Scenario> = catalog::all().into_iter().filter(is_picked).collect();
    if scenarios.is_empty() {
        return Err(args::bad("only", only));
    }
    if options.flag("list") {
        scenarios
            .iter()
            .for_each(|scenario| println!("{:20} {}", scenario.id, scenario.title));
        return Ok(());
    }
    let (setup, client_cpu) = setup(options)?;
    let begun = Instant::now();
    let mut report = Report {
        head: table::head(&setup, &client_cpu, idle_share_now()?),
        peers: setup.peers.versions(),
        left_out: setup.peers.left_out.clone(),
        ..Report::default()
    };
    machine::raise_descriptor_limit()?;
    // Each server pins itself to the server CPU.
    machine::pin(&[client_cpu])?;
    let (machine, mut used) = (machine::all_cpus()?, 0.0);
    for mut scenario in scenarios {
        scenario.adapt(&setup);
        let outcome = measure(&setup, &scenario, &mut used)?;
        if !setup.quick {
            let verdicts = scenario.targets.iter().filter_map(|t| t.verdict(&outcome));
            report.verdicts.extend(verdicts);
        }
        report.scenarios.push(outcome);
    }
    used += machine::cpu_time(std::process::id())?.total();
    let foreign = super::cost::foreign_since(machine, used)?;
    report.head.push(format!(
        "Other processes used {:.1} % of all CPUs during the measurements. It took {:.1} minutes.",
        foreign * 100.0,
        begun.elapsed().as_secs_f64() / 60.0
    ));
    table::write(&report, options)
}

fn setup(options: &Options) -> io::Result<(Setup, usize)> {
    let quick = options.flag("quick");
    let cpus = machine::allowed_cpus()?;
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).map(PathBuf::from);
    let target = target.unwrap_or_else(|| "target".into());
    let names = options
        .text("peers")
        .unwrap_or(if quick { "none" } else { "bun,ws" });
    let setup = Setup {
        quick,
        peers: Peers::get(names, &target)?,
        rounds: options.number("rounds", if quick { 1 } else { 3 })?,
        cpu_seconds: options.number("cpu-seconds", if quick { 0.05 } else { 1.5 })?,
        server_cpu: options.number("server-cpu", cpus[0])?.to_string(),
        compressing_program: match cfg!(feature = "deflate") {
            true => program.clone(),
            false => compressing_program(&profile_of(&program), &target)?,
        },
        program,
    };
    if !(1..=100).contains(&setup.rounds) {
        return Err(args::bad("rounds", &setup.rounds.to_string()));
    }
    if !(0.05..=60.0).contains(&setup.cpu_seconds) {
        return Err(args::bad("cpu-seconds", &setup.cpu_seconds.to_string()));
    }
    Ok((
        setup,
        options.number("client-cpu", *cpus.get(1).unwrap_or(&cpus[0]))?,
    ))
}

/// Builds the bench with the feature `deflate`, in a separate directory, so that the running program is not replaced.
fn compressing_program(profile: &str, target: &std::path::Path) -> io::Result<PathBuf> {
    let features = ["-p", "humphrey_ws_bench", "--features", "deflate"];
    let target = target.join("deflate");
    build(&features, profile, &target)?;
    Ok(target.join(profile).join("bench"))
}

impl Scenario {
    /// Removes the peers that `--peers` excludes, and reduces the number of clients in a quick run.
    fn adapt(&mut self, setup: &Setup) {
        let has = |id| setup.peers.picked.iter().any(|peer| peer.id == id);
        self.sides.retain(|side| match side.server {
            ServerVariant::Peer(id, _) => has(id),
            _ => true,
        });
        if setup.quick && self.clients >= 1_000 && self.job != Job::RoundRobin {
            self.clients /= 10;
            self.speakers = self.speakers.min(self.clients);
        }
    }

    fn rounds(&self, setup: &Setup) -> usize {
        match self.measurement {
            _ if setup.quick => 1,
            Measurement::Idle => setup.rounds.min(IDLE_ROUNDS),
            Measurement::Load => setup.rounds * self.restarts,
        }
    }

    fn traffic(&self, side: &Side, messages: &Arc<Vec<String>>) -> TrafficPlan {
        TrafficPlan {
            job: self.job,
            clients: self.clients,
            rooms: ROUND_ROBIN_ROOMS,
            speakers: self.speakers,
            window: self.window,
            messages: messages.clone(),
            offers: side.offers,
        }
    }
}

fn start(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<Server> {
    let job = scenario.job;
    let mut command = match side.server {
        ServerVariant::Plain => Command::new(&setup.program),
        ServerVariant::Compressing => Command::new(&setup.compressing_program),
        ServerVariant::Peer(..) => Command::new(&setup.program),
    };
    let cpu = &setup.server_cpu[..];
    match side.server {
        ServerVariant::Plain | ServerVariant::Compressing => {
            command.args(["subject", job.name(), "--child", "--cpu", cpu]);
            let compresses = side.server == ServerVariant::Compressing;
            command.args(compresses.then_some("--compress"));
        }
        ServerVariant::Peer(id, mode) => {
            let mut peers = setup.peers.picked.iter();
            let peer = peers.find(|peer| peer.id == id);
            let peer = peer.ok_or_else(|| args::bad("peers", id))?;
            command.args(["exec", "--cpu", cpu, "--"]);
            command.args(setup.peers.command(peer, job)?).arg(mode);
        }
    }
    let pauses = matches!(side.server, ServerVariant::Peer(..));
    let output = AddressOutput::Stdout;
    Server::launch(&mut command, None, output, pauses, side.name)
}

/// Measures all rounds of a scenario. A peer that fails is reported and skipped in the remaining rounds. If humphrey_ws fails,
/// the run ends.
fn measure(setup: &Setup, scenario: &Scenario, used: &mut f64) -> io::Result<ScenarioReport> {
    let messages = Arc::new(scenario.corpus.messages());
    let rounds = scenario.rounds(setup);
    let mut servers: Vec<ServerReport> = scenario
        .sides
        .iter()
        .map(|side| ServerReport::new(side.name))
        .collect();
    for round in 1..=rounds {
        let fit: Vec<usize> = (0..servers.len())
            .filter(|&at| servers[at].failure.is_none())
            .collect();
        let sides: Vec<&Side> = fit.iter().map(|&at| &scenario.sides[at]).collect();
        let results = match scenario.measurement {
            Measurement::Load => load(setup, scenario, &sides, &messages, used),
            Measurement::Idle => sides
                .iter()
                .map(|side| idle(setup, scenario, side, &messages))
                .collect(),
        };
        let mut line = format!("{}, round {round} of {rounds}:", scenario.title);
        for (&at, result) in fit.iter().zip(results) {
            match result {
                Ok(figures) => {
                    line += &format!(" {} {};", servers[at].server, figures.summary());
                    servers[at].rounds.push(figures);
                }
                Err(error) if matches!(scenario.sides[at].server, ServerVariant::Peer(..)) => {
                    line += &format!(" {} {error};", servers[at].server);
                    servers[at].failure = Some(error.to_string());
                }
                Err(error) => {
                    let text = format!("{}, {}: {error}", scenario.title, servers[at].server);
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        eprintln!("{}", line.trim_end_matches(';'));
    }
    Ok(ScenarioReport {
        id: scenario.id.into(),
        title: scenario.title.into(),
        servers,
    })
}

/// A server that is loaded alternately with others.
struct AlternatingRun {
    server: Server,
    clients: Clients,
    visitors: Option<Visitors>,
    before: Snapshot,
    seconds: f64,
}

/// The cumulative counts of a server at one moment.
#[derive(Clone, Copy, Default)]
struct Snapshot {
    cpu: f64,
    totals: Totals,
    sent: u64,
    visits: u64,
    visitor_deliveries: u64,
}

impl AlternatingRun {
    fn start(
        setup: &Setup,
        scenario: &Scenario,
        side: &Side,
        messages: &Arc<Vec<String>>,
    ) -> io::Result<Self> {
        let server = start(setup, scenario, side)?;
        let plan = scenario.traffic(side, messages);
        let clients = Clients::connect(server.address, plan)?;
        let visitors = side
            .has_visitors
            .then(|| Visitors::start(server.address, messages.clone(), side.offers));
        let mut run = Self {
            server,
            clients,
            visitors,
            before: Snapshot::default(),
            seconds: 0.0,
        };
        run.turn(if setup.quick { TURN / 10 } else { WARM_UP })?;
        run.server.go_on()?;
        let start = Instant::now();
        while !setup.quick && run.clients.sent < WARM_UP_MESSAGES && start.elapsed() < WARM_UP_MAX {
            run.clients.run_in_large_batches(TURN / 10)?;
        }
        run.server.pause()?;
        run.before = run.snapshot()?;
        run.seconds = 0.0;
        Ok(run)
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let visits = self
            .visitors
            .as_ref()
            .map(Visitors::seen)
            .unwrap_or_default();
        Ok(Snapshot {
            cpu: machine::cpu_seconds(self.server.pid())?,
            totals: self.clients.totals,
            sent: self.clients.sent,
            visits: visits.count,
            visitor_deliveries: visits.totals.frames,
        })
    }

    fn turn(&mut self, time: Duration) -> io::Result<()> {
        self.server.go_on()?;
        if let Some(visitors) = &self.visitors {
            visitors.set_active(true);
        }
        let start = Instant::now();
        let outcome = self.clients.run(time);
        self.seconds += start.elapsed().as_secs_f64();
        if let Some(visitors) = &self.visitors {
            visitors.set_active(false);
        }
        outcome?;
        self.server.pause()
    }

    fn used(&self) -> f64 {
        machine::cpu_seconds(self.server.pid()).map_or(0.0, |cpu| cpu - self.before.cpu)
    }

    fn finish(mut self) -> io::Result<Figures> {
        let (before, after) = (self.before, self.snapshot()?);
        self.server.go_on()?;
        if let Some(visitors) = &mut self.visitors {
            visitors.finish()?;
        }
        let compared = self.clients.finish()?;
        let totals = after.totals.since(before.totals);
        let visitors = after.visitor_deliveries - before.visitor_deliveries;
        let deliveries = (totals.frames + visitors) as f64;
        let micros = (after.cpu - before.cpu) * 1e6;
        let broadcasts = (after.sent - before.sent) as f64;
        Ok(Figures {
            cpu: micros / deliveries,
            cpu_per_broadcast: micros / broadcasts,
            bytes: totals.bytes as f64 / totals.frames as f64,
            compressed: totals.compressed as f64 / totals.frames as f64,
            deliveries: totals.frames + visitors,
            messages: after.sent - before.sent,
            compared,
            joins_per_second: (after.visits - before.visits) as f64 / self.seconds,
            resident_per_connection: None,
        })
    }
}

/// Measures one round under load. Returns the results in the order of `sides`.
fn load(
    setup: &Setup,
    scenario: &Scenario,
    sides: &[&Side],
    messages: &Arc<Vec<String>>,
    used: &mut f64,
) -> Vec<io::Result<Figures>> {
    let mut runs: Vec<io::Result<AlternatingRun>> = sides
        .iter()
        .map(|side| AlternatingRun::start(setup, scenario, side, messages))
        .collect();
    let enough = setup.cpu_seconds / scenario.restarts as f64;
    let turn = TURN.min(Duration::from_secs_f64(enough / 2.0));
    let end = Instant::now() + Duration::from_secs_f64(enough * TIMES_MAX * sides.len() as f64);
    let mut is_forward = true;
    loop {
        let mut order: Vec<&mut io::Result<AlternatingRun>> = runs.iter_mut().collect();
        if !is_forward {
            order.reverse();
        }
        is_forward = !is_forward;
        let mut all_done = true;
        for run in order {
            if let Ok(under_load) = run
                && under_load.used() < enough
            {
                all_done = false;
                if let Err(error) = under_load.turn(turn) {
                    *run = Err(error);
                }
            }
        }
        if all_done || Instant::now() >= end {
            break;
        }
    }
    runs.into_iter()
        .map(|run| {
            let run = run?;
            *used += machine::cpu_seconds(run.server.pid())?;
            run.finish()
        })
        .collect()
}

/// Measures the memory of idle connections.
fn idle(
    setup: &Setup,
    scenario: &Scenario,
    side: &Side,
    messages: &Arc<Vec<String>>,
) -> io::Result<Figures> {
    let settle = || std::thread::sleep(Duration::from_millis(if setup.quick { 50 } else { 1_000 }));
    let server = start(setup, scenario, side)?;
    let plan = TrafficPlan {
        clients: IDLE_BASE,
        ..scenario.traffic(side, messages)
    };
    // These clients stay connected, so that the idle connections do not reuse their memory.
    let mut clients = Clients::connect(server.address, plan)?;
    clients.run(WARM_UP)?;
    settle();
    let base = machine::resident(server.pid())?;
    let spec = |_| ConnectionSpec {
        path: "/".into(),
        small: false,
        offers: side.offers,
    };
    let held = connect::open(server.address, 0, scenario.clients, spec)?;
    settle();
    let full = machine::resident(server.pid())?;
    let compared = clients.finish()?;
    Ok(Figures {
        resident_per_connection: Some((full as f64 - base as f64) / held.len() as f64),
        compared,
        ..Figures::default()
    })
}
