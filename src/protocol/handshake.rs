//! The opening handshake: the server's side (RFC 6455 §4.2). The client's side is in `client`.

use std::error::Error;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD};
use sha1::{Digest as _, Sha1};

use super::http::{self, BodyMode, Persistence};

#[cfg(any(test, fuzzing, feature = "client"))]
#[cfg_attr(loom, allow(dead_code))] // The loom models don't use it.
pub(crate) mod client;

/// The GUID that is appended to the key before it is hashed (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The supported version of the WebSocket protocol (RFC 6455 §4.1).
const VERSION: &str = "13";

/// The header that names the supported version (RFC 6455 §4.2.2 item 4, §4.4), for the response to a refused handshake.
pub(crate) const VERSION_HEADER: (&str, &str) = ("Sec-WebSocket-Version", VERSION);

/// The subprotocol for plain messages, which are sent as without a subprotocol. Browsers fail a handshake in which the
/// server selects none of the offered subprotocols, so a client that needs none offers this one last.
pub(crate) const PLAIN: &str = "humphrey_ws.plain.v1";

/// The length of a key, and of its base64 form (RFC 6455 §4.1).
const KEY_BYTES: usize = 16;
const KEY_TEXT_BYTES: usize = 24;

/// Decodes base64 with unused bits set, because some clients generate keys one character at a time. These bits carry nothing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    NO_PAD.with_decode_allow_trailing_bits(true),
);

/// A request that passed the checks of the opening handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValidHandshake {
    /// The value of `Sec-WebSocket-Accept`.
    pub(crate) accept: String,
    /// Whether the client offers [`PLAIN`], which is selected if no other subprotocol is.
    offers_plain: bool,
}

/// The reason why a request is not a valid opening handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeRefusal {
    /// An ordinary request without `Upgrade: websocket`.
    NotAnUpgrade,
    /// A request with `Sec-WebSocket-Key` but without `Upgrade: websocket`, which a proxy has probably removed
    /// (RFC 9110 §7.6.1).
    UpgradeStripped,
    /// The method is not GET (RFC 6455 §4.1 item 2).
    Method,
    /// The HTTP version is below 1.1 (RFC 6455 §4.1 item 2).
    HttpVersion,
    /// There is no `Host` (RFC 6455 §4.2.1 item 2).
    HostMissing,
    /// `Connection` does not contain `upgrade` (RFC 6455 §4.2.1 item 4).
    Connection,
    /// There is no `Sec-WebSocket-Version` (RFC 6455 §4.2.1 item 6).
    VersionMissing,
    /// There is more than one `Sec-WebSocket-Version` (RFC 6455 §11.3.5).
    VersionRepeated,
    /// The version is not 13 (RFC 6455 §4.2.2 item 4, §4.4).
    VersionUnsupported,
    /// There is no `Sec-WebSocket-Key` (RFC 6455 §4.2.1 item 5).
    KeyMissing,
    /// There is more than one `Sec-WebSocket-Key` (RFC 6455 §11.3.1).
    KeyRepeated,
    /// The key is not the base64 form of 16 bytes (RFC 6455 §4.2.1 item 5).
    KeyInvalid,
    /// The request announces a body, whose bytes would be parsed as frames.
    Body,
}

/// Checks whether a request is a valid opening handshake (RFC 6455 §4.2.1).
///
/// `headers` are (name, value) pairs with names in any case, one for each header line. Of the offered subprotocols, only
/// [`PLAIN`] is looked for. Extensions are ignored, which declines them.
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

    // RFC 6455 §4.2.1 item 3. This check comes first to distinguish ordinary requests.
    if !values("Upgrade").flat_map(http::list).any(is_websocket) {
        return Err(match values("Sec-WebSocket-Key").next() {
            None => HandshakeRefusal::NotAnUpgrade,
            Some(_) => HandshakeRefusal::UpgradeStripped,
        });
    }
    // RFC 6455 §4.1 item 2; RFC 9110 §7.8: servers ignore `Upgrade` in HTTP/1.0.
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
    // RFC 6455 §4.2.1 item 6. This check precedes the key's, because other versions may have other keys.
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
    // RFC 9110 §7.8 requires reading the body before the switch, but no client has a reason to send one.
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
    // RFC 6455 §11.3.4: the header is a list and may be repeated.
    let mut offered = values("Sec-WebSocket-Protocol").flat_map(http::list);
    Ok(ValidHandshake {
        accept: accept(key),
        offers_plain: offered.any(|offered| offered == PLAIN),
    })
}

/// Returns the single one of `values`. The error is true if there are several, and false if there are none.
fn only<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<&'a str, bool> {
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(value),
        (first, _) => Err(first.is_some()),
    }
}

/// Whether the protocol is `websocket`, with or without a version (RFC 9110 §7.8).
fn is_websocket(protocol: &str) -> bool {
    let name = protocol.split_once('/').map_or(protocol, |(name, _)| name);
    name.eq_ignore_ascii_case("websocket")
}

/// Whether the text is the base64 form of 16 bytes (RFC 6455 §4.1 item 7).
fn is_key(key: &str) -> bool {
    let mut bytes = [0; KEY_TEXT_BYTES];
    key.len() == KEY_TEXT_BYTES
        && key
            .strip_suffix("==")
            .and_then(|digits| LENIENT.decode_slice(digits, &mut bytes).ok())
            .is_some_and(|len| len == KEY_BYTES)
}

/// Returns the value of `Sec-WebSocket-Accept` for a key (RFC 6455 §4.2.2 item 5.4).
fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finalize())
}

/// Renders the 101 response (RFC 6455 §4.2.2).
pub(crate) fn response(handshake: &ValidHandshake) -> Vec<u8> {
    switch(&handshake.headers(None))
}

/// Renders the 101 response with a negotiated extension (RFC 6455 §9.1).
#[cfg(feature = "deflate")]
pub(crate) fn response_with_extension(handshake: &ValidHandshake, extension: &str) -> Vec<u8> {
    let mut headers = handshake.headers(None);
    headers.push(("Sec-WebSocket-Extensions", extension));
    switch(&headers)
}

fn switch(headers: &[(&str, &str)]) -> Vec<u8> {
    http::response(101, headers, b"", Persistence::KeepAlive, BodyMode::Full)
}

impl ValidHandshake {
    /// Returns the headers of the 101 response with the selected subprotocol.
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

/// Renders the whole refusal: status, its headers, and the reason as plain text unless the request was `HEAD`. The connection
/// closes after it.
pub(crate) fn refusal(refusal: HandshakeRefusal, body_mode: BodyMode) -> Vec<u8> {
    let body = format!("{refusal}\n");
    http::refusal(refusal.status(), refusal.headers(), &body, body_mode)
}

impl HandshakeRefusal {
    /// Returns the status of the response.
    pub(crate) const fn status(self) -> u16 {
        match self {
            // RFC 9110 §15.5.22: the server would accept a request that upgrades, or that upgrades to another version
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

    /// Returns the headers that the status requires, and always the supported version (RFC 6455 §4.4).
    pub(crate) const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self.status() {
            // RFC 9110 §15.5.22: a 426 must name the required protocol.
            426 => &[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                VERSION_HEADER,
            ],
            // RFC 9110 §15.5.6: a 405 must name the allowed methods.
            405 => &[("Allow", "GET"), VERSION_HEADER],
            _ => &[VERSION_HEADER],
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
            Self::VersionUnsupported => "This server supports only version 13 of the WebSocket protocol.",
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
