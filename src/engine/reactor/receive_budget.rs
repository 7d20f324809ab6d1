//! What a shard holds of received messages, in bytes: a bound for all connections together, so that many of them can't
//! use up the memory that each of them may have.
//!
//! Unfinished messages are one half: beyond it, the connection that has most gives way. Finished ones that handlers have
//! not worked off are the other: beyond it, nothing is read until handlers have caught up. Of those, handlers are not given
//! what comes from clients that do not read the replies: where such clients have more than half of that room, they give
//! way, since waiting for handlers would not help.
//!
//! Who gives way is asked of addresses first: somebody with many connections can't have many others take his place.

use std::collections::VecDeque;

use crate::engine::model::job::Event;
use crate::engine::parts::id::Key;
use crate::engine::parts::usage_index::UsageIndex;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::engine::reactor::{Core, Role};
use crate::limits::Limits;
use crate::protocol::close::CloseCode;
use crate::transport::Transport;

pub(crate) struct Intake {
    /// Of messages that have begun.
    pub(crate) unfinished: UsageIndex,
    /// Of messages that wait for handlers, or are in their hands.
    unhandled: usize,
    /// Of handshakes that the program is being asked about, and of what clients have sent behind them.
    asking: usize,
    /// For either of the first two.
    half: usize,
    /// Of what waits for handlers, what is held back, since clients do not read the replies to what came before.
    pub(crate) held_back: UsageIndex,
    /// Connections that are not read because of this, the longest first. They count as queued for reading.
    held_up: VecDeque<Key>,
    /// Memory for events that wait for handlers: most connections need some for a moment, again and again.
    spares: Vec<Vec<Event>>,
}

const SPARES_MAX: usize = 64;

/// Larger ones are not kept.
const SPARE_EVENTS_MAX: usize = 64;

impl Intake {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Self {
        Self {
            unfinished: UsageIndex::default(),
            unhandled: 0,
            asking: 0,
            // There is always room for one message.
            half: (limits.received_bytes_max / 2 / shards).max(limits.message_bytes_max),
            held_back: UsageIndex::default(),
            held_up: VecDeque::new(),
            spares: Vec::new(),
        }
    }

    /// Memory for the next events that wait.
    pub(crate) fn spare(&mut self) -> Vec<Event> {
        self.spares.pop().unwrap_or_default()
    }

    pub(crate) fn give_back(&mut self, spare: Vec<Event>) {
        debug_assert!(spare.is_empty());
        if (1..=SPARE_EVENTS_MAX).contains(&spare.capacity()) && self.spares.len() < SPARES_MAX {
            self.spares.push(spare);
        }
    }

    pub(crate) fn add_unhandled(&mut self, bytes: usize) {
        self.unhandled += bytes;
    }

    /// Handlers are done with it, or nobody will be.
    pub(crate) fn sub_unhandled(&mut self, bytes: usize) {
        debug_assert!(self.unhandled >= bytes);
        self.unhandled = self.unhandled.saturating_sub(bytes);
    }

    /// Keeps a handshake until the program has decided about it, if there is room. Clients are to wait for the answer
    /// (RFC 6455 §4.1): for those that have sent something behind it, there is half the room.
    pub(crate) fn add_asking(&mut self, bytes: usize, is_early: bool) -> bool {
        self.asking += bytes + REQUEST_BYTES;
        let fits = self.asking <= self.half / if is_early { 8 } else { 4 };
        if !fits {
            self.asking -= REQUEST_BYTES;
        }
        fits
    }

    /// Its job has come up. Until then it counts, also where nobody waits for it any more.
    pub(crate) fn sub_job(&mut self) {
        self.sub_asking(REQUEST_BYTES);
    }

    /// The program has decided, or will not.
    pub(crate) fn sub_asking(&mut self, bytes: usize) {
        debug_assert!(self.asking >= bytes);
        self.asking = self.asking.saturating_sub(bytes);
    }

    /// Handlers are to catch up before anything more is read.
    pub(crate) fn is_full(&self) -> bool {
        self.unhandled > self.half
    }

    /// The connection that was held up longest, once there is room. Whoever has just been read is read after it.
    pub(crate) fn read_on(&mut self) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        self.held_up.pop_front()
    }

    pub(crate) fn held_up(&self) -> usize {
        self.held_up.len()
    }

    fn has_too_much_unfinished(&self) -> bool {
        self.unfinished.sum() > self.half
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn bytes(&self) -> usize {
        self.unfinished.sum() + self.unhandled + self.asking
    }
}

impl<T: Transport> Core<T> {
    /// Whether a WebSocket is not to be read for now; it is when handlers have caught up.
    pub(crate) fn holds_up(&mut self, slot: u32) -> bool {
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
    pub(crate) fn make_room(&mut self) {
        while self.intake.has_too_much_unfinished()
            && let Some((slot, _)) = self.intake.unfinished.largest()
        {
            self.give_up_on(
                slot,
                CloseCode::TRY_AGAIN_LATER,
                "too many unfinished messages",
            );
        }
        self.make_room_for_handling();
    }

    /// Where nothing is read for the sake of clients that do not read, those that hold most of it go. The rest of the room
    /// is free as soon as handlers have caught up.
    pub(crate) fn make_room_for_handling(&mut self) {
        while self.intake.is_full()
            && self.intake.held_back.sum() > self.intake.half / 2
            && let Some((slot, _)) = self.intake.held_back.largest()
        {
            self.disconnect_slow(slot);
        }
    }
}
