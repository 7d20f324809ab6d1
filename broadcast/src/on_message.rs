//! The values of `--on-message`: what the server does with messages from clients, and how the handshake names it.

use clap::ValueEnum;

/// The header of an accepted handshake that names the value: `echo`, `broadcast` or `ignore`. A client can check it
/// before it sends messages.
pub(crate) const ON_MESSAGE_HEADER: &str = "Humphrey-Broadcast-On-Message";

/// What to do with a message from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnMessage {
    /// Send it back to the client
    Echo,
    /// Send it to the client's room, or to everyone if the client is in no room
    Broadcast,
    /// Discard it
    Ignore,
}

impl OnMessage {
    /// The name on the command line, and in the handshake ([`ON_MESSAGE_HEADER`]).
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Broadcast => "broadcast",
            Self::Ignore => "ignore",
        }
    }
}
