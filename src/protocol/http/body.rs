//! An incremental, bounded decoder of bodies (RFC 9112 §6, §7.1).

use super::super::assembler::reserve;
use super::{BodyFraming, HttpError};

/// The maximum length of a line with a chunk size: 16 digits and a short extension.
const SIZE_LINE_BYTES_MAX: usize = 256;
/// The length of a size line without padding or extension: 16 digits. Bytes beyond it are counted over the whole body.
const SIZE_BYTES: usize = 16;
/// The maximum number of bytes beyond [`SIZE_BYTES`] in one body. They carry nothing that is used, so more of them are
/// treated as an attack.
const EXTENSION_BYTES_MAX: usize = 4096;
/// The maximum number of bytes in the trailer section.
const TRAILER_BYTES_MAX: usize = 4096;

/// A body that is arriving, with a maximum length.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Vec<u8>,
    bytes_max: usize,
    state: BodyState,
    /// The bytes still to come of the body with a known length, or of the current chunk.
    remaining: usize,
    /// The bytes received of the current size line.
    line_bytes: usize,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    /// A body of known length.
    Length,
    /// Before the first digit of a chunk size.
    Size,
    /// After at least one digit of a chunk size.
    SizeDigits,
    /// Whitespace after the size: an extension or the end of the line follows.
    SizePadding,
    Extension,
    /// After the CR of a size line.
    SizeLf,
    Data,
    /// After the data of a chunk.
    DataCr,
    DataLf,
    /// At the beginning of a trailer line. An empty line ends the body.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Complete,
}

impl Body {
    /// Creates a body of which nothing has arrived. Fails if its length is over `body_bytes_max`.
    pub(crate) fn new(framing: BodyFraming, body_bytes_max: usize) -> Result<Self, HttpError> {
        let (state, remaining) = match framing {
            BodyFraming::None | BodyFraming::Length(0) => (BodyState::Complete, 0),
            BodyFraming::Length(length) => {
                let length = usize::try_from(length).map_err(|_| HttpError::BodyTooLarge)?;
                if length > body_bytes_max {
                    return Err(HttpError::BodyTooLarge);
                }
                (BodyState::Length, length)
            }
            BodyFraming::Chunked => (BodyState::Size, 0),
        };
        Ok(Self {
            bytes: Vec::new(),
            bytes_max: body_bytes_max,
            state,
            remaining,
            line_bytes: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
        })
    }

    /// Decodes the start of `input`. Returns how many bytes of it belong to the body, and whether the body is complete.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<(usize, bool), HttpError> {
        let mut rest = input;
        while !self.is_complete() {
            if matches!(self.state, BodyState::Length | BodyState::Data) {
                let (part, after) = rest.split_at(self.remaining.min(rest.len()));
                self.take_data(part);
                rest = after;
                if self.remaining > 0 {
                    break;
                }
            } else {
                let Some((&byte, after)) = rest.split_first() else {
                    break;
                };
                self.take_framing(byte)?;
                rest = after;
            }
        }
        Ok((input.len() - rest.len(), self.is_complete()))
    }

    /// Whether the whole body has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == BodyState::Complete
    }

    /// Returns the decoded body so far.
    #[cfg(any(test, fuzzing, feature = "client"))]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Converts this into the decoded body so far.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        // The body may wait a long time for its handler.
        self.bytes.shrink_to_fit();
        self.bytes
    }

    /// Returns the bytes of memory that the body holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Returns the bytes that the length or chunk size announces and that have not arrived.
    pub(crate) fn announced_bytes(&self) -> usize {
        self.remaining
    }

    fn take_data(&mut self, part: &[u8]) {
        self.remaining -= part.len();
        // The buffer doubles because more chunks may follow. `new` and `size_digit` keep the sum within the limit.
        let expected = match self.state {
            BodyState::Length => self.remaining,
            _ => self.remaining.max(self.bytes.len()),
        };
        reserve(&mut self.bytes, part.len(), expected);
        self.bytes.extend_from_slice(part);
        if self.remaining == 0 {
            self.state = match self.state {
                BodyState::Length => BodyState::Complete,
                _ => BodyState::DataCr,
            };
        }
    }

    /// Takes one byte of the chunked framing (RFC 9112 §7.1). Only CR LF ends a line: parsers that disagree about line ends
    /// enable request smuggling.
    fn take_framing(&mut self, byte: u8) -> Result<(), HttpError> {
        self.state = match (self.state, byte) {
            (BodyState::Size | BodyState::SizeDigits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.size_digit(byte)?;
                BodyState::SizeDigits
            }
            (BodyState::SizeDigits | BodyState::SizePadding | BodyState::Extension, b'\r') => {
                BodyState::SizeLf
            }
            (BodyState::SizeDigits | BodyState::SizePadding, b' ' | b'\t') => {
                BodyState::SizePadding
            }
            (BodyState::SizeDigits | BodyState::SizePadding, b';') => BodyState::Extension,
            (BodyState::Size | BodyState::SizeDigits | BodyState::SizePadding, _) => {
                return Err(HttpError::BadRequest(
                    "a chunk size is not a hexadecimal number",
                ));
            }
            (BodyState::Extension, byte) if is_text(byte) => BodyState::Extension,
            (BodyState::SizeLf, b'\n') => self.end_of_size_line(),
            (BodyState::DataCr, b'\r') => BodyState::DataLf,
            (BodyState::DataLf, b'\n') => BodyState::Size,
            (BodyState::DataCr | BodyState::DataLf, _) => {
                return Err(HttpError::BadRequest("a chunk is longer than its size"));
            }
            (BodyState::TrailerStart, b'\r') => BodyState::EndLf,
            (BodyState::Trailer, b'\r') => BodyState::TrailerLf,
            (BodyState::TrailerStart | BodyState::Trailer, byte) if is_text(byte) => {
                self.trailer_bytes += 1;
                BodyState::Trailer
            }
            (BodyState::TrailerLf, b'\n') => BodyState::TrailerStart,
            (BodyState::EndLf, b'\n') => BodyState::Complete,
            _ => {
                return Err(HttpError::BadRequest(
                    "a line of the chunked body is malformed",
                ));
            }
        };
        self.check_bounds()
    }

    /// Appends a digit to the chunk size, and fails instead of overflowing (RFC 9112 §7.1).
    fn size_digit(&mut self, byte: u8) -> Result<(), HttpError> {
        let digit = char::from(byte).to_digit(16).unwrap_or_default() as usize;
        let room = self.bytes_max - self.bytes.len();
        self.remaining = self
            .remaining
            .checked_mul(16)
            .and_then(|size| size.checked_add(digit))
            .filter(|&size| size <= room)
            .ok_or(HttpError::BodyTooLarge)?;
        Ok(())
    }

    fn end_of_size_line(&mut self) -> BodyState {
        self.line_bytes = 0;
        // RFC 9112 §7.1: the chunk of size zero is the last one.
        if self.remaining == 0 {
            BodyState::TrailerStart
        } else {
            BodyState::Data
        }
    }

    fn check_bounds(&mut self) -> Result<(), HttpError> {
        if matches!(
            self.state,
            BodyState::SizeDigits | BodyState::SizePadding | BodyState::Extension
        ) {
            self.line_bytes += 1;
            self.extension_bytes += usize::from(self.line_bytes > SIZE_BYTES);
        }
        if self.line_bytes > SIZE_LINE_BYTES_MAX || self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(HttpError::BadRequest("the chunk extensions are too long"));
        }
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(HttpError::HeadTooLarge);
        }
        Ok(())
    }
}

/// Whether an extension or a trailer line may contain the byte: any but control characters other than the tab
/// (RFC 9110 §5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests;
