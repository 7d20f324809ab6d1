//! A message of a room with a history on its way to the room's members: its renderings, made without a lock.

use std::sync::Arc;

use super::renderer::{KeptMessage, Renderer};
use super::rendering::{WithId, frame_with_id};
use super::room_entry::RoomEntry;
use crate::engine::{self, Hub, LocalId, RenderedFrames};
use crate::history_id::HistoryId;
use crate::message::{Message, SentMessage};

/// A message and its renderings, prepared without a lock.
pub(super) struct PreparedMessage {
    id: HistoryId,
    sent: SentMessage,
    event: Option<WithId>,
    framed: Option<WithId>,
    rendered: Option<RenderedMessage>,
}

/// A message as the program has rendered it.
struct RenderedMessage {
    /// The id that it was rendered for.
    id: HistoryId,
    /// `None` if it could not be rendered. Its recipients then don't receive it.
    message: Option<Message>,
    frames: Arc<RenderedFrames>,
    /// The frames that were encoded: without ids, and with ids.
    encoded: [bool; 2],
}

impl RenderedMessage {
    fn new(room: &str, id: HistoryId, sent: &SentMessage, renderer: Renderer<'_>) -> Self {
        Self {
            id,
            message: renderer.render(KeptMessage::new(room, id, sent)),
            frames: Arc::default(),
            encoded: [false; 2],
        }
    }

    /// Encodes the missing frames.
    fn encode_for(&mut self, hub: &Hub, room: &engine::SharedRoom, needed: [bool; 2]) {
        if self.has_encoded(needed) {
            return;
        }
        let [plain, with_ids] = needed;
        let message = self.message.as_ref();
        let framed = message
            .filter(|_| with_ids)
            .map(|message| frame_with_id(&room.name, self.id, message));
        self.frames = hub.rendered_frames(message.filter(|_| plain), framed);
        self.encoded = needed;
    }

    fn has_encoded(&self, needed: [bool; 2]) -> bool {
        let mut both = self.encoded.iter().zip(needed);
        both.all(|(&encoded, needed)| encoded || !needed)
    }
}

impl PreparedMessage {
    pub(super) fn new(sent: SentMessage, id: HistoryId) -> Self {
        Self {
            id,
            sent,
            event: None,
            framed: None,
            rendered: None,
        }
    }

    pub(super) fn message(&self) -> &Message {
        &self.sent.message
    }

    pub(super) fn into_sent(self) -> SentMessage {
        self.sent
    }

    /// Returns whether it was prepared for this id.
    pub(super) fn is_of(&self, id: HistoryId) -> bool {
        self.id == id
    }

    /// Renders the missing forms that the room's recipients need. Those of the program are for this id.
    pub(super) fn render_for(
        &mut self,
        room: &engine::SharedRoom,
        id: HistoryId,
        (hub, renderer): (&Hub, Renderer<'_>),
    ) {
        if room.streams().is_some() && self.event.is_none() {
            self.event = Some(WithId::event(&self.sent.message, self.id));
        }
        if room.has_members_with_ids() && self.framed.is_none() {
            self.framed = Some(WithId::frame(&room.name, &self.sent.message, self.id));
        }
        let needed = room.has_rendered_members();
        if needed == [false; 2] {
            return;
        }
        let current = self.rendered.take().filter(|rendered| rendered.id == id);
        self.rendered
            .insert(
                current
                    .unwrap_or_else(|| RenderedMessage::new(&room.name, id, &self.sent, renderer)),
            )
            .encode_for(hub, room, needed);
    }

    /// Returns whether the form of every recipient is rendered, for this id.
    pub(super) fn covers(&self, room: &engine::SharedRoom, id: HistoryId) -> bool {
        let needed = room.has_rendered_members();
        let is_current = |rendered: &RenderedMessage| rendered.id == id;
        (room.streams().is_none() || self.event.is_some())
            && (!room.has_members_with_ids() || self.framed.is_some())
            && (needed == [false; 2]
                || self
                    .rendered
                    .as_ref()
                    .is_some_and(|rendered| is_current(rendered) && rendered.has_encoded(needed)))
    }

    /// Returns whether the program has rendered the message for an id that is not this one, in vain.
    pub(super) fn is_rendered_in_vain(&self, room: &engine::SharedRoom, id: HistoryId) -> bool {
        let rendered = self.rendered.as_ref();
        rendered.is_some_and(|rendered| rendered.id != id)
            && room.has_rendered_members() != [false; 2]
    }

    pub(super) fn set_id(&mut self, id: HistoryId) {
        if self.id != id {
            self.id = id;
            for form in [&mut self.event, &mut self.framed].into_iter().flatten() {
                form.set_id(id);
            }
        }
    }

    pub(super) fn destination<'a>(
        &'a self,
        room: &'a RoomEntry,
        except: Option<LocalId>,
    ) -> engine::Destination<'a> {
        let framed = self
            .framed
            .as_ref()
            .filter(|_| room.members.has_members_with_ids());
        let streams = room.members.streams();
        let event = self.event.as_ref();
        let rendered = self
            .rendered
            .as_ref()
            .filter(|_| room.members.has_rendered_members() != [false; 2]);
        engine::Destination {
            room: Some(&room.members),
            except,
            with_ids: framed.map(WithId::bytes),
            rendered: rendered.map(|rendered| &rendered.frames),
            event: streams.zip(event.map(WithId::bytes)),
            omit_plain: false,
            key: None,
            uncompressed: self.sent.message.is_uncompressed(),
            form: None,
        }
    }
}
