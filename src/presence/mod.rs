//! Who is in a room: the members of this node, and what other nodes tell of theirs. Without I/O, threads and clock.
//!
//! Each node owns the facts about its own members, and tells them to the other nodes on the channel of the room. Their sum is the
//! presence of the room, so nodes need not agree on anything. A node whose facts a message has not reached notices it with the
//! next one, and asks for all of them.
//!
//! - `member`: a user, or a connection without one, and the facts about it;
//! - `update`: what nodes tell each other, as bytes;
//! - `remote`: the facts of another node;
//! - `connections`: those of one member;
//! - `announcements`: the changes that the program's room handler has not been told;
//! - `room`: one room; `table`: all of them, and when they are due, and what other nodes tell.

mod announcements;
mod connections;
mod member;
mod remote;
mod room;
mod table;
mod update;

pub(crate) use self::member::{ConnectionKey, Fact, Member};
#[cfg(feature = "cluster")]
pub(crate) use self::table::NodeEvent;
pub(crate) use self::table::{Announced, Flush, PresenceTable};
#[cfg(feature = "cluster")]
pub(crate) use self::update::BadUpdate;

/// Handles what another node seems to tell, in any pieces: the first byte is the length of each.
#[cfg(all(any(test, fuzzing), feature = "cluster", not(loom)))]
pub(crate) fn fuzz(data: &[u8]) {
    let mut table: PresenceTable<u32> = PresenceTable::new(true, Some(1));
    let (room, now) = ("a".into(), std::time::Instant::now());
    table.needed(&room);
    table.watch(&room);
    let Some((&piece, updates)) = data.split_first() else {
        return;
    };
    for update in updates.chunks(usize::from(piece).max(1)) {
        let event = NodeEvent::Update {
            room: &room,
            node: 2,
            is_gone: false,
            update,
        };
        // Malformed updates are refused.
        if let Ok(Some(heard)) = event.decode() {
            let _ = table.on_heard(heard, now);
        }
    }
    let members = table.members(&room).len();
    let later = now + std::time::Duration::from_secs(1);
    let flushed = table.flush(later, 100, |_| true);
    let changes = flushed.rooms.iter().flat_map(|flush| &flush.changes);
    assert!(changes.filter(|(_, fact)| fact.is_some()).count() <= members);
    table.unneeded(&room);
    assert!(table.members(&room).is_empty());
}

#[cfg(all(test, feature = "cluster", not(loom)))]
mod tests;
