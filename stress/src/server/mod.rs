//! The server under test: a process of its own, which takes commands on its standard input, a line each, and answers
//! each with a line of figures.

mod child;
pub(crate) mod program;
pub(crate) mod setup;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncSender, Message, Metrics, RunningApp, SendErrorReason};

use crate::check::{Failure, Outcome};
use crate::machine;
pub(crate) use child::{Figures, Server};
use program::World;
use setup::next;
pub(crate) use setup::{Policy, Setup};

/// The hidden command that starts it.
pub(crate) const COMMAND: &str = "serve";

/// Producers that a full mailbox hands a message back to look again so soon.
const RETRY: Duration = Duration::from_micros(200);

/// Becomes the server, until standard input ends.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    machine::raise_descriptor_limit()?;
    let setup = Setup::from_args(&mut args)?;
    let mut app = program::app(&setup);
    let world = app.get_state();
    program::watch_panics(world.clone());
    let address = app.bind()?;
    let mut running = Some(app.start()?);
    let sender = running.as_ref().map(RunningApp::sender);
    let sender = sender.ok_or_else(|| Failure::new("there is no sender"))?;
    let _ = world.sender.set(sender.clone());
    if setup.descriptors > 0 {
        // What the server needs for itself it has opened by now.
        machine::limit_descriptors(setup.descriptors)?;
    }
    say(&address.to_string())?;
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        match words.next().unwrap_or_default() {
            "figures" => say(&figures(&world, &sender.metrics()))?,
            "produce" => {
                produce(&world, Production::read(&mut words)?);
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
            other => return Err(Failure::new(format!("{other:?} is no command"))),
        }
    }
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn figures(world: &World, metrics: &Metrics) -> String {
    let of_world = |counter: &AtomicU64| counter.load(SeqCst);
    let dropped = &metrics.dropped;
    let figures = [
        ("opened", of_world(&world.opened)),
        ("closed", of_world(&world.closed)),
        ("violations", of_world(&world.violations)),
        ("sends", of_world(&world.sends)),
        ("offered", of_world(&world.offered)),
        ("refused_broadcasts", of_world(&world.refused)),
        ("producing", of_world(&world.producing)),
        ("connections", metrics.connections),
        ("connections_opened", metrics.connections_opened),
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
        ("handlers_blocked", metrics.handlers_blocked),
        ("handler_panics", metrics.handler_panics),
    ];
    let mut line = String::new();
    for (name, value) in figures {
        let _ = write!(line, "{name}={value} ");
    }
    let sent = world
        .sent
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    for (sender, last) in &*sent {
        let _ = write!(line, "sent_{sender}={last} ");
    }
    line
}

/// What one producer does: numbered broadcasts, until it has made so many or so much time is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Production {
    pub(crate) sender: u32,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) bytes_max: usize,
    pub(crate) ms: u64,
    /// Microseconds between two of them.
    pub(crate) pause: u64,
}

impl Production {
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

fn produce(world: &Arc<World>, production: Production) {
    let Some(sender) = world.sender.get().cloned() else {
        return world.violated("a producer came before the app ran");
    };
    world.producing.fetch_add(1, SeqCst);
    let world = world.clone();
    thread::spawn(move || {
        let until = Instant::now() + Duration::from_millis(production.ms);
        let end = production.first.saturating_add(production.count);
        for number in production.first..end {
            let bytes = world
                .book
                .write(production.sender, number, production.bytes_max);
            if Instant::now() > until || !offer(&sender, &world, Message::new_binary(bytes)) {
                break;
            }
            let mut sent = world
                .sent
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            sent.insert(production.sender, number);
            drop(sent);
            if production.pause > 0 {
                thread::sleep(Duration::from_micros(production.pause));
            }
        }
        world.producing.fetch_sub(1, SeqCst);
    });
}

/// Broadcasts as soon as there is room. Returns whether the app still runs.
fn offer(sender: &AsyncSender, world: &World, mut message: Message) -> bool {
    loop {
        match sender.try_broadcast(message) {
            Ok(()) => {
                world.offered.fetch_add(1, SeqCst);
                return true;
            }
            Err(error) if error.reason == SendErrorReason::Full => {
                message = error.message;
                thread::sleep(RETRY);
            }
            Err(_) => {
                world.refused.fetch_add(1, SeqCst);
                return false;
            }
        }
    }
}
