//! Who may come in: what is asked of a valid handshake before it becomes a WebSocket. The same for every way in.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::events::Welcome;
use super::hub::Hub;
use super::peers::{Peers, Place};
use super::pool::{Pool, Work};
use crate::metrics::{Counter, Counters};
use crate::origins::Origins;
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::handshake::Handshake;
use crate::protocol::http::Head;
use crate::report::{error, warning};
use crate::request::{Reject, RequestHead, check_accept};

/// Why a client may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnedAway {
    ConnectionsMax,
    PeerConnections,
    PeerHandshakes,
    Origin,
}

/// What is said once only, lest a client fill a log.
#[derive(Default)]
pub(super) struct Said {
    foreign_origin: AtomicBool,
    origin_refused: AtomicBool,
}

impl Hub {
    /// Asks whether a client may come in, by its request where that is known. Returns where it is; `place` is what its
    /// connection counts as, which it may not have yet.
    pub(super) fn admit(
        &self,
        peer: SocketAddr,
        head: Option<&Head>,
        place: &mut Option<Box<Place>>,
        now: Instant,
    ) -> Result<IpAddr, TurnedAway> {
        let mut client = peer.ip();
        if let Some(head) = head {
            self.check_origin(peer, head)?;
            client = self.client(peer, head);
        }
        if let Some(peers) = self.peers_for(client) {
            if !peers.may_shake_hands(client, now) {
                return Err(TurnedAway::PeerHandshakes);
            }
            if place.is_none() {
                let new = peers.enter(client, now);
                *place = Some(new.ok_or(TurnedAway::PeerConnections)?);
            }
        }
        Ok(client)
    }

    /// Counts a connection before anything is known but its peer. A proxy's count when they say for whom they are.
    pub(super) fn admit_peer(
        &self,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<Option<Box<Place>>, TurnedAway> {
        match self.peers_for(peer.ip()) {
            Some(peers) => peers
                .enter(peer.ip(), now)
                .map(Some)
                .ok_or(TurnedAway::PeerConnections),
            None => Ok(None),
        }
    }

    /// Where an address is counted, if it is: a trusted proxy has as many connections as it needs.
    fn peers_for(&self, address: IpAddr) -> Option<&Arc<Peers>> {
        let proxies = self.settings.proxies.as_ref();
        self.peers
            .as_ref()
            .filter(|_| !proxies.is_some_and(|proxies| proxies.trusts(address)))
    }

    /// Where the client of a request is, as far as can be known.
    pub(super) fn client(&self, peer: SocketAddr, head: &Head) -> IpAddr {
        match &self.settings.proxies {
            Some(proxies) => proxies.client(peer.ip(), head.pairs()),
            None => peer.ip(),
        }
    }

    fn check_origin(&self, peer: SocketAddr, head: &Head) -> Result<(), TurnedAway> {
        let mut origins = head.header_values("Origin");
        let origin = match (origins.next(), origins.next()) {
            (None, _) => return Ok(()),
            (Some(origin), None) => origin,
            // More than one names nobody.
            (Some(_), Some(_)) => "",
        };
        let host = head.header("Host");
        match &self.settings.origins {
            None => {
                if !Origins::Same.allows(Some(origin), host)
                    && !self.said.foreign_origin.swap(true, Relaxed)
                {
                    warning!(
                        "a page of another origin, {origin:?}, has connected from {peer}: any page may, until \
                         with_allowed_origins says which (this is said once)"
                    );
                }
                Ok(())
            }
            Some(allowed) if allowed.allows(Some(origin), host) => Ok(()),
            Some(_) => {
                if !self.said.origin_refused.swap(true, Relaxed) {
                    warning!(
                        "a page of the origin {origin:?} may not connect and was turned away, from {peer}; if it \
                         should, add it to the allowed origins (this is said once)"
                    );
                }
                Err(TurnedAway::Origin)
            }
        }
    }
}

impl TurnedAway {
    /// The whole answer to a request, without its body if that is `HEAD`; the connection closes after it.
    pub(super) fn response(self, head_only: bool) -> Vec<u8> {
        self.reject().response(true, head_only)
    }

    pub(super) fn reject(self) -> Reject {
        let (status, retry_after) = match self {
            Self::Origin => (403, None),
            Self::ConnectionsMax => (503, Some("5")),
            // RFC 6585 §4
            Self::PeerConnections => (429, Some("5")),
            Self::PeerHandshakes => (429, Some("1")),
        };
        let reject = Reject::new(status).with_body(format!("{}\n", self.reason()));
        match retry_after {
            Some(seconds) => reject.with_header("Retry-After", seconds),
            None => reject,
        }
    }

    /// The close frame for a client whose handshake was answered elsewhere.
    pub(super) fn close_frame(self) -> Vec<u8> {
        let code = match self {
            Self::Origin => CloseCode::POLICY_VIOLATION,
            _ => CloseCode::TRY_AGAIN_LATER,
        };
        encode::close(Some((code, self.reason())))
    }

    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::ConnectionsMax => "too many connections",
            Self::PeerConnections => "too many connections from your address",
            Self::PeerHandshakes => "too many handshakes from your address",
            Self::Origin => "pages of this origin may not connect",
        }
    }

    pub(super) fn counter(self, counters: &Counters) -> &Counter {
        match self {
            Self::ConnectionsMax => &counters.refused_connections_max,
            Self::PeerConnections => &counters.refused_peer_connections,
            Self::PeerHandshakes => &counters.refused_peer_handshakes,
            Self::Origin => &counters.refused_origin,
        }
    }
}

/// How a handshake is accepted.
#[derive(Default)]
pub(crate) struct Granted {
    pub(super) subprotocol: Option<String>,
    headers: Vec<(String, String)>,
    pub(super) kept: Option<Kept>,
}

impl Granted {
    /// What the program says to a request, if it can be sent. A handler's thread asks.
    pub(super) fn by(
        hub: &Arc<Hub>,
        request: &RequestHead,
        answer: Result<Welcome, Reject>,
    ) -> Result<Self, Reject> {
        let Welcome {
            subprotocol,
            headers,
            attachment,
        } = answer.map_err(Reject::checked)?;
        let kept = attachment.map(|attachment| Kept::new(hub, attachment));
        if let Err(wrong) = check_accept(request, subprotocol.as_deref(), &headers) {
            error!(
                "the handshake handler has accepted a request for {:?}, but {wrong}: the client gets 500",
                request.path()
            );
            return Err(Reject::internal_error());
        }
        Ok(Self {
            subprotocol,
            headers,
            kept,
        })
    }

    /// Where no handler is asked: with the first of these subprotocols that the client offers.
    pub(super) fn choosing(request: &RequestHead, known: &[&str]) -> Self {
        Self {
            subprotocol: request.choose_subprotocol(known),
            ..Self::default()
        }
    }

    /// All headers of the 101 response.
    pub(super) fn headers<'a>(&'a self, handshake: &'a Handshake) -> Vec<(&'a str, &'a str)> {
        let mut headers = handshake.headers();
        headers.extend(
            self.subprotocol
                .as_deref()
                .map(|chosen| ("Sec-WebSocket-Protocol", chosen)),
        );
        headers.extend(
            self.headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        headers
    }
}

/// What the program keeps for a connection that may never open. Dropping it is user code, so it is left to the handlers
/// wherever that happens.
pub(crate) struct Kept {
    attachment: Option<Arc<dyn Any + Send + Sync>>,
    hub: Weak<Hub>,
}

impl Kept {
    fn new(hub: &Arc<Hub>, attachment: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            attachment: Some(attachment),
            hub: Arc::downgrade(hub),
        }
    }

    /// The session has it from here on.
    pub(super) fn take(mut self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.attachment.take()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(attachment) = self.attachment.take() else {
            return;
        };
        let here = |attachment| {
            // Nobody is left to tell of a panic.
            super::pool::caught(|| drop(attachment));
        };
        match self.hub.upgrade() {
            Some(hub) if !super::pool::is_handler_of(&hub) => {
                let kept = Self {
                    attachment: Some(attachment),
                    hub: std::mem::take(&mut self.hub),
                };
                // Without handlers, it is dropped here after all.
                if let Err(Work::Drop(mut kept)) = Pool::push_work(&hub, Work::Drop(kept)) {
                    kept.attachment.take().map(here);
                }
            }
            _ => here(attachment),
        }
    }
}

/// The answer to a handshake that finds no room among those that are asked about.
pub(super) fn too_many() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "1")
        .with_body("too many handshakes wait\n")
}

/// The answer to a handshake that has come too late.
pub(super) fn shutting_down() -> Reject {
    Reject::new(503)
        .with_header("Retry-After", "5")
        .with_body("the server is shutting down\n")
}
