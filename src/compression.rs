//! How messages are compressed.

use crate::protocol::encode::MessageKind;

/// How messages are compressed with clients that ask for it (permessage-deflate, RFC 7692):
/// [`AsyncWebsocketApp::with_compression`](crate::AsyncWebsocketApp::with_compression).
///
/// A message to many is packed once, whoever gets it: members of an audience (a room, or everyone) share one history, so that
/// short messages that resemble each other shrink to a quarter or a third. Text messages are packed from 64 bytes on, and
/// sent as they are where that does not make them shorter.
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
    /// Text only; replies from 1 KiB on; not with WebKit.
    pub fn new() -> Self {
        Self {
            level: None,
            replies_from: 1024,
            binary: false,
            apple: false,
        }
    }

    /// How hard it is tried, from 1 (fastest) to 9 (shortest). By default 1 for messages below 512 bytes, and 2 for others:
    /// what higher levels save beyond is a tenth, for several times the time.
    ///
    /// # Panics
    ///
    /// If it is not from 1 to 9.
    #[track_caller]
    pub fn level(mut self, level: u8) -> Self {
        assert!(
            (1..=9).contains(&level),
            "a compression level is from 1 to 9, and not {level}"
        );
        self.level = Some(level);
        self
    }

    /// What is sent to one client is packed from this length on, in bytes: by itself, since it shares a history with nobody.
    /// 1,024 by default; `usize::MAX` sends all replies as they are.
    pub fn replies_from(mut self, bytes: usize) -> Self {
        self.replies_from = bytes;
        self
    }

    /// Whether binary messages are packed, too. Not by default: most are compressed already.
    pub fn binary(mut self, packed: bool) -> Self {
        self.binary = packed;
        self
    }

    /// Whether it is agreed with Safari, and with other programs that use Apple's networking. Not by default: there are open
    /// reports of versions that fail where compressed messages and others come mixed.
    pub fn apple(mut self, agreed: bool) -> Self {
        self.apple = agreed;
        self
    }

    /// Whether messages of that kind are packed.
    pub(crate) fn packs(&self, kind: MessageKind) -> bool {
        kind == MessageKind::Text || self.binary
    }

    /// The level for a message of that length.
    pub(crate) fn level_for(&self, len: usize) -> u8 {
        self.level.unwrap_or(if len < 512 { 1 } else { 2 })
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::new()
    }
}
