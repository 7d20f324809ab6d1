//! Room for what comes next, under [`SlowConsumer::Pace`](crate::limits::SlowConsumer::Pace): asked of those who are to get it.

use crate::engine::parts::encoding::Form;
use crate::engine::parts::id::Key;
use crate::engine::reactor::Core;
use crate::transport::Transport;

impl<T: Transport> Core<T> {
    /// Asks every outbox for room for a message of that length, which may be longer than usual.
    pub(super) fn need_room(&mut self, len: usize) {
        let need = len.max(self.delivery.need_usual);
        if need == self.delivery.need {
            return;
        }
        // What a longer message has in front of it must be on its way before it can be judged.
        self.flush_runs();
        self.delivery.need = need;
        for form in [Form::Frames, Form::Events] {
            for index in 0..self.delivery.all_of(form).len() {
                let slot = self.delivery.all_of(form)[index];
                self.note_fill(slot);
            }
        }
    }

    /// The same for one that is sent a message alone. The others are not asked: a client that has long messages sent to
    /// itself must not make the shard look at everyone for each.
    pub(super) fn need_room_of_one(&mut self, need: Option<(Key, usize)>) {
        let need = need.filter(|&(_, len)| len > self.delivery.need_usual);
        if need == self.delivery.need_of_one {
            return;
        }
        self.flush_runs();
        let before = std::mem::replace(&mut self.delivery.need_of_one, need);
        for (key, _) in [before, need].into_iter().flatten() {
            if let Some(slot) = self.conns.find(key) {
                self.note_fill(slot);
            }
        }
    }
}
