//! The app and its settings: handlers, limits and everything that is set before it starts.

mod access;
mod http;
mod procedures;
mod start;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use humphrey::{App, SubApp};

use super::event_stream::EventStreams;
use super::handler::{BodyGuard, EventHandler, HandshakeHandler, MessageHandler, RoomHandler};
use super::history::HistoryPatterns;
use super::procedures::{JoinHandler, Procedures};
use super::publish::AppShared;
use super::sender::AsyncSender;
use crate::host::{self, Cors};
use crate::hosts::AllowedHosts;
use crate::limits::{HistoryLimits, Limits, SlowConsumer};
use crate::option_names::OptionNames;
use crate::origins::Origins;
use crate::ping::Heartbeat;
use crate::proxies::TrustedProxies;
use crate::stream::WebsocketStream;

/// Handler threads of an app that does not say how many.
const HANDLER_THREADS: usize = 32;

/// How an app gets its connections.
#[allow(missing_debug_implementations)] // Humphrey's `App` has none.
pub enum HumphreyLink {
    /// It listens on this address itself. (The Humphrey app beside it is no longer used; 0.5.1 accepted with it.)
    Internal(Box<App>, SocketAddr),
    /// A Humphrey app hands them over through this channel.
    External(Arc<Mutex<Sender<WebsocketStream>>>),
}

/// A WebSocket app: handlers, and an engine that runs them.
///
/// `State` is shared by all handlers; each stream has a `StreamState` of its own, which begins as its `Default`.
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
/// Handlers are ordinary closures and may block: they run on threads of their own, or on a reactor's as long as they are
/// quick ([`with_adaptive_handlers`](Self::with_adaptive_handlers)), those of one connection one after the other, and not
/// always on the same thread. For each connection the connect handler runs first, then the message handler for each
/// message as it was sent, then the disconnect handler, each exactly once. A handler that panics closes its connection
/// with 1011.
#[allow(missing_debug_implementations)] // Handlers and Humphrey's types have none.
pub struct AsyncWebsocketApp<State, StreamState = ()>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    humphrey_link: HumphreyLink,
    /// Connections that a linked Humphrey app hands over.
    handed_over: Receiver<WebsocketStream>,
    listener: Option<TcpListener>,
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
    event_streams: EventStreams<State>,
    origins: Option<Origins>,
    hosts: Option<AllowedHosts>,
    guarded: Option<Vec<String>>,
    option_names: OptionNames,
    proxies: Option<TrustedProxies>,
    #[cfg(feature = "deflate")]
    compression: Option<crate::compression::Compression>,
    on_handshake: Option<Box<dyn HandshakeHandler<State, StreamState>>>,
    on_body: Option<Box<dyn BodyGuard<State>>>,
    on_connect: Option<Box<dyn EventHandler<State, StreamState>>>,
    on_disconnect: Option<Box<dyn EventHandler<State, StreamState>>>,
    on_message: Option<Box<dyn MessageHandler<State, StreamState>>>,
    on_room: Option<Box<dyn RoomHandler<State, StreamState>>>,
    procedures: Option<Procedures<State, StreamState>>,
    on_join: Option<Box<dyn JoinHandler<StreamState>>>,
}

#[allow(clippy::new_without_default)] // 0.5.1 had none, and `State` may have none.
impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Creates an app that listens itself: on `0.0.0.0:80`, unless [`with_address`](Self::with_address) says otherwise.
    /// Its handlers run on 32 threads.
    pub fn new() -> Self
    where
        State: Default,
    {
        Self::new_with_state(State::default())
    }

    /// Creates an app with this state that listens itself, otherwise as [`new`](Self::new).
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

    /// Creates an app that listens itself, with this state and number of handler threads (at least one).
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

    /// Creates an app that takes its connections from a Humphrey app, which
    /// [`async_websocket_handler`](crate::async_websocket_handler) links to it; or, with the feature `axum`, from an axum app.
    pub fn new_unlinked() -> Self
    where
        State: Default,
    {
        Self::new_unlinked_with_state(State::default())
    }

    /// Creates an app with this state that takes its connections from a Humphrey app or an axum app, otherwise as
    /// [`new_unlinked`](Self::new_unlinked).
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
            event_streams: Vec::new(),
            origins: None,
            hosts: None,
            guarded: None,
            option_names: OptionNames::new(),
            proxies: None,
            #[cfg(feature = "deflate")]
            compression: None,
            on_handshake: None,
            on_body: None,
            on_connect: None,
            on_disconnect: None,
            on_message: None,
            on_room: None,
            procedures: None,
            on_join: None,
        }
    }

    /// What a Humphrey app hands connections over with; `None` if this app listens itself.
    ///
    /// Pass it to [`async_websocket_handler`](crate::async_websocket_handler). Once the app has stopped, or was
    /// dropped, sending into it fails.
    pub fn connect_hook(&self) -> Option<Arc<Mutex<Sender<WebsocketStream>>>> {
        match &self.humphrey_link {
            HumphreyLink::External(hook) => Some(hook.clone()),
            HumphreyLink::Internal(..) => None,
        }
    }

    /// A sender, to send from other threads.
    pub fn sender(&self) -> AsyncSender {
        AsyncSender(self.shared.clone())
    }

    /// The app's state.
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

    /// Sets the handler for connections that have ended, however they did.
    pub fn on_disconnect(&mut self, handler: impl EventHandler<State, StreamState>) {
        self.on_disconnect = Some(Box::new(handler));
    }

    /// Sets the handler for messages.
    pub fn on_message(&mut self, handler: impl MessageHandler<State, StreamState>) {
        self.on_message = Some(Box::new(handler));
    }

    /// Sets the handler for handshakes, which decides who may come in: by path, query, headers, cookies, origin, offered
    /// subprotocols and address. By default everyone may.
    ///
    /// It runs before the connection is a WebSocket, on a handler thread, and may block; nothing is read from the client
    /// meanwhile. [`Accept`](crate::Accept) can choose a subprotocol, add headers to the answer, and give the stream its
    /// state, so that handlers find there what was learned here. [`Reject`](crate::Reject) is what the client is answered
    /// instead; if it panics, that is 500. Rejections are counted
    /// ([`Refused::handshake_handler`](crate::Refused::handshake_handler)).
    ///
    /// It is asked after the limits and the origins
    /// ([`with_allowed_origins`](Self::with_allowed_origins)), for every way in. A connection whose handshake was answered
    /// before it is handed over (`WebsocketStream::new`, or a hook of one's own) is closed with 1008 where it is rejected;
    /// of its request nothing may be known, so it has no headers. While the app stops, clients are answered with 503.
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

    /// Sets the handler for connections that join a room, or leave it.
    pub fn on_room(&mut self, handler: impl RoomHandler<State, StreamState>) {
        self.on_room = Some(Box::new(handler));
    }

    /// Sets the handler for new connections.
    pub fn with_connect_handler(mut self, handler: impl EventHandler<State, StreamState>) -> Self {
        self.on_connect(handler);
        self
    }

    /// Sets the handler for connections that have ended, however they did.
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

    /// Sets the handler for connections that join a room, or leave it, also by ending.
    pub fn with_room_handler(mut self, handler: impl RoomHandler<State, StreamState>) -> Self {
        self.on_room(handler);
        self
    }

    /// Sets the address to listen on. Port 0 takes any free one, which [`bind`](Self::bind) tells.
    ///
    /// Has no effect on an app that takes its connections from a Humphrey app.
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
                Ok(None) => panic!("the address to listen on resolves to nothing"),
                Err(error) => panic!("the address to listen on can't be resolved: {error}"),
            };
            self.listener = None;
        }
        self
    }

    /// Has no effect: the engine does not poll. 0.5.1 did, at this interval.
    pub fn with_polling_interval(self, _interval: Option<Duration>) -> Self {
        self
    }

    /// Pings clients, and disconnects those that are silent for too long. By default nobody is.
    pub fn with_heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = Some(heartbeat);
        self
    }

    /// Stops the app when something is received: as [`AsyncSender::shutdown`], with
    /// [`Limits::close_timeout`] to wait. That the other end is dropped stops nothing.
    pub fn with_shutdown(mut self, shutdown_receiver: Receiver<()>) -> Self {
        self.shutdown = Some(shutdown_receiver);
        self
    }

    /// Sets the bounds.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what happens when a client reads too slowly. By default it is disconnected.
    pub fn with_slow_consumer(mut self, slow_consumer: SlowConsumer) -> Self {
        self.slow_consumer = slow_consumer;
        self
    }

    /// Has rooms keep their last messages: those whose name matches, each within these limits. In a pattern, `*` stands for any characters, or none. The first call that matches a room counts;
    /// by default rooms keep nothing.
    ///
    /// What is kept can be read with [`Room::since`](crate::Room::since), and is replayed with
    /// [`AsyncStream::join_since`](crate::AsyncStream::join_since). Every message of such a room has an id
    /// ([`HistoryId`](crate::HistoryId)). A room that keeps a history stays when nobody is in it. Where there are
    /// [`Limits::rooms_max`], it may give way to another that is to keep a message, but never to one that is joined; a room
    /// whose pattern is its name, without `*`, never gives way. A replay that is
    /// longer than [`Limits::outbox_bytes_max`] is sent all the same.
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

    /// Sets whether warnings and errors of the library go to standard error where the program has set no logger. By default they
    /// do: each kind of warning once.
    ///
    /// The library reports to the logger of the crate `log`, or with the feature `tracing` to the subscriber of `tracing`. Where
    /// there is one, nothing goes to standard error, whatever level the logger shows. With `false`, warnings without a logger are
    /// lost, in the whole process, from when this app starts.
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

    /// Sets the number of reactors, each a thread of its own (at least one). By default there is one for each core.
    pub fn with_shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Sets whether quick handlers run on the reactors' own threads. By default they do.
    ///
    /// A handler that runs there costs less and answers sooner, but holds up its reactor for as long as it lasts. So what
    /// handlers take is measured: while they are quick (some microseconds), they run there; where they are not, they run on
    /// the handler threads. One that turns out to block after all is left to itself within some milliseconds (two, or eight if it is the first for long):
    /// another thread goes on with its reactor. At most as many handlers run at the same time as there are handler threads
    /// and reactors together, in order for each connection, as always; with a single handler thread, all run there. It
    /// costs one more thread for each reactor.
    ///
    /// With `false` every handler runs on a handler thread: no client ever waits for that of another, however
    /// short a while.
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
