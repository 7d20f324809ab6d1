//! The end of a WebSocket, from either side.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::model::job::{SessionEvent, Work};
use crate::engine::model::program::PeerEnd;
use crate::engine::model::session::{Session, Status};
use crate::engine::model::verdict::shutting_down;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::write_progress::WriteProgress;
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::websocket::{Handlers, Receiving, Sending, WebSocket};
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::http::BodyMode;
use crate::report::{debug, limited};
use crate::request::Reject;
use crate::transport::ShardTransport;

impl WebSocket {
    /// Ends both directions, since the connection broke.
    pub(crate) fn break_off<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let unsent = cx.shard.fanout.pending_messages(self);
        cx.socket.transport = None;
        cx.socket.readable = false;
        let lost = self.outbox.clear() + unsent;
        cx.shard.fanout.forget_unshared(self);
        self.protocol.abandon();
        self.receiving = Receiving::Eof;
        self.sending = Sending::Broken;
        self.clear(|cold| &mut cold.deadline);
        self.clear(|cold| &mut cold.drain);
        self.unblocked();
        self.session.set_status(Status::Closed);
        cx.shard.counters().dropped_closed.add(lost);
        self.on_protocol_end(cx, PeerEnd::Gone);
        self.note_unfinished(cx);
        self.leave(cx);
        self.advance(cx);
    }

    /// Closes from our side (RFC 6455 §7.1.2): a close frame is queued behind all messages, and nothing after it.
    pub(crate) fn close<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        code: CloseCode,
        reason: &str,
    ) {
        if !self.is_open() {
            return;
        }
        self.take_batches(cx);
        if self.is_stream() {
            self.close_stream(cx, code, reason);
        } else {
            let frame = encode::close(Some((code, reason)));
            self.end_sending(cx, Some(frame));
            if self.receiving == Receiving::Open {
                self.receiving = Receiving::Discarding;
            }
        }
        self.advance(cx);
        cx.want_read();
    }

    /// Closes an event stream, which ends with its connection.
    fn close_stream<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        code: CloseCode,
        reason: &str,
    ) {
        if !self.is_open() {
            return;
        }
        if self.stream().is_none() {
            // Its client still needs a response.
            let answer = match code {
                CloseCode::UNAUTHORIZED => Reject::new(401).with_body(format!("{reason}\n")),
                CloseCode::GOING_AWAY | CloseCode::SERVICE_RESTART => shutting_down(),
                _ => Reject::new(403).with_body(format!("{reason}\n")),
            };
            let answer = answer.response(BodyMode::Full);
            self.outbox.push_preface(answer.into(), cx.shard.tick);
        }
        self.end_stream(cx);
    }

    /// Sends nothing more on an event stream.
    pub(crate) fn end_stream<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        self.stop_receiving();
        self.end_sending(cx, None);
        self.advance(cx);
    }

    /// Receives nothing more.
    pub(super) fn stop_receiving(&mut self) {
        if !self.receiving.is_over() {
            self.receiving = Receiving::Stopped;
        }
    }

    /// Ends the sending direction after the queued bytes, with a close frame or without.
    pub(super) fn end_sending<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        close_frame: Option<Vec<u8>>,
    ) {
        if !self.is_open() {
            return;
        }
        let timeout = cx.shard.limits().close_timeout;
        if let Some(frame) = close_frame {
            self.outbox.push_last(frame.into(), cx.shard.tick);
        }
        self.sending = Sending::Closing;
        self.cold().deadline = Some(WriteProgress::new(cx.shard.tick, timeout));
        self.session.set_status(Status::Closed);
        self.on_protocol_end(cx, PeerEnd::Gone);
        self.leave(cx);
        self.want_write(cx);
    }

    /// Ends the connection once nothing more is received and everything is handled.
    pub(super) fn advance_end<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if !self.receiving.is_over() || self.handlers == Handlers::Running || !self.inbox.is_empty()
        {
            return;
        }
        if self.is_open() && !cx.shard.fanout.has_delivered(self.command_mark) {
            cx.shard.fanout.wait(cx.key);
            return;
        }
        if self.is_open() {
            self.take_batches(cx);
            let reply = self.clear(|cold| &mut cold.close_reply);
            self.end_sending(cx, reply.map(Vec::from));
        }
        self.dispatch_close(cx);
        match cx.socket.transport {
            None => cx.free(),
            Some(_) => self.want_write(cx),
        }
    }

    /// Queues the close event, once, behind the events that are not handled yet.
    fn dispatch_close<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if self.has_departed() {
            return;
        }
        let session = self.depart(cx);
        let mut events = std::mem::take(&mut self.inbox);
        let bytes = std::mem::take(&mut self.inbox_bytes);
        if cx.shard.subscriptions.close && session.encoding == Encoding::Frames {
            events.push(SessionEvent::Close);
        }
        if events.is_empty() {
            cx.shard.receive_budget.sub_unhandled(bytes);
        } else {
            cx.shard.hub.ended.fetch_add(1, Relaxed);
            self.handlers = Handlers::CloseDispatched;
            cx.job(Work::Session(session, events, bytes));
        }
    }

    /// Stops counting the connection, and frees its address.
    fn depart<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> Arc<Session> {
        debug_assert!(!self.has_departed(), "a connection departs once");
        self.handlers = Handlers::Ended;
        let session = self.session.clone();
        session.leave_user();
        let id = session.id;
        session.span.within(|| debug!("connection {id} ended"));
        let is_served = self.stream().is_some();
        let counters = cx.shard.counters();
        match session.encoding {
            Encoding::Frames => {
                counters.connections.sub(1);
                cx.shard.program.left(&session);
            }
            Encoding::Events => {
                counters.event_streams.sub(u64::from(is_served));
                cx.shard.program.stream_ended(&session);
            }
        }
        session
    }

    /// Disconnects a slow consumer: the frame in progress is finished, the rest is dropped, and a close frame with 1013
    /// says why.
    pub(crate) fn disconnect_slow<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if !self.is_open() {
            return;
        }
        let unsent = cx.shard.fanout.pending_messages(self);
        let dropped = self.outbox.drop_waiting() + unsent;
        // It gets nothing more of the batches, and no time beyond the deadline.
        self.seen = u64::MAX;
        self.slow_counted = true;
        let id = self.session.id;
        let logged = &cx.shard.hub.logged.slow;
        self.session.span.within(|| {
            limited!(
                logged,
                info,
                "connection {id} read too slowly and is disconnected; {dropped} waiting messages are dropped"
            );
        });
        let counters = cx.shard.counters();
        counters.dropped_slow_consumer.add(dropped);
        counters.slow_consumers.add(1);
        self.close(cx, CloseCode::TRY_AGAIN_LATER, "too slow");
    }

    /// Evicts the connection: receives nothing more, has earlier messages handled, then closes with this code and
    /// reason.
    pub(crate) fn evict<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        code: CloseCode,
        reason: &str,
    ) {
        self.protocol.abandon();
        self.cold().close_reply = Some(encode::close(Some((code, reason))).into());
        self.receiving = Receiving::Evicted;
        let id = self.session.id;
        let logged = &cx.shard.hub.logged.disconnected;
        self.session.span.within(|| {
            limited!(logged, info, "connection {id} is disconnected: {reason}");
        });
        self.forget_unfinished(&mut cx.shard.receive_budget);
        cx.shard.counters().unfinished_messages.add(1);
        self.on_protocol_end(cx, PeerEnd::Refused);
        self.advance(cx);
    }

    /// Closes the connection since the engine stops (RFC 6455 §7.4.1, 1001), or has been drained.
    pub(crate) fn stop<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if let Some(draining) = &cx.shard.draining {
            let retry_after = draining.retry_after();
            return self.restart(cx, retry_after);
        }
        self.close(cx, CloseCode::GOING_AWAY, "server is shutting down");
    }

    /// Ends a connection that has not ended in time, after the engine has stopped.
    pub(crate) fn abandon<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let unsent = cx.shard.fanout.pending_messages(self);
        self.sending = Sending::Broken;
        self.session.set_status(Status::Closed);
        self.on_protocol_end(cx, PeerEnd::Gone);
        self.leave(cx);
        let lost = self.outbox.clear() + unsent;
        cx.shard.counters().dropped_closed.add(lost);
        if self.handlers == Handlers::Running {
            // Its handler still runs, and no two may run at a time, so the remaining events follow on that thread.
            self.leave_rooms_behind();
            if self.session.batch_abandoned() {
                let inbox = std::mem::take(&mut self.inbox);
                let messages = inbox
                    .iter()
                    .filter(|event| matches!(event, SessionEvent::Message(_)));
                let messages = messages.count() as u64;
                cx.shard.counters().dropped_unhandled.add(messages);
                self.depart(cx);
                return;
            }
            let _ = self.session.rooms_left_behind();
        }
        self.dispatch_close(cx);
    }
}
