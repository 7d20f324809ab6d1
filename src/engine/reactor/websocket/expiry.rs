//! Deadlines of a WebSocket: closing, a socket that takes nothing, pace and heartbeat.

use bytes::Bytes;

use crate::engine::model::settings::Settings;
use crate::engine::parts::pace::Pace;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::websocket::{Incoming, Outgoing, WebSocket};
use crate::engine::reactor::{Core, Role};
use crate::limits::SlowConsumer;
use crate::protocol::close::CloseCode;
use crate::protocol::encode::Opcode;
use crate::protocol::{encode, event_stream};
use crate::report::limited;
use crate::sync::lock;
use crate::transport::Transport;

impl WebSocket {
    /// A deadline has come by which it was to send something.
    fn is_silent_too_long(&self, settings: &Settings, now: Tick) -> bool {
        let closing = self.closing_deadline();
        let message = self
            .unfinished()
            .map(|unfinished| unfinished.since.after(settings.limits.message_timeout));
        let heartbeat = settings.heartbeat.filter(|_| self.pinged);
        let pong = heartbeat.map(|heartbeat| self.heard.after(heartbeat.silence_max()));
        let deadlines = [closing, message, pong];
        deadlines.into_iter().flatten().any(|due| due <= now)
    }
}

impl<T: Transport> Core<T> {
    /// A deadline may have come.
    pub(crate) fn ws_expire(&mut self, slot: u32) {
        let tick = self.tick;
        let settings = self.hub.settings.clone();
        let is_silent = self
            .ws(slot)
            .is_some_and(|ws| ws.is_silent_too_long(&settings, tick));
        let has_sent = is_silent && self.read_before_verdict(slot);
        let Some(ws) = self.ws(slot) else {
            return;
        };
        let closing_is_over = ws
            .closing_deadline()
            .is_some_and(|deadline| deadline <= tick);
        let is_over = |ws: &WebSocket| ws.drain_deadline().is_some_and(|at| at <= tick);
        if is_over(ws) {
            // It may have room that was never reported; a reader that has stopped has none.
            self.ws_write(slot);
            let Some(ws) = self.ws(slot) else {
                return;
            };
            if is_over(ws) {
                let newly = !ws.found_slow;
                self.counters().slow_consumers.add(u64::from(newly));
                self.broken(slot);
                return;
            }
        }
        if closing_is_over {
            self.broken(slot);
            return;
        }
        self.expire_unfinished(slot, has_sent);
        self.expire_pace(slot);
        self.expire_comment(slot);
        if settings.heartbeat.is_some() {
            self.expire_heartbeat(slot);
        }
    }

    fn expire_pace(&mut self, slot: u32) {
        let tick = self.tick;
        let is_due = |pace: &mut Pace| pace.deadline().is_some_and(|deadline| deadline <= tick);
        if !self.ws(slot).and_then(WebSocket::pace).is_some_and(is_due) {
            return;
        }
        self.ws_write(slot);
        let SlowConsumer::Pace { patience, .. } = self.hub.settings.slow_consumer else {
            return;
        };
        let now = self.now;
        let allowance = lock(&self.hub.waits_in_vain).allowance(patience, now);
        let Some(pace) = self.ws(slot).and_then(WebSocket::pace) else {
            return;
        };
        pace.tried(allowance, tick);
        if pace.deadline().is_some() && pace.is_used_up(allowance, tick) {
            let waited = pace.waited();
            lock(&self.hub.waits_in_vain).add(waited, patience, now);
            self.disconnect_slow(slot);
        }
    }

    /// Shows an event stream's client, and what is in between, that it is still there.
    fn expire_comment(&mut self, slot: u32) {
        let tick = self.tick;
        let Some(ws) = self.open_ws(slot) else {
            return;
        };
        let Some(stream) = ws.stream().filter(|stream| stream.comment_at <= tick) else {
            return;
        };
        stream.comment_at = tick.after(stream.keep_alive);
        // Where something waits, the socket takes nothing, and there is a deadline for that.
        if ws.outbox.is_empty() {
            ws.outbox
                .push_control(Bytes::from_static(event_stream::KEEP_ALIVE));
            self.want_write(slot);
        }
    }

    fn expire_heartbeat(&mut self, slot: u32) {
        let tick = self.tick;
        let Some(heartbeat) = self.hub.settings.heartbeat else {
            return;
        };
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let readable = conn.readable;
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        if ws.incoming != Incoming::Open || ws.outgoing != Outgoing::Open || ws.is_stream() {
            return;
        }
        if readable || !ws.wants_input(&self.hub.settings.limits) {
            // What it has sent since is still to be read: its deadline stands still.
            ws.heard = tick;
            return;
        }
        if ws.pinged && ws.heard.after(heartbeat.silence_max()) <= tick {
            let id = ws.session.id;
            let said = &self.hub.said.silent;
            ws.session.span.within(|| {
                limited!(
                    said,
                    info,
                    "connection {id} has been silent for too long and is disconnected"
                );
            });
            self.counters().heartbeat_timeouts.add(1);
            self.close_ws(slot, CloseCode::INTERNAL_ERROR, "keepalive ping timeout");
            // Nobody is there to answer: say it, and go.
            self.ws_write(slot);
            self.broken(slot);
        } else if !ws.pinged && ws.heard.after(heartbeat.interval) <= tick {
            ws.pinged = true;
            if !ws.outbox.controls_full() {
                ws.outbox
                    .push_control(encode::control(Opcode::Ping, &[]).into());
            }
            self.want_write(slot);
        }
    }
}
