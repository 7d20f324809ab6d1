//! Handshakes, on their way to a WebSocket: the program may be asked who comes in, and everything waits until it has decided.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::engine::hub::admission::TurnedAway;
use crate::engine::model::command::Upgraded;
use crate::engine::model::job::Work;
use crate::engine::model::verdict::{Granted, too_many};
use crate::engine::parts::encoding::Form;
use crate::engine::reactor::http::Phase;
use crate::engine::reactor::websocket::Opening;
use crate::engine::reactor::{Core, Role};
use crate::protocol::close::CloseCode;
use crate::protocol::handshake::ValidHandshake;
use crate::protocol::http::{self, Body, BodyMode, Head, Persistence};
use crate::protocol::{encode, handshake};
use crate::report::debug;
use crate::request::{Reject, RequestHead};
use crate::transport::Transport;

/// A handshake that the program is being asked about.
pub(super) struct Asking {
    pub(super) request: Arc<RequestHead>,
    pub(super) entry: Entry,
}

/// How a handshake has come.
pub(super) enum Entry {
    /// It was read here, and is to be answered.
    Here(ValidHandshake),
    /// It was read elsewhere.
    Elsewhere(Box<Upgraded>),
    /// It is no handshake, but a request for an event stream.
    EventStream { head_only: bool },
    /// It is a request for a route, whose body is still to be read.
    Body { body: Body, head_only: bool },
}

impl Entry {
    /// Messages that came with it, and are still to be handled.
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Here(_) | Self::EventStream { .. } | Self::Body { .. } => 0,
            Self::Elsewhere(upgraded) => upgraded.messages(),
        }
    }
}

impl Asking {
    /// A handler is at work for it: its job keeps the request only meanwhile.
    pub(super) fn has_begun(&self) -> bool {
        Arc::strong_count(&self.request) > 1
    }

    pub(super) fn is_of_body(&self) -> bool {
        matches!(self.entry, Entry::Body { .. })
    }
}

/// The answer to an accepted handshake.
fn response(handshake: &ValidHandshake, granted: &Granted) -> Vec<u8> {
    http::response(
        101,
        &granted.headers(handshake),
        b"",
        Persistence::KeepAlive,
        BodyMode::Full,
    )
}

/// What a client is owed whose handshake was to be accepted as it was, with the answer that it gets instead.
fn rewritten(owed: Vec<u8>, request: &RequestHead, granted: &Granted) -> Vec<u8> {
    let head = request.head();
    let Ok(handshake) = handshake::check(&head.method, head.minor_version, head.pairs()) else {
        return owed;
    };
    match owed.strip_prefix(handshake::response(&handshake).as_slice()) {
        Some(rest) => [response(&handshake, granted).as_slice(), rest].concat(),
        None => owed,
    }
}

impl<T: Transport> Core<T> {
    /// A valid handshake: a WebSocket begins, unless its client may not come in.
    pub(super) fn http_upgrade(&mut self, slot: u32, head: Head, handshake: ValidHandshake) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::Http(http) = &mut conn.role else {
            return;
        };
        let peer = http.peer;
        match self.hub.admit(peer, Some(&head), &mut conn.place, self.now) {
            Ok(client) => {
                let request = Arc::new(RequestHead::received(head, peer, client));
                self.ask(slot, request, Entry::Here(handshake));
            }
            Err(turned_away) => self.turn_away(slot, turned_away, false),
        }
    }

    /// A request for an event stream.
    pub(super) fn http_event_stream(&mut self, slot: u32, head: Head) {
        let head_only = head.method == "HEAD";
        if !head_only && head.method != "GET" {
            let answer = self.hub.other_method(&head);
            self.http_answer(slot, answer, false);
            return;
        }
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::Http(http) = &mut conn.role else {
            return;
        };
        // A body, or a further request: nothing that is sent on the connection of a stream is of interest.
        http.buffer = Vec::new();
        let peer = http.peer;
        match self.hub.admit(peer, Some(&head), &mut conn.place, self.now) {
            Ok(client) => {
                let request = Arc::new(RequestHead::received(head, peer, client));
                self.ask(slot, request, Entry::EventStream { head_only });
            }
            Err(turned_away) => self.turn_away(slot, turned_away, head_only),
        }
    }

    /// A request with a body, which the program is asked about before it is read.
    pub(super) fn http_ask_guard(&mut self, slot: u32, head: Head, body: Body) {
        let Some(http) = self.http(slot) else {
            return;
        };
        let head_only = head.method == "HEAD";
        let request = RequestHead::received(head, http.peer, http.client);
        self.ask(slot, Arc::new(request), Entry::Body { body, head_only });
    }

    /// The same for a connection whose request was read elsewhere.
    pub(crate) fn take_over(&mut self, slot: u32, peer: SocketAddr, mut upgraded: Upgraded) {
        if let Some(http) = self.http(slot) {
            http.buffer = std::mem::take(&mut upgraded.early);
        }
        if let Some(accepted) = upgraded.accepted.take() {
            let (request, granted) = accepted.into_parts();
            self.come_in(slot, request, Entry::Elsewhere(Box::new(upgraded)), granted);
            return;
        }
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let head = upgraded.head.take();
        let admitted = match self.hub.is_full() {
            true => Err(TurnedAway::ConnectionsMax),
            false => self
                .hub
                .admit(peer, head.as_deref(), &mut conn.place, self.now),
        };
        match admitted {
            Ok(client) => {
                let request = Arc::new(match head {
                    Some(head) => RequestHead::received(*head, peer, client),
                    None => RequestHead::unknown(peer, client),
                });
                self.ask(slot, request, Entry::Elsewhere(Box::new(upgraded)));
            }
            Err(turned_away) if upgraded.answered => {
                turned_away.counter(self.counters()).add(1);
                self.dismiss(slot, upgraded, turned_away.close_frame());
            }
            Err(turned_away) => {
                self.hub.count_unhandled(upgraded.messages());
                self.turn_away(slot, turned_away, false);
            }
        }
    }

    /// Has the program decide whether a client may come in. Meanwhile nothing is read.
    fn ask(&mut self, slot: u32, request: Arc<RequestHead>, entry: Entry) {
        let for_handshake = matches!(entry, Entry::Here(_) | Entry::Elsewhere(_));
        if !self.interests.handshake && for_handshake {
            let granted = match &entry {
                // The client can't be told of a subprotocol any more.
                Entry::Elsewhere(upgraded) if upgraded.answered => Granted::default(),
                _ => Granted::choosing(&request, self.interests.subprotocols),
            };
            self.come_in(slot, request, entry, granted);
            return;
        }
        self.leave_line(slot);
        let deadline = self.tick.after(self.hub.settings.limits.queue_timeout);
        let Some(key) = self.conns.key(slot) else {
            return;
        };
        let Some(http) = self.http(slot) else {
            return;
        };
        // The job does not keep the request: it goes when nobody waits for an answer any more.
        let asked = Arc::downgrade(&request);
        let work = match entry {
            Entry::EventStream { .. } => Work::EventStream(asked),
            Entry::Body { .. } => Work::Guard(asked),
            Entry::Here(_) | Entry::Elsewhere(_) => Work::Handshake(asked),
        };
        http.deadline = deadline;
        http.buffer.shrink_to_fit();
        http.phase = Phase::Asking(Box::new(Asking { request, entry }));
        let bytes = http.asking_bytes();
        let is_early = !http.buffer.is_empty() && !matches!(work, Work::Guard(_));
        if self.intake.add_asking(bytes, is_early) {
            self.job(key, work);
            return;
        }
        self.counters().refused_handshakes_max.add(1);
        if let Some(asking) = self.stop_asking(slot) {
            self.http_reject(slot, asking.entry, &too_many(), CloseCode::TRY_AGAIN_LATER);
        }
    }

    /// The program is not asked any more, or has answered.
    pub(super) fn stop_asking(&mut self, slot: u32) -> Option<Asking> {
        let http = self.http(slot)?;
        if !matches!(http.phase, Phase::Asking(_)) {
            return None;
        }
        let bytes = http.asking_bytes();
        let Phase::Asking(asking) = std::mem::replace(&mut http.phase, Phase::Head) else {
            return None;
        };
        self.intake.sub_asking(bytes);
        Some(*asking)
    }

    /// The program has decided.
    pub(crate) fn http_verdict(&mut self, slot: u32, answer: Result<Granted, Reject>) {
        // Where nobody waits for it any more, what was granted is dropped.
        let Some(Asking { request, entry }) = self.stop_asking(slot) else {
            return;
        };
        match answer {
            Ok(mut granted) => {
                if matches!(&entry, Entry::Elsewhere(upgraded) if upgraded.answered) {
                    // The client can't be told of it any more.
                    granted.subprotocol = None;
                }
                self.come_in(slot, request, entry, granted);
            }
            Err(reject) => {
                if !matches!(entry, Entry::Body { .. }) {
                    self.counters().refused_handshake_handler.add(1);
                }
                let peer = request.peer_addr();
                debug!("{peer} was turned away by the program: {reject}");
                self.http_reject(slot, entry, &reject, CloseCode::POLICY_VIOLATION);
            }
        }
    }

    /// Answers a handshake with a refusal; with a close frame where it was answered already.
    pub(super) fn http_reject(
        &mut self,
        slot: u32,
        entry: Entry,
        reject: &Reject,
        code: CloseCode,
    ) {
        match entry {
            Entry::Elsewhere(upgraded) if upgraded.answered => {
                let frame = encode::close(Some((code, reject.reason())));
                self.dismiss(slot, *upgraded, frame);
            }
            Entry::EventStream { head_only } => {
                self.http_answer(
                    slot,
                    reject.response(BodyMode::head_only_if(head_only)),
                    false,
                );
            }
            Entry::Body { head_only, .. } => {
                if let Some(http) = self.http(slot) {
                    http.buffer = Vec::new();
                }
                self.http_answer(
                    slot,
                    reject.response(BodyMode::head_only_if(head_only)),
                    false,
                );
            }
            entry => {
                self.hub.count_unhandled(entry.messages());
                self.http_answer(slot, reject.response(BodyMode::Full), false);
            }
        }
    }

    /// Ends a connection whose handshake was answered elsewhere.
    fn dismiss(&mut self, slot: u32, upgraded: Upgraded, close_frame: Vec<u8>) {
        self.hub.count_unhandled(upgraded.messages());
        // Behind what was begun, lest the frame end up inside another.
        let last = match (upgraded.closed, upgraded.farewell) {
            (true, _) => Vec::new(),
            (false, Some(farewell)) => farewell,
            (false, None) => close_frame,
        };
        self.http_answer(slot, [upgraded.owed, last].concat(), false);
    }

    /// A WebSocket begins.
    fn come_in(&mut self, slot: u32, request: Arc<RequestHead>, entry: Entry, granted: Granted) {
        let entry = match entry {
            Entry::Body { body, .. } => {
                let head = request.head().clone();
                drop(request);
                self.http_begin_body(slot, head, body);
                self.http_go_on(slot);
                self.note_request(slot);
                self.want_read(slot);
                return;
            }
            entry => entry,
        };
        let Some(http) = self.http(slot) else {
            return;
        };
        let mut early = std::mem::take(&mut http.buffer);
        let (preface, upgraded) = match entry {
            Entry::Here(handshake) => (response(&handshake, &granted), None),
            Entry::EventStream { head_only: true } => {
                let head = self.hub.stream_head(request.head());
                self.http_answer(slot, head, false);
                return;
            }
            Entry::EventStream { head_only: false } => {
                let opening = Opening {
                    request,
                    granted,
                    // Its head is sent when it is known what follows.
                    preface: None,
                    form: Form::Events,
                };
                self.open(slot, opening);
                return;
            }
            Entry::Body { .. } => return,
            Entry::Elsewhere(mut upgraded) => {
                let mut owed = std::mem::take(&mut upgraded.owed);
                if !upgraded.answered {
                    owed = rewritten(owed, &request, &granted);
                }
                (owed, Some(upgraded))
            }
        };
        let opening = Opening {
            request,
            granted,
            preface: (!preface.is_empty()).then(|| preface.into()),
            form: Form::Frames,
        };
        self.open(slot, opening);
        if let Some(upgraded) = upgraded {
            if let Some(received) = upgraded.received {
                self.resume(slot, received);
            }
            if upgraded.closed {
                self.resume_closed(slot);
            } else if upgraded.ended {
                self.resume_ended(slot, upgraded.farewell);
            }
        }
        if early.is_empty() {
            return;
        }
        if self.intake.is_full() {
            // It can't be left unread, and a client is to wait for the answer (RFC 6455 §4.1).
            let reason = "too many messages wait";
            self.give_up_on(slot, CloseCode::TRY_AGAIN_LATER, reason);
        } else {
            self.ws_input(slot, &mut early);
        }
    }
}
