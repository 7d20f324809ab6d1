//! Where user code goes that a shard's thread comes across: to threads of its own, since it may block.
//!
//! It knows nothing of shards but that a thread is one: code of the user's that runs there in spite of all can ask.

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
pub(crate) type Code = Box<dyn FnOnce() + Send>;

/// A thread without anything to do ends after this.
const IDLE_MAX: Duration = Duration::from_secs(1);

thread_local! {
    static IS_SHARD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is in the middle of a shard's turn, where nothing may wait.
#[inline]
pub(crate) fn is_shard() -> bool {
    IS_SHARD.get()
}

/// Runs a part of a shard's turn.
pub(crate) fn as_shard<R>(turn: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_SHARD.set(self.0);
        }
    }
    let _restore = Restore(IS_SHARD.replace(true));
    turn()
}

/// Threads that run user code, one after the other on each: started when they are needed, and gone soon after.
#[derive(Debug)]
pub(crate) struct Aside {
    shared: Arc<Shared>,
    name: &'static str,
    threads_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// How long the queue is, for those who ask often.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Code>,
    threads: usize,
    idle: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Aside {
    pub(crate) fn new(name: &'static str, threads_max: usize) -> Self {
        Self {
            shared: Arc::default(),
            name,
            threads_max,
        }
    }

    /// Has the code run, in the order given as far as threads begin it. Returns at once. Where no thread can be had, it is
    /// run with the next code that finds one.
    pub(crate) fn run(&self, code: Code) {
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

    /// Code that waits for a thread. Where code blocks for ever, whoever adds to it is to see that it has a bound.
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
    fn lock(&self) -> MutexGuard<'_, State> {
        ignore_poison(self.state.lock())
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(code) = state.queue.pop_front() {
                self.waiting.store(state.queue.len(), Relaxed);
                drop(state);
                if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
                    // Dropping what it panicked with may panic again.
                    std::mem::forget(payload);
                }
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
    fn code_that_blocks_holds_up_no_other_code() {
        let aside = Aside::new("aside", 4);
        let (release, blocked) = channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..3 {
            let blocked = blocked.clone();
            aside.run(Box::new(move || {
                let _ = blocked.lock().unwrap().recv();
            }));
        }
        let (sender, done) = channel();
        for n in 0..100 {
            let sender = sender.clone();
            aside.run(Box::new(move || sender.send(n).unwrap()));
        }
        for n in 0..100 {
            assert_eq!(done.recv_timeout(DEADLINE), Ok(n), "in order");
        }
        drop(release);
    }

    #[test]
    fn code_that_panics_is_not_the_end_of_other_code() {
        let aside = Aside::new("aside", 1);
        aside.run(Box::new(|| panic!("as it should")));
        let (sender, done) = channel();
        aside.run(Box::new(move || sender.send(()).unwrap()));
        assert_eq!(done.recv_timeout(DEADLINE), Ok(()));
    }

    #[test]
    fn a_thread_is_a_shard_while_it_turns_one() {
        assert!(!is_shard());
        assert!(as_shard(|| as_shard(is_shard) && is_shard()));
        assert!(catch_unwind(|| as_shard(|| panic!("as it should"))).is_err());
        assert!(!is_shard());
    }
}
