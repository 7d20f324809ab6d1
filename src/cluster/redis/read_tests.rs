//! Reads of histories on a real server, of several rooms at once. Without `redis-server`, they say so and pass.

use super::server_tests::{Client, READ_EPOCH, RedisServer, append, id, refused, settings};
use crate::cluster::broker::{Append, Appended, Command, Event, Kind, Read};
use crate::history_id::HistoryId;

#[test]
fn read_returns_no_more_than_its_bound() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut settings = settings(&server, "", "?app=app");
    // Three messages of 100 bytes with their 16 bytes.
    settings.history_read_bytes_max = 3 * 116;
    let mut client = Client::try_with(&server, settings).unwrap();
    let text = "x".repeat(100);
    for counter in 1..=5 {
        client.append(append(counter, &text));
    }
    for since in [None, Some(id(0)), Some(id(1)), Some(id(2))] {
        let history = client.read(since);
        assert_eq!((history.first, history.messages.len()), (3, 3), "{since:?}");
    }
    let history = client.read(Some(id(4)));
    assert_eq!((history.first, history.messages.len()), (5, 1));
    client.append(append(6, &"x".repeat(400)));
    let history = client.read(None);
    assert_eq!((history.position, history.first), (id(6), 7));
    assert_eq!(history.messages.len(), 0);
}

fn reads_of(rooms: [&str; 3], since: Option<HistoryId>) -> Command {
    let read = |name: &str| Read {
        room: name.into(),
        since,
        new_epoch: READ_EPOCH,
        extends: false,
    };
    Command::Read(rooms.map(read).to_vec())
}

/// Reads rooms by one command. Returns each room's name, the sequence of its first message and their number, or `None` if it
/// was postponed.
fn read_rooms(
    client: &mut Client,
    rooms: [&str; 3],
    since: Option<HistoryId>,
) -> [Option<(String, u64, usize)>; 3] {
    let events: [_; 3] = client.execute([reads_of(rooms, since)]);
    events.map(|event| match event {
        Event::History(history) => {
            let len = history.messages.len();
            Some((history.room.to_string(), history.first, len))
        }
        Event::ReadPostponed => None,
        other => panic!("{other:?}"),
    })
}

#[test]
fn rooms_too_long_to_be_read_with_others_are_postponed() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut settings = settings(&server, "", "?app=app");
    settings.history_read_bytes_max = 1_000;
    settings.history_read_shared_bytes_max = 100;
    let mut client = Client::try_with(&server, settings).unwrap();
    let rooms = ["a", "b", "c"];
    for (name, counter) in rooms.into_iter().zip(1..) {
        let append = Append {
            room: name.into(),
            ..append(counter, &"x".repeat(30))
        };
        assert!(matches!(client.append(append), Appended::Id(_)));
    }
    let whole = |name: &str, len| Some((name.to_string(), 1, len));
    // Each message counts with 46 bytes.
    assert_eq!(
        read_rooms(&mut client, rooms, None),
        [whole("a", 1), whole("b", 1), None],
        "the third does not fit"
    );
    for (counter, length) in (4..).zip([1, 200]) {
        let append = Append {
            room: "c".into(),
            ..append(counter, &"x".repeat(length))
        };
        assert!(matches!(client.append(append), Appended::Id(_)));
    }
    assert_eq!(
        read_rooms(&mut client, ["c", "a", "b"], None),
        [whole("c", 3), None, None],
        "the first is read whole, and leaves nothing for others"
    );
    assert_eq!(
        read_rooms(&mut client, ["a", "c", "b"], Some(id(2))),
        [whole("a", 1), None, whole("b", 1)],
        "the estimate of the long message is too low"
    );
    let empty = |name: &str, first| Some((name.to_string(), first, 0));
    assert_eq!(
        read_rooms(&mut client, ["c", "d", "e"], None),
        [whole("c", 3), empty("d", 1), empty("e", 1)],
        "rooms without messages are not postponed"
    );
}

#[test]
fn room_that_cannot_be_read_leaves_the_others_readable() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    for (name, counter) in ["a", "c"].into_iter().zip(1..) {
        let append = Append {
            room: name.into(),
            ..append(counter, "text")
        };
        assert!(matches!(client.append(append), Appended::Id(_)));
    }
    let mut check = |rooms: [&str; 3], code: &str, passes| {
        let events: [_; 3] = client.execute([reads_of(rooms, None)]);
        for (name, event) in rooms.iter().zip(&events) {
            match event {
                Event::History(history) => {
                    assert_ne!(*name, "b");
                    assert_eq!((&*history.room, history.messages.len()), (*name, 1));
                }
                refusal => {
                    assert_eq!(*name, "b");
                    refused(refusal, Kind::Read, code, passes);
                }
            }
        }
    };
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for rooms in [["a", "b", "c"], ["b", "a", "c"]] {
        check(rooms, "OOM", true);
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    server.command(&["SADD", "app:{history:b}:position", "a stranger's"]);
    for rooms in [["a", "b", "c"], ["c", "a", "b"]] {
        check(rooms, "WRONGTYPE", false);
    }
}
