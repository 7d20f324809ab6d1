//! Certificate reloads while many clients receive broadcasts and get echoes. No connection is dropped, every message arrives in
//! order, and new connections get the new certificate. A handshake that began before a reload completes with the previous
//! certificate. Sessions of before a reload can't be resumed.

use std::io::Write;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::{Context, Report};
use crate::body::{MessageCodec, ReceiveLog};
use crate::certificates::{Certificates, TlsClients};
use crate::check::{DEADLINE, During, Failure, Outcome, ProgressDeadline, ensure, join};
use crate::client::frames::{BINARY, FIN};
use crate::client::tls::TlsStream;
use crate::client::{self, Peer};
use crate::random::Random;
use crate::server::program::ECHO;
use crate::server::{ProducerPlan, Server, Setup};

const CONNECTIONS: u64 = 1_000;
const RELOADS: u64 = 50;
/// Broadcasts around each reload, and the pause between two of them.
const BROADCASTS: u64 = 8;
const PAUSE_MICROSECONDS: u64 = 5_000;
const MESSAGE_BYTES_MAX: usize = 1_000;
/// One of so many received broadcasts makes a client send a message of its own.
const ECHO_EVERY: u64 = 20;

/// The sender numbers of broadcasts and of new clients. That of an open connection is its own number.
const BROADCASTER: u32 = 10_000_000;
const NEWCOMER: u32 = 10_000_001;

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let connections = context.connections(CONNECTIONS)?;
    let certificates = Certificates::new()?;
    let first = certificates.renew()?;
    let server = Server::start(&Setup {
        tls: Some(certificates.directory()),
        ..context.setup()
    })?;
    let configs = certificates.clients_without_resumption()?;
    let mut random = context.random.clone();
    let mut members = Vec::new();
    for number in 0..connections {
        let source = client::source(number);
        let socket = client::tcp(server.address, source).during("connecting")?;
        let stream = TlsStream::connect(socket, configs.any(&mut random))?;
        members.push(Member {
            sender: number as u32,
            peer: Peer::upgrade(stream, ECHO)?,
            log: ReceiveLog::new(context.codec()),
            sent: 0,
        });
    }
    let newcomers = Newcomers {
        address: server.address,
        codec: context.codec(),
        configs: certificates.clients()?,
        connected: 0,
        resumed: 0,
    };
    let mut reloader = Reloader {
        server,
        certificates,
        current: first,
        newcomers,
        slowest: Duration::ZERO,
    };
    let given_up = AtomicBool::new(false);
    let mut traffic = Traffic {
        members,
        codec: context.codec(),
        random: context.random.fork("traffic", 0),
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let traffic = scope.spawn(|| traffic.run(&given_up));
        let reloaded = reloader.run();
        given_up.store(reloaded.is_err(), SeqCst);
        reloaded.and(join(traffic))
    })?;
    let took = start.elapsed();
    let Reloader {
        mut server,
        newcomers,
        slowest,
        ..
    } = reloader;
    let figures = server.eventually("all new clients have left", |figures| {
        figures.get("connections") == connections
    })?;
    let expected = [
        ("opened", connections + newcomers.connected),
        ("closed", newcomers.connected),
        ("tls_reloads", RELOADS),
        ("tls_handshakes", connections + newcomers.connected),
        ("tls_resumed", newcomers.resumed),
        ("tls_failures", 0),
        ("tls_aborted", 0),
        ("slow_consumers", 0),
    ];
    figures.expect(&expected)?;
    let echoes: u64 = traffic.members.iter().map(|member| member.sent).sum();
    Ok(Report {
        held: format!("{connections} TLS connections"),
        faults: RELOADS,
        figures: format!(
            "{RELOADS} reloads in {took:.1?}, the slowest in {slowest:.1?}; {} broadcasts to each and {echoes} echoes in order; \
             {} new clients, {} of them with a resumed session",
            RELOADS * BROADCASTS,
            newcomers.connected,
            newcomers.resumed,
        ),
        peak: server.finish()?,
    })
}

struct Reloader {
    server: Server,
    certificates: Certificates,
    current: CertificateDer<'static>,
    newcomers: Newcomers,
    /// How long the slowest reload took.
    slowest: Duration,
}

impl Reloader {
    fn run(&mut self) -> Outcome {
        for version in 0..2 {
            self.newcomers.visit(version, false, &self.current)?;
        }
        for round in 0..RELOADS {
            self.reload(round).during(format!("reload {round}"))?;
        }
        Ok(())
    }

    /// Reloads the certificate while broadcasts are sent, and checks what new clients get.
    fn reload(&mut self, round: u64) -> Outcome {
        self.server.produce(ProducerPlan {
            sender: BROADCASTER,
            first: 1 + round * BROADCASTS,
            count: BROADCASTS,
            bytes_max: MESSAGE_BYTES_MAX,
            ms: 60_000,
            pause: PAUSE_MICROSECONDS,
        })?;
        let begun = self.newcomers.begin(round as usize % 2)?;
        let renewed = self.certificates.renew()?;
        let start = Instant::now();
        self.server.reload()?;
        self.slowest = self.slowest.max(start.elapsed());
        let previous = std::mem::replace(&mut self.current, renewed);
        self.newcomers
            .finish(begun, &previous)
            .during("a handshake that began before the reload")?;
        for version in 0..2 {
            // The first one offers a ticket of before.
            for is_resumed in [false, true] {
                self.newcomers.visit(version, is_resumed, &self.current)?;
            }
        }
        self.server
            .eventually("the broadcasts are sent", |figures| {
                figures.get("producing") == 0
            })
            .map(drop)
    }
}

/// Clients that connect, get an echo and close.
struct Newcomers {
    address: SocketAddrV4,
    codec: MessageCodec,
    configs: TlsClients,
    connected: u64,
    resumed: u64,
}

impl Newcomers {
    /// Begins a handshake, and waits until the server has answered.
    fn begin(&mut self, version: usize) -> Outcome<TlsStream> {
        let source = client::source(50_000 + self.connected);
        let socket = client::tcp(self.address, source).during("connecting")?;
        self.connected += 1;
        let mut stream = TlsStream::new(socket, &self.configs.0[version])?;
        let hello = stream.take_records()?;
        stream.socket.write_all(&hello).during("sending a hello")?;
        let answered = stream.socket.peek(&mut [0]).during("a TLS handshake")?;
        ensure!(answered > 0, "the server has ended a handshake");
        Ok(stream)
    }

    /// Completes the handshake, which must show this certificate. Gets an echo, and closes.
    fn finish(&mut self, mut stream: TlsStream, expected: &CertificateDer<'_>) -> Outcome {
        stream.complete_handshake()?;
        self.resumed += u64::from(stream.is_resumed());
        ensure!(
            stream.certificate()? == expected,
            "the server has shown another certificate"
        );
        let mut peer = Peer::upgrade(stream, ECHO)?;
        let message = self.codec.write(NEWCOMER, 0, MESSAGE_BYTES_MAX);
        peer.send(FIN | BINARY, &message).during("sending")?;
        let mut log = ReceiveLog::new(self.codec);
        while log.record_in_sequence(&peer.message()?)?.0 != NEWCOMER {}
        peer.close()
    }

    fn visit(
        &mut self,
        version: usize,
        is_resumed: bool,
        expected: &CertificateDer<'_>,
    ) -> Outcome {
        let resumed_before = self.resumed;
        let stream = self.begin(version)?;
        self.finish(stream, expected)
            .during("a new client after the reload")?;
        ensure!(
            (self.resumed > resumed_before) == is_resumed,
            "whether a new client resumed its session is not {is_resumed}"
        );
        Ok(())
    }
}

/// An open connection, which receives broadcasts and sends numbered messages that are echoed.
struct Member {
    sender: u32,
    peer: Peer<TlsStream>,
    log: ReceiveLog,
    sent: u64,
}

struct Traffic {
    members: Vec<Member>,
    codec: MessageCodec,
    random: Random,
}

impl Traffic {
    /// Reads and sends until all members have received all broadcasts and echoes.
    fn run(&mut self, given_up: &AtomicBool) -> Outcome {
        let mut deadline = ProgressDeadline::new(DEADLINE);
        while !given_up.load(SeqCst) && !self.members.iter().all(Member::has_all) {
            let mut received = 0;
            for member in &mut self.members {
                received += member
                    .go_on(self.codec, &mut self.random)
                    .during(format!("connection {}", member.sender))?;
            }
            if received > 0 {
                deadline.restart();
            } else {
                deadline.remaining(|| Ok(self.missing()))?;
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Describes which connections still wait for messages.
    fn missing(&self) -> String {
        let mut late = self.members.iter().filter(|member| !member.has_all());
        let first = late.next().map_or(0, |member| member.sender);
        format!(
            "connection {first} and {} others have not received all broadcasts and echoes",
            late.count()
        )
    }
}

impl Member {
    fn has_all(&self) -> bool {
        let echoes = self.log.runs.get(&self.sender);
        self.log.last(BROADCASTER) == RELOADS * BROADCASTS
            && echoes.map_or(0, |run| run.count) == self.sent
    }

    /// Reads what has arrived, and sends a message now and then. Returns the number of received bytes.
    fn go_on(&mut self, codec: MessageCodec, random: &mut Random) -> Outcome<usize> {
        let log = &mut self.log;
        let mut due = 0;
        let received = self.peer.pump(usize::MAX, |message| {
            let (sender, number) = log.record_in_sequence(message)?;
            ensure!(
                sender != BROADCASTER || log.runs[&sender].first == 1,
                "broadcast {number} is the first that has arrived"
            );
            due += u64::from(sender == BROADCASTER && random.below(ECHO_EVERY) == 0);
            Ok(())
        })?;
        for _ in 0..due {
            let message = codec.write(self.sender, self.sent, MESSAGE_BYTES_MAX);
            self.peer.send(FIN | BINARY, &message).during("sending")?;
            self.sent += 1;
        }
        if let Some(end) = self.peer.ended {
            let code = self.peer.closed;
            let text = format!("the connection was dropped: {code:?}, {end:?}");
            return Err(Failure::new(text));
        }
        Ok(received)
    }
}
