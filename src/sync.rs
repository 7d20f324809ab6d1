//! Locks that stay usable after a thread panicked while holding them.

use std::sync::{LockResult, Mutex, MutexGuard};

/// Returns the guard of a lock or wait, also if another thread panicked while holding the lock.
///
/// For state that a panic can't leave half changed: no user code runs under the lock, or each change is one assignment.
/// Takes what `Mutex::lock`, `RwLock::{read, write}`, `Condvar::{wait, wait_timeout}` and `Mutex::into_inner` return;
/// those of `loom` return the same type.
#[inline]
pub(crate) fn ignore_poison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Locks a mutex of `std`, also after a panic of another holder: see [`ignore_poison`].
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    ignore_poison(mutex.lock())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Condvar, Mutex, RwLock};
    use std::time::Duration;

    use super::ignore_poison;

    #[test]
    fn poisoned_lock_can_still_be_acquired() {
        let mutex = Mutex::new(1);
        let rw_lock = RwLock::new(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guards = (mutex.lock(), rw_lock.write());
            panic!("expected");
        }));
        assert!(panicked.is_err() && mutex.is_poisoned() && rw_lock.is_poisoned());
        assert_eq!(*ignore_poison(mutex.lock()), 1);
        assert_eq!(*ignore_poison(rw_lock.read()), 2);
        *ignore_poison(rw_lock.write()) += 1;
        let guard = ignore_poison(mutex.lock());
        let waited = Condvar::new().wait_timeout(guard, Duration::ZERO);
        assert_eq!(*ignore_poison(waited).0, 1);
        assert_eq!(ignore_poison(rw_lock.into_inner()), 3);
    }
}
