//! What a WebSocket or an event stream begins with, as HTTP leaves it.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::model::command::Upgraded;
use crate::engine::model::verdict::Granted;
use crate::engine::parts::encoding::Encoding;
use crate::request::RequestHead;

/// HTTP is over: what a WebSocket or an event stream begins with.
pub(crate) struct Upgrade {
    pub(crate) opening: Opening,
    /// By the host that has read the handshake.
    pub(crate) handed_over: Option<Box<Upgraded>>,
    /// What the client has sent behind its handshake.
    pub(crate) early: Vec<u8>,
}

/// What a WebSocket begins with.
pub(crate) struct Opening {
    pub(crate) request: Arc<RequestHead>,
    pub(crate) granted: Granted,
    /// The answer to the handshake, if it has yet to be sent.
    pub(crate) preface: Option<Bytes>,
    pub(crate) encoding: Encoding,
}
