//! The blocking client with TLS connections that are cut, or changed, at any byte. The server and the stream are in memory.

use crate::certificates::{Authority, VERSIONS};

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use humphrey_ws::websocket_client::{Client, ClientError, ClientTls, Transport};
use humphrey_ws::{CloseCode, Message};
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion};

/// What the server sends after its handshake: two messages, and a close frame with 1000.
const FRAMES: &[u8] = b"\x81\x03one\x81\x03two\x88\x02\x03\xe8";

/// The longest record that contains close_notify only.
const CLOSE_NOTIFY_BYTES_MAX: usize = 40;

/// What goes wrong with the connection, after how many bytes.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// The stream ends.
    End(usize),
    /// The stream is reset.
    Reset(usize),
    /// A bit of this byte of the server's is inverted.
    Flip(usize),
    /// The server takes no more bytes.
    Unwritable(usize),
}

/// A stream to a server in memory.
struct Memory {
    server: ServerConnection,
    /// The bytes of the handshake request so far.
    request: Vec<u8>,
    is_answered: bool,
    /// What the server has sent.
    outgoing: Vec<u8>,
    /// How much of it the client has read.
    read: usize,
    written: usize,
    /// The maximum length of a read or write.
    portion: usize,
    fault: Fault,
}

impl Memory {
    fn new(config: &Arc<ServerConfig>, portion: usize, fault: Fault) -> Self {
        Self {
            server: ServerConnection::new(config.clone()).unwrap(),
            request: Vec::new(),
            is_answered: false,
            outgoing: Vec::new(),
            read: 0,
            written: 0,
            portion,
            fault,
        }
    }

    /// Lets the server work.
    fn advance(&mut self) {
        // An invalid record makes the server send an alert.
        let _ = self.server.process_new_packets();
        let mut byte = [0];
        while self.server.reader().read(&mut byte).is_ok_and(|n| n == 1) {
            self.request.push(byte[0]);
        }
        if !self.is_answered && self.request.ends_with(b"\r\n\r\n") {
            self.is_answered = true;
            let head = String::from_utf8(self.request.clone()).unwrap();
            let key = head
                .lines()
                .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
            let accept = tungstenite::handshake::derive_accept_key(key.unwrap().as_bytes());
            let answer = format!(
                "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            self.server.writer().write_all(answer.as_bytes()).unwrap();
            self.server.writer().write_all(FRAMES).unwrap();
            self.server.send_close_notify();
        }
        while self.server.wants_write() {
            self.server.write_tls(&mut self.outgoing).unwrap();
        }
    }
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut end = self
            .outgoing
            .len()
            .min(self.read + self.portion.min(buffer.len()));
        match self.fault {
            Fault::End(at) => end = end.min(at),
            Fault::Reset(at) if at <= self.read => return Err(ErrorKind::ConnectionReset.into()),
            Fault::Reset(at) => end = end.min(at),
            _ => {}
        }
        let part = &self.outgoing[self.read..end];
        buffer[..part.len()].copy_from_slice(part);
        if let Fault::Flip(at) = self.fault
            && (self.read..end).contains(&at)
        {
            buffer[at - self.read] ^= 1 << (at % 8);
        }
        self.read = end;
        Ok(part.len())
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut len = bytes.len().min(self.portion);
        if let Fault::Unwritable(at) = self.fault {
            len = len.min(at - self.written);
            if len == 0 {
                return Err(ErrorKind::BrokenPipe.into());
            }
        }
        let mut part = &bytes[..len];
        while !part.is_empty() && self.server.read_tls(&mut part).is_ok() {
            self.advance();
        }
        self.written += len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Memory {
    fn set_read_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn set_write_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }
}

/// A server's settings, and the certificate of its authority.
struct World {
    pem: String,
    server: Arc<ServerConfig>,
}

impl World {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::new();
        Self {
            server: authority.issue(&["localhost"]).server_of(&[version]),
            pem: authority.pem,
        }
    }

    /// Connects, and receives to the end. Returns the messages, the error at the end, and the bytes read and written.
    fn run(&self, portion: usize, fault: Fault) -> (Vec<Message>, ClientError, (usize, usize)) {
        let stream = Memory::new(&self.server, portion, fault);
        // New settings have no TLS session to resume.
        let tls = ClientTls::from_pem(self.pem.as_bytes()).unwrap();
        let builder = Client::builder("wss://localhost/").with_tls(tls);
        let mut client = match builder.connect_over(stream) {
            Ok(client) => client,
            Err(error) => return (Vec::new(), error, (0, 0)),
        };
        let mut messages = Vec::new();
        loop {
            match client.receive() {
                Ok(message) => messages.push(message),
                Err(error) => {
                    let stream = client.get_ref();
                    return (messages, error, (stream.read, stream.written));
                }
            }
        }
    }
}

fn expect_a_prefix(messages: &[Message], case: &str) {
    let texts: Vec<_> = messages.iter().map(Message::text).collect();
    assert!(
        [Some("one"), Some("two")].starts_with(&texts),
        "{case}: {texts:?}"
    );
}

/// Runs a connection with a fault at each byte of the server's. Returns the bytes after which it was closed nevertheless, and the
/// total.
fn closed_despite(
    version: &'static SupportedProtocolVersion,
    fault_at: fn(usize) -> Fault,
) -> (Vec<usize>, usize) {
    let world = World::new(version);
    let (_, end, (total, _)) = world.run(usize::MAX, Fault::None);
    assert!(matches!(end, ClientError::Closed { .. }), "{end:?}");
    let mut closed = Vec::new();
    for at in 0..total {
        let fault = fault_at(at);
        let (messages, end, _) = world.run(usize::MAX, fault);
        let case = format!("{fault:?} of {total}, {:?}: {end:?}", version.version);
        expect_a_prefix(&messages, &case);
        match end {
            ClientError::Closed { code, .. } => {
                assert_eq!(code, Some(CloseCode::NORMAL), "{case}");
                assert_eq!(messages.len(), 2, "{case}");
                closed.push(at);
            }
            ClientError::Tls(_) | ClientError::Lost(_) | ClientError::Handshake(_) => {}
            _ => panic!("{case}"),
        }
    }
    (closed, total)
}

#[test]
fn connection_cut_at_any_byte_before_the_close_frame_fails() {
    for version in VERSIONS {
        for fault in [Fault::End, Fault::Reset] {
            let (closed, total) = closed_despite(version, fault);
            let from = closed.first().copied().expect("close_notify comes last");
            assert!(total - from <= CLOSE_NOTIFY_BYTES_MAX, "{from} of {total}");
        }
    }
}

#[test]
fn changed_byte_is_noticed_before_its_record_is_used() {
    for version in VERSIONS {
        let (closed, total) = closed_despite(version, Fault::Flip);
        // Clients ignore the version in the head of the first records (RFC 8446 §5.1), of which there are a few.
        let ignored = closed
            .iter()
            .filter(|at| total - **at > CLOSE_NOTIFY_BYTES_MAX);
        assert!(ignored.count() <= 16, "{closed:?} of {total}");
    }
}

#[test]
fn connection_that_takes_no_more_bytes_fails() {
    for version in VERSIONS {
        let world = World::new(version);
        let (_, _, (_, total)) = world.run(usize::MAX, Fault::None);
        for at in 0..total {
            let (messages, end, _) = world.run(usize::MAX, Fault::Unwritable(at));
            let case = format!("{at} of {total}, {:?}: {end:?}", version.version);
            expect_a_prefix(&messages, &case);
            // What the server has sent can be read, though the answer to its close frame is lost.
            let is_closed = matches!(end, ClientError::Closed { .. });
            assert_eq!(is_closed, messages.len() == 2, "{case}");
        }
    }
}

#[test]
fn connection_in_portions_of_any_length_succeeds() {
    for version in VERSIONS {
        for portion in [1, 2, 3, 5, 100, 1_000] {
            let (messages, end, _) = World::new(version).run(portion, Fault::None);
            assert!(
                matches!(end, ClientError::Closed { .. }),
                "{portion}: {end:?}"
            );
            assert_eq!(messages.len(), 2);
        }
    }
}
