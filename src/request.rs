//! The head of a client's request and the program's answer to it: for handshakes and for event streams.
//!
//! Depends on `protocol::http` and `protocol::percent`. It knows neither connections nor handlers.

mod accept;
mod reject;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use self::accept::Accept;
pub(crate) use self::accept::check as check_accept;
pub use self::reject::Reject;
use crate::protocol::http::{Head, list};
use crate::protocol::percent;

/// A request before it is answered: its path and query, its headers, and who sends it.
///
/// A [handshake handler](crate::AsyncWebsocketApp::with_handshake_handler) decides by it who may come in, and an
/// [event stream's](crate::AsyncWebsocketApp::with_event_stream) who gets what. What is in it was written by the client,
/// but for the addresses.
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
}

impl RequestHead {
    /// Makes a request for `target` (path and query) without headers, from `127.0.0.1`: to test a handler without a client.
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

    /// Adds a header to a request that was made with [`new`](Self::new).
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.head.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn received(head: Head, peer: SocketAddr, client: IpAddr) -> Self {
        Self { head, peer, client }
    }

    /// A request of which only the client's address is known.
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

    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.head.headers.iter();
        let line =
            |(name, value): &(String, String)| name.len() + value.len() + size_of_val(name) * 2;
        size_of::<Self>() + self.head.target.len() + headers.map(line).sum::<usize>()
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The method: `GET` for a handshake; `GET` or `HEAD` for an event stream.
    pub fn method(&self) -> &str {
        &self.head.method
    }

    /// The path, as it was sent, without the query. It begins with `/`.
    pub fn path(&self) -> &str {
        self.head.path()
    }

    /// What follows the first `?`, as it was sent; empty if there is none.
    pub fn query(&self) -> &str {
        self.head.query()
    }

    /// The first value of a parameter of the query, decoded: `+` is a space and `%` stands before two hexadecimal digits,
    /// as browsers encode it (`URLSearchParams`). `None` if it is not there; empty if it has no value.
    pub fn query_param(&self, name: &str) -> Option<String> {
        self.query()
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(known, _)| percent::decode_form(known) == name)
            .map(|(_, value)| percent::decode_form(value))
    }

    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// All headers, as they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.head.pairs()
    }

    /// The first cookie of that name (RFC 6265 §4.2), as it was sent, without quotes around it.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.head
            .pairs()
            .filter(|(header, _)| header.eq_ignore_ascii_case("Cookie"))
            .flat_map(|(_, value)| value.split(';'))
            .filter_map(|pair| pair.split_once('='))
            .find(|(known, _)| known.trim() == name)
            .map(|(_, value)| unquoted(value.trim()))
    }

    /// The origin of the page that asks (RFC 6454 §7). Browsers always send it with a handshake, other clients seldom do.
    ///
    /// [`with_allowed_origins`](crate::AsyncWebsocketApp::with_allowed_origins) has been asked already.
    pub fn origin(&self) -> Option<&str> {
        self.header("Origin")
    }

    /// The subprotocols that the client offers, the one it likes best first (RFC 6455 §1.9).
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        self.head
            .pairs()
            .filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"))
            .flat_map(|(_, value)| list(value))
    }

    /// The first of these that the client offers.
    pub(crate) fn choose_subprotocol(&self, known: &[&str]) -> Option<String> {
        let mut known = known.iter();
        let chosen = known.find(|known| self.subprotocols().any(|offered| offered == **known));
        chosen.map(|chosen| (*chosen).to_owned())
    }

    /// The address of the other end of the connection: the client's, or that of a proxy in front.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Where the client is: the address in [`peer_addr`](Self::peer_addr), or behind a proxy that is trusted
    /// ([`with_trusted_proxies`](crate::AsyncWebsocketApp::with_trusted_proxies)) the one that the proxy names.
    pub fn client_ip(&self) -> IpAddr {
        self.client
    }
}

/// Shows no header and no query: they hold what is secret.
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

/// A header that may be sent in an answer: a token (RFC 9110 §5.6.2), and a value that stays on its line (§5.5).
fn is_header(name: &str, value: &str) -> bool {
    crate::protocol::http::is_token(name) && value.chars().all(|c| c == '\t' || !c.is_control())
}

#[cfg(test)]
mod tests;
