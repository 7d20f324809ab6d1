//! The method of the commands `compression`, `tls` and `costs`: in each round, the bench starts and warms up all servers of a scenario,
//! then loads them in turn and reverses the order after each pass. The figures are the server's CPU time and the bytes per
//! delivery. A ratio compares two servers in the same round.

mod client;
mod events;
mod handshakes;
mod idle;
mod input;
mod nginx;
pub(super) mod scenario;
mod services;
mod storm;
mod stream;
pub(super) mod table;
pub(super) mod turns;
mod under_load;
mod visitors;

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::client::TrafficPlan;
use self::handshakes::Handshakes;
use self::nginx::Nginx;
use self::scenario::{Measurement, Scenario, ServerVariant, Side};
use self::services::BrokerSetup;
use self::table::{Report, ScenarioReport, ServerReport};
use self::turns::{TurnOrder, alternate};
use self::under_load::AlternatingRun;
use super::peers::Peers;
use super::server::{AddressOutput, Server};
use super::{featured_program, idle_share_now, profile_of};
use crate::args::{self, Job, OptionSpec, Options};
use crate::load::tls::client_config;
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

/// Duration of the load before the measurement, in which the peers in JavaScript compile their code.
const WARM_UP: Duration = Duration::from_millis(300);
/// Maximum number of rounds of a measurement of memory, which varies little.
const IDLE_ROUNDS: usize = 3;

struct Setup {
    quick: bool,
    program: PathBuf,
    /// The bench, built with the feature that the command measures.
    featured_program: PathBuf,
    /// The build directory, usually `target`.
    target: PathBuf,
    peers: Peers,
    nginx: Option<Nginx>,
    rounds: usize,
    cpu_seconds: f64,
    server_cpu: String,
    order: TurnOrder,
    broker: Option<BrokerSetup>,
}

/// What a command measures with this method.
pub(super) struct Suite {
    /// The name of the command, and of the marks around its targets in a page.
    pub(super) name: &'static str,
    /// The feature of the library that it measures; several are separated by commas.
    pub(super) feature: &'static str,
    /// Whether this program was built with the feature.
    pub(super) has_feature: bool,
    /// The default of `--peers`.
    pub(super) peers: &'static str,
    pub(super) order: TurnOrder,
    pub(super) scenarios: Vec<Scenario>,
}

pub(super) fn command(mut suite: Suite, options: &Options) -> io::Result<()> {
    let only = options.text("only").unwrap_or_default();
    let is_picked = |scenario: &Scenario| only.split(',').any(|part| scenario.id.contains(part));
    suite.scenarios.retain(is_picked);
    if suite.scenarios.is_empty() {
        return Err(args::bad("only", only));
    }
    if options.flag("list") {
        let scenarios = suite.scenarios.iter();
        scenarios.for_each(|scenario| println!("{:20} {}", scenario.id, scenario.title));
        return Ok(());
    }
    let name = suite.name;
    let report = measure_all(suite, options)?;
    table::write(name, &report, options)
}

/// Measures all scenarios of a suite.
pub(super) fn measure_all(suite: Suite, options: &Options) -> io::Result<Report> {
    let (setup, client_cpu) = setup(&suite, options)?;
    let begun = Instant::now();
    let mut report = Report {
        head: table::head(&suite, &setup, &client_cpu, idle_share_now()?),
        peers: setup.versions(),
        left_out: setup.left_out(),
        ..Report::default()
    };
    machine::raise_descriptor_limit()?;
    // Each server pins itself to the server CPU.
    machine::pin(&[client_cpu])?;
    let (machine, mut used) = (machine::all_cpus()?, 0.0);
    for mut scenario in suite.scenarios {
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
    Ok(report)
}

fn setup(suite: &Suite, options: &Options) -> io::Result<(Setup, usize)> {
    let quick = options.flag("quick");
    let cpus = machine::allowed_cpus()?;
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).map(PathBuf::from);
    let target = target.unwrap_or_else(|| "target".into());
    let names = options
        .text("peers")
        .unwrap_or(if quick { "none" } else { suite.peers });
    let (names, with_nginx) = split_nginx(names);
    let with_nginx = with_nginx && suite.has(ServerVariant::Proxied);
    let mut peers = Peers::get(&names, &[], &target)?;
    let nginx = match with_nginx.then(Nginx::find) {
        Some(Err(error)) => {
            eprintln!("nginx is left out: {error}");
            peers.left_out.push(format!("nginx: {error}"));
            None
        }
        Some(Ok(nginx)) => Some(nginx),
        None => None,
    };
    let setup = Setup {
        quick,
        peers,
        nginx,
        rounds: options.number("rounds", if quick { 1 } else { 3 })?,
        cpu_seconds: options.number("cpu-seconds", if quick { 0.05 } else { 1.5 })?,
        server_cpu: options.number("server-cpu", cpus[0])?.to_string(),
        order: suite.order,
        broker: match suite.sides().any(|side| side.is_node) {
            true => Some(BrokerSetup::find(options, &program)?),
            false => None,
        },
        featured_program: match suite.has_feature {
            true => program.clone(),
            false => featured_program(suite.feature, &profile_of(&program), &target)?,
        },
        target,
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

/// Removes nginx, which only this method measures, from the names of peers. Returns whether it was among them.
fn split_nginx(names: &str) -> (String, bool) {
    if names == "all" {
        return (names.into(), true);
    }
    let others: Vec<&str> = names.split(',').filter(|&name| name != "nginx").collect();
    match others.len() == names.split(',').count() {
        true => (names.into(), false),
        false if others.is_empty() => ("none".into(), true),
        false => (others.join(","), true),
    }
}

impl Suite {
    fn has(&self, server: ServerVariant) -> bool {
        self.sides().any(|side| side.server == server)
    }

    fn sides(&self) -> impl Iterator<Item = &Side> {
        self.scenarios.iter().flat_map(|scenario| &scenario.sides)
    }
}

impl Setup {
    /// The peers with their versions.
    fn versions(&self) -> Vec<String> {
        let nginx = self.nginx.iter().map(|nginx| nginx.version.clone());
        self.peers.versions().into_iter().chain(nginx).collect()
    }

    /// The servers that can't be started, each with the reason: peers, and the broker of the nodes.
    fn left_out(&self) -> Vec<String> {
        let broker = self.broker.iter().filter_map(BrokerSetup::missing);
        let peers = self.peers.left_out.iter().cloned();
        peers.chain(broker).collect()
    }

    fn has_broker(&self) -> bool {
        let broker = self.broker.as_ref();
        broker.is_some_and(|broker| broker.missing().is_none())
    }
}

impl Scenario {
    /// Removes the peers that `--peers` excludes, and nodes without a broker, and reduces the number of clients in a quick run.
    fn adapt(&mut self, setup: &Setup) {
        let has = |id| setup.peers.picked.iter().any(|peer| peer.id == id);
        self.sides.retain(|side| match side.server {
            ServerVariant::Peer(id, _) => has(id),
            ServerVariant::Proxied => setup.nginx.is_some(),
            ServerVariant::Plain | ServerVariant::Featured(_) => {
                !side.is_node || setup.has_broker()
            }
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
            _ => setup.rounds * self.restarts,
        }
    }

    fn traffic(&self, side: &Side, messages: &Arc<Vec<String>>) -> io::Result<TrafficPlan> {
        let tls = side.tls.map(|tls| client_config(tls.certificate, false));
        Ok(TrafficPlan {
            job: self.job,
            clients: self.clients,
            rooms: ROUND_ROBIN_ROOMS,
            speakers: self.speakers,
            window: self.window,
            messages: messages.clone(),
            opcode: self.corpus.opcode(),
            offers: side.offers,
            tls: tls.transpose()?,
            has_room: side.server.has_argument("--room"),
            receives: side.receives,
        })
    }
}

/// Starts a server, with `more` arguments than its variant has.
fn start(setup: &Setup, job: Job, side: &Side, more: &[String]) -> io::Result<Server> {
    let certificate = side.tls.map(|tls| tls.certificate);
    let cpu = &setup.server_cpu[..];
    let mut command = Command::new(match side.server {
        ServerVariant::Featured(_) => &setup.featured_program,
        _ => &setup.program,
    });
    match side.server {
        ServerVariant::Plain | ServerVariant::Featured(_) | ServerVariant::Proxied => {
            command.args(["subject", job.name(), "--child", "--cpu", cpu]);
        }
        ServerVariant::Peer(id, mode) => {
            let mut peers = setup.peers.picked.iter();
            let peer = peers.find(|peer| peer.id == id);
            let peer = peer.ok_or_else(|| args::bad("peers", id))?;
            command.args(["exec", "--cpu", cpu, "--"]);
            command.args(setup.peers.command(peer, job, 0)).arg(mode);
            if let Some(files) = certificate {
                command.args([files.certificate, files.key]);
            }
        }
    }
    if let ServerVariant::Featured(arguments) = side.server {
        command.args(arguments).args(more);
        if let Some(files) = certificate {
            command.args(["--tls-cert", files.certificate, "--tls-key", files.key]);
        }
    }
    let pauses = matches!(side.server, ServerVariant::Peer(..));
    let output = AddressOutput::Stdout;
    let server = Server::launch(&mut command, None, output, pauses, side.name)?;
    match (&setup.nginx, certificate) {
        (Some(nginx), Some(files)) if side.server == ServerVariant::Proxied => {
            nginx.put_before(server, setup, files)
        }
        _ => Ok(server),
    }
}

/// Measures all rounds of a scenario. A peer that fails is reported and skipped in the remaining rounds. If humphrey_ws fails,
/// the run ends.
fn measure(setup: &Setup, scenario: &Scenario, used: &mut f64) -> io::Result<ScenarioReport> {
    let messages = Arc::new(scenario.corpus.messages());
    let rounds = scenario.rounds(setup);
    let enough = setup.cpu_seconds / scenario.restarts as f64;
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
            Measurement::Load => {
                let run = |side: &&Side| AlternatingRun::start(setup, scenario, side, &messages);
                alternate(sides.iter().map(run).collect(), enough, setup.order, used)
            }
            Measurement::Handshakes => {
                let run = |side: &&Side| Handshakes::start(setup, scenario, side);
                alternate(sides.iter().map(run).collect(), enough, setup.order, used)
            }
            Measurement::Idle => {
                let measure = |side: &&Side| idle::measure(setup, scenario, side, &messages);
                sides.iter().map(measure).collect()
            }
            Measurement::Storm => {
                let measure = |side: &&Side| storm::measure(setup, scenario, side, &messages);
                sides.iter().map(measure).collect()
            }
        };
        let mut line = format!("{}, round {round} of {rounds}:", scenario.title);
        for (&at, result) in fit.iter().zip(results) {
            match result {
                Ok(figures) => {
                    line += &format!(" {} {};", servers[at].server, figures.summary());
                    servers[at].rounds.push(figures);
                }
                Err(error) if scenario.sides[at].server.may_fail() => {
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
        measurement: scenario.measurement,
        servers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_is_split_from_the_names_of_peers() {
        assert_eq!(split_nginx("bun,axum,nginx"), ("bun,axum".into(), true));
        assert_eq!(split_nginx("bun"), ("bun".into(), false));
        assert_eq!(split_nginx("nginx"), ("none".into(), true));
        assert_eq!(split_nginx("none"), ("none".into(), false));
        assert_eq!(split_nginx("all"), ("all".into(), true));
    }
}
