use super::*;
use std::io::{BufReader, Read};

/// A reader that returns one of these pieces per read.
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

/// The lines as (number, content), or as (number, length) if too long.
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

/// Asserts the lines for every way to split the input into reads.
#[track_caller]
fn assert_lines<const N: usize>(input: &[u8], bytes_max: usize, lines: [Result<&[u8], u64>; N]) {
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
fn unterminated_last_line_is_a_line() {
    assert_lines(b"one\ntwo", 100, [Ok(b"one"), Ok(b"two")]);
}

#[test]
fn carriage_return_inside_a_line_is_kept() {
    assert_lines(
        b"a\rb\n\r\r\nc\r",
        100,
        [Ok(b"a\rb"), Ok(b"\r"), Ok(b"c\r")],
    );
}

#[test]
fn non_utf8_bytes_pass_unchanged() {
    assert_lines(
        b"\xff\x00\xfe\n\xc3\n",
        100,
        [Ok(b"\xff\x00\xfe"), Ok(b"\xc3")],
    );
}

#[test]
fn line_over_the_limit_is_skipped_alone() {
    assert_lines(b"12345\n123456\n12\n", 5, [Ok(b"12345"), Err(6), Ok(b"12")]);
}

#[test]
fn limit_excludes_the_line_ending() {
    assert_lines(
        b"12345\r\n12345\r\r\n123456\r\n",
        5,
        [Ok(b"12345"), Err(6), Err(6)],
    );
}

#[test]
fn unterminated_last_line_over_the_limit_is_skipped() {
    assert_lines(b"1\n123456", 5, [Ok(b"1"), Err(6)]);
    assert_lines(b"12345\r", 5, [Err(6)]);
}

#[test]
fn line_over_the_limit_is_not_stored() {
    let mut partial = PartialLine::default();
    for _ in 0..1000 {
        partial.extend(&[b'x'; 1000], 10_000);
        assert!(partial.kept.capacity() <= 20_000);
    }
    assert_eq!(
        partial.line(10_000, true),
        Line::TooLong { bytes: 1_000_000 }
    );
}

#[test]
fn long_line_leaves_no_large_buffer() {
    let mut partial = PartialLine::default();
    partial.extend(&vec![b'x'; 1 << 20], 1 << 20);
    partial.clear();
    assert!(partial.kept.capacity() <= KEPT_BYTES_MAX);
}

#[test]
fn splitter_after_finish_begins_a_new_line() {
    let mut splitter = LineSplitter::new(5);
    let mut lines = Vec::new();
    let mut each = |line: Line<'_>| {
        lines.push(format!("{line:?}"));
        ControlFlow::Continue(())
    };
    assert!(splitter.push(b"one\ntw", &mut each).is_continue());
    assert_eq!(splitter.pending_bytes(), 2);
    assert!(splitter.finish(&mut each).is_continue());
    assert!(splitter.finish(&mut each).is_continue());
    assert!(splitter.push(b"o\n123456", &mut each).is_continue());
    assert!(splitter.finish(&mut each).is_continue());
    let whole = |line: &[u8]| format!("{:?}", Line::Whole(line));
    let too_long = format!("{:?}", Line::TooLong { bytes: 6 });
    assert_eq!(lines, [whole(b"one"), whole(b"tw"), whole(b"o"), too_long]);
}

#[test]
fn break_stops_reading() {
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
fn read_goes_on_behind_the_line_that_it_broke_at() {
    // Breaks at each line, and ends each read with the call that finds no more.
    let input = b"1\n22\r\n\n4444\n5";
    let expected = numbered([Ok(b"1"), Ok(b"22"), Ok(b""), Err(4), Ok(b"5")]);
    for capacity in 1..=input.len() {
        let mut seen = Vec::new();
        let reader = BufReader::with_capacity(capacity, &input[..]);
        for_each_read(reader, 3, |mut lines| {
            while lines
                .for_each(|number, line| {
                    seen.push(match line {
                        Line::Whole(line) => (number, Ok(line.to_vec())),
                        Line::TooLong { bytes } => (number, Err(bytes)),
                    });
                    ControlFlow::Break(())
                })
                .is_break()
            {}
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, expected, "reads of {capacity}");
    }
}

#[test]
fn read_error_inside_a_line_reports_the_dropped_bytes() {
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
fn reading_error_is_returned_after_complete_lines() {
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
