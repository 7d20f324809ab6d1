//! The rooms that a node is subscribed to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Action, InterestChange, LINGER, LINGERING_MAX, Node, RoomState, SUBSCRIBED_AT_ONCE};
use crate::cluster::broker::{Channel, Command};
use crate::cluster::counts::Counts;
use crate::cluster::replica::Replica;
use crate::cluster::servers::server_of;
use crate::presence::NodeEvent;

impl Node {
    /// All channels of a server that this node needs.
    fn channels_of(&self, server: usize) -> impl Iterator<Item = Channel> + '_ {
        let everyone =
            (server_of(&Channel::Everyone, &self.shared) == server).then_some(Channel::Everyone);
        let own = Channel::Node(self.id);
        let own = (server_of(&own, &self.shared) == server).then_some(own);
        let rooms = self
            .rooms
            .iter()
            .filter(move |(_, room)| room.interest.server == server)
            .map(|(name, _)| Channel::Room(name.clone()));
        // Heartbeats go through each server.
        std::iter::once(Channel::Nodes)
            .chain(everyone)
            .chain(own)
            .chain(rooms)
    }

    /// Handles the confirmation of a subscription.
    pub(super) fn subscribed(&mut self, server: usize, channel: &Channel) {
        if let Channel::Room(room) = channel {
            self.on_presence(NodeEvent::Subscribed { room });
        }
        if let Channel::Room(name) = channel
            && let Some(room) = self.rooms.get_mut(name)
        {
            // A room with a history can be joined once that has been read.
            let Some(replica) = &mut room.replica else {
                self.shared[server].status.subscribed(&room.interest);
                return;
            };
            if replica.subscribed() {
                self.queue_read(server, name.clone());
            }
        }
    }

    /// Subscribes again to what a server has refused.
    pub(super) fn resubscribe(&mut self, at: usize, actions: &mut Vec<Action>) {
        let status = &self.shared[at].status;
        let is_missing = |channel: &Channel| match channel {
            Channel::Room(name) => {
                let room = self.rooms.get(name);
                room.is_some_and(|room| !status.is_subscribed(&room.interest))
            }
            // Subscribing twice has no effect.
            _ => true,
        };
        self.subscribe(at, is_missing, actions);
    }

    /// Subscribes to those channels of a server that this node needs and that are missing.
    pub(super) fn subscribe(
        &self,
        at: usize,
        is_missing: impl Fn(&Channel) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let channels: Vec<_> = self.channels_of(at).filter(is_missing).collect();
        for channels in channels.chunks(SUBSCRIBED_AT_ONCE) {
            actions.push(Action::Command(at, Command::Subscribe(channels.to_vec())));
        }
    }

    /// Handles a change of the rooms that this node needs. The changes of one room arrive in their order.
    pub(crate) fn on_interest(
        &mut self,
        change: InterestChange,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match change {
            InterestChange::Needed {
                room: name,
                interest,
                history_bytes_max,
            } => {
                let server = interest.server;
                if self.rooms.contains_key(&name) {
                    // No confirmation of a subscription follows.
                    self.on_presence(NodeEvent::Subscribed { room: &name });
                }
                let shared = &self.shared[server];
                match self.rooms.get_mut(&name) {
                    Some(room) => {
                        room.unsubscribe_at = None;
                        let was = std::mem::replace(&mut room.interest, interest);
                        let Some(replica) = &mut room.replica else {
                            if shared.status.is_subscribed(&was) {
                                shared.status.subscribed(&room.interest);
                            }
                            return;
                        };
                        if replica.renewed() {
                            self.queue_read(server, name);
                        }
                    }
                    None => {
                        let room = RoomState {
                            interest,
                            unsubscribe_at: None,
                            counts: Counts::default(),
                            replica: history_bytes_max.map(Replica::new),
                        };
                        self.rooms.insert(name.clone(), room);
                        if self.servers[server].incarnation.is_some() {
                            let channels = vec![Channel::Room(name)];
                            actions.push(Action::Command(server, Command::Subscribe(channels)));
                        }
                    }
                }
            }
            InterestChange::Unneeded(name) => {
                if let Some(room) = self.rooms.get_mut(&name) {
                    let at = now + LINGER;
                    room.unsubscribe_at = Some(at);
                    self.lingering.push_back((at, name));
                }
            }
        }
    }

    pub(super) fn unsubscribe_unneeded(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let is_due = |lingering: &VecDeque<(Instant, Arc<str>)>| {
            let front = lingering.front();
            front.is_some_and(|&(at, _)| at <= now || lingering.len() > LINGERING_MAX)
        };
        while is_due(&self.lingering) {
            let Some((at, name)) = self.lingering.pop_front() else {
                break;
            };
            // Otherwise the room is needed again, or has been needed again since.
            let is_unneeded = |room: &RoomState| room.unsubscribe_at == Some(at);
            if self.rooms.get(&name).is_some_and(is_unneeded)
                && let Some(room) = self.rooms.remove(&name)
                && self.servers[room.interest.server].incarnation.is_some()
            {
                let channels = vec![Channel::Room(name)];
                let command = Command::Unsubscribe(channels);
                actions.push(Action::Command(room.interest.server, command));
            }
        }
    }
}
