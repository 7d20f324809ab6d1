//! Encodes server-sent events, `text/event-stream` (WHATWG HTML §9.2).
//!
//! A stream consists of a response head, a preamble and blocks, and ends with the connection. A **block** is either an event
//! (lines that are not empty, followed by an empty line) or a comment (one line). So [`block_len`] finds the end of each block
//! in the bytes of several blocks joined together.
//!
//! Some clients report an event for every empty line, even where WHATWG defines none because there is no data. So empty lines
//! follow events only, with one exception ([`Position::AtOnce`]).

use std::fmt::Write as _;
use std::io::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::http::{self, Head};
use super::{json_string, percent};

/// The media type of event streams (WHATWG HTML §9.2.5). The charset is always UTF-8, so it has no parameter.
pub(crate) const MEDIA_TYPE: &str = "text/event-stream";

/// An empty comment that keeps proxies from closing the connection and detects a dead client (WHATWG HTML §9.2.7). A comment
/// needs no empty line after it.
pub(crate) const KEEP_ALIVE: &[u8] = b":\n";

/// The payload of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventData<'a> {
    /// UTF-8 text, sent as an event of the default type, `message`. Its line ends (CRLF, CR or LF) arrive as LF.
    Text(&'a [u8]),
    /// Arbitrary bytes, sent as an event of the type `binary` in base64 (RFC 4648 §4) with padding.
    Binary(&'a [u8]),
}

/// Encodes an event. A client resumes from its id, if it has one, when it reconnects.
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
    // The event may be queued for a long time, and memory limits count its length, not its capacity.
    out.shrink_to_fit();
    out
}

/// Returns an upper bound of an event's length in bytes. It is exact unless the text has lines that end in CRLF.
pub(crate) fn event_bytes(id: Option<&str>, payload: EventData<'_>) -> usize {
    let id = id.map_or(0, |id| "id: \n".len() + id.len());
    let data = match payload {
        EventData::Text(text) => {
            let ends = text.iter().filter(|byte| matches!(byte, b'\r' | b'\n'));
            // Each line end becomes LF and starts another `data` line.
            text.len() + ends.count() * "data: ".len() + "data: \n".len()
        }
        EventData::Binary(bytes) => "event: binary\ndata: \n".len() + base64_len(bytes.len()),
    };
    id + data + 1
}

fn base64_len(len: usize) -> usize {
    len.div_ceil(3) * 4
}

const RESET: &[u8] = b"event: reset\n";
const RESET_DATA: &[u8] = b"event: reset\ndata: ";

/// Encodes the event that tells the client that messages are missing, so that it reloads its state. `asked` is the last event
/// id that the client sent. `id` is its new position, unless the next event carries one.
pub(crate) fn reset(asked: &str, id: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    push_id(&mut out, id);
    out.extend_from_slice(RESET);
    push_data(&mut out, asked.as_bytes());
    out.push(b'\n');
    out
}

/// Encodes an event of another type than messages have, without an id.
#[cfg(feature = "cluster")]
pub(crate) fn event_of_type(kind: &str, data: &str) -> Vec<u8> {
    let mut out = format!("event: {kind}\n").into_bytes();
    push_data(&mut out, data.as_bytes());
    out.push(b'\n');
    out
}

/// The query parameter with which a client requests [`rooms`] events. Other clients might treat the event as a message.
const ROOMS_ASKED: &str = "eventRooms";

/// Encodes the event that names the rooms of the following messages: a JSON object that maps the epoch of each room's history
/// to the room's name. The ids of a room's messages begin with its epoch.
pub(crate) fn rooms<'a>(rooms: impl Iterator<Item = (u64, &'a str)>) -> Vec<u8> {
    let mut json = String::from("{");
    for (index, (epoch, name)) in rooms.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(json, "{comma}\"{epoch:x}\":");
        json_string::push(&mut json, name);
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
    /// No position is sent, because the first event has an id or the stream has no ids.
    Untold,
    /// The id takes effect with the first event, unless that event has an id of its own (WHATWG HTML §9.2.6). Until then the
    /// client keeps the id that it sent, or none.
    WithFirstEvent(&'a str),
    /// The id takes effect at once, with an empty line. By WHATWG this is no event because it has no data, but some clients
    /// report one. So this is only used for clients that would otherwise miss messages when they reconnect.
    AtOnce(&'a str),
}

/// Encodes the reconnection delay in milliseconds, which takes effect at once. It is no event, since it has no data.
pub(crate) fn retry(retry_ms: u64) -> Vec<u8> {
    format!("retry: {retry_ms}\n\n").into_bytes()
}

/// Encodes the start of a stream: the reconnection delay in milliseconds, which takes effect at once, and the client's
/// position.
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
    // Clients ignore an id with a NUL (WHATWG HTML §9.2.6), and a line end would begin another field.
    if let Some(id) = id.filter(|id| !id.contains(['\r', '\n', '\0'])) {
        for part in ["id: ", id, "\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Appends one `data` line for each line of the text, even an empty one. The client joins them with LF, and ignores an event
/// without `data`.
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

/// Splits the text after its first line, which ends in CRLF, CR or LF (WHATWG HTML §9.2.5). The second part is `None` if the
/// line has no end.
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

/// Returns the length of the first block in `blocks`, including an event's empty line. The block must come from this module.
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

/// Whether the first block is a comment.
pub(crate) fn is_comment(blocks: &[u8]) -> bool {
    blocks.first() == Some(&b':')
}

/// Renders the response head with additional headers. The body has neither a length nor chunks and ends with the connection
/// (RFC 9112 §6.3 rule 8), so HTTP/1.0 clients can read it.
pub(crate) fn response_head(headers: &[(&str, &str)]) -> Vec<u8> {
    let own = [
        ("Content-Type", MEDIA_TYPE),
        // Caches must not keep it, and proxies must not buffer it for compression (RFC 9111 §5.2.2.5, §5.2.2.6).
        ("Cache-Control", "no-store, no-transform"),
        // nginx would otherwise buffer events before it forwards them.
        ("X-Accel-Buffering", "no"),
        ("Connection", "close"),
    ];
    // They keep pages of other sites from loading the stream as a script and reading it.
    let all = own.iter().chain(&http::SAFE_HEADERS).chain(headers);
    let headers: Vec<_> = all.copied().collect();
    http::head_of_response(200, &headers)
}

/// Separates the ids of several rooms in one event id.
const ID_SEPARATOR: char = ',';

/// The positions of a client in several rooms. Each event id names all of them, so that the client can resume from the last
/// one on a server that has delivered the rooms' messages in another order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JoinedIds(Vec<String>);

impl JoinedIds {
    pub(crate) fn new(ids: Vec<String>) -> Self {
        Self(ids)
    }

    /// The event id.
    pub(crate) fn id(&self) -> String {
        self.0.join(&ID_SEPARATOR.to_string())
    }

    /// Replaces the ids of blocks, each of which names its own room only.
    pub(crate) fn replace_in(&mut self, mut blocks: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(blocks.len() + 64);
        while !blocks.is_empty() {
            let (block, rest) = blocks.split_at(block_len(blocks));
            blocks = rest;
            match split_id(block) {
                Some((id, fields)) => {
                    self.advance(id, fields);
                    push_id(&mut out, Some(&self.id()));
                    out.extend_from_slice(fields);
                }
                None => out.extend_from_slice(block),
            }
        }
        out
    }

    /// Takes the id of a block as the position in the room of its epoch. The block of a gap begins another epoch of the room:
    /// its data is an id of the former one.
    fn advance(&mut self, id: &str, fields: &[u8]) {
        let former = fields
            .strip_prefix(RESET_DATA)
            .and_then(|data| std::str::from_utf8(data).ok());
        let is_of = |own: &str, other: &str| own.split('-').next() == other.split('-').next();
        let same = self
            .0
            .iter_mut()
            .find(|own| is_of(own, id) || former.is_some_and(|former| is_of(own, former)));
        if let Some(own) = same {
            id.clone_into(own);
        }
    }
}

/// Splits a block into its id and the fields after it.
fn split_id(block: &[u8]) -> Option<(&str, &[u8])> {
    let after = block.strip_prefix(b"id: ")?;
    let end = after.iter().position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&after[..end]).ok()?, &after[end + 1..]))
}

/// Returns the last event ids that the client sent, either in the `Last-Event-ID` header (WHATWG HTML §9.2.4) or, for clients
/// that can't set headers, in `lastEventId` query parameters: one for each room, or several in one ([`JoinedIds`]). Empty if the
/// client has received no event.
pub(crate) fn last_event_ids(head: &Head) -> Vec<String> {
    let split = |ids: &str| -> Vec<String> { ids.split(ID_SEPARATOR).map(str::to_owned).collect() };
    if let Some(id) = head.header("Last-Event-ID").filter(|id| !id.is_empty()) {
        return split(id);
    }
    let pairs = head.query().split('&');
    pairs
        .filter_map(|pair| pair.strip_prefix("lastEventId="))
        .map(percent::decode_lossy)
        .filter(|id| !id.is_empty())
        .flat_map(|ids| split(&ids))
        .collect()
}

#[cfg(test)]
#[cfg_attr(loom, allow(dead_code))] // The loom models don't use it.
pub(crate) mod tests;
