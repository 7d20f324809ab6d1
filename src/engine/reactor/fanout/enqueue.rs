//! What is put into an outbox: as its bound and the slow-consumer policy allow, and as all outboxes together do.

use bytes::Bytes;

use crate::engine::model::command::Mail;
use crate::engine::parts::batch::keep_piece;
use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::slow_consumer::{Verdict, judge};
use crate::engine::reactor::fanout::JOIN_BELOW_BYTES;
use crate::engine::reactor::{Core, Role};
use crate::limits::SlowConsumer;
use crate::protocol::close::CloseCode;
use crate::report::limited;
use crate::transport::Transport;

/// Where bytes come from that an outbox is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// No other outbox has them, and they fill their allocation.
    Own,
    /// Others may share them; they are a piece `of` so many bytes.
    Shared { of: usize },
}

impl<T: Transport> Core<T> {
    /// A frame for a connection, and those for the same connection that come next, as far as they are small: what a handler
    /// has answered to messages that came together.
    pub(super) fn with_next_sends(&mut self, key: Key, frame: Bytes) -> (Bytes, u32) {
        let delivery = &mut self.delivery;
        let max = delivery.runs_bytes_max.min(JOIN_BELOW_BYTES);
        // Producers that are paced are paced for each message.
        if delivery.paces || frame.len() >= max {
            return (frame, 1);
        }
        let (mut len, mut count) = (frame.len(), 0);
        for mail in &delivery.mail {
            match mail {
                Mail::Send(to, next) if *to == key && len + next.len() <= max => {
                    len += next.len();
                    count += 1;
                }
                _ => break,
            }
        }
        if count == 0 {
            return (frame, 1);
        }
        let mut joined = Vec::with_capacity(len);
        joined.extend_from_slice(&frame);
        for mail in delivery.mail.drain(..count) {
            if let Mail::Send(_, frame) = mail {
                joined.extend_from_slice(&frame);
            }
        }
        delivery.delivered += count as u64;
        (joined.into(), 1 + count as u32)
    }

    /// Queues what is in no other outbox.
    pub(super) fn offer_own(&mut self, slot: u32, bytes: Bytes, messages: u32) {
        self.offer(slot, bytes, messages, Source::Own);
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            self.delivery.note_own(ws);
        }
    }

    /// Where what is held for clients takes too much memory in all, those that have most waiting go: first those that can't
    /// take any of it now, then, if that is not enough, the others.
    #[inline]
    pub(crate) fn make_room_outside(&mut self) {
        if self.delivery.own_bytes > self.delivery.own_bytes_max {
            self.enforce_send_budget();
        }
    }

    #[cold]
    fn enforce_send_budget(&mut self) {
        self.write_untried();
        let mut spared = Vec::new();
        while self.delivery.own_bytes > self.delivery.own_bytes_max
            && let Some((slot, _)) = self.delivery.blocked.largest()
        {
            let before = self.waiting_bytes(slot);
            self.write(slot, None);
            if self.waiting_bytes(slot) == before {
                // It does not read, so it can't be told either.
                self.give_up_reader(slot);
            } else if let Some(key) = self.conns.key(slot) {
                self.set_aside(slot);
                spared.push(key);
            }
        }
        for key in spared {
            let Some(slot) = self.conns.find(key) else {
                continue;
            };
            if self.delivery.own_bytes > self.delivery.own_bytes_max {
                self.give_up_reader(slot);
            } else {
                self.note_blocked(slot);
            }
        }
    }

    /// What nobody has tried to write yet says nothing of its client: it is tried, once in a turn.
    fn write_untried(&mut self) {
        while self.delivery.own_bytes > self.delivery.own_bytes_max
            && let Some(&slot) = self.dirty.get(self.delivery.tried)
        {
            self.delivery.tried += 1;
            self.write(slot, None);
            if self.waiting_bytes(slot) == 0
                && let Some(conn) = self.conns.get_mut(slot)
            {
                // What comes after that has not been tried.
                conn.dirty = false;
            }
        }
    }

    /// Another turn's writes begin.
    pub(crate) fn nothing_is_tried(&mut self) {
        self.delivery.tried = 0;
    }

    fn waiting_bytes(&self, slot: u32) -> usize {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(ws)) => ws.outbox.bytes(),
            Some(Role::Http(http)) => http.waiting_bytes(),
            _ => 0,
        }
    }

    /// It is not to be found as the largest, for now.
    fn set_aside(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let blocked = &mut self.delivery.blocked;
        match &mut conn.role {
            Role::WebSocket(ws) => {
                let before = ws.set_blocked_bytes(0);
                let address = counted_as(ws.session.client_ip());
                blocked.set(address, slot, before, 0);
            }
            Role::Http(http) => http.set_blocked_bytes(slot, 0, blocked),
            Role::Lingering(_) => {}
        }
    }

    /// It can be found again.
    fn note_blocked(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        match &mut conn.role {
            Role::WebSocket(ws) => self.delivery.note_own(ws),
            Role::Http(http) => http.note_blocked(slot, &mut self.delivery.blocked),
            Role::Lingering(_) => {}
        }
    }

    /// A client does not read what waits for it, and goes.
    fn give_up_reader(&mut self, slot: u32) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(_)) => {
                self.disconnect_slow(slot);
                self.broken(slot);
            }
            Some(Role::Http(_)) => {
                self.counters().slow_consumers.add(1);
                self.free(slot);
            }
            _ => {}
        }
    }

    /// Queues whole messages, as the slow-consumer policy allows.
    pub(super) fn offer(&mut self, slot: u32, mut bytes: Bytes, mut messages: u32, source: Source) {
        let bytes_max = self.hub.settings.limits.outbox_bytes_max;
        let policy = self.hub.settings.slow_consumer;
        let mut written = false;
        let mut is_cut = false;
        // What is queued of several frames does not keep the memory of those that are dropped.
        let keep = |piece: Bytes, is_cut: bool| match source {
            Source::Own if is_cut => (Bytes::copy_from_slice(&piece), true),
            Source::Own => (piece, true),
            Source::Shared { of } => keep_piece(piece, of),
        };
        while messages > 0 {
            let Some(ws) = self.open_ws(slot) else {
                self.counters().dropped_closed.add(u64::from(messages));
                return;
            };
            let fill = ws.outbox.fill(bytes_max);
            if judge(policy, fill, bytes.len()) == Verdict::Queue {
                let (bytes, own) = keep(bytes, is_cut);
                ws.outbox.push(bytes, messages, own);
                break;
            }
            if !written && (!ws.is_blocked() || policy == SlowConsumer::Disconnect) {
                // The socket may take what is queued: a full outbox in itself is no sign of a slow client. Before the
                // last verdict that is asked even of one that was blocked.
                written = true;
                self.ws_write(slot);
                continue;
            }
            let (len, count) = match messages {
                1 => (bytes.len(), 1),
                _ => ws
                    .form()
                    .whole(&bytes, bytes_max.saturating_sub(fill.bytes)),
            };
            let piece = bytes.split_to(len);
            is_cut |= !bytes.is_empty();
            match judge(policy, fill, len) {
                // A paced shard has made sure of room beforehand.
                Verdict::Queue | Verdict::Wait => {
                    let (piece, own) = keep(piece, is_cut);
                    ws.outbox.push(piece, count, own);
                }
                Verdict::DropNewest => self.counters().dropped_slow_consumer.add(u64::from(count)),
                Verdict::DropOldest => {
                    let dropped = ws.outbox.drop_oldest(len, bytes_max);
                    let (piece, own) = keep(piece, is_cut);
                    ws.outbox.push(piece, count, own);
                    self.counters().dropped_slow_consumer.add(dropped);
                }
                Verdict::Disconnect => {
                    self.counters()
                        .dropped_slow_consumer
                        .add(u64::from(messages));
                    self.disconnect_slow(slot);
                    return;
                }
            }
            messages -= count;
        }
        self.want_write(slot);
    }

    /// The verdict on a slow consumer: the frame in progress is finished, the rest is dropped, 1013 says why.
    pub(crate) fn disconnect_slow(&mut self, slot: u32) {
        let unsent = self.pending_run(slot);
        let hub = self.hub.clone();
        let Some(ws) = self.open_ws(slot) else {
            return;
        };
        let dropped = ws.outbox.drop_waiting() + unsent;
        // Nothing more of the runs either, and no longer than the deadline.
        ws.seen = u64::MAX;
        ws.found_slow = true;
        let id = ws.session.id;
        let said = &hub.said.slow;
        ws.session.span.within(|| {
            limited!(
                said,
                info,
                "connection {id} read too slowly and is disconnected; {dropped} messages that waited are dropped"
            );
        });
        let counters = self.counters();
        counters.dropped_slow_consumer.add(dropped);
        counters.slow_consumers.add(1);
        self.close_ws(slot, CloseCode::TRY_AGAIN_LATER, "too slow");
    }
}
