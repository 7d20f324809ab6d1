//! Rate limits for what a client sends (`Limits::messages_per_second_max`, `Limits::bytes_per_second_max`).
//!
//! A frame is processed only if the connection's account has a token for it and for its bytes. If it has none, the
//! connection is closed, or delayed: what was already read is held, and the connection is not read until its timer fires. A
//! read is cut to what the account allows, and to few bytes if few messages are allowed, so that little input is held. It
//! counts in the receive budget, and as held back: if the held input of many connections takes too much of the budget,
//! those that hold most are closed.
//!
//! While input is held, the socket counts as readable, so that everything that makes the connection read on (the end of a
//! handler, room in the outbox or the budget) makes it process the held input.
//!
//! What a client may send is judged when the server reads. If a client that exceeds its limits is disconnected, what may
//! have waited unread for longer than a burst, because the server did not read, counts as sent in that time
//! (`RateAccount::unread_since`).
//!
//! Without limits, none of this runs. With limits, an account is allocated for the first input, and freed by the input or
//! timer of the connection that finds it full.

use std::time::{Duration, Instant};

use crate::engine::parts::peer_limits::counted_as;
use crate::engine::reactor::receive_budget::ReceiveBudget;
use crate::engine::reactor::websocket::rate_account::{
    Completed, Excess, RateAccount, ReceiveRates,
};
use crate::engine::reactor::websocket::receiving::Counted;
use crate::engine::reactor::websocket::{Receiving, WebSocket};
use crate::engine::reactor::{ConnCx, READ_BYTES, Reader};
use crate::message::Message;
use crate::protocol::close::CloseCode;
use crate::protocol::encode::{self, Opcode};
use crate::report::limited;
use crate::transport::ShardTransport;

/// The minimum length of a read, beyond the current frame.
const READ_BYTES_MIN: usize = 4 << 10;

/// The bytes that are read for each message that is allowed, beyond the minimum. The shortest frames have six bytes.
const READ_BYTES_PER_MESSAGE: usize = 64;

impl WebSocket {
    fn rate(&self) -> Option<&RateAccount> {
        self.cold.as_ref()?.rate.as_deref()
    }

    fn rate_mut(&mut self) -> Option<&mut RateAccount> {
        self.cold.as_mut()?.rate.as_deref_mut()
    }

    /// The account, refilled.
    fn refilled_rate(&mut self, rates: ReceiveRates, now: Instant) -> &mut RateAccount {
        let account = &mut self.cold().rate;
        let account = account.get_or_insert_with(|| Box::new(RateAccount::new(rates, now)));
        account.refill(rates, now);
        account
    }

    /// Whether there is input that was read and may not be processed yet.
    pub(crate) fn has_held_input(&self) -> bool {
        self.rate().is_some_and(|account| !account.held.is_empty())
    }

    /// Reads once, within the rate limits; or processes held input. Returns whether there was anything.
    pub(super) fn read_within_rate<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        rates: ReceiveRates,
    ) -> bool {
        if self.is_stream() {
            return cx.read_part_for(self, READ_BYTES);
        }
        let mut bytes_max = READ_BYTES;
        self.note_unread(cx);
        if self.receiving == Receiving::Open && rates.delays() {
            let now = cx.shard.now;
            if let Some(account) = self.rate_mut() {
                account.refill(rates, now);
                if account.excess(rates).is_some() {
                    self.delay(cx, rates);
                    return false;
                }
            }
            bytes_max = self.read_bytes_max(rates);
        }
        if self.has_held_input() {
            self.take_held_input(cx);
            return true;
        }
        let has_read = cx.read_part_for(&mut WithinRate(self), bytes_max);
        if !has_read {
            self.settle_rate(cx);
        }
        has_read
    }

    /// Records that there may be input that has arrived, and since when, if that matters.
    #[inline]
    pub(super) fn note_unread<T: ShardTransport>(&mut self, cx: &ConnCx<'_, T>) {
        if let Some(arrivals) = &cx.shard.arrivals
            && cx.socket.readable
            && self.receiving == Receiving::Open
            && !self.is_stream()
        {
            self.note_unread_since(cx, arrivals.since());
        }
    }

    #[cold]
    fn note_unread_since<T: ShardTransport>(&mut self, cx: &ConnCx<'_, T>, since: Instant) {
        if let Some(rates) = cx.shard.receive_rates {
            let account = &mut self.cold().rate;
            account
                .get_or_insert_with(|| Box::new(RateAccount::new(rates, since)))
                .unread_since
                .get_or_insert(since);
        }
    }

    /// Records that no input is left, if that is so, and frees the account if a new one would allow as much.
    pub(super) fn settle_rate<T: ShardTransport>(&mut self, cx: &ConnCx<'_, T>) {
        let Some(rates) = cx.shard.receive_rates else {
            return;
        };
        #[cfg(feature = "deflate")]
        let is_parked = self.is_parked();
        #[cfg(not(feature = "deflate"))]
        let is_parked = false;
        let Some(account) = self.rate_mut() else {
            return;
        };
        if !cx.socket.readable && !is_parked && account.held.is_empty() {
            account.emptied();
        }
        if account.is_unused(rates) {
            self.clear(|cold| &mut cold.rate);
        }
    }

    /// The number of bytes to read, so that little of them is left over.
    fn read_bytes_max(&self, rates: ReceiveRates) -> usize {
        let (messages, bytes) = match self.rate() {
            Some(account) => (account.messages.tokens(), account.bytes_allowed(rates)),
            None => {
                let bytes = rates.bytes.unwrap_or(u64::MAX);
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                (rates.messages.unwrap_or(0), bytes)
            }
        };
        let for_messages = match rates.messages {
            Some(_) => {
                let messages = usize::try_from(messages).unwrap_or(usize::MAX);
                let beyond = messages.saturating_mul(READ_BYTES_PER_MESSAGE);
                let beyond = beyond.max(READ_BYTES_MIN);
                self.protocol.frame_remaining().saturating_add(beyond)
            }
            None => usize::MAX,
        };
        // One byte more than allowed shows whether the client has sent more.
        let bytes = bytes.saturating_add(1);
        for_messages.min(bytes).min(READ_BYTES)
    }

    /// Processes held input, as far as the limits allow now.
    fn take_held_input<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let Some(account) = self.rate_mut() else {
            return;
        };
        let counted = account.held_input_bytes();
        let (mut input, at) = (std::mem::take(&mut account.held), account.held_at);
        self.count_held_input(counted, 0, &mut cx.shard.receive_budget);
        let unread = self.take_within_rate(cx, input.get_mut(at..).unwrap_or_default());
        let at = input.len() - unread;
        self.hold_input(cx, input, at);
        self.settle_rate(cx);
        self.advance(cx);
        cx.want_read();
    }

    /// Processes input within the rate limits, as far as it can be processed now. Returns the number of bytes left at its
    /// end.
    pub(super) fn take_within_rate<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        bytes: &mut [u8],
    ) -> usize {
        let Some(rates) = cx.shard.receive_rates else {
            return self.take_input(cx, bytes);
        };
        self.refilled_rate(rates, cx.shard.now);
        let mut counted = Counted::default();
        let mut at = 0;
        while at < bytes.len() && !self.receiving.is_over() {
            let input = bytes.get_mut(at..).unwrap_or_default();
            match self.take_frame(cx, rates, input, &mut counted) {
                Some(taken) => at += taken,
                None => break,
            }
            #[cfg(feature = "deflate")]
            if self.is_parked() {
                break;
            }
        }
        self.input_taken(cx, &counted);
        if self.receiving.is_over() {
            return 0;
        }
        bytes.len() - at
    }

    /// Processes one frame, or a part of one. Returns the number of bytes, or `None` if the limits allow none. Not inlined,
    /// so that it changes nothing for connections without limits.
    #[inline(never)]
    fn take_frame<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        rates: ReceiveRates,
        input: &mut [u8],
        counted: &mut Counted,
    ) -> Option<usize> {
        let opcode = self.protocol.next_opcode(input);
        let mut allowed = input.len();
        let account = self.rate();
        let exemption = account.and_then(|account| account.exemption(opcode, rates));
        if self.receiving == Receiving::Open
            && exemption.is_none()
            && let Some(account) = account
        {
            allowed = allowed.min(account.bytes_allowed(rates));
            if let Some(excess) = account.excess(rates) {
                match rates.delays() {
                    true => self.delay(cx, rates),
                    false => self.close_over_rate(cx, excess.reason()),
                }
                return None;
            }
        }
        let mut part = input.get_mut(..allowed).unwrap_or_default();
        let may_go_on = self.take_next::<T, true>(cx, &mut part, counted);
        let taken = allowed - part.len();
        #[cfg(feature = "deflate")]
        let is_parked = self.is_parked();
        #[cfg(not(feature = "deflate"))]
        let is_parked = false;
        let is_complete = may_go_on || is_parked || self.protocol.is_between_frames();
        let completed = is_complete.then(|| match opcode {
            Some(Opcode::Ping | Opcode::Pong | Opcode::Close) | None => Completed::Other,
            Some(_) if self.protocol.is_mid_message() => Completed::Fragment,
            Some(_) => Completed::Other,
        });
        if let Some(account) = self.rate_mut() {
            account.charge(taken, completed, exemption);
        }
        Some(taken)
    }

    /// Keeps input, from `at` on, that may not be processed yet.
    pub(super) fn hold_input<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        input: Vec<u8>,
        at: usize,
    ) {
        if at >= input.len() {
            return;
        }
        #[cfg(feature = "deflate")]
        if self.is_parked() {
            self.park_rest(input, at, &mut cx.shard.receive_budget);
            return;
        }
        if let Some(account) = self.rate_mut() {
            (account.held, account.held_at) = (input, at);
            let bytes = account.held_input_bytes();
            self.count_held_input(0, bytes, &mut cx.shard.receive_budget);
            cx.socket.readable = true;
        }
    }

    /// Bytes of input that may not be processed yet.
    pub(crate) fn held_input_bytes(&self) -> usize {
        self.rate().map_or(0, RateAccount::held_input_bytes)
    }

    /// Updates the budget after the held input has changed.
    fn count_held_input(&self, before: usize, now: usize, budget: &mut ReceiveBudget) {
        budget.change_parked(before, now);
        let address = counted_as(self.session.client_ip());
        let slot = self.session.id.key().slot;
        let unread_replies = self.held_back_indexed();
        budget
            .held_back
            .set(address, slot, unread_replies + before, unread_replies + now);
    }

    /// Reads nothing until the client may send more.
    fn delay<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, rates: ReceiveRates) {
        let (tick, now) = (cx.shard.tick, cx.shard.now);
        let has_gone = cx.socket.hangup;
        let Some(account) = self.rate_mut() else {
            return;
        };
        if account.delayed_until.is_some() {
            return;
        }
        let wait = account.wait(rates, now);
        // Ticks are rounded down: without another one, the timer could fire before the tokens are there.
        let until = tick.after(wait).after(Duration::from_nanos(1));
        account.delayed_until = Some(until);
        if has_gone {
            account.delayed_at_end = account.delayed_at_end.saturating_add(until.since(tick));
        }
        cx.shard.counters().reads_delayed.add(1);
    }

    /// Receives nothing more, has earlier messages handled, then closes the connection.
    #[cold]
    pub(super) fn close_over_rate<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        reason: &str,
    ) {
        let close = encode::close(Some((CloseCode::POLICY_VIOLATION, reason)));
        self.cold().close_reply = Some(close.into());
        self.protocol.abandon();
        self.receiving = Receiving::Stopped;
        let id = self.session.id;
        let logged = &cx.shard.hub.logged.over_rate;
        self.session.span.within(|| {
            limited!(
                logged,
                info,
                "connection {id} sends faster than `Limits::messages_per_second_max` or `Limits::bytes_per_second_max` \
                 allow and is disconnected: {reason}"
            );
        });
        cx.shard.counters().closed_over_rate.add(1);
    }

    /// Closes the connection, since what it has sent too early takes too much of the receive budget.
    pub(crate) fn evict_held_input<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        self.drop_held_input(cx, "sent too fast");
    }

    /// Closes the connection, and drops what it has sent too early.
    fn drop_held_input<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, reason: &str) {
        self.close_over_rate(cx, reason);
        self.on_input_over(cx);
        self.note_unfinished(cx);
        self.advance(cx);
    }

    /// Ends a delay whose time has come, or frees an account that is full.
    pub(super) fn expire_delay<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let Some(rates) = cx.shard.receive_rates else {
            return;
        };
        let (tick, now) = (cx.shard.tick, cx.shard.now);
        let close_timeout = cx.shard.limits().close_timeout;
        let has_gone = cx.socket.hangup;
        let Some(account) = self.rate_mut() else {
            return;
        };
        let Some(until) = account.delayed_until else {
            account.refill(rates, now);
            if account.is_unused(rates) {
                self.clear(|cold| &mut cold.rate);
            }
            return;
        };
        if until > tick {
            return;
        }
        account.delayed_until = None;
        if has_gone && account.delayed_at_end >= close_timeout {
            // It would take up its place for as long as it has sent too much.
            self.drop_held_input(cx, "sent too much before its end");
            return;
        }
        cx.want_read();
    }

    /// Sends a ping to a delayed client. Its answer waits behind what it has sent, but TCP notices if it has vanished.
    pub(super) fn ping_delayed<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        interval: Duration,
    ) {
        let tick = cx.shard.tick;
        let is_idle = self.outbox.is_empty();
        let Some(account) = self.rate_mut() else {
            return;
        };
        if account.delayed_until.is_none() {
            return;
        }
        let since = *account.pinged.get_or_insert(tick);
        if since.after(interval) > tick || !is_idle {
            return;
        }
        account.pinged = Some(tick);
        account.pongs_due = account.pongs_due.saturating_add(1);
        self.outbox
            .push_control(encode::control(Opcode::Ping, &[]).into(), tick);
        self.want_write(cx);
    }

    /// Records that a pong is due, if a ping of the heartbeat is unanswered while other bytes arrive.
    fn note_pong_due<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        if let Some(rates) = cx.shard.receive_rates
            && self.pinged
        {
            let account = self.refilled_rate(rates, cx.shard.now);
            account.pongs_due = account.pongs_due.saturating_add(1);
        }
    }

    /// Counts messages that a host has received before it handed the connection over. If they are more than allowed, the
    /// connection is first read when the client may have sent them. If it is to be closed instead, leaves those that are
    /// allowed, and returns the limit that was reached.
    pub(super) fn charge_handed_over<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        messages: &mut Vec<Message>,
    ) -> Option<Excess> {
        let rates = cx.shard.receive_rates.filter(|_| !messages.is_empty())?;
        let account = self.refilled_rate(rates, cx.shard.now);
        let mut is_over = false;
        for n in 0..messages.len() {
            let frame_bytes = messages.get(n).map_or(0, |message| message.frame().len());
            let Some(excess) = account.charge_handed_over(frame_bytes, rates) else {
                continue;
            };
            if !rates.delays() {
                messages.truncate(n);
                return Some(excess);
            }
            is_over = true;
        }
        if is_over {
            self.delay(cx, rates);
        }
        None
    }

    /// Drops the account and the held input.
    pub(super) fn forget_rate(&mut self, budget: &mut ReceiveBudget) {
        if let Some(account) = self.clear(|cold| &mut cold.rate) {
            self.count_held_input(account.held_input_bytes(), 0, budget);
        }
    }

    /// Processes bytes that have just arrived, within the rate limits.
    pub(super) fn input_within_rate<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        bytes: &mut [u8],
    ) {
        cx.shard.counters().bytes_in.add_alone(bytes.len() as u64);
        if let Some(arrivals) = &mut cx.shard.arrivals {
            arrivals.received();
        }
        self.note_pong_due(cx);
        self.last_received = cx.shard.tick;
        self.pinged = false;
        let unread = self.take_within_rate(cx, bytes);
        if unread > 0 {
            let rest = bytes.get(bytes.len() - unread..).unwrap_or_default();
            self.hold_input(cx, rest.to_vec(), 0);
        }
        self.settle_rate(cx);
        self.advance(cx);
    }
}

/// Reads for a WebSocket within its rate limits.
struct WithinRate<'a>(&'a mut WebSocket);

impl<T: ShardTransport> Reader<T> for WithinRate<'_> {
    fn input(&mut self, cx: &mut ConnCx<'_, T>, bytes: &mut [u8]) {
        self.0.input_within_rate(cx, bytes);
    }

    fn input_incomplete(&mut self, cx: &mut ConnCx<'_, T>) {
        self.0.note_pong_due(cx);
        self.0.input_incomplete(cx);
    }

    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>) {
        self.0.input_ended(cx);
    }

    fn broken(&mut self, cx: &mut ConnCx<'_, T>) {
        self.0.broken(cx);
    }
}
