//! Parses a server's stream: frames of one known shape, however reads split them.

use std::io;

use crate::wire;

/// Size of number and timestamp in bytes; hexadecimal text takes twice as much.
const STAMPED: usize = 16;
const PREFIX: usize = 10 + 2 * STAMPED;

/// The header and length that all frames share.
pub(crate) struct FrameShape {
    head: Vec<u8>,
    /// Size of number and timestamp, and of the payload after them.
    stamped: usize,
    rest: usize,
}

impl FrameShape {
    /// The shape of binary messages, or of lines as text messages.
    pub(crate) fn new(size: usize, lines: bool) -> Self {
        let (opcode, stamped) = match lines {
            true => (wire::TEXT, 2 * STAMPED),
            false => (wire::BINARY, STAMPED),
        };
        let mut head = Vec::new();
        wire::put_server_head(&mut head, opcode, size);
        Self {
            head,
            stamped,
            rest: size - stamped,
        }
    }

    fn prefix(&self) -> usize {
        self.head.len() + self.stamped
    }

    fn parse(&self, prefix: &[u8]) -> io::Result<Message> {
        let (head, stamped) = prefix.split_at(self.head.len());
        if head != self.head {
            return Err(io::Error::other(format!(
                "a frame began {head:02x?} where {:02x?} was due",
                self.head
            )));
        }
        let (number, stamp) = stamped.split_at(self.stamped / 2);
        let u64_of = |bytes: &[u8]| match <[u8; 8]>::try_from(bytes) {
            Ok(bytes) => Some(u64::from_ne_bytes(bytes)),
            Err(_) => u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok(),
        };
        match (u64_of(number), u64_of(stamp)) {
            (Some(number), Some(stamp)) => Ok(Message { number, stamp }),
            _ => Err(io::Error::other("a message has no number")),
        }
    }
}

/// A completely received message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) stamp: u64,
}

/// Parser state between two reads.
pub(crate) struct Receiver {
    prefix: [u8; PREFIX],
    have: usize,
    /// A message, and how many of its bytes are missing.
    pending: Option<(Message, usize)>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            prefix: [0; PREFIX],
            have: 0,
            pending: None,
        }
    }
}

impl Receiver {
    /// Removes the next complete message from `bytes`; returns `None` when `bytes` is used up.
    pub(crate) fn next(
        &mut self,
        shape: &FrameShape,
        bytes: &mut &[u8],
    ) -> io::Result<Option<Message>> {
        let (message, missing) = match self.pending.take() {
            Some(pending) => pending,
            None => match self.take_prefix(shape, bytes)? {
                Some(message) => (message, shape.rest),
                None => return Ok(None),
            },
        };
        if bytes.len() < missing {
            self.pending = Some((message, missing - bytes.len()));
            *bytes = &[];
            return Ok(None);
        }
        *bytes = &bytes[missing..];
        Ok(Some(message))
    }

    fn take_prefix(
        &mut self,
        shape: &FrameShape,
        bytes: &mut &[u8],
    ) -> io::Result<Option<Message>> {
        let length = shape.prefix();
        if self.have == 0 && bytes.len() >= length {
            let (prefix, rest) = bytes.split_at(length);
            *bytes = rest;
            return shape.parse(prefix).map(Some);
        }
        let (part, rest) = bytes.split_at((length - self.have).min(bytes.len()));
        *bytes = rest;
        self.prefix[self.have..self.have + part.len()].copy_from_slice(part);
        self.have += part.len();
        if self.have < length {
            return Ok(None);
        }
        self.have = 0;
        shape.parse(&self.prefix[..length]).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(size: usize, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..count {
            wire::put_server_head(&mut bytes, wire::BINARY, size);
            bytes.extend_from_slice(&number.to_ne_bytes());
            bytes.extend_from_slice(&(number * 10).to_ne_bytes());
            bytes.resize(bytes.len() + size - STAMPED, 0);
        }
        bytes
    }

    #[test]
    fn stream_cut_anywhere_yields_the_same_messages() {
        for size in [16, 32, 200, 70_000] {
            let (shape, bytes) = (FrameShape::new(size, false), stream(size, 3));
            let expected: Vec<_> = (0..3)
                .map(|number| Message {
                    number,
                    stamp: number * 10,
                })
                .collect();
            for step in (1..60)
                .chain([bytes.len()])
                .filter(|step| bytes.len() / step < 20_000)
            {
                let mut receiver = Receiver::default();
                let mut messages = Vec::new();
                for mut part in bytes.chunks(step) {
                    while let Some(message) = receiver.next(&shape, &mut part).unwrap() {
                        messages.push(message);
                    }
                    assert!(part.is_empty());
                }
                assert_eq!(messages, expected, "{size} bytes, {step} at a time");
            }
        }
    }

    #[test]
    fn frame_of_another_shape_is_refused() {
        let bytes = stream(48, 1);
        assert!(
            Receiver::default()
                .next(&FrameShape::new(32, false), &mut &bytes[..])
                .is_err()
        );
    }
}
