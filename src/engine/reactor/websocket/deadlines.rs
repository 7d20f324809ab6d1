//! Deadlines of a WebSocket: closing handshake, writes, pace and heartbeat.

use bytes::Bytes;

use crate::engine::model::settings::Settings;
use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::sync::lock;

use crate::limits::SlowConsumer;
use crate::protocol::close::CloseCode;
use crate::protocol::encode::Opcode;
use crate::protocol::{encode, event_stream};
use crate::report::limited;
use crate::transport::ShardTransport;

impl WebSocket {
    /// Whether the deadline has passed by which the client should have sent something.
    fn is_silent_too_long(&self, settings: &Settings, now: Tick) -> bool {
        let closing = self.closing_deadline();
        let message = self
            .unfinished()
            .map(|unfinished| unfinished.since.after(settings.limits.message_timeout));
        let heartbeat = settings.heartbeat.filter(|_| self.pinged);
        let pong = heartbeat.map(|heartbeat| self.last_received.after(heartbeat.silence_max()));
        let deadlines = [closing, message, pong];
        deadlines.into_iter().flatten().any(|due| due <= now)
    }
}

impl WebSocket {
    /// Handles a deadline that may have passed.
    pub(crate) fn expire<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let tick = cx.shard.tick;
        let is_silent = self.is_silent_too_long(&cx.shard.hub.settings, tick);
        let has_sent =
            is_silent && !self.is_delayed() && cx.may_read_before_verdict() && self.read(cx);
        if cx.is_over() {
            return;
        }
        let is_due = |deadline: Option<Tick>| deadline.is_some_and(|deadline| deadline <= tick);
        let closing_is_over = is_due(self.closing_deadline());
        if is_due(self.drain_deadline()) {
            // The socket may have room that was not reported. A client that has stopped reading has none.
            self.write(cx);
            if cx.is_over() {
                return;
            }
            if is_due(self.drain_deadline()) {
                let newly = !self.slow_counted;
                cx.shard.counters().slow_consumers.add(u64::from(newly));
                self.break_off(cx);
                return;
            }
        }
        if closing_is_over {
            self.end_unanswered(cx);
            return;
        }
        self.expire_unfinished(cx, has_sent);
        self.expire_pace(cx);
        self.expire_comment(cx);
        self.expire_heartbeat(cx);
        // Last: the deadlines above are not judged while the connection is delayed.
        self.expire_delay(cx);
    }

    /// Ends a connection whose client does not answer the close frame.
    fn end_unanswered<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        // If something is left to be sent, the client must see that its stream was cut.
        if self.outbox.is_empty()
            && let Some(transport) = &mut cx.socket.transport
            && !transport.has_pending()
        {
            transport.close_notify();
        }
        self.break_off(cx);
    }

    /// Closes the connection, since its session has expired.
    pub(crate) fn expire_session<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if self.is_open() {
            cx.shard.counters().expired.add(1);
            self.close(cx, CloseCode::UNAUTHORIZED, "session expired");
        }
    }

    fn expire_pace<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let tick = cx.shard.tick;
        let is_due = |pace: &mut Pace| pace.deadline().is_some_and(|deadline| deadline <= tick);
        if !self.pace().is_some_and(is_due) {
            return;
        }
        self.write(cx);
        if cx.is_over() {
            return;
        }
        let SlowConsumer::Pace { patience, .. } = cx.shard.hub.settings.slow_consumer else {
            return;
        };
        let now = cx.shard.now;
        let allowance = lock(&cx.shard.hub.wasted_waits).allowance(patience, now);
        let Some(pace) = self.pace() else {
            return;
        };
        pace.tried(allowance, tick);
        if pace.deadline().is_some() && pace.is_used_up(allowance, tick) {
            let waited = pace.waited();
            lock(&cx.shard.hub.wasted_waits).add(waited, patience, now);
            self.disconnect_slow(cx);
        }
    }

    /// Sends a comment, which shows an event stream's client, and proxies in between, that the connection is alive.
    fn expire_comment<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let tick = cx.shard.tick;
        if !self.is_open() {
            return;
        }
        let Some(stream) = self.stream().filter(|stream| stream.comment_at <= tick) else {
            return;
        };
        stream.comment_at = tick.after(stream.keep_alive);
        // If bytes wait, the socket takes nothing, and another deadline applies.
        if self.outbox.is_empty() {
            self.outbox
                .push_control(Bytes::from_static(event_stream::KEEP_ALIVE), tick);
            self.want_write(cx);
        }
    }

    fn expire_heartbeat<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let tick = cx.shard.tick;
        let Some(heartbeat) = cx.shard.hub.settings.heartbeat else {
            return;
        };
        if self.receiving != Receiving::Open || !self.is_open() || self.is_stream() {
            return;
        }
        if cx.socket.readable || self.is_paused(cx.shard.limits()) {
            // Bytes that it has sent since are still unread, so its deadline does not advance. If it is delayed, they may
            // last for long, and its next pong is behind them.
            self.last_received = tick;
            self.ping_delayed(cx, heartbeat.interval);
            return;
        }
        if self.pinged && self.last_received.after(heartbeat.silence_max()) <= tick {
            let id = self.session.id;
            let logged = &cx.shard.hub.logged.silent;
            self.session.span.within(|| {
                limited!(
                    logged,
                    info,
                    "connection {id} has been silent for too long and is disconnected"
                );
            });
            cx.shard.counters().heartbeat_timeouts.add(1);
            self.close(cx, CloseCode::INTERNAL_ERROR, "keepalive ping timeout");
            // The peer does not answer: send the close frame if possible, and end the connection.
            self.write(cx);
            self.end_unanswered(cx);
        } else if !self.pinged && self.last_received.after(heartbeat.interval) <= tick {
            self.pinged = true;
            if !self.outbox.controls_full() {
                self.outbox
                    .push_control(encode::control(Opcode::Ping, &[]).into(), tick);
            }
            self.want_write(cx);
        }
    }
}
