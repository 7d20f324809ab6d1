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

    /// How many connections are written to one after the other.
    type Writer: WriteMany<Self>;

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

/// Writes to many connections, one after the other or with one system call.
pub(crate) trait WriteMany<T>: Send + 'static {
    /// So many writes are at least worth being gathered. Fewer gain nothing by it.
    const MANY: usize;

    /// Looks up what each target is to be written, if anything, and makes the writes as `Transport::write` would, to another
    /// transport each. `outcome` gets what came of each, with the write's tag and length.
    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        write: impl FnMut(K) -> Option<Write<'a, T, G>>,
        outcome: impl FnMut(G, usize, io::Result<usize>),
    ) where
        T: 'a;
}

/// Bytes for a transport.
pub(crate) struct Write<'a, T, G> {
    /// Tells the caller whose outcome it is.
    pub(crate) tag: G,
    pub(crate) transport: &'a T,
    pub(crate) bytes: &'a [u8],
}

/// One system call for each write.
#[allow(dead_code)] // Builds with `io-uring` use it in tests only.
pub(crate) struct OneByOne;

/// So many connections are looked up before the first of them is written to.
#[allow(dead_code)] // As `OneByOne`.
const LOOK_AHEAD: usize = 16;

impl<T: Transport> WriteMany<T> for OneByOne {
    const MANY: usize = LOOK_AHEAD;

    #[inline]
    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        mut write: impl FnMut(K) -> Option<Write<'a, T, G>>,
        mut outcome: impl FnMut(G, usize, io::Result<usize>),
    ) {
        for targets in targets.chunks(LOOK_AHEAD) {
            // A system call leaves little of the processor's cache. So the shard waits for memory once for a chunk of
            // connections, not anew for each.
            let mut chunk = [const { None }; LOOK_AHEAD];
            for (entry, &target) in chunk.iter_mut().zip(targets) {
                *entry = write(target);
            }
            for write in chunk.iter().flatten() {
                let result = write.transport.write(write.bytes);
                outcome(write.tag, write.bytes.len(), result);
            }
        }
    }
}

/// What shards write with in this build: `count` of them.
///
/// # Errors
/// The kernel is too old for io_uring or forbids it. The writers that come with the error go without.
pub(crate) fn writers(count: usize) -> (Vec<<TcpStream as Transport>::Writer>, io::Result<()>) {
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    return ring::Ring::several(count);
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    return ((0..count).map(|_| OneByOne).collect(), Ok(()));
}

impl Transport for TcpStream {
    type Registry = Registry;
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    type Writer = ring::Ring;
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    type Writer = OneByOne;

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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Takes at most so many bytes of a write; none: it is broken.
    struct Takes(usize);

    impl Transport for Takes {
        type Registry = ();
        type Writer = OneByOne;

        fn register(&mut self, (): &(), _: usize) -> io::Result<()> {
            Ok(())
        }

        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn write(&self, bytes: &[u8]) -> io::Result<usize> {
            match self.0 {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                most => Ok(bytes.len().min(most)),
            }
        }

        fn write_vectored(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(0)
        }

        fn finish(&mut self) {}
    }

    #[test]
    fn each_write_is_made_once_and_told_by_its_tag() {
        for count in [0, 1, LOOK_AHEAD - 1, LOOK_AHEAD, LOOK_AHEAD + 1, 100] {
            let transports: Vec<Takes> = (0..count).map(|index| Takes(index % 5)).collect();
            let targets: Vec<usize> = (0..count).collect();
            let write = |tag| {
                Some(Write {
                    tag,
                    transport: &transports[tag],
                    bytes: b"abc",
                })
            };
            let mut next = 0;
            OneByOne.write_many(&targets, write, |tag, len, outcome| {
                assert_eq!((tag, len), (next, 3));
                assert_eq!(outcome.ok(), (tag % 5 > 0).then_some((tag % 5).min(3)));
                next += 1;
            });
            assert_eq!(next, count);
        }
    }
}
