//! Secret tokens: of publishers, of readers, of administrators, and of `listen` and `send`.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use subtle::ConstantTimeEq;

use crate::option_file;

/// Longest token, in bytes; detects that an option names the wrong file.
const TOKEN_BYTES_MAX: usize = 4096;

/// A secret token. It is never printed.
#[derive(Clone)]
pub(crate) struct Token(String);

/// Why a text is not a token. It does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidToken {
    Empty,
    TooLong,
    NotVisible,
}

impl Token {
    pub(crate) fn new(token: &str) -> Result<Self, InvalidToken> {
        match token.len() {
            0 => Err(InvalidToken::Empty),
            n if n > TOKEN_BYTES_MAX => Err(InvalidToken::TooLong),
            _ if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Self(token.to_owned())),
            _ => Err(InvalidToken::NotVisible),
        }
    }

    /// Reads the token from a file; surrounding whitespace is ignored.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let text = option_file::read(path, TOKEN_BYTES_MAX as u64 + 3)?;
        Self::new(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Reads the token from the file that an option names. The error names both.
    pub(crate) fn read_for(option: &str, path: &Path) -> io::Result<Self> {
        option_file::named(option, path, Self::read(path))
    }

    /// Whether a client has presented this token. The comparison takes constant time for tokens of the same length.
    pub(crate) fn is(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }

    /// The secret itself, for a key, or for the request of a client.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

/// The token in an `Authorization` header (RFC 6750 §2.1); `None` if the header is of another scheme, or has no token.
pub(crate) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty()).then_some(token)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the token is empty"),
            Self::TooLong => write!(f, "the token is longer than {TOKEN_BYTES_MAX} bytes"),
            Self::NotVisible => f.write_str("the token contains spaces or non-ASCII characters"),
        }
    }
}

impl Error for InvalidToken {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_must_be_visible_ascii_and_is_never_printed() {
        let token = Token::new("s3cret-._~+/=").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        for bad in ["", "two words", "Zürich", "line\n", &"x".repeat(4097)] {
            let error = Token::new(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn only_the_whole_token_is_accepted() {
        let token = Token::new("s3cret").unwrap();
        assert!(token.is("s3cret"));
        for wrong in ["", "s3cre", "s3crets", "S3CRET", "s3cret s3cret"] {
            assert!(!token.is(wrong), "{wrong}");
        }
    }

    #[test]
    fn bearer_token_is_read_from_the_header() {
        for header in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "] {
            assert_eq!(bearer(header), Some("s3cret"), "{header}");
        }
        for header in ["", "s3cret", "Bearer", "Bearer ", "Basic s3cret"] {
            assert_eq!(bearer(header), None, "{header}");
        }
    }

    #[test]
    fn unreadable_file_is_named_with_its_option() {
        let error = Token::read_for("--x", Path::new("/nonexistent/token")).unwrap_err();
        assert!(error.to_string().starts_with("--x /nonexistent/token: "));
    }
}
