//! Errors: those of the blocking API, and what the `try_` methods hand back.

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

/// A message that was not accepted for sending, and why.
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
    /// The message, to send later or elsewhere.
    pub message: Message,
    /// Why it was not accepted.
    pub reason: SendErrorReason,
}

/// Why a message was not accepted for sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendErrorReason {
    /// A mailbox of the engine, or the client's outbox, is full: try again later, or drop the message.
    Full,
    /// The connection has gone, or the app does not run.
    Closed,
    /// The message is longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    TooLarge,
    /// The room is to keep the message, and can't be made: there are [`Limits::rooms_max`](crate::Limits::rooms_max), and
    /// somebody is in each of them.
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

/// A connection that did not join a room, and why.
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
    /// The room; the beginning of its name if that is too long.
    pub room: String,
    /// Why it was not joined.
    pub reason: JoinErrorReason,
}

/// Why a connection did not join a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JoinErrorReason {
    /// The name is longer than 255 bytes.
    NameTooLong,
    /// The connection is in [`Limits::connection_rooms_max`](crate::Limits::connection_rooms_max) rooms.
    ConnectionRooms,
    /// There are [`Limits::rooms_max`](crate::Limits::rooms_max) rooms.
    Rooms,
    /// What the room keeps no longer reaches back to the message that was asked for, or never did.
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
