//! Histories that the nodes of a cluster share. The broker assigns the ids, and each node has a copy of those rooms that it
//! needs.
//!
//! A message is delivered when it comes back from the broker with its id, to the members on its own node, too. So all
//! members receive it in the same order.

use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;

use super::cluster::{refused, remote};
use super::connection_id::ConnectionId;
use super::history::HistoryBounds;
use super::publish::{AppShared, Blocking};
use super::rendering::Content;
use super::room_broadcast::PreparedMessage;
use super::room_entry::RoomEntry;
use crate::cluster::{
    Channel, ClusterHandle, CopyBeginning, Delivered, Keep, Kept, Outbound, new_epoch,
};
use crate::engine::{self, Hub};
use crate::error::SendErrorReason;
use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::event_stream;
use crate::protocol::procedures::{self, RoomState};
use crate::user_threads;

/// A room whose history the nodes share, and whom of it a message is not for.
pub(super) struct SharedHistory<'a> {
    cluster: &'a ClusterHandle,
    name: &'a str,
    bounds: HistoryBounds,
    except: Option<ConnectionId>,
}

impl SharedHistory<'_> {
    fn channel(&self) -> Channel {
        Channel::Room(self.name.into())
    }

    /// Draws the epoch of a history for the case that there is none.
    fn new_epoch(&self) -> u64 {
        new_epoch(self.cluster.node(), 0)
    }

    /// Creates what appends a message: at any position, or only at the expected one.
    fn content(
        &self,
        message: Message,
        expected: Option<HistoryId>,
        new_epoch: u64,
        waiting: Option<mpsc::Sender<Kept>>,
    ) -> Outbound {
        let keep = Keep {
            messages_max: u32::try_from(self.bounds.messages_max).unwrap_or(u32::MAX),
            bytes_max: self.bounds.envelope_bytes_max() as u64,
            expected,
            new_epoch,
            waiting,
        };
        Outbound::Kept(message, self.except.map(remote), Box::new(keep))
    }

    fn queue(&self, content: Outbound, blocking: Blocking) -> Result<(), SendErrorReason> {
        let channel = self.channel();
        match blocking {
            Blocking::Wait => self.cluster.publish(channel, content).map_err(refused),
            Blocking::Try => {
                let reserved = self.cluster.try_reserve(&channel, &content);
                reserved
                    .map_err(refused)?
                    .push(channel, content, Instant::now());
                Ok(())
            }
        }
    }

    /// Appends a message, and waits for the outcome.
    fn append(
        &self,
        message: Message,
        expected: Option<HistoryId>,
        new_epoch: u64,
        blocking: Blocking,
    ) -> Result<Kept, SendErrorReason> {
        let (waiting, outcome) = mpsc::channel();
        let content = self.content(message, expected, new_epoch, Some(waiting));
        self.queue(content, blocking)?;
        // The link drops it at the latest when the message has become too old to be sent.
        outcome.recv().map_err(|_| SendErrorReason::Broker)
    }
}

impl AppShared {
    /// Returns the history of a room if the nodes share it.
    pub(super) fn kept_on_all_nodes<'a>(
        &'a self,
        name: &'a str,
        except: Option<ConnectionId>,
    ) -> Option<SharedHistory<'a>> {
        let cluster = self.cluster.get()?;
        Some(SharedHistory {
            cluster,
            name,
            bounds: self.rooms.bounds(name)?,
            except,
        })
    }

    /// Sends content to a room whose history the nodes share. Returns its id if the content depends on it.
    pub(super) fn keep_content(
        &self,
        hub: &Hub,
        history: &SharedHistory<'_>,
        content: &Content<'_>,
        blocking: Blocking,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        match content {
            Content::Message(message) => {
                self.check_len(hub, message)?;
                self.check_carried(history.cluster, message)?;
                let content = history.content((*message).clone(), None, history.new_epoch(), None);
                history.queue(content, blocking)?;
                Ok(None)
            }
            Content::OfId(make) => self.keep_with(hub, history, make, blocking).map(Some),
        }
    }

    /// Sends a message to a room whose history the nodes share, and waits for its id.
    pub(super) fn keep_confirmed(
        &self,
        hub: &Hub,
        history: &SharedHistory<'_>,
        message: &Message,
    ) -> Result<HistoryId, SendErrorReason> {
        self.check_len(hub, message)?;
        self.check_carried(history.cluster, message)?;
        if user_threads::must_not_block() {
            return Err(SendErrorReason::Full);
        }
        match history.append(message.clone(), None, history.new_epoch(), Blocking::Wait)? {
            Kept::Id(id) => Ok(id),
            Kept::Conflict { .. } | Kept::Refused => Err(SendErrorReason::Broker),
        }
    }

    /// Sends a message that contains its own id: appends it only if no other message takes this id, and otherwise tries the
    /// next one.
    fn keep_with(
        &self,
        hub: &Hub,
        history: &SharedHistory<'_>,
        make: &dyn Fn(Option<HistoryId>) -> Message,
        blocking: Blocking,
    ) -> Result<HistoryId, SendErrorReason> {
        if user_threads::must_not_block() {
            return Err(SendErrorReason::Full);
        }
        let copy = self.rooms.find(history.name);
        let copy = copy.as_ref().and_then(RoomEntry::history);
        // A copy that is not up to date is found out by the broker.
        let mut known = copy.map(|copy| copy.position());
        loop {
            let new_epoch = history.new_epoch();
            let position = known.unwrap_or(HistoryId::new(new_epoch, 0));
            let next = HistoryId::new(position.epoch(), position.sequence() + 1);
            let message = make(Some(next));
            self.check_len(hub, &message)?;
            self.check_carried(history.cluster, &message)?;
            match history.append(message, Some(position), new_epoch, blocking)? {
                Kept::Id(id) => return Ok(id),
                Kept::Conflict { position } => known = Some(position),
                Kept::Refused => return Err(SendErrorReason::Broker),
            }
        }
    }

    fn check_carried(
        &self,
        cluster: &ClusterHandle,
        message: &Message,
    ) -> Result<(), SendErrorReason> {
        if !cluster.carries(message) {
            self.counters.dropped_too_large.add(1);
            return Err(SendErrorReason::TooLarge);
        }
        Ok(())
    }

    /// Finds a room whose history the nodes share, with a complete copy. Waits for it, but not for long.
    pub(super) fn find_shared_history(&self, name: &str) -> Option<RoomEntry> {
        self.rooms.bounds(name)?;
        let room = self.rooms.find_or_make(self.running()?, name).ok()?;
        self.wait_for_messages(&room).then_some(room)
    }

    /// Begins this node's copy of a history anew, and tells the room's members of a gap.
    pub(super) fn begin_copy(&self, hub: &Hub, name: &str, copy: &CopyBeginning) -> Delivered {
        let Some((room, kept)) = self.copy_of(name) else {
            return Delivered::Done;
        };
        let position = copy.position.to_string();
        let gap = state_frame(name, RoomState::Gap(&position));
        let mut history = kept.history();
        if room.members.is_retired() {
            return Delivered::Done;
        }
        if copy.has_gap {
            let before = history.position().to_string();
            let event = event_stream::reset(&before, Some(&position)).into();
            let to = engine::Destination {
                room: Some(&room.members),
                with_ids: Some(&gap),
                event: room.members.streams().map(|streams| (streams, &event)),
                only_with_ids: true,
                ..engine::Destination::default()
            };
            if self.broadcast(hub, to, &gap, Blocking::Try) == Err(SendErrorReason::Full) {
                return Delivered::Full;
            }
        }
        let mut stamps = self.rooms.stamps();
        let next_stamp = || {
            *stamps += 1;
            *stamps
        };
        history.begin_at(copy.position, copy.messages.iter().cloned(), next_stamp);
        Delivered::Done
    }

    /// Tells the members of a room that it is silent, or that it no longer is.
    pub(super) fn tell_silence(&self, hub: &Hub, name: &str, is_silent: bool) -> Delivered {
        let Some((room, kept)) = self.copy_of(name) else {
            return Delivered::Done;
        };
        let frame = state_frame(name, RoomState::Silence { is_silent });
        let kind = if is_silent { "silent" } else { "live" };
        let event = event_stream::event_of_type(kind, name).into();
        let _history = kept.history();
        let to = engine::Destination {
            room: Some(&room.members),
            with_ids: Some(&frame),
            event: room.members.streams().map(|streams| (streams, &event)),
            only_with_ids: true,
            ..engine::Destination::default()
        };
        match self.broadcast(hub, to, &frame, Blocking::Try) {
            Err(SendErrorReason::Full) => Delivered::Full,
            _ => Delivered::Done,
        }
    }

    /// Delivers a message to the members on this node, and adds it to the copy, which it has to follow.
    pub(super) fn keep_copy(
        &self,
        hub: &Hub,
        name: &str,
        id: HistoryId,
        message: &Message,
        except: Option<ConnectionId>,
    ) -> Delivered {
        let Some((room, kept)) = self.copy_of(name) else {
            return Delivered::Done;
        };
        let except = except.and_then(|id| self.local_id(id));
        let mut prepared = PreparedMessage::new(message.clone(), id);
        loop {
            prepared.render_for(&room.members);
            let mut history = kept.history();
            // Otherwise it belongs to a copy that this one has taken the place of.
            if room.members.is_retired() || history.next_id() != id {
                return Delivered::Done;
            }
            if !prepared.covers(&room.members) {
                continue;
            }
            let mut stamps = self.rooms.stamps();
            let to = prepared.destination(&room, except);
            let frame = message.frame();
            if self.broadcast(hub, to, frame, Blocking::Try) == Err(SendErrorReason::Full) {
                return Delivered::Full;
            }
            *stamps += 1;
            room.keep(&mut history, message.clone(), *stamps);
            return Delivered::Done;
        }
    }

    /// Finds the room of a copy, if this node still needs it.
    fn copy_of(
        &self,
        name: &str,
    ) -> Option<(RoomEntry, std::sync::Arc<super::room_entry::RoomHistory>)> {
        let room = self.rooms.find(name)?;
        let kept = room.kept.clone()?;
        Some((room, kept))
    }
}

fn state_frame(room: &str, state: RoomState<'_>) -> Bytes {
    let told = procedures::room_state(room, state);
    Message::new_binary(told).into_frame().0
}
