//! The app as a node of a cluster: messages to the other nodes, and from them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::connection_id::{ConnectionId, NodeId};
use super::publish::{AppShared, Blocking, Here, Recipients, Unkept};
use super::room_entry::RoomEntry;
use super::room_join::join_error;
use super::rooms::NAME_BYTES_MAX;
use crate::cluster::{
    Answers, Channel, ClusterHandle, CopyBeginning, Delivered, DirectAction, Members, NotQueued,
    Outbound, Payload, RemoteConnection, Waited,
};
use crate::engine::{Hub, LocalId, PushError};
use crate::error::{JoinError, JoinErrorReason, SendError, SendErrorReason};
use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};
use crate::presence::{BadUpdate, NodeEvent};
use crate::protocol::close::CloseCode;

impl Unkept<'_> {
    fn channel(&self) -> Channel {
        match self {
            Self::Everyone => Channel::Everyone,
            Self::Room { name, members } => Channel::Room(match members {
                Some(members) => members.name.clone(),
                None => (*name).into(),
            }),
        }
    }
}

impl AppShared {
    /// Broadcasts a message without a history: to the members on this node at once, and to those on other nodes through
    /// the broker.
    pub(super) fn broadcast_on_all_nodes(
        &self,
        (hub, cluster): (&Hub, &ClusterHandle),
        to: Unkept<'_>,
        except: Option<ConnectionId>,
        message: &Message,
        blocking: Blocking,
    ) -> Result<(), SendErrorReason> {
        if let Unkept::Room { name, .. } = to
            && name.len() > NAME_BYTES_MAX
        {
            // No room has such a name, on any node.
            self.counters.dropped_no_recipient.add(1);
            return Ok(());
        }
        if !cluster.carries(message) {
            self.counters.dropped_too_large.add(1);
            return Err(SendErrorReason::TooLarge);
        }
        let channel = to.channel();
        let content = Outbound::Message(message.clone(), except.map(remote));
        match blocking {
            Blocking::Try => {
                let reserved = cluster.try_reserve(&channel, &content).map_err(refused)?;
                self.broadcast_here(hub, to.here(), except, message, blocking)
                    .map_err(|refused| self.refused(refused))?;
                reserved.push(channel, content, Instant::now());
            }
            Blocking::Wait => {
                self.broadcast_here(hub, to.here(), except, message, blocking)
                    .map_err(|refused| self.refused(refused))?;
                // The local members have received it. A message that can't be queued has been counted.
                let _ = cluster.publish(channel, content);
            }
        }
        Ok(())
    }

    /// Returns the cluster if a connection belongs to another node.
    pub(super) fn elsewhere(&self, id: ConnectionId) -> Option<&ClusterHandle> {
        self.running()?;
        let cluster = self.cluster.get()?;
        (id.node.number != cluster.node()).then_some(&**cluster)
    }

    /// Sends a message to a connection of another node. Whether the connection is still open is known there only.
    pub(super) fn send_elsewhere(
        &self,
        cluster: &ClusterHandle,
        id: ConnectionId,
        message: Message,
        blocking: Blocking,
    ) -> Result<(), SendError> {
        let refuse = |message, reason| Err(SendError { message, reason });
        if !cluster.hears(id.node.number) {
            self.counters.dropped_closed.add(1);
            return refuse(message, SendErrorReason::Closed);
        }
        if !cluster.carries(&message) {
            self.counters.dropped_too_large.add(1);
            return refuse(message, SendErrorReason::TooLarge);
        }
        let action = DirectAction::Send(Payload::of(&message));
        let queued = match blocking {
            Blocking::Wait => cluster.act(remote(id), action),
            Blocking::Try => cluster.try_act(remote(id), action),
        };
        queued.or_else(|reason| refuse(message, refused(reason)))
    }

    /// Closes, joins or leaves for a connection of another node.
    pub(super) fn act_elsewhere(
        &self,
        cluster: &ClusterHandle,
        id: ConnectionId,
        action: DirectAction<'_>,
    ) -> Result<(), SendErrorReason> {
        if !cluster.hears(id.node.number) {
            return Err(SendErrorReason::Closed);
        }
        cluster.act(remote(id), action).map_err(refused)
    }

    /// Counts the members of a room, or all clients, on the other nodes.
    pub(super) fn count_elsewhere(&self, room: Option<&str>) -> Answers {
        let alone = Answers {
            is_complete: true,
            ..Answers::default()
        };
        let cluster = self.cluster.get();
        // No room has a longer name, on any node.
        let cluster = cluster.filter(|_| room.is_none_or(|name| name.len() <= NAME_BYTES_MAX));
        cluster.map_or(alone, |cluster| cluster.count(room))
    }

    /// Makes a connection of another node join a room there.
    pub(super) fn join_elsewhere(
        &self,
        cluster: &ClusterHandle,
        id: ConnectionId,
        room: &str,
    ) -> Result<(), JoinError> {
        if room.len() > NAME_BYTES_MAX {
            return Err(join_error(room, JoinErrorReason::NameTooLong));
        }
        self.act_elsewhere(cluster, id, DirectAction::Join { room })
            .map_err(|_| join_error(room, JoinErrorReason::Closed))
    }

    /// Ends the link to the cluster, once the engine has stopped.
    pub(super) fn end_cluster(&self) {
        if let Some(cluster) = self.cluster.get() {
            cluster.stop(Duration::from_secs(1));
            cluster.join();
        }
    }

    /// Waits until this node receives the messages that other nodes send to a room, and its copy of the room's history is
    /// complete, but not for long. Returns whether the room can be joined.
    pub(super) fn wait_for_messages(&self, room: &RoomEntry) -> bool {
        let (Some(cluster), Some(interest)) = (self.cluster.get(), &room.interest) else {
            return true;
        };
        // A room without a history can be joined during an outage, since it has nothing to miss that could be known.
        cluster.wait_for(interest) == Waited::Subscribed || room.kept.is_none()
    }
}

/// The outcome of a delivery to the members on this node. An engine that stops closes them: they miss nothing that their
/// room keeps, so that the caller alone knows whether to count it.
pub(super) fn delivered(pushed: Result<bool, PushError>) -> Delivered {
    match pushed {
        Err(PushError::Full) => Delivered::Full,
        Ok(_) | Err(PushError::Closed) => Delivered::Done,
    }
}

pub(super) fn refused(refused: NotQueued) -> SendErrorReason {
    match refused {
        NotQueued::Full => SendErrorReason::Full,
        NotQueued::Unreachable => SendErrorReason::Broker,
        NotQueued::Stopped => SendErrorReason::Closed,
    }
}

/// Names a connection for other nodes.
pub(super) fn remote(id: ConnectionId) -> RemoteConnection {
    RemoteConnection {
        node: id.node.number,
        shard: id.local.shard,
        slot: id.local.key.slot,
        generation: id.local.key.generation,
    }
}

fn local(connection: RemoteConnection) -> LocalId {
    LocalId::new(connection.shard, connection.slot, connection.generation)
}

fn connection_id(connection: RemoteConnection) -> ConnectionId {
    ConnectionId {
        node: NodeId {
            number: connection.node,
        },
        local: local(connection),
    }
}

/// Delivers the messages of other nodes.
pub(super) struct LocalMembers {
    /// The engine holds the app, and the link must not keep it alive.
    pub(super) shared: Weak<AppShared>,
}

impl LocalMembers {
    pub(super) fn new(shared: &Arc<AppShared>) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::downgrade(shared),
        })
    }
}

impl LocalMembers {
    /// The app and its engine, while it runs.
    fn running<R>(&self, act: impl FnOnce(&AppShared, &Hub) -> R) -> Option<R> {
        let shared = self.shared.upgrade()?;
        Some(act(&shared, shared.running()?))
    }
}

impl Members for LocalMembers {
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        except: Option<RemoteConnection>,
    ) -> Delivered {
        let delivered = self.running(|shared, hub| {
            let room = match channel {
                Channel::Everyone => None,
                Channel::Room(name) => match shared.rooms.find(name) {
                    Some(room) => Some(room),
                    // The last member has left.
                    None => return Delivered::Done,
                },
                Channel::Nodes | Channel::Node(_) => return Delivered::Done,
            };
            let here = match &room {
                Some(room) => Here::Room(&room.members),
                None => Here::Everyone,
            };
            let except = except.map(connection_id);
            let sent = shared.broadcast_here(hub, Some(here), except, message, Blocking::Try);
            delivered(sent.inspect_err(|refused| _ = shared.refused(*refused)))
        });
        delivered.unwrap_or(Delivered::Done)
    }

    fn begin_copy(&self, room: &str, copy: &CopyBeginning) -> Delivered {
        let begun = self.running(|shared, hub| shared.begin_copy(hub, room, copy));
        begun.unwrap_or(Delivered::Done)
    }

    fn keep(
        &self,
        room: &str,
        id: HistoryId,
        sent: &SentMessage,
        except: Option<RemoteConnection>,
    ) -> Delivered {
        let except = except.map(connection_id);
        let kept = self.running(|shared, hub| shared.keep_copy(hub, room, id, sent, except));
        kept.unwrap_or(Delivered::Done)
    }

    fn tell_silence(&self, room: &str, is_silent: bool) -> Delivered {
        let told = self.running(|shared, hub| shared.tell_silence(hub, room, is_silent));
        told.unwrap_or(Delivered::Done)
    }

    fn drop_idle_copies(&self, idle: Duration) {
        self.running(|shared, _| shared.rooms.evict_idle(idle));
    }

    fn act(&self, to: RemoteConnection, action: DirectAction<'_>) -> Delivered {
        let id = local(to);
        let acted = self.running(|shared, hub| match action {
            // A refused message can be sent again later, but a refused close, join or leave would be lost.
            _ if !hub.has_room(Some(to.shard)) => Delivered::Full,
            DirectAction::Send(payload) => {
                let to = Recipients::Connection(id);
                match shared.publish(to, payload.to_message(), Blocking::Try) {
                    Err(error) if error.reason == SendErrorReason::Full => Delivered::Full,
                    _ => Delivered::Done,
                }
            }
            DirectAction::Close { code, reason } => {
                if let Ok(code) = CloseCode::try_from(code) {
                    shared.close_here(id, code, reason);
                }
                Delivered::Done
            }
            DirectAction::Join { room } => {
                let session = shared.directory.find_id(id);
                let joined = shared.join(Some(room), session.as_ref());
                if let Err(error) = &joined
                    && error.reason == JoinErrorReason::Broker
                {
                    // The history has to be read first, for which this thread can't wait.
                    return Delivered::Later;
                }
                shared.warn_of(joined);
                Delivered::Done
            }
            DirectAction::Leave { room } => {
                if let Some(session) = shared.directory.find_id(id) {
                    shared.leave(room, &session);
                }
                Delivered::Done
            }
        });
        acted.unwrap_or(Delivered::Done)
    }

    fn close_user(&self, user: &str, code: u16, reason: &str) -> Delivered {
        let Ok(code) = CloseCode::try_from(code) else {
            return Delivered::Done;
        };
        let closed = self.running(|shared, hub| {
            if !hub.has_room(None) {
                return Delivered::Full;
            }
            shared.close_user_here(user, code, reason);
            Delivered::Done
        });
        closed.unwrap_or(Delivered::Done)
    }

    fn on_presence(&self, event: NodeEvent<'_>) -> Result<(), BadUpdate> {
        let shared = self.shared.upgrade();
        let presence = shared.as_ref().and_then(|shared| shared.rooms.presence());
        presence.map_or(Ok(()), |presence| presence.on_node_event(event))
    }

    fn count(&self, room: Option<&str>) -> u64 {
        let count = self.running(|shared, hub| match room {
            Some(name) => shared.rooms.find(name).map_or(0, |room| room.members.len()),
            None => hub.members(),
        });
        count.unwrap_or(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::thread;

    use super::*;
    use crate::async_app::AsyncWebsocketApp;
    use crate::limits::HistoryLimits;

    #[test]
    fn message_after_the_end_of_the_link_counts_as_not_running() {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let running = app
            .with_address("127.0.0.1:0")
            .with_shards(1)
            .with_history("kept", HistoryLimits::messages(1))
            // No broker: what was queued before the end counts for it.
            .with_cluster("redis://127.0.0.1:1")
            .start()
            .unwrap();
        let sender = running.sender();
        sender.room("plain").broadcast(Message::new("queued"));
        let cluster = sender.0.cluster.get().unwrap();
        cluster.stop(Duration::ZERO);
        cluster.join();
        let counts = || {
            let metrics = sender.metrics();
            let cluster = metrics.cluster;
            (metrics.dropped.not_running, cluster.dropped_broker)
        };
        assert_eq!(counts(), (0, 1));
        for (index, name) in ["plain", "kept"].into_iter().enumerate() {
            let room = sender.room(name);
            room.broadcast(Message::new("late"));
            let refused = room.try_broadcast(Message::new("late")).unwrap_err();
            assert_eq!(refused.reason, SendErrorReason::Closed);
            assert_eq!(counts(), (2 * (index as u64 + 1), 1), "{name}");
        }
        running.shutdown(Duration::ZERO);
    }

    #[test]
    fn corked_broadcasts_reach_local_clients_while_the_thread_waits_for_the_broker() {
        let broker = crate::cluster::Cluster::new("redis://127.0.0.1:1")
            .outgoing_bytes_max(1_000)
            .outage_wait_max(Duration::MAX);
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let running = app
            .with_address("127.0.0.1:0")
            .with_shards(1)
            .with_cluster(broker)
            .start()
            .unwrap();
        let sender = running.sender();
        let mut client = TcpStream::connect(running.local_addr().unwrap()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        client.write_all(request.as_bytes()).unwrap();
        let mut received = [0; 1_000];
        let n = client.read(&mut received).unwrap();
        assert!(received[..n].starts_with(b"HTTP/1.1 101 "));
        let producer = {
            let sender = sender.clone();
            let send = move || sender.broadcast(Message::new("x".repeat(300)));
            let sender = running.sender();
            thread::spawn(move || sender.cork(|| (0..10).for_each(|_| send())))
        };
        assert!(client.read(&mut received).unwrap() > 0);
        assert!(!producer.is_finished(), "it waits for the broker");
        running.shutdown(Duration::ZERO);
        producer.join().unwrap();
    }
}
