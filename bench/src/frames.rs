//! Splits the stream of a server into messages, however reads split it.

use std::io;

use crate::wire::{BINARY, TEXT};

const CLOSE: u8 = 8;

/// Longest payload that a server of the bench may send, in bytes.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Reads the uncompressed, unfragmented messages of a server.
#[derive(Debug, Default)]
pub(crate) struct MessageReader {
    /// The bytes of an incomplete frame.
    rest: Vec<u8>,
}

impl MessageReader {
    /// Passes the payload of each message that `bytes` complete to `take`.
    ///
    /// # Errors
    ///
    /// If the server closes the connection or sends anything but messages, or if `take` fails.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.rest.is_empty() {
            let used = split(bytes, &mut take)?;
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            self.rest.extend_from_slice(bytes);
            let used = split(&self.rest, &mut take)?;
            self.rest.drain(..used);
        }
        Ok(())
    }
}

/// Passes on all complete messages. Returns the number of bytes that they take.
fn split(bytes: &[u8], take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<usize> {
    let mut used = 0;
    while let Some((start, end)) = payload(&bytes[used..])? {
        take(&bytes[used + start..used + end])?;
        used += end;
    }
    Ok(used)
}

/// Returns where the payload of the first frame begins and ends, or `None` if the frame is incomplete.
fn payload(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let &[first, second, ref rest @ ..] = bytes else {
        return Ok(None);
    };
    match first {
        _ if first == 0x80 | TEXT || first == 0x80 | BINARY => {}
        _ if first == 0x80 | CLOSE => {
            let text = "the server closes the connection";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
        }
        _ => return Err(io::Error::other(format!("a frame begins with {first:02x}"))),
    }
    let (length, start) = match (second, rest) {
        (126, &[a, b, ..]) => (u64::from(u16::from_be_bytes([a, b])), 4),
        (127, &[a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10),
        (126 | 127, _) => return Ok(None),
        (length @ 0..126, _) => (u64::from(length), 2),
        _ => return Err(io::Error::other("a server's frame is masked")),
    };
    match usize::try_from(length) {
        Ok(length) if length <= PAYLOAD_BYTES_MAX => {
            let end = start + length;
            Ok((bytes.len() >= end).then_some((start, end)))
        }
        _ => Err(io::Error::other(format!("a frame of {length} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::put_server_head;

    #[test]
    fn messages_are_read_at_every_split() {
        let mut stream = Vec::new();
        let lengths = [0, 1, 125, 126, 70_000];
        for length in lengths {
            put_server_head(&mut stream, BINARY, length);
            stream.extend(std::iter::repeat_n(7, length));
        }
        for part in [1, 2, 3, 200, stream.len()] {
            let mut reader = MessageReader::default();
            let mut seen = Vec::new();
            for bytes in stream.chunks(part) {
                let take = |payload: &[u8]| {
                    assert!(payload.iter().all(|byte| *byte == 7));
                    seen.push(payload.len());
                    Ok(())
                };
                reader.read(bytes, take).unwrap();
            }
            assert_eq!(seen, lengths, "in parts of {part}");
        }
    }

    #[test]
    fn close_frame_and_masked_frame_are_errors() {
        for bytes in [[0x88, 0x00], [0x82, 0x80], [0x02, 0x00], [0xC2, 0x00]] {
            let mut reader = MessageReader::default();
            assert!(reader.read(&bytes, |_| Ok(())).is_err(), "{bytes:02x?}");
        }
    }
}
