//! Attacks with short compressed messages that inflate to many bytes. If the inflated messages are legal, the server's memory
//! must stay within SECURITY.md's sum. If they are too long, the server must disconnect the client immediately.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use miniz_oxide::deflate::compress_to_vec;

use super::memory::{CONNECTION_BYTES, KIB, check_peak, share_of_sum};
use super::{Context, Report, eviction, mib};
use crate::body::ReceiveLog;
use crate::check::{During, Failure, Outcome, ensure, join};
use crate::client::frames::{self, FIN, RSV1, TEXT};
use crate::client::{self, Incoming, Peer};
use crate::machine;
use crate::server::program::{BLOCK, ECHO, SILENT};
use crate::server::{ProducerPlan, Server, Setup};

const MIB: usize = 1 << 20;

/// Number of clients in a short run.
const CLIENTS: u64 = 1_000;
/// The longest legal message.
const MESSAGE_BYTES_MAX: usize = 16 * MIB;
/// Maximum length of the longest legal message after compression, if it repeats one letter.
const COMPRESSED_BYTES_MAX: usize = 17 * KIB;

/// Memory of a shard's compressors, and of the histories of two audiences.
const COMPRESSORS_BYTES: usize = 500 * KIB + 2 * 8 * KIB;

/// Pause between the broadcasts that the server sends during the attack.
const PAUSE_MICROSECONDS: u64 = 20_000;
const BROADCASTS: u64 = 150;
const BROADCAST_BYTES_MAX: usize = 60;
const SENDER: u32 = 1;
/// Maximum time between two broadcasts at a client that reads.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// The latency that bombs may add to the longest latency without them.
const LATENCY_MAX: Duration = Duration::from_millis(50);
/// How long latency is measured without bombs.
const CALM: Duration = Duration::from_secs(1);
/// Maximum CPU time of the server per bomb, including the close of its connection.
const BOMB_CPU_MAX: Duration = Duration::from_millis(2);
/// The server's limit for a message, which every bomb exceeds.
const BOMB_LIMIT: usize = 64 * KIB;

/// Returns the frame of a compressed message that inflates to `len` bytes.
fn compressed(len: usize) -> Vec<u8> {
    let payload = compress_to_vec(&vec![b'a'; len], 9);
    frames::frame(FIN | RSV1 | TEXT, &payload)
}

/// The sum of SECURITY.md in bytes, without the terms that this attack does not use.
fn sum(setup: &Setup, clients: u64) -> usize {
    let limits = setup.limits();
    clients as usize * CONNECTION_BYTES
        + limits.received_bytes_max
        + setup.shards * (limits.message_bytes_max + COMPRESSORS_BYTES)
        + 2 * limits.mailbox_bytes_max * setup.shards
}

/// While all handlers block, clients send legal messages that together inflate to more than the server may hold.
pub(crate) fn inflation(context: &Context) -> Outcome<Report> {
    let clients = context.connections(CLIENTS)?;
    let setup = Setup {
        handler_threads: 4,
        received_bytes_max: 256 * MIB,
        message_bytes_max: MESSAGE_BYTES_MAX,
        compression: 1,
        ..context.setup()
    };
    let message = compressed(MESSAGE_BYTES_MAX);
    ensure!(
        message.len() <= COMPRESSED_BYTES_MAX,
        "the message has {} bytes: too long for this attack",
        message.len()
    );
    let mut server = Server::start(&setup)?;
    let base = server.resident()?;
    let address = server.address;
    let mut held = Vec::new();
    for number in 0..8 {
        let mut peer = Peer::connect(address, client::source(20_000 + number), BLOCK)?;
        peer.send(FIN | TEXT, b"").during("blocking")?;
        held.push(peer.stream);
    }
    let mut listener = Peer::connect(address, client::source(30_000), SILENT)?;
    server.produce(ProducerPlan {
        sender: SENDER,
        first: 0,
        count: BROADCASTS,
        bytes_max: BROADCAST_BYTES_MAX,
        ms: 60_000,
        pause: PAUSE_MICROSECONDS,
    })?;
    let log = ReceiveLog::new(context.codec());
    let silence = thread::scope(|scope| {
        let listening = scope.spawn(move || listen(&mut listener, log));
        let attacked = attack(&server, clients, &message, &mut held);
        let silence = join(listening);
        attacked.and(silence)
    })?;
    // The server still accepts connections.
    Peer::connect(address, client::source(40_000), SILENT)?;
    let peak = server.peak()?.saturating_sub(base);
    let sum = sum(&setup, clients);
    check_peak(peak, sum, setup.received_bytes_max / 2)?;
    let figures = server.figures()?;
    ensure!(
        figures.get("bombs") == 0 && figures.get("connections") > clients,
        "a client was disconnected although its message was legal: {figures:?}"
    );
    Ok(Report {
        held: share_of_sum(peak, sum),
        faults: clients,
        figures: format!(
            "{:.2} times the sum; {:.1} MiB inflated of {:.1} MiB; broadcasts at most {silence:.1?} apart",
            peak as f64 / sum as f64,
            mib(figures.get("inflated_in")),
            mib(clients * MESSAGE_BYTES_MAX as u64)
        ),
        peak: server.finish()?,
    })
}

/// Connects the clients, each of which sends the message and stays connected.
fn attack(server: &Server, clients: u64, message: &[u8], held: &mut Vec<TcpStream>) -> Outcome {
    for number in 0..clients {
        let source = client::source(number);
        let mut peer = Peer::connect_compressing(server.address, source, SILENT)?;
        peer.stream.write_all(message).during("sending a message")?;
        held.push(peer.stream);
    }
    Ok(())
}

/// Checks that all broadcasts arrive in order. Returns the longest time between two of them.
fn listen(peer: &mut Peer, mut log: ReceiveLog) -> Outcome<Duration> {
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    while log.count < BROADCASTS {
        log.record_in_sequence(&peer.message()?)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    ensure!(
        longest <= SILENCE_MAX,
        "{longest:?} passed between two broadcasts"
    );
    Ok(longest)
}

/// Clients send messages that inflate to more than `message_bytes_max`.
pub(crate) fn bombs(context: &Context) -> Outcome<Report> {
    let clients = context.connections(CLIENTS)?;
    let mut server = Server::start(&Setup {
        message_bytes_max: BOMB_LIMIT,
        compression: 1,
        ..context.setup()
    })?;
    let (address, pid) = (server.address, server.pid());
    let mut peers = Vec::new();
    for number in 0..clients {
        let source = client::source(number);
        peers.push(Peer::connect_compressing(address, source, SILENT)?);
    }
    let mut echo = Peer::connect(address, client::source(99_999), ECHO)?;
    let over = AtomicBool::new(false);
    let calm = thread::scope(|scope| {
        let measuring = scope.spawn(|| eviction::latency(&mut echo, &over));
        thread::sleep(CALM);
        over.store(true, SeqCst);
        join(measuring)
    })?;
    over.store(false, SeqCst);
    let bomb = compressed(MESSAGE_BYTES_MAX);
    let waited = || machine::waited_for_processor(pid).during("reading schedstat");
    let waited_before = waited()?;
    let cpu = || machine::cpu_seconds(pid).during("reading the server's CPU time");
    let cpu_before = cpu()?;
    let start = Instant::now();
    let (closed, attacked) = thread::scope(|scope| {
        let measuring = scope.spawn(|| eviction::latency(&mut echo, &over));
        let closed = explode(&mut peers, &bomb);
        over.store(true, SeqCst);
        let latency = join(measuring);
        Ok::<_, Failure>((closed?, latency?))
    })?;
    let took = start.elapsed();
    let waited = waited()?.saturating_sub(waited_before);
    let each = Duration::from_secs_f64((cpu()? - cpu_before) / clients as f64);
    ensure!(
        closed == clients,
        "{closed} of {clients} clients were closed with 1009"
    );
    ensure!(
        each <= BOMB_CPU_MAX,
        "a bomb cost the server {each:?} of CPU time"
    );
    ensure!(
        attacked <= LATENCY_MAX + calm + waited,
        "an echo took {attacked:?} beside {clients} bombs; {calm:?} without; the server waited {waited:?} for a processor"
    );
    let figures = server.eventually("all connections but one are closed", |figures| {
        figures.get("connections") == 1
    })?;
    ensure!(
        figures.get("bombs") == clients && figures.get("inflated_in") == 0,
        "a bomb was not counted, or was inflated: {figures:?}"
    );
    Ok(Report {
        held: format!("{clients} bombs in {took:.1?}"),
        faults: clients,
        figures: format!(
            "{each:.1?} of CPU time for each; slowest echo {attacked:.1?}, without bombs {calm:.1?}; {waited:.1?} without a \
             processor"
        ),
        peak: server.finish()?,
    })
}

/// Sends a bomb on each connection. Returns the number of connections that the server closed with 1009.
fn explode(peers: &mut [Peer], bomb: &[u8]) -> Outcome<u64> {
    let mut closed = 0;
    for peer in peers {
        // The server may close before it has read all of the bomb.
        let _ = peer.stream.write_all(bomb);
        closed += u64::from(peer.receive()? == Incoming::Close(1009));
    }
    Ok(closed)
}
