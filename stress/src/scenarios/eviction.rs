//! Where a bound for all connections is reached, thousands of them give way at once. The others are answered meanwhile: what
//! an eviction costs does not depend on how many connections there are.

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
use crate::server::program::{ECHO, SILENT};
use crate::server::{Server, Setup};

const CONNECTIONS: u64 = 18_000;
/// Of how many of them messages are evicted.
const VICTIMS: u64 = 2_152;
const KIB: usize = 1 << 10;
/// What each has sent of a message. Up to twice as much is held of it.
const PART_BYTES: usize = 4 * KIB;
/// No answer is to be later, beyond what the machine takes without an attack.
const LATENCY_MAX: Duration = Duration::from_millis(50);
/// How long the others are measured without an attack.
const CALM: Duration = Duration::from_secs(1);

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let room = context.descriptors.saturating_sub(super::DESCRIPTORS_SPARE);
    let connections = CONNECTIONS.min(room);
    let victims = VICTIMS.min(connections / 8);
    let shards = 2;
    // What all have sent fills the half that is for unfinished messages.
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
    let over = AtomicBool::new(false);
    // With everything but the attack: the server is asked for its figures as often.
    let calm = thread::scope(|scope| {
        let measuring = scope.spawn(|| latency(&mut echo, &over));
        let start = Instant::now();
        let mut asked = Ok(());
        while asked.is_ok() && start.elapsed() < CALM {
            asked = server.figures().map(drop);
        }
        over.store(true, SeqCst);
        let latency = join(measuring);
        asked.and(latency)
    })?;
    over.store(false, SeqCst);
    let (evicted, attacked) = thread::scope(|scope| {
        let measuring = scope.spawn(|| latency(&mut echo, &over));
        let mut evicted = Ok(0);
        for peer in &peers {
            // Those that are reset meanwhile have been evicted.
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
    ensure!(evicted >= victims, "{evicted} were evicted, of {victims}");
    ensure!(
        attacked <= LATENCY_MAX + calm,
        "an answer came after {attacked:?} while {evicted} of {connections} were evicted; after {calm:?} without that"
    );
    drop(peers);
    Ok(Report {
        held: format!("{connections} connections"),
        faults: evicted,
        figures: format!("latest answer after {attacked:.1?}, without an attack {calm:.1?}"),
        peak: server.finish()?,
    })
}

/// The longest that an echo takes, until it is over.
fn latency(peer: &mut Peer, over: &AtomicBool) -> Outcome<Duration> {
    let mut longest = Duration::ZERO;
    while !over.load(SeqCst) {
        let sent = Instant::now();
        peer.send(FIN | TEXT, b"echo").during("sending")?;
        match peer.receive()? {
            Incoming::Message(_) => longest = longest.max(sent.elapsed()),
            other => return Err(Failure::new(format!("{other:?} came for an echo"))),
        }
    }
    Ok(longest)
}
