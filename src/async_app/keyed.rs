//! The newest messages of a keyed room, one for each key, and the patterns that determine which rooms are keyed.
//!
//! This module knows neither locks nor connections. Publishers hold the room's lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::history::matches;
use super::rendering::event_len;
use crate::engine::{ConflationKey, KeyedSnapshot, snapshot_weight};
use crate::limits::KeyedLimits;
use crate::message::Message;

/// The maximum length of a key in bytes.
pub(super) const KEY_BYTES_MAX: usize = 255;

/// What a key counts in addition to its own bytes and those of its message: about what the entries of both take.
const ENTRY_BYTES: usize = 256;

/// How many messages of a snapshot space is reserved for, if the room has this many: more, since more may come meanwhile.
pub(super) fn reserved_messages(messages: usize) -> usize {
    messages.saturating_mul(5) / 4 + 16
}

/// The space in a mailbox that is reserved for a snapshot of a room with this many messages.
fn reserved_weight(messages: usize) -> usize {
    snapshot_weight(reserved_messages(messages))
}

/// The newest message of each key of one room.
pub(super) struct KeyedMessages {
    numbers: HashMap<Arc<str>, ConflationKey>,
    /// The messages in the order in which their keys were first used.
    messages: BTreeMap<ConflationKey, Box<KeptKey>>,
    /// What all keys and messages count.
    bytes: usize,
    bounds: KeyedBounds,
}

struct KeptKey {
    key: Arc<str>,
    newest: KeyedMessage,
}

/// A message of a key, to be kept.
pub(super) struct KeyedMessage {
    message: Message,
    /// The message as an event, for all event streams of the room. `None` if it has had none so far.
    event: Option<Bytes>,
    /// What it counts with its key and its event, also if that has yet to be rendered.
    weight: usize,
}

/// A message that a room's bounds do not allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeysExceeded;

impl KeyedMessages {
    pub(super) fn new(bounds: KeyedBounds) -> Self {
        Self {
            numbers: HashMap::new(),
            messages: BTreeMap::new(),
            bytes: 0,
            bounds,
        }
    }

    /// Returns the number of a key whose next message may be kept. It is `None` for a new key, which has yet to be given a number.
    pub(super) fn admit(
        &self,
        key: &str,
        next: &KeyedMessage,
    ) -> Result<Option<ConflationKey>, KeysExceeded> {
        let number = self.numbers.get(key).copied();
        let former = number.and_then(|number| self.messages.get(&number));
        let freed = former.map_or(0, |former| former.newest.weight);
        let bytes = (self.bytes - freed).saturating_add(next.weight);
        let keys = self.messages.len() + usize::from(number.is_none());
        match keys <= self.bounds.keys_max && bytes <= self.bounds.bytes_max {
            true => Ok(number),
            false => Err(KeysExceeded),
        }
    }

    /// Keeps the newest message of a key, which was admitted, in place of the former one.
    pub(super) fn keep(&mut self, key: &str, number: ConflationKey, newest: KeyedMessage) {
        self.bytes += newest.weight;
        match self.messages.get_mut(&number) {
            Some(entry) => {
                self.bytes -= entry.newest.weight;
                entry.newest = newest;
            }
            None => {
                let key: Arc<str> = key.into();
                self.numbers.insert(key.clone(), number);
                self.messages
                    .insert(number, Box::new(KeptKey { key, newest }));
            }
        }
    }

    /// Forgets a key and its message. If it is used again, it gets another number.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some(number) = self.numbers.remove(key) else {
            return false;
        };
        if let Some(entry) = self.messages.remove(&number) {
            self.bytes -= entry.newest.weight;
        }
        // Release the memory of a burst of keys.
        if self.numbers.capacity() > 64 && self.numbers.len() < self.numbers.capacity() / 8 {
            self.numbers.shrink_to_fit();
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the number of messages.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns the frames of the newest messages, each with the number of its key, in the order in which their keys were first used.
    pub(super) fn frames(&self) -> KeyedSnapshot {
        let messages = self.messages.iter();
        messages
            .map(|(&number, entry)| (number, entry.newest.message.frame().clone()))
            .collect()
    }

    /// Returns the newest messages as events, in the same order. Those that have yet to be rendered are rendered by the function.
    pub(super) fn events(&self, event: impl Fn(&Message) -> Bytes) -> KeyedSnapshot {
        let of = |newest: &KeyedMessage| match &newest.event {
            Some(event) => event.clone(),
            None => event(&newest.message),
        };
        let messages = self.messages.iter();
        messages
            .map(|(&number, entry)| (number, of(&entry.newest)))
            .collect()
    }

    /// Returns the messages that have yet to be rendered as events.
    pub(super) fn without_events(&self) -> Vec<(ConflationKey, Message)> {
        let messages = self.messages.iter();
        let without = messages.filter(|(_, entry)| entry.newest.event.is_none());
        without
            .map(|(&number, entry)| (number, entry.newest.message.clone()))
            .collect()
    }

    /// Keeps the event of a message, unless a newer message has taken its place.
    pub(super) fn keep_event(&mut self, number: ConflationKey, message: &Message, event: Bytes) {
        if let Some(entry) = self.messages.get_mut(&number)
            // Each message has a frame of its own, which a clone shares.
            && entry.newest.message.frame().as_ptr() == message.frame().as_ptr()
        {
            entry.newest.event.get_or_insert(event);
        }
    }

    /// Returns the newest messages with their keys, in the order in which the keys were first used.
    pub(super) fn by_key(&self) -> Vec<(Arc<str>, Message)> {
        let messages = self.messages.values();
        messages
            .map(|entry| (entry.key.clone(), entry.newest.message.clone()))
            .collect()
    }
}

/// The patterns that determine which rooms are keyed, and their bounds.
#[derive(Default)]
pub(super) struct KeyedPatterns {
    patterns: Vec<(Box<str>, KeyedBounds)>,
    /// Whether messages count as events, too.
    with_events: bool,
}

/// The bounds of a keyed room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyedBounds {
    pub(super) keys_max: usize,
    pub(super) bytes_max: usize,
    /// Whether the pattern is exactly the room's name. Such a room is never evicted.
    pub(super) pinned: bool,
    /// Whether each message counts with its event, since the app has event streams. This does not depend on whether one follows the
    /// room: otherwise a client could make the room refuse messages.
    pub(super) with_events: bool,
}

impl KeyedBounds {
    /// Prepares a message of a key, and its event if the room has event streams, for [`KeyedMessages::keep`].
    pub(super) fn prepare(
        self,
        key: &str,
        message: &Message,
        event: Option<&Bytes>,
    ) -> KeyedMessage {
        let event_bytes = match self.with_events {
            true => event.map_or_else(|| event_len(message), Bytes::len),
            false => 0,
        };
        KeyedMessage {
            message: message.clone(),
            event: event.cloned(),
            weight: key.len() + message.frame().len() + event_bytes + ENTRY_BYTES,
        }
    }

    /// The most keys that a room can have: messages may be short, and keys as well.
    fn keys_that_fit(self) -> usize {
        self.keys_max.min(self.bytes_max / ENTRY_BYTES)
    }
}

impl KeyedPatterns {
    /// Sets the bounds of rooms whose name matches this pattern and no earlier one. With 0 keys, they are not keyed.
    pub(super) fn add(&mut self, pattern: &str, limits: KeyedLimits) {
        let bounds = KeyedBounds {
            keys_max: limits.keys_max,
            bytes_max: limits.bytes_max,
            pinned: !pattern.contains('*'),
            with_events: false,
        };
        self.patterns.push((pattern.into(), bounds));
    }

    fn keyed(&self) -> impl Iterator<Item = &(Box<str>, KeyedBounds)> {
        self.patterns
            .iter()
            .filter(|(_, bounds)| bounds.keys_max > 0)
    }

    /// Whether no room is keyed.
    #[cfg(any(feature = "cluster", test))]
    pub(super) fn is_empty(&self) -> bool {
        self.keyed().next().is_none()
    }

    /// Returns a pattern whose rooms may keep more than this many bytes.
    pub(super) fn exceeding(&self, bytes_max: usize) -> Option<&str> {
        let mut keyed = self.keyed();
        let pattern = keyed.find(|(_, bounds)| bounds.bytes_max > bytes_max);
        pattern.map(|(pattern, _)| &**pattern)
    }

    /// Returns the bounds of a keyed room. `None` if the room is not keyed.
    pub(super) fn find(&self, name: &str) -> Option<KeyedBounds> {
        self.patterns
            .iter()
            .find(|(pattern, _)| matches(pattern, name))
            .map(|&(_, bounds)| bounds)
            .filter(|bounds| bounds.keys_max > 0)
            .map(|bounds| KeyedBounds {
                with_events: self.with_events,
                ..bounds
            })
    }

    /// Makes messages count with their events from now on.
    pub(super) fn count_events(&mut self) {
        self.with_events = true;
    }

    /// Returns a pattern whose rooms may have more keys than a join of a mailbox with this bound can carry.
    pub(super) fn exceeding_mailbox(&self, bytes_max: usize) -> Option<&str> {
        let mut keyed = self.keyed();
        let is_too_large =
            |bounds: KeyedBounds| reserved_weight(bounds.keys_that_fit()) > bytes_max;
        let pattern = keyed.find(|&&(_, bounds)| is_too_large(bounds));
        pattern.map(|(pattern, _)| &**pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(keys_max: usize, bytes_max: usize) -> KeyedMessages {
        KeyedMessages::new(KeyedBounds {
            keys_max,
            bytes_max,
            pinned: false,
            with_events: false,
        })
    }

    fn put(
        kept: &mut KeyedMessages,
        key: &str,
        number: u64,
        text: &str,
    ) -> Result<(), KeysExceeded> {
        let message = kept.bounds.prepare(key, &Message::new(text), None);
        let former = kept.admit(key, &message)?;
        kept.keep(key, former.unwrap_or(ConflationKey::new(number)), message);
        Ok(())
    }

    fn frames<const N: usize>(texts: [(u64, &str); N]) -> KeyedSnapshot {
        let frame = |text: &str| Message::new(text).frame().clone();
        texts
            .map(|(number, text)| (ConflationKey::new(number), frame(text)))
            .into()
    }

    #[test]
    fn snapshot_has_the_newest_message_of_each_key_in_order_of_first_use() {
        let mut kept = kept(10, 10_000);
        for (number, key) in [(0, "b"), (1, "a"), (2, "c"), (3, "b"), (4, "a")] {
            put(&mut kept, key, number, &format!("{key}{number}")).unwrap();
        }
        assert_eq!(kept.frames(), frames([(0, "b3"), (1, "a4"), (2, "c2")]));
        let keys: Vec<_> = kept.by_key().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["b".into(), "a".into(), "c".into()]);
        assert!(kept.remove("a") && !kept.remove("a"));
        put(&mut kept, "a", 5, "a5").unwrap();
        assert_eq!(kept.frames()[2..], frames([(5, "a5")]));
    }

    #[test]
    fn keys_beyond_the_bounds_are_refused_and_known_ones_replaced() {
        let mut kept = kept(2, 10_000);
        put(&mut kept, "a", 0, "1").unwrap();
        put(&mut kept, "b", 1, "2").unwrap();
        assert_eq!(put(&mut kept, "c", 2, "3"), Err(KeysExceeded));
        put(&mut kept, "a", 3, "4").unwrap();
        assert_eq!(
            put(&mut kept, "b", 4, &"x".repeat(10_000)),
            Err(KeysExceeded)
        );
        assert_eq!(kept.frames(), frames([(0, "4"), (1, "2")]));
        kept.remove("b");
        put(&mut kept, "c", 5, "5").unwrap();
        kept.remove("a");
        kept.remove("c");
        assert_eq!((kept.bytes, kept.is_empty()), (0, true));
        assert!(kept.numbers.is_empty());
    }

    #[test]
    fn bytes_count_keys_messages_and_entries() {
        let mut kept = kept(10, 2 * (ENTRY_BYTES + "key".len() + 2 + "text".len()));
        put(&mut kept, "key", 0, "text").unwrap();
        put(&mut kept, "yek", 1, "text").unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(put(&mut kept, "key", 2, "text."), Err(KeysExceeded));
        put(&mut kept, "key", 2, "tex").unwrap();
        put(&mut kept, "yek", 2, "text.").unwrap();
    }

    #[test]
    fn event_counts_from_the_first_message_and_is_shared_until_it_is_replaced() {
        let (key, number) = ("key", ConflationKey::new(0));
        let (old, new) = (Message::new("one\ntwo"), Message::new("new"));
        let event = |message: &Message| crate::async_app::rendering::event(message, None);
        let mut kept = kept(1, 10_000);
        kept.bounds.with_events = true;
        kept.keep(key, number, kept.bounds.prepare(key, &old, None));
        let bytes = ENTRY_BYTES + key.len() + old.frame().len() + event(&old).len();
        assert_eq!(kept.bytes, bytes);
        // Rendered for the first event stream.
        let [(of, without)] = &kept.without_events()[..] else {
            panic!("one message has no event");
        };
        let rendered = event(without);
        kept.keep_event(*of, without, rendered.clone());
        let shared = |kept: &KeyedMessages| kept.events(|_| panic!("it is rendered"))[0].1.clone();
        assert_eq!(shared(&kept).as_ptr(), rendered.as_ptr());
        assert!(kept.without_events().is_empty());
        assert_eq!(kept.bytes, bytes);
        // Published while an event stream follows the room.
        kept.keep(
            key,
            number,
            kept.bounds.prepare(key, &new, Some(&event(&new))),
        );
        assert_eq!(shared(&kept), event(&new));
        kept.keep_event(number, &old, rendered);
        assert_eq!(shared(&kept), event(&new));
        assert!(kept.remove(key));
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn entries_of_kept_messages_take_about_what_they_count() {
        // An entry of a B-tree may have another one's space, and an entry of the hash table more than that.
        let entry = 2 * size_of::<(ConflationKey, Box<KeptKey>)>();
        let number = 16 * (size_of::<(Arc<str>, ConflationKey)>() + 1) / 7;
        let allocations = 2 * 16 + size_of::<KeptKey>();
        assert!(entry + number + allocations <= ENTRY_BYTES);
    }

    #[test]
    fn first_matching_pattern_determines_the_bounds() {
        let mut patterns = KeyedPatterns::default();
        assert!(patterns.is_empty());
        patterns.add("prices/none", KeyedLimits::NONE);
        assert!(patterns.is_empty());
        patterns.add("prices/*", KeyedLimits::keys(5).bytes(1_000));
        patterns.add("board", KeyedLimits::keys(6).bytes(2_000));
        assert_eq!(patterns.find("prices/none"), None);
        assert_eq!(patterns.find("news"), None);
        let prices = patterns.find("prices/eur").unwrap();
        assert_eq!(
            (prices.keys_max, prices.bytes_max, prices.pinned),
            (5, 1_000, false)
        );
        assert!(patterns.find("board").unwrap().pinned);
        assert_eq!(patterns.exceeding(1_000), Some("board"));
        assert_eq!(patterns.exceeding(2_000), None);
        assert!(!prices.with_events);
        patterns.count_events();
        assert!(patterns.find("board").unwrap().with_events);
    }

    #[test]
    fn pattern_whose_snapshots_exceed_a_mailbox_is_found() {
        let mut patterns = KeyedPatterns::default();
        patterns.add("few/*", KeyedLimits::keys(10).bytes(usize::MAX));
        patterns.add(
            "short/*",
            KeyedLimits::keys(usize::MAX).bytes(10 * ENTRY_BYTES),
        );
        patterns.add("large/*", KeyedLimits::keys(11).bytes(11 * ENTRY_BYTES));
        let weight = reserved_weight(10);
        assert_eq!(patterns.exceeding_mailbox(weight), Some("large/*"));
        assert_eq!(patterns.exceeding_mailbox(weight - 1), Some("few/*"));
        patterns.add("all/*", KeyedLimits::keys(usize::MAX).bytes(usize::MAX));
        assert_eq!(
            patterns.exceeding_mailbox(reserved_weight(11)),
            Some("all/*")
        );
    }
}
