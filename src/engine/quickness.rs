//! Whether a shard's handlers are quick enough for its own thread, by what was measured of them there.
//!
//! What handlers take that take long is a debt, which time pays off: a shard may lose a thirty-second part of its time to
//! them. Beyond that, or when one takes so long that the shard goes on without its thread, handlers are for the pool for
//! a while, and each time that this comes again soon, for twice as long. So whatever handlers do, and however it
//! changes, trying again costs no more than it can bring.

use std::time::{Duration, Instant};

/// A handler that takes longer holds up its shard by more than the way to the pool and back would cost.
const LONG: Duration = Duration::from_micros(20);
/// One part of so many of a shard's time may go to long handlers.
const SHARE: u32 = 32;
/// So much of it at once.
const DEBT_MAX: Duration = Duration::from_millis(1);
/// How long handlers are for the pool, at least and at most.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Who has been quick for so many times the last pause begins with the shortest again.
const PAUSES_QUICK: u32 = 4;

pub(super) struct Quickness {
    /// What long handlers have taken, as of then, less what time has paid off.
    debt: Duration,
    debt_at: Instant,
    quick_since: Instant,
    /// Until when handlers are for the pool.
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Quickness {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            debt: Duration::ZERO,
            debt_at: now,
            quick_since: now,
            paused_until: None,
            pause: Duration::ZERO,
        }
    }

    /// Whether handlers are to run on the shard's thread; not while those on the pool are slow.
    pub(super) fn is_quick(&mut self, now: Instant, pool_is_slow: impl FnOnce() -> bool) -> bool {
        if let Some(until) = self.paused_until {
            if now < until || pool_is_slow() {
                return false;
            }
            self.paused_until = None;
            self.quick_since = now;
        }
        true
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// A job has run on the shard's thread.
    pub(super) fn ran(&mut self, took: Duration, now: Instant) {
        if took <= LONG {
            return;
        }
        let paid = now.saturating_duration_since(self.debt_at) / SHARE;
        self.debt = self.debt.saturating_sub(paid) + took;
        self.debt_at = now;
        if self.debt > DEBT_MAX {
            self.found_slow(now);
        }
    }

    /// Handlers have taken more than they may.
    pub(super) fn found_slow(&mut self, now: Instant) {
        let quick_for = now.saturating_duration_since(self.quick_since);
        self.pause = if quick_for > self.pause * PAUSES_QUICK {
            PAUSE_MIN
        } else {
            (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
        };
        self.debt = Duration::ZERO;
        self.paused_until = Some(now + self.pause);
    }

    /// The shard can't be lent out at present.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.paused_until = Some(now + PAUSE_MIN);
    }
}
