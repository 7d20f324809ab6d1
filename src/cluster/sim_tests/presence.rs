//! A game in which users join and leave rooms on several nodes, reload, and lose their nodes.
//!
//! Oracle: the set of users whose connections are open, on the nodes that are there. As soon as nothing has happened for some time,
//! each node that needs a room knows exactly this set, with the states that were set last; so does a client that was told all
//! changes. The users of a node that has died are gone after four seconds. The room handler is told of each user once: joined and
//! left alternate, a reload is neither, and in the end it knows the users of its node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::world::{Dice, World};
use crate::presence::{ConnectionKey, Fact, Member, PresenceTable};

const NODES: usize = 3;
const ROOMS: [&str; 2] = ["a", "b"];
const USERS: [&str; 5] = ["Ada", "Bob", "Cy", "Dan", "Eve"];
const GRACE: Duration = Duration::from_secs(2);
/// After this time without events, everything was told: a lost message is noticed after five seconds.
const SETTLED: Duration = Duration::from_secs(9);
/// How long the users of a node that has died may be believed to be there.
const GONE_AFTER: Duration = Duration::from_secs(4);

/// A connection: the room, the user and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Connection {
    room: usize,
    user: usize,
    number: usize,
}

impl Connection {
    fn key(&self) -> ConnectionKey {
        ConnectionKey {
            node: 0,
            shard: 0,
            slot: self.number as u32,
            generation: 0,
        }
    }
}

struct SimNode {
    table: PresenceTable<Connection>,
    connections: BTreeSet<Connection>,
    /// What the room handler was told.
    announced: BTreeSet<(usize, usize)>,
    /// What a client knows that was told all changes of a room.
    told: [BTreeMap<Member, Fact>; ROOMS.len()],
    is_needed: [bool; ROOMS.len()],
    is_dead: bool,
}

struct Game {
    world: World,
    nodes: Vec<SimNode>,
    /// The last state of each user in each room, if all nodes had the time to learn it, and the user has been there since.
    states: HashMap<(usize, usize), String>,
    /// Whether clients can't be told anything.
    is_full: bool,
    connections: usize,
    time: u64,
    seed: u64,
}

pub(super) fn game(seed: u64) {
    let mut dice = Dice::new(seed ^ 0x7072_6573);
    let servers = 1 + dice.roll(2);
    let node = |number: usize| SimNode {
        table: PresenceTable::new(true, Some(number as u32)),
        connections: BTreeSet::new(),
        announced: BTreeSet::new(),
        told: Default::default(),
        is_needed: [false; ROOMS.len()],
        is_dead: false,
    };
    let mut game = Game {
        world: World::new(NODES, servers),
        nodes: (0..NODES).map(node).collect(),
        states: HashMap::new(),
        is_full: false,
        connections: 0,
        time: 1,
        seed,
    };
    game.run_for(Duration::from_secs(1));
    let faulty = dice.roll(3) != 0;
    for _ in 0..60 + dice.roll(100) {
        game.step(&mut dice, faulty, servers);
    }
    game.run_for(SETTLED);
    game.check();
}

impl Game {
    fn step(&mut self, dice: &mut Dice, faulty: bool, servers: usize) {
        let node = dice.roll(NODES);
        match dice.roll(if faulty { 15 } else { 11 }) {
            0..3 => self.join(node, dice.roll(ROOMS.len()), dice.roll(USERS.len())),
            3..5 => self.leave_one(node, dice),
            5 | 6 => self.reload(node, dice),
            7 | 8 => self.set_state(node, dice),
            9 => self.run_for(Duration::from_millis(10 * (1 + dice.roll(100) as u64))),
            10 => match dice.roll(4) {
                0 => {
                    self.run_for(SETTLED);
                    self.check();
                }
                1 => {
                    self.is_full = true;
                    self.run_for(Duration::from_millis(10 * dice.roll(100) as u64));
                    self.is_full = false;
                }
                _ => {}
            },
            11 => self.world.cut(node, dice.roll(servers)),
            12 => match dice.roll(3) {
                0 => self.world.lose_message(node, dice.roll(servers)),
                1 => self.world.restart(dice.roll(servers)),
                _ => {
                    let server = dice.roll(servers);
                    self.world.freeze(server);
                    self.run_for(Duration::from_millis(900));
                    self.world.thaw(server);
                }
            },
            13 => self.freeze(node, dice),
            _ => {
                if dice.roll(6) == 0 {
                    self.kill(node, servers);
                }
            }
        }
    }

    fn join(&mut self, at: usize, room: usize, user: usize) {
        let now = self.world.now();
        let node = &mut self.nodes[at];
        if node.is_dead {
            return;
        }
        self.connections += 1;
        let connection = Connection {
            room,
            user,
            number: self.connections,
        };
        if !std::mem::replace(&mut node.is_needed[room], true) {
            node.table.needed(&name(room));
            node.table.watch(ROOMS[room]);
            node.told[room] = node
                .table
                .members(ROOMS[room])
                .into_iter()
                .collect::<BTreeMap<_, _>>();
            self.world.need(at, ROOMS[room]);
        }
        node.connections.insert(connection);
        let (member, key) = (member(user), connection.key());
        node.table
            .joined(&name(room), &member, key, &connection, now);
        self.announce(at, None);
    }

    fn leave(&mut self, at: usize, connection: Connection) {
        let now = self.world.now();
        let node = &mut self.nodes[at];
        let room = connection.room;
        node.connections.remove(&connection);
        let user = member(connection.user);
        let key = connection.key();
        node.table.left(&name(room), &user, &key, GRACE, now);
        if !node.connections.iter().any(|other| other.room == room) {
            node.is_needed[room] = false;
            node.table.unneeded(ROOMS[room]);
            self.world.unneed(at, ROOMS[room]);
        }
        let living = self.nodes.iter().filter(|node| !node.is_dead);
        let mut connections = living.flat_map(|node| &node.connections);
        let is_same = |other: &Connection| (other.room, other.user) == (room, connection.user);
        if !connections.any(is_same) {
            self.states.remove(&(room, connection.user));
        }
    }

    fn some_connection(&self, at: usize, dice: &mut Dice) -> Option<Connection> {
        let node = &self.nodes[at];
        let len = node.connections.len();
        if node.is_dead || len == 0 {
            return None;
        }
        node.connections.iter().nth(dice.roll(len)).copied()
    }

    fn leave_one(&mut self, at: usize, dice: &mut Dice) {
        if let Some(connection) = self.some_connection(at, dice) {
            self.leave(at, connection);
        }
    }

    /// A user reloads the page, and reaches the same node.
    fn reload(&mut self, at: usize, dice: &mut Dice) {
        let Some(connection) = self.some_connection(at, dice) else {
            return;
        };
        self.announce(at, None);
        self.leave(at, connection);
        self.run_for_except(
            Duration::from_millis(10 * dice.roll(150) as u64),
            (at, connection),
        );
        let before = self.nodes[at].announced.len();
        self.join(at, connection.room, connection.user);
        let seed = self.seed;
        assert_eq!(
            self.nodes[at].announced.len(),
            before,
            "seed {seed}: a reload"
        );
    }

    fn set_state(&mut self, at: usize, dice: &mut Dice) {
        let Some(connection) = self.some_connection(at, dice) else {
            return;
        };
        // Of two states that are set before the nodes know of each other's, any may win.
        let is_alone = dice.roll(3) == 0;
        if is_alone {
            self.run_for(SETTLED);
        }
        self.time += 1;
        let now = self.world.now();
        let Connection { room, user, .. } = connection;
        let state = format!("state {}", self.time);
        // The clocks of the nodes differ.
        let time = self.time + 5 * at as u64;
        let bytes = state.clone().into_bytes().into();
        let table = &mut self.nodes[at].table;
        assert!(table.set_state(&name(room), &member(user), bytes, time, now));
        self.states.remove(&(room, user));
        if is_alone {
            self.run_for(SETTLED);
            self.states.insert((room, user), state);
        }
    }

    /// A node stands still, for less or more time than others wait for it.
    fn freeze(&mut self, at: usize, dice: &mut Dice) {
        if self.nodes[at].is_dead {
            return;
        }
        self.world.stop_running(at);
        let millis = match dice.roll(20) {
            // The others forget it.
            0 => 130_000,
            _ => 500 * (1 + dice.roll(16) as u64),
        };
        self.run_frozen(Duration::from_millis(millis), at);
        self.world.run_again(at);
        self.turn(at);
    }

    fn kill(&mut self, at: usize, servers: usize) {
        if self.nodes.iter().filter(|node| !node.is_dead).count() == 1 {
            return;
        }
        self.run_for(SETTLED);
        self.nodes[at].is_dead = true;
        self.world.stall_reconnects(at);
        for server in 0..servers {
            self.world.cut(at, server);
        }
        self.world.stop_running(at);
        let living = self.nodes.iter().filter(|node| !node.is_dead);
        let connections = living.flat_map(|node| &node.connections);
        let here: BTreeSet<_> = connections.map(|of| (of.room, of.user)).collect();
        self.states.retain(|of, _| here.contains(of));
        self.run_for(GONE_AFTER);
        self.check();
    }

    fn run_for(&mut self, time: Duration) {
        self.run(time, None, None);
    }

    /// Checks that the room handler is not told of this user meanwhile.
    fn run_for_except(&mut self, time: Duration, reloads: (usize, Connection)) {
        self.run(time, None, Some(reloads));
    }

    fn run_frozen(&mut self, time: Duration, frozen: usize) {
        self.run(time, Some(frozen), None);
    }

    fn run(&mut self, time: Duration, frozen: Option<usize>, reloads: Option<(usize, Connection)>) {
        let until = self.world.now() + time;
        while self.world.now() < until {
            self.world.run_for(Duration::from_millis(10));
            for at in 0..NODES {
                if !self.nodes[at].is_dead && Some(at) != frozen {
                    let reloads = reloads.filter(|&(node, _)| node == at);
                    self.turn(at);
                    self.announce(at, reloads.map(|(_, connection)| connection));
                }
            }
        }
    }

    /// One turn of the thread that tells changes.
    fn turn(&mut self, at: usize) {
        let now = self.world.now();
        for heard in self.world.take_presence(at) {
            let heard = heard.event().decode().unwrap();
            let table = &mut self.nodes[at].table;
            if let Some(heard) = heard {
                table.on_heard(heard, now).unwrap();
            }
        }
        let is_up = |room: &Arc<str>| self.world.is_up(at, room);
        // Several parts.
        let bytes_max = 10 + 10 * (self.seed % 5) as usize;
        let flush = self.nodes[at].table.flush(now, bytes_max, is_up);
        for of in flush.nodes_to_ask {
            self.world.ask_for_presence(at, of);
        }
        for flush in flush.rooms {
            for update in &flush.updates {
                if !self.world.tell_presence(at, &flush.room, update) {
                    self.nodes[at].table.not_published(&flush.room, now);
                    break;
                }
            }
            let room = ROOMS.iter().position(|name| **name == *flush.room).unwrap();
            if self.is_full {
                // The mailboxes of the clients take nothing.
                let members = flush.changes.into_iter().map(|(member, _)| member);
                self.nodes[at].table.not_told(&flush.room, members, now);
                continue;
            }
            let told = &mut self.nodes[at].told[room];
            for (member, fact) in flush.changes {
                match fact {
                    Some(fact) => told.insert(member, fact),
                    None => told.remove(&member),
                };
            }
        }
        self.nodes[at].table.take_dropped();
        let due = self.nodes[at].table.next_due();
        assert!(due.is_none_or(|due| due > now), "seed {}: due", self.seed);
    }

    /// Tells the room handler what has changed.
    fn announce(&mut self, at: usize, reloads: Option<Connection>) {
        let seed = self.seed;
        let node = &mut self.nodes[at];
        while let Some(announced) = node.table.next_announced() {
            let Connection { room, user, .. } = announced.connection;
            assert_eq!(*announced.room, *ROOMS[room], "seed {seed}");
            let of_reload = reloads.is_some_and(|of| (of.room, of.user) == (room, user));
            assert!(!of_reload, "seed {seed}: a reload was announced");
            let is_new = match announced.has_joined {
                true => node.announced.insert((room, user)),
                false => node.announced.remove(&(room, user)),
            };
            assert!(is_new, "seed {seed}: {announced:?} twice");
        }
    }

    /// The members of a room as they are, and the number of their connections.
    fn expected(&self, room: usize) -> BTreeMap<Member, u32> {
        let living = self.nodes.iter().filter(|node| !node.is_dead);
        let connections = living.flat_map(|node| &node.connections);
        let mut expected = BTreeMap::new();
        for connection in connections.filter(|of| of.room == room) {
            *expected.entry(member(connection.user)).or_default() += 1;
        }
        expected
    }

    /// All nodes know the same state, which is the last one if it had the time to arrive.
    fn check_states(&self, room: usize, views: &[BTreeMap<Member, Fact>]) {
        for view in views {
            assert_eq!(view, &views[0], "seed {}", self.seed);
            for (user, _) in USERS.iter().enumerate() {
                if let Some(state) = self.states.get(&(room, user)) {
                    assert_eq!(
                        *view[&member(user)].state,
                        *state.as_bytes(),
                        "seed {}",
                        self.seed
                    );
                }
            }
        }
    }

    fn check(&self) {
        let seed = self.seed;
        let mut views: [Vec<BTreeMap<Member, Fact>>; ROOMS.len()] = Default::default();
        for (at, node) in self.nodes.iter().enumerate() {
            if node.is_dead {
                continue;
            }
            for (room, name) in ROOMS.into_iter().enumerate() {
                let users = |connection: &&Connection| connection.room == room;
                let here: BTreeSet<_> = node.connections.iter().filter(users).collect();
                let here: BTreeSet<_> = here.into_iter().map(|of| (room, of.user)).collect();
                let announced = node.announced.iter().filter(|of| of.0 == room);
                assert_eq!(
                    announced.copied().collect::<BTreeSet<_>>(),
                    here,
                    "seed {seed}"
                );
                if !node.is_needed[room] {
                    continue;
                }
                let of = || format!("seed {seed}: {name} on node {at}");
                let is: BTreeMap<_, _> = node.table.members(name).into_iter().collect();
                let connections = is
                    .iter()
                    .map(|(member, fact)| (member.clone(), fact.connections));
                let connections: BTreeMap<_, _> = connections.collect();
                assert_eq!(connections, self.expected(room), "{}", of());
                assert_eq!(node.told[room], is, "{}: told", of());
                views[room].push(is);
            }
        }
        for (room, views) in views.iter().enumerate() {
            self.check_states(room, views);
        }
    }
}

fn name(room: usize) -> Arc<str> {
    ROOMS[room].into()
}

fn member(user: usize) -> Member {
    Member::User(USERS[user].into())
}
