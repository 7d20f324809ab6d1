//! Checks the parsing of close frames, the reply to them, and the encoding of any code and reason.
//!
//! The input is the payload of a close frame. Its first two bytes also serve as the code to encode, and the rest as the reason.

use super::reference::{self, TranscriptEnd};
use crate::protocol::close::{CloseCode, REASON_BYTES_MAX};
use crate::protocol::close_frame;
use crate::protocol::connection::{FrameReader, ProtocolEvent};
use crate::protocol::encode;

pub(crate) fn run(data: &[u8]) {
    receive(data);
    let code = u16::from_be_bytes(data.first_chunk().copied().unwrap_or_default());
    let made = CloseCode::try_from(code);
    assert_eq!(made.is_ok(), reference::may_travel(code), "{code}");
    if let Ok(made) = made {
        assert_eq!(made.get(), code);
        send(
            made,
            &String::from_utf8_lossy(data.get(2..).unwrap_or_default()),
        );
    }
}

/// Parses the payload alone and in a client's frame.
fn receive(data: &[u8]) {
    let payload = &data[..data.len().min(encode::CONTROL_BYTES_MAX)];
    let mut frame = vec![0x88, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    let expected = reference::read(&frame, 0).end;
    let parsed = match close_frame::parse(payload) {
        Ok(frame) => TranscriptEnd::Closed(frame.code.map(CloseCode::get), frame.reason),
        Err(violation) => TranscriptEnd::Broken(violation.close_code().get()),
    };
    assert_eq!(parsed, expected);
    let received = FrameReader::new(0).receive(&mut &mut frame[..]);
    let answer = match received {
        Ok(Some(ProtocolEvent::Close(frame))) => encode::close(frame.code.map(|code| (code, ""))),
        Err(violation) => encode::close(Some((violation.close_code(), violation.reason()))),
        other => panic!("{other:?} is not a close"),
    };
    let code = match expected {
        TranscriptEnd::Closed(code, _) => code,
        TranscriptEnd::Broken(code) => Some(code),
        TranscriptEnd::Open { .. } => panic!("the complete frame was not parsed"),
    };
    assert_eq!(read(&answer).0, code);
}

fn send(code: CloseCode, reason: &str) {
    let (sent_code, sent_reason) = read(&encode::close(Some((code, reason))));
    assert_eq!(sent_code, Some(code.get()));
    assert!(
        reason.starts_with(&sent_reason),
        "the sent reason is a prefix of the given one"
    );
    // A character has at most four bytes, so at most three more than necessary are cut off.
    let kept_min = reason.len().min(REASON_BYTES_MAX - 3);
    assert!(
        sent_reason.len() >= kept_min,
        "{reason:?} was cut too short"
    );
}

/// Parses a server's close frame with the reference parser, and returns its code and reason.
fn read(frame: &[u8]) -> (Option<u16>, String) {
    assert_eq!(frame[0], 0x88, "FIN, no reserved bits, close");
    assert!(frame[1] <= 125, "short length, and not masked");
    assert_eq!(frame.len(), 2 + usize::from(frame[1]));
    let mut masked = vec![0x88, 0x80 | frame[1], 0, 0, 0, 0];
    masked.extend_from_slice(&frame[2..]);
    match reference::read(&masked, 0).end {
        TranscriptEnd::Closed(code, reason) => (code, reason),
        other => panic!("{frame:?} is {other:?}"),
    }
}
