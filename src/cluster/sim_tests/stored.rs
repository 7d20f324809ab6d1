//! The histories of a broker server in the process, as the scripts of `redis` keep them, and what it has done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::cluster::broker::{Append, Appended, History, Read};
use crate::cluster::wire::{Content, Envelope};
use crate::history_id::HistoryId;

/// What happens to the data of a server when it restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    /// It is persistent.
    KeepsData,
    /// It is not persistent.
    LosesData,
    /// A replica takes its place, which lacks as many of the newest messages of each history.
    LosesNewest(usize),
}

/// What is deleted while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    /// The position of one room, as by eviction.
    Position,
    /// The messages of one room, as by eviction.
    Messages,
    /// Both of one room, as by their expiry.
    Room,
    /// Everything, the counters of the nodes included.
    All,
}

/// Why a server refuses appends and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It executes a long script, and refuses them before it looks at them.
    Busy,
    /// It lacks memory, and refuses only what has to write.
    Memory,
}

/// The histories of one server.
#[derive(Default)]
pub(super) struct Stored {
    rooms: HashMap<Arc<str>, StoredRoom>,
    /// The counter of the last append of each node.
    counters: HashMap<u32, u64>,
    pub(super) done: Done,
}

/// Each of the two is deleted without the other.
#[derive(Default)]
struct StoredRoom {
    position: Option<Position>,
    messages: VecDeque<Bytes>,
}

#[derive(Clone, Copy)]
struct Position {
    epoch: u64,
    base: u64,
    sequence: u64,
    incarnation: u64,
}

impl Position {
    fn id(&self) -> HistoryId {
        HistoryId::new(self.epoch, self.sequence)
    }
}

/// What a server has ever done. It remembers it over restarts.
#[derive(Default)]
pub(super) struct Done {
    /// The text under each id, also of messages that are no longer kept.
    pub(super) texts: HashMap<(Arc<str>, HistoryId), String>,
    /// The incarnation in which each epoch began.
    pub(super) epochs: HashMap<u64, u64>,
    /// The texts that were appended, and how often.
    pub(super) appended: HashMap<String, usize>,
    /// The appends that had an effect, as nodes and counters: an id, or a conflict.
    pub(super) executed: HashSet<(u32, u64)>,
    /// The appends that were answered with [`Appended::Before`] though they had been refused. A server knows the last
    /// counter only, so it can't tell them from others.
    pub(super) before_after_refusal: HashSet<(u32, u64)>,
    /// The messages without a history that were published, by node.
    pub(super) published: HashMap<u32, u64>,
}

impl Done {
    /// An id never stands for two messages.
    fn names(&mut self, room: &Arc<str>, id: HistoryId, envelope: &Bytes) {
        let (_, text) = text_of(envelope);
        let key = (room.clone(), id);
        let before = self.texts.entry(key).or_insert_with(|| text.clone());
        assert_eq!(*before, text, "{id} of {room} has two contents");
    }

    pub(super) fn has_published(&mut self, envelope: &Bytes) {
        if let Ok(Envelope {
            node,
            content: Content::Message { .. },
            ..
        }) = Envelope::decode(envelope)
        {
            *self.published.entry(node).or_default() += 1;
        }
    }
}

/// Returns the node and the text of a message.
pub(super) fn text_of(envelope: &Bytes) -> (u32, String) {
    match Envelope::decode(envelope) {
        Ok(Envelope {
            node,
            content: Content::Message { payload, .. },
            ..
        }) => {
            let message = payload.to_message();
            (node, message.text().expect("all are texts").to_owned())
        }
        other => panic!("{other:?} is no message"),
    }
}

impl Stored {
    /// Executes an append. `None` if it is refused.
    pub(super) fn append(
        &mut self,
        append: &Append,
        incarnation: u64,
        refusal: Option<Refusal>,
    ) -> Option<Appended> {
        let key = (append.node, append.counter);
        if refusal == Some(Refusal::Busy) {
            return None;
        }
        let last = self.counters.get(&append.node);
        if last.is_some_and(|&last| last >= append.counter) {
            if !self.done.executed.contains(&key) {
                self.done.before_after_refusal.insert(key);
            }
            return Some(Appended::Before);
        }
        if append.needs_counter && last.is_none() {
            return Some(Appended::Unknown);
        }
        if refusal.is_some() {
            return None;
        }
        self.counters.insert(append.node, append.counter);
        self.done.executed.insert(key);
        let room = self.rooms.entry(append.room.clone()).or_default();
        let known = room
            .position
            .filter(|position| position.incarnation == incarnation);
        let mut position = known.unwrap_or_else(|| {
            let room_name = &append.room;
            room.begin(append.new_epoch, incarnation, room_name, &mut self.done)
        });
        let actual = position.id();
        if append.expected.is_some_and(|expected| expected != actual) {
            return Some(Appended::Conflict { position: actual });
        }
        position.sequence += 1;
        room.position = Some(position);
        room.messages.push_back(append.envelope.clone());
        while room.messages.len() > append.messages_max as usize {
            room.messages.pop_front();
        }
        let id = position.id();
        self.done.names(&append.room, id, &append.envelope);
        let (_, text) = text_of(&append.envelope);
        *self.done.appended.entry(text).or_default() += 1;
        Some(Appended::Id(id))
    }

    /// Executes a read. `None` if it is refused.
    pub(super) fn read(
        &mut self,
        read: &Read,
        incarnation: u64,
        refusal: Option<Refusal>,
    ) -> Option<History> {
        if refusal == Some(Refusal::Busy) {
            return None;
        }
        let room = self.rooms.entry(read.room.clone()).or_default();
        let known = room
            .position
            .filter(|position| position.incarnation == incarnation);
        let position = match known {
            Some(position) => position,
            None if refusal.is_some() => return None,
            None => room.begin(read.new_epoch, incarnation, &read.room, &mut self.done),
        };
        let len = room.messages.len() as u64;
        let oldest = position.sequence + 1 - len;
        let first = match read.since {
            Some(since) if since.epoch() == position.epoch => {
                let is_within = (oldest..=position.sequence).contains(&since.sequence());
                if is_within {
                    since.sequence() + 1
                } else {
                    oldest
                }
            }
            _ => oldest,
        };
        let skipped = (first - oldest) as usize;
        Some(History {
            room: read.room.clone(),
            position: position.id(),
            base: position.base,
            first,
            messages: room.messages.iter().skip(skipped).cloned().collect(),
        })
    }

    pub(super) fn restart(&mut self, restart: Restart) {
        match restart {
            Restart::KeepsData => {}
            Restart::LosesData => {
                self.rooms.clear();
                self.counters.clear();
            }
            Restart::LosesNewest(lost) => {
                for room in self.rooms.values_mut() {
                    let len = room.messages.len().saturating_sub(lost);
                    room.messages.truncate(len);
                }
            }
        }
    }

    pub(super) fn delete(&mut self, room: &str, deletion: Deletion) {
        if deletion == Deletion::All {
            self.rooms.clear();
            self.counters.clear();
        }
        let Some(room) = self.rooms.get_mut(room) else {
            return;
        };
        if matches!(deletion, Deletion::Position | Deletion::Room) {
            room.position = None;
        }
        if matches!(deletion, Deletion::Messages | Deletion::Room) {
            room.messages.clear();
        }
    }

    /// Puts bytes that are no envelope in the place of a room's last message, as another program might.
    pub(super) fn spoil_last(&mut self, room: &str) {
        let room = self.rooms.get_mut(room).expect("the room is kept");
        *room.messages.back_mut().expect("a message is kept") = Bytes::from_static(b"?");
    }

    /// Returns the position of a room and the texts of the kept messages up to it.
    pub(super) fn kept(&self, room: &str) -> Option<(HistoryId, Vec<String>)> {
        let room = self.rooms.get(room)?;
        let texts = room.messages.iter().map(|envelope| text_of(envelope).1);
        Some((room.position?.id(), texts.collect()))
    }
}

impl StoredRoom {
    /// Begins an epoch with the messages that are still there.
    fn begin(
        &mut self,
        epoch: u64,
        incarnation: u64,
        name: &Arc<str>,
        done: &mut Done,
    ) -> Position {
        let base = self.messages.len() as u64;
        let position = Position {
            epoch,
            base,
            sequence: base,
            incarnation,
        };
        self.position = Some(position);
        let began = done.epochs.insert(epoch, incarnation);
        assert_eq!(began, None, "the epoch {epoch:x} of {name} begins again");
        for (sequence, envelope) in (1..).zip(&self.messages) {
            done.names(name, HistoryId::new(epoch, sequence), envelope);
        }
        position
    }
}
