//! Joining a room, with a replay of its kept messages, and leaving it.

use std::sync::Arc;

use super::history::History;
use super::id_turns::IdTurn;
use super::keyed::reserved_messages;
use super::publish::{AppShared, warn_of_refused};
use super::replay_cache::ReplayForm;
use super::replay_frames::ReplayFrames;
use super::room_entry::{KeyedRoom, RoomEntry, RoomHistory};
use super::rooms::NAME_BYTES_MAX;
use crate::engine::{HistoryForm, Hub, NotJoined, PushError, Replay, Session, SharedRoom};
use crate::error::{JoinError, JoinErrorReason};
use crate::history_id::{HistoryGone, HistoryId};
use crate::report::{Limited, limited};
use crate::user_threads;

impl AppShared {
    /// Makes a connection join a room; every connection is always in the nameless room of all clients. A keyed room sends it the
    /// newest message of each key first.
    pub(super) fn join(
        &self,
        name: Option<&str>,
        session: Option<&Arc<Session>>,
    ) -> Result<(), JoinError> {
        let Some(name) = name else {
            return match session {
                Some(_) => Ok(()),
                None => Err(join_error("", JoinErrorReason::Closed)),
            };
        };
        let join = |hub: &Hub, room: &RoomEntry, session: &Session| {
            if let Some(keyed) = &room.keyed {
                return snapshot_and_join(hub, (room, keyed), session).map(drop);
            }
            let reserved = hub.reserve_join(session, 0, 0)?;
            // The lock ensures that the next publisher sees which form this member needs.
            let _history = room.history();
            hub.join(reserved, &room.members, session, Replay::default())?;
            Ok(())
        };
        self.find_and_join(name, session, join)
    }

    /// Makes a connection join a room, and replays the kept messages after a given id. Returns their number.
    pub(super) fn join_since(
        &self,
        name: Option<&str>,
        session: Option<&Arc<Session>>,
        since: Option<HistoryId>,
    ) -> Result<usize, JoinError> {
        let Some(name) = name else {
            // The room of all clients never has a history.
            return match (session, since) {
                (None, _) => Err(join_error("", JoinErrorReason::Closed)),
                (Some(_), Some(_)) => Err(join_error("", JoinErrorReason::HistoryGone)),
                (Some(_), None) => Ok(0),
            };
        };
        let join = |hub: &Hub, room: &RoomEntry, session: &Session| {
            let Some(kept) = &room.kept else {
                if since.is_some() {
                    return Err(JoinFailure::HistoryGone);
                }
                if let Some(keyed) = &room.keyed {
                    return snapshot_and_join(hub, (room, keyed), session);
                }
                let reserved = hub.reserve_join(session, 0, 0)?;
                hub.join(reserved, &room.members, session, Replay::default())?;
                return Ok(0);
            };
            let form = session.history_form();
            let budget = self.replay_budget(hub);
            let via = (self.renderer(hub), budget);
            let mut replay = ReplayFrames::new((name, kept), since, ReplayForm::Frames(form), via);
            replay_and_join(hub, (room, kept), session, &mut replay)
        };
        self.find_and_join(name, session, join)
    }

    fn find_and_join<T>(
        &self,
        name: &str,
        session: Option<&Arc<Session>>,
        join: impl Fn(&Hub, &RoomEntry, &Session) -> Result<T, JoinFailure>,
    ) -> Result<T, JoinError> {
        let refuse = |reason| Err(join_error(name, reason));
        let (Some(hub), Some(session)) = (self.running(), session) else {
            return refuse(JoinErrorReason::Closed);
        };
        loop {
            let room = match self.rooms.find_or_make(hub, name) {
                Ok(room) => room,
                Err(reason) => return refuse(reason),
            };
            #[cfg(feature = "cluster")]
            if !self.wait_for_messages(&room) {
                return refuse(JoinErrorReason::Broker);
            }
            let reason = match join(hub, &room, session) {
                Ok(joined) => {
                    // Before the caller goes on: it may ask who is in the room.
                    self.note_presence(&room.members.name, session);
                    return Ok(joined);
                }
                // The last member has just left. The next look-up creates another room with this name.
                Err(JoinFailure::Refused(NotJoined::Retired)) => continue,
                Err(JoinFailure::Refused(NotJoined::TooMany)) => JoinErrorReason::ConnectionRooms,
                Err(JoinFailure::Refused(NotJoined::WouldBlock)) => {
                    warn_of_refused("join a room");
                    JoinErrorReason::Closed
                }
                Err(JoinFailure::Refused(NotJoined::Closed | NotJoined::Full)) => {
                    JoinErrorReason::Closed
                }
                Err(JoinFailure::HistoryGone) => JoinErrorReason::HistoryGone,
            };
            if room.members.retire() {
                // The room is not needed.
                self.rooms.forget(&room.members);
            }
            return refuse(reason);
        }
    }

    /// Makes a connection leave a room.
    pub(super) fn leave(&self, name: &str, session: &Arc<Session>) {
        if let (Some(hub), Some(room)) = (self.running(), self.rooms.find(name)) {
            if hub.leave(&room.members, session) == Err(PushError::Full) {
                warn_of_refused("leave a room");
            }
            self.note_presence(&room.members.name, session);
            if room.members.is_unused() || room.members.is_retired() {
                self.rooms.emptied(&room.members);
            }
        }
    }

    /// Logs a failed join for callers that get no result.
    pub(super) fn warn_of(&self, joined: Result<(), JoinError>) {
        /// Rate-limited, because clients can make handlers join rooms.
        static NOT_JOINED: Limited = Limited::new();
        // Do not warn about a client that has disconnected.
        if let Err(error) = joined
            && error.reason != JoinErrorReason::Closed
        {
            limited!(NOT_JOINED, warning, "{error}");
        }
    }
}

/// Makes a connection join a room with a replay. Returns the number of replayed messages.
fn replay_and_join(
    hub: &Hub,
    (room, kept): (&RoomEntry, &RoomHistory),
    session: &Session,
    replay: &mut ReplayFrames<'_>,
) -> Result<usize, JoinFailure> {
    let mut catching_up: Option<CatchingUp<'_>> = None;
    loop {
        // Reserve space before rendering, because the reservation may block.
        let (pieces, bytes) = replay.measure(&kept.history())?;
        // Add a margin, because more messages may be sent to the room in the meantime.
        let reserved = hub.reserve_join(session, pieces + 16, bytes * 5 / 4 + (4 << 10))?;
        replay.render(kept)?;
        // Push the join while holding the lock that orders the room's messages. So the next message follows the replay,
        // and is not contained in it.
        let history = kept.history();
        let Some(frames) = replay.frames(&history)? else {
            if let Some(catching_up) = &catching_up {
                catching_up.contest(&history);
            }
            drop((history, reserved));
            let form = session.history_form();
            catching_up.get_or_insert_with(|| CatchingUp::with(room, kept, form));
            continue;
        };
        let messages = frames.messages() as usize;
        match hub.join(reserved, &room.members, session, frames) {
            Ok(true) => return Ok(messages),
            // The connection is already a member, and needs no replay.
            Ok(false) => return Ok(0),
            // More messages were sent to the room in the meantime, so retry.
            Err(NotJoined::Full) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// Makes a connection join a keyed room: it receives the newest message of each key, and then all that follow. Returns the number
/// of messages in this snapshot.
fn snapshot_and_join(
    hub: &Hub,
    (room, keyed): (&RoomEntry, &KeyedRoom),
    session: &Session,
) -> Result<usize, JoinFailure> {
    // A client that joins again and again must not make producers wait for the lock.
    if session.wants(&room.members) {
        return Ok(0);
    }
    loop {
        // Reserve space without the lock, because the reservation may block.
        let messages = reserved_messages(keyed.messages().len());
        let reserved = hub.reserve_keyed_join(session, messages)?;
        // Push the join while holding the lock that orders the room's messages. So what follows the snapshot is newer.
        let kept = keyed.messages();
        let snapshot = kept.frames();
        let messages = snapshot.len();
        match hub.join_keyed(reserved, &room.members, session, snapshot) {
            Ok(true) => return Ok(messages),
            // The connection is already a member, and has received or will receive the newest messages.
            Ok(false) => return Ok(0),
            // There is more to send than was reserved, so retry.
            Err(NotJoined::Full) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// Slows producers down to the speed of the program's renderer, because messages are sent faster than the replay of a
/// joining connection is rendered.
struct CatchingUp<'a> {
    /// Counted as a member, for which producers render.
    room: &'a SharedRoom,
    form: HistoryForm,
    turn: Option<IdTurn<'a>>,
}

impl<'a> CatchingUp<'a> {
    fn with(room: &'a RoomEntry, kept: &'a RoomHistory, form: HistoryForm) -> Self {
        room.members.count_form(form);
        Self {
            room: &room.members,
            form,
            turn: match user_threads::must_not_block() {
                true => None,
                false => kept.turns.take(),
            },
        }
    }

    /// Makes producers wait until the join is done. Only those on threads that must not block go on.
    fn contest(&self, _locked: &History) {
        self.turn.iter().for_each(IdTurn::contest);
    }
}

impl Drop for CatchingUp<'_> {
    fn drop(&mut self) {
        self.room.uncount_form(self.form);
    }
}

/// Why a connection did not join.
enum JoinFailure {
    Refused(NotJoined),
    HistoryGone,
}

impl From<NotJoined> for JoinFailure {
    fn from(refused: NotJoined) -> Self {
        Self::Refused(refused)
    }
}

impl From<HistoryGone> for JoinFailure {
    fn from(_: HistoryGone) -> Self {
        Self::HistoryGone
    }
}

pub(super) fn join_error(name: &str, reason: JoinErrorReason) -> JoinError {
    let fits = |&(at, char): &(usize, char)| at + char.len_utf8() <= NAME_BYTES_MAX;
    JoinError {
        room: name
            .char_indices()
            .take_while(fits)
            .map(|(_, char)| char)
            .collect(),
        reason,
    }
}
