//! Handler traits: closures that the engine runs for connections, messages, handshakes and rooms.

use std::sync::Arc;

use super::room::Room;
use super::stream::AsyncStream;
use crate::engine::Presence;
use crate::message::Message;
use crate::request::{Accept, Reject, RequestHead};

/// A function that handles a connect or a disconnect.
///
/// It receives the stream and the app's state. It may block: only its own connection waits.
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
/// It receives the stream that the message came from, the message, and the app's state. It may block: only its own
/// connection waits. The handlers of one connection run one at a time, in the order in which the messages were sent,
/// but not always on the same thread, so thread-local values do not persist between messages.
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

/// A function that handles a message, and borrows the stream and the app's state instead of owning them.
///
/// It is a [`MessageHandler`] in every other respect. It costs less, since no message changes the reference count of the
/// stream, its state and the app's state; the last is one that all cores share. It can keep neither of them.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Message};
///
/// fn echo(stream: &AsyncStream, message: Message, _: &()) {
///     stream.send(message);
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_message_handler_ref(echo);
/// ```
pub trait MessageHandlerRef<S, S2: Send + Sync + Default + 'static>:
    Fn(&AsyncStream<S2>, Message, &S) + Send + Sync + 'static
{
}

impl<T, S, S2: Send + Sync + Default + 'static> MessageHandlerRef<S, S2> for T where
    T: Fn(&AsyncStream<S2>, Message, &S) + Send + Sync + 'static
{
}

/// The app's message handler.
pub(super) enum AnyMessageHandler<S, S2: Send + Sync + Default + 'static> {
    Owning(Box<dyn MessageHandler<S, S2>>),
    Borrowing(Box<dyn MessageHandlerRef<S, S2>>),
}

/// A function that accepts or rejects a handshake.
///
/// It receives the request and the app's state, and returns [`Accept`] or [`Reject`]. It
/// may block: only this client waits.
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

/// A function that handles membership changes: connections that join or leave a room.
///
/// It receives the room, the stream, the change, and the app's state. It runs once for each change, in the order in
/// which they were made. When a connection leaves because it ends, it runs before the disconnect handler. It may block:
/// only its own connection waits.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Presence, Room};
/// use std::sync::Arc;
///
/// fn announce(room: Room, stream: AsyncStream, change: Presence, _: Arc<()>) {
///     let who = stream.peer_addr();
///     match change {
///         Presence::Joined => room.broadcast(format!("{who} has joined; {} members", room.len())),
///         Presence::Left => room.broadcast(format!("{who} has left")),
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
/// It receives the request's head and the app's state. It may block: only this client waits.
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
