//! Broadcasts to keyed rooms.
//!
//! The room's lock is held while a message is pushed into the shards' mailboxes and kept. So each shard receives the messages of
//! a key, and the snapshots of clients that join, in the same order.

use std::sync::Arc;

use super::keyed::{KEY_BYTES_MAX, KeysExceeded};
use super::publish::{AppShared, Blocking};
use super::rendering::event;
use super::room_entry::{KeyedRoom, RoomEntry};
use crate::engine::{Destination, Hub, PushError};
use crate::error::{SendError, SendErrorReason};
use crate::message::Message;
use crate::report::{Limited, limited};

impl AppShared {
    /// Sends the newest message of a key to a room. One that can't be sent is counted and returned.
    pub(super) fn broadcast_keyed(
        &self,
        name: Option<&str>,
        key: &str,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        self.try_broadcast_keyed(name, key, &message, blocking.unless_nonblocking())
            .map_err(|reason| SendError { message, reason })
    }

    fn try_broadcast_keyed(
        &self,
        name: Option<&str>,
        key: &str,
        message: &Message,
        blocking: Blocking,
    ) -> Result<(), SendErrorReason> {
        let Some(hub) = self.running() else {
            self.counters.dropped_not_running.add(1);
            return Err(SendErrorReason::Closed);
        };
        self.check_len(hub, message)?;
        if key.len() > KEY_BYTES_MAX {
            return Err(self.refused_keyed(SendErrorReason::Keys));
        }
        loop {
            let room = match name.map(|name| self.rooms.find_keyed(hub, name)) {
                Some(Ok(Some(room))) => room,
                Some(Err(_)) => {
                    self.counters.dropped_rooms_max.add(1);
                    return Err(SendErrorReason::Rooms);
                }
                None | Some(Ok(None)) => {
                    return Err(self.refused_keyed(SendErrorReason::NotKeyed));
                }
            };
            let Some(keyed) = room.keyed.clone() else {
                return Err(self.refused_keyed(SendErrorReason::NotKeyed));
            };
            if self.publish_and_keep(hub, (&room, &keyed), (key, message), blocking)? {
                return Ok(());
            }
        }
    }

    fn refused_keyed(&self, reason: SendErrorReason) -> SendErrorReason {
        self.counters.dropped_keyed_refused.add(1);
        reason
    }

    /// Sends a message to a keyed room, and keeps it. Returns false if that has to be tried again: the room was retired meanwhile,
    /// or an event stream has begun, or a mailbox is full.
    fn publish_and_keep(
        &self,
        hub: &Hub,
        (room, keyed): (&RoomEntry, &KeyedRoom),
        (key, message): (&str, &Message),
        blocking: Blocking,
    ) -> Result<bool, SendErrorReason> {
        // Rendering, compressing and waiting for a mailbox come before the lock.
        let streams = room.members.streams();
        let event = streams.map(|_| event(message, None));
        let form = hub.form(message);
        let mut to = Destination {
            room: Some(&room.members),
            event: streams.zip(event.as_ref()),
            uncompressed: message.is_uncompressed(),
            form: Some(&form),
            ..Destination::default()
        };
        let prepared = keyed.bounds.prepare(key, message, event.as_ref());
        if blocking == Blocking::Wait {
            hub.wait_for_room(message.frame(), to)
                .map_err(|refused| self.refused(refused))?;
        }
        let mut kept = keyed.messages();
        if room.members.is_retired() || room.members.streams().is_some() && event.is_none() {
            return Ok(false);
        }
        let number = kept
            .admit(key, &prepared)
            .map_err(|KeysExceeded| self.refused_keyed(SendErrorReason::Keys))?
            .unwrap_or_else(|| self.rooms.next_key());
        to.key = Some(number);
        match hub.try_broadcast(message.frame(), to) {
            // A kept message is not lost, even if the room has no members now.
            Ok(_) => {
                kept.keep(key, number, prepared);
                keyed.set_used(self.rooms.next_use());
                Ok(true)
            }
            Err(PushError::Full) if blocking == Blocking::Wait => Ok(false),
            Err(refused) => Err(self.refused(refused)),
        }
    }

    /// Makes a keyed room forget a key. Returns whether it kept a message of it.
    pub(super) fn remove_key(&self, name: Option<&str>, key: &str) -> bool {
        let room = name.and_then(|name| self.rooms.find(name));
        let Some(keyed) = room.and_then(|room| room.keyed) else {
            return false;
        };
        let mut kept = keyed.messages();
        let was_kept = kept.remove(key);
        if kept.is_empty() {
            keyed.set_used(0);
        }
        was_kept
    }

    /// Returns the newest message of each key of a room; none if it is not keyed.
    pub(super) fn keyed_messages(&self, name: Option<&str>) -> Vec<(Arc<str>, Message)> {
        let room = name.and_then(|name| self.rooms.find(name));
        let kept = room.as_ref().and_then(RoomEntry::keyed_messages);
        kept.map_or_else(Vec::new, |kept| kept.by_key())
    }

    /// Logs a keyed message that its room has refused, for callers that get no result.
    pub(super) fn warn_of_refused_key(&self, name: Option<&str>, sent: Result<(), SendError>) {
        /// Rate-limited, because clients can make handlers send.
        static REFUSED: Limited = Limited::new();
        if let Err(error) = sent
            && matches!(
                error.reason,
                SendErrorReason::NotKeyed | SendErrorReason::Keys
            )
        {
            let name = name.unwrap_or_default();
            limited!(REFUSED, warning, "room {name:?}: {error}");
        }
    }
}
