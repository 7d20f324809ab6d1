//! A shard's world: clients, time, and handlers that run when the test says so.
//!
//! It is one file, though a long one, because it is one type, which every test here plays with.

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
use crate::engine::model::job::{Job, Work};
use crate::engine::model::program::{HandshakeAccept, Program, Subscriptions};
use crate::engine::model::request::{PieceTicket, Request, Response, Ticket};
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
use crate::engine::model::settings::Settings;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::expiry::Expiry;
use crate::engine::parts::id::{ConnectionId, Key};
use crate::engine::parts::mailbox::{PushError, Wake, When};
use crate::engine::reactor::{Core, Readiness, Stage};
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::metrics::Metrics;
use crate::ping::Heartbeat;
use crate::protocol::close::CloseCode;
use crate::protocol::http::{BodyMode, Head};
use crate::request::{Reject, RequestHead};

/// What the program was told.
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
/// What the program does for an event stream whose request it has granted.
type Streamer = dyn Fn(&Hub, &Session) + Send + Sync;
type Route = dyn Fn(Request) -> Response + Send + Sync;

/// How a world is to be.
pub(super) struct Setup {
    pub(super) limits: Limits,
    pub(super) slow_consumer: SlowConsumer,
    pub(super) heartbeat: Option<Heartbeat>,
    #[cfg(feature = "deflate")]
    pub(super) compression: Option<crate::compression::Compression>,
    pub(super) subscriptions: Subscriptions,
    /// Handlers run on the shard's own thread, as far as it gets.
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

/// Whether worlds have it so: what must hold, must hold both ways.
fn is_adaptive() -> bool {
    std::env::var("HUMPHREY_WS_ADAPTIVE").as_deref() != Ok("no")
}

/// A message from the program to a session's client.
fn has_key_header(bytes: &[u8]) -> bool {
    const NAME: &[u8] = b"\r\nSec-WebSocket-Key:";
    bytes.windows(NAME.len()).any(|window| window == NAME)
}

pub(super) fn send(hub: &Hub, session: &Session, payload: impl AsRef<[u8]>) {
    let frame = Message::new(payload).frame().clone();
    let _ = hub.post(session.id, Command::Send(session.id.key(), frame), false);
}

/// Every message comes back.
pub(super) fn echo(hub: &Hub, session: &Session, told: &Told) {
    if let Told::Message(payload) = told {
        send(hub, session, payload);
    }
}

/// A handler's panic, without the noise.
pub(super) fn panic_quietly() -> ! {
    resume_unwind(Box::new("a handler's panic"))
}

/// The program: records what it is told, and does what the test wants.
struct TestProgram {
    setup: Setup,
    hub: OnceLock<Weak<Hub>>,
    log: Mutex<Vec<(Key, Told)>>,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// Those that sessions began with, as connect handlers got them.
    requests: Mutex<Vec<Weak<RequestHead>>>,
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
        self.note(session, Told::Entered);
    }

    fn left(&self, session: &Session) {
        self.note(session, Told::Left);
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

    fn message(&self, session: &Arc<Session>, message: Message) {
        self.handle(session, Told::message(message.bytes()));
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
struct Alarm(Arc<AtomicBool>);

impl Wake for Alarm {
    fn wake(&self) {
        self.0.store(true, SeqCst);
    }
}

struct SimClient {
    pipe: Arc<Mutex<Pipe>>,
    key: Key,
    /// Output that is not a whole frame yet.
    rest: Vec<u8>,
    /// Whether the client has sent a handshake, or what looks like one.
    has_sent_handshake: bool,
}

pub(super) struct World {
    pub(super) core: Option<Core<Wire>>,
    pub(super) hub: Arc<Hub>,
    program: Arc<TestProgram>,
    base: Instant,
    now: Duration,
    rung: Arc<AtomicBool>,
    /// Until when the shard sleeps; none: until it is woken.
    asleep_until: Option<Duration>,
    clients: Vec<SimClient>,
    /// The address of clients that come from now on.
    pub(super) come_from: [u8; 4],
    /// Handed over, and not run yet.
    pub(super) jobs: Vec<Job>,
    /// Requests that handlers are at work for.
    begun: Vec<Arc<RequestHead>>,
    /// Responses of which handlers read the next piece.
    begun_pieces: Vec<Arc<PieceTicket>>,
    /// Those of them that the shard's own thread runs, and whose shard has not gone on without it.
    lent: usize,
    pub(super) turns: usize,
}

/// More turns without anything from outside are no progress.
const TURNS_MAX: usize = 100_000;

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let settings = Settings {
            limits: setup.limits.clone(),
            slow_consumer: setup.slow_consumer,
            heartbeat: setup.heartbeat,
            shards: 1,
            // One, which never comes: so the jobs stay where the test can take them.
            handler_threads: 1,
            adaptive_handlers: setup.adaptive_handlers,
            origins: None,
            hosts: None,
            guarded: None,
            option_names: crate::option_names::OptionNames::new(),
            proxies: None,
            #[cfg(feature = "deflate")]
            compression: setup.compression.clone(),
        };
        let program = Arc::new(TestProgram {
            setup,
            hub: OnceLock::new(),
            log: Mutex::default(),
            sessions: Mutex::default(),
            requests: Mutex::default(),
        });
        let rung = Arc::new(AtomicBool::new(false));
        let hub = Hub::new(
            settings,
            vec![Box::new(Alarm(rung.clone()))],
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
            rung,
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

    /// A hub of so many shards as there are wakers, for the same program. Nobody turns them.
    pub(super) fn hub_of(&self, wakers: Vec<Box<dyn Wake>>) -> Arc<Hub> {
        Hub::new(self.hub.settings.clone(), wakers, self.program.clone())
    }

    pub(super) fn core(&mut self) -> &mut Core<Wire> {
        self.core.as_mut().unwrap()
    }

    // ---------------------------------------------------------------------------------------------- what clients do

    /// A client connects, and says nothing yet.
    pub(super) fn connect(&mut self) -> usize {
        self.insert(None)
    }

    /// A connection is handed over whose handshake is done.
    pub(super) fn adopt(&mut self, upgraded: Upgraded) -> usize {
        self.insert(Some(upgraded))
    }

    fn insert(&mut self, upgraded: Option<Upgraded>) -> usize {
        let (wire, pipe) = Wire::new();
        let has_sent_handshake = upgraded.is_some();
        let index = self.clients.len();
        let peer = SocketAddr::from((self.come_from, 1024 + index as u16 % 60_000));
        // In the midst of a turn, as the shard's thread does.
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

    /// A client connects, has its handshake answered and its connect handler run.
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

    pub(super) fn pipe(&self, client: usize) -> MutexGuard<'_, Pipe> {
        lock(&self.clients[client].pipe)
    }

    /// A client sends; the shard takes it in as far as it wants.
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

    /// A client reads so many bytes more.
    pub(super) fn client_reads(&mut self, client: usize, bytes: usize) {
        self.pipe(client).add_room(bytes);
        self.settle();
    }

    /// A client reads nothing from now on, beyond so many bytes.
    pub(super) fn stall(&mut self, client: usize, room: usize) {
        self.pipe(client).set_room(room);
    }

    pub(super) fn unstall(&mut self, client: usize) {
        self.client_reads(client, usize::MAX / 4);
    }

    // --------------------------------------------------------------------------------------------- what clients got

    /// The head of an HTTP response.
    pub(super) fn head(&mut self, client: usize) -> String {
        self.take_output(client);
        let rest = &mut self.clients[client].rest;
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.expect("a whole head") + 4;
        String::from_utf8(rest.drain(..end).collect()).unwrap()
    }

    /// Everything that a client got since.
    pub(super) fn output(&mut self, client: usize) -> Vec<u8> {
        self.take_output(client);
        std::mem::take(&mut self.clients[client].rest)
    }

    /// Collects the client's output. The refusal of a handshake must name the supported version (RFC 6455 §4.2.2).
    fn take_output(&mut self, client: usize) {
        let output = self.pipe(client).take_output();
        let SimClient {
            rest,
            has_sent_handshake,
            ..
        } = &mut self.clients[client];
        rest.extend(output);
        if *has_sent_handshake && wire::status(rest).is_some_and(|status| status >= 400) {
            let response = String::from_utf8_lossy(rest);
            assert!(
                response.contains("\r\nSec-WebSocket-Version: 13\r\n"),
                "{response}"
            );
        }
    }

    /// The whole frames that a client got since.
    pub(super) fn frames(&mut self, client: usize) -> Vec<Frame> {
        let output = self.pipe(client).take_output();
        let rest = &mut self.clients[client].rest;
        rest.extend(output);
        parse_frames(rest)
    }

    /// The same, which must be all that it got.
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

    pub(super) fn id(&self, client: usize) -> ConnectionId {
        ConnectionId {
            shard: 0,
            key: self.key(client),
        }
    }

    // ------------------------------------------------------------------------------------------ what the program does

    /// What it was told of a client, and not asked for yet.
    pub(super) fn told(&mut self, client: usize) -> Vec<Told> {
        let key = self.key(client);
        let mut log = self.program.log.lock().unwrap();
        let (own, others) = log.drain(..).partition::<Vec<_>, _>(|told| told.0 == key);
        *log = others;
        own.into_iter().map(|told| told.1).collect()
    }

    /// The same, as far as handlers were told.
    pub(super) fn handled(&mut self, client: usize) -> Vec<Told> {
        let mut told = self.told(client);
        told.retain(|told| !matches!(told, Told::Entered | Told::Left));
        told
    }

    /// How many connect handlers have got the request that their session began with, and how many of those are kept.
    pub(super) fn requests(&self) -> (usize, usize) {
        let requests = self.program.requests.lock().unwrap();
        let kept = requests.iter().filter(|known| known.strong_count() > 0);
        (requests.len(), kept.count())
    }

    /// The test lets go of the sessions that it knows, as a handler that has kept them.
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

    /// A handler begins with a job that asks for an answer to a request, and takes its time: it is run later.
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

    /// A job that was handed over, and is to last: also where it was the shard's own, which then goes on without it.
    pub(super) fn hold_job(&mut self) -> Job {
        self.lent = 0;
        self.jobs.remove(0)
    }

    /// Runs a job that was held.
    pub(super) fn run_held_job(&mut self, job: Job) {
        simulate(&self.hub, job, RunOn::Pool);
    }

    /// Runs one of the jobs that were handed over. The shard is not woken for it yet.
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
        // Its thread goes on with it.
        self.asleep_until = Some(self.now);
    }

    /// Runs what is handed over now, and lets the shard take in the outcome.
    pub(super) fn run_jobs(&mut self) {
        for _ in 0..self.jobs.len() {
            self.run_job(0);
        }
        self.hub.wake_deferred();
        self.settle();
    }

    /// Runs what is handed over now, but nothing of that client.
    pub(super) fn run_jobs_but(&mut self, client: usize) {
        let key = self.key(client);
        let is_other = |job: &Job| job.to.is_none_or(|(_, of)| of != key);
        while let Some(index) = self.jobs.iter().position(is_other) {
            self.run_job(index);
        }
        self.hub.wake_deferred();
        self.settle();
    }

    /// Lets shard and handlers go on until both have nothing more to do.
    pub(super) fn run_handlers(&mut self) {
        // Of jobs that ran one by one.
        self.hub.wake_deferred();
        self.settle();
        while !self.jobs.is_empty() {
            self.run_jobs();
        }
    }

    // ------------------------------------------------------------------------------------------------ time and turns

    /// Lets the shard turn until it sleeps for good, or until its next deadline.
    pub(super) fn settle(&mut self) {
        let mut turns = 0;
        while self.is_due() {
            self.turn();
            turns += 1;
            assert!(turns < TURNS_MAX, "the shard spins");
        }
    }

    /// Whether the shard would wake now.
    pub(super) fn is_due(&self) -> bool {
        self.core.as_ref().is_some_and(|core| !core.is_finished())
            && (self.rung.load(SeqCst)
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

    fn begin_turn(&mut self) {
        self.turns += 1;
        self.rung.store(false, SeqCst);
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

    fn end_turn(&mut self) {
        let now = self.base + self.now;
        assert!(self.core().take_arrivals().is_empty());
        self.core().turn();
        // Handlers of the last turn that still run: the shard has gone on without their thread.
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

    /// How long the shard sleeps; none: until it is woken.
    pub(super) fn sleeps(&self) -> Option<Duration> {
        self.asleep_until
            .map(|until| until.saturating_sub(self.now))
    }

    /// Time goes by; the shard wakes whenever it asked to.
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

    /// Time goes by while the shard is at work.
    pub(super) fn skip_ms(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Time goes by, and the shard does not run: its process is stopped. Then it wakes, if it would have.
    pub(super) fn stand_still(&mut self, by: Duration) {
        self.now += by;
        self.settle();
    }

    /// How many sessions expire.
    pub(super) fn expiries(&self) -> usize {
        self.hub.shards[0].expiries.keys().len()
    }

    /// The moment when a session expires that has so long to live.
    pub(super) fn expiry_in_ms(&self, ms: u64) -> Option<Expiry> {
        Expiry::at(self.base + self.now + Duration::from_millis(ms))
    }

    pub(super) fn advance_ms(&mut self, ms: u64) {
        self.advance(Duration::from_millis(ms));
    }

    // ----------------------------------------------------------------------------------------------- what must hold

    /// What the shard keeps count of is what there is.
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
            match core.conns.get(key).map(|conn| &conn.stage) {
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
                    if ws.is_blocked() {
                        assert_eq!(ws.blocked_bytes(), ws.outbox.own_bytes());
                    }
                    blocked += ws.blocked_bytes();
                    held_back += ws.held_back_indexed();
                    unfinished += ws.unfinished_bytes();
                    reached += usize::from(ws.is_of_everyone());
                    congested += usize::from(ws.congested);
                    waiting += ws.outbox.messages();
                    ws.owns_memory();
                    own_bytes += ws.outbox.own_bytes();
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
            metrics.messages_out + dropped + waiting,
            due,
            "messages written, dropped and waiting"
        );
    }

    pub(super) fn metrics(&self) -> Metrics {
        let mut sum = Metrics::default();
        self.hub.add_common_metrics(&mut sum);
        self.hub.add_shard_metrics(&mut sum);
        sum
    }

    /// Bytes that wait for a client.
    pub(super) fn waiting_bytes(&mut self, client: usize) -> usize {
        let key = self.key(client);
        let core = self.core();
        let conn = core.conns.get(key);
        match conn.map(|conn| &conn.stage) {
            Some(Stage::WebSocket(ws)) => ws.outbox.bytes(),
            _ => 0,
        }
    }

    /// Bytes that wait for a client and for nobody else.
    pub(super) fn unshared_bytes(&mut self, client: usize) -> usize {
        let key = self.key(client);
        let core = self.core();
        let conn = core.conns.get(key);
        match conn.map(|conn| &conn.stage) {
            Some(Stage::WebSocket(ws)) => ws.outbox.unshared_bytes(),
            _ => 0,
        }
    }

    /// The memory that is kept for them.
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

    /// Nobody is left, and nothing of them.
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

    /// The engine is told to stop, and to be done in so long.
    pub(super) fn stop(&mut self, wait: Duration) {
        let deadline = self.base + self.now + wait;
        let mailbox = &self.hub.shards[0].mailbox;
        mailbox.close();
        mailbox.control(Control::Stop(deadline), When::Now);
        self.settle();
    }

    /// Whether the shard's thread would end.
    pub(super) fn has_stopped(&mut self) -> bool {
        self.core().is_finished()
    }

    /// The shard's thread ends.
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
