//! The server under test: a separate process that reads one command per line from standard input and answers each with a
//! line of counters.

mod child;
pub(crate) mod pair;
pub(crate) mod program;
pub(crate) mod rooms;
pub(crate) mod setup;
mod state;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::tls::Tls;
use humphrey_ws::{AsyncSender, Message, RunningApp, SendErrorReason, TlsMetrics};

use crate::certificates;
use crate::check::{During, Failure, Outcome};
use crate::machine;
pub(crate) use child::{Figures, Server};
pub(crate) use setup::next;
pub(crate) use setup::{Policy, Setup};
use state::ServerState;

/// The hidden command that starts the server.
pub(crate) const COMMAND: &str = "serve";

/// How long a producer waits before it retries a broadcast that a full mailbox refused.
const RETRY: Duration = Duration::from_micros(200);

/// A running app, and what commands to it need.
struct Served {
    shared: Arc<ServerState>,
    running: RunningApp,
    address: SocketAddr,
    /// The certificate, for reloads.
    tls: Option<Tls>,
}

impl Served {
    fn start(setup: &Setup) -> Outcome<Self> {
        let mut app = program::app(setup);
        let tls = setup.tls.as_deref().map(|directory| {
            let (certificate, key) = certificates::files(directory);
            Tls::from_pem_files(certificate, key).during("loading the certificate")
        });
        let tls = tls.transpose()?;
        if let Some(tls) = &tls {
            app = app.with_tls(tls.clone());
        }
        let shared = app.get_state();
        let address = app.bind()?;
        let running = app.start()?;
        let _ = shared.sender.set(running.sender());
        Ok(Self {
            shared,
            running,
            address,
            tls,
        })
    }
}

/// Runs the server until standard input ends.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    machine::raise_descriptor_limit()?;
    let setup = Setup::from_args(&mut args)?;
    let Served {
        shared,
        running,
        address,
        tls,
    } = Served::start(&setup)?;
    program::watch_panics(shared.clone());
    let mut running = Some(running);
    if setup.descriptors > 0 {
        // By now the server has opened the descriptors that it needs for itself.
        machine::limit_descriptors(setup.descriptors)?;
    }
    say(&address.to_string())?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        match words.next().unwrap_or_default() {
            "figures" => say(&figures(&shared)?)?,
            "produce" => {
                produce(&shared, ProducerPlan::read(&mut words)?);
                say("")?;
            }
            "reload" => {
                let tls = tls
                    .as_ref()
                    .ok_or_else(|| Failure::new("there is no TLS"))?;
                tls.reload().during("reloading the certificate")?;
                say("")?;
            }
            "shutdown" => {
                let wait = Duration::from_millis(next(&mut words)?);
                let start = Instant::now();
                if let Some(running) = running.take() {
                    running.shutdown(wait);
                }
                say(&format!("stopped_after={}", start.elapsed().as_millis()))?;
            }
            other => return Err(Failure::new(format!("unknown command {other:?}"))),
        }
    }
    Ok(())
}

/// Answers a command with a line.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Handshakes and connections that failed by the client's fault, for any cause.
fn tls_failures(tls: &TlsMetrics) -> u64 {
    tls.plain_http
        + tls.incompatible
        + tls.client_certificates
        + tls.untrusted
        + tls.alerts
        + tls.malformed
}

fn figures(shared: &ServerState) -> Outcome<String> {
    let metrics = shared.sender()?.metrics();
    let of_shared = |counter: &AtomicU64| counter.load(SeqCst);
    let dropped = &metrics.dropped;
    let tls = &metrics.tls;
    let figures = [
        ("opened", of_shared(&shared.opened)),
        ("closed", of_shared(&shared.closed)),
        ("violations", of_shared(&shared.violations)),
        ("sends", of_shared(&shared.sends)),
        ("offered", of_shared(&shared.offered)),
        ("due", of_shared(&shared.due)),
        ("replayed", of_shared(&shared.replayed)),
        ("refused_broadcasts", of_shared(&shared.refused)),
        ("producing", of_shared(&shared.producing)),
        ("connections", metrics.connections),
        ("connections_opened", metrics.connections_opened),
        ("rooms", metrics.rooms),
        ("room_members", metrics.room_members),
        ("accepted", metrics.accepted),
        ("refused", metrics.refused.total()),
        ("handshake_failures", metrics.handshake_failures.total()),
        ("unfinished_messages", metrics.unfinished_messages),
        ("accept_errors", metrics.accept_errors),
        ("messages_in", metrics.messages_in),
        ("messages_out", metrics.messages_out),
        ("dropped_slow_consumer", dropped.slow_consumer),
        ("dropped_closed", dropped.closed),
        ("dropped_no_recipient", dropped.no_recipient),
        ("dropped_not_running", dropped.not_running),
        ("dropped_too_large", dropped.too_large),
        ("slow_consumers", metrics.slow_consumers),
        ("heartbeat_timeouts", metrics.heartbeat_timeouts),
        ("protocol_errors", metrics.protocol_errors),
        ("closed_over_rate", metrics.closed_over_rate),
        ("reads_delayed", metrics.reads_delayed),
        ("bombs", metrics.compression.bombs),
        ("compressed_out", metrics.compression.sent_bytes),
        ("plain_out", metrics.compression.plain_bytes),
        ("compressed_in", metrics.compression.received_bytes),
        ("inflated_in", metrics.compression.inflated_bytes),
        ("tls_handshakes", tls.handshakes),
        ("tls_resumed", tls.resumed),
        ("tls_aborted", tls.aborted),
        ("tls_failures", tls_failures(tls)),
        ("tls_truncated", tls.truncated),
        ("tls_reloads", tls.reloads),
        ("handlers_blocked", metrics.handlers_blocked),
        ("handler_panics", metrics.handler_panics),
    ];
    let mut line = String::new();
    for (name, value) in figures {
        let _ = write!(line, "{name}={value} ");
    }
    let sent = shared
        .sent
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for (sender, last) in &*sent {
        let _ = write!(line, "sent_{sender}={last} ");
    }
    Ok(line)
}

/// What one producer thread does: it broadcasts numbered messages until `count` are sent or `ms` have passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProducerPlan {
    pub(crate) sender: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) bytes_max: usize,
    pub(crate) ms: u64,
    /// Microseconds between two broadcasts.
    pub(crate) pause: u64,
}

impl ProducerPlan {
    fn line(&self) -> String {
        let Self {
            sender,
            first,
            count,
            bytes_max,
            ms,
            pause,
        } = self;
        format!("produce {sender} {first} {count} {bytes_max} {ms} {pause}")
    }

    fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Outcome<Self> {
        Ok(Self {
            sender: next(words)?,
            first: next(words)?,
            count: next(words)?,
            bytes_max: next(words)?,
            ms: next(words)?,
            pause: next(words)?,
        })
    }
}

fn produce(shared: &Arc<ServerState>, plan: ProducerPlan) {
    let Some(sender) = shared.sender.get().cloned() else {
        return shared.violated("a producer was started before the app");
    };
    shared.producing.fetch_add(1, SeqCst);
    let shared = shared.clone();
    thread::spawn(move || {
        let until = Instant::now() + Duration::from_millis(plan.ms);
        let end = plan.first.saturating_add(plan.count);
        for number in plan.first..end {
            let bytes = shared.codec.write(plan.sender, number, plan.bytes_max);
            if Instant::now() > until || !offer(&sender, &shared, Message::new_binary(bytes)) {
                break;
            }
            let mut sent = shared
                .sent
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            sent.insert(plan.sender, number);
            drop(sent);
            if plan.pause > 0 {
                thread::sleep(Duration::from_micros(plan.pause));
            }
        }
        shared.producing.fetch_sub(1, SeqCst);
    });
}

/// Broadcasts as soon as the mailboxes have room. Returns whether the app still runs.
fn offer(sender: &AsyncSender, shared: &ServerState, mut message: Message) -> bool {
    loop {
        match sender.try_broadcast(message) {
            Ok(()) => {
                shared.offered.fetch_add(1, SeqCst);
                return true;
            }
            Err(error) if error.reason == SendErrorReason::Full => {
                message = error.message;
                thread::sleep(RETRY);
            }
            Err(_) => {
                shared.refused.fetch_add(1, SeqCst);
                return false;
            }
        }
    }
}
