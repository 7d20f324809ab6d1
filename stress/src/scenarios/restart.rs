//! Kills the server and restarts it on the same port: clients that reconnect must be served again.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use tungstenite::Message;

use super::{Context, Report};
use crate::check::{DEADLINE, Failure, Outcome, ensure, join, within};
use crate::client;
use crate::random::Random;
use crate::server::program::WHO;
use crate::server::{Server, Setup};

const CLIENTS: u64 = 24;
const KILLS: u64 = 8;
/// How long a client waits before it reconnects.
const RETRY: Duration = Duration::from_millis(20);

pub(crate) fn run(context: &Context) -> Outcome<Report> {
    let mut setup = context.setup();
    let server = Server::start(&setup)?;
    setup.address = server.address;
    let kills = KILLS * context.scale;
    let over = AtomicBool::new(false);
    // The process id of the server that served each client last.
    let served: Vec<_> = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
    let (connects, slowest, peak) = thread::scope(|scope| {
        let clients: Vec<_> = (0..)
            .map(client::source)
            .zip(&served)
            .map(|(source, served)| {
                let over = &over;
                scope.spawn(move || live(setup.address, source, served, over))
            })
            .collect();
        let outcome = kill_and_start(server, &setup, kills, context.random.clone(), &served);
        over.store(true, SeqCst);
        let mut connects = 0;
        for client in clients {
            connects += join(client)?;
        }
        let (slowest, peak) = outcome?;
        Ok::<_, Failure>((connects, slowest, peak))
    })?;
    ensure!(
        connects >= CLIENTS * (kills + 1),
        "{CLIENTS} clients connected {connects} times during {kills} kills"
    );
    Ok(Report {
        held: format!("{CLIENTS} clients that send continuously"),
        faults: kills,
        figures: format!(
            "{connects} connects; all clients served at most {:.0} ms after a restart",
            slowest.as_secs_f64() * 1e3
        ),
        peak,
    })
}

/// Kills and restarts the server repeatedly. Returns the longest time until all clients were served again, and the peak
/// memory.
fn kill_and_start(
    mut server: Server,
    setup: &Setup,
    kills: u64,
    mut random: Random,
    served: &[AtomicU64],
) -> Outcome<(Duration, u64)> {
    let all_are_served = |server: &Server| {
        let pid = u64::from(server.pid());
        within(DEADLINE, "all clients are served", || {
            Ok(served.iter().all(|served| served.load(SeqCst) == pid))
        })
    };
    all_are_served(&server)?;
    let (mut slowest, mut peak) = (Duration::ZERO, 0);
    for _ in 0..kills {
        // Kill it at a random moment, and leave it down for a random time.
        thread::sleep(Duration::from_millis(random.between(50, 400)));
        peak = peak.max(server.peak()?);
        server.kill()?;
        thread::sleep(Duration::from_millis(random.between(0, 300)));
        server = Server::start(setup)?;
        slowest = slowest.max(all_are_served(&server)?);
    }
    Ok((slowest, peak.max(server.finish()?)))
}

/// A client that reconnects whenever it is disconnected, and asks which process serves it. Returns how often it has
/// connected.
fn live(
    address: SocketAddrV4,
    source: Ipv4Addr,
    served: &AtomicU64,
    over: &AtomicBool,
) -> Outcome<u64> {
    let mut connects = 0;
    while !over.load(SeqCst) {
        let Ok(mut client) = client::well_behaved(address, source, WHO) else {
            thread::sleep(RETRY);
            continue;
        };
        connects += 1;
        while !over.load(SeqCst) {
            if client.send(Message::text("who?")).is_err() {
                break;
            }
            let Ok(answer) = client.read() else {
                break;
            };
            let pid = answer.to_text().ok().and_then(|text| text.parse().ok());
            let pid = pid.ok_or_else(|| Failure::new(format!("{answer:?} is not a process id")))?;
            served.store(pid, SeqCst);
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(connects)
}
