//! Tests of histories, on their own and against a simple model.

use super::*;

fn history(messages_max: usize, bytes_max: usize) -> History {
    History::with_epoch(0xe, messages_max, bytes_max)
}

fn id(sequence: u64) -> HistoryId {
    HistoryId::new(0xe, sequence)
}

/// The sequences and texts since an id.
fn texts(history: &History, since: Option<HistoryId>) -> Result<Vec<(u64, String)>, HistoryGone> {
    Ok(history
        .since(since)?
        .map(|(id, message, _)| (id.sequence(), message.text().unwrap().to_owned()))
        .collect())
}

fn numbers(history: &History, since: Option<HistoryId>) -> Vec<u64> {
    let texts = texts(history, since).unwrap();
    texts.iter().map(|(sequence, _)| *sequence).collect()
}

#[test]
fn sequences_start_with_one_and_have_no_gaps() {
    let mut history = history(10, 1000);
    assert_eq!(history.last_id(), None);
    for sequence in 1..=30 {
        assert_eq!(history.next_id(), id(sequence));
        assert_eq!(history.push(Message::new("x"), sequence), id(sequence));
        assert_eq!(history.last_id(), Some(id(sequence)));
    }
}

#[test]
fn messages_after_an_id_are_replayed_while_all_are_kept() {
    let mut history = history(3, 1000);
    assert_eq!(numbers(&history, None), [0_u64; 0]);
    assert_eq!(numbers(&history, Some(id(0))), [0_u64; 0]);
    history.push(Message::new("a"), 1);
    history.push(Message::new("b"), 2);
    history.push(Message::new("c"), 3);
    assert_eq!(numbers(&history, Some(id(0))), [1, 2, 3]);
    history.push(Message::new("d"), 4);
    assert_eq!(numbers(&history, None), [2, 3, 4]);
    assert_eq!(
        texts(&history, Some(id(1))).unwrap(),
        [(2, "b".into()), (3, "c".into()), (4, "d".into())]
    );
    assert_eq!(numbers(&history, Some(id(3))), [4]);
    assert_eq!(numbers(&history, Some(id(4))), [0_u64; 0]);
    for gone in [id(0), id(5), id(u64::MAX), HistoryId::new(0xf, 4)] {
        let error = texts(&history, Some(gone)).unwrap_err();
        assert_eq!(error, HistoryGone::new(gone, Some(id(2))));
    }
}

#[test]
fn byte_limit_drops_the_oldest() {
    let mut history = history(100, 10);
    history.push(Message::new("aaaa"), 1);
    history.push(Message::new("bbbb"), 2);
    history.push(Message::new("cc"), 3);
    assert_eq!(numbers(&history, None), [1, 2, 3]);
    history.push(Message::new("d"), 4);
    assert_eq!(numbers(&history, None), [2, 3, 4]);
    history.push(Message::new("eeeeeeeeee"), 5);
    assert_eq!(numbers(&history, None), [5]);
}

#[test]
fn message_over_the_byte_limit_gets_an_id_and_empties_history() {
    let mut history = history(100, 10);
    history.push(Message::new("a"), 1);
    assert_eq!(history.push(Message::new("a".repeat(11)), 2), id(2));
    assert_eq!(numbers(&history, None), [0_u64; 0]);
    assert_eq!(numbers(&history, Some(id(2))), [0_u64; 0]);
    for gone in [id(0), id(1)] {
        let error = texts(&history, Some(gone)).unwrap_err();
        assert_eq!(error, HistoryGone::new(gone, None));
    }
    history.push(Message::new("b"), 3);
    assert_eq!(numbers(&history, Some(id(2))), [3]);
    assert_eq!(history.stamp_of(id(2)), Some(2));
}

#[test]
fn stamps_give_the_resume_position_in_another_room() {
    let mut history = history(2, 1000);
    assert_eq!(history.stamp_of(id(0)), Some(0));
    for (text, stamp) in [("a", 10), ("b", 20), ("c", 30)] {
        history.push(Message::new(text), stamp);
    }
    assert_eq!(history.stamp_of(id(0)), None);
    assert_eq!(history.stamp_of(id(1)), Some(10));
    assert_eq!(history.stamp_of(id(3)), Some(30));
    assert_eq!(history.stamp_of(id(4)), None);
    assert_eq!(history.stamp_of(HistoryId::new(0xf, 2)), None);
    let after = |stamp| -> Vec<u64> {
        let after = history.after_stamp(stamp);
        after.map(|(id, _, _)| id.sequence()).collect()
    };
    assert_eq!(after(0), [2, 3]);
    assert_eq!(after(19), [2, 3]);
    assert_eq!(after(20), [3]);
    assert_eq!(after(30), [0_u64; 0]);
    assert!(!history.reaches_stamp(9));
    assert!(history.reaches_stamp(10));
}

#[test]
fn messages_before_a_history_can_be_treated_as_dropped() {
    let history = history(10, 1000).since_stamp(5);
    assert!(!history.reaches_stamp(4));
    assert!(history.reaches_stamp(5));
    assert_eq!(history.last_stamp(), 5);
    assert_eq!(history.stamp_of(id(0)), Some(5));
    assert_eq!(numbers(&history, Some(id(0))), [0_u64; 0]);
}

#[test]
fn every_history_has_its_own_epoch() {
    let epochs: std::collections::HashSet<u64> = (0..1000)
        .map(|_| History::new(1, 1).next_id().epoch())
        .collect();
    assert_eq!(epochs.len(), 1000);
}

/// A model that stores all messages, and finds the kept ones by counting back from the last.
struct Naive {
    all: Vec<(Message, u64)>,
    messages_max: usize,
    bytes_max: usize,
}

impl Naive {
    /// The first sequence that is kept.
    fn first(&self) -> u64 {
        let mut first = self.all.len();
        let mut bytes = 0;
        while first > 0 && self.all.len() - first < self.messages_max {
            bytes += self.all[first - 1].0.bytes().len();
            if bytes > self.bytes_max {
                break;
            }
            first -= 1;
        }
        first as u64 + 1
    }

    fn since(&self, after: u64) -> Option<Vec<(u64, Vec<u8>, u64)>> {
        let reaches = after + 1 >= self.first() && after <= self.all.len() as u64;
        reaches.then(|| {
            (after as usize..self.all.len())
                .map(|index| {
                    let (message, stamp) = &self.all[index];
                    (index as u64 + 1, message.bytes().to_vec(), *stamp)
                })
                .collect()
        })
    }
}

#[test]
fn history_keeps_the_same_messages_as_the_model() {
    for seed in 1..200_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let messages_max = below(8) as usize;
        let bytes_max = below(60) as usize;
        let mut history = history(messages_max, bytes_max);
        let mut naive = Naive {
            all: Vec::new(),
            messages_max,
            bytes_max,
        };
        let mut stamp = 0;
        for _ in 0..100 {
            let message = Message::new_binary(vec![b'x'; below(25) as usize]);
            stamp += 1 + below(3);
            history.push(message.clone(), stamp);
            naive.all.push((message, stamp));
            let first = naive.first();
            let last = naive.all.len() as u64;
            for after in 0..=last + 1 {
                let found = history.since(Some(id(after))).ok().map(|since| {
                    since
                        .map(|(id, message, stamp)| {
                            (id.sequence(), message.bytes().to_vec(), stamp)
                        })
                        .collect::<Vec<_>>()
                });
                assert_eq!(found, naive.since(after), "seed {seed} after {after}");
                let stamp = (after + 1 >= first && after <= last).then(|| match after {
                    0 => 0,
                    after => naive.all[after as usize - 1].1,
                });
                assert_eq!(history.stamp_of(id(after)), stamp, "seed {seed}");
            }
            let kept: usize = numbers_of(&history).len();
            assert_eq!(kept as u64, last + 1 - first, "seed {seed}");
        }
    }
}

fn numbers_of(history: &History) -> Vec<u64> {
    let Ok(all) = history.since(None) else {
        panic!("all that is kept can always be had");
    };
    all.map(|(id, _, _)| id.sequence()).collect()
}

#[test]
fn star_in_a_pattern_matches_any_characters() {
    for (pattern, name, expected) in [
        ("", "", true),
        ("", "a", false),
        ("news", "news", true),
        ("news", "news2", false),
        ("news", "new", false),
        ("*", "", true),
        ("*", "anything/at all", true),
        ("news/*", "news/", true),
        ("news/*", "news/ch/zh", true),
        ("news/*", "news", false),
        ("*/zh", "news/ch/zh", true),
        ("*/zh", "news/ch/zh/", false),
        ("a*b*c", "abc", true),
        ("a*b*c", "aXbXbXc", true),
        ("a*b*c", "acb", false),
        ("**", "x", true),
        ("a**", "a", true),
        ("*aab", "aaaaab", true),
        ("*ä*", "Grüezi mitenänd", true),
        ("?", "a", false),
    ] {
        let found = matches(pattern, name);
        assert_eq!(found, expected, "{pattern:?} {name:?}");
    }
}

#[test]
fn first_matching_pattern_decides() {
    let mut patterns = HistoryPatterns::default();
    assert_eq!(patterns.find("news"), None);
    patterns.add("news/secret", HistoryLimits::NONE);
    patterns.add("news/*", HistoryLimits::messages(50).bytes(1000));
    patterns.add("*", HistoryLimits::messages(1).bytes(10));
    let messages = |name| patterns.find(name).map(|bounds| bounds.messages_max);
    assert_eq!(messages("news/zh"), Some(50));
    assert_eq!(messages("other"), Some(1));
    assert_eq!(messages("news/secret"), None);
}
