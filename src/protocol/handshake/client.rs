//! The client's side of the opening handshake (RFC 6455 §4.1): encodes the request, and checks the response.

use std::error::Error;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{KEY_BYTES, VERSION, accept};
use crate::protocol::http::ReplyHead;

/// The parts of the request against which the response is checked.
#[derive(Debug, Clone)]
pub(crate) struct ExpectedAnswer {
    accept: String,
    subprotocols: Vec<String>,
    /// Whether permessage-deflate was offered (RFC 7692).
    compression: bool,
}

/// The result of the negotiation with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed<'a> {
    pub(crate) subprotocol: Option<&'a str>,
    /// Whether the server may send compressed messages.
    pub(crate) compression: bool,
}

/// The extensions that a client offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extensions {
    None,
    /// permessage-deflate (RFC 7692).
    #[cfg(all(feature = "deflate", feature = "client"))]
    Deflate,
}

/// Encodes a handshake request. The caller must have validated `target`, `host`, subprotocols and headers. The key must
/// be unpredictable.
pub(crate) fn request(
    target: &str,
    host: &str,
    key: [u8; KEY_BYTES],
    subprotocols: &[String],
    extensions: Extensions,
    headers: &[(String, String)],
) -> (Vec<u8>, ExpectedAnswer) {
    let key = STANDARD.encode(key);
    let mut head = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: {VERSION}\r\nSec-WebSocket-Key: {key}\r\n"
    );
    if !subprotocols.is_empty() {
        head += &format!("Sec-WebSocket-Protocol: {}\r\n", subprotocols.join(", "));
    }
    let offer: Option<&str> = match extensions {
        Extensions::None => None,
        #[cfg(all(feature = "deflate", feature = "client"))]
        Extensions::Deflate => Some(crate::protocol::deflate::negotiate::OFFER),
    };
    if let Some(offer) = offer {
        head += &format!("Sec-WebSocket-Extensions: {offer}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let asked = ExpectedAnswer {
        accept: accept(&key),
        subprotocols: subprotocols.to_vec(),
        compression: offer.is_some(),
    };
    (head.into_bytes(), asked)
}

/// The reason why a 101 response is invalid, so that the client must fail the connection (RFC 6455 §4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadAnswer {
    /// `Upgrade` is missing, or names another protocol (item 2).
    Upgrade,
    /// `Connection` does not contain `upgrade` (item 3).
    Connection,
    /// No `Sec-WebSocket-Accept`, or several (item 4, §11.3.3).
    AcceptMissing,
    AcceptRepeated,
    /// `Sec-WebSocket-Accept` does not match the key (item 4).
    AcceptWrong,
    /// The server has selected an extension that was not offered (item 5).
    Extension(String),
    /// The server has selected a subprotocol that was not offered (item 6).
    Subprotocol(String),
    /// The server has selected more than one subprotocol (§11.3.4).
    SubprotocolRepeated,
}

/// Checks a 101 response. Returns the result of the negotiation.
pub(crate) fn judge<'a>(
    asked: &'a ExpectedAnswer,
    head: &ReplyHead,
) -> Result<Agreed<'a>, BadAnswer> {
    // RFC 6455 §4.1 item 2: the value is "websocket". RFC 9110 §7.8: a server that lists several switches to all of them.
    let mut protocols = head.tokens("Upgrade").peekable();
    if protocols.peek().is_none()
        || !protocols.all(|protocol| protocol.eq_ignore_ascii_case("websocket"))
    {
        return Err(BadAnswer::Upgrade);
    }
    let mut options = head.tokens("Connection");
    if !options.any(|option| option.eq_ignore_ascii_case("upgrade")) {
        return Err(BadAnswer::Connection);
    }
    let mut accepts = head.values("Sec-WebSocket-Accept");
    match (accepts.next(), accepts.next()) {
        (None, _) => return Err(BadAnswer::AcceptMissing),
        (Some(_), Some(_)) => return Err(BadAnswer::AcceptRepeated),
        (Some(value), None) if value != asked.accept => return Err(BadAnswer::AcceptWrong),
        (Some(_), None) => {}
    }
    let compression = compression_agreed(asked, head)?;
    let agreed = |subprotocol| Agreed {
        subprotocol,
        compression,
    };
    let mut chosen = head.tokens("Sec-WebSocket-Protocol");
    match (chosen.next(), chosen.next()) {
        // RFC 6455 §4.2.2 item 5.5: a server that accepts none of the subprotocols omits the header.
        (None, _) => Ok(agreed(None)),
        (Some(_), Some(_)) => Err(BadAnswer::SubprotocolRepeated),
        (Some(chosen), None) => {
            // Subprotocols are case-sensitive (RFC 6455 §11.5).
            let offered = asked.subprotocols.iter().find(|offered| *offered == chosen);
            let offered = offered.ok_or_else(|| BadAnswer::Subprotocol(chosen.to_owned()))?;
            Ok(agreed(Some(offered)))
        }
    }
}

/// Returns whether the server has accepted compression. Fails if it has selected an extension that was not offered.
fn compression_agreed(asked: &ExpectedAnswer, head: &ReplyHead) -> Result<bool, BadAnswer> {
    let Some(extension) = head.tokens("Sec-WebSocket-Extensions").next() else {
        return Ok(false);
    };
    #[cfg(feature = "deflate")]
    if asked.compression
        && let Some(agreed) =
            crate::protocol::deflate::negotiate::answered(head.values("Sec-WebSocket-Extensions"))
    {
        return Ok(agreed);
    }
    debug_assert!(!asked.compression || cfg!(feature = "deflate"));
    Err(BadAnswer::Extension(extension.to_owned()))
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upgrade => f.write_str("the 101 response has no 'Upgrade: websocket'"),
            Self::Connection => f.write_str("the 101 response has no 'Connection: Upgrade'"),
            Self::AcceptMissing => f.write_str("the 101 response has no Sec-WebSocket-Accept"),
            Self::AcceptRepeated => {
                f.write_str("the 101 response has more than one Sec-WebSocket-Accept")
            }
            Self::AcceptWrong => {
                f.write_str("Sec-WebSocket-Accept does not match the key of the request")
            }
            Self::Extension(name) => {
                write!(
                    f,
                    "the server selected the extension {name:?}, which was not offered in this form"
                )
            }
            Self::Subprotocol(name) => {
                write!(
                    f,
                    "the server selected the subprotocol {name:?}, which was not offered"
                )
            }
            Self::SubprotocolRepeated => {
                f.write_str("the server selected more than one subprotocol")
            }
        }
    }
}

impl Error for BadAnswer {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{self, ReplyReader};

    /// The key of the example in RFC 6455 §1.3, and the matching `Sec-WebSocket-Accept`.
    const KEY: [u8; 16] = *b"the sample nonce";
    const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn asked(subprotocols: &[&str]) -> ExpectedAnswer {
        let subprotocols: Vec<String> = subprotocols.iter().map(|&s| s.to_owned()).collect();
        request("/", "a", KEY, &subprotocols, Extensions::None, &[]).1
    }

    fn judged(asked: &ExpectedAnswer, headers: &[&str]) -> Result<Option<String>, BadAnswer> {
        let text = format!("HTTP/1.1 101 x\r\n{}\r\n\r\n", headers.join("\r\n"));
        let reply = ReplyReader::new(1 << 12, 0).read(text.as_bytes());
        let head = reply.unwrap().unwrap().head;
        judge(asked, &head).map(|agreed| agreed.subprotocol.map(str::to_owned))
    }

    #[test]
    fn request_is_accepted_by_the_own_server() {
        let headers = [("Origin".to_owned(), "http://a".to_owned())];
        let offered = ["a".to_owned(), "b".to_owned()];
        let (bytes, _) = request("/news?x", "a:80", KEY, &offered, Extensions::None, &headers);
        let Ok(http::Parsed::Complete { head, head_bytes }) = http::parse_head(&bytes, 1 << 12)
        else {
            panic!("{bytes:?}");
        };
        assert_eq!((head_bytes, head.target.as_str()), (bytes.len(), "/news?x"));
        assert_eq!(head.header("Host"), Some("a:80"));
        assert_eq!(head.header("Origin"), Some("http://a"));
        assert_eq!(head.header("Sec-WebSocket-Protocol"), Some("a, b"));
        let checked = super::super::check(&head.method, head.minor_version, head.pairs());
        let accept = checked.unwrap().accept;
        assert_eq!(format!("Sec-WebSocket-Accept: {accept}"), ACCEPT);
        let (plain, _) = request("/", "a", KEY, &[], Extensions::None, &[]);
        assert!(!String::from_utf8(plain).unwrap().contains("Protocol"));
    }

    #[test]
    fn lists_in_one_line_or_several_are_accepted() {
        let asked = asked(&["a", "b"]);
        for headers in [
            &["Upgrade: websocket", "Connection: Upgrade", ACCEPT][..],
            &[
                "Upgrade: WebSocket",
                "Connection: keep-alive, UPGRADE",
                ACCEPT,
            ],
            &[
                "Connection: keep-alive",
                "Connection: Upgrade",
                ACCEPT,
                "Upgrade: websocket",
            ],
            &[
                "Upgrade:",
                "Upgrade: websocket,",
                "Connection: ,Upgrade",
                ACCEPT,
            ],
            &[
                "Upgrade: websocket",
                "Connection: Upgrade",
                ACCEPT,
                "Sec-WebSocket-Protocol:",
                "Sec-WebSocket-Extensions: ,",
            ],
        ] {
            assert_eq!(judged(&asked, headers), Ok(None), "{headers:?}");
        }
        let headers = ["Upgrade: websocket", "Connection: Upgrade", ACCEPT];
        let with = |line| judged(&asked, &[&headers[..], &[line]].concat());
        assert_eq!(with("Sec-WebSocket-Protocol: b"), Ok(Some("b".into())));
    }

    #[test]
    fn response_to_another_request_fails_the_connection() {
        let asked = asked(&["a"]);
        let good = ["Upgrade: websocket", "Connection: Upgrade", ACCEPT];
        let without = |n: usize| {
            let mut headers = good.to_vec();
            headers.remove(n);
            judged(&asked, &headers)
        };
        assert_eq!(without(0), Err(BadAnswer::Upgrade));
        assert_eq!(without(1), Err(BadAnswer::Connection));
        assert_eq!(without(2), Err(BadAnswer::AcceptMissing));
        let with = |line: &str| judged(&asked, &[&good[..], &[line]].concat());
        assert_eq!(with("Upgrade: h2c"), Err(BadAnswer::Upgrade));
        assert_eq!(with(ACCEPT), Err(BadAnswer::AcceptRepeated));
        assert_eq!(
            judged(&asked, &[good[0], good[1], "Sec-WebSocket-Accept: x"]),
            Err(BadAnswer::AcceptWrong)
        );
        assert_eq!(
            with("Sec-WebSocket-Extensions: permessage-deflate; x=1"),
            Err(BadAnswer::Extension("permessage-deflate; x=1".into()))
        );
        for (line, error) in [
            (
                "Sec-WebSocket-Protocol: b",
                BadAnswer::Subprotocol("b".into()),
            ),
            (
                "Sec-WebSocket-Protocol: A",
                BadAnswer::Subprotocol("A".into()),
            ),
            (
                "Sec-WebSocket-Protocol: a, a",
                BadAnswer::SubprotocolRepeated,
            ),
            (
                "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a",
                BadAnswer::SubprotocolRepeated,
            ),
        ] {
            assert_eq!(with(line), Err(error), "{line}");
        }
    }
}
