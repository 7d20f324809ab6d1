//! The newest messages of a keyed room, one for each key, and the patterns that determine which rooms are keyed.
//!
//! This module knows neither locks nor connections. Publishers hold the room's lock.

use std::collections::HashMap;
use std::sync::Arc;

use super::history::matches;
use crate::engine::ConflationKey;
use crate::limits::KeyedLimits;
use crate::message::Message;

/// The maximum length of a key in bytes.
pub(super) const KEY_BYTES_MAX: usize = 255;

/// What a key counts in addition to its own bytes and those of its message: about what the entries of both take.
const ENTRY_BYTES: usize = 256;

/// The newest message of each key of one room.
pub(super) struct KeyedMessages {
    messages: HashMap<Arc<str>, (ConflationKey, Message)>,
    /// What all keys and messages count.
    bytes: usize,
    bounds: KeyedBounds,
}

/// A message that a room's bounds do not allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeysExceeded;

fn weight(key: &str, message: &Message) -> usize {
    key.len() + message.frame().len() + ENTRY_BYTES
}

impl KeyedMessages {
    pub(super) fn new(bounds: KeyedBounds) -> Self {
        Self {
            messages: HashMap::new(),
            bytes: 0,
            bounds,
        }
    }

    /// Returns the number of a key whose next message may be kept. It is `None` for a new key, which has yet to be given a number.
    pub(super) fn admit(
        &self,
        key: &str,
        message: &Message,
    ) -> Result<Option<ConflationKey>, KeysExceeded> {
        let former = self.messages.get(key);
        let freed = former.map_or(0, |(_, former)| weight(key, former));
        let bytes = (self.bytes - freed).saturating_add(weight(key, message));
        let keys = self.messages.len() + usize::from(former.is_none());
        match keys <= self.bounds.keys_max && bytes <= self.bounds.bytes_max {
            true => Ok(former.map(|&(number, _)| number)),
            false => Err(KeysExceeded),
        }
    }

    /// Keeps the newest message of a key, which was admitted, in place of the former one.
    pub(super) fn keep(&mut self, key: &str, number: ConflationKey, message: Message) {
        self.bytes += weight(key, &message);
        match self.messages.get_mut(key) {
            Some((_, newest)) => {
                let former = std::mem::replace(newest, message);
                self.bytes -= weight(key, &former);
            }
            None => {
                self.messages.insert(key.into(), (number, message));
            }
        }
    }

    /// Forgets a key and its message. If it is used again, it gets another number.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        let Some((_, message)) = self.messages.remove(key) else {
            return false;
        };
        self.bytes -= weight(key, &message);
        // Release the memory of a burst of keys.
        if self.messages.capacity() > 64 && self.messages.len() < self.messages.capacity() / 8 {
            self.messages.shrink_to_fit();
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the number of messages, and at least the length of their frames.
    pub(super) fn measure(&self) -> (usize, usize) {
        let entries = self.messages.len() * ENTRY_BYTES;
        (self.messages.len(), self.bytes - entries)
    }

    /// Returns the newest messages in a form, each with the number of its key, in the order in which their keys were first used.
    pub(super) fn snapshot<F>(
        &self,
        form: impl Fn(ConflationKey, &Message) -> F,
    ) -> Vec<(ConflationKey, F)> {
        let messages = self.messages.values();
        let mut snapshot: Vec<_> = messages
            .map(|(number, message)| (*number, form(*number, message)))
            .collect();
        snapshot.sort_unstable_by_key(|&(number, _)| number);
        snapshot
    }

    /// Returns the newest messages with their keys, in the order in which the keys were first used.
    pub(super) fn by_key(&self) -> Vec<(Arc<str>, Message)> {
        let mut messages: Vec<_> = self.messages.iter().collect();
        messages.sort_unstable_by_key(|(_, (number, _))| *number);
        messages
            .into_iter()
            .map(|(key, (_, message))| (key.clone(), message.clone()))
            .collect()
    }
}

/// The patterns that determine which rooms are keyed, and their bounds.
#[derive(Default)]
pub(super) struct KeyedPatterns {
    patterns: Vec<(Box<str>, KeyedBounds)>,
}

/// The bounds of a keyed room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyedBounds {
    pub(super) keys_max: usize,
    pub(super) bytes_max: usize,
    /// Whether the pattern is exactly the room's name. Such a room is never evicted.
    pub(super) pinned: bool,
}

impl KeyedPatterns {
    /// Sets the bounds of rooms whose name matches this pattern and no earlier one. With 0 keys, they are not keyed.
    pub(super) fn add(&mut self, pattern: &str, limits: KeyedLimits) {
        let bounds = KeyedBounds {
            keys_max: limits.keys_max,
            bytes_max: limits.bytes_max,
            pinned: !pattern.contains('*'),
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
        })
    }

    fn put(
        kept: &mut KeyedMessages,
        key: &str,
        number: u64,
        text: &str,
    ) -> Result<(), KeysExceeded> {
        let message = Message::new(text);
        let former = kept.admit(key, &message)?;
        kept.keep(key, former.unwrap_or(ConflationKey::new(number)), message);
        Ok(())
    }

    fn texts(kept: &KeyedMessages) -> Vec<(ConflationKey, String)> {
        kept.snapshot(|_, message| message.text().unwrap().to_owned())
    }

    fn expected<const N: usize>(texts: [(u64, &str); N]) -> Vec<(ConflationKey, String)> {
        let numbered = texts.map(|(number, text)| (ConflationKey::new(number), text.to_owned()));
        numbered.into()
    }

    #[test]
    fn snapshot_has_the_newest_message_of_each_key_in_order_of_first_use() {
        let mut kept = kept(10, 10_000);
        for (number, key) in [(0, "b"), (1, "a"), (2, "c"), (3, "b"), (4, "a")] {
            put(&mut kept, key, number, &format!("{key}{number}")).unwrap();
        }
        assert_eq!(texts(&kept), expected([(0, "b3"), (1, "a4"), (2, "c2")]));
        let keys: Vec<_> = kept.by_key().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["b".into(), "a".into(), "c".into()]);
        assert!(kept.remove("a") && !kept.remove("a"));
        put(&mut kept, "a", 5, "a5").unwrap();
        assert_eq!(texts(&kept)[2..], expected([(5, "a5")]));
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
        assert_eq!(texts(&kept), expected([(0, "4"), (1, "2")]));
        kept.remove("b");
        put(&mut kept, "c", 5, "5").unwrap();
        kept.remove("a");
        kept.remove("c");
        assert_eq!((kept.bytes, kept.is_empty()), (0, true));
    }

    #[test]
    fn bytes_count_keys_messages_and_entries() {
        let mut kept = kept(10, 2 * (ENTRY_BYTES + "key".len() + 2 + "text".len()));
        put(&mut kept, "key", 0, "text").unwrap();
        put(&mut kept, "yek", 1, "text").unwrap();
        assert_eq!(kept.measure(), (2, 2 * ("key".len() + 2 + "text".len())));
        assert_eq!(put(&mut kept, "key", 2, "text."), Err(KeysExceeded));
        put(&mut kept, "key", 2, "tex").unwrap();
        put(&mut kept, "yek", 2, "text.").unwrap();
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
    }
}
