//! Chance plays all parts: clients, sockets, program and time. What must hold whatever happens is checked.
//!
//! A failure names its seed: `SEED=<n> cargo test --lib sim_tests::random` runs that one alone, and `SEEDS=<n>` more of
//! them than usual.

use std::collections::HashMap;
use std::time::Duration;

use super::wire::{
    Frame, UPGRADE, client_close, client_frame, client_ping, client_text, parse_frames,
};
use super::world::{Setup, Told, World, panic_quietly, send};
use crate::engine::core::Role;
use crate::engine::events::Session;
use crate::engine::hub::Hub;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::ping::Heartbeat;

const SEEDS: u64 = 60;
const STEPS: usize = 2_000;
const CLIENTS_MAX: usize = 8;

/// xorshift64*: as good as is needed here, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// One client, as the test plays it.
struct Player {
    client: usize,
    /// Still to be sent.
    to_send: Vec<u8>,
    /// Everything that it got, handshake included.
    got: Vec<u8>,
    /// Messages made for it so far: by itself, and by the program.
    said: usize,
    sent: usize,
    gone: bool,
}

struct Game {
    world: World,
    dice: Dice,
    policy: SlowConsumer,
    outbox_bytes_max: usize,
    players: Vec<Player>,
    broadcasts: usize,
    longest: usize,
}

/// Payloads are a sender, a number, and padding.
fn payload(sender: char, n: usize, len: usize) -> String {
    let mut payload = format!("{sender}:{n}:");
    while payload.len() < len {
        payload.push('.');
    }
    payload
}

fn handler(hub: &Hub, session: &Session, told: &Told) {
    match told {
        Told::Open => send(hub, session, "O:0:"),
        Told::Message(payload) => {
            let text = std::str::from_utf8(payload).unwrap();
            send(hub, session, text);
            if text.ends_with("panic") {
                panic_quietly();
            }
        }
        Told::Close => {
            let _ = hub.try_broadcast(Message::new("G:0:").frame());
        }
        Told::Entered | Told::Left => {}
    }
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let policy = match dice.below(4) {
            0 => SlowConsumer::Disconnect,
            1 => SlowConsumer::DropNewest,
            2 => SlowConsumer::DropOldest,
            _ => SlowConsumer::Pace {
                bytes_per_second_min: 500,
                patience: Duration::from_millis(300),
            },
        };
        let outbox_bytes_max = 100 + dice.below(2_000);
        let limits = Limits {
            message_bytes_max: 10_000,
            outbox_bytes_max,
            mailbox_bytes_max: 500 + dice.below(10_000),
            pending_bytes_max: dice.below(1_000),
            handshakes_max: 4,
            handshake_timeout: Duration::from_millis(1_000),
            write_timeout: Duration::from_millis(1_500),
            close_timeout: Duration::from_millis(500),
            ..Limits::default()
        };
        let heartbeat = dice
            .one_in(2)
            .then(|| Heartbeat::new(Duration::from_millis(400), Duration::from_millis(900)));
        let world = World::new(Setup {
            limits,
            slow_consumer: policy,
            heartbeat,
            handler: Box::new(handler),
            ..Setup::default()
        });
        Self {
            world,
            dice,
            policy,
            outbox_bytes_max,
            players: Vec::new(),
            broadcasts: 0,
            longest: 0,
        }
    }

    fn len(&mut self) -> usize {
        let len = match self.dice.below(30) {
            0 => 3 * self.outbox_bytes_max,
            1 => 100 + self.dice.below(400),
            _ => self.dice.below(60),
        };
        self.longest = self.longest.max(len + 20);
        len
    }

    fn pick(&mut self) -> Option<usize> {
        let here: Vec<usize> = (0..self.players.len())
            .filter(|&player| !self.players[player].gone)
            .collect();
        (!here.is_empty()).then(|| here[self.dice.below(here.len())])
    }

    fn step(&mut self) {
        let what = self.dice.below(100);
        if what < 8 {
            let here = self.players.iter().filter(|player| !player.gone).count();
            if here < CLIENTS_MAX {
                let client = self.world.connect();
                if self.dice.one_in(4) {
                    self.world.stall(client, 0);
                }
                self.players.push(Player {
                    client,
                    to_send: UPGRADE.to_vec(),
                    got: Vec::new(),
                    said: 0,
                    sent: 0,
                    gone: false,
                });
            }
        } else if what < 24 {
            self.broadcast();
        } else if what < 34 && !self.world.jobs.is_empty() {
            let index = self.dice.below(self.world.jobs.len());
            self.world.run_job(index);
        } else if what < 38 {
            self.world.hub.wake_deferred();
        } else if what < 46 {
            let ms = match self.dice.below(10) {
                0 => self.dice.below(700),
                _ => self.dice.below(20),
            };
            self.world.advance(Duration::from_millis(ms as u64));
        } else if what < 56 {
            self.world.turn();
        } else if let Some(player) = self.pick() {
            self.play(player, what);
        }
        if self.dice.one_in(3) {
            self.world.settle();
        }
    }

    fn broadcast(&mut self) {
        for _ in 0..=self.dice.below(5) {
            let len = self.len();
            let payload = payload('B', self.broadcasts, len);
            if self.world.try_broadcast(payload).is_ok() {
                self.broadcasts += 1;
            }
        }
    }

    /// What one client does, or what is done to it.
    fn play(&mut self, player: usize, what: usize) {
        let client = self.players[player].client;
        match what {
            56..64 => {
                let len = self.len();
                let sent = self.players[player].sent;
                if self
                    .world
                    .try_send(client, &payload('S', sent, len))
                    .is_ok()
                {
                    self.players[player].sent += 1;
                }
            }
            64..74 => self.say(player),
            74..86 => {
                let to_send = &mut self.players[player].to_send;
                let n = match self.dice.below(3) {
                    0 => 1,
                    1 => self.dice.below(40),
                    _ => to_send.len(),
                };
                let bytes: Vec<u8> = to_send.drain(..n.min(to_send.len())).collect();
                self.world.pipe(client).client_sends(&bytes);
            }
            86..92 => {
                let room = self.dice.below(2 * self.outbox_bytes_max);
                self.world.pipe(client).add_room(room);
            }
            92..94 => {
                let room = self.dice.below(self.outbox_bytes_max);
                self.world.stall(client, room);
            }
            94..96 => self.world.pipe(client).set_room(usize::MAX / 2),
            96 => {
                let _ = self.world.try_close(client, 4000, "the program closes");
            }
            97 if self.dice.one_in(3) => {
                self.world.pipe(client).client_resets();
                self.players[player].gone = true;
            }
            98 if self.dice.one_in(3) => {
                self.world.pipe(client).client_ends();
                self.players[player].gone = true;
            }
            _ => {
                let token = self.world.key(client).to_token();
                let (a, b) = (self.dice.one_in(2), self.dice.one_in(2));
                self.world.core().ready(token, a, false, b);
            }
        }
    }

    fn say(&mut self, player: usize) {
        let what = self.dice.below(60);
        let len = self.len().min(2_000);
        let to_send = &mut self.players[player].to_send;
        match what {
            0 => to_send.extend(client_close(1000)),
            1 => to_send.extend([0xFF, 0xFF, 0xFF]),
            2..10 => to_send.extend(client_ping(&[b'p'; 100][..len.min(100)])),
            _ => {
                let said = &mut self.players[player].said;
                let mut payload = payload('E', *said, len);
                *said += 1;
                if what == 10 {
                    payload.push_str("panic");
                }
                let to_send = &mut self.players[player].to_send;
                if what < 20 {
                    let at = payload.len() / 2;
                    to_send.extend(client_frame(0x01, &payload.as_bytes()[..at]));
                    to_send.extend(client_ping(b"between"));
                    to_send.extend(client_frame(0x80, &payload.as_bytes()[at..]));
                } else {
                    to_send.extend(client_text(&payload));
                }
            }
        }
    }

    /// Bounds that hold at all times.
    fn check_bounds(&mut self) {
        let controls = 16 * 127 + 200;
        let outbox_max = self.outbox_bytes_max.max(self.longest) + controls;
        let core = self.world.core();
        for slot in core.conns.used() {
            if let Some(Role::WebSocket(ws)) = core.conns.get(slot).map(|conn| &conn.role) {
                let bytes = ws.outbox.bytes();
                assert!(bytes <= outbox_max, "{bytes} wait for one client");
            }
        }
    }

    fn collect(&mut self) {
        for player in &mut self.players {
            player.got.extend(self.world.output(player.client));
            player.gone |= self.world.is_closed(player.client);
        }
    }

    /// Everything that a client got: whole frames, in order, nothing after a close.
    fn check_output(&self, player: &Player) -> u64 {
        let mut bytes = player.got.clone();
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return 0;
        };
        let head: Vec<u8> = bytes.drain(..end + 4).collect();
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return 0;
        }
        let mut frames = parse_frames(&mut bytes);
        if let Some(at) = frames.iter().position(|f| matches!(f, Frame::Close(..))) {
            assert_eq!(
                (at, &bytes[..]),
                (frames.len() - 1, &b""[..]),
                "after a close"
            );
            frames.pop();
        }
        let may_drop = matches!(
            self.policy,
            SlowConsumer::DropNewest | SlowConsumer::DropOldest
        );
        let mut last = HashMap::new();
        let mut messages = 0;
        for frame in frames {
            let Frame::Text(payload) = frame else {
                continue;
            };
            messages += 1;
            let mut parts = payload.split(':');
            let sender = parts.next().unwrap().to_owned();
            let n: usize = parts.next().unwrap().parse().unwrap();
            if sender == "G" {
                continue;
            }
            let before = last.insert(sender.clone(), n);
            // A handler's reply finds the mailbox full at times.
            let may_drop = may_drop || sender == "E";
            match before {
                Some(before) if may_drop => assert!(n > before, "{sender}{n} after {before}"),
                Some(before) => assert_eq!(n, before + 1, "{sender}{n} after {before}"),
                None => {}
            }
        }
        messages
    }

    fn check_told(&mut self, player: usize) {
        let told = self.world.told(self.players[player].client);
        if told.is_empty() {
            return;
        }
        assert_eq!(told[..2], [Told::Entered, Told::Open]);
        assert_eq!(told[told.len() - 2..], [Told::Left, Told::Close]);
        let messages = &told[2..told.len() - 2];
        for (n, told) in messages.iter().enumerate() {
            let Told::Message(payload) = told else {
                panic!("{told:?} among the messages");
            };
            let expected = format!("E:{n}:");
            assert!(
                payload.starts_with(expected.as_bytes()),
                "{told:?} is {n}th"
            );
        }
    }

    fn play_to_the_end(mut self) {
        for _ in 0..STEPS {
            self.step();
            self.check_bounds();
            self.collect();
        }
        if self.dice.one_in(2) {
            // All read on, and what waits is sent, before the end.
            for player in 0..self.players.len() {
                let client = self.players[player].client;
                self.world.unstall(client);
            }
            self.world.run_handlers();
            assert_eq!(self.world.core().delivery.congested, 0);
        }
        self.world.stop(Duration::from_millis(700));
        self.world.run_handlers();
        self.world.advance_ms(710);
        self.world.run_handlers();
        self.world.turn();
        assert!(self.world.has_stopped());
        let due = self.world.core().delivery.due;
        self.world.finish();
        self.collect();
        let mut messages = 0;
        for player in &self.players {
            messages += self.check_output(player);
            assert!(self.world.is_closed(player.client));
        }
        for player in 0..self.players.len() {
            self.check_told(player);
        }
        let metrics = self.world.metrics();
        assert_eq!(metrics.messages_out, messages, "messages on the wires");
        let dropped = metrics.dropped.slow_consumer + metrics.dropped.closed;
        assert_eq!(
            metrics.messages_out + dropped,
            due,
            "messages that were due"
        );
        assert_eq!(metrics.connections, 0);
        assert_eq!(metrics.accepted, self.players.len() as u64);
        if !matches!(
            self.policy,
            SlowConsumer::DropNewest | SlowConsumer::DropOldest
        ) && metrics.slow_consumers == 0
        {
            assert_eq!(metrics.dropped.slow_consumer, 0);
        }
    }
}

/// Names the seed when a game fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr)] // A failure that can't be repeated is worth little.
            {
                eprintln!("SEED={}", self.0);
            }
        }
    }
}

#[test]
fn whatever_happens_order_counts_and_bounds_hold() {
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let _named = Named(seed);
        Game::new(seed).play_to_the_end();
    }
}
