//! Both ends of a TLS connection over the loopback, for tests and fuzzing: the server's end as a shard has it, and a rustls
//! client whose bytes the test moves itself.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig};

use super::ShardSocket;
use super::session::{PARTIAL_BYTES_MAX, RECORD_BYTES};
pub(crate) use crate::crypto::testing::{client_config, server_config};
use crate::transport::{Handshake, ShardTransport, TlsFailure};

/// The maximum time to wait for anything. It is ample even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The maximum memory of pending bytes: the records of one write, with their overhead, and messages of TLS itself.
pub(crate) const PENDING_BYTES_MAX: usize = RECORD_BYTES + (2 << 10);

/// Calls `holds` until it is true, and panics after the deadline.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::yield_now();
    }
}

/// Connects two non-blocking sockets.
pub(crate) fn sockets() -> (mio::net::TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    for socket in [&client, &server] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    (mio::net::TcpStream::from_std(server), client)
}

/// A connection.
pub(crate) struct Link {
    pub(crate) server: ShardSocket,
    /// The client's TLS; `None` once a test encrypts records itself.
    pub(crate) client: Option<ClientConnection>,
    pub(crate) socket: TcpStream,
    /// The plain bytes that the server has received.
    pub(crate) received: Vec<u8>,
    /// How the server's input has ended: with a close_notify (`Ok`), or an error.
    pub(crate) ended: Option<Result<(), ErrorKind>>,
    /// The plain bytes that the client has received.
    pub(crate) client_received: Vec<u8>,
    /// How the client's input has ended.
    pub(crate) client_ended: Option<Result<(), String>>,
    buffer: Vec<u8>,
}

#[cfg_attr(not(test), allow(dead_code))] // Fuzzing uses some of it.
impl Link {
    pub(crate) fn new(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Self {
        let (tcp, socket) = sockets();
        let name = ServerName::try_from("localhost").unwrap();
        Self {
            server: ShardSocket::tls(tcp, server.clone(), 1).unwrap(),
            client: Some(ClientConnection::new(client.clone(), name).unwrap()),
            socket,
            received: Vec::new(),
            ended: None,
            client_received: Vec::new(),
            client_ended: None,
            buffer: vec![0; 128 << 10],
        }
    }

    /// Completes the handshake.
    pub(crate) fn open(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Self {
        let mut link = Self::new(server, client);
        link.shake();
        link
    }

    /// Moves bytes both ways until both ends have completed the handshake.
    pub(crate) fn shake(&mut self) {
        until("the handshake is complete", || {
            self.exchange();
            assert_eq!(
                (&self.ended, &self.client_ended),
                (&None, &None),
                "an end has failed"
            );
            let is_shaking = self.client.as_ref().unwrap().is_handshaking();
            !is_shaking && matches!(self.server.handshake(), Handshake::Complete { .. })
        });
    }

    /// Moves the bytes that both ends have for each other, as far as the sockets accept them.
    pub(crate) fn exchange(&mut self) {
        let output = self.client_output();
        self.send(&output);
        self.serve();
        self.client_read(usize::MAX);
    }

    /// Takes the bytes that the client has for the server.
    pub(crate) fn client_output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        if let Some(client) = &mut self.client {
            while client.wants_write() {
                client.write_tls(&mut output).unwrap();
            }
        }
        output
    }

    /// Sends bytes to the server, which reads meanwhile.
    pub(crate) fn send(&mut self, mut bytes: &[u8]) {
        until("the bytes are sent", || {
            while !bytes.is_empty() {
                match self.socket.write(bytes) {
                    Ok(n) => bytes = &bytes[n..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.serve();
                        return false;
                    }
                    // The server has ended the connection.
                    Err(_) => return true,
                }
            }
            true
        });
    }

    /// Lets the server read and decrypt the bytes that have arrived in its socket.
    pub(crate) fn serve(&mut self) {
        while self.ended.is_none() {
            let outcome = self.server.read(&mut self.buffer);
            self.check_memory();
            match outcome {
                Ok(0) => self.ended = Some(Ok(())),
                Ok(n) => self.received.extend_from_slice(&self.buffer[..n]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted => {}
                    kind => self.ended = Some(Err(kind)),
                },
            }
        }
    }

    /// Lets the server read until its input has ended. Returns `Ok` after a close_notify, and otherwise the kind of the error.
    pub(crate) fn serve_until_ended(&mut self) -> Result<(), ErrorKind> {
        until("the server's input has ended", || {
            self.serve();
            self.ended.is_some()
        });
        self.ended.unwrap()
    }

    /// Moves bytes both ways until the server's input has ended. Returns `Ok` after a close_notify, and otherwise the kind of the
    /// error.
    pub(crate) fn exchange_until_ended(&mut self) -> Result<(), ErrorKind> {
        until("the server's input has ended", || {
            self.exchange();
            self.ended.is_some()
        });
        self.ended.unwrap()
    }

    /// Lets the server read until it has refused the client's bytes.
    pub(crate) fn serve_until_refused(&mut self) {
        assert_eq!(self.serve_until_ended(), Err(ErrorKind::InvalidData));
    }

    /// Checks that the server has refused the client's bytes for this reason.
    pub(crate) fn assert_failed(&self, failure: TlsFailure) {
        assert_eq!(self.ended, Some(Err(ErrorKind::InvalidData)));
        assert_eq!(self.server.handshake(), Handshake::Failed(failure));
    }

    /// Lets the client read until its input has ended, which the server must have announced with close_notify.
    pub(crate) fn client_read_to_close_notify(&mut self) {
        until("the client's input has ended", || {
            self.client_read(usize::MAX);
            self.client_ended.is_some()
        });
        assert_eq!(self.client_ended, Some(Ok(())));
    }

    pub(crate) fn check_memory(&self) {
        let (received, pending) = (self.server.received_bytes(), self.server.pending_bytes());
        assert!(received <= PARTIAL_BYTES_MAX, "{received} bytes received");
        assert!(pending <= PENDING_BYTES_MAX, "{pending} bytes pending");
    }

    /// Lets the client read and decrypt up to `most` of the bytes that have arrived in its socket.
    pub(crate) fn client_read(&mut self, most: usize) {
        let mut left = most;
        while left > 0 && self.client_ended.is_none() {
            let len = self.buffer.len().min(left);
            match self.socket.read(&mut self.buffer[..len]) {
                Ok(0) => self.client_ended = Some(Err("truncated".into())),
                Ok(n) => {
                    left -= n;
                    self.client_process(n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.client_ended = Some(Err(error.to_string())),
            }
        }
    }

    fn client_process(&mut self, n: usize) {
        let Some(client) = &mut self.client else {
            return;
        };
        let mut bytes = &self.buffer[..n];
        while !bytes.is_empty() && self.client_ended.is_none() {
            if let Err(error) = client.read_tls(&mut bytes) {
                self.client_ended = Some(Err(error.to_string()));
                return;
            }
            match client.process_new_packets() {
                Ok(state) => {
                    let mut reader = client.reader();
                    // It fails where nothing is left.
                    let _ = io::copy(&mut reader, &mut self.client_received);
                    if state.peer_has_closed() {
                        self.client_ended = Some(Ok(()));
                    }
                }
                Err(error) => self.client_ended = Some(Err(error.to_string())),
            }
        }
    }

    /// Encrypts bytes as the client.
    pub(crate) fn client_write(&mut self, bytes: &[u8]) {
        let client = self.client.as_mut().unwrap();
        client.set_buffer_limit(None);
        client.writer().write_all(bytes).unwrap();
    }

    /// Lets the server write bytes, while the client reads.
    pub(crate) fn server_write(&mut self, mut bytes: &[u8]) {
        until("the server has written", || {
            if bytes.is_empty() && !self.server.has_pending() {
                return true;
            }
            self.server.flush();
            if !bytes.is_empty() {
                match self.server.write(bytes) {
                    Ok(n) => bytes = &bytes[n..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            self.check_memory();
            self.client_read(4 << 10);
            false
        });
    }

    /// Sends bytes from the client to the server and back, which shows that both directions work.
    pub(crate) fn echo(&mut self, bytes: &[u8]) {
        let (to, from) = (self.received.len(), self.client_received.len());
        self.client_write(bytes);
        until("the server has received", || {
            self.exchange();
            assert_eq!(self.ended, None);
            self.received.len() >= to + bytes.len()
        });
        assert!(self.received[to..] == *bytes, "the bytes have changed");
        self.server_write(bytes);
        until("the client has received", || {
            self.exchange();
            assert_eq!(self.client_ended, None);
            self.client_received.len() >= from + bytes.len()
        });
        assert!(
            self.client_received[from..] == *bytes,
            "the bytes have changed"
        );
    }
}
