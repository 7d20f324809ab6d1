//! Sends a third-party client a run of compressed messages, and checks that they arrive byte for byte.
//!
//! ```sh
//! cargo run --example compression_server -- 127.0.0.1:9000 [SEED [MESSAGES [corrupt|omit|double|swap]]]
//! ```
//!
//! The client keeps three connections. On each, it sends `hello <negotiated extensions>`, and the server replies `begin`.
//! From then on, both sides count the messages that the server sends on this connection, and compute a hash over them: the
//! CRC-32 of `t` (text) or `b` (binary) and the payload, for one message after the other. The server sends:
//!
//! - messages of the run: `<number, 6 digits> <CRC-32 of the body, 8 hex digits> <body>`, or fewer than 16 bytes that begin
//!   with neither `m` nor `e`.
//! - `mark <number>`, which counts like a message of the run. The client replies `mark <number> <count> <hash>`, and echoes
//!   the last message of the run that it has received on this connection.
//! - `end <count> <hash> again|over`, which does not count. The client compares both values with its own, replies
//!   `ended <count> <hash>`, and closes the connection. After `again`, it opens a new connection. It ignores messages that
//!   follow `end`.
//!
//! A client that detects a difference sends `failed <reason>`. When the server listens, it prints its address. After the run, it
//! prints the result as one line of JSON and exits. With a fault as argument, it makes this mistake once, and the result is
//! whether the client has reported it.

mod messages;

use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Compression, ConnectionId, Limits, Message};

use messages::{HEADER, Random, crc32, message};
use serde_json::{Value, json};

use std::collections::{BTreeSet, VecDeque};
use std::env;
use std::process::exit;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const ROOMS: [&str; 2] = ["news", "notes"];
const CONNECTIONS: usize = 3;

/// Maximum number of unanswered marks of a connection. With more, the run waits for replies.
const MARKS_MAX: usize = 3;

/// Uncompressed bytes after which a round ends.
const ROUND_BYTES: usize = 512 << 10;

/// Maximum time without a reply of the client.
const DEADLINE: Duration = Duration::from_secs(20);

/// Number of rounds after which the server ends a connection.
const ROUNDS_PER_END: usize = 8;

type Outcome<T> = Result<T, Stop>;

/// Why a run ends early.
enum Stop {
    /// The client reported a difference.
    Reported(String),
    /// The server detected an error.
    Failed(String),
}

enum Event {
    Message(ConnectionId, Message),
    Closed(ConnectionId),
}

/// Count and hash of the messages that a client must have received so far.
#[derive(Clone, Copy, Default)]
struct Ledger {
    count: usize,
    hash: u32,
}

impl Ledger {
    fn add(&mut self, message: &Message) {
        let kind: &[u8] = if message.is_text() { b"t" } else { b"b" };
        self.count += 1;
        self.hash = crc32(message.bytes(), crc32(kind, self.hash));
    }
}

struct Connection {
    id: ConnectionId,
    rooms: [bool; 2],
    ledger: Ledger,
    /// The last message of the run that was sent to this connection.
    last: Option<Message>,
    /// The expected reply and echo of each unanswered mark.
    marks: VecDeque<(String, Option<Message>)>,
    /// The expected echo of a mark whose reply has arrived.
    echo: Option<Message>,
    /// The expected reply to `end`, after `end` was sent.
    ended: Option<String>,
}

#[derive(Clone, Copy)]
enum Audience {
    Room(usize),
    Everyone,
}

struct Run {
    sender: AsyncSender,
    events: Receiver<Event>,
    random: Random,
    connections: Vec<Connection>,
    /// The mistake that the server still has to make.
    fault: Option<String>,
    /// Whether the run has a fault.
    faulty: bool,
    published: usize,
    opened: usize,
    received: usize,
    plain_bytes: usize,
    joins: usize,
    leaves: usize,
    excepts: usize,
    replies: usize,
    echoes: usize,
    extensions: BTreeSet<String>,
}

fn main() {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let seed = args
        .next()
        .map_or(1, |seed| seed.parse().expect("a number"));
    let total = args
        .next()
        .map_or(5_000, |total| total.parse().expect("a number"));
    let fault = args.next();

    let (messages, events) = channel();
    let closed = messages.clone();
    let app = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_shards(2)
        .with_compression(Compression::new().binary(true))
        // An outbox must hold the messages of a few rounds.
        .with_limits(Limits::default().outbox_bytes_max(16 << 20))
        // The browser's page has another origin on purpose, so suppress the warning.
        .with_warnings_on_stderr(false)
        // Send pings between the messages.
        .with_heartbeat(Heartbeat::new(Duration::from_millis(20), DEADLINE))
        .with_message_handler(move |stream, message, _| {
            let _ = messages.send(Event::Message(stream.id(), message));
        })
        .with_disconnect_handler(move |stream, _| {
            let _ = closed.send(Event::Closed(stream.id()));
        });
    let running = app.start().expect("the address is free");
    print_line(&running.local_addr().expect("the app listens"));

    let mut run = Run {
        sender: running.sender(),
        events,
        random: Random(seed),
        connections: Vec::new(),
        faulty: fault.is_some(),
        fault,
        published: 0,
        opened: 0,
        received: 0,
        plain_bytes: 0,
        joins: 0,
        leaves: 0,
        excepts: 0,
        replies: 0,
        echoes: 0,
        extensions: BTreeSet::new(),
    };
    let faulty = run.faulty;
    let (result, passed) = match run.play(total) {
        Ok(()) if faulty => (json!({ "found": Value::Null }), false),
        Ok(()) => (run.result(), true),
        Err(Stop::Reported(reason)) if faulty => (json!({ "found": reason }), true),
        Err(Stop::Reported(reason) | Stop::Failed(reason)) => (json!({ "error": reason }), false),
    };
    print_line(&result);
    exit(if passed { 0 } else { 1 });
}

#[expect(
    clippy::print_stdout,
    reason = "the test reads the address and the result"
)]
fn print_line(line: &dyn std::fmt::Display) {
    println!("{line}");
}

impl Run {
    fn play(&mut self, total: usize) -> Outcome<()> {
        while self.connections.len() < CONNECTIONS {
            self.next_event()?;
        }
        for round in 1.. {
            self.change_rooms();
            let until = self.plain_bytes + ROUND_BYTES;
            for _ in 0..1 + self.random.below(60) {
                if self.published < total && self.plain_bytes < until {
                    self.publish(total);
                }
            }
            self.mark(round);
            if self.published == total {
                break;
            }
            if round % ROUNDS_PER_END == 0 && self.connections.iter().all(|c| c.ended.is_none()) {
                let index = self.random.below(self.connections.len());
                self.end(index, "again");
            }
            // Wait for reconnects, so that enough members receive the rest of the run.
            while self.connections.len() < 2
                || self.connections.iter().any(|c| c.marks.len() > MARKS_MAX)
            {
                self.next_event()?;
            }
        }
        while self.connections.len() < CONNECTIONS
            || self.connections.iter().any(|c| c.ended.is_some())
        {
            self.next_event()?;
        }
        for index in 0..self.connections.len() {
            self.end(index, "over");
        }
        while !self.connections.is_empty() {
            self.next_event()?;
        }
        while self.sender.connections() > 0 {
            match self.events.recv_timeout(DEADLINE) {
                Ok(Event::Closed(_)) => {}
                _ => return Err(Stop::Failed("a connection stayed open".into())),
            }
        }
        Ok(())
    }

    fn change_rooms(&mut self) {
        for connection in &mut self.connections {
            for (index, name) in ROOMS.iter().enumerate() {
                if connection.ended.is_some()
                    || !self
                        .random
                        .chance(if connection.rooms[index] { 15 } else { 50 })
                {
                    continue;
                }
                let room = self.sender.room(name);
                if connection.rooms[index] {
                    room.leave(connection.id);
                    self.leaves += 1;
                } else {
                    room.join(connection.id);
                    self.joins += 1;
                }
                connection.rooms[index] ^= true;
            }
        }
    }

    /// Sends the next message of the run to a room, to everyone, to an audience except one connection, or to one connection.
    fn publish(&mut self, total: usize) {
        let audience = match self.random.below(10) {
            0..5 => Audience::Room(0),
            5..8 => Audience::Room(1),
            _ => Audience::Everyone,
        };
        let one = self.random.below(self.connections.len());
        let next = message(self.published, &mut self.random);
        self.published += 1;
        match self.random.below(100) {
            0..12 => {
                let connection = &mut self.connections[one];
                self.sender.send_to(connection.id, next.clone());
                self.replies += 1;
                self.plain_bytes += connection.expect(&next);
            }
            12..27 => {
                let id = self.connections[one].id;
                self.room(audience).broadcast_except(id, next.clone());
                self.excepts += 1;
                self.expect(audience, Some(id), &next);
            }
            _ => {
                let reached = self.expect(audience, None, &next);
                let faulty = reached
                    && self.published > total / 2
                    && next.bytes().len() > 2 * HEADER
                    && next.is_text();
                match if faulty { self.fault.take() } else { None } {
                    Some(fault) => self.commit(&fault, audience, next),
                    None => self.room(audience).broadcast(next),
                }
            }
        }
    }

    /// Makes a mistake with this message, which the recipients must report.
    fn commit(&mut self, fault: &str, audience: Audience, message: Message) {
        let room = self.room(audience);
        match fault {
            "corrupt" => {
                let mut payload = message.bytes().to_vec();
                let place = payload.iter().rposition(u8::is_ascii_alphanumeric);
                payload[place.expect("a header")] ^= 1;
                room.broadcast(Message::new_text(
                    String::from_utf8(payload).expect("an ASCII change"),
                ));
            }
            "omit" => {}
            "double" => {
                room.broadcast(message.clone());
                room.broadcast(message);
            }
            "swap" => {
                let other = messages::message(self.published, &mut self.random);
                self.published += 1;
                self.expect(audience, None, &other);
                room.broadcast(other);
                room.broadcast(message);
            }
            _ => panic!("unknown fault: {fault}"),
        }
    }

    fn room(&self, audience: Audience) -> humphrey_ws::Room {
        match audience {
            Audience::Room(index) => self.sender.room(ROOMS[index]),
            Audience::Everyone => self.sender.everyone(),
        }
    }

    /// Records that the members must receive a message. Returns whether the audience has members.
    fn expect(
        &mut self,
        audience: Audience,
        except: Option<ConnectionId>,
        message: &Message,
    ) -> bool {
        let mut bytes = 0;
        for connection in &mut self.connections {
            let member = match audience {
                Audience::Room(index) => connection.rooms[index],
                Audience::Everyone => true,
            };
            if member && Some(connection.id) != except {
                bytes += connection.expect(message);
            }
        }
        self.plain_bytes += bytes;
        bytes > 0
    }

    fn mark(&mut self, round: usize) {
        let text = format!("mark {round}");
        for connection in self.connections.iter_mut().filter(|c| c.ended.is_none()) {
            self.sender.send_to(connection.id, text.as_str());
            connection.ledger.add(&Message::new_text(text.as_str()));
            let Ledger { count, hash } = connection.ledger;
            let answer = format!("{text} {count} {hash:08x}");
            connection
                .marks
                .push_back((answer, connection.last.clone()));
        }
    }

    fn end(&mut self, index: usize, what: &str) {
        let connection = &mut self.connections[index];
        let Ledger { count, hash } = connection.ledger;
        let text = Message::new_text(format!("end {count} {hash:08x} {what}"));
        self.sender.send_to(connection.id, text.uncompressed());
        connection.ended = Some(format!("ended {count} {hash:08x}"));
    }

    fn next_event(&mut self) -> Outcome<()> {
        match self.events.recv_timeout(DEADLINE) {
            Ok(Event::Message(id, message)) => {
                match self.connections.iter().position(|c| c.id == id) {
                    Some(index) => self.on_answer(index, &message),
                    None => self.on_hello(id, &message),
                }
            }
            Ok(Event::Closed(id)) if self.connections.iter().any(|c| c.id == id) => Err(
                Stop::Failed("the client closed a connection before `end`".into()),
            ),
            Ok(Event::Closed(_)) => Ok(()),
            Err(_) => Err(Stop::Failed(format!(
                "the client did nothing for {DEADLINE:?}"
            ))),
        }
    }

    fn on_hello(&mut self, id: ConnectionId, message: &Message) -> Outcome<()> {
        let text = message.text().unwrap_or_default();
        match text.split_once(' ') {
            Some(("hello", extensions)) if extensions.starts_with("permessage-deflate") => {
                self.extensions.insert(extensions.to_owned());
            }
            _ => {
                return Err(Stop::Failed(format!(
                    "no compression was negotiated: {text:?}"
                )));
            }
        }
        self.opened += 1;
        self.sender
            .send_to(id, Message::new_text("begin").uncompressed());
        self.connections.push(Connection {
            id,
            rooms: [false; 2],
            ledger: Ledger::default(),
            last: None,
            marks: VecDeque::new(),
            echo: None,
            ended: None,
        });
        Ok(())
    }

    fn on_answer(&mut self, index: usize, message: &Message) -> Outcome<()> {
        let connection = &mut self.connections[index];
        if let Some(reason) = message.text().and_then(|text| text.strip_prefix("failed ")) {
            return Err(Stop::Reported(reason.to_owned()));
        }
        if let Some(echo) = connection.echo.take() {
            // In a run with a fault, the client must report the difference.
            if !self.faulty
                && (echo.is_text(), echo.bytes()) != (message.is_text(), message.bytes())
            {
                return Err(Stop::Failed("an echo differs".into()));
            }
            self.echoes += 1;
            return Ok(());
        }
        let Some(text) = message.text().filter(|text| text.len() < 100) else {
            return Err(Stop::Failed("unexpected echo".into()));
        };
        if text.starts_with("mark ") {
            let Some((answer, echo)) = connection.marks.pop_front() else {
                return Err(Stop::Failed(format!("reply without a mark: {text:?}")));
            };
            connection.echo = echo;
            if text != answer && !self.faulty {
                return Err(Stop::Failed(format!("{text:?} instead of {answer:?}")));
            }
            Ok(())
        } else if connection.ended.as_deref() == Some(text) && connection.marks.is_empty() {
            let connection = self.connections.swap_remove(index);
            self.received += connection.ledger.count;
            Ok(())
        } else {
            Err(Stop::Failed(format!("unexpected: {text:?}")))
        }
    }

    fn result(&self) -> Value {
        let metrics = self.sender.metrics();
        let compression = &metrics.compression;
        json!({
            "published": self.published,
            "connections": self.opened,
            "received": self.received,
            "joins": self.joins,
            "leaves": self.leaves,
            "excepts": self.excepts,
            "replies": self.replies,
            "echoes": self.echoes,
            "extensions": self.extensions,
            "plain_bytes": self.plain_bytes,
            "wire_bytes": metrics.bytes_out,
            "compressed": {
                "messages": compression.compressed,
                "sent_bytes": compression.sent_bytes,
                "plain_bytes": compression.plain_bytes,
                "epochs": compression.epochs,
                "received_bytes": compression.received_bytes,
                "inflated_bytes": compression.inflated_bytes,
            },
        })
    }
}

impl Connection {
    /// Records that this connection must receive a message of the run. Returns the length of the uncompressed frame, or 0 after
    /// `end`, when the client ignores messages.
    fn expect(&mut self, message: &Message) -> usize {
        if self.ended.is_some() {
            return 0;
        }
        self.ledger.add(message);
        self.last = Some(message.clone());
        let len = message.bytes().len();
        len + match len {
            0..126 => 2,
            126..65_536 => 4,
            _ => 10,
        }
    }
}
