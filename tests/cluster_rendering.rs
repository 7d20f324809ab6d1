//! Rendered messages of rooms with a history over several nodes and a real Redis.
//!
//! Without a `redis-server` on this machine, these tests say so and pass; `.ci/run` installs one.

use crate::brokers::RedisServer;
use crate::kept_rooms::{Received, connect_numbered, receive};
use crate::nodes::{Node, stop};
use crate::support::Client;

use std::time::SystemTime;

use humphrey_ws::{Accept, AsyncWebsocketApp, HistoryLimits, Message};

/// A node whose clients at `/rendered/ROOM` receive rendered messages, and are told of gaps.
fn rendering_node(redis: &RedisServer) -> Node {
    let app = AsyncWebsocketApp::<()>::new()
        .with_shards(2)
        .with_history("*", HistoryLimits::messages(5_000).bytes(1 << 20))
        .with_handshake_handler(|request, _| {
            let accept = match request.query_param("form") {
                Some(_) => Accept::new().rendered(),
                None => Accept::new(),
            };
            Ok(match request.subprotocols().next() {
                Some(offered) => accept.with_subprotocol(offered),
                None => accept,
            })
        })
        .with_connect_handler(|stream, _| {
            stream.join_since(&stream.path()[1..], None).unwrap();
            stream.send("joined");
        })
        .with_renderer(|kept| {
            assert_ne!(kept.message().text(), Some("bad"), "as it should");
            let at = kept.sent_at().duration_since(SystemTime::UNIX_EPOCH);
            let text = kept.message().text().unwrap();
            Message::new(format!("{} {} {text}", kept.id(), at.unwrap().as_millis()))
        })
        .with_gap_handler(|gap| {
            let text = format!("gap in {} up to {}", gap.room(), gap.position());
            Some(Message::new(text))
        })
        .with_cluster(redis.url());
    let node = Node::start(app);
    node.wait_until_connected();
    node
}

#[test]
fn rendered_client_receives_the_same_id_and_time_on_every_node() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes = [0; 2].map(|_| rendering_node(&redis));
    let mut clients = [0, 1].map(|node: usize| {
        let mut client = Client::connect_to(nodes[node].address, "/a?form=rendered");
        assert_eq!(client.receive_text(), "joined");
        client
    });
    let mut plain = Client::connect_to(nodes[1].address, "/a");
    assert_eq!(plain.receive_text(), "joined");
    let now = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_millis()
    };
    let before = now();
    let room = nodes[0].sender.room("a");
    let id = room.broadcast_confirmed("one").unwrap().unwrap();
    let after = now();
    let text = clients[0].receive_text();
    let at: u128 = text.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(text, format!("{id} {at} one"));
    assert!((before..=after).contains(&at), "{before} {at} {after}");
    assert_eq!(clients[1].receive_text(), text);
    assert_eq!(plain.receive_text(), "one");
    // A node that reads the history knows the time as well.
    let third = rendering_node(&redis);
    let mut late = Client::connect_to(third.address, "/a?form=rendered");
    assert_eq!(late.receive_text(), text);
    let id = room.broadcast_with(|id| Message::new(id.unwrap().to_string()));
    let id = id.unwrap().to_string();
    let text = clients[1].receive_text();
    assert!(
        text.starts_with(&id) && text.ends_with(&format!(" {id}")),
        "{text}"
    );
    stop(nodes);
    stop([third]);
}

#[test]
fn panic_of_the_renderer_does_not_end_the_link() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes = [0; 2].map(|_| rendering_node(&redis));
    let mut rendered = Client::connect_to(nodes[1].address, "/a?form=rendered");
    assert_eq!(rendered.receive_text(), "joined");
    let mut plain = Client::connect_to(nodes[1].address, "/a");
    assert_eq!(plain.receive_text(), "joined");
    for text in ["bad", "good"] {
        nodes[0].sender.room("a").broadcast(text);
        assert_eq!(plain.receive_text(), text);
    }
    let text = rendered.receive_text();
    assert!(text.ends_with(" good"), "{text}");
    assert_eq!(nodes[1].sender.metrics().handler_panics, 1);
    stop(nodes);
}

#[test]
fn rendered_clients_are_told_of_a_gap_in_order_with_the_messages() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes = [0; 2].map(|_| rendering_node(&redis));
    let mut rendered = Client::connect_to(nodes[1].address, "/a?form=rendered");
    let mut plain = Client::connect_to(nodes[1].address, "/a");
    let mut with_ids = connect_numbered(nodes[1].address, "a?form=rendered");
    assert_eq!(rendered.receive_text(), "joined");
    assert_eq!(plain.receive_text(), "joined");
    assert_eq!(receive(&mut with_ids), Received::Text("joined".into()));
    let room = nodes[0].sender.room("a");
    room.broadcast_confirmed("before").unwrap();
    assert!(rendered.receive_text().ends_with(" before"));
    assert_eq!(plain.receive_text(), "before");
    assert!(
        matches!(receive(&mut with_ids), Received::Message(_, text) if text.ends_with(" before"))
    );
    redis.restart();
    let Received::Gap(position) = receive(&mut with_ids) else {
        panic!("no gap");
    };
    let told = format!("gap in a up to {position}");
    assert_eq!(receive(&mut with_ids), Received::Text(told.clone()));
    assert_eq!(rendered.receive_text(), told);
    let after = room.broadcast_confirmed("after").unwrap().unwrap();
    assert_eq!(
        (after.epoch(), after.sequence()),
        (position.epoch(), position.sequence() + 1)
    );
    assert!(rendered.receive_text().starts_with(&after.to_string()));
    assert!(matches!(receive(&mut with_ids), Received::Message(id, _) if id == after));
    // Plain clients can't be told.
    assert_eq!(plain.receive_text(), "after");
    stop(nodes);
}
