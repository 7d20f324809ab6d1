//! How a connection, and the whole command, ends.

use std::fmt;
use std::time::Duration;

use super::failures::Failure;

/// Why a connection is over, or could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer has said goodbye, and the server too.
    Done,
    /// All is to end.
    Stopped,
    /// Something has gone wrong: see [`failures`](super::failures).
    Failed {
        failure: Failure,
        says: String,
        /// The server wants to be left alone for so long.
        retry_after: Duration,
    },
}

/// How all of it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All is done.
    Done,
    /// A signal came, or nobody reads the output.
    Stopped,
    /// There is no connection, and there will be none. It has been said.
    Failed,
}

impl End {
    pub(super) fn failed(failure: Failure, says: impl fmt::Display) -> Self {
        Self::Failed {
            failure,
            says: says.to_string(),
            retry_after: Duration::ZERO,
        }
    }

    /// What has gone wrong, if anything has.
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
            Self::Done | Self::Stopped => f.write_str("this is the end"),
            Self::Failed { says, .. } => f.write_str(says),
        }
    }
}

/// What follows an end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    Stop(Outcome),
    /// Another attempt; `later` if the server has asked for time, and not before so long.
    Again {
        later: bool,
        at_least: Duration,
    },
}
