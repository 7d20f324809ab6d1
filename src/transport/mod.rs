//! A socket, as a shard sees it.
//!
//! Depends on `mio` and `rustix`, and knows nothing above bytes. The contract: every call returns at once; `WouldBlock` means that
//! readiness will be reported again; an end of stream is a read of 0 bytes. A shard needs nothing else of the world, so
//! tests run a whole shard on transports of their own.

#[cfg(all(feature = "io-uring", target_os = "linux"))]
mod ring;
mod socket;

use std::io::{self, IoSlice};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

pub(crate) use self::socket::suppress_sigpipe;

/// What a shard needs of a connection.
pub(crate) trait Transport: Sized + Send + 'static {
    /// Where readiness is asked for.
    type Registry: Send;

    /// What writes to many at once.
    type Ring: WriteMany<Self>;

    /// Whether a call that moved fewer bytes than it could have says that the socket is not ready, so that its readiness will be
    /// reported again. Otherwise only `WouldBlock` says so.
    const SHORT_MEANS_NOT_READY: bool = true;

    /// Asks for readiness, to be reported under `key`, each time it comes anew (edge-triggered).
    fn register(&mut self, registry: &Self::Registry, key: usize) -> io::Result<()>;

    /// Reads what is there.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what fits.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes what fits, of several pieces.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that nothing more will be written.
    fn finish(&mut self);
}

/// Writes to many with one system call, where a system has that.
pub(crate) trait WriteMany<T>: Send + 'static {
    /// Fewer are as well written one by one.
    const MANY: usize;

    /// Writes each of these pieces as `Transport::write` would, to another transport each. Returns what came of those that
    /// were not written whole, by their place.
    fn write_many(&mut self, writes: &[(&T, &[u8])]) -> Vec<(usize, io::Result<usize>)>;
}

/// A system, or a build, that has no such thing.
#[allow(dead_code)] // Where the other is built.
pub(crate) enum NoRing {}

impl<T> WriteMany<T> for NoRing {
    const MANY: usize = usize::MAX;

    fn write_many(&mut self, _: &[(&T, &[u8])]) -> Vec<(usize, io::Result<usize>)> {
        match *self {}
    }
}

/// Makes a ring, where this build has any.
pub(crate) fn ring() -> Option<io::Result<<TcpStream as Transport>::Ring>> {
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    let ring = Some(ring::Ring::new());
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    let ring = None;
    ring
}

impl Transport for TcpStream {
    type Registry = Registry;
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    type Ring = ring::Ring;
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    type Ring = NoRing;

    /// mio's sockets on Windows ask for readiness anew where a call would have blocked.
    const SHORT_MEANS_NOT_READY: bool = cfg!(unix);

    fn register(&mut self, registry: &Registry, key: usize) -> io::Result<()> {
        // Both interests, once: edge-triggered, an empty outbox costs no event, and no further call is ever needed.
        registry.register(self, Token(key), Interest::READABLE | Interest::WRITABLE)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::read(self, buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::write(self, bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::write_vectored(self, pieces)
    }

    fn finish(&mut self) {
        // It fails if the peer has gone already, which is as good.
        let _ = self.shutdown(Shutdown::Write);
    }
}
