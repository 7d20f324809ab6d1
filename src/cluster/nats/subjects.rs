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
            (Channel::Room("a.b > *\r\n".into()), "app.room.YS5iID4gKg0K"),
            (Channel::Room("ÿ?".into()), "app.room.w78_"),
        ] {
            let mut out = Vec::new();
            put_subject(&mut out, "app", &channel);
            assert_eq!(String::from_utf8(out).unwrap(), subject);
        }
    }
}
