//! Rooms with a history over several nodes and a real Redis: one order, resume on any node, and gaps that are told.
//!
//! Without a `redis-server` on this machine, these tests say so and pass; `.ci/run` installs one.

use crate::brokers::{PERSISTENT, RedisServer};
use crate::events::{EventSource, answer, request};
use crate::kept_rooms::{
    Received, connect_numbered, join_numbered, keeping, node, nodes, receive, receive_any,
};
use crate::nodes::{Node, hear_each_other, joining, stop};
use crate::support;

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use humphrey_ws::{
    Cluster, HistoryId, HistoryLimits, JoinErrorReason, Message, SendErrorReason, Subscription,
};
use support::{Client, DEADLINE, eventually};

#[test]
fn members_on_all_nodes_receive_one_order_with_the_same_ids() {
    const MESSAGES: usize = 300;
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 3] = nodes(&redis);
    let clients = nodes.each_ref().map(|node| join_numbered(node, "a"));
    let received = thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                for n in 0..MESSAGES {
                    node.sender.room("a").broadcast(Message::new(n.to_string()));
                }
            });
        }
        let readers = clients.map(|mut client| {
            scope.spawn(move || {
                let messages = (0..3 * MESSAGES).map(|_| receive(&mut client));
                messages.collect::<Vec<_>>()
            })
        });
        readers.map(|reader| reader.join().unwrap())
    });
    for (message, sequence) in received[0].iter().zip(1..) {
        let is_next = matches!(message, Received::Message(id, _) if id.sequence() == sequence);
        assert!(is_next, "{message:?}");
    }
    assert!(received.iter().all(|other| *other == received[0]));
    stop(nodes);
}

#[test]
fn client_resumes_on_another_node_by_the_same_id() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 2] = nodes(&redis);
    let room = nodes[0].sender.room("a");
    let mut first = join_numbered(&nodes[0], "a");
    room.broadcast("1");
    let Received::Message(seen, _) = receive(&mut first) else {
        panic!("no message");
    };
    drop(first);
    for text in ["2", "3"] {
        room.broadcast(text);
    }
    let last = room.broadcast_confirmed("4").unwrap().unwrap();
    assert_eq!((last.epoch(), last.sequence()), (seen.epoch(), 4));
    // This node has had no member of the room so far.
    let mut resumed = connect_numbered(nodes[1].address, &format!("a?{seen}"));
    for (sequence, text) in [(2, "2"), (3, "3"), (4, "4")] {
        let Received::Message(id, received) = receive(&mut resumed) else {
            panic!("no message");
        };
        assert_eq!((id.sequence(), received.as_str()), (sequence, text));
    }
    assert_eq!(
        receive(&mut resumed),
        Received::Text("joined after 3".into())
    );
    room.broadcast("5");
    assert!(matches!(receive(&mut resumed), Received::Message(id, _) if id.sequence() == 5));
    stop(nodes);
}

#[test]
fn room_is_read_once_for_all_clients_of_a_node() {
    const CLIENTS: usize = 50;
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 2] = nodes(&redis);
    let room = nodes[0].sender.room("a");
    for n in 0..10 {
        room.broadcast_confirmed(Message::new(n.to_string()))
            .unwrap();
    }
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|_| Client::connect_to(nodes[1].address, "/a?all"))
        .collect();
    for client in &mut clients {
        for n in 0..10 {
            assert_eq!(client.receive_text(), n.to_string());
        }
        assert_eq!(client.receive_text(), "joined after 10");
    }
    drop(clients);
    // The copy outlasts its members for a minute.
    eventually("the room is empty", || nodes[1].sender.room("a").is_empty());
    let mut again = Client::connect_to(nodes[1].address, "/a?all");
    assert_eq!(again.receive_text(), "0");
    assert_eq!(nodes[1].metrics().history_reads, 1);
    stop(nodes);
}

#[test]
fn history_outlives_the_node_that_sent_it() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let [first, second] = nodes(&redis);
    let id = first.sender.room("a").broadcast_confirmed("kept").unwrap();
    first.stop();
    let room = second.sender.room("a");
    assert_eq!(room.last_id(), id);
    let kept = room.since(None).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((Some(kept[0].0), kept[0].1.text()), (id, Some("kept")));
    assert_eq!(room.since(id).unwrap().len(), 0);
    stop([second]);
}

#[test]
fn broadcast_except_leaves_out_the_client_that_asked() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let chat = || {
        keeping().with_message_handler(|stream, message, _| {
            stream.room("a").broadcast_except(stream.id(), message);
        })
    };
    let nodes = [0; 2].map(|_| Node::start(chat().with_cluster(redis.url())));
    nodes.iter().for_each(Node::wait_until_connected);
    let mut clients = [0, 0, 1].map(|node: usize| Client::connect_to(nodes[node].address, "/a"));
    for client in &mut clients {
        assert_eq!(client.receive_text(), "joined after 0");
    }
    clients[0].send("from 0");
    assert_eq!(clients[1].receive_text(), "from 0");
    assert_eq!(clients[2].receive_text(), "from 0");
    clients[2].send("from 2");
    // The first client has not received its own message before.
    assert_eq!(clients[0].receive_text(), "from 2");
    stop(nodes);
}

#[test]
fn message_that_contains_its_id_is_appended_under_it() {
    const EACH: usize = 30;
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 2] = nodes(&redis);
    let mut client = join_numbered(&nodes[0], "a");
    thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let room = node.sender.room("a");
                    let id = room.broadcast_with(|id| format!("{}", id.unwrap()).into());
                    assert!(id.is_some());
                }
            });
        }
    });
    for sequence in 1..=2 * EACH as u64 {
        let Received::Message(id, text) = receive(&mut client) else {
            panic!("no message");
        };
        assert_eq!(id.sequence(), sequence);
        assert_eq!(text, id.to_string());
    }
    stop(nodes);
}

#[test]
fn history_that_is_lost_is_never_begun_again_under_its_epoch() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let node = node(redis.url());
    let mut client = join_numbered(&node, "a");
    // This node knows the beginning of the history. Another one may have appended messages to it that are lost.
    redis.kill();
    eventually("the outage is noticed", || {
        node.metrics().servers_connected == 0
    });
    let room = node.sender.room("a");
    let id = thread::scope(|scope| {
        let appended = scope.spawn(|| room.broadcast_with(|id| format!("{}", id.unwrap()).into()));
        redis.restart();
        appended.join().unwrap().expect("it is appended")
    });
    let Received::Gap(begun) = receive(&mut client) else {
        panic!("no gap");
    };
    assert_eq!(begun, format!("{:x}-0", id.epoch()).parse().unwrap());
    let expected = Received::Message(id, id.to_string());
    assert_eq!(receive(&mut client), expected);
    stop([node]);
}

#[test]
fn restart_without_persistence_is_a_gap_for_every_member() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 2] = nodes(&redis);
    let mut clients = nodes.each_ref().map(|node| join_numbered(node, "a"));
    let room = nodes[0].sender.room("a");
    let before = room.broadcast_confirmed("before").unwrap().unwrap();
    for client in &mut clients {
        assert_eq!(receive(client), Received::Message(before, "before".into()));
    }
    redis.restart();
    let mut gaps = clients.each_mut().map(|client| match receive(client) {
        Received::Gap(position) => position,
        other => panic!("{other:?}"),
    });
    gaps.sort_by_key(HistoryId::sequence);
    assert_eq!(gaps[0], gaps[1]);
    assert_ne!(gaps[0].epoch(), before.epoch());
    room.broadcast("after");
    for client in &mut clients {
        let expected = format!("{:x}-{}", gaps[0].epoch(), gaps[0].sequence() + 1)
            .parse()
            .unwrap();
        assert_eq!(receive(client), Received::Message(expected, "after".into()));
    }
    for node in &nodes {
        let metrics = node.metrics();
        assert_eq!((metrics.gaps, metrics.gaps_server_changed), (0, 1));
    }
    // A client that was not there learns of it when it resumes.
    let mut late = Client::connect_to(nodes[1].address, &format!("/a?{before}"));
    assert_eq!(late.receive_text(), "HistoryGone");
    stop(nodes);
}

#[test]
fn broken_connections_lose_and_repeat_nothing() {
    const MESSAGES: usize = 2_000;
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let nodes: [Node; 3] = nodes(&redis);
    let clients = nodes.each_ref().map(|node| join_numbered(node, "a"));
    let received = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for n in 0..MESSAGES {
                nodes[n % 2]
                    .sender
                    .room("a")
                    .broadcast(Message::new(n.to_string()));
                if n % 100 == 50 {
                    redis.command(&["CLIENT", "KILL", "SKIPME", "yes", "TYPE", "pubsub"]);
                }
            }
        });
        let readers = clients.map(|mut client| {
            scope.spawn(move || {
                let messages = (0..MESSAGES).map(|_| receive(&mut client));
                messages.collect::<Vec<_>>()
            })
        });
        sender.join().unwrap();
        readers.map(|reader| reader.join().unwrap())
    });
    for messages in &received {
        for (message, sequence) in messages.iter().zip(1..) {
            assert!(
                matches!(message, Received::Message(id, _) if id.sequence() == sequence),
                "{message:?}"
            );
        }
        assert_eq!(*messages, received[0]);
        for sender in 0..2 {
            let numbers = messages.iter().map(|message| match message {
                Received::Message(_, text) => text.parse::<usize>().unwrap(),
                other => panic!("{other:?}"),
            });
            let of_sender: Vec<_> = numbers.filter(|number| number % 2 == sender).collect();
            assert!(of_sender.is_sorted(), "out of order");
            assert_eq!(of_sender.len(), MESSAGES / 2);
        }
    }
    assert!(nodes.iter().any(|node| node.metrics().connections > 1));
    stop(nodes);
}

#[test]
fn rooms_are_silent_and_joins_refused_at_once_during_an_outage() {
    let Some(mut redis) = RedisServer::start(PERSISTENT) else {
        return;
    };
    let nodes: [Node; 2] = nodes(&redis);
    let mut client = join_numbered(&nodes[0], "a");
    let room = nodes[0].sender.room("a");
    assert!(nodes[0].sender.is_ready());
    redis.kill();
    nodes.iter().for_each(Node::wait_until_disconnected);
    assert!(!nodes[0].sender.is_ready());
    room.broadcast("queued");
    let mut refused = Client::connect_to(nodes[0].address, "/a");
    assert_eq!(
        refused.receive_text(),
        format!("{:?}", JoinErrorReason::Broker)
    );
    redis.restart();
    // The server has another identity, so whether messages were lost is not known.
    assert!(matches!(receive(&mut client), Received::Gap(_)));
    assert!(matches!(receive(&mut client), Received::Message(_, text) if text == "queued"));
    assert!(nodes[0].sender.is_ready());
    stop(nodes);
}

#[test]
fn join_during_the_first_attempt_to_connect_waits_for_it() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    redis.freeze();
    let node = Node::start(keeping().with_cluster(redis.url()));
    let mut client = connect_numbered(node.address, "a?all");
    redis.thaw();
    let joined = receive(&mut client);
    assert_eq!(joined, Received::Text("joined after 0".to_owned()));
    stop([node]);
}

#[test]
fn message_that_is_longer_than_the_cluster_allows_is_refused_alone() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let node = node(Cluster::new(redis.url()).message_bytes_max(10_000));
    let room = node.sender.room("a");
    for len in [10_000 - 64 + 1, 10_000] {
        let error = room.broadcast_confirmed("x".repeat(len)).unwrap_err();
        assert_eq!(error.reason, SendErrorReason::TooLarge);
    }
    let longest = "x".repeat(10_000 - 64);
    assert!(room.broadcast_confirmed(longest.as_str()).is_ok());
    assert_eq!(room.since(None).unwrap()[0].1.text(), Some(&*longest));
    stop([node]);
}

#[test]
fn room_without_a_history_is_unchanged_beside_those_with_one() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let app = || joining().with_history("kept/*", HistoryLimits::messages(10).bytes(1 << 20));
    let nodes = [0; 2].map(|_| Node::start(app().with_cluster(redis.url())));
    nodes.iter().for_each(Node::wait_until_connected);
    let mut client = nodes[1].join("kept/a+b");
    nodes[0]
        .sender
        .room("kept/a")
        .broadcast_confirmed("1")
        .unwrap();
    nodes[0].sender.room("b").broadcast("2");
    assert_eq!(client.receive_text(), "1");
    assert_eq!(client.receive_text(), "2");
    assert_eq!(
        nodes[0].sender.room("b").broadcast_confirmed("3").unwrap(),
        None
    );
    assert_eq!(client.receive_text(), "3");
    stop(nodes);
}

#[test]
fn event_stream_of_several_rooms_resumes_on_another_node() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let app = || {
        keeping().with_event_stream("/events", |_, _| {
            Ok(Subscription::room("a").and_room("b").and_room("c"))
        })
    };
    let nodes = [0; 2].map(|_| Node::start(app().with_cluster(redis.url())));
    nodes.iter().for_each(Node::wait_until_connected);
    let send = |room: &str, text: &str| {
        let room = nodes[0].sender.room(room);
        room.broadcast_confirmed(text).unwrap();
    };
    // Kept before the client is there, and not for it.
    send("a", "a1");
    send("b", "b1");
    let mut stream = EventSource::open(nodes[0].address, "/events");
    eventually("the stream is there", || {
        nodes[0].sender.room("b").event_streams() == 1
    });
    send("b", "b2");
    send("a", "a2");
    assert_eq!(stream.text(), "b2");
    let seen = stream.next();
    assert_eq!(seen.data, "a2");
    drop(stream);
    // A long message is delivered on its own.
    let long = "c1".repeat(20_000);
    send("b", "b3");
    send("c", &long);
    send("a", "a3");
    let mut resumed = EventSource::resume(nodes[1].address, "/events", &seen.id);
    let mut texts = resumed.texts(3);
    texts.sort_by_key(|text| text.len());
    texts[..2].sort();
    assert_eq!(texts, ["a3", "b3", &long]);
    let mut last = String::new();
    for (room, text) in [("b", "b4"), ("c", &*long), ("a", "a4")] {
        send(room, text);
        let event = resumed.next();
        assert_eq!(event.data, text);
        assert_ne!(event.id, last);
        last = event.id;
    }
    drop(resumed);
    // It has missed nothing in any of the rooms.
    let mut again = EventSource::resume(nodes[0].address, "/events", &last);
    eventually("the stream is there", || {
        nodes[0].sender.room("c").event_streams() == 1
    });
    send("c", "c2");
    assert_eq!(again.text(), "c2");
    stop(nodes);
}

#[test]
fn members_are_told_when_their_room_is_silent_and_when_it_is_not() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let app = keeping().with_event_stream("/events", |_, _| Ok(Subscription::room("a")));
    let node = Node::start(app.with_cluster(redis.url()));
    node.wait_until_connected();
    let mut client = join_numbered(&node, "a");
    let mut stream = EventSource::open(node.address, "/events");
    eventually("the stream is there", || {
        node.sender.room("a").event_streams() == 1
    });
    // A frozen server is noticed by the silence of its heartbeats.
    redis.freeze();
    assert_eq!(
        receive_any(&mut client),
        Received::Silence("a".into(), true)
    );
    let event = stream.next();
    assert_eq!((&*event.kind, &*event.data), ("silent", "a"));
    redis.thaw();
    assert_eq!(
        receive_any(&mut client),
        Received::Silence("a".into(), false)
    );
    assert_eq!(stream.next().kind, "live");
    node.sender.room("a").broadcast("again");
    assert!(matches!(receive(&mut client), Received::Message(_, text) if text == "again"));
    assert_eq!(stream.text(), "again");
    stop([node]);
}

#[test]
fn connection_of_another_node_joins_and_leaves_a_room_with_a_history() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let (ids, connected) = channel();
    let ids = Mutex::new(ids);
    let app = keeping().with_connect_handler(move |stream, _| {
        ids.lock().unwrap().send(stream.id()).unwrap();
    });
    let nodes = [
        node(redis.url()),
        Node::start(app.with_cluster(redis.url())),
    ];
    hear_each_other(&nodes.each_ref());
    let mut client = Client::connect_to(nodes[1].address, "/");
    let id = connected.recv_timeout(DEADLINE).unwrap();
    // Its node has not read the room's history so far, and the actions on one connection keep their order.
    let room = nodes[0].sender.room("a");
    room.broadcast_confirmed("before").unwrap();
    room.join(id);
    nodes[0].sender.send_to(id, "joined");
    assert_eq!(client.receive_text(), "joined");
    room.broadcast("after");
    assert_eq!(client.receive_text(), "after");
    room.leave(id);
    nodes[0].sender.send_to(id, "left");
    assert_eq!(client.receive_text(), "left");
    room.broadcast_confirmed("not for it").unwrap();
    nodes[0].sender.send_to(id, "last");
    assert_eq!(client.receive_text(), "last");
    stop(nodes);
}

#[test]
fn reads_of_a_history_that_cannot_be_had_fail_at_once_during_an_outage() {
    let Some(mut redis) = RedisServer::start(&[]) else {
        return;
    };
    let app = keeping().with_event_stream("/events", |_, _| Ok(Subscription::room("a")));
    let node = Node::start(app.with_cluster(redis.url()));
    node.wait_until_connected();
    let room = node.sender.room("a");
    let id = room.broadcast_confirmed("1").unwrap();
    assert_eq!(room.since(None).unwrap().len(), 1);
    redis.kill();
    node.wait_until_disconnected();
    assert_eq!(room.since(None).unwrap().len(), 0);
    assert!(room.since(id).is_err());
    assert_eq!(room.last_id(), None);
    let (head, _) = answer(node.address, &request("GET", "/events", ""));
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("\r\nRetry-After: "), "{head}");
    stop([node]);
}

#[test]
fn waiting_senders_are_released_when_the_app_stops() {
    let Some(redis) = RedisServer::start(&[]) else {
        return;
    };
    let node = node(redis.url());
    node.sender.room("a").broadcast_confirmed("1").unwrap();
    redis.freeze();
    let published = node.metrics().published;
    let sender = node.sender.clone();
    let waiting = thread::spawn(move || sender.room("a").broadcast_confirmed("2"));
    eventually("the message is sent", || {
        node.metrics().published > published
    });
    stop([node]);
    let error = waiting.join().unwrap().unwrap_err();
    assert_eq!(error.reason, SendErrorReason::Broker);
    redis.thaw();
}

#[test]
fn histories_are_shared_over_several_servers() {
    let (Some(first), Some(mut second)) = (RedisServer::start(&[]), RedisServer::start(&[])) else {
        return;
    };
    let urls = format!("{},{}", first.url(), second.url());
    let nodes = [0; 2].map(|_| node(urls.as_str()));
    for node in &nodes {
        eventually("both servers are connected", || {
            node.metrics().servers_connected == 2
        });
    }
    let rooms: Vec<_> = (0..20).map(|n| format!("room{n}")).collect();
    for name in &rooms {
        let room = nodes[0].sender.room(name);
        let seen = room.broadcast_confirmed("1").unwrap().unwrap();
        room.broadcast_confirmed("2").unwrap();
        let mut resumed = Client::connect_to(nodes[1].address, &format!("/{name}?{seen}"));
        assert_eq!(resumed.receive_text(), "2");
    }
    let kept = [&first, &second].map(|server| server.command(&["DBSIZE"]));
    assert!(kept.iter().all(|size| size != ":0\r\n"), "{kept:?}");
    // Rooms of the other server go on.
    second.kill();
    eventually("one server is gone", || {
        nodes[0].metrics().servers_connected == 1
    });
    assert!(!nodes[0].sender.is_ready());
    let joined = rooms.iter().filter(|name| {
        let mut client = Client::connect_to(nodes[0].address, &format!("/{name}"));
        client.receive_text() == "joined after 0"
    });
    let joined = joined.count();
    assert!(joined > 0 && joined < rooms.len(), "{joined}");
    stop(nodes);
}
