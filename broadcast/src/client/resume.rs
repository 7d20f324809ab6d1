//! What a humphrey-broadcast with `--history` says beside its messages, and how to come back to it: see `json.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humphrey_ws::HistoryId;
use serde_json::Value;

use super::target::Target;

/// The form that says which id a message has, and the plain one, for servers that keep nothing.
pub(super) const OFFERS: &[&str] = &[JSON, "plain.humphrey-broadcast"];

const JSON: &str = "json.humphrey-broadcast";

/// What a message consists of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    Binary(Vec<u8>),
    /// It was too long for JSON, and the server has left it out.
    Omitted {
        bytes: u64,
    },
}

/// A message, and what is known of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Where it was sent to: `None` if that is not known, and within it `None` if it was everyone.
    pub(super) room: Option<Option<String>>,
    pub(super) id: Option<String>,
    /// When it was sent, in milliseconds since 1970.
    pub(super) at_ms: Option<u64>,
    pub(super) content: Content,
}

impl Received {
    /// Of which nothing else is known.
    pub(super) fn plain(content: Content) -> Self {
        Self {
            room: None,
            id: None,
            at_ms: None,
            content,
        }
    }
}

/// Why there may be a gap in what has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// The server was started anew, and does not know what it has sent before.
    Restarted,
    /// The server keeps what was missed no longer.
    TooLong,
    /// The server keeps nothing, as far as we know.
    Plain,
}

/// What has been seen, by its ids: of everyone, and of the room.
#[derive(Debug, Default)]
pub(super) struct Resume {
    is_json: bool,
    seen: [Option<HistoryId>; 2],
    /// The same, on the connection that there is: those may be of another history.
    fresh: [Option<HistoryId>; 2],
    /// Which server it was; known once all that was kept had come.
    server: Option<String>,
    /// A connection was there before this one.
    has_come_back: bool,
}

impl Resume {
    /// What to ask for, so that only what was missed comes.
    pub(super) fn target(&self, target: &Target) -> Target {
        if self.server.is_none() && self.seen == [None; 2] {
            return target.clone();
        }
        let [everyone, room] = self.seen.map(|id| match id {
            Some(id) => id.to_string(),
            // Nothing was sent yet: all that is kept was missed.
            None => String::new(),
        });
        target.with_parameters(&[("since", everyone), ("room_since", room)])
    }

    /// There is a connection. Says if there may be a gap.
    pub(super) fn opened(&mut self, subprotocol: Option<&str>) -> Option<Gap> {
        self.is_json = subprotocol == Some(JSON);
        self.fresh = [None; 2];
        let came_back = self.has_come_back;
        self.has_come_back = true;
        (came_back && !self.is_json).then_some(Gap::Plain)
    }

    /// The connection is over.
    pub(super) fn lost(&mut self) {
        for (seen, fresh) in self.seen.iter_mut().zip(self.fresh) {
            *seen = fresh.or(*seen);
        }
        self.fresh = [None; 2];
    }

    /// What a text is: a message, or for us only. `Err`: there is a gap.
    pub(super) fn read(&mut self, text: String) -> Result<Option<Received>, Gap> {
        if !self.is_json {
            return Ok(Some(Received::plain(Content::Text(text))));
        }
        let Ok(json) = serde_json::from_str::<Value>(&text) else {
            return Ok(Some(Received::plain(Content::Text(text))));
        };
        if json["kind"] == "live" {
            return match self.live(&json) {
                Some(gap) => Err(gap),
                None => Ok(None),
            };
        }
        let Some(content) = content(&json) else {
            return Ok(Some(Received::plain(Content::Text(text))));
        };
        let received = Received {
            room: json
                .get("room")
                .map(|room| room.as_str().map(str::to_owned)),
            id: json["id"].as_str().map(str::to_owned),
            at_ms: json["at"].as_u64(),
            content,
        };
        if let Some(id) = id(&json["id"]) {
            let is_room = matches!(received.room, Some(Some(_)));
            self.fresh[usize::from(is_room)] = Some(id);
        }
        Ok(Some(received))
    }

    /// All that was kept has come: from here on, it is as it is sent.
    fn live(&mut self, json: &Value) -> Option<Gap> {
        let last = [id(&json["last"]["everyone"]), id(&json["last"]["room"])];
        for (fresh, last) in self.fresh.iter_mut().zip(last) {
            *fresh = later(*fresh, last);
        }
        let has_seen = self.seen != [None; 2];
        // What was seen of another history is worth nothing any more.
        self.seen = self.fresh;
        let server = json["server"].as_str().unwrap_or_default().to_owned();
        let before = self.server.replace(server);
        if json["complete"] == true {
            return None;
        }
        match before {
            Some(before) if Some(&before) != self.server.as_ref() => Some(Gap::Restarted),
            Some(_) => Some(Gap::TooLong),
            // Who comes for the first time has missed nothing.
            None => has_seen.then_some(Gap::TooLong),
        }
    }
}

/// Of two ids of one connection; a message may come between what is said of the last one and its being said.
fn later(fresh: Option<HistoryId>, last: Option<HistoryId>) -> Option<HistoryId> {
    match (fresh, last) {
        (Some(fresh), Some(last)) if fresh.epoch() == last.epoch() => {
            Some(if fresh.sequence() > last.sequence() {
                fresh
            } else {
                last
            })
        }
        (fresh, last) => last.or(fresh),
    }
}

fn id(json: &Value) -> Option<HistoryId> {
    json.as_str()?.parse().ok()
}

fn content(json: &Value) -> Option<Content> {
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

    fn connected(resume: &mut Resume) {
        assert_eq!(resume.opened(Some(JSON)), None);
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
    fn it_comes_back_behind_what_it_has_seen() {
        let mut resume = Resume::default();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=now"
        );
        connected(&mut resume);
        assert_eq!(resume.read(live("s", false, r#""a-1""#, "null")), Ok(None));
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-1&room_since="
        );
        connected(&mut resume);
        resume.read(message("null", "a-2")).unwrap();
        resume.read(message("\"news\"", "b-1")).unwrap();
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-2&room_since=b-1"
        );
    }

    #[test]
    fn where_nothing_was_sent_yet_all_of_it_is_missed() {
        let mut resume = Resume::default();
        connected(&mut resume);
        resume.read(live("s", true, "null", "null")).unwrap();
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=&room_since="
        );
    }

    #[test]
    fn a_message_that_overtakes_the_news_of_the_last_one_is_not_asked_for_again() {
        let mut resume = Resume::default();
        connected(&mut resume);
        resume.read(message("null", "a-3")).unwrap();
        resume.read(message("\"news\"", "b-1")).unwrap();
        resume.read(live("s", true, r#""a-2""#, "null")).unwrap();
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=a-3&room_since=b-1"
        );
    }

    #[test]
    fn after_a_restart_the_old_ids_are_forgotten_and_the_gap_is_said() {
        let mut resume = Resume::default();
        connected(&mut resume);
        resume
            .read(live("s", true, r#""a-9""#, r#""b-9""#))
            .unwrap();
        resume.lost();
        connected(&mut resume);
        resume.read(message("null", "c-1")).unwrap();
        // It breaks again: what is of the room is as it was.
        resume.lost();
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
            Err(Gap::TooLong)
        );
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=c-1&room_since="
        );
    }

    #[test]
    fn a_gap_is_said_though_the_first_connection_was_short() {
        let mut resume = Resume::default();
        connected(&mut resume);
        resume.read(message("null", "a-1")).unwrap();
        resume.lost();
        connected(&mut resume);
        let live = live("s", false, r#""a-9""#, "null");
        assert_eq!(resume.read(live), Err(Gap::TooLong));
    }

    #[test]
    fn what_a_plain_server_sends_is_no_json_to_us() {
        let mut resume = Resume::default();
        assert_eq!(resume.opened(None), None);
        let text = live("s", true, "null", "null");
        let received = resume.read(text.clone()).unwrap().unwrap();
        assert_eq!(received, Received::plain(Content::Text(text)));
        resume.lost();
        assert_eq!(
            resume.target(&target()).url().request_target(),
            "/news?since=now"
        );
        assert_eq!(resume.opened(None), Some(Gap::Plain));
    }

    #[test]
    fn what_is_not_understood_is_a_message_as_it_is() {
        let mut resume = Resume::default();
        connected(&mut resume);
        for text in [
            "no json",
            "[1]",
            r#"{"kind":"later"}"#,
            r#"{"base64":"!"}"#,
            "7",
        ] {
            let received = resume.read(text.into()).unwrap().unwrap();
            assert_eq!(received, Received::plain(Content::Text(text.into())));
        }
        let bytes = resume.read(r#"{"kind":"message","room":null,"base64":"//4A"}"#.into());
        let bytes = bytes.unwrap().unwrap();
        assert_eq!(bytes.room, Some(None));
        assert_eq!(bytes.content, Content::Binary(vec![0xff, 0xfe, 0]));
    }
}
