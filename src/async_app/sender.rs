//! Sending from any thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::connection_id::ConnectionId;
use super::inspection::{Inspect, Inspection};
use super::publish::{AppShared, Blocking, Recipients};
use super::room::Room;
use crate::drain::Drain;
use crate::error::SendError;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::protocol::close::CloseCode;
use crate::user_threads;

/// Sends to one client, to a room or to every client, from any thread and at any time: before, while and after the app
/// runs.
///
/// [`AsyncWebsocketApp::sender`](crate::AsyncWebsocketApp::sender) returns one. Clones are cheap. The broadcasts of one
/// thread arrive at every client in the order in which they were made.
///
/// ```no_run
/// use humphrey_ws::AsyncWebsocketApp;
/// use std::{io::stdin, thread::spawn};
///
/// let app = AsyncWebsocketApp::<()>::new();
/// let sender = app.sender();
/// spawn(move || {
///     for line in stdin().lines().map_while(Result::ok) {
///         sender.broadcast(line);
///     }
/// });
/// app.run();
/// ```
#[derive(Clone)]
pub struct AsyncSender(pub(super) Arc<AppShared>);

impl AsyncSender {
    /// Sends a message to the client with this address. If there is none, the message is counted as dropped.
    ///
    /// Waits only while a mailbox of the engine is full, never for the client.
    pub fn send(&self, address: SocketAddr, message: impl Into<Message>) {
        let _ = self.to_address(address, message.into(), Blocking::Wait);
    }

    /// Sends a message to the client with this address, or returns it in the error. Never waits.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::SendErrorReason::Closed) if there is no such client, or the app does not run;
    /// [`Full`](crate::SendErrorReason::Full) if the client's outbox is more than half full, or the engine's mailbox is
    /// full; [`TooLarge`](crate::SendErrorReason::TooLarge) if the message is longer than the limit.
    pub fn try_send(
        &self,
        address: SocketAddr,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        self.to_address(address, message.into(), Blocking::Try)
    }

    /// Returns the running engine, if there is one.
    #[cfg(feature = "axum")]
    pub(crate) fn hub(&self) -> Option<Arc<crate::engine::Hub>> {
        self.0.hub()
    }

    fn to_address(
        &self,
        address: SocketAddr,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        let session = self.0.directory.find(address);
        let to = session
            .as_deref()
            .map_or(Recipients::Nobody, Recipients::Session);
        self.0.publish(to, message, blocking)
    }

    /// Sends a message to one connection. If the connection has gone, the message is counted as dropped.
    ///
    /// Unlike an address, an id is never reused for another client. In a cluster, it may be that of another node's
    /// connection.
    pub fn send_to(&self, id: ConnectionId, message: impl Into<Message>) {
        let _ = self.to_connection(id, message.into(), Blocking::Wait);
    }

    /// Sends a message to one connection, or returns it in the error. Never waits.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::SendErrorReason::Closed) if the connection has gone, or the app does not run;
    /// [`Full`](crate::SendErrorReason::Full) if the client's outbox is more than half full, or the engine's mailbox is
    /// full; [`TooLarge`](crate::SendErrorReason::TooLarge) if the message is longer than the limit. For a connection of
    /// another node of the cluster, [`Closed`](crate::SendErrorReason::Closed) says that this node does not hear the other,
    /// and [`Full`](crate::SendErrorReason::Full) that the queue to the broker is full.
    ///
    /// ```
    /// use humphrey_ws::{AsyncSender, ConnectionId, SendErrorReason};
    ///
    /// /// Whether the client is still there.
    /// fn tick(sender: &AsyncSender, id: ConnectionId) -> bool {
    ///     match sender.try_send_to(id, "tick") {
    ///         Err(error) => error.reason != SendErrorReason::Closed,
    ///         Ok(()) => true,
    ///     }
    /// }
    /// ```
    pub fn try_send_to(
        &self,
        id: ConnectionId,
        message: impl Into<Message>,
    ) -> Result<(), SendError> {
        self.to_connection(id, message.into(), Blocking::Try)
    }

    fn to_connection(
        &self,
        id: ConnectionId,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.0.elsewhere(id) {
            return self.0.send_elsewhere(cluster, id, message, blocking);
        }
        // `try` has to know whether the connection exists, and how full its outbox is.
        let session = match blocking {
            Blocking::Wait => None,
            Blocking::Try => self.0.find(id),
        };
        let to = match (&session, blocking) {
            (Some(session), _) => Recipients::Session(session),
            (None, Blocking::Wait) => match self.0.local_id(id) {
                Some(id) => Recipients::Connection(id),
                None => Recipients::Nobody,
            },
            (None, Blocking::Try) => Recipients::Nobody,
        };
        self.0.publish(to, message, blocking)
    }

    /// Sends a message to every connected client, and to event streams [with
    /// broadcasts](crate::Subscription::with_broadcasts).
    ///
    /// Applies backpressure: it waits while a mailbox of the engine is full. If no client is connected, or the app does
    /// not run, it returns at once and counts the message as dropped.
    pub fn broadcast(&self, message: impl Into<Message>) {
        self.everyone().broadcast(message);
    }

    /// Sends a message to every connected client, or returns it in the error, in which case no client receives it.
    /// Never waits.
    ///
    /// It is not an error if no client is connected.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::SendErrorReason::Full) if a mailbox of the engine is full;
    /// [`Closed`](crate::SendErrorReason::Closed) before and after the app runs;
    /// [`TooLarge`](crate::SendErrorReason::TooLarge) if the message is longer than the limit.
    pub fn try_broadcast(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.everyone().try_broadcast(message)
    }

    /// Runs code that sends several messages at once, and wakes the engine for all of them together. So the engine writes them
    /// to each client with one system call, as it does with what a handler sends.
    ///
    /// Without it, the first message wakes the engine, which may then write this one alone before it gets the others. The order
    /// of messages does not change, and backpressure applies. The engine may deliver messages before the code returns. It is woken
    /// for them with every 65th message, and before this thread waits in this library, for example for space in a full mailbox. If
    /// the code blocks otherwise, messages that it has sent may wait until it returns. Only messages that this thread sends are
    /// concerned, and not those of rooms that keep a history in a cluster: these come back from the broker.
    ///
    /// ```
    /// # use humphrey_ws::AsyncSender;
    /// fn publish(sender: &AsyncSender, log: &str) {
    ///     sender.cork(|| {
    ///         for line in log.lines() {
    ///             sender.broadcast(line);
    ///         }
    ///     });
    /// }
    /// ```
    pub fn cork<R>(&self, code: impl FnOnce() -> R) -> R {
        match self.0.engine() {
            Some(hub) => hub.cork(code),
            None => code(),
        }
    }

    /// Returns the room of this name, whether or not it has members.
    pub fn room(&self, name: &str) -> Room {
        Room::named(self.0.clone(), name)
    }

    /// Returns the room of all connected clients.
    pub fn everyone(&self) -> Room {
        Room::everyone(self.0.clone())
    }

    /// Closes a connection after the messages that were sent to it before; see
    /// [`AsyncStream::close`](crate::AsyncStream::close). In a cluster, it may be another node's.
    pub fn close(&self, id: ConnectionId, code: CloseCode, reason: &str) {
        self.0.close(id, code, reason);
    }

    /// Returns the WebSocket connections of a user, as the handshake handler has named them
    /// ([`Accept::user`](crate::Accept::user)), in no particular order. Connections that are closing are included until
    /// they have ended; event streams are not, nor the connections of other nodes of a cluster.
    ///
    /// ```
    /// # use humphrey_ws::{AsyncSender, Message};
    /// fn tell(sender: &AsyncSender, user: &str, text: &str) {
    ///     for id in sender.connections_of(user) {
    ///         sender.send_to(id, Message::new(text));
    ///     }
    /// }
    /// ```
    pub fn connections_of(&self, user: &str) -> Vec<ConnectionId> {
        let ids = self.0.connections_of(user).into_iter();
        ids.map(|id| self.0.id_of(id)).collect()
    }

    /// Closes all connections of a user, each after the messages that were sent to it before, and ends the user's event
    /// streams. Returns how many were open. In a cluster, this includes the user's connections on all nodes; those of other
    /// nodes are not part of the returned number.
    ///
    /// A connection whose handshake was accepted but which is not open yet is closed when it opens. One whose handshake
    /// handler still runs is not closed: first revoke what the handler checks, then close. Waits only while a mailbox
    /// of the engine is full.
    ///
    /// ```
    /// # use humphrey_ws::{AsyncSender, CloseCode};
    /// fn sign_out(sender: &AsyncSender, user: &str) {
    ///     // First end the session in the database, so that nobody reconnects with it.
    ///     let closed = sender.close_user(user, CloseCode::POLICY_VIOLATION, "signed out");
    ///     println!("{closed} connections of {user} are closed");
    /// }
    /// ```
    pub fn close_user(&self, user: &str, code: CloseCode, reason: &str) -> usize {
        self.0.close_user(user, code, reason)
    }

    /// Sets when a connection expires; with `None` it does not. This replaces the time that
    /// [`Accept::expires_at`](crate::Accept::expires_at) set, as
    /// [`AsyncStream::set_expires_at`](crate::AsyncStream::set_expires_at) does. Does nothing if the connection has
    /// gone, or belongs to another node of a cluster.
    ///
    /// ```
    /// # use humphrey_ws::AsyncSender;
    /// use std::time::{Duration, SystemTime};
    ///
    /// fn prolong(sender: &AsyncSender, user: &str) {
    ///     for id in sender.connections_of(user) {
    ///         sender.set_expires_at(id, SystemTime::now() + Duration::from_secs(3_600));
    ///     }
    /// }
    /// ```
    pub fn set_expires_at(&self, id: ConnectionId, time: impl Into<Option<SystemTime>>) {
        if let Some(session) = self.0.find(id) {
            self.0.set_expires_at(&session, time.into());
        }
    }

    /// Returns whether the app is ready to serve clients, as a load balancer's health check asks.
    ///
    /// It is false before [`start`](crate::AsyncWebsocketApp::start), and from [`shutdown`](Self::shutdown) or
    /// [`shutdown_over`](Self::shutdown_over) on. In between it
    /// is true, except for an app that has both `with_cluster` and
    /// [`with_history`](crate::AsyncWebsocketApp::with_history): while one of its broker servers is not connected, rooms with a
    /// history get no messages, so it is false then. Without `with_history`, a node of a cluster stays ready during an outage of
    /// the broker, because it goes on serving its own clients. Never waits.
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// use humphrey::SubApp;
    /// use humphrey::http::{Response, StatusCode};
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// let sender = app.sender();
    /// assert!(!sender.is_ready());
    /// // The load balancer sends new clients to other nodes while this route answers 503.
    /// let app = app.with_routes(SubApp::new().with_stateless_route("/ready", move |_| {
    ///     match sender.is_ready() {
    ///         true => Response::new(StatusCode::OK, "ready\n"),
    ///         false => Response::new(StatusCode::ServiceUnavailable, "not ready\n"),
    ///     }
    /// }));
    /// ```
    pub fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    /// Returns whether all threads that serve clients take a turn within this time, for a watchdog that restarts a process which
    /// hangs. A handler that blocks does not hold them up. False while the app does not run.
    ///
    /// Waits, usually for less than a millisecond, at most for the given time. Do not call it from a handler. Where the library must
    /// not block, such as in a `tracing` subscriber, it returns false at once.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    /// use std::time::Duration;
    ///
    /// let running = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0").start()?;
    /// assert!(running.sender().responds_within(Duration::from_secs(10)));
    /// # running.shutdown(Duration::ZERO);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn responds_within(&self, wait: Duration) -> bool {
        let hub = self.0.running().filter(|_| !user_threads::must_not_block());
        hub.is_some_and(|hub| hub.responds_within(wait))
    }

    /// Returns how many WebSocket clients are connected.
    pub fn connections(&self) -> usize {
        self.0.connections()
    }

    /// Returns connections of this node, the slowest first: who is behind, and by how much.
    ///
    /// Each shard looks at its connections in portions, between other work, and reports those that are selected. So the
    /// answer is a snapshot of each connection, and not of one instant. Event streams are included; connections whose
    /// handshake is not accepted yet, and those of other nodes of a cluster, are not. Before and after the app runs, there are
    /// none.
    ///
    /// Blocks until all shards have answered, usually for less than a millisecond, but at most for half a second: then the
    /// connections of the shards that are too busy are missing ([`Inspection::is_complete`]). A handler may call it, also one
    /// that runs on the thread of a shard: another thread then runs that shard, after some milliseconds. An asynchronous task
    /// should call it on a thread that may block. Where the library must not block, as in a `tracing` subscriber, it returns no
    /// connections and is incomplete.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Inspect};
    /// use std::time::Duration;
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_address("127.0.0.1:0");
    /// let running = app.start().unwrap();
    /// for slow in running.sender().inspect(Inspect::slowest(10)).connections {
    ///     println!("{} is {:?} behind: {} bytes wait", slow.peer, slow.lag, slow.waiting_bytes);
    /// }
    /// running.shutdown(Duration::ZERO);
    /// ```
    pub fn inspect(&self, inspect: Inspect) -> Inspection {
        self.0.inspect(inspect)
    }

    /// Returns the app's counters and gauges.
    pub fn metrics(&self) -> Metrics {
        self.0.metrics()
    }

    /// Returns the counters and gauges of each shard. What belongs to no shard, such as handlers, is in
    /// [`metrics`](Self::metrics) only. Empty before the app runs.
    pub fn metrics_by_shard(&self) -> Vec<Metrics> {
        self.0.metrics_by_shard()
    }

    /// Returns the metrics in Prometheus' text exposition format, version 0.0.4.
    ///
    /// The names begin with `humphrey_ws_`; times are in seconds, sizes in bytes. The label `shard` is the number of a
    /// shard, or `none` for what belongs to none; the label `cause` tells refusals, failures and losses apart.
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// use humphrey::SubApp;
    /// use humphrey::http::{Response, StatusCode};
    ///
    /// let app = AsyncWebsocketApp::<()>::new();
    /// let sender = app.sender();
    /// // On a separate port, which is not open to the public.
    /// let metrics = AsyncWebsocketApp::<()>::new()
    ///     .with_address("127.0.0.1:9100")
    ///     .with_routes(SubApp::new().with_stateless_route("/metrics", move |_| {
    ///         // Prometheus rejects a response without this content type.
    ///         Response::new(StatusCode::OK, sender.prometheus())
    ///             .with_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
    ///     }));
    /// ```
    pub fn prometheus(&self) -> String {
        self.0.prometheus()
    }

    /// Begins a shutdown that clients hardly notice, for a deploy, and returns at once.
    ///
    /// [`is_ready`](Self::is_ready) is false from now on, so that a load balancer sends new clients elsewhere. Everything else
    /// goes on: messages are delivered, and clients that still come are served. The connections are closed one after the other,
    /// evenly over the time of the [`Drain`], each after the messages that were sent to it before. Then the app shuts down
    /// ([`shutdown`](Self::shutdown)) within [`Limits::close_timeout`](field@crate::Limits::close_timeout); earlier, if no connection is left. A call
    /// of `shutdown` ends the drain at once; another of this method can only shorten it.
    ///
    /// Each client gets a close frame with 1012 (service restart, RFC 6455 §7.4.1) and a reason like
    /// `server is restarting, retry-after=1.000`: how many seconds to wait before it reconnects ([`Drain::retry_after`]). The
    /// JavaScript client and `humphrey-broadcast` wait for that time. An event stream gets it as the reconnection time of
    /// WHATWG HTML §9.2.6. So clients come back as evenly as they were closed, and resume the histories of their rooms.
    ///
    /// ```no_run
    /// # use humphrey_ws::AsyncSender;
    /// use std::time::Duration;
    ///
    /// # fn on_sigterm(sender: &AsyncSender) {
    /// sender.shutdown_over(Duration::from_secs(20));
    /// # }
    /// ```
    pub fn shutdown_over(&self, drain: impl Into<Drain>) {
        self.0.shutdown_over(drain.into());
    }

    /// Begins a graceful shutdown and returns at once. [`AsyncWebsocketApp::run`](crate::AsyncWebsocketApp::run)
    /// returns when the shutdown is complete, after `wait` at the latest.
    ///
    /// The app accepts no further connections, delivers the messages that it has accepted, sends every client a close
    /// frame with 1001 (RFC 6455 §7.4.1), and runs the disconnect handlers. The last quarter of `wait`, up to half a
    /// second, is reserved for these. A handler that takes longer is not waited for; its client's disconnect handler
    /// runs when it ends, if the process is still running.
    pub fn shutdown(&self, wait: Duration) {
        self.0.shutdown(wait);
    }
}

impl std::fmt::Debug for AsyncSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncSender")
            .field("connections", &self.connections())
            .finish()
    }
}
