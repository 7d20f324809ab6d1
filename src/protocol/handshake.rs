//! The opening handshake: here the server's side (RFC 6455 §4.2), in `client` the other.

use std::error::Error;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD};
use sha1::{Digest as _, Sha1};

use super::http::{self, BodyMode, Persistence};

#[cfg(any(test, fuzzing, feature = "client"))]
#[cfg_attr(loom, allow(dead_code))] // Models do without.
pub(crate) mod client;

/// Appended to the key before it is hashed (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The version of the protocol that is spoken here (RFC 6455 §4.1).
const VERSION: &str = "13";

/// The subprotocol of plain messages: it changes nothing of what is sent. Browsers fail a handshake in which the server
/// chooses none of the subprotocols that they offer, so a client that can do without any offers this one as its last.
pub(crate) const PLAIN: &str = "humphrey_ws.plain.v1";

/// Bytes of a key, and of its base64 form (RFC 6455 §4.1).
const KEY_BYTES: usize = 16;
const KEY_TEXT_BYTES: usize = 24;

/// Some clients make up keys letter by letter, so that the unused bits at the end are set. The
/// length is what tells a key; those bits say nothing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    NO_PAD.with_decode_allow_trailing_bits(true),
);

/// A request that may become a WebSocket connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValidHandshake {
    /// The value of `Sec-WebSocket-Accept`.
    pub(crate) accept: String,
    /// The client offers [`PLAIN`], which is chosen where nothing else is.
    offers_plain: bool,
}

/// Why a request does not become a WebSocket connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeRefusal {
    /// No `Upgrade: websocket` at all: an ordinary request.
    NotAnUpgrade,
    /// No `Upgrade: websocket`, and yet a `Sec-WebSocket-Key`: something on the way has removed it (RFC 9110 §7.6.1).
    UpgradeStripped,
    /// Not GET (RFC 6455 §4.1 item 2).
    Method,
    /// Below HTTP/1.1 (RFC 6455 §4.1 item 2).
    HttpVersion,
    /// No Host (RFC 6455 §4.2.1 item 2).
    HostMissing,
    /// `Connection` does not say `upgrade` (RFC 6455 §4.2.1 item 4).
    Connection,
    /// No `Sec-WebSocket-Version` (RFC 6455 §4.2.1 item 6).
    VersionMissing,
    /// More than one `Sec-WebSocket-Version` (RFC 6455 §11.3.5).
    VersionRepeated,
    /// Another version than 13 (RFC 6455 §4.2.2 item 4, §4.4).
    VersionUnsupported,
    /// No `Sec-WebSocket-Key` (RFC 6455 §4.2.1 item 5).
    KeyMissing,
    /// More than one `Sec-WebSocket-Key` (RFC 6455 §11.3.1).
    KeyRepeated,
    /// The key is not the base64 form of 16 bytes (RFC 6455 §4.2.1 item 5).
    KeyInvalid,
    /// A body is announced; its bytes would be taken for frames.
    Body,
}

/// Checks what a request asks for (RFC 6455 §4.2.1).
///
/// `headers` are (name, value) pairs in any case; a repeated header appears repeatedly. Of the subprotocols offered only
/// [`PLAIN`] is looked for; extensions are ignored, which declines them.
pub(crate) fn check<'a, I>(
    method: &str,
    minor_version: u8,
    headers: I,
) -> Result<ValidHandshake, HandshakeRefusal>
where
    I: Iterator<Item = (&'a str, &'a str)> + Clone,
{
    let values = |name: &'static str| {
        headers
            .clone()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_matches(http::OWS))
    };

    // RFC 6455 §4.2.1 item 3. First, so that ordinary requests are told apart.
    if !values("Upgrade").flat_map(http::list).any(is_websocket) {
        return Err(match values("Sec-WebSocket-Key").next() {
            None => HandshakeRefusal::NotAnUpgrade,
            Some(_) => HandshakeRefusal::UpgradeStripped,
        });
    }
    // RFC 6455 §4.1 item 2; RFC 9110 §7.8: an HTTP/1.0 Upgrade is to be ignored.
    if method != "GET" {
        return Err(HandshakeRefusal::Method);
    }
    if minor_version == 0 {
        return Err(HandshakeRefusal::HttpVersion);
    }
    // RFC 6455 §4.2.1 item 2
    if values("Host").next().is_none() {
        return Err(HandshakeRefusal::HostMissing);
    }
    // RFC 6455 §4.2.1 item 4
    let mut options = values("Connection").flat_map(http::list);
    if !options.any(|option| option.eq_ignore_ascii_case("upgrade")) {
        return Err(HandshakeRefusal::Connection);
    }
    // RFC 6455 §4.2.1 item 6, before the key: other versions may have other keys.
    let version = only(values("Sec-WebSocket-Version")).map_err(|many| {
        if many {
            HandshakeRefusal::VersionRepeated
        } else {
            HandshakeRefusal::VersionMissing
        }
    })?;
    if version != VERSION {
        return Err(HandshakeRefusal::VersionUnsupported);
    }
    // RFC 6455 §4.2.1 item 5
    let key = only(values("Sec-WebSocket-Key")).map_err(|many| {
        if many {
            HandshakeRefusal::KeyRepeated
        } else {
            HandshakeRefusal::KeyMissing
        }
    })?;
    if !is_key(key) {
        return Err(HandshakeRefusal::KeyInvalid);
    }
    // RFC 9110 §7.8 would have the body read before the switch; no client has reason to send one.
    let mut lengths = values("Content-Length").flat_map(|value| value.split(','));
    let is_zero = |value: &str| {
        value
            .trim_matches(http::OWS)
            .bytes()
            .all(|byte| byte == b'0')
    };
    if values("Transfer-Encoding").next().is_some() || !lengths.all(is_zero) {
        return Err(HandshakeRefusal::Body);
    }
    // RFC 6455 §11.3.4: as a list, or repeated.
    let mut offered = values("Sec-WebSocket-Protocol").flat_map(http::list);
    Ok(ValidHandshake {
        accept: accept(key),
        offers_plain: offered.any(|offered| offered == PLAIN),
    })
}

/// The only one of `values`; an error says whether there are several instead of none.
fn only<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<&'a str, bool> {
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (first, _) => Err(first.is_some()),
    }
}

/// `websocket`, with or without a version behind it (RFC 9110 §7.8).
fn is_websocket(protocol: &str) -> bool {
    let name = protocol.split_once('/').map_or(protocol, |(name, _)| name);
    name.eq_ignore_ascii_case("websocket")
}

/// The base64 form of 16 bytes (RFC 6455 §4.1 item 7).
fn is_key(key: &str) -> bool {
    let mut bytes = [0; KEY_TEXT_BYTES];
    key.len() == KEY_TEXT_BYTES
        && key
            .strip_suffix("==")
            .and_then(|digits| LENIENT.decode_slice(digits, &mut bytes).ok())
            .is_some_and(|len| len == KEY_BYTES)
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2 item 5.4).
fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finalize())
}

/// The 101 response (RFC 6455 §4.2.2).
pub(crate) fn response(handshake: &ValidHandshake) -> Vec<u8> {
    http::response(
        101,
        &handshake.headers(None),
        b"",
        Persistence::KeepAlive,
        BodyMode::Full,
    )
}

impl ValidHandshake {
    /// The headers of the 101 response, with the subprotocol that was chosen.
    pub(crate) fn headers<'a>(&'a self, chosen: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
        let mut headers = vec![
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", self.accept.as_str()),
        ];
        let chosen = chosen.or(self.offers_plain.then_some(PLAIN));
        headers.extend(chosen.map(|chosen| ("Sec-WebSocket-Protocol", chosen)));
        headers
    }
}

/// The whole refusal: status, the headers that belong to it, and the reason as plain text, unless it answers `HEAD`. The
/// connection closes after it.
pub(crate) fn refusal(refusal: HandshakeRefusal, body_mode: BodyMode) -> Vec<u8> {
    let body = format!("{refusal}\n");
    http::refusal(refusal.status(), refusal.headers(), &body, body_mode)
}

impl HandshakeRefusal {
    /// The status to answer with.
    pub(crate) const fn status(self) -> u16 {
        match self {
            // RFC 9110 §15.5.22: the client would be served if it did upgrade, or upgraded to another version
            // (RFC 6455 §4.2.2 item 4, §4.4).
            Self::NotAnUpgrade
            | Self::UpgradeStripped
            | Self::Connection
            | Self::VersionMissing
            | Self::VersionUnsupported => 426,
            Self::Method => 405,
            Self::HttpVersion
            | Self::HostMissing
            | Self::VersionRepeated
            | Self::KeyMissing
            | Self::KeyRepeated
            | Self::KeyInvalid
            | Self::Body => 400,
        }
    }

    /// The headers that belong to the status, and in any case the version that is spoken here (RFC 6455 §4.4).
    pub(crate) const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self.status() {
            // RFC 9110 §15.5.22: 426 must name the protocol wanted.
            426 => &[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Version", VERSION),
            ],
            // RFC 9110 §15.5.6: 405 must name the methods allowed.
            405 => &[("Allow", "GET"), ("Sec-WebSocket-Version", VERSION)],
            _ => &[("Sec-WebSocket-Version", VERSION)],
        }
    }
}

impl fmt::Display for HandshakeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnUpgrade => {
                "This is a WebSocket endpoint: the request needs 'Upgrade: websocket'."
            }
            Self::UpgradeStripped => {
                "The WebSocket handshake came without 'Upgrade: websocket': a proxy in front of this server has probably \
                 removed it. Configure the proxy to speak HTTP/1.1 and to pass on the headers Upgrade and Connection."
            }
            Self::Method => "A WebSocket handshake is a GET request.",
            Self::HttpVersion => "A WebSocket handshake needs HTTP/1.1.",
            Self::HostMissing => "The Host header is missing.",
            Self::Connection => {
                "The WebSocket handshake came without 'Connection: Upgrade': a proxy in front of this server has probably \
                 removed it. Configure the proxy to pass on the headers Upgrade and Connection."
            }
            Self::VersionMissing => "The Sec-WebSocket-Version header is missing; it must be 13.",
            Self::VersionRepeated => "There is more than one Sec-WebSocket-Version header.",
            Self::VersionUnsupported => "Only version 13 of the WebSocket protocol is spoken here.",
            Self::KeyMissing => "The Sec-WebSocket-Key header is missing.",
            Self::KeyRepeated => "There is more than one Sec-WebSocket-Key header.",
            Self::KeyInvalid => "The Sec-WebSocket-Key is not the base64 form of 16 bytes.",
            Self::Body => "A WebSocket handshake has no body.",
        })
    }
}

impl Error for HandshakeRefusal {}

#[cfg(test)]
mod tests;
