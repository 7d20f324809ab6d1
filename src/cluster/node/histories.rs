//! Rooms with a history: reading them, and keeping this node's copies complete.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Action, Node, Published, RoomState};
use crate::cluster::broker::{Command, History, READ_SHARED_BYTES_MAX, Read, Refused};
use crate::cluster::members::CopyBeginning;
use crate::cluster::parked::Arrived;
use crate::cluster::replica::{Gap, OnHistory, OnMessage};
use crate::cluster::wire::{Content, Envelope, Payload, RemoteConnection};
use crate::history_id::{HistoryId, random_epoch};
use crate::message::SentMessage;
use crate::report::{Limited, limited};

/// The most bytes of histories that are being read from one server, or one history: less than the output of a subscriber
/// that a server keeps before it closes the connection (`client-output-buffer-limit pubsub`).
const READ_BYTES_MAX: usize = 16 << 20;
/// The most reads that are unanswered, and those of one command. A server serves nobody else while it executes one.
const READS_MAX: usize = 512;
const READS_PER_COMMAND: usize = 64;
/// How long after a refused read the node tries again.
const READ_AGAIN_INTERVAL: Duration = Duration::from_secs(1);
/// How often histories are read only to keep them from expiring.
const REFRESH_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
/// How long a server has to be unreachable until the members of its rooms are told.
const SILENCE_TOLD_AFTER: Duration = Duration::from_secs(1);
/// For how long this node keeps the copy of a history whose room has no members, and how often it looks for such copies.
const COPY_IDLE_MAX: Duration = Duration::from_secs(60);
const COPY_IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// Reads of histories from one server.
#[derive(Default)]
pub(super) struct Reads {
    /// The rooms that wait to be read.
    queued: VecDeque<Arc<str>>,
    /// Those that were too long to be read with others. Each is read by a command of its own.
    postponed: VecDeque<Arc<str>>,
    /// Rooms whose read was refused, and when they are read again.
    refused: VecDeque<(Instant, Arc<str>)>,
    /// The number of unanswered reads, and about the most bytes of the answers to their commands.
    unanswered: usize,
    bytes: usize,
}

impl Reads {
    pub(super) fn disconnected(&mut self) {
        *self = Self::default();
    }

    /// Where the next room of a command comes from.
    fn queue(&mut self, is_first: bool) -> &mut VecDeque<Arc<str>> {
        match is_first && !self.postponed.is_empty() {
            true => &mut self.postponed,
            false => &mut self.queued,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.unanswered == 0
            || (self.unanswered < READS_MAX && self.bytes.saturating_add(bytes) <= READ_BYTES_MAX)
    }

    fn answered(&mut self, bytes: usize) {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// When a refused read is tried again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.refused.front().map(|&(at, _)| at)
    }
}

/// A message of a room with a history, and the member that must not receive it.
struct Decoded {
    sent: SentMessage,
    except: Option<RemoteConnection>,
}

impl Node {
    /// Queues a room to be read.
    pub(super) fn queue_read(&mut self, at: usize, room: Arc<str>) {
        self.servers[at].reads.queued.push_back(room);
    }

    /// Sends as many of the queued reads as the server may have at once. Called at the end of a turn, so that one command reads
    /// several rooms.
    fn send_reads(&mut self, at: usize, actions: &mut Vec<Action>) {
        loop {
            let mut reads = Vec::new();
            // A long history leaves no room for others.
            let reads_max = match self.servers[at].reads.postponed.is_empty() {
                true => READS_PER_COMMAND,
                false => 1,
            };
            while reads.len() < reads_max
                && let Some(read) = self.next_read(at, reads.is_empty())
            {
                reads.push(read);
            }
            if reads.is_empty() {
                return;
            }
            actions.push(Action::Command(at, Command::Read(reads)));
        }
    }

    /// Takes the next of the queued reads, if the server may have a further one.
    fn next_read(&mut self, at: usize, is_first: bool) -> Option<Read> {
        let server = &mut self.servers[at];
        server.incarnation.as_ref()?;
        loop {
            let reads = &mut server.reads;
            let name = reads.queue(is_first).front()?;
            let room = self.rooms.get_mut(name);
            let replica = room.and_then(|room| room.replica.as_mut());
            let bytes = match &replica {
                // The others are answered only as far as they fit into this.
                Some(replica) if is_first => replica.read_bytes_max.max(READ_SHARED_BYTES_MAX),
                _ => 0,
            };
            if !reads.has_room(bytes) {
                return None;
            }
            let name = reads.queue(is_first).pop_front()?;
            let Some(replica) = replica else {
                continue;
            };
            let Some(since) = replica.begin_read() else {
                continue;
            };
            let extends = std::mem::take(&mut replica.extends);
            server.reads.unanswered += 1;
            server.reads.bytes += bytes;
            let room = name.clone();
            let published = Published::Read { room, bytes };
            server.sent(published, self.now);
            return Some(Read {
                room: name,
                since,
                new_epoch: random_epoch(),
                extends,
            });
        }
    }

    /// Handles that a room was too long to be read with others.
    pub(super) fn read_postponed(&mut self, at: usize, room: Arc<str>, bytes: usize) {
        let reads = &mut self.servers[at].reads;
        reads.answered(bytes);
        let state = self.rooms.get_mut(&room);
        if let Some(replica) = state.and_then(|state| state.replica.as_mut())
            && replica.read_again()
        {
            reads.postponed.push_back(room);
        }
    }

    /// Handles the answer to a read of a room.
    pub(super) fn on_history(&mut self, at: usize, history: &History, bytes: usize) {
        self.servers[at].reads.answered(bytes);
        self.counters.history_reads.add(1);
        let incarnation = self.servers[at].incarnations;
        let name = history.room.clone();
        let room = self.rooms.get_mut(&name);
        if let Some(replica) = room.and_then(|room| room.replica.as_mut()) {
            match replica.on_history(history, incarnation) {
                OnHistory::ReadAgain => self.queue_read(at, name),
                OnHistory::Continue { from } => self.continue_copy(at, history, from),
                OnHistory::Begin { from, gap } => self.begin_copy(at, history, from, gap),
            }
        }
    }

    /// Begins this node's copy anew, and delivers the messages from a sequence on.
    fn begin_copy(&mut self, at: usize, history: &History, from: u64, gap: Option<Gap>) {
        let known = from.saturating_sub(history.first) as usize;
        let mut messages = Vec::with_capacity(known);
        for envelope in history.messages.iter().take(known) {
            match self.decode(envelope) {
                Some(decoded) => messages.push(decoded.sent),
                // The copy has no gaps.
                None => messages.clear(),
            }
        }
        let position = HistoryId::new(history.position.epoch(), from - 1);
        let copy = CopyBeginning {
            position,
            messages,
            has_gap: gap.is_some(),
        };
        let begun = Arrived::Begun {
            room: history.room.clone(),
            copy: Box::new(copy),
        };
        if !self.deliver_kept(&history.room, position, begun) {
            return;
        }
        let incarnation = self.servers[at].incarnations;
        let room = self.rooms.get_mut(&history.room);
        if let Some(replica) = room.and_then(|room| room.replica.as_mut()) {
            replica.begun(incarnation);
        }
        match gap {
            Some(Gap::Lost) => self.counters.gaps.add(1),
            Some(Gap::ServerChanged) => self.counters.gaps_server_changed.add(1),
            None => {}
        }
        self.continue_copy(at, history, from);
    }

    /// Delivers the messages of a history from a sequence on. Then the copy is complete.
    fn continue_copy(&mut self, at: usize, history: &History, from: u64) {
        let skipped = from.saturating_sub(history.first) as usize;
        for (envelope, sequence) in history.messages.iter().skip(skipped).zip(from..) {
            let id = HistoryId::new(history.position.epoch(), sequence);
            if !self.keep(&history.room, id, envelope) {
                return;
            }
        }
        let connection = self.servers[at].connections;
        let Some(room) = self.rooms.get_mut(&history.room) else {
            return;
        };
        let mut was_silent = false;
        if let Some(replica) = &mut room.replica {
            was_silent = std::mem::take(&mut replica.is_silent);
        }
        let live = Arrived::Live {
            interest: room.interest.clone(),
            server: self.shared[at].clone(),
            connection,
        };
        if !self.parked.deliver(live, &*self.members) {
            self.fall_behind(&history.room);
        }
        if was_silent {
            self.tell_silence(history.room.clone(), false);
        }
    }

    /// Drops the copies whose rooms have had no members for some time.
    pub(super) fn drop_idle_copies(&mut self, now: Instant) {
        if now.saturating_duration_since(self.copies_dropped) >= COPY_IDLE_INTERVAL {
            self.copies_dropped = now;
            self.members.drop_idle_copies(COPY_IDLE_MAX);
        }
    }

    /// Tells the members of rooms that are silent, because their server has been unreachable for some time.
    pub(super) fn tell_silences(&mut self, now: Instant) {
        for at in 0..self.servers.len() {
            let server = &mut self.servers[at];
            if server.incarnation.is_some()
                || server.silence_told
                || now.saturating_duration_since(server.down_since) < SILENCE_TOLD_AFTER
            {
                continue;
            }
            server.silence_told = true;
            let mut silent = Vec::new();
            for (name, room) in &mut self.rooms {
                if room.interest.server == at
                    && let Some(replica) = &mut room.replica
                {
                    replica.is_silent = true;
                    silent.push(name.clone());
                }
            }
            silent
                .into_iter()
                .for_each(|name| self.tell_silence(name, true));
        }
    }

    fn tell_silence(&mut self, room: Arc<str>, is_silent: bool) {
        let told = Arrived::Silence { room, is_silent };
        // If too much waits for the members, they miss a hint only.
        let _ = self.parked.deliver(told, &*self.members);
    }

    /// Handles a message of a room with a history, which another node has sent or this one. Returns false if the room has
    /// none on this node.
    pub(super) fn kept_message(
        &mut self,
        name: &Arc<str>,
        id: HistoryId,
        envelope: &Bytes,
    ) -> bool {
        let Some(room) = self.rooms.get_mut(name) else {
            return true;
        };
        let at = room.interest.server;
        let Some(replica) = &mut room.replica else {
            return false;
        };
        match replica.on_message(id) {
            OnMessage::Skip => {}
            OnMessage::Deliver => {
                self.keep(name, id, envelope);
            }
            OnMessage::Read => self.queue_read(at, name.clone()),
        }
        true
    }

    /// Delivers a message that follows the position of this node's copy. Returns whether it was delivered or parked.
    fn keep(&mut self, name: &Arc<str>, id: HistoryId, envelope: &Bytes) -> bool {
        let decoded = self.decode(envelope);
        let has_gap = decoded.is_none();
        let arrived = match decoded {
            Some(Decoded { sent, except }) => Arrived::Kept {
                room: name.clone(),
                id,
                sent,
                except,
            },
            // The members miss a message that can't be decoded.
            None => Arrived::Begun {
                room: name.clone(),
                copy: Box::new(CopyBeginning {
                    position: id,
                    messages: Vec::new(),
                    has_gap,
                }),
            },
        };
        let is_kept = self.deliver_kept(name, id, arrived);
        if is_kept && has_gap {
            self.counters.gaps.add(1);
        }
        is_kept
    }

    /// Delivers or parks what brings this node's copy to a position.
    fn deliver_kept(&mut self, name: &Arc<str>, position: HistoryId, arrived: Arrived) -> bool {
        if !self.parked.deliver(arrived, &*self.members) {
            self.fall_behind(name);
            return false;
        }
        let room = self.rooms.get_mut(name);
        if let Some(replica) = room.and_then(|room| room.replica.as_mut()) {
            replica.advance(position);
        }
        true
    }

    fn fall_behind(&mut self, name: &Arc<str>) {
        let room = self.rooms.get_mut(name);
        if let Some(replica) = room.and_then(|room| room.replica.as_mut()) {
            replica.fall_behind();
            self.behind.push(name.clone());
        }
    }

    /// Decodes a message of a history. Counts it if it can't be decoded.
    fn decode(&self, envelope: &[u8]) -> Option<Decoded> {
        match Envelope::decode(envelope) {
            Ok(Envelope {
                node,
                content:
                    Content::Message {
                        payload,
                        except,
                        sent_at,
                    },
                ..
            }) => {
                if node != self.id {
                    self.counters.received.add(1);
                }
                Some(Decoded {
                    sent: SentMessage {
                        message: Payload::to_message(payload),
                        sent_at,
                    },
                    except,
                })
            }
            Ok(_) => {
                self.is_bad(&"it is not for this channel");
                None
            }
            Err(bad) => {
                self.is_bad(&bad);
                None
            }
        }
    }

    /// A read was refused.
    pub(super) fn read_refused(
        &mut self,
        at: usize,
        name: Arc<str>,
        bytes: usize,
        refused: &Refused,
        now: Instant,
    ) {
        /// It repeats while the broker refuses.
        static REFUSED: Limited = Limited::new();
        let server = &mut self.servers[at];
        server.reads.answered(bytes);
        let again = now + READ_AGAIN_INTERVAL;
        server.reads.refused.push_back((again, name.clone()));
        if let Some(room) = self.rooms.get(&name) {
            self.shared[at].status.refused(&room.interest);
        }
        limited!(
            REFUSED,
            warning,
            "the broker has refused to read the history of a room, which can't be joined on this node; it tries again every \
             second: {}",
            refused.error
        );
    }

    /// Reads the histories whose read was refused some time ago, that lack messages, or that the broker might drop.
    pub(super) fn read_on_time(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for at in 0..self.servers.len() {
            let refused = &mut self.servers[at].reads.refused;
            let mut due = Vec::new();
            while refused.front().is_some_and(|&(at, _)| at <= now) {
                due.extend(refused.pop_front().map(|(_, name)| name));
            }
            due.into_iter().for_each(|name| self.read_again(name));
        }
        if self.parked.is_empty() && !self.behind.is_empty() {
            let behind = std::mem::take(&mut self.behind);
            behind.into_iter().for_each(|name| self.read_again(name));
        }
        if now.saturating_duration_since(self.refreshed) >= REFRESH_INTERVAL {
            self.refreshed = now;
            let is_live = |room: &RoomState| {
                room.replica
                    .as_ref()
                    .is_some_and(|replica| replica.is_live())
            };
            let rooms = self.rooms.iter().filter(|(_, room)| is_live(room));
            let live: Vec<_> = rooms.map(|(name, _)| name.clone()).collect();
            for name in live {
                let room = self.rooms.get_mut(&name);
                if let Some(replica) = room.and_then(|room| room.replica.as_mut()) {
                    replica.extends = true;
                }
                self.read_again(name);
            }
        }
        for at in 0..self.servers.len() {
            self.send_reads(at, actions);
        }
    }

    fn read_again(&mut self, name: Arc<str>) {
        if let Some(room) = self.rooms.get_mut(&name)
            && let Some(replica) = &mut room.replica
            && replica.read_again()
        {
            let at = room.interest.server;
            self.queue_read(at, name);
        }
    }
}
