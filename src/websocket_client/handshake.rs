//! The client's side of the handshake, without I/O (RFC 6455 §4.1).

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use super::header::{Header, InvalidHeader, Subprotocol};
use super::random;
use super::url::ServerUrl;
use crate::protocol::handshake::client::{self, ExpectedAnswer, Extensions};
use crate::protocol::http::{HttpReply, ReplyHead, ReplyReader};

/// The maximum length of the response head in bytes.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// The bytes of a refusal's body that are kept.
const BODY_BYTES_MAX: usize = 1 << 10;

/// The first bytes of a TLS alert (RFC 8446 §5.1), with which a TLS server answers a request without TLS.
const TLS_ALERT: &[u8] = &[21, 3];

/// The settings of a handshake request: URL, headers, subprotocols and compression. They can be used for any number of
/// handshakes.
///
/// ```
/// use humphrey_ws::websocket_client::{Header, HandshakeRequest};
///
/// let request = HandshakeRequest::new("ws://127.0.0.1:8080/ocpp/17".parse()?)
///     .with_header(Header::new("Host", "charging.example")?)?
///     .with_subprotocol("ocpp1.6".parse()?)?;
/// let handshake = request.start()?;
/// let text = String::from_utf8_lossy(handshake.request());
/// assert!(text.starts_with("GET /ocpp/17 HTTP/1.1\r\nHost: charging.example\r\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct HandshakeRequest {
    url: ServerUrl,
    headers: Vec<Header>,
    extensions: Extensions,
    subprotocols: Vec<Subprotocol>,
}

impl HandshakeRequest {
    /// Creates a request without additional headers or subprotocols.
    pub fn new(url: ServerUrl) -> Self {
        Self {
            url,
            headers: Vec::new(),
            extensions: Extensions::None,
            subprotocols: Vec::new(),
        }
    }

    /// Adds a header. `Host` replaces the value derived from the URL, for servers behind a tunnel.
    ///
    /// # Errors
    ///
    /// [`InvalidHeader::Repeated`] if the request already has this header and may contain it only once, such as
    /// `Authorization`.
    pub fn with_header(mut self, header: Header) -> Result<Self, InvalidHeader> {
        if header.is_singleton() && self.headers.iter().any(|known| known.is(header.name())) {
            return Err(InvalidHeader::Repeated(header.name().to_owned()));
        }
        self.headers.push(header);
        Ok(self)
    }

    /// Offers a subprotocol with a lower priority than those added before (RFC 6455 §1.9). The server selects one or none.
    ///
    /// # Errors
    ///
    /// [`InvalidHeader::Repeated`] if it was already offered (RFC 6455 §4.1 item 10).
    pub fn with_subprotocol(mut self, subprotocol: Subprotocol) -> Result<Self, InvalidHeader> {
        if self.subprotocols.contains(&subprotocol) {
            return Err(InvalidHeader::Repeated(subprotocol.as_str().to_owned()));
        }
        self.subprotocols.push(subprotocol);
        Ok(self)
    }

    /// Offers permessage-deflate (RFC 7692), so that the server may compress its messages. If the server agrees
    /// ([`Accepted::has_agreed_compression`]), pass that to
    /// [`Connection::with_compression`](super::Connection::with_compression).
    #[cfg(feature = "deflate")]
    pub fn with_compression(mut self) -> Self {
        self.extensions = Extensions::Deflate;
        self
    }

    /// Returns the URL.
    pub const fn url(&self) -> &ServerUrl {
        &self.url
    }

    /// Begins a handshake with a new random key.
    ///
    /// # Errors
    ///
    /// The error of the operating system's random source.
    pub fn start(&self) -> io::Result<Handshake> {
        let mut key = [0; 16];
        random::fill(&mut key)?;
        let (host, others): (Vec<&Header>, Vec<&Header>) =
            self.headers.iter().partition(|header| header.is("Host"));
        let host = match host.first() {
            Some(header) => header.value().to_owned(),
            None => self.url.host_header(),
        };
        let subprotocols: Vec<String> = self
            .subprotocols
            .iter()
            .map(|subprotocol| subprotocol.as_str().to_owned())
            .collect();
        let headers: Vec<(String, String)> = others
            .iter()
            .map(|header| (header.name().to_owned(), header.value().to_owned()))
            .collect();
        let target = self.url.request_target();
        let (request, asked) = client::request(
            &target,
            &host,
            key,
            &subprotocols,
            self.extensions,
            &headers,
        );
        Ok(Handshake {
            request,
            asked,
            has_received: false,
            reader: ReplyReader::new(HEAD_BYTES_MAX, BODY_BYTES_MAX),
        })
    }
}

/// A handshake in progress. It does no I/O.
///
/// The caller sends [`request`](Self::request) to the server, and passes the bytes of the response to
/// [`receive`](Self::receive).
#[derive(Debug)]
pub struct Handshake {
    request: Vec<u8>,
    asked: ExpectedAnswer,
    has_received: bool,
    reader: ReplyReader,
}

impl Handshake {
    /// Returns the bytes of the request.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Parses the next bytes of the response, which may arrive in any portions. Returns `None` until the response is
    /// complete. Do not call it again after it has returned anything else.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`] if the server refuses the handshake or its response is invalid. Close the connection then.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Accepted>, HandshakeError> {
        if !self.has_received && bytes.starts_with(TLS_ALERT) {
            let why = "the server speaks TLS on this port: use wss:// instead of ws://";
            return Err(HandshakeError::NotWebSocket(why.to_owned()));
        }
        self.has_received |= !bytes.is_empty();
        let reply = self.reader.read(bytes);
        let reply = reply.map_err(|error| HandshakeError::NotWebSocket(error.to_string()))?;
        reply.map(|reply| self.judge(reply)).transpose()
    }

    /// Returns whether the response is a refusal of which only the rest of the body is missing. Waiting long for that is not
    /// worthwhile.
    pub fn is_refused(&self) -> bool {
        self.reader.has_head()
    }

    /// Ends the handshake before the response is complete, and returns the error: the refusal if its head has arrived.
    pub fn finish(&mut self) -> HandshakeError {
        match self.reader.finish() {
            Ok(Some(reply)) => HandshakeError::Refused(Box::new(Refusal::new(reply))),
            Ok(None) => HandshakeError::HungUp,
            Err(error) => HandshakeError::NotWebSocket(error.to_string()),
        }
    }

    fn judge(&self, reply: HttpReply) -> Result<Accepted, HandshakeError> {
        if reply.head.status != 101 {
            return Err(HandshakeError::Refused(Box::new(Refusal::new(reply))));
        }
        match client::judge(&self.asked, &reply.head) {
            Ok(agreed) => Ok(Accepted {
                subprotocol: agreed.subprotocol.map(str::to_owned),
                compression: agreed.compression,
                head: reply.head,
                rest: reply.rest,
            }),
            Err(error) => Err(HandshakeError::NotWebSocket(error.to_string())),
        }
    }
}

/// A handshake that the server has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    subprotocol: Option<String>,
    #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
    compression: bool,
    head: ReplyHead,
    rest: Vec<u8>,
}

impl Accepted {
    /// Returns whether the server agreed to compression, and may send compressed messages.
    #[cfg(feature = "deflate")]
    pub const fn has_agreed_compression(&self) -> bool {
        self.compression
    }

    /// Returns the offered subprotocol that the server selected, if any.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// Returns the first value of a header of the response. The name is compared ignoring ASCII case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Takes the bytes that arrived after the response. They are the first frames: pass them to
    /// [`Connection::receive`](super::Connection::receive).
    pub fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }
}

/// The reason why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The server responded with a status other than 101.
    Refused(Box<Refusal>),
    /// The response is not a valid WebSocket handshake (RFC 6455 §4.1). The text is the reason.
    NotWebSocket(String),
    /// The connection ended before a complete response.
    HungUp,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::NotWebSocket(why) => {
                write!(f, "the response is not a valid WebSocket handshake: {why}")
            }
            Self::HungUp => {
                f.write_str("the server closed the connection before answering the handshake")
            }
        }
    }
}

impl Error for HandshakeError {}

/// A response that refuses the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    head: ReplyHead,
    body: String,
}

impl Refusal {
    fn new(reply: HttpReply) -> Self {
        Self {
            head: reply.head,
            body: String::from_utf8_lossy(&reply.rest).into_owned(),
        }
    }

    /// Returns the status (RFC 9110 §15).
    pub const fn status(&self) -> u16 {
        self.head.status
    }

    /// Returns the reason phrase of the status line, which is often empty.
    pub fn reason(&self) -> &str {
        &self.head.reason
    }

    /// Returns the first value of a header. The name is compared ignoring ASCII case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the first 1,024 bytes of the body, with invalid UTF-8 replaced.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Returns the delay before another attempt that the server asks for: `Retry-After`, in seconds or as a date
    /// (RFC 9110 §10.2.3). `None` without a valid header.
    pub fn retry_after(&self) -> Option<Duration> {
        self.head.retry_after()
    }

    /// Returns the reason for the refusal, in one line of up to 200 characters without control characters: the target of a
    /// redirect, the first line of a body that is not HTML, or else the reason phrase.
    pub fn summary(&self) -> String {
        let line = self
            .body
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty());
        let summary = match (self.header("Location"), line) {
            (Some(location), _) => format!("redirect to {location}, which is not followed"),
            (None, Some(line)) if !line.starts_with('<') => line.to_owned(),
            _ => self.reason().to_owned(),
        };
        let clean = summary
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c });
        clean.take(200).collect()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the server refused the handshake with status {}",
            self.status()
        )?;
        match self.summary() {
            summary if summary.is_empty() => Ok(()),
            summary => write!(f, ": {summary}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::handshake;

    fn request() -> HandshakeRequest {
        HandshakeRequest::new("ws://a:81/news?x".parse().unwrap())
            .with_header("Authorization: Bearer a:b".parse().unwrap())
            .unwrap()
            .with_subprotocol("plain.x".parse().unwrap())
            .unwrap()
    }

    /// Returns the response of this library's server, with additional lines.
    fn accepted(started: &Handshake, more: &str) -> String {
        let text = String::from_utf8(started.request().to_vec()).unwrap();
        let headers = text.lines().filter_map(|line| line.split_once(": "));
        let checked = handshake::check("GET", 1, headers).unwrap();
        let answer = String::from_utf8(handshake::response(&checked)).unwrap();
        answer.replacen("\r\n", &format!("\r\n{more}"), 1)
    }

    #[test]
    fn request_has_host_offers_and_headers() {
        let text = String::from_utf8(request().start().unwrap().request().to_vec()).unwrap();
        assert!(text.starts_with("GET /news?x HTTP/1.1\r\nHost: a:81\r\n"));
        assert!(text.contains("\r\nSec-WebSocket-Protocol: plain.x\r\n"));
        assert!(text.ends_with("\r\nAuthorization: Bearer a:b\r\n\r\n"));
        let other = request().with_header("host: tunnel".parse().unwrap());
        let text = other.unwrap().start().unwrap().request().to_vec();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.to_lowercase().matches("\r\nhost: ").count(), 1);
        assert!(text.contains("\r\nHost: tunnel\r\n"));
    }

    #[test]
    fn handshakes_have_different_keys() {
        let keys = [(); 2].map(|()| request().start().unwrap().request().to_vec());
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn repeated_header_or_subprotocol_is_refused() {
        let repeated = |name: &str| InvalidHeader::Repeated(name.into());
        let header = "authorization: x".parse().unwrap();
        let error = request().with_header(header).unwrap_err();
        assert_eq!(error, repeated("authorization"));
        let error = request().with_subprotocol("plain.x".parse().unwrap());
        assert_eq!(error.unwrap_err(), repeated("plain.x"));
        let twice = request().with_header("X-A: 1".parse().unwrap());
        assert!(
            twice
                .unwrap()
                .with_header("X-A: 2".parse().unwrap())
                .is_ok()
        );
    }

    #[test]
    fn complete_response_is_read_and_frames_follow() {
        let mut started = request().start().unwrap();
        let text = accepted(&started, "Sec-WebSocket-Protocol: plain.x\r\nX-A: b\r\n");
        for byte in &text.as_bytes()[..text.len() - 1] {
            assert_eq!(started.receive(&[*byte]), Ok(None));
        }
        let mut done = started.receive(b"\n\x01\x02").unwrap().unwrap();
        assert_eq!(done.subprotocol(), Some("plain.x"));
        assert_eq!((done.header("x-a"), done.header("x-b")), (Some("b"), None));
        assert_eq!(done.take_rest(), [1, 2]);
    }

    #[test]
    fn response_to_another_handshake_is_refused() {
        let mut started = request().start().unwrap();
        let text = accepted(&request().start().unwrap(), "");
        let error = started.receive(text.as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("does not match the key"),
            "{error}"
        );
        let error = request().start().unwrap().receive(b"SSH-2.0-x\r\n");
        assert!(matches!(error, Err(HandshakeError::NotWebSocket(_))));
    }

    #[test]
    fn refusal_has_its_reason_and_retry_time() {
        let refused = |text: &str| {
            let mut started = request().start().unwrap();
            match started.receive(text.as_bytes()) {
                Ok(None) => started.finish(),
                Ok(Some(_)) => panic!("accepted"),
                Err(error) => error,
            }
        };
        let text = "HTTP/1.1 503 Busy\r\nContent-Length: 9\r\nRetry-After: 7\r\n\r\nfu\u{1b}ll\nx";
        let HandshakeError::Refused(refusal) = refused(text) else {
            panic!("not refused");
        };
        assert_eq!((refusal.status(), refusal.reason()), (503, "Busy"));
        assert_eq!(refusal.body(), "fu\u{1b}ll\nx");
        assert_eq!(refusal.retry_after(), Some(Duration::from_secs(7)));
        let said = |text: &str| refused(text).to_string();
        assert_eq!(
            said(text),
            "the server refused the handshake with status 503: fu\u{fffd}ll"
        );
        let page = "HTTP/1.1 404 Not Found\r\n\r\n\n<html>";
        assert_eq!(
            said(page),
            "the server refused the handshake with status 404: Not Found"
        );
        let moved = "HTTP/1.1 301 Moved\r\nLocation: https://a/\r\n\r\ngone";
        assert_eq!(
            said(moved),
            "the server refused the handshake with status 301: redirect to https://a/, which is not followed"
        );
        assert_eq!(refused("HTTP/1.1 200 OK\r\nA: b"), HandshakeError::HungUp);
    }

    #[test]
    fn tls_alert_fails_with_the_advice_to_use_wss() {
        let mut started = request().start().unwrap();
        let error = started.receive(&[21, 3, 3, 0, 2, 2, 50]).unwrap_err();
        assert!(error.to_string().contains("use wss://"), "{error}");
        // Only the first bytes of a response can be an alert.
        let mut started = request().start().unwrap();
        started.receive(b"HTTP/1.1 101").unwrap();
        let error = started.receive(&[21, 3, 3, 0, 2, 2, 50]);
        assert!(!format!("{error:?}").contains("wss"), "{error:?}");
    }
}
