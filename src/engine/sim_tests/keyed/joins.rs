//! Snapshots for clients that join keyed rooms, also again and again, and what ends when they leave.

use super::{Board, OUTBOX, POLICIES, texts, with_limits, with_policy};
use crate::engine::model::replay::Replay;
use crate::limits::{Limits, SlowConsumer};
use crate::transport::UnsentLimit;

#[test]
fn client_that_joins_gets_the_newest_of_each_key_and_then_changes() {
    for stalled in [true, false] {
        let mut world = with_policy(SlowConsumer::Disconnect);
        let mut board = Board::new(&world.hub);
        for (key, text) in [(1, "a1"), (2, "b1"), (1, "a2")] {
            board.update(&world, key, text);
        }
        let client = world.join();
        if stalled {
            world.stall(client, 0);
        }
        // Without a turn in between: the join and the change after it are in the same mailbox.
        board.update(&world, 2, "b2");
        assert!(board.join(&world.hub, &world.session(client)).unwrap());
        board.update(&world, 1, "a3");
        board.update(&world, 3, "c1");
        world.settle();
        assert!(!board.join(&world.hub, &world.session(client)).unwrap());
        world.unstall(client);
        // What the socket has refused is replaced in place.
        let expected: (&[&str], u64) = match stalled {
            true => (&["a3", "b2", "c1"], 1),
            false => (&["a2", "b2", "a3", "c1"], 0),
        };
        assert_eq!(texts(&world.all_frames(client)), expected.0);
        assert_eq!(world.metrics().conflated, expected.1);
    }
}

#[test]
fn client_that_joins_again_gets_no_older_message_after_a_newer_one() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    let session = world.session(client);
    world.stall(client, 0);
    board.update(&world, 1, "a1");
    board.update(&world, 2, "b1");
    world.hub.leave(&board.room, &session).unwrap();
    board.update(&world, 1, "a2");
    board.update(&world, 3, "c1");
    world.settle();
    assert!(board.join(&world.hub, &session).unwrap());
    board.update(&world, 2, "b2");
    world.settle();
    world.unstall(client);
    assert_eq!(texts(&world.all_frames(client)), ["a2", "b2", "c1"]);
}

#[test]
fn client_that_leaves_still_gets_what_waits() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let mut board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    world.stall(client, 0);
    board.update(&world, 1, "a1");
    board.update(&world, 1, "a2");
    let session = world.session(client);
    world.hub.leave(&board.room, &session).unwrap();
    board.update(&world, 1, "a3");
    world.settle();
    world.unstall(client);
    assert_eq!(texts(&world.all_frames(client)), ["a2"]);
}

#[test]
fn kernel_takes_little_in_advance_for_clients_of_keyed_rooms_only() {
    let mut world = with_policy(SlowConsumer::Disconnect);
    let board = Board::new(&world.hub);
    let client = board.joined(&mut world, 1)[0];
    assert_eq!(world.pipe(client).unsent_limit, Some(UnsentLimit::Keyed));
    let other = world.join();
    let session = world.session(other);
    let room = world.new_rooms(1).remove(0);
    let reserved = world.hub.reserve_join(&session, 0, 0).unwrap();
    let joined = world.hub.join(reserved, &room, &session, Replay::default());
    assert_eq!(joined, Ok(true));
    world.settle();
    assert_eq!(world.pipe(other).unsent_limit, None);
}

#[test]
fn snapshots_beyond_the_bound_of_a_client_count_as_its_memory() {
    const ROOMS: usize = 30;
    for policy in POLICIES {
        let limits = Limits {
            outbox_bytes_max: OUTBOX,
            keyed_bytes_max: 5 * OUTBOX,
            ..Limits::default()
        };
        let mut world = with_limits(policy, limits);
        let client = world.joined(1)[0];
        world.stall(client, 0);
        let session = world.session(client);
        let message =
            |version: &str, room: usize| format!("{version} {room} {}", "x".repeat(OUTBOX));
        for n in 0..ROOMS {
            let mut board = Board::new(&world.hub);
            board.update(&world, n as u64, &message("old", n));
            assert!(board.join(&world.hub, &session).unwrap());
            world.settle();
            // A message that waits beyond the bound is followed, not replaced.
            if n + 1 == ROOMS {
                board.update(&world, n as u64, "new");
            }
            world.hub.leave(&board.room, &session).unwrap();
            world.settle();
        }
        let own = world.core().cx.fanout.unshared_bytes();
        // Three messages fit within the bound, and the others count.
        assert!(own >= (ROOMS - 3) * OUTBOX, "{own}, {policy:?}");
        assert_eq!(world.core().cx.fanout.congested, 0);
        world.unstall(client);
        let frames = world.all_frames(client);
        let texts = texts(&frames);
        assert_eq!(texts.len(), ROOMS + 1, "{policy:?}");
        for (n, text) in texts[..ROOMS].iter().enumerate() {
            assert_eq!(*text, message("old", n));
        }
        assert_eq!(texts[ROOMS], "new");
        assert_eq!(world.core().cx.fanout.unshared_bytes(), 0);
    }
}

#[test]
fn client_that_leaves_its_last_keyed_room_gets_back_the_limit_of_its_policy() {
    for policy in POLICIES {
        let mut world = with_policy(policy);
        let boards = [(); 2].map(|()| Board::new(&world.hub));
        let client = boards[0].joined(&mut world, 1)[0];
        let session = world.session(client);
        boards[1].join(&world.hub, &session).unwrap();
        world.settle();
        let mut leave = |board: &Board| {
            world.hub.leave(&board.room, &session).unwrap();
            world.settle();
            world.pipe(client).unsent_limit
        };
        assert_eq!(leave(&boards[0]), Some(UnsentLimit::Keyed));
        let expected = match policy {
            SlowConsumer::DropOldest | SlowConsumer::SkipAhead => UnsentLimit::PrefersNew,
            _ => UnsentLimit::System,
        };
        assert_eq!(leave(&boards[1]), Some(expected), "{policy:?}");
    }
}
