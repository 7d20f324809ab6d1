//! Request heads and the program's verdicts on them: for handshakes and for event streams.
//!
//! Depends on `protocol::http` and `protocol::percent`; knows neither connections nor handlers.

mod accept;
mod reject;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
#[cfg(feature = "__tls")]
use std::sync::Arc;

#[cfg(feature = "__tls")]
use rustls::pki_types::CertificateDer;

pub use self::accept::Accept;
pub(crate) use self::accept::check as check_accept;
pub use self::reject::Reject;
use crate::protocol::http::{Head, list};
use crate::protocol::percent;

/// The head of a client's request: its path and query, its headers, and its addresses.
///
/// A [handshake handler](crate::AsyncWebsocketApp::with_handshake_handler) and an [event stream's
/// handler](crate::AsyncWebsocketApp::with_event_stream) decide by it. Everything in it was written by the client,
/// except the addresses.
///
/// ```
/// use humphrey_ws::RequestHead;
///
/// let request = RequestHead::new("/chat?name=J%C3%B6rg+M.&room=1").with_header("Cookie", "theme=dark; session=4711");
/// assert_eq!(request.path(), "/chat");
/// assert_eq!(request.query(), "name=J%C3%B6rg+M.&room=1");
/// assert_eq!(request.query_param("name").as_deref(), Some("Jörg M."));
/// assert_eq!(request.cookie("session"), Some("4711"));
/// ```
#[derive(Clone)]
pub struct RequestHead {
    head: Head,
    peer: SocketAddr,
    client: IpAddr,
    /// The client's certificates; `None` without TLS.
    #[cfg(feature = "__tls")]
    tls: Option<Arc<[CertificateDer<'static>]>>,
}

impl RequestHead {
    /// Creates a request for `target` (path and query) without headers, from `127.0.0.1`, to test a handler without a
    /// client.
    pub fn new(target: impl Into<String>) -> Self {
        let head = Head {
            method: "GET".to_owned(),
            target: target.into(),
            minor_version: 1,
            headers: Vec::new(),
        };
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::received(head, peer, peer.ip())
    }

    /// Adds a header to a request that was created with [`new`](Self::new).
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.head.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn received(head: Head, peer: SocketAddr, client: IpAddr) -> Self {
        Self {
            head,
            peer,
            client,
            #[cfg(feature = "__tls")]
            tls: None,
        }
    }

    /// Records that the request came over TLS, from a client with these certificates.
    #[cfg(feature = "__tls")]
    pub(crate) fn over_tls(mut self, certificates: Vec<CertificateDer<'static>>) -> Self {
        self.tls = Some(certificates.into());
        self
    }

    /// Creates a request of which only the client's address is known.
    pub(crate) fn unknown(peer: SocketAddr, client: IpAddr) -> Self {
        let mut request = Self::new("/");
        request.peer = peer;
        request.client = client;
        request
    }

    /// Sets the client's address, which was unknown when the request was received.
    #[cfg_attr(not(feature = "axum"), allow(dead_code))]
    pub(crate) fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = peer;
        self.client = peer.ip();
    }

    /// Whether the request itself is known: every handshake has headers.
    pub(crate) fn is_known(&self) -> bool {
        !self.head.headers.is_empty()
    }

    /// Returns its approximate size in memory.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.head.headers.iter();
        let line =
            |(name, value): &(String, String)| name.len() + value.len() + size_of_val(name) * 2;
        let certificates = self.certificate_bytes();
        size_of::<Self>() + self.head.target.len() + headers.map(line).sum::<usize>() + certificates
    }

    #[allow(clippy::unused_self)] // Without the feature, there are none.
    fn certificate_bytes(&self) -> usize {
        #[cfg(feature = "__tls")]
        return self.client_certificates().iter().map(|one| one.len()).sum();
        #[cfg(not(feature = "__tls"))]
        return 0;
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the method: `GET` for a handshake; `GET` or `HEAD` for an event stream.
    pub fn method(&self) -> &str {
        &self.head.method
    }

    /// Returns the path without the query and not decoded. It begins with `/`.
    pub fn path(&self) -> &str {
        self.head.path()
    }

    /// Returns the part after the first `?`, not decoded; empty if there is none.
    pub fn query(&self) -> &str {
        self.head.query()
    }

    /// Returns the first value of a query parameter, decoded as browsers encode it (`URLSearchParams`): `+` is a space,
    /// and `%` introduces two hexadecimal digits. `None` if the parameter is missing; empty if it has no value.
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.query()
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(known, _)| percent::decode_form(known) == name)
            .map(|(_, value)| percent::decode_form(value))
    }

    /// Returns the first value of a header. The case of the name does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns all headers in the order in which they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head.pairs()
    }

    /// Returns the value of the first cookie of that name (RFC 6265 §4.2), without quotes around it and otherwise as it
    /// was sent.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.head
            .pairs()
            .filter(|(header, _)| header.eq_ignore_ascii_case("Cookie"))
            .flat_map(|(_, value)| value.split(';'))
            .filter_map(|pair| pair.split_once('='))
            .find(|(known, _)| known.trim() == name)
            .map(|(_, value)| unquoted(value.trim()))
    }

    /// Returns the origin of the page that sent the request (RFC 6454 §7). Browsers always send it with a handshake,
    /// other clients seldom do.
    ///
    /// [`with_allowed_origins`](crate::AsyncWebsocketApp::with_allowed_origins) has been checked before.
    pub fn origin(&self) -> Option<&str> {
        self.header("Origin")
    }

    /// Returns the subprotocols that the client offers, in its order of preference (RFC 6455 §1.9).
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        self.head
            .pairs()
            .filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"))
            .flat_map(|(_, value)| list(value))
    }

    /// Returns the first of these subprotocols that the client offers.
    pub(crate) fn choose_subprotocol(&self, known: &[&str]) -> Option<String> {
        let mut known = known.iter();
        let chosen = known.find(|known| self.subprotocols().any(|offered| offered == **known));
        chosen.map(|chosen| (*chosen).to_owned())
    }

    /// Returns the address of the connection's other end: the client, or a proxy in front of the app.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Returns whether the app's own listener has received the request over TLS
    /// ([`with_tls`](crate::AsyncWebsocketApp::with_tls)). False behind a proxy that ends TLS.
    #[cfg(feature = "__tls")]
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the certificates by which the client has identified itself in the TLS handshake (RFC 8446 §4.4.2): its
    /// own first, then those of authorities, as the client sent them. They were checked by the
    /// [`ServerConfig`](crate::tls::rustls::ServerConfig)'s verifier. Empty without TLS, or if the configuration asks for
    /// no certificate.
    #[cfg(feature = "__tls")]
    pub fn client_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.as_deref().unwrap_or_default()
    }

    /// Returns the client's IP address: that of [`peer_addr`](Self::peer_addr), or the one that a trusted proxy
    /// forwards ([`with_trusted_proxies`](crate::AsyncWebsocketApp::with_trusted_proxies)).
    pub fn client_ip(&self) -> IpAddr {
        self.client
    }
}

/// Omits headers and query, which may contain secrets.
impl fmt::Debug for RequestHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", &self.method())
            .field("path", &self.path())
            .field("peer_addr", &self.peer)
            .field("client_ip", &self.client)
            .finish_non_exhaustive()
    }
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

/// Whether a header may be sent in a response: its name is a token (RFC 9110 §5.6.2), and its value stays on one line
/// (§5.5).
fn is_header(name: &str, value: &str) -> bool {
    crate::protocol::http::is_token(name) && value.chars().all(|c| c == '\t' || !c.is_control())
}

#[cfg(test)]
mod tests;
