//! Turns at the next id of a room: producers whose messages depend on their id are served in order of arrival.
//!
//! User code makes a message that contains its own id, so it runs without a lock, for an id that another producer may
//! take meanwhile. Without turns, each id that is given would make all other producers render again.

use crate::cork;
use crate::sync::lock;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a producer waits behind the same holder before it publishes without a turn. A holder whose closure blocks,
/// perhaps on this very producer, must not stall the room.
const SAME_HOLDER_MAX: Duration = Duration::from_secs(5);

thread_local! {
    /// Whether this thread holds a turn in any room. It takes no second one, because two closures that publish to each
    /// other's rooms would deadlock.
    static HAS_TURN: Cell<bool> = const { Cell::new(false) };
}

/// The queue of producers of one room.
#[derive(Default)]
pub(super) struct IdTurns {
    queue: Mutex<TurnQueue>,
    /// Set if the holder has lost an id to a producer without a turn. From then on, every producer takes a turn.
    contested: AtomicBool,
}

#[derive(Default)]
struct TurnQueue {
    /// The ticket of the producer whose turn it is.
    holder: Option<u64>,
    waiting: VecDeque<(u64, Thread)>,
    last_ticket: u64,
}

/// The right to the next id, released when it is dropped.
pub(super) struct IdTurn<'a>(&'a IdTurns);

impl IdTurns {
    fn lock(&self) -> MutexGuard<'_, TurnQueue> {
        lock(&self.queue)
    }

    /// Whether producers that do not depend on the id must take a turn, too.
    pub(super) fn is_contested(&self) -> bool {
        self.contested.load(SeqCst)
    }

    /// Waits for a turn. Returns `None` if this thread holds one already, or one producer has held it for too long; the
    /// caller then publishes without one.
    pub(super) fn take(&self) -> Option<IdTurn<'_>> {
        self.take_behind(SAME_HOLDER_MAX)
    }

    fn take_behind(&self, same_holder_max: Duration) -> Option<IdTurn<'_>> {
        if HAS_TURN.get() {
            return None;
        }
        let mut queue = self.lock();
        queue.last_ticket += 1;
        let ticket = queue.last_ticket;
        if queue.holder.is_none() {
            queue.holder = Some(ticket);
        } else {
            queue.waiting.push_back((ticket, thread::current()));
        }
        let mut holder = queue.holder;
        let mut since = Instant::now();
        while queue.holder != Some(ticket) {
            if queue.holder != holder {
                (holder, since) = (queue.holder, Instant::now());
            }
            let left = same_holder_max.saturating_sub(since.elapsed());
            if left.is_zero() {
                queue.waiting.retain(|(other, _)| *other != ticket);
                return None;
            }
            drop(queue);
            cork::before_waiting();
            thread::park_timeout(left);
            queue = self.lock();
        }
        HAS_TURN.set(true);
        Some(IdTurn(self))
    }
}

impl IdTurn<'_> {
    /// Marks that the holder has lost an id. Called with the history locked, so that no producer without a turn takes
    /// the next id.
    pub(super) fn contest(&self) {
        self.0.contested.store(true, SeqCst);
    }
}

impl Drop for IdTurn<'_> {
    fn drop(&mut self) {
        HAS_TURN.set(false);
        let mut queue = self.0.lock();
        self.0.contested.store(false, SeqCst);
        let next = queue.waiting.pop_front();
        queue.holder = next.as_ref().map(|(ticket, _)| *ticket);
        // Release the memory of a burst of producers.
        if queue.waiting.is_empty() {
            queue.waiting = VecDeque::new();
        }
        drop(queue);
        if let Some((_, thread)) = next {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_given_in_the_order_of_asking() {
        const PRODUCERS: usize = 8;
        let turns = IdTurns::default();
        let served = Mutex::new(Vec::new());
        let first = turns.take().unwrap();
        thread::scope(|scope| {
            for n in 0..PRODUCERS {
                let (turns, served) = (&turns, &served);
                scope.spawn(move || {
                    let _turn = turns.take().unwrap();
                    served.lock().unwrap().push(n);
                });
                let deadline = Instant::now() + Duration::from_secs(20);
                while turns.lock().waiting.len() <= n {
                    assert!(Instant::now() < deadline, "producer {n} does not queue");
                    thread::yield_now();
                }
            }
            drop(first);
        });
        let served = served.into_inner().unwrap();
        assert_eq!(served, (0..PRODUCERS).collect::<Vec<_>>());
    }

    #[test]
    fn second_turn_of_a_thread_is_not_waited_for() {
        let (turns, others) = (IdTurns::default(), IdTurns::default());
        let turn = turns.take();
        assert!(turns.take().is_none() && others.take().is_none());
        drop(turn);
        assert!(others.take().is_some());
    }

    #[test]
    fn turn_behind_a_blocked_holder_is_given_up() {
        let turns = IdTurns::default();
        let blocked = turns.take();
        thread::scope(|scope| {
            scope.spawn(|| assert!(turns.take_behind(Duration::from_millis(20)).is_none()));
        });
        assert!(turns.lock().waiting.is_empty());
        drop(blocked);
        assert!(turns.take().is_some());
    }
}
