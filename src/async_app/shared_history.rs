//! Histories that the nodes of a cluster share. The broker assigns the ids, and each node has a copy of those rooms that it
//! needs.
//!
//! A message is delivered when it comes back from the broker with its id, to the members on its own node, too. So all
//! members receive it in the same order.

use std::sync::{Arc, mpsc};
use std::time::Instant;

use bytes::Bytes;

use super::cluster::{delivered, refused, remote};
use super::connection_id::ConnectionId;
use super::history::HistoryBounds;
use super::prepared_message::PreparedMessage;
use super::publish::{AppShared, Blocking};
use super::renderer::{HistoryGap, Renderer, now_ms};
use super::rendering::Content;
use super::room_entry::{RoomEntry, RoomHistory};
use crate::cluster::{
    AppendOutcome, AppendRequest, Channel, ClusterHandle, CopyBeginning, Delivered, Outbound,
};
use crate::cork;
use crate::engine::{Destination, Hub, RenderedFrames, SharedRoom};
use crate::error::SendErrorReason;
use crate::history_id::{HistoryId, random_epoch};
use crate::message::{Message, SentMessage};
use crate::protocol::event_stream;
use crate::protocol::procedures::{self, RoomState};
use crate::sync::lock;
use crate::user_threads::{self, while_nonblocking};

/// A room whose history the nodes share, and the connection that must not receive a message to it.
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

    /// Creates what appends a message: at any position, or only at the expected one.
    fn content(
        &self,
        message: Message,
        expected: Option<HistoryId>,
        new_epoch: u64,
        waiting: Option<mpsc::Sender<AppendOutcome>>,
    ) -> Outbound {
        let sent = SentMessage {
            message,
            sent_at: now_ms(),
        };
        let request = AppendRequest {
            messages_max: u32::try_from(self.bounds.messages_max).unwrap_or(u32::MAX),
            bytes_max: self.bounds.envelope_bytes_max() as u64,
            expected,
            new_epoch,
            waiting,
        };
        Outbound::Append(sent, self.except.map(remote), Box::new(request))
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
    ) -> Result<AppendOutcome, SendErrorReason> {
        let (waiting, outcome) = mpsc::channel();
        let content = self.content(message, expected, new_epoch, Some(waiting));
        self.queue(content, blocking)?;
        cork::before_waiting();
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
                let content = history.content((*message).clone(), None, random_epoch(), None);
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
        match history.append(message.clone(), None, random_epoch(), Blocking::Wait)? {
            AppendOutcome::Id(id) => Ok(id),
            AppendOutcome::Conflict { .. } | AppendOutcome::Refused => Err(SendErrorReason::Broker),
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
            let new_epoch = random_epoch();
            let position = known.unwrap_or(HistoryId::new(new_epoch, 0));
            let next = HistoryId::new(position.epoch(), position.sequence() + 1);
            let message = make(Some(next));
            self.check_len(hub, &message)?;
            self.check_carried(history.cluster, &message)?;
            match history.append(message, Some(position), new_epoch, blocking)? {
                AppendOutcome::Id(id) => return Ok(id),
                AppendOutcome::Conflict { position } => known = Some(position),
                AppendOutcome::Refused => return Err(SendErrorReason::Broker),
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
        let mut gap = GapNotice::new(name, copy.position);
        let mut history = loop {
            if copy.has_gap && gap.lacks_message(&room) {
                if !hub.has_room(None) {
                    // The message would be made again.
                    return Delivered::Full;
                }
                gap.make_message(self.renderer(hub));
            }
            let history = kept.history();
            if room.members.is_retired() {
                return Delivered::Done;
            }
            if !(copy.has_gap && gap.lacks_message(&room)) {
                break history;
            }
        };
        if copy.has_gap && self.tell_gap(hub, &room, &gap, history.position()) == Delivered::Full {
            return Delivered::Full;
        }
        let mut stamps = self.rooms.stamps();
        let messages = copy.messages.iter().map(received);
        history.begin_at(copy.position, messages, || stamps.next());
        kept.replays.clear();
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
        let [_, with_ids] = room.members.has_rendered_members();
        let rendered = hub.rendered_frames(None, with_ids.then(|| frame.clone()));
        let to = state_destination(&room.members, &frame, &rendered, &event);
        delivered(hub.try_broadcast(&frame, to))
    }

    /// Tells the members of a room of a gap after a position. Called with the history locked.
    fn tell_gap(
        &self,
        hub: &Hub,
        room: &RoomEntry,
        gap: &GapNotice<'_>,
        before: HistoryId,
    ) -> Delivered {
        let before = before.to_string();
        let event = event_stream::reset(&before, Some(&gap.position.to_string())).into();
        let [plain, with_ids] = room.members.has_rendered_members();
        let message = gap.message.as_ref().and_then(Option::as_ref);
        let frame = gap.frame();
        let rendered =
            hub.rendered_frames(message.filter(|_| plain), with_ids.then(|| frame.clone()));
        let to = state_destination(&room.members, &frame, &rendered, &event);
        let told = match message.filter(|_| with_ids) {
            None => hub.try_broadcast(&frame, to),
            Some(message) => {
                // It has no id, so that no client takes it for one of the room's messages.
                let rendered = hub.rendered_frames(None, Some(message.frame().clone()));
                let then = Destination {
                    room: Some(&room.members),
                    rendered: Some(&rendered),
                    omit_plain: true,
                    ..Destination::default()
                };
                hub.try_broadcast_all([(&frame, to), (message.frame(), then)])
            }
        };
        delivered(told)
    }

    /// Delivers a message to the members on this node, and adds it to the copy, which it has to follow.
    pub(super) fn keep_copy(
        &self,
        hub: &Hub,
        name: &str,
        id: HistoryId,
        sent: &SentMessage,
        except: Option<ConnectionId>,
    ) -> Delivered {
        let Some((room, kept)) = self.copy_of(name) else {
            return Delivered::Done;
        };
        let except = except.and_then(|id| self.local_id(id));
        let undelivered = lock(&self.undelivered)
            .take()
            .filter(|prepared| prepared.is_of(id));
        let mut prepared = undelivered.unwrap_or_else(|| PreparedMessage::new(received(sent), id));
        let via = (hub, self.renderer(hub));
        loop {
            // The thread receives the messages of all rooms.
            while_nonblocking(|| prepared.render_for(&room.members, id, via));
            let mut history = kept.history();
            // Otherwise it belongs to a copy that this one has taken the place of.
            if room.members.is_retired() || history.next_id() != id {
                return Delivered::Done;
            }
            if !prepared.covers(&room.members, id) {
                continue;
            }
            let mut stamps = self.rooms.stamps();
            let to = prepared.destination(&room, except);
            let frame = prepared.message().frame();
            if delivered(hub.try_broadcast(frame, to)) == Delivered::Full {
                drop((stamps, history));
                *lock(&self.undelivered) = Some(prepared);
                return Delivered::Full;
            }
            room.keep(&mut history, prepared.into_sent(), stamps.next());
            return Delivered::Done;
        }
    }

    /// Finds the room of a copy, if this node still needs it.
    fn copy_of(&self, name: &str) -> Option<(RoomEntry, Arc<RoomHistory>)> {
        let room = self.rooms.find(name)?;
        let kept = room.kept.clone()?;
        Some((room, kept))
    }
}

fn state_frame(room: &str, state: RoomState<'_>) -> Bytes {
    let told = procedures::room_state(room, state);
    Message::new_binary(told).into_frame().0
}

/// The recipients of a frame about the state of a room: members that receive ids, and event streams.
fn state_destination<'a>(
    members: &'a Arc<SharedRoom>,
    frame: &'a Bytes,
    rendered: &'a Arc<RenderedFrames>,
    event: &'a Bytes,
) -> Destination<'a> {
    Destination {
        room: Some(members),
        with_ids: Some(frame),
        rendered: Some(rendered),
        event: members.streams().map(|streams| (streams, event)),
        omit_plain: true,
        ..Destination::default()
    }
}

/// A message as this node keeps it. If it does not contain when it was sent, it counts as sent now.
fn received(sent: &SentMessage) -> SentMessage {
    SentMessage {
        message: sent.message.clone(),
        sent_at: match sent.sent_at {
            0 => now_ms(),
            sent_at => sent_at,
        },
    }
}

/// A gap in a room's history.
struct GapNotice<'a> {
    room: &'a str,
    /// The messages after it follow.
    position: HistoryId,
    /// The message of the program's gap handler for rendered clients, once it was called.
    message: Option<Option<Message>>,
}

impl<'a> GapNotice<'a> {
    fn new(room: &'a str, position: HistoryId) -> Self {
        Self {
            room,
            position,
            message: None,
        }
    }

    /// Whether the gap handler has to be called.
    fn lacks_message(&self, room: &RoomEntry) -> bool {
        self.message.is_none() && room.members.has_rendered_members() != [false; 2]
    }

    /// Calls the gap handler. No lock may be held.
    fn make_message(&mut self, renderer: Renderer<'_>) {
        let gap = HistoryGap::new(self.room, self.position);
        // The thread receives the messages of all rooms.
        self.message = Some(while_nonblocking(|| renderer.on_gap(gap)));
    }

    fn frame(&self) -> Bytes {
        state_frame(self.room, RoomState::Gap(&self.position.to_string()))
    }
}

#[cfg(all(test, not(loom)))]
#[path = "shared_history_tests.rs"]
mod tests;
