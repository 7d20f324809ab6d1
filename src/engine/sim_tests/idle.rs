//! What a connection takes while nothing happens. Of those there are most, so each byte of one counts many times.

use std::net::TcpStream;
use std::time::Duration;

use super::wire::{Frame, client_frame, client_ping, client_text, pong, text};
use super::world::{Setup, World, echo};
use crate::engine::model::session::Session;
use crate::engine::parts::slab::Slab;
use crate::engine::reactor::{Conn, Role};
use crate::limits::{Limits, SlowConsumer};
use crate::report::Span;

/// Beside it and its session, an idle WebSocket takes about 30 to 45 bytes of what finds it, and nothing else.
const SLOT_BYTES: usize = 160 + COMPRESSION_BYTES;
/// What was agreed about compression, and whose history it shares.
const COMPRESSION_BYTES: usize = if cfg!(feature = "deflate") { 8 } else { 0 };
/// Two counts before it and the allocator's word make 128 of it.
const SESSION_BYTES: usize = 104;

#[test]
fn an_idle_connection_takes_few_bytes() {
    // Whoever needs another field: most connections are idle, and what these have no use for belongs into `Cold`.
    // The socket is the standard library's, since mio's has more to it where assertions are on.
    let slot = Slab::<Conn<TcpStream>>::ENTRY_BYTES;
    assert!(slot <= SLOT_BYTES, "{slot}");
    // The span is there only for those who ask for `tracing`.
    let session = size_of::<Session>() - size_of::<Span>();
    assert!(session <= SESSION_BYTES, "{session}");
}

/// Whether a client's connection owns memory beside its slot and its session.
fn owns_memory(world: &mut World, client: usize) -> bool {
    let key = world.key(client);
    let conns = &world.core().conns;
    let conn = conns.get(key);
    match conn.map(|conn| &conn.role) {
        Some(Role::WebSocket(ws)) => ws.owns_memory(),
        _ => panic!("no WebSocket"),
    }
}

#[test]
fn a_message_that_was_cut_leaves_nothing_behind() {
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
fn a_socket_that_was_full_leaves_nothing_behind_under_any_policy() {
    let pace = SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1),
    };
    for slow_consumer in [
        SlowConsumer::Disconnect,
        SlowConsumer::DropNewest,
        SlowConsumer::DropOldest,
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
