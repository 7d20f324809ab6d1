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
use crate::server::{Policy, ProducerPlan, Server, Setup};

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
/// Nobody is disconnected before the shutdown, so each broadcast must reach each member.
const PACE: Policy = Policy::Pace {
    bytes_per_second_min: 1,
    patience: 60_000,
};

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut figures = Vec::new();
    let mut peak = 0;
    let some_hang = |shards| ShutdownTrial {
        shards,
        stopped: STOPPED,
        mid_frame: MID_FRAME,
        wait: WAIT_MS,
    };
    let all_answer = ShutdownTrial {
        shards: 2,
        stopped: 0,
        mid_frame: 0,
        wait: LONG_WAIT_MS,
    };
    let trials = [
        ("dropping, one shard", Policy::DropOldest, some_hang(1)),
        ("dropping, two shards", Policy::DropNewest, some_hang(2)),
        ("paced, one shard", PACE, some_hang(1)),
        ("paced, all answer", PACE, all_answer),
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
            "{MEMBERS} WebSockets and {HALF_HEADS} half handshakes, {PRODUCERS} producers, {} times",
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
    asked: u64,
    answered: u64,
}

impl ShutdownTrial {
    fn run(&self, setup: &Setup, random: &mut Random) -> Outcome<(String, u64)> {
        let mut server = Server::start(setup)?;
        let codec = MessageCodec::new(setup.seed);
        let mut connect = |path, buffer| {
            let source = client::source(random.next());
            let stream = client::tcp_with_buffer(server.address, source, buffer);
            Peer::upgrade(stream.during("connecting")?, path)
        };
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
                    peer: connect(path, None)?,
                    path,
                    log: ReceiveLog::new(codec),
                    asked: 0,
                    answered: 0,
                });
            }
        }
        for member in members.iter_mut().rev().take(self.mid_frame as usize) {
            let frame = client::frames::frame(FIN | BINARY, &[7; 400]);
            member.peer.stream.write_all(&frame[..200])?;
        }
        let stopped: Outcome<Vec<_>> = (0..self.stopped)
            .map(|_| connect(FLOOD, Some(STOPPED_BUFFER)))
            .collect();
        let mut stopped = stopped?;
        let _half_heads = half_heads(&server, random)?;
        server.eventually("all members have come", |figures| {
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
        let lasts = Duration::from_millis(random.between(300, 700));
        let floods = Duration::from_millis(random.between(100, 300));
        let (took, told) = thread::scope(|scope| {
            let members = scope.spawn(|| {
                for member in &mut members {
                    member.ask(codec)?;
                }
                read_to_the_end(&mut members, codec)
            });
            thread::sleep(lasts);
            for peer in &mut stopped {
                peer.send(FIN | BINARY, &codec.write(0, 0, 100))?;
            }
            thread::sleep(floods);
            let start = Instant::now();
            let took = server.shutdown(self.wait);
            let told = join(members)?.saturating_duration_since(start);
            Ok::<_, Failure>((took?, told.as_millis()))
        })?;
        let most = match self.stopped + self.mid_frame {
            0 => self.wait / 2,
            _ => self.wait + SPARE_MS,
        };
        ensure!(
            took <= most,
            "it was to end within {most} ms, and took {took}"
        );
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
            "there was no load: {figures:?}"
        );
        let line = format!(
            "{} accepted, {} delivered, {} dropped, all told after {told} ms, ended after {took}",
            figures.get("offered"),
            figures.get("messages_out"),
            figures.accounted() - figures.get("messages_out"),
        );
        Ok((line, server.finish()?))
    }
}

fn half_heads(server: &Server, random: &mut Random) -> Outcome<Vec<TcpStream>> {
    let head = client::request(SILENT);
    let half = |_| {
        let source = client::source(random.next());
        let mut stream = client::tcp(server.address, source).during("connecting")?;
        let len = random.below(head.len() as u64) as usize;
        stream
            .write_all(&head.as_bytes()[..len])
            .during("sending half a head")?;
        Ok(stream)
    };
    (0..HALF_HEADS).map(half).collect()
}

impl Member {
    /// Requests a few more replies.
    fn ask(&mut self, codec: MessageCodec) -> Outcome {
        if self.path == SILENT || self.peer.closed.is_some() {
            return Ok(());
        }
        while self.asked < self.answered + 4 {
            let message = codec.write(0, self.asked, 1_000);
            // A write fails only if the server is gone.
            if self.peer.send(FIN | BINARY, &message).is_err() {
                break;
            }
            self.asked += 1;
        }
        Ok(())
    }
}

/// Each member reads until its stream ends, and must receive a close frame. Returns when the last close frame arrived.
fn read_to_the_end(members: &mut [Member], codec: MessageCodec) -> Outcome<Instant> {
    let deadline = Instant::now() + DEADLINE;
    let mut all_told = None;
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
                    let _ = member.peer.say_goodbye(code);
                }
                None => member.ask(codec)?,
            }
        }
        if all_told.is_none() && members.iter().all(|member| member.peer.closed.is_some()) {
            all_told = Some(Instant::now());
        }
        ensure!(Instant::now() < deadline, "some were not told of the end");
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
    Ok(all_told.unwrap_or_else(Instant::now))
}
