//! Configures and connects a blocking client.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
#[cfg(feature = "__client-tls")]
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Client, failed};
use crate::limits::Limits;
use crate::websocket_client::connection::Connection;
use crate::websocket_client::deadline::{deadline, left};
use crate::websocket_client::error::ClientError;
use crate::websocket_client::handshake::{Accepted, Handshake, HandshakeError, HandshakeRequest};
use crate::websocket_client::header::{Header, InvalidHeader};
#[cfg(feature = "__client-tls")]
use crate::websocket_client::tls::ClientTls;
use crate::websocket_client::transport::Transport;
use crate::websocket_client::url::ServerUrl;
use crate::websocket_client::wire::{TlsSession, Wire};

/// The maximum time to connect to one of several addresses. The last one may use all the remaining time.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// The maximum time to wait for the body of a refusal, whose head contains the important part.
const REFUSAL_WAIT: Duration = Duration::from_secs(1);

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
    /// `None`: [`ClientTls::platform`].
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

    /// Sets the TLS settings for a `wss://` URL. By default, the client trusts the authorities that the operating system trusts, and
    /// loads them for each connection: see [`ClientTls::platform`].
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
        let session = self.start_tls(url)?;
        let addresses = url.addresses().map_err(|error| ClientError::Resolve {
            host: url.host(),
            error,
        })?;
        let stream = connect_to_one(&addresses, by)?;
        // Nagle's algorithm would delay small messages. If it can't be turned off, they are only slower.
        let _ = stream.set_nodelay(true);
        let wire = Wire::open(stream, session, by)?;
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
        let session = match &self.request {
            Ok(request) => self.start_tls(request.url())?,
            // `shake_hands` reports the error.
            Err(_) => None,
        };
        let wire = Wire::open(stream, session, by)?;
        self.shake_hands(wire, by)
    }

    /// Begins TLS if the URL requires it.
    #[cfg(feature = "__client-tls")]
    fn start_tls(&self, url: &ServerUrl) -> Result<Option<TlsSession>, ClientError> {
        if !url.is_tls() {
            return Ok(None);
        }
        let session = match &self.tls {
            Some(tls) => tls.start(url),
            None => ClientTls::platform()?.start(url),
        };
        Ok(Some(session?))
    }

    /// Without TLS, no URL requires it: the parser rejects `wss://`.
    #[cfg(not(feature = "__client-tls"))]
    fn start_tls(&self, _: &ServerUrl) -> Result<Option<TlsSession>, ClientError> {
        Ok(None)
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
        let accepted = match (accepted, sent) {
            (Err(ClientError::Handshake(HandshakeError::HungUp)), Err(error)) => {
                return Err(failed(error));
            }
            (accepted, _) => accepted?,
        };
        let settings = stream
            .set_read_timeout(self.read_timeout.map(at_least_some))
            .and_then(|()| stream.set_write_timeout(self.write_timeout.map(at_least_some)));
        settings.map_err(ClientError::Lost)?;
        let connection = Connection::new(self.message_bytes_max);
        #[cfg(feature = "deflate")]
        let connection = match accepted.has_agreed_compression() {
            true => connection.with_compression(),
            false => connection,
        };
        Ok(Client::new(stream, connection, accepted))
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

/// Replaces a zero timeout by the shortest one, because sockets reject zero.
fn at_least_some(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}
