//! `bench blocked`: what clients notice of the blocked handlers of others.
//!
//! One shard, 100 clients that echo, first alone, then beside 20 clients whose handlers sleep for two seconds, again
//! and again. Each of these also checks that its own messages stay in order behind the sleeper.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::AsyncWebsocketApp;

use crate::args::{self, Job, Known, Options};
use crate::histogram::Summary;
use crate::load::{Load, Plan, Rooms};
use crate::wire;

pub(crate) const OPTIONS: &[Known] = &[
    args::value("clients"),
    args::value("sleepers"),
    args::value("seconds"),
];

const SLEEP: Duration = Duration::from_secs(2);
/// What a sleeper sends at once: a text that its handler sleeps on, and texts behind it.
const BEHIND: u8 = 5;

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let clients = options.number("clients", 100)?;
    let sleepers: usize = options.number("sleepers", 20)?;
    let seconds = options.number("seconds", 5u64)?.clamp(1, 60);
    let app = AsyncWebsocketApp::<()>::new_with_config((), 32, 1)
        .with_shards(1)
        .with_address("127.0.0.1:0")
        .with_message_handler(|stream, message, _| {
            if message.text() == Some("0") {
                thread::sleep(SLEEP);
            }
            stream.send(message);
        })
        .start()?;
    let Some(SocketAddr::V4(address)) = app.local_addr() else {
        return Err(io::Error::other("the server has no address"));
    };
    let plan = Plan {
        job: Job::Echo,
        clients,
        rooms: Rooms::default(),
        window: 1,
        size: 32,
        sleep: true,
    };
    let mut load = Load::connect(address, plan)?;
    let duration = Duration::from_secs(seconds);
    echo_for(&mut load, Duration::from_secs(1))?;
    let alone = echo_for(&mut load, duration)?;
    let until = Instant::now() + duration;
    let sleepers: Vec<_> = (0..sleepers)
        .map(|_| thread::spawn(move || sleep_until(address, until)))
        .collect();
    let beside = echo_for(&mut load, duration)?;
    let mut slept = 0;
    for sleeper in sleepers {
        slept += sleeper
            .join()
            .map_err(|_| io::Error::other("a sleeper has panicked"))??;
    }
    app.shutdown(Duration::from_secs(1));
    println!("| {clients} clients that echo | p50 | p99 | slowest |");
    println!("|---|---|---|---|");
    for (what, summary) in [
        ("alone".to_owned(), alone),
        (
            format!("beside {slept} handlers that slept for 2 s"),
            beside,
        ),
    ] {
        println!(
            "| {what} | {:.1?} | {:.1?} | {:.1?} |",
            summary.p50, summary.p99, summary.max
        );
    }
    Ok(())
}

fn echo_for(load: &mut Load, duration: Duration) -> io::Result<Summary> {
    load.latencies().clear();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        load.deliver(10_000)?;
    }
    Ok(load.latencies().summary())
}

/// One client whose handler sleeps. Returns how often it did.
fn sleep_until(address: SocketAddrV4, until: Instant) -> io::Result<usize> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(10 * SLEEP))?;
    socket.write_all(
        b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while wire::head_end(&head).is_none() {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut slept = 0;
    while Instant::now() < until {
        let mut frames = Vec::new();
        for n in 0..=BEHIND {
            wire::put_client_head(&mut frames, 1, 1, [0; 4]);
            frames.push(b'0' + n);
        }
        socket.write_all(&frames)?;
        for n in 0..=BEHIND {
            let mut frame = [0; 3];
            socket.read_exact(&mut frame)?;
            if frame[2] != b'0' + n {
                return Err(io::Error::other("a message has overtaken another"));
            }
        }
        slept += 1;
    }
    Ok(slept)
}
