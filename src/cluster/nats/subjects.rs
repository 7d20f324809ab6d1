//! The subjects of one app. All begin with its prefix.
//!
//! | subject | channel |
//! |---|---|
//! | `{prefix}.everyone`, `{prefix}.nodes`, `{prefix}.node.<8 hex digits>` | those |
//! | `{prefix}.room.<name in base64url>` | a room; `_` stands for the empty name |
//!
//! Names are encoded since a subject contains neither spaces nor some other characters, and dots separate its parts.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::cluster::broker::Channel;

/// Appends the subject of a channel.
pub(super) fn put_subject(out: &mut Vec<u8>, app: &str, channel: &Channel) {
    out.extend_from_slice(app.as_bytes());
    match channel {
        Channel::Everyone => out.extend_from_slice(b".everyone"),
        Channel::Nodes => out.extend_from_slice(b".nodes"),
        Channel::Node(node) => out.extend_from_slice(format!(".node.{node:08x}").as_bytes()),
        Channel::Room(name) => {
            out.extend_from_slice(b".room.");
            match name.is_empty() {
                true => out.push(b'_'),
                false => out.extend_from_slice(URL_SAFE_NO_PAD.encode(&**name).as_bytes()),
            }
        }
    }
}

/// Returns the channel with this subject. `None` if it is not one of this app.
pub(super) fn channel_of(subject: &str, app: &str) -> Option<Channel> {
    let rest = subject.strip_prefix(app)?.strip_prefix('.')?;
    match rest {
        "everyone" => return Some(Channel::Everyone),
        "nodes" => return Some(Channel::Nodes),
        "room._" => return Some(Channel::Room("".into())),
        _ => {}
    }
    if let Some(node) = rest.strip_prefix("node.") {
        return u32::from_str_radix(node, 16).ok().map(Channel::Node);
    }
    let name = rest.strip_prefix("room.").filter(|name| !name.is_empty())?;
    let name = URL_SAFE_NO_PAD.decode(name).ok()?;
    Some(Channel::Room(String::from_utf8(name).ok()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_a_legal_subject_of_its_own() {
        for (channel, subject) in [
            (Channel::Everyone, "app.everyone"),
            (Channel::Nodes, "app.nodes"),
            (Channel::Node(0xfe), "app.node.000000fe"),
            (Channel::Room("".into()), "app.room._"),
            (Channel::Room("_".into()), "app.room.Xw"),
            (Channel::Room("aaa".into()), "app.room.YWFh"),
            (Channel::Room("aaG".into()), "app.room.YWFH"),
            (Channel::Room("a.b > *\r\n".into()), "app.room.YS5iID4gKg0K"),
            (Channel::Room("ÿ?".into()), "app.room.w78_"),
        ] {
            let mut out = Vec::new();
            put_subject(&mut out, "app", &channel);
            assert_eq!(String::from_utf8(out).unwrap(), subject);
            assert_eq!(channel_of(subject, "app"), Some(channel));
        }
    }

    #[test]
    fn foreign_subjects_are_no_channels() {
        for subject in [
            "",
            "app",
            "app.",
            "app2.nodes",
            "app.room",
            "app.room.",
            "app.room.%",
            "app.room._w",
            "app.node.x",
            "x.app.nodes",
        ] {
            assert_eq!(channel_of(subject, "app"), None, "{subject}");
        }
    }
}
