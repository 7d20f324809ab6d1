//! The system calls on a TCP socket where operating systems differ: whether a write to a closed connection raises
//! SIGPIPE, and when readiness is reported again.

#[cfg(not(unix))]
pub(super) use self::mio_calls::{read, write, write_vectored};
#[cfg(unix)]
pub(super) use self::system_calls::{read, write, write_vectored};

/// Makes a write to a connection that the peer has closed fail instead of raising SIGPIPE, which would end a process
/// that does not ignore it. Must be called before the first write.
///
/// Apple's systems have no such flag for a single send (`MSG_NOSIGNAL`), and an accepted socket does not inherit the
/// option from its listener. On other systems this does nothing.
///
/// # Errors
/// The peer has already reset the connection, which must then not be written to.
#[cfg(target_vendor = "apple")]
pub(crate) fn suppress_sigpipe(socket: impl std::os::fd::AsFd) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_nosigpipe(socket, true)?)
}

#[cfg(not(target_vendor = "apple"))]
#[allow(clippy::unnecessary_wraps)] // It can fail on Apple systems.
pub(crate) fn suppress_sigpipe<S>(_: S) -> std::io::Result<()> {
    Ok(())
}

/// How many unsent bytes the kernel accepts for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnsentLimit {
    /// As many as the system accepts by default, which are megabytes.
    System,
    /// For policies that prefer new messages: they can no longer drop what the kernel has accepted, and a slow client would receive it
    /// first.
    PrefersNew,
    /// For a client of a keyed room, in whose outbox newer messages take the place of older ones. A client that reads 60 KB a second
    /// is another two seconds behind with 128 KiB, and a quarter of one with this.
    Keyed,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
impl UnsentLimit {
    /// The value of the socket option; 0 stands for the system's.
    const fn bytes(self) -> u32 {
        match self {
            Self::System => 0,
            Self::PrefersNew => 128 << 10,
            Self::Keyed => 16 << 10,
        }
    }
}

/// Sets how many unsent bytes the kernel accepts for a connection. Connections inherit the limit from their listener.
///
/// Failure is ignored: the client receives older messages then, as on systems without this option.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn limit_unsent(socket: &impl std::os::fd::AsFd, limit: UnsentLimit) {
    let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(limit.bytes());
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn limit_unsent<S>(_: &S, _: UnsentLimit) {}

/// System calls that bypass the C library.
#[cfg(unix)]
mod system_calls {
    use std::io::{self, IoSlice};

    use mio::net::TcpStream;
    use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

    /// Apple's systems have a socket option instead, set by [`super::suppress_sigpipe`].
    #[cfg(target_vendor = "apple")]
    const NO_SIGPIPE: SendFlags = SendFlags::empty();
    #[cfg(not(target_vendor = "apple"))]
    const NO_SIGPIPE: SendFlags = SendFlags::NOSIGNAL;

    pub(in crate::transport) fn read(
        socket: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let (n, _) = recv(&*socket, buffer, RecvFlags::empty())?;
        Ok(n)
    }

    pub(in crate::transport) fn write(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(socket, bytes, NO_SIGPIPE)?)
    }

    pub(in crate::transport) fn write_vectored(
        socket: &mut TcpStream,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let mut no_control = SendAncillaryBuffer::default();
        Ok(sendmsg(&*socket, pieces, &mut no_control, NO_SIGPIPE)?)
    }
}

/// Calls through mio, which on Windows asks for readiness again after a call that would have blocked.
#[cfg(not(unix))]
mod mio_calls {
    use std::io::{self, IoSlice, Read, Write};

    use mio::net::TcpStream;

    pub(in crate::transport) fn read(
        socket: &mut TcpStream,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        socket.read(buffer)
    }

    pub(in crate::transport) fn write(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        socket.write(bytes)
    }

    pub(in crate::transport) fn write_vectored(
        socket: &mut TcpStream,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        socket.write_vectored(pieces)
    }
}

#[cfg(all(test, not(loom), any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn limit_of_a_connection_is_inherited_lowered_and_lifted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        limit_unsent(&listener, UnsentLimit::PrefersNew);
        let address = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let unsent_max = || {
            let socket = socket2::SockRef::from(&socket);
            socket.tcp_notsent_lowat().unwrap()
        };
        assert_eq!(unsent_max(), 128 << 10);
        limit_unsent(&socket, UnsentLimit::Keyed);
        assert_eq!(unsent_max(), 16 << 10);
        limit_unsent(&socket, UnsentLimit::System);
        assert_eq!(unsent_max(), 0);
    }
}
