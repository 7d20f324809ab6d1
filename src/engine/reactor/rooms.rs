//! Rooms: sets of connections. The engine knows them by number.
//!
//! Who is in a room is kept twice. A [`Room`] answers any thread at once; the shards of its members each have a list of
//! their own ([`LocalRooms`]), which follows through the mailbox. So joining, leaving and what is sent keep their order
//! at each connection, and what any thread reads is what it has done.

use std::collections::HashMap;
use std::sync::Arc;

use crate::engine::model::command::Joining;
use crate::engine::model::job::Event;
use crate::engine::model::memberships::Membership;
use crate::engine::model::room::{Presence, Room};
use crate::engine::model::session::Session;
use crate::engine::parts::encoding::Form;
use crate::engine::parts::id::Key;
use crate::engine::parts::small_set::Members;
use crate::engine::reactor::{Core, Role};
use crate::sync::lock;
use crate::transport::Transport;

/// The rooms of a shard: those that any of its connections is in.
#[derive(Default)]
pub(crate) struct LocalRooms(HashMap<u64, LocalRoom>);

#[derive(Default)]
pub(crate) struct LocalRoom {
    /// Their slots: who ends leaves before another can have his.
    members: Members<u32>,
    /// Where its messages of this turn gather, if it has any.
    pub(crate) run: Option<u32>,
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

    /// The slots of those who are in it.
    pub(crate) fn members(&self, number: u64) -> impl Iterator<Item = u32> {
        self.0
            .get(&number)
            .into_iter()
            .flat_map(|room| room.members.iter())
    }

    pub(crate) fn insert(&mut self, number: u64, key: Key) {
        self.0.entry(number).or_default().members.insert(key.slot);
    }

    fn remove(&mut self, number: u64, key: Key) {
        if let Some(room) = self.0.get_mut(&number) {
            room.members.remove(key.slot);
            if room.members.is_empty() {
                self.0.remove(&number);
            }
        }
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to_fit();
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn memberships(&self) -> usize {
        self.0.values().map(|room| room.members.len()).sum()
    }
}

impl<T: Transport> Core<T> {
    /// Runs that a connection may have a share in: those of its rooms, by number.
    pub(crate) fn rooms_with_runs(&self, session: &Session) -> Vec<u32> {
        lock(&session.rooms)
            .held()
            .filter_map(|room| {
                self.delivery
                    .rooms
                    .0
                    .get(&room.number_for(session.takes_ids()))?
                    .run
            })
            .collect()
    }

    pub(crate) fn join_room(&mut self, joining: Joining) {
        let Joining { key, room, replay } = joining;
        let slot = self.conns.find(key);
        // What it is due to get so far does not include what this room has gathered.
        slot.into_iter().for_each(|slot| self.take_run(slot));
        let number = slot
            .and_then(|slot| self.open_ws(slot))
            .filter(|ws| ws.session.is_seen(&room))
            .map(|ws| room.number_for(ws.session.takes_ids()));
        let (Some(slot), Some(number)) = (slot, number) else {
            room.unreach(self.index);
            self.lose_replay(replay.len() as u64);
            return;
        };
        self.delivery.rooms.insert(number, key);
        // First, as what is replayed may cost it the connection, and it leaves by that.
        self.presence_changed(slot, Presence::Joined, room);
        self.replay(slot, replay);
    }

    pub(crate) fn leave_room(&mut self, key: Key, room: Arc<Room>) {
        let Some(slot) = self.conns.find(key) else {
            return;
        };
        // While it is still in it.
        self.take_run(slot);
        let number = self
            .open_ws(slot)
            .filter(|ws| ws.session.is_seen(&room))
            .map(|ws| room.number_for(ws.session.takes_ids()));
        let Some(number) = number else {
            return;
        };
        self.delivery.rooms.remove(number, key);
        room.unreach(self.index);
        self.presence_changed(slot, Presence::Left, room);
    }

    fn presence_changed(&mut self, slot: u32, change: Presence, room: Arc<Room>) {
        if self.interests.room {
            self.keep_event(slot, Event::Room(change, room));
            self.advance(slot);
        }
    }

    /// A connection ends, and leaves all its rooms. What they have gathered for it has been seen to.
    pub(crate) fn leave_rooms(&mut self, slot: u32) {
        let (Some(key), Some(conn)) = (self.conns.key(slot), self.conns.get(slot)) else {
            return;
        };
        let Role::WebSocket(ws) = &conn.role else {
            return;
        };
        let rooms = std::mem::take(&mut *lock(&ws.session.rooms)).into_vec();
        let session = ws.session.clone();
        let form = ws.form();
        for membership in rooms {
            let held = membership.is_held();
            let Membership { room, wanted, .. } = membership;
            if held {
                self.delivery
                    .rooms
                    .remove(room.number_for(session.takes_ids()), key);
                room.unreach(self.index);
            }
            if wanted {
                room.remove(session.id, session.takes_ids());
                if form == Form::Frames {
                    self.hub.common.room_members.sub(1);
                }
                if let Some(empty) = room.part() {
                    self.events.emptied(&empty);
                }
            }
            // Who was never seen to join does not leave.
            if held && self.interests.room && form == Form::Frames {
                self.keep_event(slot, Event::Room(Presence::Left, room));
            }
        }
    }

    /// The shard ends while handlers are at work for a session: they tell its rooms.
    pub(crate) fn leave_rooms_behind(&self, session: &Session, unhandled: &[Event]) {
        let mut rooms: Vec<Arc<Room>> = Vec::new();
        let mut joined: Vec<&Arc<Room>> = Vec::new();
        for event in unhandled {
            match event {
                Event::Room(Presence::Joined, room) => joined.push(room),
                Event::Room(Presence::Left, room) => {
                    // Changes that nobody was told of cancel each other out.
                    match joined.iter().position(|other| Arc::ptr_eq(other, room)) {
                        Some(at) => drop(joined.swap_remove(at)),
                        None => rooms.push(room.clone()),
                    }
                }
                _ => {}
            }
        }
        session.leave_behind(rooms);
    }
}
