//! A scripted socket, and helpers to write and parse its bytes.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::model::request::BodySource;
use crate::protocol::fuzz;
pub(super) use crate::sync::lock;
#[cfg(feature = "io-uring")]
use crate::transport::WriteMany;
use crate::transport::{ShardTransport, UnsentLimit};

/// Both directions of a connection between the shard's end ([`Wire`]) and the test.
pub(super) struct Pipe {
    /// Bytes from the client that the shard has not read.
    input: VecDeque<u8>,
    /// Whether the client's stream ends after `input`.
    eof: bool,
    /// Whether the connection is reset.
    pub(super) reset: bool,
    /// Bytes from the shard that the test has not taken.
    output: Vec<u8>,
    /// The number of bytes that the socket accepts before it is full.
    room: usize,
    /// Whether a write found the socket full, so that the test reports new room.
    wants_room: bool,
    edges: Edges,
    /// The number of bytes beyond `room` that the transport accepts and keeps pending, as one with TLS does.
    pub(super) pending_max: usize,
    /// Bytes that the transport has accepted and the socket has not.
    pending: Vec<u8>,
    /// If it is not 0, reads return the client's bytes in whole records of so many bytes, as with TLS.
    pub(super) record_bytes: usize,
    /// Whether records contain a message of TLS itself: reads then return nothing of them.
    pub(super) records_are_internal: bool,
    /// The part of a record that has arrived.
    record: Vec<u8>,
    /// The cost of a read (`ShardTransport::read_cost`).
    pub(super) read_cost: u32,
    /// Whether the shard has shut down its sending side, and whether the pending bytes were sent before.
    finishing: bool,
    pub(super) finished: bool,
    /// Whether the shard has dropped the socket, and whether it had not read everything. TCP then resets the connection.
    pub(super) closed: bool,
    pub(super) was_dropped_unread: bool,
    /// The number of writes that accepted bytes, and the number of those bytes.
    pub(super) writes: usize,
    pub(super) written: usize,
    /// The limit that the shard has last set for the bytes that the kernel takes in advance.
    pub(super) unsent_limit: Option<UnsentLimit>,
    /// The number of all reads and writes.
    pub(super) reads: usize,
    pub(super) tries: usize,
    /// The memory addresses of the buffers of the last write.
    pub(super) handed: Vec<usize>,
}

/// New readiness that an edge-triggered poll has yet to report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Edges {
    pub(super) readable: bool,
    pub(super) hangup: bool,
    pub(super) writable: bool,
}

impl Edges {
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

impl Pipe {
    pub(super) fn client_sends(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.input.extend(bytes);
            self.edges.readable = true;
        }
    }

    pub(super) fn client_ends(&mut self) {
        self.eof = true;
        self.edges.readable = true;
        self.edges.hangup = true;
    }

    pub(super) fn client_resets(&mut self) {
        self.reset = true;
        self.edges = Edges {
            readable: true,
            hangup: true,
            writable: true,
        };
    }

    /// Sets how many more bytes the socket accepts.
    pub(super) fn set_room(&mut self, room: usize) {
        self.room = room;
        if room > 0 && std::mem::take(&mut self.wants_room) {
            self.edges.writable = true;
        }
    }

    pub(super) fn add_room(&mut self, room: usize) {
        self.set_room(self.room.saturating_add(room));
    }

    /// Adds room without a readiness event, as if the client has read too little to open its TCP window.
    pub(super) fn add_room_unreported(&mut self, room: usize) {
        self.room = self.room.saturating_add(room);
    }

    /// Reports readiness to write if the shard waits for it and there is room.
    pub(super) fn report_room(&mut self) {
        if self.room > 0 && std::mem::take(&mut self.wants_room) {
            self.edges.writable = true;
        }
    }

    /// Moves pending bytes to the socket, as far as it has room.
    fn flush(&mut self) {
        let n = self.pending.len().min(self.room);
        self.room -= n;
        self.written += n;
        self.output.extend(self.pending.drain(..n));
        self.wants_room |= !self.pending.is_empty();
        self.finished = self.finishing && self.pending.is_empty();
    }

    /// Reads a part of a record, and returns the record if it is complete.
    fn read_record(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.len().min(self.record_bytes - self.record.len());
        self.record.extend(self.input.drain(..n));
        if self.record.len() < self.record_bytes {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let record = std::mem::take(&mut self.record);
        if self.records_are_internal {
            return Err(io::ErrorKind::Interrupted.into());
        }
        buffer[..record.len()].copy_from_slice(&record);
        Ok(record.len())
    }

    pub(super) fn unread(&self) -> usize {
        self.input.len()
    }

    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    pub(super) fn take_edges(&mut self) -> Edges {
        std::mem::take(&mut self.edges)
    }

    pub(super) fn has_edges(&self) -> bool {
        self.edges.any() && !self.closed
    }
}

/// The shard's end of the connection.
pub(super) struct Wire(Arc<Mutex<Pipe>>);

impl Wire {
    pub(super) fn new() -> (Self, Arc<Mutex<Pipe>>) {
        let pipe = Arc::new(Mutex::new(Pipe {
            input: VecDeque::new(),
            eof: false,
            reset: false,
            output: Vec::new(),
            room: usize::MAX / 2,
            wants_room: false,
            edges: Edges::default(),
            pending_max: 0,
            pending: Vec::new(),
            record_bytes: 0,
            records_are_internal: false,
            record: Vec::new(),
            read_cost: 0,
            finishing: false,
            finished: false,
            closed: false,
            was_dropped_unread: false,
            writes: 0,
            written: 0,
            unsent_limit: None,
            reads: 0,
            tries: 0,
            handed: Vec::new(),
        }));
        (Self(pipe.clone()), pipe)
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        lock(&self.0)
    }

    fn take(&self, bytes: &[u8], handed: Vec<usize>) -> io::Result<usize> {
        let mut pipe = self.pipe();
        pipe.tries += 1;
        pipe.handed = handed;
        assert!(!pipe.finishing, "written after the end");
        assert!(!bytes.is_empty(), "an empty write");
        if pipe.reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        pipe.flush();
        let n = bytes.len().min(pipe.room);
        if n < bytes.len() {
            pipe.wants_room = true;
        }
        let accepted = match pipe.pending.is_empty() {
            true => bytes.len().min(n + pipe.pending_max),
            false => 0,
        };
        if accepted == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        pipe.room -= n;
        pipe.writes += 1;
        pipe.written += n;
        pipe.output.extend_from_slice(&bytes[..n]);
        pipe.pending.extend_from_slice(&bytes[n..accepted]);
        Ok(accepted)
    }
}

impl ShardTransport for Wire {
    type Registry = ();
    /// With the feature `io-uring`, every simulation uses the batched writer.
    #[cfg(feature = "io-uring")]
    type Writer = Together;
    #[cfg(not(feature = "io-uring"))]
    type Writer = crate::transport::OneByOne;

    fn register(&mut self, _: &(), _: usize) -> io::Result<()> {
        self.pipe().edges.writable = true;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.pipe();
        pipe.reads += 1;
        if pipe.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let n = pipe.input.len().min(buffer.len());
        if n == 0 && !pipe.eof {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if n > 0 && pipe.record_bytes > 0 {
            return pipe.read_record(buffer);
        }
        for (place, byte) in buffer.iter_mut().zip(pipe.input.drain(..n)) {
            *place = byte;
        }
        Ok(n)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes, vec![bytes.as_ptr().addr()])
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let places = pieces.iter().map(|piece| piece.as_ptr().addr());
        self.take(&all, places.collect())
    }

    fn limit_unsent(&self, limit: UnsentLimit) {
        self.pipe().unsent_limit = Some(limit);
    }

    fn finish(&mut self) {
        let mut pipe = self.pipe();
        pipe.finishing = true;
        pipe.flush();
    }

    fn has_pending(&self) -> bool {
        !self.pipe().pending.is_empty()
    }

    fn flush(&mut self) {
        self.pipe().flush();
    }

    fn pending_bytes(&self) -> usize {
        self.pipe().pending.len()
    }

    fn received_bytes(&self) -> usize {
        self.pipe().record.capacity()
    }

    fn read_bytes_min(&self) -> usize {
        self.pipe().record_bytes.max(1)
    }

    fn read_cost(&self) -> u32 {
        self.pipe().read_cost
    }
}

/// Performs all writes of a batch before it returns the first result, as io_uring does.
#[cfg(feature = "io-uring")]
pub(super) struct Together;

#[cfg(feature = "io-uring")]
pub(super) fn writer() -> Together {
    Together
}

#[cfg(not(feature = "io-uring"))]
pub(super) fn writer() -> crate::transport::OneByOne {
    crate::transport::OneByOne
}

#[cfg(feature = "io-uring")]
impl WriteMany<Wire> for Together {
    const GATHER_MIN: usize = 1;
    const AT_ONCE: usize = usize::MAX;

    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        mut write: impl FnMut(K) -> Option<crate::transport::Write<'a, Wire, G>>,
        mut outcome: impl FnMut(G, usize, io::Result<usize>, bool),
    ) {
        let writes = targets.iter().filter_map(|&target| write(target));
        let outcomes: Vec<_> = writes
            .map(|write| {
                let places = vec![write.bytes.as_ptr().addr()];
                let result = write.transport.take(write.bytes, places);
                let is_pending = write.transport.has_pending();
                (write.tag, write.bytes.len(), result, is_pending)
            })
            .collect();
        for (tag, len, result, is_pending) in outcomes {
            outcome(tag, len, result, is_pending);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut pipe = self.pipe();
        pipe.closed = true;
        pipe.was_dropped_unread = !pipe.input.is_empty();
        // Accepted bytes count as sent, although those that are pending are lost if the connection breaks, as are those
        // in the buffer of a real socket.
        let pending = std::mem::take(&mut pipe.pending);
        pipe.output.extend(pending);
    }
}

/// A frame that a server sends after the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Text(String),
    Binary(Vec<u8>),
    Close(Option<u16>, String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

pub(super) fn text(payload: impl Into<String>) -> Frame {
    Frame::Text(payload.into())
}

pub(super) fn pong(payload: impl AsRef<[u8]>) -> Frame {
    Frame::Pong(payload.as_ref().to_vec())
}

/// Parses server frames strictly by RFC 6455 §5, without the crate's own parser. Leaves an incomplete frame in `bytes`.
pub(super) fn parse_frames(bytes: &mut Vec<u8>) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(&[first, second]) = bytes.get(at..at + 2) {
        assert_eq!(first & 0xF0, 0x80, "FIN and no reserved bits");
        let (header, len) = match second {
            0..=125 => (2, u64::from(second)),
            126 => {
                let Some(len) = bytes[at..].get(2..4) else {
                    break;
                };
                let len = u64::from(u16::from_be_bytes(len.try_into().unwrap()));
                assert!(len > 125, "the shortest form");
                (4, len)
            }
            127 => {
                let Some(len) = bytes[at..].get(2..10) else {
                    break;
                };
                let len = u64::from_be_bytes(len.try_into().unwrap());
                assert!(len > 0xFFFF, "the shortest form");
                (10, len)
            }
            _ => panic!("a server must not mask frames"),
        };
        let Some(payload) = bytes[at..].get(header..header + len as usize) else {
            break;
        };
        at += header + len as usize;
        assert!(first & 0x8 == 0 || len <= 125, "a control frame is short");
        let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        frames.push(match first & 0xF {
            0x1 => Frame::Text(string(payload)),
            0x2 => Frame::Binary(payload.to_vec()),
            0x8 if payload.is_empty() => Frame::Close(None, String::new()),
            0x8 => Frame::Close(
                Some(u16::from_be_bytes([payload[0], payload[1]])),
                string(&payload[2..]),
            ),
            0x9 => Frame::Ping(payload.to_vec()),
            0xA => Frame::Pong(payload.to_vec()),
            other => panic!("opcode {other:#x}"),
        });
    }
    bytes.drain(..at);
    frames
}

/// Encodes a masked frame, as a client sends it.
pub(super) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    fuzz::client_frame(first, [0x12, 0x9A, 0x00, 0xFF], payload)
}

pub(super) fn client_text(payload: &str) -> Vec<u8> {
    client_frame(0x81, payload.as_bytes())
}

pub(super) fn client_ping(payload: &[u8]) -> Vec<u8> {
    client_frame(0x89, payload)
}

pub(super) fn client_close(code: u16) -> Vec<u8> {
    client_frame(0x88, &code.to_be_bytes())
}

/// The handshake of RFC 6455 §1.3, whose response is known.
pub(super) const UPGRADE: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
pub(super) const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// Encodes a GET request.
pub(super) fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// Encodes a POST request with a body.
pub(super) fn post(target: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
}

/// Parses the status of a response.
pub(super) fn status(output: &[u8]) -> Option<u16> {
    let line = output.strip_prefix(b"HTTP/1.1 ")?;
    std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
}

/// A body that is in memory, for tests.
impl BodySource for Vec<u8> {
    fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let mut rest = self.get(at as usize..).unwrap_or_default();
        rest.read_exact(buffer)
    }
}
