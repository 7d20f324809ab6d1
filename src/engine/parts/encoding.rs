//! The form of a client's messages: WebSocket frames, or server-sent events.
//!
//! Where queued bytes have to be cut, the encoding finds the boundaries between messages.

#[cfg(feature = "deflate")]
use crate::protocol::encode::RSV1;
use crate::protocol::{encode, event_stream};

/// The form of a connection's outgoing messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Frames (RFC 6455 §5.2).
    #[default]
    Frames,
    /// Server-sent events (WHATWG HTML §9.2).
    Events,
}

impl Encoding {
    /// The length of the message or control frame at the front of `bytes`, which this server must have encoded.
    pub(crate) fn len_of_first(self, bytes: &[u8]) -> usize {
        match self {
            Self::Frames => encode::frame_len(bytes),
            Self::Events => event_stream::block_len(bytes),
        }
    }

    /// Whether a control frame (in an event stream: a comment) is at the front of `bytes`.
    pub(crate) fn is_control(self, bytes: &[u8]) -> bool {
        match self {
            Self::Frames => encode::is_control_frame(bytes),
            Self::Events => event_stream::is_comment(bytes),
        }
    }

    /// Whether the message at the front of `bytes` is compressed.
    #[cfg(feature = "deflate")]
    pub(crate) fn is_compressed(self, bytes: &[u8]) -> bool {
        self == Self::Frames && bytes.first().is_some_and(|first| first & RSV1 != 0)
    }

    /// The whole messages in the first `bytes_max` bytes of `run`, at least one: their bytes and their number.
    pub(crate) fn whole(self, run: &[u8], bytes_max: usize) -> (usize, u32) {
        let mut at = 0;
        let mut messages = 0;
        while at < run.len() {
            let len = self.len_of_first(&run[at..]);
            debug_assert!(!self.is_control(&run[at..]));
            if messages > 0 && at + len > bytes_max {
                break;
            }
            at += len;
            messages += 1;
        }
        (at, messages)
    }
}
