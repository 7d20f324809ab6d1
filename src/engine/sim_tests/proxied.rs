//! Connections from proxies that speak the PROXY protocol.

use std::sync::{Arc, Mutex};

use super::wire::{UPGRADE, client_text, text};
use super::world::{Setup, Told, World, echo};
use crate::limits::Limits;
use crate::proxies::Networks;

const HEADER: &str = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n";

fn world(limits: Limits) -> (World, Arc<Mutex<Vec<String>>>) {
    let peers = Arc::<Mutex<Vec<String>>>::default();
    let seen = peers.clone();
    let world = World::new(Setup {
        limits,
        proxy_protocol: Some(Networks::parse(&["127.0.0.0/8".to_owned()]).unwrap()),
        handler: Box::new(move |hub, session, told| {
            if *told == Told::Open {
                seen.lock().unwrap().push(session.peer().to_string());
            }
            echo(hub, session, told);
        }),
        ..Setup::default()
    });
    (world, peers)
}

#[test]
fn client_that_a_proxy_names_is_the_peer_at_any_split() {
    let (mut world, peers) = world(Limits::default());
    let all = [HEADER.as_bytes(), UPGRADE, &client_text("hello")].concat();
    for split in 0..all.len() {
        let client = world.connect();
        world.client_sends(client, &all[..split]);
        world.client_sends(client, &all[split..]);
        world.run_handlers();
        assert!(world.head(client).starts_with("HTTP/1.1 101 "), "{split}");
        assert_eq!(world.frames(client), [text("hello")], "{split}");
        assert_eq!(peers.lock().unwrap().pop().unwrap(), "192.0.2.7:4711");
    }
}

#[test]
fn connection_without_a_header_is_closed_without_a_response() {
    let (mut world, _) = world(Limits::default());
    for begin in [UPGRADE, b"PROXY nonsense\r\n", b"\x16\x03\x01"] {
        let client = world.connect();
        world.client_sends(client, begin);
        assert!(world.is_closed(client));
        assert!(world.output(client).is_empty());
    }
    assert_eq!(world.metrics().handshake_failures.malformed, 3);
}

#[test]
fn proxy_that_sends_no_header_in_time_is_closed() {
    let (mut world, _) = world(Limits::default());
    let (silent, half) = (world.connect(), world.connect());
    world.client_sends(half, &HEADER[..20]);
    world.advance(Limits::default().handshake_timeout);
    world.advance_ms(20);
    for client in [silent, half] {
        assert!(world.is_closed(client));
        assert!(world.output(client).is_empty());
    }
    assert_eq!(world.metrics().handshake_failures.timeout, 2);
}

#[test]
fn other_peers_send_no_header() {
    let (mut world, peers) = world(Limits::default());
    world.come_from = [198, 51, 100, 9];
    let client = world.join();
    world.client_says(client, "hello");
    world.run_handlers();
    assert_eq!(world.frames(client), [text("hello")]);
    assert!(peers.lock().unwrap()[0].starts_with("198.51.100.9:"));
    let forged = world.connect();
    world.client_sends(forged, HEADER);
    assert!(world.head(forged).starts_with("HTTP/1.1 400 "));
}

#[test]
fn limits_for_each_address_apply_to_the_named_client() {
    let (mut world, _) = world(Limits::default().peer_connections_max(Some(1)));
    let request = [HEADER.as_bytes(), UPGRADE].concat();
    let request = String::from_utf8(request).unwrap();
    let other = request.replace("192.0.2.7", "192.0.2.8");
    let mut answers = Vec::new();
    for request in [&request, &other, &request] {
        let client = world.connect();
        world.client_sends(client, request);
        world.run_handlers();
        answers.push(world.head(client)[9..12].to_owned());
    }
    assert_eq!(answers, ["101", "101", "429"]);
}
