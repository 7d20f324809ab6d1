//! A connection in its role as a WebSocket.
//!
//! An event stream is one, too, whose messages have another form: it receives nothing, and ends without a close frame.
//!
//! ```text
//! incoming:  Open ──close frame, end of stream, violation, break──▶ Ended
//!              └───we have closed──▶ Discarding ──▶ Ended            (only the peer's close frame is of interest)
//! outgoing:  Open ──close frame queued, or nothing more to say──▶ Closing ──all written──▶ (lingers, or is freed)
//! handlers:  open, messages … and, once incoming has Ended and all of them are handled, close: told exactly once
//! ```
//!
//! `advance` moves a connection along whenever something of this has changed. A peer's close frame, or a violation, is
//! answered when the messages before it are handled, so that their replies come before the answer.

#[cfg(all(any(test, fuzzing), not(loom)))]
mod audit;
mod expiry;
mod rare;
mod receiving;
mod talk;

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::engine::hub::Hub;
use crate::engine::model::job::{Done, Event, Work};
use crate::engine::model::program::Ending;
use crate::engine::model::session::{Session, Status};
use crate::engine::model::settings::Settings;
use crate::engine::model::verdict::{Granted, Kept, shutting_down};
use crate::engine::parts::drain::Drain;
use crate::engine::parts::encoding::Form;
use crate::engine::parts::id::{ConnectionId, Key};
use crate::engine::parts::outbox::Outbox;
use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::engine::reactor::websocket::rare::Rare;
use crate::engine::reactor::{Conn, Core, Role};
use crate::limits::{Limits, SlowConsumer};
use crate::protocol::close::CloseCode;
use crate::protocol::connection::Progress;
use crate::protocol::encode;
use crate::protocol::http::BodyMode;
use crate::report::debug;
use crate::request::RequestHead;
use crate::sync::lock;
use crate::transport::Transport;

/// There is one for each connection, so it is to be small: what most do not have most of the time is in `rare`.
pub(crate) struct WebSocket {
    pub(crate) session: Arc<Session>,
    protocol: Progress,
    pub(crate) outbox: Outbox,
    /// Waits for the handlers.
    inbox: Vec<Event>,
    inbox_bytes: usize,
    /// Where it stands among the members of everyone, counted from one.
    pub(crate) member_at: Option<NonZeroU32>,
    /// Of what waits for it, what waits for nobody else.
    pub(crate) own_bytes: usize,
    /// The first broadcast that it has not been given yet.
    pub(crate) seen: u64,
    /// When something was last read.
    heard: Tick,
    rare: Option<Box<Rare>>,
    /// Mail before this mark is to be delivered before the connection ends.
    mail_mark: u64,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Handlers run.
    busy: bool,
    /// A ping has not been answered.
    pinged: bool,
    /// The close handler has been told, or is about to be.
    told: bool,
    /// That it has ended counts until handlers have been told (`Hub::ended`).
    pub(crate) end_counts: bool,
    /// The stream has ended, not just the messages.
    eof: bool,
    /// The peer's close frame has come: a conforming peer sends nothing more.
    peer_closed: bool,
    /// It was disconnected for its slowness: it is counted, and has no longer than the deadline to read to the close
    /// frame, however it reads on.
    pub(crate) found_slow: bool,
    /// The outbox is short of room.
    pub(crate) congested: bool,
    /// It has made room for others: they are written to first.
    pub(crate) gives_way: bool,
}

/// What a WebSocket begins with.
pub(crate) struct Opening {
    pub(crate) request: Arc<RequestHead>,
    pub(crate) granted: Granted,
    /// The answer to the handshake, if it has yet to be sent.
    pub(crate) preface: Option<Bytes>,
    pub(crate) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Incoming {
    Open,
    Discarding,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    Open,
    Closing,
    /// The transport broke.
    Broken,
}

impl WebSocket {
    fn new(session: Arc<Session>, now: Tick) -> Self {
        Self {
            protocol: Progress::default(),
            outbox: Outbox::new(session.form),
            session,
            inbox: Vec::new(),
            inbox_bytes: 0,
            member_at: None,
            own_bytes: 0,
            seen: u64::MAX,
            heard: now,
            rare: None,
            mail_mark: 0,
            incoming: Incoming::Open,
            outgoing: Outgoing::Open,
            busy: false,
            pinged: false,
            told: false,
            end_counts: false,
            eof: false,
            peer_closed: false,
            found_slow: false,
            congested: false,
            gives_way: false,
        }
    }

    pub(crate) fn form(&self) -> Form {
        self.session.form
    }

    fn is_stream(&self) -> bool {
        self.form() == Form::Events
    }

    /// It gets what everyone gets, and as a frame.
    pub(crate) fn is_of_everyone(&self) -> bool {
        self.is_member() && !self.is_stream()
    }

    pub(crate) fn is_member(&self) -> bool {
        self.member_at.is_some()
    }

    /// Handlers get nothing more while their answers find no room: so a client that does not read its replies slows
    /// down itself, and only itself.
    fn holds_back(&self, limits: &Limits) -> bool {
        self.outgoing == Outgoing::Open && self.outbox.bytes() > limits.outbox_bytes_max / 2
    }

    pub(crate) fn wants_input(&self, limits: &Limits) -> bool {
        let may_keep = match self.incoming {
            Incoming::Open => {
                !(self.busy || self.holds_back(limits))
                    || self.inbox_bytes < limits.pending_bytes_max
            }
            Incoming::Discarding => true,
            Incoming::Ended => false,
        };
        may_keep && !self.outbox.controls_full()
    }

    /// Bytes of messages that wait for the handlers, and of the one that is not complete.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn held_bytes(&self) -> (usize, usize) {
        (self.inbox_bytes, self.protocol.held_bytes())
    }

    /// The socket takes nothing at present.
    pub(crate) fn is_blocked(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.blocked)
    }

    /// The socket says that it takes something again.
    pub(crate) fn unblocked(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.blocked = false;
            if rare.is_empty() {
                self.rare = None;
            }
        }
    }

    pub(crate) fn blocked(&mut self, now: Tick, write_timeout: Duration) {
        let rare = self.rare();
        rare.blocked = true;
        rare.drain
            .get_or_insert_with(|| Drain::new(now, write_timeout));
    }

    /// Its socket has taken so many bytes, and all that waited if the outbox is empty.
    fn drained(&mut self, bytes: usize, now: Tick, limits: &Limits) {
        if self.outbox.is_empty() {
            self.unblocked();
            self.clear(|rare| &mut rare.drain);
        } else {
            self.blocked(now, limits.write_timeout);
            if bytes > 0
                && let Some(drain) = &mut self.rare().drain
            {
                drain.took(bytes, now, limits.write_timeout, limits);
            }
        }
        if bytes > 0
            && !self.found_slow
            && let Some(closing) = self.rare.as_mut().and_then(|rare| rare.deadline.as_mut())
        {
            closing.took(bytes, now, limits.close_timeout, limits);
        }
    }

    /// The outbox has become short of room, or no longer is.
    pub(crate) fn congestion_changed(&mut self, now: Tick, hub: &Hub, instant: Instant) {
        let settings = &hub.settings;
        if self.outgoing == Outgoing::Open {
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
            let allowance = lock(&hub.waits_in_vain).allowance(patience, instant);
            let quiet_since = self.quiet_since();
            self.rare()
                .pace
                .get_or_insert_with(|| {
                    Box::new(Pace::new(bytes_per_second_min, patience, quiet_since, now))
                })
                .start(allowance, now);
        } else if let Some(pace) = self.pace() {
            pace.stop(now);
        }
    }

    pub(crate) fn deadline(&self, settings: &Settings) -> Option<Tick> {
        let heartbeat = match &settings.heartbeat {
            Some(heartbeat)
                if self.incoming == Incoming::Open
                    && self.outgoing == Outgoing::Open
                    && !self.is_stream() =>
            {
                let silence = if self.pinged {
                    heartbeat.silence_max()
                } else {
                    heartbeat.interval
                };
                Some(self.heard.after(silence))
            }
            _ => None,
        };
        let Some(rare) = &self.rare else {
            return heartbeat;
        };
        [
            heartbeat,
            self.closing_deadline(),
            rare.unfinished
                .as_ref()
                .map(|unfinished| unfinished.since.after(settings.limits.message_timeout)),
            self.drain_deadline(),
            rare.pace.as_ref().and_then(|pace| pace.deadline()),
            rare.stream
                .as_ref()
                .filter(|_| self.outgoing == Outgoing::Open)
                .map(|stream| stream.comment_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl<T: Transport> Core<T> {
    fn ws(&mut self, slot: u32) -> Option<&mut WebSocket> {
        match &mut self.conns.get_mut(slot)?.role {
            Role::WebSocket(ws) => Some(ws),
            _ => None,
        }
    }

    /// The WebSocket, if anything may still be sent on it.
    pub(crate) fn open_ws(&mut self, slot: u32) -> Option<&mut WebSocket> {
        self.ws(slot).filter(|ws| ws.outgoing == Outgoing::Open)
    }

    pub(crate) fn is_open(&mut self, slot: u32) -> bool {
        self.open_ws(slot).is_some()
    }

    /// The handshake is done: a WebSocket begins.
    pub(crate) fn open(&mut self, slot: u32, opening: Opening) {
        let Some(key) = self.conns.key(slot) else {
            return;
        };
        let id = ConnectionId {
            shard: self.index,
            key,
        };
        let Opening {
            request,
            granted,
            preface,
            form,
        } = opening;
        let with_ids = self.interests.subprotocol_with_ids;
        let takes_ids = with_ids.is_some() && granted.subprotocol.as_deref() == with_ids;
        let session = Session::new(id, &request, granted.subprotocol, takes_ids, form);
        let session = Arc::new(session);
        if let Some(attachment) = granted.kept.and_then(Kept::take) {
            let _ = session.attachment.set(attachment);
        }
        let peer = session.peer();
        session
            .span
            .within(|| debug!("connection {id} of {peer} opened"));
        if form == Form::Frames {
            self.events.entered(&session);
        }
        let mut ws = WebSocket::new(session, self.tick);
        if let Some(preface) = preface {
            ws.outbox.push_preface(preface);
        }
        if form == Form::Events {
            ws.inbox.push(Event::Open(None));
        } else if self.interests.open {
            // Where too much waits for handlers already, it is not kept for them.
            let is_kept = request.is_known() && !self.intake.is_full();
            if is_kept {
                ws.inbox_bytes += request.bytes();
                self.intake.add_unhandled(request.bytes());
            }
            ws.inbox.push(Event::Open(is_kept.then_some(request)));
        }
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        if let Role::Http(http) = std::mem::replace(&mut conn.role, Role::WebSocket(ws)) {
            self.http_release(slot, *http);
        }
        // Before its handler runs, so that what the handler broadcasts reaches it too.
        self.join(slot);
        if form == Form::Frames {
            self.counters().connections.add(1);
            self.counters().connections_opened.add(1);
        }
        self.advance(slot);
        self.want_write(slot);
    }

    /// Nothing more gets through, in either direction.
    pub(crate) fn ws_broken(&mut self, slot: u32) {
        let unsent = self.pending_run(slot);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        conn.transport = None;
        conn.readable = false;
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let lost = ws.outbox.clear() + unsent;
        self.delivery.set_own(ws, 0);
        ws.protocol.abandon();
        ws.incoming = Incoming::Ended;
        ws.outgoing = Outgoing::Broken;
        ws.clear(|rare| &mut rare.deadline);
        ws.clear(|rare| &mut rare.drain);
        ws.unblocked();
        ws.session.set_status(Status::Closed);
        self.counters().dropped_closed.add(lost);
        self.talk_ends(slot, Ending::Gone);
        self.note_unfinished(slot);
        self.leave(slot);
        self.advance(slot);
    }

    /// Closes from our side (RFC 6455 §7.1.2): behind what is queued already, and nothing after.
    pub(crate) fn close_ws(&mut self, slot: u32, code: CloseCode, reason: &str) {
        if !self.is_open(slot) {
            return;
        }
        self.take_run(slot);
        if self.ws(slot).is_some_and(|ws| ws.is_stream()) {
            self.close_stream(slot);
        } else {
            let frame = encode::close(Some((code, reason)));
            self.end_outgoing(slot, Some(frame));
            if let Some(ws) = self.ws(slot)
                && ws.incoming == Incoming::Open
            {
                ws.incoming = Incoming::Discarding;
            }
        }
        self.advance(slot);
        self.want_read(slot);
    }

    /// The same for an event stream, which ends with its connection.
    fn close_stream(&mut self, slot: u32) {
        let Some(ws) = self.open_ws(slot) else {
            return;
        };
        if ws.stream().is_none() {
            // Its client is still owed an answer.
            let answer = shutting_down().response(BodyMode::Full);
            ws.outbox.push_preface(answer.into());
        }
        self.end_stream(slot);
    }

    /// Nothing more is sent on an event stream.
    pub(crate) fn end_stream(&mut self, slot: u32) {
        if let Some(ws) = self.ws(slot) {
            ws.incoming = Incoming::Ended;
        }
        self.end_outgoing(slot, None);
        self.advance(slot);
    }

    /// The last that is sent is queued, with a close frame or without.
    fn end_outgoing(&mut self, slot: u32, close_frame: Option<Vec<u8>>) {
        let deadline = Drain::new(self.tick, self.hub.settings.limits.close_timeout);
        let Some(ws) = self.open_ws(slot) else {
            return;
        };
        if let Some(frame) = close_frame {
            ws.outbox.push_last(frame.into());
        }
        ws.outgoing = Outgoing::Closing;
        ws.rare().deadline = Some(deadline);
        ws.session.set_status(Status::Closed);
        self.talk_ends(slot, Ending::Gone);
        self.leave(slot);
        self.want_write(slot);
    }

    /// Moves a connection along: events to the handlers; when its end has come and they are done, the farewell.
    pub(crate) fn advance(&mut self, slot: u32) {
        let Some(key) = self.conns.key(slot) else {
            return;
        };
        let limits = &self.hub.settings.limits;
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        ws.note_held_back(limits, &mut self.intake);
        if !ws.busy && !ws.inbox.is_empty() && !ws.holds_back(limits) {
            let events = std::mem::take(&mut ws.inbox);
            let bytes = std::mem::take(&mut ws.inbox_bytes);
            ws.busy = true;
            let session = ws.session.clone();
            session.batch_handed_over();
            self.job(key, Work::Session(session, events, bytes));
            self.want_read(slot);
        }
        self.advance_end(slot, key);
    }

    fn advance_end(&mut self, slot: u32, key: Key) {
        let Some(ws) = self.ws(slot) else {
            return;
        };
        if ws.incoming != Incoming::Ended || ws.busy || !ws.inbox.is_empty() {
            return;
        }
        let mark = ws.mail_mark;
        if ws.outgoing == Outgoing::Open && !self.delivery.has_delivered(mark) {
            self.delivery.wait(slot);
            return;
        }
        if self.is_open(slot) {
            self.take_run(slot);
            let farewell = self
                .ws(slot)
                .and_then(|ws| ws.clear(|rare| &mut rare.farewell));
            self.end_outgoing(slot, farewell.map(Vec::from));
        }
        self.tell_close(slot, key);
        match self.conns.get(slot) {
            Some(conn) if conn.transport.is_none() => self.free(slot),
            _ => self.want_write(slot),
        }
    }

    /// The close handler's turn has come, once; behind what is still to be handled.
    fn tell_close(&mut self, slot: u32, key: Key) {
        let Some(session) = self.depart(slot) else {
            return;
        };
        let (mut events, bytes) = self.ws(slot).map_or_else(Default::default, |ws| {
            (
                std::mem::take(&mut ws.inbox),
                std::mem::take(&mut ws.inbox_bytes),
            )
        });
        if self.interests.close && session.form == Form::Frames {
            events.push(Event::Close);
        }
        if events.is_empty() {
            self.intake.sub_unhandled(bytes);
        } else {
            self.hub.ended.fetch_add(1, Relaxed);
            if let Some(ws) = self.ws(slot) {
                ws.end_counts = true;
            }
            self.job(key, Work::Session(session, events, bytes));
        }
    }

    /// A connection counts no longer, and its address means it no longer. None if that was so already.
    fn depart(&mut self, slot: u32) -> Option<Arc<Session>> {
        let ws = self.ws(slot)?;
        if std::mem::replace(&mut ws.told, true) {
            return None;
        }
        let session = ws.session.clone();
        let id = session.id;
        session.span.within(|| debug!("connection {id} ended"));
        let is_served = ws.stream().is_some();
        match session.form {
            Form::Frames => {
                self.counters().connections.sub(1);
                self.events.left(&session);
            }
            Form::Events => self.counters().event_streams.sub(u64::from(is_served)),
        }
        Some(session)
    }

    /// Word of a batch's end.
    pub(crate) fn done(&mut self, key: Key, mut done: Done) {
        match &mut done {
            Done::Session { bytes, memory, .. } => {
                self.intake.sub_unhandled(*bytes);
                self.intake.give_back(std::mem::take(memory));
            }
            Done::Request(answered) => {
                let bytes = answered.as_ref().map_or(0, |(_, bytes)| *bytes);
                self.requests.sub_handled(bytes + REQUEST_BYTES);
            }
            Done::Handshake(_) => self.intake.sub_job(),
        }
        let is_session = matches!(done, Done::Session { .. });
        let slot = self.conns.find(key);
        if is_session && slot.is_none_or(|slot| self.ws(slot).is_none_or(|ws| ws.told)) {
            // The end of its close handler changes nothing more.
            self.hub.ended.fetch_sub(1, Relaxed);
            return;
        }
        let Some(slot) = slot else {
            return;
        };
        match done {
            Done::Request(None) => {}
            Done::Request(Some((response, _))) => self.http_respond(slot, response),
            Done::Handshake(answer) => self.http_verdict(slot, *answer),
            Done::Session {
                panicked,
                unhandled,
                ..
            } => {
                let mark = self.delivery.mark();
                let Some(ws) = self.ws(slot) else {
                    return;
                };
                ws.busy = false;
                ws.mail_mark = mark;
                if panicked {
                    let mut waiting = 0;
                    // Of its rooms the program is still told.
                    ws.inbox.retain(|event| {
                        let message = matches!(event, Event::Message(_));
                        waiting += u64::from(message);
                        !message
                    });
                    let rest = ws.inbox.len() * receiving::EVENT_BYTES;
                    let bytes = std::mem::replace(&mut ws.inbox_bytes, rest);
                    self.intake.sub_unhandled(bytes - rest);
                    let unhandled = waiting + u64::from(unhandled);
                    self.counters().dropped_unhandled.add_alone(unhandled);
                    self.close_ws(slot, CloseCode::INTERNAL_ERROR, "internal error");
                }
                self.advance(slot);
                self.want_read(slot);
            }
        }
        self.arm(slot);
    }

    /// Writes what waits.
    pub(crate) fn ws_write(&mut self, slot: u32) {
        self.ws_write_on(slot, None);
    }

    /// The same; the first write may have been made already.
    pub(crate) fn ws_write_on(&mut self, slot: u32, begun: Option<io::Result<usize>>) {
        let tick = self.tick;
        let limits = &self.hub.settings.limits;
        let Some(Conn {
            transport: Some(transport),
            role: Role::WebSocket(ws),
            ..
        }) = self.conns.get_mut(slot)
        else {
            return;
        };
        let (written, result) = ws.outbox.flush_on(begun, transport, &mut self.scratch);
        ws.drained(written.bytes, tick, limits);
        if written.bytes > 0
            && let Some(pace) = ws.pace()
        {
            pace.read(written.bytes, tick);
        }
        let has_left = ws.outbox.is_empty() && ws.outgoing == Outgoing::Closing;
        let may_end = has_left && ws.told;
        let ended = ws.eof || ws.peer_closed;
        let idle = ws.inbox.is_empty();
        self.counters().bytes_out.add_alone(written.bytes as u64);
        self.counters().messages_out.add_alone(written.messages);
        if result.is_err() {
            self.broken(slot);
            return;
        }
        self.note_fill(slot);
        if let Some(ws) = self.ws(slot)
            && ws.outbox.is_empty()
        {
            ws.clear(|rare| &mut rare.pace);
        }
        if may_end && ended {
            // RFC 6455 §7.1.1: the server ends the TCP stream first. Nothing more comes that would make it a reset.
            self.free(slot);
            return;
        }
        if may_end {
            self.linger(slot);
            return;
        }
        if !idle {
            self.advance(slot);
        }
        self.want_read(slot);
    }

    /// The engine stops: everyone is told (RFC 6455 §7.4.1, 1001).
    pub(crate) fn ws_stop(&mut self, slot: u32) {
        self.close_ws(slot, CloseCode::GOING_AWAY, "server is shutting down");
    }

    /// The engine has stopped, and this connection has not ended in time.
    pub(crate) fn ws_abandon(&mut self, slot: u32) {
        let Some(key) = self.conns.key(slot) else {
            return;
        };
        let unsent = self.pending_run(slot);
        if let Some(ws) = self.ws(slot) {
            ws.session.set_status(Status::Closed);
        }
        self.talk_ends(slot, Ending::Gone);
        self.leave(slot);
        let Some(ws) = self.ws(slot) else {
            return;
        };
        let lost = ws.outbox.clear() + unsent;
        let session = ws.session.clone();
        let busy = ws.busy;
        self.counters().dropped_closed.add(lost);
        if busy && let Some(ws) = self.ws(slot) {
            let inbox = std::mem::take(&mut ws.inbox);
            // Its handler still runs, and never two do at a time: what is still to be told follows on the same thread.
            self.leave_rooms_behind(&session, &inbox);
            if session.batch_abandoned() {
                let messages = inbox
                    .iter()
                    .filter(|event| matches!(event, Event::Message(_)));
                self.counters()
                    .dropped_unhandled
                    .add(messages.count() as u64);
                self.depart(slot);
                return;
            }
            let _ = session.rooms_left_behind();
            if let Some(ws) = self.ws(slot) {
                ws.inbox = inbox;
            }
        }
        self.tell_close(slot, key);
    }
}
