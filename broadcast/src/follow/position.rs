//! The position in a file that grows, and whether the file is still the same up to there.

use std::fs::File;
use std::io;
use std::time::SystemTime;

/// How many of the first bytes of a file are remembered.
const HEAD_BYTES: usize = 1024;

/// How many bytes before the position are remembered.
pub(super) const BEFORE_BYTES: usize = 256;

/// Reads a regular file as it grows, and detects that it was truncated, even if it has grown beyond the position since:
/// the first bytes of the file and those before the position are then different ones.
#[derive(Debug, Default)]
pub(super) struct Position {
    offset: u64,
    /// The first bytes of the file, of those that have been read.
    head: Vec<u8>,
    /// The bytes before the offset.
    before: Vec<u8>,
    /// The length and the time of the last change when the file was last compared.
    seen: Option<(u64, Option<SystemTime>)>,
    skips_nul: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// The next bytes. `progress` counts them before zeros were removed.
    Data {
        text: &'a [u8],
        progress: usize,
    },
    End,
    /// The bytes up to the position are not in the file any more.
    Truncated,
}

impl Position {
    /// The beginning of the file.
    pub(super) fn start() -> Self {
        Self::default()
    }

    /// A position inside the file.
    pub(super) fn at(offset: u64, file: &File) -> io::Result<Self> {
        let up_to = |bytes: usize| usize::try_from(offset).map_or(bytes, |all| all.min(bytes));
        let mut head = vec![0; up_to(HEAD_BYTES)];
        let read = read_at(file, &mut head, 0)?;
        head.truncate(read);
        let mut before = vec![0; up_to(BEFORE_BYTES)];
        let from = offset - before.len() as u64;
        let read = read_at(file, &mut before, from)?;
        before.truncate(read);
        Ok(Self {
            offset,
            head,
            before,
            ..Self::default()
        })
    }

    /// Goes back to the beginning of a truncated file. A program that does not write in append mode continues at its old
    /// offset, so that the file begins with zeros that nobody has written: they are skipped.
    pub(super) fn restart(&mut self) {
        *self = Self {
            skips_nul: true,
            ..Self::default()
        };
    }

    /// Reads the next bytes. Without `verify`, a file of the same length and time as before is not compared.
    ///
    /// The comparison follows the reading: if it succeeds, the file was not truncated before these bytes were read.
    /// The buffer must be longer than [`BEFORE_BYTES`].
    pub(super) fn read<'a>(
        &mut self,
        file: &File,
        buffer: &'a mut [u8],
        verify: bool,
    ) -> io::Result<Piece<'a>> {
        let metadata = file.metadata()?;
        let len = metadata.len();
        let Some(rest) = len.checked_sub(self.offset) else {
            return Ok(Piece::Truncated);
        };
        let now = (len, metadata.modified().ok());
        if rest == 0 && !verify && self.seen == Some(now) {
            return Ok(Piece::End);
        }
        let overlap = self.before.len();
        // Not beyond the length: files in /proc have more bytes than their length, and would seem truncated.
        let wanted = usize::try_from(rest).map_or(buffer.len(), |rest| {
            rest.saturating_add(overlap).min(buffer.len())
        });
        let read = read_at(file, &mut buffer[..wanted], self.offset - overlap as u64)?;
        if read < overlap || buffer[..overlap] != self.before || !self.has_same_head(file)? {
            return Ok(Piece::Truncated);
        }
        self.seen = Some(now);
        let bytes = &buffer[overlap..read];
        if bytes.is_empty() {
            return Ok(Piece::End);
        }
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
        self.before.clear();
        let before = read.saturating_sub(BEFORE_BYTES);
        self.before.extend_from_slice(&buffer[before..read]);
        self.offset += bytes.len() as u64;
        let mut text = bytes;
        if self.skips_nul {
            let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
            text = &bytes[zeros..];
            self.skips_nul = text.is_empty();
        }
        Ok(Piece::Data {
            text,
            progress: bytes.len(),
        })
    }

    fn has_same_head(&self, file: &File) -> io::Result<bool> {
        let mut head = [0; HEAD_BYTES];
        let head = &mut head[..self.head.len()];
        Ok(read_at(file, head, 0)? == self.head.len() && *head == self.head)
    }
}

/// Reads from an offset until the buffer is full or the file ends.
pub(super) fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let mut total = 0;
    while !buffer.is_empty() {
        match read_some_at(file, buffer, offset) {
            Ok(0) => break,
            Ok(n) => {
                total += n;
                offset += n as u64;
                buffer = &mut buffer[n..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

#[cfg(unix)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_some_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}

#[cfg(test)]
mod tests;
