//! The two sides of a WebSocket connection (RFC 6455 §5.1).

use std::fmt;

use super::error::Violation;

/// The local side of a connection. It is a type parameter, so the per-frame code is compiled without a runtime check.
pub(crate) trait Role: fmt::Debug + 'static {
    /// Whether the peer must mask its frames: clients must, servers must not.
    const PEER_MASKS: bool;
    /// The violation that a frame with the wrong mask bit commits.
    const WRONG_MASK: Violation;
}

/// The local side is the server, and the peer is a client.
#[derive(Debug)]
pub(crate) enum ServerRole {}

impl Role for ServerRole {
    const PEER_MASKS: bool = true;
    const WRONG_MASK: Violation = Violation::UnmaskedFrame;
}

/// The local side is the client, and the peer is a server.
#[derive(Debug)]
#[cfg_attr(not(any(test, fuzzing, feature = "client")), allow(dead_code))]
pub(crate) enum ClientRole {}

impl Role for ClientRole {
    const PEER_MASKS: bool = false;
    const WRONG_MASK: Violation = Violation::MaskedFrame;
}
