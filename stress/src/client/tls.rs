//! TLS connections of clients. They can stop at any byte of a handshake or a record.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};

use super::Transport;
use crate::certificates::SERVER_NAME;
use crate::check::{During, Failure, Outcome};

/// A client's side of a TLS connection.
#[derive(Debug)]
pub(crate) struct TlsStream {
    pub(crate) socket: TcpStream,
    session: ClientConnection,
}

impl TlsStream {
    /// Puts TLS on a connected socket, and sends nothing yet.
    pub(crate) fn new(socket: TcpStream, config: &Arc<ClientConfig>) -> Outcome<Self> {
        let name = ServerName::try_from(SERVER_NAME).during("the server's name")?;
        let mut session =
            ClientConnection::new(config.clone(), name).during("creating a TLS client")?;
        session.set_buffer_limit(None);
        Ok(Self { socket, session })
    }

    /// Puts TLS on a connected socket, and completes the handshake.
    pub(crate) fn connect(socket: TcpStream, config: &Arc<ClientConfig>) -> Outcome<Self> {
        let mut stream = Self::new(socket, config)?;
        stream.complete_handshake()?;
        Ok(stream)
    }

    /// Completes the handshake. What [`take_records`](Self::take_records) returned must have been sent.
    pub(crate) fn complete_handshake(&mut self) -> Outcome {
        self.flush().during("a TLS handshake")?;
        while self.session.is_handshaking() {
            self.read_flight().during("a TLS handshake")?;
            self.flush().during("a TLS handshake")?;
        }
        Ok(())
    }

    /// Reads the server's part of the handshake until the client has to answer. Returns the answer, which is not sent.
    pub(crate) fn take_answer(&mut self) -> Outcome<Vec<u8>> {
        while !self.session.wants_write() {
            self.read_flight().during("a TLS handshake")?;
        }
        self.take_records()
    }

    fn read_flight(&mut self) -> io::Result<()> {
        match read_records(&mut self.session, &mut self.socket)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Returns the records that are to be sent next, first the ClientHello. The caller sends them.
    pub(crate) fn take_records(&mut self) -> Outcome<Vec<u8>> {
        let mut records = Vec::new();
        while self.session.wants_write() {
            self.session
                .write_tls(&mut records)
                .during("writing to memory")?;
        }
        Ok(records)
    }

    /// Seals bytes. The caller sends the records.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Outcome<Vec<u8>> {
        self.session
            .writer()
            .write_all(plain)
            .during("writing to memory")?;
        self.take_records()
    }

    /// Whether the session was resumed. Call it after the handshake.
    pub(crate) fn is_resumed(&self) -> bool {
        self.session.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Returns the server's certificate. Call it after the handshake.
    pub(crate) fn certificate(&self) -> Outcome<&CertificateDer<'static>> {
        let certificates = self.session.peer_certificates().unwrap_or_default();
        certificates
            .first()
            .ok_or_else(|| Failure::new("the server has shown no certificate"))
    }
}

/// Reads once, and opens the records that are complete. Returns 0 at the end of the stream.
fn read_records(session: &mut ClientConnection, from: &mut impl Read) -> io::Result<usize> {
    let read = session.read_tls(from)?;
    session
        .process_new_packets()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok(read)
}

/// Reads of a socket that do not block.
struct Available<'a>(&'a mut TcpStream);

impl Read for Available<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive(buffer)
    }
}

impl Read for TlsStream {
    /// Returns 0 after the server's close_notify, and `UnexpectedEof` if the stream ends without it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    read_records(&mut self.session, &mut self.socket)?;
                    self.flush()?;
                }
                outcome => return outcome,
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.session.writer().write(bytes)?;
        self.flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut records)?;
        }
        self.socket.write_all(&records)
    }
}

impl Transport for TlsStream {
    /// Reads about as many bytes of records from the socket as `buffer` has.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut received = 0;
        loop {
            let rest = &mut buffer[received..];
            let room = rest.len() as u64;
            match self.session.reader().read(rest) {
                Ok(0) => return Ok(received),
                Ok(more) => received += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut available = Available(&mut self.socket).take(room);
                    match read_records(&mut self.session, &mut available) {
                        Ok(_) => self.flush()?,
                        // It shows again at the next call.
                        Err(_) if received > 0 => return Ok(received),
                        Err(error) => return Err(error),
                    }
                }
                Err(_) if received > 0 => return Ok(received),
                Err(error) => return Err(error),
            }
        }
    }

    fn half_close(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        self.flush()?;
        self.socket.half_close()
    }

    fn socket(&self) -> &TcpStream {
        &self.socket
    }
}
