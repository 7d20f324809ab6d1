//! Settings of message compression.

use crate::protocol::encode::MessageKind;

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

    /// Sets the compression level, from 1 (fastest) to 9 (smallest). The default is 1 for messages below 512 bytes, and
    /// 2 for others: higher levels save another tenth, for several times the CPU time.
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

    /// Sets the length in bytes from which messages to a single client are compressed; these have no shared history.
    /// Default 1,024. `usize::MAX` sends all of them uncompressed.
    pub fn replies_from(mut self, bytes: usize) -> Self {
        self.replies_from = bytes;
        self
    }

    /// Sets whether binary messages are compressed, too. By default they are not, since most are compressed already.
    pub fn binary(mut self, compressed: bool) -> Self {
        self.binary = compressed;
        self
    }

    /// Sets whether compression is negotiated with Safari, and with other programs that use Apple's networking. By
    /// default it is not: there are open reports of versions that fail when compressed and uncompressed messages
    /// alternate.
    pub fn apple(mut self, agreed: bool) -> Self {
        self.apple = agreed;
        self
    }

    /// Whether messages of this kind are compressed.
    pub(crate) fn compresses(&self, kind: MessageKind) -> bool {
        kind == MessageKind::Text || self.binary
    }

    /// The level for a message of this length.
    pub(crate) fn level_for(&self, len: usize) -> u8 {
        self.level.unwrap_or(if len < 512 { 1 } else { 2 })
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::new()
    }
}
