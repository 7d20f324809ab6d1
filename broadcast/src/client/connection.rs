//! A WebSocket connection to the server, on a non-blocking socket.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{Connection, Event};
use humphrey_ws::{CloseCode, Message};

use super::dial::OpenedConnection;
use super::end::End;
use super::failures::Failure;
use super::stream::ClientStream;

/// Longest message accepted, in bytes: four times the default limit of a humphrey_ws server.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Size of one read from the socket.
const READ_BYTES: usize = 64 << 10;

/// With more unwritten bytes than this, pongs are deferred, and only the latest ping is answered.
const REPLY_BACKLOG_MAX: usize = 64 << 10;

/// Written bytes are removed from the write buffer once there are so many.
const WRITE_BUFFER_KEPT: usize = 256 << 10;

/// How long the server may take to answer a ping.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// If a deadline is noticed this much too late, the process stood still: it was stopped, or it waited for its standard output.
const STANDSTILL: Duration = Duration::from_secs(1);

/// Receive budget of a turn. Each event costs 1, and each read from the socket [`READ_WORK`], since it may end inside a
/// message. Pings and empty fragments count too: a server can send them faster than they are processed.
const TURN_WORK_MAX: u32 = 256;
const READ_WORK: u32 = 4;

/// Payload of heartbeat pings, distinct from those that confirm lines.
const HEARTBEAT: &[u8] = b"heartbeat";

/// The socket with its buffers. It counts written bytes, so that the caller knows which frames have left.
struct Socket {
    stream: ClientStream,
    /// Received bytes; those before `parse_offset` have been parsed.
    read: Vec<u8>,
    parse_offset: usize,
    unwritten: Vec<u8>,
    /// Bytes of `unwritten` that have been written already.
    write_offset: usize,
    /// Total of bytes written to the socket.
    bytes_written: u64,
    /// Whether the last write would have blocked.
    is_full: bool,
    /// When the server last gave a sign of life: received bytes, or room in a full socket buffer.
    last_received: Instant,
    /// When the socket last accepted bytes.
    last_written: Instant,
}

impl Socket {
    fn unparsed(&mut self) -> &mut [u8] {
        &mut self.read[self.parse_offset..]
    }

    /// Reads once. Returns false if that would block.
    fn read_once(&mut self) -> io::Result<bool> {
        self.parse_offset = 0;
        self.read.resize(READ_BYTES, 0);
        let read = loop {
            match self.stream.read(&mut self.read) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.read.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                self.last_received = Instant::now();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unwritten_bytes(&self) -> usize {
        self.unwritten.len() - self.write_offset
    }

    fn write_out(&mut self) -> io::Result<()> {
        while self.unwritten_bytes() > 0 {
            match self.stream.write(&self.unwritten[self.write_offset..]) {
                Ok(n) => {
                    self.write_offset += n;
                    self.bytes_written += n as u64;
                    self.last_written = Instant::now();
                    // Room after a full socket buffer proves that the server reads, although its pong may be queued
                    // behind that.
                    if std::mem::take(&mut self.is_full) {
                        self.last_received = Instant::now();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // The socket may have accepted a part of a TLS record.
                    if self.stream.take_progress() {
                        self.last_written = Instant::now();
                        if self.is_full {
                            self.last_received = Instant::now();
                        }
                    }
                    self.is_full = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if self.unwritten_bytes() == 0 {
            // TLS may have messages of its own to send, such as a KeyUpdate.
            match self.stream.flush() {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            self.unwritten.clear();
            self.unwritten.shrink_to(WRITE_BUFFER_KEPT);
            self.write_offset = 0;
        } else if self.write_offset >= WRITE_BUFFER_KEPT.max(self.unwritten.len() / 2) {
            self.unwritten.drain(..self.write_offset);
            self.write_offset = 0;
        }
        Ok(())
    }
}

/// A connection whose handshake is done. No method blocks.
pub(super) struct ClientConnection {
    socket: Socket,
    protocol: Connection,
    heartbeat: Option<Duration>,
    /// When the server was pinged because of its silence.
    ping_sent: Option<Instant>,
    /// Whether the server got one more period since it last gave a sign of life: see [`Self::excuses_once`].
    was_excused: bool,
    /// When the close frame was sent.
    close_sent: Option<Instant>,
    /// Whether a message or a pong has arrived.
    has_received: bool,
    /// Work done in this turn: see [`TURN_WORK_MAX`].
    turn_work: u32,
}

impl ClientConnection {
    pub(super) fn new(mut opened: OpenedConnection, heartbeat: Option<Duration>) -> Self {
        let protocol = Connection::new(MESSAGE_BYTES_MAX);
        let protocol = match opened.accepted.has_agreed_compression() {
            true => protocol.with_compression(),
            false => protocol,
        };
        Self {
            socket: Socket {
                stream: opened.stream,
                read: opened.accepted.take_rest(),
                parse_offset: 0,
                unwritten: Vec::new(),
                write_offset: 0,
                bytes_written: 0,
                is_full: false,
                last_received: Instant::now(),
                last_written: Instant::now(),
            },
            protocol,
            heartbeat,
            ping_sent: None,
            was_excused: false,
            close_sent: None,
            has_received: false,
            turn_work: 0,
        }
    }

    /// Begins a turn with a full receive budget.
    pub(super) const fn begin_turn(&mut self) {
        self.turn_work = 0;
    }

    /// Whether the receive budget is used up; there may be more to read.
    pub(super) const fn is_turn_used_up(&self) -> bool {
        self.turn_work >= TURN_WORK_MAX
    }

    /// The next message or pong, if one has arrived and the receive budget allows it. Answers pings.
    pub(super) fn read(&mut self) -> Result<Option<Event>, End> {
        while !self.is_turn_used_up() {
            self.turn_work += 1;
            let mut input = self.socket.unparsed();
            let event = self.protocol.receive(&mut input);
            let left = input.len();
            self.socket.parse_offset = self.socket.read.len() - left;
            match event {
                Ok(None) if self.socket.read_once().map_err(|error| lost(&error))? => {
                    self.turn_work += READ_WORK;
                }
                Ok(None) => return Ok(None),
                Ok(Some(Event::Ping(_))) => self.reply()?,
                Ok(Some(event @ Event::Close(..))) => {
                    // Sends the answer to the close frame, as far as possible.
                    let _ = self.reply();
                    let _ = self.write_out();
                    return Err(self.closed_by(&event));
                }
                Ok(Some(event)) => {
                    self.has_received = true;
                    return Ok(Some(event));
                }
                Err(error) => {
                    // Sends the close frame with the reason of the protocol violation, as far as possible.
                    let _ = self.reply();
                    let _ = self.write_out();
                    let why = format!("the server violates the WebSocket protocol: {error}");
                    return Err(End::failed(Failure::ProtocolViolation, why));
                }
            }
        }
        Ok(None)
    }

    fn closed_by(&self, close: &Event) -> End {
        let (code, reason) = match close {
            Event::Close(code, reason) => (*code, reason.as_str()),
            _ => (None, ""),
        };
        // With any other code both sides have closed at the same time, and the server may not have read everything.
        if self.close_sent.is_some() && code.is_none_or(|code| code == CloseCode::NORMAL) {
            return End::Done;
        }
        let code = code.map(CloseCode::get);
        let mut message = match code {
            Some(code) => format!("the server has closed the connection with {code}"),
            None => "the server has closed the connection without a code".to_owned(),
        };
        if !reason.is_empty() {
            message += &format!(" ({})", printable(reason));
        }
        let failure = Failure::Closed(code.unwrap_or(1005));
        End::failed_until(failure, message, close.retry_after())
    }

    /// Queues the pending pong or close frame. Pongs are deferred while the write buffer is long.
    fn reply(&mut self) -> Result<(), End> {
        if self.socket.unwritten_bytes() > REPLY_BACKLOG_MAX && !self.protocol.has_ended() {
            return Ok(());
        }
        let answered = self.protocol.answer(&mut self.socket.unwritten);
        answered.map_err(|error| End::failed(Failure::LocalError, error))
    }

    /// Queues a message. Returns the value of [`bytes_written`](Self::bytes_written) once it has been written.
    pub(super) fn send(&mut self, message: &Message) -> Result<u64, End> {
        let queued = self.protocol.send(message, &mut self.socket.unwritten);
        queued.map_err(|error| End::failed(Failure::LocalError, error))?;
        Ok(self.bytes_queued())
    }

    /// Queues a ping.
    pub(super) fn ping(&mut self, payload: &[u8]) -> Result<(), End> {
        let queued = self.protocol.ping(payload, &mut self.socket.unwritten);
        queued.map_err(|error| End::failed(Failure::LocalError, error))
    }

    /// Total of bytes queued so far, written or not.
    pub(super) fn bytes_queued(&self) -> u64 {
        self.socket.bytes_written + self.socket.unwritten_bytes() as u64
    }

    /// Total of bytes written to the socket.
    pub(super) const fn bytes_written(&self) -> u64 {
        self.socket.bytes_written
    }

    /// Bytes that are queued and not written.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.socket.unwritten_bytes()
    }

    /// Writes as much as the socket accepts.
    pub(super) fn write_out(&mut self) -> Result<(), End> {
        self.socket.write_out().map_err(|error| lost(&error))?;
        // Queues a pong that was deferred.
        if !self.protocol.has_ended() {
            self.reply()?;
            self.socket.write_out().map_err(|error| lost(&error))?;
        }
        Ok(())
    }

    /// With TLS, announces the end of the connection, so that the server can distinguish it from a cut.
    pub(super) fn announce_end(&mut self) {
        self.socket.stream.announce_end();
    }

    /// Queues a close frame with code 1000.
    pub(super) fn close(&mut self) -> Result<(), End> {
        self.close_sent = Some(Instant::now());
        let output = &mut self.socket.unwritten;
        let closed = self.protocol.close(CloseCode::NORMAL, "", output);
        closed.map_err(|error| End::failed(Failure::LocalError, error))
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.close_sent.is_some()
    }

    /// Whether a message or a pong has arrived.
    pub(super) const fn has_received(&self) -> bool {
        self.has_received
    }

    /// Fails if the server has not answered the close frame within `close_wait_max` of the last write, whatever else it
    /// sends.
    pub(super) fn check_close_timeout(&self, close_wait_max: Duration) -> Result<(), End> {
        match self.close_sent {
            Some(closed) if closed.max(self.socket.last_written).elapsed() >= close_wait_max => {
                Err(End::failed(Failure::Unresponsive, CLOSE_UNANSWERED))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the server gets one more period, because this process stood still when the deadline passed. If its
    /// whole machine did, the server may have done so, too.
    fn excuses_once(&mut self, deadline: Instant, now: Instant) -> bool {
        let stood_still = now >= deadline + STANDSTILL;
        stood_still && !std::mem::replace(&mut self.was_excused, true)
    }

    /// The deadline for the next sign of life: the answer to the close frame within `close_wait`, or to a heartbeat
    /// ping, which this sends when it is due.
    pub(super) fn deadline(&mut self, close_wait: Duration) -> Result<Option<Instant>, End> {
        let now = Instant::now();
        let last_received = self.socket.last_received;
        let silent = |why: &str| Err(End::failed(Failure::Unresponsive, why));
        if let Some(closed) = self.close_sent {
            let by = closed.max(last_received) + close_wait;
            if now < by {
                return Ok(Some(by));
            }
            if !self.excuses_once(by, now) {
                return silent(CLOSE_UNANSWERED);
            }
            self.close_sent = Some(now);
            return Ok(Some(now + close_wait));
        }
        let Some(heartbeat) = self.heartbeat else {
            return Ok(None);
        };
        if self
            .ping_sent
            .is_some_and(|ping_sent| last_received >= ping_sent)
        {
            self.ping_sent = None;
        }
        let pong_wait = PONG_WAIT.min(heartbeat);
        if let Some(ping_sent) = self.ping_sent {
            let by = ping_sent + pong_wait;
            if now < by {
                return Ok(Some(by));
            }
            if !self.excuses_once(by, now) {
                return silent("the server does not answer pings");
            }
        } else if now < last_received + heartbeat {
            return Ok(Some(last_received + heartbeat));
        } else {
            self.was_excused = false;
        }
        self.ping(HEARTBEAT)?;
        self.write_out()?;
        self.ping_sent = Some(now);
        Ok(Some(now + pong_wait))
    }
}

fn lost(error: &io::Error) -> End {
    // The error of a cut TLS stream has a text. The end of a TCP stream has none.
    let why = match error.kind() {
        ErrorKind::UnexpectedEof if error.get_ref().is_none() => {
            "the connection is lost".to_owned()
        }
        _ => format!("the connection is lost: {error}"),
    };
    End::failed(Failure::ConnectionLost, why)
}

const CLOSE_UNANSWERED: &str = "the server does not answer the close frame";

/// Text of the server, made safe to print: one short line without control characters.
fn printable(text: &str) -> String {
    let clean = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    clean.take(200).collect()
}
