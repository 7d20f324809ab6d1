//! The socket of a connection over a stream in memory: bytes cut anywhere, streams that take little, and servers that are
//! not verified.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::*;
use crate::cluster::socket::Socket;
use crate::crypto::provider;
use crate::crypto::testing::{client_config, server_config};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A stream in memory. It takes and gives so many bytes, and would then block.
#[derive(Default)]
struct Stream {
    incoming: VecDeque<u8>,
    outgoing: VecDeque<u8>,
    readable: usize,
    writable: usize,
    /// No more comes in.
    has_ended: bool,
    /// Writing fails.
    is_broken: bool,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Stream>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.0.borrow_mut();
        if stream.incoming.is_empty() && stream.has_ended {
            return Ok(0);
        }
        let len = buffer.len().min(stream.readable).min(stream.incoming.len());
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        stream.readable -= len;
        for (to, from) in buffer.iter_mut().zip(stream.incoming.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.0.borrow_mut();
        if stream.is_broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let len = bytes.len().min(stream.writable);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        stream.writable -= len;
        stream.outgoing.extend(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection: the socket, as a link drives it, and the server.
struct Ends {
    stream: Shared,
    socket: Option<Socket<Shared>>,
    unsent: Unsent,
    received: Vec<u8>,
    lost: Option<Lost>,
    server: ServerConnection,
    server_received: Vec<u8>,
    server_error: Option<rustls::Error>,
}

fn configs(version: &'static SupportedProtocolVersion) -> (Arc<ServerConfig>, TlsServer) {
    let provider = || Arc::unwrap_or_clone(provider());
    let server = server_config(provider(), &[version]);
    let client = client_config(provider(), &[version]);
    (Arc::new(server), to(client, "localhost"))
}

fn to(config: ClientConfig, name: &str) -> TlsServer {
    TlsServer {
        config: Arc::new(config),
        name: ServerName::try_from(name.to_owned()).unwrap(),
    }
}

impl Ends {
    fn new(config: Arc<ServerConfig>, server: &TlsServer) -> Self {
        let stream = Shared::default();
        let mut server_end = ServerConnection::new(config).unwrap();
        server_end.set_buffer_limit(None);
        Self {
            socket: Some(Socket::Plain(stream.clone()).begin_tls(server).unwrap()),
            stream,
            unsent: Unsent::default(),
            received: Vec::new(),
            lost: None,
            server: server_end,
            server_received: Vec::new(),
            server_error: None,
        }
    }

    /// Runs the socket while its stream takes and gives so many bytes. Returns whether it did anything.
    fn run_socket(&mut self, readable: usize, writable: usize) -> bool {
        let Some(socket) = &mut self.socket else {
            return false;
        };
        let before = {
            let mut stream = self.stream.0.borrow_mut();
            (stream.readable, stream.writable) = (readable, writable);
            (stream.incoming.len(), stream.outgoing.len())
        };
        let mut buffer = [0; 1000];
        let result = loop {
            match socket.read(&mut buffer) {
                Ok(Some(len)) => self.received.extend_from_slice(&buffer[..len]),
                Ok(None) => {
                    let wants_write = socket.wants_write(&self.unsent);
                    let waiting = self.unsent.len();
                    let written = socket.write(&mut self.unsent);
                    let has_written = self.stream.0.borrow().outgoing.len() > before.1;
                    if writable > 0 && written.is_ok() {
                        assert_eq!(wants_write, has_written, "{waiting} bytes wait");
                    }
                    break written;
                }
                Err(lost) => break Err(lost),
            }
        };
        match result {
            Ok(takes_more) => {
                let socket = self.socket.as_ref().unwrap();
                assert!(!takes_more || !socket.wants_write(&self.unsent));
            }
            Err(lost) => {
                self.lost = Some(lost);
                self.socket = None;
            }
        }
        let stream = self.stream.0.borrow();
        before != (stream.incoming.len(), stream.outgoing.len())
    }

    /// Passes what both ends have sent on, and lets the server read.
    fn run_server(&mut self) {
        let mut stream = self.stream.0.borrow_mut();
        let bytes: Vec<u8> = stream.outgoing.drain(..).collect();
        let mut bytes = &bytes[..];
        while !bytes.is_empty() && self.server_error.is_none() {
            self.server.read_tls(&mut bytes).unwrap();
            if let Err(error) = self.server.process_new_packets() {
                self.server_error = Some(error);
            }
            let _ = self.server.reader().read_to_end(&mut self.server_received);
        }
        let mut output = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut output).unwrap();
        }
        stream.incoming.extend(output);
    }

    /// Runs both ends until neither has anything to do. The socket's stream takes and gives so many bytes at a time.
    fn settle(&mut self, step: usize) {
        loop {
            self.run_server();
            if !self.run_socket(step, step) {
                self.run_server();
                return;
            }
        }
    }

    fn is_ready(&self) -> bool {
        match &self.socket {
            Some(Socket::Tls(socket)) => !socket.is_handshaking(),
            _ => false,
        }
    }

    fn tls_error(self) -> TlsError {
        match self.lost {
            Some(Lost::Tls(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

/// Bytes of which no two parts are alike.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n ^ (n >> 8)) as u8).collect()
}

#[test]
fn bytes_cut_anywhere_arrive_in_both_directions() {
    for version in VERSIONS {
        for step in [1, 2, 7, 1_000, 1 << 20] {
            let (config, server) = configs(version);
            let mut ends = Ends::new(config, &server);
            let (hello, reply) = (bytes(40_000), bytes(50_000));
            ends.unsent.end().extend_from_slice(&hello);
            ends.settle(step);
            assert!(ends.lost.is_none() && ends.is_ready(), "{:?}", ends.lost);
            assert!(ends.server_received == hello, "{version:?}, {step}");
            ends.server.writer().write_all(&reply).unwrap();
            ends.settle(step);
            assert!(ends.received == reply, "{version:?}, {step}");
        }
    }
}

#[test]
fn refused_bytes_are_kept_until_the_stream_takes_them() {
    for version in VERSIONS {
        let (config, server) = configs(version);
        let mut ends = Ends::new(config, &server);
        ends.settle(usize::MAX);
        let sent = bytes(300_000);
        ends.unsent.end().extend_from_slice(&sent);
        for _ in 0..10 {
            ends.run_socket(0, 0);
        }
        // rustls has encrypted what fits into its buffer, and no more.
        assert!((1..=sent.len() - 60_000).contains(&ends.unsent.len()));
        assert!(ends.stream.0.borrow().outgoing.is_empty());
        ends.settle(usize::MAX);
        assert!(ends.unsent.is_empty() && ends.server_received == sent);
    }
}

#[test]
fn end_of_the_stream_anywhere_loses_the_connection() {
    let step = if cfg!(debug_assertions) { 23 } else { 1 };
    for version in VERSIONS {
        let (config, server) = configs(version);
        let whole = bytes(300);
        let mut cut = 0;
        loop {
            let mut ends = Ends::new(config.clone(), &server);
            ends.unsent.end().extend_from_slice(b"hello");
            ends.server.writer().write_all(&whole).unwrap();
            let mut left = cut;
            loop {
                ends.run_server();
                let before = ends.stream.0.borrow().incoming.len();
                let has_done = ends.run_socket(left, usize::MAX);
                left -= before - ends.stream.0.borrow().incoming.len();
                if left == 0 || !has_done {
                    break;
                }
            }
            let was_ready = ends.is_ready();
            let was_whole = left > 0;
            let mut stream = ends.stream.0.borrow_mut();
            stream.incoming.clear();
            stream.has_ended = true;
            drop(stream);
            ends.run_socket(usize::MAX, usize::MAX);
            assert!(whole.starts_with(&ends.received));
            assert_eq!(ends.unsent.is_empty(), was_ready, "{version:?}, {cut}");
            let lost = ends.lost.expect("the connection is lost");
            assert!(!lost.is_lasting());
            assert_eq!(
                matches!(lost, Lost::Tls(TlsError::HungUp)),
                !was_ready,
                "{version:?}, {cut}: {lost}"
            );
            if was_whole {
                break;
            }
            cut += step;
        }
    }
}

#[test]
fn regular_end_of_the_stream_loses_the_connection_after_its_bytes() {
    for version in VERSIONS {
        let (config, server) = configs(version);
        let mut ends = Ends::new(config, &server);
        ends.settle(usize::MAX);
        ends.server.writer().write_all(b"last").unwrap();
        ends.server.send_close_notify();
        ends.settle(usize::MAX);
        assert_eq!(ends.received, b"last");
        let lost = ends.lost.unwrap();
        assert_eq!(lost.to_string(), "it has closed the connection");
        assert!(!lost.is_lasting());
    }
}

#[test]
fn dropped_socket_announces_its_end() {
    for version in VERSIONS {
        let (config, server) = configs(version);
        let mut ends = Ends::new(config, &server);
        ends.unsent.end().extend_from_slice(b"bye");
        ends.settle(usize::MAX);
        ends.socket = None;
        ends.run_server();
        assert_eq!(ends.server_received, b"bye");
        // The end of a stream without close_notify is an error.
        assert!(matches!(ends.server.reader().read(&mut [0]), Ok(0)));
    }
}

#[test]
fn server_that_is_not_verified_receives_nothing() {
    for version in VERSIONS {
        let provider = || Arc::unwrap_or_clone(provider());
        let untrusted = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let trusted = client_config(provider(), &[version]);
        for (server, says) in [
            (to(untrusted, "localhost"), "Cluster::root_certificates"),
            (
                to(trusted.clone(), "redis.internal"),
                "not valid for redis.internal, but for localhost",
            ),
            (to(trusted, "127.0.0.1"), "not valid for 127.0.0.1"),
        ] {
            let (config, _) = configs(version);
            let mut ends = Ends::new(config, &server);
            ends.unsent.end().extend_from_slice(b"AUTH secret");
            ends.settle(usize::MAX);
            assert_eq!(ends.unsent.bytes(), b"AUTH secret", "it is never encrypted");
            assert_eq!(ends.server_received, b"");
            let error = ends.server_error.take();
            assert!(
                matches!(error, Some(rustls::Error::AlertReceived(_))),
                "{error:?}"
            );
            let lost = ends.lost.unwrap();
            assert!(lost.is_lasting());
            assert!(lost.to_string().contains(says), "{lost}");
        }
    }
}

#[test]
fn server_without_tls_is_named_as_such() {
    let (config, server) = configs(&TLS13);
    let mut ends = Ends::new(config, &server);
    let reply = b"-ERR unknown command\r\n";
    ends.stream.0.borrow_mut().incoming.extend(reply);
    ends.run_socket(usize::MAX, usize::MAX);
    let lost = ends.lost.unwrap();
    assert!(lost.is_lasting());
    assert!(
        lost.to_string().contains("redis:// instead of rediss://"),
        "{lost}"
    );
}

#[test]
fn server_without_a_version_in_common_is_named_as_such() {
    let (config, _) = configs(&TLS12);
    let (_, server) = configs(&TLS13);
    let mut ends = Ends::new(config, &server);
    ends.settle(usize::MAX);
    assert!(matches!(ends.tls_error(), TlsError::Incompatible(_)));
}

#[test]
fn bytes_before_a_violation_of_tls_are_received() {
    let (config, server) = configs(&TLS13);
    let mut ends = Ends::new(config, &server);
    ends.settle(usize::MAX);
    ends.server.writer().write_all(b"good").unwrap();
    ends.run_server();
    // A record of application data that was not encrypted with the key.
    let forged = [23, 3, 3, 0, 20].into_iter().chain([0; 20]);
    ends.stream.0.borrow_mut().incoming.extend(forged);
    ends.run_socket(usize::MAX, usize::MAX);
    assert_eq!(ends.received, b"good");
    assert!(matches!(ends.tls_error(), TlsError::Protocol(_)));
}

#[test]
fn reset_during_the_handshake_is_named_as_such() {
    let (config, server) = configs(&TLS13);
    let mut ends = Ends::new(config, &server);
    ends.stream.0.borrow_mut().is_broken = true;
    ends.run_socket(usize::MAX, usize::MAX);
    assert_eq!(ends.tls_error(), TlsError::HungUp);
}

#[test]
fn timeout_names_the_handshake_until_it_is_complete() {
    let (config, server) = configs(&TLS13);
    let mut ends = Ends::new(config, &server);
    let after = std::time::Duration::from_secs(2);
    let says = |ends: &Ends| ends.socket.as_ref().unwrap().timeout(after).to_string();
    assert!(says(&ends).contains("TLS handshake within 2 s"));
    ends.settle(usize::MAX);
    assert_eq!(says(&ends), "it did not answer within 2 s");
}
