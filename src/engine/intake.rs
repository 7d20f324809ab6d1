//! What a shard holds of received messages, in bytes: a bound for all connections together, so that many of them can't
//! use up the memory that each of them may have.
//!
//! Unfinished messages are one half: beyond it, the connection that has most gives way. Finished ones that handlers have
//! not worked off are the other: beyond it, nothing is read until handlers have caught up. Of those, handlers are not given
//! what comes from clients that do not read the replies: where such clients have more than half of that room, they give
//! way, since waiting for handlers would not help.
//!
//! Who gives way is asked of addresses first: somebody with many connections can't have many others take his place.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

use super::core::{Core, Role};
use super::id::Key;
use super::peers::counted_as;
use super::pool::Event;
use super::websocket::WebSocket;
use crate::limits::Limits;
use crate::protocol::close::CloseCode;
use crate::transport::Transport;

pub(super) struct Intake {
    /// Of messages that have begun.
    unfinished: usize,
    /// Of messages that wait for handlers, or are in their hands.
    unhandled: usize,
    /// Of handshakes that the program is being asked about, and of what clients have sent behind them.
    asking: usize,
    /// For either of the first two.
    half: usize,
    /// Handlers have come back from connections that hold some of it back.
    more_held_back: bool,
    /// Connections that are not read because of this, the longest first. They count as queued for reading.
    held_up: VecDeque<Key>,
    /// Memory for events that wait for handlers: most connections need some for a moment, again and again.
    spares: Vec<Vec<Event>>,
}

const SPARES_MAX: usize = 64;
/// Larger ones are not kept.
const SPARE_EVENTS_MAX: usize = 64;

impl Intake {
    pub(super) fn new(limits: &Limits, shards: usize) -> Self {
        Self {
            unfinished: 0,
            unhandled: 0,
            asking: 0,
            // There is always room for one message.
            half: (limits.received_bytes_max / 2 / shards).max(limits.message_bytes_max),
            more_held_back: false,
            held_up: VecDeque::new(),
            spares: Vec::new(),
        }
    }

    /// Memory for the next events that wait.
    pub(super) fn spare(&mut self) -> Vec<Event> {
        self.spares.pop().unwrap_or_default()
    }

    pub(super) fn give_back(&mut self, spare: Vec<Event>) {
        debug_assert!(spare.is_empty());
        if (1..=SPARE_EVENTS_MAX).contains(&spare.capacity()) && self.spares.len() < SPARES_MAX {
            self.spares.push(spare);
        }
    }

    pub(super) fn add_unhandled(&mut self, bytes: usize) {
        self.unhandled += bytes;
    }

    /// Handlers are done with it, or nobody will be.
    pub(super) fn sub_unhandled(&mut self, bytes: usize) {
        debug_assert!(self.unhandled >= bytes);
        self.unhandled = self.unhandled.saturating_sub(bytes);
    }

    /// Keeps a handshake until the program has decided about it, if there is room. Clients are to wait for the answer
    /// (RFC 6455 §4.1): for those that have sent something behind it, there is half the room.
    pub(super) fn add_asking(&mut self, bytes: usize, is_early: bool) -> bool {
        self.asking += bytes;
        self.asking <= self.half / if is_early { 8 } else { 4 }
    }

    /// The program has decided, or will not.
    pub(super) fn sub_asking(&mut self, bytes: usize) {
        debug_assert!(self.asking >= bytes);
        self.asking = self.asking.saturating_sub(bytes);
    }

    /// What a connection holds of an unfinished message has changed.
    pub(super) fn set_unfinished(&mut self, before: usize, now: usize) {
        self.unfinished = self.unfinished + now - before;
    }

    /// Handlers are to catch up before anything more is read.
    pub(super) fn is_full(&self) -> bool {
        self.unhandled > self.half
    }

    /// The connection that was held up longest, once there is room. Whoever has just been read is read after it.
    pub(super) fn read_on(&mut self) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        self.held_up.pop_front()
    }

    pub(super) fn held_up(&self) -> usize {
        self.held_up.len()
    }

    fn has_too_much_unfinished(&self) -> bool {
        self.unfinished > self.half
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn bytes(&self) -> usize {
        self.unfinished + self.unhandled + self.asking
    }
}

impl<T: Transport> Core<T> {
    /// Whether a WebSocket is not to be read for now; it is when handlers have caught up.
    pub(super) fn holds_up(&mut self, slot: u32) -> bool {
        if !self.intake.is_full() {
            return false;
        }
        let key = self.conns.key(slot);
        let Some((key, conn)) = key.zip(self.conns.get_mut(slot)) else {
            return false;
        };
        if !matches!(conn.role, Role::WebSocket(_)) {
            return false;
        }
        conn.queued = true;
        if self.intake.held_up.len() > 2 * self.conns.len() + 64 {
            // Those that have gone meanwhile.
            let conns = &self.conns;
            self.intake.held_up.retain(|&key| conns.find(key).is_some());
        }
        self.intake.held_up.push_back(key);
        true
    }

    /// Where the messages of all together take too much room, the greediest go, with their connections.
    pub(super) fn make_room(&mut self) {
        while self.intake.has_too_much_unfinished()
            && let Some(slot) = self.greediest(|ws, _| ws.unfinished_bytes())
        {
            self.give_up_on(
                slot,
                CloseCode::TRY_AGAIN_LATER,
                "too many unfinished messages",
            );
        }
        self.make_room_for_handling();
    }

    /// Where nothing is read for the sake of clients that do not read, those that hold most of it go.
    fn make_room_for_handling(&mut self) {
        if !self.intake.is_full() {
            return;
        }
        let held_back = self.by_greed(WebSocket::held_back_bytes);
        let mut sum: usize = held_back.iter().map(|&(_, bytes)| bytes).sum();
        for (slot, bytes) in held_back {
            // The rest of the room is free as soon as handlers have caught up.
            if sum <= self.intake.half / 2 {
                break;
            }
            sum -= bytes;
            self.disconnect_slow(slot);
        }
    }

    /// Handlers have come back from a connection, and may not be given more of it.
    pub(super) fn note_held_back(&mut self, slot: u32) {
        let limits = &self.hub.settings.limits;
        if let Some(Role::WebSocket(ws)) = self.conns.get(slot).map(|conn| &conn.role) {
            self.intake.more_held_back |= ws.held_back_bytes(limits) > 0;
        }
    }

    /// All that have come back are noted.
    pub(super) fn make_room_for_noted(&mut self) {
        if std::mem::take(&mut self.intake.more_held_back) {
            self.make_room_for_handling();
        }
    }

    /// The WebSocket that is to give way first, if any has something.
    fn greediest(&self, bytes: impl Fn(&WebSocket, &Limits) -> usize) -> Option<u32> {
        self.by_greed(bytes).first().map(|&(slot, _)| slot)
    }

    /// The WebSockets that have something, and how much, in the order in which they are to give way: those of the
    /// address first that has most of it in all, lest somebody with many connections be taken for many who are modest.
    pub(super) fn by_greed(
        &self,
        bytes: impl Fn(&WebSocket, &Limits) -> usize,
    ) -> Vec<(u32, usize)> {
        let limits = &self.hub.settings.limits;
        let mut of_address = HashMap::new();
        let mut all = Vec::new();
        for slot in self.conns.used() {
            if let Some(Role::WebSocket(ws)) = self.conns.get(slot).map(|conn| &conn.role)
                && let bytes @ 1.. = bytes(ws, limits)
            {
                let address = counted_as(ws.session.client_ip());
                *of_address.entry(address).or_insert(0) += bytes;
                all.push((address, slot, bytes));
            }
        }
        all.sort_unstable_by_key(|(address, _, bytes)| {
            Reverse((of_address.get(address).copied(), *bytes))
        });
        all.into_iter()
            .map(|(_, slot, bytes)| (slot, bytes))
            .collect()
    }
}
