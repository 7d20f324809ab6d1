//! Peers that send nothing, half a request head, a byte per second, half a frame, or an endless message. New clients are
//! served meanwhile, memory stays bounded, and each peer is disconnected when its timeout expires. Any byte counts as a
//! sign of life for the heartbeat. So a peer that continues a frame, or sends empty fragments, lives until the message
//! timeout expires.

use std::io::Write;
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::held::{self, Holder, Lives};
use super::{Context, Report, mib};
use crate::check::{During, Failure, Outcome, ensure};
use crate::client::frames::{self, BINARY, CONTINUATION, FIN, PING, TEXT};
use crate::client::{self, Peer};
use crate::machine;
use crate::random::Random;
use crate::server::program::{ECHO, SILENT};
use crate::server::{Server, Setup};

const HANDSHAKE_TIMEOUT: u64 = 3_000;
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longer than an endless message takes to reach its size limit.
const MESSAGE_TIMEOUT: u64 = 10_000;
/// The length that a frame announces that arrives one byte per second.
const SLOW_FRAME_BYTES: usize = 60_000;
/// The size of each fragment of an endless message.
const FRAGMENT_BYTES: usize = 2 << 10;
const FRAGMENT_EVERY: Duration = Duration::from_millis(150);

/// Server memory per connection, apart from received data. A message may take twice its size, since its buffer grows by
/// doubling.
pub(super) const CONNECTION_BYTES_MAX: u64 = 2 << 10;
/// Memory of the server itself: its threads, their buffers, and the allocator's overhead.
pub(super) const SERVER_BYTES_MAX: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LorisKind {
    Mute,
    HalfHead,
    SlowHead,
    Silent,
    HalfFrame,
    Endless,
    SlowFrame,
    EmptyFragments,
    /// Sends pings and does not read the pongs.
    Hoarder,
}

use LorisKind::*;

const KINDS: [LorisKind; 8] = [
    Mute,
    HalfHead,
    SlowHead,
    Silent,
    HalfFrame,
    Endless,
    SlowFrame,
    EmptyFragments,
];
/// Number of hoarders at any scale: each fills some megabytes of kernel buffers before it reaches a limit.
pub(super) const HOARDERS: u64 = 20;

enum Socket {
    Bare(TcpStream),
    Open(Box<Peer>),
}

struct Loris {
    kind: LorisKind,
    socket: Socket,
    acts_next: Instant,
    /// Bytes of the request head sent so far.
    head: usize,
    /// Whether it has answered the server's close frame.
    answered: bool,
}

impl Loris {
    fn new(
        kind: LorisKind,
        address: SocketAddrV4,
        number: u64,
        random: &mut Random,
    ) -> Outcome<Self> {
        let buffer = (kind == Hoarder).then_some(4 << 10);
        let socket = client::tcp_with_buffer(address, client::source(number), buffer)
            .during("connecting")?;
        let mut loris = Self {
            kind,
            socket: match kind {
                Mute | HalfHead | SlowHead => Socket::Bare(socket),
                _ => Socket::Open(Box::new(Peer::upgrade(socket, SILENT)?)),
            },
            acts_next: Instant::now(),
            head: 0,
            answered: false,
        };
        let mut half = |whole: Vec<u8>| {
            let len = random.between(1, whole.len() as u64 - 1) as usize;
            whole[..len].to_vec()
        };
        let begins = match kind {
            Mute | SlowHead | Silent | Hoarder => Vec::new(),
            HalfHead => half(client::request(SILENT).into()),
            HalfFrame => half(frames::frame(FIN | BINARY, &[7; 1_000])),
            SlowFrame => frames::header(FIN | BINARY, SLOW_FRAME_BYTES),
            Endless => frames::frame(BINARY, &[]),
            EmptyFragments => frames::frame(TEXT, b"a"),
        };
        loris.stream().write_all(&begins).during("beginning")?;
        if let Socket::Open(peer) = &mut loris.socket {
            // A peer within a frame cannot answer pings, and answering would only prove that it is alive.
            peer.answers = false;
        }
        Ok(loris)
    }

    fn stream(&mut self) -> &mut TcpStream {
        match &mut self.socket {
            Socket::Bare(stream) => stream,
            Socket::Open(peer) => &mut peer.stream,
        }
    }
}

impl Holder for Loris {
    type Kind = LorisKind;

    fn kind(&self) -> LorisKind {
        self.kind
    }

    /// Sends the next piece of data.
    fn act(&mut self, now: Instant) {
        if now < self.acts_next || self.answered {
            return;
        }
        let (bytes, pause) = match self.kind {
            Mute | HalfHead | Silent | HalfFrame => return,
            Hoarder => {
                // A truncated ping serves as well as a whole one here.
                let pings = frames::frame(FIN | PING, &[7; 125]).repeat(2_000);
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                // Write errors are ignored: `has_ended` detects a closed connection.
                let _ = send(self.stream(), &pings, flags);
                return;
            }
            SlowHead => {
                let head = client::request(SILENT);
                self.head += 1;
                (vec![head.as_bytes()[self.head - 1]], Duration::from_secs(1))
            }
            SlowFrame => (vec![7], Duration::from_secs(1)),
            EmptyFragments => (frames::frame(CONTINUATION, &[]), Duration::from_secs(1)),
            Endless => (
                frames::frame(CONTINUATION, &[7; FRAGMENT_BYTES]),
                FRAGMENT_EVERY,
            ),
        };
        self.acts_next = now + pause;
        // Write errors are ignored: the next read detects a closed connection.
        let _ = self.stream().write_all(&bytes);
    }

    fn has_ended(&mut self) -> Outcome<bool> {
        let ended = match &mut self.socket {
            Socket::Bare(stream) => match recv(&*stream, &mut [0; 512], RecvFlags::DONTWAIT) {
                Ok((n, _)) => n == 0,
                Err(error) => error != Errno::WOULDBLOCK,
            },
            Socket::Open(peer) if self.kind == Hoarder => {
                // Without reading, only a reset can be detected.
                let mut sockets = [PollFd::new(&peer.stream, PollFlags::empty())];
                poll(&mut sockets, Some(&Timespec::default()))? > 0
            }
            Socket::Open(peer) => {
                peer.pump(usize::MAX, |_| Ok(()))?;
                if let Some(code) = peer.closed {
                    // It answers the close frame.
                    let _ = peer.send_close(code);
                    self.answered = true;
                }
                peer.ended.is_some()
            }
        };
        let expected = match self.kind {
            _ if !ended => return Ok(false),
            Mute | HalfHead | SlowHead | Hoarder => return Ok(true),
            Endless => 1009,
            Silent | HalfFrame => 1011,
            SlowFrame | EmptyFragments => 1008,
        };
        match &self.socket {
            Socket::Open(peer) if peer.closed != Some(expected) => Err(Failure::new(format!(
                "a peer of kind {:?} was closed with {:?} instead of {expected}",
                self.kind, peer.closed
            ))),
            _ => Ok(true),
        }
    }
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let count = context.connections(2_000)?;
    let mut server = Server::start(&Setup {
        handshake_timeout: HANDSHAKE_TIMEOUT,
        heartbeat_interval: 1_000,
        heartbeat_timeout: 3_000,
        write_timeout: 3_000,
        message_timeout: MESSAGE_TIMEOUT,
        message_bytes_max: MESSAGE_BYTES_MAX,
        // No peer is disconnected before its time.
        handshakes_max: count as usize + 1_000,
        ..context.setup()
    })?;
    let address = server.address;
    let descriptors = machine::descriptors(server.pid())?;
    let mut random = context.random.clone();
    let connect = |number| {
        let kind = match random.below(count) {
            0..HOARDERS => Hoarder,
            _ => random.pick(&KINDS),
        };
        Loris::new(kind, address, number, &mut random)
    };
    let other = || client::well_behaved(address, client::source(60_000), ECHO);
    let (lives, served) = held::hold_while_serving(count, connect, other)?;
    let figures = server.eventually("all peers are disconnected", |figures| {
        figures.get("connections") == 0 && figures.get("opened") == figures.get("closed")
    })?;
    let of = |kinds: &[LorisKind]| lives.count(kinds);
    let expected = [
        ("handshake_failures", of(&[Mute, HalfHead, SlowHead])),
        ("protocol_errors", of(&[Endless])),
        ("slow_consumers", of(&[Hoarder])),
        ("heartbeat_timeouts", of(&[Silent, HalfFrame])),
        ("unfinished_messages", of(&[SlowFrame, EmptyFragments])),
    ];
    figures.expect(&expected)?;
    server.wait_for_descriptors(descriptors)?;
    let peak = server.finish()?;
    let bound = memory_max(count, &lives);
    ensure!(
        peak <= bound,
        "the server's peak memory was {:.1} MiB; at most {:.1} MiB are allowed",
        mib(peak),
        mib(bound)
    );
    Ok(Report {
        held: format!("{count} connections of {} kinds", KINDS.len() + 1),
        faults: count,
        figures: format!(
            "{} new clients served meanwhile, the slowest in {:.0} ms; memory limit {:.1} MiB; heads lived \
             {:.1} s at most, silent ones {:.1} s, who read no pongs {:.1} s, who dribbled {:.1} s",
            served.count,
            served.slowest.as_secs_f64() * 1e3,
            mib(bound),
            lives.range(&[Mute, HalfHead, SlowHead]).1,
            lives.range(&[Silent, HalfFrame]).1,
            lives.range(&[Hoarder]).1,
            lives.range(&[SlowFrame, EmptyFragments]).1,
        ),
        peak,
    })
}

fn memory_max(count: u64, lives: &Lives<LorisKind>) -> u64 {
    let messages = lives.count(&[Endless]) * 2 * MESSAGE_BYTES_MAX as u64;
    SERVER_BYTES_MAX + count * CONNECTION_BYTES_MAX + messages
}
