//! The keyed messages that wait in an outbox: of each key only the newest, in the place where its first one began to wait. A newer
//! message finds that place by its key.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::timers::Tick;

/// What a waiting message counts in addition to its bytes: its entries in the queue and in the index, and the chunk that stands for
/// it, which it may have to itself, all with their spare capacity. Its bytes are shared with the room that keeps it.
pub(crate) const KEYED_ENTRY_BYTES: usize = 256;

/// The outcome of queuing a keyed message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyedPush {
    /// It waits behind everything else.
    Queued,
    /// It waits in the place of an older message of its key, which is dropped.
    Replaced,
    /// No message of its key waits, and too much waits already. The message is returned.
    Full(Bytes),
}

/// The smallest capacity at which memory is released while messages wait.
const SHRINK_FROM: usize = 64;

/// A place in the queue, with the newest message of its key.
struct KeyedEntry {
    key: ConflationKey,
    message: Bytes,
    /// When the key began to wait ([`Tick::low_bits`]).
    since: u32,
}

#[derive(Default)]
pub(super) struct WaitingKeyed {
    messages: VecDeque<KeyedEntry>,
    /// The number of messages that have left the queue.
    left: u64,
    /// The number of each waiting message: its index, and those that have left before.
    numbers: HashMap<ConflationKey, u64, BuildHasherDefault<KeyHasher>>,
    /// The length of all messages.
    bytes: usize,
}

/// Hashes the number of a key. Numbers are counted by the server, so clients can't choose ones that collide.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        // A hash table takes the lowest bits, in which only the lowest of the number have an effect. This many of the upper ones spread
        // both consecutive numbers and every 256th over tables of all sizes.
        self.0.rotate_left(20)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&byte| self.write_u64(self.0 ^ u64::from(byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio of 64 bits: odd, and without a pattern in its bits.
        self.0 = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// The bits of a key's hash that choose its place in a table with 256 places.
#[cfg(all(test, not(loom)))]
pub(super) fn low_hash_bits(key: ConflationKey) -> u8 {
    use std::hash::BuildHasher;

    BuildHasherDefault::<KeyHasher>::default().hash_one(key) as u8
}

impl WaitingKeyed {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The number of messages.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The length of all messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What all messages count.
    pub(super) fn weight(&self) -> usize {
        self.bytes + self.messages.len() * KEYED_ENTRY_BYTES
    }

    pub(super) fn front(&self) -> Option<&Bytes> {
        self.messages.front().map(|entry| &entry.message)
    }

    /// Whether a message of this key waits.
    pub(super) fn contains(&self, key: ConflationKey) -> bool {
        self.numbers.contains_key(&key)
    }

    /// The message of a key that waits.
    #[cfg(feature = "deflate")]
    pub(super) fn get(&self, key: ConflationKey) -> Option<&Bytes> {
        let number = self.numbers.get(&key)?;
        let index = usize::try_from(number - self.left).ok()?;
        self.messages.get(index).map(|entry| &entry.message)
    }

    pub(super) fn range(&self, range: Range<usize>) -> impl Iterator<Item = &Bytes> {
        self.messages.range(range).map(|entry| &entry.message)
    }

    /// Puts a message in the place of the one of its key that waits, or returns it. Returns the length of the older one.
    pub(super) fn replace(&mut self, key: ConflationKey, message: Bytes) -> Result<usize, Bytes> {
        let number = self.numbers.get(&key);
        let index = number.and_then(|number| usize::try_from(number - self.left).ok());
        let Some(waiting) = index.and_then(|index| self.messages.get_mut(index)) else {
            return Err(message);
        };
        let before = waiting.message.len();
        self.bytes = self.bytes + message.len() - before;
        waiting.message = message;
        Ok(before)
    }

    pub(super) fn push(&mut self, key: ConflationKey, message: Bytes, now: Tick) {
        self.bytes += message.len();
        let number = self.left + self.messages.len() as u64;
        self.numbers.insert(key, number);
        self.messages.push_back(KeyedEntry {
            key,
            message,
            since: now.low_bits(),
        });
    }

    /// Takes the first message, and when its key began to wait ([`Tick::low_bits`]).
    pub(super) fn pop(&mut self) -> Option<(Bytes, u32)> {
        let KeyedEntry {
            key,
            message,
            since,
        } = self.messages.pop_front()?;
        self.left += 1;
        self.numbers.remove(&key);
        self.bytes -= message.len();
        // The memory of a burst must not be held by a few messages that always wait.
        let len = self.messages.len();
        if self.messages.capacity() > SHRINK_FROM && len < self.messages.capacity() / 2 {
            self.messages.shrink_to(len * 3 / 2);
            self.numbers.shrink_to(len * 3 / 2);
        }
        Some((message, since))
    }

    /// How long the key at the front has waited.
    pub(super) fn age(&self, now: Tick) -> Duration {
        let front = self.messages.front();
        front.map_or(Duration::ZERO, |front| now.since_low_bits(front.since))
    }

    /// The memory of the queue and the index: a bucket of a hash table takes a byte beside its entry, and an eighth of them is kept
    /// free.
    #[cfg(all(test, not(loom)))]
    pub(super) fn entries_bytes(&self) -> usize {
        let buckets = self.numbers.capacity() * 8 / 7;
        self.messages.capacity() * size_of::<KeyedEntry>()
            + buckets * (size_of::<(ConflationKey, u64)>() + 1)
    }
}
