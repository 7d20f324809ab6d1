//! The resume state: which messages of a server with `--history` the client has seen, and how it requests the missed
//! ones. `json.rs` describes the format.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humphrey_ws::HistoryId;
use serde_json::Value;

use super::target::Target;

/// Offers JSON, which has message ids, and plain messages, for servers without a history.
pub(super) const OFFERS: &[&str] = &[JSON, "plain.humphrey-broadcast"];

const JSON: &str = "json.humphrey-broadcast";

/// The content of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    Binary(Vec<u8>),
    /// The server omitted a message that is too long for JSON.
    Omitted {
        bytes: u64,
    },
}

/// A message with its metadata, as far as known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReceivedMessage {
    /// The room: `None` if unknown, `Some(None)` for everyone.
    pub(super) room: Option<Option<String>>,
    pub(super) id: Option<String>,
    /// Time of sending, in milliseconds since 1970.
    pub(super) at_ms: Option<u64>,
    pub(super) content: Content,
}

impl ReceivedMessage {
    /// A message without metadata.
    pub(super) fn plain(content: Content) -> Self {
        Self {
            room: None,
            id: None,
            at_ms: None,
            content,
        }
    }
}

/// Why messages may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// The server was restarted and has lost its history.
    Restarted,
    /// The missed messages are no longer in the server's history.
    HistoryExceeded,
    /// The server keeps no history, as far as the client knows.
    Unknown,
}

/// The ids seen so far, of everyone and of the room.
#[derive(Debug, Default)]
pub(super) struct ResumeState {
    is_json: bool,
    seen: [Option<HistoryId>; 2],
    /// The ids seen on the current connection, which may belong to another epoch.
    current: [Option<HistoryId>; 2],
    /// Identifies the run of the server; known after a complete replay.
    server: Option<String>,
    /// Whether there was an earlier connection.
    has_connected: bool,
}

impl ResumeState {
    /// The URL that asks for missed messages only.
    pub(super) fn target(&self, target: &Target) -> Target {
        if self.server.is_none() && self.seen == [None; 2] {
            return target.clone();
        }
        let [everyone, room] = self.seen.map(|id| match id {
            Some(id) => id.to_string(),
            // Nothing was sent so far: ask for everything that is kept.
            None => String::new(),
        });
        target.with_parameters(&[("since", everyone), ("room_since", room)])
    }

    /// Starts a connection. Returns a gap if messages may be missing.
    pub(super) fn on_open(&mut self, subprotocol: Option<&str>) -> Option<Gap> {
        self.is_json = subprotocol == Some(JSON);
        self.current = [None; 2];
        let is_reconnect = self.has_connected;
        self.has_connected = true;
        (is_reconnect && !self.is_json).then_some(Gap::Unknown)
    }

    /// Ends a connection.
    pub(super) fn on_end(&mut self) {
        for (seen, current) in self.seen.iter_mut().zip(self.current) {
            *seen = current.or(*seen);
        }
        self.current = [None; 2];
    }

    /// Parses a text. `Ok(None)`: a control message. `Err`: messages are missing.
    pub(super) fn read(&mut self, text: String) -> Result<Option<ReceivedMessage>, Gap> {
        if !self.is_json {
            return Ok(Some(ReceivedMessage::plain(Content::Text(text))));
        }
        let Ok(json) = serde_json::from_str::<Value>(&text) else {
            return Ok(Some(ReceivedMessage::plain(Content::Text(text))));
        };
        if json["kind"] == "live" {
            return match self.on_replay_end(&json) {
                Some(gap) => Err(gap),
                None => Ok(None),
            };
        }
        let Some(content) = parse_content(&json) else {
            return Ok(Some(ReceivedMessage::plain(Content::Text(text))));
        };
        let received = ReceivedMessage {
            room: json
                .get("room")
                .map(|room| room.as_str().map(str::to_owned)),
            id: json["id"].as_str().map(str::to_owned),
            at_ms: json["at"].as_u64(),
            content,
        };
        if let Some(id) = parse_id(&json["id"]) {
            let is_room = matches!(received.room, Some(Some(_)));
            self.current[usize::from(is_room)] = Some(id);
        }
        Ok(Some(received))
    }

    /// Handles the end of the replay; live messages follow.
    fn on_replay_end(&mut self, json: &Value) -> Option<Gap> {
        let last = [
            parse_id(&json["last"]["everyone"]),
            parse_id(&json["last"]["room"]),
        ];
        for (current, last) in self.current.iter_mut().zip(last) {
            *current = newer(*current, last);
        }
        let has_seen = self.seen != [None; 2];
        // Ids of an earlier epoch are useless now.
        self.seen = self.current;
        let server = json["server"].as_str().unwrap_or_default().to_owned();
        let before = self.server.replace(server);
        if json["complete"] == true {
            return None;
        }
        match before {
            Some(before) if Some(&before) != self.server.as_ref() => Some(Gap::Restarted),
            Some(_) => Some(Gap::HistoryExceeded),
            // A first connection has missed nothing.
            None => has_seen.then_some(Gap::HistoryExceeded),
        }
    }
}

/// The newer of two ids of one connection: a message may arrive before the older id that the end of the replay names.
fn newer(current: Option<HistoryId>, last: Option<HistoryId>) -> Option<HistoryId> {
    match (current, last) {
        (Some(current), Some(last)) if current.epoch() == last.epoch() => {
            Some(if current.sequence() > last.sequence() {
                current
            } else {
                last
            })
        }
        (current, last) => last.or(current),
    }
}

fn parse_id(json: &Value) -> Option<HistoryId> {
    json.as_str()?.parse().ok()
}

fn parse_content(json: &Value) -> Option<Content> {
    if let Some(text) = json["text"].as_str() {
        return Some(Content::Text(text.to_owned()));
    }
    if let Some(bytes) = json["base64"].as_str() {
        return STANDARD.decode(bytes).ok().map(Content::Binary);
    }
    let bytes = json["omitted_bytes"].as_u64()?;
    Some(Content::Omitted { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        "ws://a/news?since=now".parse().unwrap()
    }

    fn connected(resume: &mut ResumeState) {
        assert_eq!(resume.on_open(Some(JSON)), None);
    }

    fn message(room: &str, id: &str) -> String {
        format!(r#"{{"kind":"message","room":{room},"id":"{id}","at":5,"text":"x"}}"#)
    }

    fn live(server: &str, complete: bool, everyone: &str, room: &str) -> String {
        format!(
            r#"{{"kind":"live","server":"{server}","complete":{complete},"last":{{"everyone":{everyone},"room":{room}}}}}"#
        )
    }

    #[test]
    fn reconnect_requests_messages_after_the_last_id() {
        let mut resume = ResumeState::default();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=now"
        );
        connected(&mut resume);
        assert_eq!(resume.read(live("s", false, r#""a-1""#, "null")), Ok(None));
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-1&room_since="
        );
        connected(&mut resume);
        resume.read(message("null", "a-2")).unwrap();
        resume.read(message("\"news\"", "b-1")).unwrap();
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-2&room_since=b-1"
        );
    }

    #[test]
    fn reconnect_without_messages_requests_all() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        resume.read(live("s", true, "null", "null")).unwrap();
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=&room_since="
        );
    }

    #[test]
    fn message_before_replay_end_is_not_requested_again() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        resume.read(message("null", "a-3")).unwrap();
        resume.read(message("\"news\"", "b-1")).unwrap();
        resume.read(live("s", true, r#""a-2""#, "null")).unwrap();
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-3&room_since=b-1"
        );
    }

    #[test]
    fn server_restart_drops_old_ids_and_reports_a_gap() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        resume
            .read(live("s", true, r#""a-9""#, r#""b-9""#))
            .unwrap();
        resume.on_end();
        connected(&mut resume);
        resume.read(message("null", "c-1")).unwrap();
        // The connection breaks before the end of the replay: the id of the room is kept.
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=c-1&room_since=b-9"
        );
        connected(&mut resume);
        assert_eq!(
            resume.read(live("t", false, r#""c-1""#, "null")),
            Err(Gap::Restarted)
        );
        assert_eq!(
            resume.read(live("t", false, r#""c-1""#, "null")),
            Err(Gap::HistoryExceeded)
        );
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=c-1&room_since="
        );
    }

    #[test]
    fn gap_after_a_short_first_connection_is_reported() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        resume.read(message("null", "a-1")).unwrap();
        resume.on_end();
        connected(&mut resume);
        let live = live("s", false, r#""a-9""#, "null");
        assert_eq!(resume.read(live), Err(Gap::HistoryExceeded));
    }

    #[test]
    fn json_from_a_plain_server_is_a_text_message() {
        let mut resume = ResumeState::default();
        assert_eq!(resume.on_open(None), None);
        let text = live("s", true, "null", "null");
        let received = resume.read(text.clone()).unwrap().unwrap();
        assert_eq!(received, ReceivedMessage::plain(Content::Text(text)));
        resume.on_end();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=now"
        );
        assert_eq!(resume.on_open(None), Some(Gap::Unknown));
    }

    #[test]
    fn unknown_json_is_printed_unchanged() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        for text in [
            "no json",
            "[1]",
            r#"{"kind":"later"}"#,
            r#"{"base64":"!"}"#,
            "7",
        ] {
            let received = resume.read(text.into()).unwrap().unwrap();
            assert_eq!(received, ReceivedMessage::plain(Content::Text(text.into())));
        }
        let bytes = resume.read(r#"{"kind":"message","room":null,"base64":"//4A"}"#.into());
        let bytes = bytes.unwrap().unwrap();
        assert_eq!(bytes.room, Some(None));
        assert_eq!(bytes.content, Content::Binary(vec![0xff, 0xfe, 0]));
    }
}
