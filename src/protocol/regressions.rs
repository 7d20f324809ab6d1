//! Regression tests for bugs of other libraries that appear only at certain byte boundaries. `tests/regressions.rs` has the
//! full list.

use super::connection::{FrameReader, ProtocolEvent};
use super::error::Violation;
use super::fuzz::client_frame;

/// The first and last character of each encoded length, and the neighbours of the surrogates.
const CHARACTERS: [&str; 9] = [
    "\u{80}",
    "\u{7FF}",
    "\u{800}",
    "\u{D7FF}",
    "\u{E000}",
    "\u{FFFF}",
    "\u{10000}",
    "\u{40000}",
    "\u{10FFFF}",
];

/// Bytes that are invalid UTF-8 with any continuation.
const INVALID_SEQUENCES: [&[u8]; 10] = [
    b"\xBF",
    b"\xC1\xBF",
    b"\xC3\x28",
    b"\xE0\x9F\xBF",
    b"\xE6\x97\x28",
    b"\xED\xA0\x80",
    b"\xF0\x8F\xBF\xBF",
    b"\xF0\x9F\xA6\x28",
    b"\xF4\x90\x80\x80",
    b"\xF5\x80\x80\x80",
];

const MAX: usize = 1 << 20;

/// More than any block size in which payloads are unmasked or validated: words, vectors and cache lines.
const LEADS: usize = 70;

/// The read sizes of a shard and of a blocking stream, a page, and a small odd one.
const READS: [usize; 4] = [64 << 10, 16 << 10, 4096, 7];

/// The received text, or the violation that ended the connection.
type JoinedPayload = Result<Vec<u8>, Violation>;

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(first, [0x9D, 0x00, 0xFF, 0x3C], payload)
}

/// Receives one text message that arrives in the given reads.
fn receive<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> JoinedPayload {
    let mut connection = FrameReader::new(MAX);
    for read in reads {
        let mut read = read.to_vec();
        let mut input = read.as_mut_slice();
        while let Some(event) = connection.receive(&mut input)? {
            match event {
                ProtocolEvent::Message { text, payload } => {
                    assert!(text && input.is_empty(), "the message is the last");
                    return Ok(payload.bytes().to_vec());
                }
                ProtocolEvent::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("the message is not complete");
}

/// Receives `text` split at `cut` in five ways: by reads, by fragments, and with a ping or an empty fragment in between.
fn receive_cut(text: &[u8], cut: usize) -> [JoinedPayload; 5] {
    let (before, after) = text.split_at(cut);
    let whole = frame(0x81, text);
    let header = whole.len() - text.len();
    let (first, second) = whole.split_at(header + cut);
    let fragments = [frame(0x01, before), frame(0x80, after)];
    let pinged = [&fragments[0][..], &frame(0x89, b"\xFF"), &fragments[1]];
    let empty = [&fragments[0][..], &frame(0x00, b""), &fragments[1]];
    [
        receive([first, second]),
        receive([fragments.concat().as_slice()]),
        receive(fragments.each_ref().map(Vec::as_slice)),
        receive([pinged.concat().as_slice()]),
        receive(empty),
    ]
}

/// Receives text that contains `bytes` at the offset `lead`, split in every way, and checks each outcome.
fn receive_around(bytes: &[u8], lead: usize, check: impl Fn(&[u8], JoinedPayload)) {
    let text = [&vec![b'x'; lead], bytes, b"and more behind it"].concat();
    check(&text, receive([frame(0x81, &text).as_slice()]));
    check(&text, receive(frame(0x81, &text).chunks(1)));
    for cut in lead..=lead + bytes.len() {
        for outcome in receive_cut(&text, cut) {
            check(&text, outcome);
        }
    }
}

/// Receives text in which `bytes` straddle the end of a read of `read` bytes, and checks each outcome.
fn receive_across(bytes: &[u8], read: usize, check: impl Fn(&[u8], JoinedPayload)) {
    let header = if read < 131 { 6 } else { 8 };
    for back in 0..=bytes.len() {
        let lead = read.saturating_sub(header + back);
        let text = [&vec![b'x'; lead], bytes, b"and more behind it"].concat();
        check(&text, receive(frame(0x81, &text).chunks(read)));
    }
}

#[test]
fn split_characters_are_accepted_at_every_boundary() {
    let check = |text: &[u8], outcome: JoinedPayload| {
        assert!(outcome.as_deref() == Ok(text), "{outcome:X?}");
    };
    for character in CHARACTERS {
        for lead in 0..LEADS {
            receive_around(character.as_bytes(), lead, check);
        }
        for read in READS {
            receive_across(character.as_bytes(), read, check);
        }
    }
}

#[test]
fn invalid_utf8_is_refused_at_every_boundary() {
    let check = |text: &[u8], outcome: JoinedPayload| {
        assert_eq!(outcome, Err(Violation::InvalidUtf8), "{text:X?}");
    };
    for bytes in INVALID_SEQUENCES {
        for lead in 0..LEADS {
            receive_around(bytes, lead, check);
        }
        for read in READS {
            receive_across(bytes, read, check);
        }
    }
    // An incomplete character at the end of a message is invalid, too.
    for character in CHARACTERS {
        for end in 1..character.len() {
            for lead in 0..LEADS {
                let text = [&vec![b'x'; lead], &character.as_bytes()[..end]].concat();
                for cut in lead..=text.len() {
                    for outcome in receive_cut(&text, cut) {
                        check(&text, outcome);
                    }
                }
            }
        }
    }
}
