//! Connections that open, and close in every possible way. Afterwards memory and descriptors are back at their initial
//! values, and each connection has been opened and closed once.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Instant;

use super::{Context, Report, mib};
use crate::body::MessageCodec;
use crate::check::{During, Outcome, ensure, join};
use crate::client::frames::{BINARY, FIN};
use crate::client::{self, Ending, Peer};
use crate::machine;
use crate::random::Random;
use crate::server::program::{ECHO, GREETING, SILENT};
use crate::server::{Figures, Server, Setup};

const CONNECTIONS: u64 = 100_000;
/// Connections of the warm-up, in which the server allocates its steady-state memory.
const WARM_UP: u64 = 30_000;
const THREADS: u64 = 4;
/// Connections that each thread has open at most.
const OPEN_MAX: u64 = 64;
/// Connections that stop answering, which the heartbeat must close.
const VANISHED: u64 = 100;
/// Memory that the allocator may retain after the churn: a few dozen bytes per closed connection.
const GROWTH_BYTES_MAX: u64 = 3 << 20;
/// Timers are removed when they expire, not when the connection closes; short timeouts let them expire during the warm-up,
/// too.
const HANDSHAKE_TIMEOUT_MS: u64 = 2_000;

#[derive(Clone, Copy, Debug)]
enum Route {
    /// Opened with a path, and ended.
    Opened(&'static str, Ending),
    /// Disconnected in the middle of the request head.
    MidHead,
    /// Disconnected before the handshake response.
    Hasty,
}

const ROUTES: [Route; 9] = [
    Route::Opened(ECHO, Ending::Close),
    Route::Opened(ECHO, Ending::CloseWithoutReply),
    Route::Opened(ECHO, Ending::Fin),
    Route::Opened(ECHO, Ending::Reset),
    Route::Opened(ECHO, Ending::HalfClose),
    Route::Opened(ECHO, Ending::MidFrame),
    // With unread messages.
    Route::Opened(GREETING, Ending::Fin),
    Route::MidHead,
    Route::Hasty,
];

/// Counts of what clients have done.
#[derive(Clone, Copy, Debug, Default)]
struct ChurnCounts {
    connected: u64,
    upgraded: u64,
    /// Connections that may or may not have completed the handshake.
    hasty: u64,
}

impl ChurnCounts {
    fn add(&mut self, other: Self) {
        self.connected += other.connected;
        self.upgraded += other.upgraded;
        self.hasty += other.hasty;
    }
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut server = Server::start(&Setup {
        handshake_timeout: HANDSHAKE_TIMEOUT_MS,
        heartbeat_interval: 2_000,
        heartbeat_timeout: 6_000,
        ..context.setup()
    })?;
    let count = CONNECTIONS * context.scale;
    let descriptors = machine::descriptors(server.pid())?;
    let mut done = churn(context, &server, "warm-up", WARM_UP)?;
    settled(&mut server, done, 0)?;
    let before = server.resident()?;

    let mut vanished = Vec::new();
    for number in 0..VANISHED {
        let peer = Peer::connect(server.address, client::source(number), SILENT)?;
        vanished.push(peer);
    }
    done.connected += VANISHED;
    done.upgraded += VANISHED;
    let start = Instant::now();
    done.add(churn(
        context,
        &server,
        "churn",
        count - WARM_UP - VANISHED,
    )?);
    let rate = (count - WARM_UP - VANISHED) as f64 / start.elapsed().as_secs_f64();
    let figures = settled(&mut server, done, VANISHED)?;
    drop(vanished);
    server.wait_for_descriptors(descriptors)?;
    let after = server.resident()?;
    ensure!(
        after <= before + GROWTH_BYTES_MAX,
        "the server used {before} bytes after {WARM_UP} connections, and {after} after {count}"
    );
    Ok(Report {
        held: format!("{} connections at a time", THREADS * OPEN_MAX + VANISHED),
        faults: done.connected,
        figures: format!(
            "{} connects, {} opened and as many closed, {VANISHED} by the heartbeat; {rate:.0} a second; resident \
             {:.1} MiB before, {:.1} after; {descriptors} descriptors before and after",
            figures.get("accepted"),
            figures.get("opened"),
            mib(before),
            mib(after),
        ),
        peak: server.finish()?,
    })
}

/// Waits until the server's counters include everything that clients have done.
fn settled(server: &mut Server, done: ChurnCounts, vanished: u64) -> Outcome<Figures> {
    let figures = server.eventually("all connections are closed", |figures| {
        figures.get("accepted") == done.connected
            && figures.get("connections") == 0
            && figures.get("opened") >= done.upgraded
            && figures.get("opened") == figures.get("closed")
    })?;
    let opened = figures.get("opened");
    ensure!(
        opened <= done.upgraded + done.hasty && opened == figures.get("connections_opened"),
        "{done:?}, and {figures:?}"
    );
    ensure!(
        figures.get("heartbeat_timeouts") == vanished,
        "{vanished} clients have stopped answering; {figures:?}"
    );
    Ok(figures)
}

fn churn(context: &Context, server: &Server, name: &str, count: u64) -> Outcome<ChurnCounts> {
    let mut done = ChurnCounts::default();
    thread::scope(|scope| {
        let threads = (0..THREADS).map(|number| {
            let mut churner = Churner {
                address: server.address,
                codec: context.codec(),
                random: context.random.fork(name, number),
                open: Vec::new(),
                done: ChurnCounts::default(),
            };
            let count = count / THREADS + u64::from(number < count % THREADS);
            scope.spawn(move || churner.run(count))
        });
        let threads: Vec<_> = threads.collect();
        for thread in threads {
            done.add(join(thread)?);
        }
        Ok(done)
    })
}

struct Churner {
    address: SocketAddrV4,
    codec: MessageCodec,
    random: Random,
    open: Vec<(Ending, Peer)>,
    done: ChurnCounts,
}

impl Churner {
    fn run(&mut self, count: u64) -> Outcome<ChurnCounts> {
        for _ in 0..count {
            self.connect_once()?;
            while self.open.len() as u64 > self.random.between(1, OPEN_MAX) {
                let at = self.random.below(self.open.len() as u64) as usize;
                let (ending, peer) = self.open.swap_remove(at);
                ending
                    .apply(peer, &mut self.random)
                    .during(format!("{ending:?}"))?;
            }
        }
        for (ending, peer) in self.open.drain(..) {
            ending
                .apply(peer, &mut self.random)
                .during(format!("{ending:?}"))?;
        }
        Ok(self.done)
    }

    fn connect_once(&mut self) -> Outcome {
        let random = &mut self.random;
        let source = client::source(random.next());
        let stream = client::tcp(self.address, source).during("connecting")?;
        self.done.connected += 1;
        match random.pick(&ROUTES) {
            Route::MidHead => {
                let len = random.below(client::request(SILENT).len() as u64) as usize;
                client::abort_handshake(stream, SILENT, len, random)
            }
            Route::Hasty => {
                self.done.hasty += 1;
                client::abort_handshake(stream, SILENT, usize::MAX, random)
            }
            Route::Opened(path, ending) => {
                let mut peer = Peer::upgrade(stream, path)?;
                self.done.upgraded += 1;
                if path == ECHO && random.below(4) == 0 {
                    let message = self.codec.write(0, 0, 2_000);
                    peer.send(FIN | BINARY, &message).during("sending")?;
                    ensure!(
                        peer.message()? == message,
                        "an echo differs from its message"
                    );
                }
                self.open.push((ending, peer));
                Ok(())
            }
        }
    }
}
