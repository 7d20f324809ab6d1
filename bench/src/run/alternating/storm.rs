//! Measures the latency of echoes while other clients connect at a steady rate. One loop sends the echoes when they are due and
//! takes the steps of the handshakes, so that the client's own work delays an echo by one step at most.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustls::ClientConfig;

use super::client::put_frame;
use super::scenario::{Scenario, Side};
use super::stream::{Frames, Part, Totals};
use super::table::Figures;
use super::{Setup, WARM_UP};
use crate::args;
use crate::histogram::{Histogram, Summary};
use crate::load::connect::ConnectionSpec;
use crate::load::tls::{Handshake, client_config};
use crate::load::transport::Connection;
use crate::poll;

/// Handshakes per second.
const HANDSHAKES: f64 = 1_000.0;
/// Echoes per second, of all clients together.
const ECHOES: f64 = 2_000.0;
/// Duration of each of the two phases, without and with handshakes.
const PHASE: Duration = Duration::from_secs(2);
/// If echoes or handshakes are missing for this long after a phase, the server has stalled.
const STALLED: Duration = Duration::from_secs(10);
const EVENTS: usize = 256;
const READ_BUFFER: usize = 64 * 1024;

/// Measures the latency without handshakes, and then with them.
pub(super) fn measure(
    setup: &Setup,
    scenario: &Scenario,
    side: &Side,
    messages: &Arc<Vec<String>>,
) -> io::Result<Figures> {
    let server = super::start(setup, scenario.job, side, &[])?;
    let tls = side
        .tls
        .ok_or_else(|| args::invalid("handshakes need TLS".into()))?;
    let config = client_config(tls.certificate, false)?;
    let mut clients = EchoClients::connect(
        server.address,
        scenario.clients,
        scenario.corpus.opcode(),
        messages.clone(),
        config,
    )?;
    let phase = if setup.quick { PHASE / 10 } else { PHASE };
    clients.run(WARM_UP, 0.0)?;
    let (unhindered, _) = clients.run(phase, 0.0)?;
    let (hindered, rate) = clients.run(phase, HANDSHAKES)?;
    let micros = |summary: Summary| summary.p99.as_secs_f64() * 1e6;
    Ok(Figures {
        p99: Some(micros(hindered)),
        unhindered_p99: Some(micros(unhindered)),
        joins_per_second: rate,
        ..Figures::default()
    })
}

/// Clients that send echoes, and those whose handshakes are in progress.
struct EchoClients {
    address: SocketAddrV4,
    messages: Arc<Vec<String>>,
    opcode: u8,
    config: Arc<ClientConfig>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
    output: Vec<u8>,
    clients: Vec<EchoClient>,
    /// Handshakes in progress, and free places among them.
    handshakes: Vec<Option<Handshake>>,
    free: Vec<usize>,
    /// The handshakes whose sockets are readable.
    ready: VecDeque<usize>,
    /// Connections opened so far.
    opened: usize,
    completed: u64,
    latencies: Histogram,
}

struct EchoClient {
    connection: Connection,
    frames: Frames,
    /// When each message in flight was due.
    due: VecDeque<Instant>,
}

impl EchoClients {
    fn connect(
        address: SocketAddrV4,
        count: usize,
        opcode: u8,
        messages: Arc<Vec<String>>,
        config: Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let spec = |_| ConnectionSpec::default();
        let opened = Connection::open(address, count, spec, Some(&config))?;
        let mut all = Self {
            address,
            messages,
            opcode,
            config,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            clients: Vec::with_capacity(count),
            handshakes: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            opened: count,
            completed: 0,
            latencies: Histogram::new(),
        };
        for connection in opened {
            watch(&all.epoll, connection.socket(), all.clients.len())?;
            all.clients.push(EchoClient {
                connection,
                frames: Frames::new(opcode),
                due: VecDeque::new(),
            });
        }
        Ok(all)
    }

    /// Sends echoes for this time, and starts as many handshakes per second. Returns the latencies, and the number of
    /// handshakes per second that were complete in time.
    fn run(&mut self, time: Duration, handshakes: f64) -> io::Result<(Summary, f64)> {
        self.latencies.clear();
        self.completed = 0;
        let (mut sent, mut started, mut in_time) = (0u64, 0u64, None);
        let start = Instant::now();
        loop {
            let elapsed = start.elapsed();
            let is_over = elapsed >= time;
            if !is_over {
                let due = |rate: f64| (elapsed.as_secs_f64() * rate) as u64;
                while sent < due(ECHOES) {
                    let at = start + Duration::from_secs_f64((sent + 1) as f64 / ECHOES);
                    self.send(sent, at)?;
                    sent += 1;
                }
                self.poll()?;
                if !self.proceed() && started < due(handshakes) {
                    self.begin()?;
                    started += 1;
                }
                continue;
            }
            in_time = in_time.or(Some(self.completed));
            self.poll()?;
            let is_waiting = self.proceed() || self.free.len() < self.handshakes.len();
            if !is_waiting && self.clients.iter().all(|client| client.due.is_empty()) {
                break;
            }
            if elapsed >= time + STALLED {
                let text = "echoes or handshakes are missing";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        let rate = in_time.unwrap_or_default() as f64 / time.as_secs_f64();
        Ok((self.latencies.summary(), rate))
    }

    fn send(&mut self, number: u64, due: Instant) -> io::Result<()> {
        let count = self.clients.len() as u64;
        let client = &mut self.clients[(number % count) as usize];
        let message = &self.messages[(number % self.messages.len() as u64) as usize];
        self.output.clear();
        put_frame(&mut self.output, self.opcode, message);
        client.due.push_back(due);
        client.connection.send(&self.output)
    }

    /// Reads the echoes that have arrived, and notes which handshakes can proceed.
    fn poll(&mut self) -> io::Result<()> {
        poll::wait(&self.epoll, &mut self.events, Some(Duration::ZERO))?;
        for event in &self.events {
            let token = event.data.u64() as usize;
            let Some(client) = self.clients.get_mut(token) else {
                self.ready.push_back(token - self.clients.len());
                continue;
            };
            client
                .read(&mut self.buffer, &mut self.latencies)
                .map_err(|e| io::Error::new(e.kind(), format!("connection {token}: {e}")))?;
        }
        Ok(())
    }

    /// Takes one step of one handshake. Returns whether there was one to take. A handshake that the server refuses is not
    /// counted as complete.
    fn proceed(&mut self) -> bool {
        let Some(at) = self.ready.pop_front() else {
            return false;
        };
        // A handshake may be noted twice and have ended by now.
        if let Some(handshake) = &mut self.handshakes[at] {
            let is_complete = match handshake.proceed(&mut self.buffer) {
                Ok(false) => return true,
                Ok(true) => true,
                Err(_) => false,
            };
            self.completed += u64::from(is_complete);
            self.handshakes[at] = None;
            self.free.push(at);
        }
        true
    }

    fn begin(&mut self) -> io::Result<()> {
        let handshake = Handshake::start(self.address, self.opened, self.config.clone())?;
        self.opened += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.handshakes.push(None);
            self.handshakes.len() - 1
        });
        watch(&self.epoll, handshake.socket(), self.clients.len() + at)?;
        self.handshakes[at] = Some(handshake);
        Ok(())
    }
}

impl EchoClient {
    fn read(&mut self, buffer: &mut [u8], latencies: &mut Histogram) -> io::Result<()> {
        let Self {
            connection,
            frames,
            due,
        } = self;
        connection.read(buffer, |mut bytes| {
            while let Part::Payload(_, ends) =
                frames.next(&mut bytes, &mut Totals::default(), false)?
            {
                if ends {
                    let due = due.pop_front();
                    let due = due.ok_or_else(|| io::Error::other("an unexpected message"))?;
                    latencies.record(due.elapsed().as_nanos() as u64);
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}

fn watch(epoll: &OwnedFd, socket: &OwnedFd, token: usize) -> io::Result<()> {
    let data = epoll::EventData::new_u64(token as u64);
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(epoll, socket, data, flags)?)
}
