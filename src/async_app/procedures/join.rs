//! Joins and leaves that clients request.

use crate::async_app::stream::AsyncStream;

/// A function that decides whether a client may join or leave a room with the reserved calls `$join` and `$leave` of
/// [procedures](crate::procedures).
///
/// It receives the stream and the room's name. It may block: only its own connection waits.
///
/// ```
/// use humphrey_ws::{AsyncStream, AsyncWebsocketApp};
///
/// fn is_public(_: &AsyncStream, room: &str) -> bool {
///     room.starts_with("news/")
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_join_handler(is_public);
/// ```
pub trait JoinHandler<S2: Send + Sync + Default + 'static>:
    Fn(&AsyncStream<S2>, &str) -> bool + Send + Sync + 'static
{
}

impl<T, S2: Send + Sync + Default + 'static> JoinHandler<S2> for T where
    T: Fn(&AsyncStream<S2>, &str) -> bool + Send + Sync + 'static
{
}
