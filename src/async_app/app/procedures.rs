//! How an app is given procedures.

use super::AsyncWebsocketApp;
use crate::async_app::procedures::{JoinHandler, Procedures};

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Has clients call procedures, and send and get named notifications: those who offer one of the two subprotocols of
    /// [procedures](crate::procedures) in their handshake, unless the
    /// [handshake handler](Self::with_handshake_handler) chooses another. Of them, text messages go to the message handler;
    /// what all others send does anyway.
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

    /// Lets clients join rooms by themselves, and leave them, with the reserved calls of [procedures](crate::procedures):
    /// those rooms for which the handler says so. By default no client can, for no page is to walk into a room that is not
    /// meant for it. The handler is asked before each joining and each leaving; it runs as any other and may block. An app with one speaks the subprotocols also without
    /// procedures of its own.
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

    /// Sets the handler that decides which rooms clients may join by themselves: see
    /// [`with_join_handler`](Self::with_join_handler).
    pub fn on_join(&mut self, handler: impl JoinHandler<StreamState>) {
        self.on_join = Some(Box::new(handler));
    }
}
