//! Percent-decoding (RFC 3986 §2.1).
//!
//! [`decode`] is strict and suits identifiers. [`Octets`] reports a `%` that is not followed by two hexadecimal digits, and
//! the caller decides what it means. Query parsers keep it literally, since people write queries by hand.

/// A part of percent-encoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Octet {
    /// A byte that stands for itself.
    Literal(u8),
    /// A byte that was encoded as `%` and two hexadecimal digits.
    Escaped(u8),
    /// A `%` that is not followed by two hexadecimal digits. The iterator continues with the byte after it.
    StrayPercent,
}

impl Octet {
    /// Returns the byte, and `%` for a stray one.
    pub(crate) const fn lenient(self) -> u8 {
        match self {
            Self::Literal(byte) | Self::Escaped(byte) => byte,
            Self::StrayPercent => b'%',
        }
    }
}

/// Iterates over the parts of percent-encoded text without allocating.
#[derive(Debug, Clone)]
pub(crate) struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

impl Iterator for Octets<'_> {
    type Item = Octet;

    fn next(&mut self) -> Option<Octet> {
        let (&first, after) = self.0.split_first()?;
        self.0 = after;
        if first != b'%' {
            return Some(Octet::Literal(first));
        }
        let escaped = after.split_first_chunk().and_then(|(&[high, low], rest)| {
            let byte = digit(high)? << 4 | digit(low)?;
            Some((byte, rest))
        });
        Some(match escaped {
            Some((byte, rest)) => {
                self.0 = rest;
                Octet::Escaped(byte)
            }
            None => Octet::StrayPercent,
        })
    }
}

/// Returns the value of a hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    u8::try_from(char::from(byte).to_digit(16)?).ok()
}

/// Decodes text strictly. Returns `None` if a `%` is not followed by two hexadecimal digits, or if the result is not UTF-8.
#[cfg_attr(not(any(test, feature = "client")), allow(dead_code))]
pub(crate) fn decode(text: &str) -> Option<String> {
    let bytes = Octets::new(text).map(|octet| match octet {
        Octet::Literal(byte) | Octet::Escaped(byte) => Some(byte),
        Octet::StrayPercent => None,
    });
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

/// Decodes text leniently: keeps a stray `%` and replaces invalid UTF-8 by U+FFFD.
pub(crate) fn decode_lossy(text: &str) -> String {
    let bytes: Vec<u8> = Octets::new(text).map(Octet::lenient).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Decodes a name or value of a form (`application/x-www-form-urlencoded`, WHATWG URL §5.1) like [`decode_lossy`], except
/// that `+` is a space.
pub(crate) fn decode_form(text: &str) -> String {
    let bytes: Vec<u8> = Octets::new(text)
        .map(|octet| match octet {
            Octet::Literal(b'+') => b' ',
            octet => octet.lenient(),
        })
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_of_every_byte_is_decoded_in_either_case() {
        for byte in 0..=u8::MAX {
            for text in [format!("%{byte:02x}"), format!("%{byte:02X}")] {
                let octets: Vec<_> = Octets::new(&text).collect();
                assert_eq!(octets, [Octet::Escaped(byte)], "{text}");
            }
        }
    }

    #[test]
    fn percent_without_two_digits_is_malformed_or_kept() {
        for (text, kept) in [
            ("%", "%"),
            ("%4", "%4"),
            ("a%", "a%"),
            ("%g1", "%g1"),
            ("%1g", "%1g"),
            ("% 1", "% 1"),
            ("%+1", "%+1"),
            ("%%41", "%A"),
            ("%é", "%é"),
            ("%4%31", "%41"),
        ] {
            assert_eq!(decode(text), None, "{text}");
            assert_eq!(decode_lossy(text), kept, "{text}");
        }
    }

    #[test]
    fn escapes_that_are_not_utf8_are_malformed_or_replaced() {
        for text in ["%ff", "%C3", "%C3x", "%ED%A0%80"] {
            assert_eq!(decode(text), None, "{text}");
            assert!(decode_lossy(text).contains('\u{fffd}'), "{text}");
        }
    }

    #[test]
    fn decoded_text_is_not_decoded_again() {
        assert_eq!(decode("%2541").as_deref(), Some("%41"));
        assert_eq!(decode_lossy("%2541"), "%41");
        assert_eq!(decode_form("%2B%2525"), "+%25");
    }

    #[test]
    fn plus_is_a_space_in_forms_only() {
        assert_eq!(decode("a+b").as_deref(), Some("a+b"));
        assert_eq!(decode_lossy("a+b"), "a+b");
        assert_eq!(decode_form("a+b%20c"), "a b c");
    }

    #[test]
    fn encoded_utf8_is_decoded() {
        assert_eq!(decode("Gr%C3%BCezi").as_deref(), Some("Grüezi"));
        assert_eq!(decode("").as_deref(), Some(""));
    }
}
