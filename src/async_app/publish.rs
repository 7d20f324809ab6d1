//! Publishing: every message that the app sends passes through this module.

use std::panic::{RefUnwindSafe, UnwindSafe};
#[cfg(feature = "cluster")]
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::connection_id::{ConnectionId, NodeId};
use super::directory::Directory;
use super::history::HistoryPatterns;
use super::keyed::KeyedPatterns;
#[cfg(feature = "cluster")]
use super::prepared_message::PreparedMessage;
use super::presence::PresenceHandle;
pub(super) use super::recipients::{Here, Recipients, Unkept};
use super::renderer::{KeptMessage, Renderer, Renderers, now_ms};
use super::rendering::{Content, event};
use super::replay_cache::{ReplayBudget, ReplayMemory};
use super::room_entry::RoomEntry;
use super::rooms::{RoomDirectory, RoomSettings};

#[cfg(feature = "cluster")]
use crate::cluster::{ClusterHandle, DirectAction};
use crate::drain::Drain;
use crate::engine::{self, Command, Hub, LocalId, PushError, Session, Status};
use crate::error::{SendError, SendErrorReason};
use crate::history_id::{HistoryGone, HistoryId};
use crate::host::ConnectHook;
use crate::message::{Message, SentMessage};
use crate::metrics::{self, Counters, Metrics};
use crate::protocol::close::{CloseCode, reason_prefix};
use crate::report::{Limited, limited};
use crate::sync::lock;
use crate::user_threads;

/// The state that an app shares with its senders and streams. It exists before the app runs, and may outlive it.
#[derive(Default)]
pub(super) struct AppShared {
    hub: OnceLock<Arc<Hub>>,
    pub(super) directory: Directory,
    pub(super) rooms: RoomDirectory,
    /// The memory of replays that clients share.
    replay_memory: Arc<ReplayMemory>,
    /// Counts messages that never reached an engine.
    pub(super) counters: Counters,
    hook: OnceLock<ConnectHook>,
    /// Whether clients can prolong their sessions, and are told when these expire. Set when the app starts.
    pub(super) refreshes: AtomicBool,
    /// Set when the app starts.
    renderers: OnceLock<Renderers>,
    /// Set if the app is a node of a cluster.
    #[cfg(feature = "cluster")]
    pub(super) cluster: OnceLock<Arc<ClusterHandle>>,
    /// The message of another node that mailboxes had no room for, with its renderings. It is delivered next.
    #[cfg(feature = "cluster")]
    pub(super) undelivered: Mutex<Option<PreparedMessage>>,
}

// A panic elsewhere leaves the state consistent, because values behind locks are replaced as a whole.
impl UnwindSafe for AppShared {}
impl RefUnwindSafe for AppShared {}

/// Whether to wait while a mailbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocking {
    Wait,
    Try,
}

impl Blocking {
    /// Disables waiting on threads that must not block. For example, a shard must not wait for itself when a logger
    /// broadcasts its log lines.
    pub(super) fn unless_nonblocking(self) -> Self {
        match user_threads::must_not_block() {
            true => Self::Try,
            false => self,
        }
    }
}

impl AppShared {
    pub(super) fn set_hook(&self, hook: ConnectHook) {
        // Set once, by the app that created the hook.
        let _ = self.hook.set(hook);
    }

    /// Records that the engine runs from now on.
    pub(super) fn started(
        &self,
        hub: Arc<Hub>,
        (histories, keyed): (HistoryPatterns, KeyedPatterns),
        renderers: Renderers,
        presence: Option<Arc<PresenceHandle>>,
    ) {
        let _ = self.renderers.set(renderers);
        let setup = RoomSettings {
            rooms_max: hub.rooms_max(),
            histories,
            keyed,
            #[cfg(feature = "cluster")]
            cluster: self.cluster.get().cloned(),
            presence,
        };
        self.rooms.set_up(setup);
        // An app starts only once, because starting consumes it.
        let _ = self.hub.set(hub);
    }

    /// Counts a panic of a handler that the engine does not call.
    pub(super) fn count_handler_panic(&self) {
        self.counters.handler_panics.add(1);
    }

    /// The number of this node; `None` if the app is alone.
    pub(super) fn as_node(&self) -> Option<NodeId> {
        #[cfg(feature = "cluster")]
        if self.cluster.get().is_some() {
            return Some(self.node());
        }
        None
    }

    /// The engine, whether or not it has stopped; `None` before the app starts.
    pub(super) fn engine(&self) -> Option<&Arc<Hub>> {
        self.hub.get()
    }

    /// The program's renderer, which must not be called while a lock is held.
    pub(super) fn renderer(&self, hub: &Hub) -> Renderer<'_> {
        Renderer::new(&self.renderers, &self.counters, hub.message_bytes_max())
    }

    /// The memory that shared replays may take: as much as the messages that wait for single clients.
    pub(super) fn replay_budget(&self, hub: &Hub) -> ReplayBudget<'_> {
        ReplayBudget {
            memory: &self.replay_memory,
            bytes_max: hub.settings.limits.outboxes_bytes_max,
        }
    }

    /// Whether clients can receive rendered messages.
    pub(super) fn has_renderer(&self) -> bool {
        let renderers = self.renderers.get();
        renderers.is_some_and(|renderers| renderers.render.is_some())
    }

    /// The current time for a message that is sent, or 0 if no renderer needs it, here or on another node.
    pub(super) fn sent_at(&self) -> u64 {
        match self.has_renderer() || self.is_clustered() {
            true => now_ms(),
            false => 0,
        }
    }

    #[cfg(feature = "axum")]
    pub(super) fn hub(&self) -> Option<Arc<Hub>> {
        self.hub.get().cloned()
    }

    /// Sends a message. One that can't be sent is counted and returned.
    pub(super) fn publish(
        &self,
        to: Recipients<'_>,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        let refuse = |message, reason| Err(SendError { message, reason });
        let blocking = blocking.unless_nonblocking();
        let Some(hub) = self.running() else {
            self.counters.dropped_not_running.add(1);
            return refuse(message, SendErrorReason::Closed);
        };
        if let Err(reason) = self.check_len(hub, &message) {
            return refuse(message, reason);
        }
        let (id, session) = match to {
            Recipients::Everyone { except } => {
                return self
                    .broadcast_unkept(hub, Unkept::Everyone, except, &message, blocking)
                    .or_else(|reason| refuse(message, reason));
            }
            Recipients::Room { name, except } => {
                let content = Content::Message(&message);
                return self
                    .broadcast_to_room(hub, name, except, &content, blocking)
                    .map(drop)
                    .or_else(|reason| refuse(message, reason));
            }
            Recipients::Nobody => {
                self.counters.dropped_no_recipient.add(1);
                return refuse(message, SendErrorReason::Closed);
            }
            Recipients::Connection(id) => (id, None),
            Recipients::Session(session) => {
                match (session.status(), blocking) {
                    (Status::Closed, _) => {
                        self.counters.dropped_closed.add(1);
                        return refuse(message, SendErrorReason::Closed);
                    }
                    (Status::Full, Blocking::Try) => return refuse(message, SendErrorReason::Full),
                    _ => {}
                }
                (session.id, Some(session))
            }
        };
        self.send(hub, id, session, message, blocking)
    }

    /// Sends a message to one connection. Looks the session up if it is needed and not given.
    fn send(
        &self,
        hub: &Hub,
        id: LocalId,
        session: Option<&Session>,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        let refuse = |message, reason| Err(SendError { message, reason });
        let block = blocking == Blocking::Wait;
        let (frame, shape) = message.into_frame();
        #[cfg(feature = "deflate")]
        if !shape.is_uncompressed() && hub.compresses_reply(&frame) {
            let found = match session {
                Some(_) => None,
                None => self.directory.find_id(id),
            };
            if let Some(session) = session.or(found.as_deref()) {
                return hub
                    .send_compressed(session, frame, block)
                    .or_else(|(frame, refused)| {
                        let message = Message::of_frame(frame, shape);
                        refuse(message, self.refused(refused))
                    });
            }
        }
        #[cfg(not(feature = "deflate"))]
        let _ = session;
        hub.send(id, frame, block).or_else(|(frame, refused)| {
            let message = Message::of_frame(frame, shape);
            refuse(message, self.refused(refused))
        })
    }

    /// Broadcasts a message without a history, on all nodes if the app is a node of a cluster.
    fn broadcast_unkept(
        &self,
        hub: &Hub,
        to: Unkept<'_>,
        except: Option<ConnectionId>,
        message: &Message,
        blocking: Blocking,
    ) -> Result<(), SendErrorReason> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            let via = (hub, &**cluster);
            return self.broadcast_on_all_nodes(via, to, except, message, blocking);
        }
        let sent = self.broadcast_here(hub, to.here(), except, message, blocking);
        if !sent.map_err(|refused| self.refused(refused))? {
            self.counters.dropped_no_recipient.add(1);
        }
        Ok(())
    }

    /// Broadcasts a message without a history to the recipients on this node. Returns whether there were any. Having none is
    /// no error of the sender. Whether a refusal loses the message is known to the caller alone, who counts it then.
    pub(super) fn broadcast_here(
        &self,
        hub: &Hub,
        to: Option<Here<'_>>,
        except: Option<ConnectionId>,
        message: &Message,
        blocking: Blocking,
    ) -> Result<bool, PushError> {
        let (room, streams) = match to {
            Some(Here::Room(room)) => (Some(room), room.streams()),
            Some(Here::Everyone) => (None, hub.everyone_streams()),
            None => return Ok(false),
        };
        let event = streams.map(|streams| (streams, event(message, None)));
        let to = engine::Destination {
            room,
            except: except.and_then(|id| self.local_id(id)),
            event: event.as_ref().map(|(streams, event)| (*streams, event)),
            uncompressed: message.is_uncompressed(),
            ..engine::Destination::default()
        };
        match blocking {
            Blocking::Wait => hub.broadcast(message.frame(), to),
            Blocking::Try => hub.try_broadcast(message.frame(), to),
        }
    }

    /// Sends content to a room, which keeps it if the room has a history. Then returns its id.
    fn broadcast_to_room(
        &self,
        hub: &Hub,
        name: &str,
        except: Option<ConnectionId>,
        content: &Content<'_>,
        blocking: Blocking,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        #[cfg(feature = "cluster")]
        if let Some(kept) = self.kept_on_all_nodes(name, except) {
            return self.keep_content(hub, &kept, content, blocking);
        }
        loop {
            let room = match self.rooms.find_to_send(hub, name) {
                Ok(room) => room,
                Err(_) => {
                    self.counters.dropped_rooms_max.add(1);
                    return Err(SendErrorReason::Rooms);
                }
            };
            let kept = room
                .as_ref()
                .and_then(|room| Some((room, room.kept.as_deref()?)));
            let Some(kept) = kept else {
                let members = room.as_ref().map(|room| &room.members);
                if members.is_none() && !self.is_clustered() {
                    self.counters.dropped_no_recipient.add(1);
                    return Ok(None);
                }
                let message = content.message(None);
                self.check_len(hub, &message)?;
                let to = Unkept::Room { name, members };
                self.broadcast_unkept(hub, to, except, &message, blocking)?;
                return Ok(None);
            };
            let except = except.and_then(|id| self.local_id(id));
            if let Some(id) = self.broadcast_and_keep(hub, kept, except, content, blocking)? {
                return Ok(Some(id));
            }
        }
    }

    /// Sends a message to a room, and returns its id if the room keeps it.
    pub(super) fn broadcast_confirmed(
        &self,
        name: &str,
        message: Message,
    ) -> Result<Option<HistoryId>, SendError> {
        let sent = match self.running() {
            Some(hub) => self.try_broadcast_confirmed(hub, name, &message),
            None => {
                self.counters.dropped_not_running.add(1);
                Err(SendErrorReason::Closed)
            }
        };
        sent.map_err(|reason| SendError { message, reason })
    }

    fn try_broadcast_confirmed(
        &self,
        hub: &Hub,
        name: &str,
        message: &Message,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        #[cfg(feature = "cluster")]
        if let Some(kept) = self.kept_on_all_nodes(name, None) {
            return self.keep_confirmed(hub, &kept, message).map(Some);
        }
        self.check_len(hub, message)?;
        let blocking = Blocking::Wait.unless_nonblocking();
        self.broadcast_to_room(hub, name, None, &Content::Message(message), blocking)
    }

    /// Sends a message that a closure creates for its id.
    pub(super) fn broadcast_with(
        &self,
        name: &str,
        message: impl Fn(Option<HistoryId>) -> Message,
        blocking: Blocking,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        let Some(hub) = self.running() else {
            self.counters.dropped_not_running.add(1);
            return Err(SendErrorReason::Closed);
        };
        let blocking = blocking.unless_nonblocking();
        self.broadcast_to_room(hub, name, None, &Content::OfId(&message), blocking)
    }

    /// The number of this node, if the app is part of a cluster.
    #[cfg_attr(not(feature = "cluster"), allow(clippy::unused_self))]
    fn node(&self) -> NodeId {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            return NodeId {
                number: cluster.node(),
            };
        }
        NodeId::NONE
    }

    /// Returns the id that programs have of a connection.
    pub(super) fn id_of(&self, local: LocalId) -> ConnectionId {
        ConnectionId {
            node: self.node(),
            local,
        }
    }

    /// Returns the id that the engine has of a connection. `None` if it belongs to another node.
    pub(super) fn local_id(&self, id: ConnectionId) -> Option<LocalId> {
        (id.node == self.node()).then_some(id.local)
    }

    /// Finds an open connection of this node.
    pub(super) fn find(&self, id: ConnectionId) -> Option<Arc<Session>> {
        self.directory.find_id(self.local_id(id)?)
    }

    /// Whether a room may have members on other nodes.
    pub(super) fn is_clustered(&self) -> bool {
        self.rooms.is_clustered()
    }

    pub(super) fn running(&self) -> Option<&Arc<Hub>> {
        self.hub.get().filter(|hub| !hub.has_stopped())
    }

    /// Returns whether the app runs and can serve all of its rooms.
    pub(super) fn is_ready(&self) -> bool {
        #[cfg(feature = "cluster")]
        if !self.rooms.are_histories_served() {
            return false;
        }
        self.running().is_some_and(|hub| !hub.is_draining())
    }

    pub(super) fn check_len(&self, hub: &Hub, message: &Message) -> Result<(), SendErrorReason> {
        if message.bytes().len() > hub.message_bytes_max() {
            self.counters.dropped_too_large.add(1);
            return Err(SendErrorReason::TooLarge);
        }
        Ok(())
    }

    /// Returns the kept messages of a room after an id.
    pub(super) fn since(
        &self,
        name: Option<&str>,
        since: Option<HistoryId>,
    ) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        self.sent_since(name, since, |_, sent| Some(sent.message))
    }

    /// Returns the kept messages of a room after an id, as rendered clients receive them.
    pub(super) fn rendered_since(
        &self,
        name: Option<&str>,
        since: Option<HistoryId>,
    ) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        let Some((name, hub)) = name.zip(self.running()).filter(|_| self.has_renderer()) else {
            return self.since(name, since);
        };
        let renderer = self.renderer(hub);
        self.sent_since(Some(name), since, |id, sent| {
            renderer.render(KeptMessage::new(name, id, &sent))
        })
    }

    /// Returns the kept messages of a room after an id in the form that `form` gives them. It is called without a lock, since it
    /// may be user code.
    fn sent_since(
        &self,
        name: Option<&str>,
        since: Option<HistoryId>,
        form: impl Fn(HistoryId, SentMessage) -> Option<Message>,
    ) -> Result<Vec<(HistoryId, Message)>, HistoryGone> {
        let room = name.and_then(|name| self.find_history(name));
        let Some(history) = room.as_ref().and_then(RoomEntry::history) else {
            return since.map_or(Ok(Vec::new()), |id| Err(HistoryGone::new(id, None)));
        };
        let entries = history.entries_since(since)?;
        let sent: Vec<_> = entries
            .map(|(id, entry)| (id, entry.sent.clone()))
            .collect();
        drop(history);
        let formed = sent
            .into_iter()
            .filter_map(|(id, sent)| Some((id, form(id, sent)?)));
        Ok(formed.collect())
    }

    pub(super) fn last_id(&self, name: &str) -> Option<HistoryId> {
        self.find_history(name)?.history()?.last_id()
    }

    /// Finds a room to read its history.
    fn find_history(&self, name: &str) -> Option<RoomEntry> {
        #[cfg(feature = "cluster")]
        if self.is_clustered() {
            return self.find_shared_history(name);
        }
        self.rooms.find(name)
    }

    /// Maps a refusal to its reason. A message that does not fit into a full mailbox is returned to the caller, so it
    /// is not counted as dropped.
    pub(super) fn refused(&self, refused: PushError) -> SendErrorReason {
        match refused {
            PushError::Full => SendErrorReason::Full,
            PushError::Closed => {
                self.counters.dropped_not_running.add(1);
                SendErrorReason::Closed
            }
        }
    }

    /// Closes a connection, of this node or another one, after the messages that were sent to it before.
    pub(super) fn close(&self, id: ConnectionId, code: CloseCode, reason: &str) {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.elsewhere(id) {
            let (code, reason) = (code.get(), reason_prefix(reason));
            // The connection has gone with its node, or the message has been counted.
            let _ = self.act_elsewhere(cluster, id, DirectAction::Close { code, reason });
            return;
        }
        if let Some(id) = self.local_id(id) {
            self.close_here(id, code, reason);
        }
    }

    /// Closes a connection of this node after the messages that were sent to it before.
    pub(super) fn close_here(&self, id: LocalId, code: CloseCode, reason: &str) {
        if let Some(hub) = self.hub.get() {
            let command = Command::Close(id.key(), code, reason_prefix(reason).into());
            // A stopping engine also refuses the command, but it closes every connection anyway.
            if hub.post(id, command, true) == Err(PushError::Full) {
                warn_of_refused("close a connection");
            }
        }
    }

    /// The open WebSocket connections of a user.
    pub(super) fn connections_of(&self, user: &str) -> Vec<LocalId> {
        let hub = self.hub.get();
        hub.map_or_else(Vec::new, |hub| hub.users.connections_of(user))
    }

    /// Closes all connections of a user. Returns how many were open on this node.
    pub(super) fn close_user(&self, user: &str, code: CloseCode, reason: &str) -> usize {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            cluster.close_user(user, code.get(), reason_prefix(reason));
        }
        self.close_user_here(user, code, reason)
    }

    pub(super) fn close_user_here(&self, user: &str, code: CloseCode, reason: &str) -> usize {
        let Some(hub) = self.hub.get() else {
            return 0;
        };
        let reason = reason_prefix(reason);
        let ids = hub.users.close(user, code, reason);
        for &id in &ids {
            self.close_here(id, code, reason);
        }
        ids.len()
    }

    /// Returns the number of event streams that receive broadcasts to every client.
    pub(super) fn everyone_streams(&self) -> usize {
        let streams = self.hub.get().and_then(|hub| hub.everyone_streams());
        streams.map_or(0, |streams| streams.len())
    }

    pub(super) fn connections(&self) -> usize {
        self.hub.get().map_or(0, |hub| hub.members())
    }

    pub(super) fn metrics(&self) -> Metrics {
        let mut sum = self.common_metrics();
        if let Some(hub) = self.hub.get() {
            hub.add_shard_metrics(&mut sum);
        }
        sum
    }

    /// Returns the metrics that belong to no shard.
    fn common_metrics(&self) -> Metrics {
        let mut common = Metrics {
            rooms: self.rooms.len() as u64,
            ..Metrics::default()
        };
        self.counters.add_to(&mut common);
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            cluster.counters().add_to(&mut common);
        }
        if let Some(hub) = self.hub.get() {
            hub.add_common_metrics(&mut common);
        }
        common
    }

    pub(super) fn metrics_by_shard(&self) -> Vec<Metrics> {
        self.hub
            .get()
            .map_or_else(Vec::new, |hub| hub.shard_metrics())
    }

    pub(super) fn prometheus(&self) -> String {
        let shards = self.metrics_by_shard();
        let mut parts = vec![("none".to_owned(), self.common_metrics())];
        parts.extend((0..).map(|n: usize| n.to_string()).zip(shards));
        metrics::render(&parts)
    }

    /// Begins to close all connections evenly. In the end, the engine calls `Program::drained`, which shuts the app down.
    pub(super) fn shutdown_over(&self, drain: Drain) {
        match self.engine() {
            None => self.shutdown(Duration::ZERO),
            // It stops already, which this can only shorten.
            Some(hub) if hub.has_stopped() => self.end_drain(),
            Some(hub) => hub.drain(drain.over, drain.wait(self.has_other_nodes())),
        }
    }

    /// Shuts the app down after a drain: the clients that are left get as long as a closing handshake may take.
    pub(super) fn end_drain(&self) {
        if let Some(hub) = self.engine() {
            self.shutdown(hub.settings.limits.close_timeout);
        }
    }

    /// Whether other nodes can take over the clients of this one.
    fn has_other_nodes(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.cluster.get().is_some();
        #[cfg(not(feature = "cluster"))]
        false
    }

    pub(super) fn shutdown(&self, wait: Duration) {
        if let Some(hub) = self.hub.get() {
            hub.stop(wait);
        }
        if let Some(presence) = self.rooms.presence() {
            presence.engine_stops();
        }
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            cluster.stop(wait);
        }
        // Dropping the sender ends the thread that adopts connections, and makes further hand-overs fail cleanly.
        if let Some(hook) = self.hook.get() {
            let mut hook = lock(hook);
            *hook = mpsc::channel().0;
        }
    }
}

/// Warns of an action that was not done because it would have blocked a shard. The shard can't wait for space in a
/// mailbox that only it can empty, or that another shard can empty which waits for this one.
pub(super) fn warn_of_refused(action: &str) {
    /// The limit prevents an endless recursion if a `tracing` subscriber reacts to this line with the same action.
    static REFUSED: Limited = Limited::new();
    limited!(
        REFUSED,
        warning,
        "a call to {action} had no effect: it was made where the library must not block, such as in a `tracing` \
         subscriber, while a mailbox was full. Make it from another thread, or raise Limits::mailbox_bytes_max"
    );
}

#[cfg(all(test, not(loom)))]
#[path = "publish_tests.rs"]
mod tests;
