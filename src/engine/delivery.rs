//! From the mailbox to the outboxes: messages for one, and for everyone.
//!
//! Broadcasts of a turn are joined: they gather in one `run` of frames, which each member is sent with one write when
//! the turn ends, or when the run is long enough. A lone broadcast never waits for company. What is meant for one
//! connection only goes behind the part of the run that came before it, so order holds between the two.
//!
//! Under [`SlowConsumer::Pace`] nothing is delivered while a member is short of room (`congested`); mail then stays in
//! the mailbox, and its producers wait.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::core::{Core, Role};
use super::form::Form;
use super::hub::{Mail, Settings};
use super::outbox::GATHER_BYTES_MAX;
use super::slow_consumer::{Verdict, judge};
use super::websocket::WebSocket;
use crate::limits::SlowConsumer;
use crate::protocol::close::CloseCode;
use crate::protocol::encode::HEADER_BYTES_MAX;
use crate::report::info;
use crate::transport::Transport;

/// Frames from this size on are not copied into a run: they are one by themselves.
const JOIN_BELOW_BYTES: usize = 16 << 10;

pub(super) struct Delivery {
    /// Taken out of the mailbox, and not delivered yet.
    pub(super) mail: VecDeque<Mail>,
    /// Broadcasts of this turn that the members have still to be sent, from each one's `run_from`.
    run: BytesMut,
    run_messages: u32,
    run_bytes_max: usize,
    /// Everyone.
    members: Vec<u32>,
    /// Whether producers wait for congested members.
    paces: bool,
    /// Since when, or since the last count, producers wait for congested members.
    paced_since: Option<Instant>,
    /// Members whose outbox has not room for `need` bytes.
    pub(super) congested: usize,
    need: usize,
    need_usual: usize,
    /// Bytes that wait for all clients and are not shared by them: what each was sent alone.
    own_bytes: usize,
    own_bytes_max: usize,
    /// Mail that was ever left, as of the last look, and that was ever delivered.
    pushed: u64,
    delivered: u64,
    /// Connections whose end waits for mail that was left before it.
    waiting: Vec<u32>,
    /// Messages that were due to a recipient: each must be written, or counted as dropped.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) due: u64,
}

impl Delivery {
    pub(super) fn new(settings: &Settings) -> Self {
        let half = settings.limits.outbox_bytes_max / 2;
        Self {
            mail: VecDeque::new(),
            run: BytesMut::new(),
            run_messages: 0,
            // With half of the outbox kept free, a paced member has room for any run.
            run_bytes_max: GATHER_BYTES_MAX.min(half),
            members: Vec::new(),
            paces: matches!(settings.slow_consumer, SlowConsumer::Pace { .. }),
            paced_since: None,
            own_bytes: 0,
            own_bytes_max: own_bytes_max(settings),
            congested: 0,
            need: half,
            need_usual: half,
            pushed: 0,
            delivered: 0,
            waiting: Vec::new(),
            #[cfg(all(any(test, fuzzing), not(loom)))]
            due: 0,
        }
    }

    fn is_paced(&self) -> bool {
        self.paces && self.congested > 0
    }

    /// Whether the mailbox is to be emptied.
    pub(super) fn wants_mail(&self) -> bool {
        self.mail.is_empty() && !self.is_paced()
    }

    pub(super) fn taken(&mut self, pushed: u64) {
        self.pushed = pushed;
    }

    /// A mark behind all mail that has been left by now.
    pub(super) fn mark(&self) -> u64 {
        self.pushed
    }

    pub(super) fn has_delivered(&self, mark: u64) -> bool {
        self.delivered >= mark
    }

    /// Nothing that was left by the last look waits for delivery.
    pub(super) fn is_empty(&self) -> bool {
        self.has_delivered(self.pushed)
    }

    /// Has the end of a connection wait for earlier mail.
    pub(super) fn wait(&mut self, slot: u32) {
        self.waiting.push(slot);
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// An outbox has changed, and so has what waits for its client alone.
    fn note_own(&mut self, ws: &mut WebSocket) {
        self.set_own(ws, ws.outbox.own_bytes());
    }

    pub(super) fn set_own(&mut self, ws: &mut WebSocket, own: usize) {
        self.own_bytes = self.own_bytes + own - ws.own_bytes;
        ws.own_bytes = own;
    }

    /// Keeps count of the congested when an outbox has changed. Returns whether this one is.
    pub(super) fn note_fill(&mut self, ws: &mut WebSocket, bytes_max: usize) -> bool {
        let bytes = ws.outbox.bytes();
        let congested = ws.is_member() && bytes > 0 && bytes.saturating_add(self.need) > bytes_max;
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
    pub(super) fn count_pace(&mut self) {
        let since = self.delivery.is_paced().then_some(self.now);
        if let Some(before) = std::mem::replace(&mut self.delivery.paced_since, since) {
            self.counters()
                .paced
                .add_time(self.now.saturating_duration_since(before));
        }
    }

    /// Whether held mail could be delivered now.
    pub(super) fn mail_can_go_on(&self) -> bool {
        !self.delivery.mail.is_empty() && !self.delivery.is_paced()
    }

    /// Delivers mail, until it is all delivered or producers are to wait.
    pub(super) fn deliver_mail(&mut self) {
        while let Some(mail) = self.delivery.mail.front() {
            if self.delivery.paces {
                let len = match mail {
                    Mail::Send(_, frame) | Mail::Broadcast(frame) => frame.len(),
                    Mail::Close(..) => 0,
                };
                self.need_room(len);
                if self.delivery.run.len().saturating_add(len) > self.delivery.run_bytes_max {
                    // What it goes behind takes its room first.
                    self.flush_run();
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
                Mail::Broadcast(frame) => self.broadcast(frame),
                Mail::Send(key, frame) => match self.conns.find(key) {
                    Some(slot) => self.send(slot, frame),
                    None => self.counters().dropped_no_recipient.add(1),
                },
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
        }
        for slot in std::mem::take(&mut self.delivery.waiting) {
            self.advance(slot);
        }
    }

    /// Asks every outbox for room for a message of that length, which may be longer than usual.
    fn need_room(&mut self, len: usize) {
        let need = len.max(self.delivery.need_usual);
        if need == self.delivery.need {
            return;
        }
        // What a longer message has in front of it must be on its way before it can be judged.
        self.flush_run();
        self.delivery.need = need;
        for index in 0..self.delivery.members.len() {
            let slot = self.delivery.members[index];
            self.note_fill(slot);
        }
    }

    /// Keeps count of the congested, and of how long each has been so.
    pub(super) fn note_fill(&mut self, slot: u32) {
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
                ws.congestion_changed(self.tick, &self.hub.settings);
            }
        }
    }

    /// Everyone is sent this frame when the turn ends.
    fn broadcast(&mut self, frame: Bytes) {
        let stands_alone = frame.len() >= JOIN_BELOW_BYTES.min(self.delivery.run_bytes_max);
        if stands_alone || self.delivery.run.len() + frame.len() > self.delivery.run_bytes_max {
            self.flush_run();
        }
        // Only now: the flush may have cost the last member its connection.
        if self.delivery.members.is_empty() {
            self.counters().dropped_no_recipient.add(1);
            return;
        }
        #[cfg(all(any(test, fuzzing), not(loom)))]
        self.due_to_members();
        if stands_alone {
            self.deliver_run(frame, 1);
            return;
        }
        if self.delivery.run.capacity() - self.delivery.run.len() < frame.len() {
            self.delivery.run.reserve(GATHER_BYTES_MAX);
        }
        self.delivery.run.extend_from_slice(&frame);
        self.delivery.run_messages += 1;
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    fn due_to_members(&mut self) {
        self.delivery.due += self.delivery.members.len() as u64;
    }

    /// Sends what has gathered for everyone.
    pub(super) fn flush_run(&mut self) {
        if self.delivery.run_messages == 0 {
            return;
        }
        let run = self.delivery.run.split().freeze();
        let messages = std::mem::take(&mut self.delivery.run_messages);
        self.deliver_run(run, messages);
    }

    /// Sends a run to every member: at once where nothing else waits, into the outbox otherwise.
    fn deliver_run(&mut self, run: Bytes, messages: u32) {
        let bytes_max = self.hub.settings.limits.outbox_bytes_max;
        let members = std::mem::take(&mut self.delivery.members);
        let mut left_bytes = 0;
        let mut left_messages = 0;
        // Cases that may change who is a member come after.
        let mut broken = Vec::new();
        let mut offers = Vec::new();
        let mut blocked = Vec::new();
        for &slot in &members {
            let Some(conn) = self.conns.get_mut(slot) else {
                continue;
            };
            let (Role::WebSocket(ws), Some(transport)) = (&mut conn.role, &mut conn.transport)
            else {
                continue;
            };
            let from = std::mem::take(&mut ws.run_from) as usize;
            if from >= run.len() {
                continue;
            }
            let own_messages = match from {
                0 => messages,
                _ => Form::Frames.whole(&run[from..], usize::MAX).1,
            };
            if !ws.outbox.is_empty() {
                offers.push((slot, run.slice(from..), own_messages));
                continue;
            }
            let piece = &run[from..];
            match transport.write(piece) {
                Ok(n) if n == piece.len() => {
                    left_bytes += n as u64;
                    left_messages += u64::from(own_messages);
                }
                Ok(n) => {
                    left_bytes += n as u64;
                    // The frame in progress goes on; what does not fit behind it meets the policy.
                    let (rest, kept) = Form::Frames.whole(piece, n.saturating_add(bytes_max));
                    left_messages += ws.outbox.push_rest(run.slice(from..from + rest), kept, n);
                    ws.blocked(self.tick);
                    if rest < piece.len() {
                        offers.push((slot, run.slice(from + rest..), own_messages - kept));
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
                    ws.blocked(self.tick);
                    offers.push((slot, run.slice(from..), own_messages));
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
        self.delivery.members = members;
        let counters = self.counters();
        counters.bytes_out.add(left_bytes);
        counters.messages_out.add(left_messages);
        for (slot, piece, messages) in offers {
            self.offer(slot, piece, messages, false);
            blocked.push(slot);
        }
        for slot in blocked {
            self.note_fill(slot);
            self.arm(slot);
        }
        for slot in broken {
            self.broken(slot);
        }
        self.make_room_outside();
    }

    /// Sends a frame to one connection, behind the part of the run that came before.
    fn send(&mut self, slot: u32, frame: Bytes) {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.delivery.due += 1;
        }
        if !self.is_open(slot) {
            self.counters().dropped_closed.add(1);
            return;
        }
        self.take_run(slot);
        self.offer_own(slot, frame, 1);
        self.note_fill(slot);
        self.make_room_outside();
    }

    /// Queues what is in no other outbox.
    fn offer_own(&mut self, slot: u32, bytes: Bytes, messages: u32) {
        self.offer(slot, bytes, messages, true);
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            self.delivery.note_own(ws);
        }
    }

    /// Where what waits for clients takes too much memory in all, those that have most waiting go, if they can't take
    /// any of it now.
    fn make_room_outside(&mut self) {
        if self.delivery.own_bytes <= self.delivery.own_bytes_max {
            return;
        }
        // What nobody has tried to write yet says nothing.
        for (slot, _) in self.by_greed(|ws, _| if ws.is_blocked() { 0 } else { ws.own_bytes }) {
            self.ws_write(slot);
        }
        for (slot, _) in self.by_greed(|ws, _| ws.own_bytes) {
            if self.delivery.own_bytes <= self.delivery.own_bytes_max {
                break;
            }
            let before = self.outbox_bytes(slot);
            self.ws_write(slot);
            if self.outbox_bytes(slot) == before {
                // It does not read, so it can't be told either.
                self.disconnect_slow(slot);
                self.broken(slot);
            }
        }
    }

    fn outbox_bytes(&self, slot: u32) -> usize {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(ws)) => ws.outbox.bytes(),
            _ => 0,
        }
    }

    /// Puts the part of the run that a member has still to be sent into its outbox.
    pub(super) fn take_run(&mut self, slot: u32) {
        let len = self.delivery.run.len();
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Role::WebSocket(ws) = &mut conn.role else {
            return;
        };
        let from = std::mem::replace(&mut ws.run_from, len as u32) as usize;
        if !ws.is_member() || from >= len {
            return;
        }
        let piece = Bytes::copy_from_slice(&self.delivery.run[from..]);
        let (_, messages) = Form::Frames.whole(&piece, usize::MAX);
        self.offer_own(slot, piece, messages);
    }

    /// Messages of the run that a member has still to be sent.
    pub(super) fn pending_run(&self, slot: u32) -> u64 {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(ws)) if ws.is_member() => {
                let run = self
                    .delivery
                    .run
                    .get(ws.run_from as usize..)
                    .unwrap_or_default();
                u64::from(Form::Frames.whole(run, usize::MAX).1)
            }
            _ => 0,
        }
    }

    /// Queues whole messages, as the slow-consumer policy allows.
    fn offer(&mut self, slot: u32, mut bytes: Bytes, mut messages: u32, own: bool) {
        let bytes_max = self.hub.settings.limits.outbox_bytes_max;
        let policy = self.hub.settings.slow_consumer;
        let mut written = false;
        while messages > 0 {
            let Some(ws) = self.open_ws(slot) else {
                self.counters().dropped_closed.add(u64::from(messages));
                return;
            };
            let fill = ws.outbox.fill(bytes_max);
            if judge(policy, fill, bytes.len()) == Verdict::Queue {
                ws.outbox.push(bytes, messages, own);
                break;
            }
            if !written && (!ws.is_blocked() || policy == SlowConsumer::Disconnect) {
                // The socket may take what is queued: a full outbox in itself is no sign of a slow client. Before the
                // last verdict that is asked even of one that was blocked.
                written = true;
                self.ws_write(slot);
                continue;
            }
            let (len, count) = match messages {
                1 => (bytes.len(), 1),
                _ => Form::Frames.whole(&bytes, bytes_max.saturating_sub(fill.bytes)),
            };
            let piece = bytes.split_to(len);
            match judge(policy, fill, len) {
                // A paced shard has made sure of room beforehand.
                Verdict::Queue | Verdict::Wait => ws.outbox.push(piece, count, own),
                Verdict::DropNewest => self.counters().dropped_slow_consumer.add(u64::from(count)),
                Verdict::DropOldest => {
                    let dropped = ws.outbox.drop_oldest(len, bytes_max);
                    ws.outbox.push(piece, count, own);
                    self.counters().dropped_slow_consumer.add(dropped);
                }
                Verdict::Disconnect => {
                    self.counters()
                        .dropped_slow_consumer
                        .add(u64::from(messages));
                    self.disconnect_slow(slot);
                    return;
                }
            }
            messages -= count;
        }
        self.want_write(slot);
    }

    /// The verdict on a slow consumer: the frame in progress is finished, the rest is dropped, 1013 says why.
    pub(super) fn disconnect_slow(&mut self, slot: u32) {
        let unsent = self.pending_run(slot);
        let Some(ws) = self.open_ws(slot) else {
            return;
        };
        let dropped = ws.outbox.drop_waiting() + unsent;
        // Nothing more of the run either, and no longer than the deadline.
        ws.run_from = u32::MAX;
        ws.found_slow = true;
        let id = ws.session.id;
        ws.session.span.within(|| {
            info!(
                "connection {id} read too slowly and is disconnected; {dropped} messages that waited are dropped"
            );
        });
        let counters = self.counters();
        counters.dropped_slow_consumer.add(dropped);
        counters.slow_consumers.add(1);
        self.close_ws(slot, CloseCode::TRY_AGAIN_LATER, "too slow");
    }

    /// Makes a connection one of everyone: it gets what is broadcast from now on.
    pub(super) fn join(&mut self, slot: u32) {
        let member_at = self.delivery.members.len() as u32;
        let run_from = self.delivery.run.len() as u32;
        if let Some(conn) = self.conns.get_mut(slot)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            ws.member_at = Some(member_at);
            ws.run_from = run_from;
            self.delivery.members.push(slot);
            self.link().members.fetch_add(1, SeqCst);
        }
    }

    pub(super) fn leave(&mut self, slot: u32) {
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
            ws.congestion_changed(self.tick, &self.hub.settings);
        }
        self.link().members.fetch_sub(1, SeqCst);
        self.delivery.members.swap_remove(at as usize);
        if let Some(&moved) = self.delivery.members.get(at as usize)
            && let Some(conn) = self.conns.get_mut(moved)
            && let Role::WebSocket(ws) = &mut conn.role
        {
            ws.member_at = Some(at);
        }
    }
}
