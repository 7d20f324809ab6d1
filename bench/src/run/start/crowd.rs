//! The clients of `start`, in one thread. A storm and the echoes beside it share one loop, which takes a few steps of the
//! storm at a time, so that the client's own work delays an echo by some hundred microseconds at most.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::frames::MessageReader;
use crate::histogram::{Histogram, Summary};
use crate::load::connect::{self, ConnectionSpec};
use crate::machine;
use crate::poll;
use crate::wire;

/// The source address of all clients, so that they use up no ports of other programs.
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 1);
/// Connections that are begun, and events of new connections that are handled, between two looks at the echoes.
const BEGUN_AT_ONCE: usize = 8;
const EVENTS_AT_ONCE: usize = 16;
const EVENTS: usize = 256;
const READ_BUFFER: usize = 64 * 1024;
/// If a server does not listen so long after its start, it has failed.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// If a server lets clients or echoes wait for this long, it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts to connect to a server that does not listen yet.
const PROBE_PAUSE: Duration = Duration::from_micros(20);
/// Connections that are checked at the same time.
const CHECKED_AT_ONCE: usize = 64;
/// Bytes of an echo: its number, when it was due, and zeros.
const SIZE: usize = 32;
const MASK: [u8; 4] = [1, 2, 3, 4];

/// The connections to one server.
pub(super) struct Crowd {
    address: SocketAddrV4,
    spec: ConnectionSpec,
    request: String,
    accept: String,
    sessions: Vec<Session>,
    /// How many of them, from the first, exchange echoes, and how many echoes per second together.
    talkers: usize,
    rate: f64,
    /// How many of the sessions have been accepted.
    accepted: usize,
    talk: Poller,
    storm: Poller,
    buffer: Box<[u8]>,
    output: Vec<u8>,
    /// Echoes sent and received.
    sent: u64,
    received: u64,
    latencies: Histogram,
}

/// Sockets to wait for.
struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

struct Session {
    socket: OwnedFd,
    phase: Phase,
    reader: MessageReader,
    /// Echoes sent and received.
    sent: u64,
    received: u64,
}

enum Phase {
    Connecting,
    /// It has sent its request, and received this much of the response.
    Requested(Vec<u8>),
    Accepted,
}

/// Echoes of one phase of the measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Echoes {
    pub(super) count: u64,
    pub(super) latency: Summary,
}

impl Crowd {
    /// Connects nobody yet. All talkers together send `rate` echoes per second.
    pub(super) fn new(address: SocketAddrV4, rate: f64) -> io::Result<Self> {
        machine::raise_descriptor_limit()?;
        let spec = ConnectionSpec {
            source: Some(SOURCE),
            ..ConnectionSpec::default()
        };
        Ok(Self {
            address,
            request: connect::request(address, &spec),
            spec,
            accept: connect::accept(),
            sessions: Vec::new(),
            talkers: 0,
            rate,
            accepted: 0,
            talk: Poller::new(EVENTS)?,
            storm: Poller::new(EVENTS_AT_ONCE)?,
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
            output: Vec::new(),
            sent: 0,
            received: 0,
            latencies: Histogram::new(),
        })
    }

    /// Opens connections in batches. The first `talkers` will exchange echoes.
    pub(super) fn hold(&mut self, count: usize, talkers: usize) -> io::Result<()> {
        let spec = |_| self.spec.clone();
        let from = self.sessions.len();
        for socket in connect::open(self.address, from, count, spec)? {
            let at = self.sessions.len();
            if at < talkers {
                self.talk.add(&socket, at, epoll::EventFlags::IN)?;
            }
            self.sessions.push(Session::new(socket, Phase::Accepted));
        }
        self.accepted += count;
        self.talkers = talkers;
        Ok(())
    }

    /// Connects `count` clients to a server that may not listen yet: the first as soon as it does, and all others then.
    /// Returns when the first and when the last of them had its response, as [`machine::monotonic_nanos`].
    pub(super) fn cold(&mut self, count: usize) -> io::Result<(u64, u64)> {
        let since = Instant::now();
        let socket = loop {
            match connect::socket(self.address, self.sessions.len(), &self.spec) {
                Ok(socket) => break socket,
                Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                    return Err(error);
                }
                Err(_) if since.elapsed() < START_PATIENCE => std::thread::sleep(PROBE_PAUSE),
                Err(error) => {
                    let text = format!("after {START_PATIENCE:?}, no server listens: {error}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        };
        rustix::io::ioctl_fionbio(&socket, true)?;
        self.push(socket)?;
        self.connect_all(count - 1)
    }

    /// Connects `count` further clients at once, while the others exchange echoes. Returns how long it took, and their
    /// echoes meanwhile.
    pub(super) fn storm(&mut self, count: usize) -> io::Result<(Duration, Echoes)> {
        let begun = machine::monotonic_nanos();
        let ((_, last), echoes) = self.with_echoes(|crowd| crowd.connect_all(count))?;
        Ok((Duration::from_nanos(last - begun), echoes))
    }

    /// Exchanges echoes for this time.
    pub(super) fn talk(&mut self, time: Duration) -> io::Result<Echoes> {
        let ((), echoes) =
            self.with_echoes(|crowd| crowd.exchange(|_, elapsed| Ok(elapsed >= time)))?;
        Ok(echoes)
    }

    /// Runs a phase, and measures the echoes in it.
    fn with_echoes<T>(
        &mut self,
        phase: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<(T, Echoes)> {
        self.latencies.clear();
        let before = self.received;
        let outcome = phase(self)?;
        let echoes = Echoes {
            count: self.received - before,
            latency: self.latencies.summary(),
        };
        Ok((outcome, echoes))
    }

    /// Sends a message through each connection, and waits for its echo. Returns the number of connections.
    pub(super) fn check(&mut self) -> io::Result<usize> {
        let count = self.sessions.len();
        for first in (0..count).step_by(CHECKED_AT_ONCE) {
            let group = first..count.min(first + CHECKED_AT_ONCE);
            for at in group.clone() {
                self.send(at, machine::monotonic_nanos())?;
            }
            let since = Instant::now();
            for at in group {
                while self.sessions[at].received < self.sessions[at].sent {
                    self.read(at)?;
                    expire(since, || format!("connection {at} has no echo"))?;
                }
            }
        }
        Ok(count)
    }

    /// Begins to connect `more` clients without waiting, and handles all of them until they have been accepted. Returns
    /// when the first and the last were accepted.
    fn connect_all(&mut self, more: usize) -> io::Result<(u64, u64)> {
        let all = self.sessions.len() + more;
        let accepted_before = self.accepted;
        let (mut first, mut last) = (0, 0);
        let since = Instant::now();
        self.exchange(|crowd, _| {
            let before = crowd.accepted;
            for at in crowd.sessions.len()..all.min(crowd.sessions.len() + BEGUN_AT_ONCE) {
                let socket = connect::begin(crowd.address, Some((SOURCE, at)))?;
                crowd.push(socket)?;
            }
            crowd.storm.wait()?;
            for event in 0..crowd.storm.events.len() {
                let at = crowd.storm.events[event].data.u64() as usize;
                crowd
                    .proceed(at)
                    .map_err(|e| io::Error::new(e.kind(), format!("connection {at}: {e}")))?;
            }
            if crowd.accepted > before {
                last = machine::monotonic_nanos();
                if before == accepted_before {
                    first = last;
                }
            }
            expire(since, || {
                let accepted = crowd.accepted - accepted_before;
                format!("{accepted} of {more} clients that connect at once were accepted")
            })?;
            Ok(crowd.accepted == all)
        })?;
        Ok((first, last))
    }

    /// Adds a client that is connecting.
    fn push(&mut self, socket: OwnedFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        self.storm.add(&socket, self.sessions.len(), flags)?;
        self.sessions.push(Session::new(socket, Phase::Connecting));
        Ok(())
    }

    /// Takes the next steps of a handshake.
    fn proceed(&mut self, at: usize) -> io::Result<()> {
        let session = &mut self.sessions[at];
        if let Phase::Connecting = session.phase {
            connect::send_request(&session.socket, &self.request)?;
            session.phase = Phase::Requested(Vec::new());
        }
        let Phase::Requested(answer) = &mut session.phase else {
            return Ok(());
        };
        while let Some(read) = connect::receive_once(&session.socket, &mut self.buffer)? {
            answer.extend_from_slice(&self.buffer[..read]);
            if let Some(end) = wire::head_end(answer) {
                connect::check_response(&answer[..end], &self.accept, false)?;
                if answer.len() > end {
                    let text = "unexpected bytes follow the handshake response";
                    return Err(io::Error::other(text));
                }
                session.phase = Phase::Accepted;
                self.accepted += 1;
                break;
            }
        }
        Ok(())
    }

    /// Sends echoes when they are due, and reads them, until `is_over` says so; then waits for those on their way.
    fn exchange(
        &mut self,
        mut is_over: impl FnMut(&mut Self, Duration) -> io::Result<bool>,
    ) -> io::Result<()> {
        let (start, begun) = (Instant::now(), machine::monotonic_nanos());
        let mut sent = 0;
        loop {
            let due = begun + ((sent + 1) as f64 * 1e9 / self.rate) as u64;
            if self.talkers > 0 && machine::monotonic_nanos() >= due {
                self.send(sent as usize % self.talkers, due)?;
                sent += 1;
                continue;
            }
            self.read_echoes()?;
            if is_over(self, start.elapsed())? {
                break;
            }
        }
        self.sent += sent;
        let since = Instant::now();
        while self.received < self.sent {
            self.read_echoes()?;
            expire(since, || {
                format!("{} of {} echoes arrived", self.received, self.sent)
            })?;
        }
        Ok(())
    }

    fn send(&mut self, at: usize, due: u64) -> io::Result<()> {
        let session = &mut self.sessions[at];
        let mut payload = [0; SIZE];
        payload[..8].copy_from_slice(&session.sent.to_ne_bytes());
        payload[8..16].copy_from_slice(&due.to_ne_bytes());
        wire::mask(&mut payload, MASK);
        self.output.clear();
        wire::put_client_head(&mut self.output, wire::BINARY, SIZE, MASK);
        self.output.extend_from_slice(&payload);
        session.sent += 1;
        connect::send_all(&session.socket, &self.output)
    }

    fn read_echoes(&mut self) -> io::Result<()> {
        self.talk.wait()?;
        for event in 0..self.talk.events.len() {
            let at = self.talk.events[event].data.u64() as usize;
            self.received += self.read(at)?;
        }
        Ok(())
    }

    /// Reads the echoes that a connection has received. Returns how many.
    fn read(&mut self, at: usize) -> io::Result<u64> {
        let session = &mut self.sessions[at];
        let Session {
            socket,
            reader,
            sent,
            received,
            ..
        } = session;
        let before = *received;
        while let Some(read) = connect::receive_once(socket, &mut self.buffer)? {
            let now = machine::monotonic_nanos();
            reader.read(&self.buffer[..read], |payload| {
                let (number, due) = parse(payload)?;
                if number != *received || number >= *sent {
                    return Err(io::Error::other(format!(
                        "connection {at}: echo {number} where {received} of {sent} was due"
                    )));
                }
                *received += 1;
                self.latencies.record(now.saturating_sub(due));
                Ok(())
            })?;
            if read < self.buffer.len() {
                break;
            }
        }
        Ok(*received - before)
    }
}

impl Session {
    fn new(socket: OwnedFd, phase: Phase) -> Self {
        Self {
            socket,
            phase,
            reader: MessageReader::default(),
            sent: 0,
            received: 0,
        }
    }
}

impl Poller {
    fn new(events: usize) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(events),
        })
    }

    fn add(&self, socket: &OwnedFd, at: usize, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(at as u64);
        Ok(epoll::add(
            &self.epoll,
            socket,
            data,
            flags | epoll::EventFlags::ET,
        )?)
    }

    /// Replaces the events with the pending ones, without waiting.
    fn wait(&mut self) -> io::Result<()> {
        poll::wait(&self.epoll, &mut self.events, Some(Duration::ZERO))
    }
}

/// The number of an echo, and when it was due.
fn parse(payload: &[u8]) -> io::Result<(u64, u64)> {
    let number = |at: usize| {
        Some(u64::from_ne_bytes(
            payload.get(at..at + 8)?.try_into().ok()?,
        ))
    };
    let numbers = number(0).zip(number(8));
    numbers.ok_or_else(|| io::Error::other(format!("an echo of {} bytes", payload.len())))
}

/// Fails if the server has had its time.
fn expire(since: Instant, what: impl FnOnce() -> String) -> io::Result<()> {
    match since.elapsed() < PATIENCE {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("after {PATIENCE:?}, {}", what()),
        )),
    }
}
