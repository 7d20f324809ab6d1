//! A client that sends as fast as it can, 100,000 messages a second if the server takes them, and then many such clients.
//! With a rate limit, the p99 of the other clients' round trips stays within three times the p99 without a flood.
//!
//! A round trip on a busy machine varies, so calm and flooded periods alternate, and the medians of their p99s are
//! compared. The same without the limit is measured for comparison, and not checked.

use std::io::{self, ErrorKind};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::{Context, Report};
use crate::check::{During, Outcome, ensure, join};
use crate::client::frames::{self, FIN, TEXT};
use crate::client::{self, Peer};
use crate::server::program::ECHO;
use crate::server::{Server, Setup};

/// Messages per second that the server allows each client.
const ALLOWED: u32 = 1_000;
/// Messages per second that the flooding client offers.
const OFFERED: u64 = 100_000;
/// Clients whose round trips are measured, and the pause after each round trip. Together they stay below the limit.
const PATIENT: u64 = 10;
const PAUSE: Duration = Duration::from_micros(500);
/// The length of each period, and the number of calm and of flooded ones in a short run.
const PERIOD: Duration = Duration::from_millis(800);
const PERIODS: u64 = 5;
/// The permitted ratio of the p99s, and a difference that is permitted in any case, since the scheduler of a busy machine
/// causes it.
const RATIO_MAX: u32 = 3;
const DIFFERENCE_MAX: Duration = Duration::from_micros(300);
/// Clients that flood at the same time in the end.
const FLOODING: u64 = 300;

/// The result of one server.
struct Measured {
    calm: Duration,
    flooded: Duration,
    /// Messages per second of the flooding client that the server has received.
    received: u64,
}

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let unlimited = context.setup();
    let limited = Setup {
        messages_per_second_max: ALLOWED,
        ..context.setup()
    };
    let mut server = Server::start(&unlimited)?;
    let without = measure(&mut server, context)?;
    server.finish()?;
    let mut server = Server::start(&limited)?;
    let with = measure(&mut server, context)?;
    let ratio = |of: &Measured| of.flooded.as_secs_f64() / of.calm.as_secs_f64();
    ensure!(
        with.flooded <= with.calm * RATIO_MAX || with.flooded <= with.calm + DIFFERENCE_MAX,
        "during a flood, the p99 of a round trip is {:?}, otherwise {:?}",
        with.flooded,
        with.calm
    );
    // One second's worth may come in a burst, in each period.
    let received_max = u64::from(ALLOWED) + u64::from(ALLOWED) * 1_000 / PERIOD.as_millis() as u64;
    ensure!(
        with.received <= received_max,
        "{} messages of the flood are received per second",
        with.received
    );
    let delayed = server.figures()?.get("reads_delayed");
    ensure!(delayed > 0, "no read was delayed");
    flood_by_many(&mut server, context)?;
    let ms = |of: Duration| of.as_secs_f64() * 1e3;
    Ok(Report {
        held: format!(
            "{PATIENT} clients with round trips; a flood of {OFFERED}/s by 1 and by {FLOODING} clients"
        ),
        faults: 2 + FLOODING,
        figures: format!(
            "p99 of a round trip {:.2} ms, during the flood {:.2} ms ({:.1} times; {} of its messages received/s); \
             without the limit {:.2} ms, {:.2} ms ({:.1} times; {}/s)",
            ms(with.calm),
            ms(with.flooded),
            ratio(&with),
            with.received,
            ms(without.calm),
            ms(without.flooded),
            ratio(&without),
            without.received,
        ),
        peak: server.finish()?,
    })
}

/// Measures calm and flooded periods in turn.
fn measure(server: &mut Server, context: &Context) -> Outcome<Measured> {
    let address = server.address;
    let mut peers = Vec::new();
    for number in 0..PATIENT {
        peers.push(Peer::connect(address, client::source(number), ECHO)?);
    }
    round_trips(&mut peers, PERIOD)?;
    let (mut calm, mut flooded) = (Vec::new(), Vec::new());
    let (mut received, mut flooded_for) = (0, Duration::ZERO);
    for _ in 0..PERIODS * context.scale {
        calm.push(round_trips(&mut peers, PERIOD)?.p99);
        let before = server.figures()?.get("messages_in");
        let start = Instant::now();
        let over = AtomicBool::new(false);
        let trips = thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(address, PATIENT, &over));
            // The first messages of the flood are a burst that is allowed.
            thread::sleep(PERIOD / 8);
            let trips = round_trips(&mut peers, PERIOD);
            over.store(true, SeqCst);
            join(flooding)?;
            trips
        })?;
        flooded.push(trips.p99);
        flooded_for += start.elapsed();
        received += server.figures()?.get("messages_in") - before - trips.count;
    }
    for peer in peers {
        peer.close()?;
    }
    Ok(Measured {
        calm: median(calm),
        flooded: median(flooded),
        received: received * 1_000 / flooded_for.as_millis().max(1) as u64,
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

struct RoundTrips {
    count: u64,
    p99: Duration,
}

/// Has one client after the other send a message and wait for its echo.
fn round_trips(peers: &mut [Peer], period: Duration) -> Outcome<RoundTrips> {
    let start = Instant::now();
    let mut times = Vec::new();
    for number in 0_u64.. {
        if start.elapsed() >= period {
            break;
        }
        let index = number % peers.len() as u64;
        let peer = &mut peers[index as usize];
        // Text messages are not numbered.
        let message = number.to_string();
        let begun = Instant::now();
        peer.send(FIN | TEXT, message.as_bytes())
            .during("a round trip")?;
        let echo = peer.message().during("a round trip")?;
        times.push(begun.elapsed());
        ensure!(echo == message.as_bytes(), "the echo is {echo:?}");
        thread::sleep(PAUSE);
    }
    times.sort_unstable();
    Ok(RoundTrips {
        count: times.len() as u64,
        p99: times
            .get(times.len() * 99 / 100)
            .copied()
            .unwrap_or_default(),
    })
}

/// Offers [`OFFERED`] messages per second as long as the server takes them, and reads the echoes.
fn flood(address: SocketAddrV4, number: u64, over: &AtomicBool) -> Outcome {
    const BATCH: u64 = 100;
    let mut peer = Peer::connect(address, client::source(number), ECHO)?;
    let batch = frames::frame(FIN | TEXT, b"a short message").repeat(BATCH as usize);
    let (start, mut sent) = (Instant::now(), 0);
    let mut left: &[u8] = &batch;
    while !over.load(SeqCst) {
        let due = start.elapsed().as_micros() as u64 * OFFERED / 1_000_000;
        while sent < due {
            match send_now(&peer.stream, left) {
                Ok(n) => left = &left[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).during("flooding"),
            }
            if left.is_empty() {
                (left, sent) = (&batch, sent + BATCH);
            }
        }
        peer.pump(usize::MAX, |_| Ok(()))?;
        thread::sleep(Duration::from_micros(500));
    }
    client::reset_on_drop(&peer.stream)?;
    Ok(())
}

/// Sends without blocking.
fn send_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(
        stream,
        bytes,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?)
}

/// Lets many clients send as much as the server takes, and checks that another is served meanwhile.
fn flood_by_many(server: &mut Server, context: &Context) -> Outcome {
    let messages = frames::frame(FIN | TEXT, b"").repeat(20_000);
    let mut flooding = Vec::new();
    for number in 0..context.connections(FLOODING)? {
        let peer = Peer::connect(server.address, client::source(100 + number), ECHO)?;
        while send_now(&peer.stream, &messages).is_ok() {
            // Until the buffers of both sides are full.
        }
        flooding.push(peer);
    }
    let mut peers = vec![Peer::connect(server.address, client::source(0), ECHO)?];
    let trips = round_trips(&mut peers, PERIOD)?;
    ensure!(
        trips.p99 < Duration::from_secs(1),
        "during a flood by {} clients, the p99 of a round trip is {:?}",
        flooding.len(),
        trips.p99
    );
    for peer in &flooding {
        client::reset_on_drop(&peer.stream)?;
    }
    drop(flooding);
    // The server does not read from most of them, and still frees them.
    drop(peers);
    server.eventually("all connections are closed", |figures| {
        figures.get("connections") == 0
    })?;
    Ok(())
}
