//! The system calls on a TCP socket, where systems differ: whether a write to a peer that has gone raises SIGPIPE, and when readiness
//! is reported again.

#[cfg(not(unix))]
pub(super) use self::mio_calls::{read, write, write_vectored};
#[cfg(unix)]
pub(super) use self::system_calls::{read, write, write_vectored};

/// Has a write to a peer that has gone fail, instead of raising SIGPIPE, which would end a process that does not ignore it. To be
/// called before the first write.
///
/// Apple's systems have no flag for that on each send (`MSG_NOSIGNAL`), and an accepted socket does not inherit the option of its
/// listener. Elsewhere this does nothing.
///
/// # Errors
/// The peer has reset the connection already: it must not be written to.
#[cfg(target_vendor = "apple")]
pub(crate) fn suppress_sigpipe(socket: impl std::os::fd::AsFd) -> std::io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_nosigpipe(socket, true)?)
}

#[cfg(not(target_vendor = "apple"))]
#[allow(clippy::unnecessary_wraps)] // It can fail elsewhere.
pub(crate) fn suppress_sigpipe<S>(_: S) -> std::io::Result<()> {
    Ok(())
}

/// Bare system calls.
#[cfg(unix)]
mod system_calls {
    use std::io::{self, IoSlice};

    use mio::net::TcpStream;
    use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

    /// The socket has the option that does the same ([`super::suppress_sigpipe`]).
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

/// Calls that mio sees: on Windows it asks for readiness anew where one of them would have blocked.
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
