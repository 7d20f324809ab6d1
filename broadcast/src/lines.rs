//! Lines of bytes. Knows nothing of messages, and does no I/O but through the reader that it is given.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

/// The buffer for lines that cross a read is kept for the next one, unless it has grown beyond this.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// One line, without its line ending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    /// It was longer than wanted, and has not been kept.
    TooLong {
        bytes: u64,
    },
}

/// Calls `each` with the number of each line, from 1, and the line, until it breaks or the input ends.
///
/// A line ends with `\n` or `\r\n`; a last one that does not is a line all the same, as is an empty one. A line of more
/// than `bytes_max` bytes is read to its end without being stored. Lines that lie in the reader's buffer are not copied.
/// A reading error ends it at once: what was read of an unfinished line is no line, and the error says how much that was.
pub(crate) fn for_each(
    mut input: impl BufRead,
    bytes_max: usize,
    mut each: impl FnMut(u64, Line<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut number = 1;
    let mut begun = Begun::default();
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if begun.bytes > 0 => {
                let bytes = begun.bytes;
                let why = format!("{error}; {bytes} bytes of an unfinished line are dropped");
                return Err(io::Error::new(error.kind(), why));
            }
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            if begun.bytes > 0 {
                // Whether it goes on or not makes no difference at the end.
                let _ = each(number, begun.line(bytes_max, false));
            }
            return Ok(());
        }
        let mut rest = chunk;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            let piece = &rest[..at];
            rest = &rest[at + 1..];
            let flow = if begun.bytes == 0 {
                each(number, whole(piece, bytes_max))
            } else {
                begun.extend(piece, bytes_max);
                let flow = each(number, begun.line(bytes_max, true));
                begun.clear();
                flow
            };
            number += 1;
            if flow.is_break() {
                return Ok(());
            }
        }
        begun.extend(rest, bytes_max);
        let used = chunk.len();
        input.consume(used);
    }
}

/// A terminated line that lies in one piece.
fn whole(piece: &[u8], bytes_max: usize) -> Line<'_> {
    let line = piece.strip_suffix(b"\r").unwrap_or(piece);
    if line.len() > bytes_max {
        let bytes = line.len() as u64;
        return Line::TooLong { bytes };
    }
    Line::Whole(line)
}

/// The beginning of a line whose end has not been read yet.
#[derive(Default)]
struct Begun {
    /// What is kept: all of it, or nothing once it is too long.
    kept: Vec<u8>,
    /// How long it is.
    bytes: u64,
    ends_with_cr: bool,
}

impl Begun {
    fn extend(&mut self, piece: &[u8], bytes_max: usize) {
        let Some(last) = piece.last() else {
            return;
        };
        self.ends_with_cr = *last == b'\r';
        self.bytes += piece.len() as u64;
        // One more may be kept: it may turn out to belong to the line ending.
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
mod tests {
    use super::*;
    use std::io::{BufReader, Read};

    /// A reader that yields these pieces, one for each read.
    struct Pieces<'a>(Vec<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    /// The lines as (number, content), or as (number, length) where they were too long.
    type Seen = Vec<(u64, Result<Vec<u8>, u64>)>;

    fn seen(input: impl BufRead, bytes_max: usize) -> Seen {
        let mut seen = Vec::new();
        for_each(input, bytes_max, |number, line| {
            seen.push(match line {
                Line::Whole(line) => (number, Ok(line.to_vec())),
                Line::TooLong { bytes } => (number, Err(bytes)),
            });
            ControlFlow::Continue(())
        })
        .unwrap();
        seen
    }

    fn numbered<const N: usize>(lines: [Result<&[u8], u64>; N]) -> Seen {
        (1..)
            .zip(lines)
            .map(|(number, line)| (number, line.map(<[u8]>::to_vec)))
            .collect()
    }

    /// Whatever the reads, the lines are the same.
    #[track_caller]
    fn assert_lines<const N: usize>(
        input: &[u8],
        bytes_max: usize,
        lines: [Result<&[u8], u64>; N],
    ) {
        let expected = numbered(lines);
        assert_eq!(seen(input, bytes_max), expected, "whole");
        for capacity in 1..=input.len() {
            let reader = BufReader::with_capacity(capacity, input);
            assert_eq!(seen(reader, bytes_max), expected, "reads of {capacity}");
        }
        for first in 1..input.len() {
            for second in first..input.len() {
                let pieces = [&input[..first], &input[first..second], &input[second..]];
                let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
                let reader = BufReader::new(Pieces(pieces.collect()));
                assert_eq!(
                    seen(reader, bytes_max),
                    expected,
                    "split at {first} and {second}"
                );
            }
        }
    }

    #[test]
    fn line_endings_are_stripped() {
        assert_lines(
            b"one\ntwo\r\nthree\n",
            100,
            [Ok(b"one"), Ok(b"two"), Ok(b"three")],
        );
    }

    #[test]
    fn empty_lines_are_lines() {
        assert_lines(b"\n\r\n\n", 100, [Ok(b""), Ok(b""), Ok(b"")]);
        assert_lines(b"", 100, []);
    }

    #[test]
    fn an_unterminated_last_line_is_a_line() {
        assert_lines(b"one\ntwo", 100, [Ok(b"one"), Ok(b"two")]);
    }

    #[test]
    fn a_carriage_return_that_ends_no_line_is_kept() {
        assert_lines(
            b"a\rb\n\r\r\nc\r",
            100,
            [Ok(b"a\rb"), Ok(b"\r"), Ok(b"c\r")],
        );
    }

    #[test]
    fn bytes_that_are_no_text_pass_unchanged() {
        assert_lines(
            b"\xff\x00\xfe\n\xc3\n",
            100,
            [Ok(b"\xff\x00\xfe"), Ok(b"\xc3")],
        );
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_the_next_one_is_whole() {
        assert_lines(b"12345\n123456\n12\n", 5, [Ok(b"12345"), Err(6), Ok(b"12")]);
    }

    #[test]
    fn the_limit_is_for_the_line_without_its_ending() {
        assert_lines(
            b"12345\r\n12345\r\r\n123456\r\n",
            5,
            [Ok(b"12345"), Err(6), Err(6)],
        );
    }

    #[test]
    fn an_unterminated_last_line_may_be_over_the_limit() {
        assert_lines(b"1\n123456", 5, [Ok(b"1"), Err(6)]);
        assert_lines(b"12345\r", 5, [Err(6)]);
    }

    #[test]
    fn what_is_too_long_is_not_stored() {
        let mut begun = Begun::default();
        for _ in 0..1000 {
            begun.extend(&[b'x'; 1000], 10_000);
            assert!(begun.kept.capacity() <= 20_000);
        }
        assert_eq!(begun.line(10_000, true), Line::TooLong { bytes: 1_000_000 });
    }

    #[test]
    fn a_long_line_leaves_no_large_buffer_behind() {
        let mut begun = Begun::default();
        begun.extend(&vec![b'x'; 1 << 20], 1 << 20);
        begun.clear();
        assert!(begun.kept.capacity() <= KEPT_BYTES_MAX);
    }

    #[test]
    fn breaking_ends_it() {
        let mut lines = 0;
        for_each(&b"1\n2\n3\n"[..], 10, |_, _| {
            lines += 1;
            if lines == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(lines, 2);
    }

    #[test]
    fn reading_error_inside_a_line_says_what_is_dropped() {
        struct Broken(bool);

        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                buffer[..7].copy_from_slice(b"one\ntwo");
                Ok(7)
            }
        }

        let mut lines = 0;
        let end = for_each(BufReader::new(Broken(false)), 100, |_, line| {
            assert_eq!(line, Line::Whole(b"one"));
            lines += 1;
            ControlFlow::Continue(())
        });
        let error = end.unwrap_err();
        assert_eq!((lines, error.kind()), (1, io::ErrorKind::ConnectionReset));
        assert!(
            error.to_string().contains("3 bytes of an unfinished line"),
            "{error}"
        );
    }

    #[test]
    fn a_reading_error_is_returned_after_the_lines_before_it() {
        struct Broken(bool);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                buffer[..6].copy_from_slice(b"one\ntw");
                Ok(6)
            }
        }
        let mut lines = Vec::new();
        let end = for_each(BufReader::new(Broken(false)), 10, |_, line| {
            if let Line::Whole(line) = line {
                lines.push(line.to_vec());
            }
            ControlFlow::Continue(())
        });
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(lines, [b"one"]);
    }
}
