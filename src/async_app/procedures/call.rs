//! Notifications and calls as handlers receive them, and replies.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::answer::{Aborted, sealed};
use super::cancellation::{CancelCause, Cancellation, InFlight};
use super::payload::{CallError, CallErrorReason, Payload};
use super::peer::{CallOutcome, ProcedurePeer};
use crate::async_app::publish::{AppShared, Blocking, Recipients};
use crate::async_app::stream::AsyncStream;
use crate::engine::Session;
use crate::error::SendErrorReason;
use crate::message::Message;
use crate::protocol::procedures;

/// A notification from a client; its handler ([`Procedures::on_notification`](super::Procedures::on_notification))
/// receives it.
///
/// ```
/// use humphrey_ws::procedures::Procedures;
///
/// let procedures = Procedures::<(), ()>::new()
///     .on_notification("broadcast", |event| event.stream().room("main").notify("message", event.data()));
/// ```
pub struct Event<State = (), StreamState = ()>
where
    StreamState: Send + Sync + Default + 'static,
{
    pub(super) name: Arc<str>,
    pub(super) data: Payload,
    pub(super) stream: AsyncStream<StreamState>,
    pub(super) state: Arc<State>,
}

impl<State, StreamState> Event<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    /// Returns the connection that sent the notification.
    pub fn stream(&self) -> &AsyncStream<StreamState> {
        &self.stream
    }

    /// Returns the app's state.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Returns the name of the notification.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the payload.
    pub fn data(&self) -> &Payload {
        &self.data
    }

    /// Returns the payload as text.
    ///
    /// # Errors
    ///
    /// If it is not UTF-8. A handler of a call can return the error as it is.
    pub fn text(&self) -> Result<&str, CallError> {
        self.data.text()
    }

    /// Deserialises the payload from JSON.
    ///
    /// # Errors
    ///
    /// If it is not JSON, or does not fit the type. A handler of a call can return the error as it is.
    #[cfg(feature = "json")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, CallError> {
        self.data.json()
    }
}

impl<State, StreamState> fmt::Debug for Event<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("name", &self.name)
            .field("data", &self.data)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// A call from a client; its handler ([`Procedures::on_call`](super::Procedures::on_call)) receives it.
///
/// The handler's return value ([`Answer`](super::Answer)) answers the call, or later the [`Reply`] that
/// [`defer`](Self::defer) returns. A call ends unanswered when the last of these is dropped. In the newer subprotocol
/// the client then gets an error; the older one has no errors, so the call is only counted
/// ([`Calls::unanswered`](crate::Calls::unanswered)).
pub struct Call<State = (), StreamState = ()>
where
    StreamState: Send + Sync + Default + 'static,
{
    pub(super) event: Event<State, StreamState>,
    pub(super) pending: Arc<Pending>,
}

impl<State, StreamState> Call<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    /// Returns the connection that made the call.
    pub fn stream(&self) -> &AsyncStream<StreamState> {
        self.event.stream()
    }

    /// Returns the app's state.
    pub fn state(&self) -> &Arc<State> {
        self.event.state()
    }

    /// Returns the procedure's name.
    pub fn name(&self) -> &str {
        self.event.name()
    }

    /// Returns the payload of the call.
    pub fn data(&self) -> &Payload {
        self.event.data()
    }

    /// Returns the payload of the call as text.
    ///
    /// # Errors
    ///
    /// If it is not UTF-8; a handler can return the error as it is.
    pub fn text(&self) -> Result<&str, CallError> {
        self.event.text()
    }

    /// Deserialises the payload of the call from JSON.
    ///
    /// # Errors
    ///
    /// If it is not JSON, or does not fit the type. A handler can return the error as it is.
    #[cfg(feature = "json")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, CallError> {
        self.event.json()
    }

    /// Defers the answer: any thread can give it later. The handler returns nothing, and the connection's next message
    /// is handled.
    ///
    /// ```
    /// use humphrey_ws::procedures::Procedures;
    ///
    /// let procedures = Procedures::<(), ()>::new().on_call("slow", |call| {
    ///     let reply = call.defer();
    ///     std::thread::spawn(move || reply.ok("done at last"));
    /// });
    /// ```
    pub fn defer(&self) -> Reply {
        Reply(self.pending.clone())
    }

    /// Sends one item of a streamed answer: see [`Reply::item`].
    ///
    /// # Errors
    ///
    /// Those of [`Reply::item`].
    pub fn item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.pending.item(data.as_ref(), Blocking::Wait)
    }

    /// Sends one item of a streamed answer unless the client's outbox is too full: see [`Reply::try_item`].
    ///
    /// # Errors
    ///
    /// Those of [`Reply::try_item`].
    pub fn try_item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.pending.item(data.as_ref(), Blocking::Try)
    }

    /// Returns whether the client has cancelled the call or disconnected. A handler that takes long should check it
    /// regularly.
    pub fn cancelled(&self) -> bool {
        self.pending.cancellation().is_cancelled()
    }

    /// Runs a function when the call is cancelled: see [`Cancellation::on_cancel`].
    pub fn on_cancel(&self, done: impl FnOnce() + Send + 'static) {
        self.pending.cancellation().on_cancel(done);
    }

    /// Waits until the call is cancelled, for at most `timeout`. Returns whether it is cancelled.
    pub fn wait_cancelled(&self, timeout: Duration) -> bool {
        self.pending.cancellation().wait(timeout)
    }

    /// Returns a handle for other threads that tells whether the call is cancelled.
    pub fn cancellation(&self) -> Cancellation {
        self.pending.cancellation()
    }

    /// Returns the error with which the handler of a cancelled call stops: `Err(call.abort_error())`. If the handler
    /// also returns `Ok`, write `Err(call.abort_error().into())`. Calling this does not itself end the call.
    pub fn abort_error(&self) -> Aborted {
        Aborted(())
    }
}

impl<State, StreamState> fmt::Debug for Call<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("name", &self.name())
            .field("data", &self.data())
            .field("stream", &self.stream())
            .field("cancelled", &self.cancelled())
            .finish_non_exhaustive()
    }
}

/// The reply to a deferred call ([`Call::defer`]), which any thread can give.
///
/// Sending waits only while a mailbox of the engine is full, never for the client.
pub struct Reply(pub(super) Arc<Pending>);

impl Reply {
    /// Answers the call. Does nothing if the call has ended or was cancelled.
    pub fn ok(self, payload: impl Into<Payload>) {
        self.0.end(Ok(payload.into()));
    }

    /// Ends the call with an error: a text, or a [`CallError`]. The older subprotocol has no errors, so there the call
    /// is only counted as unanswered ([`Calls::unanswered`](crate::Calls::unanswered)).
    pub fn error(self, error: impl Into<CallError>) {
        self.0.end(Err(error.into()));
    }

    /// Sends one item of a streamed answer. Only the newer subprotocol has streamed answers.
    ///
    /// [`SlowConsumer`](crate::SlowConsumer) decides what happens when the client reads too slowly. For much data use
    /// [`try_item`](Self::try_item), which applies backpressure.
    ///
    /// # Errors
    ///
    /// [`Aborted`](CallErrorReason::Aborted) if the call is cancelled or has ended;
    /// [`NotSpoken`](CallErrorReason::NotSpoken) in the older subprotocol; [`Closed`](CallErrorReason::Closed);
    /// [`TooLarge`](CallErrorReason::TooLarge). A handler can return them as they are.
    pub fn item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.0.item(data.as_ref(), Blocking::Wait)
    }

    /// Sends one item of a streamed answer unless the client's outbox is too full; it can be tried again a little
    /// later.
    ///
    /// # Errors
    ///
    /// [`Full`](CallErrorReason::Full) if the outbox is more than half full; otherwise those of [`item`](Self::item).
    pub fn try_item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.0.item(data.as_ref(), Blocking::Try)
    }

    /// Returns whether the client has cancelled the call or disconnected.
    pub fn cancelled(&self) -> bool {
        self.0.cancellation().is_cancelled()
    }

    /// Runs a function when the call is cancelled: see [`Cancellation::on_cancel`].
    pub fn on_cancel(&self, done: impl FnOnce() + Send + 'static) {
        self.0.cancellation().on_cancel(done);
    }

    /// Waits until the call is cancelled, for at most `timeout`. Returns whether it is cancelled.
    pub fn wait_cancelled(&self, timeout: Duration) -> bool {
        self.0.cancellation().wait(timeout)
    }

    /// Returns a handle for other threads that tells whether the call is cancelled.
    pub fn cancellation(&self) -> Cancellation {
        self.0.cancellation()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("cancelled", &self.cancelled())
            .finish_non_exhaustive()
    }
}

/// A call whose handler has begun and that has not been answered.
pub(super) struct Pending {
    pub(super) call: Arc<InFlight>,
    pub(super) session: Arc<Session>,
    pub(super) shared: Arc<AppShared>,
}

impl Pending {
    pub(super) fn cancellation(&self) -> Cancellation {
        Cancellation(self.call.clone())
    }

    /// Answers the call with its handler's return value.
    pub(super) fn answer(&self, returned: impl sealed::IntoOutcome) {
        if let Some(outcome) = returned.outcome() {
            self.end(outcome);
        }
    }

    /// Ends the call, unless it has ended already.
    pub(super) fn end(&self, outcome: CallOutcome) {
        let Some(peer) = ProcedurePeer::of(&self.session) else {
            return;
        };
        if !self.call.end() {
            return;
        }
        // Before the client can learn of the end, since it may reuse the id at once.
        peer.forget(&self.call);
        self.call.forget_actions();
        let outcome = match self.call.cause() {
            None | Some(CancelCause::Refused) => outcome,
            Some(CancelCause::Reset) => Err(CallErrorReason::Aborted.into()),
            Some(CancelCause::Gone) => return,
        };
        let unanswered = || self.shared.counters.calls_unanswered.add(1);
        let error = match outcome {
            Ok(payload) => match self.send(procedures::response(self.call.id, &payload)) {
                Err(SendErrorReason::TooLarge) => CallErrorReason::TooLarge.into(),
                _ => return,
            },
            Err(error) => error,
        };
        let is_reset = self.call.cause() == Some(CancelCause::Reset);
        if peer.is_v1() {
            if error.reason == CallErrorReason::Unanswered {
                unanswered();
            }
            let text = match (error.text.as_str(), error.reason) {
                ("", CallErrorReason::Failed) => String::new(),
                ("", reason) => CallError::from(reason).to_string(),
                (text, _) => text.to_owned(),
            };
            let error = |text: &str| procedures::error(self.call.id, error.reason.code(), text);
            if let Err(SendErrorReason::TooLarge) = self.send(error(&text)) {
                // Without the text, so that the client does not wait for ever.
                let _ = self.send(error(""));
            }
        } else if !is_reset && error.reason != CallErrorReason::Unknown {
            unanswered();
        }
    }

    fn send(&self, frame: Vec<u8>) -> Result<(), SendErrorReason> {
        self.publish(frame, Blocking::Wait)
    }

    fn publish(&self, frame: Vec<u8>, blocking: Blocking) -> Result<(), SendErrorReason> {
        let message = Message::new_binary(frame);
        self.shared
            .publish(Recipients::Session(&self.session), message, blocking)
            .map_err(|error| error.reason)
    }

    fn item(&self, data: &[u8], blocking: Blocking) -> Result<(), CallError> {
        let refuse = |reason: CallErrorReason| Err(reason.into());
        match ProcedurePeer::of(&self.session) {
            Some(peer) if peer.is_v1() => {}
            _ => return refuse(CallErrorReason::NotSpoken),
        }
        match self.call.cause() {
            Some(CancelCause::Gone) => return refuse(CallErrorReason::Closed),
            Some(_) => return refuse(CallErrorReason::Aborted),
            None if self.call.has_ended() => return refuse(CallErrorReason::Aborted),
            None => {}
        }
        match self.publish(procedures::item(self.call.id, data), blocking) {
            Ok(()) => Ok(()),
            Err(SendErrorReason::Full) => refuse(CallErrorReason::Full),
            Err(SendErrorReason::TooLarge) => refuse(CallErrorReason::TooLarge),
            // Reasons of rooms and clusters cannot occur: an item is sent to one connection.
            Err(_) => refuse(CallErrorReason::Closed),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(Err(CallErrorReason::Unanswered.into()));
    }
}
