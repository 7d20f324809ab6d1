//! One client of a cluster, which joins its room again after the id of its last message when its node has ended.

use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Instant;

use super::accounts::RoomLog;
use super::frames::{SUBPROTOCOL, Since, join};
use super::node::{kept_room, plain_room};
use crate::check::{Outcome, ensure};
use crate::client::frames::{BINARY, CLOSE, FIN, Frames, PING, PONG, frame};
use crate::client::{self, Transport, reset_on_drop};

/// The calls of a client, which it numbers anew on each connection.
pub(super) const JOIN_KEPT: u32 = 1;
pub(super) const JOIN_PLAIN: u32 = 2;

const HEAD_BYTES_MAX: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not connected.
    Down,
    Upgrading,
    JoiningKept,
    JoiningPlain,
    /// The join was answered with the error busy.
    Busy,
    Live,
}

/// A connection to a node.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: TcpStream,
    /// The head of the response, until it is complete.
    head: Option<Vec<u8>>,
    frames: Frames,
}

/// What arrived on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// The handshake is complete.
    Upgraded,
    Message(Vec<u8>),
    /// The connection has ended, or the node closes it.
    Ended,
}

impl Link {
    pub(super) fn connect(address: SocketAddrV4, source: Ipv4Addr) -> io::Result<Self> {
        let mut stream = client::tcp(address, source)?;
        // Otherwise ports and memory of the kernel are kept for a minute.
        reset_on_drop(&stream)?;
        let offer = format!("\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n");
        let request = client::request("/").replace("\r\n\r\n", &offer);
        stream.write_all(request.as_bytes())?;
        Ok(Self {
            stream,
            head: Some(Vec::new()),
            frames: Frames::default(),
        })
    }

    /// Receives without blocking, up to the length of `buffer`, and passes on what arrived.
    pub(super) fn receive(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(Arrived) -> Outcome,
    ) -> Outcome {
        let received = match self.stream.receive(buffer) {
            Ok(0) => return take(Arrived::Ended),
            Ok(received) => &buffer[..received],
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => return Ok(()),
                _ => return take(Arrived::Ended),
            },
        };
        match &mut self.head {
            None => self.frames.feed(received),
            Some(head) => {
                head.extend_from_slice(received);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    ensure!(head.len() < HEAD_BYTES_MAX, "a response has no end");
                    return Ok(());
                };
                let (lines, rest) = head.split_at(end + 4);
                let lines = String::from_utf8_lossy(lines);
                if lines.starts_with("HTTP/1.1 503 ") {
                    // The node stops.
                    return take(Arrived::Ended);
                }
                ensure!(
                    lines.starts_with("HTTP/1.1 101 ") && lines.contains(SUBPROTOCOL),
                    "a handshake was answered with {lines:?}"
                );
                self.frames.feed(rest);
                self.head = None;
                take(Arrived::Upgraded)?;
            }
        }
        while let Some((opcode, payload)) = self.frames.next()? {
            match opcode {
                BINARY => take(Arrived::Message(payload.to_vec()))?,
                PING => {
                    // A node that is gone needs no reply.
                    let _ = self.stream.write_all(&frame(FIN | PONG, payload));
                }
                PONG => {}
                CLOSE => {
                    let _ = self.stream.write_all(&frame(FIN | CLOSE, payload));
                    return take(Arrived::Ended);
                }
                other => ensure!(false, "a frame with the unexpected opcode {other}"),
            }
        }
        Ok(())
    }

    /// Sends a frame of procedures. An error is noticed as the end of the connection.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(&frame(FIN | BINARY, bytes));
    }
}

/// A client with its room, and what it has received.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) room: u32,
    /// The node that it is connected to, or tries next.
    pub(crate) node: usize,
    pub(super) stage: Stage,
    pub(super) link: Option<Link>,
    /// Whether the last join of the room with a history was answered with the error busy.
    pub(super) is_busy: bool,
    /// Whether this connection has called to join the room without a history.
    pub(super) has_joined_plain: bool,
    /// When it began to connect, or to join again.
    pub(super) begun: Instant,
    pub(crate) kept: RoomLog,
    pub(crate) plain: RoomLog,
    /// Gaps that it was told while it was a member, and in replays.
    pub(crate) gaps: u64,
    pub(crate) replay_gaps: u64,
    /// Whether it was last told that its room is silent, and how often it was.
    pub(crate) is_silent: bool,
    pub(crate) silences: u64,
    /// Connections that have ended.
    pub(crate) ended: u64,
}

impl Member {
    pub(super) fn new(room: u32, node: usize) -> Self {
        Self {
            room,
            node,
            stage: Stage::Down,
            link: None,
            is_busy: false,
            has_joined_plain: false,
            begun: Instant::now(),
            kept: RoomLog::default(),
            plain: RoomLog::default(),
            gaps: 0,
            replay_gaps: 0,
            is_silent: false,
            silences: 0,
            ended: 0,
        }
    }

    /// Joins the room with a history, after the last message that the client knows.
    pub(super) fn join_kept(&mut self) {
        let since = match self.kept.position {
            Some(id) => Since::After(id),
            None if self.replay_gaps > 0 => Since::All,
            None => Since::New,
        };
        let call = join(JOIN_KEPT, &kept_room(self.room), since);
        self.call(&call);
    }

    pub(super) fn join_plain(&mut self) {
        self.begun = Instant::now();
        let call = join(JOIN_PLAIN, &plain_room(self.room), Since::New);
        self.call(&call);
    }

    fn call(&mut self, bytes: &[u8]) {
        if let Some(link) = &mut self.link {
            link.send(bytes);
        }
    }
}
