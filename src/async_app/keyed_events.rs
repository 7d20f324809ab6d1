//! The newest messages of keyed rooms as events, for event streams that begin. A room keeps the event of each message beside it, and all
//! streams share it.

use std::sync::MutexGuard;

use super::keyed::KeyedMessages;
use super::rendering::event;
use super::room_entry::KeyedRoom;
use crate::engine::KeyedSnapshot;

/// Renders the messages of a room that have had no event stream so far, without holding its lock. All later messages are rendered
/// by their publishers, if the caller follows the room.
pub(super) fn render_events(room: &KeyedRoom) {
    let messages = room.messages().without_events();
    if messages.is_empty() {
        return;
    }
    let rendered: Vec<_> = messages
        .into_iter()
        .map(|(number, message)| (number, event(&message, None), message))
        .collect();
    let mut kept = room.messages();
    for (number, event, message) in rendered {
        kept.keep_event(number, &message, event);
    }
}

/// Returns the newest message of each key of rooms that are locked, as events.
pub(super) fn snapshot(rooms: &[MutexGuard<'_, KeyedMessages>]) -> KeyedSnapshot {
    let of_room =
        |room: &MutexGuard<'_, KeyedMessages>| room.events(|message| event(message, None));
    rooms.iter().flat_map(of_room).collect()
}

#[cfg(test)]
mod tests {
    use super::super::keyed::KeyedBounds;
    use super::*;
    use crate::engine::ConflationKey;
    use crate::message::Message;

    #[test]
    fn events_are_rendered_once_and_shared_by_all_streams() {
        let room = KeyedRoom::new(KeyedBounds {
            keys_max: 10,
            bytes_max: 10_000,
            pinned: false,
            with_events: true,
        });
        let put = |n: u64, key: &str| {
            let message = room.bounds.prepare(key, &Message::new(key), None);
            room.messages().keep(key, ConflationKey::new(n), message);
        };
        put(1, "b");
        put(2, "a");
        let snapshots = [(); 2].map(|()| {
            render_events(&room);
            snapshot(&[room.messages()])
        });
        let expected = ["b", "a"].map(|key| event(&Message::new(key), None));
        for ((one, other), expected) in snapshots[0].iter().zip(&snapshots[1]).zip(expected) {
            assert_eq!(one, other);
            assert_eq!(one.1.as_ptr(), other.1.as_ptr());
            assert_eq!(one.1, expected);
        }
        assert_eq!(snapshots[0].len(), 2);
        put(1, "b");
        render_events(&room);
        let [(_, newer), _] = &snapshot(&[room.messages()])[..] else {
            panic!("two keys");
        };
        assert_ne!(newer.as_ptr(), snapshots[0][0].1.as_ptr());
    }
}
