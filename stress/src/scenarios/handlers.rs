//! Handlers that panic, block forever, sleep, broadcast in a loop, or send after their connection has closed. Other clients
//! are served meanwhile, each listener receives each loop completely and in order, and every connection is closed once,
//! except those whose handler blocks.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Report};
use crate::body::{MessageCodec, ReceiveLog};
use crate::check::{During, Failure, Outcome, ensure, eventually, join};
use crate::client::frames::{BINARY, FIN, TEXT};
use crate::client::{self, End, Incoming, Peer};
use crate::server::Server;
use crate::server::program::{
    BLOCK, ECHO, LATE, LATE_SENDER, LOOP, LOOP_MESSAGES, PANIC_ON_CLOSE, PANIC_ON_MESSAGE,
    PANIC_ON_OPEN, SILENT, SLEEP,
};

const LISTENERS: u64 = 4;
const ECHOERS: u64 = 20;
/// Handlers that block forever: a quarter of the handler threads.
const BLOCKED: u64 = 8;
/// Number of faults of each other kind.
const OF_A_KIND: u64 = 40;
const THREADS: u64 = 3;
/// Messages queued behind one whose handler never returns.
const BEHIND: u64 = 3;
const ECHO_WITHIN: Duration = Duration::from_secs(2);
const SHUTDOWN_MS: u64 = 2_000;
/// Allowance for scheduling delays of the machine.
const SHUTDOWN_SPARE_MS: u64 = 1_000;

const KINDS: [&str; 6] = [
    PANIC_ON_OPEN,
    PANIC_ON_MESSAGE,
    PANIC_ON_CLOSE,
    SLEEP,
    LOOP,
    LATE,
];

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut server = Server::start(&context.setup())?;
    let (address, codec) = (server.address, context.codec());
    let connect = |number, path| Peer::connect(address, client::source(number), path);
    let mut faults = shuffled(context);
    let loops: Vec<u32> = faults
        .iter()
        .filter(|(_, kind)| *kind == LOOP)
        .map(|(number, _)| *number)
        .collect();
    let per_thread = faults.len().div_ceil(THREADS as usize);
    let mut listeners = Vec::new();
    for number in 0..LISTENERS {
        listeners.push((connect(number, SILENT)?, ReceiveLog::new(codec)));
    }
    let mut blocked = block_handlers(&mut server, codec)?;

    let over = AtomicBool::new(false);
    let echoes = thread::scope(|scope| {
        let blocked = &mut blocked;
        let listening = scope.spawn(|| listen(&mut listeners, blocked, &over));
        let echoing = scope.spawn(|| echo(address, codec, &over));
        let mut working = Vec::new();
        while !faults.is_empty() {
            let share = faults.split_off(faults.len().saturating_sub(per_thread));
            working.push(scope.spawn(move || {
                for (number, kind) in share {
                    let peer = Peer::connect(address, client::source(number.into()), kind)?;
                    fault(peer, number, kind, codec).during(kind)?;
                }
                Ok(())
            }));
        }
        let worked: Outcome<Vec<()>> = working.into_iter().map(join).collect();
        over.store(true, SeqCst);
        join(listening)?;
        let echoes = join(echoing)?;
        worked.map(|_| echoes)
    })?;
    let of_a_kind = OF_A_KIND * context.scale;
    check_listeners(&mut listeners, &loops, of_a_kind)?;
    for (peer, _) in listeners {
        peer.close()?;
    }
    drop(blocked);
    let figures = server.eventually(
        "all connections but the blocked ones are closed",
        |figures| figures.get("opened") == figures.get("closed") + BLOCKED,
    )?;
    ensure!(
        figures.get("handler_panics") == 3 * of_a_kind
            && figures.get("handlers_blocked") == BLOCKED
            && figures.get("dropped_closed") >= of_a_kind,
        "{of_a_kind} faults of each kind; {figures:?}"
    );
    let took = server.shutdown(SHUTDOWN_MS)?;
    ensure!(
        took <= SHUTDOWN_MS + SHUTDOWN_SPARE_MS,
        "with {BLOCKED} blocked handlers, the shutdown took {took} ms"
    );
    Ok(Report {
        held: format!("{ECHOERS} echo clients, {LISTENERS} listeners, {BLOCKED} blocked handlers"),
        faults: BLOCKED + of_a_kind * KINDS.len() as u64,
        figures: format!(
            "{} panics; {} loops of {LOOP_MESSAGES} messages in order at each listener; {} echoes, the slowest in \
             {:.0} ms; shutdown in {took} ms",
            figures.get("handler_panics"),
            loops.len(),
            echoes.0,
            echoes.1.as_secs_f64() * 1e3
        ),
        peak: server.finish()?,
    })
}

/// Opens connections whose handlers block forever, with further messages queued behind.
fn block_handlers(server: &mut Server, codec: MessageCodec) -> Outcome<Vec<Peer>> {
    let mut blocked = Vec::new();
    for number in 0..BLOCKED {
        let mut peer = Peer::connect(server.address, client::source(number), BLOCK)?;
        for number in 0..=BEHIND {
            peer.send(FIN | BINARY, &codec.write(0, number, 200))?;
        }
        blocked.push(peer);
    }
    server.eventually("the handlers are blocked", |figures| {
        figures.get("handlers_blocked") == BLOCKED
    })?;
    Ok(blocked)
}

/// All faults in random order, each with a unique number.
fn shuffled(context: &Context) -> Vec<(u32, &'static str)> {
    let mut random = context.random.clone();
    let kinds = KINDS
        .iter()
        .flat_map(|kind| (0..OF_A_KIND * context.scale).map(move |_| *kind));
    let mut faults: Vec<_> = kinds.map(|kind| (random.next(), kind)).collect();
    faults.sort_unstable();
    let numbered = (1..).zip(faults);
    numbered.map(|(number, (_, kind))| (number, kind)).collect()
}

/// Opens one connection with a faulty handler.
fn fault(mut peer: Peer, number: u32, kind: &str, codec: MessageCodec) -> Outcome {
    let sender = number;
    let message = |number| codec.write(sender, number, 500);
    match kind {
        PANIC_ON_OPEN | PANIC_ON_MESSAGE => {
            if kind == PANIC_ON_MESSAGE {
                // The messages after this one are no longer handled.
                for number in 0..3 {
                    peer.send(FIN | BINARY, &message(number))?;
                }
            }
            let code = peer.read_to_end(|_| Ok(()))?;
            ensure!(
                code == Some(1011) && peer.ended == Some(End::Eof),
                "a panic closed the connection with {code:?}, {:?}",
                peer.ended
            );
        }
        SLEEP => {
            for number in 0..3 {
                peer.send(FIN | BINARY, &message(number))?;
            }
            for number in 0..3 {
                expect_reply(&mut peer, &message(number))?;
            }
            peer.close()?;
        }
        LOOP => {
            peer.send(FIN | BINARY, &message(0))?;
            expect_reply(&mut peer, b"done")?;
            peer.close()?;
        }
        _ => peer.close()?,
    }
    Ok(())
}

/// Waits for a reply and skips broadcasts.
fn expect_reply(peer: &mut Peer, reply: &[u8]) -> Outcome {
    loop {
        match peer.receive()? {
            Incoming::Message(message) if message == reply => return Ok(()),
            Incoming::Message(_) => {}
            other => {
                return Err(Failure::new(format!(
                    "received {other:?} instead of a reply"
                )));
            }
        }
    }
}

fn listen(
    listeners: &mut [(Peer, ReceiveLog)],
    blocked: &mut [Peer],
    over: &AtomicBool,
) -> Outcome {
    loop {
        let last = over.load(SeqCst);
        read_listeners(listeners)?;
        for peer in &mut *blocked {
            peer.pump(usize::MAX, |_| Ok(()))?;
        }
        if last {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn read_listeners(listeners: &mut [(Peer, ReceiveLog)]) -> Outcome {
    for (peer, log) in listeners {
        peer.pump(usize::MAX, |message| {
            log.record_in_sequence(message).map(drop)
        })?;
    }
    Ok(())
}

fn check_listeners(listeners: &mut [(Peer, ReceiveLog)], loops: &[u32], late: u64) -> Outcome {
    let due = loops.len() as u64 * LOOP_MESSAGES + late;
    eventually("each listener has received every message", || {
        read_listeners(listeners)?;
        Ok(listeners.iter().all(|(_, log)| log.count == due))
    })?;
    for (_, log) in listeners {
        let whole = |sender: &u32, count| {
            log.runs
                .get(sender)
                .is_some_and(|run| run.first == 1 && run.count == count)
        };
        ensure!(
            loops.iter().all(|sender| whole(sender, LOOP_MESSAGES)) && whole(&LATE_SENDER, late),
            "a listener received {:?}",
            log.runs
        );
    }
    Ok(())
}

/// Each client echoes one message after the other. Returns the number of echoes, and the longest latency.
fn echo(address: SocketAddrV4, codec: MessageCodec, over: &AtomicBool) -> Outcome<(u64, Duration)> {
    let mut peers = Vec::new();
    for number in 0..ECHOERS {
        peers.push(Peer::connect(address, client::source(number), ECHO)?);
    }
    let (mut number, mut slowest) = (0, Duration::ZERO);
    while !over.load(SeqCst) {
        let message = codec.write(0, number, 1_000);
        let start = Instant::now();
        for peer in &mut peers {
            peer.send(FIN | BINARY, &message)?;
        }
        for peer in &mut peers {
            expect_reply(peer, &message).during("an echo")?;
        }
        slowest = slowest.max(start.elapsed());
        ensure!(
            slowest <= ECHO_WITHIN,
            "an echo took {slowest:?}; at most {ECHO_WITHIN:?} are allowed"
        );
        number += 1;
        thread::sleep(Duration::from_millis(2));
    }
    for mut peer in peers {
        // The last message is not numbered.
        peer.send(FIN | TEXT, b"last")?;
        expect_reply(&mut peer, b"last")?;
        peer.close()?;
    }
    Ok((number * ECHOERS, slowest))
}
