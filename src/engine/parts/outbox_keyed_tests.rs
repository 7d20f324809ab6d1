//! Keyed messages in an outbox: compared with a simple model, their bound, and their memory.

use std::collections::VecDeque;

use super::keyed::{KEYED_ENTRY_BYTES, low_hash_bits};
use super::queue::Chunk;
use super::tests::{NOW, flush, frame, pong};
use super::*;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

const KEYS: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Control,
    Replay,
    Plain,
    Keyed(ConflationKey),
}

/// A queue that does what an outbox must do, message by message.
#[derive(Default)]
struct Model {
    items: VecDeque<(Kind, Vec<u8>)>,
    /// The written bytes of the first item.
    begun: usize,
    written: Vec<u8>,
    controls: usize,
}

impl Model {
    /// The index of the first item that is not in progress.
    fn first_whole(&self) -> usize {
        usize::from(self.begun > 0)
    }

    fn push_keyed(&mut self, key: ConflationKey, bytes: Vec<u8>) -> KeyedPush {
        let whole = self.first_whole();
        let mut waiting = self.items.iter_mut().skip(whole);
        match waiting.find(|(kind, _)| *kind == Kind::Keyed(key)) {
            Some((_, former)) => {
                *former = bytes;
                KeyedPush::Replaced
            }
            None => {
                self.items.push_back((Kind::Keyed(key), bytes));
                KeyedPush::Queued
            }
        }
    }

    fn push_control(&mut self, bytes: Vec<u8>) {
        let mut at = self.first_whole();
        while self
            .items
            .get(at)
            .is_some_and(|(kind, _)| *kind == Kind::Control)
        {
            at += 1;
        }
        self.items.insert(at, (Kind::Control, bytes));
        self.controls += 1;
    }

    /// Drops all messages that policies may drop.
    fn drop_messages(&mut self) -> u64 {
        let before = self.items.len();
        let mut whole = self.first_whole();
        self.items.retain(|(kind, _)| {
            let is_begun = whole > 0;
            whole = whole.saturating_sub(1);
            is_begun || *kind != Kind::Plain
        });
        (before - self.items.len()) as u64
    }

    /// Drops the oldest messages that policies may drop, until this many bytes fit.
    fn drop_oldest(&mut self, len: usize, bytes_max: usize) -> u64 {
        let mut dropped = 0;
        while self.live_bytes() > 0 && self.live_bytes() + len > bytes_max {
            let whole = self.first_whole();
            let mut items = self.items.iter().enumerate().skip(whole);
            let Some((at, _)) = items.find(|(_, (kind, _))| *kind == Kind::Plain) else {
                break;
            };
            self.items.remove(at);
            dropped += 1;
        }
        dropped
    }

    fn write(&mut self, mut n: usize) -> u64 {
        let mut messages = 0;
        while let Some((kind, bytes)) = self.items.front().filter(|_| n > 0) {
            let step = n.min(bytes.len() - self.begun);
            self.written.extend(&bytes[self.begun..self.begun + step]);
            self.begun += step;
            n -= step;
            if self.begun == bytes.len() {
                messages += u64::from(*kind != Kind::Control);
                self.controls -= usize::from(*kind == Kind::Control);
                self.begun = 0;
                self.items.pop_front();
            }
        }
        messages
    }

    fn sum(&self, of: impl Fn(Kind) -> bool) -> usize {
        let items = self.items.iter().filter(|(kind, _)| of(*kind));
        let bytes: usize = items.map(|(_, bytes)| bytes.len()).sum();
        let is_begun = self.items.front().is_some_and(|(kind, _)| of(*kind));
        bytes - if is_begun { self.begun } else { 0 }
    }

    /// What counts against the bound. Controls do, by their few bytes.
    fn live_bytes(&self) -> usize {
        self.sum(|kind| matches!(kind, Kind::Plain | Kind::Control))
    }

    fn check(&self, outbox: &Outbox) {
        assert_eq!(outbox.bytes(), self.sum(|_| true));
        assert_eq!(outbox.live_bytes(), self.live_bytes());
        let waiting = self.items.iter().skip(self.first_whole());
        let keyed: Vec<usize> = waiting
            .filter(|(kind, _)| matches!(kind, Kind::Keyed(_)))
            .map(|(_, bytes)| bytes.len())
            .collect();
        assert_eq!(outbox.keyed(), (keyed.len(), keyed.iter().sum()));
        assert_eq!(outbox.own_bytes(), outbox.held_by_chunks());
        assert_eq!(outbox.is_empty(), self.items.is_empty());
        let messages = self.items.iter().filter(|(kind, _)| *kind != Kind::Control);
        assert_eq!(outbox.messages(), messages.count() as u64);
    }
}

fn payload(dice: &mut Dice, n: usize) -> Vec<u8> {
    let len = match dice.below(20) {
        0 => 20_000,
        1 => 0,
        _ => dice.below(80),
    };
    let mut payload = format!("{n}:").into_bytes();
    payload.resize(payload.len() + len, b'.');
    frame(&payload)
}

#[test]
fn outbox_with_keyed_messages_equals_a_simple_model() {
    for_seeds(400, |seed| {
        let mut dice = Dice::from_seed(seed);
        let mut outbox = Outbox::default();
        let mut model = Model::default();
        let mut written = Vec::new();
        for n in 0..300 {
            match dice.below(12) {
                0..5 => {
                    let key = ConflationKey::new(dice.below(KEYS) as u64);
                    let bytes = payload(&mut dice, n);
                    let expected = model.push_keyed(key, bytes.clone());
                    let pushed = outbox.push_keyed(key, bytes.into(), usize::MAX, NOW);
                    assert_eq!(pushed, expected);
                }
                5..7 => {
                    let bytes = payload(&mut dice, n);
                    model.items.push_back((Kind::Plain, bytes.clone()));
                    outbox.push(bytes.into(), 1, dice.one_in(2), NOW);
                }
                7 if model.controls < 10 => {
                    model.push_control(pong(b"pong"));
                    outbox.push_control(pong(b"pong").into(), NOW);
                }
                8 if dice.one_in(4) => {
                    let bytes = payload(&mut dice, n);
                    model.items.push_back((Kind::Replay, bytes.clone()));
                    outbox.push_replay(bytes.into(), 1, dice.one_in(2), NOW);
                }
                9 if dice.one_in(3) => match dice.one_in(2) {
                    true => assert_eq!(outbox.drop_messages(), model.drop_messages()),
                    false => {
                        let (len, max) = (dice.below(100), dice.below(400));
                        let dropped = model.drop_oldest(len, max);
                        assert_eq!(outbox.drop_oldest(len, max), dropped);
                    }
                },
                _ => {
                    let room = match dice.below(6) {
                        0 => 200_000,
                        1 => 30_000,
                        _ => dice.below(200),
                    };
                    let (bytes, messages) = flush(&mut outbox, room);
                    assert_eq!(messages, model.write(bytes.len()));
                    assert!(bytes.len() == room || outbox.is_empty());
                    written.extend(bytes);
                    assert_eq!(written, model.written);
                }
            }
            model.check(&outbox);
        }
        let waiting = outbox.messages();
        match dice.below(3) {
            0 => assert_eq!(outbox.clear(), waiting),
            1 => {
                let in_progress = u64::from(model.begun > 0 && model.items[0].0 != Kind::Control);
                assert_eq!(outbox.drop_waiting(), waiting - in_progress);
                assert_eq!(outbox.keyed(), (0, 0));
                flush(&mut outbox, usize::MAX);
            }
            _ => assert_eq!(flush(&mut outbox, usize::MAX).1, waiting),
        }
        assert!(outbox.is_empty());
    });
}

#[test]
fn keyed_message_beyond_the_bound_is_returned() {
    let message = |text: &str| Bytes::from(frame(text.as_bytes()));
    let mut outbox = Outbox::default();
    let weight = message("12").len() + KEYED_ENTRY_BYTES;
    let push = |outbox: &mut Outbox, key, text| {
        outbox.push_keyed(ConflationKey::new(key), message(text), 2 * weight, NOW)
    };
    // As into an empty outbox, one of any size may wait.
    let long = "x".repeat(10_000);
    assert_eq!(push(&mut outbox, 0, &long), KeyedPush::Queued);
    assert_eq!(push(&mut outbox, 1, ""), KeyedPush::Full(message("")));
    assert_eq!(push(&mut outbox, 0, "00"), KeyedPush::Replaced);
    assert_eq!(push(&mut outbox, 1, "11"), KeyedPush::Queued);
    assert_eq!(push(&mut outbox, 2, ""), KeyedPush::Full(message("")));
    // A key that waits is replaced in any case.
    assert_eq!(push(&mut outbox, 1, &long), KeyedPush::Replaced);
    let (bytes, messages) = flush(&mut outbox, usize::MAX);
    assert_eq!(messages, 2);
    assert_eq!(bytes, [&message("00")[..], &message(&long)].concat());
}

#[test]
fn keyed_message_in_progress_is_completed_and_not_replaced() {
    let old = frame(b"old");
    for written in 0..=old.len() {
        let mut outbox = Outbox::default();
        let key = ConflationKey::new(7);
        outbox.push_keyed(key, old.clone().into(), usize::MAX, NOW);
        let (mut bytes, _) = flush(&mut outbox, written);
        let pushed = outbox.push_keyed(key, frame(b"new").into(), usize::MAX, NOW);
        let is_whole = written == 0;
        assert_eq!(pushed == KeyedPush::Replaced, is_whole, "{written}");
        bytes.extend(flush(&mut outbox, usize::MAX).0);
        let expected = match is_whole {
            true => frame(b"new"),
            false => [old.clone(), frame(b"new")].concat(),
        };
        assert_eq!(bytes, expected, "{written}");
        assert!(outbox.is_empty());
    }
}

#[test]
fn entries_of_keyed_messages_take_no_more_than_they_count() {
    let message = Bytes::from(frame(b"."));
    for (peak, in_between) in [10, 60, 100, 449, 1_000, 5_000]
        .into_iter()
        .flat_map(|peak| [(peak, false), (peak, true)])
    {
        let mut queue = Queue::default();
        let check = |queue: &Queue| {
            let keyed = queue.keyed.as_ref().unwrap();
            // Messages in between have chunks of their own, and each keyed one has a chunk to itself.
            let chunks =
                queue.chunks.capacity() * size_of::<Chunk>() / (1 + usize::from(in_between));
            let (bytes, counted) = (keyed.entries_bytes() + chunks, queue.own_bytes());
            // Few messages may have the memory of some dozen.
            assert!(
                bytes <= counted.max(100 * KEYED_ENTRY_BYTES),
                "{bytes} of {counted}"
            );
        };
        for key in 0..peak {
            queue.push_keyed(ConflationKey::new(key), message.clone(), usize::MAX, NOW);
            if in_between {
                queue.push(message.clone(), 1, false, NOW);
            }
            check(&queue);
        }
        let pairs = 1 + usize::from(in_between);
        for _ in 1..peak {
            assert_eq!(queue.consumed(pairs * message.len()), pairs as u64);
            if !in_between {
                check(&queue);
            }
        }
        assert_eq!(queue.consumed(pairs * message.len()), pairs as u64);
        assert!(queue.is_pristine());
    }
}

#[test]
fn keys_with_equal_low_bits_spread_over_a_hash_table() {
    for shift in [0, 3, 8, 20] {
        let places = (0..256).map(|n| low_hash_bits(ConflationKey::new(n << shift)));
        let places: std::collections::HashSet<_> = places.collect();
        // A random function has 162 on average.
        assert!(places.len() > 120, "{} with {shift}", places.len());
    }
}

#[test]
fn age_of_a_keyed_message_counts_from_when_its_key_began_to_wait() {
    let after = |ms: u64| NOW.after(Duration::from_millis(ms));
    let message = Bytes::from(frame(b"12"));
    let mut outbox = Outbox::default();
    let mut push = |key, ms| {
        let (key, message) = (ConflationKey::new(key), message.clone());
        outbox.push_keyed(key, message, usize::MAX, after(ms));
    };
    push(1, 0);
    push(2, 80);
    push(1, 160);
    let age = |outbox: &Outbox| outbox.age(after(800)).as_millis();
    assert_eq!(age(&outbox), 800);
    // The first one is in progress, and then the second is the oldest.
    flush(&mut outbox, 1);
    assert_eq!(age(&outbox), 800);
    flush(&mut outbox, message.len() - 1);
    assert_eq!(age(&outbox), 720);
}
