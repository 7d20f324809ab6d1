//! The messages of a batch that have a key. Members that do not receive the batch at once get them one by one, since a newer message of
//! the key may replace each.

use bytes::Bytes;

use crate::engine::parts::batch::{Batch, CompressedFrame, Piece, SealedBatch, start};
use crate::engine::parts::compression::ConnCompression;
use crate::engine::parts::id::ConflationKey;
use crate::engine::parts::outbox::Outbox;

/// A message with a key, for members that do not receive it at once.
pub(crate) struct KeyedFrame {
    /// Its number among all broadcasts of the shard.
    number: u64,
    pub(crate) key: ConflationKey,
    plain: Bytes,
    /// The message compressed independently, if it is long.
    #[cfg(feature = "deflate")]
    compressed: Option<Bytes>,
}

impl KeyedFrame {
    pub(super) fn new(
        number: u64,
        key: ConflationKey,
        plain: &Bytes,
        compressed: Option<&CompressedFrame>,
    ) -> Self {
        #[cfg(not(feature = "deflate"))]
        let _ = compressed;
        Self {
            number,
            key,
            plain: plain.clone(),
            #[cfg(feature = "deflate")]
            compressed: compressed
                .filter(|compressed| compressed.alone)
                .map(|compressed| compressed.frame.clone()),
        }
    }

    /// The message uncompressed.
    pub(crate) fn plain(&self) -> &Bytes {
        &self.plain
    }

    /// The form in which the message waits in an outbox. It refers to no other message, since those may be replaced.
    pub(crate) fn for_later(&self, compression: ConnCompression, outbox: &Outbox) -> &Bytes {
        #[cfg(feature = "deflate")]
        if let Some(compressed) = &self.compressed
            && compression.ability().can_inflate(self.plain.len())
            // Compressed messages may already wait behind an uncompressed one of this key, and refer to those before it. A compressed
            // one in its place would come in between in the client's window.
            && !(compression.can_follow() && outbox.waits_uncompressed(self.key))
        {
            return compressed;
        }
        let _ = (compression, outbox);
        &self.plain
    }
}

/// A part of a member's share of a batch.
pub(crate) enum Part<'a> {
    /// This many messages without a key, and the size of the allocation behind them.
    Messages(Bytes, u32, usize),
    Keyed(&'a KeyedFrame),
}

impl Batch {
    /// Whether any of its messages have a key.
    pub(crate) fn is_keyed(&self) -> bool {
        !self.keyed.is_empty()
    }

    /// The key of one of its messages.
    pub(crate) fn key_of(&self, number: u64) -> Option<&KeyedFrame> {
        let index = self.keyed.binary_search_by_key(&number, |of| of.number);
        self.keyed.get(index.ok()?)
    }
}

impl SealedBatch {
    /// Whether any of its messages have a key.
    #[inline]
    pub(crate) fn is_keyed(&self) -> bool {
        !self.keyed.is_empty()
    }

    /// The keys of its messages from this number on.
    pub(crate) fn keys_from(&self, number: u64) -> impl Iterator<Item = ConflationKey> {
        let first = self.keyed.partition_point(|of| of.number < number);
        self.keyed[first..].iter().map(|of| of.key)
    }

    /// The last `messages` messages, uncompressed, for one outbox to keep: those with a key each, and the others in runs.
    pub(crate) fn last_parts(&mut self, messages: u32) -> impl Iterator<Item = Part<'_>> {
        let frames = &mut self.frames.plain;
        frames.make_compact();
        let frames = &*frames;
        let mut next = frames.pieces.len() - messages as usize;
        let mut keyed = &self.keyed[..];
        std::iter::from_fn(move || {
            let number = frames.pieces.get(next)?.number;
            keyed = &keyed[keyed.partition_point(|of| of.number < number)..];
            let first = next;
            next += 1;
            if let Some((of, rest)) = keyed.split_first()
                && of.number == number
            {
                keyed = rest;
                return Some(Part::Keyed(of));
            }
            let is_without_key =
                |piece: &Piece| keyed.first().is_none_or(|of| piece.number < of.number);
            next += frames.pieces[next..].partition_point(is_without_key);
            let range = start(&frames.pieces, first)..start(&frames.pieces, next);
            let bytes = frames.bytes.slice(range);
            Some(Part::Messages(
                bytes,
                (next - first) as u32,
                frames.allocated,
            ))
        })
    }
}
