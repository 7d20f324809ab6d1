//! Which side of a connection this is (RFC 6455 §5.1).

use std::fmt;

use super::error::Violation;

/// A side. It is a type, so that what a server does for each message is compiled without the question.
pub(crate) trait Role: fmt::Debug + 'static {
    /// The peer masks its frames: a client does, a server does not.
    const PEER_MASKS: bool;
    /// What a frame is that is masked though it must not be, or is not though it must.
    const WRONG_MASK: Violation;
}

/// We are the server; the peer is a client.
#[derive(Debug)]
pub(crate) enum ServerRole {}

impl Role for ServerRole {
    const PEER_MASKS: bool = true;
    const WRONG_MASK: Violation = Violation::UnmaskedFrame;
}

/// We are the client; the peer is a server.
#[derive(Debug)]
#[cfg_attr(not(any(test, fuzzing, feature = "client")), allow(dead_code))]
pub(crate) enum ClientRole {}

impl Role for ClientRole {
    const PEER_MASKS: bool = false;
    const WRONG_MASK: Violation = Violation::MaskedFrame;
}
