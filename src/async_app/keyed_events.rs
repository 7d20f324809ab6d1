//! The newest messages of keyed rooms as events, for event streams that begin.

use std::collections::HashMap;
use std::sync::MutexGuard;

use bytes::Bytes;

use super::keyed::KeyedMessages;
use super::rendering::event;
use crate::engine::{ConflationKey, KeyedSnapshot};
use crate::message::Message;

/// Events that were rendered without a lock, each with its message, which may be replaced meanwhile.
#[derive(Default)]
pub(super) struct KeyedEvents(HashMap<ConflationKey, (Message, Bytes)>);

impl KeyedEvents {
    /// Renders messages that were not rendered before. Returns what a snapshot of all events takes in a mailbox.
    pub(super) fn render(&mut self, messages: Vec<(ConflationKey, Message)>) -> usize {
        for (key, message) in messages {
            let event = self.event(key, &message);
            self.0.insert(key, (message, event));
        }
        let events = self.0.values();
        events
            .map(|(_, event)| event.len() + size_of::<(ConflationKey, Bytes)>())
            .sum()
    }

    fn event(&self, key: ConflationKey, message: &Message) -> Bytes {
        match self.0.get(&key) {
            // Each message has a frame of its own, which a clone shares.
            Some((rendered, event)) if rendered.frame().as_ptr() == message.frame().as_ptr() => {
                event.clone()
            }
            _ => event(message, None),
        }
    }

    /// Returns the newest message of each key of rooms that are locked. Renders those that have been replaced meanwhile.
    pub(super) fn snapshot(&self, rooms: &[MutexGuard<'_, KeyedMessages>]) -> KeyedSnapshot {
        let of_room = |room: &MutexGuard<'_, KeyedMessages>| {
            room.snapshot(|key, message| self.event(key, message))
        };
        rooms.iter().flat_map(of_room).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_of_a_replaced_message_is_rendered_again() {
        let mut events = KeyedEvents::default();
        let (key, old, new) = (
            ConflationKey::new(1),
            Message::new("old"),
            Message::new("new"),
        );
        let bytes = events.render(vec![(key, old.clone())]);
        assert!(bytes > event(&old, None).len());
        let rendered = events.event(key, &old);
        assert_eq!(rendered.as_ptr(), events.event(key, &old.clone()).as_ptr());
        assert_eq!(events.event(key, &new), event(&new, None));
        assert_eq!(events.render(vec![(key, new.clone())]), bytes);
        assert_eq!(events.event(key, &new), event(&new, None));
    }
}
