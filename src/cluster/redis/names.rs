//! The names of channels and keys. All begin with the prefix of the app, since pub/sub ignores the number of the database.
//!
//! | name | what |
//! |---|---|
//! | `{prefix}:everyone`, `{prefix}:nodes`, `{prefix}:node:<8 hex digits>`, `{prefix}:room:<name>` | channels |
//! | `{prefix}:{history:<room>}:position` | hash: the position of a history, and what it is valid for |
//! | `{prefix}:{history:<room>}:messages` | list: the kept envelopes, oldest first |
//! | `{prefix}:counter:<8 hex digits>` | string: the counter of a node's last append |
//!
//! Both keys of a room have the same hash tag, which is never empty, whatever the room is called.

use std::sync::Arc;

use super::resp::put_argument;
use crate::cluster::broker::Channel;

/// The channels and keys of one app.
#[derive(Debug)]
pub(super) struct RedisNames {
    /// With the colon.
    prefix: Box<[u8]>,
    /// The room of the last message. Messages of a room often arrive in succession.
    last_room: Option<Arc<str>>,
}

impl RedisNames {
    pub(super) fn new(app: &str) -> Self {
        Self {
            prefix: format!("{app}:").into_bytes().into(),
            last_room: None,
        }
    }

    /// Appends the name of a channel as an argument.
    pub(super) fn put_channel(&self, out: &mut Vec<u8>, channel: &Channel) {
        match channel {
            Channel::Everyone => put_argument(out, &[&self.prefix, b"everyone"]),
            Channel::Nodes => put_argument(out, &[&self.prefix, b"nodes"]),
            Channel::Node(node) => put_argument(out, &[&self.prefix, b"node:", &hex(*node)]),
            Channel::Room(name) => self.put_room_channel(out, name),
        }
    }

    pub(super) fn put_room_channel(&self, out: &mut Vec<u8>, room: &str) {
        put_argument(out, &[&self.prefix, b"room:", room.as_bytes()]);
    }

    /// Appends the names of the keys of a room as two arguments.
    pub(super) fn put_room_keys(&self, out: &mut Vec<u8>, room: &str) {
        for end in [b"}:position", b"}:messages"] {
            put_argument(out, &[&self.prefix, b"{history:", room.as_bytes(), end]);
        }
    }

    /// Appends the name of the key with the counter of a node as an argument.
    pub(super) fn put_counter_key(&self, out: &mut Vec<u8>, node: u32) {
        put_argument(out, &[&self.prefix, b"counter:", &hex(node)]);
    }

    /// Returns the channel with this name. `None` if it is not one of this app.
    pub(super) fn channel(&mut self, name: &[u8]) -> Option<Channel> {
        let name = name.strip_prefix(&*self.prefix)?;
        if let Some(room) = name.strip_prefix(b"room:") {
            return self.room(room).map(Channel::Room);
        }
        match name {
            b"everyone" => Some(Channel::Everyone),
            b"nodes" => Some(Channel::Nodes),
            _ => number(name.strip_prefix(b"node:")?).map(Channel::Node),
        }
    }

    fn room(&mut self, name: &[u8]) -> Option<Arc<str>> {
        if let Some(last) = &self.last_room
            && last.as_bytes() == name
        {
            return Some(last.clone());
        }
        let room: Arc<str> = std::str::from_utf8(name).ok()?.into();
        self.last_room = Some(room.clone());
        Some(room)
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex(number: u32) -> [u8; 8] {
    std::array::from_fn(|at| DIGITS[(number >> (28 - 4 * at) & 15) as usize])
}

/// Returns the number of exactly 8 lower-case hexadecimal digits.
fn number(digits: &[u8]) -> Option<u32> {
    let digits: &[u8; 8] = digits.try_into().ok()?;
    digits.iter().try_fold(0, |number, digit| {
        let value = DIGITS.iter().position(|of| of == digit)?;
        Some(number << 4 | value as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> RedisNames {
        RedisNames::new("app")
    }

    /// Returns the arguments that were appended.
    fn arguments(put: impl FnOnce(&RedisNames, &mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&names(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_channel_is_recognised_by_its_name() {
        for (channel, name) in [
            (Channel::Everyone, "app:everyone"),
            (Channel::Nodes, "app:nodes"),
            (Channel::Node(0), "app:node:00000000"),
            (Channel::Node(0xfedc_ba98), "app:node:fedcba98"),
            (Channel::Room("".into()), "app:room:"),
            (
                Channel::Room("room:}{ ü\r\n".into()),
                "app:room:room:}{ ü\r\n",
            ),
            (Channel::Room("everyone".into()), "app:room:everyone"),
        ] {
            let argument = arguments(|names, out| names.put_channel(out, &channel));
            assert_eq!(argument, format!("${}\r\n{name}\r\n", name.len()));
            assert_eq!(names().channel(name.as_bytes()), Some(channel));
        }
    }

    #[test]
    fn foreign_names_are_no_channels() {
        for name in [
            "",
            "app",
            "app:",
            "app2:everyone",
            "Xapp:everyone",
            "app:everyone2",
            "app:Nodes",
            "app:node:",
            "app:node:1",
            "app:node:0000000G",
            "app:node:ABCDEF00",
            "app:node:123456789",
            "app:rooms",
        ] {
            assert_eq!(names().channel(name.as_bytes()), None, "{name}");
        }
        assert_eq!(names().channel(b"app:room:\xff"), None);
    }

    #[test]
    fn consecutive_rooms_are_told_apart() {
        let mut names = names();
        for room in ["a", "a", "b", "", "a"] {
            let name = format!("app:room:{room}");
            let channel = names.channel(name.as_bytes());
            assert_eq!(channel, Some(Channel::Room(room.into())));
        }
    }

    #[test]
    fn keys_of_a_room_share_their_hash_tag() {
        for room in ["", "a", "}", "{", "}}{a", "a}:position"] {
            let keys = arguments(|names, out| names.put_room_keys(out, room));
            let tags: Vec<_> = keys
                .split("\r\n")
                .skip(1)
                .step_by(2)
                .map(|key| key.split_once('{').unwrap().1.split_once('}').unwrap().0)
                .collect();
            assert_eq!(tags.len(), 2, "{keys}");
            assert!(tags[0] == tags[1] && !tags[0].is_empty(), "{keys}");
        }
    }
}
