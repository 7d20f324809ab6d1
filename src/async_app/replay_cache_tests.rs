use super::super::history::History;
use super::*;
use crate::message::Message;

const FORM: ReplayForm = ReplayForm::Events;

struct Room {
    history: History,
    cache: Arc<ReplayCache>,
}

impl Room {
    fn new(messages_max: usize) -> Self {
        Self {
            history: History::new(messages_max, 1 << 24),
            cache: Arc::default(),
        }
    }

    /// Keeps messages, as a publisher does.
    fn push(&mut self, messages: usize) {
        for _ in 0..messages {
            let stamp = self.history.last_stamp() + 1;
            self.history.push(Message::new("x".repeat(98)), stamp);
            let dropped = self.history.oldest_kept() - 1;
            self.cache.pushed(self.history.last_sequence(), dropped);
        }
    }

    /// Adds blocks as a joining client does. Returns the messages that they contain.
    fn share(&self, budget: ReplayBudget<'_>, form: ReplayForm) -> u32 {
        let end = self.history.last_sequence();
        loop {
            let list = self.cache.blocks(form);
            let order = list
                .missing(&self.history, None, end, |message| message.frame().len())
                .unwrap();
            let frame = |_: HistoryId, sent: &SentMessage| Some(sent.message.frame().clone());
            if order.is_none_or(|order| !budget.make(&self.cache, form, &order, frame)) {
                return self.pieces(form).iter().map(messages_of).sum();
            }
        }
    }

    fn pieces(&self, form: ReplayForm) -> Vec<crate::engine::ReplayPiece> {
        let mut pieces = Vec::new();
        let from = self.history.oldest_kept();
        let list = self.cache.blocks(form);
        list.replay(&self.history, from, &mut pieces);
        pieces
    }
}

fn messages_of(piece: &crate::engine::ReplayPiece) -> u32 {
    match piece {
        crate::engine::ReplayPiece::Message(_) => 1,
        crate::engine::ReplayPiece::Block { messages, .. } => *messages,
    }
}

fn budget(memory: &Arc<ReplayMemory>, bytes_max: usize) -> ReplayBudget<'_> {
    ReplayBudget { memory, bytes_max }
}

#[test]
fn blocks_count_until_their_last_holder_drops_them() {
    let memory = Arc::default();
    let mut room = Room::new(1_000);
    room.push(1_000);
    assert_eq!(room.share(budget(&memory, 1 << 20), FORM), 1_000);
    let all = memory.used();
    assert!((100_000..120_000).contains(&all), "{all}");
    let waits = room.pieces(FORM);
    // The room drops the messages that a client still waits for.
    room.push(1_000);
    assert_eq!(memory.used(), all);
    let entries = 1_000 * size_of::<(u32, u32)>();
    assert!(room.cache.blocks(FORM).is_empty());
    drop(waits);
    assert_eq!(memory.used(), 0, "of {all}, {entries} for entries");
}

#[test]
fn publisher_drops_blocks_with_the_messages_of_each_form() {
    let memory = Arc::default();
    let mut room = Room::new(2_000);
    room.push(2_000);
    let forms = [FORM, ReplayForm::Frames(HistoryForm::new(true, false))];
    for form in forms {
        room.share(budget(&memory, 1 << 20), form);
    }
    let all = memory.used();
    room.push(1_999);
    assert!(memory.used() <= all / 2, "{} of {all}", memory.used());
    room.push(1);
    assert_eq!(memory.used(), 0);
    assert!(lock(&room.cache.state).is_none());
}

#[test]
fn full_memory_leaves_the_rest_to_each_client() {
    let memory = Arc::default();
    let mut room = Room::new(10_000);
    room.push(10_000);
    let shared = room.share(budget(&memory, 300_000), FORM);
    assert!((1_000..3_000).contains(&shared), "{shared}");
    assert!(memory.used() <= 300_000);
    // Another room gets none, even after the first has ended, as long as a client waits for its blocks.
    let mut other = Room::new(10_000);
    other.push(10_000);
    let full = memory.used();
    let waits = room.pieces(FORM);
    drop(room);
    assert_eq!(other.share(budget(&memory, full), FORM), 0);
    drop(waits);
    assert!(other.share(budget(&memory, full), FORM) > 0);
}

#[test]
fn idle_room_loses_its_blocks_and_gets_them_again() {
    let memory: Arc<ReplayMemory> = Arc::default();
    let mut room = Room::new(10_000);
    room.push(5_000);
    let now = Instant::now();
    room.share(budget(&memory, 1 << 20), FORM);
    let all = memory.used();
    assert!(room.cache.clear_if_idle(now + IDLE / 2));
    assert_eq!(memory.used(), all);
    assert!(!room.cache.clear_if_idle(now + 2 * IDLE));
    assert_eq!(memory.used(), 0);
    // A publisher also drops them, a part at a time.
    assert_eq!(room.share(budget(&memory, 1 << 20), FORM), 5_000);
    room.cache.drop_unneeded(0, now + IDLE / 2);
    assert_eq!(memory.used(), all);
    room.cache.drop_unneeded(0, now + 2 * IDLE);
    assert_eq!(memory.used(), 0);
}

#[test]
fn sweep_drops_blocks_of_idle_rooms_once_in_an_interval() {
    let memory: Arc<ReplayMemory> = Arc::default();
    let rooms = [(); 3].map(|()| {
        let mut room = Room::new(1_000);
        room.push(1_000);
        room.share(budget(&memory, 1 << 20), FORM);
        room
    });
    assert_eq!(lock(&memory.caches).caches.len(), 3);
    memory.tidy();
    assert_eq!(
        lock(&memory.caches).caches.len(),
        3,
        "a room in use is forgotten"
    );
    for room in &rooms[..2] {
        let mut state = lock(&room.cache.state);
        let used = Instant::now().checked_sub(2 * IDLE);
        state.as_mut().unwrap().used = used.expect("the machine has run for a minute");
    }
    let all = memory.used();
    memory.sweep(Duration::MAX);
    assert_eq!(memory.used(), all, "the interval has not passed");
    memory.sweep(Duration::ZERO);
    assert!(memory.used() <= all / 3 + 1);
    assert_eq!(lock(&memory.caches).caches.len(), 1);
    rooms[0].share(budget(&memory, 1 << 20), FORM);
    assert_eq!(lock(&memory.caches).caches.len(), 2);
    drop(rooms);
    memory.sweep(Duration::ZERO);
    assert_eq!(lock(&memory.caches).caches.len(), 0);
}

#[test]
fn rooms_that_have_gone_take_no_place_in_the_registry() {
    let memory = Arc::<ReplayMemory>::default();
    for _ in 0..1_000 {
        memory.register(&Arc::default());
    }
    assert!(lock(&memory.caches).caches.len() < 10);
    let living: Vec<Arc<ReplayCache>> = (0..100).map(|_| Arc::default()).collect();
    living.iter().for_each(|cache| memory.register(cache));
    let registry = lock(&memory.caches);
    let is_living = |cache: &&Weak<ReplayCache>| cache.strong_count() > 0;
    assert_eq!(registry.caches.iter().filter(is_living).count(), 100);
}
