//! Violations of RFC 6455 by the peer, and their close codes.

use std::error::Error;
use std::fmt;

use super::close::CloseCode;

/// A violation of RFC 6455 by the peer, which ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Violation {
    /// An RSV bit without an extension that gives it a meaning (§5.2).
    ReservedBits,
    /// An opcode that the RFC reserves (§5.2).
    ReservedOpcode,
    /// A client frame without a mask (§5.1).
    UnmaskedFrame,
    /// A server frame with a mask (§5.1).
    MaskedFrame,
    /// A length in more bytes than needed (§5.2).
    NonMinimalLength,
    /// A 64-bit length with the top bit set (§5.2).
    LengthTopBit,
    /// A control frame without FIN (§5.5).
    FragmentedControl,
    /// A control frame of more than 125 bytes (§5.5).
    ControlTooLong,
    /// A continuation frame outside of a message (§5.4).
    UnexpectedContinuation,
    /// A new message before the end of the previous one (§5.4).
    ExpectedContinuation,
    /// A message over the limit (§7.4.1, §10.4).
    MessageTooBig,
    /// A text message that is not UTF-8 (§8.1).
    InvalidUtf8,
    /// A compressed message that is not a valid deflate stream (RFC 7692 §7.2.2).
    #[cfg_attr(not(feature = "deflate"), allow(dead_code))]
    InvalidDeflate,
    /// A close frame with a body of one byte (§5.5.1).
    CloseTooShort,
    /// A close code that must not be sent (§7.4).
    CloseCodeInvalid,
    /// A close reason that is not UTF-8 (§5.5.1, §8.1).
    CloseReasonInvalid,
}

impl Violation {
    /// Returns the close code (RFC 6455 §7.4.1).
    pub(crate) const fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 | Self::InvalidDeflate | Self::CloseReasonInvalid => {
                CloseCode::INVALID_PAYLOAD
            }
            Self::MessageTooBig => CloseCode::MESSAGE_TOO_BIG,
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::UnmaskedFrame
            | Self::MaskedFrame
            | Self::NonMinimalLength
            | Self::LengthTopBit
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::UnexpectedContinuation
            | Self::ExpectedContinuation
            | Self::CloseTooShort
            | Self::CloseCodeInvalid => CloseCode::PROTOCOL_ERROR,
        }
    }

    /// Returns a description that fits into a close reason (123 bytes).
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits must be zero (RFC 6455 §5.2)",
            Self::ReservedOpcode => "this opcode is reserved (RFC 6455 §5.2)",
            Self::UnmaskedFrame => "client frames must be masked (RFC 6455 §5.1)",
            Self::MaskedFrame => "server frames must not be masked (RFC 6455 §5.1)",
            Self::NonMinimalLength => "lengths must take the fewest bytes (RFC 6455 §5.2)",
            Self::LengthTopBit => "the top bit of a length must be zero (RFC 6455 §5.2)",
            Self::FragmentedControl => "control frames must not be fragmented (RFC 6455 §5.5)",
            Self::ControlTooLong => "control frames carry at most 125 bytes (RFC 6455 §5.5)",
            Self::UnexpectedContinuation => "there is no message to continue (RFC 6455 §5.4)",
            Self::ExpectedContinuation => {
                "the previous message must be finished first (RFC 6455 §5.4)"
            }
            Self::MessageTooBig => "the message is larger than this endpoint accepts",
            Self::InvalidDeflate => {
                "a compressed message must be a deflate stream (RFC 7692 §7.2.2)"
            }
            Self::InvalidUtf8 => "text messages must be UTF-8 (RFC 6455 §8.1)",
            Self::CloseTooShort => "a close frame begins with a two-byte code (RFC 6455 §5.5.1)",
            Self::CloseCodeInvalid => "this close code must not be sent (RFC 6455 §7.4)",
            Self::CloseReasonInvalid => "close reasons must be UTF-8 (RFC 6455 §5.5.1)",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::close::REASON_BYTES_MAX;

    const ALL: [Violation; 16] = [
        Violation::ReservedBits,
        Violation::ReservedOpcode,
        Violation::UnmaskedFrame,
        Violation::MaskedFrame,
        Violation::NonMinimalLength,
        Violation::LengthTopBit,
        Violation::FragmentedControl,
        Violation::ControlTooLong,
        Violation::UnexpectedContinuation,
        Violation::ExpectedContinuation,
        Violation::MessageTooBig,
        Violation::InvalidUtf8,
        Violation::InvalidDeflate,
        Violation::CloseTooShort,
        Violation::CloseCodeInvalid,
        Violation::CloseReasonInvalid,
    ];

    #[test]
    fn every_violation_is_its_own_close_reason() {
        let mut seen = std::collections::HashSet::new();
        for violation in ALL {
            let reason = violation.to_string();
            assert!(
                !reason.is_empty() && reason.len() <= REASON_BYTES_MAX,
                "{reason}"
            );
            assert!(seen.insert(reason));
        }
    }

    #[test]
    fn utf8_is_1007_size_is_1009_and_all_else_is_1002() {
        // RFC 6455 §7.4.1
        for violation in ALL {
            let expected = match violation {
                Violation::InvalidUtf8
                | Violation::InvalidDeflate
                | Violation::CloseReasonInvalid => 1007,
                Violation::MessageTooBig => 1009,
                _ => 1002,
            };
            assert_eq!(violation.close_code().get(), expected, "{violation}");
        }
    }
}
