//! Sessions that speak a subprotocol of the program's own: the program hears their messages when they come, before they are
//! queued for their handlers, and of their end while a handler may still be at work.

use crate::engine::model::job::Event;
use crate::engine::model::program::{MessageVerdict, PeerEnd};
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::transport::Transport;

impl WebSocket {
    /// A message of such a session.
    pub(super) fn on_protocol_message<T: Transport>(
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

    /// The message breaks the subprotocol: nothing more is received.
    fn refuse_message<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        code: CloseCode,
        reason: &str,
    ) {
        self.on_violation(cx, "its subprotocol", code, reason);
        self.on_protocol_end(cx, PeerEnd::Refused);
    }

    /// Nothing more is received, or nothing more is sent.
    pub(super) fn on_protocol_end<T: Transport>(&self, cx: &ConnCx<'_, T>, ending: PeerEnd) {
        if self.session.protocol_state().is_some() {
            cx.shard.program.ending(&self.session, ending);
        }
    }

    /// The program has something of its own for the session's handlers.
    pub(crate) fn nudge<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if !self.has_departed() {
            self.keep_event(Event::Nudge, &mut cx.shard.receive_budget);
            self.advance(cx);
        }
    }
}
