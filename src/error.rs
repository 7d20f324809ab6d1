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
/// use humphrey_ws::{AsyncWebsocketApp, Message, SendErrorReason};
///
/// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
/// let error = app.sender().try_broadcast(Message::new("too early")).unwrap_err();
/// assert_eq!(error.reason, SendErrorReason::Closed);
/// assert_eq!(error.message.text(), Some("too early"));
/// ```
#[derive(Debug)]
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
                    "message of {len} bytes not sent: the connection is closed"
                )
            }
            SendErrorReason::TooLarge => write!(
                f,
                "message of {len} bytes not sent: it is longer than Limits::message_bytes_max"
            ),
        }
    }
}

impl Error for SendError {}
