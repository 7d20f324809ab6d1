//! Catching panics of user code, which must not end the thread that runs it.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code. Returns `None` if it panicked.
pub(crate) fn catch_panic<R>(code: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => return Some(value),
        Err(payload) => payload,
    };
    // User code may have made the payload, so dropping it may panic again, which must not end this thread either.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    None
}
