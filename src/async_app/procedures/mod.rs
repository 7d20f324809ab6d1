//! Procedures: named notifications both ways, and calls that return.
//!
//! Bytes are read and written in `protocol::procedures`. What is known of a client is its `peer`, which the engine keeps
//! with its session: its shard's thread reads there what comes first (`received`), handlers then `serve` it.

mod answer;
mod call;
mod cancellation;
mod join;
mod outgoing_calls;
mod payload;
mod peer;
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
pub(super) use self::serve::{Serving, close, ends, nudged, received};
use crate::protocol::procedures;

/// The subprotocols, the one that is chosen first in front.
pub(super) const SUBPROTOCOLS: &[&str] = &[procedures::V1, procedures::OLD];

type OnEvent<State, StreamState> = Box<dyn Fn(Event<State, StreamState>) + Send + Sync>;
type OnCall<State, StreamState> = Box<dyn Fn(Call<State, StreamState>) + Send + Sync>;

/// What clients may call, and what they may notify of; for
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
/// Handlers run as those for messages do ([`MessageHandler`](crate::async_app::MessageHandler)): they may block, and those of
/// one connection run one after the other, in the order in which its client has sent. A call that takes long is answered later
/// ([`Call::defer`]), and does not hold up what comes after it.
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
    /// None as yet. Clients that speak the newer subprotocol can join rooms all the same, as far as the
    /// [join handler](crate::AsyncWebsocketApp::with_join_handler) lets them.
    pub fn new() -> Self {
        Self {
            events: HashMap::new(),
            calls: HashMap::new(),
        }
    }

    /// Has the notifications of that name handled. Those of other names are counted
    /// ([`Calls::notifications_unknown`](crate::Calls::notifications_unknown)).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes, begins with `$` (such names are the library's own), or has a handler already.
    #[track_caller]
    pub fn on_notification(
        mut self,
        name: &str,
        handler: impl Fn(Event<State, StreamState>) + Send + Sync + 'static,
    ) -> Self {
        let before = self.events.insert(own_name(name), Box::new(handler));
        assert!(
            before.is_none(),
            "notifications {name:?} have a handler already"
        );
        self
    }

    /// Has the calls of that procedure handled: [`Answer`] is what handlers may return. Calls of other names are answered
    /// with an error, or counted in the older subprotocol ([`Calls::unknown`](crate::Calls::unknown)).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes, begins with `$` (such names are the library's own), or has a handler already.
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
        assert!(before.is_none(), "calls {name:?} have a handler already");
        self
    }
}

/// A name that a program may give.
#[track_caller]
fn own_name(name: &str) -> Arc<str> {
    check_name(name);
    assert!(
        !name.starts_with('$'),
        "names that begin with '$' are the library's own, as {name:?} would be"
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
