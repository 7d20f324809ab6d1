//! The state that a WebSocket or an event stream takes over from HTTP.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::model::command::Upgraded;
use crate::engine::model::verdict::Granted;
use crate::engine::parts::encoding::Encoding;
use crate::request::RequestHead;

/// The outcome of HTTP: a WebSocket or an event stream begins.
pub(crate) struct Upgrade {
    pub(crate) opening: Opening,
    /// The handshake, if a host has read it.
    pub(crate) handed_over: Option<Box<Upgraded>>,
    /// Bytes that the client has sent behind its handshake.
    pub(crate) early: Vec<u8>,
}

/// The state that a WebSocket begins with.
pub(crate) struct Opening {
    pub(crate) request: Arc<RequestHead>,
    pub(crate) granted: Granted,
    /// The response to the handshake, if it has yet to be sent.
    pub(crate) preface: Option<Bytes>,
    pub(crate) encoding: Encoding,
}
