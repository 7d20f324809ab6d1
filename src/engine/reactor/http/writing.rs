//! A response, until its client has received it. Handlers read a large body in pieces, so that only one piece is in
//! memory.
//!
//! `Limits::outboxes_bytes_max` bounds the responses and the messages to single clients together. The shard can evict a
//! client that does not read its response, like a slow consumer.

use std::io;
use std::io::IoSlice;
use std::sync::Arc;

use crate::engine::model::job::Work;
use crate::engine::model::request::{BodyReader, PieceTicket, Response};
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::timers::Tick;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::parts::write_progress::WriteProgress;
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::http::{Http, Phase};
use crate::transport::ShardTransport;

/// A response that is being sent.
pub(super) struct Writing {
    response: Response,
    /// The number of bytes that were written.
    at: usize,
    drain: WriteProgress,
    pub(super) keep_alive: bool,
}

/// A response that waits until a handler has read its next piece.
pub(super) struct AwaitedPiece {
    ticket: Arc<PieceTicket>,
    /// Whether the job is queued. Before that, the connection waits for room in the budget of requests.
    is_queued: bool,
    drain: WriteProgress,
    /// The tick at which the client had received the previous piece.
    since: Tick,
    pub(super) keep_alive: bool,
}

impl AwaitedPiece {
    /// Returns whether a handler has begun.
    pub(super) fn has_begun(&self) -> bool {
        !self.ticket.is_queued()
    }
}

impl Writing {
    pub(super) fn deadline(&self) -> Tick {
        self.drain.deadline
    }

    fn left(&self) -> usize {
        (self.response.head.len() + self.response.body.len()).saturating_sub(self.at)
    }

    /// Writes the next bytes.
    fn write<T: ShardTransport>(&self, transport: &mut T) -> io::Result<usize> {
        let Response { head, body, .. } = &self.response;
        match head.get(self.at..) {
            Some(head) if !head.is_empty() && body.is_empty() => transport.write(head),
            Some(head) if !head.is_empty() => {
                transport.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])
            }
            _ => transport.write(body.get(self.at - head.len()..).unwrap_or_default()),
        }
    }
}

impl Http {
    /// Bytes of the response that wait to be written.
    pub(crate) fn waiting_bytes(&self) -> usize {
        match &self.phase {
            Phase::Writing(writing) => writing.left(),
            _ => 0,
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn response_bytes(&self) -> usize {
        self.response_bytes
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn blocked_bytes(&self) -> usize {
        self.blocked_bytes
    }

    /// Sets how many bytes of the response are indexed.
    pub(crate) fn set_blocked_bytes(&mut self, slot: u32, bytes: usize, blocked: &mut UsageIndex) {
        let before = std::mem::replace(&mut self.blocked_bytes, bytes);
        blocked.set(counted_as(self.client), slot, before, bytes);
    }

    /// Records that the client takes nothing at present, or takes something again.
    pub(crate) fn note_blocked(&mut self, slot: u32, blocked: &mut UsageIndex) {
        self.set_blocked_bytes(slot, self.response_bytes, blocked);
    }
}

impl Http {
    /// Sends a response, and closes the connection after it.
    pub(super) fn answer<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, bytes: Vec<u8>) {
        self.begin_writing(cx, Response::small(bytes));
    }

    pub(super) fn begin_writing<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        response: Response,
    ) {
        cx.shard.handshake_queue.remove(self);
        let drain = WriteProgress::new(cx.shard.tick, cx.shard.limits().write_timeout);
        self.continue_writing(cx, response, drain);
    }

    fn continue_writing<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        response: Response,
        drain: WriteProgress,
    ) {
        let (before, now) = (self.response_bytes, response.bytes());
        self.response_bytes = now;
        self.phase = Phase::Writing(Box::new(Writing {
            at: 0,
            drain,
            keep_alive: response.keep_alive,
            response,
        }));
        cx.shard.fanout.change_responses(before, now);
        self.count_request(cx);
        cx.want_write();
    }

    /// Writes the rest of a response, as far as the socket takes it.
    pub(crate) fn write<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let Phase::Writing(writing) = &mut self.phase else {
            return;
        };
        let Some(transport) = &mut cx.socket.transport else {
            return;
        };
        let limits = &cx.shard.hub.settings.limits;
        while writing.left() > 0 {
            match writing.write(transport) {
                Ok(n) => {
                    writing.at += n;
                    let drain = &mut writing.drain;
                    drain.took(n, cx.shard.tick, limits.write_timeout, limits);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.note_blocked(cx.key.slot, &mut cx.shard.fanout.blocked);
                    return;
                }
                Err(_) => {
                    cx.free();
                    return;
                }
            }
        }
        if transport.has_pending() {
            transport.flush();
            if transport.has_pending() {
                self.note_blocked(cx.key.slot, &mut cx.shard.fanout.blocked);
                return;
            }
        }
        let (keep_alive, drain) = (writing.keep_alive, writing.drain);
        if let Some(rest) = writing.response.rest.take() {
            self.await_piece(cx, rest, keep_alive, drain);
            return;
        }
        if !keep_alive || self.is_cut {
            cx.linger();
            return;
        }
        self.phase = Phase::Head;
        self.deadline = cx.shard.tick.after(limits.keep_alive_timeout);
        self.used = true;
        self.forget_response(cx.key.slot, &mut cx.shard.fanout);
        cx.shard.handshake_queue.push(self, cx.key);
        self.go_on(cx);
        self.count_request(cx);
        cx.want_read();
    }

    /// Begins to wait for the next piece of a response. A handler reads it, because a file system may block.
    fn await_piece<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        rest: BodyReader,
        keep_alive: bool,
        drain: WriteProgress,
    ) {
        self.deadline = cx.shard.tick.after(cx.shard.limits().queue_timeout);
        self.phase = Phase::AwaitingPiece(Box::new(AwaitedPiece {
            ticket: PieceTicket::new(rest),
            is_queued: false,
            drain,
            since: cx.shard.tick,
            keep_alive,
        }));
        self.forget_response(cx.key.slot, &mut cx.shard.fanout);
        self.queue_piece(cx);
    }

    /// Queues the job that reads the next piece if the budget of requests has room for the piece. Otherwise, the
    /// connection waits for room.
    pub(super) fn queue_piece<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let Phase::AwaitingPiece(awaited) = &mut self.phase else {
            return;
        };
        if awaited.is_queued {
            return;
        }
        if !cx.shard.requests.add_piece(cx.key) {
            return;
        }
        awaited.is_queued = true;
        let work = Work::Piece(Arc::downgrade(&awaited.ticket));
        cx.job(work);
    }

    /// Sends the next piece of a response. If it could not be read, ends the connection, so that the client can tell
    /// from the announced length that the response is incomplete.
    pub(crate) fn on_piece<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        piece: Option<Response>,
    ) {
        let Phase::AwaitingPiece(awaited) = &self.phase else {
            return;
        };
        let Some(piece) = piece else {
            cx.free();
            return;
        };
        let mut drain = awaited.drain;
        drain.resume(awaited.since, cx.shard.tick);
        let keep_alive = awaited.keep_alive;
        self.continue_writing(
            cx,
            Response {
                keep_alive,
                ..piece
            },
            drain,
        );
    }

    /// Handles the deadline of a response, which may have passed.
    pub(super) fn expire_writing<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        // The socket may have room that was not reported. A client that has stopped reading has none.
        self.write(cx);
        if !cx.is_over()
            && let Phase::Writing(writing) = &self.phase
            && writing.deadline() <= cx.shard.tick
        {
            cx.shard.counters().slow_consumers.add(1);
            cx.free();
        }
    }

    /// Stops counting a response.
    pub(super) fn forget_response(&mut self, slot: u32, fanout: &mut Fanout) {
        let before = std::mem::take(&mut self.response_bytes);
        self.set_blocked_bytes(slot, 0, &mut fanout.blocked);
        fanout.change_responses(before, 0);
    }
}
