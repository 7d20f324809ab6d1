//! A simulated world around one shard: clients, time, and handlers that run when the test decides.
//!
//! The file is long because it contains a single type, which all simulated tests use.

use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::wire::{self, ACCEPT, Frame, Pipe, UPGRADE, Wire, client_text, lock, parse_frames};
use crate::engine::handlers::inline::JobSource;
use crate::engine::handlers::pool::{RunOn, simulate};
use crate::engine::hub::{Destination, Hub};
use crate::engine::model::command::{Command, Control, Upgraded};
use crate::engine::model::job::{Job, MessageRun, Work};
use crate::engine::model::program::{HandshakeAccept, Program, Subscriptions};
use crate::engine::model::request::{PieceTicket, Request, Response, Ticket};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::model::settings::Settings;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::expiry::Expiry;
use crate::engine::parts::id::{Key, LocalId};
use crate::engine::parts::mailbox::{PushError, Wake, When};
use crate::engine::reactor::{Core, Readiness, Stage};
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::metrics::Metrics;
use crate::ping::Heartbeat;
use crate::protocol::close::CloseCode;
use crate::protocol::http::{BodyMode, Head};
use crate::proxies::Networks;
use crate::request::{Reject, RequestHead};
use crate::transport::ShardTransport;

/// A call of the program by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Entered,
    Left,
    Open,
    Message(Vec<u8>),
    Room(String, Presence),
    Close,
}

impl Told {
    pub(super) fn message(payload: impl AsRef<[u8]>) -> Self {
        Self::Message(payload.as_ref().to_vec())
    }
}

type Handler = dyn Fn(&Hub, &Session, &Told) + Send + Sync;
type Gate = dyn Fn(&RequestHead) -> Result<HandshakeAccept, Reject> + Send + Sync;
/// Called by the program for an event stream whose request it has accepted.
type Streamer = dyn Fn(&Hub, &Session) + Send + Sync;
type Route = dyn Fn(Request) -> Response + Send + Sync;

/// The settings of a world.
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) slow_consumer: SlowConsumer,
    pub(super) heartbeat: Option<Heartbeat>,
    pub(super) proxy_protocol: Option<Networks>,
    #[cfg(feature = "deflate")]
    pub(super) compression: Option<crate::compression::Compression>,
    pub(super) subscriptions: Subscriptions,
    /// Whether handlers may run on the shard's own thread.
    pub(super) adaptive_handlers: bool,
    pub(super) handler: Box<Handler>,
    pub(super) gate: Box<Gate>,
    pub(super) streamer: Box<Streamer>,
    pub(super) route: Box<Route>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            slow_consumer: SlowConsumer::Disconnect,
            heartbeat: None,
            proxy_protocol: None,
            #[cfg(feature = "deflate")]
            compression: None,
            subscriptions: Subscriptions {
                open: true,
                message: true,
                close: true,
                room: true,
                ..Subscriptions::default()
            },
            adaptive_handlers: is_adaptive(),
            handler: Box::new(|_, _, _| {}),
            gate: Box::new(|_| panic!("no gate")),
            streamer: Box::new(|_, _| panic!("no event stream")),
            route: Box::new(|_| panic!("no route")),
        }
    }
}

/// Returns the default of `adaptive_handlers`, so that all tests can run in both modes.
fn is_adaptive() -> bool {
    std::env::var("HUMPHREY_WS_ADAPTIVE").as_deref() != Ok("no")
}

/// Returns whether bytes of a client contain the header of a handshake.
fn has_key_header(bytes: &[u8]) -> bool {
    const NAME: &[u8] = b"\r\nSec-WebSocket-Key:";
    bytes.windows(NAME.len()).any(|window| window == NAME)
}

/// Sends a message from the program to a session's client.
pub(super) fn send(hub: &Hub, session: &Session, payload: impl AsRef<[u8]>) {
    let frame = Message::new(payload).frame().clone();
    let _ = hub.post(session.id, Command::Send(session.id.key(), frame), false);
}

/// A handler that echoes every message.
pub(super) fn echo(hub: &Hub, session: &Session, told: &Told) {
    if let Told::Message(payload) = told {
        send(hub, session, payload);
    }
}

/// Panics without calling the panic hook, which would print a message.
pub(super) fn panic_quietly() -> ! {
    resume_unwind(Box::new("a handler's panic"))
}

/// The program. It records its calls, and runs the closures of the test.
struct TestProgram {
    setup: Setup,
    hub: OnceLock<Weak<Hub>>,
    log: Mutex<Vec<(Key, Told)>>,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// The handshake requests that connect handlers received.
    requests: Mutex<Vec<Weak<RequestHead>>>,
    drained: AtomicBool,
}

impl TestProgram {
    fn note(&self, session: &Session, told: Told) {
        self.log.lock().unwrap().push((session.id.key(), told));
    }

    fn handle(&self, session: &Session, told: Told) {
        self.note(session, told.clone());
        let hub = self.hub.get().and_then(Weak::upgrade).unwrap();
        (self.setup.handler)(&hub, session, &told);
    }
}

impl Program for TestProgram {
    fn subscriptions(&self) -> Subscriptions {
        self.setup.subscriptions
    }

    fn entered(&self, session: &Arc<Session>) {
        self.sessions.lock().unwrap().push(session.clone());
        self.handle(session, Told::Entered);
    }

    fn left(&self, session: &Session) {
        self.note(session, Told::Left);
    }

    fn drained(&self) {
        self.drained.store(true, SeqCst);
    }

    fn emptied(&self, _: &SharedRoom) {}

    fn room(&self, session: &Arc<Session>, room: &Arc<SharedRoom>, change: Presence) {
        self.handle(session, Told::Room(room.name.to_string(), change));
    }

    fn handshake(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        (self.setup.gate)(request)
    }

    fn has_event_stream(&self, path: &str) -> bool {
        path == "/events"
    }

    fn event_stream(&self, request: &RequestHead) -> Result<HandshakeAccept, Reject> {
        match request.query() {
            "refused" => Err(Reject::new(403)),
            "panic" => panic_quietly(),
            query => Ok(HandshakeAccept {
                attachment: Some(Arc::new(())),
                user: query.strip_prefix("user=").map(str::to_owned),
                expiry: match query.strip_prefix("expires_in_ms=") {
                    Some(ms) => {
                        Expiry::at(Instant::now() + Duration::from_millis(ms.parse().unwrap()))
                    }
                    None if query == "expired" => Expiry::at_time(UNIX_EPOCH),
                    None => None,
                },
                ..HandshakeAccept::default()
            }),
        }
    }

    fn open(&self, session: &Arc<Session>, request: Option<&Arc<RequestHead>>) {
        if session.encoding == Encoding::Events {
            let hub = self.hub.get().and_then(Weak::upgrade).unwrap();
            (self.setup.streamer)(&hub, session);
            return;
        }
        let mut requests = self.requests.lock().unwrap();
        requests.extend(request.map(Arc::downgrade));
        drop(requests);
        self.handle(session, Told::Open);
    }

    fn messages(&self, session: &Arc<Session>, messages: &mut MessageRun<'_, '_>) {
        for message in messages {
            self.handle(session, Told::message(message.bytes()));
        }
    }

    fn close(&self, session: &Arc<Session>) {
        self.handle(session, Told::Close);
    }

    fn request(&self, request: Request) -> Response {
        (self.setup.route)(request)
    }

    fn refusal(&self, request: &Head) -> Option<Vec<u8>> {
        (request.path() == "/nowhere").then(|| Reject::new(404).response(BodyMode::Full))
    }

    fn guard(&self, request: &RequestHead) -> Result<(), Reject> {
        match request.path() {
            "/guarded" => Err(Reject::new(401)),
            _ => Ok(()),
        }
    }
}

/// The shard's waker.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    /// Called when it rings: while a thread puts something into the mailbox of the sleeping shard.
    listener: Mutex<Option<Box<dyn Fn() + Send>>>,
}

struct Alarm(Arc<Bell>);

impl Wake for Alarm {
    fn wake(&self) {
        self.0.rung.store(true, SeqCst);
        if let Some(listener) = &*lock(&self.0.listener) {
            listener();
        }
    }
}

struct SimClient {
    pipe: Arc<Mutex<Pipe>>,
    key: Key,
    /// Output that is not a whole frame yet.
    rest: Vec<u8>,
    /// Whether the client has sent a handshake, valid or not.
    has_sent_handshake: bool,
}

pub(super) struct World {
    pub(super) core: Option<Core<Wire>>,
    pub(super) hub: Arc<Hub>,
    program: Arc<TestProgram>,
    base: Instant,
    now: Duration,
    bell: Arc<Bell>,
    /// The time until which the shard sleeps. `None` if it sleeps until it is woken.
    asleep_until: Option<Duration>,
    clients: Vec<SimClient>,
    /// The address of the clients that connect next.
    pub(super) come_from: [u8; 4],
    /// The jobs that wait to be run.
    pub(super) jobs: Vec<Job>,
    /// The requests whose handlers are running.
    begun: Vec<Arc<RequestHead>>,
    /// The responses of which handlers are reading the next piece.
    begun_pieces: Vec<Arc<PieceTicket>>,
    /// The number of jobs, at the end of `jobs`, that the shard's own thread runs while it lends the shard out.
    lent: usize,
    pub(super) turns: usize,
}

/// The maximum number of turns without external events, after which a test fails for lack of progress.
const TURNS_MAX: usize = 100_000;

impl World {
    /// A world whose program echoes messages.
    pub(super) fn echoing(limits: Limits) -> Self {
        Self::new(Setup {
            limits,
            handler: Box::new(echo),
            ..Setup::default()
        })
    }

    pub(super) fn new(setup: Setup) -> Self {
        let settings = Settings {
            limits: setup.limits.clone(),
            slow_consumer: setup.slow_consumer,
            heartbeat: setup.heartbeat,
            shards: 1,
            // This thread never runs, so the jobs stay where the test can take them.
            handler_threads: 1,
            adaptive_handlers: setup.adaptive_handlers,
            origins: None,
            hosts: None,
            guarded: None,
            option_names: crate::option_names::OptionNames::new(),
            proxies: None,
            proxy_protocol: setup.proxy_protocol.clone(),
            #[cfg(feature = "deflate")]
            compression: setup.compression.clone(),
            #[cfg(feature = "__tls")]
            tls: None,
        };
        let program = Arc::new(TestProgram {
            setup,
            hub: OnceLock::new(),
            log: Mutex::default(),
            sessions: Mutex::default(),
            requests: Mutex::default(),
            drained: AtomicBool::default(),
        });
        let bell = Arc::<Bell>::default();
        let hub = Hub::new(
            settings,
            vec![Box::new(Alarm(bell.clone()))],
            program.clone(),
        );
        hub.jobs.queue.starting_first();
        let _ = program.hub.set(Arc::downgrade(&hub));
        let base = Instant::now();
        let core = Core::new(0, hub.clone(), program.clone(), (), wire::writer(), base);
        let mut world = Self {
            core: Some(core),
            hub,
            program,
            base,
            now: Duration::ZERO,
            bell,
            asleep_until: Some(Duration::ZERO),
            clients: Vec::new(),
            come_from: [127, 0, 0, 1],
            jobs: Vec::new(),
            begun: Vec::new(),
            begun_pieces: Vec::new(),
            lent: 0,
            turns: 0,
        };
        world.settle();
        world
    }

    pub(super) fn with_handler(
        handler: impl Fn(&Hub, &Session, &Told) + Send + Sync + 'static,
    ) -> Self {
        Self::new(Setup {
            handler: Box::new(handler),
            ..Setup::default()
        })
    }

    /// Creates a hub for the same program, with one shard for each waker. These shards never run.
    pub(super) fn hub_of(&self, wakers: Vec<Box<dyn Wake>>) -> Arc<Hub> {
        Hub::new(self.hub.settings.clone(), wakers, self.program.clone())
    }

    pub(super) fn core(&mut self) -> &mut Core<Wire> {
        self.core.as_mut().unwrap()
    }

    // ---------------------------------------------------------------------------------------------- what clients do

    /// Connects a client that sends nothing yet.
    pub(super) fn connect(&mut self) -> usize {
        self.insert(None)
    }

    /// Hands a connection over whose handshake is done.
    pub(super) fn adopt(&mut self, upgraded: Upgraded) -> usize {
        self.insert(Some(upgraded))
    }

    fn insert(&mut self, upgraded: Option<Upgraded>) -> usize {
        let (wire, pipe) = Wire::new();
        let has_sent_handshake = upgraded.is_some();
        let index = self.clients.len();
        let peer = SocketAddr::from((self.come_from, 1024 + index as u16 % 60_000));
        // Connections are inserted within a turn, as by the shard's thread.
        self.begin_turn();
        let key = self.core().conns.next_key();
        self.hub.shards[0].load.fetch_add(1, Relaxed);
        self.core().insert(wire, peer, None, upgraded);
        self.end_turn();
        self.clients.push(SimClient {
            pipe,
            key,
            rest: Vec::new(),
            has_sent_handshake,
        });
        index
    }

    /// Connects a client, answers its handshake, and runs its connect handler.
    pub(super) fn join(&mut self) -> usize {
        let client = self.connect();
        self.client_sends(client, UPGRADE);
        self.run_handlers();
        let head = self.head(client);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains(ACCEPT), "{head}");
        client
    }

    pub(super) fn joined(&mut self, clients: usize) -> Vec<usize> {
        (0..clients).map(|_| self.join()).collect()
    }

    /// Has a closure called whenever the sleeping shard is woken.
    pub(super) fn when_woken(&self, listener: impl Fn() + Send + 'static) {
        *lock(&self.bell.listener) = Some(Box::new(listener));
    }

    /// Creates rooms whose names are their numbers.
    pub(super) fn new_rooms(&self, rooms: usize) -> Vec<Arc<SharedRoom>> {
        (0..rooms)
            .map(|n| self.hub.new_room(n.to_string().into(), true))
            .collect()
    }

    pub(super) fn pipe(&self, client: usize) -> MutexGuard<'_, Pipe> {
        lock(&self.clients[client].pipe)
    }

    /// Sends bytes from a client, and lets the shard read as many as it wants.
    pub(super) fn client_sends(&mut self, client: usize, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.clients[client].has_sent_handshake |= has_key_header(bytes);
        self.pipe(client).client_sends(bytes);
        self.settle();
    }

    pub(super) fn client_says(&mut self, client: usize, payload: &str) {
        self.client_sends(client, client_text(payload));
    }

    pub(super) fn client_ends(&mut self, client: usize) {
        self.pipe(client).client_ends();
        self.settle();
    }

    pub(super) fn client_resets(&mut self, client: usize) {
        self.pipe(client).client_resets();
        self.settle();
    }

    /// Lets a client read this many further bytes.
    pub(super) fn client_reads(&mut self, client: usize, bytes: usize) {
        self.pipe(client).add_room(bytes);
        self.settle();
    }

    /// Makes a client stop reading after this many further bytes.
    pub(super) fn stall(&mut self, client: usize, room: usize) {
        self.pipe(client).set_room(room);
    }

    pub(super) fn unstall(&mut self, client: usize) {
        self.client_reads(client, usize::MAX / 4);
    }

    // --------------------------------------------------------------------------------------------- what clients got

    /// Removes and returns the head of an HTTP response from the client's output.
    pub(super) fn head(&mut self, client: usize) -> String {
        self.take_output(client);
        let rest = &mut self.clients[client].rest;
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.expect("a whole head") + 4;
        String::from_utf8(rest.drain(..end).collect()).unwrap()
    }

    /// Returns everything that a client has received since the last call.
    pub(super) fn output(&mut self, client: usize) -> Vec<u8> {
        self.take_output(client);
        std::mem::take(&mut self.clients[client].rest)
    }

    /// Collects the client's output. Checks that the refusal of a handshake names the supported version.
    fn take_output(&mut self, client: usize) {
        let output = self.pipe(client).take_output();
        let SimClient {
            rest,
            has_sent_handshake,
            ..
        } = &mut self.clients[client];
        rest.extend(output);
        let has_head = |rest: &[u8]| rest.windows(4).any(|four| four == b"\r\n\r\n");
        let is_refusal = wire::status(rest).is_some_and(|status| status >= 400);
        if *has_sent_handshake && is_refusal && has_head(rest) {
            let response = String::from_utf8_lossy(rest);
            assert!(
                response.contains("\r\nSec-WebSocket-Version: 13\r\n"),
                "{response}"
            );
        }
    }

    /// Returns the complete frames that a client has received since the last call.
    pub(super) fn frames(&mut self, client: usize) -> Vec<Frame> {
        let output = self.pipe(client).take_output();
        let rest = &mut self.clients[client].rest;
        rest.extend(output);
        parse_frames(rest)
    }

    /// Returns the frames that a client has received since the last call, and asserts that the last one is complete.
    pub(super) fn all_frames(&mut self, client: usize) -> Vec<Frame> {
        let frames = self.frames(client);
        assert_eq!(self.clients[client].rest, b"", "half a frame");
        frames
    }

    pub(super) fn is_closed(&self, client: usize) -> bool {
        self.pipe(client).closed
    }

    pub(super) fn is_finished(&self, client: usize) -> bool {
        self.pipe(client).finished
    }

    pub(super) fn key(&self, client: usize) -> Key {
        self.clients[client].key
    }

    pub(super) fn id(&self, client: usize) -> LocalId {
        LocalId {
            shard: 0,
            key: self.key(client),
        }
    }

    // ------------------------------------------------------------------------------------------ what the program does

    /// Removes and returns the recorded calls for a client.
    pub(super) fn told(&mut self, client: usize) -> Vec<Told> {
        let key = self.key(client);
        let mut log = self.program.log.lock().unwrap();
        let (own, others) = log.drain(..).partition::<Vec<_>, _>(|told| told.0 == key);
        *log = others;
        own.into_iter().map(|told| told.1).collect()
    }

    /// Removes and returns the recorded calls of handlers for a client.
    pub(super) fn handled(&mut self, client: usize) -> Vec<Told> {
        let mut told = self.told(client);
        told.retain(|told| !matches!(told, Told::Entered | Told::Left));
        told
    }

    /// Returns the number of connect handlers that received the handshake request, and the number of these requests
    /// that are still in memory.
    pub(super) fn requests(&self) -> (usize, usize) {
        let requests = self.program.requests.lock().unwrap();
        let kept = requests.iter().filter(|known| known.strong_count() > 0);
        (requests.len(), kept.count())
    }

    /// Drops the test's references to sessions, as a handler does that has stored streams.
    pub(super) fn forget_sessions(&mut self) {
        self.program.sessions.lock().unwrap().clear();
    }

    pub(super) fn session(&self, client: usize) -> Arc<Session> {
        self.find_session(client).unwrap()
    }

    pub(super) fn find_session(&self, client: usize) -> Option<Arc<Session>> {
        let key = self.key(client);
        let sessions = self.program.sessions.lock().unwrap();
        let session = sessions.iter().rfind(|session| session.id.key() == key);
        session.cloned()
    }

    pub(super) fn sends(&mut self, client: usize, payload: &str) {
        self.try_send(client, payload).unwrap();
    }

    pub(super) fn try_send(&self, client: usize, payload: &str) -> Result<(), PushError> {
        let frame = Message::new(payload).frame().clone();
        let command = Command::Send(self.key(client), frame);
        self.hub.post(self.id(client), command, false)
    }

    pub(super) fn broadcasts(&mut self, payload: impl AsRef<[u8]>) {
        self.try_broadcast(payload).unwrap();
    }

    pub(super) fn try_broadcast(&self, payload: impl AsRef<[u8]>) -> Result<bool, PushError> {
        self.hub
            .try_broadcast(Message::new(payload).frame(), Destination::default())
    }

    pub(super) fn closes(&mut self, client: usize, code: u16, reason: &str) {
        self.try_close(client, code, reason).unwrap();
    }

    pub(super) fn try_close(
        &self,
        client: usize,
        code: u16,
        reason: &str,
    ) -> Result<(), PushError> {
        let code = CloseCode::try_from(code).unwrap();
        let command = Command::Close(self.key(client), code, reason.into());
        self.hub.post(self.id(client), command, false)
    }

    /// Marks a job for a request as begun by a handler. It is run later.
    pub(super) fn begin_job(&mut self, index: usize) {
        match &mut self.jobs[index].work {
            Work::Handshake(request) | Work::EventStream(request) | Work::Guard(request) => {
                self.begun.extend(request.upgrade());
            }
            Work::Piece(ticket) => {
                let begun = ticket.upgrade().and_then(|ticket| ticket.take());
                let begun = PieceTicket::new(begun.expect("a connection waits for a piece"));
                *ticket = Arc::downgrade(&begun);
                self.begun_pieces.push(begun);
            }
            Work::Request(ticket) => *ticket = Ticket::new(*ticket.take().unwrap()),
            _ => panic!("no request"),
        }
    }

    /// Takes the first job, to be run later. If the shard's own thread ran it, the shard continues without that thread.
    pub(super) fn hold_job(&mut self) -> Job {
        self.lent = 0;
        self.jobs.remove(0)
    }

    /// Runs a job that [`hold_job`](Self::hold_job) returned.
    pub(super) fn run_held_job(&mut self, job: Job) {
        simulate(&self.hub, job, RunOn::Pool);
    }

    /// Runs one of the waiting jobs, without waking the shard afterwards.
    pub(super) fn run_job(&mut self, index: usize) {
        let lent_from = self.jobs.len() - self.lent;
        let job = self.jobs.remove(index);
        if index < lent_from {
            simulate(&self.hub, job, RunOn::Pool);
            return;
        }
        self.lent -= 1;
        let to = job.to;
        let done = simulate(&self.hub, job, RunOn::Shard);
        let now = self.base + self.now;
        self.core().job_done(to, done, Duration::ZERO, now);
        // The shard's thread takes the shard back, and continues.
        self.asleep_until = Some(self.now);
    }

    /// Runs the jobs that wait now, and lets the shard process their results.
    pub(super) fn run_jobs(&mut self) {
        for _ in 0..self.jobs.len() {
            self.run_job(0);
        }
        self.hub.wake_deferred();
        self.settle();
    }

    /// Runs all jobs except those of one client, and lets the shard process their results.
    pub(super) fn run_jobs_but(&mut self, client: usize) {
        let key = self.key(client);
        let is_other = |job: &Job| job.to.is_none_or(|(_, of)| of != key);
        while let Some(index) = self.jobs.iter().position(is_other) {
            self.run_job(index);
        }
        self.hub.wake_deferred();
        self.settle();
    }

    /// Runs the shard and the handlers until neither has anything to do.
    pub(super) fn run_handlers(&mut self) {
        // This is for jobs that the test has run with `run_job`.
        self.hub.wake_deferred();
        self.settle();
        while !self.jobs.is_empty() {
            self.run_jobs();
        }
    }

    // ------------------------------------------------------------------------------------------------ time and turns

    /// Runs the shard until it sleeps.
    pub(super) fn settle(&mut self) {
        let mut turns = 0;
        while self.is_due() {
            self.turn();
            turns += 1;
            assert!(turns < TURNS_MAX, "the shard spins");
        }
    }

    /// Returns whether the shard would wake now.
    pub(super) fn is_due(&self) -> bool {
        self.core.as_ref().is_some_and(|core| !core.is_finished())
            && (self.bell.rung.load(SeqCst)
                || self.asleep_until.is_some_and(|until| until <= self.now)
                || self
                    .clients
                    .iter()
                    .any(|client| lock(&client.pipe).has_edges()))
    }

    pub(super) fn turn(&mut self) {
        self.begin_turn();
        self.end_turn();
    }

    /// Runs a turn that takes this time.
    pub(super) fn turn_of(&mut self, took: Duration) {
        self.begin_turn();
        self.now += took;
        self.end_turn();
    }

    pub(super) fn begin_turn(&mut self) {
        self.turns += 1;
        self.bell.rung.store(false, SeqCst);
        let now = self.base + self.now;
        self.core().collect(now);
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            let key = client.key;
            let mut pipe = lock(&client.pipe);
            let edges = pipe.take_edges();
            let reports = edges.any() && !pipe.closed;
            drop(pipe);
            if reports {
                let readiness = Readiness {
                    readable: edges.readable,
                    hangup: edges.hangup,
                    writable: edges.writable,
                };
                self.core().ready(key.token().unwrap(), readiness);
            }
        }
    }

    pub(super) fn end_turn(&mut self) {
        let now = self.base + self.now;
        assert!(self.core().take_arrivals().is_empty());
        self.core().turn();
        // If handlers of the last turn still run, the shard has been handed to its spare thread.
        self.lent = 0;
        while let Some((job, started)) = self.hub.jobs.queue.take(now, false) {
            assert_eq!(started, 0);
            self.push_job(job);
        }
        if self.core().runs_inline() {
            while let Some(job) = self.core().next_job() {
                self.push_job(job);
                self.lent += 1;
            }
        }
        self.check();
        let wait = self.core().wait(now);
        self.core().check_timers(now, wait);
        self.asleep_until = wait.map(|wait| self.now + wait);
    }

    fn push_job(&mut self, job: Job) {
        let is_second = job.to.is_some() && self.jobs.iter().any(|other| other.to == job.to);
        assert!(!is_second, "two jobs of one connection at once");
        self.jobs.push(job);
    }

    /// Returns the time since the start.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// Returns how long the shard will sleep. `None` if it sleeps until it is woken.
    pub(super) fn sleeps(&self) -> Option<Duration> {
        self.asleep_until
            .map(|until| until.saturating_sub(self.now))
    }

    /// Advances the time. The shard wakes at each deadline that it has set.
    pub(super) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        let mut turns = 0;
        self.settle();
        while let Some(next) = self.asleep_until.filter(|&next| next <= until)
            && self.core.as_ref().is_some_and(|core| !core.is_finished())
        {
            self.now = self.now.max(next);
            self.settle();
            turns += 1;
            assert!(turns < TURNS_MAX, "the shard spins");
        }
        self.now = until;
    }

    /// Advances the time during a turn of the shard.
    pub(super) fn skip_ms(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Advances the time as if the process were suspended. Then the shard wakes, if a deadline has passed.
    pub(super) fn stand_still(&mut self, by: Duration) {
        self.now += by;
        self.settle();
    }

    /// Returns the number of sessions with an expiry.
    pub(super) fn expiries(&self) -> usize {
        self.hub.shards[0].expiries.keys().len()
    }

    /// Returns the expiry that is this many milliseconds from now.
    pub(super) fn expiry_in_ms(&self, ms: u64) -> Option<Expiry> {
        Expiry::at(self.base + self.now + Duration::from_millis(ms))
    }

    pub(super) fn advance_ms(&mut self, ms: u64) {
        self.advance(Duration::from_millis(ms));
    }

    // ----------------------------------------------------------------------------------------------- invariants

    /// Asserts that the counters of the shard match its state.
    fn check(&mut self) {
        let (load, members) = (
            self.hub.shards[0].load.load(Relaxed),
            self.hub.shards[0].members.load(SeqCst),
        );
        let mut heads = 0;
        let mut reached = 0;
        let mut congested = 0;
        let mut waiting = 0;
        let mut own_bytes = 0;
        let (mut blocked, mut held_back, mut unfinished) = (0, 0, 0);
        let mut requests = 0;
        let mut of_users = 0;
        let limits = self.hub.settings.limits.clone();
        let core = self.core.as_ref().unwrap();
        for key in core.conns.keys() {
            let conn = core.conns.get(key);
            let transport = conn.and_then(|conn| conn.socket.transport.as_ref());
            let pending = transport.map_or(0, ShardTransport::pending_bytes);
            match conn.map(|conn| &conn.stage) {
                Some(Stage::Http(http)) => {
                    heads += usize::from(http.is_queued());
                    own_bytes += http.response_bytes();
                    blocked += http.blocked_bytes();
                    let (counted, held) = http.request_bytes();
                    assert_eq!(counted, held, "what an HTTP connection holds of requests");
                    requests += held;
                }
                Some(Stage::WebSocket(ws)) => {
                    assert_eq!(ws.outbox.own_bytes(), ws.outbox.held_by_chunks());
                    assert_eq!(ws.held_back_indexed(), ws.held_back_bytes(&limits));
                    let own = ws.outbox.own_bytes() + pending;
                    if ws.is_blocked() || pending > 0 {
                        assert_eq!(ws.blocked_bytes(), own);
                    }
                    blocked += ws.blocked_bytes();
                    held_back += ws.held_back_indexed() + ws.held_input_bytes();
                    unfinished += ws.unfinished_bytes();
                    reached += usize::from(ws.is_of_everyone());
                    congested += usize::from(ws.congested);
                    waiting += ws.outbox.messages();
                    ws.owns_memory();
                    own_bytes += own;
                    of_users += usize::from(!ws.has_departed() && ws.session.user().is_some());
                }
                Some(Stage::Lingering(_)) | None => {}
            }
        }
        assert_eq!(
            core.cx.handshake_queue.waiting(),
            heads,
            "connections that wait for a head"
        );
        assert_eq!(core.cx.fanout.congested, congested, "congested members");
        let counted = core.cx.fanout.unshared_bytes();
        assert_eq!(counted, own_bytes, "bytes that wait for one client alone");
        assert_eq!(core.cx.fanout.blocked.sum(), blocked, "of blocked clients");
        assert_eq!(
            core.cx.receive_budget.held_back.sum(),
            held_back,
            "held back"
        );
        assert_eq!(
            core.cx.receive_budget.unfinished.sum(),
            unfinished,
            "unfinished"
        );
        assert_eq!(core.cx.requests.held(), requests, "of requests");
        assert_eq!(members, reached, "members");
        assert_eq!(self.hub.users.counted().1, of_users, "connections of users");
        assert_eq!(load, core.conns.len(), "connections");
        let due = core.cx.fanout.due;
        let metrics = self.metrics();
        let dropped = metrics.dropped.slow_consumer + metrics.dropped.closed;
        assert_eq!(
            metrics.messages_out + dropped + metrics.conflated + waiting,
            due,
            "messages written, dropped, conflated and waiting"
        );
        assert_eq!(
            metrics.delivery_delays.count(),
            metrics.messages_out,
            "each message written has a delay"
        );
    }

    pub(super) fn metrics(&self) -> Metrics {
        let mut sum = Metrics::default();
        self.hub.add_common_metrics(&mut sum);
        self.hub.add_shard_metrics(&mut sum);
        sum
    }

    /// Returns the bytes that are queued for a client.
    pub(super) fn waiting_bytes(&mut self, client: usize) -> usize {
        let key = self.key(client);
        let core = self.core();
        let conn = core.conns.get(key);
        match conn.map(|conn| &conn.stage) {
            Some(Stage::WebSocket(ws)) => ws.outbox.bytes(),
            _ => 0,
        }
    }

    /// Returns the bytes that are queued for this client only.
    pub(super) fn unshared_bytes(&mut self, client: usize) -> usize {
        let key = self.key(client);
        let core = self.core();
        let conn = core.conns.get(key);
        match conn.map(|conn| &conn.stage) {
            Some(Stage::WebSocket(ws)) => ws.outbox.unshared_bytes(),
            _ => 0,
        }
    }

    /// Returns the memory of the bytes that are queued for a client.
    #[cfg(test)]
    pub(super) fn kept_bytes(&mut self, client: usize) -> usize {
        let key = self.key(client);
        let core = self.core();
        let conn = core.conns.get_mut(key);
        match conn.map(|conn| &mut conn.stage) {
            Some(Stage::WebSocket(ws)) => ws.outbox.kept_bytes(),
            _ => 0,
        }
    }

    pub(super) fn conns(&mut self) -> usize {
        self.core().conns.len()
    }

    /// Asserts that no connection is left, and that the shard holds no memory of any.
    pub(super) fn assert_empty(&mut self) {
        self.run_handlers();
        assert_eq!(self.conns(), 0, "connections");
        assert_eq!(self.metrics().connections, 0, "the gauge of connections");
        assert_eq!(
            self.core().cx.receive_budget.bytes(),
            0,
            "bytes of received messages"
        );
        assert_eq!(
            self.core().cx.fanout.unshared_bytes(),
            0,
            "bytes that wait for clients"
        );
        assert_eq!(self.core().cx.requests.bytes(), 0, "bytes of requests");
        assert_eq!(self.hub.responses_bytes.load(Relaxed), 0, "responses");
        assert_eq!(self.hub.ended.load(Relaxed), 0, "ended connections");
        assert_eq!(self.hub.users.counted(), (0, 0), "users");
        assert_eq!(self.expiries(), 0, "expiries");
        self.check();
    }

    // ------------------------------------------------------------------------------------------------------- the end

    /// Stops the engine, with this timeout.
    pub(super) fn stop(&mut self, wait: Duration) {
        let deadline = self.base + self.now + wait;
        let mailbox = &self.hub.shards[0].mailbox;
        mailbox.close();
        mailbox.control(Control::Stop(deadline), When::Now);
        self.settle();
    }

    pub(super) fn drain(&mut self, over: Duration, retry_after: Duration) {
        let until = self.base + self.now + over;
        let drain = Control::Drain { until, retry_after };
        self.hub.shards[0].mailbox.control(drain, When::Now);
        self.settle();
    }

    /// Returns whether the program was told that a drain is over.
    pub(super) fn is_drained(&self) -> bool {
        self.program.drained.load(SeqCst)
    }

    /// Returns whether the shard's thread would end now.
    pub(super) fn has_stopped(&mut self) -> bool {
        self.core().is_finished()
    }

    /// Ends the shard as its thread does.
    pub(super) fn finish(&mut self) {
        let now = self.base + self.now;
        self.core.take().unwrap().finish();
        self.lent = 0;
        while let Some((job, _)) = self.hub.jobs.queue.take(now, false) {
            self.jobs.push(job);
        }
        while !self.jobs.is_empty() {
            self.run_job(0);
        }
    }
}
