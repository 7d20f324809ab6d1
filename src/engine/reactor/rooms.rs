//! Rooms: sets of connections. The engine knows them by number.
//!
//! Membership is stored twice. A [`SharedRoom`] answers any thread at once. Each shard with members has its own list
//! ([`LocalRooms`]), which is updated through the mailbox. So joins, leaves and messages keep their order at each
//! connection, and every thread sees its own changes.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::model::command::{Joining, KeyedSnapshot};
use crate::engine::model::job::SessionEvent;
use crate::engine::model::memberships::Membership;
use crate::engine::model::replay::Replay;
use crate::engine::model::room::{Presence, SharedRoom};
use crate::engine::model::session::Session;
#[cfg(feature = "deflate")]
use crate::engine::parts::batch::Audience;
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::Key;
use crate::engine::parts::small_set::Members;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{ConnCx, Core, ShardCx};
use crate::sync::lock;
use crate::transport::{ShardTransport, UnsentLimit};

/// The rooms that any connection of a shard is in.
#[derive(Default)]
pub(crate) struct LocalRooms(HashMap<u64, LocalRoom>);

#[derive(Default)]
pub(crate) struct LocalRoom {
    /// The slots of its members. A connection leaves before its slot is reused.
    members: Members<u32>,
    /// The index of its batch, if any messages were sent to it in this turn.
    pub(crate) batch: Option<u32>,
}

impl LocalRooms {
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut LocalRoom> {
        self.0.get_mut(&number)
    }

    pub(crate) fn contains(&self, number: u64, key: Key) -> bool {
        self.0
            .get(&number)
            .is_some_and(|room| room.members.contains(key.slot))
    }

    pub(crate) fn len(&self, number: u64) -> usize {
        self.0.get(&number).map_or(0, |room| room.members.len())
    }

    /// The slots of the members of a room.
    pub(crate) fn members(&self, number: u64) -> impl Iterator<Item = u32> {
        self.0
            .get(&number)
            .into_iter()
            .flat_map(|room| room.members.iter())
    }

    pub(crate) fn insert(&mut self, number: u64, key: Key) {
        self.0.entry(number).or_default().members.insert(key.slot);
    }

    /// Returns whether the shard has no member of the room any more.
    fn remove(&mut self, number: u64, key: Key) -> bool {
        if let Some(room) = self.0.get_mut(&number) {
            room.members.remove(key.slot);
            if room.members.is_empty() {
                self.0.remove(&number);
            }
        }
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to_fit();
        }
        !self.0.contains_key(&number)
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn memberships(&self) -> usize {
        self.0.values().map(|room| room.members.len()).sum()
    }
}

impl LocalRooms {
    /// The batches of a session's rooms, by channel number.
    pub(crate) fn with_batches(&self, session: &Session) -> Vec<u32> {
        lock(&session.rooms)
            .held()
            .filter_map(|room| self.0.get(&room.channel_for(session.history_form()))?.batch)
            .collect()
    }
}

impl<T: ShardTransport> ShardCx<T> {
    /// Removes a member from a room, and what the shard keeps for the room, if this was its last member here.
    fn remove_member(&mut self, number: u64, key: Key) {
        let is_empty = self.fanout.rooms.remove(number, key);
        #[cfg(feature = "deflate")]
        if is_empty {
            self.fanout
                .shared_compression
                .emptied(Audience::Room(number));
        }
        #[cfg(not(feature = "deflate"))]
        let _ = is_empty;
    }
}

impl<T: ShardTransport> Core<T> {
    pub(crate) fn join_room(&mut self, joining: Joining) {
        let messages = joining.replays() as u64;
        let Joining {
            key,
            room,
            replay,
            snapshot,
        } = joining;
        let has_joined = self.with_ws(key, |ws, cx| ws.join_room(cx, &room, replay, snapshot));
        if has_joined != Some(true) {
            room.unreach(self.cx.index);
            self.cx.lose_replay(messages);
        }
        self.enforce_send_budget();
    }

    pub(crate) fn leave_room(&mut self, key: Key, room: Arc<SharedRoom>) {
        self.with_ws(key, |ws, cx| ws.leave_room(cx, room));
    }
}

impl WebSocket {
    /// Whether a connection takes a room's messages: it is open, and has not left again.
    fn is_reached_by<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        room: &Arc<SharedRoom>,
    ) -> bool {
        // Earlier messages to the room are for its earlier members.
        self.take_batches(cx);
        self.is_open() && self.session.note_change_seen(room)
    }

    /// Makes a connection a member of a room. Returns whether it is one now.
    fn join_room<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        room: &Arc<SharedRoom>,
        replay: Replay,
        snapshot: KeyedSnapshot,
    ) -> bool {
        if !self.is_reached_by(cx, room) {
            return false;
        }
        let number = room.channel_for(self.session.history_form());
        cx.shard.fanout.rooms.insert(number, cx.key);
        #[cfg(feature = "deflate")]
        cx.shard
            .fanout
            .shared_compression
            .joined(Audience::Room(number), self.compression);
        if room.is_keyed() {
            self.limit_unsent(cx, UnsentLimit::Keyed);
        }
        // Report the join first, because the replay may disconnect the client, which then leaves.
        self.presence_changed(cx, Presence::Joined, room.clone());
        self.replay(cx, replay);
        self.queue_snapshot(cx, snapshot);
        true
    }

    fn leave_room<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>, room: Arc<SharedRoom>) {
        if !self.is_reached_by(cx, &room) {
            return;
        }
        let number = room.channel_for(self.session.history_form());
        #[cfg(feature = "deflate")]
        {
            // The connection may join again after it has missed compressed messages.
            let epoch = cx
                .shard
                .fanout
                .shared_compression
                .epoch_of(Audience::Room(number));
            if epoch.is_some_and(|epoch| self.compression.follows(epoch)) {
                self.compression.leave_epoch();
            }
        }
        cx.shard.remove_member(number, cx.key);
        if room.is_keyed() && !lock(&self.session.rooms).held().any(|room| room.is_keyed()) {
            let limit = match cx.shard.hub.settings.slow_consumer.prefers_new() {
                true => UnsentLimit::PrefersNew,
                false => UnsentLimit::System,
            };
            self.limit_unsent(cx, limit);
        }
        room.unreach(cx.shard.index);
        self.presence_changed(cx, Presence::Left, room);
    }

    /// Limits what the kernel takes in advance: in a keyed room little, since what it has taken can't be replaced.
    pub(super) fn limit_unsent<T: ShardTransport>(&self, cx: &ConnCx<'_, T>, limit: UnsentLimit) {
        if let Some(transport) = &cx.socket.transport {
            transport.limit_unsent(limit);
        }
    }

    fn presence_changed<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        change: Presence,
        room: Arc<SharedRoom>,
    ) {
        if cx.shard.subscriptions.room && room.is_reported() {
            self.keep_event(
                SessionEvent::Room(change, room),
                &mut cx.shard.receive_budget,
            );
            self.advance(cx);
        }
    }

    /// Leaves all rooms at the end of the connection. Its share of their batches was taken, or is lost.
    pub(super) fn leave_rooms<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let rooms = std::mem::take(&mut *lock(&self.session.rooms)).into_vec();
        let shard = &mut *cx.shard;
        let is_stream = self.encoding() == Encoding::Events;
        for membership in rooms {
            let held = membership.is_held();
            let Membership { room, wanted, .. } = membership;
            if held {
                let number = room.channel_for(self.session.history_form());
                shard.remove_member(number, cx.key);
                room.unreach(shard.index);
            }
            if wanted {
                room.remove(self.session.id, self.session.history_form());
                if !is_stream && room.is_reported() {
                    shard.hub.common.room_members.sub(1);
                    shard.program.ended_in(&self.session, &room);
                }
                if let Some(empty) = room.leave() {
                    shard.program.emptied(&empty);
                }
            }
            // Report no leave for a session whose join was not reported.
            if held && shard.subscriptions.room && room.is_reported() && !is_stream {
                let event = SessionEvent::Room(Presence::Left, room);
                self.keep_event(event, &mut shard.receive_budget);
            }
        }
    }

    /// Leaves the room events to the handlers of a session whose shard ends while they run.
    pub(super) fn leave_rooms_behind(&self) {
        let mut rooms: Vec<Arc<SharedRoom>> = Vec::new();
        let mut joined: Vec<&Arc<SharedRoom>> = Vec::new();
        for event in self.unhandled() {
            match event {
                SessionEvent::Room(Presence::Joined, room) => joined.push(room),
                SessionEvent::Room(Presence::Left, room) => {
                    // A join and a leave that handlers have not received cancel each other out.
                    match joined.iter().position(|other| Arc::ptr_eq(other, room)) {
                        Some(at) => drop(joined.swap_remove(at)),
                        None => rooms.push(room.clone()),
                    }
                }
                _ => {}
            }
        }
        self.session.leave_behind(rooms);
    }
}
