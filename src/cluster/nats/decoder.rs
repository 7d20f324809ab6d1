//! Decodes what a NATS server sends: lines, some of which are followed by the payload of a message.

use std::ops::Range;

/// The longest line that is read. A server's line of control has 4 KiB at most, but its INFO lists the other servers of its
/// cluster.
const LINE_BYTES_MAX: usize = 64 << 10;
/// No server takes longer messages: `max_payload` has 32 bits.
const PAYLOAD_BYTES_MAX: u64 = i32::MAX as u64;
/// The memory of a burst beyond this is released.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// A line of a server, with the message that follows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NatsFrame<'a> {
    /// The server describes itself, in JSON.
    Info(&'a [u8]),
    /// A message for the subscription `sid`. The payload is `None` if it has more bytes than the decoder buffers.
    Message {
        sid: u64,
        payload: Option<&'a [u8]>,
    },
    Ping,
    Pong,
    /// The text of an error, without quotes.
    Error(&'a [u8]),
    /// Confirms a command. A server sends it only if CONNECT asks for it.
    Ok,
}

/// The reason why bytes are not in the protocol.
pub(super) type Violation = &'static str;

/// Splits received bytes into frames.
#[derive(Debug)]
pub(super) struct NatsDecoder {
    payload_bytes_max: usize,
    buffer: Vec<u8>,
    /// Where the next frame begins in the buffer.
    from: usize,
    /// The buffer has no line feed between `from` and here.
    searched: usize,
    /// A message whose line was decoded, and whose payload is not complete.
    message: Option<Payload>,
}

#[derive(Debug, Clone, Copy)]
struct Payload {
    sid: u64,
    len: usize,
    /// The number of bytes that were dropped, since the payload is too long.
    dropped: usize,
}

/// A decoded line. Ranges are within the line.
enum Line {
    Info(Range<usize>),
    Message { sid: u64, len: usize },
    Ping,
    Pong,
    Error(Range<usize>),
    Ok,
}

impl NatsDecoder {
    /// Longer payloads than this are skipped, without buffering them.
    pub(super) fn new(payload_bytes_max: usize) -> Self {
        Self {
            payload_bytes_max,
            buffer: Vec::new(),
            from: 0,
            searched: 0,
            message: None,
        }
    }

    /// Begins a new connection.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.payload_bytes_max);
    }

    /// Takes received bytes. Call [`next`](Self::next) until it returns `None` before.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.from);
        self.searched -= self.from;
        self.from = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether all received bytes are decoded.
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.buffer.len() && self.message.is_none()
    }

    /// Returns the next frame, or `None` if it is not complete.
    pub(super) fn next(&mut self) -> Result<Option<NatsFrame<'_>>, Violation> {
        if self.message.is_none() {
            let Some(end) = self.line_end()? else {
                return Ok(None);
            };
            let start = self.from;
            self.from = end + 1;
            self.searched = self.from;
            return match read_line(&self.buffer[start..end - 1])? {
                Line::Message { sid, len } => {
                    self.message = Some(Payload {
                        sid,
                        len,
                        dropped: 0,
                    });
                    self.payload()
                }
                Line::Info(info) => Ok(Some(NatsFrame::Info(&self.buffer[start..][info]))),
                Line::Error(error) => Ok(Some(NatsFrame::Error(&self.buffer[start..][error]))),
                Line::Ping => Ok(Some(NatsFrame::Ping)),
                Line::Pong => Ok(Some(NatsFrame::Pong)),
                Line::Ok => Ok(Some(NatsFrame::Ok)),
            };
        }
        self.payload()
    }

    /// Finds the end of the line that begins at `from`: the index of its line feed.
    fn line_end(&mut self) -> Result<Option<usize>, Violation> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(found) = found else {
            self.searched = self.buffer.len();
            return match self.buffer.len() - self.from > LINE_BYTES_MAX {
                true => Err("a line is too long"),
                false => Ok(None),
            };
        };
        let end = self.searched + found;
        match end > self.from && self.buffer[end - 1] == b'\r' {
            true => Ok(Some(end)),
            false => Err("a line does not end with CR LF"),
        }
    }

    /// Returns the message whose line was read, once it is complete.
    fn payload(&mut self) -> Result<Option<NatsFrame<'_>>, Violation> {
        let Some(message) = &mut self.message else {
            return Ok(None);
        };
        let Payload { sid, len, .. } = *message;
        let is_too_long = len > self.payload_bytes_max;
        if is_too_long {
            let received = self.buffer.len() - self.from;
            let dropped = received.min(len - message.dropped);
            message.dropped += dropped;
            self.from += dropped;
        }
        let left = len - message.dropped;
        let end = self.from + left;
        let Some(after) = self.buffer.get(end..end + 2) else {
            self.searched = self.from;
            return Ok(None);
        };
        if after != b"\r\n" {
            return Err("a message does not end with CR LF");
        }
        let payload = self.from..end;
        self.from = end + 2;
        self.searched = self.from;
        self.message = None;
        let payload = (!is_too_long).then(|| &self.buffer[payload]);
        Ok(Some(NatsFrame::Message { sid, payload }))
    }
}

/// Reads a line, without its end.
fn read_line(line: &[u8]) -> Result<Line, Violation> {
    let at = line.iter().position(|byte| matches!(byte, b' ' | b'\t'));
    let (name, rest) = line.split_at(at.unwrap_or(line.len()));
    // Names are in any case.
    let is = |of: &[u8]| name.eq_ignore_ascii_case(of);
    if is(b"MSG") {
        return message(rest).ok_or("a line MSG is malformed");
    }
    let end = line.trim_ascii_end().len();
    let start = end - rest.trim_ascii().len().min(end);
    Ok(if is(b"PING") {
        Line::Ping
    } else if is(b"PONG") {
        Line::Pong
    } else if is(b"+OK") {
        Line::Ok
    } else if is(b"-ERR") {
        let quotes =
            (line[start..end].len() > 1 && line[start] == b'\'' && line[end - 1] == b'\'') as usize;
        Line::Error(start + quotes..end - quotes)
    } else if is(b"INFO") {
        Line::Info(start..end)
    } else {
        return Err("a line begins with an unknown word");
    })
}

/// Reads `subject sid [reply-to] length`.
fn message(rest: &[u8]) -> Option<Line> {
    let mut words = rest
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty());
    let (_subject, sid) = (words.next()?, words.next()?);
    let third = words.next()?;
    let len = match words.next() {
        Some(fourth) => fourth,
        None => third,
    };
    if words.next().is_some() {
        return None;
    }
    Some(Line::Message {
        sid: number(sid)?,
        len: number(len).filter(|&len| len <= PAYLOAD_BYTES_MAX)? as usize,
    })
}

/// A decimal number of at most 18 digits.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let digits = is_number.then_some(digits)?;
    Some(
        digits
            .iter()
            .fold(0, |sum, digit| 10 * sum + u64::from(digit - b'0')),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Describes each frame, or the violation at the end.
    fn decode(pieces: &[&[u8]]) -> Vec<String> {
        let mut decoder = NatsDecoder::new(5);
        let mut seen = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => seen.push(format!("{frame:?}")),
                    Ok(None) => break,
                    Err(violation) => {
                        seen.push(violation.to_owned());
                        return seen;
                    }
                }
            }
        }
        seen
    }

    const ALL: &[u8] = b"INFO {\"a\":1} \r\nMSG a.b 12 5\r\nhello\r\nmsg\ta  7\treply 0\r\n\r\nPING\r\npong \r\n+OK\r\n\
        MSG x 1 6\r\n\r\nPING\r\n-ERR 'It''s no'\r\nMSG a 3 2\r\n\r\n\r\nPING\r\n";

    #[test]
    fn frames_are_the_same_in_any_pieces() {
        let whole = decode(&[ALL]);
        let text = |bytes: &[u8]| format!("{bytes:?}");
        let message =
            |sid: u64, payload: Option<&[u8]>| format!("{:?}", NatsFrame::Message { sid, payload });
        assert_eq!(
            whole,
            [
                format!("Info({})", text(b"{\"a\":1}")),
                message(12, Some(b"hello")),
                message(7, Some(b"")),
                "Ping".into(),
                "Pong".into(),
                "Ok".into(),
                // Too long.
                message(1, None),
                format!("Error({})", text(b"It''s no")),
                message(3, Some(b"\r\n")),
                "Ping".into(),
            ]
        );
        for at in 0..ALL.len() {
            let (first, second) = ALL.split_at(at);
            assert_eq!(decode(&[first, second]), whole, "{at}");
        }
        let bytes: Vec<&[u8]> = ALL.chunks(1).collect();
        assert_eq!(decode(&bytes), whole);
    }

    #[test]
    fn violations_end_the_connection() {
        for bytes in [
            "PING\n",
            "\r\n",
            "\n",
            "HMSG a 1 2 3\r\n",
            "MSG\r\n",
            "MSG a 1\r\n",
            "MSG a x 1\r\n",
            "MSG a 1 -1\r\n",
            "MSG a 1 +1\r\n",
            "MSG a 1 b 1 1\r\n",
            "MSG a 1 9999999999999999999\r\n",
            "MSG a 1 2147483648\r\n",
            "MSG a 1 1\r\nabc",
            "MSG a 1 6\r\nabcdefgh",
            "HTTP/1.1 400 Bad Request\r\n",
        ] {
            let whole = decode(&[bytes.as_bytes()]);
            let pieces: Vec<&[u8]> = bytes.as_bytes().chunks(1).collect();
            assert_eq!(whole.len(), 1, "{bytes:?}: {whole:?}");
            assert!(whole[0].starts_with('a'), "{bytes:?}: {whole:?}");
            assert_eq!(decode(&pieces), whole, "{bytes:?}");
        }
    }

    #[test]
    fn endless_line_and_long_messages_take_bounded_memory() {
        let mut decoder = NatsDecoder::new(1_000);
        for _ in 0..LINE_BYTES_MAX / 1_000 {
            decoder.push(&[b'a'; 1_000]);
            assert_eq!(decoder.next(), Ok(None));
        }
        decoder.push(&[b'a'; 1_000]);
        assert!(decoder.next().is_err());

        let mut decoder = NatsDecoder::new(1_000);
        decoder.push(b"MSG a 1 100000000\r\n");
        for _ in 0..1_000 {
            decoder.push(&[b'a'; 100_000]);
            assert_eq!(decoder.next(), Ok(None));
            assert!(decoder.buffer.capacity() <= 1 << 20);
        }
        decoder.push(b"\r\nPING\r\n");
        let sid = 1;
        assert_eq!(
            decoder.next(),
            Ok(Some(NatsFrame::Message { sid, payload: None }))
        );
        assert_eq!(decoder.next(), Ok(Some(NatsFrame::Ping)));
    }
}
