//! Histories on a real server, which each test starts for itself. Without `redis-server`, they say so and pass.

use std::time::Duration;

use bytes::Bytes;

use super::server_tests::{
    Client, PERSISTENT, READ_EPOCH, RedisServer, append, id, messages_at, read, refused, room,
    settings, texts,
};
use crate::cluster::broker::{Append, Appended, Command, Event, Kind, Read};
use crate::history_id::HistoryId;

#[test]
fn appends_are_numbered_and_published_in_order() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut subscriber = Client::connect(&server);
    let [_]: [_; 1] = subscriber.execute([Command::Subscribe(vec![room()])]);
    let mut client = Client::connect(&server);
    let text = |n: u64| format!("message {n}");
    let appends = (1..=16).map(|n| Command::Append(append(n, &text(n))));
    let replies: [_; 16] = client.execute(appends);
    let messages: [_; 16] = subscriber.take();
    for (n, (reply, message)) in (1..).zip(replies.into_iter().zip(messages)) {
        assert_eq!(reply, Event::Appended(Appended::Id(id(n))));
        let expected = Event::Message {
            channel: room(),
            id: Some(id(n)),
            envelope: text(n).into(),
        };
        assert_eq!(message, expected);
    }
    let all: Vec<_> = (1..=16).map(|n| (n, text(n))).collect();
    assert_eq!(client.read(None).position, id(16));
    // From before the first, which is no message.
    for since in [
        None,
        Some(id(0)),
        Some(HistoryId::new(0xff, 16)),
        Some(id(17)),
    ] {
        assert_eq!(client.kept(since), all, "{since:?}");
    }
    for since in 1..=16 {
        let at = since as usize;
        assert_eq!(client.kept(Some(id(since))), all[at..], "{since}");
    }
    let end = client.read(Some(id(16)));
    assert_eq!((end.first, end.messages.len()), (17, 0));
}

#[test]
fn envelopes_of_any_bytes_and_rooms_of_any_name_are_kept() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let mut counter = 0;
    for name in ["", "}", "{x}", "ü\r\n", &"x".repeat(255)] {
        let all: Vec<u8> = (0..=255).collect();
        let long = vec![b'x'; 1 << 20];
        for envelope in [&b""[..], b"\n", &all, &long] {
            counter += 1;
            let append = Append {
                room: name.into(),
                envelope: Bytes::copy_from_slice(envelope),
                bytes_max: 4 << 20,
                ..append(counter, "")
            };
            let appended = client.append(append);
            assert!(matches!(appended, Appended::Id(_)), "{name:?}");
        }
        let read = Command::Read(vec![Read {
            room: name.into(),
            since: None,
            new_epoch: READ_EPOCH,
            extends: true,
        }]);
        let [Event::History(history)] = client.execute([read]) else {
            panic!("the read was refused");
        };
        assert_eq!(&*history.room, name);
        assert!(history.messages == [Bytes::new(), "\n".into(), all.into(), long.into()]);
    }
}

#[test]
fn append_with_a_used_counter_is_not_executed_again() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    assert_eq!(client.append(append(9, "a")), Appended::Id(id(1)));
    // On another connection, after the first was lost.
    let mut client = Client::connect(&server);
    assert_eq!(client.append(append(9, "a")), Appended::Before);
    assert_eq!(client.append(append(8, "b")), Appended::Before);
    assert_eq!(client.append(append(10, "c")), Appended::Id(id(2)));
    // Counters above 2⁵³ differ, too.
    let great = u64::MAX - 1;
    assert_eq!(client.append(append(great, "d")), Appended::Id(id(3)));
    assert_eq!(client.append(append(great, "d")), Appended::Before);
    assert_eq!(client.append(append(great + 1, "e")), Appended::Id(id(4)));
    // They belong to one node, and count for all rooms.
    let of_another_node = Append {
        node: 8,
        ..append(1, "f")
    };
    assert_eq!(client.append(of_another_node), Appended::Id(id(5)));
    let to_another_room = Append {
        room: "b".into(),
        ..append(5, "g")
    };
    assert_eq!(client.append(to_another_room), Appended::Before);
    assert_eq!(client.kept(Some(id(3))), texts(&[(4, "e"), (5, "f")]));
}

#[test]
fn append_at_another_position_is_a_conflict() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let at = |counter, expected| Append {
        expected: Some(expected),
        ..append(counter, "x")
    };
    let conflict = |position| Appended::Conflict { position };
    // It begins the history all the same.
    assert_eq!(client.append(at(1, id(1))), conflict(id(0)));
    let position = ["PTTL", "app:{history:a}:position"];
    assert_ne!(server.command(&position), ":-1\r\n", "it expires");
    // The counter is used up.
    assert_eq!(client.append(at(1, id(0))), Appended::Before);
    assert!(messages_at(&client.read(None), id(0), 0).is_empty());
    assert_eq!(client.append(at(2, id(0))), Appended::Id(id(1)));
    assert_eq!(client.append(at(3, id(0))), conflict(id(1)));
    assert_eq!(client.append(at(4, id(1))), Appended::Id(id(2)));
    for (counter, expected) in [(5, id(1)), (6, id(3)), (7, HistoryId::new(0xff, 2))] {
        assert_eq!(client.append(at(counter, expected)), conflict(id(2)));
    }
    assert_eq!(client.append(at(8, id(2))), Appended::Id(id(3)));
    // The start of the new epoch stands for no history.
    let to_another_room = Append {
        room: "b".into(),
        ..at(9, id(0))
    };
    assert_eq!(client.append(to_another_room), Appended::Id(id(1)));
}

#[test]
fn append_that_expects_no_history_meets_the_survivors_of_one() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    for counter in 1..=3 {
        client.append(append(counter, &counter.to_string()));
    }
    server.command(&["DEL", "app:{history:a}:position"]);
    let of = HistoryId::new;
    let expecting = |counter, expected, new_epoch| Append {
        expected: Some(expected),
        new_epoch,
        ..append(counter, "x")
    };
    // Its id would not be the one that the message may contain.
    let conflict = Appended::Conflict {
        position: of(0xff, 3),
    };
    let appended = client.append(expecting(4, of(0xff, 0), 0xff));
    assert_eq!(appended, conflict);
    let appended = client.append(expecting(5, of(0xff, 3), 0x100));
    assert_eq!(appended, Appended::Id(of(0xff, 4)));
    let history = client.read(Some(of(0xff, 1)));
    assert_eq!(messages_at(&history, of(0xff, 4), 3), ["2", "3", "x"]);
    // The start of a history that is gone is not begun again.
    server.command(&["FLUSHALL"]);
    let conflict = Appended::Conflict {
        position: of(0x101, 0),
    };
    let appended = client.append(expecting(6, of(0xff, 0), 0x101));
    assert_eq!(appended, conflict);
}

#[test]
fn history_is_bounded_in_messages_and_bytes() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let mut counter = 0;
    let mut bounded = |text: &str, messages_max, bytes_max| {
        counter += 1;
        let append = Append {
            messages_max,
            bytes_max,
            ..append(counter, text)
        };
        assert_eq!(client.append(append), Appended::Id(id(counter)));
        client.kept(None)
    };
    bounded("1", 3, 100);
    bounded("2", 3, 100);
    let three = [(1, "1"), (2, "2"), (3, "3")];
    assert_eq!(bounded("3", 3, 100), texts(&three));
    let moved = [(2, "2"), (3, "3"), (4, "four")];
    assert_eq!(bounded("four", 3, 100), texts(&moved));
    assert_eq!(bounded("5", 3, 5), texts(&[(4, "four"), (5, "5")]));
    assert_eq!(bounded("6", 3, 5), texts(&[(5, "5"), (6, "6")]));
    // Longer than the whole history.
    assert_eq!(bounded("seven!", 3, 5), texts(&[]));
    assert_eq!(bounded("8", 3, 5), texts(&[(8, "8")]));
    assert_eq!(bounded("", 3, 0), texts(&[(9, "")]));
    assert_eq!(bounded("10", 0, 5), texts(&[]));
    assert_eq!(bounded("11", 2, u64::MAX), texts(&[(11, "11")]));
    let position = server.command(&["GET", "app:{history:a}:position"]);
    assert_eq!(position.split(" ").nth(3), Some("2"), "{position}");
    // A position whose messages are gone has no messages after it; older ones have all that are kept.
    assert_eq!(client.kept(Some(id(11))), texts(&[]));
    assert_eq!(client.kept(Some(id(9))), texts(&[(11, "11")]));
}

#[test]
fn all_keys_expire() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut settings = settings(&server, "", "?app=app");
    settings.history_expiry = Duration::from_secs(1000);
    let mut client = Client::try_with(&server, settings).unwrap();
    let names = [
        "app:{history:a}:position",
        "app:{history:a}:messages",
        "app:counter:00000007",
    ];
    for counter in [1, 2] {
        client.append(append(counter, "x"));
        for name in names {
            assert!(counter == 2 || server.command(&["PERSIST", name]) == ":1\r\n");
        }
    }
    let [position, messages, counter] = names.map(|name| expiry(&server, name));
    for expiry in [position, messages] {
        assert!((900_000..=1_000_000).contains(&expiry), "{expiry}");
    }
    assert!((3_500_000..=3_600_000).contains(&counter), "{counter}");
    assert_eq!(server.command(&["DBSIZE"]), ":3\r\n");
}

/// Returns for how many milliseconds a key is kept.
fn expiry(server: &RedisServer, name: &str) -> i64 {
    let reply = server.command(&["PTTL", name]);
    let digits = reply.trim_start_matches(':').trim_end();
    digits.parse().unwrap()
}

#[test]
fn read_extends_the_expiry_of_a_history() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut settings = settings(&server, "", "?app=app");
    settings.history_expiry = Duration::from_secs(1000);
    let mut client = Client::try_with(&server, settings).unwrap();
    let position = "app:{history:a}:position";
    let messages = "app:{history:a}:messages";
    let is_extended = |name| (900_000..=1_000_000).contains(&expiry(&server, name));
    // It begins the history.
    client.read(None);
    assert!(is_extended(position));
    client.append(append(1, "x"));
    for before in [["PERSIST", position], ["PERSIST", messages]] {
        assert_eq!(server.command(&before), ":1\r\n");
    }
    client.read(Some(id(1)));
    assert!(is_extended(position) && is_extended(messages));
    for name in [position, messages] {
        assert_eq!(server.command(&["PEXPIRE", name, "5000"]), ":1\r\n");
    }
    client.read(None);
    assert!(is_extended(position) && is_extended(messages));
}

#[test]
fn read_of_a_room_without_history_begins_it() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let of_read = |sequence| HistoryId::new(READ_EPOCH, sequence);
    let history = client.read(Some(id(5)));
    assert!(messages_at(&history, of_read(0), 0).is_empty());
    assert_eq!(history.first, 1);
    // All nodes that read it find the same.
    let mut other = Client::connect(&server);
    assert_eq!(other.read_in(None, 0x1234), history);
    assert_eq!(client.read_in(Some(of_read(0)), 0x1235), history);
    // Appends continue the epoch, whether they expect its beginning or nothing.
    let at_beginning = Append {
        expected: Some(of_read(0)),
        new_epoch: READ_EPOCH,
        ..append(1, "a")
    };
    assert_eq!(client.append(at_beginning), Appended::Id(of_read(1)));
    assert_eq!(client.append(append(2, "b")), Appended::Id(of_read(2)));
    let history = other.read_in(Some(of_read(0)), 0x1236);
    assert_eq!(messages_at(&history, of_read(2), 0), ["a", "b"]);
    // A history that a read has begun is not none.
    let of_room_b = |counter, expected| Append {
        room: "b".into(),
        expected,
        ..append(counter, "x")
    };
    let read_b = Command::Read(vec![Read {
        room: "b".into(),
        since: None,
        new_epoch: READ_EPOCH,
        extends: true,
    }]);
    let [Event::History(_)] = client.execute([read_b]) else {
        panic!("the read was refused");
    };
    let conflict = Appended::Conflict {
        position: of_read(0),
    };
    assert_eq!(client.append(of_room_b(3, Some(id(0)))), conflict);
    let appended = client.append(of_room_b(4, Some(of_read(0))));
    assert_eq!(appended, Appended::Id(of_read(1)));
}

/// Starts a server that keeps its data over a restart, and the last ones of five messages.
fn server_that_persists_five(messages_max: u32) -> Option<RedisServer> {
    let server = RedisServer::start(PERSISTENT)?;
    let mut client = Client::connect(&server);
    for counter in 1..=5 {
        let append = Append {
            messages_max,
            ..append(counter, &counter.to_string())
        };
        client.append(append);
    }
    Some(server)
}

#[test]
fn first_read_after_a_restart_begins_an_epoch_with_the_survivors() {
    let Some(mut server) = server_that_persists_five(3) else {
        return;
    };
    server.restart();
    let mut client = Client::connect(&server);
    let of_read = |sequence| HistoryId::new(READ_EPOCH, sequence);
    let history = client.read(Some(id(4)));
    assert_eq!(messages_at(&history, of_read(3), 3), ["3", "4", "5"]);
    let position = server.command(&["GET", "app:{history:a}:position"]);
    assert_eq!(position.split(" ").nth(3), Some("3"), "{position}");
    // Another node reads the same; the survivors can be replayed.
    let mut other = Client::connect(&server);
    assert_eq!(other.read_in(Some(id(4)), 0x1234), history);
    let history = other.read(Some(of_read(2)));
    assert_eq!(messages_at(&history, of_read(3), 3), ["5"]);
    let expecting = |counter, expected| Append {
        expected: Some(expected),
        ..append(counter, "6")
    };
    let conflict = Appended::Conflict {
        position: of_read(3),
    };
    assert_eq!(client.append(expecting(6, id(5))), conflict);
    let appended = client.append(expecting(7, of_read(3)));
    assert_eq!(appended, Appended::Id(of_read(4)));
    let history = client.read(Some(of_read(3)));
    assert_eq!(messages_at(&history, of_read(4), 3), ["6"]);
}

#[test]
fn refused_read_without_memory_has_no_effect() {
    let options = ["--maxmemory-policy", "noeviction"];
    let Some(server) = RedisServer::start(&options) else {
        return;
    };
    let mut client = Client::connect(&server);
    // Loads the scripts.
    assert_eq!(client.append(append(1, "a")), Appended::Id(id(1)));
    server.command(&["DEL", "app:{history:a}:position"]);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..2 {
        let [refusal]: [_; 1] = client.execute([read(Some(id(1)))]);
        refused(&refusal, Kind::Read, "OOM", true);
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let position_key = ["EXISTS", "app:{history:a}:position"];
    assert_eq!(server.command(&position_key), ":0\r\n");
    let history = client.read(Some(id(1)));
    let position = HistoryId::new(READ_EPOCH, 1);
    assert_eq!(messages_at(&history, position, 1), ["a"]);
    // One that begins nothing needs no memory.
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(client.read(Some(id(1))), history);
}

#[test]
fn restart_without_persistence_begins_a_new_epoch() {
    let Some(mut server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    client.append(append(1, "a"));
    let before = client.redis.session.incarnation.clone();
    server.restart();
    let mut client = Client::connect(&server);
    assert_ne!(client.redis.session.incarnation, before);
    let next = Append {
        new_epoch: 0xff,
        ..append(1, "b")
    };
    assert_eq!(client.append(next), Appended::Id(HistoryId::new(0xff, 1)));
    server.restart();
    let mut client = Client::connect(&server);
    let history = client.read(Some(HistoryId::new(0xff, 1)));
    let begun = HistoryId::new(READ_EPOCH, 0);
    assert!(messages_at(&history, begun, 0).is_empty());
}

#[test]
fn restart_with_persistence_keeps_messages_in_a_new_epoch() {
    let Some(mut server) = server_that_persists_five(2) else {
        return;
    };
    server.restart();
    let mut client = Client::connect(&server);
    let next = Append {
        new_epoch: 0xff,
        messages_max: 3,
        expected: Some(id(5)),
        ..append(6, "6")
    };
    let of_new = |sequence| HistoryId::new(0xff, sequence);
    let conflict = Appended::Conflict {
        position: of_new(2),
    };
    assert_eq!(client.append(next.clone()), conflict);
    let next = Append {
        counter: 7,
        expected: Some(of_new(2)),
        new_epoch: 0x100,
        ..next
    };
    // The counters were kept, too.
    assert_eq!(client.append(append(5, "5")), Appended::Before);
    assert_eq!(client.append(next), Appended::Id(of_new(3)));
    let history = client.read(Some(id(4)));
    let messages = messages_at(&history, of_new(3), 2);
    assert_eq!(messages, ["4", "5", "6"]);
    let position = server.command(&["GET", "app:{history:a}:position"]);
    assert_eq!(position.split(" ").nth(3), Some("3"), "{position}");
}

#[test]
fn lost_keys_never_leave_a_hidden_gap() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let of_epoch = |counter, new_epoch| Append {
        new_epoch,
        ..append(counter, &counter.to_string())
    };
    for counter in 1..=3 {
        client.append(of_epoch(counter, 0xfe));
    }
    // Without the messages, the ids go on, and a read finds nothing to replay.
    server.command(&["DEL", "app:{history:a}:messages"]);
    let history = client.read(Some(id(1)));
    assert_eq!((history.position, history.first), (id(3), 4));
    assert_eq!(history.messages.len(), 0);
    assert_eq!(client.append(of_epoch(4, 0xff)), Appended::Id(id(4)));
    assert_eq!(client.kept(Some(id(1))), texts(&[(4, "4")]));
    let position = server.command(&["GET", "app:{history:a}:position"]);
    assert_eq!(position.split(" ").nth(3), Some("1"), "{position}");
    // Without the position, a new epoch begins.
    server.command(&["DEL", "app:{history:a}:position"]);
    let appended = client.append(of_epoch(5, 0xff));
    assert_eq!(appended, Appended::Id(HistoryId::new(0xff, 2)));
    let history = client.read(Some(id(4)));
    let messages = messages_at(&history, HistoryId::new(0xff, 2), 1);
    assert_eq!(messages, ["4", "5"]);
    // It is the same if a read notices it.
    server.command(&["DEL", "app:{history:a}:position"]);
    let history = client.read_in(Some(id(4)), 0x100);
    let messages = messages_at(&history, HistoryId::new(0x100, 2), 2);
    assert_eq!(messages, ["4", "5"]);
    let position = server.command(&["GET", "app:{history:a}:position"]);
    assert_eq!(position.split(" ").nth(3), Some("2"), "{position}");
    let appended = client.append(of_epoch(6, 0x101));
    assert_eq!(appended, Appended::Id(HistoryId::new(0x100, 3)));
    // Without anything, an empty epoch begins.
    server.command(&["FLUSHALL"]);
    let appended = client.append(of_epoch(1, 0x102));
    assert_eq!(appended, Appended::Id(HistoryId::new(0x102, 1)));
    server.command(&["FLUSHALL"]);
    let history = client.read_in(Some(id(4)), 0x103);
    assert!(messages_at(&history, HistoryId::new(0x103, 0), 0).is_empty());
    let appended = client.append(of_epoch(1, 0x104));
    assert_eq!(appended, Appended::Id(HistoryId::new(0x103, 1)));
}

#[test]
fn refused_append_without_memory_has_no_effect() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    assert_eq!(client.append(append(1, "a")), Appended::Id(id(1)));
    let keys = server.command(&["GET", "app:{history:a}:position"]);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let [refusal, history]: [_; 2] = client.execute([Command::Append(append(2, "b")), read(None)]);
    refused(&refusal, Kind::Append, "OOM", true);
    let Event::History(history) = history else {
        panic!("{history:?}");
    };
    assert_eq!(messages_at(&history, id(1), 0), ["a"]);
    assert_eq!(
        server.command(&["GET", "app:counter:00000007"]),
        "$20\r\n00000000000000000001\r\n"
    );
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(server.command(&["GET", "app:{history:a}:position"]), keys);
    assert_eq!(client.append(append(2, "b")), Appended::Id(id(2)));
}

#[test]
fn removed_scripts_are_loaded_again() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    assert_eq!(client.append(append(1, "a")), Appended::Id(id(1)));
    server.command(&["SCRIPT", "FLUSH"]);
    let [first, second]: [_; 2] = client.execute([2, 3].map(|n| Command::Append(append(n, "b"))));
    refused(&first, Kind::Append, "NOSCRIPT", true);
    refused(&second, Kind::Append, "NOSCRIPT", true);
    assert_eq!(client.append(append(4, "c")), Appended::Id(id(2)));
    assert_eq!(client.kept(None), texts(&[(1, "a"), (2, "c")]));
}

#[test]
fn keys_of_a_stranger_are_refused_and_never_believed() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    server.command(&["SET", "app:{history:a}:messages", "x"]);
    let [refusal]: [_; 1] = client.execute([Command::Append(append(1, "a"))]);
    refused(&refusal, Kind::Append, "WRONGTYPE", false);
    server.command(&["DEL", "app:{history:a}:messages"]);
    assert_eq!(client.append(append(2, "a")), Appended::Id(id(1)));
    // More messages than the position allows.
    server.command(&["RPUSH", "app:{history:a}:messages", "b", "c"]);
    let history = client.read_in(Some(id(1)), 0x100);
    let messages = messages_at(&history, HistoryId::new(0x100, 3), 3);
    assert_eq!(messages, ["a", "b", "c"]);
    // No beginning.
    server.command(&["SET", "app:{history:a}:position", "100 3 3"]);
    let history = client.read_in(Some(HistoryId::new(0x100, 1)), 0x101);
    let messages = messages_at(&history, HistoryId::new(0x101, 3), 3);
    assert_eq!(messages, ["a", "b", "c"]);
    // A position of another type.
    server.command(&["DEL", "app:{history:a}:position"]);
    server.command(&["RPUSH", "app:{history:a}:position", "x"]);
    let [refusal]: [_; 1] = client.execute([read(None)]);
    refused(&refusal, Kind::Read, "WRONGTYPE", false);
}

#[test]
fn repeated_append_whose_counter_was_deleted_is_not_executed() {
    let Some(server) = RedisServer::start(&[]) else {
        return;
    };
    let mut client = Client::connect(&server);
    let again = |counter| Append {
        needs_counter: true,
        ..append(counter, "x")
    };
    assert_eq!(client.append(append(1, "x")), Appended::Id(id(1)));
    assert_eq!(client.append(again(1)), Appended::Before);
    assert_eq!(client.append(again(2)), Appended::Id(id(2)));
    server.command(&["DEL", "app:counter:00000007"]);
    assert_eq!(client.append(again(2)), Appended::Unknown);
    assert_eq!(client.append(append(3, "x")), Appended::Id(id(3)));
}
