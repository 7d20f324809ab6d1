//! Sources of lines that have rooms of their own: followed files, and the prefixes of lines with `--prefix-room`.
//!
//! A line of a source goes to the source's room, and to the merged room, whose members are the clients that are in no room.
//! There it is tagged with the name of its source (`access.log: GET /`), unless there is a single source. Clients of JSON get
//! the name apart from the line.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard};

use humphrey_ws::Message;

use crate::room_name::RoomName;

/// Between the name of a source and its line.
const SEPARATOR: &[u8] = b": ";

/// How many names of sources are listed. A further one takes the place of the one that became known first.
const LISTED_MAX: usize = 100;

/// The sources of this program. Clones are cheap.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The source of untagged lines.
    sole: Option<RoomName>,
    listed: Arc<Mutex<Vec<RoomName>>>,
}

impl Sources {
    /// Sources that are known from the start, and those that become known later: by lines (`--prefix-room`), or on other nodes.
    /// `None` if there are neither.
    pub(crate) fn new(names: Vec<RoomName>, has_others: bool) -> Option<Self> {
        let sole = match &names[..] {
            [] if !has_others => return None,
            [sole] if !has_others => Some(sole.clone()),
            _ => None,
        };
        Some(Self {
            sole,
            listed: Arc::new(Mutex::new(names)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RoomName>> {
        self.listed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The names of the sources, in the order in which they became known.
    pub(crate) fn listed(&self) -> Vec<RoomName> {
        self.lock().clone()
    }

    /// Adds a source to the list.
    pub(crate) fn add(&self, name: &RoomName) {
        let mut listed = self.lock();
        if !listed.contains(name) {
            if listed.len() >= LISTED_MAX {
                listed.remove(0);
            }
            listed.push(name.clone());
        }
    }

    /// The line as the merged room gets it.
    pub(crate) fn tagged(&self, name: &RoomName, line: &[u8]) -> Message {
        if self.sole.is_some() {
            return Message::new(line);
        }
        let tag = encode_tag(name.as_str());
        Message::new([tag.as_bytes(), SEPARATOR, line].concat())
    }

    /// Splits a message of the merged room into the name of its source and the line.
    pub(crate) fn untagged<'a>(&'a self, message: &'a Message) -> (Cow<'a, str>, Cow<'a, Message>) {
        if let Some(sole) = &self.sole {
            return (sole.as_str().into(), Cow::Borrowed(message));
        }
        let bytes = message.bytes();
        let at = bytes
            .windows(SEPARATOR.len())
            .position(|two| two == SEPARATOR);
        let tag = at.and_then(|at| Some((std::str::from_utf8(&bytes[..at]).ok()?, at)));
        let Some((tag, at)) = tag else {
            return (RoomName::EVERYONE.into(), Cow::Borrowed(message));
        };
        let line = &bytes[at + SEPARATOR.len()..];
        let line = match message.text() {
            Some(_) => Message::new(line),
            None => Message::new_binary(line),
        };
        (decode_tag(tag), Cow::Owned(line))
    }
}

/// Splits a line at its prefix (`--prefix-room`): `web: GET /` is the line `GET /` of the room `web`. `None` if it has none: the
/// prefix is a valid name of a room, without spaces and control characters.
pub(crate) fn split_prefix(line: &[u8]) -> Option<(RoomName, &[u8])> {
    let at = line
        .iter()
        .position(|byte| *byte == b':' || byte.is_ascii_whitespace())?;
    let rest = line[at..].strip_prefix(b": ")?;
    let name = std::str::from_utf8(&line[..at]).ok()?;
    if name.contains(char::is_control) {
        return None;
    }
    Some((name.parse().ok()?, rest))
}

/// Encodes what could be taken for a separator.
fn encode_tag(name: &str) -> Cow<'_, str> {
    let is_special = |char: char| matches!(char, ':' | '%') || char.is_ascii_control();
    if !name.contains(is_special) {
        return name.into();
    }
    let mut tag = String::with_capacity(name.len() + 8);
    for char in name.chars() {
        match is_special(char) {
            true => tag += &format!("%{:02X}", u32::from(char)),
            false => tag.push(char),
        }
    }
    tag.into()
}

fn decode_tag(tag: &str) -> Cow<'_, str> {
    match tag.contains('%') {
        true => RoomName::from_path(&format!("/{tag}"))
            .map_or(tag.into(), |name| name.as_str().to_owned().into()),
        false => tag.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RoomName {
        text.parse().unwrap()
    }

    #[test]
    fn line_of_one_of_several_sources_is_tagged_with_its_name() {
        let names = ["a.log", "50%: a\nb", "x"].map(name);
        let sources = Sources::new(names.to_vec(), false).unwrap();
        for source in &names {
            for line in [&b"GET: / 200"[..], b"", b": ", b"\xff: x"] {
                let tagged = sources.tagged(source, line);
                let (of, untagged) = sources.untagged(&tagged);
                assert_eq!((&*of, untagged.bytes()), (source.as_str(), line));
                assert_eq!(untagged.text().is_some(), line != b"\xff: x");
            }
        }
        let tagged = sources.tagged(&names[0], b"GET / 200");
        assert_eq!(tagged.text(), Some("a.log: GET / 200"));
        assert_eq!(sources.listed(), names);
    }

    #[test]
    fn line_of_a_single_source_is_sent_as_it_is() {
        let sources = Sources::new(vec![name("a.log")], false).unwrap();
        let tagged = sources.tagged(&name("a.log"), b"x: y");
        assert_eq!(tagged.text(), Some("x: y"));
        let (of, untagged) = sources.untagged(&tagged);
        assert_eq!((&*of, untagged.text()), ("a.log", Some("x: y")));
        assert!(Sources::new(Vec::new(), false).is_none());
        let by_prefix = Sources::new(Vec::new(), true).unwrap();
        by_prefix.add(&name("web"));
        by_prefix.add(&name("web"));
        assert_eq!(by_prefix.listed(), [name("web")]);
        assert_eq!(by_prefix.tagged(&name("web"), b"x").text(), Some("web: x"));
        for n in 0..LISTED_MAX {
            by_prefix.add(&name(&format!("room-{n}")));
        }
        let listed = by_prefix.listed();
        assert_eq!((listed.len(), &listed[0]), (LISTED_MAX, &name("room-0")));
    }

    #[test]
    fn prefix_is_a_room_name_before_colon_and_space() {
        let split = |line: &'static str| {
            let split = split_prefix(line.as_bytes());
            split.map(|(name, rest)| {
                let rest = std::str::from_utf8(rest).unwrap();
                (name.as_str().to_owned(), rest)
            })
        };
        assert_eq!(split("web: GET /"), Some(("web".into(), "GET /")));
        assert_eq!(split("web-1/api: a: b"), Some(("web-1/api".into(), "a: b")));
        assert_eq!(split("web: "), Some(("web".into(), "")));
        for line in [
            "",
            ":",
            ": x",
            "no prefix: x",
            "http://a.example/: x",
            "12:30:00 x",
            "web:x",
            "services:",
            "..: x",
            "a\u{1b}[0m: x",
        ] {
            assert_eq!(split(line), None, "{line:?}");
        }
    }
}
