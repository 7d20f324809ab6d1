//! Checks of invariants, and the failures that they report.

use std::fmt;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// Timeout of any single step; longer than any takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Describes an invariant that did not hold.
#[derive(Debug)]
pub(crate) struct Failure(String);

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.to_string())
    }
}

/// Adds to an error what was being done.
pub(crate) trait During<T> {
    fn during(self, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

/// Returns a failure unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err($crate::check::Failure::new(format!($($words)+)));
        }
    };
}
pub(crate) use ensure;

/// Waits until the condition holds; fails after [`DEADLINE`].
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> Outcome<bool>) -> Outcome {
    within(DEADLINE, what, holds).map(drop)
}

/// Waits until the condition holds; fails after `wait`. Returns how long it took.
pub(crate) fn within(
    wait: Duration,
    what: &str,
    mut holds: impl FnMut() -> Outcome<bool>,
) -> Outcome<Duration> {
    let start = Instant::now();
    while !holds()? {
        ensure!(
            start.elapsed() < wait,
            "timed out after {wait:?} before {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}

/// A deadline that each progress restarts, so that a slow machine does not miss it.
#[derive(Debug)]
pub(crate) struct ProgressDeadline {
    wait: Duration,
    expires: Instant,
}

impl ProgressDeadline {
    /// Expires once `wait` has passed without progress.
    pub(crate) fn new(wait: Duration) -> Self {
        Self {
            wait,
            expires: Instant::now() + wait,
        }
    }

    /// Restarts the wait after progress.
    pub(crate) fn restart(&mut self) {
        self.expires = Instant::now() + self.wait;
    }

    /// Returns the time that is left. Once there is none, it fails with what is missing.
    pub(crate) fn remaining(&self, missing: impl FnOnce() -> Outcome<String>) -> Outcome<Duration> {
        let remaining = self.expires.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(Failure(format!(
                "no progress for {:?}: {}",
                self.wait,
                missing()?
            )));
        }
        Ok(remaining)
    }
}

/// Joins a thread of a scenario and returns its result.
pub(crate) fn join<T>(thread: thread::ScopedJoinHandle<'_, Outcome<T>>) -> Outcome<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Failure::new("a thread of the scenario panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_deadline_fails_until_progress_restarts_it() {
        let mut deadline = ProgressDeadline {
            wait: Duration::from_secs(3_600),
            expires: Instant::now(),
        };
        let missing = || Ok("two answers are missing".to_owned());
        let failure = deadline.remaining(missing).unwrap_err().to_string();
        assert_eq!(failure, "no progress for 3600s: two answers are missing");
        deadline.restart();
        assert!(deadline.remaining(missing).is_ok());
    }
}
