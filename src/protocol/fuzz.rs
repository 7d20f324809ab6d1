//! Properties that hold for any bytes from the network. Each function checks one input, which comes from a fuzzer or from a
//! test that replays the seeds. Submodules contain the shared random source and reference parser.

pub(crate) mod close_payload;
#[cfg(feature = "deflate")]
pub(crate) mod deflate;
#[cfg_attr(not(test), allow(dead_code))] // Fuzzers need no seeded source.
pub(crate) mod dice;
pub(crate) mod frames;
pub(crate) mod handshake;
pub(crate) mod reference;
pub(crate) mod reply;

/// Takes one byte off the start, or returns 0 if there is none.
fn byte(data: &mut &[u8]) -> u8 {
    match data.split_first() {
        Some((&first, rest)) => {
            *data = rest;
            first
        }
        None => 0,
    }
}

/// Takes up to 15 lengths off the start. They determine how the rest is split into reads.
fn cuts<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let count = usize::from(byte(data) % 16).min(data.len());
    let (cuts, rest) = data.split_at(count);
    *data = rest;
    cuts
}

/// Splits `bytes` into pieces whose lengths repeat `cuts`. If all of these are 0, there is one piece.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    if cuts.iter().any(|&len| len > 0) {
        for &len in cuts.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(usize::from(len)));
            pieces.push(piece);
            bytes = rest;
        }
    } else {
        pieces.push(bytes);
    }
    pieces
}

/// Encodes an unmasked frame, as a server sends it.
#[cfg_attr(not(test), allow(dead_code))] // Only seeds use it.
pub(crate) fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(first, [0; 4], payload);
    frame[1] &= 0x7F;
    let key_at = frame.len() - payload.len() - 4;
    frame.drain(key_at..key_at + 4);
    frame
}

/// Encodes a masked frame with the given first byte and the shortest length form, as a client sends it (RFC 6455 §5.2).
pub(crate) fn client_frame(first: u8, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len @ ..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
    frame
}
