//! TLS handshakes as fast as two threads make them: full, resumed, and aborted by a reset at any point. Clients that are
//! connected get their echoes without delay meanwhile, each handshake is counted once, and the server's memory and descriptors
//! return to their initial values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report, mib};
use crate::body::MessageCodec;
use crate::certificates::{Certificates, TlsClients};
use crate::check::{During, Failure, Outcome, ensure, join};
use crate::client::frames::{BINARY, FIN, TEXT};
use crate::client::tls::TlsStream;
use crate::client::{self, Incoming, Peer};
use crate::machine;
use crate::random::Random;
use crate::server::program::{ECHO, SILENT};
use crate::server::{Figures, Server, Setup};

/// Number of handshakes that are begun in a short run.
const HANDSHAKES: u64 = 10_000;
/// Handshakes before the memory is first measured.
const WARM_UP: u64 = 2_000;
const THREADS: u64 = 2;
/// Number of handshakes that a thread begins at once.
const BURST: u64 = 200;
/// Number of connected clients that get echoes.
const ECHOING: u64 = 8;
const MESSAGE_BYTES_MAX: usize = 2_000;
/// The delay that handshakes may add to the slowest echo without them.
const LATENCY_MAX: Duration = Duration::from_millis(50);
/// How long echoes are measured without handshakes.
const CALM: Duration = Duration::from_secs(1);
/// Growth of resident memory between the measurements that counts as noise of the allocator.
const GROWTH_BYTES_MAX: u64 = 3 << 20;
/// Longer than a burst takes on a busy machine.
const HANDSHAKE_TIMEOUT: u64 = 5_000;

/// What a client does with its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// Completes it, opens a WebSocket, gets an echo, and closes.
    Echo,
    /// Completes it, opens a WebSocket, and resets.
    Slam,
    /// Resets without sending anything.
    Nothing,
    /// Resets within its ClientHello.
    MidHello,
    /// Resets after its ClientHello, without waiting for the server.
    Hello,
    /// Resets within its last message of the handshake.
    MidAnswer,
}

const ROUTES: [Route; 8] = [
    Route::Echo,
    Route::Echo,
    Route::Slam,
    Route::Slam,
    Route::Nothing,
    Route::MidHello,
    Route::Hello,
    Route::MidAnswer,
];

/// Counts of what clients have done.
#[derive(Clone, Copy, Debug, Default)]
struct StormCounts {
    connected: u64,
    completed: u64,
    resumed: u64,
    aborted: u64,
    /// Connections that were reset after the handshake.
    slammed: u64,
}

impl StormCounts {
    fn add(&mut self, other: Self) {
        self.connected += other.connected;
        self.completed += other.completed;
        self.resumed += other.resumed;
        self.aborted += other.aborted;
        self.slammed += other.slammed;
    }
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let certificates = Certificates::new()?;
    let mut server = Server::start(&Setup {
        tls: Some(certificates.directory()),
        handler_threads: 4,
        handshake_timeout: HANDSHAKE_TIMEOUT,
        ..context.setup()
    })?;
    let (address, pid) = (server.address, server.pid());
    let count = HANDSHAKES * context.scale;
    let mut done = StormCounts::default();
    let mut echoing = Vec::new();
    for number in 0..ECHOING {
        let socket = client::tcp(address, client::source(number)).during("connecting")?;
        let mut random = context.random.fork("echoing", number);
        let configs = certificates.clients_without_resumption()?;
        let stream = TlsStream::connect(socket, configs.any(&mut random))?;
        echoing.push(Peer::upgrade(stream, ECHO)?);
        done.connected += 1;
        done.completed += 1;
    }
    let descriptors = machine::descriptors(pid)?;
    done.add(storm(context, address, &certificates, "warm-up", WARM_UP)?);
    settled(&mut server, done)?;
    let before = server.resident()?;

    let over = AtomicBool::new(false);
    let calm = thread::scope(|scope| {
        let measuring = scope.spawn(|| slowest_echo(&mut echoing, pid, &over));
        thread::sleep(CALM);
        over.store(true, SeqCst);
        join(measuring)
    })?;
    over.store(false, SeqCst);
    let start = Instant::now();
    let slowest = thread::scope(|scope| {
        let measuring = scope.spawn(|| slowest_echo(&mut echoing, pid, &over));
        let counts = storm(context, address, &certificates, "storm", count);
        over.store(true, SeqCst);
        let slowest = join(measuring);
        done.add(counts?);
        slowest
    })?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    ensure!(
        slowest.beyond_waits <= LATENCY_MAX + calm.took,
        "an echo took {:?} beside {rate:.0} handshakes a second, {:?} of it beyond the wait for a processor; {:?} without them",
        slowest.took,
        slowest.beyond_waits,
        calm.took
    );
    settled(&mut server, done)?;
    server.wait_for_descriptors(descriptors)?;
    let after = server.resident()?;
    ensure!(
        after <= before + GROWTH_BYTES_MAX,
        "the server used {before} bytes after {WARM_UP} handshakes, and {after} after {count} more"
    );
    Ok(Report {
        held: format!("{} handshakes at a time", THREADS * BURST),
        faults: done.aborted + done.slammed,
        figures: format!(
            "{rate:.0} handshakes a second; {} completed, {} of them resumed, {} aborted; slowest echo {:.1?}, {:.1?} of it \
             beyond the wait for a processor, without handshakes {:.1?}; resident {:.1} MiB before, {:.1} after",
            done.completed,
            done.resumed,
            done.aborted,
            slowest.took,
            slowest.beyond_waits,
            calm.took,
            mib(before),
            mib(after),
        ),
        peak: server.finish()?,
    })
}

/// Waits until the server has counted everything that clients have done, each once.
fn settled(server: &mut Server, done: StormCounts) -> Outcome<Figures> {
    let figures = server.eventually("all handshakes are counted", |figures| {
        figures.get("accepted") == done.connected
            && figures.get("connections") == ECHOING
            && figures.get("opened") == figures.get("closed") + ECHOING
    })?;
    let expected = [
        ("opened", done.completed),
        ("connections_opened", done.completed),
        ("tls_handshakes", done.completed),
        ("tls_resumed", done.resumed),
        ("tls_aborted", done.aborted),
        ("tls_truncated", done.slammed),
        ("tls_failures", 0),
        ("handshake_failures", 0),
        ("refused", 0),
    ];
    figures.expect(&expected)?;
    ensure!(
        done.resumed > 0 && done.resumed < done.completed,
        "not both full and resumed handshakes were made: {done:?}"
    );
    Ok(figures)
}

fn storm(
    context: &Context,
    address: SocketAddrV4,
    certificates: &Certificates,
    name: &str,
    count: u64,
) -> Outcome<StormCounts> {
    let mut done = StormCounts::default();
    let mut stormers = Vec::new();
    for number in 0..THREADS {
        stormers.push(Stormer {
            address,
            codec: context.codec(),
            random: context.random.fork(name, number),
            full: certificates.clients_without_resumption()?,
            resuming: certificates.clients()?,
            done: StormCounts::default(),
        });
    }
    thread::scope(|scope| {
        let threads = stormers
            .iter_mut()
            .map(|stormer| scope.spawn(move || stormer.run(count / THREADS)));
        let threads: Vec<_> = threads.collect();
        for thread in threads {
            done.add(join(thread)?);
        }
        Ok(done)
    })
}

struct Stormer {
    address: SocketAddrV4,
    codec: MessageCodec,
    random: Random,
    full: TlsClients,
    resuming: TlsClients,
    done: StormCounts,
}

impl Stormer {
    fn run(&mut self, count: u64) -> Outcome<StormCounts> {
        let mut rest = count;
        while rest > 0 {
            let burst = rest.min(BURST);
            self.burst(burst)?;
            rest -= burst;
        }
        Ok(self.done)
    }

    /// Connects clients, sends their first messages one right after the other, and then takes each on its route.
    fn burst(&mut self, count: u64) -> Outcome {
        let mut clients = Vec::new();
        for _ in 0..count {
            let source = client::source(self.random.next());
            let socket = client::tcp(self.address, source).during("connecting")?;
            self.done.connected += 1;
            let configs = match self.random.below(2) {
                0 => &self.full,
                _ => &self.resuming,
            };
            let mut stream = TlsStream::new(socket, configs.any(&mut self.random))?;
            let route = self.random.pick(&ROUTES);
            let mut hello = stream.take_records()?;
            match route {
                Route::Nothing => hello.clear(),
                Route::MidHello => {
                    hello.truncate(self.random.between(1, hello.len() as u64 - 1) as usize);
                }
                _ => {}
            }
            clients.push((route, stream, hello));
        }
        for (_, stream, hello) in &mut clients {
            stream.socket.write_all(hello).during("sending a hello")?;
        }
        for (route, stream, _) in clients {
            self.go_on(route, stream).during(format!("{route:?}"))?;
        }
        Ok(())
    }

    fn go_on(&mut self, route: Route, mut stream: TlsStream) -> Outcome {
        match route {
            Route::Nothing | Route::MidHello | Route::Hello => {
                self.done.aborted += 1;
                client::reset_on_drop(&stream.socket)?;
            }
            Route::MidAnswer => {
                self.done.aborted += 1;
                let answer = stream.take_answer()?;
                let len = self.random.between(1, answer.len() as u64 - 1) as usize;
                stream.socket.write_all(&answer[..len])?;
                client::reset_on_drop(&stream.socket)?;
            }
            Route::Slam => {
                let stream = self.complete(stream)?;
                self.done.slammed += 1;
                client::reset_on_drop(&Peer::upgrade(stream, SILENT)?.stream.socket)?;
            }
            Route::Echo => {
                let mut peer = Peer::upgrade(self.complete(stream)?, ECHO)?;
                let message = self.codec.write(0, 0, MESSAGE_BYTES_MAX);
                peer.send(FIN | BINARY, &message).during("sending")?;
                ensure!(
                    peer.message()? == message,
                    "an echo differs from its message"
                );
                peer.close()?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, mut stream: TlsStream) -> Outcome<TlsStream> {
        stream.complete_handshake()?;
        self.done.completed += 1;
        self.done.resumed += u64::from(stream.is_resumed());
        Ok(stream)
    }
}

/// The slowest echo. While the storm lasts, there are more threads than processors. So the time for which the server has waited
/// for a processor during the echo does not count: that of the thread that has waited longest, which may be the one that has to
/// answer. Nor does the wait of the client's thread.
#[derive(Clone, Copy, Debug, Default)]
struct SlowestEcho {
    took: Duration,
    beyond_waits: Duration,
}

/// How long threads have waited for a processor so far: those of the server, and the calling one.
struct Waits {
    by_server: BTreeMap<OsString, Duration>,
    here: Duration,
}

impl Waits {
    fn of(pid: u32) -> Outcome<Self> {
        Ok(Self {
            by_server: machine::waited_by_thread(pid).during("reading schedstat")?,
            here: machine::waited_by_this_thread().during("reading schedstat")?,
        })
    }

    /// Returns the longest wait of a thread of the server since `before`, plus that of this thread.
    fn since(&self, before: &Self) -> Duration {
        let by_server = self.by_server.iter().map(|(thread, waited)| {
            let before = before.by_server.get(thread).copied().unwrap_or_default();
            waited.saturating_sub(before)
        });
        by_server.max().unwrap_or_default() + self.here.saturating_sub(before.here)
    }
}

/// Measures echoes of one client after the other until the storm is over.
fn slowest_echo(
    peers: &mut [Peer<TlsStream>],
    pid: u32,
    over: &AtomicBool,
) -> Outcome<SlowestEcho> {
    let mut slowest = SlowestEcho::default();
    while !over.load(SeqCst) {
        for peer in &mut *peers {
            let before = Waits::of(pid)?;
            let sent = Instant::now();
            peer.send(FIN | TEXT, b"echo").during("sending")?;
            let received = peer.receive()?;
            let took = sent.elapsed();
            let Incoming::Message(_) = received else {
                let text = format!("received {received:?} instead of an echo");
                return Err(Failure::new(text));
            };
            let beyond_waits = took.saturating_sub(Waits::of(pid)?.since(&before));
            slowest.took = slowest.took.max(took);
            slowest.beyond_waits = slowest.beyond_waits.max(beyond_waits);
        }
    }
    Ok(slowest)
}
