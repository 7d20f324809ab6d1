//! Compressed audiences, with chance at play. Clients inflate with another library; what they read must be what was sent to
//! them, in order, however the members join, leave, are excepted, read slowly, and speak for themselves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::wire::{Frame, UPGRADE, client_frame, parse_frames};
use super::world::{Setup, Told, World, send};
use crate::compression::Compression;
use crate::engine::hub::Destination;
use crate::engine::model::room::SharedRoom;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::fuzz::dice::Dice;

const ROOMS: usize = 4;
const PLAYERS_MAX: usize = 8;
const STEPS: usize = 250;

const OFFERS: [&str; 6] = [
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate",
    "permessage-deflate; server_no_context_takeover",
    "permessage-deflate; server_max_window_bits=13",
    "permessage-deflate; server_max_window_bits=14",
    "permessage-deflate; server_max_window_bits=9",
];

struct CompressionPlayer {
    client: usize,
    /// None: it has agreed to nothing.
    inflater: Option<Box<InflateState>>,
    /// It keeps no more than the window that was agreed.
    window: Option<Inflate>,
    stateless: bool,
    can_follow: bool,
    /// Frames of which a part has come.
    rest: Vec<u8>,
    due: Vec<String>,
    got: Vec<String>,
    rooms: BTreeSet<usize>,
}

struct CompressionGame {
    world: World,
    dice: Dice,
    rooms: Vec<Arc<SharedRoom>>,
    players: Vec<CompressionPlayer>,
    sent: usize,
    policy: SlowConsumer,
}

impl CompressionGame {
    fn new(mut dice: Dice) -> Self {
        let policy = match dice.below(4) {
            0 => SlowConsumer::DropNewest,
            1 => SlowConsumer::DropOldest,
            _ => SlowConsumer::Disconnect,
        };
        Self::with_policy(dice, policy)
    }

    fn with_policy(mut dice: Dice, policy: SlowConsumer) -> Self {
        let outbox_bytes_max = match policy {
            // Nobody is slow.
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
        let rooms = (0..ROOMS)
            .map(|n| world.hub.new_room(n.to_string().into(), true))
            .collect();
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

    /// Like messages of a feed: each resembles those before it.
    fn payload(&mut self) -> String {
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
            // It can't be compressed.
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
            9 => self.step_out(),
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

    fn connect(&mut self) {
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
        self.players.push(CompressionPlayer {
            client,
            inflater: offer.map(|_| InflateState::new_boxed(DataFormat::Raw)),
            window: offer.map(|_| Inflate::new(false, window_bits(&answer))),
            can_follow: offer.is_some()
                && !answer.contains("server_no_context_takeover")
                && !answer.contains("bits=9"),
            stateless: answer.contains("server_no_context_takeover"),
            rest: Vec::new(),
            due: Vec::new(),
            got: Vec::new(),
            rooms: BTreeSet::new(),
        });
    }

    /// A member is away for a moment, within an epoch of its room.
    fn step_out(&mut self) {
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

    fn join_room(&mut self, index: usize, room: usize) {
        let session = self.world.session(self.players[index].client);
        let replay: Vec<String> = (0..self.dice.below(3)).map(|_| self.payload()).collect();
        let frames: Vec<_> = replay
            .iter()
            .map(|payload| Message::new(payload).frame().clone())
            .collect();
        let bytes = frames.iter().map(|frame| frame.len()).sum();
        let hub = &self.world.hub;
        let reserved = hub.reserve_join(&session, frames.len(), bytes).unwrap();
        let is_new = hub.join(reserved, &self.rooms[room], &session, frames);
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

    fn leave_room(&mut self, index: usize, room: usize) {
        let session = self.world.session(self.players[index].client);
        self.world.hub.leave(&self.rooms[room], &session).unwrap();
        self.players[index].rooms.remove(&room);
    }

    fn publish(&mut self) {
        let room = self.dice.below(ROOMS + 1);
        let except = self.dice.one_in(5).then(|| self.pick()).flatten();
        self.publish_to(room, except);
    }

    fn publish_to(&mut self, room: usize, except: Option<usize>) {
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

    fn send(&mut self) {
        let Some(index) = self.pick() else { return };
        let payload = self.payload();
        self.send_to(index, payload);
    }

    fn send_to(&mut self, index: usize, payload: String) {
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

    fn read(&mut self) {
        for player in &mut self.players {
            let output = self.world.output(player.client);
            player.rest.extend(output);
            let frames = inflated(player);
            player
                .got
                .extend(frames.into_iter().filter_map(|frame| match frame {
                    Frame::Text(payload) => Some(payload),
                    Frame::Pong(_) => None,
                    other => panic!("{other:?}"),
                }));
        }
    }

    fn finish(mut self) -> Vec<CompressionPlayer> {
        for player in 0..self.players.len() {
            self.world.unstall(self.players[player].client);
        }
        self.world.run_handlers();
        self.read();
        let mut missing = 0;
        for player in &self.players {
            assert!(player.rest.is_empty(), "half a frame");
            if self.policy == SlowConsumer::Disconnect {
                assert_eq!(player.got, player.due, "all that was due, in order");
            }
            // What is there was due, in that order.
            let mut due = player.due.iter();
            for got in &player.got {
                assert!(due.any(|due| due == got), "{got} was not due, or not there");
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

/// The whole frames that have come, compressed ones inflated.
fn inflated(player: &mut CompressionPlayer) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        // One by one: a compressed one is read here, any other by the letter of RFC 6455.
        let bytes = &player.rest;
        if bytes.first().is_none_or(|first| first & 0x40 == 0) {
            let Some(len) = frame_len(bytes) else {
                return frames;
            };
            let mut one: Vec<u8> = player.rest.drain(..len).collect();
            frames.extend(parse_frames(&mut one));
            continue;
        }
        assert_eq!(bytes[0], 0xC1, "a whole text message");
        let Some(len) = frame_len(bytes) else {
            return frames;
        };
        let frame: Vec<u8> = player.rest.drain(..len).collect();
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let state = player.inflater.as_mut().expect("it was agreed");
        if player.stateless {
            state.reset(DataFormat::Raw);
        }
        let input = [&frame[header..], &[0, 0, 0xFF, 0xFF]].concat();
        let mut out = vec![0; 32 << 10];
        let result = inflate(state, &input, &mut out, MZFlush::Sync);
        result.status.expect("a deflate stream");
        assert_eq!(result.bytes_consumed, input.len());
        out.truncate(result.bytes_written);
        let window = player.window.as_mut().expect("it was agreed");
        if player.stateless {
            window.reset(false);
        }
        assert_eq!(inflated_within(window, &input), out, "its window suffices");
        frames.push(Frame::Text(String::from_utf8(out).expect("text")));
    }
}

/// The bits of the window that a server has agreed to.
fn window_bits(answer: &str) -> u8 {
    let bits = answer.split_once("server_max_window_bits=");
    let digits = bits.map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.map_or(15, |digits| digits.unwrap().parse().unwrap())
}

/// Inflates a few bytes at a time, so that what is referred to must lie in the window.
fn inflated_within(window: &mut Inflate, mut input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut some = [0; 16];
        let (before_in, before_out) = (window.total_in(), window.total_out());
        let status = window.decompress(input, &mut some, InflateFlush::SyncFlush);
        assert!(
            matches!(status, Ok(Status::Ok | Status::BufError)),
            "{status:?} after {} bytes",
            out.len()
        );
        input = &input[(window.total_in() - before_in) as usize..];
        let written = (window.total_out() - before_out) as usize;
        out.extend_from_slice(&some[..written]);
        if input.is_empty() && written < some.len() {
            return out;
        }
    }
}

fn frame_len(bytes: &[u8]) -> Option<usize> {
    let len = match *bytes.get(1)? {
        126 => 4 + usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        127 => 10 + u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        len => 2 + usize::from(len),
    };
    (bytes.len() >= len).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fuzz::dice::for_seeds;

    #[test]
    fn clients_of_another_library_read_what_was_sent() {
        for_seeds(200, |seed| {
            CompressionGame::new(Dice::from_seed(seed)).play_to_the_end()
        });
    }

    #[test]
    fn replies_that_drop_oldest_drops_corrupt_no_stream() {
        let mut replies_dropped = 0;
        for_seeds(100, |seed| {
            let mut game =
                CompressionGame::with_policy(Dice::from_seed(seed), SlowConsumer::DropOldest);
            for _ in 0..3 {
                game.connect();
            }
            for index in 0..game.players.len() {
                game.join_room(index, 0);
            }
            for _ in 0..120 {
                // They read a little, so that the oldest messages are of each kind, and partly written.
                if game.dice.one_in(4) {
                    let index = game.dice.below(3);
                    let room = game.dice.below(1_500);
                    game.world.stall(game.players[index].client, room);
                }
                match game.dice.below(4) {
                    0 => {
                        let index = game.dice.below(3);
                        let begin = game.payload();
                        let words = "reply ".repeat(180 + game.dice.below(500));
                        game.send_to(index, format!("{begin}{words}"));
                    }
                    1 => game.send(),
                    _ => {
                        let room = game.dice.below(2) * ROOMS;
                        game.publish_to(room, None);
                    }
                }
                if game.dice.one_in(2) {
                    game.world.settle();
                }
                if game.dice.one_in(8) {
                    game.read();
                }
            }
            let due: usize = game.players.iter().map(|player| player.due.len()).sum();
            let replies = |payloads: &[String]| {
                let long = payloads
                    .iter()
                    .filter(|payload| payload.ends_with("reply "));
                long.count()
            };
            let replies_due: usize = game.players.iter().map(|player| replies(&player.due)).sum();
            assert!(due > replies_due);
            let players = game.finish();
            let replies_got: usize = players.iter().map(|player| replies(&player.got)).sum();
            replies_dropped += replies_due - replies_got;
        });
        assert!(replies_dropped > 0 || std::env::var_os("SEED").is_some());
    }

    #[test]
    fn single_follower_of_a_large_audience_gets_few_epochs() {
        let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
        game.world.joined(200);
        while game.players.is_empty() {
            game.connect();
            game.players.retain(|player| player.can_follow);
        }
        let follower = game.world.id(game.players[0].client);
        for n in 0..600 {
            let payload = format!(
                "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
            );
            // It is left out now and then, and must wait for the next epoch.
            let is_left_out = n % 20 == 0;
            let to = Destination {
                except: is_left_out.then_some(follower),
                ..Destination::default()
            };
            let frame = Message::new(&payload).frame().clone();
            game.world.hub.try_broadcast(&frame, to).unwrap();
            game.world.settle();
            if !is_left_out {
                game.players[0].due.push(payload);
            }
        }
        game.read();
        assert_eq!(game.players[0].got, game.players[0].due);
        // With one in 20 messages, it would be 30; the pauses double.
        let epochs = game.world.metrics().compression.epochs;
        assert!((2..=8).contains(&epochs), "{epochs}");
        game.world.run_handlers();
    }

    #[test]
    fn audience_whose_messages_do_not_shrink_gives_up() {
        let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
        while game.players.len() < 4 {
            game.connect();
            game.players.retain(|player| player.can_follow);
        }
        let noise = |game: &mut CompressionGame| -> String {
            let letters = (0..100).map(|_| char::from(b' ' + game.dice.below(95) as u8));
            letters.collect()
        };
        let tick = |n: usize| {
            format!(
                "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
            )
        };
        for n in 0..2_000 {
            let payload = match n {
                0..40 => tick(n),
                _ => noise(&mut game),
            };
            game.world.broadcasts(&payload);
            game.world.settle();
            for player in &mut game.players {
                player.due.push(payload.clone());
            }
        }
        game.read();
        let before = game.world.metrics().compression;
        // Each further epoch is one that began with a message that shrank by chance.
        assert!(before.epochs < 10, "{before:?}");
        // A new member is a new chance, after a few messages.
        game.connect();
        while !game.players.last().expect("just joined").can_follow {
            game.players.pop();
            game.connect();
        }
        for n in 0..200 {
            let payload = tick(n);
            game.world.broadcasts(&payload);
            game.world.settle();
            for player in &mut game.players {
                player.due.push(payload.clone());
            }
        }
        game.read();
        for player in &game.players {
            assert_eq!(player.got, player.due);
        }
        let compressed = game.world.metrics().compression.compressed - before.compressed;
        assert!(compressed > 150, "{compressed} of 200");
        game.world.run_handlers();
    }

    #[test]
    fn short_message_does_not_wait_for_long_ones() {
        const LONG: usize = 8 << 20;
        const ATTACKERS: usize = 8;
        let mut game = CompressionGame::with_policy(Dice::from_seed(3), SlowConsumer::Disconnect);
        while game.players.len() <= ATTACKERS {
            game.connect();
            game.players.retain(|player| player.inflater.is_some());
        }
        let send = |game: &mut CompressionGame, index: usize, len: usize| {
            let payload = miniz_oxide::deflate::compress_to_vec(&vec![b'a'; len], 9);
            let frame = client_frame(0xC1, &payload);
            game.world
                .pipe(game.players[index].client)
                .client_sends(&frame);
        };
        for index in 0..ATTACKERS {
            send(&mut game, index, LONG);
        }
        send(&mut game, ATTACKERS, 100_000);
        let inflated =
            |game: &CompressionGame| game.world.metrics().compression.inflated_bytes as usize;
        let mut turns = 0;
        while inflated(&game) % LONG == 0 {
            game.world.turn();
            turns += 1;
            assert!(turns < 10, "it waits for those before it");
        }
        assert_eq!(inflated(&game), 100_000);
        // The long ones are not starved either.
        while inflated(&game) < 100_000 + ATTACKERS * LONG {
            game.world.turn();
            turns += 1;
            assert!(turns < 10 + ATTACKERS * LONG / (200 << 10));
        }
    }

    #[test]
    fn room_of_followers_is_sent_a_third_of_the_bytes() {
        let mut game = CompressionGame::new(Dice::from_seed(3));
        while game.players.len() < 4 {
            game.connect();
            game.players.retain(|player| player.can_follow);
        }
        for n in 0..500 {
            let payload = format!(
                "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
            );
            game.world.broadcasts(&payload);
            game.world.settle();
            for player in &mut game.players {
                player.due.push(payload.clone());
            }
        }
        game.read();
        let metrics = game.world.metrics().compression;
        assert!(metrics.sent_bytes * 3 < metrics.plain_bytes, "{metrics:?}");
        game.world.run_handlers();
    }

    #[test]
    fn late_follower_gets_an_epoch_after_many_plain_messages() {
        let mut game = CompressionGame::new(Dice::from_seed(3));
        while game.players.len() < 2 {
            game.connect();
            game.players.retain(|player| player.can_follow);
        }
        // A room without members that can follow, beside connections that can.
        let plain = game.world.join();
        let session = game.world.session(plain);
        let hub = game.world.hub.clone();
        let reserved = hub.reserve_join(&session, 0, 0).unwrap();
        hub.join(reserved, &game.rooms[0], &session, Vec::new())
            .unwrap();
        for _ in 0..1_000 {
            game.publish_to(0, None);
            game.world.settle();
        }
        assert_eq!(game.world.metrics().compression.epochs, 0);
        game.join_room(0, 0);
        game.world.settle();
        let to = Destination {
            room: Some(&game.rooms[0]),
            ..Destination::default()
        };
        let frame = Message::new("x".repeat(100)).frame().clone();
        hub.try_broadcast(&frame, to).unwrap();
        game.world.settle();
        assert_eq!(game.world.metrics().compression.epochs, 1);
        game.world.run_handlers();
    }

    #[test]
    fn members_of_two_audiences_go_on_following_one() {
        let mut game = CompressionGame::new(Dice::from_seed(3));
        while game.players.len() < 4 {
            game.connect();
            game.players.retain(|player| player.can_follow);
        }
        for index in 0..4 {
            game.join_room(index, 0);
        }
        game.world.settle();
        for n in 0..500 {
            let payload = format!(
                "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
            );
            // Both in one turn.
            for room in [Some(&game.rooms[0]), None] {
                let to = Destination {
                    room,
                    ..Destination::default()
                };
                let frame = Message::new(&payload).frame().clone();
                game.world.hub.try_broadcast(&frame, to).unwrap();
            }
            game.world.settle();
        }
        game.read();
        let metrics = game.world.metrics();
        // All follow one of the two, and get a quarter of its bytes.
        assert!(metrics.compression.epochs < 20, "{metrics:?}");
        assert!(
            metrics.compression.plain_bytes > 4 * 450 * 80,
            "{metrics:?}"
        );
        game.world.run_handlers();
    }
}
