//! The account of what a client may send: token buckets of messages, of bytes and of control frames, and the input that it
//! has sent too early.

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

/// The burst of messages and of bytes.
const BURST: Duration = Duration::from_secs(1);

/// The pings and unsolicited pongs that a client may send if it may send no messages: client libraries send some to keep
/// the connection open.
const CONTROLS_PER_SECOND: u64 = 1;
const CONTROLS_BURST: Duration = Duration::from_secs(5);
const CONTROLS_MAX: u64 = CONTROLS_PER_SECOND * CONTROLS_BURST.as_secs();

/// The bytes by which a frame of a client is longer than the same frame of the server: its masking key.
const MASKING_KEY_BYTES: u64 = 4;

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
    pub(crate) fn delays(self) -> bool {
        self.over == OverRate::Delay && !self.refuses_messages()
    }

    /// Whether clients may send no messages.
    fn refuses_messages(self) -> bool {
        self.messages == Some(0) || self.bytes == Some(0)
    }

    /// The growth of an unfinished message in its time limit that shows that the limit of bytes has slowed it down: half of
    /// what the limit allows. `None` if no limit of bytes slows clients down. Without one, fragments that add nothing could
    /// keep a message unfinished without end.
    pub(super) fn message_growth_min(self, message_timeout: Duration) -> Option<usize> {
        let per_second = self.bytes.filter(|_| self.delays())?;
        let allowed = u128::from(per_second).saturating_mul(message_timeout.as_millis()) / 1_000;
        Some(usize::try_from(allowed / 2).unwrap_or(usize::MAX).max(1))
    }
}

/// What a client may send at present, and what it has sent too early.
pub(super) struct RateAccount {
    pub(super) messages: TokenBucket,
    bytes: TokenBucket,
    /// The control frames that a client may send if it may send no messages.
    controls: TokenBucket,
    /// When the buckets were last refilled. In the future if a host has received more than the limits allow: nothing is
    /// refilled until then.
    refilled: Instant,
    /// The earliest time at which input that was not processed yet may have arrived, if it is to count as sent since then
    /// and not at once ([`OverRate::Close`]).
    pub(super) unread_since: Option<Instant>,
    /// The bytes of the current frame that were processed.
    frame_bytes: usize,
    /// The pings of the heartbeat that the client has yet to answer. These pongs do not count.
    pub(super) pongs_due: u32,
    /// Whether one of these pongs was received. Once no input is left, it has answered all pings (RFC 6455 §5.5.3).
    has_answered: bool,
    /// Until when the connection is not read.
    pub(super) delayed_until: Option<Tick>,
    /// Input that was read and may not be processed yet, from `held_at` on.
    pub(super) held: Vec<u8>,
    pub(super) held_at: usize,
    /// For how long the connection was delayed after its client had ended its stream.
    pub(super) delayed_at_end: Duration,
    /// When a delayed client was last sent a ping.
    pub(super) pinged: Option<Tick>,
}

impl RateAccount {
    pub(super) fn new(rates: ReceiveRates, now: Instant) -> Self {
        Self {
            messages: TokenBucket::with_tokens(rates.messages.unwrap_or(0)),
            bytes: TokenBucket::with_tokens(rates.bytes.unwrap_or(0)),
            controls: TokenBucket::with_tokens(CONTROLS_MAX),
            refilled: now,
            unread_since: None,
            frame_bytes: 0,
            pongs_due: 0,
            has_answered: false,
            delayed_until: None,
            held: Vec::new(),
            held_at: 0,
            delayed_at_end: Duration::ZERO,
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
        // The server may read at once what has arrived over a longer time.
        let unread = self
            .unread_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let burst = BURST.saturating_add(unread);
        self.messages
            .refill(rates.messages.unwrap_or(0), elapsed, burst);
        self.bytes.refill(rates.bytes.unwrap_or(0), elapsed, burst);
        self.controls
            .refill(CONTROLS_PER_SECOND, elapsed, CONTROLS_BURST);
    }

    /// Records that no input is left, as far as that is known.
    pub(super) fn emptied(&mut self) {
        self.unread_since = None;
        if std::mem::take(&mut self.has_answered) {
            self.pongs_due = 0;
        }
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
    pub(super) fn wait(&self, rates: ReceiveRates, now: Instant) -> Duration {
        let wait = |bucket: TokenBucket, rate: Option<u64>| match rate {
            Some(rate) if bucket.tokens() == 0 => {
                bucket.wait(rate, rate.div_ceil(RESUMES_PER_SECOND))
            }
            _ => Duration::ZERO,
        };
        let wait = wait(self.messages, rates.messages).max(wait(self.bytes, rates.bytes));
        let owed = self.refilled.saturating_duration_since(now);
        owed.saturating_add(wait)
    }

    /// Whether a frame counts towards neither limit, and why not.
    pub(super) fn exemption(
        &self,
        opcode: Option<Opcode>,
        rates: ReceiveRates,
    ) -> Option<Exemption> {
        match opcode {
            Some(Opcode::Close) => Some(Exemption::Close),
            Some(Opcode::Pong) if self.pongs_due > 0 => Some(Exemption::DuePong),
            Some(Opcode::Ping | Opcode::Pong)
                if rates.refuses_messages() && self.controls.tokens() > 0 =>
            {
                Some(Exemption::Control)
            }
            _ => None,
        }
    }

    /// Counts processed bytes, and the frame that they have completed.
    pub(super) fn charge(
        &mut self,
        bytes: usize,
        completed: Option<Completed>,
        exemption: Option<Exemption>,
    ) {
        if exemption.is_none() {
            self.bytes.take(bytes as u64);
        }
        self.frame_bytes = self.frame_bytes.saturating_add(bytes);
        let Some(completed) = completed else {
            return;
        };
        let bytes = std::mem::take(&mut self.frame_bytes);
        match (exemption, completed) {
            (Some(Exemption::Close), _) => {}
            (Some(Exemption::DuePong), _) => {
                self.pongs_due = self.pongs_due.saturating_sub(1);
                self.has_answered = true;
            }
            (Some(Exemption::Control), _) => self.controls.take(1),
            (None, Completed::Fragment) if bytes >= FREE_FRAGMENT_BYTES => {}
            (None, _) => self.messages.take(1),
        }
    }

    /// Counts a message that a host has received, given its length as a frame of the server. Returns the limit that did
    /// not allow it, if there is one. What the limits lack is then waited for before anything is refilled.
    pub(super) fn charge_handed_over(
        &mut self,
        frame_bytes: usize,
        rates: ReceiveRates,
    ) -> Option<Excess> {
        let mut excess = None;
        let mut owed = Duration::ZERO;
        let bytes = (frame_bytes as u64).saturating_add(MASKING_KEY_BYTES);
        let limits = [
            (&mut self.bytes, rates.bytes, bytes, Excess::Bytes),
            (&mut self.messages, rates.messages, 1, Excess::Messages),
        ];
        for (bucket, rate, tokens, limit) in limits {
            let Some(rate) = rate else {
                continue;
            };
            if bucket.tokens() < tokens {
                excess = Some(limit);
                owed = owed.max(bucket.wait(rate, tokens));
            }
            bucket.take(tokens);
        }
        // A time that can't be represented is one at which no connection is left.
        self.refilled = self.refilled.checked_add(owed).unwrap_or(self.refilled);
        excess
    }

    /// Whether a new account would allow as much.
    pub(super) fn is_unused(&self, rates: ReceiveRates) -> bool {
        self.messages.tokens() >= rates.messages.unwrap_or(0)
            && self.bytes.tokens() >= rates.bytes.unwrap_or(0)
            && self.controls.tokens() >= CONTROLS_MAX
            && (self.frame_bytes, self.pongs_due) == (0, 0)
            && self.unread_since.is_none()
            && self.delayed_until.is_none()
            && self.held.is_empty()
    }
}

/// A frame whose last byte was processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completed {
    /// A fragment that does not complete its message.
    Fragment,
    /// A message, or its last fragment; or a control frame.
    Other,
}

/// Why a frame counts towards neither limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exemption {
    Close,
    /// It answers a ping of the heartbeat.
    DuePong,
    /// A ping or an unsolicited pong, where clients may send no messages but a few of these.
    Control,
}
