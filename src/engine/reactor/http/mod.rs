//! A connection in its HTTP stage: it reads a request head, then becomes a WebSocket or an event stream, or is answered.
//!
//! One request is handled at a time; bytes behind it wait, so pipelined responses keep their order. While a request is
//! handled or answered nothing is read, and TCP's flow control slows the client down.
//!
//! The memory for all requests is bounded (`budget`), and so is the memory for their responses (`writing`).

mod budget;
pub(crate) mod handshake;
pub(crate) mod handshake_queue;
mod proxied;
mod writing;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::engine::hub::admission::{AdmissionRefused, failure, unreadable};
use crate::engine::model::job::Work;
pub(crate) use crate::engine::model::request::Ticket;
use crate::engine::model::request::{Request, Response};
use crate::engine::model::verdict::shutting_down;
use crate::engine::parts::timers::Tick;
pub(crate) use crate::engine::reactor::http::budget::REQUEST_BYTES;
pub(crate) use crate::engine::reactor::http::budget::Requests;
use crate::engine::reactor::http::handshake::Authorizing;
use crate::engine::reactor::http::writing::{AwaitedPiece, Writing};
use crate::engine::reactor::{ConnCx, Reader, ShardCx};
use crate::protocol::close::CloseCode;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::{Body, BodyMode, Head, HttpError, Parsed};
use crate::protocol::{self, http};
use crate::report::debug;
use crate::request::Reject;
use crate::transport::ShardTransport;

pub(crate) struct Http {
    peer: SocketAddr,
    /// The address of its last request's client. The memory that it holds counts for that address.
    client: IpAddr,
    /// Bytes that were received and not processed yet.
    buffer: Vec<u8>,
    phase: Phase,
    /// Whether a proxy is to name the client first.
    expects_proxy_header: bool,
    deadline: Tick,
    /// Whether a request was answered on this connection before.
    used: bool,
    /// Its number in the `HandshakeQueue`, if it waits for a request head.
    handshake_seq: Option<u64>,
    /// The received bytes that count for it: see `budget`.
    request_bytes: usize,
    /// Whether bytes behind a request were dropped: the connection then closes after the response.
    is_cut: bool,
    /// The bytes of its response that count for it: see `writing`.
    response_bytes: usize,
    /// The part of those that is indexed, since the client takes nothing at present.
    blocked_bytes: usize,
}

enum Phase {
    Head,
    Body(Box<(Head, Body)>),
    /// A handler runs or is queued.
    Handling(Arc<Ticket>),
    /// The program decides: a handler runs or is queued.
    Authorizing(Box<Authorizing>),
    Writing(Box<Writing>),
    /// A handler reads the next piece of the response, or is queued.
    AwaitingPiece(Box<AwaitedPiece>),
}

impl Http {
    /// Makes a connection that waits for its first request head until `deadline`, or for the header of a proxy before it.
    pub(crate) fn new(peer: SocketAddr, expects_proxy_header: bool, deadline: Tick) -> Self {
        Self {
            peer,
            client: peer.ip(),
            buffer: Vec::new(),
            phase: Phase::Head,
            expects_proxy_header,
            deadline,
            used: false,
            handshake_seq: None,
            request_bytes: 0,
            is_cut: false,
            response_bytes: 0,
            blocked_bytes: 0,
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn is_queued(&self) -> bool {
        self.handshake_seq.is_some()
    }

    pub(crate) fn wants_input(&self) -> bool {
        matches!(self.phase, Phase::Head | Phase::Body(_))
    }

    /// The bytes of a handshake that the program authorises, and of those behind it. Bytes after the head of any other
    /// request belong to its body, and are counted with it.
    fn authorizing_bytes(&self) -> usize {
        match &self.phase {
            Phase::Authorizing(authorizing) if authorizing.is_of_body() => {
                authorizing.request.bytes()
            }
            Phase::Authorizing(authorizing) => authorizing.request.bytes() + self.buffer.len(),
            _ => 0,
        }
    }

    /// Whether the body of a `HEAD` request is being read, whose response has no body (RFC 9110 §9.3.2).
    fn reads_body_of_head(&self) -> bool {
        matches!(&self.phase, Phase::Body(request) if request.0.method == "HEAD")
    }

    pub(crate) fn deadline(&self) -> Tick {
        match &self.phase {
            Phase::Writing(writing) => writing.deadline(),
            _ => self.deadline,
        }
    }
}

impl Http {
    /// Processes the received bytes as far as possible.
    fn go_on<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        while !cx.is_over() {
            let has_gone_on = match &self.phase {
                Phase::Head => self.take_head(cx),
                Phase::Body(_) => self.take_body(cx),
                Phase::Handling(_)
                | Phase::Authorizing(_)
                | Phase::Writing(_)
                | Phase::AwaitingPiece(_) => false,
            };
            if !has_gone_on {
                break;
            }
        }
    }

    /// Takes a request head from the received bytes. Returns whether there may be more to do.
    fn take_head<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        if self.buffer.is_empty() {
            return false;
        }
        if self.expects_proxy_header {
            return self.take_proxy_header(cx);
        }
        let limits = cx.shard.limits();
        if self.used {
            // The next request has begun: it has as long as the first one had.
            self.used = false;
            self.deadline = cx.shard.tick.after(limits.handshake_timeout);
        }
        match http::parse_head(&self.buffer, limits.head_bytes_max) {
            Ok(Parsed::Incomplete) => false,
            Ok(Parsed::Complete { head, head_bytes }) => {
                self.buffer.drain(..head_bytes);
                self.on_request(cx, head);
                true
            }
            Err(error) => {
                self.fail(cx, error, false);
                false
            }
        }
    }

    fn on_request<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, head: Head) {
        cx.shard.handshake_queue.remove(self);
        let head_only = head.method == "HEAD";
        if cx.shard.hub.is_full() {
            self.refuse(cx, AdmissionRefused::ConnectionsMax, head_only);
            return;
        }
        if let Err(refused) = cx.shard.hub.check_host(self.peer, &head) {
            self.refuse(cx, refused, head_only);
            return;
        }
        match protocol::handshake::check(&head.method, head.minor_version, head.pairs()) {
            Ok(handshake) => self.on_handshake(cx, head, handshake),
            Err(HandshakeRefusal::NotAnUpgrade)
                if cx.shard.program.has_event_stream(head.path()) =>
            {
                self.on_event_stream(cx, head);
            }
            Err(HandshakeRefusal::NotAnUpgrade) if cx.shard.subscriptions.request => {
                self.on_route(cx, head)
            }
            Err(refusal) => {
                failure(refusal, cx.shard.counters()).add(1);
                debug!("{} did not become a WebSocket: {refusal}", self.peer);
                let answer =
                    protocol::handshake::refusal(refusal, BodyMode::head_only_if(head_only));
                self.answer(cx, answer);
            }
        }
    }

    /// Processes a request for a mounted route. It is refused before its body is read if the body does not matter for
    /// that.
    fn on_route<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, head: Head) {
        // The last request no longer counts.
        self.count_request(cx);
        if let Err(refused) = cx.shard.hub.admit_request(self.peer, &head, cx.is_tls()) {
            self.refuse(cx, refused, head.method == "HEAD");
            return;
        }
        self.client = cx.shard.hub.client(self.peer, &head);
        let body = head
            .body_framing()
            .and_then(|framing| Body::new(framing, cx.shard.limits().body_bytes_max))
            .and_then(|body| head.expects_continue().map(|_| body));
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                self.fail(cx, error, head.method == "HEAD");
                return;
            }
        };
        if !body.is_complete() {
            if let Some(refusal) = cx.shard.program.refusal(&head) {
                self.answer(cx, refusal);
                return;
            }
            if cx.shard.subscriptions.guard {
                self.authorize_body(cx, head, body);
                return;
            }
        }
        self.begin_body(cx, head, body);
    }

    /// Begins to read the body of a request, if there is room.
    fn begin_body<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, head: Head, body: Body) {
        if !cx.shard.requests.has_room_for(&body) {
            self.answer_busy(cx, head.method == "HEAD");
            return;
        }
        let expects_continue = head.expects_continue() == Ok(true);
        let waits_for_body = !body.is_complete() && self.buffer.is_empty();
        self.phase = Phase::Body(Box::new((head, body)));
        self.deadline = cx.shard.tick.after(cx.shard.limits().handshake_timeout);
        if expects_continue
            && waits_for_body
            && let Some(transport) = &mut cx.socket.transport
        {
            // RFC 9110 §10.1.1. A client whose socket does not take 25 bytes does not wait for them.
            let _ = transport.write(http::CONTINUE);
        }
    }

    /// Reads the body. Returns whether it is complete.
    fn take_body<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        let Phase::Body(request) = &mut self.phase else {
            return false;
        };
        match request.1.feed(&self.buffer) {
            Err(error) => {
                let head_only = request.0.method == "HEAD";
                self.fail(cx, error, head_only);
                false
            }
            Ok((used, complete)) => {
                self.buffer.drain(..used);
                if complete {
                    self.handle(cx);
                }
                complete
            }
        }
    }

    /// Queues the complete request for the handler of its route.
    fn handle<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let Phase::Body(request) = std::mem::replace(&mut self.phase, Phase::Head) else {
            debug_assert!(false, "only a request whose body was read is handled");
            return;
        };
        let (head, body) = *request;
        let head_only = head.method == "HEAD";
        let request = Request {
            keep_alive: !cx.shard.is_stopping() && head.keep_alive(),
            client: self.client,
            head,
            body: body.into_bytes(),
            peer: self.peer,
        };
        // It moves from the connection's count to the handlers'.
        self.count_request(cx);
        let ticket = Ticket::new(request);
        if !cx.shard.requests.add_handled(ticket.bytes) {
            self.answer_busy(cx, head_only);
            return;
        }
        self.phase = Phase::Handling(ticket.clone());
        self.deadline = cx.shard.tick.after(cx.shard.limits().queue_timeout);
        cx.job(Work::Request(ticket));
    }

    /// Sends the response of a route; 503 if the request was taken back since it waited for too long.
    pub(crate) fn respond<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        response: Response,
    ) {
        if !matches!(self.phase, Phase::Handling(_)) {
            return;
        }
        let keep_alive = response.keep_alive && !cx.shard.is_stopping();
        self.begin_writing(
            cx,
            Response {
                keep_alive,
                ..response
            },
        );
    }

    /// Returns the header for refusals of requests that may be handshakes, of which the head is not parsed yet.
    fn version_header(&self) -> &'static [(&'static str, &'static str)] {
        match self.phase {
            Phase::Head => &[protocol::handshake::VERSION_HEADER],
            _ => &[],
        }
    }

    /// Answers a request that can't be served, and closes the connection.
    fn fail<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        error: HttpError,
        head_only: bool,
    ) {
        unreadable(error, cx.shard.counters()).add(1);
        debug!("{} sent a request that can't be served: {error}", self.peer);
        let body = format!("{error}\n");
        self.answer(
            cx,
            http::refusal(
                error.status(),
                self.version_header(),
                &body,
                BodyMode::head_only_if(head_only),
            ),
        );
    }

    /// Answers a client that is not admitted, and closes the connection.
    fn refuse<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        refused: AdmissionRefused,
        head_only: bool,
    ) {
        refused.counter(cx.shard.counters()).add(1);
        debug!("{} was refused: {}", self.peer, refused.cause());
        self.answer(cx, refused.response(head_only));
    }

    /// Reads once, if the phase accepts input. Returns whether there was anything to read.
    pub(crate) fn read<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> bool {
        self.wants_input() && cx.read_for(self)
    }

    /// Handles a deadline that may have passed.
    pub(crate) fn expire<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let tick = cx.shard.tick;
        if self.deadline() > tick {
            return;
        }
        // Before the verdict, process the input that has arrived since the poll, or write what the socket now accepts.
        if !self.wants_input() {
            self.write(cx);
        } else {
            // Also if the request waits for its turn (`read_budget`): it has arrived in time.
            cx.socket.readable = true;
            self.read(cx);
        }
        if !cx.is_over() && self.deadline() <= tick {
            self.expire_phase(cx);
        }
    }

    fn expire_phase<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let has_begun = !self.buffer.is_empty() || matches!(self.phase, Phase::Body(_));
        let has_begun = has_begun && !self.expects_proxy_header;
        let head_only = self.reads_body_of_head();
        match &self.phase {
            Phase::Handling(ticket) => {
                let ticket = ticket.clone();
                if cx.shard.requests.take_back(&ticket) {
                    self.answer_busy(cx, ticket.head_only);
                } else {
                    // A handler may take as long as it needs.
                    self.deadline = Tick::NEVER;
                }
            }
            Phase::Authorizing(authorizing) if authorizing.has_begun() => {
                self.deadline = Tick::NEVER;
            }
            Phase::Authorizing(_) => {
                cx.shard.counters().refused_unserved.add(1);
                self.reject_unauthorized(cx, &busy(), CloseCode::TRY_AGAIN_LATER);
            }
            Phase::Head | Phase::Body(_) if has_begun => {
                cx.shard.counters().failed_timeout.add(1);
                let answer = http::refusal(
                    408,
                    self.version_header(),
                    "the request took too long
",
                    BodyMode::head_only_if(head_only),
                );
                self.answer(cx, answer);
                self.count_request(cx);
            }
            Phase::Head if !self.used => {
                cx.shard.counters().failed_timeout.add(1);
                cx.end();
            }
            Phase::Writing(_) => self.expire_writing(cx),
            Phase::AwaitingPiece(awaited) if awaited.has_begun() => self.deadline = Tick::NEVER,
            Phase::AwaitingPiece(_) => {
                cx.shard.counters().refused_unserved.add(1);
                cx.free();
            }
            Phase::Head | Phase::Body(_) => cx.end(),
        }
    }

    /// Stops: a client that is being answered gets its response, others are disconnected.
    pub(crate) fn stop<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match &mut self.phase {
            Phase::Head | Phase::Body(_) => cx.end(),
            Phase::Handling(_) => {}
            Phase::Authorizing(_) => {
                cx.shard.counters().refused_unserved.add(1);
                self.reject_unauthorized(cx, &shutting_down(), CloseCode::GOING_AWAY);
            }
            Phase::Writing(writing) => writing.keep_alive = false,
            Phase::AwaitingPiece(awaited) => awaited.keep_alive = false,
        }
    }
}

impl<T: ShardTransport> Reader<T> for Http {
    fn input(&mut self, cx: &mut ConnCx<'_, T>, bytes: &mut [u8]) {
        self.buffer.extend_from_slice(bytes);
        self.go_on(cx);
        self.count_request(cx);
    }

    fn input_incomplete(&mut self, cx: &mut ConnCx<'_, T>) {
        self.count_request(cx);
    }

    /// The client has ended its stream. It may still wait for the response to a complete request.
    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>) {
        match self.phase {
            Phase::Head | Phase::Body(_) => cx.end(),
            Phase::Handling(_)
            | Phase::Authorizing(_)
            | Phase::Writing(_)
            | Phase::AwaitingPiece(_) => {}
        }
    }

    fn broken(&mut self, cx: &mut ConnCx<'_, T>) {
        let transport = cx.socket.transport.as_ref();
        match transport.is_some_and(T::has_refused) {
            true => cx.linger(),
            false => cx.free(),
        }
    }
}

impl<T: ShardTransport> ShardCx<T> {
    /// Stops counting a connection that leaves HTTP.
    pub(super) fn release_http(&mut self, slot: u32, mut http: Http) {
        self.requests.release(&mut http, slot);
        http.forget_response(slot, &mut self.fanout);
        self.handshake_queue.remove(&mut http);
        self.receive_budget
            .sub_authorizing(http.authorizing_bytes());
        if let Phase::Authorizing(authorizing) = &http.phase {
            self.hub.count_unhandled(authorizing.source.messages());
        }
    }
}

/// The response when there is no room for a request, or no handler in time.
pub(crate) fn busy() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("the server is busy: try again in a moment\n")
}
