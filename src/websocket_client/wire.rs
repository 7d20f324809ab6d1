//! The stream of a blocking client, with or without TLS.

use std::io;
use std::time::{Duration, Instant};

use super::error::ClientError;
#[cfg(feature = "__client-tls")]
use super::tls::blocking::TlsLayer;
use super::transport::Transport;

/// A stream, and the TLS connection on it, if the URL begins with `wss://`.
pub(super) struct Wire<S> {
    stream: S,
    #[cfg(feature = "__client-tls")]
    tls: Option<Box<TlsLayer>>,
}

/// A TLS session whose handshake has not begun.
#[cfg(feature = "__client-tls")]
pub(super) type TlsSession = rustls::ClientConnection;

/// Without TLS, there are no sessions.
#[cfg(not(feature = "__client-tls"))]
pub(super) type TlsSession = std::convert::Infallible;

impl<S: Transport> Wire<S> {
    /// Performs the TLS handshake, if there is a session.
    #[cfg(feature = "__client-tls")]
    pub(super) fn open(
        mut stream: S,
        session: Option<TlsSession>,
        by: Instant,
    ) -> Result<Self, ClientError> {
        let tls = match session {
            Some(session) => Some(Box::new(TlsLayer::shake_hands(session, &mut stream, by)?)),
            None => None,
        };
        Ok(Self { stream, tls })
    }

    /// Without TLS, there is no handshake.
    #[cfg(not(feature = "__client-tls"))]
    pub(super) fn open(stream: S, _: Option<TlsSession>, _: Instant) -> Result<Self, ClientError> {
        Ok(Self { stream })
    }

    /// Reads at least one byte, or returns 0 at the end of the stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "__client-tls")]
        if let Some(tls) = &mut self.tls {
            return tls.read(&mut self.stream, buffer);
        }
        self.stream.read(buffer)
    }

    /// Writes all bytes and flushes.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(feature = "__client-tls")]
        if let Some(tls) = &mut self.tls {
            return tls.write_all(&mut self.stream, bytes);
        }
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Announces the end of the stream, if it has TLS. Nothing can be written afterwards.
    pub(super) fn close(&mut self) {
        #[cfg(feature = "__client-tls")]
        if let Some(tls) = &mut self.tls {
            tls.close(&mut self.stream);
        }
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_write_timeout(timeout)
    }
}

impl<S> Wire<S> {
    /// Returns the stream below TLS.
    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }
}
