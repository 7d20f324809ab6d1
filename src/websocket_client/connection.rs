//! The client's side of a connection, without I/O (RFC 6455 §5 to §7).

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use super::random::MaskingKeys;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::{self, CloseCode};
use crate::protocol::close_frame::CloseFrame;
#[cfg(feature = "deflate")]
use crate::protocol::connection::MessagePayload;
use crate::protocol::connection::{self, ProtocolEvent};
#[cfg(feature = "deflate")]
use crate::protocol::deflate::inflate::{Inflated, Inflater, Inflation, Takeover, honest_work_max};
use crate::protocol::encode::{self, CONTROL_BYTES_MAX, Opcode};
use crate::protocol::error::Violation;
use crate::protocol::role;

/// The client's side of a WebSocket after the handshake. It does no I/O.
///
/// It converts bytes from the server into events, and messages into bytes for the server.
///
/// ```
/// use humphrey_ws::Message;
/// use humphrey_ws::websocket_client::{Connection, Event};
///
/// let mut connection = Connection::new(1 << 20);
/// // The server sends a text message.
/// let mut bytes = *b"\x81\x02hi";
/// let mut input = &mut bytes[..];
/// let event = connection.receive(&mut input)?;
/// assert!(matches!(event, Some(Event::Message(message)) if message.text() == Some("hi")));
/// assert_eq!(connection.receive(&mut input)?, None);
///
/// // Output is appended to a buffer of the caller.
/// let mut out = Vec::new();
/// connection.send(&Message::new("hello"), &mut out)?;
/// assert_eq!(out.len(), 2 + 4 + 5, "a header, a masking key, and the payload");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Connection {
    protocol: connection::FrameReader<role::ClientRole>,
    keys: MaskingKeys,
    /// The pong for the latest ping. Earlier pings need none (RFC 6455 §5.5.3).
    pong: Option<Vec<u8>>,
    /// The payload of the close frame that is due, after a close frame or a violation of the server.
    close: Option<Vec<u8>>,
    /// Whether a close frame was sent. Nothing may follow it (RFC 6455 §5.5.1).
    has_closed: bool,
    /// Whether receiving has ended, by a close frame or a violation of the server.
    has_ended: bool,
    #[cfg(feature = "deflate")]
    message_bytes_max: usize,
    /// Set if compression was agreed.
    #[cfg(feature = "deflate")]
    inflater: Option<Box<Inflater>>,
}

/// A complete message or control frame of the server.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// A ping, with its payload of up to 125 bytes. [`Connection::answer`] answers it.
    Ping(Vec<u8>),
    /// A pong, with its payload of up to 125 bytes.
    Pong(Vec<u8>),
    /// A close frame, with its code if it has one, and its reason. No event follows it. [`Connection::answer`] answers it.
    Close(Option<CloseCode>, String),
}

impl Event {
    /// How long the server asks its client to wait before it reconnects, if this is the close frame of a server that restarts
    /// (code 1012) with a reason such as `retry-after=1.500`, in seconds: see
    /// [`AsyncSender::shutdown_over`](crate::AsyncSender::shutdown_over).
    ///
    /// ```
    /// use humphrey_ws::{CloseCode, websocket_client::Event};
    /// use std::time::Duration;
    ///
    /// let reason = "server is restarting, retry-after=1.500".to_owned();
    /// let close = Event::Close(Some(CloseCode::SERVICE_RESTART), reason);
    /// assert_eq!(close.retry_after(), Some(Duration::from_millis(1_500)));
    /// ```
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Close(code, reason) => close::retry_after(*code, reason),
            _ => None,
        }
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Message(a), Self::Message(b)) => {
                (a.is_text(), a.bytes()) == (b.is_text(), b.bytes())
            }
            (Self::Ping(a), Self::Ping(b)) | (Self::Pong(a), Self::Pong(b)) => a == b,
            (Self::Close(a, b), Self::Close(c, d)) => (a, b) == (c, d),
            _ => false,
        }
    }
}

/// A violation of RFC 6455 by the server. It ends the connection; [`Connection::answer`] writes the matching close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolError(Violation);

impl ProtocolError {
    /// The close code of the violation (RFC 6455 §7.4.1): 1007 for text that is not UTF-8, 1009 for a message over the
    /// limit, and 1002 for any other.
    pub const fn close_code(self) -> CloseCode {
        self.0.close_code()
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ProtocolError {}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The masking keys are left out, because they must stay unpredictable.
        f.debug_struct("Connection")
            .field("has_closed", &self.has_closed)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

impl Default for Connection {
    /// Creates a connection with the default of [`Limits::message_bytes_max`], 16 MiB.
    fn default() -> Self {
        Self::new(Limits::default().message_bytes_max)
    }
}

impl Connection {
    /// Creates a connection that has received nothing yet. A message of more than `message_bytes_max` bytes ends it
    /// with 1009.
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            protocol: connection::FrameReader::in_role(message_bytes_max),
            keys: MaskingKeys::new(),
            pong: None,
            close: None,
            has_closed: false,
            has_ended: false,
            #[cfg(feature = "deflate")]
            message_bytes_max,
            #[cfg(feature = "deflate")]
            inflater: None,
        }
    }

    /// Accepts compressed messages, if the handshake agreed on that (RFC 7692). The connection never compresses its own
    /// messages.
    #[cfg(feature = "deflate")]
    pub fn with_compression(mut self) -> Self {
        self.protocol.accept_compressed();
        self.inflater = Some(Box::new(Inflater::new(Takeover::Yes)));
        self
    }

    /// Inflates a message.
    #[cfg(feature = "deflate")]
    fn inflate(&mut self, payload: &[u8], text: bool) -> Result<Message, Violation> {
        let Some(inflater) = &mut self.inflater else {
            return Err(Violation::ReservedBits);
        };
        let bytes_max = self.message_bytes_max;
        let mut allowance = honest_work_max(payload.len(), bytes_max);
        let mut inflation = Inflation::default();
        match inflation.advance(inflater, payload, text, bytes_max, &mut allowance)? {
            Inflated::Whole(whole) => {
                let payload = MessagePayload::Assembled(whole);
                Ok(Message::from_payload(payload, text))
            }
            // Empty blocks cost time without producing output, so a flood of them counts as an attack.
            Inflated::Part => Err(Violation::InvalidDeflate),
        }
    }

    /// Refuses a compressed message, because the server may not send one without the feature `deflate`.
    #[cfg(not(feature = "deflate"))]
    fn inflate(&mut self, _: &[u8], _: bool) -> Result<Message, Violation> {
        Err(Violation::ReservedBits)
    }

    /// Consumes bytes from the front of `input` until one event is complete. Returns `None` once `input` is empty.
    ///
    /// After a close frame or an error it discards all input. [`answer`](Self::answer) replies to pings and to the server's
    /// close frame.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`] if the server violates RFC 6455. All events before the violation have been returned.
    pub fn receive(&mut self, input: &mut &mut [u8]) -> Result<Option<Event>, ProtocolError> {
        let received = match self.protocol.receive(input) {
            Ok(Some(ProtocolEvent::Compressed { text, payload })) => self
                .inflate(payload.bytes(), text)
                .map(|message| Some(Event::Message(message))),
            Ok(received) => Ok(received.map(|received| self.event(received))),
            Err(violation) => Err(violation),
        };
        match received {
            Ok(event) => Ok(event),
            Err(violation) => {
                let reason = (violation.close_code(), violation.reason());
                self.end(encode::close_payload(Some(reason)));
                Err(ProtocolError(violation))
            }
        }
    }

    fn event(&mut self, received: ProtocolEvent<'_>) -> Event {
        match received {
            // Compressed messages were inflated above.
            ProtocolEvent::Compressed { text, payload }
            | ProtocolEvent::Message { text, payload } => {
                Event::Message(Message::from_payload(payload, text))
            }
            ProtocolEvent::Ping(payload) => {
                self.pong = Some(payload.to_vec());
                Event::Ping(payload.to_vec())
            }
            ProtocolEvent::Pong(payload) => Event::Pong(payload.to_vec()),
            ProtocolEvent::Close(CloseFrame { code, reason }) => {
                // RFC 6455 §5.5.1: the reply typically echoes the code.
                self.end(encode::close_payload(code.map(|code| (code, ""))));
                Event::Close(code, reason)
            }
        }
    }

    fn end(&mut self, close_payload: Vec<u8>) {
        self.has_ended = true;
        self.pong = None;
        self.close = Some(close_payload);
    }

    /// Appends the reply that received frames require: a pong for the latest ping, or the final close frame. A caller whose
    /// buffer is full may call it later. Only the latest ping is answered then.
    ///
    /// # Errors
    ///
    /// The error of the operating system's random source.
    pub fn answer(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let (pong, close) = (self.pong.take(), self.close.take());
        if self.has_closed {
            return Ok(());
        }
        if let Some(payload) = pong {
            self.push(Opcode::Pong, &payload, out)?;
        }
        if let Some(payload) = close {
            self.has_closed = true;
            self.push(Opcode::Close, &payload, out)?;
        }
        Ok(())
    }

    /// Appends a message.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected) if either side has closed the WebSocket. Any other error comes from the
    /// operating system's random source.
    pub fn send(&mut self, message: &Message, out: &mut Vec<u8>) -> io::Result<()> {
        self.check_open()?;
        let opcode = if message.is_text() {
            Opcode::Text
        } else {
            Opcode::Binary
        };
        self.push(opcode, message.bytes(), out)
    }

    /// Appends a ping (RFC 6455 §5.5.2). Truncates the payload to 125 bytes.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send).
    pub fn ping(&mut self, payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.check_open()?;
        let payload = payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload);
        self.push(Opcode::Ping, payload, out)
    }

    /// Appends a close frame, after which nothing more can be sent. Messages that the server sends before its reply are still
    /// received. Truncates the reason to [`REASON_BYTES_MAX`](crate::REASON_BYTES_MAX). Does nothing if a close frame was
    /// already sent.
    ///
    /// # Errors
    ///
    /// The error of the operating system's random source.
    pub fn close(&mut self, code: CloseCode, reason: &str, out: &mut Vec<u8>) -> io::Result<()> {
        if self.has_ended {
            // The pending close frame closes the WebSocket as well.
            return self.answer(out);
        }
        if self.has_closed {
            return Ok(());
        }
        self.has_closed = true;
        self.push(
            Opcode::Close,
            &encode::close_payload(Some((code, reason))),
            out,
        )
    }

    /// Returns whether a close frame was sent.
    pub const fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// Returns whether receiving has ended, by a close frame or a violation of the server.
    pub const fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn check_open(&self) -> io::Result<()> {
        if self.has_closed || self.has_ended {
            let why = "the WebSocket is closed";
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        Ok(())
    }

    fn push(&mut self, opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let key = self.keys.next()?;
        encode::masked(opcode, payload, key, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fuzz::reference::{self, Heard, TranscriptEnd};

    /// Parses these bytes as a server.
    fn read(bytes: &[u8]) -> (Vec<Heard>, TranscriptEnd) {
        let transcript = reference::read(bytes, usize::MAX);
        (transcript.heard, transcript.end)
    }

    fn receive(connection: &mut Connection, bytes: &[u8]) -> Vec<Result<Event, ProtocolError>> {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        let mut events = Vec::new();
        loop {
            match connection.receive(&mut input) {
                Ok(None) => return events,
                Ok(Some(event)) => events.push(Ok(event)),
                Err(error) => events.push(Err(error)),
            }
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn flood_of_empty_final_blocks_ends_the_connection() {
        let frame = |payload: &[u8]| {
            let mut frame = vec![0xC1, 127];
            frame.extend((payload.len() as u64).to_be_bytes());
            frame.extend_from_slice(payload);
            frame
        };
        // "Hello", then 100,000 empty final blocks.
        let mut flood = vec![0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        flood.extend([0x03, 0x00].repeat(100_000));
        let mut connection = Connection::default().with_compression();
        let events = receive(&mut connection, &frame(&flood));
        let error = events.into_iter().next().unwrap().unwrap_err();
        assert_eq!(error.close_code(), CloseCode::INVALID_PAYLOAD);
    }

    #[test]
    fn sent_frames_are_masked_and_readable_by_a_server() {
        let mut connection = Connection::default();
        let mut out = Vec::new();
        let messages = [Message::new("a"), Message::new_binary([0xff; 70_000])];
        for message in &messages {
            connection.send(message, &mut out).unwrap();
        }
        connection.ping(&[7; 200], &mut out).unwrap();
        connection
            .close(CloseCode::NORMAL, "bye", &mut out)
            .unwrap();
        let message = |text, payload: &[u8]| Heard::Message {
            text,
            payload: payload.to_vec(),
        };
        let expected = [
            message(true, b"a"),
            message(false, &[0xff; 70_000]),
            Heard::Ping(vec![7; 125]),
        ];
        assert_eq!(
            read(&out),
            (
                expected.into(),
                TranscriptEnd::Closed(Some(1000), "bye".into())
            )
        );
        let error = connection.send(&messages[0], &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn latest_ping_alone_is_answered_after_a_full_buffer() {
        let mut connection = Connection::default();
        let events = receive(&mut connection, b"\x89\x01a\x89\x01b");
        assert_eq!(
            events,
            [Ok(Event::Ping(b"a".into())), Ok(Event::Ping(b"b".into()))]
        );
        let mut out = Vec::new();
        connection.answer(&mut out).unwrap();
        connection.answer(&mut out).unwrap();
        assert_eq!(read(&out).0, [Heard::Pong(b"b".into())]);
    }

    #[test]
    fn server_close_is_answered_once_with_its_code() {
        for (frame, code) in [(&b"\x88\x02\x0f\xa1"[..], Some(4001)), (b"\x88\x00", None)] {
            let mut connection = Connection::default();
            receive(&mut connection, b"\x89\x00");
            let events = receive(&mut connection, frame);
            let given = code.map(|code| CloseCode::try_from(code).unwrap());
            assert_eq!(events, [Ok(Event::Close(given, String::new()))]);
            assert!(connection.has_ended() && !connection.has_closed());
            let mut out = Vec::new();
            assert!(connection.send(&Message::new("late"), &mut out).is_err());
            connection.close(CloseCode::NORMAL, "", &mut out).unwrap();
            connection.answer(&mut out).unwrap();
            assert_eq!(
                read(&out),
                (Vec::new(), TranscriptEnd::Closed(code, String::new()))
            );
            assert_eq!(receive(&mut connection, b"\x81\x01x"), []);
        }
    }

    #[test]
    fn messages_before_the_close_reply_are_received() {
        let mut connection = Connection::default();
        let mut out = Vec::new();
        connection.close(CloseCode::NORMAL, "", &mut out).unwrap();
        let sent = out.len();
        let events = receive(&mut connection, b"\x89\x00\x81\x01x\x88\x02\x03\xe8");
        assert_eq!(events.len(), 3);
        connection.answer(&mut out).unwrap();
        assert_eq!(out.len(), sent, "nothing follows a close frame");
    }

    #[test]
    fn violation_by_the_server_is_answered_with_its_code() {
        for (frame, code) in [
            (&b"\x81\x81abcdx"[..], 1002),
            (b"\x81\x01\xff", 1007),
            (b"\x82\x7e\x01\x00", 1009),
            (b"\xc1\x00", 1002),
        ] {
            let mut connection = Connection::new(255);
            let events = receive(&mut connection, &[b"\x81\x02ok", frame].concat());
            assert_eq!(events[0], Ok(Event::Message(Message::new("ok"))));
            assert_eq!(events[1].clone().unwrap_err().close_code().get(), code);
            assert_eq!(events.len(), 2);
            let mut out = Vec::new();
            connection.answer(&mut out).unwrap();
            let (heard, TranscriptEnd::Closed(told, reason)) = read(&out) else {
                panic!("no close");
            };
            assert_eq!((heard.len(), told), (0, Some(code)));
            assert!(!reason.is_empty());
        }
    }
}
