//! `bench run`: measures servers in turn, with some CPUs for the server and others for the client. The measure is the
//! server's CPU time per delivery, user and system, as the operating system accounts for it. Each figure is a ratio to the
//! floor's of the same round.

mod alternating;
mod broker;
mod catalog;
mod cluster;
mod compression;
mod cores;
mod cost;
mod costs;
mod figures;
mod jitter;
mod join;
mod keyed;
mod line_process;
mod markdown;
mod members;
mod node_process;
mod peers;
mod plot;
mod procedure_frames;
mod report;
mod results;
mod scenario;
mod server;
mod single;
mod size;
mod start;
mod target;
mod tls;
mod workload;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::args::{self, OptionSpec, Options};
use crate::floor::FloorMode;
use crate::machine::{self, AllCpus};
use peers::Peers;
use results::{Results, Sample, ScenarioResult, ServerResult, Unit};
use scenario::{Measurement, Rounds, Scenario, Side};
use workload::{ServerKind, Workload};

pub(crate) use alternating::OPTIONS as ALTERNATING_OPTIONS;
pub(crate) use cluster::{OPTIONS as CLUSTER_OPTIONS, command as cluster};
pub(crate) use compression::command as compression;
pub(crate) use cores::{OPTIONS as CORES_OPTIONS, command as cores};
pub(crate) use costs::{OPTIONS as COSTS_OPTIONS, command as costs};
pub(crate) use jitter::{OPTIONS as JITTER_OPTIONS, command as jitter};
pub(crate) use join::{
    OPTIONS as JOIN_OPTIONS, SERVER_OPTIONS as HISTORY_OPTIONS, command as join,
    serve as serve_history,
};
pub(crate) use keyed::{OPTIONS as KEYED_OPTIONS, command as keyed};
pub(crate) use report::{OPTIONS as REPORT_OPTIONS, command as report};
pub(crate) use size::{MEMBERS_OPTIONS, OPTIONS as SIZE_OPTIONS, command as size, serve_members};
pub(crate) use start::{CROWD_OPTIONS, OPTIONS as START_OPTIONS, command as start, serve_crowd};
pub(crate) use tls::command as tls;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::flag("quick"),
    args::flag("sleep"),
    args::flag("self-check"),
    args::flag("list"),
    args::value("baseline"),
    args::value("rounds"),
    args::value("cpu-seconds"),
    args::value("out"),
    args::value("readme"),
    args::value("targets"),
    args::value("only"),
    args::value("peers"),
    args::value("peer"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

/// Options of a run.
struct Setup {
    quick: bool,
    /// Whether the client sleeps while nothing arrives; otherwise it polls.
    sleep: bool,
    /// Whether the floor replaces the subject, so that every ratio should be 1.
    self_check: bool,
    /// This program.
    program: PathBuf,
    /// This program, built with the library's feature `io-uring`; `None` if no scenario needs it.
    ring_program: Option<PathBuf>,
    /// Another build of this program, whose subject replaces the floor.
    baseline: Option<PathBuf>,
    rounds: usize,
    /// Minimum CPU time of the server per measurement, in seconds; it is accounted in ticks of 10 ms.
    cpu_seconds: f64,
    server_cpu: String,
    client_cpu: String,
    all_cpus: String,
    peers: Peers,
}

impl Setup {
    /// The server that is started in place of `kind`.
    fn stands_for(&self, kind: ServerKind) -> ServerKind {
        match kind {
            ServerKind::Floor(_) if self.baseline.is_some() => ServerKind::SUBJECT,
            ServerKind::Subject(_) if self.self_check => ServerKind::FLOOR,
            kind => kind,
        }
    }

    fn program_of(&self, kind: ServerKind) -> &Path {
        match (&self.baseline, &self.ring_program) {
            (Some(baseline), _) if matches!(kind, ServerKind::Floor(_)) => baseline,
            (_, Some(ring_program)) if kind.is_ring_build() => ring_program,
            _ => &self.program,
        }
    }

    /// The CPUs of the server, and those of the client.
    fn cpus(&self, scenario: &Scenario) -> (&str, &str) {
        match scenario.spread {
            true => (&self.all_cpus, &self.all_cpus),
            false => (&self.server_cpu, &self.client_cpu),
        }
    }

    /// Number of rounds of a scenario.
    fn rounds(&self, scenario: &Scenario) -> usize {
        match scenario.rounds {
            _ if self.quick => self.rounds,
            Rounds::AsAsked => self.rounds,
            Rounds::AtLeast(least) => self.rounds.max(least),
            Rounds::AtMost(most) => self.rounds.min(most),
        }
    }

    /// Takes the sides of a scenario, and adds the peers.
    fn sides(&self, scenario: &mut Scenario) -> Vec<Side> {
        let work = scenario.sides[0].work;
        let mut sides = std::mem::take(&mut scenario.sides);
        if self.ring_program.is_none() {
            sides.retain(|side| !side.kind.is_ring_build());
        }
        if self.baseline.is_some() || self.self_check {
            // All other sides would be the same server.
            sides.retain(|side| side.kind == ServerKind::FLOOR || side.kind == ServerKind::SUBJECT);
        } else if scenario.peers {
            sides.extend(self.peers.picked.iter().map(|&peer| Side {
                name: None,
                kind: ServerKind::Peer(peer),
                work,
            }));
        }
        sides
    }
}

pub(crate) fn run(options: &Options) -> io::Result<()> {
    let quick = options.flag("quick");
    let only = options.text("only").unwrap_or_default();
    let picked = |scenario: &Scenario| match only {
        "" => scenario.usual && (!quick || is_quick(scenario)),
        parts => parts.split(',').any(|part| scenario.id.contains(part)),
    };
    let scenarios: Vec<Scenario> = catalog::all().into_iter().filter(picked).collect();
    if scenarios.is_empty() {
        return Err(args::bad("only", only));
    }
    if options.flag("list") {
        scenarios
            .iter()
            .for_each(|s| println!("{:28} {}", s.id, s.title));
        return Ok(());
    }
    let setup = setup(options, quick, &scenarios)?;
    let begun = Instant::now();
    let mut results = Results {
        head: report::head(&setup, idle_share_now()?),
        peers: setup.peers.versions(),
        left_out: setup.peers.left_out.clone(),
        ..Results::default()
    };
    for scenario in scenarios {
        let targets = scenario.targets.clone();
        let outcome = measure(&setup, scenario)?;
        if setup.baseline.is_none() && !setup.self_check && !quick {
            for target in &targets {
                if let Some(verdict) = target.verdict(&outcome) {
                    target::add(&mut results.verdicts, target, verdict);
                }
            }
        }
        results.outcomes.push(outcome);
    }
    results.head.extend(report::foreign(&results.outcomes));
    results.head.push(format!(
        "It took {:.0} minutes.",
        begun.elapsed().as_secs_f64() / 60.0
    ));
    report::write(&results, options)
}

/// Whether a quick run includes a scenario.
fn is_quick(scenario: &Scenario) -> bool {
    matches!(
        scenario.id.as_str(),
        "fan-out-1000-w1"
            | "fan-out-1000-w16"
            | "outside-1000-w16"
            | "echo-100-w1"
            | "echo-100-w16"
            | "rooms-w16"
            | "idle-5000"
            | "lone"
            | "two-shards-echo-w1"
    )
}

fn setup(options: &Options, quick: bool, scenarios: &[Scenario]) -> io::Result<Setup> {
    let cpus = machine::allowed_cpus()?;
    let program = std::env::current_exe()?;
    let profile = profile_of(&program);
    // The build directory of this program, usually `target`.
    let target = program
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("target"))
        .to_owned();
    let (self_check, baseline) = (options.flag("self-check"), options.text("baseline"));
    let names = match options.text("peers") {
        Some(names) => names,
        None if quick || self_check || baseline.is_some() => "none",
        None if scenarios.iter().all(|scenario| !scenario.peers) => "none",
        None => "all",
    };
    let cpu = |name: &str, default: usize| match options.text(name) {
        Some(text) => text.to_owned(),
        None => default.to_string(),
    };
    let has = |wanted: fn(ServerKind) -> bool| {
        let mut sides = scenarios.iter().flat_map(|scenario| &scenario.sides);
        sides.any(|side| wanted(side.kind))
    };
    let with_ring = !quick && !self_check && baseline.is_none() && has(ServerKind::is_ring_build);
    let setup = Setup {
        quick,
        sleep: options.flag("sleep"),
        self_check,
        baseline: baseline.map(PathBuf::from),
        rounds: options.number("rounds", if quick { 1 } else { 3 })?,
        cpu_seconds: options.number("cpu-seconds", if quick { 0.1 } else { 1.0 })?,
        server_cpu: cpu("server-cpu", cpus[0]),
        client_cpu: cpu("client-cpu", *cpus.get(1).unwrap_or(&cpus[0])),
        all_cpus: machine::cpu_list(&cpus),
        peers: Peers::get(names, options.texts("peer"), &target)?,
        ring_program: with_ring.then(|| target.join("io-uring").join(&profile).join("bench")),
        program,
    };
    if !(1..=100).contains(&setup.rounds) {
        return Err(args::bad("rounds", &setup.rounds.to_string()));
    }
    if !(0.05..=60.0).contains(&setup.cpu_seconds) {
        return Err(args::bad("cpu-seconds", &setup.cpu_seconds.to_string()));
    }
    if setup.self_check && setup.baseline.is_some() {
        return Err(args::invalid(
            "--self-check and --baseline exclude each other: both replace the floor".into(),
        ));
    }
    if setup.server_cpu == setup.client_cpu {
        eprintln!(
            "note: server and client share one CPU, so the figures mean little; set --server-cpu and --client-cpu"
        );
    }
    if has(ServerKind::is_program) {
        build(&["-p", "humphrey-broadcast"], &profile, &target)?;
    }
    if with_ring {
        // In a separate directory, so that it does not replace this program.
        let features = ["-p", "humphrey_ws_bench", "--features", "io-uring"];
        build(&features, &profile, &target.join("io-uring"))?;
    }
    Ok(setup)
}

/// The cargo profile of this program, which is the name of its directory.
fn profile_of(program: &Path) -> String {
    let directory = program.parent().and_then(Path::file_name);
    match directory.and_then(|name| name.to_str()) {
        None | Some("debug") => "release".into(),
        Some(profile) => profile.into(),
    }
}

/// Builds another program of this workspace with the same profile.
fn build(what: &[&str], profile: &str, target: &Path) -> io::Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--profile", profile])
        .args(what);
    cargo.args([
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"),
    ]);
    cargo.arg("--target-dir").arg(target);
    match cargo.status()?.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "cargo build {} failed",
            what.join(" ")
        ))),
    }
}

/// Builds the bench with a feature, or with several that commas separate, in a separate directory, so that the running
/// program is not replaced.
fn featured_program(feature: &str, profile: &str, target: &Path) -> io::Result<PathBuf> {
    let features = ["-p", "humphrey_ws_bench", "--features", feature];
    let target = target.join(feature.replace(',', "-"));
    build(&features, profile, &target)?;
    Ok(target.join(profile).join("bench"))
}

/// Returns this program with the feature `cluster`, and builds it if this one lacks it.
fn cluster_program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    if cfg!(feature = "cluster") {
        return Ok(program);
    }
    let target = program.ancestors().nth(2).unwrap_or(Path::new("target"));
    featured_program("cluster", &profile_of(&program), target)
}

/// The idle share of all CPUs before the bench starts.
fn idle_share_now() -> io::Result<f64> {
    let before = machine::all_cpus()?;
    std::thread::sleep(Duration::from_secs(1));
    let AllCpus { busy, all } = machine::all_cpus()? - before;
    // Some counters of the kernel may decrease.
    let idle = (1.0 - busy / all).max(0.0);
    Ok(if all > 0.0 { idle } else { 0.0 })
}

/// Whether a run continues without this server: peers, and io_uring, which kernels and containers may forbid.
fn may_fail(kind: ServerKind) -> bool {
    matches!(
        kind,
        ServerKind::Peer(_) | ServerKind::Floor(FloorMode::Ring)
    ) || kind.is_ring_build()
}

/// Measures all rounds of a scenario. A failed peer is noted and left out of further rounds; any other failure ends the
/// run.
fn measure(setup: &Setup, mut scenario: Scenario) -> io::Result<ScenarioResult> {
    let rounds = setup.rounds(&scenario);
    let mut outcome = ScenarioResult {
        id: scenario.id.clone(),
        title: scenario.title.clone(),
        unit: unit(scenario.test),
        servers: Vec::new(),
    };
    let sides = setup.sides(&mut scenario);
    outcome.servers = sides
        .iter()
        .map(|side| ServerResult {
            server: match (&setup.baseline, side.kind) {
                (Some(_), ServerKind::Floor(_)) => "baseline".into(),
                _ => side.name(),
            },
            is_peer: matches!(side.kind, ServerKind::Peer(_)),
            rounds: Vec::new(),
            failure: None,
        })
        .collect();
    for round in 1..=rounds {
        let fit: Vec<usize> = (0..sides.len())
            .filter(|&at| outcome.servers[at].failure.is_none())
            .collect();
        let picked: Vec<&Side> = fit.iter().map(|&at| &sides[at]).collect();
        let samples = match scenario.test {
            Measurement::Cost => cost::measure(setup, &scenario, &picked),
            _ => picked
                .iter()
                .map(|side| single::measure(setup, &scenario, side))
                .collect(),
        };
        let mut line = format!("{}, round {round} of {rounds}:", scenario.title);
        for (&at, sample) in fit.iter().zip(samples) {
            let served = &mut outcome.servers[at];
            match sample {
                Ok(sample) => {
                    line += &format!(" {} {:.3},", served.server, sample.value);
                    served.rounds.push(sample);
                }
                Err(error) if may_fail(sides[at].kind) => {
                    line += &format!(" {} {error},", served.server);
                    served.failure = Some(error.to_string());
                }
                Err(error) => {
                    let text = format!("{}, {}: {error}", scenario.title, served.server);
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        eprintln!("{}", line.trim_end_matches(','));
    }
    Ok(outcome)
}

fn unit(test: Measurement) -> Unit {
    match test {
        Measurement::Cost => Unit::CpuPerDelivery,
        Measurement::Idle => Unit::BytesPerConnection,
        Measurement::Memberships => Unit::BytesPerMembership,
        Measurement::Connect => Unit::CpuPerConnection,
        Measurement::Blocked | Measurement::Stalled => Unit::Percentile99,
        Measurement::Lone => Unit::Median,
        Measurement::Loaded => Unit::Percentile999,
        Measurement::Rate => Unit::Rate,
    }
}
