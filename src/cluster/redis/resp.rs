//! RESP3, the protocol of Redis: decoding of frames, and encoding of commands.
//!
//! The decoder takes bytes in any pieces. It scans each byte of a frame once, also if the frame arrives in many pieces,
//! and needs no recursion. Received bytes are untrusted: their lengths, counts and depth are bounded.

use std::fmt;

/// The most nested arrays and maps. The reply to `HELLO` has four.
const DEPTH_MAX: usize = 8;
/// The longest line, such as an error or a number.
const LINE_BYTES_MAX: usize = 16 << 10;
/// The longest bulk string that a server sends (the default of `proto-max-bulk-len`).
const BULK_BYTES_LEGAL_MAX: usize = 512 << 20;
/// Bulk strings up to this length are always decoded.
const BULK_BYTES_MAX_MIN: usize = 64 << 10;
/// What a frame may contain in addition to the longest reply: headers, and what is not a message.
const FRAME_OVERHEAD_BYTES: usize = 64 << 10;
/// The most bytes of a frame, so that positions fit into 32 bits.
const FRAME_BYTES_LEGAL_MAX: usize = 1 << 30;
/// One value of a frame is accounted for with so many bytes.
const VALUE_BYTES: usize = 16;
/// Buffers with a greater capacity are released when they are empty.
const KEPT_CAPACITY: usize = 256 << 10;

/// Where the bytes of a string are, from the start of their frame.
#[derive(Debug, Clone, Copy)]
struct RespSpan {
    at: u32,
    len: u32,
}

/// A value in the buffer. The values of an aggregate follow it; a map has two for each entry.
#[derive(Debug, Clone, Copy)]
enum RespToken {
    String(RespSpan),
    Error(RespSpan),
    Number(i64),
    TooLong,
    Null,
    Other,
    Array(u32),
    Map(u32),
    Push(u32),
    Attribute(u32),
}

/// A value, without the values in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RespValue<'a> {
    /// A simple, bulk or verbatim string.
    String(&'a [u8]),
    /// An error, which begins with a word in capitals.
    Error(&'a [u8]),
    Number(i64),
    /// A bulk string that is longer than the decoder's bound. Its bytes were dropped.
    TooLong,
    Null,
    /// A boolean, a double, or a big number.
    Other,
    /// An array or a set of so many values, which follow.
    Array(usize),
    /// A map of so many entries, each of which is a key and a value. They follow.
    Map(usize),
    /// A message that is not a reply, of so many values.
    Push(usize),
    /// Information about the frame that follows.
    Attribute,
}

/// What a server sends at a time: a reply or a push.
#[derive(Debug, Clone, Copy)]
pub(super) struct RespFrame<'a> {
    bytes: &'a [u8],
    tokens: &'a [RespToken],
}

impl<'a> RespFrame<'a> {
    /// Takes the next value. `None` at the end of the frame.
    pub(super) fn next(&mut self) -> Option<RespValue<'a>> {
        let (&token, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        // The decoder has made the spans from these bytes.
        let bytes = |RespSpan { at, len }| {
            let bytes = self.bytes.get(at as usize..)?;
            bytes.get(..len as usize)
        };
        Some(match token {
            RespToken::String(span) => RespValue::String(bytes(span)?),
            RespToken::Error(span) => RespValue::Error(bytes(span)?),
            RespToken::Number(number) => RespValue::Number(number),
            RespToken::TooLong => RespValue::TooLong,
            RespToken::Null => RespValue::Null,
            RespToken::Other => RespValue::Other,
            RespToken::Array(len) => RespValue::Array(len as usize),
            RespToken::Map(values) => RespValue::Map(values as usize / 2),
            RespToken::Push(len) => RespValue::Push(len as usize),
            RespToken::Attribute(_) => RespValue::Attribute,
        })
    }

    /// Takes the next value if it is a string.
    pub(super) fn next_string(&mut self) -> Option<&'a [u8]> {
        match self.next()? {
            RespValue::String(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Skips a value with all values in it.
    pub(super) fn skip(&mut self) {
        let mut left = 1;
        while left > 0 {
            let Some((&token, rest)) = self.tokens.split_first() else {
                return;
            };
            self.tokens = rest;
            left = left - 1 + token.values() as usize;
        }
    }
}

impl RespToken {
    /// The number of values in it.
    const fn values(self) -> u32 {
        match self {
            Self::Array(values) | Self::Map(values) | Self::Push(values) => values,
            Self::Attribute(values) => values,
            _ => 0,
        }
    }
}

/// Why bytes are not RESP3, or exceed a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RespError {
    Type(u8),
    Line,
    LineLength,
    Length,
    Depth,
    Nesting,
    FrameLength,
    Values,
}

impl fmt::Display for RespError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(byte) => write!(
                f,
                "a value begins with the byte {byte:#04x}, which no type of RESP3 has"
            ),
            Self::Line => f.write_str("a line is malformed"),
            Self::LineLength => write!(f, "a line is longer than {LINE_BYTES_MAX} bytes"),
            Self::Length => f.write_str("a length is malformed or too great"),
            Self::Depth => write!(f, "arrays are nested more than {DEPTH_MAX} times"),
            Self::Nesting => f.write_str("a push or an attribute is within another value"),
            Self::FrameLength => f.write_str("a reply is too long"),
            Self::Values => f.write_str("a reply has too many values"),
        }
    }
}

/// Splits received bytes into frames.
#[derive(Debug)]
pub(super) struct RespDecoder {
    bulk_bytes_max: usize,
    frame_bytes_max: usize,
    buffer: Vec<u8>,
    /// Where the current frame begins in the buffer.
    start: usize,
    /// What was scanned of the current frame.
    scanned: usize,
    /// The values of the current frame.
    tokens: Vec<RespToken>,
    /// How many values the open aggregates of the current frame lack.
    open: [u32; DEPTH_MAX],
    depth: usize,
    /// Whether the next frame begins with a new list of values.
    is_complete: bool,
    /// How many bytes of a too long string have not arrived yet. They are dropped.
    dropping: u64,
}

impl RespDecoder {
    /// Creates a decoder that drops bulk strings of more than `bulk_bytes_max` bytes (but at least 64 KiB), and fails if
    /// the strings of a frame have more than `frame_bytes_max` bytes in all.
    pub(super) fn new(bulk_bytes_max: usize, frame_bytes_max: usize) -> Self {
        let bulk_bytes_max = bulk_bytes_max.clamp(BULK_BYTES_MAX_MIN, BULK_BYTES_LEGAL_MAX);
        let frame_bytes_max = frame_bytes_max
            .max(bulk_bytes_max)
            .saturating_add(FRAME_OVERHEAD_BYTES)
            .min(FRAME_BYTES_LEGAL_MAX);
        Self {
            bulk_bytes_max,
            frame_bytes_max,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            tokens: Vec::new(),
            open: [0; DEPTH_MAX],
            depth: 0,
            is_complete: false,
            dropping: 0,
        }
    }

    /// Forgets what was received.
    pub(super) fn reset(&mut self) {
        *self = Self::new(
            self.bulk_bytes_max,
            self.frame_bytes_max - FRAME_OVERHEAD_BYTES,
        );
    }

    /// Takes received bytes. Take the frames that they complete with [`next`](Self::next), until there is none.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let dropped = bytes
            .len()
            .min(usize::try_from(self.dropping).unwrap_or(usize::MAX));
        self.dropping -= dropped as u64;
        self.buffer.extend_from_slice(&bytes[dropped..]);
    }

    /// Returns the next complete frame. After an error, the connection must be closed.
    pub(super) fn next(&mut self) -> Result<Option<RespFrame<'_>>, RespError> {
        if std::mem::take(&mut self.is_complete) {
            self.start += std::mem::take(&mut self.scanned);
            self.tokens.clear();
        }
        while !self.is_complete {
            if self.dropping > 0 || !self.scan()? {
                self.release();
                return Ok(None);
            }
        }
        let bytes = &self.buffer[self.start..self.start + self.scanned];
        let tokens = &self.tokens;
        Ok(Some(RespFrame { bytes, tokens }))
    }

    /// Removes what is used up from the buffers, and releases their memory if it was large.
    fn release(&mut self) {
        self.buffer.drain(..std::mem::take(&mut self.start));
        if self.buffer.capacity() > KEPT_CAPACITY && self.buffer.len() < KEPT_CAPACITY / 4 {
            self.buffer.shrink_to(KEPT_CAPACITY / 4);
        }
        if self.tokens.is_empty() && self.tokens.capacity() > KEPT_CAPACITY / size_of::<RespToken>()
        {
            self.tokens = Vec::new();
        }
    }

    /// The memory of the buffers.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity() + self.tokens.capacity() * size_of::<RespToken>()
    }

    /// Scans one value. Returns whether it was complete.
    fn scan(&mut self) -> Result<bool, RespError> {
        let frame = &self.buffer[self.start..];
        let at = self.scanned;
        let Some(&kind) = frame.get(at) else {
            return Ok(false);
        };
        let line = &frame[at + 1..];
        let token = match kind {
            b'$' | b'=' | b'!' => return self.scan_bulk(kind),
            b'*' | b'~' | b'%' | b'>' | b'|' => return self.scan_aggregate(kind),
            b':' => {
                let Some((number, len)) = read_number(line)? else {
                    return Ok(false);
                };
                self.scanned += 1 + len;
                RespToken::Number(number)
            }
            b'+' | b'-' | b'_' | b'#' | b',' | b'(' => {
                let Some(len) = line_len(line)? else {
                    return Ok(false);
                };
                self.scanned += 1 + len + 2;
                let span = span(at + 1, len);
                match kind {
                    b'+' => RespToken::String(span),
                    b'-' => RespToken::Error(span),
                    b'_' => RespToken::Null,
                    _ => RespToken::Other,
                }
            }
            _ => return Err(RespError::Type(kind)),
        };
        self.value(token)?;
        Ok(true)
    }

    fn scan_bulk(&mut self, kind: u8) -> Result<bool, RespError> {
        let frame = &self.buffer[self.start..];
        let line = &frame[self.scanned + 1..];
        let Some((len, header_len)) = read_number(line)? else {
            return Ok(false);
        };
        let body_at = self.scanned + 1 + header_len;
        if len == -1 {
            self.scanned = body_at;
            self.value(RespToken::Null)?;
            return Ok(true);
        }
        let legal_len = usize::try_from(len).ok();
        let legal_len = legal_len.filter(|&len| len <= BULK_BYTES_LEGAL_MAX);
        let len = legal_len.ok_or(RespError::Length)?;
        if len > self.bulk_bytes_max {
            let body_at_in_buffer = self.start + body_at;
            let dropped = (self.buffer.len() - body_at_in_buffer).min(len + 2);
            self.buffer
                .drain(body_at_in_buffer..body_at_in_buffer + dropped);
            self.dropping = (len + 2 - dropped) as u64;
            self.scanned = body_at;
            self.value(RespToken::TooLong)?;
            return Ok(true);
        }
        // Judge the length before its bytes are buffered.
        if body_at + len + 2 > self.frame_bytes_max {
            return Err(RespError::FrameLength);
        }
        let Some(end) = frame.get(body_at + len..body_at + len + 2) else {
            return Ok(false);
        };
        if end != b"\r\n" {
            return Err(RespError::Line);
        }
        let token = match kind {
            b'$' => RespToken::String(span(body_at, len)),
            b'!' => RespToken::Error(span(body_at, len)),
            // The body begins with a format of three letters and a colon.
            _ if len < 4 || frame[body_at + 3] != b':' => return Err(RespError::Line),
            _ => RespToken::String(span(body_at + 4, len - 4)),
        };
        self.scanned = body_at + len + 2;
        self.value(token)?;
        Ok(true)
    }

    fn scan_aggregate(&mut self, kind: u8) -> Result<bool, RespError> {
        let line = &self.buffer[self.start + self.scanned + 1..];
        let Some((len, header_len)) = read_number(line)? else {
            return Ok(false);
        };
        self.scanned += 1 + header_len;
        if len == -1 && kind == b'*' {
            self.value(RespToken::Null)?;
            return Ok(true);
        }
        let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
        let values = u32::try_from(len).map_err(|_| RespError::Length)?;
        let values = values.checked_mul(each).ok_or(RespError::Values)?;
        if matches!(kind, b'>' | b'|') && self.depth > 0 {
            return Err(RespError::Nesting);
        }
        let token = match kind {
            b'%' => RespToken::Map(values),
            b'>' => RespToken::Push(values),
            b'|' => RespToken::Attribute(values),
            _ => RespToken::Array(values),
        };
        self.value(token)?;
        Ok(true)
    }

    /// Adds a value to the frame, and finds out whether the frame is complete.
    fn value(&mut self, token: RespToken) -> Result<(), RespError> {
        if self.scanned > self.frame_bytes_max {
            return Err(RespError::FrameLength);
        }
        self.tokens.push(token);
        let values = token.values();
        let promised = self.tokens.len() + values as usize;
        if promised > self.frame_bytes_max / VALUE_BYTES {
            return Err(RespError::Values);
        }
        if values > 0 {
            *self.open.get_mut(self.depth).ok_or(RespError::Depth)? = values;
            self.depth += 1;
            return Ok(());
        }
        while let Some(innermost) = self.depth.checked_sub(1) {
            self.open[innermost] -= 1;
            if self.open[innermost] > 0 {
                return Ok(());
            }
            self.depth = innermost;
        }
        self.is_complete = true;
        Ok(())
    }
}

/// Positions in a frame fit, since its length is bounded.
fn span(at: usize, len: usize) -> RespSpan {
    RespSpan {
        at: at as u32,
        len: len as u32,
    }
}

/// Reads a number and its line end. Returns the number and the length of both; `None` if the line is not complete.
fn read_number(line: &[u8]) -> Result<Option<(i64, usize)>, RespError> {
    let is_negative = line.first() == Some(&b'-');
    let mut number = 0i64;
    let mut len = usize::from(is_negative);
    let first_digit = len;
    loop {
        match line.get(len) {
            None => return Ok(None),
            Some(digit @ b'0'..=b'9') => {
                let digit = i64::from(digit - b'0');
                number = number
                    .checked_mul(10)
                    .and_then(|number| number.checked_add(digit))
                    .ok_or(RespError::Length)?;
                len += 1;
            }
            Some(b'\r') if len > first_digit => break,
            Some(_) => return Err(RespError::Line),
        }
        // Leading zeros would make it endless.
        if len > 20 {
            return Err(RespError::Length);
        }
    }
    match line.get(len + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((if is_negative { -number } else { number }, len + 2))),
        Some(_) => Err(RespError::Line),
    }
}

/// Returns the length of a line without its end; `None` if it is not complete.
fn line_len(line: &[u8]) -> Result<Option<usize>, RespError> {
    let within = &line[..line.len().min(LINE_BYTES_MAX + 2)];
    match within.iter().position(|&byte| byte == b'\n') {
        Some(end) => match end.checked_sub(1) {
            Some(len) if within[len] == b'\r' => Ok(Some(len)),
            _ => Err(RespError::Line),
        },
        None if within.len() == LINE_BYTES_MAX + 2 => Err(RespError::LineLength),
        None => Ok(None),
    }
}

/// A number as decimal digits, without allocation.
pub(super) struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    pub(super) fn new(mut number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] += (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { digits, start };
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }

    /// Returns 20 digits, so that the order of numbers is the order of their texts.
    pub(super) const fn padded(&self) -> &[u8; 20] {
        &self.digits
    }
}

/// Appends the header of a command with so many arguments, its name included.
pub(super) fn put_command(out: &mut Vec<u8>, arguments: usize) {
    put_header(out, b'*', arguments);
}

/// Appends an argument that consists of these parts.
pub(super) fn put_argument(out: &mut Vec<u8>, parts: &[&[u8]]) {
    put_header(out, b'$', parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

fn put_header(out: &mut Vec<u8>, kind: u8, len: usize) {
    // Most arguments are short.
    match len {
        0..10 => out.extend_from_slice(&[kind, b'0' + len as u8, b'\r', b'\n']),
        10..100 => {
            let [tens, ones] = [len / 10, len % 10].map(|digit| b'0' + digit as u8);
            out.extend_from_slice(&[kind, tens, ones, b'\r', b'\n']);
        }
        _ => {
            out.push(kind);
            out.extend_from_slice(Decimal::new(len as u64).bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}
