//! Clients that are not slow: they get every message, whatever else is sent to them in the same turn, and slow members of their rooms
//! do not change how their messages are compressed.

use super::{Board, texts, with_policy};
#[cfg(feature = "deflate")]
use crate::compression::Compression;
#[cfg(feature = "deflate")]
use crate::engine::sim_tests::wire::UPGRADE;
use crate::engine::sim_tests::wire::{client_ping, pong};
#[cfg(feature = "deflate")]
use crate::engine::sim_tests::world::Setup;
use crate::engine::sim_tests::world::World;
use crate::limits::SlowConsumer;
use crate::message::Message;
#[cfg(feature = "deflate")]
use crate::metrics::CompressionMetrics;

/// A client that is a member of two keyed rooms, which keep nothing yet.
fn member_of_two() -> (World, [Board; 2], usize) {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let boards = [(); 2].map(|()| Board::new(&world.hub));
    let client = boards[0].joined(&mut world, 1)[0];
    assert!(boards[1].join(&world.hub, &world.session(client)).unwrap());
    world.run_handlers();
    (world, boards, client)
}

/// Updates of two rooms in turn, of two keys each, with the key's room, its number and the message.
const UPDATES: [(usize, u64, &str); 8] = [
    (0, 1, "a1"),
    (1, 3, "c1"),
    (0, 2, "b1"),
    (0, 1, "a2"),
    (1, 4, "d1"),
    (1, 3, "c2"),
    (0, 1, "a3"),
    (1, 4, "d2"),
];

#[test]
fn quick_client_of_two_keyed_rooms_gets_every_message_in_order() {
    let (mut world, mut boards, client) = member_of_two();
    for (board, key, text) in UPDATES {
        boards[board].update(&world, key, text);
    }
    world.settle();
    let all = UPDATES.map(|(.., text)| text);
    assert_eq!(texts(&world.all_frames(client)), all);
    assert_eq!(world.metrics().conflated, 0);
}

#[test]
fn client_of_two_keyed_rooms_that_takes_a_part_loses_no_frame_that_has_begun() {
    let frame = Message::new("a1").frame().len();
    for room in 0..=UPDATES.len() * frame {
        let (mut world, mut boards, client) = member_of_two();
        world.stall(client, room);
        for (board, key, text) in UPDATES {
            boards[board].update(&world, key, text);
        }
        world.settle();
        world.unstall(client);
        let begun = room.div_ceil(frame);
        let mut expected: Vec<&str> = UPDATES[..begun].iter().map(|(.., text)| *text).collect();
        let mut waiting: Vec<(u64, &str)> = Vec::new();
        for &(_, key, text) in &UPDATES[begun..] {
            match waiting.iter_mut().find(|(waits, _)| *waits == key) {
                Some((_, former)) => *former = text,
                None => waiting.push((key, text)),
            }
        }
        expected.extend(waiting.iter().map(|(_, text)| *text));
        assert_eq!(texts(&world.all_frames(client)), expected, "{room}");
        world.client_resets(client);
        world.assert_empty();
    }
}

#[test]
fn quick_client_with_a_reply_queued_gets_every_message() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    board.update(&world, 1, "a1");
    board.update(&world, 1, "a2");
    world.sends(client, "reply");
    board.update(&world, 1, "a3");
    board.update(&world, 1, "a4");
    world.settle();
    let expected = ["a1", "a2", "reply", "a3", "a4"];
    assert_eq!(texts(&world.all_frames(client)), expected);
    assert_eq!(world.metrics().conflated, 0);
}

#[test]
fn quick_client_with_a_pong_queued_gets_every_message() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    // Read after the commands of a turn, and before its batches are sent.
    world.pipe(client).client_sends(&client_ping(b"1"));
    for n in 0..3 {
        board.update(&world, 1, &n.to_string());
    }
    world.settle();
    let frames = world.all_frames(client);
    assert_eq!(frames[0], pong("1"));
    assert_eq!(texts(&frames[1..]), ["0", "1", "2"]);
    assert_eq!(world.metrics().conflated, 0);
}

#[test]
fn quick_client_costs_few_writes_however_often_a_key_is_updated() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    let tries = world.pipe(client).tries;
    world.sends(client, "reply");
    for n in 0..100 {
        board.update(&world, n % 2, "x");
    }
    world.settle();
    assert_eq!(world.all_frames(client).len(), 101);
    assert_eq!(world.pipe(client).tries, tries + 2);
    // Nothing is written early if nothing could be replaced.
    world.sends(client, "reply");
    board.update(&world, 1, "x");
    world.sends(client, "reply");
    board.update(&world, 2, "x");
    world.settle();
    assert_eq!(world.all_frames(client).len(), 4);
    assert_eq!(world.pipe(client).tries, tries + 3);
}

#[test]
fn connection_that_breaks_before_its_share_is_sent_counts_it_as_lost() {
    let (mut world, mut boards, client) = member_of_two();
    world.pipe(client).reset = true;
    for (board, key, text) in UPDATES {
        boards[board].update(&world, key, text);
    }
    world.settle();
    world.client_resets(client);
    world.assert_empty();
    let metrics = world.metrics();
    assert_eq!((metrics.dropped.closed, metrics.conflated), (8, 0));
}

#[cfg(feature = "deflate")]
fn join_with_compression(world: &mut World, board: &Board) -> usize {
    let head = String::from_utf8(UPGRADE.to_vec()).unwrap();
    let offer = "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let client = world.connect();
    world.client_sends(client, head.replace("\r\n\r\n", offer));
    world.run_handlers();
    world.head(client);
    assert!(board.join(&world.hub, &world.session(client)).unwrap());
    world.run_handlers();
    client
}

/// Publishes to a keyed room with three members that negotiate compression, of which some may be stalled. Returns the metrics of
/// compression.
#[cfg(feature = "deflate")]
fn compressed_with(stalled: &[usize]) -> CompressionMetrics {
    let mut world = World::new(Setup {
        compression: Some(Compression::new()),
        ..Setup::default()
    });
    let mut board = Board::new(&world.hub);
    let clients = [(); 3].map(|()| join_with_compression(&mut world, &board));
    for n in 0..1_000 {
        // They read nothing, or a message now and then.
        for &index in stalled {
            world.stall(clients[index], if n % 100 == 99 { 150 } else { 0 });
        }
        let tick = format!(
            "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
        );
        board.update(&world, n % 10, &tick);
        world.settle();
    }
    world.metrics().compression
}

#[cfg(feature = "deflate")]
#[test]
fn slow_member_of_a_keyed_room_changes_no_compression_of_the_others() {
    let all = compressed_with(&[]);
    let two = compressed_with(&[2]);
    assert!((1..4).contains(&all.epochs), "{all:?}");
    // The last write to the slow member was begun as if it were quick.
    assert!(two.epochs <= all.epochs + 1, "{two:?}");
    assert!(two.waiting <= 10, "{two:?}");
    let of_two = all.sent_bytes * 2 / 3;
    let sent = two.sent_bytes;
    assert!(
        (of_two * 9 / 10..of_two * 11 / 10).contains(&sent),
        "{two:?}, {all:?}"
    );
}

#[cfg(feature = "deflate")]
#[test]
fn member_of_a_keyed_room_with_a_pong_queued_stays_in_its_epoch() {
    let mut world = World::new(Setup {
        compression: Some(Compression::new()),
        ..Setup::default()
    });
    let mut board = Board::new(&world.hub);
    let client = join_with_compression(&mut world, &board);
    for n in 0..100 {
        world.pipe(client).client_sends(&client_ping(b""));
        board.update(&world, 1, &format!("{n} {}", "EUR/USD 1.08 ".repeat(10)));
        world.settle();
    }
    let metrics = world.metrics();
    assert_eq!(metrics.compression.epochs, 1);
    assert!(metrics.compression.sent_bytes < 100 * 40);
}

/// Publishes a tick to each of three keyed rooms, of which all clients are members. Only those of the last one are compressed: the
/// others are too short.
#[cfg(feature = "deflate")]
fn tick_all(world: &mut World, [one, other, long]: &mut [Board; 3], n: u64) {
    one.update(world, n % 10, &format!("{n}"));
    other.update(world, n % 10, &format!("{n}"));
    let tick = format!(
        "{{\"type\":\"tick\",\"symbol\":\"EUR/USD\",\"bid\":1.0{n},\"ask\":1.1{n},\"at\":17000{n}}}"
    );
    long.update(world, n % 10, &tick);
    world.settle();
}

#[cfg(feature = "deflate")]
#[test]
fn member_of_three_keyed_rooms_follows_an_epoch_whenever_it_joins() {
    let mut world = World::new(Setup {
        compression: Some(Compression::new()),
        ..Setup::default()
    });
    let mut boards = [(); 3].map(|()| Board::new(&world.hub));
    let mut ticks = 0..;
    for members in 1..=2 {
        let client = join_with_compression(&mut world, &boards[2]);
        for board in &boards[..2] {
            assert!(board.join(&world.hub, &world.session(client)).unwrap());
        }
        world.run_handlers();
        let mut plain_bytes_of_100 = || {
            let before = world.metrics().compression.plain_bytes;
            for n in ticks.by_ref().take(100) {
                tick_all(&mut world, &mut boards, n);
            }
            world.metrics().compression.plain_bytes - before
        };
        // Epochs begin once enough members wait.
        for _ in 0..4 {
            plain_bytes_of_100();
        }
        // Each tick is compressed for each member: it has 70 to 90 bytes.
        let bytes = plain_bytes_of_100();
        let expected = members * 100 * 70..members * 100 * 90;
        assert!(
            expected.contains(&bytes),
            "{bytes} bytes of {members} members"
        );
    }
    assert_eq!(world.metrics().conflated, 0);
}
