//! Counts the events of an event stream (WHATWG HTML §9.2).

use super::stream::{Part, Totals};

/// Splits a stream into events, at any boundaries of reads. Empty lines without data before them are no events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Length of the current line so far.
    line: usize,
    /// Whether the current line begins with `d`, as those with data do.
    is_data: bool,
    has_data: bool,
    /// Bytes of the current event so far.
    bytes: u64,
}

impl Events {
    /// Removes the next part of an event from `bytes`, and adds a complete event to `totals`.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8], totals: &mut Totals) -> Part<'a> {
        let all = *bytes;
        let mut end = 0;
        while let Some(length) = all[end..].iter().position(|&byte| byte == b'\n') {
            self.take(&all[end..end + length]);
            end += length + 1;
            if self.ends_line() {
                totals.frames += 1;
                totals.bytes += self.bytes + end as u64;
                self.bytes = 0;
                *bytes = &all[end..];
                return Part::Payload(&all[..end], true);
            }
        }
        self.take(&all[end..]);
        self.bytes += all.len() as u64;
        *bytes = &[];
        match all {
            [] => Part::Incomplete,
            _ => Part::Payload(all, false),
        }
    }

    /// Takes a part of a line.
    fn take(&mut self, part: &[u8]) {
        if self.line == 0 {
            self.is_data = part.first() == Some(&b'd');
        }
        self.line += part.len();
    }

    /// Ends the current line. Returns whether it ends an event.
    fn ends_line(&mut self) -> bool {
        let is_empty = self.line == 0;
        self.line = 0;
        match is_empty {
            true => std::mem::take(&mut self.has_data),
            false => {
                self.has_data |= self.is_data;
                false
            }
        }
    }
}

/// Returns the data of an event of one line, which is the last line before the empty one.
pub(super) fn data(event: &[u8]) -> Option<&[u8]> {
    let lines = event.strip_suffix(b"\n\n")?;
    lines
        .rsplit(|&byte| byte == b'\n')
        .next()?
        .strip_prefix(b"data: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_split_anywhere_are_counted_and_read() {
        let stream = b"retry: 7\n\n:\ndata: one\n\nid: a-2\ndata: two\n\n:\n:\ndata: three\n\n";
        for step in 1..=stream.len() {
            let (mut events, mut totals) = (Events::default(), Totals::default());
            let (mut seen, mut event) = (Vec::new(), Vec::new());
            for mut part in stream.chunks(step) {
                while let Part::Payload(bytes, ends) = events.next(&mut part, &mut totals) {
                    event.extend_from_slice(bytes);
                    if ends {
                        seen.push(data(&event).unwrap().to_vec());
                        event.clear();
                    }
                }
            }
            assert_eq!(seen, [&b"one"[..], b"two", b"three"], "{step} at a time");
            assert_eq!(totals.frames, 3);
            assert_eq!(totals.bytes, stream.len() as u64);
        }
    }

    #[test]
    fn event_without_data_has_none() {
        for event in [&b"id: a-1\n\n"[..], b"data: one\n", b""] {
            assert_eq!(data(event), None, "{event:?}");
        }
    }
}
