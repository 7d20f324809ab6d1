//! Requests whose body the program does not want: refused before it is read.

use std::sync::Arc;

use super::app::AsyncWebsocketApp;
use crate::request::{Reject, RequestHead};

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
/// let app: AsyncWebsocketApp<String> = AsyncWebsocketApp::new().with_body_guard(needs_token);
/// ```
pub trait BodyGuard<S>:
    Fn(&RequestHead, Arc<S>) -> Result<(), Reject> + Send + Sync + 'static
{
}

impl<T, S> BodyGuard<S> for T where
    T: Fn(&RequestHead, Arc<S>) -> Result<(), Reject> + Send + Sync + 'static
{
}

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Sets the function that decides whether a client may send the body of a request to a
    /// [mounted route](Self::with_routes).
    ///
    /// It runs on a handler thread when the head of such a request has arrived, before its body is read, and before a
    /// client that sent `Expect: 100-continue` is told to go on (RFC 9110 §10.1.1). What it rejects is answered at once,
    /// and the connection is closed. Requests without a body, or for a path that has no route (404), are not asked about:
    /// so the route's handler must decide about the former itself. Pages that [`with_cors`](Self::with_cors) allows can read the
    /// rejection. If the function panics, the client gets 500.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Reject};
    ///
    /// let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new().with_body_guard(|request, _| {
    ///     match request.method() {
    ///         "POST" => Ok(()),
    ///         _ => Err(Reject::new(405).with_header("Allow", "POST")),
    ///     }
    /// });
    /// ```
    pub fn with_body_guard(mut self, guard: impl BodyGuard<State>) -> Self {
        self.on_body = Some(Box::new(guard));
        self
    }
}
