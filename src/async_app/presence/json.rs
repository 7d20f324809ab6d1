//! Members of a room as JSON, for clients.

use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::member::{PresentMember, RoomPresence};
use crate::protocol::json_string;

impl RoomPresence {
    /// The members as an array, for a client that asks for them once.
    pub(in crate::async_app) fn to_json(&self) -> String {
        let mut out = String::from("[");
        for member in &self.members {
            if out.len() > 1 {
                out.push(',');
            }
            put_member(&mut out, member);
        }
        out.push(']');
        out
    }
}

/// Writes members as arrays of pairs, for a client that is told the changes: a text that identifies the member, and the member, or
/// `null` if it has left. An array has at most so many bytes, and one at least is returned. A member that alone has more is left
/// out.
pub(super) fn pairs(members: &[(PresentMember, bool)], bytes_max: usize) -> Vec<String> {
    let mut arrays = vec![String::from("[")];
    for (member, is_here) in members {
        let pair = pair(member, *is_here);
        if pair.len() + 2 > bytes_max {
            continue;
        }
        if let Some(last) = arrays.last_mut()
            && last.len() + pair.len() + 2 <= bytes_max
        {
            if last.len() > 1 {
                last.push(',');
            }
            last.push_str(&pair);
        } else {
            arrays.push(format!("[{pair}"));
        }
    }
    arrays.iter_mut().for_each(|array| array.push(']'));
    arrays
}

fn pair(member: &PresentMember, is_here: bool) -> String {
    let mut out = String::from("[");
    let key = match (&member.user, member.connection) {
        (Some(user), _) => format!("user:{user}"),
        (None, Some(connection)) => format!("connection:{connection}"),
        (None, None) => String::new(),
    };
    json_string::push(&mut out, &key);
    out.push(',');
    match is_here {
        true => put_member(&mut out, member),
        false => out.push_str("null"),
    }
    out.push(']');
    out
}

fn put_member(out: &mut String, member: &PresentMember) {
    match (&member.user, member.connection) {
        (Some(user), _) => {
            out.push_str("{\"user\":");
            json_string::push(out, user);
        }
        (None, connection) => {
            out.push_str("{\"connection\":\"");
            if let Some(connection) = connection {
                // Writing to a string can't fail. An id has no characters to escape.
                let _ = write!(out, "{connection}");
            }
            out.push('"');
        }
    }
    let _ = write!(out, ",\"connections\":{}", member.connections);
    let state = member.state.bytes();
    match std::str::from_utf8(state) {
        Ok("") => {}
        Ok(text) => {
            out.push_str(",\"state\":");
            json_string::push(out, text);
        }
        Err(_) => {
            out.push_str(",\"base64\":\"");
            STANDARD.encode_string(state, out);
            out.push('"');
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn member(user: Option<&str>, state: &[u8], connections: usize) -> PresentMember {
        PresentMember {
            user: user.map(str::to_owned),
            connection: None,
            state: state.into(),
            connections,
        }
    }

    #[test]
    fn members_are_written_as_json_objects() {
        let members = vec![
            member(Some("Ada \"\\\u{1}\u{e9}"), b"{\"away\":true}\n", 2),
            member(Some("Bob"), b"\xff\0", 0),
            member(Some("Cy"), b"", 1),
        ];
        let ada =
            json!({"user": "Ada \"\\\u{1}\u{e9}", "connections": 2, "state": "{\"away\":true}\n"});
        let bob = json!({"user": "Bob", "connections": 0, "base64": "/wA="});
        let cy = json!({"user": "Cy", "connections": 1});
        let parsed = |json: String| serde_json::from_str::<Value>(&json).unwrap();
        let present = RoomPresence {
            members: members.clone(),
            is_complete: true,
        };
        assert_eq!(parsed(present.to_json()), json!([ada, bob, cy]));
        let mut changes: Vec<_> = members.into_iter().map(|of| (of, true)).collect();
        changes[2].1 = false;
        let expected = json!([
            ["user:Ada \"\\\u{1}\u{e9}", ada],
            ["user:Bob", bob],
            ["user:Cy", null]
        ]);
        let [whole] = &pairs(&changes, 1_000)[..] else {
            panic!("it fits");
        };
        assert_eq!(parsed(whole.clone()), expected);
        assert_eq!(pairs(&[], 100), ["[]"]);
        // Several arrays, of which none is too long.
        let longest = whole.len() - 5;
        let parts = pairs(&changes, longest);
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= longest));
        let parts = parts.into_iter().map(parsed);
        let members = parts.flat_map(|part| part.as_array().unwrap().clone());
        assert_eq!(Value::from_iter(members), expected);
        assert_eq!(
            parsed(pairs(&changes, 20).concat()),
            json!([["user:Cy", null]])
        );
    }
}
