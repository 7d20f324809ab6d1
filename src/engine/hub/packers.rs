//! Messages that the sending thread packs (compresses): long broadcasts, and messages to one client. They refer to no
//! other message.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use crate::compression::Compression;
use crate::engine::hub::Hub;
use crate::engine::model::command::{Command, EitherForm, Form};
use crate::engine::model::session::Session;
use crate::engine::parts::mailbox::Refused;
use crate::protocol::deflate::WINDOW_BITS_MAX;
use crate::protocol::deflate::pack::{Packer, PackerSize};
use crate::protocol::encode;
use crate::sync::lock;

/// Broadcasts of this length or more are packed by the thread that sends them, and are not batched with others. Shorter
/// ones are packed by the shards, with the history of their audience.
pub(crate) const LONG_FROM_BYTES: usize = 16 << 10;

/// Most idle compressors that are kept. Each takes some 400 KiB.
const PACKERS_MAX: usize = 4;

/// The output buffer that a compressor keeps between messages.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

const ALONE: PackerSize = PackerSize {
    window_bits: WINDOW_BITS_MAX,
    memory_level: 8,
};

/// The compressors of sending threads.
#[derive(Default)]
pub(crate) struct Packers {
    idle: Mutex<Vec<Packer>>,
    /// The number of connections that have agreed to compression.
    agreed: AtomicUsize,
}

impl Packers {
    pub(crate) fn entered(&self) {
        self.agreed.fetch_add(1, Relaxed);
    }

    pub(crate) fn left(&self) {
        if self.agreed.fetch_sub(1, Relaxed) == 1 {
            lock(&self.idle).clear();
        }
    }

    /// Packs a message. `None` if that does not make it shorter.
    fn pack(&self, compression: &Compression, frame: &[u8]) -> Option<Bytes> {
        let (kind, payload) = encode::data_payload(frame)?;
        if !compression.packs(kind) {
            return None;
        }
        let idle = lock(&self.idle).pop();
        let mut packer = idle.unwrap_or_else(|| Packer::new(ALONE));
        packer.restart(&[]);
        let level = compression.level_for(payload.len());
        let packed = packer.pack_unless_noise(kind, payload, level);
        let packed = packed.ok().map(Bytes::copy_from_slice);
        packer.shrink(OUTPUT_BYTES_MAX);
        let mut idle = lock(&self.idle);
        if idle.len() < PACKERS_MAX {
            idle.push(packer);
        }
        packed
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
        if frame.len() < LONG_FROM_BYTES || self.packers.agreed.load(Relaxed) == 0 {
            return Form::Any;
        }
        match self.packers.pack(compression, frame) {
            Some(packed) => {
                self.common.packed.add(1);
                Form::Packed(packed)
            }
            None => Form::Plain,
        }
    }

    /// Whether messages to single clients may be packed at all.
    #[inline]
    pub(crate) fn packs_replies(&self) -> bool {
        self.settings.compression.is_some() && self.packers.agreed.load(Relaxed) > 0
    }

    /// Whether a message to this client alone may be packed.
    pub(crate) fn packs_replies_of(&self, session: &Session, frame: &Bytes) -> bool {
        self.settings
            .compression
            .as_ref()
            .is_some_and(|compression| {
                frame.len() >= compression.replies_from
                    && session.compression.can_inflate(frame.len())
            })
    }

    /// Leaves a frame for a connection, packed if that makes it shorter. Returns the plain frame if it is refused.
    pub(crate) fn send_packed(
        &self,
        session: &Session,
        frame: Bytes,
        blocks: bool,
    ) -> Result<(), (Bytes, Refused)> {
        let compression = self.settings.compression.as_ref();
        let packed = compression.and_then(|compression| self.packers.pack(compression, &frame));
        let Some(packed) = packed else {
            return self.send(session.id, frame, blocks);
        };
        self.common.packed.add(1);
        let command = Command::SendEither(Box::new(EitherForm {
            to: session.id.key(),
            plain: frame,
            packed,
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
