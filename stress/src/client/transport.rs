//! The connections of clients, plain or with TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use rustix::net::{RecvFlags, recv};

/// A client's connection. `Read` and `Write` block, up to the timeouts of the socket.
pub(crate) trait Transport: Read + Write {
    /// Receives without blocking. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Transport for TcpStream {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (received, _) = recv(self, buffer, RecvFlags::DONTWAIT)?;
        Ok(received)
    }
}
