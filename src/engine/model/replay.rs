//! The messages that a client is sent before new ones: kept messages of a room, or of several.

use bytes::Bytes;

use crate::engine::parts::batch::is_small_piece;

/// Kept messages for one client, in order.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pieces: Vec<ReplayPiece>,
}

#[derive(Debug, Clone)]
pub(crate) enum ReplayPiece {
    /// One message. The client gets a copy, since its replay is queued in few pieces.
    Message(Bytes),
    /// Whole messages of a block, which the replays of other clients share. Its owner bounds the memory of all blocks.
    Block {
        bytes: Bytes,
        messages: u32,
        /// The length of the whole block.
        of: usize,
    },
}

impl ReplayPiece {
    pub(crate) fn bytes(&self) -> &Bytes {
        match self {
            Self::Message(bytes) | Self::Block { bytes, .. } => bytes,
        }
    }

    fn messages(&self) -> u32 {
        match self {
            Self::Message(_) => 1,
            Self::Block { messages, .. } => *messages,
        }
    }

    /// The bytes that count in a mailbox. Those of blocks are counted by their owner.
    fn weight(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Block { .. } => 0,
        }
    }
}

/// Part of a replay, as an outbox keeps it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReplayPart {
    pub(crate) bytes: Bytes,
    pub(crate) messages: u32,
    /// Whether other clients may share the bytes.
    pub(crate) is_shared: bool,
}

/// The weight in a mailbox of a replay of so many pieces, with so many bytes outside of blocks.
pub(crate) const fn replay_weight(pieces: usize, bytes: usize) -> usize {
    pieces
        .saturating_mul(size_of::<ReplayPiece>())
        .saturating_add(bytes)
}

impl Replay {
    pub(crate) fn new(pieces: Vec<ReplayPiece>) -> Self {
        Self { pieces }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The number of messages.
    pub(crate) fn messages(&self) -> u32 {
        self.pieces.iter().map(ReplayPiece::messages).sum()
    }

    pub(crate) fn weight(&self) -> usize {
        replay_weight(
            self.pieces.len(),
            self.pieces.iter().map(ReplayPiece::weight).sum(),
        )
    }

    #[cfg(test)]
    pub(crate) fn pieces(&self) -> &[ReplayPiece] {
        &self.pieces
    }

    /// All bytes in one allocation.
    pub(crate) fn concat(&self) -> Bytes {
        concat(&self.pieces)
    }

    /// The parts to be queued. A small piece of a block is copied, so that it does not keep the block in memory; messages between
    /// blocks are joined.
    pub(crate) fn parts(self) -> impl Iterator<Item = ReplayPart> {
        let mut pieces = self.pieces.into_iter().peekable();
        std::iter::from_fn(move || {
            let mut copied = Vec::new();
            while let Some(piece) = pieces.next_if(|piece| shared(piece).is_none()) {
                copied.push(piece);
            }
            if copied.is_empty() {
                return shared(&pieces.next()?);
            }
            Some(ReplayPart {
                bytes: concat(&copied),
                messages: copied.iter().map(ReplayPiece::messages).sum(),
                is_shared: false,
            })
        })
    }
}

/// The piece as a shared part, unless it has to be copied.
fn shared(piece: &ReplayPiece) -> Option<ReplayPart> {
    match piece {
        ReplayPiece::Block {
            bytes,
            messages,
            of,
        } if !is_small_piece(bytes.len(), *of) => Some(ReplayPart {
            bytes: bytes.clone(),
            messages: *messages,
            is_shared: true,
        }),
        _ => None,
    }
}

fn concat(pieces: &[ReplayPiece]) -> Bytes {
    let mut all = Vec::with_capacity(pieces.iter().map(|piece| piece.bytes().len()).sum());
    for piece in pieces {
        all.extend_from_slice(piece.bytes());
    }
    all.into()
}

impl FromIterator<Bytes> for Replay {
    fn from_iter<I: IntoIterator<Item = Bytes>>(messages: I) -> Self {
        Self::new(messages.into_iter().map(ReplayPiece::Message).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: &Bytes, range: std::ops::Range<usize>) -> ReplayPiece {
        ReplayPiece::Block {
            bytes: bytes.slice(range.clone()),
            messages: range.len() as u32,
            of: bytes.len(),
        }
    }

    fn part(bytes: &[u8], is_shared: bool) -> ReplayPart {
        ReplayPart {
            bytes: Bytes::copy_from_slice(bytes),
            messages: bytes.len() as u32,
            is_shared,
        }
    }

    #[test]
    fn parts_share_large_pieces_and_join_the_others() {
        let bytes = Bytes::from_static(b"0123456789");
        let message =
            |text: &'static str| ReplayPiece::Message(Bytes::from_static(text.as_bytes()));
        let pieces = vec![
            block(&bytes, 6..10),
            message("a"),
            block(&bytes, 0..10),
            block(&bytes, 0..5),
            message("b"),
            block(&bytes, 0..4),
        ];
        let replay = Replay::new(pieces);
        assert_eq!(replay.messages(), 4 + 1 + 10 + 5 + 1 + 4);
        assert_eq!(replay.weight(), replay_weight(6, 2));
        assert_eq!(&replay.concat()[..], b"6789a012345678901234b0123");
        let parts: Vec<_> = replay.parts().collect();
        let expected = [
            part(b"6789a", false),
            part(b"0123456789", true),
            part(b"01234", true),
            part(b"b0123", false),
        ];
        assert_eq!(parts, expected);
        assert_eq!(parts[1].bytes.as_ptr(), bytes.as_ptr());
        assert_eq!(Replay::default().parts().next(), None);
    }
}
