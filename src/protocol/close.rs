//! Close codes and reasons (RFC 6455 §7.4).

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The maximum length of a close reason in bytes: a control frame's 125 bytes minus 2 for the code (RFC 6455 §5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// What stands before the wait in a close reason.
const RETRY_AFTER: &str = "retry-after=";

/// The close reason of a server that restarts. It tells the client how many seconds to wait before it reconnects.
pub(crate) fn restart_reason(wait: Duration) -> String {
    let (seconds, millis) = (wait.as_secs(), wait.subsec_millis());
    format!("server is restarting, {RETRY_AFTER}{seconds}.{millis:03}")
}

/// How long a server that restarts asks its client to wait, if it does ([`restart_reason`]).
#[cfg(feature = "client")]
pub(crate) fn retry_after(code: Option<CloseCode>, reason: &str) -> Option<Duration> {
    if code != Some(CloseCode::SERVICE_RESTART) {
        return None;
    }
    let (_, wait) = reason.split_once(RETRY_AFTER)?;
    let end = wait.find(|c: char| !c.is_ascii_digit() && c != '.');
    let seconds: f64 = wait[..end.unwrap_or(wait.len())].parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A close code that a close frame may carry (RFC 6455 §7.4 and the IANA registry).
///
/// Valid codes are 1000–1003, 1007–1014, 3000–3999 (registered with IANA) and 4000–4999 (for applications). 1004–1006 and
/// 1015 are never sent, so no `CloseCode` has these values.
///
/// ```
/// use humphrey_ws::CloseCode;
///
/// const LOGGED_OUT: CloseCode = CloseCode::application(4001);
/// assert_eq!(LOGGED_OUT.get(), 4001);
/// assert_eq!(CloseCode::try_from(4001)?, LOGGED_OUT);
/// assert_eq!(CloseCode::GOING_AWAY.to_string(), "1001 (going away)");
/// assert!(CloseCode::try_from(1006).is_err());
/// # Ok::<(), humphrey_ws::InvalidCloseCode>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the purpose of the connection has been fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// 1001: the server is shutting down, or the user left the page.
    pub const GOING_AWAY: Self = Self(1001);
    /// 1002: the peer violated the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1003: the peer sent a type of data that is not accepted, such as binary where text is expected.
    pub const UNSUPPORTED_DATA: Self = Self(1003);
    /// 1007: the payload does not match the message type, such as text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: the message violates a policy. It is meant for cases that no other code fits.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: the message is larger than the receiver accepts.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1010: the client expected an extension that the server did not agree to.
    pub const MANDATORY_EXTENSION: Self = Self(1010);
    /// 1011: the server hit an unexpected condition.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the service is restarting. Clients reconnect after a random delay, or after the one that the reason names
    /// ([`AsyncSender::shutdown_over`](crate::AsyncSender::shutdown_over)).
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 1013: the service is overloaded. Clients try again later.
    pub const TRY_AGAIN_LATER: Self = Self(1013);
    /// 1014: a gateway received an invalid response from the upstream server.
    pub const BAD_GATEWAY: Self = Self(1014);

    /// 3000: the client is not authenticated, or its authentication has expired. It is registered with IANA as "Unauthorized".
    /// The server closes expired sessions with it ([`Accept::expires_at`](crate::Accept::expires_at)). A client may reconnect with new credentials.
    pub const UNAUTHORIZED: Self = Self(3000);

    /// Creates an application-defined close code, 4000–4999, which is reserved for private use (RFC 6455 §7.4.2).
    ///
    /// A page reads it from `event.code` of its `close` event. For a number known only at run time, and for codes registered
    /// with IANA (3000–3999), use `CloseCode::try_from`.
    ///
    /// # Panics
    ///
    /// If the code is outside 4000–4999. In a constant, that is a compile-time error.
    ///
    /// ```
    /// use humphrey_ws::{AsyncWebsocketApp, CloseCode};
    ///
    /// /// The page shows its login form when it gets this code.
    /// const LOGGED_OUT: CloseCode = CloseCode::application(4001);
    ///
    /// let app = AsyncWebsocketApp::<()>::new().with_message_handler(|stream, message, _| {
    ///     if message.text() == Some("log out") {
    ///         stream.close(LOGGED_OUT, "logged out");
    ///     }
    /// });
    /// ```
    ///
    /// ```compile_fail
    /// const NOT_OURS: humphrey_ws::CloseCode = humphrey_ws::CloseCode::application(1000);
    /// ```
    #[track_caller]
    pub const fn application(code: u16) -> Self {
        assert!(
            code >= 4000 && code <= 4999,
            "an application-defined close code must be between 4000 and 4999 (RFC 6455 §7.4.2)"
        );
        Self(code)
    }

    /// Returns the number that a close frame carries.
    ///
    /// ```
    /// use humphrey_ws::CloseCode;
    ///
    /// assert_eq!(CloseCode::NORMAL.get(), 1000);
    /// ```
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns a short description of the code.
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
            3000 => "unauthorized",
            3001..=3999 => "registered",
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

/// An error: the number is not allowed in a close frame (RFC 6455 §7.4).
///
/// ```
/// use humphrey_ws::{CloseCode, InvalidCloseCode};
///
/// let invalid: InvalidCloseCode = CloseCode::try_from(999).unwrap_err();
/// assert_eq!(invalid.0, 999);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidCloseCode(pub u16);

impl fmt::Display for InvalidCloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not allowed as the code of a close frame (RFC 6455 §7.4)",
            self.0
        )
    }
}

impl Error for InvalidCloseCode {}

/// Truncates a reason at a character boundary so that it fits in a close frame (RFC 6455 §5.5).
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

    #[cfg(feature = "client")]
    #[test]
    fn wait_of_a_restarting_server_is_read_back() {
        let restart = Some(CloseCode::SERVICE_RESTART);
        for wait in [0, 1, 999, 1_250, 3_600_000].map(Duration::from_millis) {
            let reason = restart_reason(wait);
            assert!(reason.len() <= REASON_BYTES_MAX);
            assert_eq!(retry_after(restart, &reason), Some(wait));
            assert_eq!(retry_after(Some(CloseCode::GOING_AWAY), &reason), None);
            assert_eq!(retry_after(None, &reason), None);
        }
        let longest = restart_reason(Duration::MAX);
        assert!(longest.len() <= REASON_BYTES_MAX, "{longest}");
        for (reason, wait) in [
            ("retry-after=2", Some(2_000)),
            ("see you, retry-after=0.5 or later", Some(500)),
            ("retry-after=", None),
            ("retry-after=-1", None),
            ("retry-after=1.2.3", None),
            ("retry-after=99999999999999999999999", None),
            ("", None),
        ] {
            let wait = wait.map(Duration::from_millis);
            assert_eq!(retry_after(restart, reason), wait, "{reason}");
        }
    }

    #[test]
    fn only_codes_allowed_on_the_wire_are_accepted() {
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
    fn every_constant_is_valid_and_has_a_unique_name() {
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
            CloseCode::UNAUTHORIZED,
            CloseCode(3001),
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
    fn application_codes_are_4000_to_4999() {
        for code in [0, 1000, 3000, 3999, 4000, 4500, 4999, 5000, u16::MAX] {
            let made = std::panic::catch_unwind(|| CloseCode::application(code));
            assert_eq!(made.is_ok(), (4000..=4999).contains(&code), "{code}");
        }
    }

    #[test]
    fn long_reason_is_truncated_at_a_character_boundary() {
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
