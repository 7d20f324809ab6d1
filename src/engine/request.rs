//! A connection in its role as HTTP: reads a request head, then becomes a WebSocket or an event stream, or is answered.
//!
//! One request is handled at a time; what the client has sent behind it waits, so pipelined answers keep their order.
//! While one is handled or answered nothing is read, and TCP slows the client down.

mod asking;

use std::net::SocketAddr;

use self::asking::Asking;
use super::admission::{TurnedAway, shutting_down};
use super::core::{Core, Role};
use super::events::{Request, Response};
use super::pool::Work;
use super::timers::Tick;
use crate::metrics::{Counter, Counters};
use crate::protocol::close::CloseCode;
use crate::protocol::handshake::{self, Refusal};
use crate::protocol::http::{self, Body, Head, HttpError, Parsed};
use crate::report::debug;
use crate::transport::Transport;

pub(super) struct Http {
    peer: SocketAddr,
    /// Received, and not used yet.
    buffer: Vec<u8>,
    phase: Phase,
    deadline: Tick,
    /// It has been answered before.
    used: bool,
    /// Its place in the line of those that wait for a request head.
    place: Option<u64>,
}

enum Phase {
    Head,
    Body(Box<(Head, Body)>),
    /// A handler runs.
    Handling,
    /// The handshake handler runs.
    Asking(Box<Asking>),
    Writing {
        bytes: Vec<u8>,
        at: usize,
        keep_alive: bool,
    },
}

impl Http {
    /// Its deadline is set with `begin_head`.
    pub(super) fn new(peer: SocketAddr, now: Tick) -> Self {
        Self {
            peer,
            buffer: Vec::new(),
            phase: Phase::Head,
            deadline: now,
            used: false,
            place: None,
        }
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.place.is_some()
    }

    pub(super) fn wants_input(&self) -> bool {
        matches!(self.phase, Phase::Head | Phase::Body(_))
    }

    /// What is held of a handshake that the program is being asked about, and of what was sent behind it.
    fn asking_bytes(&self) -> usize {
        match &self.phase {
            Phase::Asking(asking) => asking.request.bytes() + self.buffer.len(),
            _ => 0,
        }
    }

    /// Until when it waits for its client; none while it waits for a handler.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn waits_until(&self) -> Option<Tick> {
        match self.phase {
            Phase::Handling | Phase::Asking(_) => None,
            Phase::Head | Phase::Body(_) | Phase::Writing { .. } => Some(self.deadline),
        }
    }

    pub(super) fn deadline(&self) -> Tick {
        match self.phase {
            // A handler may take as long as it likes.
            Phase::Handling | Phase::Asking(_) => Tick::NEVER,
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
    pub(super) fn begin_head(&mut self, slot: u32) {
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

    pub(super) fn http_input(&mut self, slot: u32, bytes: &[u8]) {
        if let Some(http) = self.http(slot) {
            http.buffer.extend_from_slice(bytes);
        }
        self.http_go_on(slot);
    }

    /// Uses what has been received, as far as it goes.
    fn http_go_on(&mut self, slot: u32) {
        while let Some(http) = self.http(slot) {
            let gone_on = match &mut http.phase {
                Phase::Head => self.http_head(slot),
                Phase::Body(_) => self.http_body(slot),
                Phase::Handling | Phase::Asking(_) | Phase::Writing { .. } => false,
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
                self.http_error(slot, error);
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
        match handshake::check(&head.method, head.minor_version, head.pairs()) {
            Ok(handshake) => self.http_upgrade(slot, head, handshake),
            Err(Refusal::NotAnUpgrade) if self.events.has_event_stream(head.path()) => {
                self.http_event_stream(slot, head);
            }
            Err(Refusal::NotAnUpgrade) if self.interests.request => self.http_route(slot, head),
            Err(refusal) => {
                failure(refusal, self.counters()).add(1);
                if let Some(http) = self.http(slot) {
                    debug!("{} did not become a WebSocket: {refusal}", http.peer);
                }
                let answer = handshake::refusal(refusal, head.method == "HEAD");
                self.http_answer(slot, answer, false);
            }
        }
    }

    /// A request for a mounted route.
    fn http_route(&mut self, slot: u32, head: Head) {
        let Some(http) = self.http(slot) else {
            return;
        };
        let peer = http.peer;
        match self.hub.admit_request(peer, &head) {
            Ok(()) => self.http_begin_body(slot, head),
            Err(turned_away) => self.turn_away(slot, turned_away, head.method == "HEAD"),
        }
    }

    fn http_begin_body(&mut self, slot: u32, head: Head) {
        let body_bytes_max = self.hub.settings.limits.body_bytes_max;
        let deadline = self.tick.after(self.hub.settings.limits.handshake_timeout);
        let body = head
            .body_framing()
            .and_then(|framing| Body::new(framing, body_bytes_max))
            .and_then(|body| Ok((body, head.expects_continue()?)));
        let (body, expects_continue) = match body {
            Ok(body) => body,
            Err(error) => {
                self.http_error(slot, error);
                return;
            }
        };
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
                self.http_error(slot, error);
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
        let keeps_open = self.stop == super::core::Stop::Running;
        let Some(http) = self.http(slot) else {
            return;
        };
        let Phase::Body(request) = std::mem::replace(&mut http.phase, Phase::Handling) else {
            return;
        };
        let (head, body) = *request;
        let peer = http.peer;
        let request = Request {
            keep_alive: keeps_open && head.keep_alive(),
            client: self.hub.client(peer, &head),
            head,
            body: body.into_bytes(),
            peer,
        };
        self.job(key, Work::Request(Box::new(request)));
    }

    /// The route has answered.
    pub(super) fn http_respond(&mut self, slot: u32, response: Response) {
        let keep_alive = response.keep_alive && self.stop == super::core::Stop::Running;
        self.http_answer(slot, response.bytes, keep_alive);
    }

    fn http_error(&mut self, slot: u32, error: HttpError) {
        unreadable(error, self.counters()).add(1);
        if let Some(http) = self.http(slot) {
            debug!("{} sent a request that can't be served: {error}", http.peer);
        }
        let answer = http::refusal(error.status(), &[], &format!("{error}\n"), false);
        self.http_answer(slot, answer, false);
    }

    fn turn_away(&mut self, slot: u32, turned_away: TurnedAway, head_only: bool) {
        turned_away.counter(self.counters()).add(1);
        if let Some(http) = self.http(slot) {
            debug!("{} was turned away: {}", http.peer, turned_away.cause());
        }
        self.http_answer(slot, turned_away.response(head_only), false);
    }

    fn http_answer(&mut self, slot: u32, bytes: Vec<u8>, keep_alive: bool) {
        let deadline = self.tick.after(self.hub.settings.limits.write_timeout);
        self.leave_line(slot);
        let Some(http) = self.http(slot) else {
            return;
        };
        http.deadline = deadline;
        http.phase = Phase::Writing {
            bytes,
            at: 0,
            keep_alive,
        };
        self.want_write(slot);
    }

    pub(super) fn http_write(&mut self, slot: u32) {
        let deadline = self.tick.after(self.hub.settings.limits.write_timeout);
        let idle = self.tick.after(self.hub.settings.limits.keep_alive_timeout);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let (Role::Http(http), Some(transport)) = (&mut conn.role, &mut conn.transport) else {
            return;
        };
        let Phase::Writing {
            bytes,
            at,
            keep_alive,
        } = &mut http.phase
        else {
            return;
        };
        while *at < bytes.len() {
            match transport.write(&bytes[*at..]) {
                Ok(n) => {
                    *at += n;
                    http.deadline = deadline;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.free(slot);
                    return;
                }
            }
        }
        if !*keep_alive {
            self.linger(slot);
            return;
        }
        http.phase = Phase::Head;
        http.deadline = idle;
        http.used = true;
        self.line_up(slot);
        self.http_go_on(slot);
        self.want_read(slot);
    }

    /// The client has ended its stream: it may still wait for the answer to what it has asked in full.
    pub(super) fn http_ended(&mut self, slot: u32) {
        let Some(http) = self.http(slot) else {
            return;
        };
        match http.phase {
            Phase::Head | Phase::Body(_) => self.free(slot),
            Phase::Handling | Phase::Asking(_) | Phase::Writing { .. } => {}
        }
    }

    pub(super) fn http_expire(&mut self, slot: u32) {
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
        match http.phase {
            Phase::Handling | Phase::Asking(_) => {}
            Phase::Head | Phase::Body(_) if begun => {
                self.counters().failed_timeout.add(1);
                let answer = http::refusal(408, &[], "the request took too long\n", false);
                self.http_answer(slot, answer, false);
            }
            Phase::Head if !http.used => {
                self.counters().failed_timeout.add(1);
                self.free(slot);
            }
            Phase::Head | Phase::Body(_) | Phase::Writing { .. } => self.free(slot),
        }
    }

    /// The engine stops: who is being answered gets the answer, the others have nothing to wait for.
    pub(super) fn http_stop(&mut self, slot: u32) {
        let Some(http) = self.http(slot) else {
            return;
        };
        match &mut http.phase {
            Phase::Head | Phase::Body(_) => self.free(slot),
            Phase::Handling => {}
            Phase::Asking(_) => {
                if let Some(asking) = self.stop_asking(slot) {
                    self.counters().refused_unserved.add(1);
                    let code = CloseCode::GOING_AWAY;
                    self.http_reject(slot, asking.entry, &shutting_down(), code);
                }
            }
            Phase::Writing { keep_alive, .. } => *keep_alive = false,
        }
    }

    /// It is an HTTP connection no longer.
    pub(super) fn http_release(&mut self, http: Http) {
        self.heads_len -= usize::from(http.is_in_line());
        self.intake.sub_asking(http.asking_bytes());
        if let Phase::Asking(asking) = &http.phase {
            self.hub.count_unhandled(asking.entry.messages());
        }
    }
}

pub(super) fn unreadable(error: HttpError, counters: &Counters) -> &Counter {
    match error {
        HttpError::HeadTooLarge | HttpError::BodyTooLarge => &counters.failed_too_large,
        _ => &counters.failed_malformed,
    }
}

pub(super) fn failure(refusal: Refusal, counters: &Counters) -> &Counter {
    match refusal {
        Refusal::NotAnUpgrade | Refusal::UpgradeStripped => &counters.failed_not_an_upgrade,
        Refusal::VersionMissing | Refusal::VersionRepeated | Refusal::VersionUnsupported => {
            &counters.failed_version
        }
        Refusal::KeyMissing | Refusal::KeyRepeated | Refusal::KeyInvalid => &counters.failed_key,
        Refusal::Method
        | Refusal::HttpVersion
        | Refusal::HostMissing
        | Refusal::Connection
        | Refusal::Body => &counters.failed_requirements,
    }
}

impl Response {
    /// The answer where a route's handler panicked.
    pub(super) fn internal_error(head_only: bool) -> Self {
        Self {
            bytes: http::refusal(500, &[], "internal server error\n", head_only),
            keep_alive: false,
        }
    }
}
