//! The rejection of a request: status, headers and body.

use std::error::Error;
use std::fmt;

use super::is_header;
use crate::protocol::handshake::VERSION_HEADER;
use crate::protocol::http::{self, BodyMode, Persistence};
use crate::report::{Limited, limited};

/// Rejects a request with a status, headers and a body.
///
/// ```
/// use humphrey_ws::Reject;
///
/// let reject = Reject::new(401)
///     .with_header("WWW-Authenticate", "Bearer")
///     .with_body("a token is needed\n");
/// assert_eq!(reject.status(), 401);
/// ```
///
/// Clients other than browsers receive all of it. A browser only tells the page that its WebSocket has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// The headers of framing, which the library writes itself.
const OWN_HEADERS: [&str; 4] = [
    "Connection",
    "Content-Length",
    "Transfer-Encoding",
    "Trailer",
];

/// Limited, since clients can cause rejections.
static BAD_REJECT: Limited = Limited::new();

impl Reject {
    /// Rejects a request with this status and no body. If the status is not that of a final response (200 to 599), an
    /// error is logged, and the client gets 500.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Adds a header. If the name or value is not valid in HTTP, or the header is `Connection` or `Content-Length`, an
    /// error is logged, and the client gets 500.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body. It is plain text unless a header `Content-Type` says otherwise.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns the headers that were added.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The response to an error of the program.
    pub(crate) fn internal_error() -> Self {
        Self::new(500).with_body("internal server error\n")
    }

    /// Adds the supported version to the rejection of a handshake, or of a request that may be one . RFC 6455 §4.4
    /// requires it only if the version is the reason; in every rejection, it rules out the version as the reason.
    pub(crate) fn for_handshake(mut self) -> Self {
        if self.header(VERSION_HEADER.0).is_none() {
            self = self.with_header(VERSION_HEADER.0, VERSION_HEADER.1);
        }
        self
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers();
        let found = headers.find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// Returns the rejection as it can be sent. If it is invalid, an error is logged, and the client gets 500.
    pub(crate) fn checked(self) -> Self {
        let is_own = |name: &str| OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name));
        let mut headers = self.headers();
        let wrong = headers.find(|&(name, value)| !is_header(name, value) || is_own(name));
        if let Some((name, _)) = wrong {
            limited!(
                BAD_REJECT,
                error,
                "a rejection has a header {name:?}, which can't be sent: the client gets 500"
            );
        } else if !(200..=599).contains(&self.status) {
            let status = self.status;
            limited!(
                BAD_REJECT,
                error,
                "a rejection has the status {status}, which is not that of a final response: the client gets 500"
            );
        } else {
            drop(headers);
            return self;
        }
        Self::internal_error()
    }

    /// Returns all headers of the response, except those of framing.
    pub(crate) fn all_headers(&self) -> Vec<(&str, &str)> {
        let mut headers: Vec<_> = self.headers().collect();
        if self.header("Content-Type").is_none() && !self.body.is_empty() {
            headers.push(("Content-Type", "text/plain; charset=utf-8"));
        }
        let safe = http::SAFE_HEADERS.into_iter();
        headers.extend(safe.filter(|(name, _)| self.header(name).is_none()));
        headers
    }

    /// Renders the whole response, after which the connection closes.
    pub(crate) fn response(&self, body_mode: BodyMode) -> Vec<u8> {
        http::response(
            self.status,
            &self.all_headers(),
            &self.body,
            Persistence::Close,
            body_mode,
        )
    }

    /// Returns the reason for a close frame: the first line of the body, or the status's reason phrase.
    pub(crate) fn reason(&self) -> &str {
        let body = std::str::from_utf8(&self.body).unwrap_or_default();
        match body.trim_start().lines().next() {
            Some(line) if !line.is_empty() => line,
            _ => http::reason_phrase(self.status),
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.reason())
    }
}

impl Error for Reject {}
