//! A shard without its thread and its poll, as one owned value that can be moved.
//!
//! All of a shard's work in progress is in here, and none on a thread's stack. Readiness, time and transports are
//! arguments, so tests run a shard without a socket.
//!
//! A turn, in order. Each step has a bound, so none starves another:
//!
//! ```text
//! ready      1  readiness       records which sockets can be read, and which have room again
//! collect    2  clock           the time of this turn; whether its jobs run on the shard's own thread
//!            3  commands        commands from the mailbox are delivered: messages, joins, closes
//!            4  inline results  outcomes of jobs that the shard's own thread has run
//!            5  control         outcomes of other threads' jobs; stop; new connections are set aside
//! insert     6  new connections those set aside, and those that the listener has accepted
//! turn       7  reads           parked messages are inflated, then paused connections are read, then readable ones
//!            8  timers          and sessions that have expired
//!            9  drain, stop     connections whose turn it is are closed; all are, if the engine stops and everything is delivered
//!           10  jobs out        handlers begin while the shard writes
//!           11  batches out     broadcasts of this turn, one write per member
//!           12  dirty outboxes  and evicted connections, a few at a time
//!           13  jobs out        jobs that the writes have caused
//!           14  inspections     a part of the connections is looked at
//! wait          how long the thread may sleep
//! ```
//!
//! A connection is looked up once per event, in `conn`, and passed on with the rest of the shard ([`ConnCx`]). An event of
//! one connection never changes another: effects on others are queued in [`ShardCx`], or counted in a budget that
//! [`Core`] enforces after the event (`enforce_receive_budget`, `enforce_request_budget`, `enforce_send_budget`).

pub(crate) mod arrivals;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod audit;
mod conn;
mod conn_cx;
mod draining;
pub(crate) mod event_streams;
pub(crate) mod fanout;
pub(crate) mod http;
pub(crate) mod inline_jobs;
pub(crate) mod inspecting;
mod opening;
mod read_budget;
pub(crate) mod receive_budget;
pub(crate) mod rooms;
mod stop;
mod tls;
pub(crate) mod websocket;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

pub(crate) use self::conn::{Conn, Stage};
pub(crate) use self::conn_cx::{ConnCx, Reader, Readiness};
use self::draining::Draining;
use self::read_budget::ReadBudget;
pub(crate) use self::stop::Stop;
use crate::engine::hub::{Hub, ShardHandle};
use crate::engine::model::command::{Control, NewConnection, Upgraded};
use crate::engine::model::job::{Done, Job, Work};
use crate::engine::model::program::{Program, Subscriptions};
use crate::engine::parts::bursts::Bursts;
use crate::engine::parts::id::Key;
use crate::engine::parts::inline_policy::InlinePolicy;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::engine::parts::slab::Slab;
use crate::engine::parts::timers::{Tick, Timers};
use crate::engine::reactor::arrivals::Arrivals;
use crate::engine::reactor::conn_cx::Socket;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::http::handshake_queue::HandshakeQueue;
use crate::engine::reactor::http::{Http, Requests};
use crate::engine::reactor::inspecting::Inspections;
use crate::engine::reactor::receive_budget::ReceiveBudget;
use crate::engine::reactor::websocket::WebSocket;
#[cfg(feature = "deflate")]
use crate::engine::reactor::websocket::inflating::Inflations;
use crate::engine::reactor::websocket::rate_account::ReceiveRates;
use crate::metrics::Counters;
use crate::report::limited;
use crate::transport::ShardTransport;

/// Most bytes read from one connection at a time, into a buffer that a shard's connections share. A connection with
/// more waits for the next turn. As much as one write sends, so that what arrives together can leave together.
pub(crate) const READ_BYTES: usize = 128 << 10;

/// The maximum number of expired sessions closed in one turn, so that thousands of them do not delay other connections.
pub(crate) const EXPIRED_PER_TURN: usize = 1_024;

/// Evicted connections that are written to in one turn.
pub(crate) const EVICTED_PER_TURN: usize = 32;

/// The maximum capacity of a list of keys that is kept for the next turn.
const SPARE_KEYS_MAX: usize = 4096;

/// A shard: its connections, and the rest of its state.
pub(crate) struct Core<T: ShardTransport> {
    pub(crate) conns: Slab<Conn<T>>,
    pub(crate) cx: ShardCx<T>,
    registry: T::Registry,
    /// The memory of a list of keys, for the next one.
    spare_keys: Vec<Key>,
    controls: Vec<Control>,
    take_arrivals: Vec<NewConnection>,
    /// Whether a connection was closed, so that accepting may work again.
    accept_again: bool,
    inspections: Inspections,
}

/// A shard without its connections: the context that all of their events share.
pub(crate) struct ShardCx<T: ShardTransport> {
    pub(crate) index: u16,
    pub(crate) hub: Arc<Hub>,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) program: Arc<dyn Program>,
    /// Writes to many connections.
    pub(crate) writer: T::Writer,
    pub(crate) timers: Timers,
    /// When this turn began.
    pub(crate) now: Instant,
    pub(crate) tick: Tick,
    /// Connections to read from in this turn.
    pub(crate) readable: Vec<Key>,
    /// Connections with something to write at the end of this turn.
    pub(crate) dirty: Vec<Key>,
    /// Evicted connections with something to write, longest evicted first.
    pub(crate) evicted: VecDeque<Key>,
    /// Jobs for the handlers, given to them at the end of this turn.
    pub(crate) jobs: VecDeque<Job>,
    /// Whether jobs run on the shard's own thread. Those that it does not get to run go to the pool.
    pub(crate) runs_inline: bool,
    pub(crate) inline_policy: InlinePolicy,
    /// The outcomes of jobs that ran on the shard's own thread.
    pub(crate) inline_results: Vec<(Key, Done)>,
    pub(crate) fanout: Fanout,
    /// Whether producers wake the shard before they have sent all.
    pub(crate) bursts: Bursts,
    pub(crate) receive_budget: ReceiveBudget,
    /// The rate limits for what clients send, if there are any.
    pub(crate) receive_rates: Option<ReceiveRates>,
    /// If clients that exceed these are disconnected, rather than delayed.
    pub(crate) arrivals: Option<Arrivals>,
    #[cfg(feature = "deflate")]
    pub(crate) inflations: Inflations,
    pub(crate) requests: Requests,
    pub(crate) handshake_queue: HandshakeQueue,
    read_budget: ReadBudget,
    pub(crate) read_buffer: Box<[u8]>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) stop: Stop,
    /// The connections are being closed, since the engine will stop.
    pub(crate) draining: Option<Draining>,
}

impl<T: ShardTransport> Core<T> {
    pub(crate) fn new(
        index: u16,
        hub: Arc<Hub>,
        program: Arc<dyn Program>,
        registry: T::Registry,
        writer: T::Writer,
        now: Instant,
    ) -> Self {
        let timers = Timers::new(now);
        let (limits, shards) = (&hub.settings.limits, hub.shards.len());
        let cx = ShardCx {
            index,
            subscriptions: program.subscriptions(),
            program,
            writer,
            tick: timers.now(now),
            timers,
            now,
            readable: Vec::new(),
            dirty: Vec::new(),
            evicted: VecDeque::new(),
            jobs: VecDeque::new(),
            runs_inline: false,
            inline_policy: InlinePolicy::new(now),
            inline_results: Vec::new(),
            fanout: Fanout::new(&hub.settings),
            bursts: Bursts::default(),
            receive_budget: ReceiveBudget::new(limits, shards),
            receive_rates: ReceiveRates::new(limits),
            arrivals: ReceiveRates::new(limits)
                .filter(|rates| !rates.delays())
                .map(|_| Arrivals::new(now)),
            #[cfg(feature = "deflate")]
            inflations: Inflations::new(),
            requests: Requests::new(limits, shards),
            handshake_queue: HandshakeQueue::new(limits, shards),
            read_budget: ReadBudget::default(),
            read_buffer: vec![0; READ_BYTES].into(),
            scratch: Vec::new(),
            stop: Stop::Running,
            draining: None,
            hub,
        };
        Self {
            conns: Slab::new(),
            cx,
            registry,
            spare_keys: Vec::new(),
            controls: Vec::new(),
            take_arrivals: Vec::new(),
            accept_again: false,
            inspections: Inspections::default(),
        }
    }

    // ------------------------------------------------------------------------------------------------- 1: readiness

    /// Records a connection's readiness, by the token it was registered with. The connection may have ended since.
    pub(crate) fn ready(&mut self, token: usize, readiness: Readiness) {
        let Readiness {
            readable,
            hangup,
            writable,
        } = readiness;
        let Some((key, conn)) = self.conns.by_token_mut(token) else {
            return;
        };
        let socket = &mut conn.socket;
        if readable || hangup {
            socket.readable = true;
            socket.hangup |= hangup;
            if !socket.queued {
                socket.queued = true;
                self.cx.readable.push(key);
            }
        }
        if !writable {
            return;
        }
        let has_pending = socket.transport.as_ref().is_some_and(T::has_pending);
        if has_pending && let Some(transport) = &mut socket.transport {
            transport.flush();
        }
        if let Stage::WebSocket(ws) = &mut conn.stage {
            ws.unblocked();
            if has_pending {
                // An evicted connection may wait for its turn to be written to.
                self.cx.fanout.note_unshared(ws, socket.transport.as_ref());
            }
            // Every report says that the socket is writable, but usually nothing waits.
            if ws.outbox.is_empty() && !has_pending {
                return;
            }
            if ws.is_evicted() && !socket.dirty {
                socket.dirty = true;
                self.cx.evicted.push_back(key);
            }
        }
        if !socket.dirty {
            socket.dirty = true;
            self.cx.dirty.push(key);
        }
    }

    // --------------------------------------------------------------------------------------------- 2 to 5: collect

    /// Begins a turn with the commands and outcomes of other threads. Messages are delivered before the outcome of the
    /// handlers that sent them.
    pub(crate) fn collect(&mut self, now: Instant) {
        self.begin_turn(now);
        self.take_commands();
        self.take_inline_results();
        self.take_control();
        // Verdicts and outcomes may have made clients read on.
        self.enforce_receive_budget();
        self.enforce_request_budget();
    }

    /// The connections that may still be accepted before the shard waits for events.
    pub(crate) fn accepts_left(&mut self) -> &mut u32 {
        &mut self.cx.read_budget.accepts
    }

    fn begin_turn(&mut self, now: Instant) {
        let cx = &mut self.cx;
        cx.now = now;
        cx.timers.advance(now);
        cx.tick = cx.timers.now(now);
        cx.runs_inline = cx.hub.settings.adaptive_handlers
            && cx.inline_policy.is_quick(now, || cx.hub.jobs.is_slow());
        if let Some(arrivals) = &mut cx.arrivals {
            arrivals.begin_turn(now);
        }
        cx.count_pace();
        cx.read_budget.begin_turn(now);
        #[cfg(feature = "deflate")]
        cx.inflations.begin_turn();
    }

    /// Takes commands unless producers are paced, and control messages always.
    fn take_commands(&mut self) {
        let cx = &mut self.cx;
        let mailbox = &cx.hub.shards[usize::from(cx.index)].mailbox;
        let wants_data = cx.fanout.wants_commands();
        let data = wants_data.then_some(&mut cx.fanout.commands);
        let pushed = mailbox.take(data, &mut self.controls);
        cx.fanout.taken(pushed);
        if wants_data {
            cx.bursts.took(cx.fanout.commands.len(), cx.now);
        }
        self.deliver_commands();
    }

    fn take_inline_results(&mut self) {
        let mut inline_results = std::mem::take(&mut self.cx.inline_results);
        for (key, done) in inline_results.drain(..) {
            self.done(key, done);
        }
        self.cx.inline_results = inline_results;
    }

    /// Processes the outcome of a job.
    fn done(&mut self, key: Key, mut done: Done) {
        self.cx.settle_accounts(&mut done);
        let is_session = matches!(done, Done::Session { .. });
        let is_last = self.with(key, |stage, cx| match (stage, done) {
            (
                Stage::WebSocket(ws),
                Done::Session {
                    panicked,
                    unhandled,
                    ..
                },
            ) if !ws.has_departed() => {
                ws.batch_done(cx, panicked, unhandled);
                false
            }
            (_, Done::Session { .. }) => true,
            (Stage::Http(http), Done::Request(Some((response, _)))) => {
                http.respond(cx, response);
                false
            }
            (Stage::Http(http), Done::Piece(piece)) => {
                http.on_piece(cx, piece);
                false
            }
            (Stage::Http(http), Done::Handshake(answer)) => {
                http.on_verdict(cx, *answer);
                false
            }
            // The connection no longer waits for this outcome.
            (_, Done::Request(_) | Done::Piece(_) | Done::Handshake(_)) => false,
        });
        if is_last.unwrap_or(is_session) {
            // The end of its close handler changes nothing more.
            self.cx.hub.ended.fetch_sub(1, Relaxed);
        }
    }

    fn take_control(&mut self) {
        let mut controls = std::mem::take(&mut self.controls);
        for control in controls.drain(..) {
            match control {
                Control::Done(key, done) => self.done(key, done),
                Control::NewConnection(new_connection) => self.take_arrivals.push(*new_connection),
                Control::Stop(deadline) => self.cx.begin_stop(deadline),
                Control::Drain { until, retry_after } => self.begin_draining(until, retry_after),
                Control::Probe(answer) => {
                    // Whoever has asked may have given up.
                    let _ = answer.send(());
                }
                Control::Accept => self.accept_again = true,
                Control::Nudge(key) => {
                    self.with_ws(key, |ws, cx| ws.nudge(cx));
                }
                Control::Expiry => self.cx.handle().expiries.clear_notified(),
                Control::Inspect(question) => self.begin_inspecting(question),
            }
        }
        self.controls = controls;
    }

    // -------------------------------------------------------------------------------------------- 6: new connections

    /// Takes the connections that were handed over since the last call.
    pub(crate) fn take_arrivals(&mut self) -> Vec<NewConnection> {
        std::mem::take(&mut self.take_arrivals)
    }

    /// Whether accepting may work again, since a connection was closed after the last call.
    pub(crate) fn take_accept_again(&mut self) -> bool {
        std::mem::take(&mut self.accept_again)
    }

    /// Inserts a connection, which `hub.shards[index].load` counts already.
    pub(crate) fn insert(
        &mut self,
        mut transport: T,
        peer: SocketAddr,
        peer_slot: Option<Box<PeerSlot>>,
        mut upgraded: Option<Upgraded>,
    ) {
        self.cx.counters().accepted.add(1);
        let accepted = upgraded
            .as_mut()
            .and_then(|upgraded| upgraded.accepted.as_mut());
        if !accepted.is_some_and(|accepted| accepted.take_permit()) {
            self.cx.hub.connected();
        }
        let messages = upgraded.as_ref().map_or(0, Upgraded::messages);
        if self.cx.is_stopping() {
            self.cx.refuse_unserved(transport, messages);
            return;
        }
        let key = self.conns.next_key();
        let token = key
            .token()
            .ok_or_else(|| io::Error::other("the shard has no slot left"));
        if let Err(error) = token.and_then(|token| transport.register(&self.registry, token)) {
            limited!(
                self.cx.hub.logged.not_polled,
                error,
                "{peer} could not be registered with the poll and is disconnected: {error}"
            );
            self.cx.refuse_unserved(transport, messages);
            return;
        }
        let deadline = self.cx.tick.after(self.cx.limits().handshake_timeout);
        // Hosts hand connections over behind such a header.
        let is_proxied = upgraded.is_none() && self.cx.hub.settings.expects_proxy_header(peer.ip());
        let mut http = Http::new(peer, is_proxied, deadline);
        self.cx.handshake_queue.push(&mut http, key);
        let key = self.conns.insert(Conn {
            socket: Socket {
                transport: Some(transport),
                peer_slot,
                // Bytes may have arrived before the registration.
                readable: true,
                hangup: false,
                queued: false,
                dirty: false,
                timer: None,
            },
            stage: Stage::Http(Box::new(http)),
        });
        self.enforce_handshakes_max();
        self.with(key, |stage, cx| {
            cx.want_read();
            if let Some(upgraded) = upgraded
                && let Stage::Http(http) = stage
            {
                http.take_over(cx, upgraded);
            }
        });
        self.enforce_receive_budget();
        self.enforce_request_budget();
    }

    // ---------------------------------------------------------------------------------------------- 7 to 13: the turn

    /// Runs the main part of a turn: reads, timers and stop; then gives jobs to the handlers, writes, and answers inspections.
    pub(crate) fn turn(&mut self) {
        #[cfg(feature = "deflate")]
        self.inflate_waiting();
        self.read_paused();
        self.read_ready();
        self.expire_timers();
        self.expire_sessions();
        self.go_on_draining();
        self.go_on_stopping();
        self.hand_over();
        self.flush_batches();
        self.write_dirty();
        self.write_evicted();
        // The reads and writes so far show which clients read.
        self.enforce_send_budget();
        self.hand_over();
        if !self.inspections.is_empty() {
            self.go_on_inspecting();
        }
    }

    fn read_paused(&mut self) {
        self.sweep_paused();
        self.sweep_handshake_queue();
        for _ in 0..self.cx.receive_budget.paused() {
            let Some(key) = self.cx.receive_budget.resume_reading() else {
                break;
            };
            self.read(key);
        }
    }

    fn read_ready(&mut self) {
        let spare = std::mem::take(&mut self.spare_keys);
        let mut readable = std::mem::replace(&mut self.cx.readable, spare);
        for key in readable.drain(..) {
            self.read(key);
        }
        self.keep_spare(readable);
    }

    fn read(&mut self, key: Key) {
        self.with(key, |stage, cx| {
            if cx.affords_read(stage) {
                cx.socket.queued = false;
                stage.read(cx);
            }
        });
        self.enforce_receive_budget();
        self.enforce_request_budget();
    }

    fn expire_timers(&mut self) {
        while let Some(slot) = self.cx.timers.due(self.cx.tick) {
            let found = self.with_slot(slot, |stage, cx| {
                let timer = &mut cx.socket.timer;
                cx.shard.timers.cancel(slot, timer);
                stage.expire(cx);
            });
            if found.is_none() {
                break;
            }
            self.enforce_receive_budget();
            self.enforce_request_budget();
        }
    }

    fn expire_sessions(&mut self) {
        for _ in 0..EXPIRED_PER_TURN {
            let Some(key) = self.cx.handle().expiries.take_due(self.cx.now) else {
                break;
            };
            self.with_ws(key, |ws, cx| ws.expire_session(cx));
        }
    }

    /// Writes to the connections with something to write.
    fn write_dirty(&mut self) {
        while !self.cx.dirty.is_empty() {
            self.cx.fanout.forget_tried();
            let spare = std::mem::take(&mut self.spare_keys);
            let mut dirty = std::mem::replace(&mut self.cx.dirty, spare);
            let mut begun = self.write_fronts(&dirty);
            for (index, key) in dirty.drain(..).enumerate() {
                self.write(key, begun.get_mut(index).and_then(Option::take));
            }
            self.keep_spare(dirty);
        }
    }

    fn write(&mut self, key: Key, begun: Option<io::Result<usize>>) {
        self.with(key, |stage, cx| {
            cx.socket.dirty = false;
            stage.write(cx, begun);
        });
        self.enforce_request_budget();
    }

    /// Writes to a few evicted connections a turn: thousands may be evicted at once, and others are served meanwhile.
    fn write_evicted(&mut self) {
        for _ in 0..EVICTED_PER_TURN {
            let Some(key) = self.cx.evicted.pop_front() else {
                break;
            };
            self.write(key, None);
        }
        if self.cx.evicted.is_empty() && self.cx.evicted.capacity() > SPARE_KEYS_MAX {
            self.cx.evicted = VecDeque::new();
        }
    }

    fn keep_spare(&mut self, keys: Vec<Key>) {
        if keys.capacity() <= SPARE_KEYS_MAX {
            self.spare_keys = keys;
        }
    }

    // ---------------------------------------------------------------------------------------------------------- wait

    /// Whether there is something to read or write in the next turn.
    pub(crate) fn has_work(&self) -> bool {
        let cx = &self.cx;
        #[cfg(feature = "deflate")]
        if cx.inflations.has_work(&cx.receive_budget) {
            return true;
        }
        !cx.readable.is_empty() || !cx.dirty.is_empty() || !cx.evicted.is_empty()
    }

    /// How long the shard may sleep: zero, until a deadline, or without end.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.cx.timers.advance(now);
        self.cx.read_budget.waits(now);
        let wait = match self.inspections.is_empty() {
            true => self.wait_until_work(now),
            false => Some(Duration::ZERO),
        };
        let wait = match &mut self.cx.arrivals {
            Some(arrivals) => arrivals.sleep(wait, now),
            None => wait,
        };
        self.cx.timers.sleep(wait);
        wait
    }

    fn wait_until_work(&self, now: Instant) -> Option<Duration> {
        let cx = &self.cx;
        let may_resume = cx.receive_budget.paused() > 0 && !cx.receive_budget.is_full();
        if self.has_work() || self.has_jobs() || may_resume || cx.fanout.can_take_commands() {
            return Some(Duration::ZERO);
        }
        if !cx.handle().mailbox.sleep(!cx.fanout.wants_commands()) {
            return Some(Duration::ZERO);
        }
        let stop = cx
            .stop
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(now));
        let draining = cx.draining.as_ref();
        let drain = draining.and_then(|draining| draining.wait(now, cx.hub.is_unused()));
        let waits = [
            cx.timers.wait(now),
            cx.handle().expiries.wait(now),
            stop,
            drain,
        ];
        waits.into_iter().flatten().min()
    }
}

impl<T: ShardTransport> ShardCx<T> {
    pub(crate) fn handle(&self) -> &ShardHandle {
        &self.hub.shards[usize::from(self.index)]
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.handle().counters
    }

    pub(crate) fn limits(&self) -> &crate::limits::Limits {
        &self.hub.settings.limits
    }

    /// Stops counting the memory of a job that is done.
    fn settle_accounts(&mut self, done: &mut Done) {
        match done {
            Done::Session { bytes, memory, .. } => {
                self.receive_budget.sub_unhandled(*bytes);
                self.receive_budget.give_back(std::mem::take(memory));
            }
            Done::Request(answered) => {
                let bytes = answered.as_ref().map_or(0, |(_, bytes)| *bytes);
                self.requests.sub_handled(bytes + http::REQUEST_BYTES);
            }
            Done::Piece(_) => self.requests.sub_piece(),
            Done::Handshake(_) => self.receive_budget.sub_job(),
        }
    }

    /// Stops counting a connection.
    fn forget_connection(&self) {
        self.handle().load.fetch_sub(1, Relaxed);
        self.hub.disconnected();
    }

    /// Closes a connection that was handed over and can't be served. `messages` that it has received are counted as
    /// unhandled.
    fn refuse_unserved(&self, transport: T, messages: usize) {
        self.counters().refused_unserved.add(1);
        self.hub.count_unhandled(messages);
        drop(transport);
        self.forget_connection();
    }

    /// Releases the resources that a connection held in the stage that it leaves.
    fn release(&mut self, slot: u32, stage: Stage) {
        match stage {
            Stage::Http(http) => self.release_http(slot, *http),
            Stage::WebSocket(ws) => self.release_websocket(ws),
            Stage::Lingering(_) => {}
        }
    }

    /// Drops a session on a handler thread, since dropping its attachment runs user code.
    fn release_websocket(&mut self, mut ws: WebSocket) {
        ws.let_go(&mut self.receive_budget);
        self.fanout.forget_unshared(&mut ws);
        if ws.session.attachment.get().is_some() || ws.session.protocol_state().is_some() {
            // The job goes behind the close event, which already counts, if there is one.
            let counts = !ws.is_close_dispatched();
            self.hub.ended.fetch_add(usize::from(counts), Relaxed);
            self.jobs.push_back(Job {
                to: None,
                work: Work::Release(ws.session, counts),
            });
        }
    }
}
