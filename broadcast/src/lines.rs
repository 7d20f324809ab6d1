//! Splits a byte stream into lines.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

/// The buffer for partial lines is reused, unless it has grown beyond this.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// One line, without its line ending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    /// The line was longer than the limit and was not stored.
    TooLong {
        bytes: u64,
    },
}

/// Calls `each` with the number of each line, from 1, and the line, until it breaks or the input ends.
///
/// A line ends with `\n` or `\r\n`; an unterminated last line counts, and so does an empty line. A line of more than
/// `bytes_max` bytes is skipped without being stored. Lines within the reader's buffer are not copied. A read error
/// ends it at once: the unfinished line is dropped, and the error says how long it was.
pub(crate) fn for_each(
    input: impl BufRead,
    bytes_max: usize,
    mut each: impl FnMut(u64, Line<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    for_each_read(input, bytes_max, |mut lines| lines.for_each(&mut each))
}

/// Calls `each` with the lines that end within each read, until it breaks or the input ends: see [`for_each`].
pub(crate) fn for_each_read(
    mut input: impl BufRead,
    bytes_max: usize,
    mut each: impl FnMut(ReadLines<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut number = 0;
    let mut splitter = LineSplitter::new(bytes_max);
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if splitter.pending_bytes() > 0 => {
                let bytes = splitter.pending_bytes();
                let why = format!("{error}; {bytes} bytes of an unfinished line are dropped");
                return Err(io::Error::new(error.kind(), why));
            }
            Err(error) => return Err(error),
        };
        let lines = ReadLines {
            splitter: &mut splitter,
            number: &mut number,
            rest: chunk,
            is_end: chunk.is_empty(),
        };
        if each(lines).is_break() || chunk.is_empty() {
            return Ok(());
        }
        let used = chunk.len();
        input.consume(used);
    }
}

/// The lines that end within one read, or the unfinished line at the end of the input.
#[derive(Debug)]
pub(crate) struct ReadLines<'a> {
    splitter: &'a mut LineSplitter,
    /// The number of the last line.
    number: &'a mut u64,
    rest: &'a [u8],
    is_end: bool,
}

impl ReadLines<'_> {
    /// Calls `each` with the number of each line, and the line, until it breaks. The next call continues with the next line.
    pub(crate) fn for_each(
        &mut self,
        mut each: impl FnMut(u64, Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let each = |line: Line<'_>| {
            *self.number += 1;
            each(*self.number, line)
        };
        match self.is_end {
            true => self.splitter.finish(each),
            false => self.splitter.push_from(&mut self.rest, each),
        }
    }
}

/// Splits a stream, of which the bytes are given piece by piece, into lines like [`for_each`].
#[derive(Debug)]
pub(crate) struct LineSplitter {
    partial: PartialLine,
    bytes_max: usize,
}

impl LineSplitter {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            partial: PartialLine::default(),
            bytes_max,
        }
    }

    /// Calls `each` with every line that ends within the next bytes of the stream, until it breaks: then the rest of these
    /// bytes is dropped. The unfinished line behind the last line ending is kept.
    pub(crate) fn push(
        &mut self,
        mut chunk: &[u8],
        each: impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.push_from(&mut chunk, each)
    }

    /// Does what [`push`](Self::push) does, and removes from `rest` what it has used: the rest is left if `each` breaks.
    fn push_from(
        &mut self,
        rest: &mut &[u8],
        mut each: impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            let piece = &rest[..at];
            *rest = &rest[at + 1..];
            if self.partial.bytes == 0 {
                each(terminated_line(piece, self.bytes_max))?;
            } else {
                self.partial.extend(piece, self.bytes_max);
                let flow = each(self.partial.line(self.bytes_max, true));
                self.partial.clear();
                flow?;
            }
        }
        self.partial.extend(rest, self.bytes_max);
        *rest = &[];
        ControlFlow::Continue(())
    }

    /// Calls `each` with the unfinished line, if there is one. The next bytes begin a new line.
    pub(crate) fn finish(
        &mut self,
        mut each: impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.partial.bytes == 0 {
            return ControlFlow::Continue(());
        }
        let flow = each(self.partial.line(self.bytes_max, false));
        self.partial.clear();
        flow
    }

    /// The length of the unfinished line so far.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.partial.bytes
    }
}

/// A terminated line within one buffer.
fn terminated_line(piece: &[u8], bytes_max: usize) -> Line<'_> {
    let line = piece.strip_suffix(b"\r").unwrap_or(piece);
    if line.len() > bytes_max {
        let bytes = line.len() as u64;
        return Line::TooLong { bytes };
    }
    Line::Whole(line)
}

/// A line whose end has not been read yet.
#[derive(Debug, Default)]
struct PartialLine {
    /// The bytes so far, or nothing once the line is too long.
    kept: Vec<u8>,
    /// The length so far.
    bytes: u64,
    ends_with_cr: bool,
}

impl PartialLine {
    fn extend(&mut self, piece: &[u8], bytes_max: usize) {
        let Some(last) = piece.last() else {
            return;
        };
        self.ends_with_cr = *last == b'\r';
        self.bytes += piece.len() as u64;
        // One byte over the limit is kept: it may be the `\r` of the line ending.
        if self.bytes <= bytes_max as u64 + 1 {
            self.kept.extend_from_slice(piece);
        } else {
            self.kept = Vec::new();
        }
    }

    fn line(&self, bytes_max: usize, terminated: bool) -> Line<'_> {
        let ending = u64::from(terminated && self.ends_with_cr);
        let bytes = self.bytes - ending;
        if bytes > bytes_max as u64 {
            return Line::TooLong { bytes };
        }
        Line::Whole(&self.kept[..bytes as usize])
    }

    fn clear(&mut self) {
        self.bytes = 0;
        self.kept.clear();
        self.kept.shrink_to(KEPT_BYTES_MAX);
    }
}

#[cfg(test)]
mod tests;
