//! A client that inflates what the server compresses.

use std::collections::BTreeSet;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush};
use zlib_rs::{Inflate, InflateFlush, Status};

use crate::engine::sim_tests::wire::{Frame, parse_frames};

/// A client in the game, and the messages that it must receive.
pub(in crate::engine::sim_tests) struct Player {
    /// The number of the client in the simulated world.
    pub(in crate::engine::sim_tests) client: usize,
    /// The state that the negotiation of compression calls for. `None` if nothing was negotiated.
    pub(in crate::engine::sim_tests) inflaters: Option<Inflaters>,
    /// Whether the client can receive the messages of a shared history.
    pub(in crate::engine::sim_tests) can_follow: bool,
    /// Received bytes that are not a whole frame yet.
    pub(in crate::engine::sim_tests) rest: Vec<u8>,
    /// The messages sent to the client, in order.
    pub(in crate::engine::sim_tests) due: Vec<String>,
    pub(in crate::engine::sim_tests) got: Vec<String>,
    pub(in crate::engine::sim_tests) rooms: BTreeSet<usize>,
}

/// Two inflaters, which must agree.
pub(in crate::engine::sim_tests) struct Inflaters {
    /// Has the largest window.
    whole: Box<InflateState>,
    /// Has only the negotiated window.
    windowed: Inflate,
    /// Whether the server compresses each message by itself (`server_no_context_takeover`).
    stateless: bool,
}

impl Inflaters {
    /// Creates the inflaters that the server's response to the handshake calls for.
    pub(in crate::engine::sim_tests) fn for_response(head: &str) -> Self {
        Self {
            whole: InflateState::new_boxed(DataFormat::Raw),
            windowed: Inflate::new(false, window_bits(head)),
            stateless: head.contains("server_no_context_takeover"),
        }
    }

    /// Inflates the payload of a whole message.
    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if self.stateless {
            self.whole.reset(DataFormat::Raw);
            self.windowed.reset(false);
        }
        let input = [payload, &[0, 0, 0xFF, 0xFF]].concat();
        let mut out = vec![0; 32 << 10];
        let result = inflate(&mut self.whole, &input, &mut out, MZFlush::Sync);
        result.status.expect("a valid deflate stream");
        assert_eq!(result.bytes_consumed, input.len());
        out.truncate(result.bytes_written);
        let windowed = inflate_in_small_steps(&mut self.windowed, &input);
        assert_eq!(windowed, out, "the negotiated window suffices");
        out
    }
}

impl Player {
    /// Takes the whole frames out of the received bytes, and inflates those that are compressed.
    pub(in crate::engine::sim_tests) fn take_frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(len) = frame_len(&self.rest) {
            let mut frame: Vec<u8> = self.rest.drain(..len).collect();
            // The parser for other frames rejects the bit of compressed ones.
            if frame[0] & 0x40 == 0 {
                frames.extend(parse_frames(&mut frame));
                continue;
            }
            assert_eq!(frame[0], 0xC1, "an unfragmented text message");
            let header = match frame[1] {
                126 => 4,
                127 => 10,
                _ => 2,
            };
            let inflaters = self.inflaters.as_mut();
            let inflaters = inflaters.expect("compression was negotiated");
            let text = String::from_utf8(inflaters.inflate(&frame[header..]));
            frames.push(Frame::Text(text.expect("text is UTF-8")));
        }
        frames
    }
}

/// Returns the window size that the server has agreed to, as a power of two.
fn window_bits(answer: &str) -> u8 {
    let bits = answer.split_once("server_max_window_bits=");
    let digits = bits.map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.map_or(15, |digits| digits.unwrap().parse().unwrap())
}

/// Inflates 16 bytes at a time. With a longer output buffer, zlib-rs accepts references beyond the window that point into
/// that buffer.
fn inflate_in_small_steps(window: &mut Inflate, mut input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut some = [0; 16];
        let (before_in, before_out) = (window.total_in(), window.total_out());
        let status = window.decompress(input, &mut some, InflateFlush::SyncFlush);
        assert!(
            matches!(status, Ok(Status::Ok | Status::BufError)),
            "{status:?} after {} bytes",
            out.len()
        );
        input = &input[(window.total_in() - before_in) as usize..];
        let written = (window.total_out() - before_out) as usize;
        out.extend_from_slice(&some[..written]);
        if input.is_empty() && written < some.len() {
            return out;
        }
    }
}

/// Returns the length of the first frame. `None` if it is incomplete.
fn frame_len(bytes: &[u8]) -> Option<usize> {
    let len = match *bytes.get(1)? {
        126 => 4 + usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        127 => 10 + u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize,
        len => 2 + usize::from(len),
    };
    (bytes.len() >= len).then_some(len)
}
