//! Messages to a room, or to everyone except one: each form goes to its own audience.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::model::command::{Form, Publication, RenderedFrames};
use crate::engine::model::room::{HistoryForm, SharedRoom};
use crate::engine::parts::batch::Audience;
use crate::engine::reactor::Core;
use crate::transport::ShardTransport;

impl<T: ShardTransport> Core<T> {
    /// Delivers a message in each form that has recipients on this shard.
    pub(super) fn publish(&mut self, publication: Publication) {
        let Publication {
            room,
            frame,
            form,
            key,
            with_ids,
            rendered,
            except,
            event,
        } = publication;
        let audience = room
            .as_ref()
            .map_or(Audience::Everyone, |room| Audience::Room(room.number()));
        let others = match room {
            Some(room) if with_ids.is_some() || rendered.is_some() => {
                self.other_forms(&room, with_ids, rendered)
            }
            _ => [None, None, None],
        };
        // If all members get it in another form, the frame itself is not counted as undelivered.
        if let Some(frame) = frame
            && (others.iter().all(Option::is_none) || self.cx.fanout.audience_len(audience) > 0)
        {
            self.broadcast(audience, frame, form, key, except);
        }
        for (audience, frame, form) in others.into_iter().flatten() {
            self.broadcast(audience, frame, form, key, except);
        }
        if let Some((streams, event)) = event {
            let streams = Audience::Room(streams.number());
            self.broadcast(streams, event, Form::Any, key, None);
        }
    }

    /// The forms of a room's message besides the frame itself that have recipients on this shard.
    fn other_forms(
        &self,
        room: &SharedRoom,
        with_ids: Option<Bytes>,
        rendered: Option<Arc<RenderedFrames>>,
    ) -> [Option<(Audience, Bytes, Form)>; 3] {
        let rendered = rendered.as_deref();
        let (frame, rendered_with_ids) = rendered.map_or((None, None), |rendered| {
            (rendered.frame.clone(), rendered.with_ids.clone())
        });
        let any = |frame| (frame, Form::Any);
        [
            (HistoryForm::new(true, false), with_ids.map(any)),
            (HistoryForm::new(false, true), frame),
            (HistoryForm::new(true, true), rendered_with_ids.map(any)),
        ]
        .map(|(of, frame)| {
            let (frame, form) = frame?;
            let audience = Audience::Room(room.channel_for(of));
            (self.cx.fanout.audience_len(audience) > 0).then_some((audience, frame, form))
        })
    }
}
