//! What comes from the client: bytes, messages, its end; and messages that have begun, which may not take for ever.

use crate::engine::model::command::Received;
use crate::engine::model::job::Event;
use crate::engine::model::program::Ending;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::reactor::receive_budget::Intake;
use crate::engine::reactor::websocket::rare::Unfinished;
use crate::engine::reactor::websocket::{Incoming, Outgoing, WebSocket};
use crate::engine::reactor::{Conn, Core, Role};
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::encode::Opcode;
use crate::protocol::{connection, encode};
use crate::report::limited;
use crate::transport::Transport;

/// What an event takes that waits for the handlers, beside its message: its place in a list that may be half empty, and an
/// allocation.
pub(super) const EVENT_BYTES: usize = 2 * size_of::<Event>() + 16;

impl WebSocket {
    /// Keeps a message for the handlers.
    #[inline]
    pub(super) fn keep(&mut self, message: Message, intake: &mut Intake) {
        let bytes = message.frame().len() + EVENT_BYTES;
        self.inbox_bytes += bytes;
        intake.add_unhandled(bytes);
        if self.inbox.capacity() == 0 {
            self.inbox = intake.spare();
        }
        self.inbox.push(Event::Message(message));
    }

    /// Keeps anything else for the handlers.
    pub(super) fn keep_event(&mut self, event: Event, intake: &mut Intake) {
        let bytes = EVENT_BYTES;
        self.inbox_bytes += bytes;
        intake.add_unhandled(bytes);
        self.inbox.push(event);
    }

    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.unfinished().map_or(0, |unfinished| unfinished.bytes)
    }

    /// What is held of the message that has begun has changed.
    fn set_unfinished(&self, before: usize, now: usize, intake: &mut Intake) {
        if before != now {
            let address = counted_as(self.session.client_ip());
            let slot = self.session.id.key().slot;
            intake.unfinished.set(address, slot, before, now);
        }
    }

    /// What is held back may have changed: its inbox, its outbox, or whether handlers are at work for it.
    #[inline]
    pub(crate) fn note_held_back(&mut self, limits: &Limits, intake: &mut Intake) {
        let now = self.held_back_bytes(limits);
        if now != self.held_back_indexed() {
            self.index_held_back(now, intake);
        }
    }

    #[cold]
    fn index_held_back(&mut self, now: usize, intake: &mut Intake) {
        let before = self.set_held_back_indexed(now);
        let address = counted_as(self.session.client_ip());
        let slot = self.session.id.key().slot;
        intake.held_back.set(address, slot, before, now);
    }

    /// The message that had begun is no longer waited for.
    fn forget_unfinished(&mut self, intake: &mut Intake) {
        if let Some(unfinished) = self.clear(|rare| &mut rare.unfinished) {
            self.set_unfinished(unfinished.bytes, 0, intake);
        }
    }

    /// What waits because its client does not read the replies to what came before.
    pub(crate) fn held_back_bytes(&self, limits: &Limits) -> usize {
        if !self.busy && self.holds_back(limits) {
            self.inbox_bytes
        } else {
            0
        }
    }

    /// What it holds of received messages is held no longer.
    pub(crate) fn let_go(&mut self, intake: &mut Intake) {
        self.forget_unfinished(intake);
        intake.sub_unhandled(std::mem::take(&mut self.inbox_bytes));
        if self.held_back_indexed() > 0 {
            self.index_held_back(0, intake);
        }
    }
}

impl<T: Transport> Core<T> {
    /// Keeps an event that is no message for the handlers.
    pub(crate) fn keep_event(&mut self, slot: u32, event: Event) {
        if let Some(Conn {
            role: Role::WebSocket(ws),
            ..
        }) = self.conns.get_mut(slot)
        {
            ws.keep_event(event, &mut self.intake);
        }
    }

    /// Goes on where somebody else has stopped reading.
    pub(crate) fn resume(&mut self, slot: u32, received: Received) {
        let wants_messages = self.interests.message;
        let count = received.messages.len() as u64;
        self.counters().messages_in.add_alone(count);
        if !wants_messages {
            self.counters().dropped_unhandled.add_alone(count);
        }
        if let Some(Conn {
            role: Role::WebSocket(ws),
            ..
        }) = self.conns.get_mut(slot)
        {
            ws.protocol = received.protocol.into_progress();
            if wants_messages {
                if ws.session.talk().is_none() {
                    for message in received.messages {
                        ws.keep(message, &mut self.intake);
                    }
                } else {
                    for message in received.messages {
                        self.hear(slot, message);
                    }
                }
            }
        }
        self.note_unfinished(slot);
        self.advance(slot);
    }

    /// The same, where the client has ended: what it asked for before is still answered, then this frame.
    pub(crate) fn resume_ended(&mut self, slot: u32, farewell: Option<Vec<u8>>) {
        if let Some(ws) = self.ws(slot) {
            ws.incoming = Incoming::Ended;
            if let Some(farewell) = farewell {
                ws.rare().farewell = Some(farewell.into());
            }
        }
        self.talk_ends(slot, Ending::Gone);
        self.advance(slot);
    }

    /// The same, where nothing more may be sent either: handlers are told what there is, and then the disconnect.
    pub(crate) fn resume_closed(&mut self, slot: u32) {
        if let Some(ws) = self.ws(slot) {
            ws.incoming = Incoming::Ended;
        }
        self.end_outgoing(slot, None);
        self.advance(slot);
    }

    /// Bytes from the client.
    pub(crate) fn ws_input(&mut self, slot: u32, bytes: &mut [u8]) {
        let tick = self.tick;
        self.counters().bytes_in.add_alone(bytes.len() as u64);
        if self.ws(slot).is_some_and(|ws| ws.is_stream()) {
            // A further request on a connection that is to be closed.
            return;
        }
        if let Some(ws) = self.ws(slot) {
            ws.heard = tick;
            ws.pinged = false;
        }
        let wants_messages = self.interests.message;
        let may_talk = !self.interests.subprotocols.is_empty();
        let message_bytes_max = self.hub.settings.limits.message_bytes_max;
        let mut input = bytes;
        let mut messages = 0;
        let mut unhandled = 0;
        while !input.is_empty()
            && let Some(Conn {
                role: Role::WebSocket(ws),
                ..
            }) = self.conns.get_mut(slot)
        {
            if ws.incoming == Incoming::Ended {
                break;
            }
            match ws.protocol.receive(&mut input, message_bytes_max) {
                Ok(None) => break,
                Ok(Some(connection::ProtocolEvent::Message { text, payload })) => {
                    messages += 1;
                    if wants_messages && ws.incoming == Incoming::Open {
                        let message = Message::from_payload(payload, text);
                        if may_talk && ws.session.talk().is_some() {
                            self.hear(slot, message);
                        } else {
                            ws.keep(message, &mut self.intake);
                        }
                    } else {
                        unhandled += 1;
                    }
                }
                Ok(Some(connection::ProtocolEvent::Ping(payload))) => {
                    if ws.outgoing == Outgoing::Open {
                        // RFC 6455 §5.5.2
                        let crowded = ws.outbox.controls_full();
                        if !crowded {
                            ws.outbox
                                .push_control(encode::control(Opcode::Pong, &payload).into());
                        } else {
                            let pong = encode::control(Opcode::Pong, &payload);
                            self.ws_write(slot);
                            if let Some(ws) = self.open_ws(slot) {
                                ws.outbox.push_control_or_replace(pong.into());
                            }
                        }
                        self.want_write(slot);
                    }
                }
                Ok(Some(connection::ProtocolEvent::Pong(_))) => {}
                Ok(Some(connection::ProtocolEvent::Close(frame))) => {
                    // RFC 6455 §5.5.1: the answer has the code that was received.
                    let farewell = encode::close(frame.code.map(|code| (code, "")));
                    ws.rare().farewell = Some(farewell.into());
                    ws.incoming = Incoming::Ended;
                    ws.peer_closed = true;
                }
                Err(violation) => {
                    let reason = violation.to_string();
                    let farewell = encode::close(Some((violation.close_code(), &reason)));
                    ws.rare().farewell = Some(farewell.into());
                    ws.incoming = Incoming::Ended;
                    let id = ws.session.id;
                    let said = &self.hub.said.broken_protocol;
                    ws.session.span.within(|| {
                        limited!(said, info, "connection {id} broke the protocol: {reason}");
                    });
                    self.counters().protocol_errors.add(1);
                }
            }
        }
        self.counters().messages_in.add_alone(messages);
        self.counters().dropped_unhandled.add_alone(unhandled);
        if self
            .ws(slot)
            .is_some_and(|ws| ws.incoming == Incoming::Ended)
        {
            self.talk_ends_as_incoming(slot);
        }
        if messages > 0 {
            // What is unfinished now has begun with what was just read.
            self.forget_unfinished(slot);
        }
        self.note_unfinished(slot);
        self.advance(slot);
        self.make_room();
    }

    /// The client's stream has ended. What it asked for before is still answered.
    pub(crate) fn ws_ended(&mut self, slot: u32) {
        if let Some(ws) = self.ws(slot) {
            ws.incoming = Incoming::Ended;
            ws.eof = true;
            ws.protocol.abandon();
        }
        self.talk_ends(slot, Ending::Gone);
        self.note_unfinished(slot);
        self.advance(slot);
    }

    /// The message that had begun is finished: another one has its time anew.
    fn forget_unfinished(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            ws.forget_unfinished(&mut self.intake);
        }
    }

    /// Something was read: a message may have begun, grown or ended.
    pub(crate) fn note_unfinished(&mut self, slot: u32) {
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
            ws.rare()
                .unfinished
                .get_or_insert(Unfinished {
                    since: tick,
                    late: false,
                    bytes,
                })
                .bytes = bytes;
        } else {
            ws.clear(|rare| &mut rare.unfinished);
        }
        ws.set_unfinished(before, ws.unfinished_bytes(), &mut self.intake);
    }

    /// Its time for the message that has begun may be over; it may just have sent something.
    pub(crate) fn expire_unfinished(&mut self, slot: u32, has_sent: bool) {
        let tick = self.tick;
        let limits = &self.hub.settings.limits;
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let readable = conn.readable;
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let is_read = ws.wants_input(limits) && !self.intake.is_full();
        let Some(unfinished) = ws.rare.as_mut().and_then(|rare| rare.unfinished.as_mut()) else {
            return;
        };
        if unfinished.since.after(limits.message_timeout) > tick {
            return;
        }
        if !is_read {
            // Its time stands still.
            unfinished.since = tick;
            return;
        }
        if (readable || has_sent) && !unfinished.late {
            // What it has sent in time may still be to be read. But who always sends something has not for ever.
            unfinished.since = tick;
            unfinished.late = true;
            return;
        }
        self.give_up_on(
            slot,
            CloseCode::POLICY_VIOLATION,
            "the message took too long",
        );
    }

    /// Receives nothing further, as after a violation: what came before is handled, then the connection is closed.
    pub(crate) fn give_up_on(&mut self, slot: u32, code: CloseCode, reason: &str) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        ws.protocol.abandon();
        ws.rare().farewell = Some(encode::close(Some((code, reason))).into());
        ws.incoming = Incoming::Ended;
        ws.gives_way = true;
        let id = ws.session.id;
        let said = &self.hub.said.disconnected;
        ws.session.span.within(|| {
            limited!(said, info, "connection {id} is disconnected: {reason}");
        });
        self.forget_unfinished(slot);
        self.counters().unfinished_messages.add(1);
        self.talk_ends(slot, Ending::Refused);
        self.advance(slot);
        self.arm(slot);
    }
}
