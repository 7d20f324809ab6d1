//! The memory of idle connections. Most connections are idle, so each of their bytes counts many times.

use std::net::TcpStream;
use std::time::Duration;

use super::wire::{Frame, client_frame, client_ping, client_text, pong, text};
use super::world::{Setup, World, echo};
use crate::engine::model::session::Session;
use crate::engine::parts::slab::Slab;
use crate::engine::reactor::{Conn, Stage};
use crate::limits::{Limits, SlowConsumer};
use crate::report::Span;

/// Beside this and its session, an idle WebSocket takes only 30 to 45 bytes in the indexes that find it.
const SLOT_BYTES: usize = 160 + COMPRESSION_BYTES;
/// The negotiated compression parameters, and the shared compression history that the connection uses.
const COMPRESSION_BYTES: usize = if cfg!(feature = "deflate") { 8 } else { 0 };
/// Two counts before it and the allocator's word make 128 of it.
const SESSION_BYTES: usize = 104;

#[test]
fn idle_connection_has_its_documented_size() {
    // Most connections are idle, so fields that idle ones don't need belong in `Cold`.
    // This uses the standard library's socket because mio's is larger with debug assertions.
    let slot = Slab::<Conn<TcpStream>>::ENTRY_BYTES;
    assert!(slot <= SLOT_BYTES, "{slot}");
    // The span exists only with the feature `tracing`.
    let session = size_of::<Session>() - size_of::<Span>();
    assert!(session <= SESSION_BYTES, "{session}");
}

/// Whether a client's connection owns heap memory beside its slot and its session.
fn owns_memory(world: &mut World, client: usize) -> bool {
    let key = world.key(client);
    let conns = &world.core().conns;
    let conn = conns.get(key);
    match conn.map(|conn| &conn.stage) {
        Some(Stage::WebSocket(ws)) => ws.owns_memory(),
        _ => panic!("the connection is not a WebSocket"),
    }
}

#[test]
fn finished_split_message_frees_its_memory() {
    let mut fragments = client_frame(0x01, b"frag");
    fragments.extend(client_ping(b"between"));
    fragments.extend(client_frame(0x80, b"ments"));
    for (bytes, answers) in [
        (client_text("cut"), vec![text("cut")]),
        (client_ping(b"cut"), vec![pong(b"cut")]),
        (fragments, vec![pong(b"between"), text("fragments")]),
    ] {
        for at in 1..bytes.len() {
            let mut world = World::with_handler(echo);
            let client = world.join();
            world.run_handlers();
            assert!(!owns_memory(&mut world, client));
            world.client_sends(client, &bytes[..at]);
            world.run_handlers();
            assert!(owns_memory(&mut world, client), "{at}");
            world.client_sends(client, &bytes[at..]);
            world.run_handlers();
            assert_eq!(world.all_frames(client), answers, "{at}");
            assert!(!owns_memory(&mut world, client), "{at}");
        }
    }
}

#[test]
fn drained_outbox_frees_its_memory_under_any_policy() {
    let pace = SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1),
    };
    for slow_consumer in [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
        SlowConsumer::SkipAhead,
        pace,
    ] {
        let mut world = World::new(Setup {
            slow_consumer,
            limits: Limits {
                outbox_bytes_max: 100,
                ..Limits::default()
            },
            handler: Box::new(echo),
            ..Setup::default()
        });
        let client = world.join();
        world.run_handlers();
        let payload = "p".repeat(80);
        for is_own in [false, true] {
            world.stall(client, 7);
            match is_own {
                true => world.sends(client, &payload),
                false => world.broadcasts(&payload),
            }
            world.settle();
            assert!(owns_memory(&mut world, client), "{slow_consumer:?}");
            world.unstall(client);
            world.settle();
            let frames = world.all_frames(client);
            assert_eq!(frames, [Frame::Text(payload.clone())], "{slow_consumer:?}");
            assert!(!owns_memory(&mut world, client), "{slow_consumer:?}");
        }
    }
}
