//! Encodes unfragmented frames: unmasked ones for a server, and masked ones for a client (RFC 6455 §5.1).

use super::close::{CloseCode, reason_prefix};
#[cfg(any(test, feature = "client"))]
use super::mask;

/// The maximum length of a server frame's header: 2 + 8 bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 10;

/// Longest payload of a control frame (RFC 6455 §5.5).
pub(crate) const CONTROL_BYTES_MAX: usize = 125;

/// Longest payload whose length fits the two-byte header (RFC 6455 §5.2).
pub(super) const LEN_7_MAX: usize = 125;
/// Longest payload whose length fits the 16-bit form (RFC 6455 §5.2).
pub(super) const LEN_16_MAX: usize = 0xFFFF;
/// The 7-bit length that announces a 16-bit one (RFC 6455 §5.2).
pub(super) const LEN_16_MARK: u8 = 126;
/// The 7-bit length that announces a 64-bit one (RFC 6455 §5.2).
pub(super) const LEN_64_MARK: u8 = 127;

/// The FIN bit of the first header byte (RFC 6455 §5.2).
pub(super) const FIN: u8 = 0x80;
/// The RSV1 bit of the first header byte: "per-message compressed" (RFC 7692 §6).
pub(crate) const RSV1: u8 = 0x40;
/// The MASK bit of the second header byte (RFC 6455 §5.2).
pub(super) const MASK: u8 = 0x80;

/// The kind of a frame (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    /// A further fragment of the current message.
    Continuation = 0x0,
    /// A text message, or its first fragment.
    Text = 0x1,
    /// A binary message, or its first fragment.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// A ping, which requires a pong.
    Ping = 0x9,
    /// The reply to a ping, or a one-way heartbeat.
    Pong = 0xA,
}

impl Opcode {
    /// Returns the opcode of these four bits, or `None` if the RFC reserves them.
    pub(crate) const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping or pong (RFC 6455 §5.5: the opcodes with the top bit set).
    pub(crate) const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// The type of a data message (RFC 6455 §5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Text,
    Binary,
}

impl MessageKind {
    pub(crate) const fn text_if(is_text: bool) -> Self {
        if is_text { Self::Text } else { Self::Binary }
    }

    /// Returns the opcode of the first frame.
    pub(crate) const fn opcode(self) -> Opcode {
        match self {
            Self::Text => Opcode::Text,
            Self::Binary => Opcode::Binary,
        }
    }
}

/// Returns the length of the unmasked header for a payload of this length: 2, 4 or 10 bytes.
pub(crate) const fn header_len(payload_len: usize) -> usize {
    if payload_len <= LEN_7_MAX {
        2
    } else if payload_len <= LEN_16_MAX {
        4
    } else {
        HEADER_BYTES_MAX
    }
}

/// Writes the unmasked header with FIN at the end of `headroom`, so that the payload can follow directly. Returns the
/// length of the header.
pub(crate) fn write_header(
    opcode: Opcode,
    payload_len: usize,
    headroom: &mut [u8; HEADER_BYTES_MAX],
) -> usize {
    let first = FIN | opcode as u8;
    // RFC 6455 §5.2 requires the minimal form. The casts are lossless within their ranges.
    if payload_len <= LEN_7_MAX {
        headroom[8] = first;
        headroom[9] = payload_len as u8;
    } else if payload_len <= LEN_16_MAX {
        headroom[6] = first;
        headroom[7] = LEN_16_MARK;
        headroom[8..].copy_from_slice(&(payload_len as u16).to_be_bytes());
    } else {
        headroom[0] = first;
        headroom[1] = LEN_64_MARK;
        headroom[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
    }
    header_len(payload_len)
}

/// Returns the kind and payload of an uncompressed data frame that this module has encoded. `None` for any other bytes.
#[cfg(feature = "deflate")]
pub(crate) fn data_payload(frame: &[u8]) -> Option<(MessageKind, &[u8])> {
    const TEXT: u8 = FIN | Opcode::Text as u8;
    const BINARY: u8 = FIN | Opcode::Binary as u8;
    let kind = match *frame.first()? {
        TEXT => MessageKind::Text,
        BINARY => MessageKind::Binary,
        _ => return None,
    };
    let header = match *frame.get(1)? {
        LEN_16_MARK => 4,
        LEN_64_MARK => HEADER_BYTES_MAX,
        _ => 2,
    };
    Some((kind, frame.get(header..)?))
}

/// Encodes a control frame. A payload of more than 125 bytes (RFC 6455 §5.5) is a mistake of the caller, and is
/// truncated.
pub(crate) fn control(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    debug_assert!(opcode.is_control());
    debug_assert!(payload.len() <= CONTROL_BYTES_MAX);
    let len = payload.len().min(CONTROL_BYTES_MAX);
    let mut frame = Vec::with_capacity(2 + len);
    frame.extend_from_slice(&[FIN | opcode as u8, len as u8]);
    frame.extend_from_slice(&payload[..len]);
    frame
}

/// Encodes a close frame with a code and a reason, which is truncated if it is too long, or with an empty payload (RFC
/// 6455 §5.5.1).
pub(crate) fn close(frame: Option<(CloseCode, &str)>) -> Vec<u8> {
    control(Opcode::Close, &close_payload(frame))
}

/// Appends a client's frame. The masking key must be unpredictable (RFC 6455 §5.3, §10.3).
#[cfg(any(test, feature = "client"))]
pub(crate) fn masked(opcode: Opcode, payload: &[u8], key: [u8; 4], out: &mut Vec<u8>) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_BYTES_MAX);
    let mut header = [0; HEADER_BYTES_MAX];
    let len = write_header(opcode, payload.len(), &mut header);
    let header = &mut header[HEADER_BYTES_MAX - len..];
    header[1] |= MASK;
    out.reserve(len + key.len() + payload.len());
    out.extend_from_slice(header);
    out.extend_from_slice(&key);
    let begin = out.len();
    out.extend_from_slice(payload);
    mask::unmask(&mut out[begin..], key, 0);
}

/// Encodes the payload of a close frame: a code and as much of the reason as fits, or nothing (RFC 6455 §5.5.1).
pub(crate) fn close_payload(frame: Option<(CloseCode, &str)>) -> Vec<u8> {
    let mut payload = Vec::new();
    if let Some((code, reason)) = frame {
        payload.extend_from_slice(&code.get().to_be_bytes());
        payload.extend_from_slice(reason_prefix(reason).as_bytes());
    }
    payload
}

/// Returns the length of the first server frame in `frames`, including its header. Does not validate the frame, which
/// must have been encoded by this module.
pub(crate) fn frame_len(frames: &[u8]) -> usize {
    let header = |len: usize| header_len(len) + len;
    match *frames {
        [_, LEN_16_MARK, a, b, ..] => header(usize::from(u16::from_be_bytes([a, b]))),
        [_, LEN_64_MARK, a, b, c, d, e, f, g, h, ..] => {
            header(u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize)
        }
        [_, len, ..] => header(usize::from(len)),
        _ => frames.len(),
    }
}

/// Returns whether the first server frame is a control frame.
pub(crate) fn is_control_frame(frames: &[u8]) -> bool {
    frames.first().is_some_and(|first| first & 0x8 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_six_opcodes_of_the_rfc_exist() {
        let known: Vec<u8> = (0..=255)
            .filter(|&b| Opcode::from_bits(b).is_some())
            .collect();
        assert_eq!(known, [0, 1, 2, 8, 9, 10]);
        for bits in known {
            let opcode = Opcode::from_bits(bits).unwrap();
            assert_eq!(opcode as u8, bits);
            assert_eq!(opcode.is_control(), bits >= 8);
        }
    }

    #[test]
    fn headers_are_minimal_and_end_at_the_payload() {
        let cases: [(usize, &[u8]); 7] = [
            (0, &[0x82, 0]),
            (1, &[0x82, 1]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (0xFFFF, &[0x82, 126, 0xFF, 0xFF]),
            (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
            (0x0102_0304, &[0x82, 127, 0, 0, 0, 0, 1, 2, 3, 4]),
        ];
        for (len, expected) in cases {
            let mut headroom = [0xEE; HEADER_BYTES_MAX];
            let written = write_header(Opcode::Binary, len, &mut headroom);
            assert_eq!(written, header_len(len));
            let (untouched, header) = headroom.split_at(HEADER_BYTES_MAX - written);
            assert_eq!(header, expected, "{len}");
            assert!(untouched.iter().all(|&byte| byte == 0xEE), "{len}");
        }
    }

    #[test]
    fn control_frames_carry_their_payload() {
        assert_eq!(control(Opcode::Ping, b""), [0x89, 0]);
        assert_eq!(control(Opcode::Pong, b"abc"), [0x8A, 3, b'a', b'b', b'c']);
        assert_eq!(control(Opcode::Ping, &[7; 125]).len(), 127);
    }

    #[test]
    fn close_frames_are_empty_or_begin_with_the_code() {
        assert_eq!(close(None), [0x88, 0]);
        assert_eq!(close(Some((CloseCode::NORMAL, ""))), [0x88, 2, 3, 232]);
        let frame = close(Some((CloseCode::GOING_AWAY, "bye")));
        assert_eq!(frame, [0x88, 5, 3, 233, b'b', b'y', b'e']);
    }

    #[test]
    fn long_reason_is_truncated_to_a_valid_close_frame() {
        // RFC 6455 §5.5: 125 bytes; 'ä' is two bytes, so 123 cannot be filled.
        let frame = close(Some((CloseCode::NORMAL, &"ä".repeat(100))));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }

    #[test]
    fn masked_frames_are_what_a_server_unmasks() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let key = [0x37, 0xFA, 0x21, 0x3D];
            let mut frame = b"before".to_vec();
            masked(Opcode::Binary, &payload, key, &mut frame);
            let expected = crate::protocol::fuzz::client_frame(0x82, key, &payload);
            assert_eq!(frame[6..], expected, "{len}");
        }
    }

    #[test]
    fn frame_length_is_read_back_from_its_header() {
        for len in [0, 1, 125, 126, 65_535, 65_536, 100_000] {
            let mut header = [0; HEADER_BYTES_MAX];
            let header_len = write_header(Opcode::Text, len, &mut header);
            let mut frames = header[HEADER_BYTES_MAX - header_len..].to_vec();
            frames.resize(header_len + len, b'x');
            frames.extend_from_slice(&control(Opcode::Ping, b"next"));
            assert_eq!(frame_len(&frames), header_len + len);
            assert!(!is_control_frame(&frames));
            assert!(is_control_frame(&frames[header_len + len..]));
        }
    }
}
