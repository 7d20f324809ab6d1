//! What a shard holds of HTTP requests: their bodies, the heads and bodies that wait for a handler or are in its hands, and
//! what clients send behind them. One bound for all connections together (`Limits::bodies_bytes_max`).
//!
//! Heads that are not complete are not counted here: `handshakes_max` bounds them. Handshakes and requests for event streams
//! that wait for a handler have a bound of their own (`Intake::add_asking`).

use crate::engine::model::request::{Ticket, head_bytes};
use crate::engine::model::verdict::busy;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::http::{Http, Phase};
use crate::engine::reactor::{Core, Role};
use crate::limits::Limits;
use crate::protocol::http::{Body, BodyMode};
use crate::transport::Transport;

/// What a request takes beside what its client has sent, and its job as long as it waits.
pub(crate) const REQUEST_BYTES: usize = 512;

/// The account of a shard.
pub(crate) struct Requests {
    /// What connections hold themselves: bodies that are not complete, and what was sent behind requests.
    held: UsageIndex,
    /// What handlers have, or are to get.
    handled: usize,
    bytes_max: usize,
}

impl Requests {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Self {
        // There is always room for one request.
        let one = limits.body_bytes_max.saturating_add(REQUEST_BYTES);
        let one = one.saturating_add(limits.head_bytes_max.saturating_mul(4));
        Self {
            held: UsageIndex::default(),
            handled: 0,
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

    /// A handler is done with a request, or it was taken back from it.
    pub(crate) fn sub_handled(&mut self, bytes: usize) {
        debug_assert!(self.handled >= bytes);
        self.handled = self.handled.saturating_sub(bytes);
    }

    fn set(&mut self, http: &mut Http, slot: u32, held: usize) {
        let address = counted_as(http.client);
        let before = std::mem::replace(&mut http.request_bytes, held);
        self.held.set(address, slot, before, held);
    }
}

impl Http {
    /// What it holds of what its client has sent, as far as it counts here.
    fn counted_bytes(&self) -> usize {
        let behind = self.buffer.capacity();
        match &self.phase {
            Phase::Asking(asking) if asking.is_of_body() => behind,
            Phase::Head | Phase::Asking(_) => 0,
            Phase::Body(request) => {
                let (head, body) = &**request;
                REQUEST_BYTES + head_bytes(head) + body.held_bytes() + behind
            }
            Phase::Handling(_) | Phase::Writing(_) => behind,
        }
    }

    /// Nothing is kept for what is not there.
    fn trim_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        } else if self.buffer.capacity() > self.buffer.len() + self.buffer.len() / 4 {
            self.buffer.shrink_to_fit();
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn request_bytes(&self) -> (usize, usize) {
        (self.request_bytes, self.counted_bytes())
    }
}

impl<T: Transport> Core<T> {
    /// Something of what a connection has sent has come or gone.
    pub(super) fn note_request(&mut self, slot: u32) {
        self.count_request(slot);
        self.make_room_for_requests();
    }

    pub(super) fn count_request(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::Http(http) = &mut conn.role
        {
            http.trim_buffer();
            let held = http.counted_bytes();
            self.requests.set(http, slot, held);
        }
    }

    /// Where all together is too much, the largest bodies are not waited for, and what was sent behind requests is dropped.
    fn make_room_for_requests(&mut self) {
        while self.requests.is_over()
            && let Some((slot, _)) = self.requests.held.largest()
        {
            match self.http(slot) {
                Some(http) if matches!(http.phase, Phase::Body(_)) => {
                    let head_only = http.reads_body_of_head();
                    self.http_busy(slot, head_only);
                }
                Some(http) if matches!(http.phase, Phase::Asking(_)) => {
                    let head_only = self
                        .stop_asking(slot)
                        .is_some_and(|asking| asking.request.method() == "HEAD");
                    self.http_busy(slot, head_only);
                }
                Some(http) => {
                    // Whoever pipelines must be ready to send again (RFC 9112 §9.3.2).
                    http.buffer = Vec::new();
                    http.is_cut = true;
                    self.count_request(slot);
                }
                None => break,
            }
        }
    }

    /// Whether what is announced of a body finds room, as far as can be known: what handlers have can't be taken from them,
    /// and larger bodies give way.
    pub(super) fn has_room_for_body(&self, body: &Body) -> bool {
        let announced = body.announced_bytes();
        self.requests.handled.saturating_add(announced) <= self.requests.bytes_max
    }

    /// Counts a request that a handler is to get, if there is room.
    pub(super) fn add_handled(&mut self, bytes: usize) -> bool {
        self.requests.handled += bytes + REQUEST_BYTES;
        self.make_room_for_requests();
        if self.requests.is_over() {
            self.requests.sub_handled(bytes + REQUEST_BYTES);
            return false;
        }
        true
    }

    /// Takes a request back that no handler has begun with. Its job stays in the queue, and counts until it comes up.
    pub(super) fn take_back(&mut self, ticket: &Ticket) -> bool {
        let taken = ticket.take().is_some();
        if taken {
            self.requests.sub_handled(ticket.bytes);
        }
        taken
    }

    /// There is no room for a request, or no handler.
    pub(super) fn http_busy(&mut self, slot: u32, head_only: bool) {
        self.counters().refused_unserved.add(1);
        if let Some(http) = self.http(slot) {
            http.buffer = Vec::new();
        }
        self.http_answer(
            slot,
            busy().response(BodyMode::head_only_if(head_only)),
            false,
        );
        self.count_request(slot);
    }

    /// A connection is HTTP no longer.
    pub(super) fn release_request(&mut self, slot: u32, http: &mut Http) {
        if let Phase::Handling(ticket) = &http.phase {
            self.take_back(ticket);
        }
        self.requests.set(http, slot, 0);
    }
}
