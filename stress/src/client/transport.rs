//! The connections of clients, plain or with TLS.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustix::net::{RecvFlags, recv};

/// A client's connection. `Read` and `Write` block, up to the timeouts of the socket.
pub(crate) trait Transport: Read + Write + fmt::Debug {
    /// Receives without blocking. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Ends the sent half of the stream, with TLS by close_notify. The other half stays open.
    fn half_close(&mut self) -> io::Result<()>;

    /// The TCP socket.
    fn socket(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (received, _) = recv(self, buffer, RecvFlags::DONTWAIT)?;
        Ok(received)
    }

    fn half_close(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn socket(&self) -> &TcpStream {
        self
    }
}

/// A connection of either kind.
impl Transport for Box<dyn Transport> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).receive(buffer)
    }

    fn half_close(&mut self) -> io::Result<()> {
        (**self).half_close()
    }

    fn socket(&self) -> &TcpStream {
        (**self).socket()
    }
}
