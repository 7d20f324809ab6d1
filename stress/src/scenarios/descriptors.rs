//! File descriptors run out: the server waits without spinning, serves its connections, and accepts the next one as soon as
//! one closes.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::{Context, Report};
use crate::check::{During, Outcome, ensure, eventually, within};
use crate::client::frames::{BINARY, FIN};
use crate::client::{self, Peer};
use crate::machine;
use crate::random::Random;
use crate::server::program::ECHO;
use crate::server::{Server, Setup};

const DESCRIPTORS: u64 = 96;
/// Clients beyond the limit, which wait in the kernel's backlog.
const TOO_MANY: u64 = 30;
const ROUNDS: u64 = 3;
/// Share of one CPU that the server may use while it cannot accept; a spinning server would use all of it.
const CPU_SECONDS_MAX: f64 = 0.2;
/// The server retries ten times a second, and whenever a connection closes.
const TRIES_MAX: u64 = 50;

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut server = Server::start(&Setup {
        descriptors: DESCRIPTORS,
        handler_threads: 4,
        ..context.setup()
    })?;
    let own = in_use(&server)?;
    let rounds = ROUNDS * context.scale;
    let mut random = context.random.clone();
    let mut cpu_most: f64 = 0.0;
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let (cpu, took) = exhaust_and_recover(context, &mut server, own, &mut random)?;
        cpu_most = cpu_most.max(cpu);
        slowest = slowest.max(took);
    }
    let figures = server.figures()?;
    let connected = rounds * (DESCRIPTORS - own + TOO_MANY);
    ensure!(
        figures.get("opened") == connected && figures.get("accepted") == connected,
        "{connected} clients connected; {figures:?}"
    );
    Ok(Report {
        held: format!(
            "{DESCRIPTORS} descriptors, all in use, {rounds} times, and {TOO_MANY} waiting clients"
        ),
        faults: rounds * TOO_MANY,
        figures: format!(
            "{cpu_most:.2} s of CPU time in the worst second; {} failed accepts in all; waiting clients accepted at most \
             {:.0} ms after others disconnected",
            figures.get("accept_errors"),
            slowest.as_secs_f64() * 1e3
        ),
        peak: server.finish()?,
    })
}

/// Number of the server's descriptors that count towards its limit.
fn in_use(server: &Server) -> std::io::Result<u64> {
    machine::descriptors_below(server.pid(), DESCRIPTORS)
}

/// Uses up all descriptors, of which the server itself has `own`; then frees some, and at last all. Returns the CPU time of
/// one second without descriptors, and how long it took to accept clients after others disconnected.
fn exhaust_and_recover(
    context: &Context,
    server: &mut Server,
    own: u64,
    random: &mut Random,
) -> Outcome<(f64, Duration)> {
    let room = DESCRIPTORS - own;
    let mut open = Vec::new();
    for _ in 0..room {
        open.push(Peer::upgraded(request(server, random.next())?)?);
    }
    let errors = server.figures()?.get("accept_errors");
    let mut waiting = Vec::new();
    for _ in 0..TOO_MANY {
        waiting.push(request(server, random.next())?);
    }
    server.eventually("accepting fails", |f| f.get("accept_errors") > errors)?;
    let cpu = check_no_spin(server, room)?;
    echo(context, &mut open).during("the connected clients")?;

    // Exactly as many are accepted as have closed.
    let closed = random.between(1, room.min(TOO_MANY) - 1) as usize;
    for peer in open.drain(..closed) {
        if random.below(2) == 0 {
            client::reset_on_drop(&peer.stream)?;
        }
    }
    let mut accepted = Vec::new();
    let took = within(
        Duration::from_secs(5),
        "a waiting client is accepted for each that disconnected",
        || {
            accepted.extend(answered(&mut waiting)?);
            ensure!(
                accepted.len() <= closed,
                "more clients were accepted than had disconnected"
            );
            Ok(accepted.len() == closed)
        },
    )?;
    echo(context, &mut accepted).during("the clients accepted later")?;

    drop((open, accepted));
    eventually("all waiting clients are accepted", || {
        answered(&mut waiting)?;
        Ok(waiting.is_empty())
    })?;
    server.eventually("all connections are closed", |figures| {
        figures.get("connections") == 0 && figures.get("opened") == figures.get("closed")
    })?;
    eventually("the server has closed its descriptors", || {
        Ok(in_use(server)? == own)
    })?;
    Ok((cpu, took))
}

/// Checks that a server without free descriptors neither spins nor drops one of its `room` connections. Returns the CPU time
/// that it used in one second.
fn check_no_spin(server: &mut Server, room: u64) -> Outcome<f64> {
    let cpu = machine::cpu_seconds(server.pid())?;
    let errors = server.figures()?.get("accept_errors");
    thread::sleep(Duration::from_secs(1));
    let cpu = machine::cpu_seconds(server.pid())? - cpu;
    let figures = server.figures()?;
    let tries = figures.get("accept_errors") - errors;
    ensure!(
        cpu <= CPU_SECONDS_MAX && tries <= TRIES_MAX,
        "without descriptors, the server used {cpu} s of CPU time in a second, and tried {tries} times to accept"
    );
    ensure!(
        figures.get("connections") == room,
        "{room} connections were open; {figures:?}"
    );
    Ok(cpu)
}

/// Sends a handshake without waiting for the response.
fn request(server: &Server, number: u64) -> Outcome<TcpStream> {
    let mut stream = client::tcp(server.address, client::source(number)).during("connecting")?;
    stream
        .write_all(client::request(ECHO).as_bytes())
        .during("sending a request")?;
    Ok(stream)
}

/// Removes and returns the waiting clients that have a response.
fn answered(waiting: &mut Vec<TcpStream>) -> Outcome<Vec<Peer>> {
    let mut answered = Vec::new();
    for stream in std::mem::take(waiting) {
        stream.set_nonblocking(true)?;
        let has_answer = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        match has_answer {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => waiting.push(stream),
            _ => answered.push(Peer::upgraded(stream)?),
        }
    }
    Ok(answered)
}

/// Sends one message on each connection and waits for its echo.
fn echo(context: &Context, peers: &mut [Peer]) -> Outcome {
    let message = context.codec().write(0, 0, 500);
    for peer in peers {
        peer.send(FIN | BINARY, &message)?;
        ensure!(
            peer.message()? == message,
            "an echo differs from its message"
        );
    }
    Ok(())
}
