//! Checks the parsing of requests that arrive in arbitrary pieces, and that no response contains injected bytes.
//!
//! The input consists of limits, piece lengths and the client's bytes, which are processed as in a shard, one request after
//! another.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use super::{byte, cuts, pieces};
use crate::protocol::handshake::{self, HandshakeRefusal, VERSION_HEADER};
use crate::protocol::http::{
    self, Body, BodyFraming, BodyMode, Head, HttpError, Parsed, Persistence,
};

const HEAD_LIMITS: [usize; 3] = [64, 300, 16 << 10];
const BODY_LIMITS: [usize; 3] = [0, 20, 1 << 20];

/// The memory reserved beyond twice the received bytes: see `assembler::reserve`.
const AHEAD_BYTES: usize = 2 * 4096;

/// The outcome of a request.
#[derive(Debug, PartialEq, Eq)]
enum RequestOutcome {
    /// The request was upgraded. The fields are the response, and the bytes after the request.
    Upgraded(Vec<u8>, Vec<u8>),
    Refused(Vec<u8>),
    /// The request is passed to a route.
    Request {
        method: String,
        target: String,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        expects_continue: bool,
        keep_alive: bool,
    },
    Incomplete,
}

pub(crate) fn run(mut data: &[u8]) {
    let limits = usize::from(byte(&mut data));
    let server = Server {
        head_bytes_max: HEAD_LIMITS[limits % HEAD_LIMITS.len()],
        body_bytes_max: BODY_LIMITS[limits / HEAD_LIMITS.len() % BODY_LIMITS.len()],
    };
    let cuts = cuts(&mut data);
    let whole = server.serve(&[data]);
    let pieces = pieces(data, cuts);
    assert_eq!(server.serve(&pieces), whole, "{pieces:?}");
}

struct Server {
    head_bytes_max: usize,
    body_bytes_max: usize,
}

enum ReadPhase {
    Head,
    Body(Box<(Head, Body, BodyFraming)>, Vec<u8>),
    /// The last response was written, or the connection was upgraded.
    Over,
}

impl Server {
    fn serve(&self, pieces: &[&[u8]]) -> Vec<RequestOutcome> {
        let mut outcomes = Vec::new();
        let mut buffer = Vec::new();
        let mut phase = ReadPhase::Head;
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                let before = buffer.len();
                let was_head = matches!(phase, ReadPhase::Head);
                phase = match phase {
                    ReadPhase::Head => self.head(&mut buffer, &mut outcomes),
                    ReadPhase::Body(request, sent) => {
                        self.body(*request, sent, &mut buffer, &mut outcomes)
                    }
                    ReadPhase::Over => ReadPhase::Over,
                };
                let is_head = matches!(phase, ReadPhase::Head);
                if before == buffer.len() && was_head == is_head {
                    break;
                }
            }
            if let (ReadPhase::Over, Some(RequestOutcome::Upgraded(_, early))) =
                (&phase, outcomes.last_mut())
            {
                early.append(&mut buffer);
            }
        }
        match phase {
            ReadPhase::Over => {}
            ReadPhase::Head => outcomes.push(RequestOutcome::Incomplete),
            ReadPhase::Body(request, sent) => {
                check_body_memory(request.1, sent.len());
                outcomes.push(RequestOutcome::Incomplete);
            }
        }
        outcomes
    }

    fn head(&self, buffer: &mut Vec<u8>, outcomes: &mut Vec<RequestOutcome>) -> ReadPhase {
        if buffer.is_empty() {
            return ReadPhase::Head;
        }
        match http::parse_head(buffer, self.head_bytes_max) {
            Ok(Parsed::Incomplete) => {
                assert!(buffer.len() <= self.head_bytes_max, "a head without end");
                ReadPhase::Head
            }
            Ok(Parsed::Complete { head, head_bytes }) => {
                assert!((1..=self.head_bytes_max).contains(&head_bytes));
                let text: Vec<u8> = buffer.drain(..head_bytes).collect();
                self.request(head, &text, outcomes)
            }
            Err(error) => refuse(error, outcomes),
        }
    }

    fn request(&self, head: Head, text: &[u8], outcomes: &mut Vec<RequestOutcome>) -> ReadPhase {
        check_head(&head, text);
        check_echoed(&head);
        match handshake::check(&head.method, head.minor_version, head.pairs()) {
            Ok(handshake) => {
                let answer = handshake::response(&handshake);
                check_upgrade(&head, &answer);
                outcomes.push(RequestOutcome::Upgraded(answer, Vec::new()));
                ReadPhase::Over
            }
            Err(HandshakeRefusal::NotAnUpgrade) => {
                assert!(!is_plain_handshake(&head), "a handshake is refused");
                check_refusal(&handshake::refusal(
                    HandshakeRefusal::NotAnUpgrade,
                    BodyMode::Full,
                ));
                let body = head
                    .body_framing()
                    .and_then(|framing| Ok((Body::new(framing, self.body_bytes_max)?, framing)))
                    .and_then(|body| head.expects_continue().map(|_| body));
                match body {
                    Ok((body, framing)) => {
                        ReadPhase::Body(Box::new((head, body, framing)), Vec::new())
                    }
                    Err(error) => refuse(error, outcomes),
                }
            }
            Err(refusal) => {
                assert!(!is_plain_handshake(&head), "a handshake is refused");
                let answer = handshake::refusal(refusal, BodyMode::Full);
                check_refusal(&answer);
                outcomes.push(RequestOutcome::Refused(answer));
                ReadPhase::Over
            }
        }
    }

    fn body(
        &self,
        (head, mut body, framing): (Head, Body, BodyFraming),
        mut sent: Vec<u8>,
        buffer: &mut Vec<u8>,
        outcomes: &mut Vec<RequestOutcome>,
    ) -> ReadPhase {
        let (used, is_complete) = match body.feed(buffer) {
            Ok(fed) => fed,
            Err(error) => return refuse(error, outcomes),
        };
        sent.extend(buffer.drain(..used));
        if !is_complete {
            assert!(buffer.is_empty(), "everything is taken");
            return ReadPhase::Body(Box::new((head, body, framing)), sent);
        }
        let body = check_body_memory(body, sent.len());
        assert!(body.len() <= self.body_bytes_max);
        let expected = match framing {
            BodyFraming::None => Some(Vec::new()),
            BodyFraming::Length(length) => {
                assert_eq!(sent.len() as u64, length);
                Some(sent)
            }
            BodyFraming::Chunked => read_chunks(&sent),
        };
        assert_eq!(Some(&body), expected.as_ref());
        let keep_alive = head.keep_alive();
        outcomes.push(RequestOutcome::Request {
            expects_continue: head.expects_continue().unwrap_or_default(),
            keep_alive,
            method: head.method,
            target: head.target,
            headers: head.headers,
            body,
        });
        if keep_alive {
            ReadPhase::Head
        } else {
            ReadPhase::Over
        }
    }
}

fn refuse(error: HttpError, outcomes: &mut Vec<RequestOutcome>) -> ReadPhase {
    let body = format!("{error}\n");
    let answer = http::refusal(error.status(), &[VERSION_HEADER], &body, BodyMode::Full);
    check_refusal(&answer);
    outcomes.push(RequestOutcome::Refused(answer));
    ReadPhase::Over
}

fn check_body_memory(body: Body, sent: usize) -> Vec<u8> {
    let body = body.into_bytes();
    assert!(body.len() <= sent);
    assert!(body.capacity() <= 2 * sent + AHEAD_BYTES);
    body
}

/// Decodes a whole chunked body strictly by RFC 9112 §7.1.
fn read_chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let line = std::str::from_utf8(bytes[..end].split(|&byte| byte == b';').next()?).ok()?;
        let size = usize::from_str_radix(line.trim_end_matches([' ', '\t']), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes[size..].strip_prefix(b"\r\n")?;
    }
    // An empty line ends the trailer section, and nothing follows it.
    (bytes == b"\r\n" || bytes.ends_with(b"\r\n\r\n")).then_some(body)
}

/// Checks that the parts of a head occur in the bytes from which it was parsed, and that none spans several lines.
fn check_head(head: &Head, text: &[u8]) {
    assert!(text.ends_with(b"\r\n"));
    let lf_alone = |two: &[u8]| (two[1] == b'\n') != (two[0] == b'\r');
    assert!(!text.windows(2).any(lf_alone), "a bare CR or LF");
    assert!(!head.method.is_empty() && head.method.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!head.target.is_empty() && !head.target.contains([' ', '\r', '\n', '\0']));
    assert!(head.headers.len() <= http::HEADERS_MAX);
    for (name, value) in &head.headers {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!value.contains(['\r', '\n', '\0']), "{value:?}");
        assert!(text.windows(name.len()).any(|part| part == name.as_bytes()));
    }
    let (path, query) = (head.path(), head.query());
    assert!(!path.contains('?') && !head.target.contains('#'));
    let decoded = path.replace("%2e", ".").replace("%2E", ".");
    assert!(
        !decoded
            .split('/')
            .any(|segment| segment == "." || segment == "..")
    );
    assert!(head.target == path || head.target == format!("{path}?{query}"));
}

/// Whether the request is a strict handshake (RFC 6455 §4.1) that uses no tolerated deviation.
fn is_plain_handshake(head: &Head) -> bool {
    let only = |name| match head.header_values(name).collect::<Vec<_>>()[..] {
        [value] => Some(value),
        _ => None,
    };
    let is = |name, value| only(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    let has_body = ["Content-Length", "Transfer-Encoding"]
        .iter()
        .any(|name| head.header(name).is_some());
    let key = only("Sec-WebSocket-Key").and_then(|key| STANDARD.decode(key).ok());
    head.method == "GET"
        && head.minor_version == 1
        && only("Host").is_some()
        && is("Upgrade", "websocket")
        && is("Connection", "Upgrade")
        && is("Sec-WebSocket-Version", "13")
        && key.is_some_and(|key| key.len() == 16)
        && !has_body
}

fn check_upgrade(head: &Head, answer: &[u8]) {
    assert_eq!((head.method.as_str(), head.minor_version), ("GET", 1));
    assert_eq!(head.header("Sec-WebSocket-Version"), Some("13"));
    assert!(matches!(
        head.body_framing(),
        Ok(BodyFraming::None | BodyFraming::Length(0)) | Err(_)
    ));
    let key = head.header("Sec-WebSocket-Key").unwrap();
    assert!(key.len() == 24 && key.ends_with("=="));
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(hash.finalize());
    let expected = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    assert_eq!(std::str::from_utf8(answer), Ok(expected.as_str()));
}

/// Checks that a refusal contains only the server's own text, and closes the connection.
fn check_refusal(answer: &[u8]) {
    let (status, headers, body) = read_response(answer);
    assert!((400..600).contains(&status));
    for (name, value) in &headers {
        match name.as_str() {
            "Upgrade" => assert_eq!(value, "websocket"),
            "Connection" => assert!(["Upgrade", "close"].contains(&value.as_str())),
            "Sec-WebSocket-Version" => assert_eq!(value, "13"),
            "Allow" => assert_eq!(value, "GET"),
            "Content-Type" => assert_eq!(value, "text/plain; charset=utf-8"),
            "Content-Length" => assert_eq!(*value, body.len().to_string()),
            _ => assert!(
                http::SAFE_HEADERS.contains(&(name.as_str(), value.as_str())),
                "{name}: {value}"
            ),
        }
    }
    assert!(headers.contains(&("Connection".into(), "close".into())));
    assert!(body.len() <= 250 && body.ends_with(b"\n"));
    assert!(
        body[..body.len() - 1]
            .iter()
            .all(|byte| (b' '..=b'~').contains(byte))
    );
}

/// Checks that a route that echoes a client's headers and target cannot be made to send additional headers.
fn check_echoed(head: &Head) {
    let mut pairs: Vec<(&str, &str)> = head.pairs().collect();
    pairs.push((head.path(), head.query()));
    let decoded = head.target.replace("%0D", "\r").replace("%0A", "\n");
    pairs.push(("X-Target", &decoded));
    let answer = http::response(200, &pairs, b"body", Persistence::Close, BodyMode::Full);
    let (_, headers, body) = read_response(&answer);
    assert_eq!(body, b"body");
    let (own, echoed): (Vec<_>, Vec<_>) = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .partition(|(name, _)| name.eq_ignore_ascii_case("Content-Length"));
    assert_eq!(own, [("Content-Length", "4")]);
    for header in &echoed {
        let is_known =
            |(name, value): &(&str, &str)| (*name, value.trim_matches([' ', '\t'])) == *header;
        assert!(
            pairs.iter().any(is_known) || *header == ("Connection", "close"),
            "{header:?}"
        );
        assert!(!header.0.eq_ignore_ascii_case("Transfer-Encoding"));
    }
}

/// Parses a response strictly by RFC 9112 §4 and §5 into status, headers and body.
fn read_response(response: &[u8]) -> (u16, Vec<(String, String)>, &[u8]) {
    let end = response.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = response.split_at(end.expect("a whole head") + 4);
    let head = std::str::from_utf8(&head[..head.len() - 4]).unwrap();
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap();
    let (status, phrase) = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.split_once(' '))
        .unwrap();
    assert!(status.len() == 3 && !phrase.is_empty());
    let headers = lines
        .map(|line| {
            assert!(!line.contains(['\r', '\n', '\0']), "{line:?}");
            let (name, value) = line.split_once(':').unwrap();
            let is_token = |c: char| c.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(c);
            assert!(!name.is_empty() && name.chars().all(is_token), "{name:?}");
            (name.into(), value.trim_matches([' ', '\t']).into())
        })
        .collect();
    (status.parse().unwrap(), headers, body)
}
