//! Procedures: named notifications in both directions, and calls with replies.
//!
//! Frames are encoded and parsed in `protocol::procedures`. The state of a client is its `peer`, which the engine
//! stores with the session. The shard's thread reads each frame first (`received`), and handlers then `serve` it.

mod answer;
mod call;
mod cancellation;
mod join;
mod outgoing_calls;
mod payload;
mod peer;
mod refresh;
mod reserved;
mod serve;
mod timers;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

pub use self::answer::{Aborted, Answer};
pub use self::call::{Call, Event, Reply};
pub use self::cancellation::Cancellation;
pub use self::join::JoinHandler;
use self::outgoing_calls::check_name;
pub use self::payload::{CallError, CallErrorReason, Payload};
pub use self::refresh::RefreshHandler;
pub(super) use self::serve::{Serving, close, ends, nudged, received};
use crate::protocol::procedures;

/// The subprotocols, the one that is chosen first in front.
pub(super) const SUBPROTOCOLS: &[&str] = &[procedures::V1, procedures::OLD];

type OnEvent<State, StreamState> = Box<dyn Fn(Event<State, StreamState>) + Send + Sync>;
type OnCall<State, StreamState> = Box<dyn Fn(Call<State, StreamState>) + Send + Sync>;

/// Handlers for calls and notifications from clients; for
/// [`AsyncWebsocketApp::with_procedures`](crate::AsyncWebsocketApp::with_procedures).
///
/// ```
/// use humphrey_ws::AsyncWebsocketApp;
/// use humphrey_ws::procedures::Procedures;
///
/// let app = AsyncWebsocketApp::<()>::new().with_procedures(
///     Procedures::<(), ()>::new()
///         .on_notification("broadcast", |event| event.stream().room("main").notify("message", event.data()))
///         .on_call("myip", |call| Ok(call.stream().peer_addr().to_string()))
///         .on_call("uppercase", |call| Ok(call.text()?.to_uppercase()))
///         .on_call("report", |call| { while !call.cancelled() { /* work */ } Err(call.abort_error()) }));
/// ```
///
/// Handlers run as message handlers do ([`MessageHandler`](crate::async_app::MessageHandler)): they may block, and
/// those of one connection run one at a time, in the order in which the client has sent the calls. A handler that takes
/// long can answer later ([`Call::defer`]), so that it does not delay the client's next messages.
pub struct Procedures<State = (), StreamState = ()>
where
    StreamState: Send + Sync + Default + 'static,
{
    events: HashMap<Arc<str>, OnEvent<State, StreamState>>,
    calls: HashMap<Arc<str>, OnCall<State, StreamState>>,
}

impl<State, StreamState> Procedures<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// Creates a set of procedures without handlers. Clients of the newer subprotocol can join rooms even so, if a
    /// [join handler](crate::AsyncWebsocketApp::with_join_handler) allows it.
    pub fn new() -> Self {
        Self {
            events: HashMap::new(),
            calls: HashMap::new(),
        }
    }

    /// Sets the handler for notifications of this name. Notifications without a handler are counted
    /// ([`Calls::notifications_unknown`](crate::Calls::notifications_unknown)).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes, begins with `$` (reserved for the library), or has a handler already.
    #[track_caller]
    pub fn on_notification(
        mut self,
        name: &str,
        handler: impl Fn(Event<State, StreamState>) + Send + Sync + 'static,
    ) -> Self {
        let before = self.events.insert(own_name(name), Box::new(handler));
        assert!(
            before.is_none(),
            "notification {name:?} already has a handler"
        );
        self
    }

    /// Sets the handler for calls of this procedure; [`Answer`] lists its return types. A call of an unknown procedure
    /// gets an error, and is counted ([`Calls::unknown`](crate::Calls::unknown)); in the older subprotocol it is only
    /// counted.
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes, begins with `$` (reserved for the library), or has a handler already.
    #[track_caller]
    pub fn on_call<A: Answer>(
        mut self,
        name: &str,
        handler: impl Fn(Call<State, StreamState>) -> A + Send + Sync + 'static,
    ) -> Self {
        let handler = move |call: Call<State, StreamState>| {
            let pending = call.pending.clone();
            pending.answer(handler(call));
        };
        let before = self.calls.insert(own_name(name), Box::new(handler));
        assert!(before.is_none(), "procedure {name:?} already has a handler");
        self
    }
}

/// A name that the program may use.
#[track_caller]
fn own_name(name: &str) -> Arc<str> {
    check_name(name);
    assert!(
        !name.starts_with('$'),
        "names that begin with '$' are reserved for the library: {name:?}"
    );
    name.into()
}

impl<State, StreamState> Default for Procedures<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<State, StreamState> fmt::Debug for Procedures<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Procedures")
            .field("events", &self.events.keys())
            .field("calls", &self.calls.keys())
            .finish()
    }
}
