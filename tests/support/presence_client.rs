//! A client that is told the presence of a room.

#![allow(dead_code)] // Each test file uses some of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Values;

use serde_json::Value;

use crate::frames::RoomFrame;
use crate::support::Client;

/// Receives the next list or change of a room's presence. `true` for a list.
pub(crate) fn receive_presence(client: &mut Client, room: &str) -> (bool, Value) {
    let (is_list, changes, _) = receive_measured(client, room).expect("no response");
    (is_list, changes)
}

/// The next list or change, and its length in bytes; `None` for a response.
fn receive_measured(client: &mut Client, room: &str) -> Option<(bool, Value, usize)> {
    let message = client.receive();
    let len = message.len();
    if message.clone().into_data().starts_with(&[4]) {
        return None;
    }
    let frame = RoomFrame::parse(message);
    assert_eq!((&*frame.room, &*frame.id), (room, ""));
    assert!([5, 6].contains(&frame.kind), "{}", frame.kind);
    let changes = serde_json::from_slice(&frame.content).unwrap();
    Some((frame.kind == 5, changes, len))
}

/// Who is in a room, as a client is told it.
#[derive(Default)]
pub(crate) struct PresenceView {
    members: BTreeMap<String, Value>,
    /// The length of the longest message in bytes.
    pub(crate) longest: usize,
}

impl PresenceView {
    /// Applies lists and changes until these members are here, in the order of their names.
    pub(crate) fn receive_until(&mut self, client: &mut Client, room: &str, expected: &Value) {
        self.receive_until_are(client, room, |here| {
            Value::from_iter(here.cloned()) == *expected
        });
    }

    /// Applies lists and changes until the members are as wanted. Skips responses.
    pub(crate) fn receive_until_are(
        &mut self,
        client: &mut Client,
        room: &str,
        mut are_so: impl FnMut(Values<'_, String, Value>) -> bool,
    ) {
        loop {
            let Some((is_list, changes, len)) = receive_measured(client, room) else {
                continue;
            };
            self.longest = self.longest.max(len);
            if is_list {
                self.members.clear();
            }
            for change in changes.as_array().unwrap() {
                let key = change[0].as_str().unwrap().to_owned();
                match &change[1] {
                    Value::Null => self.members.remove(&key),
                    member => self.members.insert(key, member.clone()),
                };
            }
            if are_so(self.members.values()) {
                return;
            }
        }
    }
}
