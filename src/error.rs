//! Errors of the blocking API and of the `try_` methods.

use std::error::Error;
use std::fmt;

use crate::message::Message;

/// An error of the blocking API.
#[derive(Debug, PartialEq, Eq)]
pub enum WebsocketError {
    /// Reading failed, or the client broke the protocol.
    ReadError,
    /// Writing failed.
    WriteError,
    /// The handshake was not valid.
    HandshakeError,
    /// A frame had an opcode that RFC 6455 §5.2 reserves.
    InvalidOpcode,
    /// The connection has been closed, by a close frame or by the end of the stream.
    ConnectionClosed,
}

impl fmt::Display for WebsocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Error for WebsocketError {}

/// A message that could not be sent, and why.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, SendErrorReason};
///
/// let app = AsyncWebsocketApp::<()>::new();
/// let error = app.sender().try_broadcast("too early").unwrap_err();
/// assert_eq!(error.reason, SendErrorReason::Closed);
/// assert_eq!(error.message.text(), Some("too early"));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct SendError {
    /// The message, for another attempt.
    pub message: Message,
    /// Why the message was not sent.
    pub reason: SendErrorReason,
}

/// Why a message could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendErrorReason {
    /// Backpressure: a mailbox of the engine, or the client's outbox, is full. Retry later, or drop the message.
    Full,
    /// The connection is closed, or the app is not running.
    Closed,
    /// The message is longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    TooLarge,
    /// The message has no history to go to: its room does not exist, there are already
    /// [`Limits::rooms_max`](crate::Limits::rooms_max) rooms, and none of them can be evicted.
    Rooms,
    /// The room is not keyed: no pattern of [`with_keyed_rooms`](crate::AsyncWebsocketApp::with_keyed_rooms) matches its name. The
    /// room of all clients never is.
    NotKeyed,
    /// The key is longer than 255 bytes, or the room keeps as many keys or bytes as its [`KeyedLimits`](crate::KeyedLimits) allow.
    /// The message of the key that the room keeps, if there is one, stays.
    Keys,
    /// The message can't reach the other nodes of the cluster: the broker has been unreachable for longer than
    /// [`Cluster::outage_wait_max`](crate::Cluster::outage_wait_max), and the queue is full. Or, where the caller waits for a
    /// message's id in the history of a room, the broker has refused the message or has not answered.
    #[cfg(feature = "cluster")]
    Broker,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.message.bytes().len();
        match self.reason {
            SendErrorReason::Full => {
                write!(
                    f,
                    "message of {len} bytes not sent: the queue is full; retry later, or drop the message"
                )
            }
            SendErrorReason::Closed => {
                write!(
                    f,
                    "message of {len} bytes not sent: the connection is closed, or the app is not running"
                )
            }
            SendErrorReason::TooLarge => write!(
                f,
                "message of {len} bytes not sent: it exceeds Limits::message_bytes_max"
            ),
            #[cfg(feature = "cluster")]
            SendErrorReason::Broker => write!(
                f,
                "message of {len} bytes not sent: the cluster's broker can't be reached, and the queue is full; retry later"
            ),
            SendErrorReason::NotKeyed => write!(
                f,
                "message of {len} bytes not sent: no pattern of with_keyed_rooms matches the name of its room"
            ),
            SendErrorReason::Keys => write!(
                f,
                "message of {len} bytes not sent: its key is longer than 255 bytes, or its room keeps as much as KeyedLimits allow; remove keys, or raise the limits"
            ),
            SendErrorReason::Rooms => write!(
                f,
                "message of {len} bytes not sent: its room can't be created, because Limits::rooms_max is reached"
            ),
        }
    }
}

impl Error for SendError {}

/// A failed join of a room, and why.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, JoinErrorReason};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_connect_handler(|stream, _| {
///         let error = stream.try_join(&"x".repeat(256)).unwrap_err();
///         assert_eq!(error.reason, JoinErrorReason::NameTooLong);
///     });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinError {
    /// The room's name; only its beginning if it is too long.
    pub room: String,
    /// Why the room was not joined.
    pub reason: JoinErrorReason,
}

/// Why a connection could not join a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JoinErrorReason {
    /// The name is longer than 255 bytes.
    NameTooLong,
    /// The connection is already in [`Limits::connection_rooms_max`](crate::Limits::connection_rooms_max) rooms.
    ConnectionRooms,
    /// There are already [`Limits::rooms_max`](crate::Limits::rooms_max) rooms.
    Rooms,
    /// The history no longer contains all messages after the given id, or the id is from another history.
    HistoryGone,
    /// The connection is closed, or the app is not running. Also returned, with a warning in the log, if the call would have
    /// to wait for a full mailbox where the library must not block, such as in a `tracing` subscriber.
    Closed,
    /// The room's history can't be read, because a broker server of the cluster can't be reached. Retry later.
    #[cfg(feature = "cluster")]
    Broker,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            JoinErrorReason::NameTooLong => "its name is longer than 255 bytes",
            JoinErrorReason::ConnectionRooms => {
                "the connection is already in Limits::connection_rooms_max rooms; leave one first"
            }
            JoinErrorReason::Rooms => "there are already Limits::rooms_max rooms",
            JoinErrorReason::HistoryGone => {
                "its history does not reach back to the given id; reload the data, and join without an id"
            }
            JoinErrorReason::Closed => "the connection is closed, or the app is not running",
            #[cfg(feature = "cluster")]
            JoinErrorReason::Broker => {
                "its history can't be read, because the cluster's broker can't be reached; retry later"
            }
        };
        write!(f, "room {:?} not joined: {reason}", self.room)
    }
}

impl Error for JoinError {}

/// A state of a room's member that was not set, and why ([`AsyncStream::try_set_presence`](crate::AsyncStream::try_set_presence)).
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, PresenceErrorReason};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_connect_handler(|stream, _| {
///         let error = stream.try_set_presence("lobby", "away").unwrap_err();
///         assert_eq!(error.reason, PresenceErrorReason::NoPresence);
///     });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceError {
    /// The room's name; only its beginning if it is too long.
    pub room: String,
    /// Why the state was not set.
    pub reason: PresenceErrorReason,
}

/// Why the state of a room's member was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PresenceErrorReason {
    /// No pattern of [`with_presence`](crate::AsyncWebsocketApp::with_presence) matches the room's name, or the app does not run.
    NoPresence,
    /// The connection is not in the room, or is closed.
    NotJoined,
    /// The state is longer than [`PresenceRooms::state_bytes_max`](crate::PresenceRooms::state_bytes_max).
    TooLong,
}

impl fmt::Display for PresenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            PresenceErrorReason::NoPresence => {
                "no pattern of with_presence matches its name, or the app does not run"
            }
            PresenceErrorReason::NotJoined => "the connection is not in it, or is closed",
            PresenceErrorReason::TooLong => "it is longer than PresenceRooms::state_bytes_max",
        };
        write!(f, "no state set in the room {:?}: {reason}", self.room)
    }
}

impl Error for PresenceError {}
