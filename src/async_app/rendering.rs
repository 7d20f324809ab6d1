//! The forms of a message on the wire beside its own frame: an event of an event stream, and a frame with its id.

use bytes::Bytes;

use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::event_stream::{self, EventData};
use crate::protocol::procedures;

/// A message as an event.
pub(super) fn render(message: &Message, id: Option<HistoryId>) -> Bytes {
    let payload = match message.is_text() {
        true => EventData::Text(message.bytes()),
        false => EventData::Binary(message.bytes()),
    };
    let id = id.map(|id| id.to_string());
    event_stream::event(id.as_deref(), payload).into()
}

/// How much longer a message is with its id, without the room's name: numbers of 16 and of 20 digits, and a longer header.
pub(super) const NUMBERED_MORE_BYTES_MAX: usize = 64;

/// A message of a room, for those who get it with its id there.
pub(super) fn with_id(room: &str, id: HistoryId, message: &Message) -> Bytes {
    let kind = procedures::MessageKind::text_if(message.is_text());
    let numbered = procedures::of_room(room, &id.to_string(), kind, message.bytes());
    Message::new_binary(numbered).into_frame().0
}
