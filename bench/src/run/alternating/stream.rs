//! Counts the frames and bytes that a server sends, and inflates messages with miniz_oxide, which shares no code with the
//! library that humphrey_ws compresses with.

use std::io;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
/// The end of a flushed block, which the sender removes (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xFF, 0xFF];

/// Counts of received frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) frames: u64,
    /// Bytes of payloads and frame headers.
    pub(super) bytes: u64,
    /// Number of compressed frames.
    pub(super) compressed: u64,
    /// Bytes that the sockets have received, which over TLS are those of its records.
    pub(super) wire: u64,
}

impl Totals {
    pub(super) fn add(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.compressed += other.compressed;
        self.wire += other.wire;
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            frames: self.frames - earlier.frames,
            bytes: self.bytes - earlier.bytes,
            compressed: self.compressed - earlier.compressed,
            wire: self.wire - earlier.wire,
        }
    }
}

/// Splits a stream into frames, at any boundaries of reads.
pub(super) struct Frames {
    /// The opcode of every frame.
    opcode: u8,
    head: [u8; 10],
    have: usize,
    /// Number of payload bytes of the current frame that have not arrived.
    missing: usize,
    in_payload: bool,
}

/// A part of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Payload bytes, and whether they end the frame.
    Payload(&'a [u8], bool),
    /// The input is empty and the frame incomplete.
    Incomplete,
}

impl Frames {
    pub(super) fn new(opcode: u8) -> Self {
        Self {
            opcode,
            head: [0; 10],
            have: 0,
            missing: 0,
            in_payload: false,
        }
    }

    /// Expects frames with another opcode from now on.
    pub(super) fn expect(&mut self, opcode: u8) {
        self.opcode = opcode;
    }

    /// Removes the next part of a frame from `bytes` and adds it to `totals`.
    pub(super) fn next<'a>(
        &mut self,
        bytes: &mut &'a [u8],
        totals: &mut Totals,
        may_be_compressed: bool,
    ) -> io::Result<Part<'a>> {
        if !self.in_payload && !self.take_head(bytes, totals, may_be_compressed)? {
            return Ok(Part::Incomplete);
        }
        let (payload, rest) = bytes.split_at(self.missing.min(bytes.len()));
        *bytes = rest;
        self.missing -= payload.len();
        if self.missing > 0 && payload.is_empty() {
            return Ok(Part::Incomplete);
        }
        let ends = self.missing == 0;
        if ends {
            self.in_payload = false;
            totals.frames += 1;
            totals.compressed += u64::from(self.is_compressed());
        }
        Ok(Part::Payload(payload, ends))
    }

    /// Whether the current frame, or the one that has just ended, is compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.head[0] & RSV1 != 0
    }

    fn take_head(
        &mut self,
        bytes: &mut &[u8],
        totals: &mut Totals,
        may_be_compressed: bool,
    ) -> io::Result<bool> {
        loop {
            let needed = match self.have {
                0 | 1 => 2,
                _ => match self.head[1] {
                    126 => 4,
                    127 => 10,
                    _ => 2,
                },
            };
            if self.have == needed {
                break;
            }
            let (part, rest) = bytes.split_at((needed - self.have).min(bytes.len()));
            *bytes = rest;
            self.head[self.have..self.have + part.len()].copy_from_slice(part);
            self.have += part.len();
            if self.have < needed {
                return Ok(false);
            }
        }
        let length = &self.head[2..self.have];
        self.missing = match length.len() {
            0 => usize::from(self.head[1]),
            _ => length
                .iter()
                .fold(0, |all, &byte| all << 8 | usize::from(byte)),
        };
        let first = self.head[0];
        let expected = FIN | self.opcode;
        let is_known = first == expected || first == expected | RSV1 && may_be_compressed;
        // A server does not mask its frames.
        if !is_known || self.head[1] > 127 {
            // If this is a close frame, the error shows its reason.
            let start = &bytes[..bytes.len().min(self.missing)];
            return Err(io::Error::other(format!(
                "unexpected frame: header {:02x?}, payload {:?}",
                &self.head[..self.have],
                String::from_utf8_lossy(start)
            )));
        }
        totals.bytes += (self.have + self.missing) as u64;
        self.have = 0;
        self.in_payload = true;
        Ok(true)
    }
}

/// Inflates the messages of one connection.
pub(super) struct Inflater {
    state: Box<InflateState>,
    payload: Vec<u8>,
    text: Vec<u8>,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self {
            state: InflateState::new_boxed(DataFormat::Raw),
            payload: Vec::new(),
            text: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, part: &[u8]) {
        self.payload.extend_from_slice(part);
    }

    /// Returns the text of the message whose payload was pushed.
    pub(super) fn finish(&mut self, is_compressed: bool) -> io::Result<&[u8]> {
        self.text.clear();
        if !is_compressed {
            std::mem::swap(&mut self.text, &mut self.payload);
            self.payload.clear();
            return Ok(&self.text);
        }
        self.payload.extend_from_slice(&TAIL);
        let mut input = &self.payload[..];
        let mut output = [0; 4096];
        loop {
            let result = inflate(&mut self.state, input, &mut output, MZFlush::None);
            input = &input[result.bytes_consumed..];
            self.text.extend_from_slice(&output[..result.bytes_written]);
            match result.status {
                Ok(MZStatus::StreamEnd) => {
                    // A final block ends the DEFLATE stream, so the next message starts a new one.
                    self.state = InflateState::new_boxed(DataFormat::Raw);
                }
                Ok(_) | Err(miniz_oxide::MZError::Buf) => {}
                Err(error) => {
                    return Err(io::Error::other(format!("inflating failed: {error:?}")));
                }
            }
            if input.is_empty() && result.bytes_written < output.len() {
                break;
            }
            if result.bytes_consumed + result.bytes_written == 0 {
                return Err(io::Error::other("the inflater stopped within a message"));
            }
        }
        self.payload.clear();
        Ok(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::core::{
        CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
    };

    use super::*;
    use crate::wire;

    /// Encodes every third message as an uncompressed frame, and compresses the others with one history.
    fn stream(messages: &[String]) -> Vec<u8> {
        let flags = create_comp_flags_from_zip_params(6, -15, 0);
        let mut compressor = CompressorOxide::new(flags);
        let mut bytes = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            let mut packed = Vec::new();
            if at % 3 > 0 {
                compress_to_output(
                    &mut compressor,
                    message.as_bytes(),
                    TDEFLFlush::Sync,
                    |part| {
                        packed.extend_from_slice(part);
                        true
                    },
                );
                packed.truncate(packed.len() - TAIL.len());
                wire::put_server_head(&mut bytes, wire::TEXT | RSV1, packed.len());
                bytes.extend(packed);
            } else {
                wire::put_server_head(&mut bytes, wire::TEXT, message.len());
                bytes.extend_from_slice(message.as_bytes());
            }
        }
        bytes
    }

    #[test]
    fn stream_split_anywhere_is_counted_and_inflated() {
        let long = "0123456789".repeat(7_000);
        let messages: Vec<String> = (0..9)
            .map(|at| match at {
                3 | 4 => format!("{at}{long}"),
                _ => format!("message {at} of a series, message {at}"),
            })
            .collect();
        let bytes = stream(&messages);
        for step in [1, 2, 3, 7, 100, 4_000, bytes.len()] {
            let (mut frames, mut inflater) = (Frames::new(wire::TEXT), Inflater::new());
            let (mut totals, mut texts) = (Totals::default(), Vec::new());
            for mut part in bytes.chunks(step) {
                while let Part::Payload(payload, ends) =
                    frames.next(&mut part, &mut totals, true).unwrap()
                {
                    inflater.push(payload);
                    if ends {
                        let text = inflater.finish(frames.is_compressed()).unwrap();
                        texts.push(String::from_utf8(text.to_vec()).unwrap());
                    }
                }
                assert!(part.is_empty());
            }
            assert_eq!(texts, messages, "{step} bytes at a time");
            assert_eq!(totals.bytes, bytes.len() as u64);
            assert_eq!((totals.frames, totals.compressed), (9, 6));
        }
    }

    #[test]
    fn compressed_frame_without_agreement_is_an_error() {
        let bytes = stream(&["plain".into(), "compressed, compressed".into()]);
        let (mut frames, mut totals) = (Frames::new(wire::TEXT), Totals::default());
        let mut rest = &bytes[..];
        assert!(frames.next(&mut rest, &mut totals, false).is_ok());
        assert!(frames.next(&mut rest, &mut totals, false).is_err());
    }
}
