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
    let in_use = |server: &Server| machine::descriptors_below(server.pid(), DESCRIPTORS);
    let own = in_use(&server)?;
    let rounds = ROUNDS * context.scale;
    let mut random = context.random.clone();
    let mut cpu_most: f64 = 0.0;
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let room = DESCRIPTORS - own;
        let mut open = Vec::new();
        for _ in 0..room {
            open.push(Peer::upgraded(ask(&server, random.next())?)?);
        }
        let errors = server.figures()?.get("accept_errors");
        let mut waiting = Vec::new();
        for _ in 0..TOO_MANY {
            waiting.push(ask(&server, random.next())?);
        }
        server.eventually("accepting fails", |f| f.get("accept_errors") > errors)?;

        let cpu = machine::cpu_seconds(server.pid())?;
        let errors = server.figures()?.get("accept_errors");
        thread::sleep(Duration::from_secs(1));
        let cpu = machine::cpu_seconds(server.pid())? - cpu;
        let figures = server.figures()?;
        let tries = figures.get("accept_errors") - errors;
        cpu_most = cpu_most.max(cpu);
        ensure!(
            cpu <= CPU_SECONDS_MAX && tries <= TRIES_MAX,
            "out of descriptors, the server used {cpu} s of a second, and tried {tries} times"
        );
        ensure!(
            figures.get("connections") == room,
            "with room for {room}: {figures:?}"
        );
        echo(context, &mut open).during("those who are connected")?;

        // Exactly as many are accepted as have closed.
        let go = random.between(1, room.min(TOO_MANY) - 1) as usize;
        for peer in open.drain(..go) {
            if random.below(2) == 0 {
                client::reset_on_drop(&peer.stream)?;
            }
        }
        let mut taken_in = Vec::new();
        let took = within(Duration::from_secs(5), "who waited is taken in", || {
            taken_in.extend(answered(&mut waiting)?);
            ensure!(taken_in.len() <= go, "more than have gone are taken in");
            Ok(taken_in.len() == go)
        })?;
        slowest = slowest.max(took);
        echo(context, &mut taken_in).during("those who were taken in")?;

        drop((open, taken_in));
        eventually("all that wait are taken in", || {
            answered(&mut waiting)?;
            Ok(waiting.is_empty())
        })?;
        server.eventually("all have gone", |figures| {
            figures.get("connections") == 0 && figures.get("opened") == figures.get("closed")
        })?;
        eventually("its descriptors are free again", || {
            Ok(in_use(&server)? == own)
        })?;
    }
    let figures = server.figures()?;
    let came = rounds * (DESCRIPTORS - own + TOO_MANY);
    ensure!(
        figures.get("opened") == came && figures.get("accepted") == came,
        "{came} came; {figures:?}"
    );
    Ok(Report {
        held: format!(
            "{DESCRIPTORS} descriptors, all in use, {rounds} times, and {TOO_MANY} clients that wait"
        ),
        faults: rounds * TOO_MANY,
        figures: format!(
            "{cpu_most:.2} s of processor time in the worst second; {} failed tries in all; taken in {:.0} ms \
             after others went, at the slowest",
            figures.get("accept_errors"),
            slowest.as_secs_f64() * 1e3
        ),
        peak: server.finish()?,
    })
}

/// Sends a handshake without waiting for the response.
fn ask(server: &Server, number: u64) -> Outcome<TcpStream> {
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
        ensure!(peer.message()? == message, "an echo is another message");
    }
    Ok(())
}
