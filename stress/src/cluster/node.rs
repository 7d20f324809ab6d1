//! A node of the cluster under test: a separate process that reads one command per line from standard input, and answers each
//! with a line of counters. It publishes numbered messages itself.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncSender, AsyncWebsocketApp, HistoryLimits, Message, Procedures, RunningApp};

use crate::body::MessageCodec;
use crate::check::{Failure, Outcome};
use crate::machine;
use crate::random::Random;
use crate::server::{Server, next, say};

/// The hidden command that starts a node.
pub(crate) const COMMAND: &str = "node";

/// Added to the sender of messages to rooms without a history.
pub(crate) const PLAIN: u32 = 1 << 16;
/// Added to the sender of the last message to a room.
pub(crate) const END: u32 = 1 << 17;

const BYTES_MAX: usize = 200;
/// How many messages each room keeps; more than are sent during any fault.
const KEPT_MESSAGES: usize = 2_000;
const KEPT_BYTES: usize = 1 << 20;
/// The time between two batches of the load.
const BATCH_INTERVAL: Duration = Duration::from_millis(5);

/// The name of a room that keeps a history.
pub(crate) fn kept_room(room: u32) -> String {
    format!("kept/{room}")
}

/// The name of a room that keeps none.
pub(crate) fn plain_room(room: u32) -> String {
    format!("plain/{room}")
}

/// The configuration of a node, which is passed to it as command-line arguments.
#[derive(Clone, Debug)]
pub(crate) struct NodeSetup {
    pub(crate) address: SocketAddrV4,
    /// The URL of the Redis server.
    pub(crate) url: String,
    pub(crate) seed: u64,
    /// Names the process as the sender of messages; below `SENDERS_MAX`.
    pub(crate) sender: u32,
    /// The number of rooms of each kind.
    pub(crate) rooms: u32,
    /// Whether it also publishes to rooms without a history.
    pub(crate) plain: bool,
}

impl NodeSetup {
    /// A node on a free port of a loopback address that clients do not connect from.
    pub(crate) fn new(seed: u64, url: String, sender: u32) -> Self {
        let host = 2 + (seed % 250) as u8;
        Self {
            address: SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), 0),
            url,
            seed,
            sender,
            rooms: 1,
            plain: false,
        }
    }

    pub(crate) fn start(&self) -> Outcome<Server> {
        let args = [
            self.address.to_string(),
            self.url.clone(),
            self.seed.to_string(),
            self.sender.to_string(),
            self.rooms.to_string(),
            self.plain.to_string(),
        ];
        Server::start_as(COMMAND, &args, self.address)
    }

    fn from_args(args: &mut impl Iterator<Item = String>) -> Outcome<Self> {
        Ok(Self {
            address: next(args)?,
            url: next(args)?,
            seed: next(args)?,
            sender: next(args)?,
            rooms: next(args)?,
            plain: next(args)?,
        })
    }
}

/// Publishes numbered messages. Those to rooms with a history, those to the others, and the last ones are numbered apart.
struct Publisher {
    setup: NodeSetup,
    codec: MessageCodec,
    random: Random,
    sender: AsyncSender,
    kept: u64,
    plain: u64,
}

impl Publisher {
    /// Publishes the next message to a random room.
    fn publish(&mut self) {
        let room = self.random.below(u64::from(self.setup.rooms)) as u32;
        match self.setup.plain && self.random.below(2) == 0 {
            true => self.publish_plain(room),
            false => self.publish_kept(room),
        }
    }

    fn publish_kept(&mut self, room: u32) {
        self.kept += 1;
        let message = self.message(self.setup.sender, self.kept);
        self.sender.room(&kept_room(room)).broadcast(message);
    }

    fn publish_plain(&mut self, room: u32) {
        self.plain += 1;
        let message = self.message(self.setup.sender + PLAIN, self.plain);
        self.sender.room(&plain_room(room)).broadcast(message);
    }

    /// Publishes a message to every room.
    fn sweep(&mut self) {
        for room in 0..self.setup.rooms {
            self.publish_kept(room);
            if self.setup.plain {
                self.publish_plain(room);
            }
        }
    }

    /// Publishes a last message to every room.
    fn end(&self) {
        let last = self.setup.sender + END;
        for room in 0..self.setup.rooms {
            let message = self.message(last, u64::from(room) + 1);
            self.sender.room(&kept_room(room)).broadcast(message);
            if self.setup.plain {
                let message = self.message(last + PLAIN, u64::from(room) + 1);
                self.sender.room(&plain_room(room)).broadcast(message);
            }
        }
    }

    fn message(&self, sender: u32, number: u64) -> Message {
        Message::new_binary(self.codec.write(sender, number, BYTES_MAX))
    }
}

fn lock(publisher: &Mutex<Publisher>) -> MutexGuard<'_, Publisher> {
    publisher
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A thread that publishes at a constant rate until it is stopped.
struct Load {
    stops: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(publisher: Arc<Mutex<Publisher>>, per_second: u64) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let is_over = stops.clone();
        let thread = thread::spawn(move || {
            let begun = Instant::now();
            let mut published = 0;
            while !is_over.load(SeqCst) {
                let due = (begun.elapsed().as_secs_f64() * per_second as f64) as u64;
                // After it was frozen, the process does not catch up at once.
                let batch = (due - published).min(per_second / 20 + 1);
                for _ in 0..batch {
                    lock(&publisher).publish();
                }
                published = due;
                thread::sleep(BATCH_INTERVAL);
            }
        });
        Self { stops, thread }
    }

    fn stop(self) -> Outcome {
        self.stops.store(true, SeqCst);
        let stopped = self.thread.join();
        stopped.map_err(|_| Failure::new("the thread of the load panicked"))
    }
}

fn app(setup: &NodeSetup) -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_address(setup.address)
        .with_shards(2)
        .with_history(
            "kept/*",
            HistoryLimits::messages(KEPT_MESSAGES).bytes(KEPT_BYTES),
        )
        .with_cluster(setup.url.as_str())
        .with_procedures(Procedures::new())
        .with_join_handler(|_, _| true)
        // Faults are meant.
        .with_warnings_on_stderr(false)
}

/// Runs the node until standard input ends.
pub(crate) fn serve(mut args: impl Iterator<Item = String>) -> Outcome {
    machine::die_with_parent()?;
    machine::raise_descriptor_limit()?;
    let setup = NodeSetup::from_args(&mut args)?;
    let mut app = app(&setup);
    let address = app.bind()?;
    let running = app.start()?;
    let sender = running.sender();
    let publisher = Arc::new(Mutex::new(Publisher {
        codec: MessageCodec::new(setup.seed),
        random: Random::new(setup.seed).fork("load", setup.sender.into()),
        sender: sender.clone(),
        kept: 0,
        plain: 0,
        setup,
    }));
    say(&address.to_string())?;
    let mut running = Some(running);
    let mut load = None;
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        match words.next().unwrap_or_default() {
            "figures" => {}
            "load" => load = Some(Load::start(publisher.clone(), next(&mut words)?)),
            "quiet" => {
                if let Some(load) = load.take() {
                    load.stop()?;
                }
            }
            "sweep" => lock(&publisher).sweep(),
            "end" => lock(&publisher).end(),
            "count" => {
                let everywhere = sender.room(&next::<String>(&mut words)?).everywhere();
                say(&format!(
                    "members={} nodes={} complete={}",
                    everywhere.members,
                    everywhere.nodes,
                    u8::from(everywhere.is_complete)
                ))?;
                continue;
            }
            "shutdown" => {
                let wait = Duration::from_millis(next(&mut words)?);
                if let Some(running) = running.take() {
                    RunningApp::shutdown(running, wait);
                }
            }
            other => return Err(Failure::new(format!("unknown command {other:?}"))),
        }
        say(&figures(&publisher, &sender))?;
    }
    Ok(())
}

fn figures(publisher: &Mutex<Publisher>, sender: &AsyncSender) -> String {
    let metrics = sender.metrics();
    let cluster = &metrics.cluster;
    let (kept, plain) = {
        let publisher = lock(publisher);
        (publisher.kept, publisher.plain)
    };
    let figures = [
        ("kept_sent", kept),
        ("plain_sent", plain),
        ("connections", metrics.connections),
        ("slow_consumers", metrics.slow_consumers),
        ("dropped_not_running", metrics.dropped.not_running),
        ("servers_connected", cluster.servers_connected),
        ("nodes", cluster.nodes),
        ("server_connections", cluster.connections),
        ("silences", cluster.silences),
        ("unconfirmed", cluster.unconfirmed),
        ("received", cluster.received),
        ("missed_remote", cluster.missed_remote),
        ("dropped_broker", cluster.dropped_broker),
        ("dropped_full", cluster.dropped_full),
        ("bad_envelopes", cluster.bad_envelopes),
        ("history_reads", cluster.history_reads),
        ("gaps_lost", cluster.gaps),
        ("gaps_server_changed", cluster.gaps_server_changed),
    ];
    let mut line = String::new();
    for (name, value) in figures {
        let _ = write!(line, "{name}={value} ");
    }
    line
}
