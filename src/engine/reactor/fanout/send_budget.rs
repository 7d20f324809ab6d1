//! The send budget: the memory that a shard may hold for all its clients, and that they do not share
//! (`Limits::outboxes_bytes_max`).

use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::reactor::fanout::Fanout;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{ConnCx, Core, Stage};
use crate::transport::ShardTransport;

impl Fanout {
    /// Begins another turn's writes.
    pub(crate) fn forget_tried(&mut self) {
        self.tried = 0;
    }

    /// Updates the counts after an outbox has changed, or the bytes that are pending in the transport.
    #[inline]
    pub(crate) fn note_unshared<T: ShardTransport>(
        &mut self,
        ws: &mut WebSocket,
        transport: Option<&T>,
    ) {
        let pending = transport.map_or(0, T::pending_bytes);
        self.set_unshared(ws, ws.outbox.own_bytes() + pending, pending > 0);
    }

    #[inline]
    pub(crate) fn forget_unshared(&mut self, ws: &mut WebSocket) {
        self.set_unshared(ws, 0, false);
    }

    #[inline]
    fn set_unshared(&mut self, ws: &mut WebSocket, unshared: usize, has_pending: bool) {
        self.unshared_bytes = self.unshared_bytes + unshared - ws.unshared_bytes;
        ws.unshared_bytes = unshared;
        let is_blocked = has_pending || ws.is_blocked();
        let blocked = if is_blocked { unshared } else { 0 };
        if ws.blocked_bytes() != blocked {
            let address = counted_as(ws.session.client_ip());
            let slot = ws.session.id.key().slot;
            let before = ws.set_blocked_bytes(blocked);
            self.blocked.set(address, slot, before, blocked);
        }
    }

    /// Updates the count of response bytes.
    pub(crate) fn change_responses(&mut self, before: usize, now: usize) {
        self.unshared_bytes = self.unshared_bytes + now - before;
    }

    /// Whether too much memory is held for clients.
    #[inline]
    fn is_over_budget(&self) -> bool {
        self.unshared_bytes > self.unshared_bytes_max
    }
}

impl<T: ShardTransport> Core<T> {
    /// While the queued bytes of all clients exceed the budget, disconnects the clients with the most bytes: first
    /// those whose sockets accept nothing at present, and then others.
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
            let Some(key) = self.with_slot(slot, |stage, cx| stage.try_or_give_up(cx)) else {
                break;
            };
            spared.extend(key);
        }
        for key in spared {
            let is_over = self.cx.fanout.is_over_budget();
            self.with(key, |stage, cx| match is_over {
                true => stage.give_up_reader(cx),
                false => stage.note_blocked(cx),
            });
        }
    }

    /// Tries to write newly queued bytes, once a turn, because before that they do not show whether their client reads.
    fn write_untried(&mut self) {
        while self.cx.fanout.is_over_budget()
            && let Some(&key) = self.cx.dirty.get(self.cx.fanout.tried)
        {
            self.cx.fanout.tried += 1;
            self.with(key, |stage, cx| {
                stage.write(cx, None);
                if stage.waiting_bytes(cx) == 0 {
                    // Bytes that are queued after this have not been tried.
                    cx.socket.dirty = false;
                }
            });
        }
    }
}

impl Stage {
    /// Disconnects the client unless its socket takes something. In that case sets it aside, and returns its key.
    fn try_or_give_up<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) -> Option<Key> {
        let before = self.waiting_bytes(cx);
        self.write(cx, None);
        if cx.is_over() {
            // The connection broke or has ended, so it is not a slow consumer.
            return None;
        }
        if self.waiting_bytes(cx) == 0 {
            // The client has taken everything, so giving up its connection would free nothing.
            self.set_aside(cx);
            return None;
        }
        if self.waiting_bytes(cx) == before {
            // The client does not read, so a close frame would not reach it.
            self.give_up_reader(cx);
            return None;
        }
        self.set_aside(cx);
        Some(cx.key)
    }

    /// The bytes that wait to be written, with those that are pending in the transport.
    fn waiting_bytes<T: ShardTransport>(&self, cx: &ConnCx<'_, T>) -> usize {
        let transport = cx.socket.transport.as_ref();
        match self {
            Self::WebSocket(ws) => ws.waiting_bytes(transport),
            Self::Http(http) => http.waiting_bytes() + transport.map_or(0, T::pending_bytes),
            Self::Lingering(_) => 0,
        }
    }

    /// Removes the connection from the index for now, so that the search for the largest does not find it.
    fn set_aside<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
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

    /// Adds the connection to the index again.
    fn note_blocked<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => {
                let transport = cx.socket.transport.as_ref();
                cx.shard.fanout.note_unshared(ws, transport);
            }
            Self::Http(http) => http.note_blocked(cx.key.slot, &mut cx.shard.fanout.blocked),
            Self::Lingering(_) => {}
        }
    }

    /// Disconnects a client that does not read.
    fn give_up_reader<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
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
