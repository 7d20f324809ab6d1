//! A shard's mailbox, into which other threads push commands and control messages.
//!
//! One mutex guards both the queues and the shard's sleep, so a wake-up is neither lost nor duplicated. A message of a
//! handler does not wake the shard at once. The end of the handler's batch does, or the watchdog if the batch takes
//! long (`wake_deferred`). A message of a corked thread waits for the end of the cork in the same way (`cork`). Producers wait while the mailbox is full (backpressure). The shard never waits.

use std::collections::VecDeque;

use crate::cork;
use crate::engine::parts::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};
use crate::user_threads::must_not_block;

/// Wakes a sleeping shard.
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

/// The size of an item, as it counts against a mailbox's bound.
pub(crate) trait Weigh {
    /// Returns the bytes that the item keeps in memory.
    fn weight(&self) -> usize;
}

/// A mailbox with an ordered queue of `data`, which is bounded in bytes, and a queue of `control` messages, which is
/// bounded by the connections and jobs that they concern.
pub(crate) struct Mailbox<D, C, W> {
    state: Mutex<MailboxState<D, C>>,
    /// Notified when a full mailbox was emptied or closed.
    emptied: Condvar,
    /// Whether an item was pushed without waking the shard.
    deferred: AtomicBool,
    bytes_max: usize,
    waker: W,
}

struct MailboxState<D, C> {
    data: VecDeque<D>,
    control: Vec<C>,
    bytes: usize,
    /// The maximum number of bytes so far.
    bytes_peak: usize,
    /// The number of data items pushed so far.
    pushed: u64,
    /// Bytes reserved by producers that have yet to push their data.
    reserved: usize,
    waiting: usize,
    sleep: Sleep,
    /// Whether data is refused.
    closed: bool,
    /// Whether the shard has ended: control messages are dropped.
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Awake,
    Asleep,
    /// Asleep and pacing its producers: data does not wake it.
    AsleepForControl,
}

/// When to notify the shard of a new item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At once.
    Now,
    /// At the next call of `wake_deferred`.
    Deferred,
}

/// Why an item was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
}

impl<D: Weigh, C, W: Wake> Mailbox<D, C, W> {
    pub(crate) fn new(bytes_max: usize, waker: W) -> Self {
        Self {
            state: Mutex::new(MailboxState {
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

    /// The most bytes of data that were ever in the mailbox.
    pub(crate) fn bytes_peak(&self) -> usize {
        lock(&self.state).bytes_peak
    }

    /// Bytes of data in the mailbox, with those reserved.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// Pushes data. Blocks while the mailbox is full, as [`Mailbox::reserve`] does.
    #[inline]
    pub(crate) fn push(&self, data: D, when: When) -> Result<(), (D, PushError)> {
        let weight = data.weight();
        let mut state = match self.room_for(weight) {
            Ok(state) => state,
            Err(refused) => return Err((data, refused)),
        };
        state.add(data, weight);
        self.notify(state, when, false);
        Ok(())
    }

    /// Reserves space for data of this weight. Blocks while the mailbox is full, unless the thread must not block: then
    /// it returns [`PushError::Full`].
    pub(crate) fn reserve(&self, weight: usize) -> Result<(), PushError> {
        self.room_for(weight)?.reserved += weight;
        Ok(())
    }

    /// Blocks until there is space. Other producers may take it before the caller does.
    pub(crate) fn wait_for_room(&self, weight: usize) -> Result<(), PushError> {
        self.room_for(weight).map(drop)
    }

    /// Locks the state once there is space. Blocks until then, unless the thread must not block.
    #[inline]
    fn room_for(&self, weight: usize) -> Result<MutexGuard<'_, MailboxState<D, C>>, PushError> {
        let state = lock(&self.state);
        match state.admits(weight, self.bytes_max) {
            Ok(()) => Ok(state),
            Err(PushError::Closed) => Err(PushError::Closed),
            Err(PushError::Full) => self.wait_while_full(state, weight),
        }
    }

    #[cold]
    fn wait_while_full<'a>(
        &'a self,
        state: MutexGuard<'a, MailboxState<D, C>>,
        weight: usize,
    ) -> Result<MutexGuard<'a, MailboxState<D, C>>, PushError> {
        // Otherwise a shard could wait for itself, or for another shard that waits for it.
        if must_not_block() {
            return Err(PushError::Full);
        }
        drop(state);
        cork::before_waiting();
        let mut state = lock(&self.state);
        loop {
            match state.admits(weight, self.bytes_max) {
                Ok(()) => return Ok(state),
                Err(PushError::Closed) => return Err(PushError::Closed),
                Err(PushError::Full) => {}
            }
            // A sleeping shard must wake up to empty a full mailbox. A mailbox that is full of reservations does not
            // concern it: the producers that hold them will push or release them.
            if state.sleep == Sleep::Asleep && !state.data.is_empty() {
                state.sleep = Sleep::Awake;
                self.waker.wake();
            }
            state.waiting += 1;
            state = wait(&self.emptied, state);
            state.waiting -= 1;
        }
    }

    /// Pushes data if there is space.
    pub(crate) fn try_push(&self, data: D, when: When) -> Result<(), (D, PushError)> {
        let weight = data.weight();
        let mut state = lock(&self.state);
        if let Err(refused) = state.admits(weight, self.bytes_max) {
            return Err((data, refused));
        }
        state.add(data, weight);
        self.notify(state, when, false);
        Ok(())
    }

    /// Reserves space for data of this weight, to be used with `push_reserved` or released with `unreserve`.
    pub(crate) fn try_reserve(&self, weight: usize) -> Result<(), PushError> {
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

    /// Pushes a control message, even if the mailbox is full.
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
    fn notify(&self, mut state: MutexGuard<'_, MailboxState<D, C>>, when: When, control: bool) {
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

    /// Wakes the shard if an item was pushed with [`When::Deferred`] while it slept.
    pub(crate) fn wake_deferred(&self) {
        if !self.deferred.load(Ordering::Acquire) {
            return;
        }
        let mut state = lock(&self.state);
        // Clear this while holding the lock that protects setting it. Otherwise the flag of a later item could be lost.
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

    /// Moves the control messages, and also the data if `data` is given, to the shard. Both are taken atomically, so
    /// the messages of a handler always precede the control message that it is done. Returns the number of data items
    /// pushed so far.
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

    /// Prepares the shard's sleep. Returns false if there is something to take first. `paced`: data does not count.
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

    /// Ends the mailbox with its shard: takes the remaining data, and drops all items from now on.
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

    /// Refuses data from now on, and releases all waiting producers. The shard still takes what is in the mailbox.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        self.emptied.notify_all();
    }
}

impl<D, C> MailboxState<D, C> {
    #[inline]
    fn add(&mut self, data: D, weight: usize) {
        self.data.push_back(data);
        self.pushed += 1;
        self.bytes += weight;
        self.bytes_peak = self.bytes_peak.max(self.bytes);
    }

    /// Checks whether data of this weight would be accepted now.
    fn admits(&self, weight: usize, bytes_max: usize) -> Result<(), PushError> {
        if self.closed {
            Err(PushError::Closed)
        } else if self.has_room(weight, bytes_max) {
            Ok(())
        } else {
            Err(PushError::Full)
        }
    }

    /// An empty mailbox accepts data of any size, so that messages longer than the bound can pass.
    fn has_room(&self, weight: usize, bytes_max: usize) -> bool {
        let bytes = self.bytes + self.reserved;
        bytes == 0 || bytes.saturating_add(weight) <= bytes_max
    }
}
