//! HTTP beside WebSockets on the app's own port: event streams and routes.

use humphrey::SubApp;

use super::AsyncWebsocketApp;
use crate::async_app::event_stream::EventStreamHandler;
use crate::async_app::handler::BodyGuard;
use crate::host::Cors;

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Serves an event stream ([server-sent events](https://html.spec.whatwg.org/multipage/server-sent-events.html)) on
    /// the app's own port, for clients that have no WebSocket or need none. A page reads it with `new
    /// EventSource("/events")`.
    ///
    /// The handler returns the [`Subscription`](crate::Subscription) of a client, or rejects the request. It runs on a
    /// handler thread and may block. In the path, `*` stands for any run of characters, including none. The first
    /// pattern that matches a request is used, and event streams are matched before mounted routes. A WebSocket
    /// handshake for the same path still becomes a WebSocket.
    ///
    /// - A text message is sent as an event `message`, a binary message as an event `binary` in base64. Line ends in a
    ///   text (CRLF, CR) arrive as LF.
    /// - A message of a room that keeps a history ([`with_history`](Self::with_history)) carries its
    ///   [`HistoryId`](crate::HistoryId) as event id. A reconnecting client sends the last id that it has seen;
    ///   browsers do so by themselves. It then receives the messages that it has missed, from all its rooms, followed
    ///   by new ones, without gap or duplicate. If some of the missed messages are no longer kept, it first receives an
    ///   event `reset`, whose data is the id that the client sent, and then the messages that are kept. Broadcasts have
    ///   no ids and are not replayed.
    /// - Limits, [`SlowConsumer`](crate::SlowConsumer), metrics and shutdown apply as for WebSockets. The response to a
    ///   slow consumer ends after a whole event. Pages of [allowed origins](Self::with_allowed_origins) may read the
    ///   stream with credentials; if every origin is allowed, without.
    /// - Connect, message and disconnect handlers do not run for these clients, and the clients are not in
    ///   [`AsyncSender::connections`](crate::AsyncSender::connections) or [`Room::members`](crate::Room::members).
    ///   [`Metrics::event_streams`](crate::Metrics::event_streams) and
    ///   [`Room::event_streams`](crate::Room::event_streams) count them.
    ///
    /// Each event is rendered once for all its recipients, and not at all if there are none.
    ///
    /// Starting the app fails if the path does not begin with `/` or `*`, or if the app has no port of its own.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Reject, Subscription};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("news/*", HistoryLimits::messages(50).bytes(64 * 1024))
    ///     .with_event_stream("/events", |request, _| match request.query_param("of") {
    ///         Some(city) => Ok(Subscription::room(format!("news/{city}")).with_broadcasts()),
    ///         None => Err(Reject::new(400).with_body("of which city?\n")),
    ///     });
    /// app.sender().room("news/zurich").broadcast("It rains.");
    /// ```
    pub fn with_event_stream(
        mut self,
        path: &str,
        handler: impl EventStreamHandler<State>,
    ) -> Self {
        self.event_streams.push((path.into(), Box::new(handler)));
        self
    }

    /// Serves the HTTP routes of a Humphrey [`SubApp`] on the app's own port. Every path can still be upgraded to a
    /// WebSocket. Further calls add sub-apps, which are selected by their `host`.
    ///
    /// Route handlers run on the handler threads. Connections are kept alive, and the requests of one connection are
    /// answered in order. A method that Humphrey's `Method` does not have gets 501; `HEAD` runs the handler of `GET`. A
    /// request's `address` is that of the peer, unless [`with_trusted_proxies`](Self::with_trusted_proxies) trusts that
    /// peer.
    ///
    /// A response is held in memory until its client has received it (see
    /// [`outboxes_bytes_max`](field@crate::Limits::outboxes_bytes_max)). For large files, use the handlers of
    /// [`files`](crate::files), which send them in pieces.
    ///
    /// Starting the app fails if a sub-app has WebSocket routes (use this app's handlers, and
    /// [`AsyncStream::path`](crate::AsyncStream::path)) or a `cors` of its own (use [`with_cors`](Self::with_cors)), or
    /// if the app takes its connections from a Humphrey app (add the routes there).
    ///
    /// ```no_run
    /// use humphrey::SubApp;
    /// use humphrey::http::{Response, StatusCode};
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// let sender = app.sender();
    /// app.with_routes(SubApp::new().with_stateless_route("/notify", move |_| {
    ///     sender.broadcast("Somebody has asked.");
    ///     Response::new(StatusCode::OK, "Everyone knows.")
    /// }))
    /// .run();
    /// ```
    pub fn with_routes(mut self, routes: SubApp<State>) -> Self {
        self.routes.push(routes);
        self
    }

    /// Restricts the methods of the mounted routes at a path. In the path, `*` stands for any run of characters,
    /// including none; the first call that matches a request is used. By default a route's handler receives every
    /// method.
    ///
    /// A request with another method gets 405 and `Allow`, and `OPTIONS` gets the list of methods; the handler runs for
    /// neither. `GET` includes `HEAD`. Starting the app fails if a method is not one that Humphrey's routes can have:
    /// `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `OPTIONS`.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_route_methods("/publish", ["POST"])
    ///     .with_route_methods("*", ["GET"]);
    /// ```
    pub fn with_route_methods<'a>(
        mut self,
        path: &str,
        methods: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut allow = Vec::new();
        let with_head = |method| [Some(method), (method == "GET").then_some("HEAD")];
        for method in methods
            .into_iter()
            .flat_map(with_head)
            .chain([Some("OPTIONS")])
        {
            if let Some(method) = method.filter(|method| !allow.contains(method)) {
                allow.push(method);
            }
        }
        self.route_methods.push((path.to_owned(), allow.join(", ")));
        self
    }

    /// Sets which pages of other origins may use the mounted routes (CORS). By default none may.
    pub fn with_cors(mut self, cors: Cors) -> Self {
        self.cors = Some(cors);
        self
    }

    /// Sets the function that decides whether a client may send the body of a request to a [mounted
    /// route](Self::with_routes).
    ///
    /// It runs on a handler thread when the head of such a request has arrived, before the body is read, and before a
    /// client that sent `Expect: 100-continue` gets `100 Continue` (RFC 9110 §10.1.1). A rejection is sent at once, and
    /// the connection is closed. The guard does not run for requests without a body, which the route's handler must
    /// check itself, or for paths without a route (404). Pages that [`with_cors`](Self::with_cors) allows can read the
    /// rejection. If the function panics, the client gets 500.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Reject};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_body_guard(|request, _| {
    ///     match request.method() {
    ///         "POST" => Ok(()),
    ///         _ => Err(Reject::new(405).with_header("Allow", "POST")),
    ///     }
    /// });
    /// ```
    pub fn with_body_guard(mut self, guard: impl BodyGuard<State>) -> Self {
        self.on_body = Some(Box::new(guard));
        self
    }
}
