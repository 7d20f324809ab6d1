//! HTTP connections before or without an upgrade to WebSocket.

use super::wire::{Frame, UPGRADE, client_text, get, parse_frames, post, text};
use super::world::{Setup, World, echo, panic_quietly};
use crate::engine::model::command::Upgraded;
use crate::engine::model::program::Subscriptions;
use crate::engine::model::request::{Request, Response};
use crate::limits::Limits;
use crate::protocol::encode::{self, Opcode};
use crate::protocol::http::{self, BodyMode, Persistence};

fn limited(limits: Limits) -> World {
    World::new(Setup {
        limits,
        handler: Box::new(echo),
        ..Setup::default()
    })
}

/// Responds with the target and the body.
fn answer(request: Request) -> Response {
    if request.head.target == "/panic" {
        panic_quietly();
    }
    let body = [request.head.target.as_bytes(), b" ", &request.body].concat();
    Response {
        head: http::response(
            200,
            &[],
            &body,
            Persistence::keep_alive_if(request.keep_alive),
            BodyMode::Full,
        ),
        keep_alive: request.keep_alive,
        body: Vec::new(),
        rest: None,
        charge: None,
    }
}

fn with_routes(limits: Limits) -> World {
    World::new(Setup {
        limits,
        subscriptions: Subscriptions {
            open: true,
            message: true,
            close: true,
            request: true,
            ..Subscriptions::default()
        },
        handler: Box::new(echo),
        route: Box::new(answer),
        ..Setup::default()
    })
}

/// Parses the bodies of the responses in an output, and asserts that each status is 200.
fn bodies(mut output: &[u8]) -> Vec<String> {
    let mut bodies = Vec::new();
    while !output.is_empty() {
        let end = output.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, rest) = output.split_at(end.unwrap() + 4);
        let head = String::from_utf8(head.to_vec()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let length = head.split("Content-Length: ").nth(1).unwrap();
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        bodies.push(String::from_utf8(rest[..length].to_vec()).unwrap());
        output = &rest[length..];
    }
    bodies
}

fn assert_refused(world: &mut World, client: usize, status: u16) {
    let head = world.head(client);
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    assert!(head.contains("Connection: close\r\n"), "{head}");
    assert!(world.is_finished(client));
    world.client_ends(client);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn invalid_handshake_is_answered_with_the_reason() {
    let cases: [(&[u8], u16); 4] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
           Sec-WebSocket-Version: 13\r\n\r\n",
            400,
        ),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
    ];
    for (request, status) in cases {
        let mut world = World::with_handler(echo);
        let client = world.connect();
        world.client_sends(client, request);
        assert_eq!(world.metrics().handshake_failures.total(), 1);
        assert_refused(&mut world, client, status);
    }
}

#[test]
fn head_over_the_limit_is_refused_in_any_pieces() {
    for step in [1, 7, 100_000] {
        let mut world = limited(Limits {
            head_bytes_max: 1_000,
            ..Limits::default()
        });
        let client = world.connect();
        let head = [
            b"GET / HTTP/1.1\r\nHost: x\r\nX: ".as_slice(),
            &[b'x'; 2_000],
        ]
        .concat();
        for piece in head.chunks(step) {
            if world.pipe(client).written > 0 {
                break;
            }
            world.client_sends(client, piece);
        }
        assert_refused(&mut world, client, 431);
    }
}

#[test]
fn oldest_pending_handshake_is_evicted_by_a_new_one() {
    let mut world = limited(Limits {
        handshakes_max: 3,
        ..Limits::default()
    });
    // Completed handshakes do not count.
    let joined = world.joined(5);
    let pending: Vec<_> = (0..5).map(|_| world.connect()).collect();
    let closed: Vec<_> = pending.iter().map(|&c| world.is_closed(c)).collect();
    assert_eq!(closed, [true, true, false, false, false]);
    world.client_sends(pending[2], UPGRADE);
    let sixth = world.connect();
    assert!(!world.is_closed(pending[3]) && !world.is_closed(sixth));
    assert!(joined.iter().all(|&c| !world.is_closed(c)));
    assert_eq!(world.metrics().refused.handshakes_max, 2);
}

#[test]
fn connection_over_the_limit_gets_503() {
    let mut world = limited(Limits {
        connections_max: 3,
        ..Limits::default()
    });
    let clients = world.joined(3);
    let fourth = world.connect();
    world.client_sends(fourth, UPGRADE);
    let head = world.head(fourth);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    world.client_ends(fourth);
    world.client_resets(clients[0]);
    world.run_handlers();
    world.join();
}

#[test]
fn handover_over_the_limit_gets_pending_bytes_then_close() {
    let mut world = limited(Limits {
        connections_max: 1,
        ..Limits::default()
    });
    world.join();
    // The client has received the first three bytes of the pong.
    let pending_out = encode::control(Opcode::Pong, b"pending_out").split_off(3);
    let client = world.adopt(Upgraded {
        head: None,
        is_answered: true,
        pending_out: pending_out.clone(),
        has_input_ended: false,
        close_reply: None,
        has_output_ended: false,
        received: None,
        ..Upgraded::default()
    });
    let mut output = world.output(client);
    assert_eq!(
        output.drain(..pending_out.len()).collect::<Vec<_>>(),
        pending_out
    );
    let close = Frame::Close(Some(1013), "too many connections".into());
    assert_eq!(parse_frames(&mut output), [close]);
    assert!(world.is_finished(client));
}

#[test]
fn early_frames_after_a_handshake_are_kept() {
    let mut world = World::with_handler(echo);
    let client = world.connect();
    let all = [UPGRADE, &client_text("early"), &client_text("cut")[..4]].concat();
    world.client_sends(client, all);
    world.client_sends(client, &client_text("cut")[4..]);
    world.run_handlers();
    world.head(client);
    assert_eq!(world.all_frames(client), [text("early"), text("cut")]);
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    let all = [get("/1"), post("/2", "body"), get("/3")].concat();
    for step in [1, 13, 1_000] {
        for piece in all.chunks(step) {
            world.client_sends(client, piece);
            assert!(world.jobs.len() <= 1);
        }
        world.run_handlers();
        assert_eq!(bodies(&world.output(client)), ["/1 ", "/2 body", "/3 "]);
    }
    assert_eq!(world.metrics().requests, 9);
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn request_of_a_half_closed_client_is_answered() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    {
        let mut pipe = world.pipe(client);
        pipe.client_sends(&[get("/1"), get("/2")].concat());
        pipe.client_ends();
    }
    world.run_handlers();
    assert_eq!(bodies(&world.output(client)), ["/1 ", "/2 "]);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn slowly_read_response_is_written_in_full() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.stall(client, 10);
    world.client_sends(client, post("/", &"x".repeat(1_000_000)));
    world.run_handlers();
    for _ in 0..40 {
        world.advance_ms(20_000);
        world.client_reads(client, 30_000);
    }
    assert_eq!(bodies(&world.output(client))[0].len(), 1_000_002);
    world.stall(client, 0);
    world.client_sends(client, get("/"));
    world.run_handlers();
    world.advance_ms(30_010);
    assert!(world.is_closed(client));
    world.assert_empty();
}

#[test]
fn body_over_the_limit_is_refused_with_413() {
    let mut world = with_routes(Limits {
        body_bytes_max: 100,
        ..Limits::default()
    });
    let client = world.connect();
    world.client_sends(client, post("/", &"x".repeat(100)));
    world.run_handlers();
    assert_eq!(bodies(&world.output(client)).len(), 1);
    world.client_sends(client, &post("/", &"x".repeat(101))[..80]);
    world.run_handlers();
    assert_refused(&mut world, client, 413);
}

#[test]
fn idle_connection_is_closed_after_its_timeout() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    for _ in 0..3 {
        world.client_sends(client, get("/"));
        world.run_handlers();
        assert_eq!(bodies(&world.output(client)).len(), 1);
        world.advance_ms(59_900);
        assert!(!world.is_closed(client));
    }
    world.advance_ms(200);
    assert!(world.is_closed(client));
    assert_eq!(world.output(client), b"");
    assert_eq!(world.metrics().handshake_failures.total(), 0);
    world.assert_empty();
}

#[test]
fn trickling_later_request_has_the_head_deadline() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.client_sends(client, get("/"));
    world.run_handlers();
    world.output(client);
    world.advance_ms(50_000);
    world.client_sends(client, b"GET ");
    world.advance_ms(9_900);
    assert_eq!(world.output(client), b"");
    world.advance_ms(200);
    assert_refused(&mut world, client, 408);
}

#[test]
fn slow_route_is_waited_for() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.client_sends(client, get("/"));
    world.begin_job(0);
    world.advance_ms(10_000_000);
    world.run_handlers();
    assert_eq!(bodies(&world.output(client)).len(), 1);
    assert!(!world.is_closed(client));
}

#[test]
fn panicking_route_is_answered_with_500() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.client_sends(client, get("/panic"));
    world.run_handlers();
    assert_eq!(world.metrics().handler_panics, 1);
    assert_refused(&mut world, client, 500);
}

#[test]
fn upgrade_after_requests_on_a_connection_succeeds() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    world.client_sends(client, [&get("/")[..], UPGRADE, &client_text("a")].concat());
    world.run_handlers();
    let output = world.output(client);
    let at = output.windows(12).position(|w| w == b"HTTP/1.1 101");
    assert_eq!(bodies(&output[..at.unwrap()]), ["/ "]);
    assert!(output.ends_with(b"\x81\x01a"));
}

#[test]
fn many_requests_on_one_connection_leak_nothing() {
    let mut world = with_routes(Limits::default());
    let client = world.connect();
    for _ in 0..2_000 {
        world.client_sends(client, get("/"));
        world.run_handlers();
    }
    assert_eq!(bodies(&world.output(client)).len(), 2_000);
    let line = world.core().cx.handshake_queue.len();
    assert!(line <= 100, "{line} places in the line of pending heads");
}

#[test]
fn answered_connection_is_not_the_oldest_pending() {
    let mut world = with_routes(Limits {
        handshakes_max: 2,
        ..Limits::default()
    });
    let (active, silent) = (world.connect(), world.connect());
    world.client_sends(active, get("/"));
    world.run_handlers();
    world.connect();
    assert!(world.is_closed(silent));
    assert!(!world.is_closed(active));
}

#[test]
fn pending_heads_are_bounded_while_requests_run() {
    let mut world = with_routes(Limits {
        handshakes_max: 3,
        ..Limits::default()
    });
    for _ in 0..3 {
        let client = world.connect();
        world.client_sends(client, get("/"));
    }
    assert_eq!(world.jobs.len(), 3);
    let pending: Vec<_> = (0..10).map(|_| world.connect()).collect();
    let open = pending.iter().filter(|&&c| !world.is_closed(c)).count();
    assert!((1..=3).contains(&open), "{open}");
    // The requests are not affected.
    world.run_handlers();
    assert_eq!(world.metrics().requests, 3);
}
