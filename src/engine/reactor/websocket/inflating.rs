//! Inflates compressed messages from clients. A few bytes can inflate to very many (a decompression bomb), so both the
//! bytes inflated in a turn and the bytes held are bounded.
//!
//! Most messages are inflated when they are read. A message that is too long for the rest of the turn's allowance is
//! parked together with the input after it, and its connection is not read until the message is inflated. The first
//! attempt on a parked message inflates at most [`SHORT_BYTES`], so short messages do not wait for long ones. Of the
//! long messages, a shard inflates one at a time, a part in each turn. So at most one message per shard is partly
//! inflated.
//!
//! While the shard pauses reading for lack of memory (`ReceiveBudget`), it inflates nothing either.

use std::collections::VecDeque;

use crate::engine::parts::id::Key;
use crate::engine::reactor::receive_budget::ReceiveBudget;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::engine::reactor::{ConnCx, Core};
use crate::message::Message;
use crate::protocol::connection::MessagePayload;
use crate::protocol::deflate::inflate::{Inflated, Inflater, Inflation, STEP_BYTES, Takeover};
use crate::protocol::encode::HEADER_BYTES_MAX;
use crate::protocol::error::Violation;
use crate::transport::ShardTransport;

/// The maximum number of bytes inflated in a turn when messages are read, and again for parked messages.
const BYTES_PER_TURN: usize = 512 << 10;

/// The maximum work of inflating a short message, in bytes. An attempt on a longer message is repeated from its
/// beginning, so this is also the work that the attempt wastes.
const SHORT_BYTES: usize = 128 << 10;

/// The inflaters of a shard, and its parked messages.
pub(crate) struct Inflations {
    /// The inflater for messages when they are read, and for the first attempt on parked ones. It keeps no part of a
    /// message.
    at_once: Option<Inflater>,
    /// The inflater for the first long message.
    waiting: Option<Inflater>,
    /// The number of bytes that may still be inflated in this turn when messages are read.
    allowance: usize,
    /// Connections with a parked message before its first attempt, in the order of arrival.
    untried: VecDeque<Key>,
    /// Connections with a long message, in the order of arrival.
    long: VecDeque<Key>,
}

/// The queue in which a parked message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InflateQueue {
    Untried,
    Long,
}

/// A compressed message that waits to be inflated, and the input after it.
pub(crate) struct Parked {
    text: bool,
    payload: Vec<u8>,
    inflation: Inflation,
    /// The input after the message, from `rest_at` on.
    rest: Vec<u8>,
    rest_at: usize,
    /// The bytes of this value that the receive budget counts.
    counted: usize,
    /// Whether an attempt has shown that the message is long.
    is_long: bool,
    is_queued: bool,
}

impl Parked {
    fn bytes(&self) -> usize {
        self.payload.capacity() + self.rest.capacity() + self.inflation.held_bytes()
    }

    /// Inflates another part of a long message, or makes the first attempt on a parked one.
    fn advance(
        &mut self,
        inflater: &mut Inflater,
        queue: InflateQueue,
        message_bytes_max: usize,
        allowance: &mut usize,
    ) -> Result<Inflated, Violation> {
        let (payload, text) = (&self.payload, self.text);
        if queue == InflateQueue::Long {
            let inflation = &mut self.inflation;
            return inflation.advance(inflater, payload, text, message_bytes_max, allowance);
        }
        // The attempt may exceed the turn's allowance. With less work, it could not tell short messages from long ones.
        let mut left = SHORT_BYTES;
        let inflated =
            Inflation::default().advance(inflater, payload, text, message_bytes_max, &mut left);
        *allowance = allowance.saturating_sub(SHORT_BYTES - left);
        inflated
    }
}

impl Inflations {
    pub(crate) fn new() -> Self {
        Self {
            at_once: None,
            waiting: None,
            allowance: BYTES_PER_TURN,
            untried: VecDeque::new(),
            long: VecDeque::new(),
        }
    }

    pub(crate) fn begin_turn(&mut self) {
        self.allowance = BYTES_PER_TURN;
    }

    /// Returns whether a parked message can be inflated now.
    pub(crate) fn has_work(&self, budget: &ReceiveBudget) -> bool {
        let is_empty = self.untried.is_empty() && self.long.is_empty();
        !is_empty && !budget.is_inflating_paused()
    }

    fn queue(&mut self, queue: InflateQueue) -> &mut VecDeque<Key> {
        match queue {
            InflateQueue::Untried => &mut self.untried,
            InflateQueue::Long => &mut self.long,
        }
    }
}

impl WebSocket {
    /// Returns whether a message is parked. Nothing is read as long as it is.
    pub(crate) fn is_parked(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.parked.is_some())
    }

    /// Returns the bytes of a parked message and of the input after it, as the receive budget counts them.
    pub(super) fn parked_bytes(&self) -> usize {
        let parked = self.cold.as_ref().and_then(|cold| cold.parked.as_ref());
        parked.map_or(0, |parked| parked.counted)
    }

    /// Processes a compressed message. Returns false if the message is parked. The caller must then pass the input
    /// after it to [`park_rest`](Self::park_rest).
    pub(super) fn take_compressed<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        payload: MessagePayload<'_>,
        text: bool,
    ) -> bool {
        let bytes = payload.bytes();
        cx.shard
            .counters()
            .compressed_bytes_in
            .add_alone(bytes.len() as u64);
        let message_bytes_max = cx.shard.limits().message_bytes_max;
        let limits = &cx.shard.hub.settings.limits;
        let mut is_long = false;
        if self.may_keep_more(limits) && !cx.shard.receive_budget.is_inflating_paused() {
            let Inflations {
                at_once, allowance, ..
            } = &mut cx.shard.inflations;
            let inflater = at_once.get_or_insert_with(|| Inflater::new(Takeover::No));
            let mut inflation = Inflation::default();
            let before = *allowance;
            match inflation.advance(inflater, bytes, text, message_bytes_max, allowance) {
                Ok(Inflated::Whole(whole)) => {
                    self.take_inflated(cx, whole, text);
                    return true;
                }
                // The part is dropped and the work repeated later, because only one long message per shard may keep a
                // part.
                Ok(Inflated::Part) => is_long = before >= SHORT_BYTES,
                Err(violation) => {
                    self.on_bad_message(cx, violation);
                    return true;
                }
            }
        }
        let payload = match payload {
            MessagePayload::Whole(bytes) => bytes.to_vec(),
            MessagePayload::Assembled(mut buffer) => buffer.split_off(HEADER_BYTES_MAX),
        };
        self.cold().parked = Some(Box::new(Parked {
            text,
            payload,
            inflation: Inflation::default(),
            rest: Vec::new(),
            rest_at: 0,
            counted: 0,
            is_long,
            is_queued: false,
        }));
        self.count_parked(&mut cx.shard.receive_budget);
        false
    }

    fn take_inflated<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        whole: Vec<u8>,
        text: bool,
    ) {
        let bytes = (whole.len() - HEADER_BYTES_MAX) as u64;
        cx.shard.counters().inflated_bytes_in.add_alone(bytes);
        let message = Message::from_payload(MessagePayload::Assembled(whole), text);
        self.take_message(cx, message);
    }

    #[cold]
    fn on_bad_message<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, violation: Violation) {
        if violation == Violation::MessageTooBig {
            cx.shard.counters().bombs.add(1);
        }
        self.protocol.abandon();
        let reason = violation.to_string();
        self.on_violation(cx, "the protocol", violation.close_code(), &reason);
    }

    /// Stores the input that was read after the parked message.
    pub(super) fn park_rest(&mut self, rest: Vec<u8>, rest_at: usize, budget: &mut ReceiveBudget) {
        if let Some(parked) = self.cold.as_mut().and_then(|cold| cold.parked.as_mut()) {
            (parked.rest, parked.rest_at) = (rest, rest_at);
            self.count_parked(budget);
        }
    }

    fn count_parked(&mut self, budget: &mut ReceiveBudget) {
        if let Some(parked) = self.cold.as_mut().and_then(|cold| cold.parked.as_mut()) {
            let bytes = parked.bytes();
            budget.change_parked(parked.counted, bytes);
            parked.counted = bytes;
        }
    }

    /// Drops the parked message.
    pub(super) fn forget_parked(&mut self, budget: &mut ReceiveBudget) {
        if let Some(parked) = self.clear(|cold| &mut cold.parked) {
            budget.change_parked(parked.counted, 0);
        }
    }

    /// Queues the parked message for inflating once its handlers have room, or drops it if nothing more is received.
    pub(super) fn advance_parked<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if self.receiving.is_over() {
            self.forget_parked(&mut cx.shard.receive_budget);
            self.note_parked_held_back(cx);
            return;
        }
        let may_go_on = self.may_keep_more(&cx.shard.hub.settings.limits);
        let Some(parked) = self.cold.as_mut().and_then(|cold| cold.parked.as_mut()) else {
            return;
        };
        if may_go_on && !parked.is_queued {
            parked.is_queued = true;
            let queue = match parked.is_long {
                true => InflateQueue::Long,
                false => InflateQueue::Untried,
            };
            cx.shard.inflations.queue(queue).push_back(cx.key);
        }
    }

    /// Updates the index of held-back bytes. A client that does not read its replies also holds its parked message
    /// back.
    fn note_parked_held_back<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let limits = &cx.shard.hub.settings.limits;
        self.note_held_back(limits, &mut cx.shard.receive_budget);
    }

    /// Inflates the parked message, or a part of it if it is long. Returns whether the message leaves the queue,
    /// because it is complete, turns out to be long, or waits for its handlers.
    fn inflate_parked<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        queue: InflateQueue,
        allowance: &mut usize,
    ) -> bool {
        let limits = &cx.shard.hub.settings.limits;
        let (message_bytes_max, may_go_on) = (limits.message_bytes_max, self.may_keep_more(limits));
        let is_wanted = self.receiving == Receiving::Open;
        let Some(parked) = self.cold.as_mut().and_then(|cold| cold.parked.as_mut()) else {
            return true;
        };
        if !may_go_on {
            // Drop the part to free its memory. The message will be inflated from its beginning.
            parked.inflation = Inflation::default();
            parked.is_queued = false;
            self.count_parked(&mut cx.shard.receive_budget);
            return true;
        }
        let inflated = match is_wanted {
            true => {
                let inflater = match queue {
                    InflateQueue::Untried => &mut cx.shard.inflations.at_once,
                    InflateQueue::Long => &mut cx.shard.inflations.waiting,
                };
                let inflater = inflater.get_or_insert_with(|| Inflater::new(Takeover::No));
                parked.advance(inflater, queue, message_bytes_max, allowance)
            }
            // The shard has sent a close frame, so the content does not matter.
            false => Ok(Inflated::Whole(Vec::new())),
        };
        if matches!(inflated, Ok(Inflated::Part)) {
            if queue == InflateQueue::Untried {
                parked.is_long = true;
                cx.shard.inflations.long.push_back(cx.key);
                return true;
            }
            self.count_parked(&mut cx.shard.receive_budget);
            self.note_parked_held_back(cx);
            return false;
        }
        let Some(parked) = self.clear(|cold| &mut cold.parked) else {
            return true;
        };
        cx.shard.receive_budget.change_parked(parked.counted, 0);
        match inflated {
            Ok(Inflated::Whole(whole)) if is_wanted => self.take_inflated(cx, whole, parked.text),
            Ok(_) => cx.shard.counters().dropped_unhandled.add_alone(1),
            Err(violation) => self.on_bad_message(cx, violation),
        }
        self.take_rest_of_input(cx, parked.rest, parked.rest_at);
        true
    }
}

impl<T: ShardTransport> Core<T> {
    /// Inflates parked messages: first the untried ones and then the long ones, each in the order of arrival.
    pub(crate) fn inflate_waiting(&mut self) {
        // Reserve half of the turn's allowance for long messages, so that they do not starve.
        let mut for_untried = BYTES_PER_TURN / 2;
        self.inflate_queue(InflateQueue::Untried, &mut for_untried);
        let mut for_long = BYTES_PER_TURN / 2 + for_untried;
        self.inflate_queue(InflateQueue::Long, &mut for_long);
        if self.cx.inflations.long.is_empty() {
            // Long messages are rare, so free their inflater.
            self.cx.inflations.waiting = None;
        }
    }

    fn inflate_queue(&mut self, queue: InflateQueue, allowance: &mut usize) {
        while *allowance > 0 && !self.cx.receive_budget.is_inflating_paused() {
            let Some(&key) = self.cx.inflations.queue(queue).front() else {
                break;
            };
            let leaves = self.with_ws(key, |ws, cx| ws.inflate_parked(cx, queue, allowance));
            // The connection has ended, or its message has left this queue.
            if leaves.unwrap_or(true) {
                self.cx.inflations.queue(queue).pop_front();
                *allowance = allowance.saturating_sub(STEP_BYTES / 64);
            }
            self.enforce_receive_budget();
        }
    }
}
