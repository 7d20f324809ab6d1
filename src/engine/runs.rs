//! Broadcasts of a turn, joined: those for the same audience gather in one run of frames.

use bytes::{Bytes, BytesMut};

/// Who a message for many is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Everyone,
    /// Those in the room with this number.
    Room(u64),
}

/// What an audience has been sent in this turn, and its members have still to get.
pub(super) struct Run {
    pub(super) audience: Audience,
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

impl Run {
    pub(super) fn new(audience: Audience, number: u64, frame: Bytes) -> Self {
        let end = frame.len();
        Self {
            audience,
            bytes: Gathered::One(frame),
            pieces: vec![Piece { number, end }],
        }
    }

    /// `spare` is memory that it may take.
    pub(super) fn push(&mut self, number: u64, frame: &[u8], spare: &mut BytesMut) {
        if let Gathered::One(first) = &self.bytes {
            let mut joined = std::mem::take(spare);
            joined.clear();
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

    pub(super) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// How many messages somebody has still to get who has all before this number.
    pub(super) fn messages_from(&self, number: u64) -> usize {
        self.pieces.len() - position(&self.pieces, number)
    }

    /// The messages from this number on, each with its number.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let bytes = self.bytes();
        let first = position(&self.pieces, number);
        let mut at = start(&self.pieces, first);
        self.pieces[first..].iter().map(move |piece| {
            let frame = &bytes[at..piece.end];
            at = piece.end;
            (piece.number, frame)
        })
    }

    /// The run as it is sent. What is left of its memory goes back to `spare`.
    pub(super) fn close(self, spare: &mut BytesMut) -> Closed {
        let bytes = match self.bytes {
            Gathered::One(frame) => frame,
            Gathered::Many(mut joined) => {
                let bytes = joined.split().freeze();
                *spare = joined;
                bytes
            }
        };
        Closed {
            bytes,
            pieces: self.pieces,
        }
    }
}

/// A run that takes nothing more.
pub(super) struct Closed {
    pub(super) bytes: Bytes,
    pieces: Vec<Piece>,
}

impl Closed {
    /// Where the messages from this number on begin, and how many they are.
    pub(super) fn share(&self, number: u64) -> (usize, u32) {
        let first = position(&self.pieces, number);
        (
            start(&self.pieces, first),
            (self.pieces.len() - first) as u32,
        )
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

    fn run(numbers: &[u64]) -> Run {
        let mut spare = BytesMut::new();
        let frame = |number: u64| format!("[{number}]");
        let mut run = Run::new(
            Audience::Everyone,
            numbers[0],
            frame(numbers[0]).into_bytes().into(),
        );
        for &number in &numbers[1..] {
            run.push(number, frame(number).as_bytes(), &mut spare);
        }
        run
    }

    #[test]
    fn a_share_begins_with_the_first_message_that_is_still_to_be_got() {
        let numbers = [3, 4, 7, 12];
        for from in 0..15 {
            let expected: Vec<u64> = numbers.into_iter().filter(|&n| n >= from).collect();
            let text: String = expected.iter().map(|n| format!("[{n}]")).collect();
            let run = run(&numbers);
            assert_eq!(run.messages_from(from), expected.len());
            let frames: Vec<u64> = run.from(from).map(|(number, _)| number).collect();
            assert_eq!(frames, expected);
            let closed = run.close(&mut BytesMut::new());
            let (at, messages) = closed.share(from);
            assert_eq!(closed.bytes[at..], *text.as_bytes());
            assert_eq!(messages as usize, expected.len());
        }
    }

    #[test]
    fn a_lone_frame_is_not_copied() {
        let frame = Bytes::from(vec![1; 100]);
        let closed = Run::new(Audience::Room(1), 0, frame.clone()).close(&mut BytesMut::new());
        assert_eq!(closed.bytes.as_ptr(), frame.as_ptr());
    }
}
