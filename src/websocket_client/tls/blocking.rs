//! TLS over a blocking stream.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use rustls::ClientConnection;

use crate::tls_client::TlsError;
use crate::websocket_client::deadline::{is_timeout, left};
use crate::websocket_client::error::ClientError;
use crate::websocket_client::transport::Transport;

/// A TLS connection after its handshake. The stream below is passed to each call.
pub(in crate::websocket_client) struct TlsLayer {
    session: ClientConnection,
    /// Whether writing has failed. The rest of a record is then not written, since that could block for another timeout.
    is_unwritable: bool,
    /// The TLS error after which nothing more can be received. `read` first returns what was received before it.
    failure: Option<TlsError>,
}

impl TlsLayer {
    /// Performs the TLS handshake.
    pub(in crate::websocket_client) fn shake_hands<S: Transport>(
        mut session: ClientConnection,
        stream: &mut S,
        by: Instant,
    ) -> Result<Self, ClientError> {
        while session.is_handshaking() || session.wants_write() {
            if session.wants_write() {
                let limited = stream.set_write_timeout(Some(left(by)?));
                limited
                    .and_then(|()| write_out(&mut session, stream))
                    .map_err(failed)?;
                continue;
            }
            let limited = stream.set_read_timeout(Some(left(by)?));
            match limited.and_then(|()| session.read_tls(stream)) {
                Ok(0) => return Err(TlsError::HungUp.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            }
            if let Err(error) = session.process_new_packets() {
                // Sends the alert, as far as possible.
                let _ = write_out(&mut session, stream);
                return Err(TlsError::from(error).into());
            }
        }
        Ok(Self {
            session,
            is_unwritable: false,
            failure: None,
        })
    }

    /// Reads at least one byte. Returns 0 after the server's close_notify.
    pub(in crate::websocket_client) fn read<S: Transport>(
        &mut self,
        stream: &mut S,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(truncated()),
                result => return result,
            }
            if let Some(failure) = &self.failure {
                return Err(io::Error::new(ErrorKind::InvalidData, failure.clone()));
            }
            // The next call of `reader` reports the end of the stream.
            self.session.read_tls(stream)?;
            if let Err(error) = self.session.process_new_packets() {
                self.failure = Some(error.into());
                // Sends the alert, as far as possible.
                if !self.is_unwritable {
                    let _ = write_out(&mut self.session, stream);
                }
            }
        }
    }

    /// Writes all bytes and flushes.
    pub(in crate::websocket_client) fn write_all<S: Transport>(
        &mut self,
        stream: &mut S,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            // Takes a part that fits into the buffer, which is empty.
            let taken = self.session.writer().write(bytes)?;
            if taken == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            bytes = &bytes[taken..];
            if let Err(error) = write_out(&mut self.session, stream) {
                self.is_unwritable = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends close_notify (RFC 8446 §6.1), so that the server can tell the end of the connection from a cut. Ignores failures: the
    /// WebSocket is closed already.
    pub(in crate::websocket_client) fn close<S: Transport>(&mut self, stream: &mut S) {
        if !self.is_unwritable {
            self.session.send_close_notify();
            self.is_unwritable = true;
            let _ = write_out(&mut self.session, stream);
        }
    }
}

fn write_out<S: Transport>(session: &mut ClientConnection, stream: &mut S) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(stream) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

fn failed(error: io::Error) -> ClientError {
    if is_timeout(&error) {
        return ClientError::TimedOut;
    }
    match TlsError::of_socket(error) {
        Ok(error) => error.into(),
        Err(error) => ClientError::Lost(error),
    }
}

/// The stream has ended without close_notify. An attacker could have cut it.
fn truncated() -> io::Error {
    let why =
        "it was cut: TLS has not announced its end (close_notify), so messages may be missing";
    io::Error::new(ErrorKind::UnexpectedEof, why)
}
