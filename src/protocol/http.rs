//! The parts of HTTP/1.x that this crate needs: request heads, response heads (in `reply`), body framing and whole responses
//! (RFC 9110, RFC 9112). They do no I/O.

use std::error::Error;
use std::fmt;
use std::io::Write;

mod body;
#[cfg(any(test, fuzzing, feature = "client"))]
mod date;
#[cfg(any(test, fuzzing, feature = "client"))]
#[cfg_attr(loom, allow(dead_code))] // The loom models don't use it.
mod reply;
mod strict;

pub(crate) use body::Body;
#[cfg(any(test, fuzzing, feature = "client"))]
#[cfg_attr(loom, allow(unused_imports))]
pub(crate) use reply::{HttpReply, ReplyHead, ReplyReader};

/// The maximum number of header lines in a head.
pub(crate) const HEADERS_MAX: usize = 100;

/// The interim response to a client that waits for it before it sends the body (RFC 9110 §10.1.1).
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The request line and headers of a request.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// As sent: methods are case-sensitive (RFC 9110 §9.1).
    pub(crate) method: String,
    /// As sent; an absolute form is reduced to path and query (RFC 9112 §3.2.2).
    pub(crate) target: String,
    /// 0 or 1.
    pub(crate) minor_version: u8,
    /// Name and value in the order and case sent, values without surrounding whitespace.
    pub(crate) headers: Vec<(String, String)>,
}

/// The result of [`parse_head`].
#[derive(Debug)]
pub(crate) enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// The head is complete.
    Complete {
        /// The parsed head.
        head: Head,
        /// The length of the head in bytes. The body or the next request follows it.
        head_bytes: usize,
    },
}

/// Why a request cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpError {
    /// 400, with a description of the fault.
    BadRequest(&'static str),
    /// 431: the head exceeds its limit of bytes or lines.
    HeadTooLarge,
    /// 413: the body exceeds its limit.
    BodyTooLarge,
    /// 501: a transfer coding other than chunked.
    UnsupportedTransferCoding,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    UnsupportedVersion,
    /// 417: an expectation other than 100-continue.
    ExpectationFailed,
}

impl HttpError {
    /// Returns the status of the response (RFC 9110 §15).
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) => 400,
            Self::HeadTooLarge => 431,
            Self::BodyTooLarge => 413,
            Self::UnsupportedTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            Self::ExpectationFailed => 417,
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest(what) => what,
            Self::HeadTooLarge => "the request head is larger than this server accepts",
            Self::BodyTooLarge => "the request body is larger than this server accepts",
            Self::UnsupportedTransferCoding => "the only transfer coding supported is chunked",
            Self::UnsupportedVersion => "this server supports only HTTP/1.0 and HTTP/1.1",
            Self::ExpectationFailed => "the only expectation supported is 100-continue",
        })
    }
}

impl Error for HttpError {}

/// Parses a request head at the start of `buf`, which contains all bytes received so far.
///
/// A head may have up to `head_bytes_max` bytes, which include skipped empty lines before it (RFC 9112 §2.2), and up to
/// [`HEADERS_MAX`] header lines. Bytes after the head do not count.
pub(crate) fn parse_head(buf: &[u8], head_bytes_max: usize) -> Result<Parsed, HttpError> {
    let within = buf.get(..head_bytes_max).unwrap_or(buf);
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut lines);
    let head_bytes = match request.parse(within) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if strict::has_bare_line_end(within) => {
            return Err(BARE_LINE_END);
        }
        Ok(httparse::Status::Partial) if buf.len() > head_bytes_max => {
            return Err(HttpError::HeadTooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(Parsed::Incomplete),
        Err(error) => return Err(refuse(error, within)),
    };
    if strict::has_bare_line_end(&within[..head_bytes]) {
        return Err(BARE_LINE_END);
    }
    let (Some(method), Some(target), Some(minor_version)) =
        (request.method, request.path, request.version)
    else {
        return Err(HttpError::BadRequest("the request line is incomplete"));
    };
    let lines = request.headers.iter().map(|line| (line.name, line.value));
    let head = Head::new(method, target, minor_version, lines)?;
    Ok(Parsed::Complete { head, head_bytes })
}

/// The error for a line feed without a carriage return, or the reverse. RFC 9112 §2.2 lets servers accept a bare line feed
/// as a line end, but a proxy in front may have read it differently.
const BARE_LINE_END: HttpError = HttpError::BadRequest("a line does not end in CR LF");

/// Maps an error of httparse to the error of this module.
fn refuse(error: httparse::Error, buf: &[u8]) -> HttpError {
    HttpError::BadRequest(match error {
        httparse::Error::TooManyHeaders => return HttpError::HeadTooLarge,
        // httparse also returns this error if the version is missing altogether.
        httparse::Error::Version if names_a_version(buf) => {
            return HttpError::UnsupportedVersion;
        }
        httparse::Error::Version => "the request line does not end in an HTTP version",
        httparse::Error::HeaderName => "a header name has a character it must not have",
        httparse::Error::HeaderValue => "a header value has a character it must not have",
        httparse::Error::NewLine => return BARE_LINE_END,
        _ => "this is not an HTTP request line",
    })
}

/// Whether the request line has `HTTP/` and a digit in the place of its version (RFC 9112 §2.3). The rest of the version
/// is ignored because it may not have arrived.
fn names_a_version(buf: &[u8]) -> bool {
    let line = buf
        .trim_ascii_start()
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default();
    line.split(|&byte| byte == b' ')
        .nth(2)
        .and_then(|version| version.strip_prefix(b"HTTP/"))
        .and_then(|rest| rest.first())
        .is_some_and(u8::is_ascii_digit)
}

/// Decodes a header value as UTF-8, or as Latin-1 if it is not valid UTF-8 (RFC 9110 §5.5).
fn decode(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(value) => value.to_owned(),
        Err(_) => value.iter().map(|&byte| char::from(byte)).collect(),
    }
}

impl Head {
    /// Creates a head from its parts as sent, and checks them.
    fn new<'a>(
        method: &str,
        target: &str,
        minor_version: u8,
        lines: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, HttpError> {
        let mut head = Self {
            method: method.to_owned(),
            target: String::new(),
            minor_version,
            headers: lines
                .map(|(name, value)| (name.to_owned(), decode(value)))
                .collect(),
        };
        head.check_host()?;
        head.check_singletons()?;
        head.set_target(target)?;
        Ok(head)
    }

    /// Creates the head of a request that another HTTP server has parsed, and checks it by the rules of [`parse_head`].
    pub(crate) fn of_parts(
        method: &str,
        target: &str,
        minor_version: u8,
        lines: &[(&str, &[u8])],
        head_bytes_max: usize,
    ) -> Result<Self, HttpError> {
        /// The bytes of a head beside its method, target and header lines.
        const REST_BYTES: usize = "  HTTP/1.1\r\n\r\n".len();
        let line_bytes = |(name, value): &(&str, &[u8])| name.len() + value.len() + ": \r\n".len();
        let bytes = method.len() + target.len() + lines.iter().map(line_bytes).sum::<usize>();
        if lines.len() > HEADERS_MAX || bytes + REST_BYTES > head_bytes_max {
            return Err(HttpError::HeadTooLarge);
        }
        Self::new(method, target, minor_version, lines.iter().copied())
    }

    /// Returns the first value of a header. The name is compared ignoring ASCII case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.pairs()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns all values of a header in the order sent. The name is compared ignoring ASCII case.
    pub(crate) fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns the names and values of all headers as sent.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the target up to the first `?`.
    pub(crate) fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// Returns the target after the first `?`, or an empty string if there is none.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// Whether another request may follow on this connection (RFC 9112 §9.3).
    pub(crate) fn keep_alive(&self) -> bool {
        if self.has_token("Connection", "close") {
            return false;
        }
        self.minor_version >= 1 || self.has_token("Connection", "keep-alive")
    }

    /// Whether the client waits for [`CONTINUE`] before it sends the body (RFC 9110 §10.1.1).
    pub(crate) fn expects_continue(&self) -> Result<bool, HttpError> {
        let mut expects = false;
        for expectation in self.tokens("Expect") {
            if !expectation.eq_ignore_ascii_case("100-continue") {
                return Err(HttpError::ExpectationFailed);
            }
            // RFC 9110 §10.1.1: servers ignore it in an HTTP/1.0 request.
            expects = self.minor_version >= 1;
        }
        Ok(expects)
    }

    /// Determines how the end of the body is marked (RFC 9112 §6.3).
    pub(crate) fn body_framing(&self) -> Result<BodyFraming, HttpError> {
        let length = self.content_length()?;
        if self.header("Transfer-Encoding").is_none() {
            return Ok(length.map_or(BodyFraming::None, BodyFraming::Length));
        }
        // RFC 9112 §6.3 rule 3: two framings enable request smuggling.
        if length.is_some() {
            return Err(HttpError::BadRequest(
                "Content-Length and Transfer-Encoding exclude each other",
            ));
        }
        // RFC 9112 §6.1: HTTP/1.0 has no transfer codings.
        if self.minor_version == 0 {
            return Err(HttpError::BadRequest("HTTP/1.0 has no Transfer-Encoding"));
        }
        let mut codings = self.tokens("Transfer-Encoding");
        match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(BodyFraming::Chunked)
            }
            _ => Err(HttpError::UnsupportedTransferCoding),
        }
    }

    /// Returns the length on which all `Content-Length` values agree (RFC 9110 §8.6).
    fn content_length(&self) -> Result<Option<u64>, HttpError> {
        let mut length = None;
        for value in self
            .header_values("Content-Length")
            .flat_map(|line| line.split(','))
        {
            let digits = value.trim_matches(OWS);
            // `parse` would accept a sign.
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(HttpError::BadRequest("Content-Length is not a number"));
            }
            // A string of digits fails to parse only if the number is larger than any limit.
            let value = digits.parse::<u64>().map_err(|_| HttpError::BodyTooLarge)?;
            if length.is_some_and(|known| known != value) {
                return Err(HttpError::BadRequest(
                    "there are two different Content-Length values",
                ));
            }
            length = Some(value);
        }
        Ok(length)
    }

    /// Checks that there is exactly one `Host` in HTTP/1.1, or at most one in HTTP/1.0, and that it is valid (RFC 9112 §3.2).
    fn check_host(&self) -> Result<(), HttpError> {
        let mut hosts = self.header_values("Host");
        match (hosts.next(), hosts.next()) {
            (None, _) if self.minor_version == 0 => Ok(()),
            (None, _) => Err(HttpError::BadRequest("the Host header is missing")),
            (Some(host), None) if is_authority(host) => Ok(()),
            (Some(_), None) => Err(HttpError::BadRequest("the Host header is not a host")),
            (Some(_), Some(_)) => Err(HttpError::BadRequest("there is more than one Host header")),
        }
    }

    /// Iterates over the elements of a comma-separated header in all of its lines (RFC 9110 §5.6.1).
    fn tokens<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.header_values(name).flat_map(list)
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name)
            .any(|known| known.eq_ignore_ascii_case(token))
    }
}

/// Optional whitespace (RFC 9110 §5.6.3).
pub(super) const OWS: [char; 2] = [' ', '\t'];

/// Iterates over the elements of a comma-separated list, skipping empty ones (RFC 9110 §5.6.1).
pub(crate) fn list(line: &str) -> impl Iterator<Item = &str> {
    line.split(',')
        .map(|element| element.trim_matches(OWS))
        .filter(|element| !element.is_empty())
}

/// Whether the text is a host with an optional port (RFC 9110 §7.2, RFC 3986 §3.2.2) and no user name (RFC 9110 §4.2.4).
/// Empty text is valid because an empty `Host` header is.
pub(crate) fn is_authority(text: &str) -> bool {
    let is_name_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                // An IPv6 address, optionally with a zone (RFC 6874), or a future address format.
                let is_address = |byte: u8| is_name_byte(byte) || byte == b':';
                if address.is_empty() || !address.bytes().all(is_address) {
                    return false;
                }
                ("", port)
            }
            None => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    is_port && host.bytes().all(is_name_byte)
}

/// How the end of a body is marked (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// There is no body.
    None,
    /// The body has this number of bytes.
    Length(u64),
    /// The body consists of chunks, the last of which is empty (RFC 9112 §7.1).
    Chunked,
}

/// Whether the connection serves further requests after a response (RFC 9112 §9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    KeepAlive,
    Close,
}

impl Persistence {
    pub(crate) const fn keep_alive_if(keep_alive: bool) -> Self {
        if keep_alive {
            Self::KeepAlive
        } else {
            Self::Close
        }
    }
}

/// Whether a response carries its body or only the body's length (RFC 9110 §9.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyMode {
    Full,
    /// The response to `HEAD`.
    HeadOnly,
}

impl BodyMode {
    pub(crate) const fn head_only_if(head_only: bool) -> Self {
        if head_only {
            Self::HeadOnly
        } else {
            Self::Full
        }
    }

    /// Returns the mode of the response to a request with this method.
    pub(crate) fn of_method(method: &str) -> Self {
        Self::head_only_if(method == "HEAD")
    }
}

/// The head of a response that is ready to be written.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) bytes: Vec<u8>,
    /// Whether the body follows the head.
    pub(crate) has_body: bool,
}

/// Renders a whole response: status line, the given headers, `Content-Length` where it is allowed, `Connection: close` if the
/// connection closes, and the body unless the response is to `HEAD`.
///
/// Drops headers that could end their line or contradict the framing written here.
pub(crate) fn response(
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    persistence: Persistence,
    body_mode: BodyMode,
) -> Vec<u8> {
    let head = response_head(status, headers, body.len() as u64, persistence, body_mode);
    let mut out = head.bytes;
    if head.has_body {
        out.extend_from_slice(body);
    }
    out
}

/// Renders the head of a [`response`] whose body has `body_bytes` bytes.
pub(crate) fn response_head(
    status: u16,
    headers: &[(&str, &str)],
    body_bytes: u64,
    persistence: Persistence,
    body_mode: BodyMode,
) -> ResponseHead {
    // RFC 9110 §15.2, §15.3.5, §15.4.5, §8.6: these never have a body, and a length would announce one.
    let bodiless = matches!(status, 100..=199 | 204 | 304);
    let mut out = begin_response(status, headers);
    if !bodiless {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "Content-Length: {body_bytes}\r\n");
    }
    if persistence == Persistence::Close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    ResponseHead {
        bytes: out,
        has_body: !bodiless && body_mode == BodyMode::Full,
    }
}

/// Headers of every response that the library itself writes. They keep pages of other sites from running, framing or
/// embedding it (WHATWG Fetch §3.6, §3.7; CSP §6.4.2).
pub(crate) const SAFE_HEADERS: [(&str, &str); 3] = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Content-Security-Policy", "frame-ancestors 'none'"),
];

/// Renders a whole response in plain text, after which the connection closes.
pub(crate) fn refusal(
    status: u16,
    headers: &[(&str, &str)],
    body: &str,
    body_mode: BodyMode,
) -> Vec<u8> {
    let mut all = vec![("Content-Type", "text/plain; charset=utf-8")];
    all.extend_from_slice(&SAFE_HEADERS);
    all.extend_from_slice(headers);
    response(status, &all, body.as_bytes(), Persistence::Close, body_mode)
}

/// Renders the head of a response whose body ends with the connection (RFC 9112 §6.3 rule 8). Drops the headers that
/// [`response`] drops.
pub(super) fn head_of_response(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = begin_response(status, headers);
    out.extend_from_slice(b"\r\n");
    out
}

fn begin_response(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status:03} {}\r\n", reason_phrase(status)).into_bytes();
    for (name, value) in headers
        .iter()
        .filter(|(name, value)| may_be_sent(name, value))
    {
        for part in [name, ": ", value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out
}

/// Whether the name is a token, the value cannot end its line (RFC 9110 §5.5 calls CR, LF and NUL dangerous), and the header
/// is not part of the framing, which [`response`] writes itself.
fn may_be_sent(name: &str, value: &str) -> bool {
    let framing = ["Content-Length", "Transfer-Encoding"];
    is_token(name)
        && !value.contains(['\r', '\n', '\0'])
        && !framing.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether the text is a token (RFC 9110 §5.6.2).
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns the standard reason phrase of a status, or an empty string if it has none (RFC 9110 §15, RFC 6585).
pub(crate) fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests;
