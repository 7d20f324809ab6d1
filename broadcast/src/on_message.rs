//! What becomes of the messages that clients send: the values of `--on-message`, and how the handshake names them.

use clap::ValueEnum;

/// The header of an accepted handshake that says what becomes of a client's messages: `echo`, `broadcast` or `ignore`. So a
/// client that wants them handed on can tell before it sends any.
pub(crate) const ON_MESSAGE_HEADER: &str = "Humphrey-Broadcast-On-Message";

/// What to do with a message that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnMessage {
    /// Send it back
    Echo,
    /// Send it to the sender's room, or to everyone if it is in none
    Broadcast,
    /// Nothing
    Ignore,
}

impl OnMessage {
    /// As it is called on the command line, and in the handshake ([`ON_MESSAGE_HEADER`]).
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
            Self::Ignore => "ignore",
        }
    }
}
