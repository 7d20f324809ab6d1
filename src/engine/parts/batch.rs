//! Batches of a turn's broadcasts. Frames for the same audience are gathered and written together.

mod keyed;

use std::ops::Range;

use bytes::{Bytes, BytesMut};

pub(crate) use crate::engine::parts::batch::keyed::{KeyedFrame, Part};
use crate::engine::parts::compression::ConnCompression;
#[cfg(feature = "deflate")]
use crate::engine::parts::compression::Epoch;
use crate::engine::parts::id::ConflationKey;

/// The minimum length of a frame that gets a batch of its own, because copying it would cost more than it saves. The
/// sending thread compresses such messages.
pub(crate) const ALONE_FROM_BYTES: usize = 16 << 10;

/// The recipients of a broadcast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Audience {
    Everyone,
    /// The members of the room with this number.
    Room(u64),
}

/// The broadcasts of this turn to one audience, which its members have yet to receive.
pub(crate) struct Batch {
    pub(crate) audience: Audience,
    frames: Forms<Gathering>,
    /// Those of its messages that have a key, in order.
    keyed: Vec<KeyedFrame>,
    /// The members that received their share before the batch was sent.
    #[cfg(feature = "deflate")]
    early: Followers,
}

/// The same messages in each form that members receive.
struct Forms<F> {
    plain: F,
    /// The compressed frames, and the members that receive them.
    #[cfg(feature = "deflate")]
    compressed: Option<(CompressedFor, F)>,
}

impl<F> Forms<F> {
    /// The form for a connection.
    #[inline]
    fn of(&self, compression: ConnCompression) -> &F {
        #[cfg(feature = "deflate")]
        if let Some((to, compressed)) = &self.compressed
            && to.includes(compression)
        {
            return compressed;
        }
        let _ = compression;
        &self.plain
    }

    fn of_mut(&mut self, compression: ConnCompression) -> &mut F {
        #[cfg(feature = "deflate")]
        if let Some((to, compressed)) = &mut self.compressed
            && to.includes(compression)
        {
            return compressed;
        }
        let _ = compression;
        &mut self.plain
    }
}

#[cfg(feature = "deflate")]
impl<F: Frames> Forms<F> {
    /// Counts a member that receives the messages from this number on.
    #[inline]
    fn note(&self, followers: &mut Followers, number: u64, member: ConnCompression) {
        let Some((to, _)) = &self.compressed else {
            return;
        };
        let (bytes, messages) = self.of(member).share_len(number);
        let (plain, _) = self.plain.share_len(number);
        if messages > 0 {
            followers.add(member, to.epoch, messages, bytes, plain);
        }
    }
}

/// A sequence of numbered frames.
#[cfg(feature = "deflate")]
trait Frames {
    fn pieces(&self) -> &[Piece];

    fn len(&self) -> usize;

    /// The bytes and the number of the messages from this number on.
    fn share_len(&self, number: u64) -> (usize, u32) {
        let pieces = self.pieces();
        let first = position(pieces, number);
        (
            self.len() - start(pieces, first),
            (pieces.len() - first) as u32,
        )
    }
}

/// How the members of an audience received a batch.
#[cfg(feature = "deflate")]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Followers {
    /// The number of members that follow the audience's epoch.
    pub(crate) following: u64,
    /// The number of messages to members that can follow and follow no audience.
    pub(crate) waiting: u64,
    /// The number of members that follow another audience.
    pub(crate) elsewhere: u64,
    /// Bytes of compressed shares, and their bytes without shared.
    pub(crate) compressed_bytes: u64,
    pub(crate) plain_bytes: u64,
}

#[cfg(feature = "deflate")]
impl Followers {
    /// Counts a member that receives `messages` messages in `bytes` bytes, which would be `plain` bytes without shared.
    #[inline]
    fn add(
        &mut self,
        member: ConnCompression,
        epoch: Epoch,
        messages: u32,
        bytes: usize,
        plain: usize,
    ) {
        if bytes != plain {
            self.compressed_bytes += bytes as u64;
            self.plain_bytes += plain as u64;
        }
        if member.follows(epoch) {
            self.following += 1;
        } else if member.can_follow() {
            match member.epoch() {
                None => self.waiting += u64::from(messages),
                Some(_) => self.elsewhere += 1,
            }
        }
    }
}

/// The recipients of compressed frames.
#[cfg(feature = "deflate")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CompressedFor {
    /// Members that follow this epoch.
    pub(crate) epoch: Epoch,
    /// The payload's length, if the frame is a single independently compressed message. Members that can't follow
    /// receive it too, if they can inflate it.
    alone: Option<usize>,
}

#[cfg(feature = "deflate")]
impl CompressedFor {
    #[inline]
    fn includes(self, compression: ConnCompression) -> bool {
        compression.follows(self.epoch)
            || self.alone.is_some_and(|len| {
                !compression.can_follow() && compression.ability().can_inflate(len)
            })
    }
}

/// A message, compressed for the followers of an epoch.
#[derive(Debug, Clone)]
pub(crate) struct CompressedFrame {
    #[cfg(feature = "deflate")]
    pub(crate) epoch: Epoch,
    #[cfg(feature = "deflate")]
    pub(crate) frame: Bytes,
    /// Whether the message was compressed independently, and is alone in its batch.
    #[cfg(feature = "deflate")]
    pub(crate) alone: bool,
}

/// The frames that have been gathered so far.
#[cfg_attr(feature = "deflate", derive(Clone))]
struct Gathering {
    bytes: Gathered,
    /// The frames, in order.
    pieces: Vec<Piece>,
}

/// The bytes of the frames. A lone frame is sent without being copied.
#[cfg_attr(feature = "deflate", derive(Clone))]
enum Gathered {
    One(Bytes),
    Many(BytesMut),
}

#[cfg_attr(feature = "deflate", derive(Clone))]
struct Piece {
    /// The frame's number among all broadcasts of the shard.
    number: u64,
    /// The end of the frame in the batch.
    end: usize,
}

impl Gathering {
    fn new(number: u64, frame: Bytes) -> Self {
        let end = frame.len();
        Self {
            bytes: Gathered::One(frame),
            pieces: vec![Piece { number, end }],
        }
    }

    fn push(&mut self, number: u64, frame: &[u8], spare: &mut Spare) {
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

    fn seal(self) -> SealedFrames {
        let (bytes, allocated) = match self.bytes {
            // The frame of a message fills its allocation.
            Gathered::One(frame) => {
                let allocated = frame.len();
                (frame, allocated)
            }
            Gathered::Many(joined) => {
                let allocated = joined.capacity();
                (joined.freeze(), allocated)
            }
        };
        SealedFrames {
            bytes,
            allocated,
            pieces: self.pieces,
        }
    }
}

#[cfg(feature = "deflate")]
impl Frames for Gathering {
    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }
}

impl Batch {
    pub(crate) fn new(
        audience: Audience,
        number: u64,
        frame: Bytes,
        compressed: Option<CompressedFrame>,
        key: Option<ConflationKey>,
    ) -> Self {
        let keyed = key.map(|key| KeyedFrame::new(number, key, &frame, compressed.as_ref()));
        #[cfg(not(feature = "deflate"))]
        let _ = compressed;
        #[cfg(feature = "deflate")]
        let compressed = compressed.map(|compressed| {
            let to = CompressedFor {
                epoch: compressed.epoch,
                alone: compressed.alone.then_some(frame.len()),
            };
            (to, Gathering::new(number, compressed.frame))
        });
        Self {
            audience,
            frames: Forms {
                plain: Gathering::new(number, frame),
                #[cfg(feature = "deflate")]
                compressed,
            },
            keyed: keyed.into_iter().collect(),
            #[cfg(feature = "deflate")]
            early: Followers::default(),
        }
    }

    /// Appends a frame. `spare` is memory that the batch may take.
    pub(crate) fn push(
        &mut self,
        number: u64,
        frame: &Bytes,
        compressed: Option<CompressedFrame>,
        key: Option<ConflationKey>,
        spare: &mut Spare,
    ) {
        if let Some(key) = key {
            let keyed = KeyedFrame::new(number, key, frame, compressed.as_ref());
            self.keyed.push(keyed);
        }
        #[cfg(feature = "deflate")]
        self.push_compressed(number, frame, compressed);
        #[cfg(not(feature = "deflate"))]
        let _ = compressed;
        self.frames.plain.push(number, frame, spare);
    }

    /// Appends a frame for the followers, compressed if possible.
    #[cfg(feature = "deflate")]
    fn push_compressed(&mut self, number: u64, plain: &[u8], frame: Option<CompressedFrame>) {
        let forms = &mut self.frames;
        if let (Some(frame), None) = (&frame, &forms.compressed) {
            // All messages so far were too short to be compressed.
            let to = CompressedFor {
                epoch: frame.epoch,
                alone: None,
            };
            forms.compressed = Some((to, forms.plain.clone()));
        }
        if let Some((to, frames)) = &mut forms.compressed {
            debug_assert!(frame.as_ref().is_none_or(|frame| frame.epoch == to.epoch));
            let frame = frame.as_ref().map_or(plain, |frame| &frame.frame);
            frames.push(number, frame, &mut Spare::default());
        }
    }

    /// Counts a member that receives its share from this number on before the batch is sent.
    #[cfg(feature = "deflate")]
    pub(crate) fn note_early(&mut self, number: u64, member: ConnCompression) {
        self.frames.note(&mut self.early, number, member);
    }

    /// Returns whether a connection receives the compressed frames.
    #[cfg(feature = "deflate")]
    pub(crate) fn is_compressed_for(&self, compression: ConnCompression) -> bool {
        let compressed = self.frames.compressed.as_ref();
        compressed.is_some_and(|(to, _)| to.includes(compression))
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.plain.bytes().len()
    }

    /// The number of messages from this number on, which a member has yet to receive.
    pub(crate) fn messages_from(&self, number: u64) -> usize {
        let pieces = &self.frames.plain.pieces;
        pieces.len() - position(pieces, number)
    }

    /// The messages from this number on in their form for a connection, each with its number.
    pub(crate) fn from(
        &self,
        number: u64,
        compression: ConnCompression,
    ) -> impl Iterator<Item = (u64, &[u8])> {
        let frames = self.frames.of(compression);
        let bytes = frames.bytes();
        let first = position(&frames.pieces, number);
        let mut at = start(&frames.pieces, first);
        frames.pieces[first..].iter().map(move |piece| {
            let frame = &bytes[at..piece.end];
            at = piece.end;
            (piece.number, frame)
        })
    }

    /// Seals the batch for sending.
    pub(crate) fn close(self) -> SealedBatch {
        let Forms {
            plain,
            #[cfg(feature = "deflate")]
            compressed,
        } = self.frames;
        SealedBatch {
            frames: Forms {
                plain: plain.seal(),
                #[cfg(feature = "deflate")]
                compressed: compressed.map(|(to, frames)| (to, frames.seal())),
            },
            keyed: self.keyed,
            #[cfg(feature = "deflate")]
            followers: self.early,
        }
    }
}

/// The memory of former batches, for the next one.
#[derive(Default)]
pub(crate) struct Spare {
    memory: BytesMut,
    /// The length of the last batch, which predicts that of the next.
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
        let frames = batch.frames.plain;
        if frames.pieces.len() < 2 {
            return;
        }
        self.len = frames.bytes.len();
        if let Ok(mut memory) = frames.bytes.try_into_mut() {
            memory.clear();
            self.memory = memory;
        }
    }
}

/// A batch to which no more frames are added.
pub(crate) struct SealedBatch {
    frames: Forms<SealedFrames>,
    keyed: Vec<KeyedFrame>,
    /// The counts of members that have received it so far.
    #[cfg(feature = "deflate")]
    pub(crate) followers: Followers,
}

impl SealedBatch {
    /// The frames for a connection.
    #[inline]
    pub(crate) fn frames(&self, compression: ConnCompression) -> &SealedFrames {
        self.frames.of(compression)
    }

    pub(crate) fn frames_mut(&mut self, compression: ConnCompression) -> &mut SealedFrames {
        self.frames.of_mut(compression)
    }

    #[cfg(feature = "deflate")]
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.frames.compressed.as_ref().map(|(to, _)| to.epoch)
    }

    /// Counts a member that receives its share from this number on, among these followers.
    #[cfg(feature = "deflate")]
    #[inline]
    pub(crate) fn note_share(
        &self,
        followers: &mut Followers,
        number: u64,
        member: ConnCompression,
    ) {
        self.frames.note(followers, number, member);
    }
}

/// The frames of a sealed batch.
pub(crate) struct SealedFrames {
    pub(crate) bytes: Bytes,
    /// The size of the allocation behind the bytes.
    allocated: usize,
    pieces: Vec<Piece>,
}

#[cfg(feature = "deflate")]
impl Frames for SealedFrames {
    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl SealedFrames {
    /// The offset of the messages from this number on, and how many they are.
    #[inline]
    pub(crate) fn share(&self, number: u64) -> (usize, u32) {
        let first = position(&self.pieces, number);
        (
            start(&self.pieces, first),
            (self.pieces.len() - first) as u32,
        )
    }

    /// The end of the message in which this many bytes from an offset on end, and the number of messages up to there.
    pub(crate) fn end_of_message(&self, from: usize, bytes: usize) -> (usize, u32) {
        let first = self.pieces.partition_point(|piece| piece.end <= from);
        let count = self.pieces[first..].partition_point(|piece| piece.end < from + bytes) + 1;
        (start(&self.pieces, first + count), count as u32)
    }

    /// The offset of the last `messages` messages.
    #[cfg(feature = "deflate")]
    pub(crate) fn last(&self, messages: u32) -> usize {
        start(&self.pieces, self.pieces.len() - messages as usize)
    }

    /// Copies the bytes if their allocation is much longer than they are, because an outbox may keep them for a long
    /// time.
    fn make_compact(&mut self) {
        if self.allocated / 2 > self.bytes.len() {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
            self.allocated = self.bytes.len();
        }
    }

    /// The bytes from this offset on, for outboxes to keep, and the size of the allocation behind them.
    pub(crate) fn piece(&mut self, from: usize) -> (Bytes, usize) {
        self.make_compact();
        (self.bytes.slice(from..), self.allocated)
    }

    /// A range of the bytes for one outbox to keep, and whether it is a copy that no other outbox shares.
    pub(crate) fn keep(&mut self, range: Range<usize>) -> (Bytes, bool) {
        self.make_compact();
        keep_piece(self.bytes.slice(range), self.allocated)
    }
}

/// Returns the bytes that one outbox keeps of a piece of an allocation of `of` bytes: the shared piece, or a copy if
/// the allocation is more than twice as long. Also returns whether it is a copy.
pub(crate) fn keep_piece(piece: Bytes, of: usize) -> (Bytes, bool) {
    match is_small_piece(piece.len(), of) {
        true => (Bytes::copy_from_slice(&piece), true),
        false => (piece, false),
    }
}

/// Whether a piece of an allocation is copied rather than kept, so that it does not keep the allocation in memory.
pub(crate) const fn is_small_piece(len: usize, of: usize) -> bool {
    len < of / 2
}

/// The index of the first piece from this number on.
fn position(pieces: &[Piece], number: u64) -> usize {
    match pieces.first() {
        // The most frequent case.
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
            None,
            None,
        );
        for &number in &numbers[1..] {
            let frame = Bytes::from(frame(number));
            batch.push(number, &frame, None, None, &mut spare);
        }
        batch
    }

    #[test]
    fn share_of_a_batch_begins_with_the_first_unsent_message() {
        let numbers = [3, 4, 7, 12];
        for from in 0..15 {
            let expected: Vec<u64> = numbers.into_iter().filter(|&n| n >= from).collect();
            let text: String = expected.iter().map(|n| format!("[{n}]")).collect();
            let batch = batch(&numbers);
            assert_eq!(batch.messages_from(from), expected.len());
            let frames: Vec<u64> = batch
                .from(from, ConnCompression::default())
                .map(|(number, _)| number)
                .collect();
            assert_eq!(frames, expected);
            let closed = batch.close();
            let closed = closed.frames(ConnCompression::default());
            let (at, messages) = closed.share(from);
            assert_eq!(closed.bytes[at..], *text.as_bytes());
            assert_eq!(messages as usize, expected.len());
        }
    }

    #[test]
    fn lone_frame_is_sent_without_a_copy() {
        let frame = Bytes::from(vec![1; 100]);
        let closed = Batch::new(Audience::Room(1), 0, frame.clone(), None, None).close();
        assert_eq!(closed.frames.plain.bytes.as_ptr(), frame.as_ptr());
    }
}
