//! Measures the CPU time and the bytes of deliveries.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::client::Clients;
use super::scenario::{Scenario, Side};
use super::services::Services;
use super::stream::Totals;
use super::table::Figures;
use super::turns::{TURN, Turns};
use super::visitors::Visitors;
use super::{Setup, WARM_UP};
use crate::run::server::Server;

/// Minimum number of messages before the measurement. Compressors then have a history.
const WARM_UP_MESSAGES: u64 = 256;
/// Maximum duration of the warm-up with [`WARM_UP_MESSAGES`].
const WARM_UP_MAX: Duration = Duration::from_millis(1_500);

/// A server that is loaded alternately with others.
pub(super) struct AlternatingRun {
    server: Server,
    clients: Clients,
    visitors: Option<Visitors>,
    services: Services,
    before: Snapshot,
    /// Duration of all turns in seconds, and the server's CPU time in them.
    seconds: f64,
    cpu_seconds: f64,
}

/// Time in which a server finishes what follows its last delivery.
const EPILOGUE: Duration = Duration::from_millis(2);

/// The cumulative counts of a server at one moment.
#[derive(Clone, Copy, Default)]
struct Snapshot {
    totals: Totals,
    sent: u64,
    visits: u64,
    visitor_deliveries: u64,
}

impl AlternatingRun {
    pub(super) fn start(
        setup: &Setup,
        scenario: &Scenario,
        side: &Side,
        messages: &Arc<Vec<String>>,
    ) -> io::Result<Self> {
        let services = Services::start(setup, side)?;
        let server = super::start(setup, scenario.job, side, &services.arguments())?;
        let plan = scenario.traffic(side, messages)?;
        let clients = Clients::connect(server.address, plan)?;
        let visitors = side
            .has_visitors
            .then(|| Visitors::start(server.address, messages.clone(), side.offers));
        let mut run = Self {
            server,
            clients,
            visitors,
            services,
            before: Snapshot::default(),
            seconds: 0.0,
            cpu_seconds: 0.0,
        };
        run.turn(if setup.quick { TURN / 10 } else { WARM_UP })?;
        run.server.go_on()?;
        let start = Instant::now();
        while !setup.quick && run.clients.sent < WARM_UP_MESSAGES && start.elapsed() < WARM_UP_MAX {
            run.clients.run_in_large_batches(TURN / 10)?;
        }
        run.server.pause()?;
        run.services.begin();
        run.before = run.snapshot()?;
        (run.seconds, run.cpu_seconds) = (0.0, 0.0);
        Ok(run)
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let visits = self
            .visitors
            .as_ref()
            .map(Visitors::seen)
            .unwrap_or_default();
        Ok(Snapshot {
            totals: self.clients.totals,
            sent: self.clients.sent,
            visits: visits.count,
            visitor_deliveries: visits.totals.frames,
        })
    }
}

impl Turns for AlternatingRun {
    fn server(&self) -> &Server {
        &self.server
    }

    fn used_in_total(&self) -> io::Result<f64> {
        Ok(self.server.cpu_seconds()? + self.services.cpu_seconds()?)
    }

    fn used(&self) -> f64 {
        self.cpu_seconds
    }

    fn turn(&mut self, time: Duration) -> io::Result<()> {
        self.server.go_on()?;
        if let Some(visitors) = &self.visitors {
            visitors.set_active(true);
        }
        // What it uses in the turns of the others, such as for keep-alives, is no cost of its deliveries.
        let cpu_before = self.server.cpu_seconds()?;
        let start = Instant::now();
        self.services.begin_turn(self.seconds)?;
        let outcome = self.clients.run(time);
        self.seconds += start.elapsed().as_secs_f64();
        thread::sleep(EPILOGUE);
        self.services.end_turn()?;
        self.cpu_seconds += self.server.cpu_seconds()? - cpu_before;
        if let Some(visitors) = &self.visitors {
            visitors.set_active(false);
        }
        outcome?;
        self.server.pause()
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
        let micros = self.cpu_seconds * 1e6;
        let broadcasts = (after.sent - before.sent) as f64;
        Ok(Figures {
            cpu: micros / deliveries,
            cpu_per_broadcast: micros / broadcasts,
            bytes: totals.bytes as f64 / totals.frames as f64,
            wire_bytes: totals.wire as f64 / totals.frames as f64,
            broker_cpu: self
                .services
                .broker_seconds()
                .map(|cpu| cpu * 1e6 / deliveries),
            scrapes: self.services.scrapes(),
            compressed: totals.compressed as f64 / totals.frames as f64,
            deliveries: totals.frames + visitors,
            messages: after.sent - before.sent,
            compared,
            joins_per_second: (after.visits - before.visits) as f64 / self.seconds,
            ..Figures::default()
        })
    }
}
