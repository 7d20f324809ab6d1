//! The subject: the jobs of the bench on humphrey_ws, through its public API. It has one shard unless configured otherwise,
//! and sets no option that a usual program would not set.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::{
    AllowedHosts, AsyncSender, AsyncStream, AsyncWebsocketApp, ConnectionId, HistoryLimits, Limits,
    Message, Origins, RunningApp, Subscription,
};

use crate::args::{self, Job, OptionSpec, Options};
use crate::wire::{self, EVENTS, HELLO, PUBLISH, ROUND_ROBIN_ROOMS, VISIT};

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
    /// Whether [`Job::Fanout`] publishes to a room, which every connection joins.
    room: bool,
    /// Whether rooms keep a history.
    history: bool,
    /// Whether clients may receive broadcasts as an event stream.
    events: bool,
    /// Whether what each client sends has rate limits, which are never reached.
    rate_limits: bool,
    /// The address of the route for Prometheus, if there is one.
    metrics: Option<SocketAddrV4>,
    /// The URL of the broker of the cluster, if the server is a node.
    cluster: Option<String>,
}

/// The room of [`Job::Chat`], and of [`Job::Fanout`] with `--room`.
const CHAT: &str = "chat";
/// Number of messages that a room keeps with `--history`.
const KEPT_MESSAGES: usize = 1_000;
/// The interval of comments in event streams: none is sent while the bench loads other servers.
const KEEP_ALIVE: Duration = Duration::from_secs(3_600);
/// The rate limits of `--rate-limits`, more than a client of the bench can send.
const MESSAGES_PER_SECOND_MAX: u32 = 100_000_000;
const BYTES_PER_SECOND_MAX: u64 = 100_000_000_000;

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
    args::flag("room"),
    args::flag("history"),
    args::flag("events"),
    args::flag("rate-limits"),
    args::value("metrics"),
    args::value("cluster"),
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
        let metrics = options
            .text("metrics")
            .map(|text| text.parse().map_err(|_| args::bad("metrics", text)));
        let cluster = options.text("cluster").map(str::to_owned);
        if cluster.is_some() && !cfg!(feature = "cluster") {
            let text = "--cluster needs a build with --features cluster";
            return Err(args::invalid(text.into()));
        }
        Ok(Self {
            compress,
            tls,
            room: options.flag("room"),
            history: options.flag("history"),
            events: options.flag("events"),
            rate_limits: options.flag("rate-limits"),
            metrics: metrics.transpose()?,
            cluster,
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
    app = settings.add_features(app);
    let metrics = settings.metrics.map(|at| serve_metrics(app.sender(), at));
    // It runs as long as this process.
    let _metrics = metrics.transpose()?;
    let mut app = with_handlers(app, job, settings);
    crate::ready(app.bind()?)?;
    app.run();
    Err(io::Error::other("the server stopped unexpectedly"))
}

fn with_handlers(
    app: AsyncWebsocketApp<()>,
    job: Job,
    settings: &Settings,
) -> AsyncWebsocketApp<()> {
    match job {
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
        Job::Fanout if settings.room => app
            .with_connect_handler(|stream, _| stream.join(CHAT))
            .with_message_handler(
                |stream, message, _| match message.bytes() == HELLO.as_bytes() {
                    true => stream.send(message),
                    false => stream.room(CHAT).broadcast(message),
                },
            ),
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
    }
}

impl Settings {
    /// Switches on what `bench costs` compares.
    fn add_features(&self, mut app: AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> {
        if self.history {
            app = app
                .with_history("*", HistoryLimits::messages(KEPT_MESSAGES))
                // So that clients may choose the subprotocol whose messages carry ids.
                .with_join_handler(|_, _| true);
        }
        if self.events {
            app = app.with_event_stream(EVENTS, |_, _| {
                Ok(Subscription::broadcasts().with_keep_alive(KEEP_ALIVE))
            });
        }
        if self.rate_limits {
            let limits = Limits::default()
                .messages_per_second_max(Some(MESSAGES_PER_SECOND_MAX))
                .bytes_per_second_max(Some(BYTES_PER_SECOND_MAX));
            app = app.with_limits(limits);
        }
        match &self.cluster {
            Some(url) => with_cluster(app, url),
            None => app,
        }
    }
}

/// Serves the metrics of an app on an address of their own, as `docs/metrics-and-logs.md` shows.
fn serve_metrics(sender: AsyncSender, address: SocketAddrV4) -> io::Result<RunningApp> {
    AsyncWebsocketApp::<()>::new_with_config((), 1, 1)
        .with_address(address)
        .with_allowed_hosts(AllowedHosts::loopback())
        .with_allowed_origins(Origins::Same)
        .with_shards(1)
        .with_routes(SubApp::new().with_stateless_route("/metrics", move |_| {
            Response::new(StatusCode::OK, sender.prometheus())
                .with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        }))
        .start()
}

#[cfg(feature = "cluster")]
fn with_cluster(app: AsyncWebsocketApp<()>, url: &str) -> AsyncWebsocketApp<()> {
    app.with_cluster(url)
}

#[cfg(not(feature = "cluster"))]
fn with_cluster(app: AsyncWebsocketApp<()>, _: &str) -> AsyncWebsocketApp<()> {
    app
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
