//! Settings for rendered messages of rooms with a history.

use super::AsyncWebsocketApp;
#[cfg(feature = "cluster")]
use crate::async_app::renderer::HistoryGap;
use crate::async_app::renderer::KeptMessage;
use crate::message::Message;

impl<State, StreamState> AsyncWebsocketApp<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Sets the function that makes the messages of rooms with a history for those clients that are accepted with
    /// [`Accept::rendered`](crate::Accept::rendered). By default there is none, and all clients receive messages as they
    /// were sent.
    ///
    /// The history keeps each message once, as it was sent, whatever forms its clients receive. The renderer knows the
    /// room, the id and the time ([`KeptMessage`]), so that a client can receive JSON that contains them, for example.
    /// Event streams, and messages that no history keeps, are not rendered.
    ///
    /// A live message is rendered once for all of a room's rendered members, on the thread that publishes it, and again if
    /// another message takes its id first. Replayed messages are rendered on the thread on which a client joins, and kept for the
    /// clients that join after it, until none has joined for about 30 seconds. So the result should depend on the message alone. In
    /// a cluster, each node renders the messages of others on the thread that receives them. So the renderer must not block, and
    /// should not send anything. The rendered message may have up to
    /// [`Limits::message_bytes_max`](field@crate::Limits::message_bytes_max) bytes. If it is longer, or the renderer panics,
    /// an error is logged, and rendered clients don't receive this message. Panics are counted in
    /// [`Metrics::handler_panics`](crate::Metrics::handler_panics).
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, HistoryLimits, Message};
    /// use std::time::UNIX_EPOCH;
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("*", HistoryLimits::messages(100))
    ///     .with_renderer(|kept| {
    ///         let since_1970 = kept.sent_at().duration_since(UNIX_EPOCH).unwrap_or_default();
    ///         let bytes = kept.message().bytes().len();
    ///         Message::new_text(format!(
    ///             r#"{{"id":"{}","at":{},"bytes":{bytes}}}"#,
    ///             kept.id(),
    ///             since_1970.as_millis()
    ///         ))
    ///     })
    ///     .with_handshake_handler(|_, _| Ok(Accept::new().rendered()))
    ///     .with_connect_handler(|stream, _| {
    ///         let _ = stream.join_since("news", None);
    ///     });
    /// ```
    pub fn with_renderer(
        mut self,
        renderer: impl Fn(&KeptMessage<'_>) -> Message + Send + Sync + 'static,
    ) -> Self {
        self.renderers.render = Some(Box::new(renderer));
        self
    }

    /// Sets the function that makes the message which rendered clients ([`Accept::rendered`](crate::Accept::rendered))
    /// receive in place of messages that are missing. By default, or if it returns `None`, they receive none.
    ///
    /// Messages are missing if the broker of a [cluster](Self::with_cluster) has lost them, or no longer keeps those that
    /// this node has not read. The function is called once for each room on each node. The members of the room on this node
    /// receive its message before the messages that follow the gap. Clients of `humphrey_ws.procedures.v1` are told of the gap by
    /// a frame of the subprotocol first, and receive the message without an id.
    ///
    /// The function runs on the thread that receives the messages of other nodes, so it must not block. If it panics, an
    /// error is logged, and it is counted in [`Metrics::handler_panics`](crate::Metrics::handler_panics).
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Message};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("*", HistoryLimits::messages(100))
    ///     .with_cluster("redis://localhost")
    ///     .with_renderer(|kept| kept.message().clone())
    ///     .with_gap_handler(|gap| {
    ///         Some(Message::new_text(format!("messages of {} are missing", gap.room())))
    ///     });
    /// ```
    #[cfg(feature = "cluster")]
    pub fn with_gap_handler(
        mut self,
        handler: impl Fn(&HistoryGap<'_>) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        self.renderers.on_gap = Some(Box::new(handler));
        self
    }
}
