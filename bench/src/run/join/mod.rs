//! `bench join`: clients join a room with a history, and read everything. The command measures the server's CPU time of a
//! join, and the server's memory per client that does not read. It fails if a client does not receive the history in order,
//! and then each live message once.

mod clients;
mod server;

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use self::clients::{Clients, Joining};
use super::cost::ForeignLoad;
use super::line_process::LineProcess;
use super::markdown::number;
use super::results::median_by;
use crate::args::{self, OptionSpec, Options};
use crate::machine;

pub(crate) use server::{OPTIONS as SERVER_OPTIONS, serve};

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("baseline"),
    args::value("history"),
    args::value("size"),
    args::value("clients"),
    args::value("at-once"),
    args::value("stalled"),
    args::value("only"),
    args::value("rounds"),
    args::value("server-cpu"),
    args::value("client-cpu"),
];

/// Maximum time for the clients to receive all messages that were published.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that join before the measurement, so that it does not include code that runs for the first time.
const FIRST_CLIENTS: usize = 8;
/// Live messages after all clients have joined.
const LIVE_MESSAGES: u64 = 10;

/// The form in which clients receive messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// WebSocket frames of the messages as they were sent.
    Frames,
    /// Frames with room and id, as clients with a library receive them.
    Ids,
    /// Server-sent events.
    Events,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Frames, Self::Ids, Self::Events];

    fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Ids => "ids",
            Self::Events => "events",
        }
    }
}

struct Setup {
    history: usize,
    size: usize,
    clients: usize,
    at_once: usize,
    stalled: usize,
    rounds: usize,
    server_cpu: String,
}

/// The figures of one server.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    /// CPU time of all joins together, in seconds: user and system.
    cpu: f64,
    /// User time of all joins together, in seconds.
    user: f64,
    /// Most resident bytes of the server while clients joined and read everything.
    peak: f64,
    /// Resident bytes that the stalled clients have added.
    stalled: f64,
    /// Stalled clients that the server has disconnected.
    cut_off: usize,
}

/// A `bench history` as a child process.
struct HistoryServer {
    process: LineProcess,
    address: SocketAddrV4,
}

impl HistoryServer {
    /// Starts a server. With `keeps_unread`, it queues most messages that clients do not read itself, and the kernel few.
    fn start(setup: &Setup, program: &Path, keeps_unread: bool) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["history", "--child", "--cpu", &setup.server_cpu]);
        command.args(["--history", &setup.history.to_string()]);
        command.args(["--size", &setup.size.to_string()]);
        if keeps_unread {
            command.arg("--skip-ahead");
        }
        let mut process = LineProcess::start("the server", &mut command, 60)?;
        let line = process.answer()?;
        let address = line.strip_prefix("READY ").and_then(|at| at.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("it said {line:?}")))?;
        Ok(Self { process, address })
    }

    /// Broadcasts messages to the room. Returns the number of all so far.
    fn publish(&mut self, count: u64) -> io::Result<u64> {
        self.process.send(&format!("{count}\n"))?;
        self.process.number()
    }
}

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let cpus = machine::allowed_cpus()?;
    let at = |index: usize| cpus.get(index).or(cpus.first()).copied().unwrap_or(0);
    let setup = Setup {
        history: options.number("history", 10_000)?,
        size: options.number("size", 100)?,
        clients: options.number("clients", 1_000)?,
        at_once: options.number("at-once", 50)?,
        stalled: options.number("stalled", 200)?,
        rounds: options.number("rounds", 3)?,
        server_cpu: options.number("server-cpu", at(0))?.to_string(),
    };
    for (name, value) in [
        ("history", setup.history),
        ("clients", setup.clients),
        ("at-once", setup.at_once),
        ("rounds", setup.rounds),
    ] {
        if value == 0 {
            return Err(args::bad(name, "0"));
        }
    }
    let only = options.text("only");
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| only.is_none_or(|only| only.split(',').any(|name| name == kind.name())))
        .collect();
    let mut programs: Vec<(&str, PathBuf)> = Vec::new();
    if let Some(baseline) = options.text("baseline") {
        programs.push(("baseline", baseline.into()));
    }
    programs.push(("humphrey_ws", std::env::current_exe()?));
    println!("{}", machine::describe());
    machine::pin(&[options.number("client-cpu", at(1))?])?;
    machine::raise_descriptor_limit()?;
    println!("\n{}\n", setup.line());
    println!(
        "| clients | server | CPU of a join, its user time | ratio: CPU, user time | most resident memory | of a client that reads nothing | cut off |"
    );
    println!("|---|---|---|---|---|---|---|");
    let foreign = ForeignLoad::begin()?;
    for kind in kinds {
        let mut rounds: Vec<Vec<Measured>> = vec![Vec::new(); programs.len()];
        for _ in 0..setup.rounds {
            for (measured, (_, program)) in rounds.iter_mut().zip(&programs) {
                measured.push(measure(&setup, kind, program)?);
            }
        }
        for ((name, _), measured) in programs.iter().zip(&rounds) {
            println!("{}", row(&setup, (kind, name), measured, &rounds[0]));
        }
    }
    println!("\n{}", foreign.line()?);
    Ok(())
}

impl Setup {
    fn line(&self) -> String {
        format!(
            "A history of {} messages of {} bytes; {} clients join, {} at a time, and read everything. Then {} clients join \
             and read nothing at first. Medians of {} rounds, in which the servers are measured in turn.",
            number(self.history as f64),
            self.size,
            number(self.clients as f64),
            self.at_once,
            self.stalled,
            self.rounds
        )
    }
}

/// A server with a full history, whose first clients have joined and read everything.
struct WarmServer {
    server: HistoryServer,
    joining: Joining,
    first: Clients,
    published: u64,
}

impl WarmServer {
    fn start(setup: &Setup, kind: Kind, program: &Path, keeps_unread: bool) -> io::Result<Self> {
        let mut server = HistoryServer::start(setup, program, keeps_unread)?;
        let joining = Joining {
            kind,
            address: server.address,
            size: setup.size,
            small: false,
        };
        let kept = setup.history as u64;
        let published = server.publish(kept + 1)?;
        let mut first = Clients::new(joining)?;
        first.join(FIRST_CLIENTS, published - kept)?;
        first.read_until(published)?;
        Ok(Self {
            server,
            joining,
            first,
            published,
        })
    }
}

/// Measures new servers.
fn measure(setup: &Setup, kind: Kind, program: &Path) -> io::Result<Measured> {
    let mut measured = measure_joins(setup, kind, program)?;
    (measured.stalled, measured.cut_off) = measure_stalled(setup, kind, program)?;
    Ok(measured)
}

/// Lets clients join in groups, and read everything.
fn measure_joins(setup: &Setup, kind: Kind, program: &Path) -> io::Result<Measured> {
    let WarmServer {
        mut server,
        joining,
        first,
        ..
    } = WarmServer::start(setup, kind, program, false)?;
    drop(first);
    let pid = server.process.pid();
    let mut clients = Clients::new(joining)?;
    let mut measured = Measured::default();
    let mut joined = 0;
    while joined < setup.clients {
        // The history changes between two groups of clients. The earlier groups receive this message live, which is no
        // part of a join, so the measurement begins when they have it.
        let published = server.publish(1)?;
        clients.read_until(published)?;
        let (cpu, user) = (machine::cpu_seconds(pid)?, machine::cpu_time(pid)?.user);
        let count = setup.at_once.min(setup.clients - joined);
        clients.join(count, published - setup.history as u64)?;
        clients.read_until(published)?;
        measured.cpu += machine::cpu_seconds(pid)? - cpu;
        measured.user += machine::cpu_time(pid)?.user - user;
        joined += count;
    }
    measured.peak = machine::peak_resident(pid)? as f64;
    let published = server.publish(LIVE_MESSAGES)?;
    clients.read_until(published)?;
    Ok(measured)
}

/// Lets clients join that read nothing at first. Returns the memory that they have added, and the number of those that the
/// server has disconnected.
fn measure_stalled(setup: &Setup, kind: Kind, program: &Path) -> io::Result<(f64, usize)> {
    let warm = WarmServer::start(setup, kind, program, true)?;
    let (pid, published) = (warm.server.process.pid(), warm.published);
    let before = machine::resident(pid)? as f64;
    let mut clients = Clients::new(Joining {
        small: true,
        ..warm.joining
    })?;
    clients.join(setup.stalled, published - setup.history as u64)?;
    let mut resident = before;
    // Wait until the server has queued everything: until its memory no longer changes.
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = machine::resident(pid)? as f64;
        if (now - resident).abs() < 65_536.0 {
            break;
        }
        resident = now;
    }
    let added = machine::resident(pid)? as f64 - before;
    Ok((added, clients.read_rest(published)?))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    median_by(values, |value| *value).unwrap_or(0.0)
}

fn row(
    setup: &Setup,
    (kind, name): (Kind, &str),
    measured: &[Measured],
    baseline: &[Measured],
) -> String {
    let micros = |time: fn(&Measured) -> f64| {
        let each = measured.iter().map(time);
        number(median(each) / setup.clients as f64 * 1e6)
    };
    let ratio = |time: fn(&Measured) -> f64| {
        let rounds = measured.iter().zip(baseline);
        median(rounds.map(|(ours, theirs)| time(ours) / time(theirs)))
    };
    let stalled = median(measured.iter().map(|one| one.stalled)) / setup.stalled.max(1) as f64;
    let cut_off = measured.iter().map(|one| one.cut_off).max();
    format!(
        "| {} | {name} | {} µs, {} µs | {:.2}, {:.2} | {} MB | {} kB | {} |",
        kind.name(),
        micros(|one| one.cpu),
        micros(|one| one.user),
        ratio(|one| one.cpu),
        ratio(|one| one.user),
        number(median(measured.iter().map(|one| one.peak)) / 1e6),
        number(stalled / 1e3),
        cut_off.unwrap_or(0),
    )
}
