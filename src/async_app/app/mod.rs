//! The app and its settings: handlers, limits and everything that is set before it starts.

mod access;
mod http;
mod procedures;
mod rendering;
mod start;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use humphrey::{App, SubApp};

use super::event_stream::EventStreams;
use super::handler::{
    AnyMessageHandler, BodyGuard, EventHandler, HandshakeHandler, MessageHandler,
    MessageHandlerRef, RoomHandler,
};
use super::history::HistoryPatterns;
use super::keyed::KeyedPatterns;
use super::presence::{PresencePatterns, PresenceRooms};
use super::procedures::{JoinHandler, Procedures, RefreshHandler};
use super::publish::AppShared;
use super::renderer::Renderers;
use super::sender::AsyncSender;
use crate::host::{self, Cors};
use crate::hosts::AllowedHosts;
use crate::limits::{HistoryLimits, KeyedLimits, Limits, SlowConsumer};
use crate::listener::Listener;
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::ping::Heartbeat;
use crate::proxies::TrustedProxies;
use crate::stream::WebsocketStream;

/// Default number of handler threads.
const HANDLER_THREADS: usize = 32;

/// How an app gets its connections.
#[allow(missing_debug_implementations)] // Humphrey's `App` has none.
pub enum HumphreyLink {
    /// The app listens on this address itself. The Humphrey app is no longer used; 0.5.1 accepted connections with it.
    Internal(Box<App>, SocketAddr),
    /// A Humphrey app hands connections over through this channel.
    External(Arc<Mutex<Sender<WebsocketStream>>>),
}

/// A WebSocket app: its handlers, settings and engine.
///
/// `State` is shared by all handlers. Each stream has its own `StreamState`, which starts as its `Default`.
///
/// ```no_run
/// use humphrey_ws::AsyncWebsocketApp;
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_address("127.0.0.1:8080")
///     .with_connect_handler(|stream, _| {
///         stream.broadcast(format!("Welcome, {}!", stream.peer_addr()))
///     })
///     .with_message_handler(|stream, message, _| stream.send(message));
/// app.run();
/// ```
///
/// Handlers are ordinary closures and may block. They run on a pool of handler threads, or on a shard's thread while
/// they are fast ([`with_adaptive_handlers`](Self::with_adaptive_handlers)). The handlers of one connection run one at
/// a time, not always on the same thread. For each connection the connect handler runs first, then the message handler
/// for each message in the order sent, then the disconnect handler, each exactly once. A handler that panics closes its
/// connection with 1011.
#[allow(missing_debug_implementations)] // Handlers and Humphrey's types have none.
pub struct AsyncWebsocketApp<State, StreamState = ()>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    humphrey_link: HumphreyLink,
    /// Connections that a linked Humphrey app hands over.
    handed_over: Receiver<WebsocketStream>,
    /// The app's own address, once it is bound.
    listener: Option<TcpListener>,
    /// Whether the app's own address was set.
    has_address: bool,
    /// The listeners beside it.
    listeners: Vec<Listener>,
    state: Arc<State>,
    shared: Arc<AppShared>,
    handler_threads: usize,
    adaptive_handlers: bool,
    warnings_on_stderr: bool,
    shards: Option<usize>,
    limits: Limits,
    slow_consumer: SlowConsumer,
    heartbeat: Option<Heartbeat>,
    shutdown: Option<Receiver<()>>,
    routes: Vec<SubApp<State>>,
    cors: Option<Cors>,
    route_methods: Vec<(String, String)>,
    histories: HistoryPatterns,
    keyed: KeyedPatterns,
    renderers: Renderers,
    presence: PresencePatterns,
    event_streams: EventStreams<State>,
    origins: Option<Origins>,
    hosts: Option<AllowedHosts>,
    guarded: Option<Vec<String>>,
    option_names: OptionNames,
    proxies: Option<TrustedProxies>,
    proxy_protocol: Option<Vec<String>>,
    #[cfg(feature = "deflate")]
    compression: Option<crate::compression::Compression>,
    #[cfg(feature = "__tls")]
    tls: Option<crate::tls::Tls>,
    #[cfg(feature = "cluster")]
    cluster: Option<crate::cluster::Cluster>,
    on_handshake: Option<Box<dyn HandshakeHandler<State, StreamState>>>,
    on_body: Option<Box<dyn BodyGuard<State>>>,
    on_connect: Option<Box<dyn EventHandler<State, StreamState>>>,
    on_disconnect: Option<Box<dyn EventHandler<State, StreamState>>>,
    on_message: Option<AnyMessageHandler<State, StreamState>>,
    on_room: Option<Box<dyn RoomHandler<State, StreamState>>>,
    procedures: Option<Procedures<State, StreamState>>,
    on_join: Option<Box<dyn JoinHandler<StreamState>>>,
    on_refresh: Option<Box<dyn RefreshHandler<StreamState>>>,
}

#[allow(clippy::new_without_default)] // 0.5.1 had none, and `State` may have none.
impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Creates an app that listens on its own port: on `0.0.0.0:80`, unless [`with_address`](Self::with_address) sets
    /// another address. It has 32 handler threads and the `Default` of `State`.
    pub fn new() -> Self
    where
        State: Default,
    {
        Self::new_with_state(State::default())
    }

    /// Creates an app with this state that listens on its own port, and otherwise has the defaults of
    /// [`new`](Self::new).
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// // The second type parameter is the state that each stream has; it can't be inferred from the arguments.
    /// let app = AsyncWebsocketApp::<_, ()>::new_with_state("a greeting".to_owned())
    ///     .with_connect_handler(|stream, greeting| stream.send(greeting.as_str()));
    /// ```
    pub fn new_with_state(state: State) -> Self {
        Self::new_with_config(state, HANDLER_THREADS, 1)
    }

    /// Creates an app with this state and number of handler threads (at least one) that listens on its own port.
    ///
    /// `connection_threads` has no effect: the engine needs no thread per connection.
    pub fn new_with_config(
        state: State,
        handler_threads: usize,
        connection_threads: usize,
    ) -> Self {
        let app = Box::new(App::new_with_config(connection_threads.max(1), ()));
        let address = SocketAddr::from(([0, 0, 0, 0], 80));
        let (_, handed_over) = channel();
        Self::linked(
            HumphreyLink::Internal(app, address),
            handed_over,
            state,
            handler_threads,
        )
    }

    /// Creates an app that takes its connections from a Humphrey app, to which
    /// [`async_websocket_handler`](crate::async_websocket_handler) links it; or, with the feature `axum`, from an axum
    /// app.
    pub fn new_unlinked() -> Self
    where
        State: Default,
    {
        Self::new_unlinked_with_state(State::default())
    }

    /// Creates an app with this state that takes its connections from a Humphrey app or an axum app, and otherwise has
    /// the defaults of [`new_unlinked`](Self::new_unlinked).
    pub fn new_unlinked_with_state(state: State) -> Self {
        Self::new_unlinked_with_config(state, HANDLER_THREADS)
    }

    /// Creates an app that takes its connections from a Humphrey app, with this state and number of handler threads
    /// (at least one).
    pub fn new_unlinked_with_config(state: State, handler_threads: usize) -> Self {
        let (hook, handed_over) = channel();
        let hook = Arc::new(Mutex::new(hook));
        host::hook_of_app(&hook);
        let app = Self::linked(
            HumphreyLink::External(hook.clone()),
            handed_over,
            state,
            handler_threads,
        );
        app.shared.set_hook(hook);
        app
    }

    fn linked(
        humphrey_link: HumphreyLink,
        handed_over: Receiver<WebsocketStream>,
        state: State,
        handler_threads: usize,
    ) -> Self {
        Self {
            humphrey_link,
            handed_over,
            listener: None,
            has_address: false,
            listeners: Vec::new(),
            state: Arc::new(state),
            shared: Arc::default(),
            handler_threads,
            adaptive_handlers: true,
            warnings_on_stderr: true,
            shards: None,
            limits: Limits::default(),
            slow_consumer: SlowConsumer::default(),
            heartbeat: None,
            shutdown: None,
            routes: Vec::new(),
            cors: None,
            route_methods: Vec::new(),
            histories: HistoryPatterns::default(),
            keyed: KeyedPatterns::default(),
            renderers: Renderers::default(),
            presence: PresencePatterns::default(),
            event_streams: Vec::new(),
            origins: None,
            hosts: None,
            guarded: None,
            option_names: OptionNames::new(),
            proxies: None,
            proxy_protocol: None,
            #[cfg(feature = "deflate")]
            compression: None,
            #[cfg(feature = "__tls")]
            tls: None,
            #[cfg(feature = "cluster")]
            cluster: None,
            on_handshake: None,
            on_body: None,
            on_connect: None,
            on_disconnect: None,
            on_message: None,
            on_room: None,
            procedures: None,
            on_join: None,
            on_refresh: None,
        }
    }

    /// Returns the channel through which a Humphrey app hands over connections, or `None` if this app listens itself.
    ///
    /// Pass it to [`async_websocket_handler`](crate::async_websocket_handler). Sending into it fails once the app has
    /// stopped or was dropped.
    pub fn connect_hook(&self) -> Option<Arc<Mutex<Sender<WebsocketStream>>>> {
        match &self.humphrey_link {
            HumphreyLink::External(hook) => Some(hook.clone()),
            HumphreyLink::Internal(..) => None,
        }
    }

    /// Returns a handle that sends to clients from any thread.
    pub fn sender(&self) -> AsyncSender {
        AsyncSender(self.shared.clone())
    }

    /// Returns the app's state.
    pub fn get_state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Sets the handler for handshakes: see [`with_handshake_handler`](Self::with_handshake_handler).
    pub fn on_handshake(&mut self, handler: impl HandshakeHandler<State, StreamState>) {
        self.on_handshake = Some(Box::new(handler));
    }

    /// Sets the handler for new connections.
    pub fn on_connect(&mut self, handler: impl EventHandler<State, StreamState>) {
        self.on_connect = Some(Box::new(handler));
    }

    /// Sets the handler for connections that have ended, for whatever reason.
    pub fn on_disconnect(&mut self, handler: impl EventHandler<State, StreamState>) {
        self.on_disconnect = Some(Box::new(handler));
    }

    /// Sets the handler for messages.
    pub fn on_message(&mut self, handler: impl MessageHandler<State, StreamState>) {
        self.on_message = Some(AnyMessageHandler::Owning(Box::new(handler)));
    }

    /// Sets the handler for messages, as one that borrows the stream and the app's state. It replaces that of
    /// [`on_message`](Self::on_message).
    pub fn on_message_ref(&mut self, handler: impl MessageHandlerRef<State, StreamState>) {
        self.on_message = Some(AnyMessageHandler::Borrowing(Box::new(handler)));
    }

    /// Sets the handshake handler, which accepts or rejects each client: by path, query, headers, cookies, origin,
    /// offered subprotocols or address. By default every client is accepted.
    ///
    /// The handler runs before the connection becomes a WebSocket, on a handler thread, and may block; nothing is read
    /// from the client meanwhile. [`Accept`](crate::Accept) can choose a subprotocol, add headers to the response, and
    /// set the stream's state, where the other handlers find it. [`Reject`](crate::Reject) is the response that a
    /// rejected client gets. If the handler panics, the client gets 500. Rejections are counted
    /// ([`Refused::handshake_handler`](crate::Refused::handshake_handler)).
    ///
    /// Limits and origins ([`with_allowed_origins`](Self::with_allowed_origins)) are checked first. The handler runs
    /// for every connection, also for those that another server hands over. If the handshake was answered before the
    /// connection was handed over (`WebsocketStream::new`, or a channel of the program's own), a rejected connection is
    /// closed with 1008; its request may be unknown and then has no headers. While the app shuts down, clients get 503.
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject};
    /// use std::collections::HashMap;
    ///
    /// #[derive(Default)]
    /// struct User {
    ///     name: String,
    /// }
    ///
    /// let sessions = HashMap::from([("4711".to_owned(), "Ada".to_owned())]);
    /// let app =
    ///     AsyncWebsocketApp::<HashMap<String, String>, User>::new_with_config(sessions, 8, 1)
    ///         .with_handshake_handler(|request, sessions| {
    ///             match request.cookie("session").and_then(|session| sessions.get(session)) {
    ///                 Some(name) => Ok(Accept::new().with_state(User { name: name.clone() })),
    ///                 None => Err(Reject::new(401).with_body("log in first\n")),
    ///             }
    ///         })
    ///         .with_connect_handler(|stream, _| {
    ///             stream.send(format!("Welcome, {}!", stream.state.name))
    ///         });
    /// ```
    pub fn with_handshake_handler(
        mut self,
        handler: impl HandshakeHandler<State, StreamState>,
    ) -> Self {
        self.on_handshake(handler);
        self
    }

    /// Sets the handler for connections that join or leave a room, including those that leave because they end.
    pub fn on_room(&mut self, handler: impl RoomHandler<State, StreamState>) {
        self.on_room = Some(Box::new(handler));
    }

    /// Sets the handler for new connections.
    pub fn with_connect_handler(mut self, handler: impl EventHandler<State, StreamState>) -> Self {
        self.on_connect(handler);
        self
    }

    /// Sets the handler for connections that have ended, for whatever reason.
    pub fn with_disconnect_handler(
        mut self,
        handler: impl EventHandler<State, StreamState>,
    ) -> Self {
        self.on_disconnect(handler);
        self
    }

    /// Sets the handler for messages.
    pub fn with_message_handler(
        mut self,
        handler: impl MessageHandler<State, StreamState>,
    ) -> Self {
        self.on_message(handler);
        self
    }

    /// Sets the handler for messages, as one that borrows the stream and the app's state. It replaces that of
    /// [`with_message_handler`](Self::with_message_handler), and costs less: see [`MessageHandlerRef`].
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_message_handler_ref(|stream, message, _| stream.send(message));
    /// ```
    pub fn with_message_handler_ref(
        mut self,
        handler: impl MessageHandlerRef<State, StreamState>,
    ) -> Self {
        self.on_message_ref(handler);
        self
    }

    /// Sets the handler for connections that join or leave a room, including those that leave because they end.
    pub fn with_room_handler(mut self, handler: impl RoomHandler<State, StreamState>) -> Self {
        self.on_room(handler);
        self
    }

    /// Sets the address to listen on, beside those of [`with_listener`](Self::with_listener). Port 0 takes any free port, which [`bind`](Self::bind) returns.
    ///
    /// This has no effect on an app that takes its connections from a Humphrey app.
    ///
    /// # Panics
    ///
    /// If the address can't be resolved.
    #[track_caller]
    pub fn with_address<T>(mut self, address: T) -> Self
    where
        T: ToSocketAddrs,
    {
        if let HumphreyLink::Internal(_, current) = &mut self.humphrey_link {
            *current = match address
                .to_socket_addrs()
                .map(|mut addresses| addresses.next())
            {
                Ok(Some(address)) => address,
                Ok(None) => panic!("the address to listen on resolves to no socket address"),
                Err(error) => panic!("the address to listen on can't be resolved: {error}"),
            };
            self.listener = None;
            self.has_address = true;
        }
        self
    }

    /// Adds a socket to listen on: a further TCP address, a Unix socket, or a socket that the process has inherited. A
    /// [`std::net::TcpListener`] and a `UnixListener` convert into a [`Listener`]. An app can have 62 listeners.
    ///
    /// With a listener, the app binds no address of its own, unless [`with_address`](Self::with_address) sets one. Limits, allowed
    /// origins and hosts, routes and, over TCP, TLS apply to all listeners alike.
    ///
    /// This has no effect on an app that takes its connections from a Humphrey app.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Listener};
    /// use std::net::TcpListener;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (v4, v6) = (TcpListener::bind("127.0.0.1:0")?, Listener::tcp("[::1]:0"));
    /// let mut app = AsyncWebsocketApp::<()>::new().with_listener(v4);
    /// // The machine may have no IPv6.
    /// if let Ok(v6) = v6 {
    ///     app = app.with_listener(v6);
    /// }
    /// app.start()?.shutdown(std::time::Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_listener(mut self, listener: impl Into<Listener>) -> Self {
        self.listeners.push(listener.into());
        self
    }

    /// Has no effect. It set the polling interval in 0.5.1; this engine is event-driven.
    pub fn with_polling_interval(self, _interval: Option<Duration>) -> Self {
        self
    }

    /// Pings silent clients, and disconnects those that do not answer in time. By default there is no heartbeat.
    pub fn with_heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }

    /// Stops the app when the receiver gets a value, as [`AsyncSender::shutdown`] does with [`Limits::close_timeout`]
    /// to wait. Dropping the sending end does not stop the app.
    pub fn with_shutdown(mut self, shutdown_receiver: Receiver<()>) -> Self {
        self.shutdown = Some(shutdown_receiver);
        self
    }

    /// Sets the limits of the app.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the policy for slow consumers. By default they are disconnected.
    pub fn with_slow_consumer(mut self, slow_consumer: SlowConsumer) -> Self {
        self.slow_consumer = slow_consumer;
        self
    }

    /// Keeps the last messages of the rooms whose name matches a pattern, each within these limits. In a pattern, `*`
    /// stands for any run of characters, including none. The first pattern that matches a room is used. By default
    /// rooms keep no history.
    ///
    /// [`Room::since`](crate::Room::since) reads the kept messages, and
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since) replays them to a late joiner. Every message of such
    /// a room has an id ([`HistoryId`](crate::HistoryId)). A room that keeps a history outlives its last member. When
    /// there are [`Limits::rooms_max`] rooms, an empty room may be evicted so that another room can keep a message, but
    /// a join never evicts kept messages. A room whose pattern is its exact name, without `*`, is never evicted. A
    /// replay may exceed [`Limits::outbox_bytes_max`].
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits};
    ///
    /// // Of a secret room nothing is kept; of every other the last 50 messages, up to 64 KiB.
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("secret/*", HistoryLimits::NONE)
    ///     .with_history("*", HistoryLimits::messages(50).bytes(64 * 1024));
    /// ```
    pub fn with_history(mut self, pattern: &str, limits: HistoryLimits) -> Self {
        self.histories.add(pattern, limits);
        self
    }

    /// Makes the rooms whose name matches a pattern keyed, each within these limits: they keep the newest message of each key, and of the
    /// messages that wait for a slow client only the newest of each key is sent ([`Room::broadcast_keyed`](crate::Room::broadcast_keyed)).
    /// Right for prices, positions and dashboards. In a pattern, `*` stands for any run of characters, including none. The first pattern
    /// that matches a room is used. By default rooms are not keyed.
    ///
    /// A client that joins such a room, in whichever way, first receives the newest message of each key, in the order in which the keys
    /// were first used, and then all that follow: it receives no older message of a key after a newer one, and misses no key. Messages
    /// without a key ([`Room::broadcast`](crate::Room::broadcast)) are sent to the members as in any other room, and are not kept. A keyed room
    /// keeps no history, also if [`with_history`](Self::with_history) matches its name: its messages have no ids, and
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since) fails for an id.
    ///
    /// A keyed room outlives its last member. It may be evicted like a room with a history, unless its pattern is its exact name. Only
    /// [`Room::remove_key`](crate::Room::remove_key) removes a key. On Linux, the kernel takes at most 16 KiB in advance for a client of a keyed
    /// room, so that little else comes before the newest messages. This includes the client's other messages.
    ///
    /// An app that is a node of a cluster can't have keyed rooms: it does not start.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, KeyedLimits};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_keyed_rooms("prices/*", KeyedLimits::keys(1_000).bytes(512 * 1024))
    ///     .with_connect_handler(|stream, _| stream.join("prices/fx"));
    /// app.sender().room("prices/fx").broadcast_keyed("EURUSD", "EURUSD 1.0832");
    /// ```
    pub fn with_keyed_rooms(mut self, pattern: &str, limits: KeyedLimits) -> Self {
        self.keyed.add(pattern, limits);
        self
    }

    /// Keeps the presence of rooms: who is in them, on all nodes of a cluster, with a state that the app sets
    /// ([`AsyncStream::set_presence`](crate::AsyncStream::set_presence)). [`Room::presence`](crate::Room::presence) returns it. `rooms`
    /// is a pattern of names, in which `*` stands for any run of characters, or [`PresenceRooms`] with
    /// settings. The first pattern that matches a room is used. By default, no presence is kept.
    ///
    /// All connections of a user ([`Accept::user`](crate::Accept::user)) count as one member, and connections without a user as one
    /// each. A user whose last connection has ended stays for the grace period, so a reload is no change. The users of a node of a
    /// cluster that has died are gone after four seconds.
    ///
    /// In such rooms, the room handler ([`with_room_handler`](Self::with_room_handler)) is called once for each member of this node
    /// that comes or goes, with a connection that has joined, or the one that has left last. It is called on a thread of its own: the
    /// changes of all rooms follow each other there. A client of [procedures](crate::procedures) can ask for the list and its changes
    /// if the [join handler](Self::with_join_handler) admits it to the room.
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_presence("lobby/*")
    ///     .with_handshake_handler(|request, _| {
    ///         let name = request.query_param("name").ok_or(Reject::new(400))?;
    ///         Ok(Accept::new().user(name))
    ///     })
    ///     .with_connect_handler(|stream, _| {
    ///         stream.join("lobby/1");
    ///         stream.send(format!("{} are here", stream.room("lobby/1").presence().members.len()));
    ///     });
    /// ```
    pub fn with_presence(mut self, rooms: impl Into<PresenceRooms>) -> Self {
        self.presence.add(rooms.into());
        self
    }

    /// Sets whether the library's warnings and errors go to standard error when the program has set no logger. By
    /// default they do: each kind of warning once.
    ///
    /// The library reports to the logger of the crate `log`, or with the feature `tracing` to the subscriber of
    /// `tracing`. If there is one, nothing goes to standard error, whatever level the logger shows. With `false`,
    /// warnings without a logger are lost, in the whole process, from when this app starts.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_warnings_on_stderr(false);
    /// ```
    pub fn with_warnings_on_stderr(mut self, on_stderr: bool) -> Self {
        self.warnings_on_stderr = on_stderr;
        self
    }

    /// Sets the number of shards (at least one), each an event loop on its own thread. By default there is one for each
    /// core.
    pub fn with_shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Sets whether fast handlers run inline, on the shards' own threads. By default they do.
    ///
    /// An inline handler costs less and answers sooner, but delays the other connections of its shard while it runs. So
    /// the engine measures handlers: those that take some microseconds run inline, slower ones on the handler threads.
    /// When an inline handler blocks after all, another thread takes over its shard within some milliseconds: two, or
    /// eight if it is the first in a long time. At most as many handlers run at once as there are handler threads and
    /// shards together. The order within each connection is kept. With a single handler thread, all handlers run on it.
    /// Inline handlers cost one more thread for each shard.
    ///
    /// With `false` every handler runs on a handler thread, so that no client ever waits for another client's handler.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_adaptive_handlers(false);
    /// ```
    pub fn with_adaptive_handlers(mut self, adaptive: bool) -> Self {
        self.adaptive_handlers = adaptive;
        self
    }
}
