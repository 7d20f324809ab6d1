//! The clients of all nodes. One thread serves them, and checks what each receives.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::accounts::{Accounts, Origin};
use super::frames::{BUSY, FromNode};
pub(crate) use super::member::Member;
use super::member::{Arrived, JOIN_KEPT, JOIN_PLAIN, Link, Stage};
use super::node::{END, kept_room};
use super::{NODES, SENDERS_MAX};
use crate::body::MessageCodec;
use crate::check::{DEADLINE, During, Failure, Outcome, ensure};
use crate::client::source;
use crate::random::Random;

/// Clients that may connect or join at once: fewer than the 128 connections that wait at a listener of the standard library until
/// they are accepted. Of more, the kernel would drop some, which it repeats after a second.
const STARTING_MAX: usize = 100;
/// How long a client waits before it tries another node, and before it repeats a join that was answered with the error busy.
const RETRY: Duration = Duration::from_millis(100);
const EVENTS: usize = 512;
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// The size of a fleet, and what its clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FleetPlan {
    pub(crate) clients: u64,
    pub(crate) rooms: u32,
    /// Whether each client also joins a room without a history.
    pub(crate) joins_plain: bool,
    /// Whether last messages are sent there, too.
    pub(crate) plain_ends: bool,
    pub(crate) addresses: [SocketAddrV4; NODES],
    pub(crate) codec: MessageCodec,
}

/// What the thread of the fleet tells while it runs.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Clients that have joined all their rooms, and whose join was answered with the error busy.
    pub(crate) live: AtomicU64,
    pub(crate) busy: AtomicU64,
    /// Clients that have joined all their rooms on each node.
    pub(crate) members: [AtomicU64; NODES],
    /// Clients that have received the last message of each node, of the number of nodes that [`Fleet::expect_ends`] named.
    pub(crate) ended: AtomicU64,
    pub(crate) gaps: AtomicU64,
    /// The highest number of each sender in rooms with a history that a client of each node has received.
    newest: [[AtomicU64; SENDERS_MAX]; NODES],
    failed: AtomicBool,
}

enum Order {
    /// Ends all connections, connects anew, and records the times.
    Reconnect,
    /// Whether clients repeat a join that was answered with the error busy.
    Hold(bool),
    ExpectEnds(u32),
    Times(Sender<JoinTimes>),
    Finish,
}

/// How long clients took since the last [`Fleet::reconnect`].
#[derive(Debug, Default)]
pub(crate) struct JoinTimes {
    /// From connecting until the join was answered, with success or the error busy.
    pub(crate) kept: Vec<Duration>,
    /// From the call to join a room without a history until its success.
    pub(crate) plain: Vec<Duration>,
}

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) progress: Arc<Progress>,
    orders: Sender<Order>,
    thread: JoinHandle<Outcome<(Vec<Member>, Accounts)>>,
}

impl Fleet {
    pub(crate) fn start(plan: FleetPlan, random: Random) -> Outcome<Self> {
        let progress = Arc::new(Progress::default());
        let (orders, receiver) = channel();
        let mut work = Work::new(plan, random, progress.clone())?;
        let thread = thread::spawn(move || {
            let outcome = work.run(&receiver);
            if outcome.is_err() {
                work.progress.failed.store(true, SeqCst);
            }
            outcome.map(|()| (work.members, work.accounts))
        });
        Ok(Self {
            progress,
            orders,
            thread,
        })
    }

    fn order(&self, order: Order) {
        // If the thread has ended, its failure is reported by `wait`.
        let _ = self.orders.send(order);
    }

    pub(crate) fn reconnect(&self) {
        self.order(Order::Reconnect);
    }

    pub(crate) fn hold(&self, holds: bool) {
        self.order(Order::Hold(holds));
    }

    /// Names the senders of last messages, as bits.
    pub(crate) fn expect_ends(&self, senders: u32) {
        self.order(Order::ExpectEnds(senders));
    }

    /// How long clients took since the last [`reconnect`](Self::reconnect).
    pub(crate) fn times(&self) -> Outcome<JoinTimes> {
        let (times, receiver) = channel();
        self.order(Order::Times(times));
        receiver
            .recv_timeout(DEADLINE)
            .during("waiting for the clients")
    }

    /// Whether the thread has found a violation.
    pub(crate) fn has_failed(&self) -> bool {
        self.progress.failed.load(SeqCst)
    }

    /// The highest number of a sender that a client of a node has received.
    pub(crate) fn newest(&self, node: usize, sender: u32) -> u64 {
        self.progress.newest[node][sender as usize].load(SeqCst)
    }

    /// Ends the fleet, and returns what each client has received, and what all have. Fails if one has found a violation.
    pub(crate) fn finish(self) -> Outcome<(Vec<Member>, Accounts)> {
        let _ = self.orders.send(Order::Finish);
        let finished = self.thread.join();
        finished.unwrap_or_else(|_| Err(Failure::new("the thread of the clients panicked")))
    }
}

/// What the thread of the fleet works on.
struct Work {
    plan: FleetPlan,
    random: Random,
    progress: Arc<Progress>,
    members: Vec<Member>,
    accounts: Accounts,
    epoll: OwnedFd,
    /// Clients that have to connect or to repeat their join, in the order of their times.
    waiting: VecDeque<(Instant, usize)>,
    starting: usize,
    holds: bool,
    ends: u32,
    times: JoinTimes,
}

impl Work {
    fn new(plan: FleetPlan, random: Random, progress: Arc<Progress>) -> Outcome<Self> {
        let now = Instant::now();
        let members: Vec<_> = (0..plan.clients)
            .map(|number| {
                let (room, node) = (
                    number % u64::from(plan.rooms),
                    number / u64::from(plan.rooms),
                );
                Member::new(room as u32, node as usize % NODES)
            })
            .collect();
        Ok(Self {
            waiting: (0..members.len()).map(|index| (now, index)).collect(),
            members,
            accounts: Accounts::new(plan.codec, plan.rooms),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            plan,
            random,
            progress,
            starting: 0,
            holds: false,
            ends: 0,
            times: JoinTimes::default(),
        })
    }

    fn run(&mut self, orders: &Receiver<Order>) -> Outcome {
        let mut events = Vec::with_capacity(EVENTS);
        let mut buffer = vec![0; 64 << 10];
        loop {
            loop {
                match orders.try_recv() {
                    Ok(Order::Finish) | Err(TryRecvError::Disconnected) => return Ok(()),
                    Ok(order) => self.obey(order),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.start_waiting()?;
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, Some(&TICK)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let index = event.data.u64() as usize;
                self.receive(index, &mut buffer).during(format!(
                    "client {index}, of {} on node {}",
                    kept_room(self.members[index].room),
                    self.members[index].node
                ))?;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Reconnect => {
                self.times = JoinTimes::default();
                for index in 0..self.members.len() {
                    if self.members[index].stage != Stage::Down {
                        self.disconnect(index, Duration::ZERO);
                    }
                }
            }
            Order::Hold(holds) => {
                self.holds = holds;
                let now = Instant::now();
                for index in 0..self.members.len() {
                    if !holds && self.members[index].stage == Stage::Busy {
                        self.waiting.push_back((now, index));
                    }
                }
            }
            Order::ExpectEnds(ends) => {
                self.ends = ends;
                let has_ended = |member: &&Member| self.has_ended(member);
                let ended = self.members.iter().filter(has_ended).count();
                self.progress.ended.store(ended as u64, SeqCst);
            }
            Order::Times(times) => drop(times.send(std::mem::take(&mut self.times))),
            Order::Finish => {}
        }
    }

    fn has_ended(&self, member: &Member) -> bool {
        let has_all = |ends: u32| ends & self.ends == self.ends;
        self.ends != 0
            && has_all(member.kept.ends)
            && (!self.plan.plain_ends || has_all(member.plain.ends))
    }

    /// Changes a client's stage, and the numbers that the scenario sees.
    fn enter(&mut self, index: usize, stage: Stage) {
        let is_starting = |stage| {
            matches!(
                stage,
                Stage::Upgrading | Stage::JoiningKept | Stage::JoiningPlain
            )
        };
        let before = std::mem::replace(&mut self.members[index].stage, stage);
        self.starting =
            self.starting + usize::from(is_starting(stage)) - usize::from(is_starting(before));
        let on_node = &self.progress.members[self.members[index].node];
        for (counted, of) in [
            (on_node, Stage::Live),
            (&self.progress.live, Stage::Live),
            (&self.progress.busy, Stage::Busy),
        ] {
            match (before == of, stage == of) {
                (true, false) => drop(counted.fetch_sub(1, SeqCst)),
                (false, true) => drop(counted.fetch_add(1, SeqCst)),
                _ => {}
            }
        }
    }

    /// Ends a client's connection; it connects anew after `wait`.
    fn disconnect(&mut self, index: usize, wait: Duration) {
        self.enter(index, Stage::Down);
        // It is removed from epoll when it is closed.
        let member = &mut self.members[index];
        member.link = None;
        member.has_joined_plain = false;
        member.is_silent = false;
        member.ended += 1;
        self.waiting.push_back((Instant::now() + wait, index));
    }

    fn start_waiting(&mut self) -> Outcome {
        let now = Instant::now();
        // Those that have to wait may stand before others that don't, for `RETRY` at most.
        while self.starting < STARTING_MAX
            && let Some(&(due, index)) = self.waiting.front()
            && due <= now
        {
            self.waiting.pop_front();
            match self.members[index].stage {
                Stage::Down => self.connect(index)?,
                Stage::Busy if !self.holds => {
                    self.enter(index, Stage::JoiningKept);
                    self.members[index].begun = now;
                    self.members[index].join_kept();
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> Outcome {
        let member = &mut self.members[index];
        member.begun = Instant::now();
        let address = self.plan.addresses[member.node];
        match Link::connect(address, source(index as u64)) {
            Ok(link) => {
                let data = epoll::EventData::new_u64(index as u64);
                epoll::add(&self.epoll, &link.stream, data, epoll::EventFlags::IN)?;
                member.link = Some(link);
                self.enter(index, Stage::Upgrading);
            }
            // Nobody listens there.
            Err(_) => self.try_elsewhere(index),
        }
        Ok(())
    }

    /// Has a client connect to another node.
    fn try_elsewhere(&mut self, index: usize) {
        self.disconnect(index, RETRY);
        let member = &mut self.members[index];
        member.node = (member.node + 1 + self.random.below(NODES as u64 - 1) as usize) % NODES;
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Outcome {
        // An event may be left over from a connection that has ended since.
        let Some(mut link) = self.members[index].link.take() else {
            return Ok(());
        };
        let mut arrived = Vec::new();
        link.receive(buffer, |what| {
            arrived.push(what);
            Ok(())
        })?;
        self.members[index].link = Some(link);
        for what in arrived {
            match what {
                Arrived::Upgraded => {
                    self.enter(index, Stage::JoiningKept);
                    self.members[index].join_kept();
                }
                Arrived::Message(bytes) => self.take(index, &FromNode::read(&bytes)?)?,
                Arrived::Ended => {
                    self.try_elsewhere(index);
                    break;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, what: &FromNode<'_>) -> Outcome {
        let member = &mut self.members[index];
        if let FromNode::Kept { room, .. }
        | FromNode::Gap { room, .. }
        | FromNode::Silence { room, .. } = what
        {
            let own = kept_room(member.room);
            ensure!(*room == own, "a message of {room} arrived");
        }
        match *what {
            FromNode::Kept { id, message, .. } => {
                let room = member.room;
                let origin = self.accounts.kept(&mut member.kept, room, id, message)?;
                self.note(index, origin);
            }
            FromNode::Plain(message) => {
                let node = member.node;
                let origin = self.accounts.plain(&mut member.plain, node, message)?;
                self.note(index, origin);
            }
            FromNode::Gap { position, .. } => {
                member.kept.position = Some(position);
                member.gaps += 1;
                self.progress.gaps.fetch_add(1, SeqCst);
            }
            FromNode::ReplayGap { call } => {
                ensure!(call == JOIN_KEPT, "a gap in an unknown replay");
                member.kept.replays_all();
                member.replay_gaps += 1;
            }
            FromNode::Silence { is_silent, .. } => {
                // One that has joined just before the end of a silence is told of the end only.
                ensure!(
                    !(is_silent && member.is_silent),
                    "the client was told twice that its room is silent"
                );
                member.is_silent = is_silent;
                member.silences += u64::from(is_silent);
            }
            FromNode::Response { call, last } => self.joined(index, call, last)?,
            FromNode::Error {
                call,
                code,
                ref text,
            } => {
                ensure!(
                    call == JOIN_KEPT && code == BUSY,
                    "a join (call {call}) failed with the error {code}: {text}"
                );
                self.times.kept.push(member.begun.elapsed());
                self.after_join(index, Stage::Busy);
            }
        }
        Ok(())
    }

    fn joined(&mut self, index: usize, call: u32, last: Option<humphrey_ws::HistoryId>) -> Outcome {
        let member = &mut self.members[index];
        match (call, member.stage) {
            (JOIN_KEPT, Stage::JoiningKept) => {
                let last = last.ok_or_else(|| Failure::new("the room has no history"))?;
                // A client without a position begins with the messages after this one. Messages that were sent while the
                // answer was on its way may have arrived before it.
                let position = member.kept.position.unwrap_or(last);
                ensure!(
                    position.epoch() == last.epoch() && position.sequence() >= last.sequence(),
                    "the replay ended with {position} instead of {last}"
                );
                member.kept.position = Some(position);
                self.times.kept.push(member.begun.elapsed());
                self.after_join(index, Stage::Live);
            }
            (JOIN_PLAIN, Stage::JoiningPlain) => {
                self.times.plain.push(member.begun.elapsed());
                // Whether the join before was answered with the error busy.
                let stage = match member.is_busy {
                    true => Stage::Busy,
                    false => Stage::Live,
                };
                self.settle(index, stage);
            }
            (call, stage) => ensure!(false, "a response to call {call} arrived in {stage:?}"),
        }
        Ok(())
    }

    /// The join of the room with a history was answered.
    fn after_join(&mut self, index: usize, stage: Stage) {
        let member = &mut self.members[index];
        member.is_busy = stage == Stage::Busy;
        match self.plan.joins_plain && !member.has_joined_plain {
            true => {
                member.has_joined_plain = true;
                self.enter(index, Stage::JoiningPlain);
                self.members[index].join_plain();
            }
            false => self.settle(index, stage),
        }
    }

    fn settle(&mut self, index: usize, stage: Stage) {
        self.enter(index, stage);
        if stage == Stage::Busy && !self.holds {
            self.waiting.push_back((Instant::now() + RETRY, index));
        }
    }

    /// Notes what a client has received for the scenario.
    fn note(&mut self, index: usize, (sender, number): Origin) {
        let member = &self.members[index];
        if let Some(newest) = self.progress.newest[member.node].get(sender as usize) {
            newest.fetch_max(number, SeqCst);
        } else if sender & END != 0 && self.has_ended(member) {
            self.progress.ended.fetch_add(1, SeqCst);
        }
    }
}
