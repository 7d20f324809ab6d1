//! JSON envelopes, for clients that need the room, the id and the time of a message.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humphrey_ws::{HistoryId, Message};

use crate::room_name::RoomName;

/// A message with its metadata.
pub(crate) struct Envelope<'a> {
    /// `message`, or `reply` to a message of the client.
    pub(crate) kind: &'static str,
    /// The name of the room that the message was sent to; empty for everyone.
    pub(crate) room: &'a str,
    /// The id of the message, if it is kept.
    pub(crate) id: Option<HistoryId>,
    /// Time of sending, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) message: &'a Message,
}

impl Envelope<'_> {
    /// Renders the envelope in at most `bytes_max` bytes. A payload that does not fit is replaced by its length.
    pub(crate) fn render(&self, bytes_max: usize) -> Message {
        let payload = self.message.bytes();
        let mut json = String::with_capacity(payload.len() + 160);
        let _ = write!(json, "{{\"kind\":\"{}\",\"room\":", self.kind);
        match self.room {
            RoomName::EVERYONE => json += "null",
            room => push_quoted(&mut json, room),
        }
        push_id(&mut json, ",\"id\":", self.id);
        let _ = write!(json, ",\"at\":{}", self.at_ms);
        let head_bytes = json.len();
        match self.message.text() {
            Some(text) => {
                json += ",\"text\":";
                push_quoted(&mut json, text);
            }
            None => {
                json += ",\"base64\":\"";
                STANDARD.encode_string(payload, &mut json);
                json.push('"');
            }
        }
        if json.len() >= bytes_max {
            json.truncate(head_bytes);
            let _ = write!(json, ",\"omitted_bytes\":{}", payload.len());
        }
        json.push('}');
        Message::new(json)
    }
}

/// Marks the end of the replay: all missed messages have been sent. Later, in a cluster, it stands in place of messages that
/// were lost.
pub(crate) struct ReplayEnd<'a> {
    /// Identifies the server that clients resume on ([`crate::rooms::Rooms::server_id`]).
    pub(crate) server_id: &'a str,
    /// Whether the replay had no gap.
    pub(crate) is_complete: bool,
    /// The last message to everyone, and to the room. `None` if there was none, or it is not known.
    pub(crate) last_ids: [Option<HistoryId>; 2],
}

impl ReplayEnd<'_> {
    pub(crate) fn render(&self) -> Message {
        let mut json = "{\"kind\":\"live\",\"server\":".to_owned();
        push_quoted(&mut json, self.server_id);
        let _ = write!(json, ",\"complete\":{}", self.is_complete);
        let [everyone, room] = self.last_ids;
        push_id(&mut json, ",\"last\":{\"everyone\":", everyone);
        push_id(&mut json, ",\"room\":", room);
        json += "}}";
        Message::new(json)
    }
}

/// The current time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    ms_since_1970(SystemTime::now())
}

/// A time in milliseconds since 1970.
pub(crate) fn ms_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

pub(crate) fn push_id(json: &mut String, key: &str, id: Option<HistoryId>) {
    json.push_str(key);
    let _ = match id {
        Some(id) => write!(json, "\"{id}\""),
        None => write!(json, "null"),
    };
}

/// Appends a JSON string, with the escapes of RFC 8259 §7.
pub(crate) fn push_quoted(json: &mut String, text: &str) {
    json.push('"');
    let mut rest = text;
    while let Some(at) = rest
        .bytes()
        .position(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\'))
    {
        json.push_str(&rest[..at]);
        let _ = match rest.as_bytes()[at] {
            b'\n' => write!(json, "\\n"),
            b'\t' => write!(json, "\\t"),
            byte @ (b'"' | b'\\') => write!(json, "\\{}", char::from(byte)),
            byte => write!(json, "\\u{byte:04x}"),
        };
        rest = &rest[at + 1..];
    }
    json.push_str(rest);
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(room: &str, id: Option<&str>, message: Message, bytes_max: usize) -> String {
        let envelope = Envelope {
            kind: "message",
            room,
            id: id.map(|id| id.parse().unwrap()),
            at_ms: 1_700_000_000_000,
            message: &message,
        };
        envelope.render(bytes_max).text().unwrap().to_owned()
    }

    #[test]
    fn envelope_names_room_id_and_time() {
        assert_eq!(
            render("news", Some("ab-7"), Message::new("Grüezi"), 1_000),
            r#"{"kind":"message","room":"news","id":"ab-7","at":1700000000000,"text":"Grüezi"}"#
        );
        assert_eq!(
            render("", None, Message::new([0xff, 0xfe, 0]), 1_000),
            r#"{"kind":"message","room":null,"id":null,"at":1700000000000,"base64":"//4A"}"#
        );
    }

    #[test]
    fn quote_escapes_what_json_does_not_allow() {
        let text = "\u{0}\u{1f}\n\t\r\"\\/ü\u{7f}\u{2028}";
        let json = render("a\"b", None, Message::new(text), 1_000);
        assert!(
            json.ends_with("\"text\":\"\\u0000\\u001f\\n\\t\\u000d\\\"\\\\/ü\u{7f}\u{2028}\"}"),
            "{json}"
        );
        assert!(json.contains(r#""room":"a\"b""#), "{json}");
    }

    #[test]
    fn payload_over_the_limit_is_replaced_by_its_length() {
        let text = "\"".repeat(100);
        let json = render("", None, Message::new(&text), 200);
        assert!(json.ends_with(r#","omitted_bytes":100}"#), "{json}");
        assert!(json.len() <= 200);
        assert!(render("", None, Message::new(&text), 1_000).contains("\"text\""));
    }

    #[test]
    fn replay_end_names_server_and_last_ids() {
        let replay_end = ReplayEnd {
            server_id: "5f",
            is_complete: false,
            last_ids: ["ab-7".parse().ok(), None],
        };
        assert_eq!(
            replay_end.render().text(),
            Some(
                r#"{"kind":"live","server":"5f","complete":false,"last":{"everyone":"ab-7","room":null}}"#
            )
        );
    }
}
