//! Measures CPU time per delivery: all servers are started, warmed up, and then loaded in turn for a fraction of a second,
//! until each has used enough CPU time. Turns are short, so that a slowdown of the machine affects all servers alike. While
//! one is loaded the others are idle, and peers are paused.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::server::Server;
use super::{Sample, Scenario, Setup, Side, Workload};
use crate::args::Job;
use crate::load::driven::{LoadProcess, LoadReport};
use crate::machine::{self, AllCpus, CpuTime};

/// Duration of a turn: long enough that refilling the caches adds little.
const TURN: Duration = Duration::from_millis(400);
/// Maximum duration of a measurement, as a multiple of the requested CPU time: some servers sleep most of the time.
const TIMES_MAX: f64 = 8.0;

/// Measures one round; the results are in the order of the sides.
pub(super) fn measure(
    setup: &Setup,
    scenario: &Scenario,
    sides: &[&Side],
) -> Vec<io::Result<Sample>> {
    let mut turns: Vec<io::Result<AlternatingRun>> = sides
        .iter()
        .map(|side| AlternatingRun::start(setup, scenario, side))
        .collect();
    let enough = setup.cpu_seconds * scenario.effort;
    let machine = machine::all_cpus();
    let end = Instant::now() + Duration::from_secs_f64(enough * TIMES_MAX * sides.len() as f64);
    loop {
        let mut all_done = true;
        for turn in &mut turns {
            if let Ok(under_load) = turn
                && !under_load.has_used(enough)
            {
                all_done = false;
                if let Err(error) = under_load.turn() {
                    *turn = Err(error);
                }
            }
        }
        if all_done || Instant::now() >= end {
            break;
        }
    }
    let ours: f64 = turns.iter().flatten().map(AlternatingRun::used).sum();
    let foreign = machine
        .and_then(|before| foreign_since(before, ours))
        .unwrap_or(0.0);
    turns
        .into_iter()
        .map(|turn| turn.and_then(|turn| turn.finish(foreign)))
        .collect()
}

/// The share of all CPUs that other processes have used.
pub(super) fn foreign_since(before: AllCpus, ours: f64) -> io::Result<f64> {
    let AllCpus { busy, all } = machine::all_cpus()? - before;
    Ok(if all > 0.0 {
        ((busy - ours) / all).max(0.0)
    } else {
        0.0
    })
}

/// Accounts for the CPU time of other programs during a whole run.
pub(super) struct ForeignLoad {
    begun: Instant,
    machine: AllCpus,
    own_seconds: f64,
}

impl ForeignLoad {
    pub(super) fn begin() -> io::Result<Self> {
        Ok(Self {
            begun: Instant::now(),
            machine: machine::all_cpus()?,
            own_seconds: own_cpu_seconds()?,
        })
    }

    /// Describes it in one line. All processes that the run started must have ended.
    pub(super) fn line(self) -> io::Result<String> {
        let foreign = foreign_since(self.machine, own_cpu_seconds()? - self.own_seconds)?;
        Ok(format!(
            "Other processes used {:.1} % of all CPUs during the measurements. It took {:.1} minutes.",
            foreign * 100.0,
            self.begun.elapsed().as_secs_f64() / 60.0
        ))
    }
}

/// CPU time in seconds of this process and of all its children that have ended.
fn own_cpu_seconds() -> io::Result<f64> {
    let own = machine::cpu_time(std::process::id())?.total();
    Ok(own + machine::cpu_time_of_ended_children()?.total())
}

/// A server with its connected load client.
pub(super) struct ServerUnderLoad {
    pub(super) server: Server,
    pub(super) client: LoadProcess,
    /// The pipe for lines, kept open while the server runs.
    _feed: Option<io::PipeWriter>,
}

impl ServerUnderLoad {
    pub(super) fn start(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<Self> {
        Self::with(
            setup,
            scenario,
            side,
            &side.work,
            setup.sleep || scenario.spread,
        )
    }

    /// Starts the client with another workload than the server.
    pub(super) fn with(
        setup: &Setup,
        scenario: &Scenario,
        side: &Side,
        load: &Workload,
        sleep: bool,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let (server_cpus, client_cpus) = setup.cpus(scenario);
        let (reader, writer) = match side.work.job {
            Job::Lines => {
                let (reader, writer) = io::pipe()?;
                (Some(reader), Some(writer))
            }
            _ => (None, None),
        };
        let server = Server::start(setup, side.kind, &side.work, server_cpus, reader)?;
        // The client opens the pipe through this process's descriptor.
        let feed = writer.as_ref().map(|pipe| {
            PathBuf::from(format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                pipe.as_raw_fd()
            ))
        });
        let client = LoadProcess::connect(
            &setup.program,
            server.address,
            &load.plan(setup.quick, sleep),
            client_cpus,
            feed.as_deref(),
        )?;
        Ok(Self {
            server,
            client,
            _feed: writer,
        })
    }

    /// CPU time in seconds that server and client have used so far.
    pub(super) fn used(&self) -> f64 {
        let of = |pid| machine::cpu_time(pid).map_or(0.0, CpuTime::total);
        of(self.server.pid()) + of(self.client.pid())
    }
}

/// A server that is loaded alternately with others.
struct AlternatingRun {
    loaded: ServerUnderLoad,
    /// Messages per turn.
    chunk: u64,
    /// The state before the measurement.
    warm_up: LoadReport,
    used_before: f64,
    before: CpuTime,
    /// Seconds under load since then.
    seconds: f64,
}

impl AlternatingRun {
    /// Connects, and warms up until a turn takes long enough.
    fn start(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<Self> {
        let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
        let mut chunk = side.work.in_flight();
        let turn = Duration::from_secs_f64(setup.cpu_seconds / 2.5).min(TURN);
        loop {
            let start = Instant::now();
            loaded.client.deliver(chunk)?;
            if start.elapsed() >= turn {
                break;
            }
            chunk *= 2;
        }
        loaded.client.clear_latencies()?;
        loaded.server.pause()?;
        Ok(Self {
            warm_up: loaded.client.state,
            used_before: loaded.used(),
            before: machine::cpu_time(loaded.server.pid())?,
            loaded,
            chunk,
            seconds: 0.0,
        })
    }

    fn turn(&mut self) -> io::Result<()> {
        let ServerUnderLoad { server, client, .. } = &mut self.loaded;
        server.go_on()?;
        let start = Instant::now();
        client.deliver(self.chunk)?;
        self.seconds += start.elapsed().as_secs_f64();
        server.pause()
    }

    fn has_used(&self, seconds: f64) -> bool {
        self.spent().is_ok_and(|spent| spent.total() >= seconds)
    }

    /// The server's CPU time since the measurement began.
    fn spent(&self) -> io::Result<CpuTime> {
        Ok(machine::cpu_time(self.loaded.server.pid())? - self.before)
    }

    /// CPU time of server and client since the measurement began.
    fn used(&self) -> f64 {
        self.loaded.used() - self.used_before
    }

    fn finish(mut self, foreign: f64) -> io::Result<Sample> {
        let spent = self.spent()?;
        self.loaded.server.go_on()?;
        let LoadReport {
            expected,
            received,
            visits,
            latency,
        } = self.loaded.client.finish()?;
        let deliveries = (received - self.warm_up.received) as f64;
        let each = |seconds: f64| seconds * 1e6 / deliveries;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(Sample {
            value: each(spent.total()),
            user: each(spent.user),
            system: each(spent.system),
            expected,
            received,
            p50: micros(latency.p50),
            p99: micros(latency.p99),
            max: micros(latency.max),
            visits: (visits > 0).then(|| (visits - self.warm_up.visits) as f64 / self.seconds),
            cpu_seconds: spent.total(),
            foreign,
            ..Sample::default()
        })
    }
}
