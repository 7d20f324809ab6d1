//! Counters and gauges.

mod prometheus;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::atomic::AtomicU64;

pub(crate) use self::prometheus::render;

/// What an app has done so far, read with [`AsyncSender::metrics`](crate::AsyncSender::metrics) at any time; for each
/// shard by itself with [`AsyncSender::metrics_by_shard`](crate::AsyncSender::metrics_by_shard), and as text for
/// Prometheus with [`AsyncSender::prometheus`](crate::AsyncSender::prometheus).
///
/// Each figure is exact, but they are read one after the other while the app goes on. All count from the start of the
/// app, except where they are called a gauge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// WebSocket connections that are open now (a gauge).
    pub connections: u64,
    /// WebSocket connections that were opened.
    pub connections_opened: u64,
    /// Clients of event streams that are being served now (a gauge). They are no WebSocket connections.
    pub event_streams: u64,
    /// Clients of event streams that were served; requests for the head alone (`HEAD`) do not count.
    pub event_streams_opened: u64,
    /// Rooms that there are now (a gauge).
    pub rooms: u64,
    /// Connections in rooms now (a gauge): each counts once for every room that it is in.
    pub room_members: u64,
    /// Connections of all kinds that were accepted or adopted, WebSocket or not.
    pub accepted: u64,
    /// Connections that were turned away because of a limit, of where they came from, or of the
    /// handshake handler, by cause.
    pub refused: Refused,
    /// Connections that ended before they were a WebSocket, by what was wrong with their request; and, with mounted
    /// routes, HTTP requests that could not be read.
    pub handshake_failures: HandshakeFailures,
    /// Times that accepting failed, as when file descriptors ran out.
    pub accept_errors: u64,
    /// HTTP requests that were handed to the mounted routes, whether or not one fitted.
    pub requests: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Bytes received from WebSocket clients, framing included.
    pub bytes_in: u64,
    /// Messages written to sockets in full, once for each recipient.
    pub messages_out: u64,
    /// Bytes written to WebSocket clients and event streams, framing included.
    pub bytes_out: u64,
    /// Messages that were compressed (feature `deflate`).
    pub compression: CompressionMetrics,
    /// Messages that were not delivered, by cause.
    pub dropped: Dropped,
    /// Calls and notifications from clients ([procedures](crate::procedures)).
    pub calls: Calls,
    /// Clients disconnected because they read too slowly.
    pub slow_consumers: u64,
    /// Clients disconnected because they were silent for too long ([`Heartbeat`](crate::ping::Heartbeat)).
    pub heartbeat_timeouts: u64,
    /// Clients disconnected because they broke the protocol.
    pub protocol_errors: u64,
    /// Clients disconnected because of a message that they did not finish: in time
    /// ([`Limits::message_timeout`](crate::Limits::message_timeout)), or before all such messages together took too much
    /// room ([`Limits::received_bytes_max`](crate::Limits::received_bytes_max)); or which they sent right behind the
    /// handshake, while there was no room for it.
    pub unfinished_messages: u64,
    /// Clients disconnected because their session had expired ([`Accept::expires_at`](crate::Accept::expires_at)).
    pub expired: u64,
    /// The most bytes that ever waited for one client (see [`Limits::outbox_bytes_max`](crate::Limits::outbox_bytes_max)).
    pub outbox_bytes_peak: u64,
    /// The most bytes that were ever in one shard's mailbox
    /// (see [`Limits::mailbox_bytes_max`](crate::Limits::mailbox_bytes_max)).
    pub mailbox_bytes_peak: u64,
    /// How long producers were made to wait for clients ([`SlowConsumer::Pace`](crate::SlowConsumer::Pace)); in sum,
    /// that of all shards.
    pub paced: Duration,
    /// Times that handlers were run: once for all that one read of a connection has brought.
    pub handler_runs: u64,
    /// How long handlers have run, that of all threads together. A handler that still runs does not count yet.
    pub handler_time: Duration,
    /// Handlers that have been running for more than about a millisecond (a gauge).
    pub handlers_blocked: u64,
    /// Times that all handler threads were blocked while a connection waited for one.
    pub handlers_exhausted: u64,
    /// Handlers that panicked.
    pub handler_panics: u64,
}

/// Connections that were turned away, by cause; part of [`Metrics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refused {
    /// There were [`Limits::connections_max`](crate::Limits::connections_max).
    pub connections_max: u64,
    /// More than [`Limits::handshakes_max`](crate::Limits::handshakes_max) waited for a request head; this one longest.
    /// Or too many waited for the handshake handler, or an event stream's ([`Limits::received_bytes_max`](crate::Limits::received_bytes_max)).
    pub handshakes_max: u64,
    /// Its address had [`Limits::peer_connections_max`](crate::Limits::peer_connections_max).
    pub peer_connections_max: u64,
    /// Its address began more WebSockets and event streams than
    /// [`Limits::peer_handshakes_per_second_max`](crate::Limits::peer_handshakes_per_second_max).
    pub peer_handshakes_per_second_max: u64,
    /// Its user had [`Limits::user_connections_max`](field@crate::Limits::user_connections_max).
    pub user_connections_max: u64,
    /// A page of an origin that may not connect ([`Origins`](crate::Origins)).
    pub origin: u64,
    /// Its `Host` is not one that the app answers to ([`AllowedHosts`](crate::AllowedHosts)).
    pub host: u64,
    /// The handshake handler rejected it, panicked, or gave an answer that could not be sent
    /// ([`with_handshake_handler`](crate::AsyncWebsocketApp::with_handshake_handler)); or that of an event stream did
    /// ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)).
    pub handshake_handler: u64,
    /// The app was stopping, the operating system could not watch its socket, or axum could not hand it over; or an HTTP
    /// request was answered with 503, since there was no room for it or its response, or no handler came for it in time
    /// ([`Limits::bodies_bytes_max`](crate::Limits::bodies_bytes_max), [`Limits::queue_timeout`](crate::Limits::queue_timeout)).
    pub unserved: u64,
}

impl Refused {
    /// All of them.
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

/// Requests that did not become a WebSocket, by what was wrong with them; part of [`Metrics`].
///
/// Handshakes that a Humphrey app in front has refused are not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeFailures {
    /// No HTTP that could be read.
    pub malformed: u64,
    /// A head or a body over its limit.
    pub too_large: u64,
    /// Not there in time ([`Limits::handshake_timeout`](crate::Limits::handshake_timeout)).
    pub timeout: u64,
    /// No WebSocket was asked for, nor an event stream that there is, and no routes are mounted.
    pub not_an_upgrade: u64,
    /// Another version of the WebSocket protocol than 13, or none.
    pub version: u64,
    /// No `Sec-WebSocket-Key`, or not one.
    pub key: u64,
    /// Another requirement of RFC 6455 §4.2.1: the method, HTTP/1.1, `Host`, `Connection`, no body.
    pub requirements: u64,
}

impl HandshakeFailures {
    /// All of them.
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

/// Messages that were compressed; part of [`Metrics`]. All is 0 without the feature `deflate`, and where no client has agreed to
/// it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressionMetrics {
    /// Payload bytes of compressed messages received, as they came.
    pub received_bytes: u64,
    /// What these messages were, inflated.
    pub inflated_bytes: u64,
    /// Compressed messages that were longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max) when
    /// inflated. Their clients were disconnected (1009).
    pub bombs: u64,
    /// Times that a message was packed: once, however many get it.
    pub packed: u64,
    /// Bytes of messages sent packed, framing included, once for each recipient.
    pub sent_bytes: u64,
    /// What these messages would have been if they had not been packed.
    pub plain_bytes: u64,
    /// Times that the members of an audience began to share a history.
    pub epochs: u64,
    /// Deliveries to clients that had agreed, and that were plain since the client shared no history yet.
    pub waiting: u64,
}

/// Messages that were not delivered, by cause; part of [`Metrics`]. A message counts once for each recipient that did
/// not get it, and once where it had none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dropped {
    /// The client read too slowly ([`SlowConsumer`](crate::SlowConsumer)).
    pub slow_consumer: u64,
    /// The connection closed, or broke, while the message waited for it.
    pub closed: u64,
    /// Nobody was connected, or in the room, or nobody had that address or id. A message that its room keeps is not lost.
    pub no_recipient: u64,
    /// The app did not run yet, or no longer.
    pub not_running: u64,
    /// The message was longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    pub too_large: u64,
    /// Its room was to keep it, and could not be made: there were [`Limits::rooms_max`](crate::Limits::rooms_max).
    pub rooms_max: u64,
    /// Received, and not handled: there is no message handler, or the connection was closing.
    pub unhandled: u64,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.slow_consumer
            + self.closed
            + self.no_recipient
            + self.not_running
            + self.too_large
            + self.rooms_max
            + self.unhandled
    }
}

/// What clients have called, and notified of ([procedures](crate::procedures)); part of [`Metrics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Calls that were handed to their handlers.
    pub handled: u64,
    /// Calls that were cancelled before they were answered: by their client, or by its end.
    pub cancelled: u64,
    /// Calls that nobody has answered; and in the older subprotocol, which has no errors, those that have failed.
    pub unanswered: u64,
    /// Calls of procedures that there are not.
    pub unknown: u64,
    /// Calls beyond [`Limits::connection_calls_max`](crate::Limits::connection_calls_max), or that came while too much waited
    /// that the program has done [`on_cancel`](crate::procedures::Cancellation::on_cancel).
    pub refused: u64,
    /// Notifications that were handed to their handlers.
    pub notifications_handled: u64,
    /// Notifications that there is no handler for.
    pub notifications_unknown: u64,
}

/// A counter. Those of a shard are written by that shard alone, so they never bounce between cores.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// What counting costs is measured against a build that does not (`bench counting`).
const COUNTS: bool = !cfg!(humphrey_ws_uncounted);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        if COUNTS {
            self.0.fetch_add(n, Relaxed);
        }
    }

    /// The same, for counters that one thread writes at a time: without its price.
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

    /// Keeps the highest; for counters that one thread writes.
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
        }

        impl Counters {
            /// Adds these to a sum.
            pub(crate) fn add_to(&self, sum: &mut Metrics) {
                $( counters!(@$kind sum.$field $(.$sub)?, self.$own.get()); )*
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
    sum compression.packed = packed;
    sum compression.sent_bytes = packed_bytes_out;
    sum compression.plain_bytes = packed_plain_bytes;
    sum compression.epochs = epochs;
    sum compression.waiting = waiting_for_epoch;
    sum dropped.slow_consumer = dropped_slow_consumer;
    sum dropped.closed = dropped_closed;
    sum dropped.no_recipient = dropped_no_recipient;
    sum dropped.not_running = dropped_not_running;
    sum dropped.too_large = dropped_too_large;
    sum dropped.rooms_max = dropped_rooms_max;
    sum dropped.unhandled = dropped_unhandled;
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
    peak outbox_bytes_peak = outbox_bytes_peak;
    time paced = paced;
    sum handlers_blocked = handlers_blocked;
    sum handlers_exhausted = handlers_exhausted;
    sum handler_panics = handler_panics;
}
