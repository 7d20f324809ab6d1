//! Sixteen threads that broadcast as fast as they can, while clients come and go. From the first message of a sender
//! to the last, nothing is missing at anyone, and memory stays within a bound.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report, mib};
use crate::body::{Book, Ledger};
use crate::check::{DEADLINE, During, Failure, Outcome, ensure, eventually, join, within};
use crate::client::{self, Peer};
use crate::random::Random;
use crate::server::program::SILENT;
use crate::server::{Policy, Production, Server, Setup};

const SENDERS: u32 = 16;
const MILLISECONDS: u64 = 8_000;
const BYTES_MAX: usize = 300;
const STAYING: u64 = 12;
/// Threads of clients that come and go, one at a time each.
const VISITING: u64 = 3;
/// Nobody may be taken for a slow reader because this machine is busy.
const PATIENCE_MS: u64 = 15_000;

const OUTBOX_BYTES_MAX: u64 = 256 << 10;
const MAILBOX_BYTES_MAX: u64 = 1 << 20;
const SHARDS: u64 = 2;
/// The server's threads and their buffers, and what the allocator keeps.
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
    let (address, book) = (server.address, context.book());
    let mut staying = Vec::new();
    for number in 0..STAYING {
        let peer = Peer::connect(address, client::source(number), SILENT)?;
        staying.push((peer, Ledger::new(book)));
    }
    server.eventually("those who stay have come", |figures| {
        figures.get("connections") == STAYING
    })?;
    let start = Instant::now();
    for sender in 1..=SENDERS {
        server.produce(Production {
            sender,
            first: 1,
            count: u64::MAX / 2,
            bytes_max: BYTES_MAX,
            ms: MILLISECONDS * context.scale,
            pause: 0,
        })?;
    }
    let over = AtomicBool::new(false);
    let (visits, visited) = thread::scope(|scope| {
        let halves = staying.chunks_mut(STAYING as usize / 2);
        let readers: Vec<_> = halves
            .map(|half| scope.spawn(|| read(half, &over)))
            .collect();
        let visitors: Vec<_> = (0..VISITING)
            .map(|number| {
                let random = context.random.fork("visitor", number);
                let over = &over;
                scope.spawn(move || visit(address, book, random, over))
            })
            .collect();
        let wait = Duration::from_millis(MILLISECONDS * context.scale) + DEADLINE;
        let done = within(wait, "the senders are done", || {
            Ok(server.figures()?.get("producing") == 0)
        });
        over.store(true, SeqCst);
        let mut sum = (0, 0);
        for visitor in visitors {
            let (visits, messages) = join(visitor).during("one who came and went")?;
            sum = (sum.0 + visits, sum.1 + messages);
        }
        for reader in readers {
            join(reader).during("one who stayed")?;
        }
        done?;
        Ok::<_, Failure>(sum)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let figures = server.figures()?;
    let last = |sender: u32| figures.get(&format!("sent_{sender}"));
    eventually("those who stayed have got everything", || {
        for (peer, ledger) in &mut staying {
            peer.pump(usize::MAX, |message| ledger.enter_next(message).map(drop))?;
        }
        let has_all = |ledger: &Ledger| (1..=SENDERS).all(|s| ledger.last(s) == last(s));
        Ok(staying.iter().all(|(_, ledger)| has_all(ledger)))
    })?;
    for (_, ledger) in &staying {
        ensure!(
            (1..=SENDERS).all(|sender| last(sender) > 0 && ledger.runs[&sender].first == 1),
            "one who stayed has got {:?}",
            ledger.runs
        );
    }
    let offered = figures.get("offered");
    ensure!(
        figures.get("slow_consumers") == 0 && figures.get("dropped_slow_consumer") == 0,
        "some were taken for slow: {figures:?}"
    );
    let peak = server.finish()?;
    // What the limits count is the messages. So small a one takes as much again for itself and its place in a queue.
    let bound = SERVER_BYTES_MAX
        + 2 * (SHARDS * 2 * MAILBOX_BYTES_MAX + (STAYING + VISITING) * OUTBOX_BYTES_MAX);
    ensure!(
        peak <= bound,
        "the server took {:.1} MiB at its peak, where {:.1} are the bound",
        mib(peak),
        mib(bound)
    );
    let delivered = offered * STAYING + visited;
    Ok(Report {
        held: format!("{SENDERS} senders, {STAYING} clients that stay"),
        faults: visits,
        figures: format!(
            "{offered} broadcasts in {seconds:.1} s, {delivered} deliveries checked, {visited} of them at {visits} \
             clients that came and went; bound of memory {:.1} MiB",
            mib(bound)
        ),
        peak,
    })
}

/// Takes what has come; nobody may be turned away.
fn take(peer: &mut Peer, ledger: &mut Ledger) -> Outcome<usize> {
    let bytes = peer.pump(1 << 20, |message| ledger.enter_next(message).map(drop))?;
    ensure!(
        peer.closed.is_none() && peer.ended.is_none(),
        "it was closed with {:?}, {:?}",
        peer.closed,
        peer.ended
    );
    Ok(bytes)
}

fn read(readers: &mut [(Peer, Ledger)], over: &AtomicBool) -> Outcome {
    while !over.load(SeqCst) {
        let mut bytes = 0;
        for (peer, ledger) in &mut *readers {
            bytes += take(peer, ledger)?;
        }
        if bytes == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Comes, reads for a while, and goes in some way, again and again: how often, and how many messages that were.
fn visit(
    address: SocketAddrV4,
    book: Book,
    mut random: Random,
    over: &AtomicBool,
) -> Outcome<(u64, u64)> {
    let (mut visits, mut messages) = (0, 0);
    while !over.load(SeqCst) {
        let mut peer = Peer::connect(address, client::source(random.next()), SILENT)?;
        let mut ledger = Ledger::new(book);
        let stay = Duration::from_millis(random.below(60));
        let start = Instant::now();
        while start.elapsed() < stay {
            if take(&mut peer, &mut ledger)? == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        match random.below(3) {
            0 => {
                let _ = peer.say_goodbye(1000);
                // What was sent before the answer counts too.
                peer.read_to_end(|message| ledger.enter_next(message).map(drop))?;
            }
            1 => client::reset_on_drop(&peer.stream)?,
            _ => {}
        }
        visits += 1;
        messages += ledger.count;
    }
    Ok((visits, messages))
}
