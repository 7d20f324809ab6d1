//! permessage-deflate for any bytes: a response is legal for its offer, the result of inflating does not depend on the size of
//! the steps, and compressed messages inflate to the originals.

use crate::protocol::deflate::compress::{Compressor, CompressorSize};
use crate::protocol::deflate::inflate::{Inflater, InvalidData, STEP_BYTES, Takeover};
use crate::protocol::deflate::negotiate::{accept, answered};
use crate::protocol::encode::{HEADER_BYTES_MAX, MessageKind};
use crate::protocol::fuzz::{byte, cuts};

/// Longer than a step, so that a message takes several.
const MESSAGE_BYTES_MAX: usize = 3 * STEP_BYTES;

/// Checks an offer, given as a header's value.
pub(crate) fn run_offers(data: &[u8]) {
    let Ok(offers) = std::str::from_utf8(data) else {
        return;
    };
    let Some(agreement) = accept([offers]) else {
        return;
    };
    let answer = agreement.to_string();
    assert_eq!(answered([answer.as_str()]), Some(true), "{answer}");
    // The response confirms only requested parameters.
    for parameter in answer.split(';').skip(1).map(str::trim) {
        let name = parameter.split('=').next().unwrap_or_default();
        assert!(
            name == "client_no_context_takeover" || offers.contains(name),
            "{answer}"
        );
    }
    assert!((8..=15).contains(&agreement.window_bits()));
}

/// Inflates a payload at once and in small steps.
pub(crate) fn run_inflate(data: &[u8]) {
    let mut data = data;
    let step_max = 1 + usize::from(byte(&mut data)) * 64;
    for takeover in [Takeover::No, Takeover::Yes] {
        let whole = inflated(&mut Inflater::new(takeover), data, STEP_BYTES);
        let in_steps = inflated(&mut Inflater::new(takeover), data, step_max);
        assert_eq!(whole, in_steps);
    }
}

/// Inflates a payload. `None` if the message is too long.
fn inflated(
    inflater: &mut Inflater,
    payload: &[u8],
    step_max: usize,
) -> Result<Option<Vec<u8>>, InvalidData> {
    inflater.begin();
    let (mut at, mut out) = (0, Vec::new());
    loop {
        let room = MESSAGE_BYTES_MAX - out.len() + 1;
        let step = inflater.step(payload, &mut at, &out, room.min(step_max))?;
        let is_last = step.is_last;
        assert!(step.bytes.len() <= step_max && step.work > 0);
        out.extend_from_slice(step.bytes);
        if out.len() > MESSAGE_BYTES_MAX {
            return Ok(None);
        }
        if is_last {
            return Ok(Some(out));
        }
    }
}

/// Compresses messages one after the other, and inflates them as one client.
pub(crate) fn run_compress(data: &[u8]) {
    let mut data = data;
    let lens = cuts(&mut data);
    let mut compressor = Compressor::new(CompressorSize {
        window_bits: 13,
        memory_level: 6,
    });
    let mut client = Inflater::new(Takeover::Yes);
    let mut tail: Vec<u8> = Vec::new();
    for &len in lens {
        let level = 1 + byte(&mut data) % 9;
        let (message, rest) = data.split_at(data.len().min(usize::from(len) * 16));
        data = rest;
        if byte(&mut data).is_multiple_of(4) {
            compressor.restart(&tail[tail.len().saturating_sub(4096)..]);
        }
        match compressor.compress(MessageKind::Text, message, level, 8) {
            Ok(frame) => {
                let header = match frame.get(1) {
                    Some(126) => 4,
                    Some(127) => HEADER_BYTES_MAX,
                    _ => 2,
                };
                let compressed = frame.get(header..).unwrap_or_default();
                assert!(compressed.len() < message.len() + 8);
                let read = inflated(&mut client, compressed, STEP_BYTES);
                assert_eq!(read, Ok(Some(message.to_vec())));
                tail.extend_from_slice(message);
            }
            Err(_) => compressor.restart(&tail[tail.len().saturating_sub(4096)..]),
        }
    }
}
