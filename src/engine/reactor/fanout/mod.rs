//! Fan-out: from the mailbox to the outboxes, for messages to one connection, to a room, and to everyone.
//!
//! Broadcasts of a turn are batched: those for the same audience are gathered, and each member gets them with one write
//! when the turn ends, or earlier when there is enough. A lone broadcast never waits for others.
//!
//! Broadcasts are numbered in order, and a connection knows the first number that it has not been sent (`seen`). A
//! message for it alone goes behind its share of the broadcasts before, and a member of several rooms gets their
//! messages in order: its share of several batches is merged by number.
//!
//! Under [`SlowConsumer::Pace`] nothing is delivered while a member is short of room (`congested`); commands then stay
//! in the mailbox, and producers wait (backpressure).

mod enqueue;
mod headroom;
mod keyed;
mod publish;
mod send_budget;
#[cfg(feature = "deflate")]
pub(crate) mod shared_compression;
mod write_batch;

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use bytes::Bytes;

#[cfg(feature = "deflate")]
use crate::engine::model::command::EitherForm;
use crate::engine::model::command::{Command, Form};
use crate::engine::model::settings::Settings;
use crate::engine::parts::batch::{ALONE_FROM_BYTES, Audience, Batch, CompressedFrame, Spare};
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::{ConflationKey, Key};
use crate::engine::parts::outbox::GATHER_BYTES_MAX;
use crate::engine::parts::slot_set::SlotSet;
use crate::engine::parts::usage_index::UsageIndex;
#[cfg(feature = "deflate")]
use crate::engine::reactor::fanout::shared_compression::SharedCompression;
use crate::engine::reactor::rooms::LocalRooms;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{ConnCx, Core, ShardCx, Stage};
use crate::limits::SlowConsumer;
use crate::protocol::encode::HEADER_BYTES_MAX;
use crate::sync::lock;
use crate::transport::ShardTransport;

/// If there are more batches than this, those of a connection are looked up by its rooms.
const FEW_BATCHES: usize = 8;

pub(crate) struct Fanout {
    /// Commands from the mailbox that are not delivered yet.
    pub(crate) commands: VecDeque<Command>,
    /// Broadcasts of this turn that members have yet to be sent, each from its `seen` on.
    batches: Vec<Batch>,
    /// The length of all batches.
    batches_bytes: usize,
    batches_bytes_max: usize,
    /// The number of batches with keyed messages.
    keyed_batches: usize,
    /// The index of the batch for everyone, if there is one.
    everyone_batch: Option<u32>,
    /// Memory of former batches.
    spare: Spare,
    /// The number of broadcasts so far, to any audience.
    broadcasts: u64,
    /// The recipients of broadcasts to everyone.
    members: SlotSet,
    /// Event streams. They do not receive broadcasts to everyone directly, but have outboxes too.
    streams: SlotSet,
    /// Event streams whose ids name several positions, so that each gets bytes of its own.
    pub(crate) joining_ids: SlotSet,
    pub(crate) rooms: LocalRooms,
    #[cfg(feature = "deflate")]
    pub(crate) shared_compression: SharedCompression,
    /// Memory for the slots of a room's members during a write.
    slots: Vec<u32>,
    /// Whether producers wait for congested members (`SlowConsumer::Pace`).
    paces: bool,
    /// Since when producers wait for congested members, or since the last count.
    paced_since: Option<Instant>,
    /// The number of members whose outbox has no room for `need` bytes.
    pub(crate) congested: usize,
    need: usize,
    need_usual: usize,
    /// A connection that needs more room, for a message to it alone.
    need_of_one: Option<(Key, usize)>,
    /// The bytes that are held for clients and not shared: messages to single connections, and responses.
    unshared_bytes: usize,
    unshared_bytes_max: usize,
    /// Those of them that are held for clients whose socket took nothing at the last write.
    pub(crate) blocked: UsageIndex,
    /// The number of this turn's dirty connections whose write was tried already.
    tried: usize,
    /// The number of commands left in the mailbox as of the last look, and the number delivered.
    pushed: u64,
    delivered: u64,
    /// Connections whose end waits for commands that were left before it.
    waiting: Vec<Key>,
    /// Messages that were due to a recipient. Each must be written, or counted as dropped.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) due: u64,
}

impl Fanout {
    pub(crate) fn new(settings: &Settings) -> Self {
        let half = settings.limits.outbox_bytes_max / 2;
        Self {
            commands: VecDeque::new(),
            batches: Vec::new(),
            batches_bytes: 0,
            // Half of each outbox is kept free, so a paced member has room for all batches.
            batches_bytes_max: GATHER_BYTES_MAX.min(half),
            keyed_batches: 0,
            everyone_batch: None,
            spare: Spare::default(),
            broadcasts: 0,
            members: SlotSet::default(),
            streams: SlotSet::default(),
            joining_ids: SlotSet::default(),
            rooms: LocalRooms::default(),
            #[cfg(feature = "deflate")]
            shared_compression: SharedCompression::new(settings.compression.as_ref()),
            slots: Vec::new(),
            paces: matches!(settings.slow_consumer, SlowConsumer::Pace { .. }),
            paced_since: None,
            unshared_bytes: 0,
            unshared_bytes_max: unshared_bytes_max(settings),
            blocked: UsageIndex::default(),
            tried: 0,
            congested: 0,
            need: half,
            need_usual: half,
            need_of_one: None,
            pushed: 0,
            delivered: 0,
            waiting: Vec::new(),
            #[cfg(all(any(test, fuzzing), not(loom)))]
            due: 0,
        }
    }

    /// The connections that are sent this encoding.
    fn all_of(&mut self, encoding: Encoding) -> &mut SlotSet {
        match encoding {
            Encoding::Frames => &mut self.members,
            Encoding::Events => &mut self.streams,
        }
    }

    /// The number of open connections.
    pub(crate) fn open_len(&self) -> usize {
        self.members.len() + self.streams.len()
    }

    /// The slot of one of the open connections. Event streams come last.
    pub(crate) fn open_slot(&self, nth: usize) -> Option<u32> {
        let sets = [&self.members, &self.streams].into_iter();
        let slots = sets
            .map(SlotSet::as_slice)
            .find(|slots| !slots.is_empty())?;
        Some(slots[nth % slots.len()])
    }

    fn is_paced(&self) -> bool {
        self.paces && self.congested > 0
    }

    /// Whether to empty the mailbox.
    pub(crate) fn wants_commands(&self) -> bool {
        self.commands.is_empty() && !self.is_paced()
    }

    pub(crate) fn taken(&mut self, pushed: u64) {
        self.pushed = pushed;
    }

    /// A mark behind all commands that were left by now.
    pub(crate) fn mark(&self) -> u64 {
        self.pushed
    }

    pub(crate) fn has_delivered(&self, mark: u64) -> bool {
        self.delivered >= mark
    }

    /// Whether every command that was left by the last look is delivered.
    pub(crate) fn is_empty(&self) -> bool {
        self.has_delivered(self.pushed)
    }

    /// Makes the end of a connection wait for earlier commands.
    pub(crate) fn wait(&mut self, key: Key) {
        self.waiting.push(key);
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn unshared_bytes(&self) -> usize {
        self.unshared_bytes
    }

    /// Updates the count of congested members after an outbox has changed. Returns whether this one is congested.
    pub(crate) fn note_fill(&mut self, ws: &mut WebSocket, bytes_max: usize) -> bool {
        let bytes = ws.outbox.live_bytes();
        let need = match self.need_of_one {
            Some((key, need)) if key == ws.session.id.key() => need.max(self.need),
            _ => self.need,
        };
        let congested = ws.is_open() && bytes > 0 && bytes.saturating_add(need) > bytes_max;
        if congested != ws.congested {
            ws.congested = congested;
            if congested {
                self.congested += 1;
            } else {
                self.congested -= 1;
            }
        }
        congested
    }

    /// Whether waiting commands can be delivered now.
    pub(crate) fn can_take_commands(&self) -> bool {
        !self.commands.is_empty() && !self.is_paced()
    }

    fn audience_len(&self, audience: Audience) -> usize {
        match audience {
            Audience::Everyone => self.members.len(),
            Audience::Room(room) => self.rooms.len(room),
        }
    }

    /// The batches whose audience a connection is in.
    fn batches_of(&self, ws: &WebSocket) -> Vec<u32> {
        let key = ws.session.id.key();
        let for_everyone = self.everyone_batch.filter(|_| ws.is_of_everyone());
        let mut batches: Vec<u32> = for_everyone.into_iter().collect();
        if self.batches.len() <= FEW_BATCHES {
            let in_room = |batch: &Batch| match batch.audience {
                Audience::Everyone => false,
                Audience::Room(room) => self.rooms.contains(room, key),
            };
            let with = (0..).zip(&self.batches).filter(|(_, batch)| in_room(batch));
            batches.extend(with.map(|(index, _)| index));
        } else {
            batches.extend(self.rooms.with_batches(&ws.session));
        }
        batches
    }

    /// The number of messages in batches that a connection has yet to be sent.
    pub(crate) fn pending_messages(&self, ws: &WebSocket) -> u64 {
        if self.batches.is_empty() {
            return 0;
        }
        let messages = |index: u32| self.batches[index as usize].messages_from(ws.seen);
        self.batches_of(ws)
            .into_iter()
            .map(|index| messages(index) as u64)
            .sum()
    }

    /// Takes the messages of all batches that a connection has yet to be sent: their frames in order, and their number.
    #[inline]
    fn take_share(&mut self, ws: &mut WebSocket) -> Option<(Bytes, u32)> {
        let seen = std::mem::replace(&mut ws.seen, self.broadcasts);
        if self.batches.is_empty() {
            return None;
        }
        let batches = self.batches_of(ws);
        #[cfg(feature = "deflate")]
        for &index in &batches {
            self.batches[index as usize].note_early(seen, ws.compression);
        }
        self.gather_share(ws, seen, &batches)
    }

    /// The length of the connection's share of all batches, if any of it is compressed.
    #[cfg(feature = "deflate")]
    fn compressed_share_len(&self, ws: &WebSocket) -> Option<usize> {
        let batches = self.batches_of(ws);
        let batches = || batches.iter().map(|&index| &self.batches[index as usize]);
        batches()
            .any(|batch| batch.is_compressed_for(ws.compression))
            .then(|| {
                let frames = batches().flat_map(|batch| batch.from(ws.seen, ws.compression));
                frames.map(|(_, frame)| frame.len()).sum()
            })
    }

    fn gather_share(&self, ws: &WebSocket, seen: u64, batches: &[u32]) -> Option<(Bytes, u32)> {
        let batches = batches.iter().map(|&index| &self.batches[index as usize]);
        let mut frames: Vec<(u64, &[u8])> = batches
            .flat_map(|batch| batch.from(seen, ws.compression))
            .collect();
        if frames.is_empty() {
            return None;
        }
        frames.sort_unstable_by_key(|&(number, _)| number);
        let mut piece = Vec::with_capacity(frames.iter().map(|(_, frame)| frame.len()).sum());
        frames
            .iter()
            .for_each(|(_, frame)| piece.extend_from_slice(frame));
        Some((piece.into(), frames.len() as u32))
    }

    /// The connections that are in the audiences of several batches.
    fn shared_slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = Vec::new();
        for batch in &self.batches {
            match batch.audience {
                Audience::Everyone => slots.extend_from_slice(self.members.as_slice()),
                Audience::Room(room) => slots.extend(self.rooms.members(room)),
            }
        }
        slots.sort_unstable();
        let mut shared: Vec<u32> = slots
            .windows(2)
            .filter(|two| two[0] == two[1])
            .map(|two| two[0])
            .collect();
        shared.dedup();
        shared
    }

    /// The members of an audience that need bytes of their own, since the ids of their events name several positions.
    fn joining_ids_in(&self, audience: Audience) -> impl Iterator<Item = u32> {
        // Event streams receive broadcasts to everyone through a room.
        let room = match audience {
            Audience::Room(room) if !self.joining_ids.is_empty() => Some(room),
            _ => None,
        };
        room.into_iter()
            .flat_map(|room| self.rooms.members(room))
            .filter(|&slot| self.joining_ids.contains(slot))
    }

    /// The connections that get their share of all batches before these are sent: those in several audiences, whose shares
    /// are merged in order, and those that need bytes of their own.
    fn served_first(&self) -> Vec<u32> {
        let mut slots = match self.batches.len() {
            0 | 1 => Vec::new(),
            _ => self.shared_slots(),
        };
        let audiences = self.batches.iter().map(|batch| batch.audience);
        slots.extend(audiences.flat_map(|audience| self.joining_ids_in(audience)));
        slots
    }

    /// Takes the last batch. Its audience's next broadcast begins a new one.
    fn pop_batch(&mut self) -> Option<Batch> {
        let batch = self.batches.pop()?;
        match batch.audience {
            Audience::Everyone => self.everyone_batch = None,
            Audience::Room(room) => {
                if let Some(room) = self.rooms.get_mut(room) {
                    room.batch = None;
                }
            }
        }
        self.batches_bytes -= batch.len();
        self.keyed_batches -= usize::from(batch.is_keyed());
        Some(batch)
    }

    /// Appends a frame to its audience's batch.
    fn push_to_batch(
        &mut self,
        audience: Audience,
        number: u64,
        frame: Bytes,
        compressed: Option<CompressedFrame>,
        key: Option<ConflationKey>,
    ) {
        self.batches_bytes += frame.len();
        let index = match audience {
            Audience::Everyone => Some(&mut self.everyone_batch),
            Audience::Room(room) => self.rooms.get_mut(room).map(|room| &mut room.batch),
        };
        match index {
            Some(&mut Some(index)) => {
                let batch = &mut self.batches[index as usize];
                self.keyed_batches += usize::from(key.is_some() && !batch.is_keyed());
                batch.push(number, &frame, compressed, key, &mut self.spare);
            }
            Some(none) => {
                *none = Some(self.batches.len() as u32);
                self.keyed_batches += usize::from(key.is_some());
                self.batches
                    .push(Batch::new(audience, number, frame, compressed, key));
            }
            None => debug_assert!(false, "a room without members has no audience"),
        }
    }
}

/// The shard's share of the limit, but room for one message of any legal size.
fn unshared_bytes_max(settings: &Settings) -> usize {
    let limits = &settings.limits;
    (limits.outboxes_bytes_max / settings.shards.max(1))
        .max(limits.message_bytes_max.saturating_add(HEADER_BYTES_MAX))
}

impl<T: ShardTransport> ShardCx<T> {
    /// Counts the time that producers have waited for congested members.
    pub(crate) fn count_pace(&mut self) {
        let since = self.fanout.is_paced().then_some(self.now);
        if let Some(before) = std::mem::replace(&mut self.fanout.paced_since, since) {
            self.counters()
                .paced
                .add_time(self.now.saturating_duration_since(before));
        }
    }

    /// Counts the messages of a replay whose client has ended.
    pub(crate) fn lose_replay(&mut self, messages: u64) {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.fanout.due += messages;
        }
        self.counters().dropped_closed.add(messages);
    }
}

impl<T: ShardTransport> Core<T> {
    /// Delivers commands until all are delivered, or until producers must wait.
    pub(crate) fn deliver_commands(&mut self) {
        while !self.cx.fanout.commands.is_empty() {
            if self.cx.fanout.paces && !self.has_headroom_for_next() {
                return;
            }
            if let Some(command) = self.cx.fanout.commands.pop_front() {
                self.cx.fanout.delivered += 1;
                self.deliver(command);
            }
        }
        if self.cx.fanout.paces {
            self.need_headroom(0);
            self.need_headroom_of_one(None);
        }
        for key in std::mem::take(&mut self.cx.fanout.waiting) {
            self.with_ws(key, |ws, cx| ws.advance(cx));
        }
    }

    fn deliver(&mut self, command: Command) {
        match command {
            Command::Broadcast(frame) => {
                self.broadcast(Audience::Everyone, frame, Form::Any, None, None);
            }
            #[cfg(feature = "deflate")]
            Command::SendEither(either) => self.send_either(*either),
            Command::Publish(publication) => self.publish(*publication),
            Command::Join(joining) => self.join_room(*joining),
            Command::Leave(key, room) => self.leave_room(key, room),
            Command::Subscribe(subscribing) => self.begin_stream(*subscribing),
            Command::Send(key, frame) => {
                let (frames, messages) = self.cx.fanout.with_next_sends(key, frame);
                self.send(key, frames, messages);
            }
            Command::Close(key, code, reason) => {
                self.with_ws(key, |ws, cx| ws.close(cx, code, &reason));
            }
        }
    }

    /// Sends frames to one connection.
    fn send(&mut self, key: Key, frames: Bytes, messages: u32) {
        let mut frames = Some(frames);
        let found = self.with(key, |stage, cx| {
            if let Stage::WebSocket(ws) = stage
                && let Some(frames) = frames.take()
            {
                ws.send(cx, frames, messages);
            }
        });
        let dropped = u64::from(messages);
        if found.is_none() {
            self.cx.counters().dropped_no_recipient.add(dropped);
        } else if frames.is_some() {
            #[cfg(all(any(test, fuzzing), not(loom)))]
            {
                self.cx.fanout.due += dropped;
            }
            self.cx.counters().dropped_closed.add(dropped);
        }
        self.enforce_send_budget();
    }

    /// Sends one connection a message that was compressed for it, unless the connection follows an audience: it would have
    /// to leave the epoch, which costs more than a message of a few KiB is worth.
    #[cfg(feature = "deflate")]
    fn send_either(&mut self, either: EitherForm) {
        let EitherForm {
            to,
            plain,
            compressed,
        } = either;
        let takes_compressed = self.with_ws(to, |ws, _| {
            let takes_compressed =
                ws.compression.epoch().is_none() || plain.len() >= ALONE_FROM_BYTES;
            if takes_compressed {
                ws.compression.leave_epoch();
            }
            takes_compressed && ws.is_open()
        });
        if takes_compressed == Some(true) {
            let counters = self.cx.counters();
            counters
                .compressed_bytes_out
                .add_alone(compressed.len() as u64);
            counters
                .compressed_plain_bytes
                .add_alone(plain.len() as u64);
            self.send(to, compressed, 1);
        } else {
            self.send(to, plain, 1);
        }
    }

    /// Queues a frame for an audience, to be sent when the turn ends.
    fn broadcast(
        &mut self,
        audience: Audience,
        frame: Bytes,
        form: Form,
        key: Option<ConflationKey>,
        except: Option<Key>,
    ) {
        let max = self.cx.fanout.batches_bytes_max;
        // Only a batch leaves out those that had their share before.
        let stands_alone = frame.len() >= ALONE_FROM_BYTES.min(max)
            && self.cx.fanout.joining_ids_in(audience).next().is_none();
        if stands_alone || self.cx.fanout.batches_bytes + frame.len() > max {
            self.flush_batches();
        }
        #[cfg(feature = "deflate")]
        let compressed = match form {
            // It would begin a history for a room that may never have a member again.
            _ if self.cx.fanout.audience_len(audience) == 0 => None,
            Form::Any if !stands_alone => self.compress(audience, &frame),
            Form::Compressed(compressed) if stands_alone => {
                self.begin_epoch_with(audience, &frame, compressed)
            }
            _ => None,
        };
        #[cfg(not(feature = "deflate"))]
        let compressed = {
            debug_assert!(form.is_any());
            None
        };
        let number = self.cx.fanout.broadcasts;
        let others = except.and_then(|key| {
            self.with_ws(key, |ws, cx| {
                ws.skip(cx, audience, number, compressed.as_ref())
            })?
        });
        let fanout = &mut self.cx.fanout;
        // Only now, since the flush may have disconnected the last member.
        let reached = others.unwrap_or_else(|| fanout.audience_len(audience));
        if reached == 0 {
            // If the only member is excluded, the message is not counted as undelivered.
            if others.is_none() {
                self.cx.counters().dropped_no_recipient.add(1);
            }
            return;
        }
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            fanout.due += reached as u64;
        }
        fanout.broadcasts += 1;
        if stands_alone {
            self.deliver_batch(Batch::new(audience, number, frame, compressed, key));
        } else {
            fanout.push_to_batch(audience, number, frame, compressed, key);
        }
    }

    /// Sends all batches to their audiences.
    pub(crate) fn flush_batches(&mut self) {
        for slot in self.cx.fanout.served_first() {
            self.with_member(slot, |ws, cx| {
                ws.take_batches(cx);
                ws.note_fill(cx);
            });
        }
        // A connection that breaks meanwhile loses its share of the batch at hand only.
        while let Some(batch) = self.cx.fanout.pop_batch() {
            self.deliver_batch(batch);
        }
    }
}

impl WebSocket {
    /// Excludes a connection from the broadcast with this number. Returns how many other connections are in the
    /// audience, if this one is.
    fn skip<T: ShardTransport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        audience: Audience,
        number: u64,
        compressed: Option<&CompressedFrame>,
    ) -> Option<usize> {
        let is_member = match audience {
            Audience::Everyone => self.is_of_everyone(),
            Audience::Room(room) => cx.shard.fanout.rooms.contains(room, cx.key),
        };
        if !is_member {
            return None;
        }
        let others = cx.shard.fanout.audience_len(audience) - 1;
        if others > 0 {
            self.take_batches(cx);
            if self.is_open() {
                self.seen = number + 1;
            }
        }
        #[cfg(feature = "deflate")]
        if compressed.is_some_and(|compressed| self.compression.follows(compressed.epoch)) {
            self.compression.leave_epoch();
        }
        #[cfg(not(feature = "deflate"))]
        {
            let _ = compressed;
        }
        Some(others)
    }

    /// Updates the congestion of a member, and of all, after its outbox or headroom has changed.
    pub(crate) fn note_fill<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let shard = &mut *cx.shard;
        let bytes = self.outbox.bytes() as u64;
        shard.counters().outbox_bytes_peak.raise(bytes);
        let limits = &shard.hub.settings.limits;
        let transport = cx.socket.transport.as_ref();
        shard.fanout.note_unshared(self, transport);
        let was = self.congested;
        let is = shard.fanout.note_fill(self, limits.outbox_bytes_max);
        if was != is {
            self.congestion_changed(shard.tick, &shard.hub, shard.now);
        }
        self.note_held_back(limits, &mut shard.receive_budget);
    }

    /// Makes a connection receive broadcasts to everyone from now on. An event stream receives nothing yet.
    pub(crate) fn join<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        let encoding = self.encoding();
        self.seen = cx.shard.fanout.broadcasts;
        cx.shard.fanout.all_of(encoding).insert(cx.key.slot);
        if encoding == Encoding::Frames {
            #[cfg(feature = "deflate")]
            {
                cx.shard.fanout.shared_compression.entered(self.compression);
                if self.compression.is_agreed() {
                    cx.shard.hub.compressors.entered();
                }
            }
            cx.shard.handle().members.fetch_add(1, SeqCst);
        }
    }

    /// Removes a connection that ends from everyone and from its rooms.
    pub(crate) fn leave<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        self.leave_rooms(cx);
        let encoding = self.encoding();
        if encoding == Encoding::Events {
            cx.shard.fanout.joining_ids.remove(cx.key.slot);
        }
        if !cx.shard.fanout.all_of(encoding).remove(cx.key.slot) {
            return;
        }
        if encoding == Encoding::Frames {
            #[cfg(feature = "deflate")]
            {
                cx.shard.fanout.shared_compression.left(self.compression);
                if self.compression.is_agreed() {
                    cx.shard.hub.compressors.left();
                }
            }
            cx.shard.handle().members.fetch_sub(1, SeqCst);
        }
        if std::mem::take(&mut self.congested) {
            let shard = &mut *cx.shard;
            shard.fanout.congested -= 1;
            self.congestion_changed(shard.tick, &shard.hub, shard.now);
            // Also if the client ends the connection itself: otherwise clients that leave just in time could block
            // producers one after the other.
            if let SlowConsumer::Pace { patience, .. } = shard.hub.settings.slow_consumer
                && let Some(pace) = self.pace()
            {
                let waited = pace.in_vain(shard.tick);
                lock(&shard.hub.wasted_waits).add(waited, patience, shard.now);
            }
        }
    }
}
