//! What all connections of a shard hold together is what is counted, and is bounded; and whoever is to give way is found
//! without a look at all others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::wire::{client_frame, client_ping, client_text, text};
use super::world::{Setup, World, echo};
use crate::engine::model::command::Command;
use crate::engine::model::job::Event;
use crate::engine::model::program::Subscriptions;
use crate::engine::model::request::{Request, Response};
use crate::engine::reactor::EVICTED_PER_TURN;
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::limits::{Limits, SlowConsumer};
use crate::message::Message;
use crate::protocol::fuzz::dice::Dice;
use crate::protocol::http::{self, BodyMode, Persistence};

const KIB: usize = 1 << 10;

fn world(limits: Limits) -> World {
    World::new(Setup {
        limits,
        handler: Box::new(echo),
        ..Setup::default()
    })
}

/// Answers with the target, a space and the body. `/big` is answered with 15 KiB.
fn answer(request: Request) -> Response {
    let body = match request.head.path() {
        "/big" => vec![b'x'; 15 * KIB],
        target => [target.as_bytes(), b" ", &request.body].concat(),
    };
    let persistence = Persistence::keep_alive_if(request.keep_alive);
    let head = http::response_head(200, &[], body.len(), persistence, BodyMode::Full).bytes;
    Response {
        head,
        body,
        keep_alive: request.keep_alive,
        charge: None,
    }
}

/// With routes. There is no `/nowhere`.
fn with_routes(limits: Limits) -> World {
    with_guard(limits, false)
}

/// The same; bodies for `/guarded` are refused with 401.
fn with_guard(limits: Limits, guard: bool) -> World {
    World::new(Setup {
        limits,
        subscriptions: Subscriptions {
            open: true,
            message: true,
            close: true,
            request: true,
            guard,
            ..Subscriptions::default()
        },
        handler: Box::new(echo),
        route: Box::new(answer),
        ..Setup::default()
    })
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

fn post(target: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
}

fn status(output: &[u8]) -> Option<u16> {
    let line = output.strip_prefix(b"HTTP/1.1 ")?;
    std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
}

// --------------------------------------------------------------------------------------------------------- outboxes

#[test]
fn echo_read_but_for_its_tail_counts_in_full() {
    let mut world = world(Limits {
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

/// All that is held for clients, and no other outbox shares: frames that the test has a copy of, and copies.
fn held(world: &mut World, clients: &[usize], sent: &mut Vec<Bytes>) -> usize {
    // A frame that waits in several outboxes is meant for one only here, so it is held once.
    sent.retain(|frame| !frame.is_unique());
    let copies: usize = clients.iter().map(|&c| world.kept_bytes(c)).sum();
    copies + sent.iter().map(Bytes::len).sum::<usize>()
}

#[test]
fn what_is_held_for_clients_is_never_more_than_is_counted() {
    let policies = [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::pace(),
    ];
    for (seed, policy) in (0..).zip(policies.into_iter().cycle().take(40)) {
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
            // Under pace, commands wait in front of the outboxes, in the mailbox or behind it.
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
    // All but what has not been cut: a copy, not a piece of a batch of 112 KiB.
    assert!(own + 16 * KIB >= waits, "{own} of {waits} are its own");
}

#[test]
fn trickling_reader_is_disconnected_as_one_that_reads_nothing() {
    let mut world = world(Limits::default());
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
fn trickling_reader_of_a_response_is_disconnected() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.stall(client, 0);
    world.client_sends(client, get("/big"));
    world.run_handlers();
    for _ in 0..32 {
        world.advance_ms(1_000);
        world.client_reads(client, 1);
    }
    assert!(world.is_closed(client));
    assert_eq!(world.metrics().slow_consumers, 1);
    world.assert_empty();
}

#[test]
fn trickling_reader_on_its_way_to_a_close_frame_is_disconnected() {
    let mut world = world(Limits::default());
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

// --------------------------------------------------------------------------------------------------------- responses

#[test]
fn responses_nobody_reads_are_bounded_and_readers_are_served() {
    let mut world = with_routes(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    world.come_from = [127, 0, 0, 2];
    let honest = world.connect();
    world.come_from = [127, 0, 0, 1];
    for _ in 0..20 {
        let client = world.connect();
        world.stall(client, 0);
        world.client_sends(client, get("/big"));
        world.run_handlers();
        let own = world.core().cx.fanout.unshared_bytes();
        assert!(own <= 64 * KIB, "{own}");
        world.client_sends(honest, get("/big"));
        world.run_handlers();
        assert_eq!(status(&world.output(honest)), Some(200));
    }
    assert_eq!(world.metrics().slow_consumers, 16);
    for client in 0..21 {
        world.client_resets(client);
    }
    world.assert_empty();
}

#[test]
fn routes_are_not_called_while_responses_use_up_the_budget() {
    let mut world = with_routes(Limits {
        message_bytes_max: 16 * KIB,
        outboxes_bytes_max: 64 * KIB,
        ..Limits::default()
    });
    let clients: Vec<usize> = (0..20).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, get("/big"));
    }
    // The shard does not come to take them.
    for _ in 0..20 {
        world.run_job(0);
    }
    let held = world
        .hub
        .responses_bytes
        .load(std::sync::atomic::Ordering::Relaxed);
    assert!(held <= (64 + 16) * KIB, "{held}");
    world.run_handlers();
    let statuses = clients.iter().map(|&client| status(&world.output(client)));
    let served = statuses.filter(|status| *status == Some(200)).count();
    assert_eq!(served, 5);
    assert_eq!(world.metrics().refused.unserved, 15);
}

// ---------------------------------------------------------------------------------------------------------- requests

fn with_narrow_bodies() -> World {
    with_routes(Limits {
        body_bytes_max: 64 * KIB,
        bodies_bytes_max: 256 * KIB,
        ..Limits::default()
    })
}

#[test]
fn bodies_of_all_connections_are_bounded_and_the_greedy_get_503() {
    let mut world = with_narrow_bodies();
    let request = post("/", &"x".repeat(60 * KIB));
    let clients: Vec<usize> = (0..20).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, &request[..request.len() - 10]);
        let held = world.core().cx.requests.bytes();
        assert!(held <= 256 * KIB, "{held}");
    }
    world.come_from = [127, 0, 0, 2];
    let honest = world.connect();
    world.client_sends(honest, post("/", &"y".repeat(20 * KIB)));
    world.run_handlers();
    assert_eq!(status(&world.output(honest)), Some(200));
    let refused = clients
        .iter()
        .filter(|&&c| status(&world.output(c)) == Some(503));
    let refused: Vec<usize> = refused.copied().collect();
    assert!((15..20).contains(&refused.len()), "{}", refused.len());
    for &client in &clients {
        world.client_sends(client, &request[request.len() - 10..]);
        world.run_handlers();
        let expected = if refused.contains(&client) {
            None
        } else {
            Some(200)
        };
        assert_eq!(status(&world.output(client)), expected);
    }
    for client in clients.into_iter().chain([honest]) {
        world.client_ends(client);
    }
    world.assert_empty();
}

#[test]
fn requests_that_wait_for_blocked_handlers_are_bounded() {
    let mut world = with_narrow_bodies();
    let clients: Vec<usize> = (0..20).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, post("/", &"x".repeat(60 * KIB)));
        let held = world.core().cx.requests.bytes();
        assert!(held <= 256 * KIB, "{held}");
    }
    let waiting = world.jobs.len();
    assert!((3..=4).contains(&waiting), "{waiting}");
    world.run_handlers();
    let served = clients
        .iter()
        .filter(|&&c| status(&world.output(c)) == Some(200));
    assert_eq!(served.count(), waiting);
    for client in clients {
        world.client_ends(client);
    }
    world.assert_empty();
}

#[test]
fn requests_of_clients_that_have_gone_stay_bounded() {
    let mut world = with_routes(Limits {
        body_bytes_max: 4 * KIB,
        bodies_bytes_max: 128 * KIB,
        head_bytes_max: 4 * KIB,
        ..Limits::default()
    });
    for _ in 0..1_000 {
        let client = world.connect();
        world.client_sends(client, post("/", &"x".repeat(4 * KIB)));
        world.client_resets(client);
        let held = world.core().cx.requests.bytes();
        assert!(held <= 128 * KIB, "{held}");
    }
    let jobs = world.jobs.len();
    assert!(jobs <= 128 * KIB / REQUEST_BYTES, "{jobs}");
    world.assert_empty();
}

#[test]
fn handshakes_of_clients_that_have_gone_stay_bounded() {
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
fn connections_that_have_gone_do_not_pile_up_while_handlers_block() {
    let mut world = world(Limits {
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
fn what_is_kept_for_those_who_have_gone_does_not_pile_up() {
    // The program keeps something for each, and is not told of the end: dropping it is left to handlers all the same.
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

#[test]
fn request_no_handler_comes_for_gets_503_in_time() {
    let mut world = with_routes(Limits::default());
    let (waits, begun) = (world.connect(), world.connect());
    for client in [waits, begun] {
        world.client_sends(client, post("/", &"x".repeat(10 * KIB)));
    }
    world.begin_job(1);
    world.advance_ms(29_900);
    assert_eq!(status(&world.output(waits)), None);
    world.advance_ms(200);
    assert_eq!(status(&world.output(waits)), Some(503));
    assert!(
        world.core().cx.requests.bytes() < 12 * KIB,
        "its body is let go"
    );
    world.advance_ms(1_000_000);
    world.run_handlers();
    assert_eq!(world.metrics().requests, 1);
    assert_eq!(status(&world.output(begun)), Some(200));
    world.client_ends(begun);
    world.assert_empty();
}

#[test]
fn what_needs_no_body_is_answered_before_it_is_sent() {
    for (target, length, expected) in [
        ("/nowhere", 100, 404),
        ("/guarded", 100, 401),
        ("/", 10 << 20, 413),
    ] {
        for expect in ["", "Expect: 100-continue\r\n"] {
            let mut world = with_guard(Limits::default(), true);
            let client = world.connect();
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: x\r\n{expect}Content-Length: {length}\r\n\r\n"
            );
            world.client_sends(client, head);
            world.run_handlers();
            let output = world.output(client);
            assert_eq!(status(&output), Some(expected), "{target} {expect}");
            assert!(world.is_finished(client));
            world.client_ends(client);
            world.assert_empty();
        }
    }
}

#[test]
fn body_that_is_welcome_is_asked_for_and_read() {
    let mut world = with_guard(Limits::default(), true);
    let client = world.connect();
    let head = "POST /ok HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    world.client_sends(client, head);
    world.run_handlers();
    assert_eq!(world.output(client), http::CONTINUE);
    world.client_sends(client, "body");
    world.run_handlers();
    assert!(world.output(client).ends_with(b"\r\n\r\n/ok body"));
    // Where the body has come with the head, nobody waits for a word to go on.
    world.client_sends(client, [head.as_bytes(), b"body"].concat());
    world.run_handlers();
    assert_eq!(status(&world.output(client)), Some(200));
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn bodies_that_wait_for_the_guard_are_bounded_with_the_others() {
    let mut world = with_guard(
        Limits {
            message_bytes_max: KIB,
            received_bytes_max: 64 * KIB,
            body_bytes_max: 64 * KIB,
            bodies_bytes_max: 256 * KIB,
            ..Limits::default()
        },
        true,
    );
    let clients: Vec<usize> = (0..20).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, post("/", &"x".repeat(60 * KIB)));
        let held = world.core().cx.requests.bytes();
        assert!(held <= 256 * KIB, "{held}");
    }
    world.run_handlers();
    let statuses: Vec<_> = clients
        .iter()
        .map(|&client| status(&world.output(client)))
        .collect();
    let of = |status| statuses.iter().filter(|&&of| of == Some(status)).count();
    assert_eq!(of(200) + of(503), 20, "{statuses:?}");
    assert!(of(200) >= 3, "{statuses:?}");
    for client in clients {
        world.client_ends(client);
    }
    world.assert_empty();
}

#[test]
fn what_is_sent_behind_requests_is_bounded() {
    let mut world = with_routes(Limits {
        body_bytes_max: 4 * KIB,
        bodies_bytes_max: 256 * KIB,
        ..Limits::default()
    });
    let clients: Vec<usize> = (0..20).map(|_| world.connect()).collect();
    for &client in &clients {
        world.client_sends(client, [get("/"), get("/2").repeat(3_000)].concat());
        let held = world.core().cx.requests.bytes();
        assert!(held <= 256 * KIB, "{held}");
    }
    world.run_handlers();
    for &client in &clients {
        assert_eq!(status(&world.output(client)), Some(200), "{client}");
    }
}

// ------------------------------------------------------------------------------------------------------------- costs

#[test]
fn evicting_unfinished_messages_looks_at_the_victims_only() {
    let mut world = world(Limits {
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
fn evicted_clients_are_told_a_few_in_each_turn() {
    let mut world = world(Limits {
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
fn evicting_clients_that_do_not_read_looks_at_the_victims_only() {
    let mut world = world(Limits {
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
    // Each is tried when it is sent something, and before it goes.
    assert!(tries < 4 * 1_000 + 1_000, "{tries}");
}

#[test]
fn evicting_clients_whose_messages_wait_looks_at_the_victims_only() {
    let mut world = world(Limits {
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
fn turns_with_too_much_held_for_clients_try_each_of_them_once() {
    let mut world = world(Limits {
        message_bytes_max: 4 * KIB,
        outboxes_bytes_max: 8 * KIB,
        ..Limits::default()
    });
    let clients = world.joined(500);
    // All in one turn, and all of them read.
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
fn tiny_messages_count_with_what_they_take() {
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
    // A frame of two bytes is an allocation of 16 at least, and its place in the list is one of up to twice as many.
    let each = 16 + 2 * size_of::<Event>();
    let counted = world.core().cx.receive_budget.bytes();
    assert!(counted >= 10_000 * each, "{counted}");
}

#[test]
fn time_for_a_body_is_not_longer_while_handlers_are_blocked() {
    let mut world = with_routes(Limits {
        queue_timeout: Duration::from_secs(5),
        ..Limits::default()
    });
    let (waits, trickles) = (world.connect(), world.connect());
    world.client_sends(waits, post("/", "whole"));
    world.client_sends(trickles, &post("/", "in pieces")[..50]);
    world.run_jobs_but(waits);
    world.advance_ms(5_100);
    assert_eq!(status(&world.output(waits)), Some(503));
    world.advance_ms(5_100);
    assert_eq!(status(&world.output(trickles)), Some(408));
}
