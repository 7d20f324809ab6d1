//! The members of a node: they write down what they receive. Like the app, they have a copy of each room's history.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::cluster::broker::Channel;
use crate::cluster::members::{CopyBeginning, Delivered, Members};
use crate::cluster::wire::{DirectAction, RemoteConnection};
use crate::history_id::{HistoryId, random_epoch};
use crate::message::{Message, SentMessage};
use crate::presence::{BadUpdate, NodeEvent};
use crate::sync::lock;

#[derive(Default)]
pub(super) struct Recorder {
    pub(super) delivered: Mutex<Vec<String>>,
    pub(super) full: AtomicBool,
    copies: Mutex<Copies>,
    pub(super) presence: Mutex<Vec<PresenceHeard>>,
}

/// What a node has reported of the presence of rooms.
#[derive(Debug)]
pub(super) enum PresenceHeard {
    Subscribed(String),
    Update(String, u32, bool, Vec<u8>),
    AskedForAll,
    Gone(u32),
    New(u32),
}

impl PresenceHeard {
    pub(super) fn event(&self) -> NodeEvent<'_> {
        match self {
            Self::Subscribed(room) => NodeEvent::Subscribed { room },
            Self::Update(room, node, is_gone, update) => NodeEvent::Update {
                room,
                node: *node,
                is_gone: *is_gone,
                update,
            },
            Self::AskedForAll => NodeEvent::AskedForAll,
            Self::Gone(node) => NodeEvent::Gone(*node),
            Self::New(node) => NodeEvent::New(*node),
        }
    }
}

#[derive(Default)]
struct Copies {
    copies: HashMap<String, Copy>,
    log: HashMap<String, Vec<Seen>>,
    /// The number of gaps, also in rooms that have no copy.
    gaps: u64,
}

/// A copy of a room's history.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub(super) position: HistoryId,
    /// The kept messages up to the position.
    pub(super) texts: VecDeque<String>,
    messages_max: usize,
    /// Whether the broker has given the position.
    pub(super) is_begun: bool,
}

/// What happens to a copy, and what its members receive.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// An empty copy takes the place of a former one.
    Renewed,
    /// The first members join. What happens later is for them.
    Joined,
    /// The copy begins anew.
    Begun {
        /// Its position before, if the broker had given it.
        before: Option<HistoryId>,
        position: HistoryId,
        texts: Vec<String>,
        has_gap: bool,
    },
    /// A message is delivered and kept.
    Kept { id: HistoryId, text: String },
}

impl Copies {
    fn log(&mut self, room: &str, seen: Seen) {
        self.log.entry(room.to_owned()).or_default().push(seen);
    }
}

impl Recorder {
    /// Begins an empty copy of a room, which keeps its last messages.
    pub(super) fn renew_copy(&self, room: &str, messages_max: usize) {
        let mut copies = lock(&self.copies);
        let copy = Copy {
            // An epoch that no history has.
            position: HistoryId::new(random_epoch(), 0),
            texts: VecDeque::new(),
            messages_max,
            is_begun: false,
        };
        copies.copies.insert(room.to_owned(), copy);
        copies.log(room, Seen::Renewed);
    }

    pub(super) fn drop_copy(&self, room: &str) {
        lock(&self.copies).copies.remove(room);
    }

    pub(super) fn copy(&self, room: &str) -> Option<Copy> {
        lock(&self.copies).copies.get(room).cloned()
    }

    pub(super) fn joined(&self, room: &str) {
        lock(&self.copies).log(room, Seen::Joined);
    }

    pub(super) fn seen(&self, room: &str) -> Vec<Seen> {
        let copies = lock(&self.copies);
        copies.log.get(room).cloned().unwrap_or_default()
    }

    pub(super) fn gaps(&self) -> u64 {
        lock(&self.copies).gaps
    }
}

fn text(message: &Message) -> String {
    message.text().unwrap_or("binary").to_owned()
}

impl Members for Recorder {
    fn deliver(
        &self,
        channel: &Channel,
        message: &Message,
        _: Option<RemoteConnection>,
    ) -> Delivered {
        if self.full.load(Relaxed) {
            return Delivered::Full;
        }
        let name = match channel {
            Channel::Room(name) => name,
            _ => "*",
        };
        lock(&self.delivered).push(format!("{name} {}", text(message)));
        Delivered::Done
    }

    fn begin_copy(&self, room: &str, copy: &CopyBeginning) -> Delivered {
        if self.full.load(Relaxed) {
            return Delivered::Full;
        }
        let mut copies = lock(&self.copies);
        copies.gaps += u64::from(copy.has_gap);
        let Some(kept) = copies.copies.get_mut(room) else {
            return Delivered::Done;
        };
        let was_begun = std::mem::replace(&mut kept.is_begun, true);
        let before = was_begun.then_some(kept.position);
        kept.position = copy.position;
        kept.texts = copy
            .messages
            .iter()
            .map(|sent| text(&sent.message))
            .collect();
        let excess = kept.texts.len().saturating_sub(kept.messages_max);
        kept.texts.drain(..excess);
        let texts = copy
            .messages
            .iter()
            .map(|sent| text(&sent.message))
            .collect();
        copies.log(
            room,
            Seen::Begun {
                before,
                position: copy.position,
                texts,
                has_gap: copy.has_gap,
            },
        );
        Delivered::Done
    }

    fn keep(
        &self,
        room: &str,
        id: HistoryId,
        sent: &SentMessage,
        _: Option<RemoteConnection>,
    ) -> Delivered {
        let mut copies = lock(&self.copies);
        let Some(kept) = copies.copies.get_mut(room) else {
            return Delivered::Done;
        };
        if HistoryId::new(kept.position.epoch(), kept.position.sequence() + 1) != id {
            return Delivered::Done;
        }
        if self.full.load(Relaxed) {
            return Delivered::Full;
        }
        kept.position = id;
        let text = text(&sent.message);
        kept.texts.push_back(text.clone());
        if kept.texts.len() > kept.messages_max {
            kept.texts.pop_front();
        }
        copies.log(room, Seen::Kept { id, text });
        Delivered::Done
    }

    fn tell_silence(&self, _: &str, _: bool) -> Delivered {
        match self.full.load(Relaxed) {
            true => Delivered::Full,
            false => Delivered::Done,
        }
    }

    fn drop_idle_copies(&self, _: Duration) {}

    fn act(&self, to: RemoteConnection, action: DirectAction<'_>) -> Delivered {
        if self.full.load(Relaxed) {
            return Delivered::Full;
        }
        lock(&self.delivered).push(format!("{} {action:?}", to.slot));
        Delivered::Done
    }

    fn close_user(&self, user: &str, code: u16, reason: &str) -> Delivered {
        if self.full.load(Relaxed) {
            return Delivered::Full;
        }
        lock(&self.delivered).push(format!("close {user} {code} {reason}"));
        Delivered::Done
    }

    /// The length of the name stands for the number of members.
    fn on_presence(&self, event: NodeEvent<'_>) -> Result<(), BadUpdate> {
        let heard = match event {
            NodeEvent::Subscribed { room } => PresenceHeard::Subscribed(room.to_owned()),
            NodeEvent::Update {
                room,
                node,
                is_gone,
                update,
            } => PresenceHeard::Update(room.to_owned(), node, is_gone, update.to_vec()),
            NodeEvent::AskedForAll => PresenceHeard::AskedForAll,
            NodeEvent::Gone(node) => PresenceHeard::Gone(node),
            NodeEvent::New(node) => PresenceHeard::New(node),
        };
        lock(&self.presence).push(heard);
        Ok(())
    }

    fn count(&self, room: Option<&str>) -> u64 {
        room.map_or(1_000, |room| room.len() as u64)
    }
}
