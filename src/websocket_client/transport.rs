//! The byte stream below a blocking client.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A blocking, bidirectional byte stream with read and write timeouts, which carries a [`Client`](super::Client)'s connection.
///
/// [`TcpStream`] implements it, and so does `UnixStream` on Unix. To use a TLS implementation other than that of the feature
/// `client-tls`, implement it for its TLS stream, pass the timeouts on to the socket below, and call
/// [`ClientBuilder::connect_over`](super::ClientBuilder::connect_over) with a `ws://` URL.
pub trait Transport: Read + Write {
    /// Sets how long a read may block before it fails with [`WouldBlock`](io::ErrorKind::WouldBlock) or
    /// [`TimedOut`](io::ErrorKind::TimedOut). `None` lets reads block forever. The client never passes a zero duration.
    ///
    /// # Errors
    ///
    /// Any error that the socket below returns.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Sets how long a write may block before it fails with [`WouldBlock`](io::ErrorKind::WouldBlock) or
    /// [`TimedOut`](io::ErrorKind::TimedOut). `None` lets writes block forever. The client never passes a zero duration.
    ///
    /// # Errors
    ///
    /// Any error that the socket below returns.
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
