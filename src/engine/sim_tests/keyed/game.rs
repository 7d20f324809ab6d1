//! A randomised test of keyed rooms: clients join, leave, read slowly and end at random, with and without compression, while messages
//! with and without a key are published. The program's order of events determines what each client may and must receive.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Board;
#[cfg(feature = "deflate")]
use crate::compression::Compression;
use crate::engine::parts::id::ConflationKey;
#[cfg(feature = "deflate")]
use crate::engine::sim_tests::compression::client::{self, Inflaters};
use crate::engine::sim_tests::wire::{Frame, UPGRADE};
use crate::engine::sim_tests::world::{Setup, World};
use crate::limits::{Limits, SlowConsumer};
use crate::metrics::Metrics;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

const ROOMS: usize = 3;
const KEYS: usize = 5;
const PLAYERS_MAX: usize = 7;
const STEPS: usize = 300;

#[cfg(feature = "deflate")]
const OFFERS: [Option<&str>; 4] = [
    None,
    Some("permessage-deflate"),
    Some("permessage-deflate; server_no_context_takeover"),
    Some("permessage-deflate; server_max_window_bits=9"),
];

/// A key of a room.
type RoomKey = (usize, u64);

struct KeyedPlayer {
    client: usize,
    #[cfg(feature = "deflate")]
    inflating: client::Player,
    /// The numbers of the messages that the client may receive, with the keys of those that have one, in the program's order.
    due: Vec<(usize, Option<RoomKey>)>,
    got: Vec<(usize, Option<RoomKey>)>,
    rooms: BTreeSet<usize>,
    /// The client has always read everything at once.
    is_quick: bool,
    /// The client has ended, or may have: what is due to it need not arrive.
    is_gone: bool,
    /// The program has closed the connection, after what was due.
    is_closed: bool,
}

struct KeyedGame {
    world: World,
    dice: Dice,
    boards: Vec<Board>,
    /// The numbers that the messages of the keys have now: a key that is removed gets another one.
    keys: HashMap<RoomKey, ConflationKey>,
    keys_ever: u64,
    players: Vec<KeyedPlayer>,
    sent: usize,
    policy: SlowConsumer,
}

/// Reads the number and the key of a message.
fn parse(text: &str) -> (usize, Option<RoomKey>) {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap();
    let n = next().parse().unwrap_or_else(|_| panic!("{text:?}"));
    let room = next().parse();
    let key = next().parse();
    (n, room.ok().zip(key.ok()))
}

impl KeyedGame {
    fn new(mut dice: Dice) -> Self {
        let policy = match dice.below(6) {
            0 => SlowConsumer::DropNewest,
            1 => SlowConsumer::DropOldest,
            2 => SlowConsumer::SkipAhead,
            3 => SlowConsumer::Pace {
                bytes_per_second_min: 0,
                patience: Duration::from_secs(1_000),
            },
            _ => SlowConsumer::Disconnect,
        };
        let world = World::new(Setup {
            limits: Limits {
                outbox_bytes_max: 300 + dice.below(8_000),
                write_timeout: Duration::from_secs(1_000),
                close_timeout: Duration::from_secs(1_000),
                ..Limits::default()
            },
            slow_consumer: policy,
            #[cfg(feature = "deflate")]
            compression: dice.one_in(2).then(Compression::new),
            ..Setup::default()
        });
        let boards = (0..ROOMS).map(|_| Board::new(&world.hub)).collect();
        Self {
            world,
            dice,
            boards,
            keys: HashMap::new(),
            keys_ever: 0,
            players: Vec::new(),
            sent: 0,
            policy,
        }
    }

    /// Plays to the end, and returns the metrics.
    fn play(mut self) -> Metrics {
        for _ in 0..STEPS {
            self.step();
        }
        self.finish()
    }

    /// Creates a message that resembles the previous ones: its number, the room, the key, and more.
    fn payload(&mut self, room: &str, key: &str) -> (usize, String) {
        self.sent += 1;
        let n = self.sent;
        let mut payload = format!("{n}:{room}:{key}:");
        let len = match self.dice.below(40) {
            0 => 20_000,
            1..5 => 0,
            _ => self.dice.below(150),
        };
        while payload.len() < len {
            payload += "EUR/USD 1.0";
            payload += &self.dice.below(1_000).to_string();
        }
        (n, payload)
    }

    fn pick(&mut self) -> Option<usize> {
        let here: Vec<usize> = (0..self.players.len())
            .filter(|&player| !self.players[player].is_gone && !self.players[player].is_closed)
            .collect();
        (!here.is_empty()).then(|| here[self.dice.below(here.len())])
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0..2 if self.players.len() < PLAYERS_MAX => self.connect(),
            2..7 => self.join(),
            7 => self.leave(),
            8..22 => {
                for _ in 0..=self.dice.below(4) {
                    self.publish();
                }
            }
            22..25 => self.send_without_key(),
            25 => self.remove_key(),
            26 => self.send_to_one(),
            27..31 => {
                if let Some(player) = self.pick() {
                    let room = self.dice.below(1_000);
                    self.world.pipe(self.players[player].client).add_room(room);
                }
            }
            31..33 => {
                if let Some(player) = self.pick() {
                    let room = self.dice.below(100);
                    self.world.stall(self.players[player].client, room);
                    self.players[player].is_quick = false;
                }
            }
            33 => {
                if let Some(player) = self.pick() {
                    self.world.unstall(self.players[player].client);
                }
            }
            34 => self.world.turn(),
            35 => self.world.advance_ms(10),
            36 if self.dice.one_in(4) => self.end(),
            37 if !self.world.jobs.is_empty() => {
                let job = self.dice.below(self.world.jobs.len());
                self.world.run_job(job);
            }
            _ => self.read(),
        }
        if self.dice.one_in(3) {
            self.world.settle();
        }
    }

    fn connect(&mut self) {
        let client = self.world.connect();
        let head = String::from_utf8(UPGRADE.to_vec()).unwrap();
        #[cfg(feature = "deflate")]
        let head = match OFFERS[self.dice.below(OFFERS.len())] {
            Some(offer) => head.replace(
                "\r\n\r\n",
                &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"),
            ),
            None => head,
        };
        if self.dice.one_in(4) {
            // As with TLS: what the socket refuses of a record is pending.
            self.world.pipe(client).pending_max = 1 + self.dice.below(500);
        }
        self.world.client_sends(client, head);
        self.world.run_handlers();
        let answer = self.world.head(client);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        self.players.push(KeyedPlayer {
            client,
            #[cfg(feature = "deflate")]
            inflating: client::Player {
                client,
                inflaters: answer
                    .contains("permessage-deflate")
                    .then(|| Inflaters::for_response(&answer)),
                can_follow: false,
                rest: Vec::new(),
                due: Vec::new(),
                got: Vec::new(),
                rooms: BTreeSet::new(),
            },
            due: Vec::new(),
            got: Vec::new(),
            rooms: BTreeSet::new(),
            is_quick: true,
            is_gone: false,
            is_closed: false,
        });
    }

    fn join(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        let session = self.world.session(self.players[index].client);
        let board = &self.boards[room];
        let joined = board.join(&self.world.hub, &session);
        let player = &mut self.players[index];
        match joined {
            Ok(is_new) => {
                assert_eq!(is_new, player.rooms.insert(room));
                if is_new {
                    let newest = board.newest.values();
                    let newest = newest.map(|message| parse(message.text().unwrap()));
                    player.due.extend(newest);
                }
            }
            // The policy has disconnected it.
            Err(_) => player.is_gone = true,
        }
    }

    fn leave(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        let session = self.world.session(self.players[index].client);
        let left = self.world.hub.leave(&self.boards[room].room, &session);
        let was_member = self.players[index].rooms.remove(&room);
        self.players[index].is_gone |= left.unwrap() != was_member;
    }

    fn publish(&mut self) {
        let (room, key) = (self.dice.below(ROOMS), self.dice.below(KEYS) as u64);
        let (n, text) = self.payload(&room.to_string(), &key.to_string());
        let number = self.keys.entry((room, key)).or_insert_with(|| {
            self.keys_ever += 1;
            ConflationKey::new(self.keys_ever)
        });
        let board = &mut self.boards[room];
        board.publish(&self.world.hub, *number, &text).unwrap();
        self.note_due(Some(room), n, Some((room, key)));
    }

    fn send_without_key(&mut self) {
        let (n, text) = self.payload("-", "-");
        // While producers are paced, a broadcast to everyone waits, and reaches clients that connect meanwhile.
        let is_paced = matches!(self.policy, SlowConsumer::Pace { .. });
        let room = self.dice.below(ROOMS + usize::from(!is_paced));
        match self.boards.get(room) {
            Some(board) => board.send(&self.world.hub, &text).unwrap(),
            None => self.world.broadcasts(&text),
        }
        self.note_due((room < ROOMS).then_some(room), n, None);
    }

    fn note_due(&mut self, room: Option<usize>, n: usize, key: Option<RoomKey>) {
        for player in &mut self.players {
            if !player.is_closed && room.is_none_or(|room| player.rooms.contains(&room)) {
                player.due.push((n, key));
            }
        }
    }

    /// Makes the program forget a key. What waits of it is still sent.
    fn remove_key(&mut self) {
        let (room, key) = (self.dice.below(ROOMS), self.dice.below(KEYS) as u64);
        if let Some(number) = self.keys.remove(&(room, key)) {
            self.boards[room].newest.remove(&number);
        }
    }

    /// Sends a message to one client.
    fn send_to_one(&mut self) {
        let Some(index) = self.pick() else { return };
        let (n, text) = self.payload("-", "-");
        let client = self.players[index].client;
        self.world.sends(client, &text);
        self.players[index].due.push((n, None));
    }

    fn end(&mut self) {
        let Some(index) = self.pick() else { return };
        let client = self.players[index].client;
        match self.dice.one_in(2) {
            true => {
                let _ = self.world.try_close(client, 4000, "");
                self.players[index].is_closed = true;
            }
            false => {
                self.world.pipe(client).client_resets();
                self.players[index].is_gone = true;
            }
        }
    }

    fn frames(&mut self, index: usize) -> Vec<Frame> {
        let client = self.players[index].client;
        #[cfg(feature = "deflate")]
        {
            let output = self.world.output(client);
            let inflating = &mut self.players[index].inflating;
            inflating.rest.extend(output);
            inflating.take_frames()
        }
        #[cfg(not(feature = "deflate"))]
        self.world.frames(client)
    }

    fn read(&mut self) {
        for index in 0..self.players.len() {
            for frame in self.frames(index) {
                let player = &mut self.players[index];
                match frame {
                    Frame::Text(text) => player.got.push(parse(&text)),
                    Frame::Close(Some(4000), _) => assert!(player.is_closed),
                    Frame::Close(Some(1013), _) => player.is_gone = true,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn finish(mut self) -> Metrics {
        for index in 0..self.players.len() {
            self.world.unstall(self.players[index].client);
        }
        self.world.run_handlers();
        self.read();
        let drops = !matches!(
            self.policy,
            SlowConsumer::Disconnect | SlowConsumer::Pace { .. }
        );
        for player in &self.players {
            check_order(player);
            if !player.is_gone {
                check_complete(player, drops);
            }
            if player.is_quick && !player.is_gone {
                assert_eq!(player.got, player.due);
            }
        }
        for index in 0..self.players.len() {
            self.world.client_resets(self.players[index].client);
        }
        self.world.assert_empty();
        self.world.metrics()
    }
}

/// Checks that messages of a key never become older, that the others keep their order, and that none of these precedes a message
/// with a key that was sent before it.
fn check_order(player: &KeyedPlayer) {
    let mut newest: HashMap<RoomKey, usize> = HashMap::new();
    let mut due = player.due.iter();
    for &(n, key) in &player.got {
        let is_due = player.due.contains(&(n, key));
        assert!(is_due, "{n} was not sent to the client");
        if let Some(key) = key {
            let former = newest.insert(key, n);
            assert!(former <= Some(n), "{n} of {key:?} after {former:?}");
            continue;
        }
        loop {
            let &(before, of) = due.next().expect("messages without a key keep their order");
            match of {
                None if before == n => break,
                // A policy may have dropped it.
                None => {}
                Some(of) => {
                    let got = newest.get(&of).copied();
                    assert!(got >= Some(before), "{n} precedes {before} of {of:?}");
                }
            }
        }
    }
}

/// Checks that a client has the newest message of each key that was sent to it, and all without a key unless some may be dropped.
fn check_complete(player: &KeyedPlayer, drops: bool) {
    let last = |messages: &[(usize, Option<RoomKey>)]| -> HashMap<RoomKey, usize> {
        let keyed = messages.iter().filter_map(|&(n, key)| Some((key?, n)));
        keyed.collect()
    };
    assert_eq!(last(&player.got), last(&player.due));
    let without_key = |messages: &[(usize, Option<RoomKey>)]| -> Vec<usize> {
        let others = messages.iter().filter(|(_, key)| key.is_none());
        others.map(|&(n, _)| n).collect()
    };
    if !drops {
        assert_eq!(without_key(&player.got), without_key(&player.due));
    }
}

#[test]
fn every_client_gets_the_newest_of_each_key_in_order() {
    let mut conflated = 0;
    let mut compressed = 0;
    for_seeds(200, |seed| {
        let metrics = KeyedGame::new(Dice::from_seed(seed)).play();
        conflated += metrics.conflated;
        compressed += metrics.compression.sent_bytes;
    });
    if std::env::var_os("SEED").is_none() {
        assert!(conflated > 1_000, "{conflated}");
        assert_eq!(compressed > 0, cfg!(feature = "deflate"));
    }
}
