//! Close codes and the payload of close frames (RFC 6455 §5.5.1, §7.4).

use std::error::Error;
use std::fmt;

use super::error::Violation;

/// Longest reason of a close frame: 125 bytes of a control frame less 2 of the code
/// (RFC 6455 §5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// Why a WebSocket connection is closed: a code that may stand in a close frame
/// (RFC 6455 §7.4 and the IANA registry).
///
/// That is 1000–1003, 1007–1014, 3000–3999 (registered with IANA) and 4000–4999 (for you to use).
/// 1004–1006 and 1015 never travel, so they cannot be made.
///
/// ```
/// use humphrey_ws::CloseCode;
///
/// let own = CloseCode::try_from(4001)?;
/// assert_eq!(own.get(), 4001);
/// assert_eq!(CloseCode::GOING_AWAY.to_string(), "1001 (going away)");
/// assert!(CloseCode::try_from(1006).is_err());
/// # Ok::<(), humphrey_ws::InvalidCloseCode>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection has been fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server goes down, or the page is left.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: a kind of data that is not accepted (say, binary where text is expected).
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1007: the data does not fit the kind of message (text that is not UTF-8).
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: the message is against a policy; for when no other code fits.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: the message is larger than what is accepted.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1010: the client expected an extension that the server did not agree to.
    pub const MANDATORY_EXTENSION: Self = Self(1010);
    /// 1011: something unexpected went wrong in the server.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the service restarts; reconnect after a random delay.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: the service is overloaded; try again later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
    /// 1014: a gateway had an invalid answer from the server behind it.
    pub const BAD_GATEWAY: Self = Self(1014);

    /// The number as it travels.
    ///
    /// ```
    /// use humphrey_ws::CloseCode;
    ///
    /// assert_eq!(CloseCode::NORMAL.get(), 1000);
    /// ```
    pub const fn get(self) -> u16 {
        self.0
    }

    /// What the number means, in few words.
    const fn name(self) -> &'static str {
        match self.0 {
            1000 => "normal",
            1001 => "going away",
            1002 => "protocol error",
            1003 => "unsupported data",
            1007 => "invalid payload",
            1008 => "policy violation",
            1009 => "message too big",
            1010 => "mandatory extension",
            1011 => "internal error",
            1012 => "service restart",
            1013 => "try again later",
            1014 => "bad gateway",
            3000..=3999 => "registered",
            _ => "private use",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.name())
    }
}

impl TryFrom<u16> for CloseCode {
    type Error = InvalidCloseCode;

    /// Accepts exactly the codes that may appear on the wire (RFC 6455 §7.4).
    fn try_from(code: u16) -> Result<Self, InvalidCloseCode> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(Self(code)),
            _ => Err(InvalidCloseCode(code)),
        }
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code.0
    }
}

/// A number that must not stand in a close frame (RFC 6455 §7.4).
///
/// ```
/// use humphrey_ws::{CloseCode, InvalidCloseCode};
///
/// assert_eq!(CloseCode::try_from(999), Err(InvalidCloseCode(999)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidCloseCode(pub u16);

impl fmt::Display for InvalidCloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not a close code that may be sent (RFC 6455 §7.4)",
            self.0
        )
    }
}

impl Error for InvalidCloseCode {}

/// What a received close frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseFrame {
    /// `None`: the payload was empty (read as 1005, RFC 6455 §7.1.5).
    pub(crate) code: Option<CloseCode>,
    /// At most [`REASON_BYTES_MAX`] bytes; empty if none was given.
    pub(crate) reason: String,
}

/// Reads the unmasked payload of a close frame (RFC 6455 §5.5.1).
pub(crate) fn parse(payload: &[u8]) -> Result<CloseFrame, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        // RFC 6455 §5.5.1: if there is a body, it begins with the two bytes of the code.
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

/// As much of the reason as fits a close frame, cut between characters (RFC 6455 §5.5).
pub(crate) fn reason_prefix(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_codes_that_may_travel_are_accepted() {
        // RFC 6455 §7.4.1, §7.4.2 and the IANA registry (1012–1014).
        for code in 0..=u16::MAX {
            let allowed = (1000..=1014).contains(&code) && !(1004..=1006).contains(&code)
                || (3000..5000).contains(&code);
            match CloseCode::try_from(code) {
                Ok(made) => {
                    assert!(allowed, "{code}");
                    assert_eq!((made.get(), u16::from(made)), (code, code));
                }
                Err(error) => {
                    assert!(!allowed, "{code}");
                    assert_eq!(error, InvalidCloseCode(code));
                    assert!(error.to_string().contains(&code.to_string()));
                }
            }
        }
    }

    #[test]
    fn every_constant_may_travel_and_has_its_own_name() {
        let codes = [
            CloseCode::NORMAL,
            CloseCode::GOING_AWAY,
            CloseCode::PROTOCOL_ERROR,
            CloseCode::UNSUPPORTED_DATA,
            CloseCode::INVALID_PAYLOAD,
            CloseCode::POLICY_VIOLATION,
            CloseCode::MESSAGE_TOO_BIG,
            CloseCode::MANDATORY_EXTENSION,
            CloseCode::INTERNAL_ERROR,
            CloseCode::SERVICE_RESTART,
            CloseCode::TRY_AGAIN_LATER,
            CloseCode::BAD_GATEWAY,
            CloseCode(3000),
            CloseCode(4999),
        ];
        let mut names = std::collections::HashSet::new();
        for code in codes {
            assert_eq!(CloseCode::try_from(code.get()), Ok(code));
            assert_eq!(
                code.to_string(),
                format!("{} ({})", code.get(), code.name())
            );
            assert!(names.insert(code.name()), "{code}");
        }
        assert_eq!(CloseCode(4000).to_string(), "4000 (private use)");
    }

    #[test]
    fn an_empty_payload_is_a_close_without_a_code() {
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
    fn code_and_reason_are_read() {
        let frame = parse(b"\x03\xE8").unwrap();
        assert_eq!((frame.code, &*frame.reason), (Some(CloseCode::NORMAL), ""));
        let mut payload = 4001u16.to_be_bytes().to_vec();
        payload.extend_from_slice("täglich".as_bytes());
        let frame = parse(&payload).unwrap();
        assert_eq!(
            (frame.code, &*frame.reason),
            (Some(CloseCode(4001)), "täglich")
        );
    }

    #[test]
    fn malformed_close_payloads_are_told_apart() {
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

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(reason_prefix(""), "");
        assert_eq!(reason_prefix(&"a".repeat(123)).len(), 123);
        assert_eq!(reason_prefix(&"a".repeat(124)).len(), 123);
        for lead in 0..4 {
            let reason = format!("{}{}", "a".repeat(lead), "🦀".repeat(40));
            let prefix = reason_prefix(&reason);
            assert!(reason.starts_with(prefix));
            assert!((120..=123).contains(&prefix.len()), "{lead}");
        }
    }
}
