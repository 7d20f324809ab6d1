//! What a server has beside its clients: the broker of its cluster, and a reader of its metrics.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::Setup;
use super::scenario::Side;
use crate::args::Options;
use crate::machine;
use crate::run::broker::{self, Broker, BrokerKind};
use crate::run::server;

/// Seconds of load between two reads of the metrics. In a quick run, they are read in each turn.
const SCRAPE_INTERVAL: f64 = 1.0;
/// Maximum time for a read of the metrics.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the brokers of nodes are started.
pub(super) struct BrokerSetup {
    kind: BrokerKind,
    /// The server to start.
    server: String,
    /// The CPUs of the broker, which it shares with all other processes.
    cpus: String,
    /// The name and the version, or the reason why the broker can't be started.
    version: Result<String, String>,
}

impl BrokerSetup {
    /// Finds out whether the broker that the options name can be started.
    pub(super) fn find(options: &Options, bench: &Path) -> io::Result<Self> {
        let (kind, server) = broker::chosen(options);
        let mut setup = Self {
            kind,
            server,
            cpus: machine::cpu_list(&machine::allowed_cpus()?),
            version: Err(String::new()),
        };
        let version = setup.start(bench).and_then(|broker| broker.version());
        setup.version = version.map_err(|error| format!("the cluster: {error}"));
        Ok(setup)
    }

    fn start(&self, bench: &Path) -> io::Result<Broker> {
        Broker::start(self.kind, &self.server, bench, &self.cpus)
    }

    /// Describes the broker; `None` if it can't be started.
    pub(super) fn description(&self) -> Option<String> {
        let version = self.version.as_ref().ok()?;
        Some(format!(
            "Each node has a broker of its own: {version}, on the CPUs {}.",
            self.cpus
        ))
    }

    /// Why the broker can't be started.
    pub(super) fn missing(&self) -> Option<String> {
        self.version.as_ref().err().cloned()
    }
}

/// The services of one server.
#[derive(Default)]
pub(super) struct Services {
    broker: Option<Broker>,
    /// CPU time of the broker in seconds: before the current turn, and in all turns.
    broker_before: f64,
    broker_seconds: f64,
    metrics: Option<SocketAddrV4>,
    /// Seconds of load between two reads of the metrics.
    interval: f64,
    scrapes: u64,
}

impl Services {
    pub(super) fn start(setup: &Setup, side: &Side) -> io::Result<Self> {
        let broker = setup.broker.as_ref().filter(|_| side.is_node);
        let broker = broker.map(|broker| broker.start(&setup.program));
        let metrics = side.is_scraped.then(server::free_address);
        Ok(Self {
            broker: broker.transpose()?,
            metrics: metrics.transpose()?,
            interval: if setup.quick { 0.0 } else { SCRAPE_INTERVAL },
            ..Self::default()
        })
    }

    /// The arguments with which the server finds its services.
    pub(super) fn arguments(&self) -> Vec<String> {
        let cluster = self
            .broker
            .iter()
            .map(|broker| ["--cluster".into(), broker.url()]);
        let metrics = self.metrics.iter();
        let metrics = metrics.map(|address| ["--metrics".into(), address.to_string()]);
        cluster.chain(metrics).flatten().collect()
    }

    /// Begins the measurement.
    pub(super) fn begin(&mut self) {
        (self.broker_seconds, self.scrapes) = (0.0, 0);
    }

    /// Begins a turn, after so many seconds of load. Reads the metrics if that is due: for the first time in the middle of
    /// the first interval, so that there are as many reads as intervals, rounded.
    pub(super) fn begin_turn(&mut self, seconds: f64) -> io::Result<()> {
        if let Some(broker) = &self.broker {
            self.broker_before = broker.cpu_seconds()?;
        }
        let due = (self.scrapes as f64 + 0.5) * self.interval;
        match self.metrics {
            Some(address) if seconds >= due => {
                scrape(address)?;
                self.scrapes += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn end_turn(&mut self) -> io::Result<()> {
        if let Some(broker) = &self.broker {
            self.broker_seconds += broker.cpu_seconds()? - self.broker_before;
        }
        Ok(())
    }

    /// CPU time in seconds that the services have used since their start.
    pub(super) fn cpu_seconds(&self) -> io::Result<f64> {
        self.broker.as_ref().map_or(Ok(0.0), Broker::cpu_seconds)
    }

    /// CPU time in seconds that the broker has used in the turns of the measurement; `None` without a broker.
    pub(super) fn broker_seconds(&self) -> Option<f64> {
        self.broker.as_ref().map(|_| self.broker_seconds)
    }

    pub(super) fn scrapes(&self) -> u64 {
        self.scrapes
    }
}

/// Reads the metrics as Prometheus does, but over a new connection.
fn scrape(address: SocketAddrV4) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    match response.starts_with("HTTP/1.1 200 ") && response.contains("# TYPE ") {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "/metrics answered {:?}",
            response.lines().next().unwrap_or_default()
        ))),
    }
}
