//! A room, as the program sees it.

use std::sync::Arc;

use super::publish::{AppShared, Blocking, Recipients};
use crate::engine::ConnectionId;
use crate::error::{JoinError, JoinErrorReason, SendError, SendErrorReason};
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::Message;

/// A named set of connections, which can be sent something together.
///
/// Any connection can be in any number of rooms, within [`Limits`](crate::Limits), and leaves all of them when it ends.
/// A room needs no making and no deleting: it is there while somebody is in it, or while it keeps messages
/// ([`with_history`](crate::AsyncWebsocketApp::with_history)), and costs nothing else. Names are any text of up to 255
/// bytes. Everyone who is connected is a room, too, without a name:
/// [`AsyncSender::everyone`](crate::AsyncSender::everyone).
///
/// What one thread does with rooms and connections happens in that order: who joins before a broadcast gets it, who
/// leaves before it does not, and broadcasts to several rooms arrive in the order they were made at a client that is in
/// all of them. A broadcast costs in proportion to the room's members, not to all who are connected.
///
/// Taken with [`AsyncStream::room`](crate::AsyncStream::room) or [`AsyncSender::room`](crate::AsyncSender::room). Clones
/// are cheap.
///
/// ```
/// use humphrey_ws::AsyncWebsocketApp;
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_connect_handler(|stream, _| stream.join(stream.path()))
///     .with_message_handler(|stream, message, _| {
///         // To everyone on the same path but the sender.
///         stream.room(stream.path()).broadcast_except(stream.id(), message);
///     });
/// let news = app.sender().room("/news");
/// news.broadcast("Nobody is here yet, which is no error.");
/// assert!(news.is_empty());
/// ```
#[derive(Clone)]
pub struct Room {
    shared: Arc<AppShared>,
    /// None: everyone.
    name: Option<Arc<str>>,
}

impl Room {
    pub(super) fn named(shared: Arc<AppShared>, name: &str) -> Self {
        Self {
            shared,
            name: Some(name.into()),
        }
    }

    pub(super) fn of(shared: Arc<AppShared>, name: Arc<str>) -> Self {
        Self {
            shared,
            name: Some(name),
        }
    }

    pub(super) fn everyone(shared: Arc<AppShared>) -> Self {
        Self { shared, name: None }
    }

    /// The room's name; `None` for everyone.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn recipients(&self) -> Recipients<'_> {
        Recipients::of_room(self.name.as_deref(), None)
    }

    fn recipients_except(&self, id: ConnectionId) -> Recipients<'_> {
        Recipients::of_room(self.name.as_deref(), Some(id))
    }

    /// Has a connection join the room. Does nothing if it is in it already, has gone, or may not join for one of the
    /// reasons that [`try_join`](Self::try_join) tells; then a warning is logged.
    ///
    /// Waits only while the engine's own mailbox is full.
    pub fn join(&self, id: ConnectionId) {
        self.shared.warn_of(self.try_join(id));
    }

    /// Has a connection join the room. That it is in it already is no error. Everyone is always in the room of everyone.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::JoinErrorReason::Closed) if the connection has gone, or the app does not run;
    /// [`ConnectionRooms`](crate::JoinErrorReason::ConnectionRooms) or [`Rooms`](crate::JoinErrorReason::Rooms) if a
    /// limit is reached; [`NameTooLong`](crate::JoinErrorReason::NameTooLong).
    pub fn try_join(&self, id: ConnectionId) -> Result<(), JoinError> {
        let session = self.shared.directory.find_id(id);
        self.shared.join(self.name.as_deref(), session.as_deref())
    }

    /// Has a connection join the room, and replays to it what the room keeps of what came after a message; with `None`, all
    /// that the room keeps. Returns how many messages are replayed. See
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since), which does so for a handler's own connection.
    ///
    /// The room of everyone keeps nothing and replays nothing.
    ///
    /// # Errors
    ///
    /// [`HistoryGone`](crate::JoinErrorReason::HistoryGone) if something that came after that message is kept no longer;
    /// then the room is not joined. Otherwise as [`try_join`](Self::try_join).
    pub fn join_since(
        &self,
        id: ConnectionId,
        since: Option<HistoryId>,
    ) -> Result<usize, JoinError> {
        let refused = |reason| JoinError {
            room: self.name.as_deref().unwrap_or_default().to_owned(),
            reason,
        };
        let Some(session) = self.shared.directory.find_id(id) else {
            return Err(refused(JoinErrorReason::Closed));
        };
        match (&self.name, since) {
            (Some(name), _) => self.shared.join_since(name, &session, since),
            (None, Some(_)) => Err(refused(JoinErrorReason::HistoryGone)),
            (None, None) => Ok(0),
        }
    }

    /// Has a connection leave the room, behind what the room was sent before. Does nothing if it is not in it, nor in the
    /// room of everyone, which is left by disconnecting.
    ///
    /// Waits only while the engine's own mailbox is full.
    pub fn leave(&self, id: ConnectionId) {
        if let (Some(name), Some(session)) = (&self.name, self.shared.directory.find_id(id)) {
            self.shared.leave(name, &session);
        }
    }

    /// Sends a message to all who are in the room, and to its [event streams](Self::event_streams).
    ///
    /// Waits while a mailbox of the engine is full: a producer can't outrun it. Returns at once, and counts, if nobody
    /// is in the room, and before and after the app runs.
    pub fn broadcast(&self, message: impl Into<Message>) {
        let _ = self
            .shared
            .publish(self.recipients(), message.into(), Blocking::Wait);
    }

    /// Sends a message to all who are in the room, or hands it back: then nobody gets it.
    ///
    /// That nobody is in the room is no error.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::SendErrorReason::Full) if a mailbox of the engine is full;
    /// [`Closed`](crate::SendErrorReason::Closed) before and after the app runs;
    /// [`TooLarge`](crate::SendErrorReason::TooLarge) if the message is longer than the limit.
    pub fn try_broadcast(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.shared
            .publish(self.recipients(), message.into(), Blocking::Try)
    }

    /// Sends a message to all who are in the room but one, such as whoever it came from; otherwise as
    /// [`broadcast`](Self::broadcast).
    pub fn broadcast_except(&self, id: ConnectionId, message: impl Into<Message>) {
        let _ = self
            .shared
            .publish(self.recipients_except(id), message.into(), Blocking::Wait);
    }

    /// Sends a message to all members of the room but one, or hands it back.
    ///
    /// # Errors
    ///
    /// As [`try_broadcast`](Self::try_broadcast).
    pub fn try_broadcast_except(
        &self,
        id: ConnectionId,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        self.shared
            .publish(self.recipients_except(id), message.into(), Blocking::Try)
    }

    /// Sends a message that depends on the id that it gets in the room's history, such as one that tells its client what
    /// to resume from; otherwise as [`broadcast`](Self::broadcast). Returns the id, if it was kept.
    ///
    /// The closure gets no id where the room keeps no history, nor does everyone. It is called again if another message gets
    /// the id first; from then on, producers that wait hold back for it. So it must do nothing but make the message: others
    /// that broadcast to the room may wait for it, for up to five seconds.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Message};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_history("news", HistoryLimits::messages(50).bytes(64 * 1024));
    /// let news = app.sender().room("news");
    /// news.broadcast_with(|id| match id {
    ///     Some(id) => Message::new(format!("{id}\nIt rains.")),
    ///     None => Message::new("It rains."),
    /// });
    /// ```
    pub fn broadcast_with(
        &self,
        message: impl Fn(Option<HistoryId>) -> Message,
    ) -> Option<HistoryId> {
        self.publish_with(message, Blocking::Wait).ok()?
    }

    /// Sends a message that depends on the id that it gets in the room's history, unless a mailbox of the engine is full.
    /// Returns the id, or `None` if the room keeps no history. Never waits for the engine; see
    /// [`broadcast_with`](Self::broadcast_with) for the closure.
    ///
    /// # Errors
    ///
    /// The reasons of [`try_broadcast`](Self::try_broadcast), and [`Rooms`](SendErrorReason::Rooms) if no further room can
    /// keep a history. Then nobody gets the message.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, SendErrorReason};
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// let news = app.sender().room("news");
    /// let refused = news.try_broadcast_with(|id| format!("{id:?}").into()).unwrap_err();
    /// assert_eq!(refused, SendErrorReason::Closed, "the app does not run yet");
    /// ```
    pub fn try_broadcast_with(
        &self,
        message: impl Fn(Option<HistoryId>) -> Message,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        self.publish_with(message, Blocking::Try)
    }

    fn publish_with(
        &self,
        message: impl Fn(Option<HistoryId>) -> Message,
        blocking: Blocking,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        match &self.name {
            Some(name) => self.shared.broadcast_with(name, message, blocking),
            None => self
                .shared
                .publish(self.recipients(), message(None), blocking)
                .map(|()| None)
                .map_err(|error| error.reason),
        }
    }

    /// What the room keeps of what came after a message, oldest first; with `None` all that it keeps, which is nothing
    /// unless [`with_history`](crate::AsyncWebsocketApp::with_history) says otherwise.
    ///
    /// To have a connection sent that, and then what follows, use [`AsyncStream::join_since`](crate::AsyncStream::join_since).
    ///
    /// # Errors
    ///
    /// If something that came after that message is kept no longer, or the id is none of this room's: as after a restart.
    pub fn since(&self, id: Option<HistoryId>) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        self.shared.since(self.name.as_deref(), id)
    }

    /// The id of the last message that the room was to keep, if there was one.
    pub fn last_id(&self) -> Option<HistoryId> {
        self.shared.last_id(self.name.as_deref()?)
    }

    /// How many connections are in the room. [Event streams](Self::event_streams) of it are not among them.
    pub fn len(&self) -> usize {
        match &self.name {
            Some(name) => self
                .shared
                .rooms
                .find(name)
                .map_or(0, |room| room.members.len()),
            None => self.shared.connections(),
        }
    }

    /// How many clients of event streams get what the room is sent
    /// ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)).
    pub fn event_streams(&self) -> usize {
        match &self.name {
            Some(name) => {
                let room = self.shared.rooms.find(name);
                room.map_or(0, |room| room.members.streams_len())
            }
            None => self.shared.everyone_streams(),
        }
    }

    /// Whether nobody is in the room.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a connection is in the room.
    pub fn contains(&self, id: ConnectionId) -> bool {
        match &self.name {
            Some(name) => {
                let room = self.shared.rooms.find(name);
                room.is_some_and(|room| room.members.contains(id))
            }
            None => self.shared.directory.find_id(id).is_some(),
        }
    }

    /// Who is in the room, in no order. While others join and leave, this is what each shard had at some moment of the
    /// call.
    pub fn members(&self) -> Vec<ConnectionId> {
        match &self.name {
            Some(name) => {
                let room = self.shared.rooms.find(name);
                room.map_or_else(Vec::new, |room| room.members.members())
            }
            None => self.shared.directory.ids(),
        }
    }
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room")
            .field("name", &self.name)
            .field("len", &self.len())
            .finish()
    }
}
