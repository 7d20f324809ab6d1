//! Non-blocking sockets, as a shard uses them.
//!
//! Depends on `mio`, `rustix` and `socket2`, and handles bytes only. The contract: every call returns at once. `WouldBlock` means
//! that readiness will be reported again. A read of 0 bytes is the end of the stream. A shard needs nothing else from
//! the operating system, so tests run a whole shard on simulated transports.

#[cfg(all(feature = "io-uring", target_os = "linux"))]
mod ring;
mod socket;
#[cfg(feature = "__tls")]
pub(crate) mod tls;

use std::io::{self, IoSlice};
use std::net::Shutdown;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

pub(crate) use self::socket::{UnsentLimit, limit_unsent, suppress_sigpipe};
/// A connection of a shard.
#[cfg(feature = "__tls")]
pub(crate) use self::tls::ShardSocket;

/// A connection of a shard.
#[cfg(not(feature = "__tls"))]
pub(crate) type ShardSocket = TcpStream;

/// Makes a plain connection of a shard.
pub(crate) fn plain(tcp: TcpStream) -> ShardSocket {
    #[cfg(feature = "__tls")]
    return ShardSocket::Plain(tcp);
    #[cfg(not(feature = "__tls"))]
    return tcp;
}

/// Turns a connected Unix socket into a connection of a shard. The shard reads, writes, polls and shuts down the socket with the
/// same system calls as a TCP socket, so a separate type would only add a branch to each call.
#[cfg(unix)]
pub(crate) fn of_unix(socket: std::os::fd::OwnedFd) -> TcpStream {
    TcpStream::from(socket)
}

/// The operations that a shard needs on a connection.
pub(crate) trait ShardTransport: Sized + Send + 'static {
    /// The registry of the poll that reports readiness.
    type Registry: Send;

    /// Writes to many connections.
    type Writer: WriteMany<Self>;

    /// Whether a read or write that moved fewer bytes than it could have means that the socket is not ready, so that
    /// its readiness will be reported again. If not, only `WouldBlock` means that.
    const SHORT_MEANS_NOT_READY: bool = true;

    /// Registers for edge-triggered readiness, to be reported under `key`.
    fn register(&mut self, registry: &Self::Registry, key: usize) -> io::Result<()>;

    /// Reads the bytes that have arrived, at most as many as `buffer` holds.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as many of the bytes as the socket accepts.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes as many bytes of several pieces as the socket accepts.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Changes how many bytes the kernel accepts in advance, where it can.
    fn limit_unsent(&self, _: UnsentLimit) {}

    /// Ends the outgoing stream: nothing more will be written. Pending bytes are still written.
    fn finish(&mut self);

    /// Tells the peer that the stream ends here, as far as the socket accepts that, before the transport is dropped.
    fn close_notify(&mut self) {}

    /// Whether the next read may return something at once, after one that has returned `read` of at most `len` bytes.
    /// If not, readiness will be reported again.
    #[inline]
    fn may_have_more(&self, read: usize, len: usize) -> bool {
        !Self::SHORT_MEANS_NOT_READY || read == len
    }

    /// The minimum length of the buffer of a read.
    #[inline]
    fn read_bytes_min(&self) -> usize {
        1
    }

    /// Whether bytes that were accepted have yet to be written to the socket, when it is ready.
    #[inline]
    fn has_pending(&self) -> bool {
        false
    }

    /// Writes pending bytes. An error shows at the next read or write.
    fn flush(&mut self) {}

    /// The memory of the pending bytes.
    #[inline]
    fn pending_bytes(&self) -> usize {
        0
    }

    /// The memory of bytes that were received and that no read has returned yet.
    #[inline]
    fn received_bytes(&self) -> usize {
        0
    }

    /// The work of the next read in units of a cheap TLS handshake (about 0.1 ms). Zero for ordinary reads.
    #[inline]
    fn read_cost(&self) -> u32 {
        0
    }

    /// Whether the peer was just told why the connection fails, so that closing it at once could destroy the answer.
    fn has_refused(&self) -> bool {
        false
    }

    /// Whether the connection has TLS.
    fn is_tls(&self) -> bool {
        false
    }

    /// Puts TLS on a plain connection, of which `early` was read already. `cost` is the work of its handshake, as `read_cost`
    /// returns it.
    ///
    /// # Errors
    /// The configuration can't be used.
    #[cfg(feature = "__tls")]
    fn secured(
        self,
        _config: std::sync::Arc<rustls::ServerConfig>,
        _cost: u32,
        _early: &[u8],
    ) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The progress of the TLS handshake.
    #[cfg(feature = "__tls")]
    fn handshake(&self) -> Handshake {
        Handshake::None
    }

    /// The certificates by which the client has identified itself, its own first. `None` without TLS.
    #[cfg(feature = "__tls")]
    fn client_certificates(&self) -> Option<Vec<rustls::pki_types::CertificateDer<'static>>> {
        None
    }
}

/// The progress of a TLS handshake.
#[cfg(feature = "__tls")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// The connection is plain.
    None,
    Running,
    Complete {
        /// Whether it has resumed an earlier session.
        resumed: bool,
    },
    /// TLS has failed, in the handshake or later.
    Failed(TlsFailure),
}

/// Why TLS has failed.
#[cfg(feature = "__tls")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsFailure {
    /// The client has sent a request without TLS.
    PlainHttp,
    /// The connection ended within the handshake.
    Aborted,
    /// There is no common version, cipher suite or application protocol.
    Incompatible,
    /// The client's certificate is missing or not accepted.
    ClientCertificate,
    /// The client does not accept the server's certificate.
    Untrusted,
    /// The client has sent another fatal alert.
    Alert,
    /// The client has broken the protocol.
    Malformed,
}

/// Writes to many connections, one after the other or with one system call.
pub(crate) trait WriteMany<T>: Send + 'static {
    /// The minimum number of writes for which gathering them is worthwhile.
    const GATHER_MIN: usize;

    /// The maximum number of writes that are made together.
    #[cfg_attr(not(feature = "__tls"), allow(dead_code))]
    const AT_ONCE: usize;

    /// Calls `write` for each target, and makes the returned writes like `ShardTransport::write`. Each write must be to
    /// a different transport. Then calls `outcome` with the tag, length and result of each write,
    /// and with whether some of it is pending in the transport.
    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        write: impl FnMut(K) -> Option<Write<'a, T, G>>,
        outcome: impl FnMut(G, usize, io::Result<usize>, bool),
    ) where
        T: 'a;
}

/// Bytes to be written to a transport.
pub(crate) struct Write<'a, T, G> {
    /// Identifies the write to the caller.
    pub(crate) tag: G,
    pub(crate) transport: &'a T,
    pub(crate) bytes: &'a [u8],
}

/// Makes one system call for each write.
#[allow(dead_code)] // Only tests use it in builds with `io-uring`.
pub(crate) struct OneByOne;

/// The number of connections that are looked up before the first of them is written to.
#[allow(dead_code)] // See `OneByOne`.
const LOOK_AHEAD: usize = 16;

impl<T: ShardTransport> WriteMany<T> for OneByOne {
    const GATHER_MIN: usize = LOOK_AHEAD;
    const AT_ONCE: usize = LOOK_AHEAD;

    #[inline]
    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        mut write: impl FnMut(K) -> Option<Write<'a, T, G>>,
        mut outcome: impl FnMut(G, usize, io::Result<usize>, bool),
    ) where
        T: 'a,
    {
        for targets in targets.chunks(LOOK_AHEAD) {
            // A system call evicts most of the processor's cache. So the shard looks a chunk of connections up first,
            // and waits for memory once a chunk, not once a connection.
            let mut chunk = [const { None }; LOOK_AHEAD];
            for (entry, &target) in chunk.iter_mut().zip(targets) {
                *entry = write(target);
            }
            for write in chunk.iter().flatten() {
                let result = write.transport.write(write.bytes);
                let is_pending = write.transport.has_pending();
                outcome(write.tag, write.bytes.len(), result, is_pending);
            }
        }
    }
}

/// Creates the writers of `count` shards. `has_tls`: some connections may have TLS.
///
/// # Errors
/// The kernel is too old for io_uring or forbids it. The writers that are returned with the error make one system call
/// for each write.
pub(crate) fn writers(
    count: usize,
    has_tls: bool,
) -> (Vec<<ShardSocket as ShardTransport>::Writer>, io::Result<()>) {
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    let (writers, made) = ring::Ring::several(count);
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    let (writers, made) = ((0..count).map(|_| OneByOne).collect(), Ok(()));
    #[cfg(feature = "__tls")]
    let writers = Vec::into_iter(writers)
        .map(|writer| tls::Writer::new(writer, has_tls))
        .collect();
    #[cfg(not(feature = "__tls"))]
    let _ = has_tls;
    (writers, made)
}

impl ShardTransport for TcpStream {
    type Registry = Registry;
    #[cfg(all(feature = "io-uring", target_os = "linux"))]
    type Writer = ring::Ring;
    #[cfg(not(all(feature = "io-uring", target_os = "linux")))]
    type Writer = OneByOne;

    /// On Windows, mio asks for readiness again only where a call would have blocked.
    const SHORT_MEANS_NOT_READY: bool = cfg!(unix);

    fn register(&mut self, registry: &Registry, key: usize) -> io::Result<()> {
        // Both interests are registered once: with edge triggering, an empty outbox causes no events, and no further
        // call is needed.
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

    fn limit_unsent(&self, limit: UnsentLimit) {
        limit_unsent(self, limit);
    }

    fn finish(&mut self) {
        // It fails only if the connection has already ended.
        let _ = self.shutdown(Shutdown::Write);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A transport that accepts at most this many bytes per write.
    struct LimitedTransport(usize);

    impl ShardTransport for LimitedTransport {
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
    fn each_write_is_made_once_and_reported_by_its_tag() {
        for count in [0, 1, LOOK_AHEAD - 1, LOOK_AHEAD, LOOK_AHEAD + 1, 100] {
            let transports: Vec<LimitedTransport> = (0..count)
                .map(|index| LimitedTransport(index % 5))
                .collect();
            let targets: Vec<usize> = (0..count).collect();
            let write = |tag| {
                Some(Write {
                    tag,
                    transport: &transports[tag],
                    bytes: b"abc",
                })
            };
            let mut next = 0;
            OneByOne.write_many(&targets, write, |tag, len, outcome, _| {
                assert_eq!((tag, len), (next, 3));
                assert_eq!(outcome.ok(), (tag % 5 > 0).then_some((tag % 5).min(3)));
                next += 1;
            });
            assert_eq!(next, count);
        }
    }
}
