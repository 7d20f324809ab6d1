//! Frames as a client writes and reads them (RFC 6455 §5.2), and checks of the rules for servers.

use super::inflater::Inflater;
use crate::check::{Outcome, ensure};

pub(crate) const FIN: u8 = 0x80;
/// The bit of a compressed message (RFC 7692 §6).
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

const KEY: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// The header of a masked frame that announces `len` bytes.
pub(crate) fn header(first: u8, len: usize) -> Vec<u8> {
    let mut header = vec![first];
    match len {
        0..=125 => header.push(0x80 | len as u8),
        126..=0xffff => {
            header.push(0x80 | 126);
            header.extend((len as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend((len as u64).to_be_bytes());
        }
    }
    header.extend(KEY);
    header
}

/// A complete masked frame.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len());
    let masked = payload.iter().zip(KEY.iter().cycle());
    frame.extend(masked.map(|(byte, key)| byte ^ key));
    frame
}

/// A close frame with a code.
pub(crate) fn close(code: u16) -> Vec<u8> {
    frame(FIN | CLOSE, &code.to_be_bytes())
}

/// Parses the bytes that a server has sent. A frame that no server may send is a failure.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    at: usize,
    closed: bool,
    /// Inflates messages, if compression was negotiated.
    inflater: Option<Box<Inflater>>,
}

/// One frame: its opcode and its payload.
pub(crate) type Frame<'a> = (u8, &'a [u8]);

impl Frames {
    /// Allows the server to send compressed messages.
    pub(crate) fn inflate(&mut self) {
        self.inflater = Some(Box::default());
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.at > 0 {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether the stream is between two frames, as it must be when it ends cleanly.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Returns the next complete frame. The payload of a compressed one is inflated.
    pub(crate) fn next(&mut self) -> Outcome<Option<Frame<'_>>> {
        let rest = &self.bytes[self.at..];
        let &[first, second, ..] = rest else {
            return Ok(None);
        };
        ensure!(!self.closed, "a frame follows the close frame");
        let opcode = first & 0x0f;
        let is_compressed = first & RSV1 != 0;
        ensure!(
            !is_compressed || self.inflater.is_some() && opcode < CLOSE,
            "a frame begins with {first:#04x}, though no compression was negotiated for it"
        );
        ensure!(
            first & !RSV1 & 0xf0 == FIN && matches!(opcode, TEXT | BINARY | CLOSE | PING | PONG),
            "a frame begins with {first:#04x}, which a server must not send"
        );
        ensure!(second & 0x80 == 0, "a frame from the server is masked");
        let (len, header) = match second {
            126 => match rest.get(2..4) {
                Some(len) => (usize::from(u16::from_be_bytes([len[0], len[1]])), 4),
                None => return Ok(None),
            },
            127 => match rest
                .get(2..10)
                .and_then(|len| <[u8; 8]>::try_from(len).ok())
            {
                Some(len) => (u64::from_be_bytes(len) as usize, 10),
                None => return Ok(None),
            },
            short => (usize::from(short), 2),
        };
        let is_short = len <= 125;
        ensure!(
            is_short == (header == 2) && (len > 0xffff) == (header == 10),
            "the length {len} is encoded in a header of {header} bytes"
        );
        ensure!(
            is_short || opcode < CLOSE,
            "a control frame has {len} bytes"
        );
        if rest.len() - header < len {
            return Ok(None);
        }
        self.closed = opcode == CLOSE;
        let payload = self.at + header;
        self.at = payload + len;
        let payload = &self.bytes[payload..self.at];
        match &mut self.inflater {
            Some(inflater) if is_compressed => Ok(Some((opcode, inflater.inflate(payload)?))),
            _ => Ok(Some((opcode, payload))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Outcome<Vec<(u8, Vec<u8>)>> {
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for byte in bytes {
            frames.feed(&[*byte]);
            while let Some((opcode, payload)) = frames.next()? {
                found.push((opcode, payload.to_vec()));
            }
        }
        Ok(found)
    }

    #[test]
    fn stream_cut_anywhere_yields_the_same_frames() {
        let mut bytes = vec![0x82, 1, 7, 0x81, 126, 0, 200];
        bytes.extend([b'a'; 200]);
        bytes.extend([0x88, 2, 3, 0xe9]);
        let expected = [
            (BINARY, vec![7]),
            (TEXT, vec![b'a'; 200]),
            (CLOSE, vec![3, 0xe9]),
        ];
        assert_eq!(read(&bytes).unwrap(), expected);
    }

    #[test]
    fn compressed_frame_is_inflated_or_refused_without_negotiation() {
        let payload = miniz_oxide::deflate::compress_to_vec(&[b'a'; 500], 9);
        let mut bytes = vec![FIN | RSV1 | TEXT, payload.len() as u8];
        bytes.extend(payload);
        let mut frames = Frames::default();
        frames.inflate();
        frames.feed(&bytes);
        assert_eq!(frames.next().unwrap(), Some((TEXT, &[b'a'; 500][..])));
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn frames_no_server_may_send_are_failures() {
        let cases: [&[u8]; 6] = [
            &[0x02, 0],
            &[0xc2, 0],
            &[0x83, 0],
            &[0x82, 0x80, 0, 0, 0, 0],
            &[0x82, 126, 0, 5],
            &[0x88, 0, 0x82, 0],
        ];
        for bytes in cases {
            assert!(read(bytes).is_err(), "{bytes:02x?}");
        }
    }
}
