//! Parses the payload of received close frames (RFC 6455 §5.5.1).

use super::close::CloseCode;
use super::error::Violation;

/// The code and reason of a received close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    /// `None` if the payload was empty, which is reported as 1005 (RFC 6455 §7.1.5).
    pub(crate) code: Option<CloseCode>,
    /// At most [`REASON_BYTES_MAX`](super::close::REASON_BYTES_MAX) bytes; empty if none was given.
    pub(crate) reason: String,
}

/// Parses the unmasked payload of a close frame (RFC 6455 §5.5.1).
pub(crate) fn parse(payload: &[u8]) -> Result<CloseFrame, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        // RFC 6455 §5.5.1: a body that is not empty begins with the two bytes of the code.
        return if payload.is_empty() {
            Ok(CloseFrame {
                code: None,
                reason: String::new(),
            })
        } else {
            Err(Violation::CloseTooShort)
        };
    };
    let code =
        CloseCode::try_from(u16::from_be_bytes(*code)).map_err(|_| Violation::CloseCodeInvalid)?;
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReasonInvalid)?;
    Ok(CloseFrame {
        code: Some(code),
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_payload_is_parsed_as_no_code() {
        let frame = parse(b"").unwrap();
        assert_eq!(
            frame,
            CloseFrame {
                code: None,
                reason: String::new()
            }
        );
    }

    #[test]
    fn code_and_reason_are_parsed() {
        let frame = parse(b"\x03\xE8").unwrap();
        assert_eq!((frame.code, &*frame.reason), (Some(CloseCode::NORMAL), ""));
        let mut payload = 4001u16.to_be_bytes().to_vec();
        payload.extend_from_slice("täglich".as_bytes());
        let frame = parse(&payload).unwrap();
        assert_eq!(
            (frame.code, &*frame.reason),
            (Some(CloseCode::try_from(4001).unwrap()), "täglich")
        );
    }

    #[test]
    fn malformed_payload_is_refused_with_its_violation() {
        assert_eq!(parse(b"\x03"), Err(Violation::CloseTooShort));
        for code in [
            0u16,
            999,
            1004,
            1005,
            1006,
            1015,
            1016,
            2999,
            5000,
            u16::MAX,
        ] {
            assert_eq!(
                parse(&code.to_be_bytes()),
                Err(Violation::CloseCodeInvalid),
                "{code}"
            );
        }
        assert_eq!(parse(b"\x03\xE8ok\xFF"), Err(Violation::CloseReasonInvalid));
        assert_eq!(parse(b"\x03\xE8\xC3"), Err(Violation::CloseReasonInvalid));
    }
}
