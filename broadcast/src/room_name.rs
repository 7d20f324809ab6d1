//! Names of rooms, and their encoding in URLs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name, in bytes: the library's limit less the program's prefix.
pub(crate) const NAME_BYTES_MAX: usize = 240;

/// The name of a room; empty for everyone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct RoomName(Arc<str>);

/// Why a string is not a valid room name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidRoomName {
    Empty,
    TooLong,
    DotSegment,
    Nul,
    Encoding,
}

impl RoomName {
    pub(crate) const EVERYONE_PATH: &str = "/";
    /// The name that stands for everyone.
    pub(crate) const EVERYONE: &str = "";

    pub(crate) fn everyone() -> Self {
        Self::default()
    }

    pub(crate) fn is_everyone(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the path of a URL: everything after the first `/`, percent-decoded (RFC 3986 §2.1). `/` is everyone.
    pub(crate) fn from_path(path: &str) -> Result<Self, InvalidRoomName> {
        let encoded = path.strip_prefix('/').unwrap_or(path);
        let name = decode(encoded).ok_or(InvalidRoomName::Encoding)?;
        match name.parse() {
            Err(InvalidRoomName::Empty) => Ok(Self::everyone()),
            parsed => parsed,
        }
    }
}

/// Parses a name that is not encoded.
impl FromStr for RoomName {
    type Err = InvalidRoomName;

    fn from_str(name: &str) -> Result<Self, InvalidRoomName> {
        match name {
            "" => Err(InvalidRoomName::Empty),
            // Browsers resolve these as directories, even percent-encoded (WHATWG URL §4.1), and the library rejects
            // them.
            _ if name
                .split(['/', '\\'])
                .any(|part| part == "." || part == "..") =>
            {
                Err(InvalidRoomName::DotSegment)
            }
            _ if name.contains('\0') => Err(InvalidRoomName::Nul),
            _ if name.len() > NAME_BYTES_MAX => Err(InvalidRoomName::TooLong),
            _ => Ok(Self(name.into())),
        }
    }
}

impl fmt::Display for InvalidRoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a room needs a name (omit --room for everyone)"),
            Self::TooLong => write!(
                f,
                "the name of a room can't be longer than {NAME_BYTES_MAX} bytes"
            ),
            Self::DotSegment => f.write_str(
                "the name of a room can't be '.' or '..', nor contain them between slashes",
            ),
            Self::Nul => f.write_str("the name of a room can't contain a NUL character"),
            Self::Encoding => f.write_str("the name of a room must be percent-encoded UTF-8"),
        }
    }
}

impl std::error::Error for InvalidRoomName {}

/// Percent-decodes a string. The decoder of the library is not public. `None` if a `%` is not followed by two hexadecimal digits, or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => (hex_digit(rest.next()?)? << 4) | hex_digit(rest.next()?)?,
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

fn hex_digit(byte: u8) -> Option<u8> {
    let hex_digit = char::from(byte).to_digit(16)?;
    u8::try_from(hex_digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_names_a_room_and_root_is_everyone() {
        let name = |path| RoomName::from_path(path).unwrap();
        assert!(name("/").is_everyone());
        for (path, room) in [
            ("/news", "news"),
            ("/Gr%C3%BCezi%20mitenand", "Grüezi mitenand"),
            ("/a/b", "a/b"),
            ("/a%2fb", "a/b"),
            ("//", "/"),
            ("/100%25", "100%"),
            ("/a+b", "a+b"),
            ("/...", "..."),
        ] {
            assert_eq!(name(path).as_str(), room);
        }
        assert_eq!(name(&format!("/{}", "%41".repeat(240))).as_str().len(), 240);
    }

    #[test]
    fn invalid_room_name_is_refused() {
        for (path, why) in [
            ("/%", InvalidRoomName::Encoding),
            ("/%4", InvalidRoomName::Encoding),
            ("/%zz", InvalidRoomName::Encoding),
            ("/%+1", InvalidRoomName::Encoding),
            ("/%FF", InvalidRoomName::Encoding),
            ("/..", InvalidRoomName::DotSegment),
            ("/%2e", InvalidRoomName::DotSegment),
            ("/a%2f..%2fb", InvalidRoomName::DotSegment),
            ("/a%5c.", InvalidRoomName::DotSegment),
            ("/a%00", InvalidRoomName::Nul),
        ] {
            assert_eq!(RoomName::from_path(path), Err(why), "{path}");
        }
        let long = format!("/{}", "x".repeat(241));
        assert_eq!(RoomName::from_path(&long), Err(InvalidRoomName::TooLong));
        assert_eq!("".parse::<RoomName>(), Err(InvalidRoomName::Empty));
    }
}
