//! A randomised test of shared compression: clients join, leave, are excepted, read slowly and send pings at random, and
//! must receive the messages sent to them in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Inflaters, Player};
use crate::compression::Compression;
use crate::engine::hub::Destination;
use crate::engine::model::room::SharedRoom;
use crate::engine::sim_tests::wire::{Frame, UPGRADE, client_frame};
use crate::engine::sim_tests::world::{Setup, Told, World, send};
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

pub(super) const ROOMS: usize = 4;
const PLAYERS_MAX: usize = 8;
const STEPS: usize = 250;

const OFFERS: [&str; 6] = [
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate",
    "permessage-deflate; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=15",
    "permessage-deflate; server_max_window_bits=14",
    "permessage-deflate; server_max_window_bits=9",
];

/// A simulated world with rooms, and clients of which some negotiate compression.
pub(super) struct CompressionGame {
    pub(super) world: World,
    pub(super) dice: Dice,
    pub(super) rooms: Vec<Arc<SharedRoom>>,
    pub(super) players: Vec<Player>,
    sent: usize,
    policy: SlowConsumer,
}

impl CompressionGame {
    pub(super) fn new(mut dice: Dice) -> Self {
        let policy = match dice.below(6) {
            0 => SlowConsumer::DropNewest,
            1 => SlowConsumer::DropOldest,
            2 => SlowConsumer::SkipAhead,
            _ => SlowConsumer::Disconnect,
        };
        Self::with_policy(dice, policy)
    }

    pub(super) fn with_policy(mut dice: Dice, policy: SlowConsumer) -> Self {
        let outbox_bytes_max = match policy {
            // Large enough that no client is disconnected as slow.
            SlowConsumer::Disconnect => 64 << 20,
            _ => 500 + dice.below(8_000),
        };
        let world = World::new(Setup {
            limits: Limits {
                outbox_bytes_max,
                write_timeout: Duration::from_secs(1_000),
                ..Limits::default()
            },
            slow_consumer: policy,
            compression: Some(Compression::new()),
            handler: Box::new(|hub, session, told| {
                if let Told::Message(payload) = told {
                    send(hub, session, payload);
                }
            }),
            ..Setup::default()
        });
        let rooms = world.new_rooms(ROOMS);
        Self {
            world,
            dice,
            rooms,
            players: Vec::new(),
            sent: 0,
            policy,
        }
    }

    fn play_to_the_end(mut self) {
        for _ in 0..STEPS {
            if self.dice.is_used_up() {
                break;
            }
            self.step();
        }
        self.finish();
    }

    /// Creates a message of a feed, which resembles the previous ones. One in ten ends in random characters, which do not
    /// compress.
    pub(super) fn payload(&mut self) -> String {
        self.sent += 1;
        let n = self.sent;
        let filler = match self.dice.below(12) {
            0 => 0,
            1 => 2_000,
            2 if self.policy == SlowConsumer::Disconnect => 20_000,
            _ => self.dice.below(120),
        };
        let words = ["bid", "ask", "volume", "{\"price\":", "EUR/USD", "é", ","];
        let mut payload = format!("{n}:{{\"type\":\"tick\"");
        if self.dice.one_in(10) {
            let noise = (0..80).map(|_| char::from(b' ' + self.dice.below(95) as u8));
            payload.extend(noise);
            return payload;
        }
        while payload.len() < filler {
            payload += words[self.dice.below(words.len())];
            payload += &self.dice.below(1_000).to_string();
        }
        payload
    }

    fn pick(&mut self) -> Option<usize> {
        (!self.players.is_empty()).then(|| self.dice.below(self.players.len()))
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0..3 if self.players.len() < PLAYERS_MAX => self.connect(),
            3..8 => self.join(),
            8 => self.leave(),
            9 => self.leave_and_rejoin(),
            10..24 => self.publish(),
            24..27 => self.send(),
            27..29 => self.world.advance_ms(10),
            29 => self.world.turn(),
            30..33 => {
                if let Some(player) = self.pick() {
                    let room = self.dice.below(2_000);
                    self.world.pipe(self.players[player].client).add_room(room);
                }
            }
            33 => {
                if let Some(player) = self.pick() {
                    let room = self.dice.below(300);
                    self.world.stall(self.players[player].client, room);
                }
            }
            34 => {
                if let Some(player) = self.pick() {
                    self.world.unstall(self.players[player].client);
                }
            }
            35..37 => {
                if let Some(player) = self.pick() {
                    let client = self.players[player].client;
                    self.world.client_sends(client, client_frame(0x89, b"ping"));
                }
            }
            _ => self.read(),
        }
        if self.dice.one_in(3) {
            self.world.settle();
        }
    }

    pub(super) fn connect(&mut self) {
        let client = self.world.connect();
        let offer = self.dice.below(OFFERS.len() + 1);
        let offer = OFFERS.get(offer).copied();
        let head = String::from_utf8(UPGRADE.to_vec()).unwrap();
        let head = match offer {
            Some(offer) => head.replace(
                "\r\n\r\n",
                &format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n"),
            ),
            None => head,
        };
        self.world.client_sends(client, head);
        self.world.run_handlers();
        let answer = self.world.head(client);
        assert_eq!(answer.contains("permessage-deflate"), offer.is_some());
        self.players.push(Player {
            client,
            inflaters: offer.map(|_| Inflaters::for_response(&answer)),
            can_follow: offer.is_some()
                && !answer.contains("server_no_context_takeover")
                && !["bits=9", "bits=14"]
                    .iter()
                    .any(|small| answer.contains(small)),
            rest: Vec::new(),
            due: Vec::new(),
            got: Vec::new(),
            rooms: BTreeSet::new(),
        });
    }

    /// Connects clients until this many have the property. Clients without it stay connected, but are no players.
    pub(super) fn connect_until(&mut self, count: usize, property: impl Fn(&Player) -> bool) {
        while self.players.len() < count {
            self.connect();
            self.players.retain(&property);
        }
    }

    /// Broadcasts a message to every client.
    pub(super) fn broadcast(&mut self, payload: &str) {
        self.world.broadcasts(payload);
        self.world.settle();
        for player in &mut self.players {
            player.due.push(payload.to_owned());
        }
    }

    /// Makes a member leave its room and join it again within an epoch of the room.
    fn leave_and_rejoin(&mut self) {
        let Some(index) = self.pick() else { return };
        let Some(&room) = self.players[index].rooms.first() else {
            return;
        };
        self.publish_to(room, None);
        self.world.settle();
        self.leave_room(index, room);
        self.publish_to(room, None);
        self.join_room(index, room);
        self.publish_to(room, None);
    }

    fn join(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        self.join_room(index, room);
    }

    pub(super) fn join_room(&mut self, index: usize, room: usize) {
        let session = self.world.session(self.players[index].client);
        let replay: Vec<String> = (0..self.dice.below(3)).map(|_| self.payload()).collect();
        let frames: Vec<_> = replay
            .iter()
            .map(|payload| Message::new(payload).frame().clone())
            .collect();
        let bytes = frames.iter().map(|frame| frame.len()).sum();
        let hub = &self.world.hub;
        let reserved = hub.reserve_join(&session, frames.len(), bytes).unwrap();
        let is_new = hub.join(
            reserved,
            &self.rooms[room],
            &session,
            frames.into_iter().collect(),
        );
        if is_new.unwrap() {
            self.players[index].due.extend(replay);
            self.players[index].rooms.insert(room);
        }
    }

    fn leave(&mut self) {
        let Some(index) = self.pick() else { return };
        let room = self.dice.below(ROOMS);
        self.leave_room(index, room);
    }

    pub(super) fn leave_room(&mut self, index: usize, room: usize) {
        let session = self.world.session(self.players[index].client);
        self.world.hub.leave(&self.rooms[room], &session).unwrap();
        self.players[index].rooms.remove(&room);
    }

    fn publish(&mut self) {
        let room = self.dice.below(ROOMS + 1);
        let except = self.dice.one_in(5).then(|| self.pick()).flatten();
        self.publish_to(room, except);
    }

    pub(super) fn publish_to(&mut self, room: usize, except: Option<usize>) {
        for _ in 0..=self.dice.below(20) {
            let payload = self.payload();
            let to = Destination {
                room: self.rooms.get(room),
                except: except.map(|player| self.world.id(self.players[player].client)),
                ..Destination::default()
            };
            let frame = Message::new(&payload).frame().clone();
            self.world.hub.try_broadcast(&frame, to).unwrap();
            for (index, player) in self.players.iter_mut().enumerate() {
                if (room >= ROOMS || player.rooms.contains(&room)) && except != Some(index) {
                    player.due.push(payload.clone());
                }
            }
        }
    }

    pub(super) fn send(&mut self) {
        let Some(index) = self.pick() else { return };
        let payload = self.payload();
        self.send_to(index, payload);
    }

    pub(super) fn send_to(&mut self, index: usize, payload: String) {
        let session = self.world.session(self.players[index].client);
        let frame = Message::new(&payload).frame().clone();
        let hub = &self.world.hub;
        let sent = match hub.compresses_reply(&frame) {
            true => hub.send_compressed(&session, frame, false),
            false => hub.send(session.id, frame, false),
        };
        sent.unwrap();
        self.players[index].due.push(payload);
    }

    pub(super) fn read(&mut self) {
        for player in &mut self.players {
            let output = self.world.output(player.client);
            player.rest.extend(output);
            let frames = player.take_frames();
            player
                .got
                .extend(frames.into_iter().filter_map(|frame| match frame {
                    Frame::Text(payload) => Some(payload),
                    Frame::Pong(_) => None,
                    other => panic!("{other:?}"),
                }));
        }
    }

    pub(super) fn finish(mut self) -> Vec<Player> {
        for player in 0..self.players.len() {
            self.world.unstall(self.players[player].client);
        }
        self.world.run_handlers();
        self.read();
        let mut missing = 0;
        for player in &self.players {
            assert!(player.rest.is_empty(), "the last frame is incomplete");
            if self.policy == SlowConsumer::Disconnect {
                assert_eq!(
                    player.got, player.due,
                    "a message is missing or out of order"
                );
            }
            // Other policies drop messages. The received ones must still be in order.
            let mut due = player.due.iter();
            for got in &player.got {
                assert!(
                    due.any(|due| due == got),
                    "{got} was not sent to the client, or is out of order"
                );
            }
            missing += player.due.len() - player.got.len();
        }
        let metrics = self.world.metrics();
        assert_eq!(metrics.dropped.slow_consumer, missing as u64);
        assert_eq!(metrics.protocol_errors, 0);
        for player in &self.players {
            self.world.pipe(player.client).client_resets();
        }
        self.world.run_handlers();
        self.world.assert_empty();
        self.players
    }
}

#[test]
fn clients_of_another_library_receive_what_was_sent() {
    for_seeds(200, |seed| {
        CompressionGame::new(Dice::from_seed(seed)).play_to_the_end()
    });
}
