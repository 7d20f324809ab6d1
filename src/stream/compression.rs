//! Compression of blocking streams. Each message is compressed independently, so all streams of a route share their
//! compressors and inflaters.

use std::sync::Arc;

use bytes::Bytes;

use crate::compression::Compression;
use crate::compressors::{Compressors, Inflaters};
use crate::limits::Limits;
use crate::message::Message;
use crate::protocol::connection::MessagePayload;
use crate::protocol::deflate::fits_window;
use crate::protocol::deflate::negotiate::Agreement;
use crate::protocol::error::Violation;

/// The settings, compressors and inflaters that the streams of a route share.
pub(crate) struct RouteCompression {
    settings: Compression,
    compressors: Compressors,
    inflaters: Inflaters,
}

impl RouteCompression {
    pub(crate) fn new(settings: Compression) -> Self {
        Self {
            settings,
            compressors: Compressors::default(),
            inflaters: Inflaters::default(),
        }
    }

    pub(crate) fn settings(&self) -> &Compression {
        &self.settings
    }
}

/// The negotiated compression of a stream.
pub(super) struct StreamCompression {
    route: Arc<RouteCompression>,
    agreement: Agreement,
}

impl StreamCompression {
    pub(super) fn new(route: &Arc<RouteCompression>, agreement: Agreement) -> Self {
        route.compressors.entered();
        Self {
            route: route.clone(),
            agreement,
        }
    }

    pub(super) fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Compresses a message into a frame. Returns `None` if the message is to be sent uncompressed.
    pub(super) fn compress(&self, message: &Message) -> Option<Bytes> {
        let route = &*self.route;
        let len = message.bytes().len();
        let is_compressed = !message.is_uncompressed()
            && len >= route.settings.replies_from
            && fits_window(self.agreement.window_bits(), len);
        is_compressed
            .then(|| route.compressors.compress(&route.settings, message.frame()))
            .flatten()
    }

    /// Inflates a received message.
    ///
    /// # Errors
    ///
    /// If the payload is invalid, or the message is longer than the default of `Limits::message_bytes_max`.
    pub(super) fn inflate(
        &self,
        payload: &MessagePayload<'_>,
        text: bool,
    ) -> Result<Message, Violation> {
        let bytes_max = Limits::default().message_bytes_max;
        let inflaters = &self.route.inflaters;
        let whole = inflaters.inflate(payload.bytes(), text, bytes_max)?;
        Ok(Message::from_payload(
            MessagePayload::Assembled(whole),
            text,
        ))
    }
}

impl Drop for StreamCompression {
    fn drop(&mut self) {
        self.route.compressors.left();
        if !self.route.compressors.are_needed() {
            self.route.inflaters.clear();
        }
    }
}
