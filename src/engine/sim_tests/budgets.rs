//! The memory budgets of a shard: memory held by all connections is counted exactly and bounded, and the connection to evict
//! is found without scanning the others.

use std::sync::Arc;

use bytes::Bytes;

use super::wire::{client_frame, client_ping, client_text, status, text};
use super::world::{Setup, World};
use crate::engine::model::command::Command;
use crate::engine::model::job::SessionEvent;
use crate::engine::model::program::Subscriptions;
use crate::engine::reactor::EVICTED_PER_TURN;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::fuzz::dice::Dice;

const KIB: usize = 1 << 10;

// --------------------------------------------------------------------------------------------------------- outboxes

#[test]
fn echo_with_unread_tail_counts_in_full() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(10);
    for &client in &clients {
        world.stall(client, 15 * KIB - 10);
        world.client_says(client, &"x".repeat(15 * KIB));
        world.run_handlers();
        let own = world.core().cx.fanout.unshared_bytes();
        assert!(own <= 64 * KIB, "{own}");
    }
    let left = clients.iter().filter(|&&client| !world.is_closed(client));
    assert_eq!(left.count(), 4);
    assert!(world.core().cx.fanout.unshared_bytes() > 60 * KIB);
}

/// The bytes held for clients that no other outbox shares.
fn held(world: &mut World, clients: &[usize], sent: &mut Vec<Bytes>) -> usize {
    // Here each frame is for one client only, so it is counted once.
    sent.retain(|frame| !frame.is_unique());
    let copies: usize = clients.iter().map(|&c| world.kept_bytes(c)).sum();
    copies + sent.iter().map(Bytes::len).sum::<usize>()
}

#[test]
fn bytes_held_for_clients_never_exceed_the_count() {
    let policies = [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        SlowConsumer::pace(),
    ];
    for (seed, policy) in (0..).zip(policies.into_iter().cycle().take(50)) {
        let mut dice = Dice::from_seed(seed);
        let mut world = World::new(Setup {
            slow_consumer: policy,
            limits: Limits {
                outbox_bytes_max: 64 * KIB,
                ..Limits::default()
            },
            ..Setup::default()
        });
        let clients = world.joined(3);
        let mut sent = Vec::new();
        for &client in &clients {
            world.stall(client, 0);
        }
        for _ in 0..150 {
            let client = clients[dice.below(3)];
            match dice.below(6) {
                0 | 1 => {
                    for _ in 0..=dice.below(4) {
                        let len = [10, 700, 3_000, 20_000][dice.below(4)];
                        let frame = Message::new("x".repeat(len)).frame().clone();
                        let command = Command::Send(world.key(client), frame.clone());
                        if world.hub.post(world.id(client), command, false).is_ok() {
                            sent.push(frame);
                        }
                    }
                }
                2 => {
                    let _ = world.try_broadcast("b".repeat(1 + dice.below(4_000)));
                }
                3 => world.client_sends(client, client_ping(b"?")),
                _ => world.client_reads(client, 1 + dice.below(9_000)),
            }
            world.settle();
            let held = held(&mut world, &clients, &mut sent);
            let command = world.core().cx.fanout.commands.iter();
            let waits = command.map(|command| match command {
                Command::Send(_, frame) => frame.len(),
                _ => 0,
            });
            // Under pace, commands wait before the outboxes, in the mailbox or after it.
            let waits = waits.sum::<usize>();
            let in_mailbox = world.hub.shards[0].mailbox.bytes();
            let counted = world.core().cx.fanout.unshared_bytes() + waits + in_mailbox;
            assert!(
                held <= counted,
                "seed {seed}, {policy:?}: {held} > {counted}"
            );
        }
    }
}

#[test]
fn piece_of_a_batch_does_not_hold_the_whole_batch() {
    const OUTBOX: usize = 256 * KIB;
    let mut world = World::new(Setup {
        slow_consumer: SlowConsumer::DropNewest,
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let client = world.join();
    world.stall(client, 0);
    world.sends(client, &"x".repeat(OUTBOX - 8 * KIB));
    world.settle();
    for _ in 0..30 {
        // Room for one message of each batch.
        world.client_reads(client, 8 * KIB);
        for _ in 0..14 {
            world.broadcasts("x".repeat(8 * KIB - 14));
        }
        world.settle();
    }
    let waits = world.waiting_bytes(client);
    let own = world.core().cx.fanout.unshared_bytes();
    assert!(waits > OUTBOX - 16 * KIB, "{waits}");
    // The remaining frames are copies, not slices that keep a batch of 112 KiB alive.
    assert!(own + 16 * KIB >= waits, "{own} of {waits} are its own");
}

#[test]
fn trickling_reader_is_disconnected_like_a_nonreader() {
    let mut world = World::echoing(Limits::default());
    let (trickles, reads) = (world.join(), world.join());
    for client in [trickles, reads] {
        world.stall(client, 0);
        world.sends(client, &"x".repeat(900_000));
    }
    world.settle();
    for second in 0..600 {
        world.advance_ms(1_000);
        if second % 29 == 0 {
            world.client_reads(trickles, 1);
        }
        world.client_reads(reads, 1_100);
        assert!(!world.is_closed(reads), "after {second} s");
        if second != 29 {
            assert_eq!(world.is_closed(trickles), second > 29, "after {second} s");
        }
    }
}

#[test]
fn trickling_reader_before_a_close_frame_is_disconnected() {
    let mut world = World::echoing(Limits::default());
    let client = world.join();
    world.stall(client, 0);
    world.sends(client, &"x".repeat(10_000));
    world.closes(client, 1000, "");
    world.settle();
    for _ in 0..6 {
        world.advance_ms(1_000);
        world.client_reads(client, 1);
    }
    assert!(world.is_closed(client));
}

#[test]
fn handshakes_of_disconnected_clients_are_bounded() {
    let mut world = World::new(Setup {
        limits: Limits {
            message_bytes_max: KIB,
            received_bytes_max: 256 * KIB,
            ..Limits::default()
        },
        subscriptions: Subscriptions {
            handshake: true,
            open: true,
            ..Subscriptions::default()
        },
        gate: Box::new(|_| Ok(crate::engine::model::program::HandshakeAccept::default())),
        ..Setup::default()
    });
    for _ in 0..1_000 {
        let client = world.connect();
        let head = format!("X-Much: {}\r\n\r\n", "x".repeat(8 * KIB));
        let upgrade = super::wire::UPGRADE;
        let upgrade = [&upgrade[..upgrade.len() - 2], head.as_bytes()].concat();
        world.client_sends(client, upgrade);
        world.client_resets(client);
        let held = world.core().cx.receive_budget.bytes();
        assert!(held <= 48 * KIB, "{held}");
    }
    let jobs = world.jobs.len();
    assert!(jobs <= 32 * KIB / REQUEST_BYTES, "{jobs}");
    world.assert_empty();
}

#[test]
fn ended_connections_are_bounded_while_handlers_block() {
    let mut world = World::echoing(Limits {
        connections_max: 10,
        ..Limits::default()
    });
    for client in world.joined(10) {
        world.client_resets(client);
    }
    let mut refused = 0;
    for _ in 0..100 {
        let client = world.connect();
        world.client_sends(client, super::wire::UPGRADE);
        refused += usize::from(status(&world.output(client)) == Some(503));
        world.client_resets(client);
    }
    assert!(refused >= 80, "{refused}");
    assert!(world.jobs.len() <= 22, "{}", world.jobs.len());
    world.run_handlers();
    world.join();
}

#[test]
fn attachments_of_ended_connections_are_bounded() {
    // The program attaches a value to each connection and has no disconnect handler. A handler thread drops the value anyway.
    let mut world = World::new(Setup {
        limits: Limits {
            connections_max: 10,
            ..Limits::default()
        },
        subscriptions: Subscriptions::default(),
        ..Setup::default()
    });
    let mut refused = 0;
    for _ in 0..100 {
        let client = world.connect();
        world.client_sends(client, super::wire::UPGRADE);
        if status(&world.output(client)) == Some(503) {
            refused += 1;
        } else {
            let _ = world.session(client).attachment.set(Arc::new(()));
            world.forget_sessions();
        }
        world.client_resets(client);
    }
    assert!(refused >= 80, "{refused}");
    assert!(world.jobs.len() <= 11, "{}", world.jobs.len());
    world.run_handlers();
    world.join();
}

// ------------------------------------------------------------------------------------------------------------- costs

#[test]
fn evicting_unfinished_messages_visits_only_the_victims() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 4 * KIB,
        received_bytes_max: 512 * KIB,
        ..Limits::default()
    });
    let begun = &client_text(&"x".repeat(2 * KIB))[..KIB];
    for client in world.joined(1_000) {
        world.client_sends(client, begun);
    }
    let victims = world.metrics().unfinished_messages;
    let lookups = world.core().cx.receive_budget.unfinished.lookups;
    assert!(victims > 600, "{victims}");
    assert_eq!(lookups, victims);
}

#[test]
fn evictions_are_reported_a_few_per_turn() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 4 * KIB,
        received_bytes_max: 512 * KIB,
        ..Limits::default()
    });
    let evicted = world.joined(500);
    let begun = &client_text(&"x".repeat(2 * KIB))[..KIB];
    for &client in &evicted {
        world.pipe(client).client_sends(begun);
    }
    let writes = |world: &World| -> usize {
        let tries = |&client| world.pipe(client).tries;
        evicted.iter().map(tries).sum()
    };
    let (joined, first) = (writes(&world), world.turns);
    world.settle();
    let turns = world.turns - first;
    let told = writes(&world) - joined;
    assert!(told <= EVICTED_PER_TURN * turns, "{told} in {turns} turns");
    let victims = world.metrics().unfinished_messages;
    assert!(victims > 200, "{victims}");
    assert_eq!(told as u64, victims);
}

#[test]
fn evicting_nonreaders_visits_only_the_victims() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 4 * KIB,
        outboxes_bytes_max: 256 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(1_000);
    let mut tries = 0;
    for &client in &clients {
        world.stall(client, 0);
        world.client_says(client, &"x".repeat(KIB));
        world.run_handlers();
        tries += world.pipe(client).tries;
    }
    let victims = world.metrics().slow_consumers;
    let lookups = world.core().cx.fanout.blocked.lookups;
    assert!(victims > 600, "{victims}");
    assert_eq!(lookups, victims);
    // The shard tries to write to each client after a send and before the eviction.
    assert!(tries < 4 * 1_000 + 1_000, "{tries}");
}

#[test]
fn evicting_clients_with_queued_input_visits_only_them() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 16 * KIB,
        received_bytes_max: 2_048 * KIB,
        outbox_bytes_max: 32 * KIB,
        ..Limits::default()
    });
    let payload = "x".repeat(15 * KIB);
    for client in world.joined(200) {
        world.stall(client, 0);
        for _ in 0..3 {
            world.client_says(client, &payload);
            world.run_handlers();
        }
    }
    let victims = world.metrics().slow_consumers;
    let lookups = world.core().cx.receive_budget.held_back.lookups;
    assert!(victims > 100, "{victims}");
    assert!(lookups <= victims + 1, "{lookups} for {victims}");
}

#[test]
fn turn_over_the_send_budget_tries_each_client_once() {
    let mut world = World::echoing(Limits {
        message_bytes_max: 4 * KIB,
        outboxes_bytes_max: 8 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(500);
    // All of it happens in one turn, and all clients read.
    for &client in &clients {
        world.sends(client, &"x".repeat(3 * KIB));
    }
    world.settle();
    for &client in &clients {
        assert_eq!(world.all_frames(client), [text("x".repeat(3 * KIB))]);
        let tries = world.pipe(client).tries;
        assert!(tries <= 3, "{tries}");
    }
    assert_eq!(world.metrics().slow_consumers, 0);
}

#[test]
fn tiny_messages_count_with_their_allocations() {
    let mut world = World::new(Setup {
        limits: Limits {
            pending_bytes_max: usize::MAX,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let client = world.join();
    world.client_says(client, "first");
    world.client_sends(client, client_frame(0x82, b"").repeat(10_000));
    // A frame of two bytes is an allocation of at least 16, and its list's capacity may be twice its length.
    let each = 16 + 2 * size_of::<SessionEvent>();
    let counted = world.core().cx.receive_budget.bytes();
    assert!(counted >= 10_000 * each, "{counted}");
}
