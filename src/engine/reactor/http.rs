//! A connection in its role as HTTP: reads a request head, then becomes a WebSocket or an event stream, or is answered.
//!
//! One request is handled at a time; what the client has sent behind it waits, so pipelined answers keep their order.
//! While one is handled or answered nothing is read, and TCP slows the client down.
//!
//! What is held of all requests together is bounded (`budget`), and so is what is held of their answers (`writing`).

mod budget;
mod handshake;
mod writing;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::engine::hub::admission::{TurnedAway, failure, unreadable};
use crate::engine::model::job::Work;
pub(crate) use crate::engine::model::request::Ticket;
use crate::engine::model::request::{Request, Response};
use crate::engine::model::verdict::{busy, shutting_down};
use crate::engine::parts::timers::Tick;
pub(crate) use crate::engine::reactor::http::budget::REQUEST_BYTES;
pub(crate) use crate::engine::reactor::http::budget::Requests;
use crate::engine::reactor::http::handshake::Asking;
use crate::engine::reactor::http::writing::Writing;
use crate::engine::reactor::{Core, Role};
use crate::protocol;
use crate::protocol::close::CloseCode;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::{self, Body, BodyMode, Head, HttpError, Parsed};
use crate::report::debug;
use crate::transport::Transport;

pub(crate) struct Http {
    peer: SocketAddr,
    /// Where the client of its last request is. What it holds counts for that address.
    client: IpAddr,
    /// Received, and not used yet.
    buffer: Vec<u8>,
    phase: Phase,
    deadline: Tick,
    /// It has been answered before.
    used: bool,
    /// Its place in the line of those that wait for a request head.
    place: Option<u64>,
    /// What is counted of what it has received: see `budget`.
    request_bytes: usize,
    /// What was sent behind a request was dropped: the connection ends with the answer.
    is_cut: bool,
    /// What is counted of its answer: see `writing`.
    response_bytes: usize,
    /// What of that is indexed, since its client takes nothing at present.
    blocked_bytes: usize,
}

enum Phase {
    Head,
    Body(Box<(Head, Body)>),
    /// A handler runs, or is to.
    Handling(Arc<Ticket>),
    /// The handshake handler runs, or is to.
    Asking(Box<Asking>),
    Writing(Box<Writing>),
}

impl Http {
    /// Its deadline is set with `begin_head`.
    pub(crate) fn new(peer: SocketAddr, now: Tick) -> Self {
        Self {
            peer,
            client: peer.ip(),
            buffer: Vec::new(),
            phase: Phase::Head,
            deadline: now,
            used: false,
            place: None,
            request_bytes: 0,
            is_cut: false,
            response_bytes: 0,
            blocked_bytes: 0,
        }
    }

    pub(crate) fn is_in_line(&self) -> bool {
        self.place.is_some()
    }

    pub(crate) fn wants_input(&self) -> bool {
        matches!(self.phase, Phase::Head | Phase::Body(_))
    }

    /// What is held of a handshake that the program is being asked about, and of what was sent behind it. What comes behind
    /// the head of another request is its body, and counts as that.
    fn asking_bytes(&self) -> usize {
        match &self.phase {
            Phase::Asking(asking) if asking.is_of_body() => asking.request.bytes(),
            Phase::Asking(asking) => asking.request.bytes() + self.buffer.len(),
            _ => 0,
        }
    }

    /// The body of a `HEAD` request is being read: its answer has none (RFC 9110 §9.3.2).
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

impl<T: Transport> Core<T> {
    fn http(&mut self, slot: u32) -> Option<&mut Http> {
        match &mut self.conns.get_mut(slot)?.role {
            Role::Http(http) => Some(http),
            _ => None,
        }
    }

    /// A new connection waits for its first request. Where too many do, the oldest gives way.
    pub(crate) fn begin_head(&mut self, slot: u32) {
        let deadline = self.tick.after(self.hub.settings.limits.handshake_timeout);
        if let Some(http) = self.http(slot) {
            http.deadline = deadline;
        }
        self.line_up(slot);
        let shards = self.hub.shards.len();
        let heads_max = self
            .hub
            .settings
            .limits
            .handshakes_max
            .div_ceil(shards)
            .max(1);
        while self.heads_len > heads_max {
            let Some((place, key)) = self.heads.pop_front() else {
                break;
            };
            if let Some(oldest) = self.conns.find(key)
                && let Some(http) = self.http(oldest)
                && http.place == Some(place)
            {
                self.counters().refused_handshakes_max.add(1);
                self.free(oldest);
            }
        }
        self.arm(slot);
    }

    /// Puts a connection behind all others that wait for a request.
    fn line_up(&mut self, slot: u32) {
        self.leave_line(slot);
        let place = self.heads_ever;
        if let Some(key) = self.conns.key(slot)
            && let Some(http) = self.http(slot)
        {
            http.place = Some(place);
            self.heads.push_back((place, key));
            self.heads_ever += 1;
            self.heads_len += 1;
        }
        // Places that were given up are swept out now and then, so that the line stays as long as what is in it.
        if self.heads.len() > 2 * self.heads_len + 64 {
            let conns = &self.conns;
            self.heads.retain(|(place, key)| {
                conns
                    .find(*key)
                    .and_then(|slot| conns.get(slot))
                    .is_some_and(
                        |conn| matches!(&conn.role, Role::Http(http) if http.place == Some(*place)),
                    )
            });
        }
    }

    /// A connection waits for a request head no longer.
    fn leave_line(&mut self, slot: u32) {
        if let Some(http) = self.http(slot)
            && http.place.take().is_some()
        {
            self.heads_len -= 1;
        }
    }

    pub(crate) fn http_input(&mut self, slot: u32, bytes: &[u8]) {
        if let Some(http) = self.http(slot) {
            http.buffer.extend_from_slice(bytes);
        }
        self.http_go_on(slot);
        self.note_request(slot);
    }

    /// Uses what has been received, as far as it goes.
    fn http_go_on(&mut self, slot: u32) {
        while let Some(http) = self.http(slot) {
            let gone_on = match &mut http.phase {
                Phase::Head => self.http_head(slot),
                Phase::Body(_) => self.http_body(slot),
                Phase::Handling(_) | Phase::Asking(_) | Phase::Writing(_) => false,
            };
            if !gone_on {
                break;
            }
        }
    }

    /// Returns whether there is more to do.
    fn http_head(&mut self, slot: u32) -> bool {
        let limits = self.hub.settings.limits.clone();
        let tick = self.tick;
        let Some(http) = self.http(slot) else {
            return false;
        };
        if http.buffer.is_empty() {
            return false;
        }
        if http.used {
            // The next request has begun: from now on it has as long as the first one had.
            http.used = false;
            http.deadline = tick.after(limits.handshake_timeout);
        }
        match http::parse_head(&http.buffer, limits.head_bytes_max) {
            Ok(Parsed::Incomplete) => false,
            Ok(Parsed::Complete { head, head_bytes }) => {
                http.buffer.drain(..head_bytes);
                self.http_request(slot, head);
                true
            }
            Err(error) => {
                self.http_error(slot, error, false);
                false
            }
        }
    }

    fn http_request(&mut self, slot: u32, head: Head) {
        self.leave_line(slot);
        if self.hub.is_full() {
            self.turn_away(slot, TurnedAway::ConnectionsMax, head.method == "HEAD");
            return;
        }
        let Some(http) = self.http(slot) else {
            return;
        };
        let peer = http.peer;
        if let Err(turned_away) = self.hub.check_host(peer, &head) {
            self.turn_away(slot, turned_away, head.method == "HEAD");
            return;
        }
        match protocol::handshake::check(&head.method, head.minor_version, head.pairs()) {
            Ok(handshake) => self.http_upgrade(slot, head, handshake),
            Err(HandshakeRefusal::NotAnUpgrade) if self.events.has_event_stream(head.path()) => {
                self.http_event_stream(slot, head);
            }
            Err(HandshakeRefusal::NotAnUpgrade) if self.interests.request => {
                self.http_route(slot, head)
            }
            Err(refusal) => {
                failure(refusal, self.counters()).add(1);
                if let Some(http) = self.http(slot) {
                    debug!("{} did not become a WebSocket: {refusal}", http.peer);
                }
                let answer =
                    protocol::handshake::refusal(refusal, BodyMode::of_method(&head.method));
                self.http_answer(slot, answer, false);
            }
        }
    }

    /// A request for a mounted route. What needs no body to be refused is refused before it is read.
    fn http_route(&mut self, slot: u32, head: Head) {
        // Nothing is counted of the last request any more.
        self.count_request(slot);
        if let Some(http) = self.http(slot) {
            let peer = http.peer;
            if let Err(turned_away) = self.hub.admit_request(peer, &head) {
                self.turn_away(slot, turned_away, head.method == "HEAD");
                return;
            }
            let client = self.hub.client(peer, &head);
            if let Some(http) = self.http(slot) {
                http.client = client;
            }
        }
        let body = head
            .body_framing()
            .and_then(|framing| Body::new(framing, self.hub.settings.limits.body_bytes_max))
            .and_then(|body| head.expects_continue().map(|_| body));
        let body = match body {
            Ok(body) => body,
            Err(error) => {
                self.http_error(slot, error, head.method == "HEAD");
                return;
            }
        };
        if !body.is_complete() {
            if let Some(refusal) = self.events.refusal(&head) {
                self.http_answer(slot, refusal, false);
                return;
            }
            if self.interests.guard {
                self.http_ask_guard(slot, head, body);
                return;
            }
        }
        self.http_begin_body(slot, head, body);
    }

    /// The body of a request is to be read, if there is room.
    fn http_begin_body(&mut self, slot: u32, head: Head, body: Body) {
        if !self.has_room_for_body(&body) {
            self.http_busy(slot, head.method == "HEAD");
            return;
        }
        let deadline = self.tick.after(self.hub.settings.limits.handshake_timeout);
        let expects_continue = head.expects_continue() == Ok(true);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::Http(http) = &mut conn.role else {
            return;
        };
        let wait_for_body = !body.is_complete() && http.buffer.is_empty();
        http.phase = Phase::Body(Box::new((head, body)));
        http.deadline = deadline;
        if expects_continue && wait_for_body {
            // RFC 9110 §10.1.1. A socket that does not take 25 bytes has a client that does not wait for them.
            if let Some(transport) = &mut conn.transport {
                let _ = transport.write(http::CONTINUE);
            }
        }
    }

    fn http_body(&mut self, slot: u32) -> bool {
        let Some(http) = self.http(slot) else {
            return false;
        };
        let Phase::Body(request) = &mut http.phase else {
            return false;
        };
        match request.1.feed(&http.buffer) {
            Err(error) => {
                let head_only = request.0.method == "HEAD";
                self.http_error(slot, error, head_only);
                false
            }
            Ok((used, complete)) => {
                http.buffer.drain(..used);
                if complete {
                    self.http_handle(slot);
                }
                complete
            }
        }
    }

    /// The request is there: its route is called.
    fn http_handle(&mut self, slot: u32) {
        let Some(key) = self.conns.key(slot) else {
            return;
        };
        let keeps_open = self.stop == crate::engine::reactor::Stop::Running;
        let deadline = self.tick.after(self.hub.settings.limits.queue_timeout);
        let Some(http) = self.http(slot) else {
            return;
        };
        let Phase::Body(request) = std::mem::replace(&mut http.phase, Phase::Head) else {
            return;
        };
        let (head, body) = *request;
        let (peer, client) = (http.peer, http.client);
        let head_only = head.method == "HEAD";
        let request = Request {
            keep_alive: keeps_open && head.keep_alive(),
            client,
            head,
            body: body.into_bytes(),
            peer,
        };
        // It goes from one account to the other.
        self.note_request(slot);
        let ticket = Ticket::new(request);
        if !self.add_handled(ticket.bytes) {
            self.http_busy(slot, head_only);
            return;
        }
        if let Some(http) = self.http(slot) {
            http.phase = Phase::Handling(ticket.clone());
            http.deadline = deadline;
        }
        self.job(key, Work::Request(ticket));
    }

    /// The route has answered, or was not called since the request waited for too long.
    pub(crate) fn http_respond(&mut self, slot: u32, response: Response) {
        let is_due = |http: &mut Http| matches!(http.phase, Phase::Handling(_));
        if !self.http(slot).is_some_and(is_due) {
            return;
        }
        let keep_alive = response.keep_alive && self.stop == crate::engine::reactor::Stop::Running;
        self.http_write_response(
            slot,
            Response {
                keep_alive,
                ..response
            },
        );
    }

    fn http_error(&mut self, slot: u32, error: HttpError, head_only: bool) {
        unreadable(error, self.counters()).add(1);
        if let Some(http) = self.http(slot) {
            debug!("{} sent a request that can't be served: {error}", http.peer);
        }
        let body = format!("{error}\n");
        let answer = http::refusal(
            error.status(),
            &[],
            &body,
            BodyMode::head_only_if(head_only),
        );
        self.http_answer(slot, answer, false);
    }

    fn turn_away(&mut self, slot: u32, turned_away: TurnedAway, head_only: bool) {
        turned_away.counter(self.counters()).add(1);
        if let Some(http) = self.http(slot) {
            debug!("{} was turned away: {}", http.peer, turned_away.cause());
        }
        self.http_answer(slot, turned_away.response(head_only), false);
    }

    /// The client has ended its stream: it may still wait for the answer to what it has asked in full.
    pub(crate) fn http_ended(&mut self, slot: u32) {
        let Some(http) = self.http(slot) else {
            return;
        };
        match http.phase {
            Phase::Head | Phase::Body(_) => self.free(slot),
            Phase::Handling(_) | Phase::Asking(_) | Phase::Writing(_) => {}
        }
    }

    pub(crate) fn http_expire(&mut self, slot: u32) {
        let tick = self.tick;
        match self.http(slot) {
            Some(http) if http.deadline() <= tick => {
                // What has come, or finds room, since the poll comes first.
                if http.wants_input() {
                    self.read_before_verdict(slot);
                } else {
                    self.http_write(slot);
                }
            }
            _ => return,
        }
        let Some(http) = self.http(slot).filter(|http| http.deadline() <= tick) else {
            return;
        };
        let begun = !http.buffer.is_empty() || matches!(http.phase, Phase::Body(_));
        let head_only = http.reads_body_of_head();
        match &http.phase {
            Phase::Handling(ticket) => {
                let ticket = ticket.clone();
                if !self.take_back(&ticket) {
                    // A handler may take as long as it likes.
                    self.wait_for_handler(slot);
                    return;
                }
                self.http_busy(slot, ticket.head_only);
            }
            Phase::Asking(asking) => {
                if asking.has_begun() {
                    self.wait_for_handler(slot);
                } else if let Some(asking) = self.stop_asking(slot) {
                    self.counters().refused_unserved.add(1);
                    self.http_reject(slot, asking.entry, &busy(), CloseCode::TRY_AGAIN_LATER);
                }
            }
            Phase::Head | Phase::Body(_) if begun => {
                self.counters().failed_timeout.add(1);
                let answer = http::refusal(
                    408,
                    &[],
                    "the request took too long\n",
                    BodyMode::head_only_if(head_only),
                );
                self.http_answer(slot, answer, false);
                self.note_request(slot);
            }
            Phase::Head if !http.used => {
                self.counters().failed_timeout.add(1);
                self.free(slot);
            }
            Phase::Writing(_) => self.http_expire_writing(slot),
            Phase::Head | Phase::Body(_) => self.free(slot),
        }
    }

    fn wait_for_handler(&mut self, slot: u32) {
        if let Some(http) = self.http(slot) {
            http.deadline = Tick::NEVER;
        }
    }

    /// The engine stops: who is being answered gets the answer, the others have nothing to wait for.
    pub(crate) fn http_stop(&mut self, slot: u32) {
        let Some(http) = self.http(slot) else {
            return;
        };
        match &mut http.phase {
            Phase::Head | Phase::Body(_) => self.free(slot),
            Phase::Handling(_) => {}
            Phase::Asking(_) => {
                if let Some(asking) = self.stop_asking(slot) {
                    self.counters().refused_unserved.add(1);
                    let code = CloseCode::GOING_AWAY;
                    self.http_reject(slot, asking.entry, &shutting_down(), code);
                }
            }
            Phase::Writing(writing) => writing.keep_alive = false,
        }
    }

    /// It is an HTTP connection no longer.
    pub(crate) fn http_release(&mut self, slot: u32, mut http: Http) {
        self.release_request(slot, &mut http);
        self.release_response(slot, &mut http);
        self.heads_len -= usize::from(http.is_in_line());
        self.intake.sub_asking(http.asking_bytes());
        if let Phase::Asking(asking) = &http.phase {
            self.hub.count_unhandled(asking.entry.messages());
        }
    }
}
