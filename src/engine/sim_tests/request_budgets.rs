//! The memory budget of HTTP requests and responses, which bounds what all connections hold together.

use std::time::Duration;

use super::wire::{get, post, status};
use super::world::{Setup, World, echo};
use crate::engine::model::program::Subscriptions;
use crate::engine::model::request::{Request, Response};
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::limits::Limits;
use crate::protocol::http::{self, BodyMode, Persistence};

const KIB: usize = 1 << 10;

/// Answers with the target, a space and the body. `/big` is answered with 15 KiB.
fn answer(request: Request) -> Response {
    let body = match request.head.path() {
        "/big" => vec![b'x'; 15 * KIB],
        target => [target.as_bytes(), b" ", &request.body].concat(),
    };
    let persistence = Persistence::keep_alive_if(request.keep_alive);
    let head = http::response_head(200, &[], body.len() as u64, persistence, BodyMode::Full).bytes;
    Response {
        head,
        body,
        keep_alive: request.keep_alive,
        rest: None,
        charge: None,
    }
}

/// Creates a world with routes. There is no route for `/nowhere`.
fn with_routes(limits: Limits) -> World {
    with_guard(limits, false)
}

/// A world with routes. With `guard`, requests with a body for `/guarded` are refused with 401.
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

// --------------------------------------------------------------------------------------------------------- responses

#[test]
fn unread_responses_are_bounded_and_readers_are_served() {
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
    // The shard does not run, so it does not take the responses.
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
fn bodies_are_bounded_and_the_largest_gets_503() {
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
fn requests_waiting_for_blocked_handlers_are_bounded() {
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
fn requests_of_disconnected_clients_are_bounded() {
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
fn request_without_a_free_handler_gets_503_in_time() {
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
fn request_decided_by_its_head_is_answered_before_the_body() {
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
fn expected_body_is_requested_with_100_and_read() {
    let mut world = with_guard(Limits::default(), true);
    let client = world.connect();
    let head = "POST /ok HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    world.client_sends(client, head);
    world.run_handlers();
    assert_eq!(world.output(client), http::CONTINUE);
    world.client_sends(client, "body");
    world.run_handlers();
    assert!(world.output(client).ends_with(b"\r\n\r\n/ok body"));
    // If the body arrived with the head, the client does not wait for 100 Continue.
    world.client_sends(client, [head.as_bytes(), b"body"].concat());
    world.run_handlers();
    assert_eq!(status(&world.output(client)), Some(200));
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn bodies_waiting_for_the_guard_count_with_the_others() {
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
fn bytes_pipelined_after_requests_are_bounded() {
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

#[test]
fn blocked_handlers_do_not_extend_the_body_deadline() {
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
