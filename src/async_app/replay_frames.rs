//! The frames that replay a room's kept messages to a member, rendered without holding the history's lock.

use std::collections::HashMap;

use bytes::Bytes;

use super::history::History;
use super::renderer::{KeptMessage, Renderer};
use super::rendering::{FRAME_ID_BYTES_MAX, frame_with_id};
use super::room_entry::RoomHistory;
use crate::engine::HistoryForm;
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::{Message, SentMessage};

/// The replay for one connection that joins a room: the messages after `since`, or the whole history.
pub(super) struct ReplayFrames<'a> {
    room: &'a str,
    since: Option<HistoryId>,
    /// The form that the connection receives. Frames of messages as they were sent don't have to be rendered.
    form: HistoryForm,
    renderer: Renderer<'a>,
    /// The frames by id. `None`: the program could not render the message, which is left out.
    rendered: HashMap<HistoryId, Option<Bytes>>,
}

/// About the most bytes of a frame that the program has yet to render. If it is longer, space is reserved again.
fn rendered_bytes_max(message: &Message) -> usize {
    2 * message.frame().len() + 256
}

impl<'a> ReplayFrames<'a> {
    pub(super) fn new(
        room: &'a str,
        since: Option<HistoryId>,
        form: HistoryForm,
        renderer: Renderer<'a>,
    ) -> Self {
        Self {
            room,
            since,
            form,
            renderer,
            rendered: HashMap::new(),
        }
    }

    pub(super) fn form(&self) -> HistoryForm {
        self.form
    }

    /// Counts the messages to replay, and returns that number and the total length of their frames in bytes. That is the
    /// maximum, except for messages that the program has yet to render.
    pub(super) fn measure(&self, history: &History) -> Result<(usize, usize), HistoryGone> {
        let kept = history.since(self.since)?;
        let id_bytes_max = match self.form.with_ids {
            true => self.room.len() + FRAME_ID_BYTES_MAX,
            false => 0,
        };
        let messages = kept.len();
        let bytes = kept.map(|(id, message, _)| match self.rendered.get(&id) {
            Some(frame) => frame.as_ref().map_or(0, Bytes::len),
            None if self.form.rendered => rendered_bytes_max(message) + id_bytes_max,
            None => message.frame().len() + id_bytes_max,
        });
        Ok((messages, bytes.sum()))
    }

    /// Renders a message, without holding a lock if the program does it.
    fn frame(&self, id: HistoryId, sent: &SentMessage) -> Option<Bytes> {
        let with_id = |message: &Message| match self.form.with_ids {
            true => frame_with_id(self.room, id, message),
            false => message.frame().clone(),
        };
        match self.form.rendered {
            true => {
                let kept = KeptMessage::new(self.room, id, sent);
                self.renderer.render(kept).as_ref().map(with_id)
            }
            false => Some(with_id(&sent.message)),
        }
    }

    /// Renders the frames of all messages that the history contains now, without holding its lock while rendering. Call
    /// it again if the history has changed much before the join.
    pub(super) fn render(&mut self, kept: &RoomHistory) -> Result<(), HistoryGone> {
        if self.form == HistoryForm::default() {
            return Ok(());
        }
        let messages: Vec<(HistoryId, SentMessage)> = kept
            .history()
            .entries_since(self.since)?
            .map(|(id, entry)| (id, entry.sent.clone()))
            .collect();
        // Reuse the frames of an earlier call, and drop those of messages that the history no longer contains.
        let mut earlier = std::mem::take(&mut self.rendered);
        self.rendered = messages
            .into_iter()
            .map(|(id, sent)| {
                let frame = earlier.remove(&id);
                (id, frame.unwrap_or_else(|| self.frame(id, &sent)))
            })
            .collect();
        Ok(())
    }

    /// Returns the frames of all messages that the history contains now. The caller holds the lock. Renders those that
    /// were published after the last call of [`render`](Self::render), unless the program has to do it: then returns
    /// `None`.
    pub(super) fn frames(&self, history: &History) -> Result<Option<Vec<Bytes>>, HistoryGone> {
        let entries = history.entries_since(self.since)?;
        let mut frames = Vec::with_capacity(entries.len());
        for (id, entry) in entries {
            match self.rendered.get(&id) {
                Some(frame) => frames.extend(frame.clone()),
                None if self.form.rendered => return Ok(None),
                None => frames.extend(self.frame(id, &entry.sent)),
            }
        }
        Ok(Some(frames))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::super::renderer::Renderers;
    use super::super::rendering::tests::RENDERED;
    use super::*;
    use crate::metrics::Counters;

    const WITH_IDS: HistoryForm = HistoryForm::new(true, false);

    /// A renderer that adds the id, and panics at messages that end with 7.
    struct Adding {
        renderers: OnceLock<Renderers>,
        counters: Counters,
    }

    impl Adding {
        fn new() -> Self {
            let renderers = Renderers {
                render: Some(Box::new(|kept| {
                    let text = kept.message().text().unwrap();
                    assert!(!text.ends_with('7'), "as it should");
                    Message::new(format!("{} of {}: {text}", kept.id(), kept.room()))
                })),
                #[cfg(feature = "cluster")]
                on_gap: None,
            };
            Self {
                renderers: OnceLock::from(renderers),
                counters: Counters::default(),
            }
        }

        fn renderer(&self) -> Renderer<'_> {
            Renderer::new(&self.renderers, &self.counters, 1_000)
        }

        fn replay(&self, since: Option<HistoryId>, form: HistoryForm) -> ReplayFrames<'_> {
            ReplayFrames::new("news", since, form, self.renderer())
        }
    }

    fn push(kept: &RoomHistory, messages: usize) {
        let mut history = kept.history();
        for _ in 0..messages {
            let stamp = history.last_stamp() + 1;
            history.push(Message::new(format!("rain {stamp}")), stamp);
        }
    }

    fn kept(messages_max: usize) -> RoomHistory {
        RoomHistory::new(History::new(messages_max, 1 << 20))
    }

    /// Renders all frames from scratch.
    fn render_from_scratch(kept: &RoomHistory, since: Option<HistoryId>) -> Vec<Bytes> {
        let adding = Adding::new();
        let frames = adding.replay(since, WITH_IDS).frames(&kept.history());
        frames.unwrap().unwrap()
    }

    #[test]
    fn replay_renders_only_new_messages_under_the_lock() {
        let kept = kept(1_000);
        push(&kept, 20);
        let since = kept.history().last_id();
        push(&kept, 100);
        let adding = Adding::new();
        for since in [None, since] {
            let mut replay = adding.replay(since, WITH_IDS);
            replay.render(&kept).unwrap();
            push(&kept, 3);
            let before = RENDERED.get();
            let frames = replay.frames(&kept.history()).unwrap().unwrap();
            assert_eq!(RENDERED.get() - before, 3);
            assert_eq!(frames, render_from_scratch(&kept, since));

            replay.render(&kept).unwrap();
            let before = RENDERED.get();
            assert_eq!(replay.frames(&kept.history()).unwrap(), Some(frames));
            assert_eq!(
                RENDERED.get(),
                before,
                "the second render left frames to render"
            );
        }
    }

    #[test]
    fn replay_reflects_messages_dropped_from_the_history() {
        let kept = kept(10);
        push(&kept, 10);
        let first = kept.history().since(None).unwrap().next().unwrap().0;
        let adding = Adding::new();
        let mut whole = adding.replay(None, WITH_IDS);
        let mut since = adding.replay(Some(first), WITH_IDS);
        whole.render(&kept).unwrap();
        since.render(&kept).unwrap();
        push(&kept, 4);
        let frames = whole.frames(&kept.history()).unwrap().unwrap();
        assert_eq!(frames, render_from_scratch(&kept, None));
        assert_eq!(frames.len(), 10);
        assert!(
            since.frames(&kept.history()).is_err(),
            "the gap is not reported"
        );
        assert!(since.render(&kept).is_err());
    }

    #[test]
    fn replay_without_ids_shares_the_frames_of_the_messages() {
        let kept = kept(10);
        push(&kept, 10);
        let adding = Adding::new();
        let mut replay = adding.replay(None, HistoryForm::default());
        let before = RENDERED.get();
        replay.render(&kept).unwrap();
        let history = kept.history();
        let frames = replay.frames(&history).unwrap().unwrap();
        let (messages, bytes) = replay.measure(&history).unwrap();
        assert_eq!(RENDERED.get(), before);
        assert_eq!((messages, bytes), (10, frames.iter().map(Bytes::len).sum()));
        let shared = history.since(None).unwrap().zip(&frames);
        for ((_, message, _), frame) in shared {
            assert_eq!(message.frame().as_ptr(), frame.as_ptr());
        }
    }

    #[test]
    fn program_renders_no_message_under_the_lock() {
        let kept = kept(1_000);
        push(&kept, 5);
        let adding = Adding::new();
        for with_ids in [false, true] {
            let mut replay = adding.replay(None, HistoryForm::new(with_ids, true));
            replay.render(&kept).unwrap();
            push(&kept, 1);
            assert_eq!(replay.frames(&kept.history()).unwrap(), None);
            replay.render(&kept).unwrap();
            let history = kept.history();
            let frames = replay.frames(&history).unwrap().unwrap();
            let (_, bytes) = replay.measure(&history).unwrap();
            assert_eq!(bytes, frames.iter().map(Bytes::len).sum::<usize>());
            for ((id, message, _), frame) in history.since(None).unwrap().zip(frames) {
                let text = message.text().unwrap();
                let rendered = Message::new(format!("{id} of news: {text}"));
                let expected = match with_ids {
                    true => frame_with_id("news", id, &rendered),
                    false => rendered.frame().clone(),
                };
                assert_eq!(frame, expected);
            }
        }
    }

    #[test]
    fn message_whose_renderer_panics_is_left_out_and_counted() {
        let kept = kept(1_000);
        push(&kept, 9);
        let adding = Adding::new();
        let mut replay = adding.replay(None, HistoryForm::new(false, true));
        replay.render(&kept).unwrap();
        let frames = replay.frames(&kept.history()).unwrap().unwrap();
        assert_eq!(frames.len(), 8);
        let mut metrics = crate::metrics::Metrics::default();
        adding.counters.add_to(&mut metrics);
        assert_eq!(metrics.handler_panics, 1);
    }
}
