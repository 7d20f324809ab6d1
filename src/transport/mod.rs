//! A socket, as a shard sees it.
//!
//! Depends on `mio` and `rustix`, and knows nothing above bytes. The contract: every call returns at once; `WouldBlock` means that
//! readiness will be reported again; an end of stream is a read of 0 bytes. A shard needs nothing else of the world, so
//! tests run a whole shard on transports of their own.

use std::io::{self, IoSlice};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

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
        let (n, _) = recv(&*self, buffer, RecvFlags::empty())?;
        Ok(n)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(&*self, bytes, SendFlags::NOSIGNAL)?)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut no_control = SendAncillaryBuffer::default();
        Ok(sendmsg(
            &*self,
            pieces,
            &mut no_control,
            SendFlags::NOSIGNAL,
        )?)
    }

    fn finish(&mut self) {
        // It fails if the peer has gone already, which is as good.
        let _ = self.shutdown(Shutdown::Write);
    }
}
