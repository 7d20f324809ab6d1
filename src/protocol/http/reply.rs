//! Parses responses for a client: status line, headers, and the beginning of the body (RFC 9112 §4 to §7).
//!
//! Interim responses before the final one are parsed and dropped, as RFC 9110 §15.2 allows. Their number is bounded.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::date::seconds_of_date;
use super::{Body, BodyFraming, HEADERS_MAX, OWS, decode, list};

/// The maximum number of interim responses before the final one.
const INTERIM_MAX: u32 = 16;

/// Up to this length a head is parsed after each read, so that a peer that does not speak HTTP is detected at once. A longer
/// head is parsed only when a line ends.
const SHORT_BYTES: usize = 64;

/// The maximum size of a chunk in bytes. It bounds no memory: only the wanted part of a body is kept.
const CHUNKED_BYTES_MAX: usize = 1 << 30;

/// The status line and headers of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyHead {
    pub(crate) status: u16,
    /// The reason phrase as sent, which is often empty (RFC 9112 §4).
    pub(crate) reason: String,
    /// Names and values in the order and case sent. Values have no surrounding whitespace and no line folding.
    pub(crate) headers: Vec<(String, String)>,
}

impl ReplyHead {
    /// Returns the first value of a header. The name is compared ignoring ASCII case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Returns all values of a header in the order sent. The name is compared ignoring ASCII case.
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Iterates over the elements of a comma-separated header in all of its lines (RFC 9110 §5.3, §5.6.1).
    pub(crate) fn tokens<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values(name).flat_map(list)
    }

    /// Returns how long the client should wait before it retries (RFC 9110 §10.2.3). A date is compared with the server's
    /// `Date` header, so the local clock does not matter.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let value = self.header("Retry-After")?;
        if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
            // A string of digits fails to parse only if the number is too large.
            return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
        }
        let then = seconds_of_date(value)?;
        let now = seconds_of_date(self.header("Date")?)?;
        Some(Duration::from_secs(then.saturating_sub(now)))
    }

    /// Determines how the end of the body is marked (RFC 9112 §6.3). `None` means that the body ends with the connection.
    fn body_framing(&self) -> Option<BodyFraming> {
        if matches!(self.status, 100..=199 | 204 | 304) {
            return Some(BodyFraming::None);
        }
        let mut codings = self.tokens("Transfer-Encoding");
        match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                return Some(BodyFraming::Chunked);
            }
            (Some(_), _) => return None,
            (None, _) => {}
        }
        let mut lengths = self
            .values("Content-Length")
            .flat_map(|line| line.split(','));
        let length = lengths.next()?.trim_matches(OWS);
        let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
        let all_agree = lengths.all(|other| other.trim_matches(OWS) == length);
        // If the lengths disagree, the body ends with the connection, which is not reused anyway.
        (is_number && all_agree).then(|| BodyFraming::Length(length.parse().unwrap_or(u64::MAX)))
    }
}

/// A final response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpReply {
    pub(crate) head: ReplyHead,
    /// After a 101, the bytes that followed it in the same read, which belong to the new protocol. After any other status, the
    /// beginning of the decoded body.
    pub(crate) rest: Vec<u8>,
}

/// The reason why the received bytes are not a usable HTTP response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyError {
    /// The bytes do not begin with an HTTP/1.0 or HTTP/1.1 status line.
    NotHttp,
    /// A header line violates RFC 9112 §5.
    Header,
    /// The head exceeds its limit of bytes or lines.
    TooLarge,
    /// There are more interim responses than the client accepts.
    TooManyInterim,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "the response is not HTTP/1.1",
            Self::Header => "the response has a malformed header line",
            Self::TooLarge => "the head of the response is too long",
            Self::TooManyInterim => "the server sends too many interim responses (1xx)",
        })
    }
}

impl Error for ReplyError {}

#[derive(Debug)]
enum ReplyState {
    Head,
    /// The head of a final response other than 101, and the body received so far.
    Body(ReplyHead, ReplyBody),
    Over,
}

#[derive(Debug)]
enum ReplyBody {
    Framed(Body),
    ToTheEnd(Vec<u8>),
}

/// Parses one final response that arrives in arbitrary pieces.
#[derive(Debug)]
pub(crate) struct ReplyReader {
    state: ReplyState,
    /// The bytes of an incomplete head.
    buffer: Vec<u8>,
    interim: u32,
    head_bytes_max: usize,
    body_bytes_wanted: usize,
}

impl ReplyReader {
    /// Creates a reader. Heads may have up to `head_bytes_max` bytes and [`HEADERS_MAX`] lines. The reader waits for the first
    /// `body_bytes_wanted` bytes of a body and keeps only those.
    pub(crate) fn new(head_bytes_max: usize, body_bytes_wanted: usize) -> Self {
        Self {
            state: ReplyState::Head,
            buffer: Vec::new(),
            interim: 0,
            head_bytes_max,
            body_bytes_wanted,
        }
    }

    /// Parses the next bytes. Returns `None` if more are needed. Must not be called after a response or an error.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Option<HttpReply>, ReplyError> {
        match &mut self.state {
            ReplyState::Head => {
                let was = self.buffer.len();
                self.buffer.extend_from_slice(bytes);
                let is_worth_it = was <= SHORT_BYTES
                    || bytes.contains(&b'\n')
                    || self.buffer.len() > self.head_bytes_max;
                if is_worth_it {
                    self.read_heads()
                } else {
                    Ok(None)
                }
            }
            ReplyState::Body(_, body) => {
                if body.take(bytes, self.body_bytes_wanted) {
                    self.finish()
                } else {
                    Ok(None)
                }
            }
            ReplyState::Over => Ok(None),
        }
    }

    /// Ends the input. Returns the final response with the body received so far, or `None` if its head is incomplete.
    pub(crate) fn finish(&mut self) -> Result<Option<HttpReply>, ReplyError> {
        match std::mem::replace(&mut self.state, ReplyState::Over) {
            ReplyState::Body(head, body) => {
                let mut rest = body.into_bytes();
                rest.truncate(self.body_bytes_wanted);
                Ok(Some(HttpReply { head, rest }))
            }
            // `read` may have skipped the end of a long line.
            ReplyState::Head => parse(&self.buffer, self.head_bytes_max).map(|_| None),
            ReplyState::Over => Ok(None),
        }
    }

    /// Whether the head of a final response is complete and only its body is missing.
    #[cfg(any(test, feature = "client"))]
    pub(crate) fn has_head(&self) -> bool {
        matches!(self.state, ReplyState::Body(..))
    }

    fn read_heads(&mut self) -> Result<Option<HttpReply>, ReplyError> {
        loop {
            let Some((head, head_bytes)) = parse(&self.buffer, self.head_bytes_max)? else {
                return Ok(None);
            };
            let rest = self.buffer.split_off(head_bytes);
            if head.status == 101 {
                self.state = ReplyState::Over;
                return Ok(Some(HttpReply { head, rest }));
            }
            if (100..200).contains(&head.status) {
                self.interim += 1;
                if self.interim > INTERIM_MAX {
                    return Err(ReplyError::TooManyInterim);
                }
                self.buffer = rest;
                continue;
            }
            self.buffer = Vec::new();
            let body = ReplyBody::new(&head);
            self.state = ReplyState::Body(head, body);
            return self.read(&rest);
        }
    }
}

impl ReplyBody {
    fn new(head: &ReplyHead) -> Self {
        let framed = match head.body_framing() {
            Some(BodyFraming::Length(length)) => {
                // Only the beginning is kept, so a large length is no error.
                let length = length.min(CHUNKED_BYTES_MAX as u64);
                Body::new(BodyFraming::Length(length), CHUNKED_BYTES_MAX).ok()
            }
            Some(framing) => Body::new(framing, CHUNKED_BYTES_MAX).ok(),
            None => None,
        };
        framed.map_or_else(|| Self::ToTheEnd(Vec::new()), Self::Framed)
    }

    /// Decodes a part of the body. Returns whether the wanted part is complete or the body has ended.
    fn take(&mut self, bytes: &[u8], wanted: usize) -> bool {
        match self {
            Self::Framed(body) => {
                // A malformed body ends here instead of failing, because it only appears in an error message.
                let is_over = body.feed(bytes).is_ok_and(|(_, is_complete)| !is_complete);
                !is_over || body.bytes().len() >= wanted
            }
            Self::ToTheEnd(body) => {
                let room = wanted.saturating_sub(body.len());
                body.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                body.len() >= wanted
            }
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Framed(body) => body.into_bytes(),
            Self::ToTheEnd(body) => body,
        }
    }
}

/// Parses a response head at the start of `buffer`. Returns it with its length, or `None` if more bytes are needed.
fn parse(buffer: &[u8], head_bytes_max: usize) -> Result<Option<(ReplyHead, usize)>, ReplyError> {
    let within = buffer.get(..head_bytes_max).unwrap_or(buffer);
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut lines);
    let mut config = httparse::ParserConfig::default();
    config
        // RFC 9112 §5.2: a user agent must replace line folding by spaces.
        .allow_obsolete_multiline_headers_in_responses(true)
        // RFC 9112 §5.1 requires proxies to remove such spaces, so some servers do send them.
        .allow_spaces_after_header_name_in_responses(true);
    let head_bytes = match config.parse_response(&mut response, within) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if buffer.len() > head_bytes_max => {
            return Err(ReplyError::TooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(ReplyError::TooLarge),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue) => {
            return Err(ReplyError::Header);
        }
        Err(_) => return Err(ReplyError::NotHttp),
    };
    let headers = response
        .headers
        .iter()
        .map(|line| (line.name.to_owned(), unfold(&decode(line.value))))
        .collect();
    let head = ReplyHead {
        status: response.code.unwrap_or_default(),
        reason: response.reason.unwrap_or_default().to_owned(),
        headers,
    };
    Ok(Some((head, head_bytes)))
}

/// Replaces each line folding with a space (RFC 9112 §5.2).
fn unfold(value: &str) -> String {
    let parts: Vec<&str> = value
        .split('\n')
        .map(|part| part.trim_end_matches('\r').trim_matches(OWS))
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(" ")
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
