//! What the program says to its clients in procedures: notifications, and calls of its own.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::payload::{CallError, CallErrorReason, Payload};
use super::peer::{CallOutcome, OnOutcome, OutcomeWaiter, OutgoingCall, ProcedurePeer};
use crate::async_app::publish::{AppShared, Blocking, Recipients};
use crate::async_app::room::Room;
use crate::async_app::stream::AsyncStream;
use crate::engine::{ConnectionId, Session};
use crate::error::{SendError, SendErrorReason};
use crate::message::Message;
use crate::protocol::procedures::{self, NAME_BYTES_MAX};

impl Message {
    /// A notification, as a client gets it that speaks [procedures](crate::procedures): the same bytes for both subprotocols.
    /// For any other client it is a binary message like any other.
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
        "a procedure's name has at most {NAME_BYTES_MAX} bytes, and this one {}",
        name.len()
    );
}

impl Room {
    /// Sends a [notification](Message::notification) to all who are in the room; otherwise as
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

    /// Notifies all members of the room but one, such as the client that it came from.
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn notify_except(&self, id: ConnectionId, name: &str, data: impl AsRef<[u8]>) {
        self.broadcast_except(id, Message::notification(name, data));
    }

    /// Sends a [notification](Message::notification) to all members of the room, or hands it back as a message. Never waits.
    ///
    /// # Errors
    ///
    /// As [`try_broadcast`](Self::try_broadcast).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn try_notify(&self, name: &str, data: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.try_broadcast(Message::notification(name, data))
    }

    /// Notifies all members of the room but one, or hands the notification back as a message. Never waits.
    ///
    /// # Errors
    ///
    /// As [`try_broadcast`](Self::try_broadcast).
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
    /// Sends a [notification](Message::notification) to the client; otherwise as [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// If the name is longer than 255 bytes.
    #[track_caller]
    pub fn notify(&self, name: &str, data: impl AsRef<[u8]>) {
        self.send(Message::notification(name, data));
    }

    /// Sends a [notification](Message::notification) to the client, or hands it back as a message. Never waits.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
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

    /// Calls a procedure of the client, and has the closure told what has come of it: exactly once.
    ///
    /// The closure runs as a handler of this connection does, in its order, and may block: when the answer has come; when
    /// there was none in time, and then the client hears that it is not waited for any more; and when the connection has gone, before
    /// the disconnect handler. Where the call can't be made, it runs at once, here:
    /// [`NotSpoken`](CallErrorReason::NotSpoken) unless the client speaks the newer subprotocol,
    /// [`TooMany`](CallErrorReason::TooMany), [`TooLarge`](CallErrorReason::TooLarge), [`Closed`](CallErrorReason::Closed).
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
            return done(Err(self.why_not().into()));
        };
        let id = match peer.register(OutgoingCall::Callback(done, None)) {
            Ok(id) => id,
            Err((OutgoingCall::Callback(done, _), reason)) => return done(Err(reason.into())),
            Err((OutgoingCall::Waiting(_), _)) => return,
        };
        if let Err(reason) = send_request(session, shared, id, name, data.as_ref()) {
            // Unless its end has told it already.
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

    /// Calls a procedure of the client, and waits for what comes of it, on any thread: also in a handler, also of this
    /// connection, whose other messages wait meanwhile.
    ///
    /// # Errors
    ///
    /// What the client says; [`TimedOut`](CallErrorReason::TimedOut), and then the client hears that it is not waited for
    /// any more; and as [`call`](Self::call).
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
            return Err(self.why_not().into());
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
            // What a handler sends is else sent when it ends.
            hub.wake_deferred();
        }
        if let Some(outcome) = waiter.wait(timeout) {
            return outcome;
        }
        match peer.take_outgoing(id) {
            Some(_) => {
                send_reset(session, shared, id);
                Err(CallErrorReason::TimedOut.into())
            }
            // It has come at this moment, or is about to.
            None => waiter
                .wait(Duration::from_secs(1))
                .unwrap_or_else(|| Err(CallErrorReason::TimedOut.into())),
        }
    }

    fn peer(&self) -> Option<(&Arc<Session>, &Arc<AppShared>, &ProcedurePeer)> {
        let (session, shared) = self.session()?;
        Some((session, shared, ProcedurePeer::of(session)?))
    }

    fn why_not(&self) -> CallErrorReason {
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

/// The client's answer is not waited for any more.
pub(super) fn send_reset(session: &Session, shared: &AppShared, id: u32) {
    let message = Message::new_binary(procedures::reset(id));
    let _ = shared.publish(Recipients::Session(session), message, Blocking::Wait);
}

/// A call has had its time: its connection's handlers are to say so.
fn expire(session: &Weak<Session>, shared: &AppShared, id: u32) {
    if let Some(session) = session.upgrade()
        && let Some(peer) = ProcedurePeer::of(&session)
        && peer.expire(id)
        && let Some(hub) = shared.running()
    {
        hub.nudge(session.id);
    }
}

/// Tells those whose calls were not answered in time.
pub(super) fn tell_expired(session: &Session, shared: &AppShared) {
    if let Some(peer) = ProcedurePeer::of(session) {
        while let Some((id, done)) = peer.next_expired() {
            send_reset(session, shared, id);
            done(Err(CallErrorReason::TimedOut.into()));
        }
    }
}

/// Tells an answer to whoever has asked for it.
pub(super) fn tell_answered(peer: &ProcedurePeer, outcome: CallOutcome) {
    if let Some(done) = peer.next_answered() {
        done(outcome);
    }
}
