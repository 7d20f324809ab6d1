//! The send budget: what a shard holds for its clients in all, and shares with no other (`Limits::outboxes_bytes_max`).

use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::{ConnCx, Core, Role};
use crate::transport::Transport;

impl Fanout {
    /// Another turn's writes begin.
    pub(crate) fn forget_tried(&mut self) {
        self.tried = 0;
    }
}

impl<T: Transport> Core<T> {
    /// Where what is held for clients takes too much memory in all, those that have most waiting go: first those that can't
    /// take any of it now, then, if that is not enough, the others.
    #[inline]
    pub(crate) fn enforce_send_budget(&mut self) {
        if self.cx.fanout.is_over_budget() {
            self.disconnect_heaviest();
        }
    }

    #[cold]
    fn disconnect_heaviest(&mut self) {
        self.write_untried();
        let mut spared = Vec::new();
        while self.cx.fanout.is_over_budget()
            && let Some((slot, _)) = self.cx.fanout.blocked.largest()
        {
            let Some(key) = self.with_slot(slot, |role, cx| role.try_or_give_up(cx)) else {
                break;
            };
            spared.extend(key);
        }
        for key in spared {
            let is_over = self.cx.fanout.is_over_budget();
            self.with(key, |role, cx| match is_over {
                true => role.give_up_reader(cx),
                false => role.note_blocked(cx),
            });
        }
    }

    /// Bytes that no write has been tried for yet say nothing of their client: a write is tried, once in a turn.
    fn write_untried(&mut self) {
        while self.cx.fanout.is_over_budget()
            && let Some(&key) = self.cx.dirty.get(self.cx.fanout.tried)
        {
            self.cx.fanout.tried += 1;
            self.with(key, |role, cx| {
                role.write(cx, None);
                if role.waiting_bytes() == 0 {
                    // What comes after that has not been tried.
                    cx.socket.dirty = false;
                }
            });
        }
    }
}

impl Role {
    /// Gives the client up, unless its socket takes something. Then it is not found as the largest, for now, and its key is
    /// returned.
    fn try_or_give_up<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) -> Option<Key> {
        let before = self.waiting_bytes();
        self.write(cx, None);
        if cx.is_over() {
            // It has broken or is done: it is no slow reader.
            return None;
        }
        if self.waiting_bytes() == before {
            // It does not read, so it can't be told either.
            self.give_up_reader(cx);
            return None;
        }
        self.set_aside(cx);
        Some(cx.key)
    }

    fn waiting_bytes(&self) -> usize {
        match self {
            Self::WebSocket(ws) => ws.outbox.bytes(),
            Self::Http(http) => http.waiting_bytes(),
            Self::Lingering(_) => 0,
        }
    }

    /// It is not to be found as the largest, for now.
    fn set_aside<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let blocked = &mut cx.shard.fanout.blocked;
        match self {
            Self::WebSocket(ws) => {
                let before = ws.set_blocked_bytes(0);
                let address = counted_as(ws.session.client_ip());
                blocked.set(address, cx.key.slot, before, 0);
            }
            Self::Http(http) => http.set_blocked_bytes(cx.key.slot, 0, blocked),
            Self::Lingering(_) => {}
        }
    }

    /// It can be found again.
    fn note_blocked<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => cx.shard.fanout.note_unshared(ws),
            Self::Http(http) => http.note_blocked(cx.key.slot, &mut cx.shard.fanout.blocked),
            Self::Lingering(_) => {}
        }
    }

    /// A client does not read what waits for it, and goes.
    fn give_up_reader<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => {
                ws.disconnect_slow(cx);
                ws.break_off(cx);
            }
            Self::Http(_) => {
                cx.shard.counters().slow_consumers.add(1);
                cx.free();
            }
            Self::Lingering(_) => {}
        }
    }
}
