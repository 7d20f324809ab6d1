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
    /// Serves an event stream at a path of the app's own port: the messages of rooms, and broadcasts if it is to have them, as
    /// [server-sent events](https://html.spec.whatwg.org/multipage/server-sent-events.html), for clients that have no
    /// WebSocket or need none. A page reads it with `new EventSource("/events")`.
    ///
    /// The handler says what a client gets, or rejects it. It runs on a handler thread and may block. In the path, `*` stands
    /// for any characters, or none; the first call that fits a request counts, before mounted routes. A WebSocket handshake
    /// for it still becomes a WebSocket.
    ///
    /// - A text is an event `message`, a binary message an event `binary` in base64. Line ends in a text (CRLF, CR) arrive as
    ///   LF.
    /// - Messages of a room that keeps a history ([`with_history`](Self::with_history)) have their
    ///   [`HistoryId`](crate::HistoryId) as id. A client that comes again says which it has seen last (browsers do so by
    ///   themselves) and gets what it has missed, of all its rooms, then what is new, without gap or duplicate. If that is not
    ///   kept any more, it gets an event `reset` first, whose data is the id that it has named, and then what is kept.
    ///   Broadcasts have no ids and are not replayed.
    /// - Limits, [`SlowConsumer`](crate::SlowConsumer), metrics and shutdown are as for WebSockets; who reads too slowly has his response ended
    ///   behind a whole event. Pages of [allowed origins](Self::with_allowed_origins) may read the stream, with their
    ///   visitors' cookies; where any may connect, without.
    /// - No other handler hears of its clients, and they are not in
    ///   [`AsyncSender::connections`](crate::AsyncSender::connections) or [`Room::members`](crate::Room::members).
    ///   [`Metrics::event_streams`](crate::Metrics::event_streams) and
    ///   [`Room::event_streams`](crate::Room::event_streams) count them.
    ///
    /// Every event is rendered once, however many clients get it, and not at all where there is none.
    ///
    /// Starting fails with an error if the path does not begin with `/` or `*`, or if the app has no port of its own.
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

    /// Serves the HTTP routes of a Humphrey [`SubApp`] on the app's own port; every path can still be upgraded to a
    /// WebSocket. Further calls add further sub-apps, which are told apart by their `host`.
    ///
    /// Handlers of routes run on the handler threads, like all others. Connections are kept alive; requests of one
    /// connection are answered in order. What Humphrey's `Method` has no name for is answered with 501; `HEAD` runs the
    /// handler of `GET`. A request's `address` is that of the peer, unless
    /// [`with_trusted_proxies`](Self::with_trusted_proxies) has the peer believed.
    ///
    /// Starting fails with an error if a sub-app has WebSocket routes (use this app's handlers, and
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

    /// Says which methods the mounted routes at a path have; `*` in it stands for any characters, or none, and the first call
    /// that fits counts. Requests with others are answered with 405 and `Allow`, and `OPTIONS` with those that there are; the
    /// handler runs for none of them. `HEAD` comes with `GET`. By default a route's handler gets every method. Starting fails
    /// with an error if one is none that Humphrey's routes can have: `GET`, `HEAD`, `POST`, `PUT`, `DELETE`, `OPTIONS`.
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

    /// Lets pages of other origins use the mounted routes.
    pub fn with_cors(mut self, cors: Cors) -> Self {
        self.cors = Some(cors);
        self
    }

    /// Sets the function that decides whether a client may send the body of a request to a
    /// [mounted route](Self::with_routes).
    ///
    /// It runs on a handler thread when the head of such a request has arrived, before its body is read, and before a
    /// client that sent `Expect: 100-continue` is told to go on (RFC 9110 §10.1.1). What it rejects is answered at once,
    /// and the connection is closed. Requests without a body, or for a path that has no route (404), are not asked about:
    /// so the route's handler must decide about the former itself. Pages that [`with_cors`](Self::with_cors) allows can read the
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
