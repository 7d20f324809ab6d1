//! Whether a node receives the messages of a room, as joining threads see it.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::atomic::AtomicU64;
use crate::cork;
use crate::sync::{ignore_poison, lock};

/// The subscription of a node to a room.
#[derive(Debug)]
pub(crate) struct Interest {
    /// The index of the room's broker server.
    pub(super) server: usize,
    /// The number of the connection to that server on which the room is subscribed, or with [`REFUSED`] on which the server
    /// has refused it; 0 if on none yet.
    connection: AtomicU64,
}

/// Added to the number of a connection.
const REFUSED: u64 = 1 << 63;
/// Stands for the number of a connection until the first attempt to connect has ended.
const FIRST_ATTEMPT: u64 = u64::MAX;

impl Interest {
    pub(super) fn new(server: usize) -> Self {
        Self {
            server,
            connection: AtomicU64::new(0),
        }
    }
}

/// The state of the connection to one broker server, for other threads.
#[derive(Debug)]
pub(crate) struct ServerStatus {
    /// The number of the current connection; 0 while there is none, and [`FIRST_ATTEMPT`].
    connection: AtomicU64,
    /// Threads that wait for a subscription.
    waiting: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

/// The outcome of waiting for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Subscribed,
    /// The broker server is known to be unreachable or to refuse the subscription, or did not answer in time.
    Unreachable,
}

impl ServerStatus {
    /// The status of a server at the start of the app, whose first clients wait for the first attempt to connect.
    pub(super) fn new() -> Self {
        Self {
            connection: AtomicU64::new(FIRST_ATTEMPT),
            waiting: AtomicUsize::new(0),
            lock: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Records a new connection, or that there is none (0).
    pub(super) fn set_connection(&self, connection: u64) {
        self.connection.store(connection, SeqCst);
        self.notify();
    }

    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.connection.load(Acquire), 0 | FIRST_ATTEMPT)
    }

    pub(super) fn is_subscribed(&self, interest: &Interest) -> bool {
        self.state_of(interest) == Some(Waited::Subscribed)
    }

    /// Records that a room is subscribed on the current connection.
    pub(super) fn subscribed(&self, interest: &Interest) {
        self.subscribed_on(interest, self.connection.load(Acquire));
    }

    /// Records that a room is subscribed on this connection, which may have been lost.
    pub(super) fn subscribed_on(&self, interest: &Interest, connection: u64) {
        self.set(interest, connection);
    }

    /// Records that a subscription was refused, if the room is not subscribed.
    pub(super) fn refused(&self, interest: &Interest) {
        if !self.is_subscribed(interest) {
            self.set(interest, self.connection.load(Acquire) | REFUSED);
        }
    }

    fn set(&self, interest: &Interest, connection: u64) {
        interest.connection.store(connection, Release);
        // Either a waiting thread sees the store, or this thread sees that it waits.
        std::sync::atomic::fence(SeqCst);
        self.notify();
    }

    fn notify(&self) {
        if self.waiting.load(SeqCst) > 0 {
            drop(lock(&self.lock));
            self.changed.notify_all();
        }
    }

    /// `None` while the subscription, or the first attempt to connect, is on its way.
    pub(super) fn state_of(&self, interest: &Interest) -> Option<Waited> {
        match self.connection.load(Acquire) {
            0 => Some(Waited::Unreachable),
            FIRST_ATTEMPT => None,
            current => match interest.connection.load(Acquire) {
                on if on == current => Some(Waited::Subscribed),
                on if on == current | REFUSED => Some(Waited::Unreachable),
                _ => None,
            },
        }
    }

    /// Waits until the room is subscribed, but no longer than `wait_max`, and not at all while the server is known to be
    /// unreachable.
    pub(crate) fn wait_for(&self, interest: &Interest, wait_max: Duration) -> Waited {
        if let Some(waited) = self.state_of(interest) {
            return waited;
        }
        if wait_max.is_zero() {
            return Waited::Unreachable;
        }
        cork::before_waiting();
        let until = Instant::now() + wait_max;
        self.waiting.fetch_add(1, SeqCst);
        let mut guard = lock(&self.lock);
        let waited = loop {
            std::sync::atomic::fence(SeqCst);
            if let Some(waited) = self.state_of(interest) {
                break waited;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Waited::Unreachable;
            }
            guard = ignore_poison(self.changed.wait_timeout(guard, left)).0;
        };
        drop(guard);
        self.waiting.fetch_sub(1, SeqCst);
        waited
    }
}
