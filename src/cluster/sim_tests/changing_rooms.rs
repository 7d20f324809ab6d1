//! A game in which nodes need and no longer need rooms while messages flow.
//!
//! Oracle: if a node is subscribed to a room when a message to it is published, and nothing changes that until everything has
//! settled, and the publisher's connection lasts, then the message is delivered. Messages are never delivered twice or out of
//! order; and as long as no connection breaks, none counts as missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::world::{Dice, World, room};
use crate::cluster::interest::{Interest, Waited};

const NODES: usize = 3;
const ROOMS: [&str; 4] = ["a", "b", "c", "d"];

/// A message that has not settled.
struct Sent {
    number: usize,
    by: usize,
    room: usize,
    /// The number of connections that each node had lost.
    losses: [usize; NODES],
    /// For each node that was subscribed: its period.
    subscribed: [Option<usize>; NODES],
}

struct Game {
    world: World,
    /// Set while the room is needed.
    needed: [[Option<Arc<Interest>>; ROOMS.len()]; NODES],
    /// Increases when a node's need of a room ends.
    periods: [[usize; ROOMS.len()]; NODES],
    sent: usize,
    unsettled: Vec<Sent>,
    seed: u64,
}

pub(super) fn game(seed: u64) {
    let mut dice = Dice::new(!seed);
    let servers = 1 + dice.roll(2);
    let mut game = Game {
        world: World::new(NODES, servers),
        needed: Default::default(),
        periods: Default::default(),
        sent: 0,
        unsettled: Vec::new(),
        seed,
    };
    let faulty = dice.roll(3) != 0;
    game.world.settle();
    for _ in 0..300 + dice.roll(300) {
        game.step(&mut dice, faulty, servers);
    }
    game.settle();
    game.check(faulty);
}

impl Game {
    fn step(&mut self, dice: &mut Dice, faulty: bool, servers: usize) {
        let (node, at) = (dice.roll(NODES), dice.roll(ROOMS.len()));
        match dice.roll(if faulty { 14 } else { 12 }) {
            0..4 => self.publish(node, at),
            4 => match &self.needed[node][at] {
                Some(_) => self.unneed(node, at),
                // Sooner or later than the linger time.
                None => self.need(node, at),
            },
            5 => {
                // The room is retired, and made again at once.
                if self.needed[node][at].is_some() {
                    self.need(node, at);
                }
            }
            6 => self.world.turn(node),
            7 => drop(self.world.execute(node, 1 + dice.roll(3))),
            8 => drop(self.world.receive(node, 1 + dice.roll(3))),
            9 => {
                let steps = 1 + dice.roll(80) as u64;
                self.world.run_for(Duration::from_millis(10 * steps));
            }
            10 => self.world.fill_mailbox(node, dice.roll(2) == 0),
            11 => self.settle(),
            12 => {
                self.world.cut(node, dice.roll(servers));
            }
            _ => match dice.roll(3) {
                0 => {
                    self.world.restart(dice.roll(servers));
                }
                1 => {
                    let server = dice.roll(servers);
                    self.world.refuse_subscriptions(server, true);
                    self.world.run_for(Duration::from_millis(300));
                    self.world.refuse_subscriptions(server, false);
                }
                _ => {
                    let server = dice.roll(servers);
                    self.world.freeze(server);
                    self.world.run_for(Duration::from_millis(900));
                    self.world.thaw(server);
                }
            },
        }
    }

    fn need(&mut self, node: usize, at: usize) {
        self.needed[node][at] = Some(self.world.need(node, ROOMS[at]));
    }

    fn unneed(&mut self, node: usize, at: usize) {
        self.needed[node][at] = None;
        self.periods[node][at] += 1;
        self.world.unneed(node, ROOMS[at]);
    }

    fn publish(&mut self, by: usize, at: usize) {
        self.sent += 1;
        let text = format!("{by}:{}", self.sent);
        assert!(self.world.publish(by, room(ROOMS[at]), &text));
        let period = |node: usize| {
            let interest = self.needed[node][at].as_ref()?;
            let is_live = self.world.waited(node, interest) == Waited::Subscribed;
            (is_live && node != by).then(|| self.periods[node][at])
        };
        self.unsettled.push(Sent {
            number: self.sent,
            by,
            room: at,
            losses: std::array::from_fn(|node| self.world.losses(node)),
            subscribed: std::array::from_fn(period),
        });
    }

    /// Lets everything that is on its way arrive. What had to be delivered was.
    fn settle(&mut self) {
        for node in 0..NODES {
            self.world.fill_mailbox(node, false);
        }
        self.world.run_for(Duration::from_millis(50));
        self.world.settle();
        for node in 0..NODES {
            let delivered = self.world.delivered(node);
            for sent in &self.unsettled {
                let keeps = |node: usize| self.world.losses(node) == sent.losses[node];
                let lasted = keeps(sent.by)
                    && keeps(node)
                    && sent.subscribed[node] == Some(self.periods[node][sent.room]);
                let line = format!("{} {}:{}", ROOMS[sent.room], sent.by, sent.number);
                assert!(
                    !lasted || delivered.contains(&line),
                    "seed {}: {line} is missing on node {node}",
                    self.seed
                );
            }
        }
        self.unsettled.clear();
    }

    fn check(&self, faulty: bool) {
        let seed = self.seed;
        for node in 0..NODES {
            let mut last: HashMap<(String, String), usize> = HashMap::new();
            let delivered = self.world.delivered(node);
            for line in &delivered {
                let (channel, text) = line.split_once(' ').unwrap();
                let (from, number) = text.split_once(':').unwrap();
                assert_ne!(from, node.to_string(), "seed {seed}: its own came back");
                let number: usize = number.parse().unwrap();
                let before = last.insert((channel.to_owned(), from.to_owned()), number);
                assert!(before.unwrap_or(0) < number, "seed {seed}: {line}");
            }
            let counters = self.world.counters(node);
            assert_eq!(
                counters.received.get(),
                delivered.len() as u64,
                "seed {seed}"
            );
            if !faulty {
                assert_eq!(counters.missed_remote.get(), 0, "seed {seed}: node {node}");
                assert_eq!(counters.unconfirmed.get(), 0, "seed {seed}");
            }
        }
    }
}
