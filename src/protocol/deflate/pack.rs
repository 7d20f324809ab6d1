//! Messages to frames.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use super::SYNC_FLUSH_END;
use crate::protocol::encode::{HEADER_BYTES_MAX, MessageKind, write_header};

/// "Per-message compressed" (RFC 7692 §6).
pub(crate) const RSV1: u8 = 0x40;

/// How much memory a compressor takes, and how far back it looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackerSize {
    pub(crate) window_bits: u8,
    pub(crate) memory_level: u8,
}

/// A compressor.
pub(crate) struct Packer {
    deflate: Deflate,
    level: u8,
    /// Headroom for a header, then what is packed.
    buffer: Vec<u8>,
}

/// Why there is no packed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotShorter;

impl Packer {
    pub(crate) fn new(size: PackerSize) -> Self {
        let level = 1;
        let config = DeflateConfig {
            level,
            // Negative: without zlib's header.
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

    /// The next message refers to nothing but the end of this text, if at that.
    pub(crate) fn restart(&mut self, history: &[u8]) {
        self.deflate.reset();
        if !history.is_empty() {
            // Fails in the midst of a stream only.
            let set = self.deflate.set_dictionary(history);
            debug_assert!(set.is_ok());
        }
    }

    /// Packs a message as one frame, which may refer to those packed since the restart, if that takes less than the plain
    /// payload and so many bytes. Where it does not, the compressor has to be restarted: the peer does not get what it has in
    /// its window.
    pub(crate) fn pack(
        &mut self,
        kind: MessageKind,
        payload: &[u8],
        level: u8,
        longer_by: usize,
    ) -> Result<&[u8], NotShorter> {
        if level != self.level {
            // Everything was flushed, so that there is nothing to write out.
            if self.deflate.set_level(level.into()).is_err() {
                return Err(NotShorter);
            }
            self.level = level;
        }
        let end = self.deflate(payload, payload.len() + longer_by)?;
        Ok(self.frame(kind, end))
    }

    /// The same if the message's beginning can be packed at all: noise is given up early.
    pub(crate) fn pack_unless_noise(
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
        self.pack(kind, payload, level, 0)
    }

    /// Packs a payload behind the headroom. Returns where it ends in the buffer, if it takes less than `bytes_max`.
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
        // Output that has filled its room may not be all.
        let is_whole = matches!(status, Ok(Status::Ok | Status::BufError))
            && read == payload.len()
            && at < room;
        if !is_whole {
            return Err(NotShorter);
        }
        let packed = &self.buffer[HEADER_BYTES_MAX..at];
        match packed.strip_suffix(&SYNC_FLUSH_END) {
            Some(packed) if packed.len() < bytes_max => Ok(HEADER_BYTES_MAX + packed.len()),
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

    /// Gives back the memory of a long message.
    pub(crate) fn shrink(&mut self, bytes_max: usize) {
        if self.buffer.len() > bytes_max {
            self.buffer.truncate(bytes_max);
            self.buffer.shrink_to_fit();
        }
    }
}

/// So much of a long message is packed first, to see whether it is noise.
const PROBE_BYTES: usize = 4096;
