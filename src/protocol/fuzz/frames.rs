//! Checks frames from a client or from a server that arrive in arbitrary pieces.
//!
//! A case consists of the message limit, the cuts, and the bytes of the peer.

use super::reference::{self, Heard, Transcript, TranscriptEnd};
use super::{byte, cuts, pieces};
use crate::protocol::connection::{MessagePayload, Progress, ProtocolEvent, ReceiveRules};
use crate::protocol::error::Violation;
use crate::protocol::role::{ClientRole, Role, ServerRole};

const LIMITS: [usize; 6] = [0, 1, 125, 200, 66_000, usize::MAX];

/// The maximum memory of a message in progress, besides twice the bytes that have arrived. It covers the reservation in
/// advance (`assembler::reserve`) and the state.
const HELD_BYTES: usize = 2 * 4096 + 512;

/// Checks frames from a client.
pub(crate) fn run(data: &[u8]) {
    run_as::<ServerRole>(data, reference::read);
}

/// Checks frames from a server.
pub(crate) fn run_as_client(data: &[u8]) {
    run_as::<ClientRole>(data, reference::read_of_server);
}

fn run_as<R: Role>(mut data: &[u8], read: fn(&[u8], usize) -> Transcript) {
    let message_bytes_max = LIMITS[usize::from(byte(&mut data)) % LIMITS.len()];
    let cuts = cuts(&mut data);
    let expected = read(data, message_bytes_max);
    let pieces = pieces(data, cuts);
    for frame_by_frame in [false, true] {
        let receive = |pieces: &[&[u8]]| receive::<R>(pieces, message_bytes_max, frame_by_frame);
        assert_eq!(receive(&[data]), expected, "whole");
        assert_eq!(receive(&pieces), expected, "{pieces:?}");
    }
}

fn receive<R: Role>(
    pieces: &[&[u8]],
    message_bytes_max: usize,
    frame_by_frame: bool,
) -> Transcript {
    let mut connection = Progress::<R>::default();
    let rules = ReceiveRules::plain(message_bytes_max);
    let mut heard = Vec::new();
    let mut end = None;
    let mut arrived = 0;
    for piece in pieces {
        arrived += piece.len();
        let mut bytes = piece.to_vec();
        let mut input = &mut bytes[..];
        loop {
            let received = match frame_by_frame {
                true => connection.receive_frame(&mut input, rules),
                false => connection.receive(&mut input, rules),
            };
            match received {
                Ok(None) if input.is_empty() => break,
                Ok(None) => {
                    let is_fragment = connection.is_between_frames() && connection.is_mid_message();
                    assert!(frame_by_frame && is_fragment, "bytes are left");
                }
                Ok(Some(event)) => {
                    assert_eq!(end, None, "something after the end");
                    match event {
                        ProtocolEvent::Message { text, payload } => {
                            heard.push(message(text, payload));
                            arrived = input.len();
                        }
                        ProtocolEvent::Compressed { .. } => unreachable!("it was not agreed"),
                        ProtocolEvent::Ping(payload) => heard.push(Heard::Ping(payload.to_vec())),
                        ProtocolEvent::Pong(payload) => heard.push(Heard::Pong(payload.to_vec())),
                        ProtocolEvent::Close(frame) => {
                            let code = frame.code.map(|code| code.get());
                            end = Some(TranscriptEnd::Closed(code, frame.reason));
                        }
                    }
                }
                Err(violation) => {
                    assert_eq!(end, None, "something after the end");
                    end = Some(TranscriptEnd::Broken(close_code(violation)));
                }
            }
        }
        assert!(input.is_empty(), "everything is taken");
        let held = connection.held_bytes();
        assert!(
            held <= 2 * arrived + HELD_BYTES,
            "{held} held, {arrived} arrived"
        );
    }
    let end = end.unwrap_or_else(|| TranscriptEnd::Open {
        mid_message: connection.is_mid_message(),
    });
    Transcript { heard, end }
}

fn message(text: bool, payload: MessagePayload<'_>) -> Heard {
    let bytes = payload.bytes().to_vec();
    if text {
        assert!(std::str::from_utf8(&bytes).is_ok(), "text is UTF-8");
    }
    if let MessagePayload::Assembled(buffer) = payload {
        assert!(buffer.capacity() <= buffer.len() + buffer.len() / 8);
    }
    Heard::Message {
        text,
        payload: bytes,
    }
}

fn close_code(violation: Violation) -> u16 {
    violation.close_code().get()
}
