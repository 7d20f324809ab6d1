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
use crate::engine::Session;
use crate::error::{PresenceError, PresenceErrorReason};
use crate::report::{Limited, limited};
#[cfg(feature = "cluster")]
use crate::sync::lock;
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
        // Until the members were read.
        #[cfg(feature = "cluster")]
        let _needed = self.hear_presence(presence, name);
        let (members, is_answered) = presence.members(name);
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

    /// Waits until the other nodes have told who is in a room. A room that this node does not need is needed as long as the result
    /// lives.
    #[cfg(feature = "cluster")]
    fn hear_presence<'a>(
        &'a self,
        presence: &'a PresenceHandle,
        name: &str,
    ) -> Option<NeededRoom<'a>> {
        let until = Instant::now() + ANSWERS_WAIT_MAX;
        let hub = self.running()?;
        let cluster = self.cluster.get()?;
        if !cluster.is_connected() || user_threads::must_not_block() || presence.is_answered(name) {
            return None;
        }
        let mut asking = lock(&presence.asking);
        // It fails if there are too many rooms.
        let room = self.rooms.find_or_make(hub, name).ok()?;
        *asking.entry(room.members.name.clone()).or_default() += 1;
        drop(asking);
        let needed = NeededRoom {
            room,
            presence,
            shared: self,
        };
        presence.wait_for_answers(name, until);
        Some(needed)
    }
}

/// A room that this node needs for a short time.
#[cfg(feature = "cluster")]
struct NeededRoom<'a> {
    room: RoomEntry,
    presence: &'a PresenceHandle,
    shared: &'a AppShared,
}

#[cfg(feature = "cluster")]
impl Drop for NeededRoom<'_> {
    fn drop(&mut self) {
        let mut asking = lock(&self.presence.asking);
        let name = &self.room.members.name;
        if let Some(threads) = asking.get_mut(name) {
            *threads -= 1;
            if *threads > 0 {
                // Another one still reads what was answered.
                return;
            }
            asking.remove(name);
        }
        // Unless it has members.
        if self.room.members.retire() {
            self.shared.rooms.forget(&self.room.members);
        }
    }
}
