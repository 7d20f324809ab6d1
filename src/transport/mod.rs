//! A socket, as a shard sees it.
//!
//! Depends on `mio` and knows nothing above bytes. The contract: every call returns at once; `WouldBlock` means that
//! readiness will be reported again; an end of stream is a read of 0 bytes. A shard needs nothing else of the world, so
//! tests run a whole shard on transports of their own.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// What a shard needs of a connection.
pub(crate) trait Transport: Sized + Send + 'static {
    /// Where readiness is asked for.
    type Registry: Send;

    /// Asks for readiness, to be reported under `key`, each time it comes anew (edge-triggered).
    fn register(&mut self, registry: &Self::Registry, key: usize) -> io::Result<()>;

    /// Reads what is there.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what fits.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes what fits, of several pieces.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that nothing more will be written.
    fn finish(&mut self);
}

impl Transport for TcpStream {
    type Registry = Registry;

    fn register(&mut self, registry: &Registry, key: usize) -> io::Result<()> {
        // Both interests, once: edge-triggered, an empty outbox costs no event, and no further call is ever needed.
        registry.register(self, Token(key), Interest::READABLE | Interest::WRITABLE)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Write::write_vectored(self, pieces)
    }

    fn finish(&mut self) {
        // It fails if the peer has gone already, which is as good.
        let _ = self.shutdown(Shutdown::Write);
    }
}
