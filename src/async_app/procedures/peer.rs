//! The calls in flight with one client that speaks procedures, in both directions.
//!
//! The shard's thread reads frames first, while a handler may be running, so that a reset reaches the running handler,
//! and an answer reaches the thread that waits for it. The engine queues the remaining frames for handlers; they are
//! matched here by their order.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::cancellation::{CancelAction, CancelCause, InFlight};
use super::payload::{CallError, CallErrorReason, Payload};
use super::timers::{CallTimers, LOOKS_EVERY, Timer};
use crate::engine::{Clock, MessageVerdict, PeerEnd, Session};
use crate::message::Message;
use crate::metrics::Counters;
use crate::protocol::close::CloseCode;
use crate::protocol::procedures::{self, Malformed, ProcedureFrame, Version};
use crate::sync::{ignore_poison, lock};

/// The maximum payload of a `$ping` that is answered at once, which is that of a WebSocket ping.
const PING_BYTES_MAX: usize = 125;

/// The outcome of a call to a client.
pub(super) type CallOutcome = Result<Payload, CallError>;
/// The closure that receives the outcome, on the connection's handlers.
pub(super) type OnOutcome = Box<dyn FnOnce(CallOutcome) + Send>;

/// A thread that waits for the outcome of a call to a client.
#[derive(Default)]
pub(super) struct OutcomeWaiter {
    outcome: Mutex<Option<CallOutcome>>,
    changed: Condvar,
}

impl OutcomeWaiter {
    fn tell(&self, outcome: CallOutcome) {
        *lock(&self.outcome) = Some(outcome);
        self.changed.notify_all();
    }

    /// Waits for the outcome. Returns `None` if it has not arrived in time.
    pub(super) fn wait(&self, timeout: Duration) -> Option<CallOutcome> {
        let begun = Instant::now();
        let mut clock = Clock::new(begun);
        let mut outcome = lock(&self.outcome);
        let mut now = begun;
        while outcome.is_none() {
            let left = clock.left(timeout, now);
            if left.is_zero() {
                return None;
            }
            // While the process is stopped, no answer is read. Short sleeps let the clock notice how long that was.
            let sleep = left.min(LOOKS_EVERY);
            clock.sleep(Some(sleep));
            let waited = self.changed.wait_timeout(outcome, sleep);
            outcome = ignore_poison(waited).0;
            now = Instant::now();
            clock.advance(now);
        }
        outcome.take()
    }
}

/// The maximum number of waiting cancellation functions. While it is reached, because the running ones block, calls are
/// refused. Otherwise clients that repeatedly call and disconnect would make the queue grow without bound.
const CANCELS_WAITING_MAX: usize = 1 << 16;

/// A call to a client, in flight.
pub(super) enum OutgoingCall {
    Waiting(Arc<OutcomeWaiter>),
    Callback(OnOutcome, Option<Timer>),
}

pub(super) struct ProcedurePeer {
    pub(super) version: Version,
    calls_max: usize,
    pub(super) timers: Arc<CallTimers>,
    state: Mutex<PeerState>,
}

#[derive(Default)]
struct PeerState {
    /// No further frames will arrive.
    has_ended: bool,
    /// Calls from the client, by id.
    by_id: HashMap<u32, Arc<InFlight>>,
    /// Calls that have not ended, including those that the older subprotocol forgets at their reset.
    in_flight: usize,
    /// Calls whose frames wait for the handlers, in order; `None` for a call beyond the limit.
    queued: VecDeque<Option<Arc<InFlight>>>,
    /// Calls to the client.
    outgoing: HashMap<u32, OutgoingCall>,
    last_id: u32,
    /// Calls to the client whose answers wait for the handlers, in order.
    answered: VecDeque<OnOutcome>,
    /// Calls to the client that were not answered in time and whose closures have not run, by id.
    expired: VecDeque<(u32, OnOutcome)>,
}

impl PeerState {
    /// Releases the memory of a burst of calls, so that an idle connection is small again.
    fn shrink(&mut self) {
        const KEPT: usize = 64;
        if self.by_id.is_empty() && self.by_id.capacity() > KEPT {
            self.by_id = HashMap::new();
        }
        if self.queued.is_empty() && self.queued.capacity() > KEPT {
            self.queued = VecDeque::new();
        }
    }
}

impl ProcedurePeer {
    /// Attaches the state of procedures to a session that speaks them.
    pub(super) fn begin(session: &Session, calls_max: usize, timers: &Arc<CallTimers>) {
        if let Some(version) = session.subprotocol().and_then(Version::of_subprotocol) {
            let peer: Arc<dyn Any + Send + Sync> = Arc::new(Self {
                version,
                calls_max,
                timers: timers.clone(),
                state: Mutex::default(),
            });
            session.set_protocol_state(peer);
        }
    }

    pub(super) fn of(session: &Session) -> Option<&Self> {
        session.protocol_state()?.downcast_ref()
    }

    /// No user code runs while this lock is held.
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.state)
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn is_v1(&self) -> bool {
        self.version == Version::V1
    }

    /// Handles a received frame on the shard's thread; never blocks.
    pub(super) fn received(
        &self,
        counters: &Counters,
        message: &Message,
        outbox_has_room: bool,
    ) -> MessageVerdict {
        if message.is_text() {
            return MessageVerdict::Keep;
        }
        let frame = match ProcedureFrame::parse(message.bytes(), self.version) {
            Ok(frame) => frame,
            Err(malformed) => {
                let code = match malformed {
                    Malformed::Utf8 => CloseCode::INVALID_PAYLOAD,
                    _ => CloseCode::PROTOCOL_ERROR,
                };
                return MessageVerdict::Refuse(code, malformed.to_string());
            }
        };
        match frame {
            ProcedureFrame::Notification { .. } => MessageVerdict::Keep,
            ProcedureFrame::Request { id, name, payload } => {
                self.received_request(counters, id, name, payload, outbox_has_room)
            }
            ProcedureFrame::Reset { id } => {
                self.received_reset(counters, id);
                MessageVerdict::Done
            }
            ProcedureFrame::Response { id, .. } | ProcedureFrame::Error { id, .. } => {
                self.received_outcome(id, message)
            }
        }
    }

    fn received_request(
        &self,
        counters: &Counters,
        id: u32,
        name: &str,
        payload: &[u8],
        outbox_has_room: bool,
    ) -> MessageVerdict {
        let mut state = self.lock();
        if state.by_id.contains_key(&id) {
            let reason = format!("a request with the id {id}, which is in flight");
            return MessageVerdict::Refuse(CloseCode::PROTOCOL_ERROR, reason);
        }
        let is_ping = self.is_v1() && name == "$ping" && payload.len() <= PING_BYTES_MAX;
        if is_ping && outbox_has_room {
            let answer = procedures::response(id, payload);
            return MessageVerdict::Answer(Message::new_binary(answer));
        }
        // Calls of ended connections no longer count as in flight, but their cancellations may still wait for a thread.
        let is_behind = self.timers.aside.waiting() >= CANCELS_WAITING_MAX;
        if state.in_flight >= self.calls_max || is_behind {
            counters.calls_refused.add(1);
            if !self.is_v1() {
                let reason = "too many calls are in flight".to_owned();
                return MessageVerdict::Refuse(CloseCode::TRY_AGAIN_LATER, reason);
            }
            state.queued.push_back(None);
            return MessageVerdict::Keep;
        }
        let call = Arc::new(InFlight::new(id));
        state.by_id.insert(id, call.clone());
        state.in_flight += 1;
        state.queued.push_back(Some(call));
        MessageVerdict::Keep
    }

    fn received_reset(&self, counters: &Counters, id: u32) {
        let mut state = self.lock();
        let call = match self.version {
            // No reply follows the reset, so the client may reuse the id.
            Version::Old => state.by_id.remove(&id),
            Version::V1 => state.by_id.get(&id).cloned(),
        };
        drop(state);
        if let Some(call) = call {
            self.run_aside(call.cancel(CancelCause::Reset, counters));
        }
    }

    /// Handles the response or error that ends a call of the program.
    fn received_outcome(&self, id: u32, message: &Message) -> MessageVerdict {
        let mut state = self.lock();
        match state.outgoing.remove(&id) {
            // The answer arrived after the end of the call.
            None => MessageVerdict::Done,
            Some(OutgoingCall::Waiting(waiter)) => {
                drop(state);
                if let Some(outcome) = outcome(message) {
                    waiter.tell(outcome);
                }
                MessageVerdict::Done
            }
            Some(OutgoingCall::Callback(done, timer)) => {
                state.answered.push_back(done);
                drop(state);
                self.timers.remove(timer);
                MessageVerdict::Keep
            }
        }
    }

    /// Ends all calls: no further frames will arrive. Runs on the shard's thread.
    pub(super) fn ends(&self, counters: &Counters, ending: PeerEnd) {
        let mut state = self.lock();
        state.has_ended = true;
        let (cause, calls): (_, Vec<_>) = match ending {
            PeerEnd::Refused => (
                CancelCause::Refused,
                state.by_id.values().cloned().collect(),
            ),
            PeerEnd::Gone => (
                CancelCause::Gone,
                std::mem::take(&mut state.by_id).into_values().collect(),
            ),
        };
        let waiting: Vec<u32> = state
            .outgoing
            .iter()
            .filter(|(_, outgoing)| matches!(outgoing, OutgoingCall::Waiting(_)))
            .map(|(id, _)| *id)
            .collect();
        let waiting: Vec<_> = waiting
            .iter()
            .filter_map(|id| state.outgoing.remove(id))
            .collect();
        drop(state);
        for call in waiting {
            if let OutgoingCall::Waiting(waiter) = call {
                waiter.tell(Err(CallErrorReason::Closed.into()));
            }
        }
        for call in calls {
            self.run_aside(call.cancel(cause, counters));
        }
    }

    /// Runs the program's functions, which may block, off the shard's thread.
    fn run_aside(&self, actions: Vec<CancelAction>) {
        for action in actions {
            self.timers.aside.run(action);
        }
    }

    /// Returns the call whose request the handlers have reached; `None` if it was beyond the limit.
    pub(super) fn next_queued(&self) -> Option<Arc<InFlight>> {
        let mut state = self.lock();
        let call = state.queued.pop_front().flatten();
        if call.is_none() {
            state.shrink();
        }
        call
    }

    /// Removes a call from the client that has ended.
    pub(super) fn forget(&self, call: &Arc<InFlight>) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        // The id may belong to another call by now.
        if state
            .by_id
            .get(&call.id)
            .is_some_and(|other| Arc::ptr_eq(other, call))
        {
            state.by_id.remove(&call.id);
        }
        state.shrink();
    }

    /// Registers a call to the client. Returns its id.
    pub(super) fn register(
        &self,
        outgoing: OutgoingCall,
    ) -> Result<u32, (OutgoingCall, CallErrorReason)> {
        if !self.is_v1() {
            return Err((outgoing, CallErrorReason::NotSpoken));
        }
        let mut state = self.lock();
        if state.has_ended {
            return Err((outgoing, CallErrorReason::Closed));
        }
        if state.outgoing.len() + state.expired.len() >= self.calls_max {
            return Err((outgoing, CallErrorReason::TooMany));
        }
        let id = loop {
            state.last_id = state.last_id.wrapping_add(1);
            if !state.outgoing.contains_key(&state.last_id) {
                break state.last_id;
            }
        };
        state.outgoing.insert(id, outgoing);
        Ok(id)
    }

    /// Sets the timer of a call to the client, unless it has been answered already.
    pub(super) fn set_timer(&self, id: u32, new: Timer) {
        let mut state = self.lock();
        if let Some(OutgoingCall::Callback(_, timer)) = state.outgoing.get_mut(&id) {
            *timer = Some(new);
        } else {
            drop(state);
            self.timers.remove(Some(new));
        }
    }

    /// Removes a call to the client. Returns `None` if it was answered, or its answer waits for the handlers.
    pub(super) fn take_outgoing(&self, id: u32) -> Option<OutgoingCall> {
        let outgoing = self.lock().outgoing.remove(&id)?;
        if let OutgoingCall::Callback(_, timer) = &outgoing {
            self.timers.remove(timer.clone());
        }
        Some(outgoing)
    }

    /// Expires a call to the client. Returns whether the handlers must be scheduled for it.
    pub(super) fn expire(&self, id: u32) -> bool {
        let mut state = self.lock();
        match state.outgoing.remove(&id) {
            Some(OutgoingCall::Callback(done, _)) => {
                state.expired.push_back((id, done));
                // One run of the handlers serves all expired calls.
                state.expired.len() == 1
            }
            Some(other) => {
                state.outgoing.insert(id, other);
                false
            }
            None => false,
        }
    }

    pub(super) fn next_expired(&self) -> Option<(u32, OnOutcome)> {
        self.lock().expired.pop_front()
    }

    /// Returns the closure of the next answer that the handlers have reached.
    pub(super) fn next_answered(&self) -> Option<OnOutcome> {
        self.lock().answered.pop_front()
    }

    /// Removes and returns the closures of all unanswered calls of a disconnected client.
    pub(super) fn take_unanswered(&self) -> Vec<(OnOutcome, CallErrorReason)> {
        let mut state = self.lock();
        state.has_ended = true;
        state.queued = VecDeque::new();
        // Take all of them at once. A call that stayed here could expire, and its closure would never run.
        let outgoing = std::mem::take(&mut state.outgoing);
        let answered = std::mem::take(&mut state.answered);
        let expired = std::mem::take(&mut state.expired);
        drop(state);
        let expired = expired
            .into_iter()
            .map(|(_, done)| (done, CallErrorReason::TimedOut));
        let closed = |done| (done, CallErrorReason::Closed);
        let outgoing = outgoing.into_values().filter_map(|call| match call {
            OutgoingCall::Callback(done, timer) => {
                self.timers.remove(timer);
                Some(done)
            }
            OutgoingCall::Waiting(waiter) => {
                waiter.tell(Err(CallErrorReason::Closed.into()));
                None
            }
        });
        answered
            .into_iter()
            .map(closed)
            .chain(expired)
            .chain(outgoing.map(closed))
            .collect()
    }
}

/// The payload at the end of a message, which shares its bytes.
pub(super) fn payload_of(message: &Message, payload: &[u8]) -> Payload {
    let frame = message.frame();
    Payload(frame.slice(frame.len() - payload.len()..))
}

/// Parses an answer; `None` if the message is something else.
pub(super) fn outcome(message: &Message) -> Option<CallOutcome> {
    match ProcedureFrame::parse(message.bytes(), Version::V1) {
        Ok(ProcedureFrame::Response { payload, .. }) => Some(Ok(payload_of(message, payload))),
        Ok(ProcedureFrame::Error { code, text, .. }) => {
            Some(Err(CallError::new(CallErrorReason::of_code(code), text)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn peer(calls_max: usize) -> ProcedurePeer {
        ProcedurePeer {
            version: Version::V1,
            calls_max,
            timers: Arc::default(),
            state: Mutex::default(),
        }
    }

    #[test]
    fn expired_calls_of_an_ending_connection_are_reported() {
        const CALLS: usize = 1_000;
        for _ in 0..50 {
            let (peer, told) = (peer(CALLS), Arc::new(AtomicUsize::new(0)));
            for _ in 0..CALLS {
                let told = told.clone();
                let done = move |_| {
                    told.fetch_add(1, Ordering::Relaxed);
                };
                assert!(
                    peer.register(OutgoingCall::Callback(Box::new(done), None))
                        .is_ok()
                );
            }
            thread::scope(|scope| {
                scope.spawn(|| {
                    for id in 1..=CALLS as u32 {
                        peer.expire(id);
                    }
                });
                for (done, reason) in peer.take_unanswered() {
                    done(Err(reason.into()));
                }
            });
            assert_eq!(told.load(Ordering::Relaxed), CALLS);
        }
    }

    #[test]
    fn what_many_calls_at_once_have_needed_is_given_back() {
        let (peer, counters) = (peer(1_000), Counters::default());
        for id in 0..1_001 {
            let request = Message::new_binary(procedures::request(id, "name", b""));
            let receipt = peer.received(&counters, &request, true);
            assert!(matches!(receipt, MessageVerdict::Keep));
        }
        for _ in 0..1_000 {
            let call = peer.next_queued().unwrap();
            peer.forget(&call);
        }
        // The last call exceeded the limit.
        assert!(peer.next_queued().is_none());
        let state = peer.lock();
        assert!(state.by_id.capacity() < 100 && state.queued.capacity() < 100);
    }
}
