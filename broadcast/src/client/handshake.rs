//! The handshake's bytes (RFC 6455 §4.1). tungstenite's own would end a connection to a server that chooses none of the
//! subprotocols that it is offered, though every server may.

use std::fmt;
use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// Longest answer's head that is read, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 32 << 10;

/// How much of a refusal's body is read, in bytes: its first line is what is said.
const BODY_BYTES_MAX: usize = 1 << 10;

const HEADERS_MAX: usize = 100;

/// How long a server may ask to be left alone, at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// A header that the user wants to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    Form,
    Ours,
}

impl FromStr for Header {
    type Err = BadHeader;

    fn from_str(line: &str) -> Result<Self, BadHeader> {
        let (name, value) = line.split_once(':').ok_or(BadHeader::Form)?;
        // RFC 9110 §5.1 and §5.5.
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let is_value = |byte: u8| byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
        let value = value.trim();
        if name.is_empty() || !name.bytes().all(is_token) || !value.bytes().all(is_value) {
            return Err(BadHeader::Form);
        }
        let lower = name.to_ascii_lowercase();
        let is_ours = matches!(
            lower.as_str(),
            "host" | "connection" | "upgrade" | "content-length" | "transfer-encoding"
        );
        if is_ours || lower.starts_with("sec-websocket-") {
            return Err(BadHeader::Ours);
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "a header looks like 'Name: value'",
            Self::Ours => "this header is the handshake's own",
        })
    }
}

impl std::error::Error for BadHeader {}

/// A request, and the key that its answer must have.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    accept: String,
    offers: &'static [&'static str],
}

impl Request {
    pub(super) fn new(
        authority: &str,
        target: &str,
        offers: &'static [&'static str],
        headers: &[Header],
    ) -> Self {
        let key = generate_key();
        let mut head = format!(
            "GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        if !offers.is_empty() {
            let _ = write!(head, "Sec-WebSocket-Protocol: {}\r\n", offers.join(", "));
        }
        for Header { name, value } in headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head += "\r\n";
        Self {
            bytes: head.into_bytes(),
            accept: derive_accept_key(key.as_bytes()),
            offers,
        }
    }
}

/// What a server has answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// From behind so many bytes on, frames.
    Accepted {
        head_bytes: usize,
        subprotocol: Option<&'static str>,
    },
    Refused {
        status: u16,
        /// What it says of it, in a few words.
        says: String,
        retry_after: Duration,
    },
}

/// Reads an answer: `None` until it is all there. `is_end`: nothing will follow.
pub(super) fn answer(
    request: &Request,
    bytes: &[u8],
    is_end: bool,
) -> Result<Option<Answer>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if bytes.len() > HEAD_BYTES_MAX => {
            return Err("its answer is too long".into());
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("its answer is not HTTP".into()),
    };
    let status = response.code.unwrap_or_default();
    let header = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    if status != 101 {
        let length = header("Content-Length").and_then(|n| n.trim().parse().ok());
        let wanted: usize = length.unwrap_or(0).min(BODY_BYTES_MAX);
        let body = &bytes[head_bytes..];
        if body.len() < wanted && !is_end {
            return Ok(None);
        }
        let body = String::from_utf8_lossy(&body[..body.len().min(BODY_BYTES_MAX)]);
        let says = match (header("Location"), body.lines().next()) {
            (Some(location), _) => format!("see {location}"),
            (None, Some(line)) if !line.trim_start().starts_with('<') => line.trim().to_owned(),
            _ => response.reason.unwrap_or_default().to_owned(),
        };
        let retry_after = header("Retry-After").and_then(|n| n.trim().parse().ok());
        let retry_after = Duration::from_secs(retry_after.unwrap_or(0)).min(RETRY_AFTER_MAX);
        return Ok(Some(Answer::Refused {
            status,
            says: printable(&says),
            retry_after,
        }));
    }
    let has_token = |name: &str, token: &str| {
        let value = header(name).unwrap_or_default();
        let mut tokens = value.split(',');
        tokens.any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    if !has_token("Upgrade", "websocket") || !has_token("Connection", "upgrade") {
        return Err("it changes to something else than WebSocket".into());
    }
    if header("Sec-WebSocket-Accept").map(str::trim) != Some(&request.accept) {
        return Err("its answer is to another handshake".into());
    }
    if header("Sec-WebSocket-Extensions").is_some_and(|value| !value.trim().is_empty()) {
        return Err("it wants an extension that it was not offered".into());
    }
    let subprotocol = match header("Sec-WebSocket-Protocol").map(str::trim) {
        None | Some("") => None,
        Some(chosen) => {
            let offered = request.offers.iter().find(|offer| **offer == chosen);
            Some(*offered.ok_or("it wants a subprotocol that it was not offered")?)
        }
    };
    Ok(Some(Answer::Accepted {
        head_bytes,
        subprotocol,
    }))
}

/// What somebody else says, fit to be said again: one line, without control characters, and short.
pub(super) fn printable(text: &str) -> String {
    let clean = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    clean.take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERS: &[&str] = &["json.x", "plain.x"];

    fn request() -> Request {
        let headers = ["Authorization: Bearer a:b".parse().unwrap()];
        Request::new("a:80", "/news?x", OFFERS, &headers)
    }

    fn accepted(request: &Request, more: &str) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n{more}\r\n",
            request.accept
        )
    }

    #[test]
    fn a_request_names_server_room_offers_and_headers() {
        let text = String::from_utf8(request().bytes).unwrap();
        assert!(text.starts_with("GET /news?x HTTP/1.1\r\nHost: a:80\r\n"));
        assert!(text.contains("\r\nSec-WebSocket-Protocol: json.x, plain.x\r\n"));
        assert!(text.ends_with("\r\nAuthorization: Bearer a:b\r\n\r\n"));
        let plain = String::from_utf8(Request::new("a", "/", &[], &[]).bytes).unwrap();
        assert!(!plain.contains("Protocol"));
    }

    #[test]
    fn an_answer_is_read_once_it_is_whole_and_what_follows_are_frames() {
        let request = request();
        let text = accepted(&request, "Sec-WebSocket-Protocol: plain.x\r\n");
        for end in 0..text.len() {
            let part = &text.as_bytes()[..end];
            assert_eq!(answer(&request, part, false), Ok(None), "{end}");
        }
        let expected = Answer::Accepted {
            head_bytes: text.len(),
            subprotocol: Some("plain.x"),
        };
        let bytes = format!("{text}\u{1}\u{2}");
        assert_eq!(
            answer(&request, bytes.as_bytes(), false),
            Ok(Some(expected))
        );
    }

    #[test]
    fn a_server_may_choose_no_subprotocol_but_none_that_it_was_not_offered() {
        let request = request();
        let of = |more| answer(&request, accepted(&request, more).as_bytes(), false);
        assert!(matches!(
            of(""),
            Ok(Some(Answer::Accepted {
                subprotocol: None,
                ..
            }))
        ));
        assert!(of("Sec-WebSocket-Protocol: other\r\n").is_err());
        assert!(of("Sec-WebSocket-Extensions: permessage-deflate\r\n").is_err());
    }

    #[test]
    fn what_is_no_websocket_server_is_recognised() {
        let request = request();
        let other = Request::new("a", "/", &[], &[]);
        for text in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            &accepted(&other, ""),
        ] {
            assert!(answer(&request, text.as_bytes(), false).is_err(), "{text}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert!(answer(&request, long.as_bytes(), false).is_err());
    }

    #[test]
    fn a_refusal_says_why_and_when_to_come_again() {
        let refused = |text: &str, is_end| match answer(&request(), text.as_bytes(), is_end) {
            Ok(Some(Answer::Refused {
                status,
                says,
                retry_after,
            })) => (status, says, retry_after.as_secs()),
            other => panic!("{other:?}"),
        };
        let text = "HTTP/1.1 503 Busy\r\nContent-Length: 9\r\nRetry-After: 7\r\n\r\nfu\u{1b}ll\nx";
        assert_eq!(answer(&request(), text.as_bytes(), false), Ok(None));
        assert_eq!(refused(text, true), (503, "fu\u{fffd}ll".into(), 7));
        let page = "HTTP/1.1 404 Not Found\r\nRetry-After: 99999\r\n\r\n<html>";
        assert_eq!(refused(page, false), (404, "Not Found".into(), 300));
        let moved = "HTTP/1.1 301 Moved\r\nLocation: https://a/\r\n\r\n";
        assert_eq!(refused(moved, false), (301, "see https://a/".into(), 0));
    }

    #[test]
    fn a_header_is_one_and_not_the_handshakes_own() {
        for (line, why) in [
            ("none", BadHeader::Form),
            (": x", BadHeader::Form),
            ("a b: x", BadHeader::Form),
            ("a: x\r\nb: y", BadHeader::Form),
            ("Host: x", BadHeader::Ours),
            ("sec-websocket-Key: x", BadHeader::Ours),
        ] {
            assert_eq!(line.parse::<Header>(), Err(why), "{line}");
        }
    }
}
