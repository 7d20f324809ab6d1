//! Deadlines of blocking steps.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::error::ClientError;

/// Returns the deadline of a step that begins now.
pub(super) fn deadline(timeout: Duration) -> Instant {
    // `Instant` can't represent a very long timeout, so it is replaced by about 34 years.
    let now = Instant::now();
    now.checked_add(timeout)
        .unwrap_or_else(|| now + Duration::from_secs(1 << 30))
}

/// Returns the time until the deadline, or an error if it has passed.
pub(super) fn left(by: Instant) -> Result<Duration, ClientError> {
    let left = by.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ClientError::TimedOut);
    }
    Ok(left)
}

/// Returns whether a read or write has failed because its time limit expired.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
