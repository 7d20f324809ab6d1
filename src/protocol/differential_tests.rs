//! Compares this crate's state machine with tungstenite, in both roles. Given the same frames, both must receive the
//! same messages, answer with the same pongs and close codes, and fail at the same frame.
//!
//! An [`Exemption`] describes a case in which they differ because tungstenite is wrong or the RFC permits both. Each
//! exemption has a test that fails when it is no longer needed.
//!
//! A failure prints its seed. `SEED=<n> cargo test --lib differential` runs that seed alone, and `SEEDS=<n>` runs this
//! many seeds.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};

use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::close::CloseCode;
use super::connection::{FrameReader, ProtocolEvent};
use super::encode::{self, HEADER_BYTES_MAX, Opcode};
use super::fuzz::dice::{Dice, for_seeds};
use super::role::{self, Role as Side};

mod script;

use script::script;

const SEEDS: u64 = 4_000;

/// The outcome of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FrameOutcome {
    /// The frame has no outcome of its own, such as a fragment.
    Taken,
    Text(Vec<u8>),
    Binary(Vec<u8>),
    /// The payload, and the pong as it is written.
    Ping(Vec<u8>, Vec<u8>),
    Pong(Vec<u8>),
    /// The code and reason, and the code of the reply.
    Close(Option<u16>, String, Option<u16>),
    /// The close code of the violation.
    Failed(u16),
}

impl FrameOutcome {
    fn is_last(&self) -> bool {
        matches!(self, Self::Close(..) | Self::Failed(_))
    }
}

/// A permitted difference between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Exemption {
    /// Tungstenite accepts a length in more bytes than needed. RFC 6455 §5.2 requires the minimal number of bytes.
    NonMinimalLength,
    /// Tungstenite refuses the close code 1014. It is registered with IANA, so it is valid (RFC 6455 §7.4.2, §11.7).
    CloseCode1014,
    /// A frame violates several rules, and each side reports another one. RFC 6455 §7.4.1 does not specify which.
    SeveralRules,
}

/// A frame that was parsed according to RFC 6455 §5.2, independently of the crate's own code.
#[derive(Debug, Clone)]
struct ReferenceFrame {
    end: usize,
    first: u8,
    masked: bool,
    minimal: bool,
    len: u64,
    /// The unmasked payload. Empty if the frame is too long to be sent in full.
    payload: Vec<u8>,
}

/// Parses the frames of a script, and completes the last one. So it does not matter how early a side reports a
/// violation in it.
fn complete(bytes: &mut Vec<u8>, message_bytes_max: usize) -> Vec<ReferenceFrame> {
    let (mut at, mut frames) = (0, Vec::new());
    while at < bytes.len() {
        let mut take = |n: usize| {
            at += n;
            bytes.resize(bytes.len().max(at), 0);
            bytes[at - n..at].to_vec()
        };
        let [first, second] = take(2)[..] else {
            unreachable!()
        };
        let masked = second & 0x80 != 0;
        let number = |bytes: Vec<u8>| bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
        let (len, least) = match second & 0x7F {
            126 => (number(take(2)), 126),
            127 => (number(take(8)), 0x1_0000),
            len => (u64::from(len), 0),
        };
        let key = take(if masked { 4 } else { 0 });
        let is_sent = len <= message_bytes_max.max(125) as u64;
        let mut payload = take(if is_sent { len as usize } else { 0 });
        for (byte, key) in payload.iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
        let minimal = len >= least;
        frames.push(ReferenceFrame {
            end: at,
            first,
            masked,
            minimal,
            len,
            payload,
        });
        if !is_sent {
            // Neither side reads further bytes.
            bytes.truncate(at);
        }
    }
    frames
}

/// Returns the close codes of all rules that the last frame violates, if the earlier frames violate none.
fn broken_rules(frames: &[ReferenceFrame], message_bytes_max: usize) -> Vec<u16> {
    let mut broken: Vec<u16> = Vec::new();
    let mut message: Option<(bool, Vec<u8>)> = None;
    for frame in frames {
        assert!(broken.is_empty(), "frames before the last break rules");
        let (opcode, fin) = (frame.first & 0x0F, frame.first & 0x80 != 0);
        let mut breaks = |code, is_broken: bool| broken.extend(is_broken.then_some(code));
        breaks(1002, frame.first & 0x70 != 0);
        breaks(1002, matches!(opcode, 3..=7 | 11..));
        breaks(1002, !frame.masked || !frame.minimal);
        breaks(1002, frame.len >> 63 != 0);
        breaks(1009, frame.len > message_bytes_max.max(125) as u64);
        if opcode >= 8 {
            breaks(1002, !fin || frame.len > 125);
            if opcode == 8
                && let Some((code, reason)) = frame.payload.split_first_chunk()
            {
                let code = u16::from_be_bytes(*code);
                let may_travel = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
                breaks(1002, !may_travel);
                breaks(1007, std::str::from_utf8(reason).is_err());
            } else if opcode == 8 {
                breaks(1002, !frame.payload.is_empty());
            }
            continue;
        }
        breaks(1002, message.is_some() != (opcode == 0));
        let (is_text, mut payload) = message.take().unwrap_or((opcode == 1, Vec::new()));
        let held = payload.len() as u64;
        breaks(
            1009,
            frame.len.saturating_add(held) > message_bytes_max as u64,
        );
        payload.extend(&frame.payload);
        let utf8 = std::str::from_utf8(&payload);
        let is_invalid = utf8.is_err_and(|error| fin || error.error_len().is_some());
        breaks(1007, is_text && is_invalid);
        message = (!fin).then_some((is_text, payload));
    }
    broken
}

// --------------------------------------------------------------------------------------------------------- both sides

/// Passes the frames to this crate, one by one, each split at random positions.
fn ours<R: Side>(
    bytes: &[u8],
    frames: &[ReferenceFrame],
    max: usize,
    dice: &mut Dice,
) -> Vec<FrameOutcome> {
    let mut connection = FrameReader::<R>::in_role(max);
    let (mut outcomes, mut at) = (Vec::new(), 0);
    for frame in frames {
        let mut outcome = FrameOutcome::Taken;
        while at < frame.end {
            let left = frame.end - at;
            let len = if dice.one_in(2) {
                left
            } else {
                1 + dice.below(left)
            };
            let mut part = bytes[at..at + len].to_vec();
            at += len;
            let mut input = part.as_mut_slice();
            while !outcome.is_last() && !input.is_empty() {
                if let Some(next) = receive(&mut connection, &mut input) {
                    assert_eq!(
                        outcome,
                        FrameOutcome::Taken,
                        "one frame is one event at most"
                    );
                    outcome = next;
                }
            }
        }
        outcomes.push(outcome);
        if outcomes.last().is_some_and(FrameOutcome::is_last) {
            break;
        }
    }
    outcomes
}

fn receive<R: Side>(
    connection: &mut FrameReader<R>,
    input: &mut &mut [u8],
) -> Option<FrameOutcome> {
    Some(match connection.receive(input) {
        Ok(None) => return None,
        Ok(Some(ProtocolEvent::Message { text, payload })) => {
            let payload = payload.bytes().to_vec();
            if text {
                FrameOutcome::Text(payload)
            } else {
                FrameOutcome::Binary(payload)
            }
        }
        Ok(Some(ProtocolEvent::Compressed { .. })) => unreachable!("it was not agreed"),
        Ok(Some(ProtocolEvent::Ping(payload))) => {
            let answer = encode::control(Opcode::Pong, &payload);
            FrameOutcome::Ping(payload.to_vec(), answer)
        }
        Ok(Some(ProtocolEvent::Pong(payload))) => FrameOutcome::Pong(payload.to_vec()),
        Ok(Some(ProtocolEvent::Close(frame))) => {
            let answer = encode::close(frame.code.map(|code| (code, "")));
            let code = frame.code.map(CloseCode::get);
            FrameOutcome::Close(code, frame.reason, code_in(&answer))
        }
        Err(violation) => FrameOutcome::Failed(violation.close_code().get()),
    })
}

/// Passes the bytes to this crate, at once or split at positions that are independent of the frames.
fn ours_cut<R: Side>(bytes: &[u8], max: usize, dice: &mut Dice) -> Vec<FrameOutcome> {
    let mut connection = FrameReader::<R>::in_role(max);
    let (mut outcomes, mut at) = (Vec::<FrameOutcome>::new(), 0);
    while at < bytes.len() && !outcomes.last().is_some_and(FrameOutcome::is_last) {
        let left = bytes.len() - at;
        let len = if dice.one_in(3) {
            left
        } else {
            1 + dice.below(left)
        };
        let mut part = bytes[at..at + len].to_vec();
        at += len;
        let mut input = part.as_mut_slice();
        while let Some(outcome) = receive(&mut connection, &mut input) {
            let is_last = outcome.is_last();
            outcomes.push(outcome);
            if is_last {
                break;
            }
        }
    }
    outcomes
}

/// Returns the code of an unmasked close frame.
fn code_in(frame: &[u8]) -> Option<u16> {
    assert_eq!((frame[0], usize::from(frame[1])), (0x88, frame.len() - 2));
    let code = frame.get(2..4)?;
    Some(u16::from_be_bytes([code[0], code[1]]))
}

/// A socket that returns prepared input, and records the output.
#[derive(Default)]
struct MemorySocket {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Read for MemorySocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for MemorySocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tungstenite(role: Role, max: usize) -> WebSocket<MemorySocket> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(Some(max))
        // This limit also applies to control frames, for which tungstenite checks no other limit before they are
        // complete.
        .max_frame_size(Some(max.max(125)));
    WebSocket::from_raw_socket(MemorySocket::default(), role, Some(config))
}

/// Passes the frames to tungstenite, one by one.
fn theirs(role: Role, bytes: &[u8], frames: &[ReferenceFrame], max: usize) -> Vec<FrameOutcome> {
    let mut server = tungstenite(role, max);
    let (mut outcomes, mut at) = (Vec::new(), 0);
    for frame in frames {
        server.get_mut().input.extend(&bytes[at..frame.end]);
        at = frame.end;
        let outcome = match server.read() {
            Ok(message) => {
                // Flush the replies before the next frame.
                let _ = server.flush();
                let answer = std::mem::take(&mut server.get_mut().output);
                told(message, plain(answer))
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                FrameOutcome::Taken
            }
            Err(Error::Protocol(_)) => FrameOutcome::Failed(1002),
            Err(Error::Utf8(_)) => FrameOutcome::Failed(1007),
            Err(Error::Capacity(_)) => FrameOutcome::Failed(1009),
            Err(other) => panic!("{other:?}"),
        };
        outcomes.push(outcome);
        if outcomes.last().is_some_and(FrameOutcome::is_last) {
            break;
        }
        let next = server.read();
        assert!(
            matches!(next, Err(Error::Io(_))),
            "a second event: {next:?}"
        );
    }
    outcomes
}

/// Unmasks a reply, which is a control frame or empty.
fn plain(mut answer: Vec<u8>) -> Vec<u8> {
    if answer.get(1).is_some_and(|second| second & 0x80 != 0) {
        let key: Vec<u8> = answer.drain(2..6).collect();
        answer[1] &= 0x7F;
        for (byte, key) in answer[2..].iter_mut().zip(key.iter().cycle()) {
            *byte ^= key;
        }
    }
    answer
}

/// Converts frames of a client into those of a server: masks the unmasked ones and unmasks the masked ones. Everything
/// else stays, valid or not.
fn with_role_swapped(bytes: &[u8], frames: &[ReferenceFrame]) -> (Vec<u8>, Vec<ReferenceFrame>) {
    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let (mut other, mut moved, mut at) = (Vec::new(), Vec::new(), 0);
    for frame in frames {
        let length_bytes = match bytes[at + 1] & 0x7F {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        other.extend([bytes[at], bytes[at + 1] ^ 0x80]);
        other.extend_from_slice(&bytes[at + 2..at + 2 + length_bytes]);
        if frame.masked {
            other.extend_from_slice(&frame.payload);
        } else {
            other.extend(KEY);
            other.extend(
                frame
                    .payload
                    .iter()
                    .zip(KEY.iter().cycle())
                    .map(|(b, k)| b ^ k),
            );
        }
        at = frame.end;
        moved.push(ReferenceFrame {
            end: other.len(),
            ..frame.clone()
        });
    }
    (other, moved)
}

fn told(message: Message, answer: Vec<u8>) -> FrameOutcome {
    match message {
        Message::Text(text) => FrameOutcome::Text(text.as_bytes().to_vec()),
        Message::Binary(bytes) => FrameOutcome::Binary(bytes.to_vec()),
        Message::Ping(payload) => FrameOutcome::Ping(payload.to_vec(), answer),
        Message::Pong(payload) => FrameOutcome::Pong(payload.to_vec()),
        // Tungstenite reports a code that must not be sent like this.
        Message::Close(Some(frame)) if frame.reason.as_str() == "Protocol violation" => {
            assert_eq!(code_in(&answer), Some(1002));
            FrameOutcome::Failed(1002)
        }
        Message::Close(frame) => {
            let code = frame.as_ref().map(|frame| u16::from(frame.code));
            let reason = frame.map(|frame| frame.reason.to_string());
            FrameOutcome::Close(code, reason.unwrap_or_default(), code_in(&answer))
        }
        Message::Frame(_) => unreachable!("it is never read"),
    }
}

// --------------------------------------------------------------------------------------------------------- comparison

/// The result of comparing both sides on one script.
struct Comparison {
    /// The outcome of the last frame in this crate.
    last: FrameOutcome,
    exemption: Option<Exemption>,
}

/// Passes a script to both sides. Panics if they differ without an exemption.
fn compare(mut bytes: Vec<u8>, max: usize, dice: &mut Dice) -> Comparison {
    let frames = complete(&mut bytes, max);
    let verdict = compare_as::<role::ServerRole>(Role::Server, &bytes, &frames, max, dice);
    let (bytes, frames) = with_role_swapped(&bytes, &frames);
    let as_client = compare_as::<role::ClientRole>(Role::Client, &bytes, &frames, max, dice);
    assert_eq!(as_client.last, verdict.last, "client and server differ");
    assert_eq!(as_client.exemption, verdict.exemption);
    verdict
}

fn compare_as<R: Side>(
    role: Role,
    bytes: &[u8],
    frames: &[ReferenceFrame],
    max: usize,
    dice: &mut Dice,
) -> Comparison {
    let ours = ours::<R>(bytes, frames, max, dice);
    let theirs = theirs(role, bytes, frames, max);
    let mut told = ours.clone();
    told.retain(|outcome| *outcome != FrameOutcome::Taken);
    assert_eq!(
        ours_cut::<R>(bytes, max, dice),
        told,
        "the outcome depends on how the input is split"
    );
    let last = ours.last().cloned().unwrap_or(FrameOutcome::Taken);
    let at = ours.len() - 1;
    // Independently of tungstenite, this crate must fail if and only if the frame violates a rule, and report one of
    // the violated rules.
    let broken = broken_rules(&frames[..=at], max);
    match last {
        FrameOutcome::Failed(code) => {
            assert!(
                broken.contains(&code),
                "{code} is not among the violations {broken:?}"
            )
        }
        _ => assert!(
            broken.is_empty(),
            "a frame with the violations {broken:?} was accepted"
        ),
    }
    let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    let exemption = (same < ours.len().max(theirs.len())).then(|| {
        let (ours, theirs) = (ours.get(same), theirs.get(same));
        exemption(&frames[..=same], max, ours, theirs).unwrap_or_else(|| {
            panic!("frame {same}, limit {max}: ours {ours:?}, theirs {theirs:?}\n{frames:X?}")
        })
    });
    Comparison { last, exemption }
}

/// Returns the exemption for a difference in the last of these frames. Both sides have received the earlier ones
/// equally.
fn exemption(
    frames: &[ReferenceFrame],
    max: usize,
    ours: Option<&FrameOutcome>,
    theirs: Option<&FrameOutcome>,
) -> Option<Exemption> {
    use FrameOutcome::{Close, Failed};
    let (frame, before) = frames.split_last()?;
    match (ours?, theirs?) {
        (Failed(ours), Failed(theirs)) => {
            let broken = broken_rules(frames, max);
            (broken.contains(ours) && broken.contains(theirs)).then_some(Exemption::SeveralRules)
        }
        (Failed(1002), _) if !frame.minimal => {
            // The frame must have no other fault.
            let mut otherwise = before.to_vec();
            otherwise.push(ReferenceFrame {
                minimal: true,
                ..frame.clone()
            });
            let broken = broken_rules(&otherwise, max);
            broken.is_empty().then_some(Exemption::NonMinimalLength)
        }
        (Close(Some(1014), ..), Failed(1002)) => Some(Exemption::CloseCode1014),
        _ => None,
    }
}

#[test]
#[cfg_attr(
    not(target_pointer_width = "64"),
    ignore = "tungstenite 0.28 cuts lengths to the width of an address"
)]
fn both_receive_the_same_and_fail_at_the_same_frame() {
    let (mut ends, mut exempted) = (BTreeMap::new(), BTreeMap::new());
    let mut played = 0;
    for_seeds(SEEDS, |seed| {
        let mut dice = Dice::from_seed(seed);
        let (bytes, max) = script(&mut dice);
        let verdict = compare(bytes, max, &mut dice);
        let end = match verdict.last {
            FrameOutcome::Failed(code) => code,
            FrameOutcome::Close(..) => 1000,
            _ => 0,
        };
        *ends.entry(end).or_insert(0) += 1;
        *exempted.entry(verdict.exemption).or_insert(0) += 1;
        played += 1;
    });
    if played >= SEEDS {
        // Check that the generator produces every kind of outcome.
        for end in [0, 1000, 1002, 1007, 1009] {
            assert!(ends.get(&end).is_some_and(|&n| n > 100), "{ends:?}");
        }
        assert_eq!(exempted.len(), 4, "{exempted:?}");
        assert!(exempted[&None] * 10 > SEEDS * 8, "{exempted:?}");
    }
}

#[test]
#[cfg_attr(
    not(target_pointer_width = "64"),
    ignore = "tungstenite 0.28 cuts lengths to the width of an address"
)]
fn every_exemption_is_still_needed() {
    let masked = |head: &[u8], payload: &[u8]| [head, &[0; 4], payload].concat();
    let cases = [
        (
            Exemption::NonMinimalLength,
            masked(&[0x81, 0xFE, 0, 2], b"hi"),
        ),
        (
            Exemption::CloseCode1014,
            masked(&[0x88, 0x82], &1014u16.to_be_bytes()),
        ),
        // The frame is too long and unmasked.
        (Exemption::SeveralRules, vec![0x82, 126, 4, 0]),
        // The frame is too long, because it sets the bit that must be zero.
        (
            Exemption::SeveralRules,
            masked(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], b""),
        ),
        // The code must not be sent, and the reason is not UTF-8.
        (
            Exemption::SeveralRules,
            masked(&[0x88, 0x83], &[3, 0xED, 0xFF]),
        ),
    ];
    for (exemption, bytes) in cases {
        let verdict = compare(bytes.clone(), 1_000, &mut Dice::from_seed(1));
        assert_eq!(verdict.exemption, Some(exemption), "{bytes:X?}");
    }
}

#[test]
fn sent_frames_are_read_by_a_foreign_client() {
    for_seeds(300, |seed| {
        let mut dice = Dice::from_seed(seed);
        let mut client = tungstenite(Role::Client, 200_000);
        let mut sent = Vec::new();
        for _ in 0..=dice.below(6) {
            sent.push(sent_frame(&mut dice));
        }
        let code = CloseCode::try_from([1000, 1001, 1011, 1013, 4000][dice.below(5)]).unwrap();
        let reason = "täglich ".repeat(dice.below(40));
        let close = encode::close(Some((code, &reason)));
        let bytes: Vec<u8> = sent.iter().flat_map(|(frame, _)| frame.clone()).collect();
        let mut rest = [bytes, close].concat();
        let mut expected = VecDeque::from_iter(sent.into_iter().map(|(_, message)| message));
        let close = loop {
            match client.read() {
                Ok(Message::Close(frame)) => break frame.unwrap(),
                Ok(message) => assert_eq!(Some(message), expected.pop_front()),
                Err(Error::Io(_)) => {
                    assert!(!rest.is_empty(), "it waits for more: {expected:?}");
                    let len = 1 + dice.below(rest.len());
                    client.get_mut().input.extend(rest.drain(..len));
                }
                Err(other) => panic!("{other:?}"),
            }
        };
        assert!(expected.is_empty() && rest.is_empty());
        assert_eq!(u16::from(close.code), code.get());
        assert!(reason.starts_with(close.reason.as_str()));
        assert!(close.reason.len() >= reason.len().min(122));
    });
}

/// Creates a frame of this crate, and returns it with its message.
fn sent_frame(dice: &mut Dice) -> (Vec<u8>, Message) {
    let len = match dice.below(12) {
        0 => 0xFFFE + dice.below(4),
        1..4 => 124 + dice.below(4),
        _ => dice.below(90),
    };
    let bytes: Vec<u8> = (0..len).map(|_| b' ' + dice.below(90) as u8).collect();
    let message = |opcode, message| {
        let mut headroom = [0; HEADER_BYTES_MAX];
        let header_len = encode::write_header(opcode, len, &mut headroom);
        let header = &headroom[HEADER_BYTES_MAX - header_len..];
        ([header, &bytes].concat(), message)
    };
    match dice.below(4) {
        0 => {
            let text = String::from_utf8(bytes.clone()).unwrap();
            message(Opcode::Text, Message::text(text))
        }
        1 => message(Opcode::Binary, Message::binary(bytes.clone())),
        kind => {
            let payload = bytes[..len.min(125)].to_vec();
            if kind == 2 {
                let frame = encode::control(Opcode::Ping, &payload);
                (frame, Message::Ping(payload.into()))
            } else {
                let frame = encode::control(Opcode::Pong, &payload);
                (frame, Message::Pong(payload.into()))
            }
        }
    }
}
