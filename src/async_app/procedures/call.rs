//! What handlers get: notifications and calls, and how these are answered.

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

/// A notification from a client, as its handler ([`Procedures::on_notification`](super::Procedures::on_notification)) gets it.
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
    /// The connection that it came from.
    pub fn stream(&self) -> &AsyncStream<StreamState> {
        &self.stream
    }

    /// The app's state.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The name that it was sent under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was sent with it.
    pub fn data(&self) -> &Payload {
        &self.data
    }

    /// What was sent with it, as text.
    ///
    /// # Errors
    ///
    /// If it is not UTF-8.
    pub fn text(&self) -> Result<&str, CallError> {
        self.data.text()
    }

    /// The value that was sent with it as JSON.
    ///
    /// # Errors
    ///
    /// If it is no JSON, or that of something else.
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

/// A call from a client, as its handler ([`Procedures::on_call`](super::Procedures::on_call)) gets it.
///
/// It is answered with what the handler returns ([`Answer`](super::Answer)), or later with the [`Reply`] that
/// [`defer`](Self::defer) gives. A call that nobody answers ends when the last of them is dropped: its client is told so in
/// the newer subprotocol; in the older one, which has no word for it, it is counted
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
    /// The connection that it came from.
    pub fn stream(&self) -> &AsyncStream<StreamState> {
        self.event.stream()
    }

    /// The app's state.
    pub fn state(&self) -> &Arc<State> {
        self.event.state()
    }

    /// The procedure's name.
    pub fn name(&self) -> &str {
        self.event.name()
    }

    /// What it is called with.
    pub fn data(&self) -> &Payload {
        self.event.data()
    }

    /// What it is called with, as text.
    ///
    /// # Errors
    ///
    /// If it is not UTF-8; a handler can return the error as it is.
    pub fn text(&self) -> Result<&str, CallError> {
        self.event.text()
    }

    /// The value that it is called with, as JSON.
    ///
    /// # Errors
    ///
    /// If it is no JSON, or that of something else; a handler can return the error as it is.
    #[cfg(feature = "json")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, CallError> {
        self.event.json()
    }

    /// Answers the call later, from any thread: the handler returns nothing, and the next message is handled.
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

    /// Sends a part of the answer, ahead of its end: see [`Reply::item`].
    ///
    /// # Errors
    ///
    /// As [`Reply::item`].
    pub fn item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.pending.item(data.as_ref(), Blocking::Wait)
    }

    /// Sends an item unless too much waits for the client: see [`Reply::try_item`].
    ///
    /// # Errors
    ///
    /// As [`Reply::try_item`].
    pub fn try_item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.pending.item(data.as_ref(), Blocking::Try)
    }

    /// Whether nobody wants the answer any more: its client has cancelled the call, or has gone. A handler that takes long
    /// asks from time to time.
    pub fn cancelled(&self) -> bool {
        self.pending.cancellation().is_cancelled()
    }

    /// Has something done when the call is cancelled: see [`Cancellation::on_cancel`].
    pub fn on_cancel(&self, done: impl FnOnce() + Send + 'static) {
        self.pending.cancellation().on_cancel(done);
    }

    /// Waits until the call is cancelled, but no longer than that. Returns whether it is.
    pub fn wait_cancelled(&self, timeout: Duration) -> bool {
        self.pending.cancellation().wait(timeout)
    }

    /// Whether the call is cancelled, for other threads.
    pub fn cancellation(&self) -> Cancellation {
        self.pending.cancellation()
    }

    /// Returns the error for a call that was cancelled, and whose handler stops for that reason:
    /// `Err(call.abort_error())`. Where the handler also returns `Ok`, write `Err(call.abort_error().into())`. It aborts nothing
    /// by itself.
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

/// The answer to a call, to be given later, from any thread ([`Call::defer`]).
///
/// Sending waits only while the engine's own mailbox is full, never for the client.
pub struct Reply(pub(super) Arc<Pending>);

impl Reply {
    /// Answers the call. Does nothing if that has been done, or nobody wants it any more.
    pub fn ok(self, payload: impl Into<Payload>) {
        self.0.end(Ok(payload.into()));
    }

    /// Ends the call with an error: a text, or a [`CallError`]. In the older subprotocol, which has none, it is counted as
    /// unanswered ([`Calls::unanswered`](crate::Calls::unanswered)).
    pub fn error(self, error: impl Into<CallError>) {
        self.0.end(Err(error.into()));
    }

    /// Sends a part of the answer, ahead of its end. Only the newer subprotocol has parts.
    ///
    /// What happens when the client reads too slowly is [`SlowConsumer`](crate::SlowConsumer)'s to say: for much data use
    /// [`try_item`](Self::try_item).
    ///
    /// # Errors
    ///
    /// [`Aborted`](CallErrorReason::Aborted) if the call is cancelled, or has ended;
    /// [`NotSpoken`](CallErrorReason::NotSpoken) in the older subprotocol; [`Closed`](CallErrorReason::Closed);
    /// [`TooLarge`](CallErrorReason::TooLarge). A handler can return them as they are.
    pub fn item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.0.item(data.as_ref(), Blocking::Wait)
    }

    /// Sends an item unless too much waits for the client already; then it can be tried again a little later.
    ///
    /// # Errors
    ///
    /// [`Full`](CallErrorReason::Full) then; otherwise as [`item`](Self::item).
    pub fn try_item(&self, data: impl AsRef<[u8]>) -> Result<(), CallError> {
        self.0.item(data.as_ref(), Blocking::Try)
    }

    /// Whether nobody wants the answer any more.
    pub fn cancelled(&self) -> bool {
        self.0.cancellation().is_cancelled()
    }

    /// Has something done when the call is cancelled: see [`Cancellation::on_cancel`].
    pub fn on_cancel(&self, done: impl FnOnce() + Send + 'static) {
        self.0.cancellation().on_cancel(done);
    }

    /// Waits until the call is cancelled, but no longer than that. Returns whether it is.
    pub fn wait_cancelled(&self, timeout: Duration) -> bool {
        self.0.cancellation().wait(timeout)
    }

    /// Whether the call is cancelled, for other threads.
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

/// A call whose handler has begun, and that is to be answered, by whoever has it.
pub(super) struct Pending {
    pub(super) call: Arc<InFlight>,
    pub(super) session: Arc<Session>,
    pub(super) shared: Arc<AppShared>,
}

impl Pending {
    pub(super) fn cancellation(&self) -> Cancellation {
        Cancellation(self.call.clone())
    }

    /// Answers the call with what its handler has returned.
    pub(super) fn answer(&self, returned: impl sealed::IntoOutcome) {
        if let Some(outcome) = returned.outcome() {
            self.end(outcome);
        }
    }

    /// Ends the call, unless it has ended.
    pub(super) fn end(&self, outcome: CallOutcome) {
        let Some(peer) = ProcedurePeer::of(&self.session) else {
            return;
        };
        if !self.call.end() {
            return;
        }
        // Before its client can know: it may use the id again at once.
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
                // Without its text, lest its client wait for ever.
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
            // A room has nothing to do with it.
            Err(SendErrorReason::Closed | SendErrorReason::Rooms) => {
                refuse(CallErrorReason::Closed)
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.end(Err(CallErrorReason::Unanswered.into()));
    }
}
