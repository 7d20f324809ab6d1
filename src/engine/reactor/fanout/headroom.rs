//! Headroom under [`SlowConsumer::Pace`](crate::limits::SlowConsumer::Pace): before a message is delivered, each outbox that is
//! to get it must have room for it. Members whose outbox has not are congested, and producers wait for them.

use crate::engine::model::command::Command;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::Key;
use crate::engine::reactor::Core;
use crate::transport::Transport;

impl<T: Transport> Core<T> {
    /// Whether everyone has room for the next command.
    pub(super) fn has_headroom_for_next(&mut self) -> bool {
        let Some(command) = self.cx.fanout.commands.front() else {
            return true;
        };
        let lens = match command {
            Command::Send(_, frame) | Command::Broadcast(frame) => [frame.len(), 0, 0],
            #[cfg(feature = "deflate")]
            Command::SendEither(either) => [either.plain.len(), 0, 0],
            Command::Publish(publication) => publication.lens(),
            // An outbox takes a replay of any length.
            Command::Join(_) | Command::Subscribe(_) => [0, 0, 0],
            Command::Close(..) | Command::Leave(..) => [0, 0, 0],
        };
        let to = match command {
            Command::Send(to, _) => Some(*to),
            #[cfg(feature = "deflate")]
            Command::SendEither(either) => Some(either.to),
            _ => None,
        };
        // Nobody gets more than one.
        let longest = lens.into_iter().max().unwrap_or(0);
        self.need_headroom(if to.is_some() { 0 } else { longest });
        self.need_headroom_of_one(to.map(|to| (to, longest)));
        let len = lens.into_iter().fold(0, usize::saturating_add);
        if self.cx.fanout.runs_bytes.saturating_add(len) > self.cx.fanout.runs_bytes_max {
            // The batches before it take their room first.
            self.flush_batches();
        }
        !self.cx.fanout.is_paced()
    }

    /// Asks every outbox for room for a message of that length, which may be longer than usual.
    pub(super) fn need_headroom(&mut self, len: usize) {
        let need = len.max(self.cx.fanout.need_usual);
        if need == self.cx.fanout.need {
            return;
        }
        // What a longer message has in front of it must be on its way before it can be judged.
        self.flush_batches();
        self.cx.fanout.need = need;
        for encoding in [Encoding::Frames, Encoding::Events] {
            let slots = self.cx.fanout.all_of(encoding).as_slice().to_vec();
            for slot in slots {
                self.with_member(slot, |ws, cx| ws.note_fill(cx));
            }
        }
    }

    /// Asks for room for a message that one connection is sent alone. The others are not asked: a client that has long
    /// messages sent to itself must not make the shard look at everyone for each.
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
