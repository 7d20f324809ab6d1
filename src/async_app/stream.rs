//! A connection as its handlers see it.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use super::connection_id::ConnectionId;
use super::procedures::Payload;
use super::publish::{AppShared, Blocking, Recipients};
use super::room::Room;
use super::room_join::join_error;
use super::stream_link::StreamLink;
use crate::engine::Session;
use crate::error::{
    JoinError, JoinErrorReason, PresenceError, PresenceErrorReason, SendError, SendErrorReason,
};
use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::request::RequestHead;
use crate::stream::WebsocketStream;

/// An outgoing message of a stream that was made with [`AsyncStream::new`].
#[derive(Debug)]
pub enum OutgoingMessage {
    /// A message for the client with this address.
    Message(SocketAddr, Message),
    /// A message for every client.
    Broadcast(Message),
}

/// A blocking stream together with its state.
///
/// It has no constructor and no methods. 0.5.1 exposed it, so its name stays.
#[allow(dead_code)]
#[allow(missing_debug_implementations)] // 0.5.1 had none, and a blocking stream has nothing to show.
pub struct StatefulWebsocketStream<StreamState = ()>
where
    StreamState: Send + Sync + Default + 'static,
{
    inner: WebsocketStream,
    state: Arc<StreamState>,
}

/// A connection as its handlers receive it.
///
/// Messages are queued and sent as the client takes them; no method here waits for a client. Messages that one handler
/// sends leave in the order in which it sent them. The stream can be kept and used from any thread. Once the connection
/// has gone, sending does nothing but count the message ([`Dropped::closed`](crate::Dropped::closed)).
///
/// ```
/// use humphrey_ws::AsyncWebsocketApp;
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// // The second type parameter is the state of each stream.
/// let app = AsyncWebsocketApp::<(), AtomicUsize>::new()
///     .with_message_handler(|stream, _, _| {
///         let count = stream.state.fetch_add(1, Ordering::Relaxed) + 1;
///         stream.send(format!("{count} from {}", stream.peer_addr()));
///     });
/// ```
pub struct AsyncStream<StreamState = ()>
where
    StreamState: Send + Sync + Default + 'static,
{
    backend: Backend,
    /// Set on the connect handler's stream, until that handler has returned.
    request: Weak<RequestHead>,
    /// The state of this stream, shared by all its handlers.
    pub state: Arc<StreamState>,
}

enum Backend {
    Engine(StreamLink),
    /// For tests of handlers, without an app. Boxed, since streams are passed on for every message.
    Channel(Box<ChannelBackend>),
}

struct ChannelBackend {
    address: SocketAddr,
    sender: Sender<OutgoingMessage>,
    connected: bool,
}

impl<StreamState> AsyncStream<StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    /// Creates a stream that sends into a channel, to test a handler without an app.
    ///
    /// ```
    /// use humphrey_ws::{AsyncStream, Message, async_app::OutgoingMessage};
    /// use std::sync::{Arc, mpsc};
    ///
    /// fn echo(stream: AsyncStream, message: Message, _: Arc<()>) {
    ///     stream.send(message);
    /// }
    ///
    /// let (sender, sent) = mpsc::channel();
    /// let address = "127.0.0.1:1234".parse().unwrap();
    /// echo(AsyncStream::new(address, sender, Arc::new(())), Message::new("hi"), Arc::new(()));
    /// assert!(matches!(sent.recv(), Ok(OutgoingMessage::Message(to, _)) if to == address));
    /// ```
    pub fn new(addr: SocketAddr, sender: Sender<OutgoingMessage>, state: Arc<StreamState>) -> Self {
        Self::of_channel(addr, sender, state, true)
    }

    /// Creates the stream of a disconnected client, to test a handler: it can broadcast, and its `send` does nothing.
    pub fn disconnected(
        addr: SocketAddr,
        sender: Sender<OutgoingMessage>,
        state: Arc<StreamState>,
    ) -> Self {
        Self::of_channel(addr, sender, state, false)
    }

    fn of_channel(
        address: SocketAddr,
        sender: Sender<OutgoingMessage>,
        state: Arc<StreamState>,
        connected: bool,
    ) -> Self {
        let channel = ChannelBackend {
            address,
            sender,
            connected,
        };
        Self {
            backend: Backend::Channel(channel.into()),
            request: Weak::new(),
            state,
        }
    }

    pub(super) fn of_session(
        session: &Arc<Session>,
        shared: &Arc<AppShared>,
        state: Arc<StreamState>,
    ) -> Self {
        Self {
            backend: Backend::Engine(StreamLink::new(session, shared)),
            request: Weak::new(),
            state,
        }
    }

    pub(super) fn with_request(mut self, known: Option<&Arc<RequestHead>>) -> Self {
        if let Some(known) = known {
            self.request = Arc::downgrade(known);
        }
        self
    }

    /// Sends a message to the client. If the connection has gone, or the message is longer than
    /// [`Limits::message_bytes_max`](crate::Limits::message_bytes_max), the message is dropped and counted.
    ///
    /// Waits only while a mailbox of the engine is full, never for the client. [`SlowConsumer`](crate::SlowConsumer)
    /// decides what happens when the client reads too slowly.
    pub fn send(&self, message: impl Into<Message>) {
        let _ = self.publish(message.into(), Blocking::Wait);
    }

    /// Sends a message to the client, or returns it in the error. Never waits.
    ///
    /// # Errors
    ///
    /// [`Full`](SendErrorReason::Full) if the client's outbox is more than half full, or the engine's mailbox is full;
    /// [`Closed`](SendErrorReason::Closed) if the connection has gone;
    /// [`TooLarge`](SendErrorReason::TooLarge) if the message is longer than the limit.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.publish(message.into(), Blocking::Try)
    }

    fn publish(&self, message: Message, blocking: Blocking) -> Result<(), SendError> {
        match &self.backend {
            Backend::Engine(link) => {
                link.shared
                    .publish(Recipients::Session(&link.session), message, blocking)
            }
            Backend::Channel(channel) if channel.connected => channel
                .sender
                .send(OutgoingMessage::Message(channel.address, message))
                .map_err(handed_back),
            Backend::Channel(_) => Err(SendError {
                message,
                reason: SendErrorReason::Closed,
            }),
        }
    }

    /// Sends a message to every connected client, including this one, and to event streams [with
    /// broadcasts](crate::Subscription::with_broadcasts).
    ///
    /// Applies backpressure: it waits while a mailbox of the engine is full.
    pub fn broadcast(&self, message: impl Into<Message>) {
        let _ = self.publish_to_everyone(message.into(), Blocking::Wait);
    }

    /// Sends a message to every connected client, or returns it in the error, in which case no client receives it.
    /// Never waits.
    ///
    /// It is not an error if no client is connected.
    ///
    /// # Errors
    ///
    /// [`Full`](SendErrorReason::Full) if a mailbox of the engine is full; [`Closed`](SendErrorReason::Closed) if the app
    /// has stopped; [`TooLarge`](SendErrorReason::TooLarge) if the message is longer than the limit.
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new().with_message_handler(|stream, message, _| {
    ///     if let Err(error) = stream.try_broadcast(message) {
    ///         stream.send(format!("not sent: {error}"));
    ///     }
    /// });
    /// ```
    pub fn try_broadcast(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.publish_to_everyone(message.into(), Blocking::Try)
    }

    fn publish_to_everyone(&self, message: Message, blocking: Blocking) -> Result<(), SendError> {
        match &self.backend {
            Backend::Engine(link) => {
                link.shared
                    .publish(Recipients::Everyone { except: None }, message, blocking)
            }
            Backend::Channel(channel) => channel
                .sender
                .send(OutgoingMessage::Broadcast(message))
                .map_err(handed_back),
        }
    }

    /// Joins a room: from now on the client receives the room's messages. Does nothing if the connection is in the room
    /// already or has gone. If it may not join for a reason that [`try_join`](Self::try_join) returns, a warning is
    /// logged.
    ///
    /// A join in the connect handler takes effect before the client's first message is handled. Waits only while a
    /// mailbox of the engine is full. Does nothing on a stream that was made with [`AsyncStream::new`].
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_connect_handler(|stream, _| stream.join("news"));
    /// // From any thread, such as that of an HTTP route:
    /// app.sender().room("news").broadcast("It rains.");
    /// ```
    pub fn join(&self, room: &str) {
        if let Backend::Engine(link) = &self.backend {
            link.shared.warn_of(self.try_join(room));
        }
    }

    /// Joins a room, or returns why it can't. It is not an error if the connection is in the room already.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::JoinErrorReason::Closed) if the connection has gone;
    /// [`ConnectionRooms`](crate::JoinErrorReason::ConnectionRooms) or [`Rooms`](crate::JoinErrorReason::Rooms) if a
    /// limit is reached; [`NameTooLong`](crate::JoinErrorReason::NameTooLong).
    pub fn try_join(&self, room: &str) -> Result<(), JoinError> {
        match &self.backend {
            Backend::Engine(link) => link.shared.join(Some(room), Some(&link.session)),
            Backend::Channel(_) => Err(JoinError {
                room: room.to_owned(),
                reason: JoinErrorReason::Closed,
            }),
        }
    }

    /// Joins a room, and first replays the kept messages that came after this id to the client; with `None`, all kept
    /// messages. New messages follow without gap or duplicate. Returns the number of replayed messages, which is 0 if
    /// the connection is in the room already.
    ///
    /// [`with_history`](crate::AsyncWebsocketApp::with_history) sets which rooms keep a history.
    ///
    /// # Errors
    ///
    /// [`HistoryGone`](crate::JoinErrorReason::HistoryGone) if a message after that id is no longer kept, or the id is
    /// from another history, for example from before a restart; the room is not joined then. Otherwise the errors of
    /// [`try_join`](Self::try_join).
    ///
    /// ```
    /// # use humphrey_ws::{AsyncWebsocketApp, HistoryId, HistoryLimits};
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("news", HistoryLimits::messages(50).bytes(64 * 1024))
    ///     .with_connect_handler(|stream, _| {
    ///         let last: Option<HistoryId> = None; // as the client has sent it, perhaps
    ///         if stream.join_since("news", last).is_err() {
    ///             stream.send("Some messages are missing.");
    ///             let _ = stream.join_since("news", None);
    ///         }
    ///     });
    /// ```
    pub fn join_since(&self, room: &str, id: Option<HistoryId>) -> Result<usize, JoinError> {
        match &self.backend {
            Backend::Engine(link) => link.shared.join_since(Some(room), Some(&link.session), id),
            Backend::Channel(_) => Err(join_error(room, JoinErrorReason::Closed)),
        }
    }

    /// Leaves a room, after the messages that it was sent before. Does nothing if the connection is not in the room. A
    /// connection that ends leaves all its rooms.
    pub fn leave(&self, room: &str) {
        if let Backend::Engine(link) = &self.backend {
            link.shared.leave(room, &link.session);
        }
    }

    /// Sets the state of this connection's user in a room, or of the connection if it has no user: any bytes that the app or its
    /// clients understand, such as JSON. [`Room::presence`] returns it, and clients that watch the room receive it. It replaces
    /// the state that was set before, on any connection of the user and any node. If it can't be set for a reason that
    /// [`try_set_presence`](Self::try_set_presence) returns, a warning is logged.
    ///
    /// Does nothing on a stream that was made with [`AsyncStream::new`].
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_presence("lobby")
    ///     .with_connect_handler(|stream, _| {
    ///         stream.join("lobby");
    ///         stream.set_presence("lobby", r#"{"status": "away"}"#);
    ///     });
    /// ```
    pub fn set_presence(&self, room: &str, state: impl Into<Payload>) {
        if let Backend::Engine(link) = &self.backend {
            link.shared
                .warn_of_presence(self.try_set_presence(room, state));
        }
    }

    /// Sets the state of this connection's user in a room ([`set_presence`](Self::set_presence)), or returns why it was not set.
    /// Never waits.
    ///
    /// # Errors
    ///
    /// [`NoPresence`](crate::PresenceErrorReason::NoPresence) if the presence of the room is not kept;
    /// [`NotJoined`](crate::PresenceErrorReason::NotJoined) if the connection is not in the room;
    /// [`TooLong`](crate::PresenceErrorReason::TooLong).
    pub fn try_set_presence(
        &self,
        room: &str,
        state: impl Into<Payload>,
    ) -> Result<(), PresenceError> {
        match &self.backend {
            Backend::Engine(link) => link.shared.set_presence(room, &link.session, state.into()),
            Backend::Channel(_) => Err(PresenceError {
                room: room.to_owned(),
                reason: PresenceErrorReason::NotJoined,
            }),
        }
    }

    /// Returns the room of this name, whether or not it has members.
    pub fn room(&self, name: &str) -> Room {
        Room::named(self.shared(), name)
    }

    /// Returns the room of all connected clients.
    pub fn everyone(&self) -> Room {
        Room::everyone(self.shared())
    }

    /// The session and its app; `None` for a stream without an app.
    pub(super) fn session(&self) -> Option<(&Arc<Session>, &Arc<AppShared>)> {
        match &self.backend {
            Backend::Engine(link) => Some((&link.session, &link.shared)),
            Backend::Channel { .. } => None,
        }
    }

    fn shared(&self) -> Arc<AppShared> {
        match &self.backend {
            Backend::Engine(link) => link.shared.clone(),
            // An app that does not run.
            Backend::Channel(_) => Arc::default(),
        }
    }

    /// Closes the connection after the messages that were sent before (RFC 6455 §7.1.2). The reason is cut to 123
    /// bytes.
    ///
    /// Messages that the client sends from now on are not handled. The disconnect handler runs when the client has
    /// answered the close frame, or after [`Limits::close_timeout`](crate::Limits::close_timeout). Does nothing on a
    /// stream that was made with [`AsyncStream::new`].
    ///
    /// ```
    /// # use humphrey_ws::{AsyncWebsocketApp, CloseCode};
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_message_handler(|stream, _, _| stream.close(CloseCode::NORMAL, "one is enough"));
    /// ```
    pub fn close(&self, code: CloseCode, reason: &str) {
        if let Backend::Engine(link) = &self.backend {
            link.shared.close_here(link.session.id, code, reason);
        }
    }

    /// Returns the user that the handshake handler has assigned to the connection
    /// ([`Accept::user`](crate::Accept::user)).
    ///
    /// ```
    /// # use humphrey_ws::{AsyncWebsocketApp, Message};
    /// let app = AsyncWebsocketApp::<()>::new().with_message_handler(|stream, message, _| {
    ///     let user = stream.user().unwrap_or("somebody");
    ///     stream.broadcast(Message::new(format!("{user}: {}", message.text().unwrap_or("?"))));
    /// });
    /// ```
    pub fn user(&self) -> Option<&str> {
        match &self.backend {
            Backend::Engine(link) => link.session.user(),
            Backend::Channel(_) => None,
        }
    }

    /// Sets when the connection expires; with `None` it does not. This replaces the time that
    /// [`Accept::expires_at`](crate::Accept::expires_at) set, for example when the client has sent a new token. Does
    /// nothing if the connection is closing or has gone, or on a stream that was made with [`AsyncStream::new`].
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// use std::time::{Duration, SystemTime};
    ///
    /// # fn verified(_: &str) -> Option<u64> { None }
    /// let app = AsyncWebsocketApp::<()>::new().with_message_handler(|stream, message, _| {
    ///     if let Some(token) = message.text().and_then(|text| text.strip_prefix("token "))
    ///         && let Some(exp) = verified(token)
    ///     {
    ///         stream.set_expires_at(SystemTime::UNIX_EPOCH + Duration::from_secs(exp));
    ///     }
    /// });
    /// ```
    pub fn set_expires_at(&self, time: impl Into<Option<SystemTime>>) {
        if let Backend::Engine(link) = &self.backend {
            link.shared.set_expires_at(&link.session, time.into());
        }
    }

    /// Returns the address of the connection's other end: the client, or a proxy in front of the app.
    pub fn peer_addr(&self) -> SocketAddr {
        match &self.backend {
            Backend::Engine(link) => link.session.peer(),
            Backend::Channel(channel) => channel.address,
        }
    }

    /// Returns the client's IP address: that of [`peer_addr`](Self::peer_addr), or the one that a trusted proxy
    /// forwards ([`with_trusted_proxies`](crate::AsyncWebsocketApp::with_trusted_proxies)).
    pub fn client_ip(&self) -> IpAddr {
        match &self.backend {
            Backend::Engine(link) => link.session.client_ip(),
            Backend::Channel(channel) => channel.address.ip(),
        }
    }

    /// Returns the id of the connection, which is never reused. A stream that was made with [`AsyncStream::new`] has an
    /// id that belongs to no connection.
    pub fn id(&self) -> ConnectionId {
        match &self.backend {
            Backend::Engine(link) => link.shared.id_of(link.session.id),
            Backend::Channel(_) => ConnectionId::NOBODY,
        }
    }

    /// Returns the path of the request, without the query. It is `/` if the path is unknown, as for a stream that was
    /// handed over with [`WebsocketStream::new`].
    pub fn path(&self) -> &str {
        match &self.backend {
            Backend::Engine(link) => link.session.target().split('?').next().unwrap_or("/"),
            Backend::Channel(_) => "/",
        }
    }

    /// Returns the query of the request, without the `?` and not decoded. It is empty if there is none, or it is
    /// unknown.
    pub fn query(&self) -> &str {
        match &self.backend {
            Backend::Engine(link) => link
                .session
                .target()
                .split_once('?')
                .map_or("", |(_, query)| query),
            Backend::Channel(_) => "",
        }
    }

    /// Returns the request of the handshake, on the connect handler's stream and until that handler has returned. It is
    /// `None` later and on other streams, if the request is unknown, and while more received data waits for handlers
    /// than [`Limits::received_bytes_max`](crate::Limits::received_bytes_max) allows.
    ///
    /// ```
    /// # use humphrey_ws::{AsyncWebsocketApp, Message};
    /// let app = AsyncWebsocketApp::<()>::new().with_connect_handler(|stream, _| {
    ///     let request = stream.request();
    ///     let agent = request.as_ref().and_then(|request| request.header("User-Agent"));
    ///     stream.send(Message::new(agent.unwrap_or("unknown")));
    /// });
    /// ```
    pub fn request(&self) -> Option<Arc<RequestHead>> {
        self.request.upgrade()
    }

    /// Returns the negotiated subprotocol: the one that the handshake handler chose
    /// ([`Accept::with_subprotocol`](crate::Accept::with_subprotocol)), or that of [procedures](crate::procedures).
    pub fn subprotocol(&self) -> Option<&str> {
        match &self.backend {
            Backend::Engine(link) => link.session.subprotocol(),
            Backend::Channel(_) => None,
        }
    }
}

impl<StreamState> std::fmt::Debug for AsyncStream<StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncStream")
            .field("id", &self.id())
            .field("peer_addr", &self.peer_addr())
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

fn handed_back(error: std::sync::mpsc::SendError<OutgoingMessage>) -> SendError {
    let (OutgoingMessage::Message(_, message) | OutgoingMessage::Broadcast(message)) = error.0;
    SendError {
        message,
        reason: SendErrorReason::Closed,
    }
}
