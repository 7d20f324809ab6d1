//! Settings for procedures.

use super::AsyncWebsocketApp;
use crate::async_app::procedures::{JoinHandler, Procedures, RefreshHandler};

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Serves [procedures](crate::procedures): calls and named notifications over a subprotocol. They are available to
    /// clients that offer one of the two subprotocols in their handshake, unless the [handshake
    /// handler](Self::with_handshake_handler) chooses another subprotocol. Text messages of these clients go to the
    /// message handler, as do all messages of other clients.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, Procedures};
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_procedures(
    ///     Procedures::<(), ()>::new().on_call("uppercase", |call| Ok(call.text()?.to_uppercase())),
    /// );
    /// ```
    pub fn with_procedures(mut self, procedures: Procedures<State, StreamState>) -> Self {
        self.procedures = Some(procedures);
        self
    }

    /// Lets clients join and leave rooms with the reserved calls `$join` and `$leave` of
    /// [procedures](crate::procedures), if the handler allows it. By default clients cannot, since a page must not join
    /// a room that is not meant for it.
    ///
    /// The handler runs before each join and each leave, and may block. An app that has one negotiates the subprotocols
    /// even without procedures of its own.
    ///
    /// ```
    /// use humphrey_ws::AsyncWebsocketApp;
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_join_handler(|stream, room| room == "main" || stream.path() == "/staff");
    /// ```
    pub fn with_join_handler(mut self, handler: impl JoinHandler<StreamState>) -> Self {
        self.on_join(handler);
        self
    }

    /// Lets clients prolong sessions that expire ([`Accept::expires_at`](crate::Accept::expires_at)), with the reserved call `$refresh`
    /// of the newer subprotocol of [procedures](crate::procedures). By default, a session ends when it expires.
    ///
    /// While a session has an expiry, its client is told in how many seconds it comes, when it connects and whenever it changes: the
    /// JavaScript client then gets a fresh token from its option `refresh` in time, and calls `$refresh` with it, which the handler
    /// checks. So the connection stays, with its rooms and calls. An app that has this handler negotiates the subprotocols even without
    /// procedures of its own.
    ///
    /// ```
    /// use humphrey_ws::procedures::CallError;
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject};
    /// use std::time::{Duration, SystemTime};
    ///
    /// /// When a token expires.
    /// fn expiry_of(token: &str) -> Option<SystemTime> {
    ///     (token == "4711").then(|| SystemTime::now() + Duration::from_secs(600))
    /// }
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_handshake_handler(|request, _| {
    ///         let token = request.query_param("token").unwrap_or_default();
    ///         let expires_at = expiry_of(&token).ok_or(Reject::new(401))?;
    ///         Ok(Accept::new().expires_at(expires_at))
    ///     })
    ///     .with_refresh_handler(|_, token| {
    ///         expiry_of(token).ok_or_else(|| CallError::refused("the token is not valid"))
    ///     });
    /// ```
    pub fn with_refresh_handler(mut self, handler: impl RefreshHandler<StreamState>) -> Self {
        self.on_refresh = Some(Box::new(handler));
        self
    }

    /// Sets the handler that decides which rooms clients may join: see [`with_join_handler`](Self::with_join_handler).
    pub fn on_join(&mut self, handler: impl JoinHandler<StreamState>) {
        self.on_join = Some(Box::new(handler));
    }
}
