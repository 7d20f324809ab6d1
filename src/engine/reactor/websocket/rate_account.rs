//! The account of what a client may send: a token bucket of messages and one of bytes, and the input that it has sent too
//! early.

use std::time::{Duration, Instant};

use crate::engine::parts::timers::Tick;
use crate::engine::parts::token_bucket::TokenBucket;
use crate::limits::{Limits, OverRate};
use crate::protocol::encode::Opcode;

/// A delayed connection is read again once its account has the tokens of a second divided by this, or one. So a client
/// that never pauses causes few turns, and few short reads.
const RESUMES_PER_SECOND: u64 = 16;

/// Fragments of at least this length, header included, do not count as messages: browsers send long messages in fragments,
/// whose cost is that of their bytes.
const FREE_FRAGMENT_BYTES: usize = 4 << 10;

/// The rate limits of a shard's connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiveRates {
    /// Messages per second.
    pub(super) messages: Option<u64>,
    /// Bytes per second.
    pub(super) bytes: Option<u64>,
    over: OverRate,
}

/// The limit that a client has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Messages,
    Bytes,
}

impl Excess {
    /// The reason of the close frame.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Messages => "too many messages",
            Self::Bytes => "too many bytes",
        }
    }
}

impl ReceiveRates {
    /// `None` if no such limit is set.
    pub(crate) fn new(limits: &Limits) -> Option<Self> {
        let rates = Self {
            messages: limits.messages_per_second_max.map(u64::from),
            bytes: limits.bytes_per_second_max,
            over: limits.over_rate,
        };
        (rates.messages.is_some() || rates.bytes.is_some()).then_some(rates)
    }

    /// Whether clients are delayed, and not disconnected. With a rate of 0, a delay would have no end.
    pub(super) fn delays(self) -> bool {
        self.over == OverRate::Delay && self.messages != Some(0) && self.bytes != Some(0)
    }
}

/// What a client may send at present, and what it has sent too early.
pub(super) struct RateAccount {
    pub(super) messages: TokenBucket,
    pub(super) bytes: TokenBucket,
    /// When the buckets were last refilled.
    refilled: Instant,
    /// The bytes of the current frame that were processed.
    frame_bytes: usize,
    /// The pings of the heartbeat that the client has yet to answer. These pongs do not count.
    pub(super) pongs_due: u32,
    /// Until when the connection is not read.
    pub(super) delayed_until: Option<Tick>,
    /// Input that was read and may not be processed yet, from `held_at` on.
    pub(super) held: Vec<u8>,
    pub(super) held_at: usize,
    /// When it was noticed that the client will send nothing more.
    pub(super) gone_since: Option<Tick>,
    /// When a delayed client was last sent a ping.
    pub(super) pinged: Option<Tick>,
}

impl RateAccount {
    pub(super) fn new(rates: ReceiveRates, now: Instant) -> Self {
        Self {
            messages: TokenBucket::full(rates.messages.unwrap_or(0)),
            bytes: TokenBucket::full(rates.bytes.unwrap_or(0)),
            refilled: now,
            frame_bytes: 0,
            pongs_due: 0,
            delayed_until: None,
            held: Vec::new(),
            held_at: 0,
            gone_since: None,
            pinged: None,
        }
    }

    /// The bytes that the receive budget counts.
    pub(super) fn held_input_bytes(&self) -> usize {
        self.held.capacity()
    }

    pub(super) fn refill(&mut self, rates: ReceiveRates, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        self.refilled = now.max(self.refilled);
        self.messages.refill(rates.messages.unwrap_or(0), elapsed);
        self.bytes.refill(rates.bytes.unwrap_or(0), elapsed);
    }

    /// The limit that allows nothing more at present.
    pub(super) fn excess(&self, rates: ReceiveRates) -> Option<Excess> {
        if rates.messages.is_some() && self.messages.tokens() == 0 {
            return Some(Excess::Messages);
        }
        (rates.bytes.is_some() && self.bytes.tokens() == 0).then_some(Excess::Bytes)
    }

    /// The number of bytes that may be processed at present.
    pub(super) fn bytes_allowed(&self, rates: ReceiveRates) -> usize {
        let allowed = rates.bytes.map(|_| self.bytes.tokens());
        allowed.map_or(usize::MAX, |allowed| {
            usize::try_from(allowed).unwrap_or(usize::MAX)
        })
    }

    /// The time until the connection is read again, if it is delayed now.
    pub(super) fn wait(&self, rates: ReceiveRates) -> Duration {
        let wait = |bucket: TokenBucket, rate: Option<u64>| match rate {
            Some(rate) if bucket.tokens() == 0 => {
                bucket.wait(rate, (rate / RESUMES_PER_SECOND).max(1))
            }
            _ => Duration::ZERO,
        };
        wait(self.messages, rates.messages).max(wait(self.bytes, rates.bytes))
    }

    /// Whether a frame is accepted in any case.
    pub(super) fn is_exempt(&self, opcode: Option<Opcode>) -> bool {
        match opcode {
            Some(Opcode::Close) => true,
            Some(Opcode::Pong) => self.pongs_due > 0,
            _ => false,
        }
    }

    /// Counts processed bytes, and the frame that they have completed.
    pub(super) fn charge(&mut self, bytes: usize, completed: Option<Completed>) {
        self.bytes.take(bytes as u64);
        self.frame_bytes = self.frame_bytes.saturating_add(bytes);
        let Some(completed) = completed else {
            return;
        };
        let bytes = std::mem::take(&mut self.frame_bytes);
        match completed {
            Completed::Pong if self.pongs_due > 0 => self.pongs_due -= 1,
            Completed::Fragment if bytes >= FREE_FRAGMENT_BYTES => {}
            Completed::Pong | Completed::Fragment | Completed::Other => self.messages.take(1),
        }
    }

    /// Whether a new account would allow as much.
    pub(super) fn is_unused(&self, rates: ReceiveRates) -> bool {
        self.messages.is_full(rates.messages.unwrap_or(0))
            && self.bytes.is_full(rates.bytes.unwrap_or(0))
            && (self.frame_bytes, self.pongs_due) == (0, 0)
            && self.delayed_until.is_none()
            && self.held.is_empty()
    }
}

/// A frame whose last byte was processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completed {
    /// A fragment that does not complete its message.
    Fragment,
    Pong,
    /// A message, or its last fragment; or a ping.
    Other,
}
