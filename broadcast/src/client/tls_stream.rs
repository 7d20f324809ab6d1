//! TLS over a non-blocking socket.

use std::io::{self, ErrorKind, Read, Write};

use humphrey_ws::websocket_client::TlsError;
use mio::net::TcpStream;
use rustls::ClientConnection;

/// The longest content of a record (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 16 << 10;

/// A TLS connection.
///
/// A write counts once the socket has accepted the whole record: the server cannot decrypt a part of one. So the caller knows
/// which frames have left this machine, as it does without TLS.
pub(super) struct TlsStream {
    socket: TcpStream,
    session: ClientConnection,
    /// Content length of the record that the socket has not accepted completely, or 0.
    unfinished: usize,
    /// Whether the socket has accepted bytes since the last call of [`take_progress`](Self::take_progress).
    has_progressed: bool,
    /// The TLS error that has ended the connection. `read` returns it after the bytes that were received before it.
    failure: Option<TlsError>,
}

impl TlsStream {
    pub(super) const fn new(socket: TcpStream, session: ClientConnection) -> Self {
        Self {
            socket,
            session,
            unfinished: 0,
            has_progressed: false,
            failure: None,
        }
    }

    /// Continues the TLS handshake. Returns whether it is complete; if not, the socket is not ready.
    pub(super) fn shake_hands(&mut self) -> Result<bool, HandshakeFailure> {
        loop {
            let is_written = self.write_records().map_err(HandshakeFailure::Socket)?;
            if !self.session.is_handshaking() {
                return Ok(is_written);
            }
            match self.session.read_tls(&mut self.socket) {
                Ok(0) => return Err(HandshakeFailure::Tls(TlsError::HungUp)),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(HandshakeFailure::Socket(error)),
            }
            if let Err(error) = self.session.process_new_packets() {
                // Sends the alert, as far as possible.
                let _ = self.write_records();
                return Err(HandshakeFailure::Tls(error.into()));
            }
        }
    }

    /// Writes all pending records. Returns whether the socket has accepted them.
    fn write_records(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => self.has_progressed = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.has_progressed)
    }

    pub(super) fn announce_end(&mut self) {
        self.session.send_close_notify();
        let _ = self.write_records();
    }
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    let why = "it was cut, without TLS's announcement of its end (close_notify)";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, why));
                }
                result => return result,
            }
            if let Some(failure) = &self.failure {
                return Err(io::Error::new(ErrorKind::InvalidData, failure.clone()));
            }
            // Everything that was decrypted has been read, so this never exceeds rustls's buffer. The next call of `reader` reports
            // the end of the stream.
            self.session.read_tls(&mut self.socket)?;
            if let Err(error) = self.session.process_new_packets() {
                self.failure = Some(error.into());
                // Sends the alert, as far as possible.
                let _ = self.write_records();
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Responses to the server's messages, such as a KeyUpdate.
        if self.unfinished == 0 && !self.write_records()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.unfinished == 0 {
            // One record at a time: with several, the socket might accept one of them and not the next.
            let len = bytes.len().min(RECORD_BYTES_MAX);
            self.unfinished = self.session.writer().write(&bytes[..len])?;
        }
        match self.write_records()? {
            true => Ok(std::mem::take(&mut self.unfinished)),
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.write_records()? {
            true => Ok(()),
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

/// Why a TLS handshake has failed.
#[derive(Debug)]
pub(super) enum HandshakeFailure {
    Tls(TlsError),
    Socket(io::Error),
}

#[cfg(test)]
mod tests;
