//! axum: a task of its runtime checks the handshake and has the engine authorize it, hyper sends the answer, and the engine takes the socket.
//!
//! The only module that knows tokio.

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
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::engine::{self, Accepted, Hub, Verdict, adopt_accepted};
use crate::protocol::close::CloseCode;
use crate::protocol::encode;
use crate::protocol::handshake::HandshakeRefusal;
use crate::protocol::http::{Head, HttpError};
use crate::report::{Limited, debug, limited};
use crate::request::Reject;
use crate::transport::suppress_sigpipe;
use crate::user_threads::while_nonblocking;

/// Placeholder for a client's address that is not known yet.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Limits of the log lines that clients can cause.
static NO_ADDRESS: Limited = Limited::new();
static NO_SOCKET: Limited = Limited::new();
static NOT_PLAIN: Limited = Limited::new();
static NOT_SENT: Limited = Limited::new();
static NO_RUNTIME: Limited = Limited::new();

/// A handshake that is accepted but not answered yet.
pub(crate) struct PendingUpgrade {
    hub: Arc<Hub>,
    accepted: Box<Accepted>,
    /// The handshake was authorized without the client's address.
    is_unknown: bool,
    socket: OnUpgrade,
}

/// Has the engine accept or refuse a request for a WebSocket. The error is the response to a refused one.
pub(crate) async fn authorize(parts: &mut Parts, hub: &Arc<Hub>) -> Result<PendingUpgrade, Reject> {
    if parts.version > Version::HTTP_11 {
        hub.count_failure(HandshakeRefusal::HttpVersion);
        return Err(Reject::new(505).with_body(
            "WebSockets are served over HTTP/1.1 only: a connection of HTTP/2 carries other requests, too.\n",
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
            "the app has limits for each address, or trusts proxies, and is not told who connects: serve the router with \
             into_make_service_with_connect_info::<SocketAddr>()",
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
            "the server below axum does not hand its connections over: axum::serve does",
        ));
    };
    Ok(PendingUpgrade {
        hub: hub.clone(),
        accepted,
        is_unknown: peer.is_none(),
        socket,
    })
}

/// The response if the program has not set up what a WebSocket needs.
fn cannot_serve(hub: &Hub, limit: &Limited, why: &str) -> Reject {
    hub.count_unserved();
    while_nonblocking(|| {
        limited!(
            limit,
            error,
            "a WebSocket can't be served, and the client gets 500: {why}"
        );
    });
    Reject::new(500).with_body(format!("{why}\n"))
}

/// The response if no app is running.
pub(crate) fn not_running() -> Reject {
    Reject::new(503).with_body("the WebSocket app does not run\n")
}

/// Converts the request for the engine. Its path is the original one, also in a nested router.
fn head(parts: &Parts, head_bytes_max: usize) -> Result<Head, HttpError> {
    let asked_for = parts.extensions.get::<OriginalUri>();
    let target = asked_for.map_or(&parts.uri, |OriginalUri(uri)| uri);
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
            limited!(NOT_SENT, error, "a response could not be sent: {error}");
        });
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

impl PendingUpgrade {
    /// Gives the stream its state. The error is the name of the type that the app's streams have.
    pub(crate) fn attach(&mut self, state: Arc<dyn Any + Send + Sync>) -> Result<(), &'static str> {
        engine::attach(&self.hub, &mut self.accepted, state)
    }

    /// The 101 response. Once hyper has sent it, the engine takes the socket.
    pub(crate) fn answer(self) -> Response {
        let Ok(runtime) = Handle::try_current() else {
            while_nonblocking(|| {
                limited!(
                    NO_RUNTIME,
                    error,
                    "a WebSocket was accepted outside of the tokio runtime that owns its socket: the client gets 500"
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
            Ok(Ok(plain)) => plain,
            Ok(Err(other)) => {
                hub.count_unserved();
                refuse(other).await;
                return;
            }
            Err(error) => {
                while_nonblocking(|| {
                    debug!("a client has disconnected before it became a WebSocket: {error}");
                });
                return;
            }
        };
        let adopted = socket.into_std().and_then(|socket| {
            if is_unknown {
                accepted.set_peer(socket.peer_addr()?);
            }
            suppress_sigpipe(&socket)?;
            // Otherwise the kernel may delay a reply. That the peer has gone will be noticed soon enough.
            let _ = socket.set_nodelay(true);
            Ok(mio::net::TcpStream::from_std(socket))
        });
        match adopted {
            Ok(mut socket) if hub.has_stopped() => {
                // The engine accepts no more connections. The client gets a close frame if its socket takes that at once.
                hub.count_unserved();
                let _ = socket.write(&close_frame(
                    CloseCode::GOING_AWAY,
                    "server is shutting down",
                ));
            }
            Ok(socket) => adopt_accepted(&hub, accepted, socket, early.into()),
            Err(error) => {
                while_nonblocking(|| debug!("a connection was not taken over: {error}"));
            }
        }
    }
}

/// Returns the TCP socket and the bytes that were read after the request, or the socket itself if it is not plain TCP.
fn plain(socket: Socket) -> Result<(TcpStream, Bytes), Socket> {
    // axum::serve's connections are hyper-util's of either version; a server of one's own may have hyper's.
    let socket = match upgrade::downcast::<TokioIo<TcpStream>>(socket) {
        Ok(parts) => return Ok((parts.io.into_inner(), parts.read_buf)),
        Err(socket) => socket,
    };
    let parts = socket.downcast::<TokioIo<TcpStream>>()?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// Closes a WebSocket whose socket the engine can't take.
async fn refuse(mut socket: Socket) {
    while_nonblocking(|| {
        limited!(
            NOT_PLAIN,
            error,
            "axum has handed over a WebSocket that is not plain TCP, which can't be served: it is closed. Let a proxy \
             end TLS in front of axum, and have axum::serve listen on TCP"
        );
    });
    let frame = close_frame(
        CloseCode::INTERNAL_ERROR,
        "only plain TCP connections can be served here",
    );
    // Each step goes as far as it can at once: this task never waits for a client.
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
