//! Headers and subprotocols that a program adds to the handshake request.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use crate::protocol::http;

/// Headers that the handshake writes itself, or that would change how a server parses the request (RFC 9110 §7.6.1, §10.1).
const RESERVED: [&str; 9] = [
    "Connection",
    "Upgrade",
    "Content-Length",
    "Transfer-Encoding",
    "Trailer",
    "TE",
    "Expect",
    "Keep-Alive",
    "Proxy-Connection",
];

/// Headers that may occur only once (RFC 9110 §5.3; RFC 6265 §5.4). Given two, a server refuses the request or uses either of them.
const SINGLETONS: [&str; 6] = [
    "Host",
    "Origin",
    "Authorization",
    "Proxy-Authorization",
    "Cookie",
    "User-Agent",
];

/// A header that a client adds to its handshake request (RFC 9110 §5).
///
/// ```
/// use humphrey_ws::websocket_client::Header;
///
/// let header: Header = "Authorization: Bearer token".parse()?;
/// assert_eq!((header.name(), header.value()), ("Authorization", "Bearer token"));
/// assert!(Header::new("Connection", "close").is_err());
/// # Ok::<(), humphrey_ws::websocket_client::InvalidHeader>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    name: String,
    value: String,
}

/// The reason why a header or subprotocol is not allowed in the handshake.
///
/// ```
/// use humphrey_ws::websocket_client::{Header, InvalidHeader};
///
/// let error = "Upgrade: h2c".parse::<Header>().unwrap_err();
/// assert_eq!(error, InvalidHeader::Reserved("Upgrade".into()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidHeader {
    /// The line is not of the form `Name: value`.
    Form,
    /// The header with this name contains a character that HTTP forbids in names (RFC 9110 §5.1).
    Name(String),
    /// The value of the header with this name contains a control character (RFC 9110 §5.5).
    Value(String),
    /// The header with this name is reserved: the handshake writes it itself, or must not contain it.
    Reserved(String),
    /// `Sec-WebSocket-Protocol` was given as a header. Offer subprotocols with the setting for them instead.
    IsSubprotocol,
    /// The header or subprotocol with this name was given twice.
    Repeated(String),
    /// This value of `Host` is not a host with an optional port.
    Host(String),
    /// This subprotocol name is not a token (RFC 6455 §4.1).
    Subprotocol(String),
}

impl fmt::Display for InvalidHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str("the header is malformed: write it as 'Name: value'"),
            Self::Name(name) => write!(
                f,
                "{name:?} is not a valid header name: use letters, digits and '-', as in 'Name: value'"
            ),
            Self::Value(name) => write!(
                f,
                "the value of the header {name} contains a control character"
            ),
            Self::Reserved(name) => write!(
                f,
                "the header {name} is reserved for the handshake and can't be set"
            ),
            Self::IsSubprotocol => f.write_str(
                "Sec-WebSocket-Protocol can't be set as a header: use the setting for subprotocols",
            ),
            Self::Repeated(name) => write!(f, "{name} is given twice but may be sent only once"),
            Self::Host(value) => write!(
                f,
                "{value:?} is not a valid Host: write a host name, optionally followed by ':' and a port"
            ),
            Self::Subprotocol(name) => write!(
                f,
                "{name:?} is not a valid subprotocol name: use no spaces, commas or other separators"
            ),
        }
    }
}

impl Error for InvalidHeader {}

impl Header {
    /// Creates a header. A `Host` header replaces the one derived from the URL.
    ///
    /// # Errors
    ///
    /// [`InvalidHeader`] if HTTP does not allow the name or the value, or if the header is reserved for the handshake.
    pub fn new(name: &str, value: &str) -> Result<Self, InvalidHeader> {
        if !http::is_token(name) {
            return Err(InvalidHeader::Name(name.to_owned()));
        }
        // RFC 9110 §5.5: surrounding whitespace is not part of the value.
        let value = value.trim_matches([' ', '\t']);
        let is_legal = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
        if !value.bytes().all(is_legal) {
            return Err(InvalidHeader::Value(name.to_owned()));
        }
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        if is("Sec-WebSocket-Protocol") {
            return Err(InvalidHeader::IsSubprotocol);
        }
        let of_handshake = name
            .get(.."Sec-WebSocket-".len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case("Sec-WebSocket-"));
        if of_handshake || RESERVED.iter().any(|reserved| is(reserved)) {
            return Err(InvalidHeader::Reserved(name.to_owned()));
        }
        if is("Host") && (value.is_empty() || !http::is_authority(value)) {
            return Err(InvalidHeader::Host(value.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }

    /// Returns the name in the case in which it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the value without surrounding whitespace.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether the header has this name, ignoring ASCII case.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Whether a request may contain this header only once.
    pub(super) fn is_singleton(&self) -> bool {
        SINGLETONS.iter().any(|singleton| self.is(singleton))
    }
}

impl FromStr for Header {
    type Err = InvalidHeader;

    /// Parses `Name: value`.
    fn from_str(line: &str) -> Result<Self, InvalidHeader> {
        let (name, value) = line.split_once(':').ok_or(InvalidHeader::Form)?;
        if name.is_empty() {
            return Err(InvalidHeader::Form);
        }
        Self::new(name, value)
    }
}

/// The name of a subprotocol that a client offers. It is a token (RFC 6455 §4.1 item 10).
///
/// ```
/// use humphrey_ws::websocket_client::Subprotocol;
///
/// let subprotocol: Subprotocol = "ocpp1.6".parse()?;
/// assert_eq!(subprotocol.as_str(), "ocpp1.6");
/// assert!("two words".parse::<Subprotocol>().is_err());
/// # Ok::<(), humphrey_ws::websocket_client::InvalidHeader>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subprotocol(String);

impl Subprotocol {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subprotocol {
    type Err = InvalidHeader;

    fn from_str(name: &str) -> Result<Self, InvalidHeader> {
        if http::is_token(name) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidHeader::Subprotocol(name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_header_is_refused() {
        for (line, why) in [
            ("none", InvalidHeader::Form),
            (": x", InvalidHeader::Form),
            ("a b: x", InvalidHeader::Name("a b".into())),
            ("a : x", InvalidHeader::Name("a ".into())),
            ("a: x\r\nb: y", InvalidHeader::Value("a".into())),
            ("a: x\0", InvalidHeader::Value("a".into())),
            ("upgrade: x", InvalidHeader::Reserved("upgrade".into())),
            (
                "Expect: 100-continue",
                InvalidHeader::Reserved("Expect".into()),
            ),
            (
                "sec-websocket-Key: x",
                InvalidHeader::Reserved("sec-websocket-Key".into()),
            ),
            ("Sec-WebSocket-Protocol: x", InvalidHeader::IsSubprotocol),
            ("Host:", InvalidHeader::Host(String::new())),
            ("Host: a/b", InvalidHeader::Host("a/b".into())),
            ("Host: a b", InvalidHeader::Host("a b".into())),
        ] {
            assert_eq!(line.parse::<Header>(), Err(why), "{line}");
        }
        for line in [
            "Host: a:80",
            "X-Empty:",
            "Cookie: a=b; c=d",
            "X: Gr\u{fc}ezi\tx",
        ] {
            assert!(line.parse::<Header>().is_ok(), "{line}");
        }
    }

    #[test]
    fn subprotocol_not_a_token_is_refused() {
        for name in ["", "a b", "a,b", "a/b", "\"a\"", "\u{fc}"] {
            let why = InvalidHeader::Subprotocol(name.into());
            assert_eq!(name.parse::<Subprotocol>(), Err(why));
        }
        assert_eq!(
            "ocpp1.6".parse::<Subprotocol>().unwrap().as_str(),
            "ocpp1.6"
        );
    }
}
