//! Clients that stop within a TLS handshake or within a record, send a byte of one per second, or never read. New TLS clients
//! are served meanwhile, memory stays bounded, and each client is disconnected at its timeout and counted once. `slow-loris`
//! has the same for HTTP and frames.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use rustls::ClientConfig;

use super::held::{self, Holder, Lives};
use super::slow_loris::{CONNECTION_BYTES_MAX, HOARDERS, SERVER_BYTES_MAX};
use super::{Context, Report, mib};
use crate::certificates::Certificates;
use crate::check::{During, Failure, Outcome, ensure};
use crate::client::frames::{self, BINARY, FIN, PING};
use crate::client::tls::TlsStream;
use crate::client::{self, End, Peer, Transport};
use crate::machine;
use crate::random::Random;
use crate::server::program::{ECHO, SILENT};
use crate::server::{Server, Setup};

const CLIENTS: u64 = 2_000;
const HANDSHAKE_TIMEOUT: u64 = 3_000;
/// Longer than the heartbeat needs to find a silent client.
const MESSAGE_TIMEOUT: u64 = 4_000;
/// How much later than at its timeout a client may be disconnected, on a busy machine.
const LATENESS_MAX: f64 = 3.0;
/// Size of the message whose record is sent in part.
const MESSAGE_BYTES: usize = 1_000;

/// Memory of a TLS session, in the handshake or after it, in addition to that of its connection.
const TLS_BYTES_MAX: u64 = 4 << 10;
/// Buffers of the two shards for records.
const SHARDS_BYTES_MAX: u64 = 3 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HalfOpenKind {
    /// Sends nothing.
    Mute,
    HalfHello,
    /// Sends its ClientHello and does not answer the server.
    Hello,
    SlowHello,
    /// Completes the TLS handshake, and sends half the record of its request.
    HalfRequest,
    /// Opens a WebSocket, and sends half a record.
    HalfRecord,
    /// Opens a WebSocket, and sends a byte of a record per second.
    SlowRecord,
    /// Opens a WebSocket, sends pings, and never reads.
    Deaf,
}

use HalfOpenKind::*;

const KINDS: [HalfOpenKind; 7] = [
    Mute,
    HalfHello,
    Hello,
    SlowHello,
    HalfRequest,
    HalfRecord,
    SlowRecord,
];
/// They don't complete a request in time.
const REQUESTLESS: [HalfOpenKind; 5] = [Mute, HalfHello, Hello, SlowHello, HalfRequest];

enum Connection {
    /// The TLS handshake is incomplete.
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
    WebSocket(Box<Peer<TlsStream>>),
}

struct HalfOpen {
    kind: HalfOpenKind,
    connection: Connection,
    /// What it has still to send.
    rest: Vec<u8>,
    acts_next: Instant,
}

impl HalfOpen {
    fn new(
        kind: HalfOpenKind,
        address: SocketAddrV4,
        number: u64,
        config: &Arc<ClientConfig>,
        random: &mut Random,
    ) -> Outcome<Self> {
        let buffer = (kind == Deaf).then_some(4 << 10);
        let socket = client::tcp_with_buffer(address, client::source(number), buffer)
            .during("connecting")?;
        let mut stream = TlsStream::new(socket, config)?;
        let message = frames::frame(FIN | BINARY, &[7; MESSAGE_BYTES]);
        let (connection, mut rest) = match kind {
            Mute => (Connection::Tcp(stream.socket), Vec::new()),
            HalfHello | Hello | SlowHello => {
                let hello = stream.take_records()?;
                (Connection::Tcp(stream.socket), hello)
            }
            HalfRequest => {
                stream.complete_handshake()?;
                let request = stream.seal(client::request(SILENT).as_bytes())?;
                (Connection::Tls(Box::new(stream)), request)
            }
            HalfRecord | SlowRecord | Deaf => {
                stream.complete_handshake()?;
                let mut peer = Peer::upgrade(stream, SILENT)?;
                // A pong would be within the record.
                peer.answers = false;
                let record = match kind {
                    Deaf => Vec::new(),
                    _ => peer.stream.seal(&message)?,
                };
                (Connection::WebSocket(Box::new(peer)), record)
            }
        };
        if matches!(kind, HalfHello | HalfRequest | HalfRecord) {
            rest.truncate(random.between(1, rest.len() as u64 - 1) as usize);
        }
        let mut client = Self {
            kind,
            connection,
            rest,
            acts_next: Instant::now(),
        };
        if matches!(kind, HalfHello | Hello | HalfRequest | HalfRecord) {
            let bytes = std::mem::take(&mut client.rest);
            client.socket().write_all(&bytes).during("beginning")?;
        }
        Ok(client)
    }

    fn socket(&mut self) -> &mut TcpStream {
        match &mut self.connection {
            Connection::Tcp(socket) => socket,
            Connection::Tls(stream) => &mut stream.socket,
            Connection::WebSocket(peer) => &mut peer.stream.socket,
        }
    }

    /// Sends as many pings as the socket accepts.
    fn send_pings(&mut self) {
        if let Connection::WebSocket(peer) = &mut self.connection {
            if self.rest.is_empty() {
                let pings = frames::frame(FIN | PING, &[7; 125]).repeat(2_000);
                self.rest = peer.stream.seal(&pings).unwrap_or_default();
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            // Write errors are ignored: `has_ended` detects a closed connection.
            let sent = send(&peer.stream.socket, &self.rest, flags).unwrap_or_default();
            self.rest.drain(..sent);
        }
    }
}

impl Holder for HalfOpen {
    type Kind = HalfOpenKind;

    fn kind(&self) -> HalfOpenKind {
        self.kind
    }

    fn act(&mut self, now: Instant) {
        match self.kind {
            Deaf => self.send_pings(),
            SlowHello | SlowRecord if now >= self.acts_next && !self.rest.is_empty() => {
                self.acts_next = now + Duration::from_secs(1);
                let byte = self.rest.remove(0);
                // Write errors are ignored: the next read detects a closed connection.
                let _ = self.socket().write_all(&[byte]);
            }
            _ => {}
        }
    }

    fn has_ended(&mut self) -> Outcome<bool> {
        let expected = match self.kind {
            HalfRecord => 1011,
            _ => 1008,
        };
        let mut buffer = [0; 2_048];
        match &mut self.connection {
            Connection::Tcp(socket) => Ok(match socket.receive(&mut buffer) {
                Ok(received) => received == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            }),
            Connection::Tls(stream) => match stream.receive(&mut buffer) {
                Ok(received) => Ok(received == 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(Failure::new(format!(
                    "a client with half a request was disconnected without close_notify: {error}"
                ))),
            },
            Connection::WebSocket(peer) if self.kind == Deaf => {
                // Without reading, only a reset can be detected.
                let mut sockets = [PollFd::new(&peer.stream.socket, PollFlags::empty())];
                Ok(poll(&mut sockets, Some(&Timespec::default()))? > 0)
            }
            Connection::WebSocket(peer) => {
                peer.pump(usize::MAX, |_| Ok(()))?;
                // It can't answer the close frame within the record.
                ensure!(
                    peer.ended.is_none()
                        || (peer.closed == Some(expected) && peer.ended == Some(End::Eof)),
                    "a client of kind {:?} was closed with {:?} and {:?} instead of {expected}",
                    self.kind,
                    peer.closed,
                    peer.ended
                );
                Ok(peer.ended.is_some())
            }
        }
    }
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let count = context.connections(CLIENTS)?;
    let certificates = Certificates::new()?;
    let configs = certificates.clients()?;
    let mut server = Server::start(&Setup {
        tls: Some(certificates.directory()),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        heartbeat_interval: 1_000,
        heartbeat_timeout: 3_000,
        write_timeout: 3_000,
        message_timeout: MESSAGE_TIMEOUT,
        close_timeout: 1_000,
        // No client is disconnected before its time.
        handshakes_max: count as usize + 1_000,
        ..context.setup()
    })?;
    let address = server.address;
    let descriptors = machine::descriptors(server.pid())?;
    let mut random = context.random.clone();
    let connect = |number| {
        let kind = match random.below(count) {
            0..HOARDERS => Deaf,
            _ => random.pick(&KINDS),
        };
        let config = configs.any(&mut random);
        HalfOpen::new(kind, address, number, config, &mut random)
    };
    let mut other_random = context.random.fork("others", 0);
    let other = || {
        let socket = client::tcp(address, client::source(60_000)).during("connecting")?;
        let stream = TlsStream::connect(socket, configs.any(&mut other_random))?;
        client::well_behaved_over(stream, address, ECHO)
    };
    let (lives, served) = held::hold_while_serving(count, connect, other)?;
    check_lives(&lives)?;
    let figures = server.eventually("all clients are disconnected", |figures| {
        figures.get("connections") == 0 && figures.get("opened") == figures.get("closed")
    })?;
    let of = |kinds: &[HalfOpenKind]| lives.count(kinds);
    let past_handshake = of(&[HalfRequest, HalfRecord, SlowRecord, Deaf]);
    let expected = [
        ("accepted", count + served.count),
        ("tls_handshakes", past_handshake + served.count),
        ("handshake_failures", of(&REQUESTLESS)),
        ("heartbeat_timeouts", of(&[HalfRecord])),
        ("unfinished_messages", of(&[SlowRecord])),
        ("slow_consumers", of(&[Deaf])),
        ("protocol_errors", 0),
        // The server ends these connections, not the client.
        ("tls_aborted", 0),
        ("tls_truncated", 0),
        ("tls_failures", 0),
    ];
    figures.expect(&expected)?;
    server.wait_for_descriptors(descriptors)?;
    let peak = server.finish()?;
    let bound =
        SERVER_BYTES_MAX + SHARDS_BYTES_MAX + count * (CONNECTION_BYTES_MAX + TLS_BYTES_MAX);
    ensure!(
        peak <= bound,
        "the server's peak memory was {:.1} MiB; at most {:.1} MiB are allowed",
        mib(peak),
        mib(bound)
    );
    Ok(Report {
        held: format!("{count} TLS connections of {} kinds", KINDS.len() + 1),
        faults: count,
        figures: format!(
            "{} new clients served meanwhile, the slowest in {:.0} ms; memory limit {:.1} MiB; handshakes lived {:.1} s at \
             most, half records {:.1} s, slow records {:.1} s, who read nothing {:.1} s",
            served.count,
            served.slowest.as_secs_f64() * 1e3,
            mib(bound),
            lives.range(&REQUESTLESS).1,
            lives.range(&[HalfRecord]).1,
            lives.range(&[SlowRecord]).1,
            lives.range(&[Deaf]).1,
        ),
        peak,
    })
}

/// Checks that clients were disconnected when their timeout expired, not before, and not much later.
fn check_lives(lives: &Lives<HalfOpenKind>) -> Outcome {
    for (kinds, least, most) in [
        (&REQUESTLESS[..], HANDSHAKE_TIMEOUT, HANDSHAKE_TIMEOUT),
        // A message's time is extended once if a byte arrives just when it is over.
        (&[SlowRecord], MESSAGE_TIMEOUT, 2 * MESSAGE_TIMEOUT),
    ] {
        let (shortest, longest) = lives.range(kinds);
        let [least, most] = [least, most].map(|ms| ms as f64 / 1e3);
        // A tick of the server's clock is a few milliseconds.
        ensure!(
            lives.count(kinds) == 0 || (shortest >= least - 0.05 && longest <= most + LATENESS_MAX),
            "clients of the kinds {kinds:?} lived from {shortest:.2} to {longest:.2} s instead of {least} to {most} s"
        );
    }
    Ok(())
}
