//! What a blocking client speaks over.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A blocking stream of bytes in both directions, with time limits: what a [`Client`](super::Client) speaks over.
///
/// [`TcpStream`] is one, and on Unix `UnixStream`. A program that wants TLS implements it for the TLS stream of its choice,
/// passes the time limits on to the socket below, and uses [`ClientBuilder::connect_over`](super::ClientBuilder::connect_over).
pub trait Transport: Read + Write {
    /// Has reads fail with [`WouldBlock`](io::ErrorKind::WouldBlock) or [`TimedOut`](io::ErrorKind::TimedOut) after so long;
    /// `None`: never. The duration is not zero.
    ///
    /// # Errors
    ///
    /// Those of the socket below.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// The same for writes.
    ///
    /// # Errors
    ///
    /// Those of the socket below.
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Transport for TcpStream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_read_timeout(self, timeout)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_write_timeout(self, timeout)
    }
}

#[cfg(unix)]
impl Transport for std::os::unix::net::UnixStream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_read_timeout(self, timeout)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_write_timeout(self, timeout)
    }
}
