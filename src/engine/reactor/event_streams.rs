//! Event streams: connections that are sent a room's messages, or everyone's, as server-sent events.
//!
//! A stream is in rooms of its own, beside those of WebSockets: what is published is rendered once for each form, and
//! nobody gets the other's. Its request is decided by the program on a handler thread (`HandshakeSource::EventStream`). Then it is
//! open, and another handler joins its rooms: the head of the answer, what the client has missed and what is new leave in
//! that order, since they come by the same mailbox.

use crate::engine::model::command::Subscribing;
use crate::engine::reactor::websocket::{Stream, WebSocket};
use crate::engine::reactor::{ConnCx, Core};
use crate::transport::Transport;

impl<T: Transport> Core<T> {
    /// A handler has decided how an event stream begins, or that it does not.
    pub(crate) fn begin_stream(&mut self, subscribing: Subscribing) {
        let key = subscribing.key;
        let mut subscribing = Some(subscribing);
        self.with_ws(key, |ws, cx| {
            if ws.is_open()
                && let Some(subscribing) = subscribing.take()
            {
                ws.begin_stream(cx, subscribing);
            }
        });
        if let Some(Subscribing { rooms, replay, .. }) = subscribing {
            rooms.iter().for_each(|room| room.unreach(self.cx.index));
            self.cx.lose_replay(replay.len() as u64);
        }
        self.enforce_send_budget();
    }
}

impl WebSocket {
    fn begin_stream<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>, subscribing: Subscribing) {
        let Subscribing {
            preface,
            keep_alive,
            rooms,
            replay,
            ..
        } = subscribing;
        self.outbox.push_preface(preface);
        let Some(keep_alive) = keep_alive else {
            self.end_stream(cx);
            return;
        };
        self.set_stream(Stream {
            keep_alive,
            comment_at: cx.shard.tick.after(keep_alive),
        });
        cx.shard.counters().event_streams.add(1);
        cx.shard.counters().event_streams_opened.add(1);
        // What the rooms have gathered before is not for it.
        self.take_batches(cx);
        for room in rooms {
            if self.session.is_seen(&room) {
                cx.shard.fanout.rooms.insert(room.number(), cx.key);
            } else {
                room.unreach(cx.shard.index);
            }
        }
        self.replay(cx, replay);
        self.want_write(cx);
    }
}
