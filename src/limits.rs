//! The limits of the engine, and what happens to slow consumers.

use std::time::Duration;

/// The bounds of an app. Every queue, buffer and wait has one.
///
/// Times count while the app runs. Where its process is stopped, its machine sleeps or is paused, or a thread is not scheduled for
/// 250 ms or longer, deadlines move on by as long, and by up to a second more, in which what has come meanwhile is read.
///
/// Change what differs from the default:
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
    /// Longest message, in bytes of payload, in either direction. Default 16 MiB.
    ///
    /// A client that announces a longer one is closed with 1009 before anything is allocated; a longer message of
    /// the program is refused ([`SendErrorReason::TooLarge`](crate::SendErrorReason::TooLarge)).
    pub message_bytes_max: usize,
    /// Bytes that may wait for one client, beyond what its socket took. Default 1 MiB.
    ///
    /// An empty outbox takes one message of any legal size; the bound decides whether another may be queued behind.
    /// Over it, [`SlowConsumer`] decides. What a room has kept and replays to a client that joins it does not count, nor is it
    /// dropped: it is bounded by `outboxes_bytes_max`. Messages that wait behind a replay count as always.
    pub outbox_bytes_max: usize,
    /// Bytes that are held for all clients together, of what each was sent alone, and of responses of mounted routes.
    /// Default 512 MiB. A message or response is held until its last byte has left.
    ///
    /// Beyond it, clients of the address that has most waiting are disconnected, those with most of it first: at first those
    /// that take nothing of it at that moment, and the others if that is not enough. While it is used up by responses, no
    /// route's handler is started: the answer is 503.
    ///
    /// Broadcasts that wait do not count, since all outboxes share them, but for pieces that are copied for one client.
    /// Each shard has an equal share, and room for one message of any legal size.
    pub outboxes_bytes_max: usize,
    /// Bytes of messages on their way to one shard. Default 4 MiB.
    ///
    /// While it is full, [`AsyncSender::broadcast`](crate::AsyncSender::broadcast) and the like wait, and their
    /// `try_` twins return [`SendErrorReason::Full`](crate::SendErrorReason::Full). A shard may hold as much again
    /// that it has taken and not yet handed on; an empty mailbox takes a message of any legal size.
    pub mailbox_bytes_max: usize,
    /// Bytes of received messages that wait while a handler of their connection runs. Default 64 KiB.
    ///
    /// Beyond it the connection is not read, and TCP slows the client down. A message that has begun is read to its end.
    pub pending_bytes_max: usize,
    /// Bytes of received messages that the app holds at once, of all connections together. Default 512 MiB.
    ///
    /// One half is for messages that have begun and are not complete: beyond it, of the address that holds most of it
    /// the connection with the largest is closed with 1013. The other half is for messages that wait for handlers or are in their hands: beyond it nothing is
    /// read until they have caught up. Each shard has an equal share, and room for one message of any legal size in
    /// either half.
    ///
    /// An eighth of it, beside those halves, is for requests that wait for the handshake handler or an event stream's, and
    /// for what clients send behind them: beyond it, further ones are answered with 503. While the second half is used up, requests are not kept
    /// for connect handlers ([`AsyncStream::request`](crate::AsyncStream::request)).
    pub received_bytes_max: usize,
    /// Longest request head, in bytes. Default 16 KiB. A longer one is answered with 431.
    pub head_bytes_max: usize,
    /// Longest body of an HTTP request, in bytes. Default 1 MiB. A longer one is answered with 413.
    pub body_bytes_max: usize,
    /// Bytes of HTTP requests that the app holds at once, of all connections together: bodies, requests that wait for a
    /// handler or are in its hands, and what clients send behind them. Default 64 MiB.
    ///
    /// Beyond it, of the address that holds most of it the largest body that is not complete is answered with 503, or else
    /// the request that finds no room. Each shard has an equal share, and room for one request of any legal size. Bodies
    /// that a Humphrey app or axum reads do not count: they are theirs to bound.
    pub bodies_bytes_max: usize,
    /// Connections, of all kinds, that the app serves at once; and as many again that have ended, and whose disconnect
    /// handler has still to run, or what the program keeps for them to be dropped. Default 100,000. The requests of further ones are answered
    /// with 503, also where a Humphrey app hands them over; those whose handshake was answered before are closed with
    /// 1013.
    pub connections_max: usize,
    /// WebSocket and HTTP connections that one address may have at once. Default none: any number.
    ///
    /// Further ones are answered with 429 and closed, also those that a Humphrey app hands over. With 0, no connection is accepted. An
    /// IPv6 network of 64 bits counts as one address. Behind a proxy all clients have one address, until the proxy is
    /// trusted to say whose it is ([`with_trusted_proxies`](crate::AsyncWebsocketApp::with_trusted_proxies)); then
    /// WebSockets and event streams count, and not the connections that the proxy keeps for HTTP requests.
    pub peer_connections_max: Option<usize>,
    /// WebSocket handshakes and event streams that one address may begin, per second; a second's worth may come at once.
    /// Default none: any number. Further ones are answered with 429; with 0, all are.
    pub peer_handshakes_per_second_max: Option<u32>,
    /// WebSocket connections and event streams that one user may have at once, where the program says who the user is
    /// ([`Accept::user`](crate::Accept::user), [`Subscription::user`](crate::Subscription::user)). Default none: any number.
    /// Further ones are answered with 429, or closed with 1013 if their handshake was answered before.
    ///
    /// A connection counts from the handler's answer until it has ended. A client that reconnects may find its lost
    /// connection still counted, until the [`Heartbeat`](crate::ping::Heartbeat) finds it: leave room for that.
    pub user_connections_max: Option<usize>,
    /// Calls of one connection that may be in flight at once, in each direction ([procedures](crate::procedures)). Default
    /// 1,024. Further ones of a client are answered with an error; in the older subprotocol, which has none, its connection
    /// is closed with 1013. Further ones of the program fail.
    pub connection_calls_max: usize,
    /// Rooms that one connection may be in at once. Default 1,024. Joining a further one fails, with
    /// [`JoinErrorReason::ConnectionRooms`](crate::JoinErrorReason::ConnectionRooms); an event stream of more is answered
    /// with 503.
    pub connection_rooms_max: usize,
    /// Rooms that there may be at once: those that somebody is in, or follows as an event stream, and those that keep a
    /// history. Default 100,000. Joining a further one fails, with
    /// [`JoinErrorReason::Rooms`](crate::JoinErrorReason::Rooms); an event stream of one is answered with 503. Where there are
    /// as many, rooms that nobody is in give way: to those that are joined, only those that have kept nothing; to those that
    /// are to keep a message, about the one that was not used for longest. If there is none, the message is refused
    /// ([`SendErrorReason::Rooms`](crate::SendErrorReason::Rooms)). Rooms that have a pattern of their own
    /// ([`with_history`](crate::AsyncWebsocketApp::with_history)) do not count, and never give way.
    pub rooms_max: usize,
    /// Connections that wait for a request head, those kept alive included. Default 4,096. Beyond it, the one that has
    /// waited longest gives way.
    pub handshakes_max: usize,
    /// How long a client may take for its request head, and again for a request's body. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long a client may take for a message, from its first byte to its last. Default 5 min. Then the connection is
    /// closed with 1008. The time stands still while the connection is not read. A client that is just sending when it is
    /// over has it once more.
    pub message_timeout: Duration,
    /// How long a complete request may wait until its handler begins: a route's, the handshake handler or an event stream's.
    /// Default 30 s. Then it is answered with 503. A handler that has begun may take as long as it likes. Requests that axum reads wait
    /// for the handshake handler without it: give them a timeout there.
    pub queue_timeout: Duration,
    /// How long an HTTP connection may stay idle between requests. Default 60 s.
    pub keep_alive_timeout: Duration,
    /// How long a client may take none of the bytes that wait for it, before it is disconnected. Default 30 s. What it takes
    /// buys it time, as [`write_bytes_per_second_min`](field@Self::write_bytes_per_second_min) says.
    pub write_timeout: Duration,
    /// What a client must take, on average, of what waits for it: a message, a response or an event. Default 1,024 bytes per
    /// second; with 0, every byte counts as if it were many.
    ///
    /// What a client takes buys it time at this rate, up to [`write_timeout`](field@Self::write_timeout) from now; while it is
    /// being closed, up to [`close_timeout`](field@Self::close_timeout). So one that takes a byte now and then is disconnected
    /// as if it took none. Its time begins anew when nothing waits any more.
    pub write_bytes_per_second_min: u64,
    /// How long the other side of a closing handshake is waited for. Default 5 s. Then the socket is closed. What a client
    /// reads on its way to the close frame buys it time, unless it was disconnected for its slowness.
    pub close_timeout: Duration,
}

/// Setters, one for each field, so that a program changes what differs from [`Limits::default`] and later versions can add
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

/// How much a room keeps of its messages
/// ([`with_history`](crate::AsyncWebsocketApp::with_history)). Both bounds hold: the older messages give way.
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
    /// Messages that a room keeps; with 0 it keeps no history.
    pub messages_max: usize,
    /// Bytes of payload that a room keeps, of all its kept messages together. Default 1 MiB. A message that is longer is sent,
    /// and leaves nothing kept.
    pub bytes_max: usize,
}

impl HistoryLimits {
    /// Keeps nothing: messages of such a room have no ids.
    pub const NONE: Self = Self::messages(0);

    /// Keeps up to this number of messages, with at most 1 MiB of payload together.
    pub const fn messages(messages_max: usize) -> Self {
        Self {
            messages_max,
            bytes_max: 1 << 20,
        }
    }

    /// Sets how many bytes of payload the kept messages may have together: see the field
    /// [`bytes_max`](field@Self::bytes_max).
    #[must_use]
    pub const fn bytes(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }
}

/// What happens when a message does not fit into a client's outbox ([`Limits::outbox_bytes_max`]).
///
/// Whatever the policy, no message is ever cut: the frame in progress is always finished first. What was not
/// delivered is counted in [`Metrics`](crate::Metrics).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SlowConsumer {
    /// The client is disconnected with close code 1013; what waited for it is dropped. The default, and right for a
    /// public server: nobody who reads slowly can slow anyone else.
    #[default]
    Disconnect,
    /// The message is not sent to that client.
    DropNewest,
    /// The oldest messages that wait for that client make room for the new one.
    DropOldest,
    /// Producers wait for their clients: a shard delivers nothing further, so that order holds, while the outbox of one
    /// of its clients is over half its bound. Right for a pipe, where every line matters; wrong for a public server.
    Pace {
        /// What a client must read to stay, while others wait for it.
        ///
        /// What it reads buys it time at this rate, up to twice its patience more. TCP tells of reading in steps, on
        /// loopback of about 100 KB, over a network of less: the patience must be longer than a step takes a client
        /// that is to stay. What a socket takes in the first three eighths of the patience may be the kernel's buffers that
        /// grow: it buys no time beyond the patience.
        bytes_per_second_min: u64,
        /// How long the others wait for a client that reads nothing, to within 10 ms. Then it is disconnected with close
        /// code 1013. Time in which its socket took nothing of what waited for it counts also where nobody waited yet.
        ///
        /// Clients that read nothing at the same time are waited for once. Of those that do so one after the other, each
        /// such wait shortens the next by half of its length: all together they come to twice the patience, and to a
        /// sixteenth of it for each further client, also where clients disconnect by themselves before their time is over. That is forgotten eight times as slowly as it came about. Meanwhile
        /// a client stays if its socket takes something that often.
        patience: Duration,
    },
}

impl SlowConsumer {
    /// Single messages are dropped, and the connection goes on.
    #[cfg(feature = "deflate")]
    pub(crate) const fn drops(self) -> bool {
        matches!(self, Self::DropNewest | Self::DropOldest)
    }

    /// [`SlowConsumer::Pace`] with its defaults: at least 1,024 bytes per second, with a patience of one second.
    pub const fn pace() -> Self {
        Self::Pace {
            bytes_per_second_min: 1_024,
            patience: Duration::from_secs(1),
        }
    }
}
