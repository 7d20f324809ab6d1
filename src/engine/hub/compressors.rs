//! Messages that the sending thread compresses: long broadcasts, and messages to one client. They refer to no
//! other message.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use crate::compression::Compression;
use crate::engine::hub::Hub;
use crate::engine::model::command::{Command, EitherForm, Form};
use crate::engine::model::session::Session;
use crate::engine::parts::batch::ALONE_FROM_BYTES;
use crate::engine::parts::mailbox::Refused;
use crate::protocol::deflate::WINDOW_BITS_MAX;
use crate::protocol::deflate::compress::{Compressor, CompressorSize};
use crate::protocol::encode;
use crate::sync::lock;

/// Most idle compressors that are kept. Each takes some 400 KiB.
const COMPRESSORS_MAX: usize = 4;

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
    pub(crate) fn entered(&self) {
        self.agreed.fetch_add(1, Relaxed);
    }

    pub(crate) fn left(&self) {
        if self.agreed.fetch_sub(1, Relaxed) == 1 {
            lock(&self.idle).clear();
        }
    }

    /// Compresses a message. `None` if that does not make it shorter.
    fn compress(&self, compression: &Compression, frame: &[u8]) -> Option<Bytes> {
        let (kind, payload) = encode::data_payload(frame)?;
        if !compression.compresses(kind) {
            return None;
        }
        let idle = lock(&self.idle).pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(ALONE));
        compressor.restart(&[]);
        let level = compression.level_for(payload.len());
        let compressed = compressor.compress_unless_noise(kind, payload, level);
        let compressed = compressed.ok().map(Bytes::copy_from_slice);
        compressor.shrink(OUTPUT_BYTES_MAX);
        let mut idle = lock(&self.idle);
        if idle.len() < COMPRESSORS_MAX {
            idle.push(compressor);
        }
        compressed
    }
}

impl Hub {
    /// The form in which a broadcast is sent.
    pub(super) fn form_of(&self, frame: &Bytes, uncompressed: bool) -> Form {
        let Some(compression) = &self.settings.compression else {
            return Form::Any;
        };
        if uncompressed {
            return Form::Plain;
        }
        if frame.len() < ALONE_FROM_BYTES || self.compressors.agreed.load(Relaxed) == 0 {
            return Form::Any;
        }
        match self.compressors.compress(compression, frame) {
            Some(compressed) => {
                self.common.compressed.add(1);
                Form::Compressed(compressed)
            }
            None => Form::Plain,
        }
    }

    /// Whether a message to one client is compressed, if the client can inflate it.
    pub(crate) fn compresses_reply(&self, frame: &Bytes) -> bool {
        let Some(compression) = &self.settings.compression else {
            return false;
        };
        let payload = encode::data_payload(frame);
        payload.is_some_and(|(_, payload)| payload.len() >= compression.replies_from)
            && self.compressors.agreed.load(Relaxed) > 0
    }

    /// Leaves a frame for a connection, compressed if that makes it shorter. Returns the plain frame if it is refused.
    pub(crate) fn send_compressed(
        &self,
        session: &Session,
        frame: Bytes,
        blocks: bool,
    ) -> Result<(), (Bytes, Refused)> {
        let compression = self.settings.compression.as_ref();
        let compressed = compression
            .filter(|_| session.compression.can_inflate(frame.len()))
            .and_then(|compression| self.compressors.compress(compression, &frame));
        let Some(compressed) = compressed else {
            return self.send(session.id, frame, blocks);
        };
        self.common.compressed.add(1);
        let command = Command::SendEither(Box::new(EitherForm {
            to: session.id.key(),
            plain: frame,
            compressed,
        }));
        self.leave_command(session.id, command, blocks)
            .map_err(|(command, refused)| {
                let Command::SendEither(either) = command else {
                    unreachable!("a refused command is returned as it was");
                };
                (either.plain, refused)
            })
    }
}
