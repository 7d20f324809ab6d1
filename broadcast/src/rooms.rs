//! Maps the rooms of users to the rooms of the library.
//!
//! With `--history 0`, "everyone" is the library's broadcast group, at the same cost per message. With a history,
//! "everyone" is a room too, since only rooms have a history. The library keeps each message once, as it was sent, and
//! renders it as JSON with its id for those clients that resume from ids. Announcements are never kept, so they then have
//! library rooms of their own, one for each form.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

#[cfg(feature = "cluster")]
use humphrey_ws::HistoryGap;
use humphrey_ws::{
    AsyncSender, AsyncWebsocketApp, HistoryId, HistoryLimits, KeptMessage, Limits, Message, Room,
    SendErrorReason,
};

#[cfg(feature = "cluster")]
use crate::json::ReplayEnd;
use crate::json::{Envelope, ms_since_1970, now_ms};
use crate::room_name::RoomName;
use crate::sources::Sources;

/// History of the messages to everyone, and of the room of the input, in bytes of payload.
const INPUT_HISTORY_BYTES_MAX: usize = 1 << 20;

/// History of another room, in bytes of payload. There may be many of them.
const HISTORY_BYTES_MAX: usize = 256 << 10;

/// Default of `--max-rooms` with `--history`.
const HISTORY_ROOMS_MAX: usize = 1_000;

/// The form in which a client gets its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageForm {
    Plain,
    Json,
}

/// The prefixes of the library's names of rooms. Together with a name of [`crate::room_name::NAME_BYTES_MAX`] bytes each
/// fits the library's limit.
const PREFIX: &str = "plain/";

/// The prefix of a room for announcements, which are not kept, to clients of one form.
fn announcement_prefix(form: MessageForm) -> &'static str {
    match form {
        MessageForm::Plain => "new/plain/",
        MessageForm::Json => "new/json/",
    }
}

/// The library room of the lines of all sources ([`Sources`]).
const MERGED: &str = "merged";

/// The user's name of a library room; empty for everyone.
fn name_of(library_name: &str) -> &str {
    library_name.strip_prefix(PREFIX).unwrap_or(library_name)
}

/// The user's name of a library room. `None` for those that have no such name: everyone, and the rooms for announcements and
/// for the lines of all sources.
pub(crate) fn name_for_users(library_name: &str) -> Option<&str> {
    let name = library_name.strip_prefix(PREFIX)?;
    (name != RoomName::EVERYONE).then_some(name)
}

/// Renders a kept message as JSON.
fn render(kept: &KeptMessage<'_>, sources: Option<&Sources>) -> Message {
    let (room, message) = match sources {
        Some(sources) if kept.room() == MERGED => sources.untagged(kept.message()),
        _ => (name_of(kept.room()).into(), Cow::Borrowed(kept.message())),
    };
    let envelope = Envelope {
        kind: "message",
        room: &room,
        id: Some(kept.id()),
        at_ms: ms_since_1970(kept.sent_at()),
        message: &message,
    };
    envelope.render(Limits::default().message_bytes_max)
}

/// Tells clients of JSON that messages are missing. It names the position in one room only, since its recipients are in
/// different other rooms.
#[cfg(feature = "cluster")]
fn render_gap(gap: &HistoryGap<'_>) -> Message {
    let position = Some(gap.position());
    let gap = ReplayEnd {
        server_id: CLUSTER_ID,
        is_complete: false,
        last_ids: match name_of(gap.room()) {
            RoomName::EVERYONE => [position, None],
            _ => [None, position],
        },
    };
    gap.render()
}

/// Identifies the server of clients of a cluster. It is the same on all nodes, since a client that reconnects to another
/// one has missed nothing.
const CLUSTER_ID: &str = "cluster";

/// Room settings from the command line.
#[derive(Debug, Clone)]
pub(crate) struct RoomSettings {
    /// Number of messages kept for each room (`--history`).
    pub(crate) history: Option<usize>,
    /// `--max-rooms`, if given.
    pub(crate) rooms_max: Option<usize>,
    /// Whether new clients are announced.
    pub(crate) announces_clients: bool,
    /// Whether the program is one node of several.
    pub(crate) is_clustered: bool,
    /// The sources that have rooms of their own, if there are any.
    pub(crate) sources: Option<Sources>,
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
    pub(crate) fn library_rooms_max(&self) -> usize {
        match self.history {
            None => {
                let rooms = self.rooms_max.unwrap_or(Limits::default().rooms_max);
                rooms.saturating_add(usize::from(self.sources.is_some()))
            }
            // One library room, plus one for announcements in each form. The library does not count the room of everyone,
            // which is never evicted, but those for announcements to everyone.
            Some(_) => {
                let rooms = self.rooms_max.unwrap_or(HISTORY_ROOMS_MAX);
                let announcements = if self.announces_clients { 2 } else { 0 };
                rooms
                    .saturating_mul(1 + announcements)
                    .saturating_add(announcements)
            }
        }
    }

    /// Configures the histories of an app, and the form of their messages for clients of JSON. The rooms of "everyone",
    /// of standard input and of followed files have patterns of their own, which protects them from eviction by other
    /// rooms.
    pub(crate) fn apply<State, StreamState>(
        &self,
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
        let limits = |bytes_max| HistoryLimits::messages(messages).bytes(bytes_max);
        app = app.with_history(MERGED, limits(INPUT_HISTORY_BYTES_MAX));
        let sources = self.sources.as_ref().map(Sources::listed);
        for name in [&RoomName::everyone(), input]
            .into_iter()
            .chain(sources.iter().flatten())
        {
            let name = format!("{PREFIX}{}", name.as_str());
            app = app.with_history(&name, limits(INPUT_HISTORY_BYTES_MAX));
        }
        app = app.with_history(&format!("{PREFIX}*"), limits(HISTORY_BYTES_MAX));
        #[cfg(feature = "cluster")]
        {
            app = app.with_gap_handler(|gap| Some(render_gap(gap)));
        }
        let sources = self.sources.clone();
        app.with_renderer(move |kept| render(kept, sources.as_ref()))
    }
}

/// Creates and queries rooms. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Rooms {
    sender: AsyncSender,
    has_history: bool,
    is_clustered: bool,
    sources: Option<Sources>,
    server_id: Arc<str>,
}

impl Rooms {
    pub(crate) fn new(sender: AsyncSender, settings: &RoomSettings) -> Self {
        let server_id = match settings.is_clustered {
            true => CLUSTER_ID.to_owned(),
            // Each `RandomState` has random keys.
            false => format!("{:x}", RandomState::new().hash_one(())),
        };
        Self {
            sender,
            has_history: settings.history.is_some(),
            is_clustered: settings.is_clustered,
            sources: settings.sources.clone(),
            server_id: server_id.into(),
        }
    }

    /// Runs code that sends several messages at once ([`AsyncSender::cork`]).
    pub(crate) fn cork<R>(&self, code: impl FnOnce() -> R) -> R {
        self.sender.cork(code)
    }

    /// Whether rooms keep a history, and messages have ids.
    pub(crate) fn has_history(&self) -> bool {
        self.has_history
    }

    /// Whether the program is one node of several.
    pub(crate) fn is_clustered(&self) -> bool {
        self.is_clustered
    }

    /// Identifies the server that clients resume on: a random identifier of this run of the program, or of a cluster.
    pub(crate) fn server_id(&self) -> &str {
        &self.server_id
    }

    /// The library's name of a room; `None` for the library's broadcast group.
    pub(crate) fn library_name(&self, name: &RoomName) -> Option<String> {
        (self.has_history || !name.is_everyone()).then(|| format!("{PREFIX}{}", name.as_str()))
    }

    /// The library's name of the room whose messages a client gets besides those to everyone: its own room, or without one
    /// the merged room, if there is one.
    pub(crate) fn second_library_name(&self, name: &RoomName) -> Option<String> {
        match name.is_everyone() {
            true => self.sources.is_some().then(|| MERGED.to_owned()),
            false => self.library_name(name),
        }
    }

    /// The sources that have rooms of their own.
    pub(crate) fn sources(&self) -> Option<&Sources> {
        self.sources.as_ref()
    }

    /// The library's name of the room for announcements to clients of one form; `None` without a history, where they are
    /// messages like others.
    pub(crate) fn announcement_name(&self, name: &RoomName, form: MessageForm) -> Option<String> {
        self.has_history
            .then(|| format!("{}{}", announcement_prefix(form), name.as_str()))
    }

    fn room(&self, name: &RoomName) -> Room {
        match self.library_name(name) {
            Some(name) => self.sender.room(&name),
            None => self.sender.everyone(),
        }
    }

    /// The channel that sends messages to a room.
    pub(crate) fn channel(&self, name: &RoomName) -> Channel {
        Channel(self.room(name))
    }

    /// The channel that sends the lines of a source, which is listed from now on.
    pub(crate) fn source_channel(&self, sources: &Sources, name: &RoomName) -> SourceChannel {
        sources.add(name);
        SourceChannel {
            name: name.clone(),
            room: self.room(name),
            merged: self.sender.room(MERGED),
            sources: sources.clone(),
        }
    }

    /// Sends a message that is not kept to a room.
    pub(crate) fn announce(&self, name: &RoomName, text: String) {
        let message = Message::new(text);
        for form in [MessageForm::Plain, MessageForm::Json] {
            let Some(to) = self.announcement_name(name, form) else {
                self.room(name).broadcast(message);
                return;
            };
            let of_form = match form {
                MessageForm::Plain => message.clone(),
                MessageForm::Json => {
                    let envelope = Envelope {
                        kind: "announcement",
                        room: name.as_str(),
                        id: None,
                        at_ms: now_ms(),
                        message: &message,
                    };
                    envelope.render(Limits::default().message_bytes_max)
                }
            };
            self.sender.room(&to).broadcast(of_form);
        }
    }

    /// Counts the clients that get the messages of a room, on all nodes. Waits for the other nodes, as
    /// `Room::everywhere` does.
    pub(crate) fn members(&self, name: &RoomName) -> Members {
        Members::of(&self.room(name), self.is_clustered)
    }

    /// The id of the last message to a library room.
    pub(crate) fn last_id(&self, library_name: &str) -> Option<HistoryId> {
        self.sender.room(library_name).last_id()
    }

    /// The kept messages of a library room after an id, as JSON. The flag is false if messages after the id are no longer
    /// kept: then these are all that are.
    pub(crate) fn kept_after(
        &self,
        library_name: &str,
        after: Option<HistoryId>,
    ) -> (bool, Vec<(HistoryId, Message)>) {
        let room = self.sender.room(library_name);
        match room.rendered_since(after) {
            Ok(kept) => (true, kept),
            Err(_) => (false, room.rendered_since(None).unwrap_or_default()),
        }
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

/// Sends messages to a room, or to everyone.
pub(crate) struct Channel(Room);

impl Channel {
    /// Broadcasts a message. Blocks as [`Room::broadcast`] does. The library counts messages that the room can't keep.
    pub(crate) fn publish(&self, message: Message) {
        self.0.broadcast(message);
    }

    /// Broadcasts a message, and waits until it is kept as configured. The error says why it is not.
    pub(crate) fn publish_confirmed(&self, message: Message) -> Result<(), SendErrorReason> {
        match self.0.broadcast_confirmed(message) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.reason),
        }
    }
}

/// Sends the lines of a source to its room, and to the merged room.
pub(crate) struct SourceChannel {
    name: RoomName,
    room: Room,
    merged: Room,
    sources: Sources,
}

impl SourceChannel {
    /// Sends a line. Blocks as [`Room::broadcast`] does.
    pub(crate) fn publish(&self, line: &[u8]) {
        self.room.broadcast(Message::new(line));
        self.merged.broadcast(self.sources.tagged(&self.name, line));
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
            sources: None,
        };
        Rooms::new(app.sender(), &settings)
    }

    #[test]
    fn channel_without_history_uses_the_library_broadcast() {
        let channel = rooms(None).channel(&RoomName::everyone());
        assert_eq!(channel.0.name(), None);
    }

    #[test]
    fn longest_room_name_fits_the_library_limit() {
        let name: RoomName = "x".repeat(NAME_BYTES_MAX).parse().unwrap();
        let rooms = rooms(Some(1));
        assert!(rooms.library_name(&name).unwrap().len() <= 255);
        for form in [MessageForm::Plain, MessageForm::Json] {
            let name = rooms.announcement_name(&name, form);
            assert!(name.unwrap().len() <= 255);
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
                    sources: None,
                };
                settings.library_rooms_max()
            })
        };
        assert_eq!(of(None, None), [Limits::default().rooms_max; 2]);
        assert_eq!(of(None, Some(5)), [5; 2]);
        assert_eq!(of(Some(10), Some(5)), [5, 17]);
        assert_eq!(of(Some(10), Some(usize::MAX)), [usize::MAX; 2]);
    }
}
