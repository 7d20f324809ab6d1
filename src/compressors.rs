//! Pools of compressors and inflaters for messages that are compressed independently. Connections share them: each
//! message takes one from the pool, and returns it.

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

/// The maximum number of idle compressors in a pool, of about 380 KB each, and of idle inflaters, of about 115 KB
/// each.
const IDLE_MAX: usize = 4;

/// The maximum output buffer of an idle compressor.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

const ALONE: CompressorSize = CompressorSize {
    window_bits: WINDOW_BITS_MAX,
    memory_level: 8,
};

/// A pool of compressors for the threads that send messages.
#[derive(Default)]
pub(crate) struct Compressors {
    idle: Mutex<Vec<Compressor>>,
    /// The number of connections that have negotiated compression.
    agreed: AtomicUsize,
}

impl Compressors {
    /// Counts a connection that has negotiated compression.
    pub(crate) fn entered(&self) {
        self.agreed.fetch_add(1, Relaxed);
    }

    /// Stops counting a connection. After the last one, frees the idle compressors.
    pub(crate) fn left(&self) {
        if self.agreed.fetch_sub(1, Relaxed) == 1 {
            lock(&self.idle).clear();
        }
    }

    /// Returns whether any connection has negotiated compression.
    pub(crate) fn are_needed(&self) -> bool {
        self.agreed.load(Relaxed) > 0
    }

    /// Compresses a message into a frame. Returns `None` if that does not make it shorter.
    pub(crate) fn compress(&self, compression: &Compression, frame: &[u8]) -> Option<Bytes> {
        let (kind, payload) = encode::data_payload(frame)?;
        if !compression.compresses(kind) {
            return None;
        }
        let idle = lock(&self.idle).pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(ALONE));
        compressor.restart(&[]);
        // The number of recipients is unknown here. Assume none, because long messages take milliseconds at a high
        // level.
        let level = compression.level_for(payload.len(), 0);
        let compressed = compressor.compress_unless_noise(kind, payload, level);
        let compressed = compressed.ok().map(Bytes::copy_from_slice);
        compressor.shrink(OUTPUT_BYTES_MAX);
        keep(&self.idle, compressor);
        compressed
    }
}

/// A pool of inflaters for the threads that receive messages, from clients without context takeover.
#[derive(Default)]
pub(crate) struct Inflaters {
    idle: Mutex<Vec<Inflater>>,
}

impl Inflaters {
    /// Inflates a message in bounded steps. The result begins with headroom for a frame header.
    ///
    /// # Errors
    ///
    /// If `text` is set and the message is not UTF-8, if it is longer than `message_bytes_max`, or if it takes more work than
    /// any message of that length that a real compressor makes.
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
            // The work is used up, so the payload is a flood of blocks without output.
            Inflated::Part => Err(Violation::InvalidDeflate),
        }
    }

    /// Frees the idle inflaters.
    pub(crate) fn clear(&self) {
        lock(&self.idle).clear();
    }
}

/// Returns an item to its pool, or frees it if the pool is full.
fn keep<T>(idle: &Mutex<Vec<T>>, one: T) {
    let mut idle = lock(idle);
    if idle.len() < IDLE_MAX {
        idle.push(one);
    }
}
