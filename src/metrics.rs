//! Counters and gauges.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What an app has done so far, read with [`AsyncSender::metrics`](crate::AsyncSender::metrics) at any time.
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
    /// Connections of all kinds that were accepted or adopted, WebSocket or not.
    pub accepted: u64,
    /// Connections that were turned away: a bad handshake, a time-out before its end, or too many connections.
    pub refused: u64,
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
    /// Bytes written to WebSocket clients, framing included.
    pub bytes_out: u64,
    /// Messages that were not delivered, by cause.
    pub dropped: Dropped,
    /// Clients disconnected because they read too slowly.
    pub slow_consumers: u64,
    /// Clients disconnected because they were silent for too long ([`Heartbeat`](crate::ping::Heartbeat)).
    pub heartbeat_timeouts: u64,
    /// Clients disconnected because they broke the protocol.
    pub protocol_errors: u64,
    /// Handlers that have been running for more than about a millisecond (a gauge).
    pub handlers_blocked: u64,
    /// Times that all handler threads were blocked while a connection waited for one.
    pub handlers_exhausted: u64,
    /// Handlers that panicked.
    pub handler_panics: u64,
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
    /// Nobody was connected, or nobody had that address or id.
    pub no_recipient: u64,
    /// The app did not run yet, or no longer.
    pub not_running: u64,
    /// The message was longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    pub too_large: u64,
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
            + self.unhandled
    }
}

/// A counter. Those of a shard are written by that shard alone, so they never bounce between cores.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($field:ident $(. $sub:ident)?),* $(,)?) => {
        impl Counters {
            /// Adds these to a sum.
            pub(crate) fn add_to(&self, sum: &mut Metrics) {
                $( sum.$field $(.$sub)? += counters!(@own self $field $($sub)?).get(); )*
            }
        }
    };
    (@own $self:ident $field:ident) => { $self.$field };
    (@own $self:ident $field:ident $sub:ident) => { $self.$sub };
}

/// The counters of one shard, or of what belongs to none.
#[derive(Debug, Default)]
#[repr(align(128))] // A cache line of its own, and its neighbour's: shards do not share.
pub(crate) struct Counters {
    pub(crate) connections: Counter,
    pub(crate) connections_opened: Counter,
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) requests: Counter,
    pub(crate) messages_in: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) messages_out: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) slow_consumer: Counter,
    pub(crate) closed: Counter,
    pub(crate) no_recipient: Counter,
    pub(crate) not_running: Counter,
    pub(crate) too_large: Counter,
    pub(crate) unhandled: Counter,
    pub(crate) slow_consumers: Counter,
    pub(crate) heartbeat_timeouts: Counter,
    pub(crate) protocol_errors: Counter,
    pub(crate) handlers_blocked: Counter,
    pub(crate) handlers_exhausted: Counter,
    pub(crate) handler_panics: Counter,
}

counters!(
    connections,
    connections_opened,
    accepted,
    refused,
    accept_errors,
    requests,
    messages_in,
    bytes_in,
    messages_out,
    bytes_out,
    dropped.slow_consumer,
    dropped.closed,
    dropped.no_recipient,
    dropped.not_running,
    dropped.too_large,
    dropped.unhandled,
    slow_consumers,
    heartbeat_timeouts,
    protocol_errors,
    handlers_blocked,
    handlers_exhausted,
    handler_panics,
);
