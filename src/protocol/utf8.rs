//! Incremental UTF-8 validation (RFC 6455 §8.1, RFC 3629).

use std::error::Error;
use std::fmt;

/// Validates text that arrives in parts, which may be split inside a character.
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct Utf8 {
    /// The first bytes of a character whose remaining bytes have not arrived. They are valid so far.
    tail: [u8; 3],
    /// The number of bytes used in `tail`, 0 to 3.
    tail_len: u8,
}

/// An error: no continuation makes the bytes valid UTF-8, or the text ends inside a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidUtf8;

impl fmt::Display for InvalidUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not UTF-8")
    }
}

impl Error for InvalidUtf8 {}

impl Utf8 {
    /// Validates the next part. Fails at the first byte after which no continuation is valid UTF-8.
    pub(crate) fn push(&mut self, mut part: &[u8]) -> Result<(), InvalidUtf8> {
        // Completes the split character first, which takes at most three bytes.
        while self.tail_len > 0 {
            let Some((&byte, rest)) = part.split_first() else {
                return Ok(());
            };
            part = rest;
            let [a, b, c] = self.tail;
            let held = usize::from(self.tail_len);
            let mut character = [a, b, c, 0];
            character[held] = byte;
            self.validate_from_boundary(&character[..=held])?;
        }
        self.validate_from_boundary(part)
    }

    /// Ends the text. Fails if its last character is incomplete.
    pub(crate) fn finish(self) -> Result<(), InvalidUtf8> {
        if self.tail_len == 0 {
            Ok(())
        } else {
            Err(InvalidUtf8)
        }
    }

    /// Validates `bytes`, which start at a character boundary, and keeps an incomplete character at their end.
    fn validate_from_boundary(&mut self, bytes: &[u8]) -> Result<(), InvalidUtf8> {
        self.tail_len = 0;
        let Err(error) = std::str::from_utf8(bytes) else {
            return Ok(());
        };
        // `error_len` is None only where the bytes end inside a character that is valid so far.
        let cut = &bytes[error.valid_up_to()..];
        if error.error_len().is_some() || cut.len() > self.tail.len() {
            return Err(InvalidUtf8);
        }
        self.tail[..cut.len()].copy_from_slice(cut);
        self.tail_len = cut.len() as u8;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Validates `bytes` in one part.
    fn whole(bytes: &[u8]) -> Result<(), InvalidUtf8> {
        let mut utf8 = Utf8::default();
        utf8.push(bytes)?;
        utf8.finish()
    }

    /// Validates `bytes` one at a time. Returns the index of the byte that fails, or the length if the end is missing.
    fn fails_at(bytes: &[u8]) -> Option<usize> {
        let mut utf8 = Utf8::default();
        for (i, byte) in bytes.iter().enumerate() {
            if utf8.push(&[*byte]).is_err() {
                return Some(i);
            }
        }
        utf8.finish().is_err().then_some(bytes.len())
    }

    /// Whether some continuation makes `bytes` valid UTF-8.
    fn can_become_valid(bytes: &[u8]) -> bool {
        match std::str::from_utf8(bytes) {
            Ok(_) => true,
            Err(error) => error.error_len().is_none(),
        }
    }

    const TEXTS: [&str; 6] = [
        "",
        "plain ASCII, long enough for the word-wise path of the standard library",
        "κόσμε",
        "ÄÖÜ und 日本語 und 🦀🦀 gemischt",
        "\u{0}\u{7F}\u{80}\u{7FF}\u{800}\u{FFFF}\u{10000}\u{10FFFF}",
        "\u{D7FF}\u{E000}\u{FFFD}\u{FEFF}",
    ];

    #[test]
    fn validator_fits_in_eight_bytes() {
        assert!(size_of::<Utf8>() <= 8);
    }

    #[test]
    fn valid_text_is_accepted_at_every_split() {
        for text in TEXTS {
            let bytes = text.as_bytes();
            assert_eq!(whole(bytes), Ok(()));
            assert_eq!(fails_at(bytes), None);
            for a in 0..=bytes.len() {
                for b in a..=bytes.len() {
                    let mut utf8 = Utf8::default();
                    for part in [&bytes[..a], &bytes[a..b], &[], &bytes[b..]] {
                        assert_eq!(utf8.push(part), Ok(()), "{text} {a} {b}");
                    }
                    assert_eq!(utf8.finish(), Ok(()), "{text} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn incomplete_last_character_fails_only_at_finish() {
        for text in TEXTS {
            for end in 0..text.len() {
                let expected = if text.is_char_boundary(end) {
                    None
                } else {
                    Some(end)
                };
                assert_eq!(fails_at(&text.as_bytes()[..end]), expected, "{text} {end}");
            }
        }
    }

    #[test]
    fn invalid_bytes_fail_at_the_first_wrong_byte() {
        // Autobahn 6.3, 6.4 and the classes of RFC 3629 §3, §4.
        let cases: [(&[u8], usize); 14] = [
            (b"\x80", 0),
            (b"\xBF", 0),
            (b"\xC0\xAF", 0),
            (b"\xC1\xBF", 0),
            (b"\xE0\x80\xAF", 1),
            (b"\xE0\x9F\xBF", 1),
            (b"\xED\xA0\x80", 1),
            (b"\xED\xBF\xBF", 1),
            (b"\xF0\x80\x80\xAF", 1),
            (b"\xF0\x8F\xBF\xBF", 1),
            (b"\xF4\x90\x80\x80", 1),
            (b"\xF5\x80", 0),
            (b"\xFE\xFF", 0),
            (b"\xF0\x9F\xA6a", 3),
        ];
        for (bytes, at) in cases {
            assert_eq!(fails_at(bytes), Some(at), "{bytes:X?}");
            for lead in ["", "a", "longer than a word of memory ", "日"] {
                let mut text = lead.as_bytes().to_vec();
                text.extend_from_slice(bytes);
                assert_eq!(fails_at(&text), Some(lead.len() + at), "{lead} {bytes:X?}");
                // Known with the offending byte alone, not with what follows.
                let mut utf8 = Utf8::default();
                assert_eq!(utf8.push(&text[..=lead.len() + at]), Err(InvalidUtf8));
            }
        }
    }

    #[test]
    fn sequences_of_up_to_three_bytes_agree_with_std() {
        // Bytes at the edges of every class of RFC 3629 §4 stand for the bytes between them.
        let third = [
            0x00, 0x61, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xE0, 0xF0, 0xFF,
        ];
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for c in third {
                    let bytes = [a, b, c];
                    for len in 1..=3 {
                        let bytes = &bytes[..len];
                        let valid = std::str::from_utf8(bytes).is_ok();
                        assert_eq!(whole(bytes).is_ok(), valid, "{bytes:X?}");
                        let first_bad = (0..len).find(|&i| !can_become_valid(&bytes[..=i]));
                        let expected = first_bad.or((!valid).then_some(len));
                        assert_eq!(fails_at(bytes), expected, "{bytes:X?}");
                    }
                }
            }
        }
    }

    #[test]
    fn four_byte_sequences_agree_with_std_at_every_split() {
        let leads = [
            0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF, 0x61,
        ];
        let edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xF0];
        for a in leads {
            for b in edges {
                for c in edges {
                    for d in edges {
                        let bytes = [a, b, c, d];
                        let valid = std::str::from_utf8(&bytes).is_ok();
                        for cut in 0..=4 {
                            let mut utf8 = Utf8::default();
                            let fed = utf8
                                .push(&bytes[..cut])
                                .and_then(|()| utf8.push(&bytes[cut..]))
                                .and_then(|()| utf8.finish());
                            assert_eq!(fed.is_ok(), valid, "{bytes:X?} {cut}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_character_is_accepted_byte_by_byte() {
        let mut utf8 = Utf8::default();
        for character in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            for byte in character.encode_utf8(&mut buffer).as_bytes() {
                assert_eq!(utf8.push(&[*byte]), Ok(()), "{character:?}");
            }
            assert_eq!(utf8.finish(), Ok(()), "{character:?}");
        }
    }
}
