//! When a budget shared by all connections is exceeded, the server evicts thousands of them at once and must answer the
//! others meanwhile: the cost of an eviction must not depend on the number of connections.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use super::{Context, Report};
use crate::check::{During, Failure, Outcome, ensure, join};
use crate::client::frames::{self, BINARY, FIN, TEXT};
use crate::client::{self, Incoming, Peer};
use crate::machine;
use crate::server::program::{ECHO, SILENT};
use crate::server::{Server, Setup};

const CONNECTIONS: u64 = 18_000;
/// How many of them are evicted.
const VICTIMS: u64 = 2_152;
const KIB: usize = 1 << 10;
/// Bytes of an unfinished message that each client has sent. The server may hold up to twice as much, since buffers grow by
/// doubling.
const PART_BYTES: usize = 4 * KIB;
/// The latency that an attack may add to the longest latency without one.
const LATENCY_MAX: Duration = Duration::from_millis(50);
/// How long latency is measured without an attack.
const CALM: Duration = Duration::from_secs(1);

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let room = context.descriptors.saturating_sub(super::DESCRIPTORS_SPARE);
    let connections = CONNECTIONS.min(room);
    let victims = VICTIMS.min(connections / 8);
    let shards = 2;
    // All clients together fill the half of the budget that is for unfinished messages.
    let unfinished = connections as usize * (2 * PART_BYTES + KIB);
    let mut server = Server::start(&Setup {
        shards,
        message_bytes_max: 64 * KIB,
        received_bytes_max: 2 * unfinished,
        ..context.setup()
    })?;
    let address = server.address;
    let frame = frames::frame(FIN | BINARY, &vec![0; 60 * KIB]);
    let (part, more) = (&frame[..PART_BYTES], &frame[PART_BYTES..]);
    let mut peers: Vec<TcpStream> = Vec::new();
    for number in 0..connections {
        let mut peer = Peer::connect(address, client::source(number), SILENT)?;
        peer.stream.write_all(part).during("sending a part")?;
        peers.push(peer.stream);
    }
    let mut echo = Peer::connect(address, client::source(99_999), ECHO)?;
    let calm = calm_latency(&mut server, &mut echo)?;
    let over = AtomicBool::new(false);
    let pid = server.pid();
    let waited = || machine::waited_for_processor(pid).during("reading schedstat");
    let waited_before = waited()?;
    let (evicted, attacked) = thread::scope(|scope| {
        let measuring = scope.spawn(|| latency(&mut echo, &over));
        let mut evicted = Ok(0);
        for peer in &peers {
            // Connections that are reset here have been evicted.
            let _ = send(
                peer,
                more.get(..40 * KIB).unwrap_or(more),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            evicted = server
                .figures()
                .map(|figures| figures.get("unfinished_messages"));
            if !matches!(evicted, Ok(count) if count < victims) {
                break;
            }
        }
        over.store(true, SeqCst);
        let latency = join(measuring);
        Ok::<_, Failure>((evicted?, latency?))
    })?;
    // Subtract the time that a busy machine kept the server from running.
    let waited = waited()?.saturating_sub(waited_before);
    ensure!(
        evicted >= victims,
        "{evicted} of {victims} connections were evicted"
    );
    ensure!(
        attacked <= LATENCY_MAX + calm + waited,
        "an echo took {attacked:?} while {evicted} of {connections} connections were evicted; {calm:?} without an attack; the server waited {waited:?} for a processor"
    );
    drop(peers);
    Ok(Report {
        held: format!("{connections} connections"),
        faults: evicted,
        figures: format!(
            "slowest echo {attacked:.1?}, without an attack {calm:.1?}; {waited:.1?} without a processor"
        ),
        peak: server.finish()?,
    })
}

/// Measures the longest latency of an echo without an attack. Requests the server's counters as often as the attack does.
fn calm_latency(server: &mut Server, echo: &mut Peer) -> Outcome<Duration> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let measuring = scope.spawn(|| latency(echo, &over));
        let start = Instant::now();
        let mut asked = Ok(());
        while asked.is_ok() && start.elapsed() < CALM {
            asked = server.figures().map(drop);
        }
        over.store(true, SeqCst);
        let latency = join(measuring);
        asked.and(latency)
    })
}

/// Measures the longest latency of an echo until the attack is over.
pub(super) fn latency(peer: &mut Peer, over: &AtomicBool) -> Outcome<Duration> {
    let mut longest = Duration::ZERO;
    while !over.load(SeqCst) {
        let sent = Instant::now();
        peer.send(FIN | TEXT, b"echo").during("sending")?;
        match peer.receive()? {
            Incoming::Message(_) => longest = longest.max(sent.elapsed()),
            other => {
                return Err(Failure::new(format!(
                    "received {other:?} instead of an echo"
                )));
            }
        }
    }
    Ok(longest)
}
