//! Names of rooms, as they stand in a URL.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name, in bytes: what the library allows, less what the program puts in front.
pub(crate) const NAME_BYTES_MAX: usize = 240;

/// The name of a room; empty for everyone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RoomName(Arc<str>);

/// Why something is no name of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadName {
    Empty,
    TooLong,
    Dots,
    Nul,
    Encoding,
}

impl RoomName {
    pub(crate) const EVERYONE_PATH: &str = "/";
    /// Everyone's name.
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

    /// What a path names, as it was sent: everything behind its first `/`, decoded (RFC 3986 §2.1). `/` is everyone.
    pub(crate) fn of_path(path: &str) -> Result<Self, BadName> {
        let encoded = path.strip_prefix('/').unwrap_or(path);
        let name = decode(encoded).ok_or(BadName::Encoding)?;
        match name.parse() {
            Err(BadName::Empty) => Ok(Self::everyone()),
            parsed => parsed,
        }
    }
}

/// A name as it is, without any encoding.
impl FromStr for RoomName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        match name {
            "" => Err(BadName::Empty),
            // To a browser these are directories, however they are encoded (WHATWG URL §4.1), and the library refuses them.
            _ if name
                .split(['/', '\\'])
                .any(|part| part == "." || part == "..") =>
            {
                Err(BadName::Dots)
            }
            _ if name.contains('\0') => Err(BadName::Nul),
            _ if name.len() > NAME_BYTES_MAX => Err(BadName::TooLong),
            _ => Ok(Self(name.into())),
        }
    }
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a room needs a name"),
            Self::TooLong => write!(f, "a room's name may have {NAME_BYTES_MAX} bytes"),
            Self::Dots => f.write_str(
                "'.' and '..' can't be the name of a room, nor a part of it between slashes",
            ),
            Self::Nul => f.write_str("the name of a room can't have a NUL in it"),
            Self::Encoding => f.write_str("a room's name is UTF-8, percent-encoded"),
        }
    }
}

impl std::error::Error for BadName {}

/// Decodes `%` and two hexadecimal digits; `None` if a `%` stands before anything else, or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => (digit(rest.next()?)? << 4) | digit(rest.next()?)?,
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_room_and_its_root_is_everyone() {
        let name = |path| RoomName::of_path(path).unwrap();
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
    fn what_is_no_name_is_refused() {
        for (path, why) in [
            ("/%", BadName::Encoding),
            ("/%4", BadName::Encoding),
            ("/%zz", BadName::Encoding),
            ("/%+1", BadName::Encoding),
            ("/%FF", BadName::Encoding),
            ("/..", BadName::Dots),
            ("/%2e", BadName::Dots),
            ("/a%2f..%2fb", BadName::Dots),
            ("/a%5c.", BadName::Dots),
            ("/a%00", BadName::Nul),
        ] {
            assert_eq!(RoomName::of_path(path), Err(why), "{path}");
        }
        let long = format!("/{}", "x".repeat(241));
        assert_eq!(RoomName::of_path(&long), Err(BadName::TooLong));
        assert_eq!("".parse::<RoomName>(), Err(BadName::Empty));
    }
}
