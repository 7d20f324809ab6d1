//! Several nodes over a real Redis, and over a real NATS server: who receives what, in which order, and what an outage of the broker
//! costs.
//!
//! Without a `redis-server` or `nats-server` on this machine, these tests say so and pass; `.ci/run` installs them.

use crate::brokers::RedisServer;
use crate::brokers::{TestBroker, with_each_broker};
use crate::events::EventSource;
use crate::nodes::{Node, hear_each_other, joining, stop};
use crate::support;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{
    Accept, AsyncWebsocketApp, CloseCode, Cluster, ConnectionId, JoinErrorReason, Message,
    SendErrorReason, Subscription,
};
use support::{Client, DEADLINE, eventually};

fn broadcasts_reach_members_on_every_node<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 3].map(|_| Node::joining(broker.url()));
    let mut in_a = [0, 1, 2].map(|node: usize| nodes[node].join("a"));
    let mut in_b = nodes[2].join("b");
    nodes[0].sender.room("a").broadcast("to a");
    nodes[1].sender.room("b").broadcast("to b");
    for client in &mut in_a {
        assert_eq!(client.receive_text(), "to a");
    }
    assert_eq!(in_b.receive_text(), "to b");
    // From a node without members of the room, and binary.
    nodes[0]
        .sender
        .room("b")
        .broadcast(Message::new_binary([0, 255]));
    assert_eq!(in_b.receive().into_data()[..], [0, 255]);
    nodes[2].sender.broadcast("to everyone");
    for client in in_a.iter_mut().chain([&mut in_b]) {
        assert_eq!(client.receive_text(), "to everyone");
    }
    // A message arrives once: the next one follows it.
    nodes[0].sender.broadcast("last");
    for client in in_a.iter_mut().chain([&mut in_b]) {
        assert_eq!(client.receive_text(), "last");
    }
    stop(nodes);
}

fn broadcast_except_leaves_out_one_client_only<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let chat = || {
        joining()
            .with_message_handler(|stream, message, _| {
                stream.room("chat").broadcast_except(stream.id(), message);
            })
            .with_cluster(broker.url())
    };
    let nodes = [Node::start(chat()), Node::start(chat())];
    nodes.iter().for_each(Node::wait_until_connected);
    let mut clients = [
        nodes[0].join("chat"),
        nodes[0].join("chat"),
        nodes[1].join("chat"),
    ];
    clients[0].send("from 0");
    assert_eq!(clients[1].receive_text(), "from 0");
    assert_eq!(clients[2].receive_text(), "from 0");
    clients[2].send("from 2");
    // The first client has not received its own message before.
    assert_eq!(clients[0].receive_text(), "from 2");
    assert_eq!(clients[1].receive_text(), "from 2");
    stop(nodes);
}

fn event_streams_receive_messages_of_other_nodes<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let app = || {
        joining()
            .with_event_stream("/events", |_, _| {
                Ok(Subscription::room("news").with_broadcasts())
            })
            .with_cluster(broker.url())
    };
    let nodes = [Node::start(app()), Node::start(app())];
    nodes.iter().for_each(Node::wait_until_connected);
    let mut events = EventSource::open(nodes[1].address, "/events");
    eventually("the stream follows the room", || {
        nodes[1].sender.room("news").event_streams() == 1
    });
    nodes[0].sender.room("news").broadcast("It rains.");
    nodes[0].sender.broadcast("It snows.");
    assert_eq!(events.texts(2), ["It rains.", "It snows."]);
    stop(nodes);
}

fn client_that_joined_before_a_broadcast_receives_it<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(broker.url()));
    for n in 0..100 {
        let room = format!("room {n}").replace(' ', "-");
        let mut client = nodes[1].join(&room);
        nodes[0].sender.room(&room).broadcast("welcome");
        assert_eq!(client.receive_text(), "welcome", "{room}");
    }
    stop(nodes);
}

fn messages_of_one_thread_arrive_in_order_on_other_nodes<B: TestBroker>() {
    const MESSAGES: usize = 20_000;
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(broker.url()));
    let mut client = nodes[1].join("a+b+c+d");
    let sender = nodes[0].sender.clone();
    let producer = thread::spawn(move || {
        let rooms = ["a", "b", "c", "d"].map(|name| sender.room(name));
        for n in 0..MESSAGES {
            match n % 5 {
                4 => sender.broadcast(n.to_string()),
                room => rooms[room].broadcast(n.to_string()),
            }
        }
    });
    for n in 0..MESSAGES {
        assert_eq!(client.receive_text(), n.to_string());
    }
    producer.join().unwrap();
    let metrics = nodes[0].metrics();
    assert_eq!(metrics.published, MESSAGES as u64);
    eventually("all messages are confirmed", || {
        nodes[0].metrics().confirmed >= MESSAGES as u64
    });
    assert_eq!(nodes[1].metrics().received, MESSAGES as u64);
    stop(nodes);
}

fn messages_at_the_limit_are_sent_and_longer_ones_refused<B: TestBroker>() {
    const LIMIT: usize = 10_000;
    let Some(broker) = B::start() else {
        return;
    };
    let cluster = || Cluster::new(broker.url()).message_bytes_max(LIMIT + 64);
    let nodes = [0; 2].map(|_| Node::joining(cluster()));
    let mut clients = [nodes[0].join("a"), nodes[1].join("a")];
    let room = nodes[0].sender.room("a");
    for len in [LIMIT - 1, LIMIT] {
        room.broadcast("x".repeat(len));
        for client in &mut clients {
            assert_eq!(client.receive_text().len(), len);
        }
    }
    let refused = room.try_broadcast("x".repeat(LIMIT + 1)).unwrap_err();
    assert_eq!(refused.reason, SendErrorReason::TooLarge);
    room.broadcast("x".repeat(LIMIT + 1));
    assert_eq!(nodes[0].sender.metrics().dropped.too_large, 2);
    room.broadcast("next");
    for client in &mut clients {
        assert_eq!(
            client.receive_text(),
            "next",
            "nobody gets the refused message"
        );
    }
    stop(nodes);
}

#[test]
fn unreachable_broker_leaves_a_node_serving_its_own_clients() {
    let address = support::free_address();
    let url = format!("redis://{address}");
    let node = Node::start(joining().with_cluster(url.as_str()));
    let mut client = node.join("a");
    node.sender.room("a").broadcast("local");
    assert_eq!(client.receive_text(), "local");
    assert_eq!(node.metrics().servers_connected, 0);
    node.stop();
}

fn node_without_history_is_ready_during_an_outage<B: TestBroker>() {
    let Some(mut broker) = B::start() else {
        return;
    };
    let app = joining().with_cluster(broker.url());
    let sender = app.sender();
    assert!(!sender.is_ready(), "before the start");
    let node = Node::start(app);
    node.wait_until_connected();
    assert!(node.sender.is_ready());
    broker.kill();
    node.wait_until_disconnected();
    assert!(node.sender.is_ready(), "it serves its own clients");
    node.sender.shutdown(DEADLINE);
    assert!(!node.sender.is_ready(), "while it stops");
    node.stop();
}

#[test]
fn full_queue_delays_producers_only_for_the_start_of_an_outage() {
    let url = format!("redis://{}", support::free_address());
    let wait = Duration::from_millis(300);
    let cluster = Cluster::new(url)
        .outgoing_bytes_max(10_000)
        .outage_wait_max(wait);
    let node = Node::start(joining().with_cluster(cluster));
    let mut client = node.join("a");
    let room = node.sender.room("a");
    let started = Instant::now();
    for n in 0..1_000 {
        room.broadcast(format!("{n}{}", " ".repeat(100)));
    }
    assert!(started.elapsed() < DEADLINE, "it waited for every message");
    for n in 0..1_000 {
        assert_eq!(client.receive_text().trim(), n.to_string());
    }
    let dropped = node.metrics().dropped_broker;
    assert!((900..1_000).contains(&dropped), "{dropped}");
    let refused = room.try_broadcast("no room").unwrap_err();
    assert_eq!(refused.reason, SendErrorReason::Broker);
    assert_eq!(refused.message.text(), Some("no room"));
    node.stop();
}

fn nodes_reach_each_other_again_after_a_restart_of_the_broker<B: TestBroker>() {
    let Some(mut broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(broker.url()));
    let mut clients = [nodes[0].join("a"), nodes[1].join("a")];
    let room = nodes[0].sender.room("a");
    for n in 0..3 {
        broker.kill();
        nodes.iter().for_each(Node::wait_until_disconnected);
        let queued = format!("queued {n}");
        room.broadcast(queued.as_str());
        // Its own clients are served.
        while clients[0].receive_text() != queued {}
        broker.restart();
        nodes.iter().for_each(Node::wait_until_connected);
        // A connected node may not have subscribed yet.
        let after = format!("after {n}");
        let before = nodes[1].metrics().received;
        eventually("messages arrive again", || {
            room.broadcast(after.as_str());
            nodes[1].metrics().received > before + 1
        });
        for client in &mut clients {
            while client.receive_text() != after {}
        }
    }
    stop(nodes);
}

fn frozen_broker_is_noticed_and_used_again<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a");
    broker.freeze();
    for node in &nodes {
        eventually("the silence is noticed", || node.metrics().silences > 0);
    }
    // A join does not wait for a broker that is known to be unreachable.
    nodes.iter().for_each(Node::wait_until_disconnected);
    drop(nodes[0].join("b"));
    broker.thaw();
    nodes.iter().for_each(Node::wait_until_connected);
    eventually("messages arrive again", || {
        nodes[0].sender.room("a").broadcast("again");
        nodes[1].metrics().received > 0
    });
    assert_eq!(client.receive_text(), "again");
    hear_each_other(&[&nodes[0], &nodes[1]]);
    stop(nodes);
}

fn stopping_node_sends_what_is_queued<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a");
    let [stopping, staying] = nodes;
    for n in 0..5_000 {
        stopping.sender.room("a").broadcast(n.to_string());
    }
    stopping.stop();
    for n in 0..5_000 {
        assert_eq!(client.receive_text(), n.to_string());
    }
    eventually("the other node is gone", || staying.metrics().nodes == 1);
    staying.stop();
}

fn apps_with_different_prefixes_share_a_broker<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let url = |prefix: &str| format!("{}?app={prefix}", broker.url());
    let nodes = [
        Node::joining(url("one")),
        Node::joining(url("one")),
        Node::joining(url("two")),
    ];
    let mut clients = [0, 1, 2].map(|node: usize| nodes[node].join("a"));
    nodes[0].sender.room("a").broadcast("one");
    assert_eq!(clients[1].receive_text(), "one");
    nodes[2].sender.room("a").broadcast("two");
    assert_eq!(clients[2].receive_text(), "two");
    hear_each_other(&[&nodes[0], &nodes[1]]);
    hear_each_other(&[&nodes[2]]);
    stop(nodes);
}

/// A node whose clients are told their number, by which tests find their ids, and belong to the user in their path.
fn recording(cluster: &str) -> (Node, Arc<Mutex<Vec<ConnectionId>>>) {
    let ids = Arc::<Mutex<Vec<ConnectionId>>>::default();
    let recorded = ids.clone();
    let app = AsyncWebsocketApp::new()
        .with_handshake_handler(|request, _| Ok(Accept::new().user(&request.path()[1..])))
        .with_connect_handler(move |stream, _| {
            recorded.lock().unwrap().push(stream.id());
            stream.send("here");
        })
        .with_cluster(cluster);
    let node = Node::start(app);
    node.wait_until_connected();
    (node, ids)
}

fn connect(node: &Node, ids: &Mutex<Vec<ConnectionId>>, user: &str) -> (Client, ConnectionId) {
    let mut client = Client::connect_to(node.address, &format!("/{user}"));
    assert_eq!(client.receive_text(), "here");
    let id = *ids.lock().unwrap().last().unwrap();
    (client, id)
}

fn connections_of_other_nodes_are_reached_by_their_ids<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let [(near, _), (far, ids)] = [0; 2].map(|_| recording(&broker.url()));
    hear_each_other(&[&near, &far]);
    let (mut client, id) = connect(&far, &ids, "ada");
    let (mut other, other_id) = connect(&far, &ids, "ada");
    assert_ne!(id, other_id);
    near.sender.send_to(id, "to one");
    near.sender
        .try_send_to(id, Message::new_binary([7]))
        .unwrap();
    assert_eq!(client.receive_text(), "to one");
    assert_eq!(client.receive().into_data()[..], [7]);
    // Joins, messages and leaves of one thread take effect in their order.
    let room = near.sender.room("a");
    room.join(id);
    near.sender.send_to(id, "joined");
    assert_eq!(client.receive_text(), "joined");
    eventually("the far node receives the room's messages", || {
        room.broadcast("hello");
        far.metrics().received > 4
    });
    assert_eq!(client.receive_text(), "hello");
    assert!(!room.contains(id), "it is a member on its own node");
    assert!(far.sender.room("a").contains(id));
    room.leave(id);
    eventually("it has left", || !far.sender.room("a").contains(id));
    near.sender.close(id, CloseCode::application(4_001), "bye");
    let (_, close) = client.receive_to_close();
    let close = close.expect("a close frame");
    assert_eq!((u16::from(close.code), &*close.reason), (4_001, "bye"));
    near.sender.send_to(other_id, "the other is untouched");
    assert_eq!(other.receive_text(), "the other is untouched");
    near.stop();
    far.stop();
}

fn id_of_a_node_that_is_gone_is_closed<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let [(near, near_ids), (far, ids)] = [0; 2].map(|_| recording(&broker.url()));
    hear_each_other(&[&near, &far]);
    let (_client, id) = connect(&far, &ids, "ada");
    // A connection here in the same slot.
    let (mut same_slot, _) = connect(&near, &near_ids, "bob");
    far.stop();
    hear_each_other(&[&near]);
    let error = near.sender.try_send_to(id, "too late").unwrap_err();
    assert_eq!(error.reason, SendErrorReason::Closed);
    assert_eq!(
        near.sender.room("a").try_join(id).unwrap_err().reason,
        JoinErrorReason::Closed
    );
    near.sender.close(id, CloseCode::NORMAL, "");
    near.sender.everyone().broadcast_except(id, "to bob");
    assert_eq!(
        same_slot.receive_text(),
        "to bob",
        "another connection is left out, or closed"
    );
    near.stop();
}

fn user_is_closed_on_every_node<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let [(near, near_ids), (far, far_ids)] = [0; 2].map(|_| recording(&broker.url()));
    hear_each_other(&[&near, &far]);
    let (here, _) = connect(&near, &near_ids, "ada");
    let (there, _) = connect(&far, &far_ids, "ada");
    let (mut other, _) = connect(&far, &far_ids, "bob");
    assert_eq!(
        near.sender
            .close_user("ada", CloseCode::POLICY_VIOLATION, "signed out"),
        1
    );
    for mut client in [here, there] {
        let (_, close) = client.receive_to_close();
        assert_eq!(close.expect("a close frame").reason, "signed out");
    }
    far.sender.broadcast("still here");
    assert_eq!(other.receive_text(), "still here");
    near.stop();
    far.stop();
}

fn members_are_counted_everywhere<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 3].map(|_| Node::joining(broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1], &nodes[2]]);
    let _clients = [0, 0, 1, 2].map(|node: usize| nodes[node].join("a"));
    let _other = nodes[2].join("b");
    let counted = |name: &str| {
        let room = nodes[1].sender.room(name).everywhere();
        (room.members, room.nodes, room.is_complete)
    };
    // An answer may be late on a busy machine.
    eventually("all members are counted", || counted("a") == (4, 3, true));
    eventually("all members are counted", || counted("b") == (1, 3, true));
    eventually("all clients are counted", || {
        let everyone = nodes[0].sender.everyone().everywhere();
        (everyone.members, everyone.nodes, everyone.is_complete) == (5, 3, true)
    });
    broker.freeze();
    let during = nodes[0].sender.room("a").everywhere();
    assert_eq!(
        (during.members, during.nodes, during.is_complete),
        (2, 1, false)
    );
    broker.thaw();
    stop(nodes);
}

#[test]
fn several_servers_share_the_rooms() {
    let (Some(first), Some(second)) = (RedisServer::start(&[]), RedisServer::start(&[])) else {
        return;
    };
    let urls = format!("{},{}", first.url(), second.url());
    let nodes = [0; 2].map(|_| Node::start(joining().with_cluster(urls.as_str())));
    for node in &nodes {
        eventually("both servers are connected", || {
            node.metrics().servers_connected == 2
        });
    }
    for n in 0..20 {
        let mut client = nodes[1].join(&format!("room{n}"));
        nodes[0]
            .sender
            .room(&format!("room{n}"))
            .broadcast(n.to_string());
        assert_eq!(client.receive_text(), n.to_string());
    }
    stop(nodes);
}

#[test]
fn unusable_settings_are_refused_at_the_start() {
    let error = |app: AsyncWebsocketApp<()>| match app.with_address("127.0.0.1:0").start() {
        Ok(_) => panic!("the app has started"),
        Err(error) => error.to_string(),
    };
    for url in ["", "localhost:6379", "http://localhost", "redis://"] {
        let error = error(AsyncWebsocketApp::new().with_cluster(url));
        assert!(error.contains("redis://"), "{url}: {error}");
    }
    let error_of = error(AsyncWebsocketApp::new().with_cluster("redis://:secret@/"));
    assert!(!error_of.contains("secret"), "{error_of}");
    let same = "redis://localhost:1,redis://localhost:1";
    assert!(error(AsyncWebsocketApp::new().with_cluster(same)).contains("same server"));
    #[cfg(not(feature = "cluster-tls"))]
    {
        let error = error(AsyncWebsocketApp::new().with_cluster("rediss://localhost"));
        assert!(error.contains("'cluster-tls'"), "{error}");
    }
}

fn messages_sent_by_handlers_and_other_threads_arrive_once<B: TestBroker>() {
    const MESSAGES: usize = 500;
    let Some(broker) = B::start() else {
        return;
    };
    let (received, receive): (Sender<String>, _) = channel();
    let received = Mutex::new(received);
    let talking = |cluster: String| {
        joining()
            .with_message_handler(|stream, message, _| stream.room("a").broadcast(message))
            .with_cluster(cluster)
    };
    let nodes = [
        Node::start(talking(broker.url())),
        Node::start(talking(broker.url())),
    ];
    nodes.iter().for_each(Node::wait_until_connected);
    let mut listener = nodes[1].join("a");
    let mut speakers = [nodes[0].join("b"), nodes[1].join("b")];
    thread::scope(|scope| {
        for (of, speaker) in speakers.iter_mut().enumerate() {
            scope.spawn(move || {
                for n in 0..MESSAGES {
                    speaker.send(&format!("{of}:{n}"));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..2 * MESSAGES {
                received
                    .lock()
                    .unwrap()
                    .send(listener.receive_text())
                    .unwrap();
            }
        });
    });
    let mut next = [0, 0];
    for text in receive.try_iter() {
        let (of, n) = text.split_once(':').unwrap();
        let of: usize = of.parse().unwrap();
        assert_eq!(n, next[of].to_string());
        next[of] += 1;
    }
    assert_eq!(next, [MESSAGES; 2]);
    stop(nodes);
}

with_each_broker! {
    broadcasts_reach_members_on_every_node,
    broadcast_except_leaves_out_one_client_only,
    event_streams_receive_messages_of_other_nodes,
    client_that_joined_before_a_broadcast_receives_it,
    messages_of_one_thread_arrive_in_order_on_other_nodes,
    messages_at_the_limit_are_sent_and_longer_ones_refused,
    node_without_history_is_ready_during_an_outage,
    nodes_reach_each_other_again_after_a_restart_of_the_broker,
    frozen_broker_is_noticed_and_used_again,
    stopping_node_sends_what_is_queued,
    apps_with_different_prefixes_share_a_broker,
    connections_of_other_nodes_are_reached_by_their_ids,
    id_of_a_node_that_is_gone_is_closed,
    user_is_closed_on_every_node,
    members_are_counted_everywhere,
    messages_sent_by_handlers_and_other_threads_arrive_once,
}
