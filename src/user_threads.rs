//! Threads for user code that would otherwise run inside a shard's turn: user code may block, a shard must not.
//!
//! This module also records whether the current thread must not block, such as a shard in its turn. Code that may block
//! checks this, and fails instead.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::sync::ignore_poison;

/// User code to run once.
pub(crate) type UserCode = Box<dyn FnOnce() + Send>;

/// The time without work after which a thread ends.
const IDLE_MAX: Duration = Duration::from_secs(1);

thread_local! {
    static MUST_NOT_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the current thread is inside [`while_nonblocking`].
#[inline]
pub(crate) fn must_not_block() -> bool {
    MUST_NOT_BLOCK.get()
}

/// Runs code that must not block, such as a shard's turn. [`must_not_block`] returns true on this thread until the code
/// returns.
pub(crate) fn while_nonblocking<R>(code: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MUST_NOT_BLOCK.set(self.0);
        }
    }
    let _restore = Restore(MUST_NOT_BLOCK.replace(true));
    code()
}

/// Runs user code and catches its panic, which the panic hook has already reported.
pub(crate) fn run_caught(code: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // Dropping the payload of a panic may panic again.
        std::mem::forget(payload);
    }
}

/// A small pool of threads that run user code. Threads start when they are needed and end after [`IDLE_MAX`] without work.
#[derive(Debug)]
pub(crate) struct UserThreads {
    shared: Arc<Shared>,
    name: &'static str,
    threads_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<PoolState>,
    changed: Condvar,
    /// The length of the queue, for reads without the lock.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<UserCode>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl UserThreads {
    pub(crate) fn new(name: &'static str, threads_max: usize) -> Self {
        Self {
            shared: Arc::default(),
            name,
            threads_max,
        }
    }

    /// Queues `code` and returns at once. Threads begin queued code in the order of these calls. If no thread can be
    /// started, the code runs when a later call starts one.
    pub(crate) fn run(&self, code: UserCode) {
        let mut state = self.shared.lock();
        state.queue.push_back(code);
        self.shared.waiting.store(state.queue.len(), Relaxed);
        if state.idle >= state.queue.len() {
            self.shared.changed.notify_one();
        } else if state.threads < self.threads_max {
            state.threads += 1;
            drop(state);
            if self.start().is_err() {
                self.shared.lock().threads -= 1;
            }
        }
    }

    /// The number of pieces of code that wait for a thread. Code that blocks forever makes this grow, so callers must
    /// bound it.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting.load(Relaxed)
    }

    fn start(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name(self.name.into())
            .spawn(move || shared.work())
            .map(drop)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        ignore_poison(self.state.lock())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(code) = state.queue.pop_front() {
                self.waiting.store(state.queue.len(), Relaxed);
                drop(state);
                run_caught(code);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, IDLE_MAX);
            let (next, timeout) = ignore_poison(waited);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[test]
    fn blocked_user_code_does_not_delay_other_code() {
        let threads = UserThreads::new("user code", 4);
        let (release, blocked) = channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..3 {
            let blocked = blocked.clone();
            threads.run(Box::new(move || {
                let _ = blocked.lock().unwrap().recv();
            }));
        }
        let (sender, done) = channel();
        for n in 0..100 {
            let sender = sender.clone();
            threads.run(Box::new(move || sender.send(n).unwrap()));
        }
        for n in 0..100 {
            assert_eq!(done.recv_timeout(DEADLINE), Ok(n), "in order");
        }
        drop(release);
    }

    #[test]
    fn panicking_user_code_leaves_other_code_running() {
        let threads = UserThreads::new("user code", 1);
        threads.run(Box::new(|| panic!("expected")));
        let (sender, done) = channel();
        threads.run(Box::new(move || sender.send(()).unwrap()));
        assert_eq!(done.recv_timeout(DEADLINE), Ok(()));
    }

    #[test]
    fn thread_must_not_block_only_while_nonblocking_code_runs() {
        assert!(!must_not_block());
        assert!(while_nonblocking(
            || while_nonblocking(must_not_block) && must_not_block()
        ));
        assert!(catch_unwind(|| while_nonblocking(|| panic!("expected"))).is_err());
        assert!(!must_not_block());
    }
}
