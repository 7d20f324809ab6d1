//! What can go wrong with a blocking client.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::connection::ProtocolError;
use super::handshake::HandshakeError;
use super::header::InvalidHeader;
use super::url::InvalidUrl;
use crate::protocol::close::CloseCode;

/// An error of [`Client`](super::Client).
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL is not one of a server.
    Url(InvalidUrl),
    /// A header or a subprotocol can't be sent.
    Header(InvalidHeader),
    /// The host's name has no address, or the resolver can't be reached.
    Resolve {
        /// The host.
        host: String,
        /// What the resolver says.
        error: io::Error,
    },
    /// No address can be connected to: the last that was tried.
    Connect {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The handshake has come to nothing.
    Handshake(HandshakeError),
    /// A time limit is over. After [`receive`](super::Client::receive) the connection goes on, and it can be called again; after
    /// [`send`](super::Client::send) nothing more can be sent; after anything else the connection is over.
    TimedOut,
    /// The WebSocket is closed: the server's code, if it named one, and its reason.
    Closed {
        /// `None`: without a code (1005).
        code: Option<CloseCode>,
        /// Often empty.
        reason: String,
    },
    /// The server has broken RFC 6455; it was told so.
    Protocol(ProtocolError),
    /// The connection has ended without a close frame, or can't be read or written any more.
    Lost(io::Error),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => error.fmt(f),
            Self::Header(error) => error.fmt(f),
            Self::Resolve { host, error } => write!(f, "{host:?} has no address: {error}"),
            Self::Connect { address, error } => write!(f, "can't connect to {address}: {error}"),
            Self::Handshake(error) => error.fmt(f),
            Self::TimedOut => f.write_str("nothing has come, or could be sent, in time"),
            Self::Closed { code, reason } => {
                f.write_str("the server has closed the connection")?;
                match code {
                    Some(code) => write!(f, " with {}", code.get())?,
                    None => f.write_str(" without a code")?,
                }
                if reason.is_empty() {
                    return Ok(());
                }
                write!(f, " ({reason})")
            }
            Self::Protocol(error) => write!(f, "the server breaks the protocol: {error}"),
            Self::Lost(error) => write!(f, "the connection is lost: {error}"),
        }
    }
}

impl Error for ClientError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Url(error) => Some(error),
            Self::Header(error) => Some(error),
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
