//! A game with the histories of rooms: nodes append, need rooms and fall behind, connections break, and servers lose what
//! they have kept.
//!
//! Oracle: what a node's members receive follows without a gap, or they are told of one, and each gap has a cause. Nothing
//! arrives twice or out of its sender's order, and no id stands for two messages. Each message was executed by the broker or
//! is counted. In the end, all copies equal the histories of the broker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use super::recorder::Seen;
use super::stored::{Deletion, Refusal, Restart};
use super::world::{Dice, World, room};
use crate::cluster::interest::{Interest, Waited};
use crate::cluster::outgoing::{AppendOutcome, AppendRequest};
use crate::history_id::{HistoryId, random_epoch};

const NODES: usize = 3;
/// The rooms with a history, and how many messages each keeps.
const KEPT: [(&str, u32); 3] = [("a", 3), ("b", 5), ("c", 8)];
/// The rooms without.
const PLAIN: [&str; 2] = ["p", "q"];
/// The most bytes of unanswered appends, and what a node takes at once.
const UNANSWERED_BYTES_MAX: usize = (4 << 20) + (64 << 10);

/// A message to a room with a history.
struct Sent {
    room: &'static str,
    text: String,
    /// The position that it was to be appended at.
    expected: Option<HistoryId>,
    outcome: Option<Receiver<AppendOutcome>>,
}

/// A room that a node needs.
struct Needed {
    interest: Arc<Interest>,
    has_members: bool,
}

struct Game {
    world: World,
    servers: usize,
    parked_bytes_max: usize,
    /// The length of the longest message.
    len_max: usize,
    /// The rooms with a history that are needed.
    needed: [[Option<Needed>; KEPT.len()]; NODES],
    sent: Vec<Sent>,
    numbers: usize,
    /// The number of messages that each node has sent.
    sent_by: [u64; NODES],
    /// Positions that the copies once had.
    positions: Vec<(usize, HistoryId)>,
    /// Whether counters of nodes were deleted while a server ran: then it can't recognise appends that are sent again.
    has_flushed: bool,
}

pub(super) fn game(seed: u64) {
    let mut dice = Dice::new(seed ^ 0x5115_7021);
    let servers = 1 + dice.roll(2);
    // Some twenty messages, or all.
    let parked_bytes_max = [4_000, 4_000, 8 << 20][dice.roll(3)];
    let mut game = Game {
        world: World::with_parked_bytes(NODES, servers, parked_bytes_max),
        servers,
        parked_bytes_max,
        len_max: if dice.roll(30) == 0 { 400_000 } else { 20 },
        needed: Default::default(),
        sent: Vec::new(),
        numbers: 0,
        sent_by: [0; NODES],
        positions: Vec::new(),
        has_flushed: false,
    };
    for node in 0..NODES {
        PLAIN
            .iter()
            .for_each(|name| drop(game.world.need(node, name)));
    }
    let faulty = dice.roll(4) != 0;
    if dice.roll(2) == 0 {
        game.world.settle();
    }
    for _ in 0..150 + dice.roll(250) {
        game.step(&mut dice, faulty);
        game.observe();
    }
    game.settle();
    game.check(faulty);
}

impl Game {
    fn step(&mut self, dice: &mut Dice, faulty: bool) {
        let (node, at) = (dice.roll(NODES), dice.roll(KEPT.len()));
        match dice.roll(if faulty { 26 } else { 19 }) {
            0..6 => self.append(node, at, dice),
            6 => self.publish(node, dice),
            7 | 8 => self.change_need(node, at, dice),
            9 | 10 => self.world.turn(node),
            11 | 12 => drop(self.world.execute(node, 1 + dice.roll(4))),
            13 | 14 => drop(self.world.receive(node, 1 + dice.roll(4))),
            15 => self.run_for(10 * (1 + dice.roll(80) as u64)),
            16 | 17 => self.world.fill_mailbox(node, dice.roll(2) == 0),
            18 => self.world.settle(),
            19 | 20 => self.world.cut(node, dice.roll(self.servers)),
            21 => match dice.roll(2) {
                0 => self.world.cut_late(node, dice.roll(self.servers)),
                _ => self.world.execute_abandoned(),
            },
            22 => self.lose(dice),
            23 => self.refuse(dice),
            24 => self.world.lose_message(node, dice.roll(self.servers)),
            _ => self.interrupt(node, dice),
        }
    }

    fn run_for(&mut self, millis: u64) {
        let step = match millis {
            ..1_000 => 10,
            // Heartbeats are as frequent as usual.
            1_000..10_000 => 50,
            10_000.. => 250,
        };
        let [time, step] = [millis, step].map(Duration::from_millis);
        self.world.run_in_steps(time, step);
    }

    /// A server restarts, or loses data while it runs.
    fn lose(&mut self, dice: &mut Dice) {
        let server = dice.roll(self.servers);
        let restart = match dice.roll(6) {
            0 => Restart::KeepsData,
            1 => Restart::LosesData,
            2 => Restart::LosesNewest(1 + dice.roll(3)),
            at => {
                let deletion = match at {
                    3 => Deletion::Position,
                    4 => Deletion::Messages,
                    _ if dice.roll(2) == 0 => Deletion::Room,
                    _ => Deletion::All,
                };
                self.has_flushed |= deletion == Deletion::All;
                let name = KEPT[dice.roll(KEPT.len())].0;
                self.world.delete(server, name, deletion);
                return;
            }
        };
        self.world.restart_with(server, restart);
    }

    fn refuse(&mut self, dice: &mut Dice) {
        let server = dice.roll(self.servers);
        match dice.roll(3) {
            0 => self.world.refuse_subscriptions(server, true),
            1 => self.world.refuse_histories(server, Some(Refusal::Busy)),
            _ => self.world.refuse_histories(server, Some(Refusal::Memory)),
        }
        if dice.roll(2) == 0 {
            // Others act meanwhile.
            for _ in 0..dice.roll(30) {
                self.step(dice, true);
                self.observe();
            }
        } else {
            self.run_for(10 * dice.roll(150) as u64);
        }
        self.accept();
    }

    fn accept(&mut self) {
        for server in 0..self.servers {
            self.world.refuse_subscriptions(server, false);
            self.world.refuse_histories(server, None);
        }
    }

    /// Something stands still.
    fn interrupt(&mut self, node: usize, dice: &mut Dice) {
        let server = dice.roll(self.servers);
        let short = 10 * (1 + dice.roll(200) as u64);
        match dice.roll(12) {
            0..4 => {
                self.world.freeze(server);
                self.run_for(short);
                self.world.thaw(server);
            }
            4 => {
                // Noticed by the silence.
                self.world.freeze(server);
                self.run_for(3_500);
                self.world.thaw(server);
            }
            5..8 => {
                self.world.stop_running(node);
                self.run_for(short);
                self.world.run_again(node);
            }
            8..11 => {
                self.world.stall_reconnects(node);
                self.world.cut(node, server);
                self.run_for(short);
                self.world.allow_reconnects(node);
            }
            _ => {
                // The queued messages become too old to be sent.
                self.world.stall_reconnects(node);
                self.world.cut_late(node, server);
                for at in 0..KEPT.len() {
                    self.append(node, at, dice);
                }
                self.run_for(31_000);
                self.world.allow_reconnects(node);
            }
        }
    }

    fn change_need(&mut self, node: usize, at: usize, dice: &mut Dice) {
        let (name, messages_max) = KEPT[at];
        let is_needed = self.needed[node][at].is_some();
        if is_needed && dice.roll(2) == 0 {
            self.world.unneed_history(node, name);
            self.needed[node][at] = None;
            return;
        }
        if is_needed {
            // The room is retired, and made again at once.
            self.world.unneed_history(node, name);
        }
        let interest = self.world.need_history(node, name, messages_max as usize);
        self.needed[node][at] = Some(Needed {
            interest,
            has_members: false,
        });
    }

    fn publish(&mut self, node: usize, dice: &mut Dice) {
        let text = self.text(node, 0);
        let name = PLAIN[dice.roll(PLAIN.len())];
        let is_queued = self.world.publish(node, room(name), &text);
        self.sent_by[node] += u64::from(is_queued);
    }

    fn text(&mut self, node: usize, padding: usize) -> String {
        self.numbers += 1;
        format!("{node}:{}:{}", self.numbers, "x".repeat(padding))
    }

    /// Appends a message as the app does: at any position, or at one where the thread expects the history.
    fn append(&mut self, node: usize, at: usize, dice: &mut Dice) {
        let name = KEPT[at].0;
        let padding = dice.roll(self.len_max);
        let new_epoch = random_epoch();
        let old = dice.roll(self.positions.len() + 1);
        let expected = match dice.roll(6) {
            0..2 => self.world.copy(node, name).map(|copy| copy.position),
            // No history.
            2 => Some(HistoryId::new(new_epoch, 0)),
            3 => match self.positions.get(old) {
                Some(&(of, position)) if of == at => Some(position),
                _ => None,
            },
            _ => None,
        };
        let waits = expected.is_some() || dice.roll(2) == 0;
        self.append_at((node, at), padding, (expected, new_epoch), waits);
    }

    fn append_at(
        &mut self,
        (node, at): (usize, usize),
        padding: usize,
        (expected, new_epoch): (Option<HistoryId>, u64),
        waits: bool,
    ) {
        let (name, messages_max) = KEPT[at];
        let text = self.text(node, padding);
        let (waiting, outcome) = match waits {
            true => {
                let (waiting, outcome) = channel();
                (Some(waiting), Some(outcome))
            }
            false => (None, None),
        };
        let request = AppendRequest {
            messages_max,
            bytes_max: 1 << 30,
            expected,
            new_epoch,
            waiting,
        };
        if self.world.append(node, name, &text, request) {
            self.sent_by[node] += 1;
            self.sent.push(Sent {
                room: name,
                text,
                expected,
                outcome,
            });
        }
    }

    /// Clients join the rooms whose histories are complete. Memory is bounded at all times.
    fn observe(&mut self) {
        for node in 0..NODES {
            for (at, (name, _)) in KEPT.into_iter().enumerate() {
                let Some(needed) = &mut self.needed[node][at] else {
                    continue;
                };
                let waited = self.world.settled(node, &needed.interest);
                if !needed.has_members && waited == Some(Waited::Subscribed) {
                    needed.has_members = true;
                    self.world.joined(node, name);
                    let copy = self.world.copy(node, name);
                    self.positions.extend(copy.map(|copy| (at, copy.position)));
                }
            }
            let message = self.len_max + 1_000;
            let unanswered = self.world.unanswered_append_bytes(node);
            assert!(unanswered <= self.servers * (UNANSWERED_BYTES_MAX + message));
            // A copy may begin with a whole history.
            let parked = self.world.parked_bytes(node);
            assert!(parked <= self.parked_bytes_max + 8 * message);
        }
    }

    /// Lets everything arrive that is on its way, and makes sure that each node knows the end of each history.
    fn settle(&mut self) {
        self.accept();
        for server in 0..self.servers {
            self.world.thaw(server);
        }
        self.world.execute_abandoned();
        for node in 0..NODES {
            self.world.run_again(node);
            self.world.allow_reconnects(node);
            self.world.fill_mailbox(node, false);
        }
        self.run_for(8_000);
        self.world.settle();
        self.observe();
        for at in 0..KEPT.len() {
            self.append_at((0, at), 0, (None, random_epoch()), true);
            self.world.settle();
        }
        self.run_for(50);
        self.world.settle();
        self.observe();
    }

    fn check(&self, faulty: bool) {
        for (at, (name, messages_max)) in KEPT.into_iter().enumerate() {
            for node in 0..NODES {
                self.check_seen(node, name);
                self.check_copy(node, at, messages_max as usize);
            }
        }
        let is_double = |(_, &times): (&String, &usize)| times > 1;
        for stored in self.world.all_stored() {
            let has_double = stored.done.appended.iter().any(is_double);
            assert!(self.has_flushed || !has_double, "an append was repeated");
        }
        for sent in &self.sent {
            self.check_outcome(sent, faulty);
        }
        for node in 0..NODES {
            self.check_order(node);
            self.check_gaps(node);
            self.check_counts(node, faulty);
        }
    }

    /// What members receive follows, or they were told of a gap.
    fn check_seen(&self, node: usize, name: &str) {
        let texts = &self.world.stored(name).done.texts;
        let text_at = |id: HistoryId| texts.get(&(name.into(), id));
        let (mut has_members, mut last) = (false, None);
        for seen in self.world.seen(node, name) {
            match seen {
                Seen::Renewed => (has_members, last) = (false, None),
                Seen::Joined => has_members = true,
                Seen::Begun {
                    before,
                    position,
                    texts,
                    has_gap,
                } => {
                    assert!(
                        !has_members || has_gap,
                        "node {node}: hidden gap before {position}"
                    );
                    if let (Some(before), true) = (before, has_gap) {
                        self.check_gap(name, before, position);
                    }
                    let first = position.sequence() + 1 - texts.len() as u64;
                    for (sequence, text) in (first..).zip(&texts) {
                        let id = HistoryId::new(position.epoch(), sequence);
                        assert_eq!(text_at(id), Some(text), "{id} of {name}");
                    }
                    last = Some(position);
                }
                Seen::Kept { id, text } => {
                    let follows = last.is_none_or(|last: HistoryId| {
                        id == HistoryId::new(last.epoch(), last.sequence() + 1)
                    });
                    assert!(follows, "node {node}: {id} of {name} after {last:?}");
                    assert_eq!(text_at(id), Some(&text), "{id} of {name}");
                    last = Some(id);
                }
            }
        }
    }

    /// A gap has a cause: messages after the last one are no longer kept, or another epoch has begun.
    fn check_gap(&self, name: &str, before: HistoryId, position: HistoryId) {
        if before.epoch() == position.epoch() {
            let (now, kept) = self
                .world
                .stored(name)
                .kept(name)
                .unwrap_or((before, Vec::new()));
            let is_kept = now.epoch() == before.epoch()
                && before.sequence() + kept.len() as u64 >= now.sequence();
            assert!(
                !is_kept && position.sequence() > before.sequence(),
                "gap of {name} from {before} to {position} without a cause"
            );
        }
    }

    /// In the end, a copy equals the history of the broker, and its room can be joined.
    fn check_copy(&self, node: usize, at: usize, messages_max: usize) {
        let name = KEPT[at].0;
        let Some(needed) = &self.needed[node][at] else {
            return;
        };
        let waited = self.world.settled(node, &needed.interest);
        assert!(needed.has_members, "node {node} can't join {name}");
        assert_eq!(waited, Some(Waited::Subscribed), "node {node}: {name}");
        let copy = self.world.copy(node, name).expect("it is needed");
        let (position, kept) = self.world.stored(name).kept(name).expect("it has begun");
        assert_eq!(copy.position, position, "node {node}: {name}");
        // A copy may contain messages that the broker no longer keeps.
        let texts: Vec<_> = copy.texts.into_iter().collect();
        assert!(texts.ends_with(&kept), "{texts:?} {kept:?}");
        assert!(texts.len() <= messages_max);
    }

    fn check_outcome(&self, sent: &Sent, faulty: bool) {
        let Some(outcome) = &sent.outcome else {
            return;
        };
        let done = &self.world.stored(sent.room).done;
        let is_appended = done.appended.contains_key(&sent.text);
        match outcome.try_recv() {
            Ok(AppendOutcome::Id(id)) => {
                let text = done.texts.get(&(sent.room.into(), id));
                assert_eq!(text, Some(&sent.text), "{id} of {}", sent.room);
                if let Some(expected) = sent.expected {
                    let is_next = id == HistoryId::new(expected.epoch(), expected.sequence() + 1);
                    assert!(is_next, "{id} was appended at {expected}");
                }
            }
            Ok(AppendOutcome::Conflict { .. }) => {
                assert!(sent.expected.is_some());
                assert!(!is_appended, "{} is said to be in conflict", sent.text);
            }
            Ok(AppendOutcome::Refused) => {
                assert!(!is_appended, "{} is said to be refused", sent.text)
            }
            Err(TryRecvError::Disconnected) => assert!(faulty, "the outcome of {}", sent.text),
            Err(TryRecvError::Empty) => panic!("a thread waits forever for {}", sent.text),
        }
    }

    /// No message arrives twice at a node, and those of a node arrive in their order.
    fn check_order(&self, node: usize) {
        let mut last: HashMap<(String, String), usize> = HashMap::new();
        let mut arrived = |name: &str, text: &str| {
            let mut parts = text.split(':');
            let from = parts.next().unwrap().to_owned();
            let number: usize = parts.next().unwrap().parse().unwrap();
            let before = last.insert((name.to_owned(), from), number);
            assert!(
                before.unwrap_or(0) < number,
                "node {node}: {number} in {name} after {before:?}, flushed: {}",
                self.has_flushed
            );
        };
        for line in self.world.delivered(node) {
            let (name, text) = line.split_once(' ').unwrap();
            assert!(!text.starts_with(&format!("{node}:")), "its own came back");
            arrived(name, text);
        }
        for (name, _) in KEPT {
            let appended = &self.world.stored(name).done.appended;
            let repeated: HashSet<_> = appended
                .iter()
                .filter(|(_, times)| **times > 1)
                .map(|(text, _)| text.split(':').next())
                .collect();
            let mut times: HashMap<String, usize> = HashMap::new();
            for seen in self.world.seen(node, name) {
                let Seen::Kept { text, .. } = seen else {
                    continue;
                };
                if !repeated.contains(&text.split(':').next()) {
                    arrived(name, &text);
                }
                let times = times.entry(text.clone()).or_default();
                *times += 1;
                assert!(
                    *times <= appended[&text],
                    "node {node}: {text} arrives again"
                );
            }
        }
    }

    /// Each gap is counted by its cause.
    fn check_gaps(&self, node: usize) {
        let (mut lost, mut changed) = (0, 0);
        for (name, _) in KEPT {
            let epochs = &self.world.stored(name).done.epochs;
            for seen in self.world.seen(node, name) {
                let Seen::Begun {
                    before: Some(before),
                    position,
                    has_gap: true,
                    ..
                } = seen
                else {
                    continue;
                };
                match epochs[&before.epoch()] == epochs[&position.epoch()] {
                    true => lost += 1,
                    false => changed += 1,
                }
            }
        }
        let counters = self.world.counters(node);
        let (gaps, server_changed) = (counters.gaps.get(), counters.gaps_server_changed.get());
        assert_eq!(gaps + server_changed, self.world.gaps_told(node));
        // Others concern rooms that were no longer needed.
        assert!(lost <= gaps, "node {node}: {lost} of {gaps}");
        assert!(
            changed <= server_changed,
            "node {node}: {changed} of {server_changed}"
        );
        if !has_changed(&self.world) {
            assert_eq!(server_changed, 0);
        }
    }

    /// Each message was executed by the broker, or is counted.
    fn check_counts(&self, node: usize, faulty: bool) {
        let counters = self.world.counters(node);
        let (mut executed, mut not_told) = (0, 0);
        for stored in self.world.all_stored() {
            let of_node = |&&(by, _): &&(u32, u64)| by == node as u32;
            executed += stored.done.executed.iter().filter(of_node).count() as u64;
            executed += stored.done.published.get(&(node as u32)).unwrap_or(&0);
            not_told += stored
                .done
                .before_after_refusal
                .iter()
                .filter(of_node)
                .count() as u64;
        }
        let confirmed = counters.confirmed.get();
        let unconfirmed = counters.unconfirmed.get();
        let dropped = counters.dropped_broker.get();
        let sent = self.sent_by[node];
        assert_eq!(confirmed + unconfirmed + dropped, sent, "node {node}");
        assert!(
            confirmed <= executed + not_told,
            "node {node}: {confirmed} > {executed}"
        );
        let most = confirmed + unconfirmed;
        assert!(
            executed <= most,
            "node {node}: {executed} > {confirmed} + {unconfirmed}"
        );
        assert_eq!(counters.bad_envelopes.get(), 0);
        if !faulty {
            assert_eq!((unconfirmed, dropped), (0, 0), "node {node}");
        }
    }
}

/// Whether histories began in more than one life of a server.
fn has_changed(world: &World) -> bool {
    world.all_stored().any(|stored| {
        let incarnations: HashSet<_> = stored.done.epochs.values().collect();
        incarnations.len() > 1
    })
}
