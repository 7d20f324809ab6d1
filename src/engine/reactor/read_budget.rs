//! The share of a turn that goes to clients which are not connected yet. Otherwise a storm of new clients would delay all others by a
//! turn that accepts and answers thousands of them.

use crate::engine::reactor::{ConnCx, Stage};
use crate::transport::ShardTransport;

/// The maximum work for TLS handshakes in a turn, in units of `ShardTransport::read_cost`: about a quarter of a
/// millisecond, or one handshake with RSA.
const HANDSHAKE_COST_MAX: u32 = 2;

/// The most reads of requests, among them handshakes of WebSocket, in a turn: about a millisecond.
const REQUEST_READS_MAX: u32 = 64;

/// The reads of clients that are not connected yet, as many as are left in this turn.
pub(super) struct ReadBudget {
    /// The work for TLS handshakes.
    handshake_cost: u32,
    /// Reads of requests, among them handshakes of WebSocket.
    requests: u32,
}

impl Default for ReadBudget {
    fn default() -> Self {
        Self {
            handshake_cost: HANDSHAKE_COST_MAX,
            requests: REQUEST_READS_MAX,
        }
    }
}

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Whether a read fits into the budgets of this turn. If it does not, the connection stays queued for reading in the next
    /// turn.
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
