//! Finds the last lines of a file from its end.

use std::fs::File;
use std::io;

use super::position::read_at;

const BLOCK_BYTES: u64 = 64 << 10;

/// The offset where the last `lines` terminated lines of the first `len` bytes of the file begin. An unterminated line
/// behind them does not count as one of them.
///
/// At most `back_max` bytes are read, in blocks, from the end. If the lines are longer, it is the offset of as many
/// lines as there are within these bytes; or of the bytes, if no line begins there.
pub(super) fn find(file: &File, len: u64, lines: u64, back_max: u64) -> io::Result<u64> {
    let floor = len.saturating_sub(back_max);
    let mut block = vec![0; BLOCK_BYTES.min(len - floor) as usize];
    let mut begin = floor;
    let mut line_endings = 0;
    let mut end = len;
    while end > floor {
        let from = end.saturating_sub(BLOCK_BYTES).max(floor);
        let wanted = &mut block[..(end - from) as usize];
        // The file may just have been truncated, which reading on detects.
        let read = read_at(file, wanted, from)?;
        for (at, _) in (wanted[..read].iter().enumerate().rev()).filter(|(_, byte)| **byte == b'\n')
        {
            begin = from + at as u64 + 1;
            if line_endings == lines {
                return Ok(begin);
            }
            line_endings += 1;
        }
        end = from;
    }
    Ok(if floor == 0 { 0 } else { begin })
}

#[cfg(test)]
mod tests;
