//! A blocking client, which handles one connection on the caller's thread.

mod builder;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub use self::builder::ClientBuilder;
use super::connection::{Connection, Event};
use super::deadline::{is_timeout, left};
use super::error::ClientError;
use super::handshake::Accepted;
use super::transport::Transport;
use super::wire::Wire;
use crate::message::Message;
use crate::protocol::close::CloseCode;
#[cfg(feature = "__client-tls")]
use crate::tls_client::TlsError;

/// The size of the read buffer in bytes.
const READ_BYTES: usize = 16 << 10;

/// How long [`Client::close`] waits for the server's close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

fn failed(error: io::Error) -> ClientError {
    if is_timeout(&error) {
        return ClientError::TimedOut;
    }
    #[cfg(feature = "__client-tls")]
    if let Some(refused) = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<TlsError>())
    {
        // With TLS 1.3, a server can refuse the client's certificate only after the client's handshake is complete.
        return refused.clone().into();
    }
    ClientError::Lost(error)
}

/// A blocking WebSocket client, with the feature `client`. See [the module](super).
///
/// It answers pings during [`receive`](Self::receive). Dropping it ends the connection without a close frame. Call
/// [`close`](Self::close) first for a closing handshake (RFC 6455 §7.1.2), and with TLS for its close_notify (RFC 8446 §6.1).
///
/// Connections over TLS, to `wss://` URLs, have the same type `Client<TcpStream>`: TLS is a layer inside the client.
///
/// ```
/// use humphrey_ws::websocket_client::{Client, ClientError};
/// use humphrey_ws::{AsyncWebsocketApp, CloseCode};
///
/// let mut app = AsyncWebsocketApp::<()>::new()
///     .with_address("127.0.0.1:0")
///     .with_message_handler(|stream, message, _| stream.send(message));
/// let address = app.bind()?;
/// let server = app.start()?;
///
/// let mut client = Client::connect(&format!("ws://{address}/"))?;
/// client.send("hello")?;
/// assert_eq!(client.receive()?.text(), Some("hello"));
/// client.close(CloseCode::NORMAL, "")?;
/// # server.shutdown(std::time::Duration::from_secs(5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Client<S = TcpStream> {
    stream: Wire<S>,
    connection: Connection,
    /// Received bytes. `begin..end` is not yet parsed.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// Bytes to write.
    output: Vec<u8>,
    accepted: Accepted,
    /// Set once the connection has ended.
    over: Option<Over>,
    /// Whether writing has failed, after which nothing more is sent. Messages and the close frame from the server can still be
    /// read.
    is_unwritable: bool,
    /// A deadline for all reads.
    read_by: Option<Instant>,
}

/// The reason why a connection has ended.
#[derive(Debug, Clone)]
enum Over {
    Closed(Option<CloseCode>, String),
    Broken,
}

impl<S: fmt::Debug> fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("stream", self.stream.get_ref())
            .field("connection", &self.connection)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a `ws://` or `wss://` URL with the defaults of [`ClientBuilder`].
    ///
    /// # Errors
    ///
    /// Returns the errors of [`ClientBuilder::connect`].
    pub fn connect(url: &str) -> Result<Self, ClientError> {
        ClientBuilder::new(url).connect()
    }

    /// Creates a builder, which configures the connection before it connects.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder::new(url)
    }
}

impl<S: Transport> Client<S> {
    /// Creates a client after the handshake.
    fn new(stream: Wire<S>, connection: Connection, mut accepted: Accepted) -> Self {
        let buffer = accepted.take_rest();
        Self {
            stream,
            connection,
            begin: 0,
            end: buffer.len(),
            buffer,
            output: Vec::new(),
            accepted,
            over: None,
            is_unwritable: false,
            read_by: None,
        }
    }

    /// Returns the subprotocol that the server selected, if any.
    pub fn subprotocol(&self) -> Option<&str> {
        self.accepted.subprotocol()
    }

    /// Returns the first value of a header in the server's handshake response. The name is compared ignoring ASCII case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.accepted.header(name)
    }

    /// Returns the underlying stream, below TLS, for its addresses and settings. Reading or writing it directly corrupts the
    /// connection.
    pub const fn get_ref(&self) -> &S {
        self.stream.get_ref()
    }

    /// Sends a message, and blocks until the socket has accepted it.
    ///
    /// # Errors
    ///
    /// - [`Closed`](ClientError::Closed) if either side has closed the WebSocket.
    /// - [`TimedOut`](ClientError::TimedOut) if the server reads nothing for the write timeout.
    /// - [`Lost`](ClientError::Lost) if writing fails.
    ///
    /// After the last two nothing more can be sent, but [`receive`](Self::receive) still returns the messages that the server
    /// sent, and then the reason why it closed.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), ClientError> {
        self.check_open()?;
        self.connection
            .send(&message.into(), &mut self.output)
            .map_err(ClientError::Lost)?;
        self.flush()
    }

    /// Sends a ping (RFC 6455 §5.5.2) with a payload of up to 125 bytes. [`receive`](Self::receive) consumes the pong.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send).
    pub fn ping(&mut self, payload: &[u8]) -> Result<(), ClientError> {
        self.check_open()?;
        self.connection
            .ping(payload, &mut self.output)
            .map_err(ClientError::Lost)?;
        self.flush()
    }

    /// Waits for the next message. Answers pings that arrive before it, unless an earlier write has failed.
    ///
    /// # Errors
    ///
    /// - [`Closed`](ClientError::Closed) if the server has closed the WebSocket. Its close frame has been answered.
    /// - [`TimedOut`](ClientError::TimedOut) if nothing arrives for the read timeout. No data is lost, and `receive` may be
    ///   called again.
    /// - [`Protocol`](ClientError::Protocol) and [`Lost`](ClientError::Lost), after which the connection is over.
    pub fn receive(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Event::Message(message) = self.event()? {
                return Ok(message);
            }
        }
    }

    /// Sends a close frame and waits up to 5 s for the server's. Drops messages that arrive before it (RFC 6455 §7.1.2).
    ///
    /// # Errors
    ///
    /// [`TimedOut`](ClientError::TimedOut) if the server does not answer in time, and the errors of [`send`](Self::send). It is no
    /// error if the server has already closed the WebSocket.
    pub fn close(&mut self, code: CloseCode, reason: &str) -> Result<(), ClientError> {
        if let Some(over) = &self.over {
            return match over {
                Over::Closed(..) => Ok(()),
                Over::Broken => Err(broken()),
            };
        }
        if self.is_unwritable {
            return Err(unwritable());
        }
        self.connection
            .close(code, reason, &mut self.output)
            .map_err(ClientError::Lost)?;
        // The server may already have closed the WebSocket and the connection.
        let sent = self.flush();
        self.read_by = Some(Instant::now() + CLOSE_WAIT);
        loop {
            match self.event() {
                Ok(_) => {}
                Err(ClientError::Closed { .. }) => return Ok(()),
                Err(error) => {
                    self.over = Some(Over::Broken);
                    self.stream.close();
                    return Err(sent.err().unwrap_or(error));
                }
            }
        }
    }

    /// Waits for the next event, and turns a close into an error.
    fn event(&mut self) -> Result<Event, ClientError> {
        if let Some(over) = &self.over {
            return Err(over.error());
        }
        loop {
            let mut input = &mut self.buffer[self.begin..self.end];
            let event = self.connection.receive(&mut input);
            self.begin = self.end - input.len();
            match event {
                Ok(None) => self.read()?,
                Ok(Some(Event::Close(code, reason))) => {
                    self.over = Some(Over::Closed(code, reason.clone()));
                    // The server's close frame has arrived, so it does not matter whether the reply can be sent.
                    let _ = self.answer();
                    self.stream.close();
                    return Err(ClientError::Closed { code, reason });
                }
                Ok(Some(event)) => {
                    // If the server has closed the connection, messages that it sent before can still be read.
                    let _ = self.answer();
                    return Ok(event);
                }
                Err(error) => {
                    self.over = Some(Over::Broken);
                    let _ = self.answer();
                    self.stream.close();
                    return Err(ClientError::Protocol(error));
                }
            }
        }
    }

    fn read(&mut self) -> Result<(), ClientError> {
        (self.begin, self.end) = (0, 0);
        self.buffer.resize(READ_BYTES, 0);
        loop {
            if let Some(by) = self.read_by {
                // The socket's timeout starts anew with each read, but this deadline does not.
                let left = left(by)?;
                self.stream
                    .set_read_timeout(Some(left))
                    .map_err(ClientError::Lost)?;
            }
            match self.stream.read(&mut self.buffer) {
                Ok(0) => {
                    self.over = Some(Over::Broken);
                    return Err(broken());
                }
                Ok(n) => {
                    self.end = n;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(ClientError::TimedOut),
                Err(error) => {
                    self.over = Some(Over::Broken);
                    return Err(ClientError::Lost(error));
                }
            }
        }
    }

    fn answer(&mut self) -> Result<(), ClientError> {
        self.connection
            .answer(&mut self.output)
            .map_err(ClientError::Lost)?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        if self.output.is_empty() {
            return Ok(());
        }
        if self.is_unwritable {
            self.output.clear();
            return Err(unwritable());
        }
        let written = self.stream.write_all(&self.output);
        self.output.clear();
        self.output.shrink_to(READ_BYTES);
        written.map_err(|error| {
            // A part of a frame may have been sent, and the server would parse further bytes as its rest.
            self.is_unwritable = true;
            failed(error)
        })
    }

    fn check_open(&self) -> Result<(), ClientError> {
        match &self.over {
            Some(over) => Err(over.error()),
            None if self.is_unwritable => Err(unwritable()),
            None => Ok(()),
        }
    }
}

impl Over {
    fn error(&self) -> ClientError {
        match self {
            Self::Closed(code, reason) => ClientError::Closed {
                code: *code,
                reason: reason.clone(),
            },
            Self::Broken => broken(),
        }
    }
}

fn broken() -> ClientError {
    let why = "it has ended without a close frame";
    ClientError::Lost(io::Error::new(ErrorKind::UnexpectedEof, why))
}

fn unwritable() -> ClientError {
    let why = "nothing can be sent any more; receive() says why, if the server has";
    ClientError::Lost(io::Error::new(ErrorKind::BrokenPipe, why))
}
