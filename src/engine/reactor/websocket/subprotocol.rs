//! Sessions that speak a subprotocol of the program: the program receives their messages when they arrive, before they
//! are queued for handlers, and learns of their end while a handler may still run.

use crate::engine::model::job::SessionEvent;
use crate::engine::model::program::{MessageVerdict, PeerEnd};
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::transport::ShardTransport;

impl WebSocket {
    /// Passes a message to the program, and carries out its verdict.
    pub(super) fn on_protocol_message<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        message: Message,
    ) {
        if self.receiving != Receiving::Open {
            cx.shard.counters().dropped_unhandled.add_alone(1);
            return;
        }
        let outbox_has_room = !self.holds_back(cx.shard.limits());
        let receipt = cx
            .shard
            .program
            .received(&self.session, &message, outbox_has_room);
        match receipt {
            MessageVerdict::Keep => self.keep(message, &mut cx.shard.receive_budget),
            MessageVerdict::Done => {}
            MessageVerdict::Answer(answer) => {
                let (frame, _) = answer.into_frame();
                self.send(cx, frame, 1);
            }
            MessageVerdict::Refuse(code, reason) => self.refuse_message(cx, code, &reason),
        }
    }

    /// Receives nothing more, since the message breaks the subprotocol.
    fn refuse_message<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        code: CloseCode,
        reason: &str,
    ) {
        self.on_violation(cx, "its subprotocol", code, reason);
        self.on_protocol_end(cx, PeerEnd::Refused);
    }

    /// Tells the program that nothing more is received, or that nothing more can be sent.
    pub(super) fn on_protocol_end<T: ShardTransport>(&self, cx: &ConnCx<'_, T>, ending: PeerEnd) {
        if self.session.protocol_state().is_some() {
            cx.shard.program.ending(&self.session, ending);
        }
    }

    /// Queues an event that the program has asked for (`Hub::nudge`).
    pub(crate) fn nudge<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if !self.has_departed() {
            self.keep_event(SessionEvent::Nudge, &mut cx.shard.receive_budget);
            self.advance(cx);
        }
    }
}
