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
//! axum's state carries the app's [`AsyncSender`], by itself or as a part ([`FromRef`]): [`upgrade`] and
//! [`WebsocketUpgrade`] find the app with it, and other handlers send with it (`State(sender): State<AsyncSender>`). In
//! them, prefer [`try_broadcast`](AsyncSender::try_broadcast): [`broadcast`](AsyncSender::broadcast) waits while the
//! engine has too much to deliver already, and a task of tokio's must not.
//!
//! The app has its own threads, for its shards and for its handlers, which may block; it uses none of tokio's. Start
//! one that is [unlinked](crate::AsyncWebsocketApp::new_unlinked), so that it does not listen itself; one that listens takes
//! axum's connections beside its own. Its rules hold for them all: the
//! [handshake handler](crate::AsyncWebsocketApp::with_handshake_handler),
//! [allowed origins](crate::AsyncWebsocketApp::with_allowed_origins), [`Limits`](crate::Limits),
//! [trusted proxies](crate::AsyncWebsocketApp::with_trusted_proxies), the policy for
//! [slow consumers](crate::SlowConsumer), [`shutdown`](AsyncSender::shutdown).
//!
//! # Who connects
//!
//! axum knows a client's address only if the router is served with `into_make_service_with_connect_info::<SocketAddr>()`,
//! as above. Without it, a handshake handler sees `0.0.0.0:0`, and the stream has the address of its socket. An app that
//! needs the address earlier, because it bounds connections or handshakes per address or trusts proxies, answers 500
//! and says so.
//!
//! # When a client is connected
//!
//! hyper answers the handshake, and then the engine takes the socket: what is broadcast in between does not reach the
//! client, although it has its answer. Where that matters, have the connect handler greet it: from there on nothing is
//! missed. What the client sends right behind its request is not lost.
//!
//! # What can't be taken over
//!
//! The engine takes plain TCP sockets. A WebSocket over HTTP/2 (extended CONNECT, RFC 8441) is answered with 505. Over TLS
//! that axum ends itself, and over Unix sockets, the connection is closed with 1011 and a reason, and the log says so:
//! let a proxy end TLS in front of axum.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use ::axum::extract::{FromRef, FromRequestParts};
use ::axum::http::request::Parts;
use ::axum::response::{IntoResponse, Response};

use crate::async_app::AsyncSender;
use crate::host::axum as host;
use crate::request::Reject;

/// The whole handler of a route that is a WebSocket: `any(humphrey_ws::axum::upgrade)`.
///
/// A route of `any` method, so that a WebSocket over HTTP/2, which is a `CONNECT`, is told what is wrong.
pub async fn upgrade(upgrade: WebsocketUpgrade) -> WebsocketUpgrade {
    upgrade
}

/// Extracts a client that may become a WebSocket; it does when a handler returns this.
///
/// Extracting checks the handshake (RFC 6455 §4.2.1) and asks the app whether the client may come in: its limits, its
/// allowed origins and then its handshake handler, on a thread of the app's. If not, the client gets the [`Reject`] that
/// says why; a handler that takes `Result<WebsocketUpgrade, Reject>` sees it first. A handler that has this may still
/// return something else; dropped, it lets nobody in.
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
#[must_use = "the client comes in only if this is returned from a handler"]
pub struct WebsocketUpgrade(host::PendingUpgrade);

impl WebsocketUpgrade {
    /// Gives the stream its state, in place of the one that the
    /// [handshake handler](crate::AsyncWebsocketApp::with_handshake_handler) gave. So what axum's extractors and middleware know
    /// of the client reaches the app's handlers, in [`AsyncStream::state`](crate::AsyncStream::state).
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
                "the app's streams have a state of type {expected}, and with_state was given {}",
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
    /// The 101 response. It is to be sent on the connection that the request came from, within tokio.
    fn into_response(self) -> Response {
        self.0.answer()
    }
}

impl fmt::Debug for WebsocketUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebsocketUpgrade").finish_non_exhaustive()
    }
}

/// What the app has to say to a client that it does not let in.
impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        host::rejection(&self.checked())
    }
}
