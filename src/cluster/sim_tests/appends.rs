//! Appends whose answers are lost.

use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::stored::{Deletion, Refusal};
use super::world::World;
use crate::cluster::outgoing::{AppendOutcome, AppendRequest};
use crate::history_id::{HistoryId, random_epoch};

/// Appends a message to a room that keeps two messages.
fn append(
    world: &mut World,
    node: usize,
    text: &str,
    expected: Option<HistoryId>,
) -> Receiver<AppendOutcome> {
    let (waiting, outcome) = channel();
    let new_epoch = match expected {
        Some(expected) if expected.sequence() == 0 => expected.epoch(),
        _ => random_epoch(),
    };
    let request = AppendRequest {
        messages_max: 2,
        bytes_max: 1 << 20,
        expected,
        new_epoch,
        waiting: Some(waiting),
    };
    assert!(world.append(node, "a", text, request));
    outcome
}

/// Appends a message whose answer is lost with the connection.
fn append_unanswered(world: &mut World, expected: Option<HistoryId>) -> Receiver<AppendOutcome> {
    let outcome = append(world, 0, "0:1", expected);
    world.turn(0);
    world.execute(0, 10);
    world.cut(0, 0);
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Empty));
    outcome
}

fn two_nodes() -> World {
    let mut world = World::new(2, 1);
    world.settle();
    world
}

#[test]
fn append_is_executed_once_though_its_answer_was_lost() {
    let mut world = two_nodes();
    let outcome = append_unanswered(&mut world, None);
    world.settle();
    let (position, texts) = world.stored("a").kept("a").unwrap();
    assert_eq!((position.sequence(), texts), (1, vec!["0:1".to_owned()]));
    assert_eq!(outcome.try_recv(), Ok(AppendOutcome::Id(position)));
    assert_eq!(world.counters(0).confirmed.get(), 1);
}

#[test]
fn append_sent_again_and_refused_is_unconfirmed_not_refused() {
    let mut world = two_nodes();
    let outcome = append_unanswered(&mut world, None);
    world.refuse_histories(0, Some(Refusal::Busy));
    world.settle();
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Disconnected));
    let counters = world.counters(0);
    assert_eq!(counters.unconfirmed.get(), 1);
    assert_eq!(counters.dropped_broker.get(), 0);
    assert_eq!(world.unanswered_append_bytes(0), 0);
}

#[test]
fn append_that_is_no_longer_kept_is_not_called_a_conflict() {
    let mut world = two_nodes();
    let begin = HistoryId::new(random_epoch(), 0);
    let outcome = append_unanswered(&mut world, Some(begin));
    let others: Vec<_> = ["1:1", "1:2"]
        .map(|text| append(&mut world, 1, text, None))
        .into();
    world.turn(1);
    world.execute(1, 10);
    world.settle();
    assert_eq!(
        others[1].try_recv(),
        Ok(AppendOutcome::Id(HistoryId::new(begin.epoch(), 3)))
    );
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn append_that_was_in_conflict_is_found_out_without_its_answer() {
    let mut world = two_nodes();
    let begin = HistoryId::new(random_epoch(), 0);
    let first = append(&mut world, 1, "1:1", Some(begin));
    world.settle();
    let position = HistoryId::new(begin.epoch(), 1);
    assert_eq!(first.try_recv(), Ok(AppendOutcome::Id(position)));
    let outcome = append_unanswered(&mut world, Some(begin));
    world.settle();
    assert_eq!(outcome.try_recv(), Ok(AppendOutcome::Conflict { position }));
}

#[test]
fn read_for_a_lost_answer_does_not_begin_the_epoch_of_the_append_again() {
    let mut world = two_nodes();
    let outcome = append_unanswered(&mut world, None);
    let (before, _) = world.stored("a").kept("a").unwrap();
    world.delete(0, "a", Deletion::Room);
    world.settle();
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Disconnected));
    let (position, _) = world.stored("a").kept("a").unwrap();
    assert_ne!(position.epoch(), before.epoch());
}

#[test]
fn append_that_is_sent_again_begins_an_epoch_of_its_own() {
    let mut world = two_nodes();
    let outcome = append_unanswered(&mut world, None);
    let (before, _) = world.stored("a").kept("a").unwrap();
    // With the counters, so the append is executed again.
    world.delete(0, "a", Deletion::All);
    world.settle();
    let (position, _) = world.stored("a").kept("a").unwrap();
    assert_ne!(position.epoch(), before.epoch());
    assert_eq!(outcome.try_recv(), Ok(AppendOutcome::Id(position)));
}

#[test]
fn append_whose_history_was_deleted_is_not_called_a_conflict() {
    let mut world = two_nodes();
    let begin = HistoryId::new(random_epoch(), 0);
    let outcome = append_unanswered(&mut world, Some(begin));
    world.delete(0, "a", Deletion::All);
    world.settle();
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Disconnected));
}

#[test]
fn unanswered_appends_are_bounded() {
    let mut world = two_nodes();
    world.freeze(0);
    let text = format!("0:1:{}", "x".repeat(100_000));
    let outcomes: Vec<_> = (0..60)
        .map(|_| append(&mut world, 0, &text, None))
        .collect();
    for _ in 0..100 {
        world.turn(0);
    }
    let bytes = world.unanswered_append_bytes(0);
    assert!(bytes > 4 << 20, "{bytes}");
    assert!(bytes < (4 << 20) + 200_000, "{bytes}");
    world.thaw(0);
    world.settle();
    for outcome in outcomes {
        assert!(matches!(outcome.try_recv(), Ok(AppendOutcome::Id(_))));
    }
    assert_eq!(world.unanswered_append_bytes(0), 0);
}
