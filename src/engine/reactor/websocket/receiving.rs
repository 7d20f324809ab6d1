//! Receiving from the client: bytes, messages and the end of the stream; and the time limit of unfinished messages.

use crate::engine::model::command::{Received, Upgraded};
use crate::engine::model::job::SessionEvent;
use crate::engine::model::program::PeerEnd;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::reactor::receive_budget::ReceiveBudget;
use crate::engine::reactor::websocket::cold::Unfinished;
use crate::engine::reactor::websocket::{Handlers, Receiving, WebSocket};
use crate::engine::reactor::{ConnCx, Reader};
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::connection::ReceiveRules;
use crate::protocol::encode::Opcode;
use crate::protocol::{connection, encode};
use crate::report::limited;
use crate::transport::ShardTransport;

/// The overhead of a queued event: its place in a list that may be half empty, and an allocation.
pub(super) const EVENT_BYTES: usize = 2 * size_of::<SessionEvent>() + 16;

/// The messages of one read.
#[derive(Default)]
pub(super) struct Counted {
    messages: u64,
    /// The number of messages that no handler receives.
    unhandled: u64,
}

impl WebSocket {
    /// Queues a message for the handlers.
    #[inline]
    pub(super) fn keep(&mut self, message: Message, budget: &mut ReceiveBudget) {
        let bytes = message.frame().len() + EVENT_BYTES;
        self.inbox_bytes += bytes;
        budget.add_unhandled(bytes);
        if self.inbox.capacity() == 0 {
            self.inbox = budget.spare();
        }
        self.inbox.push(SessionEvent::Message(message));
    }

    /// Queues an event other than a message for the handlers.
    pub(in crate::engine::reactor) fn keep_event(
        &mut self,
        event: SessionEvent,
        budget: &mut ReceiveBudget,
    ) {
        let bytes = EVENT_BYTES;
        self.inbox_bytes += bytes;
        budget.add_unhandled(bytes);
        self.inbox.push(event);
    }

    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.unfinished().map_or(0, |unfinished| unfinished.bytes)
    }

    /// Updates the budget after the unfinished message has changed.
    fn set_unfinished(&self, before: usize, now: usize, budget: &mut ReceiveBudget) {
        if before != now {
            let address = counted_as(self.session.client_ip());
            let slot = self.session.id.key().slot;
            budget.unfinished.set(address, slot, before, now);
        }
    }

    /// Updates the bytes that are held back, after the inbox, the outbox or the state of the handlers has changed.
    #[inline]
    pub(crate) fn note_held_back(&mut self, limits: &Limits, budget: &mut ReceiveBudget) {
        let now = self.held_back_bytes(limits);
        if now != self.held_back_indexed() {
            self.index_held_back(now, budget);
        }
    }

    #[cold]
    fn index_held_back(&mut self, now: usize, budget: &mut ReceiveBudget) {
        let before = self.set_held_back_indexed(now);
        let address = counted_as(self.session.client_ip());
        let slot = self.session.id.key().slot;
        let too_early = self.held_input_bytes();
        budget
            .held_back
            .set(address, slot, before + too_early, now + too_early);
    }

    /// Stops counting and timing the unfinished message.
    pub(super) fn forget_unfinished(&mut self, budget: &mut ReceiveBudget) {
        if let Some(unfinished) = self.clear(|cold| &mut cold.unfinished) {
            self.set_unfinished(unfinished.bytes, 0, budget);
        }
    }

    /// Bytes of messages that wait because the client does not read the replies to earlier ones.
    pub(crate) fn held_back_bytes(&self, limits: &Limits) -> usize {
        if self.handlers != Handlers::Running && self.holds_back(limits) {
            #[cfg(feature = "deflate")]
            let parked = self.parked_bytes();
            #[cfg(not(feature = "deflate"))]
            let parked = 0;
            self.inbox_bytes + parked
        } else {
            0
        }
    }

    /// Stops counting the received messages of the connection.
    pub(crate) fn let_go(&mut self, budget: &mut ReceiveBudget) {
        self.forget_unfinished(budget);
        #[cfg(feature = "deflate")]
        self.forget_parked(budget);
        self.forget_rate(budget);
        budget.sub_unhandled(std::mem::take(&mut self.inbox_bytes));
        if self.held_back_indexed() > 0 {
            self.index_held_back(0, budget);
        }
    }
}

impl WebSocket {
    /// Continues where a host has stopped reading.
    pub(super) fn resume<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        handed_over: Upgraded,
    ) {
        if let Some(received) = handed_over.received {
            self.resume_messages(cx, received);
        }
        if handed_over.has_output_ended {
            // Nothing more may be sent either: handlers get the messages, and then the disconnect.
            self.stop_receiving();
            self.end_sending(cx, None);
            self.advance(cx);
        } else if handed_over.has_input_ended {
            // Earlier messages are still answered, then the close reply is sent.
            self.stop_receiving();
            if let Some(reply) = handed_over.close_reply {
                // If the messages exceed the rate, our own close frame is queued already.
                self.cold().close_reply.get_or_insert(reply.into());
            }
            self.on_protocol_end(cx, PeerEnd::Gone);
            self.advance(cx);
        }
    }

    fn resume_messages<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, received: Received) {
        let count = received.messages.len() as u64;
        cx.shard.counters().messages_in.add_alone(count);
        let mut messages = received.messages;
        let excess = self.charge_handed_over(cx, &mut messages);
        self.protocol = received.protocol.into_progress();
        let mut unhandled = count;
        if cx.shard.subscriptions.message {
            unhandled -= messages.len() as u64;
            for message in messages {
                self.take_message(cx, message);
            }
        }
        cx.shard.counters().dropped_unhandled.add_alone(unhandled);
        if let Some(excess) = excess {
            self.close_over_rate(cx, excess.reason());
            self.on_input_over(cx);
        }
        self.note_unfinished(cx);
        self.advance(cx);
    }

    /// Processes a message: the program receives it first if the session speaks a subprotocol.
    #[inline(always)] // Runs for each message.
    pub(super) fn take_message<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        message: Message,
    ) {
        let may_be_protocol = !cx.shard.subscriptions.subprotocols.is_empty();
        if may_be_protocol && self.session.protocol_state().is_some() {
            self.on_protocol_message(cx, message);
        } else {
            self.keep(message, &mut cx.shard.receive_budget);
        }
    }

    /// Processes the input, as far as it can be processed now. Returns the number of bytes left at its end.
    #[inline(always)] // Runs for each read.
    pub(super) fn take_input<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        bytes: &mut [u8],
    ) -> usize {
        let mut input = bytes;
        let mut counted = Counted::default();
        while !input.is_empty()
            && !self.receiving.is_over()
            && self.take_next::<T, false>(cx, &mut input, &mut counted)
        {}
        self.input_taken(cx, &counted);
        match self.receiving.is_over() {
            true => 0,
            false => input.len(),
        }
    }

    /// Counts the messages of one read, and records how it has ended.
    #[inline(always)] // Runs for each read.
    pub(super) fn input_taken<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        counted: &Counted,
    ) {
        let &Counted {
            messages,
            unhandled,
        } = counted;
        cx.shard.counters().messages_in.add_alone(messages);
        cx.shard.counters().dropped_unhandled.add_alone(unhandled);
        self.on_input_over(cx);
        if messages > 0 {
            // An unfinished message that remains now has begun with this read.
            self.forget_unfinished(&mut cx.shard.receive_budget);
        }
        self.note_unfinished(cx);
    }

    /// Tells the program, if nothing more is received.
    #[inline(always)] // Runs for each read.
    pub(super) fn on_input_over<T: ShardTransport>(&self, cx: &ConnCx<'_, T>) {
        if self.receiving.is_over() {
            let ending = match self.receiving {
                Receiving::Closed | Receiving::Eof => PeerEnd::Gone,
                _ => PeerEnd::Refused,
            };
            self.on_protocol_end(cx, ending);
        }
    }

    /// Processes the input that was read behind a parked message.
    #[cfg(feature = "deflate")]
    pub(super) fn take_rest_of_input<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        mut rest: Vec<u8>,
        at: usize,
    ) {
        let unread = self.take_within_rate(cx, &mut rest[at..]);
        let at = rest.len() - unread;
        self.hold_input(cx, rest, at);
        self.settle_rate(cx);
        self.advance(cx);
        cx.want_read();
    }

    /// Processes one message or control frame of the input. Returns whether there may be more that can be processed now.
    /// If `FRAME_BY_FRAME`, returns false after each fragment.
    #[inline(always)] // Runs for each message.
    pub(super) fn take_next<T: ShardTransport, const FRAME_BY_FRAME: bool>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        input: &mut &mut [u8],
        counted: &mut Counted,
    ) -> bool {
        let rules = ReceiveRules {
            message_bytes_max: cx.shard.limits().message_bytes_max,
            compressed: self.compression.is_agreed(),
        };
        let received = match FRAME_BY_FRAME {
            true => self.protocol.receive_frame(input, rules),
            false => self.protocol.receive(input, rules),
        };
        match received {
            Ok(None) => return false,
            Ok(Some(connection::ProtocolEvent::Message { text, payload })) => {
                counted.messages += 1;
                if cx.shard.subscriptions.message && self.receiving == Receiving::Open {
                    self.take_message(cx, Message::from_payload(payload, text));
                } else {
                    counted.unhandled += 1;
                }
            }
            Ok(Some(connection::ProtocolEvent::Compressed { text, payload })) => {
                counted.messages += 1;
                if !(cx.shard.subscriptions.message && self.receiving == Receiving::Open) {
                    counted.unhandled += 1;
                    return true;
                }
                #[cfg(feature = "deflate")]
                return self.take_compressed(cx, payload, text);
                #[cfg(not(feature = "deflate"))]
                let _ = (text, payload);
            }
            Ok(Some(connection::ProtocolEvent::Ping(payload))) => self.answer_ping(cx, &payload),
            Ok(Some(connection::ProtocolEvent::Pong(_))) => {}
            Ok(Some(connection::ProtocolEvent::Close(frame))) => {
                // RFC 6455 §5.5.1: the reply echoes the code that was received.
                let reply = encode::close(frame.code.map(|code| (code, "")));
                self.cold().close_reply = Some(reply.into());
                self.receiving = Receiving::Closed;
            }
            Err(violation) => self.on_violation(
                cx,
                "the protocol",
                violation.close_code(),
                &violation.to_string(),
            ),
        }
        true
    }

    /// RFC 6455 §5.5.2
    fn answer_ping<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, payload: &[u8]) {
        if !self.is_open() {
            return;
        }
        let pong = encode::control(Opcode::Pong, payload);
        if !self.outbox.controls_full() {
            self.outbox.push_control(pong.into(), cx.shard.tick);
        } else {
            self.write(cx);
            if self.is_open() {
                self.outbox
                    .push_control_or_replace(pong.into(), cx.shard.tick);
            }
        }
        self.want_write(cx);
    }

    /// Receives nothing more after a protocol violation. Earlier messages are handled, then the connection is closed
    /// with this code and reason.
    #[cold]
    pub(super) fn on_violation<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        of: &str,
        code: CloseCode,
        reason: &str,
    ) {
        let reply = encode::close(Some((code, reason)));
        self.cold().close_reply = Some(reply.into());
        self.receiving = Receiving::Stopped;
        let id = self.session.id;
        let logged = &cx.shard.hub.logged.broken_protocol;
        self.session.span.within(|| {
            limited!(logged, info, "connection {id} broke {of}: {reason}");
        });
        if code != CloseCode::TRY_AGAIN_LATER {
            cx.shard.counters().protocol_errors.add(1);
        }
    }

    /// Updates the unfinished message after a read: one may have begun, grown or ended.
    #[inline]
    pub(super) fn note_unfinished<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let before = self.unfinished_bytes();
        // A part of a TLS record counts as a part of a message, too.
        let in_transport = match (&cx.socket.transport, self.receiving) {
            (Some(transport), Receiving::Open) => transport.received_bytes(),
            _ => 0,
        };
        if self.protocol.is_mid_message() || in_transport > 0 {
            let bytes = self.protocol.held_bytes() + in_transport;
            let since = cx.shard.tick;
            self.cold()
                .unfinished
                .get_or_insert(Unfinished {
                    since,
                    late: false,
                    bytes,
                    len_before: 0,
                })
                .bytes = bytes;
        } else {
            self.clear(|cold| &mut cold.unfinished);
        }
        self.set_unfinished(
            before,
            self.unfinished_bytes(),
            &mut cx.shard.receive_budget,
        );
    }

    /// Checks the time limit of the unfinished message. The client may have just sent more of it.
    pub(super) fn expire_unfinished<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        has_sent: bool,
    ) {
        let tick = cx.shard.tick;
        let limits = cx.shard.limits();
        let readable = cx.socket.readable;
        let is_paused = self.is_paused(limits) || cx.shard.receive_budget.is_full();
        let len = self.protocol.message_len();
        let growth_min = cx
            .shard
            .receive_rates
            .and_then(|rates| rates.message_growth_min(limits.message_timeout));
        let Some(unfinished) = self.cold.as_mut().and_then(|cold| cold.unfinished.as_mut()) else {
            return;
        };
        if unfinished.since.after(limits.message_timeout) > tick {
            return;
        }
        // The client can't send more while its reading is paused, nor faster than the limit of bytes. A delay alone renews
        // nothing: otherwise a client that sends too fast could keep a message unfinished without end.
        let grown = len.saturating_sub(unfinished.len_before);
        if is_paused || growth_min.is_some_and(|min| grown >= min) {
            unfinished.since = tick;
            unfinished.len_before = len;
            return;
        }
        if (readable || has_sent) && !unfinished.late {
            // Bytes that arrived in time may still be unread. A client that keeps sending has one extension only.
            unfinished.since = tick;
            unfinished.late = true;
            return;
        }
        self.evict(cx, CloseCode::POLICY_VIOLATION, "the message took too long");
    }
}

impl<T: ShardTransport> Reader<T> for WebSocket {
    fn input(&mut self, cx: &mut ConnCx<'_, T>, bytes: &mut [u8]) {
        cx.shard.counters().bytes_in.add_alone(bytes.len() as u64);
        if self.is_stream() {
            // A further request on a connection that is about to close. It may have completed a TLS record.
            self.note_unfinished(cx);
            return;
        }
        self.last_received = cx.shard.tick;
        self.pinged = false;
        let unread = self.take_input(cx, bytes);
        #[cfg(feature = "deflate")]
        if unread > 0 {
            let rest = bytes[bytes.len() - unread..].to_vec();
            self.park_rest(rest, 0, &mut cx.shard.receive_budget);
        }
        #[cfg(not(feature = "deflate"))]
        debug_assert_eq!(unread, 0, "nothing is to be kept for later");
        self.advance(cx);
    }

    fn input_incomplete(&mut self, cx: &mut ConnCx<'_, T>) {
        // Any byte is a sign of life, as without TLS.
        self.last_received = cx.shard.tick;
        self.pinged = false;
        self.note_unfinished(cx);
    }

    /// The client has ended its stream. Earlier messages are still answered.
    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>) {
        self.receiving = Receiving::Eof;
        self.protocol.abandon();
        self.on_protocol_end(cx, PeerEnd::Gone);
        self.note_unfinished(cx);
        self.advance(cx);
    }

    fn broken(&mut self, cx: &mut ConnCx<'_, T>) {
        self.break_off(cx);
    }
}
