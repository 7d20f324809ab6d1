//! Admission control: the checks that a valid handshake must pass before it becomes a WebSocket. All hosts use them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::engine::hub::Hub;
use crate::engine::parts::peer_limits::{PeerLimits, PeerSlot};
use crate::hosts;
use crate::metrics::{Counter, Counters};
use crate::origins;
use crate::origins::Origins;
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::{BodyMode, Head, HttpError};
use crate::proxies::is_unix_peer;
use crate::report::{Limited, debug, limited};
use crate::request::Reject;

/// Why a client was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AdmissionRefused {
    ConnectionsMax,
    PeerConnections,
    PeerHandshakes,
    UserConnections,
    /// The page's origin is not allowed. Contains the sentence that explains it.
    Origin(Box<str>),
    /// The server does not serve this host name. Contains the sentence that explains it.
    Host(Box<str>),
}

/// Log messages that are rate-limited, so that clients can't fill a log.
#[derive(Debug, Default)]
pub(crate) struct LoggedOnce {
    pub(crate) foreign_origin: Limited,
    pub(crate) origin_refused: Limited,
    pub(crate) host_refused: Limited,
    pub(crate) bad_accept: Limited,
    pub(crate) bad_proxy_header: Limited,
    pub(crate) broken_protocol: Limited,
    pub(crate) disconnected: Limited,
    pub(crate) over_rate: Limited,
    pub(crate) silent: Limited,
    pub(crate) slow: Limited,
    pub(crate) not_polled: Limited,
    pub(crate) no_thread: Limited,
    pub(crate) not_accepted: Limited,
    pub(crate) unreadable_body: Limited,
    pub(crate) blocked: Limited,
}

/// The maximum number of characters of a header that a message quotes.
const QUOTED_CHARS_MAX: usize = 120;

/// Quotes the beginning of a client's text, with all characters escaped except printable ASCII.
pub(crate) fn quoted(text: &str) -> String {
    text.escape_default().take(QUOTED_CHARS_MAX).collect()
}

impl Hub {
    /// Checks whether a client is admitted, by its request if that is known. Returns the client's address. `peer_slot`
    /// counts the connection for its address, and is filled if it is empty. `is_tls`: whether the request came over TLS.
    pub(crate) fn admit(
        &self,
        peer: SocketAddr,
        head: Option<&Head>,
        is_tls: bool,
        peer_slot: &mut Option<Box<PeerSlot>>,
        now: Instant,
    ) -> Result<IpAddr, AdmissionRefused> {
        let mut client = peer.ip();
        if let Some(head) = head {
            self.check_host(peer, head)?;
            self.check_page(peer, head, is_tls)?;
            client = self.client(peer, head);
        }
        if let Some(peers) = self.peers_for(client) {
            if !peers.count_handshake(client, now) {
                return Err(AdmissionRefused::PeerHandshakes);
            }
            if peer_slot.is_none() {
                let new = peers.enter(client, now);
                *peer_slot = Some(new.ok_or(AdmissionRefused::PeerConnections)?);
            }
        }
        Ok(client)
    }

    /// Counts a connection of which only the peer is known. Connections from a trusted proxy are counted when their
    /// request names the client, and those from a proxy that names it before the request, then.
    pub(crate) fn admit_peer(
        &self,
        peer: SocketAddr,
        now: Instant,
    ) -> Result<Option<Box<PeerSlot>>, AdmissionRefused> {
        match self.peers_for(peer.ip()) {
            Some(peers) => peers
                .enter(peer.ip(), now)
                .map(Some)
                .ok_or(AdmissionRefused::PeerConnections),
            None => Ok(None),
        }
    }

    /// The counts for an address, if it is counted: a trusted proxy may have any number of connections, and the clients of a Unix
    /// socket have no address of their own.
    fn peers_for(&self, address: IpAddr) -> Option<&Arc<PeerLimits>> {
        let proxies = self.settings.proxies.as_ref();
        self.peers
            .as_ref()
            .filter(|_| !is_unix_peer(address))
            .filter(|_| !proxies.is_some_and(|proxies| proxies.trusts(address)))
    }

    /// The address of a request's client, as far as it is known.
    pub(crate) fn client(&self, peer: SocketAddr, head: &Head) -> IpAddr {
        match &self.settings.proxies {
            Some(proxies) => proxies.client(peer.ip(), head.pairs()),
            None => peer.ip(),
        }
    }

    /// Checks whether a request for a mounted route is admitted.
    pub(crate) fn admit_request(
        &self,
        peer: SocketAddr,
        head: &Head,
        is_tls: bool,
    ) -> Result<(), AdmissionRefused> {
        match &self.settings.guarded {
            Some(linkable) if !is_link(head, linkable) && !self.reads_its_own(head) => {
                self.check_page(peer, head, is_tls)
            }
            _ => Ok(()),
        }
    }

    /// Checks whether the server serves the host name in the request.
    pub(crate) fn check_host(&self, peer: SocketAddr, head: &Head) -> Result<(), AdmissionRefused> {
        let host = head.header("Host");
        let Some(allowed) = &self.settings.hosts else {
            return Ok(());
        };
        if allowed.allows(host) {
            return Ok(());
        }
        let host = host.unwrap_or_default();
        let why = match hosts::listable(host).map(quoted) {
            Some(name) => {
                let option = &self.settings.option_names.allowed_hosts;
                format!(
                    "This server does not answer to the host name \"{name}\". If it should, allow the name: {option} {name}"
                )
            }
            None => format!(
                "The Host header of the request, \"{}\", is not a host name: send the name or address of this server",
                quoted(host)
            ),
        };
        limited!(
            self.logged.host_refused,
            warning,
            "a request from {peer} was refused: {why}"
        );
        Err(AdmissionRefused::Host(why.into()))
    }

    /// Checks whether the page that sent the request is of an allowed origin. Requests from outside a page pass.
    fn check_page(
        &self,
        peer: SocketAddr,
        head: &Head,
        is_tls: bool,
    ) -> Result<(), AdmissionRefused> {
        let header = |name: &str| head.header(name);
        let Some(allowed) = &self.settings.origins else {
            if let Some(origin) = header("Origin").map(quoted)
                && !Origins::Same.allows_request_over(is_tls, header)
            {
                limited!(
                    self.logged.foreign_origin,
                    warning,
                    "a page of another origin, \"{origin}\", has connected from {peer}: pages of any origin may, \
                     unless with_allowed_origins restricts them"
                );
            }
            return Ok(());
        };
        if allowed.allows_request_over(is_tls, header) {
            return Ok(());
        }
        let why = self.origin_refusal_reason(allowed, head);
        limited!(
            self.logged.origin_refused,
            warning,
            "a request from {peer} was refused: {why}"
        );
        Err(AdmissionRefused::Origin(why.into()))
    }

    fn origin_refusal_reason(&self, allowed: &Origins, head: &Head) -> String {
        let option = &self.settings.option_names.allowed_origins;
        let Some(origin) = head.header("Origin").map(quoted) else {
            return format!(
                "Pages of other sites may not connect, nor embed what is here. If those of another site should, allow \
                 the origin of that site: {option} https://example.com"
            );
        };
        let Some(listable) = head
            .header("Origin")
            .and_then(origins::listable)
            .map(quoted)
        else {
            return format!(
                "The Origin header of the request, \"{origin}\", is not an origin: it must look like https://example.com"
            );
        };
        let host = quoted(head.header("Host").unwrap_or_default());
        let same = match allowed {
            Origins::Same | Origins::SameOrList(_) => format!(
                ", as the Host of the request is \"{host}\". If it is the server's own page, a proxy in front has changed the \
                 Host header: have the proxy pass it on as it came. Or"
            ),
            _ => ". If they should,".to_owned(),
        };
        format!(
            "Pages of the origin \"{origin}\" may not connect{same} allow the origin: {option} {listable}"
        )
    }
}

impl Hub {
    /// Returns whether the browser reports that the request comes from the server's own page. Browsers request scripts
    /// of type `module` with an `Origin`, which differs from `Host` if a proxy has changed `Host`. Such a page must
    /// still load, so that it can report the problem.
    fn reads_its_own(&self, head: &Head) -> bool {
        matches!(head.method.as_str(), "GET" | "HEAD")
            && head.header("Sec-Fetch-Site") == Some("same-origin")
            && !matches!(self.settings.origins, Some(Origins::List(_)))
    }
}

/// Whether the request is a browser's navigation, as by a link, to one of these paths.
fn is_link(head: &Head, linkable: &[String]) -> bool {
    let is = |name: &str, expected: &str| head.header(name) == Some(expected);
    matches!(head.method.as_str(), "GET" | "HEAD")
        && is("Sec-Fetch-Mode", "navigate")
        && is("Sec-Fetch-Dest", "document")
        && linkable.iter().any(|path| path == head.path())
}

impl AdmissionRefused {
    /// The complete response to a refused request, without its body if `head_only`. The connection closes after it.
    pub(crate) fn response(&self, head_only: bool) -> Vec<u8> {
        self.reject().response(BodyMode::head_only_if(head_only))
    }

    /// Returns the response. It always names the supported WebSocket version, because some clients are refused before their
    /// request is read.
    pub(crate) fn reject(&self) -> Reject {
        let (status, retry_after) = match self {
            Self::Origin(_) | Self::Host(_) => (403, None),
            Self::ConnectionsMax => (503, Some("5")),
            // RFC 6585 §4
            Self::PeerConnections | Self::UserConnections => (429, Some("5")),
            Self::PeerHandshakes => (429, Some("1")),
        };
        let reject = Reject::new(status).with_body(format!("{}\n", self.reason()));
        let reject = reject.for_handshake();
        match retry_after {
            Some(seconds) => reject.with_header("Retry-After", seconds),
            None => reject,
        }
    }

    /// The close frame for a client whose handshake was answered by a host.
    pub(crate) fn close_frame(&self) -> Vec<u8> {
        let code = match self {
            Self::Origin(_) | Self::Host(_) => CloseCode::POLICY_VIOLATION,
            _ => CloseCode::TRY_AGAIN_LATER,
        };
        encode::close(Some((code, self.cause())))
    }

    /// The explanation that is sent to the client.
    fn reason(&self) -> &str {
        match self {
            Self::Origin(why) | Self::Host(why) => why,
            _ => self.cause(),
        }
    }

    /// A short cause for log lines and close frames. Contains nothing that the client sent.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::ConnectionsMax => "too many connections",
            Self::PeerConnections => "too many connections from your address",
            Self::PeerHandshakes => "too many handshakes from your address",
            Self::UserConnections => "too many connections of this user",
            Self::Origin(_) => "pages of this origin may not connect",
            Self::Host(_) => "the server does not serve this host name",
        }
    }

    /// Counts and logs the refusal. Returns the answer for the client.
    pub(crate) fn record(&self, counters: &Counters, peer: SocketAddr) -> Reject {
        self.counter(counters).add(1);
        debug!("{peer} was refused: {}", self.cause());
        self.reject()
    }

    pub(crate) fn counter<'a>(&self, counters: &'a Counters) -> &'a Counter {
        match self {
            Self::ConnectionsMax => &counters.refused_connections_max,
            Self::PeerConnections => &counters.refused_peer_connections,
            Self::PeerHandshakes => &counters.refused_peer_handshakes,
            Self::UserConnections => &counters.refused_user_connections,
            Self::Origin(_) => &counters.refused_origin,
            Self::Host(_) => &counters.refused_host,
        }
    }
}

pub(crate) fn unreadable(error: HttpError, counters: &Counters) -> &Counter {
    match error {
        HttpError::HeadTooLarge | HttpError::BodyTooLarge => &counters.failed_too_large,
        _ => &counters.failed_malformed,
    }
}

pub(crate) fn failure(refusal: HandshakeRefusal, counters: &Counters) -> &Counter {
    match refusal {
        HandshakeRefusal::NotAnUpgrade | HandshakeRefusal::UpgradeStripped => {
            &counters.failed_not_an_upgrade
        }
        HandshakeRefusal::VersionMissing
        | HandshakeRefusal::VersionRepeated
        | HandshakeRefusal::VersionUnsupported => &counters.failed_version,
        HandshakeRefusal::KeyMissing
        | HandshakeRefusal::KeyRepeated
        | HandshakeRefusal::KeyInvalid => &counters.failed_key,
        HandshakeRefusal::Method
        | HandshakeRefusal::HttpVersion
        | HandshakeRefusal::HostMissing
        | HandshakeRefusal::Connection
        | HandshakeRefusal::Body => &counters.failed_requirements,
    }
}

// Only hosts behind features use these.
#[cfg_attr(not(feature = "axum"), allow(dead_code))]
impl Hub {
    /// Returns the maximum length of a request head, for hosts that check it themselves.
    pub(crate) fn head_bytes_max(&self) -> usize {
        self.settings.limits.head_bytes_max
    }

    /// Whether admission depends on the client's address.
    pub(crate) fn needs_peers(&self) -> bool {
        self.peers.is_some() || self.settings.proxies.is_some()
    }

    /// Counts a request that is not a valid handshake, for hosts that do not have it authorised.
    pub(crate) fn count_failure(&self, refusal: HandshakeRefusal) {
        failure(refusal, &self.common).add(1);
    }

    /// Counts a request that could not be parsed, for hosts that do not have it authorised.
    pub(crate) fn count_unreadable(&self, error: HttpError) {
        unreadable(error, &self.common).add(1);
    }

    /// Counts a connection that was accepted and can't be served.
    pub(crate) fn count_unserved(&self) {
        self.common.refused_unserved.add(1);
    }
}
