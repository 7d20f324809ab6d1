//! What other nodes tell.

use std::sync::Arc;
use std::time::Instant;

use super::{Heard, HeardEvent, PresenceTable, schedule};
use crate::presence::remote::{Applied, Outcome};
use crate::presence::update::{BadUpdate, Update};

/// The most memory for the facts of other nodes. Any program that may publish to the broker can make them up.
const REMOTE_BYTES_MAX: usize = 64 << 20;
/// The most other nodes that a room knows facts of.
const NODES_MAX: usize = 1_024;

impl<C: Clone> PresenceTable<C> {
    /// Handles what this node hears of others.
    pub(crate) fn on_heard(
        &mut self,
        heard: HeardEvent<'_>,
        now: Instant,
    ) -> Result<(), BadUpdate> {
        match heard.0 {
            Heard::Subscribed(room) => self.subscribed(room, now),
            Heard::Update(room, node, update) => return self.received(room, node, update, now),
            Heard::AskedForAll => self.publish_all(now),
            Heard::Gone(node) => self.node_gone(node, now),
            Heard::New(node) => {
                self.nodes.insert(node);
                self.nodes_to_ask.insert(node, (now, true));
            }
        }
        Ok(())
    }

    fn subscribed(&mut self, name: &str, now: Instant) {
        let Some((name, _)) = self.rooms.get_key_value(name) else {
            return;
        };
        let name = name.clone();
        if let Some(room) = self.rooms.get_mut(&name) {
            // Otherwise the answers would be ignored.
            if room.is_needed {
                room.ask_all();
            }
            // Others may have missed what this node told before.
            room.publishes_all = true;
            schedule(&mut self.due, &name, room, now);
        }
    }

    fn publish_all(&mut self, now: Instant) {
        let rooms = self.rooms.iter_mut();
        for (name, room) in rooms.filter(|(_, room)| !room.local.is_empty()) {
            room.publishes_all = true;
            schedule(&mut self.due, name, room, now);
        }
    }

    fn received(
        &mut self,
        name: &str,
        node: u32,
        update: Update,
        now: Instant,
    ) -> Result<(), BadUpdate> {
        let Some((name, _)) = self.rooms.get_key_value(name) else {
            return Ok(());
        };
        let name = name.clone();
        let Some(room) = self.rooms.get_mut(&name) else {
            return Ok(());
        };
        if let Update::Ask { of } = update {
            if (of.is_none() || of == self.node) && !room.local.is_empty() {
                room.publishes_all = true;
                schedule(&mut self.due, &name, room, now);
            }
            return Ok(());
        }
        let is_known = room.remote.contains_key(&node);
        if !room.is_needed || (!is_known && room.remote.len() >= NODES_MAX) {
            return Ok(());
        }
        let remote = room.remote.entry(node).or_default();
        if !is_known {
            self.remote_bytes += remote.bytes();
            let rooms = self.rooms_of_nodes.entry(node).or_default();
            rooms.insert(name.clone());
        }
        if remote.is_refused {
            return Ok(());
        }
        let before = remote.bytes();
        let applied = match update {
            Update::Ask { .. } => Applied::default(),
            Update::Repeat { version } => remote.repeated(version),
            Update::Changes {
                version,
                previous,
                facts,
            } => remote.change(version, previous, facts),
            Update::Part {
                version,
                previous,
                is_first,
                is_last,
                facts,
            } => remote.part((version, previous), (is_first, is_last), facts),
        };
        self.remote_bytes = self.remote_bytes + remote.bytes() - before;
        if self.remote_bytes > REMOTE_BYTES_MAX {
            let bytes = remote.bytes();
            let facts = remote.refuse();
            self.remote_bytes = self.remote_bytes + remote.bytes() - bytes;
            room.ask_no_more(node);
            let members = facts.into_keys().chain(applied.changed);
            members.for_each(|member| room.changed_elsewhere(member));
            schedule(&mut self.due, &name, room, now);
            return Err(BadUpdate::TooMuch);
        }
        match applied.outcome {
            Outcome::Gap => room.ask(node, now),
            Outcome::All => {
                room.has_answered(node);
                room.confirmed(node);
            }
            Outcome::Current => room.confirmed(node),
            Outcome::Late => {}
        }
        for member in applied.changed {
            room.adopt_state(&member);
            room.changed_elsewhere(member);
        }
        schedule(&mut self.due, &name, room, now);
        Ok(())
    }

    /// Forgets what a node has told about a room.
    pub(super) fn forget_facts(&mut self, name: &Arc<str>, node: u32) {
        let Some(room) = self.rooms.get_mut(name) else {
            return;
        };
        room.ask_no_more(node);
        if let Some(rooms) = self.rooms_of_nodes.get_mut(&node) {
            rooms.remove(name);
            if rooms.is_empty() {
                self.rooms_of_nodes.remove(&node);
            }
        }
        let Some(remote) = room.remote.remove(&node) else {
            return;
        };
        self.remote_bytes -= remote.bytes();
        for member in remote.facts.into_keys() {
            room.changed_elsewhere(member);
        }
    }

    fn node_gone(&mut self, node: u32, now: Instant) {
        self.nodes.remove(&node);
        self.nodes_to_ask.remove(&node);
        for name in self.rooms_of_nodes.remove(&node).unwrap_or_default() {
            self.forget_facts(&name, node);
            if let Some(room) = self.rooms.get_mut(&name) {
                schedule(&mut self.due, &name, room, now);
            }
        }
    }
}
