//! WebSocket for plain, synchronous Rust programs: handlers for connections and messages, and broadcasts from any
//! thread, on an event-driven engine without an async runtime.
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
//! # Where to start
//!
//! - [`AsyncWebsocketApp`]: the app, with its handlers and settings. It listens on its own port, where it can also
//!   serve the HTTP routes of a Humphrey [`SubApp`](humphrey::SubApp). Or it takes its connections from an existing
//!   Humphrey [`App`](humphrey::App) ([`async_websocket_handler`]), or with the feature `axum` from an axum app (module
//!   `axum`).
//! - [`AsyncStream`]: a connection, as handlers receive it. [`AsyncSender`] sends to clients from any thread.
//! - [`Room`]: a named set of connections for fan-out, with presence ([`Presence`]) and optionally a history that is
//!   replayed to late joiners and reconnecting clients ([`HistoryLimits`], [`HistoryId`]), or with the newest message of each key
//!   ([`KeyedLimits`]).
//! - [`Message`]: a text or binary message, which all its recipients share.
//! - [`RequestHead`], [`Accept`] and [`Reject`]: authentication during the handshake.
//! - [`procedures`]: calls and named notifications over a subprotocol, with a JavaScript client.
//! - [`Subscription`]: server-sent events, for clients without a WebSocket.
//! - [`Limits`], [`SlowConsumer`] and [`Metrics`]: bounds, backpressure, and counters.
//! - [`WebsocketStream`]: the blocking API, with a thread for each connection ([`websocket_handler`]).
//! - `websocket_client`: a client, with the feature `client`; for `wss://` URLs with the feature `client-tls`.
//!
//! # Guarantees
//!
//! - Order: for each connection, the connect handler runs first, then the message handler for each message in the order
//!   sent, then the disconnect handler. Each runs exactly once, never two at a time. The broadcasts of one thread
//!   arrive at every client in the order in which they were made.
//! - Isolation: a slow or silent client delays no other client, unless the program applies backpressure to producers
//!   ([`SlowConsumer::Pace`]).
//! - Blocking handlers: a handler that blocks delays its own connection only.
//! - Bounded memory: every queue and buffer has a limit ([`Limits`]), and messages that are not delivered are counted
//!   ([`Metrics`]).
//!
//! Programs written for humphrey_ws 0.5.1 compile, unless they convert a value of their own in the call:
//! `stream.send(event.into())` must become `stream.send(event)`.

// The only unsafe code is in `transport::ring`, which this feature enables.
#![cfg_attr(not(feature = "io-uring"), forbid(unsafe_code))]
// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod async_app;
mod atomic;
mod authority;
#[cfg(feature = "axum")]
pub mod axum;
#[cfg(feature = "cluster")]
mod cluster;
#[cfg(feature = "deflate")]
mod compression;
#[cfg(feature = "deflate")]
mod compressors;
mod cork;
#[cfg(feature = "__tls")]
mod crypto;
mod drain;
mod engine;
pub mod error;
pub mod files;
#[cfg(all(any(test, fuzzing), not(loom)))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handler;
mod history_id;
mod host;
mod hosts;
mod limits;
mod listener;
pub mod message;
mod metrics;
mod option_names;
mod origins;
pub mod ping;
// What other nodes tell is known even where there are none.
#[cfg_attr(not(feature = "cluster"), allow(dead_code))]
mod presence;
mod protocol;
mod proxies;
mod report;
mod request;
pub mod restion;
pub mod stream;
mod sync;
#[cfg(feature = "__tls")]
pub mod tls;
#[cfg(any(feature = "__client-tls", feature = "__cluster-tls"))]
mod tls_client;
mod transport;
mod user_threads;
mod varint;
// Not `client`: Humphrey has a module of that name, and programs import both crates by glob.
#[cfg(feature = "client")]
#[cfg_attr(loom, allow(dead_code))] // Models do without.
pub mod websocket_client;

pub use async_app::procedures::Procedures;
pub use async_app::{
    AsyncSender, AsyncStream, AsyncWebsocketApp, ConnectionId, ConnectionInfo, ConnectionKind,
    Inspect, Inspection, InvalidConnectionId, KeptMessage, PresenceRooms, PresentMember, Room,
    RoomPresence, RunningApp, Subscription,
};
#[cfg(feature = "cluster")]
pub use async_app::{Everywhere, HistoryGap};
#[cfg(feature = "cluster")]
pub use cluster::Cluster;
#[cfg(feature = "deflate")]
pub use compression::Compression;
pub use drain::Drain;
pub use engine::Presence;
pub use error::{
    JoinError, JoinErrorReason, PresenceError, PresenceErrorReason, SendError, SendErrorReason,
};
#[cfg(feature = "deflate")]
pub use handler::websocket_handler_with_compression;
pub use handler::{async_websocket_handler, websocket_handler};
pub use history_id::{HistoryGone, HistoryId, InvalidHistoryId};
pub use host::Cors;
pub use hosts::AllowedHosts;
pub use limits::{HistoryLimits, KeyedLimits, Limits, OverRate, SlowConsumer};
pub use listener::Listener;
pub use message::Message;
pub use metrics::{
    Calls, ClusterMetrics, CompressionMetrics, Dropped, DurationHistogram, HandshakeFailures,
    Metrics, Refused, SizeHistogram, TlsMetrics,
};
pub use option_names::OptionNames;
pub use origins::Origins;
pub use protocol::close::{CloseCode, InvalidCloseCode, REASON_BYTES_MAX};
pub use proxies::TrustedProxies;
pub use request::{Accept, Reject, RequestHead};
pub use stream::WebsocketStream;

/// Calls and named notifications in both directions, over binary messages of a subprotocol.
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
/// There are two subprotocols, `humphrey_ws.procedures.v1` and the older `websocket.io-rpc-v0.1`. A client offers one
/// or both in its handshake. The older one has notifications in both directions, and calls from the client, which it
/// can cancel. The newer one adds errors, streamed answers ([`Reply::item`](procedures::Reply::item)), calls from the
/// server ([`AsyncStream::call`]), and calls that the server answers itself: `$ping`, and `$join` and `$leave` for
/// rooms ([`AsyncWebsocketApp::with_join_handler`]). The guide describes the wire format: docs/procedures.md.
///
/// - A client's calls and notifications are handled in the order in which it sends them. A running handler learns at
///   once when its call is cancelled or its connection ends ([`Call::cancelled`](procedures::Call::cancelled)), unless
///   more than [`Limits::pending_bytes_max`] is queued before the cancellation. A call that is cancelled before its
///   handler has begun is not handled.
/// - Notifications that a handler sends before its answer arrive before the answer.
/// - A malformed frame, or a call with an id that is in flight, closes the connection with 1002; a name that is not
///   UTF-8 closes it with 1007. Frames that arrived before are still handled.
/// - Calls in flight are limited ([`Limits::connection_calls_max`]) and counted ([`Metrics::calls`]).
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
#[cfg(all(doctest, feature = "__client-tls"))]
#[doc = include_str!("../docs/clients.md")]
struct ClientsGuide;

/// The programs of the guide's page on TLS compile.
#[cfg(all(doctest, feature = "__tls"))]
#[doc = include_str!("../docs/tls.md")]
struct TlsGuide;

/// The programs of the guide's page on several nodes compile.
#[cfg(all(doctest, feature = "__cluster-tls"))]
#[doc = include_str!("../docs/cluster.md")]
struct ClusterGuide;

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
#[doc = include_str!("../docs/keyed.md")]
struct KeyedRooms;

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
