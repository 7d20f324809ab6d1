//! A connection: messages in and out, without ever waiting.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message, WebSocket};

use super::dial::Opened;
use super::handshake::printable;
use super::session::End;

/// Longest message that is taken, in bytes. Four times what a humphrey-broadcast sends.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Read from the socket at once.
const READ_BYTES: usize = 64 << 10;

/// What may wait to be written, beside the message that is being written: a server that pings without end and reads
/// nothing gets no further pongs.
const UNWRITTEN_BYTES_MAX: usize = (16 << 20) + (1 << 20);

/// What has been written is cut off once it is so much.
const WRITTEN_BYTES_KEPT: usize = 256 << 10;

/// How long a silent server may take to answer a ping.
const PONG_WAIT: Duration = Duration::from_secs(10);

/// The answer to such a ping says nothing.
const HEARTBEAT: &[u8] = b"heartbeat";

/// The socket, and what it has not taken yet. To tungstenite it takes everything at once, so that it is known which frames
/// have left, to the byte.
struct Wire {
    stream: TcpStream,
    unwritten: Vec<u8>,
    /// So much of that has left already.
    begin: usize,
    /// Bytes that have left, in all.
    written: u64,
    /// The socket has taken no more, last time.
    is_full: bool,
    /// When there was a sign of the server.
    heard: Instant,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.heard = Instant::now();
                    return Ok(n);
                }
                result => return result,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unwritten.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    fn unwritten_bytes(&self) -> usize {
        self.unwritten.len() - self.begin
    }

    fn write_out(&mut self) -> io::Result<()> {
        while self.unwritten_bytes() > 0 {
            match self.stream.write(&self.unwritten[self.begin..]) {
                Ok(n) => {
                    self.begin += n;
                    self.written += n as u64;
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
    socket: WebSocket<Wire>,
    heartbeat: Option<Duration>,
    /// When a silent server was pinged.
    pinged: Option<Instant>,
    /// When it was told that this is the end.
    closed: Option<Instant>,
}

impl Link {
    pub(super) fn new(opened: Opened, heartbeat: Option<Duration>) -> Self {
        let wire = Wire {
            stream: opened.stream,
            unwritten: Vec::new(),
            begin: 0,
            written: 0,
            is_full: false,
            heard: Instant::now(),
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Self {
            socket: WebSocket::from_partially_read(wire, opened.rest, Role::Client, Some(config)),
            heartbeat,
            pinged: None,
            closed: None,
        }
    }

    /// The next message, if there is one; pings are answered.
    pub(super) fn read(&mut self) -> Result<Option<Message>, End> {
        if self.unwritten_bytes() > UNWRITTEN_BYTES_MAX {
            return Err(End::Lost("the server sends, but reads nothing".into()));
        }
        match self.socket.read() {
            Ok(Message::Close(frame)) => {
                // Its answer is on its way out.
                let _ = self.socket.flush();
                let _ = self.write_out();
                let (code, reason) = match frame {
                    Some(frame) => (frame.code.into(), printable(&frame.reason)),
                    None => (CloseCode::Status.into(), String::new()),
                };
                // Where the closes have crossed, the server has not got all that was sent.
                let answers = [CloseCode::Normal, CloseCode::Status].map(u16::from);
                if self.closed.is_some() && answers.contains(&code) {
                    return Err(End::Done);
                }
                Err(End::Closed { code, reason })
            }
            Ok(message) => Ok(Some(message)),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Takes a message to be sent. Returns how many bytes will have left, in all, when it has: see [`written`](Self::written).
    pub(super) fn send(&mut self, message: Message) -> Result<u64, End> {
        let sent = self.socket.send(message);
        sent.map_err(|error| self.failed(error))?;
        let wire = self.socket.get_ref();
        Ok(wire.written + wire.unwritten_bytes() as u64)
    }

    /// Bytes that have left this program, in all.
    pub(super) fn written(&self) -> u64 {
        self.socket.get_ref().written
    }

    /// Bytes that wait to leave.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.socket.get_ref().unwritten_bytes()
    }

    /// Has the socket take what it can.
    pub(super) fn write_out(&mut self) -> Result<(), End> {
        let wire = self.socket.get_mut();
        wire.write_out().map_err(|error| lost(&error))
    }

    /// Says that this is the end.
    pub(super) fn close(&mut self) -> Result<(), End> {
        self.closed = Some(Instant::now());
        let frame = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let closed = self.socket.close(Some(frame));
        closed.map_err(|error| self.failed(error))
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closed.is_some()
    }

    /// By when the server must be heard of: to answer the close within so long, or to show that it is there. Pings it where
    /// it is time to.
    pub(super) fn deadline(&mut self, close_wait: Duration) -> Result<Option<Instant>, End> {
        let now = Instant::now();
        let heard = self.socket.get_ref().heard;
        if let Some(closed) = self.closed {
            let by = closed.max(heard) + close_wait;
            if now >= by {
                return Err(End::Lost("the server does not answer the goodbye".into()));
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
                return Err(End::Lost(
                    "the server is silent, and answers no ping".into(),
                ));
            }
            return Ok(Some(by));
        }
        if now < heard + heartbeat {
            return Ok(Some(heard + heartbeat));
        }
        self.send(Message::Ping(Bytes::from_static(HEARTBEAT)))?;
        self.write_out()?;
        self.pinged = Some(now);
        Ok(Some(now + pong_wait))
    }

    fn failed(&mut self, error: Error) -> End {
        let code = match &error {
            Error::Io(error) => return lost(error),
            Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                return End::Lost("the connection is lost".into());
            }
            Error::Capacity(_) => CloseCode::Size,
            Error::Utf8(_) => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        };
        // Why it is over is the server's fault: it is told, if it listens.
        let frame = CloseFrame {
            code,
            reason: "".into(),
        };
        let _ = self.socket.close(Some(frame));
        let _ = self.write_out();
        End::Lost(format!("the server is not understood: {error}"))
    }
}

fn lost(error: &io::Error) -> End {
    End::Lost(format!("the connection is lost: {error}"))
}
