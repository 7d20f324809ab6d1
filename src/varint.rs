//! Numbers of variable length (unsigned LEB128): seven bits in each byte, the lowest first; all bytes but the last have the highest
//! bit set. Nodes of a cluster send their numbers in this form.

/// The most bytes of a number.
pub(crate) const BYTES_MAX: usize = 10;

pub(crate) fn write(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Returns a number and the bytes after it. `None` if it is incomplete or longer than 64 bits.
pub(crate) fn read(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * index);
        if shifted >> (7 * index) != bits {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn written_number_is_read_again() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            write(&mut out, number);
            for len in 0..out.len() {
                assert_eq!(read(&out[..len]), None, "{number}: {len} bytes");
            }
            out.push(7);
            assert_eq!(read(&out), Some((number, &[7][..])));
        }
    }

    #[test]
    fn number_of_more_than_64_bits_is_refused() {
        assert_eq!(read(&[0xff; 11]), None);
        let mut bytes = [0x80; 10];
        bytes[9] = 2;
        assert_eq!(read(&bytes), None);
    }
}
