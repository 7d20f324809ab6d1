//! The kinds of handlers: closures that the engine runs on its handler threads.

use std::sync::Arc;

use super::room::Room;
use super::stream::AsyncStream;
use crate::engine::Presence;
use crate::message::Message;
use crate::request::{Accept, Reject, RequestHead};

/// A function that handles a connection or a disconnection.
///
/// It gets the stream and the app's state. It may block: only its own connection waits for it.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp};
/// use std::sync::Arc;
///
/// fn greet(stream: AsyncStream, _: Arc<()>) {
///     stream.send("Hello!");
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_connect_handler(greet);
/// ```
pub trait EventHandler<S, S2: Send + Sync + Default + 'static>:
    Fn(AsyncStream<S2>, Arc<S>) + Send + Sync + 'static
{
}

impl<T, S, S2: Send + Sync + Default + 'static> EventHandler<S, S2> for T where
    T: Fn(AsyncStream<S2>, Arc<S>) + Send + Sync + 'static
{
}

/// A function that handles a message.
///
/// It gets the stream that the message came from, the message, and the app's state. It may block: only its own
/// connection waits for it. Those of one connection run one after the other, in the order the messages were sent, but
/// not always on the same thread: nothing thread-local lasts from one message to the next.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Message};
/// use std::sync::Arc;
///
/// fn echo(stream: AsyncStream, message: Message, _: Arc<()>) {
///     stream.send(message);
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_message_handler(echo);
/// ```
pub trait MessageHandler<S, S2: Send + Sync + Default + 'static>:
    Fn(AsyncStream<S2>, Message, Arc<S>) + Send + Sync + 'static
{
}

impl<T, S, S2: Send + Sync + Default + 'static> MessageHandler<S, S2> for T where
    T: Fn(AsyncStream<S2>, Message, Arc<S>) + Send + Sync + 'static
{
}

/// A function that decides about a handshake, before there is a connection.
///
/// It gets the request and the app's state, and returns how the client is let in, or what it is answered instead. It may
/// block: only this client waits for it.
///
/// ```
/// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject, RequestHead};
/// use std::sync::Arc;
///
/// fn check(request: &RequestHead, password: Arc<String>) -> Result<Accept, Reject> {
///     match request.query_param("password") {
///         Some(given) if given == *password => Ok(Accept::new()),
///         _ => Err(Reject::new(403)),
///     }
/// }
///
/// let app = AsyncWebsocketApp::<String>::new().with_handshake_handler(check);
/// ```
pub trait HandshakeHandler<S, S2: Send + Sync + Default + 'static>:
    Fn(&RequestHead, Arc<S>) -> Result<Accept<S2>, Reject> + Send + Sync + 'static
{
}

impl<T, S, S2: Send + Sync + Default + 'static> HandshakeHandler<S, S2> for T where
    T: Fn(&RequestHead, Arc<S>) -> Result<Accept<S2>, Reject> + Send + Sync + 'static
{
}

/// A function that is told when a connection has joined a room, or has left it.
///
/// It gets the room, the stream, what has changed, and the app's state: once for each change, as they were made, also
/// when the connection leaves because it ends; then before the disconnect handler. It may block: only its own connection
/// waits for it.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Presence, Room};
/// use std::sync::Arc;
///
/// fn announce(room: Room, stream: AsyncStream, change: Presence, _: Arc<()>) {
///     let who = stream.peer_addr();
///     match change {
///         Presence::Joined => room.broadcast(format!("{who} has come; {} are here", room.len())),
///         Presence::Left => room.broadcast(format!("{who} has gone")),
///         _ => {}
///     }
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_room_handler(announce);
/// ```
pub trait RoomHandler<S, S2: Send + Sync + Default + 'static>:
    Fn(Room, AsyncStream<S2>, Presence, Arc<S>) + Send + Sync + 'static
{
}

impl<T, S, S2: Send + Sync + Default + 'static> RoomHandler<S, S2> for T where
    T: Fn(Room, AsyncStream<S2>, Presence, Arc<S>) + Send + Sync + 'static
{
}

/// A function that decides whether a client may send the body of a request to a mounted route.
///
/// It gets the request's head and the app's state. It may block: only this client waits for it.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Reject, RequestHead};
/// use std::sync::Arc;
///
/// fn needs_token(request: &RequestHead, token: Arc<String>) -> Result<(), Reject> {
///     match request.header("Authorization").and_then(|value| value.strip_prefix("Bearer ")) {
///         Some(given) if given == *token => Ok(()),
///         _ => Err(Reject::new(401).with_header("WWW-Authenticate", "Bearer")),
///     }
/// }
///
/// let app = AsyncWebsocketApp::<String>::new().with_body_guard(needs_token);
/// ```
pub trait BodyGuard<S>:
    Fn(&RequestHead, Arc<S>) -> Result<(), Reject> + Send + Sync + 'static
{
}

impl<T, S> BodyGuard<S> for T where
    T: Fn(&RequestHead, Arc<S>) -> Result<(), Reject> + Send + Sync + 'static
{
}
