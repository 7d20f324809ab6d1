//! Where other threads leave things for a shard.
//!
//! One mutex guards the queues and whether the shard sleeps, so a wake-up can be neither lost nor made twice. What a
//! handler sends does not wake the shard at once: the batch does when it ends, and the watchdog does if it lasts
//! (`wake_deferred`). Producers wait while the mailbox is full; the shard never waits for anyone.

use std::collections::VecDeque;

use crate::engine::parts::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// Ends a shard's sleep.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

impl Wake for mio::Waker {
    fn wake(&self) {
        if let Err(error) = mio::Waker::wake(self) {
            crate::report::error!("a shard could not be woken: {error}");
        }
    }
}

impl Wake for Box<dyn Wake> {
    fn wake(&self) {
        (**self).wake();
    }
}

/// What counts against a mailbox's bound.
pub(crate) trait Weigh {
    /// Bytes that this keeps in memory.
    fn weight(&self) -> usize;
}

/// A mailbox of ordered `data`, which is bounded, and `control`, which is bounded by what there is to control.
pub(crate) struct Mailbox<D, C, W> {
    state: Mutex<State<D, C>>,
    /// Told when a full mailbox has been emptied, or closed.
    emptied: Condvar,
    /// Something was left that the shard was not woken for.
    deferred: AtomicBool,
    bytes_max: usize,
    waker: W,
}

struct State<D, C> {
    data: VecDeque<D>,
    control: Vec<C>,
    bytes: usize,
    /// The most there ever were.
    bytes_peak: usize,
    /// Data left so far, ever.
    pushed: u64,
    /// Bytes promised to producers that have yet to bring them.
    reserved: usize,
    waiting: usize,
    sleep: Sleep,
    /// No further data is taken.
    closed: bool,
    /// The shard has ended: control messages are dropped.
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Awake,
    Asleep,
    /// Asleep, and data is of no interest: the shard paces its producers.
    AsleepForControl,
}

/// When the shard is to learn of what was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At once.
    Now,
    /// When somebody calls `wake_deferred`.
    Deferred,
}

/// Why something was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl<D: Weigh, C, W: Wake> Mailbox<D, C, W> {
    pub(crate) fn new(bytes_max: usize, waker: W) -> Self {
        Self {
            state: Mutex::new(State {
                data: VecDeque::new(),
                control: Vec::new(),
                bytes: 0,
                bytes_peak: 0,
                pushed: 0,
                reserved: 0,
                waiting: 0,
                sleep: Sleep::Awake,
                closed: false,
                finished: false,
            }),
            emptied: Condvar::new(),
            deferred: AtomicBool::new(false),
            bytes_max,
            waker,
        }
    }

    /// The most bytes of data that were ever in it.
    pub(crate) fn bytes_peak(&self) -> usize {
        lock(&self.state).bytes_peak
    }

    /// Bytes of data in it, or that have a place in it.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// Leaves data; waits while the mailbox is full.
    #[inline]
    pub(crate) fn push(&self, data: D, when: When) -> Result<(), D> {
        let weight = data.weight();
        let Ok(mut state) = self.room_for(weight) else {
            return Err(data);
        };
        state.add(data, weight);
        self.notify(state, when, false);
        Ok(())
    }

    /// Keeps room for data of that weight, as `try_reserve` does; waits while the mailbox is full.
    pub(crate) fn reserve(&self, weight: usize) -> Result<(), Refused> {
        self.room_for(weight)?.reserved += weight;
        Ok(())
    }

    /// Waits until there is room, which is no promise that there still is.
    pub(crate) fn wait_for_room(&self, weight: usize) -> Result<(), Refused> {
        self.room_for(weight).map(drop)
    }

    /// Waits while the mailbox is full.
    #[inline]
    fn room_for(&self, weight: usize) -> Result<MutexGuard<'_, State<D, C>>, Refused> {
        let state = lock(&self.state);
        match state.admits(weight, self.bytes_max) {
            Ok(()) => Ok(state),
            Err(Refused::Closed) => Err(Refused::Closed),
            Err(Refused::Full) => self.wait_while_full(state, weight),
        }
    }

    #[cold]
    fn wait_while_full<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<D, C>>,
        weight: usize,
    ) -> Result<MutexGuard<'a, State<D, C>>, Refused> {
        loop {
            // A full mailbox is emptied by its shard, which must not sleep meanwhile. One that is only promised away
            // is none of its business: whoever it was promised to comes back.
            if state.sleep == Sleep::Asleep && !state.data.is_empty() {
                state.sleep = Sleep::Awake;
                self.waker.wake();
            }
            state.waiting += 1;
            state = wait(&self.emptied, state);
            state.waiting -= 1;
            match state.admits(weight, self.bytes_max) {
                Ok(()) => return Ok(state),
                Err(Refused::Closed) => return Err(Refused::Closed),
                Err(Refused::Full) => {}
            }
        }
    }

    /// Leaves data if there is room.
    pub(crate) fn try_push(&self, data: D, when: When) -> Result<(), (D, Refused)> {
        let weight = data.weight();
        let mut state = lock(&self.state);
        if let Err(refused) = state.admits(weight, self.bytes_max) {
            return Err((data, refused));
        }
        state.add(data, weight);
        self.notify(state, when, false);
        Ok(())
    }

    /// Keeps room for data of that weight, which is brought with `push_reserved` or given back with `unreserve`.
    pub(crate) fn try_reserve(&self, weight: usize) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        state.admits(weight, self.bytes_max)?;
        state.reserved += weight;
        Ok(())
    }

    pub(crate) fn unreserve(&self, weight: usize) {
        let mut state = lock(&self.state);
        state.reserved -= weight;
        if state.waiting > 0 {
            self.emptied.notify_all();
        }
    }

    pub(crate) fn push_reserved(&self, data: D, when: When) -> Result<(), D> {
        let weight = data.weight();
        let mut state = lock(&self.state);
        state.reserved -= weight;
        if state.closed {
            return Err(data);
        }
        state.add(data, weight);
        self.notify(state, when, false);
        Ok(())
    }

    /// Leaves a control message, whatever the mailbox holds.
    pub(crate) fn control(&self, control: C, when: When) {
        let mut state = lock(&self.state);
        if state.finished {
            drop(state);
            drop(control);
            return;
        }
        state.control.push(control);
        self.notify(state, when, true);
    }

    #[inline]
    fn notify(&self, mut state: MutexGuard<'_, State<D, C>>, when: When, control: bool) {
        let sleeps = match state.sleep {
            Sleep::Awake => false,
            Sleep::Asleep => true,
            Sleep::AsleepForControl => control,
        };
        if !sleeps {
            return;
        }
        match when {
            When::Now => {
                state.sleep = Sleep::Awake;
                drop(state);
                self.waker.wake();
            }
            When::Deferred => self.deferred.store(true, Ordering::Release),
        }
    }

    /// Wakes the shard if something was left with [`When::Deferred`] while it slept.
    pub(crate) fn wake_deferred(&self) {
        if !self.deferred.load(Ordering::Acquire) {
            return;
        }
        let mut state = lock(&self.state);
        // Under the lock, as where it is set: what is left after this is not taken for what was there before.
        self.deferred.store(false, Ordering::Release);
        let wake = match state.sleep {
            Sleep::Awake => false,
            Sleep::Asleep => !state.data.is_empty() || !state.control.is_empty(),
            Sleep::AsleepForControl => !state.control.is_empty(),
        };
        if wake {
            state.sleep = Sleep::Awake;
            drop(state);
            self.waker.wake();
        }
    }

    /// The shard takes what is there: control always, data only if it is `wanted`. Both come from one moment, so what
    /// a handler sent is never behind the control message that it has ended. Returns how much data has ever been left.
    pub(crate) fn take(&self, data: Option<&mut VecDeque<D>>, control: &mut Vec<C>) -> u64 {
        let mut state = lock(&self.state);
        state.sleep = Sleep::Awake;
        debug_assert!(control.is_empty());
        std::mem::swap(&mut state.control, control);
        if let Some(data) = data {
            debug_assert!(data.is_empty());
            std::mem::swap(&mut state.data, data);
            state.bytes = 0;
            if state.waiting > 0 {
                self.emptied.notify_all();
            }
        }
        state.pushed
    }

    /// The shard is about to sleep. False if there is something to take first; `paced`: data is not wanted.
    pub(crate) fn sleep(&self, paced: bool) -> bool {
        let mut state = lock(&self.state);
        if !state.control.is_empty() || (!paced && !state.data.is_empty()) {
            return false;
        }
        state.sleep = if paced {
            Sleep::AsleepForControl
        } else {
            Sleep::Asleep
        };
        true
    }

    /// The shard ends: it takes what is left, and nothing is kept from now on.
    pub(crate) fn finish(&self, data: &mut VecDeque<D>) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.finished = true;
        data.append(&mut state.data);
        let control = std::mem::take(&mut state.control);
        self.emptied.notify_all();
        drop(state);
        drop(control);
    }

    /// Takes no further data and lets all that wait go. What was taken before stays, for the shard to take.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        self.emptied.notify_all();
    }
}

impl<D, C> State<D, C> {
    #[inline]
    fn add(&mut self, data: D, weight: usize) {
        self.data.push_back(data);
        self.pushed += 1;
        self.bytes += weight;
        self.bytes_peak = self.bytes_peak.max(self.bytes);
    }

    /// Whether data of that weight is taken now.
    fn admits(&self, weight: usize, bytes_max: usize) -> Result<(), Refused> {
        if self.closed {
            Err(Refused::Closed)
        } else if self.has_room(weight, bytes_max) {
            Ok(())
        } else {
            Err(Refused::Full)
        }
    }

    /// An empty mailbox takes anything, so that a message longer than the bound gets through.
    fn has_room(&self, weight: usize, bytes_max: usize) -> bool {
        let bytes = self.bytes + self.reserved;
        bytes == 0 || bytes.saturating_add(weight) <= bytes_max
    }
}
