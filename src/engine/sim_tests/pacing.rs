//! Backpressure: how long producers wait for slow clients under [`SlowConsumer::Pace`].

use std::time::Duration;

use super::wire::{client_frame, text};
use super::world::{Setup, World, echo};
use crate::limits::{Limits, SlowConsumer};

const OUTBOX: usize = 1_000;
const PATIENCE_MS: u64 = 1_000;
/// The tolerance of deadlines: one step of the shard's clock in each direction.
const STEP_MS: u64 = 8;

fn paced() -> World {
    World::new(Setup {
        slow_consumer: SlowConsumer::Pace {
            bytes_per_second_min: 1_000,
            patience: Duration::from_millis(PATIENCE_MS),
        },
        limits: Limits {
            outbox_bytes_max: OUTBOX,
            ..Limits::default()
        },
        handler: Box::new(echo),
        ..Setup::default()
    })
}

/// Measures how many milliseconds a message takes to reach a client.
fn delay_ms(world: &mut World, client: usize) -> u64 {
    world.sends(client, "reaches it");
    world.run_handlers();
    let mut ms = 0;
    while !world.frames(client).contains(&text("reaches it")) {
        world.advance_ms(STEP_MS);
        ms += STEP_MS;
        assert!(ms < 100_000, "it never reaches it");
    }
    ms
}

#[test]
fn long_message_waits_for_nonreader_no_longer_than_patience() {
    for waits_bytes in [1, OUTBOX / 4, OUTBOX / 2 - 10] {
        for broadcast in [true, false] {
            let mut world = paced();
            let (stuck, other) = (world.join(), world.join());
            world.stall(stuck, 0);
            world.sends(stuck, &"x".repeat(waits_bytes));
            world.settle();
            // Its outbox lacks room only for a longer message, so nothing is written to it when that arrives.
            let long = "y".repeat(OUTBOX);
            if broadcast {
                world.broadcasts(&long);
            } else {
                world.client_says(other, &long);
                world.run_handlers();
            }
            let delay = delay_ms(&mut world, other);
            // A client that is no recipient needs no room for the message.
            let waits_ms = if broadcast { PATIENCE_MS } else { 0 };
            assert!(delay <= waits_ms + STEP_MS, "{delay} ms");
            assert_eq!(world.metrics().slow_consumers, u64::from(broadcast));
        }
    }
}

#[test]
fn constant_pongs_do_not_extend_a_nonreaders_deadline() {
    let mut world = paced();
    let (stuck, other) = (world.join(), world.join());
    world.stall(stuck, 0);
    world.sends(stuck, &"x".repeat(OUTBOX / 4));
    world.settle();
    // This is longer than the patience, so the client's time is over as soon as its outbox lacks room.
    world.advance_ms(2 * PATIENCE_MS);
    world.broadcasts("y".repeat(OUTBOX));
    world.client_sends(stuck, client_frame(0x8a, b""));
    world.sends(other, "reaches it");
    let mut ms = 0;
    while !world.frames(other).contains(&text("reaches it")) {
        // Pongs are read in each turn before deadlines are checked.
        world.skip_ms(2 * STEP_MS);
        ms += 2 * STEP_MS;
        world.pipe(stuck).client_sends(&client_frame(0x8a, b""));
        world.turn();
        assert!(ms <= PATIENCE_MS, "it never reaches it");
    }
    assert_eq!(world.metrics().slow_consumers, 1);
}

#[test]
fn long_message_for_nonreader_itself_waits_for_its_patience() {
    for waits_bytes in [1, OUTBOX / 4, OUTBOX / 2 - 10] {
        let mut world = paced();
        let (stuck, other) = (world.join(), world.join());
        world.stall(stuck, 0);
        world.sends(stuck, &"x".repeat(waits_bytes));
        world.settle();
        world.sends(stuck, &"y".repeat(OUTBOX));
        let delay = delay_ms(&mut world, other);
        assert!(
            (PATIENCE_MS - 2 * STEP_MS..=PATIENCE_MS + STEP_MS).contains(&delay),
            "{delay} ms"
        );
        assert_eq!(world.metrics().slow_consumers, 1);
        // Producers wait for a client that reads, and it receives both messages.
        let reader = world.join();
        world.stall(reader, 0);
        world.sends(reader, &"x".repeat(waits_bytes));
        world.settle();
        world.sends(reader, &"y".repeat(OUTBOX));
        world.settle();
        world.unstall(reader);
        let delay = delay_ms(&mut world, other);
        assert!(delay <= STEP_MS, "{delay} ms");
        assert_eq!(world.all_frames(reader).len(), 2);
    }
}

#[test]
fn nonreader_is_not_waited_for_twice() {
    let mut world = paced();
    let (stuck, other) = (world.join(), world.join());
    world.stall(stuck, 0);
    world.sends(stuck, "waits");
    world.advance_ms(PATIENCE_MS);
    world.broadcasts("y".repeat(OUTBOX - 20));
    let delay = delay_ms(&mut world, other);
    assert!(delay <= 2 * STEP_MS, "{delay} ms");
    // Producers wait for a client that accepts bytes when the shard tries to write.
    let reader = world.join();
    world.stall(reader, 0);
    world.sends(reader, &"x".repeat(100));
    world.advance_ms(PATIENCE_MS);
    world.pipe(reader).add_room_unreported(50);
    world.broadcasts("y".repeat(OUTBOX - 20));
    world.advance_ms(2 * STEP_MS);
    world.unstall(reader);
    assert_eq!(world.all_frames(reader).len(), 2);
    assert_eq!(world.metrics().slow_consumers, 1);
}

#[test]
fn many_nonreaders_at_once_cost_one_patience() {
    let mut world = paced();
    let stuck = world.joined(60);
    let other = world.join();
    for &client in &stuck {
        world.stall(client, 0);
    }
    for _ in 0..2 {
        world.broadcasts("x".repeat(OUTBOX - 20));
    }
    let delay = delay_ms(&mut world, other);
    assert!(delay <= PATIENCE_MS + STEP_MS, "{delay} ms");
    assert_eq!(world.metrics().slow_consumers, 60);
}

#[test]
fn alternating_nonreaders_pause_for_twice_the_patience() {
    const TURNS: usize = 60;
    let mut world = paced();
    let stuck = world.joined(TURNS);
    let other = world.join();
    let mut waited = 0;
    for &client in &stuck {
        // Each client reads until those before it have been disconnected.
        world.stall(client, 0);
        for _ in 0..2 {
            world.broadcasts("x".repeat(OUTBOX - 20));
        }
        waited += delay_ms(&mut world, other);
    }
    assert_eq!(world.metrics().slow_consumers, TURNS as u64);
    let bound = 2 * PATIENCE_MS + TURNS as u64 * (PATIENCE_MS / 16 + 3 * STEP_MS);
    assert!(waited <= bound, "{waited} ms of {bound}");
}

#[test]
fn nonreaders_that_leave_just_in_time_gain_nothing() {
    const TURNS: usize = 60;
    let mut world = paced();
    let stuck = world.joined(TURNS);
    let other = world.join();
    let mut waited = 0;
    for &client in &stuck {
        world.stall(client, 0);
        for _ in 0..2 {
            world.broadcasts("x".repeat(OUTBOX - 20));
        }
        world.sends(other, "reaches it");
        world.run_handlers();
        let mut ms = 0;
        while !world.frames(other).contains(&text("reaches it")) {
            world.advance_ms(STEP_MS);
            ms += STEP_MS;
            if ms == PATIENCE_MS - 5 * STEP_MS {
                world.client_resets(client);
            }
        }
        waited += ms;
    }
    let bound = 2 * PATIENCE_MS + TURNS as u64 * (PATIENCE_MS / 16 + 3 * STEP_MS);
    assert!(waited <= bound, "{waited} ms of {bound}");
}

#[test]
fn reader_leaving_while_others_wait_is_not_counted_in_vain() {
    let mut world = paced();
    let readers = world.joined(4);
    let (slow, other) = (world.join(), world.join());
    // Each client reads at ten times the minimum rate, and leaves while its outbox lacks room.
    for &client in &readers {
        world.stall(client, 0);
        for _ in 0..2 {
            world.broadcasts("x".repeat(OUTBOX - 20));
        }
        for _ in 0..8 {
            world.advance_ms(40);
            world.client_reads(client, 50);
        }
        world.client_resets(client);
    }
    // So producers still wait for a client that reads nothing for most of the patience.
    world.stall(slow, 0);
    for _ in 0..2 {
        world.broadcasts("x".repeat(OUTBOX - 20));
    }
    world.advance_ms(PATIENCE_MS / 4);
    assert_eq!(world.metrics().slow_consumers, 0);
    let delay = delay_ms(&mut world, other);
    assert!(delay <= PATIENCE_MS, "{delay} ms");
}

#[test]
fn client_that_reads_stays_after_waits_in_vain() {
    let mut world = paced();
    let stuck = world.joined(10);
    let slow = world.join();
    for &client in &stuck {
        world.stall(client, 0);
        for _ in 0..2 {
            world.broadcasts("x".repeat(OUTBOX - 20));
        }
        world.advance_ms(PATIENCE_MS);
    }
    world.stall(slow, 0);
    for _ in 0..20 {
        world.broadcasts("x".repeat(OUTBOX - 20));
    }
    for _ in 0..1_000 {
        world.advance_ms(40);
        world.client_reads(slow, 40);
    }
    assert_eq!(world.metrics().slow_consumers, 10);
    assert!(!world.is_closed(slow));
    assert_eq!(world.all_frames(slow).len(), 40);
}
