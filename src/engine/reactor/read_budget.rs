//! The share of a turn that goes to clients which are not connected yet. Otherwise a storm of new clients would delay all others by a
//! turn that accepts and answers thousands of them.

use std::time::{Duration, Instant};

use crate::engine::reactor::{ConnCx, Stage};
use crate::transport::ShardTransport;

/// The maximum work for TLS handshakes in a share, in units of `ShardTransport::read_cost`: about a quarter of a
/// millisecond, or one handshake with RSA.
const HANDSHAKE_COST_MAX: u32 = 2;

/// The most reads of requests in a share, among them handshakes of WebSocket: about a millisecond.
const REQUEST_READS_MAX: u32 = 64;

/// The most connections accepted in a share.
const ACCEPTS_MAX: u32 = 32;

/// There is one more share for each interval of this length for which the shard was awake before. Otherwise a server that
/// broadcasts to thousands in each turn would admit few clients in a second. A share takes less time than the interval, unless
/// each new client costs more than a quarter of a millisecond, so that turns do not become longer and longer.
const SHARE_INTERVAL: Duration = Duration::from_millis(16);

const SHARES_MAX: u32 = 4;

/// What clients that are not connected yet may still do until the shard waits for events.
#[derive(Default)]
pub(super) struct ReadBudget {
    /// The work for TLS handshakes.
    handshake_cost: u32,
    /// Reads of requests, among them handshakes of WebSocket.
    requests: u32,
    /// Connections that may be accepted.
    pub(super) accepts: u32,
    /// When the shard woke up. `None` while it waits.
    awake_since: Option<Instant>,
    /// How long it was awake before that, with the handlers that ran on its thread.
    was_awake: Duration,
}

impl ReadBudget {
    pub(super) fn begin_turn(&mut self, now: Instant) {
        if self.awake_since.is_some() {
            // The second turn, after handlers have run.
            return;
        }
        self.awake_since = Some(now);
        let shares = self.was_awake.as_millis() / SHARE_INTERVAL.as_millis();
        let shares = u32::try_from(shares).map_or(SHARES_MAX, |n| n.clamp(1, SHARES_MAX));
        self.handshake_cost = HANDSHAKE_COST_MAX * shares;
        self.requests = REQUEST_READS_MAX * shares;
        self.accepts = ACCEPTS_MAX * shares;
    }

    /// Records that the shard waits for events.
    pub(super) fn waits(&mut self, now: Instant) {
        if let Some(since) = self.awake_since.take() {
            self.was_awake = now.saturating_duration_since(since);
        }
    }
}

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Whether a read fits into the budgets. If it does not, the connection stays queued for reading in the next turn.
    #[inline]
    pub(super) fn affords_read(&mut self, stage: &Stage) -> bool {
        let handshake_cost = self.socket.transport.as_ref().map_or(0, T::read_cost);
        match (stage, handshake_cost) {
            (Stage::WebSocket(_) | Stage::Lingering(_), 0) => true,
            _ => self.affords_request(handshake_cost),
        }
    }

    #[cold]
    fn affords_request(&mut self, handshake_cost: u32) -> bool {
        let left = &mut self.shard.read_budget;
        if left.requests == 0 || (handshake_cost > 0 && left.handshake_cost == 0) {
            self.shard.readable.push(self.key);
            return false;
        }
        left.requests -= 1;
        left.handshake_cost = left.handshake_cost.saturating_sub(handshake_cost);
        true
    }
}
