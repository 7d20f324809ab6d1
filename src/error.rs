//! Errors of the blocking API, and of the `try_` methods.

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
    /// The connection has gone, or the app does not run.
    Closed,
    /// The message is longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    TooLarge,
    /// The room's history has no place for the message: there are [`Limits::rooms_max`](crate::Limits::rooms_max)
    /// rooms, and no other can be evicted.
    Rooms,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.message.bytes().len();
        match self.reason {
            SendErrorReason::Full => {
                write!(f, "message of {len} bytes not sent: the queue is full")
            }
            SendErrorReason::Closed => {
                write!(
                    f,
                    "message of {len} bytes not sent: the connection has gone, or the app does not run"
                )
            }
            SendErrorReason::TooLarge => write!(
                f,
                "message of {len} bytes not sent: it is longer than Limits::message_bytes_max"
            ),
            SendErrorReason::Rooms => write!(
                f,
                "message of {len} bytes not sent: its room can't be made, as there are Limits::rooms_max"
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
    /// The connection is in [`Limits::connection_rooms_max`](crate::Limits::connection_rooms_max) rooms.
    ConnectionRooms,
    /// There are [`Limits::rooms_max`](crate::Limits::rooms_max) rooms already.
    Rooms,
    /// Messages after the given id are no longer kept, or the id is from another history.
    HistoryGone,
    /// The connection has gone, or the app does not run.
    Closed,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            JoinErrorReason::NameTooLong => "its name is longer than 255 bytes",
            JoinErrorReason::ConnectionRooms => {
                "the connection is in Limits::connection_rooms_max rooms already"
            }
            JoinErrorReason::Rooms => "there are Limits::rooms_max rooms already",
            JoinErrorReason::HistoryGone => "what it keeps does not reach back to that message",
            JoinErrorReason::Closed => "the connection has gone, or the app does not run",
        };
        write!(f, "room {:?} not joined: {reason}", self.room)
    }
}

impl Error for JoinError {}
