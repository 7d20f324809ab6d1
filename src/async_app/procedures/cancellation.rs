//! Cancellation of calls from clients.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::cork;
use crate::metrics::Counters;
use crate::sync::{ignore_poison, lock};
use crate::user_threads::{UserCode, run_caught};

/// Why a call is cancelled. A greater cause replaces a lesser one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum CancelCause {
    /// The client has broken the protocol. Answers are still sent before its connection is closed.
    Refused = 1,
    /// The client has cancelled the call.
    Reset = 2,
    /// The connection has gone.
    Gone = 3,
}

/// A function of the program that runs when a call is cancelled.
pub(super) type CancelAction = UserCode;

/// A call from the client that is in flight.
pub(super) struct InFlight {
    pub(super) id: u32,
    ended: AtomicBool,
    /// 0 if the call is not cancelled, else a `CancelCause`.
    cause: AtomicU8,
    actions: Mutex<Vec<CancelAction>>,
    changed: Condvar,
}

impl InFlight {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            ended: AtomicBool::new(false),
            cause: AtomicU8::new(0),
            actions: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Ends the call. Returns `false` if it has ended before.
    pub(super) fn end(&self) -> bool {
        !self.ended.swap(true, SeqCst)
    }

    /// Drops the functions of an ended call, and wakes the threads that wait for its cancellation.
    pub(super) fn forget_actions(&self) {
        let mut lock = self.lock();
        let actions = std::mem::take(&mut *lock);
        self.changed.notify_all();
        drop(lock);
        // Dropping them is user code, so it happens without the lock.
        drop(actions);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    pub(super) fn cause(&self) -> Option<CancelCause> {
        match self.cause.load(SeqCst) {
            0 => None,
            1 => Some(CancelCause::Refused),
            2 => Some(CancelCause::Reset),
            _ => Some(CancelCause::Gone),
        }
    }

    /// Counts the cancellation, unless the call was cancelled before, and wakes waiting threads. Returns the functions
    /// to run: they are user code, for a thread that may block.
    #[must_use]
    pub(super) fn cancel(&self, cause: CancelCause, counters: &Counters) -> Vec<CancelAction> {
        let mut lock = self.lock();
        if self.cause.fetch_max(cause as u8, SeqCst) == 0 {
            counters.calls_cancelled.add(1);
        }
        let actions = std::mem::take(&mut *lock);
        self.changed.notify_all();
        actions
    }

    fn lock(&self) -> MutexGuard<'_, Vec<CancelAction>> {
        lock(&self.actions)
    }
}

/// A handle that tells other threads whether a call is cancelled. Clones are cheap.
///
/// A call is cancelled by its client, or by the end of its connection.
///
/// ```
/// use humphrey_ws::procedures::Procedures;
/// use std::time::Duration;
///
/// let procedures = Procedures::<(), ()>::new().on_call("report", |call| {
///     let cancellation = call.cancellation();
///     let reply = call.defer();
///     std::thread::spawn(move || {
///         while !cancellation.wait(Duration::from_secs(1)) {
///             if reply.item("one more second").is_err() {
///                 return;
///             }
///         }
///     });
/// });
/// ```
#[derive(Clone)]
pub struct Cancellation(pub(super) Arc<InFlight>);

impl Cancellation {
    /// Returns whether the client has cancelled the call or disconnected.
    pub fn is_cancelled(&self) -> bool {
        self.0.cause.load(Relaxed) != 0
    }

    /// Runs a function when the call is cancelled. If it is cancelled already, the function runs at once, on this
    /// thread. Otherwise it runs on a thread of a separate pool, where it may block and send to clients. The pool has
    /// up to 16 threads; while all of them are blocked, further functions wait, and while 65,536 wait, calls from the
    /// app's clients are refused. If the call is answered first, the function is dropped.
    ///
    /// A panic of the function is caught. It does not end the connection or the thread.
    pub fn on_cancel(&self, done: impl FnOnce() + Send + 'static) {
        let mut actions = self.0.lock();
        if self.is_cancelled() {
            drop(actions);
            // Catch panics, as the pool does. The cancellation may arrive before or after this call, and that race must
            // not decide whether a panic ends the connection.
            run_caught(done);
        } else if !self.0.ended.load(SeqCst) {
            actions.push(Box::new(done));
        }
    }

    /// Waits until the call is cancelled, for at most `timeout`, and no longer than the call is in flight. Returns
    /// whether it is cancelled.
    pub fn wait(&self, timeout: Duration) -> bool {
        cork::before_waiting();
        let deadline = Instant::now().checked_add(timeout);
        let mut actions = self.0.lock();
        while !self.is_cancelled() && !self.0.ended.load(SeqCst) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            actions = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let waited = self.0.changed.wait_timeout(actions, left);
                    ignore_poison(waited).0
                }
                None => {
                    let waited = self.0.changed.wait(actions);
                    ignore_poison(waited)
                }
            };
        }
        self.is_cancelled()
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}
