//! From the mailbox to the outboxes: messages for one, for a room, and for everyone.
//!
//! Broadcasts of a turn are joined: those for the same audience gather in one run of frames, which each member is sent
//! with one write when the turn ends, or when there is enough of it. A lone broadcast never waits for company.
//!
//! Broadcasts are numbered as they come, and a connection knows the number that it has not `seen` yet. So what is meant
//! for it alone goes behind its share of what came before, and whoever is in several rooms gets their messages in order:
//! its share of several runs is put together by number.
//!
//! Under [`SlowConsumer::Pace`] nothing is delivered while a member is short of room (`congested`); mail then stays in
//! the mailbox, and its producers wait.

mod enqueue;
mod room;
mod write_batch;

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use bytes::Bytes;

use crate::engine::model::command::{Mail, Publication};
use crate::engine::model::settings::Settings;
use crate::engine::parts::batch::{Audience, Closed, Run, Spare};
use crate::engine::parts::encoding::Form;
use crate::engine::parts::id::Key;
use crate::engine::parts::outbox::GATHER_BYTES_MAX;
use crate::engine::parts::peer_limits::counted_as;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::fanout::enqueue::Source;
use crate::engine::reactor::fanout::write_batch::AtOnce;
use crate::engine::reactor::rooms::LocalRooms;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Core, Role};
use crate::limits::SlowConsumer;
use crate::protocol::encode::HEADER_BYTES_MAX;
use crate::sync::lock;
use crate::transport::Transport;

/// So many runs are looked through for a connection's; more are not.
const FEW_RUNS: usize = 8;

/// Frames from this size on are not copied into a run: they are one by themselves.
const JOIN_BELOW_BYTES: usize = 16 << 10;

pub(crate) struct Delivery {
    /// Taken out of the mailbox, and not delivered yet.
    pub(crate) mail: VecDeque<Mail>,
    /// Broadcasts of this turn that their members have still to be sent, from each one's `seen`.
    runs: Vec<Run>,
    /// How long all of them are.
    runs_bytes: usize,
    runs_bytes_max: usize,
    /// The run for everyone, if there is one.
    run_for_everyone: Option<u32>,
    /// Memory of former runs.
    spare: Spare,
    /// Broadcasts so far, whoever they were for.
    broadcasts: u64,
    /// Everyone.
    members: Vec<u32>,
    /// Event streams, which are not of everyone, but have outboxes like them.
    streams: Vec<u32>,
    pub(crate) rooms: LocalRooms,
    /// Of a room that is being sent something.
    slots: Vec<u32>,
    /// Whether producers wait for congested members.
    paces: bool,
    /// Since when, or since the last count, producers wait for congested members.
    paced_since: Option<Instant>,
    /// Members whose outbox has not room for `need` bytes.
    pub(crate) congested: usize,
    need: usize,
    need_usual: usize,
    /// One that needs more for a message of its own, which nobody else gets.
    need_of_one: Option<(Key, usize)>,
    /// What is held of what waits for clients and is not shared by them: what each was sent alone, and responses.
    own_bytes: usize,
    own_bytes_max: usize,
    /// What of it is held for those whose socket took nothing more at the last write.
    pub(crate) blocked: UsageIndex,
    /// So many of those with something to write in this turn have been tried already.
    tried: usize,
    /// Mail that was ever left, as of the last look, and that was ever delivered.
    pushed: u64,
    delivered: u64,
    /// Connections whose end waits for mail that was left before it.
    waiting: Vec<u32>,
    /// Messages that were due to a recipient: each must be written, or counted as dropped.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) due: u64,
}

impl Delivery {
    pub(crate) fn new(settings: &Settings) -> Self {
        let half = settings.limits.outbox_bytes_max / 2;
        Self {
            mail: VecDeque::new(),
            runs: Vec::new(),
            runs_bytes: 0,
            // With half of the outbox kept free, a paced member has room for all runs.
            runs_bytes_max: GATHER_BYTES_MAX.min(half),
            run_for_everyone: None,
            spare: Spare::default(),
            broadcasts: 0,
            members: Vec::new(),
            streams: Vec::new(),
            rooms: LocalRooms::default(),
            slots: Vec::new(),
            paces: matches!(settings.slow_consumer, SlowConsumer::Pace { .. }),
            paced_since: None,
            own_bytes: 0,
            own_bytes_max: own_bytes_max(settings),
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

    /// Those that are sent this form.
    fn all_of(&mut self, form: Form) -> &mut Vec<u32> {
        match form {
            Form::Frames => &mut self.members,
            Form::Events => &mut self.streams,
        }
    }

    fn is_paced(&self) -> bool {
        self.paces && self.congested > 0
    }

    /// Whether the mailbox is to be emptied.
    pub(crate) fn wants_mail(&self) -> bool {
        self.mail.is_empty() && !self.is_paced()
    }

    pub(crate) fn taken(&mut self, pushed: u64) {
        self.pushed = pushed;
    }

    /// A mark behind all mail that has been left by now.
    pub(crate) fn mark(&self) -> u64 {
        self.pushed
    }

    pub(crate) fn has_delivered(&self, mark: u64) -> bool {
        self.delivered >= mark
    }

    /// Nothing that was left by the last look waits for delivery.
    pub(crate) fn is_empty(&self) -> bool {
        self.has_delivered(self.pushed)
    }

    /// Has the end of a connection wait for earlier mail.
    pub(crate) fn wait(&mut self, slot: u32) {
        self.waiting.push(slot);
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// An outbox has changed, and so has what is held for its client alone.
    #[inline]
    fn note_own(&mut self, ws: &mut WebSocket) {
        self.set_own(ws, ws.outbox.own_bytes());
    }

    #[inline]
    pub(crate) fn set_own(&mut self, ws: &mut WebSocket, own: usize) {
        self.own_bytes = self.own_bytes + own - ws.own_bytes;
        ws.own_bytes = own;
        let blocked = if ws.is_blocked() { own } else { 0 };
        if ws.blocked_bytes() != blocked {
            let address = counted_as(ws.session.client_ip());
            let slot = ws.session.id.key().slot;
            let before = ws.set_blocked_bytes(blocked);
            self.blocked.set(address, slot, before, blocked);
        }
    }

    /// What is held of a response has changed.
    pub(crate) fn change_responses(&mut self, before: usize, now: usize) {
        self.own_bytes = self.own_bytes + now - before;
    }

    /// Keeps count of the congested when an outbox has changed. Returns whether this one is.
    pub(crate) fn note_fill(&mut self, ws: &mut WebSocket, bytes_max: usize) -> bool {
        let bytes = ws.outbox.live_bytes();
        let need = match self.need_of_one {
            Some((key, need)) if key == ws.session.id.key() => need.max(self.need),
            _ => self.need,
        };
        let congested = ws.is_member() && bytes > 0 && bytes.saturating_add(need) > bytes_max;
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
}

/// A shard's share, and room for one message of any legal size.
fn own_bytes_max(settings: &Settings) -> usize {
    let limits = &settings.limits;
    (limits.outboxes_bytes_max / settings.shards.max(1))
        .max(limits.message_bytes_max.saturating_add(HEADER_BYTES_MAX))
}

impl<T: Transport> Core<T> {
    /// Counts how long producers have been made to wait.
    pub(crate) fn count_pace(&mut self) {
        let since = self.delivery.is_paced().then_some(self.now);
        if let Some(before) = std::mem::replace(&mut self.delivery.paced_since, since) {
            self.counters()
                .paced
                .add_time(self.now.saturating_duration_since(before));
        }
    }

    /// Whether held mail could be delivered now.
    pub(crate) fn mail_can_go_on(&self) -> bool {
        !self.delivery.mail.is_empty() && !self.delivery.is_paced()
    }

    /// Delivers mail, until it is all delivered or producers are to wait.
    pub(crate) fn deliver_mail(&mut self) {
        while let Some(mail) = self.delivery.mail.front() {
            if self.delivery.paces {
                let lens = match mail {
                    Mail::Send(_, frame) | Mail::Broadcast(frame) => [frame.len(), 0, 0],
                    Mail::Publish(publication) => publication.lens(),
                    // An outbox takes a replay of any length.
                    Mail::Join(_) | Mail::Subscribe(_) => [0, 0, 0],
                    Mail::Close(..) | Mail::Leave(..) => [0, 0, 0],
                };
                let to = match mail {
                    Mail::Send(to, _) => Some(*to),
                    _ => None,
                };
                // Nobody gets more than one.
                let longest = lens.into_iter().max().unwrap_or(0);
                self.need_room(if to.is_some() { 0 } else { longest });
                self.need_room_of_one(to.map(|to| (to, longest)));
                let len = lens.into_iter().fold(0, usize::saturating_add);
                if self.delivery.runs_bytes.saturating_add(len) > self.delivery.runs_bytes_max {
                    // What it goes behind takes its room first.
                    self.flush_runs();
                }
                if self.delivery.is_paced() {
                    return;
                }
            }
            let Some(mail) = self.delivery.mail.pop_front() else {
                return;
            };
            self.delivery.delivered += 1;
            match mail {
                Mail::Broadcast(frame) => self.broadcast(Audience::Everyone, frame, None),
                Mail::Publish(publication) => {
                    let Publication {
                        room,
                        frame,
                        numbered,
                        except,
                        event,
                    } = *publication;
                    let audience = room
                        .as_ref()
                        .map_or(Audience::Everyone, |room| Audience::Room(room.number()));
                    let numbered = numbered.zip(room).and_then(|(numbered, room)| {
                        let those = Audience::Room(room.number_of_numbered());
                        (self.audience_len(those) > 0).then_some((those, numbered))
                    });
                    // Where all who are there get it with its id, nobody has missed anything.
                    if let Some(frame) = frame
                        && (numbered.is_none() || self.audience_len(audience) > 0)
                    {
                        self.broadcast(audience, frame, except);
                    }
                    if let Some((those, numbered)) = numbered {
                        self.broadcast(those, numbered, except);
                    }
                    if let Some((streams, event)) = event {
                        self.broadcast(Audience::Room(streams.number()), event, None);
                    }
                }
                Mail::Join(joining) => self.join_room(*joining),
                Mail::Leave(key, room) => self.leave_room(key, room),
                Mail::Subscribe(subscribing) => self.begin_stream(*subscribing),
                Mail::Send(key, frame) => {
                    let (frames, messages) = self.with_next_sends(key, frame);
                    match self.conns.find(key) {
                        Some(slot) => self.send(slot, frames, messages),
                        None => self.counters().dropped_no_recipient.add(messages.into()),
                    }
                }
                Mail::Close(key, code, reason) => {
                    if let Some(slot) = self.conns.find(key) {
                        self.close_ws(slot, code, &reason);
                        self.arm(slot);
                    }
                }
            }
        }
        if self.delivery.paces {
            self.need_room(0);
            self.need_room_of_one(None);
        }
        for slot in std::mem::take(&mut self.delivery.waiting) {
            self.advance(slot);
        }
    }

    /// Keeps count of the congested, and of how long each has been so.
    pub(crate) fn note_fill(&mut self, slot: u32) {
        let bytes_max = self.hub.settings.limits.outbox_bytes_max;
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            self.hub.shards[usize::from(self.index)]
                .counters
                .outbox_bytes_peak
                .raise(ws.outbox.bytes() as u64);
            self.delivery.note_own(ws);
            let was = ws.congested;
            let is = self.delivery.note_fill(ws, bytes_max);
            if was != is {
                ws.congestion_changed(self.tick, &self.hub, self.now);
            }
            ws.note_held_back(&self.hub.settings.limits, &mut self.intake);
            if was != is {
                // A longer message alone can make it so, without anything being written to this client.
                self.arm(slot);
            }
        }
    }

    /// An audience is sent this frame when the turn ends.
    fn broadcast(&mut self, audience: Audience, frame: Bytes, except: Option<Key>) {
        let max = self.delivery.runs_bytes_max;
        let stands_alone = frame.len() >= JOIN_BELOW_BYTES.min(max);
        if stands_alone || self.delivery.runs_bytes + frame.len() > max {
            self.flush_runs();
        }
        let excepted = except
            .and_then(|key| Some((self.conns.find(key)?, key)))
            .filter(|&(slot, key)| self.is_in(audience, slot, key));
        // Only now: the flush may have cost the last member its connection.
        let reached = self.audience_len(audience) - usize::from(excepted.is_some());
        if reached == 0 {
            // Where somebody is there, and is not to get it, nobody has missed anything.
            if excepted.is_none() {
                self.counters().dropped_no_recipient.add(1);
            }
            return;
        }
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.delivery.due += reached as u64;
        }
        let number = self.delivery.broadcasts;
        self.delivery.broadcasts += 1;
        if let Some((slot, _)) = excepted {
            self.take_run(slot);
            if let Some(ws) = self.open_ws(slot) {
                ws.seen = number + 1;
            }
        }
        if stands_alone {
            let run = Run::new(audience, number, frame);
            self.deliver_run(audience, run.close());
            return;
        }
        let delivery = &mut self.delivery;
        delivery.runs_bytes += frame.len();
        let index = match audience {
            Audience::Everyone => Some(&mut delivery.run_for_everyone),
            Audience::Room(room) => delivery.rooms.get_mut(room).map(|room| &mut room.run),
        };
        match index {
            Some(&mut Some(index)) => {
                delivery.runs[index as usize].push(number, &frame, &mut delivery.spare);
            }
            Some(none) => {
                *none = Some(delivery.runs.len() as u32);
                delivery.runs.push(Run::new(audience, number, frame));
            }
            None => debug_assert!(false, "nobody is in a room that is not there"),
        }
    }

    fn is_in(&self, audience: Audience, slot: u32, key: Key) -> bool {
        match (audience, self.conns.get(slot).map(|conn| &conn.role)) {
            (Audience::Everyone, Some(Role::WebSocket(ws))) => ws.is_of_everyone(),
            (Audience::Everyone, _) => false,
            (Audience::Room(room), _) => self.delivery.rooms.contains(room, key),
        }
    }

    fn audience_len(&self, audience: Audience) -> usize {
        match audience {
            Audience::Everyone => self.delivery.members.len(),
            Audience::Room(room) => self.delivery.rooms.len(room),
        }
    }

    /// Sends what has gathered for all.
    pub(crate) fn flush_runs(&mut self) {
        if self.delivery.runs.len() > 1 {
            // Who has a share in several runs gets it in order, and at once.
            for slot in self.shared_slots() {
                self.take_run(slot);
                self.note_fill(slot);
            }
        }
        // A connection that breaks meanwhile may have a share in none but the run at hand.
        while let Some(run) = self.delivery.runs.pop() {
            let audience = run.audience;
            match audience {
                Audience::Everyone => self.delivery.run_for_everyone = None,
                Audience::Room(room) => {
                    if let Some(room) = self.delivery.rooms.get_mut(room) {
                        room.run = None;
                    }
                }
            }
            self.delivery.runs_bytes -= run.len();
            self.deliver_run(audience, run.close());
        }
    }

    /// Connections that are in several audiences which have a run.
    fn shared_slots(&mut self) -> Vec<u32> {
        let mut slots: Vec<u32> = Vec::new();
        for run in &self.delivery.runs {
            match run.audience {
                Audience::Everyone => slots.extend_from_slice(&self.delivery.members),
                Audience::Room(room) => slots.extend(self.delivery.rooms.members(room)),
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

    /// Sends a run to every member: at once where nothing else waits, into the outbox otherwise.
    fn deliver_run(&mut self, audience: Audience, mut run: Closed) {
        let bytes_max = self.hub.settings.limits.outbox_bytes_max;
        let write_timeout = self.hub.settings.limits.write_timeout;
        // Taken, since cases that may change who is a member come after.
        let mut members = match audience {
            Audience::Everyone => std::mem::take(&mut self.delivery.members),
            Audience::Room(room) => {
                let mut slots = std::mem::take(&mut self.delivery.slots);
                slots.extend(self.delivery.rooms.members(room));
                // As they lie in memory, here and in the kernel.
                slots.sort_unstable();
                slots
            }
        };
        let mut broken = Vec::new();
        let mut offers = Vec::new();
        let mut blocked = Vec::new();
        let AtOnce {
            bytes: mut left_bytes,
            messages: mut left_messages,
            rest,
        } = self.write_run(&members, &run);
        for (slot, outcome) in rest {
            let Some(conn) = self.conns.get_mut(slot) else {
                continue;
            };
            let Role::WebSocket(ws) = &mut conn.role else {
                continue;
            };
            let (from, own_messages) = run.share(ws.seen);
            let Some(outcome) = outcome else {
                offers.push((slot, from, own_messages));
                continue;
            };
            let piece = &run.bytes[from..];
            match outcome {
                Ok(n) => {
                    left_bytes += n as u64;
                    // The frame in progress goes on; what does not fit behind it meets the policy.
                    let (rest, kept) = ws.form().whole(piece, n.saturating_add(bytes_max));
                    let goes_on = rest < piece.len();
                    let (bytes, own) = run.keep(from..from + rest);
                    left_messages += ws.outbox.push_rest(bytes, kept, n, own);
                    ws.blocked(self.tick, write_timeout);
                    if goes_on {
                        offers.push((slot, from + rest, own_messages - kept));
                    } else {
                        blocked.push(slot);
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    ws.blocked(self.tick, write_timeout);
                    offers.push((slot, from, own_messages));
                }
                Err(_) => {
                    self.hub.shards[usize::from(self.index)]
                        .counters
                        .dropped_closed
                        .add(u64::from(own_messages));
                    broken.push(slot);
                }
            }
        }
        match audience {
            Audience::Everyone => self.delivery.members = members,
            Audience::Room(_) => {
                members.clear();
                self.delivery.slots = members;
            }
        }
        let counters = self.counters();
        counters.bytes_out.add_alone(left_bytes);
        counters.messages_out.add_alone(left_messages);
        for (slot, from, messages) in offers {
            let (piece, of) = run.piece(from);
            self.offer(slot, piece, messages, Source::Shared { of });
            blocked.push(slot);
        }
        self.delivery.spare.reclaim(run);
        for slot in blocked {
            self.note_fill(slot);
            self.arm(slot);
        }
        for slot in broken {
            self.broken(slot);
        }
        self.make_room_outside();
    }

    /// Sends frames to one connection, behind its share of what was sent to many before.
    pub(crate) fn send(&mut self, slot: u32, frames: Bytes, messages: u32) {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.delivery.due += u64::from(messages);
        }
        if !self.is_open(slot) {
            self.counters().dropped_closed.add(messages.into());
            return;
        }
        self.take_run(slot);
        self.offer(slot, frames, messages, Source::Own);
        self.note_fill(slot);
        self.make_room_outside();
    }

    /// Puts what a connection has still to be sent of all runs into its outbox.
    pub(crate) fn take_run(&mut self, slot: u32) {
        let broadcasts = self.delivery.broadcasts;
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let seen = std::mem::replace(&mut ws.seen, broadcasts);
        if self.delivery.runs.is_empty() {
            return;
        }
        let mut frames: Vec<(u64, &[u8])> = self
            .runs_with(slot)
            .into_iter()
            .flat_map(|index| self.delivery.runs[index as usize].from(seen))
            .collect();
        if frames.is_empty() {
            return;
        }
        frames.sort_unstable_by_key(|&(number, _)| number);
        let mut piece = Vec::with_capacity(frames.iter().map(|(_, frame)| frame.len()).sum());
        frames
            .iter()
            .for_each(|(_, frame)| piece.extend_from_slice(frame));
        let messages = frames.len() as u32;
        self.offer_own(slot, piece.into(), messages);
    }

    /// The runs that a connection is in the audience of.
    fn runs_with(&self, slot: u32) -> Vec<u32> {
        let Some((key, conn)) = self.conns.key(slot).zip(self.conns.get(slot)) else {
            return Vec::new();
        };
        let Role::WebSocket(ws) = &conn.role else {
            return Vec::new();
        };
        let delivery = &self.delivery;
        let for_everyone = delivery.run_for_everyone.filter(|_| ws.is_of_everyone());
        let mut runs: Vec<u32> = for_everyone.into_iter().collect();
        if delivery.runs.len() <= FEW_RUNS {
            let in_room = |run: &Run| match run.audience {
                Audience::Everyone => false,
                Audience::Room(room) => delivery.rooms.contains(room, key),
            };
            let with = (0..).zip(&delivery.runs).filter(|(_, run)| in_room(run));
            runs.extend(with.map(|(index, _)| index));
        } else {
            runs.extend(self.rooms_with_runs(&ws.session));
        }
        runs
    }

    /// Messages of runs that a connection has still to be sent.
    pub(crate) fn pending_run(&self, slot: u32) -> u64 {
        let seen = match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(ws)) if !self.delivery.runs.is_empty() => ws.seen,
            _ => return 0,
        };
        let messages = |index: u32| self.delivery.runs[index as usize].messages_from(seen);
        self.runs_with(slot)
            .into_iter()
            .map(|index| messages(index) as u64)
            .sum()
    }

    /// Who was to get a replay has gone.
    pub(crate) fn lose_replay(&mut self, messages: u64) {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.delivery.due += messages;
        }
        self.counters().dropped_closed.add(messages);
    }

    /// Queues what a room has kept for a client that has just joined it. It meets no slow-consumer policy: its length says
    /// nothing of how the client reads, and neither does how much of earlier replays still waits. A client that takes none
    /// of it is ended by its write timeout, or where the outboxes take too much memory in all.
    pub(crate) fn replay(&mut self, slot: u32, frames: Vec<Bytes>) {
        if frames.is_empty() {
            return;
        }
        let messages = frames.len() as u32;
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.delivery.due += u64::from(messages);
        }
        match self.open_ws(slot) {
            Some(ws) => ws.outbox.push_replay(frames.concat().into(), messages),
            None => self.counters().dropped_closed.add(u64::from(messages)),
        }
        self.note_fill(slot);
        self.want_write(slot);
        self.make_room_outside();
    }

    /// Makes a connection one of everyone: it gets what is broadcast from now on. An event stream gets nothing yet.
    pub(crate) fn join(&mut self, slot: u32) {
        let seen = self.delivery.broadcasts;
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            ws.seen = seen;
            let all = self.delivery.all_of(ws.form());
            all.push(slot);
            ws.member_at = NonZeroU32::new(all.len() as u32);
            if ws.form() == Form::Frames {
                self.link().members.fetch_add(1, SeqCst);
            }
        }
    }

    /// A connection ends: it is one of everyone no longer, nor in any room.
    pub(crate) fn leave(&mut self, slot: u32) {
        self.leave_rooms(slot);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let Some(at) = ws.member_at.take() else {
            return;
        };
        if std::mem::take(&mut ws.congested) {
            self.delivery.congested -= 1;
            ws.congestion_changed(self.tick, &self.hub, self.now);
            // Also where it goes by itself: else clients that do so just in time could hold producers up in turns.
            if let SlowConsumer::Pace { patience, .. } = self.hub.settings.slow_consumer
                && let Some(pace) = ws.pace()
            {
                let waited = pace.in_vain(self.tick);
                lock(&self.hub.waits_in_vain).add(waited, patience, self.now);
            }
        }
        let form = ws.form();
        if form == Form::Frames {
            self.link().members.fetch_sub(1, SeqCst);
        }
        let all = self.delivery.all_of(form);
        let index = at.get() as usize - 1;
        all.swap_remove(index);
        if let Some(&moved) = all.get(index)
            && let Some(conn) = self.conns.get_mut(moved)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            ws.member_at = Some(at);
        }
    }
}
