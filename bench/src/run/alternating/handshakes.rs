//! Measures the CPU time of connecting: accepting a connection, the TLS handshake, the WebSocket handshake, and closing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::scenario::{Scenario, Side, TlsSide};
use super::table::Figures;
use super::turns::{TURN, Turns};
use super::{Setup, WARM_UP};
use crate::load::connect::{self, ConnectionSpec};
use crate::load::tls::{self, client_config};
use crate::run::server::Server;

/// Connections that are opened at once and then closed. A client that resumes has one ticket for each.
const BATCH: usize = 32;

/// Connections that were opened to all servers. Closed ones keep their ports for a minute, so that each needs its own.
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// A server to which clients connect in turn with others.
pub(super) struct Handshakes {
    server: Server,
    tls: Option<TlsSide>,
    /// The client of each connection of a batch, with its tickets.
    clients: Vec<Arc<ClientConfig>>,
    opened: usize,
    opened_before: usize,
    cpu_before: f64,
}

impl Handshakes {
    pub(super) fn start(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<Self> {
        let clients = side.tls.map(|tls| {
            let client = |_| client_config(tls.certificate, tls.resumes);
            (0..BATCH).map(client).collect()
        });
        let mut run = Self {
            server: super::start(setup, scenario.job, side, &[])?,
            tls: side.tls,
            clients: clients.transpose()?.unwrap_or_default(),
            opened: 0,
            opened_before: 0,
            cpu_before: 0.0,
        };
        run.turn(if setup.quick { TURN / 10 } else { WARM_UP })?;
        run.opened_before = run.opened;
        run.cpu_before = run.server.cpu_seconds()?;
        Ok(run)
    }

    fn batch(&mut self) -> io::Result<()> {
        let address = self.server.address;
        let from = OPENED.fetch_add(BATCH, Ordering::Relaxed);
        let spec = |_| ConnectionSpec::default();
        let Some(TlsSide { resumes, .. }) = self.tls else {
            self.opened += connect::open(address, from, BATCH, spec)?.len();
            return Ok(());
        };
        let config = |at: usize| self.clients[at].clone();
        let opened = tls::open(address, from, BATCH, spec, config)?;
        // The first sessions cannot be resumed ones.
        let is_expected = resumes && self.opened >= BATCH;
        if opened.iter().any(|one| one.is_resumed() != is_expected) {
            return Err(io::Error::other(match is_expected {
                true => "the server did not resume a session",
                false => "the server resumed a session",
            }));
        }
        self.opened += opened.len();
        Ok(())
    }
}

impl Turns for Handshakes {
    fn server(&self) -> &Server {
        &self.server
    }

    fn used(&self) -> f64 {
        let used = self.server.cpu_seconds();
        used.map_or(0.0, |cpu| cpu - self.cpu_before)
    }

    fn turn(&mut self, time: Duration) -> io::Result<()> {
        self.server.go_on()?;
        let start = Instant::now();
        while start.elapsed() < time {
            self.batch()?;
        }
        self.server.pause()
    }

    fn finish(self) -> io::Result<Figures> {
        let connections = (self.opened - self.opened_before) as u64;
        let micros = self.used() * 1e6;
        Ok(Figures {
            cpu: micros / connections as f64,
            connections,
            ..Figures::default()
        })
    }
}
