//! Compressed messages within the rate limits.

use super::{LATE_MS, bytes, messages};
use crate::compression::Compression;
use crate::engine::sim_tests::wire::client_frame;
use crate::engine::sim_tests::world::{Setup, Told, World};
use crate::limits::Limits;

const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
      Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

fn world(limits: Limits) -> (World, usize) {
    let mut world = World::new(Setup {
        limits,
        compression: Some(Compression::new()),
        ..Setup::default()
    });
    let client = world.connect();
    world.client_sends(client, UPGRADE);
    world.run_handlers();
    let head = world.head(client);
    assert!(head.contains("permessage-deflate"), "{head}");
    (world, client)
}

fn message(payload: &[u8]) -> Vec<u8> {
    client_frame(0xC2, &miniz_oxide::deflate::compress_to_vec(payload, 9))
}

fn handled(world: &mut World, client: usize) -> Vec<Told> {
    world.run_handlers();
    let mut handled = world.handled(client);
    handled.retain(|told| *told != Told::Open);
    handled
}

#[test]
fn compressed_messages_are_handled_at_the_rate() {
    let (mut world, client) = world(messages(10));
    let sent: Vec<u8> = (0..30).flat_map(|n| message(&[n; 1_000])).collect();
    world.client_sends(client, sent);
    let told = |n| Told::message([n; 1_000]);
    assert_eq!(
        handled(&mut world, client),
        (0..10).map(told).collect::<Vec<_>>()
    );
    world.advance_ms(2_100);
    assert_eq!(
        handled(&mut world, client),
        (10..30).map(told).collect::<Vec<_>>()
    );
}

#[test]
fn parked_messages_keep_their_order_within_the_rate() {
    // Each inflates to more than a turn's allowance.
    const LONG: usize = 2 << 20;
    let (mut world, client) = world(messages(3));
    let sent: Vec<u8> = (0..8).flat_map(|n| message(&vec![n; LONG])).collect();
    world.client_sends(client, sent);
    let told = |n| Told::message(vec![n; LONG]);
    for range in [0..3, 3..6, 6..8] {
        let expected: Vec<Told> = range.map(told).collect();
        assert!(
            handled(&mut world, client) == expected,
            "{}",
            expected.len()
        );
        world.advance_ms(1_000 + LATE_MS);
    }
    world.client_ends(client);
    world.assert_empty();
}

#[test]
fn compressed_bytes_count_as_they_arrive() {
    let short = message(&[7; 1_000]);
    let (mut world, client) = world(bytes(short.len() as u64 * 10));
    world.client_sends(client, short.repeat(30));
    assert_eq!(handled(&mut world, client).len(), 10);
    world.advance_ms(2_100);
    assert_eq!(handled(&mut world, client).len(), 20);
}
