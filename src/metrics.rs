//! Counters and gauges.

mod histogram;
mod prometheus;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::atomic::AtomicU64;

pub(crate) use self::histogram::{DurationCounters, SizeCounters};

/// [`Metrics::delivery_delays`] have steps of 8 milliseconds.
pub(crate) type DelayCounters = DurationCounters<1_000_000>;
pub use self::histogram::{DurationHistogram, SizeHistogram};
pub(crate) use self::prometheus::render;

/// The counters and gauges of an app.
///
/// [`AsyncSender::metrics`](crate::AsyncSender::metrics) reads them at any time,
/// [`AsyncSender::metrics_by_shard`](crate::AsyncSender::metrics_by_shard) for each shard separately, and
/// [`AsyncSender::prometheus`](crate::AsyncSender::prometheus) as text for Prometheus. Each value is exact, but they
/// are read one after the other while the app runs. Fields are counters since the start of the app, unless they are
/// called a gauge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Open WebSocket connections (a gauge).
    pub connections: u64,
    /// WebSocket connections opened.
    pub connections_opened: u64,
    /// Event-stream clients being served (a gauge). They are not WebSocket connections.
    pub event_streams: u64,
    /// Event-stream clients served. Requests for the head alone (`HEAD`) do not count.
    pub event_streams_opened: u64,
    /// Existing rooms (a gauge).
    pub rooms: u64,
    /// Memberships of rooms (a gauge): a connection counts once for every room that it is in.
    pub room_members: u64,
    /// Connections of all kinds that were accepted or handed over, WebSocket or not.
    pub accepted: u64,
    /// Connections refused because of a limit, their origin or host, or the handshake handler, by cause.
    pub refused: Refused,
    /// Connections that ended before they became a WebSocket, by the fault of their request. With mounted routes, HTTP
    /// requests that could not be read count, too.
    pub handshake_failures: HandshakeFailures,
    /// Failed accepts, for example because file descriptors ran out.
    pub accept_errors: u64,
    /// HTTP requests to mounted routes, whether or not a route matched.
    pub requests: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Bytes received from WebSocket clients, framing included.
    pub bytes_in: u64,
    /// Messages written to sockets in full, once for each recipient.
    pub messages_out: u64,
    /// Bytes written to WebSocket clients and event streams, framing included.
    pub bytes_out: u64,
    /// Compression of messages (feature `deflate`).
    pub compression: CompressionMetrics,
    /// TLS of the app's own listener (features `tls` and `tls-aws-lc`).
    pub tls: TlsMetrics,
    /// This node's link to its cluster (feature `cluster`).
    pub cluster: ClusterMetrics,
    /// Messages that were not delivered, by cause.
    pub dropped: Dropped,
    /// Keyed messages that were not sent to a client, since a newer message of their key has replaced them while they waited for
    /// it ([`Room::broadcast_keyed`](crate::Room::broadcast_keyed)). A message counts once for each of these clients. They do not
    /// count as [dropped](Self::dropped).
    pub conflated: u64,
    /// Calls and notifications from clients ([procedures](crate::procedures)).
    pub calls: Calls,
    /// Clients disconnected as slow consumers.
    pub slow_consumers: u64,
    /// Clients disconnected because they were silent for too long ([`Heartbeat`](crate::ping::Heartbeat)).
    pub heartbeat_timeouts: u64,
    /// Clients disconnected because they broke the protocol.
    pub protocol_errors: u64,
    /// Clients disconnected because of an incomplete message: one that was not finished in time
    /// ([`Limits::message_timeout`](crate::Limits::message_timeout)); one that was evicted because all incomplete
    /// messages together exceeded [`Limits::received_bytes_max`](crate::Limits::received_bytes_max); or one that was
    /// sent right after the handshake and did not fit.
    pub unfinished_messages: u64,
    /// Clients disconnected because their session had expired ([`Accept::expires_at`](crate::Accept::expires_at)).
    pub expired: u64,
    /// Clients disconnected because they sent faster than
    /// [`Limits::messages_per_second_max`](field@crate::Limits::messages_per_second_max) or
    /// [`Limits::bytes_per_second_max`](field@crate::Limits::bytes_per_second_max) allow: with
    /// [`OverRate::Close`](crate::OverRate::Close), or because what they had sent too early took too much of
    /// [`Limits::received_bytes_max`](field@crate::Limits::received_bytes_max).
    pub closed_over_rate: u64,
    /// Times that reading from a client was delayed because it sent faster than these limits allow
    /// ([`OverRate::Delay`](crate::OverRate::Delay)). A client that never pauses is delayed at most 16 times per
    /// second; one that sends no more than a burst is not.
    pub reads_delayed: u64,
    /// Most bytes that were ever queued for one client, replays and keyed messages included (see
    /// [`Limits::outbox_bytes_max`](crate::Limits::outbox_bytes_max)).
    pub outbox_bytes_peak: u64,
    /// Most bytes that were ever in one shard's mailbox (see
    /// [`Limits::mailbox_bytes_max`](crate::Limits::mailbox_bytes_max)).
    pub mailbox_bytes_peak: u64,
    /// How long each message waited for its client, from when it was queued for it until the operating system took its last byte.
    /// Times are in steps of 8 milliseconds; what is shorter counts as 0. What the operating system and the network take after that
    /// is not included. With TLS, a message counts as taken once it is encrypted, which can be up to 16 KiB before its last byte was
    /// taken. Of small messages that were joined while they waited, and of keyed messages that were replaced, the oldest
    /// counts. Its count is [`Self::messages_out`].
    pub delivery_delays: DurationHistogram,
    /// How many bytes waited for a client each time that its socket did not take all. With TLS, up to 16 KiB more may wait encrypted.
    pub outbox_depths: SizeHistogram,
    /// Time for which producers were delayed by slow consumers ([`SlowConsumer::Pace`](crate::SlowConsumer::Pace)). The
    /// total is the sum over all shards.
    pub paced: Duration,
    /// Runs of handlers. One run serves all messages that one read of a connection has brought.
    pub handler_runs: u64,
    /// Time spent in handlers, summed over all threads. A running handler counts when it ends.
    pub handler_time: Duration,
    /// How long each of [`Self::handler_runs`] took.
    pub handler_durations: DurationHistogram,
    /// Handlers that have been running for more than about a millisecond (a gauge).
    pub handlers_blocked: u64,
    /// Times that all handler threads were blocked while a connection waited for one.
    pub handlers_exhausted: u64,
    /// Handlers that panicked.
    pub handler_panics: u64,
}

/// Refused connections by cause; part of [`Metrics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// [`Limits::connections_max`](crate::Limits::connections_max) was reached.
    pub connections_max: u64,
    /// More than [`Limits::handshakes_max`](crate::Limits::handshakes_max) connections waited for a request head, and
    /// this one had waited longest. Or too many requests waited for the handshake handler or an event stream's
    /// ([`Limits::received_bytes_max`](crate::Limits::received_bytes_max)).
    pub handshakes_max: u64,
    /// Its address had reached [`Limits::peer_connections_max`](crate::Limits::peer_connections_max).
    pub peer_connections_max: u64,
    /// Its address exceeded [`Limits::peer_handshakes_per_second_max`](crate::Limits::peer_handshakes_per_second_max)
    /// with WebSockets and event streams.
    pub peer_handshakes_per_second_max: u64,
    /// Its user had reached [`Limits::user_connections_max`](field@crate::Limits::user_connections_max).
    pub user_connections_max: u64,
    /// Its origin may not connect ([`Origins`](crate::Origins)).
    pub origin: u64,
    /// The app does not answer to its `Host` ([`AllowedHosts`](crate::AllowedHosts)).
    pub host: u64,
    /// The handshake handler ([`with_handshake_handler`](crate::AsyncWebsocketApp::with_handshake_handler)) or an event
    /// stream's handler ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)) rejected it, panicked, or
    /// returned a response that can't be sent.
    pub handshake_handler: u64,
    /// The app was stopping, the operating system could not watch its socket, or axum could not hand it over. Or an
    /// HTTP request got 503, since it or its response exceeded a limit
    /// ([`Limits::bodies_bytes_max`](crate::Limits::bodies_bytes_max)), or no handler was free in time
    /// ([`Limits::queue_timeout`](crate::Limits::queue_timeout)). Or a download was cut off, because no handler read its
    /// next piece in that time.
    pub unserved: u64,
}

impl Refused {
    /// Returns the sum over all causes.
    pub fn total(&self) -> u64 {
        self.connections_max
            + self.handshakes_max
            + self.peer_connections_max
            + self.peer_handshakes_per_second_max
            + self.user_connections_max
            + self.origin
            + self.host
            + self.handshake_handler
            + self.unserved
    }
}

/// Requests that did not become a WebSocket, by their fault; part of [`Metrics`].
///
/// Handshakes that a Humphrey app in front has refused are not included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeFailures {
    /// It was not readable as HTTP.
    pub malformed: u64,
    /// Its head or body exceeded its limit.
    pub too_large: u64,
    /// It did not arrive in time ([`Limits::handshake_timeout`](crate::Limits::handshake_timeout)).
    pub timeout: u64,
    /// It asked neither for a WebSocket nor for an existing event stream, and no routes are mounted.
    pub not_an_upgrade: u64,
    /// `Sec-WebSocket-Version` was missing or not 13.
    pub version: u64,
    /// `Sec-WebSocket-Key` was missing or invalid.
    pub key: u64,
    /// It broke another requirement of RFC 6455 §4.2.1: the method, HTTP/1.1, `Host`, `Connection`, no body.
    pub requirements: u64,
}

impl HandshakeFailures {
    /// Returns the sum over all causes.
    pub fn total(&self) -> u64 {
        self.malformed
            + self.too_large
            + self.timeout
            + self.not_an_upgrade
            + self.version
            + self.key
            + self.requirements
    }
}

/// Compression counters; part of [`Metrics`]. All are 0 without the feature `deflate`, or if no client has negotiated
/// compression.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionMetrics {
    /// Payload bytes of compressed messages received, before inflation.
    pub received_bytes: u64,
    /// Payload bytes of compressed messages received, after inflation.
    pub inflated_bytes: u64,
    /// Compressed messages that were longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max) when
    /// inflated. Their clients were disconnected (1009).
    pub bombs: u64,
    /// Messages compressed: once, however many recipients they have.
    pub compressed: u64,
    /// Bytes of compressed messages sent, framing included, once for each recipient.
    pub sent_bytes: u64,
    /// Bytes that these messages would have been without compression.
    pub plain_bytes: u64,
    /// Times that the members of an audience began to share a compression history.
    pub epochs: u64,
    /// Deliveries to clients with compression that were sent uncompressed, since the client did not share the history
    /// yet.
    pub waiting: u64,
}

/// TLS counters; part of [`Metrics`]. All are 0 if the app's own listener has no TLS
/// ([`with_tls`](crate::AsyncWebsocketApp#method.with_tls)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsMetrics {
    /// Completed handshakes, resumed ones included.
    pub handshakes: u64,
    /// Completed handshakes that resumed an earlier session, which saves the client's check of the certificate.
    pub resumed: u64,
    /// Connections that the client closed within the handshake.
    pub aborted: u64,
    /// Requests without TLS, which were answered with 400.
    pub plain_http: u64,
    /// Handshakes without a common version, cipher suite or application protocol.
    pub incompatible: u64,
    /// Clients whose certificate was missing or not accepted.
    pub client_certificates: u64,
    /// Clients that did not accept the server's certificate.
    pub untrusted: u64,
    /// Other fatal alerts from clients.
    pub alerts: u64,
    /// Clients that broke the protocol, in the handshake or later.
    pub malformed: u64,
    /// Connections that ended without the announcement of an end (close_notify), so that the last bytes may be missing.
    /// Many clients never announce it.
    pub truncated: u64,
    /// Times that a new certificate or configuration was put in place.
    pub reloads: u64,
}

/// Counters and gauges of this node's link to its cluster; part of [`Metrics`]. All are 0 if the app is not part of a
/// cluster ([`with_cluster`](crate::AsyncWebsocketApp#method.with_cluster)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterMetrics {
    /// Broker servers that this node is connected to (a gauge).
    pub servers_connected: u64,
    /// Nodes of the cluster that this node hears, itself included (a gauge). 0 until the first connection.
    pub nodes: u64,
    /// Connections to broker servers that were established.
    pub connections: u64,
    /// Connections to broker servers that were given up because this node's own heartbeats did not return.
    pub silences: u64,
    /// Messages that were sent to a broker server, without this node's heartbeats. Each is confirmed, unconfirmed or refused
    /// later.
    pub published: u64,
    /// Messages that a broker server has confirmed.
    pub confirmed: u64,
    /// Messages that were sent, and whose connection was lost before the broker server had confirmed them. It may have
    /// received them or not.
    pub unconfirmed: u64,
    /// Messages of other nodes that were received, each once, whether or not they had local recipients.
    pub received: u64,
    /// Messages of other nodes that were missed, for example while the connection to the broker was lost. Each node
    /// numbers its messages, so they are noticed with the next message of that node in that room.
    pub missed_remote: u64,
    /// Messages that reached local clients only: the broker was unreachable for too long, or has refused them; or the queue
    /// was full where the library must not wait.
    pub dropped_broker: u64,
    /// Messages of other nodes that were dropped because this node's mailboxes were full
    /// ([`Cluster::incoming_bytes_max`](https://docs.rs/humphrey_ws/latest/humphrey_ws/struct.Cluster.html)).
    pub dropped_full: u64,
    /// Messages from the broker that could not be read.
    pub bad_envelopes: u64,
    /// Reads of a room's history from a broker server. A room is read once when it is first used on this node, and after
    /// each lost connection.
    pub history_reads: u64,
    /// Times that a room with a history had a gap on this node, which its members were told: the broker no longer kept all
    /// messages that were missed here.
    pub gaps: u64,
    /// The same where the broker server had restarted or was replaced, so that it is not known whether messages were lost.
    pub gaps_server_changed: u64,
    /// How long each broker server took to answer, from when a command was handed to the connection, heartbeats included.
    pub round_trips: DurationHistogram,
}

/// Messages that were not delivered, by cause; part of [`Metrics`]. A message counts once for each recipient that
/// missed it, and once if it had no recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// The client was a slow consumer ([`SlowConsumer`](crate::SlowConsumer)).
    pub slow_consumer: u64,
    /// The connection closed or broke while the message was queued.
    pub closed: u64,
    /// No client was connected, the room was empty, or no client had the address or id. A message that its room keeps
    /// is not lost.
    pub no_recipient: u64,
    /// The app did not run yet, or had stopped.
    pub not_running: u64,
    /// The message was longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    pub too_large: u64,
    /// The room's history could not be created: [`Limits::rooms_max`](crate::Limits::rooms_max) was reached.
    pub rooms_max: u64,
    /// A keyed message was refused, since its room is not keyed or keeps as many keys or bytes as allowed
    /// ([`KeyedLimits`](crate::KeyedLimits)).
    pub keyed_refused: u64,
    /// Received but not handled: there is no message handler, or the connection was closing.
    pub unhandled: u64,
}

impl Dropped {
    /// Returns the sum over all causes.
    pub fn total(&self) -> u64 {
        self.slow_consumer
            + self.closed
            + self.no_recipient
            + self.not_running
            + self.too_large
            + self.rooms_max
            + self.keyed_refused
            + self.unhandled
    }
}

/// Calls and notifications from clients ([procedures](crate::procedures)); part of [`Metrics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Calls that were handed to their handlers.
    pub handled: u64,
    /// Calls cancelled before they were answered, by the client or by the end of its connection.
    pub cancelled: u64,
    /// Calls that were not answered. In the older subprotocol, which has no errors, failed calls count, too.
    pub unanswered: u64,
    /// Calls of unknown procedures.
    pub unknown: u64,
    /// Calls beyond [`Limits::connection_calls_max`](crate::Limits::connection_calls_max), or refused because too many
    /// [`on_cancel`](crate::procedures::Cancellation::on_cancel) functions were waiting to run.
    pub refused: u64,
    /// Notifications that were handed to their handlers.
    pub notifications_handled: u64,
    /// Notifications without a handler.
    pub notifications_unknown: u64,
}

/// A counter. Each shard writes only its own, so that their cache lines do not bounce between cores.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// Off in the build against which the cost of counting is measured (`bench counting`).
const COUNTS: bool = !cfg!(humphrey_ws_uncounted);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        if COUNTS {
            self.0.fetch_add(n, Relaxed);
        }
    }

    /// Adds to a counter that only one thread writes at a time, without an atomic read-modify-write.
    pub(crate) fn add_alone(&self, n: u64) {
        if COUNTS && n > 0 {
            self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    pub(crate) fn sub(&self, n: u64) {
        if COUNTS {
            self.0.fetch_sub(n, Relaxed);
        }
    }

    pub(crate) fn set(&self, n: u64) {
        if COUNTS {
            self.0.store(n, Relaxed);
        }
    }

    /// Raises the counter to a new maximum; for counters that one thread writes.
    pub(crate) fn raise(&self, n: u64) {
        if COUNTS && n > self.0.load(Relaxed) {
            self.0.store(n, Relaxed);
        }
    }

    pub(crate) fn add_time(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($kind:ident $field:ident $(. $sub:ident)? = $own:ident;)*) => {
        /// The counters of one shard, or of what belongs to none.
        #[derive(Debug, Default)]
        #[repr(align(128))] // A cache line of its own, and its neighbour's: shards do not share.
        pub(crate) struct Counters {
            $( pub(crate) $own: Counter, )*
            pub(crate) delivery_delays: DelayCounters,
            pub(crate) outbox_depths: SizeCounters,
        }

        impl Counters {
            /// Adds these to a sum.
            pub(crate) fn add_to(&self, sum: &mut Metrics) {
                $( counters!(@$kind sum.$field $(.$sub)?, self.$own.get()); )*
                self.delivery_delays.add_to(&mut sum.delivery_delays);
                self.outbox_depths.add_to(&mut sum.outbox_depths);
            }

            /// Counts messages that were written in full. The time for which `delayed` of them have waited is counted already.
            pub(crate) fn wrote(&self, messages: u64, delayed: u64) {
                self.messages_out.add_alone(messages);
                self.delivery_delays.add_zeros(messages - delayed);
            }
        }
    };
    (@sum $to:expr, $n:expr) => { $to += $n };
    (@peak $to:expr, $n:expr) => { $to = $to.max($n) };
    (@time $to:expr, $n:expr) => { $to += Duration::from_nanos($n) };
}

counters! {
    sum connections = connections;
    sum connections_opened = connections_opened;
    sum event_streams = event_streams;
    sum event_streams_opened = event_streams_opened;
    sum room_members = room_members;
    sum accepted = accepted;
    sum refused.connections_max = refused_connections_max;
    sum refused.handshakes_max = refused_handshakes_max;
    sum refused.peer_connections_max = refused_peer_connections;
    sum refused.peer_handshakes_per_second_max = refused_peer_handshakes;
    sum refused.user_connections_max = refused_user_connections;
    sum refused.origin = refused_origin;
    sum refused.host = refused_host;
    sum refused.handshake_handler = refused_handshake_handler;
    sum refused.unserved = refused_unserved;
    sum handshake_failures.malformed = failed_malformed;
    sum handshake_failures.too_large = failed_too_large;
    sum handshake_failures.timeout = failed_timeout;
    sum handshake_failures.not_an_upgrade = failed_not_an_upgrade;
    sum handshake_failures.version = failed_version;
    sum handshake_failures.key = failed_key;
    sum handshake_failures.requirements = failed_requirements;
    sum accept_errors = accept_errors;
    sum requests = requests;
    sum messages_in = messages_in;
    sum bytes_in = bytes_in;
    sum messages_out = messages_out;
    sum bytes_out = bytes_out;
    sum compression.received_bytes = compressed_bytes_in;
    sum compression.inflated_bytes = inflated_bytes_in;
    sum compression.bombs = bombs;
    sum compression.compressed = compressed;
    sum compression.sent_bytes = compressed_bytes_out;
    sum compression.plain_bytes = compressed_plain_bytes;
    sum compression.epochs = epochs;
    sum compression.waiting = waiting_for_epoch;
    sum tls.handshakes = tls_handshakes;
    sum tls.resumed = tls_resumed;
    sum tls.aborted = tls_aborted;
    sum tls.plain_http = tls_plain_http;
    sum tls.incompatible = tls_incompatible;
    sum tls.client_certificates = tls_client_certificates;
    sum tls.untrusted = tls_untrusted;
    sum tls.alerts = tls_alerts;
    sum tls.malformed = tls_malformed;
    sum tls.truncated = tls_truncated;
    sum dropped.slow_consumer = dropped_slow_consumer;
    sum dropped.closed = dropped_closed;
    sum dropped.no_recipient = dropped_no_recipient;
    sum dropped.not_running = dropped_not_running;
    sum dropped.too_large = dropped_too_large;
    sum dropped.rooms_max = dropped_rooms_max;
    sum dropped.keyed_refused = dropped_keyed_refused;
    sum dropped.unhandled = dropped_unhandled;
    sum conflated = conflated;
    sum calls.handled = calls_handled;
    sum calls.cancelled = calls_cancelled;
    sum calls.unanswered = calls_unanswered;
    sum calls.unknown = calls_unknown;
    sum calls.refused = calls_refused;
    sum calls.notifications_handled = notifications_handled;
    sum calls.notifications_unknown = notifications_unknown;
    sum slow_consumers = slow_consumers;
    sum heartbeat_timeouts = heartbeat_timeouts;
    sum protocol_errors = protocol_errors;
    sum unfinished_messages = unfinished_messages;
    sum expired = expired;
    sum closed_over_rate = closed_over_rate;
    sum reads_delayed = reads_delayed;
    peak outbox_bytes_peak = outbox_bytes_peak;
    time paced = paced;
    sum handlers_blocked = handlers_blocked;
    sum handlers_exhausted = handlers_exhausted;
    sum handler_panics = handler_panics;
}
