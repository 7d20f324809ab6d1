//! Handshakes, on their way to a WebSocket: the program may authorize them, and the connection waits until it has decided.

use std::net::IpAddr;
use std::sync::Arc;

use crate::engine::hub::admission::AdmissionRefused;
use crate::engine::model::command::Upgraded;
use crate::engine::model::job::Work;
use crate::engine::model::verdict::{Granted, Refusal, too_many};
use crate::engine::parts::encoding::Encoding;
use crate::engine::reactor::ConnCx;
use crate::engine::reactor::http::{Http, Phase};
use crate::engine::reactor::opening::{Opening, Upgrade};
use crate::protocol::close::CloseCode;
use crate::protocol::handshake::ValidHandshake;
use crate::protocol::http::{self, Body, BodyMode, Head, Persistence};
use crate::protocol::{encode, handshake};
use crate::report::debug;
use crate::request::{Reject, RequestHead};
use crate::transport::Transport;

/// A handshake that the program authorizes.
pub(super) struct Authorizing {
    pub(super) request: Arc<RequestHead>,
    pub(super) source: HandshakeSource,
}

/// How a handshake has come.
pub(super) enum HandshakeSource {
    /// It was read here, and is to be answered.
    Here(ValidHandshake),
    /// It was read elsewhere.
    Elsewhere(Box<Upgraded>),
    /// It is no handshake, but a request for an event stream.
    EventStream { head_only: bool },
    /// It is a request for a route, whose body is still to be read.
    Body { body: Body, head_only: bool },
}

impl HandshakeSource {
    /// Messages that came with it, and are still to be handled.
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Here(_) | Self::EventStream { .. } | Self::Body { .. } => 0,
            Self::Elsewhere(upgraded) => upgraded.messages(),
        }
    }
}

impl Authorizing {
    /// A handler is at work for it: its job keeps the request only meanwhile.
    pub(super) fn has_begun(&self) -> bool {
        Arc::strong_count(&self.request) > 1
    }

    pub(super) fn is_of_body(&self) -> bool {
        matches!(self.source, HandshakeSource::Body { .. })
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

impl Http {
    /// A valid handshake: a WebSocket begins, if its client is admitted.
    pub(super) fn on_handshake<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head: Head,
        handshake: ValidHandshake,
    ) {
        match self.admit(cx, Some(&head)) {
            Ok(client) => {
                let request = Arc::new(RequestHead::received(head, self.peer, client));
                self.authorize(cx, request, HandshakeSource::Here(handshake));
            }
            Err(turned_away) => self.refuse(cx, turned_away, false),
        }
    }

    fn admit<T: Transport>(
        &self,
        cx: &mut ConnCx<'_, T>,
        head: Option<&Head>,
    ) -> Result<IpAddr, AdmissionRefused> {
        let peer_slot = &mut cx.socket.peer_slot;
        cx.shard.hub.admit(self.peer, head, peer_slot, cx.shard.now)
    }

    /// A request for an event stream.
    pub(super) fn on_event_stream<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>, head: Head) {
        let head_only = head.method == "HEAD";
        if !head_only && head.method != "GET" {
            let answer = cx.shard.hub.other_method(&head);
            self.answer(cx, answer);
            return;
        }
        // A body, or a further request: nothing that is sent on the connection of a stream is of interest.
        self.buffer = Vec::new();
        match self.admit(cx, Some(&head)) {
            Ok(client) => {
                let request = Arc::new(RequestHead::received(head, self.peer, client));
                self.authorize(cx, request, HandshakeSource::EventStream { head_only });
            }
            Err(turned_away) => self.refuse(cx, turned_away, head_only),
        }
    }

    /// A request with a body, which the program authorizes before it is read.
    pub(super) fn authorize_body<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head: Head,
        body: Body,
    ) {
        let head_only = head.method == "HEAD";
        let request = RequestHead::received(head, self.peer, self.client);
        let source = HandshakeSource::Body { body, head_only };
        self.authorize(cx, Arc::new(request), source);
    }

    /// Goes on with a connection whose request was read elsewhere.
    pub(crate) fn take_over<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        mut upgraded: Upgraded,
    ) {
        self.buffer = std::mem::take(&mut upgraded.early);
        if let Some(accepted) = upgraded.accepted.take() {
            let (request, granted) = accepted.into_parts();
            let source = HandshakeSource::Elsewhere(Box::new(upgraded));
            self.accept(cx, request, source, granted);
            return;
        }
        let head = upgraded.head.take();
        let admitted = match cx.shard.hub.is_full() {
            true => Err(AdmissionRefused::ConnectionsMax),
            false => self.admit(cx, head.as_deref()),
        };
        match admitted {
            Ok(client) => {
                let request = Arc::new(match head {
                    Some(head) => RequestHead::received(*head, self.peer, client),
                    None => RequestHead::unknown(self.peer, client),
                });
                let source = HandshakeSource::Elsewhere(Box::new(upgraded));
                self.authorize(cx, request, source);
            }
            Err(turned_away) if upgraded.answered => {
                turned_away.counter(cx.shard.counters()).add(1);
                self.close_handed_over(cx, upgraded, turned_away.close_frame());
            }
            Err(turned_away) => {
                cx.shard.hub.count_unhandled(upgraded.messages());
                self.refuse(cx, turned_away, false);
            }
        }
    }

    /// Has the program decide whether a client is accepted. Meanwhile nothing is read.
    fn authorize<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        request: Arc<RequestHead>,
        source: HandshakeSource,
    ) {
        use HandshakeSource::{Body, Elsewhere, EventStream, Here};
        if !cx.shard.subscriptions.handshake && matches!(source, Here(_) | Elsewhere(_)) {
            let granted = match &source {
                // The client can't be told of a subprotocol any more.
                Elsewhere(upgraded) if upgraded.answered => Granted::default(),
                _ => Granted::choosing(&request, cx.shard.subscriptions.subprotocols),
            };
            self.accept(cx, request, source, granted);
            return;
        }
        cx.shard.handshake_queue.remove(self);
        // The job does not keep the request: it goes when nobody waits for an answer any more.
        let asked = Arc::downgrade(&request);
        let work = match source {
            EventStream { .. } => Work::EventStream(asked),
            Body { .. } => Work::Guard(asked),
            Here(_) | Elsewhere(_) => Work::Handshake(asked),
        };
        self.deadline = cx.shard.tick.after(cx.shard.limits().queue_timeout);
        self.buffer.shrink_to_fit();
        self.phase = Phase::Authorizing(Box::new(Authorizing { request, source }));
        let bytes = self.authorizing_bytes();
        let is_early = !self.buffer.is_empty() && !matches!(work, Work::Guard(_));
        if cx.shard.receive_budget.add_authorizing(bytes, is_early) {
            cx.job(work);
            return;
        }
        cx.shard.counters().refused_handshakes_max.add(1);
        self.reject_unauthorized(cx, &too_many(), CloseCode::TRY_AGAIN_LATER);
    }

    /// The program does not decide any more, or has decided.
    pub(super) fn end_authorizing<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
    ) -> Option<Authorizing> {
        if !matches!(self.phase, Phase::Authorizing(_)) {
            return None;
        }
        let bytes = self.authorizing_bytes();
        let Phase::Authorizing(authorizing) = std::mem::replace(&mut self.phase, Phase::Head)
        else {
            return None;
        };
        cx.shard.receive_budget.sub_authorizing(bytes);
        Some(*authorizing)
    }

    /// The program has decided.
    pub(crate) fn on_verdict<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        answer: Result<Granted, Refusal>,
    ) {
        // Where nobody waits for it any more, what was granted is dropped.
        let Some(Authorizing { request, source }) = self.end_authorizing(cx) else {
            return;
        };
        match answer {
            Ok(mut granted) => {
                if matches!(&source, HandshakeSource::Elsewhere(upgraded) if upgraded.answered) {
                    // The client can't be told of it any more.
                    granted.subprotocol = None;
                }
                self.accept(cx, request, source, granted);
            }
            Err(Refusal::UserConnections) => {
                let refused = AdmissionRefused::UserConnections;
                refused.counter(cx.shard.counters()).add(1);
                let peer = request.peer_addr();
                debug!("{peer} was turned away: {}", refused.cause());
                self.reject(cx, source, &refused.reject(), CloseCode::TRY_AGAIN_LATER);
            }
            Err(Refusal::Program(reject)) => {
                if !matches!(source, HandshakeSource::Body { .. }) {
                    cx.shard.counters().refused_handshake_handler.add(1);
                }
                let peer = request.peer_addr();
                debug!("{peer} was turned away by the program: {reject}");
                self.reject(cx, source, &reject, CloseCode::POLICY_VIOLATION);
            }
        }
    }

    /// Does not wait any more for the program to decide, and rejects.
    pub(super) fn reject_unauthorized<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        reject: &Reject,
        code: CloseCode,
    ) {
        let Some(authorizing) = self.end_authorizing(cx) else {
            debug_assert!(false, "the program is to decide");
            return;
        };
        self.reject(cx, authorizing.source, reject, code);
    }

    /// Answers a handshake with a refusal; with a close frame where it was answered already.
    fn reject<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        source: HandshakeSource,
        reject: &Reject,
        code: CloseCode,
    ) {
        let head_only = match source {
            HandshakeSource::Elsewhere(upgraded) if upgraded.answered => {
                let frame = encode::close(Some((code, reject.reason())));
                self.close_handed_over(cx, *upgraded, frame);
                return;
            }
            HandshakeSource::EventStream { head_only } => head_only,
            HandshakeSource::Body { head_only, .. } => {
                self.buffer = Vec::new();
                head_only
            }
            source => {
                cx.shard.hub.count_unhandled(source.messages());
                false
            }
        };
        self.answer(cx, reject.response(BodyMode::head_only_if(head_only)));
    }

    /// Ends a connection whose handshake was answered elsewhere.
    fn close_handed_over<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        upgraded: Upgraded,
        close_frame: Vec<u8>,
    ) {
        cx.shard.hub.count_unhandled(upgraded.messages());
        // Behind what was begun, lest the frame end up inside another.
        let last = match (upgraded.closed, upgraded.farewell) {
            (true, _) => Vec::new(),
            (false, Some(reply)) => reply,
            (false, None) => close_frame,
        };
        self.answer(cx, [upgraded.owed, last].concat());
    }

    /// The client is accepted: what it has asked for begins.
    fn accept<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        request: Arc<RequestHead>,
        source: HandshakeSource,
        mut granted: Granted,
    ) {
        let is_answered = match &source {
            HandshakeSource::Here(_) => false,
            HandshakeSource::Elsewhere(upgraded) => upgraded.answered,
            HandshakeSource::Body { .. } | HandshakeSource::EventStream { .. } => true,
        };
        if !is_answered {
            granted.agree_compression(&cx.shard.hub.settings, &request);
        }
        let (preface, encoding, handed_over) = match source {
            HandshakeSource::Body { body, .. } => {
                let head = request.head().clone();
                drop(request);
                self.begin_body(cx, head, body);
                self.go_on(cx);
                self.count_request(cx);
                cx.want_read();
                return;
            }
            HandshakeSource::EventStream { head_only: true } => {
                let head = cx.shard.hub.stream_head(request.head());
                self.answer(cx, head);
                return;
            }
            // Its head is sent when it is known what follows.
            HandshakeSource::EventStream { head_only: false } => {
                (Vec::new(), Encoding::Events, None)
            }
            HandshakeSource::Here(handshake) => {
                (response(&handshake, &granted), Encoding::Frames, None)
            }
            HandshakeSource::Elsewhere(mut upgraded) => {
                let mut owed = std::mem::take(&mut upgraded.owed);
                if !upgraded.answered {
                    owed = rewritten(owed, &request, &granted);
                }
                (owed, Encoding::Frames, Some(upgraded))
            }
        };
        let early = match encoding {
            Encoding::Frames => std::mem::take(&mut self.buffer),
            Encoding::Events => Vec::new(),
        };
        let opening = Opening {
            request,
            granted,
            preface: (!preface.is_empty()).then(|| preface.into()),
            encoding,
        };
        cx.upgrade(Upgrade {
            opening,
            handed_over,
            early,
        });
    }
}
