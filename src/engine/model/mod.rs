//! The vocabulary of the engine: messages between its threads, and its interface to the program.

pub(crate) mod command;
pub(crate) mod inspection;
pub(crate) mod job;
pub(crate) mod memberships;
#[cfg(feature = "deflate")]
pub(crate) mod negotiation;
pub(crate) mod program;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod room;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod verdict;
