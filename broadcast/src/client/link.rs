//! A connection: messages in and out, without ever waiting.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use humphrey_ws::websocket_client::{Connection, Event};
use humphrey_ws::{CloseCode, Message};
use mio::net::TcpStream;

use super::dial::Opened;
use super::end::End;
use super::failures::Failure;

/// Longest message that is taken, in bytes. Four times what a humphrey-broadcast sends.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Read from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// Where so much waits to be written, a ping is answered later: then the latest one only.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What has been written is cut off once it is so much.
const WRITTEN_BYTES_KEPT: usize = 256 << 10;

/// How long a silent server may take to answer a ping.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// How much is read before something else has its turn: an event counts once, and a read from the socket, which may end in the
/// middle of a message, four times. Pings count, too: a server can send them, or empty fragments, faster than they are read.
const TURN_WORK_MAX: u32 = 256;
const READ_WORK: u32 = 4;

/// The answer to such a ping says nothing.
const HEARTBEAT: &[u8] = b"heartbeat";

/// The socket, and what it has not taken yet: so it is known which frames have left, to the byte.
struct Wire {
    stream: TcpStream,
    /// What was read; `begin..end` of it is not used yet.
    read: Vec<u8>,
    read_begin: usize,
    unwritten: Vec<u8>,
    /// So much of that has left already.
    begin: usize,
    /// Bytes that have left, in all.
    written: u64,
    /// The socket has taken no more, last time.
    is_full: bool,
    /// When there was a sign of the server.
    heard: Instant,
    /// When the socket last took something.
    moved: Instant,
}

impl Wire {
    fn unread(&mut self) -> &mut [u8] {
        &mut self.read[self.read_begin..]
    }

    /// Reads once. False: there is nothing now.
    fn read_in(&mut self) -> io::Result<bool> {
        self.read_begin = 0;
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
                self.heard = Instant::now();
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn unwritten_bytes(&self) -> usize {
        self.unwritten.len() - self.begin
    }

    fn write_out(&mut self) -> io::Result<()> {
        while self.unwritten_bytes() > 0 {
            match self.stream.write(&self.unwritten[self.begin..]) {
                Ok(n) => {
                    self.begin += n;
                    self.written += n as u64;
                    self.moved = Instant::now();
                    // What has made room again was taken by a server that is there, though slow: its pong lies behind.
                    if std::mem::take(&mut self.is_full) {
                        self.heard = Instant::now();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_full = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if self.unwritten_bytes() == 0 {
            self.unwritten.clear();
            self.unwritten.shrink_to(WRITTEN_BYTES_KEPT);
            self.begin = 0;
        } else if self.begin >= WRITTEN_BYTES_KEPT.max(self.unwritten.len() / 2) {
            self.unwritten.drain(..self.begin);
            self.begin = 0;
        }
        Ok(())
    }
}

pub(super) struct Link {
    wire: Wire,
    connection: Connection,
    heartbeat: Option<Duration>,
    /// When a silent server was pinged.
    pinged: Option<Instant>,
    /// When it was told that this is the end.
    closed: Option<Instant>,
    /// The server has sent a message or a pong: the connection works.
    has_received: bool,
    /// What was read in this turn: see [`TURN_WORK_MAX`].
    work: u32,
}

impl Link {
    pub(super) fn new(mut opened: Opened, heartbeat: Option<Duration>) -> Self {
        Self {
            wire: Wire {
                stream: opened.stream,
                read: opened.accepted.take_rest(),
                read_begin: 0,
                unwritten: Vec::new(),
                begin: 0,
                written: 0,
                is_full: false,
                heard: Instant::now(),
                moved: Instant::now(),
            },
            connection: Connection::new(MESSAGE_BYTES_MAX),
            heartbeat,
            pinged: None,
            closed: None,
            has_received: false,
            work: 0,
        }
    }

    /// Something else had its turn: so much can be read again.
    pub(super) const fn begin_turn(&mut self) {
        self.work = 0;
    }

    /// Enough was read in this turn; there may be more.
    pub(super) const fn has_had_its_turn(&self) -> bool {
        self.work >= TURN_WORK_MAX
    }

    /// The next message or pong, if there is one, and if it still has its turn; pings are answered.
    pub(super) fn read(&mut self) -> Result<Option<Event>, End> {
        while !self.has_had_its_turn() {
            self.work += 1;
            let mut input = self.wire.unread();
            let event = self.connection.receive(&mut input);
            let left = input.len();
            self.wire.read_begin = self.wire.read.len() - left;
            match event {
                Ok(None) if self.wire.read_in().map_err(|error| lost(&error))? => {
                    self.work += READ_WORK;
                }
                Ok(None) => return Ok(None),
                Ok(Some(Event::Ping(_))) => self.answer()?,
                Ok(Some(Event::Close(code, reason))) => {
                    // Its answer is on its way out.
                    let _ = self.answer();
                    let _ = self.write_out();
                    return Err(self.closed_by(code, &reason));
                }
                Ok(Some(event)) => {
                    self.has_received = true;
                    return Ok(Some(event));
                }
                Err(error) => {
                    // Why it is over is the server's fault: it is told, if it listens.
                    let _ = self.answer();
                    let _ = self.write_out();
                    let why = format!("the server is not understood: {error}");
                    return Err(End::failed(Failure::Broken, why));
                }
            }
        }
        Ok(None)
    }

    fn closed_by(&self, code: Option<CloseCode>, reason: &str) -> End {
        // Where the closes have crossed, the server has not got all that was sent.
        if self.closed.is_some() && code.is_none_or(|code| code == CloseCode::NORMAL) {
            return End::Done;
        }
        let code = code.map(CloseCode::get);
        let mut says = match code {
            Some(code) => format!("the server has closed the connection with {code}"),
            None => "the server has closed the connection without a code".to_owned(),
        };
        if !reason.is_empty() {
            says += &format!(" ({})", printable(reason));
        }
        End::failed(Failure::Closed(code.unwrap_or(1005)), says)
    }

    /// Answers what has come, unless so much waits to be written that it has to wait, too.
    fn answer(&mut self) -> Result<(), End> {
        if self.wire.unwritten_bytes() > ANSWER_BYTES_MAX && !self.connection.has_ended() {
            return Ok(());
        }
        let answered = self.connection.answer(&mut self.wire.unwritten);
        answered.map_err(|error| End::failed(Failure::System, error))
    }

    /// Takes a message to be sent. Returns how many bytes will have left, in all, when it has: see [`written`](Self::written).
    pub(super) fn send(&mut self, message: &Message) -> Result<u64, End> {
        let taken = self.connection.send(message, &mut self.wire.unwritten);
        taken.map_err(|error| End::failed(Failure::System, error))?;
        Ok(self.given())
    }

    /// Takes a ping to be sent.
    pub(super) fn ping(&mut self, payload: &[u8]) -> Result<(), End> {
        let taken = self.connection.ping(payload, &mut self.wire.unwritten);
        taken.map_err(|error| End::failed(Failure::System, error))
    }

    /// Bytes that were given to it to be sent, in all.
    pub(super) fn given(&self) -> u64 {
        self.wire.written + self.wire.unwritten_bytes() as u64
    }

    /// Bytes that have left this program, in all.
    pub(super) const fn written(&self) -> u64 {
        self.wire.written
    }

    /// Bytes that wait to leave.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.wire.unwritten_bytes()
    }

    /// Has the socket take what it can.
    pub(super) fn write_out(&mut self) -> Result<(), End> {
        self.wire.write_out().map_err(|error| lost(&error))?;
        // A ping that had to wait is answered once there is room.
        if !self.connection.has_ended() {
            self.answer()?;
            self.wire.write_out().map_err(|error| lost(&error))?;
        }
        Ok(())
    }

    /// Says that this is the end.
    pub(super) fn close(&mut self) -> Result<(), End> {
        self.closed = Some(Instant::now());
        let output = &mut self.wire.unwritten;
        let closed = self.connection.close(CloseCode::NORMAL, "", output);
        closed.map_err(|error| End::failed(Failure::System, error))
    }

    pub(super) const fn is_closing(&self) -> bool {
        self.closed.is_some()
    }

    /// Whether a message or a pong has come.
    pub(super) const fn has_received(&self) -> bool {
        self.has_received
    }

    /// Fails if the server has not answered the close for so long since all has left, whatever else it sends.
    pub(super) fn check_goodbye(&self, close_wait_max: Duration) -> Result<(), End> {
        match self.closed {
            Some(closed) if closed.max(self.wire.moved).elapsed() >= close_wait_max => {
                Err(End::failed(Failure::Silent, NO_GOODBYE))
            }
            _ => Ok(()),
        }
    }

    /// By when the server must be heard of: to answer the close within so long, or to show that it is there. Pings it where
    /// it is time to.
    pub(super) fn deadline(&mut self, close_wait: Duration) -> Result<Option<Instant>, End> {
        let now = Instant::now();
        let heard = self.wire.heard;
        let silent = |why: &str| Err(End::failed(Failure::Silent, why));
        if let Some(closed) = self.closed {
            let by = closed.max(heard) + close_wait;
            if now >= by {
                return silent(NO_GOODBYE);
            }
            return Ok(Some(by));
        }
        let Some(heartbeat) = self.heartbeat else {
            return Ok(None);
        };
        if self.pinged.is_some_and(|pinged| heard >= pinged) {
            self.pinged = None;
        }
        let pong_wait = PONG_WAIT.min(heartbeat);
        if let Some(pinged) = self.pinged {
            let by = pinged + pong_wait;
            if now >= by {
                return silent("the server is silent, and answers no ping");
            }
            return Ok(Some(by));
        }
        if now < heard + heartbeat {
            return Ok(Some(heard + heartbeat));
        }
        self.ping(HEARTBEAT)?;
        self.write_out()?;
        self.pinged = Some(now);
        Ok(Some(now + pong_wait))
    }
}

fn lost(error: &io::Error) -> End {
    // The words of an end without a goodbye are the system's only where it has some.
    let why = match error.kind() {
        ErrorKind::UnexpectedEof => "the connection is lost".to_owned(),
        _ => format!("the connection is lost: {error}"),
    };
    End::failed(Failure::Lost, why)
}

const NO_GOODBYE: &str = "the server does not answer the goodbye";

/// What somebody else says, fit to be said again: one line, without control characters, and short.
fn printable(text: &str) -> String {
    let clean = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    clean.take(200).collect()
}
