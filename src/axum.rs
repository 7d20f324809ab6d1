//! WebSockets in an [axum](https://docs.rs/axum) app: axum listens and routes, and hands its WebSockets to an
//! [`AsyncWebsocketApp`](crate::AsyncWebsocketApp). With the feature `axum`, for axum 0.8.
//!
//! ```no_run
//! use axum::{Router, routing::{any, get}};
//! use humphrey_ws::{AsyncWebsocketApp, Message};
//! use std::net::SocketAddr;
//! use tokio::net::TcpListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let app = AsyncWebsocketApp::<()>::new_unlinked()
//!     .with_message_handler(|stream, message, _| stream.broadcast(message));
//! let running = app.start()?;
//!
//! let router = Router::new()
//!     .route("/", get(async || "hello"))
//!     .route("/ws", any(humphrey_ws::axum::upgrade))
//!     .with_state(running.sender());
//! let listener = TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
//! # }
//! ```
//!
//! The axum state carries the app's [`AsyncSender`], as a whole or as a part ([`FromRef`]). [`upgrade`] and
//! [`WebsocketUpgrade`] find the app through it, and other handlers can send with it (`State(sender):
//! State<AsyncSender>`). In async handlers, prefer [`try_broadcast`](AsyncSender::try_broadcast):
//! [`broadcast`](AsyncSender::broadcast) applies backpressure by blocking the thread, which a tokio task must not do.
//!
//! The app has its own threads for its shards and its handlers, which may block; it uses none of tokio's. Start an
//! [unlinked](crate::AsyncWebsocketApp::new_unlinked) app, so that it does not listen itself. (An app that listens
//! serves axum's connections as well as its own.) All of the app's rules apply to connections from axum: the [handshake
//! handler](crate::AsyncWebsocketApp::with_handshake_handler), [allowed
//! origins](crate::AsyncWebsocketApp::with_allowed_origins), [`Limits`](crate::Limits), [trusted
//! proxies](crate::AsyncWebsocketApp::with_trusted_proxies), the policy for [slow consumers](crate::SlowConsumer), and
//! [`shutdown`](AsyncSender::shutdown).
//!
//! # Client addresses
//!
//! axum knows a client's address only if the router is served with
//! `into_make_service_with_connect_info::<SocketAddr>()`, as above. Otherwise a handshake handler sees `0.0.0.0:0`, and
//! the stream later has the address of its socket. An app that needs the address earlier, because it limits connections
//! or handshakes per address or trusts proxies, answers 500 with an explanation.
//!
//! # When a client is connected
//!
//! hyper sends the handshake response, and then the engine takes the socket. A client misses broadcasts that are made
//! in between, although it already has the response. If that matters, let the connect handler send a greeting: from
//! then on the client misses nothing. Bytes that the client sends right after its request are not lost.
//!
//! # Unsupported connections
//!
//! The engine takes plain TCP sockets. A WebSocket over HTTP/2 (extended CONNECT, RFC 8441) gets 505. If axum itself
//! ends TLS, or listens on a Unix socket, the connection is closed with 1011 and a reason, and a warning is logged: let
//! a proxy in front of axum end TLS.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use ::axum::extract::{FromRef, FromRequestParts};
use ::axum::http::request::Parts;
use ::axum::response::{IntoResponse, Response};

use crate::async_app::AsyncSender;
use crate::host::axum as host;
use crate::request::Reject;

/// A complete handler for a WebSocket route: `any(humphrey_ws::axum::upgrade)`.
///
/// Route `any` method to it, so that a WebSocket over HTTP/2, which uses `CONNECT`, gets an explanation.
pub async fn upgrade(upgrade: WebsocketUpgrade) -> WebsocketUpgrade {
    upgrade
}

/// Extracts a client that asks for a WebSocket. It becomes one when a handler returns this value.
///
/// Extracting checks the handshake (RFC 6455 §4.2.1) and has the app authorize the client: its limits, its allowed
/// origins, and then its handshake handler on one of the app's threads. A refused client gets a [`Reject`] that says
/// why; a handler that takes `Result<WebsocketUpgrade, Reject>` receives it first. A handler may also drop this value
/// and return another response, in which case the client does not become a WebSocket.
///
/// ```no_run
/// use axum::{Router, extract::Path, http::StatusCode, response::{IntoResponse, Response}, routing::any};
/// use humphrey_ws::{AsyncSender, axum::WebsocketUpgrade};
///
/// async fn live(Path(channel): Path<String>, upgrade: WebsocketUpgrade) -> Response {
///     match channel.as_str() {
///         "news" | "weather" => upgrade.into_response(),
///         _ => (StatusCode::NOT_FOUND, "no such channel\n").into_response(),
///     }
/// }
///
/// let router: Router<AsyncSender> = Router::new().route("/live/{channel}", any(live));
/// ```
#[must_use = "the client becomes a WebSocket only if a handler returns this"]
pub struct WebsocketUpgrade(host::PendingUpgrade);

impl WebsocketUpgrade {
    /// Sets the initial state of the stream, in place of the one that the [handshake
    /// handler](crate::AsyncWebsocketApp::with_handshake_handler) gave. It passes what axum's extractors and middleware
    /// know about the client to the app's handlers, as [`AsyncStream::state`](crate::AsyncStream::state).
    ///
    /// # Panics
    ///
    /// If the state is of another type than the app's `StreamState`.
    ///
    /// ```no_run
    /// use axum::{Extension, Router, middleware, routing::any};
    /// use humphrey_ws::{AsyncSender, AsyncWebsocketApp, axum::WebsocketUpgrade};
    ///
    /// #[derive(Clone, Default)]
    /// struct User {
    ///     name: String,
    /// }
    ///
    /// // A middleware has authenticated the client, and added the extension.
    /// async fn live(Extension(user): Extension<User>, upgrade: WebsocketUpgrade) -> WebsocketUpgrade {
    ///     upgrade.with_state(user)
    /// }
    ///
    /// let app = AsyncWebsocketApp::<(), User>::new_unlinked()
    ///     .with_connect_handler(|stream, _| stream.send(format!("Hello, {}.", stream.state.name)));
    /// let router: Router<AsyncSender> = Router::new().route("/live", any(live));
    /// ```
    #[track_caller]
    pub fn with_state<StreamState>(mut self, state: StreamState) -> Self
    where
        StreamState: Send + Sync + Default + 'static,
    {
        if let Err(expected) = self.0.attach(Arc::new(state)) {
            panic!(
                "the app's streams have a state of type {expected}, but with_state was given {}",
                type_name::<StreamState>()
            );
        }
        self
    }
}

impl<S> FromRequestParts<S> for WebsocketUpgrade
where
    S: Send + Sync,
    AsyncSender: FromRef<S>,
{
    type Rejection = Reject;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Reject> {
        let Some(hub) = AsyncSender::from_ref(state).hub() else {
            return Err(host::not_running());
        };
        host::authorize(parts, &hub).await.map(Self)
    }
}

impl IntoResponse for WebsocketUpgrade {
    /// Returns the 101 response. It must be sent on the connection that the request came from, within a tokio runtime.
    fn into_response(self) -> Response {
        self.0.answer()
    }
}

impl fmt::Debug for WebsocketUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebsocketUpgrade").finish_non_exhaustive()
    }
}

/// The response to a client that the app rejects.
impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        host::rejection(&self.checked())
    }
}
