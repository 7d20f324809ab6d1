//! Hand-written clients, which can violate the protocol where libraries cannot.

mod ending;
pub(crate) mod frames;
mod inflater;
pub(crate) mod tls;
mod transport;

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use tungstenite::WebSocket;

use crate::check::{DEADLINE, During, Failure, Outcome, ensure};
pub(crate) use ending::{Ending, abort_handshake};
use frames::{CLOSE, FIN, Frames, PING, PONG};
pub(crate) use transport::Transport;

/// The accept key that answers the key of [`request`].
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The header line of a response that accepts compression.
const ACCEPTED_OFFER: &str =
    "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover";

/// The head of a handshake request.
pub(crate) fn request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: stress\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A source address. Spreading the clients over addresses avoids running out of ports; none is the server's, since a client
/// that connects to a port nobody listens on could otherwise connect to itself.
pub(crate) fn source(number: u64) -> Ipv4Addr {
    Ipv4Addr::new(
        127,
        0,
        1 + (number / 250 % 250) as u8,
        1 + (number % 250) as u8,
    )
}

/// A connected socket with timeouts for reading and writing.
pub(crate) fn tcp(server: SocketAddrV4, source: Ipv4Addr) -> io::Result<TcpStream> {
    tcp_with_buffer(server, source, None)
}

/// A connected socket with a receive buffer of about `receive_buffer` bytes, which must be set before TCP connects.
pub(crate) fn tcp_with_buffer(
    server: SocketAddrV4,
    source: Ipv4Addr,
    receive_buffer: Option<usize>,
) -> io::Result<TcpStream> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if let Some(bytes) = receive_buffer {
        set_socket_recv_buffer_size(&socket, bytes)?;
    }
    bind(&socket, &SocketAddrV4::new(source, 0))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    connect(&stream, &server)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Makes the socket reset its connection when it is dropped.
pub(crate) fn reset_on_drop(stream: &TcpStream) -> io::Result<()> {
    Ok(set_socket_linger(stream, Some(Duration::ZERO))?)
}

/// Waits until one of the sockets has input or has ended, but not longer than `wait`. Returns which of them have.
pub(crate) fn wait_for_input<'a>(
    sockets: impl Iterator<Item = &'a TcpStream>,
    wait: Duration,
) -> Outcome<Vec<bool>> {
    let mut polled: Vec<_> = sockets
        .map(|socket| PollFd::new(socket, PollFlags::IN))
        .collect();
    let wait = Timespec::try_from(wait).during("the wait for input")?;
    retry_on_intr(|| poll(&mut polled, Some(&wait))).during("waiting for input")?;
    let is_ready = polled.iter().map(|socket| !socket.revents().is_empty());
    Ok(is_ready.collect())
}

/// A well-behaved client from an independent library.
pub(crate) fn well_behaved(
    server: SocketAddrV4,
    source: Ipv4Addr,
    path: &str,
) -> Outcome<WebSocket<TcpStream>> {
    well_behaved_over(tcp(server, source).during("connecting")?, server, path)
}

/// A well-behaved client from an independent library, on an existing connection.
pub(crate) fn well_behaved_over<T: Transport>(
    stream: T,
    server: SocketAddrV4,
    path: &str,
) -> Outcome<WebSocket<T>> {
    match tungstenite::client(format!("ws://{server}{path}"), stream) {
        Ok((client, _)) => Ok(client),
        Err(error) => Err(Failure::new(format!("the handshake failed: {error}"))),
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Cleanly, with the end of the stream.
    Eof,
    /// With a reset.
    Broken,
}

/// A message, close frame or end that a peer has read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Message(Vec<u8>),
    /// A close frame; 1005 where it has no code (RFC 6455 §7.1.5).
    Close(u16),
    End(End),
}

/// A WebSocket client that reads and writes frames itself, and may violate the protocol.
#[derive(Debug)]
pub(crate) struct Peer<T = TcpStream> {
    pub(crate) stream: T,
    frames: Frames,
    /// Whether it answers pings.
    pub(crate) answers: bool,
    /// Whether it has sent a close frame, which is sent once only.
    said_goodbye: bool,
    /// The code of the server's close frame.
    pub(crate) closed: Option<u16>,
    pub(crate) ended: Option<End>,
}

impl Peer {
    /// Connects and completes the handshake.
    pub(crate) fn connect(server: SocketAddrV4, source: Ipv4Addr, path: &str) -> Outcome<Self> {
        Self::upgrade(tcp(server, source).during("connecting")?, path)
    }

    /// Connects and completes a handshake that offers compression. The server must accept the offer.
    pub(crate) fn connect_compressing(
        server: SocketAddrV4,
        source: Ipv4Addr,
        path: &str,
    ) -> Outcome<Self> {
        let stream = tcp(server, source).during("connecting")?;
        Self::upgrade_compressing(stream, path)
    }

    /// Reads the response to a handshake that was sent.
    pub(crate) fn upgraded(stream: TcpStream) -> Outcome<Self> {
        Self::read_response(stream, ACCEPT)
    }
}

impl<T: Transport> Peer<T> {
    /// Completes the WebSocket handshake on a connection.
    pub(crate) fn upgrade(stream: T, path: &str) -> Outcome<Self> {
        Self::handshake(stream, &request(path), ACCEPT)
    }

    /// Completes a handshake that offers compression, which the server must accept.
    pub(crate) fn upgrade_compressing(stream: T, path: &str) -> Outcome<Self> {
        let offer = "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        let request = request(path).replace("\r\n\r\n", offer);
        let mut peer = Self::handshake(stream, &request, ACCEPTED_OFFER)?;
        peer.frames.inflate();
        Ok(peer)
    }

    fn handshake(mut stream: T, request: &str, expected: &str) -> Outcome<Self> {
        stream
            .write_all(request.as_bytes())
            .during("sending a request")?;
        Self::read_response(stream, expected)
    }

    fn read_response(mut stream: T, expected: &str) -> Outcome<Self> {
        let mut answer = Vec::new();
        let mut part = [0; 2048];
        let end = loop {
            let read = stream.read(&mut part).during("reading a response")?;
            answer.extend_from_slice(&part[..read]);
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            ensure!(
                read > 0 && answer.len() < 16 << 10,
                "the response is incomplete: {:?}",
                String::from_utf8_lossy(&answer)
            );
        };
        let head = String::from_utf8_lossy(&answer[..end]);
        ensure!(
            head.starts_with("HTTP/1.1 101 ") && head.contains(expected),
            "the response to the handshake has no {expected}: {}",
            head.lines().next().unwrap_or_default()
        );
        let mut frames = Frames::default();
        frames.feed(&answer[end..]);
        Ok(Self {
            stream,
            frames,
            answers: true,
            said_goodbye: false,
            closed: None,
            ended: None,
        })
    }

    /// Sends a complete frame.
    pub(crate) fn send(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frames::frame(first, payload))
    }

    /// Reads available data without blocking, about `bytes` at most, and passes each message on. Returns the number of
    /// bytes read.
    pub(crate) fn pump(
        &mut self,
        mut bytes: usize,
        mut take: impl FnMut(&[u8]) -> Outcome,
    ) -> Outcome<usize> {
        let mut buffer = [0; 32 << 10];
        let mut total = 0;
        // Frames that arrived together with the handshake response.
        self.frames_in(&mut take)?;
        while bytes > 0 && self.ended.is_none() {
            let want = bytes.min(buffer.len());
            match self.stream.receive(&mut buffer[..want]) {
                Ok(0) => self.end(End::Eof)?,
                Ok(n) => {
                    total += n;
                    bytes -= n;
                    self.frames.feed(&buffer[..n]);
                    self.frames_in(&mut take)?;
                    if n < want {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.end(End::Broken)?,
            }
        }
        Ok(total)
    }

    fn frames_in(&mut self, take: &mut impl FnMut(&[u8]) -> Outcome) -> Outcome {
        while let Some((opcode, payload)) = self.frames.next()? {
            match opcode {
                CLOSE => self.closed = Some(close_code(payload)),
                PING if self.answers => {
                    let pong = frames::frame(FIN | PONG, payload);
                    // Write errors are ignored: a server that is gone needs no reply.
                    let _ = self.stream.write_all(&pong);
                }
                PING | PONG => {}
                _ => take(payload)?,
            }
        }
        Ok(())
    }

    fn end(&mut self, end: End) -> Outcome {
        self.ended = Some(end);
        ensure!(
            end == End::Broken || self.frames.is_between_frames(),
            "the stream ended in the middle of a frame"
        );
        Ok(())
    }

    /// Waits for the next message, close frame or end.
    pub(crate) fn receive(&mut self) -> Outcome<Incoming> {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 16 << 10];
        loop {
            while let Some((opcode, payload)) = self.frames.next()? {
                match opcode {
                    CLOSE => {
                        let code = close_code(payload);
                        self.closed = Some(code);
                        return Ok(Incoming::Close(code));
                    }
                    PING if self.answers => {
                        let pong = frames::frame(FIN | PONG, payload);
                        let _ = self.stream.write_all(&pong);
                    }
                    PING | PONG => {}
                    _ => return Ok(Incoming::Message(payload.to_vec())),
                }
            }
            if let Some(end) = self.ended {
                return Ok(Incoming::End(end));
            }
            ensure!(
                Instant::now() < deadline,
                "received nothing but control frames"
            );
            match self.stream.read(&mut buffer) {
                Ok(0) => self.end(End::Eof)?,
                Ok(n) => self.frames.feed(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(Failure::new("received nothing"));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.end(End::Broken)?,
            }
        }
    }

    /// Waits for the next message. Fails if the connection ends first.
    pub(crate) fn message(&mut self) -> Outcome<Vec<u8>> {
        match self.receive()? {
            Incoming::Message(message) => Ok(message),
            other => Err(Failure::new(format!(
                "received {other:?} instead of a message"
            ))),
        }
    }

    /// Reads until the connection ends and passes each message on. Returns the code of the close frame.
    pub(crate) fn read_to_end(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Outcome,
    ) -> Outcome<Option<u16>> {
        loop {
            match self.receive()? {
                Incoming::Message(message) => take(&message)?,
                // Completes the closing handshake, unless the server is already gone.
                Incoming::Close(code) => drop(self.send_close(code)),
                Incoming::End(_) => return Ok(self.closed),
            }
        }
    }

    /// Sends a close frame, once.
    pub(crate) fn send_close(&mut self, code: u16) -> io::Result<()> {
        if std::mem::replace(&mut self.said_goodbye, true) {
            return Ok(());
        }
        self.stream.write_all(&frames::close(code))
    }

    /// Completes the closing handshake and waits for the end of the stream.
    pub(crate) fn close(mut self) -> Outcome {
        self.send_close(1000).during("sending a close frame")?;
        let code = self.read_to_end(|_| Ok(()))?;
        ensure!(
            code == Some(1000) && self.ended == Some(End::Eof),
            "a close frame was answered with {code:?} and {:?}",
            self.ended
        );
        Ok(())
    }
}

fn close_code(payload: &[u8]) -> u16 {
    match payload {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 1005,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};

    #[test]
    fn wait_returns_the_sockets_with_input_or_an_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let pair = || {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let [idle, mut with_input, ended] = [pair(), pair(), pair()];
        let sockets = [&idle.0, &with_input.0, &ended.0].into_iter();
        let ready = wait_for_input(sockets, Duration::ZERO).unwrap();
        assert_eq!(ready, [false, false, false]);
        with_input.1.write_all(b"x").unwrap();
        let ready = wait_for_input([&idle.0, &with_input.0].into_iter(), DEADLINE).unwrap();
        assert_eq!(ready, [false, true]);
        ended.1.shutdown(Shutdown::Both).unwrap();
        let ready = wait_for_input([&idle.0, &ended.0].into_iter(), DEADLINE).unwrap();
        assert_eq!(ready, [false, true]);
    }
}
