//! Processes handshakes. The program may authorise them, and the connection waits for the verdict.

use std::net::IpAddr;
use std::sync::Arc;

use crate::engine::hub::admission::AdmissionRefused;
use crate::engine::model::command::Upgraded;
use crate::engine::model::job::Work;
use crate::engine::model::verdict::{Granted, NotGranted, too_many};
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
use crate::transport::ShardTransport;

/// A request that the program authorises.
pub(super) struct Authorizing {
    pub(super) request: Arc<RequestHead>,
    pub(super) source: HandshakeSource,
}

/// The source of a request that is being authorised.
pub(super) enum HandshakeSource {
    /// A handshake that was read here. The verdict must be sent as a response.
    Here(ValidHandshake),
    /// A handshake that a host has read.
    Elsewhere(Box<Upgraded>),
    /// A request for an event stream, which is not a handshake.
    EventStream { head_only: bool },
    /// A request for a route, whose body is still to be read.
    Body { body: Body, head_only: bool },
}

impl HandshakeSource {
    /// The number of messages that came with the handshake, and are not handled yet.
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Here(_) | Self::EventStream { .. } | Self::Body { .. } => 0,
            Self::Elsewhere(upgraded) => upgraded.messages(),
        }
    }
}

impl Authorizing {
    /// Whether a handler has begun: its job holds the request only while it runs.
    pub(super) fn has_begun(&self) -> bool {
        Arc::strong_count(&self.request) > 1
    }

    pub(super) fn is_of_body(&self) -> bool {
        matches!(self.source, HandshakeSource::Body { .. })
    }
}

/// The response to an accepted handshake.
fn response(handshake: &ValidHandshake, granted: &Granted) -> Vec<u8> {
    http::response(
        101,
        &granted.headers(handshake),
        b"",
        Persistence::KeepAlive,
        BodyMode::Full,
    )
}

/// Replaces the response in the bytes to send by the one that the program has granted.
fn rewritten(pending_out: Vec<u8>, request: &RequestHead, granted: &Granted) -> Vec<u8> {
    let head = request.head();
    let Ok(handshake) = handshake::check(&head.method, head.minor_version, head.pairs()) else {
        return pending_out;
    };
    match pending_out.strip_prefix(handshake::response(&handshake).as_slice()) {
        Some(rest) => [response(&handshake, granted).as_slice(), rest].concat(),
        None => pending_out,
    }
}

impl Http {
    /// Admits the client of a valid handshake, and begins a WebSocket.
    pub(super) fn on_handshake<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head: Head,
        handshake: ValidHandshake,
    ) {
        match self.admit(cx, Some(&head)) {
            Ok(client) => {
                let request = cx.over_tls(RequestHead::received(head, self.peer, client));
                self.authorize(cx, Arc::new(request), HandshakeSource::Here(handshake));
            }
            Err(refused) => self.refuse(cx, refused, false),
        }
    }

    fn admit<T: ShardTransport>(
        &self,
        cx: &mut ConnCx<'_, T>,
        head: Option<&Head>,
    ) -> Result<IpAddr, AdmissionRefused> {
        let is_tls = cx.is_tls();
        let peer_slot = &mut cx.socket.peer_slot;
        let hub = &cx.shard.hub;
        hub.admit(self.peer, head, is_tls, peer_slot, cx.shard.now)
    }

    /// Admits the client of a request for an event stream.
    pub(super) fn on_event_stream<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head: Head,
    ) {
        let head_only = head.method == "HEAD";
        if !head_only && head.method != "GET" {
            let answer = cx.shard.hub.other_method(&head);
            self.answer(cx, answer);
            return;
        }
        // This is a body or a further request: the connection of an event stream takes no more input.
        self.buffer = Vec::new();
        match self.admit(cx, Some(&head)) {
            Ok(client) => {
                let request = cx.over_tls(RequestHead::received(head, self.peer, client));
                let source = HandshakeSource::EventStream { head_only };
                self.authorize(cx, Arc::new(request), source);
            }
            Err(refused) => self.refuse(cx, refused, head_only),
        }
    }

    /// Has the program authorise a request with a body, before the body is read.
    pub(super) fn authorize_body<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        head: Head,
        body: Body,
    ) {
        let head_only = head.method == "HEAD";
        let request = cx.over_tls(RequestHead::received(head, self.peer, self.client));
        let source = HandshakeSource::Body { body, head_only };
        self.authorize(cx, Arc::new(request), source);
    }

    /// Takes over a connection whose request was read by a host.
    pub(crate) fn take_over<T: ShardTransport>(
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
            Err(refused) if upgraded.is_answered => {
                refused.counter(cx.shard.counters()).add(1);
                self.close_handed_over(cx, upgraded, refused.close_frame());
            }
            Err(refused) => {
                cx.shard.hub.count_unhandled(upgraded.messages());
                self.refuse(cx, refused, false);
            }
        }
    }

    /// Asks the program whether a client is accepted. Nothing is read until the verdict.
    fn authorize<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        request: Arc<RequestHead>,
        source: HandshakeSource,
    ) {
        use HandshakeSource::{Body, Elsewhere, EventStream, Here};
        if !cx.shard.subscriptions.handshake && matches!(source, Here(_) | Elsewhere(_)) {
            let granted = match &source {
                // The response is sent already, so no subprotocol can be chosen any more.
                Elsewhere(upgraded) if upgraded.is_answered => Granted::default(),
                _ => Granted::choosing(&request, cx.shard.subscriptions.subprotocols),
            };
            self.accept(cx, request, source, granted);
            return;
        }
        cx.shard.handshake_queue.remove(self);
        // The job does not keep the request, which is dropped when the connection no longer waits for the verdict.
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

    /// Ends the wait for the program's verdict.
    pub(super) fn end_authorizing<T: ShardTransport>(
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

    /// Processes the program's verdict.
    pub(crate) fn on_verdict<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        answer: Result<Granted, NotGranted>,
    ) {
        // If the connection no longer waits for the verdict, drop the verdict.
        let Some(Authorizing { request, source }) = self.end_authorizing(cx) else {
            return;
        };
        match answer {
            Ok(mut granted) => {
                if matches!(&source, HandshakeSource::Elsewhere(upgraded) if upgraded.is_answered) {
                    // The response is sent already, so the client can't learn of it any more.
                    granted.subprotocol = None;
                }
                self.accept(cx, request, source, granted);
            }
            Err(NotGranted::UserConnections) => {
                let peer = request.peer_addr();
                let reject = AdmissionRefused::UserConnections.record(cx.shard.counters(), peer);
                self.reject(cx, source, &reject, CloseCode::TRY_AGAIN_LATER);
            }
            Err(NotGranted::Program(reject)) => {
                if !matches!(source, HandshakeSource::Body { .. }) {
                    cx.shard.counters().refused_handshake_handler.add(1);
                }
                let peer = request.peer_addr();
                debug!("{peer} was rejected by the program: {reject}");
                self.reject(cx, source, &reject, CloseCode::POLICY_VIOLATION);
            }
        }
    }

    /// Rejects a request without waiting for the program's verdict any longer.
    pub(super) fn reject_unauthorized<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        reject: &Reject,
        code: CloseCode,
    ) {
        let Some(authorizing) = self.end_authorizing(cx) else {
            debug_assert!(
                false,
                "only a request that waits for its verdict is rejected"
            );
            return;
        };
        self.reject(cx, authorizing.source, reject, code);
    }

    /// Rejects a request: with a response, or with a close frame if the response to the handshake was sent already.
    fn reject<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        source: HandshakeSource,
        reject: &Reject,
        code: CloseCode,
    ) {
        let answer = |head_only| reject.response(BodyMode::head_only_if(head_only));
        let answer = match source {
            HandshakeSource::Elsewhere(upgraded) if upgraded.is_answered => {
                let frame = encode::close(Some((code, reject.reason())));
                self.close_handed_over(cx, *upgraded, frame);
                return;
            }
            HandshakeSource::EventStream { head_only } => answer(head_only),
            HandshakeSource::Body { head_only, .. } => {
                self.buffer = Vec::new();
                answer(head_only)
            }
            source => {
                cx.shard.hub.count_unhandled(source.messages());
                reject.clone().for_handshake().response(BodyMode::Full)
            }
        };
        self.answer(cx, answer);
    }

    /// Closes a connection whose handshake was answered by a host.
    fn close_handed_over<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        upgraded: Upgraded,
        close_frame: Vec<u8>,
    ) {
        cx.shard.hub.count_unhandled(upgraded.messages());
        // Behind the bytes in progress, so that the frame does not end up inside another.
        let last = match (upgraded.has_output_ended, upgraded.close_reply) {
            (true, _) => Vec::new(),
            (false, Some(reply)) => reply,
            (false, None) => close_frame,
        };
        self.answer(cx, [upgraded.pending_out, last].concat());
    }

    /// Accepts the client, and begins what it has requested.
    fn accept<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        request: Arc<RequestHead>,
        source: HandshakeSource,
        mut granted: Granted,
    ) {
        let is_answered = match &source {
            HandshakeSource::Here(_) => false,
            HandshakeSource::Elsewhere(upgraded) => upgraded.is_answered,
            HandshakeSource::Body { .. } | HandshakeSource::EventStream { .. } => true,
        };
        if !is_answered {
            granted.agree_compression(&cx.shard.hub.settings, &request);
        }
        #[cfg(feature = "deflate")]
        if let HandshakeSource::Elsewhere(upgraded) = &source
            && let Some(agreement) = upgraded.compression
        {
            granted.continue_compression(agreement);
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
            // The response head is sent later, together with the bytes that follow it.
            HandshakeSource::EventStream { head_only: false } => {
                (Vec::new(), Encoding::Events, None)
            }
            HandshakeSource::Here(handshake) => {
                (response(&handshake, &granted), Encoding::Frames, None)
            }
            HandshakeSource::Elsewhere(mut upgraded) => {
                let mut pending_out = std::mem::take(&mut upgraded.pending_out);
                if !upgraded.is_answered {
                    pending_out = rewritten(pending_out, &request, &granted);
                }
                (pending_out, Encoding::Frames, Some(upgraded))
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
