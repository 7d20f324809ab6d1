//! Gaps in histories: what members are told, and what is counted.

use std::time::Duration;

use bytes::Bytes;

use super::stored::{Deletion, Restart};
use super::world::{World, room};
use crate::cluster::broker::Event;
use crate::cluster::outgoing::AppendRequest;
use crate::history_id::{HistoryId, random_epoch};

/// Appends a message of the first node to the room `a`, which keeps eight.
fn append(world: &mut World, text: &str) {
    append_to(world, "a", text);
}

fn append_to(world: &mut World, room: &str, text: &str) {
    let request = AppendRequest {
        messages_max: 8,
        bytes_max: 1 << 20,
        expected: None,
        new_epoch: random_epoch(),
        waiting: None,
    };
    assert!(world.append(0, room, text, request));
    world.settle();
}

#[test]
fn gap_after_a_change_of_server_is_counted_by_its_own_cause() {
    let mut world = World::with_parked_bytes(2, 1, 4_000);
    world.need_history(1, "a", 8);
    append(&mut world, "0:1");
    // The node can't deliver all that it reads from the next server.
    world.fill_mailbox(1, true);
    world.stall_reconnects(1);
    world.restart_with(0, Restart::LosesData);
    for _ in 0..8 {
        let text = format!("0:2:{}", "x".repeat(600));
        append(&mut world, &text);
    }
    world.allow_reconnects(1);
    world.settle();
    // That server loses the history, too.
    world.delete(0, "a", Deletion::Room);
    append(&mut world, "0:3");
    world.fill_mailbox(1, false);
    world.run_for(Duration::from_millis(50));
    world.settle();
    let copy = world.copy(1, "a").unwrap();
    assert_eq!(copy.texts, ["0:3"]);
    let counters = world.counters(1);
    assert_eq!(counters.gaps_server_changed.get(), 1);
    assert_eq!(counters.gaps.get(), 1);
}

/// Two nodes of which the second has a copy of the room `a`.
fn kept_by_second_node() -> World {
    let mut world = World::new(2, 1);
    world.need_history(1, "a", 8);
    append(&mut world, "0:1");
    assert_eq!(world.copy(1, "a").unwrap().texts, ["0:1"]);
    world
}

/// Checks that the second node's members were told of a gap, and that its copy begins anew at this position.
fn check_gap(world: &World, position: HistoryId) {
    let copy = world.copy(1, "a").unwrap();
    assert_eq!((copy.position, copy.texts.len()), (position, 0));
    assert_eq!(world.gaps_told(1), 1);
    let counters = world.counters(1);
    assert_eq!(counters.gaps.get(), 1);
    assert_eq!(counters.bad_envelopes.get(), 1);
}

#[test]
fn published_message_that_cannot_be_decoded_is_told_and_counted_as_a_gap() {
    let mut world = kept_by_second_node();
    let (position, _) = world.stored("a").kept("a").unwrap();
    let next = HistoryId::new(position.epoch(), position.sequence() + 1);
    let bad = Event::Message {
        channel: room("a"),
        id: Some(next),
        envelope: Bytes::from_static(b"?"),
    };
    world.event(1, bad);
    check_gap(&world, next);
}

#[test]
fn read_message_that_cannot_be_decoded_is_told_and_counted_as_a_gap() {
    let mut world = kept_by_second_node();
    world.stall_reconnects(1);
    world.cut(1, 0);
    append(&mut world, "0:2");
    let (position, _) = world.stored("a").kept("a").unwrap();
    world.spoil_last("a");
    world.allow_reconnects(1);
    world.settle();
    check_gap(&world, position);
    append(&mut world, "0:3");
    assert_eq!(world.copy(1, "a").unwrap().texts, ["0:3"]);
}

#[test]
fn rooms_too_long_to_be_read_together_are_read_without_a_gap() {
    let mut world = World::new(2, 1);
    let rooms = ["a", "b", "c", "d"];
    for room in rooms {
        world.need_history(1, room, 8);
    }
    world.settle();
    let reads = world.counters(1).history_reads.get();
    world.stall_reconnects(1);
    world.cut(1, 0);
    // The broker of a simulation reads 200 bytes at once.
    let text = format!("0:1:{}", "x".repeat(150));
    for room in rooms {
        append_to(&mut world, room, &text);
    }
    world.allow_reconnects(1);
    world.settle();
    for room in rooms {
        assert_eq!(world.copy(1, room).unwrap().texts, [text.as_str()]);
    }
    assert_eq!(world.gaps_told(1), 0);
    assert_eq!(world.counters(1).history_reads.get(), reads + 4);
}
