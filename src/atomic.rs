//! A shared 64-bit counter, also for machines without 64-bit atomic operations.

#[cfg(not(target_has_atomic = "64"))]
pub(crate) use self::locked::AtomicU64;
#[cfg(target_has_atomic = "64")]
pub(crate) use std::sync::atomic::AtomicU64;

/// A replacement for `std`'s type that uses a lock, for 32-bit PowerPC and MIPS for example.
#[cfg(any(test, not(target_has_atomic = "64")))]
mod locked {
    use std::sync::atomic::Ordering;
    use std::sync::{Mutex, MutexGuard};

    use crate::sync::ignore_poison;

    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64(Mutex<u64>);

    impl AtomicU64 {
        pub(crate) const fn new(value: u64) -> Self {
            Self(Mutex::new(value))
        }

        fn lock(&self) -> MutexGuard<'_, u64> {
            // No code that runs under this lock can panic.
            ignore_poison(self.0.lock())
        }

        pub(crate) fn load(&self, _: Ordering) -> u64 {
            *self.lock()
        }

        pub(crate) fn store(&self, value: u64, _: Ordering) {
            *self.lock() = value;
        }

        pub(crate) fn swap(&self, value: u64, _: Ordering) -> u64 {
            self.update(|_| value)
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            _: Ordering,
            _: Ordering,
        ) -> Result<u64, u64> {
            let before = self.update(|value| if value == current { new } else { value });
            if before == current {
                Ok(before)
            } else {
                Err(before)
            }
        }

        fn update(&self, change: impl FnOnce(u64) -> u64) -> u64 {
            let mut value = self.lock();
            let before = *value;
            *value = change(before);
            before
        }

        pub(crate) fn fetch_add(&self, n: u64, _: Ordering) -> u64 {
            self.update(|value| value.wrapping_add(n))
        }

        pub(crate) fn fetch_sub(&self, n: u64, _: Ordering) -> u64 {
            self.update(|value| value.wrapping_sub(n))
        }

        pub(crate) fn fetch_max(&self, n: u64, _: Ordering) -> u64 {
            self.update(|value| value.max(n))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    /// Encodes the value that was found, and whether it was exchanged, in one number.
    fn exchanged(result: Result<u64, u64>) -> u64 {
        result.unwrap_or_else(|found| u64::MAX - found)
    }

    /// Makes the same operations on either type, and returns their results.
    macro_rules! numbers {
        ($type:ty) => {{
            let number = <$type>::new(3);
            vec![
                number.load(Relaxed),
                number.fetch_add(u64::MAX, Relaxed),
                number.fetch_sub(3, Relaxed),
                number.fetch_max(7, Relaxed),
                {
                    number.store(5, Relaxed);
                    number.fetch_max(7, Relaxed)
                },
                number.swap(8, Relaxed),
                exchanged(number.compare_exchange(8, 9, Relaxed, Relaxed)),
                exchanged(number.compare_exchange(8, 10, Relaxed, Relaxed)),
                number.load(Relaxed),
            ]
        }};
    }

    #[test]
    fn locked_counter_counts_like_an_atomic_one() {
        let expected = [3, 3, 2, u64::MAX, 5, 7, 8, u64::MAX - 9, 9];
        assert_eq!(numbers!(locked::AtomicU64), expected);
        assert_eq!(numbers!(AtomicU64), expected);
    }

    #[test]
    fn locked_counter_loses_no_update_between_threads() {
        let number = locked::AtomicU64::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| _ = number.fetch_add(1, Relaxed)));
            }
        });
        assert_eq!(number.load(Relaxed), 4000);
    }
}
