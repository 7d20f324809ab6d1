//! Headroom under [`SlowConsumer::Pace`](crate::limits::SlowConsumer::Pace). Before a message is delivered, each
//! recipient's outbox must have space for it. A recipient without space is congested, and producers wait for it.

use crate::engine::model::command::Command;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::Key;
use crate::engine::reactor::Core;
use crate::transport::ShardTransport;

impl<T: ShardTransport> Core<T> {
    /// Whether the recipients of the next command have room for it.
    pub(super) fn has_headroom_for_next(&mut self) -> bool {
        let Some(command) = self.cx.fanout.commands.front() else {
            return true;
        };
        let lens = match command {
            Command::Send(_, frame) | Command::Broadcast(frame) => [frame.len(), 0, 0, 0, 0],
            #[cfg(feature = "deflate")]
            Command::SendEither(either) => [either.plain.len(), 0, 0, 0, 0],
            // Keyed messages wait beside the others.
            Command::Publish(publication) if publication.key.is_some() => [0; 5],
            Command::Publish(publication) => publication.lens(),
            // An outbox takes a replay of any length.
            Command::Join(_) | Command::Subscribe(_) => [0; 5],
            Command::Close(..) | Command::Leave(..) => [0; 5],
        };
        let to = match command {
            Command::Send(to, _) => Some(*to),
            #[cfg(feature = "deflate")]
            Command::SendEither(either) => Some(either.to),
            _ => None,
        };
        // A member gets one of the forms only.
        let longest = lens.into_iter().max().unwrap_or(0);
        self.need_headroom(if to.is_some() { 0 } else { longest });
        self.need_headroom_of_one(to.map(|to| (to, longest)));
        let len = lens.into_iter().fold(0, usize::saturating_add);
        if self.cx.fanout.batches_bytes.saturating_add(len) > self.cx.fanout.batches_bytes_max {
            // The batches before it take up room first.
            self.flush_batches();
        }
        !self.cx.fanout.is_paced()
    }

    /// Requires room in every outbox for a message of this length, which may be more than usual.
    pub(super) fn need_headroom(&mut self, len: usize) {
        let need = len.max(self.cx.fanout.need_usual);
        if need == self.cx.fanout.need {
            return;
        }
        // Batches before a longer message must be flushed before its headroom can be judged.
        self.flush_batches();
        self.cx.fanout.need = need;
        for encoding in [Encoding::Frames, Encoding::Events] {
            let slots = self.cx.fanout.all_of(encoding).as_slice().to_vec();
            for slot in slots {
                self.with_member(slot, |ws, cx| ws.note_fill(cx));
            }
        }
    }

    /// Requires room for a message to a single connection. Other outboxes are not checked: long messages to one client
    /// must not make the shard check all clients for each.
    pub(super) fn need_headroom_of_one(&mut self, need: Option<(Key, usize)>) {
        let need = need.filter(|&(_, len)| len > self.cx.fanout.need_usual);
        if need == self.cx.fanout.need_of_one {
            return;
        }
        self.flush_batches();
        let before = std::mem::replace(&mut self.cx.fanout.need_of_one, need);
        for (key, _) in [before, need].into_iter().flatten() {
            self.with_ws(key, |ws, cx| ws.note_fill(cx));
        }
    }
}
