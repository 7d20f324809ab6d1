//! Errors of the blocking client.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::connection::ProtocolError;
use super::handshake::HandshakeError;
use super::header::InvalidHeader;
use super::url::InvalidUrl;
use crate::protocol::close::{self, CloseCode};
#[cfg(feature = "__client-tls")]
use crate::tls_client::TlsError;

/// An error that [`Client`](super::Client) or [`ClientBuilder`](super::ClientBuilder) returns.
///
/// ```
/// use humphrey_ws::websocket_client::{Client, ClientError};
///
/// match Client::connect("localhost") {
///     Err(ClientError::Url(error)) => assert!(error.to_string().contains("wss://")),
///     other => panic!("{:?}", other.map(|_| ())),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL does not name a WebSocket server.
    Url(InvalidUrl),
    /// A header or subprotocol is not allowed in the handshake.
    Header(InvalidHeader),
    /// The host name has no address, or the resolver can't be reached.
    Resolve {
        /// The host name that was looked up.
        host: String,
        /// The resolver's error.
        error: io::Error,
    },
    /// None of the host's addresses accepts a connection. The fields describe the last attempt.
    Connect {
        /// The address that was tried last.
        address: SocketAddr,
        /// The error of that attempt.
        error: io::Error,
    },
    /// TLS could not be set up: the server's certificate is not acceptable, for example.
    #[cfg(feature = "__client-tls")]
    #[cfg_attr(
        docsrs,
        doc(cfg(any(feature = "client-tls", feature = "client-tls-aws-lc")))
    )]
    Tls(TlsError),
    /// The handshake failed.
    Handshake(HandshakeError),
    /// A time limit expired. After [`receive`](super::Client::receive) the connection stays usable, and `receive` may be
    /// called again. After [`send`](super::Client::send) nothing more can be sent. After any other call the connection is
    /// over.
    TimedOut,
    /// The server closed the WebSocket (RFC 6455 §5.5.1).
    Closed {
        /// The server's close code, or `None` if its close frame carries no code (1005).
        code: Option<CloseCode>,
        /// The server's reason, which is often empty.
        reason: String,
    },
    /// The server violated RFC 6455. The client has sent it a close frame with the matching code.
    Protocol(ProtocolError),
    /// The connection ended without a close frame, or a read or write on it failed. With TLS, the error also says whether the
    /// connection was cut, or ended regularly (close_notify, RFC 8446 §6.1).
    Lost(io::Error),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::Header(error) => error.fmt(f),
            Self::Resolve { host, error } => {
                write!(f, "can't resolve the host name {host:?}: {error}")
            }
            Self::Connect { address, error } => write!(f, "can't connect to {address}: {error}"),
            #[cfg(feature = "__client-tls")]
            Self::Tls(error) => error.fmt(f),
            Self::Handshake(error) => error.fmt(f),
            Self::TimedOut => f.write_str("a time limit expired while waiting for the server"),
            Self::Closed { code, reason } => {
                f.write_str("the server closed the connection")?;
                match code {
                    Some(code) => write!(f, " with {}", code.get())?,
                    None => f.write_str(" without a code")?,
                }
                if reason.is_empty() {
                    return Ok(());
                }
                write!(f, " ({reason})")
            }
            Self::Protocol(error) => {
                write!(f, "the server violated the WebSocket protocol: {error}")
            }
            Self::Lost(error) => write!(f, "the connection was lost: {error}"),
        }
    }
}

impl ClientError {
    /// How long the server asks its client to wait before it reconnects: see
    /// [`Event::retry_after`](super::Event::retry_after).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Closed { code, reason } => close::retry_after(*code, reason),
            _ => None,
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Url(error) => Some(error),
            Self::Header(error) => Some(error),
            #[cfg(feature = "__client-tls")]
            Self::Tls(error) => Some(error),
            Self::Handshake(error) => Some(error),
            Self::Protocol(error) => Some(error),
            Self::Resolve { error, .. } | Self::Connect { error, .. } | Self::Lost(error) => {
                Some(error)
            }
            Self::TimedOut | Self::Closed { .. } => None,
        }
    }
}

impl From<InvalidUrl> for ClientError {
    fn from(error: InvalidUrl) -> Self {
        Self::Url(error)
    }
}

impl From<InvalidHeader> for ClientError {
    fn from(error: InvalidHeader) -> Self {
        Self::Header(error)
    }
}

impl From<HandshakeError> for ClientError {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

#[cfg(feature = "__client-tls")]
impl From<TlsError> for ClientError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error)
    }
}
