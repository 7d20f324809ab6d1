//! The content of a broadcast, and its encodings other than a plain frame: as an event of an event stream, and as a
//! frame with its id.

use bytes::{Bytes, BytesMut};

use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::encode::{self, HEADER_BYTES_MAX, Opcode};
use crate::protocol::event_stream::{self, EventData};
use crate::protocol::procedures;

/// The content that is published to a room.
pub(super) enum Content<'a> {
    Message(&'a Message),
    /// A closure that creates the message for an id. It is called again if another message takes that id first.
    OfId(&'a dyn Fn(Option<HistoryId>) -> Message),
}

impl Content<'_> {
    pub(super) fn message(&self, id: Option<HistoryId>) -> Message {
        match self {
            Self::Message(message) => (*message).clone(),
            Self::OfId(make) => make(id),
        }
    }

    pub(super) fn depends_on_id(&self) -> bool {
        matches!(self, Self::OfId(_))
    }
}

/// Renders a message as an event.
pub(super) fn event(message: &Message, id: Option<HistoryId>) -> Bytes {
    let id = id.map(|id| id.to_string());
    event_stream::event(id.as_deref(), event_data(message)).into()
}

fn event_data(message: &Message) -> EventData<'_> {
    match message.is_text() {
        true => EventData::Text(message.bytes()),
        false => EventData::Binary(message.bytes()),
    }
}

/// Returns an upper bound of the length of a message's event without an id.
pub(super) fn event_len(message: &Message) -> usize {
    event_stream::event_bytes(None, event_data(message))
}

/// Renders a message of a room as a frame with its id.
pub(super) fn frame_with_id(room: &str, id: HistoryId, message: &Message) -> Bytes {
    WithId::frame(room, message, id).bytes
}

/// The maximum number of bytes that an id adds to a message's frame, besides the room's name: its 16 and 20 digits, a
/// longer header, and spare bytes to replace the id.
pub(super) const FRAME_ID_BYTES_MAX: usize = 72;

/// The maximum number of bytes that an id adds to a message's event.
pub(super) const EVENT_ID_BYTES_MAX: usize = 48;

/// Spare bytes in front of a rendering, so that a replaced id can have more digits.
const SPARE_BYTES: usize = 8;

/// A rendering that starts with the message's id, which can be replaced without rendering again.
pub(super) struct WithId {
    form: RenderedForm,
    /// The spare bytes, the prefix with the id, and the message.
    whole: Bytes,
    body_at: usize,
    /// The bytes from the prefix on.
    bytes: Bytes,
}

enum RenderedForm {
    Event,
    /// A binary frame that names the room.
    Frame {
        room: Box<str>,
        is_text: bool,
    },
}

impl RenderedForm {
    /// Renders the part in front of the message.
    fn prefix(&self, id: HistoryId, body_len: usize) -> Vec<u8> {
        let id = id.to_string();
        match self {
            Self::Event => format!("id: {id}\n").into_bytes(),
            Self::Frame { room, is_text } => {
                let inner =
                    procedures::of_room(room, &id, procedures::MessageKind::text_if(*is_text), b"");
                let mut header = [0; HEADER_BYTES_MAX];
                let payload_len = inner.len() + body_len;
                let len = encode::write_header(Opcode::Binary, payload_len, &mut header);
                let mut prefix = header[HEADER_BYTES_MAX - len..].to_vec();
                prefix.extend_from_slice(&inner);
                prefix
            }
        }
    }
}

impl WithId {
    pub(super) fn event(message: &Message, id: HistoryId) -> Self {
        Self::new(RenderedForm::Event, &event(message, None), id)
    }

    pub(super) fn frame(room: &str, message: &Message, id: HistoryId) -> Self {
        let is_text = message.is_text();
        let room = room.into();
        Self::new(RenderedForm::Frame { room, is_text }, message.bytes(), id)
    }

    fn new(form: RenderedForm, body: &[u8], id: HistoryId) -> Self {
        #[cfg(test)]
        tests::RENDERED.set(tests::RENDERED.get() + 1);
        let prefix = form.prefix(id, body.len());
        let body_at = SPARE_BYTES + prefix.len();
        let mut whole = Vec::with_capacity(body_at + body.len());
        whole.resize(SPARE_BYTES, 0);
        whole.extend_from_slice(&prefix);
        whole.extend_from_slice(body);
        let whole = Bytes::from(whole);
        Self {
            form,
            body_at,
            bytes: whole.slice(SPARE_BYTES..),
            whole,
        }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Replaces the id. The cost is that of the prefix, as long as the bytes are not shared.
    pub(super) fn set_id(&mut self, id: HistoryId) {
        let body_len = self.whole.len() - self.body_at;
        let prefix = self.form.prefix(id, body_len);
        let Some(start) = self.body_at.checked_sub(prefix.len()) else {
            let body = self.whole.slice(self.body_at..);
            let form = std::mem::replace(&mut self.form, RenderedForm::Event);
            *self = Self::new(form, &body, id);
            return;
        };
        self.bytes = Bytes::new();
        let whole = std::mem::take(&mut self.whole);
        let mut whole = whole
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        whole[start..self.body_at].copy_from_slice(&prefix);
        self.whole = whole.freeze();
        self.bytes = self.whole.slice(start..);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// Number of renderings with an id that this thread has made.
        pub(crate) static RENDERED: Cell<usize> = const { Cell::new(0) };
    }

    fn id(sequence: u64) -> HistoryId {
        HistoryId::new(0xabc, sequence)
    }

    /// Renders the frame without replacing an id.
    fn plain_frame(room: &str, id: HistoryId, message: &Message) -> Bytes {
        let (is_text, payload) = (message.is_text(), message.bytes());
        let framed = procedures::of_room(
            room,
            &id.to_string(),
            procedures::MessageKind::text_if(is_text),
            payload,
        );
        Message::new_binary(framed).into_frame().0
    }

    #[test]
    fn replaced_id_gives_the_bytes_of_a_new_rendering() {
        // Lengths around those where a frame's header becomes longer (RFC 6455 §5.2).
        let lengths = [0, 1, 90, 100, 110, 125, 126, 65_500, 65_520, 65_535, 65_536];
        for len in lengths {
            for message in [
                Message::new("x".repeat(len)),
                Message::new("\r\nx\n".repeat(len / 4)),
                Message::new_binary(vec![7; len]),
            ] {
                let mut event_form = WithId::event(&message, id(1));
                let mut frame_form = WithId::frame("news", &message, id(1));
                for sequence in [1, 2, 10, 99_999, u64::MAX, 3] {
                    event_form.set_id(id(sequence));
                    frame_form.set_id(id(sequence));
                    assert_eq!(event_form.bytes(), &event(&message, Some(id(sequence))));
                    let expected = plain_frame("news", id(sequence), &message);
                    assert_eq!(frame_form.bytes(), &expected, "{len} {sequence}");
                }
            }
        }
    }

    #[test]
    fn replaced_id_leaves_shared_bytes_unchanged() {
        let message = Message::new("rain");
        let mut form = WithId::frame("news", &message, id(1));
        let taken = form.bytes().clone();
        form.set_id(id(2));
        assert_eq!(taken, plain_frame("news", id(1), &message));
        assert_eq!(form.bytes(), &plain_frame("news", id(2), &message));
    }

    #[test]
    fn replaced_id_copies_nothing_if_bytes_are_not_shared() {
        let mut form = WithId::event(&Message::new("rain".repeat(1_000)), id(1));
        let (rendered, at) = (RENDERED.get(), form.whole.as_ptr());
        for sequence in 2..1_000 {
            form.set_id(id(sequence));
        }
        assert_eq!(RENDERED.get(), rendered);
        assert_eq!(form.whole.as_ptr(), at);
    }

    #[test]
    fn frame_with_id_fits_its_reserved_bytes() {
        for len in [0, 100, 65_500] {
            let message = Message::new_binary(vec![7; len]);
            let most = HistoryId::new(u64::MAX, u64::MAX);
            let frame = frame_with_id("news", most, &message);
            let reserved = message.frame().len() + "news".len() + FRAME_ID_BYTES_MAX;
            assert!(frame.len() <= reserved);
        }
    }
}
