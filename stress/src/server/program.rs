//! The program of the server under test: what its handlers do is chosen by the path of each connection.

use std::collections::BTreeMap;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{AsyncSender, AsyncStream, AsyncWebsocketApp, Message};

use super::setup::Setup;
use crate::body::Book;

/// Sends back what it gets, which must be numbered without a hole.
pub(crate) const ECHO: &str = "/echo";
/// Does nothing with what it gets.
pub(crate) const SILENT: &str = "/silent";
/// Sends a few messages when it opens, which nobody asked for.
pub(crate) const GREETING: &str = "/greeting";
pub(crate) const PANIC_ON_OPEN: &str = "/panic/open";
pub(crate) const PANIC_ON_MESSAGE: &str = "/panic/message";
pub(crate) const PANIC_ON_CLOSE: &str = "/panic/close";
/// Its first message is never done with.
pub(crate) const BLOCK: &str = "/block";
/// Takes a tenth of a second for each message before it sends it back.
pub(crate) const SLEEP: &str = "/sleep";
/// Broadcasts a hundred numbered messages for each that it gets, as the same sender.
pub(crate) const LOOP: &str = "/loop";
/// Sends, and broadcasts, from its disconnect handler.
pub(crate) const LATE: &str = "/late";

/// Messages of [`GREETING`].
const GREETINGS: u64 = 16;
const GREETING_BYTES_MAX: usize = 2_000;
const FLOOD_MESSAGES: u64 = 1_000;
const FLOOD_BYTES_MAX: usize = 16 << 10;
pub(crate) const LOOP_MESSAGES: u64 = 100;
pub(crate) const LOOP_BYTES_MAX: usize = 400;
/// Sends more than the kernel takes for a client that does not read.
pub(crate) const FLOOD: &str = "/flood";
/// A route that answers with [`BIG_BYTES`].
pub(crate) const BIG: &str = "/big";
pub(crate) const BIG_BYTES: usize = 8 << 20;
/// Tells the number of its process, whatever it is asked.
pub(crate) const WHO: &str = "/who";

/// Broadcasts of [`LATE`] have this sender.
pub(crate) const LATE_SENDER: u32 = 9_000_000;

/// A panic that a client has asked for.
const ASKED_FOR: &str = "asked for";

/// What the handlers of all connections share.
pub(crate) struct World {
    pub(super) book: Book,
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    /// Broken promises that handlers have seen.
    pub(super) violations: AtomicU64,
    /// Messages that handlers have sent.
    pub(super) sends: AtomicU64,
    /// Broadcasts of producers and handlers that were accepted, and that were refused because the app stops.
    pub(super) offered: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) producing: AtomicU64,
    /// What each producer has sent last.
    pub(super) sent: Mutex<BTreeMap<u32, u64>>,
    late: Mutex<u64>,
    pub(super) sender: OnceLock<AsyncSender>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            book: Book::new(seed),
            opened: AtomicU64::default(),
            closed: AtomicU64::default(),
            violations: AtomicU64::default(),
            sends: AtomicU64::default(),
            offered: AtomicU64::default(),
            refused: AtomicU64::default(),
            producing: AtomicU64::default(),
            sent: Mutex::default(),
            late: Mutex::default(),
            sender: OnceLock::new(),
        }
    }

    #[allow(
        clippy::print_stderr,
        reason = "the one way to say which promise was broken"
    )]
    pub(super) fn violated(&self, what: &str) {
        if self.violations.fetch_add(1, SeqCst) < 10 {
            eprintln!("the server has seen a broken promise: {what}");
        }
    }

    fn send(&self, stream: &AsyncStream<Order>, message: Message) {
        self.sends.fetch_add(1, SeqCst);
        stream.send(message);
    }
}

/// How far the handlers of one connection are.
#[derive(Default)]
pub(super) struct Order {
    stage: AtomicU8,
    at_work: AtomicBool,
    /// Numbered messages so far.
    messages: AtomicU64,
}

const NEW: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// While a handler runs.
struct AtWork(Arc<Order>);

impl AtWork {
    fn begin(world: &World, stream: &AsyncStream<Order>, from: u8, to: u8) -> Self {
        let order = stream.state.clone();
        if order.at_work.swap(true, SeqCst) {
            world.violated("two handlers of one connection ran at a time");
        }
        let stage = order.stage.swap(to, SeqCst);
        if stage != from {
            world.violated(&format!("a handler of stage {from} ran in stage {stage}"));
        }
        Self(order)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.store(false, SeqCst);
    }
}

pub(super) fn app(setup: &Setup) -> AsyncWebsocketApp<World, Order> {
    let app = AsyncWebsocketApp::new_with_config(World::new(setup.seed), setup.handler_threads, 1)
        .with_address(setup.address)
        .with_shards(setup.shards)
        .with_limits(setup.limits())
        .with_slow_consumer(setup.slow_consumer())
        .with_connect_handler(connected)
        .with_message_handler(received)
        .with_disconnect_handler(disconnected)
        .with_routes(routes());
    match setup.heartbeat() {
        Some(heartbeat) => app.with_heartbeat(heartbeat),
        None => app,
    }
}

fn routes() -> SubApp<World> {
    SubApp::new()
        .with_stateless_route(BIG, |_| {
            let mut response = Response::empty(StatusCode::OK);
            response.body = vec![b'x'; BIG_BYTES];
            response
        })
        .with_stateless_route("/length", |request: Request| {
            let length = request.content.map_or(0, |body| body.len());
            Response::new(StatusCode::OK, length.to_string())
        })
}

fn connected(stream: AsyncStream<Order>, world: Arc<World>) {
    let _at_work = AtWork::begin(&world, &stream, NEW, OPEN);
    world.opened.fetch_add(1, SeqCst);
    match stream.path() {
        PANIC_ON_OPEN => panic::panic_any(ASKED_FOR),
        GREETING => {
            for number in 0..GREETINGS {
                let message = world.book.write(0, number, GREETING_BYTES_MAX);
                world.send(&stream, Message::new_binary(message));
            }
        }
        _ => {}
    }
}

fn received(stream: AsyncStream<Order>, message: Message, world: Arc<World>) {
    let _at_work = AtWork::begin(&world, &stream, OPEN, OPEN);
    let expected = stream.state.messages.fetch_add(1, SeqCst);
    let mut sender = 0;
    if !message.is_text() {
        match world.book.read(message.bytes()) {
            Ok((from, number)) => {
                sender = from;
                if number != expected {
                    world.violated(&format!("message {number} came where {expected} was due"));
                }
            }
            Err(failure) => world.violated(&failure.to_string()),
        }
    }
    match stream.path() {
        ECHO => world.send(&stream, message),
        SLEEP => {
            thread::sleep(Duration::from_millis(100));
            world.send(&stream, message);
        }
        PANIC_ON_MESSAGE => panic::panic_any(ASKED_FOR),
        BLOCK => loop {
            thread::park();
        },
        LOOP => broadcast_in_a_loop(&stream, &world, sender, expected),
        FLOOD => {
            for number in 0..FLOOD_MESSAGES {
                let message = world.book.write(0, number, FLOOD_BYTES_MAX);
                world.send(&stream, Message::new_binary(message));
            }
        }
        WHO => world.send(&stream, Message::new(std::process::id().to_string())),
        _ => {}
    }
}

fn broadcast_in_a_loop(stream: &AsyncStream<Order>, world: &World, sender: u32, round: u64) {
    for number in 1 + round * LOOP_MESSAGES..=(round + 1) * LOOP_MESSAGES {
        let message = world.book.write(sender, number, LOOP_BYTES_MAX);
        world.offered.fetch_add(1, SeqCst);
        stream.broadcast(Message::new_binary(message));
    }
    world.send(stream, Message::new("done"));
}

fn disconnected(stream: AsyncStream<Order>, world: Arc<World>) {
    let _at_work = AtWork::begin(&world, &stream, OPEN, CLOSED);
    world.closed.fetch_add(1, SeqCst);
    match stream.path() {
        PANIC_ON_CLOSE => panic::panic_any(ASKED_FOR),
        LATE => {
            world.send(&stream, Message::new("too late"));
            // Under the lock, so that the numbers rise for whoever listens.
            let mut late = world
                .late
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            *late += 1;
            let message = world.book.write(LATE_SENDER, *late, LOOP_BYTES_MAX);
            world.offered.fetch_add(1, SeqCst);
            stream.broadcast(Message::new_binary(message));
        }
        _ => {}
    }
}

/// Panics that clients have asked for are not worth a word; any other is a broken promise.
pub(super) fn watch_panics(world: Arc<World>) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref() != Some(&ASKED_FOR) {
            world.violated("something has panicked");
            usual(info);
        }
    }));
}
