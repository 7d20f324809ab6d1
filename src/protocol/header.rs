//! Parses the headers of received frames, and reports violations as early as possible (RFC 6455 §5.2).

use super::encode::{
    CONTROL_BYTES_MAX, FIN, LEN_7_MAX, LEN_16_MARK, LEN_16_MAX, LEN_64_MARK, MASK, Opcode, RSV1,
};
use super::error::Violation;
use super::role::Role;

/// The maximum length of a client frame's header: 2 + 8 bytes and the masking key.
pub(super) const CLIENT_HEADER_BYTES_MAX: usize = 14;

/// The length of a masking key (RFC 6455 §5.3).
pub(super) const KEY_BYTES: usize = 4;

const RSV2_AND_RSV3: u8 = 0x30;
pub(super) const OPCODE: u8 = 0x0F;
const LENGTH_TOP: u8 = 0x80;

/// The first byte of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FirstByte {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) compressed: bool,
}

/// Checks the first byte. `accepts_compressed` says whether permessage-deflate was negotiated.
#[inline]
pub(super) fn first_byte(byte: u8, accepts_compressed: bool) -> Result<FirstByte, Violation> {
    let compressed = byte & RSV1 != 0;
    // RFC 6455 §5.2: these bits must be zero unless a negotiated extension defines them.
    if byte & RSV2_AND_RSV3 != 0 || compressed && !accepts_compressed {
        return Err(Violation::ReservedBits);
    }
    let opcode = Opcode::from_bits(byte & OPCODE).ok_or(Violation::ReservedOpcode)?;
    // RFC 7692 §6: the bit may be set only in the first fragment of a data message.
    if compressed && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(Violation::ReservedBits);
    }
    let fin = byte & FIN != 0;
    // RFC 6455 §5.5: control frames must not be fragmented.
    if opcode.is_control() && !fin {
        return Err(Violation::FragmentedControl);
    }
    Ok(FirstByte {
        fin,
        opcode,
        compressed,
    })
}

/// Returns the payload length, and the offset in `header` of the masking key, or of the payload if the peer does not
/// mask. `None` if more bytes are needed.
#[inline]
pub(super) fn length<R: Role>(
    opcode: Opcode,
    header: &[u8],
) -> Result<Option<(u64, usize)>, Violation> {
    let Some((&[_, second], rest)) = header.split_first_chunk::<2>() else {
        return Ok(None);
    };
    // RFC 6455 §5.1: a server must close upon a frame that is not masked, a client upon one that is.
    if R::PEER_MASKS != (second & MASK != 0) {
        return Err(R::WRONG_MASK);
    }
    let short = second & !MASK;
    // RFC 6455 §5.5: a control frame has at most 125 bytes, so a longer form of the length is a violation.
    if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
        return Err(Violation::ControlTooLong);
    }
    let (length, longer_than, key_at) = match short {
        LEN_16_MARK => {
            let Some(bytes) = rest.first_chunk::<2>() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*bytes)), LEN_7_MAX, 4)
        }
        LEN_64_MARK => {
            // RFC 6455 §5.2: the most significant bit must be 0.
            if rest.first().is_some_and(|byte| byte & LENGTH_TOP != 0) {
                return Err(Violation::LengthTopBit);
            }
            let Some(bytes) = rest.first_chunk::<8>() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*bytes), LEN_16_MAX, 10)
        }
        _ => return Ok(Some((u64::from(short), 2))),
    };
    // RFC 6455 §5.2: the minimal number of bytes must be used.
    if length <= longer_than as u64 {
        return Err(Violation::NonMinimalLength);
    }
    Ok(Some((length, key_at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::role::{ClientRole, ServerRole};

    #[test]
    fn first_byte_is_judged_alone() {
        for byte in 0..=255u8 {
            for accepts_compressed in [false, true] {
                let reserved = match accepts_compressed {
                    true => 0x30,
                    false => 0x70,
                };
                let compressed = byte & 0x40 != 0;
                let expected = match (byte & reserved, byte & 0x0F, byte >= 0x80) {
                    (1.., _, _) => Err(Violation::ReservedBits),
                    (_, 3..=7 | 11..=15, _) => Err(Violation::ReservedOpcode),
                    (_, 0 | 8..=10, _) if compressed => Err(Violation::ReservedBits),
                    (_, 8..=10, false) => Err(Violation::FragmentedControl),
                    (_, bits, fin) => Ok(FirstByte {
                        fin,
                        opcode: Opcode::from_bits(bits).unwrap(),
                        compressed,
                    }),
                };
                assert_eq!(first_byte(byte, accepts_compressed), expected, "{byte:#x}");
            }
        }
    }

    #[test]
    fn length_of_each_form_is_read_once_complete() {
        let cases: [(&[u8], u64); 7] = [
            (&[0x82, 0x80], 0),
            (&[0x82, 0xFD], 125),
            (&[0x82, 0xFE, 0, 126], 126),
            (&[0x82, 0xFE, 0xFF, 0xFF], 0xFFFF),
            (&[0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0], 0x1_0000),
            (&[0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0], 0x1_0000_0000),
            (
                &[0x82, 0xFF, 0x7F, 255, 255, 255, 255, 255, 255, 255],
                i64::MAX as u64,
            ),
        ];
        for (header, expected) in cases {
            for end in 0..header.len() {
                assert_eq!(
                    length::<ServerRole>(Opcode::Binary, &header[..end]),
                    Ok(None),
                    "{header:X?} {end}"
                );
            }
            let known = Ok(Some((expected, header.len())));
            assert_eq!(length::<ServerRole>(Opcode::Binary, header), known);
            let with_more = [header, &[1, 2, 3, 4, 5]].concat();
            assert_eq!(length::<ServerRole>(Opcode::Binary, &with_more), known);
        }
    }

    #[test]
    fn illegal_length_is_refused_at_its_first_wrong_byte() {
        use Violation::{ControlTooLong, LengthTopBit, NonMinimalLength, UnmaskedFrame};
        let cases: [(Opcode, &[u8], Violation); 10] = [
            (Opcode::Text, &[0x81, 0x05], UnmaskedFrame),
            (Opcode::Ping, &[0x89, 0x7F], UnmaskedFrame),
            (Opcode::Ping, &[0x89, 0xFE], ControlTooLong),
            (Opcode::Close, &[0x88, 0xFF], ControlTooLong),
            (Opcode::Text, &[0x81, 0xFE, 0, 0], NonMinimalLength),
            (Opcode::Text, &[0x81, 0xFE, 0, 125], NonMinimalLength),
            (
                Opcode::Text,
                &[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 1],
                NonMinimalLength,
            ),
            (
                Opcode::Text,
                &[0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF],
                NonMinimalLength,
            ),
            (Opcode::Text, &[0x81, 0xFF, 0x80], LengthTopBit),
            (Opcode::Text, &[0x81, 0xFF, 0xFF], LengthTopBit),
        ];
        for (opcode, header, violation) in cases {
            assert_eq!(
                length::<ServerRole>(opcode, header),
                Err(violation),
                "{header:X?}"
            );
            assert_eq!(
                length::<ServerRole>(opcode, &header[..header.len() - 1]),
                Ok(None),
                "{header:X?}"
            );
        }
    }

    #[test]
    fn unmasked_length_of_each_form_is_read_by_clients() {
        let cases: [(&[u8], u64, usize); 3] = [
            (&[0x82, 0x7D], 125, 2),
            (&[0x82, 0x7E, 0, 126], 126, 4),
            (&[0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0], 0x1_0000, 10),
        ];
        for (header, expected, payload_at) in cases {
            let known = Ok(Some((expected, payload_at)));
            assert_eq!(length::<ClientRole>(Opcode::Binary, header), known);
            let masked = [&[header[0], header[1] | 0x80], &header[2..]].concat();
            assert_eq!(
                length::<ClientRole>(Opcode::Binary, &masked[..2]),
                Err(Violation::MaskedFrame)
            );
        }
        assert_eq!(
            length::<ClientRole>(Opcode::Text, &[0x81, 0x7E, 0, 125]),
            Err(Violation::NonMinimalLength)
        );
    }
}
