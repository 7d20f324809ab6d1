//! The subject: the jobs of the bench on humphrey_ws, through its public API. It has one shard unless configured otherwise,
//! and sets no option that a usual program would not set.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use humphrey_ws::{AsyncSender, AsyncStream, AsyncWebsocketApp, ConnectionId, Message};

use crate::args::{self, Job, OptionSpec, Options};
use crate::wire::{self, HELLO, PUBLISH, ROUND_ROBIN_ROOMS, VISIT};

const THREADS: usize = 32;
/// Number of messages whose handlers sleep: more than there are threads.
const WARM_UP: usize = 48;
/// Connections that join, and connections that leave, per second of a [`Job::Churn`].
pub(crate) const CHURN_PER_SECOND: u32 = 1_000;
/// Connections that join at once.
const CHURN_BURST: u32 = 10;

/// Settings that differ from the library's defaults.
pub(crate) struct Settings {
    shards: usize,
    /// Whether handlers run on the worker pool only, never on a shard's thread.
    pool: bool,
    /// Whether the echo handler borrows its stream.
    borrowing: bool,
    delay: Option<HandlerDelay>,
    /// Whether the server accepts offers of compression.
    compress: bool,
    /// The PEM files of the certificate and its key, if the server speaks TLS.
    tls: Option<(String, String)>,
}

/// The room of [`Job::Chat`].
const CHAT: &str = "chat";

/// A delay of some echo handlers before they answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandlerDelay {
    pub(crate) micros: u64,
    pub(crate) one_in: u64,
    /// Whether the handler uses the CPU for that time; otherwise it sleeps.
    pub(crate) works: bool,
}

impl HandlerDelay {
    fn run(self) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if !COUNT.fetch_add(1, Relaxed).is_multiple_of(self.one_in) {
            return;
        }
        let (begun, takes) = (Instant::now(), Duration::from_micros(self.micros));
        if !self.works {
            thread::sleep(takes);
        }
        while self.works && begun.elapsed() < takes {}
    }
}

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("cpu"),
    args::value("shards"),
    args::flag("pool"),
    args::flag("borrowing"),
    args::flag("ring"),
    args::value("micros"),
    args::value("one-in"),
    args::flag("works"),
    args::flag("compress"),
    args::value("tls-cert"),
    args::value("tls-key"),
    args::flag("child"),
];

impl Settings {
    pub(crate) fn of(options: &Options) -> io::Result<Self> {
        let micros = options.number("micros", 0)?;
        let one_in = options.number("one-in", 1)?;
        if one_in == 0 {
            return Err(args::bad("one-in", "0"));
        }
        let compress = options.flag("compress");
        if compress && !cfg!(feature = "deflate") {
            let text = "--compress needs a build with --features deflate";
            return Err(args::invalid(text.into()));
        }
        let tls = match (options.text("tls-cert"), options.text("tls-key")) {
            (Some(certificate), Some(key)) => Some((certificate.to_owned(), key.to_owned())),
            (None, None) => None,
            _ => {
                return Err(args::invalid(
                    "--tls-cert and --tls-key need each other".into(),
                ));
            }
        };
        if tls.is_some() && !cfg!(feature = "tls") {
            let text = "--tls-cert needs a build with --features tls";
            return Err(args::invalid(text.into()));
        }
        Ok(Self {
            compress,
            tls,
            shards: options.number("shards", 1)?,
            pool: options.flag("pool"),
            borrowing: options.flag("borrowing"),
            delay: (micros > 0).then_some(HandlerDelay {
                micros,
                one_in,
                works: options.flag("works"),
            }),
        })
    }
}

pub(crate) fn serve(job: Job, address: SocketAddrV4, settings: &Settings) -> io::Result<()> {
    let mut app = AsyncWebsocketApp::<()>::new_with_config((), THREADS, 1)
        .with_address(address)
        .with_shards(settings.shards);
    if settings.pool {
        app = app.with_adaptive_handlers(false);
    }
    if settings.compress {
        app = with_compression(app);
    }
    if let Some((certificate, key)) = &settings.tls {
        app = with_tls(app, certificate, key)?;
    }
    let mut app = match job {
        Job::Echo => match settings.delay {
            None if settings.borrowing => {
                app.with_message_handler_ref(|stream, message, _| stream.send(message))
            }
            None => app.with_message_handler(|stream, message, _| stream.send(message)),
            Some(delay) => app.with_message_handler(move |stream, message, _| {
                delay.run();
                stream.send(message);
            }),
        },
        Job::Blocked => app.with_message_handler(|stream, message, _| {
            if wire::is_blocking(message.bytes()) {
                thread::sleep(wire::BLOCK_TIME);
            }
            stream.send(message);
        }),
        Job::Fanout => app.with_message_handler(|stream, message, _| {
            if stream.path() == PUBLISH {
                stream.broadcast(message);
            }
        }),
        Job::Lines => {
            let sender = app.sender();
            thread::spawn(move || {
                for line in io::stdin().lines().map_while(Result::ok) {
                    sender.broadcast(Message::new(line));
                }
            });
            app
        }
        Job::Rooms => app
            .with_connect_handler(join_named_room)
            .with_message_handler(|stream, message, _| handle_room_message(&stream, message)),
        Job::Chat => app
            .with_connect_handler(|stream, _| stream.join(CHAT))
            .with_message_handler(
                |stream, message, _| match message.bytes() == HELLO.as_bytes() {
                    true => stream.send(message),
                    false => stream.room(CHAT).broadcast_except(stream.id(), message),
                },
            ),
        Job::RoundRobin => app
            .with_connect_handler(join_named_room)
            .with_message_handler(
                |stream, message, _| match message.bytes() == HELLO.as_bytes() {
                    true => stream.send(message),
                    false => stream.room(&next_room()).broadcast(message),
                },
            ),
        Job::Churn => {
            let sender = app.sender();
            let thread = thread::spawn(move || churn(&sender));
            let _ = VISITORS.thread.set(thread.thread().clone());
            app.with_connect_handler(join_named_room)
                .with_message_handler(|stream, message, _| {
                    VISITORS.wake();
                    handle_room_message(&stream, message);
                })
        }
    };
    crate::ready(app.bind()?)?;
    app.run();
    Err(io::Error::other("the server stopped unexpectedly"))
}

#[cfg(feature = "deflate")]
fn with_compression(app: AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> {
    app.with_compression(humphrey_ws::Compression::new())
}

#[cfg(not(feature = "deflate"))]
fn with_compression(app: AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> {
    app
}

#[cfg(feature = "tls")]
fn with_tls(
    app: AsyncWebsocketApp<()>,
    certificate: &str,
    key: &str,
) -> io::Result<AsyncWebsocketApp<()>> {
    let tls = humphrey_ws::tls::Tls::from_pem_files(certificate, key)?;
    Ok(app.with_tls(tls))
}

#[cfg(not(feature = "tls"))]
fn with_tls(app: AsyncWebsocketApp<()>, _: &str, _: &str) -> io::Result<AsyncWebsocketApp<()>> {
    Ok(app)
}

/// Returns the names of the rooms in round-robin order.
fn next_room() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    (COUNT.fetch_add(1, Relaxed) % ROUND_ROBIN_ROOMS).to_string()
}

/// Joins the room that the connection's path names.
fn join_named_room(stream: AsyncStream, _: Arc<()>) {
    match stream.path() {
        PUBLISH | "/" => {}
        VISIT => {
            let mut all = VISITORS.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(stream.id());
        }
        path => stream.join(path.trim_start_matches('/')),
    }
}

fn handle_room_message(stream: &AsyncStream, message: Message) {
    let room = wire::room_of(message.bytes()).map(|name| stream.room(name));
    if stream.path() != PUBLISH {
        warm_up();
        room.into_iter().for_each(|room| room.join(stream.id()));
        stream.send(message);
    } else if let Some(room) = room {
        room.broadcast(message);
    }
}

/// Has the first messages occupy every handler thread, so that each has allocated its stack and heap before memory is
/// measured.
fn warm_up() {
    static MESSAGES: AtomicUsize = AtomicUsize::new(0);
    if MESSAGES.load(Relaxed) < WARM_UP && MESSAGES.fetch_add(1, Relaxed) < WARM_UP {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Connections that join and leave a room while messages are published.
struct Visitors {
    all: Mutex<Vec<ConnectionId>>,
    /// Whether a message was published since the last burst.
    wanted: AtomicBool,
    thread: OnceLock<Thread>,
}

static VISITORS: Visitors = Visitors {
    all: Mutex::new(Vec::new()),
    wanted: AtomicBool::new(false),
    thread: OnceLock::new(),
};

impl Visitors {
    fn wake(&self) {
        if !self.wanted.swap(true, Relaxed)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// Lets visitors join room 0 in turn, and leave it one burst later.
fn churn(sender: &AsyncSender) {
    let name = wire::room_name(0);
    let room = sender.room(&String::from_utf8_lossy(&name));
    let pause = Duration::from_secs(1) * CHURN_BURST / CHURN_PER_SECOND;
    let mut inside: Vec<ConnectionId> = Vec::new();
    let mut next = 0;
    let mut due = Instant::now();
    loop {
        if !VISITORS.wanted.swap(false, Relaxed) {
            thread::park();
            due = Instant::now();
            continue;
        }
        inside.drain(..).for_each(|id| room.leave(id));
        let all = VISITORS.all.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.is_empty() {
            let come = (0..CHURN_BURST as usize).map(|at| all[(next + at) % all.len()]);
            inside.extend(come);
            next += CHURN_BURST as usize;
        }
        drop(all);
        inside.iter().for_each(|&id| room.join(id));
        due += pause;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
