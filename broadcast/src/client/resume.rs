//! The resume state: which messages of a server with `--history` the client has seen, how it requests the missed ones, and
//! which ones the server has skipped. `json.rs` describes the format.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humphrey_ws::HistoryId;
use serde_json::Value;

use super::since::Since;
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

impl Content {
    /// The number of bytes to print.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Omitted { .. } => 0,
        }
    }
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
    /// With `--since now`, the first connection has ended before the server named its position.
    NoPosition,
    /// The server has no history with the epoch of `--since`.
    UnknownId,
}

/// The ids seen so far, of everyone and of the room.
#[derive(Debug, Default)]
pub(super) struct ResumeState {
    /// `--since`.
    since: Option<Since>,
    is_json: bool,
    seen: [Option<HistoryId>; 2],
    /// The ids seen on the current connection, which may belong to another epoch.
    current: [Option<HistoryId>; 2],
    /// The first ids of messages on the current connection.
    first: [Option<HistoryId>; 2],
    /// The newest ids of messages on the current connection, which the next ones continue without gaps.
    newest: [Option<HistoryId>; 2],
    /// Messages that the server has skipped, and that [`take_skipped`](Self::take_skipped) has not returned.
    skipped: u64,
    /// Identifies the run of the server; known after a complete replay.
    server: Option<String>,
    /// Whether there was an earlier connection.
    has_connected: bool,
}

impl ResumeState {
    /// The state before the first connection.
    pub(super) fn new(since: Option<Since>) -> Self {
        Self {
            since,
            seen: since.map_or([None; 2], Since::ids),
            ..Self::default()
        }
    }

    /// The URL that asks for missed messages only, or for those of `--since`.
    pub(super) fn target(&self, target: &Target) -> Target {
        if self.server.is_none() && self.seen == [None; 2] {
            match self.since {
                None => return target.clone(),
                Some(Since::Now) => return target.with_parameters(&[("since", "now".to_owned())]),
                Some(Since::All | Since::After(_) | Since::AfterEach { .. }) => {}
            }
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
        (self.current, self.first, self.newest) = ([None; 2], [None; 2], [None; 2]);
        let is_reconnect = std::mem::replace(&mut self.has_connected, true);
        match self.is_json {
            _ if !is_reconnect => None,
            false => Some(Gap::Unknown),
            true => self.awaits_position().then_some(Gap::NoPosition),
        }
    }

    /// Whether the server resumes: it was asked for the messages after the known ids.
    pub(super) const fn is_resumable(&self) -> bool {
        self.is_json
    }

    /// Whether `--since now` still applies: the end of the replay has not named the position of both rooms. The ids of
    /// messages don't suffice: without the other id, the next connection would begin with old messages to the other room.
    fn awaits_position(&self) -> bool {
        self.since == Some(Since::Now) && self.server.is_none()
    }

    /// Ends a connection.
    pub(super) fn on_end(&mut self) {
        let current = std::mem::take(&mut self.current);
        if !self.awaits_position() {
            for (seen, current) in self.seen.iter_mut().zip(current) {
                *seen = current.or(*seen);
            }
        }
    }

    /// The number of messages that the server has skipped since the last call.
    pub(super) fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
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
            self.on_id(usize::from(is_room), id);
        }
        Ok(Some(received))
    }

    /// Records the id of a message. Within an epoch, the server numbers the messages without gaps.
    fn on_id(&mut self, room: usize, id: HistoryId) {
        self.current[room] = Some(id);
        self.first[room].get_or_insert(id);
        let newest = &mut self.newest[room];
        match *newest {
            Some(before) if before.epoch() == id.epoch() => {
                let skipped = id.sequence().saturating_sub(before.sequence() + 1);
                self.skipped = self.skipped.saturating_add(skipped);
                if id.sequence() > before.sequence() {
                    *newest = Some(id);
                }
            }
            _ => *newest = Some(id),
        }
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
        // The messages up to there are missing for another reason, or not at all: a message may arrive after the end of the
        // replay that names it.
        for (newest, last) in self.newest.iter_mut().zip(last) {
            if newest.is_some() {
                *newest = newer(*newest, last);
            }
        }
        // Ids of an earlier epoch are useless now.
        let requested = std::mem::replace(&mut self.seen, self.current);
        let server = json["server"].as_str().unwrap_or_default().to_owned();
        let before = self.server.replace(server);
        if json["complete"] == true {
            return None;
        }
        match before {
            Some(before) if Some(&before) != self.server.as_ref() => Some(Gap::Restarted),
            Some(_) => Some(Gap::HistoryExceeded),
            // Messages before the first connection are missing only if they were asked for.
            None => self.gap_after(requested, last),
        }
    }

    /// The gap after the ids that were requested, on a connection whose replay is not complete. `last` are the ids of the end
    /// of the replay. A room without an id has none.
    fn gap_after(
        &self,
        requested: [Option<HistoryId>; 2],
        last: [Option<HistoryId>; 2],
    ) -> Option<Gap> {
        let next = [0, 1].map(|room| self.first[room].or(last[room]));
        let mut gap = None;
        for (room, id) in requested.into_iter().enumerate() {
            let Some(id) = id else { continue };
            let is_of = |next: Option<HistoryId>| next.is_some_and(|n| n.epoch() == id.epoch());
            if is_of(next[room]) {
                let is_contiguous = match self.first[room] {
                    Some(first) => first.sequence() == id.sequence().wrapping_add(1),
                    None => last[room] == Some(id),
                };
                if !is_contiguous {
                    gap = Some(Gap::HistoryExceeded);
                }
            } else if is_of(next[1 - room]) {
                // The single id of `--since` is from the other history.
            } else if next[room].is_none() {
                gap = Some(Gap::HistoryExceeded);
            } else {
                return Some(match self.since {
                    Some(Since::After(_) | Since::AfterEach { .. }) => Gap::UnknownId,
                    _ => Gap::Restarted,
                });
            }
        }
        gap
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

    fn since(text: &str) -> ResumeState {
        ResumeState::new(Some(text.parse().unwrap()))
    }

    fn asked(resume: &ResumeState) -> String {
        let target = resume.target(&target()).url().request_target();
        target.strip_prefix("/news?").unwrap().to_owned()
    }

    #[test]
    fn since_determines_the_first_request() {
        for (text, expected) in [
            ("all", "since=&room_since="),
            ("now", "since=now"),
            ("a-5", "since=a-5&room_since=a-5"),
            ("a-5,b-6", "since=b-6&room_since=a-5"),
            (",b-6", "since=b-6&room_since="),
            (",", "since=&room_since="),
        ] {
            assert_eq!(asked(&since(text)), expected, "{text}");
        }
    }

    #[test]
    fn reconnect_resumes_from_received_messages_instead_of_since() {
        for text in ["all", "now", "b-1"] {
            let mut resume = since(text);
            connected(&mut resume);
            resume
                .read(live("s", true, r#""a-9""#, r#""b-1""#))
                .unwrap();
            resume.read(message("\"news\"", "b-2")).unwrap();
            resume.on_end();
            assert_eq!(asked(&resume), "since=a-9&room_since=b-2", "{text}");
            connected(&mut resume);
        }
    }

    #[test]
    fn since_now_applies_until_the_position_is_known() {
        let mut resume = since("now");
        connected(&mut resume);
        resume.read(message("null", "a-5")).unwrap();
        resume.on_end();
        assert_eq!(asked(&resume), "since=now");
        assert_eq!(resume.on_open(Some(JSON)), Some(Gap::NoPosition));
        resume.read(live("s", true, r#""a-7""#, "null")).unwrap();
        resume.on_end();
        assert_eq!(asked(&resume), "since=a-7&room_since=");
        connected(&mut resume);
    }

    #[test]
    fn since_an_id_that_is_no_longer_kept_reports_a_gap() {
        // The room's messages, the end of the replay, and the gap.
        for (messages, room, expected) in [
            (&["b-6", "b-7"][..], r#""b-7""#, Ok(None)),
            (&[], r#""b-5""#, Ok(None)),
            (&["b-7"], r#""b-7""#, Err(Gap::HistoryExceeded)),
            (&[], r#""b-9""#, Err(Gap::HistoryExceeded)),
            (&["c-1"], r#""c-1""#, Err(Gap::UnknownId)),
            (&[], r#""c-1""#, Err(Gap::UnknownId)),
        ] {
            let mut resume = since("b-5");
            connected(&mut resume);
            // The id is not from the history of everyone.
            resume.read(message("null", "a-90")).unwrap();
            for id in messages {
                resume.read(message("\"news\"", id)).unwrap();
            }
            let read = resume.read(live("s", false, r#""a-90""#, room));
            assert_eq!(read, expected, "{messages:?} {room}");
        }
    }

    #[test]
    fn since_an_id_of_an_empty_history_reports_a_gap() {
        let mut resume = since("b-5");
        connected(&mut resume);
        assert_eq!(
            resume.read(live("s", false, "null", "null")),
            Err(Gap::HistoryExceeded)
        );
    }

    #[test]
    fn since_an_id_of_everyone_is_checked_in_its_history() {
        for (first, expected) in [("a-6", Ok(None)), ("a-8", Err(Gap::HistoryExceeded))] {
            let mut resume = since("a-5");
            connected(&mut resume);
            // The connection breaks during the replay of the room, which begins with its oldest message.
            resume.read(message("\"news\"", "b-20")).unwrap();
            resume.on_end();
            assert_eq!(asked(&resume), "since=a-5&room_since=b-20");
            connected(&mut resume);
            resume.read(message("null", first)).unwrap();
            let read = resume.read(live("s", false, r#""a-9""#, r#""b-20""#));
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn jump_within_an_epoch_counts_as_skipped() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        let mut receive = |room, id| {
            resume.read(message(room, id)).unwrap();
            resume.take_skipped()
        };
        // The first message of each room may have any id.
        assert_eq!(receive("null", "a-5"), 0);
        assert_eq!(receive("\"news\"", "b-70"), 0);
        assert_eq!(receive("null", "a-6"), 0);
        assert_eq!(receive("null", "a-10"), 3);
        assert_eq!(receive("\"news\"", "b-71"), 0);
        assert_eq!(receive("\"news\"", "b-73"), 1);
        // Another epoch has other numbers.
        assert_eq!(receive("null", "c-80"), 0);
        assert_eq!(receive("null", "c-82"), 1);
        assert_eq!(receive("null", "c-81"), 0);
        assert_eq!(receive("null", "c-83"), 0);
        // Messages between two connections are not skipped ones.
        resume.on_end();
        connected(&mut resume);
        resume.read(message("null", "c-99")).unwrap();
        assert_eq!(resume.take_skipped(), 0);
    }

    #[test]
    fn gap_that_the_server_reports_does_not_count_as_skipped() {
        let mut resume = ResumeState::default();
        connected(&mut resume);
        resume.read(message("null", "a-5")).unwrap();
        resume.read(live("s", true, r#""a-7""#, "null")).unwrap();
        // These two were sent before the end of the replay, and arrive after it.
        for id in ["a-6", "a-7", "a-8"] {
            resume.read(message("null", id)).unwrap();
        }
        // A cluster has lost messages.
        let gap = resume.read(live("s", false, r#""a-20""#, "null"));
        assert_eq!(gap, Err(Gap::HistoryExceeded));
        resume.read(message("null", "a-21")).unwrap();
        assert_eq!(resume.take_skipped(), 0);
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
