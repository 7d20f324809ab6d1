//! What any thread that runs user code has to do with the hub: whether it is a handler, and that a panic ends no more than
//! the handler that it came from.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::atomic::AtomicU64;
use crate::engine::hub::Hub;
use crate::engine::parts::mailbox::When;
use crate::metrics::Counter;

/// What others see of a thread that runs handlers.
#[derive(Default)]
#[repr(align(128))] // As `Counters`: threads do not share.
pub(crate) struct Run {
    /// Odd while a job runs, and more with each.
    pub(crate) count: AtomicU64,
    /// How long its jobs have taken.
    pub(crate) nanos: Counter,
}

thread_local! {
    /// The hub whose handlers this thread runs, by address; 0 on all other threads.
    pub(crate) static HANDLER_OF: Cell<usize> = const { Cell::new(0) };
}

/// Whether the calling thread runs handlers of that hub.
pub(crate) fn is_handler_of(hub: &Hub) -> bool {
    HANDLER_OF.get() == std::ptr::from_ref(hub).addr()
}

/// When a shard is to learn of what the calling thread leaves: a handler of that hub wakes it when its batch ends.
#[inline]
pub(crate) fn when(hub: &Hub) -> When {
    if is_handler_of(hub) {
        When::Deferred
    } else {
        When::Now
    }
}

/// Runs user code. None: it has panicked.
pub(crate) fn caught<R>(code: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => return Some(value),
        Err(payload) => payload,
    };
    // What it panicked with is user code's, too: dropping it may panic again, and must not cost this thread.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    None
}
