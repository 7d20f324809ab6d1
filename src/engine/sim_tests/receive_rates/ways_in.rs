//! Messages that arrive in other ways: behind the handshake, from a host, and in records of TLS.

use super::{bytes, echoed, messages, numbered};
use crate::engine::model::command::{Received, Upgraded};
use crate::engine::sim_tests::wire::{Frame, UPGRADE};
use crate::engine::sim_tests::world::World;
use crate::limits::{Limits, OverRate};
use crate::message::Message;
use crate::protocol::connection::FrameReader;

#[test]
fn messages_behind_the_handshake_are_limited() {
    let mut world = World::echoing(messages(10));
    let client = world.connect();
    world.client_sends(client, [UPGRADE, &numbered(0..30)].concat());
    world.run_handlers();
    world.head(client);
    assert_eq!(echoed(&mut world, client).len(), 10);
    world.advance_ms(2_100);
    assert_eq!(echoed(&mut world, client).len(), 20);
}

#[test]
fn messages_that_a_host_has_read_count() {
    let mut world = World::echoing(messages(10));
    let mut protocol = FrameReader::new(1_000);
    let cut = numbered(4..40);
    let mut begun = cut[..3].to_vec();
    assert!(protocol.receive(&mut &mut begun[..]).unwrap().is_none());
    let client = world.adopt(Upgraded {
        is_answered: true,
        received: Some(Received {
            messages: (0..4).map(|n| Message::new(n.to_string())).collect(),
            protocol,
        }),
        ..Upgraded::default()
    });
    world.client_sends(client, &cut[3..]);
    assert_eq!(echoed(&mut world, client), (0..10).collect::<Vec<_>>());
    world.advance_ms(3_100);
    assert_eq!(echoed(&mut world, client), (10..40).collect::<Vec<_>>());
}

/// Hands a connection over with so many numbered messages.
fn adopt_with(world: &mut World, messages: usize) -> usize {
    world.adopt(Upgraded {
        is_answered: true,
        received: Some(Received {
            messages: (0..messages).map(|n| Message::new(n.to_string())).collect(),
            protocol: FrameReader::new(1_000),
        }),
        ..Upgraded::default()
    })
}

#[test]
fn messages_of_a_host_beyond_the_rate_delay_the_first_read() {
    // The frames of the first ten have 70 bytes, those of the others 80 for ten.
    for limits in [messages(10), bytes(80)] {
        let mut world = World::echoing(limits);
        let client = adopt_with(&mut world, 35);
        assert_eq!(echoed(&mut world, client).len(), 35);
        assert_eq!(world.metrics().reads_delayed, 1);
        world.client_sends(client, numbered(35..80));
        let reads = world.pipe(client).reads;
        world.advance_ms(2_300);
        assert_eq!(world.pipe(client).reads, reads);
        world.advance_ms(1_700);
        let handled = 35 + echoed(&mut world, client).len();
        assert!((45..=51).contains(&handled), "{handled}");
        world.advance_ms(3_100);
        assert_eq!(echoed(&mut world, client).last(), Some(&79));
    }
}

#[test]
fn messages_of_a_host_beyond_the_rate_close_the_connection() {
    let closing = |limits: Limits| limits.over_rate(OverRate::Close);
    let cases = [
        (closing(messages(10)), 10, "too many messages"),
        (closing(bytes(75)), 10, "too many bytes"),
        (messages(0), 0, "too many messages"),
        (bytes(0), 0, "too many bytes"),
    ];
    for (limits, allowed, reason) in cases {
        let mut world = World::echoing(limits);
        let client = adopt_with(&mut world, 35);
        world.run_handlers();
        let frames = world.all_frames(client);
        assert_eq!(frames.len(), allowed + 1);
        assert_eq!(
            frames.last(),
            Some(&Frame::Close(Some(1008), reason.into()))
        );
        let metrics = world.metrics();
        assert_eq!((metrics.messages_in, metrics.closed_over_rate), (35, 1));
        assert_eq!(metrics.dropped.unhandled, 35 - allowed as u64);
        world.client_ends(client);
        world.assert_empty();
    }
}

#[test]
fn records_of_tls_are_limited() {
    for limits in [messages(10), bytes(70)] {
        let mut world = World::echoing(limits);
        let client = world.join();
        let sent = numbered(0..10).repeat(20);
        world.pipe(client).record_bytes = sent.len();
        world.client_sends(client, &sent);
        assert_eq!(echoed(&mut world, client).len(), 10);
        for second in 1..=18 {
            world.advance_ms(1_000);
            let echoed = echoed(&mut world, client).len();
            assert!((9..=11).contains(&echoed), "{second}: {echoed}");
        }
        world.advance_ms(1_200);
        assert_eq!(world.metrics().messages_in, 200);
    }
}
