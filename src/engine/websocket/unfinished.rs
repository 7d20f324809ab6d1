//! Messages that have begun: what is held of them, and how long that may last.

use super::{Incoming, Unfinished, WebSocket};
use crate::engine::core::{Core, Role};
use crate::engine::intake::Intake;
use crate::limits::Limits;
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::report::info;
use crate::transport::Transport;

impl WebSocket {
    pub(in crate::engine) fn unfinished_bytes(&self) -> usize {
        self.unfinished
            .as_ref()
            .map_or(0, |unfinished| unfinished.bytes)
    }

    /// What waits because its client does not read the replies to what came before.
    pub(in crate::engine) fn held_back_bytes(&self, limits: &Limits) -> usize {
        if !self.busy && self.holds_back(limits) {
            self.inbox_bytes
        } else {
            0
        }
    }

    /// What it holds of received messages is held no longer.
    pub(in crate::engine) fn let_go(&mut self, intake: &mut Intake) {
        intake.set_unfinished(self.unfinished_bytes(), 0);
        self.unfinished = None;
        intake.sub_unhandled(std::mem::take(&mut self.inbox_bytes));
    }
}

impl<T: Transport> Core<T> {
    /// Something was read: a message may have begun, grown or ended.
    pub(super) fn note_unfinished(&mut self, slot: u32) {
        let tick = self.tick;
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let before = ws.unfinished_bytes();
        if ws.protocol.is_mid_message() {
            let bytes = ws.protocol.held_bytes();
            ws.unfinished
                .get_or_insert_with(|| Box::new(Unfinished { since: tick, bytes }))
                .bytes = bytes;
        } else {
            ws.unfinished = None;
        }
        self.intake.set_unfinished(before, ws.unfinished_bytes());
    }

    pub(super) fn expire_unfinished(&mut self, slot: u32) {
        let tick = self.tick;
        let limits = &self.hub.settings.limits;
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let readable = conn.readable;
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let wants_input = ws.wants_input(limits);
        let Some(unfinished) = &mut ws.unfinished else {
            return;
        };
        if unfinished.since.after(limits.message_timeout) > tick {
            return;
        }
        if readable || !wants_input {
            // What it has sent since is still to be read: its time stands still.
            unfinished.since = tick;
            return;
        }
        self.give_up_on(
            slot,
            CloseCode::POLICY_VIOLATION,
            "the message took too long",
        );
    }

    /// Receives nothing further, as after a violation: what came before is handled, then the connection is closed.
    pub(in crate::engine) fn give_up_on(&mut self, slot: u32, code: CloseCode, reason: &str) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        self.intake.set_unfinished(ws.unfinished_bytes(), 0);
        ws.unfinished = None;
        ws.protocol.abandon();
        ws.farewell = Some(encode::close(Some((code, reason))).into());
        ws.incoming = Incoming::Ended;
        let id = ws.session.id;
        ws.session
            .span
            .within(|| info!("connection {id} is disconnected: {reason}"));
        self.counters().unfinished_messages.add(1);
        self.advance(slot);
        self.arm(slot);
    }
}
