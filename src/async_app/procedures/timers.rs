//! How long calls to clients may take. One thread waits for all of them, and only while there are any.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::report::warning;

type Due = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    due: BTreeMap<(Instant, u64), Due>,
    ever: u64,
    is_running: bool,
    has_stopped: bool,
}

/// One of them.
#[derive(Clone)]
pub(super) struct Timer((Instant, u64));

impl Timers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something done after that time, on the timers' thread, which it must not hold up. None: it takes for ever.
    pub(super) fn add(self: &Arc<Self>, after: Duration, due: Due) -> Option<Timer> {
        let at = Instant::now().checked_add(after)?;
        let mut state = self.lock();
        if state.has_stopped {
            // Its connection has gone, or is about to.
            return None;
        }
        let key = (at, state.ever);
        state.ever += 1;
        let is_first = state
            .due
            .first_key_value()
            .is_none_or(|(first, _)| key < *first);
        state.due.insert(key, due);
        if state.is_running {
            if is_first {
                self.changed.notify_one();
            }
        } else {
            let timers = self.clone();
            let started = thread::Builder::new()
                .name("humphrey_ws timers".into())
                .spawn(move || timers.run());
            match started {
                Ok(_) => state.is_running = true,
                Err(error) => warning!(
                    "the thread that limits the time of calls could not be started ({error}); the next call tries again"
                ),
            }
        }
        Some(Timer(key))
    }

    pub(super) fn remove(&self, timer: Option<Timer>) {
        if let Some(Timer(key)) = timer {
            let due = self.lock().due.remove(&key);
            drop(due);
        }
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            let Some((&(at, _), _)) = state.due.first_key_value() else {
                state.is_running = false;
                return;
            };
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let due = state.due.pop_first();
                drop(state);
                if let Some((_, due)) = due {
                    due();
                }
                state = self.lock();
            } else {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// The app has ended.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.has_stopped = true;
        let due = std::mem::take(&mut state.due);
        self.changed.notify_one();
        drop(state);
        drop(due);
    }
}
