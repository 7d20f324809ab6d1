//! Broadcasts of a turn, joined: those for the same audience gather in one batch of frames.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Who a message for many is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    Everyone,
    /// Those in the room with this number.
    Room(u64),
}

/// What an audience has been sent in this turn, and its members have still to get.
pub(crate) struct Batch {
    pub(crate) audience: Audience,
    bytes: Gathered,
    /// The frames in it.
    pieces: Vec<Piece>,
}

/// A lone frame is sent as it is.
enum Gathered {
    One(Bytes),
    Many(BytesMut),
}

struct Piece {
    /// Its place among all broadcasts of the shard.
    number: u64,
    /// Where it ends.
    end: usize,
}

impl Batch {
    pub(crate) fn new(audience: Audience, number: u64, frame: Bytes) -> Self {
        let end = frame.len();
        Self {
            audience,
            bytes: Gathered::One(frame),
            pieces: vec![Piece { number, end }],
        }
    }

    /// `spare` is memory that it may take.
    pub(crate) fn push(&mut self, number: u64, frame: &[u8], spare: &mut Spare) {
        if let Gathered::One(first) = &self.bytes {
            let mut joined = spare.take();
            joined.extend_from_slice(first);
            self.bytes = Gathered::Many(joined);
        }
        if let Gathered::Many(joined) = &mut self.bytes {
            joined.extend_from_slice(frame);
            let end = joined.len();
            self.pieces.push(Piece { number, end });
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Gathered::One(frame) => frame,
            Gathered::Many(joined) => joined,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// How many messages somebody has still to get who has all before this number.
    pub(crate) fn messages_from(&self, number: u64) -> usize {
        self.pieces.len() - position(&self.pieces, number)
    }

    /// The messages from this number on, each with its number.
    pub(crate) fn from(&self, number: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let bytes = self.bytes();
        let first = position(&self.pieces, number);
        let mut at = start(&self.pieces, first);
        self.pieces[first..].iter().map(move |piece| {
            let frame = &bytes[at..piece.end];
            at = piece.end;
            (piece.number, frame)
        })
    }

    /// The batch as it is sent.
    pub(crate) fn close(self) -> SealedBatch {
        let (bytes, allocated) = match self.bytes {
            // A message's frame fills its allocation.
            Gathered::One(frame) => {
                let allocated = frame.len();
                (frame, allocated)
            }
            Gathered::Many(joined) => {
                let allocated = joined.capacity();
                (joined.freeze(), allocated)
            }
        };
        SealedBatch {
            bytes,
            allocated,
            pieces: self.pieces,
        }
    }
}

/// Memory of former batches, for the next one.
#[derive(Default)]
pub(crate) struct Spare {
    memory: BytesMut,
    /// How long the last batch was: the next one is about as long.
    len: usize,
}

impl Spare {
    fn take(&mut self) -> BytesMut {
        let mut memory = std::mem::take(&mut self.memory);
        memory.reserve(self.len);
        memory
    }

    /// Takes back the memory of a batch that has been sent, unless an outbox keeps it.
    pub(crate) fn reclaim(&mut self, batch: SealedBatch) {
        if batch.pieces.len() < 2 {
            return;
        }
        self.len = batch.bytes.len();
        if let Ok(mut memory) = batch.bytes.try_into_mut() {
            memory.clear();
            self.memory = memory;
        }
    }
}

/// A batch that takes nothing more.
pub(crate) struct SealedBatch {
    pub(crate) bytes: Bytes,
    /// The memory behind them.
    allocated: usize,
    pieces: Vec<Piece>,
}

impl SealedBatch {
    /// Where the messages from this number on begin, and how many they are.
    pub(crate) fn share(&self, number: u64) -> (usize, u32) {
        let first = position(&self.pieces, number);
        (
            start(&self.pieces, first),
            (self.pieces.len() - first) as u32,
        )
    }

    /// An outbox is to keep some of the bytes: then they must not hold far more memory than they are.
    fn make_compact(&mut self) {
        if self.allocated / 2 > self.bytes.len() {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
            self.allocated = self.bytes.len();
        }
    }

    /// The bytes from there on, for outboxes to keep, and how much memory is behind them.
    pub(crate) fn piece(&mut self, from: usize) -> (Bytes, usize) {
        self.make_compact();
        (self.bytes.slice(from..), self.allocated)
    }

    /// Some of the bytes, as one outbox keeps them, and whether they are its own.
    pub(crate) fn keep(&mut self, range: Range<usize>) -> (Bytes, bool) {
        self.make_compact();
        keep_piece(self.bytes.slice(range), self.allocated)
    }
}

/// A piece of something of that length that others may share, as one outbox keeps it: shared, or as a copy of its own
/// where it would hold back more than twice what it is. Returns whether it is a copy.
pub(crate) fn keep_piece(piece: Bytes, of: usize) -> (Bytes, bool) {
    match piece.len() < of / 2 {
        true => (Bytes::copy_from_slice(&piece), true),
        false => (piece, false),
    }
}

/// The first piece from this number on.
fn position(pieces: &[Piece], number: u64) -> usize {
    match pieces.first() {
        // Nearly always.
        Some(first) if first.number >= number => 0,
        _ => pieces.partition_point(|piece| piece.number < number),
    }
}

fn start(pieces: &[Piece], index: usize) -> usize {
    match index {
        0 => 0,
        _ => pieces[index - 1].end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(numbers: &[u64]) -> Batch {
        let mut spare = Spare::default();
        let frame = |number: u64| format!("[{number}]");
        let mut batch = Batch::new(
            Audience::Everyone,
            numbers[0],
            frame(numbers[0]).into_bytes().into(),
        );
        for &number in &numbers[1..] {
            batch.push(number, frame(number).as_bytes(), &mut spare);
        }
        batch
    }

    #[test]
    fn a_share_begins_with_the_first_message_that_is_still_to_be_got() {
        let numbers = [3, 4, 7, 12];
        for from in 0..15 {
            let expected: Vec<u64> = numbers.into_iter().filter(|&n| n >= from).collect();
            let text: String = expected.iter().map(|n| format!("[{n}]")).collect();
            let batch = batch(&numbers);
            assert_eq!(batch.messages_from(from), expected.len());
            let frames: Vec<u64> = batch.from(from).map(|(number, _)| number).collect();
            assert_eq!(frames, expected);
            let closed = batch.close();
            let (at, messages) = closed.share(from);
            assert_eq!(closed.bytes[at..], *text.as_bytes());
            assert_eq!(messages as usize, expected.len());
        }
    }

    #[test]
    fn a_lone_frame_is_not_copied() {
        let frame = Bytes::from(vec![1; 100]);
        let closed = Batch::new(Audience::Room(1), 0, frame.clone()).close();
        assert_eq!(closed.bytes.as_ptr(), frame.as_ptr());
    }
}
