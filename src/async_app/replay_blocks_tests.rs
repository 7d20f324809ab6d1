//! Lists of blocks, compared with the naive replay: every message after the position, rendered by itself.

use std::cell::Cell;

use super::*;
use crate::engine::Replay;
use crate::message::Message;

fn id(epoch: u64, sequence: u64) -> HistoryId {
    HistoryId::new(epoch, sequence)
}

/// The rendering of a message, which names its id. `None` for every seventh one, if the program renders.
fn frame(id: HistoryId, sent: &SentMessage, leaves_out: bool) -> Option<Bytes> {
    if leaves_out && id.sequence().is_multiple_of(7) {
        return None;
    }
    let mut frame = format!("{id} ").into_bytes();
    frame.extend_from_slice(sent.message.bytes());
    Some(frame.into())
}

fn plain_len(message: &Message) -> usize {
    message.frame().len()
}

struct Scenario {
    history: History,
    list: BlockList,
    leaves_out: bool,
    rendered: Cell<usize>,
}

impl Scenario {
    fn new(messages_max: usize) -> Self {
        Self {
            history: History::new(messages_max, 1 << 24),
            list: BlockList::default(),
            leaves_out: false,
            rendered: Cell::new(0),
        }
    }

    fn push(&mut self, messages: usize, len: usize) {
        for _ in 0..messages {
            let stamp = self.history.last_stamp() + 1;
            self.history.push(Message::new("x".repeat(len)), stamp);
        }
    }

    fn make(&self, order: &BlockOrder) -> Block {
        let render = |id: HistoryId, sent: &SentMessage| {
            self.rendered.set(self.rendered.get() + 1);
            frame(id, sent, self.leaves_out)
        };
        order.render(render, |bytes, _| Some(bytes)).unwrap()
    }

    /// Adds blocks for a client that resumes after an id.
    fn share(&mut self, since: Option<HistoryId>) {
        let end = self.history.last_sequence();
        while let Some(order) = self
            .list
            .missing(&self.history, since, end, plain_len)
            .unwrap()
        {
            let block = self.make(&order);
            assert!(self.list.fits(&order, &block), "it would be made again");
            self.list.insert(&order, block);
        }
        self.check();
    }

    fn check(&self) {
        let blocks: Vec<_> = self.list.blocks.iter().collect();
        for pair in blocks.windows(2) {
            assert_eq!(pair[0].last + 1, pair[1].first);
        }
        for block in blocks {
            let largest = block.starts.windows(2).map(|two| two[1].1 - two[0].1).max();
            let most = 2 * BLOCK_BYTES + largest.unwrap_or(0) as usize;
            assert!(block.starts.len() == 1 || block.bytes.len() <= most);
        }
    }

    /// The replay after an id, and the number of its messages that no block contains.
    fn replay(&self, since: Option<HistoryId>) -> (Replay, usize) {
        let from = self.history.first_after(since).unwrap();
        let mut pieces = Vec::new();
        let rest = self.list.replay(&self.history, from, &mut pieces);
        let blocks = pieces.len();
        let rest = self.history.entries_between(rest, u64::MAX);
        let rest: Vec<_> = rest
            .filter_map(|(id, entry)| frame(id, &entry.sent, self.leaves_out))
            .collect();
        let unshared = rest.len();
        assert!(blocks <= self.list.len());
        pieces.extend(rest.into_iter().map(ReplayPiece::Message));
        (Replay::new(pieces), unshared)
    }

    /// Asserts that the replay after an id is the naive one.
    fn assert_replay(&self, since: Option<HistoryId>) -> usize {
        let entries = self.history.entries_since(since).unwrap();
        let naive: Vec<Bytes> = entries
            .filter_map(|(id, entry)| frame(id, &entry.sent, self.leaves_out))
            .collect();
        let (replay, unshared) = self.replay(since);
        assert_eq!(replay.messages() as usize, naive.len(), "{since:?}");
        assert_eq!(replay.concat(), naive.concat(), "{since:?}");
        let parts = replay.parts().map(|part| part.bytes);
        assert_eq!(parts.collect::<Vec<_>>().concat(), naive.concat());
        unshared
    }

    /// Asserts it for every id after which the history can be replayed.
    fn assert_replays(&self) {
        self.assert_every_nth_replay(1);
    }

    fn assert_every_nth_replay(&self, n: usize) {
        self.assert_replay(None);
        let epoch = self.history.epoch();
        let sequences = self.history.oldest_kept() - 1..=self.history.last_sequence();
        for sequence in sequences.step_by(n) {
            self.assert_replay(Some(id(epoch, sequence)));
        }
    }
}

#[test]
fn replay_from_each_id_equals_the_naive_one() {
    for leaves_out in [false, true] {
        let mut scenario = Scenario::new(600);
        scenario.leaves_out = leaves_out;
        scenario.push(500, 400);
        scenario.share(None);
        assert!((3..=6).contains(&scenario.list.len()));
        assert_eq!(scenario.assert_replay(None), 0);
        scenario.assert_replays();
        assert_eq!(scenario.rendered.get(), 500);
        // The next clients find everything.
        scenario.share(None);
        assert_eq!(scenario.rendered.get(), 500);
    }
}

#[test]
fn each_message_is_rendered_once_while_clients_join() {
    let mut scenario = Scenario::new(1_000);
    scenario.push(1_000, 100);
    let (mut messages, mut unshared) = (1_000, 0);
    for n in 0..2_000 {
        scenario.push(n % 5, 100);
        messages += n % 5;
        scenario.share(None);
        unshared = unshared.max(scenario.assert_replay(None));
    }
    assert!(scenario.rendered.get() <= messages);
    assert!(unshared <= FEW_MESSAGES as usize);
    let kept: usize = 1_000 * "0123456789abcdef-1000 ".len() + 1_000 * 100;
    assert!(scenario.list.bytes() <= kept + BLOCK_BYTES * 2);
    assert!(scenario.list.len() <= 2 + kept / GROWS_BELOW_BYTES);
}

#[test]
fn blocks_of_dropped_messages_are_dropped() {
    let mut scenario = Scenario::new(2_000);
    scenario.push(2_000, 100);
    scenario.share(None);
    let (len, end) = (scenario.list.len(), scenario.list.oldest_end().unwrap());
    scenario.list.drop_until(end - 1, usize::MAX);
    assert_eq!(scenario.list.len(), len);
    scenario.list.drop_until(end, usize::MAX);
    assert_eq!(scenario.list.len(), len - 1);
    scenario.push(2_000, 100);
    // All blocks are of dropped messages.
    scenario.assert_every_nth_replay(53);
    scenario.share(None);
    scenario.assert_every_nth_replay(53);
    assert!(scenario.list.blocks[0].last >= scenario.history.oldest_kept());
    scenario.list.drop_until(u64::MAX, 1);
    assert!(!scenario.list.is_empty());
    scenario.list.drop_until(u64::MAX, usize::MAX);
    assert!(scenario.list.is_empty());
}

#[test]
fn few_messages_get_no_block() {
    let mut scenario = Scenario::new(1_000);
    scenario.push(FEW_MESSAGES as usize, 100);
    scenario.share(None);
    assert!(scenario.list.is_empty());
    scenario.push(1, 100);
    scenario.share(None);
    assert_eq!(scenario.list.len(), 1);
    scenario.push(1, FEW_BYTES);
    scenario.share(None);
    assert_eq!(scenario.assert_replay(None), 0);
    assert_eq!(scenario.list.len(), 1, "the block does not grow");
}

#[test]
fn resuming_client_gets_blocks_of_what_it_missed_alone() {
    let mut scenario = Scenario::new(10_000);
    scenario.push(10_000, 100);
    let epoch = scenario.history.epoch();
    let after = |sequence| Some(id(epoch, sequence));
    scenario.share(after(9_900));
    assert_eq!(scenario.rendered.get(), 100);
    // Clients that resume earlier, one after the other: each time, a whole block is added.
    for sequence in (9_000..9_900).rev() {
        scenario.share(after(sequence));
        assert_eq!(scenario.assert_replay(after(sequence)), 0);
    }
    assert!(scenario.rendered.get() <= 1_000 + BLOCK_BYTES / 100);
    assert!(scenario.list.len() <= 3);
    scenario.share(None);
    assert_eq!(scenario.rendered.get(), 10_000);
    scenario.assert_replay(None);
    for sequence in (0..10_000).step_by(77) {
        scenario.assert_replay(after(sequence));
    }
}

#[test]
fn client_that_has_missed_little_makes_no_block_of_other_messages() {
    let mut scenario = Scenario::new(100_000);
    scenario.push(100, 100);
    scenario.share(None);
    scenario.push(9_900, 100);
    let epoch = scenario.history.epoch();
    let before = scenario.rendered.get();
    for sequence in [9_995, 10_000] {
        scenario.share(Some(id(epoch, sequence)));
        scenario.assert_replay(Some(id(epoch, sequence)));
    }
    assert_eq!(scenario.rendered.get(), before);
    scenario.share(Some(id(epoch, 50)));
    assert_eq!(scenario.assert_replay(Some(id(epoch, 50))), 0);
}

#[test]
fn long_message_has_a_block_of_its_own_without_a_copy() {
    let mut scenario = Scenario::new(100);
    scenario.push(3, 100);
    scenario.push(2, 2 * BLOCK_BYTES);
    scenario.push(3, 100);
    let orders = std::cell::RefCell::new(Vec::new());
    let end = scenario.history.last_sequence();
    while let Some(order) = scenario
        .list
        .missing(&scenario.history, None, end, plain_len)
        .unwrap()
    {
        let render = |_, sent: &SentMessage| Some(sent.message.frame().clone());
        let block = order.render(render, |bytes, _| Some(bytes)).unwrap();
        orders.borrow_mut().push(order.messages.len());
        scenario.list.insert(&order, block);
    }
    assert_eq!(*orders.borrow(), [3, 1, 1]);
    let messages: Vec<_> = scenario.history.entries_since(None).unwrap().collect();
    for (block, (_, entry)) in scenario.list.blocks.iter().skip(1).zip(&messages[3..]) {
        assert_eq!(block.bytes.as_ptr(), entry.sent.message.frame().as_ptr());
    }
}

#[test]
fn another_epoch_begins_other_blocks() {
    let mut scenario = Scenario::new(1_000);
    scenario.push(500, 100);
    scenario.share(None);
    let old = scenario.list.clone();
    scenario.history = History::new(1_000, 1 << 20);
    scenario.push(300, 90);
    scenario.assert_replays();
    scenario.share(None);
    scenario.assert_replays();
    assert_eq!(scenario.assert_replay(None), 0);
    // A list that is ahead of its history is not used either.
    scenario.list = old;
    scenario.list.epoch = scenario.history.epoch();
    scenario.assert_replays();
}

#[test]
fn block_that_another_thread_was_quicker_with_does_not_fit() {
    let mut scenario = Scenario::new(1_000);
    scenario.push(100, 100);
    let order = |scenario: &Scenario| {
        let end = scenario.history.last_sequence();
        let order = scenario
            .list
            .missing(&scenario.history, None, end, plain_len);
        order.unwrap().unwrap()
    };
    let first = order(&scenario);
    scenario.share(None);
    assert!(!scenario.list.fits(&first, &scenario.make(&first)));
    scenario.push(100, 100);
    let grown = order(&scenario);
    assert!(grown.grown.is_some());
    let block = scenario.make(&grown);
    assert!(scenario.list.fits(&grown, &block));
    scenario.share(None);
    assert!(!scenario.list.fits(&grown, &block));
    scenario.assert_replays();
}

/// A generator of pseudo-random numbers (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn random_changes_of_the_history_never_change_a_replay() {
    for seed in 1..=60 {
        let mut dice = Dice(seed);
        let (len_max, kept_max) = [(1, 100), (500, 300), (3_000, 80), (90_000, 10)][dice.below(4)];
        let mut scenario = Scenario::new(1 + dice.below(kept_max));
        scenario.leaves_out = seed % 2 == 0;
        for _ in 0..30 {
            match dice.below(8) {
                0 => scenario
                    .list
                    .drop_until(scenario.history.oldest_kept() - 1, 1),
                1 => scenario.list.drop_until(u64::MAX, 1 + dice.below(2)),
                2 if dice.below(4) == 0 => {
                    scenario.history = History::new(1 + dice.below(kept_max), 1 << 22);
                }
                3 | 4 => scenario.push(dice.below(100), dice.below(len_max)),
                5 => scenario.push(dice.below(8), dice.below(len_max)),
                6 => scenario.share(None),
                _ => {
                    let oldest = scenario.history.oldest_kept() - 1;
                    let kept = scenario.history.last_sequence() - oldest;
                    let sequence = oldest + dice.below(kept as usize + 1) as u64;
                    let since = Some(id(scenario.history.epoch(), sequence));
                    scenario.share(since);
                    assert!(scenario.assert_replay(since) <= FEW_MESSAGES as usize);
                }
            }
            scenario.assert_every_nth_replay(1 + dice.below(7));
        }
    }
}

#[test]
fn block_is_no_longer_than_its_bound_however_much_rendering_adds() {
    let mut scenario = Scenario::new(10_000);
    scenario.push(5_000, 1);
    let end = scenario.history.last_sequence();
    let rendered = Bytes::from(vec![b'x'; 1_000]);
    while let Some(order) = scenario
        .list
        .missing(&scenario.history, None, end, |_| 1_000)
        .unwrap()
    {
        let block = order.render(|_, _| Some(rendered.clone()), |bytes, _| Some(bytes));
        scenario.list.insert(&order, block.unwrap());
    }
    let longest = scenario.list.blocks.iter().map(|block| block.bytes.len());
    assert!(longest.max() <= Some(BLOCK_BYTES));
    assert_eq!(scenario.list.bytes(), 5_000 * 1_000);
}
