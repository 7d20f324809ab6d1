//! A randomised test that compares one connection with RFC 6455.
//!
//! Random choices determine what the client sends, how it is split into reads, what the program sends, how much the socket
//! accepts, and how time passes. The expected events come from an independent parser, [`reference`].

use std::time::Duration;

use super::wire::{Frame, client_frame, parse_frames};
use super::world::{Setup, Told, World, send};
use crate::engine::hub::Hub;
use crate::engine::model::session::Session;
use crate::limits::Limits;
use crate::ping::Heartbeat;
use crate::protocol::close::reason_prefix;
use crate::protocol::fuzz::dice::Dice;
use crate::protocol::fuzz::reference::{self, Heard, Transcript, TranscriptEnd};

const STEPS: usize = 2_000;
const MESSAGE_BYTES_MAX: [usize; 3] = [20, 300, 70_000];
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Close codes that the program and clients send.
const CODES: [u16; 8] = [1000, 1001, 1003, 1008, 1011, 1014, 3000, 4999];
/// Close codes that must not be sent.
const BAD_CODES: [u16; 6] = [0, 999, 1005, 1006, 1015, 5000];

/// Runs the simulation that these bytes describe.
pub(crate) fn run(data: &[u8]) {
    Dialogue::new(Dice::from_bytes(data)).hold_to_the_end(STEPS);
}

/// Returns the bytes of a simulation with that many steps, a seed for fuzzers.
#[cfg(test)]
pub(crate) fn chances(seed: u64, steps: usize) -> Vec<u8> {
    Dialogue::new(Dice::from_seed(seed)).hold_to_the_end(steps)
}

struct Dialogue {
    world: World,
    dice: Dice,
    message_bytes_max: usize,
    client: usize,
    /// The client's bytes: still to be sent, and sent.
    to_send: Vec<u8>,
    delivered: Vec<u8>,
    /// Everything that the client received after the handshake.
    got: Vec<u8>,
    /// The messages that the program sent.
    sent: usize,
    /// The program's close, if it came first.
    closed: Option<(u16, String)>,
    has_heartbeat: bool,
    /// Whether the socket was ever full.
    stalled: bool,
    /// The time that has passed.
    waited: Duration,
    ended: bool,
    reset: bool,
}

/// Echoes each message with a prefix.
fn handler(hub: &Hub, session: &Session, told: &Told) {
    if let Told::Message(payload) = told {
        send(hub, session, [b"E:", &payload[..]].concat());
    }
}

impl Dialogue {
    fn new(mut dice: Dice) -> Self {
        let message_bytes_max = MESSAGE_BYTES_MAX[dice.below(MESSAGE_BYTES_MAX.len())];
        let has_heartbeat = dice.one_in(3);
        let limits = Limits {
            message_bytes_max,
            pending_bytes_max: dice.below(1_000),
            write_timeout: Duration::from_millis(1_500),
            close_timeout: CLOSE_TIMEOUT,
            ..Limits::default()
        };
        let mut world = World::new(Setup {
            limits,
            heartbeat: has_heartbeat
                .then(|| Heartbeat::new(Duration::from_millis(400), Duration::from_millis(900))),
            handler: Box::new(handler),
            ..Setup::default()
        });
        let client = world.join();
        Self {
            world,
            dice,
            message_bytes_max,
            client,
            to_send: Vec::new(),
            delivered: Vec::new(),
            got: Vec::new(),
            sent: 0,
            closed: None,
            has_heartbeat,
            stalled: false,
            waited: Duration::ZERO,
            ended: false,
            reset: false,
        }
    }

    fn step(&mut self) {
        match self.dice.below(32) {
            0..10 => self.say(),
            10..17 => {
                let n = match self.dice.below(3) {
                    0 => 1,
                    1 => self.dice.below(40),
                    _ => self.to_send.len(),
                };
                self.deliver(n);
            }
            17..20 => {
                let text = format!("S:{}", self.sent);
                if self.world.try_send(self.client, &text).is_ok() {
                    self.sent += 1;
                }
            }
            20..22 => self.world.turn(),
            22..25 if !self.world.jobs.is_empty() => self.world.run_job(0),
            25 => self.world.hub.wake_deferred(),
            26 => {
                let ms = match self.dice.below(8) {
                    0 => self.dice.below(1_000),
                    _ => self.dice.below(20),
                };
                self.world.advance_ms(ms as u64);
                if self.stalled {
                    self.waited += Duration::from_millis(ms as u64);
                }
            }
            27 if self.dice.one_in(3) => {
                self.stalled = true;
                let room = self.dice.below(300);
                self.world.stall(self.client, room);
            }
            28 => {
                let room = self.dice.below(300);
                self.world.pipe(self.client).add_room(room);
            }
            29 if self.dice.one_in(4) => self.close(),
            30 if self.dice.one_in(8) => {
                self.world.pipe(self.client).client_ends();
                self.ended = true;
            }
            31 if self.dice.one_in(16) => {
                self.world.pipe(self.client).client_resets();
                self.reset = true;
            }
            _ => self.world.settle(),
        }
    }

    /// Queues a well-formed or malformed frame of the client.
    fn say(&mut self) {
        let len = match self.dice.below(8) {
            0 => self.dice.below(400),
            1 => 125 + self.dice.below(2),
            _ => self.dice.below(30),
        };
        let payload: Vec<u8> = (0..len).map(|n| b'a' + (n % 26) as u8).collect();
        let control = &payload[..len.min(125)];
        let frame = match self.dice.below(24) {
            0..6 => client_frame(0x81, &payload),
            6 | 7 => client_frame(0x82, &payload),
            8 => client_frame(0x01, &payload),
            9 => client_frame(0x02, &payload),
            10 => client_frame(0x00, &payload),
            11..13 => client_frame(0x80, &payload),
            13..17 => client_frame(0x89, control),
            17 => client_frame(0x8A, control),
            18 => {
                // A character that is split between two fragments, or is invalid.
                let cut = 1 + self.dice.below(3);
                let (first, second) = "🦀".as_bytes().split_at(cut);
                let mut frames = client_frame(0x01, first);
                frames.extend(client_frame(
                    0x80,
                    &second[..self.dice.below(second.len() + 1)],
                ));
                frames
            }
            19 => self.client_close(control),
            20 | 21 => self.dice.bytes(20),
            22 => self.broken_frame(&payload),
            _ => client_frame(0x81, &vec![b'x'; self.message_bytes_max]),
        };
        self.to_send.extend(frame);
    }

    fn client_close(&mut self, reason: &[u8]) -> Vec<u8> {
        let code = match self.dice.below(8) {
            0 => return client_frame(0x88, b""),
            1 => return client_frame(0x88, b"\x03"),
            2 => BAD_CODES[self.dice.below(BAD_CODES.len())],
            _ => CODES[self.dice.below(CODES.len())],
        };
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(&reason[..reason.len().min(120)]);
        if self.dice.one_in(8) {
            payload.push(0xFF);
        }
        client_frame(0x88, &payload)
    }

    fn broken_frame(&mut self, payload: &[u8]) -> Vec<u8> {
        match self.dice.below(8) {
            0 => vec![0x81, 0x01, b'x'],
            1 => client_frame(0x91 + 0x20 * self.dice.below(3) as u8, payload),
            2 => client_frame(0x83, payload),
            3 => client_frame(0x09, b""),
            4 => vec![0x89, 0x80 | 126, 0, 126],
            5 => vec![0x82, 0x80 | 126, 0, 125],
            6 => vec![0x82, 0x80 | 127, 0x80],
            _ => client_frame(0x82, &vec![0; self.message_bytes_max + 1]),
        }
    }

    fn deliver(&mut self, n: usize) {
        if self.ended || self.reset {
            return;
        }
        let n = n.min(self.to_send.len());
        let bytes: Vec<u8> = self.to_send.drain(..n).collect();
        self.world.pipe(self.client).client_sends(&bytes);
        self.delivered.extend(bytes);
    }

    /// Lets the program close the connection.
    fn close(&mut self) {
        let code = CODES[self.dice.below(CODES.len())];
        let reason = "ä".repeat(self.dice.below(100));
        if self.world.try_close(self.client, code, &reason).is_ok() {
            let sent = (code, reason_prefix(&reason).to_owned());
            self.closed.get_or_insert(sent);
        }
    }

    fn collect(&mut self) {
        self.got.extend(self.world.output(self.client));
    }

    /// Runs the simulation and returns the random choices it made.
    fn hold_to_the_end(mut self, steps: usize) -> Vec<u8> {
        for _ in 0..steps {
            if self.dice.is_used_up() {
                break;
            }
            self.step();
            self.collect();
        }
        self.deliver(usize::MAX);
        self.world.unstall(self.client);
        self.world.hub.wake_deferred();
        self.world.run_handlers();
        self.collect();
        let is_over = self.world.is_closed(self.client) || self.world.is_finished(self.client);
        self.world.stop(Duration::from_millis(700));
        self.world.run_handlers();
        self.world.advance_ms(710);
        self.world.run_handlers();
        self.world.turn();
        assert!(self.world.has_stopped());
        self.world.finish();
        self.collect();
        assert!(self.world.is_closed(self.client));
        let transcript = reference::read(&self.delivered, self.message_bytes_max);
        self.check_told(&transcript);
        self.check_answers(&transcript);
        if self.is_undisturbed() {
            let should_be = self.ended || !matches!(transcript.end, TranscriptEnd::Open { .. });
            assert_eq!(is_over, should_be, "over before the engine stopped");
        }
        self.dice.taken()
    }

    /// Whether only the client's input determined the outcome.
    fn is_undisturbed(&self) -> bool {
        !self.stalled && !self.has_heartbeat && !self.reset && self.closed.is_none()
    }

    /// Whether no deadline has expired and the connection did not break.
    fn is_uncut(&self) -> bool {
        // All other deadlines are longer.
        !self.reset && self.waited < CLOSE_TIMEOUT && self.world.metrics().heartbeat_timeouts == 0
    }

    fn check_told(&mut self, transcript: &Transcript) {
        let told = self.world.told(self.client);
        assert_eq!(told[..2], [Told::Entered, Told::Open]);
        assert_eq!(told[told.len() - 2..], [Told::Left, Told::Close]);
        let messages: Vec<Told> = messages(transcript).map(Told::message).collect();
        let told = &told[2..told.len() - 2];
        assert!(messages.starts_with(told), "{told:?} of {messages:?}");
        let metrics = self.world.metrics();
        let is_broken = matches!(transcript.end, TranscriptEnd::Broken(_));
        assert!(metrics.protocol_errors <= u64::from(is_broken));
        if self.is_undisturbed() {
            assert_eq!(told, messages);
            assert_eq!(metrics.messages_in, messages.len() as u64);
            assert_eq!(metrics.protocol_errors, u64::from(is_broken));
        }
    }

    fn check_answers(&mut self, transcript: &Transcript) {
        let mut frames = parse_frames(&mut self.got);
        let close = match frames.pop() {
            Some(Frame::Close(code, reason)) => {
                assert_eq!(self.got, b"", "after a close");
                Some((code, reason))
            }
            Some(other) => {
                frames.push(other);
                None
            }
            None => None,
        };
        self.check_close(transcript, close);
        let mut replies = messages(transcript);
        let mut pongs = Vec::new();
        let mut sent = 0;
        for frame in frames {
            match frame {
                Frame::Text(payload) if payload.starts_with("S:") => {
                    assert_eq!(payload, format!("S:{sent}"));
                    sent += 1;
                }
                Frame::Text(payload) => self.check_reply(replies.next(), payload.as_bytes()),
                Frame::Binary(payload) => self.check_reply(replies.next(), &payload),
                Frame::Pong(payload) => pongs.push(payload),
                Frame::Ping(_) => assert!(self.has_heartbeat, "a ping that nobody wanted"),
                Frame::Close(..) => panic!("the server sent two close frames"),
            }
        }
        let pings: Vec<_> = transcript
            .heard
            .iter()
            .filter_map(|heard| match heard {
                Heard::Ping(payload) => Some(payload.clone()),
                _ => None,
            })
            .collect();
        let mut rest = pings.iter();
        assert!(
            pongs.iter().all(|pong| rest.any(|ping| ping == pong)),
            "{pongs:?} for {pings:?}"
        );
        if self.is_uncut() && self.closed.is_none() {
            // RFC 6455 §5.5.3 requires a pong for at least the latest ping.
            assert_eq!(pongs.last(), pings.last());
            assert!(replies.next().is_none(), "a message without its reply");
        }
        if self.is_undisturbed() {
            assert_eq!(pongs, pings);
            if transcript.end == (TranscriptEnd::Open { mid_message: false }) && !self.ended {
                assert_eq!(sent, self.sent);
            }
        }
    }

    fn check_reply(&self, expected: Option<&Vec<u8>>, payload: &[u8]) {
        let expected = expected.map(|logged| [b"E:", &logged[..]].concat());
        assert_eq!(expected.as_deref(), Some(payload));
    }

    /// Checks the close frame that answers the client's close or violation, unless the server closed first (RFC 6455 §5.5.1,
    /// §7.1.7).
    fn check_close(&self, transcript: &Transcript, close: Option<(Option<u16>, String)>) {
        let answers = |close: &(Option<u16>, String)| match &transcript.end {
            TranscriptEnd::Closed(code, _) => close == &(*code, String::new()),
            TranscriptEnd::Broken(code) => close.0 == Some(*code) && !close.1.is_empty(),
            TranscriptEnd::Open { .. } => false,
        };
        let own = self
            .closed
            .clone()
            .map(|(code, reason)| (Some(code), reason));
        let is_open = matches!(transcript.end, TranscriptEnd::Open { .. });
        match close {
            Some(close) => {
                // A client that was still connected received the close of the engine's stop.
                let stops = close.0 == Some(1001) && is_open && own.is_none();
                let silences = self.world.metrics().heartbeat_timeouts;
                let was_silent = close.0 == Some(1011) && silences == 1;
                assert!(
                    answers(&close) || Some(&close) == own.as_ref() || stops || was_silent,
                    "{close:?} for {:?}",
                    transcript.end
                );
            }
            None => assert!(
                self.ended && is_open || !self.is_uncut(),
                "no close for {:?}",
                transcript.end
            ),
        }
    }
}

fn messages(transcript: &Transcript) -> impl Iterator<Item = &Vec<u8>> {
    transcript.heard.iter().filter_map(|heard| match heard {
        Heard::Message { payload, .. } => Some(payload),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fuzz::dice::for_seeds;

    const SEEDS: u64 = 400;

    #[test]
    fn random_dialogue_conforms_to_rfc_6455() {
        for_seeds(SEEDS, |seed| {
            // Includes short simulations, because a close ends most of them early.
            let steps = 10 + 3 * (seed as usize % 100);
            Dialogue::new(Dice::from_seed(seed)).hold_to_the_end(steps);
        });
    }
}
