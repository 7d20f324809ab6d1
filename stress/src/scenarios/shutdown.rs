//! A graceful shutdown under load. Every accepted message is delivered or counted, once per recipient; every client that
//! reads receives close code 1001; and the shutdown ends by its deadline.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report};
use crate::body::{MessageCodec, ReceiveLog};
use crate::check::{DEADLINE, During, Failure, Outcome, ensure, join};
use crate::client::frames::{BINARY, FIN};
use crate::client::{self, Peer};
use crate::random::Random;
use crate::server::program::{ECHO, FLOOD, SILENT, SLEEP};
use crate::server::{Figures, Policy, ProducerPlan, Server, Setup};

const READERS: u64 = 12;
const ECHOERS: u64 = 6;
const SLEEPERS: u64 = 6;
const MID_FRAME: u64 = 4;
const STOPPED: u64 = 4;
const MEMBERS: u64 = READERS + ECHOERS + SLEEPERS + MID_FRAME + STOPPED;
const HALF_HEADS: u64 = 20;
const PRODUCERS: u32 = 4;
/// Microseconds between two broadcasts of one producer: slow enough that readers keep up even on a busy machine, and have
/// no backlog when the shutdown begins.
const PAUSE_US: (u64, u64) = (1_000, 3_000);

const STOPPED_BUFFER: usize = 4 << 10;

const WAIT_MS: u64 = 3_000;
/// Deadline when all clients answer the close frame: far more than they need.
const LONG_WAIT_MS: u64 = 10_000;
/// Allowance for scheduling delays of the machine.
const SPARE_MS: u64 = 1_000;
/// No client is disconnected before the shutdown, so each broadcast must reach each member.
const PACE: Policy = Policy::Pace {
    bytes_per_second_min: 1,
    patience: 60_000,
};

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut figures = Vec::new();
    let mut peak = 0;
    let with_stalled_clients = |shards| ShutdownTrial {
        shards,
        stopped: STOPPED,
        mid_frame: MID_FRAME,
        wait: WAIT_MS,
    };
    let all_responsive = ShutdownTrial {
        shards: 2,
        stopped: 0,
        mid_frame: 0,
        wait: LONG_WAIT_MS,
    };
    let trials = [
        (
            "dropping, one shard",
            Policy::DropOldest,
            with_stalled_clients(1),
        ),
        (
            "dropping, two shards",
            Policy::DropNewest,
            with_stalled_clients(2),
        ),
        ("paced, one shard", PACE, with_stalled_clients(1)),
        ("paced, all clients answer", PACE, all_responsive),
    ];
    for round in 0..context.scale {
        for (name, policy, trial) in &trials {
            let setup = Setup {
                policy: *policy,
                shards: trial.shards,
                outbox_bytes_max: 64 << 10,
                mailbox_bytes_max: 256 << 10,
                write_timeout: 60_000,
                ..context.setup()
            };
            let mut random = context.random.fork(name, round);
            let (line, most) = trial.run(&setup, &mut random).during(name)?;
            figures.push(format!("{name}: {line}"));
            peak = peak.max(most);
        }
    }
    Ok(Report {
        held: format!(
            "{MEMBERS} WebSockets, {HALF_HEADS} incomplete handshakes and {PRODUCERS} producers, {} times",
            figures.len()
        ),
        faults: (MEMBERS - READERS + HALF_HEADS) * figures.len() as u64,
        figures: figures.join("; "),
        peak,
    })
}

struct ShutdownTrial {
    shards: usize,
    /// Number of members that do not read.
    stopped: u64,
    /// Number of members that have sent half a frame, and so cannot send a close frame.
    mid_frame: u64,
    /// Deadline of the shutdown in milliseconds.
    wait: u64,
}

/// A client that reads until its stream ends.
struct Member {
    peer: Peer,
    path: &'static str,
    log: ReceiveLog,
    requested: u64,
    answered: u64,
}

impl ShutdownTrial {
    fn run(&self, setup: &Setup, random: &mut Random) -> Outcome<(String, u64)> {
        let mut server = Server::start(setup)?;
        let codec = MessageCodec::new(setup.seed);
        let mut members = self.connect_members(&server, codec, random)?;
        let stopped: Outcome<Vec<_>> = (0..self.stopped)
            .map(|_| connect(&server, FLOOD, Some(STOPPED_BUFFER), random))
            .collect();
        let mut stopped = stopped?;
        let _half_heads = half_heads(&server, random)?;
        server.eventually("all members are connected", |figures| {
            figures.get("opened") == MEMBERS
        })?;
        for sender in 1..=PRODUCERS {
            server.produce(ProducerPlan {
                sender,
                first: 1,
                count: u64::MAX / 2,
                bytes_max: 2_000,
                ms: 60_000,
                pause: random.between(PAUSE_US.0, PAUSE_US.1),
            })?;
        }
        let (took, notified) =
            self.shut_down_under_load(&mut server, &mut members, &mut stopped, codec, random)?;
        let most = match self.stopped + self.mid_frame {
            0 => self.wait / 2,
            _ => self.wait + SPARE_MS,
        };
        ensure!(
            took <= most,
            "the shutdown took {took} ms; at most {most} ms are allowed"
        );
        let figures = self.check_deliveries(&mut server)?;
        let line = format!(
            "{} accepted, {} delivered, {} dropped, close frames received after {notified} ms, ended after {took} ms",
            figures.get("offered"),
            figures.get("messages_out"),
            figures.accounted() - figures.get("messages_out"),
        );
        Ok((line, server.finish()?))
    }

    /// Connects the members that read, and sends half a frame on the connections of some.
    fn connect_members(
        &self,
        server: &Server,
        codec: MessageCodec,
        random: &mut Random,
    ) -> Outcome<Vec<Member>> {
        let mut members = Vec::new();
        let kinds = [
            (SILENT, READERS),
            (ECHO, ECHOERS),
            (SLEEP, SLEEPERS),
            (SILENT, MID_FRAME + STOPPED - self.stopped),
        ];
        for (path, count) in kinds {
            for _ in 0..count {
                members.push(Member {
                    peer: connect(server, path, None, random)?,
                    path,
                    log: ReceiveLog::new(codec),
                    requested: 0,
                    answered: 0,
                });
            }
        }
        for member in members.iter_mut().rev().take(self.mid_frame as usize) {
            let frame = client::frames::frame(FIN | BINARY, &[7; 400]);
            member.peer.stream.write_all(&frame[..200])?;
        }
        Ok(members)
    }

    /// Shuts the server down while the members exchange messages. Returns after how many milliseconds the shutdown ended,
    /// and after how many the last close frame arrived.
    fn shut_down_under_load(
        &self,
        server: &mut Server,
        members: &mut [Member],
        stopped: &mut [Peer],
        codec: MessageCodec,
        random: &mut Random,
    ) -> Outcome<(u64, u128)> {
        let load = Duration::from_millis(random.between(300, 700));
        let flood = Duration::from_millis(random.between(100, 300));
        thread::scope(|scope| {
            let members = scope.spawn(|| {
                for member in &mut *members {
                    member.request_replies(codec)?;
                }
                read_to_the_end(members, codec)
            });
            thread::sleep(load);
            for peer in stopped {
                peer.send(FIN | BINARY, &codec.write(0, 0, 100))?;
            }
            thread::sleep(flood);
            let start = Instant::now();
            let took = server.shutdown(self.wait);
            let notified = join(members)?.saturating_duration_since(start);
            Ok::<_, Failure>((took?, notified.as_millis()))
        })
    }

    /// Waits until each accepted message is delivered or counted as dropped.
    fn check_deliveries(&self, server: &mut Server) -> Outcome<Figures> {
        // Handlers that are still running send messages, which are counted.
        let figures = server.eventually("each message is delivered or counted", |figures| {
            let due = figures.get("offered") * MEMBERS
                + figures.get("refused_broadcasts")
                + figures.get("sends");
            let accounted = figures.accounted();
            // A broadcast concurrent with the shutdown may reach one shard and not the other.
            let twice = (self.shards as u64 - 1) * u64::from(PRODUCERS) * MEMBERS;
            figures.get("producing") == 0 && (due..=due + twice).contains(&accounted)
        })?;
        ensure!(
            figures.get("offered") > 0 && figures.get("sends") > 0,
            "the server was not under load: {figures:?}"
        );
        Ok(figures)
    }
}

/// Connects from a random source address, with a receive buffer of this size if one is given.
fn connect(
    server: &Server,
    path: &str,
    receive_buffer: Option<usize>,
    random: &mut Random,
) -> Outcome<Peer> {
    let source = client::source(random.next());
    let stream = client::tcp_with_buffer(server.address, source, receive_buffer);
    Peer::upgrade(stream.during("connecting")?, path)
}

fn half_heads(server: &Server, random: &mut Random) -> Outcome<Vec<TcpStream>> {
    let head = client::request(SILENT);
    let half = |_| {
        let source = client::source(random.next());
        let mut stream = client::tcp(server.address, source).during("connecting")?;
        let len = random.below(head.len() as u64) as usize;
        stream
            .write_all(&head.as_bytes()[..len])
            .during("sending half a request head")?;
        Ok(stream)
    };
    (0..HALF_HEADS).map(half).collect()
}

impl Member {
    /// Requests a few more replies.
    fn request_replies(&mut self, codec: MessageCodec) -> Outcome {
        if self.path == SILENT || self.peer.closed.is_some() {
            return Ok(());
        }
        while self.requested < self.answered + 4 {
            let message = codec.write(0, self.requested, 1_000);
            // A write fails only if the server is gone.
            if self.peer.send(FIN | BINARY, &message).is_err() {
                break;
            }
            self.requested += 1;
        }
        Ok(())
    }
}

/// Each member reads until its stream ends, and must receive a close frame. Returns when the last close frame arrived.
fn read_to_the_end(members: &mut [Member], codec: MessageCodec) -> Outcome<Instant> {
    let deadline = Instant::now() + DEADLINE;
    let mut last_close_frame = None;
    while members.iter().any(|member| member.peer.ended.is_none()) {
        let mut bytes = 0;
        for member in &mut *members {
            let (log, answered) = (&mut member.log, &mut member.answered);
            bytes += member.peer.pump(1 << 20, |message| {
                let (sender, _) = log.record(message)?;
                *answered += u64::from(sender == 0);
                Ok(())
            })?;
            match member.peer.closed {
                Some(code) => {
                    // A server past its deadline does not wait for the reply.
                    let _ = member.peer.send_close(code);
                }
                None => member.request_replies(codec)?,
            }
        }
        if last_close_frame.is_none() && members.iter().all(|member| member.peer.closed.is_some()) {
            last_close_frame = Some(Instant::now());
        }
        ensure!(
            Instant::now() < deadline,
            "some members received no close frame"
        );
        if bytes == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    for (number, member) in members.iter().enumerate() {
        ensure!(
            member.peer.closed == Some(1001),
            "member {number}, at {}, was closed with {:?}, {:?}",
            member.path,
            member.peer.closed,
            member.peer.ended
        );
    }
    Ok(last_close_frame.unwrap_or_else(Instant::now))
}
