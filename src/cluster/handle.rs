//! A running node of a cluster, as the app's threads use it.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::broker::Channel;
use super::counters::ClusterCounters;
use super::interest::{Interest, Waited};
use super::node::InterestChange;
use super::outgoing::{NotQueued, Reservation, Wake};
use super::servers::{ServerShared, server_of};
use super::wire::{OVERHEAD_BYTES_MAX, RemoteConnection};
use crate::message::Message;
use crate::sync::lock;
use crate::user_threads;

/// How long a join waits for the subscription of its room.
const JOIN_WAIT_MAX: Duration = Duration::from_secs(2);

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
        message.bytes().len() + OVERHEAD_BYTES_MAX <= self.message_bytes_max
    }

    fn server(&self, channel: &Channel) -> &ServerShared {
        &self.shared.servers[server_of(channel, &self.shared.servers)]
    }

    /// Reserves space for a message to the other nodes. Never waits.
    pub(crate) fn try_reserve(
        &self,
        channel: &Channel,
        message: &Message,
    ) -> Result<Reservation<'_>, NotQueued> {
        let outgoing = &self.server(channel).outgoing;
        outgoing.try_reserve(message, Instant::now())
    }

    /// Sends a message to the other nodes. Waits while the queue is full. A message that can't be queued is counted.
    pub(crate) fn publish(
        &self,
        channel: Channel,
        message: Message,
        except: Option<RemoteConnection>,
    ) {
        match self.server(&channel).outgoing.reserve(&message) {
            Ok(reserved) => reserved.push(channel, message, except, Instant::now()),
            Err(_) => self.shared.counters.dropped_broker.add(1),
        }
    }

    /// Records that this node needs the messages of a room from now on. Calls for the same room must not overlap.
    pub(crate) fn need(&self, room: &Arc<str>) -> Arc<Interest> {
        let server = server_of(&Channel::Room(room.clone()), &self.shared.servers);
        let interest = Arc::new(Interest::new(server));
        self.change(InterestChange::Needed(room.clone(), interest.clone()));
        interest
    }

    /// Records that this node no longer needs the messages of a room. Calls for the same room must not overlap.
    pub(crate) fn unneed(&self, room: &Arc<str>) {
        self.change(InterestChange::Unneeded(room.clone()));
    }

    fn change(&self, change: InterestChange) {
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

    /// Ends the link once what is queued has been sent, or after this time.
    pub(crate) fn stop(&self, wait: Duration) {
        let now = Instant::now();
        let by = now.checked_add(wait).unwrap_or(now + STOP_WAIT_MAX);
        let mut stop_by = lock(&self.shared.stop_by);
        let earliest = stop_by.map_or(by, |earlier| earlier.min(by));
        *stop_by = Some(earliest.min(now + STOP_WAIT_MAX));
        drop(stop_by);
        self.shared.waker.wake();
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

/// What is queued when the app stops is sent for at most this long.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
