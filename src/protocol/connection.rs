//! The receiving state machine of one connection, server role (RFC 6455 §5, §6.2).
//!
//! ```text
//!            header complete                payload complete
//!  Header ────────────────────▶ Payload ────────────────────▶ Header
//!    │ violation                   │ violation, or a close frame
//!    └───────────▶ Finished ◀──────┘
//! ```
//!
//! An idle connection holds no memory beyond the struct. A message that stands whole in the input is
//! handed out in place; only what the network or the client cut is copied.

use std::fmt;
use std::mem;
use std::ops::Deref;

use super::assembler::{Assembler, reserve};
use super::close::{self, CloseFrame};
use super::encode::{FIN, HEADER_BYTES_MAX, LEN_7_MAX, Opcode};
use super::error::Violation;
use super::header::{self, CLIENT_HEADER_BYTES_MAX, KEY_BYTES, MASK};
use super::mask;

/// The header of a masked frame with the shortest form of the length.
const SMALL_HEADER_BYTES: usize = 2 + KEY_BYTES;

/// What has been received and is not complete.
#[derive(Debug)]
pub(crate) struct Connection {
    message_bytes_max: usize,
    state: State,
    /// The data message of which a part has arrived.
    message: Option<Box<Assembler>>,
    /// The control frame of which a part of the payload has arrived. Apart from `message`, because
    /// control frames may stand between fragments (RFC 6455 §5.4).
    control: Option<Box<PartialControl>>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before or inside a frame header, of which `len` bytes have arrived.
    Header {
        bytes: [u8; CLIENT_HEADER_BYTES_MAX],
        len: u8,
    },
    /// Inside a payload.
    Payload(Frame),
    /// After a violation or a close frame: the rest is of no interest (RFC 6455 §7.1.7, §5.5.1).
    Finished,
}

impl State {
    const BETWEEN_FRAMES: Self = Self::Header {
        bytes: [0; CLIENT_HEADER_BYTES_MAX],
        len: 0,
    };
}

/// A frame whose header has been read and accepted.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Payload bytes that have not arrived; at most `message_bytes_max` or 125.
    remaining: usize,
    /// The masking key as it applies to the next payload byte.
    key: [u8; KEY_BYTES],
    opcode: Opcode,
    fin: bool,
}

#[derive(Debug, Default)]
struct PartialControl {
    payload: Vec<u8>,
}

/// Something complete that the client sent.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A data message (RFC 6455 §5.6). If `text`, the payload is valid UTF-8.
    Message {
        /// Text, not binary.
        text: bool,
        /// What it says.
        payload: Payload<'a>,
    },
    /// To be answered with a pong of the same payload (RFC 6455 §5.5.2).
    Ping(ControlPayload),
    /// The answer to a ping, or unsolicited (RFC 6455 §5.5.3).
    Pong(#[cfg_attr(not(any(test, fuzzing)), allow(dead_code))] ControlPayload),
    /// The client closes; nothing it sends after this counts (RFC 6455 §5.5.1).
    Close(CloseFrame),
}

/// The unmasked payload of a data message.
pub(crate) enum Payload<'a> {
    /// The whole message stood in the input: no copy was made.
    Whole(&'a [u8]),
    /// Assembled from parts. The first [`HEADER_BYTES_MAX`] bytes are headroom (content undefined),
    /// so that a frame header can be written in front without a copy.
    Assembled(Vec<u8>),
}

impl Payload<'_> {
    /// The payload, without headroom.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Assembled(buffer) => buffer.get(HEADER_BYTES_MAX..).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Payload<'_> {
    /// Length and kind: payloads are long, and private.
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

impl Connection {
    /// A connection of which nothing has arrived. Messages of more than `message_bytes_max` bytes
    /// are a violation.
    pub(crate) fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            state: State::BETWEEN_FRAMES,
            message: None,
            control: None,
        }
    }

    /// Takes bytes from the front of `input` until one event is complete, or all of them: then
    /// `Ok(None)`, and `input` is empty. Unmasks in place.
    ///
    /// After an error or [`Event::Close`] nothing more is to be fed; further calls take everything
    /// and return `Ok(None)`.
    pub(crate) fn receive<'a>(
        &mut self,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Event<'a>>, Violation> {
        if let Some((text, payload)) = self.whole_small(input) {
            let payload = Payload::Whole(payload);
            return Ok(Some(Event::Message { text, payload }));
        }
        let received = self.advance(input);
        if matches!(received, Err(_) | Ok(Some(Event::Close(_)))) {
            self.abandon();
        }
        received
    }

    /// Takes a message that is one short frame and stands whole at the front of the input, unless anything is wrong with it.
    /// Most messages are like this: `advance` would do the same in three times as many instructions.
    #[inline]
    fn whole_small<'a>(&mut self, input: &mut &'a mut [u8]) -> Option<(bool, &'a [u8])> {
        const TEXT: u8 = FIN | Opcode::Text as u8;
        const BINARY: u8 = FIN | Opcode::Binary as u8;
        if !matches!(self.state, State::Header { len: 0, .. }) || self.message.is_some() {
            return None;
        }
        let &[first @ (TEXT | BINARY), second, a, b, c, d, ..] = &**input else {
            return None;
        };
        // Masked, and no longer form of the length.
        let len = usize::from(second.checked_sub(MASK)?);
        if len > LEN_7_MAX || len > self.message_bytes_max {
            return None;
        }
        let end = SMALL_HEADER_BYTES + len;
        let payload = input.get_mut(SMALL_HEADER_BYTES..end)?;
        mask::unmask(payload, [a, b, c, d], 0);
        let text = first == TEXT;
        if text && std::str::from_utf8(payload).is_err() {
            // As it was, for who tells what is wrong with it.
            mask::unmask(payload, [a, b, c, d], 0);
            return None;
        }
        let (frame, rest) = mem::take(input).split_at_mut(end);
        *input = rest;
        Some((text, frame.get(SMALL_HEADER_BYTES..).unwrap_or_default()))
    }

    /// Changes the limit, for messages that have not begun.
    pub(crate) fn set_message_bytes_max(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
    }

    /// Bytes of payload and state held for a frame or message that is not complete.
    pub(crate) fn held_bytes(&self) -> usize {
        let header = match self.state {
            State::Header { len, .. } => usize::from(len),
            State::Payload(_) | State::Finished => 0,
        };
        let message = self
            .message
            .as_ref()
            .map_or(0, |message| message.held_bytes());
        let control = self.control.as_ref().map_or(0, |control| {
            size_of::<PartialControl>() + control.payload.capacity()
        });
        header + message + control
    }

    /// Gives up on whatever has begun, and on all that follows.
    pub(crate) fn abandon(&mut self) {
        self.state = State::Finished;
        self.message = None;
        self.control = None;
    }

    /// A frame or message has begun and is not complete.
    pub(crate) fn is_mid_message(&self) -> bool {
        let mid_frame = match self.state {
            State::Header { len, .. } => len > 0,
            State::Payload(_) => true,
            State::Finished => false,
        };
        mid_frame || self.message.is_some()
    }

    fn advance<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Event<'a>>, Violation> {
        // Each turn consumes a header or returns, so the input bounds the loop.
        loop {
            let mut frame = match self.state {
                State::Header { bytes, len } => {
                    match self.read_header(bytes, usize::from(len), input)? {
                        Some(frame) => frame,
                        None => return Ok(None),
                    }
                }
                State::Payload(frame) => frame,
                State::Finished => {
                    mem::take(input);
                    return Ok(None);
                }
            };

            let arrived = mem::take(input);
            let len = frame.remaining.min(arrived.len());
            let (part, rest) = arrived.split_at_mut(len);
            *input = rest;
            // RFC 6455 §5.3
            mask::unmask(part, frame.key, 0);
            frame.remaining -= len;
            if frame.remaining == 0 {
                self.state = State::BETWEEN_FRAMES;
            } else {
                frame.key = mask::rotate(frame.key, len);
                self.state = State::Payload(frame);
            }

            let event = if frame.opcode.is_control() {
                self.control_part(frame, part)?
            } else {
                self.data_part(frame, part)?
            };
            if event.is_some() || frame.remaining > 0 {
                return Ok(event);
            }
        }
    }

    /// Takes the rest of a header, `held` bytes of which have arrived before. `None`: it is not
    /// complete, and `input` is used up.
    #[inline]
    fn read_header(
        &mut self,
        mut bytes: [u8; CLIENT_HEADER_BYTES_MAX],
        held: usize,
        input: &mut &mut [u8],
    ) -> Result<Option<Frame>, Violation> {
        if held == 0
            && let Some((frame, header_len)) = self.judge_header(input)?
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
        match self.judge_header(so_far)? {
            Some((frame, header_len)) => {
                // The bytes held did not suffice, so the header ends inside the input.
                consume(input, header_len.saturating_sub(held));
                Ok(Some(frame))
            }
            None => {
                self.state = State::Header {
                    bytes,
                    len: (held + taken) as u8,
                };
                mem::take(input);
                Ok(None)
            }
        }
    }

    /// Judges the header at the front of `bytes` as far as it has arrived; frame and header length
    /// once it is complete.
    #[inline]
    fn judge_header(&self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, Violation> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let (fin, opcode) = header::first_byte(first)?;
        // RFC 6455 §5.4: fragments of one message follow each other, control frames aside.
        match opcode {
            Opcode::Continuation if self.message.is_none() => {
                return Err(Violation::UnexpectedContinuation);
            }
            Opcode::Text | Opcode::Binary if self.message.is_some() => {
                return Err(Violation::ExpectedContinuation);
            }
            _ => {}
        }
        let Some((length, key_at)) = header::length(opcode, bytes)? else {
            return Ok(None);
        };
        let remaining = if opcode.is_control() {
            length as usize // at most 125, as `length` has checked
        } else {
            self.admit(length)?
        };
        let key = bytes
            .get(key_at..)
            .and_then(|rest| rest.first_chunk::<KEY_BYTES>());
        Ok(key.map(|&key| {
            (
                Frame {
                    remaining,
                    key,
                    opcode,
                    fin,
                },
                key_at + KEY_BYTES,
            )
        }))
    }

    /// Checks an announced length against the limit, together with what the message already has
    /// (RFC 6455 §10.4: limits hold for the message, not only for the frame).
    #[inline]
    fn admit(&self, length: u64) -> Result<usize, Violation> {
        let held = self
            .message
            .as_ref()
            .map_or(0, |message| message.payload_len());
        usize::try_from(length)
            .ok()
            .filter(|&length| length <= self.message_bytes_max.saturating_sub(held))
            .ok_or(Violation::MessageTooBig)
    }

    /// Takes an unmasked part of a data frame's payload.
    #[inline]
    fn data_part<'a>(
        &mut self,
        frame: Frame,
        part: &'a [u8],
    ) -> Result<Option<Event<'a>>, Violation> {
        let complete = frame.remaining == 0;
        if self.message.is_none() {
            let text = frame.opcode == Opcode::Text;
            if complete && frame.fin {
                // RFC 6455 §8.1
                if text && std::str::from_utf8(part).is_err() {
                    return Err(Violation::InvalidUtf8);
                }
                return Ok(Some(Event::Message {
                    text,
                    payload: Payload::Whole(part),
                }));
            }
            if !complete && part.is_empty() {
                return Ok(None);
            }
        }
        self.assemble(frame, part)
    }

    /// Takes a part of a message that is not whole in the input.
    fn assemble<'a>(&mut self, frame: Frame, part: &[u8]) -> Result<Option<Event<'a>>, Violation> {
        let mut message = self
            .message
            .take()
            .unwrap_or_else(|| Box::new(Assembler::new(frame.opcode == Opcode::Text)));
        message.push(part, frame.remaining, frame.fin)?;
        if frame.fin && frame.remaining == 0 {
            let text = message.is_text();
            let payload = Payload::Assembled(message.finish()?);
            return Ok(Some(Event::Message { text, payload }));
        }
        self.message = Some(message);
        Ok(None)
    }

    /// Takes an unmasked part of a control frame's payload (RFC 6455 §5.5).
    fn control_part<'a>(
        &mut self,
        frame: Frame,
        part: &[u8],
    ) -> Result<Option<Event<'a>>, Violation> {
        if frame.remaining > 0 {
            if !part.is_empty() {
                let control = self.control.get_or_insert_default();
                reserve(&mut control.payload, part.len(), frame.remaining);
                control.payload.extend_from_slice(part);
            }
            return Ok(None);
        }
        let mut payload = self
            .control
            .take()
            .map_or_else(Vec::new, |control| control.payload);
        payload.extend_from_slice(part);
        Ok(Some(match frame.opcode {
            Opcode::Close => Event::Close(close::parse(&payload)?),
            Opcode::Ping => Event::Ping(ControlPayload(payload)),
            _ => Event::Pong(ControlPayload(payload)),
        }))
    }
}

/// Drops `len` bytes from the front of `input`.
fn consume(input: &mut &mut [u8], len: usize) {
    *input = mem::take(input).get_mut(len..).unwrap_or_default();
}

#[cfg(test)]
mod tests;
