//! Who gets what. Knows the library's rooms; the rest of the program knows only those of its users.
//!
//! Where nothing is kept, everyone is the library's everyone, and a message costs what it costs there. Where something is,
//! everyone is a room like the others, since only rooms have histories; and each room is two: of the clients that get
//! messages as they are, and of those that get them as JSON, with the ids that they can resume from. Announcements are kept
//! nowhere, so they have rooms of their own then.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use humphrey_ws::{AsyncSender, AsyncWebsocketApp, HistoryId, Limits, Message, Room};

use crate::json::{Envelope, now_ms};
use crate::name::RoomName;

/// What is kept of a room, in bytes of payload.
pub(crate) const HISTORY_BYTES_MAX: usize = 256 << 10;

/// JSON is longer than what is in it.
const JSON_HISTORY_BYTES_MAX: usize = 2 * HISTORY_BYTES_MAX;

/// Rooms that there may be at once where each keeps something, unless the user says otherwise.
const KEPT_ROOMS_MAX: usize = 1_000;

/// In what form a client gets its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Json,
}

/// The names of the library's rooms begin with these. They are no longer than [`crate::name::NAME_BYTES_MAX`] leaves room for.
fn prefix(form: Form, is_announcement: bool) -> &'static str {
    match (form, is_announcement) {
        (Form::Plain, false) => "plain/",
        (Form::Json, false) => "json/",
        (Form::Plain, true) => "new/plain/",
        (Form::Json, true) => "new/json/",
    }
}

/// How the rooms are set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// How many messages each room keeps.
    pub(crate) history: Option<usize>,
    /// How many rooms there may be, if the user has said so.
    pub(crate) rooms_max: Option<usize>,
    /// New clients are announced.
    pub(crate) announces: bool,
}

impl Setup {
    /// How many of the library's rooms that are.
    pub(crate) fn library_rooms_max(self) -> usize {
        match self.history {
            None => self.rooms_max.unwrap_or(Limits::default().rooms_max),
            // One for each form, and as many for announcements; and the same for everyone.
            Some(_) => {
                let rooms = self.rooms_max.unwrap_or(KEPT_ROOMS_MAX);
                let each = if self.announces { 4 } else { 2 };
                rooms.saturating_add(1).saturating_mul(each)
            }
        }
    }

    /// Has the app keep what its rooms are to keep. Everyone's, and the room that standard input goes to, never give way to
    /// others: they have patterns of their own.
    pub(crate) fn apply<State, StreamState>(
        self,
        mut app: AsyncWebsocketApp<State, StreamState>,
        input: &RoomName,
    ) -> AsyncWebsocketApp<State, StreamState>
    where
        State: Send + Sync + 'static,
        StreamState: Send + Sync + Default + 'static,
    {
        let Some(messages) = self.history else {
            return app;
        };
        for name in [RoomName::EVERYONE, input.as_str(), "*"] {
            app = app
                .with_history(&format!("plain/{name}"), messages, HISTORY_BYTES_MAX)
                .with_history(&format!("json/{name}"), messages, JSON_HISTORY_BYTES_MAX);
        }
        app
    }
}

/// All rooms. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Rooms {
    sender: AsyncSender,
    keeps: bool,
    server: Arc<str>,
}

impl Rooms {
    pub(crate) fn new(sender: AsyncSender, setup: Setup) -> Self {
        // Every `RandomState` hashes in a way of its own, drawn by chance.
        let server = format!("{:x}", RandomState::new().hash_one(()));
        Self {
            sender,
            keeps: setup.history.is_some(),
            server: server.into(),
        }
    }

    /// Whether messages are kept, and so have ids.
    pub(crate) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Another after each start of the program.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The library's name of a room, for its clients of a form; `None` for the library's everyone.
    pub(crate) fn library_name(
        &self,
        name: &RoomName,
        form: Form,
        is_announcement: bool,
    ) -> Option<String> {
        if !self.keeps {
            let prefix = prefix(Form::Plain, false);
            return (!name.is_everyone()).then(|| format!("{prefix}{}", name.as_str()));
        }
        Some(format!(
            "{}{}",
            prefix(form, is_announcement),
            name.as_str()
        ))
    }

    fn room(&self, name: &RoomName, form: Form, is_announcement: bool) -> Room {
        match self.library_name(name, form, is_announcement) {
            Some(name) => self.sender.room(&name),
            None => self.sender.everyone(),
        }
    }

    /// A way to send messages to a room.
    pub(crate) fn channel(&self, name: &RoomName) -> Channel {
        self.channel_of(name, false)
    }

    fn channel_of(&self, name: &RoomName, is_announcement: bool) -> Channel {
        let json = self
            .keeps
            .then(|| self.room(name, Form::Json, is_announcement));
        Channel {
            plain: self.room(name, Form::Plain, is_announcement),
            json,
            name: name.clone(),
        }
    }

    /// Sends a message that is not kept to a room.
    pub(crate) fn announce(&self, name: &RoomName, text: String) {
        let _ = self.channel_of(name, true).publish(Message::new(text));
    }

    /// How many clients get what is sent to a room.
    pub(crate) fn members(&self, name: &RoomName) -> usize {
        if name.is_everyone() {
            return self.sender.connections();
        }
        self.channel(name).members()
    }

    /// The last message to a room, for clients of a form.
    pub(crate) fn last_id(&self, name: &RoomName, form: Form) -> Option<HistoryId> {
        self.room(name, form, false).last_id()
    }

    /// Whether a room of the library keeps all that it was ever sent.
    pub(crate) fn keeps_all(&self, library_name: &str) -> bool {
        let room = self.sender.room(library_name);
        let kept = room.since(None).unwrap_or_default();
        match kept.first() {
            Some((first, _)) => first.sequence() == 1,
            None => room.last_id().is_none(),
        }
    }
}

/// A way to send messages to a room.
pub(crate) struct Channel {
    name: RoomName,
    plain: Room,
    /// Where there is one.
    json: Option<Room>,
}

impl Channel {
    /// Sends a message to all who are in the room, or to everyone. Waits as [`Room::broadcast`] does. Returns whether it is kept
    /// where it is to be: it is not where there are too many rooms, or at the end.
    pub(crate) fn publish(&self, message: Message) -> bool {
        let mut is_kept = true;
        if let Some(json) = &self.json {
            let at_ms = now_ms();
            let id = json.broadcast_with(|id| {
                let envelope = Envelope {
                    kind: "message",
                    room: &self.name,
                    id,
                    at_ms,
                    message: &message,
                };
                envelope.render(Limits::default().message_bytes_max)
            });
            is_kept = id.is_some();
        }
        match self.json {
            Some(_) => is_kept & self.plain.broadcast_with(|_| message.clone()).is_some(),
            None => {
                self.plain.broadcast(message);
                is_kept
            }
        }
    }

    fn members(&self) -> usize {
        self.plain.len() + self.json.as_ref().map_or(0, Room::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NAME_BYTES_MAX;

    fn rooms(history: Option<usize>) -> Rooms {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
        let setup = Setup {
            history,
            rooms_max: None,
            announces: false,
        };
        Rooms::new(app.sender(), setup)
    }

    #[test]
    fn without_a_history_everyone_is_the_librarys_everyone_and_no_json_is_made() {
        let channel = rooms(None).channel(&RoomName::everyone());
        assert_eq!(channel.plain.name(), None);
        assert!(channel.json.is_none());
    }

    #[test]
    fn the_longest_name_is_none_too_long_for_the_library() {
        let name: RoomName = "x".repeat(NAME_BYTES_MAX).parse().unwrap();
        for form in [Form::Plain, Form::Json] {
            for is_announcement in [false, true] {
                let name = rooms(Some(1)).library_name(&name, form, is_announcement);
                assert!(name.unwrap().len() <= 255);
            }
        }
    }

    #[test]
    fn there_are_as_many_rooms_as_the_user_says_whatever_one_is_made_of() {
        let of = |history, rooms_max| {
            [false, true].map(|announces| {
                let setup = Setup {
                    history,
                    rooms_max,
                    announces,
                };
                setup.library_rooms_max()
            })
        };
        assert_eq!(of(None, None), [Limits::default().rooms_max; 2]);
        assert_eq!(of(None, Some(5)), [5; 2]);
        assert_eq!(of(Some(10), Some(5)), [12, 24]);
        assert_eq!(of(Some(10), Some(usize::MAX)), [usize::MAX; 2]);
    }
}
