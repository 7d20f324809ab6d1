//! Broadcasts to a room that keeps a history: rendering for its recipients, and the order of ids.
//!
//! The history's lock is held only while the id is assigned and the message is pushed into the shards' mailboxes. User
//! code, rendering and waiting for a mailbox happen before. If another producer takes the id, the library's own renderings
//! are kept and the id is replaced in place. The program renders again.

use super::id_turns::IdTurn;
use super::prepared_message::PreparedMessage;
use super::publish::{AppShared, Blocking};
use super::rendering::Content;
use super::room_entry::{RoomEntry, RoomHistory};
use crate::engine::{Hub, LocalId, PushError};
use crate::error::SendErrorReason;
use crate::history_id::HistoryId;
use crate::message::SentMessage;

impl AppShared {
    /// Assigns the next id of a room to a message, sends the message and keeps it. Returns the id, or `None` if the
    /// room was retired in the meantime.
    pub(super) fn broadcast_and_keep(
        &self,
        hub: &Hub,
        (room, kept): (&RoomEntry, &RoomHistory),
        except: Option<LocalId>,
        content: &Content<'_>,
        blocking: Blocking,
    ) -> Result<Option<HistoryId>, SendErrorReason> {
        let mut turn: Option<IdTurn<'_>> = None;
        let mut gave_up_turn = false;
        let mut prepared: Option<PreparedMessage> = None;
        let via = (hub, self.renderer(hub));
        let sent_at = self.sent_at();
        loop {
            let wants_turn = content.depends_on_id()
                || kept.turns.is_contested()
                || room.members.has_rendered_members() != [false; 2];
            if blocking == Blocking::Wait && wants_turn && turn.is_none() {
                turn = kept.turns.take();
                gave_up_turn = turn.is_none();
            }
            let id = kept.history().next_id();
            let is_stale =
                |prepared: &PreparedMessage| content.depends_on_id() && !prepared.is_of(id);
            let mut ready = match prepared.take() {
                Some(prepared) if !is_stale(&prepared) => prepared,
                _ => {
                    let message = content.message(Some(id));
                    self.check_len(hub, &message)?;
                    PreparedMessage::new(SentMessage { message, sent_at }, id)
                }
            };
            ready.render_for(&room.members, id, via);
            if blocking == Blocking::Wait {
                hub.wait_for_room(ready.message().frame(), ready.destination(room, except))
                    .map_err(|refused| self.refused(refused))?;
            }
            let mut history = kept.history();
            if room.members.is_retired() {
                return Ok(None);
            }
            let id = history.next_id();
            let is_in_vain = content.depends_on_id() && !ready.is_of(id)
                || ready.is_rendered_in_vain(&room.members, id);
            if is_in_vain {
                // Another producer has taken the id.
                turn.iter().for_each(IdTurn::contest);
            } else if blocking == Blocking::Wait
                && kept.turns.is_contested()
                && turn.is_none()
                && !gave_up_turn
            {
                // A producer with a turn would have to render again.
            } else if ready.covers(&room.members, id) {
                ready.set_id(id);
                // Push while holding both locks, so that every shard receives the messages in the order of their ids,
                // and clients of several rooms in the order of their stamps.
                let mut stamps = self.rooms.stamps();
                let to = ready.destination(room, except);
                match hub.try_broadcast(ready.message().frame(), to) {
                    // A kept message is not lost, even if the room has no members now.
                    Ok(_) => {
                        room.keep(&mut history, ready.into_sent(), stamps.next());
                        return Ok(Some(id));
                    }
                    Err(PushError::Full) if blocking == Blocking::Wait => {}
                    Err(refused) => return Err(self.refused(refused)),
                }
            }
            drop(history);
            prepared = Some(ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::rendering::tests::RENDERED;
    use crate::async_app::AsyncWebsocketApp;
    use crate::limits::HistoryLimits;
    use crate::message::Message;

    #[test]
    fn message_is_rendered_once_with_many_producers() {
        const PRODUCERS: usize = 8;
        const MESSAGES: usize = 100;
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let app = app.with_address("127.0.0.1:0").with_shards(1);
        let running = app
            .with_history("*", HistoryLimits::messages(10).bytes(1 << 20))
            .start()
            .unwrap();
        let sender = running.sender();
        let hub = &running.engine.hub;
        let entry = sender.0.rooms.find_or_make(hub, "news").unwrap();
        // A pending event stream: from here on the room's messages are rendered as events.
        let streams = hub.follow(&entry.members).unwrap();
        let room = sender.room("news");
        thread::scope(|scope| {
            for _ in 0..PRODUCERS {
                scope.spawn(|| {
                    // This text is long enough that other producers take the id during rendering.
                    let text = "rain\n".repeat(4_000);
                    for _ in 0..MESSAGES {
                        room.broadcast(Message::new(&text));
                    }
                    assert_eq!(RENDERED.get(), MESSAGES);
                });
            }
        });
        let last = room.last_id().unwrap().sequence();
        assert_eq!(last, (PRODUCERS * MESSAGES) as u64);
        drop(streams);
    }
}
