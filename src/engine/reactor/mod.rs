//! A shard, without its thread and its poll: one owned value that can be moved.
//!
//! Everything that a shard has in progress is in here, nothing on a thread's stack. It takes readiness, time and
//! transports as arguments, so tests run it without a socket. A turn is: `ready` for each readiness, `collect` the
//! mailbox, `turn`, then sleep for `wait`. Each step has a bound, so none starves another.
//!
//! What a connection does in its role stands in `websocket` and `request`, what concerns many in `delivery`.

#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod audit;
pub(crate) mod event_streams;
pub(crate) mod fanout;
pub(crate) mod http;
pub(crate) mod inline_jobs;
pub(crate) mod receive_budget;
pub(crate) mod rooms;
pub(crate) mod websocket;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::engine::handlers::pool;
use crate::engine::hub::{Hub, Link};
use crate::engine::model::command::{Mail, Newcomer, Upgraded, Word};
use crate::engine::model::job::{Done, Job, Work};
use crate::engine::model::program::Interests;
use crate::engine::model::room::Room;
use crate::engine::parts::id::Key;
use crate::engine::parts::inline_policy::Quickness;
use crate::engine::parts::peer_limits::Place;
use crate::engine::parts::slab::Slots;
use crate::engine::parts::timers::{Tick, Timers};
use crate::engine::reactor::fanout::Delivery;
use crate::engine::reactor::http::{Http, Requests};
use crate::engine::reactor::receive_budget::Intake;
use crate::engine::reactor::websocket::WebSocket;
use crate::metrics::Counters;
use crate::report::limited;
use crate::transport::Transport;

/// Read at once from one connection, into a buffer that all connections of a shard share. A connection that has more
/// waits for the next turn. As much as one write sends: what came together is to leave together.
pub(crate) const READ_BYTES: usize = 128 << 10;

/// Connections that give way and are told so in one turn.
pub(crate) const LEAVING_PER_TURN: usize = 32;

pub(crate) struct Core<T: Transport> {
    pub(crate) index: u16,
    pub(crate) hub: Arc<Hub>,
    pub(crate) interests: Interests,
    pub(crate) events: Arc<dyn crate::engine::model::program::Events>,
    registry: T::Registry,
    /// Writes what many are sent, if there is one.
    pub(crate) ring: Option<T::Ring>,
    pub(crate) conns: Slots<Conn<T>>,
    pub(crate) timers: Timers,
    /// When this turn began.
    pub(crate) now: Instant,
    pub(crate) tick: Tick,
    /// Connections to read from in this turn.
    ready: Vec<u32>,
    /// Connections with something to write at the end of this turn.
    pub(crate) dirty: Vec<u32>,
    /// Connections that give way, each with something to write, the longest first.
    leaving: VecDeque<Key>,
    spare_slots: Spare,
    /// For the handlers, at the end of this turn.
    pub(crate) jobs: VecDeque<Job>,
    /// Those are to run on the shard's own thread, as far as it gets, or else go to other threads.
    pub(crate) runs_inline: bool,
    pub(crate) quickness: Quickness,
    /// What came of those that have run here.
    pub(crate) dones: Vec<(Key, Done)>,
    pub(crate) delivery: Delivery,
    pub(crate) intake: Intake,
    pub(crate) requests: Requests,
    words: Vec<Word>,
    arrivals: Vec<Newcomer>,
    /// Somebody closed a connection: accepting may work again.
    pub(crate) accept_again: bool,
    /// The line of connections that wait for a request head, the oldest first: each with its place, some given up.
    pub(crate) heads: VecDeque<(u64, Key)>,
    /// How many have a place in that line.
    pub(crate) heads_len: usize,
    /// Places given out so far.
    pub(crate) heads_ever: u64,
    read_buffer: Box<[u8]>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) stop: Stop,
}

/// How far the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Running,
    /// What was taken is still being delivered.
    Draining(Instant),
    /// Everyone has been told.
    Closing(Instant),
}

/// One connection.
pub(crate) struct Conn<T> {
    /// None once it broke.
    pub(crate) transport: Option<T>,
    pub(crate) role: Role,
    /// What it counts as for its address.
    pub(crate) place: Option<Box<Place>>,
    /// There may be something to read: readiness is reported only once.
    pub(crate) readable: bool,
    /// The other side will send nothing more: read until the end shows.
    pub(crate) hangup: bool,
    /// It is in `ready`, or held up.
    pub(crate) queued: bool,
    /// It is in `dirty`.
    pub(crate) dirty: bool,
    /// When `timers` will have it looked at.
    pub(crate) timer: Option<Tick>,
}

#[allow(clippy::large_enum_variant)] // Most connections are WebSockets, which a box would cost a cache miss each.
pub(crate) enum Role {
    /// Reads a request head or is answered.
    Http(Box<Http>),
    WebSocket(WebSocket),
    /// Everything is said; the other side's end is waited for, so that what was sent is not lost by a reset.
    Lingering(Tick),
}

/// Memory of a list of slots, for the next one.
#[derive(Default)]
struct Spare(Vec<u32>);

impl Spare {
    /// Longer ones are not kept.
    const SLOTS_MAX: usize = 4096;

    /// Takes a list, and leaves an empty one.
    fn swap(&mut self, slots: &mut Vec<u32>) -> Vec<u32> {
        std::mem::replace(slots, std::mem::take(&mut self.0))
    }

    fn keep(&mut self, slots: Vec<u32>) {
        if slots.capacity() <= Self::SLOTS_MAX {
            self.0 = slots;
        }
    }
}

impl<T: Transport> Core<T> {
    pub(crate) fn new(
        index: u16,
        hub: Arc<Hub>,
        events: Arc<dyn crate::engine::model::program::Events>,
        registry: T::Registry,
        now: Instant,
    ) -> Self {
        let timers = Timers::new(now);
        Self {
            index,
            interests: events.interests(),
            events,
            registry,
            ring: None,
            conns: Slots::new(),
            tick: timers.now(now),
            timers,
            now,
            ready: Vec::new(),
            dirty: Vec::new(),
            leaving: VecDeque::new(),
            spare_slots: Spare::default(),
            jobs: VecDeque::new(),
            runs_inline: false,
            quickness: Quickness::new(now),
            dones: Vec::new(),
            delivery: Delivery::new(&hub.settings),
            intake: Intake::new(&hub.settings.limits, hub.shards.len()),
            requests: Requests::new(&hub.settings.limits, hub.shards.len()),
            hub,
            words: Vec::new(),
            arrivals: Vec::new(),
            accept_again: false,
            heads: VecDeque::new(),
            heads_len: 0,
            heads_ever: 0,
            read_buffer: vec![0; READ_BYTES].into(),
            scratch: Vec::new(),
            stop: Stop::Running,
        }
    }

    /// Writes to many connections go through this from now on.
    pub(crate) fn write_through(&mut self, ring: Option<T::Ring>) {
        self.ring = ring;
    }

    pub(crate) fn link(&self) -> &Link {
        &self.hub.shards[usize::from(self.index)]
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.link().counters
    }

    /// Begins a turn: takes what others have left. Messages are delivered before word of the handlers that sent them.
    pub(crate) fn collect(&mut self, now: Instant) {
        self.now = now;
        self.timers.go_on(now);
        self.tick = self.timers.now(now);
        self.runs_inline = self.hub.settings.adaptive_handlers
            && self.quickness.is_quick(now, || self.hub.jobs.is_slow());
        self.count_pace();
        self.take_mail();
        let mut dones = std::mem::take(&mut self.dones);
        for (key, done) in dones.drain(..) {
            self.done(key, done);
        }
        self.dones = dones;
        let mut words = std::mem::take(&mut self.words);
        for word in words.drain(..) {
            match word {
                Word::Done(key, done) => self.done(key, done),
                Word::Newcomer(newcomer) => self.arrivals.push(*newcomer),
                Word::Stop(deadline) => self.begin_stop(deadline),
                Word::Accept => self.accept_again = true,
                Word::Nudge(key) => self.nudge(key),
            }
        }
        self.words = words;
        self.make_room_for_handling();
    }

    /// Takes data unless it is paced, and word always.
    fn take_mail(&mut self) {
        let mailbox = &self.hub.shards[usize::from(self.index)].mailbox;
        let wants_data = self.delivery.wants_mail();
        let data = wants_data.then_some(&mut self.delivery.mail);
        let pushed = mailbox.take(data, &mut self.words);
        self.delivery.taken(pushed);
        self.deliver_mail();
    }

    /// Connections that others have handed over since the last call.
    pub(crate) fn arrivals(&mut self) -> Vec<Newcomer> {
        std::mem::take(&mut self.arrivals)
    }

    /// Whether accepting may work again since the last call.
    pub(crate) fn takes_accept_again(&mut self) -> bool {
        std::mem::take(&mut self.accept_again)
    }

    /// Takes in a connection, which `hub.shards[index].load` counts already.
    pub(crate) fn insert(
        &mut self,
        mut transport: T,
        peer: SocketAddr,
        place: Option<Box<Place>>,
        mut upgraded: Option<Upgraded>,
    ) {
        self.counters().accepted.add(1);
        let accepted = upgraded
            .as_mut()
            .and_then(|upgraded| upgraded.accepted.as_mut());
        if !accepted.is_some_and(|accepted| accepted.give_seat()) {
            self.hub.connected();
        }
        let messages = upgraded.as_ref().map_or(0, Upgraded::messages);
        if self.stop != Stop::Running {
            self.counters().refused_unserved.add(1);
            self.hub.count_unhandled(messages);
            drop(transport);
            self.forget();
            return;
        }
        let key = self.conns.next_key();
        let token = key
            .token()
            .ok_or_else(|| io::Error::other("the shard has no slot left"));
        if let Err(error) = token.and_then(|token| transport.register(&self.registry, token)) {
            limited!(
                self.hub.said.not_polled,
                error,
                "{peer} could not be polled and is disconnected: {error}"
            );
            self.counters().refused_unserved.add(1);
            self.hub.count_unhandled(messages);
            drop(transport);
            self.forget();
            return;
        }
        self.conns.insert(Conn {
            transport: Some(transport),
            role: Role::Http(Box::new(Http::new(peer, self.tick))),
            place,
            // Bytes may have come before the registration.
            readable: true,
            hangup: false,
            queued: false,
            dirty: false,
            timer: None,
        });
        self.begin_head(key.slot);
        if let Some(upgraded) = upgraded {
            self.take_over(key.slot, peer, upgraded);
        }
        self.want_read(key.slot);
    }

    /// A connection counts no longer.
    fn forget(&self) {
        self.link().load.fetch_sub(1, Relaxed);
        self.hub.disconnected();
    }

    /// Readiness of a connection.
    pub(crate) fn ready(&mut self, token: usize, readable: bool, hangup: bool, writable: bool) {
        let Some(slot) = self.conns.find_token(token) else {
            return;
        };
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        if readable || hangup {
            conn.readable = true;
            conn.hangup |= hangup;
        }
        let mut writes = writable;
        if writable && let Role::WebSocket(ws) = &mut conn.role {
            ws.unblocked();
            // Every report says so whose socket has room: mostly nothing waits for that.
            writes = !ws.outbox.is_empty();
        }
        if readable || hangup {
            self.want_read(slot);
        }
        if writes {
            self.want_write(slot);
        }
    }

    /// Has a connection read in this turn, or the next if this one's reading is over.
    pub(crate) fn want_read(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && conn.readable
            && !conn.queued
        {
            conn.queued = true;
            self.ready.push(slot);
        }
    }

    /// Has a connection written at the end of this turn.
    pub(crate) fn want_write(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot)
            && !conn.dirty
        {
            conn.dirty = true;
            if matches!(&conn.role, Role::WebSocket(ws) if ws.gives_way) {
                self.leaving.extend(self.conns.key(slot));
            } else {
                self.dirty.push(slot);
            }
        }
    }

    /// The turn proper: reads, timers, writes; then jobs go to the handlers.
    pub(crate) fn turn(&mut self) {
        for _ in 0..self.intake.held_up() {
            let Some(key) = self.intake.read_on() else {
                break;
            };
            if let Some(slot) = self.conns.find(key) {
                self.read_queued(slot);
            }
        }
        let mut ready = self.spare_slots.swap(&mut self.ready);
        for slot in ready.drain(..) {
            self.read_queued(slot);
        }
        self.spare_slots.keep(ready);
        while let Some((at, slot)) = self.timers.expired(self.tick) {
            if let Some(conn) = self.conns.get_mut(slot)
                && conn.timer == Some(at)
            {
                conn.timer = None;
                self.expire(slot);
                self.arm(slot);
            }
        }
        self.go_on_stopping();
        // Handlers begin while this thread writes.
        self.hand_over();
        self.flush();
        // What the flush has set going, as when a client has read on.
        self.hand_over();
    }

    fn flush(&mut self) {
        self.flush_runs();
        while !self.dirty.is_empty() {
            self.nothing_is_tried();
            let mut dirty = self.spare_slots.swap(&mut self.dirty);
            let mut begun = self.write_at_once(&dirty);
            for (index, slot) in dirty.drain(..).enumerate() {
                if let Some(conn) = self.conns.get_mut(slot) {
                    conn.dirty = false;
                    self.write(slot, begun.get_mut(index).and_then(Option::take));
                    self.arm(slot);
                }
            }
            self.spare_slots.keep(dirty);
        }
        self.write_to_leaving();
        // By now it shows who takes something, and who does not.
        self.make_room_outside();
    }

    /// Those who give way are told so a few at a time: thousands may have to go at once, and the others are served meanwhile.
    fn write_to_leaving(&mut self) {
        for _ in 0..LEAVING_PER_TURN {
            let Some(key) = self.leaving.pop_front() else {
                break;
            };
            if let Some(slot) = self.conns.find(key)
                && let Some(conn) = self.conns.get_mut(slot)
            {
                conn.dirty = false;
                self.write(slot, None);
                self.arm(slot);
            }
        }
        if self.leaving.is_empty() && self.leaving.capacity() > Spare::SLOTS_MAX {
            self.leaving = VecDeque::new();
        }
    }

    fn read_queued(&mut self, slot: u32) {
        if let Some(conn) = self.conns.get_mut(slot) {
            conn.queued = false;
            self.read(slot);
        }
    }

    fn read(&mut self, slot: u32) -> bool {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let read = self.read_into(slot, &mut buffer);
        if let Some(n) = read {
            self.input(slot, &mut buffer[..n]);
        }
        self.read_buffer = buffer;
        self.arm(slot);
        read.is_some()
    }

    /// Reads from a connection that is about to be judged for its silence: something may have come after the poll, or be
    /// among more readiness than one poll returns. Returns whether there was anything.
    pub(crate) fn read_before_verdict(&mut self, slot: u32) -> bool {
        match self.conns.get_mut(slot) {
            // One that is queued is known to have something.
            Some(conn) if !conn.queued => conn.readable = true,
            _ => return false,
        }
        self.read(slot)
    }

    /// Reads once, if the connection wants to be read. Returns how much there is; the end is handled here.
    fn read_into(&mut self, slot: u32, buffer: &mut [u8]) -> Option<usize> {
        if !self.wants_input(slot) || self.holds_up(slot) {
            return None;
        }
        let conn = self.conns.get_mut(slot)?;
        let transport = conn.transport.as_mut()?;
        match transport.read(buffer) {
            Ok(0) => {
                conn.readable = false;
                self.input_ended(slot);
                None
            }
            Ok(n) => {
                // A short read means an empty socket, unless its end is still to be seen.
                if T::SHORT_MEANS_NOT_READY && n < buffer.len() && !conn.hangup {
                    conn.readable = false;
                } else {
                    self.want_read(slot);
                }
                Some(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                conn.readable = false;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.want_read(slot);
                None
            }
            Err(_) => {
                self.broken(slot);
                None
            }
        }
    }

    fn wants_input(&self, slot: u32) -> bool {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::Http(http)) => http.wants_input(),
            Some(Role::WebSocket(ws)) => ws.wants_input(&self.hub.settings.limits),
            Some(Role::Lingering(_)) => true,
            None => false,
        }
    }

    fn input(&mut self, slot: u32, bytes: &mut [u8]) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::Http(_)) => self.http_input(slot, bytes),
            Some(Role::WebSocket(_)) => self.ws_input(slot, bytes),
            Some(Role::Lingering(_)) | None => {}
        }
    }

    /// The other side has ended its stream.
    fn input_ended(&mut self, slot: u32) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::Http(_)) => self.http_ended(slot),
            Some(Role::WebSocket(_)) => self.ws_ended(slot),
            Some(Role::Lingering(_)) => self.free(slot),
            None => {}
        }
    }

    /// The connection broke: nothing more comes, and nothing more gets through.
    pub(crate) fn broken(&mut self, slot: u32) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::WebSocket(_)) => self.ws_broken(slot),
            Some(Role::Http(_) | Role::Lingering(_)) => self.free(slot),
            None => {}
        }
    }

    /// Writes what waits, where that has not begun already.
    pub(crate) fn write(&mut self, slot: u32, begun: Option<io::Result<usize>>) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::Http(_)) => self.http_write(slot),
            Some(Role::WebSocket(_)) => self.ws_write_on(slot, begun),
            Some(Role::Lingering(_)) | None => {}
        }
    }

    /// A deadline of the connection may have come.
    fn expire(&mut self, slot: u32) {
        match self.conns.get(slot).map(|conn| &conn.role) {
            Some(Role::Http(_)) => self.http_expire(slot),
            Some(Role::WebSocket(_)) => self.ws_expire(slot),
            Some(&Role::Lingering(until)) if until <= self.tick => self.free(slot),
            Some(Role::Lingering(_)) | None => {}
        }
    }

    /// Sees to it that the connection is looked at when its next deadline comes.
    pub(crate) fn arm(&mut self, slot: u32) {
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let next = match &conn.role {
            Role::Http(http) => Some(http.deadline()),
            Role::WebSocket(ws) => ws.deadline(&self.hub.settings),
            Role::Lingering(until) => Some(*until),
        };
        // In the next step at the earliest, so that limits of no time at all do not make a turn go round in circles.
        let next = next.map(|next| next.max(self.tick.after(Duration::from_nanos(1))));
        if let Some(next) = next
            && conn.timer.is_none_or(|timer| next < timer)
        {
            conn.timer = Some(next);
            self.timers.schedule(next, slot);
        }
    }

    /// Says that nothing more will be written, and waits for the other side to do the same.
    pub(crate) fn linger(&mut self, slot: u32) {
        let until = self.tick.after(self.hub.settings.limits.close_timeout);
        let Some(conn) = self.conns.get_mut(slot) else {
            return;
        };
        let Some(transport) = conn.transport.as_mut() else {
            self.free(slot);
            return;
        };
        transport.finish();
        match std::mem::replace(&mut conn.role, Role::Lingering(until)) {
            Role::Http(http) => self.http_release(slot, *http),
            Role::WebSocket(ws) => self.release(ws),
            Role::Lingering(_) => {}
        }
        if let Some(conn) = self.conns.get_mut(slot) {
            // What is unread must be read, or closing would reset; also where reading was held up.
            conn.readable = true;
            conn.queued = false;
        }
        self.want_read(slot);
        self.arm(slot);
    }

    /// Ends a connection here and now.
    pub(crate) fn free(&mut self, slot: u32) {
        if let Some(conn) = self.conns.remove(slot) {
            // Before others are told that accepting may work again.
            drop(conn.transport);
            match conn.role {
                Role::Http(http) => self.http_release(slot, *http),
                Role::WebSocket(ws) => self.release(ws),
                Role::Lingering(_) => {}
            }
            self.forget();
        }
    }

    /// A session goes. What the program keeps for it is dropped on a handler thread: that is user code.
    fn release(&mut self, mut ws: WebSocket) {
        ws.let_go(&mut self.intake);
        self.delivery.set_own(&mut ws, 0);
        if ws.session.attachment.get().is_some() || ws.session.talk().is_some() {
            // Behind the word of its end, which counts already, if there is any.
            let counts = !ws.end_counts;
            self.hub.ended.fetch_add(usize::from(counts), Relaxed);
            self.jobs.push_back(Job {
                to: None,
                work: Work::Release(ws.session, counts),
            });
        }
    }

    /// Something is to be read or written in the next turn.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.leaving.is_empty()
    }

    /// How long the shard may sleep: not at all, until a deadline, or for ever.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.timers.go_on(now);
        let wait = self.wait_until_work(now);
        self.timers.sleep(wait);
        wait
    }

    fn wait_until_work(&self, now: Instant) -> Option<Duration> {
        let may_read_on = self.intake.held_up() > 0 && !self.intake.is_full();
        if self.has_work() || self.has_jobs() || may_read_on || self.mail_can_go_on() {
            return Some(Duration::ZERO);
        }
        let mailbox = &self.link().mailbox;
        if !mailbox.sleep(!self.delivery.wants_mail()) {
            return Some(Duration::ZERO);
        }
        let stop = match self.stop {
            Stop::Running => None,
            Stop::Draining(deadline) | Stop::Closing(deadline) => {
                Some(deadline.saturating_duration_since(now))
            }
        };
        match (self.timers.wait(now), stop) {
            (Some(timer), Some(stop)) => Some(timer.min(stop)),
            (timer, stop) => timer.or(stop),
        }
    }

    fn begin_stop(&mut self, deadline: Instant) {
        match self.stop {
            Stop::Running => self.stop = Stop::Draining(deadline),
            // A second wish to stop can only hasten the first.
            Stop::Draining(first) => self.stop = Stop::Draining(first.min(deadline)),
            Stop::Closing(first) => self.stop = Stop::Closing(first.min(deadline)),
        }
    }

    fn go_on_stopping(&mut self) {
        if let Stop::Draining(deadline) = self.stop
            && (self.delivery.is_empty() || self.now >= deadline)
        {
            if self.now >= deadline {
                // Before everyone is told, and nobody is left that it was meant for.
                self.give_up_mail();
            }
            self.stop = Stop::Closing(deadline);
            for slot in self.conns.used() {
                match self.conns.get(slot).map(|conn| &conn.role) {
                    Some(Role::Http(_)) => self.http_stop(slot),
                    Some(Role::WebSocket(_)) => self.ws_stop(slot),
                    _ => {}
                }
                self.arm(slot);
            }
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::Running
    }

    /// Whether the shard has nothing left to do, or no time.
    pub(crate) fn is_finished(&self) -> bool {
        match self.stop {
            Stop::Running => false,
            Stop::Draining(deadline) => self.now >= deadline,
            Stop::Closing(deadline) => self.conns.len() == 0 || self.now >= deadline,
        }
    }

    /// The end: everyone who is left is disconnected, and what was not delivered is counted.
    pub(crate) fn finish(mut self) {
        self.give_up_mail();
        for slot in self.conns.used() {
            if let Some(Role::WebSocket(_)) = self.conns.get(slot).map(|conn| &conn.role) {
                self.ws_abandon(slot);
            }
            self.free(slot);
        }
        pool::push(&self.hub, &mut self.jobs, self.now);
    }

    /// There is no time left for what has been left to deliver: it is counted, once for each who was to get it.
    fn give_up_mail(&mut self) {
        let members = self.link().members.load(Relaxed);
        let mut rest = std::mem::take(&mut self.delivery.mail);
        let mut later = VecDeque::new();
        self.link().mailbox.finish(&mut later);
        rest.append(&mut later);
        let undelivered = rest.iter().map(|mail| match mail {
            Mail::Broadcast(_) => members.max(1),
            Mail::Publish(publication) => {
                let rooms = &self.delivery.rooms;
                let in_room = |room: &Arc<Room>| {
                    rooms.len(room.number()) + rooms.len(room.number_of_numbered())
                };
                let members = publication.room.as_ref().map_or(members, in_room);
                let except = usize::from(publication.except.is_some());
                let event = publication.event.as_ref();
                let streams = event.map_or(0, |(streams, _)| in_room(streams));
                (members.saturating_sub(except) + streams).max(1)
            }
            Mail::Send(..) => 1,
            Mail::Join(joining) => joining.replays(),
            Mail::Subscribe(subscribing) => subscribing.replays(),
            Mail::Close(..) | Mail::Leave(..) => 0,
        });
        let undelivered: usize = undelivered.sum();
        self.counters().dropped_not_running.add(undelivered as u64);
    }

    pub(crate) fn job(&mut self, key: Key, work: Work) {
        self.jobs.push_back(Job {
            to: Some((self.index, key)),
            work,
        });
    }
}
