//! The subset of HTTP and RFC 6455 that the floor and the load client need.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

/// The path whose connection is the publisher of a fan-out.
pub(crate) const PUBLISH: &str = "/publish";
/// The path of visitors, which join and leave room 0.
pub(crate) const VISIT: &str = "/visit";

/// The path of event streams.
pub(crate) const EVENTS: &str = "/events";

/// The first message of a client in [`Job::Chat`](crate::args::Job::Chat) and
/// [`Job::RoundRobin`](crate::args::Job::RoundRobin). The reply shows that the client has joined its room.
pub(crate) const HELLO: &str = "hello";
/// Number of rooms in [`Job::RoundRobin`](crate::args::Job::RoundRobin).
pub(crate) const ROUND_ROBIN_ROOMS: usize = 64;

/// The name of a room: its number as text.
pub(crate) type RoomName = [u8; 8];

/// Offset of the room's name in a payload.
const ROOM_AT: usize = 16;
/// The name in messages for no room.
pub(crate) const NO_ROOM: RoomName = *b"--------";
/// In place of a room's name: marks a message whose handler blocks.
pub(crate) const BLOCK: RoomName = *b"sleep-50";
/// How long such a handler blocks.
pub(crate) const BLOCK_TIME: Duration = Duration::from_millis(50);

/// Whether the handler of a message blocks.
pub(crate) fn is_blocking(payload: &[u8]) -> bool {
    payload.get(ROOM_AT..ROOM_AT + BLOCK.len()) == Some(&BLOCK[..])
}

pub(crate) fn room_name(number: usize) -> RoomName {
    let mut name = NO_ROOM;
    let mut left = number;
    for digit in name.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    name
}

/// The room that a message names.
pub(crate) fn room_of(payload: &[u8]) -> Option<&str> {
    let name = payload.get(ROOM_AT..ROOM_AT + size_of::<RoomName>())?;
    (name != NO_ROOM).then(|| std::str::from_utf8(name).ok())?
}

/// A number as hexadecimal text, for messages that are lines.
pub(crate) fn hex(number: u64) -> [u8; 16] {
    let mut text = [0; 16];
    for (at, digit) in text.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * at)) as usize & 15];
    }
    text
}

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key`.
pub(crate) fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID.as_bytes());
    STANDARD.encode(hash.finalize())
}

/// The length of the HTTP head at the start of `bytes`, including the empty line.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

/// The value of a header in an HTTP head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

pub(crate) const BINARY: u8 = 2;
pub(crate) const TEXT: u8 = 1;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A complete frame from a client; positions are relative to the input.
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) mask: [u8; 4],
    /// Where the payload begins and ends.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The result of parsing the start of the input.
pub(crate) enum Parsed {
    Frame(Frame),
    /// The frame is not complete yet.
    Incomplete,
    /// Not an unfragmented, masked data message, which is all that the load client sends.
    Invalid,
}

pub(crate) fn client_frame(bytes: &[u8]) -> Parsed {
    let &[first, second, ..] = bytes else {
        return Parsed::Incomplete;
    };
    let opcode = first & 0x0F;
    if first & FIN == 0 || second & MASKED == 0 || !matches!(opcode, TEXT | BINARY) {
        return Parsed::Invalid;
    }
    let (length, mask_at) = match second & 0x7F {
        126 => match bytes.get(2..4) {
            Some(l) => (usize::from(u16::from_be_bytes([l[0], l[1]])), 4),
            None => return Parsed::Incomplete,
        },
        127 => match bytes.get(2..10).and_then(|l| <[u8; 8]>::try_from(l).ok()) {
            Some(l) => match u32::try_from(u64::from_be_bytes(l)) {
                Ok(length) => (length as usize, 10),
                Err(_) => return Parsed::Invalid,
            },
            None => return Parsed::Incomplete,
        },
        short => (usize::from(short), 2),
    };
    let start = mask_at + 4;
    let end = start + length;
    match bytes
        .get(mask_at..start)
        .and_then(|m| <[u8; 4]>::try_from(m).ok())
    {
        Some(mask) if bytes.len() >= end => Parsed::Frame(Frame {
            opcode,
            mask,
            start,
            end,
        }),
        _ => Parsed::Incomplete,
    }
}

/// Masks or unmasks, eight bytes at a time.
pub(crate) fn mask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = wide_mask(mask);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(eight) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ wide).to_ne_bytes());
        }
    }
    for (byte, key) in chunks
        .into_remainder()
        .iter_mut()
        .zip(mask.into_iter().cycle())
    {
        *byte ^= key;
    }
}

/// The mask repeated to eight bytes in memory order.
pub(crate) fn wide_mask([a, b, c, d]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}

/// Appends the header of an unfragmented, unmasked frame with the shortest length encoding.
pub(crate) fn put_server_head(out: &mut Vec<u8>, opcode: u8, length: usize) {
    put_head(out, opcode, length, 0);
}

/// Appends the header of an unfragmented, masked frame, including the mask.
pub(crate) fn put_client_head(out: &mut Vec<u8>, opcode: u8, length: usize, mask: [u8; 4]) {
    put_head(out, opcode, length, MASKED);
    out.extend_from_slice(&mask);
}

fn put_head(out: &mut Vec<u8>, opcode: u8, length: usize, masked: u8) {
    out.push(FIN | opcode);
    if let Ok(length @ ..=125) = u8::try_from(length) {
        out.push(masked | length);
    } else if let Ok(length) = u16::try_from(length) {
        out.push(masked | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_name_is_found_at_its_offset() {
        let mut payload = [0; 32];
        payload[16..24].copy_from_slice(&room_name(1_234));
        assert_eq!(room_of(&payload), Some("00001234"));
        payload[16..24].copy_from_slice(&NO_ROOM);
        assert_eq!(room_of(&payload), None);
        assert_eq!(room_of(&payload[..20]), None);
    }

    #[test]
    fn hex_text_parses_back_to_the_number() {
        for number in [0, 1, 0xABC_DEF0, u64::MAX] {
            let text = hex(number);
            let text = std::str::from_utf8(&text).unwrap();
            assert_eq!(u64::from_str_radix(text, 16), Ok(number));
        }
    }

    #[test]
    fn accept_key_matches_the_rfc_example() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn frame_of_every_length_form_is_parsed_once_complete() {
        for length in [0, 1, 7, 8, 32, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = Vec::new();
            put_client_head(&mut bytes, BINARY, length, [1, 2, 3, 4]);
            bytes.extend_from_slice(&payload);
            let start = bytes.len() - length;
            mask(&mut bytes[start..], [1, 2, 3, 4]);

            for short in 0..bytes.len().min(40) {
                assert!(
                    matches!(client_frame(&bytes[..short]), Parsed::Incomplete),
                    "{length} {short}"
                );
            }
            let Parsed::Frame(frame) = client_frame(&bytes) else {
                panic!("no frame of {length}")
            };
            assert_eq!((frame.opcode, frame.end), (BINARY, bytes.len()));
            mask(&mut bytes[frame.start..frame.end], frame.mask);
            assert_eq!(&bytes[frame.start..], payload);
        }
    }

    #[test]
    fn every_byte_of_any_length_is_masked() {
        for length in 0..20 {
            let mut payload = vec![0; length];
            mask(&mut payload, [1, 2, 3, 4]);
            let expected: Vec<u8> = [1, 2, 3, 4].into_iter().cycle().take(length).collect();
            assert_eq!(payload, expected);
        }
    }

    #[test]
    fn control_unmasked_and_fragmented_frames_are_invalid() {
        for bytes in [[0x02, 0x80], [0x82, 0x00], [0x88, 0x80], [0x80, 0x80]] {
            assert!(matches!(client_frame(&bytes), Parsed::Invalid));
        }
    }
}
