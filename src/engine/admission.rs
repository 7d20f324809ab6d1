//! Who may come in: what is asked of a valid handshake before it becomes a WebSocket. The same for every way in.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use super::hub::Hub;
use super::peers::{Peers, Place};
use crate::metrics::{Counter, Counters};
use crate::origins::Origins;
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::http::{self, Head};
use crate::report::warning;

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
    /// Asks whether a client may come in, by its request where that is known. Returns where it is, if that is not its
    /// peer's address; `place` is what its connection counts as, which it may not have yet.
    pub(super) fn admit(
        &self,
        peer: SocketAddr,
        head: Option<&Head>,
        place: &mut Option<Box<Place>>,
        now: Instant,
    ) -> Result<Option<Box<IpAddr>>, TurnedAway> {
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
        Ok((client != peer.ip()).then(|| Box::new(client)))
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
    /// The whole answer to a request; the connection closes after it.
    pub(super) fn response(self) -> Vec<u8> {
        let mut headers = vec![("Content-Type", "text/plain; charset=utf-8")];
        let (status, retry_after) = match self {
            Self::Origin => (403, None),
            Self::ConnectionsMax => (503, Some("5")),
            // RFC 6585 §4
            Self::PeerConnections => (429, Some("5")),
            Self::PeerHandshakes => (429, Some("1")),
        };
        headers.extend(retry_after.map(|seconds| ("Retry-After", seconds)));
        let body = format!("{}\n", self.reason());
        http::response(status, &headers, body.as_bytes(), true, false)
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
