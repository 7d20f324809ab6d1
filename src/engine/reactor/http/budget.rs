//! The memory that a shard holds for HTTP requests: their bodies, the heads and bodies that wait for a handler or are
//! being handled, and the bytes that clients send behind them. One bound applies to all connections together
//! (`Limits::bodies_bytes_max`).
//!
//! Incomplete heads are not counted here: `handshakes_max` bounds them. Handshakes and requests for event streams that
//! wait for a handler have a bound of their own (`ReceiveBudget::add_authorizing`).

use std::collections::VecDeque;

use crate::engine::model::request::{PIECE_BYTES, Ticket, head_bytes};
use crate::engine::model::verdict::busy;
use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::http::{Http, Phase};
use crate::engine::reactor::{ConnCx, Core, Stage};
use crate::limits::Limits;
use crate::protocol::http::{Body, BodyMode};
use crate::transport::ShardTransport;

/// The overhead of a request beside the bytes that its client has sent, and of its job while it waits.
pub(crate) const REQUEST_BYTES: usize = 512;

/// The request budget of a shard.
pub(crate) struct Requests {
    /// Bytes that connections hold: incomplete bodies, and bytes sent behind requests.
    held: UsageIndex,
    /// Bytes of requests that handlers have, or that are queued for them, and of pieces of responses that they are to
    /// read.
    handled: usize,
    /// Connections that wait for room to have a piece read. Some may have ended.
    awaiting_room: VecDeque<Key>,
    bytes_max: usize,
}

impl Requests {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Self {
        // One request always fits.
        let one = limits.body_bytes_max.saturating_add(REQUEST_BYTES);
        let one = one.saturating_add(limits.head_bytes_max.saturating_mul(4));
        let one = one.max(PIECE_BYTES as usize + REQUEST_BYTES);
        Self {
            held: UsageIndex::default(),
            handled: 0,
            awaiting_room: VecDeque::new(),
            bytes_max: (limits.bodies_bytes_max / shards).max(one),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.held.sum() + self.handled
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn held(&self) -> usize {
        self.held.sum()
    }

    fn is_over(&self) -> bool {
        self.bytes() > self.bytes_max
    }

    /// Stops counting a request whose handler is done, or that was taken back.
    pub(crate) fn sub_handled(&mut self, bytes: usize) {
        debug_assert!(self.handled >= bytes);
        self.handled = self.handled.saturating_sub(bytes);
    }

    /// Returns whether there may be space for a body of the announced length. Requests of handlers keep their space,
    /// and larger bodies can be dropped for it.
    pub(super) fn has_room_for(&self, body: &Body) -> bool {
        self.handled.saturating_add(body.announced_bytes()) <= self.bytes_max
    }

    /// Counts a request that is queued for a handler, if there is room. Bytes that connections hold give way to it
    /// (`enforce_request_budget`).
    pub(super) fn add_handled(&mut self, bytes: usize) -> bool {
        let handled = self.handled + bytes + REQUEST_BYTES;
        let has_room = handled <= self.bytes_max;
        if has_room {
            self.handled = handled;
        }
        has_room
    }

    /// Counts a piece that a handler is to read for this connection. If there is no room, the connection is to try again
    /// when there is (`enforce_request_budget`).
    pub(super) fn add_piece(&mut self, key: Key) -> bool {
        let has_room = self.add_handled(PIECE_BYTES as usize);
        if !has_room {
            self.awaiting_room.push_back(key);
        }
        has_room
    }

    /// Stops counting a piece that was read.
    pub(crate) fn sub_piece(&mut self) {
        self.sub_handled(PIECE_BYTES as usize + REQUEST_BYTES);
    }

    /// Returns the connection that has waited longest for room for a piece, if there is room now.
    fn take_awaiting_room(&mut self) -> Option<Key> {
        let handled = self.handled + PIECE_BYTES as usize + REQUEST_BYTES;
        match handled <= self.bytes_max {
            true => self.awaiting_room.pop_front(),
            false => None,
        }
    }

    /// Takes back a request whose handler has not begun. Its job stays in the queue, and counts until a thread takes
    /// it.
    pub(super) fn take_back(&mut self, ticket: &Ticket) -> bool {
        let taken = ticket.take().is_some();
        if taken {
            self.sub_handled(ticket.bytes);
        }
        taken
    }

    /// Stops counting a connection that leaves HTTP.
    pub(super) fn release(&mut self, http: &mut Http, slot: u32) {
        if let Phase::Handling(ticket) = &http.phase {
            self.take_back(ticket);
        }
        self.set(http, slot, 0);
    }

    fn set(&mut self, http: &mut Http, slot: u32, held: usize) {
        let address = counted_as(http.client);
        let before = std::mem::replace(&mut http.request_bytes, held);
        self.held.set(address, slot, before, held);
    }
}

impl Http {
    /// The bytes that the connection holds and that count here, with `in_transport` bytes of an incomplete TLS record.
    fn counted_bytes(&self, in_transport: usize) -> usize {
        let in_transport = if self.is_cut { 0 } else { in_transport };
        let behind = self.buffer.capacity() + in_transport;
        match &self.phase {
            Phase::Authorizing(authorizing) if authorizing.is_of_body() => behind,
            Phase::Head | Phase::Authorizing(_) => 0,
            Phase::Body(request) => {
                let (head, body) = &**request;
                REQUEST_BYTES + head_bytes(head) + body.held_bytes() + behind
            }
            Phase::Handling(_) | Phase::Writing(_) | Phase::AwaitingPiece(_) => behind,
        }
    }

    /// An empty buffer must hold no memory.
    fn trim_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        } else if self.buffer.capacity() > self.buffer.len() + self.buffer.len() / 4 {
            self.buffer.shrink_to_fit();
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn request_bytes(&self) -> (usize, usize) {
        (self.request_bytes, self.counted_bytes(0))
    }
}

impl Http {
    /// Updates the budget after the connection's received bytes have changed.
    pub(super) fn count_request<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        self.trim_buffer();
        let transport = cx.socket.transport.as_ref();
        let held = self.counted_bytes(transport.map_or(0, T::received_bytes));
        cx.shard.requests.set(self, cx.key.slot, held);
    }

    /// Responds that there is no room for a request, or no handler in time.
    pub(super) fn answer_busy<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head_only: bool,
    ) {
        cx.shard.counters().refused_unserved.add(1);
        self.buffer = Vec::new();
        self.answer(cx, busy().response(BodyMode::head_only_if(head_only)));
        self.count_request(cx);
    }

    /// Frees the memory of this connection, which holds the most: stops waiting for its body, or drops the bytes after
    /// its request.
    fn free_memory<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self.phase {
            Phase::Body(_) => {
                let head_only = self.reads_body_of_head();
                self.answer_busy(cx, head_only);
            }
            Phase::Authorizing(_) => {
                let head_only = self
                    .end_authorizing(cx)
                    .is_some_and(|authorizing| authorizing.request.method() == "HEAD");
                self.answer_busy(cx, head_only);
            }
            Phase::Head | Phase::Handling(_) | Phase::Writing(_) | Phase::AwaitingPiece(_) => {
                // A client that pipelines must be prepared to send requests again (RFC 9112 §9.3.2).
                self.buffer = Vec::new();
                self.is_cut = true;
                self.count_request(cx);
            }
        }
    }
}

impl<T: ShardTransport> Core<T> {
    /// Enforces the budget after an event that may have changed what requests hold, and uses the room that it has freed.
    #[inline]
    pub(crate) fn enforce_request_budget(&mut self) {
        let requests = &self.cx.requests;
        if requests.is_over() || !requests.awaiting_room.is_empty() {
            self.balance_requests();
        }
    }

    /// Has pieces read for which there is room now. Frees the memory of the connections that hold the most, until the
    /// requests fit into the budget.
    #[cold]
    fn balance_requests(&mut self) {
        while let Some(key) = self.cx.requests.take_awaiting_room() {
            self.with(key, |stage, cx| {
                if let Stage::Http(http) = stage {
                    http.queue_piece(cx);
                }
            });
        }
        while self.cx.requests.is_over()
            && let Some((slot, _)) = self.cx.requests.held.largest()
        {
            let found = self.with_slot(slot, |stage, cx| match stage {
                Stage::Http(http) => http.free_memory(cx),
                Stage::WebSocket(_) | Stage::Lingering(_) => {
                    debug_assert!(false, "only HTTP connections are in the index of requests");
                }
            });
            if found.is_none() {
                break;
            }
        }
    }
}
