//! Presence over several nodes: all of them know who is in a room, and the users of a node that is lost vanish and come back once.

use crate::brokers::{TestBroker, with_each_broker};
use crate::frames::{V1, connect_at, request};
use crate::nodes::{Node, hear_each_other, stop};
use crate::presence_client::PresenceView;
use crate::support::{Client, DEADLINE, holds_within};
use crate::tcp_proxy::{Direction, TcpProxy};

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use humphrey_ws::{Accept, AsyncWebsocketApp, Presence, PresenceRooms, Procedures};
use serde_json::json;

/// The users of a lost node vanish within this time.
const GONE_AFTER: Duration = Duration::from_secs(4);

/// A node whose clients connect as the user in their query, and join the room in their path.
fn app(cluster: &str) -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_cluster(cluster)
        .with_presence(PresenceRooms::new("*").grace(Duration::ZERO))
        .with_procedures(Procedures::new())
        .with_join_handler(|_, _| true)
        .with_handshake_handler(|request, _| {
            Ok(match request.query_param("user") {
                Some(user) => Accept::new().user(user),
                None => Accept::new(),
            })
        })
        .with_connect_handler(|stream, _| {
            if stream.subprotocol().is_none() {
                stream.join(&stream.path()[1..]);
                stream.set_presence(&stream.path()[1..], stream.query());
                stream.send("joined");
            }
        })
}

fn start(cluster: &str) -> Node {
    let node = Node::start(app(cluster));
    node.wait_until_connected();
    node
}

fn join(node: &Node, target: &str) -> Client {
    let mut client = Client::connect_to(node.address, target);
    assert_eq!(client.receive_text(), "joined");
    client
}

/// The users in a room, with the number of their connections.
fn here(node: &Node, room: &str) -> Vec<(String, usize)> {
    let members = node.sender.room(room).presence().members.into_iter();
    members
        .map(|member| {
            let user = member.user.unwrap();
            assert_eq!(member.state.text().unwrap(), format!("user={user}"));
            (user, member.connections)
        })
        .collect()
}

fn eventually_here(node: &Node, room: &str, expected: &[(&str, usize)]) {
    let is_so = holds_within(DEADLINE, || {
        let here = here(node, room);
        let here = here
            .iter()
            .map(|(user, connections)| (&**user, *connections));
        here.eq(expected.iter().copied())
    });
    assert!(is_so, "{:?} instead of {expected:?}", here(node, room));
}

fn every_node_knows_the_members_of_all<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 3].map(|_| start(&broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1], &nodes[2]]);
    let ada = join(&nodes[0], "/a?user=Ada");
    let _ada_too = join(&nodes[1], "/a?user=Ada");
    let bob = join(&nodes[1], "/a?user=Bob");
    // The last node has no members of the room, and asks the others.
    for node in &nodes {
        eventually_here(node, "a", &[("Ada", 2), ("Bob", 1)]);
        assert!(node.sender.room("a").presence().is_complete);
    }
    bob.close();
    ada.close();
    for node in &nodes {
        eventually_here(node, "a", &[("Ada", 1)]);
    }
    // The users of a node that stops are gone at once.
    let [first, second, third] = nodes;
    second.stop();
    let since = Instant::now();
    for node in [&first, &third] {
        eventually_here(node, "a", &[]);
    }
    assert!(since.elapsed() < GONE_AFTER);
    stop([first, third]);
}

fn node_that_joins_a_room_later_learns_its_members_at_once<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| start(&broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let _clients: Vec<_> = (0..50)
        .map(|user| join(&nodes[0], &format!("/a?user=user-{user:02}")))
        .collect();
    let _late = join(&nodes[1], "/a?user=late");
    let present = nodes[1].sender.room("a").presence();
    assert_eq!((present.members.len(), present.is_complete), (51, true));
    stop(nodes);
}

fn threads_that_ask_about_a_room_at_the_same_time_all_get_the_answer<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| start(&broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let _ada = join(&nodes[0], "/a?user=Ada");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(here(&nodes[1], "a"), [("Ada".to_owned(), 1)]);
                }
            });
        }
    });
    assert_eq!(nodes[1].sender.metrics().rooms, 0);
    stop(nodes);
}

fn members_elsewhere_are_known_while_the_last_member_here_leaves<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| start(&broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let _ada = join(&nodes[0], "/a?user=Ada");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let here = here(&nodes[1], "a");
                    assert_eq!(here.first(), Some(&("Ada".to_owned(), 1)), "{here:?}");
                }
            });
        }
        for _ in 0..10 {
            join(&nodes[1], "/a?user=Bob").close();
        }
        is_over.store(true, Relaxed);
    });
    stop(nodes);
}

/// A broker that a node reaches through a proxy.
fn through(url: &str) -> (TcpProxy, String) {
    let (scheme, upstream) = url.split_once("://").unwrap();
    let proxy = TcpProxy::start(upstream.parse::<SocketAddr>().unwrap());
    let url = format!("{scheme}://{}", proxy.address());
    (proxy, url)
}

type Told = (String, Presence);

fn start_telling(cluster: &str) -> (Node, Receiver<Told>) {
    let (told, receiver) = channel();
    let told = Mutex::new(told);
    let node = Node::start(app(cluster).with_room_handler(move |_, stream, change, _| {
        let user = stream.user().unwrap().to_owned();
        // The test may have ended.
        let _ = told.lock().unwrap().send((user, change));
    }));
    node.wait_until_connected();
    (node, receiver)
}

fn users_of_a_lost_node_vanish_and_come_back_once<B: TestBroker>() {
    let Some(broker) = B::start() else {
        return;
    };
    let (proxy, url) = through(&broker.url());
    let ((one, told_one), (other, told_other)) =
        (start_telling(&broker.url()), start_telling(&url));
    hear_each_other(&[&one, &other]);
    let _ada = join(&one, "/a?user=Ada");
    let _bob = join(&other, "/a?user=Bob");
    let mut watching = connect_at(one.address, "/?user=Cy", V1);
    watching.send_binary(request(1, "$watch", b"\x01anew"));
    let mut view = PresenceView::default();
    let cy = json!({"user": "Cy", "connections": 1});
    let ada = json!({"user": "Ada", "connections": 1, "state": "user=Ada"});
    let bob = json!({"user": "Bob", "connections": 1, "state": "user=Bob"});
    view.receive_until(&mut watching, "a", &json!([ada, bob, cy]));
    for _ in 0..2 {
        proxy.stall(Direction::ToServer);
        let since = Instant::now();
        view.receive_until(&mut watching, "a", &json!([ada, cy]));
        assert!(
            since.elapsed() < GONE_AFTER + Duration::from_secs(1),
            "{:?}",
            since.elapsed()
        );
        // The lost node does not judge: the silence is its own.
        let present = other.sender.room("a").presence();
        assert_eq!((present.members.len(), present.is_complete), (3, false));
        proxy.resume();
        view.receive_until(&mut watching, "a", &json!([ada, bob, cy]));
        let present = other.sender.room("a").presence();
        assert_eq!(present.members.len(), 3);
    }
    // The room handlers were told of the users of their own nodes, who have never left.
    assert_eq!(
        told_one.try_iter().collect::<Vec<_>>(),
        ["Ada", "Cy"].map(|user| (user.to_owned(), Presence::Joined))
    );
    assert_eq!(
        told_other.try_iter().collect::<Vec<_>>(),
        [("Bob".to_owned(), Presence::Joined)]
    );
    stop([one, other]);
}

fn presence_survives_a_restart_of_the_broker<B: TestBroker>() {
    let Some(mut broker) = B::start() else {
        return;
    };
    let nodes = [0; 2].map(|_| start(&broker.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let _ada = join(&nodes[0], "/a?user=Ada");
    let bob = join(&nodes[1], "/a?user=Bob");
    for node in &nodes {
        eventually_here(node, "a", &[("Ada", 1), ("Bob", 1)]);
    }
    broker.kill();
    nodes.iter().for_each(Node::wait_until_disconnected);
    bob.close();
    let _cy = join(&nodes[1], "/a?user=Cy");
    assert!(!nodes[0].sender.room("a").presence().is_complete);
    broker.restart();
    for node in &nodes {
        eventually_here(node, "a", &[("Ada", 1), ("Cy", 1)]);
    }
    stop(nodes);
}

with_each_broker!(
    every_node_knows_the_members_of_all,
    node_that_joins_a_room_later_learns_its_members_at_once,
    threads_that_ask_about_a_room_at_the_same_time_all_get_the_answer,
    members_elsewhere_are_known_while_the_last_member_here_leaves,
    users_of_a_lost_node_vanish_and_come_back_once,
    presence_survives_a_restart_of_the_broker,
);
