//! The receiving state machine of one connection, in either role (RFC 6455 §5, §6.2).
//!
//! ```text
//!            header complete                payload complete
//!  Header ────────────────────▶ Payload ────────────────────▶ Header
//!    │ violation                   │ violation, or a close frame
//!    └───────────▶ Finished ◀──────┘
//! ```
//!
//! An idle connection holds no memory beyond the struct. A message that is complete in the input is returned without a
//! copy. Only messages that arrive in parts are copied.

use std::fmt;
use std::marker::PhantomData;
use std::mem;
use std::ops::Deref;

use super::assembler::{Assembler, FramePosition, reserve};
use super::close_frame::{self, CloseFrame};
use super::encode::{FIN, HEADER_BYTES_MAX, LEN_7_MAX, MASK, MessageKind, Opcode};
use super::error::Violation;
use super::header::{self, CLIENT_HEADER_BYTES_MAX, KEY_BYTES};
use super::mask;
use super::role::{Role, ServerRole};

/// The header of a masked frame with the shortest form of the length.
const SMALL_HEADER_BYTES: usize = 2 + KEY_BYTES;

/// The messages that a connection accepts from its peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiveRules {
    /// The maximum length of a message in bytes. A longer message is a violation.
    pub(crate) message_bytes_max: usize,
    /// Whether permessage-deflate was negotiated (RFC 7692).
    pub(crate) compressed: bool,
}

impl ReceiveRules {
    /// Rules for a connection without extensions.
    pub(crate) fn plain(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            compressed: false,
        }
    }

    /// The maximum length of a compressed payload in bytes. Deflate adds at most 5 bytes per block, and the blocks of
    /// real compressors contain at least some hundred bytes.
    fn compressed_bytes_max(self) -> usize {
        let message_bytes_max = self.message_bytes_max;
        message_bytes_max
            .saturating_add(message_bytes_max / 32)
            .saturating_add(64)
    }
}

/// Reads the frames of one connection: its rules, and the progress of the frame and message being received.
#[derive(Debug)]
pub(crate) struct FrameReader<R: Role = ServerRole> {
    rules: ReceiveRules,
    progress: Progress<R>,
}

/// The progress of the frame and message that a connection is receiving. It does not contain the rules, which a shard
/// stores once for all its connections.
#[derive(Debug)]
pub(crate) struct Progress<R: Role = ServerRole> {
    state: ReadState,
    /// The received parts of an incomplete message or control frame. `None` if there are none.
    parts: Option<Box<UnfinishedParts>>,
    role: PhantomData<R>,
}

#[derive(Debug, Clone, Copy)]
enum ReadState {
    /// Before or inside a frame header, of which `len` bytes have arrived.
    Header {
        bytes: [u8; CLIENT_HEADER_BYTES_MAX],
        len: u8,
    },
    /// Inside a payload.
    MessagePayload(FrameInProgress),
    /// After a violation or a close frame. All further input is discarded (RFC 6455 §7.1.7, §5.5.1).
    Finished,
}

impl ReadState {
    const BETWEEN_FRAMES: Self = Self::Header {
        bytes: [0; CLIENT_HEADER_BYTES_MAX],
        len: 0,
    };
}

/// A frame whose header has been read and accepted.
#[derive(Debug, Clone, Copy)]
struct FrameInProgress {
    /// See [`FrameInProgress::remaining`]. An array of bytes needs no alignment, so [`ReadState`] is no larger than a
    /// header.
    remaining: [u8; size_of::<usize>()],
    /// The masking key, rotated to the next payload byte. Unused if the peer does not mask.
    key: [u8; KEY_BYTES],
    opcode: Opcode,
    fin: bool,
    /// Whether this is the first frame of a compressed message (RFC 7692 §6).
    compressed: bool,
}

impl FrameInProgress {
    /// Returns the number of payload bytes that have not arrived. It is at most the message limit, or 125 for a control
    /// frame.
    fn remaining(self) -> usize {
        usize::from_ne_bytes(self.remaining)
    }

    fn set_remaining(&mut self, remaining: usize) {
        self.remaining = remaining.to_ne_bytes();
    }
}

/// Parts of payloads that have arrived.
#[derive(Debug, Default)]
struct UnfinishedParts {
    /// Parts of a data message.
    message: Option<Assembler>,
    /// Parts of a control frame. Separate from `message`, because control frames may arrive between fragments (RFC 6455
    /// §5.4).
    control: Vec<u8>,
}

/// A complete message or control frame from the peer.
#[derive(Debug)]
pub(crate) enum ProtocolEvent<'a> {
    /// A data message (RFC 6455 §5.6). If `text`, the payload is valid UTF-8.
    Message {
        /// Text, not binary.
        text: bool,
        /// The unmasked payload.
        payload: MessagePayload<'a>,
    },
    /// A data message whose payload the caller must inflate (RFC 7692 §7.2.2). Occurs only if compression was
    /// negotiated.
    Compressed {
        /// Text, not binary. The payload has not been checked for UTF-8.
        #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
        text: bool,
        /// The compressed payload, without the end of the sync flush.
        #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
        payload: MessagePayload<'a>,
    },
    /// A ping. It requires a pong with the same payload (RFC 6455 §5.5.2).
    Ping(ControlPayload),
    /// A pong: the reply to a ping, or unsolicited (RFC 6455 §5.5.3).
    Pong(#[cfg_attr(not(any(test, fuzzing, feature = "client")), allow(dead_code))] ControlPayload),
    /// A close frame. All later input is discarded (RFC 6455 §5.5.1).
    Close(CloseFrame),
}

/// The unmasked payload of a data message.
pub(crate) enum MessagePayload<'a> {
    /// The message was complete in the input, so it was not copied.
    Whole(&'a [u8]),
    /// Assembled from parts. The first [`HEADER_BYTES_MAX`] bytes are headroom (content undefined),
    /// so that a frame header can be written in front without a copy.
    Assembled(Vec<u8>),
}

impl MessagePayload<'_> {
    /// The payload, without headroom.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Assembled(buffer) => buffer.get(HEADER_BYTES_MAX..).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for MessagePayload<'_> {
    /// Shows only length and kind, because payloads are long and may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Whole(_) => "Whole",
            Self::Assembled(_) => "Assembled",
        };
        write!(f, "{kind}({} bytes)", self.bytes().len())
    }
}

/// The unmasked payload of a ping or pong: at most 125 bytes (RFC 6455 §5.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlPayload(Vec<u8>);

impl Deref for ControlPayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl FrameReader<ServerRole> {
    /// Creates the reader of a server's connection. Messages of more than `message_bytes_max` bytes are a violation.
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self::in_role(message_bytes_max)
    }

    /// Takes the state without the size limit, for a caller that stores the limit elsewhere.
    pub(crate) fn into_progress(self) -> Progress<ServerRole> {
        self.progress
    }
}

impl<R: Role> FrameReader<R> {
    /// Creates the reader of a connection in the role `R`. Messages of more than `message_bytes_max` bytes are a
    /// violation.
    pub(crate) fn in_role(message_bytes_max: usize) -> Self {
        Self {
            rules: ReceiveRules::plain(message_bytes_max),
            progress: Progress::default(),
        }
    }

    /// Accepts compressed messages from now on, because permessage-deflate was negotiated.
    #[cfg(feature = "deflate")]
    pub(crate) fn accept_compressed(&mut self) {
        self.rules.compressed = true;
    }

    /// See [`Progress::receive`].
    pub(crate) fn receive<'a>(
        &mut self,
        input: &mut &'a mut [u8],
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        self.progress.receive(input, self.rules)
    }

    /// Returns the bytes that an incomplete message or frame occupies.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.progress.held_bytes()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_mid_message(&self) -> bool {
        self.progress.is_mid_message()
    }
}

impl<R: Role> Default for Progress<R> {
    /// Creates the state of a connection on which nothing has arrived.
    fn default() -> Self {
        Self {
            state: ReadState::BETWEEN_FRAMES,
            parts: None,
            role: PhantomData,
        }
    }
}

impl<R: Role> Progress<R> {
    /// Consumes bytes from the front of `input` until one event is complete, and unmasks them in place. Returns
    /// `Ok(None)` once `input` is empty. Changed rules apply to messages that have not begun.
    ///
    /// After an error or [`ProtocolEvent::Close`], further calls discard all input and return `Ok(None)`.
    #[inline]
    pub(crate) fn receive<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        rules: ReceiveRules,
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        if let Some((text, payload)) = self.whole_small(input, rules.message_bytes_max) {
            let payload = MessagePayload::Whole(payload);
            return Ok(Some(ProtocolEvent::Message { text, payload }));
        }
        self.receive_any::<false>(input, rules)
    }

    /// As [`receive`](Self::receive), for a caller that counts frames: returns `Ok(None)` also after a fragment that does
    /// not complete its message.
    pub(crate) fn receive_frame<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        rules: ReceiveRules,
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        self.receive_any::<true>(input, rules)
    }

    fn receive_any<'a, const FRAME_BY_FRAME: bool>(
        &mut self,
        input: &mut &'a mut [u8],
        rules: ReceiveRules,
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        let received = self.advance::<FRAME_BY_FRAME>(input, rules);
        if matches!(received, Err(_) | Ok(Some(ProtocolEvent::Close(_)))) {
            self.abandon();
        }
        received
    }

    /// Takes a valid message that is one short frame and complete at the front of the input. This is a fast path for
    /// most messages: `advance` takes three times as many instructions for them.
    #[inline]
    fn whole_small<'a>(
        &mut self,
        input: &mut &'a mut [u8],
        message_bytes_max: usize,
    ) -> Option<(bool, &'a [u8])> {
        const TEXT: u8 = FIN | Opcode::Text as u8;
        const BINARY: u8 = FIN | Opcode::Binary as u8;
        // The fast path is for servers. It gains a client little, which has one connection and mostly long messages.
        if !R::PEER_MASKS
            || !matches!(self.state, ReadState::Header { len: 0, .. })
            || self.parts.is_some()
        {
            return None;
        }
        let &[first @ (TEXT | BINARY), second, a, b, c, d, ..] = &**input else {
            return None;
        };
        // The frame is masked, and its length is in the 7-bit form.
        let len = usize::from(second.checked_sub(MASK)?);
        if len > LEN_7_MAX || len > message_bytes_max {
            return None;
        }
        let end = SMALL_HEADER_BYTES + len;
        let payload = input.get_mut(SMALL_HEADER_BYTES..end)?;
        mask::unmask(payload, [a, b, c, d], 0);
        let text = first == TEXT;
        if text && std::str::from_utf8(payload).is_err() {
            // Restore the input for `advance`, which reports the violation.
            mask::unmask(payload, [a, b, c, d], 0);
            return None;
        }
        let (frame, rest) = mem::take(input).split_at_mut(end);
        *input = rest;
        Some((text, frame.get(SMALL_HEADER_BYTES..).unwrap_or_default()))
    }

    /// Returns the bytes of payload and state that an incomplete frame or message occupies.
    pub(crate) fn held_bytes(&self) -> usize {
        let header = match self.state {
            ReadState::Header { len, .. } => usize::from(len),
            ReadState::MessagePayload(_) | ReadState::Finished => 0,
        };
        let parts = self.parts.as_ref().map_or(0, |parts| {
            let message = parts.message.as_ref().map_or(0, Assembler::held_bytes);
            size_of::<UnfinishedParts>() + message + parts.control.capacity()
        });
        header + parts
    }

    /// Returns the number of payload bytes of the incomplete message that have arrived.
    pub(crate) fn message_len(&self) -> usize {
        self.message().map_or(0, Assembler::payload_len)
    }

    /// Drops the incomplete message, and discards all further input.
    pub(crate) fn abandon(&mut self) {
        self.state = ReadState::Finished;
        self.parts = None;
    }

    /// Returns whether a frame or message has begun and is incomplete.
    pub(crate) fn is_mid_message(&self) -> bool {
        let mid_frame = match self.state {
            ReadState::Header { len, .. } => len > 0,
            ReadState::MessagePayload(_) => true,
            ReadState::Finished => false,
        };
        mid_frame || self.message().is_some()
    }

    /// Returns whether the next byte begins a frame.
    pub(crate) fn is_between_frames(&self) -> bool {
        matches!(self.state, ReadState::Header { len: 0, .. })
    }

    /// Returns the opcode of the frame that the front of `input` belongs to, or `None` if the RFC reserves it, or if
    /// nothing more is received.
    pub(crate) fn next_opcode(&self, input: &[u8]) -> Option<Opcode> {
        let first = match self.state {
            ReadState::Header { len: 0, .. } => *input.first()?,
            ReadState::Header {
                bytes: [first, ..], ..
            } => first,
            ReadState::MessagePayload(frame) => return Some(frame.opcode),
            ReadState::Finished => return None,
        };
        Opcode::from_bits(first & header::OPCODE)
    }

    /// Returns how many bytes of the current frame have yet to arrive, as far as that is known.
    pub(crate) fn frame_remaining(&self) -> usize {
        match self.state {
            ReadState::MessagePayload(frame) => frame.remaining(),
            ReadState::Header { .. } | ReadState::Finished => 0,
        }
    }

    /// The data message of which a part has arrived.
    fn message(&self) -> Option<&Assembler> {
        self.parts.as_ref()?.message.as_ref()
    }

    fn advance<'a, const FRAME_BY_FRAME: bool>(
        &mut self,
        input: &mut &'a mut [u8],
        rules: ReceiveRules,
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        // Each turn consumes a header or returns, so the input bounds the loop.
        loop {
            let mut frame = match self.state {
                ReadState::Header { bytes, len } => {
                    let held = usize::from(len);
                    match self.read_header(bytes, held, input, rules)? {
                        Some(frame) => frame,
                        None => return Ok(None),
                    }
                }
                ReadState::MessagePayload(frame) => frame,
                ReadState::Finished => {
                    mem::take(input);
                    return Ok(None);
                }
            };

            let arrived = mem::take(input);
            let remaining = frame.remaining();
            let len = remaining.min(arrived.len());
            let (part, rest) = arrived.split_at_mut(len);
            *input = rest;
            if R::PEER_MASKS {
                // RFC 6455 §5.3
                mask::unmask(part, frame.key, 0);
            }
            let remaining = remaining - len;
            frame.set_remaining(remaining);
            if remaining == 0 {
                self.state = ReadState::BETWEEN_FRAMES;
            } else {
                if R::PEER_MASKS {
                    frame.key = mask::rotate(frame.key, len);
                }
                self.state = ReadState::MessagePayload(frame);
            }

            let event = if frame.opcode.is_control() {
                self.control_part(frame, part)?
            } else {
                self.data_part(frame, part)?
            };
            if event.is_some() || remaining > 0 || FRAME_BY_FRAME {
                return Ok(event);
            }
        }
    }

    /// Reads the rest of a header of which `held` bytes have arrived before. Returns `None`, with `input` consumed, if
    /// the header is still incomplete.
    #[inline]
    fn read_header(
        &mut self,
        mut bytes: [u8; CLIENT_HEADER_BYTES_MAX],
        held: usize,
        input: &mut &mut [u8],
        rules: ReceiveRules,
    ) -> Result<Option<FrameInProgress>, Violation> {
        if held == 0
            && let Some((frame, header_len)) = self.judge_header(input, rules)?
        {
            consume(input, header_len);
            return Ok(Some(frame));
        }
        let free = bytes.get_mut(held..).unwrap_or_default();
        let taken = free.len().min(input.len());
        for (to, from) in free.iter_mut().zip(input.iter()) {
            *to = *from;
        }
        let so_far = bytes.get(..held + taken).unwrap_or_default();
        match self.judge_header(so_far, rules)? {
            Some((frame, header_len)) => {
                // The earlier bytes were incomplete, so the header ends inside the input.
                consume(input, header_len.saturating_sub(held));
                Ok(Some(frame))
            }
            None => {
                self.state = ReadState::Header {
                    bytes,
                    len: (held + taken) as u8,
                };
                mem::take(input);
                Ok(None)
            }
        }
    }

    /// Checks the header at the front of `bytes` as far as it has arrived. Returns the frame and the length of the
    /// header once the header is complete.
    #[inline(always)] // Runs once per message.
    fn judge_header(
        &self,
        bytes: &[u8],
        rules: ReceiveRules,
    ) -> Result<Option<(FrameInProgress, usize)>, Violation> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let header::FirstByte {
            fin,
            opcode,
            compressed,
        } = header::first_byte(first, rules.compressed)?;
        // RFC 6455 §5.4: only control frames may arrive between the fragments of a message.
        match opcode {
            Opcode::Continuation if self.message().is_none() => {
                return Err(Violation::UnexpectedContinuation);
            }
            Opcode::Text | Opcode::Binary if self.message().is_some() => {
                return Err(Violation::ExpectedContinuation);
            }
            _ => {}
        }
        let Some((length, key_at)) = header::length::<R>(opcode, bytes)? else {
            return Ok(None);
        };
        let remaining = if opcode.is_control() {
            length as usize // at most 125, as `length` has checked
        } else {
            self.admit(length, compressed, rules)?
        };
        let (key, header_len) = if R::PEER_MASKS {
            let key = bytes
                .get(key_at..)
                .and_then(|rest| rest.first_chunk::<KEY_BYTES>());
            match key {
                Some(&key) => (key, key_at + KEY_BYTES),
                None => return Ok(None),
            }
        } else {
            ([0; KEY_BYTES], key_at)
        };
        let frame = FrameInProgress {
            remaining: remaining.to_ne_bytes(),
            key,
            opcode,
            fin,
            compressed,
        };
        Ok(Some((frame, header_len)))
    }

    /// Checks that the message stays within the limit with a frame of the announced length. Limits apply to the
    /// message, not only to the frame (RFC 6455 §10.4).
    #[inline]
    fn admit(
        &self,
        length: u64,
        begins_compressed: bool,
        rules: ReceiveRules,
    ) -> Result<usize, Violation> {
        let message = self.message();
        let held = message.map_or(0, Assembler::payload_len);
        let bytes_max = match begins_compressed || message.is_some_and(Assembler::is_compressed) {
            // The inflated length is checked while inflating.
            true => rules.compressed_bytes_max(),
            false => rules.message_bytes_max,
        };
        usize::try_from(length)
            .ok()
            .filter(|&length| length <= bytes_max.saturating_sub(held))
            .ok_or(Violation::MessageTooBig)
    }

    /// Takes an unmasked part of a data frame's payload.
    #[inline]
    fn data_part<'a>(
        &mut self,
        frame: FrameInProgress,
        part: &'a [u8],
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        let complete = frame.remaining() == 0;
        if self.message().is_none() {
            let text = frame.opcode == Opcode::Text;
            if complete && frame.fin {
                if frame.compressed {
                    let payload = MessagePayload::Whole(part);
                    return Ok(Some(ProtocolEvent::Compressed { text, payload }));
                }
                // RFC 6455 §8.1
                if text && std::str::from_utf8(part).is_err() {
                    return Err(Violation::InvalidUtf8);
                }
                return Ok(Some(ProtocolEvent::Message {
                    text,
                    payload: MessagePayload::Whole(part),
                }));
            }
            if !complete && part.is_empty() {
                return Ok(None);
            }
        }
        self.assemble(frame, part)
    }

    /// Appends a part of a message that is not complete in the input.
    fn assemble<'a>(
        &mut self,
        frame: FrameInProgress,
        part: &[u8],
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        let parts = self.parts.get_or_insert_default();
        let message = parts.message.get_or_insert_with(|| {
            let kind = MessageKind::text_if(frame.opcode == Opcode::Text);
            match frame.compressed {
                true => Assembler::compressed(kind),
                false => Assembler::new(kind),
            }
        });
        message.push(part, frame.remaining(), FramePosition::last_if(frame.fin))?;
        if !(frame.fin && frame.remaining() == 0) {
            return Ok(None);
        }
        let message = parts.message.take();
        // There is no part of a control frame, because frames are not interleaved.
        self.parts = None;
        message
            .map(|message| {
                let (text, compressed) = (message.is_text(), message.is_compressed());
                let payload = MessagePayload::Assembled(message.finish()?);
                Ok(match compressed {
                    true => ProtocolEvent::Compressed { text, payload },
                    false => ProtocolEvent::Message { text, payload },
                })
            })
            .transpose()
    }

    /// Takes an unmasked part of a control frame's payload (RFC 6455 §5.5).
    fn control_part<'a>(
        &mut self,
        frame: FrameInProgress,
        part: &[u8],
    ) -> Result<Option<ProtocolEvent<'a>>, Violation> {
        if frame.remaining() > 0 {
            if !part.is_empty() {
                let parts = self.parts.get_or_insert_default();
                reserve(&mut parts.control, part.len(), frame.remaining());
                parts.control.extend_from_slice(part);
            }
            return Ok(None);
        }
        let mut payload = match &mut self.parts {
            Some(parts) => mem::take(&mut parts.control),
            None => Vec::new(),
        };
        self.parts.take_if(|parts| parts.message.is_none());
        payload.extend_from_slice(part);
        Ok(Some(match frame.opcode {
            Opcode::Close => ProtocolEvent::Close(close_frame::parse(&payload)?),
            Opcode::Ping => ProtocolEvent::Ping(ControlPayload(payload)),
            _ => ProtocolEvent::Pong(ControlPayload(payload)),
        }))
    }
}

/// Drops `len` bytes from the front of `input`.
fn consume(input: &mut &mut [u8], len: usize) {
    *input = mem::take(input).get_mut(len..).unwrap_or_default();
}

#[cfg(test)]
mod tests;
