//! Maps the rooms of users to the rooms of the library.
//!
//! Without `--history`, "everyone" is the library's broadcast group, at the same cost per message. With `--history`,
//! "everyone" is a room too, since only rooms have a history, and each user's room consists of two library rooms: one
//! for clients that get plain messages, one for clients that get JSON with ids to resume from. Announcements are never
//! kept, so they then have library rooms of their own.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, HistoryId, HistoryLimits, Limits, Message, Room,
};

use crate::json::{Envelope, now_ms};
use crate::room_name::RoomName;

/// History of a room, in bytes of payload.
pub(crate) const HISTORY_BYTES_MAX: usize = 256 << 10;

/// History of a JSON room: an envelope is longer than its payload.
const JSON_HISTORY_BYTES_MAX: usize = 2 * HISTORY_BYTES_MAX;

/// Default of `--max-rooms` with `--history`.
const HISTORY_ROOMS_MAX: usize = 1_000;

/// The form in which a client gets its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageForm {
    Plain,
    Json,
}

/// The prefix of the library's name of a room. Together with a name of [`crate::room_name::NAME_BYTES_MAX`] bytes it
/// fits the library's limit.
fn prefix(form: MessageForm, is_announcement: bool) -> &'static str {
    match (form, is_announcement) {
        (MessageForm::Plain, false) => "plain/",
        (MessageForm::Json, false) => "json/",
        (MessageForm::Plain, true) => "new/plain/",
        (MessageForm::Json, true) => "new/json/",
    }
}

/// Room settings from the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoomSettings {
    /// Number of messages kept for each room (`--history`).
    pub(crate) history: Option<usize>,
    /// `--max-rooms`, if given.
    pub(crate) rooms_max: Option<usize>,
    /// Whether new clients are announced.
    pub(crate) announces_clients: bool,
    /// Whether the program is one node of several.
    pub(crate) is_clustered: bool,
}

/// The number of clients that get the messages of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) count: u64,
    /// The number of nodes that were counted, and whether these are all. `None` if the program is alone.
    pub(crate) nodes: Option<(usize, bool)>,
}

impl Members {
    /// The fields of a JSON object that describe the nodes.
    pub(crate) fn nodes_json(self) -> String {
        self.nodes.map_or_else(String::new, |(nodes, is_complete)| {
            format!(", \"nodes\": {nodes}, \"complete\": {is_complete}")
        })
    }

    fn of(room: &Room, is_clustered: bool) -> Self {
        #[cfg(feature = "cluster")]
        if is_clustered {
            let everywhere = room.everywhere();
            return Self {
                count: everywhere.members,
                nodes: Some((everywhere.nodes, everywhere.is_complete)),
            };
        }
        #[cfg(not(feature = "cluster"))]
        let _ = is_clustered;
        Self {
            count: room.len() as u64,
            nodes: None,
        }
    }
}

impl RoomSettings {
    /// The limit on library rooms that allows `rooms_max` rooms of users.
    pub(crate) fn library_rooms_max(self) -> usize {
        match self.history {
            None => self.rooms_max.unwrap_or(Limits::default().rooms_max),
            // One library room for each form, plus as many for announcements; and the same for everyone.
            Some(_) => {
                let rooms = self.rooms_max.unwrap_or(HISTORY_ROOMS_MAX);
                let each = if self.announces_clients { 4 } else { 2 };
                rooms.saturating_add(1).saturating_mul(each)
            }
        }
    }

    /// Configures the histories of an app. The rooms of "everyone" and of standard input have patterns of their own,
    /// which protects them from eviction by other rooms.
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
                .with_history(
                    &format!("plain/{name}"),
                    HistoryLimits::messages(messages).bytes(HISTORY_BYTES_MAX),
                )
                .with_history(
                    &format!("json/{name}"),
                    HistoryLimits::messages(messages).bytes(JSON_HISTORY_BYTES_MAX),
                );
        }
        app
    }
}

/// Creates and queries rooms. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Rooms {
    sender: AsyncSender,
    has_history: bool,
    is_clustered: bool,
    server_id: Arc<str>,
}

impl Rooms {
    pub(crate) fn new(sender: AsyncSender, settings: RoomSettings) -> Self {
        // Each `RandomState` has random keys.
        let server_id = format!("{:x}", RandomState::new().hash_one(()));
        Self {
            sender,
            has_history: settings.history.is_some(),
            is_clustered: settings.is_clustered,
            server_id: server_id.into(),
        }
    }

    /// Whether rooms keep a history, and messages have ids.
    pub(crate) fn has_history(&self) -> bool {
        self.has_history
    }

    /// A random identifier of this run of the program.
    pub(crate) fn server_id(&self) -> &str {
        &self.server_id
    }

    /// The library's name of a room, for clients of one form; `None` for the library's broadcast group.
    pub(crate) fn library_name(
        &self,
        name: &RoomName,
        form: MessageForm,
        is_announcement: bool,
    ) -> Option<String> {
        if !self.has_history {
            let prefix = prefix(MessageForm::Plain, false);
            return (!name.is_everyone()).then(|| format!("{prefix}{}", name.as_str()));
        }
        Some(format!(
            "{}{}",
            prefix(form, is_announcement),
            name.as_str()
        ))
    }

    fn room(&self, name: &RoomName, form: MessageForm, is_announcement: bool) -> Room {
        match self.library_name(name, form, is_announcement) {
            Some(name) => self.sender.room(&name),
            None => self.sender.everyone(),
        }
    }

    /// The channel that sends messages to a room.
    pub(crate) fn channel(&self, name: &RoomName) -> Channel {
        self.channel_of(name, false)
    }

    fn channel_of(&self, name: &RoomName, is_announcement: bool) -> Channel {
        let json = self
            .has_history
            .then(|| self.room(name, MessageForm::Json, is_announcement));
        Channel {
            plain: self.room(name, MessageForm::Plain, is_announcement),
            json,
            name: name.clone(),
        }
    }

    /// Sends a message that is not kept to a room.
    pub(crate) fn announce(&self, name: &RoomName, text: String) {
        let _ = self.channel_of(name, true).publish(Message::new(text));
    }

    /// Counts the clients that get the messages of a room, on all nodes. Waits for the other nodes, as
    /// `Room::everywhere` does.
    pub(crate) fn members(&self, name: &RoomName) -> Members {
        if name.is_everyone() {
            return Members::of(&self.sender.everyone(), self.is_clustered);
        }
        let channel = self.channel(name);
        let plain = Members::of(&channel.plain, self.is_clustered);
        let json = channel.json.as_ref().map_or(0, Room::len);
        Members {
            count: plain.count + json as u64,
            ..plain
        }
    }

    /// The id of the last message to a room, for clients of one form.
    pub(crate) fn last_id(&self, name: &RoomName, form: MessageForm) -> Option<HistoryId> {
        self.room(name, form, false).last_id()
    }

    /// Whether the history of a library room holds every message that was ever sent to it.
    pub(crate) fn has_full_history(&self, library_name: &str) -> bool {
        let room = self.sender.room(library_name);
        let kept = room.since(None).unwrap_or_default();
        match kept.first() {
            Some((first, _)) => first.sequence() == 1,
            None => room.last_id().is_none(),
        }
    }
}

/// Sends messages to a room, in every form that has clients.
pub(crate) struct Channel {
    name: RoomName,
    plain: Room,
    /// Only with a history.
    json: Option<Room>,
}

impl Channel {
    /// Broadcasts a message to a room, or to everyone. Blocks as [`Room::broadcast`] does. Returns whether the message
    /// was kept as configured: it is not if there are too many rooms, or during shutdown.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room_name::NAME_BYTES_MAX;

    fn rooms(history: Option<usize>) -> Rooms {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
        let settings = RoomSettings {
            history,
            rooms_max: None,
            announces_clients: false,
            is_clustered: false,
        };
        Rooms::new(app.sender(), settings)
    }

    #[test]
    fn channel_without_history_uses_the_library_broadcast() {
        let channel = rooms(None).channel(&RoomName::everyone());
        assert_eq!(channel.plain.name(), None);
        assert!(channel.json.is_none());
    }

    #[test]
    fn longest_room_name_fits_the_library_limit() {
        let name: RoomName = "x".repeat(NAME_BYTES_MAX).parse().unwrap();
        for form in [MessageForm::Plain, MessageForm::Json] {
            for is_announcement in [false, true] {
                let name = rooms(Some(1)).library_name(&name, form, is_announcement);
                assert!(name.unwrap().len() <= 255);
            }
        }
    }

    #[test]
    fn max_rooms_counts_rooms_of_users() {
        let of = |history, rooms_max| {
            [false, true].map(|announces_clients| {
                let settings = RoomSettings {
                    history,
                    rooms_max,
                    announces_clients,
                    is_clustered: false,
                };
                settings.library_rooms_max()
            })
        };
        assert_eq!(of(None, None), [Limits::default().rooms_max; 2]);
        assert_eq!(of(None, Some(5)), [5; 2]);
        assert_eq!(of(Some(10), Some(5)), [12, 24]);
        assert_eq!(of(Some(10), Some(usize::MAX)), [usize::MAX; 2]);
    }
}
