//! A shutdown in the middle of everything. Every message that was accepted is delivered or counted, once for each who
//! was to get it; every client that reads is told 1001; and the end comes in time.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report};
use crate::body::{Book, Ledger};
use crate::check::{DEADLINE, During, Failure, Outcome, ensure, join};
use crate::client::frames::{BINARY, FIN};
use crate::client::{self, Peer};
use crate::random::Random;
use crate::server::program::{ECHO, FLOOD, SILENT, SLEEP};
use crate::server::{Policy, Production, Server, Setup};

const READERS: u64 = 12;
const ECHOERS: u64 = 6;
const SLEEPERS: u64 = 6;
const MID_FRAME: u64 = 4;
const STOPPED: u64 = 4;
const MEMBERS: u64 = READERS + ECHOERS + SLEEPERS + MID_FRAME + STOPPED;
const HALF_HEADS: u64 = 20;
const PRODUCERS: u32 = 4;
/// Microseconds between two broadcasts of one. Who reads keeps up with it also on a busy machine: it must have nothing
/// but the end to wait for when the end comes.
const PAUSE_US: (u64, u64) = (1_000, 3_000);

const STOPPED_BUFFER: usize = 4 << 10;

const WAIT_MS: u64 = 3_000;
/// For those who all answer: much more than they need.
const LONG_WAIT_MS: u64 = 10_000;
/// What the machine may take besides.
const SPARE_MS: u64 = 1_000;
/// Nobody is disconnected before the end: so each broadcast is due to each member.
const PACE: Policy = Policy::Pace {
    bytes_per_second_min: 1,
    patience: 60_000,
};

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut figures = Vec::new();
    let mut peak = 0;
    let some_hang = |shards| Trial {
        shards,
        stopped: STOPPED,
        mid_frame: MID_FRAME,
        wait: WAIT_MS,
    };
    let all_answer = Trial {
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

struct Trial {
    shards: usize,
    /// Members that do not read.
    stopped: u64,
    /// Members that have sent half a frame: they can't even say goodbye.
    mid_frame: u64,
    /// Milliseconds for the end.
    wait: u64,
}

/// One of those who read to the end.
struct Member {
    peer: Peer,
    path: &'static str,
    ledger: Ledger,
    asked: u64,
    answered: u64,
}

impl Trial {
    fn run(&self, setup: &Setup, random: &mut Random) -> Outcome<(String, u64)> {
        let mut server = Server::start(setup)?;
        let book = Book::new(setup.seed);
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
                    ledger: Ledger::new(book),
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
            server.produce(Production {
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
                    member.ask(book)?;
                }
                read_to_the_end(&mut members, book)
            });
            thread::sleep(lasts);
            for peer in &mut stopped {
                peer.send(FIN | BINARY, &book.write(0, 0, 100))?;
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
        // Handlers that were left behind still send, and are counted.
        let figures = server.eventually("each message is delivered or counted", |figures| {
            let due = figures.get("offered") * MEMBERS
                + figures.get("refused_broadcasts")
                + figures.get("sends");
            let accounted = figures.accounted();
            // One that comes at the same time as the end may reach one shard and not the other.
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
    /// Asks for a few more replies.
    fn ask(&mut self, book: Book) -> Outcome {
        if self.path == SILENT || self.peer.closed.is_some() {
            return Ok(());
        }
        while self.asked < self.answered + 4 {
            let message = book.write(0, self.asked, 1_000);
            // Only a server that has gone takes nothing.
            if self.peer.send(FIN | BINARY, &message).is_err() {
                break;
            }
            self.asked += 1;
        }
        Ok(())
    }
}

/// Each reads until its stream has ended, and must have been told why. Returns when the last was told.
fn read_to_the_end(members: &mut [Member], book: Book) -> Outcome<Instant> {
    let deadline = Instant::now() + DEADLINE;
    let mut all_told = None;
    while members.iter().any(|member| member.peer.ended.is_none()) {
        let mut bytes = 0;
        for member in &mut *members {
            let (ledger, answered) = (&mut member.ledger, &mut member.answered);
            bytes += member.peer.pump(1 << 20, |message| {
                let (sender, _) = ledger.enter(message)?;
                *answered += u64::from(sender == 0);
                Ok(())
            })?;
            match member.peer.closed {
                Some(code) => {
                    // A server that has run out of time may not wait for it.
                    let _ = member.peer.say_goodbye(code);
                }
                None => member.ask(book)?,
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
