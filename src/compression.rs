//! Settings of message compression.

use crate::protocol::encode::MessageKind;

/// With at least this many recipients, compressing a message once at a high level costs little compared with the writes
/// to their sockets.
const MANY_RECIPIENTS: usize = 256;

/// Settings of permessage-deflate (RFC 7692), for clients that negotiate it
/// ([`AsyncWebsocketApp::with_compression`](crate::AsyncWebsocketApp::with_compression)).
///
/// A broadcast is compressed once for all its recipients: the members of an audience (a room, or all clients) share one
/// compression history, so that short messages that resemble each other shrink to a quarter or a third. Text messages
/// are compressed from 64 bytes on, and sent uncompressed if compression does not make them shorter.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Compression};
///
/// let app = AsyncWebsocketApp::<()>::new().with_compression(Compression::new());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    pub(crate) level: Option<u8>,
    pub(crate) replies_from: usize,
    pub(crate) binary: bool,
    pub(crate) apple: bool,
}

impl Compression {
    /// Creates the default settings: text only, replies from 1 KiB on, and not for Apple's clients.
    pub fn new() -> Self {
        Self {
            level: None,
            replies_from: 1024,
            binary: false,
            apple: false,
        }
    }

    /// Sets the compression level, from 1 (fastest) to 9 (smallest). By default, the level depends on the message. For a
    /// broadcast that at least 256 clients receive compressed, it is 9 below 512 bytes, and 6 from 512 bytes on. For
    /// other messages it is 1 and 2. The high levels save another fifth of the bytes, and their cost is small compared
    /// with that many writes.
    ///
    /// # Panics
    ///
    /// If the level is not from 1 to 9.
    #[track_caller]
    pub fn level(mut self, level: u8) -> Self {
        assert!(
            (1..=9).contains(&level),
            "a compression level must be from 1 to 9, but is {level}"
        );
        self.level = Some(level);
        self
    }

    /// Sets the minimum length in bytes from which messages to a single client are compressed, each one by itself. The
    /// default is 1,024. `usize::MAX` sends all of them uncompressed.
    pub fn replies_from(mut self, bytes: usize) -> Self {
        self.replies_from = bytes;
        self
    }

    /// Sets whether binary messages are compressed as well. The default is no, because most binary messages are already
    /// compressed.
    pub fn binary(mut self, compressed: bool) -> Self {
        self.binary = compressed;
        self
    }

    /// Sets whether compression is negotiated with Safari and other programs that use Apple's networking. The default
    /// is no, because some versions are reported to fail when compressed and uncompressed messages alternate.
    pub fn apple(mut self, agreed: bool) -> Self {
        self.apple = agreed;
        self
    }

    /// Whether messages of this kind are compressed.
    pub(crate) fn compresses(&self, kind: MessageKind) -> bool {
        kind == MessageKind::Text || self.binary
    }

    /// Returns the level for a message of `len` bytes that `recipients` clients receive compressed.
    pub(crate) fn level_for(&self, len: usize, recipients: usize) -> u8 {
        let is_short = len < 512;
        self.level
            .unwrap_or(match (recipients >= MANY_RECIPIENTS, is_short) {
                (true, true) => 9,
                (true, false) => 6,
                (false, true) => 1,
                (false, false) => 2,
            })
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_rises_with_length_and_recipients_unless_set() {
        let compression = Compression::new();
        for (len, recipients, level) in [
            (511, 0, 1),
            (512, 0, 2),
            (511, MANY_RECIPIENTS - 1, 1),
            (511, MANY_RECIPIENTS, 9),
            (512, MANY_RECIPIENTS, 6),
            (16_000, MANY_RECIPIENTS, 6),
        ] {
            assert_eq!(compression.level_for(len, recipients), level);
        }
        assert_eq!(compression.level(3).level_for(64, MANY_RECIPIENTS), 3);
    }
}
