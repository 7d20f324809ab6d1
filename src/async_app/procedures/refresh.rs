//! Sessions that clients prolong.

use std::time::SystemTime;

use super::payload::CallError;
use crate::async_app::stream::AsyncStream;

/// A function that checks a fresh token of a client, whose session it prolongs:
/// [`with_refresh_handler`](crate::AsyncWebsocketApp::with_refresh_handler).
///
/// It receives the stream and the token, and returns when the session now expires. With an error, the session expires when it would
/// have, and the client gets the error. It may block: only its own connection waits.
///
/// ```
/// use humphrey_ws::AsyncStream;
/// use humphrey_ws::procedures::CallError;
/// use std::time::{Duration, SystemTime};
///
/// fn refresh(_: &AsyncStream, token: &str) -> Result<SystemTime, CallError> {
///     match token {
///         "fresh" => Ok(SystemTime::now() + Duration::from_secs(3_600)),
///         _ => Err(CallError::refused("the token is not valid")),
///     }
/// }
///
/// let app = humphrey_ws::AsyncWebsocketApp::<()>::new().with_refresh_handler(refresh);
/// ```
pub trait RefreshHandler<S2: Send + Sync + Default + 'static>:
    Fn(&AsyncStream<S2>, &str) -> Result<SystemTime, CallError> + Send + Sync + 'static
{
}

impl<T, S2: Send + Sync + Default + 'static> RefreshHandler<S2> for T where
    T: Fn(&AsyncStream<S2>, &str) -> Result<SystemTime, CallError> + Send + Sync + 'static
{
}
