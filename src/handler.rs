//! Handlers for the WebSocket routes of a Humphrey app.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use humphrey::http::Request;
use humphrey::stream::Stream;

#[cfg(feature = "deflate")]
use crate::compression::Compression;
use crate::host;
#[cfg(feature = "deflate")]
use crate::stream::RouteCompression;
use crate::stream::WebsocketStream;
use crate::sync::ignore_poison;

/// A function that handles a connection with the blocking API.
pub trait WebsocketHandler<S>: Fn(WebsocketStream, Arc<S>) + Send + Sync {}

impl<T, S> WebsocketHandler<S> for T where T: Fn(WebsocketStream, Arc<S>) + Send + Sync {}

/// Creates a Humphrey WebSocket route from a blocking handler.
///
/// The route answers the handshake, then runs the handler with the stream. A request that is not a valid handshake is
/// refused with a status that says why (RFC 6455 §4.2). The handler occupies one of the Humphrey app's threads for as
/// long as it runs; with [`async_websocket_handler`] connections occupy none.
///
/// ```no_run
/// use humphrey::App;
/// use humphrey_ws::{Message, websocket_handler};
///
/// let app: App<()> = App::new().with_websocket_route(
///     "/ws",
///     websocket_handler(|mut stream, _| {
///         while let Ok(message) = stream.recv() {
///             if stream.send(message).is_err() {
///                 break;
///             }
///         }
///     }),
/// );
/// app.run("127.0.0.1:8080").unwrap();
/// ```
pub fn websocket_handler<T, S>(handler: T) -> impl Fn(Request, Stream, Arc<S>)
where
    T: WebsocketHandler<S>,
{
    move |request: Request, stream: Stream, state: Arc<S>| {
        if let Some(mut stream) = host::handshake(&request, stream)
            && stream.answer_handshake()
        {
            handler(stream, state);
        }
    }
}

/// Creates a Humphrey WebSocket route from a blocking handler, as [`websocket_handler`] does, that compresses messages for
/// clients that negotiate permessage-deflate (RFC 7692).
///
/// [`WebsocketStream::send`] compresses each message of at least [`Compression::replies_from`] bytes (1 KiB by default)
/// independently, and sends it uncompressed if compression does not make it shorter. [`WebsocketStream::recv`] inflates
/// compressed messages of the client. The limit of 16 MiB applies to the inflated message: a longer one ends the
/// connection with 1009. The streams of the route share up to 4 idle compressors of about 380 KB, and up to 4 idle
/// inflaters of about 115 KB.
///
/// If the handler hands the stream over to an [`AsyncWebsocketApp`](crate::AsyncWebsocketApp), the app still accepts
/// compressed messages from the client. It compresses its own messages if it is configured to
/// ([`with_compression`](crate::AsyncWebsocketApp::with_compression)).
///
/// ```no_run
/// use humphrey::App;
/// use humphrey_ws::{Compression, websocket_handler_with_compression};
///
/// let app: App<()> = App::new().with_websocket_route(
///     "/ws",
///     websocket_handler_with_compression(Compression::new(), |mut stream, _| {
///         while let Ok(message) = stream.recv() {
///             if stream.send(message).is_err() {
///                 break;
///             }
///         }
///     }),
/// );
/// app.run("127.0.0.1:8080").unwrap();
/// ```
#[cfg(feature = "deflate")]
pub fn websocket_handler_with_compression<T, S>(
    compression: Compression,
    handler: T,
) -> impl Fn(Request, Stream, Arc<S>)
where
    T: WebsocketHandler<S>,
{
    let route = Arc::new(RouteCompression::new(compression));
    move |request: Request, stream: Stream, state: Arc<S>| {
        if let Some(mut stream) = host::handshake_with_compression(&request, stream, &route)
            && stream.answer_handshake()
        {
            handler(stream, state);
        }
    }
}

/// Creates a Humphrey WebSocket route that hands its connections over to an
/// [`AsyncWebsocketApp`](crate::AsyncWebsocketApp).
///
/// The WebSocket app answers or refuses the handshake
/// ([`with_allowed_origins`](crate::AsyncWebsocketApp::with_allowed_origins)), and the Humphrey app's thread is free at
/// once. The two apps may have different states. Humphrey buffers what it reads after the request, and those bytes are
/// lost: a client that sends messages before it has the handshake response, which browsers do not do, loses them. An
/// app that listens itself does not have this limitation.
///
/// If no app created the hook, the handshake is answered here, and no request is refused on behalf of an app.
///
/// ```no_run
/// use humphrey::App;
/// use humphrey_ws::{AsyncWebsocketApp, async_websocket_handler};
/// use std::thread::spawn;
///
/// let ws = AsyncWebsocketApp::<()>::new_unlinked()
///     .with_message_handler(|stream, message, _| stream.send(message));
/// let hook = ws.connect_hook().unwrap();
/// let app: App<()> = App::new().with_websocket_route("/ws", async_websocket_handler(hook));
/// spawn(move || app.run("127.0.0.1:8080").unwrap());
/// ws.run();
/// ```
pub fn async_websocket_handler<S>(
    hook: Arc<Mutex<Sender<WebsocketStream>>>,
) -> impl Fn(Request, Stream, Arc<S>) {
    let app_answers = host::is_hook_of_app(&hook);
    move |request: Request, stream: Stream, _: Arc<S>| {
        if let Some(mut stream) = host::handshake(&request, stream)
            && (app_answers || stream.answer_handshake())
        {
            let sent = ignore_poison(hook.lock()).send(stream);
            if let Err(refused) = sent {
                // The app has stopped: the client gets a close frame with 1001.
                refused.0.close_going_away();
            }
        }
    }
}
