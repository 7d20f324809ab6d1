//! A randomised test of a whole shard. Random choices control the clients, the sockets, the program and time, and the
//! test checks the engine's invariants.
//!
//! A failure prints its seed. `SEED=<n> cargo test --lib sim_tests::game` runs that seed alone, and `SEEDS=<n>` runs
//! this many seeds. The file is long because the player, its choices and the checks are one game.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::wire::{
    Frame, UPGRADE, client_close, client_frame, client_ping, client_text, parse_frames,
};
use super::world::{Setup, Told, World, panic_quietly, send};
use crate::engine::hub::{Destination, Hub};
use crate::engine::model::command::{Command, Received, Upgraded};
use crate::engine::model::program::{HandshakeAccept, Subscriptions};
use crate::engine::model::request::{BodyReader, Request, Response};
use crate::engine::model::session::Session;
use crate::engine::parts::mailbox::Weigh;
use crate::engine::reactor::{READ_BYTES, Readiness, Stage};
use crate::limits::{Limits, OverRate, SlowConsumer};
use crate::message::Message;
use crate::ping::Heartbeat;
use crate::protocol::close::CloseCode;
use crate::protocol::connection::FrameReader;
use crate::protocol::encode::{self, Opcode};
use crate::protocol::fuzz::dice::Dice;
use crate::protocol::http::{self, BodyMode, Persistence};
use crate::request::{Reject, RequestHead};

const STEPS: usize = 2_000;
const CLIENTS_MAX: usize = 8;
const MESSAGE_BYTES_MAX: usize = 10_000;

/// The response to a handshake that a host has read.
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// Runs the simulation whose random choices come from these bytes.
pub(crate) fn run(data: &[u8]) {
    Game::new(Dice::from_bytes(data)).play_to_the_end(STEPS);
}

/// Returns the bytes of a simulation with that many steps, a seed for fuzzers.
#[cfg(test)]
pub(crate) fn chances(seed: u64, steps: usize) -> Vec<u8> {
    Game::new(Dice::from_seed(seed)).play_to_the_end(steps)
}

/// A simulated client.
struct Player {
    client: usize,
    /// The bytes that the client has yet to send.
    to_send: Vec<u8>,
    /// All bytes that the client has received, including the handshake response.
    got: Vec<u8>,
    /// The number of messages so far that the client has sent, or that the program has sent to it.
    logged: usize,
    sent: usize,
    gone: bool,
    /// Whether the client has requested a WebSocket or was handed over as one, so that it now sends frames.
    upgraded: bool,
    /// Whether the connection was handed over, so that no handshake response precedes its frames.
    adopted: bool,
    /// Whether the client sends arbitrary bytes, so that its messages have no numbers.
    wild: bool,
    /// The number of requests for routes so far.
    requests: usize,
    /// When the client has connected, and how long its connection has lasted.
    came: Duration,
    lasted: Option<Duration>,
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

/// Creates a payload: a sender, a number, and padding.
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
        // Payloads that have another form are from a wild client.
        Told::Message(payload) if payload.starts_with(b"E:") => {
            send(hub, session, payload);
            if payload.ends_with(b"panic") {
                panic_quietly();
            }
        }
        Told::Message(_) => {}
        Told::Close => {
            let _ = hub.try_broadcast(Message::new("G:0:").frame(), Destination::default());
        }
        Told::Entered | Told::Left | Told::Room(..) => {}
    }
}

/// Answers with the target, in two pieces for half of the requests, and panics if the request demands it.
fn route(request: Request) -> Response {
    if request.body == b"panic" {
        panic_quietly();
    }
    let mut body = request.head.target.into_bytes();
    let persistence = Persistence::keep_alive_if(request.keep_alive);
    let head = http::response_head(200, &[], body.len() as u64, persistence, BodyMode::Full);
    let rest = match body.len() % 2 {
        0 => body.split_off(body.len() / 2),
        _ => Vec::new(),
    };
    let bytes = rest.len() as u64;
    Response {
        head: head.bytes,
        keep_alive: request.keep_alive,
        body,
        rest: (bytes > 0).then(|| BodyReader::new(rest, bytes)),
        charge: None,
    }
}

/// Creates a handshake handler. It accepts most clients, some of them with an attachment, rejects every seventh, and
/// panics at every eleventh.
fn gate() -> impl Fn(&RequestHead) -> Result<HandshakeAccept, Reject> {
    let asked = AtomicUsize::new(0);
    move |_| match asked.fetch_add(1, Relaxed) {
        n if n % 7 == 3 => Err(Reject::new(403).with_body("every seventh\n")),
        n if n % 11 == 5 => panic_quietly(),
        n => Ok(HandshakeAccept {
            attachment: (n % 2 == 0).then(|| Arc::new(n) as _),
            user: (n % 3 == 0).then(|| format!("user {}", n % 2)),
            ..HandshakeAccept::default()
        }),
    }
}

impl Game {
    fn new(mut dice: Dice) -> Self {
        let policy = dice.below(4);
        let outbox_bytes_max = 100 + dice.below(2_000);
        let mailbox_bytes_max = 500 + dice.below(10_000);
        let policy = match policy {
            0 => SlowConsumer::Disconnect,
            1 => SlowConsumer::DropNewest,
            // Derive this policy from another choice instead of drawing it, so that the other seeds keep their meaning.
            2 if outbox_bytes_max / 4 % 2 == 1 => SlowConsumer::SkipAhead,
            2 => SlowConsumer::DropOldest,
            _ => SlowConsumer::Pace {
                bytes_per_second_min: 500,
                patience: Duration::from_millis(300),
            },
        };
        // These bounds are derived as well. With a bound of 0, there is still space for one message.
        let of_all = |chance: usize| match chance % 4 {
            0 => 0,
            _ => Limits::default().received_bytes_max,
        };
        let limits = Limits {
            message_bytes_max: MESSAGE_BYTES_MAX,
            outbox_bytes_max,
            outboxes_bytes_max: of_all(mailbox_bytes_max),
            received_bytes_max: of_all(outbox_bytes_max),
            mailbox_bytes_max,
            pending_bytes_max: dice.below(1_000),
            connections_max: if dice.one_in(4) { 5 } else { CLIENTS_MAX },
            handshakes_max: 4,
            peer_connections_max: dice.one_in(4).then_some(3),
            // Derived as well.
            user_connections_max: mailbox_bytes_max.is_multiple_of(5).then_some(2),
            messages_per_second_max: (mailbox_bytes_max % 7 < 2).then_some(4),
            bytes_per_second_max: (mailbox_bytes_max % 11 < 2).then_some(600),
            over_rate: match mailbox_bytes_max % 4 {
                0 => OverRate::Close,
                _ => OverRate::Delay,
            },
            handshake_timeout: Duration::from_millis(1_000),
            message_timeout: Duration::from_millis(2_500),
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
            subscriptions: Subscriptions {
                open: true,
                message: true,
                close: true,
                request: dice.one_in(2),
                // Derived as well.
                handshake: mailbox_bytes_max.is_multiple_of(3),
                room: true,
                ..Subscriptions::default()
            },
            adaptive_handlers: outbox_bytes_max.is_multiple_of(2),
            handler: Box::new(handler),
            gate: Box::new(gate()),
            route: Box::new(route),
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
                self.add_player();
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
            let by = Duration::from_millis(ms as u64);
            if ms >= 500 {
                self.world.stand_still(by);
            } else {
                self.world.advance(by);
            }
        } else if what < 56 {
            self.world.turn();
        } else if let Some(player) = self.pick() {
            self.play(player, what);
        }
        if self.dice.one_in(3) {
            self.world.settle();
        }
    }

    fn add_player(&mut self) {
        let mut player = Player {
            client: 0,
            to_send: Vec::new(),
            got: Vec::new(),
            logged: 0,
            sent: 0,
            gone: false,
            upgraded: true,
            adopted: false,
            wild: false,
            requests: 0,
            came: self.world.now(),
            lasted: None,
        };
        match self.dice.below(10) {
            0 => {
                player.client = self.adopt(&mut player);
            }
            1 | 2 => {
                player.client = self.world.connect();
                player.upgraded = false;
            }
            _ => {
                player.client = self.world.connect();
                player.to_send.extend(UPGRADE);
            }
        }
        if self.dice.one_in(4) {
            // As with TLS: what the socket refuses of a record is pending.
            self.world.pipe(player.client).pending_max = 1 + self.dice.below(2_000);
        }
        if self.dice.one_in(4) {
            self.world.stall(player.client, 0);
        }
        self.players.push(player);
    }

    /// Hands a connection over in the middle of its input and output, or before its handshake is answered.
    fn adopt(&mut self, player: &mut Player) -> usize {
        player.logged = self.dice.below(3);
        let messages = (0..player.logged).map(|n| Message::new(payload('E', n, 0)));
        let mut protocol = FrameReader::new(MESSAGE_BYTES_MAX);
        player.to_send = client_text(&payload('E', player.logged, 20));
        player.logged += 1;
        let mut begun: Vec<u8> = player.to_send.drain(..self.dice.below(20)).collect();
        assert!(matches!(protocol.receive(&mut &mut begun[..]), Ok(None)));
        player.adopted = self.dice.one_in(2);
        let mut pending_out = ANSWER.to_vec();
        if player.adopted {
            pending_out = encode::control(Opcode::Pong, b"pending_out");
            player.got = pending_out.drain(..self.dice.below(7)).collect();
            if self.dice.one_in(2) && player.got.is_empty() {
                pending_out.clear();
            }
        }
        let received = Received {
            messages: messages.collect(),
            protocol,
        };
        self.world.adopt(Upgraded {
            head: None,
            is_answered: player.adopted,
            pending_out,
            has_input_ended: false,
            close_reply: None,
            has_output_ended: false,
            received: Some(received),
            ..Upgraded::default()
        })
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

    /// Performs one action of a client, or on a client.
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
                // Sometimes set the expiry of the session: soon, later or never. This is derived as well.
                if sent % 4 == 3
                    && let Some(session) = self.world.find_session(client)
                {
                    let ms = (sent * 331 % 1_500) as u64;
                    let expiry = self.world.expiry_in_ms(ms).filter(|_| ms < 1_000);
                    self.world.hub.set_expiry(&session, expiry);
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
                let code = CloseCode::POLICY_VIOLATION;
                for id in self.world.hub.users.close("user 1", code, "") {
                    let command = Command::Close(id.key(), code, "".into());
                    let _ = self.world.hub.post(id, command, false);
                }
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
                let token = self.world.key(client).token().unwrap();
                let readiness = Readiness {
                    readable: self.dice.one_in(2),
                    hangup: false,
                    writable: self.dice.one_in(2),
                };
                self.world.core().ready(token, readiness);
            }
        }
    }

    fn say(&mut self, player: usize) {
        let what = self.dice.below(62);
        if what >= 60 {
            let bytes = self.dice.bytes(40);
            self.players[player].to_send.extend(bytes);
            self.players[player].wild = true;
            self.longest = MESSAGE_BYTES_MAX + 20;
            return;
        }
        if !self.players[player].upgraded {
            self.ask(player);
            return;
        }
        let len = self.len().min(2_000);
        let to_send = &mut self.players[player].to_send;
        match what {
            0 => to_send.extend(client_close(1000)),
            1 => to_send.extend([0xFF, 0xFF, 0xFF]),
            2..10 => to_send.extend(client_ping(&[b'p'; 100][..len.min(100)])),
            _ => {
                let logged = &mut self.players[player].logged;
                let mut payload = payload('E', *logged, len);
                *logged += 1;
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

    /// Sends a handshake or a request for a route from a client in the HTTP stage.
    fn ask(&mut self, player: usize) {
        let what = self.dice.below(8);
        let player = &mut self.players[player];
        let n = player.requests;
        let request = match what {
            0 => {
                player.upgraded = true;
                player.to_send.extend(UPGRADE);
                return;
            }
            1 => format!("GET /{n} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            2 | 3 => format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
            4 => format!(
                "POST /{n} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
            ),
            5 => format!("POST /{n} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\npanic"),
            _ => format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"),
        };
        player.requests += 1;
        player.to_send.extend(request.into_bytes());
    }

    /// Asserts that the bounds hold.
    fn check_bounds(&mut self) {
        let controls = 16 * 127 + 200;
        let outbox_max = self.outbox_bytes_max.max(self.longest) + controls;
        let limits = self.world.hub.settings.limits.clone();
        let command_max = limits.mailbox_bytes_max.max(self.longest + 100);
        let core = self.world.core();
        let command: usize = core.cx.fanout.commands.iter().map(Weigh::weight).sum();
        assert!(
            command <= command_max,
            "{command} are taken and not delivered"
        );
        let one_read = 16 * READ_BYTES;
        let received = core.cx.receive_budget.bytes();
        let received_max = limits.received_bytes_max.max(2 * MESSAGE_BYTES_MAX) + one_read;
        assert!(received <= received_max, "{received} received are held");
        let own = core.cx.fanout.unshared_bytes();
        let own_max = limits.outboxes_bytes_max.max(MESSAGE_BYTES_MAX + 100) + one_read;
        assert!(own <= own_max, "{own} wait for clients");
        for key in core.conns.keys() {
            if let Some(Stage::WebSocket(ws)) = core.conns.get(key).map(|conn| &conn.stage) {
                let bytes = ws.outbox.bytes();
                assert!(bytes <= outbox_max, "{bytes} wait for one client");
                // One read may exceed the bound, and contain many small messages, which take more memory than their
                // bytes.
                let (inbox, begun) = ws.held_bytes();
                let inbox_max = limits.pending_bytes_max + 16 * READ_BYTES;
                assert!(inbox <= inbox_max, "{inbox} of a client wait");
                let begun_max = 2 * MESSAGE_BYTES_MAX + 9_000;
                assert!(begun <= begun_max, "{begun} of one message are held");
            }
        }
    }

    fn collect(&mut self) {
        for player in &mut self.players {
            player.got.extend(self.world.output(player.client));
            if self.world.is_closed(player.client) {
                player.gone = true;
                player.lasted.get_or_insert(self.world.now() - player.came);
            }
        }
    }

    /// Checks everything that a client received: responses in order, then complete frames in order, and nothing after a
    /// close frame.
    fn check_output(&self, player: &Player) -> u64 {
        let mut bytes = player.got.clone();
        if !player.adopted && !take_answers(&mut bytes, player.wild) {
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
        let may_drop = self.drops();
        let mut last = HashMap::new();
        let mut messages = 0;
        for frame in frames {
            let payload = match frame {
                Frame::Text(payload) => payload,
                Frame::Binary(_) => {
                    assert!(player.wild, "the others send text");
                    messages += 1;
                    continue;
                }
                _ => continue,
            };
            messages += 1;
            let mut parts = payload.split(':');
            let sender = parts.next().unwrap().to_owned();
            if sender == "G" || sender == "E" && player.wild {
                continue;
            }
            let n: usize = parts.next().unwrap().parse().unwrap();
            let before = last.insert(sender.clone(), n);
            // The mailbox may be full when a handler replies.
            let may_drop = may_drop || sender == "E";
            match before {
                Some(before) if may_drop => assert!(n > before, "{sender}{n} after {before}"),
                Some(before) => assert_eq!(n, before + 1, "{sender}{n} after {before}"),
                None => {}
            }
        }
        messages
    }

    /// Whether the policy may drop messages of a connection that goes on.
    fn drops(&self) -> bool {
        matches!(
            self.policy,
            SlowConsumer::DropNewest | SlowConsumer::DropOldest | SlowConsumer::SkipAhead
        )
    }

    fn check_told(&mut self, player: usize) {
        let told = self.world.told(self.players[player].client);
        self.check_rates(player, &told);
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
                self.players[player].wild || payload.starts_with(expected.as_bytes()),
                "{told:?} is {n}th"
            );
        }
    }

    /// Checks that handlers were given no more than a burst, and what the rates allow for the time of the connection.
    fn check_rates(&self, player: usize, told: &[Told]) {
        let limits = &self.world.hub.settings.limits;
        let lasted = self.players[player].lasted.unwrap().as_secs_f64();
        let payloads = told.iter().filter_map(|told| match told {
            Told::Message(payload) => Some(payload.len()),
            _ => None,
        });
        let (messages, bytes) = (payloads.clone().count(), payloads.sum::<usize>());
        if let Some(rate) = limits.messages_per_second_max {
            let allowed = f64::from(rate) * (1.0 + lasted);
            assert!(
                messages as f64 <= allowed,
                "{messages} messages in {lasted} s"
            );
        }
        if let Some(rate) = limits.bytes_per_second_max {
            let allowed = rate as f64 * (1.0 + lasted);
            assert!(bytes as f64 <= allowed, "{bytes} bytes in {lasted} s");
        }
    }

    /// Runs the simulation to its end, and returns its random choices.
    fn play_to_the_end(mut self, steps: usize) -> Vec<u8> {
        for _ in 0..steps {
            if self.dice.is_used_up() {
                break;
            }
            self.step();
            self.check_bounds();
            self.collect();
        }
        if self.dice.one_in(2) {
            // Before the end, all clients read again, so that queued messages are sent.
            for player in 0..self.players.len() {
                let client = self.players[player].client;
                self.world.unstall(client);
            }
            self.world.run_handlers();
            assert_eq!(self.world.core().cx.fanout.congested, 0);
        }
        if self.dice.one_in(3) {
            let ms = [0, 1, 90, 900].map(Duration::from_millis);
            self.world.drain(ms[self.dice.below(4)], Duration::ZERO);
            self.world.advance_ms(self.dice.below(700) as u64);
            self.world.run_handlers();
        }
        self.world.stop(Duration::from_millis(700));
        self.world.run_handlers();
        self.world.advance_ms(710);
        self.world.run_handlers();
        self.world.turn();
        assert!(self.world.has_stopped());
        let due = self.world.core().cx.fanout.due;
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
        if !self.drops() && metrics.slow_consumers == 0 {
            assert_eq!(metrics.dropped.slow_consumer, 0);
        }
        self.dice.taken()
    }
}

/// Removes the responses to requests from the front, and checks that they name their targets in order. Returns whether
/// a WebSocket follows.
fn take_answers(bytes: &mut Vec<u8>, wild: bool) -> bool {
    let mut n = 0;
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return false;
        };
        let head: Vec<u8> = bytes.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap();
        if status.starts_with("101 ") {
            return true;
        }
        if status.starts_with("100 ") {
            assert!(wild, "the others send bodies without waiting");
            continue;
        }
        let length = head.split_once("Content-Length: ").unwrap().1;
        let length: usize = length.split_once("\r\n").unwrap().0.parse().unwrap();
        let body: Vec<u8> = bytes.drain(..length.min(bytes.len())).collect();
        if status.starts_with("200 ") && body.len() == length {
            assert!(wild || body == format!("/{n}").into_bytes(), "{n}: {head}");
            n += 1;
        } else {
            assert!(bytes.is_empty(), "after a refusal, or half an answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fuzz::dice::for_seeds;

    const SEEDS: u64 = 60;

    #[test]
    fn whatever_happens_order_counts_and_bounds_hold() {
        for_seeds(SEEDS, |seed| {
            Game::new(Dice::from_seed(seed)).play_to_the_end(STEPS);
        });
    }

    #[test]
    fn a_game_can_be_played_again_from_the_chances_it_took() {
        let taken = chances(1, 200);
        let again = Game::new(Dice::from_bytes(&taken)).play_to_the_end(200);
        assert_eq!(again, taken);
    }
}
