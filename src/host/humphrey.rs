//! Connections from an existing Humphrey app: its handlers check the handshake and hand the socket over, and the engine
//! sends the response.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use humphrey::http::Request;
use humphrey::stream::Stream;

#[cfg(feature = "deflate")]
use crate::engine;
use crate::engine::{Hub, NewConnection, Received, Upgraded};
use crate::protocol::handshake::{self, ValidHandshake};
use crate::protocol::http::{self, BodyMode, Head};
use crate::report::{Limited, debug, limited};
#[cfg(feature = "deflate")]
use crate::stream::RouteCompression;
use crate::stream::WebsocketStream;
use crate::sync::ignore_poison;
use crate::transport::{self, UnsentLimit, limit_unsent};

/// The sending end of the channel through which a Humphrey app hands connections over.
pub(crate) type ConnectHook = Arc<Mutex<Sender<WebsocketStream>>>;

/// The hooks of apps, which receive streams whose handshake is still unanswered. As in 0.5.1, a program can also create
/// a hook itself, which receives streams whose handshake is answered. Both have the same type, so this list tells them
/// apart.
static HOOKS_OF_APPS: Mutex<Vec<Weak<Mutex<Sender<WebsocketStream>>>>> = Mutex::new(Vec::new());

/// Registers the hook of an app.
pub(crate) fn hook_of_app(hook: &ConnectHook) {
    let mut hooks = ignore_poison(HOOKS_OF_APPS.lock());
    hooks.retain(|hook| hook.strong_count() > 0);
    hooks.push(Arc::downgrade(hook));
}

/// Returns whether a hook belongs to an app.
pub(crate) fn is_hook_of_app(hook: &ConnectHook) -> bool {
    let hooks = ignore_poison(HOOKS_OF_APPS.lock());
    hooks
        .iter()
        .any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(hook)))
}

/// Converts a request that Humphrey has parsed into a stream whose handshake is still unanswered (RFC 6455 §4.2.2).
/// Returns `None` after refusing the request.
pub(crate) fn handshake(request: &Request, stream: Stream) -> Option<WebsocketStream> {
    let (stream, head, handshake) = check(request, stream)?;
    let answer = handshake::response(&handshake);
    Some(WebsocketStream::with_pending_handshake(
        stream, head, answer,
    ))
}

/// Converts a request as [`handshake()`] does, and also negotiates compression.
#[cfg(feature = "deflate")]
pub(crate) fn handshake_with_compression(
    request: &Request,
    stream: Stream,
    route: &Arc<RouteCompression>,
) -> Option<WebsocketStream> {
    let (stream, head, handshake) = check(request, stream)?;
    let Some(agreement) = engine::negotiate(route.settings(), &head) else {
        let answer = handshake::response(&handshake);
        return Some(WebsocketStream::with_pending_handshake(
            stream, head, answer,
        ));
    };
    let answer = handshake::response_with_extension(&handshake, &agreement.to_string());
    let pending = WebsocketStream::with_pending_handshake(stream, head, answer);
    Some(pending.with_compression(route, agreement))
}

/// Checks a request that Humphrey has parsed. Returns `None` after refusing a request that is not a valid handshake.
fn check(request: &Request, mut stream: Stream) -> Option<(Stream, Head, ValidHandshake)> {
    let target = match request.query.as_str() {
        "" => request.uri.clone(),
        query => format!("{}?{query}", request.uri),
    };
    let minor_version = match request.version.strip_prefix("HTTP/1.") {
        Some("0") | None => 0,
        Some(_) => 1,
    };
    let lines: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|header| (header.name.to_string(), header.value))
        .collect();
    let lines: Vec<(&str, &[u8])> = lines
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let method = request.method.to_string();
    // Humphrey has enforced its own limit on the head.
    let head = match Head::of_parts(&method, &target, minor_version, &lines, usize::MAX) {
        Ok(head) => head,
        Err(error) => {
            debug!("refused a request that Humphrey accepts: {error}");
            let body = format!("{error}\n");
            let _ = stream.write_all(&http::refusal(
                error.status(),
                &[handshake::VERSION_HEADER],
                &body,
                BodyMode::Full,
            ));
            return None;
        }
    };
    match handshake::check(&head.method, head.minor_version, head.pairs()) {
        Ok(handshake) => Some((stream, head, handshake)),
        Err(refusal) => {
            // If the write fails, the client is gone.
            let _ = stream.write_all(&handshake::refusal(refusal, BodyMode::Full));
            None
        }
    }
}

/// Adopts the connections that arrive through the hook of an unlinked app, on a thread of their own.
pub(crate) fn adopt_from(handed_over: Receiver<WebsocketStream>, hub: Arc<Hub>) -> io::Result<()> {
    thread::Builder::new()
        .name("humphrey_ws adopt".into())
        .spawn(move || {
            for stream in handed_over {
                if hub.has_stopped() {
                    // The program still has a copy of the sender. Dropping the receiver makes it fail from now on.
                    hub.count_unhandled(stream.unread_messages());
                    break;
                }
                adopt(stream, &hub);
            }
        })
        .map(drop)
}

/// Limits a log line that each connection of a TLS app causes.
static TLS_REFUSED: Limited = Limited::new();

fn adopt(stream: WebsocketStream, hub: &Hub) {
    let parts = match stream.into_parts() {
        Ok(parts) => parts,
        Err(refused) => {
            hub.count_unhandled(refused.unread_messages());
            limited!(
                TLS_REFUSED,
                error,
                "closed a TLS stream that a Humphrey app has handed to an AsyncWebsocketApp: mount the routes in the latter \
                 (with_routes), and have its own listener speak TLS (with_tls); or terminate TLS in a proxy; or use \
                 websocket_handler for this route"
            );
            refused.refuse("TLS connections can't be served here");
            return;
        }
    };
    let messages = parts.messages.len();
    if hub.settings.slow_consumer.prefers_new() {
        limit_unsent(&parts.socket, UnsentLimit::PrefersNew);
    }
    let new_connection = parts.socket.set_nonblocking(true).and_then(|()| {
        Ok(NewConnection {
            peer: parts.peer.ok_or(io::ErrorKind::NotConnected)?,
            stream: transport::plain(mio::net::TcpStream::from_std(parts.socket)),
            peer_slot: None,
            upgraded: Some(Upgraded {
                head: parts.head,
                is_answered: parts.answered,
                pending_out: parts.pending_out,
                has_input_ended: parts.ended,
                close_reply: parts.close_reply,
                has_output_ended: parts.closed,
                #[cfg(feature = "deflate")]
                compression: parts.compression,
                received: parts.protocol.map(|protocol| Received {
                    messages: parts.messages,
                    protocol,
                }),
                ..Upgraded::default()
            }),
        })
    });
    match new_connection {
        Ok(new_connection) => hub.adopt(new_connection),
        // The client has disconnected in the meantime.
        Err(error) => {
            hub.count_unhandled(messages);
            debug!("dropped a connection that Humphrey handed over: {error}");
        }
    }
}
