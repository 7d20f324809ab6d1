//! Asking the shards about their connections, from any thread.

use std::ops::Range;

use crate::engine::hub::Hub;
use crate::engine::model::command::Control;
use crate::engine::model::inspection::{PendingInspection, Selection};
use crate::engine::parts::id::LocalId;
use crate::engine::parts::mailbox::When;

/// The maximum number of inspections that a shard has yet to answer, so that a shard that is busy for long does not collect
/// the questions of threads that have given up.
pub(crate) const UNANSWERED_MAX: usize = 64;

impl Hub {
    /// Asks each shard for its slowest connections, at most `limit`. Never blocks.
    pub(crate) fn inspect(&self, limit: usize) -> PendingInspection {
        let shards = 0..self.shards.len() as u16;
        self.ask(Selection::Slowest(limit), shards)
    }

    /// Asks the shard of a connection for this connection. Never blocks.
    pub(crate) fn inspect_one(&self, id: LocalId) -> PendingInspection {
        let shards = match self.shards.get(usize::from(id.shard)) {
            Some(_) => id.shard..id.shard + 1,
            None => 0..0,
        };
        self.ask(Selection::One(id.key()), shards)
    }

    fn ask(&self, selection: Selection, shards: Range<u16>) -> PendingInspection {
        let pending = PendingInspection::new(shards.len());
        for shard in shards {
            let unanswered = &self.shards[usize::from(shard)].unanswered;
            if let Some(question) = pending.question(selection, unanswered, UNANSWERED_MAX) {
                // At once, since the caller waits for the answer: the end of a handler's batch would be too late.
                let control = Control::Inspect(Box::new(question));
                self.send_control(shard, control, When::Now);
            }
        }
        pending
    }
}
