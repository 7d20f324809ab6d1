//! The stream of a blocking client, with or without TLS.

use std::io;
use std::time::Duration;

#[cfg(feature = "__client-tls")]
use super::tls::blocking::TlsLayer;
use super::transport::Transport;

/// A stream, and the TLS connection on it, if the URL begins with `wss://`.
pub(super) struct Wire<S> {
    stream: S,
    #[cfg(feature = "__client-tls")]
    tls: Option<Box<TlsLayer>>,
}

impl<S: Transport> Wire<S> {
    /// Creates a wire without TLS.
    pub(super) const fn plain(stream: S) -> Self {
        Self {
            stream,
            #[cfg(feature = "__client-tls")]
            tls: None,
        }
    }

    /// Creates a wire with TLS, whose handshake is done.
    #[cfg(feature = "__client-tls")]
    pub(super) fn secure(stream: S, tls: TlsLayer) -> Self {
        Self {
            stream,
            tls: Some(Box::new(tls)),
        }
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
