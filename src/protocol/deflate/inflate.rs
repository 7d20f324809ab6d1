//! Payloads to messages, step by step: a few bytes can become very many.

use zlib_rs::{Inflate, InflateFlush, Status};

use super::{SYNC_FLUSH_END, WINDOW_BITS_MAX};
#[cfg(any(test, fuzzing, feature = "client"))]
use crate::protocol::encode::HEADER_BYTES_MAX;
#[cfg(any(test, fuzzing, feature = "client"))]
use crate::protocol::error::Violation;

/// Bytes that one step yields at most.
pub(crate) const STEP_BYTES: usize = 64 << 10;

/// What a step costs beside its bytes.
const STEP_WORK_BYTES: usize = 64;

/// Input that is inflated before it is asked whether that was enough for one step: it may be blocks with nothing in them, whose
/// tables are built all the same.
const INPUT_BYTES_MAX: usize = 4 << 10;

/// A byte of input counts as so many of output, since it may cost as much and yield nothing.
const INPUT_WORK_FACTOR: usize = 8;

/// What a new block behind a final one costs: the history is handed over anew.
const RESTART_WORK_BYTES: usize = 32 << 10;

/// Bytes that a message can refer back to.
const HISTORY_BYTES: usize = 1 << WINDOW_BITS_MAX;

/// What follows a payload: the sync flush's end, and a last block, with nothing in it. A payload that ends in the midst of a
/// block does not yield the end of a stream then.
const END: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// A decompressor.
pub(crate) struct Inflater {
    inflate: Inflate,
    buffer: Box<[u8]>,
    /// The end of what has come out so far, where the next message may refer to it.
    history: Option<Vec<u8>>,
}

/// Whether a message may refer to the one before it (RFC 7692 §7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    No,
    #[cfg(any(test, fuzzing, feature = "client"))]
    Yes,
}

/// The payload is no deflate stream (RFC 1951).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidData;

/// What a step has yielded.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) bytes: &'a [u8],
    /// The message is complete.
    pub(crate) is_last: bool,
    /// What it was worth, in bytes: also where nothing came out.
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

    /// A message begins.
    pub(crate) fn begin(&mut self) {
        if self.history.is_none() {
            self.inflate.reset(false);
        }
    }

    /// Inflates from `at` in the payload, which is moved on, until so many bytes have come out or the message is complete.
    /// `before` is what has come out of the message so far, or its end.
    pub(crate) fn step(
        &mut self,
        payload: &[u8],
        at: &mut usize,
        before: &[u8],
        bytes_max: usize,
    ) -> Result<Step<'_>, InvalidData> {
        let end: &[u8] = match self.history {
            // Its stream goes on with the next message.
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
                    // A final block ends the stream, and not the message, unless it is the last of the payload
                    // (RFC 7692 §7.2.3.4).
                    is_last = *at == payload.len() || *at == end_at;
                    if !(is_last && self.history.is_none()) {
                        self.restart(before, filled);
                        work += RESTART_WORK_BYTES;
                    }
                }
                Ok(Status::Ok | Status::BufError) => {
                    // With room left, all that was read has come out.
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

    /// A whole message, behind headroom. It is a violation if it is longer than that.
    #[cfg(any(test, fuzzing, feature = "client"))]
    pub(crate) fn message(
        &mut self,
        payload: &[u8],
        message_bytes_max: usize,
    ) -> Result<Vec<u8>, Violation> {
        self.begin();
        let mut at = 0;
        let mut out = vec![0; HEADER_BYTES_MAX];
        loop {
            let room = message_bytes_max - (out.len() - HEADER_BYTES_MAX);
            let before = &out[HEADER_BYTES_MAX..];
            let step = self
                .step(payload, &mut at, before, room.saturating_add(1))
                .map_err(|_| Violation::InvalidDeflate)?;
            if step.bytes.len() > room {
                return Err(Violation::MessageTooBig);
            }
            out.extend_from_slice(step.bytes);
            if step.is_last {
                return Ok(out);
            }
        }
    }

    /// Another stream begins behind a final block. It may refer to what came before.
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
