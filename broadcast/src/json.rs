//! Messages as JSON, for clients that want to know where each belongs: which room, which id, what time.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humphrey_ws::{HistoryId, Message};

use crate::name::RoomName;

/// What a message is, for a client that reads JSON.
pub(crate) struct Envelope<'a> {
    /// What sort it is: `message`, or `reply` to the client's own.
    pub(crate) kind: &'static str,
    /// Where it was sent to.
    pub(crate) room: &'a RoomName,
    /// Its id, if it is kept.
    pub(crate) id: Option<HistoryId>,
    /// When it was sent, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) message: &'a Message,
}

impl Envelope<'_> {
    /// As a message of at most so many bytes: without its payload, and how long that is, where it would be longer.
    pub(crate) fn render(&self, bytes_max: usize) -> Message {
        let payload = self.message.bytes();
        let mut json = String::with_capacity(payload.len() + 160);
        let _ = write!(json, "{{\"kind\":\"{}\",\"room\":", self.kind);
        if self.room.is_everyone() {
            json += "null";
        } else {
            quote(&mut json, self.room.as_str());
        }
        push_id(&mut json, ",\"id\":", self.id);
        let _ = write!(json, ",\"at\":{}", self.at_ms);
        let head_bytes = json.len();
        match self.message.text() {
            Some(text) => {
                json += ",\"text\":";
                quote(&mut json, text);
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

/// What a client is told once everything that it may have missed has been sent.
pub(crate) struct Live<'a> {
    /// Another after each start of the program.
    pub(crate) server: &'a str,
    /// Nothing is missing between what the client has named and what follows.
    pub(crate) complete: bool,
    /// The last message to everyone, and to the room.
    pub(crate) last: [Option<HistoryId>; 2],
}

impl Live<'_> {
    pub(crate) fn render(&self) -> Message {
        let mut json = "{\"kind\":\"live\",\"server\":".to_owned();
        quote(&mut json, self.server);
        let _ = write!(json, ",\"complete\":{}", self.complete);
        let [everyone, room] = self.last;
        push_id(&mut json, ",\"last\":{\"everyone\":", everyone);
        push_id(&mut json, ",\"room\":", room);
        json += "}}";
        Message::new(json)
    }
}

/// The time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

fn push_id(json: &mut String, key: &str, id: Option<HistoryId>) {
    json.push_str(key);
    let _ = match id {
        Some(id) => write!(json, "\"{id}\""),
        None => write!(json, "null"),
    };
}

/// A string, with what JSON does not allow in one escaped (RFC 8259 §7).
pub(crate) fn quote(json: &mut String, text: &str) {
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

    fn rendered(room: &str, id: Option<&str>, message: Message, bytes_max: usize) -> String {
        let room = room.parse().unwrap_or_default();
        let envelope = Envelope {
            kind: "message",
            room: &room,
            id: id.map(|id| id.parse().unwrap()),
            at_ms: 1_700_000_000_000,
            message: &message,
        };
        envelope.render(bytes_max).text().unwrap().to_owned()
    }

    #[test]
    fn a_message_says_where_it_belongs() {
        assert_eq!(
            rendered("news", Some("ab-7"), Message::new("Grüezi"), 1_000),
            r#"{"kind":"message","room":"news","id":"ab-7","at":1700000000000,"text":"Grüezi"}"#
        );
        assert_eq!(
            rendered("", None, Message::new([0xff, 0xfe, 0]), 1_000),
            r#"{"kind":"message","room":null,"id":null,"at":1700000000000,"base64":"//4A"}"#
        );
    }

    #[test]
    fn what_json_does_not_allow_is_escaped() {
        let text = "\u{0}\u{1f}\n\t\r\"\\/ü\u{7f}\u{2028}";
        let json = rendered("a\"b", None, Message::new(text), 1_000);
        assert!(
            json.ends_with("\"text\":\"\\u0000\\u001f\\n\\t\\u000d\\\"\\\\/ü\u{7f}\u{2028}\"}"),
            "{json}"
        );
        assert!(json.contains(r#""room":"a\"b""#), "{json}");
    }

    #[test]
    fn what_would_be_too_long_is_left_out_and_its_length_said() {
        let text = "\"".repeat(100);
        let json = rendered("", None, Message::new(&text), 200);
        assert!(json.ends_with(r#","omitted_bytes":100}"#), "{json}");
        assert!(json.len() <= 200);
        assert!(rendered("", None, Message::new(&text), 1_000).contains("\"text\""));
    }

    #[test]
    fn what_follows_the_missed_is_announced() {
        let live = Live {
            server: "5f",
            complete: false,
            last: ["ab-7".parse().ok(), None],
        };
        assert_eq!(
            live.render().text(),
            Some(
                r#"{"kind":"live","server":"5f","complete":false,"last":{"everyone":"ab-7","room":null}}"#
            )
        );
    }
}
