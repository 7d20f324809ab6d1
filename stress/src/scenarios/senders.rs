//! Sixteen threads broadcast at full speed while clients connect and disconnect. Between the first and the last message that a client
//! receives from a sender, none is missing, and memory stays bounded.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report, mib};
use crate::body::{MessageCodec, ReceiveLog};
use crate::check::{DEADLINE, During, Failure, Outcome, ensure, eventually, join, within};
use crate::client::{self, Peer};
use crate::random::Random;
use crate::server::program::SILENT;
use crate::server::{Figures, Policy, ProducerPlan, Server, Setup};

const SENDERS: u32 = 16;
const MILLISECONDS: u64 = 8_000;
const BYTES_MAX: usize = 300;
/// Clients that stay connected.
const RESIDENTS: u64 = 12;
/// Threads that each connect and disconnect one client after the other.
const VISITORS: u64 = 3;
/// Large enough that no client counts as a slow consumer because the machine is busy.
const PATIENCE_MS: u64 = 15_000;

const OUTBOX_BYTES_MAX: u64 = 256 << 10;
const MAILBOX_BYTES_MAX: u64 = 1 << 20;
const SHARDS: u64 = 2;
/// Memory of the server's threads, their buffers, and the allocator's overhead.
const SERVER_BYTES_MAX: u64 = 24 << 20;

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut server = Server::start(&Setup {
        shards: SHARDS as usize,
        outbox_bytes_max: OUTBOX_BYTES_MAX as usize,
        mailbox_bytes_max: MAILBOX_BYTES_MAX as usize,
        policy: Policy::Pace {
            bytes_per_second_min: 1_024,
            patience: PATIENCE_MS,
        },
        ..context.setup()
    })?;
    let mut residents = connect_residents(context, &mut server)?;
    let start = Instant::now();
    start_senders(context, &mut server)?;
    let (visits, visited) = run_clients(context, &mut server, &mut residents)?;
    let seconds = start.elapsed().as_secs_f64();
    let figures = server.figures()?;
    check_residents(&mut residents, &figures)?;
    let offered = figures.get("offered");
    ensure!(
        figures.get("slow_consumers") == 0 && figures.get("dropped_slow_consumer") == 0,
        "clients were treated as slow consumers: {figures:?}"
    );
    let peak = server.finish()?;
    // The limits count message bytes. Messages this small take as much again for bookkeeping and their queue entry.
    let bound = SERVER_BYTES_MAX
        + 2 * (SHARDS * 2 * MAILBOX_BYTES_MAX + (RESIDENTS + VISITORS) * OUTBOX_BYTES_MAX);
    ensure!(
        peak <= bound,
        "the server's peak memory was {:.1} MiB; at most {:.1} MiB are allowed",
        mib(peak),
        mib(bound)
    );
    let delivered = offered * RESIDENTS + visited;
    Ok(Report {
        held: format!("{SENDERS} senders, {RESIDENTS} clients that stay connected"),
        faults: visits,
        figures: format!(
            "{offered} broadcasts in {seconds:.1} s, {delivered} deliveries checked, {visited} of them at {visits} \
             clients that connected and disconnected; memory limit {:.1} MiB",
            mib(bound)
        ),
        peak,
    })
}

/// A client that stays connected, with the messages that it has received.
type Resident = (Peer, ReceiveLog);

fn connect_residents(context: &Context, server: &mut Server) -> Outcome<Vec<Resident>> {
    let mut residents = Vec::new();
    for number in 0..RESIDENTS {
        let peer = Peer::connect(server.address, client::source(number), SILENT)?;
        residents.push((peer, ReceiveLog::new(context.codec())));
    }
    server.eventually("all residents are connected", |figures| {
        figures.get("connections") == RESIDENTS
    })?;
    Ok(residents)
}

fn start_senders(context: &Context, server: &mut Server) -> Outcome {
    for sender in 1..=SENDERS {
        server.produce(ProducerPlan {
            sender,
            first: 1,
            count: u64::MAX / 2,
            bytes_max: BYTES_MAX,
            ms: MILLISECONDS * context.scale,
            pause: 0,
        })?;
    }
    Ok(())
}

/// Reads on the residents' connections, and lets visitors connect and disconnect, until the senders have finished. Returns
/// the number of visits, and how many messages the visitors received.
fn run_clients(
    context: &Context,
    server: &mut Server,
    residents: &mut [Resident],
) -> Outcome<(u64, u64)> {
    let (address, codec) = (server.address, context.codec());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let halves = residents.chunks_mut(RESIDENTS as usize / 2);
        let readers: Vec<_> = halves
            .map(|half| scope.spawn(|| read(half, &over)))
            .collect();
        let visitors: Vec<_> = (0..VISITORS)
            .map(|number| {
                let random = context.random.fork("visitor", number);
                let over = &over;
                scope.spawn(move || visit(address, codec, random, over))
            })
            .collect();
        let wait = Duration::from_millis(MILLISECONDS * context.scale) + DEADLINE;
        let done = within(wait, "the senders have finished", || {
            Ok(server.figures()?.get("producing") == 0)
        });
        over.store(true, SeqCst);
        let mut sum = (0, 0);
        for visitor in visitors {
            let (visits, messages) = join(visitor).during("a visitor")?;
            sum = (sum.0 + visits, sum.1 + messages);
        }
        for reader in readers {
            join(reader).during("a resident")?;
        }
        done?;
        Ok::<_, Failure>(sum)
    })
}

/// Waits until each resident has received every message, and checks that none is missing.
fn check_residents(residents: &mut [Resident], figures: &Figures) -> Outcome {
    let last = |sender: u32| figures.get(&format!("sent_{sender}"));
    eventually("each resident has received every message", || {
        for (peer, log) in &mut *residents {
            peer.pump(usize::MAX, |message| {
                log.record_in_sequence(message).map(drop)
            })?;
        }
        let has_all = |log: &ReceiveLog| (1..=SENDERS).all(|s| log.last(s) == last(s));
        Ok(residents.iter().all(|(_, log)| has_all(log)))
    })?;
    for (_, log) in residents {
        ensure!(
            (1..=SENDERS).all(|sender| last(sender) > 0 && log.runs[&sender].first == 1),
            "a resident received {:?}",
            log.runs
        );
    }
    Ok(())
}

/// Reads the messages that have arrived; the server must not have closed the connection.
fn read_arrived(peer: &mut Peer, log: &mut ReceiveLog) -> Outcome<usize> {
    let bytes = peer.pump(1 << 20, |message| log.record_in_sequence(message).map(drop))?;
    ensure!(
        peer.closed.is_none() && peer.ended.is_none(),
        "the server closed the connection with {:?}, {:?}",
        peer.closed,
        peer.ended
    );
    Ok(bytes)
}

fn read(readers: &mut [Resident], over: &AtomicBool) -> Outcome {
    while !over.load(SeqCst) {
        let mut bytes = 0;
        for (peer, log) in &mut *readers {
            bytes += read_arrived(peer, log)?;
        }
        if bytes == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Connects, reads for a while and disconnects in some way, repeatedly. Returns how often, and how many messages were read.
fn visit(
    address: SocketAddrV4,
    codec: MessageCodec,
    mut random: Random,
    over: &AtomicBool,
) -> Outcome<(u64, u64)> {
    let (mut visits, mut messages) = (0, 0);
    while !over.load(SeqCst) {
        let mut peer = Peer::connect(address, client::source(random.next()), SILENT)?;
        let mut log = ReceiveLog::new(codec);
        let stay = Duration::from_millis(random.below(60));
        let start = Instant::now();
        while start.elapsed() < stay {
            if read_arrived(&mut peer, &mut log)? == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        match random.below(3) {
            0 => {
                let _ = peer.send_close(1000);
                // Messages that arrived before the close reply count, too.
                peer.read_to_end(|message| log.record_in_sequence(message).map(drop))?;
            }
            1 => client::reset_on_drop(&peer.stream)?,
            _ => {}
        }
        visits += 1;
        messages += log.count;
    }
    Ok((visits, messages))
}
