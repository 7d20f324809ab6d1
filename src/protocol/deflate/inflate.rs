//! Inflates messages in bounded steps, because a few bytes can inflate to very many.

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{SYNC_FLUSH_END, WINDOW_BITS_MAX};
use crate::protocol::assembler::reserve;
use crate::protocol::encode::HEADER_BYTES_MAX;
use crate::protocol::error::Violation;
use crate::protocol::utf8::Utf8;

/// The maximum number of output bytes per step.
pub(crate) const STEP_BYTES: usize = 64 << 10;

/// The fixed work of a step, in output bytes.
const STEP_WORK_BYTES: usize = 64;

/// The maximum number of input bytes between two checks of a step's work. Empty blocks yield no output, but the decoder
/// builds tables for them.
const INPUT_BYTES_MAX: usize = 4 << 10;

/// The work of an input byte, in output bytes. Input costs time even if it yields no output.
const INPUT_WORK_FACTOR: usize = 8;

/// The work of a restart after a final block, in output bytes. It copies the history.
const RESTART_WORK_BYTES: usize = 32 << 10;

/// The maximum distance of a reference, in bytes.
const HISTORY_BYTES: usize = 1 << WINDOW_BITS_MAX;

/// The bytes appended to a payload: the end of the sync flush, and an empty final block. If the stream does not end
/// with it, the payload ends inside a block and is invalid.
const END: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// Inflates the messages of a connection, or independent messages of any connections.
pub(crate) struct Inflater {
    inflate: Inflate,
    buffer: Box<[u8]>,
    /// The end of the output so far, with context takeover.
    history: Option<Vec<u8>>,
}

/// Whether a message may refer to earlier messages: context takeover (RFC 7692 §7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    No,
    #[cfg(any(test, fuzzing, feature = "client"))]
    Yes,
}

/// The payload is not a deflate stream (RFC 1951).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidData;

/// The result of a step.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) bytes: &'a [u8],
    /// Whether the message is complete.
    pub(crate) is_last: bool,
    /// The work of the step, in output bytes. It is positive even without output.
    pub(crate) work: usize,
}

impl Inflater {
    pub(crate) fn new(takeover: Takeover) -> Self {
        Self {
            inflate: Inflate::new(false, WINDOW_BITS_MAX),
            buffer: vec![0; STEP_BYTES].into(),
            history: match takeover {
                Takeover::No => None,
                #[cfg(any(test, fuzzing, feature = "client"))]
                Takeover::Yes => Some(Vec::new()),
            },
        }
    }

    /// Begins a message.
    pub(crate) fn begin(&mut self) {
        if self.history.is_none() {
            self.inflate.reset(false);
        }
    }

    /// Inflates the payload from `at` on, which it advances, until the step's work is done, there are `bytes_max` output bytes,
    /// or the message is complete. `before` is the message's output so far, or its end.
    pub(crate) fn step(
        &mut self,
        payload: &[u8],
        at: &mut usize,
        before: &[u8],
        bytes_max: usize,
    ) -> Result<Step<'_>, InvalidData> {
        let end: &[u8] = match self.history {
            // The stream continues with the next message.
            Some(_) => &SYNC_FLUSH_END,
            None => &END,
        };
        let end_at = payload.len() + end.len();
        let bytes_max = bytes_max.min(STEP_BYTES);
        let mut filled = 0;
        let mut work = STEP_WORK_BYTES;
        let mut is_last = false;
        while filled < bytes_max && !is_last && work < STEP_BYTES {
            let input = match payload.get(*at..) {
                Some(rest) if !rest.is_empty() => &rest[..rest.len().min(INPUT_BYTES_MAX)],
                _ => end.get(*at - payload.len()..).unwrap_or_default(),
            };
            let is_end = *at + input.len() == end_at;
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let out = &mut self.buffer[filled..bytes_max];
            let status = self.inflate.decompress(input, out, InflateFlush::SyncFlush);
            let read = (self.inflate.total_in() - before_in) as usize;
            let written = (self.inflate.total_out() - before_out) as usize;
            *at += read;
            filled += written;
            work += INPUT_WORK_FACTOR * read + written;
            match status {
                Ok(Status::StreamEnd) => {
                    // A final block ends the stream. It ends the message only at the end of the payload
                    // (RFC 7692 §7.2.3.4).
                    is_last = *at == payload.len() || *at == end_at;
                    if !(is_last && self.history.is_none()) {
                        self.restart(before, filled);
                        work += RESTART_WORK_BYTES;
                    }
                }
                Ok(Status::Ok | Status::BufError) => {
                    // The buffer is not full, so it contains the output of all input.
                    let is_over = is_end && read == input.len() && filled < bytes_max;
                    if is_over && self.history.is_none() {
                        return Err(InvalidData);
                    }
                    is_last = is_over;
                }
                Err(_) => return Err(InvalidData),
            }
        }
        if let Some(history) = &mut self.history {
            history.extend_from_slice(&self.buffer[..filled]);
            if history.len() > 4 * HISTORY_BYTES {
                history.drain(..history.len() - HISTORY_BYTES);
            }
        }
        Ok(Step {
            bytes: &self.buffer[..filled],
            is_last,
            work,
        })
    }

    /// Begins another stream after a final block. It may refer to the output of the previous one.
    fn restart(&mut self, before: &[u8], filled: usize) {
        let new = &self.buffer[..filled];
        let before = self.history.as_deref().unwrap_or(before);
        let from_before = HISTORY_BYTES.saturating_sub(filled).min(before.len());
        let from_new = filled.saturating_sub(HISTORY_BYTES);
        let history = [&before[before.len() - from_before..], &new[from_new..]].concat();
        self.inflate.reset(false);
        if !history.is_empty() {
            let set = self.inflate.set_dictionary(&history);
            debug_assert!(set.is_ok());
        }
    }
}

/// The progress of inflating a message.
#[derive(Default)]
pub(crate) struct Inflation {
    /// The number of processed bytes of the payload.
    at: usize,
    utf8: Utf8,
    /// The headroom for a frame header, followed by the inflated bytes. Empty at first.
    out: Vec<u8>,
}

/// The result of inflating a message.
pub(crate) enum Inflated {
    /// The whole message, after headroom for a frame header.
    Whole(Vec<u8>),
    /// The allowance is used up, and the message is incomplete.
    Part,
}

/// Returns the maximum work of a payload from a real compressor, in output bytes. Such a payload causes few restarts,
/// and contains no floods of empty blocks.
pub(crate) fn honest_work_max(payload_len: usize, message_bytes_max: usize) -> usize {
    let input = INPUT_WORK_FACTOR.saturating_mul(payload_len);
    let bytes = input.saturating_add(message_bytes_max);
    // The fixed work of the steps is about a thousandth of their bytes.
    bytes
        .saturating_add(bytes / 256)
        .saturating_add(64 * RESTART_WORK_BYTES)
}

impl Inflation {
    /// Returns the memory of the output so far, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.out.capacity()
    }

    /// Inflates until the message is complete or the allowance of work is used up. Fails if the payload is invalid, if
    /// the message is longer than `message_bytes_max`, or if `text` is set and the message is not UTF-8.
    pub(crate) fn advance(
        &mut self,
        inflater: &mut Inflater,
        payload: &[u8],
        text: bool,
        message_bytes_max: usize,
        allowance: &mut usize,
    ) -> Result<Inflated, Violation> {
        if self.out.is_empty() {
            inflater.begin();
        }
        while *allowance > 0 {
            let so_far = self.out.get(HEADER_BYTES_MAX..).unwrap_or_default();
            // Inflating one byte more than the limit shows that the message is too long.
            let room = (message_bytes_max - so_far.len()).saturating_add(1);
            let step = inflater
                .step(payload, &mut self.at, so_far, room)
                .map_err(|_| Violation::InvalidDeflate)?;
            *allowance = allowance.saturating_sub(step.work);
            if step.bytes.len() == room {
                return Err(Violation::MessageTooBig);
            }
            if text {
                self.utf8
                    .push(step.bytes)
                    .map_err(|_| Violation::InvalidUtf8)?;
            }
            let headroom = match self.out.is_empty() {
                true => HEADER_BYTES_MAX,
                false => 0,
            };
            let ahead = match step.is_last {
                true => 0,
                false => room,
            };
            reserve(&mut self.out, headroom + step.bytes.len(), ahead);
            self.out.resize(self.out.len() + headroom, 0);
            self.out.extend_from_slice(step.bytes);
            if step.is_last {
                if text {
                    self.utf8.finish().map_err(|_| Violation::InvalidUtf8)?;
                }
                let mut whole = std::mem::take(&mut self.out);
                whole.shrink_to_fit();
                return Ok(Inflated::Whole(whole));
            }
        }
        Ok(Inflated::Part)
    }
}
