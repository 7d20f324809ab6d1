//! Pools of compressors and decompressors, for messages that refer to no other message. Each message takes one for as long as
//! it needs it, so that no connection has one of its own.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use crate::compression::Compression;
use crate::protocol::deflate::WINDOW_BITS_MAX;
use crate::protocol::deflate::compress::{Compressor, CompressorSize};
use crate::protocol::deflate::inflate::{Inflated, Inflater, Inflation, Takeover, honest_work_max};
use crate::protocol::encode;
use crate::protocol::error::Violation;
use crate::sync::lock;

/// Most idle compressors that a pool keeps, each of some 400 KiB, and most idle decompressors, each of some 115 KB.
const IDLE_MAX: usize = 4;

/// The output buffer that a compressor keeps between messages.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

const ALONE: CompressorSize = CompressorSize {
    window_bits: WINDOW_BITS_MAX,
    memory_level: 8,
};

/// The compressors of sending threads.
#[derive(Default)]
pub(crate) struct Compressors {
    idle: Mutex<Vec<Compressor>>,
    /// The number of connections that have agreed to compression.
    agreed: AtomicUsize,
}

impl Compressors {
    /// Counts a connection that has agreed to compression.
    pub(crate) fn entered(&self) {
        self.agreed.fetch_add(1, Relaxed);
    }

    /// Frees the idle compressors with the last connection that may need them.
    pub(crate) fn left(&self) {
        if self.agreed.fetch_sub(1, Relaxed) == 1 {
            lock(&self.idle).clear();
        }
    }

    /// Whether any connection has agreed to compression.
    pub(crate) fn are_needed(&self) -> bool {
        self.agreed.load(Relaxed) > 0
    }

    /// Compresses a message. `None` if that does not make it shorter.
    pub(crate) fn compress(&self, compression: &Compression, frame: &[u8]) -> Option<Bytes> {
        let (kind, payload) = encode::data_payload(frame)?;
        if !compression.compresses(kind) {
            return None;
        }
        let idle = lock(&self.idle).pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(ALONE));
        compressor.restart(&[]);
        // How many clients it reaches is not known here; and at a high level, long messages cost milliseconds.
        let level = compression.level_for(payload.len(), 0);
        let compressed = compressor.compress_unless_noise(kind, payload, level);
        let compressed = compressed.ok().map(Bytes::copy_from_slice);
        compressor.shrink(OUTPUT_BYTES_MAX);
        keep(&self.idle, compressor);
        compressed
    }
}

/// The decompressors of receiving threads, for clients without context takeover.
#[derive(Default)]
pub(crate) struct Inflaters {
    idle: Mutex<Vec<Inflater>>,
}

impl Inflaters {
    /// Inflates a message, behind headroom for a frame header, in bounded steps. If `text`, it must be UTF-8. It must not be
    /// longer than `message_bytes_max`, nor take more work than any message of that length that an honest client makes.
    pub(crate) fn inflate(
        &self,
        payload: &[u8],
        text: bool,
        message_bytes_max: usize,
    ) -> Result<Vec<u8>, Violation> {
        let idle = lock(&self.idle).pop();
        let mut inflater = idle.unwrap_or_else(|| Inflater::new(Takeover::No));
        let mut allowance = honest_work_max(payload.len(), message_bytes_max);
        let inflated = Inflation::default().advance(
            &mut inflater,
            payload,
            text,
            message_bytes_max,
            &mut allowance,
        );
        keep(&self.idle, inflater);
        match inflated? {
            Inflated::Whole(whole) => Ok(whole),
            // A flood of blocks without output.
            Inflated::Part => Err(Violation::InvalidDeflate),
        }
    }

    /// Frees the idle ones.
    pub(crate) fn clear(&self) {
        lock(&self.idle).clear();
    }
}

fn keep<T>(idle: &Mutex<Vec<T>>, one: T) {
    let mut idle = lock(idle);
    if idle.len() < IDLE_MAX {
        idle.push(one);
    }
}
