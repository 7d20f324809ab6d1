//! Sessions that speak a subprotocol of the program's own: it hears what they receive when it comes, before it is queued for
//! their handlers, and of their end while a handler may still be at work.

use crate::engine::model::job::Event;
use crate::engine::model::program::{Ending, Receipt};
use crate::engine::parts::id::Key;
use crate::engine::reactor::websocket::Incoming;
use crate::engine::reactor::{Conn, Core, Role};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::report::limited;
use crate::transport::Transport;

impl<T: Transport> Core<T> {
    /// A message of such a session.
    pub(super) fn hear(&mut self, slot: u32, message: Message) {
        let limits = &self.hub.settings.limits;
        let Some(Conn {
            role: Role::WebSocket(ws),
            ..
        }) = self.conns.get_mut(slot)
        else {
            return;
        };
        if ws.incoming != Incoming::Open {
            self.counters().dropped_unhandled.add_alone(1);
            return;
        }
        let is_roomy = !ws.holds_back(limits);
        match self.events.received(&ws.session, &message, is_roomy) {
            Receipt::Keep => ws.keep(message, &mut self.intake),
            Receipt::Done => {}
            Receipt::Answer(answer) => {
                let (frame, _) = answer.into_frame();
                self.send(slot, frame, 1);
            }
            Receipt::Refuse(code, reason) => {
                let farewell = encode::close(Some((code, &reason)));
                ws.rare().farewell = Some(farewell.into());
                ws.incoming = Incoming::Ended;
                let id = ws.session.id;
                let said = &self.hub.said.broken_protocol;
                ws.session.span.within(|| {
                    limited!(
                        said,
                        info,
                        "connection {id} broke its subprotocol: {reason}"
                    );
                });
                if code != CloseCode::TRY_AGAIN_LATER {
                    self.counters().protocol_errors.add(1);
                }
                self.talk_ends(slot, Ending::Refused);
            }
        }
    }

    /// Nothing more is received, for the reason that its incoming half has ended.
    pub(super) fn talk_ends_as_incoming(&mut self, slot: u32) {
        if let Some(ws) = self.ws(slot) {
            let ending = match ws.peer_closed {
                true => Ending::Gone,
                false => Ending::Refused,
            };
            self.talk_ends(slot, ending);
        }
    }

    pub(super) fn talk_ends(&mut self, slot: u32, ending: Ending) {
        if let Some(Conn {
            role: Role::WebSocket(ws),
            ..
        }) = self.conns.get(slot)
            && ws.session.talk().is_some()
        {
            self.events.ending(&ws.session, ending);
        }
    }

    /// The program has something of its own for a session's handlers.
    pub(crate) fn nudge(&mut self, key: Key) {
        let Some(slot) = self.conns.find(key) else {
            return;
        };
        if let Some(ws) = self.ws(slot)
            && !ws.told
        {
            self.keep_event(slot, Event::Nudge);
            self.advance(slot);
        }
    }
}
