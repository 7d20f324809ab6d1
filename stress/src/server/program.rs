//! The handlers of the server under test. The path of a connection selects what they do.

use std::panic;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, Compression, HistoryLimits, Message, Subscription,
};

use super::rooms::{self, KEPT, KEPT_BYTES, KEPT_MESSAGES};
use super::setup::Setup;
use super::state::{HandlerOrder, ServerState};

/// Echoes each message; messages must be numbered without gaps.
pub(crate) const ECHO: &str = "/echo";
/// Ignores each message.
pub(crate) const SILENT: &str = "/silent";
/// Sends a few unsolicited messages when it opens.
pub(crate) const GREETING: &str = "/greeting";
pub(crate) const PANIC_ON_OPEN: &str = "/panic/open";
pub(crate) const PANIC_ON_MESSAGE: &str = "/panic/message";
pub(crate) const PANIC_ON_CLOSE: &str = "/panic/close";
/// The handler of its first message never returns.
pub(crate) const BLOCK: &str = "/block";
/// Sleeps for a tenth of a second before it echoes a message.
pub(crate) const SLEEP: &str = "/sleep";
/// Broadcasts [`LOOP_MESSAGES`] numbered messages, as the same sender, for each message received.
pub(crate) const LOOP: &str = "/loop";
/// Sends, and broadcasts, from its disconnect handler.
pub(crate) const LATE: &str = "/late";

/// Number of messages that [`GREETING`] sends.
const GREETINGS: u64 = 16;
const GREETING_BYTES_MAX: usize = 2_000;
const FLOOD_MESSAGES: u64 = 1_000;
const FLOOD_BYTES_MAX: usize = 16 << 10;
pub(crate) const LOOP_MESSAGES: u64 = 100;
pub(crate) const LOOP_BYTES_MAX: usize = 400;
/// Sends more than the kernel buffers for a client that does not read.
pub(crate) const FLOOD: &str = "/flood";
/// A route that answers with [`BIG_BYTES`].
pub(crate) const BIG: &str = "/big";
pub(crate) const BIG_BYTES: usize = 8 << 20;
/// An event stream of the broadcasts.
pub(crate) const EVENTS: &str = "/events";
/// Executes the commands of [`rooms`].
pub(crate) const ROOMS: &str = "/rooms";
/// Answers each message with the server's process id.
pub(crate) const WHO: &str = "/who";

/// The sender number of broadcasts of [`LATE`].
pub(crate) const LATE_SENDER: u32 = 9_000_000;

/// The payload of panics that a client has requested.
const ASKED_FOR: &str = "asked for";

const NEW: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

/// Held while a handler runs.
struct RunningHandler(Arc<HandlerOrder>);

impl RunningHandler {
    fn begin(shared: &ServerState, stream: &AsyncStream<HandlerOrder>, from: u8, to: u8) -> Self {
        let order = stream.state.clone();
        if order.is_running.swap(true, SeqCst) {
            shared.violated("two handlers of one connection ran at the same time");
        }
        let stage = order.stage.swap(to, SeqCst);
        if stage != from {
            shared.violated(&format!("a handler for stage {from} ran in stage {stage}"));
        }
        Self(order)
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.0.is_running.store(false, SeqCst);
    }
}

pub(super) fn app(setup: &Setup) -> AsyncWebsocketApp<ServerState, HandlerOrder> {
    let app =
        AsyncWebsocketApp::new_with_config(ServerState::new(setup.seed), setup.handler_threads, 1)
            .with_address(setup.address)
            .with_shards(setup.shards)
            .with_limits(setup.limits())
            .with_slow_consumer(setup.slow_consumer())
            .with_connect_handler(connected)
            .with_message_handler(received)
            .with_disconnect_handler(disconnected)
            .with_routes(routes())
            .with_history(
                &format!("{KEPT}*"),
                HistoryLimits::messages(KEPT_MESSAGES).bytes(KEPT_BYTES),
            )
            .with_event_stream(EVENTS, |_, _| Ok(Subscription::broadcasts()));
    let app = match setup.compression {
        0 => app,
        _ => app.with_compression(Compression::new()),
    };
    match setup.heartbeat() {
        Some(heartbeat) => app.with_heartbeat(heartbeat),
        None => app,
    }
}

fn routes() -> SubApp<ServerState> {
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

fn connected(stream: AsyncStream<HandlerOrder>, shared: Arc<ServerState>) {
    let _running = RunningHandler::begin(&shared, &stream, NEW, OPEN);
    shared.opened.fetch_add(1, SeqCst);
    match stream.path() {
        PANIC_ON_OPEN => panic::panic_any(ASKED_FOR),
        GREETING => {
            for number in 0..GREETINGS {
                let message = shared.codec.write(0, number, GREETING_BYTES_MAX);
                shared.send(&stream, Message::new_binary(message));
            }
        }
        _ => {}
    }
}

fn received(stream: AsyncStream<HandlerOrder>, message: Message, shared: Arc<ServerState>) {
    let _running = RunningHandler::begin(&shared, &stream, OPEN, OPEN);
    let expected = stream.state.messages.fetch_add(1, SeqCst);
    let mut sender = 0;
    if !message.is_text() {
        match shared.codec.read(message.bytes()) {
            Ok((from, number)) => {
                sender = from;
                if number != expected {
                    shared.violated(&format!("received message {number} instead of {expected}"));
                }
            }
            Err(failure) => shared.violated(&failure.to_string()),
        }
    }
    match stream.path() {
        ECHO => shared.send(&stream, message),
        ROOMS => rooms::received(&stream, message.text().unwrap_or_default(), &shared),
        SLEEP => {
            thread::sleep(Duration::from_millis(100));
            shared.send(&stream, message);
        }
        PANIC_ON_MESSAGE => panic::panic_any(ASKED_FOR),
        BLOCK => loop {
            thread::park();
        },
        LOOP => broadcast_in_a_loop(&stream, &shared, sender, expected),
        FLOOD => {
            for number in 0..FLOOD_MESSAGES {
                let message = shared.codec.write(0, number, FLOOD_BYTES_MAX);
                shared.send(&stream, Message::new_binary(message));
            }
        }
        WHO => shared.send(&stream, Message::new(std::process::id().to_string())),
        _ => {}
    }
}

fn broadcast_in_a_loop(
    stream: &AsyncStream<HandlerOrder>,
    shared: &ServerState,
    sender: u32,
    round: u64,
) {
    for number in 1 + round * LOOP_MESSAGES..=(round + 1) * LOOP_MESSAGES {
        let message = shared.codec.write(sender, number, LOOP_BYTES_MAX);
        shared.offered.fetch_add(1, SeqCst);
        stream.broadcast(Message::new_binary(message));
    }
    shared.send(stream, Message::new("done"));
}

fn disconnected(stream: AsyncStream<HandlerOrder>, shared: Arc<ServerState>) {
    let _running = RunningHandler::begin(&shared, &stream, OPEN, CLOSED);
    shared.closed.fetch_add(1, SeqCst);
    match stream.path() {
        PANIC_ON_CLOSE => panic::panic_any(ASKED_FOR),
        LATE => {
            shared.send(&stream, Message::new("too late"));
            // Broadcast while the lock is held, so that listeners receive rising numbers.
            let mut late = shared
                .late
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            *late += 1;
            let message = shared.codec.write(LATE_SENDER, *late, LOOP_BYTES_MAX);
            shared.offered.fetch_add(1, SeqCst);
            stream.broadcast(Message::new_binary(message));
        }
        _ => {}
    }
}

/// Installs a panic hook that ignores requested panics and counts any other as a violation.
pub(super) fn watch_panics(shared: Arc<ServerState>) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref() != Some(&ASKED_FOR) {
            shared.violated("an unexpected panic");
            usual(info);
        }
    }));
}
