//! How a connection ends, and how the command goes on.

use std::fmt;
use std::time::Duration;

use super::failures::Failure;

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
        /// The server's `Retry-After`.
        retry_after: Duration,
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
        Self::Failed {
            failure,
            message: message.to_string(),
            retry_after: Duration::ZERO,
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

/// What follows the end of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    Stop(Outcome),
    /// Connect again after at least `at_least`. `later`: the server has asked for time.
    Reconnect {
        later: bool,
        at_least: Duration,
    },
}
