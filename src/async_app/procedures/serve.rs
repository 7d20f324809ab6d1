//! Dispatches frames to their handlers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Procedures;
use super::call::{Call, Event, Pending};
use super::cancellation::{CancelCause, InFlight};
use super::join::JoinHandler;
use super::outgoing_calls::{tell_answered, tell_expired};
use super::payload::{CallError, CallErrorReason};
use super::peer::{ProcedurePeer, outcome, payload_of};
use super::refresh::RefreshHandler;
use super::reserved::{self, Asker};
use super::timers::CallTimers;
use crate::async_app::publish::{AppShared, Blocking, Recipients};
use crate::async_app::stream::AsyncStream;
use crate::engine::{MessageVerdict, PeerEnd, Session};
use crate::message::Message;
use crate::protocol::procedures::{self, ProcedureFrame};

/// The procedures of an app, and its handlers for reserved calls.
pub(in crate::async_app) struct Serving<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    procedures: Procedures<State, StreamState>,
    on_join: Option<Box<dyn JoinHandler<StreamState>>>,
    on_refresh: Option<Box<dyn RefreshHandler<StreamState>>>,
    /// [`Limits::connection_calls_max`](crate::Limits::connection_calls_max)
    calls_max: usize,
    timers: Arc<CallTimers>,
}

impl<State, StreamState> Drop for Serving<State, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    fn drop(&mut self) {
        self.timers.stop();
    }
}

impl<State, StreamState> Serving<State, StreamState>
where
    State: Send + Sync + 'static,
    StreamState: Send + Sync + Default + 'static,
{
    /// `None` if the app has neither procedures nor one of the handlers.
    pub(in crate::async_app) fn of(
        procedures: Option<Procedures<State, StreamState>>,
        on_join: Option<Box<dyn JoinHandler<StreamState>>>,
        on_refresh: Option<Box<dyn RefreshHandler<StreamState>>>,
        calls_max: usize,
    ) -> Option<Self> {
        if procedures.is_none() && on_join.is_none() && on_refresh.is_none() {
            return None;
        }
        Some(Self {
            procedures: procedures.unwrap_or_default(),
            on_join,
            on_refresh,
            calls_max,
            timers: Arc::default(),
        })
    }

    /// Whether clients can prolong their sessions.
    pub(in crate::async_app) fn refreshes(&self) -> bool {
        self.on_refresh.is_some()
    }

    /// Prepares a new connection.
    pub(in crate::async_app) fn begin(&self, session: &Session) {
        ProcedurePeer::begin(session, self.calls_max, &self.timers);
    }

    /// Whether the message is for procedures, and not the app's message handler.
    pub(in crate::async_app) fn takes(&self, session: &Session, message: &Message) -> bool {
        !message.is_text() && ProcedurePeer::of(session).is_some()
    }

    /// Handles a frame, on a handler thread.
    pub(in crate::async_app) fn serve(
        &self,
        session: &Arc<Session>,
        shared: &Arc<AppShared>,
        message: &Message,
        stream: impl FnOnce() -> AsyncStream<StreamState>,
        state: Arc<State>,
    ) {
        let Some(peer) = ProcedurePeer::of(session) else {
            return;
        };
        let counters = &shared.counters;
        // The shard has parsed and accepted the frame before.
        let Ok(frame) = ProcedureFrame::parse(message.bytes(), peer.version()) else {
            return;
        };
        match frame {
            ProcedureFrame::Notification { name, payload } => {
                match self.procedures.events.get_key_value(name) {
                    Some((name, handler)) => {
                        counters.notifications_handled.add(1);
                        handler(Event {
                            name: name.clone(),
                            data: payload_of(message, payload),
                            stream: stream(),
                            state,
                        });
                    }
                    None => counters.notifications_unknown.add(1),
                }
            }
            ProcedureFrame::Request { id, name, payload } => {
                let Some(call) = peer.next_queued() else {
                    let reason = CallErrorReason::Busy;
                    let text = CallError::from(reason).to_string();
                    let frame = procedures::error(id, reason.code(), &text);
                    let message = Message::new_binary(frame);
                    let _ = shared.publish(Recipients::Session(session), message, Blocking::Wait);
                    return;
                };
                let Some(pending) = begin(session, shared, call) else {
                    return;
                };
                if let Some((name, handler)) = self.procedures.calls.get_key_value(name) {
                    counters.calls_handled.add(1);
                    handler(Call {
                        event: Event {
                            name: name.clone(),
                            data: payload_of(message, payload),
                            stream: stream(),
                            state,
                        },
                        pending: Arc::new(pending),
                    });
                } else if let Some(known) = reserved::builtin(name).filter(|_| peer.is_v1()) {
                    let asker = Asker {
                        stream: &stream(),
                        shared,
                        on_join: self.on_join.as_deref(),
                        on_refresh: self.on_refresh.as_deref(),
                        id,
                    };
                    pending.end(known(&asker, payload));
                } else {
                    counters.calls_unknown.add(1);
                    pending.end(Err(CallErrorReason::Unknown.into()));
                }
            }
            ProcedureFrame::Response { .. } | ProcedureFrame::Error { .. } => {
                if let Some(outcome) = outcome(message) {
                    tell_answered(peer, outcome);
                }
            }
            ProcedureFrame::Reset { .. } => {}
        }
    }
}

/// Begins a call that the handlers have reached; returns `None` if it is cancelled already.
fn begin(session: &Arc<Session>, shared: &Arc<AppShared>, call: Arc<InFlight>) -> Option<Pending> {
    let is_wanted = matches!(call.cause(), None | Some(CancelCause::Refused));
    let pending = Pending {
        call,
        session: session.clone(),
        shared: shared.clone(),
    };
    if !is_wanted {
        pending.end(Err(CallErrorReason::Aborted.into()));
        return None;
    }
    Some(pending)
}

/// The connection has gone: runs the closures of unanswered calls.
pub(in crate::async_app) fn close(session: &Session, shared: &AppShared) {
    let Some(peer) = ProcedurePeer::of(session) else {
        return;
    };
    for (done, reason) in peer.take_unanswered() {
        // A panic must not keep the other closures, and then the disconnect handler, from running.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| done(Err(reason.into())))) {
            shared.counters.handler_panics.add(1);
            std::mem::forget(payload);
        }
    }
}

/// Runs the closures of expired calls on the connection's handlers.
pub(in crate::async_app) fn nudged(session: &Session, shared: &AppShared) {
    tell_expired(session, shared);
}

/// Handles a message of a session with a subprotocol state, on its shard's thread.
pub(in crate::async_app) fn received(
    session: &Session,
    shared: &AppShared,
    message: &Message,
    outbox_has_room: bool,
) -> MessageVerdict {
    match ProcedurePeer::of(session) {
        Some(peer) => peer.received(&shared.counters, message, outbox_has_room),
        None => MessageVerdict::Keep,
    }
}

/// Ends the procedures of a session, on its shard's thread.
pub(in crate::async_app) fn ends(session: &Session, shared: &AppShared, ending: PeerEnd) {
    if let Some(peer) = ProcedurePeer::of(session) {
        peer.ends(&shared.counters, ending);
    }
}
