//! The messages that replay a room's history to a client, rendered without holding the history's lock.
//!
//! Most come from the blocks that all joining clients share ([`ReplayCache`](super::replay_cache::ReplayCache)). The few that no
//! block contains yet are rendered for the client: all of them, if there is no memory for blocks.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::history::{History, HistoryEntry};
use super::renderer::{KeptMessage, Renderer};
use super::rendering::{EVENT_ID_BYTES_MAX, FRAME_ID_BYTES_MAX, event, event_len, frame_with_id};
use super::replay_blocks::BlockList;
use super::replay_cache::{ReplayBudget, ReplayForm};
use super::room_entry::RoomHistory;
use crate::engine::{HistoryForm, Replay, ReplayPiece};
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::{Message, SentMessage};

/// The replay for one client that joins a room: the messages after `since`, or the whole history.
pub(super) struct ReplayFrames<'a> {
    room: &'a str,
    since: Option<HistoryId>,
    /// The form that the client receives. Frames of messages as they were sent don't have to be rendered.
    form: ReplayForm,
    renderer: Renderer<'a>,
    budget: ReplayBudget<'a>,
    /// The blocks that the room had at the last look.
    blocks: Arc<BlockList>,
    /// The frames of messages that no block contains, by id. `None`: the program could not render the message, which is left out.
    rendered: HashMap<HistoryId, Option<Bytes>>,
}

/// About the most bytes of a frame that the program has yet to render. If it is longer, space is reserved again.
fn rendered_bytes_max(message: &Message) -> usize {
    2 * message.frame().len() + 256
}

impl<'a> ReplayFrames<'a> {
    pub(super) fn new(
        (room, kept): (&'a str, &RoomHistory),
        since: Option<HistoryId>,
        form: ReplayForm,
        (renderer, budget): (Renderer<'a>, ReplayBudget<'a>),
    ) -> Self {
        Self {
            room,
            since,
            form,
            renderer,
            budget,
            blocks: kept.replays.blocks(form),
            rendered: HashMap::new(),
        }
    }

    /// Changes the message after which the replay begins; `None`: with the oldest.
    pub(super) fn begin_after(&mut self, since: Option<HistoryId>) {
        self.since = since;
    }

    /// The pieces of blocks, and the messages after them.
    fn pieces<'h>(
        &self,
        history: &'h History,
    ) -> Result<
        (
            Vec<ReplayPiece>,
            impl Iterator<Item = (HistoryId, &'h HistoryEntry)> + use<'h>,
        ),
        HistoryGone,
    > {
        let mut pieces = Vec::new();
        let from = history.first_after(self.since)?;
        let rest = self.blocks.replay(history, from, &mut pieces);
        Ok((pieces, history.entries_between(rest, u64::MAX)))
    }

    /// Returns the number of pieces of the replay, and the total length of those outside of blocks. That is the maximum, except for
    /// messages that the program has yet to render.
    pub(super) fn measure(&self, history: &History) -> Result<(usize, usize), HistoryGone> {
        let (pieces, rest) = self.pieces(history)?;
        let (mut count, mut bytes) = (pieces.len(), 0);
        for (id, entry) in rest {
            count += 1;
            bytes += match self.rendered.get(&id) {
                Some(frame) => frame.as_ref().map_or(0, Bytes::len),
                None => self.bytes_max(&entry.sent.message),
            };
        }
        Ok((count, bytes))
    }

    /// The most bytes of a message that is not rendered yet.
    fn bytes_max(&self, message: &Message) -> usize {
        let ReplayForm::Frames(form) = self.form else {
            return event_len(message) + EVENT_ID_BYTES_MAX;
        };
        let frame = match form.rendered {
            true => rendered_bytes_max(message),
            false => message.frame().len(),
        };
        match form.with_ids {
            true => frame + self.room.len() + FRAME_ID_BYTES_MAX,
            false => frame,
        }
    }

    /// Renders a message, without holding a lock if the program does it.
    fn frame(&self, id: HistoryId, sent: &SentMessage) -> Option<Bytes> {
        let ReplayForm::Frames(form) = self.form else {
            return Some(event(&sent.message, Some(id)));
        };
        let with_id = |message: &Message| match form.with_ids {
            true => frame_with_id(self.room, id, message),
            false => message.frame().clone(),
        };
        match form.rendered {
            true => {
                let kept = KeptMessage::new(self.room, id, sent);
                self.renderer.render(kept).as_ref().map(with_id)
            }
            false => Some(with_id(&sent.message)),
        }
    }

    /// Adds blocks until they contain all messages that the history contains now, or until few are missing.
    fn share(&mut self, kept: &RoomHistory) -> Result<(), HistoryGone> {
        let end = kept.history().last_sequence();
        loop {
            let len = |message: &Message| self.bytes_max(message);
            let order = self.blocks.missing(&kept.history(), self.since, end, len)?;
            let Some(order) = order else {
                return Ok(());
            };
            let frame = |id: HistoryId, sent: &SentMessage| self.frame(id, sent);
            let is_made = self.budget.make(&kept.replays, self.form, &order, frame);
            let before = std::mem::replace(&mut self.blocks, kept.replays.blocks(self.form));
            if !is_made || Arc::ptr_eq(&before, &self.blocks) {
                return Ok(());
            }
        }
    }

    /// Renders all messages that the history contains now, without holding its lock while rendering. Call it again if the history
    /// has changed much before the join.
    pub(super) fn render(&mut self, kept: &RoomHistory) -> Result<(), HistoryGone> {
        self.budget.memory.tidy();
        self.blocks = kept.replays.blocks(self.form);
        self.share(kept)?;
        if self.form == ReplayForm::Frames(HistoryForm::default()) {
            return Ok(());
        }
        let messages: Vec<(HistoryId, SentMessage)> = self
            .pieces(&kept.history())?
            .1
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

    /// Returns all messages that the history contains now. The caller holds the lock. Renders those that were published after the
    /// last call of [`render`](Self::render), unless the program has to do it: then returns `None`.
    pub(super) fn frames(&self, history: &History) -> Result<Option<Replay>, HistoryGone> {
        let is_rendered = matches!(self.form, ReplayForm::Frames(form) if form.rendered);
        let (mut pieces, rest) = self.pieces(history)?;
        for (id, entry) in rest {
            let frame = match self.rendered.get(&id) {
                Some(frame) => frame.clone(),
                None if is_rendered => return Ok(None),
                None => self.frame(id, &entry.sent),
            };
            pieces.extend(frame.map(ReplayPiece::Message));
        }
        Ok(Some(Replay::new(pieces)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::super::renderer::Renderers;
    use super::super::rendering::tests::RENDERED;
    use super::super::replay_cache::ReplayMemory;
    use super::*;
    use crate::metrics::Counters;

    const WITH_IDS: ReplayForm = form(true, false);

    const fn form(with_ids: bool, rendered: bool) -> ReplayForm {
        ReplayForm::Frames(HistoryForm::new(with_ids, rendered))
    }

    /// A renderer that adds the id, and panics at messages that end with 7.
    struct Adding {
        renderers: OnceLock<Renderers>,
        counters: Counters,
        memory: Arc<ReplayMemory>,
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
                memory: Arc::default(),
            }
        }

        fn renderer(&self) -> Renderer<'_> {
            Renderer::new(&self.renderers, &self.counters, 1_000)
        }

        fn replay(
            &self,
            kept: &RoomHistory,
            since: Option<HistoryId>,
            form: ReplayForm,
        ) -> ReplayFrames<'_> {
            let budget = ReplayBudget {
                memory: &self.memory,
                bytes_max: 1 << 20,
            };
            let via = (self.renderer(), budget);
            ReplayFrames::new(("news", kept), since, form, via)
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
    fn render_from_scratch(kept: &RoomHistory, since: Option<HistoryId>) -> Bytes {
        let adding = Adding::new();
        let no_blocks = RoomHistory::new(History::new(1, 1));
        let replay = adding.replay(&no_blocks, since, WITH_IDS);
        let frames = replay.frames(&kept.history());
        frames.unwrap().unwrap().concat()
    }

    #[test]
    fn replay_renders_only_new_messages_under_the_lock() {
        let kept = kept(1_000);
        push(&kept, 20);
        let since = kept.history().last_id();
        push(&kept, 100);
        let adding = Adding::new();
        for since in [None, since] {
            let mut replay = adding.replay(&kept, since, WITH_IDS);
            replay.render(&kept).unwrap();
            push(&kept, 3);
            let before = RENDERED.get();
            let frames = replay.frames(&kept.history()).unwrap().unwrap();
            assert_eq!(RENDERED.get() - before, 3);
            assert_eq!(frames.concat(), render_from_scratch(&kept, since));

            replay.render(&kept).unwrap();
            let before = RENDERED.get();
            let again = replay.frames(&kept.history()).unwrap().unwrap();
            assert_eq!(again.concat(), frames.concat());
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
        let mut whole = adding.replay(&kept, None, WITH_IDS);
        let mut since = adding.replay(&kept, Some(first), WITH_IDS);
        whole.render(&kept).unwrap();
        since.render(&kept).unwrap();
        push(&kept, 4);
        let frames = whole.frames(&kept.history()).unwrap().unwrap();
        assert_eq!(frames.concat(), render_from_scratch(&kept, None));
        assert_eq!(frames.messages(), 10);
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
        let mut replay = adding.replay(&kept, None, form(false, false));
        let before = RENDERED.get();
        replay.render(&kept).unwrap();
        let history = kept.history();
        let frames = replay.frames(&history).unwrap().unwrap();
        let (messages, bytes) = replay.measure(&history).unwrap();
        assert_eq!(RENDERED.get(), before);
        assert_eq!((messages, bytes), (10, frames.concat().len()));
        let shared = history.since(None).unwrap().zip(frames.pieces());
        for ((_, message, _), piece) in shared {
            assert_eq!(message.frame().as_ptr(), piece.bytes().as_ptr());
        }
    }

    #[test]
    fn program_renders_no_message_under_the_lock() {
        let kept = kept(1_000);
        push(&kept, 5);
        let adding = Adding::new();
        for with_ids in [false, true] {
            let mut replay = adding.replay(&kept, None, form(with_ids, true));
            replay.render(&kept).unwrap();
            push(&kept, 1);
            assert!(replay.frames(&kept.history()).unwrap().is_none());
            replay.render(&kept).unwrap();
            let history = kept.history();
            let frames = replay.frames(&history).unwrap().unwrap();
            let (_, bytes) = replay.measure(&history).unwrap();
            assert_eq!(bytes, frames.concat().len());
            let pieces = frames.pieces().iter().map(ReplayPiece::bytes);
            for ((id, message, _), frame) in history.since(None).unwrap().zip(pieces) {
                let text = message.text().unwrap();
                let rendered = Message::new(format!("{id} of news: {text}"));
                let expected = match with_ids {
                    true => frame_with_id("news", id, &rendered),
                    false => rendered.frame().clone(),
                };
                assert_eq!(*frame, expected);
            }
        }
    }

    #[test]
    fn message_whose_renderer_panics_is_left_out_and_counted() {
        let kept = kept(1_000);
        push(&kept, 9);
        let adding = Adding::new();
        let mut replay = adding.replay(&kept, None, form(false, true));
        replay.render(&kept).unwrap();
        let frames = replay.frames(&kept.history()).unwrap().unwrap();
        assert_eq!(frames.messages(), 8);
        let mut metrics = crate::metrics::Metrics::default();
        adding.counters.add_to(&mut metrics);
        assert_eq!(metrics.handler_panics, 1);
    }
}
