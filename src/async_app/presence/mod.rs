//! Presence: who is in a room, with state, on all nodes.
//!
//! The rules are in `crate::presence`, which has neither threads nor connections. `handle` is what the app's threads share;
//! `threads` tell the changes to other nodes, to the clients that watch a room, and to the room handler.

mod handle;
mod json;
mod member;
mod settings;
mod threads;
mod watching;

use std::sync::Arc;
#[cfg(feature = "cluster")]
use std::time::{Duration, Instant};

use self::handle::NotSet;
pub(super) use self::handle::{PresenceHandle, PresentConnection};
pub use self::member::{PresentMember, RoomPresence};
pub(super) use self::settings::PresencePatterns;
pub use self::settings::PresenceRooms;
pub(super) use self::threads::PresenceThreads;
use super::procedures::Payload;
use super::publish::AppShared;
#[cfg(feature = "cluster")]
use super::room_entry::RoomEntry;
#[cfg(feature = "cluster")]
use super::rooms::RoomDirectory;
use crate::engine::Session;
use crate::error::{PresenceError, PresenceErrorReason};
#[cfg(feature = "cluster")]
use crate::presence::{Fact, Member};
use crate::report::{Limited, limited};
#[cfg(feature = "cluster")]
use crate::user_threads;

/// How long a caller waits for the answers of other nodes.
#[cfg(feature = "cluster")]
const ANSWERS_WAIT_MAX: Duration = Duration::from_millis(500);

impl AppShared {
    /// Records that a session has joined or left a room.
    pub(super) fn note_presence(&self, name: &Arc<str>, session: &Arc<Session>) {
        let Some(presence) = self.rooms.presence().filter(|of| of.covers(name)) else {
            return;
        };
        let room = self.rooms.find(name);
        let members = room.as_ref().map(|room| &*room.members);
        presence.membership_changed(name, members, session);
        if members.is_none_or(|members| !members.contains(session.id)) {
            self.end_watching(presence, name, session);
        }
    }

    pub(super) fn set_presence(
        &self,
        name: &str,
        session: &Arc<Session>,
        state: Payload,
    ) -> Result<(), PresenceError> {
        let refuse = |reason| {
            let room = name.chars().take(255).collect();
            Err(PresenceError { room, reason })
        };
        let Some(presence) = self.rooms.presence() else {
            return refuse(PresenceErrorReason::NoPresence);
        };
        let room = self.rooms.find(name);
        let members = room.as_ref().map(|room| &*room.members);
        match presence.set_state(name, members, session, state.into_bytes()) {
            Ok(()) => Ok(()),
            Err(NotSet::NoPresence) => refuse(PresenceErrorReason::NoPresence),
            Err(NotSet::TooLong) => refuse(PresenceErrorReason::TooLong),
            Err(NotSet::NotJoined) => refuse(PresenceErrorReason::NotJoined),
        }
    }

    /// Logs that a state was not set, for callers that get no result.
    pub(super) fn warn_of_presence(&self, set: Result<(), PresenceError>) {
        /// Rate-limited, because clients can make handlers set states.
        static NOT_SET: Limited = Limited::new();
        // Do not warn about a client that has disconnected.
        if let Err(error) = set
            && error.reason != PresenceErrorReason::NotJoined
        {
            limited!(NOT_SET, warning, "{error}");
        }
    }

    pub(super) fn keeps_presence(&self, name: &str) -> bool {
        let presence = self.rooms.presence();
        presence.is_some_and(|presence| presence.covers(name))
    }

    /// Returns who is in a room. In a cluster, waits for the answers of the other nodes if they were not asked yet.
    pub(super) fn presence_of(&self, name: &str) -> RoomPresence {
        let Some(presence) = self.rooms.presence().filter(|of| of.covers(name)) else {
            return RoomPresence::nobody();
        };
        // Read together, since this node may not need the room any longer a moment later.
        let known = presence.members(name);
        #[cfg(feature = "cluster")]
        let known = match known {
            (_, true) => known,
            (_, false) => self.hear_presence(presence, name).unwrap_or(known),
        };
        let (members, is_answered) = known;
        RoomPresence {
            members: members
                .into_iter()
                .map(|(member, fact)| PresentMember::new(member, fact))
                .collect(),
            is_complete: is_answered && self.hears_all_nodes(),
        }
    }

    fn hears_all_nodes(&self) -> bool {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            return cluster.is_connected();
        }
        true
    }

    /// Waits until the other nodes have told who is in a room, and returns what is known then, as `PresenceHandle::members` does.
    /// `None` if they can't be asked.
    #[cfg(feature = "cluster")]
    fn hear_presence(
        &self,
        presence: &PresenceHandle,
        name: &str,
    ) -> Option<(Vec<(Member, Fact)>, bool)> {
        let until = Instant::now() + ANSWERS_WAIT_MAX;
        let hub = self.running()?;
        let cluster = self.cluster.get()?;
        if !cluster.is_connected() || user_threads::must_not_block() {
            return None;
        }
        let rooms = &self.rooms;
        let _held = loop {
            // It fails if there are too many rooms.
            let room = rooms.find_or_make(hub, name).ok()?;
            // The last member may have just left. The next look-up creates another room with this name.
            if room.members.enter() {
                break HeldRoom { room, rooms };
            }
        };
        presence.wait_for_answers(name, until);
        Some(presence.members(name))
    }
}

/// A room that is held as if by a member, so that this node needs it, whoever leaves it meanwhile.
#[cfg(feature = "cluster")]
struct HeldRoom<'a> {
    room: RoomEntry,
    rooms: &'a RoomDirectory,
}

#[cfg(feature = "cluster")]
impl Drop for HeldRoom<'_> {
    fn drop(&mut self) {
        if self.room.members.exit() {
            self.rooms.emptied(&self.room.members);
        }
    }
}
