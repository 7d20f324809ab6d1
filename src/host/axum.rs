//! Connections from an axum app: a task of its runtime checks the handshake, the engine authorizes it, hyper sends the
//! response, and the engine takes the socket over.
//!
//! No other module depends on tokio.

use std::any::Any;
use std::future::poll_fn;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use ::axum::body::Body;
use ::axum::extract::{ConnectInfo, FromRequestParts, OriginalUri};
use ::axum::http::request::Parts;
use ::axum::http::{self, StatusCode, Version};
use ::axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::rt::Write as _;
use hyper::upgrade::{OnUpgrade, Upgraded as Socket};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::engine::{self, AcceptedHandshake, Hub, Verdict, adopt_accepted};
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::{Head, HttpError};
use crate::report::{Limited, debug, limited};
use crate::request::Reject;
#[cfg(unix)]
use crate::transport;
use crate::transport::{UnsentLimit, limit_unsent, suppress_sigpipe};
use crate::user_threads::while_nonblocking;

/// Placeholder for the address of a client until its socket reveals it.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Limits of the log lines that clients can cause.
static NO_ADDRESS: Limited = Limited::new();
static NO_SOCKET: Limited = Limited::new();
static NOT_PLAIN: Limited = Limited::new();
static NOT_SENT: Limited = Limited::new();
static NO_RUNTIME: Limited = Limited::new();

/// A handshake that is accepted but still unanswered.
pub(crate) struct PendingUpgrade {
    hub: Arc<Hub>,
    accepted: Box<AcceptedHandshake>,
    /// The handshake was authorized without the client's address.
    is_unknown: bool,
    socket: OnUpgrade,
}

/// Lets the engine accept or refuse a handshake. The error is the response that refuses it.
pub(crate) async fn authorize(parts: &mut Parts, hub: &Arc<Hub>) -> Result<PendingUpgrade, Reject> {
    if parts.version > Version::HTTP_11 {
        hub.count_failure(HandshakeRefusal::HttpVersion);
        return Err(Reject::new(505).with_body(
            "This server accepts WebSockets over HTTP/1.1 only; the request used a later version.\n",
        ));
    }
    let head = head(parts, hub.head_bytes_max()).map_err(|error| {
        hub.count_unreadable(error);
        Reject::new(error.status()).with_body(format!("{error}\n"))
    })?;
    let peer = ConnectInfo::<SocketAddr>::from_request_parts(parts, &());
    let peer = peer.await.ok().map(|ConnectInfo(peer)| peer);
    if peer.is_none() && hub.needs_peers() {
        return Err(cannot_serve(
            hub,
            &NO_ADDRESS,
            "the app has limits per address or trusts proxies, but axum does not give it the addresses of clients: serve the \
             router with into_make_service_with_connect_info::<SocketAddr>()",
        ));
    }
    let (then, verdict) = oneshot::channel();
    let then = move |verdict| {
        // If the client has disconnected, the verdict is dropped here, on a handler thread.
        let _ = then.send(verdict);
    };
    engine::authorize(hub, head, peer.unwrap_or(UNKNOWN), Box::new(then));
    let accepted = match verdict.await {
        Ok(Verdict::Accepted(accepted)) => accepted,
        Ok(Verdict::Rejected(reject)) => return Err(reject),
        Err(_) => return Err(not_running()),
    };
    // Checked last, so that a request that is no WebSocket handshake is refused as such.
    let Some(socket) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(cannot_serve(
            hub,
            &NO_SOCKET,
            "the HTTP server does not support upgrades: use axum::serve, or hyper's serve_connection_with_upgrades",
        ));
    };
    Ok(PendingUpgrade {
        hub: hub.clone(),
        accepted,
        is_unknown: peer.is_none(),
        socket,
    })
}

/// Logs and returns the response to a handshake that the configuration of the program makes impossible.
fn cannot_serve(hub: &Hub, limit: &Limited, why: &str) -> Reject {
    hub.count_unserved();
    while_nonblocking(|| {
        limited!(
            limit,
            error,
            "refused a WebSocket handshake with 500: {why}"
        );
    });
    Reject::new(500).with_body(format!("{why}\n"))
}

/// Returns the response to a handshake while no app is running.
pub(crate) fn not_running() -> Reject {
    Reject::new(503).with_body("the WebSocket app is not running\n")
}

/// Converts the request for the engine, with the original path even in a nested router.
fn head(parts: &Parts, head_bytes_max: usize) -> Result<Head, HttpError> {
    let original = parts.extensions.get::<OriginalUri>();
    let target = original.map_or(&parts.uri, |OriginalUri(uri)| uri);
    let lines = parts.headers.iter();
    let lines: Vec<_> = lines
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    Head::of_parts(
        parts.method.as_str(),
        &target.to_string(),
        u8::from(parts.version == Version::HTTP_11),
        &lines,
        head_bytes_max,
    )
}

/// Converts a rejection of the engine into a response for hyper.
pub(crate) fn rejection(reject: &Reject) -> Response {
    let reject = reject.clone().for_handshake();
    let mut headers = reject.all_headers();
    if reject.headers().any(|(name, _)| name == "Upgrade") {
        // RFC 9110 §7.8
        headers.push(("Connection", "Upgrade"));
    }
    response(reject.status(), &headers, reject.body().to_vec().into())
}

fn response(status: u16, headers: &[(&str, &str)], body: Body) -> Response {
    let mut response = http::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body).unwrap_or_else(|error| {
        while_nonblocking(|| {
            limited!(
                NOT_SENT,
                error,
                "replaced an invalid handshake response with 500: {error}"
            );
        });
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

impl PendingUpgrade {
    /// Sets the state of the stream. The error is the name of the state type of the app's streams.
    pub(crate) fn attach(&mut self, state: Arc<dyn Any + Send + Sync>) -> Result<(), &'static str> {
        engine::attach(&self.hub, &mut self.accepted, state)
    }

    /// Returns the 101 response. Once hyper has sent it, the engine takes the socket over.
    pub(crate) fn answer(self) -> Response {
        let Ok(runtime) = Handle::try_current() else {
            while_nonblocking(|| {
                limited!(
                    NO_RUNTIME,
                    error,
                    "refused a WebSocket handshake with 500, because it was accepted outside of the tokio runtime that owns its \
                     socket: accept it in an axum handler"
                );
            });
            return rejection(&Reject::internal_error());
        };
        if self.hub.has_stopped() {
            self.hub.count_unserved();
            return rejection(&not_running());
        }
        let answer = response(101, &self.accepted.headers(), Body::empty());
        runtime.spawn(self.take_over());
        answer
    }

    async fn take_over(self) {
        let Self {
            hub,
            mut accepted,
            is_unknown,
            socket,
        } = self;
        let (socket, early) = match socket.await.map(plain) {
            Ok(Ok(taken)) => taken,
            Ok(Err(other)) => {
                hub.count_unserved();
                refuse(other).await;
                return;
            }
            Err(error) => {
                while_nonblocking(|| {
                    debug!("a client disconnected before the upgrade was complete: {error}");
                });
                return;
            }
        };
        let adopted = match socket {
            TakenSocket::Tcp(socket) => socket.into_std().and_then(|socket| {
                if is_unknown {
                    accepted.set_peer(socket.peer_addr()?);
                }
                suppress_sigpipe(&socket)?;
                if hub.settings.slow_consumer.prefers_new() {
                    limit_unsent(&socket, UnsentLimit::PrefersNew);
                }
                // Otherwise Nagle's algorithm may delay replies. If this fails, so will the next read or write, which reports it.
                let _ = socket.set_nodelay(true);
                Ok(mio::net::TcpStream::from_std(socket))
            }),
            #[cfg(unix)]
            TakenSocket::Unix(socket) => socket.into_std().and_then(|socket| {
                if is_unknown {
                    accepted.set_peer(hub.next_unix_peer());
                }
                suppress_sigpipe(&socket)?;
                Ok(transport::of_unix(socket.into()))
            }),
        };
        match adopted {
            Ok(mut socket) if hub.has_stopped() => {
                // The engine accepts no more connections. One write that does not block is all that the client gets.
                hub.count_unserved();
                let _ = socket.write(&close_frame(
                    CloseCode::GOING_AWAY,
                    "server is shutting down",
                ));
            }
            Ok(socket) => adopt_accepted(&hub, accepted, socket, early.into()),
            Err(error) => {
                while_nonblocking(|| debug!("dropped a connection that axum handed over: {error}"));
            }
        }
    }
}

/// A socket that the engine can take over.
enum TakenSocket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Unwraps the socket and the bytes that were read after the request. The error is a socket with TLS or another layer.
fn plain(socket: Socket) -> Result<(TakenSocket, Bytes), Socket> {
    let socket = match unwrap_as::<TcpStream>(socket) {
        Ok((socket, early)) => return Ok((TakenSocket::Tcp(socket), early)),
        Err(socket) => socket,
    };
    #[cfg(unix)]
    let socket = match unwrap_as::<UnixStream>(socket) {
        Ok((socket, early)) => return Ok((TakenSocket::Unix(socket), early)),
        Err(socket) => socket,
    };
    Err(socket)
}

fn unwrap_as<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    socket: Socket,
) -> Result<(S, Bytes), Socket> {
    // axum::serve uses the connections of hyper-util, and a custom server may use those of hyper.
    let socket = match upgrade::downcast::<TokioIo<S>>(socket) {
        Ok(parts) => return Ok((parts.io.into_inner(), parts.read_buf)),
        Err(socket) => socket,
    };
    let parts = socket.downcast::<TokioIo<S>>()?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// Closes a WebSocket whose socket the engine can't take over.
async fn refuse(mut socket: Socket) {
    while_nonblocking(|| {
        limited!(
            NOT_PLAIN,
            error,
            "closed a WebSocket that axum handed over, because its socket is neither plain TCP nor a Unix socket: terminate TLS in a \
             proxy in front of axum"
        );
    });
    let frame = close_frame(
        CloseCode::INTERNAL_ERROR,
        "this server accepts plain connections only",
    );
    // Each step is polled once, so that this task never waits for a client.
    poll_fn(|context| {
        let mut socket = Pin::new(&mut socket);
        let _ = socket.as_mut().poll_write(context, &frame);
        let _ = socket.as_mut().poll_flush(context);
        let _ = socket.poll_shutdown(context);
        Poll::Ready(())
    })
    .await;
}

fn close_frame(code: CloseCode, reason: &str) -> Vec<u8> {
    encode::close(Some((code, reason)))
}
