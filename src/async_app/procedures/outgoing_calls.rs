//! Notifications and calls from the program to clients.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::payload::{CallError, CallErrorReason, Payload};
use super::peer::{CallOutcome, OnOutcome, OutcomeWaiter, OutgoingCall, ProcedurePeer};
use crate::async_app::connection_id::ConnectionId;
use crate::async_app::publish::{AppShared, Blocking, Recipients};
use crate::async_app::room::Room;
use crate::async_app::stream::AsyncStream;
use crate::cork;
use crate::engine::Session;
use crate::error::{SendError, SendErrorReason};
use crate::message::Message;
use crate::protocol::procedures::{self, NAME_BYTES_MAX};

impl Message {
    /// Creates a notification for clients that speak [procedures](crate::procedures). Its bytes are the same in both
    /// subprotocols. Other clients receive it as a plain binary message.
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    ///
    /// ```
    /// use humphrey_ws::Message;
    ///
    /// assert_eq!(Message::notification("tick", "7").bytes(), b"\x01\x04tick7");
    /// ```
    #[track_caller]
    pub fn notification(name: &str, data: impl AsRef<[u8]>) -> Self {
        check_name(name);
        Self::new_binary(procedures::notification(name, data.as_ref()))
    }
}

#[track_caller]
pub(super) fn check_name(name: &str) {
    assert!(
        name.len() <= NAME_BYTES_MAX,
        "a procedure's name has at most {NAME_BYTES_MAX} bytes, but this one has {}",
        name.len()
    );
}

impl Room {
    /// Sends a [notification](Message::notification) to all members of the room, with the backpressure of
    /// [`broadcast`](Self::broadcast).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new();
    /// app.sender().room("main").notify("message", "Hello, all.");
    /// ```
    #[track_caller]
    pub fn notify(&self, name: &str, data: impl AsRef<[u8]>) {
        self.broadcast(Message::notification(name, data));
    }

    /// Sends a [notification](Message::notification) to all members of the room but one, such as the client that it
    /// came from.
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn notify_except(&self, id: ConnectionId, name: &str, data: impl AsRef<[u8]>) {
        self.broadcast_except(id, Message::notification(name, data));
    }

    /// Sends a [notification](Message::notification) to all members of the room, or returns it as a message in the
    /// error. Never waits.
    ///
    /// # Errors
    ///
    /// Those of [`try_broadcast`](Self::try_broadcast).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn try_notify(&self, name: &str, data: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.try_broadcast(Message::notification(name, data))
    }

    /// Sends a [notification](Message::notification) to all members of the room but one, or returns it as a message in
    /// the error. Never waits.
    ///
    /// # Errors
    ///
    /// Those of [`try_broadcast`](Self::try_broadcast).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn try_notify_except(
        &self,
        id: ConnectionId,
        name: &str,
        data: impl AsRef<[u8]>,
    ) -> Result<(), SendError> {
        self.try_broadcast_except(id, Message::notification(name, data))
    }
}

impl<StreamState> AsyncStream<StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    /// Sends a [notification](Message::notification) to the client, as [`send`](Self::send) does with a message.
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn notify(&self, name: &str, data: impl AsRef<[u8]>) {
        self.send(Message::notification(name, data));
    }

    /// Sends a [notification](Message::notification) to the client, or returns it as a message in the error. Never
    /// waits.
    ///
    /// # Errors
    ///
    /// Those of [`try_send`](Self::try_send).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    ///
    /// ```
    /// # use humphrey_ws::AsyncWebsocketApp;
    /// let app = AsyncWebsocketApp::<()>::new().with_message_handler(|stream, _, _| {
    ///     if stream.try_notify("progress", "7 %").is_err() {
    ///         // The client reads too slowly: the next notification tells it more.
    ///     }
    /// });
    /// ```
    #[track_caller]
    pub fn try_notify(&self, name: &str, data: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.try_send(Message::notification(name, data))
    }

    /// Calls a procedure of the client. The closure receives the outcome, exactly once.
    ///
    /// The closure runs like a handler of this connection, in the connection's order, and may block. It runs when the
    /// answer arrives, when the timeout expires, or when the connection ends, before the disconnect handler. After a
    /// timeout, the client receives a cancellation. If the call can't be made, the closure runs at once, on this
    /// thread, with the error: [`NotSpoken`](CallErrorReason::NotSpoken) unless the client speaks the newer
    /// subprotocol, [`TooMany`](CallErrorReason::TooMany), [`TooLarge`](CallErrorReason::TooLarge) or
    /// [`Closed`](CallErrorReason::Closed).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    ///
    /// ```
    /// # use humphrey_ws::{AsyncWebsocketApp, Message};
    /// use humphrey_ws::procedures::Procedures;
    /// use std::time::Duration;
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_procedures(Procedures::<(), ()>::new())
    ///     .with_connect_handler(|stream, _| {
    ///         let room = stream.room("main");
    ///         stream.call("name", "", Duration::from_secs(10), move |name| match name {
    ///             Ok(name) => room.notify("welcome", name),
    ///             Err(error) => room.notify("somebody", error.to_string()),
    ///         });
    ///     });
    /// ```
    #[track_caller]
    pub fn call(
        &self,
        name: &str,
        data: impl AsRef<[u8]>,
        timeout: Duration,
        done: impl FnOnce(Result<Payload, CallError>) + Send + 'static,
    ) {
        check_name(name);
        let done: OnOutcome = Box::new(done);
        let Some((session, shared, peer)) = self.peer() else {
            return done(Err(self.peer_error().into()));
        };
        let id = match peer.register(OutgoingCall::Callback(done, None)) {
            Ok(id) => id,
            Err((OutgoingCall::Callback(done, _), reason)) => return done(Err(reason.into())),
            Err((OutgoingCall::Waiting(_), _)) => return,
        };
        if let Err(reason) = send_request(session, shared, id, name, data.as_ref()) {
            // This fails if the end of the connection has already run the closure.
            if let Some(OutgoingCall::Callback(done, _)) = peer.take_outgoing(id) {
                done(Err(reason.into()));
            }
            return;
        }
        let (of, shared) = (Arc::downgrade(session), shared.clone());
        let timer = peer
            .timers
            .add(timeout, Box::new(move || expire(&of, &shared, id)));
        if let Some(timer) = timer {
            peer.set_timer(id, timer);
        }
    }

    /// Calls a procedure of the client and waits for the outcome, for at most `timeout`. Any thread may wait, including
    /// a handler of this connection. The connection's other messages are handled afterwards.
    ///
    /// # Errors
    ///
    /// The error with which the client answers; [`TimedOut`](CallErrorReason::TimedOut), after which the client
    /// receives a cancellation; and those of [`call`](Self::call).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn call_wait(
        &self,
        name: &str,
        data: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<Payload, CallError> {
        check_name(name);
        let Some((session, shared, peer)) = self.peer() else {
            return Err(self.peer_error().into());
        };
        let waiter = Arc::new(OutcomeWaiter::default());
        let id = peer
            .register(OutgoingCall::Waiting(waiter.clone()))
            .map_err(|(_, reason)| reason)?;
        if let Err(reason) = send_request(session, shared, id, name, data.as_ref()) {
            peer.take_outgoing(id);
            return Err(reason.into());
        }
        if let Some(hub) = shared.running() {
            // Otherwise the messages of a handler are sent only when the handler ends.
            hub.wake_deferred();
        }
        cork::before_waiting();
        if let Some(outcome) = waiter.wait(timeout) {
            return outcome;
        }
        match peer.take_outgoing(id) {
            Some(_) => {
                send_reset(session, shared, id);
                Err(CallErrorReason::TimedOut.into())
            }
            // The answer has just arrived, or will arrive immediately.
            None => waiter
                .wait(Duration::from_secs(1))
                .unwrap_or_else(|| Err(CallErrorReason::TimedOut.into())),
        }
    }

    fn peer(&self) -> Option<(&Arc<Session>, &Arc<AppShared>, &ProcedurePeer)> {
        let (session, shared) = self.session()?;
        Some((session, shared, ProcedurePeer::of(session)?))
    }

    fn peer_error(&self) -> CallErrorReason {
        match self.session() {
            Some(_) => CallErrorReason::NotSpoken,
            None => CallErrorReason::Closed,
        }
    }
}

fn send_request(
    session: &Session,
    shared: &AppShared,
    id: u32,
    name: &str,
    data: &[u8],
) -> Result<(), CallErrorReason> {
    let message = Message::new_binary(procedures::request(id, name, data));
    shared
        .publish(Recipients::Session(session), message, Blocking::Wait)
        .map_err(|error| match error.reason {
            SendErrorReason::TooLarge => CallErrorReason::TooLarge,
            _ => CallErrorReason::Closed,
        })
}

/// Sends a cancellation to the client.
pub(super) fn send_reset(session: &Session, shared: &AppShared, id: u32) {
    let message = Message::new_binary(procedures::reset(id));
    let _ = shared.publish(Recipients::Session(session), message, Blocking::Wait);
}

/// Makes the connection's handlers report an expired call.
fn expire(session: &Weak<Session>, shared: &AppShared, id: u32) {
    if let Some(session) = session.upgrade()
        && let Some(peer) = ProcedurePeer::of(&session)
        && peer.expire(id)
        && let Some(hub) = shared.running()
    {
        hub.nudge(session.id);
    }
}

/// Runs the closures of calls that were not answered in time.
pub(super) fn tell_expired(session: &Session, shared: &AppShared) {
    if let Some(peer) = ProcedurePeer::of(session) {
        while let Some((id, done)) = peer.next_expired() {
            send_reset(session, shared, id);
            done(Err(CallErrorReason::TimedOut.into()));
        }
    }
}

/// Passes an answer to the closure that waits for it.
pub(super) fn tell_answered(peer: &ProcedurePeer, outcome: CallOutcome) {
    if let Some(done) = peer.next_answered() {
        done(outcome);
    }
}
