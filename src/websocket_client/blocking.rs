//! A blocking client, which handles one connection on the caller's thread.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
#[cfg(feature = "__client-tls")]
use std::path::Path;
use std::time::{Duration, Instant};

#[cfg(feature = "__client-tls")]
use rustls::ClientConnection;

use super::connection::{Connection, Event};
use super::deadline::{deadline, is_timeout, left};
use super::error::ClientError;
use super::handshake::{Accepted, Handshake, HandshakeRequest};
use super::header::{Header, InvalidHeader};
#[cfg(feature = "__client-tls")]
use super::tls::ClientTls;
#[cfg(feature = "__client-tls")]
use super::tls::blocking::TlsLayer;
#[cfg(feature = "__client-tls")]
use super::tls::error::TlsError;
use super::transport::Transport;
use super::url::ServerUrl;
use super::wire::Wire;
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::close::CloseCode;

/// The size of the read buffer in bytes.
const READ_BYTES: usize = 16 << 10;

/// The maximum time to connect to one of several addresses. The last one may use all the remaining time.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// The maximum time to wait for the body of a refusal, whose head contains the important part.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

/// How long [`Client::close`] waits for the server's close frame.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Configures and connects a [`Client`].
///
/// | setting | default |
/// |---|---|
/// | [`with_connect_timeout`](Self::with_connect_timeout) | 20 s for connecting and the handshakes |
/// | [`with_read_timeout`](Self::with_read_timeout) | none: [`Client::receive`] waits indefinitely |
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
    /// The default is the platform's.
    #[cfg(feature = "__client-tls")]
    tls: Option<ClientTls>,
}

impl ClientBuilder {
    /// Creates a builder for a `ws://` or `wss://` URL. [`connect`](Self::connect) reports an invalid URL.
    pub fn new(url: &str) -> Self {
        let url = url.parse::<ServerUrl>();
        Self {
            request: url.map(HandshakeRequest::new).map_err(ClientError::Url),
            connect_timeout: Duration::from_secs(20),
            read_timeout: None,
            write_timeout: Some(Duration::from_secs(30)),
            message_bytes_max: Limits::default().message_bytes_max,
            #[cfg(feature = "__client-tls")]
            tls: None,
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

    /// Adds a header to the handshake request. `Host` replaces the value derived from the URL. [`connect`](Self::connect) fails
    /// if HTTP does not allow the header, if it is reserved for the handshake, or if it is given twice but may be sent only once.
    #[must_use]
    pub fn with_header(self, name: &str, value: &str) -> Self {
        self.and_then(|request| request.with_header(Header::new(name, value)?))
    }

    /// Offers a subprotocol with a lower priority than those added before (RFC 6455 §1.9). [`connect`](Self::connect) fails if
    /// the name is not a token or was already offered.
    #[must_use]
    pub fn with_subprotocol(self, subprotocol: &str) -> Self {
        self.and_then(|request| request.with_subprotocol(subprotocol.parse()?))
    }

    /// Offers permessage-deflate (RFC 7692), so that the server may compress its messages. The client sends its own uncompressed.
    /// By default, no compression is offered.
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn with_compression(mut self) -> Self {
        self.request = self.request.map(HandshakeRequest::with_compression);
        self
    }

    /// With a `wss://` URL, trusts the authorities whose certificates are in a PEM file, instead of those that the operating system
    /// trusts. See [`ClientTls::from_pem_file`]. [`connect`](Self::connect) fails if the file can't be read.
    ///
    /// ```no_run
    /// use humphrey_ws::websocket_client::Client;
    ///
    /// let mut client = Client::builder("wss://live.example/")
    ///     .with_root_certificates("authority.pem")
    ///     .connect()?;
    /// # Ok::<(), humphrey_ws::websocket_client::ClientError>(())
    /// ```
    #[cfg(feature = "__client-tls")]
    #[cfg_attr(
        docsrs,
        doc(cfg(any(feature = "client-tls", feature = "client-tls-aws-lc")))
    )]
    #[must_use]
    pub fn with_root_certificates(mut self, pem_file: impl AsRef<Path>) -> Self {
        match ClientTls::from_pem_file(pem_file) {
            Ok(tls) => self.tls = Some(tls),
            Err(error) => self.request = self.request.and(Err(error.into())),
        }
        self
    }

    /// Sets the TLS settings for a `wss://` URL. By default, the authorities are trusted that the operating system trusts, and loaded
    /// for each connection: see [`ClientTls::platform`].
    #[cfg(feature = "__client-tls")]
    #[cfg_attr(
        docsrs,
        doc(cfg(any(feature = "client-tls", feature = "client-tls-aws-lc")))
    )]
    #[must_use]
    pub fn with_tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the time limit for connecting and the handshakes of TLS and WebSocket together. It includes all addresses, but not the
    /// system's resolver, which has time limits of its own. The default is 20 s.
    #[must_use]
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long [`Client::receive`] waits for bytes before it fails with [`ClientError::TimedOut`]. It may then be called
    /// again. `None`, the default, waits indefinitely.
    #[must_use]
    pub fn with_read_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Sets how long sending waits for a server that reads nothing before it fails with [`ClientError::TimedOut`]. Nothing more
    /// can be sent after that. `None` waits indefinitely. The default is 30 s.
    #[must_use]
    pub fn with_write_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets the maximum length of received messages in bytes. A longer one fails the connection with close code 1009. The default
    /// is 16 MiB.
    #[must_use]
    pub fn with_message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Connects over TCP, and with a `wss://` URL over TLS.
    ///
    /// # Errors
    ///
    /// [`ClientError`] if the URL, a header or a subprotocol is invalid, the host name has no address, no address accepts the
    /// connection, a handshake fails, the server's certificate is not acceptable, or the time limit expires.
    pub fn connect(self) -> Result<Client, ClientError> {
        let by = deadline(self.connect_timeout);
        let request = match &self.request {
            Ok(request) => request,
            Err(_) => return Err(self.request.expect_err("it is an error")),
        };
        let url = request.url();
        #[cfg(feature = "__client-tls")]
        let session = self.start_tls(url)?;
        let addresses = url.addresses().map_err(|error| ClientError::Resolve {
            host: url.host(),
            error,
        })?;
        let stream = connect_to_one(&addresses, by)?;
        // Nagle's algorithm would delay small messages. If it can't be turned off, they are only slower.
        let _ = stream.set_nodelay(true);
        #[cfg(feature = "__client-tls")]
        let wire = secured(stream, session, by)?;
        #[cfg(not(feature = "__client-tls"))]
        let wire = Wire::plain(stream);
        self.shake_hands(wire, by)
    }

    /// Performs the handshake over a stream that the program has connected, and sets the stream's timeouts. With a `wss://` URL, it
    /// performs the TLS handshake first. If the stream is a TLS stream already, pass a `ws://` URL.
    ///
    /// # Errors
    ///
    /// [`ClientError`] if the URL, a header or a subprotocol is invalid, a handshake fails, the server's certificate is not
    /// acceptable, or the time limit expires.
    pub fn connect_over<S: Transport>(self, stream: S) -> Result<Client<S>, ClientError> {
        let by = deadline(self.connect_timeout);
        #[cfg(feature = "__client-tls")]
        let wire = {
            let session = match &self.request {
                Ok(request) => self.start_tls(request.url())?,
                // `shake_hands` reports the error.
                Err(_) => None,
            };
            secured(stream, session, by)?
        };
        #[cfg(not(feature = "__client-tls"))]
        let wire = Wire::plain(stream);
        self.shake_hands(wire, by)
    }

    /// Begins TLS if the URL asks for it.
    #[cfg(feature = "__client-tls")]
    fn start_tls(&self, url: &ServerUrl) -> Result<Option<ClientConnection>, TlsError> {
        if !url.is_tls() {
            return Ok(None);
        }
        match &self.tls {
            Some(tls) => tls.start(url),
            None => ClientTls::platform()?.start(url),
        }
        .map(Some)
    }

    fn shake_hands<S: Transport>(
        self,
        mut stream: Wire<S>,
        by: Instant,
    ) -> Result<Client<S>, ClientError> {
        let mut handshake = self.request?.start().map_err(ClientError::Lost)?;
        stream
            .set_write_timeout(Some(left(by)?))
            .map_err(ClientError::Lost)?;
        let sent = stream.write_all(handshake.request());
        // A server may refuse the handshake and close the connection before it has read the whole request.
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

/// Waits for the response until the deadline.
fn read_answer<S: Transport>(
    stream: &mut Wire<S>,
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
            // TLS reports an unannounced end of the stream as an error.
            Err(ClientError::Lost(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(handshake.finish().into());
            }
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

/// Performs the TLS handshake, if the connection has TLS.
#[cfg(feature = "__client-tls")]
fn secured<S: Transport>(
    mut stream: S,
    session: Option<ClientConnection>,
    by: Instant,
) -> Result<Wire<S>, ClientError> {
    match session {
        Some(session) => {
            let tls = TlsLayer::shake_hands(session, &mut stream, by)?;
            Ok(Wire::secure(stream, tls))
        }
        None => Ok(Wire::plain(stream)),
    }
}

/// Replaces a zero timeout by the shortest one, because sockets reject zero.
fn at_least_some(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

fn failed(error: io::Error) -> ClientError {
    if is_timeout(&error) {
        return ClientError::TimedOut;
    }
    #[cfg(feature = "__client-tls")]
    if let Some(refused) = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<TlsError>())
    {
        // A server that speaks TLS 1.3 refuses a client's certificate after the handshake.
        return refused.clone().into();
    }
    ClientError::Lost(error)
}

/// A blocking WebSocket client, with the feature `client`. See [the module](super).
///
/// It answers pings during [`receive`](Self::receive). Dropping it ends the connection without a close frame. Call
/// [`close`](Self::close) first for a closing handshake (RFC 6455 §7.1.2), and with TLS for its close_notify (RFC 8446 §6.1).
///
/// Connections over TLS, to `wss://` URLs, have the same type `Client<TcpStream>`: TLS is a layer inside of the client.
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
