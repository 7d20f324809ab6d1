//! The limits of the engine, and what happens to slow consumers.

use std::time::Duration;

/// The limits of an app. Every queue, buffer and wait has one.
///
/// Times count while the app runs. If the process is stopped, the machine is suspended or paused, or a thread is not
/// scheduled for 250 ms or longer, deadlines are extended by that time and by up to a second more, in which the data
/// that has arrived meanwhile is read.
///
/// Set the limits that differ from the default:
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Limits};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_limits(Limits::default().message_bytes_max(64 * 1024).peer_connections_max(Some(20)));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Longest message in either direction, in bytes of payload. Default 16 MiB.
    ///
    /// A client that announces a longer one is closed with 1009 before anything is allocated. A longer message of the
    /// program is refused ([`SendErrorReason::TooLarge`](crate::SendErrorReason::TooLarge)).
    pub message_bytes_max: usize,
    /// Bytes that may be queued for one client (its outbox), beyond what its socket has taken. Default 1 MiB.
    ///
    /// An empty outbox takes one message of any legal size; the limit decides whether another message may be queued
    /// behind it. When a message does not fit, [`SlowConsumer`] decides what happens. Kept messages that a room replays
    /// to a client do not count and are never dropped; `outboxes_bytes_max` bounds them, twice for all clients. Messages queued behind a
    /// replay count as always.
    pub outbox_bytes_max: usize,
    /// Bytes of keyed messages that may wait for one client, beside [`outbox_bytes_max`](field@Self::outbox_bytes_max). Each
    /// counts with 256 bytes more than its length. Default 4 MiB.
    ///
    /// A newer message of a key that waits takes its place in any case. Beyond the limit, a message of a further key is
    /// queued as if it had none, so [`SlowConsumer`] decides; what a client receives when it joins counts towards
    /// [`outboxes_bytes_max`](field@Self::outboxes_bytes_max), like a replay. A client that is in one keyed room reaches the limit only if the
    /// program removes keys ([`Room::remove_key`](crate::Room::remove_key)) while it does not read. No pattern of
    /// [`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms) may let a room keep more.
    pub keyed_bytes_max: usize,
    /// Bytes that are held for all clients together: messages that were sent to a single client, and responses of
    /// mounted routes. Default 512 MiB. A message or response is held until its last byte has been written. Of a file that is
    /// sent in pieces (see [`files`](crate::files)), one piece is held.
    ///
    /// Beyond the limit, the app disconnects clients of the address for which most bytes are queued, those with the
    /// most bytes first. It starts with clients that are taking nothing at that moment, and goes on to the others if
    /// that does not suffice. While responses use up the limit, no route's handler is started, and requests get 503.
    ///
    /// Queued broadcasts do not count, since all outboxes share them; only pieces that are copied for one client do, and 256
    /// bytes for each keyed message that waits. Replays of a room's history that clients share do not count either. They may take as
    /// much again, for all rooms together; replays beyond that are not shared, and count.
    /// Each shard has an equal share, and room for one message of any legal size.
    pub outboxes_bytes_max: usize,
    /// Bytes of messages on their way to one shard (its mailbox). Default 4 MiB.
    ///
    /// While the mailbox is full, [`AsyncSender::broadcast`](crate::AsyncSender::broadcast) and the other sending
    /// methods wait, and their `try_` variants return [`SendErrorReason::Full`](crate::SendErrorReason::Full). A shard
    /// may hold as much again that it has taken from the mailbox and not yet distributed. An empty mailbox takes a
    /// message of any legal size.
    pub mailbox_bytes_max: usize,
    /// Bytes of received messages that may be queued while a handler of their connection runs. Default 64 KiB.
    ///
    /// Beyond the limit the connection is not read, and TCP applies backpressure to the client. A message that has
    /// begun is read to its end.
    pub pending_bytes_max: usize,
    /// Bytes of received messages that the app holds at once, of all connections together. Default 512 MiB.
    ///
    /// One half is for incomplete messages. Beyond it, the app takes the address that holds the most, and closes its
    /// connection with the largest incomplete message with 1013. The other half is for complete messages that wait for
    /// handlers or are being handled. Beyond it, nothing is read until handlers have caught up. Each shard has an equal
    /// share, and room for one message of any legal size in either half. What was read of clients that exceed their rate
    /// ([`OverRate::Delay`]) counts to the second half, too. If that half is full, and more than half of it is from such
    /// clients, and from others that do not read the replies to their messages, the app closes those that hold the most.
    ///
    /// In addition, an eighth of the limit is for requests that wait for the handshake handler or an event stream's
    /// handler, and for the bytes that clients send after them; further requests get 503. While the second half is used
    /// up, requests are not kept for connect handlers ([`AsyncStream::request`](crate::AsyncStream::request)).
    pub received_bytes_max: usize,
    /// Longest request head, in bytes. Default 16 KiB. A longer one gets 431.
    pub head_bytes_max: usize,
    /// Longest body of an HTTP request, in bytes. Default 1 MiB. A longer one gets 413.
    pub body_bytes_max: usize,
    /// Bytes of HTTP requests that the app holds at once, of all connections together: bodies, requests that wait for a
    /// handler or are being handled, and the bytes that clients send after them. Default 64 MiB.
    ///
    /// Beyond the limit, the app takes the address that holds the most and answers its largest incomplete body with
    /// 503, or else the request that does not fit. Each shard has an equal share, and room for one request of any legal
    /// size. Bodies that a Humphrey app or axum reads do not count; they must be bounded there.
    pub bodies_bytes_max: usize,
    /// Connections of all kinds that the app serves at once. Default 100,000. In addition, as many connections may have
    /// ended while their disconnect handlers, or the drop of their state, are still pending. The requests of further
    /// connections get 503, also if a Humphrey app hands them over. Connections whose handshake was answered before are
    /// closed with 1013.
    pub connections_max: usize,
    /// WebSocket and HTTP connections that one address may have at once. Default `None`: any number.
    ///
    /// Further ones get 429 and are closed, also if a Humphrey app hands them over. With 0, no connection is accepted.
    /// An IPv6 network of 64 bits counts as one address. Behind a proxy all clients share its address, unless the proxy
    /// is [trusted](crate::AsyncWebsocketApp::with_trusted_proxies). Then WebSockets and event streams count towards
    /// the forwarded address, and the proxy's HTTP connections do not count.
    pub peer_connections_max: Option<usize>,
    /// WebSocket handshakes and event streams that one address may begin per second; bursts of one second's worth are
    /// allowed. Default `None`: any number. Further ones get 429; with 0, all do.
    pub peer_handshakes_per_second_max: Option<u32>,
    /// WebSocket connections and event streams that one user may have at once, if the program assigns users
    /// ([`Accept::user`](crate::Accept::user), [`Subscription::user`](crate::Subscription::user)). Default `None`: any
    /// number. Further ones get 429, or are closed with 1013 if their handshake was answered before.
    ///
    /// A connection counts from the handler's verdict until it has ended. When a client loses its connection and
    /// reconnects, the lost connection still counts until the [`Heartbeat`](crate::ping::Heartbeat) detects it: leave
    /// room for that.
    pub user_connections_max: Option<usize>,
    /// Calls of one connection that may be in flight at once, in each direction ([procedures](crate::procedures)).
    /// Default 1,024. A client's further calls get an error; the older subprotocol has no errors, so there the
    /// connection is closed with 1013. The program's further calls fail.
    pub connection_calls_max: usize,
    /// Messages per second that one WebSocket client may send. Default `None`: any number.
    ///
    /// A token bucket counts them for each connection. It is full at first, holds one second's worth, and is refilled
    /// evenly. So a client may send a burst of one second's worth at once, and in any longer time the burst and the rate
    /// for that time. What the client sends beyond that is delayed, or closes the connection, as [`OverRate`] says.
    ///
    /// The limit holds for what handlers are given, also if many messages arrive in one read. Besides messages, it counts
    /// the frames that a client could send in a flood instead: pings, pongs and fragments of less than 4 KiB, framing
    /// included. Close frames do not count, nor do pongs that answer a ping of the [`Heartbeat`](crate::ping::Heartbeat).
    /// Messages that were received before a host handed the connection over count: if they are more than a burst, nothing is
    /// read until the client may have sent them.
    ///
    /// With 0, clients may send no messages: the first closes the connection with 1008. Pings and unsolicited pongs are
    /// allowed, one per second and five at once, since some clients keep their connection open with them.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Limits, OverRate};
    ///
    /// let limits = Limits::default()
    ///     .messages_per_second_max(Some(20))
    ///     .bytes_per_second_max(Some(64 * 1024))
    ///     .over_rate(OverRate::Close);
    /// let app = AsyncWebsocketApp::<()>::new().with_limits(limits);
    /// ```
    pub messages_per_second_max: Option<u32>,
    /// Bytes per second that one WebSocket client may send, framing included, and compressed messages as they arrive.
    /// Default `None`: any number.
    ///
    /// Bursts and the consequence are those of
    /// [`messages_per_second_max`](field@Self::messages_per_second_max). A message that is longer than one second's worth
    /// is received in parts, if [`OverRate`] says so, and closes the connection otherwise. The bytes of TLS and of the
    /// handshake do not count. With 0, clients may send no messages: the first closes the connection with 1008, and a few
    /// pings and pongs are allowed.
    pub bytes_per_second_max: Option<u64>,
    /// What happens to a client that sends more than
    /// [`messages_per_second_max`](field@Self::messages_per_second_max) or
    /// [`bytes_per_second_max`](field@Self::bytes_per_second_max). Default [`OverRate::Delay`].
    pub over_rate: OverRate,
    /// Rooms that one connection may be in at once. Default 1,024. Further joins fail with
    /// [`JoinErrorReason::ConnectionRooms`](crate::JoinErrorReason::ConnectionRooms). An event stream of more rooms
    /// gets 503.
    pub connection_rooms_max: usize,
    /// Rooms that may exist at once: those with members or event streams, and those that keep a history. Default
    /// 100,000.
    ///
    /// When the limit is reached, rooms without members and event streams are evicted. A join evicts only rooms that
    /// have kept nothing; if there are none, it fails with [`JoinErrorReason::Rooms`](crate::JoinErrorReason::Rooms),
    /// and an event stream gets 503. A message that is to be kept evicts approximately the least recently used room; if
    /// there is none, the message is refused ([`SendErrorReason::Rooms`](crate::SendErrorReason::Rooms)). Rooms whose
    /// exact name is a pattern of [`with_history`](crate::AsyncWebsocketApp::with_history) do not count, and are never
    /// evicted.
    pub rooms_max: usize,
    /// Connections that may wait for a request head, including idle kept-alive connections. Default 4,096. Beyond the
    /// limit, the one that has waited longest is closed.
    pub handshakes_max: usize,
    /// How long a client may take to send its request head, and again for a request's body. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a client may take to send a message, from its first byte to its last. Default 5 min. Then the
    /// connection is closed with 1008. The time starts anew if it runs out while the connection is not read because its
    /// handlers or those of others are busy, and if the message has meanwhile grown by half of what
    /// [`bytes_per_second_max`](field@Self::bytes_per_second_max) allows in this time. It is extended once for a client that
    /// is sending when it runs out.
    pub message_timeout: Duration,
    /// How long a complete request may wait until its handler begins: a route's, the handshake handler or an event
    /// stream's. Default 30 s. Then the request gets 503. A handler that has begun may take any time. A download also waits so
    /// long at most until a handler reads its next piece (see [`files`](crate::files)); then its connection is closed. This
    /// limit does not apply to requests that axum reads, whose wait for the handshake handler must be bounded in axum.
    pub queue_timeout: Duration,
    /// How long an HTTP connection may stay idle between requests. Default 60 s.
    pub keep_alive_timeout: Duration,
    /// How long a client may take none of the bytes that are queued for it before it is disconnected. Default 30 s.
    /// Bytes that the client takes extend the time as described at
    /// [`write_bytes_per_second_min`](field@Self::write_bytes_per_second_min).
    pub write_timeout: Duration,
    /// The rate at which a client must take what is queued for it, in bytes per second on average: messages, responses
    /// and events. Default 1,024. With 0, every byte that the client takes extends its time in full.
    ///
    /// Bytes that a client takes extend its time at this rate, to at most [`write_timeout`](field@Self::write_timeout)
    /// from now, or to at most [`close_timeout`](field@Self::close_timeout) while the connection is closing. So a
    /// client that takes a byte now and then is disconnected like one that takes none. The time starts anew when the
    /// queue is empty.
    pub write_bytes_per_second_min: u64,
    /// How long the closing handshake may take. Default 5 s. Then the socket is closed. Bytes that the client reads
    /// before the close frame extend the time, unless it is disconnected as a slow consumer.
    pub close_timeout: Duration,
}

/// Setters, one for each field. A program changes what differs from [`Limits::default`], and later versions can add
/// limits.
impl Limits {
    /// Sets the longest message, in bytes: see the field [`message_bytes_max`](field@Self::message_bytes_max).
    #[must_use]
    pub const fn message_bytes_max(mut self, message_bytes_max: usize) -> Self {
        self.message_bytes_max = message_bytes_max;
        self
    }

    /// Sets how many bytes may wait for one client: see the field [`outbox_bytes_max`](field@Self::outbox_bytes_max).
    #[must_use]
    pub const fn outbox_bytes_max(mut self, outbox_bytes_max: usize) -> Self {
        self.outbox_bytes_max = outbox_bytes_max;
        self
    }

    /// Sets how many bytes of keyed messages may wait for one client: see the field [`keyed_bytes_max`](field@Self::keyed_bytes_max).
    #[must_use]
    pub const fn keyed_bytes_max(mut self, keyed_bytes_max: usize) -> Self {
        self.keyed_bytes_max = keyed_bytes_max;
        self
    }

    /// Sets how many bytes may wait for all clients together: see the field [`outboxes_bytes_max`](field@Self::outboxes_bytes_max).
    #[must_use]
    pub const fn outboxes_bytes_max(mut self, outboxes_bytes_max: usize) -> Self {
        self.outboxes_bytes_max = outboxes_bytes_max;
        self
    }

    /// Sets how many bytes may be on their way to one shard: see the field [`mailbox_bytes_max`](field@Self::mailbox_bytes_max).
    #[must_use]
    pub const fn mailbox_bytes_max(mut self, mailbox_bytes_max: usize) -> Self {
        self.mailbox_bytes_max = mailbox_bytes_max;
        self
    }

    /// Sets how many received bytes of one connection may wait for its handler: see the field [`pending_bytes_max`](field@Self::pending_bytes_max).
    #[must_use]
    pub const fn pending_bytes_max(mut self, pending_bytes_max: usize) -> Self {
        self.pending_bytes_max = pending_bytes_max;
        self
    }

    /// Sets how many received bytes the app holds at once: see the field [`received_bytes_max`](field@Self::received_bytes_max).
    #[must_use]
    pub const fn received_bytes_max(mut self, received_bytes_max: usize) -> Self {
        self.received_bytes_max = received_bytes_max;
        self
    }

    /// Sets the longest request head, in bytes: see the field [`head_bytes_max`](field@Self::head_bytes_max).
    #[must_use]
    pub const fn head_bytes_max(mut self, head_bytes_max: usize) -> Self {
        self.head_bytes_max = head_bytes_max;
        self
    }

    /// Sets the longest request body, in bytes: see the field [`body_bytes_max`](field@Self::body_bytes_max).
    #[must_use]
    pub const fn body_bytes_max(mut self, body_bytes_max: usize) -> Self {
        self.body_bytes_max = body_bytes_max;
        self
    }

    /// Sets how many bytes of HTTP requests the app holds at once: see the field [`bodies_bytes_max`](field@Self::bodies_bytes_max).
    #[must_use]
    pub const fn bodies_bytes_max(mut self, bodies_bytes_max: usize) -> Self {
        self.bodies_bytes_max = bodies_bytes_max;
        self
    }

    /// Sets how many connections the app serves at once: see the field [`connections_max`](field@Self::connections_max).
    #[must_use]
    pub const fn connections_max(mut self, connections_max: usize) -> Self {
        self.connections_max = connections_max;
        self
    }

    /// Sets how many connections one address may have at once; `None` is any number: see the field [`peer_connections_max`](field@Self::peer_connections_max).
    #[must_use]
    pub const fn peer_connections_max(mut self, peer_connections_max: Option<usize>) -> Self {
        self.peer_connections_max = peer_connections_max;
        self
    }

    /// Sets how many handshakes one address may begin per second; `None` is any number: see the field [`peer_handshakes_per_second_max`](field@Self::peer_handshakes_per_second_max).
    #[must_use]
    pub const fn peer_handshakes_per_second_max(
        mut self,
        peer_handshakes_per_second_max: Option<u32>,
    ) -> Self {
        self.peer_handshakes_per_second_max = peer_handshakes_per_second_max;
        self
    }

    /// Sets how many connections one user may have at once; `None` is any number: see the field [`user_connections_max`](field@Self::user_connections_max).
    #[must_use]
    pub const fn user_connections_max(mut self, user_connections_max: Option<usize>) -> Self {
        self.user_connections_max = user_connections_max;
        self
    }

    /// Sets how many calls of one connection may be in flight: see the field [`connection_calls_max`](field@Self::connection_calls_max).
    #[must_use]
    pub const fn connection_calls_max(mut self, connection_calls_max: usize) -> Self {
        self.connection_calls_max = connection_calls_max;
        self
    }

    /// Sets how many messages one client may send per second; `None` is any number: see the field [`messages_per_second_max`](field@Self::messages_per_second_max).
    #[must_use]
    pub const fn messages_per_second_max(mut self, messages_per_second_max: Option<u32>) -> Self {
        self.messages_per_second_max = messages_per_second_max;
        self
    }

    /// Sets how many bytes one client may send per second; `None` is any number: see the field [`bytes_per_second_max`](field@Self::bytes_per_second_max).
    #[must_use]
    pub const fn bytes_per_second_max(mut self, bytes_per_second_max: Option<u64>) -> Self {
        self.bytes_per_second_max = bytes_per_second_max;
        self
    }

    /// Sets what happens to a client that sends too fast: see the field [`over_rate`](field@Self::over_rate).
    #[must_use]
    pub const fn over_rate(mut self, over_rate: OverRate) -> Self {
        self.over_rate = over_rate;
        self
    }

    /// Sets how many rooms one connection may be in: see the field [`connection_rooms_max`](field@Self::connection_rooms_max).
    #[must_use]
    pub const fn connection_rooms_max(mut self, connection_rooms_max: usize) -> Self {
        self.connection_rooms_max = connection_rooms_max;
        self
    }

    /// Sets how many rooms there may be: see the field [`rooms_max`](field@Self::rooms_max).
    #[must_use]
    pub const fn rooms_max(mut self, rooms_max: usize) -> Self {
        self.rooms_max = rooms_max;
        self
    }

    /// Sets how many connections may wait for a request head: see the field [`handshakes_max`](field@Self::handshakes_max).
    #[must_use]
    pub const fn handshakes_max(mut self, handshakes_max: usize) -> Self {
        self.handshakes_max = handshakes_max;
        self
    }

    /// Sets how long a client may take for a request head, and again for a body: see the field [`handshake_timeout`](field@Self::handshake_timeout).
    #[must_use]
    pub const fn handshake_timeout(mut self, handshake_timeout: Duration) -> Self {
        self.handshake_timeout = handshake_timeout;
        self
    }

    /// Sets how long a client may take for one message: see the field [`message_timeout`](field@Self::message_timeout).
    #[must_use]
    pub const fn message_timeout(mut self, message_timeout: Duration) -> Self {
        self.message_timeout = message_timeout;
        self
    }

    /// Sets how long a request may wait for its handler: see the field [`queue_timeout`](field@Self::queue_timeout).
    #[must_use]
    pub const fn queue_timeout(mut self, queue_timeout: Duration) -> Self {
        self.queue_timeout = queue_timeout;
        self
    }

    /// Sets how long an HTTP connection may stay idle between requests: see the field [`keep_alive_timeout`](field@Self::keep_alive_timeout).
    #[must_use]
    pub const fn keep_alive_timeout(mut self, keep_alive_timeout: Duration) -> Self {
        self.keep_alive_timeout = keep_alive_timeout;
        self
    }

    /// Sets how long a client may take nothing of what waits for it: see the field [`write_timeout`](field@Self::write_timeout).
    #[must_use]
    pub const fn write_timeout(mut self, write_timeout: Duration) -> Self {
        self.write_timeout = write_timeout;
        self
    }

    /// Sets the rate at which a client must read what waits for it, in bytes per second: see the field [`write_bytes_per_second_min`](field@Self::write_bytes_per_second_min).
    #[must_use]
    pub const fn write_bytes_per_second_min(mut self, write_bytes_per_second_min: u64) -> Self {
        self.write_bytes_per_second_min = write_bytes_per_second_min;
        self
    }

    /// Sets how long the closing handshake may take: see the field [`close_timeout`](field@Self::close_timeout).
    #[must_use]
    pub const fn close_timeout(mut self, close_timeout: Duration) -> Self {
        self.close_timeout = close_timeout;
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 16 << 20,
            outbox_bytes_max: 1 << 20,
            keyed_bytes_max: 4 << 20,
            outboxes_bytes_max: 512 << 20,
            mailbox_bytes_max: 4 << 20,
            pending_bytes_max: 64 << 10,
            received_bytes_max: 512 << 20,
            head_bytes_max: 16 << 10,
            body_bytes_max: 1 << 20,
            bodies_bytes_max: 64 << 20,
            connections_max: 100_000,
            peer_connections_max: None,
            peer_handshakes_per_second_max: None,
            user_connections_max: None,
            connection_calls_max: 1_024,
            messages_per_second_max: None,
            bytes_per_second_max: None,
            over_rate: OverRate::Delay,
            connection_rooms_max: 1_024,
            rooms_max: 100_000,
            handshakes_max: 4_096,
            handshake_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(300),
            queue_timeout: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            write_bytes_per_second_min: 1_024,
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// What happens to a client that sends faster than [`Limits::messages_per_second_max`](field@Limits::messages_per_second_max)
/// or [`Limits::bytes_per_second_max`](field@Limits::bytes_per_second_max) allow.
///
/// The messages within the limit are handled in both cases, in order.
///
/// ```
/// use humphrey_ws::{Limits, OverRate};
///
/// assert_eq!(Limits::default().over_rate, OverRate::Delay);
/// let limits = Limits::default().messages_per_second_max(Some(50)).over_rate(OverRate::Close);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverRate {
    /// Do not read from the client until it may send more, which TCP makes it notice. This is the default.
    ///
    /// Nothing is lost, unless the app is short of memory: if delayed clients hold too much of
    /// [`Limits::received_bytes_max`](field@Limits::received_bytes_max), those that hold the most are closed with 1008. Pings
    /// and close frames are answered when it is their turn. The server reads on when a sixteenth of a second's worth may
    /// follow, or one message. Operating systems buffer some megabytes for a client that is not read from. If the client
    /// ends its stream before they are handled, they are handled at the same rate for
    /// [`Limits::close_timeout`](field@Limits::close_timeout), and then the connection is closed with 1008 and the rest is
    /// dropped.
    ///
    /// The [`Heartbeat`](crate::ping::Heartbeat) does not disconnect a client while input of it waits, since its pong is
    /// behind that input. It sends pings nevertheless. So if such a client vanishes, the connection ends when the operating
    /// system has sent a ping often enough in vain (on Linux after about 15 minutes, see `net.ipv4.tcp_retries2`), or, if
    /// that comes first, when its input is handled and the heartbeat has found it silent.
    ///
    /// [`Metrics::reads_delayed`](field@crate::Metrics::reads_delayed) counts the delays.
    #[default]
    Delay,
    /// Close the connection with code 1008 once its earlier messages are handled.
    ///
    /// If the server has paused reading, because handlers were busy or the process was stopped, what the client may have
    /// sent in the meantime does not count as sent at once. So after a pause, handlers may be given more than a burst.
    ///
    /// [`Metrics::closed_over_rate`](field@crate::Metrics::closed_over_rate) counts these clients.
    Close,
}

/// How many messages a room keeps ([`with_history`](crate::AsyncWebsocketApp::with_history)). Both limits hold; the
/// oldest messages are dropped first.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_history("secret/*", HistoryLimits::NONE)
///     .with_history("*", HistoryLimits::messages(50).bytes(64 * 1024));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryLimits {
    /// Number of messages that a room keeps. With 0 it keeps no history.
    pub messages_max: usize,
    /// Bytes of payload of all kept messages of a room together. Default 1 MiB. A longer message is sent but not kept,
    /// and the room's kept messages are dropped, so that the history has no gap.
    pub bytes_max: usize,
}

impl HistoryLimits {
    /// Keeps nothing: messages of such a room have no ids.
    pub const NONE: Self = Self::messages(0);

    /// Keeps up to this many messages, with at most 1 MiB of payload together.
    pub const fn messages(messages_max: usize) -> Self {
        Self {
            messages_max,
            bytes_max: 1 << 20,
        }
    }

    /// Sets the bytes of payload of all kept messages together: see the field [`bytes_max`](field@Self::bytes_max).
    #[must_use]
    pub const fn bytes(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }
}

/// How much a keyed room keeps ([`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms)): of each key the newest
/// message. Both limits hold. A message of a further key that exceeds one of them is refused
/// ([`SendErrorReason::Keys`](crate::SendErrorReason::Keys)), so that no key that is in use is forgotten. So is a message of a known key
/// that is longer than its former one, if the bytes do not suffice: the former one stays.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, KeyedLimits};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_keyed_rooms("prices/*", KeyedLimits::keys(1_000).bytes(512 * 1024));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedLimits {
    /// Number of keys of a room. With 0, the room is not keyed.
    pub keys_max: usize,
    /// Bytes of all kept messages of a room together, each with its key and 256 bytes more. In an app with event streams
    /// ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)), each counts as an event, too. Default 1 KiB for each key, and
    /// at least 1 MiB.
    pub bytes_max: usize,
}

impl KeyedLimits {
    /// Keeps nothing: such a room is not keyed, and may keep a history.
    pub const NONE: Self = Self::keys(0);

    /// Keeps the newest message of up to this many keys, with at most 1 KiB for each key together, or 1 MiB if that is more. For more
    /// than 4,096 keys, also raise [`Limits::keyed_bytes_max`](field@Limits::keyed_bytes_max), or set [`bytes`](Self::bytes).
    pub const fn keys(keys_max: usize) -> Self {
        let bytes = keys_max.saturating_mul(1 << 10);
        Self {
            keys_max,
            bytes_max: if bytes > 1 << 20 { bytes } else { 1 << 20 },
        }
    }

    /// Sets the bytes of all kept messages together: see the field [`bytes_max`](field@Self::bytes_max).
    #[must_use]
    pub const fn bytes(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }
}

/// The policy for slow consumers: what happens when a message does not fit into a client's outbox
/// ([`Limits::outbox_bytes_max`]).
///
/// No policy ever cuts a message: the frame in progress is always completed. [`Metrics`](crate::Metrics) counts the
/// messages that were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowConsumer {
    /// Disconnect the client with close code 1013, and drop its queued messages. This is the default, and right for a
    /// public server: a slow consumer delays nobody else.
    #[default]
    Disconnect,
    /// Drop the message for this client.
    DropNewest,
    /// Drop the client's oldest queued messages to make room for the new one. As long as the client reads more slowly than
    /// it is sent messages, it stays a full outbox behind: each message that it reads is that old.
    DropOldest,
    /// Drop all of the client's queued messages, and go on with the new one. Right for feeds of which only the present
    /// matters, such as prices and positions.
    ///
    /// A client that reads too slowly stays a full outbox behind under [`DropOldest`](Self::DropOldest). Here it loses about
    /// as many messages, but in fewer and longer gaps, and each gap brings it back to the newest message. It stays
    /// connected as long as it reads enough for [`Limits::write_timeout`](field@Limits::write_timeout). On Linux, the kernel
    /// takes at most 128 KiB in advance for a client, so that little else comes before the newest message.
    ///
    /// The frame in progress is completed first. If it alone leaves no room, the new message is dropped instead. Before
    /// anything is dropped, the socket is offered what is queued. Pongs and close frames stay, and so do kept messages
    /// that a room replays: the client receives its replay in full, and then goes on with the newest message. All other
    /// messages are dropped, also replies, responses to calls and changes of presence. Messages that a client must not
    /// miss need another policy.
    ///
    /// # Noticing a gap
    ///
    /// In a room that keeps a history, the sequences of an epoch have no gaps ([`HistoryId`](crate::HistoryId)). So if
    /// a client sees the sequence jump within an epoch, it has skipped the messages in between, or was
    /// [excluded](crate::Room::broadcast_except) from them.
    /// [`Dropped::slow_consumer`](field@crate::Dropped::slow_consumer) counts the messages that clients have skipped, once
    /// for each client.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryId, HistoryLimits, Message, SlowConsumer};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_slow_consumer(SlowConsumer::SkipAhead)
    ///     .with_history("prices", HistoryLimits::messages(10));
    /// // Each message contains its id. Clients in JavaScript and event streams get the ids in any case.
    /// app.sender().room("prices").broadcast_with(|id| match id {
    ///     Some(id) => Message::new(format!("{id} EUR/USD 1.0832")),
    ///     None => Message::new("EUR/USD 1.0832"),
    /// });
    ///
    /// /// The number of messages between two that a client has received in a row; `None` if the room has begun anew.
    /// fn skipped(last: HistoryId, next: HistoryId) -> Option<u64> {
    ///     (last.epoch() == next.epoch()).then(|| next.sequence() - last.sequence() - 1)
    /// }
    ///
    /// let last = "5f3a9c0b12d4e678-42".parse()?;
    /// assert_eq!(skipped(last, "5f3a9c0b12d4e678-43".parse()?), Some(0));
    /// assert_eq!(skipped(last, "5f3a9c0b12d4e678-1042".parse()?), Some(999));
    /// # Ok::<(), humphrey_ws::InvalidHistoryId>(())
    /// ```
    SkipAhead,
    /// Apply backpressure to producers: while a client's outbox is more than half full, its shard delivers no further
    /// messages, so that the order is kept. Right for a pipe, where every line matters; wrong for a public server.
    Pace {
        /// The rate in bytes per second at which a client must read while others wait for it. A slower client is
        /// disconnected.
        ///
        /// What the client reads extends its patience at this rate, by up to twice the patience. TCP reports reading in
        /// steps, of about 100 KB on loopback and of less over a network: the patience must be longer than a client
        /// that is to stay needs for one step. Bytes that a socket takes in the first three eighths of the patience may
        /// only be growing kernel buffers, so they do not extend it.
        bytes_per_second_min: u64,
        /// How long the others wait for a client that reads nothing, to within 10 ms. Then it is disconnected with
        /// close code 1013. Time in which its socket took none of its queued bytes also counts if nobody waited yet.
        ///
        /// Clients that stop reading at the same time are waited for once. If they stop one after the other, each wait
        /// shortens the next by half of its length. All waits together come to at most twice the patience, plus a
        /// sixteenth of it for each further client, also if clients disconnect before their time is over. The reduction
        /// is recovered at an eighth of the rate at which it came about; until then a client must take something at
        /// correspondingly shorter intervals.
        patience: Duration,
    },
}

impl SlowConsumer {
    /// Single messages are dropped, and the connection goes on.
    #[cfg(feature = "deflate")]
    pub(crate) const fn drops(self) -> bool {
        matches!(self, Self::DropNewest | Self::DropOldest | Self::SkipAhead)
    }

    /// Whether a new message displaces the messages that are queued.
    pub(crate) const fn prefers_new(self) -> bool {
        matches!(self, Self::DropOldest | Self::SkipAhead)
    }

    /// [`SlowConsumer::Pace`] with its defaults: at least 1,024 bytes per second, with a patience of one second.
    pub const fn pace() -> Self {
        Self::Pace {
            bytes_per_second_min: 1_024,
            patience: Duration::from_secs(1),
        }
    }
}
