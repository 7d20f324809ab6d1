//! The WebSocket stage of a connection.
//!
//! An event stream has this stage too. Its messages have another encoding, it receives nothing, and it ends without a
//! close frame.
//!
//! `advance` takes the next steps of a connection after one of its states ([`WebSocket`]) has changed. A peer's close
//! frame or violation is answered once earlier messages are handled, so that their replies precede the close frame.

#[cfg(all(any(test, fuzzing), not(loom)))]
mod audit;
mod closing;
mod cold;
mod deadlines;
#[cfg(feature = "deflate")]
pub(crate) mod inflating;
pub(crate) mod rate_account;
mod receive_rate;
mod receiving;
mod subprotocol;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::hub::Hub;
use crate::engine::model::command::Upgraded;
use crate::engine::model::job::{SessionEvent, Work};
use crate::engine::model::room::HistoryForm;
use crate::engine::model::session::{Session, Status};
use crate::engine::model::settings::Settings;
use crate::engine::model::verdict::PendingAttachment;
use crate::engine::parts::compression::ConnCompression;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::LocalId;
use crate::engine::parts::outbox::{Delays, Outbox};
use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::parts::write_progress::WriteProgress;
use crate::engine::reactor::opening::Opening;
use crate::engine::reactor::websocket::cold::Cold;
pub(crate) use crate::engine::reactor::websocket::cold::Stream;
use crate::engine::reactor::{ConnCx, Reader};
use crate::limits::{Limits, SlowConsumer};
use crate::protocol::close::CloseCode;
use crate::protocol::connection::Progress;
use crate::report::debug;
use crate::sync::lock;
use crate::transport::ShardTransport;

/// The state of a WebSocket or event stream. There is one for each connection, so it must stay small: state that most
/// connections do not need most of the time is in `cold`.
///
/// ```text
/// receiving:  Open ──▶ Discarding                   we have sent a close frame: messages are dropped
///             Open, Discarding ──▶ Closed           the peer's close frame has arrived
///                              ──▶ Eof              the stream has ended, or broke
///                              ──▶ Stopped          a violation; or the host had received the end already
///                              ──▶ Evicted          it holds too much, or took too long
///             any ──▶ Eof                           the transport broke
///
/// sending:    Open ──▶ Closing                      the last bytes are queued; once written: linger, or free
///             Open, Closing ──▶ Broken              the transport broke: nothing can be sent any more
///
/// handlers:   Idle ◀──▶ Running                     a batch of events is handed over; its outcome has come
///             Idle ──▶ CloseDispatched              nothing more is received, and everything is handled: the batch of
///                                                   the close handler is handed over
///             Idle, Running ──▶ Ended               as above, but no handler is called, or the shard ends first
/// ```
///
/// `handlers` leaves `Idle` for the last time only when `receiving` is over. The connection ends when `handlers` is over
/// and, with `sending` being `Closing`, everything is written, or, being `Broken`, at once.
pub(crate) struct WebSocket {
    pub(crate) session: Arc<Session>,
    pub(crate) compression: ConnCompression,
    protocol: Progress,
    pub(crate) outbox: Outbox,
    /// Events that wait for the handlers.
    inbox: Vec<SessionEvent>,
    inbox_bytes: usize,
    /// Bytes that wait for the client and that no other outbox shares.
    pub(crate) unshared_bytes: usize,
    /// The number of the first broadcast that it has not been sent yet.
    pub(crate) seen: u64,
    last_received: Tick,
    cold: Option<Box<Cold>>,
    /// Commands before this mark must be delivered before the connection ends.
    command_mark: u64,
    receiving: Receiving,
    sending: Sending,
    handlers: Handlers,
    /// Whether a ping is unanswered.
    pinged: bool,
    /// Whether it was disconnected as a slow consumer: it is counted, and its time to read up to the close frame is not
    /// extended by reading.
    slow_counted: bool,
    /// Whether the outbox is short of room.
    pub(crate) congested: bool,
}

/// The state of the receiving direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Open,
    /// Messages are dropped, since a close frame was sent.
    Discarding,
    /// Ended by a violation, or because the host had received the end before it handed the connection over.
    Stopped,
    /// Ended because the connection was evicted.
    Evicted,
    /// Ended by the peer's close frame, after which a conforming peer sends nothing more.
    Closed,
    /// Ended with the stream.
    Eof,
}

impl Receiving {
    fn is_over(self) -> bool {
        !matches!(self, Self::Open | Self::Discarding)
    }
}

/// The state of the sending direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Open,
    /// Queued bytes are sent, and nothing after them.
    Closing,
    /// The transport broke.
    Broken,
}

/// The state of the connection's handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handlers {
    Idle,
    Running,
    /// The last batch, with the close event, was handed over. The hub counts the connection until its outcome has come
    /// (`Hub::ended`).
    CloseDispatched,
    /// No handler will be called any more, since none needs to be, or since the shard has ended.
    Ended,
}

impl WebSocket {
    fn new(session: Arc<Session>, now: Tick) -> Self {
        Self {
            compression: ConnCompression::new(session.compression),
            protocol: Progress::default(),
            outbox: Outbox::new(session.encoding),
            session,
            inbox: Vec::new(),
            inbox_bytes: 0,
            unshared_bytes: 0,
            seen: u64::MAX,
            last_received: now,
            cold: None,
            command_mark: 0,
            receiving: Receiving::Open,
            sending: Sending::Open,
            handlers: Handlers::Idle,
            pinged: false,
            slow_counted: false,
            congested: false,
        }
    }

    pub(crate) fn encoding(&self) -> Encoding {
        self.session.encoding
    }

    fn is_stream(&self) -> bool {
        self.encoding() == Encoding::Events
    }

    /// Whether messages may still be sent. The connection then receives broadcasts to everyone and to its rooms.
    pub(crate) fn is_open(&self) -> bool {
        self.sending == Sending::Open
    }

    /// Whether it receives broadcasts to everyone, as frames.
    pub(crate) fn is_of_everyone(&self) -> bool {
        self.is_open() && !self.is_stream()
    }

    /// Whether it was evicted.
    pub(crate) fn is_evicted(&self) -> bool {
        self.receiving == Receiving::Evicted
    }

    /// Whether the batch with its close event was handed over or handled.
    pub(crate) fn is_close_dispatched(&self) -> bool {
        self.handlers == Handlers::CloseDispatched
    }

    /// Whether handlers get no further events: its close was dispatched, or will not be.
    pub(crate) fn has_departed(&self) -> bool {
        matches!(self.handlers, Handlers::CloseDispatched | Handlers::Ended)
    }

    /// Whether events are held back while replies find no room: so a client that does not read its replies slows down
    /// only itself.
    fn holds_back(&self, limits: &Limits) -> bool {
        // Keyed messages always wait for a slow client: they must not hold its own messages back.
        self.is_open() && self.outbox.unkeyed_bytes() > limits.outbox_bytes_max / 2
    }

    pub(crate) fn wants_input(&self, limits: &Limits) -> bool {
        !self.is_input_held() && self.may_keep_more(limits) && !self.outbox.controls_full()
    }

    /// Whether nothing is read, for another reason than the rate limits.
    pub(super) fn is_paused(&self, limits: &Limits) -> bool {
        #[cfg(feature = "deflate")]
        if self.is_parked() {
            return true;
        }
        !self.may_keep_more(limits) || self.outbox.controls_full()
    }

    /// Whether another message would be queued for the handlers, or dropped.
    fn may_keep_more(&self, limits: &Limits) -> bool {
        match self.receiving {
            Receiving::Open => {
                !(self.handlers == Handlers::Running || self.holds_back(limits))
                    || self.inbox_bytes < limits.pending_bytes_max
            }
            Receiving::Discarding => true,
            Receiving::Stopped | Receiving::Evicted | Receiving::Closed | Receiving::Eof => false,
        }
    }

    /// Events that wait for the handlers.
    pub(super) fn unhandled(&self) -> &[SessionEvent] {
        &self.inbox
    }

    /// Bytes of messages that wait for the handlers, and of the unfinished one.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn held_bytes(&self) -> (usize, usize) {
        (self.inbox_bytes, self.protocol.held_bytes())
    }

    /// Whether the socket takes nothing at present.
    pub(crate) fn is_blocked(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.blocked)
    }

    /// Records that the socket has room again.
    pub(crate) fn unblocked(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.blocked = false;
            if cold.is_empty() {
                self.cold = None;
            }
        }
    }

    pub(crate) fn blocked(&mut self, now: Tick, write_timeout: Duration) {
        let cold = self.cold();
        cold.blocked = true;
        cold.drain
            .get_or_insert_with(|| WriteProgress::new(now, write_timeout));
    }

    /// Counts how much is left in the outbox after a write, if the socket did not take all.
    pub(crate) fn note_depth<T: ShardTransport>(&self, cx: &ConnCx<'_, T>) {
        if !self.outbox.is_empty() {
            let counters = cx.shard.counters();
            counters.outbox_depths.add(self.outbox.bytes());
        }
    }

    /// Credits bytes that the socket has taken. An empty outbox ends the time limit.
    fn drained(&mut self, bytes: usize, now: Tick, limits: &Limits) {
        if self.outbox.is_empty() {
            self.unblocked();
            self.clear(|cold| &mut cold.drain);
        } else {
            self.blocked(now, limits.write_timeout);
            if bytes > 0
                && let Some(drain) = &mut self.cold().drain
            {
                drain.took(bytes, now, limits.write_timeout, limits);
            }
        }
        if bytes > 0
            && !self.slow_counted
            && let Some(closing) = self.cold.as_mut().and_then(|cold| cold.deadline.as_mut())
        {
            closing.took(bytes, now, limits.close_timeout, limits);
        }
    }

    /// Starts or stops the pace account after the outbox has become short of room, or no longer is.
    pub(crate) fn congestion_changed(&mut self, now: Tick, hub: &Hub, instant: Instant) {
        let settings = &hub.settings;
        if self.is_open() {
            let full = if self.congested {
                Status::Full
            } else {
                Status::Open
            };
            self.session.set_status(full);
        }
        let SlowConsumer::Pace {
            bytes_per_second_min,
            patience,
        } = settings.slow_consumer
        else {
            return;
        };
        if self.congested {
            let allowance = lock(&hub.wasted_waits).allowance(patience, instant);
            let quiet_since = self.quiet_since();
            self.cold()
                .pace
                .get_or_insert_with(|| {
                    Box::new(Pace::new(bytes_per_second_min, patience, quiet_since, now))
                })
                .start(allowance, now);
        } else if let Some(pace) = self.pace() {
            pace.stop(now);
        }
    }

    /// The next deadline of the connection.
    pub(crate) fn deadline(&self, settings: &Settings) -> Option<Tick> {
        let heartbeat = match &settings.heartbeat {
            Some(heartbeat)
                if self.receiving == Receiving::Open && self.is_open() && !self.is_stream() =>
            {
                let silence = if self.pinged {
                    heartbeat.silence_max()
                } else {
                    heartbeat.interval
                };
                Some(self.last_received.after(silence))
            }
            _ => None,
        };
        let Some(cold) = &self.cold else {
            return heartbeat;
        };
        [
            heartbeat,
            self.closing_deadline(),
            cold.unfinished
                .as_ref()
                .map(|unfinished| unfinished.since.after(settings.limits.message_timeout)),
            self.drain_deadline(),
            cold.pace.as_ref().and_then(|pace| pace.deadline()),
            cold.stream
                .as_ref()
                .filter(|_| self.is_open())
                .map(|stream| stream.comment_at),
            cold.delayed_until(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Creates the state of a WebSocket after the handshake. The caller must then call [`WebSocket::begin`] once the
    /// connection is in this stage.
    pub(crate) fn open<T: ShardTransport>(opening: Opening, cx: &mut ConnCx<'_, T>) -> Self {
        let Opening {
            request,
            granted,
            preface,
            encoding,
        } = opening;
        let id = LocalId {
            shard: cx.shard.index,
            key: cx.key,
        };
        let with_ids = cx.shard.subscriptions.subprotocol_with_ids;
        let takes_ids = with_ids.is_some() && granted.subprotocol.as_deref() == with_ids;
        let form = HistoryForm::new(takes_ids, granted.rendered);
        let compression = granted.compression();
        let opened_secs = cx.shard.hub.seconds_since_start(cx.shard.now);
        let subprotocol = granted.subprotocol;
        let mut session = Session::new(id, &request, subprotocol, form, encoding, opened_secs);
        session.compression = compression;
        if let Some(slot) = granted.user_slot {
            session.set_user(slot);
        }
        let session = Arc::new(session);
        if granted.expiry.is_some() {
            let expiries = &cx.shard.handle().expiries;
            if expiries.set(cx.key, granted.expiry) {
                // The shard looks at the expiries before it sleeps.
                expiries.clear_notified();
            }
        }
        if let Some(attachment) = granted.attachment.and_then(PendingAttachment::take) {
            let _ = session.attachment.set(attachment);
        }
        let peer = session.peer();
        session
            .span
            .within(|| debug!("connection {id} of {peer} opened"));
        let mut ws = Self::new(session, cx.shard.tick);
        if let Some(preface) = preface {
            ws.outbox.push_preface(preface, cx.shard.tick);
        }
        if encoding == Encoding::Events {
            ws.inbox.push(SessionEvent::Open(None));
        } else if cx.shard.subscriptions.open {
            // If too much already waits for handlers, these messages are not kept.
            let budget = &mut cx.shard.receive_budget;
            let is_kept = request.is_known() && !budget.is_full();
            if is_kept {
                ws.inbox_bytes += request.bytes();
                budget.add_unhandled(request.bytes());
            }
            ws.inbox
                .push(SessionEvent::Open(is_kept.then_some(request)));
        }
        ws
    }

    /// Begins, with the bytes that were received before: by the host, or behind the handshake.
    pub(crate) fn begin<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        handed_over: Option<Box<Upgraded>>,
        mut early: Vec<u8>,
    ) {
        // Before any thread can find it, and before its handler runs: what they broadcast must reach it.
        self.join(cx);
        if self.encoding() == Encoding::Frames {
            cx.shard.program.entered(&self.session);
            cx.shard.counters().connections.add(1);
            cx.shard.counters().connections_opened.add(1);
        }
        let closed_with = self.session.open_for_user();
        self.advance(cx);
        self.want_write(cx);
        if let Some(handed_over) = handed_over {
            self.resume(cx, *handed_over);
        }
        if let Some((code, reason)) = closed_with {
            self.close(cx, code, &reason);
        }
        if early.is_empty() {
            return;
        }
        if cx.shard.receive_budget.is_full() {
            // The messages can't be left unread, and a client must wait for the handshake's response (RFC 6455 §4.1).
            self.evict(cx, CloseCode::TRY_AGAIN_LATER, "too many messages wait");
        } else if self.is_stream() {
            self.input(cx, &mut early);
        } else {
            self.input_within_rate(cx, &mut early);
        }
    }

    /// Queues the connection for writing at the end of this turn.
    #[inline]
    pub(crate) fn want_write<T: ShardTransport>(&self, cx: &mut ConnCx<'_, T>) {
        match self.is_evicted() {
            true => cx.want_write_evicted(),
            false => cx.want_write(),
        }
    }

    /// Reads once, if it takes input and the receive budget has room. Returns whether there was anything to read.
    #[inline]
    pub(crate) fn read<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        if !self.wants_input(cx.shard.limits()) {
            self.note_unread(cx);
            return false;
        }
        if cx.shard.receive_budget.is_full() {
            self.note_unread(cx);
            cx.pause_reading();
            return false;
        }
        match cx.shard.receive_rates {
            None => cx.read_for(self),
            Some(rates) => self.read_within_rate(cx, rates),
        }
    }

    /// Moves the connection along: gives events to handlers; after its end, when they are done, sends the close reply.
    pub(crate) fn advance<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let limits = &cx.shard.hub.settings.limits;
        self.note_held_back(limits, &mut cx.shard.receive_budget);
        if self.handlers == Handlers::Idle && !self.inbox.is_empty() && !self.holds_back(limits) {
            let events = std::mem::take(&mut self.inbox);
            let bytes = std::mem::take(&mut self.inbox_bytes);
            self.handlers = Handlers::Running;
            self.session.batch_handed_over();
            cx.job(Work::Session(self.session.clone(), events, bytes));
            cx.want_read();
        }
        if self.cold.is_some() {
            self.advance_held_input(cx);
        }
        self.advance_end(cx);
    }

    /// Processes a parked message if its handlers have room, and drops all input that was not processed if nothing more is
    /// received.
    #[cold]
    fn advance_held_input<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        #[cfg(feature = "deflate")]
        self.advance_parked(cx);
        if self.receiving.is_over() {
            self.forget_rate(&mut cx.shard.receive_budget);
        }
    }

    /// Processes the outcome of a batch, of which `unhandled` messages were not handled.
    pub(crate) fn batch_done<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        has_panicked: bool,
        unhandled: u32,
    ) {
        self.handlers = Handlers::Idle;
        self.command_mark = cx.shard.fanout.mark();
        if has_panicked {
            let mut waiting = 0;
            // Room events are still given to handlers.
            self.inbox.retain(|event| {
                let message = matches!(event, SessionEvent::Message(_));
                waiting += u64::from(message);
                !message
            });
            let rest = self.inbox.len() * receiving::EVENT_BYTES;
            let bytes = std::mem::replace(&mut self.inbox_bytes, rest);
            cx.shard.receive_budget.sub_unhandled(bytes - rest);
            let unhandled = waiting + u64::from(unhandled);
            cx.shard.counters().dropped_unhandled.add_alone(unhandled);
            self.close(cx, CloseCode::INTERNAL_ERROR, "internal error");
        }
        self.advance(cx);
        cx.want_read();
    }

    /// Writes what waits.
    pub(crate) fn write<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        self.write_on(cx, None);
    }

    /// Writes what waits. `begun` is the outcome of the first write, if the caller has made it.
    pub(crate) fn write_on<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        begun: Option<io::Result<usize>>,
    ) {
        let shard = &mut *cx.shard;
        let Some(transport) = &mut cx.socket.transport else {
            return;
        };
        if transport.has_pending() {
            transport.flush();
        }
        let tick = shard.tick;
        let delays = Delays {
            now: tick,
            counters: &shard.hub.shards[usize::from(shard.index)]
                .counters
                .delivery_delays,
        };
        let (written, result) =
            self.outbox
                .flush_on(begun, transport, (&mut shard.scratch, delays));
        self.drained(written.bytes, tick, &shard.hub.settings.limits);
        if written.bytes > 0
            && let Some(pace) = self.pace()
        {
            pace.read(written.bytes, tick);
        }
        let has_left =
            self.outbox.is_empty() && self.sending == Sending::Closing && !transport.has_pending();
        let may_end = has_left && self.has_departed();
        let is_idle = self.inbox.is_empty();
        let counters = shard.counters();
        counters.bytes_out.add_alone(written.bytes as u64);
        counters.wrote(written.messages, written.delayed);
        if result.is_err() {
            self.break_off(cx);
            return;
        }
        self.note_fill(cx);
        self.note_depth(cx);
        if self.outbox.is_empty() {
            self.clear(|cold| &mut cold.pace);
        }
        if may_end && matches!(self.receiving, Receiving::Closed | Receiving::Eof) {
            // RFC 6455 §7.1.1: the server closes the TCP connection first. Nothing more can arrive that would turn this
            // into a reset.
            cx.end();
            return;
        }
        if may_end {
            cx.linger();
            return;
        }
        if !is_idle {
            self.advance(cx);
        }
        cx.want_read();
    }
}
