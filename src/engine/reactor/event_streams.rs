//! Event streams: connections that are sent a room's messages, or everyone's, as server-sent events.
//!
//! A stream is in rooms of its own, beside those of WebSockets: what is published is rendered once for each form, and
//! nobody gets the other's. Its request is decided by the program on a handler thread (`Entry::EventStream`). Then it is
//! open, and another handler joins its rooms: the head of the answer, what the client has missed and what is new leave in
//! that order, since they come by the same mailbox.

use std::time::Duration;

use crate::engine::model::command::Subscribing;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::Core;
use crate::transport::Transport;

/// What an event stream has that a WebSocket has not.
pub(crate) struct Stream {
    pub(crate) keep_alive: Duration,
    /// When the next comment is due.
    pub(crate) comment_at: Tick,
}

impl<T: Transport> Core<T> {
    /// A handler has decided how an event stream begins, or that it does not.
    pub(crate) fn begin_stream(&mut self, subscribing: Subscribing) {
        let Subscribing {
            key,
            preface,
            keep_alive,
            rooms,
            replay,
        } = subscribing;
        let tick = self.tick;
        let slot = self.conns.find(key);
        let Some((slot, ws)) = slot.and_then(|slot| Some((slot, self.open_ws(slot)?))) else {
            rooms.iter().for_each(|room| room.unreach(self.index));
            self.lose_replay(replay.len() as u64);
            return;
        };
        ws.outbox.push_preface(preface);
        let Some(keep_alive) = keep_alive else {
            self.end_stream(slot);
            return;
        };
        ws.begin_stream(Stream {
            keep_alive,
            comment_at: tick.after(keep_alive),
        });
        let session = ws.session.clone();
        self.counters().event_streams.add(1);
        self.counters().event_streams_opened.add(1);
        // What the rooms have gathered before is not for it.
        self.take_run(slot);
        for room in rooms {
            if session.is_seen(&room) {
                self.delivery.rooms.insert(room.number(), key);
            } else {
                room.unreach(self.index);
            }
        }
        self.replay(slot, replay);
        self.want_write(slot);
        self.arm(slot);
    }
}
