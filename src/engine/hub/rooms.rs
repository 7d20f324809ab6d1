//! Joining and leaving rooms, from any thread.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::hub::Hub;
use crate::engine::hub::job_port;
use crate::engine::model::command::{
    Command, Control, Joining, KeyedSnapshot, command_weight, joining_weight, snapshot_weight,
};
use crate::engine::model::replay::Replay;
use crate::engine::model::room::{HistoryForm, NotJoined, SharedRoom};
use crate::engine::model::session::{Session, Status};
use crate::engine::parts::mailbox::{Mailbox, PushError, Wake, Weigh, When};
use crate::sync::lock;

impl Hub {
    /// Reserves the channel numbers of a new room, and returns the first.
    pub(crate) fn next_channel(&self) -> u64 {
        self.channels_ever.fetch_add(HistoryForm::COUNT, Relaxed)
    }

    pub(crate) fn new_room(&self, name: Arc<str>, permanent: bool) -> Arc<SharedRoom> {
        let number = self.next_channel();
        Arc::new(SharedRoom::new(number, name, permanent, self.shards.len()))
    }

    /// Creates a room that keeps the newest message of each key.
    pub(crate) fn new_keyed_room(&self, name: Arc<str>) -> Arc<SharedRoom> {
        let room = SharedRoom::new(self.next_channel(), name, true, self.shards.len());
        Arc::new(room.keyed())
    }

    /// Creates a room that keeps no history, and of whose joins and leaves the program is not told.
    pub(crate) fn new_unreported_room(&self, name: Arc<str>) -> Arc<SharedRoom> {
        let room = SharedRoom::new(self.next_channel(), name, false, self.shards.len());
        Arc::new(room.unreported())
    }

    /// Reserves space in the mailbox of a connection's shard for a join with a replay of this many pieces, and bytes
    /// outside of blocks. Blocks while the mailbox is full.
    pub(crate) fn reserve_join(
        &self,
        session: &Session,
        pieces: usize,
        bytes: usize,
    ) -> Result<Reserved<'_>, NotJoined> {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        Reserved::new(mailbox, joining_weight(pieces, bytes))
    }

    /// Reserves space in the mailbox of a connection's shard for a join with a snapshot of this many messages.
    /// Blocks while the mailbox is full.
    pub(crate) fn reserve_keyed_join(
        &self,
        session: &Session,
        messages: usize,
    ) -> Result<Reserved<'_>, NotJoined> {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        Reserved::new(mailbox, command_weight(snapshot_weight(messages)))
    }

    /// Makes a connection join a room: it receives the `replay`, then the messages sent to the room from now on.
    /// Returns whether it was not a member before. Never blocks, so it may be called with a lock held.
    pub(crate) fn join(
        &self,
        reserved: Reserved<'_>,
        room: &Arc<SharedRoom>,
        session: &Session,
        replay: Replay,
    ) -> Result<bool, NotJoined> {
        self.join_with(reserved, room, session, (replay, Vec::new()))
    }

    /// Makes a connection join a keyed room, as [`Hub::join`] does: it receives the snapshot first.
    pub(crate) fn join_keyed(
        &self,
        reserved: Reserved<'_>,
        room: &Arc<SharedRoom>,
        session: &Session,
        snapshot: KeyedSnapshot,
    ) -> Result<bool, NotJoined> {
        self.join_with(reserved, room, session, (Replay::default(), snapshot))
    }

    fn join_with(
        &self,
        mut reserved: Reserved<'_>,
        room: &Arc<SharedRoom>,
        session: &Session,
        (replay, snapshot): (Replay, KeyedSnapshot),
    ) -> Result<bool, NotJoined> {
        let command = Command::Join(Box::new(Joining {
            key: session.id.key(),
            room: room.clone(),
            replay,
            snapshot,
        }));
        if !reserved.shrink(command.weight()) {
            return Err(NotJoined::Full);
        }
        let mut rooms = lock(&session.rooms);
        let refused = if session.status() == Status::Closed {
            Some(Err(NotJoined::Closed))
        } else if rooms.wants(room) {
            Some(Ok(false))
        } else if room.is_reported() && rooms.wanted() >= self.settings.limits.connection_rooms_max
        {
            Some(Err(NotJoined::TooMany))
        } else if !room.enter() {
            Some(Err(NotJoined::Retired))
        } else {
            None
        };
        if let Some(refused) = refused {
            return refused;
        }
        room.count_form(session.history_form());
        room.reach(session.id.shard);
        rooms.change(room);
        // Pushed under the session's lock, so that the shard receives changes in the order they were made.
        let pushed = reserved.push(command, job_port::when(self));
        room.add(session.id);
        if room.is_reported() {
            self.common.room_members.add(1);
        }
        // Refused only while the engine stops, which ends all memberships.
        pushed.map(|()| true).map_err(|_| NotJoined::Closed)
    }

    /// Makes a connection leave a room: it receives the messages that were sent to the room so far. Returns whether it
    /// was a member. This may retire the room. Blocks while the mailbox is full, unless the thread must not block: then
    /// the connection stays a member.
    pub(crate) fn leave(
        &self,
        room: &Arc<SharedRoom>,
        session: &Session,
    ) -> Result<bool, PushError> {
        let mailbox = &self.shards[usize::from(session.id.shard)].mailbox;
        let command = Command::Leave(session.id.key(), room.clone());
        let weight = command.weight();
        // Never block while holding the session's lock: the shard takes it too.
        mailbox.reserve(weight)?;
        let reserved = Reserved { mailbox, weight };
        let mut rooms = lock(&session.rooms);
        if !rooms.wants(room) {
            return Ok(false);
        }
        rooms.change(room);
        // Refused only while the engine stops, which ends all memberships.
        let _ = reserved.push(command, job_port::when(self));
        room.remove(session.id, session.history_form());
        if room.is_reported() {
            self.common.room_members.sub(1);
        }
        room.exit();
        Ok(true)
    }
}

/// Reserved space in a mailbox, released if it is not used.
pub(crate) struct Reserved<'a> {
    mailbox: &'a Mailbox<Command, Control, Box<dyn Wake>>,
    weight: usize,
}

impl<'a> Reserved<'a> {
    /// Reserves space in a mailbox. Blocks while the mailbox is full, unless the thread must not block.
    pub(crate) fn new(
        mailbox: &'a Mailbox<Command, Control, Box<dyn Wake>>,
        weight: usize,
    ) -> Result<Self, NotJoined> {
        match mailbox.reserve(weight) {
            Ok(()) => Ok(Self { mailbox, weight }),
            Err(PushError::Full) => Err(NotJoined::WouldBlock),
            Err(PushError::Closed) => Err(NotJoined::Closed),
        }
    }

    /// Reduces the reservation to `weight`. Returns whether it was large enough.
    pub(crate) fn shrink(&mut self, weight: usize) -> bool {
        let Some(rest) = self.weight.checked_sub(weight) else {
            return false;
        };
        self.mailbox.unreserve(rest);
        self.weight = weight;
        true
    }

    pub(crate) fn push(mut self, command: Command, when: When) -> Result<(), Command> {
        self.weight = 0;
        self.mailbox.push_reserved(command, when)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.weight > 0 {
            self.mailbox.unreserve(self.weight);
        }
    }
}
