//! Timeouts of calls to clients. One thread serves all of them, and only while there are any. Time in which the process
//! did not run does not count ([`Clock`]), since no answer was read meanwhile.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::Clock;
use crate::report::{Limited, limited};
use crate::sync::{ignore_poison, lock};
use crate::user_threads::UserThreads;

/// How often the thread checks whether any timeout is left. It does not end with the last one at once, since a program
/// that makes one call after the other would start it anew for each.
pub(super) const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Each call tries to start the thread.
static NOT_STARTED: Limited = Limited::new();

type Due = Box<dyn FnOnce() + Send>;

pub(super) struct CallTimers {
    state: Mutex<TimerState>,
    changed: Condvar,
    /// Runs the program's cancellation functions.
    pub(super) aside: UserThreads,
}

/// Most cancellation functions that run at once.
const ASIDE_MAX: usize = 16;

struct TimerState {
    clock: Clock,
    /// When the thread's current sleep ends.
    sleeps_until: Option<Instant>,
    /// Timeouts by the time at which they are due.
    due: BTreeMap<(Duration, u64), Due>,
    ever: u64,
    is_running: bool,
    has_stopped: bool,
}

/// A registered timeout.
#[derive(Clone)]
pub(super) struct Timer((Duration, u64));

impl Default for CallTimers {
    fn default() -> Self {
        Self {
            state: Mutex::new(TimerState::new(Instant::now())),
            changed: Condvar::new(),
            aside: UserThreads::new("humphrey_ws cancel", ASIDE_MAX),
        }
    }
}

impl TimerState {
    fn new(now: Instant) -> Self {
        let mut clock = Clock::new(now);
        clock.sleep(None);
        Self {
            clock,
            sleeps_until: None,
            due: BTreeMap::new(),
            ever: 0,
            is_running: false,
            has_stopped: false,
        }
    }

    /// Advances the clock, while the thread sleeps or does not run. Returns the time that counts so far.
    fn elapsed(&mut self, now: Instant) -> Duration {
        self.clock.advance(now);
        if !self.is_running {
            self.clock.sleep(None);
        } else if let Some(until) = self.sleeps_until {
            self.clock.sleep(Some(until.saturating_duration_since(now)));
        }
        self.clock.elapsed(now)
    }
}

/// The next step of the timer thread.
enum TimerStep {
    Run(Due),
    Sleep(Duration),
    End,
}

impl TimerState {
    fn step(&mut self, now: Instant) -> TimerStep {
        self.clock.advance(now);
        let Some((&(at, _), _)) = self.due.first_key_value() else {
            self.is_running = false;
            self.clock.sleep(None);
            return TimerStep::End;
        };
        let left = self.clock.left(at, now);
        if left.is_zero()
            && let Some((_, due)) = self.due.pop_first()
        {
            return TimerStep::Run(due);
        }
        let sleep = left.min(LOOKS_EVERY);
        self.clock.sleep(Some(sleep));
        self.sleeps_until = now.checked_add(sleep);
        TimerStep::Sleep(sleep)
    }
}

impl CallTimers {
    fn lock(&self) -> MutexGuard<'_, TimerState> {
        lock(&self.state)
    }

    /// Runs a function after a delay, on the timer thread, which it must not block. Returns `None` if that is beyond
    /// the clock's range.
    pub(super) fn add(self: &Arc<Self>, after: Duration, due: Due) -> Option<Timer> {
        let mut state = self.lock();
        let at = state.elapsed(Instant::now()).checked_add(after)?;
        if state.has_stopped {
            // The connection has gone, or is about to.
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
                Err(error) => limited!(
                    NOT_STARTED,
                    warning,
                    "the thread for timeouts of calls could not be started ({error}); the next call tries again"
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
            match state.step(Instant::now()) {
                TimerStep::End => return,
                TimerStep::Run(due) => {
                    drop(state);
                    if let Err(payload) = catch_unwind(AssertUnwindSafe(due)) {
                        // The payload may own the last handle of a connection, whose `drop` would run user code here.
                        std::mem::forget(payload);
                    }
                    state = self.lock();
                }
                TimerStep::Sleep(sleep) => {
                    let waited = self.changed.wait_timeout(state, sleep);
                    state = ignore_poison(waited).0;
                    state.sleeps_until = None;
                }
            }
        }
    }

    /// Stops the timers, since the app has ended.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.has_stopped = true;
        let due = std::mem::take(&mut state.due);
        self.changed.notify_one();
        drop(state);
        drop(due);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_that_panics_is_not_the_end_of_the_others() {
        let (sender, told) = mpsc::channel();
        let timers = Arc::new(CallTimers::default());
        timers.add(
            Duration::from_millis(1),
            Box::new(|| panic!("as it should")),
        );
        let due = move || sender.send(()).unwrap();
        timers.add(Duration::from_millis(2), Box::new(due));
        told.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn nobody_waits_for_what_was_removed() {
        let timers = Arc::new(CallTimers::default());
        let timer = timers.add(Duration::from_secs(3_600), Box::new(|| {}));
        let (sender, told) = mpsc::channel();
        timers.add(Duration::ZERO, Box::new(move || sender.send(()).unwrap()));
        told.recv_timeout(Duration::from_secs(20)).unwrap();
        eventually(|| timers.lock().sleeps_until.is_some());
        timers.remove(timer);
        eventually(|| !timers.lock().is_running);
    }

    fn eventually(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "timed out");
            thread::yield_now();
        }
    }

    /// Simulates a timer thread that wakes as planned, except for one standstill of this length. Returns the time until
    /// the timeout, without the standstill.
    fn due_after(timeout: Duration, standstill_at: Duration, standstill: Duration) -> Duration {
        let begin = Instant::now();
        let mut state = TimerState::new(begin);
        let at = state.elapsed(begin) + timeout;
        state.due.insert((at, 0), Box::new(|| {}));
        state.is_running = true;
        let mut passed = Duration::ZERO;
        let mut stood_still = Duration::ZERO;
        loop {
            match state.step(begin + passed + stood_still) {
                TimerStep::Sleep(sleep) => passed += sleep,
                TimerStep::Run(_) => return passed,
                TimerStep::End => panic!("the timeout is registered"),
            }
            if passed >= standstill_at {
                stood_still = standstill;
            }
        }
    }

    #[test]
    fn standstill_does_not_count_for_a_call() {
        let timeout = Duration::from_secs(3);
        assert_eq!(due_after(timeout, timeout * 2, Duration::ZERO), timeout);
        for standstill_at in [1, 2, 3].map(Duration::from_secs) {
            for standstill in [16, 3_600].map(Duration::from_secs) {
                let passed = due_after(timeout, standstill_at, standstill);
                // The sleep that the standstill interrupted does not count, and the clock rests after it.
                assert!(passed > timeout && passed <= timeout * 2, "{passed:?}");
            }
        }
    }
}
