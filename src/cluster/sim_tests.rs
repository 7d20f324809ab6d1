//! Several nodes on a broker in the process, with chance: connections break, the broker restarts and delays, members'
//! mailboxes fill up. Time is simulated.

mod appends;
mod broker;
mod changing_rooms;
mod gaps;
mod histories;
mod presence;
mod recorder;
mod stored;
mod world;

use std::time::Duration;

use self::world::World;
use super::broker::{Channel, Event};
use super::interest::Waited;
use super::node::HEARTBEAT_INTERVAL;
use super::peers::SILENCE_MAX;
use super::queries::Answers;
use super::wire::{Content, DirectAction};
use crate::metrics::DurationHistogram;
use crate::protocol::fuzz::dice::for_seeds;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = env("SEED");
    let seeds = env("SEEDS");
    let first = first.unwrap_or(0);
    first..first + seeds.unwrap_or(default)
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn message_to_a_room_reaches_subscribed_nodes_in_order() {
    let mut world = World::new(3, 1);
    world.need(1, "a");
    world.settle();
    for text in ["1", "2", "3"] {
        world.publish(0, world::room("a"), text);
        world.publish(0, Channel::Everyone, text);
    }
    world.settle();
    assert_eq!(
        world.delivered(1),
        ["a 1", "* 1", "a 2", "* 2", "a 3", "* 3"]
    );
    assert_eq!(world.delivered(2), ["* 1", "* 2", "* 3"]);
    assert!(world.delivered(0).is_empty(), "its own came back");
}

#[test]
fn room_is_unsubscribed_some_time_after_its_last_member() {
    let mut world = World::new(2, 1);
    world.need(1, "a");
    world.settle();
    world.unneed(1, "a");
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.subscribers("a"), 1, "it may be needed again soon");
    world.need(1, "a");
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.subscribers("a"), 1, "it is needed again");
    world.unneed(1, "a");
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.subscribers("a"), 0);
}

#[test]
fn interest_is_live_once_subscribed_and_not_during_an_outage() {
    let mut world = World::new(1, 1);
    let before = world.need(0, "a");
    assert_eq!(world.settled(0, &before), None, "it may be up");
    world.settle();
    assert_eq!(world.waited(0, &before), Waited::Subscribed);
    let again = world.need(0, "a");
    world.settle();
    assert_eq!(world.waited(0, &again), Waited::Subscribed);
    world.cut(0, 0);
    assert_eq!(world.waited(0, &again), Waited::Unreachable);
    world.settle();
    assert_eq!(world.waited(0, &again), Waited::Subscribed);
}

#[test]
fn messages_missed_during_an_outage_are_counted_by_the_receiver() {
    let mut world = World::new(2, 1);
    world.need(1, "a");
    world.settle();
    world.publish(0, world::room("a"), "1");
    world.settle();
    world.stall_reconnects(1);
    world.cut(1, 0);
    for text in ["2", "3"] {
        world.publish(0, world::room("a"), text);
    }
    world.settle();
    world.allow_reconnects(1);
    world.settle();
    world.publish(0, world::room("a"), "4");
    world.settle();
    assert_eq!(world.delivered(1), ["a 1", "a 4"]);
    assert_eq!(world.counters(1).missed_remote.get(), 2);
}

#[test]
fn frozen_broker_is_given_up_after_three_seconds() {
    let mut world = World::new(2, 1);
    world.settle();
    world.freeze(0);
    world.run_for(SILENCE_MAX - HEARTBEAT_INTERVAL);
    assert_eq!(world.counters(0).silences.get(), 0);
    world.run_for(HEARTBEAT_INTERVAL * 3);
    assert!(world.counters(0).silences.get() > 0);
    world.thaw(0);
    world.settle();
    assert_eq!(world.nodes_heard(0), 2);
}

#[test]
fn silent_node_is_gone_within_four_seconds() {
    let mut world = World::new(3, 1);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    assert_eq!(world.nodes_heard(0), 3);
    world.stop_running(2);
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.nodes_heard(0), 2);
    world.run_again(2);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    assert_eq!(world.nodes_heard(0), 3, "it is back");
    assert_eq!(
        world.nodes_heard(2),
        3,
        "it did not judge the time in which it stood still"
    );
}

#[test]
fn stopping_node_is_gone_at_once() {
    let mut world = World::new(2, 1);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    world.stop(1);
    world.settle();
    assert_eq!(world.nodes_heard(0), 1);
}

#[test]
fn messages_of_rooms_are_spread_over_the_servers() {
    let mut world = World::new(2, 3);
    let names: Vec<_> = (0..300).map(|n| format!("room {n}")).collect();
    for name in &names {
        world.need(1, name);
    }
    world.settle();
    for name in &names {
        world.publish(0, world::room(name), "x");
    }
    world.settle();
    assert_eq!(world.delivered(1).len(), 300);
    for server in 0..3 {
        let published = world.published(server);
        assert!((60..=140).contains(&published), "{published}");
    }
}

#[test]
fn full_mailbox_parks_messages_and_then_drops_them() {
    let mut world = World::new(2, 1);
    world.need(1, "a");
    world.settle();
    world.fill_mailbox(1, true);
    let long = "x".repeat(100_000);
    for _ in 0..200 {
        world.publish(0, world::room("a"), &long);
        world.settle();
    }
    assert!(world.delivered(1).is_empty());
    world.fill_mailbox(1, false);
    world.settle();
    let delivered = world.delivered(1).len() as u64;
    let dropped = world.counters(1).dropped_full.get();
    assert_eq!(delivered + dropped, 200);
    assert!(dropped > 0 && delivered > 70, "{delivered} {dropped}");
}

#[test]
fn actions_reach_one_connection_of_one_node_in_order() {
    let mut world = World::new(3, 2);
    world.settle();
    world.act_on(0, 7, 2, DirectAction::Join { room: "a" });
    world.act_on(0, 7, 2, DirectAction::Leave { room: "a" });
    world.act_on(0, 8, 2, DirectAction::Join { room: "b" });
    world.fill_mailbox(2, true);
    world.settle();
    assert!(world.delivered(2).is_empty(), "they wait for the mailbox");
    world.fill_mailbox(2, false);
    world.settle();
    let expected = [
        "7 Join { room: \"a\" }",
        "7 Leave { room: \"a\" }",
        "8 Join { room: \"b\" }",
    ];
    assert_eq!(world.delivered(2), expected);
    assert!(world.delivered(1).is_empty());
}

#[test]
fn users_are_closed_on_all_other_nodes() {
    let mut world = World::new(3, 1);
    world.settle();
    let close = Content::CloseUser {
        user: "Ada",
        code: 4_001,
        reason: "bye",
    };
    world.queue(0, Channel::Nodes, &close);
    world.settle();
    for node in [1, 2] {
        assert_eq!(world.delivered(node), ["close Ada 4001 bye"]);
    }
    assert!(world.delivered(0).is_empty());
}

#[test]
fn count_is_complete_once_all_nodes_that_are_heard_have_answered() {
    let mut world = World::new(3, 2);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    let ask = |world: &mut World| {
        let query = world.queries(0).begin();
        let room = Some("four");
        world.queue(0, Channel::Nodes, &Content::Count { query, room });
        world.settle();
        world.queries(0).wait(query, Duration::ZERO)
    };
    let answers = |nodes: usize, is_complete| Answers {
        members: 4 * nodes as u64,
        nodes,
        is_complete,
    };
    assert_eq!(ask(&mut world), answers(2, true));
    world.stop_running(2);
    assert_eq!(ask(&mut world), answers(1, false), "one does not answer");
    world.run_for(Duration::from_secs(4));
    assert_eq!(ask(&mut world), answers(1, true), "it is gone");
}

#[test]
fn waiting_for_answers_ends_when_the_silent_node_is_gone() {
    let queries = super::queries::Queries::default();
    queries.set_peers([1, 2].into_iter());
    assert!(queries.hears(1) && !queries.hears(3));
    let query = queries.begin();
    queries.answer(query, 1, 10);
    queries.answer(query, 1, 10);
    queries.answer(query, 3, 10);
    queries.answer(query + 1, 2, 10);
    queries.set_peers([1].into_iter());
    let answers = queries.wait(query, Duration::from_secs(60));
    let expected = Answers {
        members: 10,
        nodes: 1,
        is_complete: true,
    };
    assert_eq!(
        answers, expected,
        "only the first answer of each node asked counts"
    );
}

#[test]
fn refused_subscription_is_tried_again_and_delays_no_join() {
    let mut world = World::new(2, 1);
    world.settle();
    world.refuse_subscriptions(0, true);
    let interest = world.need(1, "a");
    world.settle();
    assert_eq!(world.settled(1, &interest), Some(Waited::Unreachable));
    assert_eq!(world.counters(1).dropped_broker.get(), 0);
    world.refuse_subscriptions(0, false);
    world.run_for(Duration::from_millis(1_100));
    assert_eq!(world.waited(1, &interest), Waited::Subscribed);
    world.publish(0, world::room("a"), "1");
    world.settle();
    assert_eq!(world.delivered(1), ["a 1"]);
}

#[test]
fn frozen_broker_is_noticed_after_a_standstill_of_the_node() {
    let mut world = World::new(1, 1);
    world.settle();
    // The broker answers the last heartbeat, but the node does not run for an hour.
    world.run_for(HEARTBEAT_INTERVAL);
    world.stop_running(0);
    world.execute(0, 10);
    world.pass(Duration::from_secs(3_600));
    world.run_again(0);
    world.turn(0);
    world.freeze(0);
    world.run_for(Duration::from_secs(5));
    assert!(world.counters(0).silences.get() > 0);
}

#[test]
fn frozen_broker_makes_no_other_node_gone() {
    let mut world = World::new(3, 1);
    world.settle();
    // The heartbeats of the nodes are not simultaneous.
    world.stop_running(0);
    world.run_for(HEARTBEAT_INTERVAL / 2);
    world.cut(0, 0);
    world.run_again(0);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    world.freeze(0);
    for _ in 0..100 {
        world.run_for(Duration::from_millis(100));
        for node in 0..3 {
            assert_eq!(world.nodes_heard(node), 3);
        }
    }
    world.thaw(0);
    world.run_for(HEARTBEAT_INTERVAL * 4);
    for node in 0..3 {
        assert_eq!(world.nodes_heard(node), 3);
    }
}

#[test]
fn node_that_is_gone_stays_so_while_the_broker_restarts() {
    let mut world = World::new(2, 1);
    world.settle();
    world.stop_running(1);
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.nodes_heard(0), 1);
    world.restart(0);
    for _ in 0..50 {
        world.run_for(Duration::from_millis(100));
        assert_eq!(world.nodes_heard(0), 1);
    }
}

#[test]
fn last_heartbeat_of_a_stopping_node_remains_the_last() {
    let mut world = World::new(2, 1);
    world.settle();
    world.begin_stop(1);
    world.run_for(HEARTBEAT_INTERVAL * 2);
    assert_eq!(world.nodes_heard(0), 1);
}

#[test]
fn new_node_hears_all_others_at_once() {
    let mut world = World::new(3, 1);
    world.stop_running(2);
    world.run_for(Duration::from_millis(500));
    world.run_again(2);
    world.settle();
    assert_eq!(world.nodes_heard(2), 3);
}

#[test]
fn users_are_closed_after_the_messages_that_are_parked() {
    let mut world = World::new(2, 1);
    world.settle();
    world.fill_mailbox(1, true);
    world.publish(0, Channel::Everyone, "before");
    world.queue(
        0,
        Channel::Nodes,
        &Content::CloseUser {
            user: "Ada",
            code: 4_001,
            reason: "bye",
        },
    );
    world.publish(0, Channel::Everyone, "after");
    world.settle();
    assert!(world.delivered(1).is_empty());
    world.fill_mailbox(1, false);
    world.settle();
    let expected = ["* before", "close Ada 4001 bye", "* after"];
    assert_eq!(world.delivered(1), expected);
}

#[test]
fn answer_without_a_question_is_ignored() {
    let mut world = World::new(2, 1);
    world.settle();
    for _ in 0..10 {
        world.event(0, Event::Published { receivers: 1 });
    }
    world.run_for(HEARTBEAT_INTERVAL * 2);
    assert_eq!(world.nodes_heard(0), 2);
    assert_eq!(world.counters(0).confirmed.get(), 0, "heartbeats count not");
}

#[test]
fn round_trip_lasts_from_a_command_to_its_answer() {
    let mut world = World::new(1, 1);
    world.settle();
    let round_trips = |world: &World| {
        let mut sum = DurationHistogram::default();
        world.counters(0).round_trips.add_to(&mut sum);
        sum
    };
    let before = round_trips(&world);
    world.freeze(0);
    world.publish(0, Channel::Everyone, "late");
    world.run_for(Duration::from_millis(500));
    world.thaw(0);
    world.settle();
    let after = round_trips(&world);
    assert_eq!(world.counters(0).confirmed.get(), 1);
    let took = after.sum() - before.sum();
    assert!(after.count() > before.count());
    // It is handed over in the first step of the time, of which each has 10 ms.
    assert!(took >= Duration::from_millis(490), "{took:?}");
    // At most the heartbeat of this time waited as well.
    assert!(took <= Duration::from_millis(1_100), "{took:?}");
}

#[test]
fn rooms_that_are_joined_and_left_fast_are_bounded() {
    let mut world = World::new(1, 1);
    world.settle();
    for n in 0..30_000 {
        let name = n.to_string();
        world.need(0, &name);
        world.unneed(0, &name);
        if n % 100 == 0 {
            world.settle();
        }
    }
    world.settle();
    assert_eq!(world.subscriptions(), 10_000);
    world.run_for(Duration::from_secs(6));
    assert_eq!(world.subscriptions(), 0);
}

#[test]
fn messages_between_two_subscriptions_are_not_missed() {
    let mut world = World::new(2, 1);
    world.need(1, "a");
    world.settle();
    world.unneed(1, "a");
    world.pass(Duration::from_secs(6));
    // Unsubscribes, which the broker has not executed when the next message arrives there.
    world.turn(1);
    let publish = |world: &mut World, text: &str| {
        world.publish(0, world::room("a"), text);
        world.turn(0);
        world.execute(0, 10);
    };
    publish(&mut world, "1");
    let interest = world.need(1, "a");
    world.receive(1, 10);
    assert!(world.delivered(1).is_empty(), "it is not subscribed yet");
    world.execute(1, 1);
    publish(&mut world, "2");
    world.settle();
    assert_eq!(world.waited(1, &interest), Waited::Subscribed);
    publish(&mut world, "3");
    world.settle();
    assert_eq!(world.delivered(1), ["a 3"]);
    assert_eq!(world.counters(1).missed_remote.get(), 0);
}

/// While a room is subscribed, everything that is published to it arrives; when it was not, nothing is missed.
#[test]
fn every_message_to_a_subscribed_room_is_delivered() {
    for seed in seeds(300) {
        changing_rooms::game(seed);
    }
}

/// Whatever happens to the servers and the connections, the copies of histories are complete, or their rooms' members are
/// told of a gap.
#[test]
fn every_message_of_a_history_follows_or_a_gap_is_told() {
    for_seeds(300, histories::game);
}

/// Whatever happens, each node soon knows the members of its rooms on all nodes that are there, and the room handler is told of each
/// change once.
#[test]
fn presence_of_every_room_is_the_set_of_its_members() {
    for_seeds(200, presence::game);
}

/// Chance decides what happens. In the end, each message was delivered once to every node that needed its room all the
/// time, in the order of its sender, or was counted as lost.
#[test]
fn every_message_is_delivered_in_order_or_counted() {
    for seed in seeds(300) {
        world::game(seed);
    }
}
