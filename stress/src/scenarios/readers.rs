//! Stopped readers and readers at various rates, under each slow-consumer policy. Readers that keep up lose nothing; the
//! losses of the others are counted exactly, and only whole messages are lost. The same over TLS.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report};
use crate::body::ReceiveLog;
use crate::certificates::Certificates;
use crate::check::{DEADLINE, During, Failure, Outcome, ProgressDeadline, ensure};
use crate::client::tls::TlsStream;
use crate::client::{self, End, Peer, Transport};
use crate::random::Random;
use crate::server::program::SILENT;
use crate::server::{Policy, ProducerPlan, Server, Setup};

const KEEP_UP: u64 = 16;
const SLOW: u64 = 8;
const STOPPED: u64 = 6;
const READERS: u64 = KEEP_UP + SLOW + STOPPED;

const OUTBOX_BYTES_MAX: usize = 512 << 10;
const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Messages broadcast at once: few enough to fit the outbox of a reader that has read everything before.
const BATCH: u64 = 24;
/// More than the kernel's buffers and the outbox of a stopped reader hold.
const MESSAGES: u64 = BATCH * 50;
const SLOW_READER_BUFFER: usize = 16 << 10;

const PACE: Policy = Policy::Pace {
    bytes_per_second_min: 64 << 10,
    patience: 3_000,
};

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    run_over(context, &context.setup(), |socket| {
        Peer::upgrade(socket, SILENT)
    })
}

pub(crate) fn run_tls(context: &Context) -> Outcome<Report> {
    let certificates = Certificates::new()?;
    let setup = Setup {
        tls: Some(certificates.directory()),
        ..context.setup()
    };
    let clients = certificates.clients()?;
    let mut random = context.random.fork("versions", 0);
    run_over(context, &setup, |socket| {
        let stream = TlsStream::connect(socket, clients.any(&mut random))?;
        Peer::upgrade(stream, SILENT)
    })
}

/// Runs the trials. `open` opens a WebSocket on a connected socket.
fn run_over<T: Transport>(
    context: &Context,
    setup: &Setup,
    mut open: impl FnMut(TcpStream) -> Outcome<Peer<T>>,
) -> Outcome<Report> {
    let mut figures = Vec::new();
    let mut peak = 0;
    let policies = [
        ("disconnect", Policy::Disconnect),
        ("drop-newest", Policy::DropNewest),
        ("drop-oldest", Policy::DropOldest),
        ("skip-ahead", Policy::SkipAhead),
        ("pace", PACE),
    ];
    for (number, (name, policy)) in (0..).zip(policies) {
        let random = context.random.fork(name, number);
        let setup = Setup {
            policy,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            close_timeout: 20_000,
            ..setup.clone()
        };
        let trial = ReaderTrial::start(context, &setup, random, &mut open);
        let mut trial = trial.during(name)?;
        figures.push(format!("{name}: {}", trial.run().during(name)?));
        peak = peak.max(trial.server.finish().during(name)?);
    }
    Ok(Report {
        held: format!(
            "{READERS} readers, {} broadcasts, under each of 5 policies",
            MESSAGES * context.scale
        ),
        faults: 5 * (SLOW + STOPPED),
        figures: figures.join("; "),
        peak,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    KeepsUp,
    BytesPerSecond(u64),
    Stopped,
}

struct Reader<T> {
    pace: Pace,
    peer: Peer<T>,
    log: ReceiveLog,
    allowance: f64,
}

impl<T> Reader<T> {
    fn may_have_holes(&self, policy: Policy) -> bool {
        let drops = [Policy::DropNewest, Policy::DropOldest, Policy::SkipAhead];
        self.pace != Pace::KeepsUp && drops.contains(&policy)
    }

    fn has_left(&self) -> bool {
        self.peer.closed.is_some()
    }
}

struct ReaderTrial<T> {
    policy: Policy,
    server: Server,
    readers: Vec<Reader<T>>,
    messages: u64,
    looked: Instant,
    /// Whether all readers read as fast as they can.
    all_read: bool,
}

impl<T: Transport> ReaderTrial<T> {
    fn start(
        context: &Context,
        setup: &Setup,
        mut random: Random,
        open: &mut impl FnMut(TcpStream) -> Outcome<Peer<T>>,
    ) -> Outcome<Self> {
        let server = Server::start(setup)?;
        let policy = setup.policy;
        let mut readers = Vec::new();
        for number in 0..READERS {
            let pace = match number {
                0..KEEP_UP => Pace::KeepsUp,
                _ if number < KEEP_UP + SLOW => {
                    // Paced readers must read enough for the others to finish in time.
                    let least = if policy == PACE { 4 << 20 } else { 50 << 10 };
                    Pace::BytesPerSecond(random.between(least, 8 << 20))
                }
                _ => Pace::Stopped,
            };
            let buffer = (pace != Pace::KeepsUp).then_some(SLOW_READER_BUFFER);
            let stream =
                client::tcp_with_buffer(server.address, client::source(random.next()), buffer)
                    .during("connecting")?;
            readers.push(Reader {
                pace,
                peer: open(stream)?,
                log: ReceiveLog::new(context.codec()),
                allowance: 0.0,
            });
        }
        let mut trial = Self {
            policy,
            server,
            readers,
            messages: MESSAGES * context.scale,
            looked: Instant::now(),
            all_read: false,
        };
        trial
            .server
            .eventually("all readers are connected", |figures| {
                figures.get("opened") == READERS
            })?;
        Ok(trial)
    }

    fn run(&mut self) -> Outcome<String> {
        let messages = self.messages;
        if self.policy == PACE {
            self.produce(1, messages)?;
            self.read_until("the broadcasts are done", |trial| {
                trial.fast_readers_have(messages)
            })?;
        } else {
            for first in (1..=messages).step_by(BATCH as usize) {
                self.produce(first, BATCH)?;
                self.read_until("a batch has arrived", |trial| {
                    trial.fast_readers_have(first + BATCH - 1)
                })?;
            }
        }
        self.all_read = true;
        let lossy = !matches!(self.policy, Policy::Disconnect | PACE);
        if lossy {
            self.read_until("each message is delivered or counted", |trial| {
                trial.is_accounted(messages * READERS)
            })?;
        } else {
            self.read_until("each stopped reader has received a close frame", |trial| {
                let mut readers = trial.readers.iter();
                Ok(readers.all(|reader| reader.has_left() || reader.log.last(0) == messages))
            })?;
        }
        // Every outbox is empty now, so the next message must reach every reader that is still connected.
        self.produce(messages + 1, 1)?;
        self.read_until("the last message has arrived", |trial| {
            let mut readers = trial.readers.iter();
            Ok(readers.all(|r| r.peer.ended.is_some() || r.log.last(0) == messages + 1))
        })?;
        self.judge()
    }

    fn produce(&mut self, first: u64, count: u64) -> Outcome {
        self.server.produce(ProducerPlan {
            sender: 0,
            first,
            count,
            bytes_max: MESSAGE_BYTES_MAX,
            ms: 60_000,
            pause: 0,
        })
    }

    fn fast_readers_have(&mut self, number: u64) -> Outcome<bool> {
        let mut keep_up = self.readers.iter().filter(|r| r.pace == Pace::KeepsUp);
        Ok(keep_up.all(|reader| reader.log.last(0) >= number))
    }

    fn is_accounted(&mut self, due: u64) -> Outcome<bool> {
        let accounted = self.server.figures()?.accounted();
        ensure!(
            accounted <= due,
            "{accounted} messages are accounted for, of {due} that were due"
        );
        Ok(accounted == due)
    }

    fn read_until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Outcome<bool>,
    ) -> Outcome {
        let mut deadline = ProgressDeadline::new(DEADLINE);
        while !holds(self)? {
            if self.read()? > 0 {
                deadline.restart();
            } else {
                let server = &mut self.server;
                deadline
                    .remaining(|| Ok(format!("waited until {what}; {:?}", server.figures()?)))?;
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Each reader reads what its rate permits by now. Returns the number of bytes.
    fn read(&mut self) -> Outcome<usize> {
        let seconds = self.looked.elapsed().as_secs_f64();
        self.looked = Instant::now();
        let mut total = 0;
        for reader in &mut self.readers {
            let holes = reader.may_have_holes(self.policy);
            let bytes = match reader.pace {
                _ if self.all_read => usize::MAX,
                Pace::KeepsUp => usize::MAX,
                Pace::Stopped => 0,
                Pace::BytesPerSecond(rate) => {
                    reader.allowance = (reader.allowance + seconds * rate as f64).min(1e6);
                    reader.allowance as usize
                }
            };
            let log = &mut reader.log;
            let read = reader.peer.pump(bytes, |message| {
                if holes {
                    log.record(message).map(drop)
                } else {
                    log.record_in_sequence(message).map(drop)
                }
            })?;
            reader.allowance -= read as f64;
            total += read;
            if reader.has_left() && reader.peer.ended.is_none() {
                let code = reader.peer.closed.unwrap_or_default();
                // A reply that arrives too late is no longer read.
                let _ = reader.peer.send_close(code);
                reader.peer.pump(usize::MAX, |_| Ok(()))?;
            }
        }
        Ok(total)
    }

    fn judge(&mut self) -> Outcome<String> {
        let figures = self.server.figures()?;
        let last = self.messages + 1;
        let lossless = matches!(self.policy, Policy::Disconnect | PACE);
        let mut received = 0;
        let mut left = 0;
        for (number, reader) in self.readers.iter().enumerate() {
            let run = reader.log.runs.get(&0).copied();
            let run =
                run.ok_or_else(|| Failure::new(format!("reader {number} received nothing")))?;
            received += run.count;
            ensure!(
                run.first == 1 || matches!(self.policy, Policy::DropOldest | Policy::SkipAhead),
                "the first message of reader {number} is {}",
                run.first
            );
            if reader.has_left() {
                left += 1;
                ensure!(
                    reader.peer.closed == Some(1013) && reader.peer.ended == Some(End::Eof),
                    "reader {number} was closed with {:?}, {:?}",
                    reader.peer.closed,
                    reader.peer.ended
                );
            }
            // Readers that keep up must have lost nothing; the policy must have applied to the others.
            let spared = match (self.policy, reader.pace) {
                (_, Pace::KeepsUp) | (PACE, Pace::BytesPerSecond(_)) => Some(true),
                (_, Pace::Stopped) => Some(false),
                (_, Pace::BytesPerSecond(_)) => None,
            };
            let got_all = !reader.has_left() && run.count == last;
            ensure!(
                spared.is_none_or(|spared| spared == got_all),
                "reader {number}, {:?}, received {} of {last} messages",
                reader.pace,
                run.count
            );
            ensure!(
                !lossless || got_all != reader.has_left(),
                "reader {number} is still connected, and received {} of {last} messages",
                run.count
            );
        }
        let out = figures.get("messages_out");
        ensure!(
            out == received,
            "{out} messages are counted as sent, and {received} arrived"
        );
        let dropped = figures.get("dropped_slow_consumer");
        let due = last * READERS;
        if lossless {
            // Disconnected readers expect nothing more; all others must have received everything.
            ensure!(
                figures.get("slow_consumers") == left && dropped >= left,
                "{left} readers were disconnected; {figures:?}"
            );
            ensure!(
                received + dropped <= due,
                "more messages were counted than sent; {figures:?}"
            );
        } else {
            ensure!(
                received + dropped == due && left == 0,
                "{received} of {due} messages arrived and {dropped} were dropped; {left} readers were disconnected"
            );
        }
        Ok(format!(
            "{received} delivered, {dropped} dropped, {left} disconnected"
        ))
    }
}
