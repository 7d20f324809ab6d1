//! Clients that are told the changes of a room's presence.

use std::fmt;
use std::sync::Arc;

use super::handle::PresenceHandle;
use super::json;
use super::member::PresentMember;
use crate::async_app::publish::AppShared;
use crate::engine::{NotJoined, PushError, Session, SharedRoom};
use crate::message::Message;
use crate::presence::{Fact, Member};
use crate::protocol::procedures::{self, PresenceFrame};
use crate::sync::lock;
use crate::user_threads::while_nonblocking;

/// About the most bytes of members in one message to clients.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// Why a client is not told the changes of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::async_app) enum NotWatched {
    /// The presence of the room is not kept.
    NoPresence,
    /// The client is not in the room.
    NotJoined,
    Closed,
}

impl fmt::Display for NotWatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPresence => "the presence of this room is not kept",
            Self::NotJoined => "only members of the room are told its changes: join it first",
            Self::Closed => "the connection is closed",
        })
    }
}

impl AppShared {
    /// Sends a client who is in a room that it has joined, and from then on each change.
    pub(in crate::async_app) fn watch_presence(
        &self,
        name: &str,
        session: &Session,
    ) -> Result<(), NotWatched> {
        let hub = self.running().ok_or(NotWatched::Closed)?;
        let presence = self.rooms.presence().filter(|of| of.covers(name));
        let presence = presence.ok_or(NotWatched::NoPresence)?;
        let room = self.rooms.find(name);
        let is_member = |room: &SharedRoom| room.contains(session.id);
        let room = room.filter(|room| is_member(&room.members));
        let room = room.ok_or(NotWatched::NotJoined)?;
        let name = &room.members.name;
        let (mut messages, mut bytes) = (1, FRAME_BYTES_MAX);
        loop {
            // Both may wait, which must not be done with the lock. A client that is told the changes already asks for the list once
            // more.
            let before = lock(&presence.watchers).of(name);
            let left = before.map(|of_room| hub.leave(&of_room, session));
            left.transpose().map_err(|_| NotWatched::Closed)?;
            let reserved = hub.reserve_join(session, messages, bytes);
            let reserved = reserved.map_err(|_| NotWatched::Closed)?;
            let mut watchers = lock(&presence.watchers);
            if !is_member(&room.members) {
                return Err(NotWatched::NotJoined);
            }
            let members = presence.watch(name).ok_or(NotWatched::NotJoined)?;
            let of_room = watchers.of_or_make(name, || hub.new_unreported_room(name.clone()));
            watchers.leaving.remove(&(name.clone(), session.id));
            let list = frames_of_list(name, members, hub.message_bytes_max());
            let frames = list
                .iter()
                .map(|frame| Message::new_binary(frame.as_slice()));
            let frames: Vec<_> = frames.map(|message| message.frame().clone()).collect();
            (messages, bytes) = (frames.len(), frames.iter().map(|frame| frame.len()).sum());
            match hub.join(reserved, &of_room, session, frames.into_iter().collect()) {
                Ok(true) => return Ok(()),
                // It is tried again: with more room, in another room of watchers, or after leaving this one.
                Err(NotJoined::Full | NotJoined::Retired) | Ok(false) => {}
                Err(NotJoined::TooMany | NotJoined::Closed | NotJoined::WouldBlock) => {
                    return Err(NotWatched::Closed);
                }
            }
        }
    }

    /// Tells a client no further changes of a room that it has left. Never waits.
    pub(super) fn end_watching(
        &self,
        presence: &PresenceHandle,
        name: &Arc<str>,
        session: &Arc<Session>,
    ) {
        let mut watchers = lock(&presence.watchers);
        let room = self.rooms.find(name);
        // It may have joined again, and watch again.
        let has_left = room.is_none_or(|room| !room.members.contains(session.id));
        if let (Some(hub), true, Some(of_room)) = (self.running(), has_left, watchers.of(name)) {
            let is_left = while_nonblocking(|| hub.leave(&of_room, session));
            if is_left == Err(PushError::Full) {
                let of = (name.clone(), session.id);
                watchers.leaving.insert(of, session.clone());
            }
        }
    }

    /// Tries again what [`end_watching`](Self::end_watching) could not do.
    pub(super) fn end_watching_later(&self, presence: &PresenceHandle) {
        let leaving = std::mem::take(&mut lock(&presence.watchers).leaving);
        for ((name, _), session) in leaving {
            self.end_watching(presence, &name, &session);
        }
    }
}

/// The frames with all members of a room: the first begins the list, further ones add to it.
fn frames_of_list(name: &str, members: Vec<(Member, Fact)>, bytes_max: usize) -> Vec<Vec<u8>> {
    let members = members.into_iter();
    let members: Vec<_> = members
        .map(|(member, fact)| (PresentMember::new(member, fact), true))
        .collect();
    frames(name, &members, bytes_max, true)
}

/// The frames that tell watchers what has changed.
pub(super) fn frames_of_changes(
    name: &str,
    changes: &[(Member, Option<Fact>)],
    bytes_max: usize,
) -> Vec<Vec<u8>> {
    let changes = changes.iter().map(|(member, fact)| {
        let is_here = fact.is_some();
        let fact = fact.clone().unwrap_or_default();
        (PresentMember::new(member.clone(), fact), is_here)
    });
    let changes: Vec<_> = changes.collect();
    frames(name, &changes, bytes_max, false)
}

fn frames(
    name: &str,
    members: &[(PresentMember, bool)],
    bytes_max: usize,
    is_list: bool,
) -> Vec<Vec<u8>> {
    let texts = json::pairs(
        members,
        FRAME_BYTES_MAX.min(bytes_max.saturating_sub(name.len() + 8)),
    );
    let mut kind = match is_list {
        true => PresenceFrame::All,
        false => PresenceFrame::Changes,
    };
    let frames = texts.iter().map(|json| {
        let kind = std::mem::replace(&mut kind, PresenceFrame::Changes);
        procedures::presence(name, kind, json)
    });
    frames.collect()
}
