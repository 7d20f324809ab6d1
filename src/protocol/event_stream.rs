//! Server-sent events: `text/event-stream` to send (WHATWG HTML §9.2).
//!
//! A stream is the head of a response, a preamble, blocks, and the end of the connection. A **block** is an event, which is lines,
//! none of them empty, and an empty line behind them; or a comment, which is one line. So where a block ends can be found again
//! in its bytes ([`block_len`]), however many of them have been joined.
//!
//! Some clients report an event for every empty line, also where WHATWG has none since there is no data. So there are
//! empty lines behind events only, with one exception ([`Position::AtOnce`]).

use std::fmt::Write as _;
use std::io::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::http::{self, Head};
use super::percent;

/// The media type of event streams (WHATWG HTML §9.2.5). Its charset is always UTF-8, so it is not named.
pub(crate) const MEDIA_TYPE: &str = "text/event-stream";

/// An empty comment, which shows proxies and ourselves that the connection is alive (WHATWG HTML §9.2.7). No empty line
/// follows: a comment needs none.
pub(crate) const KEEP_ALIVE: &[u8] = b":\n";

/// What an event carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventData<'a> {
    /// UTF-8, as an event of the usual type, `message`. Its line ends (CRLF, CR or LF) arrive as LF.
    Text(&'a [u8]),
    /// Anything, as an event of the type `binary`, in base64 (RFC 4648 §4) with padding.
    Binary(&'a [u8]),
}

/// An event, with an id if the client is to resume from it when it reconnects.
pub(crate) fn event(id: Option<&str>, payload: EventData<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(event_bytes(id, payload));
    push_id(&mut out, id);
    match payload {
        EventData::Text(text) => push_data(&mut out, text),
        EventData::Binary(bytes) => {
            out.extend_from_slice(b"event: binary\ndata: ");
            let begin = out.len();
            let len = base64_len(bytes.len());
            out.resize(begin + len, 0);
            let written = STANDARD.encode_slice(bytes, &mut out[begin..]);
            debug_assert_eq!(written, Ok(len));
            out.push(b'\n');
        }
    }
    out.push(b'\n');
    // It may wait long, where its length is what is counted.
    out.shrink_to_fit();
    out
}

/// How long an event is at most; exact unless its text has lines that end in CRLF.
fn event_bytes(id: Option<&str>, payload: EventData<'_>) -> usize {
    let id = id.map_or(0, |id| "id: \n".len() + id.len());
    let data = match payload {
        EventData::Text(text) => {
            let ends = text.iter().filter(|byte| matches!(byte, b'\r' | b'\n'));
            // Of a line end, which goes, and its line's own.
            text.len() + ends.count() * "data: ".len() + "data: \n".len()
        }
        EventData::Binary(bytes) => "event: binary\ndata: \n".len() + base64_len(bytes.len()),
    };
    id + data + 1
}

fn base64_len(len: usize) -> usize {
    len.div_ceil(3) * 4
}

/// The event that tells the client that messages are missing, so that it must load its state anew. `asked` is the last event id
/// that the client has named; `id` is its new position, unless the next event has one.
pub(crate) fn reset(asked: &str, id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    push_id(&mut out, id);
    out.extend_from_slice(b"event: reset\n");
    push_data(&mut out, asked.as_bytes());
    out.push(b'\n');
    out
}

/// The query parameter by which a client asks for [`rooms`]: others would take the event for a message.
const ROOMS_ASKED: &str = "eventRooms";

/// The event that says of which rooms the messages are that follow: a JSON object with the name of each room by the epoch
/// of its history, which is what the ids of its messages begin with.
pub(crate) fn rooms<'a>(rooms: impl Iterator<Item = (u64, &'a str)>) -> Vec<u8> {
    let mut json = String::from("{");
    for (index, (epoch, name)) in rooms.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(json, "{comma}\"{epoch:x}\":\"");
        for char in name.chars() {
            let _ = match char {
                '"' | '\\' => write!(json, "\\{char}"),
                // RFC 8259 §7, and so no line ends either.
                '\0'..=' ' => write!(json, "\\u{:04x}", u32::from(char)),
                _ => write!(json, "{char}"),
            };
        }
        json.push('"');
    }
    json.push('}');
    let mut out = b"event: rooms\n".to_vec();
    push_data(&mut out, json.as_bytes());
    out.push(b'\n');
    out
}

/// Whether the client has requested [`rooms`] events.
pub(crate) fn asks_for_rooms(head: &Head) -> bool {
    let is_asked = |pair: &str| pair.split('=').next() == Some(ROOMS_ASKED);
    head.query().split('&').any(is_asked)
}

/// The position of a client at the beginning of its stream: the id from which it resumes when it reconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position<'a> {
    /// Nothing: the first event has an id, or there are no ids.
    Untold,
    /// It becomes the client's last event id with the first event, unless that has an id of its own (WHATWG HTML §9.2.6). Until then
    /// the client keeps the id that it has named, or none.
    WithFirstEvent(&'a str),
    /// It becomes the client's last event id at once, with an empty line. WHATWG has no event for it, since it has no data. Some
    /// clients report one, so this is only for a client that would otherwise miss messages when it connects again.
    AtOnce(&'a str),
}

/// What a stream begins with: how many milliseconds a client is to wait before it connects again when the connection has
/// ended, which holds as soon as its line has been read, and the client's position.
pub(crate) fn preamble(retry_ms: u64, position: Position<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "retry: {retry_ms}");
    match position {
        Position::Untold => {}
        Position::WithFirstEvent(id) => push_id(&mut out, Some(id)),
        Position::AtOnce(id) => {
            push_id(&mut out, Some(id));
            out.push(b'\n');
        }
    }
    out
}

fn push_id(out: &mut Vec<u8>, id: Option<&str>) {
    // A NUL would have the whole line ignored (WHATWG HTML §9.2.6), a line end would begin another field.
    if let Some(id) = id.filter(|id| !id.contains(['\r', '\n', '\0'])) {
        for part in ["id: ", id, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// One `data` line for each line of the text, also for an empty one: the client joins them with LF, and an event without
/// any would be none.
fn push_data(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (line, next) = split_line(text);
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
        rest = next;
    }
}

/// The first line, and what follows its end, which is CRLF, CR or LF (WHATWG HTML §9.2.5). None if it has no end.
fn split_line(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        None => (text, None),
        Some(at) => {
            let len = if text[at..].starts_with(b"\r\n") {
                2
            } else {
                1
            };
            (&text[..at], Some(&text[at + len..]))
        }
    }
}

/// Length of the block that stands at the front of `blocks`, an event's empty line included. It trusts that the block was made
/// here.
pub(crate) fn block_len(blocks: &[u8]) -> usize {
    let mut from = 0;
    if is_comment(blocks) {
        let end = blocks.iter().position(|&byte| byte == b'\n');
        return end.map_or(blocks.len(), |end| end + 1);
    }
    while let Some(at) = blocks[from..].iter().position(|&byte| byte == b'\n') {
        let next = from + at + 1;
        if blocks.get(next) == Some(&b'\n') {
            return next + 1;
        }
        from = next;
    }
    blocks.len()
}

/// Whether the block at the front is a comment.
pub(crate) fn is_comment(blocks: &[u8]) -> bool {
    blocks.first() == Some(&b':')
}

/// The head of the response, with further headers. The body has neither length nor chunks: it ends with the connection
/// (RFC 9112 §6.3 rule 8), so clients of HTTP/1.0 understand it too.
pub(crate) fn response_head(headers: &[(&str, &str)]) -> Vec<u8> {
    let own = [
        ("Content-Type", MEDIA_TYPE),
        // Caches must not keep it, and proxies must not buffer it for compression (RFC 9111 §5.2.2.5, §5.2.2.6).
        ("Cache-Control", "no-store, no-transform"),
        // nginx would gather a buffer's worth before it hands anything on.
        ("X-Accel-Buffering", "no"),
        ("Connection", "close"),
    ];
    // A page elsewhere can't have it run as a script, and so learn what its visitors may read.
    let all = own.iter().chain(&http::SAFE_HEADERS).chain(headers);
    let headers: Vec<_> = all.copied().collect();
    http::head_of_response(200, &headers)
}

/// The last event that the client has seen, by its header `Last-Event-ID` (WHATWG HTML §9.2.4) or, since some clients
/// can't set one, by `lastEventId` in its query; there it may name one for each of several rooms. Empty if it has seen none.
pub(crate) fn last_event_ids(head: &Head) -> Vec<String> {
    if let Some(id) = head.header("Last-Event-ID").filter(|id| !id.is_empty()) {
        return vec![id.to_owned()];
    }
    let pairs = head.query().split('&');
    pairs
        .filter_map(|pair| pair.strip_prefix("lastEventId="))
        .map(percent::decode_lossy)
        .filter(|id| !id.is_empty())
        .collect()
}

#[cfg(test)]
#[cfg_attr(loom, allow(dead_code))] // Models do without.
pub(crate) mod tests;
