//! Tests compressing and inflating with each other, and with another library.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, deflate::compress_to_vec};

use super::compress::{Compressor, CompressorSize, NotShorter};
use super::inflate::{Inflater, InvalidData, STEP_BYTES, Takeover};
use super::negotiate::{Agreement, accept, answered};
use crate::protocol::encode::MessageKind::{self, Text};
use crate::protocol::encode::RSV1;
use crate::protocol::fuzz::dice::{Dice, for_seeds};

const SIZE: CompressorSize = CompressorSize {
    window_bits: 13,
    memory_level: 6,
};

fn agreed(offers: &str) -> Option<String> {
    accept([offers]).map(|agreement| agreement.to_string())
}

const PLAIN_ANSWER: &str = "permessage-deflate; client_no_context_takeover";

#[test]
fn acceptable_offers_are_answered_as_requested() {
    let cases = [
        ("permessage-deflate", ""),
        ("permessage-deflate; client_max_window_bits", ""),
        ("permessage-deflate;client_max_window_bits=8", ""),
        ("permessage-deflate; client_no_context_takeover", ""),
        (
            "permessage-deflate; server_no_context_takeover; client_max_window_bits",
            "; server_no_context_takeover",
        ),
        (
            "permessage-deflate ; server_max_window_bits = 10",
            "; server_max_window_bits=10",
        ),
        (
            "permessage-deflate; server_max_window_bits=\"9\"",
            "; server_max_window_bits=9",
        ),
        (
            "permessage-deflate; server_max_window_bits=8; server_no_context_takeover",
            "; server_no_context_takeover; server_max_window_bits=8",
        ),
        ("x-webkit-deflate-frame, permessage-deflate", ""),
        (
            "a; b=\"permessage-deflate, \\\" ;\", permessage-deflate",
            "",
        ),
        (
            "permessage-deflate; server_max_window_bits=16, permessage-deflate",
            "",
        ),
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "; server_max_window_bits=10",
        ),
    ];
    for (offers, more) in cases {
        assert_eq!(
            agreed(offers),
            Some(format!("{PLAIN_ANSWER}{more}")),
            "{offers}"
        );
    }
    let two = accept(["permessage-bzip", "permessage-deflate"]);
    assert_eq!(two.map(Agreement::window_bits), Some(15));
}

#[test]
fn offers_that_cannot_be_accepted_are_declined() {
    let cases = [
        "",
        ",",
        "permessage-deflate-x",
        "Permessage-Deflate",
        "permessage-deflate=1",
        "permessage-deflate;",
        "permessage-deflate; x",
        "permessage-deflate; mux=1",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=\"\"",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=+9",
        "permessage-deflate; server_max_window_bits=",
        "permessage-deflate; server_max_window_bits=\"9",
        "permessage-deflate; server_max_window_bits=264",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
    ];
    for offers in cases {
        assert_eq!(agreed(offers), None, "{offers}");
    }
}

#[test]
fn answers_beyond_the_offer_fail_the_connection() {
    let cases = [
        ("", Some(false)),
        ("permessage-deflate", Some(true)),
        (PLAIN_ANSWER, Some(true)),
        ("permessage-deflate; server_no_context_takeover", Some(true)),
        ("permessage-deflate; server_max_window_bits=12", Some(true)),
        ("permessage-deflate; client_max_window_bits=12", Some(true)),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; x", None),
        ("permessage-deflate, permessage-deflate", None),
        ("x-webkit-deflate-frame", None),
    ];
    for (answer, expected) in cases {
        assert_eq!(answered([answer]), expected, "{answer}");
    }
}

/// Returns the payload of a compressed frame.
fn payload(frame: &[u8]) -> &[u8] {
    assert_eq!(frame[0], 0x80 | RSV1 | 1);
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    &frame[header..]
}

/// Inflates a message with [`Inflater`] in steps of this many bytes.
fn inflated(
    inflater: &mut Inflater,
    payload: &[u8],
    step_max: usize,
) -> Result<Vec<u8>, InvalidData> {
    inflater.begin();
    let (mut at, mut out) = (0, Vec::new());
    loop {
        let step = inflater.step(payload, &mut at, &out, step_max)?;
        let is_last = step.is_last;
        let bytes = step.bytes.to_vec();
        assert!(bytes.len() <= step_max);
        out.extend_from_slice(&bytes);
        if is_last {
            return Ok(out);
        }
    }
}

/// Inflates a message with another library.
struct Other(Box<InflateState>);

impl Other {
    fn new() -> Self {
        Self(InflateState::new_boxed(DataFormat::Raw))
    }

    fn inflate(&mut self, payload: &[u8], len: usize) -> Vec<u8> {
        let input = [payload, &[0, 0, 0xFF, 0xFF]].concat();
        let mut out = vec![0; len + 1];
        let (mut at, mut filled) = (0, 0);
        while at < input.len() {
            let result = inflate(&mut self.0, &input[at..], &mut out[filled..], MZFlush::Sync);
            result.status.unwrap();
            at += result.bytes_consumed;
            filled += result.bytes_written;
            assert!(result.bytes_consumed + result.bytes_written > 0);
        }
        out.truncate(filled);
        out
    }
}

fn text(dice: &mut Dice, len_max: usize) -> Vec<u8> {
    let words = [
        "price",
        "\":",
        "EURUSD",
        "{\"",
        "1.0",
        "7",
        "bid",
        ",",
        "x",
        "é",
        "\u{10348}",
        " the ",
    ];
    let len = dice.below(len_max + 1);
    let mut out = Vec::new();
    while out.len() < len {
        match dice.below(12) {
            0 => out.extend_from_slice(dice.below(1_000_000).to_string().as_bytes()),
            1 if dice.below(40) == 0 => out.extend((0..200).map(|_| dice.below(256) as u8)),
            n => out.extend_from_slice(words[n].as_bytes()),
        }
    }
    out
}

#[test]
fn messages_with_shared_history_are_read_by_both_libraries() {
    for_seeds(200, |seed| {
        let mut dice = Dice::from_seed(seed);
        let mut compressor = Compressor::new(SIZE);
        let (mut ours, mut other) = (Inflater::new(Takeover::Yes), Other::new());
        let mut tail: Vec<u8> = Vec::new();
        for _ in 0..40 {
            let message = text(&mut dice, 3_000);
            let level = 1 + dice.below(9) as u8;
            // Simulates a message to another audience in between.
            if dice.below(4) == 0 {
                compressor.restart(&[]);
                let _ = compressor.compress(
                    Text,
                    b"something else, something else, something else",
                    2,
                    0,
                );
                compressor.restart(&tail[tail.len().saturating_sub(4096)..]);
            }
            match compressor.compress(Text, &message, level, 0) {
                Ok(frame) => {
                    let compressed = payload(frame).to_vec();
                    assert!(compressed.len() < message.len());
                    let step = 1 + dice.below(STEP_BYTES);
                    assert_eq!(inflated(&mut ours, &compressed, step).unwrap(), message);
                    assert_eq!(other.inflate(&compressed, message.len()), message);
                    tail.extend_from_slice(&message);
                }
                Err(NotShorter) => compressor.restart(&tail[tail.len().saturating_sub(4096)..]),
            }
        }
    });
}

#[test]
fn noise_is_given_up_and_the_next_message_is_compressed() {
    let mut compressor = Compressor::new(SIZE);
    let mut dice = Dice::from_seed(1);
    let noise: Vec<u8> = (0..100_000).map(|_| dice.below(256) as u8).collect();
    assert_eq!(
        compressor.compress_unless_noise(MessageKind::Binary, &noise, 2),
        Err(NotShorter)
    );
    compressor.restart(&[]);
    let message = text(&mut dice, 100_000);
    let compressed = compressor.compress_unless_noise(Text, &message, 2).unwrap();
    let compressed = payload(compressed).to_vec();
    assert_eq!(
        inflated(&mut Inflater::new(Takeover::No), &compressed, STEP_BYTES).unwrap(),
        message
    );
}

#[test]
fn messages_of_another_library_are_inflated_at_every_step_size() {
    let message = text(&mut Dice::from_seed(7), 4_000);
    for level in 0..=9 {
        // The message ends with a final block.
        let compressed = compress_to_vec(&message, level);
        let with_end = [&compressed[..], &[0]].concat();
        let mut inflater = Inflater::new(Takeover::No);
        for step in [1, 2, 3, 7, 64, message.len(), message.len() + 1, STEP_BYTES] {
            assert_eq!(
                inflated(&mut inflater, &compressed, step).unwrap(),
                message,
                "{level} {step}"
            );
            assert_eq!(
                inflated(&mut inflater, &with_end, step).unwrap(),
                message,
                "{level} {step}"
            );
        }
    }
}

#[test]
fn examples_of_the_rfc_are_inflated() {
    // RFC 7692 §7.2.3.1, §7.2.3.3, §7.2.3.4, §7.2.3.5; and an empty message (§7.2.3.6).
    let cases: [(&[u8], &[u8]); 5] = [
        (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], b"Hello"),
        (
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ],
            b"Hello",
        ),
        (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], b"Hello"),
        (
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
            b"Hello",
        ),
        (&[0x00], b""),
    ];
    for takeover in [Takeover::No, Takeover::Yes] {
        for (compressed, message) in cases {
            assert_eq!(
                inflated(&mut Inflater::new(takeover), compressed, 100).unwrap(),
                message
            );
        }
    }
    // §7.2.3.2: the second message refers to the first.
    let mut client = Inflater::new(Takeover::Yes);
    assert_eq!(
        inflated(&mut client, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 9).unwrap(),
        b"Hello"
    );
    assert_eq!(
        inflated(&mut client, &[0xf2, 0x00, 0x11, 0x00, 0x00], 9).unwrap(),
        b"Hello"
    );
}

#[test]
fn message_after_a_final_block_refers_to_earlier_ones() {
    let mut client = Inflater::new(Takeover::Yes);
    // "Hello" in a final block, then the second message of RFC 7692 §7.2.3.2.
    assert_eq!(
        inflated(
            &mut client,
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            9
        )
        .unwrap(),
        b"Hello"
    );
    assert_eq!(
        inflated(&mut client, &[0xf2, 0x00, 0x11, 0x00, 0x00], 9).unwrap(),
        b"Hello"
    );
}

#[test]
fn truncated_or_malformed_deflate_is_invalid() {
    let mut compressor = Compressor::new(SIZE);
    let message = text(&mut Dice::from_seed(3), 2_000);
    let compressed = payload(compressor.compress(Text, &message, 2, 0).unwrap()).to_vec();
    let mut inflater = Inflater::new(Takeover::No);
    for len in 1..compressed.len() - 1 {
        let cut = inflated(&mut inflater, &compressed[..len], STEP_BYTES);
        assert_eq!(cut, Err(InvalidData), "{len}");
    }
    assert_eq!(
        inflated(&mut inflater, &[0xFF; 10], STEP_BYTES),
        Err(InvalidData)
    );
    assert_eq!(
        inflated(&mut inflater, b"Hello", STEP_BYTES),
        Err(InvalidData)
    );
    assert_eq!(
        inflated(&mut inflater, &compressed, STEP_BYTES).unwrap(),
        message
    );
}

#[test]
fn decompression_bomb_is_inflated_in_bounded_steps() {
    let bomb = compress_to_vec(&vec![0; 16 << 20], 9);
    assert!(bomb.len() < 20_000);
    let mut inflater = Inflater::new(Takeover::No);
    inflater.begin();
    let mut at = 0;
    let step = inflater.step(&bomb, &mut at, &[], 1_000).unwrap();
    assert_eq!((step.bytes.len(), step.is_last), (1_000, false));

    // 10,000 empty final blocks.
    let empty = [0x03, 0x00].repeat(10_000);
    inflater.begin();
    let (mut at, mut steps, mut work) = (0, 0, 0);
    loop {
        let step = inflater.step(&empty, &mut at, &[], STEP_BYTES).unwrap();
        assert!(step.bytes.is_empty() && step.work <= 2 * STEP_BYTES);
        (steps, work) = (steps + 1, work + step.work);
        if step.is_last {
            break;
        }
    }
    assert!(
        steps >= 4_000 && work > 10_000 * (32 << 10),
        "{steps} {work}"
    );
}

#[test]
fn blocks_without_output_are_bounded_in_each_step() {
    // Two floods: empty stored blocks, and empty blocks with fixed codes.
    let stored = [0x00, 0x00, 0x00, 0xFF, 0xFF].repeat(100_000);
    let fixed = [0x02, 0x00, 0x00, 0x00, 0xFF, 0xFF].repeat(50_000);
    for mut blocks in [stored, fixed] {
        // The sync flush's end is cut off from an empty block.
        blocks.push(0x00);
        let mut inflater = Inflater::new(Takeover::No);
        inflater.begin();
        let mut at = 0;
        while at < blocks.len() {
            let before = at;
            let step = inflater.step(&blocks, &mut at, &[], STEP_BYTES).unwrap();
            assert!(step.bytes.is_empty() && step.work <= 2 * STEP_BYTES);
            assert!(at - before <= STEP_BYTES / 8 + (4 << 10), "{}", at - before);
        }
    }
}
