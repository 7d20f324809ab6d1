//! Gaps in histories: what members are told, and what is counted.

use std::time::Duration;

use super::stored::{Deletion, Restart};
use super::world::World;
use crate::cluster::outgoing::AppendRequest;
use crate::history_id::random_epoch;

/// Appends a message of the first node to a room that keeps eight.
fn append(world: &mut World, text: &str) {
    let request = AppendRequest {
        messages_max: 8,
        bytes_max: 1 << 20,
        expected: None,
        new_epoch: random_epoch(),
        waiting: None,
    };
    assert!(world.append(0, "a", text, request));
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
