//! The frames that replay a room's kept messages to a member, rendered without holding the history's lock.

use std::collections::HashMap;

use bytes::Bytes;

use super::history::History;
use super::rendering::{FRAME_ID_BYTES_MAX, frame_with_id};
use super::room_entry::RoomHistory;
use crate::history_id::{HistoryGone, HistoryId};
use crate::message::Message;

/// The replay for one connection that joins a room: the messages after `since`, or the whole history.
pub(super) struct ReplayFrames<'a> {
    room: &'a str,
    since: Option<HistoryId>,
    /// Whether the connection receives frames that contain the room and the id. Only these have to be rendered.
    with_ids: bool,
    rendered: HashMap<HistoryId, Bytes>,
}

impl<'a> ReplayFrames<'a> {
    pub(super) fn new(room: &'a str, since: Option<HistoryId>, with_ids: bool) -> Self {
        Self {
            room,
            since,
            with_ids,
            rendered: HashMap::new(),
        }
    }

    /// Counts the messages to replay, and returns that number and the maximum total length of their frames in bytes.
    pub(super) fn measure(&self, history: &History) -> Result<(usize, usize), HistoryGone> {
        let kept = history.since(self.since)?;
        let id_bytes_max = match self.with_ids {
            true => self.room.len() + FRAME_ID_BYTES_MAX,
            false => 0,
        };
        let messages = kept.len();
        let bytes = kept.map(|(_, message, _)| message.frame().len() + id_bytes_max);
        Ok((messages, bytes.sum()))
    }

    /// Renders the frames of all messages that the history contains now, without holding its lock while rendering. Call
    /// it again if the history has changed much before the join.
    pub(super) fn render(&mut self, kept: &RoomHistory) -> Result<(), HistoryGone> {
        if !self.with_ids {
            return Ok(());
        }
        let messages: Vec<(HistoryId, Message)> = kept
            .history()
            .since(self.since)?
            .map(|(id, message, _)| (id, message.clone()))
            .collect();
        // Reuse the frames of an earlier call, and drop those of messages that the history no longer contains.
        let mut earlier = std::mem::take(&mut self.rendered);
        let room = self.room;
        self.rendered = messages
            .into_iter()
            .map(|(id, message)| {
                let frame = earlier
                    .remove(&id)
                    .unwrap_or_else(|| frame_with_id(room, id, &message));
                (id, frame)
            })
            .collect();
        Ok(())
    }

    /// Returns the frames of all messages that the history contains now. Renders those that were published after the
    /// last call of [`render`](Self::render), while the caller holds the lock.
    pub(super) fn frames(&self, history: &History) -> Result<Vec<Bytes>, HistoryGone> {
        let frame = |(id, message, _): (HistoryId, &Message, u64)| match self.with_ids {
            true => match self.rendered.get(&id) {
                Some(frame) => frame.clone(),
                None => frame_with_id(self.room, id, message),
            },
            false => message.frame().clone(),
        };
        Ok(history.since(self.since)?.map(frame).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::rendering::tests::RENDERED;
    use super::*;

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
        let frames = ReplayFrames::new("news", since, true);
        frames.frames(&kept.history()).unwrap()
    }

    #[test]
    fn replay_renders_only_new_messages_under_the_lock() {
        let kept = kept(1_000);
        push(&kept, 20);
        let since = kept.history().last_id();
        push(&kept, 100);
        for since in [None, since] {
            let mut replay = ReplayFrames::new("news", since, true);
            replay.render(&kept).unwrap();
            push(&kept, 3);
            let before = RENDERED.get();
            let frames = replay.frames(&kept.history()).unwrap();
            assert_eq!(RENDERED.get() - before, 3);
            assert_eq!(frames, render_from_scratch(&kept, since));

            replay.render(&kept).unwrap();
            let before = RENDERED.get();
            assert_eq!(replay.frames(&kept.history()).unwrap(), frames);
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
        let mut whole = ReplayFrames::new("news", None, true);
        let mut since = ReplayFrames::new("news", Some(first), true);
        whole.render(&kept).unwrap();
        since.render(&kept).unwrap();
        push(&kept, 4);
        let frames = whole.frames(&kept.history()).unwrap();
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
        let mut replay = ReplayFrames::new("news", None, false);
        let before = RENDERED.get();
        replay.render(&kept).unwrap();
        let history = kept.history();
        let frames = replay.frames(&history).unwrap();
        let (messages, bytes) = replay.measure(&history).unwrap();
        assert_eq!(RENDERED.get(), before);
        assert_eq!((messages, bytes), (10, frames.iter().map(Bytes::len).sum()));
        let shared = history.since(None).unwrap().zip(&frames);
        for ((_, message, _), frame) in shared {
            assert_eq!(message.frame().as_ptr(), frame.as_ptr());
        }
    }
}
