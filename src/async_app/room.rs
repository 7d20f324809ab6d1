//! Rooms as the program sees them.

use std::sync::Arc;

use super::connection_id::ConnectionId;
use super::presence::RoomPresence;
use super::publish::{AppShared, Blocking, Recipients};
#[cfg(feature = "cluster")]
use super::rooms::NAME_BYTES_MAX;
#[cfg(feature = "cluster")]
use crate::cluster::DirectAction;
use crate::error::{JoinError, SendError, SendErrorReason};
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::Message;

/// A named set of connections, to which messages are broadcast together.
///
/// A connection can be in any number of rooms, within [`Limits`](crate::Limits), and leaves all of them when it ends.
/// Rooms need not be created or deleted: a room exists while it has members or keeps messages
/// ([`with_history`](crate::AsyncWebsocketApp::with_history), [`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms)). A name is any text of up to 255 bytes. All connected
/// clients also form a room, which has no name: [`AsyncSender::everyone`](crate::AsyncSender::everyone).
///
/// The operations of one thread on rooms and connections take effect in the order in which they were made: a client
/// that joins before a broadcast receives it, one that leaves before it does not, and a client that is in several rooms
/// receives their broadcasts in that order. The cost of a broadcast is proportional to the room's members, not to all
/// connections.
///
/// [`AsyncStream::room`](crate::AsyncStream::room) and [`AsyncSender::room`](crate::AsyncSender::room) return one.
/// Clones are cheap.
///
/// ```
/// use humphrey_ws::AsyncWebsocketApp;
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_connect_handler(|stream, _| stream.join(stream.path()))
///     .with_message_handler(|stream, message, _| {
///         // To everyone on the same path except the sender.
///         stream.room(stream.path()).broadcast_except(stream.id(), message);
///     });
/// let news = app.sender().room("/news");
/// news.broadcast("The room is empty, which is no error.");
/// assert!(news.is_empty());
/// ```
#[derive(Clone)]
pub struct Room {
    shared: Arc<AppShared>,
    /// `None` for the room of all connected clients.
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

    /// Returns the room's name, or `None` for the room of all connected clients.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn recipients(&self) -> Recipients<'_> {
        Recipients::of_room(self.name.as_deref(), None)
    }

    fn recipients_except(&self, id: ConnectionId) -> Recipients<'_> {
        Recipients::of_room(self.name.as_deref(), Some(id))
    }

    /// Makes a connection join the room. Does nothing if the connection is in the room already or has gone. A keyed room first sends it
    /// the newest message of each key. If it may not join for a reason that [`try_join`](Self::try_join) returns, a warning is logged.
    ///
    /// Waits only while a mailbox of the engine is full.
    pub fn join(&self, id: ConnectionId) {
        self.shared.warn_of(self.try_join(id));
    }

    /// Makes a connection join the room, or returns why it can't. It is not an error if the connection is in the room
    /// already. Every connection is always in the room of all clients. A connection of another node of a cluster joins
    /// there, some time later; why it can't is logged there.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::JoinErrorReason::Closed) if the connection has gone, or the app does not run;
    /// [`ConnectionRooms`](crate::JoinErrorReason::ConnectionRooms) or [`Rooms`](crate::JoinErrorReason::Rooms) if a
    /// limit is reached; [`NameTooLong`](crate::JoinErrorReason::NameTooLong).
    pub fn try_join(&self, id: ConnectionId) -> Result<(), JoinError> {
        #[cfg(feature = "cluster")]
        if let (Some(name), Some(cluster)) = (&self.name, self.shared.elsewhere(id)) {
            return self.shared.join_elsewhere(cluster, id, name);
        }
        let session = self.shared.find(id);
        self.shared.join(self.name.as_deref(), session.as_ref())
    }

    /// Makes a connection join the room, and first replays to it the kept messages that came after this id; with
    /// `None`, all kept messages. Returns the number of replayed messages.
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since) does so for a handler's own connection.
    ///
    /// The room of all clients keeps no history and replays nothing.
    ///
    /// # Errors
    ///
    /// [`HistoryGone`](crate::JoinErrorReason::HistoryGone) if a message after that id is no longer kept; the room is
    /// not joined then. Otherwise the errors of [`try_join`](Self::try_join).
    pub fn join_since(
        &self,
        id: ConnectionId,
        since: Option<HistoryId>,
    ) -> Result<usize, JoinError> {
        let session = self.shared.find(id);
        self.shared
            .join_since(self.name.as_deref(), session.as_ref(), since)
    }

    /// Makes a connection leave the room, after the messages that the room was sent before. Does nothing if the
    /// connection is not in the room. The room of all clients can be left only by disconnecting. A connection of another
    /// node of a cluster leaves some time later.
    ///
    /// Waits only while a mailbox of the engine is full.
    pub fn leave(&self, id: ConnectionId) {
        #[cfg(feature = "cluster")]
        if let (Some(name), Some(cluster)) = (&self.name, self.shared.elsewhere(id)) {
            if name.len() > NAME_BYTES_MAX {
                return;
            }
            let action = DirectAction::Leave { room: name };
            // The connection has left with its node, or the message has been counted.
            let _ = self.shared.act_elsewhere(cluster, id, action);
            return;
        }
        if let (Some(name), Some(session)) = (&self.name, self.shared.find(id)) {
            self.shared.leave(name, &session);
        }
    }

    /// Sends a message to all members of the room, and to its [event streams](Self::event_streams).
    ///
    /// Applies backpressure: it waits while a mailbox of the engine is full. If the room is empty, or the app does not
    /// run, it returns at once and counts the message as dropped.
    pub fn broadcast(&self, message: impl Into<Message>) {
        let _ = self
            .shared
            .publish(self.recipients(), message.into(), Blocking::Wait);
    }

    /// Sends a message to all members of the room, or returns it in the error, in which case no member receives it.
    /// Never waits.
    ///
    /// It is not an error if the room is empty.
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

    /// Sends a message to all members of the room but one, such as the client that it came from, with the backpressure
    /// of [`broadcast`](Self::broadcast).
    pub fn broadcast_except(&self, id: ConnectionId, message: impl Into<Message>) {
        let _ = self
            .shared
            .publish(self.recipients_except(id), message.into(), Blocking::Wait);
    }

    /// Sends a message to all members of the room but one, or returns it in the error. Never waits.
    ///
    /// # Errors
    ///
    /// Those of [`try_broadcast`](Self::try_broadcast).
    pub fn try_broadcast_except(
        &self,
        id: ConnectionId,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        self.shared
            .publish(self.recipients_except(id), message.into(), Blocking::Try)
    }

    /// Sends the newest message of a key to all members of a keyed room
    /// ([`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms)), and to its [event streams](Self::event_streams). The room
    /// keeps it for clients that join later, in place of the key's former message.
    ///
    /// While a message of the key waits for a client that reads slowly, the newer message takes its place, and the older one is not
    /// sent to that client ([`Metrics::conflated`](field@crate::Metrics::conflated)): this is called conflation. So at most one message
    /// of each key waits for a client, always the newest, and a client that reads again gets the current values. The
    /// [slow-consumer policy](crate::SlowConsumer) does not apply to such messages within
    /// [`Limits::keyed_bytes_max`](field@crate::Limits::keyed_bytes_max): a client that reads slowly is not disconnected for them, as
    /// long as it reads enough for [`Limits::write_timeout`](field@crate::Limits::write_timeout).
    ///
    /// A client never receives a message of a key after a newer one. A message that takes the place of another may precede messages
    /// of other keys, and messages without a key, that were sent before it. A message without a key never precedes the messages with a
    /// key that were sent before it: the client has received each of them, or a newer one of its key.
    ///
    /// Applies the backpressure of [`broadcast`](Self::broadcast). A key is any text of up to 255 bytes. If the room is not keyed or can't
    /// keep the message, nobody receives it, a warning is logged, and
    /// [`Dropped::keyed_refused`](field@crate::Dropped::keyed_refused) counts it.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, KeyedLimits};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_address("127.0.0.1:0")
    ///     .with_keyed_rooms("prices", KeyedLimits::keys(1_000))
    ///     .with_connect_handler(|stream, _| stream.join("prices"));
    /// let running = app.start()?;
    /// let prices = running.sender().room("prices");
    /// prices.broadcast_keyed("EURUSD", "EURUSD 1.0832");
    /// prices.broadcast_keyed("USDJPY", "USDJPY 157.21");
    /// prices.broadcast_keyed("EURUSD", "EURUSD 1.0833");
    /// // What a client that joins now receives first.
    /// let newest = prices.keyed_messages();
    /// let newest: Vec<_> = newest.iter().filter_map(|(_, message)| message.text()).collect();
    /// assert_eq!(newest, ["EURUSD 1.0833", "USDJPY 157.21"]);
    /// # running.shutdown(std::time::Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast_keyed(&self, key: &str, message: impl Into<Message>) {
        let sent = self
            .shared
            .broadcast_keyed(self.name(), key, message.into(), Blocking::Wait);
        self.shared.warn_of_refused_key(self.name(), sent);
    }

    /// Sends the newest message of a key to all members of a keyed room, as [`broadcast_keyed`](Self::broadcast_keyed) does, or returns
    /// it in the error, in which case no client receives it. Never waits.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, KeyedLimits, SendErrorReason};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_address("127.0.0.1:0")
    ///     .with_keyed_rooms("prices", KeyedLimits::keys(1));
    /// let running = app.start()?;
    /// let prices = running.sender().room("prices");
    /// assert!(prices.try_broadcast_keyed("EURUSD", "1.0832").is_ok());
    /// let error = prices.try_broadcast_keyed("USDJPY", "157.21").unwrap_err();
    /// assert_eq!(error.reason, SendErrorReason::Keys);
    /// # running.shutdown(std::time::Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`try_broadcast`](Self::try_broadcast); [`NotKeyed`](SendErrorReason::NotKeyed) if the room is not keyed;
    /// [`Keys`](SendErrorReason::Keys) if the key is too long, or the room keeps as much as it may; [`Rooms`](SendErrorReason::Rooms) if
    /// no further room can keep messages.
    pub fn try_broadcast_keyed(
        &self,
        key: &str,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        self.shared
            .broadcast_keyed(self.name(), key, message.into(), Blocking::Try)
    }

    /// Makes a keyed room forget a key and its message, which makes space for another key. Returns whether the room kept one.
    ///
    /// Clients that join later do not receive it. Members are not told, and receive what still waits for them: to tell them, send a
    /// last message of the key before.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, KeyedLimits};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_address("127.0.0.1:0")
    ///     .with_keyed_rooms("fleet", KeyedLimits::keys(100));
    /// let running = app.start()?;
    /// let fleet = running.sender().room("fleet");
    /// fleet.broadcast_keyed("truck 7", "truck 7 is at 47.37, 8.54");
    /// fleet.broadcast_keyed("truck 7", "truck 7 has arrived");
    /// assert!(fleet.remove_key("truck 7"));
    /// assert!(fleet.keyed_messages().is_empty());
    /// # running.shutdown(std::time::Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn remove_key(&self, key: &str) -> bool {
        self.shared.remove_key(self.name(), key)
    }

    /// Returns the newest message of each key that a keyed room keeps, in the order in which the keys were first used. A room that is
    /// not keyed keeps none.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// assert!(app.sender().room("not keyed").keyed_messages().is_empty());
    /// ```
    pub fn keyed_messages(&self) -> Vec<(Arc<str>, Message)> {
        self.shared.keyed_messages(self.name())
    }

    /// Sends a message to all members of the room, with the backpressure of [`broadcast`](Self::broadcast), and returns its id
    /// in the room's history; `None` if the room keeps none.
    ///
    /// In a cluster, it waits until the broker has assigned the id. Then the message is not lost with this node. It waits for
    /// at most about 35 seconds, if the broker can't be reached.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, SendErrorReason};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_history("orders", HistoryLimits::messages(50).bytes(64 * 1024));
    /// let orders = app.sender().room("orders");
    /// let error = orders.broadcast_confirmed("one coffee").unwrap_err();
    /// assert_eq!(error.reason, SendErrorReason::Closed, "the app does not run yet");
    /// ```
    ///
    /// # Errors
    ///
    /// The reasons of [`try_broadcast`](Self::try_broadcast), except that it waits where that is full, and
    /// [`Rooms`](SendErrorReason::Rooms) if no further room can keep a history. In a cluster, `SendErrorReason::Broker`: the
    /// broker has refused the message, or the connection to it was lost and it is not known whether the broker has it. Where
    /// the library must not block, such as in a `tracing` subscriber, it fails with [`Full`](SendErrorReason::Full) rather
    /// than wait.
    pub fn broadcast_confirmed(
        &self,
        message: impl Into<Message>,
    ) -> Result<Option<HistoryId>, SendError> {
        let message = message.into();
        match &self.name {
            Some(name) => self.shared.broadcast_confirmed(name, message),
            None => self
                .shared
                .publish(self.recipients(), message, Blocking::Wait)
                .map(|()| None),
        }
    }

    /// Sends a message that contains its own id in the room's history, so that a client knows where to resume. Applies
    /// the backpressure of [`broadcast`](Self::broadcast). Returns the id, or `None` if the message was not kept.
    ///
    /// If the room keeps no history, as the room of all clients, the closure gets `None`. If another producer takes the
    /// id first, the closure is called again; from then on the room's producers take turns. So the closure must only
    /// create the message: other producers of the room may wait for it, for up to five seconds. In a cluster, it waits for the
    /// broker, at most as long as [`broadcast_confirmed`](Self::broadcast_confirmed), and producers do not take turns: while
    /// others send more than one message to the room in the time of a round trip to the broker, it may never succeed.
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

    /// Sends a message that contains its own id in the room's history, unless a mailbox of the engine is full. Returns
    /// the id, or `None` if the room keeps no history. Never waits for the engine, but in a cluster for the broker's answer; see
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

    /// Returns the kept messages that came after this id, oldest first; with `None`, all kept messages. A room without
    /// a [history](crate::AsyncWebsocketApp::with_history) has none.
    ///
    /// To replay them to a connection that then receives new messages, use
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since).
    ///
    /// # Errors
    ///
    /// If a message after that id is no longer kept, or the id is from another history, for example from before a
    /// restart. Also if a broker server of the cluster can't be reached; with `None` the result is empty then.
    pub fn since(&self, id: Option<HistoryId>) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        self.shared.since(self.name.as_deref(), id)
    }

    /// Returns the kept messages that came after this id, as [`since`](Self::since) does, but in the form that the app's
    /// [renderer](crate::AsyncWebsocketApp::with_renderer) gives them: what clients that are accepted with
    /// [`Accept::rendered`](crate::Accept::rendered) receive. A message that the renderer fails on is left out. Without a
    /// renderer, or while the app does not run, the messages are those of `since`.
    ///
    /// It calls the renderer for each message, so ask for a bounded number: a history of
    /// [`HistoryLimits`](crate::HistoryLimits) is one.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Message};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
    ///     .with_address("127.0.0.1:0")
    ///     .with_history("news", HistoryLimits::messages(100))
    ///     .with_renderer(|kept| {
    ///         let text = kept.message().text().unwrap_or_default();
    ///         Message::new_text(format!("{}: {text}", kept.room()))
    ///     });
    /// let running = app.start()?;
    /// let news = running.sender().room("news");
    /// news.broadcast("rain");
    /// let rendered = news.rendered_since(None).unwrap();
    /// assert_eq!(rendered[0].1.text(), Some("news: rain"));
    /// # running.shutdown(std::time::Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`since`](Self::since).
    pub fn rendered_since(
        &self,
        id: Option<HistoryId>,
    ) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        self.shared.rendered_since(self.name.as_deref(), id)
    }

    /// Returns the id of the room's last message; `None` if there was none, or the room keeps no history. In a cluster, it may
    /// wait for the broker, for at most two seconds; `None` if that can't be reached.
    pub fn last_id(&self) -> Option<HistoryId> {
        self.shared.last_id(self.name.as_deref()?)
    }

    /// Returns the number of WebSocket connections in the room. [Event streams](Self::event_streams) are not included, nor the
    /// connections of other nodes of a cluster.
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

    /// Counts the members of the room on all nodes of the cluster: asks the other nodes, and waits for their answers, for at
    /// most 250 ms. Where the library must not block, such as in a `tracing` subscriber, it counts this node's only.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// let news = app.sender().room("news").everywhere();
    /// assert_eq!((news.members, news.nodes, news.is_complete), (0, 1, true));
    /// ```
    #[cfg(feature = "cluster")]
    pub fn everywhere(&self) -> Everywhere {
        let here = self.len() as u64;
        let answers = self.shared.count_elsewhere(self.name());
        Everywhere {
            members: here + answers.members,
            nodes: 1 + answers.nodes,
            is_complete: answers.is_complete,
        }
    }

    /// Returns who is in the room, on all nodes of a cluster, if [`with_presence`](crate::AsyncWebsocketApp::with_presence) covers it.
    /// Otherwise, and for the room of all clients, nobody.
    ///
    /// In a cluster, it may wait for the answers of the other nodes, for at most half a second: the first time that this node
    /// needs the room, and each time if no client of this node is in it. Where the library must not block, such as in a
    /// `tracing` subscriber, it does not wait. The time that it takes grows with the number of members.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_presence("lobby");
    /// for member in app.sender().room("lobby").presence().members {
    ///     println!("{:?} is here: {:?}", member.user, member.state.text());
    /// }
    /// ```
    pub fn presence(&self) -> RoomPresence {
        match &self.name {
            Some(name) => self.shared.presence_of(name),
            None => RoomPresence::nobody(),
        }
    }

    /// Returns the number of event-stream clients that follow the room
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

    /// Returns whether the room has no WebSocket connections.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether a connection is in the room; false for those of other nodes of a cluster.
    pub fn contains(&self, id: ConnectionId) -> bool {
        match &self.name {
            Some(name) => {
                let room = self.shared.rooms.find(name);
                let id = self.shared.local_id(id);
                room.zip(id)
                    .is_some_and(|(room, id)| room.members.contains(id))
            }
            None => self.shared.find(id).is_some(),
        }
    }

    /// Returns the connections in the room, in no particular order. Shards are read one after the other, so joins and
    /// leaves during the call may be included for one shard and not for another. The connections of other nodes of a cluster
    /// are not included.
    pub fn members(&self) -> Vec<ConnectionId> {
        let ids = match &self.name {
            Some(name) => {
                let room = self.shared.rooms.find(name);
                room.map_or_else(Vec::new, |room| room.members.members())
            }
            None => self.shared.directory.ids(),
        };
        ids.into_iter().map(|id| self.shared.id_of(id)).collect()
    }
}

/// The members of a room on all nodes of a cluster ([`Room::everywhere`]).
#[cfg(feature = "cluster")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Everywhere {
    /// The number of WebSocket connections in the room. Event streams are not included.
    pub members: u64,
    /// The number of nodes that it is the sum of, this one included.
    pub nodes: usize,
    /// Whether all nodes that this one hears have answered, and all broker servers can be reached. If not, there may be
    /// more members.
    pub is_complete: bool,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room")
            .field("name", &self.name)
            .field("len", &self.len())
            .finish()
    }
}
