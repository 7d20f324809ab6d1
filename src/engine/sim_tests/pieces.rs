//! Responses that are read and sent in pieces: a shard holds one piece for each client, whatever the client does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::wire::{get, status};
use super::world::{Setup, World};
use crate::engine::model::program::Subscriptions;
use crate::engine::model::request::{BodyReader, BodySource, PIECE_BYTES, Request, Response};
use crate::engine::reactor::http::REQUEST_BYTES;
use crate::limits::Limits;
use crate::protocol::http::{self, BodyMode, Persistence};

const BODY_BYTES: usize = 5 * PIECE_BYTES as usize + 1;
/// The memory of a response: one piece and the head.
const RESPONSE_BYTES_MAX: usize = PIECE_BYTES as usize + 1_000;

const LIMIT: Duration = Duration::from_secs(10);

/// Counts the sources of a body that exist, and the bytes that handlers have read from them.
#[derive(Clone, Default)]
struct SourceUse {
    alive: Arc<()>,
    read: Arc<AtomicUsize>,
}

impl SourceUse {
    fn is_dropped(&self) -> bool {
        // The test and the route hold one reference each.
        Arc::strong_count(&self.alive) == 2
    }
}

struct CountingBody {
    source: SourceUse,
    bytes: Vec<u8>,
}

impl BodySource for CountingBody {
    fn read_exact_at(&mut self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.source.read.fetch_add(buffer.len(), Relaxed);
        self.bytes.read_exact_at(buffer, at)
    }
}

fn body() -> Vec<u8> {
    (0..BODY_BYTES).map(|n| (n % 251) as u8).collect()
}

/// Creates a world whose route sends the body in pieces; its source for `/short` ends early.
fn world_with(source: &SourceUse) -> World {
    limited_world(source, Limits::default())
}

fn limited_world(source: &SourceUse, limits: Limits) -> World {
    let source = source.clone();
    let route = move |request: Request| {
        let mut bytes = body();
        if request.head.path() == "/short" {
            bytes.truncate(BODY_BYTES / 2);
        }
        let reader = CountingBody {
            source: source.clone(),
            bytes,
        };
        let mut rest = BodyReader::new(reader, BODY_BYTES as u64);
        let persistence = Persistence::keep_alive_if(request.keep_alive);
        let mode = BodyMode::of_method(&request.head.method);
        let head = http::response_head(200, &[], rest.bytes(), persistence, mode);
        Response {
            head: head.bytes,
            body: rest.next_piece().unwrap(),
            rest: Some(rest),
            keep_alive: request.keep_alive,
            charge: None,
        }
    };
    World::new(Setup {
        limits: Limits {
            write_timeout: LIMIT,
            queue_timeout: LIMIT,
            write_bytes_per_second_min: 0,
            ..limits
        },
        subscriptions: Subscriptions {
            request: true,
            ..Subscriptions::default()
        },
        route: Box::new(route),
        ..Setup::default()
    })
}

/// Connects a client that requests the path, and can receive `room` bytes of the response.
fn asked(world: &mut World, path: &str, room: usize) -> usize {
    let client = world.connect();
    world.stall(client, room);
    world.client_sends(client, get(path));
    client
}

/// Creates a world, and a client that has received the first piece. The next one waits for a handler.
fn awaiting_second_piece(source: &SourceUse) -> (World, usize) {
    let mut world = world_with(source);
    let client = asked(&mut world, "/", usize::MAX / 4);
    run_job(&mut world);
    assert_eq!(world.jobs.len(), 1);
    (world, client)
}

/// Runs the first job, and has the shard take its result.
fn run_job(world: &mut World) {
    world.run_job(0);
    world.hub.wake_deferred();
    world.settle();
}

fn held(world: &mut World) -> usize {
    let unread = world.hub.responses_bytes.load(Relaxed);
    unread.max(world.core().cx.fanout.unshared_bytes())
}

/// Separates a response's head from its body.
fn body_of(response: &[u8]) -> &[u8] {
    let end = response.windows(4).position(|four| four == b"\r\n\r\n");
    &response[end.expect("a whole head") + 4..]
}

#[test]
fn large_response_is_read_as_the_client_receives_it() {
    let source = SourceUse::default();
    let mut world = world_with(&source);
    let client = asked(&mut world, "/", 0);
    world.run_handlers();
    let mut received = Vec::new();
    for _ in 0..2 * BODY_BYTES / 10_000 {
        assert!(held(&mut world) <= RESPONSE_BYTES_MAX);
        let ahead = source.read.load(Relaxed).saturating_sub(received.len());
        assert!(
            ahead <= PIECE_BYTES as usize,
            "{ahead} bytes are read ahead"
        );
        world.client_reads(client, 10_000);
        world.run_handlers();
        received.extend(world.output(client));
    }
    assert!(
        body_of(&received) == body(),
        "the client received another body than the route sent"
    );
    assert!(source.is_dropped());
    // The connection can be used again.
    world.unstall(client);
    world.client_sends(client, get("/"));
    world.run_handlers();
    let received = world.output(client);
    assert_eq!(status(&received), Some(200));
    assert_eq!(body_of(&received).len(), BODY_BYTES);
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn unread_responses_hold_one_piece_for_each_client() {
    let source = SourceUse::default();
    let mut world = world_with(&source);
    let clients: Vec<usize> = (0..10).map(|_| asked(&mut world, "/", 100)).collect();
    world.run_handlers();
    assert!(held(&mut world) <= 10 * RESPONSE_BYTES_MAX);
    assert_eq!(source.read.load(Relaxed), 10 * PIECE_BYTES as usize);
    world.advance(2 * LIMIT);
    assert_eq!(world.metrics().slow_consumers, 10);
    assert!(clients.iter().all(|&client| world.is_closed(client)));
    assert!(source.is_dropped());
    assert_eq!(held(&mut world), 0);
    world.assert_empty();
}

#[test]
fn client_is_not_judged_while_a_piece_is_read() {
    let source = SourceUse::default();
    let mut world = world_with(&source);
    let client = asked(&mut world, "/", 0);
    world.run_handlers();
    world.advance(LIMIT * 3 / 4);
    world.unstall(client);
    assert_eq!(world.jobs.len(), 1, "the next piece is requested");
    world.begin_job(0);
    world.advance(100 * LIMIT);
    assert!(!world.is_closed(client));
    world.stall(client, 0);
    run_job(&mut world);
    // The client has the time that was left before the pause.
    world.advance(LIMIT / 2);
    assert!(!world.is_closed(client));
    world.advance(LIMIT);
    assert!(world.is_closed(client));
    assert!(source.is_dropped());
    world.run_handlers();
    world.assert_empty();
}

#[test]
fn piece_without_a_free_handler_ends_the_connection() {
    let source = SourceUse::default();
    let (mut world, client) = awaiting_second_piece(&source);
    world.advance(2 * LIMIT);
    assert!(world.is_closed(client));
    assert!(source.is_dropped());
    assert_eq!(world.metrics().refused.unserved, 1);
    world.run_handlers();
    world.assert_empty();
}

#[test]
fn source_that_ends_early_ends_the_connection() {
    let source = SourceUse::default();
    let mut world = world_with(&source);
    let client = asked(&mut world, "/short", usize::MAX / 4);
    world.run_handlers();
    let received = world.output(client);
    assert_eq!(status(&received), Some(200));
    assert!(body_of(&received).len() < BODY_BYTES);
    assert!(world.is_closed(client));
    assert!(source.is_dropped());
    world.assert_empty();
}

#[test]
fn client_that_has_gone_costs_one_more_piece_at_most() {
    let source = SourceUse::default();
    let (mut world, client) = awaiting_second_piece(&source);
    world.client_resets(client);
    world.run_handlers();
    assert!(world.is_closed(client));
    assert!(source.is_dropped());
    assert!(source.read.load(Relaxed) <= 2 * PIECE_BYTES as usize);
    world.assert_empty();
}

#[test]
fn stop_waits_for_all_pieces() {
    let source = SourceUse::default();
    let mut world = world_with(&source);
    let client = asked(&mut world, "/", 0);
    world.run_handlers();
    world.stop(LIMIT);
    world.unstall(client);
    world.run_handlers();
    assert!(body_of(&world.output(client)) == body());
    assert!(world.is_finished(client));
    world.client_ends(client);
    assert!(world.has_stopped());
    world.finish();
}

/// Limits under which handlers may read three pieces at a time.
fn three_pieces() -> Limits {
    Limits {
        body_bytes_max: 1_000,
        head_bytes_max: 1_000,
        bodies_bytes_max: 3 * (PIECE_BYTES as usize + REQUEST_BYTES) + 1_000,
        ..Limits::default()
    }
}

#[test]
fn pieces_that_are_read_at_once_are_bounded() {
    let source = SourceUse::default();
    let mut world = limited_world(&source, three_pieces());
    let clients: Vec<usize> = (0..20)
        .map(|_| {
            let client = asked(&mut world, "/", 0);
            run_job(&mut world);
            client
        })
        .collect();
    for &client in &clients {
        world.unstall(client);
    }
    // All clients have received their first piece.
    assert_eq!(held(&mut world), 0);
    assert_eq!(world.jobs.len(), 3);
    let mut received = vec![Vec::new(); clients.len()];
    while !world.jobs.is_empty() {
        // The shard does not run, so it does not take the pieces.
        while !world.jobs.is_empty() {
            world.run_job(0);
        }
        assert!(held(&mut world) <= 3 * RESPONSE_BYTES_MAX);
        world.hub.wake_deferred();
        world.settle();
        for (received, &client) in received.iter_mut().zip(&clients) {
            received.extend(world.output(client));
        }
    }
    for received in received {
        assert!(
            body_of(&received) == body(),
            "the client received another body than the route sent"
        );
    }
    assert!(source.is_dropped());
}

#[test]
fn download_waits_while_requests_use_up_the_budget() {
    for is_in_time in [true, false] {
        let source = SourceUse::default();
        let mut world = limited_world(&source, three_pieces());
        let download = asked(&mut world, "/", 0);
        run_job(&mut world);
        // The heads of these requests fill the budget. Their handlers run for long.
        let mut others = Vec::new();
        while others.len() < 500 {
            others.push(asked(&mut world, "/", usize::MAX / 4));
        }
        let jobs = world.jobs.len();
        assert!(jobs < others.len(), "the budget is full");
        world.unstall(download);
        assert_eq!(world.jobs.len(), jobs, "no piece is requested");
        world.advance(LIMIT / 2);
        assert!(!world.is_closed(download));
        if is_in_time {
            world.run_handlers();
            assert!(body_of(&world.output(download)) == body());
        } else {
            world.advance(LIMIT);
            assert!(world.is_closed(download));
        }
        for other in others {
            world.client_resets(other);
        }
        world.run_handlers();
        world.client_ends(download);
        world.assert_empty();
        assert!(source.is_dropped());
    }
}
