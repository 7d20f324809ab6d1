//! Compresses messages on the sending thread, each one independently: long broadcasts, and messages to a single client.

use bytes::Bytes;

use crate::engine::hub::Hub;
use crate::engine::model::command::{Command, EitherForm, Form};
use crate::engine::model::session::Session;
use crate::engine::parts::batch::ALONE_FROM_BYTES;
use crate::engine::parts::mailbox::PushError;
use crate::protocol::encode;

impl Hub {
    /// Chooses the form in which a broadcast is sent, and compresses a long one.
    pub(super) fn form_of(&self, frame: &Bytes, uncompressed: bool) -> Form {
        let Some(compression) = &self.settings.compression else {
            return Form::Any;
        };
        if uncompressed {
            return Form::Plain;
        }
        if frame.len() < ALONE_FROM_BYTES || !self.compressors.are_needed() {
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

    /// Returns whether a message to a single client is to be compressed, provided that the client can inflate it.
    pub(crate) fn compresses_reply(&self, frame: &Bytes) -> bool {
        let Some(compression) = &self.settings.compression else {
            return false;
        };
        let payload = encode::data_payload(frame);
        payload.is_some_and(|(_, payload)| payload.len() >= compression.replies_from)
            && self.compressors.are_needed()
    }

    /// Queues a frame for a connection, compressed if that makes it shorter. If the mailbox refuses it, the error
    /// contains the uncompressed frame.
    pub(crate) fn send_compressed(
        &self,
        session: &Session,
        frame: Bytes,
        blocks: bool,
    ) -> Result<(), (Bytes, PushError)> {
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
        self.push_command(session.id, command, blocks)
            .map_err(|(command, refused)| {
                let Command::SendEither(either) = command else {
                    unreachable!("a refused command is returned as it was");
                };
                (either.plain, refused)
            })
    }
}
