//! A running node of a cluster, as the app's threads use it.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker::Channel;
use super::counters::ClusterCounters;
use super::interest::{Interest, Waited};
use super::node::InterestChange;
use super::outgoing::{NotQueued, Outbound, Reservation, Wake};
use super::queries::{Answers, Queries};
use super::servers::{ServerShared, server_of};
use super::wire::{Content, DirectAction, OVERHEAD_BYTES_MAX, RemoteConnection};
use crate::message::Message;
use crate::report::{Limited, limited};
use crate::sync::lock;
use crate::user_threads;

/// How long a join waits for the subscription of its room.
const JOIN_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a question waits for the answers of the other nodes.
const ANSWERS_WAIT_MAX: Duration = Duration::from_millis(250);

/// Wakes the thread of the link, if it sleeps.
pub(super) struct LinkWaker {
    waker: mio::Waker,
    asleep: AtomicBool,
}

impl LinkWaker {
    pub(super) fn new(waker: mio::Waker) -> Self {
        Self {
            waker,
            asleep: AtomicBool::new(false),
        }
    }

    /// The link is about to sleep. It must look for work once more before it does.
    pub(super) fn sleeps(&self) {
        self.asleep.store(true, SeqCst);
    }

    /// Wakes the link from a thread whose work the link can't see before it sleeps.
    pub(super) fn wake_always(&self) {
        if let Err(error) = self.waker.wake() {
            crate::report::error!("the link to the cluster could not be woken: {error}");
        }
    }

    pub(super) fn is_awake(&self) {
        self.asleep.store(false, SeqCst);
    }
}

impl Wake for LinkWaker {
    fn wake(&self) {
        if self.asleep.swap(false, SeqCst) {
            self.wake_always();
        }
    }
}

/// What the app's threads and the link share.
pub(super) struct Shared {
    pub(super) servers: Vec<Arc<ServerShared>>,
    pub(super) interest: Mutex<Vec<InterestChange>>,
    pub(super) counters: Arc<ClusterCounters>,
    pub(super) queries: Arc<Queries>,
    pub(super) waker: Arc<LinkWaker>,
    /// When the link has to have ended; `None` while the app runs.
    pub(super) stop_by: Mutex<Option<Instant>>,
}

/// A running node of a cluster.
pub(crate) struct ClusterHandle {
    pub(super) node: u32,
    pub(super) message_bytes_max: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for ClusterHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterHandle")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl ClusterHandle {
    /// The number of this node, drawn at its start.
    pub(crate) fn node(&self) -> u32 {
        self.node
    }

    /// Whether the cluster carries a message of this length.
    pub(crate) fn carries(&self, message: &Message) -> bool {
        message.bytes().len() <= self.message_bytes_max()
    }

    fn server(&self, channel: &Channel) -> &ServerShared {
        &self.shared.servers[server_of(channel, &self.shared.servers)]
    }

    /// Reserves space for a message to the other nodes. Never waits.
    pub(crate) fn try_reserve(
        &self,
        channel: &Channel,
        content: &Outbound,
    ) -> Result<Reservation<'_>, NotQueued> {
        let outgoing = &self.server(channel).outgoing;
        let reserved = outgoing.try_reserve(content, Instant::now());
        reserved.inspect_err(|refused| {
            if *refused == NotQueued::Stopped {
                self.shared.counters.dropped_not_running.add(1);
            }
        })
    }

    /// Queues content for other nodes. Waits while the queue is full. Content that can't be queued is counted as dropped.
    pub(crate) fn publish(&self, channel: Channel, content: Outbound) -> Result<(), NotQueued> {
        let outgoing = &self.server(&channel).outgoing;
        let reserved = match user_threads::must_not_block() {
            true => outgoing.try_reserve(&content, Instant::now()),
            false => outgoing.reserve(&content),
        };
        match reserved {
            Ok(reserved) => {
                reserved.push(channel, content, Instant::now());
                Ok(())
            }
            Err(refused) => {
                let counters = &self.shared.counters;
                match refused {
                    NotQueued::Stopped => counters.dropped_not_running.add(1),
                    NotQueued::Full | NotQueued::Unreachable => counters.dropped_broker.add(1),
                }
                Err(refused)
            }
        }
    }

    /// Acts on a connection of another node. Waits while the queue is full.
    pub(crate) fn act(
        &self,
        to: RemoteConnection,
        action: DirectAction<'_>,
    ) -> Result<(), NotQueued> {
        let content = Outbound::Encoded(Content::Direct(to, action).encode());
        self.publish(Channel::Node(to.node), content)
    }

    /// Acts on a connection of another node. Never waits.
    pub(crate) fn try_act(
        &self,
        to: RemoteConnection,
        action: DirectAction<'_>,
    ) -> Result<(), NotQueued> {
        let content = Outbound::Encoded(Content::Direct(to, action).encode());
        let channel = Channel::Node(to.node);
        let reserved = self.try_reserve(&channel, &content)?;
        reserved.push(channel, content, Instant::now());
        Ok(())
    }

    /// Whether the broker server of a room can be reached.
    pub(crate) fn reaches(&self, room: &Arc<str>) -> bool {
        self.server(&Channel::Room(room.clone())).status.is_up()
    }

    /// Queues what this node tells about the presence of a room. Never waits. Returns whether it was queued.
    pub(crate) fn tell_presence(&self, room: &Arc<str>, update: &[u8]) -> bool {
        /// It repeats with each change.
        static TOO_LONG: Limited = Limited::new();
        let channel = Channel::Room(room.clone());
        let content = Outbound::Encoded(Content::Presence(update).encode());
        if update.len() > self.message_bytes_max() {
            limited!(
                TOO_LONG,
                warning,
                "the presence of room {room:?} can't be told to other nodes: a state of {} bytes is too long for \
                 Cluster::message_bytes_max, or for the broker; lower PresenceRooms::state_bytes_max",
                update.len()
            );
            return true;
        }
        match self.try_reserve(&channel, &content) {
            Ok(reserved) => {
                reserved.push(channel, content, Instant::now());
                true
            }
            Err(_) => false,
        }
    }

    /// Asks a node for the members of all its rooms. Never waits. If it is not queued, nothing happens.
    pub(crate) fn ask_for_presence(&self, node: u32) {
        let channel = Channel::Node(node);
        let content = Outbound::Encoded(Content::Presence(&[]).encode());
        if let Ok(reserved) = self.try_reserve(&channel, &content) {
            reserved.push(channel, content, Instant::now());
        }
    }

    /// The longest message to other nodes.
    pub(crate) fn message_bytes_max(&self) -> usize {
        let servers = self.shared.servers.iter();
        servers
            .map(|server| server.message_bytes_max.load(Relaxed))
            .fold(self.message_bytes_max, usize::min)
            .saturating_sub(OVERHEAD_BYTES_MAX)
    }

    /// Whether this node hears another one.
    pub(crate) fn hears(&self, node: u32) -> bool {
        self.shared.queries.hears(node)
    }

    /// Closes the connections of a user on all other nodes.
    pub(crate) fn close_user(&self, user: &str, code: u16, reason: &str) {
        let content = Content::CloseUser { user, code, reason };
        let content = Outbound::Encoded(content.encode());
        // A message that can't be queued has been counted.
        let _ = self.publish(Channel::Nodes, content);
    }

    /// Counts the members of a room, or all clients, on the other nodes. Waits for their answers, but not on threads that
    /// must not block.
    pub(crate) fn count(&self, room: Option<&str>) -> Answers {
        let number = self.shared.queries.begin();
        let question = Content::Count {
            query: number,
            room,
        };
        let question = Outbound::Encoded(question.encode());
        let mut wait_max = ANSWERS_WAIT_MAX;
        match self.try_reserve(&Channel::Nodes, &question) {
            Ok(reserved) if !user_threads::must_not_block() => {
                reserved.push(Channel::Nodes, question, Instant::now());
            }
            _ => wait_max = Duration::ZERO,
        }
        let answers = self.shared.queries.wait(number, wait_max);
        Answers {
            // While a broker server is unreachable, there may be nodes that this one does not hear.
            is_complete: answers.is_complete && self.is_connected(),
            ..answers
        }
    }

    /// Whether all broker servers are connected.
    pub(crate) fn is_connected(&self) -> bool {
        let mut servers = self.shared.servers.iter();
        servers.all(|server| server.status.is_up())
    }

    /// Records that this node needs the messages of a room from now on. Calls for the same room must not overlap.
    /// If the room keeps a history, `history_bytes_max` is about the most bytes of it.
    pub(crate) fn need(&self, room: &Arc<str>, history_bytes_max: Option<usize>) -> Arc<Interest> {
        let server = server_of(&Channel::Room(room.clone()), &self.shared.servers);
        let interest = Arc::new(Interest::new(server));
        self.change(InterestChange::Needed {
            room: room.clone(),
            interest: interest.clone(),
            history_bytes_max,
        });
        interest
    }

    /// Records that this node no longer needs the messages of a room. Calls for the same room must not overlap.
    pub(crate) fn unneed(&self, room: &Arc<str>) {
        self.change(InterestChange::Unneeded(room.clone()));
    }

    fn change(&self, change: InterestChange) {
        let mut servers = self.shared.servers.iter();
        if servers.any(|server| server.outgoing.has_stopped()) {
            // Nobody reads the list any longer.
            return;
        }
        lock(&self.shared.interest).push(change);
        self.shared.waker.wake();
    }

    /// Waits until the messages of a room reach this node. Does not wait while its broker is known to be unreachable,
    /// nor on threads that must not block.
    pub(crate) fn wait_for(&self, interest: &Interest) -> Waited {
        let wait_max = match user_threads::must_not_block() {
            true => Duration::ZERO,
            false => JOIN_WAIT_MAX,
        };
        let server = &self.shared.servers[interest.server];
        server.status.wait_for(interest, wait_max)
    }

    pub(crate) fn counters(&self) -> &ClusterCounters {
        &self.shared.counters
    }

    /// Ends the link once it has sent the queued messages, or after this time.
    pub(crate) fn stop(&self, wait: Duration) {
        let now = Instant::now();
        let by = now.checked_add(wait).unwrap_or(now + STOP_WAIT_MAX);
        let mut stop_by = lock(&self.shared.stop_by);
        let earliest = stop_by.map_or(by, |earlier| earlier.min(by));
        *stop_by = Some(earliest.min(now + STOP_WAIT_MAX));
        drop(stop_by);
        // The link does not check `stop_by` again before it sleeps.
        self.shared.waker.wake_always();
    }

    /// Waits until the link has ended. It ends only after [`stop`](Self::stop).
    pub(crate) fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// The maximum time for which a stopping link sends queued messages.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
