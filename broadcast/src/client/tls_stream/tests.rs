//! The stream on real sockets, with a server of rustls.

use super::*;

use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::ClientTls;
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};

use certificates::Authority;

#[path = "../../../../tests/support/certificates.rs"]
mod certificates;
#[path = "../../../../tests/support/tls_servers.rs"]
mod tls_servers;

const DEADLINE: Duration = Duration::from_secs(60);

/// A client's stream, and the server's socket.
struct Pair {
    client: TlsStream,
    server: std::net::TcpStream,
    poll: Poll,
}

impl Pair {
    fn new(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port());
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        server.set_nodelay(true).unwrap();
        socket.set_nodelay(true).unwrap();
        let poll = Poll::new().unwrap();
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut socket, Token(0), both)
            .unwrap();
        // New settings have no TLS session to resume.
        let tls = ClientTls::from_pem(authority.pem.as_bytes()).unwrap();
        let session = tls.start(&url.parse().unwrap()).unwrap();
        Self {
            client: TlsStream::new(socket, session),
            server,
            poll,
        }
    }

    /// Waits for the socket, as the event loop does.
    fn wait(&mut self) {
        let mut events = Events::with_capacity(4);
        self.poll.poll(&mut events, Some(DEADLINE)).unwrap();
        assert!(!events.is_empty(), "the socket gets ready");
    }

    fn shake_hands(&mut self) -> Result<(), HandshakeFailure> {
        while !self.client.shake_hands()? {
            self.wait();
        }
        Ok(())
    }
}

/// A socket that the server may write only a number of bytes to.
struct Limited<'a> {
    socket: &'a std::net::TcpStream,
    left: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.left);
        if len == 0 {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let written = self.socket.write(&bytes[..len])?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Performs the server's handshake, and cuts the connection after some bytes. Returns how many of them are left.
fn accept_in_part(server: std::net::TcpStream, config: Arc<ServerConfig>, left: usize) -> usize {
    let mut connection = ServerConnection::new(config).unwrap();
    let mut limited = Limited {
        socket: &server,
        left,
    };
    while connection.is_handshaking() || connection.wants_write() {
        if connection.complete_io(&mut limited).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
    limited.left
}

fn expect_failure_wherever_cut(version: &'static SupportedProtocolVersion) {
    const ALL: usize = 1 << 20;
    // Without the tickets of TLS 1.3.
    const HANDSHAKE_BYTES_MIN: usize = 500;
    let authority = Authority::new();
    let config = authority.issue(&["localhost"]).server_of(&[version]);
    let total = {
        let mut pair = Pair::new(&authority);
        let (server, config) = (pair.server.try_clone().unwrap(), config.clone());
        let server = thread::spawn(move || accept_in_part(server, config, ALL));
        pair.shake_hands().unwrap();
        ALL - server.join().unwrap()
    };
    let mut failed = 0;
    for bytes in 0..total {
        let mut pair = Pair::new(&authority);
        let (server, config) = (pair.server.try_clone().unwrap(), config.clone());
        let server = thread::spawn(move || accept_in_part(server, config, bytes));
        let begun = Instant::now();
        match pair.shake_hands() {
            // Only tickets for the next connection are missing, or the signature is shorter this time.
            Ok(()) => {
                assert!(pair.read_to_end().is_err(), "{bytes} of {total}");
            }
            Err(HandshakeFailure::Tls(TlsError::HungUp)) => failed += 1,
            Err(failure) => panic!("{bytes} of {total}: {failure:?}"),
        }
        assert!(begun.elapsed() < DEADLINE);
        server.join().unwrap();
    }
    assert!(failed >= HANDSHAKE_BYTES_MIN, "{failed} of {total}");
}

#[test]
fn tls_1_2_handshake_cut_at_any_byte_fails_at_once() {
    expect_failure_wherever_cut(&rustls::version::TLS12);
}

#[test]
fn tls_1_3_handshake_cut_at_any_byte_fails_at_once() {
    expect_failure_wherever_cut(&rustls::version::TLS13);
}

impl Pair {
    fn read_to_end(&mut self) -> io::Result<()> {
        loop {
            match self.client.read(&mut [0; 64]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Performs the handshake with a server on another thread. Returns the server's side.
    fn connect(&mut self, authority: &Authority) -> tls_servers::TlsServer {
        let config = authority.issue(&["localhost"]).server();
        let socket = self.server.try_clone().unwrap();
        let server = thread::spawn(move || tls_servers::accept(config, socket).unwrap());
        self.shake_hands().unwrap();
        server.join().unwrap()
    }
}

#[test]
fn write_counts_exactly_what_the_server_can_decrypt() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority);
    let mut server = pair.connect(&authority);
    let bytes: Vec<u8> = (0..30_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let mut written = 0;
    // The server does not read, so the socket gets full.
    let error = loop {
        match pair.client.write(&bytes[written..]) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(written > 0 && written < bytes.len());
    pair.client.socket.shutdown(Shutdown::Write).unwrap();
    let mut decrypted = Vec::new();
    let error = server.read_to_end(&mut decrypted).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(decrypted.len(), written);
    assert!(decrypted == bytes[..written]);
}

#[test]
fn write_goes_on_where_the_socket_was_full() {
    let authority = Authority::new();
    let mut pair = Pair::new(&authority);
    let mut server = pair.connect(&authority);
    let bytes: Vec<u8> = (0..9_000_001_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let reader = thread::spawn(move || {
        let mut decrypted = Vec::new();
        server.read_to_end(&mut decrypted).unwrap();
        decrypted
    });
    let mut written = 0;
    while written < bytes.len() {
        // The buffer of a connection also grows while a record is unfinished.
        let end = bytes.len().min(written + 20_000);
        match pair.client.write(&bytes[written..end]) {
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => pair.wait(),
            Err(error) => panic!("{error}"),
        }
    }
    pair.client.announce_end();
    assert!(reader.join().unwrap() == bytes);
}
