//! A client that waits: one connection, on a thread of the program's.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::connection::{Connection, Event};
use super::error::ClientError;
use super::handshake::{Accepted, Handshake, HandshakeRequest};
use super::header::{Header, InvalidHeader};
use super::transport::Transport;
use super::url::ServerUrl;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::CloseCode;

/// Read at once.
const READ_BYTES: usize = 16 << 10;

/// How long one of several addresses may take.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// How long the body of a refusal is waited for: its head says what matters.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// How long [`Client::close`] waits for the server's answer.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Sets how a [`Client`] connects.
///
/// | setting | default |
/// |---|---|
/// | [`with_connect_timeout`](Self::with_connect_timeout) | 20 s for connecting and the handshake |
/// | [`with_read_timeout`](Self::with_read_timeout) | none: [`Client::receive`] waits for as long as it takes |
/// | [`with_write_timeout`](Self::with_write_timeout) | 30 s |
/// | [`with_message_bytes_max`](Self::with_message_bytes_max) | 16 MiB |
///
/// ```no_run
/// use humphrey_ws::websocket_client::Client;
/// use std::time::Duration;
///
/// let mut client = Client::builder("ws://127.0.0.1:8080/ocpp/17")
///     .with_header("Host", "charging.example")
///     .with_header("Authorization", "Bearer token")
///     .with_subprotocol("ocpp1.6")
///     .with_read_timeout(Some(Duration::from_secs(60)))
///     .connect()?;
/// assert_eq!(client.subprotocol(), Some("ocpp1.6"));
/// # Ok::<(), humphrey_ws::websocket_client::ClientError>(())
/// ```
#[derive(Debug)]
pub struct ClientBuilder {
    request: Result<HandshakeRequest, ClientError>,
    connect_timeout: Duration,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    message_bytes_max: usize,
}

impl ClientBuilder {
    /// For a `ws://` URL. What is wrong with it is said when the client connects.
    pub fn new(url: &str) -> Self {
        let url = url.parse::<ServerUrl>();
        Self {
            request: url.map(HandshakeRequest::new).map_err(ClientError::Url),
            connect_timeout: Duration::from_secs(20),
            read_timeout: None,
            write_timeout: Some(Duration::from_secs(30)),
            message_bytes_max: Limits::default().message_bytes_max,
        }
    }

    fn and_then(
        mut self,
        change: impl FnOnce(HandshakeRequest) -> Result<HandshakeRequest, InvalidHeader>,
    ) -> Self {
        self.request = self
            .request
            .and_then(|request| change(request).map_err(ClientError::Header));
        self
    }

    /// Adds a header. `Host` replaces the one that is made from the URL. A header that HTTP does not allow, that the handshake
    /// writes itself, or that is given twice and may be sent only once is an error of [`connect`](Self::connect).
    #[must_use]
    pub fn with_header(self, name: &str, value: &str) -> Self {
        self.and_then(|request| request.with_header(Header::new(name, value)?))
    }

    /// Offers a subprotocol, after those that were offered before. One that is no token, or was offered before, is an error of
    /// [`connect`](Self::connect).
    #[must_use]
    pub fn with_subprotocol(self, subprotocol: &str) -> Self {
        self.and_then(|request| request.with_subprotocol(subprotocol.parse()?))
    }

    /// Offers permessage-deflate (RFC 7692): the server may compress what it sends. What the client sends is not compressed.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn with_compression(mut self) -> Self {
        self.request = self.request.map(HandshakeRequest::with_compression);
        self
    }

    /// How long connecting to all addresses and the handshake may take together. The system's resolver has limits of its own.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long [`Client::receive`] waits for bytes before it fails with [`ClientError::TimedOut`]; it can be called again then.
    #[must_use]
    pub fn with_read_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// How long a server may read nothing before sending fails; nothing more can be sent then.
    #[must_use]
    pub fn with_write_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Longest message that is received, in bytes. A longer one ends the connection with 1009.
    #[must_use]
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Connects over TCP.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: the settings are wrong, no address can be connected to, or the handshake has come to nothing.
    pub fn connect(self) -> Result<Client, ClientError> {
        let by = deadline(self.connect_timeout);
        let request = match &self.request {
            Ok(request) => request,
            Err(_) => return Err(self.request.expect_err("it is an error")),
        };
        let url = request.url();
        let addresses = url.addresses().map_err(|error| ClientError::Resolve {
            host: url.host(),
            error,
        })?;
        let stream = connect_to_one(&addresses, by)?;
        // Messages are small, and each is wanted at once. Where that can't be set, they are only later.
        let _ = stream.set_nodelay(true);
        self.shake_hands(stream, by)
    }

    /// Does the handshake over a stream that the program has connected itself, such as a TLS stream; its time limits are set.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: the settings are wrong, or the handshake has come to nothing.
    pub fn connect_over<S: Transport>(self, stream: S) -> Result<Client<S>, ClientError> {
        let by = deadline(self.connect_timeout);
        self.shake_hands(stream, by)
    }

    fn shake_hands<S: Transport>(
        self,
        mut stream: S,
        by: Instant,
    ) -> Result<Client<S>, ClientError> {
        let mut handshake = self.request?.start().map_err(ClientError::Lost)?;
        stream
            .set_write_timeout(Some(left(by)?))
            .map_err(ClientError::Lost)?;
        let sent = stream
            .write_all(handshake.request())
            .and_then(|()| stream.flush());
        // A server may refuse, and hang up, before it has read all of it.
        let accepted = read_answer(&mut stream, &mut handshake, by);
        let mut accepted = match (accepted, sent) {
            (Err(ClientError::Handshake(super::HandshakeError::HungUp)), Err(error)) => {
                return Err(failed(error));
            }
            (accepted, _) => accepted?,
        };
        let settings = stream
            .set_read_timeout(self.read_timeout.map(at_least_some))
            .and_then(|()| stream.set_write_timeout(self.write_timeout.map(at_least_some)));
        settings.map_err(ClientError::Lost)?;
        let buffer = accepted.take_rest();
        let connection = Connection::new(self.message_bytes_max);
        #[cfg(feature = "deflate")]
        let connection = match accepted.has_agreed_compression() {
            true => connection.with_compression(),
            false => connection,
        };
        Ok(Client {
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
        })
    }
}

/// Waits for the answer, but not for ever.
fn read_answer<S: Transport>(
    stream: &mut S,
    handshake: &mut Handshake,
    mut by: Instant,
) -> Result<Accepted, ClientError> {
    let mut buffer = [0; 4 << 10];
    let mut is_refused = false;
    loop {
        if handshake.is_refused() && !is_refused {
            is_refused = true;
            by = by.min(Instant::now() + REFUSAL_WAIT);
        }
        let read = left(by).and_then(|left| {
            let limited = stream.set_read_timeout(Some(left));
            limited
                .and_then(|()| stream.read(&mut buffer))
                .map_err(failed)
        });
        match read {
            Ok(0) => return Err(handshake.finish().into()),
            Ok(n) => {
                if let Some(accepted) = handshake.receive(&buffer[..n])? {
                    return Ok(accepted);
                }
            }
            Err(ClientError::Lost(error)) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) if handshake.is_refused() => return Err(handshake.finish().into()),
            Err(error) => return Err(error),
        }
    }
}

fn connect_to_one(addresses: &[SocketAddr], by: Instant) -> Result<TcpStream, ClientError> {
    let mut last = Err(ClientError::TimedOut);
    for (n, address) in addresses.iter().enumerate() {
        let left = left(by)?;
        let wait = if n + 1 == addresses.len() {
            left
        } else {
            left.min(ADDRESS_WAIT)
        };
        match TcpStream::connect_timeout(address, wait) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                last = Err(ClientError::Connect {
                    address: *address,
                    error,
                });
            }
        }
    }
    last
}

fn deadline(timeout: Duration) -> Instant {
    // Beyond what the clock can say is never.
    let now = Instant::now();
    now.checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(1 << 30))
}

/// The time until then.
fn left(by: Instant) -> Result<Duration, ClientError> {
    let left = by.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ClientError::TimedOut);
    }
    Ok(left)
}

/// Sockets take no time limit of nothing.
fn at_least_some(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn failed(error: io::Error) -> ClientError {
    if is_timeout(&error) {
        ClientError::TimedOut
    } else {
        ClientError::Lost(error)
    }
}

/// A WebSocket client that waits, with the feature `client`: see [the module](super).
///
/// It answers pings while it receives. When it is dropped, the connection ends without a close frame; [`close`](Self::close)
/// says goodbye first.
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
    stream: S,
    connection: Connection,
    /// What was read; `begin..end` is not used yet.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
    /// What is to be written.
    output: Vec<u8>,
    accepted: Accepted,
    /// The connection is of no further use.
    over: Option<Over>,
    /// Writing has failed: nothing more is sent. What the server has sent can still be read, such as why it has closed.
    is_unwritable: bool,
    /// Nothing is waited for beyond that.
    read_by: Option<Instant>,
}

/// Why a connection is of no further use.
#[derive(Debug, Clone)]
enum Over {
    Closed(Option<CloseCode>, String),
    Broken,
}

impl<S: fmt::Debug> fmt::Debug for Client<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("stream", &self.stream)
            .field("connection", &self.connection)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a `ws://` URL, with the defaults of [`ClientBuilder`].
    ///
    /// # Errors
    ///
    /// Those of [`ClientBuilder::connect`].
    pub fn connect(url: &str) -> Result<Self, ClientError> {
        ClientBuilder::new(url).connect()
    }

    /// Sets how to connect, first.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder::new(url)
    }
}

impl<S: Transport> Client<S> {
    /// The subprotocol that the server has chosen, if any.
    pub fn subprotocol(&self) -> Option<&str> {
        self.accepted.subprotocol()
    }

    /// The first value of a header of the server's answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.accepted.header(name)
    }

    /// The stream below, for its addresses and settings. What is read from or written to it directly confuses both sides.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Sends a message; waits until the socket has taken it.
    ///
    /// # Errors
    ///
    /// [`Closed`](ClientError::Closed) once either side has closed; [`TimedOut`](ClientError::TimedOut) if the server reads nothing
    /// for the write timeout, and [`Lost`](ClientError::Lost) if writing fails: nothing more can be sent then, but
    /// [`receive`](Self::receive) still gives what the server has sent, and says why it has closed.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), ClientError> {
        self.check_open()?;
        self.connection
            .send(&message.into(), &mut self.output)
            .map_err(ClientError::Lost)?;
        self.flush()
    }

    /// Sends a ping (RFC 6455 §5.5.2) with a payload of up to 125 bytes. Its pong is taken in while messages are received.
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

    /// Receives the next message; waits for it. Answers pings that come before it, unless nothing can be sent any more.
    ///
    /// # Errors
    ///
    /// [`Closed`](ClientError::Closed) once the server has closed, which has been answered; [`TimedOut`](ClientError::TimedOut) if
    /// nothing comes for the read timeout: it can be called again then, and nothing is lost. After
    /// [`Protocol`](ClientError::Protocol) and [`Lost`](ClientError::Lost) the connection is over.
    pub fn receive(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Event::Message(message) = self.event()? {
                return Ok(message);
            }
        }
    }

    /// Closes: sends a close frame, and waits up to 5 s for the server's answer. Messages that come before it are dropped.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](ClientError::TimedOut) if the server does not answer in time, and those of [`send`](Self::send). That it has
    /// closed already is none.
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
        // It may have closed already, and hung up.
        let sent = self.flush();
        self.read_by = Some(Instant::now() + CLOSE_WAIT);
        loop {
            match self.event() {
                Ok(_) => {}
                Err(ClientError::Closed { .. }) => return Ok(()),
                Err(error) => {
                    self.over = Some(Over::Broken);
                    return Err(sent.err().unwrap_or(error));
                }
            }
        }
    }

    /// The next event that is not a close. Reads as long as there is none.
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
                    // It has said what it had to say, whether it reads the answer or not.
                    let _ = self.answer();
                    return Err(ClientError::Closed { code, reason });
                }
                Ok(Some(event)) => {
                    // A server that has gone may have said more before it went.
                    let _ = self.answer();
                    return Ok(event);
                }
                Err(error) => {
                    self.over = Some(Over::Broken);
                    let _ = self.answer();
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
                // Each part of a message renews the time limit of the socket, but not this one.
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
        let written = self
            .stream
            .write_all(&self.output)
            .and_then(|()| self.stream.flush());
        self.output.clear();
        self.output.shrink_to(READ_BYTES);
        written.map_err(|error| {
            // A part of a frame may have been sent: the server would take further bytes for its rest.
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
