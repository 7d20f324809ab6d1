//! Which rooms have presence, and how.

use std::time::Duration;

use crate::async_app::history::matches;

/// The rooms whose presence the app keeps ([`with_presence`](crate::AsyncWebsocketApp::with_presence)).
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, PresenceRooms};
/// use std::time::Duration;
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_presence(PresenceRooms::new("lobby/*").grace(Duration::from_secs(10)).event_streams(true));
/// ```
#[derive(Debug, Clone)]
pub struct PresenceRooms {
    pattern: String,
    pub(super) grace: Duration,
    pub(super) event_streams: bool,
    pub(super) state_bytes_max: usize,
}

impl PresenceRooms {
    /// The rooms whose name matches a pattern, in which `*` stands for any run of characters, including none.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self {
            pattern: pattern.into(),
            grace: Duration::from_secs(5),
            event_streams: false,
            state_bytes_max: 1_024,
        }
    }

    /// Sets how long a user is still there after the last connection has ended. So a user who reloads a page has not left. Default 5
    /// seconds, at least 20 ms.
    pub fn grace(mut self, time: Duration) -> Self {
        self.grace = time.max(GRACE_MIN);
        self
    }

    /// Sets whether the clients of event streams are members, too
    /// ([`with_event_stream`](crate::AsyncWebsocketApp::with_event_stream)). By default they are not.
    pub fn event_streams(mut self, count: bool) -> Self {
        self.event_streams = count;
        self
    }

    /// Sets the longest state of a member in bytes. Default 1024, at most 64 KiB.
    pub fn state_bytes_max(mut self, bytes: usize) -> Self {
        self.state_bytes_max = bytes.min(STATE_BYTES_MAX);
        self
    }
}

/// The shortest grace period, since a client that asks for missed messages leaves and joins at once.
pub(super) const GRACE_MIN: Duration = Duration::from_millis(20);
const STATE_BYTES_MAX: usize = 64 << 10;

impl From<&str> for PresenceRooms {
    fn from(pattern: &str) -> Self {
        Self::new(pattern)
    }
}

impl From<String> for PresenceRooms {
    fn from(pattern: String) -> Self {
        Self::new(pattern)
    }
}

/// The patterns of an app.
#[derive(Debug, Clone, Default)]
pub(in crate::async_app) struct PresencePatterns(Vec<PresenceRooms>);

impl PresencePatterns {
    pub(in crate::async_app) fn add(&mut self, rooms: PresenceRooms) {
        self.0.push(rooms);
    }

    pub(in crate::async_app) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the settings of a room; `None` if its presence is not kept.
    pub(super) fn find(&self, room: &str) -> Option<&PresenceRooms> {
        self.0.iter().find(|rooms| matches(&rooms.pattern, room))
    }

    pub(super) fn count_event_streams(&self) -> bool {
        self.0.iter().any(|rooms| rooms.event_streams)
    }
}
