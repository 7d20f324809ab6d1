//! Masking and unmasking of payloads (RFC 6455 §5.3).

/// Unmasks the part of a frame's payload that begins at `offset`. Masking is the same operation.
#[inline]
pub(crate) fn unmask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let key = rotate(key, offset);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // The compiler vectorises this loop over words, which need no alignment.
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    // The words cover a multiple of four bytes, so the remainder starts at the key's first byte.
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Rotates the key to the position `offset` bytes further into the payload.
pub(super) const fn rotate(key: [u8; 4], offset: usize) -> [u8; 4] {
    // Payload byte i is masked with key byte i mod 4. The remainder keeps the rotation below 32.
    u32::from_be_bytes(key)
        .rotate_left(8 * (offset % 4) as u32)
        .to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

    /// Unmasks with the formula of RFC 6455 §5.3, one byte at a time.
    fn unmask_naive(payload: &mut [u8], key: [u8; 4], offset: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[(offset + i) % 4];
        }
    }

    #[test]
    fn rfc_example_unmasks_to_hello() {
        // RFC 6455 §5.7
        let mut payload = [0x7F, 0x9F, 0x4D, 0x51, 0x58];
        unmask(&mut payload, KEY, 0);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn every_length_alignment_and_offset_matches_the_formula() {
        let plain: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(151) ^ 0x5C).collect();
        for offset in (0..9).chain([usize::MAX - 4, usize::MAX / 2]) {
            for start in 0..17 {
                for end in start..plain.len() {
                    let mut fast = plain.clone();
                    let mut naive = plain.clone();
                    unmask(&mut fast[start..end], KEY, offset);
                    unmask_naive(&mut naive[start..end], KEY, offset % 4);
                    assert_eq!(fast, naive, "{offset} {start}..{end}");
                }
            }
        }
    }

    #[test]
    fn unmasking_in_two_parts_equals_unmasking_at_once() {
        let plain: Vec<u8> = (0..50).collect();
        let mut whole = plain.clone();
        unmask(&mut whole, KEY, 0);
        for cut in 0..=plain.len() {
            let mut parts = plain.clone();
            let (first, second) = parts.split_at_mut(cut);
            unmask(first, KEY, 0);
            unmask(second, KEY, cut);
            assert_eq!(parts, whole, "{cut}");
        }
    }

    #[test]
    fn masking_twice_restores_the_payload() {
        let mut payload = *b"any payload at all";
        unmask(&mut payload, KEY, 3);
        unmask(&mut payload, KEY, 3);
        assert_eq!(&payload, b"any payload at all");
    }
}
