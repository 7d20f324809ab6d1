//! Assembles a message from its parts: fragments (RFC 6455 §5.4), and frames that arrive in pieces.

use super::encode::{HEADER_BYTES_MAX, MessageKind};
use super::error::Violation;
use super::utf8::Utf8;

/// The maximum number of bytes that are reserved in advance for a message of which fewer bytes have arrived.
const AHEAD_BYTES: usize = 4096;
/// The minimum number of bytes that are reserved if more fragments follow, so that tiny fragments do not cause an
/// allocation each.
const FRAGMENT_AHEAD_BYTES: usize = 64;

/// The position of a frame in its message (RFC 6455 §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramePosition {
    /// The frame has the FIN bit, so the message ends with it.
    Last,
    /// More frames follow.
    NotLast,
}

impl FramePosition {
    pub(crate) const fn last_if(fin: bool) -> Self {
        if fin { Self::Last } else { Self::NotLast }
    }
}

/// A message of which a part has arrived.
#[derive(Debug)]
pub(crate) struct Assembler {
    kind: MessageKind,
    /// Whether the parts belong to a compressed payload (RFC 7692 §6). UTF-8 is then checked only after inflating.
    is_compressed: bool,
    utf8: Utf8,
    /// [`HEADER_BYTES_MAX`] bytes of headroom, then the payload so far.
    buffer: Vec<u8>,
}

impl Assembler {
    /// Creates an empty message. Memory is reserved only when a part arrives.
    pub(crate) fn new(kind: MessageKind) -> Self {
        Self {
            kind,
            is_compressed: false,
            utf8: Utf8::default(),
            buffer: Vec::new(),
        }
    }

    /// Creates an empty compressed message.
    pub(crate) fn compressed(kind: MessageKind) -> Self {
        Self {
            is_compressed: true,
            ..Self::new(kind)
        }
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.is_compressed
    }

    /// Returns whether this is a text message.
    pub(crate) fn is_text(&self) -> bool {
        self.kind == MessageKind::Text
    }

    /// Returns the number of payload bytes so far.
    pub(crate) fn payload_len(&self) -> usize {
        self.buffer.len().saturating_sub(HEADER_BYTES_MAX)
    }

    /// Returns the bytes of memory that the message takes besides this struct.
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Appends an unmasked part of a frame. `announced` is the number of bytes of the frame that follow this part.
    pub(crate) fn push(
        &mut self,
        part: &[u8],
        announced: usize,
        frame: FramePosition,
    ) -> Result<(), Violation> {
        // RFC 6455 §8.1: text must be UTF-8. Report a violation at once, not only when the message is complete.
        if self.is_text() && !self.is_compressed {
            self.utf8.push(part).map_err(|_| Violation::InvalidUtf8)?;
        }
        if self.buffer.is_empty() {
            let expected = if frame == FramePosition::Last {
                announced
            } else {
                announced.max(FRAGMENT_AHEAD_BYTES)
            };
            reserve(&mut self.buffer, HEADER_BYTES_MAX + part.len(), expected);
            self.buffer.extend_from_slice(&[0; HEADER_BYTES_MAX]);
        } else {
            // More fragments follow after this frame, so let the buffer double.
            let expected = if frame == FramePosition::Last {
                announced
            } else {
                announced.max(self.buffer.len())
            };
            reserve(&mut self.buffer, part.len(), expected);
        }
        self.buffer.extend_from_slice(part);
        Ok(())
    }

    /// Returns the whole message, after [`HEADER_BYTES_MAX`] bytes of headroom.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, Violation> {
        self.utf8.finish().map_err(|_| Violation::InvalidUtf8)?;
        if self.buffer.is_empty() {
            self.buffer = vec![0; HEADER_BYTES_MAX];
        }
        // A message may wait in a queue for a long time, and limits count its length, not its capacity. Shrinking in
        // place is cheap.
        self.buffer.shrink_to_fit();
        Ok(self.buffer)
    }
}

/// Reserves space for `part` bytes that have arrived, and for some of the `announced` bytes that have not. The latter
/// are at most as many as have arrived (or [`AHEAD_BYTES`]), so a peer can't cause a large reservation by announcing a
/// long frame.
pub(crate) fn reserve(buffer: &mut Vec<u8>, part: usize, announced: usize) {
    if buffer.capacity() - buffer.len() >= part {
        return;
    }
    let arrived = buffer.len().saturating_add(part);
    let ahead = announced.min(arrived.max(AHEAD_BYTES));
    buffer.reserve_exact(part.saturating_add(ahead));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `parts` as fragments, the last one with FIN.
    fn assemble(text: bool, parts: &[&[u8]]) -> Result<Vec<u8>, Violation> {
        let mut message = Assembler::new(MessageKind::text_if(text));
        for (i, part) in parts.iter().enumerate() {
            message.push(part, 0, FramePosition::last_if(i + 1 == parts.len()))?;
        }
        message.finish()
    }

    #[test]
    fn parts_are_joined_behind_the_headroom() {
        let cases: [&[&[u8]]; 5] = [
            &[],
            &[b""],
            &[b"", b""],
            &[b"a", b"", b"bc"],
            &[b"", b"abc", b"d"],
        ];
        for parts in cases {
            for text in [true, false] {
                let message = assemble(text, parts).unwrap();
                assert_eq!(message[HEADER_BYTES_MAX..], parts.concat());
            }
        }
    }

    #[test]
    fn payload_len_counts_the_payload_only() {
        let mut message = Assembler::new(MessageKind::Binary);
        assert_eq!(message.payload_len(), 0);
        message.push(b"", 0, FramePosition::NotLast).unwrap();
        assert_eq!(message.payload_len(), 0);
        message.push(b"abc", 0, FramePosition::NotLast).unwrap();
        assert_eq!(message.payload_len(), 3);
        assert!(!message.is_text());
        assert!(message.held_bytes() >= HEADER_BYTES_MAX + 3);
    }

    #[test]
    fn split_character_and_arbitrary_binary_are_accepted() {
        let text = "日本🦀".as_bytes();
        for cut in 0..=text.len() {
            let message = assemble(true, &[&text[..cut], &text[cut..]]).unwrap();
            assert_eq!(&message[HEADER_BYTES_MAX..], text);
        }
        assert!(assemble(false, &[b"\xFF\xC0"]).is_ok());
    }

    #[test]
    fn invalid_text_fails_at_the_first_invalid_part() {
        let mut message = Assembler::new(MessageKind::Text);
        message
            .push(b"ok \xED", 100, FramePosition::NotLast)
            .unwrap();
        assert_eq!(
            message.push(b"\xA0", 99, FramePosition::NotLast),
            Err(Violation::InvalidUtf8)
        );
        assert_eq!(
            assemble(true, &[b"cut \xE6\x97"]),
            Err(Violation::InvalidUtf8)
        );
    }

    #[test]
    fn announced_length_reserves_little() {
        let mut message = Assembler::new(MessageKind::Binary);
        message.push(b"x", usize::MAX, FramePosition::Last).unwrap();
        assert!(message.held_bytes() <= 2 * AHEAD_BYTES);
    }

    #[test]
    fn capacity_stays_below_twice_the_bytes_received() {
        const TOTAL: usize = 1 << 20;
        for part in [700, 4096, 16 * 1024, 100_000] {
            let bytes = vec![7; part];
            let mut message = Assembler::new(MessageKind::Binary);
            let mut left = TOTAL;
            while left > 0 {
                let len = part.min(left);
                left -= len;
                message
                    .push(&bytes[..len], left, FramePosition::Last)
                    .unwrap();
                let arrived = message.payload_len();
                assert!(message.held_bytes() <= 2 * (arrived + part) + 2 * AHEAD_BYTES);
            }
            let message = message.finish().unwrap();
            assert_eq!(message.len(), TOTAL + HEADER_BYTES_MAX);
            assert_eq!(message.capacity(), message.len());
        }
    }

    #[test]
    fn tiny_fragments_rarely_grow_the_buffer() {
        let mut message = Assembler::new(MessageKind::Binary);
        let (mut grown, mut capacity) = (0, 0);
        for _ in 0..100_000 {
            message.push(b"x", 0, FramePosition::NotLast).unwrap();
            if message.buffer.capacity() != capacity {
                capacity = message.buffer.capacity();
                grown += 1;
            }
        }
        assert!(grown < 40, "{grown}");
        message.push(b"x", 0, FramePosition::Last).unwrap();
        let message = message.finish().unwrap();
        assert_eq!(message.len(), 100_001 + HEADER_BYTES_MAX);
        assert_eq!(message.capacity(), message.len());
    }

    #[test]
    fn split_frame_is_reserved_once() {
        let mut message = Assembler::new(MessageKind::Binary);
        message.push(&[1; 3000], 2000, FramePosition::Last).unwrap();
        let capacity = message.buffer.capacity();
        assert_eq!(capacity, HEADER_BYTES_MAX + 5000);
        message.push(&[1; 2000], 0, FramePosition::Last).unwrap();
        assert_eq!(message.buffer.capacity(), capacity);
    }
}
