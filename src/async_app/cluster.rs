//! The app as a node of a cluster: messages to the other nodes, and from them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::publish::{AppShared, Blocking, Here, Unkept};
use super::room_entry::RoomEntry;
use crate::cluster::{Channel, ClusterHandle, Delivered, Members, NotQueued, RemoteConnection};
use crate::engine::{ConnectionId, Hub};
use crate::error::SendErrorReason;
use crate::message::Message;

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
        if !cluster.carries(message) {
            self.counters.dropped_too_large.add(1);
            return Err(SendErrorReason::TooLarge);
        }
        let channel = to.channel();
        let remote_except = except.map(|except| remote(cluster, except));
        match blocking {
            Blocking::Try => {
                let reserved = cluster.try_reserve(&channel, message).map_err(refused)?;
                self.broadcast_here(hub, to.here(), except, message, blocking)?;
                reserved.push(channel, message.clone(), remote_except, Instant::now());
            }
            Blocking::Wait => {
                self.broadcast_here(hub, to.here(), except, message, blocking)?;
                cluster.publish(channel, message.clone(), remote_except);
            }
        }
        Ok(())
    }

    /// Ends the link to the cluster, once the engine has stopped.
    pub(super) fn end_cluster(&self) {
        if let Some(cluster) = self.cluster.get() {
            cluster.stop(Duration::from_secs(1));
            cluster.join();
        }
    }

    /// Waits until this node receives the messages that other nodes send to a room, but not for long.
    pub(super) fn wait_for_subscription(&self, room: &RoomEntry) {
        if let (Some(cluster), Some(interest)) = (self.cluster.get(), &room.interest) {
            // A room without a history can be joined during an outage, since it has nothing to miss that could be
            // known.
            let _ = cluster.wait_for(interest);
        }
    }
}

fn refused(refused: NotQueued) -> SendErrorReason {
    match refused {
        NotQueued::Full => SendErrorReason::Full,
        NotQueued::Unreachable => SendErrorReason::Broker,
        NotQueued::Stopped => SendErrorReason::Closed,
    }
}

/// A connection of this node, as other nodes know it.
fn remote(cluster: &ClusterHandle, id: ConnectionId) -> RemoteConnection {
    RemoteConnection {
        node: cluster.node(),
        shard: id.shard,
        slot: id.key.slot,
        generation: id.key.generation,
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

impl Members for LocalMembers {
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        // A connection of the node that sent the message.
        _except: Option<RemoteConnection>,
    ) -> Delivered {
        let Some(shared) = self.shared.upgrade() else {
            return Delivered::Done;
        };
        let Some(hub) = shared.running() else {
            return Delivered::Done;
        };
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
        match shared.broadcast_here(hub, Some(here), None, message, Blocking::Try) {
            Err(SendErrorReason::Full) => Delivered::Full,
            _ => Delivered::Done,
        }
    }
}
