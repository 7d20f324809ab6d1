//! Event streams: connections that receive a room's messages, or broadcasts to everyone, as server-sent events.
//!
//! A stream joins rooms of its own, beside those of WebSockets: a message is rendered once for each form, and each
//! connection gets one form. The program decides the request on a handler thread (`HandshakeSource::EventStream`). Then
//! the stream is open, and another handler joins its rooms: the head of the response, the missed events and new ones
//! arrive in that order, since they come through the same mailbox.

use bytes::Bytes;

use crate::engine::model::command::Subscribing;
use crate::engine::reactor::websocket::{Stream, WebSocket};
use crate::engine::reactor::{ConnCx, Core};
use crate::transport::{ShardTransport, UnsentLimit};

impl<T: ShardTransport> Core<T> {
    /// Processes a handler's decision: the event stream begins, or is refused.
    pub(crate) fn begin_stream(&mut self, subscribing: Subscribing) {
        let key = subscribing.key;
        let messages = subscribing.replays() as u64;
        let mut subscribing = Some(subscribing);
        self.with_ws(key, |ws, cx| {
            if ws.is_open()
                && let Some(subscribing) = subscribing.take()
            {
                ws.begin_stream(cx, subscribing);
            }
        });
        if let Some(Subscribing { rooms, .. }) = subscribing {
            rooms.iter().for_each(|room| room.unreach(self.cx.index));
            self.cx.lose_replay(messages);
        }
        self.enforce_send_budget();
    }
}

impl WebSocket {
    fn begin_stream<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        subscribing: Subscribing,
    ) {
        let Subscribing {
            preface,
            keep_alive,
            rooms,
            replay,
            snapshot,
            joined_ids,
            ..
        } = subscribing;
        self.outbox.push_preface(preface, cx.shard.tick);
        let Some(keep_alive) = keep_alive else {
            self.end_stream(cx);
            return;
        };
        self.set_stream(Stream {
            keep_alive,
            comment_at: cx.shard.tick.after(keep_alive),
            joined_ids,
        });
        cx.shard.counters().event_streams.add(1);
        cx.shard.counters().event_streams_opened.add(1);
        // Messages that the rooms have sent before are not for it.
        self.take_batches(cx);
        for room in rooms {
            if self.session.note_change_seen(&room) {
                cx.shard.fanout.rooms.insert(room.number(), cx.key);
                if room.is_keyed() {
                    self.limit_unsent(cx, UnsentLimit::Keyed);
                }
            } else {
                room.unreach(cx.shard.index);
            }
        }
        if self.joins_ids() {
            cx.shard.fanout.joining_ids.insert(cx.key.slot);
        }
        self.replay(cx, replay);
        self.queue_snapshot(cx, snapshot);
        self.want_write(cx);
    }

    /// Whether the ids of its events name several positions, so that it gets bytes of its own.
    pub(crate) fn joins_ids(&mut self) -> bool {
        self.stream()
            .is_some_and(|stream| stream.joined_ids.is_some())
    }

    /// Makes the ids of events name all positions of an event stream, if they have to.
    pub(crate) fn join_ids(&mut self, events: Bytes) -> Bytes {
        match self.stream().and_then(|stream| stream.joined_ids.as_mut()) {
            Some(ids) => ids.replace_in(&events).into(),
            None => events,
        }
    }
}
