//! The program's own form of the messages of rooms with a history, for clients that are accepted with
//! [`Accept::rendered`](crate::Accept::rendered).
//!
//! All functions here call user code, so they must not be called while a lock is held.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};
use crate::metrics::Counters;
use crate::report::{Limited, limited};
use crate::user_threads::run_caught;

/// A message of a room with a history, as a [renderer](crate::AsyncWebsocketApp::with_renderer) receives it.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, KeptMessage, Message};
///
/// fn line(kept: &KeptMessage<'_>) -> Message {
///     let text = kept.message().text().unwrap_or("(binary)");
///     Message::new_text(format!("{} {} {text}", kept.room(), kept.id()))
/// }
///
/// let app = AsyncWebsocketApp::<()>::new().with_renderer(line);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct KeptMessage<'a> {
    room: &'a str,
    id: HistoryId,
    sent: &'a SentMessage,
}

impl<'a> KeptMessage<'a> {
    pub(super) fn new(room: &'a str, id: HistoryId, sent: &'a SentMessage) -> Self {
        Self { room, id, sent }
    }

    /// The name of the room that the message was sent to.
    pub fn room(&self) -> &'a str {
        self.room
    }

    /// The id of the message in the room's history.
    pub fn id(&self) -> HistoryId {
        self.id
    }

    /// When the message was sent, by the system clock of the node that has sent it, in whole milliseconds. A message of a
    /// node with an older version of this library counts as sent when this node received it.
    pub fn sent_at(&self) -> SystemTime {
        let since_1970 = Duration::from_millis(self.sent.sent_at);
        UNIX_EPOCH.checked_add(since_1970).unwrap_or(UNIX_EPOCH)
    }

    /// The message as it was sent.
    pub fn message(&self) -> &'a Message {
        &self.sent.message
    }
}

/// Messages that are missing in a room on this node, as a [gap handler](crate::AsyncWebsocketApp::with_gap_handler) is
/// told.
#[cfg(feature = "cluster")]
#[derive(Debug, Clone, Copy)]
pub struct HistoryGap<'a> {
    room: &'a str,
    position: HistoryId,
}

#[cfg(feature = "cluster")]
impl<'a> HistoryGap<'a> {
    pub(super) fn new(room: &'a str, position: HistoryId) -> Self {
        Self { room, position }
    }

    /// The name of the room.
    pub fn room(&self) -> &'a str {
        self.room
    }

    /// The position from which the room's messages follow without a gap. Clients resume from it.
    pub fn position(&self) -> HistoryId {
        self.position
    }
}

type Render = dyn Fn(&KeptMessage<'_>) -> Message + Send + Sync;
#[cfg(feature = "cluster")]
type OnGap = dyn Fn(&HistoryGap<'_>) -> Option<Message> + Send + Sync;

/// The program's functions that make messages for rendered clients.
#[derive(Default)]
pub(super) struct Renderers {
    pub(super) render: Option<Box<Render>>,
    #[cfg(feature = "cluster")]
    pub(super) on_gap: Option<Box<OnGap>>,
}

/// Calls the program's functions, and counts those calls that fail.
#[derive(Clone, Copy)]
pub(super) struct Renderer<'a> {
    renderers: &'a OnceLock<Renderers>,
    counters: &'a Counters,
    message_bytes_max: usize,
}

impl<'a> Renderer<'a> {
    pub(super) fn new(
        renderers: &'a OnceLock<Renderers>,
        counters: &'a Counters,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            renderers,
            counters,
            message_bytes_max,
        }
    }

    /// Renders a message. `None` if the renderer panics, or returns a message that is too long.
    pub(super) fn render(self, kept: KeptMessage<'_>) -> Option<Message> {
        /// Rate-limited, because it may concern every message.
        static NOT_RENDERED: Limited = Limited::new();
        let render = self.renderers.get()?.render.as_ref()?;
        let mut rendered = None;
        run_caught(|| rendered = Some(render(&kept)));
        if rendered.is_none() {
            self.counters.handler_panics.add(1);
            limited!(
                NOT_RENDERED,
                error,
                "the renderer panicked: its clients do not receive message {} of room {:?}",
                kept.id,
                kept.room
            );
        }
        self.check_len(rendered?)
    }

    /// Makes the message that stands for missing messages. `None` if there is no gap handler, or it returns none or panics.
    #[cfg(feature = "cluster")]
    pub(super) fn on_gap(self, gap: HistoryGap<'_>) -> Option<Message> {
        /// Rate-limited, because rooms may have gaps together.
        static NOT_TOLD: Limited = Limited::new();
        let on_gap = self.renderers.get()?.on_gap.as_ref()?;
        let mut told = None;
        run_caught(|| told = Some(on_gap(&gap)));
        if told.is_none() {
            self.counters.handler_panics.add(1);
            limited!(
                NOT_TOLD,
                error,
                "the gap handler panicked: clients are not told of a gap in room {:?}",
                gap.room
            );
        }
        self.check_len(told??)
    }

    fn check_len(self, message: Message) -> Option<Message> {
        /// Rate-limited, because it may concern every message.
        static TOO_LONG: Limited = Limited::new();
        let bytes = message.bytes().len();
        if bytes > self.message_bytes_max {
            self.counters.dropped_too_large.add(1);
            limited!(
                TOO_LONG,
                error,
                "a rendered message has {bytes} bytes, which is more than Limits::message_bytes_max: clients do not receive it"
            );
            return None;
        }
        Some(message)
    }
}

/// The current time, in milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
