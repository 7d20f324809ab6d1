//! What must hold for any bytes from the network, one case at a time: for fuzzers, and for their seeds as tests.

pub(crate) mod close_payload;
pub(crate) mod frames;
pub(crate) mod handshake;
pub(crate) mod reference;

/// Takes one byte off the front; 0 if there is none.
fn byte(data: &mut &[u8]) -> u8 {
    match data.split_first() {
        Some((&first, rest)) => {
            *data = rest;
            first
        }
        None => 0,
    }
}

/// Takes up to 15 lengths off the front: how the network is to cut what follows.
fn cuts<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let count = usize::from(byte(data) % 16).min(data.len());
    let (cuts, rest) = data.split_at(count);
    *data = rest;
    cuts
}

/// Cuts `bytes` into pieces of these lengths, over and over; if all of them are 0, into one.
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
