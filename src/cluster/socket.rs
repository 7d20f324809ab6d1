//! The socket of a connection to a broker server, which never blocks: plain, or with TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;

use super::lost::Lost;
#[cfg(feature = "__cluster-tls")]
pub(super) use super::tls::TlsServer;
#[cfg(feature = "__cluster-tls")]
use super::tls::TlsSocket;
use super::unsent::Unsent;

/// Without TLS, there are no servers with TLS.
#[cfg(not(feature = "__cluster-tls"))]
#[derive(Debug, Clone)]
pub(super) enum TlsServer {}

/// A connected socket.
pub(super) enum Socket<S: Read + Write = TcpStream> {
    Plain(S),
    #[cfg(feature = "__cluster-tls")]
    Tls(Box<TlsSocket<S>>),
}

impl<S: Read + Write> Socket<S> {
    #[cfg(feature = "__cluster-tls")]
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Continues with TLS. Its handshake begins with the first [`write`](Self::write).
    #[cfg(feature = "__cluster-tls")]
    pub(super) fn begin_tls(self, server: &TlsServer) -> Result<Self, Lost> {
        match self {
            Self::Plain(stream) => Ok(Self::Tls(Box::new(server.begin(stream)?))),
            Self::Tls(_) => Ok(self),
        }
    }

    /// Reads bytes. Returns `None` if there are none until the stream is readable again. The end of the stream is an error.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Lost> {
        match self {
            Self::Plain(stream) => loop {
                match stream.read(buffer) {
                    Ok(0) => return Err(Lost::closed()),
                    Ok(len) => return Ok(Some(len)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            },
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(socket) => socket.read(buffer),
        }
    }

    /// Whether a read that did not fill the buffer has left nothing (epoll(7)), so that another read would be in vain.
    pub(super) fn is_drained_by_short_read(&self) -> bool {
        match self {
            Self::Plain(_) => cfg!(target_os = "linux"),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(_) => false,
        }
    }

    /// Writes what the stream takes of these bytes, and of the messages of TLS itself. Returns `false` if the stream takes
    /// no more until it is writable again.
    pub(super) fn write(&mut self, unsent: &mut Unsent) -> Result<bool, Lost> {
        match self {
            Self::Plain(stream) => {
                while !unsent.is_empty() {
                    match stream.write(unsent.bytes()) {
                        Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                        Ok(written) => unsent.advance(written),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(true)
            }
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(socket) => socket.write(unsent),
        }
    }

    /// Whether [`write`](Self::write) has something for a stream that is writable.
    pub(super) fn wants_write(&self, unsent: &Unsent) -> bool {
        match self {
            Self::Plain(_) => !unsent.is_empty(),
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(socket) => socket.wants_write(unsent),
        }
    }

    /// Why a connection is given up that was not ready after this time.
    pub(super) fn timeout(&self, after: Duration) -> Lost {
        match self {
            #[cfg(feature = "__cluster-tls")]
            Self::Tls(socket) if socket.is_handshaking() => Lost::HandshakeTimeout(after),
            _ => Lost::Timeout(after),
        }
    }
}
