//! Attacks all terms of SECURITY.md's memory sum at once. The server's memory must stay within 1.2 times that sum, and
//! clients from other addresses must still be accepted.

use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Context, Report, mib};
use crate::check::{During, Outcome, ensure};
use crate::client::frames::{self, BINARY, FIN};
use crate::client::{self, Peer};
use crate::server::program::{BIG, BIG_BYTES, BLOCK, ECHO, EVENTS, SILENT};
use crate::server::{Policy, ProducerPlan, Server, Setup};

const MIB: usize = 1 << 20;
pub(super) const KIB: usize = 1 << 10;

/// Number of attackers of each kind; each kind could use far more than its limit.
const ECHOES: u64 = 60;
const RESPONSES: u64 = 40;
const UNFINISHED: u64 = 80;
const TARGETS: u64 = 300;
const HEADS: u64 = 500;
const BODIES: u64 = 200;
const WAITING: u64 = 100;
const READERS: u64 = 20;
const STREAMS: u64 = 600;

/// The smallest receive buffer that TCP grants, so that unread data stays in the server.
const RECEIVE_BUFFER: usize = 4 * KIB;
const TARGET_BYTES: usize = 15 * KIB;
/// Memory of a connection without the target of its request.
pub(super) const CONNECTION_BYTES: usize = 8 * KIB;
/// Permitted memory, in tenths of the sum.
const SLACK: u64 = 12;
/// Duration of each kind of attack.
const ATTACK: Duration = Duration::from_secs(1);

fn setup(context: &Context) -> Setup {
    Setup {
        policy: Policy::DropNewest,
        handler_threads: 4,
        message_bytes_max: MIB,
        outbox_bytes_max: 256 * KIB,
        outboxes_bytes_max: 48 * MIB,
        received_bytes_max: 48 * MIB,
        mailbox_bytes_max: MIB,
        body_bytes_max: 256 * KIB,
        bodies_bytes_max: 16 * MIB,
        handshakes_max: HEADS as usize,
        connections_max: 3_000,
        ..context.setup()
    }
}

/// The sum of SECURITY.md in bytes.
fn sum(setup: &Setup) -> usize {
    let limits = setup.limits();
    let connections =
        (ECHOES + RESPONSES + UNFINISHED + HEADS + BODIES + WAITING + READERS + STREAMS) as usize;
    let targets = TARGETS as usize;
    let batch = limits.message_bytes_max;
    (connections + targets) * CONNECTION_BYTES
        + targets * limits.head_bytes_max
        + limits.received_bytes_max
        // Requests for event streams that wait for a handler.
        + limits.received_bytes_max / 8
        + limits.outboxes_bytes_max
        + setup.handler_threads * BIG_BYTES
        + limits.handshakes_max * limits.head_bytes_max
        + limits.bodies_bytes_max
        + 2 * limits.mailbox_bytes_max * setup.shards
        + READERS as usize * (2 * limits.outbox_bytes_max + batch)
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let setup = setup(context);
    let sum = sum(&setup);
    let server = Server::start(&setup)?;
    let base = server.resident()?;
    let mut attack = Attack {
        server,
        held: Vec::new(),
        number: 0,
        faults: 0,
    };
    attack.run().during("attacking")?;
    let peak = attack.server.peak()?.saturating_sub(base);
    check_peak(peak, sum, sum / 2)?;
    // Handlers are blocked here, but the server still accepts connections.
    Peer::connect(attack.server.address, client::source(9_999), SILENT)?;
    Ok(Report {
        held: share_of_sum(peak, sum),
        faults: attack.faults,
        figures: format!("{:.2} times the sum", peak as f64 / sum as f64),
        peak: attack.server.finish()?,
    })
}

/// Checks that the server stayed within 1.2 times the sum, and that it used more than `least` bytes.
pub(super) fn check_peak(peak: u64, sum: usize, least: usize) -> Outcome {
    ensure!(
        10 * peak <= SLACK * sum as u64,
        "the server used {:.1} MiB; the sum of its limits is {:.1} MiB",
        mib(peak),
        mib(sum as u64)
    );
    ensure!(
        peak as usize > least,
        "the server used only {:.1} MiB, not {:.1} MiB: the attack was too weak",
        mib(peak),
        mib(least as u64)
    );
    Ok(())
}

pub(super) fn share_of_sum(peak: u64, sum: usize) -> String {
    format!(
        "{:.1} MiB, of a sum of {:.1} MiB",
        mib(peak),
        mib(sum as u64)
    )
}

struct Attack {
    server: Server,
    /// Connections that are kept open and not read.
    held: Vec<TcpStream>,
    number: u64,
    faults: u64,
}

impl Attack {
    fn run(&mut self) -> Outcome {
        // Attacks that need handlers run first, while handlers are still available.
        self.targets()?;
        self.broadcasts()?;
        self.echoes()?;
        self.responses()?;
        self.unfinished()?;
        self.block_handlers()?;
        self.unhandled()?;
        self.streams()?;
        self.bodies()?;
        self.requests()?;
        self.heads()
    }

    fn tcp(&mut self) -> Outcome<TcpStream> {
        self.number += 1;
        self.faults += 1;
        let source = client::source(self.number);
        client::tcp_with_buffer(self.server.address, source, Some(RECEIVE_BUFFER))
            .during("connecting")
    }

    fn peer(&mut self, path: &str) -> Outcome<Peer> {
        Peer::upgrade(self.tcp()?, path)
    }

    /// Fills memory with long request targets, which the server keeps for each connection.
    fn targets(&mut self) -> Outcome {
        let path = format!("{SILENT}?{}", "x".repeat(TARGET_BYTES));
        for _ in 0..TARGETS {
            let peer = self.peer(&path)?;
            self.held.push(peer.stream);
        }
        Ok(())
    }

    /// Fills outboxes with broadcasts: each attacker stops reading at a different message.
    fn broadcasts(&mut self) -> Outcome {
        let mut first = 1;
        for _ in 0..READERS {
            let peer = self.peer(SILENT)?;
            self.held.push(peer.stream);
            self.server.produce(ProducerPlan {
                sender: 0,
                first,
                count: 40,
                bytes_max: 128 * KIB,
                ms: 10_000,
                pause: 0,
            })?;
            first += 40;
        }
        self.server
            .eventually("all messages are broadcast", |figures| {
                figures.get("producing") == 0
            })?;
        Ok(())
    }

    /// Fills outboxes with echoes that are read just fast enough to look like network delay.
    fn echoes(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..ECHOES {
            peers.push(self.peer(ECHO)?.stream);
        }
        let message = frames::frame(FIN | frames::TEXT, &vec![b'x'; MIB - KIB]);
        self.push(peers, &message.repeat(6), true)
    }

    fn responses(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..RESPONSES {
            peers.push(self.tcp()?);
        }
        let request = format!("GET {BIG} HTTP/1.1\r\nHost: stress\r\n\r\n");
        self.push(peers, request.as_bytes(), true)
    }

    fn unfinished(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..UNFINISHED {
            peers.push(self.peer(SILENT)?.stream);
        }
        let message = frames::frame(FIN | BINARY, &vec![0; MIB]);
        self.push(peers, &message[..MIB - 10], false)
    }

    fn block_handlers(&mut self) -> Outcome {
        for _ in 0..8 {
            let mut peer = self.peer(BLOCK)?;
            peer.send(FIN | frames::TEXT, b"").during("blocking")?;
            self.held.push(peer.stream);
        }
        Ok(())
    }

    /// Fills job queues with messages that no handler takes.
    fn unhandled(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..UNFINISHED {
            peers.push(self.peer(SILENT)?.stream);
        }
        let message = frames::frame(FIN | frames::TEXT, &vec![b'x'; MIB - KIB]);
        self.push(peers, &message.repeat(2), false)
    }

    /// Requests event streams, with long targets. No handler takes the requests.
    fn streams(&mut self) -> Outcome {
        let before = self.server.figures()?.get("refused");
        let target = "x".repeat(TARGET_BYTES);
        let request = format!("GET {EVENTS}?{target} HTTP/1.1\r\nHost: stress\r\n\r\n");
        for _ in 0..STREAMS {
            let mut stream = self.tcp()?;
            stream.write_all(request.as_bytes()).during("requesting")?;
            self.held.push(stream);
        }
        self.server
            .eventually("requests for event streams are refused", |figures| {
                figures.get("refused") > before
            })?;
        Ok(())
    }

    fn post(length: usize) -> Vec<u8> {
        let head =
            format!("POST /length HTTP/1.1\r\nHost: stress\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), &vec![b'x'; length]].concat()
    }

    /// Sends request bodies that never end.
    fn bodies(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..BODIES {
            peers.push(self.tcp()?);
        }
        let post = Self::post(256 * KIB);
        self.push(peers, &post[..post.len() - 10], false)
    }

    /// Sends complete, pipelined requests that no handler takes.
    fn requests(&mut self) -> Outcome {
        let mut peers = Vec::new();
        for _ in 0..WAITING {
            peers.push(self.tcp()?);
        }
        let post = Self::post(100 * KIB);
        self.push(peers, &post.repeat(3), false)
    }

    fn heads(&mut self) -> Outcome {
        for _ in 0..HEADS {
            let mut stream = self.tcp()?;
            let head = format!(
                "GET / HTTP/1.1\r\nHost: stress\r\nX: {}",
                "x".repeat(TARGET_BYTES)
            );
            // A connection that is evicted in favour of a later one is reset.
            let _ = stream.write_all(head.as_bytes());
            self.held.push(stream);
        }
        // Wait until the sent data has arrived before memory is measured.
        thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    /// All attackers send these bytes as long as the server accepts them, and read little of the responses.
    fn push(&mut self, peers: Vec<TcpStream>, bytes: &[u8], reads: bool) -> Outcome {
        let until = Instant::now() + ATTACK;
        let mut sent = vec![0; peers.len()];
        let mut buffer = [0; KIB];
        while Instant::now() < until {
            let mut progress = false;
            for (peer, sent) in peers.iter().zip(&mut sent) {
                while *sent < bytes.len() {
                    match send(
                        peer,
                        &bytes[*sent..],
                        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                    ) {
                        Ok(n) => {
                            *sent += n;
                            progress = true;
                        }
                        Err(error) if is_over(error) => *sent = bytes.len(),
                        Err(_) => break,
                    }
                }
                if reads {
                    let _ = recv(peer, &mut buffer[..64], RecvFlags::DONTWAIT);
                }
            }
            if !progress {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.held.extend(peers);
        Ok(())
    }
}

fn is_over(error: rustix::io::Errno) -> bool {
    let kind = io::Error::from(error).kind();
    !matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
