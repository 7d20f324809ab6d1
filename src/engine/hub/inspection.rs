//! Asking the shards about their connections, from any thread.

use crate::engine::hub::{Hub, ShardHandle};
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
        ask(Selection::Slowest(limit), &self.shards)
    }

    /// Asks the shard of a connection for this connection. Never blocks.
    pub(crate) fn inspect_one(&self, id: LocalId) -> PendingInspection {
        let shard = self.shards.get(usize::from(id.shard));
        let shards = shard.map_or(&[][..], std::slice::from_ref);
        ask(Selection::One(id.key()), shards)
    }
}

fn ask(selection: Selection, shards: &[ShardHandle]) -> PendingInspection {
    let pending = PendingInspection::new(shards.len());
    for handle in shards {
        if let Some(question) = pending.question(selection, &handle.unanswered, UNANSWERED_MAX) {
            // At once, since the caller waits for the answer: the end of a handler's batch would be too late.
            let control = Control::Inspect(Box::new(question));
            handle.mailbox.control(control, When::Now);
        }
    }
    pending
}
