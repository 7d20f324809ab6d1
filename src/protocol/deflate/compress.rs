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

/// A compressor.
pub(crate) struct Compressor {
    deflate: Deflate,
    level: u8,
    /// Headroom for a frame header, then compressed bytes.
    buffer: Vec<u8>,
}

/// The compressed message would not be shorter.
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

    /// Starts anew. The next message may refer to `history` and to nothing else.
    pub(crate) fn restart(&mut self, history: &[u8]) {
        self.deflate.reset();
        if !history.is_empty() {
            // It fails only in the middle of a stream.
            let set = self.deflate.set_dictionary(history);
            debug_assert!(set.is_ok());
        }
    }

    /// Compresses a message into one frame, which may refer to the messages since the restart. The compressed payload must be
    /// shorter than the plain one plus `longer_by` bytes. After an error the compressor must be restarted, since its window
    /// holds a message that the peer does not receive.
    pub(crate) fn compress(
        &mut self,
        kind: MessageKind,
        payload: &[u8],
        level: u8,
        longer_by: usize,
    ) -> Result<&[u8], NotShorter> {
        if level != self.level {
            // Changing the level writes no output, since each message ends with a flush.
            if self.deflate.set_level(level.into()).is_err() {
                return Err(NotShorter);
            }
            self.level = level;
        }
        let end = self.deflate(payload, payload.len() + longer_by)?;
        Ok(self.frame(kind, end))
    }

    /// Compresses a message into one frame, as [`compress`](Self::compress) does, unless its beginning shows that it is noise.
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

    /// Compresses a payload into the buffer, behind the headroom. Returns the end of the output, which must be shorter than
    /// `bytes_max`.
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
        // If the output has filled the buffer, there may be more.
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

    /// Frees the memory of a long message.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        if self.buffer.len() > bytes_max {
            self.buffer.truncate(bytes_max);
            self.buffer.shrink_to_fit();
        }
    }
}

/// The length of the beginning that is compressed first, to recognise noise.
const PROBE_BYTES: usize = 4096;
