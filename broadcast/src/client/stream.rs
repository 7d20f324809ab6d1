//! The non-blocking stream of a connection: TCP, or TLS over TCP.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

#[cfg(feature = "tls")]
use super::tls_stream::TlsStream;

/// A TCP stream, or a TLS stream whose handshake is complete.
pub(super) enum ClientStream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl ClientStream {
    /// Announces the end of the stream, if it has TLS, as far as that is possible without blocking.
    pub(super) fn announce_end(&mut self) {
        match self {
            Self::Plain(_) => {}
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.announce_end(),
        }
    }

    /// Returns whether the socket has accepted bytes since the last call. With TLS it may have, although `write` has returned
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    pub(super) fn take_progress(&mut self) -> bool {
        match self {
            Self::Plain(_) => false,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.take_progress(),
        }
    }
}

impl Read for ClientStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for ClientStream {
    /// Writes some bytes. After [`WouldBlock`](io::ErrorKind::WouldBlock), the next call must begin with the same bytes: TLS may
    /// have encrypted some of them already.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.flush(),
        }
    }
}
