//! What only NATS has: servers that stand in for each other, routes between them, limits and permissions. What every broker has
//! to do is in `cluster.rs` and `cluster_faults.rs`.

use crate::brokers::{NatsServer, free_port};
use crate::cluster_faults::{Connections, check_accounts_of, receive_more};
use crate::nodes::{Node, hear_each_other, joining, stop};
use crate::support::{Client, eventually};
use crate::tcp_proxy::TcpProxy;

use std::net::{Ipv4Addr, SocketAddr};

use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, SendErrorReason};

/// Two servers of one NATS cluster, whose route leads through a proxy.
struct Routed {
    servers: [NatsServer; 2],
    route: TcpProxy,
}

impl Routed {
    fn start() -> Option<Self> {
        // Another process may take a port for a route before the server does.
        for _ in 0..5 {
            let ports = [free_port(), free_port()];
            let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let route = TcpProxy::start(address(ports[1]));
            let config = |port, routes: &str| {
                format!(
                    "server_name: s{port}\ncluster {{ name: tests, listen: 127.0.0.1:{port}, no_advertise: true, {routes} }}"
                )
            };
            let to_second = format!("routes: [nats://127.0.0.1:{}]", route.port());
            let second = NatsServer::start(&config(ports[1], ""))?;
            let first = NatsServer::start(&config(ports[0], &to_second))?;
            if route.is_used() {
                return Some(Self {
                    servers: [first, second],
                    route,
                });
            }
        }
        panic!("the servers form no cluster");
    }

    /// The URL with both servers, this one first.
    fn url(&self, first: usize) -> String {
        let other = self.servers[1 - first].address();
        format!("{},{other}", self.servers[first].url())
    }
}

/// Broadcasts to the room until both clients hear each other's node.
fn hear_rooms(nodes: &[Node; 2], clients: &mut [Client; 2]) {
    hear_each_other(&[&nodes[0], &nodes[1]]);
    for (from, to) in [(0, 1), (1, 0)] {
        // In a NATS cluster, it takes a moment until the other server knows of a subscription.
        eventually("the other node receives messages", || {
            let before = nodes[to].metrics().received;
            nodes[from].sender.room("a").broadcast("are you there?");
            eventually_or_not(|| nodes[to].metrics().received > before)
        });
    }
    for node in nodes {
        node.sender.room("a").broadcast("begin");
    }
    for client in clients {
        for _ in 0..2 {
            while client.receive_text() != "begin" {}
        }
    }
}

/// Whether a condition holds within a short time.
fn eventually_or_not(condition: impl Fn() -> bool) -> bool {
    let until = std::time::Instant::now() + std::time::Duration::from_millis(100);
    while std::time::Instant::now() < until {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn app_with_a_history_does_not_start_on_nats() {
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("news", HistoryLimits::messages(10))
        .with_cluster("nats://localhost");
    let error = app.with_address("127.0.0.1:0").start().unwrap_err();
    assert!(error.to_string().contains("NATS"), "{error}");
    // A pattern that turns histories off asks for none.
    let app = AsyncWebsocketApp::<()>::new()
        .with_history("news", HistoryLimits::NONE)
        .with_cluster("nats://127.0.0.1:1");
    drop(app.with_address("127.0.0.1:0").start().unwrap());
}

#[test]
fn credentials_of_the_url_are_accepted_or_rejected() {
    let users = "authorization { users: [{user: me, password: \"p@ss\"}] }";
    let (Some(users), Some(token)) = (
        NatsServer::start(users),
        NatsServer::start("authorization { token: t0ken }"),
    ) else {
        return;
    };
    let url = |server: &NatsServer, credentials: &str| {
        let address = server.address();
        format!("nats://{credentials}{address}")
    };
    for (server, credentials) in [(&users, "me:p%40ss@"), (&token, "t0ken@")] {
        Node::joining(url(server, credentials)).stop();
        for wrong in ["", "me:wrong@", "wrong@"] {
            let node = Node::start(joining().with_cluster(url(server, wrong)));
            // Its own clients are served.
            let mut client = node.join("a");
            node.sender.room("a").broadcast("local");
            assert_eq!(client.receive_text(), "local");
            assert_eq!(node.metrics().servers_connected, 0);
            node.stop();
        }
    }
}

#[test]
fn messages_beyond_the_servers_limit_are_refused() {
    let Some(server) = NatsServer::start("max_payload: 2000") else {
        return;
    };
    let nodes = [0; 2].map(|_| Node::joining(server.url()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a");
    let room = nodes[0].sender.room("a");
    let longest = (1..=2000)
        .rev()
        .find(|&len| room.try_broadcast("x".repeat(len)).is_ok())
        .unwrap();
    assert!((1900..2000).contains(&longest), "{longest}");
    assert_eq!(client.receive_text().len(), longest);
    let refused = room.try_broadcast("x".repeat(longest + 1)).unwrap_err();
    assert_eq!(refused.reason, SendErrorReason::TooLarge);
    room.broadcast("last");
    assert_eq!(client.receive_text(), "last");
    for node in &nodes {
        let metrics = node.metrics();
        assert_eq!((metrics.connections, metrics.dropped_broker), (1, 0));
    }
    stop(nodes);
}

#[test]
fn messages_that_the_user_may_not_publish_are_counted() {
    let config = "authorization { users: [{user: me, password: pw, permissions: { \
        publish: { allow: \"humphrey_ws.>\", deny: \"humphrey_ws.room.YQ\" }, subscribe: \">\" }}] }";
    let Some(server) = NatsServer::start(config) else {
        return;
    };
    let url = format!("nats://me:pw@{}", server.address());
    let nodes = [0; 2].map(|_| Node::joining(url.as_str()));
    hear_each_other(&[&nodes[0], &nodes[1]]);
    let mut client = nodes[1].join("a+b");
    for n in 0..10 {
        nodes[0].sender.room("a").broadcast("denied");
        nodes[0].sender.room("b").broadcast(n.to_string());
    }
    for n in 0..10 {
        assert_eq!(client.receive_text(), n.to_string());
    }
    eventually("the refused messages are counted", || {
        let metrics = nodes[0].metrics();
        metrics.dropped_broker == 10 && metrics.confirmed >= 10
    });
    assert_eq!(nodes[0].metrics().connections, 1);
    stop(nodes);
}

#[test]
fn node_turns_to_another_server_when_it_loses_one() {
    let Some(mut cluster) = Routed::start() else {
        return;
    };
    let nodes = [0, 1].map(|first| Node::joining(cluster.url(first)));
    let mut clients = [nodes[0].join("a"), nodes[1].join("a")];
    hear_rooms(&nodes, &mut clients);
    cluster.servers[0].kill();
    eventually("the node is connected to the other server", || {
        nodes[0].metrics().connections == 2
    });
    hear_rooms(&nodes, &mut clients);
    assert_eq!(nodes[1].metrics().connections, 1);
    // Both are at the second server now, and turn to the first one.
    cluster.servers[0].restart();
    cluster.servers[1].kill();
    eventually("the nodes are connected to the first server", || {
        nodes[0].metrics().connections == 3 && nodes[1].metrics().connections == 2
    });
    hear_rooms(&nodes, &mut clients);
    stop(nodes);
}

#[test]
fn cut_route_between_servers_loses_nothing_that_is_not_counted() {
    let Some(mut cluster) = Routed::start() else {
        return;
    };
    let nodes = [0, 1, 0].map(|first| Node::joining(cluster.url(first)));
    check_accounts_of(nodes, &mut cluster, Connections::Last, |cluster, nodes| {
        for _ in 0..5 {
            cluster.route.cut();
            receive_more(nodes, 500);
        }
    });
}
