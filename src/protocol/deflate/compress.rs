//! Compresses messages into frames.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use super::SYNC_FLUSH_END;
use crate::protocol::encode::{HEADER_BYTES_MAX, MessageKind, RSV1, write_header};

/// The window and the memory of a compressor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompressorSize {
    pub(crate) window_bits: u8,
    pub(crate) memory_level: u8,
}

/// Compresses messages. They share a history until the next restart.
pub(crate) struct Compressor {
    deflate: Deflate,
    level: u8,
    /// The headroom for a frame header, followed by compressed bytes.
    buffer: Vec<u8>,
}

/// The error if the compressed message would not be shorter than the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotShorter;

impl Compressor {
    pub(crate) fn new(size: CompressorSize) -> Self {
        let level = 1;
        let config = DeflateConfig {
            level,
            // A negative window means raw deflate, without a zlib header.
            window_bits: -i32::from(size.window_bits),
            mem_level: size.memory_level.into(),
            ..DeflateConfig::default()
        };
        Self {
            deflate: Deflate::new_with_config(config),
            level: level as u8,
            buffer: Vec::new(),
        }
    }

    /// Replaces the history. The next message may refer to `history` only.
    pub(crate) fn restart(&mut self, history: &[u8]) {
        self.deflate.reset();
        if !history.is_empty() {
            // This fails only in the middle of a stream.
            let set = self.deflate.set_dictionary(history);
            debug_assert!(set.is_ok());
        }
    }

    /// Compresses a message into one frame, which may refer to the messages since the restart. Fails unless the
    /// compressed payload is shorter than the plain one plus `longer_by` bytes. After an error, the caller must restart
    /// the compressor, because its window contains a message that the peer does not receive.
    pub(crate) fn compress(
        &mut self,
        kind: MessageKind,
        payload: &[u8],
        level: u8,
        longer_by: usize,
    ) -> Result<&[u8], NotShorter> {
        if level != self.level {
            // Changing the level writes no output, because each message ends with a flush.
            if self.deflate.set_level(level.into()).is_err() {
                return Err(NotShorter);
            }
            self.level = level;
        }
        let end = self.deflate(payload, payload.len() + longer_by)?;
        Ok(self.frame(kind, end))
    }

    /// Compresses a message into one frame, as [`compress`](Self::compress) does. Gives up early if the beginning of a
    /// long message does not compress.
    pub(crate) fn compress_unless_noise(
        &mut self,
        kind: MessageKind,
        payload: &[u8],
        level: u8,
    ) -> Result<&[u8], NotShorter> {
        if payload.len() > 2 * PROBE_BYTES {
            let probe = &payload[..PROBE_BYTES];
            let worth = PROBE_BYTES * 9 / 10;
            let is_worth = self.deflate(probe, worth).is_ok();
            self.restart(&[]);
            if !is_worth {
                return Err(NotShorter);
            }
        }
        self.compress(kind, payload, level, 0)
    }

    /// Compresses a payload into the buffer, after the headroom. Returns the end of the output, or an error if the
    /// output has at least `bytes_max` bytes.
    fn deflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<usize, NotShorter> {
        let room = HEADER_BYTES_MAX + bytes_max + SYNC_FLUSH_END.len();
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let (before_in, before_out) = (self.deflate.total_in(), self.deflate.total_out());
        let out = &mut self.buffer[HEADER_BYTES_MAX..room];
        let status = self.deflate.compress(payload, out, DeflateFlush::SyncFlush);
        let read = (self.deflate.total_in() - before_in) as usize;
        let at = HEADER_BYTES_MAX + (self.deflate.total_out() - before_out) as usize;
        // If the output fills the buffer, it may be incomplete.
        let is_whole = matches!(status, Ok(Status::Ok | Status::BufError))
            && read == payload.len()
            && at < room;
        if !is_whole {
            return Err(NotShorter);
        }
        let compressed = &self.buffer[HEADER_BYTES_MAX..at];
        match compressed.strip_suffix(&SYNC_FLUSH_END) {
            Some(compressed) if compressed.len() < bytes_max => {
                Ok(HEADER_BYTES_MAX + compressed.len())
            }
            _ => Err(NotShorter),
        }
    }

    fn frame(&mut self, kind: MessageKind, end: usize) -> &[u8] {
        let mut header = [0; HEADER_BYTES_MAX];
        let len = write_header(kind.opcode(), end - HEADER_BYTES_MAX, &mut header);
        let begin = HEADER_BYTES_MAX - len;
        header[begin] |= RSV1;
        self.buffer[begin..HEADER_BYTES_MAX].copy_from_slice(&header[begin..]);
        &self.buffer[begin..end]
    }

    /// Shrinks the buffer to at most `bytes_max` bytes.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        if self.buffer.len() > bytes_max {
            self.buffer.truncate(bytes_max);
            self.buffer.shrink_to_fit();
        }
    }
}

/// The length of the beginning that `compress_unless_noise` tries first.
const PROBE_BYTES: usize = 4096;
