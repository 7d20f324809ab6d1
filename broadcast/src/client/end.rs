//! How a connection ends, and how the command goes on.

use std::fmt;
use std::time::Duration;

use super::failures::Failure;

/// The upper bound of the wait that a server asks for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Why a connection has ended, or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The closing handshake is complete.
    Done,
    /// The program is stopping.
    Stopped,
    /// A failure of [`failures`](super::failures).
    Failed {
        failure: Failure,
        message: String,
        /// How long the server has asked to wait: its `Retry-After`, or what its close reason says.
        retry_after: Option<Duration>,
    },
}

/// The result of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Everything was received or sent.
    Done,
    /// A signal arrived, or standard output was closed.
    Stopped,
    /// No further connection attempt. The reason has been printed.
    Failed,
}

impl End {
    pub(super) fn failed(failure: Failure, message: impl fmt::Display) -> Self {
        Self::failed_until(failure, message, None)
    }

    /// A failure after which the server has asked to wait, if it has.
    pub(super) fn failed_until(
        failure: Failure,
        message: impl fmt::Display,
        retry_after: Option<Duration>,
    ) -> Self {
        Self::Failed {
            failure,
            message: message.to_string(),
            retry_after: retry_after.map(|wait| wait.min(RETRY_AFTER_MAX)),
        }
    }

    /// The failure, if this is one.
    pub(super) const fn failure(&self) -> Option<Failure> {
        match self {
            Self::Failed { failure, .. } => Some(*failure),
            Self::Done | Self::Stopped => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done | Self::Stopped => f.write_str("the connection was closed"),
            Self::Failed { message, .. } => f.write_str(message),
        }
    }
}

/// The wait before the next attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The backoff's delay, but no less than `at_least`. `later`: the server has asked for time.
    Backoff { later: bool, at_least: Duration },
    /// The time that the server has named.
    Exactly(Duration),
}

/// What follows the end of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    Stop(Outcome),
    Reconnect(Wait),
}
