//! The blocking API: a stream that the program reads and writes on its own thread.

#[cfg(feature = "deflate")]
mod compression;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
#[cfg(feature = "deflate")]
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use humphrey::stream::Stream;

#[cfg(feature = "deflate")]
pub(crate) use self::compression::RouteCompression;
#[cfg(feature = "deflate")]
use self::compression::StreamCompression;
use crate::error::WebsocketError;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::connection::{FrameReader, ProtocolEvent};
#[cfg(feature = "deflate")]
use crate::protocol::deflate::negotiate::Agreement;
use crate::protocol::encode::{self, Opcode};
use crate::protocol::error::Violation;
use crate::protocol::http::Head;
use crate::restion::Restion;
use crate::transport::suppress_sigpipe;

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// How long a dropped stream waits for the client to close, so that a reset does not destroy the close frame.
const LINGER: Duration = Duration::from_millis(500);

/// A blocking WebSocket stream, which [`websocket_handler`](crate::websocket_handler) passes to its handler.
///
/// Receiving also answers pings and checks the protocol. Messages are up to 16 MiB long. When the stream is dropped,
/// the client gets a close frame (RFC 6455 §5.5.1) with 1000, or with 1011 if the thread is panicking.
///
/// With [`Read`], one read takes one message, which is lost if it does not fit into the buffer. With [`Write`], one
/// write sends one message: text if it is valid UTF-8, else binary.
#[allow(missing_debug_implementations)] // Humphrey's `Stream` has none.
pub struct WebsocketStream {
    /// `Some` until the stream is taken apart.
    stream: Option<Stream>,
    protocol: FrameReader,
    /// Whether anything was ever read.
    has_read: bool,
    /// Messages that were read but not yet taken by the program.
    received: VecDeque<Message>,
    /// Bytes that the socket has not taken yet: the handshake response, control frames, and last a close frame.
    pending_out: Vec<u8>,
    /// The close frame that ends the connection. It is sent after the program has taken the messages before it, since it may reply
    /// to them.
    close_reply: Option<Vec<u8>>,
    /// Why nothing more can be received.
    ended: Option<StreamEnd>,
    /// Whether nothing more may be sent, because a close frame was sent or a write failed midway.
    closed: bool,
    /// The request of the handshake.
    head: Option<Box<Head>>,
    /// Whether the handshake response is at the front of `pending_out`, and no byte of it has been sent.
    handshake_pending: bool,
    /// Read when the stream was created, since the operating system forgets the address of a client that has gone.
    peer: Option<SocketAddr>,
    buffer: Vec<u8>,
    /// `None` if no compression was negotiated.
    #[cfg(feature = "deflate")]
    compression: Option<StreamCompression>,
}

#[derive(Debug, Clone, Copy)]
enum StreamEnd {
    Closed,
    Broken,
    Violation(Violation),
}

impl StreamEnd {
    fn error(self) -> WebsocketError {
        match self {
            Self::Closed => WebsocketError::ConnectionClosed,
            Self::Violation(Violation::ReservedOpcode) => WebsocketError::InvalidOpcode,
            Self::Broken | Self::Violation(_) => WebsocketError::ReadError,
        }
    }
}

/// The parts of a stream with which the engine continues.
pub(crate) struct StreamParts {
    pub(crate) socket: TcpStream,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) head: Option<Box<Head>>,
    /// Whether at least a part of the answer to the handshake has been sent.
    pub(crate) answered: bool,
    pub(crate) messages: Vec<Message>,
    /// `None` if nothing was ever read.
    pub(crate) protocol: Option<FrameReader>,
    /// Bytes to send before anything else.
    pub(crate) pending_out: Vec<u8>,
    /// Whether nothing more is received.
    pub(crate) ended: bool,
    /// The close frame that answers the end of receiving.
    pub(crate) close_reply: Option<Vec<u8>>,
    /// Whether nothing may be sent after `pending_out`.
    pub(crate) closed: bool,
    /// `None` if no compression was negotiated.
    #[cfg(feature = "deflate")]
    pub(crate) compression: Option<Agreement>,
}

impl WebsocketStream {
    /// Wraps a stream whose handshake is done.
    pub fn new(stream: Stream) -> Self {
        // If this fails, the client has reset the connection, and writes would raise SIGPIPE.
        let mut closed = false;
        #[allow(irrefutable_let_patterns)] // Humphrey's `tls` may be on.
        if let Stream::Tcp(socket) = &stream {
            closed = suppress_sigpipe(socket).is_err();
            // Otherwise the kernel may delay a message. The call fails only if the client has disconnected, which the
            // next read or write reports.
            let _ = socket.set_nodelay(true);
        }
        Self {
            peer: stream.peer_addr().ok(),
            stream: Some(stream),
            protocol: FrameReader::new(Limits::default().message_bytes_max),
            has_read: false,
            received: VecDeque::new(),
            pending_out: Vec::new(),
            close_reply: None,
            ended: None,
            closed,
            head: None,
            handshake_pending: false,
            buffer: Vec::new(),
            #[cfg(feature = "deflate")]
            compression: None,
        }
    }

    /// A stream whose handshake is still to be answered; the answer is sent before anything else.
    pub(crate) fn with_pending_handshake(stream: Stream, head: Head, answer: Vec<u8>) -> Self {
        let mut pending = Self::new(stream);
        pending.head = Some(Box::new(head));
        if !pending.closed {
            pending.pending_out = answer;
        }
        pending.handshake_pending = true;
        pending
    }

    /// Enables the compression that the handshake response agrees to.
    #[cfg(feature = "deflate")]
    pub(crate) fn with_compression(
        mut self,
        route: &Arc<RouteCompression>,
        agreement: Agreement,
    ) -> Self {
        self.protocol.accept_compressed();
        self.compression = Some(StreamCompression::new(route, agreement));
        self
    }

    /// Answers the handshake. Returns false if the client has disconnected.
    pub(crate) fn answer_handshake(&mut self) -> bool {
        let pending_out = std::mem::take(&mut self.pending_out);
        self.handshake_pending = false;
        self.closed = self.closed || self.inner().write_all(&pending_out).is_err();
        !self.closed
    }

    /// Waits for the next message and returns it. Answers the pings that arrive before it.
    ///
    /// # Errors
    ///
    /// [`ConnectionClosed`](WebsocketError::ConnectionClosed) once the client has closed, with a close frame or by
    /// ending its stream. [`InvalidOpcode`](WebsocketError::InvalidOpcode) or [`ReadError`](WebsocketError::ReadError)
    /// if the client broke the protocol, in which case it got a close frame, or if the connection broke. If the inner
    /// stream has a timeout, `ReadError` may also mean that it has expired; the stream can still be used then.
    pub fn recv(&mut self) -> Result<Message, WebsocketError> {
        loop {
            if let Some(message) = self.received.pop_front() {
                return Ok(message);
            }
            self.send_close_reply();
            if let Some(end) = self.ended {
                return Err(end.error());
            }
            self.flush_pending();
            self.read_once().map_err(|_| WebsocketError::ReadError)?;
        }
    }

    /// Returns the next message if it has arrived in full, and `None` otherwise. Never waits.
    ///
    /// Errors are those of [`recv`](Self::recv).
    pub fn recv_nonblocking(&mut self) -> Restion<Message, WebsocketError> {
        if self.received.is_empty() && (self.ended.is_none() || self.close_reply.is_some()) {
            if self.inner().set_nonblocking().is_err() {
                return Restion::Err(WebsocketError::ReadError);
            }
            self.flush_pending();
            let outcome = loop {
                if !self.received.is_empty() || self.ended.is_some() {
                    break Ok(());
                }
                if let Err(error) = self.read_once() {
                    break Err(error);
                }
            };
            self.send_close_reply();
            if self.inner().set_blocking().is_err() {
                self.ended = Some(StreamEnd::Broken);
            }
            match outcome {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Restion::None,
                Err(_) if self.received.is_empty() && self.ended.is_none() => {
                    return Restion::Err(WebsocketError::ReadError);
                }
                _ => {}
            }
        }
        match (self.received.pop_front(), self.ended) {
            (Some(message), _) => Restion::Ok(message),
            (None, Some(end)) => Restion::Err(end.error()),
            (None, None) => Restion::None,
        }
    }

    /// Reads once and processes the bytes. The error is that of the read; the end of the stream is recorded in `ended`.
    fn read_once(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        let outcome = match self.inner().read(&mut buffer) {
            Ok(0) => {
                self.ended = Some(StreamEnd::Closed);
                Ok(())
            }
            Ok(n) => {
                self.has_read = true;
                self.receive(&mut buffer[..n]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(error)
            }
            Err(error) if is_end(&error) => {
                self.ended = Some(StreamEnd::Closed);
                self.break_off();
                Ok(())
            }
            Err(_) => {
                self.ended = Some(StreamEnd::Broken);
                self.break_off();
                Ok(())
            }
        };
        self.buffer = buffer;
        outcome
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        let mut input = bytes;
        loop {
            match self.protocol.receive(&mut input) {
                Ok(None) => return,
                Ok(Some(ProtocolEvent::Message { text, payload })) => {
                    self.received
                        .push_back(Message::from_payload(payload, text));
                }
                // This event occurs only if compression was negotiated.
                #[cfg(feature = "deflate")]
                Ok(Some(ProtocolEvent::Compressed { text, payload })) => {
                    let Some(compression) = &self.compression else {
                        debug_assert!(false, "compression was not negotiated");
                        return;
                    };
                    match compression.inflate(&payload, text) {
                        Ok(message) => self.received.push_back(message),
                        Err(violation) => {
                            self.end_with(violation);
                            return;
                        }
                    }
                }
                #[cfg(not(feature = "deflate"))]
                Ok(Some(ProtocolEvent::Compressed { .. })) => {
                    debug_assert!(false, "compression was not negotiated");
                }
                Ok(Some(ProtocolEvent::Ping(payload))) if !self.closed => {
                    // RFC 6455 §5.5.3: only the latest ping needs a pong.
                    if self.pending_out.len() >= READ_BYTES {
                        self.flush_pending();
                    }
                    if self.pending_out.len() < READ_BYTES {
                        self.pending_out
                            .extend(encode::control(Opcode::Pong, &payload));
                    }
                    self.flush_pending();
                }
                Ok(Some(ProtocolEvent::Ping(_) | ProtocolEvent::Pong(_))) => {}
                Ok(Some(ProtocolEvent::Close(frame))) => {
                    self.end(
                        StreamEnd::Closed,
                        encode::close(frame.code.map(|code| (code, ""))),
                    );
                    return;
                }
                Err(violation) => {
                    self.end_with(violation);
                    return;
                }
            }
        }
    }

    /// Ends receiving after a violation of the protocol by the client.
    fn end_with(&mut self, violation: Violation) {
        let reason = violation.to_string();
        let frame = encode::close(Some((violation.close_code(), &reason)));
        self.end(StreamEnd::Violation(violation), frame);
    }

    /// Ends receiving, and schedules the close frame, the last frame to be sent.
    fn end(&mut self, end: StreamEnd, close_frame: Vec<u8>) {
        self.ended = Some(end);
        if !self.closed {
            self.close_reply = Some(close_frame);
        }
    }

    /// Sends the pending close frame, once the program has taken all messages before it.
    fn send_close_reply(&mut self) {
        if !self.received.is_empty() {
            return;
        }
        if let Some(close_frame) = self.close_reply.take() {
            self.pending_out.extend(close_frame);
            self.flush_pending();
            self.closed = true;
        }
    }

    /// Marks the connection as broken.
    fn break_off(&mut self) {
        self.closed = true;
        self.pending_out.clear();
    }

    /// Sends pending bytes, as far as the socket takes them.
    fn flush_pending(&mut self) {
        while !self.pending_out.is_empty() {
            let pending_out = std::mem::take(&mut self.pending_out);
            let outcome = self.inner().write(&pending_out);
            self.pending_out = pending_out;
            match outcome {
                Ok(n) => {
                    self.handshake_pending &= n == 0;
                    self.pending_out.drain(..n);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return;
                }
                Err(_) => self.break_off(),
            }
        }
    }

    /// Sends a message, and waits until the socket has accepted it. On a route with compression
    /// (`websocket_handler_with_compression`, feature `deflate`), long messages are compressed if the client has
    /// negotiated it.
    ///
    /// # Errors
    ///
    /// [`ConnectionClosed`](WebsocketError::ConnectionClosed) once either side has closed;
    /// [`WriteError`](WebsocketError::WriteError) if writing fails, after which nothing more can be sent.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), WebsocketError> {
        let message = message.into();
        #[cfg(feature = "deflate")]
        if !self.closed
            && let Some(compression) = &self.compression
            && let Some(frame) = compression.compress(&message)
        {
            return self.send_frame(&frame);
        }
        self.send_frame(message.frame())
    }

    /// Sends a ping (RFC 6455 §5.5.2). Its pong is processed while messages are received.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send).
    pub fn ping(&mut self) -> Result<(), WebsocketError> {
        self.send_frame(&encode::control(Opcode::Ping, &[]))
    }

    /// Closes the connection with a code (RFC 6455 §7.1.2). The reason is cut to 123 bytes. Does nothing if either side
    /// has closed already.
    ///
    /// The close frame is sent without waiting for a client that does not read; then the stream waits up to half a
    /// second for the client to close. A stream that is dropped closes with 1000.
    ///
    /// ```
    /// use humphrey_ws::{CloseCode, websocket_handler};
    ///
    /// let app: humphrey::App<()> = humphrey::App::new().with_websocket_route(
    ///     "/",
    ///     websocket_handler(|mut stream, _| match stream.recv() {
    ///         Ok(message) if message.is_text() => drop(stream.send(message)),
    ///         _ => stream.close(CloseCode::UNSUPPORTED_DATA, "text only"),
    ///     }),
    /// );
    /// ```
    pub fn close(mut self, code: CloseCode, reason: &str) {
        self.send_close(code, reason);
    }

    fn send_frame(&mut self, frame: &[u8]) -> Result<(), WebsocketError> {
        if self.closed {
            return Err(WebsocketError::ConnectionClosed);
        }
        let pending_out = std::mem::take(&mut self.pending_out);
        self.handshake_pending = false;
        let outcome = self
            .inner()
            .write_all(&pending_out)
            .and_then(|()| self.inner().write_all(frame))
            .and_then(|()| self.inner().flush());
        if outcome.is_err() {
            // Part of a frame may have been sent, and the client would read further bytes as the rest of it.
            self.closed = true;
            return Err(WebsocketError::WriteError);
        }
        Ok(())
    }

    /// Returns the address of the client, or of a proxy in front.
    ///
    /// # Errors
    ///
    /// If the operating system no longer knows it.
    pub fn peer_addr(&self) -> Result<SocketAddr, io::Error> {
        match &self.stream {
            Some(stream) => stream.peer_addr(),
            None => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Returns the underlying stream. Bytes that are read from it or written to it directly bypass framing and break
    /// the connection.
    pub fn inner(&mut self) -> &mut Stream {
        // Only methods that consume the stream take it out.
        self.stream
            .as_mut()
            .expect("the stream is there until it is taken apart")
    }

    /// Returns the number of received messages that the program has not taken.
    pub(crate) fn unread_messages(&self) -> usize {
        self.received.len()
    }

    /// Takes the stream apart, even if it has ended, since it may hold messages. Fails if it is not plain TCP.
    pub(crate) fn into_parts(mut self) -> Result<StreamParts, Box<Self>> {
        match self.stream.take() {
            Some(Stream::Tcp(socket)) => {
                let protocol = std::mem::replace(&mut self.protocol, FrameReader::new(0));
                Ok(StreamParts {
                    socket,
                    head: self.head.take(),
                    answered: !self.handshake_pending,
                    peer: self.peer,
                    messages: std::mem::take(&mut self.received).into(),
                    protocol: self.has_read.then_some(protocol),
                    pending_out: std::mem::take(&mut self.pending_out),
                    ended: self.ended.is_some(),
                    close_reply: self.close_reply.take(),
                    closed: self.closed,
                    #[cfg(feature = "deflate")]
                    compression: self.compression.take().map(|agreed| agreed.agreement()),
                })
            }
            #[allow(unreachable_patterns)] // Humphrey's `tls` may be on.
            stream => {
                self.stream = stream;
                Err(Box::new(self))
            }
        }
    }

    /// Closes with 1001, since the app that was to serve the client has stopped.
    pub(crate) fn close_going_away(mut self) {
        self.send_close(CloseCode::GOING_AWAY, "server is shutting down");
    }

    /// Closes because the connection can't be served.
    pub(crate) fn refuse(mut self, reason: &str) {
        self.send_close(CloseCode::INTERNAL_ERROR, reason);
    }

    /// Sends a close frame without waiting for a client that does not read, and waits briefly for the client to close.
    fn send_close(&mut self, code: CloseCode, reason: &str) {
        let client_may_go_on = match self.ended {
            None => !self.closed,
            Some(end) => matches!(end, StreamEnd::Violation(_)),
        };
        if self.stream.is_none()
            || (self.closed && self.pending_out.is_empty() && !client_may_go_on)
        {
            return;
        }
        if !self.closed {
            let close_reply = self.close_reply.take();
            self.pending_out
                .extend(close_reply.unwrap_or_else(|| encode::close(Some((code, reason)))));
            self.closed = true;
        }
        if self.inner().set_nonblocking().is_err() {
            return;
        }
        self.flush_pending();
        let Some(Stream::Tcp(socket)) = &mut self.stream else {
            return;
        };
        let _ = socket.shutdown(Shutdown::Write);
        if !client_may_go_on || socket.set_nonblocking(false).is_err() {
            return;
        }
        // Bytes that arrive after a socket is closed make the kernel reset it, and the close frame may be lost.
        let until = Instant::now() + LINGER;
        let mut rest = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match socket.read(&mut rest) {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
    }
}

/// Whether the peer has gone, which a reader treats as the end of the stream.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
    )
}

impl Read for WebsocketStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.recv() {
            Ok(message) => {
                let payload = message.bytes();
                match buf.get_mut(..payload.len()) {
                    Some(target) => {
                        target.copy_from_slice(payload);
                        Ok(payload.len())
                    }
                    None => {
                        // The message is lost, as in 0.5.1. If it were kept, a loop that continues after errors would
                        // spin.
                        Err(io::Error::other(format!(
                            "the message of {1} bytes does not fit into the buffer of {0} and is lost",
                            buf.len(),
                            payload.len()
                        )))
                    }
                }
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Write for WebsocketStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.send(Message::new(buf)) {
            Ok(()) => Ok(buf.len()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for WebsocketStream {
    fn drop(&mut self) {
        if thread::panicking() {
            self.send_close(CloseCode::INTERNAL_ERROR, "internal error");
        } else {
            self.send_close(CloseCode::NORMAL, "");
        }
    }
}

impl Message {
    /// Receives the next message from a stream, as [`WebsocketStream::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`WebsocketStream::recv`].
    pub fn from_stream(stream: &mut WebsocketStream) -> Result<Self, WebsocketError> {
        stream.recv()
    }

    /// Receives the next message from a stream if it has arrived, as [`WebsocketStream::recv_nonblocking`] does.
    pub fn from_stream_nonblocking(stream: &mut WebsocketStream) -> Restion<Self, WebsocketError> {
        stream.recv_nonblocking()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn dropped_stream_sends_the_rest_of_its_close_reply() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut stream = WebsocketStream::new(Stream::Tcp(listener.accept().unwrap().0));
        // As `recv_nonblocking` leaves it; how much a socket takes can't be told it.
        stream.ended = Some(StreamEnd::Closed);
        stream.closed = true;
        stream.pending_out = encode::close(Some((CloseCode::NORMAL, ""))).split_off(1);
        drop(stream);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [0x02, 0x03, 0xe8]);
    }
}
