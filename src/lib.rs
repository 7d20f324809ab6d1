//! Live WebSocket for plain, synchronous programs: handlers for connections and messages, and broadcasts from any
//! thread, on an event-driven engine, with no async runtime in sight.
//!
//! ```no_run
//! use humphrey_ws::AsyncWebsocketApp;
//! use std::{io::stdin, thread::spawn};
//!
//! let app = AsyncWebsocketApp::<()>::new()
//!     .with_address("127.0.0.1:8080")
//!     .with_connect_handler(|stream, _| {
//!         stream.broadcast(format!("Welcome, {}!", stream.peer_addr()))
//!     })
//!     .with_message_handler(|stream, message, _| stream.send(message));
//! let sender = app.sender();
//! spawn(move || {
//!     for line in stdin().lines().map_while(Result::ok) {
//!         sender.broadcast(line);
//!     }
//! });
//! app.run();
//! ```
//!
//! An [`AsyncWebsocketApp`] listens itself, and can serve the HTTP routes of a Humphrey
//! [`SubApp`](humphrey::SubApp) on the same port; or it takes its connections from an existing Humphrey
//! [`App`](humphrey::App) ([`async_websocket_handler`]), or with the feature `axum` from an axum app (the module `axum`).
//! [`WebsocketStream`] is the blocking way ([`websocket_handler`]). With the feature `client` the crate has a client, too (the module
//! `websocket_client`).
//!
//! What holds, whatever clients do:
//!
//! - For one connection: the connect handler, its messages in the order sent, the disconnect handler, each exactly
//!   once, never two at a time. What one thread broadcasts arrives everywhere in that order.
//! - Nobody waits for a slow or silent client, unless the program asks its producers to ([`SlowConsumer::Pace`]).
//! - Handlers may block: they delay their own connection only.
//! - Everything is bounded ([`Limits`]), and what is not delivered is counted ([`Metrics`]).
//!
//! Code written for humphrey_ws 0.5.1 compiles unchanged.

// What unsafe code there is stands in `transport::ring`, which is built with this feature only.
#![cfg_attr(not(feature = "io-uring"), forbid(unsafe_code))]

pub mod async_app;
mod atomic;
mod authority;
#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "deflate")]
mod compression;
mod engine;
pub mod error;
#[cfg(all(any(test, fuzzing), not(loom)))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handler;
mod history_id;
mod host;
mod hosts;
mod limits;
pub mod message;
mod metrics;
mod option_names;
mod origins;
pub mod ping;
mod protocol;
mod proxies;
mod report;
mod request;
pub mod restion;
pub mod stream;
mod sync;
mod transport;
mod user_threads;
// Not `client`: Humphrey has a module of that name, and programs import both crates by glob.
#[cfg(feature = "client")]
#[cfg_attr(loom, allow(dead_code))] // Models do without.
pub mod websocket_client;

pub use async_app::procedures::Procedures;
pub use async_app::{AsyncSender, AsyncStream, AsyncWebsocketApp, Room, RunningApp, Subscription};
#[cfg(feature = "deflate")]
pub use compression::Compression;
pub use engine::{ConnectionId, Presence};
pub use error::{JoinError, JoinErrorReason, SendError, SendErrorReason};
pub use handler::{async_websocket_handler, websocket_handler};
pub use history_id::{HistoryGone, HistoryId, InvalidHistoryId};
pub use host::Cors;
pub use hosts::AllowedHosts;
pub use limits::{HistoryLimits, Limits, SlowConsumer};
pub use message::Message;
pub use metrics::{Calls, CompressionMetrics, Dropped, HandshakeFailures, Metrics, Refused};
pub use option_names::OptionNames;
pub use origins::Origins;
pub use protocol::close::{CloseCode, InvalidCloseCode, REASON_BYTES_MAX};
pub use proxies::TrustedProxies;
pub use request::{Accept, Reject, RequestHead};
pub use stream::WebsocketStream;

/// Procedures: named notifications both ways, and calls that return, over binary messages of a subprotocol.
///
/// ```
/// use humphrey_ws::AsyncWebsocketApp;
/// use humphrey_ws::procedures::Procedures;
///
/// let app = AsyncWebsocketApp::<()>::new().with_procedures(
///     Procedures::<(), ()>::new()
///         .on_notification("broadcast", |event| event.stream().room("main").notify("message", event.data()))
///         .on_call("uppercase", |call| Ok(call.text()?.to_uppercase())),
/// );
/// ```
///
/// There are two subprotocols, `humphrey_ws.procedures.v1` and the older `websocket.io-rpc-v0.1`; a client offers one, or
/// both, in its handshake. The older one has notifications both ways, and calls from the client, which it can cancel. The newer one
/// has also errors, answers in parts ([`Reply::item`](procedures::Reply::item)), calls from the server
/// ([`AsyncStream::call`]), and calls that the server answers itself: `$ping`, and `$join` and `$leave` for rooms
/// ([`AsyncWebsocketApp::with_join_handler`]). The guide has the bytes: docs/procedures.md.
///
/// - What a client sends is handled in its order. A cancelled call, and the end of a connection, are seen at once, also by a handler
///   that runs ([`Call::cancelled`](procedures::Call::cancelled)), unless more than
///   [`Limits::pending_bytes_max`] waits in front of it. A call that was cancelled before its handler began is not begun.
/// - What a handler notifies and then answers leaves in that order.
/// - A frame that is malformed, or a call with an id that is in flight, closes the connection with 1002, or 1007 where a name is
///   no UTF-8; what came before is still handled.
/// - Calls in flight are bounded ([`Limits::connection_calls_max`]), and counted ([`Metrics::calls`]).
pub mod procedures {
    pub use crate::async_app::procedures::{
        Aborted, Answer, Call, CallError, CallErrorReason, Cancellation, Event, Payload,
        Procedures, Reply,
    };

    /// The JavaScript client, minified: a module that programs serve with their pages, as `text/javascript`. The guide
    /// explains it: docs/javascript.md.
    ///
    /// ```
    /// use humphrey::SubApp;
    /// use humphrey::http::{Response, StatusCode};
    /// use humphrey_ws::AsyncWebsocketApp;
    /// use humphrey_ws::procedures::{CLIENT_JS, Procedures};
    ///
    /// // <script type="module"> import { connect } from "/client.js"; … </script>
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_procedures(Procedures::<(), ()>::new())
    ///     .with_routes(SubApp::new().with_stateless_route("/client.js", |_| {
    ///         Response::new(StatusCode::OK, CLIENT_JS).with_header("Content-Type", "text/javascript")
    ///     }));
    /// ```
    pub const CLIENT_JS: &str = include_str!("client.js");
}

/// Humphrey's feature `tokio` replaces its blocking `Stream` by one that this crate can't use.
#[allow(dead_code)] // Rust 1.88 does not count what a constant without a name uses.
mod humphrey_without_tokio {
    #[diagnostic::on_unimplemented(
        message = "humphrey_ws does not work with humphrey's feature `tokio`",
        label = "humphrey::stream::Stream is not a blocking stream",
        note = "some crate in this build turns on the feature `tokio` of `humphrey`: turn it off"
    )]
    trait Blocking {}
    impl<T: std::io::Read> Blocking for T {}

    const fn check<T: Blocking>() {}
    const _: () = check::<humphrey::stream::Stream>();
}

/// The programs of the guide's page on axum compile.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../docs/axum.md")]
struct AxumGuide;

/// The programs of the guide's page on clients work.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../docs/clients.md")]
struct ClientsGuide;

/// The programs of the guide's page on compression compile.
#[cfg(all(doctest, feature = "deflate"))]
#[doc = include_str!("../docs/compression.md")]
struct CompressionGuide;

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The guide's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/authentication.md")]
struct Authentication;

#[cfg(doctest)]
#[doc = include_str!("../docs/rooms.md")]
struct Rooms;

#[cfg(doctest)]
#[doc = include_str!("../docs/notifications.md")]
struct Notifications;

#[cfg(doctest)]
#[doc = include_str!("../docs/chat.md")]
struct Chat;

#[cfg(doctest)]
#[doc = include_str!("../docs/procedures.md")]
struct ProceduresGuide;

#[cfg(doctest)]
#[doc = include_str!("../docs/server-sent-events.md")]
struct ServerSentEvents;

#[cfg(doctest)]
#[doc = include_str!("../docs/deploying.md")]
struct Deploying;

#[cfg(all(doctest, unix))]
#[doc = include_str!("../docs/stopping.md")]
struct Stopping;

#[cfg(doctest)]
#[doc = include_str!("../docs/metrics-and-logs.md")]
struct MetricsAndLogs;

#[cfg(doctest)]
#[doc = include_str!("../docs/getting-started.md")]
struct GettingStarted;

#[cfg(doctest)]
#[doc = include_str!("../docs/testing.md")]
struct TestingGuide;

#[cfg(doctest)]
#[doc = include_str!("../docs/coming-from.md")]
struct ComingFrom;

#[cfg(doctest)]
#[doc = include_str!("../docs/javascript.md")]
struct JavascriptGuide;

#[cfg(doctest)]
#[doc = include_str!("../docs/open-internet.md")]
struct OpenInternet;
